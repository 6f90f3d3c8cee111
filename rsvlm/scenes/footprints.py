"""Where on Earth shapes lie: from any coordinate system to longitude and latitude, over the date line and the poles.

Degrees are EPSG:4326 with longitude first, as GeoJSON has them. What crosses the date line becomes a shape of two parts,
and what holds a pole reaches it along the whole date line (RFC 7946, section 3.1.9), so that plain comparisons in the
plane of longitude and latitude give the right answer.
"""

import math
import warnings
from collections.abc import Sequence

import antimeridian
import numpy as np
import pyproj
import shapely

LONGITUDE_LATITUDE = "EPSG:4326"
AT_POLE = 1e-6  # degrees from a pole that count as the pole
# An edge is straight in degrees between points so far apart, at most MOST to a shape's longer side: half a metre aside.
METRES, DEGREES, MOST = 5_000.0, 10.0, 20


def footprints(shapes: Sequence[shapely.Geometry | None], crs: object) -> np.ndarray:
    """(n,) shapes in degrees of polygons in a coordinate system.

    Args:
        shapes: (n,) polygons or multi-polygons; None where there is none.
        crs: anything that pyproj reads, WKT among it.

    Returns:
        A polygon or multi-polygon each; None where part of a shape lies nowhere on Earth, as all do in a coordinate
        system of another planet or of a building.
    """
    shapes = np.asarray(shapes, dtype=object)
    made, there = np.full(len(shapes), None), ~shapely.is_missing(shapes) & ~shapely.is_empty(shapes)
    if not there.any():
        return made
    given = shapely.force_2d(shapes[there])
    bounds = shapely.bounds(given)  # west, south, east, north
    longer = np.maximum(bounds[:, 2] - bounds[:, 0], bounds[:, 3] - bounds[:, 1])
    try:
        system = pyproj.CRS.from_user_input(crs)
        to_degrees = pyproj.Transformer.from_crs(system, LONGITUDE_LATITUDE, always_xy=True)
    except pyproj.exceptions.ProjError:
        return made
    least = DEGREES if system.is_geographic else METRES / system.axis_info[0].unit_conversion_factor
    given = shapely.orient_polygons(shapely.segmentize(given, np.maximum(longer / MOST, least)))
    points = np.column_stack(to_degrees.transform(*shapely.get_coordinates(given).T))
    if system.is_geographic:
        points[:, 1] = np.clip(points[:, 1], -90, 90)  # a raster of cell centres reaches over the poles by half a cell
    somewhere = np.isfinite(points).all(axis=1)
    count = shapely.get_num_coordinates(given)
    known = np.logical_and.reduceat(somewhere, np.concatenate([[0], np.cumsum(count)[:-1]]))
    moved = shapely.set_coordinates(given.copy(), np.where(np.isfinite(points), points, 0))
    owner = np.repeat(np.arange(len(moved)), count)
    for row in np.unique(owner[np.abs(points[:, 1]) > 90 - AT_POLE]) if not system.is_geographic else ():
        parts = [_reaching_pole(part) for part in shapely.get_parts(moved[row])]
        moved[row] = parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)
    west, _, east, _ = shapely.bounds(moved).T
    for row in np.flatnonzero(known & ((east - west > 180) | (west < -180) | (east > 180))):
        if system.is_geographic and east[row] - west[row] >= 360 - 1e-6:
            _, south, _, north = moved[row].bounds
            moved[row] = shapely.box(-180, south, 180, north)
        else:
            inside = to_degrees.transform(*given[row].representative_point().coords[0])
            moved[row] = split_at_date_line(moved[row], shapely.Point(_wrapped(inside[0]), inside[1]))
    moved[~known] = None
    made[there] = shapely.orient_polygons(moved)
    return made


