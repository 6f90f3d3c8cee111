"""Scenes: rasters of any size, number of bands and type, read by window as 8-bit RGB.

``open_scene`` is the one door. GDAL reads (rasterio brings it): GeoTIFF and COG, JPEG 2000, VRT, and plain JPEG, PNG,
WebP, BMP and GIF; never over a network, no file outside the folder that the scene lies in, and nothing is written.

A scene's values become 0 to 255 by one stretch for the whole scene, so that each window shows what the scene shows.
A pixel is valid where it is neither masked, transparent, NaN, infinite nor nodata in any of the three bands; nodata of
0 in all three, for a dark pixel has zeros too. What is not valid takes the mean of the valid pixels of the same
picture, so that it neither shines nor darkens an average; where none is valid, the middle, 128.

Memory is that of the picture asked for, a few million pixels and GDAL's cache of blocks (CACHE). A Scene may be shared by
threads, which take turns, and survives a fork or a pickle: each process opens the file for itself.
"""

import difflib
import hashlib
import math
import os
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import rasterio
import shapely
from pyproj import Geod, Transformer
from pyproj.exceptions import ProjError
from rasterio._path import _parse_path
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.transform import Affine
from rasterio.windows import Window as _GdalWindow

from rsvlm.data.recipes import BAND_PRESETS

DRIVERS = ("GTiff", "JP2OpenJPEG", "VRT", "JPEG", "PNG", "WEBP", "BMP", "GIF")
MOST_PIXELS = 64_000_000  # of one picture: 192 MB as RGB
SAMPLE_SIDE = 1024  # pixels; the stretch is taken from about this many squared
BLOCKS = 1024  # that are read at most for the stretch of a file without overviews
LARGE = 10_000_000  # pixels; of a file with more a look at the whole is slow without overviews
CLIPPED = 0.9  # share of a band's pixels that a given stretch makes black, or white: beyond, it was hardly meant so
WHOLE = 64 * 2**20  # bytes; smaller files are fingerprinted whole, of larger ones parts and the time of their change
CACHE = 128  # megabytes of decoded blocks that GDAL keeps, for all scenes of a process together
LARGEST_BLOCK = 256 * 2**20  # bytes decoded; the least that can be read of a compressed file is a block
PART = 4_000_000  # pixels that are averaged at a time
LONGEST_VRT = 64 * 2**20  # bytes
# No network, no Python code of a VRT, no grey in the place of what a truncated JPEG lacks.
_GDAL = {
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".none",
    "CPL_VSIL_CURL_ALLOWED_FILENAME": "/none",
    "GDAL_CACHEMAX": CACHE,
    "GDAL_ERROR_ON_LIBJPEG_WARNING": "YES",
    "GDAL_VRT_ENABLE_PYTHON": "NO",
    "GDAL_VRT_ENABLE_RAWRASTERBAND": "NO",
}
_HEADS = (
    b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\x00\x00\x00\x0cjP  ", b"\xff\x4f\xff\x51", b"\xff\xd8\xff", b"\x89PNG", b"RIFF",
    b"BM", b"GIF8",
)  # fmt: skip
_VRT_CLASSES = {
    "vrtwarpeddataset", "vrtpansharpeneddataset", "vrtsourcedrasterband", "vrtwarpedrasterband", "vrtderivedrasterband",
    "vrtpansharpenedrasterband",
}  # fmt: skip
_VRT_PLACES = ("sourcefilename", "sourcedataset", "dempath", "rpc_dem")  # elements and attributes that name files
_VRT_ITEMS = ("x_dataset", "y_dataset", "overview_file", "rpc_dem")  # metadata and options that do
_OPENING = threading.Lock()  # what warnings are shown is a matter of the process


class SceneError(ValueError):
    """A scene that cannot be used; the message names the file, what is wrong and what to do."""


class Window(NamedTuple):
    """A part of a scene in pixels of its full resolution; always inside it."""

    left: int
    top: int
    width: int
    height: int


