"""Image-text retrieval in RemoteCLIP's protocol: its test sets, vectors, recalls and ceiling.

The protocol (``remoteclip_retrieval.py``, after CLIP_benchmark): the images of a split, each file once; all their
caption rows, copies included; cosine similarity; image to text (image_to_text) R@K is the share of images with one of their own
captions among the K best rows, text to image (text_to_image) R@K the share of caption rows whose own image is among the K best
images; mean recall is the mean of R@1, R@5, R@10 both ways. It passes ``raw.capitalize()`` to the encoder.

Left open, and answered here:

- Equal texts. 83 % of UCM's test captions also stand under another test image, so the protocol marks right answers
  wrong. ``by_image`` is the protocol; ``by_text`` takes every image or row with the same text for right. A text is
  encoded once, so that equal texts have equal scores.
- Ties. A recall is its expected value over a random order of the ties; ``optimistic`` and ``pessimistic`` bound it.
- The ceiling: what a model that knows all captions of the test set by heart gets under ``by_image``, with its ties at
  random. It is a yardstick and no strict bound: image to text, a model passes it by preferring those of an image's
  captions that stand under few other images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from rsvlm.files import read_array, read_json, write_array, write_json
from rsvlm.kernels import TIE_RULES, Ranks, hits, two_way_ranks
from rsvlm.scoring.bootstrap import rounded
from rsvlm.scoring.runs import METHODS, RESERVED

MATCH_RULES = ("by_image", "by_text")
KS = (1, 5, 10)
DIRECTIONS = ("image_to_text", "text_to_image")
IMAGE_VECTORS, TEXT_VECTORS = "image.npy", "text.npy"
IMAGE_IDS, TEXTS = "image_ids.json", "texts.json"
RESAMPLES_AT_ONCE = 100


@dataclass(frozen=True)
class RetrievalSet:
    """The images of one test set and their caption rows, image by image."""

    image_ids: list[str]  # (N,)
    captions: list[str]  # (C,), copies included
    row_image: np.ndarray  # (C,) int64, which image a caption row belongs to
    row_text: np.ndarray  # (C,) int64, which distinct text it holds
    texts: list[str]  # (T,), distinct; the captions that stand for them
    shared: np.ndarray | None = None  # (P, 2) int64, every (image, row) where a row belongs to several images

    def positives(self, rule: str) -> tuple[np.ndarray, np.ndarray]:
        """Right caption rows of each image, as CSR (offsets (N + 1,), row numbers)."""
        N = len(self.image_ids)
        if rule == "by_image":
            pairs = np.stack([self.row_image, np.arange(len(self.captions))], axis=1)
            pairs = pairs if self.shared is None else self.shared
            order = np.lexsort((pairs[:, 1], pairs[:, 0]))
            ids, counts = pairs[order, 1], np.bincount(pairs[:, 0], minlength=N)
        elif rule == "by_text":
            knows = np.zeros((N, len(self.texts)), dtype=bool)
            knows[self.row_image, self.row_text] = True
            if self.shared is not None:
                knows[self.shared[:, 0], self.row_text[self.shared[:, 1]]] = True
            rows_of = [np.flatnonzero(known[self.row_text]) for known in knows]
            ids, counts = np.concatenate(rows_of), np.array([len(rows) for rows in rows_of])
        else:
            raise ValueError(f"match rule {rule!r}: expected one of {', '.join(MATCH_RULES)}")
        return np.concatenate([[0], np.cumsum(counts)]), ids


def retrieval_set(image_ids: list[str], captions: list[list[str]]) -> RetrievalSet:
    """The test set of these images and their captions.

    An image id that comes again adds its captions to the first. Texts that ``str.capitalize`` makes equal are equal.

    Raises:
        ValueError: no image, different lengths, or an image without captions; names it.
    """
    if len(image_ids) != len(captions):
        raise ValueError(f"{len(image_ids)} image ids but captions of {len(captions)} images")
    if len(image_ids) == 0:
        raise ValueError("no images to score: the split is empty")
    rows_of: dict[str, list[str]] = {}
    for image_id, own in zip(image_ids, captions, strict=True):
        rows_of.setdefault(image_id, []).extend(own)
    bare = [image_id for image_id, rows in rows_of.items() if not rows]
    if bare:
        raise ValueError(f"{len(bare)} images have no caption, such as {bare[0]!r}; retrieval cannot score them")
    rows = [caption for own in rows_of.values() for caption in own]
    row_image = np.repeat(np.arange(len(rows_of)), [len(own) for own in rows_of.values()])
    stands_for: dict[str, str] = {}
    for caption in sorted(set(rows)):
        stands_for.setdefault(caption.capitalize(), caption)
    number = {form: place for place, form in enumerate(stands_for)}
    row_text = np.array([number[caption.capitalize()] for caption in rows], dtype=np.int64)
    return RetrievalSet(list(rows_of), rows, row_image, row_text, list(stands_for.values()))


def with_texts_once(test: RetrievalSet) -> RetrievalSet:
    """The same images with every distinct text as one row, which belongs to every image that has it."""
    pairs = np.unique(np.stack([test.row_image, test.row_text], axis=1), axis=0)
    T = len(test.texts)
    first = np.zeros(T, dtype=np.int64)
    first[pairs[::-1, 1]] = pairs[::-1, 0]  # the first image that has it; the draws of the bootstrap go by it
    return RetrievalSet(test.image_ids, list(test.texts), first, np.arange(T), list(test.texts), pairs)


def with_first_captions(test: RetrievalSet) -> RetrievalSet:
    """The same images, each with its first caption row only."""
    _, rows = np.unique(test.row_image, return_index=True)
    numbers, row_text = np.unique(test.row_text[rows], return_inverse=True)
    captions, texts = [test.captions[row] for row in rows], [test.texts[number] for number in numbers]
    return RetrievalSet(test.image_ids, captions, np.arange(len(rows)), row_text, texts)


def with_exact_texts(test: RetrievalSet) -> RetrievalSet:
    """The same rows, where texts that differ in upper and lower case only are different texts."""
    number = {caption: place for place, caption in enumerate(sorted(set(test.captions)))}
    row_text = np.array([number[caption] for caption in test.captions], dtype=np.int64)
    return replace(test, row_text=row_text, texts=list(number))


def retrieval_sets(table: pd.DataFrame, split: str) -> dict[str, RetrievalSet]:
    """The test set of each source, by source, from the caption table's rows of one split.

    Raises:
        ValueError: the split has no image.
    """
    rows = table[table["split"] == split]
    if len(rows) == 0:
        raise ValueError(f"the caption table has no image in the split {split!r}; it has {sorted(set(table['split']))}")
    groups = rows.groupby("source", sort=True)
    return {source: retrieval_set(list(own["image_id"]), list(own["captions"])) for source, own in groups}


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
    _rows: dict[str, dict[str, int]] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._rows["image"] = _rows_by_name(self.image_ids, self.image_vectors, "image")
        self._rows["text"] = _rows_by_name(self.texts, self.text_vectors, "text")
        if self.image_vectors.shape[1] != self.text_vectors.shape[1]:
            widths = f"{self.image_vectors.shape[1]} and {self.text_vectors.shape[1]}"
            raise ValueError(f"image and text vectors have widths {widths}: they lie in no common space")

    def images(self, image_ids: list[str]) -> np.ndarray:
        """Vectors (len(image_ids), D) of these images, in this order. ValueError names an unknown image."""
        return self.image_vectors[self._find(image_ids, "image")]

    def text(self, texts: list[str]) -> np.ndarray:
        """Vectors (len(texts), D) of these texts, in this order. ValueError names an unknown text."""
        return self.text_vectors[self._find(texts, "text")]

    def _find(self, names: list[str], what: str) -> np.ndarray:
        rows = self._rows[what]
        missing = [name for name in names if name not in rows]
        if missing:
            raise ValueError(f"no vector for {len(missing)} of {len(names)} {what}s, such as {missing[0]!r}")
        return np.array([rows[name] for name in names], dtype=np.int64)


def load_space(folder: Path) -> EmbeddingSpace:
    """The space in a folder with image.npy, text.npy, image_ids.json and texts.json.

    Raises:
        FileNotFoundError, ValueError: a file is missing or does not fit the others; names it.
    """
    parts = {}
    for name in (IMAGE_VECTORS, TEXT_VECTORS):
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: no such file; a space needs {IMAGE_VECTORS}, {TEXT_VECTORS}, {IMAGE_IDS} and {TEXTS}"
            )
        parts[name] = read_array(path, mapped=True)
    try:
        return EmbeddingSpace(
            read_json(folder / IMAGE_IDS), parts[IMAGE_VECTORS], read_json(folder / TEXTS), parts[TEXT_VECTORS]
        )
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def save_space(space: EmbeddingSpace, folder: Path) -> None:
    """Write a space as ``load_space`` reads it; where a crash may not leave a part, inside ``whole_folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_array(folder / IMAGE_VECTORS, space.image_vectors)
    write_array(folder / TEXT_VECTORS, space.text_vectors)
    write_json(folder / IMAGE_IDS, list(space.image_ids))
    write_json(folder / TEXTS, list(space.texts))


