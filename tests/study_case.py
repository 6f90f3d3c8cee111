"""A copy of the project in which a shipped study runs, and what DVC says of it, shared by the tests of whole studies."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rsvlm.study.studies import study_text

ROOT = Path(__file__).resolve().parents[1]
LEFT_BEHIND = {
    ".git",
    ".venv",
    ".rsvlm",
    "build",
    "models",
    "reports",
    "dvc_plots",
    "results",
    "scratch",
    "dvc.lock",
    ".pytest_cache",
}


def dvc(root: Path, *arguments: str, **environment: str) -> str:
    """What a dvc command says; fails with it when the command does."""
    names = {
        "GIT_AUTHOR_NAME": "a",
        "GIT_COMMITTER_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@example.org",
        "GIT_COMMITTER_EMAIL": "a@example.org",
    }
    settings = os.environ | names | {"DVC_NO_ANALYTICS": "1"} | environment
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=root, capture_output=True, text=True, env=settings
    )
    assert done.returncode == 0, f"dvc {' '.join(arguments)}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    return done.stdout + done.stderr


@contextmanager
def copy_with_study(root: Path, study: str) -> Iterator[Path]:
    """``root`` as a copy of the project without git, results and data of stages, with a study in place; nothing ran."""

    def ignore(folder: str, names: list[str]) -> set[str]:
        place = Path(folder).relative_to(ROOT)
        if place == Path("."):
            return LEFT_BEHIND & set(names)
        drop = {"__pycache__", ".ipynb_checkpoints"} & set(names)
        if place == Path("data"):
            drop = set(names) - {"raw", "models"}
        if place == Path("data/models"):
            drop = set(names) - {"README.md"}
        if place in (Path("user/captions"), Path("user/embeddings")):
            drop = set(names) - {"README.md"}
        if place == Path(".dvc"):
            drop = {"tmp", "cache", "config.local"} & set(names)
        return drop

    shutil.copytree(ROOT, root, ignore=ignore)
    (root / "params.yaml").write_text(study_text(study), encoding="utf-8")
    (root / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RSVLM_ROOT", str(root))
        patch.setenv("PYTHONPATH", str(root))
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        yield root
