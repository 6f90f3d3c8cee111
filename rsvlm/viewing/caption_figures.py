"""Figures of what the captioner learns and says: captions under their images, costly words, what each input is worth."""

import textwrap
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from rsvlm.viewing.plots import BLUE, INK, MUTED, figure, plain_text, show_picture, without_axes

ACROSS, LINE = 3, 40  # pictures in a row; letters in a line below them


def draw_captions(
    table: pd.DataFrame,
    runs: Mapping[str, Mapping[str, str]],
    image_ids: Sequence[str],
    *,
    shown: Sequence[str] = ("captioner", "consensus"),
    pixels: int = 160,
) -> Figure:
    """The images, three in a row, each above the captions of some runs and its first reference.

    Args:
        table: with the columns image_id, path and captions.
        runs: run -> image id -> caption.
    """
    known = table.set_index("image_id")
    n_rows = -(-len(image_ids) // ACROSS)
    drawn, axes = figure(9.0, 3.9 * n_rows, rows=n_rows, columns=ACROSS, squeeze=False)
    without_axes(axes)
    for axis, image_id in zip(axes.flat, image_ids):
        row = known.loc[image_id]
        show_picture(axis, row["path"], pixels)
        axis.set_title(image_id[-30:], fontsize=7, color=MUTED)
        top = -0.04
        for run, text in [*((run, runs[run][image_id]) for run in shown), ("reference", row["captions"][0])]:
            lines = textwrap.wrap(f"{run}: {text}", LINE)[:4]
            colour = BLUE if run == shown[0] else INK if run != "reference" else MUTED
            place = {"transform": axis.transAxes, "va": "top", "fontsize": 7.5, "color": colour}
            axis.text(0, top, plain_text("\n".join(lines)), **place)
            top -= 0.085 * len(lines) + 0.03
    return drawn
