"""What a hostile day does: kills, a full disk, two at once, other locales, on the smoke study; `make chaos`.

Each trial disturbs one stage of a finished study at a random moment, runs it again and compares every out of the whole study,
byte by byte, with an unbroken run's. ``python tests/chaos.py --each 3`` tries less. It prints a table in Markdown and ends with 1
where something was lost; what was said in a lost trial stays in the folder that is named then.
"""

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

import psutil
from ruamel.yaml import YAML
from study_case import ROOT, copy_with_study, dvc

from rsvlm.files import fingerprint_file

MADE = ("build", "data", "models", "reports", "user")  # all outs lie there
TIMED = {"reports/mosaics/costs.json", "reports/notebooks/88_search_mosaics.ipynb"}  # seconds a search takes
VICTIMS = {"stage": "rsvlm.study.run", "kernel": "ipykernel_launcher"}
OUTLIVE = 60  # seconds that what a killed process started may take to notice, on a busy machine
LOCALES, ZONES = ("C", "C.UTF-8", "de_DE.UTF-8", "tr_TR.UTF-8", "en_US.UTF-8"), ("UTC", "Asia/Kolkata", "America/Lima")
BY_HAND = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
for cell in notebook.cells:
    cell.source = cell.source.replace("use_study_parameters = False", "use_study_parameters = True")
NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": "notebooks"}}).execute()
"""
KINDS = {
    "stage killed": "SIGKILL to the process that runs a stage's notebook",
    "kernel killed": "SIGKILL to the notebook's kernel",
    "dvc killed": "SIGKILL to DVC; its stage has to end, too",
    "disk full": "a file system that fills while a stage runs (tmpfs)",
    "two at once": "a stage started twice; a notebook run by hand in two kernels",
    "elsewhere": "another locale, hash seed and time zone",
}


class Lost(Exception):
    """What a trial did not survive, in a line."""


@dataclass
class Study:
    """A finished smoke study in a folder of its own, and what an unbroken run left there."""

    root: Path
    unbroken: dict[str, str]
    seconds: dict[str, float]  # of each stage
    source: Path  # a copy that nothing disturbs

    def start(self, *command: str, **environment: str) -> subprocess.Popen:
        """A process of this study, what it says behind what others said in ``said.txt``."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        own = {"RSVLM_ROOT": str(self.root), "PYTHONPATH": str(self.root), "PATH": path, "DVC_NO_ANALYTICS": "1"}
        settings = os.environ | own | environment
        with self.said.open("a") as said:
            return subprocess.Popen(
                [sys.executable, *command], cwd=self.root, env=settings, stdout=said, stderr=subprocess.STDOUT
            )

    @property
    def said(self) -> Path:
        return self.source.with_name(f"{self.root.name}.txt")  # never on a disk that is filled

    def repro(self, stage: str, **environment: str) -> subprocess.Popen:
        """DVC on one stage, which computes: without ``--force`` it would take the unbroken run's outs from its cache."""
        return self.start("-m", "dvc", "repro", "--single-item", "--no-run-cache", "--force", stage, **environment)

    def check(self, stage: str) -> None:
        """Run the stage as someone does after a disturbance, and compare everything.

        Raises:
            Lost: it does not run, or a file differs, is missing or too many.
        """
        if self.repro(stage).wait() != 0:
            raise Lost("the next run fails")
        found = bytes_of(self.root)
        if differing := sorted(name for name, _ in found.items() ^ self.unbroken.items()):
            raise Lost(f"{len(set(differing))} files differ: {', '.join(sorted(set(differing))[:3])}")


def bytes_of(root: Path) -> dict[str, str]:
    """Path -> SHA-256 of every file that stages made, without those that hold measured times."""
    files = [path for folder in MADE for path in sorted((root / folder).rglob("*")) if path.is_file()]
    names = {path.relative_to(root).as_posix(): path for path in files}
    return {name: fingerprint_file(path) for name, path in names.items() if name not in TIMED}


