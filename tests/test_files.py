"""Files that are whole or absent: what a killed process leaves beside them goes, what a living one writes stays."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rsvlm.files import whole_file, whole_folder, write_text

ROOT = Path(__file__).resolve().parents[1]
WRITES = """
import sys
from pathlib import Path
from rsvlm.files import whole_file, whole_folder

with whole_file(Path("table.csv")) as file, whole_folder(Path("index")) as folder:
    file.write_text("half")
    (folder / "half.npy").write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
"""


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob(".*.part"))


@pytest.fixture
def writer(tmp_path):
    """A process in the middle of its writing."""
    settings = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen([sys.executable, "-c", WRITES], cwd=tmp_path, env=settings, **pipes) as process:
        assert process.stdout.readline() == "writing\n"
        yield process
        process.kill()


def write(folder: Path, name: str) -> None:
    """As another command does, which writes one file there."""
    code = f"from pathlib import Path; from rsvlm.files import write_text; write_text(Path({name!r}), 'whole')"
    settings = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=settings, check=True)


def test_the_next_process_removes_what_a_killed_one_was_writing(writer, tmp_path):
    theirs = tmp_path / ".download.bin.part"
    theirs.write_text("goes on later")
    elsewhere = tmp_path / ".table.csv.1234567-0123abcd.part"  # of another machine, which shares the folder
    elsewhere.write_text("half")
    left = [one for one in parts(tmp_path) if one not in (theirs, elsewhere)]
    assert len(left) == 2 and sum(one.is_dir() for one in left) == 1
    write(tmp_path, "first.txt")
    assert set(left) < set(parts(tmp_path))  # its process lives
    writer.kill()
    writer.wait()
    assert set(left) < set(parts(tmp_path))
    write(tmp_path, "table.csv")
    assert parts(tmp_path) == sorted([theirs, elsewhere]) and (tmp_path / "table.csv").read_text() == "whole"


def test_what_fails_leaves_nothing(tmp_path):
    write_text(tmp_path / "a.txt", "before")
    with pytest.raises(ZeroDivisionError), whole_file(tmp_path / "a.txt") as file:
        file.write_text("half")
        1 / 0
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "folder"):
        1 / 0
    assert [one.name for one in tmp_path.iterdir()] == ["a.txt"] and (tmp_path / "a.txt").read_text() == "before"
