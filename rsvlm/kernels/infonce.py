"""Symmetric InfoNCE between two towers, with any number of right answers a row, without the matrix of logits.

The forward pass goes over the logits once, for the log-sums of their rows and columns. The backward pass computes them
anew, tile by tile, and turns each tile at once into its share of the towers' gradients. What is kept in between grows
with the number of rows, not with their square. One process computes it alone, or several over the rows of all.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx

from rsvlm.kernels.backends import choose_backend
from rsvlm.kernels.ranks import Positives, check_positives
from rsvlm.kernels.tiles import product, spans

PAIR_VALUES = 2**22  # products of positive pairs that are held at a time
TILE = {"cpu": (512, 2048), "cuda": (4096, 8192)}  # images, texts: 4 MiB and 128 MiB of float32
NARROW = 60.0  # exp(-60) is far from float32's smallest number: a range that one shift for all serves


class _Backend(NamedTuple):
    """What computes the loss's sums and products."""

    prepare: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    log_sums: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    products: Callable[..., tuple[Tensor | None, Tensor | None]]


def rank_and_size(group: "dist.ProcessGroup | None") -> tuple[int, int]:
    """(this process's place in the group, number of processes)."""
    return (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))


def agree(
    problem: ValueError | None, numbers: list[int], device: torch.device, group: "dist.ProcessGroup | None"
) -> list[list[int]]:
    """Each process's numbers, by rank. A problem of one process is raised in all, so that none waits for it in vain.

    Raises:
        ValueError: ``problem``, or the name of the process that has one.
    """
    rank, size = rank_and_size(group)
    told = [[int(problem is not None), *numbers]]
    if group is not None:
        own = torch.tensor(told[0], device=device)
        every = own.new_empty((size, len(own)))
        dist.all_gather_into_tensor(every.view(-1), own, group=group)
        told = every.tolist()
    if problem is not None:
        raise problem
    for other, (has_problem, *_) in enumerate(told):
        if has_problem:
            raise ValueError(f"process {other} of {size} was given arguments that do not fit; this is process {rank}")
    return [rest for _, *rest in told]


def share_rows(rows: Tensor, group: "dist.ProcessGroup | None") -> Tensor:
    """The rows of all processes, in the order of their ranks; their numbers may differ."""
    if group is None:
        return rows
    counts = [count for (count,) in agree(None, [len(rows)], rows.device, group)]
    padded = rows.new_zeros((max(counts), rows.shape[1]))
    padded[: len(rows)] = rows
    every = rows.new_empty((len(counts), *padded.shape))
    dist.all_gather_into_tensor(every.view(-1), padded.view(-1), group=group)
    return torch.cat([part[:count] for part, count in zip(every, counts)])


def sum_own_rows(rows: Tensor, n_own: int, group: "dist.ProcessGroup | None") -> Tensor:
    """This process's rows of the sum over processes; ``rows`` has those of all, in the order of ``share_rows``."""
    if group is None:
        return rows
    counts = [count for (count,) in agree(None, [n_own], rows.device, group)]
    dist.all_reduce(rows, group=group)
    before = sum(counts[: rank_and_size(group)[0]])
    return rows[before : before + n_own]


def merge_log_sums(log_sums: Tensor, group: "dist.ProcessGroup | None") -> Tensor:
    """log of the sum over processes of exp(log_sums), element by element; -inf counts as nothing."""
    if group is None:
        return log_sums
    every = log_sums.new_empty((rank_and_size(group)[1], len(log_sums)))
    dist.all_gather_into_tensor(every.view(-1), log_sums.contiguous(), group=group)
    return every.logsumexp(dim=0)


def total(value: Tensor, group: "dist.ProcessGroup | None") -> Tensor:
    """The sum over processes of a tensor."""
    if group is None:
        return value
    value = value.clone()
    dist.all_reduce(value, group=group)
    return value


