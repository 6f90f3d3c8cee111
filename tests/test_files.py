"""Files that are whole or absent: what a killed process leaves beside them goes, what a living one writes stays."""

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rsvlm.disks import check_free_space, disk_trouble
from rsvlm.files import InUse, only_process, whole_file, whole_folder, write_text

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


SWAPS = """
import os, signal, sys
from pathlib import Path
from rsvlm import files

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[1] != "exchange":
    files._exchange = lambda *_: False
done, rename = [], os.rename
def renaming(*names):
    if len(done) == int(sys.argv[2]):
        die()
    done.append(rename(*names))
os.rename = renaming
files.shutil.rmtree = lambda folder, **_: die() if Path(folder).exists() else None
with files.whole_folder(Path("index")) as made:
    (made / "a.txt").write_text("new")
"""


@pytest.mark.parametrize(
    ("how", "renames", "found"), [("exchange", 9, "new"), ("two", 0, "old"), ("two", 1, None), ("two", 2, "new")]
)
def test_a_kill_at_any_moment_leaves_the_old_folder_or_the_new_one(tmp_path, how, renames, found):
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "a.txt").write_text("old")
    settings = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", SWAPS, how, str(renames)], cwd=tmp_path, env=settings)
    assert done.returncode == -signal.SIGKILL
    if found:
        assert (tmp_path / "index" / "a.txt").read_text() == found
    write(tmp_path, "other.txt")  # the next process that writes there puts back and sweeps
    assert (tmp_path / "index" / "a.txt").read_text() == (found or "old")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["index", "other.txt"]


def test_a_second_process_is_told_who_works_there(tmp_path):
    lock = tmp_path / "a.lock"
    code = (
        "import sys; from pathlib import Path; from rsvlm.files import only_process\n"
        "with only_process(Path(sys.argv[1]), 'index/'): print('in', flush=True); sys.stdin.read()"
    )
    settings = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen([sys.executable, "-c", code, str(lock)], env=settings, **pipes) as first:
        first.stdout.readline()
        told = rf"^index/: another process is at it \(process {first.pid}, since \d{{4}}-.*Wait for its end, or end it \(`kill"
        with pytest.raises(InUse, match=told), only_process(lock, "index/"):
            pass
        first.kill()
    with only_process(lock, "index/"):
        assert lock.read_text().startswith(f"{os.getpid()} ")
    assert list(tmp_path.iterdir()) == []


def test_a_full_or_closed_disk_is_told_in_one_line_with_its_path(tmp_path):
    free = r"[\d.,]+ \w?B of [\d.,]+ \w?B are free"
    for told, said in (
        (
            str(OSError(errno.ENOSPC, "No space left on device", "/a/b.npy")),
            rf"/a/b\.npy: the disk is full: {free}; make room",
        ),
        (
            "Error while serializing: I/O error: No space left on device (os error 28)",
            rf"{tmp_path}: the disk is full: {free}",
        ),
        ("database or disk is full", f"{tmp_path}: the disk is full"),
        (str(OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "/a/b")), "/a/b: the quota of the disk is used up"),
        (str(OSError(errno.EROFS, os.strerror(errno.EROFS), "/a/b")), "/a/b: the disk is read-only; change that"),
        (str(OSError(errno.EACCES, os.strerror(errno.EACCES), "/a/b")), "/a/b: you may not write there"),
    ):
        line = disk_trouble(told, tmp_path)
        assert re.match(said, line) and "\n" not in line
    assert disk_trouble("KeyError: 'a/b'", tmp_path) is None
    with pytest.raises(OSError, match="tables need ") as raised:
        check_free_space(tmp_path / "not" / "there", 10**15, "tables")
    assert "tables need 1,000,000.0 GB, " in disk_trouble(str(raised.value), tmp_path)
    with pytest.raises(OSError) as raised, whole_file(tmp_path / "a.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")  # as libraries raise it, without a path
    assert disk_trouble(str(OSError(errno.EROFS, os.strerror(errno.EROFS), "a.csv")), tmp_path).startswith("a.csv: ")
    assert raised.value.filename == str(tmp_path / "a.txt")