def load_other_spaces(folder: Path) -> dict[str, EmbeddingSpace]:
    """Other models' embeddings by name: a space in each folder inside ``folder``, its vectors brought to length 1.

    Raises:
        FileNotFoundError, ValueError: as ``load_space``; a name that the study or its metrics use; a vector without a
            direction (zero, or no numbers). Names the folder.
    """
    spaces = {}
    for place in sorted(path for path in folder.glob("[!.]*") if path.is_dir()):
        if place.name.casefold() in (*METHODS, *RESERVED):
            raise ValueError(
                f"{place}: {place.name!r} is a name of the study's own; rename the folder, to say its model"
            )
        space = load_space(place)
        spaces[place.name] = replace(
            space,
            image_vectors=_directions(space.image_vectors, place / IMAGE_VECTORS),
            text_vectors=_directions(space.text_vectors, place / TEXT_VECTORS),
        )
    return spaces


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """The rows as float32 of length 1; zero rows stay zero."""
    vectors = np.asarray(vectors, dtype=np.float64)
    norms = np.sqrt((vectors**2).sum(axis=1, keepdims=True))
    return (vectors / np.maximum(norms, 1e-12)).astype(np.float32)


def _directions(vectors: np.ndarray, file: Path) -> np.ndarray:
    """The vectors of length 1; ValueError where one has no direction."""
    made = unit_rows(vectors)
    bad = ~np.isfinite(made).all(axis=1) | ~made.any(axis=1)
    if bad.any():
        raise ValueError(f"{file}: row {int(bad.argmax())} is zero or holds values that are no numbers")
    return made


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


