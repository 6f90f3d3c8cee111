"""Several similarities as one, their weighted sum, and the first images re-ranked by the captioner.

Vectors of unit length, scaled by the square root of their weight and set end to end, have the weighted sum of the
parts' cosines as inner product. So a sum of models needs no matrix of similarities and searches like one model. The
parts of the study's combined method:

1. the dual encoder's image and text embeddings;
2. the captioner's ``[RET]`` embeddings;
3. neighbours: an image stands for the captions of the training images that look most like it, so a query text is held
   against texts;
4. hubness correction: a text that is close to many images, and an image that is close to many texts, is a poor answer
   to any single query ("There is a piece of farmland ." fits every field). It loses what it scores on average against
   the training items most like it (CSLS, Conneau et al. 2018, arXiv:1710.04087, with training items as the bank, as in
   QB-Norm, Bogolin et al. 2022, arXiv:2112.12777).

Only training items are neighbours or in the bank: no test item tells of another. All weights are chosen on the
validation split, never on the test split.

Re-ranking: a first stage (any space) gives the top k images of each text. Each of them gets, beside its similarity, the
captioner's mean log-likelihood a token of the text given the image. A text that is likely for every image says nothing,
so the likelihood counts as its difference from the mean over the text's k images. With weight 0 the order stays as it
was. Images beyond the top k keep their places below. From image to text nothing changes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from rsvlm.kernels import hits, similarity_topk
from rsvlm.models.captioner import load_capret
from rsvlm.models.features import Features, caption_encoder
from rsvlm.models.generation import Prompted, caption_log_likelihoods
from rsvlm.models.neighbours import pool_options, training_pools
from rsvlm.scoring.retrieval import KS, EmbeddingSpace, RetrievalSet, rank_retrieval, recalls, unit_rows
from rsvlm.scoring.retrieval_study import Method, Reordering, precision_scores

PARTS = ("dual_encoder", "ret", "neighbours", "hubness")
# A text that looks for images: what it loses itself is one constant
HUBNESS_QUERY = np.array([[0.0, 1.0]], dtype=np.float32)
TEXTS_AT_ONCE = 16  # candidates behind one image in a row of the captioner
Weights = dict[str, float]
# Images and, for each, candidate texts -> for each image the log-likelihoods (candidates,)
Likelihood = Callable[[Sequence[str], Sequence[Sequence[str]]], list[np.ndarray]]


def caption_space(features: Features, captions: Iterable[str], encoder: Path) -> EmbeddingSpace:
    """The space of all encoded images and texts, and of these captions too.

    Images and the table's captions come from the saved features; only captions that are new are encoded.

    Args:
        encoder: the folder of the encoder that made the features.

    Raises:
        ValueError: the features come from another encoder.
    """
    new = sorted(set(captions) - set(features.texts))
    vectors = np.asarray(features.text_embeddings)
    if new:
        encode = caption_encoder(features, encoder)
        vectors = np.concatenate([vectors, encode(new, bool(features.meta["capitalise"]))])
    return EmbeddingSpace(features.image_ids, features.image_embeddings, [*features.texts, *new], vectors)


def caption_means(space: EmbeddingSpace, captions: list[list[str]]) -> np.ndarray:
    """Mean of the unit text vectors of each image's captions, copies counted, shape (len(captions), D) float32."""
    rows = [caption for own in captions for caption in own]
    counts = np.array([len(own) for own in captions])
    if not counts.all():
        raise ValueError(f"image number {int(np.flatnonzero(counts == 0)[0])} has no captions to take the mean of")
    vectors = unit_rows(space.text(rows))
    sums = np.add.reduceat(vectors.astype(np.float64), np.concatenate([[0], np.cumsum(counts)[:-1]]), axis=0)
    return (sums / counts[:, None]).astype(np.float32)


