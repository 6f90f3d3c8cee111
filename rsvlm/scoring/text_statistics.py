"""What can be said of a run's captions without references: length, vocabulary, variety, copies from training."""

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from rsvlm.scoring.bootstrap import rounded

ORDERS = (1, 2, 3)
PROTOCOL = (
    "words are PTB tokens; distinct_n: different n-grams over all n-grams of the run's captions (Li et al. 2016);"
    " copied: the share of captions that equal a training caption after tokenising"
)


def describe_texts(tokenized: Sequence[str], training: Collection[str]) -> dict[str, float | int | None]:
    """Lengths (words), vocabulary, different captions, distinct_1..3 and the share copied of tokenized captions.

    distinct_n is None where no caption has n words.

    Args:
        training: the training captions, tokenized.
    """
    words = [text.split() for text in tokenized]
    lengths = np.array([len(row) for row in words])
    described = {
        "mean_words": float(lengths.mean()),
        "shortest": int(lengths.min()),
        "longest": int(lengths.max()),
        "vocabulary": len({word for row in words for word in row}),
        "distinct_captions": len(set(tokenized)),
    }
    for order in ORDERS:
        grams = Counter(tuple(row[at : at + order]) for row in words for at in range(len(row) - order + 1))
        described[f"distinct_{order}"] = len(grams) / grams.total() if grams else None
    described["copied"] = float(np.mean([text in training for text in tokenized]))
    return rounded(described)
