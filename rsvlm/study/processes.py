"""A stage's processes: one run at a time, and none that outlives who started it.

A stage that went on after a killed ``dvc`` would overwrite the outs of the next run, made from newer parameters.
"""

import ctypes
import os
import re
import signal
import sys
import threading
import time
from contextlib import AbstractContextManager

import psutil

from rsvlm.files import only_process
from rsvlm.study import paths

TRAINING = "RSVLM_PROCESSES"  # as rsvlm.training.processes has it, which imports torch
SHELLS = {"sh", "ash", "bash", "busybox", "dash", "fish", "ksh", "zsh"}  # DVC runs a command through one of them
PR_SET_PDEATHSIG = 1  # linux/prctl.h
LOOK_EVERY = 0.5  # seconds


def only_run(stage: str) -> AbstractContextManager[None]:
    """Holds the stage's lock.

    Raises:
        rsvlm.files.InUse: another process runs this stage; at once.
    """
    return only_process(paths.LOCKS / f"{stage}.lock", f"[{stage}] one run at a time")


def training_processes() -> tuple[int, int] | None:
    """(those of this machine, those of all machines) that ``RSVLM_PROCESSES`` has a training run on; None: it does not say."""
    told = os.environ.get(TRAINING, "").strip() or "1"
    if told.isdecimal():
        return max(1, int(told)), max(1, int(told))
    here = re.search(r"--nproc[-_]per[-_]node[= ](\d+)(?!\S)", told)
    machines = re.search(r"--nnodes[= ](\d+)(?!\S)", told)
    if here is None or ("--nnodes" in told and machines is None):
        return None
    return int(here[1]), int(here[1]) * (int(machines[1]) if machines else 1)


def end_with_dvc() -> None:
    """Let this process and its children end when the DVC that started it is gone, killed ones included.

    Without DVC (a run from a shell, under nohup perhaps) nothing changes.
    """
    if "DVC_STAGE" not in os.environ:
        return
    _end_with_parent()
    elders = []  # DVC, and the shells between
    for elder in psutil.Process().parents():
        elders.append(elder)
        if elder.name() not in SHELLS:
            break
    if not elders or elders[-1].pid == 1 and "dvc" not in " ".join(elders[-1].cmdline()):
        os._exit(1)  # DVC was killed before this line, and what it started went to the system
    threading.Thread(target=_watch, args=(elders,), daemon=True, name="end-with-dvc").start()


def join_stage(stage: str, runner: int) -> None:
    """Make this kernel the stage's: its notebook writes the study, and it ends with its runner, killed or not.

    ipykernel looks after its parent every second, but not at a killed one's while it starts.

    Args:
        runner: the process that started the kernel.
    """
    _end_with_parent()
    if runner not in {elder.pid for elder in psutil.Process().parents()}:
        os._exit(1)  # killed before this line
    paths.running_stage = stage


def _end_with_parent() -> None:
    """On Linux the system ends this process the moment its parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _watch(elders: list[psutil.Process]) -> None:
    while all(map(_lives, elders)):
        time.sleep(LOOK_EVERY)
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(1)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
