"""Marked words: what no reference says, and nothing that a right caption may hold."""

import itertools

import pytest

from rsvlm.data import land_captions
from rsvlm.viewing.marked_words import base_forms, mark_words


def marked(caption: str, *references: str) -> list[str]:
    return [piece[0] for piece in mark_words(caption, references) if isinstance(piece, list)]


def test_the_pieces_joined_give_the_caption():
    pieces = mark_words("Two Planes, near a lake's shore .", ["two planes on grass", "A shore."])
    assert (
        "".join(piece if isinstance(piece, str) else piece[0] for piece in pieces)
        == "Two Planes, near a lake's shore ."
    )
    assert [piece for piece in pieces if isinstance(piece, list)] == [["lake's"]]
    assert mark_words("", ["a"]) == [] and mark_words("a b", []) == mark_words("a b", [" . "]) == ["a b"]


def test_function_words_and_words_about_the_picture_are_never_marked():
    assert marked("There is an image with which it shows the area beside both of them.", "A river.") == []
    assert marked("An airport next to the sea", "Boats.") == ["airport", "sea"]


@pytest.mark.parametrize(
    ("caption", "reference"),
    [
        ("a tree and houses", "Trees near a house."),
        ("two planes parked", "Two plane park."),
        ("geese at the larger lake", "A goose at a large lake."),
        ("a snow-covered coast", "The coast is covered by snow."),
        ("many cars in lines", "Lots of vehicles in rows."),
        ("an aircraft in the middle", "An airplane in the centre."),
        ("2 tennis courts", "Two tennis courts."),
        ("an inland region", "Cropland without open water."),
        ("water behind a building", "The sea behind a hangar."),
    ],
)
def test_other_forms_and_near_synonyms_are_not_marked(caption, reference):
    assert marked(caption, reference) == []


def test_what_is_wrong_stays_marked():
    assert marked("three planes", "Two planes.") == ["three"]
    assert marked("a sea", "A body of water: two lakes.") == ["sea"]  # water is said of both, the sea of one
    assert marked("a hangar", "A building.") == ["hangar"]  # the narrower word claims more
    assert marked("trees in one corner", "Trees at one edge.") == [
        "corner"
    ]  # one synset of WordNet, "to corner, to tree"
    assert marked("dense evergreen forest", "Mixed forest.") == ["dense", "evergreen"]


def test_every_wording_of_the_default_study_s_captions_says_the_same():
    for by_climate in land_captions._NOUNS.values():
        for wordings in by_climate.values():
            for one, other in itertools.permutations(wordings, 2):
                assert marked(f"There is {one}.", f"{other} at one edge") == [], (one, other)


def test_base_forms_are_words():
    assert base_forms("buses") >= {"bus"} and base_forms("surrounded") >= {"surround"}
    assert base_forms("grass") == {"grass"} and base_forms("xyzs") == {"xyzs"}
