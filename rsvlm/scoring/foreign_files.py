"""Captions and embeddings that other code made, for the images of a study's table.

Captions are in any form of ``caption_files``: a JSON object, JSON Lines, CSV, Parquet, COCO's results. Embeddings are in

- a ``.npz`` with one array each of IMAGE_NAMES, IMAGE_ARRAYS, TEXT_NAMES and TEXT_ARRAYS;
- a ``.parquet`` with a column of VECTORS, where a row has an image (IMAGE_COLUMNS) or a text (CAPTION_COLUMNS);
- a folder with ``images.parquet`` and ``texts.parquet``, or with one file of the above.

No file but the one named is read, pickled objects never; images are read only where keys look like their SHA-256.
"""

import zipfile
import zlib
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from rsvlm.scoring.caption_files import CAPTION_COLUMNS, IMAGE_COLUMNS, one_caption_each, read_caption_lists
from rsvlm.scoring.image_matching import Matches, match_images, such_as
from rsvlm.scoring.retrieval import EmbeddingSpace, unit_rows

IMAGE_NAMES = ("image_ids", "images", "image_names", "image_paths", "filenames", "file_names")
IMAGE_ARRAYS = ("image_embeddings", "image_embeds", "image_features", "image_vectors")
TEXT_NAMES = ("texts", "captions", "sentences")
TEXT_ARRAYS = ("text_embeddings", "text_embeds", "text_features", "text_vectors")
VECTORS = ("embedding", "embeddings", "vector")
# What a damaged .npz file raises
_NOT_WHOLE = (ValueError, EOFError, OSError, NotImplementedError, zipfile.BadZipFile, zlib.error)
IMAGES_FILE, TEXTS_FILE = "images.parquet", "texts.parquet"
SAME = 1e-2  # by which the values of two unit vectors of one text may differ: half precision, another batch

Vectors = tuple[list, np.ndarray]  # the names of N rows, (N, D)


@dataclass(frozen=True)
class ForeignCaptions:
    """One caption an image, in the table's order; the rest as in ``Matches``."""

    captions: dict[str, str]  # image_id -> caption
    how: str
    missing: list[str]
    unknown: list[Hashable]


@dataclass(frozen=True)
class ForeignEmbeddings(EmbeddingSpace):
    """A space with float32 vectors of length 1, images in the table's order; the rest as in ``Matches``."""

    how: str = ""
    missing: tuple[str, ...] = ()
    unknown: tuple[Hashable, ...] = ()


def read_foreign_captions(path: str | Path, table: pd.DataFrame, allow_missing: bool = False) -> ForeignCaptions:
    """The captions of a file for the images of a table. Keys that are no image of the table are told, not refused.

    Args:
        table: with image_id, source and path; of one split where only that is scored.
        allow_missing: leave out images without a caption.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read; an image with several captions; images without; no image matches. Names them.
    """
    path = Path(path)
    captions = one_caption_each(read_caption_lists(path), path)
    matches = _match(captions, table, path, "captions", allow_missing)
    key_of = {image_id: key for key, image_id in matches.matched.items()}
    ordered = {image_id: captions[key_of[image_id]] for image_id in table["image_id"] if image_id in key_of}
    return ForeignCaptions(ordered, matches.how, matches.missing, matches.unknown)


def read_foreign_embeddings(
    path: str | Path, table: pd.DataFrame, texts: Iterable[str], allow_missing: bool = False
) -> ForeignEmbeddings:
    """The embeddings of a file or folder for the images of a table and some texts.

    A text is found as it is, else with surrounding space and case left aside. One text may have several rows, as where
    all caption rows were encoded, if their vectors agree.

    Args:
        table, allow_missing: as for ``read_foreign_captions``.
        texts: that need a vector; each comes once, in this order.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: arrays are missing, pickled or do not fit each other; an image has several rows or none, a text none
            or differing ones; a vector is zero or not finite. Names the file and the image or text.
    """
    path = Path(path)
    (keys, image_vectors), (own_texts, text_vectors) = _read_vectors(path)
    row_of = {key: row for row, key in enumerate(keys)}
    if len(row_of) != len(keys):
        repeated = next(key for row, key in enumerate(keys) if row_of[key] != row)
        raise ValueError(f"{path}: the image {repeated!r} has more than one embedding; keep one")
    if image_vectors.shape[1] != text_vectors.shape[1]:
        widths = f"{image_vectors.shape[1]} and {text_vectors.shape[1]}"
        raise ValueError(f"{path}: image and text embeddings have widths {widths}: they lie in no common space")
    matches = _match(keys, table, path, "embeddings", allow_missing)
    key_of = {image_id: key for key, image_id in matches.matched.items()}
    image_ids = [image_id for image_id in table["image_id"] if image_id in key_of]
    rows = [row_of[key_of[image_id]] for image_id in image_ids]
    texts = list(dict.fromkeys(texts))
    return ForeignEmbeddings(
        image_ids,
        _directions(image_vectors[rows], image_ids, "image", path),
        texts,
        _vectors_of(texts, own_texts, text_vectors, path),
        matches.how,
        tuple(matches.missing),
        tuple(matches.unknown),
    )


