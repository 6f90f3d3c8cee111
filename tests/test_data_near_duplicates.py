"""Near-duplicates: planted ones are found however they were altered, different ones are not, and the cache holds."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from rsvlm.content_cache import FILE
from rsvlm.data import duplicates
from rsvlm.data.audit import find_near_duplicates, sibling_share, verbatim_share
from rsvlm.data.duplicates import (
    TURN_NAMES,
    TURNS,
    detail_correlation,
    find_pairs,
    fingerprint_images,
    without_contrast,
)
from rsvlm.data.images import ImageError


def scene(seed, size=160):
    """A made-up aerial view: soft land, fields, roads and roofs."""
    draw = np.random.default_rng(seed)
    base = Image.fromarray(draw.integers(60, 190, (6, 6, 3), dtype=np.uint8)).resize(
        (size, size), Image.Resampling.BICUBIC
    )
    pixels = np.asarray(base).copy()
    for _ in range(40):
        x, y = draw.integers(0, size, 2)
        w, h = draw.integers(4, size // 5, 2)
        pixels[y : y + h, x : x + w] = draw.integers(0, 256, 3)
    grain = draw.normal(0, 12, pixels.shape)
    return Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.8))


ALTERED = {
    "re-encoded": lambda image: image,  # saved as JPEG below
    "resized": lambda image: image.resize((90, 90)),
    "brightened": lambda image: ImageEnhance.Brightness(image).enhance(1.25),
    "cropped": lambda image: image.crop((8, 0, 160, 152)),
    **{
        name: (lambda image, turn=turn: image.transpose(turn))
        for name, turn in zip(TURN_NAMES[1:], TURNS[1:], strict=True)
    },
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Twenty different scenes and an altered copy of as many of them as there are alterations."""
    folder = tmp_path_factory.mktemp("pictures")
    originals, copies = [], {}
    for number in range(20):
        path = folder / f"scene_{number:02d}.png"
        scene(number).save(path)
        originals.append(path)
    for number, (name, alter) in enumerate(ALTERED.items()):
        path = folder / f"copy_{number:02d}.jpg"
        alter(scene(number)).save(path, quality=70)
        copies[name] = path
    return originals, copies, folder


@pytest.fixture(scope="module")
def prints(pictures):
    originals, copies, folder = pictures
    return fingerprint_images([*originals, *copies.values()], cache=folder / "cache")


def test_every_planted_near_duplicate_is_found_and_nothing_else(pictures, prints):
    pairs = find_pairs(prints)
    assert [(pair.first, pair.second) for pair in pairs] == [(n, 20 + n) for n in range(len(ALTERED))]
    assert not any(pair.exact for pair in pairs) and all(0.85 <= pair.correlation <= 1 for pair in pairs)
    turns = dict(zip(ALTERED, (pair.turn for pair in pairs), strict=True))
    assert {turns[name] for name in ("re-encoded", "resized", "brightened", "cropped")} == {"upright"}
    undo = {"turned by 90": "turned by 270", "turned by 270": "turned by 90"}
    assert all(turns[name] == undo.get(name, name) for name in TURN_NAMES[1:])


def test_places_in_the_list_do_not_matter(prints):
    backwards = find_pairs(prints[::-1])
    last = len(prints) - 1
    assert {(last - pair.second, last - pair.first) for pair in backwards} == {
        (pair.first, pair.second) for pair in find_pairs(prints)
    }


def test_equal_files_and_near_duplicates_of_equal_files(pictures, tmp_path):
    originals, copies, _ = pictures
    same = tmp_path / "same.png"
    same.write_bytes(originals[0].read_bytes())
    pairs = find_pairs(fingerprint_images([originals[0], copies["re-encoded"], same, originals[5]], cache=tmp_path))
    assert [(pair.first, pair.second, pair.exact) for pair in pairs] == [(0, 1, False), (0, 2, True), (1, 2, False)]


