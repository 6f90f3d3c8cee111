"""Broken files of every format: a reader reads them, or says in one sentence which file is wrong; nothing else happens.

What a reader reads is cut off, its bytes and numbers are changed, the types in its JSON and Parquet swapped. Each reader gets
the same FILES broken files each time, or with RSVLM_FUZZ_SECONDS (`make fuzz`: 600) as many as fit into its share of these, from
number RSVLM_FUZZ_FIRST on.
"""

import io
import json
import os
import random
import re
import resource
import signal
import tarfile
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path

import pytest
import scene_reader_cases  # noqa: F401  adds its own
from reader_cases import CASES

SECONDS, FIRST = float(os.environ.get("RSVLM_FUZZ_SECONDS", 0)), int(os.environ.get("RSVLM_FUZZ_FIRST", 0))
FILES = 40  # of each reader in the suite, some 20 s in all
# Numbers that once got through, which every run tries first
FOUND = {
    "boxes_voc": [10113], "boxes_yolo": [233], "captions_coco": [670], "features": [10737], "hits": [181, 10676], "image_png": [2163],
    "index": [737], "scene_archive": [139], "stac": [10096], "table_parquet": [10718],
    "vectors_npz": [373, 770], "vectors_parquet": [238],
}  # fmt: skip
LONGEST, MEMORY = 10, 3 * 2**30  # processor seconds and further bytes that reading a small file may take
JUNK = [
    None, True, False, 0, -1, 1, 2.5, 10**30, 1e308, float("nan"), float("inf"), "", " ", "a", "\ud800", "\0", "a\nb", "é", "../a",
    "/etc/passwd", "a" * 300, "=1+1", [], {}, [[]], [None], {"a": 1}, [1, 2], ["a", 1], [[[[]]]],
]  # fmt: skip
WORDS = [
    "nan",
    "inf",
    "-1",
    "0",
    "1e999",
    "9" * 30,
    "9" * 5000,
    "",
    "\t",
    "\0",
    "\ud800",
    "null",
    "[" * 3000,
    '"',
    "'",
    "{",
    ",",
    ";",
]
PIECES = [
    b"",
    b"\0",
    b"\xff",
    b"\xff" * 8,
    b"\0" * 512,
    b"\x7f\xff\xff\xff",
    b"\x80\0\0\0",
    b"\n",
    b"PK\3\4",
    b"II*\0",
    b"\xed\xa0\x80",
]


def broken_bytes(draw: random.Random, data: bytes) -> bytes:
    """Bytes cut off, changed, left out, doubled or put in, near the ends more often."""
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        near = draw.choice((64, 512, len(data) + 1))
        at = min(draw.randrange(near), len(data))
        at = at if draw.random() < 0.7 else len(data) - at
        size = draw.choice((1, 2, 4, 16, 200))
        head, tail = data[:at], data[at + size :]
        put = draw.choice((
            draw.choice(PIECES), draw.randbytes(min(size, len(data) - at)), data[at : at + size] * 2, b"",
            bytes(one ^ 1 << draw.randrange(8) for one in data[at : at + size][:1]) + data[at + 1 : at + size],
            draw.choice(PIECES) + data[at : at + size], None,
        ))  # fmt: skip
        data = head if put is None else head + put + tail
    return data


def broken_text(draw: random.Random, data: bytes) -> bytes:
    """A word or number that is another, or a line left out, doubled or moved."""
    text = data.decode()
    found = list(re.finditer(r"-?\d+(\.\d+)?|\w+|[\t,:\"\[{]", text))
    lines = text.splitlines(keepends=True)
    if draw.random() < 0.7 and found:
        one = draw.choice(found)
        text = text[: one.start()] + draw.choice(WORDS) + text[one.end() :]
    elif lines:
        draw.shuffle(lines) if draw.random() < 0.2 else lines.insert(0, draw.choice(lines))
        text = "".join(lines[draw.randrange(2) :])
    return text.encode("utf-8", "surrogatepass")


def broken_value(draw: random.Random, value: object) -> object:
    """A value of JSON in which one part is of another type, missing, renamed or twice there."""
    inside = isinstance(value, dict | list) and value
    if not inside or draw.random() < 0.1:
        return draw.choice(JUNK)
    value = dict(value) if isinstance(value, dict) else list(value)
    key = draw.choice(list(value)) if isinstance(value, dict) else draw.randrange(len(value))
    done = draw.random()
    if done < 0.08:
        del value[key]
    elif done < 0.12 and isinstance(value, list):
        value.append(value[key])
    elif done < 0.14 and isinstance(value, dict):
        value[str(draw.choice(JUNK))] = value.pop(key)
    else:
        value[key] = broken_value(draw, value[key])
    return value


