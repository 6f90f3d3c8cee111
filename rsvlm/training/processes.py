"""Training on several processes: what each of them does of it, and how one process has the others started.

``RSVLM_PROCESSES=4 make study`` trains on four processes of this machine, each with a GPU of its own where there are
GPUs. A command in the number's place starts them as it likes, also on several machines that share the project's folder:
``RSVLM_PROCESSES="srun torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint HOST:29500"``. Who has
a script of its own under ``torchrun`` calls ``accelerate.PartialState()`` and trains as ever.

accelerate brings the processes together and gives each its device. Every process holds the trained weights whole, computes
its part of a step's batch, and the gradients are averaged behind the backward pass: so all take the same step, and any
number of processes goes on from another number's checkpoint. The first one alone writes.
"""

import importlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import record

from rsvlm.files import read_json, write_json
from rsvlm.kernels.infonce import total
from rsvlm.progress import Passing

VARIABLE = "RSVLM_PROCESSES"
WORK = {  # what can be asked of processes, and who does it
    "adapt_encoder": ("rsvlm.training.contrastive", "adapt_here"),
    "finetune_lora": ("rsvlm.training.captioning", "train_here"),
}
ASKED, ERROR = "asked.json", "error.json"
BEFORE, AFTER, WHAT, RESULT = "before", "after", "what.json", "result.json"  # models, arguments and result of a work
RAISED = {kind.__name__: kind for kind in (ValueError, FloatingPointError, FileNotFoundError, OSError)}
SAYS = "rsvlm says "  # before a line of the first process's log, on its stdout
# For each other: decoding images takes long, and torchrun ends those that wait for a dead one
PATIENCE = timedelta(days=2)


@dataclass(frozen=True)
class Team:
    """The processes that train together, seen from one of them; by default it is alone."""

    rank: int = 0
    size: int = 1
    group: "dist.ProcessGroup | None" = None

    @classmethod
    def here(cls) -> "Team":
        """Those of ``torch.distributed``, where this process has joined it."""
        if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
            return cls()
        return cls(dist.get_rank(), dist.get_world_size(), dist.group.WORLD)

    def part(self, n: int) -> slice:
        """Which of n things are this process's; the parts of all differ by one at most."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def average_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Put the mean over processes in the place of each gradient; a process without one counts as zeros.

        What DistributedDataParallel does, without its wrapper: encoders are called by several methods, not one.
        """
        if self.size == 1:
            return
        known = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=parameters[0].device)
        dist.all_reduce(known, group=self.group)
        used = [parameter for parameter, anywhere in zip(parameters, known.tolist()) if anywhere]
        for parameter in used:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        under_way = [dist.all_reduce(parameter.grad, group=self.group, async_op=True) for parameter in used]
        for parameter, work in zip(used, under_way):
            work.wait()
            parameter.grad.div_(self.size)

    def average(self, values: dict[str, float], device: torch.device) -> dict[str, float]:
        """The mean over processes of each value."""
        if self.size == 1:
            return values
        own = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
        dist.all_reduce(own, group=self.group)
        return dict(zip(values, (own / self.size).tolist()))

    def total(self, value: Tensor) -> Tensor:
        """The sum over processes of a tensor, without a gradient."""
        return total(value.detach(), self.group)

    def check_same(self, number: int, what: str, device: torch.device) -> None:
        """Raise RuntimeError, in all processes, when a number is not the same in each; ``what`` says what to do."""
        if self.size > 1:
            own = torch.tensor([number, -number], dtype=torch.int64, device=device)
            dist.all_reduce(own, dist.ReduceOp.MAX, group=self.group)
            if own[0] != -own[1]:
                raise RuntimeError(f"the processes differ ({-own[1].item()} to {own[0].item()}): {what}")

    @contextmanager
    def first(self) -> Iterator[None]:
        """The first process does the block, then the others, which find what it made."""
        if self.size > 1 and self.rank > 0:
            dist.barrier(group=self.group)
        yield
        if self.size > 1 and self.rank == 0:
            dist.barrier(group=self.group)


