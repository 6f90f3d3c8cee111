"""Real disks that are full or read-only: what is there opens, all else says in one line where it stopped and what to do."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import faiss
import numpy as np
import pytest
import rasterio
from browse_case import NOTEBOOKS, add_captioner, build_study, run_cells
from scene_case import UTM, green_with_red, write_raster
from test_browse import root, talk_to  # noqa: F401
from test_run_notebook import SECTION, run, toy  # noqa: F401

from rsvlm.data.rasters.writing import new_raster
from rsvlm.data.table import load_table
from rsvlm.disks import told_in_a_line
from rsvlm.files import whole_file, write_array, write_json, write_text
from rsvlm.models.faiss_tier import write_index
from rsvlm.models.feature_shards import encode_images
from rsvlm.models.index import build_index
from rsvlm.models.zoo import load_encoder
from rsvlm.study import pages, paths, strip, studies, summary
from rsvlm.study.paths import finished_study
from rsvlm.viewing.widgets import CaptionGallery

FILLS = "from pathlib import Path\nfrom rsvlm.files import whole_file\nwith whole_file(Path('data.bin')) as file: file.write_bytes(bytes(10**7))"


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process grows beyond so many bytes: a write ends as on a full disk, where no one may mount."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


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


def test_the_notebooks_that_only_look_run_to_their_end_in_a_read_only_project(
    root,  # noqa: F811
    tmp_path_factory,
    monkeypatch,
    capsys,
):
    build_study(root)
    add_captioner()
    monkeypatch.setenv("RSVLM_CACHE", str(tmp_path_factory.mktemp("of the user")))
    scene = write_raster(root / "a.tif", green_with_red(200, 120, 96, 32, 32), crs="EPSG:32633", transform=UTM)
    with read_only(root):
        assert len(run_cells("90_browse")["talk"].turns) == 3
        run_cells("91_scenes", scene=str(scene), window=64)
        told = capsys.readouterr().out.splitlines()
        assert "scratch/91_scenes/places.geojson and similarity.tif: not written, the project is read-only" in told
    assert not (root / "scratch").exists()


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


def test_a_read_only_project_says_what_it_found_and_in_a_line_why_nothing_is_written(root, monkeypatch, capsys):  # noqa: F811
    shutil.copytree(NOTEBOOKS.parent / "params", root / "params")
    shutil.copytree(NOTEBOOKS, root / "notebooks")
    rows = ["task,source,name,kind,metric,value,low,high", "captions,s,captioner,this study,CIDEr,1.5,1.4,1.6"]
    write_text(paths.TABLES / "comparison.csv", "\n".join(rows))
    write_json(paths.REPORTS / "metrics.json", {"captions": {}, "retrieval": {}})
    write_json(paths.METRICS / "aggregate_data.json", {})
    paths.EXECUTED.mkdir()
    shutil.copy(NOTEBOOKS / "00_study_map.ipynb", paths.EXECUTED)
    monkeypatch.setattr(sys, "argv", ["python"])
    with read_only(root):
        assert summary.main([]) == 0 and "this study  1.500 [1.400, 1.600]" in capsys.readouterr().out
        for command in (
            lambda: summary.main(["headline"]),
            lambda: studies.main(["use", "ucm"]),
            strip.main,
            pages.main,
        ):
            assert command() == 1
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith(f"{root}/") and ": the disk is read-only; change that, or work on a copy" in line


def test_what_is_no_trouble_of_a_disk_is_not_told_as_one(capsys):
    @told_in_a_line
    def main(error):
        raise error

    for number in (errno.ENOSPC, errno.EACCES):
        assert main(OSError(number, os.strerror(number), "/a/b.json")) == 1
        assert capsys.readouterr().err.startswith("/a/b.json: ")
    assert main(ValueError("params.yaml: no key")) == 1 and capsys.readouterr().err == "params.yaml: no key\n"
    with pytest.raises(OSError, match="Input/output"):
        main(OSError(errno.EIO, os.strerror(errno.EIO), "/a/b.json"))


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


def write_scene(path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (3, 370, 370), dtype=np.uint8)
    with new_raster(
        path, width=370, height=370, count=3, dtype="uint8", tiled=True, blockxsize=256, blockysize=256, compress="deflate"
    ) as file:  # fmt: skip
        file.write(pixels)
        file.build_overviews([2, 4], rasterio.enums.Resampling.average)


def write_vectors(path: Path) -> None:
    with whole_file(path) as scratch:
        write_array(scratch, np.arange(3000, dtype=np.float32).reshape(100, 30))


def write_faiss(path: Path) -> None:
    index = faiss.IndexFlatIP(8)
    index.add(np.ones((500, 8), np.float32))
    with whole_file(path) as scratch:
        write_index(index, scratch)


@pytest.mark.parametrize("write", [write_scene, write_vectors, write_faiss])
def test_a_file_is_whole_or_absent_wherever_the_disk_fills_up(write, tmp_path):
    """GDAL, numpy and FAISS write the last part when they close a file, and keep it to themselves when that fails."""
    path = tmp_path / "file"
    write(path)
    whole = path.read_bytes()
    for size in [*np.linspace(0, len(whole) - 1, 16).astype(int), len(whole) - 4000]:
        for before in (None, b"the old one"):
            path.unlink(missing_ok=True)
            if before:
                path.write_bytes(before)
            with largest_file(int(size)), pytest.raises(OSError, match="File too large"):
                write(path)
            assert [(one, one.read_bytes()) for one in tmp_path.iterdir()] == ([(path, before)] if before else [])
    with largest_file(len(whole)):
        write(path)
    assert path.read_bytes() == whole


def test_what_python_writes_is_what_the_libraries_write(tmp_path):
    arrays = (
        np.arange(6.0).reshape(2, 3).T,
        np.zeros(0, np.int64),
        np.array(3),
        np.zeros(2, [("a", "f4"), ("b", "i8", 3)]),
    )
    for array in arrays:
        np.save(tmp_path / "a.npy", array)
        write_array(tmp_path / "b.npy", array)
        assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    write_faiss(tmp_path / "c")
    index = faiss.read_index(str(tmp_path / "c"))
    faiss.write_index(index, str(tmp_path / "d"))
    assert (tmp_path / "c").read_bytes() == (tmp_path / "d").read_bytes() and index.ntotal == 500


@pytest.mark.parametrize("write", [write_scene, write_vectors, write_faiss])
def test_a_read_only_disk_is_told_with_the_files_own_name(write, tmp_path):
    with read_only(tmp_path), pytest.raises(OSError, match=rf"Read-only file system: '{tmp_path}/file'$"):
        write(tmp_path / "file")
    write(tmp_path / "file")