def _match(keys: Iterable[Hashable], table: pd.DataFrame, path: Path, what: str, allow_missing: bool) -> Matches:
    """As ``match_images``; errors name the file, and missing images are one."""
    try:
        matches = match_images(keys, table)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if matches.missing and not allow_missing:
        count = len(matches.unknown)
        unknown = f"; keys that are no image of the table: {count}{such_as(matches.unknown)}" if count else ""
        raise ValueError(
            f"{path}: {what} for {len(matches.matched)} of {len(table)} images; no {what[:-1]} for "
            f"{len(matches.missing)}{such_as(matches.missing)} (matched by {matches.how}){unknown}"
        )
    return matches


def _directions(vectors: np.ndarray, names: list, what: str, path: Path) -> np.ndarray:
    """The vectors (N, D) as float32 of length 1; ValueError names one without a direction."""
    vectors = vectors.astype(np.float64)
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise ValueError(f"{path}: the embedding of the {what} {names[int(finite.argmin())]!r} holds NaN or infinity")
    largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0.0)
    if not largest.all():
        raise ValueError(f"{path}: the embedding of the {what} {names[int(largest.argmin())]!r} is zero")
    return unit_rows(vectors / largest)  # so that squares of very large and very small values stay in range


def _vectors_of(texts: list[str], own_texts: list, vectors: np.ndarray, path: Path) -> np.ndarray:
    """Vectors (len(texts), D) of length 1 of these texts."""
    exact: dict[str, list[int]] = {}
    loose: dict[str, list[int]] = {}
    for row, text in enumerate(own_texts):
        exact.setdefault(str(text), []).append(row)
        loose.setdefault(str(text).strip().casefold(), []).append(row)
    rows_of = [exact.get(text) or loose.get(text.strip().casefold(), []) for text in texts]
    missing = [text for text, rows in zip(texts, rows_of) if not rows]
    if missing:
        raise ValueError(
            f"{path}: embeddings for {len(texts) - len(missing)} of {len(texts)} texts; none for "
            f"{len(missing)}{such_as(missing)}"
        )
    used = [(text, row) for text, rows in zip(texts, rows_of) for row in rows]
    unit = _directions(vectors[[row for _, row in used]], [text for text, _ in used], "text", path)
    first = np.cumsum([0, *map(len, rows_of)])[:-1]
    apart = np.abs(unit - np.repeat(unit[first], [len(rows) for rows in rows_of], axis=0)).max(axis=1, initial=0.0)
    if (apart > SAME).any():
        text = used[int(apart.argmax())][0]
        raise ValueError(f"{path}: the text {text!r} has several embeddings that differ by {apart.max():.2g}; keep one")
    return unit[first]


def _read_vectors(path: Path) -> tuple[Vectors, Vectors]:
    """Names and vectors of images, and of texts, as the files hold them."""
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.glob("[!.]*") if file.suffix in (".npz", ".parquet"))
        pair = [path / IMAGES_FILE, path / TEXTS_FILE]
        if len(files) > 1 and set(pair) <= set(files):
            files = pair
        if len(files) != 1 and files != pair:
            held = ", ".join(file.name for file in files) or "none of these"
            raise ValueError(f"{path}: needs {IMAGES_FILE} and {TEXTS_FILE}, or one .npz or .parquet; holds {held}")
        links = [file for file in files if file.is_symlink()]
        if links:
            raise ValueError(f"{links[0]}: is a link, which may lead out of the folder; put the file itself there")
    if not all(file.is_file() for file in files):
        raise FileNotFoundError(f"{path}: no such file or folder")
    if files[0].suffix == ".npz":
        return _read_npz(files[0])
    if files[0].suffix != ".parquet":
        raise ValueError(f"{path}: embeddings are read from .npz, .parquet or a folder with those")
    if len(files) == 2:
        rows = [_read_parquet(file, (names,)) for file, names in zip(files, (IMAGE_COLUMNS, CAPTION_COLUMNS))]
        (images,), (texts,) = rows
    else:
        images, texts = _read_parquet(files[0], (IMAGE_COLUMNS, CAPTION_COLUMNS))
    _check_both(path, bool(images), bool(texts), f"make a folder with {IMAGES_FILE} and {TEXTS_FILE}")
    return _stacked(images, "image", path), _stacked(texts, "text", path)


def _check_both(path: Path, images: bool, texts: bool, fix: str) -> None:
    if not (images and texts):
        has, lacks = ("images", "texts") if images else ("texts", "images")
        raise ValueError(
            f"{path}: embeddings of {has} only; retrieval cannot be scored without those of {lacks}; {fix}"
        )


