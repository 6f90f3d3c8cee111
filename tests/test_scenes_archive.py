"""Archives of scenes: folders and STAC on disk, their footprints, filters, and a search across them."""

import json
import math
import warnings
from datetime import UTC, datetime
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import pyproj
import pystac
import pytest
import rasterio
import shapely
import torch
from rasterio import Affine
from torch import nn
from typer.testing import CliRunner

from rsvlm.cli import app, main
from rsvlm.data.moments import moment
from rsvlm.data.rasters.files import SceneError
from rsvlm.data.rasters.windows import Window
from rsvlm.models.encoders import DualEncoder, Preprocessing
from rsvlm.scenes import archive_embedding as module
from rsvlm.scenes.archive import BAND_NAMES, COLUMNS, open_archive
from rsvlm.scenes.archive_embedding import embed_archive, load_archive
from rsvlm.scenes.archive_search import rank_scenes, search_archive
from rsvlm.scenes.footprints import area_of, footprints, meets, split_at_date_line
from rsvlm.scenes.places import write_places

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "grey": (120, 120, 120)}
GEOTIFF = pystac.MediaType.GEOTIFF
SMALL = {"sizes": (16,), "overlap": 0.5, "batch_size": 8, "precision": "fp32", "log": lambda line: None}


class MeanColour(DualEncoder):
    """An encoder that knows a picture's mean colour, and texts that are the name of one."""

    def __init__(self, shift: float = 0.0):
        super().__init__("mean-colour", Preprocessing(8, (128, 128, 128), (128, 128, 128)), 3, 3)
        self.logit_scale = nn.Parameter(torch.tensor(shift))

    def image_features(self, pixel_values, grid=0):
        return pixel_values.float().mean((2, 3)), None

    def project_images(self, pooled):
        return pooled

    def text_features(self, texts):
        wanted = [COLOURS[text.lower().strip(".")] for text in texts]
        return (torch.tensor(wanted, dtype=torch.float32) - 128) / 128

    def image_blocks(self):
        raise NotImplementedError

    def _save_into(self, folder):
        raise NotImplementedError


def raster(
    path: Path, *, crs="EPSG:32633", left=500_000, top=5_000_000, metres=10, size=(64, 48), fill="grey", patch=None
):
    """A GeoTIFF of one colour, with a square ``patch`` of another: (colour, left, top, side)."""
    width, height = size
    pixels = np.empty((3, height, width), np.uint8)
    pixels[:] = np.array(COLOURS[fill])[:, None, None]
    if patch:
        colour, x, y, side = patch
        pixels[:, y : y + side, x : x + side] = np.array(COLOURS[colour])[:, None, None]
    path.parent.mkdir(parents=True, exist_ok=True)
    place = {"crs": crs, "transform": Affine(metres, 0, left, 0, -metres, top)} if crs else {}
    options = dict(driver="GTiff", width=width, height=height, count=3, dtype="uint8", photometric="RGB")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", **options, **place) as file:
            file.write(pixels)
    return path


def item(
    name="a", href="a.tif", *, when=datetime(2024, 5, 31, 10, tzinfo=UTC), geometry=None, assets=None, **properties
):
    made = pystac.Item(name, geometry, None, when, properties)
    for key, asset in (assets or {"data": pystac.Asset(href, media_type=GEOTIFF, roles=["data"])}).items():
        made.add_asset(key, asset)
    return made


