"""similarity_topk against a boring float64 reference, on random and on nasty inputs."""

import numpy as np
import pytest
import torch

from rsvlm.kernels import similarity_topk

torch.set_num_threads(1)
BLOCKS = (17, 64, 4096)


def reference(queries, items, k, normalize=True):
    """Scores and indices by a full float64 matrix and a stable sort: nothing clever."""
    queries, items = np.asarray(queries, dtype=np.float64), np.asarray(items, dtype=np.float64)
    if normalize:
        queries, items = (
            x / np.maximum(np.sqrt((x**2).sum(1, keepdims=True)), 1e-12) for x in (queries, items)
        )
    scores = (queries @ items.T).astype(np.float32)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    found = np.take_along_axis(scores, order, axis=1)
    missing = k - order.shape[1]
    pad = [(0, 0), (0, missing)]
    return np.pad(found, pad, constant_values=-np.inf), np.pad(order, pad, constant_values=-1)


def check(queries, items, k, **options):
    expected = reference(queries, items, k, **options)
    for block in BLOCKS:
        scores, indices = similarity_topk(queries, items, k, block=block, **options)
        assert (scores.dtype, indices.dtype) == (torch.float32, torch.int64)
        np.testing.assert_array_equal(indices.numpy(), expected[1], err_msg=f"block {block}")
        np.testing.assert_array_equal(scores.numpy(), expected[0], err_msg=f"block {block}")


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("n_queries", "n_items", "width", "k"), [(7, 131, 16, 5), (65, 64, 1, 10), (1, 97, 100, 97)])
def test_agrees_with_reference_for_every_block(n_queries, n_items, width, k, normalize):
    random = np.random.default_rng(0)
    queries = random.normal(size=(n_queries, width)).astype(np.float32)
    items = random.normal(size=(n_items, width)).astype(np.float32)
    check(queries, items, k, normalize=normalize)


def test_a_block_of_one_item():
    random = np.random.default_rng(6)
    queries, items = random.normal(size=(3, 9)), random.normal(size=(11, 9))
    items[8] = items[2]
    small, large = similarity_topk(queries, items, 6, block=1), similarity_topk(queries, items, 6)
    assert all(map(torch.equal, small, large))


def test_exact_ties_come_in_the_order_of_their_index():
    random = np.random.default_rng(1)
    items = random.normal(size=(200, 24)).astype(np.float32)
    items[[150, 3, 77, 199]] = items[10]
    queries = np.concatenate([items[10:11], random.normal(size=(5, 24)).astype(np.float32)])
    scores, indices = similarity_topk(queries, items, 5)
    assert indices[0].tolist() == [3, 10, 77, 150, 199]
    assert len(set(scores[0].tolist())) == 1
    check(queries, items, 20)


def test_all_equal_items_come_in_their_order():
    check(np.ones((3, 7), dtype=np.float32), np.ones((50, 7), dtype=np.float32), 10)
    check(-np.ones((3, 7), dtype=np.float32), np.ones((50, 7), dtype=np.float32), 10)


def test_duplicates_tie_wherever_they_lie_and_whatever_the_width():
    """A float32 product sums edge columns in another order; equal vectors must tie all the same."""
    for width in (15, 384, 513):
        one = np.random.default_rng(width).normal(size=(1, width)).astype(np.float32)
        query = np.random.default_rng(2).normal(size=(37, width)).astype(np.float32)
        for block in (5, 37, 100):
            scores, indices = similarity_topk(query, np.repeat(one, 101, axis=0), 101, block=block)
            assert torch.equal(indices, torch.arange(101).expand(37, 101))
            assert torch.equal(scores.amin(1), scores.amax(1))


def test_fewer_items_than_k_are_padded():
    scores, indices = similarity_topk(torch.ones(2, 3), torch.ones(2, 3), 4)
    assert indices.tolist() == [[0, 1, -1, -1]] * 2
    assert scores[:, 2:].eq(-torch.inf).all()
    check(np.ones((2, 3), dtype=np.float32), np.ones((1, 3), dtype=np.float32), 1)


