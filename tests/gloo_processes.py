"""Several processes of a test that meet by gloo: who starts them, and what each of them does."""

import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

PATIENCE = 300  # seconds for all of them


def start(script: str, world: int, folder: Path) -> None:
    """Run ``python SCRIPT RANK WORLD FOLDER`` for each rank, side by side; what they said where one fails."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    running = [
        subprocess.Popen([sys.executable, script, str(rank), str(world), str(folder)], **pipes) for rank in range(world)
    ]
    try:
        said = [process.communicate(timeout=PATIENCE)[0].decode() for process in running]
    finally:
        for process in running:  # none outlives the test
            process.kill()
    assert not any(process.returncode for process in running), "\n".join(said)


def join(run: Callable[[int, int, Path], None]) -> None:
    """Be the process that ``start`` started: meet the others, then ``run(rank, world, folder)``."""
    torch.set_num_threads(1)
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    patience = timedelta(seconds=120)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=world, timeout=patience)
    run(rank, world, folder)
    dist.destroy_process_group()
