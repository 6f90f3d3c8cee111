"""What a score is, how to have it exactly, and how far a fast matrix product may be from it.

**A score is the inner product of two rows in float64, added up in one fixed order, rounded to float32.** The order is
that of ``sum_in_fixed_order``: element-wise operations only, so a pair has the same score wherever it lies in a
matrix, on a CPU and on a GPU, alone or among millions. Equal rows tie. Library products do not have this property:
they add edge columns, single rows and large blocks in different orders.

Scoring every pair like that would be slow. So a *scan* looks at all pairs with a fast product in low precision, and
``scan_error`` says how far it can be from the true value; only pairs that this leaves undecided are scored exactly.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

NORM_FLOOR = 1e-12  # as torch.nn.functional.normalize: a zero vector stays zero and scores 0 against everything
ROWS_AT_ONCE = 4096  # rows that are turned into float64 together
PAIR_VALUES = {"cpu": 2**17, "cuda": 2**25}  # float64 values in one step of pair_scores: 1 MiB, 256 MiB
LARGEST = 1e37  # products of row lengths up to here cannot overflow in float32
TINY = 2.0**-120  # more than what underflow can take from one product, also where subnormals are flushed to zero
HALF_STEP = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
PRODUCT_SLACK = {"highest": 0.0, "high": 2.0**-9, "medium": 2.0**-6}  # torch.set_float32_matmul_precision

NUMPY_TYPES = {np.dtype(np.float16): torch.float16, np.dtype(np.float32): torch.float32}

QUERIES = 8192  # held in a scan's type while all items pass by
QUERY_ROWS = 1024  # most of them in one tile; with 2,048 items a float32 tile is 8 MiB
MOST_IN_DOUBT = 1 / 64  # share of a tile's pairs; beyond it its ranks are counted exactly as a whole

Matrix = Tensor | np.ndarray
Place = tuple[tuple[int, int], tuple[int, int]]  # queries and items of a tile: the first, and the last + 1
Pairs = tuple[Tensor, Tensor]  # (rows, columns) of a tile, int64


class Candidates(NamedTuple):
    """What a scan leaves of top-k: the items that may be among the k best of some queries, and a bound of all others."""

    rows: Tensor  # (P,) int64, rising: the query of each candidate
    indices: Tensor  # (P,) int64, the item
    rest: Tensor  # (Q,) float64, no other item scores higher; -inf where there is no other, inf where nothing is known


class Band(NamedTuple):
    """What a scan leaves of ranks: how a tile's scores lie to the best positives of its rows and columns."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    above_rows: Tensor  # (q,) int64, items that surely score higher than a row's best positive
    near_rows: Pairs  # pairs that the scan cannot place below or above it
    above_columns: Tensor | None  # the same for the other direction, where it is asked for
    near_columns: Pairs | None


class Scanned(NamedTuple):
    """Rows in the precision of a scan, with what it cost them."""

    rows: Tensor  # (n, W), the rows divided by ``unit``; W is D or more, filled up with zeros
    size: Tensor  # (n,) float64, at least the length of a row (divided by ``unit``)
    slip: Tensor  # (n,) float64, at least the distance between such a row and ``rows``
    unit: float

    def part(self, start: int, stop: int) -> "Scanned":
        """Some of the rows."""
        return Scanned(self.rows[start:stop], self.size[start:stop], self.slip[start:stop], self.unit)


