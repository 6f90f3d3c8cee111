"""Places found in scenes: known colours at known places, on surfaces, in files that others read."""

import json
import warnings
from dataclasses import replace

import geopandas
import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from PIL import Image
from pyproj import Transformer
from rasterio import Affine
from scene_case import TURNED, UTM, ColourEncoder, green_with_red, write_raster

from rsvlm import cli
from rsvlm.data.rasters.scene import open_scene
from rsvlm.data.rasters.windows import Window
from rsvlm.models.queries import Without
from rsvlm.scenes import places, queries, search
from rsvlm.scenes.embedding import embed_scene
from rsvlm.scenes.places import add_centres, to_degrees, write_places
from rsvlm.scenes.search import choose_threshold, find_peaks, outline, search_scene, write_surface
from rsvlm.scenes.window_files import place_windows

SQUARE = (96, 32, 32, 32)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RSVLM_CACHE", str(tmp_path / "cache"))


def embedded(folder, pixels, sizes=(32,), overlap=0.5, encoder=None, **place):
    path = write_raster(folder / "scene.tif", pixels, **place)
    with open_scene(path, stretch=(0, 255)) as scene:
        return embed_scene(encoder or ColourEncoder(), scene, folder / "scene.parquet", sizes=sizes, overlap=overlap)


@pytest.fixture(params=["utm", "turned", "plain"])
def found(request, tmp_path):
    """The red square of a scene of 200 x 120 pixels, looked for."""
    place = {"utm": dict(crs="EPSG:32633", transform=UTM), "turned": dict(crs="EPSG:32633", transform=TURNED)}
    pixels = green_with_red(200, 120, *SQUARE[:3])
    made = embedded(tmp_path, pixels, sizes=(32, 64), **place.get(request.param, {}))
    return search_scene(made, "red", ColourEncoder())