def test_no_items_and_no_queries():
    scores, indices = similarity_topk(torch.ones(2, 3), torch.ones(0, 3), 2)
    assert scores.eq(-torch.inf).all() and indices.eq(-1).all()
    scores, indices = similarity_topk(torch.ones(0, 3), torch.ones(5, 3), 2)
    assert scores.shape == indices.shape == (0, 2)


def test_zero_vectors_score_zero():
    items = np.array([[0, 0], [-1, 0], [0, 0], [1, 0]], dtype=np.float32)
    scores, indices = similarity_topk(np.array([[2, 0], [0, 0]], dtype=np.float32), items, 4)
    assert indices.tolist() == [[3, 0, 2, 1], [0, 1, 2, 3]]
    assert scores.tolist() == [[1, 0, 0, -1], [0, 0, 0, 0]]
    assert not torch.signbit(scores[1]).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_floating_type_scored_in_float32(dtype):
    torch.manual_seed(3)
    queries, items = torch.randn(4, 20).to(dtype), torch.randn(30, 20).to(dtype)
    expected = reference(queries.double().numpy(), items.double().numpy(), 6)
    scores, indices = similarity_topk(queries, items, 6)
    np.testing.assert_array_equal(indices.numpy(), expected[1])
    np.testing.assert_array_equal(scores.numpy(), expected[0])


def test_half_precision_lengths_do_not_overflow():
    items = torch.full((2, 64), 60000.0, dtype=torch.float16)
    items[1, 0] = 0
    scores, indices = similarity_topk(items[:1], items, 2)
    assert scores[0, 0] == 1 and torch.isfinite(scores).all() and indices.tolist() == [[0, 1]]


def test_memory_maps_strides_and_gradients(tmp_path):
    random = np.random.default_rng(4)
    items = random.normal(size=(60, 8)).astype(np.float16)
    np.save(tmp_path / "items.npy", items)
    mapped = np.load(tmp_path / "items.npy", mmap_mode="r")
    queries = random.normal(size=(5, 8)).astype(np.float32)
    expected = similarity_topk(queries, items, 4)
    assert all(map(torch.equal, similarity_topk(torch.from_numpy(queries).requires_grad_(), mapped, 4), expected))
    assert all(map(torch.equal, similarity_topk(queries[::-1][::-1], items[:, ::-1][:, ::-1], 4), expected))
    assert all(map(torch.equal, similarity_topk(np.asfortranarray(queries), items, 4), expected))


def test_scaling_a_query_and_permuting_items_change_nothing_but_the_names():
    torch.manual_seed(5)
    queries, items = torch.randn(6, 12), torch.randn(40, 12)
    scores, indices = similarity_topk(queries, items, 5)
    order = torch.randperm(40)
    permuted_scores, permuted = similarity_topk(1000 * queries, items[order], 5)
    assert torch.equal(order[permuted], indices)
    assert torch.allclose(permuted_scores, scores, rtol=0, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused_with_their_row(bad):
    good, spoilt = np.ones((10, 3), dtype=np.float32), np.ones((10, 3), dtype=np.float32)
    spoilt[7, 1] = bad
    with pytest.raises(ValueError, match="queries: row 7 holds NaN"):
        similarity_topk(spoilt, good, 2, block=4)
    with pytest.raises(ValueError, match="items: row 7 holds NaN"):
        similarity_topk(good, spoilt, 2, block=4)
    with pytest.raises(ValueError, match="queries: row 7"):
        similarity_topk(spoilt, good[:0], 2)


@pytest.mark.parametrize(
    ("queries", "items", "k", "message"),
    [
        (torch.ones(2, 3), torch.ones(2, 4), 1, "width 3.*width 4"),
        (torch.ones(3), torch.ones(2, 3), 1, r"queries: expected a matrix.*\(3,\)"),
        (torch.ones(2, 3), torch.ones(2, 3, dtype=torch.int64), 1, "items: expected floating-point"),
        (torch.ones(2, 3), [[1.0, 2.0, 3.0]], 1, "items: expected a torch tensor"),
        (torch.ones(2, 3), torch.ones(2, 3), 0, "k = 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(queries, items, k, message):
    with pytest.raises(ValueError, match=message):
        similarity_topk(queries, items, k)