class Picture(NamedTuple):
    """What was read of a scene."""

    pixels: np.ndarray  # uint8 (H, W, 3)
    valid: np.ndarray  # bool (H, W)


class Scene:
    """An open scene; a context manager. Made by ``open_scene``.

    Attributes:
        path, name: of the file; the name is without its extension.
        width, height: pixels at full resolution.
        count, data_bands, type: its bands, those of them that are no alpha, and the type of the values of those shown, as
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
        self._files = _check_files(path, data)
        with self._dataset() as file:
            self.width, self.height, self.count = file.width, file.height, file.count
            self.bands = _choose_bands(file, path, bands)
            self.data_bands = self.count - (_alpha_of(file) > 0)
            self.type = _type_of(file, path, self.bands)
            self.crs, self.transform = self._place(file)
            self.date, self.tags = _date_of(file), file.tags()
            self._palette = _palette_of(file, self.bands)
            self._check_blocks(file)
            self.low, self.high = self._find_stretch(file, stretch, percentiles)
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
            values, valid = self._values(file, window, size)
        pixels = np.empty((*valid.shape, 3), np.uint8)
        for channel, (band, low, high) in enumerate(zip(values, self.low, self.high)):
            pixels[..., channel] = _stretched(band, low, high)
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
                values, _ = self._native(file, part, part[2:], Resampling.nearest)
                if factor > 1:
                    at = np.arange(0, part.height, factor), np.arange(0, part.width, factor)
                    cells = _sums(np.ones(values[0].shape, bool), *at)
                    values = [np.rint(_sums(band, *at) / cells).astype(band.dtype) for band in values]
                strips.append(np.stack([_stretched(*band) for band in zip(values, self.low, self.high)], axis=-1))
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
            sample = self._sample(file)
        told = {}
        for number, own, low, high in zip(self.bands, sample, self.low, self.high):
            shown = _stretched(own, low, high)
            shares = {
                colour: float((shown == value).mean()) for colour, value in (("black", 0), ("white", 255)) if own.size
            }
            colour = max(shares, key=shares.get, default="")
            if colour and shares[colour] >= CLIPPED:
                told[number] = (
                    f"{shares[colour]:.0%} of band {number} {colour} (stretch {low:g},{high:g}; its values run from "
                    f"{own.min():,.6g} to {own.max():,.6g})"
                )
        return f"{self.path}: the stretch makes {', '.join(told.values())}" if told else ""

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
                files = {Path(os.path.normpath(name)) for name in (_absolute(self.path), *file.files, *self._files)}
            for path in sorted(files):
                digest.update(path.name.encode("utf-8", "surrogatepass") + b"\0" + _digest_of(path))
        digest.update(repr((self.bands, self.low, self.high)).encode())
        return digest.hexdigest()

    def _own_lock(self) -> threading.RLock:
        """The lock of this process; after a fork the file and the lock of the parent are left to it."""
        if self._pid != os.getpid():
            self._lock, self._open, self._pid = threading.RLock(), None, os.getpid()
        return self._lock

    @contextmanager
    def _dataset(self) -> Iterator[rasterio.DatasetReader]:
        with self._own_lock(), rasterio.Env(**_GDAL):
            if self._open is None:
                self._open = _open(self.path, self._data)
            yield self._open

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

    def _values(
        self, file: rasterio.DatasetReader, window: Window, size: tuple[int, int]
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """The three bands, each (H, W), and where they are valid."""
        shrinks = size[0] < window.width or size[1] < window.height
        if not shrinks:
            how = Resampling.nearest if self._palette is not None else Resampling.bilinear
            return self._native(file, window, size, how)
        # GDAL would average a palette's numbers, and let one NaN make a cell NaN.
        if self._palette is not None or self.type.startswith("float") or " and " in self.type:
            return self._averaged(file, window, size)
        return self._native(file, window, size, Resampling.average)

    def _native(
        self, file: rasterio.DatasetReader, window: Window, size: tuple[int, int], how: Resampling
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """As ``_values``, as GDAL reads it."""
        own = list(dict.fromkeys(self.bands))
        shape, part = (size[1], size[0]), _GdalWindow(*window)
        if size == window[2:]:
            how = Resampling.nearest
        options = {"window": part, "out_shape": shape}
        try:
            if len({file.dtypes[band - 1] for band in own}) == 1:
                whole = options | {"out_shape": (len(own), *shape)}
                values = list(file.read(own, resampling=how, **whole))
            else:
                values = [file.read(band, resampling=how, **options).astype(np.float64) for band in own]
            valid = self._mask(file, own, options)
        except RasterioError as error:
            raise SceneError(
                f"{self.path}: the window {tuple(window)} (left, top, width, height) cannot be read at {size[0]}x{size[1]} "
                f"pixels ({error.__cause__ or error}): the file, or an overview in it, is damaged there or cut off; fetch "
                "it again, or write overviews anew: gdaladdo"
            ) from error
        for band in values:
            if band.dtype.kind == "f":
                valid &= np.isfinite(band)
        if self._palette is not None:
            colours = self._palette[np.minimum(values[0], len(self._palette) - 1).astype(np.intp)]
            valid &= colours[..., 3] > 0
            return [colours[..., channel] for channel in range(3)], valid
        by_number = dict(zip(own, values))
        return [by_number[band] for band in self.bands], valid

    def _mask(self, file: rasterio.DatasetReader, own: list[int], options: dict) -> np.ndarray:
        """Where the file calls its pixels data; a fourth band that is shown is no alpha, whatever the file calls it."""
        flags = {band: file.mask_flag_enums[band - 1] for band in own}
        of_values = [band for band in own if MaskFlags.nodata in flags[band]]
        valid = np.ones(options["out_shape"], bool)
        if of_values:
            masks = [file.read_masks(band, **options) > 0 for band in of_values]
            zero = all(file.nodatavals[band - 1] == 0 for band in of_values) and len(of_values) == len(own)
            valid = np.any(masks, axis=0) if zero else np.all(masks, axis=0)
        for band in own:
            if MaskFlags.per_dataset in flags[band] and not (MaskFlags.alpha in flags[band] and _alpha_of(file) in own):
                return valid & (file.read_masks(band, **options) > 0)
        return valid

    def _averaged(
        self, file: rasterio.DatasetReader, window: Window, size: tuple[int, int]
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """As ``_values`` of a window that shrinks: means of the valid pixels, valid where at least half of them are."""
        factor = min(window.width / size[0], window.height / size[1])
        levels = [level for level, own in enumerate(file.overviews(self.bands[0])) if own <= factor]
        if levels and self._data is None:
            try:
                with _open(self.path, overview_level=levels[-1]) as smaller:
                    return self._reduced(smaller, window, size)
            except RasterioError as error:
                raise SceneError(f"{self.path}: an overview is damaged ({error}); write it anew: gdaladdo") from error
        return self._reduced(file, window, size)

    def _reduced(
        self, file: rasterio.DatasetReader, window: Window, size: tuple[int, int]
    ) -> tuple[list[np.ndarray], np.ndarray]:
        columns = _edges(window.left, window.width, size[0], file.width / self.width, file.width)
        rows = _edges(window.top, window.height, size[1], file.height / self.height, file.height)
        means, valid = np.zeros((3, size[1], size[0])), np.zeros((size[1], size[0]), bool)
        across = max(1, int(math.sqrt(PART) / max(1, window.width / size[0])))
        down = max(1, int(math.sqrt(PART) / max(1, window.height / size[1])))
        for y in range(0, size[1], down):
            for x in range(0, size[0], across):
                ys, xs = rows[y : y + down + 1], columns[x : x + across + 1]
                part = Window(int(xs[0]), int(ys[0]), max(1, int(xs[-1] - xs[0])), max(1, int(ys[-1] - ys[0])))
                values, own = self._native(file, part, part[2:], Resampling.nearest)
                at = np.minimum(ys[:-1] - ys[0], part.height - 1), np.minimum(xs[:-1] - xs[0], part.width - 1)
                cells = _sums(np.ones_like(own), *at)
                counts = _sums(own, *at)
                place = (slice(y, y + len(ys) - 1), slice(x, x + len(xs) - 1))
                for channel, band in enumerate(values):
                    means[channel][place] = _sums(np.where(own, band, 0), *at) / np.maximum(counts, 1)
                valid[place] = 2 * counts >= cells
        return list(means), valid

    def _find_stretch(self, file, stretch, percentiles) -> tuple[tuple[float, ...], tuple[float, ...]]:
        if not isinstance(stretch, str):
            return _check_stretch(stretch, str(self.path))
        if stretch not in ("auto", "percentile", "none"):
            raise SceneError(
                f"{self.path}: unknown stretch {stretch!r}; there are auto, percentile, none, and [low, high]"
            )
        white = file.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES" and self._palette is None
        if self._palette is not None or (self.type == "uint8" and stretch != "percentile"):
            bits = int(file.tags(self.bands[0], ns="IMAGE_STRUCTURE").get("NBITS", 8))
            full = 255.0 if self._palette is not None else float(2**bits - 1)
            return ((full,) * 3, (0.0,) * 3) if white else ((0.0,) * 3, (full,) * 3)
        if stretch == "none":
            raise SceneError(
                f"{self.path}: values of {self.type} become 0 to 255 by a stretch alone; give stretch='percentile', or "
                "stretch=[low, high]"
            )
        low, high = self._percentiles(file, percentiles)
        return (high, low) if white else (low, high)

    def _percentiles(self, file, percentiles) -> tuple[tuple[float, ...], tuple[float, ...]]:
        try:
            lower, upper = map(float, percentiles)
        except (TypeError, ValueError):
            lower, upper = 0.0, 0.0
        if not 0 <= lower < upper <= 100:
            raise SceneError(f"{self.path}: percentiles are two of 0 to 100, the lower first; given is {percentiles!r}")
        low, high = [], []
        for number, own in zip(self.bands, self._sample(file)):
            if not own.size:
                raise SceneError(
                    f"{self.path}: no pixel has data (all are nodata, masked or NaN), so there is nothing to take a "
                    "stretch from; leave the scene out, or give stretch=[low, high]"
                )
            a, b = (float(value) for value in np.percentile(own, (lower, upper)))
            if a == b:
                a, b = float(own.min()), float(own.max())
            if a == b:
                a, b = a, a + max(1.0, abs(a) / 255)
                self._note(f"band {number} is {own[0]:g} everywhere and shows black")
            low.append(a)
            high.append(b)
        self.notes = tuple(dict.fromkeys(self.notes))
        return tuple(low), tuple(high)

    def _sample(self, file: rasterio.DatasetReader) -> list[np.ndarray]:
        """Valid values of each band, about SAMPLE_SIDE squared at most.

        All pixels of a small scene, a small overview of a large one, or where it has none blocks that lie evenly.
        """
        whole, total = Window(0, 0, self.width, self.height), self.width * self.height
        if total <= PART:
            values, valid = self._native(file, whole, whole[2:], Resampling.nearest)
            return [band[valid] for band in values]
        side = max(self.width, self.height)
        if any(side / factor <= 4 * SAMPLE_SIDE for factor in file.overviews(self.bands[0])):
            scale = SAMPLE_SIDE / side
            size = max(1, round(self.width * scale)), max(1, round(self.height * scale))
            values, valid = self._native(file, whole, size, Resampling.nearest)  # no more averages than the overview's
            return [band[valid] for band in values]
        height, width = file.block_shapes[self.bands[0] - 1]
        columns, rows = math.ceil(self.width / width), math.ceil(self.height / height)
        across = min(columns, int(math.sqrt(BLOCKS)))
        down = min(rows, BLOCKS // across)
        across = min(columns, BLOCKS // down)
        spared = max(1.0, across * down * width * height / SAMPLE_SIDE**2)
        step_down = min(height, math.ceil(math.sqrt(spared)))
        step_across = math.ceil(spared / step_down)
        found: list[list[np.ndarray]] = [[], [], []]
        for row in np.linspace(0, rows - 1, down).round().astype(int).tolist():
            for column in np.linspace(0, columns - 1, across).round().astype(int).tolist():
                left, top = column * width, row * height
                block = Window(left, top, min(width, self.width - left), min(height, self.height - top))
                values, valid = self._native(file, block, block[2:], Resampling.nearest)
                for own, band in zip(found, values):
                    own.append(band[::step_down, ::step_across][valid[::step_down, ::step_across]])
        return [np.concatenate(own) for own in found]


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


def _check_stretch(stretch: object, where: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Low and high of each band, of [low, high] or one such pair a band."""
    try:
        pairs = np.array(stretch, dtype=np.float64)
    except (TypeError, ValueError):
        pairs = np.zeros(0)
    pairs = np.tile(pairs.reshape(1, 2), (3, 1)) if pairs.size == 2 else pairs
    if pairs.shape != (3, 2) or not np.isfinite(pairs).all() or not (pairs[:, 0] < pairs[:, 1]).all():
        raise SceneError(
            f"{where}: a stretch is [low, high] with low below high, or one such pair for each of the three bands; "
            f"given is {stretch!r}"
        )
    return tuple(pairs[:, 0].tolist()), tuple(pairs[:, 1].tolist())