def kill(who: str) -> Callable[[Study, str, random.Random], bool]:
    """A trial: whether the process was hit. It is killed at a random moment of its life."""

    def trial(study: Study, stage: str, generator: random.Random) -> bool:
        moment = generator.uniform(0, study.seconds[stage] + (3 if who == "dvc" else 0))
        running = study.repro(stage)
        victim = psutil.Process(running.pid) if who == "dvc" else find_child(running, VICTIMS[who])
        try:
            if victim is not None:
                victim.wait(moment)
        except psutil.TimeoutExpired:
            below = victim.children(recursive=True)
            victim.kill()
            running.wait()
            end = time.monotonic() + OUTLIVE
            while any(map(lives, below)):
                if time.monotonic() > end:
                    raise Lost(f"processes outlive the killed one by {OUTLIVE} seconds") from None
                time.sleep(0.1)
            study.check(stage)
            return True
        except psutil.NoSuchProcess:
            pass
        running.wait()
        study.check(stage)
        return False

    return trial


def lives(process: psutil.Process) -> bool:
    """Whether a process has not ended; a zombie waits for its new parent only."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def find_child(running: subprocess.Popen, name: str) -> psutil.Process | None:
    """The process below that was started so, as soon as it is there; None where there was none."""
    while running.poll() is None:
        for child in psutil.Process(running.pid).children(recursive=True):
            try:
                if name in " ".join(child.cmdline()) and child.name().startswith("python"):
                    return child
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.02)
    return None


def fill_disk(study: Study, stage: str, generator: random.Random) -> bool:
    """A trial: whether the stage failed for want of room; it has to say so in a line of ours."""
    ballast, before = study.root / "ballast", study.said.stat().st_size if study.said.exists() else 0
    entry = pipeline()[stage]
    made = [study.root / out for out in entry["outs"]]
    files = [path for out in made for path in (out.rglob("*") if out.is_dir() else [out]) if path.is_file()]
    free = int(generator.uniform(0, sum(path.stat().st_size for path in files) + 100_000))
    for out in made:  # as DVC does first
        shutil.rmtree(out) if out.is_dir() else out.unlink()
    room = os.statvfs(study.root)
    subprocess.run(["fallocate", "-l", str(max(4096, room.f_bavail * room.f_frsize - free)), str(ballast)], check=True)
    failed = study.start("-m", "rsvlm.study.run", stage).wait() != 0
    ballast.unlink()
    with study.said.open(errors="replace") as file:
        file.seek(before)
        said = file.read()
    study.check(stage)
    if failed and not re.search(r"^\[\w+\] .*(the disk is full|the disk has .* left)", said, re.M):
        raise Lost("the same bytes again, but it did not say that the disk is full")
    return failed


def run_twice(study: Study, stage: str, generator: random.Random) -> bool:
    """A trial: a stage, or its notebook by hand, started twice; one ends, the other does too or says who is at it."""
    notebook = next((study.root / "notebooks").glob(f"[0-9][0-9]_{stage}.ipynb"))
    by_hand = generator.random() < 0.5
    command = ("-c", BY_HAND, str(notebook)) if by_hand else ("-m", "rsvlm.study.run", stage)
    before = study.said.stat().st_size if study.said.exists() else 0
    first = study.start(*command)
    time.sleep(generator.uniform(0, study.seconds[stage] / 2))
    second = study.start(*command)
    codes = sorted([first.wait(), second.wait()])
    with study.said.open(errors="replace") as file:
        file.seek(before)
        said = file.read()
    study.check(stage)
    if codes[0] != 0:
        raise Lost("none of the two ended well")
    if codes[1] != 0 and "another process is at it (process " not in said:
        raise Lost("the refused one did not say who is at it")
    return True


def move(study: Study, stage: str, generator: random.Random) -> bool:
    """A trial: the stage under another locale, hash seed and time zone."""
    names = {"LC_ALL": generator.choice(LOCALES), "TZ": generator.choice(ZONES)}
    if study.repro(stage, PYTHONHASHSEED=str(generator.randrange(2**32)), **names).wait() != 0:
        raise Lost(f"it does not run with {names}")
    study.check(stage)
    return True


TRIALS = dict(zip(KINDS, (kill("stage"), kill("kernel"), kill("dvc"), fill_disk, run_twice, move), strict=True))


def pipeline() -> dict[str, dict]:
    """Stage -> its entry in dvc.yaml, for those with a notebook that run once."""
    stages = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return {name: body for name, body in stages.items() if "rsvlm.study.run" in str(body.get("cmd"))}


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[bool]:
    """A file system of that many bytes at a place; False where this user may not mount one."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    there = subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield there
    finally:
        if there:
            subprocess.run(["umount", "--lazy", str(place)], check=True)


