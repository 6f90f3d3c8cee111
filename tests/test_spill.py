"""What lies on disk while a table is made, and figures of captions that nobody holds against those of captions held."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsvlm.data.audit import caption_facts, sibling_share, verbatim_share, words_of
from rsvlm.data.cards import example_images
from rsvlm.data.names import SPLITS
from rsvlm.data.spill import Made, Records, StoredRows, Texts

captions = st.lists(
    st.sampled_from(["a river", "a lake", "A lake", "two planes", "é", "e\u0301", "a", "0", ""]), max_size=4
)
tables = st.lists(st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(SPLITS), captions), min_size=1, max_size=12)


def as_rows(table: list[tuple]) -> list[dict]:
    return [
        {"image_id": f"{source}/{place}", "source": source, "split": split, "captions": own}
        for place, (source, split, own) in enumerate(table)
    ]


def shares(table: list[tuple], kind: str) -> dict:
    """The figures as they are defined, one caption or set after the other."""
    units = [
        (f"{source}/{split}", place, text)
        for place, (source, split, own) in enumerate(table)
        for text in (own if kind == "verbatim" else [frozenset(own)])
    ]
    parts = {f"{source}/{split}" for source, split, _ in table}
    made = {}
    for part in parts:
        mine = [(place, text) for own, place, text in units if own == part]
        made[part] = {
            other: round(
                sum(any(own == other and text == one and place != at for own, at, one in units) for place, text in mine)
                / max(len(mine), 1),
                6,
            )
            for other in parts
        }
    return made


@settings(max_examples=80, deadline=None)
@given(tables)
def test_shares_are_those_of_captions_held(table):
    assert verbatim_share(as_rows(table)) == shares(table, "verbatim")
    assert sibling_share(iter(as_rows(table))) == shares(table, "siblings")


@settings(max_examples=80, deadline=None)
@given(st.lists(captions, max_size=9))
def test_facts_are_those_of_captions_held(table):
    said = [text for own in table for text in own]
    words = Counter(word for text in said for word in words_of(text))
    lengths = sorted(len(text.split()) for text in said)
    assert caption_facts(iter(said)) == {
        "distinct_captions": len(set(said)),
        "words": sum(words.values()),
        "vocabulary": len(words),
        "words_that_occur_once": sum(count == 1 for count in words.values()),
        "words_a_caption": {"least": lengths[0], "median": lengths[len(lengths) // 2], "most": lengths[-1]}
        if said
        else {},
    }


def test_examples_are_the_ends_of_the_order():
    rows = as_rows([("a", "train", ["a river"]), ("a", "train", ["a river", "a river"]), ("a", "train", ["one quay"]),
                    ("a", "train", ["some ice"]), ("a", "test", ["unseen words"])])  # fmt: skip
    found = example_images(rows)
    assert found["typical"] == {"image_id": "a/1", "captions": ["a river"]} and found["atypical"]["image_id"] == "a/2"
    assert example_images(rows[4:]) == {}


def test_texts_come_back_by_number_over_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("rsvlm.data.spill.BLOCK", 3)
    rows = [
        {"captions": (f"a river {n}", "é\u2028\x00"), "label": None if n % 2 else "river"}
        | ({"translations": (("pt", ("Um rio.", None)),)} if n == 5 else {})
        for n in range(8)
    ]
    texts = Texts(iter(rows), tmp_path)
    for number in (0, 7, 5, 3, 3, 0):
        found = texts[number]
        assert found["captions"] == list(rows[number]["captions"]) and found["label"] == rows[number]["label"]
        assert found["translations"] == ([["pt", ["Um rio.", None]]] if number == 5 else [])
    assert not list(tmp_path.iterdir()), "the file has no name, so nothing is left, however the process ends"
    light = [{"image_id": f"s/{n}", "source": "s", "split": "test", "path": "x", "place": n} for n in (7, 5, 0)]
    stored = StoredRows(light, {"s": texts})
    assert [row["image_id"] for row in stored[:2]] == ["s/7", "s/5"] and len(stored.of("t")) == 0
    assert stored[0] == {"image_id": "s/7", "source": "s", "split": "test", "path": "x", "captions": ["a river 7", "é\u2028\x00"], "label": None}  # fmt: skip
    assert list(stored.translations())[1] == ("s/5", [["pt", ["Um rio.", None]]])


def test_records_come_back_by_number(tmp_path):
    records = Records(tmp_path)
    for number in range(1000):
        records.append(number.to_bytes(4, "big"))
    assert [records[number] for number in (999, 0, 500)] == [number.to_bytes(4, "big") for number in (999, 0, 500)]
    assert len(list(records)) == 1000 and not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="5 bytes among records of 4"):
        records.append(b"12345")
    with pytest.raises(IndexError):
        records[1000]


def test_a_full_disk_is_told_with_its_folder(tmp_path, monkeypatch):
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full is Linux's")
    monkeypatch.setattr("rsvlm.data.spill.nameless_file", lambda folder: open("/dev/full", "r+b", buffering=0))
    with pytest.raises(OSError, match="No space left") as told:
        Records(tmp_path).append(b"a" * 5000)
    assert told.value.filename == str(tmp_path)
    with pytest.raises(OSError, match="No space left") as told:
        Texts([{"captions": ["a river"], "label": None}], tmp_path)
    assert told.value.filename == str(tmp_path)


def test_made_values_are_made_when_they_are_looked_at():
    asked = []
    values = Made(5, lambda place: asked.append(place) or place * 10)
    assert asked == [] and values[-1] == 40 and values[1:3] == [10, 20] and list(values) == [0, 10, 20, 30, 40]
    assert asked == [4, 1, 2, 0, 1, 2, 3, 4]


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak of memory is Linux's")
def test_shares_hold_no_captions():
    """Of 200,000 captions that come and go hashes stay, 16 bytes each."""
    program = """
import re, sys
from pathlib import Path
from rsvlm.data.audit import verbatim_share
def peak(): return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1e3
def rows(count):
    for n in range(count):
        yield {"image_id": str(n), "source": "s", "split": "train", "captions": [f"{n} {k} " + "a" * 400 for k in range(5)]}
verbatim_share(rows(5000)); before = peak()
verbatim_share(rows(40000)); print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 40, "megabytes; the captions held would be 90"
