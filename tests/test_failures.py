"""Why a search fails: the groups of what is found first, on vectors whose order is known."""

import numpy as np
import pytest
from PIL import Image

from rsvlm.scoring.failures import is_nearly_equal, look_at_searches
from rsvlm.scoring.retrieval import EmbeddingSpace, retrieval_set
from rsvlm.viewing import failure_figures
from rsvlm.viewing.failure_figures import draw_failures, failure_figure, failure_table

IDS = ["s/a", "s/b", "s/c", "s/d"]
CAPTIONS = [["A lake.", "One road."], ["A wide lake.", "A lake."], ["Two roads.", "A field."], ["A bridge.", "A dam."]]
LABELS = {"s/a": "water", "s/b": "water", "s/c": "road"}


@pytest.mark.parametrize(
    "a, b, away",
    [
        ("a lake", "a lake", True),
        ("a lake", "a wide lake", True),
        ("a lake", "the lake", True),
        ("lake", "a lake", True),
        ("lake", "a river", False),
        ("two wide lakes", "two lakes", True),
        ("two wide lakes", "two blue lakes", False),
        ("a lake", "a field", False),
        ("a lake", "the lakes", False),
        ("x b c", "b c x", False),
        ("b", "b c d", False),
    ],
)
def test_nearly_equal(a, b, away):
    assert is_nearly_equal(a.split(), b.split()) is is_nearly_equal(b.split(), a.split()) is away


@pytest.fixture
def searches():
    """Each caption row finds first: b for a's "A lake." (equal), c for "One road.", a for b's "A wide lake.", ..."""
    test = retrieval_set(IDS, CAPTIONS)
    first = {"A lake.": "s/b", "One road.": "s/c", "A wide lake.": "s/a", "Two roads.": "s/c", "A field.": "s/a", "A bridge.": "s/a", "A dam.": "s/d"}  # fmt: skip
    vectors = np.eye(4, dtype=np.float32)
    texts = np.stack([vectors[IDS.index(first[text])] + 0.1 * vectors[::-1].cumsum(0)[2] for text in test.texts])
    return look_at_searches(test, EmbeddingSpace(IDS, vectors, test.texts, texts.astype(np.float32)), LABELS, shown=2)


def test_what_is_found_first_is_put_into_a_group(searches):
    groups = dict(zip(zip(searches["image_id"], searches["caption"]), searches["group"]))
    assert groups == {
        ("s/a", "A lake."): "equal",
        ("s/a", "One road."): "other",
        ("s/b", "A wide lake."): "near",
        ("s/b", "A lake."): "right",
        ("s/c", "Two roads."): "right",
        ("s/c", "A field."): "other",
        ("s/d", "A bridge."): "unknown",
        ("s/d", "A dam."): "right",
    }
    assert (searches.loc[searches["group"] == "right", "rank"] == 1).all()
    assert (searches.loc[searches["group"] != "right", "rank"] > 1).all()
    assert searches["found"].str.len().eq(2).all() and searches["found"][1][0] == "s/c"


def test_another_of_the_same_class_is_no_near_caption(searches):
    test = retrieval_set(IDS[:2], [["A lake."], ["Some boats on the shore."]])
    vectors = np.eye(2, dtype=np.float32)
    space = EmbeddingSpace(IDS[:2], vectors, test.texts, vectors[::-1])
    assert set(look_at_searches(test, space, LABELS)["group"]) == {"class"}


def test_failures_are_counted_and_drawn(searches, tmp_path, monkeypatch, study_style):
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    table = searches[["image_id"]].assign(path=str(tmp_path / "one.png"), label=searches["label"])
    assert draw_failures(table, searches) is None and len(failure_table(searches)) == 0  # none misses the first ten
    monkeypatch.setattr(failure_figures, "DEPTH", 1)
    counted = failure_table(searches)
    assert counted["searches"].to_dict() == {
        "one with an equal caption": 1,
        "one with a nearly equal caption": 1,
        "one of another class": 2,
        "one of an unknown class": 1,
    }
    assert counted["% of those that miss"].sum() == 100
    drawn = draw_failures(table, searches.assign(caption="costs $5 or $6"))
    assert len(drawn.axes) == 16 and r"\$5" in drawn.axes[0].texts[0].get_text()
    left, right = failure_figure(searches, "s").axes
    assert "62.5 % miss the first 1" in left.get_title("left") and len(right.get_yticklabels()) == 2
    heights = sum(bar.get_height() for bars in left.containers for bar in bars)
    assert heights == pytest.approx(100)
