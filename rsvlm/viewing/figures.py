"""Figures and tables of what was measured at the end: scores of captions, retrieval, the kernels' speed."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from rsvlm.files import read_json
from rsvlm.scoring.negation import WAYS
from rsvlm.scoring.published import RECALLS
from rsvlm.scoring.runs import HUMAN, METHODS, RESERVED, RUNS, named
from rsvlm.viewing.plots import (
    BLUE,
    DASHES,
    INK,
    MARKERS,
    MUTED,
    ORANGE,
    figure,
    series_colours,
)

KINDS = {"released": ("references as released", BLUE, "o"), "distinct": ("distinct references", ORANGE, "s")}
HALVES = {"seen": ("reference set seen in training", BLUE, "o"), "unseen": ("not seen", ORANGE, "s")}
RULE_WRITTEN = ("blue_marble",)  # sources whose references a rule wrote, not a person
DIRECTIONS = {"image_to_text": "image to text", "text_to_image": "text to image"}
NOT_ON_A_GPU = "Not measured on a GPU: no record in benchmarks/results was made on one."


# Captions


def run_label(run: str, source: str) -> str:
    """How a run is called in a figure. The held-out reference is not called human where a rule wrote it."""
    writer = f" ({'by rule' if source in RULE_WRITTEN else 'human'})" if run == HUMAN else ""
    return named(RUNS, run).name + writer


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
    ciders = {
        run: {part: own["CIDEr"] for part, own in metrics[run].get(source, {}).items() if "CIDEr" in own}
        for run in metrics
        if run not in RESERVED
    }
    ciders = {run: own for run, own in ciders.items() if any(is_known(own.get(part)) for part in parts)}
    if not ciders:
        raise ValueError(f"no CIDEr for the source {source!r}")
    drawn, axes = figure(7.2, 1.3 + 0.42 * len(ciders))
    draw_ciders(axes, ciders, parts, source, 0.13, written=True)
    axes.set_ylim(-0.6, len(ciders) - 0.25)
    axes.set_title(title)
    axes.legend(loc="best")
    return drawn


def draw_ciders(axes: Axes, ciders: Mapping, parts: Mapping, source: str, shift: float, written: bool = False) -> None:
    """A line a run, best at the top, with a dot and its interval for each part.

    Args:
        ciders: run -> part -> {"value", "low", "high"}.
        parts: the two parts -> (label, colour, marker).
        shift: of the parts, above and below the run's line.
        written: the values against released references stand above their dots.
    """
    runs = sorted(ciders, key=lambda run: (_value(ciders[run].get("released")), run))
    for offset, (part, (label, colour, marker)) in zip((shift, -shift), parts.items(), strict=True):
        placed = {
            place + offset: ciders[run][part] for place, run in enumerate(runs) if is_known(ciders[run].get(part))
        }
        values = [entry["value"] for entry in placed.values()]
        look = {"fmt": marker, "color": colour, "label": label, "capsize": 2.5, "elinewidth": 1.4, "linestyle": "none"}
        axes.errorbar(values, list(placed), xerr=interval_lengths(placed.values()), **look)
        for value, height in zip(values, placed) if written and part == "released" else ():
            place = {"textcoords": "offset points", "ha": "center", "fontsize": 8, "color": INK}
            axes.annotate(f"{value:.2f}", (value, height), (0, 5), **place)
    axes.set_yticks(range(len(runs)), [run_label(run, source) for run in runs])
    axes.set_xlim(left=0)
    axes.grid(True, axis="x")
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0, labelcolor=INK, color=MUTED)
    axes.set_xlabel("CIDEr (95 % interval over images)")


def label_recalls(axes: Axes, title: str) -> None:
    """Title, percent axis, grid and legend of mean recalls with intervals that stand side by side in rows."""
    axes.set(title=title, xlabel="mean recall (95 % interval over images)")
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(True, axis="x")
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0, labelcolor=INK, color=MUTED)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def interval_lengths(entries: Iterable[Mapping]) -> list[list[float]]:
    """[below, above]: how far the intervals of figures reach, as matplotlib takes it; never below 0."""
    entries = list(entries)
    below = [max(0.0, entry["value"] - entry["low"]) for entry in entries]
    return [below, [max(0.0, entry["high"] - entry["value"]) for entry in entries]]


def is_known(entry: Mapping | None) -> bool:
    """Whether there is such a figure, and it has a value."""
    return bool(entry) and entry["value"] is not None


def _value(entry: Mapping | None) -> float:
    return entry["value"] if is_known(entry) else 0.0


# Retrieval


def recall_curves(curves: pd.DataFrame, match: str = "by_image") -> Figure:
    """Recall at K over K, one row of axes a source, one column a direction, with the ceiling dashed.

    Args:
        curves: columns method, source, match, direction, k, recall (fraction), as score_methods returns them.
        match: the match rule to draw; the ceiling belongs to "by_image" and is left out elsewhere.
    """
    shown = curves[curves["match"] == match]
    if len(shown) == 0:
        raise ValueError(f"no recall curve for the match rule {match!r}; there are {sorted(set(curves['match']))}")
    sources = sorted(set(shown["source"]))
    drawn, axes = figure(7.4, 2.9 * len(sources) + 0.3, rows=len(sources), columns=2, squeeze=False, sharey=True)
    for source, row in zip(sources, axes, strict=True):
        draw_recalls(row, shown, source)
        row[0].set_ylabel("recall at K")
    axes[0, 1].legend(loc="lower right")
    return drawn


def draw_recalls(axes: Sequence[Axes], curves: pd.DataFrame, source: str) -> None:
    """The recalls of a source over K, one axes a direction, a line a method, last the ceiling, thin and broken."""
    methods = sorted(dict.fromkeys(curves["method"]), key=lambda method: method == "ceiling")
    colours = series_colours(methods)
    for axis, (direction, title) in zip(axes, DIRECTIONS.items(), strict=True):
        for number, method in enumerate(methods):
            of_method = (curves["method"] == method) & (curves["direction"] == direction) & (curves["source"] == source)
            marker, dashes, width = (
                ("", "--", 1.2) if method == "ceiling" else (MARKERS[number % len(MARKERS)], DASHES[0], 1.8)
            )
            look = {"color": colours[method], "linestyle": dashes, "marker": marker, "linewidth": width}
            points = curves[of_method]
            axis.plot(points["k"], points["recall"], label=named(METHODS, method).name, markevery=[0, 4, 9, 19], **look)
        axis.set(title=f"{source}: {title}", xlabel="K", ylim=(0, 1.02), xticks=[1, 5, 10, 15, 20])
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def retrieval_table(metrics: dict, match: str = "by_image") -> pd.DataFrame:
    """Recalls in percent, one row a source and method with the mean recall's interval, and one row for the ceiling.

    Args:
        metrics: {method: {source: {match: {name: {"value", "low", "high", ...}}}}}, and what else the report holds.
    """
    scored: dict[str, dict] = {}
    for method, source, own in _scored(metrics):
        scored.setdefault(source, {})[method] = own[match]
    if match == "by_image":
        for _, source, own in _scored(metrics):
            scored[source].setdefault("ceiling", own["ceiling"])
    rows = []
    for source in sorted(scored):
        for method, scores in scored[source].items():
            mean = scores["mean_recall"]
            interval = "" if mean["low"] is None else f"{100 * mean['low']:.1f} to {100 * mean['high']:.1f}"
            named_row = {"source": source, "method": named(METHODS, method).name}
            rows.append(named_row | _recalls(scores) | {"95 % interval": interval})
    return pd.DataFrame(rows).set_index(["source", "method"])


def precision_table(metrics: dict) -> pd.DataFrame:
    """Median ranks, mean average precision and precision at k by both match rules, one row a source and method."""
    keys, rows = ["source", "right by", "method"], []
    for method, source, matches in _scored(metrics):
        for match in ("by_image", "by_text"):
            row = dict(zip(keys, (source, match.removeprefix("by_"), named(METHODS, method).name)))
            for way in DIRECTIONS:
                row[f"{way} median rank"] = round(matches[match][f"{way}_median_rank"]["value"], 1)
                for key, title in {"map": "mAP", "p5": "P@5", "p10": "P@10"}.items():
                    row[f"{way} {title}"] = round(100 * matches[match][f"{way}_{key}"]["value"], 1)
            rows.append(row)
    return pd.DataFrame(rows).sort_values(keys[:2], kind="stable").set_index(keys)


def class_table(metrics: dict, method: str, source: str) -> pd.DataFrame:
    """Recalls in percent by class, hardest class first, with its number of images. Empty where no image has a label."""
    rows = {
        name: {"images": own["images"]} | {recall: round(100 * own[recall], 1) for recall in RECALLS}
        for name, own in metrics[method][source]["by_class"].items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["images", *RECALLS]).rename_axis("class")
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


def negation_table(metrics: Mapping) -> pd.DataFrame:
    """How images stand under queries that leave thing B out: shares of pairs in the right order, percent, with intervals."""
    says = {way: text.format(wanted="A", unwanted="B") for way, text in WAYS.items()}
    rows = [
        {"source": source, "query": text, **{key: round(100 * own[way][key], 1) for key in ("value", "low", "high")}}
        | {"pairs of things": len(own["pairs"]), "images": own[way]["n"]}
        for source, own in metrics.get("negation", {}).items()
        if source != "protocol"
        for way, text in says.items()
    ]
    columns = ["source", "query", "value", "low", "high", "pairs of things", "images"]
    return pd.DataFrame(rows, columns=columns).set_index(["source", "query"])


def _scored(metrics: Mapping) -> Iterator[tuple[str, str, Mapping]]:
    """(method, source, what was scored of it) of METRICS/score_retrieval.json."""
    return (
        (method, source, own)
        for method, by_source in metrics.items()
        if method not in RESERVED
        for source, own in by_source.items()
    )


def _recalls(scores: Mapping) -> dict[str, float]:
    return {name: round(100 * scores[name]["value"], 1) for name in RECALLS}


# Speed of the kernels, from what benchmarks/kernels.py found


def speed_table(measured: dict) -> pd.DataFrame:
    """One row a method: seconds, times ours, MB above the inputs, share of the device's own product rate, agreement."""
    table = pd.DataFrame(measured["rows"])
    table["share of rate, %"] = (100 * table["share_of_rate"]).round(1)
    table["seconds"], table["times ours"] = table["seconds"].round(4), table["ratio"].round(2)
    table["MB"] = table["megabytes"].astype(float).round(1)
    table["agreement"] = table["agreement"].astype(float).round(7)
    columns = ["seconds", "times ours", "MB", "share of rate, %", "agreement"]
    return table.set_index(["operation", "size", "method"])[columns]


