"""The torch backend of the scan behind retrieval_ranks: a tile of a matrix product against two thresholds a row."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from rsvlm.kernels.backends import choose_scan
from rsvlm.kernels.tiles import HALF_STEP, Rows, rounding_of, scan_error, spans
from rsvlm.kernels.torch_topk import QUERIES, QUERY_ROWS

LANES = 128  # masks are this many columns wide or a multiple: 16 int64 numbers of 8 marks each
MOST_IN_DOUBT = 1 / 64  # share of a tile's pairs; beyond it the tile is scored exactly as a whole

Place = tuple[tuple[int, int], tuple[int, int]]  # queries and items of a tile: the first, and the last + 1
Pairs = tuple[Tensor, Tensor]  # (rows, columns) of a tile, int64


class Band(NamedTuple):
    """How a tile's scores lie to the best positives of its rows and columns."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    above_rows: Tensor  # (q,) int64, items that surely score higher than a row's best positive
    near_rows: Pairs  # pairs that the scan cannot place below or above it
    above_columns: Tensor | None  # the same for the other direction, where it is asked for
    near_columns: Pairs | None


def scan_bands(
    queries: Rows, items: Rows, best: Tensor, best_of_items: Tensor | None, block: int
) -> Iterator[Band | Place]:
    """A Band for each tile, or only the place of a tile in which too much is in doubt.

    Args:
        best: (Q,) float32, the exact score of each query's best positive; -inf without one.
        best_of_items: (M,) likewise; None leaves the other direction out.
        block: items in one tile.
    """
    device = queries.device
    dtype = choose_scan("retrieval_ranks", device).dtype
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
                tile = _multiply(rows.rows, columns.rows, buffer)
                low, high = thresholds(best[slice(*place[0])], error, rounding=rounding)
                above, near = _compare(tile, low[:, None], high[:, None], masks)
                band = [_count_rows(above), _find(near), None, None]
                if best_of_items is not None:
                    low, high = thresholds(best_of_items[start:stop], scan_error(columns, rows), rounding=rounding)
                    above, near = _compare(tile, low, high, masks)
                    band[2:] = _count_columns(above)[: stop - start], _find(near)
                in_doubt = band[1] is None or (best_of_items is not None and band[3] is None)
                yield place if in_doubt else Band(*place, *band)


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


def _multiply(rows: Tensor, columns: Tensor, buffer: Tensor) -> Tensor:
    """rows @ columns.T as float32 (q, m), in a flat buffer: fresh memory for each tile costs a tenth of the time."""
    tile = buffer[: len(rows) * len(columns)].view(len(rows), len(columns))
    return torch.mm(rows, columns.T, out=tile) if rows.dtype == tile.dtype else tile.copy_(rows @ columns.T)


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
