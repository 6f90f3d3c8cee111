"""Exact retrieval ranks by counting: how many items beat a query's best right answer, and how many tie with it.

Right answers ("positives") come in CSR form: query q has the items ids[offsets[q]:offsets[q + 1]]. They are scored
exactly first. Then a scan in low precision compares every pair with that threshold: what lies outside the scan's error
bound is counted at once, what lies inside is scored exactly. Positives are left out by their ids. So a rank is exact
whatever the scan's precision, and never depends on two computations of one score agreeing. ``hits`` makes recalls of
the ranks, where equal scores leave an order open.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rsvlm.kernels.backends import choose_backend, choose_scan
from rsvlm.kernels.tiles import (
    MOST_IN_DOUBT,
    QUERIES,
    QUERY_ROWS,
    Band,
    Matrix,
    Pairs,
    Place,
    Rows,
    check_matrices,
    exact_tile,
    pair_scores,
    product,
    rounding_of,
    scan_error,
    spans,
    thresholds,
)

EXACT_ITEMS = 2048  # items in one exactly scored tile
LANES = 128  # masks are this many columns wide or a multiple: 16 int64 numbers of 8 marks each
TIE_RULES = ("expected", "optimistic", "pessimistic")

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


def _csr(rows: Tensor, ids: Tensor, n_rows: int) -> tuple[Tensor, Tensor]:
    """(offsets, ids) of pairs that are sorted by row."""
    offsets = torch.zeros(n_rows + 1, dtype=torch.int64, device=rows.device)
    offsets[1:] = torch.bincount(rows, minlength=n_rows).cumsum(0)
    return offsets, ids


class Ranks(NamedTuple):
    """What is known of each query's best right answer ("positive"); every field has shape (Q,)."""

    best: Tensor  # float32, the highest score among the positives; -inf without any
    greater: Tensor  # int64, other items that score higher; all items where there is no positive
    equal: Tensor  # int64, other items that score exactly the same
    tied: Tensor  # int64, positives that have the highest score (>= 1); 0 without any


def retrieval_ranks(
    queries: Matrix,
    items: Matrix,
    positives: Positives,
    *,
    normalize: bool = True,
    block: int = 2048,
) -> Ranks:
    """Rank counts of each query's best positive among the items, exact, without the (Q, M) matrix.

    Args:
        queries: (Q, D), torch tensor or numpy array of any floating type.
        items: (M, D), likewise.
        positives: right answers in CSR form, int64: query q has the items ids[offsets[q]:offsets[q + 1]]; offsets has
            length Q + 1. An id may repeat; it counts once.
        normalize: cosine (True; a zero vector scores 0) or plain inner product (False).
        block: items in one tile of the torch backend; memory is one tile plus O(Q + M + positives).

    Raises:
        ValueError: shapes, types, offsets or ids do not fit, or a row holds NaN or infinity (the row is named).
    """
    return _rank(queries, items, positives, normalize, block, two_way=False)[0]


def two_way_ranks(
    queries: Matrix, items: Matrix, positives: Positives, *, normalize: bool = True, block: int = 2048
) -> tuple[Ranks, Ranks]:
    """Rank counts of the queries among the items, and of the items among the queries, from one pass over all pairs.

    The second is what ``retrieval_ranks`` gives for the other direction, for half the work. Arguments and errors as there.
    """
    return _rank(queries, items, positives, normalize, block, two_way=True)


@torch.no_grad()
def _rank(
    queries: Matrix, items: Matrix, positives: Positives, normalize: bool, block: int, two_way: bool
) -> tuple[Ranks, ...]:
    """Ranks of the queries and, if ``two_way``, of the items."""
    device = check_matrices(queries, items, block)
    offsets, ids = check_positives(positives, len(queries), len(items), device)
    queries, items = Rows(queries, "queries", normalize, device), Rows(items, "items", normalize, device)
    owners = torch.repeat_interleave(torch.arange(len(queries), device=device), offsets.diff())
    scores = pair_scores(queries, items, owners, ids)
    sides = [_Side(owners, scores, len(queries), len(items))]
    if two_way:
        sides.append(_Side(ids, scores, len(items), len(queries)))
    known = owners * max(len(items), 1) + ids  # sorted
    for band in _scan(queries, items, sides[0].best, sides[1].best if two_way else None, block):
        if not isinstance(band, Band):
            _count_exactly(queries, items, sides, known, *band)
            continue
        (first, last), (start, stop) = band.rows, band.columns
        sides[0].greater[first:last] += band.above_rows
        if two_way:
            sides[1].greater[start:stop] += band.above_columns
        for side, near, own in zip(sides, (band.near_rows, band.near_columns), (0, 1)):
            pairs = near[0] + first, near[1] + start
            pairs = tuple(part[~_stand_in(pairs, known, len(items))] for part in pairs)
            side.add(pairs[own], pair_scores(queries, items, *pairs))
    return tuple(side.ranks() for side in sides)