def split_at_date_line(shape: shapely.Geometry, inside: shapely.Point | None = None) -> shapely.Geometry:
    """A shape in degrees whose edges may cross the date line, as a multi-part shape that does not.

    Args:
        inside: a point known to lie in it, which tells what a ring around a pole encloses from the rest of the Earth;
            None: the smaller of the two.
    """
    ways, why = [], None
    for way in (shape, shapely.reverse(shape)):
        try:
            cut = _split(way)
        except ValueError as error:  # this way around it encloses nothing that can be drawn
            why = error
            continue
        ways.append(cut if cut.is_valid else shapely.make_valid(cut))
        if inside is not None and shapely.dwithin(ways[-1], inside, 1e-6):
            return ways[-1]
    if not ways:
        raise ValueError(f"a shape in degrees that cannot be cut at the date line: {why}")
    return min(ways, key=lambda way: way.area)


def area_of(bbox: Sequence[float] | None, geometry: object = None) -> shapely.Geometry | None:
    """The part of the Earth that a search is limited to, in degrees; None for all of it.

    Args:
        bbox: west, south, east, north; west above east crosses the date line.
        geometry: instead a shape, or a table of shapes (GeoSeries, GeoDataFrame), which may have a CRS of its own.

    Raises:
        ValueError: both, or a box that is none.
    """
    if bbox is not None and geometry is not None:
        raise ValueError("bbox and geometry: give one of the two")
    if geometry is not None:
        if hasattr(geometry, "to_crs"):
            shapes = geometry.geometry
            geometry = (shapes if shapes.crs is None else shapes.to_crs(LONGITUDE_LATITUDE)).union_all()
        if not isinstance(geometry, shapely.Geometry) or geometry.is_empty:
            raise ValueError(f"geometry: expected a shape in degrees (shapely) or a table of shapes; is {geometry!r}")
        return geometry
    if bbox is None:
        return None
    try:
        west, south, east, north = map(float, [] if isinstance(bbox, str) else bbox)
    except (TypeError, ValueError) as error:
        raise ValueError(f"bbox: expected four numbers, west, south, east, north in degrees; is {bbox!r}") from error
    if not (abs(west) <= 180 and abs(east) <= 180 and -90 <= south <= north <= 90):
        raise ValueError(
            f"bbox: {west:g}, {south:g}, {east:g}, {north:g}: expected west, south, east, north in degrees, south not above "
            "north; west above east crosses the date line"
        )
    if west <= east:
        return shapely.box(west, south, east, north)
    return shapely.union_all([shapely.box(west, south, 180, north), shapely.box(-180, south, east, north)])


def meets(shapes: np.ndarray, area: shapely.Geometry) -> np.ndarray:
    """(n,) bool: which of (n,) shapes in degrees share more than an edge with an area; none where there is no shape."""
    shapely.prepare(area)
    shapes = np.asarray(shapes, dtype=object)
    return shapely.intersects(shapes, area) & ~shapely.touches(shapes, area)


def _split(shape: shapely.Geometry) -> shapely.Geometry:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", antimeridian.FixWindingWarning)
        # Edges were cut short before, or are meant straight in degrees: no great circles.
        fixed = antimeridian.fix_shape(shape, fix_winding=False, great_circle=False)
    return shapely.geometry.shape(fixed)


def _reaching_pole(polygon: shapely.Polygon) -> shapely.Polygon:
    """A polygon in degrees that has a pole for a corner, with the pole at the longitudes of the corners beside it."""
    ring = shapely.get_coordinates(polygon.exterior)[:-1]
    made = []
    for before, own, after in zip(np.roll(ring, 1, axis=0), ring, np.roll(ring, -1, axis=0)):
        at_pole = abs(own[1]) > 90 - AT_POLE
        made += [(before[0], own[1]), (after[0], own[1])] if at_pole else [tuple(own)]
    return shapely.Polygon(made, polygon.interiors)


def _wrapped(longitude: float) -> float:
    return math.remainder(longitude, 360) if math.isfinite(longitude) else longitude
