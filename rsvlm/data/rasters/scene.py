"""A scene: a raster of any size, number of bands and type, read by window as 8-bit RGB.

``open_scene`` is the one door. GDAL reads (rasterio brings it): GeoTIFF and COG, JPEG 2000, VRT, and plain JPEG, PNG,
WebP, BMP and GIF; never over a network, no file outside the folder that the scene lies in, and nothing is written.

A scene's values become 0 to 255 by one stretch for the whole scene, so that each window shows what the scene shows.
A pixel is valid where it is neither masked, transparent, NaN, infinite nor nodata in any of the three bands; nodata of
0 in all three, for a dark pixel has zeros too. What is not valid takes the mean of the valid pixels of the same
picture, so that it neither shines nor darkens an average; where none is valid, the middle, 128.

Memory is that of the picture asked for, a few million pixels and GDAL's cache of blocks (CACHE). A Scene may be shared by
threads, which take turns, and survives a fork or a pickle: each process opens the file for itself.
"""

import hashlib
import math
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
import shapely
from pyproj import Geod, Transformer
from pyproj.exceptions import ProjError
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.transform import Affine

from rsvlm.data.rasters.bands import alpha_of, choose_bands
from rsvlm.data.rasters.files import GDAL_OPTIONS, SceneError, absolute, check_files, digest_of_file, open_raster
from rsvlm.data.rasters.stretches import apply_stretch, find_clipping, find_stretch
from rsvlm.data.rasters.windows import PART, BandReader, Window, sums_of_cells

MOST_PIXELS = 64_000_000  # of one picture: 192 MB as RGB
LARGE = 10_000_000  # pixels; of a file with more a look at the whole is slow without overviews
LARGEST_BLOCK = 256 * 2**20  # bytes decoded; the least that can be read of a compressed file is a block


class Picture(NamedTuple):
    """What was read of a scene."""

    pixels: np.ndarray  # uint8 (H, W, 3)
    valid: np.ndarray  # bool (H, W)


