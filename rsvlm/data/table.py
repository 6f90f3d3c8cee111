"""The one caption table between the stages: a row an image, in a Parquet file that is read by column and row group.

``{"image_id": "ucm/1.jpg", "source": "ucm", "split": "train", "path": "...", "captions": ["..."], "label": "river",
"width": 256, "height": 256, "resolution": 0.3}``

``path`` is absolute, or relative (it may start with ``../``) to a root that ``load_table`` is told; that of an image inside
a tar shard or a Parquet file is ``FILE::MEMBER``, which ``open_image`` opens (rsvlm.data.packed). ``label`` is a class name
or null.
``width`` and ``height`` are pixels of the file, ``resolution`` is metres a pixel; each may be null or left out.

Rows are sorted by source, split and image_id, so a split of a source lies in few row groups, and their statistics tell
which. ``pandas.read_parquet`` shows the table to anybody.
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import compute, parquet

from rsvlm.data.names import check_split
from rsvlm.data.packed import open_parquet, read_columns
from rsvlm.data.table_rows import COLUMNS, OPTIONAL, ORDER, SCHEMA, check_part, check_rows, checked_row
from rsvlm.files import whole_file

A_GROUP = 16_384  # rows a row group: some megabytes of captions, the most that is written or read at once
# All that shapes the bytes is said here, so that the same rows give the same file wherever pyarrow's version is the same.
WRITING = {
    "version": "2.6",
    "data_page_version": "1.0",
    "compression": "zstd",
    "compression_level": 3,
    "use_dictionary": ["source", "split", "label"],
    "write_statistics": ORDER,
}
CAPTIONS = pd.ArrowDtype(pa.large_list(pa.large_string()))  # large: a chunk of any size can be taken from
REMEDY = "run the stage aggregate_data (notebook 10_aggregate_data) again"


def save_table(rows: Iterable[dict], path: Path) -> None:
    """Write checked rows, sorted by source, split and image_id; whole or not at all, the same bytes for the same rows.

    Args:
        rows: a list, in any order; or an iterator, which must give them sorted: of its rows, A_GROUP are held at a time.

    Raises:
        ValueError: as ``check_rows``; or an iterator's row is out of order.
    """
    path = Path(path)
    if isinstance(rows, Sequence):
        ordered: Iterable[dict] = sorted(check_rows(rows, str(path)), key=_key)
    else:
        ordered = _in_order(rows, str(path))
    with whole_file(path) as scratch:
        hashes, left = [], iter(ordered)
        with parquet.ParquetWriter(scratch, SCHEMA, **WRITING) as writer:
            while part := list(islice(left, A_GROUP)):
                writer.write_table(pa.Table.from_pylist(part, SCHEMA), row_group_size=A_GROUP)
                hashes.append(hash_texts([row["image_id"] for row in part]))
        with parquet.ParquetFile(scratch) as file:
            _check_unique(hashes, file, str(path))


def _key(row: Mapping) -> tuple[str, str, str]:
    return row["source"], row["split"], row["image_id"]


def _in_order(rows: Iterable[dict], where: str) -> Iterator[dict]:
    """Checked rows; ValueError for one that belongs before the one before it."""
    last = ("", "", "")
    for number, row in enumerate(rows, start=1):
        checked = checked_row(row, f"{where}: row {number}")
        if _key(checked) < last:
            raise ValueError(
                f"{where}: row {number}: {_key(checked)} comes behind {last}; rows come sorted, or as a list"
            )
        last = _key(checked)
        yield checked


def hash_texts(texts: Iterable[str]) -> np.ndarray:
    """(n,) uint64, by which equal texts are found without holding them all; the same on every machine.

    That two of ten million different texts have one hash has a chance of three in a million.
    """
    return pd.util.hash_array(np.array(list(texts), dtype=object), categorize=False)


def _check_unique(hashes: list[np.ndarray], file: parquet.ParquetFile, where: str) -> None:
    """ValueError for an id that occurs twice in a file; names both rows.

    Args:
        hashes: of ids of rows of the file, one a row.
    """
    if not hashes or len(np.unique(np.concatenate(hashes))) == sum(map(len, hashes)):
        return
    seen: dict[str, int] = {}
    for number, image_id in enumerate(file.read(["image_id"]).column(0).to_pylist(), start=1):
        if image_id in seen:
            raise ValueError(f"{where}: row {number}: image_id {image_id!r} is already in row {seen[image_id]}")
        seen[image_id] = number


def load_table(
    path: Path,
    root: Path | None = None,
    columns: Sequence[str] | None = None,
    split: str | Sequence[str] | None = None,
    source: str | None = None,
) -> pd.DataFrame:
    """The table, or some columns and rows of it, in the file's order. Nothing else is read.

    ``captions`` stay in Arrow's memory, which takes half of what lists of Python's texts take and no time to collect: the
    column is pandas' own ``ArrowDtype``, of which a cell, ``tolist()`` and an iteration give plain lists of str, so
    callers see no difference but for ``map`` and ``iterrows``, which give arrays. ``image_id`` and ``path`` are pandas' ``str``; the
    other columns hold objects, None for null.

    Args:
        root: folder that relative paths start from, put before them, for a table whose images are opened; None leaves
            the paths as they are: they then start from the working directory.
        columns: of COLUMNS, in this order; None: all.
        split: one, of which there must be rows, or several; None: all.
        source: None: all.

    Raises:
        FileNotFoundError: the stage aggregate_data has not run.
        ValueError: not a whole file of ``save_table``, or a row is not as the table must be; names the file, row and
            key. Or no such column, split or source.
    """
    blocks = list(read_blocks(path, root, columns, split, source))
    if not blocks:
        blocks = [_as_frame(SCHEMA.empty_table().select(_columns(columns)), root)]
    return pd.concat(blocks, ignore_index=True)


def read_blocks(
    path: Path,
    root: Path | None = None,
    columns: Sequence[str] | None = None,
    split: str | Sequence[str] | None = None,
    source: str | None = None,
) -> Iterator[pd.DataFrame]:
    """``load_table`` by blocks of at most A_GROUP rows, none of them empty; arguments and errors are its own."""
    path, wanted = Path(path), _columns(columns)
    asked = {"split": [split] if isinstance(split, str) else split, "source": [source] if source else None}
    asked = {key: list(values) for key, values in asked.items() if values is not None}
    named = [key for key, own in (("split", split), ("source", source)) if isinstance(own, str)]
    for one in () if isinstance(split, str) else asked.get("split", ()):
        check_split(one, "split")
    with _open(path) as file:
        read = [name for name in COLUMNS if name in (*wanted, *asked)]
        hashes, number, met = [], 1, False
        for group in range(file.num_row_groups):
            about = file.metadata.row_group(group)
            if all(_may_hold(about, key, values) for key, values in asked.items()):
                part = read_columns(file, path, group, read, REMEDY)
                check_part(part, str(path), number, REMEDY)
                for key, values in asked.items():
                    part = part.filter(compute.is_in(part.column(key).cast(pa.string()), pa.array(values, pa.string())))
                met = met or len(part) > 0
                if "image_id" in wanted:
                    hashes.append(hash_texts(part.column("image_id").to_pylist()))
                if len(part):
                    yield _as_frame(part.select(wanted), root)
            number += about.num_rows
        _check_unique(hashes, file, str(path))
        for key in () if met else named:
            known = set(file.read([key]).column(0).cast(pa.string()).unique().to_pylist())
            if asked[key][0] not in known:
                raise ValueError(
                    f"{path}: no {key} {asked[key][0]!r} in the image table; it has {', '.join(sorted(known))}"
                )


def _columns(columns: Sequence[str] | None) -> list[str]:
    unknown = [name for name in columns or () if name not in COLUMNS]
    if unknown:
        raise ValueError(f"no column {unknown[0]!r} in an image table; it has {', '.join(COLUMNS)}")
    return list(COLUMNS if columns is None else columns)


def _open(path: Path) -> parquet.ParquetFile:
    """The file of a table, its head read and found to be one of ``save_table``."""
    if not path.is_file():
        older = path.with_suffix(".jsonl")
        if older.is_file():
            raise FileNotFoundError(
                f"{older}: the image table as an older version wrote it; {REMEDY}: it writes {path.name}"
            )
        raise FileNotFoundError(
            f"{path}: no image table; run the stage aggregate_data (notebook 10_aggregate_data) first"
        )
    file = open_parquet(path, REMEDY)
    found = file.schema_arrow
    for field in SCHEMA:
        own = found.field(field.name).type if field.name in found.names else None
        if own != field.type:
            file.close()
            has = "is missing" if own is None else f"is {own}, must be {field.type}"
            raise ValueError(f"{path}: no image table of this version: its column {field.name} {has}; {REMEDY}")
    return file


def _may_hold(about: parquet.RowGroupMetaData, key: str, values: Sequence[str]) -> bool:
    """Whether a row group may hold one of some values, by its statistics."""
    for place in range(about.num_columns):
        column = about.column(place)
        if column.path_in_schema == key:
            known = column.statistics
            return known is None or not known.has_min_max or any(known.min <= one <= known.max for one in values)
    return True


def _as_frame(part: pa.Table, root: Path | None) -> pd.DataFrame:
    """A part of the file as a frame: see ``load_table``."""
    made = {}
    for name, column in zip(part.column_names, part.columns):
        if name == "captions":
            column = column.cast(CAPTIONS.pyarrow_dtype)
            made[name] = pd.Series(pd.arrays.ArrowExtensionArray(column), dtype=CAPTIONS)
        elif name == "path" and root is not None:
            made[name] = pd.Series([str(Path(root) / own) for own in column.to_pylist()], dtype="str")
        elif name in ("image_id", "path"):
            made[name] = column.to_pandas()
        elif name in OPTIONAL:
            made[name] = pd.Series(column.to_pylist(), dtype=object)
        else:
            column = column.combine_chunks()
            names = [None if own is None else sys.intern(own) for own in column.dictionary.to_pylist()]
            chosen = compute.fill_null(column.indices, len(names)).to_numpy(zero_copy_only=False)
            made[name] = pd.Series(np.array([*names, None], dtype=object)[chosen], dtype=object)
    return pd.DataFrame(made, columns=part.column_names)


class CaptionsOf(Mapping[str, list[str]]):
    """image id -> its captions. They stay where the table has them; a list is made when it is asked for.

    Args:
        table: columns ``image_id`` and ``captions``; ids are unique.
    """

    def __init__(self, table: pd.DataFrame) -> None:
        self._places = {image_id: place for place, image_id in enumerate(table["image_id"])}
        self._captions = table["captions"].array

    def __getitem__(self, image_id: str) -> list[str]:
        return self._captions[self._places[image_id]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def fingerprint_rows(rows: Iterable[object]) -> str:
    """SHA-256 of JSON values in their order, as hex; they pass one by one, none is kept."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def load_adapt_table(
    path: Path,
    more: Path,
    root: Path | None = None,
    columns: Sequence[str] | None = None,
    split: str | Sequence[str] | None = None,
) -> pd.DataFrame:
    """The table with the training images that only adapt the encoder among its rows, sorted as a table is.

    Args:
        root, columns, split: as for ``load_table``.

    Raises:
        FileNotFoundError, ValueError: as ``load_table``, for either file.
    """
    wanted = _columns(columns)
    read = [name for name in COLUMNS if name in (*wanted, *ORDER)]
    table = pd.concat([load_table(one, root, read, split) for one in (path, more)], ignore_index=True)
    return table.sort_values(ORDER, kind="stable", ignore_index=True)[wanted]


def evenly_spaced(count: int, most: int) -> np.ndarray:
    """At most ``most`` of the places 0 to ``count`` - 1, the first and the last among them; 0: all."""
    return np.linspace(0, count - 1, min(most or count, count)).round().astype(int)


def thinned(table: pd.DataFrame, per_split: int) -> pd.DataFrame:
    """At most so many rows of each split, evenly spaced, in the table's order; 0: all."""
    kept = [rows.index[evenly_spaced(len(rows), per_split)] for _, rows in table.groupby("split")]
    return table[table.index.isin(np.concatenate(kept))]


def rows_of(table: pd.DataFrame, split: str | None = None, source: str | None = None) -> pd.DataFrame:
    """The rows of one split and one source (None: all), in the table's order, with the table's index kept.

    Raises:
        ValueError: the split or the source is not in the table; lists those that are.
    """
    rows = table
    for column, wanted in (("split", split), ("source", source)):
        if wanted is None:
            continue
        if wanted not in set(table[column]):
            raise ValueError(
                f"no {column} {wanted!r} in the image table; it has {', '.join(sorted(set(table[column])))}"
            )
        rows = rows[rows[column] == wanted]
    return rows
