"""The map of a scene without a browser: what its panel asks, the layers that come of it, the files that are written."""

from types import SimpleNamespace

import geopandas
import numpy as np
import pytest
import rasterio
from browse_case import add_captioner, build_study, run_cells
from rasterio import Affine
from scene_case import TURNED, UTM, ColourEncoder, green_with_red, write_raster
from test_galleries import root  # noqa: F401
from test_tiers import needed

from rsvlm.data.rasters.scene import open_scene
from rsvlm.data.rasters.windows import Window
from rsvlm.scenes import globe
from rsvlm.scenes.embedding import embed_scene
from rsvlm.scenes.window_index import WindowIndex
from rsvlm.viewing import scene_map, scene_models
from rsvlm.viewing.scene_frames import Plane, choose_frame
from rsvlm.viewing.scene_layers import NOTHING
from rsvlm.viewing.scene_map import SceneMap
from rsvlm.viewing.scene_page import render_scene_page

SCRIPT = "<script>document.title='taken'</script>"
RED = Window(96, 32, 32, 32)
DATE_LINE = Affine.translation(700_000, 5_000_000) @ Affine.scale(1000, -1000)
POLE = Affine.translation(-100_000, 60_000) @ Affine.scale(1000, -1000)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RSVLM_CACHE", str(tmp_path / "cache"))

    def no_globe(path):
        raise FileNotFoundError("not installed")

    monkeypatch.setattr(globe, "make_globe", no_globe)
    monkeypatch.setattr(scene_map, "make_globe", no_globe)


@pytest.fixture
def red_square(tmp_path):
    """A scene of 200 x 120 with a red square at (96, 32), 32 pixels wide."""
    return write_raster(tmp_path / "scene.tif", green_with_red(200, 120, 96, 32, 32), crs="EPSG:32633", transform=UTM)


def open_map(scene, tmp_path, **options):
    """A map over the encoder of colours, a function that asks it as its page does, and what it says unasked."""
    shown = SceneMap(scene, ColourEncoder(), **{"sizes": (32,), "out": tmp_path / "out"} | options)
    sent, pushed = [], []
    shown.panel.send = lambda message, buffers=None: (pushed if "push" in message else sent).append(message)

    def ask(question, /, **given):
        sent.clear()
        shown.panel.receive(shown.panel, {"ask": "1", "what": question, "given": given})
        return sent[-1].get("answer", sent[-1].get("error"))

    ask.sent = sent
    return shown, ask, pushed


def test_a_search_has_a_surface_numbers_and_a_list(red_square, tmp_path):
    shown, ask, _ = open_map(red_square, tmp_path, results=3)
    assert [one.url for one in shown.map.layers[1:3]] == [NOTHING, NOTHING]
    found = ask("search", text=" Red ")
    assert any("embedding the scene, once" in part["part"].get("status", "") for part in ask.sent[:-1])
    assert found["query"] == "Red" and [hit["rank"] for hit in found["hits"]] == [1, 2, 3]
    first = found["hits"][0]
    assert [first[key] for key in Window._fields] == list(RED) and first["score"] == 1.0
    assert first["place"] == "45.1492° N, 15.0142° E" and first["picture"].startswith("data:image/jpeg")
    assert (
        found["high"] == round(float(np.nanmax(shown.surface.values)), 4) > found["low"]
        and "windows searched" in found["words"]
    )
    assert shown.surface.query == "Red" and len(shown.hits) == 3
    surface, pins = shown.map.layers[2], shown.map.layers[-1]
    assert surface.url.startswith("data:image/png") and surface.opacity == 0.5
    assert [layer.icon.html.count(f">{number}</b>") for number, layer in enumerate(pins.layers[1::2], 1)] == [1, 1, 1]
    ask("search", text="Green")  # the numbers of before are gone
    assert pins not in shown.map.layers and sum(hasattr(layer, "layers") for layer in shown.map.layers) == 1
    assert ask("search", text="  ") == "Describe what you look for."
    again, ask_again, _ = open_map(red_square, tmp_path)
    ask_again("search", text="Red")  # kept from before
    assert not any("of 77 windows" in str(part) for part in ask_again.sent[:-1]) and again.surface is not None


