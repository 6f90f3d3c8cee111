"""contrastive_loss against loops and gradcheck."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from rsvlm.kernels import contrastive_loss

torch.set_num_threads(1)


def reference(images, texts, scale, positives):
    """The formula, pair by pair, in Python floats."""
    logits = [[float(scale * (image @ text)) for text in texts] for image in images]
    right = positives.tolist()

    def one_side(logits, right):
        values = []
        for row, marks in zip(logits, right, strict=True):
            if any(marks):
                top = max(row)
                every = sum(math.exp(s - top) for s in row)
                chosen = max(s for s, mark in zip(row, marks, strict=True) if mark)
                own = sum(math.exp(s - chosen) for s, mark in zip(row, marks, strict=True) if mark)
                values.append(math.log(every) + top - math.log(own) - chosen)
        return sum(values) / len(values)

    return (one_side(logits, right) + one_side(list(zip(*logits)), list(zip(*right)))) / 2


def features(n, width, seed, dtype=torch.float64):
    return normalize(torch.randn(n, width, dtype=dtype, generator=torch.Generator().manual_seed(seed)), dim=1)


POSITIVES = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 1]], dtype=torch.bool)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 100.0, 1e4])
def test_agrees_with_the_formula(scale):
    images, texts = features(4, 6, 0), features(5, 6, 1)
    loss = contrastive_loss(images, texts, torch.tensor(scale, dtype=torch.float64), POSITIVES)
    assert loss.item() == pytest.approx(reference(images, texts, scale, POSITIVES), rel=1e-10, abs=1e-10)
    single = contrastive_loss(images.float(), texts.float(), torch.tensor(scale), POSITIVES)
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(loss.item(), rel=1e-5, abs=1e-5)


def test_the_diagonal_is_clips_cross_entropy():
    images, texts, scale = features(7, 5, 2), features(7, 5, 3), torch.tensor(14.0, dtype=torch.float64)
    logits, labels = scale * images @ texts.T, torch.arange(7)
    expected = (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2
    assert torch.allclose(contrastive_loss(images, texts, scale), expected)
    eye = torch.eye(7, dtype=torch.bool)
    assert torch.equal(contrastive_loss(images, texts, scale, eye), contrastive_loss(images, texts, scale))


def test_gradients_to_both_towers_and_the_scale():
    images, texts = features(4, 3, 4).requires_grad_(), features(5, 3, 5).requires_grad_()
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *inputs: contrastive_loss(*inputs, POSITIVES), (images, texts, scale))
    assert torch.autograd.gradcheck(contrastive_loss, (images, features(4, 3, 6).requires_grad_(), scale))


def test_rows_without_a_right_answer_have_finite_gradients_and_still_push():
    images, texts = features(4, 6, 7).requires_grad_(), features(5, 6, 8).requires_grad_()
    contrastive_loss(images, texts, torch.tensor(5.0), POSITIVES).backward()
    assert torch.isfinite(images.grad).all() and torch.isfinite(texts.grad).all()
    assert images.grad[2].abs().sum() > 0  # image 2 has no text, but is a negative for the texts


def test_an_images_other_captions_are_no_negatives():
    images = torch.eye(2, 4)
    texts = torch.stack([images[0], images[0], images[1], images[1]])
    owners = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]], dtype=torch.bool)
    assert contrastive_loss(images, texts, torch.tensor(100.0), owners).item() == pytest.approx(0, abs=1e-6)
    first_only = torch.tensor([[1, 0, 0, 0], [0, 0, 1, 0]], dtype=torch.bool)
    assert contrastive_loss(images, texts, torch.tensor(100.0), first_only).item() > 0.3


def test_swapping_the_towers_changes_nothing():
    images, texts, scale = features(4, 6, 9), features(5, 6, 10), torch.tensor(7.0)
    there = contrastive_loss(images, texts, scale, POSITIVES)
    assert torch.allclose(there, contrastive_loss(texts, images, scale, POSITIVES.T))


def test_half_precision_and_autocast_count_in_float32():
    images, texts = features(6, 8, 11).bfloat16(), features(6, 8, 12).bfloat16()
    plain = contrastive_loss(images.float(), texts.float(), torch.tensor(100.0))
    assert torch.equal(contrastive_loss(images, texts, torch.tensor(100.0)), plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(contrastive_loss(images, texts, torch.tensor(100.0)), plain)


@pytest.mark.parametrize(
    ("texts", "positives", "message"),
    [
        (torch.ones(3, 2), None, "width 4.*width 2"),
        (torch.ones(2, 4), None, "3 images and 2 texts"),
        (torch.ones(2, 4), torch.ones(2, 3, dtype=torch.bool), r"expected bool \(3, 2\)"),
        (torch.ones(2, 4), torch.ones(3, 2), "expected bool"),
        (torch.ones(2, 4), torch.zeros(3, 2, dtype=torch.bool), "no pair is positive"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(texts, positives, message):
    with pytest.raises(ValueError, match=message):
        contrastive_loss(torch.ones(3, 4), texts, torch.tensor(1.0), positives)
