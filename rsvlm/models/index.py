"""Images of any kind, read block by block, and an index of them that can be searched by text or by image.

Exact search by ``similarity_topk``: 100,000 images of 512 numbers are 102 MB. A saved folder holds ``vectors.npy``
(N, D) float16, ``images.json`` and ``config.json`` (the encoder and how texts are encoded).
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Protocol

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from rsvlm.data.images import EXTENSIONS, MAX_PIXELS, ImageError, as_rgb, open_image
from rsvlm.files import read_json, whole_folder, write_json
from rsvlm.kernels import similarity_topk
from rsvlm.models.encoders import DualEncoder
from rsvlm.models.features import Features, encode_pictures, encode_texts
from rsvlm.models.queries import Without, check_query, encode_parts, unit_vector
from rsvlm.models.zoo import load_encoder
from rsvlm.progress import log_line, progress

VECTORS, NAMES, CONFIG = "vectors.npy", "images.json", "config.json"
A_BLOCK = 256  # images in memory at a time
Picture = str | Path | Image.Image | np.ndarray


class Translating(Protocol):
    """What encodes texts of any language into an encoder's space: ``rsvlm.load_languages``."""

    encoder: DualEncoder

    def embed(self, texts: list[str], language: str | None = None) -> np.ndarray:
        """(N, D) float32 of length 1; a language of None is detected."""


@dataclass(frozen=True)
class Block:
    """Some images of a list, read.

    Attributes:
        numbers, names, pictures: of those that could be read, RGB; numbers count through the whole list.
        troubles: number -> (name, why it could not be read) of the others.
    """

    numbers: list[int]
    names: list[str]
    pictures: list[Image.Image]
    troubles: dict[int, tuple[str, str]]


def read_blocks(images: Picture | Iterable[Picture], unreadable: str) -> Iterator[Block]:
    """All images in what ``caption`` takes, A_BLOCK at a time, fewer where they are large: MAX_PIXELS and one more.

    Raises:
        FileNotFoundError: a path that is not there, or a folder without an image.
        ImageError: a file that is no whole image, where ``unreadable`` is "raise".
        ValueError: ``unreadable`` is neither "raise" nor "keep", or a name comes twice.
    """
    if unreadable not in ("raise", "keep"):
        raise ValueError(f"unreadable: {unreadable!r} is neither 'raise' nor 'keep'")
    listed = list_images(images)
    block, pixels = Block([], [], [], {}), 0
    with progress(total=len(listed), desc="images", disable=len(listed) <= A_BLOCK) as bar:
        for number, (name, image) in enumerate(listed):
            try:
                picture = read_picture(image)
            except ImageError as error:
                if unreadable == "raise":
                    raise
                block.troubles[number] = name, str(error)
            else:
                block.numbers.append(number)
                block.names.append(name)
                block.pictures.append(picture)
                pixels += picture.width * picture.height
            done = len(block.names) + len(block.troubles)
            if done == A_BLOCK or pixels >= MAX_PIXELS or number == len(listed) - 1:
                yield block
                bar.update(done)
                block, pixels = Block([], [], [], {}), 0


def list_images(images: Picture | Iterable[Picture]) -> list[tuple[str, Picture]]:
    """(name, image) of all images in what ``caption`` takes; folders are listed, nothing is opened.

    Raises:
        FileNotFoundError: a path that is not there, or a folder without an image.
        ValueError: a name that comes twice.
    """
    listed: list[tuple[str, Picture]] = []
    given = [images] if isinstance(images, str | Path | Image.Image | np.ndarray) else images
    for number, one in enumerate(given, start=1):
        if isinstance(one, Image.Image | np.ndarray):
            listed.append((f"image {number}", one))
            continue
        path = Path(one)
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in EXTENSIONS and file.is_file())
            if not inside:
                raise FileNotFoundError(
                    f"{path}: no image in this folder; files that end in {', '.join(EXTENSIONS)} count"
                )
            listed += [(str(file), file) for file in inside]
        elif path.exists():
            listed.append((str(path), path))
        else:
            raise FileNotFoundError(f"{path}: no such file or folder")
    names = [name for name, _ in listed]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice}: given twice")
    return listed


