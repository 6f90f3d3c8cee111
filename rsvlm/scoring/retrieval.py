"""Image-text retrieval in RemoteCLIP's protocol, with what the protocol leaves open said in numbers.

The protocol (``retrieval.py`` of RemoteCLIP, after CLIP_benchmark): the images of a split, each file once; all their
caption rows, copies included; cosine similarity; image to text (i2t) R@K is the share of images with one of their own
captions among the K best rows, text to image (t2i) R@K the share of caption rows whose own image is among the K best
images; mean recall is the mean of R@1, R@5, R@10 both ways. It passes ``raw.capitalize()`` to the encoder.

Left open, and answered here:

- Equal texts. 83 % of UCM's test captions also stand under another test image, so the protocol marks right answers
  wrong. ``by_image`` is the protocol; ``by_text`` takes every image or row with the same text for right. A text is
  encoded once, so that equal texts have equal scores.
- Ties. A recall is its expected value over a random order of the ties; ``optimistic`` and ``pessimistic`` bound it.
- The ceiling: what a model that knows all captions of the test set by heart gets under ``by_image``, with its ties at
  random. It is a yardstick and no strict bound: image to text, a model passes it by preferring those of an image's
  captions that stand under few other images.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from rsvlm.kernels import Ranks, two_way_ranks
from rsvlm.scoring.embedding_spaces import EmbeddingSpace
from rsvlm.scoring.retrieval_sets import MATCH_RULES, RetrievalSet, retrieval_set

KS = (1, 5, 10)
CURVE_KS = tuple(range(1, 21))
DIRECTIONS = ("i2t", "t2i")
TIE_RULES = ("expected", "optimistic", "pessimistic")
DIGITS = 6  # of a fraction in a file
RESAMPLES_AT_ONCE = 100

PROTOCOL = {
    "name": "RemoteCLIP retrieval.py (after CLIP_benchmark): images of the split once by file name, all caption rows",
    "by_image": "right answer = the image's own caption rows, the caption row's own image (the published protocol)",
    "by_text": "right answer = also every other row, every other image, that has the same text",
    "ties": "expected value over a random order; optimistic and pessimistic bounds beside it",
    "ceiling": "by_image recall of an oracle: 1 where the text is one of the image's captions, else 0; ties at random",
    "mean_recall": "mean of R@1, R@5 and R@10 in both directions",
    "median_rank": "median place of the first right answer, counted from 1, expected over ties",
    "unit": "fraction",
}


@dataclass(frozen=True)
class RetrievalReport:
    """Scores of several methods on several test sets."""

    metrics: dict  # {method: {source: score_retrieval's dict}}
    per_image: pd.DataFrame  # one row a method, source, match rule and image
    curves: pd.DataFrame  # method, source, match, direction, k, recall; with the method "ceiling"


def rank_retrieval(
    test: RetrievalSet, image_vectors: np.ndarray, text_vectors: np.ndarray, rule: str, *, normalize: bool = True
) -> dict[str, Ranks]:
    """Rank counts by direction: "i2t" of each image, "t2i" of each caption row (numpy arrays).

    Args:
        image_vectors: (N, D), in the order of test.image_ids.
        text_vectors: (T, D), in the order of test.texts.
        rule: "by_image" or "by_text".
        normalize: cosine (True) or inner product (False).
    """
    rows = np.asarray(text_vectors)[test.row_text]  # (C, D); equal texts get the very same vector
    there, back = two_way_ranks(np.asarray(image_vectors), rows, test.positives(rule), normalize=normalize)
    return {"i2t": _as_numpy(there), "t2i": _as_numpy(back)}


def perfect_ranks(test: RetrievalSet) -> dict[str, Ranks]:
    """Rank counts, under the by-image rule, of an oracle that scores 1 where a text is among an image's captions."""
    N, C = len(test.image_ids), len(test.captions)
    own_rows = np.bincount(test.row_image, minlength=N)
    offsets, _ = test.positives("by_text")
    images_with = np.zeros(len(test.texts), dtype=np.int64)  # of each text
    pairs = np.unique(np.stack([test.row_image, test.row_text]), axis=1)
    np.add.at(images_with, pairs[1], 1)
    one = np.ones(N, dtype=np.float32), np.ones(C, dtype=np.float32)
    return {
        "i2t": Ranks(one[0], np.zeros(N, dtype=np.int64), np.diff(offsets) - own_rows, own_rows),
        "t2i": Ranks(
            one[1], np.zeros(C, dtype=np.int64), images_with[test.row_text] - 1, np.ones(C, dtype=np.int64)
        ),
    }


