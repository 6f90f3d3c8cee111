"""The tier of archives: a table of LanceDB on disk, which needs no server; memory holds what a query looks at.

An approximate index of it (IVF-PQ) proposes, LanceDB looks at the vectors themselves of the best (``refine``); filters come
before the search. Rows, deletions and the index are LanceDB's own: each change is a version of the table, there whole or not
at all, so that what ``add`` has returned from outlives a kill, also one while the index is built.
"""

import math
import os
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from rsvlm.extras import import_extra
from rsvlm.files import read_json, write_json
from rsvlm.models.image_filters import COLUMNS, Where, check_known, sql_text, whole_facts
from rsvlm.models.tiers import (
    DAMAGED,
    RECALL,
    TRIES,
    TUNED_FOR,
    Block,
    Hits,
    alone,
    cheapest,
    check_there,
    nearest,
    nearest_of_blocks,
    tuning_queries,
)

TABLE, SEARCH, USE = "images", "search.json", "the tier lancedb"
INDEXED_FROM = 50_000  # images; fewer are all looked at, in some ten milliseconds
A_PARTITION = 4_096  # images of the index that are kept, and looked at, together
A_CODE = 8  # numbers of a vector that one byte stands for
LOOK_AGAIN = timedelta(seconds=5)  # whether another process has changed the table
KEPT = timedelta(hours=1)  # versions so old go when the table is compacted: no search reads them any more
NAMES_AT_ONCE = 1_000  # in one condition
SCAN = 65_536  # rows