def _scan(queries: Rows, items: Rows, best: Tensor, best_of_items: Tensor | None, block: int) -> Iterator[Band | Place]:
    """What the chosen backend finds, part by part of the matrix."""
    if choose_backend("retrieval_ranks", queries.device).name == "triton":
        from rsvlm.kernels.triton_ranks import scan_bands as scan_in_triton  # only here: triton is optional

        return scan_in_triton(queries, items, best, best_of_items)
    return scan_in_torch(queries, items, best, best_of_items, block)


class _Side:
    """The counts of one direction while tiles come in."""

    def __init__(self, owners: Tensor, scores: Tensor, n_rows: int, n_others: int):
        """owners, scores: the row and the exact score of each positive pair."""
        self.best = torch.full((n_rows,), -torch.inf, dtype=torch.float32, device=scores.device)
        self.best.scatter_reduce_(0, owners, scores, reduce="amax")
        self.greater, self.equal, self.tied = torch.zeros((3, n_rows), dtype=torch.int64, device=scores.device)
        self.tied.index_add_(0, owners, (scores == self.best[owners]).to(torch.int64))
        self.without = torch.bincount(owners, minlength=n_rows) == 0
        self.n_others = n_others

    def add(self, rows: Tensor, scores: Tensor) -> None:
        """Count other items of some rows by their exact scores."""
        self.greater += torch.bincount(rows[scores > self.best[rows]], minlength=len(self.equal))
        self.equal += torch.bincount(rows[scores == self.best[rows]], minlength=len(self.equal))

    def ranks(self) -> Ranks:
        """The finished counts."""
        greater = self.greater.masked_fill(self.without, self.n_others)
        return Ranks(self.best, greater, self.equal.masked_fill(self.without, 0), self.tied)