def read_picture(image: Picture) -> Image.Image:
    """An RGB image of a path, a PIL image or an array.

    A PIL image is turned by its EXIF orientation and put on white where it is transparent, as a file is.

    Raises:
        ImageError: a file that is no whole image.
        ValueError: an array that is none of (H, W) and (H, W, 3) uint8, or a PIL image of more than 8 bits.
    """
    if isinstance(image, Image.Image):
        if image.mode == "F" or image.mode.startswith("I"):
            raise ValueError(f"a PIL image of mode {image.mode!r}: expected 8 bits a band; scale it to 0..255")
        return as_rgb(ImageOps.exif_transpose(image), sixteen=False, masked=False)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
            raise ValueError(
                f"an array of shape {image.shape} and type {image.dtype}: expected (height, width) or (height, width, 3) "
                "of uint8; choose three bands and scale them to 0..255"
            )
        return Image.fromarray(image).convert("RGB")
    return open_image(image)


@dataclass(frozen=True)
class ImageIndex:
    """Images by their embeddings.

    Attributes:
        names: of the images, such as paths.
        vectors: (N, D) float16, of length 1.
        encoder: what made them, and what encodes queries.
        capitalise: texts are encoded as ``text.capitalize()``, RemoteCLIP's protocol.
        views: of an image, whose mean is its vector (1: upright only).
        languages: what encodes queries that are not English; None: English alone.

    Raises:
        ValueError: the languages are those of another encoder.
    """

    names: list[str]
    vectors: np.ndarray
    encoder: DualEncoder
    capitalise: bool = True
    views: int = 1
    languages: Translating | None = None

    def __post_init__(self) -> None:
        own = self.languages and self.languages.encoder
        if own and own is not self.encoder and own.fingerprint() != self.encoder.fingerprint():
            raise ValueError(f"languages: made for another encoder ({own.name}) than the index ({self.encoder.name})")

    def __len__(self) -> int:
        return len(self.names)

    def search(
        self, query: Picture | Without | list[Picture | Without], k: int = 10, language: str = "en"
    ) -> pd.DataFrame:
        """The k nearest images to a text, an image (a Path, a PIL image or an array) or a vector (D,), best first.

        Args:
            query: a string is a text, an array of one axis a vector of the encoder's space; ``Without("farmland", "houses")``
                leaves out, which "farmland without houses" does not; a list asks several at once.
            language: of the texts, such as "pt"; "any" detects the language of each. English alone needs no ``languages``.

        Returns:
            Columns ``query`` (number, from 0), ``rank`` (from 1), ``image``, ``score`` (cosine).

        Raises:
            ValueError: k below 1, a text as ``check_query``, or a language that cannot be read.
        """
        queries = query if isinstance(query, list) else [query]
        if k < 1:
            raise ValueError(f"k = {k}: expected at least 1")
        vectors = encode_parts(queries, lambda plain: self._encode(plain, language))
        scores, places = similarity_topk(vectors, self.vectors, min(k, max(len(self), 1)))
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

    def _encode(self, queries: list[Picture], language: str) -> np.ndarray:
        vectors = np.zeros((len(queries), self.encoder.embedding_dim), np.float32)
        texts = [place for place, query in enumerate(queries) if isinstance(query, str)]
        for place in texts:
            check_query(queries[place], f"query {place}")
        if texts:
            vectors[texts] = self._encode_texts([queries[place] for place in texts], language)
        made = [place for place, query in enumerate(queries) if isinstance(query, np.ndarray) and query.ndim == 1]
        for place in made:
            vectors[place] = unit_vector(queries[place], self.encoder.embedding_dim)
        others = [place for place in range(len(queries)) if place not in {*texts, *made}]
        if others:
            pictures = [read_picture(queries[place]) for place in others]
            vectors[others] = encode_pictures(
                self.encoder, pictures, list(map(str, others)), views=self.views
            ).image_embeddings
        return vectors

    def _encode_texts(self, texts: list[str], language: str) -> np.ndarray:
        """(N, D) float32 of length 1."""
        if language != "en":
            if self.languages is None:
                raise ValueError(
                    f"language {language!r}: this index reads English alone; give it languages="
                    "rsvlm.load_languages('models/languages', encoder)"
                )
            return self.languages.embed(texts, None if language == "any" else language)
        return encode_texts(self.encoder, texts, capitalise=self.capitalise)


