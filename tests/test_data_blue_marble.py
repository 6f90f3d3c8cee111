"""The Blue Marble tiles: maps read rightly, splits apart, captions true to the maps."""

import json
import random
import re

import numpy as np
import pytest

from rsvlm.data import blue_marble
from rsvlm.data.blue_marble import TileSettings, gap_between, land_tiles, load_maps, make_blue_marble, split_tiles
from rsvlm.data.boxes import Box, boxes_of_mask
from rsvlm.data.caption_readers import read_karpathy
from rsvlm.data.land_captions import (
    CLIMATES,
    GROUPS,
    WATER,
    describe_land,
    dominant_land,
    is_central,
    place_of,
)
from rsvlm.data.land_sentences import Count


@pytest.fixture(scope="module")
def maps():
    return load_maps()


@pytest.fixture(scope="module")
def splits(maps):
    settings = TileSettings()
    return split_tiles(land_tiles(maps, settings), settings)


@pytest.mark.parametrize(
    ("north", "east", "climate", "group"),
    [
        (-3.5, -62, "tropical", "evergreen broadleaf forest"),
        (24, 5, "arid", "barren land"),
        (49.2, 2.8, "temperate", "cropland"),
        (72, -40, "polar", "snow and ice"),
        (49.5, -97.5, "continental", "cropland"),
        (0, -30, "none", "water"),
    ],
)
def test_maps_agree_with_known_places(maps, north, east, climate, group):
    row, column = round((90 - north) * 20), round((east + 180) * 20)
    assert CLIMATES[maps.climate[row, column]] == climate
    assert GROUPS[maps.groups[row, column]] == group
    assert maps.sea[row, column] == (group == "water")


def test_lakes_are_no_sea(maps):
    for north, east, sea in [(47.7, -87.5, False), (42, 51, True), (35, 18, True), (-1, 33, False)]:
        row, column = round((90 - north) * 20), round((east + 180) * 20)
        assert maps.groups[row, column] == WATER and maps.sea[row, column] == sea


def test_splits_have_their_sizes_classes_and_distance(splits):
    assert {split: len(tiles) for split, tiles in splits.items()} == {"train": 1280, "val": 160, "test": 160}
    common = {
        "cropland",
        "grassland",
        "savanna",
        "shrubland",
        "barren land",
        "open woodland",
        "evergreen broadleaf forest",
        "mixed forest",
    }
    for tiles in splits.values():
        assert common <= {tile.label for tile in tiles}
    names = [tile.name for tiles in splits.values() for tile in tiles]
    assert len(set(names)) == len(names)
    for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
        assert min(gap_between(x, y) for x in splits[a] for y in splits[b]) >= TileSettings().degrees / 2 - 1e-6


def test_gap_knows_the_date_line():
    west, east = blue_marble.Tile(-180, 10, 3.2, ""), blue_marble.Tile(176.8, 10, 3.2, "")
    assert gap_between(west, east) == pytest.approx(0)


def test_folder_is_karpathy_and_the_same_each_time(maps, splits, tmp_path, monkeypatch):
    monkeypatch.setattr(blue_marble, "load_maps", lambda: maps)
    monkeypatch.setattr(blue_marble, "DRAWS", 10)
    settings = TileSettings(tiles=40)
    assert make_blue_marble(settings, tmp_path / "a") == {"train": 32, "val": 4, "test": 4}
    make_blue_marble(settings, tmp_path / "b")
    files = [
        sorted((path.relative_to(tmp_path / name), path.read_bytes()) for path in (tmp_path / name).rglob("*.*"))
        for name in "ab"
    ]
    assert files[0] == files[1] and len(files[0]) == 41
    listing = read_karpathy(tmp_path / "a/dataset.json", labels="field")
    for image in listing.images:
        assert len(set(image.captions)) == 5 and image.label in GROUPS
        for caption in image.captions:
            assert caption[0].isupper() and caption.endswith(".") and "{" not in caption and "  " not in caption
            assert not {"left", "right", "north", "south", "east", "west", "top", "bottom"} & set(
                caption.lower().split()
            )
    assert listing.counts["captions_with_other_tokens"] == 0
    bounds = json.loads((tmp_path / "a/dataset.json").read_text())["images"][0]["bounds"]
    assert bounds["east"] - bounds["west"] == pytest.approx(3.2)


