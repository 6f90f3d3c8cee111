"""Which backend of a kernel runs: the choice is made here and nowhere else.

Every kernel has two backends of one meaning: torch (any device, in tiles) and Triton (NVIDIA GPUs). Top-k and ranks are
the same bits with either; the loss agrees within rounding. ``RSVLM_KERNELS=torch`` or ``=triton`` in the environment
forces one, ``force_backend`` does so for a block of code. An error inside a backend is never caught to try the other.

On a CPU the torch backend of top-k scans by FAISS (in float32) or by torch in float32 or bfloat16, whichever multiplies
faster there, and that of ranks by torch; the answer has the same bits with all. ``RSVLM_SCAN=faiss``, ``=float32`` or
``=bfloat16`` forces one, ``force_scan`` for a block of code.
"""

import importlib.metadata
import importlib.util
import logging
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import lru_cache, partial
from typing import NamedTuple

import torch

from rsvlm.kernels.tiles import rounds_once

OPERATIONS = ("similarity_topk", "retrieval_ranks", "contrastive_loss")
BACKENDS = ("torch", "triton")
VARIABLE = "RSVLM_KERNELS"
SCANS = ("faiss", "float32", "bfloat16")
SCAN_VARIABLE = "RSVLM_SCAN"
MUCH_FASTER = 0.75  # of the time in float32: its wider error bound costs a bfloat16 scan some time elsewhere
MANY = 20  # queries that FAISS multiplies as a matrix; fewer, one by one on one core, torch scans faster
OLDEST_GPU = (8, 0)  # compute capability; the kernels are compiled and checked for 8.0 and 9.0

log = logging.getLogger("rsvlm.kernels")
_forced: dict[str, ContextVar[str | None]] = {
    variable: ContextVar(variable, default=None) for variable in (VARIABLE, SCAN_VARIABLE)
}
_said: set[tuple[str, "Choice"]] = set()


class Choice(NamedTuple):
    """A backend or a scan, and why it was chosen."""

    name: str  # one of BACKENDS or SCANS
    reason: str


