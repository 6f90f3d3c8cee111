"""The training loop of the encoder and of the captioner, and the checkpoints that a killed run continues from.

What a step sees derives from (seed, step), and a checkpoint holds all else: a run that was killed ends with the weights
of an unbroken one, on CPUs bit for bit. On a GPU two unbroken runs may differ in the last bits already: torch sums some
gradients there in no fixed order (its documentation names index_select's, which the captioner needs). Checkpoints are
safetensors and JSON, no pickle, whole or absent.
"""

import json
import math
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rsvlm.files import (
    cache_folder,
    fingerprint_file,
    fingerprint_values,
    only_process,
    read_json,
    whole_folder,
    write_text,
)
from rsvlm.progress import Passing, progress
from rsvlm.training.processes import Team

LAYOUT = 3  # of a checkpoint; one of another layout is not continued from
LAST_RATE = 0.01  # share of the highest learning rate at the end of the cosine
KEEP = 2  # checkpoints: the newest, and one before it in case the newest cannot be read


class Task(ABC):
    """What is trained, for ``train``.

    Attributes:
        name: of the stage.
        model, optimizer: see ``build_optimizer``.
        settings: with seed, batch_size and checkpoint_every.
        log: takes a line about a measurement; ``train`` puts one here that remembers it.
        steps: in all.
        clip_norm: largest norm of all gradients together.
        dropout: whether the model is in training mode.
        curve_every: steps between two rows of the curve.
        average_decay: of the running mean of the weights, which is measured and kept in their place (Polyak and
            Juditsky 1992); 0: none.
        keeps_last: the last weights are kept instead of the best.
        remedy: what to do, beside lower learning rates, when the loss is no number.
    """

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    settings: object
    log: Callable[[str], None]
    steps: int
    clip_norm: float
    remedy: str
    dropout = True
    curve_every = 1
    average_decay = 0.0
    keeps_last = False

    @property
    def trained(self) -> dict[str, Tensor]:
        """The parameters that train, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    @abstractmethod
    def rates(self, step: int) -> tuple[float, float]:
        """(share of the highest learning rates, AdamW's first beta) at a step."""

    @abstractmethod
    def batches(self, steps: range) -> Iterable:
        """What ``losses`` is given at each of these steps."""

    @abstractmethod
    def losses(self, batch: object, generator: np.random.Generator) -> dict[str, Tensor]:
        """Scalars; the one named ``loss`` is minimised. Of several processes each gives values whose mean is the batch's."""

    def keep_bounds(self) -> None:
        """Put parameters that have left their bounds back to them; before the first step, and after each."""
        return

    @abstractmethod
    def curve_row(self, step: int, losses: dict[str, float], norm: float) -> dict[str, float]:
        """A row of the curve after so many steps, of mean losses and the last gradient's norm."""

    @abstractmethod
    def epoch(self, step: int) -> float:
        """Passes over the training images after so many steps."""

    @abstractmethod
    def is_due(self, step: int) -> bool:
        """Whether to validate after so many steps; 0: before the first."""

    @abstractmethod
    def validate(self, step: int) -> tuple[float, dict]:
        """(how good the weights are, the more the better; the measurement's row)."""


@dataclass
class Progress:
    """How far a training is; after the last step, what it gave."""

    step: int = 0
    kept_step: int = 0
    kept_merit: float | None = None
    validation: list[dict] = field(default_factory=list)  # one row a measurement
    curve: list[dict] = field(default_factory=list)
    losses: list[dict[str, float]] = field(default_factory=list)  # of the steps behind the curve's last row
    said: list[str] = field(default_factory=list)  # what the task logged: a continued training logs it again
    kept: dict[str, Tensor] = field(default_factory=dict, repr=False)
    average: dict[str, Tensor] = field(default_factory=dict, repr=False)


def train(task: Task, folder: Path, log: Callable[[str], None]) -> Progress:
    """The finished training of ``task.model``, which ends with the kept weights; torch's random state is left alone.

    Args:
        folder: where its checkpoints lie; see ``checkpoints_of``.

    Raises:
        FloatingPointError: the loss or a gradient is NaN or infinite; names step, learning rates and last checkpoint.
    """
    settings, trained, optimizer, team = task.settings, task.trained, task.optimizer, Team.here()
    device = next(iter(trained.values())).device
    now = _restore(task, folder, log) or Progress(average=_copy(trained, device) if task.average_decay else {})
    team.check_same(now.step, f"all have to see the same checkpoints, in {folder}", device)
    for line in now.said:
        log(line)
    task.log = lambda line: (now.said.append(line), log(line))
    steps, size = range(now.step, task.steps), settings.batch_size
    steps_bar = {"total": task.steps * size, "initial": now.step * size, "unit": "img", "desc": task.name}
    bar = progress(disable=team.rank > 0, **steps_bar)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), bar:
        task.model.train(task.dropout)
        task.keep_bounds()
        if now.step == 0 and task.is_due(0):
            _measure(task, now)
        for step, batch in zip(steps, task.batches(steps)):
            generator = np.random.default_rng([settings.seed, 2, step])
            torch.manual_seed(int(generator.integers(2**62)) + team.rank)  # dropout
            share, beta = task.rates(step)
            for group in optimizer.param_groups:
                group["lr"], group["betas"] = group["highest"] * share, (beta, group["betas"][1])

            losses = task.losses(batch, generator)
            optimizer.zero_grad(set_to_none=True)
            losses["loss"].backward()
            team.average_gradients(list(trained.values()))
            norm = torch.nn.utils.clip_grad_norm_(list(trained.values()), task.clip_norm).item()
            values = team.average({name: loss.item() for name, loss in losses.items()}, device)
            if not math.isfinite(values["loss"]) or not math.isfinite(norm):
                raise FloatingPointError(_diverged(task, step, values, norm, folder))
            optimizer.step()
            task.keep_bounds()

            now.step += 1
            _move_average(now.average, trained, task.average_decay, now.step)
            now.losses.append(values)
            if now.step % task.curve_every == 0 or now.step == task.steps:
                means = {name: float(np.mean([own[name] for own in now.losses])) for name in values}
                row = {"step": now.step, "epoch": round(task.epoch(now.step), 4)}
                now.curve.append(row | task.curve_row(now.step, means, norm))
                now.losses.clear()
            if task.is_due(now.step) or now.step == task.steps:
                _measure(task, now)
            if now.step % settings.checkpoint_every == 0 or now.step == task.steps:
                if team.rank == 0:
                    _save(task, now, folder)
            bar.set_postfix({name: f"{value:.3f}" for name, value in values.items()}, refresh=False)
            bar.update(size)
        _put(now.kept, trained)
    return now


