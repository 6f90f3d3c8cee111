"""What people found good or wrong in captions: one CSV, a line a mark, added to and never rewritten.

A mark is on the disk before the gallery says that it is saved, so a killed kernel loses none. Taking a mark back adds a
line with ``on`` = 0. Two notebooks may write at the same time; a line that came in twice (sent again after a kernel was
restarted) counts once, by its ``key``.
"""

import csv
import io
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from rsvlm.files import append_line

KINDS = ("good", "wrong object", "wrong count", "hallucinated", "wrong relation", "note")
ERRORS = KINDS[1:5]
LONGEST_NOTE = 2_000  # characters


@dataclass(frozen=True)
class Mark:
    """One line of the file.

    Raises:
        ValueError: an unknown kind, no image, run or author, or a note that is too long.
    """

    when: str  # UTC, ISO 8601
    who: str
    run: str
    image_id: str
    source: str
    label: str
    kind: str
    on: int  # 1: set, 0: taken back
    note: str
    caption: str  # what the run said then: runs are made again
    key: str  # made by the page, so that a line sent twice counts once

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"mark {self.kind!r} is none of {', '.join(KINDS)}")
        for name in ("who", "run", "image_id", "key"):
            if not getattr(self, name):
                raise ValueError(f"a mark needs {name}")
        if self.on not in (0, 1):
            raise ValueError(f"on: 0 or 1 is needed, got {self.on!r}")
        if len(self.note) > LONGEST_NOTE:
            raise ValueError(f"a note of {len(self.note)} characters: at most {LONGEST_NOTE}")


COLUMNS = tuple(one.name for one in fields(Mark))


def save_mark(mark: Mark, path: Path) -> None:
    """Add a mark to the file; it is on the disk when this returns. Line breaks become spaces."""
    append_line(path, _as_line(astuple(mark)), head=",".join(COLUMNS))


def read_marks(path: Path) -> list[Mark]:
    """All lines of the file in their order, those of a key that came before left out; none without a file.

    A line that is no mark, such as one that a power failure left half written, is left out with a warning.

    Raises:
        ValueError: the file's first line is not that of a file of marks.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    if lines[0].rstrip("\r") != ",".join(COLUMNS):
        raise ValueError(f"{path}: the first line must be {','.join(COLUMNS)}")
    marks: dict[str, Mark] = {}
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        try:
            mark = _read_line(line)
        except ValueError as error:
            warnings.warn(f"{path}: line {number} is left out: {error}", stacklevel=2)
            continue
        marks.setdefault(mark.key, mark)
    return list(marks.values())


def standing_marks(marks: Iterable[Mark]) -> dict[tuple[str, str, str], dict[str, Mark]]:
    """(who, run, image id) -> kind -> the mark that stands: the last one, where it was not taken back."""
    standing: dict[tuple[str, str, str], dict[str, Mark]] = {}
    for mark in marks:
        own = standing.setdefault((mark.who, mark.run, mark.image_id), {})
        if mark.on:
            own[mark.kind] = mark
        else:
            own.pop(mark.kind, None)
    return {key: own for key, own in standing.items() if own}


def marks_of(standing: Mapping[tuple[str, str, str], Mapping[str, Mark]], who: str) -> dict[tuple[str, str], set[str]]:
    """(run, image id) -> kinds, of one person."""
    return {(run, image_id): set(own) for (author, run, image_id), own in standing.items() if author == who}


def error_table(marks: Iterable[Mark], *, run: str | None = None) -> pd.DataFrame:
    """One row a class, one column a kind: how many images carry the mark, from whomever; a row ``all`` last.

    ``marked`` counts images with any mark but a note; ``wrong`` those with some error, and ``wrong, %`` their share.

    Args:
        run: of which run; None: all, an image counts once a run.
    """
    kinds_of: dict[tuple[str, str], set[str]] = {}
    label_of: dict[str, str] = {}
    for (_, own_run, image_id), own in standing_marks(marks).items():
        if run is None or own_run == run:
            kinds_of.setdefault((own_run, image_id), set()).update(own)
            label_of[image_id] = next(iter(own.values())).label or "(no class)"
    columns = [*KINDS, "marked", "wrong"]
    rows = []
    for (_, image_id), kinds in kinds_of.items():
        counts = {kind: int(kind in kinds) for kind in KINDS}
        judged, wrong = bool(kinds - {"note"}), bool(kinds & set(ERRORS))
        rows.append({"class": label_of[image_id], **counts, "marked": int(judged), "wrong": int(wrong)})
    counted = pd.DataFrame(rows, columns=["class", *columns]).groupby("class")[columns].sum().sort_index()
    total = counted.sum().to_frame("all").T.rename_axis("class")
    table = pd.concat([counted, total]).astype(int)
    table["wrong, %"] = (100 * table["wrong"] / table["marked"].where(table["marked"] > 0)).astype(float).round(1)
    return table


def now() -> str:
    """This moment in UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _as_line(values: Iterable[object]) -> str:
    buffer = io.StringIO()
    texts = [" ".join(str(value).split("\n")).replace("\r", " ").replace("\0", " ") for value in values]
    csv.writer(buffer, lineterminator="").writerow(texts)
    return buffer.getvalue()


def _read_line(line: str) -> Mark:
    try:
        values = next(csv.reader([line], strict=True))
    except csv.Error as error:
        raise ValueError(str(error)) from error
    if len(values) != len(COLUMNS):
        raise ValueError(f"{len(values)} fields, {len(COLUMNS)} are needed")
    given = dict(zip(COLUMNS, values, strict=True))
    if given["on"] not in ("0", "1"):
        raise ValueError(f"on: 0 or 1 is needed, got {given['on']!r}")
    return Mark(**{**given, "on": int(given["on"])})
