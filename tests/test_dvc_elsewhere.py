"""Results to and from a DVC remote, and experiments in DVC's queue: the README's commands on a small repository."""

import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_layout import git, toy_repository

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
BEYOND = README.partition("## Beyond one machine")[2].partition("\n## ")[0]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def run_dvc(*arguments: str) -> subprocess.CompletedProcess:
    """A command in a process of its own: ``queue start`` forks, and a fork of this process, with its threads, may hang."""
    return subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )


def dvc(*arguments: str) -> str:
    done = run_dvc(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def as_written(start: str) -> list[list[str]]:
    """The commands of the README's line that starts so, word by word."""
    (line,) = [line for line in BEYOND.splitlines() if line.startswith(start)]
    return [shlex.split(command)[1:] for command in line.partition("#")[0].split("&&")]


def test_results_go_to_a_remote_and_come_back(tmp_path, monkeypatch):
    root = tmp_path / "study"
    toy_repository(root, monkeypatch)
    made = (root / "headline.json").read_bytes()
    add, push = as_written("dvc remote add")
    assert "--local" in add, "where results are kept is the machine's affair, not the repository's"
    dvc(*add)
    dvc(*push)
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file() and path.read_bytes() == made]
    assert git(root, "status", "--porcelain") == ""
    shutil.rmtree(root / ".dvc" / "cache")
    (root / "headline.json").unlink()
    (pull,) = as_written("dvc pull")
    dvc(*pull)
    assert (root / "headline.json").read_bytes() == made
    shutil.rmtree(tmp_path / "store")
    shutil.rmtree(root / ".dvc" / "cache")
    (root / "headline.json").unlink()
    nowhere = run_dvc(*pull)
    assert nowhere.returncode != 0 and "headline.json" in nowhere.stderr, "what is nowhere is an error, not silence"


def test_queued_experiments_run_behind_each_other(tmp_path, monkeypatch):
    root = tmp_path / "study"
    before = toy_repository(root, monkeypatch)
    (queue,) = as_written("dvc exp run --queue")
    dvc(*queue)
    dvc("exp", "run", "--queue", "-n", "more", "-S", "adapt_encoder.epochs=7")
    (start,) = as_written("dvc queue start")
    dvc(*start)
    try:
        deadline, said = time.monotonic() + 300, ""
        while said.count("Success") < 2 and time.monotonic() < deadline:
            time.sleep(1)
            said = dvc("queue", "status")
            assert "Failed" not in said, said
        assert said.count("Success") == 2, said
    finally:
        dvc("queue", "stop", "--kill")
    assert (root / "params.yaml").read_text() == before and json.loads((root / "headline.json").read_text())[
        "epochs"
    ] == 2
    name = queue[queue.index("-n") + 1]
    (rank,) = [word.partition("lora_rank=")[2] for word in queue if "lora_rank" in word]
    dvc("exp", "apply", name)
    assert json.loads((root / "headline.json").read_text()) == {"epochs": 2, "rank": int(rank)}
