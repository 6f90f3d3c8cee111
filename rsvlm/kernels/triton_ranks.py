"""The Triton backend of the scan behind retrieval_ranks.

Every tile of scores is compared with the thresholds of its rows and, for both directions at once, of its columns. Of a
tile stay two counts, and one bit a pair for what the scan cannot decide, packed 32 to a number.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from rsvlm.kernels.tiles import MOST_IN_DOUBT, Band, Pairs, Place, Rows, scan_error, spans, thresholds
from rsvlm.kernels.triton_tile import (  # fmt: skip
    GROUP_OF_TILES,
    SHAPES,
    STEP,
    find_tile,
    multiply,
    n_tiles,
    on_device_of,
)
from rsvlm.kernels.triton_topk import DTYPE, ITEMS, QUERIES


@triton.jit
def pack(marks, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Bits (ROWS, COLUMNS // 32) int32 of a tile of marks; bit b of word w is column 32 * w + b."""
    words = tl.reshape(marks.to(tl.int32), (ROWS, COLUMNS // 32, 32))
    return tl.sum(words << tl.arange(0, 32)[None, None, :], axis=2)


@triton.jit(do_not_specialize=["n_rows", "n_columns", "n_words"])
def compare_kernel(
    rows, columns, row_low, row_high, column_low, column_high, above_rows, near_rows, above_columns, near_columns,
    n_rows, n_columns, n_words,
    D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, K: tl.constexpr, GROUP_OF_TILES: tl.constexpr,
    TWO_WAY: tl.constexpr,
):  # fmt: skip
    """Counts of a tile's scores above ``high`` in each row (and column), and bits of those from ``low`` to ``high``.

    above_rows: (tiles along the columns, n_rows) int32; above_columns: (tiles along the rows, n_columns).
    near_rows, near_columns: (n_rows, n_words), both with a row's columns packed 32 to a word.
    """
    row, column = find_tile(n_rows, n_columns, ROWS, COLUMNS, GROUP_OF_TILES)
    tile = multiply(rows, columns, row, column, n_rows, n_columns, D, ROWS, COLUMNS, K, "tf32")
    i, j = row * ROWS + tl.arange(0, ROWS), column * COLUMNS + tl.arange(0, COLUMNS)
    inside = (i < n_rows)[:, None] & (j < n_columns)[None, :]
    words = column * (COLUMNS // 32) + tl.arange(0, COLUMNS // 32)
    word = i.to(tl.int64)[:, None] * n_words + words[None, :]
    has_word = (i < n_rows)[:, None] & (words < n_words)[None, :]

    low, high = tl.load(row_low + i, mask=i < n_rows)[:, None], tl.load(row_high + i, mask=i < n_rows)[:, None]
    above = (inside & (tile > high)).to(tl.int32)
    tl.store(above_rows + column.to(tl.int64) * n_rows + i, tl.sum(above, axis=1), mask=i < n_rows)
    tl.store(near_rows + word, pack(inside & (tile >= low) & (tile <= high), ROWS, COLUMNS), mask=has_word)
    if TWO_WAY:
        low = tl.load(column_low + j, mask=j < n_columns)[None, :]
        high = tl.load(column_high + j, mask=j < n_columns)[None, :]
        above = (inside & (tile > high)).to(tl.int32)
        tl.store(above_columns + row.to(tl.int64) * n_columns + j, tl.sum(above, axis=0), mask=j < n_columns)
        tl.store(near_columns + word, pack(inside & (tile >= low) & (tile <= high), ROWS, COLUMNS), mask=has_word)


def scan_bands(queries: Rows, items: Rows, best: Tensor, best_of_items: Tensor | None) -> Iterator[Band | Place]:
    """A Band for each part of the matrix, or only the place of a part in which too much is in doubt.

    Args:
        best: (Q,) float32, the exact score of each query's best positive; -inf without one.
        best_of_items: (M,) likewise; None leaves the other direction out.
    """
    units = queries.unit_for(DTYPE), items.unit_for(DTYPE)
    unit = units[0] * units[1]
    for start, stop in spans(len(items), ITEMS):
        columns = items.scanned(start, stop, DTYPE, unit=units[1], multiple=STEP)
        for first, last in spans(len(queries), QUERIES):
            rows = queries.scanned(first, last, DTYPE, unit=units[0], multiple=STEP)
            place, error = ((first, last), (start, stop)), scan_error(rows, columns)
            if not bool(torch.isfinite(error).all()):
                yield place
                continue
            bounds = [thresholds(best[first:last], error, unit)]
            if best_of_items is not None:
                bounds.append(thresholds(best_of_items[start:stop], scan_error(columns, rows), unit))
            counts, words = _compare(rows.rows, columns.rows, bounds)
            pairs = [_unpack(word) for word in words]
            if any(found is None for found in pairs):
                yield place
                continue
            other = (counts[1], pairs[1]) if best_of_items is not None else (None, None)
            yield Band(*place, counts[0], pairs[0], *other)


def _compare(rows: Tensor, columns: Tensor, bounds: list[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    """(counts above the bounds, packed marks between them), each for the rows and, with two bounds, for the columns."""
    shape, (n_rows, n_columns) = SHAPES["half"], (len(rows), len(columns))
    tall, wide = n_tiles(n_rows, n_columns, shape)
    sizes = [(wide, n_rows), (tall, n_columns)][: len(bounds)]
    above = [torch.empty(size, dtype=torch.int32, device=rows.device) for size in sizes]
    n_words = triton.cdiv(n_columns, 32)
    words = [torch.empty((n_rows, n_words), dtype=torch.int32, device=rows.device) for _ in bounds]
    (low, high), (other_low, other_high) = bounds[0], bounds[-1]
    with on_device_of(rows):
        compare_kernel[(tall * wide,)](
            rows, columns, low, high, other_low, other_high, above[0], words[0], above[-1], words[-1],
            n_rows, n_columns, n_words,
            D=rows.shape[1], GROUP_OF_TILES=GROUP_OF_TILES, TWO_WAY=len(bounds) == 2, **shape.arguments(),
        )  # fmt: skip
    return [part.sum(dim=0, dtype=torch.int64) for part in above], words


def _unpack(words: Tensor) -> Pairs | None:
    """(rows, columns) of the bits that are set; None when there are too many."""
    row, word = words.nonzero(as_tuple=True)
    if len(row) > words.numel() * 32 * MOST_IN_DOUBT + 32:
        return None
    hit, bit = ((words[row, word][:, None] >> torch.arange(32, device=words.device)) & 1).nonzero(as_tuple=True)
    return row[hit], word[hit] * 32 + bit