def _measure(task: Task, now: Progress) -> None:
    """Measure the weights, or their running mean, where that is due; keep them if they are the best, or the last."""
    with _as_measured(task, now.average), torch.no_grad():
        better = task.keeps_last and now.step == task.steps
        if task.is_due(now.step):
            merit, row = task.validate(now.step)
            now.validation.append(row)
            if not task.keeps_last and (now.kept_merit is None or merit > now.kept_merit):
                now.kept_merit, better = merit, True
        if better:
            now.kept_step, now.kept = now.step, _copy(task.trained)


@contextmanager
def _as_measured(task: Task, average: dict[str, Tensor]) -> Iterator[None]:
    """The model in evaluation mode, with the running mean as its weights where there is one; all comes back."""
    own, mode = _copy(task.trained) if average else {}, task.model.training
    _put(average, task.trained)
    task.model.eval()
    try:
        yield
    finally:
        _put(own, task.trained)
        task.model.train(mode)


@torch.no_grad()
def _move_average(average: dict[str, Tensor], trained: dict[str, Tensor], decay: float, done: int) -> None:
    """Move the running mean, where there is one, towards the weights after ``done`` steps; faster at the beginning."""
    share = 1 - min(decay, (1 + done) / (10 + done))
    for name, value in average.items():
        value.lerp_(trained[name], share)


