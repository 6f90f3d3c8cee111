"""The Triton backend of the contrastive loss.

Forward: a tile of logits leaves the log-sum of each of its rows and columns; torch adds up these few. Backward: a tile
of logits is computed anew, turned into the loss's derivative by each logit, and written in the features' precision; two
matrix products of torch turn a strip of it into gradients. No atomic additions: the same inputs give the same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rsvlm.kernels.tiles import spans
from rsvlm.kernels.triton_tile import (  # fmt: skip
    AREA,
    GROUP_OF_TILES,
    SHAPES,
    find_tile,
    multiply,
    n_tiles,
    on_device_of,
    pad_width,
    precision_of,
)

LIFT = 4096.0  # derivatives are written that much larger, in units of the largest weight: float16 keeps small ones


@triton.jit
def log_sum(logits, axis: tl.constexpr):
    """logsumexp along an axis with the maximum taken out first, so that nothing overflows or vanishes."""
    top = tl.max(logits, axis=axis)
    return top + tl.log(tl.sum(tl.exp(logits - tl.expand_dims(top, axis)), axis=axis))


@triton.jit(do_not_specialize=["n_rows", "n_columns"])
def log_sums_kernel(
    rows, columns, scale, of_rows, of_columns, n_rows, n_columns,
    D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, K: tl.constexpr, GROUP_OF_TILES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The log-sums of each tile's rows and columns.

    of_rows: (tiles along the columns, n_rows) float32; of_columns: (tiles along the rows, n_columns).
    """
    row, column = find_tile(n_rows, n_columns, ROWS, COLUMNS, GROUP_OF_TILES)
    tile = multiply(rows, columns, row, column, n_rows, n_columns, D, ROWS, COLUMNS, K, PRECISION) * tl.load(scale)
    i, j = row * ROWS + tl.arange(0, ROWS), column * COLUMNS + tl.arange(0, COLUMNS)
    over_columns = log_sum(tl.where((j < n_columns)[None, :], tile, float("-inf")), 1)
    over_rows = log_sum(tl.where((i < n_rows)[:, None], tile, float("-inf")), 0)
    tl.store(of_rows + column.to(tl.int64) * n_rows + i, over_columns, mask=i < n_rows)
    tl.store(of_columns + row.to(tl.int64) * n_columns + j, over_rows, mask=j < n_columns)


@triton.jit(do_not_specialize=["n_rows", "n_columns"])
def derivatives_kernel(
    rows, columns, scale, row_sums, column_sums, row_weights, column_weights, derivatives, n_rows, n_columns,
    D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, K: tl.constexpr, GROUP_OF_TILES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """derivatives[i, j] = w_i exp(s_ij - a_i) + w'_j exp(s_ij - b_j), (n_rows, n_columns), in its own type."""
    row, column = find_tile(n_rows, n_columns, ROWS, COLUMNS, GROUP_OF_TILES)
    tile = multiply(rows, columns, row, column, n_rows, n_columns, D, ROWS, COLUMNS, K, PRECISION) * tl.load(scale)
    i, j = row * ROWS + tl.arange(0, ROWS), column * COLUMNS + tl.arange(0, COLUMNS)
    a, w = tl.load(row_sums + i, mask=i < n_rows), tl.load(row_weights + i, mask=i < n_rows)
    b, v = tl.load(column_sums + j, mask=j < n_columns), tl.load(column_weights + j, mask=j < n_columns)
    share = w[:, None] * tl.exp(tile - a[:, None]) + v[None, :] * tl.exp(tile - b[None, :])
    inside = (i < n_rows)[:, None] & (j < n_columns)[None, :]
    place = derivatives + i.to(tl.int64)[:, None] * n_columns + j[None, :]
    tl.store(place, share.to(derivatives.dtype.element_ty), mask=inside)


def prepare(images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
    """Both towers' features in their common type, their width as the kernels want it."""
    dtype = torch.promote_types(images.dtype, texts.dtype)
    return pad_width(images.to(dtype)), pad_width(texts.to(dtype))


def log_sums(images: Tensor, texts: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """(over the texts (N,), over the images (M,)): logsumexp of scale * images @ texts.T both ways, float32."""
    precision = precision_of(images.dtype)
    shape, n_texts = SHAPES[precision], len(texts)
    rows = torch.empty(len(images), device=images.device)
    columns = torch.full((n_texts,), -torch.inf, device=images.device)
    for first, last in spans(len(images), _strip(n_texts)):
        strip = images[first:last]
        tall, wide = n_tiles(last - first, n_texts, shape)
        of_rows, of_columns = rows.new_empty((wide, last - first)), rows.new_empty((tall, n_texts))
        with on_device_of(images):
            log_sums_kernel[(tall * wide,)](
                strip, texts, scale, of_rows, of_columns, last - first, n_texts,
                D=texts.shape[1], GROUP_OF_TILES=GROUP_OF_TILES, PRECISION=_dot(precision), **shape.arguments(),
            )  # fmt: skip
        rows[first:last] = of_rows.logsumexp(dim=0)
        columns = torch.logaddexp(columns, of_columns.logsumexp(dim=0))
    return rows, columns


def products(
    images: Tensor,
    texts: Tensor,
    scale: Tensor,
    sums: tuple[Tensor, Tensor],
    weights: tuple[Tensor, Tensor],
    positives: tuple[Tensor, Tensor, Tensor],
    wanted: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """(G @ texts (N, D), G.T @ images (M, D)) with G the loss's derivative by each logit; None where not wanted.

    Arguments as those of ``infonce.products``; float32 comes back.
    """
    precision = precision_of(images.dtype)
    shape, (n_images, n_texts) = SHAPES[precision], (len(images), len(texts))
    for_images = torch.zeros(images.shape, device=images.device) if wanted[0] else None
    for_texts = torch.zeros(texts.shape, device=images.device) if wanted[1] else None
    rows, columns, values = positives
    lift = LIFT / torch.cat(weights).max()
    weights = weights[0] * lift, weights[1] * lift
    for first, last in spans(n_images, _strip(n_texts)):
        strip, here = images[first:last], slice(first, last)
        derivatives = strip.new_empty((last - first, n_texts))
        tall, wide = n_tiles(last - first, n_texts, shape)
        with on_device_of(images):
            derivatives_kernel[(tall * wide,)](
                strip, texts, scale, sums[0][here], sums[1], weights[0][here], weights[1], derivatives,
                last - first, n_texts,
                D=texts.shape[1], GROUP_OF_TILES=GROUP_OF_TILES, PRECISION=_dot(precision), **shape.arguments(),
            )  # fmt: skip
        own = slice(*torch.searchsorted(rows, torch.tensor([first, last], device=rows.device)).tolist())
        derivatives[rows[own] - first, columns[own]] = (values[own] * lift).to(derivatives.dtype)
        if for_images is not None:
            for_images[here] = _multiply_in_float32(derivatives, texts)
        if for_texts is not None:
            for_texts += _multiply_in_float32(derivatives.T, strip)
    for product in (for_images, for_texts):
        if product is not None:
            product /= lift
    return for_images, for_texts


def _strip(n_texts: int) -> int:
    """Rows in one launch: a multiple of a tile's."""
    return max(128, AREA // max(n_texts, 1) // 128 * 128)


def _dot(precision: str) -> str:
    """What tl.dot is told; of half precision it takes no notice."""
    return "ieee" if precision == "ieee" else "tf32"


def _multiply_in_float32(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, summed and returned in float32."""
    if left.dtype == torch.float32:
        return left @ right
    if left.device.type == "cuda":
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.to(torch.float32) @ right.to(torch.float32)
