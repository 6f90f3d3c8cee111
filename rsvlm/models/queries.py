"""What is searched with: texts, pictures, vectors, and one less another."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

_WITHOUT = re.compile(
    r"(?P<wanted>\S.*?),?\s+(?:(?:but|and)\s+)?(?:without|with no|but no|and no)\s+(?:any\s+)?(?P<unwanted>.*\w.*)",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True)
class Without:
    """One query less another: ``Without("farmland", "houses")``.

    Its vector is the difference of theirs. An encoder reads "farmland without houses" much as "farmland with houses", and
    finds the houses first (``rsvlm.scoring.negation`` measures both).
    """

    wanted: object  # a text, a picture, a vector: whatever is searched with
    unwanted: object


def split_without(text: str) -> tuple[str, str]:
    """(wanted, unwanted) of "farmland without houses" or "a lake, but no boats"; (text, "") where nothing is left out."""
    found = _WITHOUT.fullmatch(text.strip().rstrip(".?! "))
    return (found["wanted"], found["unwanted"]) if found else (text, "")


def encode_parts(queries: Sequence[object], encode: Callable[[list[object]], np.ndarray]) -> np.ndarray:
    """(queries, D) of length 1: each query's vector, and of each ``Without`` its parts' difference.

    Args:
        encode: from queries that are no ``Without`` to vectors (n, D) of length 1.

    Raises:
        ValueError: a ``Without`` whose parts are the same; what ``encode`` raises.
    """
    parts = [[one.wanted, one.unwanted] if isinstance(one, Without) else [one] for one in queries]
    vectors = encode([part for own in parts for part in own])
    rows = np.split(vectors, np.cumsum([len(own) for own in parts])[:-1]) if parts else []
    for number, own in enumerate(rows):
        if len(own) == 2 and np.allclose(*own):
            raise ValueError(f"query {number}: what is looked for and what is left out are the same: nothing stays")
    made = [unit_vector(own[0] - own[1], len(own[0])) if len(own) == 2 else own[0] for own in rows]
    return np.stack(made) if made else vectors


def unit_vector(vector: np.ndarray, dim: int) -> np.ndarray:
    """(dim,) float32 of length 1. ValueError where it has another shape, or is nothing but 0 or not finite."""
    length = float(np.linalg.norm(vector.astype(np.float64))) if vector.dtype.kind == "f" else 0.0
    if vector.shape != (dim,) or not np.isfinite(length) or length == 0:
        raise ValueError(f"a vector of {dim} finite numbers, not all 0, is needed; got {vector.dtype} {vector.shape}")
    return (vector / length).astype(np.float32)