def hits(ranks: Ranks, k: int, ties: str = "expected") -> np.ndarray:
    """Chance in 0..1, for each query, that a right answer is among the first k. Shape (Q,), float64.

    With g items better than the best right answer, e others equal to it and p right ones tied there, of the k places
    s = k - g are left for the e + p, in random order: 1 - C(e, s) / C(e + p, s).
    """
    g, e, p = (np.asarray(part).astype(np.int64) for part in (ranks.greater, ranks.equal, ranks.tied))
    if ties == "optimistic":
        return ((g < k) & (p > 0)).astype(np.float64)
    if ties == "pessimistic":
        return ((g + e < k) & (p > 0)).astype(np.float64)
    if ties != "expected":
        raise ValueError(f"tie rule {ties!r}: expected one of {', '.join(TIE_RULES)}")
    left = np.clip(k - g, 0, e + p)
    missed = np.ones(len(g))
    for place in range(k):  # the chance that each place in turn goes to a wrong one
        factor = np.clip(e - place, 0, None) / np.maximum(e + p - place, 1)
        missed = np.where(place < left, missed * factor, missed)
    return 1 - missed


def first_places(ranks: Ranks) -> np.ndarray:
    """Expected place, from 1, of each query's first right answer over a random order of ties. Shape (Q,), float64."""
    return 1 + np.asarray(ranks.greater) + np.asarray(ranks.equal) / (np.asarray(ranks.tied) + 1.0)


def recall_curve(ranks: Ranks, ks: tuple[int, ...] = CURVE_KS) -> np.ndarray:
    """Expected R@K for each K, shape (len(ks),)."""
    return np.array([hits(ranks, k).mean() for k in ks])


def mean_recall(ranks: dict[str, Ranks]) -> float:
    """Mean of expected R@1, R@5, R@10 in both directions."""
    return float(np.mean([recall_curve(ranks[direction], KS).mean() for direction in DIRECTIONS]))