def unbroken_run(folder: Path) -> Study:
    """The smoke study, run from end to end."""
    with copy_with_study(folder / "unbroken", "smoke") as root:
        said = dvc(root, "repro")
    seconds = {stage: float(time) for stage, time in re.findall(r"^\[(\w+)\] done in (\d+) s", said, re.M)}
    return Study(root, bytes_of(root), {stage: max(1.0, seconds.get(stage, 1.0)) for stage in pipeline()}, root)


def copy_of(study: Study, root: Path) -> Study:
    """The same study in another folder; what a lost trial left there goes."""
    if root.exists():
        shutil.rmtree(root)
    shutil.copytree(study.source, root, symlinks=True)
    return Study(root, study.unbroken, study.seconds, study.source)


def main() -> int:
    """Run the trials, print the table; 1 where something was lost."""
    parser = argparse.ArgumentParser(description="Disturb the smoke study and look whether its bytes stay the same.")
    parser.add_argument("--each", type=int, default=20, help="trials of a kind")
    parser.add_argument("--kind", choices=KINDS, action="append", help="only this one; may be given several times")
    parser.add_argument("--minutes", type=float, default=19.0, help="after which no trial starts")
    parser.add_argument("--seed", type=int, default=0, help="of stages and moments")
    parser.add_argument("--side-by-side", type=int, default=2, help="trials at a time")
    given = parser.parse_args()
    started, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix="rsvlm-chaos-"))
    unbroken = unbroken_run(folder)
    print(f"unbroken run: {len(unbroken.unbroken)} files, {time.monotonic() - started:.0f} s", flush=True)
    kinds = given.kind or list(KINDS)
    size = 2 * sum(path.stat().st_size for path in unbroken.root.rglob("*") if path.is_file())
    counts, losses = {kind: Counter() for kind in kinds}, []

    with small_disk(folder / "small", size) as mounted:
        places: Queue[Study] = Queue()
        for number in range(given.side_by_side):
            places.put(copy_of(unbroken, folder / f"study {number}"))
        small: Queue[Study] = Queue()
        if mounted:
            small.put(copy_of(unbroken, folder / "small" / "study"))

        def run(kind: str, number: int) -> None:
            generator = random.Random(f"{given.seed} {kind} {number}")
            stage = generator.choice(sorted(unbroken.seconds))
            if time.monotonic() - started > given.minutes * 60 or kind == "disk full" and not mounted:
                return
            queue = small if kind == "disk full" else places
            study = queue.get()
            try:
                counts[kind]["tried" if TRIALS[kind](study, stage, generator) else "missed"] += 1
            except Lost as lost:
                counts[kind]["tried"] += 1
                counts[kind]["lost"] += 1
                kept = shutil.copy(study.said, folder / f"{kind} {number}.txt")
                losses.append(f"{kind}, {stage}, trial {number}: {lost}; what it said: {kept}")
                print(losses[-1], flush=True)
                study = copy_of(unbroken, study.root)
            finally:
                study.said.unlink(missing_ok=True)
                queue.put(study)

        with ThreadPoolExecutor(given.side_by_side) as pool:
            list(pool.map(lambda one: run(*one), ((kind, number) for number in range(given.each) for kind in kinds)))

    print("\n| what happens | tried | survived | lost |\n|---|---|---|---|")
    for kind, own in counts.items():
        print(f"| {kind}: {KINDS[kind]} | {own['tried']} | {own['tried'] - own['lost']} | {own['lost']} |")
    missed = sum(own["missed"] for own in counts.values())
    print(
        f"\nSeed {given.seed}, {os.cpu_count()} cores, {(time.monotonic() - started) / 60:.0f} minutes, "
        f"{len(unbroken.unbroken)} files compared each time; {missed} further trials came too late to disturb anything"
        + ("" if mounted else "; disk full: not tried, this user may not mount a file system")
    )
    if not losses:
        shutil.rmtree(folder)
    return 1 if losses else 0


if __name__ == "__main__":
    sys.exit(main())
