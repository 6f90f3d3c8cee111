"""Where in a scene a text, a picture or another window is found: a surface of similarity, its peaks and its outlines.

``scenes.embedding`` makes what is searched. A surface goes out as GeoTIFF; ``scenes.places`` writes what was found in it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import shapely
from pyproj import Geod, Transformer
from rasterio import Affine, features
from rasterio.crs import CRS

from rsvlm.data.rasters.windows import Window
from rsvlm.data.rasters.writing import new_raster
from rsvlm.models.encoders import DualEncoder
from rsvlm.scenes.places import RASTERS, check_ending, on_earth
from rsvlm.scenes.queries import Query, encode_queries, query_name
from rsvlm.scenes.window_files import GRID, SceneEmbeddings

if TYPE_CHECKING:
    import geopandas

MOST_CELLS = 16_000_000  # of a surface whose cells nobody chose
STRIP = 4_000_000  # cells computed at a time
MOSTLY = 0.5  # share of a window that has data, for it to be a place that is found


@dataclass(frozen=True, eq=False)
class Surface:
    """How similar each place of a scene is to a query.

    Attributes:
        values: (rows, columns) float32, the mean cosine of the windows over a cell; NaN where none lies, and where more
            than half of what they see of the cell has no data.
        cell: side of a cell, pixels of the scene; the last column and row may reach beyond it.
        scores: (n,) float32, the cosine of each window of ``embeddings``.
        query: what was looked for, in words.
    """

    values: np.ndarray
    cell: int
    scores: np.ndarray
    embeddings: SceneEmbeddings
    query: str

    @property
    def transform(self) -> Affine:
        """From cells (column, row) to coordinates of the scene's CRS; to pixels where it has none."""
        return self.embeddings.transform @ Affine.scale(self.cell)

    @property
    def crs(self) -> CRS | None:
        """The scene's."""
        return _crs(self.embeddings)


def search_scene(
    embeddings: SceneEmbeddings,
    query: Query | Sequence[Query],
    encoder: DualEncoder | str | Path | None = None,
    *,
    cell: int | None = None,
) -> Surface | list[Surface]:
    """The surface of similarity of a query over a scene; of a list of queries a list of them.

    A cell's value is the mean over the windows of a level that lie on it, each weighted by how much of the cell it covers,
    and then the plain mean over the levels that have a window there.

    Args:
        query: a text; a picture (a Path, a PIL image, or an array uint8 (H, W) or (H, W, 3)); a vector (D,) of the
            encoder's space; or a Window of the scene, or the row of an earlier hit (``hits.iloc[0]``), for which the
            embedded window that it overlaps most stands (among equals the one of the lowest level). A file that is
            a raster of other than 8-bit red, green and blue or grey (GeoTIFF, COG, JPEG 2000, VRT) is read as the scene was:
            the same bands, the same stretch. ``Without("farmland", "houses")`` leaves out.
        encoder: the one that made the embeddings, loaded or by name; needed for texts and pictures, and taken by the name
            in ``embeddings.meta`` where it is not given.
        cell: side of a cell, pixels; None: half of the smallest step between windows, larger where that would be more
            than MOST_CELLS cells.

    Raises:
        ValueError: no query, a blank text, a vector of another width or not finite, another encoder, a raster that lacks
            the scene's bands, or a cell below 1.
    """
    several = isinstance(query, list | tuple) and not isinstance(query, Window)
    queries = list(query) if several else [query]
    vectors = encode_queries(embeddings, queries, encoder)
    cell = default_cell(embeddings) if cell is None else cell
    if cell < 1 or cell != int(cell):
        raise ValueError(f"cell: a whole number of pixels from 1 is needed; got {cell}")
    scores = (embeddings.vectors @ vectors.T).T.astype(np.float32, order="C")
    values = _spread(embeddings, scores, int(cell))
    names = [query_name(one) for one in queries]
    made = [Surface(*parts, embeddings, name) for *parts, name in zip(values, [int(cell)] * len(names), scores, names)]
    return made if several else made[0]


