"""Scenes: rasters of any size, number of bands and type, read by window as 8-bit RGB.

``open_scene`` is the one door. GDAL reads (rasterio brings it): GeoTIFF and COG, JPEG 2000, VRT, and plain JPEG, PNG,
WebP, BMP and GIF; never over a network, and no file outside the folder that the scene lies in.

A scene's values become 0 to 255 by one stretch for the whole scene, so that each window is the same picture as the
scene. A pixel is valid where each of the three bands has data: neither nodata, nor masked, nor transparent, nor NaN or
infinite. The others take the mean of the valid pixels of the same picture, so that they neither shine nor darken an
average; where none is valid, the middle, 128.

A Scene may be shared by threads, which take turns, and survives a fork or a pickle: each process opens the file anew.
"""

import hashlib
import math
import os
import re
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import rasterio
import shapely
from affine import Affine
from pyproj import Geod, Transformer
from rasterio._path import _parse_path
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window as _GdalWindow

DRIVERS = ("GTiff", "JP2OpenJPEG", "VRT", "JPEG", "PNG", "WEBP", "BMP", "GIF")
MOST_PIXELS = 64_000_000  # of one picture: 192 MB as RGB
SAMPLE_SIDE = 1024  # pixels; the stretch is taken from at most this many squared
WHOLE = 64 * 2**20  # bytes; smaller files are fingerprinted whole, of larger ones parts and the time of their change
# No network, nothing of a scene that Python code in a VRT could run, and a bounded cache of blocks.
_GDAL = {
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".none",
    "CPL_VSIL_CURL_ALLOWED_FILENAME": "/none",
    "GDAL_VRT_ENABLE_PYTHON": "NO",
    "GDAL_VRT_ENABLE_RAWRASTERBAND": "NO",
    "GDAL_MAX_DATASET_POOL_SIZE": "64",
}


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


@dataclass(frozen=True)
class BandPreset:
    """Which bands a sensor's picture is made of."""

    names: tuple[tuple[str, ...], ...]  # of the bands shown as red, green and blue; any of them counts
    numbers: Mapping[int, tuple[int, int, int]]  # number of bands of the file -> bands, where it names none


_RED, _GREEN, _BLUE, _NIR = ("red",), ("green",), ("blue",), ("nir", "near infrared", "near-infrared")


def _preset(red, green, blue, numbers) -> BandPreset:
    return BandPreset((red, green, blue), MappingProxyType(numbers))


BAND_PRESETS: Mapping[str, BandPreset] = MappingProxyType({
    "true-colour": _preset(_RED, _GREEN, _BLUE, {}),
    "false-colour": _preset(_NIR, _RED, _GREEN, {}),
    "sentinel-2": _preset(
        ("b4", *_RED), ("b3", *_GREEN), ("b2", *_BLUE),
        # all (EuroSAT), level 2A, 10 and 20 m (BigEarthNet), 10 m
        {13: (4, 3, 2), 12: (4, 3, 2), 10: (3, 2, 1), 4: (3, 2, 1)},
    ),
    "sentinel-2-false-colour": _preset(
        ("b8", *_NIR), ("b4", *_RED), ("b3", *_GREEN), {13: (8, 4, 3), 12: (8, 4, 3), 10: (7, 3, 2), 4: (4, 3, 2)}
    ),
    "landsat-8": _preset(
        ("b4", "sr_b4", *_RED), ("b3", "sr_b3", *_GREEN), ("b2", "sr_b2", *_BLUE),
        dict.fromkeys(range(7, 12), (4, 3, 2)),
    ),
    "landsat-8-false-colour": _preset(
        ("b5", "sr_b5", *_NIR), ("b4", "sr_b4", *_RED), ("b3", "sr_b3", *_GREEN),
        dict.fromkeys(range(7, 12), (5, 4, 3)),
    ),
    "planetscope": _preset(_RED, _GREEN, _BLUE, {4: (3, 2, 1), 8: (6, 4, 2)}),
    "planetscope-false-colour": _preset(_NIR, _RED, _GREEN, {4: (4, 3, 2), 8: (8, 6, 4)}),
    "naip": _preset(_RED, _GREEN, _BLUE, {3: (1, 2, 3), 4: (1, 2, 3)}),
    "naip-false-colour": _preset(_NIR, _RED, _GREEN, {4: (4, 1, 2)}),
})  # fmt: skip