def contrastive_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    positives: Tensor | Positives | None = None,
    *,
    group: "dist.ProcessGroup | None" = None,
) -> Tensor:
    """Symmetric contrastive loss, a scalar with gradients to both towers and to the scale.

    With s = logit_scale * image_features @ text_features.T, the image side is

        mean over i of [ logsumexp over all j of s_ij  -  logsumexp over the positives j of s_ij ],

    the text side the same along columns, and the loss is the mean of the two. With one positive a row this is CLIP's
    cross-entropy (Radford et al. 2021). With several, the model has to put its probability on the set of right
    answers and is free to share it out among them; the other captions of an image are then no negatives.
    A row without a positive takes no part in its side's mean, but still serves as negative for the other side.

    Half-precision inputs are taken in float32 (float64 stays float64), also under autocast. The same inputs give the
    same bits again. A second derivative is refused.

    Across processes every one passes its own rows, as many as it has, and gets the loss of all rows together. The
    gradients of the towers are those of that loss times the number of processes, the gradient of the scale is whole:
    so the mean over processes that DistributedDataParallel takes is the gradient of the parameters.

    Args:
        image_features: (N, D), normalised by the caller.
        text_features: (M, D), normalised by the caller.
        logit_scale: scalar, the factor itself (exp already taken).
        positives: bool (N, M), or CSR (offsets (N + 1,), text ids); None: pair i is right for row i (needs N = M).
            Across processes its columns are the texts of all of them, in the order of their ranks.
        group: the processes that share the loss; None: this one alone.

    Raises:
        ValueError: shapes do not fit, or no pair at all is positive; in every process when it is so in one.
    """
    device, rank = image_features.device, rank_and_size(group)[0]
    problem = _check_features(image_features, text_features, positives)
    sizes = agree(problem, [len(image_features), len(text_features)], device, group)
    before, n_texts = sum(texts for _, texts in sizes[:rank]), sum(texts for _, texts in sizes)
    pairs, problem = None, None
    try:
        pairs = _pairs(positives, len(image_features), n_texts, before, device)
    except ValueError as error:
        problem = error
    counts = agree(problem, [0 if pairs is None else len(pairs[0])], device, group)
    if sum(count for (count,) in counts) == 0:
        raise ValueError("positives: no pair is positive, so there is nothing to learn from this batch")
    dtype = torch.promote_types(torch.promote_types(image_features.dtype, text_features.dtype), torch.float32)
    with torch.autocast(device.type, enabled=False):
        scale = torch.as_tensor(logit_scale, device=device).to(dtype).reshape(())
        return _SymmetricLoss.apply(image_features, text_features, scale, *pairs, group)


class _SymmetricLoss(torch.autograd.Function):
    """The loss and its gradients; positives are (rows, columns), sorted by row."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, images: Tensor, texts: Tensor, scale: Tensor, rows: Tensor, columns: Tensor, group
    ) -> Tensor:
        backend = _backend(images.device, scale.dtype)
        own_images, own_texts = backend.prepare(images, texts)
        every_text = share_rows(own_texts, group)
        row_sums, column_sums = backend.log_sums(own_images, every_text, scale)
        column_sums = merge_log_sums(column_sums, group)

        logits = scale * _pair_products(own_images, every_text, rows, columns, scale.dtype)
        row_right = _log_sums_of_groups(logits, rows, len(row_sums))
        by_column = torch.argsort(columns, stable=True)
        column_right = _log_sums_of_groups(logits[by_column], columns[by_column], len(column_sums))
        column_right = merge_log_sums(column_right, group)

        has_row, has_column = ~torch.isneginf(row_right), ~torch.isneginf(column_right)
        row_loss = total(torch.where(has_row, row_sums - row_right, 0).sum(), group)
        n_rows = total(has_row.sum().to(scale.dtype), group)
        column_loss, n_columns = torch.where(has_column, column_sums - column_right, 0).sum(), has_column.sum()

        row_weight, column_weight = has_row / (2 * n_rows), has_column / (2 * n_columns.to(scale.dtype))
        # d loss / d logit of the positive pairs; of all others, the first and the third term alone
        at_positives = row_weight[rows] * ((logits - row_sums[rows]).exp() - (logits - row_right[rows]).exp())
        at_positives += column_weight[columns] * (
            (logits - column_sums[columns]).exp() - (logits - column_right[columns]).exp()
        )
        saved = (images, texts, scale, row_sums, column_sums, row_weight, column_weight, rows, columns, at_positives)
        ctx.save_for_backward(*saved, *([] if group is None else [every_text]))
        ctx.group, ctx.backend = group, backend
        return (row_loss / n_rows + column_loss / n_columns) / 2

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True: what comes back would pass for a constant
            raise RuntimeError("contrastive_loss has no second derivative: call backward without create_graph")
        images, texts, scale, row_sums, column_sums, row_weight, column_weight, rows, columns, values, *rest = (
            ctx.saved_tensors
        )
        to_images, to_texts, to_scale = ctx.needs_input_grad[:3]
        own_images, own_texts = ctx.backend.prepare(images, texts)
        every_text = rest[0] if rest else own_texts
        by_images = to_images or (to_scale and not to_texts)
        sums, weights, wanted = (row_sums, column_sums), (row_weight, column_weight), (by_images, to_texts)
        positives = rows, columns, values
        for_images, for_texts = ctx.backend.products(own_images, every_text, scale, sums, weights, positives, wanted)
        grads: list[Tensor | None] = [None] * 6
        size = rank_and_size(ctx.group)[1]
        if to_scale:  # sum of d loss / d logit times the inner product, either way
            pairs = (own_images, for_images) if by_images else (every_text, for_texts)
            share = torch.linalg.vecdot(pairs[0].to(scale.dtype), pairs[1]).double().sum()
            grads[2] = grad * total(share, ctx.group).to(scale.dtype)
        if to_images:
            grads[0] = (for_images[:, : images.shape[1]] * (size * grad * scale)).to(images.dtype)
        if to_texts:
            own = sum_own_rows(for_texts, len(texts), ctx.group)
            grads[1] = (own[:, : texts.shape[1]] * (size * grad * scale)).to(texts.dtype)
        return tuple(grads)


def _backend(device: torch.device, dtype: torch.dtype) -> _Backend:
    """The chosen one."""
    if choose_backend("contrastive_loss", device, dtype).name == "triton":
        import rsvlm.kernels.triton_infonce as triton  # only here: it is optional

        return _Backend(triton.prepare, triton.log_sums, triton.products)
    return _Backend(prepare, log_sums, products)


def _check_features(images: Tensor, texts: Tensor, positives: Tensor | Positives | None) -> ValueError | None:
    """What is wrong with one process's own arguments."""
    if images.ndim != 2 or texts.ndim != 2:
        return ValueError(f"expected two matrices (rows, D), got {tuple(images.shape)} and {tuple(texts.shape)}")
    if images.shape[1] != texts.shape[1]:
        return ValueError(
            f"image_features have width {images.shape[1]}, text_features have width {texts.shape[1]}: they must agree"
        )
    if positives is None and len(images) != len(texts):
        return ValueError(f"{len(images)} images and {len(texts)} texts: without positives their numbers must agree")
    return None


