"""Exact retrieval ranks by counting: how many items beat a query's best right answer, and how many tie with it."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rsvlm.kernels.tiles import QUERY_ROWS, check_matrices, load_rows, score_tile, spans

Positives = tuple[Tensor | np.ndarray, Tensor | np.ndarray]


class Ranks(NamedTuple):
    """What is known of each query's best right answer ("positive"); every field has shape (Q,)."""

    best: Tensor  # float32, the highest score among the positives; -inf without any
    greater: Tensor  # int64, other items that score higher; all items where there is no positive
    equal: Tensor  # int64, other items that score exactly the same
    tied: Tensor  # int64, positives that have the highest score (>= 1); 0 without any


@torch.no_grad()
def retrieval_ranks(
    queries: Tensor | np.ndarray,
    items: Tensor | np.ndarray,
    positives: Positives,
    *,
    normalize: bool = True,
    block: int = 4096,
) -> Ranks:
    """Rank counts of each query's best positive among the items, exact, without the (Q, M) matrix.

    Positives are left out of ``greater`` and ``equal`` by their ids. The best positive's score comes from the same tile
    as the counts: a threshold from another computation can land on the wrong side of its own score.

    Args:
        queries: (Q, D), torch tensor or numpy array of any floating type.
        items: (M, D), likewise.
        positives: right answers in CSR form, int64: query q has the items ids[offsets[q]:offsets[q + 1]]; offsets has
            length Q + 1. An id may repeat; it counts once.
        normalize: cosine (True; a zero vector scores 0) or plain inner product (False).
        block: items in one tile; memory is one tile plus O(Q + positives).

    Raises:
        ValueError: shapes, types, offsets or ids do not fit, or a row holds NaN or infinity (the row is named).
    """
    device = check_matrices(queries, items, block)
    n_queries, n_items = len(queries), len(items)
    offsets, ids = check_positives(positives, n_queries, n_items, device)
    owners = torch.repeat_interleave(torch.arange(n_queries, device=device), offsets.diff())
    tall = min(QUERY_ROWS, block)

    def positives_in(first: int, last: int, start: int, stop: int) -> Tensor:
        span = slice(int(offsets[first]), int(offsets[last]))
        inside = (ids[span] >= start) & (ids[span] < stop)
        return span.start + inside.nonzero()[:, 0]

    def tile_rows(first: int, last: int) -> Tensor:
        return load_rows(queries, first, last, name="queries", normalize=normalize, device=device)

    def tile_columns(start: int, stop: int) -> Tensor:
        return load_rows(items, start, stop, name="items", normalize=normalize, device=device)

    positive_scores = torch.full((len(ids),), -torch.inf, dtype=torch.float32, device=device)
    for start, stop in spans(n_items, block):
        columns = None
        for first, last in spans(n_queries, tall):
            at = positives_in(first, last, start, stop)
            if len(at):  # tiles without a positive need no first look
                columns = tile_columns(start, stop) if columns is None else columns
                tile = score_tile(tile_rows(first, last), columns)
                positive_scores[at] = tile[owners[at] - first, ids[at] - start]

    best = torch.full((n_queries,), -torch.inf, dtype=torch.float32, device=device)
    best.scatter_reduce_(0, owners, positive_scores, reduce="amax")
    tied = torch.zeros(n_queries, dtype=torch.int64, device=device)
    tied.index_add_(0, owners, (positive_scores == best[owners]).to(torch.int64))

    greater = torch.zeros(n_queries, dtype=torch.int64, device=device)
    equal = torch.zeros(n_queries, dtype=torch.int64, device=device)
    for start, stop in spans(n_items, block):
        columns = tile_columns(start, stop)
        for first, last in spans(n_queries, tall):
            tile = score_tile(tile_rows(first, last), columns)
            at = positives_in(first, last, start, stop)
            tile[owners[at] - first, ids[at] - start] = torch.nan  # neither greater nor equal
            threshold = best[first:last, None]
            greater[first:last] += (tile > threshold).sum(dim=1)
            equal[first:last] += (tile == threshold).sum(dim=1)

    without = offsets.diff() == 0
    return Ranks(best, greater.masked_fill(without, n_items), equal.masked_fill(without, 0), tied)


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
