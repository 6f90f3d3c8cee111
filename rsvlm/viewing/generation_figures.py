"""Pictures with what the captioner says of them."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rsvlm.data.images import open_image
from rsvlm.viewing.plots import BLUE, INK, MUTED, figure, without_axes
from rsvlm.viewing.thumbnails import shrink

COLUMNS, WIDTH = 3, 40  # pictures in a row; letters in a line


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
    n_rows = -(-len(image_ids) // COLUMNS)
    drawn, axes = figure(9.0, 3.9 * n_rows, rows=n_rows, columns=COLUMNS, squeeze=False)
    without_axes(axes)
    for axis, image_id in zip(axes.flat, image_ids):
        row = known.loc[image_id]
        axis.imshow(np.asarray(shrink(open_image(row["path"]), pixels)))
        axis.set_title(image_id[-30:], fontsize=7, color=MUTED)
        said = [(run, runs[run][image_id]) for run in shown] + [("reference", row["captions"][0])]
        top = -0.04
        for run, text in said:
            lines = textwrap.wrap(f"{run}: {text}", WIDTH)[:4]
            axis.text(
                0,
                top,
                "\n".join(lines).replace("$", r"\$"),
                transform=axis.transAxes,
                va="top",
                fontsize=7.5,
                color=BLUE if run == shown[0] else INK if run != "reference" else MUTED,
            )
            top -= 0.085 * len(lines) + 0.03
    return drawn