class Scene:
    """An open scene; a context manager. Made by ``open_scene``.

    Attributes:
        path, name: of the file; the name is without its extension.
        width, height: pixels at full resolution.
        count, data_bands, type: its bands, how many of them are no alpha, and the type of the values of those shown, as
            NumPy says it.
        crs, transform: its place; None where it tells none that holds for every pixel.
        bands: those shown as red, green and blue, from 1; of a grey scene the same thrice.
        low, high: the values of each band that become 0 and 255.
        tags: what else the file says, by name.
        date: when it was taken, or else made; None where the file does not tell.
        notes: sentences on what is odd about it.
    """

    def __init__(self, path: Path, bands, stretch, percentiles, data: bytes | None = None) -> None:
        self.path, self.name, self._data = path, path.stem, data
        self._lock, self._open, self._pid = threading.RLock(), None, os.getpid()
        self.notes: tuple[str, ...] = ()
        self._files = check_files(path, data)
        with self._dataset() as file:
            self.width, self.height, self.count = file.width, file.height, file.count
            self.bands = choose_bands(file, path, bands)
            self.data_bands = self.count - (alpha_of(file) > 0)
            self._reader = BandReader(file, path, self.bands, data)
            self.type = self._reader.type
            self.crs, self.transform = self._place(file)
            self.date, self.tags = _date_of(file), file.tags()
            self._check_blocks(file)
            self.low, self.high, notes = find_stretch(self._reader, file, stretch, percentiles)
            self.notes += notes
        self._given = not isinstance(stretch, str)

    def __enter__(self) -> "Scene":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Scene({str(self.path)!r}, {self.width}x{self.height}, bands {self.bands})"

    def close(self) -> None:
        """Let go of the file; a later read opens it again."""
        with self._own_lock():
            if self._open is not None:
                self._open.close()
            self._open = None

    def read(self, window: Window | None = None, size: tuple[int, int] | None = None) -> Picture:
        """The picture of a window.

        Args:
            window: None for the whole scene.
            size: (width, height) of the result; None for the window's own. Where it is smaller than the window, pixels
                are averaged, from overviews where the file has some; where larger, interpolated.

        Raises:
            SceneError: the window leaves the scene, the picture is larger than MOST_PIXELS, or the file is damaged
                there.
        """
        window = Window(0, 0, self.width, self.height) if window is None else Window(*map(int, window))
        left, top, width, height = window
        if width < 1 or height < 1 or left < 0 or top < 0 or left + width > self.width or top + height > self.height:
            raise SceneError(
                f"{self.path}: the window {tuple(window)} (left, top, width, height) is empty or leaves the scene of "
                f"{self.width}x{self.height} pixels"
            )
        size = (width, height) if size is None else (int(size[0]), int(size[1]))
        if min(size) < 1 or size[0] * size[1] > MOST_PIXELS:
            raise SceneError(
                f"{self.path}: a picture of {size[0]}x{size[1]} pixels was asked for; at least 1 is read and at most "
                f"{MOST_PIXELS:,} at once: give a smaller window, or another size"
            )
        with self._dataset() as file:
            values, valid = self._reader.read(file, window, size)
        pixels = np.empty((*valid.shape, 3), np.uint8)
        for channel, (band, low, high) in enumerate(zip(values, self.low, self.high)):
            pixels[..., channel] = apply_stretch(band, low, high)
        if not valid.all():
            pixels[~valid] = np.rint(pixels[valid].mean(axis=0)) if valid.any() else 128
        return Picture(pixels, valid)

    def read_plain(self, factor: int = 1) -> np.ndarray:
        """The whole scene, each pixel the mean of ``factor`` squared, what is no data as the file has it: uint8 (h, w, 3).

        Read from the top in strips, in the order in which JPEG and PNG are stored.
        """
        rows = factor * max(1, PART // (self.width * factor))
        strips = []
        with self._dataset() as file:
            for top in range(0, self.height, rows):
                part = Window(0, top, self.width, min(rows, self.height - top))
                values, _ = self._reader.read_native(file, part, part[2:], Resampling.nearest)
                if factor > 1:
                    at = np.arange(0, part.height, factor), np.arange(0, part.width, factor)
                    cells = sums_of_cells(np.ones(values[0].shape, bool), *at)
                    values = [np.rint(sums_of_cells(band, *at) / cells).astype(band.dtype) for band in values]
                strips.append(np.stack([apply_stretch(*band) for band in zip(values, self.low, self.high)], axis=-1))
        return np.concatenate(strips)

    def overview(self, side: int = 1024) -> Picture:
        """The whole scene, its longer side at most ``side`` pixels."""
        scale = min(1.0, side / max(self.width, self.height))
        return self.read(size=(max(1, round(self.width * scale)), max(1, round(self.height * scale))))

    def clipping(self) -> str:
        """What to tell a person where the stretch that was given makes nearly all of a band black or white; mostly nothing."""
        if not self._given:
            return ""
        with self._dataset() as file:
            told = find_clipping(self._reader, file, self.low, self.high)
        return f"{self.path}: the stretch makes {told}" if told else ""

    def polygon(self, window: Window) -> shapely.Polygon:
        """The ground of a window: in the scene's CRS, or in pixels (column, row) where it has none."""
        left, top, width, height = window
        corners = [(left, top), (left + width, top), (left + width, top + height), (left, top + height)]
        return shapely.Polygon([_place_of(self.transform, *corner) for corner in corners] if self.crs else corners)

    def ground_size(self) -> float | None:
        """Metres a pixel at the centre: the root of the ground that it covers, on the ellipsoid, whatever the CRS.

        None without a CRS, or with one that is not of the Earth.
        """
        if self.crs is None:
            return None
        column, row = self.width / 2, self.height / 2
        places = [_place_of(self.transform, column + x, row + y) for x, y in ((0, 0), (1, 0), (0, 1))]
        try:
            to_degrees = Transformer.from_crs(self.crs.to_wkt(), "EPSG:4326", always_xy=True)
            (x, *across), (y, *down) = to_degrees.transform(*zip(*places), errcheck=True)
        except ProjError:
            return None
        # Not by the area of a polygon, which is exact to a tenth of a square metre: a pixel of 30 cm has less.
        directions, _, sides = Geod(ellps="WGS84").inv([x, x], [y, y], across, down)
        area = sides[0] * sides[1] * abs(math.sin(math.radians(directions[0] - directions[1])))
        return math.sqrt(area) if math.isfinite(area) and area > 0 else None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, as hex, of the files' content (of files above WHOLE: of parts and the time of change), bands, stretch."""
        digest = hashlib.sha256()
        if self._data is not None:
            digest.update(self._data)
        else:
            with self._dataset() as file:
                files = {Path(os.path.normpath(name)) for name in (absolute(self.path), *file.files, *self._files)}
            for path in sorted(files):
                digest.update(path.name.encode("utf-8", "surrogatepass") + b"\0" + digest_of_file(path))
        digest.update(repr((self.bands, self.low, self.high)).encode())
        return digest.hexdigest()

    def _own_lock(self) -> threading.RLock:
        """The lock of this process; after a fork the file and the lock of the parent are left to it."""
        if self._pid != os.getpid():
            self._lock, self._open, self._pid = threading.RLock(), None, os.getpid()
        return self._lock

    @contextmanager
    def _dataset(self) -> Iterator[rasterio.DatasetReader]:
        with self._own_lock(), rasterio.Env(**GDAL_OPTIONS):
            if self._open is None:
                self._open = open_raster(self.path, self._data)
            try:
                yield self._open
            except (RasterioError, CPLE_BaseError) as error:  # a damaged head shows when a part of it is asked for
                raise SceneError(f"{self.path}: damaged, or not whole ({error}); fetch it again") from error

    def __getstate__(self) -> dict:
        return {key: value for key, value in vars(self).items() if key not in ("_lock", "_open", "_pid")}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state, _lock=threading.RLock(), _open=None, _pid=os.getpid())

    def _note(self, text: str) -> None:
        self.notes += (text,)

    def _place(self, file: rasterio.DatasetReader) -> tuple[CRS | None, Affine | None]:
        transform = None if file.transform.is_identity else file.transform
        if transform is not None and file.crs:
            return file.crs, transform
        points = len(file.gcps[0])
        if points or file.rpcs:
            told = f"{points} ground control points" if points else "a rational polynomial (RPC)"
            self._note(
                f"its place is told by {told} alone, which is not applied: make a raster with a place by gdalwarp"
            )
        elif transform is not None:
            self._note(
                "it has coordinates, but the file does not tell of which reference system: gdal_edit.py -a_srs EPSG:CODE"
            )
        return None, transform

    def _check_blocks(self, file: rasterio.DatasetReader) -> None:
        height, width = file.block_shapes[self.bands[0] - 1]
        together = file.count if str(file.interleaving).endswith("pixel") else 1
        size = height * width * together * np.dtype(file.dtypes[self.bands[0] - 1]).itemsize
        way_out = "write it in tiles with overviews: gdal_translate -of COG IN OUT.tif"
        if size > LARGEST_BLOCK:
            raise SceneError(
                f"{self.path}: stored in pieces of {width}x{height} pixels, {size / 2**20:,.0f} MB each, which can only be "
                f"read whole; {way_out}"
            )
        if self.width * self.height > LARGE and not file.overviews(self.bands[0]):
            self._note(
                "it has no overviews, so that to see all of it all of it is read, slowly; gdaladdo or rasterio's "
                "build_overviews adds some"
            )
        if self.width * self.height > MOST_PIXELS and (size > 16 * 2**20 or file.driver in ("PNG", "GIF", "WEBP")):
            self._note(
                f"each window is read from pieces of {width}x{height} pixels, or from the start, slowly; {way_out}"
            )


