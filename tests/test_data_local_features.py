"""The same ground at another zoom, shift, turn or look is found on real imagery, other ground is not, and the cache holds."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from rsvlm.content_cache import ContentCache
from rsvlm.data import local_features
from rsvlm.data.audit import RECALL, find_near_duplicates
from rsvlm.data.blue_marble import load_maps
from rsvlm.data.duplicates import find_pairs, fingerprint_images
from rsvlm.data.local_features import LEAST_SIDE, candidate_pairs, compare_features, find_same_ground, take_features
from rsvlm.files import read_json

ROOT = Path(__file__).resolve().parents[1]
SIDE = 224
# Left upper corners in NASA's Blue Marble, all land: the Alps, Iran, the Rockies, the Andes, ...
PLACES = [
    (2790, 640), (3420, 820), (960, 700), (1640, 1560), (4080, 780), (2980, 1300), (2500, 900), (4300, 500), (700, 480),
    (1850, 1500), (3700, 760), (4650, 1620),
]  # fmt: skip


@pytest.fixture(scope="module")
def world():
    return load_maps().imagery


def view(world, place, left=0.0, top=0.0, share=1.0):
    """A square window, SIDE pixels whatever its size; left, top and share are shares of SIDE."""
    x, y = PLACES[place][0] + left * SIDE, PLACES[place][1] + top * SIDE
    size = (SIDE, SIDE)
    return world.resize(size, Image.Resampling.BICUBIC, box=(x, y, x + share * SIDE, y + share * SIDE))


VIEWS = {  # name -> zoom, degrees and overlap that are to be found, and the second view of a place
    "zoomed by 1.5": (1.5, 0, 1, lambda world, n: view(world, n, 0.2, 0.1, 1 / 1.5)),
    "zoomed by 0.6": (0.6, 0, 0.36, lambda world, n: view(world, n, -0.3, -0.3, 1 / 0.6)),
    "shifted by 30 %": (1, 0, 0.7, lambda world, n: view(world, n, 0.3, 0)),
    "shifted by 40 % down": (1, 0, 0.6, lambda world, n: view(world, n, 0, 0.4)),
    "zoomed and turned": (1.5, -90, 1, lambda world, n: view(world, n, 0, 0, 1 / 1.5).transpose(Image.Transpose.ROTATE_90)),
    "zoomed and mirrored": (
        1.5, 0, 1, lambda world, n: view(world, n, 0, 0, 1 / 1.5).transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def pictures(world, tmp_path_factory):
    """Twelve places, and a second view, darker and as JPEG, of the first six."""
    folder = tmp_path_factory.mktemp("views")
    paths = [folder / f"place_{number:02d}.png" for number in range(len(PLACES))]
    for number, path in enumerate(paths):
        view(world, number).save(path)
    for number, (*_, second) in enumerate(VIEWS.values()):
        paths.append(folder / f"view_{number:02d}.jpg")
        ImageEnhance.Brightness(second(world, number)).enhance(0.85).save(paths[-1], quality=75)
    return paths


@pytest.fixture(scope="module")
def prints(pictures, tmp_path_factory):
    return fingerprint_images(pictures, cache=tmp_path_factory.mktemp("prints"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def found(prints, cache):
    return find_same_ground(prints, set(), cache=cache)


def test_every_planted_view_is_found_and_nothing_else(prints, found):
    pairs, counts = found
    assert find_pairs(prints) == [], "hashes of whole images do not find these"
    assert [(pair.first, pair.second) for pair in pairs] == [(n, len(PLACES) + n) for n in range(len(VIEWS))]
    for pair, (zoom, degrees, overlap, _) in zip(pairs, VIEWS.values(), strict=True):
        assert pair.kind == "same_ground" and not pair.exact and pair.correlation is None
        assert pair.zoom == pytest.approx(zoom, rel=0.03) and pair.overlap == pytest.approx(overlap, abs=0.05)
        assert abs((pair.degrees - degrees + 180) % 360 - 180) < 3
    assert [pair.turn for pair in pairs] == ["upright"] * 5 + ["mirrored"]
    assert counts["images"] == len(prints) and counts["images_too_small"] == 0 and counts["pairs_compared"] > len(pairs)


def test_the_order_of_the_list_turns_the_pair_round(prints, found, cache):
    last = len(prints) - 1
    backwards, _ = find_same_ground(prints[::-1], set(), cache=cache)
    by_ends = {(pair.first, pair.second): pair for pair in found[0]}
    assert {(last - pair.second, last - pair.first) for pair in backwards} == by_ends.keys()
    for pair in backwards:
        there = by_ends[last - pair.second, last - pair.first]
        assert pair.zoom * there.zoom == pytest.approx(1, abs=0.01) and pair.turn == there.turn
        undone = there.degrees if there.turn == "mirrored" else -there.degrees
        assert pair.degrees == pytest.approx(undone, abs=0.2)


def test_known_pairs_are_skipped_and_equal_files_share_their_features(prints, found, cache):
    pairs, _ = found
    left, counts = find_same_ground(prints, {(0, len(PLACES))}, cache=cache)
    assert left == pairs[1:]
    twice, _ = find_same_ground([*prints, prints[1]], set(), cache=cache)
    assert {(len(PLACES) + 1, len(prints)), (1, len(PLACES) + 1)} <= {(pair.first, pair.second) for pair in twice}


def test_a_second_run_computes_nothing(prints, found, cache, monkeypatch):
    monkeypatch.setattr(local_features, "take_features", lambda image: pytest.fail("features taken again"))
    monkeypatch.setattr(local_features, "compare_features", lambda a, b: pytest.fail("a pair compared again"))
    assert find_same_ground(prints, set(), cache=cache) == found


@pytest.mark.parametrize("name", ["take_features", "compare_features"])
def test_a_killed_run_goes_on(prints, found, tmp_path, monkeypatch, name):
    work, calls = getattr(local_features, name), []

    def killed(*arguments):
        calls.append(name)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return work(*arguments)

    monkeypatch.setattr(local_features, "A_BATCH", 2)
    monkeypatch.setattr(local_features, "PAIRS_A_BATCH", 2)
    monkeypatch.setattr(local_features, name, killed)
    with pytest.raises(KeyboardInterrupt):
        find_same_ground(prints, set(), cache=tmp_path)
    calls[:] = [None] * 8
    assert find_same_ground(prints, set(), cache=tmp_path) == found
    kept = len(calls) - 8
    monkeypatch.setattr(local_features, name, lambda *arguments: pytest.fail("done already"))
    with ContentCache(tmp_path) as contents:
        candidates = candidate_pairs(contents, [one.sha256 for one in prints])
    made = {"take_features": len(prints), "compare_features": len(candidates)}[name]
    assert kept == made - 6, "three batches of two were kept"


def test_several_processes_give_the_same(prints, found, tmp_path):
    assert find_same_ground(prints, set(), cache=tmp_path, processes=2) == found


def test_small_images_are_counted_and_not_searched(tmp_path, world, monkeypatch):
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        view(world, number).resize((LEAST_SIDE - 1, 200)).save(path)
    monkeypatch.setitem(sys.modules, "cv2", None)  # nothing is searched, so nothing is needed
    pairs, counts = find_same_ground(fingerprint_images(paths, cache=tmp_path), set(), cache=tmp_path)
    assert pairs == [] and counts == {"images": 0, "images_too_small": 3, "pairs_compared": 0}


def test_without_opencv_it_says_what_to_do(prints, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ModuleNotFoundError, match="opencv-python-headless.*find_same_ground: false"):
        find_same_ground(prints, set(), cache=tmp_path)


def test_even_pictures_have_no_features_and_no_pairs(tmp_path, world):
    even = take_features(Image.new("RGB", (SIDE, SIDE), "grey"))
    assert len(even.points) == len(even.descriptors) == 0
    assert compare_features(even, take_features(view(world, 0))) == (None, 0, 0.0)
    for name in "ab":
        Image.new("RGB", (SIDE, SIDE + ord(name)), "grey").save(tmp_path / f"{name}.png")
    prints = fingerprint_images([tmp_path / "a.png", tmp_path / "b.png"], cache=tmp_path)
    assert find_same_ground(prints, set(), cache=tmp_path)[0] == []


def test_features_of_the_mirror_image_need_no_second_look(world):
    one = view(world, 0)
    looked = take_features(one.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    made = take_features(one).mirrored()
    fitted, matches, _ = compare_features(looked, made)
    assert matches > 0.8 * len(np.unique(looked.points[:, :2].round(), axis=0))
    assert np.abs(fitted - [[1, 0, 0], [0, 1, 0]]).max() < 1


def test_candidates_are_kept_whatever_the_order_of_the_list(prints, found, cache, monkeypatch):
    digests = [one.sha256 for one in prints]
    with ContentCache(cache) as contents:
        known = candidate_pairs(contents, digests)
        monkeypatch.setattr(local_features, "similarity_topk", lambda *arguments: pytest.fail("searched again"))
        assert candidate_pairs(contents, digests[::-1]) == known


def test_training_views_of_a_test_image_leave_and_are_counted_by_kind(pictures, prints, cache):
    chosen = [0, len(PLACES), 1, len(PLACES) + 1, 7]
    splits = ["train", "test", "val", "test", "train"]
    rows = [
        {"image_id": f"s/{pictures[place].name}", "source": "s", "split": split, "path": str(pictures[place])}
        for place, split in zip(chosen, splits, strict=True)
    ]
    known = {row["image_id"]: prints[place] for row, place in zip(rows, chosen, strict=True)}
    kept, pairs, report = find_near_duplicates(rows, [], known, drop_from_train=True, cache=cache)
    assert [row["image_id"] for row in kept] == [row["image_id"] for row in rows[1:]]
    assert [(pair["kind"], pair["dropped"]) for pair in pairs] == [
        ("same_ground", [rows[0]["image_id"]]), ("same_ground", []),
    ]  # fmt: skip
    assert report["by_kind"]["same_ground"] == {"pairs": 2, "train_and_test": 1, "dropped_from_train": 1}
    assert report["by_kind"]["copy"] == {"pairs": 0, "train_and_test": 0, "dropped_from_train": 0}
    assert report["same_ground"]["switched_on"] and report["same_ground"]["images"] == 5
    kept, pairs, report = find_near_duplicates(rows, [], known, drop_from_train=True, same_ground=False)
    assert len(kept) == 5 and pairs == [] and report["same_ground"]["switched_on"] is False


def test_what_the_audit_says_of_its_recall_is_what_was_measured():
    record = read_json(ROOT / "benchmarks/results/near_duplicates_cpu_2_cores.json")
    for kind, measured in (("copy", record["recall"]), ("same_ground", record["same_ground"]["recall"])):
        assert RECALL[kind] == {how: round(100 * share, 1) for how, share in measured.items()}