def broken_parquet(draw: random.Random, data: bytes) -> bytes:
    """A table with a column of another type, name or none."""
    import pyarrow
    from pyarrow import parquet

    table = parquet.read_table(io.BytesIO(data))
    at = draw.randrange(table.num_columns)
    name, rows = table.column_names[at], table.num_rows
    others = [[1] * rows, [None] * rows, [[1]] * rows, [["a", None]] * rows, [b"x"] * rows, ["\0"] * rows, [{"bytes": b"x"}] * rows,
              [float("nan")] * rows, [[]] * rows]  # fmt: skip
    other = draw.choice((name, name, name, "a", "caption_3", ""))
    table = table.remove_column(at)
    if draw.random() < 0.8:
        table = table.add_column(0, other, pyarrow.array(draw.choice(others)))
    made = io.BytesIO()
    parquet.write_table(table if draw.random() < 0.9 else table.slice(0, 0), made)
    return made.getvalue()


def broken_tar(draw: random.Random, data: bytes) -> bytes:
    """An archive whose members' contents are broken, and whose names may be."""
    made = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(data)) as old, tarfile.open(fileobj=made, mode="w") as new:
        members = old.getmembers()
        chosen = draw.choice(members)
        for info in members:
            content = old.extractfile(info).read()
            if info is chosen:
                content = broken_file(draw, info.name, content)
                info.name = draw.choice((info.name, info.name, "../a.png", "a/b.json", info.name.upper(), "a.b.c.png"))
                info.type = draw.choice((info.type,) * 8 + (tarfile.SYMTYPE, tarfile.DIRTYPE))
            info.size = len(content)
            new.addfile(info, io.BytesIO(content))
    return made.getvalue()


def broken_file(draw: random.Random, name: str, data: bytes) -> bytes:
    """A file's content, broken by what is known of its format, or as mere bytes."""
    ending = name.rpartition(".")[2].lower()
    if draw.random() < 0.3:
        return broken_bytes(draw, data)
    if ending in ("json", "geojson"):
        return (
            json.dumps(broken_value(draw, json.loads(data))).encode()
            if draw.random() < 0.7
            else broken_text(draw, data)
        )
    if ending == "jsonl" and draw.random() < 0.7:
        lines = data.splitlines()
        at = draw.randrange(len(lines))
        lines[at] = json.dumps(broken_value(draw, json.loads(lines[at]))).encode()
        return b"\n".join(lines)
    if ending in ("jsonl", "csv", "tsv", "txt", "xml", "yaml"):
        return broken_text(draw, data)
    known = {"parquet": broken_parquet, "tar": broken_tar}
    return known.get(ending, broken_bytes)(draw, data)


@contextmanager
def little() -> Iterator[None]:
    """Within, more than LONGEST and MEMORY raise TimeoutError and MemoryError."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {LONGEST} s of the processor's time")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, LONGEST)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize("name", CASES)
def test_a_reader_reads_or_names_the_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "own"
    folder.mkdir()
    files, read = CASES[name](folder)
    read()
    whole = {path: path.read_bytes() for path in files}
    there = {path: path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()}
    ends, tried, refused, faults = time.monotonic() + SECONDS / len(CASES), 0, 0, {}
    found = FOUND.get(name, [])
    for number in chain(found, count(FIRST)):
        if tried >= len(found) + FILES and not SECONDS or SECONDS and tried > len(found) and time.monotonic() >= ends:
            break
        draw = random.Random(f"{name} {number}")
        path = draw.choice(files)
        path.write_bytes(broken_file(draw, path.name, whole[path]))
        try:
            with warnings.catch_warnings(), little():
                warnings.simplefilter("ignore")
                read()
        except (ValueError, FileNotFoundError) as error:
            refused += 1
            ours = not isinstance(error, UnicodeError | json.JSONDecodeError)
            named = any(one.name in str(error) for one in files) or str(folder) in str(error)
            if not (ours and named):
                faults.setdefault(
                    _place(error), f"number {number}, {path.name}: {type(error).__name__}: {str(error)[:300]}"
                )
        except Exception as error:
            faults.setdefault(
                _place(error), f"number {number}, {path.name}: {type(error).__name__}: {str(error)[:300]}"
            )
        path.write_bytes(whole[path])
        tried += 1
    assert {path: path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()} == there
    assert not faults, "\n".join(f"{told}\n  at {place}" for place, told in faults.items())
    read()
    print(f"{name}: {tried:,} broken files, {refused:,} refused")


def _place(error: BaseException) -> str:
    """Where an error was raised: the last line of this package on the way there, and its own."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "rsvlm" in frame.filename]
    return " ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in (own[-1:] + frames[-1:]))
