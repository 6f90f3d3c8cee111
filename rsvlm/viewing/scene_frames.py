"""Where a scene lies on a map widget, and its picture as the map shows it.

A map is drawn in web Mercator (EPSG:3857), as maps on screens are; in degrees (EPSG:4326) where a scene in degrees reaches
the poles or beyond the date line; and in the scene's own pixels where it has no place on Earth, or where neither of the
two can show it in one piece (a pole inside a projected scene, the date line across it). Leaflet speaks of latitude and
longitude in all three: of pixels they are -row and column.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from PIL import Image
from pyproj import Transformer
from rasterio import Affine
from rasterio.enums import Resampling
from rasterio.warp import reproject

from rsvlm.data.rasters.scene import Picture, Scene
from rsvlm.data.rasters.windows import Window
from rsvlm.viewing.scene_pictures import fit

MERCATOR, DEGREES = "EPSG:3857", "EPSG:4326"
MERCATOR_LATITUDE = 85.06  # degrees, where web Mercator ends
# Screen pixels a unit of the plane at zoom 0: metres, degrees, pixels of the scene.
_AT_ZOOM_0 = {MERCATOR: 256 / (2 * math.pi * 6378137), DEGREES: 256 / 180, None: 1.0}
_EDGE = 21  # points along an edge


class Plane(NamedTuple):
    """A rectangle of the map's plane: metres, degrees, or (column, -row)."""

    west: float
    south: float
    east: float
    north: float


