"""The caption that the captioner puts forward: chosen among its own candidates and its neighbours' captions.

Minimum-Bayes-risk choice (Kumar and Byrne 2004): a candidate is worth its mean CIDEr to captions that are likely for
the image. Two groups have a vote: the captions of the nearest training images, weighted by nearness, and captions
sampled from the captioner. Its log-likelihood of the candidate is a third term. How much each term counts is chosen on
validation images by CIDEr to their references; a weight of 0 leaves a term out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
import pandas as pd

from rsvlm.models.features import Features
from rsvlm.models.neighbours import (
    NEIGHBOURS,
    TEMPERATURE,
    CiderSpace,
    caption_space,
    consensus_pool,
    find_neighbours,
    shuffled_images,
)

TERMS = ("pool", "samples", "likelihood")
Weights = dict[str, float]


@dataclass(frozen=True)
class Pools:
    """For each image the captions of its nearest training images with their consensus, best first."""

    image_ids: list[str]
    neighbours: list[list[str]]  # training image ids, nearest first
    votes: list[np.ndarray]  # their weights
    ranked: list[list[tuple[str, float]]]  # (caption, mean CIDEr to the pool's others)
    captions: dict[str, list[str]]  # of the training images
    space: CiderSpace

    def top(self, n: int) -> dict[str, list[str]]:
        """image id -> its n most consensual captions (fewer where the pool is smaller)."""
        return {image_id: [text for text, _ in own[:n]] for image_id, own in zip(self.image_ids, self.ranked)}


@dataclass(frozen=True)
class Memory:
    """The training images whose captions stand for images like them: what a captioner remembers of its training.

    Attributes:
        captions: image id -> its captions.
        vectors: (N, D) float16, their embeddings in the encoder's space, in the order of ``captions``.
    """

    captions: dict[str, list[str]]
    vectors: np.ndarray

    @cached_property
    def space(self) -> CiderSpace:
        """The CIDEr vectors of the captions, with their idf."""
        return caption_space(self.captions, self.captions)

    def pools(
        self, vectors: np.ndarray, image_ids: Sequence[str], *, k: int = NEIGHBOURS, temperature: float = TEMPERATURE
    ) -> Pools:
        """The pools of some images; one that is remembered is never its own neighbour.

        Args:
            vectors: (n, D) of the images, in the encoder's space.
            k: neighbours in that space.
            temperature: of the weights exp((cosine - highest cosine) / temperature).

        Raises:
            ValueError: nothing is remembered, or nothing but the image itself.
        """
        near, votes = find_neighbours(
            vectors, self.vectors, list(self.captions), k=k, temperature=temperature, query_ids=image_ids
        )
        ranked = consensus_pool(near, votes, self.captions, space=self.space)
        return Pools(list(image_ids), near, votes, ranked, self.captions, self.space)


def training_memory(features: Features, table: pd.DataFrame) -> Memory:
    """What there is to remember of a table's training split.

    Raises:
        ValueError: the split is empty.
    """
    training = table[table["split"] == "train"]
    if len(training) == 0:
        raise ValueError("the split 'train' holds no image: there are no neighbours to take captions from")
    captions = dict(zip(training["image_id"], training["captions"]))
    return Memory(captions, features.image_embeddings[features.rows(list(captions))].astype(np.float16))


def training_pools(
    features: Features,
    table: pd.DataFrame,
    image_ids: Sequence[str],
    *,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Pools:
    """The pools of these images from the table's training split; see ``Memory.pools``."""
    vectors = features.image_embeddings[features.rows(image_ids)]
    return training_memory(features, table).pools(vectors, image_ids, k=k, temperature=temperature)


def gather_candidates(generated: Sequence[Sequence[str]], pools: Pools, from_pool: int) -> list[list[str]]:
    """For each image the different captions to choose from: the captioner's, then the pool's ``from_pool`` best."""
    top = pools.top(from_pool)
    return [
        list(dict.fromkeys([*own, *top[image_id]])) for image_id, own in zip(pools.image_ids, generated, strict=True)
    ]


