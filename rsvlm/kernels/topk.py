"""Exact top-k search by inner product or cosine.

A scan in low precision proposes candidates for each query and bounds everything else. The candidates are scored
exactly; where the bound leaves no doubt, the k best of them are the answer. Doubt climbs a ladder: more candidates
where items crowd; then a finer scan of the doubtful queries alone; last, as with hundreds of exact ties at the
k-th place, exact scores throughout. So the answer has the same bits with either backend, whatever scans, and for every
block size.
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
from rsvlm.kernels.tiles import (
    HALF_STEP,
    QUERIES,
    QUERY_ROWS,
    Candidates,
    Matrix,
    Prepared,
    Rows,
    check_matrices,
    exact_tile,
    pair_scores,
    product,
    rounding_of,
    scan_error,
    spans,
)

MOST_IN_FAISS = 1000  # k up to which FAISS scans: beyond, its selection is slow
MORE = 6  # candidates beyond k that are nothing to speak of
LOW_32_BITS = 0xFFFFFFFF
GROUP = 32  # items whose highest score is looked at before they are
MORE_IN_FAISS = 22  # items that FAISS lists beyond k: the time it takes does not grow with so few
ITEMS_IN_FAISS = 16_384  # given to it at a time: fewer cost it speed, more memory
WIDEST = 256  # candidates of a query beyond 2 k: a longer list costs more than a finer scan

_counts: ContextVar[Counter | None] = ContextVar("counts", default=None)


@torch.no_grad()
def similarity_topk(
    queries: Matrix, items: Matrix | Prepared, k: int, *, normalize: bool = True, block: int = 2048
) -> tuple[Tensor, Tensor]:
    """The k items with the highest score for each query: (scores (Q, k) float32, indices (Q, k) int64).

    Order: score downwards, then index upwards, also among exact ties. With fewer than k items the rest holds score
    -inf and index -1. What a score is stands in ``rsvlm.kernels.tiles``.

    Args:
        queries: (Q, D), torch tensor or numpy array (a memory map, too) of any floating type.
        items: (M, D), likewise; read ``block`` rows at a time, once for every 8,192 queries. M < 2**32. For many calls with
            the same: what ``prepare`` makes of them.
        k: how many items a query, at least 1.
        normalize: cosine (True; a zero vector scores 0) or plain inner product (False).
        block: items in one tile of the torch backend; FAISS is given at least 16,384. Memory beyond the result is about
            block * 4,096 bytes, at most 40 for each of 8,192 * (2 k + 256) candidates, O((Q + block) * k), and what
            rows of another type or length than wanted take in float32: (8,192 + block) * D * 4 bytes.

    Raises:
        ValueError: shapes or types do not fit, a row holds NaN or infinity (the row is named), or the items were prepared
            otherwise.
    """
    prepared = items if isinstance(items, Prepared) else None
    device = check_matrices(queries, items if prepared is None else items.matrix, block)
    if k < 1:
        raise ValueError(f"k = {k}: expected at least 1")
    if prepared is not None and (prepared.normalize, prepared.device) != (normalize, device):
        made = f"normalize={prepared.normalize} on {prepared.device}"
        raise ValueError(f"items: prepared with {made}, asked for with normalize={normalize} on {device}")
    queries = Rows(queries, "queries", normalize, device)
    items = Rows(items, "items", normalize, device) if prepared is None else prepared
    n_queries, n_items = len(queries), len(items)
    scores = torch.full((n_queries, k), -torch.inf, dtype=torch.float32, device=device)
    indices = torch.full((n_queries, k), -1, dtype=torch.int64, device=device)
    if n_queries == 0 or n_items == 0:  # nothing to scan, but rows that are no numbers are refused all the same
        for rows in (queries, items):
            for first, last in spans(len(rows), block):
                rows.exact(slice(first, last))
        return scores, indices
    k = min(k, n_items)
    ladder = _ladder(device, k, queries.width, None if prepared is None else len(queries))
    keys = _search(queries, items, k, block, ladder)
    scores[:, :n_items], indices[:, :n_items] = _read_keys(keys)
    return scores, indices


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


def _ladder(device: torch.device, k: int, width: int, prepared_for: int | None) -> list[_Rung]:
    """What a query climbs until it is settled, fastest first; beyond the last rung all items are scored exactly.

    Args:
        prepared_for: as of ``choose_scan``.
    """
    if choose_backend("similarity_topk", device).name == "triton":
        from rsvlm.kernels.triton_topk import scan_topk as scan_in_triton  # only here: triton is optional

        return [_Rung("triton", None, lambda queries, span, items, k, block: scan_in_triton(queries, items, k))]
    chosen = choose_scan("similarity_topk", device, prepared_for).name
    names = list(dict.fromkeys([chosen, "float32"]))
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
    return keys, torch.isneginf(found.rest) | (limit < _read_keys(keys[:, -1])[0].double())


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


def _read_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    """(scores, indices) of the keys that _order_keys made."""
    bits = (keys >> 32).to(torch.int32)
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return bits.view(torch.float32), LOW_32_BITS - (keys & LOW_32_BITS)


def scan_in_torch(
    queries: Rows, span: tuple[int, int], items: Rows, k: int, block: int, dtype: torch.dtype
) -> Candidates:
    """Candidates for the ``k`` <= M best items of the queries in ``span``, by tiles of ``block`` items in ``dtype``.

    Of each query it lists the items that may be among its k best by the scan's own error bound: few where items lie
    apart, many where they crowd. Only a query whose list would grow beyond all use is given up, to be scanned again in
    a finer type or searched exactly.
    """
    device, (begin, end) = queries.device, span
    held = queries.scanned(begin, end, dtype)
    parts = [(held.part(*piece), _Kept(piece[1] - piece[0], k, dtype, device))
             for piece in spans(end - begin, min(QUERY_ROWS, block))]  # fmt: skip
    buffer = torch.empty(len(parts[0][0].rows) * min(block, len(items)), dtype=dtype, device=device)
    for start, stop in spans(len(items), block):
        columns = items.scanned(start, stop, dtype)
        for rows, kept in parts:
            kept.look(product(rows.rows, columns.rows, buffer), start, scan_error(rows, columns))
    first, found = 0, []
    for rows, kept in parts:
        row, index = kept.listed()
        found.append((row + first, index, kept.rest))
        first += len(rows.rows)
    return Candidates(*map(torch.cat, zip(*found)))


def floor_of(kth: Tensor, error: Tensor, rounding: float) -> tuple[Tensor, Tensor]:
    """Scanned scores below which nothing belongs to the k best, (q,) float32; what true scores they then stay below.

    A true score t and its scan s have |s - t| <= error + rounding |s|. So k items score ``least`` = kth - error -
    rounding |kth| or higher, and those with s + error + rounding |s| < least do not belong to them. Rows without a
    finite bound get infinity for both. Two half steps keep apart what would meet when it is rounded to float32.

    Args:
        kth: (q,) scanned scores that k items reach.
        error: (q,) float64, as ``scan_error`` gives it.
        rounding: as ``rounding_of`` gives it.
    """
    kth = kth.double().clamp_min(torch.finfo(torch.float32).min)
    least = kth - error - rounding * kth.abs()
    least = least - least.abs() * (4 * HALF_STEP[torch.float32])
    reach = least - error
    floor = torch.where(reach > 0, reach / (1 + rounding), reach / (1 - rounding))
    floor = torch.nextafter(floor.to(torch.float32), torch.tensor(-torch.inf, device=floor.device))
    unbounded = ~torch.isfinite(error)
    return floor.masked_fill_(unbounded, torch.inf), least.masked_fill_(unbounded, torch.inf)


def scan_in_faiss(queries: Rows, span: tuple[int, int], items: Rows, k: int, block: int) -> Candidates:
    """The same on a CPU by FAISS, whose product and selection in float32 are faster there.

    It lists a fixed number of items a query. Where neighbours crowd beyond that, ``scan_in_torch`` lists as many as it takes.
    """
    import faiss  # only here: it is optional

    begin, end = span
    rows = queries.scanned(begin, end, torch.float32)
    kept = min(k + MORE_IN_FAISS, len(items))
    scores = torch.full((end - begin, kept), -torch.inf)
    indices = torch.zeros((end - begin, kept), dtype=torch.int64)
    error = torch.zeros(end - begin, dtype=torch.float64)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        for start, stop in spans(len(items), max(block, ITEMS_IN_FAISS)):
            columns = items.scanned(start, stop, torch.float32)
            error = torch.maximum(error, scan_error(rows, columns))
            found = faiss.knn(
                rows.rows.numpy(), columns.rows.numpy(), min(kept, stop - start), metric=faiss.METRIC_INNER_PRODUCT
            )
            scores = torch.cat([scores, torch.from_numpy(found[0])], dim=1)
            indices = torch.cat([indices, torch.from_numpy(found[1]) + start], dim=1)
            scores, order = scores.topk(kept, dim=1)
            indices = indices.gather(1, order)
    finally:
        faiss.omp_set_num_threads(threads)
    floor, rest = floor_of(scores[:, k - 1], error, rounding_of(torch.float32, rows.rows.device))
    if kept < len(items):
        rest = torch.maximum(rest, scores[:, -1].double() + error)
    row, place = ((scores >= floor[:, None]) & (scores > -torch.inf)).nonzero(as_tuple=True)
    return Candidates(row, indices[row, place], rest)


class _Kept:
    """What some queries keep while tiles pass by: their k highest scores, and every item that may belong there."""

    def __init__(self, n_rows: int, k: int, dtype: torch.dtype, device: torch.device):
        self.rounding = rounding_of(dtype, device)
        self.widest = 2 * k + WIDEST
        self.best = torch.full((n_rows, k), -torch.inf, device=device)  # scanned, highest first
        self.error = torch.zeros(n_rows, dtype=torch.float64, device=device)
        self.floor = torch.full((n_rows,), -torch.inf, device=device)  # what scans lower cannot belong there
        self.rest = torch.full((n_rows,), -torch.inf, dtype=torch.float64, device=device)
        self.parts: list[tuple[Tensor, Tensor, Tensor]] = []  # (rows, indices, scanned scores)
        self.length = 0  # of all parts

    def look(self, tile: Tensor, start: int, error: Tensor) -> None:
        """Take from a tile (q, m) whatever scans high enough.

        Args:
            start: index of the tile's first column.
            error: how far its scores can be from the true ones before they are rounded (``scan_error``).
        """
        width, k = tile.shape[1], self.best.shape[1]
        self.error = torch.maximum(self.error, error)
        even = width - width % GROUP
        # A row's columns are looked at in groups (every (m / GROUP)-th column), of which few hold anything.
        grouped = tile[:, :even].unflatten(1, (GROUP, even // GROUP))  # (q, GROUP, groups)
        highest = grouped.amax(dim=1) if even else tile[:, :0]
        kth = self.best[:, -1]
        if width >= k and bool(torch.isneginf(kth).any()):
            # As many items as there are places reach the k-th highest maximum.
            some = highest if highest.shape[1] >= k else tile
            kth = torch.maximum(kth, some.topk(k, dim=1).values[:, -1].to(torch.float32))
        self._raise_floor(kth)

        floor = self.floor[:, None]
        row, group = (highest >= floor).nonzero(as_tuple=True)
        values = grouped.transpose(1, 2)[row, group]  # (hits, GROUP)
        hit, member = (values >= floor[row]).nonzero(as_tuple=True)
        row, column, value = row[hit], member * max(even // GROUP, 1) + group[hit], values[hit, member]
        if even < width:
            tail = (tile[:, even:] >= floor).nonzero(as_tuple=True)
            row, order = torch.cat([row, tail[0]]).sort(stable=True)
            column = torch.cat([column, tail[1] + even])[order]
            value = torch.cat([value, tile[:, even:][tail]])[order]
        if len(row):
            self._add(row, column + start, value.to(torch.float32))

    def listed(self) -> tuple[Tensor, Tensor]:
        """(rows, indices) of all candidates, rows rising."""
        self._raise_floor(self.best[:, -1])
        self._shorten()
        if not self.parts:
            return (torch.empty(0, dtype=torch.int64, device=self.best.device),) * 2
        row, order = self.parts[0][0].sort(stable=True)
        return row, self.parts[0][1][order]

    def _raise_floor(self, kth: Tensor) -> None:
        """Set the floor by scanned scores that k items are known to reach."""
        self.floor, rest = floor_of(kth, self.error, self.rounding)
        self.rest = torch.maximum(self.rest, rest)
        self.floor.masked_fill_(torch.isposinf(self.rest), torch.inf)

    def _add(self, row: Tensor, index: Tensor, score: Tensor) -> None:
        """List some candidates, rows rising, and let their scores into the best."""
        self.parts.append((row, index, score))
        self.length += len(row)
        own, place, counts = torch.unique_consecutive(row, return_inverse=True, return_counts=True)
        column = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[place]
        more = score.new_full((len(own), int(counts.max())), -torch.inf)
        more[place, column] = score
        self.best[own] = torch.cat([self.best[own], more], dim=1).topk(self.best.shape[1], dim=1).values
        if self.length > len(self.best) * self.widest:
            self._raise_floor(self.best[:, -1])
            self._shorten()

    def _shorten(self) -> None:
        """Drop candidates below the floor, and give up rows that still have too many."""
        if not self.parts:
            return
        row, index, score = (torch.cat(column) for column in zip(*self.parts))
        kept = score >= self.floor[row]
        crowded = torch.bincount(row[kept], minlength=len(self.best)) > self.widest
        self.rest[crowded] = self.floor[crowded] = torch.inf
        kept &= ~crowded[row]
        self.parts = [(row[kept], index[kept], score[kept])]
        self.length = len(self.parts[0][0])