def rank_retrieval(
    test: RetrievalSet, image_vectors: np.ndarray, text_vectors: np.ndarray, rule: str, *, normalize: bool = True
) -> dict[str, Ranks]:
    """Rank counts by direction: "image_to_text" of each image, "text_to_image" of each caption row (numpy arrays).

    Args:
        image_vectors: (N, D), in the order of test.image_ids.
        text_vectors: (T, D), in the order of test.texts.
        rule: "by_image" or "by_text".
        normalize: cosine (True) or inner product (False).
    """
    rows = np.asarray(text_vectors)[test.row_text]  # (C, D); equal texts get the very same vector
    there, back = two_way_ranks(np.asarray(image_vectors), rows, test.positives(rule), normalize=normalize)
    return {"image_to_text": _as_numpy(there), "text_to_image": _as_numpy(back)}


def perfect_ranks(test: RetrievalSet) -> dict[str, Ranks]:
    """Rank counts, under the by-image rule, of an oracle that scores 1 where a text is among an image's captions."""
    N, C = len(test.image_ids), len(test.captions)
    (own_offsets, own_ids), (offsets, ids) = (test.positives(rule) for rule in MATCH_RULES)
    own_rows, own_images = np.diff(own_offsets), np.bincount(own_ids, minlength=C)
    images_with = np.bincount(ids, minlength=C)  # the text of each row
    one, none = np.ones(N + C, dtype=np.float32), np.zeros(N + C, dtype=np.int64)
    return {
        "image_to_text": Ranks(one[:N], none[:N], np.diff(offsets) - own_rows, own_rows),
        "text_to_image": Ranks(one[:C], none[:C], images_with - own_images, own_images),
    }


def first_places(ranks: Ranks) -> np.ndarray:
    """Expected place, from 1, of each query's first right answer over a random order of ties. Shape (Q,), float64."""
    return 1 + np.asarray(ranks.greater) + np.asarray(ranks.equal) / (np.asarray(ranks.tied) + 1.0)


def recalls(ranks: Mapping[str, Ranks], ties: str = "expected") -> dict[str, float]:
    """``image_to_text_recall_at_1`` to ``text_to_image_recall_at_10`` under one tie rule, and ``mean_recall``."""
    found = {f"{way}_recall_at_{k}": float(hits(ranks[way], k, ties).mean()) for way in DIRECTIONS for k in KS}
    return found | {"mean_recall": float(np.mean(list(found.values())))}


def summarise_ranks(
    test: RetrievalSet,
    ranks: dict[str, Ranks],
    *,
    precision: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, dict]:
    """Recalls, mean recall, median ranks, each {"value", "low", "high", "n", ...}; recalls as fractions.

    low..high is the 95 % bootstrap interval over images (percentiles): an image is drawn with its captions, against the
    same gallery. n counts queries. Recalls also carry "optimistic" and "pessimistic".

    Args:
        precision: what ``precision_scores`` gives; its means come with the rest.
    """
    values, draws = draw_recalls(test, ranks, precision=precision, resamples=resamples, seed=seed)
    bounds = {ties: recalls(ranks, ties) for ties in TIE_RULES[1:]}
    summary = {}
    for name, value in values.items():
        low, high = np.percentile(draws[name], [2.5, 97.5]) if resamples else (None, None)
        n = len(test.captions) if name.startswith("text_to_image") else len(test.image_ids)
        extremes = {ties: bound[name] for ties, bound in bounds.items() if name in bound}
        summary[name] = rounded({"value": value, "low": low, "high": high, "n": n} | extremes)
    return summary


