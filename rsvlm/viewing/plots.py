"""The study's one look for matplotlib: safe for colour-blind readers, readable in grey, the same bytes at every run.

Call ``use_style()`` once at the top of a notebook, then draw with ``figure(...)``. Series take their colour, dash and
marker together from the cycle, so that a copy in grey still tells them apart. Figures that are kept as files go through
``save_figure``, which leaves dates and software names out of them.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from rsvlm.data.images import open_image
from rsvlm.files import whole_file

# Okabe and Ito's palette (2008), ordered so that neighbours also differ in lightness.
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PURPLE, BLACK, YELLOW = "#56B4E9", "#CC79A7", "#222222", "#F0E442"
COLOURS = (BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE, BLACK)
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (7, 2)), (0, (1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HATCHES = ("", "//", "..", "\\\\", "xx", "--", "++")

INK, MUTED, RULE, PAPER = "#1d2733", "#66727f", "#d5dbe1", "#ffffff"
SEQUENTIAL = "cividis"  # for heat maps: even in lightness, the same for colour-blind readers

# A run or method keeps its colour in every figure: the study's own in blue, what it is held against in quieter tones.
SERIES_COLOURS = {
    "captioner": BLUE,
    "beam": INK,
    "consensus": ORANGE,
    "nearest": SKY,
    "constant": "#a9b3bd",
    "shuffled": PURPLE,
    "human": GREEN,
    "dual_encoder": ORANGE,
    "ret": SKY,
    "combined": BLUE,
    "reranked": PURPLE,
    "encoder": "#a9b3bd",
    "english": SKY,
    "translated": ORANGE,
    "distilled": BLUE,
    "translate_first": PURPLE,
    "ceiling": GREEN,
}

PNG_METADATA = {"Software": None, "Creation Time": None}
CYCLE = cycler(color=COLOURS) + cycler(linestyle=DASHES) + cycler(marker=MARKERS)
STYLE = {
    **mpl.rc_params_from_file(Path(__file__).with_name("matplotlibrc"), use_default_template=False),
    "axes.prop_cycle": CYCLE,
}


def use_style() -> None:
    """Set the study's style for all figures drawn after this; in a notebook, also for the pictures stored in it."""
    mpl.rcParams.update(STYLE)
    if "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None:
        from matplotlib_inline.config import InlineBackend

        # Without this, a notebook's pictures name matplotlib's version and change with it.
        InlineBackend.instance().print_figure_kwargs = {"bbox_inches": "tight", "metadata": PNG_METADATA}


def figure(
    width: float, height: float, *, rows: int = 1, columns: int = 1, **options: object
) -> tuple[Figure, Axes | np.ndarray]:
    """A new figure in the study's style and its axes: one Axes, or an array of them like ``plt.subplots`` gives.

    Args:
        width, height: inches.
        rows, columns: how many axes.
        options: passed on to ``plt.subplots`` (``sharex``, ``squeeze``, ``gridspec_kw``, ...).
    """
    with mpl.rc_context(STYLE):
        return plt.subplots(rows, columns, figsize=(width, height), **options)


def save_figure(drawn: Figure, path: Path) -> Path:
    """``path``, after the figure was written there whole, without dates and software names in the file."""
    kind = path.suffix.lstrip(".").lower()
    metadata = {"png": PNG_METADATA, "svg": {"Date": None, "Creator": None}}.get(kind, {})
    with whole_file(path) as scratch:
        drawn.savefig(scratch, format=kind or "png", metadata=metadata)
    return path


def series_colours(names: Iterable[str]) -> dict[str, object]:
    """A colour for each name: the fixed one of a known run or method, else the next free one of the palette."""
    names = list(names)
    taken = {SERIES_COLOURS[name] for name in names if name in SERIES_COLOURS}
    free = [colour for colour in COLOURS if colour not in taken] or list(COLOURS)
    unknown = [name for name in names if name not in SERIES_COLOURS]
    chosen = {name: free[position % len(free)] for position, name in enumerate(unknown)}
    return {name: SERIES_COLOURS.get(name) or chosen[name] for name in names}


def without_axes(axes: Axes | Iterable[Axes]) -> None:
    """Take frame, ticks and grid off one or several axes: for pictures of images."""
    for one in np.atleast_1d(np.asarray(axes, dtype=object)).flat:
        one.set_axis_off()


def show_picture(axes: Axes, path: str, pixels: int, **options: object) -> None:
    """Draw a small copy of the image at ``path``; ``options`` are those of ``imshow``."""
    axes.imshow(np.asarray(shrink(open_image(path), pixels)), **options)


def shrink(image: Image.Image, pixels: int) -> Image.Image:
    """A copy of ``image`` whose longer side has at most ``pixels`` pixels; an image that is small already stays."""
    small = image.convert("RGB")
    small.thumbnail((pixels, pixels), Image.Resampling.LANCZOS)
    return small


def plain_text(text: str) -> str:
    """A text of the data for matplotlib, which would read ``$...$`` as mathematics."""
    return text.replace("$", r"\$")
