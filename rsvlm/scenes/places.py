"""Places that were found, in longitude and latitude, and as GeoJSON or GeoParquet."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import shapely
from pyproj import Transformer
from pyproj.exceptions import ProjError

from rsvlm.files import whole_file, write_text
from rsvlm.scenes.footprints import footprints

if TYPE_CHECKING:
    import geopandas
    import pandas as pd

DIGITS = 9  # decimals of a degree in GeoJSON: a tenth of a millimetre
PLACES, RASTERS = (".geojson", ".json", ".parquet"), (".tif", ".tiff")  # endings of the files that are written
IN_PIXELS = "pixels of the scene: column, row"


def write_places(frame: "geopandas.GeoDataFrame", path: Path | str) -> None:
    """Places as .geojson (RFC 7946: longitude and latitude of WGS 84) or as .parquet (GeoParquet in their own CRS).

    In GeoJSON edges of a projected CRS are given by several points, and what lies over the date line or a pole is cut
    there. Without a CRS the coordinates are pixels, and a property ``coordinates`` of each place says so.

    Raises:
        ValueError: another ending.
    """
    path = check_ending(path, PLACES)
    if path.suffix.lower() == ".parquet":
        with whole_file(path) as scratch:
            frame.to_parquet(scratch, index=False)
        return
    shapes = to_degrees(frame)
    table = frame.drop(columns=frame.geometry.name)
    if frame.crs is None:
        table = table.assign(coordinates=IN_PIXELS)
    places = [
        {
            "type": "Feature",
            "geometry": _as_json(shape),
            "properties": {str(name): _plain(value) for name, value in zip(table.columns, row)},
        }
        for shape, row in zip(shapes, table.itertuples(index=False, name=None))
    ]
    lines = ",\n".join(json.dumps(place, ensure_ascii=False, allow_nan=False) for place in places)
    write_text(path, '{"type": "FeatureCollection", "features": [\n' + lines + "\n]}\n")


def check_ending(path: Path | str, endings: tuple[str, ...]) -> Path:
    """The path. ValueError says which endings are written where it has none of them."""
    path = Path(path)
    if path.suffix.lower() not in endings:
        raise ValueError(f"{path}: what is written here ends in {' or '.join(endings)}")
    return path


def to_degrees(frame: "geopandas.GeoDataFrame") -> list[shapely.Geometry | None]:
    """The geometries in longitude and latitude of WGS 84, cut at the date line; as they are without a CRS.

    Raises:
        ValueError: a CRS that is not the Earth's, or a place beyond the edge of one.
    """
    if frame.crs is None:
        return list(frame.geometry)
    if on_earth(frame.crs) is None:
        raise ValueError(
            f"the CRS {frame.crs.name!r} has no longitude and latitude on Earth, which GeoJSON wants; write .parquet"
        )
    made = footprints(frame.geometry.to_numpy(), frame.crs)
    for shape, given in zip(made, frame.geometry):
        if shape is None and given is not None:
            raise ValueError(f"a place leaves the Earth in its CRS, {given.bounds}: cut it to the scene's ground first")
    return made.tolist()


def add_centres(frame: "geopandas.GeoDataFrame") -> "pd.DataFrame":
    """The table without geometry, with the centres' longitude and latitude where the CRS has them."""
    table, to = frame.drop(columns=frame.geometry.name), on_earth(frame.crs)
    if to is None:
        return table
    centres = shapely.get_coordinates(shapely.centroid(frame.geometry.to_numpy()))
    longitude, latitude = to.transform(*centres.T)
    longitude = (np.asarray(longitude) + 180) % 360 - 180
    return table.assign(longitude=longitude.round(7), latitude=np.round(latitude, 7))


def on_earth(crs: object, target: str = "EPSG:4326") -> Transformer | None:
    """From a CRS to one of the Earth's; None where there is no way: no CRS, another planet, a plan of a building."""
    try:
        return None if crs is None else Transformer.from_crs(crs, target, always_xy=True)
    except ProjError:
        return None


def _as_json(shape: shapely.Geometry | None) -> dict | None:
    """A geometry as GeoJSON; null where there is none."""
    if shape is None:
        return None
    return json.loads(shapely.to_geojson(shapely.transform(shape, lambda points: points.round(DIGITS))))


def _plain(value: object) -> object:
    """A cell of a table as a JSON value; what is missing or not finite as None."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return round(value, DIGITS) if np.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    return None if value != value else value.isoformat() if hasattr(value, "isoformat") else str(value)
