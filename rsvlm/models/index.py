"""An index of images that can be searched by text or by image, in memory and on disk.

Exact search by ``similarity_topk``: 100,000 images of 512 numbers are 102 MB. A saved folder holds ``vectors.npy``
(N, D) float16, ``images.json`` and ``config.json`` (the encoder and how texts are encoded).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from rsvlm.files import read_json, whole_folder, write_json
from rsvlm.kernels import similarity_topk
from rsvlm.models.devices import log_line
from rsvlm.models.encoders import DualEncoder, load_encoder
from rsvlm.models.features import encode_pictures, encode_texts
from rsvlm.models.inference import Picture, list_images, picture_blocks, read_picture

VECTORS, NAMES, CONFIG = "vectors.npy", "images.json", "config.json"


@dataclass(frozen=True)
class ImageIndex:
    """Images by their embeddings.

    Attributes:
        names: of the images, such as paths.
        vectors: (N, D) float16, of length 1.
        encoder: what made them, and what encodes queries.
        capitalise: texts are encoded as ``text.capitalize()``, RemoteCLIP's protocol.
        views: of an image, whose mean is its vector (1: upright only).
    """

    names: list[str]
    vectors: np.ndarray
    encoder: DualEncoder
    capitalise: bool = True
    views: int = 1

    def __len__(self) -> int:
        return len(self.names)

    def search(self, query: Picture | list[Picture], k: int = 10) -> pd.DataFrame:
        """The k nearest images to a text, or to an image (a Path, a PIL image or an array), best first.

        Args:
            query: a string is a text; a list asks several at once.

        Returns:
            Columns ``query`` (number, from 0), ``rank`` (from 1), ``image``, ``score`` (cosine).

        Raises:
            ValueError: k below 1, or a blank text.
        """
        queries = query if isinstance(query, list) else [query]
        if k < 1:
            raise ValueError(f"k = {k}: expected at least 1")
        scores, places = similarity_topk(self._encode(queries), self.vectors, min(k, max(len(self), 1)))
        rows = [
            {"query": number, "rank": rank, "image": self.names[place], "score": round(score, 6)}
            for number in range(len(queries))
            for rank, (score, place) in enumerate(zip(scores[number].tolist(), places[number].tolist()), start=1)
            if place >= 0
        ]
        return pd.DataFrame(rows, columns=["query", "rank", "image", "score"])

    def save(self, folder: str | Path) -> None:
        """Write the index, whole or not at all; ``load_index`` reads it."""
        with whole_folder(Path(folder)) as scratch:
            np.save(scratch / VECTORS, self.vectors)
            write_json(scratch / NAMES, self.names)
            name = self.encoder.name
            name = str(Path(name).resolve()) if Path(name).is_dir() else name
            config = {"encoder": name, "encoder_fingerprint": self.encoder.fingerprint()}
            write_json(scratch / CONFIG, config | {"capitalise": self.capitalise, "views": self.views})

    def _encode(self, queries: list[Picture]) -> np.ndarray:
        vectors = np.zeros((len(queries), self.encoder.embedding_dim), np.float32)
        texts = [place for place, query in enumerate(queries) if isinstance(query, str)]
        blank = [place for place in texts if not queries[place].strip()]
        if blank:
            raise ValueError(f"query {blank[0]} is blank: describe what you look for")
        if texts:
            vectors[texts] = encode_texts(self.encoder, [queries[place] for place in texts], capitalise=self.capitalise)
        others = [place for place in range(len(queries)) if place not in set(texts)]
        if others:
            pictures = [read_picture(queries[place]) for place in others]
            vectors[others] = encode_pictures(
                self.encoder, pictures, list(map(str, others)), views=self.views
            ).image_embeddings
        return vectors


def build_index(
    encoder: DualEncoder,
    images: Picture | Iterable[Picture],
    *,
    views: int = 1,
    capitalise: bool = True,
    precision: str = "fp32",
    batch_size: int = 32,
    unreadable: str = "raise",
) -> ImageIndex:
    """An index of images.

    Args:
        images: paths, folders, PIL images or arrays, as ``caption`` takes them.
        views, precision: as ``rsvlm.models.features.encode_images`` takes them.
        unreadable: "raise" stops at a file that is no whole image; "keep" goes on, says so and leaves it out.

    Raises:
        FileNotFoundError: a path that is not there, or a folder without an image.
        ImageError: a file that cannot be read as an image; names it.
    """
    names, parts = [], [np.zeros((0, encoder.embedding_dim), np.float16)]
    for _, pictures, troubles in picture_blocks(list_images(images), unreadable):
        for trouble in troubles.values():
            log_line(f"left out: {trouble}")
        own = [name for name, _ in pictures]
        features = encode_pictures(
            encoder, (one for _, one in pictures), own, views=views, precision=precision, batch_size=batch_size
        )
        names += own
        parts.append(features.image_embeddings.astype(np.float16))
    return ImageIndex(names, np.concatenate(parts), encoder, capitalise, views)


def load_index(
    folder: str | Path, encoder: DualEncoder | str | Path | None = None, *, device: str = "cpu"
) -> ImageIndex:
    """A saved index.

    Args:
        encoder: what made it, loaded or by name; None: by the name that was saved.

    Raises:
        FileNotFoundError: no index there.
        ValueError: a damaged file, or another encoder.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder}: no index here ({CONFIG} is missing); `rsvlm embed` makes one")
    config, names = read_json(folder / CONFIG), read_json(folder / NAMES)
    try:
        vectors = np.load(folder / VECTORS, allow_pickle=False)
        name, wanted, capitalise, views = (
            config[key] for key in ("encoder", "encoder_fingerprint", "capitalise", "views")
        )
    except (KeyError, ValueError, OSError, EOFError) as error:
        raise ValueError(f"{folder}: the index is damaged ({error}); make it again with `rsvlm embed`") from error
    if not isinstance(encoder, DualEncoder):
        encoder = load_encoder(str(encoder or name), device)
    found = encoder.fingerprint()
    if found != wanted:
        raise ValueError(
            f"{folder}: made by the encoder {wanted[:12]}, but {encoder.name} is {found[:12]}: name the former"
        )
    if vectors.shape != (len(names), encoder.embedding_dim):
        raise ValueError(f"{folder / VECTORS}: shape {vectors.shape} for {len(names)} images; make the index again")
    return ImageIndex(names, vectors, encoder, capitalise, views)