@dataclass(frozen=True)
class Rows:
    """The rows of a matrix, read in pieces: exactly, or for a scan.

    Attributes:
        matrix: (n, D), torch tensor or numpy array (a memory map, too) of any floating type.
        name: what errors call it.
        normalize: rows count with unit length.
        device: where the work is done.
        only: (n,) int64, on the device: these rows of the matrix stand for all, in this order; None for all.
    """

    matrix: Matrix
    name: str
    normalize: bool
    device: torch.device
    only: Tensor | None = None

    def __len__(self) -> int:
        return len(self.matrix) if self.only is None else len(self.only)

    def some(self, which: Tensor) -> "Rows":
        """Rows ``which`` (int64) of these, nothing read yet."""
        return replace(self, only=which if self.only is None else self.only[which])

    @property
    def width(self) -> int:
        """D."""
        return self.matrix.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The type that ``read`` gives; what torch does not know (long doubles, foreign byte orders) is float64."""
        kind = self.matrix.dtype
        return kind if isinstance(kind, torch.dtype) else NUMPY_TYPES.get(kind, torch.float64)

    def read(self, which: slice | Tensor) -> Tensor:
        """Some rows as they are, on the device; a view where that is possible."""
        if self.only is not None:
            which = self.only[which]
        if isinstance(self.matrix, Tensor):
            matrix = self.matrix.detach()
            if isinstance(which, slice):
                return matrix[which].to(self.device)
            return matrix.index_select(0, which.to(matrix.device)).to(self.device)
        if isinstance(which, Tensor):
            which = which.cpu().numpy()
        # A copy: memory maps are read-only, and torch takes no negative strides.
        kind = self.matrix.dtype if self.matrix.dtype in NUMPY_TYPES else np.float64
        return torch.from_numpy(np.array(self.matrix[which], dtype=kind, order="C")).to(self.device)

    def exact(self, which: slice | Tensor) -> Tensor:
        """Some rows as float64 (n, D), of unit length when ``normalize`` is set.

        Raises:
            ValueError: a row holds NaN or infinity; names the row.
        """
        rows = self.read(which)
        finite = torch.isfinite(rows).all(dim=1)
        if not bool(finite.all()):
            row = int((~finite).nonzero()[0, 0])
            row = row + (which.start or 0) if isinstance(which, slice) else int(which[row])
            row = row if self.only is None else int(self.only[row])
            raise ValueError(f"{self.name}: row {row} holds NaN or infinity; its similarity to anything is undefined")
        return self.unchecked(which, rows)

    def unchecked(self, which: slice | Tensor, rows: Tensor | None = None) -> Tensor:
        """What ``exact`` gives, without a look for NaN and infinity; ``rows`` where they have been read already."""
        rows = (self.read(which) if rows is None else rows).to(torch.float64)
        if self.normalize:
            rows = rows / sum_in_fixed_order(rows.square())[:, None].sqrt().clamp_min(NORM_FLOOR)
        return rows

    def scanned(self, start: int, stop: int, dtype: torch.dtype, *, unit: float = 1.0, multiple: int = 1) -> Scanned:
        """Rows start..stop in ``dtype``, their width filled up to a multiple of ``multiple``.

        Raises:
            ValueError: a row holds NaN or infinity; names the row.
        """
        near = self._scanned_as_they_are(start, stop, dtype, unit, multiple)
        if near is not None:
            return near
        width = -(-self.width // multiple) * multiple
        rows = torch.zeros((stop - start, width), dtype=dtype, device=self.device)
        size = torch.empty(stop - start, dtype=torch.float64, device=self.device)
        slip = torch.empty_like(size)
        for first, last in spans(stop - start, ROWS_AT_ONCE):
            true = self.exact(slice(start + first, start + last)) / unit
            rows[first:last, : self.width] = true.to(dtype)
            size[first:last] = torch.linalg.vector_norm(true, dim=1)
            slip[first:last] = torch.linalg.vector_norm(true - rows[first:last, : self.width], dim=1)
        inflate = 1 + 1e-12 * max(self.width, 1)  # these two are rounded themselves
        return Scanned(rows, size * inflate, slip * inflate, unit)

    def _scanned_as_they_are(
        self, start: int, stop: int, dtype: torch.dtype, unit: float, multiple: int
    ) -> Scanned | None:
        """The same without a detour through float64, where the rows have the wanted type and sound lengths."""
        narrow = dtype == torch.bfloat16 and self.dtype == torch.float32
        fits = (narrow or self.dtype == dtype) and self.width % multiple == 0 and unit == 1.0
        if not fits or (self.normalize and self.dtype != torch.float32):
            return None
        rows = self.read(slice(start, stop))
        size = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32)
        if not bool(torch.isfinite(size).all()):
            return None  # NaN, infinity, or an overflow that float64 does not have
        sound = (self.width / 2 + 4) * HALF_STEP[torch.float32]  # how far a length in float32 can be off, relative
        if self.normalize:
            rows = rows / size.clamp_min(NORM_FLOOR)[:, None]
            slip = torch.full_like(size, sound, dtype=torch.float64)
            size = torch.ones_like(slip) + slip
        else:
            size = size.to(torch.float64) * (1 + sound) + math.sqrt(max(self.width, 1) * TINY)
            slip = torch.zeros_like(size)
        if narrow:
            fine, rows = rows, rows.to(dtype)
            lost = torch.linalg.vector_norm(fine - rows, dim=1).double()  # the difference itself is exact
            slip = slip + lost * (1 + sound) + math.sqrt(max(self.width, 1) * TINY)
            if not bool(torch.isfinite(lost).all()):
                return None
        return Scanned(rows.contiguous(), size, slip, unit)

    def unit_for(self, dtype: torch.dtype) -> float:
        """A power of two, at least 1, by which the rows can be divided to stay in ``dtype``'s range."""
        if self.normalize or dtype != torch.float16 or self.dtype == dtype:
            return 1.0
        pieces = spans(len(self), ROWS_AT_ONCE)
        longest = max(float(torch.linalg.vector_norm(self.exact(slice(*piece)), dim=1).max()) for piece in pieces)
        return 2.0 ** max(0, math.ceil(math.log2(longest))) if 0 < longest < math.inf else 1.0