def summarise_ranks(
    test: RetrievalSet, ranks: dict[str, Ranks], *, resamples: int = 1000, seed: int = 0
) -> dict[str, dict]:
    """Recalls, mean recall and median ranks, each {"value", "low", "high", "n", ...}; recalls as fractions.

    low..high is the 95 % bootstrap interval over images (percentiles): an image is drawn with its captions, against the
    same gallery. n counts queries. Recalls also carry "optimistic" and "pessimistic".
    """
    N = len(test.image_ids)
    owners = {"i2t": np.arange(N), "t2i": test.row_image}
    totals = {  # per image: the sum of its queries' hits, for every tie rule
        (direction, k, ties): np.bincount(owners[direction], hits(ranks[direction], k, ties), minlength=N)
        for direction in DIRECTIONS
        for k in KS
        for ties in TIE_RULES
    }
    queries = {direction: np.bincount(owners[direction], minlength=N) for direction in DIRECTIONS}
    places = {direction: first_places(ranks[direction]) for direction in DIRECTIONS}

    def recalls(weights: np.ndarray, ties: str) -> dict[str, np.ndarray]:
        values = {
            f"{direction}_r{k}": (weights @ totals[direction, k, ties]) / (weights @ queries[direction])
            for direction in DIRECTIONS
            for k in KS
        }
        return values | {"mean_recall": np.mean(list(values.values()), axis=0)}

    def medians(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {
            f"{direction}_median_rank": _weighted_median(places[direction], weights[:, owners[direction]])
            for direction in DIRECTIONS
        }

    everything = np.ones((1, N))
    values = recalls(everything, "expected") | medians(everything)
    bounds = {ties: recalls(everything, ties) for ties in TIE_RULES[1:]}
    draws: dict[str, list] = {name: [] for name in values}
    random = np.random.default_rng(seed)
    for start in range(0, resamples, RESAMPLES_AT_ONCE):
        size = (min(RESAMPLES_AT_ONCE, resamples - start),)
        weights = random.multinomial(N, np.full(N, 1 / N), size=size).astype(np.float64)
        for name, drawn in (recalls(weights, "expected") | medians(weights)).items():
            draws[name].append(drawn)

    summary = {}
    for name, value in values.items():
        low, high = np.percentile(np.concatenate(draws[name]), [2.5, 97.5]) if resamples else (None, None)
        n = len(test.captions) if name.startswith("t2i") else N
        summary[name] = {"value": _rounded(value[0]), "low": _rounded(low), "high": _rounded(high), "n": n}
        for ties in bounds:
            if name in bounds[ties]:
                summary[name][ties] = _rounded(bounds[ties][name][0])
    return summary


def score_retrieval(
    image_embeddings: np.ndarray,
    text_embeddings: np.ndarray,
    image_ids: list[str],
    captions: list[list[str]],
    texts: list[str],
    *,
    normalize: bool = True,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, dict]:
    """{"by_image": {...}, "by_text": {...}, "ceiling": {...}}, each what summarise_ranks returns.

    Args:
        image_embeddings: (N, D), a row for each of image_ids.
        text_embeddings: (M, D), a row for each of texts, which hold every caption once.
        captions: of each image.
        normalize: cosine (True) or inner product (False).
        resamples: of the bootstrap; 0 leaves the intervals null.

    Raises:
        ValueError: lengths do not fit, an image without captions, a caption that is not in texts; named.
    """
    if len(image_ids) != len(image_embeddings):
        raise ValueError(f"{len(image_ids)} image ids for {len(image_embeddings)} image embeddings")
    test = retrieval_set(image_ids, captions)
    kept: dict[str, int] = {}
    for row, image_id in enumerate(image_ids):
        kept.setdefault(image_id, row)
    space = EmbeddingSpace(list(kept), np.asarray(image_embeddings)[list(kept.values())], texts, text_embeddings)
    vectors = space.images(test.image_ids), space.text(test.texts)
    ranks = {rule: rank_retrieval(test, *vectors, rule, normalize=normalize) for rule in MATCH_RULES}
    ranks["ceiling"] = perfect_ranks(test)
    return {name: summarise_ranks(test, own, resamples=resamples, seed=seed) for name, own in ranks.items()}


def score_spaces(
    spaces: dict[str, EmbeddingSpace], tests: dict[str, RetrievalSet], *, resamples: int = 1000, seed: int = 0
) -> RetrievalReport:
    """Every method on every test set, by inner product of the spaces' vectors (so they come normalised or weighted).

    Args:
        spaces: by method.
        tests: by source, as retrieval_sets gives them.
    """
    metrics: dict[str, dict] = {method: {} for method in spaces}
    per_image, curves = [], []
    for source, test in tests.items():
        ceiling = perfect_ranks(test)
        curves.append(_curve_rows("ceiling", source, "by_image", ceiling))
        best = summarise_ranks(test, ceiling, resamples=resamples, seed=seed)
        for method, space in spaces.items():
            vectors = space.images(test.image_ids), space.text(test.texts)
            metrics[method][source] = {"ceiling": best}
            for rule in MATCH_RULES:
                ranks = rank_retrieval(test, *vectors, rule, normalize=False)
                metrics[method][source][rule] = summarise_ranks(test, ranks, resamples=resamples, seed=seed)
                names = {"method": method, "source": source, "match": rule}
                per_image.append(image_scores(test, ranks).assign(**names))
                curves.append(_curve_rows(method, source, rule, ranks))
    scores = pd.concat(per_image, ignore_index=True)
    named = ["method", "source", "match", "image_id"]
    scores = scores[[*named, *(column for column in scores if column not in named)]]
    return RetrievalReport(metrics, scores, pd.concat(curves, ignore_index=True))


def image_scores(test: RetrievalSet, ranks: dict[str, Ranks]) -> pd.DataFrame:
    """One row an image: its own ranks and hits as a query, and the means over its captions as queries."""
    N = len(test.image_ids)
    counts = np.bincount(test.row_image, minlength=N)
    there, back = ranks["i2t"], ranks["t2i"]
    columns = {"image_id": test.image_ids, "captions": counts}
    columns |= {"i2t_greater": there.greater, "i2t_equal": there.equal, "i2t_tied": there.tied}
    columns["i2t_rank"] = first_places(there).round(DIGITS)
    columns |= {f"i2t_r{k}": hits(there, k).round(DIGITS) for k in KS}
    columns["t2i_rank"] = (np.bincount(test.row_image, first_places(back), minlength=N) / counts).round(DIGITS)
    for k in KS:
        columns[f"t2i_r{k}"] = (np.bincount(test.row_image, hits(back, k), minlength=N) / counts).round(DIGITS)
    return pd.DataFrame(columns)


def _curve_rows(method: str, source: str, rule: str, ranks: dict[str, Ranks]) -> pd.DataFrame:
    parts = [
        pd.DataFrame({"direction": direction, "k": CURVE_KS, "recall": recall_curve(ranks[direction])})
        for direction in DIRECTIONS
    ]
    rows = pd.concat(parts, ignore_index=True)
    rows.insert(0, "method", method)
    rows.insert(1, "source", source)
    rows.insert(2, "match", rule)
    return rows


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Median of values (n,) under each row of integer weights (R, n), shape (R,)."""
    order = np.argsort(values, kind="stable")
    sums = np.cumsum(weights[:, order], axis=1)
    total = sums[:, -1]
    lower = (sums * 2 < total[:, None]).sum(axis=1)  # first place where half is reached
    upper = (sums * 2 <= total[:, None]).sum(axis=1)  # first place where half is passed
    ordered = values[order]
    return (ordered[lower] + ordered[upper]) / 2


def _as_numpy(ranks: Ranks) -> Ranks:
    return Ranks(*(part.cpu().numpy() for part in ranks))


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(float(number), DIGITS)
