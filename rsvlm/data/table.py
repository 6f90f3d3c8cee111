"""The one caption table between the stages: one object an image, in a JSON-lines file.

``{"image_id": "ucm/1.jpg", "source": "ucm", "split": "train", "path": "...", "captions": ["..."], "label": "river",
"width": 256, "height": 256, "resolution": 0.3}``

``path`` is absolute, or relative (it may start with ``../``) to a root that ``load_table`` is told; that of an image inside
a tar shard or a Parquet file is ``FILE::MEMBER``, which ``open_image`` opens (rsvlm.data.packed). ``label`` is a class name
or null.
``width`` and ``height`` are pixels of the file, ``resolution`` is metres a pixel; each may be null or left out.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from rsvlm.data.names import SPLITS
from rsvlm.files import read_json_lines, write_json_lines
from rsvlm.safe_text import fault_in

REQUIRED = ["image_id", "source", "split", "path", "captions", "label"]
OPTIONAL = ["width", "height", "resolution"]
COLUMNS = [*REQUIRED, *OPTIONAL]


def check_rows(rows: Iterable[dict], where: str = "image table") -> list[dict]:
    """The rows, each with exactly the table's keys and types; optional ones that are missing are None.

    Raises:
        ValueError: names ``where``, the row and what is wrong with it; also for an ``image_id`` that occurs twice.
    """
    seen: dict[str, int] = {}
    checked = []
    for number, row in enumerate(rows, start=1):
        fault = _fault_of(row)
        if fault:
            raise ValueError(f"{where}: row {number}: {fault}")
        if row["image_id"] in seen:
            raise ValueError(
                f"{where}: row {number}: image_id {row['image_id']!r} is already in row {seen[row['image_id']]}"
            )
        seen[row["image_id"]] = number
        checked.append({column: row.get(column) for column in COLUMNS})
    return checked


def _fault_of(row: object) -> str | None:
    """What is wrong with a row, or None."""
    if not isinstance(row, dict) or not set(REQUIRED) <= set(row) <= set(COLUMNS):
        has = sorted(row) if isinstance(row, dict) else type(row).__name__
        return f"needs exactly the keys {', '.join(REQUIRED)} and may have {', '.join(OPTIONAL)}; has {has}"
    for key in ("image_id", "source", "split", "path"):
        if not isinstance(row[key], str) or not row[key]:
            return f"{key} must be a non-empty text, is {row[key]!r}"
    if row["split"] not in SPLITS:
        return f"split must be one of {', '.join(SPLITS)}, is {row['split']!r}"
    captions = row["captions"]
    if not isinstance(captions, list) or not captions:
        return f"captions must be a list with at least one text, is {captions!r}"
    if not all(isinstance(caption, str) and caption.strip() for caption in captions):
        return f"captions must be texts that are not blank, are {captions!r}"
    for key, text in (
        ("image_id", row["image_id"]),
        ("path", row["path"]),
        ("source", row["source"]),
        *(("captions", one) for one in captions),
    ):
        if fault := fault_in(text):
            return f"{key} holds {fault}: {text!r}"
    if row["label"] is not None and not isinstance(row["label"], str):
        return f"label must be a text or null, is {row['label']!r}"
    if row["label"] and (fault := fault_in(row["label"])):
        return f"label holds {fault}: {row['label']!r}"
    for key in OPTIONAL:
        value = row.get(key)
        number = isinstance(value, int | float if key == "resolution" else int) and not isinstance(value, bool)
        if value is not None and not (number and value > 0):
            return f"{key} must be a number above 0 or null, is {value!r}"
    return None


def save_table(rows: Iterable[dict], path: Path) -> None:
    """Write checked rows, sorted by source, split and image_id."""
    checked = check_rows(rows, str(path))
    write_json_lines(path, sorted(checked, key=lambda row: (row["source"], row["split"], row["image_id"])))


def load_table(path: Path, root: Path | None = None) -> pd.DataFrame:
    """The table with the columns COLUMNS, in the file's order; ``captions`` holds lists of str, ``label`` str or None.

    Args:
        root: folder that relative paths start from, put before them, for a table whose images are opened; None leaves
            the paths as they are: they then start from the working directory.

    Raises:
        FileNotFoundError: the stage aggregate_data has not run.
        ValueError: a row is not as the table must be; names the file and the row.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no image table; run the stage aggregate_data (notebook 10_aggregate_data) first"
        )
    table = pd.DataFrame(check_rows(read_json_lines(path), str(path)), columns=COLUMNS, dtype=object)
    if root is not None:
        table["path"] = [str(Path(root) / own) for own in table["path"]]
    return table


def load_adapt_table(path: Path, more: Path, root: Path | None = None) -> pd.DataFrame:
    """The table with the training images that only adapt the encoder among its rows, sorted as a table is.

    Args:
        root: as for ``load_table``.

    Raises:
        FileNotFoundError, ValueError: as ``load_table``, for either file.
    """
    table = pd.concat([load_table(path, root), load_table(more, root)], ignore_index=True)
    return table.sort_values(["source", "split", "image_id"], kind="stable", ignore_index=True)


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