def build_index(
    encoder: DualEncoder,
    images: Picture | Iterable[Picture],
    *,
    views: int = 1,
    capitalise: bool = True,
    precision: str = "fp32",
    batch_size: int = 32,
    unreadable: str = "raise",
    languages: Translating | None = None,
) -> ImageIndex:
    """An index of images.

    Args:
        images: paths, folders, PIL images or arrays, as ``caption`` takes them.
        views, precision: as ``rsvlm.models.features.encode_images`` takes them.
        unreadable: "raise" stops at a file that is no whole image; "keep" goes on, says so and leaves it out.
        languages: for queries that are not English, see ``rsvlm.load_languages``.

    Raises:
        FileNotFoundError: a path that is not there, or a folder without an image.
        ImageError: a file that cannot be read as an image; names it.
    """
    names, parts = [], [np.zeros((0, encoder.embedding_dim), np.float16)]
    for block in read_blocks(images, unreadable):
        for _, why in block.troubles.values():
            log_line(f"left out: {why}")
        features = encode_pictures(
            encoder, block.pictures, block.names, views=views, precision=precision, batch_size=batch_size
        )
        names += block.names
        parts.append(features.image_embeddings.astype(np.float16))
    return ImageIndex(names, np.concatenate(parts), encoder, capitalise, views, languages)


def load_index(
    folder: str | Path,
    encoder: DualEncoder | str | Path | None = None,
    *,
    device: str = "cpu",
    languages: Translating | None = None,
) -> ImageIndex:
    """A saved index.

    Args:
        encoder: what made it, loaded or by name; None: by the name that was saved, or that of ``languages``.
        languages: for queries that are not English, see ``rsvlm.load_languages``.

    Raises:
        FileNotFoundError: no index there.
        ValueError: a damaged file, or another encoder.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder}: no index here ({CONFIG} is missing); `rsvlm embed` makes one")
    config, names = read_json(folder / CONFIG), read_json(folder / NAMES)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{folder / NAMES}: no list of names; make the index again with `rsvlm embed`")
    try:
        vectors = np.load(folder / VECTORS, allow_pickle=False)
        name, wanted, capitalise, views = (
            config[key] for key in ("encoder", "encoder_fingerprint", "capitalise", "views")
        )
    except (KeyError, TypeError, ValueError, OSError, EOFError, SyntaxError, TokenError) as error:  # a head is Python's
        raise ValueError(f"{folder}: the index is damaged ({error}); make it again with `rsvlm embed`") from error
    encoder = find_encoder(
        folder, encoder or (languages.encoder if languages else None), wanted, device, made_with=name
    )
    if vectors.shape != (len(names), encoder.embedding_dim):
        raise ValueError(f"{folder / VECTORS}: shape {vectors.shape} for {len(names)} images; make the index again")
    return ImageIndex(names, vectors, encoder, capitalise, views, languages)


def find_encoder(
    place: Path, encoder: DualEncoder | str | Path | None, wanted: str, device: str, made_with: str | None = None
) -> DualEncoder:
    """The encoder that what lies in a file or folder was made with, loaded where it is named.

    Args:
        encoder: None: by the name ``made_with``.
        wanted: its fingerprint.
        made_with: the name that it had then, where that was written down.

    Raises:
        FileNotFoundError: it is not there under the name that it had.
        ValueError: another encoder.
    """
    if encoder is None:
        try:
            encoder = load_encoder(str(made_with), device)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{place}: made with the encoder {made_with}, which is not here under that name ({error}); tell where "
                "that encoder is now"
            ) from error
    elif not isinstance(encoder, DualEncoder):
        encoder = load_encoder(str(encoder), device)
    found = encoder.fingerprint()
    if found != wanted:
        own = f"{made_with}, fingerprint" if made_with else "fingerprint"
        raise ValueError(
            f"{place}: made with another encoder ({own} {str(wanted)[:12]}) than {encoder.name} (fingerprint "
            f"{found[:12]}), which is given: give the one it was made with"
        )
    return encoder


def caption_encoder(features: Features, encoder: Path) -> Callable[..., np.ndarray]:
    """A function from texts, and whether to capitalise them (default: as the features), to unit vectors (n, D).

    The vectors lie in the features' space. The encoder is loaded when it is first called.

    Raises:
        ValueError: (when called) the features come from another encoder.
    """

    @functools.cache
    def model() -> DualEncoder:
        loaded = load_encoder(str(encoder)).eval()
        if loaded.fingerprint() != features.meta["encoder_fingerprint"]:
            raise ValueError(
                f"{encoder}: not the encoder that made the features; run the stage encode_images again, so that"
                " captions and images are measured in one space"
            )
        return loaded

    precision, as_made = features.meta["precision"], bool(features.meta["capitalise"])
    return lambda texts, capitalise=as_made: encode_texts(model(), texts, capitalise=capitalise, precision=precision)
