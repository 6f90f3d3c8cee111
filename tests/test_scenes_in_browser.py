"""The map of a scene in JupyterLab and its page, in a real Chromium without a network: by mouse, by keyboard, on a phone."""

import re
from functools import partial
from pathlib import Path

import geopandas
import nbformat
import pytest
from browser_case import SCREENSHOTS, in_a_browser, playwright, serious_findings
from nbformat.v4 import new_code_cell, new_notebook
from rasterio import Affine
from scene_case import UTM, ColourEncoder, green_with_red, write_raster
from test_in_browser import Lab, Watched, put_on, run_all, wait_until

from rsvlm.data.rasters.scene import open_scene
from rsvlm.scenes.embedding import embed_scene
from rsvlm.scenes.search import find_peaks, search_scene
from rsvlm.study.strip import METADATA
from rsvlm.viewing.page import write_page
from rsvlm.viewing.scene_page import render_scene_page

pytestmark = in_a_browser
TESTS = Path(__file__).parent
NASTY = "<script>document.title='taken'</script>"
CELLS = (
    f"import sys; sys.path.insert(0, {str(TESTS)!r})\n"
    "from scene_case import ColourEncoder\nfrom rsvlm.viewing.scene_map import SceneMap\n"
    "options = {'sizes': (32,), 'out': 'out', 'examples': ['Red', 'Green']}",
    "SceneMap('scene.tif', ColourEncoder(), **options)",
    "SceneMap('archive', ColourEncoder(), **options)",
    "SceneMap('text.tif', ColourEncoder())",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with a scene, an archive of two, a file that is no scene, and a notebook that shows all three."""
    root = tmp_path_factory.mktemp("scenes") / "root"
    (root / "archive").mkdir(parents=True)
    (root / "dvc.yaml").write_text("stages: {}\n")
    (root / "text.tif").write_text("no raster")
    write_raster(root / "scene.tif", green_with_red(600, 360, 288, 96, 64), crs="EPSG:32633", transform=UTM)
    for number, name in enumerate(("one", f"two {NASTY.replace('/', '')}")):
        place = Affine.translation(500_000 + 20_000 * number, 5_000_000) @ Affine.scale(50, -50)
        pixels = green_with_red(200, 120, 96, 32, 16 * (number + 1))
        write_raster(root / "archive" / f"{name}.tif", pixels, crs="EPSG:32633", transform=place)
    notebook = new_notebook(cells=[new_code_cell(text) for text in CELLS], metadata=METADATA)
    nbformat.write(notebook, root / "maps.ipynb")
    return root


@pytest.fixture(scope="module")
def lab(root, tmp_path_factory):
    started = Lab(root, tmp_path_factory.mktemp("jupyter"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def notebook(lab, browser):
    """The notebook in JupyterLab, all cells run; ``outside`` lists what was asked of other machines."""
    watched = Watched(browser, viewport={"width": 1400, "height": 1000})
    watched.outside = []
    own = (f"http://127.0.0.1:{lab.port}", f"ws://127.0.0.1:{lab.port}", "data:", "blob:")
    watched.page.on(
        "request", lambda request: None if request.url.startswith(own) else watched.outside.append(request.url)
    )
    watched.page.goto(f"http://127.0.0.1:{lab.port}/lab/tree/maps.ipynb?token={lab.token}")
    watched.page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    run_all(watched.page)
    watched.page.locator(".rsvlm-scene-map").nth(2).wait_for()
    watched.page.evaluate("window.jupyterapp.shell.collapseLeft()")
    yield watched
    watched.page.context.close()


def map_of(page, number):
    """The n-th map with its panel, in view."""
    shown = page.locator(".rsvlm-scene-map").nth(number)
    shown.scroll_into_view_if_needed()
    return shown


def test_a_text_is_found_on_the_map_and_in_the_list(notebook):
    page, shown = notebook.page, map_of(notebook.page, 0)
    shown.get_by_role("button", name="Red", exact=True).click()
    playwright.expect(shown.locator("li.hit")).to_have_count(10)
    playwright.expect(shown.locator(".leaflet-marker-icon")).to_have_count(10)
    playwright.expect(shown.locator(".ramp")).to_have_attribute("aria-label", re.compile("Colours of the surface"))
    surface = shown.locator(".leaflet-overlay-pane img").last
    assert surface.evaluate("image => [image.src.slice(0, 14), getComputedStyle(image).opacity]") == [
        "data:image/png",
        "0.5",
    ]
    shown.get_by_label("opacity").fill("80")
    wait_until(lambda: surface.evaluate("image => image.style.opacity") == "0.8", "the surface's opacity")
    shown.locator(".leaflet-marker-icon", has_text=re.compile("^1$")).click()
    playwright.expect(shown.locator("section h3", has_text="Hit 1")).to_be_visible()
    playwright.expect(shown.locator("li.hit.chosen .rank")).to_have_text("1")
    playwright.expect(shown.locator(".detail .facts")).to_contain_text("similarity 1.000 · 45.14")
    notebook.shoot("scene_map")
    before = shown.locator(".leaflet-overlay-pane img").nth(1).get_attribute("src")
    shown.get_by_role("button", name="Show 2", exact=False).click()  # the map goes there, and is read sharper
    wait_until(lambda: shown.locator("li.hit.chosen .rank").inner_text() == "2", "the second hit")
    assert before is not None and page.title() != "taken"


def test_a_box_is_drawn_and_its_like_found(notebook):
    page, shown = notebook.page, map_of(notebook.page, 0)
    shown.get_by_role("button", name="Whole scene").click()
    page.wait_for_timeout(700)  # the map's own way there
    shown.locator(".leaflet-draw-draw-rectangle").click()
    box = shown.locator(".leaflet-container").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 40, y + 40, steps=4)
    page.mouse.move(x + 80, y + 60, steps=4)
    page.mouse.up()
    playwright.expect(shown.locator("section h3", has_text="Box")).to_be_visible()
    playwright.expect(shown.locator(".panel .facts", has_text="pixels,").last).to_be_visible()
    shown.get_by_role("button", name="Find its like").last.click()
    playwright.expect(shown.locator("section h3", has_text="“like 45.1")).to_be_visible()
    playwright.expect(shown.locator("section h3", has_text="The chosen window")).to_have_count(
        0
    )  # its end was no click
    shown.get_by_role("button", name="Clear").click()
    playwright.expect(shown.locator("section h3", has_text="Box")).to_have_count(0)


def test_what_is_found_is_saved(notebook, root):
    shown = map_of(notebook.page, 0)
    shown.get_by_label("What to look for").fill("Red")
    shown.get_by_label("What to look for").press("Enter")
    playwright.expect(shown.locator("section h3", has_text="“Red”")).to_be_visible()
    shown.locator("summary", has_text="Outline and export").press("Enter")
    shown.get_by_label("similar by at least").fill("0.5")
    shown.get_by_role("button", name="Outline", exact=True).click()
    playwright.expect(shown.locator(".panel .number", has_text="1 place,")).to_be_visible()
    for name in ("Hits (GeoJSON)", "Outline (GeoJSON)", "Surface (GeoTIFF)"):
        shown.get_by_role("button", name=name).click()
        kind, ending = name.split(" ")[0].lower(), "tif" if "TIFF" in name else "geojson"
        playwright.expect(shown.get_by_text(f"written: out/scene-Red-{kind}.{ending}")).to_be_visible()
    places = geopandas.read_file(root / "out" / "scene-Red-hits.geojson").to_crs("EPSG:32633")
    red = geopandas.points_from_xy([500_000 + 320 * 10], [5_000_000 - 128 * 10], crs="EPSG:32633")[0]
    assert places.geometry.iloc[0].distance(red) < 400
    shown.get_by_label("similar by at least").fill("2")
    shown.get_by_role("button", name="Outline (GeoJSON)").click()
    playwright.expect(shown.locator(".trouble")).to_contain_text("No place is as similar as 2.000")
    notebook.shoot("scene_map_export")


def test_an_archive_is_filtered_and_a_scene_opened(notebook):
    shown = map_of(notebook.page, 1)
    playwright.expect(shown.locator(".scenes li")).to_have_count(2)
    drawn = "paths => paths.filter((path) => path.getAttribute('d') !== 'M0 0').length"
    wait_until(lambda: shown.locator(".leaflet-overlay-pane path").evaluate_all(drawn) == 2, "the footprints")
    shown.get_by_label("clouds below, %").fill("20")
    shown.get_by_label("clouds below, %").press("Tab")
    playwright.expect(shown.locator(".trouble")).to_contain_text("no scene of the archive has a cloud cover")
    shown.get_by_label("clouds below, %").fill("")
    shown.get_by_label("clouds below, %").press("Tab")
    playwright.expect(shown.locator(".trouble")).to_be_hidden()
    shown.get_by_role("button", name="Red", exact=True).click()
    playwright.expect(shown.locator("li.hit")).to_have_count(10)
    playwright.expect(shown.locator(".scenes li").first).to_contain_text("two <script>")
    notebook.shoot("scene_archive")
    shown.locator("li.hit .thumb").first.click()
    playwright.expect(shown.locator("h2")).to_contain_text("two <script>")
    playwright.expect(shown.locator("section h3", has_text="Hit 1")).to_be_visible()
    notebook.shoot("scene_of_an_archive")
    shown.get_by_role("button", name="← All scenes").click()
    playwright.expect(shown.locator("h2")).to_have_text("archive")
    playwright.expect(shown.locator(".leaflet-marker-icon")).to_have_count(10)
    assert notebook.page.title() != "taken"


def test_a_file_that_is_no_scene_is_told_of(notebook):
    shown = map_of(notebook.page, 2)
    playwright.expect(shown.locator(".trouble")).to_contain_text("text.tif: cannot be read as a scene")
    playwright.expect(shown.get_by_label("What to look for")).to_be_hidden()


def test_the_map_is_used_by_keyboard_alone(notebook):
    page, shown = notebook.page, map_of(notebook.page, 0)
    cells = page.locator(".jp-Notebook .jp-Cell").count()
    shown.get_by_role("button", name="Whole scene").click()
    page.wait_for_timeout(700)
    shown.locator(".leaflet-container").focus()
    before = shown.locator(".leaflet-map-pane").get_attribute("style")
    page.keyboard.press("ArrowDown")  # JupyterLab's own key for the next cell
    wait_until(lambda: shown.locator(".leaflet-map-pane").get_attribute("style") != before, "the map's move")
    assert shown.evaluate("map => map.contains(document.activeElement)")
    shown.locator(".leaflet-marker-icon", has_text=re.compile("^3$")).focus()
    page.keyboard.press("Enter")
    playwright.expect(shown.locator("section h3", has_text="Hit 3")).to_be_visible()
    shown.get_by_role("button", name="Take what the map shows").focus()
    page.keyboard.press("Enter")
    playwright.expect(shown.locator("section h3", has_text="Box")).to_be_visible()
    shown.get_by_label("What to look for").focus()
    page.keyboard.type("dd x")  # would cut and delete cells
    assert page.locator(".jp-Notebook .jp-Cell").count() == cells


@pytest.mark.parametrize("theme", ["Light", "Dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_axe_finds_nothing_serious_on_the_maps_and_nothing_is_cut(notebook, width, theme):
    page = notebook.page
    put_on(page, theme)
    page.add_style_tag(content="body { height: 100vh }")  # JupyterLab's has none, and axe takes all in it for hidden
    page.set_viewport_size({"width": width, "height": 4000})
    page.wait_for_timeout(500)
    maps = page.locator(".rsvlm-scene-map")
    cut = maps.evaluate_all("maps => maps.map(map => map.scrollWidth > map.clientWidth + 1)")
    found = {}
    for number in range(2):
        map_of(page, number)
        found |= serious_findings(page, ".rsvlm-scene-map")
    page.set_viewport_size({"width": width, "height": 1000})
    for number in range(2):
        maps.nth(number).evaluate("map => map.scrollIntoView({ block: 'start' })")
        page.wait_for_timeout(300)
        notebook.shoot(f"scene_map_{number}_{width}_{theme}")
    assert cut == [False] * 3 and not found


def test_nothing_was_complained_of_and_nothing_fetched(notebook):
    assert [fault for fault in notebook.faults if "favicon" not in fault] == []
    assert notebook.outside == []


# The page


@pytest.fixture(scope="module")
def made(root):
    """The page of two searches in the scene."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RSVLM_CACHE", str(root / "cache"))
        with open_scene(root / "scene.tif") as scene:
            windows = embed_scene(ColourEncoder(), scene, root / "windows.parquet", sizes=(64,))
            results = []
            for text in ("Red", "Green"):
                surface = search_scene(windows, text, ColourEncoder())
                hits = find_peaks(surface, 8)
                results.append((text, surface, hits, [NASTY] * len(hits), NASTY))
            html = render_scene_page(scene, results, f"Searched {NASTY}", lead=NASTY, about="Made by a test.")
    path = root / "page.html"
    assert write_page(path, html) < 1_000_000
    return path


