"""Exact top-k search by inner product or cosine."""

import numpy as np
import torch
from torch import Tensor

from rsvlm.kernels.tiles import QUERY_ROWS, check_matrices, load_rows, score_tile, spans

LOW_32_BITS = 0xFFFFFFFF


@torch.no_grad()
def similarity_topk(
    queries: Tensor | np.ndarray, items: Tensor | np.ndarray, k: int, *, normalize: bool = True, block: int = 4096
) -> tuple[Tensor, Tensor]:
    """The k items with the highest score for each query: (scores (Q, k) float32, indices (Q, k) int64).

    Order: score downwards, then index upwards, also among exact ties; the same for every ``block``. With fewer than k
    items the rest holds score -inf and index -1.

    Args:
        queries: (Q, D), torch tensor or numpy array (a memory map, too) of any floating type.
        items: (M, D), likewise; read once, ``block`` rows at a time. M < 2**32.
        k: how many items a query, at least 1.
        normalize: cosine (True; a zero vector scores 0) or plain inner product (False).
        block: items in one tile. Memory beyond the result is about block * (1,024 * 28 + D * 16) bytes.

    Raises:
        ValueError: shapes or types do not fit, or a row holds NaN or infinity (the row is named).
    """
    device = check_matrices(queries, items, block)
    if k < 1:
        raise ValueError(f"k = {k}: expected at least 1")
    n_queries, n_items = len(queries), len(items)
    keep = min(k, n_items)
    best = torch.empty((n_queries, 0), dtype=torch.int64, device=device)
    for start, stop in spans(n_items, block):
        columns = load_rows(items, start, stop, name="items", normalize=normalize, device=device)
        index = torch.arange(start, stop, device=device)
        width = min(keep, stop)
        merged = torch.empty((n_queries, width), dtype=torch.int64, device=device)
        for first, last in spans(n_queries, min(QUERY_ROWS, block)):
            rows = load_rows(queries, first, last, name="queries", normalize=normalize, device=device)
            keys = _order_keys(score_tile(rows, columns), index)
            keys = keys.topk(min(width, stop - start), dim=1, sorted=False).values
            merged[first:last] = torch.cat([best[first:last], keys], dim=1).topk(width, dim=1).values
        best = merged
    if n_items == 0:  # no tile has looked at the queries
        for first, last in spans(n_queries, QUERY_ROWS):
            load_rows(queries, first, last, name="queries", normalize=normalize, device=device)
    scores = torch.full((n_queries, k), -torch.inf, dtype=torch.float32, device=device)
    indices = torch.full((n_queries, k), -1, dtype=torch.int64, device=device)
    scores[:, :keep], indices[:, :keep] = _read_keys(best)
    return scores, indices


def _order_keys(scores: Tensor, index: Tensor) -> Tensor:
    """One int64 a pair whose order is (score, then lower index first), so that no two keys of a row are equal.

    The upper half is the score's bits, turned so that they sort as signed integers; the lower half counts the index
    backwards. With unique keys torch.topk, whose order among ties is undefined, has only one right answer.
    """
    bits = scores.view(torch.int32)
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int64)
    return (bits << 32) | (LOW_32_BITS - index)


def _read_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    """(scores, indices) of the keys that _order_keys made."""
    bits = (keys >> 32).to(torch.int32)
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return bits.view(torch.float32), LOW_32_BITS - (keys & LOW_32_BITS)