def growth_figure(measured: dict) -> Figure:
    """Time and memory of the search over the number of items, both axes logarithmic."""
    table = pd.DataFrame(measured["growth"])
    drawn, (left, right) = figure(9.0, 3.2, columns=2)
    colours = series_colours(sorted(set(table["method"])))
    for name, rows in table.groupby("method"):
        known = rows.dropna(subset=["megabytes"])
        left.plot(rows["items"], rows["seconds"], marker="o", color=colours[name], label=name)
        right.plot(known["items"], known["megabytes"].clip(lower=0.1), marker="o", color=colours[name], label=name)
    left.set(xscale="log", yscale="log", xlabel="items", ylabel="seconds")
    right.set(xscale="log", yscale="log", xlabel="items", ylabel="MB above the inputs")
    left.legend()
    return drawn


def method_figure(measured: dict) -> Figure:
    """Time of each method, in units of ours, one panel a case; without those that were forced on the device."""
    table = pd.DataFrame(measured["rows"])
    cases = table[~table["method"].str.endswith("(forced)")].groupby(["operation", "size"], sort=False)
    drawn, axes = figure(3.7 * len(cases), 2.6, columns=len(cases), squeeze=False)
    for axis, ((operation, size), rows) in zip(axes[0], cases):
        axis.barh(rows["method"][::-1], rows["ratio"][::-1])
        axis.axvline(1.0, color="black", linewidth=0.8)
        axis.set(xlabel="time, ours = 1")
        axis.set_title(f"{operation}\n{size}", fontsize="small")
    return drawn


def read_records(folder: Path) -> dict[str, dict]:
    """Recorded benchmarks by name; empty where there are none."""
    records = {path.stem: read_json(path) for path in sorted(folder.glob("*.json"))}
    return {name: record for name, record in records.items() if "growth" in record}  # others are of other benchmarks


def gpu_note(records: dict[str, dict]) -> str:
    """On which GPUs the kernels were measured, or that they were not."""
    devices = [record["provenance"] for record in records.values()]
    names = sorted({known["device_name"] for known in devices if known["device"] != "cpu"})
    return f"Measured on {', '.join(names)}." if names else NOT_ON_A_GPU
