"""Mean average precision and precision at k, in expectation over a random order of ties; ranks of reordered results.

Recall at k asks for the first right answer only; these ask where all of them are. Scores are computed a block of
queries at a time, and each distinct text once, so that equal texts tie exactly and no similarity matrix is kept.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rsvlm.kernels import Ranks
from rsvlm.scoring.retrieval_sets import RetrievalSet

KS = (5, 10)  # precision at 1 is recall at 1
NAMES = ("map", *(f"p{k}" for k in KS))
BLOCK = 256  # queries at a time
DIRECTIONS = ("i2t", "t2i")


@dataclass(frozen=True)
class Reordering:
    """For each distinct text the images that stand first, whatever their similarity, and by what they are ordered."""

    images: np.ndarray  # (T, k) int64, numbers of images, each once a row
    scores: np.ndarray  # (T, k) finite, higher is better; images outside follow by similarity


def precision_scores(
    test: RetrievalSet,
    image_vectors: np.ndarray,
    text_vectors: np.ndarray,
    rule: str,
    reordering: Reordering | None = None,
) -> tuple[dict[str, dict[str, np.ndarray]], Ranks]:
    """(direction -> {"map", "p5", "p10"} -> of each query, ranks from text to image). By inner product.

    Queries are images for "i2t" and caption rows for "t2i". The ranks are those that ``rank_retrieval`` counts, unless
    ``reordering`` changes them.

    Args:
        image_vectors: (N, D) finite, in the order of test.image_ids.
        text_vectors: (T, D) finite, in the order of test.texts.
        rule: "by_image" or "by_text".
        reordering: of what a text finds.
    """
    offsets, ids = test.positives(rule)
    owners = np.repeat(np.arange(len(test.image_ids)), np.diff(offsets))
    back = np.lexsort((owners, ids))
    back_offsets = np.concatenate([[0], np.cumsum(np.bincount(ids, minlength=len(test.captions)))])
    images, texts = (np.asarray(part, dtype=np.float32) for part in (image_vectors, text_vectors))
    found = {name: {"i2t": np.zeros(len(images)), "t2i": np.zeros(len(test.captions))} for name in NAMES}
    ranks = Ranks(np.zeros(len(test.captions)), *(np.zeros(len(test.captions), dtype=np.int64) for _ in range(3)))
    rows_of_text = np.split(np.argsort(test.row_text, kind="stable"), np.cumsum(np.bincount(test.row_text))[:-1])

    for image, scores in _score_rows(images, texts):
        own = ids[offsets[image] : offsets[image + 1]]
        for name, value in _precisions(_levels(scores[test.row_text], own)).items():
            found[name]["i2t"][image] = value
    for text, scores in _score_rows(texts, images):
        if reordering is not None:
            scores = _reordered(scores, reordering.images[text], reordering.scores[text])
        for row in rows_of_text[text]:
            levels = _levels(scores, owners[back[back_offsets[row] : back_offsets[row + 1]]])
            for name, value in _precisions(levels).items():
                found[name]["t2i"][row] = value
            best = (levels.score[0], levels.above[0], levels.size[0] - levels.right[0], levels.right[0])
            for part, value in zip(ranks, best, strict=True):
                part[row] = value
    return {direction: {name: found[name][direction] for name in NAMES} for direction in DIRECTIONS}, ranks


def expected_average_precision(scores: np.ndarray, right: np.ndarray) -> float:
    """Average precision of one query over a random order of ties (McSherry and Najork 2008).

    A group of n tied items, r of them right, that starts after t items with R right ones, adds the sum over its places
    i = 1..n of (r / n) (R + 1 + (i - 1) (r - 1) / (n - 1)) / (t + i).

    Args:
        scores: (M,), of all items.
        right: numbers of the right items.
    """
    return _precisions(_levels(scores, right))["map"]


@dataclass(frozen=True)
class _Levels:
    """The scores that right items have, best first, each with the items above it, at it, and the right ones at it."""

    score: np.ndarray
    above: np.ndarray  # t
    size: np.ndarray  # n
    right: np.ndarray  # r


def _score_rows(queries: np.ndarray, items: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(queries), BLOCK):
        yield from enumerate(queries[start : start + BLOCK] @ items.T, start=start)


def _reordered(scores: np.ndarray, first: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Scores where the items ``first`` stand above all others, in the order of ``order``."""
    made = scores.astype(np.float64)
    made[first] = made.max() + 1 + order - order.min()
    return made


def _levels(scores: np.ndarray, right: np.ndarray) -> _Levels:
    """Raises ValueError where no item is right."""
    if len(right) == 0:
        raise ValueError("a query without a right answer cannot be scored")
    levels, counts = np.unique(scores[right], return_counts=True)
    levels, counts = levels[::-1], counts[::-1]
    ordered = np.sort(scores)
    above = len(scores) - np.searchsorted(ordered, levels, side="right")
    return _Levels(levels, above, len(scores) - np.searchsorted(ordered, levels, side="left") - above, counts)


def _precisions(levels: _Levels) -> dict[str, float]:
    t, n, r = levels.above, levels.size, levels.right.astype(np.float64)
    before = np.cumsum(r) - r  # R
    A = np.array([(1 / np.arange(above + 1, above + size + 1)).sum() for above, size in zip(t, n, strict=True)])
    B = n - (t + 1) * A  # the sum over the group of (i - 1) / (t + i)
    slope = (r - 1) / np.maximum(n - 1, 1)
    found = {"map": float((r / n * ((before + 1) * A + slope * B)).sum() / r.sum())}
    return found | {f"p{k}": float((r * np.clip(k - t, 0, n) / n).sum() / k) for k in KS}
