"""Pictures of the study beside the published figures: scores of captions and retrieval, CIDEr against BLEU-4 and size."""

from collections.abc import Iterable, Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rsvlm.scoring.published import EITHER, Published, benchmark_name, published_for
from rsvlm.scoring.runs import HUMAN
from rsvlm.viewing.figures import KINDS, draw_ciders, draw_recalls, interval_lengths, is_known, run_label
from rsvlm.viewing.plots import INK, MARKERS, ORANGE, figure, series_colours

NO_MODEL = ("constant",)  # runs that use no weights at all
ENCODER_ONLY = ("nearest", "consensus")
LANGUAGE_MODEL = ("beam", "captioner")
NO_WEIGHTS_AT = 1e6  # where a run without weights stands on the logarithmic axis


def comparison_figure(metrics: Mapping, curves: pd.DataFrame, source: str) -> Figure:
    """CIDEr of every run with intervals on the left, recall at K both ways with the ceiling on the right.

    Args:
        metrics: what ``study_metrics`` gives.
        curves: as ``recall_curves`` takes them; drawn is the match by_image.
        source: the source to draw.

    Raises:
        ValueError: nothing of this source was scored.
    """
    runs = {run: by_source[source] for run, by_source in metrics["captions"].items() if source in by_source}
    shown = curves[(curves["source"] == source) & (curves["match"] == "by_image")]
    if not runs or len(shown) == 0:
        raise ValueError(f"no caption scores and recall curves for the source {source!r}")
    drawn, axes = figure(11.5, 1.8 + 0.34 * max(7, len(runs)), columns=3, gridspec_kw={"width_ratios": [1.3, 1, 1]})
    ciders = {run: {"released": own["CIDEr"], "distinct": own.get("CIDEr_distinct")} for run, own in runs.items()}
    draw_ciders(axes[0], ciders, KINDS, source, 0.14)
    axes[0].set_ylim(-0.6, len(runs) - 0.4)
    axes[0].set_title(f"{source}: captions")
    axes[0].legend(loc="lower right")
    draw_recalls(axes[1:], shown, source)
    axes[1].set_ylabel("recall at K, right by image")
    lines, names = axes[2].get_legend_handles_labels()
    drawn.legend(lines, names, loc="outside lower right", ncols=len(names))  # the curves leave no room inside
    return drawn


def benchmarks(sources: Iterable[str]) -> list[list[str]]:
    """The sources, those together that papers call by one name: the two test sets of RSICD."""
    groups: dict[str, list[str]] = {}
    for source in sources:
        name = benchmark_name(source)
        groups.setdefault(EITHER.get(name, name), []).append(source)
    return list(groups.values())


def standing_figure(metrics: Mapping, sources: list[str]) -> Figure:
    """Where captioners stand on one benchmark: CIDEr over BLEU-4 on the left, over the number of weights on the right.

    On one test set with captions by people, BLEU-4 and CIDEr of captioners that look at the image lie near one line, so
    the left tells on which test set a published pair of figures was measured. The right shows what size is worth.

    Args:
        metrics: what ``study_metrics`` gives.
        sources: the benchmark's test sets; see ``benchmarks``.
    """
    drawn, axes = figure(10.5, 4.2, columns=2)
    for number, source in enumerate(sources):
        own = {
            run: by_source[source]
            for run, by_source in metrics["captions"].items()
            if run not in (HUMAN, "shuffled")
            and all(is_known(by_source.get(source, {}).get(m)) for m in ("BLEU-4", "CIDEr"))
        }
        marker = MARKERS[number % len(MARKERS)]
        _draw_pairs(axes[0], own, published_for("captions", source), source, marker)
        _draw_sizes(axes[1], own, published_for("captions", source), source, metrics.get("weights", {}), marker)
    axes[0].set(xlabel="BLEU-4", ylabel="CIDEr", title="Two metrics")
    axes[1].set(xlabel="weights used for a caption", ylabel="CIDEr", title="What size is worth", xscale="log")
    ticks = {NO_WEIGHTS_AT: "none", 1e7: "10 million", 1e8: "100 million", 1e9: "1 billion", 1e10: "10 billion"}
    axes[1].set_xlim(NO_WEIGHTS_AT / 2, 2e10)
    axes[1].set_xticks(list(ticks), list(ticks.values()))
    axes[1].minorticks_off()
    for one in axes:
        one.set_ylim(bottom=0)
    axes[0].legend(loc="lower right")
    return drawn


def run_weights(weights: Mapping, run: str) -> float | None:
    """How many weights a run of the study needs for a caption; None where it is not known."""
    if run in NO_MODEL:
        return 0
    encoder, captioner = weights.get("image_encoder"), weights.get("captioner")
    if run in ENCODER_ONLY:
        return encoder
    return encoder + captioner if run in LANGUAGE_MODEL and encoder and captioner else None


def _draw_pairs(axes: Axes, own: Mapping, published: list[Published], source: str, marker: str) -> None:
    points = {run: (entry["BLEU-4"]["value"], entry["CIDEr"]["value"]) for run, entry in own.items()}
    colours = series_colours(points)
    for run, (x, y) in points.items():
        axes.plot([x], [y], marker=marker, color=colours[run], linestyle="", zorder=3)
    _name_together(axes, {run_label(run, source): point for run, point in points.items()})
    axes.plot([], [], marker=marker, color=INK, linestyle="", label=f"{source}: runs of this study")
    pairs = {row.name: row.values for row in published if {"BLEU-4", "CIDEr"} <= set(row.values)}
    for name, values in pairs.items():
        axes.plot([values["BLEU-4"]], [values["CIDEr"]], **_published_look(marker), zorder=4)
        _name(axes, values["BLEU-4"], values["CIDEr"], name, left=True)
    if pairs:
        axes.plot([], [], **_published_look(marker), label=f"{source}: published")


def _draw_sizes(
    axes: Axes, own: Mapping, published: list[Published], source: str, weights: Mapping, marker: str
) -> None:
    colours, points = series_colours(own), {}
    for run, entry in own.items():
        size = run_weights(weights, run)
        if size is not None:
            x, cider = max(size, NO_WEIGHTS_AT), entry["CIDEr"]
            spread = interval_lengths([cider])
            axes.errorbar([x], [cider["value"]], yerr=spread, fmt=marker, color=colours[run], capsize=2.5)
            points[run_label(run, source)] = (x, cider["value"])
    _name_together(axes, points)
    for row in published:
        if row.weights and "CIDEr" in row.values:
            axes.plot([row.weights], [row.values["CIDEr"]], **_published_look(marker))
            _name(axes, row.weights, row.values["CIDEr"], row.name, left=True)


def _published_look(marker: str) -> dict:
    hollow = {"color": ORANGE, "markerfacecolor": "none", "markeredgewidth": 1.6}
    return {"marker": marker, "markersize": 9, "linestyle": ""} | hollow


def _name_together(axes: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Write names beside points; those that nearly stand in one place share a label."""
    shared: dict[tuple[float, float], str] = {}
    for name, (x, y) in points.items():
        at = next((near for near in shared if abs(near[0] - x) < 0.01 and abs(near[1] - y) < 0.1), (x, y))
        shared[at] = f"{shared[at]}, {name}" if at in shared else name
    for (x, y), text in shared.items():
        _name(axes, x, y, text, left=0.3 < x < 1)


def _name(axes: Axes, x: float, y: float, text: str, *, left: bool = False) -> None:
    side = "right" if left else "left"
    place = {"textcoords": "offset points", "ha": side, "va": "center", "fontsize": 8, "color": INK}
    axes.annotate(text, (x, y), (-8 if left else 8, 0), **place)