def test_even_pictures_are_only_compared_by_their_bytes(tmp_path):
    for name, value in (("a", 100), ("b", 101), ("c", 100)):
        Image.new("RGB", (50, 50), (value,) * 3).save(tmp_path / f"{name}.png")
    prints = fingerprint_images([tmp_path / f"{name}.png" for name in "abc"], cache=tmp_path)
    assert without_contrast(prints) == [0, 1, 2]
    assert [(pair.first, pair.second) for pair in find_pairs(prints)] == [(0, 2)]


def test_detail_correlation_of_itself_its_shift_and_another():
    one = scene(50)
    assert detail_correlation(one, one) == pytest.approx(1)
    assert detail_correlation(one.crop((0, 0, 150, 160)), one.crop((10, 0, 160, 160))) > 0.8
    assert detail_correlation(one, scene(51)) < 0.5


def test_hash_search_agrees_with_comparing_all_pairs(prints):
    """faiss' multi-index search finds every pair of hashes within the distance, as a plain loop does."""
    index_pairs = {(a, b, turn) for a, b, turn, _ in duplicates._alike(prints, list(range(len(prints))))}
    plain = set()
    for a, one in enumerate(prints):
        for b, other in enumerate(prints):
            if a != b:
                bits = np.unpackbits(one.cropped[:, None] ^ other.turned[None], axis=2).sum(axis=2)
                plain |= {(a, b, int(turn)) for turn in np.flatnonzero((bits <= duplicates.DISTANCE).any(axis=0))}
    assert index_pairs == plain and len(plain) > len(ALTERED)


def test_the_cache_is_by_content_and_survives(pictures, tmp_path, monkeypatch):
    originals = pictures[0][:4]
    first = fingerprint_images(originals, cache=tmp_path / "cache")
    moved = tmp_path / "moved.png"
    moved.write_bytes(originals[1].read_bytes())
    monkeypatch.setattr(duplicates, "take_fingerprint", lambda path: pytest.fail(f"{path} was decoded again"))
    again = fingerprint_images([moved, *originals], cache=tmp_path / "cache")
    assert again[0].path == moved and again[0].sha256 == first[1].sha256
    assert np.array_equal(again[0].turned, first[1].turned) and np.array_equal(again[0].grey, first[1].grey)


