"""retrieval_ranks against brute-force counting, and the CSR helpers."""

import numpy as np
import pytest
import torch

from rsvlm.kernels import force_scan, retrieval_ranks, two_way_ranks
from rsvlm.kernels import ranks as ranks_module

torch.set_num_threads(1)
pytestmark = pytest.mark.usefixtures("scan")
BLOCKS = (17, 50, 4096)


def csr(lists):
    return np.cumsum([0, *map(len, lists)]), np.array([item for own in lists for item in own], dtype=np.int64)


def reference(queries, items, lists, normalize=True):
    queries, items = np.asarray(queries, dtype=np.float64), np.asarray(items, dtype=np.float64)
    if normalize:
        queries, items = (x / np.maximum(np.sqrt((x**2).sum(1, keepdims=True)), 1e-12) for x in (queries, items))
    scores = (queries @ items.T).astype(np.float32)
    rows = []
    for row, own in zip(scores, lists, strict=True):
        own = sorted(set(own))
        if not own:
            rows.append((-np.inf, len(row), 0, 0))
            continue
        best, others = row[own].max(), np.delete(row, own)
        rows.append((best, (others > best).sum(), (others == best).sum(), (row[own] == best).sum()))
    return [np.array(part) for part in zip(*rows, strict=True)]


def check(queries, items, lists, **options):
    expected = reference(queries, items, lists, **options)
    for block in BLOCKS:
        ranks = retrieval_ranks(queries, items, csr(lists), block=block, **options)
        assert ranks.best.dtype == torch.float32
        assert {part.dtype for part in ranks[1:]} == {torch.int64}
        for name, part, right in zip(ranks._fields, ranks, expected, strict=True):
            np.testing.assert_array_equal(part.numpy(), right, err_msg=f"{name}, block {block}")


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("width", [1, 15, 48, 100])
def test_agrees_with_counting(width, normalize):
    random = np.random.default_rng(width)
    queries, items = (random.normal(size=(n, width)).astype(np.float32) for n in (31, 101))
    lists = [random.choice(101, size=random.integers(0, 6), replace=False).tolist() for _ in range(31)]
    check(queries, items, lists, normalize=normalize)


def test_a_block_of_one_item():
    random = np.random.default_rng(6)
    queries, items = random.normal(size=(3, 9)), random.normal(size=(11, 9))
    items[8] = items[2]
    positives = csr([[8], [0, 2], [5]])
    for part, whole in zip(
        retrieval_ranks(queries, items, positives, block=1), retrieval_ranks(queries, items, positives), strict=True
    ):
        assert torch.equal(part, whole)


def test_exact_duplicates_are_counted_as_ties():
    random = np.random.default_rng(0)
    items = random.normal(size=(120, 20)).astype(np.float32)
    items[60:] = items[:60]  # every item has a copy with another id
    queries = random.normal(size=(40, 20)).astype(np.float32)
    check(queries, items, [[q, q + 60] if q % 2 else [q] for q in range(40)])
    ranks = retrieval_ranks(queries, items, csr([[q, q + 60] if q % 2 else [q] for q in range(40)]))
    assert ranks.equal.tolist() == [0 if q % 2 else 1 for q in range(40)]
    assert ranks.tied.tolist() == [2 if q % 2 else 1 for q in range(40)]


def test_all_equal_one_item_and_zero_vectors():
    check(np.ones((4, 5), dtype=np.float32), np.ones((9, 5), dtype=np.float32), [[0], [8, 3], [], [4] * 3])
    check(np.ones((2, 5), dtype=np.float32), np.ones((1, 5), dtype=np.float32), [[0], []])
    check(np.zeros((3, 5), dtype=np.float32), np.eye(5, dtype=np.float32), [[1], [0, 2], [4]])


def test_a_positive_never_counts_against_its_query():
    """Half-precision inputs and any width: the threshold is its own score, not a value near it."""
    torch.manual_seed(0)
    for width in (48, 384, 513):
        items = torch.nn.functional.normalize(torch.randn(150, width), dim=1).half()
        ranks = retrieval_ranks(items, items, (torch.arange(151), torch.arange(150)), block=37)
        assert ranks.greater.sum() == ranks.equal.sum() == 0


def test_no_queries_and_no_items():
    empty = retrieval_ranks(torch.ones(0, 3), torch.ones(4, 3), csr([]))
    assert all(part.shape == (0,) for part in empty)
    nothing = retrieval_ranks(torch.ones(2, 3), torch.ones(0, 3), csr([[], []]))
    assert nothing.greater.tolist() == [0, 0] and nothing.tied.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("offsets", "ids", "message"),
    [
        ([0, 1], [0], "2 offsets for 2 queries: expected 3"),
        ([0, 2, 1], [0], "offsets must rise"),
        ([1, 1, 1], [0], "offsets must rise"),
        ([0, 1, 2], [0, 5], "id 5 is not one of the 5 items"),
        ([0, 1, 2], [0, -1], "id -1"),
        ([0, 1, 2], [0.0, 1.0], "ids must be one row of integers"),
    ],
)
def test_positives_that_do_not_fit_are_refused(offsets, ids, message):
    with pytest.raises(ValueError, match=message):
        retrieval_ranks(torch.ones(2, 3), torch.ones(5, 3), (torch.tensor(offsets), torch.tensor(ids)))