def default_cell(embeddings: SceneEmbeddings) -> int:
    """Side of a surface's cells, pixels: half of the smallest step between windows, more for a very large scene."""
    meta, own = embeddings.meta, embeddings.meta["scene"]
    step = max(1, round(min(meta["sizes"]) * (1 - meta["overlap"])))
    return max(1, step // 2, int(np.ceil((own["width"] * own["height"] / MOST_CELLS) ** 0.5)))


def find_peaks(
    surface: Surface, k: int = 10, *, overlap: float = 0.2, distance: float = 0.0, threshold: float | None = None
) -> "geopandas.GeoDataFrame":
    """The windows that score highest, none twice: greedy non-maximum suppression over windows of all levels.

    A window is left out where one with a higher score is taken and they share more than ``overlap`` of the smaller of the
    two, or their centres are nearer than ``distance``. Equal scores go by level, top and left. Windows that are mostly
    nodata (valid below MOSTLY) are never taken, also where they were embedded.

    Args:
        k: how many at most.
        distance: in metres on the ground; in pixels without a CRS.
        threshold: only windows that score at least this.

    Returns:
        Columns rank (from 1), score, left, top, width, height, level, valid (share of the window that has data), geometry.

    Raises:
        ValueError: k below 1, or a share or a distance that is none.
    """
    import geopandas

    if k < 1 or not 0 <= overlap <= 1 or not distance >= 0:
        raise ValueError(
            f"k: 1 or more, overlap: a share from 0 to 1, distance: 0 or more are needed; got {k}, {overlap}, {distance}"
        )
    table = surface.embeddings.table
    level, left, top, width, height = (
        table[name].to_numpy(np.float64) for name in ("level", "left", "top", "width", "height")
    )
    alive = np.isfinite(surface.scores) if threshold is None else surface.scores >= threshold
    alive = alive & (table["valid"].to_numpy() >= MOSTLY)
    order = np.lexsort((left, top, level, -surface.scores))
    order = order[alive[order]]
    place = _ground(surface.embeddings, left + width / 2, top + height / 2) if distance else None
    taken = []
    while len(order) and len(taken) < k:
        best, rest = order[0], order[1:]
        taken.append(best)
        x = np.minimum(left[best] + width[best], left[rest] + width[rest]) - np.maximum(left[best], left[rest])
        y = np.minimum(top[best] + height[best], top[rest] + height[rest]) - np.maximum(top[best], top[rest])
        shared = x.clip(0) * y.clip(0)
        keep = shared <= overlap * np.minimum(width[best] * height[best], width[rest] * height[rest])
        if place is not None:
            keep &= place(best, rest) >= distance
        order = rest[keep]
    found = table.iloc[taken]
    columns = {"rank": np.arange(1, len(taken) + 1), "score": surface.scores[taken]}
    columns |= {name: found[name].to_numpy() for name in ("left", "top", "width", "height", "level", "valid")}
    return geopandas.GeoDataFrame(columns, geometry=found.geometry.to_numpy(), crs=table.crs)


def outline(surface: Surface, threshold: float) -> "geopandas.GeoDataFrame":
    """Polygons around the cells whose value is at least ``threshold``, the largest maximum first.

    Cells that touch along a side lie in one polygon.

    Returns:
        Columns mean and max (of the cells' values), area (square metres on the ellipsoid; pixels without a CRS, NaN
        where the CRS is not the Earth's), geometry.
    """
    import geopandas

    mask = surface.values >= threshold  # False for NaN
    own = surface.embeddings.meta["scene"]
    in_pixels = Affine.scale(surface.cell)
    found = features.shapes(mask.astype(np.uint8), mask=mask, connectivity=4, transform=in_pixels)
    shapes = [shapely.geometry.shape(shape) for shape, _ in found]
    if not shapes:
        empty = {"mean": np.zeros(0), "max": np.zeros(0), "area": np.zeros(0)}
        return geopandas.GeoDataFrame(empty, geometry=[], crs=surface.embeddings.table.crs)
    labels = features.rasterize(
        zip(shapes, range(1, len(shapes) + 1)), out_shape=mask.shape, transform=in_pixels, dtype="int32"
    )[mask]
    values = surface.values[mask].astype(np.float64)
    cells = np.bincount(labels, minlength=len(shapes) + 1)[1:]
    highest = np.full(len(shapes) + 1, -np.inf)
    np.maximum.at(highest, labels, values)
    areas = np.bincount(labels, _cell_areas(surface)[mask], minlength=len(shapes) + 1)[1:]
    means = np.bincount(labels, values, minlength=len(shapes) + 1)[1:] / cells
    inside = shapely.box(0, 0, own["width"], own["height"])
    shapes = shapely.transform(
        shapely.intersection(np.array(shapes), inside), partial(_apply, surface.embeddings.transform), interleaved=False
    )
    columns = {"mean": means.astype(np.float32), "max": highest[1:].astype(np.float32), "area": areas}
    made = geopandas.GeoDataFrame(columns, geometry=shapes, crs=surface.embeddings.table.crs)
    return made.sort_values(["max", "area"], ascending=False, kind="stable", ignore_index=True)


def choose_threshold(scores: np.ndarray, relevant: np.ndarray) -> float:
    """The threshold with the best F1: what scores at least this counts as found. Among equals the highest.

    Args:
        scores: (n,) of windows, of validation and not of test.
        relevant: (n,) bool, whether each shows what is looked for.

    Raises:
        ValueError: no window is relevant, or lengths differ.
    """
    scores, relevant = np.asarray(scores, np.float64), np.asarray(relevant, bool)
    if scores.shape != relevant.shape or scores.ndim != 1:
        raise ValueError(f"scores {scores.shape} and relevant {relevant.shape}: two arrays of one length are needed")
    if not np.isfinite(scores).all():
        raise ValueError("scores: some are not finite")
    if not relevant.any():
        raise ValueError("relevant: no window is, so that there is nothing to choose a threshold on")
    order = np.argsort(-scores, kind="stable")
    hits, found = np.cumsum(relevant[order]), np.arange(1, len(scores) + 1)
    f1 = 2 * hits / (found + relevant.sum())
    last = np.append(scores[order][1:] != scores[order][:-1], True)  # of equal scores
    return float(scores[order][last][int(f1[last].argmax())])


def write_surface(surface: Surface, path: Path | str) -> None:
    """The surface as a GeoTIFF: float32, nodata NaN, the scene's CRS; pixels of the scene where it has none."""
    path = check_ending(path, RASTERS)
    rows, columns = surface.values.shape
    options = dict(dtype="float32", count=1, height=rows, width=columns, nodata=np.nan, crs=surface.crs)
    options |= dict(compress="deflate", predictor=3, tiled=True, blockxsize=256, blockysize=256)
    with new_raster(path, transform=surface.transform, **options) as file:
        file.write(surface.values, 1)
        file.set_band_description(1, "cosine")
        file.update_tags(QUERY=surface.query, SCENE=surface.embeddings.meta["scene"]["name"])


def _spread(embeddings: SceneEmbeddings, scores: np.ndarray, cell: int) -> list[np.ndarray]:
    """Values (rows, columns) of each row of scores (queries, n).

    Windows of a level stand in rows and columns, so what lies on a cell is two products of matrices: with the share of
    a cell's height that each row of windows covers, and with the share of its width.
    """
    own = embeddings.meta["scene"]
    rows, columns = -(-own["height"] // cell), -(-own["width"] // cell)
    grids = []
    for _, part in embeddings.table.reset_index(drop=True).groupby(["level", "width", "height"], sort=True):
        tops, row = np.unique(part["top"].to_numpy(), return_inverse=True)
        lefts, column = np.unique(part["left"].to_numpy(), return_inverse=True)
        down = _covered(tops, int(part["height"].iat[0]), rows, cell)
        across = _covered(lefts, int(part["width"].iat[0]), columns, cell)
        place = part.index.to_numpy(), row, column
        grids.append((down, across, place, (len(tops), len(lefts))))

    def laid(grid: tuple, values: np.ndarray | float) -> np.ndarray:
        _, across, (_, row, column), shape = grid
        made = np.zeros(shape)
        made[row, column] = values
        return made @ across

    weights = [laid(grid, 1.0) for grid in grids]
    empty = _without_data(embeddings, rows, columns, cell)
    surfaces = []
    for own_scores in scores.astype(np.float64):
        sums = [laid(grid, own_scores[grid[2][0]]) for grid in grids]
        made = np.full((rows, columns), np.nan, np.float32)
        height = max(1, STRIP // columns)
        for start in range(0, rows, height):
            part = slice(start, start + height)
            total, levels, covered = 0.0, 0, 0.0
            for grid, above, below in zip(grids, sums, weights):
                share = grid[0][:, part].T @ below
                there = share > 1e-9
                total = total + np.divide(grid[0][:, part].T @ above, share, out=np.zeros_like(share), where=there)
                levels, covered = levels + there, covered + share
            there = levels > 0 if empty is None else (levels > 0) & (empty[part] <= covered / 2 + 1e-6)
            np.divide(total, levels, out=made[part], where=there, casting="same_kind")
        surfaces.append(made)
    return surfaces


def _without_data(embeddings: SceneEmbeddings, rows: int, columns: int, cell: int) -> np.ndarray | None:
    """float32 (rows, columns): how much of a cell the windows over it cover without data there; None: nothing."""
    table = embeddings.table
    partial = np.flatnonzero(table["valid"].to_numpy() < 1)
    if not len(partial):
        return None
    empty = np.zeros((rows, columns), np.float32)
    places = table[["left", "top", "width", "height"]].to_numpy()[partial].tolist()
    for (left, top, width, height), data in zip(places, embeddings.data_of(partial)):
        (y, down), (x, across) = _parts_covered(top, height, rows, cell), _parts_covered(left, width, columns, cell)
        empty[y, x] += down.T @ ~data @ across
    return empty


def _parts_covered(start: int, side: int, count: int, cell: int) -> tuple[slice, np.ndarray]:
    """(the cells that a window touches along one axis, (GRID, cells): the share of each that each of its parts covers)."""
    cells = slice(start // cell, min(count, -(-(start + side) // cell)))
    part = side / GRID
    covered = _covered(start - cells.start * cell + np.arange(GRID) * part, part, cells.stop - cells.start, cell)
    return cells, covered


def _covered(starts: np.ndarray, side: float, count: int, cell: int) -> np.ndarray:
    """(windows, cells): the share of each cell that each window covers, along one axis."""
    edges = np.arange(count) * cell
    starts = starts[:, None].astype(np.float64)
    return (np.minimum(starts + side, edges + cell) - np.maximum(starts, edges)).clip(0) / cell


def _crs(embeddings: SceneEmbeddings) -> CRS | None:
    wkt = embeddings.meta["scene"]["crs"]
    return None if wkt is None else CRS.from_wkt(wkt)


def _apply(to: Affine, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return to.a * x + to.b * y + to.c, to.d * x + to.e * y + to.f


def _ground(embeddings: SceneEmbeddings, columns: np.ndarray, rows: np.ndarray) -> Callable[..., np.ndarray]:
    """A function from a place and several, by number, to the distances between them: metres, or pixels without a CRS."""
    if embeddings.table.crs is None:
        return lambda one, many: np.hypot(columns[many] - columns[one], rows[many] - rows[one])
    x, y = _apply(embeddings.transform, columns, rows)
    to = on_earth(embeddings.table.crs)
    if to is None:
        raise ValueError(f"distance: the CRS {embeddings.table.crs.name!r} is not on Earth, where metres are measured")
    longitude, latitude = to.transform(x, y)
    earth = Geod(ellps="WGS84")

    def measure(one: int, many: np.ndarray) -> np.ndarray:
        here = np.full(len(many), longitude[one]), np.full(len(many), latitude[one])
        return np.asarray(earth.inv(*here, longitude[many], latitude[many])[2])

    return measure


def _cell_areas(surface: Surface) -> np.ndarray:
    """(rows, columns) of square metres, or of pixels without a CRS; only what lies on the scene counts.

    In an equal-area projection (cylindrical, EPSG:6933) each cell is a quadrilateral.
    """
    own, (rows, columns) = surface.embeddings.meta["scene"], surface.values.shape
    x = np.minimum(np.arange(columns + 1) * surface.cell, own["width"]).astype(np.float64)
    y = np.minimum(np.arange(rows + 1) * surface.cell, own["height"]).astype(np.float64)
    if surface.embeddings.table.crs is None:
        return np.diff(y)[:, None] * np.diff(x)[None, :]
    to = on_earth(surface.embeddings.table.crs, "EPSG:6933")
    if to is None:
        return np.full((rows, columns), np.nan)
    around = 2 * Transformer.from_crs("EPSG:4326", "EPSG:6933", always_xy=True).transform(180, 0)[0]
    areas = np.empty((rows, columns))
    height = max(1, STRIP // (columns + 1))
    for start in range(0, rows, height):
        grid = np.meshgrid(x, y[start : start + height + 1])
        east, north = to.transform(*_apply(surface.embeddings.transform, *grid))
        corners = (np.s_[:-1, :-1], np.s_[:-1, 1:], np.s_[1:, 1:], np.s_[1:, :-1])
        e, n = [east[corner] - east[corners[0]] for corner in corners], [north[corner] for corner in corners]
        e = [part - around * np.round(part / around) for part in e]  # over the date line
        double = sum(e[i] * n[(i + 1) % 4] - e[(i + 1) % 4] * n[i] for i in range(4))
        areas[start : start + height] = np.abs(double) / 2
    return np.nan_to_num(areas, nan=0.0, posinf=0.0)  # beyond the Earth's edge there is no ground
