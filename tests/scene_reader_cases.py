"""The readers of scenes, of what is made of them, and of indexes, each with a small file that it reads; see ``reader_cases``."""

from pathlib import Path

import numpy as np
import pandas as pd
from reader_cases import PIXELS, Case, case, picture, write
from scene_case import ColourEncoder, write_raster

from rsvlm.data.rasters.scene import open_scene
from rsvlm.models.index import build_index, load_index
from rsvlm.scenes.archive_embedding import embed_archive, load_archive
from rsvlm.scenes.embedding import embed_scene
from rsvlm.scenes.mosaics import read_selo
from rsvlm.scenes.queries import read_hit
from rsvlm.scenes.stac import read_stac
from rsvlm.scenes.window_files import load_scene_embeddings


def georeferenced(folder: Path) -> Path:
    from rasterio.transform import Affine

    place = {"crs": "EPSG:4326", "transform": Affine(0.1, 0, 10, 0, -0.1, 50)}
    return write_raster(folder / "a.tif", np.moveaxis(PIXELS, -1, 0), **place)


@case
def scene(folder: Path) -> Case:
    file = georeferenced(folder)

    def read() -> None:
        with open_scene(file) as opened:
            opened.read(size=(8, 8))

    return [file], read


@case
def stac(folder: Path) -> Case:
    geometry = {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]]}
    item = {
        "type": "Feature", "stac_version": "1.0.0", "id": "a", "geometry": geometry, "bbox": [0, 0, 1, 1], "links": [],
        "properties": {"datetime": "2024-05-31T10:00:00Z", "eo:cloud_cover": 12.5}, "stac_extensions": [],
        "assets": {"data": {"href": "a.tif", "type": "image/tiff; application=geotiff", "roles": ["data"],
                            "eo:bands": [{"name": "B04", "common_name": "red"}]}},
    }  # fmt: skip
    write(folder / "a.tif", picture("TIFF"))
    file = write(folder / "items.json", {"type": "FeatureCollection", "features": [item, item | {"id": "b"}]})
    catalog = {"type": "Catalog", "stac_version": "1.0.0", "id": "c", "description": "d"}
    catalog |= {"links": [{"rel": "item", "href": "./item.json"}, {"rel": "child", "href": "items.json"}]}
    files = [file, write(folder / "item.json", item), write(folder / "catalog.json", catalog)]

    def read() -> None:
        list(read_stac(files[0]))
        list(read_stac(files[2]))

    return files, read


@case
def hits(folder: Path) -> Case:
    places = [{"rank": rank, "column": 0, "row": 8, "width": 16, "height": 16} for rank in (1, 2)]
    features = [{"type": "Feature", "geometry": None, "properties": place} for place in places]
    files = [write(folder / "h.geojson", {"type": "FeatureCollection", "features": features})]
    files.append(write(folder / "h.csv", pd.DataFrame(places).to_csv(index=False)))
    pd.DataFrame(places).to_parquet(folder / "h.parquet")
    files.append(folder / "h.parquet")
    return files, lambda: [read_hit(file, 2) for file in files]


@case
def selo(folder: Path) -> Case:
    cases = [{"caption": "a river", "jpg_name": "a.jpg", "points": [[[0, 0], [4, 0], [4, 4]]]}] * 2
    file = write(folder / "anno.json", cases)
    return [file], lambda: read_selo(file)


@case
def scene_embeddings(folder: Path) -> Case:
    with open_scene(georeferenced(folder)) as opened:
        embed_scene(ColourEncoder(), opened, folder / "a.parquet", sizes=(8,), log=lambda line: None)
    return [folder / "a.parquet"], lambda: load_scene_embeddings(folder / "a.parquet")


@case
def scene_archive(folder: Path) -> Case:
    out = folder / "out"
    embed_archive(ColourEncoder(), georeferenced(folder), out, sizes=(8,), log=lambda line: None)
    return [out / "scenes.parquet"], lambda: load_archive(out)


@case
def index(folder: Path) -> Case:
    write(folder / "pictures" / "a.png", picture())
    encoder, saved = ColourEncoder(), folder / "index"
    build_index(encoder, folder / "pictures").save(saved)
    return sorted(saved.iterdir()), lambda: load_index(saved, encoder)
