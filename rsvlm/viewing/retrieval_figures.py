"""Figures and tables of retrieval scores."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from rsvlm.viewing.plots import DASHES, MARKERS, figure, series_colours

TITLES = {"i2t": "image to text", "t2i": "text to image"}
LABELS = {
    "dual_encoder": "dual encoder",
    "ret": "[RET]",
    "combined": "combined",
    "ceiling": "perfect model, ties at random",
}
RECALLS = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10", "mean_recall")


def recall_curves(curves: pd.DataFrame, match: str = "by_image") -> Figure:
    """Recall at K over K, one row of axes a source, one column a direction, with the ceiling dashed.

    Args:
        curves: columns method, source, match, direction, k, recall (fraction), as score_spaces returns them.
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
                is_ceiling = method == "ceiling"
                axis.plot(
                    part["k"],
                    part["recall"],
                    label=LABELS.get(method, method),
                    color=colours[method],
                    linestyle="--" if is_ceiling else DASHES[0],
                    marker="" if is_ceiling else MARKERS[number % len(MARKERS)],
                    markevery=[0, 4, 9, 19],
                    linewidth=1.2 if is_ceiling else 1.8,
                )
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
        metrics: {method: {source: {match: {name: {"value", "low", "high", ...}}}}}.
    """
    rows = []
    for source in sorted({source for sources in metrics.values() for source in sources}):
        own = {method: sources[source][match] for method, sources in metrics.items() if source in sources}
        if match == "by_image":
            own["ceiling"] = next(iter(sources[source]["ceiling"] for sources in metrics.values() if source in sources))
        for method, scores in own.items():
            row = {"source": source, "method": LABELS.get(method, method)}
            row |= {name: round(100 * scores[name]["value"], 1) for name in RECALLS}
            mean = scores["mean_recall"]
            row["95 % interval"] = "" if mean["low"] is None else f"{100 * mean['low']:.1f} to {100 * mean['high']:.1f}"
            rows.append(row)
    return pd.DataFrame(rows).set_index(["source", "method"])
