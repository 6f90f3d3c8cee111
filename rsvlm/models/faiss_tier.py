"""The tier that holds FAISS's codes in memory and the vectors on disk: IVF-PQ or HNSW proposes, exact scores decide.

A folder holds ``index.faiss``, ``search.json`` (what it was chosen for and how it is searched), ``removed.npy`` and its images in
parts, one for each ``add``: a part is there whole or not at all. The index covers the first so many rows of all parts; what a
killed ``add`` had not yet put into it is put there when it is read.
"""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from rsvlm.extras import import_extra
from rsvlm.files import read_json, whole_file, whole_folder, write_array, write_json
from rsvlm.models.image_filters import Where, allowed_rows, whole_facts
from rsvlm.models.tiers import (
    CONFIG,
    DAMAGED,
    FACTS,
    NAMES,
    RECALL,
    TRIES,
    TUNED_FOR,
    VECTORS,
    Block,
    Hits,
    alone,
    batches,
    cheapest,
    check_there,
    nearest_of_blocks,
    read_known,
    read_names,
    read_vectors,
    tuning_queries,
    write_rows,
)

INDEX, SEARCH, REMOVED, REPLACED, PART = "index.faiss", "search.json", "removed.npy", "replaced.npy", "part-{:05d}"
MEMORY = 4_000_000_000  # bytes
USE = "the tier faiss"
FLAT = 50_000  # images up to which all are looked at; so are as many that a filter leaves
LINKS = 32  # of a node of HNSW
A_CENTRE = 64  # images that a centre of IVF is learnt from
A_READ = 200  # codes that are compared in the time that a vector is read and compared in
SCAN = 65_536  # rows


def write_index(index: object, path: Path) -> None:
    """Write an index of FAISS, in the bytes of ``faiss.write_index``, which does not hear that a disk is full as it closes a file."""
    faiss = import_extra("faiss", USE)
    with Path(path).open("wb") as file:
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))


