"""Re-ranking: of the images that a text finds first, the captioner says which the text describes best.

A first stage (any space) gives the top k images of each text. Each of them gets, beside its similarity, the captioner's
mean log-likelihood a token of the text given the image. A text that is likely for every image says nothing, so the
likelihood counts as its difference from the mean over the text's k images. Its weight is chosen on validation; with
weight 0 the order stays as it was. Images beyond the top k keep their places below. From image to text nothing changes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from rsvlm.kernels import hits, similarity_topk
from rsvlm.models.captioner import load_captioner
from rsvlm.models.features import Features
from rsvlm.models.generation import caption_log_likelihoods
from rsvlm.scoring.choice import training_pools
from rsvlm.scoring.embedding_spaces import EmbeddingSpace
from rsvlm.scoring.precision import Reordering, precision_scores
from rsvlm.scoring.retrieval import KS
from rsvlm.scoring.retrieval_sets import RetrievalSet
from rsvlm.scoring.retrieval_study import Method

TEXTS_AT_ONCE = 16  # candidates behind one image in a row of the captioner
# Images and, for each, candidate texts -> for each image the log-likelihoods (candidates,)
Likelihood = Callable[[Sequence[str], Sequence[Sequence[str]]], list[np.ndarray]]


@dataclass(frozen=True)
class Candidates:
    """What each distinct text of a test set finds first, and what both stages say of it; (T, k) each."""

    images: np.ndarray  # int64, numbers of images, best first
    similarity: np.ndarray
    likelihood: np.ndarray  # mean log-probability a token

    def reorder(self, weight: float) -> Reordering:
        """The order by similarity plus ``weight`` times the likelihood above the text's mean."""
        centred = self.likelihood - self.likelihood.mean(axis=1, keepdims=True)
        return Reordering(self.images, self.similarity + weight * centred)


def find_candidates(test: RetrievalSet, space: EmbeddingSpace, k: int, likelihood: Likelihood) -> Candidates:
    """The top k images of each distinct text (fewer where the set is smaller) with their likelihoods.

    Raises:
        ValueError: k is below 1, or a likelihood is not finite; names the text.
    """
    if k < 1:
        raise ValueError(f"rerank_top = {k}: expected at least 1, or 0 to leave re-ranking out")
    k = min(k, len(test.image_ids))
    found = similarity_topk(space.text(test.texts), space.images(test.image_ids), k, normalize=False)
    similarity, images = (part.cpu().numpy() for part in found)
    places: dict[int, list[tuple[int, int]]] = {}
    for text, row in enumerate(images):
        for place, image in enumerate(row):
            places.setdefault(int(image), []).append((text, place))
    jobs = [
        (image, own[start : start + TEXTS_AT_ONCE])
        for image, own in sorted(places.items())
        for start in range(0, len(own), TEXTS_AT_ONCE)
    ]
    said = likelihood(
        [test.image_ids[image] for image, _ in jobs], [[test.texts[text] for text, _ in own] for _, own in jobs]
    )
    likelihoods = np.zeros(similarity.shape)
    for (_, own), values in zip(jobs, said, strict=True):
        for (text, place), value in zip(own, values, strict=True):
            likelihoods[text, place] = value
    if not np.isfinite(likelihoods).all():
        text = test.texts[int((~np.isfinite(likelihoods)).any(axis=1).argmax())]
        raise ValueError(f"the captioner gives no finite likelihood for the text {text[:100]!r}")
    return Candidates(images.astype(np.int64), similarity.astype(np.float64), likelihoods)


def choose_weight(
    validation: Mapping[str, RetrievalSet],
    space: EmbeddingSpace,
    candidates: Mapping[str, Candidates],
    weights: Sequence[float],
) -> tuple[float, dict[float, float]]:
    """(the weight with the best validation recall from text to image, weight -> that recall); ties: the smallest.

    The recall is the mean of R@1, R@5 and R@10 by image, mean over the sources.

    Raises:
        ValueError: no weights, or one below 0.
    """
    if not weights or min(weights) < 0:
        raise ValueError(f"rerank_weights {list(weights)}: expected one or more numbers from 0 on")
    tried = {}
    for weight in sorted(set(map(float, weights))):
        recalls = []
        for source, test in validation.items():
            vectors = space.images(test.image_ids), space.text(test.texts)
            _, ranks = precision_scores(test, *vectors, "by_image", candidates[source].reorder(weight))
            recalls.append(np.mean([hits(ranks, k).mean() for k in KS]))
        tried[weight] = round(float(np.mean(recalls)), 6)
    return max(tried, key=lambda weight: (tried[weight], -weight)), tried


def rerank(
    space: EmbeddingSpace,
    validation: Mapping[str, RetrievalSet],
    tests: Mapping[str, RetrievalSet],
    k: int,
    weights: Sequence[float],
    likelihood: Likelihood,
) -> tuple[Method, dict]:
    """(the re-ranked method for the test sets, {"top", "weight", "chosen_on", "tried"} for the record).

    Args:
        space: of the first stage.
        k: images that are re-ranked for each text.
        weights: of the likelihood, to try on the validation sets.
    """
    known = {source: find_candidates(test, space, k, likelihood) for source, test in validation.items()}
    weight, tried = choose_weight(validation, space, known, weights)
    found = {source: find_candidates(test, space, k, likelihood) for source, test in tests.items()}
    method = Method(space, {source: own.reorder(weight) for source, own in found.items()})
    validated = [{"weight": value, "t2i_recall": recall} for value, recall in tried.items()]
    return method, {"top": k, "weight": weight, "chosen_on": "val", "tried": validated}


def captioner_likelihood(
    folder: Path,
    features: Features,
    table: pd.DataFrame,
    image_ids: Sequence[str],
    *,
    device: str = "auto",
    batch_size: int = 8,
) -> Likelihood:
    """The captioner's mean log-likelihood a token of texts given images, prompted as it was trained.

    Args:
        folder: the captioner's.
        table: the caption table; its training split gives the neighbours' captions of the prompts.
        image_ids: the images that will be asked about.
    """
    captioner = load_captioner(folder, device, features=features)
    prompting = captioner.config["prompting"]
    pools = training_pools(
        features, table, image_ids, k=prompting["neighbours"], temperature=prompting["neighbour_temperature"]
    )
    near = pools.top(prompting["neighbour_captions"])

    def likelihood(asked: Sequence[str], texts: Sequence[Sequence[str]]) -> list[np.ndarray]:
        neighbours = [near[image_id] for image_id in asked]
        return caption_log_likelihoods(
            captioner, features, asked, texts, neighbours=neighbours, view="mean", batch_size=batch_size
        )

    return likelihood
