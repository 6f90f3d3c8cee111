"""The library works anywhere: it knows no study, imports outside a project, and keeps its copies where it is told."""

import ast
import graphlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rsvlm.data.aggregate import aggregate_sources
from rsvlm.data.table import load_table, save_table
from rsvlm.files import cache_folder, write_json_lines
from rsvlm.models.feature_shards import fingerprint_images
from rsvlm.viewing.caption_gallery import write_caption_gallery
from rsvlm.viewing.records import StudyFiles

PROJECT = Path(__file__).resolve().parents[1]
PACKAGE = PROJECT / "rsvlm"
# The command has a door to both the library and the study
LIBRARY = sorted(path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] not in ("study", "cli"))
ROOMS = (
    "settings",
    "kernels",
    "data",
    "models",
    "training",
    "scoring",
    "scenes",
    "viewing",
    "study",
    "cli",
)  # from the lowest up
OPTIONAL = {"triton"}  # no wheels for every machine; all else that the modules import at their heads is installed
IMPORT_ALL = """
import importlib, json, pkgutil, rsvlm
missing, bad = {}, {}
for module in pkgutil.walk_packages(rsvlm.__path__, "rsvlm."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        missing[module.name] = error.name
    except Exception as error:
        bad[module.name] = repr(error)
print(json.dumps([missing, bad]))
"""


def imported(path: Path, types: bool = True) -> set[str]:
    """Every dotted name that a module imports, inside functions too; ``types``: also under TYPE_CHECKING."""
    names = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if not types:
        tree.body = [
            one for one in tree.body if not (isinstance(one, ast.If) and "TYPE_CHECKING" in ast.unparse(one.test))
        ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: line {node.lineno}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("import_module", "importlib.import_module"):
            names |= {one.value for one in node.args if isinstance(one, ast.Constant)}
    return names


def outside(tmp_path: Path, *command: str) -> subprocess.CompletedProcess:
    """Python, run in an empty folder with the package installed elsewhere: no project above either, none named."""
    site, empty = tmp_path / "site", tmp_path / "empty"
    if not site.is_dir():
        shutil.copytree(PACKAGE, site / "rsvlm", ignore=shutil.ignore_patterns("__pycache__"))
        empty.mkdir()
    settings = {key: value for key, value in os.environ.items() if key != "RSVLM_ROOT"}
    settings |= {"PYTHONPATH": str(site), "RSVLM_CACHE": str(tmp_path / "cache")}
    return subprocess.run([sys.executable, *command], cwd=empty, env=settings, capture_output=True, text=True)


def test_no_module_of_the_library_imports_the_study():
    assert len(LIBRARY) > 50
    found = {
        path.relative_to(PROJECT).as_posix(): sorted(names)
        for path in LIBRARY
        if (names := {name for name in imported(path) if f"{name}.".startswith("rsvlm.study.")})
    }
    assert not found, "take the folder or file as an argument; rsvlm.study alone knows where a study has it"


def test_a_room_imports_only_from_rooms_below_it():
    """Imports inside functions count too; what only a type checker reads does not."""
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(ROOMS)
    found = {}
    for number, room in enumerate(ROOMS):
        above = tuple(f"rsvlm.{name}." for name in ROOMS[number + 1 :])
        for path in (PACKAGE / room).rglob("*.py"):
            names = [name for name in imported(path, types=False) if f"{name}.".startswith(above)]
            found |= {path.relative_to(PROJECT).as_posix(): names} if names else {}
    assert not found


def test_every_module_can_be_imported_outside_a_project(tmp_path):
    done = outside(tmp_path, "-c", IMPORT_ALL)
    assert done.returncode == 0, done.stderr
    missing, bad = json.loads(done.stdout.splitlines()[-1])
    assert not bad
    allowed = {name for name in OPTIONAL if importlib.util.find_spec(name) is None}
    assert not {module: name for module, name in missing.items() if name not in allowed}
    assert not list((tmp_path / "empty").iterdir()) and not (tmp_path / "cache").exists(), "an import writes nothing"
    done = outside(tmp_path, "-c", "from rsvlm.study import paths; paths.FEATURES")
    assert "no dvc.yaml above" in done.stderr and "set RSVLM_ROOT" in done.stderr
    if missing:
        pytest.skip(f"not tried, for lack of {', '.join(sorted(set(missing.values())))}: {', '.join(sorted(missing))}")


def test_the_audit_works_in_any_folder(tmp_path):
    done = outside(tmp_path, "-m", "rsvlm.data", "audit", ".")
    assert done.returncode == 1 and "holds the annotations of no known source" in done.stderr
    done = outside(tmp_path, "-m", "rsvlm.data", "cards")
    assert done.returncode == 1 and done.stderr.startswith("data_cards: no such folder here"), done.stderr


def test_the_cache_is_where_it_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("RSVLM_CACHE", str(tmp_path / "named"))
    assert cache_folder() == tmp_path / "named"
    monkeypatch.setenv("RSVLM_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "rsvlm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "rsvlm"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working directory with pictures, their captions in a table, and no project above."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RSVLM_CACHE", str(tmp_path / "cache"))
    Path("pictures").mkdir()
    lines = ["image,caption_1,split"]
    for number, split in enumerate(("train", "train", "val", "test")):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"pictures/{number}.png")
        lines.append(f"{number}.png,Field {number}.,{split}")
    Path("own.csv").write_text("\n".join(lines))
    return tmp_path


def test_from_a_folder_of_pictures_to_a_gallery_without_a_project(folder):
    source = {"name": "own", "format": "caption_table", "annotations": "own.csv", "images": "pictures"}
    rows, report = aggregate_sources([source], data_root=".", find_same_ground=False, log=lambda line: None)
    assert {row["path"] for row in rows} == {f"pictures/{number}.png" for number in range(4)}
    here = StudyFiles()
    save_table(rows, here.table)
    (folder / "elsewhere").mkdir()
    table = load_table(here.table, folder / "elsewhere")
    assert table["path"].tolist()[0].startswith(str(folder / "elsewhere" / "pictures"))
    assert load_table(here.table)["path"].tolist()[0].startswith("pictures/")
    write_json_lines(here.generated / "captioner.jsonl", [{"image_id": "own/3.png", "caption": "A field."}])
    written = write_caption_gallery(Path("page.html"), here)
    assert written["page"] == "page.html" and written["images"] == 1
    made = {path.name.split(".")[0] for path in folder.iterdir()}
    assert made == {"pictures", "own", "images", "generated", "elsewhere", "page", "cache"}
    assert fingerprint_images(["pictures/0.png"]) == fingerprint_images([str(folder / "pictures/0.png")])


def test_modules_form_no_circle():
    """Imports inside functions count too; what only a type checker reads does not."""
    files = {".".join(path.relative_to(PROJECT).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}
    needs = {}
    for module, path in files.items():
        names = imported(path, types=False)
        own = {name for name in names if name in files} | {name.rpartition(".")[0] for name in names} & set(files)
        packages = {name.rpartition(".")[0] for name in names if name in files}  # from rsvlm.data import table
        needs[module] = own - packages - {module}
    graphlib.TopologicalSorter(needs).prepare()
