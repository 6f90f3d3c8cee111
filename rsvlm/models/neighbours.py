"""The captions of the nearest training images: which they are, and how well they agree with each other.

Agreement is CIDEr between any two captions, from tf-idf vectors of their n-grams: pycocoevalcap's (Vedantam et al. 2015
with clipping and the length penalty, times 10), with the training captions' idf and plain lower-case words, so that no
Java is needed. CIDEr's clipped product min(a, b) * b is turned into a plain inner product by giving the t-th occurrence
of an n-gram a column of its own: min(a, b) = sum over t of [a >= t] [b >= t]. Comparing a pool of captions is then one
small matrix product.

From them come baselines without a language model. A captioner that does not beat them has learnt nothing worth its cost;
one that does not fall when it is fed the wrong images has learnt the captions, not the images.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from rsvlm.data.caption_languages import captions_by_language
from rsvlm.data.table import CaptionsOf
from rsvlm.data.translations import HOW_NAMES
from rsvlm.kernels import similarity_topk
from rsvlm.models.features import Features

ORDERS = 4
SIGMA = 6.0  # words, of the Gaussian length penalty
SCALE = 10.0
# A word; of Chinese, Japanese and Thai, which set no spaces between words, a letter
_LETTERS = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{_LETTERS}]|[^\W{_LETTERS}]+(?:['’][^\W{_LETTERS}]+)*")
NEIGHBOURS = 20
TEMPERATURE = 0.05  # of the cosine; with 20 neighbours measured on UCM-Captions: 5 to 50 neighbours all score alike


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

    def mean_cider(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """Mean over images of a caption's mean CIDEr (0 to 10) to the image's references."""
        scores = [self.similarity([caption], own).mean() for caption, own in zip(captions, references, strict=True)]
        return float(np.mean(scores))

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


@dataclass(frozen=True)
class Memory:
    """The training images whose captions stand for images like them: what a captioner remembers of its training.

    Attributes:
        captions: image id -> its captions.
        vectors: (N, D) float16, their embeddings in the encoder's space, in the order of ``captions``.
    """

    captions: Mapping[str, Sequence[str]]
    vectors: np.ndarray

    @cached_property
    def space(self) -> CiderSpace:
        """The CIDEr vectors of the captions, with their idf."""
        return CiderSpace(self.captions.values())

    def pools(
        self, vectors: np.ndarray, image_ids: Sequence[str], *, k: int = NEIGHBOURS, temperature: float = TEMPERATURE
    ) -> "Pools":
        """The pools of some images; one that is remembered is never its own neighbour.

        Args:
            vectors: (n, D) of the images, in the encoder's space.
            k: neighbours in that space.
            temperature: of the weights exp((cosine - highest cosine) / temperature).

        Raises:
            ValueError: nothing is remembered, or nothing but the image itself; k or temperature not positive.
        """
        remembered = list(self.captions)
        if len(self.vectors) == 0 or len(self.vectors) != len(remembered):
            raise ValueError(
                f"{len(self.vectors)} rows of features for {len(remembered)} training ids: expected as many, at least one"
            )
        if k < 1 or temperature <= 0:
            raise ValueError(f"k = {k}, temperature = {temperature}: expected at least 1 and more than 0")
        scores, indices = (part.cpu().numpy() for part in similarity_topk(vectors, self.vectors, k + 1))
        near, votes = [], []
        for own, found, cosines in zip(image_ids, indices, scores, strict=True):
            kept = [j for j, item in enumerate(found) if item >= 0 and remembered[item] != own][:k]
            if not kept:
                raise ValueError(f"{own}: no other training image, so no neighbour")
            chosen = cosines[kept].astype(np.float64)
            near.append([remembered[found[j]] for j in kept])
            votes.append(np.exp((chosen - chosen.max()) / temperature))
        return Pools(list(image_ids), near, votes, self)


@dataclass(frozen=True)
class Pools:
    """For each image its nearest training images with the weights of their votes, and their captions."""

    image_ids: list[str]
    neighbours: list[list[str]]  # nearest first
    votes: list[np.ndarray]  # the nearest one's is 1
    memory: Memory

    @cached_property
    def ranked(self) -> list[list[tuple[str, float]]]:
        """For each image the different captions of its pool with their consensus, best first."""
        return [self.consensus(row) for row in range(len(self.image_ids))]

    def top(self, n: int) -> dict[str, list[str]]:
        """image id -> its n most consensual captions (fewer where the pool is smaller)."""
        return {image_id: [text for text, _ in own[:n]] for image_id, own in zip(self.image_ids, self.ranked)}

    def consensus(self, row: int, extra: Sequence[str] = ()) -> list[tuple[str, float]]:
        """The different captions of an image's pool with their scores, best first.

        A caption's score is the weighted mean of its CIDEr (0 to 10) to the pool's other captions; a neighbour's weight
        is shared among its captions. A caption that stands in the pool several times leaves out one of its places only.
        Ties go to the nearer neighbour.

        Args:
            extra: more candidates, such as a captioner's samples; they are scored by the pool but have no vote.
        """
        weight: dict[str, float] = {}  # of all places of a caption
        smallest: dict[str, float] = {}  # of the place that a caption leaves out when it is judged itself
        for image_id, vote in zip(self.neighbours[row], self.votes[row], strict=True):
            captions = self.memory.captions[image_id]
            share = float(vote) / len(captions)
            for text in captions:
                weight[text] = weight.get(text, 0.0) + share
                smallest[text] = min(smallest.get(text, share), share)
        judges = list(weight)
        candidates = judges + [text for text in dict.fromkeys(extra) if text not in weight]
        similarity = self.memory.space.similarity(candidates, judges)
        voting = np.array([weight[text] for text in judges])
        own = np.array([smallest.get(text, 0.0) for text in candidates])
        to_itself = np.zeros(len(candidates))
        to_itself[: len(judges)] = np.diagonal(similarity)
        remaining = voting.sum() - own
        alone = remaining <= 1e-12 * voting.sum()  # the only caption of the only neighbour has nobody to agree with
        scores = np.where(alone, 0.0, (similarity @ voting - own * to_itself) / np.where(alone, 1.0, remaining))
        order = np.argsort(-np.round(scores, 9), kind="stable")
        return [(candidates[i], float(scores[i])) for i in order]


def training_memory(features: Features, table: pd.DataFrame) -> Memory:
    """What there is to remember of a table's training split.

    Raises:
        ValueError: the split is empty.
    """
    training = table[table["split"] == "train"]
    if len(training) == 0:
        raise ValueError("the split 'train' holds no image: there are no neighbours to take captions from")
    captions = CaptionsOf(training)
    return Memory(captions, features.image_embeddings[features.rows(list(captions))].astype(np.float16))


@dataclass(frozen=True)
class Spoken:
    """The training images that have captions in a language.

    Attributes:
        memory: their captions in it, and their vectors in the encoder's space.
        how: how the captions came about: "machine-translated", "written by rule", "given by people", or several.
    """

    memory: Memory
    how: str


def spoken_languages(features: Features, table: pd.DataFrame, translations: pd.DataFrame) -> dict[str, Spoken]:
    """language -> the training images with captions in it; English is not among them.

    Args:
        features: of the table's images.
        translations: as ``rsvlm.data.translations.load_translations`` gives them.
    """
    codes = sorted(set(translations["language"]))
    spoken = {}
    for code, rows in captions_by_language(table, translations, codes).items():
        training = rows[rows["split"] == "train"]
        if code in codes and len(training):
            how = " or ".join(sorted({HOW_NAMES[how] for how in training["how"]}))
            spoken[code] = Spoken(training_memory(features, training), how)
    return spoken


def consensus_captions(
    memory: Memory, vectors: np.ndarray, image_ids: Sequence[str], **options: float
) -> dict[str, str]:
    """image id -> of the captions of its nearest images in a memory, the one that the others agree with best.

    Args:
        vectors: (n, D) of the images, in the encoder's space.
        options: of ``Memory.pools``.
    """
    return {image_id: own[0] for image_id, own in memory.pools(vectors, image_ids, **options).top(1).items()}


def pool_options(prompting: Mapping[str, object]) -> dict[str, float]:
    """``k`` and ``temperature`` of ``Memory.pools``, as a captioner's record, or the settings ``Pooling``, say them.

    What an older record leaves out is NEIGHBOURS and TEMPERATURE.
    """
    return {
        "k": prompting.get("neighbours", NEIGHBOURS),
        "temperature": prompting.get("neighbour_temperature", TEMPERATURE),
    }


def training_pools(features: Features, table: pd.DataFrame, image_ids: Sequence[str], **options: float) -> Pools:
    """The pools of these images from the table's training split; options as ``Memory.pools`` takes them."""
    vectors = features.image_embeddings[features.rows(image_ids)]
    return training_memory(features, table).pools(vectors, image_ids, **options)