def judge_candidates(
    candidates: Sequence[Sequence[str]],
    pools: Pools,
    *,
    samples: Sequence[Sequence[str]] | None = None,
    likelihoods: Sequence[np.ndarray] | None = None,
) -> list[dict[str, np.ndarray]]:
    """For each image a dict term -> (candidates,): what each term says of each candidate.

    ``pool`` and ``samples`` are mean CIDEr (0 to 10), ``likelihood`` is as given (log-probability a token); a term that
    is not given is 0.
    """
    scored = consensus_pool(pools.neighbours, pools.votes, pools.captions, space=pools.space, extra=candidates)
    judged = []
    for row, own in enumerate(candidates):
        value_of = dict(scored[row])
        drawn = list(samples[row]) if samples is not None else []
        agreement = pools.space.similarity(own, drawn).mean(1) if drawn else np.zeros(len(own))
        likelihood = np.asarray(likelihoods[row], dtype=np.float64) if likelihoods is not None else np.zeros(len(own))
        if len(likelihood) != len(own):
            raise ValueError(f"{pools.image_ids[row]}: {len(own)} candidates, but {len(likelihood)} likelihoods")
        judged.append(
            {"pool": np.array([value_of[text] for text in own]), "samples": agreement, "likelihood": likelihood}
        )
    return judged


def choose_captions(
    candidates: Sequence[Sequence[str]], judged: Sequence[Mapping[str, np.ndarray]], weights: Weights
) -> list[str]:
    """For each image the candidate with the highest weighted sum of terms; among equals the first.

    Raises:
        ValueError: an image without candidates; names its number.
    """
    chosen = []
    for row, (own, terms) in enumerate(zip(candidates, judged, strict=True)):
        if not own:
            raise ValueError(f"image number {row} has no candidate captions")
        total = sum(weights.get(name, 0.0) * terms[name] for name in TERMS)
        chosen.append(own[int(np.argmax(np.round(total, 9)))])
    return chosen


def weight_grid(
    pool_weights: Sequence[float], sample_weights: Sequence[float], likelihood_weights: Sequence[float]
) -> list[Weights]:
    """All combinations with a weight above 0, those with the fewest terms first.

    Raises:
        ValueError: a weight below 0, or nothing but zeros.
    """
    lists = [list(map(float, weights)) for weights in (pool_weights, sample_weights, likelihood_weights)]
    grid = [dict(zip(TERMS, weights)) for weights in product(*lists) if any(weights)]
    if not grid or min(min(weights) for weights in lists) < 0:
        raise ValueError(f"pool, sample and likelihood weights {lists}: expected numbers from 0, some above 0")
    return sorted(grid, key=lambda weights: sum(value > 0 for value in weights.values()))


def choose_weights(
    candidates: Sequence[Sequence[str]],
    judged: Sequence[Mapping[str, np.ndarray]],
    references: Sequence[Sequence[str]],
    space: CiderSpace,
    grid: Sequence[Weights],
) -> tuple[Weights, pd.DataFrame]:
    """(the weights whose choices have the highest mean CIDEr to the references, a table of all of them).

    CIDEr with the training captions' idf and plain words: close to, but not, the figure that is reported. Among equals
    the first of the grid wins.

    Raises:
        ValueError: no images.
    """
    if not candidates:
        raise ValueError("the split 'val' holds no image: there is nothing to choose the weights of the terms on")
    rows = []
    for weights in grid:
        chosen = choose_captions(candidates, judged, weights)
        rows.append({**weights, "cider": round(mean_cider(chosen, references, space), 6)})
    tried = pd.DataFrame(rows)
    return dict(grid[int(tried["cider"].argmax())]), tried


def mean_cider(captions: Sequence[str], references: Sequence[Sequence[str]], space: CiderSpace) -> float:
    """Mean over images of a caption's mean CIDEr (0 to 10, the training captions' idf) to the image's references."""
    scores = [space.similarity([caption], own).mean() for caption, own in zip(captions, references, strict=True)]
    return float(np.mean(scores))


def shuffled_captions(captions: Mapping[str, str], splits: Sequence[Sequence[str]], seed: int) -> dict[str, str]:
    """For each image the caption of another image of its split: what the captioner says when it is shown wrong images.

    All that the captioner knows of an image are its features and the neighbours found by them. Given another image's
    features and neighbours it says what it says of that image, so nothing has to be generated again.

    Args:
        splits: the image ids of each split, two or more each.
    """
    made = {}
    for ids in splits:
        made |= {image_id: captions[shown] for image_id, shown in zip(ids, shuffled_images(ids, seed), strict=True)}
    return made