def _copy(trained: dict[str, Tensor], device: str | torch.device = "cpu") -> dict[str, Tensor]:
    return {name: parameter.detach().to(device).clone() for name, parameter in trained.items()}


@torch.no_grad()
def _put(values: dict[str, Tensor], trained: dict[str, Tensor]) -> None:
    for name, value in values.items():
        trained[name].copy_(value)


def _diverged(task: Task, step: int, values: dict[str, float], norm: float, folder: Path) -> str:
    losses = ", ".join(f"{name} {value}" for name, value in values.items())
    rates = ", ".join(f"{group['name']}_lr {group['lr']:.3g}" for group in task.optimizer.param_groups)
    kept = _steps(folder)
    last = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
    return (
        f"{task.name} stopped at step {step + 1}: {losses}, gradient norm {norm}; learning rates now: {rates}; {last}. "
        f"Lower the learning rates, or use {task.remedy}"
    )


def build_optimizer(parts: dict[str, list[Tensor]], settings: object, **options: object) -> torch.optim.AdamW:
    """AdamW over those parameters of each part of a model that train; ``settings.PART_lr`` is its highest rate."""
    groups = []
    for part, parameters in parts.items():
        rate, own = getattr(settings, f"{part}_lr"), [p for p in parameters if p.requires_grad]
        if own:
            groups.append({"params": own, "name": part, "lr": rate, "highest": rate})
    return torch.optim.AdamW(groups, weight_decay=settings.weight_decay, **options)


def schedule(step: int, steps: int, warmup_steps: int) -> float:
    """Share of the highest learning rate at a step: linear up, then a cosine down to a hundredth."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, steps - 1 - warmup_steps)
    return LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def in_chunks(make: Callable[[Sequence], Tensor], items: Sequence, size: int) -> Tensor:
    """``make(items)``, a row an item, with the activations of ``size`` items in memory at a time; 0: of all.

    The backward pass computes each chunk anew, with the gradient that its rows have in a loss over all rows: GradCache
    (Gao et al. 2021), by torch's own activation checkpointing, which also repeats dropout.
    """
    if not size or not torch.is_grad_enabled():
        return make(items)
    chunks = [items[start : start + size] for start in range(0, len(items), size)]
    return torch.cat([checkpoint(make, chunk, use_reentrant=False) for chunk in chunks])


def check_batch(batch_size: int, images: int) -> None:
    """Raise ValueError when a batch is larger than the training set, or has no image for each process."""
    if batch_size < (processes := Team.here().size):
        raise ValueError(
            f"batch_size: {batch_size} is less than the {processes} processes; start {batch_size} or fewer"
        )
    if batch_size > images:
        raise ValueError(f"batch_size: {batch_size} is more than the {images} training images; take {images} or less")


@contextmanager
def checkpoints_of(parent: Path | None, name: str, *shaping: object) -> Iterator[Path]:
    """A training's own folder of checkpoints, named after all that shapes it: a changed setting starts afresh.

    One process at a time has it, or one team, whose first process holds it. It goes when the block ends without an
    error: results are saved inside.

    Args:
        parent: default: below ``cache_folder()``.
        shaping: settings, data, model, as JSON values.

    Raises:
        rsvlm.files.InUse: another process is at the same training; at once.
    """
    folder = (parent or cache_folder() / "checkpoints" / name) / fingerprint_values(LAYOUT, *shaping)[:16]
    first = Team.here().rank == 0
    lock = only_process(folder.with_suffix(".lock"), f"{name}: one process for one training")
    with lock if first else nullcontext():
        yield folder
        if first:
            shutil.rmtree(folder, ignore_errors=True)


def _save(task: Task, now: Progress, folder: Path) -> None:
    tensors, optimizer = flatten_optimizer(task.optimizer)
    for kind, own in (("model", task.trained), ("kept", now.kept), ("average", now.average)):
        tensors |= {f"{kind}.{name}": tensor for name, tensor in own.items()}
    state = {name: value for name, value in vars(now).items() if name not in ("kept", "average")}
    save_checkpoint(folder, now.step, tensors, {"progress": state, "optimizer": optimizer})


def _restore(task: Task, folder: Path, log: Callable[[str], None]) -> Progress | None:
    """The progress of the last checkpoint, its weights and moments put in place; None without one."""
    found = load_last_checkpoint(folder, log)
    if found is None:
        return None
    weights = {kind: {} for kind in ("model", "kept", "average", "optimizer")}
    for key, tensor in found.tensors.items():
        kind, name = key.split(".", 1)
        weights[kind][name] = tensor
    trained = task.trained
    _put(weights["model"], trained)
    unflatten_optimizer(task.optimizer, found.tensors, found.state["optimizer"])
    average = {name: tensor.to(trained[name].device) for name, tensor in weights["average"].items()}
    log(Passing(f"continuing from step {found.step}: {found.folder}"))
    return Progress(**found.state["progress"], kept=weights["kept"], average=average)


@dataclass(frozen=True)
class Checkpoint:
    """A training's state after ``step`` finished steps."""

    step: int
    tensors: dict[str, Tensor]
    state: dict
    folder: Path