def test_missing_package_says_what_to_install():
    with pytest.raises(FileNotFoundError, match="pip install --no-deps some-package"):
        blue_marble._package_file("no_such_package.data", "x.tif", "some-package")


def describe(groups, sea=None, climate="temperate", snow=False, seed=0):
    """Captions of a tile; ``groups`` holds names."""
    array = np.vectorize(GROUPS.index)(groups).astype(np.uint8)
    sea = np.zeros(array.shape, bool) if sea is None else sea
    zones = np.where(array == WATER, 0, CLIMATES.index(climate)).astype(np.uint8)
    return describe_land(array, sea, zones, np.full(array.shape, snow), random.Random(seed))


def tile(fill, **parts):
    groups = np.full((64, 64), fill, dtype=object)
    for name, where in parts.items():
        groups[where] = name.replace("_", " ")
    return groups


def test_a_lake_in_the_middle_of_a_forest():
    groups = tile("mixed forest", water=np.s_[26:38, 26:38])
    for seed in range(5):
        centre, edges, shares, water, climate = describe(groups, seed=seed)
        assert "a lake" in centre.lower() and "mixed forest" in centre.lower()
        assert "mixed forest" in edges.lower() and "most" in shares.lower()
        assert "water" in water.lower() and "sea" not in water.lower() and "temperate" in climate


def test_a_coast_and_an_island():
    groups = tile("cropland", water=np.s_[:, 40:])
    sea = groups == "water"
    texts = [" ".join(describe(groups, sea, seed=seed)).lower() for seed in range(5)]
    assert all("sea" in text and "coast" in text and "about a third" in text for text in texts)
    groups[10:20, 48:58] = "cropland"
    assert all("one island" in describe(groups, groups == "water", seed=seed)[3].lower() for seed in range(5))


def test_what_touches_other_ground_is_not_called_surrounded():
    groups = tile("water", cropland=np.s_[:, :24], built_up_land=np.s_[26:34, 24:30])
    groups[groups == "built up land"] = "built-up land"
    for seed in range(10):
        assert not any(word in describe(groups, seed=seed)[0].lower() for word in ("surround", "lies in the middle"))


def test_snow_is_told_where_it_can_be():
    assert "under snow" in describe(tile("shrubland"), climate="polar", snow=True)[4]
    assert "snow" not in " ".join(describe(tile("barren land"), climate="arid", snow=True))
    assert not any(
        re.search(r"\ba a", text, re.IGNORECASE)
        for seed in range(8)
        for text in describe(tile("grassland"), climate="arid", seed=seed)
    )


def test_one_cover_only_still_gives_five_different_sentences():
    for seed in range(20):
        assert len(set(describe(tile("barren land"), climate="arid", seed=seed))) == 5
    assert dominant_land(np.array([[0, 0, 0, 10]])) == "cropland"


def test_masks_to_boxes():
    mask = np.zeros((10, 12), bool)
    mask[1:4, 2:6] = True
    mask[4, 6] = True  # touches by a corner
    mask[8, 10] = True
    assert boxes_of_mask(mask, "x") == [Box("x", 2, 1, 7, 5, 13), Box("x", 10, 8, 11, 9, 1)]
    assert boxes_of_mask(mask, "x", min_pixels=2) == [Box("x", 2, 1, 7, 5, 13)]


@pytest.mark.parametrize(
    ("box", "place", "central"),
    [
        ((4, 4, 8, 8), "in the middle", True),
        ((1, 4, 3, 8), "away from the edges", False),
        ((0, 4, 3, 8), "at one edge", False),
        ((0, 0, 3, 3), "in one corner", False),
        ((0, 9, 12, 11), "from edge to edge", False),
        ((0, 0, 12, 12), "around the edges", True),
    ],
)
def test_places(box, place, central):
    assert place_of(Box("x", *box, 1), 12, 12) == place and is_central(Box("x", *box, 1), 12, 12) == central


def test_counts_in_words():
    assert [str(Count(n, "lake", "lakes")) for n in (1, 3, 10, 11)] == [
        "one lake",
        "three lakes",
        "ten lakes",
        "many lakes",
    ]
