"""Figures of scores: captions, retrieval, and the study's one picture.

Figures of caption scores.

Figures and tables of retrieval scores.

The study's picture: recall curves under their ceilings, and CIDEr against both kinds of references.
"""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from rsvlm.scoring.published import RECALLS
from rsvlm.scoring.runs import HUMAN, METHODS, RESERVED, RUNS, named
from rsvlm.viewing.plots import BLUE, DASHES, INK, MARKERS, MUTED, ORANGE, figure, series_colours

KINDS = {"released": ("references as released", BLUE, "o"), "distinct": ("distinct references", ORANGE, "s")}
HALVES = {"seen": ("reference set seen in training", BLUE, "o"), "unseen": ("not seen", ORANGE, "s")}
RULE_WRITTEN = ("blue_marble",)  # sources whose references a rule wrote, not a person


def run_label(run: str, source: str) -> str:
    """How a run is called in a figure. The held-out reference is not called human where a rule wrote it."""
    if run != HUMAN:
        return run
    return f"{RUNS[HUMAN].name} ({'by rule' if source in RULE_WRITTEN else 'human'})"


def cider_figure(metrics: Mapping, source: str) -> Figure:
    """CIDEr with 95 % intervals, one line a run, best at the top: released against distinct references.

    Args:
        metrics: what METRICS/score_captions.json holds.
        source: the source to draw.
    """
    return _dot_figure(metrics, source, KINDS, f"{source}: CIDEr by run")


def seen_figure(metrics: Mapping, source: str) -> Figure:
    """CIDEr with 95 % intervals on images whose reference set is, or is not, also a training image's."""
    return _dot_figure(metrics, source, HALVES, f"{source}: CIDEr where the references were seen in training")


def _dot_figure(metrics: Mapping, source: str, parts: Mapping, title: str) -> Figure:
    entries = {run: metrics[run][source] for run in metrics if run not in RESERVED and source in metrics[run]}
    runs = [run for run in entries if any(_cider(entries[run], part) for part in parts)]
    if not runs:
        raise ValueError(f"no CIDEr for the source {source!r}")
    runs.sort(key=lambda run: (_value(entries[run]), run))
    drawn, axes = figure(7.2, 1.3 + 0.42 * len(runs))
    for shift, (part, (label, colour, marker)) in zip((0.13, -0.13), parts.items(), strict=True):
        placed = [(place, _cider(entries[run], part)) for place, run in enumerate(runs)]
        placed = [(place, entry) for place, entry in placed if entry]
        values = [entry["value"] for _, entry in placed]
        errors = [
            [entry["value"] - entry["low"] for _, entry in placed],
            [entry["high"] - entry["value"] for _, entry in placed],
        ]
        errors = [[max(0.0, error) for error in side] for side in errors]
        heights = [place + shift for place, _ in placed]
        axes.errorbar(
            values,
            heights,
            xerr=errors,
            fmt=marker,
            color=colour,
            label=label,
            capsize=2.5,
            elinewidth=1.4,
            linestyle="none",
        )
        if part == "released":
            for value, height in zip(values, heights, strict=True):
                axes.annotate(
                    f"{value:.2f}",
                    (value, height),
                    (0, 5),
                    textcoords="offset points",
                    ha="center",
                    fontsize=8,
                    color=INK,
                )
    axes.set_yticks(range(len(runs)), [run_label(run, source) for run in runs])
    axes.set_ylim(-0.6, len(runs) - 0.25)
    axes.set_xlim(left=0)
    axes.set_xlabel("CIDEr (95 % interval over images)")
    axes.grid(True, axis="x")
    axes.grid(False, axis="y")
    axes.set_title(title)
    axes.tick_params(axis="y", length=0, labelcolor=INK, color=MUTED)
    axes.legend(loc="best")
    return drawn


def _cider(entry: Mapping, part: str) -> Mapping | None:
    found = entry.get(part, {}).get("CIDEr")
    return found if found and found["value"] is not None else None


def _value(entry: Mapping) -> float:
    found = _cider(entry, "released")
    return found["value"] if found else 0.0


TITLES = {"image_to_text": "image to text", "text_to_image": "text to image"}


def recall_curves(curves: pd.DataFrame, match: str = "by_image") -> Figure:
    """Recall at K over K, one row of axes a source, one column a direction, with the ceiling dashed.

    Args:
        curves: columns method, source, match, direction, k, recall (fraction), as score_methods returns them.
        match: the match rule to draw; the ceiling belongs to "by_image" and is left out elsewhere.
    """
    shown = curves[curves["match"] == match]
    if len(shown) == 0:
        raise ValueError(f"no recall curve for the match rule {match!r}; there are {sorted(set(curves['match']))}")
    sources, methods = sorted(set(shown["source"])), list(dict.fromkeys(shown["method"]))
    methods.sort(key=lambda method: method == "ceiling")  # stable: the ceiling comes last
    colours = series_colours(methods)
    drawn, axes = figure(7.4, 2.9 * len(sources) + 0.3, rows=len(sources), columns=2, squeeze=False, sharey=True)
    for source, row in zip(sources, axes, strict=True):
        for (direction, title), axis in zip(TITLES.items(), row, strict=True):
            for number, method in enumerate(methods):
                part = shown[
                    (shown["source"] == source) & (shown["direction"] == direction) & (shown["method"] == method)
                ]
                _draw_curve(axis, part, method, number, colours[method])
            axis.set_title(f"{source}: {title}")
            axis.set_xlabel("K")
            axis.set_ylim(0, 1.02)
            axis.set_xticks([1, 5, 10, 15, 20])
            axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        row[0].set_ylabel("recall at K")
    axes[0, 1].legend(loc="lower right")
    return drawn


