"""METEOR's paraphrase table, cut down to what can occur in the captions at hand.

METEOR 1.5 reads 5.3 million pairs of phrases before its first answer: ten seconds and more, nearly all of its time. A
pair can only ever match where one phrase stands in the caption and the other in the reference. With every pair left out
that does not stand in the texts, METEOR starts in less than a second and gives the same counts.

What decides is a phrase's sequence of runs of letters and digits, because METEOR moves only what lies between them
when it normalises a text. So the cut keeps a little too much and never too little.

The index is made once a machine: the table as plain text, and a checksum and a place for each phrase in it.
"""

import gzip
import html
import itertools
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import numpy as np

from rsvlm.files import read_json, whole_folder, write_json

RUNS = re.compile(rb"[0-9a-z\x80-\xff]+")
PLAIN = re.compile(rb"[0-9a-z\x80-\xff]+(?: [0-9a-z\x80-\xff]+)*")
CHUNK = 1 << 24  # bytes read at one time
TEXT, PLACES, ABOUT = "paraphrases.txt", "places.npy", "about.json"


@dataclass(frozen=True)
class ParaphraseIndex:
    """The whole table in a folder: groups of entries that share their first phrase, found by checksum."""

    text: np.ndarray  # (bytes,) uint8, the table; memory-mapped
    checksums: np.ndarray  # (groups,) uint32, of each group's runs, sorted
    starts: np.ndarray  # (groups,) int64, in the order of checksums
    ends: np.ndarray  # (groups,) int64
    longest: int  # runs of the longest phrase


def load_index(table: Path, folder: Path) -> ParaphraseIndex:
    """The index of a paraphrase table in ``folder``, made when it is not there or belongs to another table.

    Raises:
        ValueError: the table is not in METEOR's form; names the file.
    """
    stamp = {"bytes": table.stat().st_size, "crc32": _checksum_file(table)}
    about = read_json(folder / ABOUT) if (folder / ABOUT).is_file() else {}
    if not isinstance(about, dict) or {key: about.get(key) for key in stamp} != stamp:
        longest = _make_index(table, folder, stamp)
    else:
        longest = about["longest"]
    places = np.load(folder / PLACES)
    text = np.memmap(folder / TEXT, dtype=np.uint8, mode="r")
    return ParaphraseIndex(text, places[:, 0].astype(np.uint32), places[:, 1], places[:, 2], longest)


def write_cut(index: ParaphraseIndex, texts: Iterable[str], target: Path) -> int:
    """How many pairs of phrases that can occur in the texts were written to ``target``, in METEOR's form."""
    keys = runs_in(texts, index.longest)
    wanted = np.array(sorted({zlib.crc32(key) for key in keys}), dtype=np.uint32)
    first, last = np.searchsorted(index.checksums, wanted), np.searchsorted(index.checksums, wanted, side="right")
    groups = np.concatenate([np.arange(0), *(np.arange(a, b) for a, b in zip(first, last) if b > a)])
    groups = groups[np.argsort(index.starts[groups], kind="stable")]  # the table's order
    kept = []
    for start, end in zip(index.starts[groups].tolist(), index.ends[groups].tolist()):
        lines = index.text[start:end].tobytes().split(b"\n")
        if runs_of(lines[1]) in keys:  # another phrase may have the same checksum
            entries = (lines[at : at + 3] for at in range(0, len(lines) - 2, 3))
            kept += [b"\n".join(entry) for entry in entries if runs_of(entry[2]) in keys]
    target.write_bytes(gzip.compress(b"".join(entry + b"\n" for entry in kept), 1, mtime=0))
    return len(kept)


def runs_in(texts: Iterable[str], longest: int) -> set[bytes]:
    """Every sequence of up to ``longest`` runs that stands in a text, and the empty one."""
    found = {b""}
    for text in set(texts):
        lowered = text.lower()
        for form in {lowered, html.unescape(lowered)}:  # METEOR reads &quot; as a quotation mark
            runs = RUNS.findall(form.encode("utf-8", "replace"))
            for start in range(len(runs)):
                for stop in range(start + 1, min(len(runs), start + longest) + 1):
                    found.add(b" ".join(runs[start:stop]))
    return found


def runs_of(phrase: bytes) -> bytes:
    """The phrase's runs of letters and digits, one space between them."""
    return phrase if PLAIN.fullmatch(phrase) else b" ".join(RUNS.findall(phrase.lower()))


def _make_index(table: Path, folder: Path, stamp: dict) -> int:
    """The number of runs in the longest phrase, after the table was written plainly with its places."""
    places: list[tuple[int, int, int]] = []  # checksum, start, end
    offset, longest, rest = 0, 0, b""
    with whole_folder(folder) as scratch:
        with gzip.open(table) as source, (scratch / TEXT).open("wb") as target:
            while block := source.read(CHUNK):
                target.write(block)
                lines = (rest + block).split(b"\n")
                whole = (len(lines) - 1) // 3 * 3
                rest = b"\n".join(lines[whole:])
                entries = zip(lines[1:whole:3], lines[:whole:3], lines[2:whole:3])
                for phrase, group in itertools.groupby(entries, key=itemgetter(0)):
                    end = offset + sum(len(a) + len(b) + len(c) + 3 for a, b, c in group)
                    key = runs_of(phrase)
                    longest = max(longest, key.count(b" ") + 1)
                    places.append((zlib.crc32(key), offset, end))
                    offset = end
        if rest or not places:
            raise ValueError(f"{table}: not a paraphrase table of METEOR (three lines an entry)")
        array = np.array(places, dtype=np.int64)
        np.save(scratch / PLACES, array[np.argsort(array[:, 0], kind="stable")])
        write_json(scratch / ABOUT, stamp | {"longest": longest, "groups": len(places)})
    return longest


def _checksum_file(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            checksum = zlib.crc32(block, checksum)
    return checksum
