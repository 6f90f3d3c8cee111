"""Synthetic mosaics with truth, a needle among distractors in each, and the public annotations of SeLo.

A mosaic is a square of test images laid side by side from a random offset, over which one image, the needle, lies at its
native size at a random place: neither is aligned to a grid of windows. It is synthetic and shows no place on Earth; what
it is good for is that the right window is known. No other image in it has a caption of the needle's, so a search for one
of them has one right answer, as far as captions tell.

A mosaic is a plan (``plan_mosaic``) until pixels are asked for: of any window (``paint``), or of the whole as a GeoTIFF
without georeference, written row of images by row of images (``write_mosaic``), so memory does not grow with its side.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import rasterio
import rasterio.windows
from PIL import Image

from rsvlm.data.images import open_file, open_image
from rsvlm.data.rasters.windows import Window
from rsvlm.data.rasters.writing import new_raster
from rsvlm.files import fingerprint_values, read_json

SYNTHETIC = "synthetic mosaic of test images laid side by side; shows no place on Earth"
BLOCK = 256  # pixels along a side of a GeoTIFF's block
LEAST_DISTRACTORS = 4  # images that a mosaic's background is made of, at least
CACHED_IMAGES = 64  # decoded ones held while a mosaic is painted


class MosaicError(ValueError):
    """A mosaic that cannot be made; says why and what to do."""


@dataclass(frozen=True)
class Mosaic:
    """The plan of a synthetic mosaic of ``side`` x ``side`` pixels.

    Attributes:
        number: among the mosaics of one seed; the same needle at every side.
        needle: image id of the image that is looked for.
        window: where it lies, whole and at its native size.
        captions: the needle's, each once.
        cell: pixels along a side of a place in the background; an image that is larger is cut at its centre, a smaller
            one is continued by its mirror image.
        left, top: offset of the background, 0 or less.
        layout: (rows, columns) image ids of the background.
        paths: image id -> file.
    """

    number: int
    side: int
    seed: int
    needle: str
    window: Window
    captions: tuple[str, ...]
    cell: int
    left: int
    top: int
    layout: tuple[tuple[str, ...], ...] = field(repr=False)
    paths: Mapping[str, str] = field(repr=False)

    @property
    def name(self) -> str:
        """``synthetic_1024_003``."""
        return f"synthetic_{self.side}_{self.number:03d}"

    @property
    def truth(self) -> pd.DataFrame:
        """Which image lies where: image_id, left, top, width, height (cut at the mosaic's edge), needle, shown.

        ``shown`` is the share of the image's place that neither the edge nor the needle takes away.
        """
        rows = []
        for row, images in enumerate(self.layout):
            for column, image_id in enumerate(images):
                place = (self.left + column * self.cell, self.top + row * self.cell, self.cell, self.cell)
                own = _shared(place, (0, 0, self.side, self.side))
                hidden = _shared(own, self.window) if own else None
                area = own.width * own.height - (hidden.width * hidden.height if hidden else 0) if own else 0
                if own:
                    rows.append((image_id, *own, False, round(area / self.cell**2, 6)))
        rows.append((self.needle, *self.window, True, 1.0))
        return pd.DataFrame(rows, columns=["image_id", *Window._fields, "needle", "shown"])

    def fingerprint(self) -> str:
        """Of the plan and of the images' files (place and size of each)."""
        files = sorted((image_id, str(path), Path(path).stat().st_size) for image_id, path in self.paths.items())
        return fingerprint_values(
            self.side, self.needle, self.window, self.cell, self.left, self.top, self.layout, files
        )


def read_sizes(rows: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """image_id -> (width, height) of an image table's rows, from the files' heads.

    Raises:
        FileNotFoundError, rsvlm.data.images.ImageError: a file that is not there or no image.
    """
    sizes = {}
    for image_id, path in zip(rows["image_id"], rows["path"]):
        with open_file(Path(path), turned=True) as image:
            turned = image.getexif().get(0x0112, 1) >= 5  # EXIF: stored lying on its side
            sizes[image_id] = image.size[::-1] if turned else image.size
    return sizes


def cell_side(sizes: Mapping[str, tuple[int, int]]) -> int:
    """The side, pixels, of a place in the background: the median of the images' widths and heights."""
    if not sizes:
        raise MosaicError("no images to make a mosaic of")
    return int(np.median([side for size in sizes.values() for side in size]))


def describe_sizes(sizes: Mapping[str, tuple[int, int]]) -> str:
    """How many images there are of which size, in words, and what becomes of those of another size."""
    cell = cell_side(sizes)
    other = {image_id: size for image_id, size in sizes.items() if size != (cell, cell)}
    if not other:
        return f"All {len(sizes):,} images have {cell} x {cell} pixels."
    widths, heights = zip(*other.values())
    return (
        f"{len(other):,} of {len(sizes):,} images are not of {cell} x {cell} pixels ({min(widths)} to {max(widths)} wide, "
        f"{min(heights)} to {max(heights)} high): as a needle they keep their size, in the background they are cut at the "
        "centre or continued by their mirror image."
    )


def same_caption(text: str) -> str:
    """A caption without case, repeated spaces and a full stop: what counts as the same caption."""
    return " ".join(text.casefold().split()).rstrip(" .")


def find_distractors(rows: pd.DataFrame, needles: Sequence[str]) -> list[str]:
    """The images that share no caption with any of the needles, in the table's order."""
    said = _captions_of(rows)
    taken: set[str] = set().union(*(said[name] for name in needles))
    return [name for name, own in said.items() if own.isdisjoint(taken)]


def plan_mosaics(
    rows: pd.DataFrame,
    sizes: Mapping[str, tuple[int, int]],
    along: Sequence[int],
    count: int,
    *,
    seed: int = 0,
) -> tuple[list[Mosaic], str]:
    """(mosaics, what had to be left out, in words): ``count`` for each number of images along a side, with one needle each.

    The needles are the same at every side. No two share a caption, and no image in the background of any mosaic shares one
    with any needle, so that each caption has one right place in all of them.

    Args:
        rows: of an image table: image_id, path, captions.
        sizes: as ``read_sizes`` gives them.
        along: images along a side; its pixels are that many times ``cell_side``.
    """
    sides = sorted({number * cell_side(sizes) for number in along}) if len(rows) and count else []
    fitting = [name for name in rows["image_id"] if sides and max(sizes[name]) < min(sides)]
    said = _captions_of(rows)
    needles: list[str] = []
    taken: set[str] = set()
    left = len(rows)
    for place in np.random.default_rng([seed, 1]).permutation(len(fitting)):
        if len(needles) == count:
            break
        own = said[fitting[place]]
        remaining = sum(others.isdisjoint(taken | own) for others in said.values())
        if own and own.isdisjoint(taken) and remaining >= LEAST_DISTRACTORS:
            needles.append(fitting[place])
            taken |= own
            left = remaining
    distractors = find_distractors(rows, needles)
    mosaics = [
        plan_mosaic(rows, sizes, name, side, distractors=distractors, seed=seed, number=number)
        for side in sides
        for number, name in enumerate(needles)
    ]
    if not mosaics:
        return [], (
            f"No mosaics: of {len(rows):,} images {len(fitting):,} are smaller than a mosaic, and none leaves "
            f"{LEAST_DISTRACTORS} others without a caption of its own."
            if count and along
            else "No mosaics were asked for."
        )
    few = f"; {count} were asked for, more would share captions or leave too few others" if len(needles) < count else ""
    return mosaics, f"{len(needles)} needles, {left:,} of {len(rows):,} images as distractors{few}."


def plan_mosaic(
    rows: pd.DataFrame,
    sizes: Mapping[str, tuple[int, int]],
    needle: str,
    side: int,
    *,
    distractors: Sequence[str] | None = None,
    seed: int = 0,
    number: int = 0,
) -> Mosaic:
    """A synthetic mosaic: the needle at a random place over images that share no caption with it.

    The distractors are shuffled and laid one after the other; where there are fewer than places, they come again.

    Args:
        rows: of an image table: image_id, path, captions.
        sizes: as ``read_sizes`` gives them.
        side: pixels.
        distractors: image ids of the background; None: ``find_distractors``.
        seed, number: the same give the same mosaic.

    Raises:
        MosaicError: the needle is not smaller than the mosaic, or there is no distractor.
    """
    if needle not in sizes:
        raise MosaicError(f"{needle}: no such image among the {len(sizes):,} given")
    others = list(find_distractors(rows, [needle]) if distractors is None else distractors)
    width, height = sizes[needle]
    if max(width, height) >= side:
        raise MosaicError(f"{needle}: {width} x {height} pixels, no needle for a mosaic of {side}; take a larger side")
    if not others:
        raise MosaicError(f"{needle}: every other image has one of its captions, so there is no distractor")
    random = np.random.default_rng([seed, 2, number, side])
    cell = cell_side(sizes)
    left, top = (-int(offset) for offset in random.integers(0, cell, size=2))
    rows_of_cells, columns = math.ceil((side - top) / cell), math.ceil((side - left) / cell)
    passes = math.ceil(rows_of_cells * columns / len(others))
    order = np.concatenate([random.permutation(len(others)) for _ in range(passes)])
    images = [others[place] for place in order[: rows_of_cells * columns]]
    said = dict(zip(rows["image_id"], rows["captions"]))
    x, y = (int(random.integers(0, side - extent + 1)) for extent in (width, height))
    paths = dict(zip(rows["image_id"], map(str, rows["path"])))
    return Mosaic(
        number=number,
        side=side,
        seed=seed,
        needle=needle,
        window=Window(x, y, width, height),
        captions=tuple(dict.fromkeys(said[needle])),
        cell=cell,
        left=left,
        top=top,
        layout=tuple(tuple(images[row * columns : (row + 1) * columns]) for row in range(rows_of_cells)),
        paths={name: paths[name] for name in (needle, *sorted(set(images)))},
    )


def paint(mosaic: Mosaic, window: Window | None = None) -> np.ndarray:
    """The pixels of a window of the mosaic (None: of all), uint8 (H, W, 3).

    Raises:
        MosaicError: the window is empty or leaves the mosaic.
    """
    window = window or Window(0, 0, mosaic.side, mosaic.side)
    if _shared(window, (0, 0, mosaic.side, mosaic.side)) != tuple(window):
        raise MosaicError(f"{mosaic.name}: the window {tuple(window)} is empty or leaves the mosaic")
    pixels = np.zeros((window.height, window.width, 3), dtype=np.uint8)
    cell = mosaic.cell
    for row in range((window.top - mosaic.top) // cell, (window.top + window.height - 1 - mosaic.top) // cell + 1):
        for column in range(
            (window.left - mosaic.left) // cell, (window.left + window.width - 1 - mosaic.left) // cell + 1
        ):
            place = (mosaic.left + column * cell, mosaic.top + row * cell, cell, cell)
            _paste(pixels, window, place, _cell_pixels(mosaic.paths[mosaic.layout[row][column]], cell))
    if _shared(window, mosaic.window):
        _paste(pixels, window, mosaic.window, np.asarray(open_image(mosaic.paths[mosaic.needle])))
    return pixels


def write_mosaic(mosaic: Mosaic, path: Path) -> Path:
    """``path``, a tiled RGB GeoTIFF without georeference, whole or not at all; one row of images in memory at a time."""
    band = max(BLOCK, mosaic.cell // BLOCK * BLOCK)
    with (
        rasterio.Env(GDAL_CACHEMAX=64),
        new_raster(
            path, width=mosaic.side, height=mosaic.side, count=3, dtype="uint8", photometric="RGB", interleave="pixel",
            tiled=True, blockxsize=BLOCK, blockysize=BLOCK,
        ) as file,
    ):  # fmt: skip
        file.update_tags(TIFFTAG_IMAGEDESCRIPTION=f"{SYNTHETIC}; seed {mosaic.seed}, number {mosaic.number}")
        for top in range(0, mosaic.side, band):
            window = Window(0, top, mosaic.side, min(band, mosaic.side - top))
            file.write(paint(mosaic, window).transpose(2, 0, 1), window=rasterio.windows.Window(*window))
    return Path(path)


@dataclass(frozen=True)
class SeloCase:
    """A sentence, the image that it is looked for in, and the polygons (corners as (x, y) pixels) that it means."""

    image: str
    caption: str
    regions: tuple[tuple[tuple[float, float], ...], ...]


def read_selo(path: Path) -> list[SeloCase]:
    """The cases of SeLo's test set AIR-SLT (Yuan et al. 2022), from its ``annotations/anno.json``.

    A list of ``{"caption", "jpg_name", "points": [[[x, y], ...], ...]}``; the published one has 59 cases on 22 images.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a case that is not so, or an image's name with a folder in it; names the file and the case.
    """
    listed = read_json(Path(path))
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"{path}: expected a list of cases, as in SeLo's anno.json")
    cases = []
    for number, case in enumerate(listed):
        try:
            name, caption, points = case["jpg_name"], case["caption"].strip(), case["points"]
            regions = tuple(tuple((float(x), float(y)) for x, y in region) for region in points)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{path}: case {number}: expected caption, jpg_name and points (a list of polygons of [x, y]); got {error}"
            ) from error
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{path}: case {number}: jpg_name {name!r} is no plain name of a file")
        if not caption or not regions or min(map(len, regions)) < 3:
            raise ValueError(f"{path}: case {number}: a caption and polygons of at least three corners are needed")
        cases.append(SeloCase(name, caption, regions))
    return cases


def overview(mosaic: Mosaic, most: int = 1024) -> np.ndarray:
    """The whole mosaic at most ``most`` pixels a side, uint8 (H, W, 3), shrunk by a whole factor; painted band by band."""
    factor = math.ceil(mosaic.side / most)
    band = max(1, BLOCK // factor) * factor
    parts = []
    for top in range(0, mosaic.side, band):
        pixels = paint(mosaic, Window(0, top, mosaic.side, min(band, mosaic.side - top)))
        parts.append(np.asarray(Image.fromarray(pixels).reduce(factor)))
    return np.concatenate(parts)


def _captions_of(rows: pd.DataFrame) -> dict[str, set[str]]:
    return {name: {same_caption(text) for text in own} for name, own in zip(rows["image_id"], rows["captions"])}


def _shared(one: Sequence[int], other: Sequence[int]) -> Window | None:
    """What two windows share; None where it is nothing."""
    left, top = max(one[0], other[0]), max(one[1], other[1])
    width, height = min(one[0] + one[2], other[0] + other[2]) - left, min(one[1] + one[3], other[1] + other[3]) - top
    return Window(left, top, width, height) if width > 0 and height > 0 else None


def _paste(pixels: np.ndarray, window: Window, place: Sequence[int], image: np.ndarray) -> None:
    """Lay what of ``image``, which fills ``place`` of the mosaic, lies in ``window`` over the window's pixels."""
    shared = _shared(window, place)
    if shared is None:
        return
    x, y = shared.left - place[0], shared.top - place[1]
    part = image[y : y + shared.height, x : x + shared.width]
    at_x, at_y = shared.left - window.left, shared.top - window.top
    pixels[at_y : at_y + shared.height, at_x : at_x + shared.width] = part


@lru_cache(maxsize=CACHED_IMAGES)
def _cell_pixels(path: str, cell: int) -> np.ndarray:
    image = np.asarray(open_image(path))
    for axis in (0, 1):
        extra = image.shape[axis] - cell
        if extra > 0:
            image = image.take(range(extra // 2, extra // 2 + cell), axis=axis)
        elif extra < 0:
            around = [(0, 0)] * 3
            around[axis] = (-extra // 2, -extra - (-extra // 2))
            image = np.pad(image, around, mode="symmetric")
    return image
