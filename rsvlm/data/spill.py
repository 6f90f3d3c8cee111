"""What a stage knows of millions of images, on disk while it runs: files without a name, which the system frees with the
process, however it ends.

``Records`` has bytes of one length, ``StoredRows`` rows of the image table whose captions are read when they are looked at.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
from pyarrow import ipc

from rsvlm.files import naming

BLOCK = 4096  # rows written, or read, at a time
_TEXTS = pa.schema({"captions": pa.list_(pa.string()), "label": pa.string(), "translations": pa.string()})


def nameless_file(folder: Path) -> BinaryIO:
    """A file to write to and read from below a folder, on the disk and under no name."""
    folder.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryFile(dir=folder)


class Records(Sequence[bytes]):
    """Bytes of one length, by their number.

    Args:
        folder: where there is room for them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._file, self._size, self._count = folder, nameless_file(folder), 0, 0

    def append(self, record: bytes) -> None:
        """Raises ValueError: of another length than the first; OSError: the disk is full."""
        self._size = self._size or len(record)
        if len(record) != self._size:
            raise ValueError(f"a record of {len(record)} bytes among records of {self._size}")
        with naming(self._folder):
            self._file.write(record)
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: int) -> bytes:
        if not 0 <= place < self._count:
            raise IndexError(place)
        with naming(self._folder):
            self._file.flush()
        return os.pread(self._file.fileno(), self._size, place * self._size)


class Made(Sequence):
    """Values by their number, each made when it is looked at.

    Args:
        count: of the values.
        make: a value, from its number, 0 to ``count`` - 1.
    """

    def __init__(self, count: int, make: Callable[[int], object]) -> None:
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: int | slice) -> object:
        found = range(self._count)[place]  # an IndexError behind the end, which ends an iteration
        return list(map(self._make, found)) if isinstance(place, slice) else self._make(found)


class Chosen(Mapping):
    """Values by name.

    Args:
        values: all of them.
        places: name -> the number of its value.
    """

    def __init__(self, values: Sequence, places: Mapping[str, int]) -> None:
        self._values, self._places = values, places

    def __getitem__(self, name: str) -> object:
        return self._values[self._places[name]]

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class Texts:
    """Captions, label and translations of rows, by the rows' numbers.

    Args:
        rows: dicts with these keys; ``translations``, as ``ListedImage`` has them, may be left out.
        folder: where there is room for them.

    Raises:
        OSError: the disk is full; names the folder.
    """

    def __init__(self, rows: Iterable[dict], folder: Path) -> None:
        self._file, self._kept, left = nameless_file(folder), (-1, []), iter(rows)
        with naming(folder):
            with ipc.new_file(self._file, _TEXTS, options=ipc.IpcWriteOptions(compression="zstd")) as writer:
                while part := list(islice(left, BLOCK)):
                    rows = [row | {"translations": json.dumps(row.get("translations") or None)} for row in part]
                    writer.write_batch(pa.RecordBatch.from_pylist(rows, _TEXTS))
            self._file.flush()
        self._reader = ipc.open_file(self._file)

    def __getitem__(self, place: int) -> dict:
        """Those of a row; fast for rows in the block of the one before."""
        number, within = divmod(place, BLOCK)
        if number != self._kept[0]:
            self._kept = number, self._reader.get_batch(number).to_pylist()
        row = self._kept[1][within]
        return row | {"translations": json.loads(row["translations"]) or []}


class StoredRows(Sequence[dict]):
    """Rows of the image table; their captions and labels are read from disk, a block at a time.

    Args:
        rows: the rest of each row, which stays in memory, with its number among its source's texts as ``place``.
        texts: source -> its texts.
    """

    def __init__(self, rows: list[dict], texts: dict[str, Texts]) -> None:
        self.rows, self._texts = rows, texts

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int | slice) -> "dict | StoredRows":
        if isinstance(place, slice):
            return StoredRows(self.rows[place], self._texts)
        return self._whole(self.rows[place])

    def of(self, source: str) -> "StoredRows":
        """Those of a source."""
        return StoredRows([row for row in self.rows if row["source"] == source], self._texts)

    def translations(self) -> Iterator[tuple[str, list]]:
        """(image id, translations as ``ListedImage`` has them) of each row."""
        for row in self.rows:
            yield row["image_id"], self._texts[row["source"]][row["place"]]["translations"]

    def _whole(self, row: dict) -> dict:
        texts = self._texts[row["source"]][row["place"]]
        rest = {key: value for key, value in row.items() if key != "place"}
        return rest | {"captions": texts["captions"], "label": texts["label"]}
