"""The training images most like an image: did the model copy what is said of them?

Read straight from the features' files with numpy: a page of captions needs no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rsvlm import paths
from rsvlm.files import read_json
from rsvlm.viewing.page import WORD

QUERIES = 64  # images that are looked up together


@dataclass(frozen=True)
class TrainingImages:
    """The embeddings of a study's images, and which of them are training images."""

    vectors: np.ndarray  # (N, D) rows of length 1, a memory map
    row_of: dict[str, int]
    training: np.ndarray  # rows of training images
    image_ids: list[str]


@dataclass(frozen=True)
class Neighbour:
    """A training image and its cosine to the image it is near to."""

    image_id: str
    cosine: float


def open_training_images(table: pd.DataFrame) -> TrainingImages | None:
    """The training images of the table with their embeddings; None where no features were made or nothing was trained on.

    Raises:
        ValueError: the features' files do not fit each other; names the folder.
    """
    folder = paths.FEATURES
    if not (folder / "meta.json").is_file():
        return None
    image_ids = read_json(folder / "meta.json")["image_ids"]
    vectors = np.load(folder / "image_embeddings.npy", mmap_mode="r")
    if len(vectors) != len(image_ids):
        raise ValueError(f"{folder}: {len(vectors)} embeddings for {len(image_ids)} images; run encode_images again")
    row_of = {image_id: row for row, image_id in enumerate(image_ids)}
    training = [row_of[name] for name in table.loc[table["split"] == "train", "image_id"] if name in row_of]
    return TrainingImages(vectors, row_of, np.array(training, dtype=np.int64), image_ids) if training else None


def nearest_training(images: TrainingImages, image_ids: Sequence[str], count: int = 3) -> list[list[Neighbour]]:
    """For each image its ``count`` nearest training images by cosine, nearest first, itself left out.

    Raises:
        ValueError: an image has no features; names it.
    """
    unknown = next((image_id for image_id in image_ids if image_id not in images.row_of), None)
    if unknown is not None:
        raise ValueError(f"image {unknown!r} has no features; run the stage encode_images again")
    rows = np.array([images.row_of[image_id] for image_id in image_ids], dtype=np.int64)
    found = []
    for block in np.array_split(rows, -(-len(rows) // QUERIES) or 1):
        cosines = (images.vectors @ images.vectors[block].T)[images.training]  # (training images, queries)
        for row, own in zip(block.tolist(), cosines.T, strict=True):
            order = np.lexsort((images.training, -own))[: count + 1]
            near = [(int(images.training[i]), float(own[i])) for i in order if images.training[i] != row][:count]
            found.append([Neighbour(images.image_ids[other], round(cosine, 4)) for other, cosine in near])
    return found


def same_words(one: str, other: str) -> bool:
    """Whether two captions have the same words in the same order, case and punctuation ignored."""
    return WORD.findall(one.lower()) == WORD.findall(other.lower())
