"""The captions of the nearest training images, and how captions agree with each other.

CIDEr between any two captions, from tf-idf vectors of their n-grams, for choosing captions rather than scoring them.

The similarity is pycocoevalcap's (Vedantam et al. 2015 with clipping and the length penalty, times 10), the idf that of
the training captions, and the tokens plain lower-case words, so that no Java is needed. CIDEr's clipped product
min(a, b) * b is turned into a plain inner product by giving the t-th occurrence of an n-gram a column of its own:
min(a, b) = sum over t of [a >= t] [b >= t]. Comparing a pool of captions is then one small matrix product.

Captions without a language model: constant, nearest image's, consensus of the nearest images; and shuffled images.

They use training captions only. A captioner that does not beat them has learnt nothing worth its cost; one that does
not fall when it is fed the wrong images has learnt the captions, not the images.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

ORDERS = 4
SIGMA = 6.0  # words, of the Gaussian length penalty
SCALE = 10.0
WORD = re.compile(r"\w+(?:['’]\w+)*")


@dataclass(frozen=True)
class CaptionVector:
    """One caption's columns (k,) with their values as a candidate and as a reference, and its number of bigrams."""

    columns: np.ndarray
    candidate: np.ndarray
    reference: np.ndarray
    length: int


class CiderSpace:
    """The idf of a set of documents (each an image's captions) and the vectors of captions met so far."""

    def __init__(self, documents: Iterable[Sequence[str]]) -> None:
        self._frequency: Counter[tuple[str, ...]] = Counter()
        self._columns: dict[tuple, int] = {}
        self._vectors: dict[str, CaptionVector] = {}
        n_documents = 0
        for captions in documents:
            n_documents += 1
            self._frequency.update({ngram for text in dict.fromkeys(captions) for ngram in count_ngrams(text)})
        self._log_documents = math.log(n_documents) if n_documents else 0.0

    def idf(self, ngram: tuple[str, ...]) -> float:
        """log(documents / documents with this n-gram); an unknown n-gram counts as seen once."""
        return self._log_documents - math.log(max(1, self._frequency.get(ngram, 0)))

    def vector(self, caption: str) -> CaptionVector:
        """The caption's vector; kept for the next time."""
        if caption not in self._vectors:
            self._vectors[caption] = self._vector(caption)
        return self._vectors[caption]

    def similarity(self, candidates: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """(C, R) float64: CIDEr of each candidate against each single reference, 0 to 10."""
        tests = [self.vector(text) for text in candidates]
        truths = [self.vector(text) for text in references]
        if not tests or not truths:
            return np.zeros((len(tests), len(truths)))
        used = np.unique(np.concatenate([vector.columns for vector in (*tests, *truths)]))
        left = _dense([vector.columns for vector in tests], [vector.candidate for vector in tests], used)
        right = _dense([vector.columns for vector in truths], [vector.reference for vector in truths], used)
        lengths = np.array([vector.length for vector in tests])[:, None] - np.array([v.length for v in truths])[None, :]
        return (left @ right.T) * length_penalty(lengths)

    def mean_similarity(self, candidates: Sequence[str], documents: Sequence[Sequence[str]]) -> np.ndarray:
        """(C,) float64: each candidate's CIDEr against a document's captions, averaged over all documents.

        Exact without the candidates x captions matrix: captions of the same length are summed first, since only the
        length penalty keeps the similarity from being linear. Memory: the candidates' vectors and one vocabulary.
        """
        weights: dict[str, float] = {}
        for captions in documents:
            for text in captions:
                weights[text] = weights.get(text, 0.0) + 1 / len(captions)
        by_length: dict[int, list[str]] = {}
        for text in weights:
            by_length.setdefault(self.vector(text).length, []).append(text)
        tests = [self.vector(text) for text in candidates]
        columns, values = _joined(tests, "columns"), _joined(tests, "candidate")
        owners = np.repeat(np.arange(len(tests)), [len(vector.columns) for vector in tests])
        lengths = np.array([vector.length for vector in tests])
        total = np.zeros(len(tests))
        for length in sorted(by_length):
            texts = by_length[length]
            summed = np.zeros(len(self._columns))
            for text in texts:
                vector = self.vector(text)
                summed[vector.columns] += weights[text] * vector.reference  # a caption's columns are distinct
            products = np.bincount(owners, weights=values * summed[columns], minlength=len(tests))
            total += products * length_penalty(lengths - length)
        return total / max(1, len(documents))

    def _vector(self, caption: str) -> CaptionVector:
        counts = count_ngrams(caption)
        norms = [0.0] * ORDERS
        for ngram, count in counts.items():
            norms[len(ngram) - 1] += (count * self.idf(ngram)) ** 2
        columns, candidate, reference = [], [], []
        scale = math.sqrt(SCALE / ORDERS)  # on both sides of the product
        for ngram, count in counts.items():
            norm = math.sqrt(norms[len(ngram) - 1])
            if norm == 0:
                continue
            weight = scale * self.idf(ngram) / norm
            for occurrence in range(1, count + 1):
                columns.append(self._columns.setdefault((ngram, occurrence), len(self._columns)))
                candidate.append(weight)
                reference.append(weight * count)
        length = sum(count for ngram, count in counts.items() if len(ngram) == 2)
        return CaptionVector(
            np.array(columns, dtype=np.int64),
            np.array(candidate, dtype=float),
            np.array(reference, dtype=float),
            length,
        )


def count_ngrams(caption: str) -> Counter[tuple[str, ...]]:
    """How often each n-gram of 1 to 4 lower-case words occurs in the caption."""
    words = WORD.findall(caption.lower())
    return Counter(
        tuple(words[start : start + order]) for order in range(1, ORDERS + 1) for start in range(len(words) - order + 1)
    )


def length_penalty(differences: np.ndarray) -> np.ndarray:
    """exp(-d^2 / (2 sigma^2)) for differences of length in words."""
    return np.exp(-(np.asarray(differences, dtype=np.float64) ** 2) / (2 * SIGMA**2))


def _dense(columns: list[np.ndarray], values: list[np.ndarray], used: np.ndarray) -> np.ndarray:
    """(rows, len(used)): each row's values in the columns that are used at all."""
    matrix = np.zeros((len(columns), len(used)))
    rows = np.repeat(np.arange(len(columns)), [len(row) for row in columns])
    matrix[rows, np.searchsorted(used, np.concatenate(columns))] = np.concatenate(values)
    return matrix


def _joined(vectors: list[CaptionVector], name: str) -> np.ndarray:
    return np.concatenate([getattr(vector, name) for vector in vectors]) if vectors else np.zeros(0, dtype=np.int64)


BASELINES = ("constant", "nearest", "consensus")
NEIGHBOURS = 20
TEMPERATURE = 0.05  # of the cosine; with 20 neighbours measured on UCM-Captions: 5 to 50 neighbours all score alike


def baseline_captions(
    query_ids: Sequence[str],
    query_features: np.ndarray,
    training_ids: Sequence[str],
    training_features: np.ndarray,
    captions: Mapping[str, Sequence[str]],
    *,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    space: CiderSpace | None = None,
) -> dict[str, dict[str, str]]:
    """run -> {image_id: caption} for the runs constant, nearest and consensus.

    Args:
        query_ids: the images to caption, Q of them.
        query_features: (Q, D).
        training_ids: images of the training split only, M of them.
        training_features: (M, D), in the same space.
        captions: training image_id -> its captions.
        k: neighbours that vote.
        temperature: of the weights exp((cosine - highest cosine) / temperature).
        space: the training captions' CiderSpace, where it is made already.
    """
    space = space or caption_space(training_ids, captions)
    neighbours, weights = find_neighbours(
        query_features, training_features, training_ids, k=k, temperature=temperature, query_ids=query_ids
    )
    constant = constant_caption({image_id: captions[image_id] for image_id in training_ids}, space=space)
    nearest = nearest_captions(neighbours, captions)
    consensus = consensus_captions(neighbours, weights, captions, space=space)
    return {
        "constant": dict.fromkeys(query_ids, constant),
        "nearest": dict(zip(query_ids, nearest, strict=True)),
        "consensus": dict(zip(query_ids, consensus, strict=True)),
    }


def caption_space(image_ids: Iterable[str], captions: Mapping[str, Sequence[str]]) -> CiderSpace:
    """The CiderSpace whose idf comes from these images' captions."""
    return CiderSpace(captions[image_id] for image_id in image_ids)


def find_neighbours(
    queries: np.ndarray,
    items: np.ndarray,
    item_ids: Sequence[str],
    *,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    query_ids: Sequence[str] | None = None,
) -> tuple[list[list[str]], list[np.ndarray]]:
    """For each query the ids of its k nearest items by cosine, nearest first, and their weights, the first one's 1.

    Args:
        queries: (Q, D).
        items: (M, D), with ``item_ids`` in the same order.
        query_ids: where given, an item with the query's own id is left out (neighbours of training images).

    Raises:
        ValueError: no items, k or temperature not positive, or ids that do not fit the rows.
    """
    from rsvlm.kernels import similarity_topk  # only here: it brings torch, which scoring captions does without

    if len(items) == 0 or len(items) != len(item_ids):
        raise ValueError(
            f"{len(items)} rows of features for {len(item_ids)} training ids: expected as many, at least one"
        )
    if k < 1 or temperature <= 0:
        raise ValueError(f"k = {k}, temperature = {temperature}: expected at least 1 and more than 0")
    spare = 0 if query_ids is None else 1
    scores, indices = (part.cpu().numpy() for part in similarity_topk(queries, items, k + spare))
    ids, weights = [], []
    for row, (found, cosines) in enumerate(zip(indices, scores)):
        own = None if query_ids is None else query_ids[row]
        kept = [j for j, item in enumerate(found) if item >= 0 and item_ids[item] != own][:k]
        ids.append([item_ids[found[j]] for j in kept])
        chosen = cosines[kept].astype(np.float64)
        weights.append(np.exp((chosen - chosen.max()) / temperature) if kept else chosen)
    return ids, weights


def consensus_pool(
    neighbours: Sequence[Sequence[str]],
    weights: Sequence[np.ndarray],
    captions: Mapping[str, Sequence[str]],
    *,
    space: CiderSpace | None = None,
    extra: Sequence[Sequence[str]] | None = None,
) -> list[list[tuple[str, float]]]:
    """For each query its neighbours' distinct captions with their scores, best first.

    A caption's score is the weighted mean of its CIDEr (0 to 10) to the pool's other captions; a neighbour's weight is
    shared among its captions. A caption that stands in the pool several times leaves out one of its places only. Ties
    go to the nearer neighbour.

    Args:
        neighbours: training image ids a query, nearest first.
        weights: as many positive weights a query.
        captions: training image_id -> its captions.
        space: the training captions' CiderSpace; None makes it from all of ``captions``.
        extra: more candidates a query, such as a captioner's samples; they are scored by the pool but have no vote.

    Raises:
        ValueError: a query without neighbours, or with other numbers of neighbours and weights.
    """
    space = space or CiderSpace(captions.values())
    pools = []
    for row, (images, votes) in enumerate(zip(neighbours, weights, strict=True)):
        if len(images) == 0 or len(images) != len(votes):
            raise ValueError(
                f"query {row}: {len(images)} neighbours, {len(votes)} weights: expected as many, at least 1"
            )
        pools.append(_ranked(space, images, votes, captions, extra[row] if extra is not None else ()))
    return pools


def consensus_captions(
    neighbours: Sequence[Sequence[str]],
    weights: Sequence[np.ndarray],
    captions: Mapping[str, Sequence[str]],
    *,
    space: CiderSpace | None = None,
) -> list[str]:
    """For each query the caption that agrees best with its neighbours' other captions."""
    return [pool[0][0] for pool in consensus_pool(neighbours, weights, captions, space=space)]


def nearest_captions(neighbours: Sequence[Sequence[str]], captions: Mapping[str, Sequence[str]]) -> list[str]:
    """For each query the first caption of its nearest image."""
    return [captions[images[0]][0] for images in neighbours]


def constant_caption(captions: Mapping[str, Sequence[str]], *, space: CiderSpace | None = None) -> str:
    """The one caption with the highest mean CIDEr against all these images' captions, computed exactly.

    Ties go to the first in alphabetical order.
    """
    documents = [texts for texts in captions.values() if len(texts)]
    candidates = sorted({text for texts in documents for text in texts})
    if not candidates:
        raise ValueError("no training captions to choose a constant one from")
    space = space or CiderSpace(documents)
    return candidates[int(np.argmax(np.round(space.mean_similarity(candidates, documents), 9)))]


def shuffled_images(image_ids: Sequence[str], seed: int) -> list[str]:
    """For each image the image that is shown in its place: a random permutation without fixed points.

    Sattolo's algorithm: one cycle through all images, so no image keeps its place.

    Raises:
        ValueError: fewer than two images, or an id twice.
    """
    if len(image_ids) < 2 or len(set(image_ids)) != len(image_ids):
        distinct = len(set(image_ids))
        raise ValueError(
            f"cannot shuffle {len(image_ids)} images, {distinct} of them distinct: needs two or more, each once"
        )
    generator = np.random.default_rng(seed)
    shown = list(image_ids)
    for last in range(len(shown) - 1, 0, -1):
        other = int(generator.integers(last))
        shown[last], shown[other] = shown[other], shown[last]
    return shown


def _ranked(
    space: CiderSpace,
    images: Sequence[str],
    votes: np.ndarray,
    captions: Mapping[str, Sequence[str]],
    extra: Sequence[str],
) -> list[tuple[str, float]]:
    """One query's pool, best first."""
    weight: dict[str, float] = {}  # of all places of a caption
    smallest: dict[str, float] = {}  # of the place that a caption leaves out when it is judged itself
    for image_id, vote in zip(images, votes):
        share = float(vote) / len(captions[image_id])
        for text in captions[image_id]:
            weight[text] = weight.get(text, 0.0) + share
            smallest[text] = min(smallest.get(text, share), share)
    judges = list(weight)
    candidates = judges + [text for text in dict.fromkeys(extra) if text not in weight]
    similarity = space.similarity(candidates, judges)
    voting = np.array([weight[text] for text in judges])
    own = np.array([smallest.get(text, 0.0) for text in candidates])
    to_itself = np.zeros(len(candidates))
    to_itself[: len(judges)] = np.diagonal(similarity)
    remaining = voting.sum() - own
    alone = remaining <= 1e-12 * voting.sum()  # the only caption of the only neighbour has nobody to agree with
    scores = np.where(alone, 0.0, (similarity @ voting - own * to_itself) / np.where(alone, 1.0, remaining))
    order = np.argsort(-np.round(scores, 9), kind="stable")
    return [(candidates[i], float(scores[i])) for i in order]
