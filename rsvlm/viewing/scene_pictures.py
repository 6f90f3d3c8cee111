"""Pictures of scenes and of similarity surfaces: for the map, the page and a notebook's figures."""

import base64
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from rsvlm.data.rasters.scene import Scene
from rsvlm.data.rasters.windows import Window
from rsvlm.viewing.page import make_thumbnail
from rsvlm.viewing.plots import SEQUENTIAL, figure, plain_text, without_axes

if TYPE_CHECKING:
    from rsvlm.scenes.search import Surface

COLOURS = 255  # of a surface; the index behind them is transparent
THUMBNAIL, THUMBNAIL_BYTES = 192, 9_000
_PALETTE = (mpl.colormaps[SEQUENTIAL](np.linspace(0, 1, COLOURS))[:, :3] * 255).round().astype(np.uint8)


def surface_range(values: np.ndarray) -> tuple[float, float]:
    """The similarities at the two ends of the colours: the 2nd percentile and the highest; (0, 1) without any."""
    known = values[np.isfinite(values)]
    if not known.size:
        return 0.0, 1.0
    low, high = float(np.percentile(known, 2)), float(known.max())
    return (low, high) if high > low else (low - 1e-6, high)


def colour_surface(values: np.ndarray, low: float, high: float) -> Image.Image:
    """A palette image (mode P) of similarities (rows, columns): ``low`` dark, ``high`` bright, NaN transparent."""
    part = np.clip((values - low) / (high - low), 0, 1)
    index = np.where(np.isnan(part), COLOURS, np.nan_to_num(part) * (COLOURS - 1)).round().astype(np.uint8)
    image = Image.fromarray(index, "P")
    image.putpalette(np.concatenate([_PALETTE, np.zeros((1, 3), np.uint8)]).tobytes())
    image.info["transparency"] = COLOURS
    return image


def as_uri(image: Image.Image, kind: str, **options: object) -> str:
    """``image`` as a data URI: "PNG", "JPEG" or "WEBP"."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def surface_uri(values: np.ndarray, low: float, high: float) -> str:
    """The coloured surface as a small PNG's data URI, a pixel a cell."""
    return as_uri(colour_surface(values, low, high), "PNG", optimize=True, transparency=COLOURS)


def legend_colours(count: int = 9) -> list[str]:
    """CSS colours from the low end to the high one."""
    chosen = _PALETTE[np.linspace(0, COLOURS - 1, count).round().astype(int)]
    return ["#" + bytes(colour).hex() for colour in chosen]


