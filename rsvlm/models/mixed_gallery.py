"""A gallery of texts in several languages: in which of them are the first texts that an image finds?

A space that does not know languages finds each as often as the gallery holds it. Where the ranking knows them, one language
stands before the others whatever it says: it leaks.
"""

import numpy as np

TOP = 10  # first texts


def first_shares(images: np.ndarray, texts: np.ndarray, kind: np.ndarray, kinds: int) -> np.ndarray:
    """(N, kinds) float64: shares of the kinds among the first TOP texts of each image, expected over a random order of ties.

    Args:
        images: (N, D), texts (T, D), of length 1.
        kind: (T,) number of each text's language.
    """
    shares = np.zeros((len(images), kinds))
    top = min(TOP, len(texts))
    for row, scores in enumerate(images @ texts.T):
        edge = np.partition(scores, -top)[-top]
        above, level = scores > edge, scores == edge
        room = (top - above.sum()) / level.sum()
        shares[row] = np.bincount(kind[above], minlength=kinds) + room * np.bincount(kind[level], minlength=kinds)
    return shares / top


def leak_of(shares: np.ndarray, gallery: np.ndarray) -> float:
    """Half the sum of the differences between shares (kinds,) of the first places and of the gallery: the part of the
    places that would have to change language. 0: none leaks; near 1: only one is found, and it is rare.
    """
    return 0.5 * float(np.abs(shares - gallery).sum())
