"""Places found in large images: the right window by both rules, and SeLo's indicators against hand and an oracle."""

import math

import numpy as np
import pandas as pd
import pytest

from rsvlm.scoring.localisation import (
    average_indicators,
    candidate_points,
    chance_recall,
    compare_needles,
    is_right,
    overlap,
    place_of,
    probability_map,
    score_needles,
    selo_indicators,
)

# The right window


def test_overlap_is_intersection_over_union():
    assert overlap((0, 0, 10, 10), (5, 0, 10, 10)) == pytest.approx(50 / 150)
    assert overlap((0, 0, 10, 10), (10, 0, 10, 10)) == 0
    assert overlap((0, 0, 10, 10), (20, 20, 5, 5)) == 0
    assert overlap((3, 4, 10, 20), (3, 4, 10, 20)) == 1


def test_a_window_is_right_when_its_centre_lies_in_the_wanted_one():
    wanted = (100, 100, 50, 50)
    assert is_right((80, 80, 40, 40), wanted)  # centre at 100, 100: the corner belongs to it
    assert not is_right((79, 80, 40, 40), wanted)
    assert not is_right((130, 130, 40, 40), wanted)  # centre at 150, 150: the next window's
    assert is_right((0, 0, 250, 250), wanted) and not is_right((0, 0, 250, 250), wanted, "overlap")
    assert is_right((100, 110, 50, 50), wanted, "overlap") and not is_right((125, 125, 50, 50), wanted, "overlap")
    with pytest.raises(ValueError, match="rule: 'iou' is none of centre, overlap"):
        is_right(wanted, wanted, "iou")


def test_the_place_is_that_of_the_first_right_window():
    found = [(0, 0, 10, 10), (42, 40, 10, 10), (40, 40, 10, 10)]
    assert place_of(found, (40, 40, 10, 10)) == 2
    assert place_of(found, (40, 40, 10, 10), "overlap") == 2
    assert place_of(found, (80, 80, 10, 10)) == 0
    assert place_of([], (80, 80, 10, 10)) == 0


def test_chance_is_the_share_of_the_area():
    assert chance_recall(100, (0, 0, 10, 20), 1) == pytest.approx(0.02)
    assert chance_recall(100, (0, 0, 10, 20), 5) == pytest.approx(1 - 0.98**5)


def a_search(mosaic, method, centre, overlapping=0, mosaic_place=1.0, side=512):
    return {
        "side": side, "method": method, "mosaic": mosaic, "centre": centre, "overlap": overlapping,
        "mosaic_place": mosaic_place, "chance_1": 0.01, "chance_5": 0.05,
    }  # fmt: skip


def test_recall_counts_each_mosaic_once_whatever_its_captions():
    rows = [a_search(0, "tiles", 1, 1), a_search(0, "tiles", 2, 0), a_search(1, "tiles", 0, 0, 3.0)]
    rows += [a_search(0, "squash", math.nan), a_search(1, "squash", math.nan)]
    report = score_needles(pd.DataFrame(rows), resamples=50)["512"]
    tiles = report["tiles"]
    assert tiles["recall_at_1"]["value"] == 0.25 and tiles["recall_at_1"]["n"] == 2  # a half and none
    assert tiles["recall_at_5"]["value"] == 0.5 and tiles["recall_at_5_overlap"]["value"] == 0.25
    assert tiles["mosaic_at_1"]["value"] == 0.5 and tiles["mosaic_at_5"]["value"] == 1.0
    assert tiles["recall_at_5"]["low"] == 0.0 and tiles["recall_at_5"]["high"] == 1.0
    squash = report["squash"]
    assert squash["recall_at_1"]["value"] == 0.01 and "recall_at_1_overlap" not in squash
    assert score_needles(pd.DataFrame(rows).iloc[:0]) == {}


def test_two_methods_are_compared_on_the_same_mosaics():
    rows = [a_search(number, "pyramid", 1) for number in range(20)]
    rows += [a_search(number, "tiles", 0) for number in range(20)]
    (difference,) = compare_needles(pd.DataFrame(rows), "pyramid", "tiles", resamples=200).values()
    assert difference["value"] == difference["low"] == 1.0 and difference["p"] < 0.02 and difference["n"] == 20


# Semantic localisation


def test_the_map_runs_from_the_lowest_to_the_highest():
    values = np.array([[0.1, 0.2], [np.nan, 0.3]], dtype=np.float32)
    grey = probability_map(values, 2, 4, 3, median=0)
    assert grey.tolist() == [[0, 0, 127, 127], [0, 0, 127, 127], [0, 0, 255, 255]]
    assert probability_map(np.full((2, 2), 0.4), 2, 4, 4, median=0).max() == 0
    with pytest.raises(ValueError, match="is even"):
        probability_map(values, 2, 4, 3, median=4)
    with pytest.raises(ValueError, match="no value"):
        probability_map(np.full((2, 2), np.nan), 2, 4, 4)