def neighbour_space(
    space: EmbeddingSpace, training: pd.DataFrame, image_ids: list[str], *, neighbours: int, temperature: float
) -> EmbeddingSpace:
    """A space where an image's vector is the weighted mean text vector of its nearest training images' captions.

    Its inner product with a text is the mean cosine of the text to the neighbours' captions, each neighbour with weight
    softmax(image cosine / temperature). The vectors are left shorter than 1: where the neighbours' captions disagree,
    the part should say less.

    Args:
        space: the dual encoder's images and texts; neighbours are found among its image vectors.
        training: the caption table's rows to take neighbours from, columns image_id and captions.
        image_ids: the images to describe.
        neighbours: how many a image (fewer where training is smaller).
        temperature: of the softmax over image cosines, above 0.

    Raises:
        ValueError: a number out of range, no training image, or an image that is itself among the training images.
    """
    if neighbours < 1 or temperature <= 0:
        raise ValueError(f"neighbours = {neighbours}, temperature = {temperature}: expected at least 1 and above 0")
    if len(training) == 0:
        raise ValueError("no training image to find neighbours among: the split 'train' is empty")
    known = set(training["image_id"]) & set(image_ids)
    if known:
        raise ValueError(f"{len(known)} images are in both training and the images to score, such as {min(known)!r}")
    means = caption_means(space, list(training["captions"]))
    k = min(neighbours, len(training))
    scores, indices = similarity_topk(space.images(image_ids), space.images(list(training["image_id"])), k)
    shares = (scores.double() / temperature).softmax(dim=1).numpy()  # (n, k)
    vectors = np.zeros((len(image_ids), means.shape[1]))
    for place in range(k):
        vectors += shares[:, place, None] * means[indices[:, place].numpy()]
    return EmbeddingSpace(list(image_ids), vectors.astype(np.float32), space.texts, unit_rows(space.text_vectors))


def hubness_space(
    space: EmbeddingSpace, training: pd.DataFrame, image_ids: list[str], texts: list[str], *, neighbours: int
) -> EmbeddingSpace:
    """A space of two dimensions whose inner product is minus what the hubness correction takes from an image and a text.

    A text loses its mean cosine to the ``neighbours`` training images nearest to it; an image its mean inner product
    with the ``neighbours`` nearest caption means of training images. For a given text the first is a constant, and for
    a given image the second, so each changes one direction of search only.

    Args:
        space: the dual encoder's images and texts.
        training: the caption table's rows that make the bank, columns image_id and captions.
        image_ids, texts: what will be ranked.
        neighbours: of the bank (fewer where it is smaller).

    Raises:
        ValueError: neighbours is below 1, or there is no training image.
    """
    if neighbours < 1 or len(training) == 0:
        raise ValueError(
            f"hubness_neighbours = {neighbours} and {len(training)} training images: at least 1 each is needed"
        )
    k = min(neighbours, len(training))
    means = caption_means(space, list(training["captions"]))
    of_images, _ = similarity_topk(unit_rows(space.images(image_ids)), means, k, normalize=False)
    of_texts, _ = similarity_topk(space.text(texts), space.images(list(training["image_id"])), k)
    image_loss, text_loss = of_images.double().mean(1).cpu().numpy(), of_texts.double().mean(1).cpu().numpy()
    images = np.stack([np.ones(len(image_ids)), -image_loss], axis=1).astype(np.float32)
    text = np.stack([-text_loss, np.ones(len(texts))], axis=1).astype(np.float32)
    return EmbeddingSpace(list(image_ids), images, list(texts), text)


def make_parts(
    dual: EmbeddingSpace,
    ret: EmbeddingSpace,
    training: pd.DataFrame,
    image_ids: list[str],
    texts: list[str],
    *,
    neighbours: int,
    temperature: float,
    hubness_neighbours: int,
) -> dict[str, EmbeddingSpace]:
    """The space of each of ``PARTS`` for these images and texts, see ``neighbour_space`` and ``hubness_space``."""
    near = neighbour_space(dual, training, image_ids, neighbours=neighbours, temperature=temperature)
    hubness = hubness_space(dual, training, image_ids, texts, neighbours=hubness_neighbours)
    return dict(zip(PARTS, (dual, ret, near, hubness), strict=True))


