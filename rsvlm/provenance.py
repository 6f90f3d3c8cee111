"""Where a number comes from: code, packages, machine and seed."""

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

from rsvlm import paths

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
    package = Path(__file__).parent
    for path in sorted(package.rglob("*.py")):
        digest.update(f"rsvlm/{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    for path in sorted(paths.NOTEBOOKS.glob("*.ipynb")):
        digest.update(f"{path.name}\0{_source_of(path)}\0".encode())
    return digest.hexdigest()


def git_commit() -> str | None:
    """The commit that is checked out at the project's root, None without git or before the first commit."""
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=paths.ROOT, capture_output=True, text=True, timeout=20)
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
