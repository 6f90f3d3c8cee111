"""similarity_topk against a boring float64 reference, on random and on nasty inputs, with every scan."""

import numpy as np
import pytest
import torch

from rsvlm.kernels import count_rungs, force_scan, prepare, similarity_topk, tiles
from rsvlm.kernels import topk as topk_module
from rsvlm.kernels.tiles import Rows, rounding_of, rounds_once, scan_error, sum_in_fixed_order

torch.set_num_threads(1)
pytestmark = pytest.mark.usefixtures("scan")
BLOCKS = (17, 64, 4096)


def reference(queries, items, k, normalize=True):
    """Scores and indices by a full float64 matrix and a stable sort: nothing clever."""
    queries, items = np.asarray(queries, dtype=np.float64), np.asarray(items, dtype=np.float64)
    if normalize:
        queries, items = (x / np.maximum(np.sqrt((x**2).sum(1, keepdims=True)), 1e-12) for x in (queries, items))
    scores = (queries @ items.T).astype(np.float32)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    found = np.take_along_axis(scores, order, axis=1)
    missing = k - order.shape[1]
    pad = [(0, 0), (0, missing)]
    return np.pad(found, pad, constant_values=-np.inf), np.pad(order, pad, constant_values=-1)


def check(queries, items, k, **options):
    expected, prepared = reference(queries, items, k, **options), prepare(items, **options)
    for block in BLOCKS:
        for among in (items, prepared):
            scores, indices = similarity_topk(queries, among, k, block=block, **options)
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


def test_prepared_items_are_gone_through_once_and_some_of_them_by_their_place():
    random = np.random.default_rng(7)
    queries, items = random.normal(size=(30, 12)), random.normal(size=(300, 12)).astype(np.float16)
    prepared, some = prepare(items), torch.tensor([250, 3, 77, 4, 111, 9])
    first = similarity_topk(queries, prepared, 4)
    ((asked, kept),) = prepared.kept.items()
    assert all(
        map(
            torch.equal,
            similarity_topk(queries[:1], prepared.some(some), 4),
            similarity_topk(queries[:1], items[some], 4),
        )
    )
    assert all(map(torch.equal, similarity_topk(queries, prepared, 4), first))
    assert prepared.kept[asked] is kept and len(prepared.kept) == 1


def test_prepared_items_are_refused_where_they_do_not_fit():
    random = np.random.default_rng(8)
    prepared = prepare(random.normal(size=(9, 4)), normalize=False)
    with pytest.raises(
        ValueError, match="items: prepared with normalize=False on cpu, asked for with normalize=True on cpu"
    ):
        similarity_topk(np.ones((1, 4)), prepared, 2)
    with pytest.raises(ValueError, match="queries have width 5, items have width 4"):
        similarity_topk(np.ones((1, 5)), prepared, 2, normalize=False)
    with pytest.raises(ValueError, match="expected floating-point numbers, got int64"):
        prepare(np.ones((3, 4), np.int64))
    broken = np.ones((9000, 4), np.float32)
    broken[8123, 2] = np.nan
    with pytest.raises(ValueError, match="items: row 8123 holds NaN or infinity"):
        similarity_topk(np.ones((1, 4)), prepare(broken), 2)
    none = similarity_topk(np.ones((2, 4)), prepare(np.ones((0, 4))), 3)
    assert none[0].isneginf().all() and none[1].eq(-1).all()


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


# The scan and what is certain after it