@pytest.fixture
def show(open_page, made):
    """A function: the page, as ``open_page`` opens it."""
    return partial(open_page, made)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_axe_finds_nothing_serious_on_the_page_and_nothing_is_cut(show, width, theme):
    page = show(width, theme)
    page.locator(".hit .thumb").first.click()
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"page_scene_{width}_{theme}.png")
    assert not serious_findings(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth") and page.title().startswith("Searched <")


def test_the_page_shows_a_query_at_a_time_and_leads_from_number_to_entry_and_back(show):
    page = show(1400)
    red, green = page.locator("ol.hits").first, page.locator("ol.hits").last
    playwright.expect(red.locator("li")).to_have_count(8)
    playwright.expect(green).to_be_hidden()
    page.get_by_role("button", name="Green", exact=True).focus()
    page.keyboard.press("Enter")
    playwright.expect(green).to_be_visible()
    playwright.expect(red).to_be_hidden()
    playwright.expect(page.locator("img.surface >> visible=true")).to_have_count(1)
    page.get_by_role("button", name=re.compile("^3: ")).press("Enter")
    playwright.expect(green.locator("li.chosen .rank")).to_have_text("3")
    page.get_by_role("button", name=re.compile("^Show 5 on the scene")).press("Enter")
    playwright.expect(page.locator(".pin.chosen")).to_have_text("5")
    page.get_by_role("slider", name="surface").fill("20")
    playwright.expect(page.locator("#amount")).to_have_text("20 %")
    assert page.locator("img.surface >> visible=true").evaluate("image => getComputedStyle(image).opacity") == "0.2"
    page.get_by_label("size").select_option("4")
    frame = page.locator("#frame")
    assert frame.evaluate("frame => frame.scrollWidth > 3 * frame.clientWidth")
    box, pin = frame.bounding_box(), page.locator(".pin.chosen").bounding_box()
    assert box["x"] <= pin["x"] <= box["x"] + box["width"] and box["y"] <= pin["y"] <= box["y"] + box["height"]
