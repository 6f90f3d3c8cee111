"""Queries that leave something out: how they are read, what they find, and how well images stand in order under them."""

import numpy as np
import pytest

from rsvlm.data.objects import things_in
from rsvlm.models.queries import Without, encode_parts, split_without
from rsvlm.scoring.negation import LEAST, named_things, score_negation, thing_pairs
from rsvlm.scoring.retrieval import EmbeddingSpace, retrieval_set
from rsvlm.viewing.figures import negation_table

AXES = ("tree", "pond", "airplane", "airport")


def read(texts):
    """Unit vectors of the things that a text names, whether or not it denies them: what an encoder makes of "without"."""
    words = {name: name if name != "tree" else "trees" for name in AXES}
    vectors = np.array([[float(words[name].removesuffix("s") in text.lower()) for name in AXES] for text in texts])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def world(both=LEAST, alone=LEAST):
    captions = [["Trees around a pond."]] * both + [["Many trees."]] * alone + [["An airplane at the airport."]] * LEAST
    ids = [f"{number}.png" for number in range(len(captions))]
    test = retrieval_set(ids, captions)
    return test, EmbeddingSpace(ids, read([own[0] for own in captions]), test.texts, read(test.texts))


def test_without_brings_what_it_names_and_subtracting_keeps_it_away():
    test, space = world()
    scored = score_negation({"ucm": test}, space, read, resamples=50)
    own = scored["ucm"]
    assert own["pairs"] == [
        ["tree", "pond"]
    ]  # an airport goes without saying beside its airplanes; every pond has trees
    assert {way: own[way]["value"] for way in ("plain", "without", "subtracted", "with")} == {
        "plain": 1.0, "without": 0.0, "subtracted": 1.0, "with": 1.0,
    }  # fmt: skip
    assert own["without"] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 2 * LEAST}
    assert own["without - plain"]["value"] == -1 and own["without - plain"]["p"] < 0.05
    shown = negation_table({"negation": scored})
    assert list(shown["value"]) == [100.0, 0.0, 100.0, 100.0]
    assert all(len(text) < 50 for _, text in shown.index) and shown.index[1][1].endswith("with A but without B")


def test_equal_scores_count_a_half_and_the_interval_is_of_images():
    test, space = world(both=8, alone=8)
    blind = EmbeddingSpace(space.image_ids, np.full((len(test.image_ids), 4), 0.5), test.texts, space.text_vectors)
    assert score_negation({"ucm": test}, blind, read, resamples=20)["ucm"]["without"]["value"] == 0.5
    vectors = space.image_vectors.copy()
    vectors[0] = vectors[8]  # one image with a pond looks like those without
    own = score_negation({"ucm": test}, EmbeddingSpace(space.image_ids, vectors, test.texts, space.text_vectors), read)
    value, low, high = (own["ucm"]["subtracted"][key] for key in ("value", "low", "high"))
    assert value == pytest.approx((7 + 0.5) / 8) and low < value < high == 1.0


@pytest.mark.parametrize(("both", "alone"), [(LEAST - 1, 9), (9, LEAST - 1)])
def test_a_pair_needs_images_of_both_kinds(both, alone):
    test, space = world(both, alone)
    assert thing_pairs(named_things(test)) == []
    assert score_negation({"ucm": test}, space, read) == {}
    assert negation_table({}).empty


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("farmland without houses", ("farmland", "houses")),
        ("A lake, but no boats.", ("A lake", "boats")),
        ("a port and no ships", ("a port", "ships")),
        ("a field with no trees around it", ("a field", "trees around it")),
        ("A river but without any bridges?", ("A river", "bridges")),
        ("no boats", ("no boats", "")),
        ("a north-south runway", ("a north-south runway", "")),
        ("a lake without", ("a lake without", "")),
    ],
)
def test_what_a_text_leaves_out(text, parts):
    assert split_without(text) == parts


def test_a_query_less_another_is_their_difference():
    def encode(parts):
        return np.array([[3.0, 0.0] if one == "a" else [0.0, 3.0] for one in parts], np.float32) / 3

    vectors = encode_parts(["a", Without("a", "b"), "b"], encode)
    assert np.allclose(vectors, [[1, 0], [0.5**0.5, -(0.5**0.5)], [0, 1]])
    with pytest.raises(ValueError, match="query 1: .*the same: nothing stays"):
        encode_parts(["b", Without("a", "a")], encode)


def test_the_stub_names_what_the_closed_list_names():
    assert things_in("an aerial image with trees but without ponds") == {"tree"}
    assert read(["trees without ponds"])[0].tolist() == pytest.approx([0.5**0.5, 0.5**0.5, 0, 0])
