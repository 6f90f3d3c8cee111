"""The Triton backends against the torch backends and float64, on small and nasty inputs.

Not collected by itself: tests/test_kernels_triton.py runs it in Triton's interpreter, tests/test_kernels_gpu.py on a
GPU. The interpreter multiplies bfloat16 wrongly (Triton 3.9), so that type is tried on a GPU only.
"""

import os

import pytest
import torch
from torch.nn.functional import normalize

from rsvlm.kernels import (
    contrastive_loss,
    force_backend,
    prepare,
    retrieval_ranks,
    similarity_topk,
    tiles,
    triton_infonce,
    triton_ranks,
    triton_tile,
    triton_topk,
    two_way_ranks,
)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
ERRORS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}  # of gradients, relative
PRECISIONS = [torch.float32, torch.float16] + ([] if INTERPRETED else [torch.bfloat16])


def random_matrix(n, width, seed, dtype=torch.float32):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def guarded(matrix):
    """The same rows at the front of a buffer whose rest is NaN: reading behind them shows."""
    buffer = torch.full((len(matrix) + 130, matrix.shape[1]), torch.nan, dtype=matrix.dtype, device=matrix.device)
    buffer[: len(matrix)] = matrix
    return buffer[: len(matrix)]


def both(function, *arguments, **options):
    """What the torch backend and the Triton backend return."""
    with force_backend("torch"):
        plain = function(*arguments, **options)
    with force_backend("triton"):
        return plain, function(*arguments, **options)


def same_bits(one, other) -> bool:
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same_bits, one, other))
    return one.dtype == other.dtype and torch.equal(one, other)


@pytest.fixture
def small_launches(monkeypatch):
    """Several launches for a small matrix, so that their results are put together."""
    for module, queries in ((triton_topk, 3), (triton_ranks, 130)):
        monkeypatch.setattr(module, "QUERIES", queries)
        monkeypatch.setattr(module, "ITEMS", 288)
    monkeypatch.setattr(triton_infonce, "AREA", 128 * 100)


# Top-k


@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize(
    ("n", "m", "width", "k"), [(1, 1, 1, 1), (3, 33, 15, 40), (7, 129, 48, 5), (4, 257, 100, 31), (2, 300, 768, 3)]
)
def test_topk_is_the_same_in_both_near_duplicates(n, m, width, k, cosine):
    queries, items = guarded(random_matrix(n, width, 0)), guarded(random_matrix(m, width, 1))
    assert same_bits(*both(similarity_topk, queries, items, k, normalize=cosine))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_topk_of_several_launches(small_launches, dtype):
    items = random_matrix(500, 64, 2, dtype)
    items[300:340] = items[5]  # ties across launches
    queries = torch.cat([items[5:6], random_matrix(3, 64, 3, dtype)])
    for cosine in (True, False):
        assert same_bits(*both(similarity_topk, guarded(queries), guarded(items), 12, normalize=cosine))
    assert both(similarity_topk, queries, items, 3)[1][1][0].tolist() == [5, 300, 301]
    with force_backend("triton"):
        prepared, some = prepare(items), torch.arange(499, -1, -3, device=DEVICE)
        for _ in range(2):
            assert same_bits(similarity_topk(queries, prepared, 12), similarity_topk(queries, items, 12))
            among = similarity_topk(queries, prepared.some(some), 12)
            assert same_bits(among, similarity_topk(queries, items[some], 12))


def test_topk_of_equal_zero_and_huge_rows():
    equal = torch.ones(70, 9, device=DEVICE)
    assert both(similarity_topk, equal[:3], equal, 4)[1][1].tolist() == [[0, 1, 2, 3]] * 3
    zero = torch.zeros(4, 9, device=DEVICE)
    assert same_bits(*both(similarity_topk, zero, random_matrix(40, 9, 4), 5))
    for scale in (1e-30, 1e10, 1e19, 1e30):
        arguments = random_matrix(5, 9, 5), scale * random_matrix(60, 9, 6), 7
        for cosine in (True, False):
            assert same_bits(*both(similarity_topk, *arguments, normalize=cosine))


