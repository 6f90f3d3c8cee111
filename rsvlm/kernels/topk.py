"""Exact top-k search by inner product or cosine.

A scan in low precision proposes candidates for each query and bounds everything else. The candidates are scored
exactly; where the bound leaves no doubt, the k best of them are the answer. Doubt climbs a ladder: more candidates
where items crowd; then a finer scan of the doubtful queries alone; last, as with hundreds of exact ties at the
k-th place, exact scores throughout. So the answer has the same bits with either backend, whatever scans, for every block
size and however the items are split.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from rsvlm.kernels.backends import choose_backend, choose_scan
from rsvlm.kernels.tiles import HALF_STEP, Matrix, Rows, check_matrices, exact_tile, pair_scores, spans
from rsvlm.kernels.torch_topk import QUERIES, QUERY_ROWS, Candidates, scan_in_faiss
from rsvlm.kernels.torch_topk import scan_topk as scan_in_torch

MOST_IN_FAISS = 1000  # k up to which FAISS scans: beyond, its selection is slow
MORE = 6  # candidates beyond k that are nothing to speak of
LOW_32_BITS = 0xFFFFFFFF

_counts: ContextVar[Counter | None] = ContextVar("counts", default=None)


@torch.no_grad()
def similarity_topk(
    queries: Matrix, items: Matrix, k: int, *, normalize: bool = True, block: int = 2048, offset: int = 0
) -> tuple[Tensor, Tensor]:
    """The k items with the highest score for each query: (scores (Q, k) float32, indices (Q, k) int64).

    Order: score downwards, then index upwards, also among exact ties. With fewer than k items the rest holds score
    -inf and index -1. What a score is stands in ``rsvlm.kernels.tiles``.

    Args:
        queries: (Q, D), torch tensor or numpy array (a memory map, too) of any floating type.
        items: (M, D), likewise; read ``block`` rows at a time, once for every 8,192 queries. M < 2**32.
        k: how many items a query, at least 1.
        normalize: cosine (True; a zero vector scores 0) or plain inner product (False).
        block: items in one tile of the torch backend; FAISS is given at least 16,384. Memory beyond the result is about
            block * 4,096 bytes, at most 40 for each of 8,192 * (2 k + 256) candidates, O((Q + block) * k), and what
            rows of another type or length than wanted take in float32: (8,192 + block) * D * 4 bytes.
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
    k = min(k, n_items)
    keys = _search(queries, items, k, block, _ladder(device, k, queries.width))
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


@contextmanager
def count_rungs() -> Iterator[Counter]:
    """Counts, within it, of the queries that each rung of the ladder was asked, by its name, and of some more:

    "more candidates" than k + 6 had to be scored exactly for so many queries, and "pairs" were so scored in all.
    """
    token = _counts.set(Counter())
    try:
        yield _counts.get()
    finally:
        _counts.reset(token)


class _Rung(NamedTuple):
    """A scan that settles most queries."""

    name: str
    queries: int | None  # that it is given at a time; None for all
    scan: Callable[[Rows, tuple[int, int], Rows, int, int], Candidates]  # queries, span, items, k, block


def _ladder(device: torch.device, k: int, width: int) -> list[_Rung]:
    """What a query climbs until it is settled, fastest first; beyond the last rung all items are scored exactly."""
    if choose_backend("similarity_topk", device).name == "triton":
        from rsvlm.kernels.triton_topk import scan_topk as scan_in_triton  # only here: triton is optional

        return [_Rung("triton", None, lambda queries, span, items, k, block: scan_in_triton(queries, items, k))]
    names = list(dict.fromkeys([choose_scan("similarity_topk", device).name, "float32"]))
    rungs = [
        _Rung(name, QUERIES, partial(scan_in_torch, dtype=getattr(torch, name))) for name in names if name != "faiss"
    ]
    if "faiss" in names and k <= MOST_IN_FAISS and width:
        rungs.insert(0, _Rung("faiss", QUERIES, scan_in_faiss))
    return rungs


def _search(queries: Rows, items: Rows, k: int, block: int, ladder: list[_Rung]) -> Tensor:
    """Order keys (Q, k) of each query's k best items."""
    counts = Counter() if _counts.get() is None else _counts.get()
    counts[ladder[0].name if ladder else "exact"] += len(queries)
    if not ladder:
        return _search_exactly(queries, items, k, block)
    keys = torch.empty((len(queries), k), dtype=torch.int64, device=queries.device)
    certain = torch.empty(len(queries), dtype=torch.bool, device=queries.device)
    for span in spans(len(queries), ladder[0].queries or len(queries)):
        here = slice(*span)
        found = ladder[0].scan(queries, span, items, k, block)
        keys[here], certain[here] = _settle(queries, span[0], items, found, k, counts)
    if not bool(certain.all()):
        doubtful = (~certain).nonzero()[:, 0]
        keys[doubtful] = _search(queries.some(doubtful), items, k, block, ladder[1:])
    return keys


def _settle(
    queries: Rows, begin: int, items: Rows, found: Candidates, k: int, counts: Counter
) -> tuple[Tensor, Tensor]:
    """(order keys (q, k) of the k best candidates by exact score, whether no other item can belong there (q,)).

    Args:
        begin: the query of row 0 in ``found``.
    """
    n_rows = len(found.rest)
    lengths = torch.bincount(found.rows, minlength=n_rows)
    ends = lengths.cumsum(0)
    counts["more candidates"] += int((lengths > k + MORE).sum())
    counts["pairs"] += len(found.rows)
    keys = torch.empty((n_rows, k), dtype=torch.int64, device=queries.device)
    for first, last in spans(n_rows, QUERY_ROWS):
        own = slice(int(ends[first] - lengths[first]), int(ends[last - 1]))
        row, index = found.rows[own], found.indices[own]
        place = torch.arange(own.start, own.stop, device=row.device) - (ends - lengths)[row]
        width = max(k, int(lengths[first:last].max()))
        every = keys.new_full((last - first, width), torch.iinfo(torch.int64).min)
        every[row - first, place] = _order_keys(pair_scores(queries, items, row + begin, index), index)
        keys[first:last] = every.topk(k, dim=1).values
    limit = found.rest + found.rest.abs() * (2 * HALF_STEP[torch.float32])  # a score is rounded to float32
    return keys, torch.isneginf(found.rest) | (limit < _read_keys(keys[:, -1], 0)[0].double())


def _search_exactly(queries: Rows, items: Rows, k: int, block: int) -> Tensor:
    """Order keys (Q, k) of the k best of all items, from exact tiles."""
    best = torch.empty((len(queries), 0), dtype=torch.int64, device=queries.device)
    for start, stop in spans(len(items), block):
        columns = items.exact(slice(start, stop))
        index = torch.arange(start, stop, device=queries.device)
        width = min(k, stop)
        merged = torch.empty((len(queries), width), dtype=torch.int64, device=queries.device)
        for first, last in spans(len(queries), min(QUERY_ROWS, block)):
            own = torch.arange(first, last, device=queries.device)
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
