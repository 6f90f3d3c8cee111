"""Which twin of a kernel runs: the choice is made here and nowhere else.

Every kernel has two twins of one meaning: torch (any device, in tiles) and Triton (NVIDIA GPUs). Top-k and ranks are
the same bits with either; the loss agrees within rounding. ``RSVLM_KERNELS=torch`` or ``=triton`` in the environment
forces one, ``force_twin`` does so for a block of code. An error inside a twin is never caught to try the other.
"""

import importlib.metadata
import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch

OPERATIONS = ("similarity_topk", "retrieval_ranks", "contrastive_loss")
TWINS = ("torch", "triton")
VARIABLE = "RSVLM_KERNELS"
OLDEST_GPU = (8, 0)  # compute capability; the kernels are compiled and checked for 8.0 and 9.0

log = logging.getLogger("rsvlm.kernels")
_forced: ContextVar[str | None] = ContextVar("forced", default=None)
_said: set[tuple[str, "Twin"]] = set()


class Twin(NamedTuple):
    """A choice and why it was made."""

    name: str  # "torch" or "triton"
    reason: str


def choose_twin(operation: str, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Twin:
    """The twin that runs ``operation`` for tensors on ``device``; logged the first time it is chosen for a reason.

    Args:
        operation: one of OPERATIONS.
        dtype: the type it computes with.

    Raises:
        ValueError: an unknown operation, or a forced twin that is unknown or cannot run here.
    """
    if operation not in OPERATIONS:
        raise ValueError(f"operation {operation!r}: expected one of {', '.join(OPERATIONS)}")
    device = torch.device(device)
    obstacle = _why_not_triton(device, dtype)
    forced, by = _forced.get(), "force_twin"
    if forced is None:
        forced, by = os.environ.get(VARIABLE) or None, f"{VARIABLE}={os.environ.get(VARIABLE)}"
    if forced is not None:
        if forced not in TWINS:
            raise ValueError(f"{by}: {forced!r} is no twin; expected one of {', '.join(TWINS)}")
        if forced == "triton" and obstacle:
            raise ValueError(f"{by}: {operation} cannot run in Triton: {obstacle}")
        twin = Twin(forced, f"forced by {by}")
    else:
        twin = Twin("torch", obstacle) if obstacle else Twin("triton", "the tensors are on an NVIDIA GPU")
    if (operation, twin) not in _said:
        _said.add((operation, twin))
        log.info("%s runs in %s: %s", operation, *twin)
    return twin


def twins_for(device: torch.device | str, *operations: str) -> dict[str, dict[str, str]]:
    """For the metrics of a stage: operation -> {"twin", "reason"} on ``device``, for Triton also its "version"."""
    found = {}
    for operation in sorted(operations):
        name, reason = choose_twin(operation, device)
        found[operation] = {"twin": name, "reason": reason}
        if name == "triton":
            found[operation]["version"] = importlib.metadata.version("triton")
    return found


@contextmanager
def force_twin(name: str) -> Iterator[None]:
    """Within it every kernel runs in the twin ``name``, whatever the environment says."""
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def _why_not_triton(device: torch.device, dtype: torch.dtype) -> str:
    """What keeps Triton from running there, in words; empty when nothing does."""
    if dtype == torch.float64:
        return "float64 is computed in torch"
    if importlib.util.find_spec("triton") is None:
        return f"the tensors are on {device.type}" if device.type != "cuda" else "the package triton is not installed"
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return "" if _forced.get() == "triton" or os.environ.get(VARIABLE) == "triton" else "the tensors are on cpu"
    if device.type != "cuda":
        return f"the tensors are on {device.type}"
    if torch.version.cuda is None:
        return "this GPU is none of NVIDIA's"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_GPU:
        return f"compute capability {'.'.join(map(str, capability))} is below {'.'.join(map(str, OLDEST_GPU))}"
    return ""
