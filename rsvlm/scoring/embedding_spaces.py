"""Images and texts as vectors in one space, found by image id and by caption."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rsvlm.files import read_json

IMAGE_VECTORS, TEXT_VECTORS = "image.npy", "text.npy"
IMAGE_IDS, TEXTS = "image_ids.json", "texts.json"


@dataclass(frozen=True)
class EmbeddingSpace:
    """Vectors of images (n, D) and of distinct texts (m, D); their inner product is the similarity.

    Raises:
        ValueError: rows and names do not agree in number, or a name repeats.
    """

    image_ids: list[str]
    image_vectors: np.ndarray  # (n, D), may be a memory map
    texts: list[str]
    text_vectors: np.ndarray  # (m, D)
    _image_row: dict[str, int] = field(init=False, repr=False, compare=False)
    _text_row: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_image_row", _rows_by_name(self.image_ids, self.image_vectors, "image"))
        object.__setattr__(self, "_text_row", _rows_by_name(self.texts, self.text_vectors, "text"))
        if self.image_vectors.shape[1] != self.text_vectors.shape[1]:
            widths = f"{self.image_vectors.shape[1]} and {self.text_vectors.shape[1]}"
            raise ValueError(f"image and text vectors have widths {widths}: they lie in no common space")

    def images(self, image_ids: list[str]) -> np.ndarray:
        """Vectors (len(image_ids), D) of these images, in this order. ValueError names an unknown image."""
        return self.image_vectors[_find(self._image_row, image_ids, "image")]

    def text(self, texts: list[str]) -> np.ndarray:
        """Vectors (len(texts), D) of these texts, in this order. ValueError names an unknown text."""
        return self.text_vectors[_find(self._text_row, texts, "text")]


def load_space(folder: Path) -> EmbeddingSpace:
    """The space in a folder with image.npy, text.npy, image_ids.json and texts.json.

    Raises:
        FileNotFoundError, ValueError: a file is missing or does not fit the others; names it.
    """
    parts = {}
    for name in (IMAGE_VECTORS, TEXT_VECTORS):
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; the stage generate_captions writes it")
        parts[name] = np.load(path, mmap_mode="r")
    try:
        return EmbeddingSpace(
            read_json(folder / IMAGE_IDS), parts[IMAGE_VECTORS], read_json(folder / TEXTS), parts[TEXT_VECTORS]
        )
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def _rows_by_name(names: list[str], vectors: np.ndarray, what: str) -> dict[str, int]:
    if vectors.ndim != 2:
        raise ValueError(f"{what} vectors: expected a matrix (rows, D), got shape {vectors.shape}")
    if len(names) != len(vectors):
        raise ValueError(f"{len(names)} {what} names for {len(vectors)} {what} vectors")
    rows = {name: row for row, name in enumerate(names)}
    if len(rows) != len(names):
        repeated = next(name for row, name in enumerate(names) if rows[name] != row)
        raise ValueError(f"the {what} {repeated!r} has more than one vector")
    return rows


def _find(rows: dict[str, int], names: list[str], what: str) -> np.ndarray:
    missing = [name for name in names if name not in rows]
    if missing:
        raise ValueError(f"no vector for {len(missing)} of {len(names)} {what}s, such as {missing[0]!r}")
    return np.array([rows[name] for name in names], dtype=np.int64)