def _count_exactly(
    queries: Rows, items: Rows, sides: list[_Side], known: Tensor, rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    """Count the pairs of a part of the matrix from exact tiles."""
    for start, stop in ((columns[0] + a, columns[0] + b) for a, b in spans(columns[1] - columns[0], EXACT_ITEMS)):
        item_rows = items.exact(slice(start, stop))
        for first, last in ((rows[0] + a, rows[0] + b) for a, b in spans(rows[1] - rows[0], QUERY_ROWS)):
            own = torch.arange(first, last, device=queries.device)
            tile = exact_tile(queries, items, queries.exact(slice(first, last)), item_rows, own, start)
            # Positives are neither greater nor equal: those of a span of queries lie together in ``known``.
            span = torch.searchsorted(known, torch.tensor([first, last], device=known.device) * max(len(items), 1))
            pairs = known[int(span[0]) : int(span[1])]
            row, column = pairs // max(len(items), 1), pairs % max(len(items), 1)
            inside = (column >= start) & (column < stop)
            tile[row[inside] - first, column[inside] - start] = torch.nan
            thresholds = [sides[0].best[first:last, None], *(side.best[None, start:stop] for side in sides[1:])]
            for side, best, at, axis in zip(sides, thresholds, (slice(first, last), slice(start, stop)), (1, 0)):
                side.greater[at] += (tile > best).sum(dim=axis)
                side.equal[at] += (tile == best).sum(dim=axis)


def _stand_in(pairs: Pairs, known: Tensor, n_items: int) -> Tensor:
    """Which of the pairs are in ``known``, sorted query * n_items + item. Shape of the pairs, bool."""
    keys = pairs[0] * max(n_items, 1) + pairs[1]
    if len(known) == 0:
        return torch.zeros_like(keys, dtype=torch.bool)
    at = torch.searchsorted(known, keys).clamp_max(len(known) - 1)
    return known[at] == keys


def scan_in_torch(
    queries: Rows, items: Rows, best: Tensor, best_of_items: Tensor | None, block: int
) -> Iterator[Band | Place]:
    """By tiles of a matrix product, against two thresholds a row: a Band for each tile, or only the place of a tile in which too much is in doubt.

    Args:
        best: (Q,) float32, the exact score of each query's best positive; -inf without one.
        best_of_items: (M,) likewise; None leaves the other direction out.
        block: items in one tile.
    """
    device = queries.device
    dtype = getattr(torch, choose_scan("retrieval_ranks", device).name)
    rounding = rounding_of(dtype, device)
    height = min(QUERY_ROWS, block)
    tall, wide = min(height, len(queries)), min(block, len(items))
    buffer = torch.empty(tall * wide, device=device)
    masks = torch.empty((2, tall * (-(-wide // LANES) * LANES)), dtype=torch.bool, device=device)
    for begin, end in spans(len(queries), QUERIES):
        held = queries.scanned(begin, end, dtype)
        for start, stop in spans(len(items), block):
            columns = items.scanned(start, stop, dtype)
            for first, last in spans(end - begin, height):
                rows, place = held.part(first, last), ((begin + first, begin + last), (start, stop))
                error = scan_error(rows, columns)
                if not bool(torch.isfinite(error).all()):
                    yield place
                    continue
                tile = product(rows.rows, columns.rows, buffer)
                low, high = thresholds(best[slice(*place[0])], error, rounding=rounding)
                above, near = _compare(tile, low[:, None], high[:, None], masks)
                band = [_count_rows(above), _find(near), None, None]
                if best_of_items is not None:
                    low, high = thresholds(best_of_items[start:stop], scan_error(columns, rows), rounding=rounding)
                    above, near = _compare(tile, low, high, masks)
                    band[2:] = _count_columns(above)[: stop - start], _find(near)
                in_doubt = band[1] is None or (best_of_items is not None and band[3] is None)
                yield place if in_doubt else Band(*place, *band)


def _compare(tile: Tensor, low: Tensor, high: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Masks (q, W) of what lies above ``high`` and of what lies between, W a multiple of LANES, its rest False.

    They are views of ``masks`` (2, ...): memory that is used again costs less than fresh one.
    """
    height, width = tile.shape
    padded = -(-width // LANES) * LANES
    above, near = masks[:, : height * padded].view(2, height, padded)
    torch.gt(tile, high, out=above[:, :width])
    torch.ge(tile, low, out=near[:, :width])
    above[:, width:] = near[:, width:] = False
    return above, near.bitwise_xor_(above)  # above implies near: low <= high


def _count_rows(mask: Tensor) -> Tensor:
    """Marks in each row, (q,) int64. Bytes are added eight at a time, as int64, up to 255 times."""
    lanes = mask.view(torch.int64).unflatten(1, (-1, LANES // 8))
    counts = torch.zeros(len(mask), dtype=torch.int64, device=mask.device)
    for first, last in spans(lanes.shape[1], 255):
        counts += lanes[:, first:last].sum(dim=1).view(torch.uint8).sum(dim=1, dtype=torch.int64)
    return counts


def _count_columns(mask: Tensor) -> Tensor:
    """Marks in each column, (W,) int64."""
    counts = torch.zeros(mask.shape[1], dtype=torch.int64, device=mask.device)
    for first, last in spans(len(mask), 255):
        counts += mask[first:last].view(torch.int64).sum(dim=0).view(torch.uint8)
    return counts


def _find(mask: Tensor) -> Pairs | None:
    """(rows, columns) of the marks; None when there are too many. Eight marks are looked at together."""
    lanes = mask.view(torch.int64)
    row, lane = lanes.nonzero(as_tuple=True)
    if len(row) > lanes.numel() * 8 * MOST_IN_DOUBT + LANES:
        return None
    hit, byte = lanes[row, lane].view(torch.uint8).view(-1, 8).nonzero(as_tuple=True)
    return row[hit], lane[hit] * 8 + byte


def hits(ranks: Ranks, k: int, ties: str = "expected") -> np.ndarray:
    """Chance in 0..1, for each query, that a right answer is among the first k. Shape (Q,), float64.

    With g items better than the best right answer, e others equal to it and p right ones tied there, of the k places
    s = k - g are left for the e + p, in random order: 1 - C(e, s) / C(e + p, s).
    """
    g, e, p = (np.asarray(part).astype(np.int64) for part in (ranks.greater, ranks.equal, ranks.tied))
    if ties == "optimistic":
        return ((g < k) & (p > 0)).astype(np.float64)
    if ties == "pessimistic":
        return ((g + e < k) & (p > 0)).astype(np.float64)
    if ties != "expected":
        raise ValueError(f"tie rule {ties!r}: expected one of {', '.join(TIE_RULES)}")
    left = np.clip(k - g, 0, e + p)
    missed = np.ones(len(g))
    for place in range(k):  # the chance that each place in turn goes to a wrong one
        factor = np.clip(e - place, 0, None) / np.maximum(e + p - place, 1)
        missed = np.where(place < left, missed * factor, missed)
    return 1 - missed