def _read_npz(path: Path) -> tuple[Vectors, Vectors]:
    """As ``_read_vectors``, of one file."""
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: not a whole .npz file; write it with numpy.savez")
    try:
        opened = np.load(path, allow_pickle=False)
    except _NOT_WHOLE as error:
        raise ValueError(f"{path}: not a whole .npz file ({error}); write it with numpy.savez") from error
    with opened as file:
        has = [any(name in file.files for name in names) for names in (IMAGE_ARRAYS, TEXT_ARRAYS)]
        if any(has):
            _check_both(path, *has, f"add arrays named {TEXT_NAMES[0]} and {TEXT_ARRAYS[0]}, as for images")

        def take(known: tuple[str, ...]) -> tuple[str, np.ndarray]:
            here = [name for name in known if name in file.files]
            if len(here) != 1:
                fault = f"{' and '.join(here)} mean the same; keep one" if here else f"none of {', '.join(known)}"
                raise ValueError(f"{path}: {fault}; the file has {', '.join(sorted(file.files)) or 'no array'}")
            try:
                return here[0], np.asarray(file[here[0]])
            except _NOT_WHOLE as error:
                if "allow_pickle" in str(error):
                    raise ValueError(
                        f"{path}: {here[0]} holds pickled objects, which can run code and are not read; save names as "
                        "np.array(names, dtype=str) and vectors as one array of floats"
                    ) from error
                raise ValueError(f"{path}: {here[0]}: not a whole array: {error}") from error

        images = _checked(path, *take(IMAGE_NAMES), *take(IMAGE_ARRAYS))
        return images, _checked(path, *take(TEXT_NAMES), *take(TEXT_ARRAYS))


def _checked(path: Path, what: str, names: np.ndarray, array: str, vectors: np.ndarray) -> Vectors:
    """A list of texts or whole numbers and a matrix with as many rows; ValueError where they are anything else."""
    if names.ndim != 1 or names.dtype.kind not in "USiu":
        raise ValueError(f"{path}: {what} must be texts or whole numbers (N,), is {names.dtype} {names.shape}")
    if vectors.ndim != 2 or vectors.dtype.kind not in "fiu" or not vectors.size:
        raise ValueError(f"{path}: {array} must be numbers (N, D), is {vectors.dtype} {vectors.shape}")
    if len(names) != len(vectors):
        raise ValueError(f"{path}: {len(names)} {what} for {len(vectors)} rows of {array}")
    return [name.decode(errors="replace") if isinstance(name, bytes) else name for name in names.tolist()], vectors


def _read_parquet(path: Path, kinds: tuple[tuple[str, ...], ...]) -> list[list[tuple]]:
    """Of each kind, known by the names of its column, the (name, vector) of its rows."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:  # this one file: no folder of parts, no address
            own = {name.lower(): name for name in file.schema_arrow.names}
            vector, *names = (next((own[name] for name in known if name in own), None) for known in (VECTORS, *kinds))
            if vector is None or not any(names):
                wanted = VECTORS[:1] if vector is None else [name for known in kinds for name in known]
                raise ValueError(f"no column {', '.join(wanted)}; it has {', '.join(own.values())}")
            rows = file.read(columns=[vector, *filter(None, names)])
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    try:
        columns = [rows[name].to_pylist() if name else [None] * len(rows) for name in names]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: a name is no text: {error}") from error
    found: list[list[tuple]] = [[] for _ in kinds]
    for number, (own_vector, *own_names) in enumerate(zip(rows[vector].to_numpy(), *columns), start=1):
        told = [place for place, name in enumerate(own_names) if name is not None]
        if len(told) != 1 or not isinstance(own_names[told[0]], str | int | float):
            raise ValueError(
                f"{path}: row {number}: needs the name of an image or a text, one of both, has {str(own_names)[:80]}; "
                f"{IMAGES_FILE} and {TEXTS_FILE} in a folder hold them apart"
            )
        found[told[0]].append((own_names[told[0]], own_vector))
    return found


def _stacked(rows: list[tuple], what: str, path: Path) -> Vectors:
    """Names, and vectors as a matrix; ValueError names one of no or another width."""
    vectors = [np.asarray(vector) for _, vector in rows]
    for (name, _), vector in zip(rows, vectors):
        if vector.ndim != 1 or vector.dtype.kind not in "fiu" or not len(vector):
            raise ValueError(f"{path}: the embedding of the {what} {name!r} must be a list of numbers")
        if len(vector) != len(vectors[0]):
            raise ValueError(
                f"{path}: the embedding of the {what} {name!r} has {len(vector)} values, others {len(vectors[0])}"
            )
    return [name for name, _ in rows], np.stack(vectors)