def told_with_instructions(config: Mapping[str, Mapping]) -> int:
    """How many neighbours' captions stand before a captioner's instructions, by its config.json; 0: they stand alone."""
    trained = config.get("training", {}).get("instruction_neighbours", False)
    return config["prompting"]["neighbour_captions"] if trained else 0


def instruction_neighbours(
    config: Mapping[str, Mapping], features: Features, table: pd.DataFrame, image_ids: Sequence[str]
) -> dict[str, list[str]]:
    """Image id -> the captions that a captioner's instructions about it stand behind; empty where they stand alone.

    Args:
        config: the captioner's.
        table: with the training captions.
        image_ids: an image may occur several times.
    """
    told = told_with_instructions(config)
    if not told:
        return {}
    different = list(dict.fromkeys(image_ids))
    return training_pools(features, table, different, **pool_options(config["prompting"])).top(told)


def baseline_captions(pools: Pools) -> dict[str, dict[str, str]]:
    """run -> {image_id: caption} for three runs without a language model.

    ``constant`` is one caption for all, ``nearest`` the first one of the nearest image, ``consensus`` the one that agrees
    best with the other captions of the nearest images.
    """
    captions = pools.memory.captions
    nearest = [captions[near[0]][0] for near in pools.neighbours]
    return {
        "constant": dict.fromkeys(pools.image_ids, constant_caption(pools.memory)),
        "nearest": dict(zip(pools.image_ids, nearest)),
        "consensus": {image_id: own[0][0] for image_id, own in zip(pools.image_ids, pools.ranked)},
    }


