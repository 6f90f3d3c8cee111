"""The torch backend of the contrastive loss: log-sums and gradient products over tiles of the logits."""

import torch
from torch import Tensor

from rsvlm.kernels.tiles import spans

TILE = {"cpu": (512, 2048), "cuda": (4096, 8192)}  # images, texts: 4 MiB and 128 MiB of float32
NARROW = 60.0  # exp(-60) is far from float32's smallest number: a range that one shift for all serves


def prepare(images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
    """Both towers' features in the type that they are computed in: float32, or float64 where one of them has it."""
    dtype = torch.promote_types(torch.promote_types(images.dtype, texts.dtype), torch.float32)
    return images.to(dtype).contiguous(), texts.to(dtype).contiguous()


def log_sums(images: Tensor, texts: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """(over the texts (N,), over the images (M,)): logsumexp of scale * images @ texts.T both ways."""
    rows = images.new_full((len(images),), -torch.inf)
    columns = images.new_full((len(texts),), -torch.inf)
    height, width = TILE[images.device.type]
    buffer = images.new_empty(min(height, len(images)) * min(width, len(texts)))
    for first, last in spans(len(images), height):
        scaled = images[first:last] * scale
        for start, stop in spans(len(texts), width):
            over_texts, over_images = _both_log_sums(_multiply(scaled, texts[start:stop], buffer))
            rows[first:last] = torch.logaddexp(rows[first:last], over_texts)
            columns[start:stop] = torch.logaddexp(columns[start:stop], over_images)
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

    G_ij = w_i exp(s_ij - a_i) + w'_j exp(s_ij - b_j), but what ``positives`` says at the positive pairs.

    Args:
        sums: a (N,) and b (M,), what log_sums gave.
        weights: w (N,) and w' (M,).
        positives: (rows, columns, values of G), sorted by row.
        wanted: which of the two products are.
    """
    for_images = torch.zeros_like(images) if wanted[0] else None
    for_texts = torch.zeros_like(texts) if wanted[1] else None
    height, width = TILE[images.device.type]
    buffers = images.new_empty((2, min(height, len(images)) * min(width, len(texts))))
    rows, columns, values = positives
    low, high = torch.cat(sums).aminmax()
    narrow = bool(high - low <= NARROW)
    if narrow:  # one exponential serves both sides: exp(s - a) = exp(s - low) exp(low - a)
        weights = weights[0] * (low - sums[0]).exp(), weights[1] * (low - sums[1]).exp()
    for first, last in spans(len(images), height):
        scaled = images[first:last] * scale
        here = slice(*torch.searchsorted(rows, torch.tensor([first, last], device=rows.device)).tolist())
        for start, stop in spans(len(texts), width):
            tile = _multiply(scaled, texts[start:stop], buffers[0])
            other = buffers[1, : tile.numel()].view(tile.shape)
            if narrow:
                torch.add(weights[0][first:last, None], weights[1][start:stop], out=other)
                tile = tile.sub_(low).exp_().mul_(other)
            else:
                by_column = torch.sub(tile, sums[1][start:stop], out=other).exp_().mul_(weights[1][start:stop])
                tile = tile.sub_(sums[0][first:last, None]).exp_().mul_(weights[0][first:last, None]).add_(by_column)
            inside = (columns[here] >= start) & (columns[here] < stop)
            tile[rows[here][inside] - first, columns[here][inside] - start] = values[here][inside]
            if for_images is not None:
                for_images[first:last].addmm_(tile, texts[start:stop])
            if for_texts is not None:
                for_texts[start:stop].addmm_(tile.T, images[first:last])
    return for_images, for_texts


def _multiply(left: Tensor, right: Tensor, buffer: Tensor) -> Tensor:
    """left @ right.T in a flat buffer: fresh memory for each tile would cost a tenth of the time."""
    tile = buffer[: len(left) * len(right)].view(len(left), len(right))
    return torch.mm(left, right.T, out=tile)


def _both_log_sums(tile: Tensor) -> tuple[Tensor, Tensor]:
    """logsumexp of a tile's rows and of its columns. Overwrites the tile."""
    low, high = tile.aminmax()
    if bool(high - low <= NARROW):
        tile = tile.sub_(high).exp_()
        return tile.sum(dim=1).log_().add_(high), tile.sum(dim=0).log_().add_(high)
    return tile.logsumexp(dim=1), tile.logsumexp(dim=0)
