"""retrieval_ranks against brute-force counting, and the CSR helpers."""

import numpy as np
import pytest
import torch

from rsvlm.kernels import retrieval_ranks, transpose_positives

torch.set_num_threads(1)
BLOCKS = (17, 50, 4096)


def csr(lists):
    return np.cumsum([0, *map(len, lists)]), np.array([item for own in lists for item in own], dtype=np.int64)


def reference(queries, items, lists, normalize=True):
    queries, items = np.asarray(queries, dtype=np.float64), np.asarray(items, dtype=np.float64)
    if normalize:
        queries, items = (
            x / np.maximum(np.sqrt((x**2).sum(1, keepdims=True)), 1e-12) for x in (queries, items)
        )
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


def test_transpose_positives_turns_the_pairs_round_and_back():
    lists = [[4, 1], [], [1, 1, 0]]
    offsets, ids = transpose_positives(csr(lists), 6)
    assert offsets.tolist() == [0, 1, 3, 3, 3, 4, 4]
    assert ids.tolist() == [2, 0, 2, 0]
    again = transpose_positives((offsets, ids), 3)
    assert again[0].tolist() == [0, 2, 2, 4] and again[1].tolist() == [1, 4, 0, 1]


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