def _pairs(
    positives: Tensor | Positives | None, n_images: int, n_texts: int, before: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(rows, columns) of the positive pairs, sorted by row. ``before``: texts of processes with a lower rank."""
    if positives is None:
        own = torch.arange(n_images, device=device)
        return own, own + before
    if isinstance(positives, Tensor):
        if positives.shape != (n_images, n_texts) or positives.dtype != torch.bool:
            raise ValueError(
                f"positives: expected bool ({n_images}, {n_texts}), got {positives.dtype} {tuple(positives.shape)}"
            )
        return positives.to(device).nonzero(as_tuple=True)
    offsets, ids = check_positives(positives, n_images, n_texts, device)
    return torch.repeat_interleave(torch.arange(n_images, device=device), offsets.diff()), ids


def _pair_products(images: Tensor, texts: Tensor, rows: Tensor, columns: Tensor, dtype: torch.dtype) -> Tensor:
    """Inner products (P,) of pairs of rows."""
    products = torch.empty(len(rows), dtype=dtype, device=images.device)
    for first, last in spans(len(rows), max(1, PAIR_VALUES // max(images.shape[1], 1))):
        left, right = images[rows[first:last]].to(dtype), texts[columns[first:last]].to(dtype)
        products[first:last] = torch.linalg.vecdot(left, right)
    return products


def _log_sums_of_groups(values: Tensor, groups: Tensor, n_groups: int) -> Tensor:
    """logsumexp (n_groups,) of values that are sorted by their group; -inf for an empty one. No atomic additions."""
    top = torch.full((n_groups,), -torch.inf, dtype=values.dtype, device=values.device)
    top.scatter_reduce_(0, groups, values, reduce="amax")
    counts = torch.bincount(groups, minlength=n_groups)
    sums = torch.segment_reduce((values - top[groups]).exp(), "sum", lengths=counts, unsafe=True)
    return torch.where(counts > 0, top + sums.log(), -torch.inf)


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
            over_texts, over_images = _both_log_sums(product(scaled, texts[start:stop], buffer))
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
            tile = product(scaled, texts[start:stop], buffers[0])
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


def _both_log_sums(tile: Tensor) -> tuple[Tensor, Tensor]:
    """logsumexp of a tile's rows and of its columns. Overwrites the tile."""
    low, high = tile.aminmax()
    if bool(high - low <= NARROW):
        tile = tile.sub_(high).exp_()
        return tile.sum(dim=1).log_().add_(high), tile.sum(dim=0).log_().add_(high)
    return tile.logsumexp(dim=1), tile.logsumexp(dim=0)