class LanceTier:
    """A table of LanceDB in a folder."""

    kind, by_blocks = "lancedb", True

    def __init__(self, folder: Path, width: int, recall: float | None = None, create: bool = True):
        """Open the table, or make an empty one.

        Args:
            width: numbers of a vector.
            recall: share of the nearest that a search is to find, see ``compact``; None: as it was, at first RECALL.
            create: whether a table is made where none is; False for an index that was finished.

        Raises:
            ModuleNotFoundError: LanceDB is not installed.
            ValueError: the table is damaged, missing, or holds vectors of another width.
        """
        os.environ.setdefault(
            "LANCEDB_LOG", "error"
        )  # it warns of each empty list and full queue, thousands of lines of them
        lancedb = import_extra("lancedb", USE, "choose the tier exact")
        self.folder, self.width = folder, width
        self.settings = read_json(folder / SEARCH) if (folder / SEARCH).is_file() else {}
        self._check(self.settings)
        self.recall = recall or self.settings.get("recall_wanted", RECALL)
        there = (folder / f"{TABLE}.lance").is_dir()
        if not there and not create:
            raise ValueError(f"{folder / TABLE}.lance: the table is missing; {DAMAGED}")
        try:
            base = lancedb.connect(str(folder), read_consistency_interval=LOOK_AGAIN)
            self.table = base.open_table(TABLE) if there else base.create_table(TABLE, schema=_schema(width))
            found = self.table.schema.field("vector").type.list_size
            self.table.count_rows()
        except (RuntimeError, ValueError, OSError, KeyError) as error:
            raise ValueError(f"{folder / TABLE}.lance: the table is damaged ({_line(error)}); {DAMAGED}") from error
        if found != width:
            raise ValueError(f"{folder / TABLE}.lance: vectors of {found} numbers, not of {width}; {DAMAGED}")

    def __len__(self) -> int:
        return self.table.count_rows()

    def search(self, vectors: np.ndarray, k: int, where: Where | None = None) -> Hits:
        """As ``Tier.search``. Raises ValueError for a damaged file, too."""
        try:
            found = self._find(np.asarray(vectors, np.float32), k, where, self.settings)
            hits = [
                nearest(vectors[[row]], _vectors(own), own["image"].to_pylist(), k)[0] for row, own in enumerate(found)
            ]
            if where is not None and len(self) and not any(hits):
                check_known(where, lambda name: self.table.count_rows(f"{name} IS NOT NULL") > 0)
        except (RuntimeError, OSError) as error:
            raise ValueError(
                f"{self.folder / TABLE}.lance: the table is damaged ({_line(error)}); {DAMAGED}"
            ) from error
        return hits

    def there(self, names: list[str]) -> set[str]:
        """Those of some names that are in it."""
        if not names:
            return set()
        if len(names) <= NAMES_AT_ONCE:
            rows = self.table.search().where(_among(names)).select(["image"]).limit(NAMES_AT_ONCE).to_arrow()
            return set(rows["image"].to_pylist())
        import pyarrow as pa
        from pyarrow import compute

        found, wanted = set(), pa.array(names)
        for batch in self.table.search().select(["image"]).to_batches(SCAN):
            found |= set(batch["image"].filter(compute.is_in(batch["image"], wanted)).to_pylist())
        return found

    def add(self, names: list[str], vectors: np.ndarray, facts: pd.DataFrame | None = None) -> None:
        """As ``Tier.add``; one version of the table."""
        if not names:
            return
        rows = self._rows(names, vectors, facts)
        with alone(self.folder):
            self.table.checkout_latest()
            if self.there(names):
                merge = self.table.merge_insert("image").when_matched_update_all().when_not_matched_insert_all()
                merge.execute(rows)
            else:
                self.table.add(rows)

    def replace_source(self, source: str, blocks: Iterable[Block]) -> None:
        """Take images in the place of all of a source; none of their names is another source's, which is not looked up."""
        with alone(self.folder):
            self.table.checkout_latest()
            self.table.delete(f"source = {sql_text(source)}")
            for block in blocks:
                self.table.add(self._rows(*block))

    def remove(self, names: list[str]) -> None:
        """As ``Tier.remove``."""
        names = sorted(set(names))
        with alone(self.folder):
            self.table.checkout_latest()
            check_there(names, self.there(names))
            conditions = [_among(names[at : at + NAMES_AT_ONCE]) for at in range(0, len(names), NAMES_AT_ONCE)]
            if conditions:
                self.table.delete(" OR ".join(conditions))

    def compact(self) -> None:
        """As ``Tier.compact``: LanceDB's ``optimize``, which also drops versions older than KEPT; from INDEXED_FROM images on an index.

        That is trained anew where there are four times as many images as when it was. How many partitions a search looks at
        and how many vectors it checks is then measured: the least with which it finds the share ``recall`` of the nearest. Where
        fewer images are left, the index goes.
        """
        with alone(self.folder):
            self.table.checkout_latest()
            n = len(self)
            if n < INDEXED_FROM:
                self._forget()
            elif n >= 4 * self.settings.get("trained_on", 0):
                self._train(n)
            self.table.optimize(cleanup_older_than=KEPT)
            if self.settings:
                self.settings = {"trained_on": self.settings["trained_on"], "recall_wanted": self.recall} | self._tune(
                    n
                )
                write_json(self.folder / SEARCH, self.settings)

    def vectors(self) -> Iterator[np.ndarray]:
        """All of them (n, D) float16, block by block, in the table's order."""
        for batch in self.table.search().select(["vector"]).to_batches(SCAN):
            yield _vectors(batch)

    def _rows(self, names: list[str], vectors: np.ndarray, facts: pd.DataFrame | None):
        """A table of Arrow."""
        import pyarrow as pa

        flat = pa.array(np.ascontiguousarray(vectors, np.float16).reshape(-1))
        known = pa.Table.from_pandas(whole_facts(facts, len(names)), preserve_index=False)
        columns = [names, *(known[name] for name in COLUMNS), pa.FixedSizeListArray.from_arrays(flat, self.width)]
        schema = _schema(self.width)
        columns = [
            column.cast(field.type) if isinstance(column, pa.ChunkedArray) else column
            for field, column in zip(schema, columns)
        ]
        return pa.table(columns, schema=schema)

    def _check(self, settings: object) -> None:
        wanted = {"trained_on", "recall_wanted", "nprobes", "refine"}
        if not isinstance(settings, dict) or (settings and not wanted <= settings.keys()):
            raise ValueError(
                f"{self.folder / SEARCH}: the index is damaged ({', '.join(sorted(wanted))} are needed); {DAMAGED}"
            )

    def _train(self, n: int) -> None:
        from lancedb.index import Bitmap, BTree, IvfPq

        partitions, codes = max(1, round(n / A_PARTITION)), max(1, self.width // A_CODE)
        while self.width % codes:
            codes -= 1
        sample = max(64, min(256, n // partitions))
        for column, kind in (("image", BTree()), ("source", Bitmap()), ("split", Bitmap()), ("date", BTree())):
            self.table.create_index(column, config=kind)
        made = IvfPq("cosine", num_partitions=partitions, num_sub_vectors=codes, max_iterations=10, sample_rate=sample)
        self.table.create_index("vector", config=made)
        self.settings = {"trained_on": n}

    def _forget(self) -> None:
        """Drop the index of the vectors; its settings go first, for without them a search passes it by."""
        self.settings = {}
        (self.folder / SEARCH).unlink(missing_ok=True)
        for index in list(self.table.list_indices()):
            if index.columns == ["vector"]:
                self.table.drop_index(index.name)

    def _tune(self, n: int) -> dict:
        chosen = np.random.default_rng(0).choice(n, 3 * TRIES // 2, replace=False)
        queries = tuning_queries(
            _vectors(self.table.take_offsets(sorted(chosen.tolist())).select(["vector"]).to_arrow())
        )
        _, truth = nearest_of_blocks(queries, self.vectors(), TUNED_FOR)
        names = self.table.take_offsets(sorted(set(truth.ravel().tolist()))).select(["image"]).to_arrow()["image"]
        named = dict(zip(sorted(set(truth.ravel().tolist())), names.to_pylist()))
        probes = [2**power for power in range(1 + math.ceil(math.log2(max(2, n / A_PARTITION))))]
        settings = [{"nprobes": one, "refine": many} for one in probes for many in (5, 20, 80)]
        settings.sort(key=lambda one: one["nprobes"] * A_PARTITION + one["refine"] * TUNED_FOR * 50)

        def search(setting: dict) -> list[list[str]]:
            return [own["image"].to_pylist() for own in self._find(queries, TUNED_FOR, None, setting)]

        return cheapest(settings, search, [[named[row] for row in own] for own in truth.tolist()], self.recall)

    def _find(self, vectors: np.ndarray, k: int, where: Where | None, settings: dict) -> list:
        """A table of images and vectors for each query."""
        found = []
        for vector in vectors:
            asked = self.table.search(vector, vector_column_name="vector").distance_type("cosine").limit(k)
            if settings:
                asked = asked.nprobes(settings["nprobes"]).refine_factor(settings["refine"])
            else:  # nobody knows how well an index finds whose making was cut short
                asked = asked.bypass_vector_index()
            if where is not None:
                asked = asked.where(where.sql(), prefilter=True)
            found.append(asked.select(["image", "vector", "_distance"]).to_arrow())
        return found


def _schema(width: int):
    import pyarrow as pa

    text, number = pa.string(), pa.float64()
    kinds = {"image": text, "source": text, "split": text, "date": pa.timestamp("us", "UTC")}
    kinds |= {name: number for name in COLUMNS if name not in kinds}
    return pa.schema([*kinds.items(), ("vector", pa.list_(pa.float16(), width))])


def _vectors(rows) -> np.ndarray:
    """(n, D) float16 of the rows of a table or a batch of it."""
    column = rows["vector"]
    column = column.combine_chunks() if hasattr(column, "combine_chunks") else column
    return (
        column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
        if len(column)
        else np.zeros((0, column.type.list_size), np.float16)
    )


def _among(names: list[str]) -> str:
    return f"image IN ({', '.join(map(sql_text, names))})"


def _line(error: Exception) -> str:
    """The first line of what LanceDB says, which goes on with places in its source."""
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
