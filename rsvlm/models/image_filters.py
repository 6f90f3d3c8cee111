"""What is known of an index's images, and which of them a search may find: source, split, date, place."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd

from rsvlm.data.moments import moment

SIDES = ("west", "south", "east", "north")
Facts = pd.DataFrame | str | Path  # a table of what is known of images, or its file
COLUMNS = ("source", "split", "date", *SIDES)  # what may be known of an image


@dataclass(frozen=True)
class Where:
    """Which images may be found; all of it holds. What is not known of an image does not hold.

    Attributes:
        source, split: one name, or those that count.
        start, end: dates or times, UTC where no zone is told; both ends count, ``end="2024-05"`` to the end of May.
        bbox: west, south, east, north in degrees; west above east crosses the date line. An image counts that shares more than
            an edge with it.

    Raises:
        ValueError: no date, no box, or nothing is told.
    """

    source: str | Sequence[str] | None = None
    split: str | Sequence[str] | None = None
    start: str | date | None = None
    end: str | date | None = None
    bbox: Sequence[float] | None = None

    def __post_init__(self) -> None:
        for name in ("source", "split"):
            value = getattr(self, name)
            names = None if value is None else (value,) if isinstance(value, str) else tuple(value)
            if names is not None and not (names and all(isinstance(one, str) for one in names)):
                raise ValueError(f"{name}: expected a name or several, is {value!r}")
            object.__setattr__(self, name, names)
        for name, last in (("start", False), ("end", True)):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else moment(value, last=last).floor("us"))
        if self.bbox is not None:
            object.__setattr__(self, "bbox", _box(self.bbox))
        if not self.asked():
            raise ValueError("where: nothing is told; give source, split, start, end or bbox, or leave it out")

    def asked(self) -> list[str]:
        """The columns that it looks at."""
        given = {"source": self.source, "split": self.split, "date": self.start or self.end, "west": self.bbox}
        return [name for name, value in given.items() if value is not None]

    def mask(self, facts: pd.DataFrame) -> np.ndarray:
        """(n,) bool: which rows of the columns COLUMNS may be found."""
        keep = np.ones(len(facts), bool)
        for name in ("source", "split"):
            if getattr(self, name) is not None:
                keep &= facts[name].isin(getattr(self, name)).to_numpy()
        if self.start is not None:
            keep &= (facts["date"] >= self.start).to_numpy()
        if self.end is not None:
            keep &= (facts["date"] <= self.end).to_numpy()
        if self.bbox is not None:
            west, south, east, north = self.bbox
            after, before = (facts["east"] > west).to_numpy(), (facts["west"] < east).to_numpy()
            over = (facts["west"] > facts["east"]).to_numpy()  # the date line
            keep &= (after & before) | (over & (after | before)) if west <= east else after | before | over
            keep &= ((facts["north"] > south) & (facts["south"] < north)).to_numpy()
        return keep

    def sql(self) -> str:
        """The same as a condition in SQL."""
        parts = []
        for name in ("source", "split"):
            if getattr(self, name) is not None:
                parts.append(f"{name} IN ({', '.join(map(sql_text, getattr(self, name)))})")
        for sign, value in ((">=", self.start), ("<=", self.end)):
            if value is not None:
                parts.append(f"date {sign} timestamp '{value.strftime('%Y-%m-%dT%H:%M:%S.%fZ')}'")
        if self.bbox is not None:
            west, south, east, north = self.bbox
            one_side = f"east > {west} OR west < {east}"
            inside = f"(east > {west} AND west < {east}) OR (west > east AND ({one_side}))"
            parts.append(f"({inside})" if west <= east else f"({one_side} OR west > east)")
            parts.append(f"north > {south} AND south < {north}")
        return " AND ".join(parts)


def sql_text(text: str) -> str:
    """A text as SQL writes it."""
    return "'" + text.replace("'", "''") + "'"


def _box(bbox: Sequence[float]) -> tuple[float, ...]:
    try:
        west, south, east, north = box = tuple(map(float, [] if isinstance(bbox, str) else bbox))
    except (TypeError, ValueError) as error:
        raise ValueError(f"bbox: expected four numbers, west, south, east, north in degrees; is {bbox!r}") from error
    if not (abs(west) <= 180 and abs(east) <= 180 and -90 <= south <= north <= 90):
        raise ValueError(f"bbox: {bbox!r}: expected west, south, east, north in degrees, south not above north")
    return box


def allowed_rows(where: Where, facts: pd.DataFrame | None, n: int) -> np.ndarray:
    """(n,) bool: which images may be found. ValueError where none can be, as nothing is known of any.

    Args:
        facts: (n) rows, as ``whole_facts`` makes them; None: nothing is known.
    """
    facts = whole_facts(None, n) if facts is None else facts
    keep = where.mask(facts)
    if n and not keep.any():
        check_known(where, lambda name: bool(facts[name].notna().any()))
    return keep


def check_known(where: Where, known: Callable[[str], bool]) -> None:
    """ValueError where a column that is asked for is known of no image."""
    for name in where.asked():
        if not known(name):
            what = "place" if name == "west" else name
            raise ValueError(
                f"no image of this index has a {what}, so none can be found by it; give what is known of the images "
                "when they are embedded or added, facts='TABLE'"
            )


def whole_facts(facts: pd.DataFrame | None, n: int) -> pd.DataFrame:
    """(n) rows with all of COLUMNS; what is not known is missing.

    Raises:
        ValueError: another number of rows, no date, or no number where a side of a box is needed.
    """
    if facts is None:
        facts = pd.DataFrame(index=range(n))
    if len(facts) != n:
        raise ValueError(f"facts: {len(facts)} rows for {n} images")
    made = {}
    for name in COLUMNS:
        own = facts[name] if name in facts else pd.Series([None] * n, index=facts.index, dtype=object)
        if name == "date":
            made[name] = _dates(own).array
        elif name in SIDES:
            made[name] = _numbers(own, name)
        else:
            made[name] = [value if isinstance(value, str) else None for value in own]
    return pd.DataFrame(made, columns=list(COLUMNS)).astype({"source": object, "split": object})


def _dates(values: pd.Series) -> pd.Series:
    if isinstance(values.dtype, pd.DatetimeTZDtype):
        return values.dt.tz_convert("UTC").dt.as_unit("us")
    try:
        made = [pd.NaT if pd.isna(value) else moment(value).as_unit("us") for value in values]
    except ValueError as error:
        raise ValueError(f"facts: date: {error}") from error
    return pd.Series(made, dtype="datetime64[us, UTC]")


def _numbers(values: pd.Series, name: str) -> np.ndarray:
    try:
        return pd.to_numeric(values).to_numpy(np.float64, na_value=math.nan)
    except (TypeError, ValueError) as error:
        raise ValueError(f"facts: {name}: expected degrees; {error}") from error


def read_facts(table: Facts) -> pd.DataFrame:
    """What a table, or its file (.csv, .parquet), tells of images, by their names: the column ``image`` and some of COLUMNS.

    ``longitude`` and ``latitude`` stand for a box without width and height.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no table, without ``image`` or without anything that is known, or an image twice.
    """
    if isinstance(table, pd.DataFrame):
        path, read = "facts", table.reset_index() if table.index.name == "image" else table
    else:
        path, read = Path(table), _table_in(Path(table))
    for name, sides in (("longitude", ("west", "east")), ("latitude", ("south", "north"))):
        if name in read:
            read = read.assign(**dict.fromkeys(sides, read[name]))
    if "image" not in read or not set(COLUMNS) & set(read.columns):
        raise ValueError(
            f"{path}: the column image and one of {', '.join(COLUMNS)} are needed; is {list(read.columns)}"
        )
    if read["image"].duplicated().any():
        raise ValueError(f"{path}: the image {read['image'][read['image'].duplicated()].iloc[0]} stands there twice")
    try:
        return whole_facts(read, len(read)).set_index(pd.Index(read["image"].astype(str)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _table_in(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype=str)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: no table that can be read ({error})") from error


def facts_about(names: Sequence[str], table: Facts | None) -> pd.DataFrame | None:
    """What a table tells of images, as ``read_facts`` gives it. A ValueError where it tells of none of them."""
    if table is None:
        return None
    facts = read_facts(table)
    if len(names) and not {*names, *(Path(name).name for name in names)} & set(facts.index):
        told = f"it tells of {facts.index[0]} ..." if len(facts) else "it has no rows"
        raise ValueError(f"facts: nothing is known of any of {len(names)} images, {names[0]} ...; {told}")
    return facts


def facts_of(names: Sequence[str], facts: pd.DataFrame | None) -> pd.DataFrame | None:
    """(n) rows of what is known of images, found by their names, else by their files' names; None: nothing is."""
    if facts is None:
        return None
    wanted = [name if name in facts.index else Path(name).name for name in names]
    return facts.reindex(wanted).reset_index(drop=True)
