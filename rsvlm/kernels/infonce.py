"""Symmetric InfoNCE between two towers, with any number of right answers a row."""

import torch
from torch import Tensor


def contrastive_loss(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor, positives: Tensor | None = None
) -> Tensor:
    """Symmetric contrastive loss, a scalar with gradients to both towers and to the scale.

    With s = logit_scale * image_features @ text_features.T, the image side is

        mean over i of [ logsumexp over all j of s_ij  -  logsumexp over the positives j of s_ij ],

    the text side the same along columns, and the loss is the mean of the two. With one positive a row this is CLIP's
    cross-entropy (Radford et al. 2021). With several, the model has to put its probability on the set of right
    answers and is free to share it out among them; the other captions of an image are then no negatives.
    A row without a positive takes no part in its side's mean, but still serves as negative for the other side.

    Half-precision inputs are taken in float32 (float64 stays float64), also under autocast. Plain autograd: the (N, M)
    matrix is held, which suits batches of some thousands.

    Args:
        image_features: (N, D), normalised by the caller.
        text_features: (M, D), normalised by the caller.
        logit_scale: scalar, the factor itself (exp already taken).
        positives: (N, M) bool; None: pair i is right for row i (needs N = M).

    Raises:
        ValueError: shapes do not fit, or no pair at all is positive.
    """
    N, D = image_features.shape
    M, width = text_features.shape
    if D != width:
        raise ValueError(f"image_features have width {D}, text_features have width {width}: they must agree")
    if positives is None:
        if N != M:
            raise ValueError(f"{N} images and {M} texts: without positives their numbers must agree")
        positives = torch.eye(N, dtype=torch.bool, device=image_features.device)
    if positives.shape != (N, M) or positives.dtype != torch.bool:
        raise ValueError(f"positives: expected bool ({N}, {M}), got {positives.dtype} {tuple(positives.shape)}")
    if not bool(positives.any()):
        raise ValueError("positives: no pair is positive, so there is nothing to learn from this batch")
    dtype = torch.promote_types(torch.promote_types(image_features.dtype, text_features.dtype), torch.float32)
    with torch.autocast(image_features.device.type, enabled=False):
        scale = torch.as_tensor(logit_scale, device=image_features.device).to(dtype)
        logits = scale * (image_features.to(dtype) @ text_features.to(dtype).T)  # (N, M)
        return (_one_side(logits, positives) + _one_side(logits.T, positives.T)) / 2


def _one_side(logits: Tensor, positives: Tensor) -> Tensor:
    """Mean over the rows with a positive of logsumexp(all) - logsumexp(positives)."""
    has_one = positives.any(dim=1)
    if not bool(has_one.all()):  # before the logsumexp, not after: one over nothing is -inf and its gradient NaN
        logits, positives = logits[has_one], positives[has_one]
    right = logits.masked_fill(~positives, -torch.inf)
    return (logits.logsumexp(dim=1) - right.logsumexp(dim=1)).mean()
