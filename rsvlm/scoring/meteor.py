"""METEOR 1.5: its counts from pycocoevalcap's jar, its score as a formula over them.

METEOR reads 5.3 million pairs of phrases before its first answer: ten seconds and more, nearly all of its time. A pair
can only ever match where one phrase stands in the caption and the other in the reference. With every pair left out that
does not stand in the texts, it starts in less than a second and gives the same counts. What decides is a phrase's
sequence of runs of letters and digits, because METEOR moves only what lies between them when it normalises a text: the
cut keeps a little too much and never too little. The table's index is made once a machine.
"""

import functools
import gzip
import html
import itertools
import os
import re
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rsvlm.content_cache import ContentCache
from rsvlm.files import read_json, whole_folder, write_array, write_json
from rsvlm.scoring.java_metrics import ATTEMPTS, LINE_BREAKS, kept_answers, pycocoevalcap_folder, run_java

PROGRAM = "meteor-1.5 -l en -norm"
METEOR_SECONDS, METEOR_SECONDS_A_LINE = 300.0, 0.5
TABLE = Path("data") / "paraphrase-en.gz"
STATISTICS = 23
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75  # METEOR 1.5's parameters for English (Denkowski & Lavie 2014)
STAGE_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase
LINES_A_PROCESS = 300  # below, a second process costs more than it saves
BAR = " ||| "
RUNS = re.compile(rb"[0-9a-z\x80-\xff]+")
PLAIN = re.compile(rb"[0-9a-z\x80-\xff]+(?: [0-9a-z\x80-\xff]+)*")
CHUNK = 1 << 24  # bytes read at one time
TEXT, PLACES, ABOUT = "paraphrases.txt", "places.npy", "about.json"


def meteor_statistics(pairs: Sequence[tuple[str, Sequence[str]]], cache: ContentCache | None = None) -> np.ndarray:
    """(n, 23) float64: METEOR's counts for each tokenized caption against the reference that fits it best.

    Repeated references are sent once: they cannot change which reference fits best.

    Args:
        pairs: (caption, its references).
        cache: where counts are kept between calls; its folder also holds the paraphrase table's index.

    Raises:
        JavaNotFound: no Java runtime.
        RuntimeError: METEOR died or hung twice at the same caption; holds the caption and what it said.
    """
    lines = [_meteor_line(caption, references) for caption, references in pairs]
    known = kept_answers(PROGRAM, lines, cache, lambda new: _ask_meteor(new, cache.folder if cache else None))
    counts = np.array([known[line].split() for line in lines], dtype=np.float64).reshape(len(lines), STATISTICS)
    # Word for word the same: METEOR does not count this as a piece, nor in a corpus's sum
    whole = (counts[:, 20] == 1) & (counts[:, 21:23] == counts[:, :2]).all(axis=1)
    counts[whole, 20] = 0
    return counts


