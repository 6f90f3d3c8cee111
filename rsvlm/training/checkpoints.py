"""Checkpoints a killed training continues from: safetensors and JSON, no pickle, whole or absent.

A training's folder is named after the fingerprint of all that shapes it (settings, data, model), so a changed setting
starts afresh: ``folder = checkpoints / "adapt_encoder" / fingerprint[:16]``.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rsvlm.files import read_json, whole_folder, write_json

KEEP = 2  # the newest, and one before it in case the newest cannot be read


@dataclass(frozen=True)
class Checkpoint:
    """A training's state after ``step`` finished steps."""

    step: int
    tensors: dict[str, torch.Tensor]
    state: dict
    folder: Path


def save_checkpoint(folder: Path, step: int, tensors: dict[str, torch.Tensor], state: dict) -> Path:
    """The folder ``folder/step_00000042`` just written, whole; all but the newest two steps are removed.

    Args:
        tensors: by name; may lie on any device and share memory.
        state: JSON values only (no NaN).
    """
    target = Path(folder) / f"step_{step:08d}"
    for torn in Path(folder).glob(".step_*.part"):  # left by a run that was killed while it wrote
        shutil.rmtree(torn)
    with whole_folder(target) as scratch:
        # safetensors refuses tensors that share memory or have gaps: tied weights, views, channels_last
        save_file(
            {
                name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
                for name, tensor in sorted(tensors.items())
            },
            scratch / "tensors.safetensors",
        )
        write_json(scratch / "state.json", {"step": step, "state": state})
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
            saved = read_json(path / "state.json")
            return Checkpoint(saved["step"], load_file(path / "tensors.safetensors"), saved["state"], path)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            if log is not None:
                log(f"checkpoint {path} cannot be read ({error}): trying the one before")
    return None


def remove_checkpoints(folder: Path) -> None:
    """Remove a finished training's checkpoints."""
    shutil.rmtree(folder, ignore_errors=True)


def flatten_optimizer(optimizer: torch.optim.Optimizer, prefix: str = "optimizer.") -> tuple[dict, dict]:
    """(tensors, JSON state) of an optimizer: moments by name, everything else as JSON values."""
    whole = optimizer.state_dict()
    tensors, state = {}, {}
    for index, entries in whole["state"].items():
        state[str(index)] = {}
        for name, value in entries.items():
            if torch.is_tensor(value):
                tensors[f"{prefix}{index}.{name}"] = value
            else:
                state[str(index)][name] = value
    return tensors, {"state": state, "param_groups": whole["param_groups"]}


def unflatten_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict, state: dict, prefix: str = "optimizer."
) -> None:
    """Put back what ``flatten_optimizer`` gave, into an optimizer over the same parameters in the same order."""
    entries = {int(index): dict(values) for index, values in state["state"].items()}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            index, key = name[len(prefix) :].split(".", 1)
            entries.setdefault(int(index), {})[key] = tensor
    groups = [dict(group) for group in state["param_groups"]]
    for group in groups:
        if "betas" in group:
            group["betas"] = tuple(group["betas"])  # JSON made a list of it
    optimizer.load_state_dict({"state": entries, "param_groups": groups})
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for key, value in optimizer.state.get(parameter, {}).items():
                if torch.is_tensor(value) and value.shape == parameter.shape:
                    # the parameter's memory layout (channels_last): another one takes other code and rounds otherwise
                    optimizer.state[parameter][key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def flatten_random_state(generator: np.random.Generator | None = None, prefix: str = "random.") -> tuple[dict, dict]:
    """(tensors, JSON state) of torch's global random states (CPU and every CUDA device) and of a numpy generator."""
    tensors = {f"{prefix}cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"{prefix}cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return tensors, {"numpy": None if generator is None else generator.bit_generator.state}


def restore_random_state(
    tensors: dict, state: dict, generator: np.random.Generator | None = None, prefix: str = "random."
) -> None:
    """Put back what ``flatten_random_state`` gave."""
    torch.set_rng_state(tensors[f"{prefix}cpu"].to(torch.uint8))
    cuda = [tensors[name] for name in sorted(tensors) if name.startswith(f"{prefix}cuda")]
    if cuda and torch.cuda.is_available() and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.to(torch.uint8) for state in cuda])
    if generator is not None and state["numpy"] is not None:
        generator.bit_generator.state = state["numpy"]


def _steps(folder: Path) -> list[Path]:
    """The whole checkpoints of a folder, oldest first (scratch folders start with a dot)."""
    return sorted(path for path in Path(folder).glob("step_*") if path.is_dir())