@dataclass(frozen=True)
class Frame:
    """A scene on its map.

    Attributes:
        crs: of the map's plane; None: the scene's pixels.
    """

    scene: Scene
    crs: str | None

    @cached_property
    def _to_plane(self) -> Transformer | None:
        return self.crs and Transformer.from_crs(self.scene.crs.to_wkt(), self.crs, always_xy=True)

    @cached_property
    def _to_degrees(self) -> Transformer | None:
        return self.crs and Transformer.from_crs(self.crs, DEGREES, always_xy=True)

    def plane_of(self, columns: Sequence[float], rows: Sequence[float]) -> np.ndarray:
        """(n, 2) places in the plane of pixel positions of the scene."""
        columns, rows = np.asarray(columns, float), np.asarray(rows, float)
        if self.crs is None:
            return np.stack([columns, -rows], axis=1)
        return np.stack(self._to_plane.transform(*_apply(self.scene.transform, columns, rows)), axis=1)

    def pixels_of(self, xs: Sequence[float], ys: Sequence[float]) -> np.ndarray:
        """(n, 2) column and row of places in the plane; beyond the scene, too."""
        xs, ys = np.asarray(xs, float), np.asarray(ys, float)
        if self.crs is None:
            return np.stack([xs, -ys], axis=1)
        own = self._to_plane.transform(xs, ys, direction="INVERSE")
        return np.stack(_apply(~self.scene.transform, *map(np.asarray, own)), axis=1)

    def latlng(self, plane: np.ndarray) -> np.ndarray:
        """(n, 2) what Leaflet calls latitude and longitude, of places (n, 2) in the plane."""
        if self.crs == MERCATOR:
            plane = np.stack(self._to_degrees.transform(plane[:, 0], plane[:, 1]), axis=1)
        return plane[:, ::-1]

    def plane_at(self, latlng: np.ndarray) -> np.ndarray:
        """(n, 2) places in the plane of Leaflet's latitudes and longitudes (n, 2)."""
        plane = np.asarray(latlng, float)[:, ::-1]
        if self.crs == MERCATOR:
            degrees = np.clip(plane[:, 1], -MERCATOR_LATITUDE, MERCATOR_LATITUDE)
            plane = np.stack(self._to_degrees.transform(plane[:, 0], degrees, direction="INVERSE"), axis=1)
        return plane

    def corners(self, window: Window) -> list[list[float]]:
        """A window's four corners, as Leaflet takes them."""
        left, top, width, height = window
        columns, rows = [left, left + width, left + width, left], [top, top, top + height, top + height]
        return self.latlng(self.plane_of(columns, rows)).tolist()

    def centre(self, window: Window) -> list[float]:
        """A window's middle, as Leaflet takes it."""
        left, top, width, height = window
        return self.latlng(self.plane_of([left + width / 2], [top + height / 2]))[0].tolist()

    def window_of(self, latlng: np.ndarray) -> Window | None:
        """The smallest window that holds these places (n, 2) as far as they lie in the scene; None where none does."""
        pixels = self.pixels_of(*self.plane_at(latlng).T)
        pixels = pixels[np.isfinite(pixels).all(axis=1)]
        return self._cut(pixels) if len(pixels) else None

    @cached_property
    def plane(self) -> Plane:
        """The rectangle of the plane that the scene lies in."""
        points = self.plane_of(*_edge_of(self.scene.width, self.scene.height))
        return Plane(*points.min(axis=0), *points.max(axis=0))

    @cached_property
    def pixel(self) -> float:
        """Side of a pixel of the scene in the plane, at its middle."""
        column, row = self.scene.width / 2, self.scene.height / 2
        middle, right, below = self.plane_of([column, column + 1, column], [row, row, row + 1])
        across, down = right - middle, below - middle
        return math.sqrt(abs(across[0] * down[1] - across[1] * down[0]))

    def bounds(self, plane: Plane) -> list[list[float]]:
        """A rectangle of the plane as Leaflet takes it: south-west and north-east corner."""
        return self.latlng(np.array([[plane.west, plane.south], [plane.east, plane.north]])).tolist()

    def zoom_for(self, plane: Plane, width: float, height: float) -> float:
        """The zoom at which a rectangle fills a map of so many screen pixels."""
        scale = min(width / (plane.east - plane.west), height / (plane.north - plane.south))
        return math.log2(scale / _AT_ZOOM_0[self.crs])

    @property
    def full_zoom(self) -> float:
        """The zoom at which a pixel of the scene is one of the screen."""
        return math.log2(1 / self.pixel / _AT_ZOOM_0[self.crs])

    def picture(self, plane: Plane, side: int) -> tuple[Image.Image, Plane] | None:
        """The scene in a rectangle of the plane, RGBA, and the rectangle that the picture fills; None outside the scene.

        Args:
            side: longer side of the picture in pixels; fewer where the scene has no more.
        """
        own = self.plane
        plane = Plane(
            max(plane.west, own.west),
            max(plane.south, own.south),
            min(plane.east, own.east),
            min(plane.north, own.north),
        )
        if plane.west >= plane.east or plane.south >= plane.north:
            return None
        if self.crs is None:
            window = self._cut(np.array([[plane.west, -plane.north], [plane.east, -plane.south]]))
            picture = self.scene.read(window, fit(window.width, window.height, side))
            left, top, width, height = window
            return _as_rgba(picture), Plane(left, -(top + height), left + width, -top)
        size = self._grid(plane, side)
        xs, ys = np.linspace(plane.west, plane.east, _EDGE), np.linspace(plane.north, plane.south, _EDGE)
        points = self.pixels_of(*(axis.ravel() for axis in np.meshgrid(xs, ys)))
        points = points[np.isfinite(points).all(axis=1)]
        window = self._cut(np.concatenate([points - 2, points + 2])) if len(points) else None
        if window is None:
            return None
        read = self.scene.read(window, fit(window.width, window.height, round(1.3 * max(size))))
        return self._warp(read, window, plane, size), plane

    def surface(self, values: np.ndarray, cell: int, side: int = 1024) -> tuple[np.ndarray, Plane]:
        """Similarities (rows, columns) of cells of the scene on the plane, and the rectangle that they fill."""
        rows, columns = values.shape
        if self.crs is None:
            return values, Plane(0, -rows * cell, columns * cell, 0)
        size = self._grid(self.plane, side)
        made = np.full(size[::-1], np.nan, np.float32)
        reproject(
            values.astype(np.float32), made,
            src_transform=self.scene.transform @ Affine.scale(cell), src_crs=self.scene.crs, src_nodata=np.nan,
            dst_transform=_grid_transform(self.plane, size), dst_crs=self.crs, dst_nodata=np.nan,
            resampling=Resampling.bilinear,
        )  # fmt: skip
        return made, self.plane

    def _grid(self, plane: Plane, side: int) -> tuple[int, int]:
        width, height = plane.east - plane.west, plane.north - plane.south
        step = max(self.pixel, max(width, height) / side)
        return max(1, min(side, round(width / step))), max(1, min(side, round(height / step)))

    def _cut(self, pixels: np.ndarray) -> Window | None:
        low = np.floor(pixels.min(axis=0) + 1e-6)
        high = np.ceil(pixels.max(axis=0) - 1e-6)
        left, top = (int(max(0, value)) for value in low)
        right, bottom = int(min(self.scene.width, high[0])), int(min(self.scene.height, high[1]))
        return Window(left, top, right - left, bottom - top) if right > left and bottom > top else None

    def _warp(self, read: Picture, window: Window, plane: Plane, size: tuple[int, int]) -> Image.Image:
        height, width = read.valid.shape
        steps = Affine.translation(window.left, window.top) @ Affine.scale(window.width / width, window.height / height)
        where = {
            "src_transform": self.scene.transform @ steps, "src_crs": self.scene.crs,
            "dst_transform": _grid_transform(plane, size), "dst_crs": self.crs,
        }  # fmt: skip
        colours, valid = np.zeros((3, *size[::-1]), np.uint8), np.zeros(size[::-1], np.uint8)
        reproject(read.pixels.transpose(2, 0, 1).copy(), colours, resampling=Resampling.bilinear, **where)
        reproject(read.valid.astype(np.uint8) * 255, valid, resampling=Resampling.nearest, **where)
        return Image.fromarray(np.dstack([colours.transpose(1, 2, 0), valid]), "RGBA")


