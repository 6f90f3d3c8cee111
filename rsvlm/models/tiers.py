"""What an index keeps its vectors in: a tier. One interface, and the tier that searches exactly in memory.

``exact`` (here) looks at every vector: to a million images. ``faiss`` (``rsvlm.models.faiss_tier``) holds short codes in
memory and the vectors on disk. ``lancedb`` (``rsvlm.models.lance_tier``) is a table on disk. In each an approximate scan only
proposes: scores are exact cosines, of ``similarity_topk``. Each takes images, gives them up and is compacted, and what a call
has taken when it returns outlives the process.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import torch

from rsvlm.files import only_process, read_array, read_json, whole_folder, write_array, write_json
from rsvlm.kernels import Prepared, prepare, similarity_topk
from rsvlm.models.image_filters import Where, allowed_rows, whole_facts

TIERS = ("exact", "faiss", "lancedb")
VECTORS, NAMES, FACTS, CONFIG = "vectors.npy", "images.json", "facts.parquet", "config.json"
DAMAGED = "make the index again with `rsvlm embed`"
TUNED_FOR = 10  # images a query
RECALL = 0.95  # share of the nearest that a search finds, unless something else is asked for
TRIES = 100  # queries that a setting is measured with
MOST_PREPARED = 4_000_000_000  # bytes, for the tier exact: some two million images of 512 numbers
Hits = list[list[tuple[str, float]]]  # a query's (name, cosine), best first
Block = tuple[list[str], np.ndarray, pd.DataFrame | None]  # names, vectors (n, D) and facts of some images


class Tier(Protocol):
    """Images by name, each with a vector and what is known of it."""

    kind: str
    by_blocks: bool  # images are best added as they are encoded; else all at once

    def __len__(self) -> int: ...

    def search(self, vectors: np.ndarray, k: int, where: Where | None = None) -> Hits:
        """The ``k`` nearest to each of (Q, D) vectors among the images that ``where`` allows.

        Raises:
            ValueError: ``where`` asks for what is known of no image.
        """

    def add(self, names: list[str], vectors: np.ndarray, facts: pd.DataFrame | None = None) -> None:
        """Take images; one whose name is there already is replaced.

        Args:
            vectors: (n, D) float16, of length 1.
            facts: (n) rows with some of ``image_filters.COLUMNS``, as ``read_facts`` gives them.
        """

    def remove(self, names: list[str]) -> None:
        """Give up images. ValueError names one that is not there; then nothing is given up."""

    def compact(self) -> None:
        """Give back the room of what was removed, and take into the index proper what was added."""


class ExactTier:
    """All vectors in memory, each looked at; a folder that it was read from or saved to follows each change, whole."""

    kind, by_blocks = "exact", False

    def __init__(self, names: list[str], vectors: np.ndarray, facts: pd.DataFrame | None = None):
        self.names, self.vectors, self.folder = list(names), vectors, None
        self.facts = None if facts is None else whole_facts(facts, len(names))
        self._prepared: Prepared | None = None

    @classmethod
    def read(cls, folder: Path, width: int) -> "ExactTier":
        """What ``save`` wrote, vectors of ``width`` numbers. Raises ValueError for a damaged file."""
        tier = cls(read_names(folder / NAMES), read_vectors(folder / VECTORS), read_known(folder / FACTS))
        if tier.vectors.shape != (len(tier.names), width):
            raise ValueError(f"{folder / VECTORS}: shape {tier.vectors.shape} for {len(tier.names)} images; {DAMAGED}")
        tier.folder = folder
        return tier

    def __len__(self) -> int:
        return len(self.names)

    def search(self, vectors: np.ndarray, k: int, where: Where | None = None) -> Hits:
        """As ``Tier.search``."""
        items = self._items()
        if where is None:
            return nearest(vectors, items, self.names, k)
        rows = np.flatnonzero(allowed_rows(where, self.facts, len(self)))
        among = items.some(torch.from_numpy(rows)) if isinstance(items, Prepared) else items[rows]
        return nearest(vectors, among, [self.names[row] for row in rows], k)

    def add(self, names: list[str], vectors: np.ndarray, facts: pd.DataFrame | None = None) -> None:
        """As ``Tier.add``."""
        new = set(names)
        with self._held():
            kept = [row for row, name in enumerate(self.names) if name not in new]
            known = None
            if facts is not None or self.facts is not None:
                own = whole_facts(self.facts, len(self)).iloc[kept]
                known = pd.concat([own, whole_facts(facts, len(names))], ignore_index=True)
            self._become(
                [*(self.names[row] for row in kept), *names],
                np.concatenate([self.vectors[kept], np.asarray(vectors, np.float16)]),
                known,
            )

    def remove(self, names: list[str]) -> None:
        """As ``Tier.remove``."""
        gone = set(names)
        with self._held():
            check_there(gone, set(self.names))
            kept = [row for row, name in enumerate(self.names) if name not in gone]
            known = None if self.facts is None else self.facts.iloc[kept].reset_index(drop=True)
            self._become([self.names[row] for row in kept], self.vectors[kept], known)

    def compact(self) -> None:
        """Nothing: an exact tier has no room to give back."""

    def save(self, folder: Path, config: dict) -> None:
        """Write it and what else is known of the index, whole or not at all."""
        with whole_folder(folder) as scratch:
            write_rows(scratch, self.names, self.vectors, self.facts)
            write_json(scratch / CONFIG, config | {"tier": self.kind})
        self.folder = folder

    def _items(self) -> np.ndarray | Prepared:
        """The vectors, prepared for many searches by the first, unless that takes too much memory."""
        if self._prepared is None and 4 * self.vectors.size <= MOST_PREPARED:
            self._prepared = prepare(self.vectors)
        return self.vectors if self._prepared is None else self._prepared

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Within it this process alone changes the folder, starting from what another one has made of it."""
        if self.folder is None:
            yield
            return
        with alone(self.folder):
            now = self.read(self.folder, self.vectors.shape[1])
            self.names, self.vectors, self.facts, self._prepared = now.names, now.vectors, now.facts, None
            yield

    def _become(self, names: list[str], vectors: np.ndarray, facts: pd.DataFrame | None) -> None:
        made = ExactTier(names, vectors, facts)
        if self.folder is not None:
            made.save(self.folder, read_json(self.folder / CONFIG))
        self.names, self.vectors, self.facts, self._prepared = made.names, made.vectors, made.facts, None


