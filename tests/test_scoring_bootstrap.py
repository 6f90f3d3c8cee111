import numpy as np
import pytest

from rsvlm.scoring.bootstrap import (
    bootstrap_corpus,
    difference_of_draws,
    mean_of,
    mean_statistics,
    resampled_sums,
)
from rsvlm.scoring.captions import bleu_score


def bootstrap_mean(values, **options):
    found = bootstrap_corpus(mean_statistics(values), mean_of, **options)
    assert found["n"] == len(values) and found["value"] == pytest.approx(values.mean(), abs=1e-6)
    return found["low"], found["high"]


def test_interval_of_a_mean_is_about_two_standard_errors_wide():
    values = np.random.default_rng(0).normal(5, 2, 400)
    low, high = bootstrap_mean(values, seed=1, resamples=2000)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * 2 / 20, rel=0.15)
    assert (low, high) == bootstrap_mean(values, seed=1, resamples=2000)
    assert (low, high) != bootstrap_mean(values, seed=2, resamples=2000)


def test_one_image_has_an_interval_of_no_width():
    assert bootstrap_mean(np.array([0.4]), seed=0) == (0.4, 0.4)


def test_blocks_do_not_change_the_draws(monkeypatch):
    statistics = np.random.default_rng(0).random((7, 3))
    whole = resampled_sums(statistics, seed=0, resamples=50)
    monkeypatch.setattr("rsvlm.scoring.bootstrap.BLOCK_VALUES", 20)
    np.testing.assert_allclose(resampled_sums(statistics, seed=0, resamples=50), whole)


def test_corpus_bleu_is_resampled_as_a_corpus():
    # image 0: 10 words, all right; image 1: 2 words, all wrong. The corpus score is no mean of the images' scores.
    counts = np.array([[10, 10, 10, 9, 8, 7, 10, 9, 8, 7], [2, 2, 2, 1, 0, 0, 0, 0, 0, 0]], dtype=float)
    found = bootstrap_corpus(counts, lambda sums: bleu_score(sums)[..., 0], seed=0, resamples=500)
    assert bleu_score(counts.sum(axis=0))[0] == pytest.approx(10 / 12)
    assert found["low"] == pytest.approx(0, abs=1e-6) and found["high"] == pytest.approx(1, abs=1e-6)


def test_paired_difference_sees_what_unpaired_intervals_hide():
    """With the same seed two runs see the same draws."""
    generator = np.random.default_rng(0)
    hard = generator.normal(0, 5, 200)
    harder = hard + 0.3 + generator.normal(0, 0.5, 200)

    def difference(first, second):
        drawn = (mean_of(resampled_sums(mean_statistics(own), seed=0, resamples=1000)) for own in (first, second))
        return difference_of_draws((first - second).mean(), np.subtract(*drawn), len(first))

    result = difference(harder, hard)
    assert result["low"] > 0 and result["p"] < 0.01 and result["low"] < result["value"] < result["high"]
    assert difference(hard, hard) == {"value": 0, "low": 0, "high": 0, "p": 1, "n": 200}
    assert 0 < difference(generator.normal(0, 1, 100), generator.normal(0, 1, 100))["p"] <= 1


@pytest.mark.parametrize("values", [np.array([]), np.array([1.0, np.nan])])
def test_values_that_cannot_be_resampled_raise(values):
    with pytest.raises(ValueError, match="cannot resample"):
        bootstrap_mean(values, seed=0)


def test_mean_statistics_sum_to_the_mean():
    assert mean_of(mean_statistics(np.array([1.0, 2.0, 6.0])).sum(axis=0)) == 3
