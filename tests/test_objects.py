"""The closed list of things: what it finds in captions, and the record of how often it errs."""

import csv
from pathlib import Path

import pytest

from rsvlm.data.objects import (
    colours_in,
    counts_in,
    mentions_in,
    plural_of,
    things,
    things_in,
    with_kinds,
)

RESULTS = Path(__file__).resolve().parents[1] / "results"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Two white airplanes and some luggage cars at the airport.", {"airplane", "car", "airport"}),
        ("Some cars are parked in a parking lot", {"car", "parking lot"}),  # a lot, a park and parking are none
        ("there are more cars parking on one side of the square building", {"car", "building"}),
        ("many trees are around a square .", {"tree", "square"}),
        ("lots of mobile homes in the mobile home park", {"mobile home"}),
        ("a large lake or river among woody savanna", {"lake", "river", "open woodland"}),
        ("grassland with scattered trees meets permanent ice cover", {"savanna", "snow and ice"}),
        ("An intersection with no cars or pedestrians", {"intersection"}),
        ("a quiet beach without waves and with some people", {"beach", "people"}),
        ("", set()),
    ],
)
def test_what_a_caption_names(text, found):
    assert things_in(text) == found


def test_what_is_denied_is_told_apart():
    denied = {mention.name: mention.denied for mention in mentions_in("no cars or pedestrians at the intersection")}
    assert denied == {"car": True, "people": True, "intersection": False}


def test_kinds_go_all_the_way_up():
    assert with_kinds({"mobile home"}) == {"mobile home", "house", "building"}
    assert with_kinds({"lake"}) == {"lake", "inland water", "water"}


def test_numbers_and_colours():
    assert counts_in("Two small white tennis courts and a bridge near some houses") == {
        "tennis court": 2,
        "bridge": 1,
        "house": None,
    }
    assert counts_in("one airplane and two airplanes")["airplane"] is None  # two numbers are none
    assert colours_in("two gray storage tanks with red roofs on green lawn")["storage tank"] == {"grey"}
    assert "tree" not in colours_in("a blue pool with trees")


def test_plurals():
    assert [plural_of(word) for word in ("beach", "storage tank", "ferry", "highway", "bus")] == [
        "beaches",
        "storage tanks",
        "ferries",
        "highways",
        "buses",
    ]


def test_the_list_is_sound():
    known = things()
    assert len(known) >= 80
    for thing in known.values():
        assert set(thing.kinds) <= set(known), thing.name
    # No word belongs to two things.
    words = [word for thing in known.values() for word in set(thing.words)]
    assert sorted({word for word in words if words.count(word) > 1}) == []


def test_the_record_of_errors_is_recounted():
    """results/closed_list.md says what this gives; a change of the list has to be read anew."""
    with (RESULTS / "closed_list.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(rows) == 100
    found = wrong = missed = 0
    for row in rows:
        assert ", ".join(sorted(things_in(row["caption"]))) == row["found"], row["caption"]
        found += len([one for one in row["found"].split(", ") if one])
        wrong += len([one for one in row["wrong"].split(", ") if one])
        missed += len([one for one in row["missed"].split(", ") if one])
    page = (RESULTS / "closed_list.md").read_text(encoding="utf-8")
    assert f"{found - wrong} of {found} | {100 * (found - wrong) / found:.1f} %" in page
    assert (
        f"{found - wrong} of {found - wrong + missed} | {100 * (found - wrong) / (found - wrong + missed):.1f} %"
        in page
    )
