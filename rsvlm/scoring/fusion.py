"""Several similarities as one: their weighted sum, written as an inner product.

Vectors of unit length, scaled by the square root of their weight and set end to end, have the weighted sum of the
parts' cosines as inner product. So a sum of models needs no matrix of similarities and searches like one model.

The parts of the study's combined method:

1. the dual encoder's image and text embeddings;
2. the captioner's ``[RET]`` embeddings;
3. neighbours: an image stands for the captions of the training images that look most like it, so a query text is held
   against texts. Only training images are neighbours;
4. hubs: a text that is close to many images, and an image that is close to many texts, is a poor answer to any single
   query ("There is a piece of farmland ." fits every field). It loses what it scores on average against the training
   items most like it (CSLS, Conneau et al. 2018, arXiv:1710.04087, with training items as the bank, as in QB-Norm,
   Bogolin et al. 2022, arXiv:2112.12777). Only training items are in the bank: no test item tells of another.

All weights are chosen on the validation split by mean recall, never on the test split.
"""

from itertools import product

import numpy as np
import pandas as pd

from rsvlm.kernels import similarity_topk
from rsvlm.scoring.embedding_spaces import EmbeddingSpace
from rsvlm.scoring.retrieval import mean_recall, rank_retrieval
from rsvlm.scoring.retrieval_sets import RetrievalSet

PARTS = ("dual_encoder", "ret", "neighbours", "hubs")
HUB_QUERY = np.array([[0.0, 1.0]], dtype=np.float32)  # a text that looks for images: what it loses itself is one constant
Weights = dict[str, float]


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """The rows as float32 of length 1; zero rows stay zero."""
    vectors = np.asarray(vectors, dtype=np.float64)
    norms = np.sqrt((vectors**2).sum(axis=1, keepdims=True))
    return (vectors / np.maximum(norms, 1e-12)).astype(np.float32)


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


def hub_space(
    space: EmbeddingSpace, training: pd.DataFrame, image_ids: list[str], texts: list[str], *, neighbours: int
) -> EmbeddingSpace:
    """A space of two dimensions whose inner product is minus what an image and a text lose as hubs.

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
        raise ValueError(f"hub_neighbours = {neighbours} and {len(training)} training images: at least 1 each is needed")
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
    hub_neighbours: int,
) -> dict[str, EmbeddingSpace]:
    """The space of each of ``PARTS`` for these images and texts.

    Raises:
        ValueError: see neighbour_space and hub_space.
    """
    near = neighbour_space(dual, training, image_ids, neighbours=neighbours, temperature=temperature)
    hubs = hub_space(dual, training, image_ids, texts, neighbours=hub_neighbours)
    return dict(zip(PARTS, (dual, ret, near, hubs), strict=True))


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
    return EmbeddingSpace(
        list(image_ids), np.hstack(images).astype(np.float32), list(texts), np.hstack(text).astype(np.float32)
    )


def weight_grid(
    ret_weights: list[float], neighbour_weights: list[float], hub_weights: list[float]
) -> list[Weights]:
    """All combinations: [RET] has weight w, the dual encoder 1 - w, the others their own; the simplest first.

    Raises:
        ValueError: a list is empty, w is not within 0..1, or another weight is below 0.
    """
    if not ret_weights or not neighbour_weights or not hub_weights:
        raise ValueError("ret_weights, neighbour_weights and hub_weights: expected at least one number each")
    if not all(0 <= weight <= 1 for weight in ret_weights) or min(*neighbour_weights, *hub_weights) < 0:
        raise ValueError(
            f"ret_weights {ret_weights} must lie in 0..1, neighbour_weights {neighbour_weights} and hub_weights "
            f"{hub_weights} from 0 on"
        )
    return [
        {"dual_encoder": round(1 - ret, 6), "ret": float(ret), "neighbours": float(near), "hubs": float(hubs)}
        for near, ret, hubs in product(sorted(neighbour_weights), sorted(ret_weights), sorted(hub_weights))
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
        recalls = {}
        for source, test in validation.items():
            space = combine_spaces(spaces, weights, test.image_ids, test.texts)
            vectors = space.image_vectors, space.text_vectors
            ranks = rank_retrieval(test, *vectors, "by_image", normalize=False)
            recalls[f"recall_{source}"] = round(mean_recall(ranks), 6)
        rows.append({**weights, **recalls, "mean_recall": round(float(np.mean(list(recalls.values()))), 6)})
    tried = pd.DataFrame(rows)
    return grid[int(tried["mean_recall"].argmax())], tried
