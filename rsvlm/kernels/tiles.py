"""One tile of a similarity matrix, and what a score is.

**A score is the inner product of two vectors, taken in float64 and rounded to float32.** Products of float32 numbers
are exact in float64, and what is left of the sum's rounding (about 1e-16) is a hundred million times finer than a
float32 step. So the score of a pair depends on the pair and not on where it lies in a tile: equal vectors tie, and
every tile size gives the same order. A float32 product does not have this property: libraries sum edge columns,
single rows and large blocks in different orders.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

QUERY_ROWS = 1024  # most queries in one tile; with 4,096 items a float64 tile is 32 MiB
NORM_FLOOR = 1e-12  # as torch.nn.functional.normalize: a zero vector stays zero and scores 0 against everything

Matrix = Tensor | np.ndarray


def check_matrices(queries: Matrix, items: Matrix, block: int) -> torch.device:
    """The device to work on: that of the queries, else that of the items, else the CPU.

    Raises:
        ValueError: not two floating-point matrices of the same width, or a block below 1.
    """
    for name, matrix in (("queries", queries), ("items", items)):
        if not isinstance(matrix, Tensor | np.ndarray):
            raise ValueError(f"{name}: expected a torch tensor or a numpy array, got {type(matrix).__name__}")
        if matrix.ndim != 2:
            raise ValueError(f"{name}: expected a matrix (rows, D), got shape {tuple(matrix.shape)}")
        is_tensor = isinstance(matrix, Tensor)
        if not (matrix.is_floating_point() if is_tensor else np.issubdtype(matrix.dtype, np.floating)):
            raise ValueError(f"{name}: expected floating-point numbers, got {matrix.dtype}")
    if queries.shape[1] != items.shape[1]:
        raise ValueError(f"queries have width {queries.shape[1]}, items have width {items.shape[1]}: they must agree")
    if block < 1:
        raise ValueError(f"block = {block}: expected at least 1")
    for matrix in (queries, items):
        if isinstance(matrix, Tensor):
            return matrix.device
    return torch.device("cpu")


def spans(length: int, step: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive spans that cover range(length)."""
    for start in range(0, length, step):
        yield start, min(start + step, length)


def load_rows(matrix: Matrix, start: int, stop: int, *, name: str, normalize: bool, device: torch.device) -> Tensor:
    """Rows start..stop of a matrix as float64 (rows, D) on ``device``, of unit length when ``normalize`` is set.

    Raises:
        ValueError: a row holds NaN or infinity; names the row.
    """
    if isinstance(matrix, Tensor):
        rows = matrix[start:stop].detach().to(device=device, dtype=torch.float64)
    else:
        # A copy: memory maps are read-only, and torch takes no negative strides.
        rows = torch.from_numpy(np.array(matrix[start:stop], dtype=np.float64, order="C")).to(device)
    finite = torch.isfinite(rows).all(dim=1)
    if not bool(finite.all()):
        row = start + int((~finite).nonzero()[0, 0])
        raise ValueError(f"{name}: row {row} holds NaN or infinity; its similarity to anything is undefined")
    if normalize:
        rows = rows / rows.square().sum(dim=1, keepdim=True).sqrt().clamp_min(NORM_FLOOR)
    return rows


def score_tile(queries: Tensor, items: Tensor) -> Tensor:
    """Scores (q, m) float32 of float64 rows (q, D) and (m, D). Adding zero turns -0.0 into 0.0."""
    return (queries @ items.T).to(torch.float32) + 0.0
