"""Real disks that are full or read-only: what is there opens, all else says in one line where it stopped and what to do."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from browse_case import build_study
from test_browse import root, talk_to  # noqa: F401
from test_run_notebook import SECTION, run, toy  # noqa: F401

from rsvlm.data.table import load_table
from rsvlm.models.features import encode_images
from rsvlm.models.index import build_index
from rsvlm.models.zoo import load_encoder
from rsvlm.study import paths
from rsvlm.study.paths import finished_study
from rsvlm.viewing.widgets import CaptionGallery

FILLS = "from pathlib import Path\nfrom rsvlm.files import whole_file\nwith whole_file(Path('data.bin')) as file: file.write_bytes(bytes(10**7))"


@contextmanager
def mounted(place: Path, *options: list[str]) -> Iterator[None]:
    """With these mounts at a place; skips aloud where this user may not mount."""
    for number, own in enumerate(options):
        done = subprocess.run(["mount", *own, str(place)], capture_output=True, text=True)
        if done.returncode:
            if number:
                subprocess.run(["umount", place], check=True)
            pytest.skip(f"no mounts here, so full and read-only disks are not tested: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def read_only(place: Path):
    return mounted(place, ["--bind", str(place)], ["-o", "remount,ro,bind"])


def test_a_read_only_study_is_browsed_and_a_mark_says_why_it_is_not_kept(root, tmp_path, monkeypatch):  # noqa: F811
    build_study(root, scored=True)
    monkeypatch.setenv("RSVLM_CACHE", str(tmp_path / "of the user"))
    with read_only(root):
        gallery = CaptionGallery(finished_study(), split="test")
        ask = talk_to(gallery)
        answer = ask("pictures", image_ids=["s/0.png", "s/1.png"])
        assert set(answer["pictures"]) == {"s/0.png", "s/1.png"} and not answer["broken"]
        mark = {"image_id": "s/0.png", "run": "captioner", "kind": "good", "on": 1, "key": "a"}
        error = ask("mark", mark=mark)
        assert (
            error.startswith(f"{root}/user") and ": the disk is read-only; change that, or work on a copy" in error
        ), error


def test_an_index_on_a_read_only_disk_is_searched(root, tmp_path):  # noqa: F811
    rows = build_study(root)
    build_index(load_encoder(str(paths.ENCODER)), [Path(row["path"]) for row in rows]).save(root / "index")
    settings = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    with read_only(root):
        command = [sys.executable, "-m", "rsvlm", "search", "index", "a river", "--encoder", str(paths.ENCODER)]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, env=settings)
        assert done.returncode == 0 and len(done.stdout.splitlines()) > 1, done.stderr
        done = subprocess.run([*command, "--out", "found.csv"], cwd=root, capture_output=True, text=True, env=settings)
        line = done.stderr.strip().splitlines()[-1]
        assert done.returncode == 1 and line.startswith("rsvlm: found.csv: ") and "cannot be written to" in line


def test_a_stage_of_a_read_only_project_says_so_in_a_line(run, scratch_root):  # noqa: F811
    run.prepare(toy("1"), SECTION)
    with read_only(scratch_root):
        done = subprocess.run(run.command, cwd=scratch_root, capture_output=True, text=True)
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 1 and line.startswith("[toy] ") and ": the disk is read-only; change that" in line


@pytest.mark.parametrize("megabytes", [0, 2])
def test_a_full_disk_ends_a_stage_with_a_line_and_the_next_run_goes_on(run, scratch_root, megabytes):  # noqa: F811
    place = scratch_root.with_name("small")
    place.mkdir()
    with mounted(place, ["-t", "tmpfs", "-o", "size=8m", "tmpfs"]):
        kept = place / "kept"
        scratch = place / "a root"
        settings = os.environ | {"RSVLM_ROOT": str(scratch)}
        run.prepare(toy(FILLS), SECTION)
        scratch.mkdir()
        subprocess.run(["cp", "-a", *map(str, scratch_root.iterdir()), str(scratch)], check=True)
        kept.write_bytes(bytes(os.statvfs(place).f_bavail * 4096 - megabytes * 10**6))
        done = subprocess.run(run.command, cwd=scratch, capture_output=True, text=True, env=settings)
        line = done.stderr.strip().splitlines()[-1]
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        assert line.startswith("[toy] ") and f"{scratch}" in line and ": the disk is full: " in line, line
        assert " are free; make room, then `dvc repro` again: finished stages are kept" in line
        assert not (scratch / "data.bin").exists() and not list(scratch.glob(".data*"))
        kept.unlink()
        subprocess.run(["mount", "-o", "remount,size=40m", str(place)], check=True)
        done = subprocess.run(run.command, cwd=scratch, capture_output=True, text=True, env=settings)
        assert done.returncode == 0 and (scratch / "data.bin").stat().st_size == 10**7, done.stderr


def test_encoding_onto_a_disk_that_is_too_small_says_what_is_needed(root, tmp_path, monkeypatch):  # noqa: F811
    build_study(root)
    place = tmp_path / "small"
    place.mkdir()
    with mounted(place, ["-t", "tmpfs", "-o", "size=12k", "tmpfs"]):
        monkeypatch.setenv("RSVLM_CACHE", str(place))
        with pytest.raises(OSError, match=r"features of 8 images need \d+\.\d kB, [\d.]+ k?B are free"):
            encoder = load_encoder("random:clip")
            encode_images(encoder, load_table(paths.IMAGE_TABLE), tmp_path / "out", grid=3, precision="fp32")