def retrieval_table(metrics: dict, match: str = "by_image") -> pd.DataFrame:
    """Recalls in percent, one row a source and method with the mean recall's interval, and one row for the ceiling.

    Args:
        metrics: {method: {source: {match: {name: {"value", "low", "high", ...}}}}}, and what else the report holds.
    """
    rows = []
    methods = _methods(metrics)
    for source in sorted({source for sources in methods.values() for source in sources}):
        own = {method: sources[source][match] for method, sources in methods.items() if source in sources}
        if match == "by_image":
            own["ceiling"] = next(iter(sources[source]["ceiling"] for sources in methods.values() if source in sources))
        for method, scores in own.items():
            row = {"source": source, "method": named(METHODS, method).name}
            row |= {name: round(100 * scores[name]["value"], 1) for name in RECALLS}
            mean = scores["mean_recall"]
            row["95 % interval"] = "" if mean["low"] is None else f"{100 * mean['low']:.1f} to {100 * mean['high']:.1f}"
            rows.append(row)
    return pd.DataFrame(rows).set_index(["source", "method"])


def precision_table(metrics: dict) -> pd.DataFrame:
    """Median ranks, mean average precision and precision at k by both match rules, one row a source and method."""
    rows = []
    for method, sources in _methods(metrics).items():
        for source, matches in sources.items():
            for match in ("by_image", "by_text"):
                row = {"source": source, "right by": match.removeprefix("by_"), "method": named(METHODS, method).name}
                for way in TITLES:
                    own = matches[match]
                    row[f"{way} median rank"] = round(own[f"{way}_median_rank"]["value"], 1)
                    names = {"map": "mAP", "p5": "P@5", "p10": "P@10"}
                    row |= {
                        f"{way} {title}": round(100 * own[f"{way}_{key}"]["value"], 1) for key, title in names.items()
                    }
                rows.append(row)
    return (
        pd.DataFrame(rows)
        .sort_values(["source", "right by"], kind="stable")
        .set_index(["source", "right by", "method"])
    )


def class_table(metrics: dict, method: str, source: str) -> pd.DataFrame:
    """Recalls in percent by class, hardest class first, with its number of images. Empty where no image has a label."""
    rows = {
        name: {"images": own["images"]} | {recall: round(100 * own[recall], 1) for recall in RECALLS}
        for name, own in metrics[method][source]["by_class"].items()
    }
    columns = ["images", *RECALLS]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("class")
    return table.sort_values("mean_recall", kind="stable")


def difference_table(metrics: dict) -> pd.DataFrame:
    """Differences of mean recall by image between the methods, in points, with intervals and p-values."""
    rows = []
    for source, pairs in metrics["paired"].items():
        for pair, own in pairs.items():
            entry = own["mean_recall"]
            points = {key: round(100 * entry[key], 2) for key in ("value", "low", "high")}
            rows.append({"source": source, "pair": pair, **points, "p": round(entry["p"], 4), "images": entry["n"]})
    return pd.DataFrame(rows).set_index(["source", "pair"])


def protocol_table(metrics: dict) -> pd.DataFrame:
    """The recalls in percent under each named protocol, right answers by image, one row a source, protocol, method."""
    rows = []
    for method, sources in _methods(metrics).items():
        for source, matches in sources.items():
            for name, own in matches.get("protocols", {}).items():
                row = {"source": source, "protocol": name, "method": named(METHODS, method).name}
                rows.append(row | {recall: round(100 * own[recall]["value"], 1) for recall in RECALLS})
    table = pd.DataFrame(rows, columns=["source", "protocol", "method", *RECALLS])
    return table.sort_values(["source", "protocol"], kind="stable").set_index(["source", "protocol", "method"])


def _methods(metrics: dict) -> dict:
    return {method: sources for method, sources in metrics.items() if method not in RESERVED}


KINDS_COMPARISON_FIGURES = {
    "CIDEr": ("references as released", BLUE, "o"),
    "CIDEr_distinct": ("distinct references", ORANGE, "s"),
}


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
    for shift, (metric, (label, colour, marker)) in zip((0.14, -0.14), KINDS_COMPARISON_FIGURES.items(), strict=True):
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
        _draw_curve(axis, curves[curves["method"] == method], method, number, colours[method])
    axis.set_title(title)
    axis.set_xlabel("K")
    axis.set_ylim(0, 1.02)
    axis.set_xticks([1, 5, 10, 15, 20])
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _draw_curve(axis, points: pd.DataFrame, method: str, number: int, colour: str) -> None:
    """The recalls of one method over k; the ceiling is a thin broken line."""
    is_ceiling = method == "ceiling"
    axis.plot(
        points["k"],
        points["recall"],
        label=named(METHODS, method).name,
        color=colour,
        linestyle="--" if is_ceiling else DASHES[0],
        marker="" if is_ceiling else MARKERS[number % len(MARKERS)],
        markevery=[0, 4, 9, 19],
        linewidth=1.2 if is_ceiling else 1.8,
    )
