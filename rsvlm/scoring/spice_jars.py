"""Get the jars that SPICE needs and no Python package carries: ``python -m rsvlm.scoring.spice_jars``.

The only part of the study that asks the network by itself, and only when it is run by hand (`make spice`). Each file
comes from Maven's central repository and must have the checksum that stands here; what is there already is kept.
CoreNLP is under the GPL 3, Rhino under the MPL 2.
"""

import argparse
import hashlib
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rsvlm import paths
from rsvlm.files import whole_file

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
    parser.add_argument("folder", nargs="?", type=Path, default=paths.ROOT / FOLDER, help=f"default: {FOLDER}")
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
