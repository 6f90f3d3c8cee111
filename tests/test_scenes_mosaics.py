"""Synthetic mosaics: what lies where, needles that a mean-colour encoder can and cannot find, and SeLo's annotations."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from rsvlm.data.rasters.scene import open_scene
from rsvlm.data.rasters.windows import Window
from rsvlm.models.encoders import DualEncoder, Preprocessing
from rsvlm.scenes import needles as needles_module
from rsvlm.scenes.mosaics import (
    SYNTHETIC,
    MosaicError,
    cell_side,
    describe_sizes,
    find_distractors,
    overview,
    paint,
    plan_mosaic,
    plan_mosaics,
    read_selo,
    read_sizes,
    same_caption,
    write_mosaic,
)
from rsvlm.scenes.needles import (
    METHODS,
    caption_found,
    embed_mosaic,
    measure_costs,
    of_method,
    search_mosaics,
    search_selo,
    window_side,
)
from rsvlm.scenes.window_plans import plan_windows
from rsvlm.scoring.localisation import compare_needles, judge_map, judge_maps, judge_searches, score_needles
from rsvlm.viewing.mosaic_figures import (
    cost_table,
    draw_search,
    mosaic_result,
    needle_figure,
    needle_table,
    selo_table,
)

SIDE = 16  # of the images, pixels


class MeanColour(DualEncoder):
    """An image is its mean colour; a text "r g b" is that colour."""

    def __init__(self):
        super().__init__("mean colour", Preprocessing(8, (0.0,) * 3, (1.0,) * 3), 3, 3)
        self.logit_scale = torch.nn.Parameter(torch.zeros(()))
        self.looked = 0

    def image_features(self, pixel_values, grid=0):
        self.looked += len(pixel_values)
        return pixel_values.mean(dim=(-2, -1)) - 127.5, None

    def project_images(self, pooled):
        return pooled

    def text_features(self, texts):
        return torch.tensor([[float(value) for value in text.split()] for text in texts]) - 127.5

    def image_blocks(self):
        return [[]]

    def _save_into(self, folder):
        raise NotImplementedError


def colour_of(number):
    """Well separated colours, each with its own direction from grey."""
    return tuple(int(value) for value in np.random.default_rng(number).integers(0, 256, size=3))


@pytest.fixture
def rows(tmp_path):
    """Twenty images of one colour each, whose caption is that colour."""
    listed = []
    for number in range(20):
        path = tmp_path / "images" / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (SIDE, SIDE), colour_of(number)).save(path)
        listed.append((f"{number:02d}", str(path), [" ".join(map(str, colour_of(number)))]))
    return pd.DataFrame(listed, columns=["image_id", "path", "captions"])


def resized(rows, name, size):
    """The rows after one image got another size, each pixel telling its place."""
    path = rows.loc[rows["image_id"] == name, "path"].item()
    columns, lines = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    Image.fromarray(np.stack([columns, lines, columns + lines], axis=-1).astype(np.uint8)).save(path)
    return rows


# Plans and pixels


def test_every_pixel_is_where_the_truth_says(rows):
    sizes = read_sizes(rows)
    mosaic = plan_mosaic(rows, sizes, "03", 70, seed=5)
    pixels, truth = paint(mosaic), mosaic.truth
    assert pixels.shape == (70, 70, 3)
    shown = np.full((70, 70), -1)
    for image_id, left, top, width, height, _, _ in truth.itertuples(index=False):
        shown[top : top + height, left : left + width] = int(image_id)  # the needle comes last
    assert (shown >= 0).all()
    expected = np.array([colour_of(number) for number in range(20)], dtype=np.uint8)[shown]
    assert (pixels == expected).all()
    (needle,) = truth[truth["needle"]].itertuples(index=False)
    assert needle.image_id == "03" and tuple(needle[1:5]) == tuple(mosaic.window) == (*mosaic.window[:2], SIDE, SIDE)
    assert "03" not in set(truth["image_id"][~truth["needle"]])
    area = (truth["shown"][~truth["needle"]] * SIDE**2).sum() + SIDE**2
    assert area == pytest.approx(70 * 70, abs=0.01)


def test_a_window_is_painted_as_in_the_whole_and_as_in_the_file(rows, tmp_path):
    mosaic = plan_mosaic(rows, read_sizes(rows), "03", 300, seed=1)
    whole = paint(mosaic)
    for window in (Window(0, 0, 1, 1), Window(37, 11, 50, 90), Window(290, 299, 10, 1)):
        left, top, width, height = window
        assert (paint(mosaic, window) == whole[top : top + height, left : left + width]).all()
    path = write_mosaic(mosaic, tmp_path / "mosaic.tif")
    with open_scene(path, stretch="none") as scene:
        assert (scene.width, scene.height, scene.crs) == (300, 300, None)
        assert (scene.read().pixels == whole).all()
    with Image.open(path) as file:
        assert SYNTHETIC in file.tag_v2[270] and file.tag_v2[322] == 256  # described, in tiles
    small = overview(mosaic, 100)
    assert small.shape == (100, 100, 3)
    assert np.abs(small.astype(float) - whole.reshape(100, 3, 100, 3, 3).mean(axis=(1, 3))).max() <= 1
    with pytest.raises(MosaicError, match="leaves the mosaic"):
        paint(mosaic, Window(290, 0, 11, 5))


def test_the_same_seed_gives_the_same_bytes_another_one_another_mosaic(rows, tmp_path):
    sizes = read_sizes(rows)
    first, again, other = (plan_mosaic(rows, sizes, "03", 80, seed=seed) for seed in (2, 2, 3))
    assert first == again and first.fingerprint() == again.fingerprint() != other.fingerprint()
    files = [
        write_mosaic(one, tmp_path / f"{place}.tif").read_bytes() for place, one in enumerate((first, again, other))
    ]
    assert files[0] == files[1] != files[2]


def test_needles_lie_anywhere_and_the_background_begins_anywhere(rows):
    sizes = read_sizes(rows)
    mosaics = [plan_mosaic(rows, sizes, "03", 64, seed=0, number=number) for number in range(60)]
    assert len({mosaic.window.left % SIDE for mosaic in mosaics}) > 8
    assert len({mosaic.left for mosaic in mosaics}) > 8
    assert all(0 <= mosaic.window.left <= 64 - SIDE and 0 <= mosaic.window.top <= 64 - SIDE for mosaic in mosaics)


def test_an_image_of_another_size_keeps_it_as_a_needle_and_is_cut_or_continued_in_the_background(rows):
    sizes = read_sizes(resized(resized(rows, "03", (20, 9)), "04", (30, 30)))
    assert cell_side(sizes) == SIDE and window_side(sizes) == SIDE
    assert describe_sizes(sizes).startswith("2 of 20 images are not of 16 x 16 pixels (20 to 30 wide, 9 to 30 high)")
    mosaic = plan_mosaic(rows, sizes, "03", 64, seed=0)
    left, top, width, height = mosaic.window
    assert (width, height) == (20, 9)
    assert (paint(mosaic, mosaic.window)[..., 0] == np.arange(20)).all()
    behind = plan_mosaic(rows, sizes, "05", 200, seed=0)
    truth = behind.truth
    place = truth[(truth["image_id"] == "04") & (truth["shown"] == 1)].iloc[0]
    part = paint(behind, Window(place["left"], place["top"], SIDE, SIDE))
    assert (part[0, :, 0] == np.arange(7, 7 + SIDE)).all()  # the middle of 30
    place = truth[(truth["image_id"] == "03") & (truth["shown"] == 1)].iloc[0]
    part = paint(behind, Window(place["left"], place["top"], SIDE, SIDE))
    assert part[:, 0, 1].tolist() == [3, 2, 1, 0, *range(9), 8, 7, 6] or part[:, 0, 1].tolist() == [
        2,
        1,
        0,
        *range(9),
        8,
        7,
        6,
        5,
    ]


def test_distractors_share_no_caption_with_any_needle(rows):
    rows.at[7, "captions"] = ["Some  words", rows["captions"][3][0].upper() + " ."]
    assert same_caption("A  River.") == same_caption("a river") != same_caption("rivers")
    assert "07" not in find_distractors(rows, ["03"]) and "07" in find_distractors(rows, ["04"])
    sizes = read_sizes(rows)
    mosaics, note = plan_mosaics(rows, sizes, [4, 6], 5, seed=0)
    assert [mosaic.side for mosaic in mosaics] == [64] * 5 + [96] * 5 and note.startswith("5 needles")
    assert [mosaic.needle for mosaic in mosaics[:5]] == [mosaic.needle for mosaic in mosaics[5:]]
    wanted = {same_caption(text) for mosaic in mosaics for text in mosaic.captions}
    said = dict(zip(rows["image_id"], rows["captions"]))
    for mosaic in mosaics:
        behind = {same_caption(text) for line in mosaic.layout for name in line for text in said[name]}
        assert behind.isdisjoint(wanted)


def test_too_few_images_give_fewer_mosaics_and_say_so(rows):
    sizes = read_sizes(rows)
    mosaics, note = plan_mosaics(rows, sizes, [4], 18)
    assert len(mosaics) == 16 and "18 were asked for" in note and "4 of 20 images as distractors" in note
    nothing, note = plan_mosaics(rows.iloc[:4], sizes, [4], 3)
    assert nothing == [] and note.startswith("No mosaics: of 4 images 4 are smaller")
    assert plan_mosaics(rows, sizes, [4], 0) == ([], "No mosaics were asked for.")
    assert plan_mosaics(rows.iloc[:0], {}, [4], 3)[0] == []
    same = rows.assign(captions=[["the same"]] * len(rows))
    assert plan_mosaics(same, sizes, [4], 3)[0] == []


def test_what_cannot_be_a_mosaic_is_refused(rows):
    sizes = read_sizes(rows)
    with pytest.raises(MosaicError, match="03: 16 x 16 pixels, no needle for a mosaic of 16"):
        plan_mosaic(rows, sizes, "03", 16)
    with pytest.raises(MosaicError, match="99: no such image among the 20"):
        plan_mosaic(rows, sizes, "99", 64)
    with pytest.raises(MosaicError, match="no distractor"):
        plan_mosaic(rows.assign(captions=[["the same"]] * len(rows)), sizes, "03", 64)


# Searches


def test_the_windows_of_every_method_are_embedded_once(rows, tmp_path):
    encoder, mosaic = MeanColour(), plan_mosaic(rows, read_sizes(rows), "03", 100, seed=0)
    embedded = embed_mosaic(encoder, mosaic, tmp_path, window=SIDE)
    counts = {method: len(of_method(embedded, method, SIDE)) for method in METHODS}
    assert counts["squash"] == 1
    assert counts["tiles"] == len(plan_windows(100, 100, [16], 0.0)) == 49
    assert counts["overlap"] == len(plan_windows(100, 100, [16], 0.5)) == 144
    assert counts["pyramid"] == len(plan_windows(100, 100, [16, 32], 0.5)) == 144 + 36
    assert len(embedded) == counts["pyramid"] + 1
    looked = encoder.looked
    again = embed_mosaic(encoder, mosaic, tmp_path, window=SIDE)
    assert encoder.looked == looked and (again.vectors == embedded.vectors).all()
    assert not list(tmp_path.glob("*.tif"))  # the mosaic itself is not kept
    with pytest.raises(MosaicError, match="'grid' is none of"):
        of_method(embedded, "grid", SIDE)


def test_a_needle_of_its_own_colour_is_found_and_so_is_its_mosaic(rows, tmp_path):
    mosaics, _ = plan_mosaics(rows, read_sizes(rows), [4, 6], 4, seed=0)
    searches, maps = search_mosaics(MeanColour(), mosaics, tmp_path, window=SIDE, capitalise=False)
    assert len(searches) == 4 * 2 * len(METHODS) and len(maps) == 4 * 2 * 3
    judged = judge_searches(searches)
    report = score_needles(judged, resamples=50)
    assert list(report) == ["64", "96"]
    for side, methods in report.items():
        # An overlapping window lies on three quarters of the needle in either direction at least, a tile on a half.
        assert methods["overlap"]["recall_at_5"]["value"] == 1.0
        assert methods["squash"]["recall_at_1"]["value"] == pytest.approx((SIDE / int(side)) ** 2, abs=1e-6)
        assert "recall_at_1_overlap" not in methods["squash"]
        assert methods["overlap"]["recall_at_1"]["n"] == 4
    own = judged[judged["method"] == "squash"]
    assert own["centre"].isna().all() and (own["found"].map(len) == 0).all()
    for methods in judge_maps(maps, resamples=50).values():
        assert set(methods) == {"tiles", "overlap", "pyramid"}
        assert 0 < methods["overlap"]["Rsu"]["value"] <= 1


def test_the_best_place_by_hand(rows, tmp_path):
    """One bright needle in a dark background: the window nearest to it is found first by every method."""
    for number in range(20):
        Image.new("RGB", (SIDE, SIDE), (0, 0, 40 + number)).save(rows["path"][number])
    Image.new("RGB", (SIDE, SIDE), (255, 0, 0)).save(rows["path"][3])
    rows.at[3, "captions"] = ["255 0 0"]
    mosaic = plan_mosaic(rows, read_sizes(rows), "03", 96, seed=4)
    searches, maps = search_mosaics(MeanColour(), [mosaic], tmp_path, window=SIDE, capitalise=False)
    middle = np.array(mosaic.window[:2]) + SIDE / 2
    for method, windows in (
        ("tiles", plan_windows(96, 96, [SIDE], 0.0)),
        ("overlap", plan_windows(96, 96, [SIDE], 0.5)),
    ):
        (search,) = searches[searches["method"] == method].itertuples(index=False)
        near = min(
            (window for _, window in windows), key=lambda one: np.abs(np.array(one[:2]) + SIDE / 2 - middle).sum()
        )
        assert search.found[0] == near
        assert search.mosaic_place == 1 and search.mosaics == 1
    judged = judge_searches(searches).set_index("method")
    assert judged.loc[["tiles", "overlap", "pyramid"], "centre"].tolist() == [1, 1, 1]
    assert judged.loc["overlap", "chance_1"] == pytest.approx(1 / 36)


def test_places_among_mosaics_count_ties_by_half(rows, tmp_path):
    for number in range(20):
        Image.new("RGB", (SIDE, SIDE), (10, 20, 30)).save(rows["path"][number])
    mosaics, _ = plan_mosaics(rows, read_sizes(rows), [4], 4, seed=0)
    searches, _ = search_mosaics(MeanColour(), mosaics, tmp_path, window=SIDE, capitalise=False)
    assert (searches["mosaic_place"] == 2.5).all()  # all look alike: the mean of places 1 to 4


def test_no_mosaics_are_no_searches():
    searches, maps = search_mosaics(MeanColour(), [], None, window=SIDE)
    assert not len(searches) and maps == [] and score_needles(judge_searches(searches)) == {} == judge_maps(maps)
    assert not len(caption_found(None, [], searches)) and measure_costs(MeanColour(), [], None, window=SIDE) == []


def test_costs_are_of_each_method_by_itself_and_leave_nothing(rows, tmp_path):
    encoder = MeanColour()
    mosaics, _ = plan_mosaics(rows, read_sizes(rows), [4, 6], 2, seed=0)
    costs = measure_costs(encoder, mosaics, tmp_path, window=SIDE)
    assert [(row["side"], row["method"]) for row in costs] == [
        (side, method) for side in (64, 96) for method in METHODS
    ]
    assert encoder.looked == sum(row["windows"] for row in costs)
    assert all(row["seconds"] >= 0 and (row["megabytes"] is None or row["megabytes"] >= 0) for row in costs)
    assert not list(tmp_path.glob("*.tif")) and not list(tmp_path.glob("*.parquet"))


def test_what_is_found_is_captioned(rows, tmp_path, monkeypatch):
    mosaics, _ = plan_mosaics(rows, read_sizes(rows), [4], 2, seed=0)
    searches, _ = search_mosaics(MeanColour(), mosaics, tmp_path, window=SIDE, capitalise=False)
    asked = []

    def say(captioner, pictures, batch_size):
        asked.extend(pictures)
        return pd.DataFrame({"caption": [" ".join(map(str, picture[0, 0])) for picture in pictures]})

    class Space:
        def similarity(self, candidates, references):
            return np.array([[10.0 * (candidates[0] == text) for text in references]])

    class Talker:
        encoding = {"views": 1, "grid": 0}
        config = {"settings": {"grid_cells": 0}}
        memory = type("Memory", (), {"space": Space()})()

    monkeypatch.setattr(needles_module, "caption", say)
    said = caption_found(Talker(), mosaics, searches)
    assert said.groupby("method")["cider"].min()["needle"] == 10.0  # a picture of the needle alone
    assert list(dict.fromkeys(said["method"])) == [*METHODS, "needle"] and len(said) == 2 * 5
    assert len(asked) <= 2 * 5  # a window that two methods find is looked at once


# Tables, pictures and words


def test_tables_pictures_and_words_tell_what_was_found(rows, tmp_path):
    mosaics, note = plan_mosaics(rows, read_sizes(rows), [4, 6], 3, seed=0)
    searches, maps = search_mosaics(MeanColour(), mosaics, tmp_path, window=SIDE, capitalise=False)
    metrics = made_metrics(searches, maps, note)
    table = needle_table(metrics)
    assert list(table.index.get_level_values(0)) == [64] * 4 + [96] * 4
    assert table.loc[(96, "squash (place: a guess)"), "recall at 1"] == "2.8" and (table["mosaics"] == 3).all()
    assert selo_table(metrics).shape == (6, 4)
    assert len(needle_figure(metrics).axes) == 3  # nothing was captioned
    assert draw_search(mosaics[0], searches, maps[2]).axes
    said = str(mosaic_result(metrics))
    assert said.startswith(
        "In synthetic mosaics of 96 pixels a guess hits the right window for 2.8 % of the captions; tiles "
    )
    assert "(3 mosaics, 95 % intervals over mosaics, seed 0)" in said and "CIDEr" not in said


def test_no_mosaics_are_said_and_not_drawn():
    metrics = made_metrics(*search_mosaics(MeanColour(), [], None, window=SIDE), "No mosaics were asked for.")
    assert not len(needle_table(metrics)) and not len(selo_table(metrics)) and not len(cost_table([]))
    assert needle_figure(metrics) is None and str(mosaic_result(metrics)) == "No mosaics were asked for."


def made_metrics(searches, maps, note):
    judged = judge_searches(searches)
    return {
        "about": {"note": note, "seed": 0},
        "needles": score_needles(judged, resamples=50),
        "overlap_against_tiles": compare_needles(judged, "overlap", "tiles", resamples=50),
        "captions": {},
        "semantic_localisation": {"mosaics": judge_maps(maps, resamples=50), "AIR-SLT": None},
    }


# SeLo's annotations


def test_selo_s_cases_are_read_and_searched(tmp_path):
    points = [[[20.7, 20.2], [59.0, 20.0], [59.0, 59.0], [20.0, 59.0]]]
    path = tmp_path / "anno.json"
    path.write_text(json.dumps([{"caption": "255 0 0\n", "jpg_name": "0.png", "points": points}]))
    (case,) = read_selo(path)
    assert case.caption == "255 0 0" and case.image == "0.png" and case.regions[0][0] == (20.7, 20.2)
    with pytest.raises(FileNotFoundError, match="1 of SeLo's images are missing, such as 0.png"):
        list(search_selo(MeanColour(), [case], tmp_path, tmp_path))
    pixels = np.zeros((80, 120, 3), dtype=np.uint8)
    pixels[20:60, 20:60, 0] = 255
    Image.fromarray(pixels).save(tmp_path / "0.png")
    (one,) = search_selo(MeanColour(), [case], tmp_path, tmp_path, sizes=[16, 32], capitalise=False)
    assert (one.width, one.height) == (120, 80) and one.about["image"] == "0.png"
    good = judge_map(one, median=0)
    other = judge_map(
        type(one)(one.width, one.height, one.values, one.cell, (((80, 20), (119, 20), (119, 59)),)), median=0
    )
    assert good["Rsu"] > 0.8 > 0.5 > other["Rsu"]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ({"caption": "a", "points": [[[0, 0], [1, 0], [1, 1]]]}, "case 0: expected caption, jpg_name and points"),
        ({"caption": "a", "jpg_name": "../0.jpg", "points": [[[0, 0], [1, 0], [1, 1]]]}, "no plain name of a file"),
        ({"caption": "a", "jpg_name": "0.jpg", "points": [[[0, 0], [1, 0]]]}, "at least three corners"),
        ({"caption": " ", "jpg_name": "0.jpg", "points": [[[0, 0], [1, 0], [1, 1]]]}, "a caption and polygons"),
        ({"caption": "a", "jpg_name": "0.jpg", "points": [[[0, "x"], [1, 0], [1, 1]]]}, "case 0: expected"),
        ({"caption": "a", "jpg_name": "0.jpg", "points": []}, "a caption and polygons"),
    ],
)
def test_selo_s_cases_that_are_none_are_named(tmp_path, case, words):
    path = tmp_path / "anno.json"
    path.write_text(json.dumps([case]))
    with pytest.raises(ValueError, match=words):
        read_selo(path)


def test_a_file_that_holds_no_cases_is_named(tmp_path):
    path = tmp_path / "anno.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match="expected a list of cases"):
        read_selo(path)
