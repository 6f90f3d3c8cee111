"""What a search makes of "without": does it keep away what is to be left out?

That contrastive encoders read "no" as if it were not there is known of photographs (Alhamoud et al. 2025, "Vision-Language
Models Do Not Understand Negation"). Here: among the test images whose captions name one thing, those that name a second
one, too, are to come after those that do not.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import permutations

import numpy as np

from rsvlm.data.objects import things, things_in, with_kinds
from rsvlm.scoring.bootstrap import difference_of_draws, percentile_interval, rounded
from rsvlm.scoring.retrieval import EmbeddingSpace, RetrievalSet

LEAST = 5  # images with both things, and with the first alone, for a pair to count
MOST = 40  # pairs of a source, those with the most images
WAYS = {
    "plain": "an aerial image with {wanted}",
    "without": "an aerial image with {wanted} but without {unwanted}",
    "subtracted": "similarity to {wanted} less that to {unwanted}",
    "with": "an aerial image with {wanted} and {unwanted}, reversed",
}
PROTOCOL = {
    "value": "share of pairs of images, one with the first thing alone and one with both, that stand in the right order (ROC-AUC), "
    "mean over pairs of things; a half is chance",
    "there": "a thing is there where a caption names it, by the closed list; left out are only things that a caption names "
    "where they are (told), and no kin of the first",
    "reversed": "right are the images with both before the others",
    "interval": "95 % bootstrap over images; the pairs of things stay as they are",
}


def score_negation(
    tests: Mapping[str, RetrievalSet],
    space: EmbeddingSpace,
    encode: Callable[[list[str]], np.ndarray],
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, object]:
    """source -> {way: {"value", "low", "high", "n"}, "without - plain", "subtracted - plain", "pairs"}; and "protocol".

    Args:
        space: unit vectors of the images.
        encode: from texts to unit vectors (n, D) in that space.

    A source whose captions give no pair of things (``thing_pairs``) is left out.
    """
    scored: dict[str, object] = {}
    for source, test in tests.items():
        named = named_things(test)
        pairs = thing_pairs(named)
        if pairs:
            images = np.asarray(space.images(test.image_ids), dtype=np.float64)
            scored[source] = _score_pairs(pairs, named, images, encode, seed=seed, resamples=resamples)
    return scored | {"protocol": PROTOCOL | WAYS} if scored else {}


def named_things(test: RetrievalSet) -> list[set[str]]:
    """Of each image the things that a caption names, with what they are kinds of."""
    named: list[set[str]] = [set() for _ in test.image_ids]
    for row, text in zip(test.row_image, test.captions, strict=True):
        named[row] |= things_in(text)
    return [with_kinds(names) for names in named]


def thing_pairs(named: Sequence[set[str]]) -> list[tuple[str, str]]:
    """(wanted, unwanted) that ``LEAST`` images name together and ``LEAST`` others without the second; most images first."""
    known, alone, both = things(), Counter(), Counter()
    for names in named:
        alone.update(names)
        both.update(permutations(sorted(names), 2))
    counted = {
        (wanted, unwanted): min(count, alone[wanted] - count)
        for (wanted, unwanted), count in both.items()
        if min(count, alone[wanted] - count) >= LEAST and known[unwanted].told and not _are_kin(wanted, unwanted)
    }
    return sorted(counted, key=lambda pair: (-counted[pair], pair))[:MOST]


def _are_kin(one: str, other: str) -> bool:
    known = things()
    return bool(known[one].kin & known[other].kin) or one in with_kinds([other]) or other in with_kinds([one])


def _score_pairs(
    pairs: Sequence[tuple[str, str]],
    named: Sequence[set[str]],
    images: np.ndarray,
    encode: Callable[[list[str]], np.ndarray],
    *,
    seed: int,
    resamples: int,
) -> dict[str, object]:
    N = len(named)
    draws = np.random.default_rng(seed).integers(0, N, size=(resamples, N))
    weights = np.concatenate([np.ones((1, N)), [np.bincount(row, minlength=N) for row in draws]])  # (1 + r, N)
    found: dict[str, list[np.ndarray]] = {way: [] for way in WAYS}
    for (wanted, unwanted), scores in zip(pairs, _score_ways(pairs, images, encode), strict=True):
        first = np.array([wanted in names and unwanted not in names for names in named])
        second = np.array([wanted in names and unwanted in names for names in named])
        for way, own in scores.items():
            above, below = (second, first) if way == "with" else (first, second)
            found[way].append(_share_in_order(own[above], own[below], weights[:, above], weights[:, below]))
    shares = {way: np.nanmean(own, axis=0) for way, own in found.items()}  # a draw may leave a pair without an image
    n = sum(any({*pair} & names for pair in pairs) for names in named)
    entry: dict[str, object] = {"pairs": [list(pair) for pair in pairs]}
    for way, own in shares.items():
        low, high = percentile_interval(own[1:])
        entry[way] = rounded({"value": float(own[0]), "low": low, "high": high, "n": n})
    for way in ("without", "subtracted"):
        gain = shares[way] - shares["plain"]
        entry[f"{way} - plain"] = difference_of_draws(gain[0], gain[1:], n)
    return entry


def _score_ways(
    pairs: Sequence[tuple[str, str]], images: np.ndarray, encode: Callable[[list[str]], np.ndarray]
) -> Iterator[dict[str, np.ndarray]]:
    """Of each pair, way -> the images' scores (N,)."""
    texts = {}
    for wanted, unwanted in pairs:
        words = {"wanted": _some(wanted), "unwanted": _some(unwanted)}
        texts[wanted, unwanted] = {way: WAYS[way].format(**words) for way in ("plain", "without")} | {
            "with": f"an aerial image with {words['wanted']} and {words['unwanted']}",
            "unwanted": WAYS["plain"].format(wanted=words["unwanted"]),
        }
    distinct = sorted({text for own in texts.values() for text in own.values()})
    similar = dict(zip(distinct, np.asarray(encode(distinct), dtype=np.float64) @ images.T, strict=True))
    for pair in pairs:
        own = {way: similar[text] for way, text in texts[pair].items()}
        yield {way: own[way] for way in ("plain", "without", "with")} | {"subtracted": own["plain"] - own["unwanted"]}


def _some(name: str) -> str:
    """``airplanes``, ``cropland``: what an image can have one or more of."""
    return things()[name].plural


def _share_in_order(above: np.ndarray, below: np.ndarray, weights: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(r,) weighted share of pairs whose first score is higher, ties a half; NaN where the weights leave no pair.

    Args:
        above, below: (a,) and (b,) scores.
        weights, others: (r, a) and (r, b).
    """
    right = (above[:, None] > below) + 0.5 * (above[:, None] == below)  # (a, b)
    total = weights.sum(axis=1) * others.sum(axis=1)
    return np.where(total > 0, ((weights @ right) * others).sum(axis=1) / np.maximum(total, 1), np.nan)