def draw_recalls(
    test: RetrievalSet,
    ranks: dict[str, Ranks],
    *,
    precision: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    resamples: int,
    seed: int,
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """(name -> value, name -> (resamples,) values when the images are drawn with replacement).

    Methods on the same test set are drawn alike for the same seed, so that their differences are paired.
    """
    N = len(test.image_ids)
    owners = {"image_to_text": np.arange(N), "text_to_image": test.row_image}
    queries = {direction: np.bincount(owners[direction], minlength=N) for direction in DIRECTIONS}
    scored = {f"{way}_recall_at_{k}": (way, hits(ranks[way], k)) for way in DIRECTIONS for k in KS}
    for way, own in (precision or {}).items():
        scored |= {f"{way}_{name}": (way, values) for name, values in own.items()}
    # per image: the sum of its queries' scores
    totals = {name: np.bincount(owners[way], values, minlength=N) for name, (way, values) in scored.items()}
    places = {direction: first_places(ranks[direction]) for direction in DIRECTIONS}

    def measure(weights: np.ndarray) -> dict[str, np.ndarray]:
        made = {name: (weights @ totals[name]) / (weights @ queries[way]) for name, (way, _) in scored.items()}
        made["mean_recall"] = np.mean([made[f"{way}_recall_at_{k}"] for way in DIRECTIONS for k in KS], axis=0)
        for way in DIRECTIONS:
            made[f"{way}_median_rank"] = _weighted_median(places[way], weights[:, owners[way]])
        return made

    values = {name: float(value[0]) for name, value in measure(np.ones((1, N))).items()}
    draws: dict[str, list] = {name: [] for name in values}
    random = np.random.default_rng(seed)
    for start in range(0, resamples, RESAMPLES_AT_ONCE):
        size = (min(RESAMPLES_AT_ONCE, resamples - start),)
        weights = random.multinomial(N, np.full(N, 1 / N), size=size).astype(np.float64)
        for name, drawn in measure(weights).items():
            draws[name].append(drawn)
    return values, {name: np.concatenate(parts) if parts else np.zeros(0) for name, parts in draws.items()}


def score_retrieval(
    image_embeddings: np.ndarray,
    text_embeddings: np.ndarray,
    positives: Sequence[int] | Sequence[Sequence[int]],
    *,
    normalize: bool = True,
    ties: str = "expected",
) -> dict[str, float]:
    """Recalls in 0..1 of any embeddings: ``image_to_text_recall_at_1`` to ``text_to_image_recall_at_10``, their mean.

    Args:
        image_embeddings: (N, D).
        text_embeddings: (M, D).
        positives: of each text the row of its image, or the rows of several images that it fits.
        normalize: cosine (True) or inner product (False).
        ties: among equal scores "expected" counts the chance that a right answer is among the first k.

    Raises:
        ValueError: lengths do not fit, a row that is not there, or an image without a text; named.
    """
    images, texts = np.asarray(image_embeddings), np.asarray(text_embeddings)
    if len(positives) != len(texts):
        raise ValueError(f"positives for {len(positives)} texts, but {len(texts)} text embeddings")
    rows = [np.atleast_1d(np.asarray(own, dtype=np.int64)) for own in positives]
    for text, own in enumerate(rows):
        if len(own) == 0 or own.min() < 0 or own.max() >= len(images):
            raise ValueError(f"positives of text {text}: {own.tolist()}; expected rows of the {len(images)} images")
    lonely = sorted(set(range(len(images))) - {int(row) for own in rows for row in own})
    if lonely:
        raise ValueError(f"image {lonely[0]} and {len(lonely) - 1} more have no text: take them out")
    csr = torch.from_numpy(np.cumsum([0, *map(len, rows)])), torch.from_numpy(np.concatenate(rows))
    back, there = two_way_ranks(texts, images, csr, normalize=normalize)
    return recalls({"image_to_text": _as_numpy(there), "text_to_image": _as_numpy(back)}, ties)


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Median of values (n,) under each row of integer weights (R, n), shape (R,)."""
    order = np.argsort(values, kind="stable")
    sums = np.cumsum(weights[:, order], axis=1)
    total = sums[:, -1]
    lower = (sums * 2 < total[:, None]).sum(axis=1)  # first place where half is reached
    upper = (sums * 2 <= total[:, None]).sum(axis=1)  # first place where half is passed
    ordered = values[order]
    return (ordered[lower] + ordered[upper]) / 2


def _as_numpy(ranks: Ranks) -> Ranks:
    return Ranks(*(part.cpu().numpy() for part in ranks))