def test_a_killed_run_goes_on(pictures, tmp_path, monkeypatch):
    originals = pictures[0][:6]
    take, taken = duplicates.take_fingerprint, []

    def killed_at_the_fourth(path):
        taken.append(path)
        if len(taken) == 4:
            raise KeyboardInterrupt
        return take(path)

    monkeypatch.setattr(duplicates, "A_BATCH", 2)
    monkeypatch.setattr(duplicates, "take_fingerprint", killed_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        fingerprint_images(originals, cache=tmp_path)
    taken[:] = [None] * 10
    assert len(fingerprint_images(originals, cache=tmp_path)) == 6
    assert len(taken) - 10 == 4, "the first batch of two was kept"


def test_several_processes_give_the_same(pictures, prints, tmp_path):
    originals = pictures[0][:3]
    parallel = fingerprint_images(originals, cache=tmp_path, processes=2)
    for one, other in zip(parallel, prints, strict=False):
        assert np.array_equal(one.turned, other.turned) and np.array_equal(one.cropped, other.cropped)


def test_workers_end_with_a_killed_parent(pictures, tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from rsvlm.data import duplicates\n"
        "if __name__ == '__main__':\n"
        "    batches = duplicates.map_batches(duplicates._take_batch, [(p, Path(p)) for p in sys.argv[1:]], 64, 2)\n"
        "    next(batches); from multiprocessing import active_children\n"
        "    print(*[child.pid for child in active_children()], flush=True); time.sleep(600)\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(code)
    environment = os.environ | {"PYTHONPATH": str(Path(duplicates.__file__).parents[2])}
    command = [sys.executable, str(script), *map(str, pictures[0][:4])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        workers = [int(text) for text in parent.stdout.readline().split()]
        parent.kill()
    assert workers
    deadline = time.monotonic() + 60
    while alive := [pid for pid in workers if _is_alive(pid)]:
        assert time.monotonic() < deadline, f"{alive} outlived the process that started them"
        time.sleep(0.05)


def _is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.is_file() or state.read_text().split()[2] != "Z"  # ended, but nobody has asked for its result


def test_broken_files_are_named_each(pictures, tmp_path):
    broken = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in broken:
        path.write_bytes(pictures[0][0].read_bytes()[:50])
    results = fingerprint_images([*broken, pictures[0][1]], cache=tmp_path / "cache")
    assert all(isinstance(result, ImageError) for result in results[:2]) and not isinstance(results[2], ImageError)
    assert "a.png" in str(results[0]) and "b.png" in str(results[1])


def test_a_damaged_cache_is_put_aside_and_filled_anew(pictures, prints, tmp_path):
    (tmp_path / FILE).write_bytes(b"no database at all" * 100)
    with pytest.warns(UserWarning, match="damaged .*starting anew"):
        (one,) = fingerprint_images(pictures[0][:1], cache=tmp_path)
    assert one.sha256 == prints[0].sha256 and np.array_equal(one.turned, prints[0].turned)


def rows_of(paths, splits, source="s"):
    return [
        {"image_id": f"{source}/{path.name}", "source": source, "split": split, "path": str(path), "captions": ["x"]}
        for path, split in zip(paths, splits, strict=True)
    ]


def test_training_images_that_show_a_test_image_leave_training_and_test_stays(pictures, prints):
    originals, copies, _ = pictures
    paths = [originals[1], copies["resized"], originals[7], originals[8], copies["mirrored"]]
    by_path = {one.path: one for one in prints}
    rows = rows_of(paths, ["train", "test", "train", "test", "val"])
    known = {row["image_id"]: by_path[path] for row, path in zip(rows, paths, strict=True)}
    kept, pairs, report = find_near_duplicates(rows, [], known, drop_from_train=True)
    assert [row["image_id"] for row in kept] == [row["image_id"] for row in rows[1:]]
    assert [pair["dropped"] for pair in pairs] == [[rows[0]["image_id"]]] and report["dropped_from_train"] == 1
    kept, pairs, report = find_near_duplicates(rows, [], known, drop_from_train=False)
    assert len(kept) == 5 and len(pairs) == 1 and report["images_with_a_near_duplicate"]["s/test"]["s/train"] == 1
    # A test set that is only compared protects itself too.
    kept, _, report = find_near_duplicates(rows[:1], rows[1:2], known, drop_from_train=True)
    assert kept == [] and report["dropped_from_train"] == 1


def test_verbatim_share_counts_other_images_only_within_a_part():
    rows = [
        {"image_id": f"s/{n}", "source": "s", "split": split, "captions": captions}
        for n, (split, captions) in enumerate(
            [("train", ["a", "a"]), ("train", ["b", "c"]), ("train", ["a", "d"]), ("test", ["a", "z"])]
        )
    ]
    shares = verbatim_share(rows)
    assert shares["s/test"] == {"s/train": 0.5, "s/test": 0.0}
    assert shares["s/train"] == {"s/train": 0.5, "s/test": 0.5}


def test_siblings_are_other_images_with_the_same_set_of_captions():
    rows = [
        {"image_id": f"s/{n}", "source": "s", "split": split, "captions": captions}
        for n, (split, captions) in enumerate(
            [("train", ["a", "b"]), ("train", ["b", "a", "a"]), ("train", ["a"]), ("test", ["a"]), ("test", ["a", "c"])]
        )
    ]
    shares = sibling_share(rows)
    assert shares["s/train"] == {"s/train": round(2 / 3, 6), "s/test": round(1 / 3, 6)}
    assert shares["s/test"] == {"s/train": 0.5, "s/test": 0.0}  # an image is no sibling of its own
