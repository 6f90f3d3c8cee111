"""NASA's Blue Marble as a scene: the whole Earth, georeferenced, from files that install as packages.

The default study's tiles are cut from the same picture, so what is measured on the globe keeps away from the tiles that the
models were trained on.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import rasterio

from rsvlm.data.blue_marble import BLOCK_DEGREES, LABELS_PER_DEGREE, NORTH, SOUTH, Maps, load_maps
from rsvlm.data.land_captions import GROUPS, WATER, class_nouns
from rsvlm.data.rasters.scene import Scene, open_scene
from rsvlm.data.rasters.writing import new_raster
from rsvlm.data.sources import IMAGERY_PER_DEGREE
from rsvlm.files import cache_folder

LAND_SHARE = 0.5  # of a window from which it takes part in scores, and of its land that is one class
TEMPLATE = "Nearly all of the image is {}."  # the captions' own form of a class
_OVERVIEWS = (2, 4, 8, 16)
_BLOCK = 256  # pixels, side of the file's tiles


def make_globe(path: Path, maps: Maps | None = None) -> Path:
    """Write Blue Marble (5400 x 2700) as a tiled GeoTIFF with overviews, in degrees (EPSG:4326); whole or not at all.

    Its pixels are the packaged picture's, bit for bit. A file that is there already is left as it is.

    Raises:
        FileNotFoundError: one of the packages is not installed.
    """
    path = Path(path)
    if path.is_file():
        return path
    pixels = np.asarray((maps or load_maps()).imagery).transpose(2, 0, 1)
    bands, height, width = pixels.shape
    degree = 1 / IMAGERY_PER_DEGREE
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_raster(
        path, width=width, height=height, count=bands, dtype="uint8", crs="EPSG:4326",
        transform=rasterio.transform.from_origin(-180, 90, degree, degree), photometric="RGB", tiled=True,
        blockxsize=_BLOCK, blockysize=_BLOCK, compress="deflate", predictor=2,
    ) as file:  # fmt: skip
        file.write(pixels)
        file.build_overviews(_OVERVIEWS, rasterio.enums.Resampling.average)
    return path


def open_world() -> Scene:
    """The whole Earth, to lay footprints on: Blue Marble where it is installed, else a plain ground."""
    folder = cache_folder() / "scenes"
    try:
        return open_scene(make_globe(folder / "blue_marble.tif"), stretch="none")
    except FileNotFoundError:
        path = folder / "plain_earth.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_raster(
            path, width=360, height=180, count=1, dtype="uint8", crs="EPSG:4326",
            transform=rasterio.transform.from_origin(-180, 90, 1, 1),
        ) as file:  # fmt: skip
            file.write(np.full((1, 180, 360), 110, np.uint8))
        return open_scene(path, stretch="none")


def land_of(maps: Maps) -> np.ndarray:
    """(3600, 7200) bool: where the Earth is land, lakes and rivers included, only the sea not."""
    return ~maps.sea


def describe_windows(windows: pd.DataFrame, maps: Maps, tiles: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """What the land-cover map and the study's split say of windows of the globe.

    Args:
        windows: with ``left``, ``top``, ``width``, ``height`` in pixels of the globe.
        tiles: split -> (n, 4) west, south, east, north of the study's tiles, degrees.

    Returns:
        One row a window: ``land`` (share of it), a column a class of land (share of the window's land), ``block`` (number of
        the 14.4 degree square that holds its centre) and ``part``: "train" where it comes closer than half its side to a
        training tile, else "val" the same of validation tiles, else "test"; but "outside" for what is no training
        neighbourhood and less than half land, or lies beyond 80 N or 60 S, where no tiles were cut.
    """
    per_pixel = LABELS_PER_DEGREE / IMAGERY_PER_DEGREE
    shares = np.zeros((len(windows), len(GROUPS)))
    sides = [windows[key].to_numpy() for key in ("left", "top", "width", "height")]
    for row, (left, top, width, height) in enumerate(zip(*sides)):
        rows = slice(round(top * per_pixel), round((top + height) * per_pixel))
        columns = slice(round(left * per_pixel), round((left + width) * per_pixel))
        counts = np.bincount(maps.groups[rows, columns].ravel(), minlength=len(GROUPS))
        shares[row] = counts / counts.sum()
    land = 1 - shares[:, WATER]
    found = pd.DataFrame({"land": land}, index=windows.index)
    for number, name in enumerate(GROUPS):
        if number != WATER:
            found[name] = np.divide(shares[:, number], land, out=np.zeros_like(land), where=land > 0)
    left, top, width, height = (side / IMAGERY_PER_DEGREE for side in sides)
    bounds = np.stack([left - 180, 90 - top - height, left + width - 180, 90 - top], axis=1)
    column, row = (left + width / 2) // BLOCK_DEGREES, (top + height / 2) // BLOCK_DEGREES
    found["block"] = (row * (360 // BLOCK_DEGREES) + column).astype(int)
    inside = (bounds[:, 3] <= NORTH + 1e-9) & (bounds[:, 1] >= SOUTH - 1e-9) & (land >= LAND_SHARE)
    near = {name: _is_near(bounds, tiles.get(name, np.zeros((0, 4)))) for name in ("train", "val")}
    found["part"] = np.select([near["train"], ~inside, near["val"]], ["train", "outside", "val"], "test")
    return found


def class_texts() -> dict[str, list[str]]:
    """For each class of land the captions that ask for it: every name that the captions' rules have for it."""
    return {name: [TEMPLATE.format(noun) for noun in nouns] for name, nouns in class_nouns().items()}


def _is_near(bounds: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n,) whether windows come closer than half their side to any of the others; both west, south, east, north.

    The distance is the larger of both directions; the date line is no border.
    """
    near = np.zeros(len(bounds), dtype=bool)
    middle, side = (bounds[:, :2] + bounds[:, 2:]) / 2, bounds[:, 2:] - bounds[:, :2]
    for west, south, east, north in others:
        away = np.abs(middle - [(west + east) / 2, (south + north) / 2])
        away[:, 0] = np.abs((middle[:, 0] - (west + east) / 2 + 180) % 360 - 180)
        gap = (away - (side + [east - west, north - south]) / 2).max(1)
        near |= gap < side.max(1) / 2 - 1e-9
    return near