def choose_frame(scene: Scene) -> Frame:
    """The map on which a scene is seen in one piece; see the module's text."""
    if scene.crs is None or scene.transform is None:
        return Frame(scene, None)
    to_degrees = Transformer.from_crs(scene.crs.to_wkt(), DEGREES, always_xy=True)
    columns, rows = _edge_of(scene.width, scene.height)
    east, north = map(np.asarray, to_degrees.transform(*_apply(scene.transform, columns, rows)))
    if not (np.isfinite(east).all() and np.isfinite(north).all()):
        return Frame(scene, None)
    if scene.crs.is_geographic:
        fits = np.abs(north).max() <= MERCATOR_LATITUDE and np.abs(east).max() <= 180
        return Frame(scene, MERCATOR if fits else DEGREES)
    jumps = np.abs(np.diff(np.append(east, east[0]))).max() > 180  # over the date line, or round a pole
    return Frame(scene, None if jumps or np.abs(north).max() > MERCATOR_LATITUDE else MERCATOR)


def _edge_of(width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows of points along a scene's edge, once around."""
    across, down = np.linspace(0, width, _EDGE), np.linspace(0, height, _EDGE)
    columns = np.concatenate([across, np.full(_EDGE, width), across[::-1], np.zeros(_EDGE)])
    rows = np.concatenate([np.zeros(_EDGE), down, np.full(_EDGE, height), down[::-1]])
    return columns, rows


def _apply(transform: Affine, xs: np.ndarray, ys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b, c, d, e, f = transform[:6]
    return a * xs + b * ys + c, d * xs + e * ys + f


def _grid_transform(plane: Plane, size: tuple[int, int]) -> Affine:
    width, height = (plane.east - plane.west) / size[0], (plane.north - plane.south) / size[1]
    return Affine(width, 0, plane.west, 0, -height, plane.north)


def _as_rgba(picture: Picture) -> Image.Image:
    return Image.fromarray(np.dstack([picture.pixels, picture.valid.astype(np.uint8) * 255]), "RGBA")
