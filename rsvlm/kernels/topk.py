"""Exact top-k search by inner product or cosine.

A scan in low precision proposes a few candidates for each query and bounds everything else. The candidates are scored
exactly; where the bound leaves no doubt, the k best of them are the answer. The few queries in doubt, such as those
with many exact ties at the k-th place, are searched again with exact scores throughout. So the answer has the same
bits with either twin, for every block size and however the items are split.
"""

import torch
from torch import Tensor

from rsvlm.kernels.tiles import HALF_STEP, Matrix, Rows, check_matrices, exact_tile, pair_scores, spans
from rsvlm.kernels.torch_topk import QUERY_ROWS, Candidates
from rsvlm.kernels.torch_topk import scan_topk as scan_in_torch
from rsvlm.kernels.twins import choose_twin

SPARE = 6  # candidates beyond k: room for near ties at the k-th place
LOW_32_BITS = 0xFFFFFFFF


@torch.no_grad()
def similarity_topk(
    queries: Matrix, items: Matrix, k: int, *, normalize: bool = True, block: int = 2048, offset: int = 0
) -> tuple[Tensor, Tensor]:
    """The k items with the highest score for each query: (scores (Q, k) float32, indices (Q, k) int64).

    Order: score downwards, then index upwards, also among exact ties. With fewer than k items the rest holds score
    -inf and index -1. What a score is stands in ``rsvlm.kernels.tiles``.

    Args:
        queries: (Q, D), torch tensor or numpy array (a memory map, too) of any floating type.
        items: (M, D), likewise; read ``block`` rows at a time, once for every 4,096 queries. M < 2**32.
        k: how many items a query, at least 1.
        normalize: cosine (True; a zero vector scores 0) or plain inner product (False).
        block: items in one tile of the torch twin. Memory beyond the result is about block * 4,096 bytes, O((Q + block)
            * k), and what rows of another type or length than wanted take in float32: (4,096 + block) * D * 4 bytes.
        offset: index of the first item, where ``items`` is a part of more: ``merge_topk`` puts the parts together.

    Raises:
        ValueError: shapes or types do not fit, or a row holds NaN or infinity (the row is named).
    """
    device = check_matrices(queries, items, block)
    if k < 1:
        raise ValueError(f"k = {k}: expected at least 1")
    queries = Rows(queries, "queries", normalize, device)
    items = Rows(items, "items", normalize, device)
    n_queries, n_items = len(queries), len(items)
    scores = torch.full((n_queries, k), -torch.inf, dtype=torch.float32, device=device)
    indices = torch.full((n_queries, k), -1, dtype=torch.int64, device=device)
    if n_queries == 0 or n_items == 0:  # nothing to scan, but rows that are no numbers are refused all the same
        for rows in (queries, items):
            for first, last in spans(len(rows), block):
                rows.exact(slice(first, last))
        return scores, indices
    found = _scan(queries, items, min(k + SPARE, n_items), block)
    keys, certain = _settle(queries, items, found, min(k, n_items))
    if not bool(certain.all()):
        doubtful = (~certain).nonzero()[:, 0]
        keys[doubtful] = _search_exactly(queries, items, doubtful, min(k, n_items), block)
    scores[:, :n_items], indices[:, :n_items] = _read_keys(keys, offset)
    return scores, indices


def merge_topk(parts: list[tuple[Tensor, Tensor]], k: int) -> tuple[Tensor, Tensor]:
    """The k best of several answers of similarity_topk on parts of the items: (scores (Q, k), indices (Q, k)).

    The same bits as one search over all items, in whatever order the parts come; each part must have been searched for
    at least k items, with its own ``offset``.

    Raises:
        ValueError: no parts, or a part with fewer than k columns.
    """
    if not parts or any(scores.shape[1] < k for scores, _ in parts):
        raise ValueError(f"merge_topk: each of at least one part must hold {k} columns")
    scores, indices = (torch.cat(column, dim=1) for column in zip(*parts))
    indices, order = torch.where(indices < 0, torch.iinfo(torch.int64).max, indices).sort(dim=1)
    scores, order = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
    indices = indices.gather(1, order)[:, :k]
    return scores[:, :k].contiguous(), indices.where(indices != torch.iinfo(torch.int64).max, -1)


def _scan(queries: Rows, items: Rows, keep: int, block: int) -> Candidates:
    """The candidates that the chosen twin proposes."""
    if choose_twin("similarity_topk", queries.device).name == "triton":
        from rsvlm.kernels.triton_topk import scan_topk as scan_in_triton  # only here: triton is optional

        return scan_in_triton(queries, items, keep)
    return scan_in_torch(queries, items, keep, block)


def _settle(queries: Rows, items: Rows, found: Candidates, k: int) -> tuple[Tensor, Tensor]:
    """(order keys (Q, k) of the k best candidates by exact score, whether no other item can belong there (Q,))."""
    kth = found.scores.topk(k, dim=1).values[:, -1:].double()
    # All others are surely below k of these. Without a finite bound nothing is sure, and the scan may hold no numbers.
    close = (found.scores >= kth - 2 * found.error[:, None]) & (found.indices >= 0)
    row, place = close.nonzero(as_tuple=True)
    index = found.indices[row, place]
    keys = torch.full_like(found.indices, torch.iinfo(torch.int64).min)
    keys[row, place] = _order_keys(pair_scores(queries, items, row, index), index)
    keys = keys.topk(k, dim=1).values
    limit = (found.rest.double() + found.error) * found.unit
    limit = limit + limit.abs() * (2 * HALF_STEP[torch.float32])  # a score is rounded to float32
    lowest = _read_keys(keys[:, -1:], 0)[0][:, 0].double()
    return keys, (torch.isneginf(found.rest) | (limit < lowest)) & torch.isfinite(found.error)


def _search_exactly(queries: Rows, items: Rows, which: Tensor, k: int, block: int) -> Tensor:
    """Order keys (len(which), k) of the k best of all items, for some queries, from exact tiles."""
    best = torch.empty((len(which), 0), dtype=torch.int64, device=queries.device)
    for start, stop in spans(len(items), block):
        columns = items.exact(slice(start, stop))
        index = torch.arange(start, stop, device=queries.device)
        width = min(k, stop)
        merged = torch.empty((len(which), width), dtype=torch.int64, device=queries.device)
        for first, last in spans(len(which), min(QUERY_ROWS, block)):
            own = which[first:last]
            keys = _order_keys(exact_tile(queries, items, queries.exact(own), columns, own, start), index)
            keys = keys.topk(min(width, stop - start), dim=1, sorted=False).values
            merged[first:last] = torch.cat([best[first:last], keys], dim=1).topk(width, dim=1).values
        best = merged
    return best


def _order_keys(scores: Tensor, index: Tensor) -> Tensor:
    """One int64 a pair whose order is (score, then lower index first), so that no two keys of a row are equal.

    The upper half is the score's bits, turned so that they sort as signed integers; the lower half counts the index
    backwards. With unique keys torch.topk, whose order among ties is undefined, has only one right answer.
    """
    bits = scores.view(torch.int32)
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int64)
    return (bits << 32) | (LOW_32_BITS - index)


def _read_keys(keys: Tensor, offset: int) -> tuple[Tensor, Tensor]:
    """(scores, indices) of the keys that _order_keys made."""
    bits = (keys >> 32).to(torch.int32)
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return bits.view(torch.float32), LOW_32_BITS - (keys & LOW_32_BITS) + offset
