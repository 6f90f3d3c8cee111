"""Windows of a raster: the values of three bands at any size, and where they are data."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
from rasterio.enums import MaskFlags, Resampling
from rasterio.errors import RasterioError
from rasterio.windows import Window as _GdalWindow

from rsvlm.data.rasters.bands import alpha_of, palette_of, type_of
from rsvlm.data.rasters.files import SceneError, open_raster

PART = 4_000_000  # pixels that are averaged at a time


class Window(NamedTuple):
    """A part of a scene in pixels of its full resolution; always inside it."""

    left: int
    top: int
    width: int
    height: int


class BandReader:
    """Reads the values of the three bands of a raster that are shown.

    Attributes:
        path, data: of the file, as ``open_raster`` takes them.
        width, height: pixels at full resolution.
        bands: those shown as red, green and blue, from 1.
        type: of their values, as NumPy says it.
        palette: uint8 (n, 4), the colours of the values of a band that has some; else None.
    """

    def __init__(self, file: rasterio.DatasetReader, path: Path, bands: tuple[int, ...], data: bytes | None) -> None:
        self.path, self.data, self.bands = path, data, bands
        self.width, self.height = file.width, file.height
        self.type = type_of(file, path, bands)
        self.palette = palette_of(file, bands)

    def read(
        self, file: rasterio.DatasetReader, window: Window, size: tuple[int, int]
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """The three bands, each (H, W), and where they are valid."""
        shrinks = size[0] < window.width or size[1] < window.height
        if not shrinks:
            how = Resampling.nearest if self.palette is not None else Resampling.bilinear
            return self.read_native(file, window, size, how)
        # GDAL would average a palette's numbers, and let one NaN make a cell NaN.
        if self.palette is not None or self.type.startswith("float") or " and " in self.type:
            return self._averaged(file, window, size)
        return self.read_native(file, window, size, Resampling.average)

    def read_native(
        self, file: rasterio.DatasetReader, window: Window, size: tuple[int, int], how: Resampling
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """As ``read``, as GDAL reads it."""
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
        if self.palette is not None:
            colours = self.palette[np.minimum(values[0], len(self.palette) - 1).astype(np.intp)]
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
            if MaskFlags.per_dataset in flags[band] and not (MaskFlags.alpha in flags[band] and alpha_of(file) in own):
                return valid & (file.read_masks(band, **options) > 0)
        return valid

    def _averaged(
        self, file: rasterio.DatasetReader, window: Window, size: tuple[int, int]
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """As ``read`` of a window that shrinks: means of the valid pixels, valid where at least half of them are."""
        factor = min(window.width / size[0], window.height / size[1])
        levels = [level for level, own in enumerate(file.overviews(self.bands[0])) if own <= factor]
        if levels and self.data is None:
            try:
                with open_raster(self.path, overview_level=levels[-1]) as smaller:
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
                values, own = self.read_native(file, part, part[2:], Resampling.nearest)
                at = np.minimum(ys[:-1] - ys[0], part.height - 1), np.minimum(xs[:-1] - xs[0], part.width - 1)
                cells = sums_of_cells(np.ones_like(own), *at)
                counts = sums_of_cells(own, *at)
                place = (slice(y, y + len(ys) - 1), slice(x, x + len(xs) - 1))
                for channel, band in enumerate(values):
                    means[channel][place] = sums_of_cells(np.where(own, band, 0), *at) / np.maximum(counts, 1)
                valid[place] = 2 * counts >= cells
        return list(means), valid


def _edges(start: int, length: int, count: int, scale: float, most: int) -> np.ndarray:
    """The ``count`` + 1 borders of cells over a stretch of pixels, in pixels of an overview."""
    edges = np.rint((start + np.arange(count + 1) * (length / count)) * scale).astype(np.int64)
    edges[:-1] = np.minimum(edges[:-1], most - 1)
    return np.minimum(edges, most)


def sums_of_cells(values: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Sums over the cells that begin at these rows and columns."""
    return np.add.reduceat(np.add.reduceat(values, rows, axis=0, dtype=np.float64), columns, axis=1)
