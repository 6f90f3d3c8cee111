"""The study's picture: recall curves under their ceilings, and CIDEr against both kinds of references."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from rsvlm.viewing.plots import BLUE, DASHES, INK, MARKERS, MUTED, ORANGE, figure, series_colours
from rsvlm.viewing.retrieval_figures import LABELS, TITLES
from rsvlm.viewing.score_figures import run_label

KINDS = {"CIDEr": ("references as released", BLUE, "o"), "CIDEr_distinct": ("distinct references", ORANGE, "s")}


def comparison_figure(metrics: Mapping, curves: pd.DataFrame, source: str) -> Figure:
    """CIDEr of every run with intervals on the left, recall at K both ways with the ceiling on the right.

    Args:
        metrics: what ``study_metrics`` gives.
        curves: columns method, source, match, direction, k, recall; drawn is the match by_image.
        source: the source to draw.

    Raises:
        ValueError: nothing of this source was scored.
    """
    runs = {run: by_source[source] for run, by_source in metrics["captions"].items() if source in by_source}
    shown = curves[(curves["source"] == source) & (curves["match"] == "by_image")]
    if not runs or len(shown) == 0:
        raise ValueError(f"no caption scores and recall curves for the source {source!r}")
    drawn, axes = figure(11.5, 1.8 + 0.34 * max(7, len(runs)), columns=3, gridspec_kw={"width_ratios": [1.3, 1, 1]})
    _draw_cider(axes[0], runs, source)
    for axis, (direction, title) in zip(axes[1:], TITLES.items(), strict=True):
        _draw_recalls(axis, shown[shown["direction"] == direction], f"{source}: {title}")
    axes[1].set_ylabel("recall at K, right by image")
    lines, names = axes[2].get_legend_handles_labels()
    drawn.legend(lines, names, loc="outside lower right", ncols=len(names))  # the curves leave no room inside
    return drawn


def _draw_cider(axis: Axes, runs: Mapping, source: str) -> None:
    names = sorted(runs, key=lambda run: (runs[run]["CIDEr"]["value"], run))
    for shift, (metric, (label, colour, marker)) in zip((0.14, -0.14), KINDS.items(), strict=True):
        placed = [(place, runs[run][metric]) for place, run in enumerate(names) if metric in runs[run]]
        placed = [(place, entry) for place, entry in placed if entry["value"] is not None]
        values = [entry["value"] for _, entry in placed]
        sides = [[max(0.0, abs(entry["value"] - entry[end])) for _, entry in placed] for end in ("low", "high")]
        heights = [place + shift for place, _ in placed]
        options = {
            "fmt": marker,
            "color": colour,
            "label": label,
            "capsize": 2.5,
            "elinewidth": 1.4,
            "linestyle": "none",
        }
        axis.errorbar(values, heights, xerr=sides, **options)
    axis.set_yticks(range(len(names)), [run_label(run, source) for run in names])
    axis.set_ylim(-0.6, len(names) - 0.4)
    axis.set_xlim(left=0)
    axis.grid(True, axis="x")
    axis.grid(False, axis="y")
    axis.tick_params(axis="y", length=0, labelcolor=INK, color=MUTED)
    axis.set_xlabel("CIDEr (95 % interval over images)")
    axis.set_title(f"{source}: captions")
    axis.legend(loc="lower right")


def _draw_recalls(axis: Axes, curves: pd.DataFrame, title: str) -> None:
    methods = sorted(dict.fromkeys(curves["method"]), key=lambda method: method == "ceiling")  # the ceiling comes last
    colours = series_colours(methods)
    for number, method in enumerate(methods):
        own, is_ceiling = curves[curves["method"] == method], method == "ceiling"
        axis.plot(
            own["k"],
            own["recall"],
            label=LABELS.get(method, method),
            color=colours[method],
            linestyle="--" if is_ceiling else DASHES[0],
            marker="" if is_ceiling else MARKERS[number % len(MARKERS)],
            markevery=[0, 4, 9, 19],
            linewidth=1.2 if is_ceiling else 1.8,
        )
    axis.set_title(title)
    axis.set_xlabel("K")
    axis.set_ylim(0, 1.02)
    axis.set_xticks([1, 5, 10, 15, 20])
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