@dataclass(frozen=True)
class Prepared(Rows):
    """Rows for many searches, as ``prepare`` makes them: what the first search takes them for is kept."""

    kept: dict[tuple, Scanned] = field(default_factory=dict)  # one, of all rows of the matrix

    def scanned(self, start: int, stop: int, dtype: torch.dtype, *, unit: float = 1.0, multiple: int = 1) -> Scanned:
        """As ``Rows.scanned``."""
        asked = dtype, unit, multiple
        if not self.kept:
            self.kept[asked] = self._scan_all(dtype, unit, multiple)
        whole = self.kept.get(asked)
        if whole is None:  # a finer scan, of few queries
            return super().scanned(start, stop, dtype, unit=unit, multiple=multiple)
        if self.only is None:
            return whole.part(start, stop)
        return Scanned(*(column[self.only[start:stop]] for column in whole[:3]), unit)

    def _scan_all(self, dtype: torch.dtype, unit: float, multiple: int) -> Scanned:
        """All rows of the matrix, each piece put where it stays: never twice in memory."""
        every, n = replace(self, only=None), len(self.matrix)
        first = Rows.scanned(every, 0, min(n, ROWS_AT_ONCE), dtype, unit=unit, multiple=multiple)
        whole = Scanned(*(column.new_empty((n, *column.shape[1:])) for column in first[:3]), unit)
        for start, stop in spans(n, ROWS_AT_ONCE):
            piece = Rows.scanned(every, start, stop, dtype, unit=unit, multiple=multiple) if start else first
            for column, own in zip(whole[:3], piece[:3]):
                column[start:stop] = own
        return whole


def prepare(items: Matrix, *, normalize: bool = True) -> Prepared:
    """Items for many calls of ``similarity_topk``, which spares each but the first the way through all of them in float64.

    They must stay as they are. A number of theirs takes 4 bytes more, on a GPU with Triton 2 (``choose_scan``).

    Args:
        items: (M, D), torch tensor or numpy array of any floating type.
        normalize: as of ``similarity_topk``, which must be given the same.

    Raises:
        ValueError: no floating-point matrix.
    """
    return Prepared(items, "items", normalize, check_matrices(items, items, 1))


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


def product(rows: Tensor, columns: Tensor, buffer: Tensor) -> Tensor:
    """rows @ columns.T (q, m) in a flat buffer and its type: fresh memory for each tile costs a tenth of the time."""
    tile = buffer[: len(rows) * len(columns)].view(len(rows), len(columns))
    return torch.mm(rows, columns.T, out=tile) if rows.dtype == tile.dtype else tile.copy_(rows @ columns.T)


