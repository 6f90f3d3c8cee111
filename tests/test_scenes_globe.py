"""The globe as a scene: its pixels, its place on Earth, and which windows may be measured."""

import numpy as np
import pandas as pd
import pytest

from rsvlm.data.blue_marble import load_maps
from rsvlm.data.land_captions import GROUPS
from rsvlm.data.rasters.scene import open_scene
from rsvlm.data.rasters.windows import Window
from rsvlm.scenes.globe import class_texts, describe_windows, land_of, make_globe


@pytest.fixture(scope="module")
def maps():
    return load_maps()


@pytest.fixture(scope="module")
def globe(maps, tmp_path_factory):
    with open_scene(make_globe(tmp_path_factory.mktemp("globe") / "blue_marble.tif", maps), stretch="none") as scene:
        yield scene


def windows(*rows):
    return pd.DataFrame(rows, columns=["left", "top", "width", "height"])


def test_the_pixels_are_the_packages(globe, maps):
    assert (globe.width, globe.height) == (5400, 2700) and globe.crs.to_epsg() == 4326
    whole = globe.read(Window(0, 0, 5400, 2700)).pixels
    assert np.array_equal(whole, np.asarray(maps.imagery))


def test_a_place_lies_where_it_lies(globe, maps):
    """Lake Victoria (33 E, 1 S) is water, the Tibesti (17.5 E, 20.5 N) bare: at the pixels that the transform tells."""
    for east, north, group in ((33.0, -1.0, "water"), (17.5, 20.5, "barren land")):
        column, row = (int(value) for value in ~globe.transform @ (east, north))
        assert GROUPS[maps.groups[row * 20 // 15, column * 20 // 15]] == group
    assert globe.polygon(Window(0, 0, 5400, 2700)).bounds == pytest.approx((-180, -90, 180, 90))


def test_a_file_that_is_there_stays(globe, tmp_path):
    mine = tmp_path / "mine.tif"
    mine.write_bytes(b"mine")
    assert make_globe(mine).read_bytes() == b"mine"


def test_lakes_are_land_and_the_sea_is_not(maps):
    land = land_of(maps)
    assert land[int((90 + 1) * 20), int((33 + 180) * 20)] and not land[1800, 20 * 20]  # Lake Victoria; the Pacific
    assert 0.3 < land.mean() < 0.36


def test_windows_near_training_tiles_take_no_part(maps):
    """Of a training tile at 0-3.2 E, 20-23.2 N: what comes closer than 1.6 degrees is out, the next is measured."""
    tile = np.array([[0.0, 20.0, 3.2, 23.2]])
    left, top, side = (0 + 180) * 15, (90 - 23.2) * 15, 48
    rows = windows(*[(int(left + shift), round(top), side, side) for shift in (0, 48, 71, 72, 73)])
    found = describe_windows(rows, maps, {"train": tile})
    assert found["part"].tolist() == ["train", "train", "train", "test", "test"]
    both = describe_windows(rows, maps, {"train": tile, "val": tile + [4.8, 0, 4.8, 0]})
    assert both["part"].tolist() == ["train", "train", "train", "val", "val"]
    assert found.loc[3, "barren land"] == pytest.approx(1.0, abs=0.05)  # the Sahara
    assert found.loc[3, list(GROUPS[1:])].sum() == pytest.approx(1.0)


def test_the_date_line_is_no_border(maps):
    tile = np.array([[176.8, 65.0, 180.0, 68.2]])  # Chukotka
    found = describe_windows(windows((0, (90 - 68) * 15, 48, 48)), maps, {"train": tile})
    assert found["part"].tolist() == ["train"]


def test_sea_and_poles_lie_outside(maps):
    rows = windows((int((180 - 150) * 15), 90 * 15, 48, 48), (0, 2652, 48, 48), (int((180 - 40) * 15), 15 * 9, 48, 48))
    assert describe_windows(rows, maps, {})["part"].tolist() == ["outside", "outside", "outside"]


def test_every_class_has_texts():
    texts = class_texts()
    assert set(texts) == set(GROUPS[1:]) and texts["cropland"][0] == "Nearly all of the image is cropland."
