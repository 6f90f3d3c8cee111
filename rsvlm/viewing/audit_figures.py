"""Figures of the audit: how large the splits are, what they share, and near-duplicate images side by side."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rsvlm.data.images import open_image
from rsvlm.data.overlap import search_scope
from rsvlm.data.table import SPLITS
from rsvlm.data.twins import KINDS
from rsvlm.viewing.plots import HATCHES, INK, PAPER, SEQUENTIAL, figure, series_colours, without_axes

LABELLED = 16  # parts up to which a matrix names its numbers
KIND_NAMES = {
    "equal_files": "equal files",
    "copy": "copies of one shot",
    "same_ground": "the same ground at another zoom, shift or date",
}


def draw_split_sizes(report: dict) -> Figure:
    """Images of each source by split, as entered into the table, with the numbers beside the bars."""
    sources = report["sources"]
    drawn, axes = figure(7.5, 1.3 + 0.7 * len(sources))
    colours = series_colours(SPLITS)
    for number, split in enumerate(SPLITS):
        images = [facts["images"][split] for facts in sources.values()]
        places = [4 * place + number for place in range(len(sources))]
        bars = axes.barh(places, images, color=colours[split], hatch=HATCHES[number], edgecolor=PAPER, label=split)
        axes.bar_label(bars, [f"{count:,}" for count in images], padding=3)
    notes = {"all": "", "adapt": "\n(encoder only)", "audit": "\n(audit only)"}
    names = [name + notes[facts["use"]] for name, facts in sources.items()]
    axes.set_yticks([4 * place + 1 for place in range(len(sources))], names)
    axes.set(title="Images by split", xlabel="images")
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    drawn.legend(loc="outside right upper")
    return drawn


def draw_overlap(report: dict) -> Figure:
    """Two matrices, source and split against source and split.

    Left, images of the row with a near-duplicate in the column; right, percent of the row's captions that occur word for word in
    the column (within a part: that another of its images has too).
    """
    twins, captions = report["twins"]["images_with_a_twin"], report["verbatim"]
    side = 1.6 + 0.42 * max(len(twins), len(captions), 4)
    drawn, (left, right) = figure(2 * side + 1.5, side + 0.6, columns=2)
    counts = np.array([[row[name] for name in twins] for row in twins.values()], dtype=float).reshape(len(twins), -1)
    shares = np.array([[row[name] for name in captions] for row in captions.values()])
    _draw_matrix(left, counts, list(twins), "Images with a near-duplicate", "{:.0f}", float(max(counts.max(initial=0), 1)))
    _draw_matrix(right, 100 * shares, list(captions), "Captions found word for word, %", "{:.0f}", 100)
    left.set_ylabel("of these ...")
    for axes in (left, right):
        axes.set_xlabel("... in these")
    return drawn


def near_duplicates_table(report: dict) -> pd.DataFrame:
    """One row a kind of near-duplicate: pairs found, what left training, and how far the search reaches."""
    twins = report["twins"]
    scope = search_scope(twins["same_ground"])
    rows = {
        KIND_NAMES[kind]: {
            "pairs": twins["by_kind"][kind]["pairs"],
            "between training and test": twins["by_kind"][kind]["train_and_test"],
            "training images dropped": twins["by_kind"][kind]["dropped_from_train"],
            "what the search finds": scope[kind],
        }
        for kind in KINDS
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("near-duplicates")


def draw_twins(report: dict, most: int = 6) -> Figure | None:
    """Pairs of near-duplicates side by side: first those between training and test, then the weakest; None without any.

    The weakest: of the same ground those with the fewest matches, then copies with the lowest correlation.
    """
    pairs = sorted(
        report["twins"]["list"],
        key=lambda pair: (
            {pair["first_split"], pair["second_split"]} != {"train", "test"},
            -KINDS.index(pair["kind"]),
            pair["matches"] or pair["correlation"],
        ),
    )[:most]
    if not pairs:
        return None
    columns = min(3, len(pairs))
    rows = -(-len(pairs) // columns)
    drawn, grid = figure(3.8 * columns, 2.5 * rows, rows=rows, columns=2 * columns, squeeze=False)
    without_axes(grid.ravel())
    for place, pair in enumerate(pairs):
        row, column = divmod(place, columns)
        for number, which in enumerate(("first", "second")):
            axes = grid[row, 2 * column + number]
            axes.imshow(open_image(pair[f"{which}_path"]), interpolation="bilinear")
            gone = ", dropped" if pair[which] in pair["dropped"] else ""
            axes.set_title(f"{pair[which]}\n{pair[f'{which}_split']}{gone}", fontsize=7, fontweight="normal")
        grid[row, 2 * column].text(0, -0.05, _how_alike(pair), transform=grid[row, 2 * column].transAxes, va="top", fontsize=7.5)
    return drawn


def _how_alike(pair: dict) -> str:
    """How the second image of a pair shows what the first does."""
    if pair["kind"] == "equal_files":
        return "equal files"
    if pair["kind"] == "copy":
        return f"copy, {pair['turn']}, detail {pair['correlation']:.2f}"
    parts = [f"zoom {pair['zoom']:.2f}", f"turned by {pair['degrees']:.0f}°", f"{100 * pair['overlap']:.0f} % shared"]
    mirrored = ["mirrored"] if pair["turn"] == "mirrored" else []
    return ", ".join([*mirrored, *parts, f"{pair['matches']} points agree"])


def _draw_matrix(axes: Axes, values: np.ndarray, names: list[str], title: str, form: str, highest: float) -> None:
    axes.grid(False)
    axes.set_title(title)
    if not names:
        axes.text(0.5, 0.5, "no images to compare", transform=axes.transAxes, ha="center")
        return
    axes.imshow(values, cmap=SEQUENTIAL, vmin=0, vmax=highest)
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor", fontsize=7.5)
    axes.set_yticks(range(len(names)), names, fontsize=7.5)
    if len(names) <= LABELLED:
        for row, column in np.ndindex(values.shape):
            ink = PAPER if values[row, column] < 0.5 * highest else INK
            axes.text(column, row, form.format(values[row, column]), ha="center", va="center", fontsize=7, color=ink)
