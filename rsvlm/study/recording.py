"""A finished run, recorded for git with where its numbers come from: code, packages, machine and seed.

Record a finished run for git: ``python -m rsvlm.study.recording NAME`` copies its results to ``results/NAME/``.
"""

import argparse
import base64
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
from PIL import Image

from rsvlm.disks import told_in_a_line
from rsvlm.files import fingerprint_file, read_json, whole_folder, write_json, write_text
from rsvlm.study import paths

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "tokenizers",
    "numpy",
    "pandas",
    "pillow",
    "pycocoevalcap",
    "faiss-cpu",
    "faiss-gpu",
)


def provenance(seed: int | None, device: str) -> dict:
    """What a result depends on, the same at every run with the same code on the same machine.

    Args:
        seed: the run's seed, None where nothing is random.
        device: "cpu" or a torch device name such as "cuda:0".

    Returns:
        seed, device, device_name, threads, python, platform, packages (name -> version), code (fingerprint of the
        package and the notebooks), git_commit (None outside git).
    """
    return {
        "seed": seed,
        "device": device,
        "device_name": device_name(device),
        "threads": thread_count(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": package_versions(),
        "code": code_fingerprint(),
        "git_commit": git_commit(),
    }


def package_versions() -> dict[str, str]:
    """Versions of the installed packages that numbers depend on."""
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # optional: faiss comes in one of two packages
    return installed


def code_fingerprint() -> str:
    """SHA-256 over the package's modules and the notebooks' sources, as hex."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(f"rsvlm/{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    for path in sorted(paths.NOTEBOOKS.glob("*.ipynb")):
        digest.update(f"{path.name}\0{_source_of(path)}\0".encode())
    return digest.hexdigest()


def git_commit() -> str | None:
    """The commit that is checked out at the project's root, None without git or before the first commit."""
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=paths.ROOT, capture_output=True, text=True, timeout=20
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def thread_count() -> int:
    """CPU threads that torch computes with; the usable cores where torch is not loaded."""
    if "torch" in sys.modules:
        return sys.modules["torch"].get_num_threads()
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_name(device: str) -> str:
    """The processor's or the GPU's name."""
    if device.startswith("cuda"):
        import torch  # only here: provenance itself needs no torch

        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _source_of(path: Path) -> str:
    """The cells' sources alone: a notebook that was run in JupyterLab is still the same code."""
    cells = json.loads(path.read_text(encoding="utf-8")).get("cells", [])
    return "\0".join("".join(cell["source"]) for cell in cells)


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
LARGE = 150_000  # bytes of a picture in a notebook


def record_run(name: str) -> Path:
    """The folder results/NAME, after metrics.json, table.md, params.yaml, provenance.json and the executed notebooks were
    put there, whole; and the leaderboard, where other models were measured.

    In the notebooks large pictures become JPEG, as git keeps every record for good, and paths start from the root. An earlier record of the same name is replaced; git has it.

    Raises:
        ValueError: the name is no plain folder name, or the metrics hold no provenance.
        FileNotFoundError: a file of the run is missing; names it.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r}: a record's name may hold letters, digits, - and _ only")
    sources = {
        "metrics.json": paths.REPORTS / "metrics.json",
        "table.md": paths.TABLES / "comparison.md",
        "params.yaml": paths.PARAMS,
    } | {f"notebooks/{path.name}": path for path in sorted(paths.EXECUTED.glob("*.ipynb"))}
    board = paths.LEADERBOARD / "leaderboard.json"
    if board.is_file() and read_json(board)["models"]:
        sources |= {path.name: path for path in (board, board.with_suffix(".md"))}
    scenes = (paths.METRICS / f"search_{what}.json" for what in ("earth", "mosaics"))  # not in the study's own table
    beside = (paths.METRICS / f"score_{what}.json" for what in ("languages", "instructions"))
    sources |= {path.name: path for path in (*scenes, *beside) if path.is_file()}
    for path in sources.values():
        if not path.is_file():
            raise FileNotFoundError(f"{path}: nothing to record; run the study first (`make study`)")
    metrics = read_json(sources["metrics.json"])
    if not isinstance(metrics, dict) or not isinstance(metrics.get("provenance"), dict):
        raise ValueError(f"{sources['metrics.json']}: no provenance; run the stage compare_with_paper again")
    if metrics.get("tries"):
        raise ValueError(
            f"{sources['metrics.json']}: made by hand in {', '.join(metrics['tries'])}; only the study is recorded (`make study`)"
        )
    details = {path.stem: fingerprint_file(path) for path in sorted(paths.METRICS.glob("*.json"))}
    with whole_folder(paths.RESULTS / name) as folder:
        for target, path in sources.items():
            (folder / target).parent.mkdir(exist_ok=True)
            if path.suffix == ".ipynb":
                write_text(folder / target, recorded_text(nbformat.read(path, as_version=4), paths.ROOT))
            else:
                shutil.copyfile(path, folder / target)
        files = {target: fingerprint_file(folder / target) for target in sources}
        write_json(
            folder / "provenance.json", metrics["provenance"] | {"sha256": files, "stage_metrics_sha256": details}
        )
    return paths.RESULTS / name


def recorded_text(notebook: nbformat.NotebookNode, root: Path) -> str:
    """A notebook as a record has it: ``slim_pictures``, and paths below ``root``, which lies elsewhere for others, from there."""
    return nbformat.writes(slim_pictures(notebook)).replace(f"{json.dumps(str(root))[1:-1]}/", "") + "\n"


def slim_pictures(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook with JPEG in place of each PNG above ``LARGE`` that it makes smaller: figures full of photographs."""
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        data = output.get("data", {})
        png = base64.b64decode(data.get("image/png", ""))
        if len(png) <= LARGE:
            continue
        jpeg = io.BytesIO()
        Image.open(io.BytesIO(png)).convert("RGB").save(jpeg, "JPEG", quality=85, optimize=True)
        if len(jpeg.getvalue()) < len(png):
            del data["image/png"]
            data["image/jpeg"] = base64.b64encode(jpeg.getvalue()).decode()
    return notebook


@told_in_a_line
def main() -> int:
    """Record the run in place under the name on the command line; 0 when it was copied."""
    parser = argparse.ArgumentParser(description="Copy the finished run's results to results/NAME.")
    parser.add_argument("name", help="such as ucm_cpu")
    print(f"recorded in {record_run(parser.parse_args().name)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
