"""Right answers in CSR form: query q has the items ids[offsets[q]:offsets[q + 1]]."""

import numpy as np
import torch
from torch import Tensor

Positives = tuple[Tensor | np.ndarray, Tensor | np.ndarray]


def check_positives(
    positives: Positives, n_queries: int, n_items: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """(offsets (Q + 1,), ids) int64 on ``device``, ids sorted within each query and each once.

    Raises:
        ValueError: offsets do not start at 0, fall, do not end at len(ids), or an id is not an item.
    """
    offsets, ids = (torch.as_tensor(part, device=device) for part in positives)
    for name, part in (("offsets", offsets), ("ids", ids)):
        if part.ndim != 1 or part.is_floating_point() or part.is_complex() or part.dtype == torch.bool:
            raise ValueError(f"positives: {name} must be one row of integers, got {part.dtype} {tuple(part.shape)}")
    offsets, ids = offsets.to(torch.int64), ids.to(torch.int64)
    if len(offsets) != n_queries + 1:
        raise ValueError(f"positives: {len(offsets)} offsets for {n_queries} queries: expected {n_queries + 1}")
    if int(offsets[0]) != 0 or int(offsets[-1]) != len(ids) or bool((offsets.diff() < 0).any()):
        raise ValueError(f"positives: offsets must rise from 0 to the number of ids, {len(ids)}")
    outside = (ids < 0) | (ids >= n_items)
    if bool(outside.any()):
        raise ValueError(f"positives: id {int(ids[outside][0])} is not one of the {n_items} items")
    owners = torch.repeat_interleave(torch.arange(n_queries, device=device), offsets.diff())
    pairs = torch.unique(owners * max(n_items, 1) + ids)  # sorted by query, then id
    return _csr(pairs // max(n_items, 1), pairs % max(n_items, 1), n_queries)


def transpose_positives(positives: Positives, n_items: int) -> tuple[Tensor, Tensor]:
    """The same pairs seen from the items: CSR (offsets (n_items + 1,), query ids), for the other direction."""
    n_queries = len(positives[0]) - 1
    offsets, ids = check_positives(positives, n_queries, n_items, "cpu")
    owners = torch.repeat_interleave(torch.arange(n_queries), offsets.diff())
    order = torch.argsort(ids, stable=True)
    return _csr(ids[order], owners[order], n_items)


def _csr(rows: Tensor, ids: Tensor, n_rows: int) -> tuple[Tensor, Tensor]:
    """(offsets, ids) of pairs that are sorted by row."""
    offsets = torch.zeros(n_rows + 1, dtype=torch.int64, device=rows.device)
    offsets[1:] = torch.bincount(rows, minlength=n_rows).cumsum(0)
    return offsets, ids
