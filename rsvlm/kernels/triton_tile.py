"""What all Triton kernels share: one program computes one tile of rows @ columns.T and does something with it at once.

The loop is that of Triton's matrix-multiplication tutorial. Rows and columns are matrices (n, D) without gaps between
rows, D a multiple of STEP (``pad_width``), so nothing is masked inside the loop; a row beyond the last reads the last,
and what comes of it is masked afterwards. Numbers of rows are ordinary arguments: a new size compiles nothing anew.
"""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

# Multiply and add in one instruction: what Triton 3.9 does unasked and 3.10 no longer will.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import triton
import triton.language as tl

STEP = 64  # widths are filled up to a multiple of this
GROUP_OF_TILES = 8  # rows of tiles that are worked on together, so that they find the columns in the cache
AREA = 2**28  # elements of the matrix in one launch: bounds what the launch leaves in memory


class Shape(NamedTuple):
    """A tile's size and how a program works on it."""

    rows: int
    columns: int
    step: int  # of the inner loop
    warps: int
    stages: int

    def arguments(self) -> dict[str, int]:
        """As a launch takes them."""
        return {
            "ROWS": self.rows, "COLUMNS": self.columns, "K": self.step,
            "num_warps": self.warps, "num_stages": self.stages,
        }  # fmt: skip


# For matrix units; and for float32 in full, which has none: its sums stay in registers, so the tile is small.
SHAPES = {"half": Shape(128, 128, 64, 8, 3), "tf32": Shape(128, 128, 32, 8, 3), "ieee": Shape(64, 64, 16, 4, 3)}


def precision_of(dtype: torch.dtype) -> str:
    """Name in SHAPES: half precision, or float32 as torch.set_float32_matmul_precision says."""
    if dtype != torch.float32:
        return "half"
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def n_tiles(n_rows: int, n_columns: int, shape: Shape) -> tuple[int, int]:
    """Tiles along the rows and along the columns."""
    return triton.cdiv(n_rows, shape.rows), triton.cdiv(n_columns, shape.columns)


def pad_width(features: Tensor) -> Tensor:
    """Features (n, D) without gaps, D filled up with zeros to a multiple of STEP; a copy only where needed."""
    missing = -features.shape[1] % STEP
    return torch.nn.functional.pad(features, (0, missing)) if missing else features.contiguous()


def on_device_of(tensor: Tensor) -> AbstractContextManager:
    """Within it kernels are launched on the tensor's GPU, which need not be the current one."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@triton.jit
def find_tile(n_rows, n_columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr):
    """This program's tile (row, column), counted in tiles: down a group of rows first, then to the right."""
    program = tl.program_id(0)
    tall, wide = tl.cdiv(n_rows, ROWS), tl.cdiv(n_columns, COLUMNS)
    first = program // (GROUP * wide) * GROUP
    height = tl.minimum(tall - first, GROUP)
    inside = program % (GROUP * wide)
    return first + inside % height, inside // height


@triton.jit
def multiply(
    rows, columns, row, column, n_rows, n_columns,
    D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Tile (row, column) of rows @ columns.T as float32 (ROWS, COLUMNS)."""
    i = tl.minimum(row * ROWS + tl.arange(0, ROWS), n_rows - 1).to(tl.int64)
    j = tl.minimum(column * COLUMNS + tl.arange(0, COLUMNS), n_columns - 1).to(tl.int64)
    k = tl.arange(0, K)
    left, right = rows + i[:, None] * D + k[None, :], columns + j[None, :] * D + k[:, None]
    tile = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(0, D, K):
        tile = tl.dot(tl.load(left + start), tl.load(right + start), tile, input_precision=PRECISION)
    return tile
