"""CIDEr between any two captions, from tf-idf vectors of their n-grams, for choosing captions rather than scoring them.

The similarity is pycocoevalcap's (Vedantam et al. 2015 with clipping and the length penalty, times 10), the idf that of
the training captions, and the tokens plain lower-case words, so that no Java is needed. CIDEr's clipped product
min(a, b) * b is turned into a plain inner product by giving the t-th occurrence of an n-gram a column of its own:
min(a, b) = sum over t of [a >= t] [b >= t]. Comparing a pool of captions is then one small matrix product.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
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
