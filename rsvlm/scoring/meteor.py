"""METEOR 1.5: its counts from pycocoevalcap's jar, its score as a formula over them.

The counts of a caption and its references are kept by content, so Java runs only for pairs it has not met.
"""

import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from rsvlm.scoring.content_cache import ContentCache
from rsvlm.scoring.java import pycocoevalcap_folder, run_java
from rsvlm.scoring.paraphrases import load_index, write_cut
from rsvlm.scoring.tokens import LINE_BREAKS

PROGRAM = "meteor-1.5 -l en -norm"
TABLE = Path("data") / "paraphrase-en.gz"
STATISTICS = 23
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75  # METEOR 1.5's parameters for English (Denkowski & Lavie 2014)
STAGE_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase
SECONDS, SECONDS_A_LINE = 300.0, 0.5
ATTEMPTS = 2  # with the same caption first in line
LINES_A_PROCESS = 300  # below, a second process costs more than it saves
BAR = " ||| "

Pair = tuple[str, tuple[str, ...]]  # a tokenized caption and its tokenized references


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
    lines = [_line(caption, references) for caption, references in pairs]
    known = cache.find(PROGRAM, set(lines)) if cache else {}
    new = sorted(set(lines) - set(known))
    if new:
        made = dict(zip(new, _ask_all(new, cache.folder if cache else None), strict=True))
        if cache:
            cache.keep(PROGRAM, made)
        known |= made
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


def _line(caption: str, references: Sequence[str]) -> str:
    """METEOR's question. Its separator cannot be part of a text (pycocoevalcap takes it out of the caption too)."""
    texts = [*dict.fromkeys(references), caption]
    return BAR.join(["SCORE", *(LINE_BREAKS.sub(" ", text).replace("|||", "").replace("  ", " ") for text in texts)])


def _ask_all(lines: list[str], folder: Path | None) -> list[str]:
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
            answers = list(pool.map(lambda start: _ask(lines[start::parts], own, table), range(parts)))
    merged = [""] * len(lines)
    for start, part in enumerate(answers):
        merged[start::parts] = part
    return merged


def _ask(lines: list[str], own: Path, table: Path) -> list[str]:
    """One process's answers; it is started again behind what it has answered when it dies or hangs."""
    arguments = ("-Xmx2G", "-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm", "-a", str(table))
    answers: list[str] = []
    failures = 0
    while len(answers) < len(lines):
        rest = lines[len(answers) :]
        text = "".join(f"{line}\n" for line in rest).encode("utf-8", "replace")
        done = run_java(*arguments, folder=own, seconds=SECONDS + SECONDS_A_LINE * len(rest), text=text)
        whole = done.output.decode("utf-8", "replace").split("\n")[:-1]  # a line without an end may be half of one
        good = whole[: _first_bad(whole[: len(rest)])]
        failures = 1 if good else failures + 1
        answers += good
        if len(answers) < len(lines) and failures >= ATTEMPTS:
            stuck = lines[len(answers)][len("SCORE") :]
            raise RuntimeError(
                f"METEOR failed {ATTEMPTS} times at {stuck[:200]!r}: {done.failure or 'it gave no counts'}"
            )
    return answers


def _first_bad(lines: Sequence[str]) -> int:
    """The place of the first line that holds no counts; their number when all do."""
    return next((at for at, line in enumerate(lines) if len(line.split()) != STATISTICS), len(lines))