def test_the_significant_area_by_hand():
    grey = np.zeros((100, 200), dtype=np.uint8)
    grey[20:60, 30:80] = 255
    grey[0:10, 0:10] = 51  # 100 pixels of 0.2
    # Edges belong to the polygon: 50 columns and 40 rows
    got = selo_indicators(grey, [[(30, 20), (79, 20), (79, 59), (30, 59)]])
    ratio = 2000 / (20 + 1e-7) * ((20_000 - 2000) / 2000)
    assert got["Rsu"] == pytest.approx(1 - math.exp(-0.707 * ratio))
    even = np.full((100, 200), 10, dtype=np.uint8)  # the same everywhere: as much inside as its area
    assert selo_indicators(even, [[(30, 20), (79, 20), (79, 59), (30, 59)]])["Rsu"] == pytest.approx(
        1 - math.exp(-0.707), abs=1e-6
    )


def test_a_map_that_peaks_in_the_middle_of_the_region():
    grey = np.zeros((601, 601), dtype=np.uint8)
    grey[250:351, 250:351] = 255
    region = [(200, 200), (400, 200), (400, 400), (200, 400)]
    (point,) = candidate_points(grey)
    # An even side has no middle: each of the five means moves the peak by at most a pixel
    assert np.abs(point - 300).max() <= 5
    got = selo_indicators(grey, [region])
    share = float(np.linalg.norm(point - 300)) / int(math.hypot(100, 100) * 1.5)
    assert got["Ras"] == pytest.approx(math.expm1(3 * share) / math.expm1(3)) and got["Ras"] < 0.01
    assert got["Rda"] == 1.0
    assert got["Rmi"] == pytest.approx(0.4 * got["Rsu"] + 0.35 * (1 - got["Ras"]) + 0.25)


def test_a_map_that_peaks_elsewhere_or_nowhere():
    grey = np.zeros((600, 600), dtype=np.uint8)
    region = [(400, 400), (560, 400), (560, 560), (400, 560)]
    nowhere = selo_indicators(grey, [region])
    assert nowhere == {"Rsu": 0.0, "Ras": pytest.approx(1.0), "Rda": 0.0, "Rmi": pytest.approx(0.0)}
    grey[0:100, 0:100] = 255
    elsewhere = selo_indicators(grey, [region])
    assert (elsewhere["Rsu"], elsewhere["Ras"], elsewhere["Rda"]) == (0.0, pytest.approx(1.0), 0.0)


def test_several_candidates_in_a_region_are_less_than_one():
    grey = np.zeros((200, 2600), dtype=np.uint8)
    for middle in (400, 1700):
        grey[50:150, middle - 50 : middle + 50] = 255
    points = candidate_points(grey)
    assert len(points) == 2
    region = [(0, 0), (2599, 0), (2599, 199), (0, 199)]
    x, y = int(2599 * 2 / 4), int(199 * 2 / 4)
    radius = int(np.mean([math.hypot(a - x, b - y) for a, b in region]) * 1.5)
    spread = np.linalg.norm(points - points.mean(axis=0), axis=1).mean() / radius
    got = selo_indicators(grey, [region])
    assert got["Rda"] == pytest.approx(0.5 * (1 - spread) + math.exp(-0.5 * 4))
    share = np.mean([math.hypot(a - x, b - y) for a, b in points]) / radius
    assert got["Ras"] == pytest.approx(math.expm1(3 * share) / math.expm1(3))


# The oracle: the published rule again, slowly, without OpenCV


def reflected(places, count):
    """Indices mirrored at the borders without repeating them, as OpenCV's default border does."""
    places = np.abs(places)
    return np.where(places >= count, 2 * (count - 1) - places, places)


def slow_mean(grey):
    rows, columns = grey.shape
    out = np.zeros_like(grey)
    around = np.array([reflected(np.arange(column - 25, column + 25), columns) for column in range(columns)])
    for row in range(rows):
        lines = reflected(np.arange(row - 25, row + 25), rows)
        band = grey[lines].astype(np.int64).sum(axis=0)
        out[row] = [round(total / 2500) for total in band[around].sum(axis=1).tolist()]
    return out