def fit(width: int, height: int, side: int) -> tuple[int, int]:
    """(width, height) made smaller, never larger, so that the longer one is at most ``side``."""
    scale = min(1.0, side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def window_picture(scene: Scene, window: Window, side: int = THUMBNAIL, most_bytes: int = THUMBNAIL_BYTES) -> str:
    """A JPEG's data URI of a window, its longer side ``side`` pixels."""
    picture = scene.read(window, fit(window.width, window.height, side))
    return make_thumbnail(Image.fromarray(picture.pixels), side, most_bytes)


def lon_lat(scene: Scene, columns: Sequence[float], rows: Sequence[float]) -> np.ndarray | None:
    """(n, 2) degrees east and north of pixel positions; None for a scene without a place on Earth."""
    if scene.crs is None or scene.transform is None:
        return None
    from rasterio.warp import transform

    a, b, c, d, e, f, *_ = scene.transform
    columns, rows = np.asarray(columns, float), np.asarray(rows, float)
    xs, ys = a * columns + b * rows + c, d * columns + e * rows + f
    east, north = transform(scene.crs, "EPSG:4326", xs, ys)
    return np.stack([east, north], axis=1)


def place_text(scene: Scene, window: Window) -> str:
    """Where a window's middle lies: "52.52° N, 13.41° E", or its pixels in a scene without a place on Earth."""
    column, row = window.left + window.width / 2, window.top + window.height / 2
    place = lon_lat(scene, [column], [row])
    if place is None or not np.isfinite(place).all():
        return f"column {window.left}, row {window.top}"
    (east, north), digits = place[0], place_digits(scene)
    return f"{abs(north):.{digits}f}° {'N' if north >= 0 else 'S'}, {abs(east):.{digits}f}° {'E' if east >= 0 else 'W'}"


def place_digits(scene: Scene) -> int:
    """Digits of a degree that tell pixels about apart: 1 for a globe, 5 for metres."""
    metres = scene.ground_size() or 1.0
    return min(6, max(1, round(math.log10(111_000 / max(metres, 1e-3)))))


def ground_text(scene: Scene, window: Window) -> str:
    """How large a window is: pixels, and kilometres or metres where the scene knows them."""
    pixels = f"{window.width} × {window.height} pixels"
    metres = scene.ground_size()
    if metres is None:
        return pixels
    sides, unit = (window.width * metres, window.height * metres), "m"
    if min(sides) >= 1000:
        sides, unit = (sides[0] / 1000, sides[1] / 1000), "km"
    shown = [f"{side:,.0f}" if side >= 10 else f"{side:.1f}" for side in sides]
    return f"{pixels}, {' × '.join(shown)} {unit}"


def windows_of(hits: pd.DataFrame) -> list[Window]:
    """The windows of a table with ``left``, ``top``, ``width`` and ``height``."""
    return [Window(*map(int, row)) for row in hits[["left", "top", "width", "height"]].to_numpy()]


def hit_entries(scene: Scene, hits: pd.DataFrame, pictures: bool = True) -> list[dict]:
    """``{"rank", "score", "left", "top", "width", "height", "place", "picture"}`` of each hit, best first."""
    entries = []
    for number, (window, score) in enumerate(zip(windows_of(hits), hits["score"], strict=True), start=1):
        entry = {"rank": number, "score": round(float(score), 4), **window._asdict()}
        entry |= {"place": place_text(scene, window), "picture": window_picture(scene, window) if pictures else None}
        entries.append(entry)
    return entries


def draw_scene(scene: Scene, *, width: float = 8.0) -> Figure:
    """The whole scene; ``width`` in inches."""
    drawn, axes = _scene_axes(scene, width)
    axes.set_title(plain_text(scene.name), loc="left")
    return drawn


def draw_surface(
    scene: Scene, surface: "Surface", hits: pd.DataFrame | None = None, *, opacity: float = 0.6, width: float = 8.0
) -> Figure:
    """The scene with a similarity surface over it, a legend and numbered hits.

    Args:
        width: of the figure, inches.
    """
    drawn, axes = _scene_axes(scene, width)
    rows, columns = surface.values.shape
    low, high = surface_range(surface.values)
    covered = (0, columns * surface.cell, rows * surface.cell, 0)
    shown = axes.imshow(surface.values, extent=covered, cmap=SEQUENTIAL, alpha=opacity, vmin=low, vmax=high)
    axes.set(xlim=(0, scene.width), ylim=(scene.height, 0))
    for number, window in enumerate(windows_of(hits) if hits is not None else [], start=1):
        axes.add_patch(
            mpl.patches.Rectangle(
                (window.left, window.top), window.width, window.height, fill=False, edgecolor="white", linewidth=1.6
            )
        )
        axes.text(
            window.left + window.width / 2, window.top + window.height / 2, str(number), ha="center", va="center",
            color="white", fontsize=9, fontweight="bold",
            bbox={"boxstyle": "circle,pad=0.2", "facecolor": "black", "edgecolor": "white", "linewidth": 0.8},
        )  # fmt: skip
    axes.set_title(plain_text(f"“{surface.query}”"), loc="left")
    bar = drawn.colorbar(shown, ax=axes, orientation="horizontal", fraction=0.045, pad=0.02, aspect=50)
    bar.set_label("similarity")
    return drawn


def _scene_axes(scene: Scene, width: float) -> tuple[Figure, Axes]:
    height = width * scene.height / scene.width
    drawn, axes = figure(width, min(1.4 * width, height + 0.9), layout="constrained")
    axes.imshow(scene.overview(1400).pixels, extent=(0, scene.width, scene.height, 0), interpolation="antialiased")
    without_axes(axes)
    return drawn, axes


def describe_scene(scene: Scene, *, own_pixels: bool) -> dict:
    """``{"name", "facts", "notes"}`` of a scene: size, ground, coordinate system, bands, date, and what else to know.

    Args:
        own_pixels: the map shows it in its own pixels.
    """
    metres, crs = scene.ground_size(), scene.crs
    facts = [f"{scene.width:,} × {scene.height:,} pixels"]
    if metres:
        facts.append(f"{metres:,.0f} m a pixel" if metres >= 10 else f"{metres:.2g} m a pixel")
    if crs is None:
        facts.append("no coordinate system: positions are pixels")
    else:
        code = crs.to_epsg()
        facts.append(f"EPSG:{code}" if code else "own coordinate system")
    shown = "red, green and blue are bands " + ", ".join(map(str, scene.bands))
    if len(set(scene.bands)) == 1:
        shown = f"band {scene.bands[0]} as grey"
    facts.append(shown)
    if scene.date is not None:
        facts.append(scene.date.date().isoformat())
    notes = list(getattr(scene, "notes", ()))
    if crs is not None and own_pixels:
        notes.append("it crosses the date line or a pole, so the map shows it in its own pixels")
    return {"name": scene.name, "facts": facts, "notes": notes}