def scanned_and_true(queries, items, normalize, dtype):
    """(largest excess of a scanned score's error over its bound, whether the bound is far from vacuous)."""
    rows = [Rows(matrix, "rows", normalize, torch.device("cpu")) for matrix in (queries, items)]
    unit = [side.unit_for(dtype) for side in rows]
    q, x = (side.scanned(0, len(side), dtype, unit=u, multiple=64) for side, u in zip(rows, unit))
    product = (q.rows.float() @ x.rows.float().T).double() if dtype == torch.float16 else (q.rows @ x.rows.T).double()
    truth = rows[0].exact(slice(0, None)) @ rows[1].exact(slice(0, None)).T / (unit[0] * unit[1])
    error = scan_error(q, x)
    rounded = rounding_of(dtype, product.device)
    excess = [(product - truth).abs() - error[:, None] - rounded * side.abs() for side in (product, truth)]
    return float(torch.maximum(*excess).max()), float((error / (q.size * x.size.max())).max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("normalize", [True, False])
def test_a_scan_is_within_its_error_bound(dtype, normalize):
    for width in (1, 15, 100, 512, 768, 1000):
        for spread in (1.0, 1e3, 1e-20):
            queries, items = spread * torch.randn(9, width), torch.randn(70, width)
            excess, relative = scanned_and_true(queries, items, normalize, dtype)
            assert excess <= 0
            if normalize and spread >= 1:
                limit = {torch.float32: 3e-4, torch.float16: 3e-3, torch.bfloat16: 2e-2}[dtype]
                assert relative < limit, "the bound is vacuous"


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_the_bound_knows_of_fast_float32_products(precision):
    assert torch.get_float32_matmul_precision() == "highest"
    torch.set_float32_matmul_precision(precision)
    try:
        assert scanned_and_true(torch.randn(9, 300), torch.randn(70, 300), True, torch.float32)[0] <= 0
    finally:
        torch.set_float32_matmul_precision("highest")


def test_bfloat16_products_are_rounded_once_and_the_check_would_see_it_otherwise(monkeypatch):
    assert rounds_once()
    whole = torch.Tensor.__matmul__

    def in_two_halves(left, right):  # partial sums rounded to bfloat16
        half = left.shape[1] // 2
        return whole(left[:, :half], right[:half]) + whole(left[:, half:], right[half:])

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "__matmul__", lambda left, right: (
            in_two_halves if left.dtype == torch.bfloat16 else whole)(left, right))  # fmt: skip
        assert not rounds_once()


def all_scans(queries, items, k, **options):
    """The answer, the same bits with every scan, and the counts of each by its name."""
    answers, counts = [], {}
    for name in ("faiss", "float32", "bfloat16"):
        with force_scan(name), count_rungs() as counts[name]:
            answers.append(similarity_topk(queries, items, k, **options))
    assert all(torch.equal(*parts) for other in answers[1:] for parts in zip(answers[0], other))
    return answers[0], counts