class FaissTier:
    """An index of FAISS over vectors on disk.

    What another process changes is seen when it is read anew, and before it is changed here.
    """

    kind, by_blocks = "faiss", False

    def __init__(self, folder: Path, width: int):
        """Read it.

        Args:
            width: numbers of a vector.

        Raises:
            ModuleNotFoundError: FAISS is not installed.
            ValueError: a file is damaged, or they do not fit each other.
        """
        self.faiss = import_extra("faiss", USE, "choose the tier exact")
        self.folder, self.width = folder, width
        self._read()

    @classmethod
    def make(
        cls,
        folder: Path,
        width: int,
        n: int,
        blocks: Iterable[Block],
        config: dict,
        memory: int = MEMORY,
        recall: float = RECALL,
    ) -> "FaissTier":
        """Write an index of n images, whole or not at all, and read it.

        Args:
            blocks: names, vectors (m, width) of length 1 and facts of all of them.
            config: what else is known of the index.
            memory: bytes that FAISS may take; decides between all vectors, HNSW and IVF-PQ, and how long the codes are.
            recall: share of the nearest that a search is to find; how much a search looks at is measured for it.

        Raises:
            ModuleNotFoundError: FAISS is not installed.
            OSError: the disk is full.
            ValueError: the memory is too small for so many images, or others came than n of this width.
        """
        faiss = import_extra("faiss", USE, "choose the tier exact")
        key = choose_key(n, width, memory)
        with whole_folder(folder) as scratch:
            part = scratch / PART.format(0)
            part.mkdir()
            names, known = [], []
            with (part / VECTORS).open("wb") as file:  # a map of it would die of a full disk without a word
                head = {"descr": "<f2", "fortran_order": False, "shape": (n, width)}
                np.lib.format.write_array_header_1_0(file, head)
                for own, rows, facts in blocks:
                    if np.shape(rows) != (len(own), width):
                        raise ValueError(f"{folder}: vectors {np.shape(rows)} for {len(own)} images of {width} numbers")
                    file.write(np.ascontiguousarray(rows, "<f2"))
                    names += own
                    known.append((facts, len(own)))
            if len(names) != n:
                raise ValueError(f"{folder}: {len(names)} images came, and {n} were told")
            vectors = read_vectors(part / VECTORS, mapped=True)
            told = any(facts is not None for facts, _ in known)
            facts = pd.concat([whole_facts(*one) for one in known], ignore_index=True) if told else None
            write_rows(part, names, None, facts)
            index = faiss.index_factory(width, key, faiss.METRIC_INNER_PRODUCT)
            _fill(faiss, index, vectors)
            write_index(index, scratch / INDEX)
            settings = {"key": key, "memory": memory, "recall_wanted": recall} | _tune(faiss, index, vectors, recall)
            write_json(scratch / SEARCH, settings)
            write_json(scratch / CONFIG, config | {"tier": cls.kind})
        return cls(folder, width)

    def __len__(self) -> int:
        return int(self.alive.sum())

    def search(self, vectors: np.ndarray, k: int, where: Where | None = None) -> Hits:
        """As ``Tier.search``.

        Proposed is what is allowed among the nearest of all rows, more of them the less is allowed. Where fewer than half as many
        are allowed there as elsewhere (a filter goes with what images show), or so little is allowed that it is less work, the
        index looks at all allowed rows.
        """
        allowed = self.alive if where is None else self.alive & allowed_rows(where, self.facts, len(self.alive))
        n = int(allowed.sum())
        if n <= max(FLAT, k):
            return self._decide(vectors, np.flatnonzero(allowed), k)
        share, wanted = n / len(allowed), k * self.settings["refine"]
        near = math.ceil((wanted + 4 * math.sqrt(wanted * (1 - share))) / share)  # with four standard deviations
        found, few = [], np.arange(len(vectors))
        if max(near, self.settings.get("efSearch", 0) / share) * LINKS <= n:
            rows = _propose(self.faiss, self.index, vectors, near, self.settings, share)
            kept = (rows >= 0) & allowed[rows]
            few = np.flatnonzero(kept.sum(1) < np.maximum(k, (rows >= 0).sum(1) * share / 2))
            found.append(rows[kept & (kept.cumsum(1) <= wanted)])
        if len(few):
            found.append(_propose_of(self.faiss, self.index, vectors[few], wanted, allowed).ravel())
        rows = np.unique(np.concatenate(found))
        return self._decide(vectors, rows[rows >= 0], k)

    def add(self, names: list[str], vectors: np.ndarray, facts: pd.DataFrame | None = None) -> None:
        """As ``Tier.add``; a part of its own, then the index is written anew."""
        if not names:
            return
        with alone(self.folder):
            self._follow()
            replaced = self._rows_of(names)
            with whole_folder(self.folder / PART.format(len(self.parts))) as scratch:
                write_rows(scratch, list(names), np.asarray(vectors, np.float16), facts)
                if replaced:
                    write_array(scratch / REPLACED, np.array(sorted(replaced.values()), np.int64))
            self._read()
            with whole_file(self.folder / INDEX) as scratch:
                write_index(self.index, scratch)

    def remove(self, names: list[str]) -> None:
        """As ``Tier.remove``; the index still holds them, a search passes them over."""
        with alone(self.folder):
            self._follow()
            rows = self._rows_of(names)
            check_there(names, set(rows))
            gone = np.union1d(_numbers(self.folder / REMOVED), np.array(list(rows.values()), np.int64))
            with whole_file(self.folder / REMOVED) as scratch:
                write_array(scratch, gone)
            self._read()

    def compact(self) -> None:
        """As ``Tier.compact``: all that is left in one part, an index trained and tuned on it."""
        with alone(self.folder):
            self._follow()
            settings, config = self.settings, read_json(self.folder / CONFIG)
            self.make(
                self.folder, self.width, len(self), self._left(), config, settings["memory"], settings["recall_wanted"]
            )
            self._read()

    def _left(self) -> Iterator[Block]:
        start = 0
        for vectors in self.vectors:
            for first in range(0, len(vectors), SCAN):
                rows = first + np.flatnonzero(self.alive[start + first : start + min(first + SCAN, len(vectors))])
                own = start + rows
                yield (
                    [self.names[row] for row in own],
                    vectors[rows],
                    None if self.facts is None else self.facts.iloc[own],
                )
            start += len(vectors)

    def _read(self) -> None:
        """All files as they are; once more where another process compacted the index meanwhile."""
        while True:
            self._seen = self._state()
            try:
                self._read_files()
            except (ValueError, OSError):
                if self._state() == self._seen:
                    raise
            if self._state() == self._seen:
                return

    def _read_files(self) -> None:
        self.parts = sorted(self.folder.glob(PART.format(0)[:-5] + "?????"))
        self.vectors = [read_vectors(part / VECTORS, mapped=True) for part in self.parts]
        self.names, known, gone = [], [], [_numbers(self.folder / REMOVED)]
        for part, rows in zip(self.parts, self.vectors):
            own = read_names(part / NAMES)
            if rows.shape != (len(own), self.width):
                raise ValueError(f"{part / VECTORS}: shape {rows.shape} for {len(own)} images; {DAMAGED}")
            self.names += own
            known.append(read_known(part / FACTS))
            gone.append(_numbers(part / REPLACED))
        self.starts = np.cumsum([0, *map(len, self.vectors)])
        told = any(one is not None for one in known)
        known = [whole_facts(one, len(rows)) for one, rows in zip(known, self.vectors)] if told else []
        self.facts = pd.concat(known, ignore_index=True) if told else None
        self.alive = np.ones(len(self.names), bool)
        try:
            self.alive[np.concatenate(gone)] = False
            self.settings = read_json(self.folder / SEARCH)
            self.settings["key"], self.settings["memory"], self.settings["recall_wanted"]
            self.index = self.faiss.read_index(str(self.folder / INDEX))
        except (RuntimeError, IndexError, KeyError, TypeError, FileNotFoundError) as error:
            raise ValueError(f"{self.folder}: the index is damaged ({_line(error)}); {DAMAGED}") from error
        done = self.index.ntotal
        if not self.parts or self.index.d != self.width or done > len(self.names):
            raise ValueError(
                f"{self.folder / INDEX}: {done} vectors of {self.index.d} numbers, where {len(self.names)} of {self.width} are "
                f"needed; {DAMAGED}"
            )
        for rows in batches(np.arange(done, len(self.names)), SCAN):
            self.index.add(self._take(rows).astype(np.float32))

    def _state(self) -> list:
        """What changes whenever another process changes the folder."""
        files = [self.folder / REMOVED, self.folder / INDEX, *self.folder.glob("part-*")]
        return sorted((str(file), file.stat().st_ino, file.stat().st_mtime_ns) for file in files if file.exists())

    def _follow(self) -> None:
        if self._state() != self._seen:
            self._read()

    def _rows_of(self, names: Iterable[str]) -> dict[str, int]:
        wanted = set(names)
        return {name: row for row, name in enumerate(self.names) if name in wanted and self.alive[row]}

    def _take(self, rows: np.ndarray) -> np.ndarray:
        """(n, D) float16 of rising rows."""
        owner = np.searchsorted(self.starts, rows, side="right") - 1
        parts = [self.vectors[one][rows[owner == one] - self.starts[one]] for one in np.unique(owner)]
        return np.concatenate([np.zeros((0, self.width), np.float16), *parts])

    def _decide(self, vectors: np.ndarray, rows: np.ndarray, k: int) -> Hits:
        """The k nearest of rising rows, by exact cosine."""
        scores, places = nearest_of_blocks(vectors, map(self._take, batches(rows, SCAN)), k)
        return [
            [(self.names[row], score) for score, row in zip(own, found)]
            for own, found in zip(scores.tolist(), rows[places].tolist())
        ]