def _stretched(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """uint8; low -> 0, high -> 255, linear, rounded, clipped."""
    if values.dtype == np.uint8 and (low, high) == (0.0, 255.0):
        return values
    exact = np.float32 if values.dtype in (np.uint8, np.int8, np.uint16, np.int16, np.float32) else np.float64
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = (values.astype(exact) - exact(low)) * exact(255) / exact(high - low)
        return np.clip(np.rint(np.nan_to_num(scaled, posinf=255, neginf=0)), 0, 255).astype(np.uint8)


def _place_of(transform: Affine, column: float, row: float) -> tuple[float, float]:
    a, b, c, d, e, f = transform[:6]
    return a * column + b * row + c, d * column + e * row + f


def _edges(start: int, length: int, count: int, scale: float, most: int) -> np.ndarray:
    """The ``count`` + 1 borders of cells over a stretch of pixels, in pixels of an overview."""
    edges = np.rint((start + np.arange(count + 1) * (length / count)) * scale).astype(np.int64)
    edges[:-1] = np.minimum(edges[:-1], most - 1)
    return np.minimum(edges, most)


def _sums(values: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Sums over the cells that begin at these rows and columns."""
    return np.add.reduceat(np.add.reduceat(values, rows, axis=0, dtype=np.float64), columns, axis=1)


def _open(path: Path, data: bytes | None = None, **options) -> rasterio.DatasetReader:
    """A file of one of DRIVERS, open, after ``_check_files``.

    Not by ``rasterio.open``, which takes one driver, and takes some names for addresses.
    """
    memory = rasterio.MemoryFile(data) if data is not None else None
    place = memory.name if memory else str(_absolute(path))
    vrt = data is None and _is_vrt(path)
    drivers = ["VRT"] if vrt else [driver for driver in DRIVERS if driver != "VRT"]
    try:
        with _OPENING, warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            file = rasterio.DatasetReader(_parse_path(Path(place)), driver=drivers, **options)
    except RasterioError as error:
        raise SceneError(
            f"{path}: cannot be read as a scene ({error}); read are {', '.join(DRIVERS)}; where another program shows it, "
            "save it as GeoTIFF: gdal_translate -of COG IN OUT.tif"
        ) from error
    if memory:
        file._env.enter_context(memory)  # the bytes stay as long as the file is open
    pages = file.subdatasets
    if pages or not file.count:
        file.close()
        raise SceneError(
            f"{path}: {len(pages)} rasters in one file; take one out: gdal_translate -of COG "
            f"{pages[0] if pages else 'IN'} OUT.tif"
        )
    top = _absolute(path).parent
    outside = [name for name in file.files if data is None and not Path(os.path.normpath(name)).is_relative_to(top)]
    if outside:
        file.close()
        raise SceneError(f"{path}: names a file outside its folder, {outside[0]}, which is not read; copy it there")
    return file


def _absolute(path: Path) -> Path:
    return Path(os.path.normpath(path.absolute()))


def _is_vrt(path: Path) -> bool:
    with path.open("rb") as file:
        return b"<vrtdataset" in file.read(4096).lower()


def _check_files(path: Path, data: bytes | None = None) -> list[Path]:
    """The files that a VRT names, all the way down; [] for others.

    Raises:
        FileNotFoundError: there is no such scene.
        SceneError: no file, empty, or it names one that is missing, no raster, outside the scene's folder or on a
            network.
    """
    if data is not None:
        return []
    try:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such scene")
        if not path.is_file():
            raise SceneError(f"{path}: a folder, a pipe or a device, not a raster; give one file")
        if path.stat().st_size == 0:
            raise SceneError(f"{path}: the file is empty (zero bytes); fetch it again")
        _check_beside(path)
        return _files_of_vrt(path, _absolute(path).parent, path, set()) if _is_vrt(path) else []
    except PermissionError as error:
        raise SceneError(f"{path}: cannot be read: {error.strerror}") from error


def _check_beside(path: Path) -> None:
    """Overviews and masks beside a file are rasters as it is: GDAL would take them for anything that it knows."""
    for end in (".ovr", ".msk", ".msk.ovr"):
        for name in (path.name + end, path.name + end.upper()):
            beside = path.with_name(name)
            if beside.is_file() and not _has_head(beside):
                raise SceneError(f"{path}: {name} beside it is no raster; take it away")


def _has_head(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(16).startswith(_HEADS)


def _files_of_vrt(vrt: Path, top: Path, scene: Path, seen: set[Path]) -> list[Path]:
    """The files that a VRT names, and those that VRTs among them name; ``top``: the folder that none may leave."""
    seen.add(_absolute(vrt))
    text = vrt.read_bytes() if vrt.stat().st_size <= LONGEST_VRT else b"<!doctype"
    if b"<!doctype" in text.lower():
        raise SceneError(f"{scene}: {vrt.name} is no VRT as GDAL writes it; make it anew with gdalbuildvrt")
    try:
        root = ElementTree.fromstring(text.lstrip())
    except ElementTree.ParseError as error:
        raise SceneError(f"{scene}: {vrt.name} is no whole VRT ({error}); make it anew with gdalbuildvrt") from error
    found = []
    for element in root.iter():
        kind = _bare(element.tag)
        own = {_bare(key): value for key, value in element.attrib.items()}
        allowed = own.get("subclass", "vrtwarpeddataset").lower() in _VRT_CLASSES
        if not allowed or kind in ("group", "pixelfunctioncode", "processingsteps"):
            raise SceneError(
                f"{scene}: {vrt.name} holds {element.tag} {own.get('subclass', '')}, which may run code or read any file, "
                "and is not read; make a raster of it: gdal_translate -of COG IN OUT.tif"
            )
        places = [value for key, value in own.items() if key in _VRT_PLACES]
        named = own.get("key", own.get("name", "")).lower()
        if kind in _VRT_PLACES or (kind in ("mdi", "option") and named in _VRT_ITEMS):
            places.append(element.text or "")
        for place in places:
            file = _file_of_vrt(place.strip(), own.get("relativetovrt") == "1", vrt, top, scene)
            found.append(file)
            if file not in seen:
                seen.add(file)
                if _is_vrt(file):
                    found += _files_of_vrt(file, top, scene, seen)
                elif not _has_head(file):
                    raise SceneError(f"{scene}: {vrt.name} names {place!r}, which is no raster of {', '.join(DRIVERS)}")
                _check_beside(file)
    return found


def _bare(name: str) -> str:
    """The name of an element or attribute as GDAL compares it: it knows no namespaces and no case."""
    return name.rpartition("}")[2].lower()


def _file_of_vrt(place: str, relative: bool, vrt: Path, top: Path, scene: Path) -> Path:
    if not place or place.startswith(("<", "{", "/vsi")) or re.match(r"[A-Za-z][A-Za-z0-9_+.-]+:", place):
        raise SceneError(
            f"{scene}: {vrt.name} names {place[:80]!r}, which is no plain file; nothing is fetched from a network or unpacked: "
            "bring the file, and make the VRT anew with gdalbuildvrt"
        )
    file = Path(os.path.normpath(_absolute(vrt).parent / place))
    if not file.is_relative_to(top) or not (relative or os.path.isabs(place)):
        raise SceneError(
            f"{scene}: {vrt.name} names {place!r}, which leads out of the folder of the scene; put the VRT and what it names "
            "into one folder, and make it anew with gdalbuildvrt there"
        )
    if not file.is_file():
        raise SceneError(f"{scene}: {vrt.name} names {place!r}, which is missing; bring it, or make the VRT without it")
    return file


def _type_of(file: rasterio.DatasetReader, path: Path, bands: tuple[int, ...]) -> str:
    """The type of the values of these bands; several are joined by "and"."""
    kinds = sorted({file.dtypes[band - 1] for band in bands})
    for kind in kinds:
        if not re.fullmatch(r"u?int(8|16|32|64)|float(32|64)", kind):
            raise SceneError(
                f"{path}: values of {kind} are no picture; make a raster of their amplitude, or of another type: "
                "gdal_translate -ot Float32 IN OUT.tif"
            )
    return " and ".join(kinds)


def _alpha_of(file: rasterio.DatasetReader) -> int:
    """The number of the alpha band, 0 where there is none."""
    return file.colorinterp.index(ColorInterp.alpha) + 1 if ColorInterp.alpha in file.colorinterp else 0


def _palette_of(file: rasterio.DatasetReader, bands: tuple[int, ...]) -> np.ndarray | None:
    if len(set(bands)) != 1 or file.colorinterp[bands[0] - 1] != ColorInterp.palette:
        return None
    colours = file.colormap(bands[0])
    palette = np.zeros((max(colours) + 1, 4), np.uint8)
    for value, colour in colours.items():
        palette[value] = colour
    return palette


def _plain(text: str) -> str:
    """A band's description in lower case, B04 as b4."""
    return re.sub(r"\bb0+(\d)", r"b\1", text.strip().lower())


def find_band(names: Sequence[str], descriptions: Sequence[str | None]) -> list[int]:
    """Bands (from 1) that are called so: by the whole description, else by a word of it ("B4, 665 nm", "Red band")."""
    wanted, told = {_plain(name) for name in names}, [_plain(text or "") for text in descriptions]
    whole = [number for number, text in enumerate(told, start=1) if text in wanted]
    if whole:
        return whole
    words = [set(re.findall(r"[a-z0-9_]+", text)) for text in told]
    return [number for number, own in enumerate(words, start=1) if own & wanted and "edge" not in own]


def _choose_bands(file: rasterio.DatasetReader, path: Path, bands) -> tuple[int, ...]:
    count, descriptions = file.count, file.descriptions
    told = ", ".join(f"{number} {text}" for number, text in enumerate(descriptions, start=1) if text)
    holds = f"{count} band{'s' * (count > 1)} of {file.dtypes[0]}" + (f" ({told})" if told else "")
    if bands is None:
        return _default_bands(file, path, holds)
    if isinstance(bands, str):
        return _preset_bands(file, path, bands, holds)
    chosen = []
    for band in [bands] if isinstance(bands, int) else bands:
        if isinstance(band, str):
            found = find_band([band], descriptions)
            if len(found) != 1:
                many = f"{len(found)} bands are" if found else "no band is"
                raise SceneError(f"{path}: {many} called {band!r}; it has {holds}; give a number")
            chosen += found
        elif isinstance(band, bool) or band != int(band) or not 1 <= band <= count:
            raise SceneError(f"{path}: there is no band {band!r}; it has {holds}, counted from 1")
        else:
            chosen.append(int(band))
    if len(chosen) not in (1, 3):
        raise SceneError(
            f"{path}: {len(chosen)} bands were chosen; give three, shown as red, green and blue, or one, as grey"
        )
    return tuple(chosen * 3 if len(chosen) == 1 else chosen)


def _preset_bands(file: rasterio.DatasetReader, path: Path, name: str, holds: str) -> tuple[int, ...]:
    if name not in BAND_PRESETS:
        close = difflib.get_close_matches(name, BAND_PRESETS, n=1)
        raise SceneError(
            f"{path}: no preset is called {name!r}"
            + (f"; did you mean {close[0]!r}?" if close else ";")
            + " there are "
            f"{', '.join(BAND_PRESETS)}; a list chooses bands by number or description"
        )
    preset = BAND_PRESETS[name]
    found = [find_band(names, file.descriptions) for names in preset.names]
    if all(len(own) == 1 for own in found):
        return tuple(own[0] for own in found)
    data = file.count - (_alpha_of(file) > 0)
    if not any(found):
        for count in (file.count, data):
            if count in preset.numbers:
                return preset.numbers[count]
    knows = f"files of {', '.join(map(str, preset.numbers))} bands" if preset.numbers else "bands by description alone"
    raise SceneError(
        f"{path}: {holds}; the preset {name!r} knows {knows} and does not find its own here; give the numbers of the bands "
        "shown as red, green and blue: bands=[3, 2, 1]"
    )


def _default_bands(file: rasterio.DatasetReader, path: Path, holds: str) -> tuple[int, ...]:
    colours = file.colorinterp
    rgb = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    if all(colours.count(colour) == 1 for colour in rgb):
        return tuple(colours.index(colour) + 1 for colour in rgb)
    found = [find_band(names, file.descriptions) for names in BAND_PRESETS["true-colour"].names]
    # Sentinel-2 alone has numbers of two digits; B4, B3, B2 of an older Landsat are near infrared, red and green.
    sentinel = [[i for i, text in enumerate(file.descriptions, 1) if text == name] for name in ("B04", "B03", "B02")]
    for own in (found, sentinel):
        if all(len(numbers) == 1 for numbers in own):
            return tuple(numbers[0] for numbers in own)
    data = [number for number, colour in enumerate(colours, start=1) if colour != ColorInterp.alpha]
    if len(data) == 1 or (len(data) == 3 and ColorInterp.cyan not in colours):
        return tuple(data * 3)[:3]
    raise SceneError(
        f"{path}: {holds}, none of which the file calls red, green and blue; give their numbers, bands=[3, 2, 1], or a "
        f"preset: {', '.join(BAND_PRESETS)}"
    )


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


def _digest_of(path: Path) -> bytes:
    """A digest of a file: of all of it, or of a large one its size, time of change, start, end and parts between."""
    state, digest = path.stat(), hashlib.sha256()
    with path.open("rb") as file:
        if state.st_size <= WHOLE:
            for block in iter(lambda: file.read(2**20), b""):
                digest.update(block)
        else:
            digest.update(f"{state.st_size} {state.st_mtime_ns}".encode())
            for place in np.linspace(0, max(0, state.st_size - 2**16), 64).astype(np.int64).tolist():
                file.seek(place)
                digest.update(file.read(2**16))
    return digest.digest()