def constant_caption(memory: Memory) -> str:
    """The one caption with the highest mean CIDEr against all images' captions, computed exactly.

    Ties go to the first in alphabetical order.
    """
    documents = [texts for texts in memory.captions.values() if len(texts)]
    candidates = sorted({text for texts in documents for text in texts})
    if not candidates:
        raise ValueError("no training captions to choose a constant one from")
    return candidates[int(np.argmax(np.round(memory.space.mean_similarity(candidates, documents), 9)))]


def shuffled_captions(captions: Mapping[str, str], splits: Sequence[Sequence[str]], seed: int) -> dict[str, str]:
    """For each image the caption of another image of its split: what the captioner says when it is shown wrong images.

    All that the captioner knows of an image are its features and the neighbours found by them. Given another image's
    features and neighbours it says what it says of that image, so nothing has to be generated again. By Sattolo's
    algorithm: one cycle through all images of a split, so no image keeps its place.

    Args:
        splits: the image ids of each split, two or more each.

    Raises:
        ValueError: fewer than two images in a split, or an id twice.
    """
    made = {}
    for ids in splits:
        if len(ids) < 2 or len(set(ids)) != len(ids):
            raise ValueError(
                f"cannot shuffle {len(ids)} images, {len(set(ids))} of them distinct: needs two or more, each once"
            )
        generator, shown = np.random.default_rng(seed), list(ids)
        for last in range(len(shown) - 1, 0, -1):
            other = int(generator.integers(last))
            shown[last], shown[other] = shown[other], shown[last]
        made |= {image_id: captions[other] for image_id, other in zip(ids, shown)}
    return made