def choose_key(n: int, width: int, memory: int) -> str:
    """FAISS's name of the index for n vectors in so much memory, which takes at most about two thirds of it.

    All vectors to FLAT; else HNSW, the fastest to search; where its vectors do not fit, IVF-PQ with the longest codes that do,
    up to a byte for four numbers. The vectors on disk decide, but only on what the codes propose: among ten million in dense clusters
    a byte for eight numbers proposes 88 % of the nearest, however many lists are looked at.

    Raises:
        ValueError: not even the shortest codes fit.
    """
    room = memory * 2 / 3
    if n <= FLAT and n * width * 4 <= room:
        return "Flat"
    if n * (width * 4 + 2 * LINKS * 4 + 16) <= room:
        return f"HNSW{LINKS},Flat"
    centres = 2 ** max(4, round(np.log2(1.3 * n**0.5)))
    for share in (4, 8, 16, 32, 64):
        if width % share == 0 and n * (width // share + 8) + centres * width * 4 <= room:
            return f"IVF{centres},PQ{width // share}"
    raise ValueError(f"memory: {memory:,} bytes are too few for {n:,} vectors of {width}; choose the tier lancedb")


def _fill(faiss, index, vectors: np.ndarray) -> None:
    """Train an index on a sample and give it all vectors."""
    if not index.is_trained:
        wanted = min(len(vectors), max(A_CENTRE * index.nlist, 256 * A_CENTRE))
        rows = np.sort(np.random.default_rng(0).choice(len(vectors), wanted, replace=False))
        index.train(vectors[rows].astype(np.float32))
    for block in batches(vectors, SCAN):
        index.add(block.astype(np.float32))


def _tune(faiss, index, vectors: np.ndarray, recall: float) -> dict:
    """How an index is searched so that it finds so much of the nearest, with the least work."""
    if isinstance(index, faiss.IndexHNSW):
        settings = [{"efSearch": 2**power, "refine": 1} for power in range(4, 11)]
    elif isinstance(index, faiss.IndexIVF):
        share = len(vectors) / index.nlist
        settings = [{"nprobe": 2**p, "refine": r} for p in range(index.nlist.bit_length()) for r in (5, 20, 80, 320)]
        settings.sort(key=lambda one: one["nprobe"] * share + one["refine"] * TUNED_FOR * A_READ)
    else:
        return {"refine": 1, "recall": 1.0}
    rows = np.random.default_rng(0).choice(len(vectors), 3 * TRIES // 2, replace=len(vectors) < 3 * TRIES // 2)
    queries = tuning_queries(vectors[np.sort(rows)])
    _, truth = nearest_of_blocks(queries, batches(vectors, SCAN), TUNED_FOR)

    def search(setting: dict) -> list[np.ndarray]:
        found = _propose(faiss, index, queries, TUNED_FOR * setting["refine"], setting)
        made = []
        for query, own in zip(queries, found):
            rows = np.unique(own[own >= 0])
            made.append(rows[np.argsort(-(vectors[rows].astype(np.float32) @ query), kind="stable")[:TUNED_FOR]])
        return [own.tolist() for own in made]

    return cheapest(settings, search, truth.tolist(), recall)


def _propose(faiss, index, vectors: np.ndarray, wanted: int, settings: dict, share: float = 1.0) -> np.ndarray:
    """(Q, wanted) rows that may be the nearest, best first; -1 where there are fewer.

    Args:
        share: 0 to 1, of the rows, that may be found; the less, the more is looked at.
    """
    if isinstance(index, faiss.IndexHNSW):
        chosen = faiss.SearchParametersHNSW(efSearch=max(math.ceil(settings["efSearch"] / share), wanted))
    elif isinstance(index, faiss.IndexIVF):
        chosen = faiss.SearchParametersIVF(nprobe=min(math.ceil(settings["nprobe"] / share), index.nlist))
    else:
        chosen = None
    vectors = np.ascontiguousarray(vectors, np.float32)
    return index.search(vectors, min(wanted, index.ntotal), params=chosen)[1]


def _propose_of(faiss, index, vectors: np.ndarray, wanted: int, allowed: np.ndarray) -> np.ndarray:
    """As ``_propose``, of the allowed rows (n,) bool, all of which are looked at."""
    bits = np.packbits(allowed, bitorder="little")  # FAISS keeps no copy
    chosen = {"sel": faiss.IDSelectorBitmap(bits)}
    if isinstance(index, faiss.IndexIVF):
        chosen = faiss.SearchParametersIVF(nprobe=index.nlist, **chosen)
    else:
        chosen = faiss.SearchParameters(**chosen)
    whole = index.storage if isinstance(index, faiss.IndexHNSW) else index
    return whole.search(np.ascontiguousarray(vectors, np.float32), min(wanted, index.ntotal), params=chosen)[1]


def _numbers(path: Path) -> np.ndarray:
    """The row numbers in a file; none where it is not there."""
    found = read_vectors(path) if path.is_file() else np.zeros(0, np.int64)
    if found.dtype != np.int64 or found.ndim != 1:
        raise ValueError(f"{path}: the index is damaged (no row numbers); {DAMAGED}")
    return found


def _line(error: Exception) -> str:
    """The last line of what FAISS says, shortened."""
    return str(error).splitlines()[-1][:200] if str(error) else type(error).__name__