@pytest.mark.parametrize(("n", "m"), [(1, 31), (127, 128), (129, 257)])
def test_group_maxima_at_the_edges_of_tiles(n, m):
    rows, columns = guarded(random_matrix(n, 64, n).half()), guarded(random_matrix(m, 64, m).half())
    groups, rest = triton_topk._best_groups(rows, columns, 2)
    scores = torch.nn.functional.pad(rows.float() @ columns.float().T, (0, -m % 32), value=-torch.inf)
    top, at = scores.view(n, -1, 32).amax(2).topk(min(3, -(-m // 32)))
    assert torch.equal(groups, at[:, :2]) and torch.allclose(rest, top[:, 2:], rtol=1e-5, atol=1e-5)


def test_the_scan_lists_what_may_be_best_and_bounds_the_rest():
    for width in (1, 48, 768):
        rows = [tiles.Rows(random_matrix(n, width, n), "rows", True, torch.device(DEVICE)) for n in (6, 200)]
        found = triton_topk.scan_topk(*rows, 8)
        truth = rows[0].exact(slice(0, 6)) @ rows[1].exact(slice(0, 200)).T
        listed = torch.zeros_like(truth, dtype=torch.bool)
        listed[found.rows, found.indices] = True
        kth = truth.topk(8, dim=1).values[:, -1]
        assert (truth.masked_fill(listed, -torch.inf).amax(1) <= torch.maximum(found.rest, kth)).all()
        if width > 1:
            assert (found.rest < kth).all() and (listed | (truth < kth[:, None])).all()
            assert 48 <= len(found.rows) <= 6 * 14


# Ranks


@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize(("n", "m", "width"), [(1, 1, 1), (33, 31, 15), (127, 129, 48), (129, 130, 100)])
def test_ranks_are_the_same_in_both_near_duplicates(n, m, width, cosine):
    queries, items = guarded(random_matrix(n, width, 7)), guarded(random_matrix(m, width, 8))
    generator = torch.Generator().manual_seed(n)
    counts = torch.randint(0, 3, (n,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    positives = offsets.to(DEVICE), torch.randint(0, m, (int(offsets[-1]),), generator=generator).to(DEVICE)
    assert same_bits(*both(two_way_ranks, queries, items, positives, normalize=cosine))
    plain, triton = both(retrieval_ranks, queries, items, positives, normalize=cosine)
    assert same_bits(plain, triton)


def test_ranks_of_several_launches_with_shared_captions(small_launches):
    texts = random_matrix(90, 32, 9)
    rows = torch.randint(0, 90, (350,), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    captions, images = texts[rows], random_matrix(140, 32, 10)
    images[:70] += 2 * captions[:350:5]
    ids = torch.arange(350, device=DEVICE)
    positives = torch.clamp(torch.arange(141, device=DEVICE) * 5, max=350), ids
    assert same_bits(*both(two_way_ranks, images, captions, positives))
    assert same_bits(*both(two_way_ranks, images.half(), captions.half(), positives, normalize=False))


def test_ranks_where_all_is_in_doubt():
    equal = torch.ones(40, 6, device=DEVICE)
    positives = torch.arange(41, device=DEVICE), torch.arange(40, device=DEVICE)
    ranks = both(retrieval_ranks, equal, equal, positives)[1]
    assert ranks.greater.tolist() == [0] * 40 and ranks.equal.tolist() == [39] * 40 and ranks.tied.tolist() == [1] * 40
    near = random_matrix(1, 40, 11) + 1e-6 * random_matrix(90, 40, 12)
    positives = torch.arange(91, device=DEVICE), torch.arange(90, device=DEVICE)
    assert same_bits(*both(two_way_ranks, near, near, positives))


@pytest.mark.parametrize("width", [1, 31, 32, 33, 100])
def test_packed_marks_are_unpacked(width):
    marks = torch.rand(9, width, generator=torch.Generator().manual_seed(width)) < 0.02
    marks[0, width - 1] = True
    padded = torch.zeros(9, -(-width // 32) * 32, dtype=torch.int64)
    padded[:, :width] = marks
    words = (padded.view(9, -1, 32) << torch.arange(32)).sum(2)
    words = torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)
    assert same_bits(triton_ranks._unpack(words), marks.nonzero(as_tuple=True))


# Loss


def dense(images, texts, scale, positives):
    logits = scale * images @ texts.T

    def one_side(logits, positives):
        has = positives.any(dim=1)
        logits, positives = logits[has], positives[has]
        return (logits.logsumexp(1) - logits.masked_fill(~positives, -torch.inf).logsumexp(1)).mean()

    return (one_side(logits, positives) + one_side(logits.T, positives.T)) / 2


def loss_and_gradients(loss, images, texts, scale, positives):
    inputs = [part.detach().clone().requires_grad_() for part in (images, texts, scale)]
    value = loss(*inputs, positives)
    return value.detach(), *torch.autograd.grad(value, inputs)


def compare_with_float64(images, texts, scale, positives):
    """The loss and its gradients against the whole matrix in float64, on the same rounded features."""
    with force_backend("triton"):
        found = loss_and_gradients(contrastive_loss, images, texts, torch.tensor(scale, device=DEVICE), positives)
    doubles = images.double(), texts.double(), torch.tensor(scale, dtype=torch.float64, device=DEVICE)
    right = loss_and_gradients(dense, *doubles, positives)
    slip = 2 * scale * (images.shape[1] + 2) * 2.0**-23 + 1e-6 * (1 + right[0].abs())
    assert abs(found[0] - right[0]) <= slip
    for one, other in zip(found[1:3], right[1:3]):
        assert (one.double() - other).norm() <= ERRORS[images.dtype] * other.norm() + 1e-12
    cosines = doubles[0] @ doubles[1].T
    logits = doubles[2] * cosines
    terms = ((logits.softmax(1) + logits.softmax(0) + 2 * positives) * cosines.abs()).sum() / len(images)
    assert abs(found[3] - right[3]) <= ERRORS[images.dtype] * terms + 1e-12


def some_positives(n, m):
    positives = torch.rand(n, m, generator=torch.Generator().manual_seed(n)) < 1.5 / m
    positives[0, 0] = True
    return positives.to(DEVICE)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(("n", "m", "width"), [(1, 1, 1), (33, 31, 15), (63, 65, 48), (129, 127, 100)])
def test_the_loss_agrees_with_float64(dtype, n, m, width):
    images = guarded(normalize(random_matrix(n, width, 13), dim=1).to(dtype))
    texts = guarded(normalize(random_matrix(m, width, 14), dim=1).to(dtype))
    compare_with_float64(images, texts, 20.0, some_positives(n, m))


@pytest.mark.parametrize("scale", [0.0, 1e-3, 100.0, 1e4])
def test_the_loss_at_scales_small_and_huge(scale):
    images, texts = (normalize(random_matrix(40, 32, seed), dim=1) for seed in (15, 16))
    compare_with_float64(images, texts, scale, torch.eye(40, dtype=torch.bool, device=DEVICE))


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_all_negative_logits_and_rows_far_apart(dtype):
    images = normalize(random_matrix(70, 16, 17), dim=1).to(dtype)
    eye = torch.eye(70, dtype=torch.bool, device=DEVICE)
    compare_with_float64(images, -images.abs(), 200.0, eye)
    compare_with_float64(images, -images, 200.0, eye)


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_the_loss_of_several_launches_twice_the_same(small_launches, dtype):
    images, texts = (normalize(random_matrix(n, 24, n), dim=1).to(dtype) for n in (300, 100))
    positives = some_positives(300, 100)
    compare_with_float64(images, texts, 30.0, positives)
    with force_backend("triton"):
        first, again = (
            loss_and_gradients(contrastive_loss, images, texts, torch.tensor(30.0, device=DEVICE), positives)
            for _ in range(2)
        )
    assert same_bits(first, again)


def test_one_tower_alone_strides_and_mixed_types():
    base = random_matrix(40, 30, 18)
    with force_backend("triton"):
        images = base[:, ::2].detach().requires_grad_()
        texts = base[:, 1::2].half()
        contrastive_loss(images, texts, torch.tensor(5.0, device=DEVICE)).backward()
        again = base[:, ::2].clone().requires_grad_()
        contrastive_loss(again, texts.clone(), torch.tensor(5.0, device=DEVICE)).backward()
    assert torch.equal(images.grad, again.grad) and torch.isfinite(images.grad).all()


def test_a_new_number_of_rows_compiles_nothing_anew():
    if INTERPRETED:
        pytest.skip("the interpreter compiles nothing")
    kernel = triton_infonce.log_sums_kernel
    with force_backend("triton"):
        for n, m in ((64, 64), (65, 31), (1, 1), (16, 160)):
            images, texts = random_matrix(n, 64, 1, torch.float16), random_matrix(m, 64, 2, torch.float16)
            contrastive_loss(images, texts, 1.0, some_positives(n, m))
    assert max(len(caches[0]) for caches in kernel.device_caches.values()) == 1


def test_widths_are_filled_up():
    assert triton_tile.pad_width(torch.ones(2, 1000)).shape == (2, 1024)
    assert triton_tile.pad_width(torch.ones(2, 768)).shape == (2, 768)
