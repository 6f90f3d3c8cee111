"""Figures and tables of the encoder and of any training: curves, before and after, what is confused, what is near."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rsvlm.viewing.plots import (
    BLUE,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    SEQUENTIAL,
    SKY,
    figure,
    show_picture,
    without_axes,
)

WRITTEN = 16  # classes up to which a confusion matrix has its numbers written into it


def training_curves(
    curve: pd.DataFrame,
    validation: Sequence[dict] = (),
    *,
    losses: Sequence[str] = ("loss",),
    title: str = "Training loss",
    metric: str = "mean_recall",
    metric_label: str = "validation mean recall, %",
    scale: float = 100.0,
    best_epoch: int | None = None,
) -> Figure:
    """Loss over the steps on the left and, with ``validation`` rows, a measure over the epochs on the right.

    Args:
        curve: one row every few steps, with a column ``step`` and the columns named in ``losses``.
        validation: rows with ``epoch`` and ``metric``.
        scale: what the metric is multiplied by (100 turns a fraction into percent).
        best_epoch: the epoch that was kept, marked by a ring.
    """
    drawn, axes = figure(9.0 if validation else 7.0, 3.2, columns=2 if validation else 1, squeeze=False)
    left = axes[0, 0]
    window = max(1, len(curve) // 25)
    for name, light, dark in zip(losses, (SKY, "#f3d9a4"), (BLUE, ORANGE)):
        left.plot(curve["step"], curve[name], color=light, linestyle="-", marker="", linewidth=0.8)
        smooth = curve[name].rolling(window, min_periods=1, center=True).mean()
        left.plot(curve["step"], smooth, color=dark, linestyle="-", marker="", label=name)
    if len(losses) > 1:
        left.legend()
    left.set(xlabel="step", ylabel=losses[0] if len(losses) == 1 else "loss", title=title)
    if validation:
        right, title = axes[0, 1], "Validation"
        values = {row["epoch"]: scale * row[metric] for row in validation}
        right.plot(list(values), list(values.values()), color=BLUE, linestyle="-", marker="o")
        if best_epoch in values:
            ring = {"markersize": 11, "markerfacecolor": "none", "markeredgecolor": ORANGE, "markeredgewidth": 1.8}
            right.plot([best_epoch], [values[best_epoch]], marker="o", linestyle="", **ring)
            title = f"Validation (ring: kept, {values[best_epoch]:.3g})"
        right.set(xlabel="epoch", ylabel=metric_label, title=title)
        right.xaxis.get_major_locator().set_params(integer=True)
    return drawn


def before_and_after(before: dict, after: dict) -> pd.DataFrame:
    """Recalls in percent, one row a measure: before, after, and the difference in points."""
    names = [name for name in before if "recall" in name]
    table = 100 * pd.DataFrame({"before, %": before, "after, %": after}, index=names)
    table["difference"] = table["after, %"] - table["before, %"]
    return table.rename(lambda name: name.replace("_", " ")).round(1)


def draw_neighbours(table: pd.DataFrame, neighbours: pd.DataFrame, *, pixels: int = 128) -> Figure:
    """A row of pictures for each image: itself, then its nearest images with their cosines.

    Args:
        neighbours: as ``rsvlm.models.features.nearest_images`` gives them.
    """
    path_of = dict(zip(table["image_id"], table["path"]))
    groups = neighbours.groupby("image_id", sort=False)
    columns = 1 + int(neighbours["rank"].max())
    drawn, axes = figure(1.35 * columns, 1.5 * len(groups), rows=len(groups), columns=columns, squeeze=False)
    without_axes(axes)
    for row, (image_id, own) in zip(axes, groups):
        shown = [(image_id, image_id[-20:]), *zip(own["neighbour"], own["cosine"].map("{:.2f}".format))]
        for axis, (name, title) in zip(row, shown):
            show_picture(axis, path_of[name], pixels)
            axis.set_title(title, fontsize=7)
    return drawn


def confusion_figure(before: pd.DataFrame, after: pd.DataFrame) -> Figure:
    """What images of each class are named, in percent of the class: before on the left, after on the right.

    Args:
        before, after: as ``rsvlm.training.contrastive.name_by_prompts`` gives them.
    """
    labels = sorted(set(after["label"]))
    side = max(2.4, len(labels) * (0.3 if len(labels) <= WRITTEN else 0.17))
    names = 0.075 * max(map(len, labels))  # inches that they take beside and below
    drawn, axes = figure(2 * side + names + 1.2, side + names + 0.8, columns=2, sharey=True)
    for axis, named, when in zip(axes, (before, after), ("before", "after"), strict=True):
        counts = pd.crosstab(named["label"], named["named"]).reindex(index=labels, columns=labels, fill_value=0)
        shares = 100 * counts.div(counts.sum(axis=1), axis=0).to_numpy()
        image = axis.imshow(np.ma.masked_equal(shares, 0), cmap=SEQUENTIAL, vmin=0, vmax=100, aspect="equal")
        for row, column in np.argwhere(shares >= 0.5) if len(labels) <= WRITTEN else ():
            colour = PAPER if shares[row, column] < 55 else INK
            axis.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", fontsize=7, color=colour)
        right = (named["label"] == named["named"]).mean()
        axis.set_title(f"{when}: {right:.1%} named right".replace("%", " %"), fontsize=10)
        axis.set_xticks(range(len(labels)), labels, rotation=90, fontsize=8)
        axis.set_yticks(range(len(labels)), labels, fontsize=8)
        axis.set_xlabel("named")
        axis.grid(False)
    axes[0].set_ylabel("class")
    drawn.colorbar(image, ax=axes, label="% of the class", shrink=0.8)
    return drawn


def class_change_figure(before: pd.DataFrame, after: pd.DataFrame) -> Figure:
    """Share of each class's images that are named right, before and after, the largest gain at the top.

    Args:
        before, after: as ``confusion_figure`` takes them.
    """
    right = pd.DataFrame(
        {
            when: 100 * (named["named"] == named["label"]).groupby(named["label"]).mean()
            for when, named in (("before", before), ("after", after))
        }
    )
    right["images"] = after.groupby("label").size()
    right = right.assign(change=right["after"] - right["before"]).sort_values("change", kind="stable")
    places = range(len(right))
    drawn, axis = figure(7.2, 1.1 + 0.26 * len(right))
    axis.hlines(places, right["before"], right["after"], color=MUTED, linewidth=1.4)
    look = {"linestyle": "", "markersize": 6.5}
    axis.plot(right["before"], places, marker="o", color=SKY, label="before", **look)
    axis.plot(right["after"], places, marker="s", color=BLUE, label="after", **look)
    axis.set_yticks(places, [f"{label} ({n})" for label, n in right["images"].items()], fontsize=8)
    axis.set(xlabel="named right, % of the class's validation images (their number behind the class)", xlim=(-3, 103))
    axis.grid(True, axis="x")
    axis.grid(False, axis="y")
    axis.legend(loc="lower right")
    return drawn


def draw_changes(table: pd.DataFrame, before: pd.DataFrame, after: pd.DataFrame, *, count: int = 5) -> Figure:
    """The images whose right name gained most over the others, and below them those where it lost most; one a class.

    Args:
        before, after: as ``confusion_figure`` takes them.
        count: images in a row.
    """
    path_of = dict(zip(table["image_id"], table["path"]))
    both = before.merge(after, on=["image_id", "label"], suffixes=("_before", "_after"))
    change = (both["margin_after"] - both["margin_before"]).sort_values(kind="stable")
    rows = [both.loc[order].drop_duplicates("label").index[:count] for order in (change.index[::-1], change.index)]
    columns = max(map(len, rows))
    drawn, axes = figure(1.85 * columns, 4.9, rows=2, columns=columns, squeeze=False)
    without_axes(axes)
    for title, own, places in zip(("gained most", "lost most"), axes, rows, strict=True):
        own[0].set_title(title, fontsize=9)
        for axis, row in zip(own, (both.loc[place] for place in places)):
            show_picture(axis, path_of[row["image_id"]], 128)
            lines = [f"{row['label']}", f"before: {row['named_before']}", f"after: {row['named_after']}"]
            colour = BLUE if row["named_after"] == row["label"] else INK
            place = {"transform": axis.transAxes, "va": "top", "fontsize": 7.5, "color": colour}
            axis.text(0, -0.03, "\n".join(lines), **place)
    return drawn