def choose_backend(operation: str, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Choice:
    """The backend that runs ``operation`` for tensors on ``device``; logged the first time it is chosen for a reason.

    Args:
        operation: one of OPERATIONS.
        dtype: the type it computes with.

    Raises:
        ValueError: an unknown operation, or a forced backend that is unknown or cannot run here.
    """
    if operation not in OPERATIONS:
        raise ValueError(f"operation {operation!r}: expected one of {', '.join(OPERATIONS)}")
    obstacle = _why_not_triton(torch.device(device), dtype)
    forced, by = _forced_choice(VARIABLE, "backend", BACKENDS)
    if forced == "triton" and obstacle:
        raise ValueError(f"{by}: {operation} cannot run in Triton: {obstacle}")
    if forced:
        backend = Choice(forced, f"forced by {by}")
    else:
        backend = Choice("torch", obstacle) if obstacle else Choice("triton", "the tensors are on an NVIDIA GPU")
    if (operation, backend) not in _said:
        _said.add((operation, backend))
        log.info("%s runs in %s: %s", operation, *backend)
    return backend


def backends_for(device: torch.device | str, *operations: str) -> dict[str, dict[str, str]]:
    """For the metrics of a stage: operation -> {"backend", "reason"} on ``device``, for Triton also its "version".

    Where an operation scans in the torch backend, "scan" and "scan_reason" say how.
    """
    found = {}
    for operation in sorted(operations):
        name, reason = choose_backend(operation, device)
        found[operation] = {"backend": name, "reason": reason}
        if name == "triton":
            found[operation]["version"] = importlib.metadata.version("triton")
        elif operation != "contrastive_loss":
            scan = choose_scan(operation, device)
            found[operation] |= {"scan": scan.name, "scan_reason": scan.reason}
    return found


def choose_scan(operation: str, device: torch.device | str, prepared_for: int | None = None) -> Choice:
    """How the torch backends of top-k and ranks scan on ``device``; only a CPU has the choice, and only top-k FAISS.

    Args:
        operation: one of OPERATIONS.
        prepared_for: how many queries go through items that were prepared for many calls; None where they were not.

    Raises:
        ValueError: a forced scan that is unknown or not installed, or whose products are not what the error bound takes
            them for.
    """
    if torch.device(device).type != "cpu":
        return Choice("float32", "the choice is for CPUs")
    can_be_faiss = operation == "similarity_topk"
    forced, by = _forced_choice(SCAN_VARIABLE, "scan", SCANS)
    if forced is None and prepared_for is not None:  # float32 alone: one copy serves many queries and few
        return Choice("faiss" if prepared_for >= MANY and _has_faiss() else "float32", "the items are kept in float32")
    if forced is None:
        return _faster_scan(torch.get_num_threads(), can_be_faiss and _has_faiss())
    if forced == "faiss" and not can_be_faiss:
        return Choice("float32", f"FAISS knows no ranks; {by} is for top-k")
    if forced == "faiss" and not _has_faiss():
        raise ValueError(f"{by}: FAISS is not installed; pip install faiss-cpu, or use float32")
    if forced == "bfloat16" and not _rounds_once():
        raise ValueError(f"{by}: this torch's bfloat16 products are rounded more than once; use float32")
    return Choice(forced, f"forced by {by}")


def force_backend(name: str) -> AbstractContextManager[None]:
    """Within it every kernel runs in the backend ``name``, whatever the environment says."""
    return _force(VARIABLE, name)


def force_scan(name: str) -> AbstractContextManager[None]:
    """Within it a CPU scans by ``name``, one of SCANS, whatever the environment says."""
    return _force(SCAN_VARIABLE, name)


@contextmanager
def _force(variable: str, name: str) -> Iterator[None]:
    token = _forced[variable].set(name)
    try:
        yield
    finally:
        _forced[variable].reset(token)


def _forced_choice(variable: str, what: str, known: tuple[str, ...]) -> tuple[str | None, str]:
    """(the name that a block of code or else the environment forces, or None; by what). ValueError: it is unknown."""
    inside = _forced[variable].get()
    name = inside or os.environ.get(variable) or None
    by = f"force_{what}" if inside else f"{variable}={name}"
    if name is not None and name not in known:
        raise ValueError(f"{by}: {name!r} is no {what}; expected one of {', '.join(known)}")
    return name, by


_rounds_once = lru_cache(maxsize=1)(rounds_once)


@lru_cache
def _has_faiss() -> bool:
    return importlib.util.find_spec("faiss") is not None


@lru_cache
def _faster_scan(threads: int, with_faiss: bool) -> Choice:
    """The faster scan on this CPU and the reason, measured once for each number of ``threads`` in some 50 ms.

    Where bfloat16 can't be it, nothing is measured: FAISS was faster than torch on every CPU tried so far. The reason
    holds no times: it is recorded, and records of equal runs are equal.
    """
    other = "faiss" if with_faiss else "float32"
    abilities = torch.cpu.get_capabilities()
    if not (abilities.get("avx512_bf16") or abilities.get("amx_bf16")):
        return Choice(other, "this CPU has no instructions for bfloat16")
    if not _rounds_once():
        return Choice(other, "this torch's bfloat16 products are rounded more than once")
    taken = _scan_seconds(with_faiss)
    if taken["bfloat16"] < MUCH_FASTER * taken[other]:
        return Choice("bfloat16", "bfloat16 products are much faster than float32 here")
    return Choice(other, "bfloat16 products are not much faster than float32 here")


def _scan_seconds(with_faiss: bool, rows: int = 512, columns: int = 2048) -> dict[str, float]:
    """How long a small tile takes by each scan: the shortest of some turns."""
    left, right = torch.ones(rows, 512), torch.ones(columns, 512)
    methods = {name: partial(torch.mm, left.to(kind), right.to(kind).T)
               for name, kind in (("float32", torch.float32), ("bfloat16", torch.bfloat16))}  # fmt: skip
    if with_faiss:
        import faiss  # only here: it is optional

        arrays = left.numpy(), right.numpy()
        methods["faiss"] = partial(faiss.knn, *arrays, min(10, columns), metric=faiss.METRIC_INNER_PRODUCT)
    taken = {}
    for turn in range(4):
        for name, method in methods.items():
            start = time.perf_counter()
            method()
            if turn:  # the first one warms up
                taken[name] = min(taken.get(name, float("inf")), time.perf_counter() - start)
    return taken


def _why_not_triton(device: torch.device, dtype: torch.dtype) -> str:
    """What keeps Triton from running there, in words; empty when nothing does."""
    if dtype == torch.float64:
        return "float64 is computed in torch"
    if importlib.util.find_spec("triton") is None:
        return f"the tensors are on {device.type}" if device.type != "cuda" else "the package triton is not installed"
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return "" if _forced_choice(VARIABLE, "backend", BACKENDS)[0] == "triton" else "the tensors are on cpu"
    if device.type != "cuda":
        return f"the tensors are on {device.type}"
    if torch.version.cuda is None:
        return "this GPU is none of NVIDIA's"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_GPU:
        return f"compute capability {'.'.join(map(str, capability))} is below {'.'.join(map(str, OLDEST_GPU))}"
    return ""