class Scene:
    """An open scene; a context manager. Made by ``open_scene``."""

    def __init__(self, path: Path, *, bands, stretch, percentiles) -> None:
        self.path, self.name = path, path.stem
        self._lock, self._pid, self._open = threading.RLock(), 0, None
        _check_path(path)
        with self._dataset() as file:
            self.width, self.height = file.width, file.height
            self.count, self.type = file.count, _type_of(file, path)
            self.notes: tuple[str, ...] = ()
            self.crs, self.transform = self._place(file)
            self.date = _date_of(file)
            self.bands = _choose_bands(file, path, bands)
            self._palette = _palette_of(file, self.bands)
            self.low, self.high = (), ()
            self.low, self.high = self._find_stretch(file, stretch, percentiles)
            self.fingerprint = self._identify(file)

    def __enter__(self) -> "Scene":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; a later read opens it again."""
        with self._lock:
            if self._open is not None and self._pid == os.getpid():
                self._open.close()
            self._open = None

    def __repr__(self) -> str:
        return f"Scene({str(self.path)!r}, {self.width}x{self.height}, bands {self.bands})"

    def read(self, window: Window | None = None, size: tuple[int, int] | None = None) -> Picture:
        """The picture of a window.

        Args:
            window: None for the whole scene.
            size: (width, height) of the result; None for the window's own. Where it is smaller than the window, pixels
                are averaged, from overviews where the file has some; where larger, they are interpolated.

        Raises:
            SceneError: the window leaves the scene, the picture is larger than MOST_PIXELS, or the file is damaged
                there.
        """
        window = Window(0, 0, self.width, self.height) if window is None else Window(*map(int, window))
        self._check_window(window)
        width, height = (window.width, window.height) if size is None else map(int, size)
        if width < 1 or height < 1:
            raise SceneError(
                f"{self.path}: a picture of {width}x{height} pixels was asked for; give a size of 1 at least"
            )
        if width * height > MOST_PIXELS:
            raise SceneError(
                f"{self.path}: a picture of {width}x{height} pixels was asked for, more than the {MOST_PIXELS:,} read at "
                "once; give a smaller window, or a size"
            )
        with self._dataset() as file:
            values, valid = self._values(file, window, (width, height))
        if self._palette is not None:
            pixels = self._palette[np.minimum(values[0], len(self._palette) - 1).astype(np.intp)][..., :3]
        else:
            pixels = np.stack([_stretched(*band) for band in zip(values, self.low, self.high)], axis=-1)
        return Picture(_filled(pixels, valid), valid)

    def overview(self, side: int = 1024) -> Picture:
        """The whole scene, its longer side at most ``side`` pixels."""
        return self.read(size=_fit(self.width, self.height, side))

    def polygon(self, window: Window) -> shapely.Polygon:
        """The ground of a window: in the scene's CRS, or in pixels (column, row) where it has none."""
        left, top, width, height = window
        corners = [(left, top), (left + width, top), (left + width, top + height), (left, top + height)]
        return shapely.Polygon([self.transform @ corner for corner in corners] if self.crs else corners)

    def ground_size(self) -> float | None:
        """Metres a pixel at the centre, the root of the ground that it covers; None without a CRS or on no Earth."""
        if self.crs is None:
            return None
        column, row = (self.width - 1) / 2, (self.height - 1) / 2
        corners = [self.transform @ (column + x, row + y) for x, y in ((0, 0), (1, 0), (1, 1), (0, 1))]
        to_degrees = Transformer.from_crs(self.crs.to_wkt(), "EPSG:4326", always_xy=True)
        longitudes, latitudes = to_degrees.transform(*zip(*corners))
        area, _ = Geod(ellps="WGS84").polygon_area_perimeter(longitudes, latitudes)
        return math.sqrt(abs(area)) if math.isfinite(area) and area else None

    @contextmanager
    def _dataset(self) -> Iterator[rasterio.DatasetReader]:
        with self._lock, _quiet():
            if self._open is None or self._pid != os.getpid():
                self._open, self._pid = _open(self.path), os.getpid()
            yield self._open

    def __getstate__(self) -> dict:
        return {key: value for key, value in vars(self).items() if key not in ("_lock", "_open", "_pid")}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state, _lock=threading.RLock(), _open=None, _pid=0)

    def _check_window(self, window: Window) -> None:
        left, top, width, height = window
        if width < 1 or height < 1 or left < 0 or top < 0 or left + width > self.width or top + height > self.height:
            raise SceneError(
                f"{self.path}: the window {tuple(window)} (left, top, width, height) is empty or leaves the scene of "
                f"{self.width}x{self.height} pixels"
            )

    def _place(self, file: rasterio.DatasetReader) -> tuple[CRS | None, Affine | None]:
        transform = None if file.transform.is_identity else file.transform
        if transform is None or not file.crs:
            points = len(file.gcps[0])
            if points or file.rpcs:
                kind = f"{points} ground control points" if points else "a rational polynomial (RPC)"
                self._note(
                    f"its place is told by {kind} alone, which is not applied; make a raster of it with gdalwarp"
                )
            return None, transform
        return file.crs, transform

    def _note(self, text: str) -> None:
        self.notes += (text,)

    def _values(
        self, file: rasterio.DatasetReader, window: Window, size: tuple[int, int], near: bool = False
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """The three bands and where all of them are valid."""
        part = _GdalWindow(*window)
        shape = (size[1], size[0])
        shrinks = size[0] < window.width or size[1] < window.height
        how = Resampling.average if shrinks else Resampling.bilinear
        if near or self._palette is not None or size == (window.width, window.height):
            how = Resampling.nearest
        own = list(dict.fromkeys(self.bands))
        options = {"window": part, "resampling": how}
        try:
            read = file.read(own, out_shape=(len(own), *shape), **options)
            valid = np.ones(shape, bool)
            for band in own:
                flags = file.mask_flag_enums[band - 1]
                if MaskFlags.all_valid in flags:
                    continue
                if MaskFlags.alpha in flags and _alpha_of(file) in own:
                    continue
                valid &= file.read_masks(band, out_shape=shape, window=part, resampling=Resampling.nearest) > 0
        except RasterioError as error:
            cause = error.__cause__ or error
            raise SceneError(
                f"{self.path}: the window {tuple(window)} (left, top, width, height) cannot be read ({cause}); the file is "
                "damaged there, or was cut off: fetch it again"
            ) from error
        if read.dtype.kind == "f":
            valid &= np.isfinite(read).all(axis=0)
        by_band = dict(zip(own, read))
        return [by_band[band] for band in self.bands], valid

    def _find_stretch(self, file, stretch, percentiles) -> tuple[tuple[float, ...], tuple[float, ...]]:
        if isinstance(stretch, str):
            if stretch not in ("auto", "percentile", "none"):
                raise SceneError(
                    f"{self.path}: unknown stretch {stretch!r}; known are auto, percentile, none, and [low, high]"
                )
            if self.type == "uint8" and stretch != "percentile" or self._palette is not None:
                return (0.0,) * 3, (255.0,) * 3
            if stretch == "none":
                raise SceneError(
                    f"{self.path}: values of {self.type} need a stretch to become 0 to 255; give stretch='percentile' or "
                    "stretch=[low, high]"
                )
            return self._percentiles(file, percentiles)
        pairs = list(stretch)
        if len(pairs) == 2 and not any(isinstance(value, Sequence) for value in pairs):
            pairs = [pairs] * 3
        try:
            low, high = (tuple(map(float, values)) for values in zip(*pairs, strict=True))
        except (TypeError, ValueError):
            low, high = (), ()
        if len(low) != 3 or not all(math.isfinite(a) and math.isfinite(b) and a < b for a, b in zip(low, high)):
            raise SceneError(
                f"{self.path}: a stretch is [low, high] with low below high, or one such pair for each of the three bands; "
                f"is {stretch!r}"
            )
        return low, high

    def _percentiles(self, file, percentiles) -> tuple[tuple[float, ...], tuple[float, ...]]:
        lower, upper = map(float, percentiles)
        if not 0 <= lower < upper <= 100:
            raise SceneError(f"{self.path}: percentiles must be two of 0 to 100, the lower first; are {percentiles!r}")
        size = _fit(self.width, self.height, SAMPLE_SIDE)
        values, valid = self._values(file, Window(0, 0, self.width, self.height), size)
        if not valid.any():
            raise SceneError(
                f"{self.path}: no pixel has data (all are nodata, masked or NaN), so there is nothing to take the stretch "
                "from; leave the scene out, or give stretch=[low, high]"
            )
        low, high = [], []
        for number, band in zip(self.bands, values):
            own = band[valid]
            a, b = (float(value) for value in np.percentile(own, (lower, upper)))
            if a == b:
                a, b = float(own.min()), float(own.max())
            if a == b:
                b = a + 1
                self._note(f"band {number} is {a:g} everywhere")
            low.append(a)
            high.append(b)
        self.notes = tuple(dict.fromkeys(self.notes))
        return tuple(low), tuple(high)

    def _identify(self, file: rasterio.DatasetReader) -> str:
        digest = hashlib.sha256()
        for path in sorted({self.path, *map(Path, file.files)}):
            digest.update(path.name.encode("utf-8", "surrogatepass") + b"\0" + _content_of(path))
        digest.update(repr((self.bands, self.low, self.high)).encode())
        return digest.hexdigest()


def open_scene(
    path: Path | str,
    *,
    bands: Sequence[int | str] | str | None = None,
    stretch: str | Sequence = "auto",
    percentiles: tuple[float, float] = (2.0, 98.0),
) -> Scene:
    """An open scene.

    Args:
        path: a raster of one of DRIVERS.
        bands: those shown as red, green and blue, or one for grey: by number from 1, by description ("B04", "red"), or
            the name of one of BAND_PRESETS, which looks at descriptions first and at numbers where the file names
            none. None: what the file calls red, green and blue, grey or a palette; three bands without names in their
            order.
        stretch: ``auto``: 8 bits stay as they are, all else as ``percentile``; ``percentile``: from these of the whole
            scene to 0 to 255; ``none``: as they are, for 8 bits only; (low, high), or one such pair for each of the
            three bands.
        percentiles: of the valid pixels of the scene, read at most SAMPLE_SIDE pixels a side.

    Raises:
        FileNotFoundError: there is no such file.
        SceneError: not a raster that is read, damaged, bands or stretch that cannot be; says what to do.
    """
    return Scene(Path(path), bands=bands, stretch=stretch, percentiles=percentiles)


def _stretched(values: np.ndarray, low: float, high: float) -> np.ndarray:
    if (low, high) == (0.0, 255.0) and values.dtype == np.uint8:
        return values
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = (values.astype(np.float32) - np.float32(low)) * np.float32(255 / (high - low))
        return np.clip(np.nan_to_num(np.rint(scaled)), 0, 255).astype(np.uint8)


def _filled(pixels: np.ndarray, valid: np.ndarray) -> np.ndarray:
    if valid.all():
        return pixels
    pixels = pixels.copy()
    pixels[~valid] = np.rint(pixels[valid].mean(axis=0)) if valid.any() else 128
    return pixels


def _fit(width: int, height: int, side: int) -> tuple[int, int]:
    """The size with the longer side at most ``side``."""
    if max(width, height) <= side:
        return width, height
    scale = side / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


@contextmanager
def _quiet() -> Iterator[None]:
    """GDAL without a network; what it would print is told by errors."""
    with rasterio.Env(**_GDAL), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def _check_path(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such scene")
    if not path.is_file():
        raise SceneError(f"{path}: not a file; give one raster")


def _open(path: Path) -> rasterio.DatasetReader:
    try:
        # Not rasterio.open: it takes one driver. A parsed path is opened as it is, whatever its name looks like.
        file = rasterio.DatasetReader(_parse_path(path.absolute()), driver=list(DRIVERS))
    except RasterioError as error:
        raise SceneError(f"{path}: cannot be read as a scene ({error}); read are {', '.join(DRIVERS)}") from error
    return file


def _type_of(file: rasterio.DatasetReader, path: Path) -> str:
    kinds = sorted(set(file.dtypes))
    if any(kind.startswith("complex") for kind in kinds):
        raise SceneError(
            f"{path}: complex values ({', '.join(kinds)}) are no picture; make a raster of their amplitude"
        )
    return kinds[0] if len(kinds) == 1 else " and ".join(kinds)


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


def _words(text: str) -> str:
    """A band's description, lower case, B04 as b4."""
    return re.sub(r"\bb0+(\d)", r"b\1", text.strip().lower())


def _find_band(names: Sequence[str], descriptions: Sequence[str | None]) -> list[int]:
    """Bands (from 1) that are called so: by the whole description, else by a word of it."""
    wanted, told = [_words(name) for name in names], [_words(text or "") for text in descriptions]
    whole = [number for number, text in enumerate(told, start=1) if text in wanted]
    if whole:
        return whole
    found = []
    for number, text in enumerate(told, start=1):
        words = re.findall(r"[a-z0-9_]+", text)
        if set(words) & set(wanted) and "edge" not in words:
            found.append(number)
    return found


def _choose_bands(file: rasterio.DatasetReader, path: Path, bands) -> tuple[int, ...]:
    count, descriptions = file.count, file.descriptions
    told = ", ".join(f"{number} {text}" for number, text in enumerate(descriptions, start=1) if text)
    holds = f"{count} band{'s' * (count > 1)}" + (f" ({told})" if told else "")
    if bands is None:
        return _default_bands(file, path, holds)
    if isinstance(bands, str):
        if bands not in BAND_PRESETS:
            raise SceneError(f"{path}: unknown preset {bands!r}; known are {', '.join(BAND_PRESETS)}")
        preset = BAND_PRESETS[bands]
        found = [_find_band(names, descriptions) for names in preset.names]
        if all(len(own) == 1 for own in found):
            return tuple(own[0] for own in found)
        if count not in preset.numbers or told:
            raise SceneError(
                f"{path}: {holds}, which the preset {bands!r} does not know; give the numbers of the bands shown as red, "
                "green and blue: bands=[3, 2, 1]"
            )
        return preset.numbers[count]
    chosen = []
    for band in bands:
        if isinstance(band, str):
            found = _find_band([band], descriptions)
            if len(found) != 1:
                raise SceneError(f"{path}: {len(found)} bands are called {band!r}; it has {holds}; give a number")
            chosen.append(found[0])
        elif isinstance(band, bool) or not 1 <= int(band) <= count:
            raise SceneError(f"{path}: there is no band {band!r}; it has {holds}, counted from 1")
        else:
            chosen.append(int(band))
    if len(chosen) not in (1, 3):
        raise SceneError(
            f"{path}: {len(chosen)} bands were chosen; three are shown as red, green and blue, or one as grey"
        )
    return tuple(chosen * 3 if len(chosen) == 1 else chosen)


def _default_bands(file: rasterio.DatasetReader, path: Path, holds: str) -> tuple[int, ...]:
    colours = file.colorinterp
    rgb = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    if all(colours.count(colour) == 1 for colour in rgb):
        return tuple(colours.index(colour) + 1 for colour in rgb)
    for preset in ("true-colour", "sentinel-2"):
        found = [_find_band(names, file.descriptions) for names in BAND_PRESETS[preset].names]
        if all(len(own) == 1 for own in found):
            return tuple(own[0] for own in found)
    data = [number for number, colour in enumerate(colours, start=1) if colour != ColorInterp.alpha]
    if len(data) == 1:
        return (data[0],) * 3
    if len(data) == 3:
        return tuple(data)
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


def _content_of(path: Path) -> bytes:
    """A digest of a file: of all of it, or of a large one its size, time of change, start, end and parts between."""
    state, digest = path.stat(), hashlib.sha256()
    with path.open("rb") as file:
        if state.st_size <= WHOLE:
            for block in iter(lambda: file.read(2**20), b""):
                digest.update(block)
        else:
            digest.update(f"{state.st_size} {state.st_mtime_ns}".encode())
            for place in np.linspace(0, state.st_size - 2**16, 64).astype(np.int64).tolist():
                file.seek(place)
                digest.update(file.read(2**16))
    return digest.digest()