def slow_candidates(grey):
    soft = grey
    for _ in range(5):
        soft = slow_mean(soft)
    rows, columns = soft.shape
    assert rows <= 500  # so that a neighbourhood has all rows
    highest = soft.max(axis=0)
    top = {}
    for row in range(rows):
        for column in range(columns):
            around = highest[max(0, column - 500) : column + 500]
            if soft[row, column] > 0 and soft[row, column] == around.max():
                top[row, column] = None
    points = []
    while top:
        group, todo = [], [next(iter(top))]
        del top[todo[0]]
        while todo:
            row, column = todo.pop()
            group.append((row, column))
            for near in [(row + a, column + b) for a in (-1, 0, 1) for b in (-1, 0, 1)]:
                if near in top:
                    del top[near]
                    todo.append(near)
        y, x = (sum(axis) // len(group) for axis in zip(*group))
        if grey[y, x] / 255 >= 0.5:
            points.append((x, y))
    return points


def slow_indicators(grey, boxes):
    """Of polygons that are upright boxes (left, top, right, bottom), edges included."""
    probability = grey / 255
    mask = np.zeros(grey.shape)
    for left, top, right, bottom in boxes:
        mask[top : bottom + 1, left : right + 1] = 1
    own = (probability * mask).sum()
    left_part = own / (probability.sum() - own + 1e-7)
    rsu = 1 - math.exp(-0.707 * left_part * (mask.size - mask.sum()) / mask.sum())
    points = slow_candidates(grey)
    shifts, discretes = [], []
    for left, top, right, bottom in boxes:
        x, y = (left + right) // 2, (top + bottom) // 2
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
        r = int(sum(math.dist(corner, (x, y)) for corner in corners) / 4 * 1.5)
        near = [point for point in points if math.dist(point, (x, y)) <= r]
        shifts.append(sum(math.dist(point, (x, y)) for point in near) / len(near) / r if near else 1.0)
        if len(near) < 2:
            discretes.append(len(near))
        else:
            mean = tuple(sum(axis) / len(near) for axis in zip(*near))
            spread = sum(math.dist(point, mean) for point in near) / len(near) / r
            discretes.append(0.5 * (1 - spread) + math.exp(-0.5 * (len(near) + 2)))
    ras = (math.exp(3 * np.mean(shifts)) - 1) / (math.exp(3) - 1)
    rda = float(np.mean(discretes))
    return {"Rsu": rsu, "Ras": ras, "Rda": rda, "Rmi": 0.4 * rsu + 0.35 * (1 - ras) + 0.25 * rda}


def blob(grey, x, y, radius, value):
    rows, columns = np.ogrid[: grey.shape[0], : grey.shape[1]]
    distance = np.hypot(rows - y, columns - x)
    return np.maximum(grey, (value * np.clip(1 - distance / radius, 0, 1)).astype(np.uint8))


@pytest.mark.parametrize("seed", range(3))
def test_the_indicators_are_those_of_an_independent_reading_of_the_published_rule(seed):
    random = np.random.default_rng(seed)
    height, width = 40, int(random.integers(1100, 1400))
    grey = np.zeros((height, width), dtype=np.uint8)
    for _ in range(4):
        grey = blob(
            grey, int(random.integers(0, width)), int(random.integers(0, height)), 400, int(random.integers(150, 256))
        )
    boxes = []
    for _ in range(2):
        left, top = int(random.integers(0, width - 300)), int(random.integers(0, 12))
        boxes.append((left, top, left + int(random.integers(100, 299)), top + int(random.integers(10, 27))))
    if boxes[0][0] <= boxes[1][2] and boxes[1][0] <= boxes[0][2]:
        boxes = boxes[:1]  # where polygons overlap, the filling is OpenCV's own
    regions = [[(a, b), (c, b), (c, d), (a, d)] for a, b, c, d in boxes]
    assert sorted(map(tuple, candidate_points(grey).tolist())) == sorted(slow_candidates(grey))
    assert selo_indicators(grey, regions) == pytest.approx(slow_indicators(grey, boxes), abs=1e-9)


def test_what_is_no_map_or_no_polygon_is_refused():
    grey = np.full((50, 50), 200, dtype=np.uint8)
    square = [(10, 10), (30, 10), (30, 30), (10, 30)]
    for wrong, words in (
        ([], "no polygon"),
        ([square[:2]], "polygon 1: expected at least three corners"),
        ([square, [(5, 5)] * 4], "polygon 2: all its corners lie at 5, 5"),
        ([[(90, 90), (99, 90), (99, 99)]], "lie outside the map of 50 x 50 pixels"),
        ([[(0, 0), (10, 0), (math.nan, 10)]], "polygon 1"),
    ):
        with pytest.raises(ValueError, match=words):
            selo_indicators(grey, wrong)
    with pytest.raises(ValueError, match="uint8"):
        selo_indicators(grey / 255, [square])


def test_indicators_are_averaged_over_cases():
    rows = [{"Rsu": 0.0, "Ras": 0.2, "Rda": 1.0, "Rmi": 0.5}, {"Rsu": 1.0, "Ras": 0.4, "Rda": 0.0, "Rmi": 0.7}]
    got = average_indicators(rows, resamples=100)
    assert got["Rsu"]["value"] == 0.5 and got["Ras"]["value"] == pytest.approx(0.3) and got["Rmi"]["n"] == 2
    with pytest.raises(ValueError, match="no case"):
        average_indicators([])
