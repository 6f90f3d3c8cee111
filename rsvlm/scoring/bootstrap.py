"""Intervals and p-values over images, by resampling images with replacement.

A corpus score is a function of sums over images (BLEU's counts, METEOR's counts, a value and a 1 for a mean), so one
resampling serves all of them: sum the resampled images' statistics, then apply the function. CIDEr's idf is part of
the per-image values and stays as it is on the whole evaluated set.
"""

from collections.abc import Callable, Mapping

import numpy as np

LEVEL = 0.95
BLOCK_VALUES = 4_000_000  # resampled counts held at one time
DECIMALS = 6  # of what is written: more would differ between machines


def bootstrap_corpus(
    statistics: np.ndarray, corpus: Callable[[np.ndarray], np.ndarray], *, seed: int, resamples: int = 1000
) -> dict[str, float | int]:
    """{"value", "low", "high", "n"}: a corpus score and its 95 % percentile interval.

    Args:
        statistics: (n, k), what each image adds to the corpus's sums.
        corpus: from sums (..., k) to scores (...).
    """
    low, high = percentile_interval(corpus(resampled_sums(statistics, seed=seed, resamples=resamples)))
    return rounded({"value": float(corpus(statistics.sum(axis=0))), "low": low, "high": high, "n": len(statistics)})


def difference_of_draws(value: float, draws: np.ndarray, n: int) -> dict[str, float | int]:
    """{"value", "low", "high", "p", "n"} of a difference over n images, from its values (r,) under resampling.

    ``p`` is two-sided: twice the smaller share of draws on either side of 0 (ties count for both), with one added to
    count and total, so it is never 0 and never above 1.
    """
    low, high = percentile_interval(draws)
    side = min((draws <= 0).sum(), (draws >= 0).sum())
    p = float(min(1.0, 2 * (side + 1) / (len(draws) + 1)))
    return rounded({"value": float(value), "low": low, "high": high, "p": p, "n": n})


def resampled_sums(statistics: np.ndarray, *, seed: int, resamples: int) -> np.ndarray:
    """(resamples, k): the sums over n images drawn with replacement from the rows of ``statistics`` (n, k)."""
    statistics = np.asarray(statistics, dtype=np.float64)
    n = len(statistics)
    if n == 0 or not np.isfinite(statistics).all():
        raise ValueError("cannot resample: no images" if n == 0 else "cannot resample: a value is NaN or infinite")
    if resamples < 1:
        raise ValueError(f"resamples = {resamples}: expected at least 1")
    generator = np.random.default_rng(seed)
    block = max(1, BLOCK_VALUES // n)
    sums = []
    for start in range(0, resamples, block):
        draws = generator.integers(0, n, size=(min(block, resamples - start), n))
        counts = np.stack([np.bincount(row, minlength=n) for row in draws]).astype(np.float64)
        sums.append(counts @ statistics)
    return np.concatenate(sums)


def percentile_interval(scores: np.ndarray) -> tuple[float, float]:
    """(low, high): the middle 95 % of resampled scores (r,)."""
    low, high = np.quantile(scores, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def mean_statistics(values: np.ndarray) -> np.ndarray:
    """(n, 2): each value and a 1, whose sums give the mean."""
    values = np.asarray(values, dtype=np.float64)
    return np.stack([values, np.ones_like(values)], axis=-1)


def mean_of(sums: np.ndarray) -> np.ndarray:
    """(...) means of sums (..., 2) of values and ones."""
    return sums[..., 0] / sums[..., 1]


def rounded(entry: Mapping[str, object]) -> dict:
    """The same entry with its fractional numbers cut to six decimals."""
    return {key: round(float(value), DECIMALS) if isinstance(value, float) else value for key, value in entry.items()}
