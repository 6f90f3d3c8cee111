"""The test sets of retrieval: images, their caption rows, and which answers are right."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

MATCH_RULES = ("by_image", "by_text")


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
