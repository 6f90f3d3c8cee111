"""The torch twin of the scan behind similarity_topk: tiles of a matrix product, of which little is looked at twice."""

from typing import NamedTuple

import torch
from torch import Tensor

from rsvlm.kernels.tiles import Rows, scan_error, spans

QUERIES = 4096  # held in the scan's precision while all items pass by
QUERY_ROWS = 1024  # most of them in one tile; with 2,048 items a float32 tile is 8 MiB
GROUP = 32  # items whose highest score is looked at before they are


class Candidates(NamedTuple):
    """For each query the items with the highest scanned scores, and what is known of all the others."""

    indices: Tensor  # (Q, keep) int64
    scores: Tensor  # (Q, keep) float32, scanned
    rest: Tensor  # (Q,) float32, no other item scanned higher than this; -inf where there is no other item
    error: Tensor  # (Q,) float64, how far a scanned score can be from the true one
    unit: float  # true score = scanned score * unit


def scan_dtype() -> torch.dtype:
    """What a CPU multiplies fastest: bfloat16 where it has instructions for it, else float32."""
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def multiply(rows: Tensor, columns: Tensor, buffer: Tensor) -> Tensor:
    """rows @ columns.T as float32 (q, m), in a flat buffer: fresh memory for each tile costs a tenth of the time."""
    tile = buffer[: len(rows) * len(columns)].view(len(rows), len(columns))
    return torch.mm(rows, columns.T, out=tile) if rows.dtype == tile.dtype else tile.copy_(rows @ columns.T)


def scan_topk(queries: Rows, items: Rows, keep: int, block: int) -> Candidates:
    """The ``keep`` <= M items that scan highest for each query, in tiles of ``block`` items."""
    n_queries, device = len(queries), queries.device
    dtype = scan_dtype() if device.type == "cpu" else torch.float32
    scores = torch.full((n_queries, keep), -torch.inf, device=device)
    indices = torch.full((n_queries, keep), -1, dtype=torch.int64, device=device)
    error = torch.zeros(n_queries, dtype=torch.float64, device=device)
    height = min(QUERY_ROWS, block)
    buffer = torch.empty(min(height, n_queries) * min(block, len(items)), device=device)
    for begin, end in spans(n_queries, QUERIES):
        held = queries.scanned(begin, end, dtype)
        for start, stop in spans(len(items), block):
            columns = items.scanned(start, stop, dtype)
            for first, last in spans(end - begin, height):
                rows, here = held.part(first, last), slice(begin + first, begin + last)
                error[here] = torch.maximum(error[here], scan_error(rows, columns))
                tile = multiply(rows.rows, columns.rows, buffer)
                _merge(scores[here], indices[here], *_above(tile, scores[here], start))
    rest = scores[:, -1] if keep < len(items) else torch.full_like(scores[:, -1], -torch.inf)
    return Candidates(indices, scores, rest, error, 1.0)


def _above(tile: Tensor, so_far: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """What of a tile can be among a row's highest: (scores, indices), both (q, w), filled up with (-inf, -1).

    A row's columns are looked at in groups (every (m / GROUP)-th column), of which few hold anything.

    Args:
        so_far: (q, keep), each row's highest scores in the tiles before, highest first.
        start: index of the tile's first column.
    """
    (height, width), keep, least = tile.shape, so_far.shape[1], so_far[:, -1]
    even = width - width % GROUP
    found = []
    if even:
        grouped = tile[:, :even].unflatten(1, (GROUP, even // GROUP))  # (q, GROUP, groups)
        highest = grouped.amax(dim=1)
        if bool(torch.isneginf(least).any()) and highest.shape[1] >= keep:
            # As many items as there are places reach the keep-th highest maximum.
            floor = highest.topk(keep, dim=1).values[:, -1]
            least = torch.maximum(least, torch.nextafter(floor, floor.new_tensor(-torch.inf)))
        row, group = (highest > least[:, None]).nonzero(as_tuple=True)
        values = grouped.transpose(1, 2)[row, group]  # (hits, GROUP)
        hit, member = (values > least[row, None]).nonzero(as_tuple=True)
        found.append((row[hit], member * (even // GROUP) + group[hit], values[hit, member]))
    row, column = (tile[:, even:] > least[:, None]).nonzero(as_tuple=True)
    found.append((row, column + even, tile[:, even:][row, column]))
    row, column, value = (torch.cat(parts) for parts in zip(*found))
    row, order = torch.sort(row, stable=True)
    counts = torch.bincount(row, minlength=height)
    place = torch.arange(len(row), device=tile.device) - (counts.cumsum(0) - counts)[row]
    most = int(counts.max()) if height else 0
    scores = torch.full((height, most), -torch.inf, device=tile.device)
    indices = torch.full((height, most), -1, dtype=torch.int64, device=tile.device)
    scores[row, place], indices[row, place] = value[order], column[order] + start
    return scores, indices


def _merge(scores: Tensor, indices: Tensor, more_scores: Tensor, more_indices: Tensor) -> None:
    """Put the highest of both into ``scores`` and ``indices``, highest first."""
    if more_scores.shape[1] == 0:
        return
    keep = scores.shape[1]
    if more_scores.shape[1] > keep:
        more_scores, at = more_scores.topk(keep, dim=1, sorted=False)
        more_indices = more_indices.gather(1, at)
    top, at = torch.cat([scores, more_scores], dim=1).topk(keep, dim=1)
    scores.copy_(top)
    indices.copy_(torch.cat([indices, more_indices], dim=1).gather(1, at))