def document(path: Path, *items: pystac.Item) -> Path:
    """An Item's file, or an ItemCollection's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = items[0].to_dict(include_self_link=False) if len(items) == 1 else pystac.ItemCollection(items).to_dict()
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


# ---- where shapes lie


@pytest.mark.parametrize(
    "crs, box",
    [
        ("EPSG:32633", (400_000, 5_000_000, 500_000, 5_100_000)),
        ("EPSG:32660", (700_000, 1_000_000, 950_000, 1_200_000)),  # over the date line
        ("EPSG:32601", (100_000, -500_000, 300_000, 500_000)),  # over it from the other side, and the equator
        ("EPSG:3031", (-1e6, -1.1e6, 1.2e6, 1e6)),  # holds the South Pole
        ("EPSG:3413", (-1e5, -2e5, 1e6, 1e6)),  # holds the North Pole, near its edge
        ("EPSG:3413", (-1e6, 2e5, 1e6, 1e6)),  # beside the pole, over the date line
        ("EPSG:3031", (0, 0, 1e6, 1e6)),  # the pole is a corner
        ("EPSG:4326", (170, -10, 190, 10)),
        ("EPSG:4326", (-200, -30, -100, 10)),
        ("EPSG:4326", (0, -90.1, 360, 90.1)),  # the whole Earth, by longitudes from 0
        ("EPSG:4326", (-180, -90, 180, 90)),
        ("EPSG:3857", (-20037508.34, -1e7, 20037508.34, 1e7)),
    ],
)
def test_a_footprint_holds_the_points_that_the_raster_holds_and_no_others(crs, box):
    shape = shapely.box(*box)
    found = footprints([shape, shape], crs)[1]
    assert found.is_valid and shapely.box(-180, -90, 180, 90).covers(found)
    generator = np.random.default_rng(0)
    boxes = [part.buffer(0.5).bounds for part in getattr(found, "geoms", [found])] + [(-180, -89.9, 180, 89.9)]
    points = [generator.uniform((west, south), (east, north), (2000, 2)) for west, south, east, north in boxes]
    longitude, latitude = np.clip(np.concatenate(points), (-180, -90), (180, 90)).T
    to = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    inside = np.zeros(len(longitude), bool)
    for turn in (-360, 0, 360) if crs == "EPSG:4326" else (0,):
        x, y = to.transform(longitude + turn, latitude)
        inside |= shapely.contains_xy(shape, x, y)
    points = shapely.points(longitude, latitude)
    sure = shapely.distance(found.boundary, points) > 0.05
    back = shapely.contains(found, points)
    assert inside.sum() > 500 and (sure & inside).any()
    assert not (sure & (inside != back)).any()


def test_a_shape_that_lies_nowhere_on_earth_has_no_footprint_and_the_others_keep_theirs():
    half_the_earth = "+proj=ortho +lat_0=0 +lon_0=0"
    found = footprints([shapely.box(-9e6, -9e6, 9e6, 9e6), shapely.box(-1e6, -1e6, 1e6, 1e6)], half_the_earth)
    assert found[0] is None and found[1].contains(shapely.Point(0, 0))
    assert len(footprints([], "EPSG:4326")) == 0


def test_a_ring_over_the_date_line_is_cut_however_it_winds():
    ring = shapely.Polygon([(175, -20), (-175, -20), (-175, -10), (175, -10)])
    for one in (ring, shapely.reverse(ring)):
        cut = split_at_date_line(one)
        assert cut.equals(shapely.union(shapely.box(175, -20, 180, -10), shapely.box(-180, -20, -175, -10)))


def test_boxes_that_are_none_are_told():
    for wrong in ([1, 2, 3], "1234", [0, 10, 5, 5], [0, 0, 200, 5], [0, -91, 1, 1], [0, 0, math.nan, 1]):
        with pytest.raises(ValueError, match="bbox"):
            area_of(wrong)
    with pytest.raises(ValueError, match="one of the two"):
        area_of((0, 0, 1, 1), shapely.Point(0, 0))
    with pytest.raises(ValueError, match="geometry"):
        area_of(None, "here")


def test_times_are_utc_and_an_end_is_the_end_of_its_day_month_or_year():
    assert moment("2024-05") == pd.Timestamp("2024-05-01", tz="UTC")
    assert moment("2024-05", last=True) > pd.Timestamp("2024-05-31T23:59:59", tz="UTC")
    assert moment("2024", last=True) < pd.Timestamp("2025-01-01", tz="UTC")
    assert moment("2024-05-31T12:00:00+02:00", last=True) == pd.Timestamp("2024-05-31T10:00", tz="UTC")
    assert moment(datetime(2024, 5, 31).date(), last=True) > moment("2024-05-31T23:59")
    for wrong in ("soon", "", None, 7.5j):
        with pytest.raises(ValueError, match="is no date"):
            moment(wrong)


# ---- folders and lists


def test_a_folder_lists_its_rasters_deeper_down_too_and_no_sidecars(tmp_path):
    raster(tmp_path / "north" / "a.tif")
    raster(tmp_path / "south" / "a.tif", crs="EPSG:32733", top=8_000_000)
    raster(tmp_path / "b.TIF", crs=None)
    with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(tmp_path / "b.TIF", "r+") as file:
        file.build_overviews([2, 4])
    assert (tmp_path / "b.TIF.ovr").stat().st_size
    (tmp_path / "b.TIF.aux.xml").write_text("<PAMDataset/>")
    for name in (".hidden.tif", ".trash/c.tif", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with rasterio.open(tmp_path / "north" / "a.tif", "r+") as file:
        file.update_tags(TIFFTAG_DATETIME="2023:01:02 03:04:05")
    found = open_archive(tmp_path)
    frame = found.scenes.set_index("scene")
    assert list(frame.index) == ["b", "north/a", "south/a"]  # one name for each: as much of the path as it takes
    assert frame["crs"].tolist()[1:] == ["EPSG:32633", "EPSG:32733"] and frame["crs"].isna()["b"]
    assert found.scenes.crs == "EPSG:4326" and frame.geometry.isna().tolist() == [True, False, False]
    assert frame.loc["north/a", "date"] == pd.Timestamp("2023-01-02T03:04:05Z")
    assert frame.loc["north/a", ["width", "height"]].tolist() == [64, 48]
    assert frame.loc["north/a", "ground_size"] == pytest.approx(10, rel=0.01)
    west, south, east, north = frame.geometry["north/a"].bounds
    assert west == pytest.approx(15, abs=1e-6) and north == pytest.approx(45.15, abs=0.01) and east > west
    assert found.notes == ("1 scene of 3 without a place on Earth: no coordinate system, or none of the Earth's",)
    assert found.count() == {
        "scenes": 3, "skipped": 0, "without_place": 1, "without_date": 2, "crs EPSG:32633": 1, "crs EPSG:32733": 1
    }  # fmt: skip
    with found.open("south/a") as scene:
        assert scene.name == "south/a" and scene.path == tmp_path / "south" / "a.tif"


def test_a_list_and_a_single_raster_are_archives_too(tmp_path):
    a, b = raster(tmp_path / "x" / "a.tif"), raster(tmp_path / "y" / "a.tif")
    assert open_archive([a, str(b)]).scenes["scene"].tolist() == ["x/a", "y/a"]
    assert open_archive(a).scenes["path"].tolist() == [str(a)]
    with pytest.raises(SceneError, match="2 times"):
        open_archive([a, a])
    with pytest.raises(SceneError, match="empty list"):
        open_archive([])
    with pytest.raises(ValueError, match="asset.*STAC"):
        open_archive([a], asset="data")
    with pytest.raises(FileNotFoundError, match="nothing.tif"):
        open_archive([a, tmp_path / "nothing.tif"])


def test_places_without_rasters_and_broken_rasters_are_told_or_skipped_and_counted(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        open_archive(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no raster"):
        open_archive(tmp_path / "empty")
    raster(tmp_path / "all" / "good.tif")
    (tmp_path / "all" / "bad.tif").write_bytes(b"II*\0 no more")
    with pytest.raises(SceneError, match="bad.tif"):
        open_archive(tmp_path / "all")
    found = open_archive(tmp_path / "all", missing="skip")
    assert found.scenes["scene"].tolist() == ["good"]
    assert [name for name, _ in found.skipped] == ["bad"] and "bad.tif" in found.skipped[0][1]
    (tmp_path / "all" / "good.tif").unlink()
    found = open_archive(tmp_path / "all", missing="skip")
    assert len(found) == 0 and found.count()["skipped"] == 1 and len(found.filter((0, 0, 1, 1), start="2024")) == 0
    with pytest.raises(SceneError, match="no scene to embed"):
        embed_archive(MeanColour(), found, tmp_path / "out")
    with pytest.raises(ValueError, match="neither 'raise' nor 'skip'"):
        open_archive(tmp_path / "all", missing="keep")


@pytest.mark.parametrize("crs", ['LOCAL_CS["plan",UNIT["metre",1]]', "IAU_2015:30100"])
def test_scenes_of_a_building_or_the_moon_are_listed_without_a_place(tmp_path, crs):
    raster(tmp_path / "a.tif", crs=crs, left=10, top=40, metres=0.001)
    raster(tmp_path / "b.tif")
    found = open_archive(tmp_path)
    assert found.scenes.geometry.isna().tolist() == [True, False] and found.scenes["crs"].notna().all()
    made = embed_archive(MeanColour(), found, tmp_path / "out", **SMALL)
    hits = search_archive(made, "grey", MeanColour(), k=100)
    assert hits.geometry.isna().sum() == (hits["scene"] == "a").sum() > 0 < hits.geometry.notna().sum()
    assert set(search_archive(made, "grey", MeanColour(), bbox=(0, 0, 90, 90))["scene"]) == {"b"}


# ---- STAC


def test_an_items_metadata_becomes_columns(tmp_path):
    raster(tmp_path / "images" / "a.tif")
    properties = {
        "eo:cloud_cover": 12.5, "platform": "sentinel-2a", "gsd": 10, "quality": True, "path": "mine",
        "instruments": ["msi"], "start_datetime": "2024-05-31T09:00:00Z", "end_datetime": "2024-06-02T00:00:00Z",
    }  # fmt: skip
    made = item("one", "./images/a.tif", when=None, **properties)
    made.collection_id = "s2"
    frame = open_archive(document(tmp_path / "item.json", made)).scenes
    row = frame.iloc[0]
    assert list(frame.columns[:8]) == list(COLUMNS)
    assert row["scene"] == "one" and row["path"] == str(tmp_path / "images" / "a.tif")
    assert row["date"] == pd.Timestamp("2024-05-31T09:00Z") and row["end_datetime"] == pd.Timestamp(
        "2024-06-02", tz="UTC"
    )
    assert (row["cloud_cover"], row["platform"], row["gsd"], row["quality"]) == (12.5, "sentinel-2a", 10, True)
    assert row["item:path"] == "mine" and row["collection"] == "s2" and "instruments" not in frame


def test_two_coordinate_systems_the_date_line_and_a_pole_in_one_collection(tmp_path):
    raster(tmp_path / "alps.tif", crs="EPSG:32632")
    raster(tmp_path / "fiji.tif", crs="EPSG:32760", left=800_000, top=8_000_000, metres=5_000)
    raster(tmp_path / "pole.tif", crs="EPSG:3031", left=-320_000, top=240_000, metres=10_000)
    wrong = shapely.geometry.mapping(shapely.box(-180, -90, 180, -87))  # true
    line = shapely.geometry.mapping(shapely.Polygon([(177, -20), (-178, -20), (-178, -18), (177, -18)]))  # not cut
    items = [
        item("alps", "alps.tif"),
        item("fiji", "fiji.tif", geometry=line),
        item("pole", "pole.tif", geometry=wrong),
    ]
    for one in items[1:]:
        one.bbox = list(shapely.geometry.shape(one.geometry).bounds)
    frame = open_archive(document(tmp_path / "all.json", *items)).scenes.set_index("scene")
    assert frame["crs"].tolist() == ["EPSG:32632", "EPSG:32760", "EPSG:3031"]
    fiji, pole = frame.geometry["fiji"], frame.geometry["pole"]
    assert fiji.geom_type == "MultiPolygon" and fiji.bounds[0] == -180 and fiji.bounds[2] == 180 and fiji.area < 20
    assert pole.covers(shapely.Point(17, -89.9)) and pole.bounds[0] == -180 and pole.bounds[3] < -85
    archive = open_archive(tmp_path / "all.json")

    def names(*box):
        return archive.filter(box).scenes["scene"].tolist()

    assert names(179, -25, -179, -15) == ["fiji"] == names(-180, -25, -179.5, -15)
    assert names(-179, -25, 179, -15) == ["fiji"]  # all but a strip of two degrees: its sides count, too
    assert names(-100, -25, 100, -15) == []
    assert names(-180, -90, 180, -89) == ["pole"] == names(100, -90, 101, -89.5)
    assert names(8, 44, 10, 46) == ["alps"]


def test_the_items_geometry_counts_where_it_is_not_elsewhere(tmp_path):
    raster(tmp_path / "a.tif")  # from 15 E, 45.153 N on
    part = shapely.box(15.001, 45.15, 15.003, 45.151)
    for geometry, right in ((part, part), (shapely.box(50, 0, 51, 1), None)):
        made = item(geometry=shapely.geometry.mapping(geometry))
        made.bbox = list(geometry.bounds)
        archive = open_archive(document(tmp_path / "a.json", made))
        assert any("elsewhere than the item says" in note for note in archive.notes) == (right is None)
        found = archive.scenes.geometry[0]
        assert found.equals(right) if right else found.bounds[0] == pytest.approx(15, abs=1e-6)


def test_a_picture_is_chosen_by_key_role_or_type(tmp_path):
    raster(tmp_path / "a.tif")
    (tmp_path / "a.jp2").write_bytes((tmp_path / "a.tif").read_bytes())

    def chosen(assets, **how):
        return Path(open_archive(document(tmp_path / "a.json", item(assets=assets)), **how).scenes["path"][0]).name

    def asset(href="a.tif", kind=GEOTIFF, *roles):
        return pystac.Asset(href, media_type=kind, roles=list(roles) or None)

    thumbnail = asset("t.png", "image/png", "thumbnail")
    assert chosen({"thumbnail": thumbnail, "image": asset()}) == "a.tif"
    assert (
        chosen({"one": asset("b.tif", pystac.MediaType.COG, "data"), "tci": asset("a.tif", GEOTIFF, "visual")})
        == "a.tif"
    )
    assert chosen({"one": asset("a.tif", None)}) == "a.tif"
    assert (
        chosen({"B04": asset("b.tif", GEOTIFF, "data"), "B03": asset("a.tif", GEOTIFF, "data")}, asset="B03") == "a.tif"
    )
    both = {"B04": asset("b.tif", GEOTIFF, "data"), "B03": asset("a.tif", GEOTIFF, "data"), "thumbnail": thumbnail}
    with pytest.raises(SceneError, match="'B04', 'B03'; give one: asset='B04'.*'thumbnail'"):
        chosen(both)
    with pytest.raises(SceneError, match="id 'a'.*no asset 'visual'; it has 'B04', 'B03', 'thumbnail'"):
        chosen(both, asset="visual")
    with pytest.raises(SceneError, match="no asset is a GeoTIFF.*'thumbnail'"):
        chosen({"thumbnail": thumbnail})


@pytest.mark.parametrize(
    "href, why",
    [
        ("nothing.tif", "no file"),
        ("../../etc/x.tif", "leads out of"),
        ("images/../../secret.tif", "leads out of"),
        ("..\\secret.tif", "leads out of"),
        ("/etc/x.tif", "leads out of"),
        ("file:///etc/x.tif", "leads out of"),
        ("file://elsewhere/x.tif", "another machine"),
        ("/vsizip/x.zip/a.tif", "leads out of"),
        ("/vsicurl/http://127.0.0.1:9/a.tif", "leads out of"),
        ("zip://x.zip!a.tif", "not read"),
        ("http://127.0.0.1:9/a.tif", "lies on a server"),
        ("s3://bucket/a.tif", "lies on a server"),
        ("\0", "no link"),
    ],
)
def test_assets_that_are_missing_climb_out_or_lie_on_a_server(tmp_path, href, why):
    raster(tmp_path / "secret.tif")
    raster(tmp_path / "inside" / "good.tif")
    bad = item("bad")
    bad.assets["data"].href = href
    path = document(tmp_path / "inside" / "all.json", item("good", "good.tif"), bad)
    with pytest.raises(SceneError, match=f"(?s)all.json: item 2, id 'bad': asset 'data': .*{why}.*missing='skip'"):
        open_archive(path)
    found = open_archive(path, missing="skip")
    assert found.scenes["scene"].tolist() == ["good"] and found.count()["skipped"] == 1
    assert found.skipped[0][0] == "bad" and why in found.skipped[0][1]


def test_absolute_links_inside_the_folder_and_links_of_the_file_system_are_followed(tmp_path):
    inside = tmp_path / "inside"
    real = raster(tmp_path / "elsewhere" / "a.tif")
    inside.mkdir()
    (inside / "a.tif").symlink_to(real)
    for href in (str(inside / "a.tif"), (inside / "a.tif").as_uri(), "./a.tif"):
        assert open_archive(document(inside / "a.json", item(href=href))).scenes["path"].tolist() == [
            str(inside / "a.tif")
        ]


def test_scenes_on_a_server_are_listed_where_asked_for_and_not_opened(tmp_path):
    place = shapely.geometry.mapping(shapely.box(9, 45, 10, 46))
    told = {"proj:code": "EPSG:32632", "gsd": 10}
    made = item(href="https://example.org/a.tif", geometry=place, **told)
    made.bbox = [9, 45, 10, 46]
    found = open_archive(document(tmp_path / "a.json", made), online=True)
    row = found.scenes.iloc[0]
    assert (row["path"], row["crs"], row["ground_size"]) == ("https://example.org/a.tif", "EPSG:32632", 10)
    assert len(found.filter((9.5, 45.5, 12, 46))) == 1 and "on a server" in found.notes[0]
    with pytest.raises(SceneError, match="fetch it"):
        found.open("a")
    with pytest.raises(SceneError, match="1 of 1 scenes"):
        embed_archive(MeanColour(), found, tmp_path / "out", log=print)


@pytest.mark.parametrize(
    "content, why",
    [
        ("{", "not valid JSON"),
        ("[]", "no STAC document"),
        ('{"type": "Polygon"}', "no STAC document"),
        ('{"type": "FeatureCollection"}', "'features' is no list"),
        ('{"type": "FeatureCollection", "features": []}', "no scenes"),
        ('{"type": "FeatureCollection", "features": [{"type": "Feature", "id": "x"}]}', "item 1, id 'x': no STAC item"),
        ('{"type": "FeatureCollection", "features": [7]}', "item 1: no STAC item"),
        ('{"type": "Catalog"}', "no STAC Catalog"),
        ('{"type": "Catalog", "id": "c", "description": "", "stac_version": "1.0.0", "links": []}', "no scenes"),
        (
            '{"type": "Catalog", "id": "c", "description": "", "stac_version": "1.0.0", "links": [{"rel": "item"}]}',
            "no STAC",
        ),
    ],
)
def test_documents_that_are_no_stac_are_told(tmp_path, content, why):
    path = tmp_path / "all.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=f"all.json.*{why}"):
        open_archive(path)


def damage(made: dict, where: str, value: object) -> dict:
    *way, last = where.split("/")
    inner = made
    for key in way:
        inner = inner[key]
    inner[last] = value
    return made


@pytest.mark.parametrize(
    "where, value",
    [
        ("id", None), ("id", " "), ("properties", None), ("properties/datetime", "soon"), ("assets", [1]), ("assets/data", {}),
        ("geometry", "x"), ("geometry", {"type": "Polygon"}), ("geometry", {"type": "Polygon", "coordinates": [[0, 1]]}),
        ("geometry", {"type": "Point", "coordinates": [math.inf, 0]}), ("properties/eo:cloud_cover", "many"), ("links", 3),
        ("properties/end_datetime", "later"), ("assets/data/type", 5), ("assets/data/roles", [["data"]]), ("assets/data/roles", 1), ("properties/eo:cloud_cover", None),
    ],
)  # fmt: skip
def test_an_item_with_a_defect_is_named_with_its_document(tmp_path, where, value):
    raster(tmp_path / "a.tif")
    content = damage(item().to_dict(include_self_link=False), where, value)
    (tmp_path / "a.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(SceneError, match="a.json.*no STAC item that can be read"):
        open_archive(tmp_path / "a.json")


def test_ids_that_repeat_take_their_collection_or_are_an_error(tmp_path):
    raster(tmp_path / "a.tif")
    one, other = item("same", "a.tif"), item("same", "a.tif")
    with pytest.raises(SceneError, match="'.*same' is there 2 times.*item 1.*item 2"):
        open_archive(document(tmp_path / "all.json", one, other))
    one.collection_id, other.collection_id = "s2", "l8"
    assert open_archive(document(tmp_path / "all.json", one, other)).scenes["scene"].tolist() == ["s2/same", "l8/same"]


def test_a_catalog_is_followed_to_its_items_and_not_in_circles(tmp_path):
    raster(tmp_path / "data" / "a.tif")
    raster(tmp_path / "data" / "b.tif")
    catalog = pystac.Catalog("top", "all")
    extent = pystac.Extent(pystac.SpatialExtent([[-180, -90, 180, 90]]), pystac.TemporalExtent([[None, None]]))
    inner = pystac.Collection("inner", "some", extent)
    catalog.add_child(inner)
    for name in "ab":
        inner.add_item(item(name, str(tmp_path / "data" / f"{name}.tif")))
    catalog.normalize_and_save(str(tmp_path / "stac"), pystac.CatalogType.SELF_CONTAINED)
    path = tmp_path / "stac" / "catalog.json"
    with pytest.raises(SceneError, match="leads out of"):
        open_archive(path)
    (tmp_path / "data").rename(tmp_path / "stac" / "data")
    for one in (tmp_path / "stac" / "inner").rglob("[ab].json"):
        one.write_text(one.read_text().replace(f"{tmp_path}/data", "../../data"))
    assert open_archive(path).scenes["scene"].tolist() == ["a", "b"]
    assert set(open_archive(path).scenes["collection"]) == {"inner"}
    content = json.loads(path.read_text())
    for href in ("./catalog.json", "http://127.0.0.1:9/more.json", "../outside.json", "./gone.json"):
        content["links"].append({"rel": "child", "href": href})
    path.write_text(json.dumps(content))
    with pytest.raises(SceneError, match="link 'http.*lies on a server"):
        open_archive(path)
    found = open_archive(path, missing="skip")
    assert found.scenes["scene"].tolist() == ["a", "b"]
    assert sorted(name for name, _ in found.skipped) == [
        "../outside.json", "./gone.json", "http://127.0.0.1:9/more.json"
    ]  # fmt: skip


def test_bands_are_chosen_by_the_items_names(tmp_path):
    path = tmp_path / "a.tif"
    options = dict(
        driver="GTiff", width=8, height=8, count=4, dtype="uint16", crs="EPSG:32633", photometric="minisblack"
    )
    with rasterio.open(path, "w", transform=Affine(10, 0, 500_000, 0, -10, 5_000_000), **options) as file:
        file.write(np.arange(4 * 64, dtype=np.uint16).reshape(4, 8, 8))
    told = [
        {"name": "B02", "common_name": "blue"}, {"name": "B03", "common_name": "green"},
        {"name": "B04", "common_name": "red"}, {"name": "B08", "common_name": "nir"},
    ]  # fmt: skip
    for field in ("eo:bands", "bands"):
        asset = pystac.Asset("a.tif", media_type=GEOTIFF, roles=["data"], extra_fields={field: told})
        archive = open_archive(document(tmp_path / "a.json", item(assets={"data": asset})))
        assert archive.open("a").bands == (3, 2, 1)
        assert archive.open("a", bands=["B8", "red", "B03"]).bands == (4, 3, 2)
        assert archive.open("a", bands="sentinel-2").bands == (3, 2, 1)
        assert archive.open("a", bands=[1, 1, 2]).bands == (1, 1, 2)
        assert archive.scenes[BAND_NAMES][0] == "B02 blue; B03 green; B04 red; B08 nir"
        with pytest.raises(SceneError, match="violet"):
            archive.open("a", bands=["violet"])
        with pytest.raises(SceneError, match="no preset is called 'sentinel'"):
            archive.open("a", bands="sentinel")
    with pytest.raises(SceneError, match="unknown scene 'A'"):
        archive.open("A")


# ---- filters


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive")
    raster(folder / "east.tif", crs="EPSG:32633", patch=("red", 16, 16, 32))
    raster(folder / "west.tif", crs="EPSG:32631", left=400_000, patch=("blue", 0, 0, 32), size=(96, 48))
    raster(folder / "south.tif", crs="EPSG:32733", top=8_000_000, fill="green")
    raster(folder / "nowhere.tif", crs=None, patch=("red", 0, 0, 16))
    week = {"start_datetime": "2024-06-01T00:00:00Z", "end_datetime": "2024-06-07T00:00:00Z"}
    items = [
        item("east", "east.tif", **{"eo:cloud_cover": 10.0, "platform": "one", "s2:tile": "33T"}),
        item("west", "west.tif", when=None, **week, **{"eo:cloud_cover": 40, "platform": "two", "s2:tile": "31T"}),
        item("south", "south.tif", when=datetime(2023, 1, 1, tzinfo=UTC), platform="one"),
        item("nowhere", "nowhere.tif", when=datetime(2020, 1, 1, tzinfo=UTC), **{"s2:tile": "33T"}),
    ]
    return document(folder / "all.json", *items)


@pytest.mark.parametrize(
    "how, right",
    [
        ({}, "east west south nowhere"),
        ({"bbox": (14, 44, 16, 46)}, "east"),
        ({"bbox": (0, 40, 20, 50)}, "east west"),
        ({"bbox": (10, 40, 5, 50)}, "east west"),  # all around the Earth but for 5 to 10 E
        ({"bbox": (170, -90, -170, 90)}, ""),
        ({"geometry": shapely.Point(15.0001, 45.15)}, "east"),
        ({"geometry": geopandas.GeoSeries([shapely.box(4.9e5, 4.99e6, 5.1e5, 5.01e6)], crs="EPSG:32633")}, "east"),
        ({"start": "2024-05-31"}, "east west"),
        ({"start": "2024-05-31T10:00:01Z"}, "west"),
        ({"start": "2024-06-05", "end": "2024-06-06"}, "west"),
        ({"end": "2024-05-31"}, "east south nowhere"),
        ({"end": "2024-05-30"}, "south nowhere"),
        ({"start": "2023", "end": "2023"}, "south"),
        ({"cloud_cover_below": 40}, "east"),
        ({"cloud_cover_below": 40.1}, "east west"),
        ({"platform": "one"}, "east south"),
        ({"platform": ["one", "two"], "s2:tile": "31T"}, "west"),
        ({"scene": "east", "crs": "EPSG:32633"}, "east"),
        ({"platform": "three"}, ""),
        ({"bbox": (14, -60, 16, 60), "platform": "one", "end": "2024-01"}, "south"),
    ],
)
def test_filters_with_known_answers(collection, how, right):
    archive = open_archive(collection)
    found = archive.filter(**how)
    assert found.scenes["scene"].tolist() == right.split()
    assert len(archive) == 4 and list(found.scenes.index) == list(range(len(found)))
    assert found.scenes.crs == "EPSG:4326"


def test_filters_tell_wrong_names_and_what_is_unknown(collection, tmp_path):
    archive = open_archive(collection)
    with pytest.raises(SceneError, match="unknown property 'platfrom'; did you mean 'platform'?"):
        archive.filter(platfrom="one")
    with pytest.raises(SceneError, match="did you mean 'cloud_cover_below'"):
        archive.filter(clouds_below=3)
    with pytest.raises(ValueError, match="start: 2024 is later than end: 2023"):
        archive.filter(start="2024", end="2023")
    with pytest.raises(ValueError, match="percent above 0"):
        archive.filter(cloud_cover_below=0)
    assert archive.filter(cloud_cover_below=50).notes[-1] == "2 scenes of 4 without a cloud cover left out"
    assert archive.filter((0, 0, 1, 1)).notes[-1] == "1 scene of 4 without a place left out"
    raster(tmp_path / "plain.tif", crs=None)
    plain = open_archive(tmp_path)
    for how, what in (
        ({"bbox": (0, 0, 1, 1)}, "place"),
        ({"start": "2024"}, "date"),
        ({"cloud_cover_below": 5}, "cloud"),
    ):
        with pytest.raises(SceneError, match=f"no scene of the archive has a {what}"):
            plain.filter(**how)


def test_windows_that_share_an_edge_alone_do_not_meet_an_area():
    shapes = np.array([shapely.box(0, 0, 1, 1), shapely.box(1, 0, 2, 1), None], object)
    assert meets(shapes, shapely.box(1, 0, 1.5, 1)).tolist() == [False, True, False]


def test_a_list_is_written_as_geoparquet_and_csv(collection, tmp_path):
    archive = open_archive(collection)
    archive.save(tmp_path / "list.parquet")
    again = geopandas.read_parquet(tmp_path / "list.parquet")
    assert again.crs == "EPSG:4326" and again["scene"].tolist() == archive.scenes["scene"].tolist()
    assert again["date"].equals(archive.scenes["date"]) and again.geometry.isna().sum() == 1
    archive.save(tmp_path / "list.csv")
    assert pd.read_csv(tmp_path / "list.csv")["geometry"][0].startswith("POLYGON")
    with pytest.raises(ValueError, match="parquet or .csv"):
        archive.save(tmp_path / "list.shp")
    first = (tmp_path / "list.parquet").read_bytes()
    open_archive(collection).save(tmp_path / "list.parquet")
    assert (tmp_path / "list.parquet").read_bytes() == first


def test_a_property_of_several_types_becomes_text(tmp_path):
    raster(tmp_path / "a.tif")
    items = [
        item("a", "a.tif", orbit=7, n=1, big=2**70),
        item("b", "a.tif", orbit="seven", n=0.5),
        item("c", "a.tif", up=True),
    ]
    archive = open_archive(document(tmp_path / "all.json", *items))
    assert archive.scenes["orbit"].tolist()[:2] == ["7", "seven"] and archive.scenes["n"].tolist()[:2] == [1, 0.5]
    archive.save(tmp_path / "all.parquet")
    assert geopandas.read_parquet(tmp_path / "all.parquet")["big"][0] == str(2**70)


# ---- searching across


@pytest.fixture(scope="module")
def embedded(collection, tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedded")
    return embed_archive(MeanColour(), open_archive(collection), folder, **SMALL)


def test_an_embedded_archive_is_a_list_and_a_file_a_scene(embedded):
    folder = Path(embedded.place)
    files = sorted(path.name for path in folder.iterdir())
    assert files == sorted([module.LIST, *embedded.scenes["file"]]) and len(files) == 5
    assert embedded.scenes["windows"].tolist() == [35, 55, 35, 35]
    assert load_archive(folder).scenes.equals(embedded.scenes)
    assert load_archive(folder).filter(platform="one").scenes["scene"].tolist() == ["east", "south"]


@pytest.mark.parametrize(
    "query, scene, window",
    [
        ("red", "east", None),
        ("blue", "west", (0, 0)),
        ("green", "south", (0, 0)),
        (np.array([1.0, -0.8, -0.8]), "east", None),
    ],
)
def test_the_best_window_of_all_scenes_is_the_one_of_the_colour_asked_for(embedded, query, scene, window):
    found = search_archive(embedded, query, MeanColour(), k=3)
    best = found.iloc[0]
    assert best["scene"] == scene if scene != "east" else best["scene"] in ("east", "nowhere")
    assert found["rank"].tolist() == [1, 2, 3] and found["score"].is_monotonic_decreasing
    assert best["score"] == pytest.approx(1, abs=0.01)
    assert (best["width"], best["height"], best["level"]) == (16, 16, 0)
    if window:
        assert (best["left"], best["top"]) == window
    assert found.crs == "EPSG:4326"


def test_hits_lie_where_their_window_lies(embedded):
    hit = search_archive(embedded, "blue", MeanColour(), k=1).iloc[0]
    to = pyproj.Transformer.from_crs("EPSG:32631", "EPSG:4326", always_xy=True)
    centre = to.transform(400_000 + 10 * 8, 5_000_000 - 10 * 8)
    assert hit["geometry"].centroid.distance(shapely.Point(centre)) < 1e-6
    assert hit["date"] == pd.Timestamp("2024-06-01", tz="UTC")


def test_no_window_of_a_scene_is_found_twice_and_the_k_best_are_those_of_all_together(embedded):
    found = search_archive(embedded, "red", MeanColour(), k=200)
    for _, own in found.groupby("scene"):
        left, top, width, height = own[["left", "top", "width", "height"]].to_numpy(int).T
        boxes = shapely.box(left, top, left + width, top + height)
        shared = shapely.area(shapely.intersection(boxes[:, None], boxes[None, :]))
        assert (shared[~np.eye(len(own), dtype=bool)] <= 0.2 * 256 + 1e-9).all()
    few = search_archive(embedded, "red", MeanColour(), k=5)
    columns = ["score", "scene", "left", "top"]
    assert few[columns].equals(found[columns].head(5))
    assert sorted(set(found["scene"])) == ["east", "nowhere", "south", "west"]


def test_filters_come_before_the_search(embedded):
    def search(query, **how):
        return search_archive(embedded, query, MeanColour(), k=4, **how)

    assert set(search("red", platform="two")["scene"]) == {"west"}
    assert set(search("green", end="2023")["scene"]) == {"south"} and set(search("red", end="2023")["scene"]) == {
        "nowhere"
    }
    assert len(search("red", platform="three")) == 0 and search("red", platform="three").crs == "EPSG:4326"
    with pytest.raises(SceneError, match="did you mean 'platform'"):
        search("red", platfrom="two")
    # The box leaves out the scene's blue corner: what is found lies in the rest of it.
    footprint = embedded.scenes.set_index("scene").geometry["west"]
    west, south, east, north = footprint.bounds
    right_half = ((west + east) / 2, south, east, north)
    found = search("blue", bbox=right_half)
    assert set(found["scene"]) == {"west"} and len(found) == 4
    assert (found["left"] + found["width"] > 47).all() and found["score"].max() < 0.9
    assert meets(found.geometry.to_numpy(), shapely.box(*right_half)).all()
    assert search("blue").iloc[0]["left"] == 0


def test_windows_outside_the_area_stay_out_where_the_items_geometry_is_smaller_than_the_raster(tmp_path):
    raster(tmp_path / "a.tif", patch=("red", 48, 32, 16))  # in its south-eastern corner
    part = shapely.box(15.001, 45.152, 15.002, 45.153)
    made = item(geometry=shapely.geometry.mapping(part))
    made.bbox = list(part.bounds)
    archive = embed_archive(MeanColour(), open_archive(document(tmp_path / "a.json", made)), tmp_path / "out", **SMALL)
    whole = search_archive(archive, "red", MeanColour(), k=1).iloc[0]
    assert (whole["left"], whole["top"]) == (48, 32)
    area = (15.0009, 45.1519, 15.0021, 45.1531)
    found = search_archive(archive, "red", MeanColour(), bbox=area)
    assert len(found) and meets(found.geometry.to_numpy(), shapely.box(*area)).all() and found["left"].max() < 32


def test_scenes_are_ranked_by_their_best_window_or_the_mean_of_some(embedded):
    best = rank_scenes(embedded, "red", MeanColour())
    assert set(best["scene"][:2]) == {"east", "nowhere"} and best["rank"].tolist() == [1, 2, 3, 4]
    assert best["scene"].tolist()[:2] == ["east", "nowhere"]  # equal scores by name
    four = rank_scenes(embedded, "red", MeanColour(), windows=4)
    assert four["scene"][0] == "east" and four["score"][0] > four["score"][1] + 0.1  # one has more than one red window
    assert {"path", "platform", "date"} <= set(four) and four.crs == "EPSG:4326"
    only = rank_scenes(embedded, "red", MeanColour(), bbox=(0, 40, 20, 50))
    assert only["scene"].tolist() == ["east", "west"]
    with pytest.raises(ValueError, match="windows = 0"):
        rank_scenes(embedded, "red", MeanColour(), windows=0)


def test_hits_go_out_as_geojson_at_the_right_place(embedded, tmp_path):
    found = search_archive(embedded, "blue", MeanColour(), k=2)
    write_places(found, tmp_path / "hits.geojson")
    again = geopandas.read_file(tmp_path / "hits.geojson")
    assert again["scene"].tolist() == found["scene"].tolist()
    assert shapely.equals_exact(again.geometry.to_numpy(), found.geometry.to_numpy(), 1e-7).all()


def test_a_killed_run_goes_on_and_leaves_the_same_bytes(collection, embedded, tmp_path, monkeypatch):
    asked = []

    def dies(encoder, scene, out, **options):
        asked.append(scene.name)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return real(encoder, scene, out, **options)

    real = module.embed_scene
    monkeypatch.setattr(module, "embed_scene", dies)
    with pytest.raises(KeyboardInterrupt):
        embed_archive(MeanColour(), open_archive(collection), tmp_path, **SMALL)
    with pytest.raises(FileNotFoundError, match="when all scenes are done"):
        load_archive(tmp_path)
    encoded = []
    monkeypatch.setattr(MeanColour, "image_features", counted(MeanColour.image_features, encoded))
    embed_archive(MeanColour(), open_archive(collection), tmp_path, **SMALL)
    assert sum(encoded) == 35 + 35  # of the two scenes that were not done
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (Path(embedded.place) / path.name).read_bytes()


def counted(function, counts):
    def call(self, pixel_values, grid=0):
        counts.append(len(pixel_values))
        return function(self, pixel_values, grid)

    return call


def test_one_bad_scene_is_named_and_counted_and_the_others_go_on(tmp_path):
    for name in ("a", "b", "c"):
        raster(tmp_path / "in" / f"{name}.tif", patch=("red", 0, 0, 32) if name == "c" else None)
    archive = open_archive(tmp_path / "in")
    (tmp_path / "in" / "b.tif").write_bytes(b"II*\0 broken since")
    with pytest.raises(SceneError, match=r"1 of 3 scenes could not be embedded: b \(.*b.tif.*unreadable='keep'"):
        embed_archive(MeanColour(), archive, tmp_path / "out", **SMALL)
    kept = embed_archive(MeanColour(), archive, tmp_path / "out", unreadable="keep", **SMALL)
    assert kept.scenes["scene"].tolist() == ["a", "c"] and [name for name, _ in kept.skipped] == ["b"]
    assert search_archive(kept, "red", MeanColour(), k=1)["scene"].tolist() == ["c"]
    (tmp_path / "in" / "b.tif").unlink()
    raster(tmp_path / "in" / "b.tif")  # mended
    assert len(embed_archive(MeanColour(), archive, tmp_path / "out", **SMALL)) == 3


def test_settings_that_cannot_be_stop_at_once_and_so_do_scenes_that_all_fail(collection, tmp_path, monkeypatch):
    archive = open_archive(collection)
    with pytest.raises(ValueError, match="overlap"):
        embed_archive(MeanColour(), archive, tmp_path, **SMALL | {"overlap": 2})
    with pytest.raises(ValueError, match="neither 'raise' nor 'keep'"):
        embed_archive(MeanColour(), archive, tmp_path, unreadable="skip")
    with pytest.raises(ValueError, match="filter the archive"):
        embed_archive(MeanColour(), archive, tmp_path, within=shapely.box(0, 0, 1, 1))
    monkeypatch.setattr(module, "HOPELESS", 2)
    with pytest.raises(SceneError, match="the first 2 scenes all fail.*no preset is called"):
        embed_archive(MeanColour(), archive, tmp_path, bands="sentinel", unreadable="keep", **SMALL)
    assert not (tmp_path / module.LIST).exists()


def test_searching_tells_what_is_wrong(collection, embedded, tmp_path):
    with pytest.raises(SceneError, match="not embedded"):
        search_archive(open_archive(collection), "red", MeanColour())
    with pytest.raises(ValueError, match="k = 0"):
        search_archive(embedded, "red", MeanColour(), k=0)
    with pytest.raises(ValueError, match="blank"):
        search_archive(embedded, " ", MeanColour())
    with pytest.raises(ValueError, match="one scene"):
        search_archive(embedded, Window(0, 0, 8, 8), MeanColour())
    with pytest.raises(ValueError, match="encoder"):
        search_archive(embedded, "red", MeanColour(shift=1.0))
    with pytest.raises(FileNotFoundError, match="rsvlm scene embed"):
        search_archive(tmp_path, "red", MeanColour())


def test_a_list_that_leads_elsewhere_or_is_none_is_refused(embedded, tmp_path):
    def listed(change):
        frame = geopandas.read_parquet(Path(embedded.place) / module.LIST)
        change(frame).to_parquet(tmp_path / module.LIST)
        return load_archive(tmp_path)

    with pytest.raises(SceneError, match="'../x.parquet' is no file of this folder"):
        listed(lambda frame: frame.assign(file="../x.parquet"))
    with pytest.raises(SceneError, match="lacks the columns file"):
        listed(lambda frame: frame.drop(columns="file"))
    with pytest.raises(FileNotFoundError, match="missing, though"):
        listed(lambda frame: frame)
    (tmp_path / module.LIST).write_bytes(b"PAR1")
    with pytest.raises(SceneError, match="cannot be read|can be read"):
        load_archive(tmp_path)


def test_embeddings_of_two_encoders_are_not_mixed(collection, embedded, tmp_path):
    archive = open_archive(collection)
    folder = tmp_path / "mixed"
    made = embed_archive(MeanColour(shift=1.0), archive, folder, **SMALL)
    name = made.scenes["file"][1]
    (folder / name).write_bytes((Path(embedded.place) / name).read_bytes())
    with pytest.raises(SceneError, match=f"{name}: made by another encoder"):
        search_archive(folder, "red", MeanColour(shift=1.0))


# ---- the command


def run(*arguments: object):
    done = CliRunner().invoke(app, ["scene", *map(str, arguments)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_the_command_lists_an_archive(collection, tmp_path):
    out = tmp_path / "list.geojson"
    done = run("archive", collection, "--out", out, "--bbox=0,40,20,50", "--where", "platform=one")
    assert done.exit_code == 0 and "1 scenes, 0 without a date, 0 skipped; 1 in EPSG:32633" in done.stderr
    again = geopandas.read_file(out)
    assert again["scene"].tolist() == ["east"] and again.geometry[0].bounds[0] == pytest.approx(15)
    done = run("archive", collection)
    assert (
        done.stdout.splitlines()[0].startswith("scene,path,date,cloud_cover,crs") and len(done.stdout.splitlines()) == 5
    )
    assert "1 scene of 4 without a place on Earth" in done.stderr
    run("archive", collection, "--out", out)
    assert geopandas.read_file(out).geometry.isna().sum() == 1
    for wrong in (["--where", "platform"], ["--where", "start=2024"], ["--bbox", "1,2"], ["--out", "list.txt"]):
        with pytest.raises(ValueError):
            run("archive", collection, *wrong)
    with pytest.raises(SystemExit):
        main(["scene", "archive", str(tmp_path / "nowhere")])


def test_the_command_embeds_and_searches_an_archive(collection, tiny_models, tmp_path):
    out = tmp_path / "embedded"
    how = ["--encoder", tiny_models.clip, "--size", 32, "--precision", "fp32", "--device", "cpu"]
    done = run("embed", collection, out, *how, "--cloud-cover-below", 50)
    assert done.exit_code == 0 and f"windows of 2 scenes in {out}" in done.stderr
    done = run("search", out, "A river.", "--k", 3)
    lines = done.stdout.splitlines()
    assert (
        lines[0] == "rank,score,scene,path,date,left,top,width,height,level,valid,longitude,latitude"
        and len(lines) == 4
    )
    done = run("search", out, "A river.", "--scenes", "--end", "2024-05-31")
    assert len(done.stdout.splitlines()) == 2 and ",east," in done.stdout.splitlines()[1]
    run("search", out, "--image", collection.parent / "west.tif", "--k", 2, "--out", tmp_path / "hits.geojson")
    assert len(geopandas.read_file(tmp_path / "hits.geojson")) == 2
    run("search", out, "--window", f"{tmp_path / 'hits.geojson'}:2", "--k", 1, "--out", tmp_path / "like.parquet")
    best, hit = geopandas.read_parquet(tmp_path / "like.parquet"), geopandas.read_file(tmp_path / "hits.geojson")
    assert best["score"][0] == pytest.approx(1, abs=1e-4)  # several windows there are the same
    with pytest.raises(ValueError, match="a Window belongs to one scene"):
        run("search", out, "--window", "0,0,32,32")
    for other, why in (
        (hit.iloc[0].drop("scene"), "does not tell its scene"),
        (dict(hit.iloc[0], scene="x"), "unknown scene 'x'"),
    ):
        with pytest.raises(ValueError, match=why):
            search_archive(out, other)
    with pytest.raises(ValueError, match="folder's name"):
        run("embed", collection, tmp_path / "a.parquet", *how)
    with pytest.raises(ValueError, match="one scene"):
        run("embed", collection.parent / "east.tif", tmp_path / "a.parquet", *how, "--start", "2024")
    with pytest.raises(ValueError, match="give one of its files"):
        run("search", out, "A river.", "--surface", tmp_path / "a.tif")
    with pytest.raises(ValueError, match="for archives"):
        run("search", next(out.glob("east*.parquet")), "A river.", "--scenes")


def test_what_is_odd_about_a_scene_is_told_while_an_archive_is_embedded(tmp_path):
    raster(tmp_path / "scenes" / "plain.tif")
    with rasterio.open(raster(tmp_path / "scenes" / "odd.tif", crs=None), "r+") as file:
        file.transform = Affine(10, 0, 500_000, 0, -10, 5_000_000)  # coordinates of no system
    lines = []
    embed_archive(MeanColour(), tmp_path / "scenes", tmp_path / "out", **SMALL | {"log": lines.append})
    assert [line for line in lines if "does not tell of which reference system" in line][0].startswith("odd: ")