def crowded(n_queries, n_items, width, seed):
    """Vectors as captions have them: clusters within clusters, and sentences that were written more than once."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n):
        return torch.randn(n, width, generator=generator)

    themes = draw(1) + draw(8)
    themes = themes[torch.randint(0, 8, (n_items,), generator=generator)]
    items = themes + 0.5 * draw(40)[torch.randint(0, 40, (n_items,), generator=generator)] + 0.1 * draw(n_items)
    items[torch.randperm(n_items, generator=generator)[: n_items // 3]] = items[0].clone()
    return items[torch.randint(0, n_items, (n_queries,), generator=generator)] + 0.05 * draw(n_queries), items


def test_only_queries_in_doubt_climb_the_ladder(scan):
    torch.manual_seed(8)
    queries, items = torch.randn(50, 64), torch.randn(3000, 64)
    with count_rungs() as counts:
        similarity_topk(queries, items, 10, block=500)
    assert counts[scan] == 50 and counts["exact"] == 0, "random vectors are told apart by the scan"
    assert counts["float32"] == (50 if scan == "float32" else 0)
    assert 500 <= counts["pairs"] < 50 * 60

    items[100:140] = items[7]  # more equal items than places
    queries[3] = items[7]
    with count_rungs() as counts:
        indices = similarity_topk(queries, items, 10)[1]
    assert indices[3].tolist() == [7, *range(100, 109)]
    assert counts["more candidates"] >= 1 and counts["exact"] == 0, "more candidates settle forty equal items"
    check(queries.numpy(), items.numpy(), 10)

    items[100:500] = items[7]  # more than any list holds
    with count_rungs() as counts:
        indices = similarity_topk(queries, items, 10)[1]
    assert indices[3].tolist() == [7, *range(100, 109)]
    assert 1 <= counts["exact"] < 5
    check(queries.numpy(), items.numpy(), 10)


def test_a_float32_scan_settles_what_bfloat16_cannot():
    torch.manual_seed(10)
    items = torch.randn(1, 64) + 2e-2 * torch.randn(2000, 64)  # closer together than bfloat16 tells apart
    queries = torch.cat([items[:5] + 2e-2 * torch.randn(5, 64), torch.randn(40, 64)])
    counts = all_scans(queries, items, 4)[1]
    assert counts["bfloat16"]["bfloat16"] == 45 and 5 <= counts["bfloat16"]["float32"] <= 45
    assert counts["bfloat16"]["exact"] == counts["float32"]["exact"] == 0
    check(queries.numpy(), items.numpy(), 4)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("k", [1, 10, 300])
def test_vectors_that_crowd_are_told_apart_with_both_types(k, normalize):
    queries, items = crowded(40, 1500, 48, seed=16)
    counts = all_scans(queries, items, k, block=256, normalize=normalize)[1]
    assert counts["bfloat16"]["pairs"] >= counts["float32"]["pairs"] >= 0
    check(queries.numpy(), items.numpy(), k, normalize=normalize)


def test_a_list_stays_bounded_while_tiles_pass_by(monkeypatch, scan):
    """Items that come closer and closer: each tile's are all better than those before."""
    monkeypatch.setattr(topk_module, "WIDEST", 4)
    torch.manual_seed(17)
    target, away = torch.randn(1, 32), torch.randn(600, 32)
    items = target + away * torch.linspace(3, 0, 600)[:, None]
    queries = target + 0.1 * torch.randn(30, 32)
    longest, original = [], topk_module._Kept._add

    def watched(self, *parts):
        original(self, *parts)
        longest.append(self.length)

    monkeypatch.setattr(topk_module._Kept, "_add", watched)
    with force_scan("bfloat16" if scan == "bfloat16" else "float32"):  # FAISS lists a fixed number
        check(queries.numpy(), items.numpy(), 3)
    assert max(longest) <= 30 * (2 * 3 + 4)


def test_a_scan_beyond_its_range_is_given_up(scan):
    torch.manual_seed(18)
    queries, items = torch.randn(6, 12) * 1e25, torch.randn(90, 12) * 1e25
    with count_rungs() as counts:
        similarity_topk(queries.double() * 1e3, items.double() * 1e3, 5, normalize=False)
    assert counts["exact"] == 6


def test_what_faiss_lists_is_not_taken_for_all_where_items_crowd():
    torch.manual_seed(19)
    items = torch.randn(400, 24)
    items[100:160] = items[7]
    queries = torch.cat([items[7:8], torch.randn(9, 24)])
    counts = all_scans(queries, items, 5)[1]["faiss"]
    assert counts["faiss"] == 10 and 1 <= counts["float32"] < 10 and counts["exact"] == 0
    assert all_scans(torch.randn(3, 8), torch.randn(2500, 8), 1500)[1]["faiss"]["faiss"] == 0, "k is beyond its use"
    threads = torch.get_num_threads()
    assert threads == 1 and all_scans(queries, items[:3], 3)[1]["faiss"]["float32"] == 0


