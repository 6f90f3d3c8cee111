"""Where to compute and with what numbers, and how the person who waits is told.

Where to compute and with what numbers: the device, the precision, the threads.

Progress for the person who waits: lines on stderr, which the runner of notebooks streams and does not keep.
"""

import sys
from contextlib import AbstractContextManager

import torch
from tqdm import tqdm

PRECISIONS = ("auto", "fp32", "bf16")


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" is the first CUDA GPU, else the CPU.

    Raises:
        ValueError: no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device: {name!r} is none; use auto, cpu, cuda or cuda:0") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: {name!r} asked for, but torch sees no CUDA GPU here; use auto or cpu")
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """ "fp32" or "bf16"; "auto" is bf16 where the hardware multiplies in it, because elsewhere it only costs time.

    Raises:
        ValueError: ``name`` is none of auto, fp32, bf16.
    """
    if name not in PRECISIONS:
        raise ValueError(f"precision: {name!r} is none of {', '.join(PRECISIONS)}")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    abilities = torch.cpu.get_capabilities()
    return "bf16" if abilities.get("avx512_bf16") or abilities.get("amx_bf16") else "fp32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """A context in which matrix products run in bf16, or in float32 for "fp32"."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def use_threads(threads: int) -> int:
    """The number of CPU threads torch now uses: ``threads``, or torch's own choice for 0."""
    if threads:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def log_line(text: str) -> None:
    """Write a line to stderr, above a progress bar if there is one."""
    tqdm.write(text, file=sys.stderr)
