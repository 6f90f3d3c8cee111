"""How a row of the image table (``rsvlm.data.table``) must be, whether it is a dict or a row of a part of its file."""

import sys
from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa
from pyarrow import compute

from rsvlm.data.names import SPLITS
from rsvlm.safe_text import fault_in

REQUIRED = ["image_id", "source", "split", "path", "captions", "label"]
OPTIONAL = ["width", "height", "resolution"]
COLUMNS = [*REQUIRED, *OPTIONAL]
ORDER = ["source", "split", "image_id"]  # of the rows
LARGEST = 2**31 - 1  # of a whole number in the file
NAME = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    {
        "image_id": pa.string(),
        "source": NAME,
        "split": NAME,
        "path": pa.string(),
        "captions": pa.list_(pa.string()),
        "label": NAME,
        "width": pa.int32(),
        "height": pa.int32(),
        "resolution": pa.float64(),
    }
)
# What may not be in a text, or makes it blank: a little more than ``fault_in`` and ``str.strip`` say, which decide.
_ODD = r"[\x00-\x08\x0a-\x1e\x{7f}-\x{9f}]|^[\pZ\t\x1f]*$"


def check_rows(rows: Iterable[dict], where: str = "image table") -> list[dict]:
    """The rows, each with exactly the table's keys and types; optional ones that are missing are None.

    Raises:
        ValueError: names ``where``, the row and what is wrong with it; also for an ``image_id`` that occurs twice.
    """
    seen: dict[str, int] = {}
    checked = []
    for number, row in enumerate(rows, start=1):
        checked.append(checked_row(row, f"{where}: row {number}"))
        if row["image_id"] in seen:
            raise ValueError(
                f"{where}: row {number}: image_id {row['image_id']!r} is already in row {seen[row['image_id']]}"
            )
        seen[row["image_id"]] = number
    return checked


def checked_row(row: object, where: str) -> dict:
    """As ``check_rows``, of one row, but for repeated ids."""
    if not isinstance(row, dict) or not set(REQUIRED) <= set(row) <= set(COLUMNS):
        has = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise ValueError(
            f"{where}: needs exactly the keys {', '.join(REQUIRED)} and may have {', '.join(OPTIONAL)}; has {has}"
        )
    if fault := _fault_of(row):
        raise ValueError(f"{where}: {fault}")
    return {column: row.get(column) for column in COLUMNS}


def _fault_of(row: Mapping) -> str | None:
    """What is wrong with a row's values, or None; of a row that lacks columns, with those that it has."""
    for key in ("image_id", "source", "split", "path"):
        if key in row and (not isinstance(row[key], str) or not row[key]):
            return f"{key} must be a non-empty text, is {row[key]!r}"
    if "split" in row and row["split"] not in SPLITS:
        return f"split must be one of {', '.join(SPLITS)}, is {row['split']!r}"
    captions = row.get("captions", ["x"])
    if not isinstance(captions, list) or not captions:
        return f"captions must be a list with at least one text, is {captions!r}"
    if not all(isinstance(caption, str) and caption.strip() for caption in captions):
        return f"captions must be texts that are not blank, are {captions!r}"
    texts = [(key, row[key]) for key in ("image_id", "path", "source") if key in row]
    for key, text in (*texts, *(("captions", one) for one in captions)):
        if fault := fault_in(text):
            return f"{key} holds {fault}: {text!r}"
    label = row.get("label")
    if label is not None and not isinstance(label, str):
        return f"label must be a text or null, is {label!r}"
    if label and (fault := fault_in(label)):
        return f"label holds {fault}: {label!r}"
    for key in OPTIONAL:
        value = row.get(key)
        whole = key != "resolution"
        number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if value is not None and not (number and 0 < value <= (LARGEST if whole else sys.float_info.max)):
            most = f" and at most {LARGEST:,}" if whole else ""
            return f"{key} must be a number above 0{most} or null, is {value!r}"
    return None


def check_part(part: pa.Table, where: str, first: int, remedy: str) -> None:
    """Check rows as they stand in the table's file, by columns: only those that look odd are looked at one by one.

    Args:
        part: some columns and rows.
        where: the file, for the error.
        first: the number of the first row.
        remedy: the end of the error's sentence.

    Raises:
        ValueError: as ``check_rows``, but for repeated ids.
    """
    odd = np.zeros(len(part), dtype=bool)
    for key in part.column_names:
        column = part.column(key).combine_chunks()
        if pa.types.is_dictionary(column.type):
            column = column.cast(pa.string())
        if key == "captions":
            texts = column.flatten()
            holders = compute.list_parent_indices(column).to_numpy()
            odd |= compute.fill_null(compute.list_value_length(column), 0).to_numpy() == 0
            odd[holders[_marks(compute.match_substring_regex(texts, _ODD))]] = True
        elif key in OPTIONAL:
            values = compute.fill_null(column, 1).to_numpy(zero_copy_only=False)
            odd |= ~((values > 0) & np.isfinite(values))
        elif key == "label":
            odd |= _marks(compute.fill_null(compute.match_substring_regex(column, _ODD), False))
        else:
            odd |= _marks(compute.match_substring_regex(column, _ODD))
            if key == "split":
                odd |= ~_marks(compute.is_in(column, pa.array(SPLITS)))
    for place in np.flatnonzero(odd).tolist():
        if fault := _fault_of(part.slice(place, 1).to_pylist()[0]):
            raise ValueError(f"{where}: row {first + place}: {fault}; {remedy}")


def _marks(found: pa.BooleanArray) -> np.ndarray:
    """As bool; null is True."""
    return compute.fill_null(found, True).to_numpy(zero_copy_only=False)
