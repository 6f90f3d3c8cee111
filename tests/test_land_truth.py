"""Average precision and ROC-AUC over places, against known answers and a boring reference."""

import numpy as np
import pytest

from rsvlm.scoring.land_truth import colour_scores, neighbour_scores, score_ranking


def slow_average_precision(scores, relevant):
    """Mean over relevant places of the precision among all that score at least as high (the definition with ties)."""
    return np.mean([relevant[scores >= scores[i]].mean() for i in np.flatnonzero(relevant)])


def slow_auc(scores, relevant):
    """Share of pairs (relevant, other) in the right order; equal scores count half."""
    a, b = scores[relevant][:, None], scores[~relevant][None]
    return ((a > b) + 0.5 * (a == b)).mean()


@pytest.mark.parametrize("levels", [3, 1000])
def test_equals_the_definitions_with_and_without_ties(levels):
    rng = np.random.default_rng(1)
    scores, relevant = rng.integers(0, levels, 200).astype(float), rng.random(200) < 0.3
    found = score_ranking(scores, relevant, np.arange(200) // 10, resamples=50)
    assert found["average_precision"]["value"] == pytest.approx(slow_average_precision(scores, relevant), abs=1e-6)
    assert found["roc_auc"]["value"] == pytest.approx(slow_auc(scores, relevant), abs=1e-6)


def test_known_answers():
    relevant, blocks = np.array([True, False, True, False]), np.arange(4)
    found = score_ranking(np.array([4.0, 3.0, 2.0, 1.0]), relevant, blocks)
    assert found["average_precision"]["value"] == pytest.approx((1 + 2 / 3) / 2, abs=1e-6)
    assert found["roc_auc"]["value"] == 0.75
    assert found["relevant"] == 2 and found["chance"] == 0.5
    assert found["average_precision"]["low"] is None  # two blocks hold relevant places
    assert score_ranking(np.zeros(4), relevant, blocks)["roc_auc"]["value"] == 0.5
    assert score_ranking(np.zeros(4), relevant, blocks)["average_precision"]["value"] == 0.5


def test_intervals_come_from_blocks_not_from_windows():
    """Each place copied ten times within its block: the interval must not shrink."""
    rng = np.random.default_rng(2)
    relevant = rng.random(60) < 0.5
    scores, blocks = relevant + rng.normal(0, 1.5, 60), np.arange(60)
    once = score_ranking(scores, relevant, blocks, resamples=400)["roc_auc"]
    copied = score_ranking(*(np.repeat(values, 10) for values in (scores, relevant, blocks)), resamples=400)["roc_auc"]
    assert copied["value"] == once["value"]
    assert (copied["low"], copied["high"]) == (once["low"], once["high"])
    assert once["low"] < once["value"] < once["high"]


def test_same_seed_same_interval():
    rng = np.random.default_rng(3)
    scores, relevant, blocks = rng.random(80), rng.random(80) < 0.4, np.arange(80) % 16
    first, second, other = (
        score_ranking(scores, relevant, blocks, seed=seed, resamples=100)["roc_auc"] for seed in (0, 0, 1)
    )
    assert first == second and first != other


@pytest.mark.parametrize(
    "scores, relevant, blocks, message",
    [
        ([1.0], [True, False], [0, 1], "one each a place"),
        ([1.0, np.nan], [True, False], [0, 1], "NaN or infinite"),
        ([1.0, 2.0], [True, True], [0, 1], "2 of 2 places are relevant"),
        ([1.0, 2.0], [False, False], [0, 1], "0 of 2 places are relevant"),
    ],
)
def test_bad_input(scores, relevant, blocks, message):
    with pytest.raises(ValueError, match=message):
        score_ranking(np.array(scores), np.array(relevant), np.array(blocks))


def test_colour_and_neighbours_find_what_they_were_shown():
    rng = np.random.default_rng(4)
    is_class = np.arange(40) < 20
    training = np.where(is_class[:, None], [200, 20, 20], [20, 20, 200]) + rng.normal(0, 5, (40, 3))
    seen = colour_scores(np.array([[190, 30, 30], [30, 30, 190]]), training, is_class)
    assert seen[0] > 0 > seen[1]
    vectors = training / np.linalg.norm(training, axis=1, keepdims=True)
    assert (neighbour_scores(vectors[[0, 39]], vectors, is_class) > 0).tolist() == [True, False]