def combine_spaces(
    spaces: dict[str, EmbeddingSpace], weights: Weights, image_ids: list[str], texts: list[str]
) -> EmbeddingSpace:
    """The space of these images and texts whose inner product is the weighted sum of the spaces' inner products.

    Args:
        spaces: by part; vectors of the length that they should count with (1 for a cosine).
        weights: by part, at least 0; parts of weight 0 take no room.

    Raises:
        ValueError: a weight below 0, none above 0, or a weight for an unknown part.
    """
    used = {part: weight for part, weight in weights.items() if weight > 0}
    if min(weights.values(), default=0) < 0 or not used or set(weights) - set(spaces):
        raise ValueError(f"weights {weights}: expected numbers from 0, one above 0, for the parts {sorted(spaces)}")
    images = [np.sqrt(weight) * spaces[part].images(image_ids) for part, weight in used.items()]
    text = [np.sqrt(weight) * spaces[part].text(texts) for part, weight in used.items()]
    images, text = (np.hstack(own).astype(np.float32) for own in (images, text))
    return EmbeddingSpace(list(image_ids), images, list(texts), text)


def weight_grid(
    ret_weights: list[float], neighbour_weights: list[float], hubness_weights: list[float]
) -> list[Weights]:
    """All combinations: [RET] has weight w, the dual encoder 1 - w, the others their own; the simplest first.

    Raises:
        ValueError: a list is empty, w is not within 0..1, or another weight is below 0.
    """
    if not ret_weights or not neighbour_weights or not hubness_weights:
        raise ValueError("ret_weights, neighbour_weights and hubness_weights: expected at least one number each")
    if not all(0 <= weight <= 1 for weight in ret_weights) or min(*neighbour_weights, *hubness_weights) < 0:
        raise ValueError(
            f"ret_weights {ret_weights} must lie in 0..1, neighbour_weights {neighbour_weights} and hubness_weights "
            f"{hubness_weights} from 0 on"
        )
    return [
        {"dual_encoder": round(1 - ret, 6), "ret": float(ret), "neighbours": float(near), "hubness": float(hubness)}
        for near, ret, hubness in product(sorted(neighbour_weights), sorted(ret_weights), sorted(hubness_weights))
    ]


def choose_weights(
    spaces: dict[str, EmbeddingSpace], validation: dict[str, RetrievalSet], grid: list[Weights]
) -> tuple[Weights, pd.DataFrame]:
    """(the weights with the best validation score, a table of all of them).

    The score is the mean recall under the by-image rule, mean over the sources. Among equals the first of the grid
    wins.

    Args:
        spaces: by part, see combine_spaces.
        validation: the validation set of each source.
        grid: what to try, as weight_grid gives it.
    """
    rows = []
    for weights in grid:
        reached = {}
        for source, test in validation.items():
            space = combine_spaces(spaces, weights, test.image_ids, test.texts)
            vectors = space.image_vectors, space.text_vectors
            ranks = rank_retrieval(test, *vectors, "by_image", normalize=False)
            reached[f"recall_{source}"] = round(recalls(ranks)["mean_recall"], 6)
        rows.append({**weights, **reached, "mean_recall": round(float(np.mean(list(reached.values()))), 6)})
    tried = pd.DataFrame(rows)
    return grid[int(tried["mean_recall"].argmax())], tried


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
    jobs = [(image, own[start : start + TEXTS_AT_ONCE])
            for image, own in sorted(places.items()) for start in range(0, len(own), TEXTS_AT_ONCE)]  # fmt: skip
    asked = [[test.texts[text] for text, _ in own] for _, own in jobs]
    said = likelihood([test.image_ids[image] for image, _ in jobs], asked)
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
        reached = []
        for source, test in validation.items():
            vectors = space.images(test.image_ids), space.text(test.texts)
            _, ranks = precision_scores(test, *vectors, "by_image", candidates[source].reorder(weight))
            reached.append(np.mean([hits(ranks, k).mean() for k in KS]))
        tried[weight] = round(float(np.mean(reached)), 6)
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
    validated = [{"weight": value, "text_to_image_recall": recall} for value, recall in tried.items()]
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
    captioner = load_capret(folder, device, features=features)
    prompting = captioner.config["prompting"]
    pools = training_pools(features, table, image_ids, **pool_options(prompting))
    near = pools.top(prompting["neighbour_captions"])

    def likelihood(asked: Sequence[str], texts: Sequence[Sequence[str]]) -> list[np.ndarray]:
        neighbours = [near[image_id] for image_id in asked]
        prompted = Prompted(captioner, features, asked, neighbours=neighbours, view="mean")
        return caption_log_likelihoods(prompted, texts, batch_size=batch_size)

    return likelihood