def save_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], state: dict) -> Path:
    """The folder ``folder/step_00000042`` just written, whole; all but the newest two steps are removed.

    Args:
        tensors: by name; may lie on any device and share memory.
        state: JSON values only (no NaN).
    """
    target = Path(folder) / f"step_{step:08d}"
    with whole_folder(target) as scratch:
        # safetensors refuses tensors that share memory or have gaps: tied weights, views, channels_last
        whole = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
        save_file(dict(sorted(whole.items())), scratch / "tensors.safetensors")
        saved = {"step": step, "tensors": fingerprint_file(scratch / "tensors.safetensors"), "state": state}
        # Not sorted: rows of a curve keep the order of their columns
        write_text(scratch / "state.json", json.dumps(saved, indent=2, allow_nan=False) + "\n")
    for old in _steps(folder)[:-KEEP]:
        shutil.rmtree(old)
    return target


def load_last_checkpoint(folder: Path, log: Callable[[str], None] | None = None) -> Checkpoint | None:
    """The newest checkpoint under ``folder`` that can be read, or None.

    Args:
        log: called with one line when a checkpoint is damaged and the one before it is used.
    """
    for path in reversed(_steps(folder)):
        try:
            saved, tensors = read_json(path / "state.json"), path / "tensors.safetensors"
            if fingerprint_file(tensors) != saved["tensors"]:
                raise ValueError(f"{tensors.name} is not what was written")
            return Checkpoint(saved["step"], load_file(tensors), saved["state"], path)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            if log is not None:
                log(Passing(f"checkpoint {path} cannot be read ({error}): trying the one before"))
    return None


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict]]:
    """(tensors, param_groups as JSON values) of AdamW, all of whose state are tensors."""
    whole = optimizer.state_dict()
    tensors = {f"optimizer.{i}.{name}": t for i, own in whole["state"].items() for name, t in own.items()}
    return tensors, whole["param_groups"]


def unflatten_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], groups: list[dict]) -> None:
    """Put back what ``flatten_optimizer`` gave, into an optimizer over the same parameters in the same order."""
    state: dict[int, dict] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = tensor
    groups = [group | {"betas": tuple(group["betas"])} for group in groups]  # JSON made a list of it
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for parameter, own in optimizer.state.items():
        for key, value in own.items():
            if value.shape == parameter.shape:
                # the parameter's memory layout (channels_last): another one takes other code and rounds otherwise
                own[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _steps(folder: Path) -> list[Path]:
    """The whole checkpoints of a folder, oldest first (scratch folders start with a dot)."""
    return sorted(path for path in Path(folder).glob("step_*") if path.is_dir())
