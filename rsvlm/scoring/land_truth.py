"""How well scores rank places by what covers them: average precision and ROC-AUC against a map, with intervals.

Neighbouring windows show nearly the same ground, so the intervals come from a spatial bootstrap: blocks of land are drawn
with replacement, each with all its windows.
"""

import numpy as np

from rsvlm.scoring.bootstrap import percentile_interval, rounded

FEWEST_BLOCKS = 5  # with relevant windows; below, an interval over blocks says nothing
MEASURES = ("average_precision", "roc_auc")
DRAWS_AT_ONCE = 100


def score_ranking(
    scores: np.ndarray, relevant: np.ndarray, blocks: np.ndarray, *, seed: int = 0, resamples: int = 1000
) -> dict[str, object]:
    """How well scores rank relevant places above the others.

    Args:
        scores: (n,), higher means more like what is asked for.
        relevant: (n,) bool.
        blocks: (n,) which block of land a place belongs to, numbers from 0 in any order.

    Returns:
        ``average_precision`` and ``roc_auc`` as {"value", "low", "high", "n"} (n: places; low and high are None where fewer
        than FEWEST_BLOCKS blocks hold relevant places), ``relevant`` (their number), ``blocks``, ``relevant_blocks`` and
        ``chance`` (the average precision of a random order: the share of relevant places). Of places with equal scores
        the order does not count. A draw without a relevant or without another place counts for no interval.

    Raises:
        ValueError: lengths differ, a score is not finite, or no place or every place is relevant.
    """
    scores, relevant, blocks = np.asarray(scores, np.float64), np.asarray(relevant, bool), np.asarray(blocks)
    if not len(scores) == len(relevant) == len(blocks):
        raise ValueError(f"{len(scores)} scores, {len(relevant)} truths and {len(blocks)} blocks: one each a place")
    if not np.isfinite(scores).all():
        raise ValueError("cannot rank: a score is NaN or infinite")
    if not 0 < relevant.sum() < len(relevant):
        raise ValueError(f"cannot rank: {int(relevant.sum())} of {len(relevant)} places are relevant")
    named, number = np.unique(blocks, return_inverse=True)
    own = np.unique(number[relevant])
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # last of each run of equal scores
    values = _measure(np.ones((1, len(scores))), relevant[order], ends)[0]
    draws = np.zeros((0, len(MEASURES)))
    if len(own) >= FEWEST_BLOCKS:
        generator, parts = np.random.default_rng(seed), []
        for start in range(0, resamples, DRAWS_AT_ONCE):
            drawn = generator.integers(0, len(named), size=(min(DRAWS_AT_ONCE, resamples - start), len(named)))
            counts = np.stack([np.bincount(row, minlength=len(named)) for row in drawn]).astype(np.float64)
            parts.append(_measure(counts[:, number[order]], relevant[order], ends))
        draws = np.concatenate(parts)
        draws = draws[np.isfinite(draws).all(1)]
    found: dict[str, object] = {}
    for column, name in enumerate(MEASURES):
        low, high = percentile_interval(draws[:, column]) if len(draws) else (None, None)
        found[name] = rounded({"value": float(values[column]), "low": low, "high": high, "n": len(scores)})
    found |= {"relevant": int(relevant.sum()), "blocks": len(named), "relevant_blocks": len(own)}
    return found | {"chance": round(float(relevant.mean()), 6)}


def _measure(weights: np.ndarray, relevant: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """(r, 2) average precision and ROC-AUC of places (n,), best first, counted with weights (r, n).

    NaN where a draw holds no relevant or no other place.
    """
    hits = np.cumsum(weights * relevant, axis=1)[:, ends]
    misses = np.cumsum(weights * ~relevant, axis=1)[:, ends]
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(hits > 0, hits / (hits + misses), 0.0)
        recall, fallout = hits / hits[:, -1:], misses / misses[:, -1:]
        average = (np.diff(recall, axis=1, prepend=0.0) * precision).sum(1)
        middle = recall - np.diff(recall, axis=1, prepend=0.0) / 2
        area = (np.diff(fallout, axis=1, prepend=0.0) * middle).sum(1)
    return np.stack([average, area], axis=1)


def colour_scores(colours: np.ndarray, training_colours: np.ndarray, is_class: np.ndarray) -> np.ndarray:
    """(n,) log-odds that places belong to a class by their mean colour alone: what needs no model.

    Each class and the rest are normal distributions in colour with one shared covariance (linear discriminant analysis).

    Args:
        colours: (n, 3) mean red, green and blue.
        training_colours: (m, 3) of training images, ``is_class`` (m,) bool whether each is of the class.
    """
    colours, training = np.asarray(colours, np.float64), np.asarray(training_colours, np.float64)
    means = [training[is_class].mean(0), training[~is_class].mean(0)]
    centred = np.where(is_class[:, None], training - means[0], training - means[1])
    spread = centred.T @ centred / len(training) + np.eye(training.shape[1])  # 1: keeps a single colour invertible
    direction = np.linalg.solve(spread, means[0] - means[1])
    return (colours - (means[0] + means[1]) / 2) @ direction


def neighbour_scores(vectors: np.ndarray, training_vectors: np.ndarray, is_class: np.ndarray) -> np.ndarray:
    """(n,) cosine to the nearest training image of the class less that to the nearest other one: labels, no text.

    Args:
        vectors: (n, D) and ``training_vectors`` (m, D) of length 1; ``is_class`` (m,) bool.
    """
    cosines = vectors @ training_vectors.T
    return cosines[:, is_class].max(1) - cosines[:, ~is_class].max(1)
