"""The Earth searched by text: classes of land against the map, what texts find, and what is written of it."""

import geopandas
import numpy as np
import pandas as pd
import pytest
import rasterio
from scene_case import COLOURS, ColourEncoder

from rsvlm.data.land_captions import GROUPS
from rsvlm.files import write_json
from rsvlm.scenes import earth as earth_search
from rsvlm.viewing.earth_figures import earth_figure, earth_page, earth_result, land_figure

TILE = {"west": -80.0, "south": -10.0, "east": -40.0, "north": 10.0}  # the Amazon


@pytest.fixture(scope="module")
def earth(tmp_path_factory):
    folder = tmp_path_factory.mktemp("earth")
    tiles = {"train": np.array([list(TILE.values())]), "val": np.zeros((0, 4))}
    how = {"window_pixels": 180, "overlap": 0.0, "land_share": 0.25}
    found = earth_search.embed_earth(ColourEncoder(), folder, tiles, **how)
    yield found
    found.globe.close()


def test_windows_of_sea_are_left_out_and_training_ground_is_named(earth):
    described = earth.described
    assert len(described) == len(earth.windows.table) < 30 * 15
    assert (described["land"] > 0.1).all()  # a quarter of it is no sea; lakes count as water
    assert set(described["part"]) == {"train", "test", "outside"}
    amazon = described[described["part"] == "train"]
    assert amazon["evergreen broadleaf forest"].max() > 0.8


def test_a_study_without_tiles_says_what_to_do(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"dataset\.json: the study holds no tiles.*search_earth\.search: false"
    ):
        earth_search.study_tiles(tmp_path)
    entries = [{"split": "train", "bounds": TILE}, {"split": "val", "bounds": TILE}]
    write_json(tmp_path / "dataset.json", {"images": entries})
    tiles = earth_search.study_tiles(tmp_path)
    assert tiles["train"].tolist() == [list(TILE.values())] and tiles["test"].shape == (0, 4)


def described(parts, classes):
    """Windows that are wholly of one class each."""
    rows = pd.DataFrame({"part": parts, "block": np.arange(len(parts)) // 4})
    for name in GROUPS[1:]:
        rows[name] = [1.0 if own == name else 0.0 for own in classes]
    return rows


def test_scores_of_classes_are_those_of_the_test_windows():
    """On test windows text knows cropland by heart, and is wrong on all others, which must not count."""
    classes = ["cropland", "grassland"] * 60
    parts = ["test"] * 80 + ["train"] * 20 + ["val"] * 20
    windows, is_crop = described(parts, classes), np.array(classes) == "cropland"
    right = np.where(np.array(parts) == "train", ~is_crop, is_crop).astype(float)
    scores = {
        name: dict.fromkeys(earth_search.METHODS, value)
        for name, value in {"cropland": right, "grassland": 1 - right, "wetland": right}.items()
    }
    found = earth_search.score_classes(scores, windows, resamples=20)
    assert found["scored"] == ["cropland", "grassland"] and found["classes"]["wetland"] == {"too_few": 0}
    assert found["classes"]["cropland"]["text"]["average_precision"]["value"] == 1.0
    assert found["classes"]["cropland"]["text"]["roc_auc"]["n"] == 80
    assert found["mean"]["text"] == {"average_precision": 1.0, "roc_auc": 1.0}
    chosen = earth_search.choose_standing(scores, windows)
    assert chosen["windows"] == 20 and set(chosen["by_class"]) == {"cropland", "grassland"}
    least = earth_search.threshold_at(right, chosen["any"])
    assert 0 < least <= 1


def test_no_validation_windows_leaves_the_stated_standing():
    windows = described(["test"] * 8, ["cropland", "grassland"] * 4)
    chosen = earth_search.choose_standing({"cropland": {"text": np.arange(8.0)}}, windows)
    assert chosen == {"by_class": {}, "any": earth_search.STANDING, "windows": 0}


def test_what_is_found_is_written_and_read_back(earth, tmp_path, monkeypatch):
    """The greenest land is found by "Green"; GeoJSON, GeoTIFF and the page tell the same place."""
    found = earth_search.find_places(earth, ["Green", "Red"], ColourEncoder(), standing=1.0, hits=3, apart_km=2000.0)
    land = {"classes": {}, "mean": {}, "scored": []}
    earth_search.write_found(found, land, tmp_path / "files")
    hits = geopandas.read_file(tmp_path / "files" / "hits.geojson")
    assert hits["query"].tolist() == ["Green"] * 3 + ["Red"] * 3 and hits.crs.to_epsg() == 4326
    best = earth_search.describe_found(found)[0]
    middle = hits.geometry.iloc[0].centroid
    assert (round(middle.x, 2), round(middle.y, 2)) == pytest.approx((best["longitude"], best["latitude"]), abs=0.011)
    metres = hits.iloc[:3].to_crs("EPSG:4087").geometry.centroid
    assert min(metres.iloc[i].distance(metres.iloc[j]) for i, j in ((0, 1), (0, 2), (1, 2))) > 2_000_000
    with rasterio.open(tmp_path / "files" / "similarity_01_green.tif") as file:
        value = next(file.sample([(middle.x, middle.y)]))[0]
        assert value == pytest.approx(float(found[0].hits["score"].iloc[0]), abs=1e-5)
    assert sorted(COLOURS) == ["Blue", "Green", "Red"]
    metrics = {"searched": True, "windows": {"embedded": len(earth.described), "test": 3, "train": 2}, "land": land}
    page = earth_page(earth.globe, found, metrics)
    assert "Search the Earth" in page and "Green" in page
    assert len(earth_figure(earth.globe.overview(200).pixels, found).axes) == 4
    assert "windows of the Earth were searched" in str(earth_result(metrics))
    assert "was not searched" in str(earth_result({"searched": False}))


def test_the_figure_marks_classes_without_an_interval():
    classes = ["cropland"] * 40 + ["grassland"] * 40
    windows = described(["test"] * 80, classes)
    windows["block"] = [0] * 40 + [number % 20 + 1 for number in range(40)]  # all cropland in one block
    values = np.linspace(0, 1, 80)
    scores = {name: dict.fromkeys(earth_search.METHODS, values) for name in ("cropland", "grassland")}
    found = earth_search.score_classes(scores, windows, resamples=20)
    labels = [label.get_text() for label in land_figure(found).axes[0].get_yticklabels()]
    assert labels == ["cropland*", "grassland"]
    table = earth_search.land_table(found)
    assert table["average_precision_low"].isna().tolist()[:3] == [True] * 3 and len(table) == 9
