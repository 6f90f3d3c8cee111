"""The Triton backend of the scan behind similarity_topk.

The matrix of scores is never written. Of each query and each group of 32 neighbouring items only the highest score is.
The k items that score highest lie in the k groups with the highest maxima, so a second kernel looks at those groups
alone. Neither kernel knows k or the numbers of rows when it is compiled.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rsvlm.kernels.tiles import Candidates, Rows, scan_error, spans
from rsvlm.kernels.triton_tile import (  # fmt: skip
    GROUP_OF_TILES,
    SHAPES,
    STEP,
    find_tile,
    multiply,
    n_tiles,
    on_device_of,
)

DTYPE = torch.float16  # of unit vectors it keeps three more bits than bfloat16, at the same speed
GROUP = 32  # items whose highest score is kept
SPARE = 6  # candidates beyond k: room for near ties at the k-th place
QUERIES, ITEMS = 8192, 32768  # in one launch, at most
MEMBERS = 2**22  # scores of group members that one launch leaves, at most


@triton.jit(do_not_specialize=["n_rows", "n_columns", "n_groups"])
def group_maxima_kernel(
    rows, columns, maxima, n_rows, n_columns, n_groups,
    D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, K: tl.constexpr, GROUP_OF_TILES: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """maxima[i, g] = the highest score of row i among the columns g * GROUP ... g * GROUP + GROUP - 1."""
    row, column = find_tile(n_rows, n_columns, ROWS, COLUMNS, GROUP_OF_TILES)
    tile = multiply(rows, columns, row, column, n_rows, n_columns, D, ROWS, COLUMNS, K, "tf32")
    j = column * COLUMNS + tl.arange(0, COLUMNS)
    tile = tl.where((j < n_columns)[None, :], tile, float("-inf"))
    highest = tl.max(tl.reshape(tile, (ROWS, COLUMNS // GROUP, GROUP)), axis=2)

    i = row * ROWS + tl.arange(0, ROWS)
    g = column * (COLUMNS // GROUP) + tl.arange(0, COLUMNS // GROUP)
    inside = (i < n_rows)[:, None] & (g < n_groups)[None, :]
    tl.store(maxima + i.to(tl.int64)[:, None] * n_groups + g[None, :], highest, mask=inside)


@triton.jit(do_not_specialize=["n_columns", "n_chosen"])
def member_scores_kernel(
    rows, columns, groups, scores, n_columns, n_chosen, D: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr
):
    """scores[i, c, :] = the scores of row i with the columns of its group groups[i, c]; -inf beyond the last."""
    place = tl.program_id(0).to(tl.int64)
    i = place // n_chosen
    j = tl.load(groups + place) * GROUP + tl.arange(0, GROUP)
    k = tl.arange(0, K)
    right = columns + tl.minimum(j, n_columns - 1)[:, None] * D + k[None, :]
    score = tl.zeros((GROUP,), dtype=tl.float32)
    for start in range(0, D, K):
        left = tl.load(rows + i * D + start + k).to(tl.float32)
        score += tl.sum(tl.load(right + start).to(tl.float32) * left[None, :], axis=1)
    score = tl.where(j < n_columns, score, float("-inf"))
    tl.store(scores + place * GROUP + tl.arange(0, GROUP), score)


def scan_topk(queries: Rows, items: Rows, k: int) -> Candidates:
    """Candidates for the ``k`` <= M best items of each query: of the k + SPARE that scan highest, those that may be."""
    n_queries, device, keep = len(queries), queries.device, min(k + SPARE, len(items))
    scores = torch.full((n_queries, keep), -torch.inf, device=device)
    indices = torch.full((n_queries, keep), -1, dtype=torch.int64, device=device)
    rest = torch.full((n_queries,), -torch.inf, device=device)
    error = torch.zeros(n_queries, dtype=torch.float64, device=device)
    units = queries.unit_for(DTYPE), items.unit_for(DTYPE)
    for start, stop in spans(len(items), ITEMS):
        columns = items.scanned(start, stop, DTYPE, unit=units[1], multiple=STEP)
        for first, last in spans(n_queries, max(1, min(QUERIES, MEMBERS // (keep * GROUP)))):
            rows = queries.scanned(first, last, DTYPE, unit=units[0], multiple=STEP)
            here = slice(first, last)
            error[here] = torch.maximum(error[here], scan_error(rows, columns))
            found, left_out = _best_groups(rows.rows, columns.rows, keep)
            members = torch.arange(GROUP, device=device) + found[:, :, None] * GROUP + start
            every_score = torch.cat([scores[here], _member_scores(rows.rows, columns.rows, found)], dim=1)
            every_index = torch.cat([indices[here], members.flatten(1)], dim=1)
            top, at = every_score.topk(min(keep + 1, every_score.shape[1]), dim=1)
            scores[here], indices[here] = top[:, :keep], every_index.gather(1, at[:, :keep])
            for dropped in (left_out, top[:, keep:]):
                if dropped.shape[1]:
                    rest[here] = torch.maximum(rest[here], dropped[:, 0])
    # All others are surely below k of these. Without a finite bound nothing is sure, and the scan may hold no numbers.
    kth = scores.topk(k, dim=1).values[:, -1:].double()
    row, place = ((scores >= kth - 2 * error[:, None]) & (indices >= 0)).nonzero(as_tuple=True)
    rest = (rest.double() + error) * (units[0] * units[1])
    return Candidates(row, indices[row, place], rest.masked_fill(~torch.isfinite(error), torch.inf))


def _best_groups(rows: Tensor, columns: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """(the ``keep`` groups with the highest maxima (q, <= keep), the highest maximum of all others (q, <= 1))."""
    shape, n_groups = SHAPES["half"], triton.cdiv(len(columns), GROUP)
    maxima = rows.new_empty((len(rows), n_groups), dtype=torch.float32)
    tall, wide = n_tiles(len(rows), len(columns), shape)
    with on_device_of(rows):
        group_maxima_kernel[(tall * wide,)](
            rows, columns, maxima, len(rows), len(columns), n_groups,
            D=rows.shape[1], GROUP_OF_TILES=GROUP_OF_TILES, GROUP=GROUP, **shape.arguments(),
        )  # fmt: skip
    top, groups = maxima.topk(min(keep + 1, n_groups), dim=1)
    return groups[:, :keep].contiguous(), top[:, keep:]


def _member_scores(rows: Tensor, columns: Tensor, groups: Tensor) -> Tensor:
    """Scores (q, chosen * GROUP) of each row with all members of its chosen groups."""
    scores = rows.new_empty((len(rows), groups.shape[1] * GROUP), dtype=torch.float32)
    with on_device_of(rows):
        member_scores_kernel[(groups.numel(),)](
            rows, columns, groups, scores, len(columns), groups.shape[1],
            D=rows.shape[1], K=STEP, GROUP=GROUP, num_warps=2,
        )  # fmt: skip
    return scores
