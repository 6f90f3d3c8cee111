"""contrastive_loss against loops and gradcheck."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from rsvlm.kernels import contrastive_loss, infonce

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


# Tiles, ranges, memory


def dense(images, texts, scale, positives):
    """The loss with the whole matrix, by autograd, in float64."""
    logits = scale * images @ texts.T

    def one_side(logits, positives):
        has = positives.any(dim=1)
        logits, positives = logits[has], positives[has]
        right = logits.masked_fill(~positives, -torch.inf)
        return (logits.logsumexp(1) - right.logsumexp(1)).mean()

    return (one_side(logits, positives) + one_side(logits.T, positives.T)) / 2


def gradients(loss, images, texts, scale, positives):
    inputs = [part.detach().clone().requires_grad_() for part in (images, texts, scale)]
    value = loss(*inputs, positives)
    return value.detach(), *torch.autograd.grad(value, inputs)


def random_positives(n, m, seed):
    generator = torch.Generator().manual_seed(seed)
    positives = torch.rand(n, m, generator=generator) < 1.5 / m
    positives[0, 0] = True
    return positives


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 100.0, 1e4])
@pytest.mark.parametrize(("n", "m", "width"), [(1, 1, 1), (7, 16, 15), (17, 33, 48), (23, 8, 100)])
def test_small_tiles_agree_with_the_whole_matrix(monkeypatch, n, m, width, scale):
    monkeypatch.setitem(infonce.TILE, "cpu", (8, 16))
    images, texts = features(n, width, n), features(m, width, m + 1)
    inputs = images, texts, torch.tensor(scale, dtype=torch.float64), random_positives(n, m, n)
    for found, right in zip(gradients(contrastive_loss, *inputs), gradients(dense, *inputs)):
        assert torch.allclose(found, right, rtol=1e-9, atol=1e-12 * max(1, scale))


@pytest.mark.parametrize("width", [512, 768, 1000])
def test_float32_stays_within_its_bounds(width):
    images, texts, scale = features(60, width, 1), features(60, width, 2), torch.tensor(50.0, dtype=torch.float64)
    images, texts = images.float(), texts.float()
    positives = torch.eye(60, dtype=torch.bool)
    right = gradients(dense, images.double(), texts.double(), scale, positives)
    found = gradients(contrastive_loss, images, texts, scale.float(), positives)
    assert abs(found[0] - right[0]) <= 2 * 50 * (width + 2) * 2.0**-24  # logsumexp is 1-Lipschitz
    for one, other in zip(found[1:3], right[1:3]):
        assert (one - other).norm() <= 1e-5 * other.norm()
    cosines = images.double() @ texts.double().T
    logits = scale * cosines
    weight = (logits.softmax(1) + logits.softmax(0) + 2 * positives) / 120
    assert abs(found[3] - right[3]) <= 1e-5 * (weight * cosines.abs()).sum()


def test_logits_far_apart_and_all_negative():
    """One maximum for all would lose rows whose own is far below it (RemoteCLIP's scale times unlike vectors)."""
    images = torch.zeros(6, 4, dtype=torch.float64)
    images[:, 0] = torch.tensor([1.0, -1.0, 0.5, -0.5, 0.0, 0.3])
    texts = torch.zeros(6, 4, dtype=torch.float64)
    texts[:, 0] = torch.tensor([1.0, 0.9, -1.0, 0.2, -0.3, 0.7])
    eye = torch.eye(6, dtype=torch.bool)
    for scale in (200.0, 1e4):
        inputs = images, texts, torch.tensor(scale, dtype=torch.float64), eye
        exact = gradients(dense, *inputs)
        for found, right in zip(gradients(contrastive_loss, *inputs), exact):
            assert torch.isfinite(found).all() and torch.allclose(found, right, rtol=1e-9, atol=1e-9)
        single = contrastive_loss(images.float(), texts.float(), torch.tensor(scale), eye)
        assert single.item() == pytest.approx(exact[0].item(), rel=1e-6)
    away = contrastive_loss(features(9, 8, 3).float(), -features(9, 8, 3).float(), torch.tensor(500.0))
    assert torch.isfinite(away)


def test_csr_and_bool_are_the_same():
    images, texts, scale = features(4, 6, 14), features(5, 6, 15), torch.tensor(9.0)
    pairs = torch.tensor([0, 2, 3, 3, 5]), torch.tensor([1, 0, 3, 4, 0])
    assert torch.equal(contrastive_loss(images, texts, scale, POSITIVES), contrastive_loss(images, texts, scale, pairs))


@pytest.mark.parametrize(
    "wanted", [(True, False, False), (False, True, False), (False, False, True), (False, True, True)]
)
def test_gradients_of_one_part_alone(wanted):
    whole = gradients(contrastive_loss, features(4, 6, 16), features(5, 6, 17), torch.tensor(4.0), POSITIVES)[1:]
    inputs = [features(4, 6, 16), features(5, 6, 17), torch.tensor(4.0)]
    inputs = [part.requires_grad_(on) for part, on in zip(inputs, wanted)]
    contrastive_loss(*inputs, POSITIVES).backward()
    for part, on, right in zip(inputs, wanted, whole):
        assert (part.grad is not None) == on
        assert not on or torch.allclose(part.grad, right)


def test_what_is_kept_for_the_backward_pass_grows_with_the_rows_alone():
    def saved(n):
        sizes = []
        keep = lambda t: sizes.append(t.numel() * t.element_size()) or t  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            contrastive_loss(features(n, 8, 0).requires_grad_(), features(n, 8, 1), torch.tensor(1.0))
        return sum(sizes)

    assert saved(400) <= 4.01 * saved(100)
    assert saved(400) < 400 * 400


def test_a_second_derivative_is_refused():
    images = features(4, 3, 18).requires_grad_()
    loss = contrastive_loss(images, features(5, 3, 19), torch.tensor(2.0), POSITIVES)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, images, create_graph=True)
    loss = contrastive_loss(images, features(5, 3, 19), torch.tensor(2.0), POSITIVES)
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_the_same_inputs_give_the_same_bits(monkeypatch):
    monkeypatch.setitem(infonce.TILE, "cpu", (16, 16))
    inputs = features(50, 12, 20).float(), features(40, 12, 21).float(), torch.tensor(30.0), random_positives(50, 40, 3)
    first, again = (gradients(contrastive_loss, *inputs) for _ in range(2))
    assert all(map(torch.equal, first, again))


def test_strided_and_expanded_features():
    base = features(12, 10, 22)
    for images in (base[::2, ::2], base.T[:6, :5], base[:1, :5].expand(6, 5)):
        texts = features(6, 5, 23)
        assert torch.equal(contrastive_loss(images, texts, 8.0), contrastive_loss(images.clone(), texts, 8.0))


def test_half_precision_gradients_come_back_in_half_precision():
    images, texts = (features(9, 16, seed).half().requires_grad_() for seed in (24, 25))
    contrastive_loss(images, texts, torch.tensor(20.0)).backward()
    assert images.grad.dtype == texts.grad.dtype == torch.float16
    scale = torch.tensor(20.0, dtype=torch.float64)
    right = gradients(dense, images.double(), texts.double(), scale, torch.eye(9).bool())
    assert (images.grad.double() - right[1]).norm() <= 2e-3 * right[1].norm()
