"""Figures and tables of answers to instructions: right answers by kind, wordings, and how far an answer can be trusted."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from rsvlm.viewing.figures import interval_lengths
from rsvlm.viewing.plots import BLUE, MUTED, ORANGE, PURPLE, VERMILION, figure
from rsvlm.viewing.results import percent

BASELINES = {"majority": (ORANGE, "s"), "blind": (MUTED, "^"), "shuffled": (PURPLE, "v")}
LABELS = {
    "right": "with the image",
    "majority": "most frequent answer",
    "blind": "without an image",
    "shuffled": "with the wrong image",
}


def accuracy_figure(accuracy: Mapping[str, Mapping], source: str) -> Figure:
    """Share of right answers by kind with 95 % intervals over images, the best kind on top, beside what needs no looking.

    Args:
        accuracy: kind -> entries, as ``rsvlm.scoring.instructions.accuracy_by_kind`` has them for a source.
        source: named in the title.

    Raises:
        ValueError: no kind was scored.
    """
    if not accuracy:
        raise ValueError(f"{source}: no kind was scored")
    kinds = sorted(accuracy, key=lambda kind: (accuracy[kind]["right"]["value"], kind))
    drawn, axes = figure(7.4, 1.4 + 0.34 * len(kinds))
    for name, (colour, marker) in BASELINES.items():
        places = [place for place, kind in enumerate(kinds) if name in accuracy[kind]]
        values = [accuracy[kinds[place]][name]["value"] for place in places]
        if places:
            axes.plot(values, places, color=colour, marker=marker, linestyle="none", markersize=5, label=LABELS[name])
    own = [accuracy[kind]["right"] for kind in kinds]
    look = {"fmt": "o", "color": BLUE, "capsize": 2.5, "elinewidth": 1.4, "linestyle": "none", "label": LABELS["right"]}
    axes.errorbar([one["value"] for one in own], range(len(kinds)), xerr=interval_lengths(own), **look)
    names = [f"{kind.replace('_', ' ')} ({accuracy[kind]['tasks']})" for kind in kinds]
    axes.set_yticks(range(len(kinds)), names)
    axes.set(xlim=(-0.02, 1.02), xlabel="right answers (95 % interval over images)")
    axes.set_title(f"{source}: right answers by kind (tasks)")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(True, axis="x")
    axes.grid(False, axis="y")
    drawn.legend(loc="outside lower center", ncols=4, fontsize=8)
    return drawn


def accuracy_table(accuracy: Mapping[str, Mapping]) -> pd.DataFrame:
    """Percent of right answers by kind with the interval, of answers in the form asked for, and of each baseline."""
    rows = {}
    for kind, own in accuracy.items():
        right = own["right"]
        rows[kind] = {"right, %": round(100 * right["value"], 1)}
        rows[kind]["95 % interval"] = f"{100 * right['low']:.1f} to {100 * right['high']:.1f}"
        rows[kind]["in the form asked for, %"] = round(100 * own["format_obeyed"]["value"], 1)
        for name in BASELINES:
            if name in own:
                rows[kind][f"{LABELS[name]}, %"] = round(100 * own[name]["value"], 1)
        rows[kind] |= {"tasks": own["tasks"], "images": right["n"]}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("kind")


def others_table(others: Mapping[str, Mapping]) -> pd.DataFrame:
    """Percent of right answers of other models by source and kind, beside the captioner's to the same tasks; empty for none.

    Args:
        others: as ``rsvlm.scoring.instruction_study.measure_others`` gives them.
    """
    rows = {}
    for name, measured in others.items():
        for source, kinds in measured["accuracy"].items():
            for kind, own in kinds.items():
                right, minus = own["right"], own.get("minus_captioner")
                rows[source, kind, name] = {
                    "right, %": round(100 * right["value"], 1),
                    "95 % interval": f"{100 * right['low']:.1f} to {100 * right['high']:.1f}",
                    "in the form asked for, %": round(100 * own["format_obeyed"]["value"], 1),
                    "captioner, %": round(100 * own["captioner"]["value"], 1) if minus else None,
                    "less the captioner, points": _difference(minus) if minus else "",
                    "tasks": own["tasks"],
                }
    index = pd.MultiIndex.from_tuples(rows, names=["source", "kind", "model"]) if rows else None
    return pd.DataFrame(list(rows.values()), index=index).sort_index()


def _difference(minus: Mapping) -> str:
    return f"{100 * minus['value']:.1f} [{100 * minus['low']:.1f}, {100 * minus['high']:.1f}]"


def risk_figure(curves: Mapping[str, pd.DataFrame], *, chosen: Mapping | None = None) -> Figure:
    """Error among the answers given over the share of questions answered, the surest first; a line each.

    Args:
        curves: name -> what ``rsvlm.scoring.instructions.risk_coverage`` returns.
        chosen: what ``abstention`` returns: marked where it answers some.
    """
    drawn, axes = figure(5.6, 3.6)
    for name, curve in curves.items():
        axes.plot(curve["coverage"], curve["risk"], label=name, markersize=0)
    if chosen and chosen["wrong_of_answered"] is not None:
        look = {"color": VERMILION, "marker": "D", "linestyle": "none", "zorder": 3}
        told = f"threshold: promised {percent(chosen['promised'])}, observed {percent(chosen['observed'])} of all"
        axes.plot([chosen["answered"]], [chosen["wrong_of_answered"]], label=told, **look)
    axes.set(xlim=(0, 1.02), ylim=(0, None), xlabel="questions answered", ylabel="error among them")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_title("Answering only where sure")
    axes.legend(fontsize=8)
    return drawn


def robustness_table(found: Mapping[str, Mapping]) -> pd.DataFrame:
    """Percent by kind: the worst and the best wording, questions with contradictory answers, questions half right.

    A dash stands where too few tasks have been asked in one wording, or no answer can contradict another.
    """
    names = {
        "lowest": "worst wording, %",
        "highest": "best wording, %",
        "contradictory": "contradictory answers, %",
        "half_right": "right in one wording only, %",
    }
    rows = {
        kind: {title: None if own[name] is None else round(100 * own[name], 1) for name, title in names.items()}
        | {"questions": own["n"]}
        for kind, own in found.items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("kind")
    return table.astype(object).where(table.notna(), "–")