def meteor_score(statistics: np.ndarray) -> np.ndarray:
    """(...) METEOR scores of (..., 23) counts of one caption, or summed over a corpus. No match scores 0.

    The formula of METEOR 1.5 (Denkowski & Lavie 2014, section 2), written out so that a corpus can be resampled
    without asking Java again. Counts: lengths and function words of caption and reference, then for each of four
    stages the matched content and function words of both, then chunks and matched words of both.
    """
    length, reference_length, function, reference_function = np.moveaxis(statistics[..., :4], -1, 0)
    stages = statistics[..., 4:20].reshape(*statistics.shape[:-1], 4, 4)  # (..., stage, content/function of both)
    content, reference_content, functions, reference_functions = np.moveaxis(stages, -1, 0) @ STAGE_WEIGHTS
    chunks, matched, reference_matched = np.moveaxis(statistics[..., 20:23], -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = (DELTA * content + (1 - DELTA) * functions) / (DELTA * (length - function) + (1 - DELTA) * function)
        recall = (DELTA * reference_content + (1 - DELTA) * reference_functions) / (
            DELTA * (reference_length - reference_function) + (1 - DELTA) * reference_function
        )
        mean = 1 / ((1 - ALPHA) / precision + ALPHA / recall)
        fragmentation = chunks / ((matched + reference_matched) / 2)
        score = mean * (1 - GAMMA * fragmentation**BETA)
    return np.where(np.isfinite(score), score, 0.0)


def _meteor_line(caption: str, references: Sequence[str]) -> str:
    """METEOR's question. Its separator cannot be part of a text (pycocoevalcap takes it out of the caption too)."""
    texts = [*dict.fromkeys(references), caption]
    return BAR.join(["SCORE", *(LINE_BREAKS.sub(" ", text).replace("|||", "").replace("  ", " ") for text in texts)])


def _ask_meteor(lines: list[str], folder: Path | None) -> list[str]:
    """METEOR's 23 counts for each line, from two processes side by side where that is worth it."""
    own = pycocoevalcap_folder() / "meteor"
    with tempfile.TemporaryDirectory(prefix="rsvlm-meteor-") as scratch:
        table = own / TABLE  # the default, but found in a folder with a space in its name too
        if folder is not None:
            table = Path(scratch) / TABLE.name
            texts = {text for line in lines for text in line.split(BAR)[1:]}
            write_cut(load_index(own / TABLE, folder / "paraphrases"), texts, table)
        parts = max(1, min(2, os.cpu_count() or 1, len(lines) // LINES_A_PROCESS))
        with ThreadPoolExecutor(parts) as pool:
            answers = list(pool.map(lambda start: _ask_one_meteor(lines[start::parts], own, table), range(parts)))
    merged = [""] * len(lines)
    for start, part in enumerate(answers):
        merged[start::parts] = part
    return merged


def _ask_one_meteor(lines: list[str], own: Path, table: Path) -> list[str]:
    """One process's answers; it is started again behind what it has answered when it dies or hangs."""
    arguments = ("-Xmx2G", "-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm", "-a", str(table))
    answers: list[str] = []
    failures = 0
    while len(answers) < len(lines):
        rest = lines[len(answers) :]
        text = "".join(f"{line}\n" for line in rest).encode("utf-8", "replace")
        done = run_java(*arguments, folder=own, seconds=METEOR_SECONDS + METEOR_SECONDS_A_LINE * len(rest), text=text)
        whole = done.output.decode("utf-8", "replace").split("\n")[:-1]  # a line without an end may be half of one
        good = list(itertools.takewhile(lambda line: len(line.split()) == STATISTICS, whole[: len(rest)]))
        failures = 1 if good else failures + 1
        answers += good
        if len(answers) < len(lines) and failures >= ATTEMPTS:
            stuck = lines[len(answers)][len("SCORE") :][:200]
            raise RuntimeError(f"METEOR failed {ATTEMPTS} times at {stuck!r}: {done.failure or 'it gave no counts'}")
    return answers


class ParaphraseIndex(NamedTuple):
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
    with table.open("rb") as file:
        checksum = functools.reduce(
            lambda known, block: zlib.crc32(block, known), iter(lambda: file.read(CHUNK), b""), 0
        )
    stamp = {"bytes": table.stat().st_size, "crc32": checksum}
    about = read_json(folder / ABOUT) if (folder / ABOUT).is_file() else {}
    if not isinstance(about, dict) or {key: about.get(key) for key in stamp} != stamp:
        _make_index(table, folder, stamp)
        about = read_json(folder / ABOUT)
    checksums, starts, ends = np.load(folder / PLACES).T
    text = np.memmap(folder / TEXT, dtype=np.uint8, mode="r")
    return ParaphraseIndex(text, checksums.astype(np.uint32), starts, ends, about["longest"])


def write_cut(index: ParaphraseIndex, texts: Iterable[str], target: Path) -> int:
    """How many pairs of phrases that can occur in the texts were written to ``target``, in METEOR's form."""
    keys = _runs_in(texts, index.longest)
    wanted = np.array(sorted({zlib.crc32(key) for key in keys}), dtype=np.uint32)
    groups = np.flatnonzero(np.isin(index.checksums, wanted))
    groups = groups[np.argsort(index.starts[groups], kind="stable")]  # the table's order
    kept = []
    for start, end in zip(index.starts[groups].tolist(), index.ends[groups].tolist()):
        lines = index.text[start:end].tobytes().split(b"\n")
        if _runs_of(lines[1]) in keys:  # another phrase may have the same checksum
            entries = (lines[at : at + 3] for at in range(0, len(lines) - 2, 3))
            kept += [b"\n".join(entry) for entry in entries if _runs_of(entry[2]) in keys]
    target.write_bytes(gzip.compress(b"".join(entry + b"\n" for entry in kept), 1, mtime=0))
    return len(kept)


def _runs_in(texts: Iterable[str], longest: int) -> set[bytes]:
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


def _runs_of(phrase: bytes) -> bytes:
    """The phrase's runs of letters and digits, one space between them."""
    return phrase if PLAIN.fullmatch(phrase) else b" ".join(RUNS.findall(phrase.lower()))


def _make_index(table: Path, folder: Path, stamp: dict) -> None:
    """The table as plain text, and a checksum and a place for each phrase in it."""
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
                    key = _runs_of(phrase)
                    longest = max(longest, key.count(b" ") + 1)
                    places.append((zlib.crc32(key), offset, end))
                    offset = end
        if rest or not places:
            raise ValueError(f"{table}: not a paraphrase table of METEOR (three lines an entry)")
        array = np.array(places, dtype=np.int64)
        write_array(scratch / PLACES, array[np.argsort(array[:, 0], kind="stable")])
        write_json(scratch / ABOUT, stamp | {"longest": longest, "groups": len(places)})
