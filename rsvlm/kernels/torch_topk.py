"""The torch backend of the scan behind similarity_topk: tiles of a matrix product, of which little is looked at twice.

Of each query the scan lists the items that may be among its k best by the scan's own error bound: few where items lie
apart, many where they crowd. So doubt is met with more candidates first; only a query whose list would grow beyond
all use is given up, to be scanned again in a finer type or searched exactly.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rsvlm.kernels.tiles import HALF_STEP, Rows, rounding_of, scan_error, spans

QUERIES = 8192  # held in the scan's type while all items pass by
QUERY_ROWS = 1024  # most of them in one tile; with 2,048 items a float32 tile is 8 MiB
GROUP = 32  # items whose highest score is looked at before they are
MORE_IN_FAISS = 22  # items that FAISS lists beyond k: the time it takes does not grow with so few
ITEMS_IN_FAISS = 16_384  # given to it at a time: fewer cost it speed, more memory
WIDEST = 256  # candidates of a query beyond 2 k: a longer list costs more than a finer scan


class Candidates(NamedTuple):
    """The items that may be among the k best of some queries, and what is known of all the others."""

    rows: Tensor  # (P,) int64, rising: the query of each candidate
    indices: Tensor  # (P,) int64, the item
    rest: Tensor  # (Q,) float64, no other item scores higher; -inf where there is no other, inf where nothing is known


def product(rows: Tensor, columns: Tensor, buffer: Tensor) -> Tensor:
    """rows @ columns.T (q, m) in a flat buffer of their type: fresh memory for each tile costs a tenth of the time."""
    return torch.mm(rows, columns.T, out=buffer[: len(rows) * len(columns)].view(len(rows), len(columns)))


def scan_topk(queries: Rows, span: tuple[int, int], items: Rows, k: int, block: int, dtype: torch.dtype) -> Candidates:
    """Candidates for the ``k`` <= M best items of the queries in ``span``, by tiles of ``block`` items in ``dtype``."""
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

    It lists a fixed number of items a query. Where neighbours crowd beyond that, ``scan_topk`` lists as many as it takes.
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