def starting_command(device: torch.device) -> list[str] | None:
    """What starts the processes that ``RSVLM_PROCESSES`` asks for; None: this process trains, alone or as one of them.

    Raises:
        ValueError: neither a number nor a command, or more processes than GPUs.
    """
    told = os.environ.get(VARIABLE, "").strip()
    if not told or dist.is_available() and dist.is_initialized():
        return None
    if not told.isdecimal():
        command = shlex.split(told)
        if shutil.which(command[0]) is None:
            raise ValueError(
                f"{VARIABLE}: {command[0]!r} is neither a number of processes nor a command that starts them, such as "
                "'torchrun --standalone --nproc-per-node 4'"
            )
        return command
    if device.type == "cuda" and int(told) > torch.cuda.device_count():
        raise ValueError(f"{VARIABLE}: {told} processes, but {torch.cuda.device_count()} GPUs; each needs its own")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={told}"]
    return torchrun if int(told) > 1 else None


def run_on_processes(
    command: Sequence[str], work: str, folder: Path, device: torch.device, log: Callable[[str], None]
) -> None:
    """Have processes do a work of ``WORK``, whose files lie in ``folder``; they end with this process, killed or not.

    Raises:
        RuntimeError: one of them was killed.
        ValueError, OSError, FloatingPointError: what one of them raised; anything else as a RuntimeError that names it.
    """
    write_json(folder / ASKED, {"work": work, "device": device.type})
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    environment["TORCHELASTIC_ERROR_FILE"] = str(folder / ERROR)  # torchrun writes the first failure there
    if command[-1].startswith("--nproc-per-node="):
        threads = torch.get_num_threads() // int(command[-1].split("=")[1])
        environment.setdefault("OMP_NUM_THREADS", str(max(1, threads)))
    whole = [*command, "-m", "rsvlm.training.processes", str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "encoding": "utf-8"}
    with subprocess.Popen(whole, env=environment, **pipes) as running:
        try:
            for line in running.stdout:
                if line.startswith(SAYS):
                    kind, text = json.loads(line.removeprefix(SAYS))
                    log(Passing(text) if kind == "passing" else text)
                else:
                    sys.stderr.write(line)
        finally:
            running.stdin.close()  # the first process ends at this, and with it the others
    if running.returncode:
        raise _failure(work, folder)


@contextmanager
def off_device(model: nn.Module) -> Iterator[torch.device]:
    """The model's device, on which others have its room meanwhile; it ends there, in evaluation mode."""
    device = model.device
    model.cpu()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        yield device
    finally:
        model.to(device).eval()


def _failure(work: str, folder: Path) -> Exception:
    """What the first process to fail raised; of one that was killed, the others know no more than that it is gone."""
    message = read_json(folder / ERROR)["message"] if (folder / ERROR).is_file() else ""
    message = message["message"] if isinstance(message, dict) else message
    if not message or message.startswith("RuntimeError") and ("gloo" in message or "NCCL" in message):
        why = "killed, perhaps out of memory: torchrun's lines above name it"
        return RuntimeError(f"{work}: one of its processes died ({why}). Run it again: it goes on from its checkpoint")
    name, _, text = message.partition(": ")
    return RAISED[name](text) if name in RAISED else RuntimeError(message)


def _tell(line: str) -> None:
    print(SAYS + json.dumps(["passing" if isinstance(line, Passing) else "log", line]), flush=True)


def _end_with_starter() -> None:
    """End this process when the one that asked for the work has closed its end of the pipe, or is gone."""
    # Not through sys.stdin: a thread inside its buffer aborts the interpreter when that wants to end
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


@record
def main() -> None:
    """One of the processes: ``torchrun -m rsvlm.training.processes FOLDER``."""
    from accelerate import PartialState  # here: whoever trains alone needs none

    folder = Path(sys.argv[1])
    asked = read_json(folder / ASKED)
    if os.environ.get("RANK") == "0":
        threading.Thread(target=_end_with_starter, daemon=True, name="end-with-starter").start()
    state = PartialState(cpu=asked["device"] == "cpu", timeout=PATIENCE)
    module, name = WORK[asked["work"]]
    log = _tell if state.is_main_process else lambda line: None
    getattr(importlib.import_module(module), name)(folder, state.device, log)
    state.destroy_process_group()


if __name__ == "__main__":
    main()