def test_a_window_is_shown_where_it_is_clicked(red_square, tmp_path):
    shown, ask, pushed = open_map(red_square, tmp_path)
    at = shown.panel.frame.centre(RED)
    shown.panel.layers.touch(type="click", coordinates=at)
    assert pushed.pop() == {"push": {"window": RED._asdict()}}  # no window was searched: one around the place
    ask("search", text="Red")
    shown.panel.layers.touch(type="click", coordinates=at)
    window = pushed.pop()["push"]["window"]
    seen = ask("window", window=window)
    assert Window(**seen["window"]) == RED and seen["score"] == 1.0
    assert seen["ground"] == "32 × 32 pixels, 320 × 320 m" and seen["picture"].startswith("data:image/jpeg")
    assert np.array(shown.panel.layers.chosen.locations).shape == (4, 2)
    shown.panel.layers.touch(type="click", coordinates=[0.0, 0.0])  # beside the scene
    shown.panel.layers.touch(type="mousemove", coordinates=at)
    assert pushed == []
    pin = shown.map.layers[-1].layers[1]
    pin._handle_mouse_events(pin, {"type": "click", "coordinates": at}, [])
    assert pushed.pop() == {"push": {"window": RED._asdict()}}
    ask("go", window=window)
    assert (
        shown.map.center == pytest.approx(at)
        and shown.map.zoom > shown.panel.layers.view_of(shown.panel.frame.plane)[1]
    )
    assert (
        ask("window", window={"left": 900, "top": 0, "width": 9, "height": 9}) == "This window lies outside the scene."
    )


