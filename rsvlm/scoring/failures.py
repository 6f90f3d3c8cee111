"""Text-to-image searches looked at one by one: where the asked-for image stands, and what stands first in its stead.

A search that fails may be no fault of the model: the image found first may carry the very caption that was asked for, or
one that differs in an article and a word more or less. What is found first is put into the first group that fits it.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from rsvlm.scoring.retrieval import EmbeddingSpace, RetrievalSet, first_places, rank_retrieval

WORD = re.compile(r"\w+")
ARTICLES = ("a", "an", "the")
RIGHT = "right"
FOUND_FIRST = {
    RIGHT: "the image asked for",
    "equal": "one with an equal caption",
    "near": "one with a nearly equal caption",
    "class": "another of the same class",
    "other": "one of another class",
    "unknown": "one of an unknown class",
}


def look_at_searches(
    test: RetrievalSet, space: EmbeddingSpace, labels: Mapping[str, str], *, shown: int = 4
) -> pd.DataFrame:
    """One row a caption of the test set: image_id, caption, label, rank, group, found.

    ``rank`` is the place of the caption's own image, counted from 1, expected over ties. ``group`` is the key of
    FOUND_FIRST that fits the image found first; the image asked for is the first where it shares that place. ``found``
    holds the ``shown`` images found first, best first.

    Args:
        labels: image_id -> class, of the images that have one.
    """
    images, texts = space.images(test.image_ids), space.text(test.texts)
    ranks = rank_retrieval(test, images, texts, "by_image", normalize=False)["text_to_image"]
    order = np.argsort(-(np.asarray(texts) @ np.asarray(images).T), axis=1, kind="stable")[:, :shown]  # (T, shown)
    own_texts = [set(test.row_text[test.row_image == image]) for image in range(len(test.image_ids))]
    words = [WORD.findall(text.lower()) for text in test.texts]
    rows = []
    for row, (image, text) in enumerate(zip(test.row_image, test.row_text, strict=True)):
        image_id, first = test.image_ids[image], order[text][0]
        label, other = labels.get(image_id), labels.get(test.image_ids[first])
        if ranks.greater[row] == 0:
            group = RIGHT
        elif text in own_texts[first]:
            group = "equal"
        elif any(is_nearly_equal(words[text], words[one]) for one in own_texts[first]):
            group = "near"
        else:
            group = "unknown" if label is None or other is None else "class" if label == other else "other"
        found = [test.image_ids[place] for place in order[text]]
        rows.append((image_id, test.captions[row], label, group, found))
    made = pd.DataFrame(rows, columns=["image_id", "caption", "label", "group", "found"])
    made.insert(3, "rank", first_places(ranks))
    return made


def is_nearly_equal(a: Sequence[str], b: Sequence[str]) -> bool:
    """Whether two texts are equal but for articles and at most one word more or less: "a lake", "the wide lake".

    Another word in one's place makes another caption: "a lake", "a field".
    """
    shorter, longer = sorted(([word for word in text if word not in ARTICLES] for text in (a, b)), key=len)
    if len(longer) - len(shorter) > 1:
        return False
    same = next((place for place, word in enumerate(shorter) if word != longer[place]), len(shorter))  # from the front
    return shorter[same:] == longer[len(longer) - len(shorter) + same :]
