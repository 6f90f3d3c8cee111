"""Figures of searches that fail: how far off, what is found instead, in which classes, and some of them with pictures."""

import textwrap

import pandas as pd
from matplotlib.figure import Figure

from rsvlm.scoring.failures import FOUND_FIRST, RIGHT
from rsvlm.viewing.plots import (
    BLUE,
    GREEN,
    HATCHES,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    SKY,
    figure,
    plain_text,
    show_picture,
    without_axes,
)

BINS = {
    "1": 1,
    "2 to 5": 5,
    "6 to 10": 10,
    "11 to 20": 20,
    "21 to 50": 50,
    "above 50": float("inf"),
}  # name -> last place
DEPTH = 10  # a search whose image is not among so many fails
LOOKS = {RIGHT: GREEN, "equal": SKY, "near": BLUE, "class": ORANGE, "other": MUTED, "unknown": "#a9b3bd"}
CLASSES = 24  # shown at most, those that fail most
LINE, UNDER = 28, 20  # letters in a line beside a picture and above it


def failure_figure(searches: pd.DataFrame, source: str) -> Figure:
    """Where the asked-for image stands, by what stands first instead; beside it the failing share of each class.

    Args:
        searches: as ``rsvlm.scoring.failures.look_at_searches`` gives them.
        source: named in the title.
    """
    failing = searches["rank"] > DEPTH
    by_class = failing.groupby(searches["label"]).agg(["mean", "size"]).sort_values("mean", kind="stable").tail(CLASSES)
    columns = 2 if len(by_class) > 1 else 1
    drawn, axes = figure(5.2 * columns, max(4.0, 1.9 + 0.24 * len(by_class)), columns=columns, squeeze=False)
    left, edges = axes[0, 0], [0, *BINS.values()]
    counts = pd.crosstab(pd.cut(searches["rank"], edges, labels=list(BINS)), searches["group"], dropna=False)
    height = pd.Series(0.0, index=list(BINS))
    for (group, name), hatch in zip(FOUND_FIRST.items(), HATCHES):
        if group in counts and counts[group].sum():
            share = 100 * counts[group].reindex(list(BINS), fill_value=0) / len(searches)
            look = {"color": LOOKS[group], "hatch": hatch, "edgecolor": PAPER, "linewidth": 0.4}
            left.bar(list(BINS), share, bottom=height, label=f"{name} ({counts[group].sum():,})", **look)
            height = height + share
    left.set(
        xlabel="place of the image asked for", ylabel=f"% of {len(searches):,} searches", ylim=(0, 1.08 * height.max())
    )
    left.tick_params(axis="x", labelsize=8)
    left.set_title(f"{source}: {failing.mean():.1%} miss the first {DEPTH}".replace("%", " %"), fontsize=10)
    drawn.legend(title="found first (searches)", loc="outside lower center", fontsize=8, title_fontsize=8, ncols=3)
    if columns > 1:
        right = axes[0, 1]
        right.barh(range(len(by_class)), 100 * by_class["mean"], color=BLUE)
        right.axvline(100 * failing.mean(), color=INK, linestyle="--", linewidth=1.0, marker="")
        names = [f"{name} ({n})" for name, n in by_class["size"].items()]
        right.set_yticks(range(len(by_class)), names, fontsize=8)
        right.set(xlabel="% of the class's searches that miss (dashed: of all)", xlim=(0, 100))
        right.grid(True, axis="x")
        right.grid(False, axis="y")
        right.set_title("By class (number of searches)", fontsize=10)
    return drawn


def failure_table(searches: pd.DataFrame) -> pd.DataFrame:
    """Searches that miss the first ten, by what stands first instead: how many, their share, the median place."""
    failing = searches[searches["rank"] > DEPTH]
    rows = {}
    for group, name in FOUND_FIRST.items():
        own = failing[failing["group"] == group]
        if len(own):
            rows[name] = [len(own), round(100 * len(own) / len(failing), 1), own["rank"].median()]
    return pd.DataFrame.from_dict(rows, orient="index", columns=["searches", "% of those that miss", "median place"])


def draw_failures(table: pd.DataFrame, searches: pd.DataFrame, *, pixels: int = 112) -> Figure | None:
    """A failed search of each group, the median one: what was asked for, its own image, and those found first.

    Args:
        table: with image_id, path and label.
    """
    failing = searches[searches["rank"] > DEPTH].sort_values("rank", kind="stable")
    groups = [own for group in FOUND_FIRST if len(own := failing[failing["group"] == group])]
    if not groups:
        return None
    known = table.drop_duplicates("image_id").set_index("image_id")
    chosen = [own.iloc[len(own) // 2] for own in groups]
    columns = 2 + max(len(row["found"]) for row in chosen)
    drawn, axes = figure(1.5 * columns + 0.6, 1.9 * len(chosen), rows=len(chosen), columns=columns, squeeze=False)
    without_axes(axes)
    for own, row in zip(axes, chosen, strict=True):
        asked = textwrap.wrap(f"“{row['caption']}”", LINE)[:5]
        said = [*asked, "", *textwrap.wrap(f"found first: {FOUND_FIRST[row['group']]}", LINE)]
        own[0].text(
            1.0, 0.98, plain_text("\n".join(said)), transform=own[0].transAxes, va="top", ha="right", fontsize=7
        )
        shown = [
            (row["image_id"], f"asked for: place {row['rank']:.0f}"),
            *((name, str(place)) for place, name in enumerate(row["found"], start=1)),
        ]
        for axis, (image_id, place) in zip(own[1:], shown):
            show_picture(axis, known.loc[image_id, "path"], pixels)
            label = known.loc[image_id, "label"]
            label = "\n".join(textwrap.wrap(label, UNDER)[:2]) if isinstance(label, str) else ""
            axis.set_title(
                plain_text(f"{place}\n{label}"),
                fontsize=7,
                fontweight="normal",
                color=GREEN if image_id == row["image_id"] else INK,
            )
    return drawn