def by_hand(surface):
    """The mean over windows, pixel by pixel, then over cells, then over levels."""
    own, cell = surface.embeddings.meta["scene"], surface.cell
    shape = -(-own["height"] // cell) * cell, -(-own["width"] // cell) * cell
    levels = []
    for level in sorted(set(surface.embeddings.table["level"])):
        total, count = np.zeros(shape), np.zeros(shape)
        for row in np.flatnonzero(surface.embeddings.table["level"] == level):
            left, top, width, height = surface.embeddings.window(row)
            total[top : top + height, left : left + width] += surface.scores[row]
            count[top : top + height, left : left + width] += 1
        cells = [part.reshape(shape[0] // cell, cell, -1, cell).sum((1, 3)) for part in (total, count)]
        with np.errstate(invalid="ignore"):
            levels.append(cells[0] / cells[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # cells without a window
        return np.nanmean(levels, axis=0)


def test_the_square_is_found_where_it_lies(found):
    assert found.cell == 8 and found.values.shape == (15, 25) and found.query == "red"
    peak = find_peaks(found, 1)
    assert tuple(peak[["left", "top", "width", "height"]].iloc[0]) == SQUARE
    assert peak["rank"].tolist() == [1] and peak["score"].iloc[0] == pytest.approx(1) and peak["level"].iloc[0] == 0
    row, column = np.unravel_index(int(np.nanargmax(found.values)), found.values.shape)
    assert (column, row) == (96 // 8 + 1, 32 // 8 + 1) or found.values[row, column] == found.values[6, 14]
    with open_scene(found.embeddings.meta["scene"]["path"], stretch=(0, 255)) as scene:
        assert peak.geometry.iloc[0].equals(scene.polygon(Window(*SQUARE)))


@pytest.mark.parametrize("cell", [1, 5, 8, 37, 500])
def test_a_surface_is_the_mean_of_its_windows(found, cell, monkeypatch):
    monkeypatch.setattr(search, "STRIP", 60)
    surface = search_scene(found.embeddings, "red", ColourEncoder(), cell=cell)
    assert surface.values.dtype == np.float32
    assert np.allclose(surface.values, by_hand(surface), atol=1e-6)


def test_places_without_data_are_nan(tmp_path):
    pixels = green_with_red(128, 64, 0, 0, 32)
    pixels[:, :, 80:] = 7
    made = embedded(tmp_path, pixels, sizes=(16, 32), overlap=0.5, nodata=7)
    surface = search_scene(made, "green", ColourEncoder(), cell=4)
    assert (made.table["left"] + made.table["width"]).max() > 80  # there are windows over ground without data
    assert np.isnan(surface.values[:, 20:]).all() and np.isfinite(surface.values[:, :20]).all()
    assert np.allclose(surface.values[:, :20], by_hand(surface)[:, :20], atol=1e-6)
    assert not outline(surface, -1).geometry.iloc[0].intersects(shapely.box(80.1, 0, 128, 64))
    write_surface(surface, tmp_path / "s.tif")
    with rasterio.open(tmp_path / "s.tif") as file:
        assert np.array_equal(file.read_masks(1) > 0, np.isfinite(surface.values)) and np.isnan(file.nodata)
    before = replace(made, table=made.table.drop(columns="data"))  # a file of the first form does not say where
    assert np.isfinite(search_scene(before, "green", ColourEncoder(), cell=4).values[:, 20:]).any()


def test_a_slanting_edge_of_the_data_is_followed_to_a_cell(tmp_path):
    """As after a projection: the mask of the surface is that of the scene, but for cells on the edge."""
    pixels = np.full((3, 150, 210), 90, np.uint8)
    rows, columns = np.mgrid[:150, :210]
    bare = columns + rows // 2 > 160
    pixels[:, bare] = 0
    for cell, sizes in ((8, (32, 64)), (5, (24,))):
        made = embedded(tmp_path, pixels, sizes=sizes, nodata=0)
        values = search_scene(made, "green", ColourEncoder(), cell=cell).values
        padded = np.full((values.shape[0] * cell, values.shape[1] * cell), True)
        padded[:150, :210] = bare
        share = padded.reshape(values.shape[0], cell, values.shape[1], cell).mean((1, 3))
        assert np.isnan(values[share == 1]).all() and np.isfinite(values[share == 0]).all()


def test_a_place_is_never_mostly_without_data(tmp_path):
    pixels = np.full((3, 64, 64), 9, np.uint8)
    pixels[:, :32, :10] = np.array([200, 0, 0])[:, None, None]  # red at the edge of the data
    pixels[:, 32:, 32:] = np.array([0, 200, 0])[:, None, None]
    path = write_raster(tmp_path / "scene.tif", pixels, nodata=9)
    with open_scene(path, stretch=(0, 255)) as scene:
        made = embed_scene(ColourEncoder(), scene, tmp_path / "s.parquet", sizes=(32,), overlap=0, min_valid=0.1)
    surface = search_scene(made, "red", ColourEncoder())
    assert len(made) == 2 and made.table["valid"].tolist() == [0.3125, 1] and surface.scores[0] == 1
    places = find_peaks(surface)
    assert places[["left", "top", "valid"]].to_numpy().tolist() == [[32, 32, 1]]
    write_places(places, tmp_path / "a.geojson")
    assert json.loads((tmp_path / "a.geojson").read_text())["features"][0]["properties"]["valid"] == 1


def test_queries_of_every_kind_find_the_same(found, tmp_path):
    encoder, red = ColourEncoder(), np.full((9, 9, 3), (250, 0, 0), np.uint8)
    Image.fromarray(red).save(tmp_path / "red.png")
    vector = np.array([2.0, 0, 0], np.float32)
    left_out = search_scene(found.embeddings, Without("red", "green"), encoder)
    assert left_out.query == "red without green" and left_out.scores.argmax() == found.scores.argmax()
    queries = ["red", Image.fromarray(red), red, tmp_path / "red.png", vector, Window(*SQUARE), Window(97, 30, 30, 33)]
    surfaces = search_scene(found.embeddings, queries, encoder)
    assert all(np.allclose(one.values, found.values, atol=1e-6) for one in surfaces) and len(surfaces) == 7
    assert [one.query for one in surfaces][3:] == [
        "red.png", "a vector", "the window (96, 32, 32, 32)", "the window (97, 30, 30, 33)"
    ]  # fmt: skip
    assert np.allclose(search_scene(found.embeddings, Window(*SQUARE)).values, found.values, atol=1e-6)


def test_an_earlier_hit_is_looked_for(found, tmp_path):
    hits = find_peaks(found, 3)
    for hit in (hits.iloc[1], dict(hits.iloc[1])):
        again = search_scene(found.embeddings, hit)
        assert (
            find_peaks(again, 1)[["left", "top", "width"]].iloc[0].tolist()
            == hits[["left", "top", "width"]].iloc[1].tolist()
        )
    write_places(hits, tmp_path / "a.geojson")
    write_places(hits, tmp_path / "a.parquet")
    add_centres(hits).to_csv(tmp_path / "a.csv", index=False)
    for name in ("a.geojson", "a.parquet", "a.csv"):
        hit = queries.read_hit(tmp_path / name, 2)
        assert queries.nearest_window(found.embeddings, hit) == Window(
            *hits[["left", "top", "width", "height"]].iloc[1]
        )
        with pytest.raises(ValueError, match=f"{name}: no hit has the rank 4; it has 3"):
            queries.read_hit(tmp_path / name, 4)
    (tmp_path / "b.geojson").write_text("{}")
    for file, why in (
        ("b.geojson", "no file of hits"),
        ("none.csv", "no such file"),
        ("scene.tif", "hits are read from"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=f"{file}: {why}"):
            queries.read_hit(tmp_path / file, 1)
    with pytest.raises(ValueError, match="a hit in the scene 'other', and the embeddings are of 'scene'"):
        search_scene(found.embeddings, dict(hits.iloc[1], scene="other"))
    with pytest.raises(ValueError, match="a row of hits with left, top, width, height is needed"):
        search_scene(found.embeddings, {"left": 3})
    with pytest.raises(ValueError, match="query 0: a text, a picture .* is needed; got NoneType"):
        search_scene(found.embeddings, None)


def test_a_raster_is_looked_for_as_the_windows_of_the_scene_show_it(tmp_path):
    """Bands and stretch of the scene: 12 bits in another order of bands, the third of the scene's as red."""
    random = np.random.default_rng(5)
    shown = random.integers(0, 4_000, (3, 64, 64), dtype=np.uint16) // np.array([8, 2, 1], np.uint16)[:, None, None]
    bands = np.concatenate([shown[::-1], shown[:1] * 0 + 9])
    path = write_raster(tmp_path / "scene.tif", bands, crs="EPSG:32633", transform=UTM)
    with open_scene(path, bands=[3, 2, 1], stretch=[0, 3_000]) as scene:
        made = embed_scene(ColourEncoder(), scene, tmp_path / "s.parquet", sizes=(16,), overlap=0)
    chip = write_raster(tmp_path / "chip.tif", bands[:, 16:32, 32:48])
    surface = search_scene(made, chip, ColourEncoder())
    peak = find_peaks(surface, 1)
    assert peak[["left", "top"]].iloc[0].tolist() == [32, 16] and peak["score"][0] == pytest.approx(1, abs=1e-6)
    assert surface.query == "chip.tif" and queries.read_as_scene(chip)
    few = write_raster(tmp_path / "few.tif", bands[:2, :16, :16])
    with pytest.raises(ValueError, match="few.tif: there is no band 3; .* read as the scene was, with bands 3, 2, 1"):
        search_scene(made, few, ColourEncoder())
    picture = write_raster(tmp_path / "picture.tif", np.full((3, 9, 9), 90, np.uint8), photometric="RGB")
    Image.fromarray(np.full((9, 9, 3), 90, np.uint8)).save(tmp_path / "picture.png")
    assert not queries.read_as_scene(picture) and not queries.read_as_scene(tmp_path / "picture.png")
    one, other = search_scene(made, [picture, tmp_path / "picture.png"], ColourEncoder())
    assert np.array_equal(one.values, other.values)


def test_queries_that_cannot_be(found):
    encoder, other = ColourEncoder(), ColourEncoder()
    other.logit_scale.data += 1
    for query, said in (
        (" ", "blank"), (np.ones(4, np.float32), "vector of 3"), (np.zeros(3, np.float32), "vector of 3"),
        (np.array([1, np.nan, 0], np.float32), "vector of 3"), (np.array([1, 0, 0]), "vector of 3"),
        (Window(5000, 0, 3, 3), "overlaps no window"), (np.zeros((2, 2, 4), np.uint8), "an array of shape"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            search_scene(found.embeddings, query, encoder)
    other.name = "other"
    said = r"scene.parquet: made with another encoder \(colour, fingerprint \w{12}\) than other \(fingerprint \w{12}\)"
    with pytest.raises(ValueError, match=said):
        search_scene(found.embeddings, "red", other)
    moved = replace(found.embeddings, meta=found.embeddings.meta | {"encoder": "gone/models/encoder"})
    with pytest.raises(
        FileNotFoundError, match="scene.parquet: made with the encoder gone/models/encoder, which is not"
    ):
        search_scene(moved, "red")
    for cell in (0, 2.5):
        with pytest.raises(ValueError, match="cell"):
            search_scene(found.embeddings, "red", encoder, cell=cell)


def test_peaks_do_not_share_ground(found):
    peaks = find_peaks(found, 10_000, overlap=0.2)
    boxes = place_windows(peaks[["left", "top", "width", "height"]].to_numpy(), Affine.identity())
    assert len(peaks) > 5 and peaks["score"].is_monotonic_decreasing
    for one in range(len(boxes)):
        for two in range(one):
            shared = shapely.intersection(boxes[one], boxes[two]).area
            assert shared <= 0.2 * min(boxes[one].area, boxes[two].area)
    assert len(find_peaks(found, 10_000, overlap=1)) == len(found.embeddings)
    assert len(find_peaks(found, 10_000, overlap=0)) < len(peaks)
    assert (find_peaks(found, 10_000, threshold=0.5)["score"] >= 0.5).all()
    assert find_peaks(found, threshold=2).empty and find_peaks(found, threshold=2).crs == found.embeddings.table.crs


def test_equal_peaks_come_in_order(tmp_path):
    made = embedded(tmp_path, np.full((3, 64, 64), 50, np.uint8), sizes=(32, 16), overlap=0)
    peaks = find_peaks(search_scene(made, "red", ColourEncoder()), 5)
    assert peaks[["level", "top", "left"]].to_numpy().tolist() == [[0, 0, 0], [0, 0, 32], [0, 32, 0], [0, 32, 32]]


def test_peaks_keep_a_distance_on_the_ground(tmp_path):
    """In degrees at 60 degrees north: 16 pixels are 890 m to the east and 1,782 m to the south."""
    place = dict(crs="EPSG:4326", transform=Affine.translation(20, 60.1) @ Affine.scale(0.001, -0.001))
    made = embedded(tmp_path, np.full((3, 64, 64), 50, np.uint8), sizes=(16,), overlap=0, **place)
    surface = search_scene(made, "red", ColourEncoder())
    assert find_peaks(surface, 100, distance=1_000)[["top", "left"]].to_numpy().tolist() == [
        [top, left] for top in (0, 16, 32, 48) for left in (0, 32)
    ]
    with pytest.raises(ValueError, match="distance"):
        find_peaks(surface, distance=-1)


def test_outlines(found):
    threshold = 0.7 * float(found.values.max())
    places = outline(found, threshold)
    assert len(places) == 1 and places.columns.tolist() == ["mean", "max", "area", "geometry"]
    inside = found.values >= threshold
    assert 9 <= inside.sum() < 50  # the square has 16 cells
    assert places["mean"].iloc[0] == pytest.approx(found.values[inside].mean(), abs=1e-6)
    assert places["max"].iloc[0] == found.values.max()
    pixel = 100 if places.crs else 1
    assert places.geometry.iloc[0].area == pytest.approx(inside.sum() * 64 * pixel)
    assert places["area"].iloc[0] == pytest.approx(inside.sum() * 64 * pixel, rel=1e-3 if places.crs else 1e-12)
    assert outline(found, 2).empty and outline(found, 2).crs == found.embeddings.table.crs


def test_outlines_stay_on_the_scene_and_keep_their_holes(tmp_path):
    pixels = np.zeros((3, 50, 70), np.uint8)
    pixels[1] = 200
    pixels[:, 20:30, 20:30] = np.array([200, 0, 0])[:, None, None]
    made = embedded(tmp_path, pixels, sizes=(10,), overlap=0, crs="EPSG:32633", transform=UTM)
    places = outline(search_scene(made, "green", ColourEncoder(), cell=10), 0.5)
    assert len(places) == 1 and len(places.geometry.iloc[0].interiors) == 1
    places = outline(search_scene(made, "green", ColourEncoder(), cell=40), 0.1)
    assert places.total_bounds.tolist() == [500_000, 4_999_500, 500_700, 5_000_000]
    assert places["area"].iloc[0] == pytest.approx(50 * 70 * 100, rel=1e-3)


def test_the_area_of_the_whole_earth(tmp_path):
    place = dict(crs="EPSG:4326", transform=Affine.translation(-180, 90) @ Affine.scale(5, -5))
    made = embedded(tmp_path, np.full((3, 36, 72), 9, np.uint8), sizes=(12,), **place)
    places = outline(search_scene(made, "red", ColourEncoder()), 0)
    assert places["area"].iloc[0] == pytest.approx(510_065_621_724_000, rel=1e-3)
    assert shapely.box(*to_degrees(places)[0].bounds).equals(shapely.box(-180, -90, 180, 90))


def test_the_best_threshold():
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    assert choose_threshold(scores, np.array([1, 1, 0, 0, 0])) == 0.8
    assert choose_threshold(scores, np.array([1, 0, 1, 0, 0])) == 0.7
    assert choose_threshold(np.array([0.9, 0.5, 0.5]), np.array([1, 1, 0])) == 0.5  # equal scores are taken together
    draw = np.random.default_rng(0)
    scores, relevant = draw.integers(0, 20, 60) / 20, draw.random(60) < 0.3
    best = max((2 * (relevant & (scores >= t)).sum() / ((scores >= t).sum() + relevant.sum()), t) for t in set(scores))
    assert choose_threshold(scores, relevant) == best[1]
    for wrong in (([0.1], [False]), ([0.1, 0.2], [True]), ([np.nan], [True])):
        with pytest.raises(ValueError):
            choose_threshold(*map(np.array, wrong))


def test_a_surface_as_geotiff(found, tmp_path):
    write_surface(found, tmp_path / "a.tif")
    with rasterio.open(tmp_path / "a.tif") as file:
        assert np.array_equal(file.read(1), found.values, equal_nan=True) and np.isnan(file.nodata)
        assert file.crs == found.crs and file.dtypes == ("float32",) and file.tags()["QUERY"] == "red"
        place = file.transform @ (SQUARE[0] / 8, SQUARE[1] / 8)
    expected = find_peaks(found, 1).geometry.iloc[0].exterior.coords[0]
    assert place == pytest.approx(expected, abs=1e-6)
    before = (tmp_path / "a.tif").read_bytes()
    write_surface(found, tmp_path / "a.tif")
    assert (tmp_path / "a.tif").read_bytes() == before
    with pytest.raises(ValueError, match="a.png"):
        write_surface(found, tmp_path / "a.png")


def test_places_as_geojson_lie_right_to_a_pixel(found, tmp_path):
    peaks = find_peaks(found, 3)
    write_places(peaks, tmp_path / "a.geojson")
    read = pyogrio.read_dataframe(tmp_path / "a.geojson")
    assert read["rank"].tolist() == [1, 2, 3] and np.allclose(read["score"], peaks["score"])
    told = json.loads((tmp_path / "a.geojson").read_text(encoding="utf-8"))
    assert "crs" not in told
    if peaks.crs is None:
        assert set(read["coordinates"]) == {places.IN_PIXELS}
        assert read.geometry.iloc[0].equals(shapely.box(96, 32, 128, 64))
        return
    assert read.crs.to_epsg() == 4326 and "coordinates" not in read
    for place, back in zip(peaks.geometry, read.geometry.to_crs(peaks.crs)):
        assert shapely.hausdorff_distance(place, back) < 0.05  # metres; a pixel has 10
        corners = shapely.MultiPoint(back.exterior.coords)
        assert all(corners.distance(shapely.Point(corner)) < 0.001 for corner in place.exterior.coords)
    assert all(shapely.is_ccw(shapely.get_exterior_ring(place)) for place in read.geometry)


def test_places_as_geoparquet(found, tmp_path):
    peaks = find_peaks(found, 3)
    write_places(peaks, tmp_path / "a.parquet")
    read = geopandas.read_parquet(tmp_path / "a.parquet")
    assert read.crs == peaks.crs and read.equals(peaks)
    with pytest.raises(ValueError, match="a.shp"):
        write_places(peaks, tmp_path / "a.shp")


def test_no_place_and_what_is_missing_are_geojson_too(found, tmp_path):
    write_places(find_peaks(found, threshold=2), tmp_path / "a.geojson")
    assert json.loads((tmp_path / "a.geojson").read_text()) == {"type": "FeatureCollection", "features": []}
    frame = found.embeddings.table.head(1).assign(score=np.nan, note="<ä>", flag=np.True_)
    write_places(frame, tmp_path / "a.geojson")
    told = json.loads((tmp_path / "a.geojson").read_text(encoding="utf-8"))["features"][0]["properties"]
    assert told["score"] is None and told["date"] is None and told["note"] == "<ä>" and told["flag"] is True


def in_degrees(crs, *shapes):
    return to_degrees(geopandas.GeoDataFrame(geometry=list(shapes), crs=crs))


def test_a_place_over_the_date_line_is_cut_there():
    east = Transformer.from_crs("EPSG:4326", "EPSG:32660", always_xy=True).transform(180, 60)
    made = in_degrees("EPSG:32660", shapely.box(east[0] - 9_000, east[1], east[0] + 9_000, east[1] + 5_000))[0]
    assert made.geom_type == "MultiPolygon" and len(made.geoms) == 2 and made.is_valid
    low, high = sorted(made.geoms, key=lambda part: part.bounds[0])
    assert low.bounds[0] == -180 and high.bounds[2] == 180 and high.bounds[0] > 179 and low.bounds[2] < -179
    assert low.area == pytest.approx(high.area, rel=0.05)
    for shape in (shapely.box(175, 10, 190, 20), shapely.box(-185, 10, -170, 20)):
        made = in_degrees("EPSG:4326", shape)[0]
        assert made.geom_type == "MultiPolygon" and made.area == pytest.approx(150)
        assert made.bounds == (-180, 10, 180, 20)
    assert in_degrees("EPSG:4326", shapely.box(190, 10, 200, 20))[0].equals(shapely.box(-170, 10, -160, 20))
    assert in_degrees("EPSG:4326", shapely.box(-180, -90, 180, 90))[0].equals(shapely.box(-180, -90, 180, 90))


@pytest.mark.parametrize("crs, pole", [("EPSG:3413", 90), ("EPSG:3031", -90)])
def test_a_place_over_a_pole_holds_it(crs, pole):
    made, beside = in_degrees(crs, shapely.box(-90_000, -50_000, 40_000, 50_000), shapely.box(1e5, 1e5, 2e5, 2e5))
    assert made.is_valid and not beside.covers(shapely.Point(beside.centroid.x, pole))
    for longitude in range(-179, 180, 7):
        assert made.covers(shapely.Point(longitude, pole * 89.9 / 90)), longitude
        assert not made.intersects(shapely.Point(longitude, pole * 88 / 90))
    back = Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    x, y = back.transform(*shapely.get_coordinates(beside).T)
    assert shapely.Polygon(list(zip(x, y))).area == pytest.approx(1e10, rel=1e-3)


def test_a_scene_over_the_date_line(tmp_path):
    east, north = Transformer.from_crs("EPSG:4326", "EPSG:32660", always_xy=True).transform(180, -17)
    place = dict(crs="EPSG:32660", transform=Affine.translation(east - 1000, north) @ Affine.scale(10, -10))
    made = embedded(tmp_path, green_with_red(200, 120, 84, 32, 32), sizes=(32,), overlap=0.75, **place)
    peaks = find_peaks(search_scene(made, "red", ColourEncoder()), 2)
    assert peaks["left"].iloc[0] in (80, 88)
    write_places(peaks, tmp_path / "a.geojson")
    read = pyogrio.read_dataframe(tmp_path / "a.geojson")
    assert read.geometry.iloc[0].geom_type == "MultiPolygon"
    assert abs(add_centres(peaks)["longitude"].iloc[0]) == pytest.approx(180, abs=0.001)
    whole = outline(search_scene(made, "green", ColourEncoder()), -1)
    assert whole["area"].iloc[0] == pytest.approx(200 * 120 * 100, rel=2e-3)


def test_a_scene_at_the_pole(tmp_path):
    place = dict(crs="EPSG:3413", transform=Affine.translation(-32_000, 32_000) @ Affine.scale(1000, -1000))
    made = embedded(tmp_path, green_with_red(64, 64, 16, 16, 32), sizes=(32,), overlap=0.5, **place)
    peaks = find_peaks(search_scene(made, "red", ColourEncoder()), 1)
    write_places(peaks, tmp_path / "a.geojson")
    read = pyogrio.read_dataframe(tmp_path / "a.geojson")
    assert read.geometry.iloc[0].covers(shapely.box(-180, 89.9, 180, 90))
    assert find_peaks(search_scene(made, "green", ColourEncoder()), 9, distance=1e6)["rank"].tolist() == [1]


def test_thin_scenes(tmp_path):
    pixels = np.zeros((3, 1, 300), np.uint8)
    pixels[1] = 200
    pixels[:, :, 64:96] = np.array([200, 0, 0])[:, None, None]
    surface = search_scene(embedded(tmp_path, pixels), "red", ColourEncoder())
    assert surface.values.shape == (1, 38) and find_peaks(surface, 1)["left"].tolist() == [64]
    assert outline(surface, float(surface.values.max())).total_bounds.tolist() == [64, 0, 96, 1]


def test_cells_grow_with_a_very_large_scene(found, monkeypatch):
    monkeypatch.setattr(search, "MOST_CELLS", 24)
    assert search.default_cell(found.embeddings) == 32


def test_the_commands(tmp_path, capsys, monkeypatch):
    def load(name, device="cpu"):
        assert name == "colour"
        return ColourEncoder()

    monkeypatch.setattr("rsvlm.models.zoo.load_encoder", load)
    monkeypatch.setattr("rsvlm.models.zoo.load_encoder", load)
    pixels = green_with_red(200, 120, *SQUARE[:3]).astype(np.uint16) * 10
    bands = np.concatenate([pixels[::-1], pixels[:1] * 0])  # blue, green, red, near infrared
    path = write_raster(tmp_path / "scene.tif", bands, crs="EPSG:32633", transform=UTM)
    out, hits, surface = tmp_path / "scene.parquet", tmp_path / "hits.geojson", tmp_path / "s.tif"

    def run(*arguments) -> int:
        with pytest.raises(SystemExit) as ended:
            cli.main(["scene", *map(str, arguments)])
        return ended.value.code or 0

    embed = ["embed", path, out, "--encoder", "colour", "--size", 32, "--size", 64]
    assert run(*embed) == 1
    said = capsys.readouterr().err
    assert "scene.tif: 4 bands" in said and "--bands 3,2,1" in said and "bands=" not in said
    assert run(*embed, "--bands", "3,2,1", "--stretch", "5,5") == 1 and "LOW,HIGH" in capsys.readouterr().err
    assert run(*embed, "--bands", "3,2,1", "--stretch", "none") == 1
    assert "give --stretch percentile, or --stretch LOW,HIGH" in capsys.readouterr().err
    assert run(*embed, "--bands", "3,2,1", "--stretch", "0,high") == 1 and "--stretch" in capsys.readouterr().err
    assert run(*embed, "--bands", "planetscope", "--stretch", "0,2550") == 0
    assert f"102 windows in {out}" in capsys.readouterr().err
    assert run("search", out, "red", "--out", hits, "--surface", surface, "--k", 2) == 0
    assert len(pyogrio.read_dataframe(hits)) == 2 and rasterio.open(surface).shape == (15, 25)
    assert run("search", out, "red", "-k", 1) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "rank,score,left,top,width,height,level,valid,longitude,latitude" and told[1].startswith(
        "1,1.0,96,32,"
    )
    outlines = tmp_path / "o.parquet"
    assert run("search", out, "red", "--outlines", outlines, "--threshold", 0.3) == 0
    assert len(geopandas.read_parquet(outlines)) == 1
    assert run("search", out, "red", "--outlines", outlines) == 1 and "--threshold" in capsys.readouterr().err
    capsys.readouterr()
    assert run("search", out, "--image", path, "-k", 1) == 0
    told = capsys.readouterr()
    assert told.out.splitlines()[1].startswith("1,") and "scene.tif: read as the scene was" in told.err
    assert run("search", out, "--window", "97,30,30,33", "-k", 1) == 0
    told = capsys.readouterr()
    assert told.out.splitlines()[1].startswith("1,1.0,96,32,") and "like the embedded window 96,32,32,32" in told.err
    assert run("search", out, "--window", f"{hits}:1", "-k", 1) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("1,1.0,96,32,")
    for wrong, said in (
        ([], "one of a text, --image, --window is needed; none is given"),
        (["red", "--window", "1,2,3,4"], "given are a text and --window"),
        (["--image", path, "--window", "1,2,3,4"], "given are --image and --window"),
        (["--image", tmp_path / "none.png"], "none.png: no such file"),
        (["--window", "1,2,3"], "--window: COL,ROW,WIDTH,HEIGHT"),
        (["--window", "5000,0,9,9"], "overlaps no window"),
    ):
        assert run("search", out, *wrong) == 1
        text = capsys.readouterr().err
        assert said in text and text.count("\n") == 1
    assert run("search", out, "red", "--out", tmp_path / "a.kml") == 1 and "a.kml" in capsys.readouterr().err
    assert run("search", path, "red") == 1 and "scene.tif: not a whole Parquet file" in capsys.readouterr().err


def test_a_scene_of_another_planet(tmp_path):
    moon = 'GEOGCS["Moon 2000",DATUM["D_Moon_2000",SPHEROID["Moon_2000_IAU_IAG",1737400,0]],PRIMEM["Reference_Meridian",0],UNIT["degree",0.0174532925199433]]'
    place = dict(crs=moon, transform=Affine.translation(10, 60) @ Affine.scale(0.001, -0.001))
    surface = search_scene(embedded(tmp_path, green_with_red(64, 64, 0, 0, 32), **place), "red", ColourEncoder())
    peaks = find_peaks(surface, 1)
    write_places(peaks, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="Moon 2000.*write .parquet"):
        write_places(peaks, tmp_path / "a.geojson")
    with pytest.raises(ValueError, match="distance: the CRS 'Moon 2000'"):
        find_peaks(surface, distance=5)
    assert np.isnan(outline(surface, 0.5)["area"]).all() and "longitude" not in add_centres(peaks)


def test_what_cannot_be_written_is_said_before_the_work(tmp_path, capsys):
    """A folder in the place of a file, a file in the place of a folder, a wrong setting: one line, and nothing was made."""
    scene = write_raster(tmp_path / "s.tif", green_with_red(64, 64, 16, 16, 16), crs="EPSG:32633", transform=UTM)
    (tmp_path / "folder.parquet").mkdir()

    def refused(out, *options) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main(["scene", "embed", str(scene), str(tmp_path / out), "--encoder", "no/such", *options])
        said = capsys.readouterr().err
        assert ended.value.code == 1 and said.count("\n") == 1  # before the encoder is looked for
        return said

    assert "a folder; give the name of a file" in refused("folder.parquet")
    assert "s.tif is a file" in refused("s.tif/x.parquet")
    for option, value, why in (
        ("--overlap", "1", "overlap"),
        ("--views", "3", "views"),
        ("--precision", "fp64", "fp64"),
    ):
        assert why in refused("x.parquet", option, value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.parquet", "s.tif"]


def test_how_a_scene_is_read_is_told_and_a_forgotten_option_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("rsvlm.models.zoo.load_encoder", lambda *_: ColourEncoder())
    monkeypatch.setattr("rsvlm.models.zoo.load_encoder", lambda *_: ColourEncoder())
    scene = write_raster(tmp_path / "s.tif", green_with_red(64, 64, 16, 16, 16), crs="EPSG:32633", transform=UTM)
    out, hits = tmp_path / "s.parquet", tmp_path / "hits.geojson"
    with pytest.raises(SystemExit):
        cli.main(["scene", "embed", str(scene), str(out), "--encoder", "colour", "--size", "32", "--bands", "3 2 1"])
    assert "red, green, blue are bands 3, 2, 1; black is 0, 0, 0, white 255, 255, 255" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Red").write_bytes(b"")
    with pytest.raises(SystemExit):
        cli.main(["scene", "search", str(out), "Red", "--encoder", "colour", "--out", str(hits)])
    said = capsys.readouterr().err
    assert "Red: taken as words" in said and "--image" in said and f"places in {hits}" in said


def test_a_slip_in_a_path_is_no_wish_for_the_network(tmp_path, monkeypatch):
    from rsvlm.models.zoo import load_encoder

    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="encoder models/encodr: no such folder in models"):
        load_encoder("models/encodr")