def test_nan_is_refused_with_its_row():
    spoilt = torch.ones(5, 3)
    spoilt[4, 0] = torch.nan
    with pytest.raises(ValueError, match="items: row 4"):
        retrieval_ranks(torch.ones(2, 3), spoilt, csr([[0], [1]]))
    with pytest.raises(ValueError, match="queries: row 4"):
        retrieval_ranks(spoilt, torch.ones(2, 3), csr([[0]] * 5))


def captions_shared_across_images(random, width=24):
    """Images with five captions each, some written under several images, as in RSICD: (images, captions, owners)."""
    texts = random.normal(size=(60, width)).astype(np.float32)
    rows = random.integers(0, 60, size=150)
    return random.normal(size=(30, width)).astype(np.float32), texts[rows], np.repeat(np.arange(30), 5)


@pytest.mark.parametrize("block", [17, 50, 4096])
def test_both_ways_at_once_are_one_way_twice(block):
    images, captions, owners = captions_shared_across_images(np.random.default_rng(20))
    lists = [np.flatnonzero(owners == i).tolist() for i in range(29)] + [[]]
    positives = csr(lists)
    there, back = two_way_ranks(images, captions, positives, block=block)
    assert all(map(torch.equal, there, retrieval_ranks(images, captions, positives, block=block)))
    turned = csr([[image for image, own in enumerate(lists) if row in own] for row in range(len(captions))])
    assert all(map(torch.equal, back, retrieval_ranks(captions, images, turned, block=block)))
    check(images, captions, lists)


def test_ranks_do_not_depend_on_the_type_of_the_scan():
    random = np.random.default_rng(21)
    images, captions, owners = captions_shared_across_images(random)
    images = (images + 3 * captions[::5]).astype(np.float16)
    positives = csr([np.flatnonzero(owners == i).tolist() for i in range(30)])
    with force_scan("float32"):
        expected = two_way_ranks(images, captions, positives)
    for block in (50, 4096):
        with force_scan("bfloat16"):
            found = two_way_ranks(images, captions, positives, block=block)
        for side, right in zip(found, expected):
            assert all(map(torch.equal, side, right))


def test_pairs_in_doubt_are_scored_exactly(monkeypatch):
    random = np.random.default_rng(22)
    queries, items = random.normal(size=(50, 32)), random.normal(size=(3000, 32))
    positives = csr([[i] for i in range(50)])
    with force_scan("float32"):
        exact = retrieval_ranks(queries, items, positives)
    scored, original = [], ranks_module.pair_scores
    monkeypatch.setattr(ranks_module, "pair_scores", lambda *args: scored.append(len(args[2])) or original(*args))
    monkeypatch.setattr(ranks_module, "MOST_IN_DOUBT", 1.0)
    with force_scan("bfloat16"):
        assert all(map(torch.equal, retrieval_ranks(queries, items, positives), exact))
    assert sum(scored[1:]) > 0, "bfloat16 leaves pairs undecided"


def test_tiles_full_of_doubt_are_counted_exactly(monkeypatch):
    random = np.random.default_rng(23)
    near = random.normal(size=(1, 40)) + 1e-7 * random.normal(size=(200, 40))  # closer together than float32 sees
    lists = [[i, 199 - i] for i in range(100)]
    check(near[:100], near, lists)
    counted, original = [], ranks_module._count_exactly
    monkeypatch.setattr(ranks_module, "_count_exactly", lambda *args: counted.append(1) or original(*args))
    check(near[:100], near, lists)
    assert counted


@pytest.mark.parametrize("scale", [1e-44, 1e-20, 1e18, 1e30])
def test_ranks_of_extreme_lengths(scale):
    random = np.random.default_rng(24)
    queries, items = random.normal(size=(7, 9)).astype(np.float32), random.normal(size=(90, 9)).astype(np.float32)
    lists = [[i, 2 * i + 1] for i in range(7)]
    check(queries, (items * np.float32(scale)).astype(np.float32), lists)
    check((queries * np.float32(scale)).astype(np.float32), items, lists, normalize=False)


@pytest.mark.parametrize("n", [1, 7, 8, 127, 128, 129, 257, 300])
def test_marks_are_counted_and_found(n):
    generator = torch.Generator().manual_seed(n)
    for share in (0.0, 0.003, 1.0):
        mask = torch.rand(n, n, generator=generator) < share
        wide = torch.zeros(n, -(-n // ranks_module.LANES) * ranks_module.LANES, dtype=torch.bool)
        wide[:, :n] = mask
        assert torch.equal(ranks_module._count_rows(wide), mask.sum(1))
        assert torch.equal(ranks_module._count_columns(wide)[:n], mask.sum(0))
        if share < 0.5:
            assert all(map(torch.equal, ranks_module._find(wide), mask.nonzero(as_tuple=True)))


def test_one_order_of_items_is_as_good_as_another():
    images, captions, owners = captions_shared_across_images(np.random.default_rng(25))
    lists = [np.flatnonzero(owners == i) for i in range(30)]
    order = np.random.default_rng(26).permutation(150)
    place = np.argsort(order)
    plain = retrieval_ranks(images, captions, csr([own.tolist() for own in lists]))
    moved = retrieval_ranks(5 * images, captions[order], csr([place[own].tolist() for own in lists]))
    assert torch.equal(plain.greater, moved.greater) and torch.equal(plain.equal, moved.equal)