@pytest.mark.parametrize("normalize", [True, False])
def test_pairs_have_the_score_of_the_fixed_order_whatever_settled_them(normalize):
    generator = torch.Generator().manual_seed(20)
    queries = torch.randn(30, 77, generator=generator)
    items = torch.cat([torch.randn(200, 77, generator=generator), torch.zeros(2, 77), queries[:4], -queries[:4]])
    items[50:90, 38:] = -items[50:90, :39]  # products that cancel out
    rows = [Rows(matrix, "rows", normalize, torch.device("cpu")) for matrix in (queries, items)]
    every = torch.cartesian_prod(torch.arange(len(queries)), torch.arange(len(items)))
    slowly = sum_in_fixed_order(rows[0].exact(every[:, 0]) * rows[1].exact(every[:, 1])).to(torch.float32) + 0.0
    found = tiles.pair_scores(*rows, every[:, 0], every[:, 1])
    assert torch.equal(found.view(torch.int32), slowly.view(torch.int32))
    low, high = tiles._score_bounds(*rows, every[:, 0], every[:, 1])
    assert (low <= slowly).all() and (slowly <= high).all() and (low == high).double().mean() > 0.9
    assert (low != high).any() == normalize, "a cosine of nothing, with its bounds, lies on both sides of zero"


def test_pairs_at_the_middle_between_two_numbers_are_scored_in_the_fixed_order():
    """A float64 product that lies at the middle of two float32 numbers may round either way: it must not decide."""
    middle = 1.0 + 2.0**-24
    items = torch.full((40, 6), 1.0 / 3, dtype=torch.float64)
    queries = torch.full((5, 6), middle / 2, dtype=torch.float64)
    rows = [Rows(matrix, "rows", False, torch.device("cpu")) for matrix in (queries, items)]
    ids = torch.arange(5)
    tile = tiles.exact_tile(*rows, queries, items, ids, 0)
    every = torch.cartesian_prod(torch.arange(5), torch.arange(40))
    assert torch.equal(tile.flatten(), tiles.pair_scores(*rows, every[:, 0], every[:, 1]))


def test_a_sum_in_fixed_order_does_not_depend_on_its_company():
    torch.manual_seed(9)
    for width in (1, 2, 3, 100, 513):
        values = torch.randn(64, width, dtype=torch.float64)
        together = sum_in_fixed_order(values.clone())
        alone = torch.cat([sum_in_fixed_order(values[i : i + 1].clone()) for i in range(64)])
        strided = sum_in_fixed_order(values.T.contiguous().T.clone(memory_format=torch.preserve_format))
        assert torch.equal(together, alone) and torch.equal(together, strided)
        assert torch.allclose(together, values.sum(1), rtol=0, atol=1e-12 * width)
    assert sum_in_fixed_order(torch.zeros(3, 0, dtype=torch.float64)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e15, 1e19, 1e30])
def test_lengths_at_the_ends_of_float32(scale):
    random = np.random.default_rng(11)
    queries, items = (random.normal(size=(n, 12)).astype(np.float32) for n in (5, 60))
    check((queries * np.float32(scale)).astype(np.float32), items, 6)
    check(queries, (items * np.float32(scale)).astype(np.float32), 6, normalize=False)


def test_nothing_behind_a_matrix_is_read():
    torch.manual_seed(12)
    guarded = {}
    for n in (63, 64, 65, 127, 1):
        buffer = torch.full((n + 40, 24), torch.nan)
        buffer[:n] = torch.randn(n, 24)
        guarded[n] = buffer[:n]
    for items in guarded.values():
        scores, indices = similarity_topk(guarded[65], items, 9, block=32)
        clean = similarity_topk(guarded[65].clone(), items.clone(), 9, block=32)
        assert torch.equal(indices, clean[1]) and torch.equal(scores, clean[0])


def test_strides_views_and_one_query_for_all():
    torch.manual_seed(13)
    base = torch.randn(40, 30)
    for items in (base[::2], base[:, ::3], base.T, base.flip(0)):
        queries = torch.randn(1, items.shape[1]).expand(6, -1)
        plain = similarity_topk(queries.clone(), items.clone(), 5)
        assert all(map(torch.equal, similarity_topk(queries, items, 5), plain))


def test_a_far_item_changes_nothing():
    torch.manual_seed(15)
    queries, items = torch.rand(6, 12), torch.rand(40, 12)
    far = torch.cat([items, -torch.ones(1, 12)])
    assert all(map(torch.equal, similarity_topk(queries, far, 9), similarity_topk(queries, items, 9)))