def nearest(queries: np.ndarray, vectors: np.ndarray | Prepared, names: Sequence[str], k: int) -> Hits:
    """The k of (n, D) vectors nearest to each of (Q, D) queries, by exact cosine."""
    scores, places = similarity_topk(queries, vectors, min(k, max(len(names), 1)))
    return [
        [(names[place], score) for score, place in zip(own, found) if place >= 0]
        for own, found in zip(scores.tolist(), places.tolist())
    ]


def nearest_of_blocks(queries: np.ndarray, blocks: Iterable[np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
    """(cosines, rows) (Q, k) of the nearest among vectors that come in blocks (n, D), rows counted through all of them."""
    scores, rows, start = np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64), 0
    for block in blocks:
        found, places = (one.numpy() for one in similarity_topk(queries, block, min(k, len(block))))
        scores, rows = np.hstack([scores, found]), np.hstack([rows, places + start])
        order = np.lexsort((rows, -scores), axis=1)[:, :k]
        scores, rows = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
        start += len(block)
    return scores, rows


def tuning_queries(vectors: np.ndarray) -> np.ndarray:
    """(TRIES, D) queries of (3 TRIES / 2, D) vectors.

    Half are vectors. Half lie midway between two, and as far again off all of them, as texts lie off images: for these short
    codes order worst.
    """
    draw = np.random.default_rng(0)
    own, one, other = np.split(draw.permutation(np.asarray(vectors, np.float32)), 3)
    aside = draw.standard_normal(one.shape, dtype=np.float32)
    return np.concatenate([_unit(own), _unit(_unit(one + other) + _unit(aside))])


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def cheapest(
    settings: Iterable[dict], search: Callable[[dict], Sequence[Iterable]], truth: Sequence[Iterable], recall: float
) -> dict:
    """The first of some settings, cheapest first, that finds so much of the truth; else the one that finds most.

    Args:
        search: what a setting finds, a row a query of ``tuning_queries``.
        truth: what is to be found.
        recall: share wanted of either half of the queries, 0 to 1.

    Returns:
        The setting, with ``recall``, the share that it finds of the half of which it finds less.
    """
    tried = []
    for setting in settings:
        found = [len(set(own) & set(right)) / len(set(right)) for own, right in zip(search(setting), truth)]
        halves = found[: len(found) // 2], found[len(found) // 2 :]
        tried.append(setting | {"recall": round(min(float(np.mean(half)) for half in halves), 4)})
        if tried[-1]["recall"] >= recall:
            return tried[-1]
    return max(tried, key=lambda setting: setting["recall"])


def check_tier(kind: str) -> None:
    """A ValueError where there is no such tier."""
    if kind not in TIERS:
        raise ValueError(f"tier: {kind!r} is none of {', '.join(TIERS)}")


def check_there(names: Iterable[str], there: set[str]) -> None:
    """ValueError where a name is not there; names it."""
    missing = sorted(set(names) - there)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(f"{missing[0]}{more}: not in the index; nothing was removed")


def alone(folder: Path) -> AbstractContextManager[None]:
    """Holds an index: one process at a time changes it."""
    place = folder.absolute()  # "." has no name
    return only_process(place.with_name(f".{place.name}.lock"), f"to change the index {folder}")


def write_rows(folder: Path, names: list[str], vectors: np.ndarray | None, facts: pd.DataFrame | None) -> None:
    """The files of some images: NAMES, VECTORS (n, D) float16 unless they are there, and FACTS where something is known."""
    if vectors is not None:
        write_array(folder / VECTORS, vectors)
    write_json(folder / NAMES, names)
    if facts is not None:
        facts.to_parquet(folder / FACTS, index=False)


def read_names(path: Path) -> list[str]:
    """The names in a file. ValueError: it is damaged."""
    names = read_json(path)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: no list of names; {DAMAGED}")
    return names


def read_vectors(path: Path, mapped: bool = False) -> np.ndarray:
    """The vectors (n, D) in a file, or a map of it. ValueError: it is damaged."""
    try:
        return read_array(path, mapped=mapped)
    except (ValueError, OSError) as error:
        raise ValueError(f"{error}; {DAMAGED}") from error


def read_known(path: Path) -> pd.DataFrame | None:
    """What is known of images, where a file tells it. ValueError: it is damaged."""
    if not path.is_file():
        return None
    try:
        return pd.read_parquet(path)
    except (ValueError, OSError) as error:  # pyarrow's errors are ValueErrors and OSErrors
        raise ValueError(f"{path}: the index is damaged ({error}); {DAMAGED}") from error


def batches(array: np.ndarray, rows: int) -> Iterator[np.ndarray]:
    """Its rows, so many at a time."""
    for start in range(0, len(array), rows):
        yield array[start : start + rows]
