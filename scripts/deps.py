"""Writes the modules that each stage of dvc.yaml depends on: what its notebook imports, and what that imports.

``python scripts/deps.py`` after an import changed; ``--check`` writes nothing and exits with 1 when something differs.
Data, notebooks and outs in dvc.yaml are written by hand.
"""

import argparse
import ast
import json
import sys
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
# A change of these never makes a stage run again: they decide how a notebook is run and where its files lie, not what
# is in them. (A folder that moves changes dvc.yaml itself, a setting changes params.yaml: they do.)
NEVER = (
    "rsvlm/__init__.py",
    "rsvlm/cluster.py",
    "rsvlm/disks.py",
    "rsvlm/files.py",
    "rsvlm/progress.py",
    "rsvlm/settings/",
    "rsvlm/study/",
)
# A change of a plot must not train again: the figures in these stages' notebooks are drawn anew when they next run.
EXPENSIVE = {"adapt_encoder", "encode_images", "finetune_lora", "generate_captions", "run_model"}
PICTURES = "rsvlm/viewing/"


def stages() -> dict[str, str]:
    """Stage -> name of its notebook, for the stages that dvc.yaml runs, in its order."""
    notebooks = _load()["stages"]["strip"]["foreach"]
    return {name.split("_", 1)[1]: name for name in notebooks}


def imported_modules(source: str) -> set[str]:
    """Files under ``rsvlm/`` that a piece of Python imports, wherever in it, relative to the root."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise ValueError(f"relative import in line {node.lineno}: write `from rsvlm... import`")
    return {file for name in names if name.split(".")[0] == "rsvlm" for file in _files_of(name)}


def needed_modules(stage: str) -> list[str]:
    """Every module whose change makes a stage run again, sorted."""
    cells = json.loads((ROOT / "notebooks" / f"{stages()[stage]}.ipynb").read_text(encoding="utf-8"))["cells"]
    todo = {file for cell in cells if cell["cell_type"] == "code" for file in imported_modules(_plain(cell["source"]))}
    found: set[str] = set()
    while todo:
        file = todo.pop()
        found.add(file)
        if not file.startswith(NEVER) and not (stage in EXPENSIVE and file.startswith(PICTURES)):
            todo |= imported_modules((ROOT / file).read_text(encoding="utf-8")) - found
    found = {file for file in found if not file.startswith(NEVER) and not _is_bare(ROOT / file)}
    if stage in EXPENSIVE:
        found = {file for file in found if not file.startswith(PICTURES)}
    # What a module reads from files beside it, facts and templates, is as much its code as itself.
    return sorted(found | {beside for file in found for beside in _files_beside(ROOT / file)})


def named_places(stage: str) -> set[str]:
    """Names of rsvlm.study.paths (``FEATURES``, ...) that a stage's notebook uses: no other module knows a place."""
    cells = json.loads((ROOT / "notebooks" / f"{stages()[stage]}.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = [_plain(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    names = set()
    for node in (node for source in sources for node in ast.walk(ast.parse(source))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "places":
            names.add(node.attr)
    return {name for name in names if name.isupper()}


def listed_modules(stage: str) -> list[str]:
    """The modules that dvc.yaml lists for a stage, in its order."""
    body = _load()["stages"][stage]
    return [dep for dep in body.get("do", body)["deps"] if dep.startswith("rsvlm/")]


def disagreements() -> list[str]:
    """What has to change in dvc.yaml, one line a stage; empty when it agrees with the imports."""
    lines = []
    for stage, notebook in stages().items():
        if not (ROOT / "notebooks" / f"{notebook}.ipynb").is_file():
            lines.append(f"{stage}: notebooks/{notebook}.ipynb does not exist")
            continue
        needed, listed = set(needed_modules(stage)), set(listed_modules(stage))
        changes = [f"add {', '.join(sorted(needed - listed))}"] if needed - listed else []
        changes += [f"remove {', '.join(sorted(listed - needed))}"] if listed - needed else []
        if changes:
            lines.append(f"{stage}: {'; '.join(changes)}")
    return lines


def write() -> None:
    """Put the needed modules into dvc.yaml, after each stage's notebook; all else stays as it is."""
    path = ROOT / "dvc.yaml"
    known = {stage for stage, name in stages().items() if (ROOT / "notebooks" / f"{name}.ipynb").is_file()}
    lines, out, stage, in_deps = path.read_text(encoding="utf-8").splitlines(), [], None, False
    for line in lines:
        if line.startswith("  ") and not line.startswith("   ") and line.rstrip().endswith(":"):
            stage = line.strip().rstrip(":")
        if line.rstrip().endswith(":") and line.startswith("    ") and line[4:].strip()[0] not in "-#":
            in_deps = line.strip() == "deps:"
            indent = line.index(line.strip()) + 2
        if in_deps and line.strip().startswith("- rsvlm/") and stage in known:
            continue
        out.append(line)
        if in_deps and line.strip().startswith("- build/notebooks/") and stage in known:
            out += [f"{' ' * indent}- {file}" for file in needed_modules(stage)]
    path.write_text("\n".join(out) + "\n", encoding="utf-8")


def _load() -> dict:
    return YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))


def _files_of(name: str) -> set[str]:
    """The file of a dotted name and of the packages above it; nothing for a function inside a module."""
    files = set()
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        base = Path(*parts[:end])
        for candidate in (base.with_suffix(".py"), base / "__init__.py"):
            if (ROOT / candidate).is_file():
                files.add(candidate.as_posix())
    return files


def _files_beside(module: Path) -> set[str]:
    """The files that a module reads: those beside it that it names, and its room's templates where it speaks of them."""
    text, room = module.read_text(encoding="utf-8"), module.parent
    files = [path for path in room.iterdir() if path.suffix != ".py" and f'"{path.name}"' in text and path.is_file()]
    if "templates" in text:
        files += [path for path in (room / "templates").rglob("*") if path.is_file()]
    return {path.relative_to(ROOT).as_posix() for path in files}


def _plain(source: str | list[str]) -> str:
    """A cell's source without IPython's own lines."""
    return "\n".join(line for line in "".join(source).splitlines() if not line.lstrip().startswith(("%", "!")))


def _is_bare(path: Path) -> bool:
    """Whether a module holds nothing but its docstring."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body)


def main() -> int:
    """Write dvc.yaml, or say what differs."""
    parser = argparse.ArgumentParser(description="Write the modules each stage depends on into dvc.yaml.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when something differs")
    check = parser.parse_args().check
    if not check:
        write()
    lines = disagreements()
    print("\n".join(lines) or "dvc.yaml agrees with the imports")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