def sum_in_fixed_order(values: Tensor) -> Tensor:
    """Sums (n,) of rows (n, D): the right half is added onto the left until one column is left. Overwrites ``values``.

    Only element-wise additions, so the bits do not depend on n, on the device or on the number of threads.
    """
    width = values.shape[1]
    if width == 0:
        return values.new_zeros(len(values))
    while width > 1:
        half = (width + 1) // 2
        values[:, : width - half] += values[:, half:width]
        width = half
    return values[:, 0].clone()


def pair_scores(queries: Rows, items: Rows, query_ids: Tensor, item_ids: Tensor) -> Tensor:
    """Exact scores (P,) float32 of pairs (query_ids[p], item_ids[p]).

    Sums in float64 in whatever order is fastest settle nearly all pairs: only where such a sum lies within rounding of
    the middle between two float32 numbers can the fixed order matter, and those pairs are scored in it.

    Raises:
        ValueError: a row holds NaN or infinity; names the row.
    """
    scores = torch.empty(len(query_ids), dtype=torch.float32, device=queries.device)
    unsettled = torch.empty(len(query_ids), dtype=torch.bool, device=queries.device)
    step = max(1, PAIR_VALUES[queries.device.type] // max(queries.width, 1))
    for first, last in spans(len(query_ids), step):
        low, high = _score_bounds(queries, items, query_ids[first:last], item_ids[first:last])
        scores[first:last] = low
        unsettled[first:last] = low != high  # NaN is not equal to itself
    left = unsettled.nonzero()[:, 0]
    for first, last in spans(len(left), step):
        own = left[first:last]
        few, place = torch.unique_consecutive(query_ids[own], return_inverse=True)  # pairs come query by query
        products = queries.unchecked(few)[place] * items.unchecked(item_ids[own])
        scores[own] = sum_in_fixed_order(products).to(torch.float32)
    scores += 0.0  # turns -0.0 into 0.0
    strange = ~torch.isfinite(scores)  # NaN and infinity in a row leave a score that is none, or it is beyond float32
    if bool(strange.any()):
        queries.exact(query_ids[strange])
        items.exact(item_ids[strange])
    return scores


def _score_bounds(queries: Rows, items: Rows, query_ids: Tensor, item_ids: Tensor) -> tuple[Tensor, Tensor]:
    """What float32 numbers the scores (P,) of some pairs lie between.

    Two sums of D products in float64 differ by at most 2 D u |q||x|, u = 2^-53; with lengths of 1 that were divided by
    two more such sums, (4 D + 20) u.
    """
    few, place = torch.unique_consecutive(query_ids, return_inverse=True)
    rows, columns = queries.read(few).double(), items.read(item_ids).double()
    lengths = torch.linalg.vector_norm(rows, dim=1)[place], torch.linalg.vector_norm(columns, dim=1)
    scores, reach = torch.linalg.vecdot(rows[place], columns), lengths[0] * lengths[1]
    if queries.normalize:
        scores = scores / lengths[0].clamp_min(NORM_FLOOR) / lengths[1].clamp_min(NORM_FLOOR)
        reach = torch.ones_like(reach)
    apart = reach * ((4.1 * queries.width + 25) * HALF_STEP[torch.float64])
    return (scores - apart).to(torch.float32), (scores + apart).to(torch.float32)


def exact_tile(
    queries: Rows, items: Rows, query_rows: Tensor, item_rows: Tensor, query_ids: Tensor, start: int
) -> Tensor:
    """Exact scores (q, m) float32 of a whole tile, from a float64 product.

    The product adds in another order than a score does, which can only matter where it lies within rounding of the
    middle between two float32 numbers; those pairs are scored anew.

    Args:
        query_rows, item_rows: what ``exact`` gave for them, (q, D) and (m, D).
        query_ids: (q,) rows of ``queries``.
        start: the first item's row in ``items``; the others follow.
    """
    product = query_rows @ item_rows.T
    lengths = torch.linalg.vector_norm(query_rows, dim=1)[:, None], torch.linalg.vector_norm(item_rows, dim=1)[None, :]
    apart = lengths[0] * lengths[1] * (2.1 * max(queries.width, 1) * HALF_STEP[torch.float64])
    tile = product.to(torch.float32)
    at = ((product - apart).to(torch.float32) != (product + apart).to(torch.float32)).nonzero(as_tuple=True)
    tile += 0.0
    tile[at] = pair_scores(queries, items, query_ids[at[0]], at[1] + start)
    return tile


def scan_error(queries: Scanned, items: Scanned) -> Tensor:
    """How far a scanned score of each query can be from the true one, (q,) float64; infinity where it may overflow.

    With q^ = q + dq and x^ = x + dx the rounded rows, q^.x^ - q.x = dq.x + q^.dx; and a sum of D products in float32,
    in any order, is within D u |q^||x^| of its value (Higham 2002, chapter 3), u = 2^-24. A GPU's matrix units may cut
    digits off where others round, which doubles u. What ``rounding_of`` says comes on top.
    """
    longest, most = items.size.max(), items.slip.max()
    size = queries.size + queries.slip
    half_steps = (queries.rows.shape[1] + 2) * (1.01 if queries.rows.device.type == "cpu" else 2.02)
    relative = half_steps * HALF_STEP[torch.float32] + PRODUCT_SLACK[torch.get_float32_matmul_precision()]
    reach = size * (longest + most)
    error = queries.slip * longest + size * most + relative * reach + queries.rows.shape[1] * TINY
    error = error * (1 + rounding_of(queries.rows.dtype, queries.rows.device))
    return torch.where(reach < LARGEST, error, torch.inf)


def rounding_of(dtype: torch.dtype, device: torch.device) -> float:
    """What share of a scanned score, or of the true one, the rounding of a product's result can take.

    A CPU's product of bfloat16 matrices is added up in float32 and comes back rounded to bfloat16; torch 2.13 has none
    there that returns float32. Float32 products, and the Triton backend's, come back as they were added up.
    """
    return 1.01 * HALF_STEP[torch.bfloat16] if dtype == torch.bfloat16 and device.type == "cpu" else 0.0


def thresholds(best: Tensor, error: Tensor, unit: float = 1.0, rounding: float = 0.0) -> tuple[Tensor, Tensor]:
    """(low, high) float32: a scan below low is surely a score below ``best``, one above high surely above it.

    Where there is no positive both are infinite: nothing is above, nothing in doubt.

    Args:
        best: exact scores, float32; -inf without a positive.
        error: how far a scan can be from the truth, in the scan's unit (``scan_error``).
        unit: true score = scanned score * unit.
        rounding: what share of a score comes on top of ``error`` (``rounding_of``).
    """
    truth = best.double()
    wide = error + truth.abs() * (rounding + 2 * HALF_STEP[torch.float32]) / unit  # a score is rounded to float32
    infinity = torch.tensor(torch.inf, device=best.device)
    low = torch.nextafter((truth / unit - wide).to(torch.float32), -infinity)
    high = torch.nextafter((truth / unit + wide).to(torch.float32), infinity)
    without = torch.isneginf(best)
    return low.masked_fill(without, torch.inf), high.masked_fill(without, torch.inf)


def rounds_once() -> bool:
    """Whether a CPU's bfloat16 product is what ``rounding_of`` says, also where large sums cancel each other out."""
    generator = torch.Generator().manual_seed(0)
    left, right, more = (torch.randn(64, 300, generator=generator).to(torch.bfloat16) for _ in range(3))
    rows = torch.cat([left, left], dim=1), torch.cat([right, more / 64 - right], dim=1).to(torch.bfloat16)
    lengths = [torch.linalg.vector_norm(side.double(), dim=1) * (1 + 1e-12) for side in rows]
    sides = [Scanned(side, length, torch.zeros_like(length), 1.0) for side, length in zip(rows, lengths)]
    found, truth = (rows[0] @ rows[1].T).double(), rows[0].double() @ rows[1].double().T
    bound = scan_error(*sides)[:, None] + rounding_of(torch.bfloat16, found.device) * found.abs()
    return bool(((found - truth).abs() <= bound).all())