def open_scene(
    path: Path | str,
    *,
    bands: Sequence[int | str] | str | None = None,
    stretch: str | Sequence = "auto",
    percentiles: tuple[float, float] = (2.0, 98.0),
    data: bytes | None = None,
) -> Scene:
    """An open scene.

    Args:
        path: a raster of one of DRIVERS.
        bands: those shown as red, green and blue, or one for grey: by number from 1, by description ("B04", "red"), or
            the name of one of BAND_PRESETS, which looks at descriptions first and at numbers where the file names
            none. None: what the file calls red, green and blue (or B04, B03, B02), grey or a palette; three bands
            without names in their order.
        stretch: ``auto``: 8 bits stay as they are, all else as ``percentile``; ``percentile``: from these of the whole
            scene to 0 to 255; ``none``: as they are, for 8 bits only; (low, high), or one such pair for each of the
            three bands.
        percentiles: of the valid pixels of each band: all of a scene of PART pixels at most, else of an overview or of
            blocks that lie evenly, the same each time.
        data: the bytes of an image that lies in another file; ``path`` then only names it.

    Raises:
        FileNotFoundError: there is no such file.
        SceneError: not a raster that is read, damaged, bands or stretch that cannot be; says what to do.
    """
    return Scene(Path(path), bands, stretch, percentiles, data)


def _place_of(transform: Affine, column: float, row: float) -> tuple[float, float]:
    a, b, c, d, e, f = transform[:6]
    return a * column + b * row + c, d * column + e * row + f


def _date_of(file: rasterio.DatasetReader) -> datetime | None:
    """When the scene was taken, or made; UTC where it names no zone."""
    for tags in (file.tags(ns="IMAGERY"), file.tags()):
        for key in ("ACQUISITIONDATETIME", "EXIF_DateTimeOriginal", "TIFFTAG_DATETIME"):
            text = tags.get(key, "").strip()
            text = re.sub(r"^(\d{4}):(\d\d):(\d\d)", r"\1-\2-\3", text)
            try:
                date = datetime.fromisoformat(text)
            except ValueError:
                continue
            return date if date.tzinfo else date.replace(tzinfo=UTC)
    return None
