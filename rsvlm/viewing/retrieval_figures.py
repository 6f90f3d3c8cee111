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
    "reranked": "combined, re-ranked",
    "ceiling": "perfect model, ties at random",
}
RECALLS = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10", "mean_recall")
NOT_METHODS = ("paired", "protocol")


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
        metrics: {method: {source: {match: {name: {"value", "low", "high", ...}}}}}, and what else the report holds.
    """
    rows = []
    methods = _methods(metrics)
    for source in sorted({source for sources in methods.values() for source in sources}):
        own = {method: sources[source][match] for method, sources in methods.items() if source in sources}
        if match == "by_image":
            own["ceiling"] = next(iter(sources[source]["ceiling"] for sources in methods.values() if source in sources))
        for method, scores in own.items():
            row = {"source": source, "method": LABELS.get(method, method)}
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
                row = {"source": source, "right by": match.removeprefix("by_"), "method": LABELS.get(method, method)}
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
                row = {"source": source, "protocol": name, "method": LABELS.get(method, method)}
                rows.append(row | {recall: round(100 * own[recall]["value"], 1) for recall in RECALLS})
    table = pd.DataFrame(rows, columns=["source", "protocol", "method", *RECALLS])
    return table.sort_values(["source", "protocol"], kind="stable").set_index(["source", "protocol", "method"])


def _methods(metrics: dict) -> dict:
    return {method: sources for method, sources in metrics.items() if method not in NOT_METHODS}