def test_a_drawn_box_is_a_window_to_caption_or_to_search_by(red_square, tmp_path):
    shown, ask, pushed = open_map(red_square, tmp_path)
    corners = shown.panel.frame.corners(RED)
    ring = [[lng, lat] for lat, lng in [*corners, corners[0]]]
    control = shown.panel.layers.draw_control
    control.data = [{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {}}]
    box = pushed.pop()["push"]["box"]
    left, top, width, height = (box["window"][key] for key in Window._fields)
    assert abs(left - 96) <= 1 and abs(top - 32) <= 1 and 32 <= width <= 34 and 32 <= height <= 34
    assert control.data == [] and len(shown.panel.layers.boxed.locations) == 4  # it is ours now
    found = ask("like", window=box["window"])
    assert found["query"].startswith("like 45.14") and Window(*(found["hits"][0][key] for key in Window._fields)) == RED
    assert ask("clear_box") == {} and shown.panel.layers.boxed.locations == []
    seen = ask("view")
    assert Window(**seen["window"]) == (0, 0, 200, 120)
    far = [[[0, 0], [0, 1], [1, 1], [1, 0], [0, 0]]]
    control.data = [{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": far}, "properties": {}}]
    assert pushed.pop() == {"push": {"trouble": "The box lies outside the scene."}}


def test_files_lie_at_the_right_place(red_square, tmp_path):
    shown, ask, _ = open_map(red_square, tmp_path, results=1)
    assert ask("export", what="hits") == "Search first: there is no surface yet."
    ask("search", text="Red")
    paths = {what: ask("export", what=what, threshold=0.4)["path"] for what in ("hits", "outline", "surface")}
    assert paths["hits"] == str(tmp_path / "out" / "scene-Red-hits.geojson")
    hits = geopandas.read_file(paths["hits"])
    assert hits.crs == "EPSG:4326" and hits["query"].tolist() == ["Red"]
    left, bottom, right, top = hits.to_crs("EPSG:32633").total_bounds
    assert np.allclose(
        [left, bottom, right, top], [500_960, 4_999_360, 501_280, 4_999_680], atol=0.1
    )  # a pixel is 10 m
    outlined = geopandas.read_file(paths["outline"])
    assert len(outlined) == 1 and outlined["threshold"].tolist() == [0.4]
    with rasterio.open(paths["surface"]) as file:
        assert file.crs == "EPSG:32633" and np.array_equal(file.read(1), shown.surface.values, equal_nan=True)
    assert ask("export", what="outline", threshold=2.0) == "No place is as similar as 2.000: choose less, then export."
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"scene-Red-{name}" for name in ("hits.geojson", "outline.geojson", "surface.tif")
    ]
    told = ask("outline", threshold=0.4)
    assert told["places"] == 1 and shown.panel.layers.outline in shown.map.layers
    assert ask("outline", threshold=2.0)["places"] == 0 and shown.panel.layers.outline is None


def test_a_file_that_is_no_scene_is_told_of(tmp_path):
    (tmp_path / "text.tif").write_text("no raster")
    shown, ask, _ = open_map(tmp_path / "text.tif", tmp_path)
    assert "text.tif: cannot be read as a scene" in shown.panel.setting["trouble"] and shown.map is None
    assert ask("search", text="Red") == "There is no scene on the map."
    assert "no such scene" in SceneMap(tmp_path / "none.tif", ColourEncoder()).panel.setting["trouble"]
    with pytest.raises(ValueError, match="results is 0: give 1 to 100"):
        SceneMap(tmp_path / "text.tif", ColourEncoder(), results=0)


def test_a_scene_without_a_place_is_shown_in_its_pixels(tmp_path):
    path = write_raster(tmp_path / "plain.tif", green_with_red(200, 120, 96, 32, 32))
    shown, ask, pushed = open_map(path, tmp_path, results=1)
    assert shown.map.crs["name"] == "Simple" and "no coordinate system" in str(shown.panel.setting["scene"]["facts"])
    [hit] = ask("search", text="Red")["hits"]
    assert hit["place"] == "column 96, row 32"
    assert shown.map.layers[-1].layers[0].locations == [[-32, 96], [-32, 128], [-64, 128], [-64, 96]]
    shown.panel.layers.touch(type="click", coordinates=[-48.0, 112.0])
    assert pushed.pop()["push"]["window"] == RED._asdict()
    told = geopandas.read_file(ask("export", what="hits")["path"])
    assert told["coordinates"].tolist() == ["pixels of the scene: column, row"]


@pytest.mark.parametrize(
    ("crs", "transform", "expected"),
    [
        ("EPSG:32633", UTM, "EPSG3857"),
        ("EPSG:32633", TURNED, "EPSG3857"),
        ("EPSG:4326", Affine.translation(10, 50) @ Affine.scale(0.01, -0.01), "EPSG3857"),
        ("EPSG:4326", Affine.translation(-180, 90) @ Affine.scale(1.8, -1.5), "EPSG4326"),
        ("EPSG:4326", Affine.translation(179, 50) @ Affine.scale(0.01, -0.01), "EPSG4326"),
        ("EPSG:32660", DATE_LINE, "Simple"),
        ("EPSG:3995", POLE, "Simple"),
    ],
)
def test_each_scene_is_seen_in_one_piece_and_places_go_back_and_forth(tmp_path, crs, transform, expected):
    path = write_raster(tmp_path / "scene.tif", green_with_red(200, 120, 96, 32, 32), crs=crs, transform=transform)
    with open_scene(path) as scene:
        frame = choose_frame(scene)
        assert (frame.crs or "Simple").replace(":", "") == expected
        corners = np.array(frame.corners(RED))
        found = frame.pixels_of(*frame.plane_at(corners).T)
        np.testing.assert_allclose(found, [[96, 32], [128, 32], [128, 64], [96, 64]], atol=1e-6)
        picture, plane = frame.picture(frame.plane, 1000)
        colours = np.asarray(picture)
        middle = frame.plane_of([112], [48])[0]  # of the red square: red on the map, too
        x = int((middle[0] - plane.west) / (plane.east - plane.west) * picture.width)
        y = int((plane.north - middle[1]) / (plane.north - plane.south) * picture.height)
        assert tuple(colours[y, x]) == (200, 0, 0, 255)
        red = (colours[..., 0] > 150) & (colours[..., 3] == 255)
        assert red.sum() / (colours[..., 3] == 255).sum() == pytest.approx(32 * 32 / (200 * 120), rel=0.12)
        values = np.full((4, 7), np.nan, np.float32)
        values[1, 3] = 1.0
        laid, plane = frame.surface(values, 32)
        rows, columns = np.nonzero(laid > 0.5)
        x = plane.west + (columns.mean() + 0.5) / laid.shape[1] * (plane.east - plane.west)
        y = plane.north - (rows.mean() + 0.5) / laid.shape[0] * (plane.north - plane.south)
        np.testing.assert_allclose(frame.pixels_of([x], [y])[0], [112, 48], atol=3)


def test_what_the_map_shows_is_read_as_sharp_as_the_screen(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (3, 1500, 4000)).astype(np.uint8)
    path = write_raster(tmp_path / "large.tif", pixels, crs="EPSG:32633", transform=UTM)
    shown, _, pushed = open_map(path, tmp_path)
    panel, frame = shown.panel, shown.panel.frame
    assert panel.layers.detail.url == NOTHING
    corners = np.array(frame.corners(Window(1000, 500, 600, 400)))
    south, west, north, east = *corners.min(axis=0), *corners.max(axis=0)
    with shown.map.hold_trait_notifications():
        for side, value in {"south": south, "west": west, "north": north, "east": east}.items():
            shown.map.set_trait(side, float(value))
    assert panel.layers.detail.url.startswith("data:image/webp")  # no kernel here, so at once
    np.testing.assert_allclose(panel.layers.detail.bounds, [[south, west], [north, east]], atol=1e-6)
    picture, plane = frame.picture(Plane(*frame.plane_at(np.array([[south, west]]))[0], *frame.plane_at(np.array([[north, east]]))[0]), 2000)  # fmt: skip
    assert abs(max(picture.size) - 600) < 25  # not finer than the scene
    path.write_bytes(path.read_bytes()[:5000])
    panel.frame.scene.close()
    panel.layers.detail.url = NOTHING
    panel.layers.read_detail()
    assert "large.tif" in pushed.pop()["push"]["trouble"]


def test_the_captioner_and_the_nearest_training_images(red_square, tmp_path, monkeypatch):
    shown, ask, _ = open_map(red_square, tmp_path, captioner="somewhere")
    assert shown.panel.setting["captions"]

    class Told:
        memory = type("Memory", (), {"captions": {"a/1.png": ["Red.", "Red."], "a/2.png": [SCRIPT]}})()

        def warning(self, distance):
            return "far" if distance > 0.5 else ""

    Told.memory.vectors = np.eye(3, dtype=np.float16)[:2]
    vars(shown.panel.models)["captioner"] = Told()
    monkeypatch.setattr(scene_models, "caption", lambda captioner, pictures: _captions(pictures))
    said = ask("caption", window=RED._asdict())
    assert said["text"] == "200, 0, 0" and said["warning"] == "far"
    assert [near["captions"] for near in said["near"]] == [["Red."], [SCRIPT]] and said["near"][0]["score"] == 1.0
    missing, ask, _ = open_map(red_square, tmp_path, captioner=tmp_path / "none")
    assert "none: no such folder" in ask("caption", window=RED._asdict())


def _captions(pictures):
    import pandas as pd

    text = ", ".join(map(str, np.asarray(pictures[0]).reshape(-1, 3)[0]))
    return pd.DataFrame([{"caption": text, "distance": 0.9}])


def test_an_archive_is_filtered_searched_and_opened(tmp_path):
    folder = tmp_path / "scenes"
    folder.mkdir()
    for number, date in enumerate(("2024:05:01 10:00:00", "2024:07:01 10:00:00")):
        place = Affine.translation(500_000 + 5000 * number, 5_000_000) @ Affine.scale(10, -10)
        path = write_raster(folder / f"s{number}.tif", green_with_red(200, 120, 96, 32, 16 * (number + 1)), crs="EPSG:32633", transform=place)  # fmt: skip
        with rasterio.open(path, "r+") as file:
            file.update_tags(TIFFTAG_DATETIME=date)
    write_raster(folder / "nowhere.tif", green_with_red(64, 64, 0, 0, 16))
    shown, ask, pushed = open_map(folder, tmp_path, results=3)
    assert shown.scene is None and shown.panel.setting["archive"]["name"] == "scenes"
    everything = {"start": "", "end": "", "cloud": None, "view": False}
    listed = ask("scenes", **everything)
    assert [scene["name"] for scene in listed["scenes"]] == ["nowhere", "s0", "s1"] and listed[
        "words"
    ] == "3 of 3 scenes"
    prints = shown.panel.layers.footprints.data["features"]
    assert [print_["properties"]["scene"] for print_ in prints] == ["s0", "s1"]
    assert "no scene of the archive has a cloud cover" in ask("scenes", **everything | {"cloud": 20})
    later = ask("scenes", **everything | {"start": "2024-06-01"})
    assert [scene["name"] for scene in later["scenes"]] == ["s1"] and "1 scene of 3 without a date" in later["words"]
    ask("scenes", **everything)
    found = ask("search", text="Red")
    assert [scene["name"] for scene in found["scenes"]["scenes"]][0] == "s1" and "low" not in found
    first = found["hits"][0]
    assert first["scene"] == "s1" and [first[key] for key in Window._fields] == list(RED) and first["score"] == 1.0
    shown.panel.layers.footprints._click_callbacks(feature=prints[0], event="click")
    assert pushed.pop() == {"push": {"open": "s0"}}
    pin = next(layer for layer in shown.map.layers[-1].layers)
    pin._handle_mouse_events(pin, {"type": "click"}, [])
    assert pushed.pop()["push"]["hit"]["scene"] == "s1"
    opened = ask("open", scene="s1")
    assert shown.scene.name == "s1" and opened["found"]["query"] == "Red" and shown.surface is not None
    assert shown.panel.setting["scene"]["facts"][-1] == "2024-07-01"
    back = ask("back")
    assert shown.scene is None and back["found"]["hits"] == found["hits"] and len(shown.map.layers[-1].layers) == 2
    assert "unknown scene 's9'" in ask("open", scene="s9") and shown.scene is None
    (folder / "s0.tif").unlink()
    assert "s0.tif" in ask("open", scene="s0") and shown.map is not None


@pytest.mark.parametrize("tier", ["faiss", "lancedb"])
def test_an_archive_is_searched_through_a_tier(tmp_path, tier, monkeypatch):
    needed(tier)
    folder = tmp_path / "scenes"
    folder.mkdir()
    for number in range(3):
        write_raster(folder / f"s{number}.tif", green_with_red(200, 120, 96, 32, 16 * (number + 1)))
    expected = open_map(folder, tmp_path, results=5)[1]("search", text="Red")["hits"]
    shown, ask, _ = open_map(folder, tmp_path, results=5, tier=tier)
    asked = []
    search = WindowIndex.find
    monkeypatch.setattr(
        WindowIndex, "find", lambda index, *given, **more: asked.append(1) or search(index, *given, **more)
    )
    assert ask("search", text="Red")["hits"] == expected and asked
    assert shown.panel.models.embedded.windows.tier.kind == tier
    with pytest.raises(ValueError, match="tier: 'gold' is none of exact, faiss, lancedb"):
        open_map(folder, tmp_path, tier="gold")


def test_an_archive_tells_what_it_leaves_out(tmp_path):
    (tmp_path / "a.tif").write_text("no raster")
    write_raster(tmp_path / "b.tif", green_with_red(64, 64, 0, 0, 16))
    shown, ask, _ = open_map(tmp_path, tmp_path)
    assert any("left out: " in note and "a.tif" in note for note in shown.panel.setting["archive"]["notes"])
    assert ask("open", scene="b") == {"found": None} and shown.map.crs["name"] == "Simple"


def test_a_page_escapes_and_checks_what_it_is_given(red_square, tmp_path):
    with open_scene(red_square) as scene:
        windows = embed_scene(ColourEncoder(), scene, tmp_path / "w.parquet", sizes=(32,))
        from rsvlm.scenes.search import find_peaks, search_scene

        surface = search_scene(windows, "Red", ColourEncoder())
        hits = find_peaks(surface, 2)
        html = render_scene_page(scene, [(SCRIPT, surface, hits, [SCRIPT, ""], SCRIPT)], SCRIPT, lead=SCRIPT)
        assert SCRIPT not in html and html.count("&lt;script&gt;") >= 4
        assert "45.1492° N, 15.0142° E" in html and html.count('class="pin"') == 2
        assert html.count("data:image/jpeg") == 3 and html.count("data:image/png") == 1
        with pytest.raises(ValueError, match="1 captions for 2 hits"):
            render_scene_page(scene, [("Red", surface, hits, ["one"])], "t")
        with pytest.raises(ValueError, match="no result"):
            render_scene_page(scene, [], "t")
        assert render_scene_page(scene, [("Red", surface, hits.iloc[:0])], "t").count("Nothing found.") == 1


def test_large_boxes_are_captioned_by_their_windows(red_square, tmp_path, monkeypatch):
    shown, ask, _ = open_map(red_square, tmp_path, captioner="somewhere")
    vars(shown.panel.models)["captioner"] = type("Told", (), {"memory": type("Memory", (), {"captions": {"a": ["A."]}, "vectors": np.ones((1, 3), np.float16)})()})()  # fmt: skip
    asked = {}

    def tell(captioner, part, *, size):
        asked.update(part=part, size=size, corner=part.read(Window(0, 0, 1, 1)).pixels[0, 0].tolist(), place=part.polygon(Window(0, 0, 10, 10)).bounds)  # fmt: skip
        windows = geopandas.GeoDataFrame([dict(left=0, top=0, width=30, height=30), dict(left=30, top=0, width=30, height=30)])  # fmt: skip
        sentences = geopandas.GeoDataFrame({"sentence": ["All is red."], "windows": [(0, 1)]})
        return type("Said", (), {"overview": "Red.", "warning": "", "windows": windows, "sentences": sentences})()

    monkeypatch.setattr(scene_models, "caption_scene", tell)
    said = ask("caption", window={"left": 96, "top": 32, "width": 100, "height": 60})
    assert said["text"] == "Red." and asked["size"] == 32 and asked["corner"] == [200, 0, 0]
    assert asked["place"] == (500_960.0, 4_999_580.0, 501_060.0, 4_999_680.0)
    [part] = said["parts"]
    assert part["text"] == "All is red." and [window["left"] for window in part["windows"]] == [96, 126]
    assert ask("mark", windows=part["windows"]) == {} and len(shown.panel.layers.chosen.locations) == 2


@pytest.mark.parametrize(
    ("text", "bands"),
    [("", None), ("4,3,2", [4, 3, 2]), ("B04, B03, red", ["B04", "B03", "red"]), ("2", [2]), ("naip", "naip")],
)
def test_bands_are_named_in_a_line(text, bands):
    assert scene_map.read_bands(text) == bands


def test_notebook_runs(root, red_square, capsys):  # noqa: F811
    build_study(root)
    add_captioner()
    scope = run_cells("91_scenes", scene=str(red_square), window=64)
    assert "scratch/91_scenes/places.geojson and similarity.tif: written\n" in capsys.readouterr().out
    out = root / "scratch" / "91_scenes"
    assert sorted(path.name for path in out.iterdir()) == ["places.geojson", "similarity.tif"]
    assert (
        len(geopandas.read_file(out / "places.geojson")) == len(scope["hits"]) == 6
    )  # of 64 pixels that hardly overlap
    assert scope["windows"].meta["sizes"] == [64] and len(scene_map.training_pictures(scope["study"])) == 4


def test_a_part_of_a_scene_is_captioned_as_a_scene(root, red_square):  # noqa: F811
    build_study(root)
    add_captioner()
    models = scene_models.SceneModels(root / "models" / "encoder", root / "models" / "captioner", sizes=(32,), overlap=0, device="cpu")  # fmt: skip
    with open_scene(red_square) as scene:
        said = models.caption_parts(scene_models.ScenePart(scene, Window(64, 0, 128, 64)), 32)
    windows = {(window["left"], window["top"]) for part in said["parts"] for window in part["windows"]}
    assert windows == {(left, top) for left in (64, 96, 128, 160) for top in (0, 32)} and said["text"]


def test_a_scene_is_found_beside_the_notebook_or_from_the_root(red_square, tmp_path, monkeypatch):
    study = SimpleNamespace(root=tmp_path)
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    monkeypatch.chdir(notebooks)
    beside = write_raster(notebooks / "beside.tif", green_with_red(90, 60, 0, 0, 8))
    for place, width in (("beside.tif", 90), ("notebooks/beside.tif", 90), ("scene.tif", 200), (str(beside), 90)):
        with scene_map.open_place(study, place)[1] as scene:
            assert scene.width == width
    with pytest.raises(FileNotFoundError, match="none.tif: no such file or folder in .*notebooks or in "):
        scene_map.open_place(study, "none.tif")
