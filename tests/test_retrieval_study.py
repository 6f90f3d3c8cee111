"""Precision, classes, protocols, re-ranking; CLIP_benchmark's recall; brute force in fp64 on adversarial input."""

import json
from itertools import permutations

import numpy as np
import pytest
import torch
from retrieval_case import score_vectors  # tests/retrieval_case.py

from rsvlm.kernels import Ranks, hits
from rsvlm.scoring.fusion import choose_weight, find_candidates, rerank
from rsvlm.scoring.retrieval import (
    EmbeddingSpace,
    rank_retrieval,
    recalls,
    retrieval_set,
    summarise_ranks,
    with_texts_once,
)
from rsvlm.scoring.retrieval_study import (
    PROTOCOLS,
    Method,
    Reordering,
    _levels,
    _precisions,
    class_recalls,
    find_protocols,
    precision_scores,
    score_methods,
    score_protocols,
    with_protocols,
)

torch.set_num_threads(1)


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def made_set(n_images=14, n_texts=12, seed=0, width=6):
    """(test set, space): captions repeat within and between images."""
    random = np.random.default_rng(seed)
    texts = [f"Text {number}" for number in range(n_texts)]
    captions = [[texts[t] for t in random.integers(0, n_texts, size=1 + i % 4)] for i in range(n_images)]
    ids = [f"s/{i}.jpg" for i in range(n_images)]
    vectors = unit(random.normal(size=(n_images, width))), unit(random.normal(size=(n_texts, width)))
    return retrieval_set(ids, captions), EmbeddingSpace(ids, vectors[0], texts, vectors[1])


def vectors_of(test, space):
    return space.images(test.image_ids), space.text(test.texts)


# CLIP_benchmark


def clip_benchmark_recall(scores, positive_pairs, k):
    """CLIP_benchmark's recall_at_k(scores (texts, images), pairs, k): right ones in the top k over all right ones."""
    top = torch.topk(scores, k, dim=1)[1]
    chosen = torch.nn.functional.one_hot(top, num_classes=scores.shape[1])
    found = (chosen * positive_pairs[:, None, :]).sum(dim=(1, 2))
    return found / positive_pairs.sum(dim=1)


def test_the_same_embeddings_give_clip_benchmarks_recall():
    random = np.random.default_rng(3)
    N = 60
    captions = [[f"{i} {copy}" for copy in range(5)] for i in range(N)]
    texts = [text for own in captions for text in own]
    text_vectors = unit(random.normal(size=(5 * N, 16)))
    image_vectors = unit(random.normal(size=(N, 16)) + 0.4 * text_vectors.reshape(N, 5, 16).sum(1))
    scores = torch.from_numpy(text_vectors @ image_vectors.T)
    pairs = torch.zeros(5 * N, N, dtype=torch.bool)
    pairs[torch.arange(5 * N), torch.arange(5 * N) // 5] = True
    ours = score_vectors(image_vectors, text_vectors, [str(i) for i in range(N)], captions, texts, resamples=0)
    six = []
    for k in (1, 5, 10):
        text_to_image = (clip_benchmark_recall(scores, pairs, k) > 0).float().mean().item()
        image_to_text = (clip_benchmark_recall(scores.T, pairs.T, k) > 0).float().mean().item()
        assert ours["by_image"][f"text_to_image_recall_at_{k}"]["value"] == pytest.approx(text_to_image, abs=1e-6)
        assert ours["by_image"][f"image_to_text_recall_at_{k}"]["value"] == pytest.approx(image_to_text, abs=1e-6)
        six += [text_to_image, image_to_text]
    assert ours["by_image"]["mean_recall"]["value"] == pytest.approx(np.mean(six), abs=1e-6)


def test_where_texts_tie_clip_benchmark_lies_within_the_bounds():
    test, space = made_set(40, 15)
    ours = summarise_ranks(test, rank_retrieval(test, *vectors_of(test, space), "by_image"), resamples=0)
    images, texts = vectors_of(test, space)
    scores = torch.from_numpy(texts[test.row_text] @ images.T)
    pairs = torch.zeros(len(test.captions), 40, dtype=torch.bool)
    pairs[torch.arange(len(test.captions)), torch.from_numpy(test.row_image)] = True
    for k in (1, 5, 10):
        theirs = (clip_benchmark_recall(scores.T, pairs.T, k) > 0).float().mean().item()
        entry = ours[f"image_to_text_recall_at_{k}"]
        assert entry["pessimistic"] - 1e-6 <= theirs <= entry["optimistic"] + 1e-6
        assert entry["pessimistic"] <= entry["value"] <= entry["optimistic"]


# Brute force


def brute_ranks(scores, right):
    """(greater, equal, tied) of the best right answer of each row, by looking at all of them."""
    rows = []
    for row, own in zip(scores, right, strict=True):
        best = row[own].max()
        rows.append(((row > best).sum(), ((row == best) & ~own).sum(), ((row == best) & own).sum()))
    return np.array(rows).T


ADVERSARIAL = {
    "all equal": lambda images, texts: (np.ones_like(images), np.ones_like(texts)),
    "zero vectors": lambda images, texts: (images * (np.arange(len(images)) % 2)[:, None], texts * 0),
    "one direction": lambda images, texts: (np.sign(images[:, :1]) * [[1.0, 0, 0, 0, 0, 0]], np.sign(texts)),
    "huge and tiny": lambda images, texts: (
        images * 2.0 ** (8 * (np.arange(len(images)) % 5))[:, None],
        texts * 2.0**-20,
    ),
}


@pytest.mark.parametrize("n_images", [1, 2, 14])
@pytest.mark.parametrize("case", sorted(ADVERSARIAL))
@pytest.mark.parametrize("rule", ["by_image", "by_text"])
def test_ranks_equal_brute_force_in_double_precision(case, n_images, rule):
    test, space = made_set(n_images)
    # quarters of small integers: every product and sum is exact in both precisions, so ties are ties
    rough = [np.round(4 * part) / 4 for part in vectors_of(test, space)]
    images, texts = (part.astype(np.float32) for part in ADVERSARIAL[case](*rough))
    ranks = rank_retrieval(test, images, texts, rule, normalize=False)
    exact = images.astype(np.float64) @ texts[test.row_text].astype(np.float64).T
    if rule == "by_image":
        right = test.row_image[None, :] == np.arange(n_images)[:, None]
    else:
        own = [set(test.row_text[test.row_image == i]) for i in range(n_images)]
        right = np.array([[text in texts_of for text in test.row_text] for texts_of in own])
    for direction, scores, marks in (("image_to_text", exact, right), ("text_to_image", exact.T, right.T)):
        found = np.stack([ranks[direction].greater, ranks[direction].equal, ranks[direction].tied])
        np.testing.assert_array_equal(found, brute_ranks(scores, marks), err_msg=direction)
    precision, back = precision_scores(test, images, texts, rule)
    for name in ("greater", "equal", "tied"):
        np.testing.assert_array_equal(getattr(back, name), getattr(ranks["text_to_image"], name))
    assert all(np.isfinite(values).all() for own in precision.values() for values in own.values())
    assert hits(ranks["image_to_text"], 1000).min() == 1  # more asked than there are


def test_nan_is_refused_by_name():
    test, space = made_set()
    images, texts = vectors_of(test, space)
    images = images.copy()
    images[3, 1] = np.nan
    with pytest.raises(ValueError, match="row 3 holds NaN"):
        rank_retrieval(test, images, texts, "by_image")


# Precision


def average_precision(order, right):
    marks = np.isin(order, right)
    return (np.cumsum(marks)[marks] / (np.flatnonzero(marks) + 1)).mean()


def test_average_precision_is_the_mean_over_all_orders_of_ties():
    scores, right = np.array([3, 2, 2, 2, 1, 1, 0.0]), np.array([1, 3, 4, 6])
    orders = [[0, *middle, *low, 6] for middle in permutations([1, 2, 3]) for low in permutations([4, 5])]
    expected = np.mean([average_precision(order, right) for order in orders])

    def expected_average_precision(scores, right):
        return _precisions(_levels(scores, right))["map"]

    assert expected_average_precision(scores, right) == pytest.approx(expected, abs=1e-12)
    assert expected_average_precision(np.array([2.0, 1.0]), np.array([0])) == 1
    with pytest.raises(ValueError, match="without a right answer"):
        expected_average_precision(scores, np.array([], dtype=int))


def test_precision_agrees_with_sorting_where_nothing_ties():
    random = np.random.default_rng(0)
    N = 20
    test = retrieval_set([str(i) for i in range(N)], [[f"{i} {j}" for j in range(3)] for i in range(N)])
    images, texts = unit(random.normal(size=(N, 8))), unit(random.normal(size=(3 * N, 8)))
    precision, _ = precision_scores(test, images, texts, "by_image")
    scores = images @ texts[test.row_text].T
    for image in range(N):
        order, right = np.argsort(-scores[image]), np.flatnonzero(test.row_image == image)
        assert precision["image_to_text"]["map"][image] == pytest.approx(average_precision(order, right), abs=1e-9)
        assert precision["image_to_text"]["p5"][image] == pytest.approx(np.isin(order[:5], right).mean(), abs=1e-9)
    first = (
        rank_retrieval(test, images, texts, "by_image")["text_to_image"].greater + 1
    )  # one right answer: reciprocal rank
    np.testing.assert_allclose(precision["text_to_image"]["map"], 1 / first)
    np.testing.assert_allclose(precision["text_to_image"]["p10"], (first <= 10) / 10)


# Protocols and classes


def test_texts_once_makes_every_image_of_a_text_right():
    test = retrieval_set(["a", "b"], [["x", "x", "y"], ["x", "z"]])
    once = with_texts_once(test)
    assert once.captions == test.texts == ["x", "y", "z"]
    offsets, rows = once.positives("by_image")
    assert [rows[offsets[i] : offsets[i + 1]].tolist() for i in range(2)] == [[0, 1], [0, 2]]
    assert all((a == b).all() for a, b in zip(once.positives("by_image"), once.positives("by_text"), strict=True))
    space = EmbeddingSpace(
        ["a", "b"], unit(np.array([[1, 0.1], [0.1, 1]])), ["x", "y", "z"], unit(np.array([[1, 1], [1, 0], [0, 1]]))
    )
    ranks = rank_retrieval(once, *vectors_of(once, space), "by_image")
    assert recalls(ranks)["mean_recall"] == 1  # x finds a or b, both are right


def test_protocols_are_named_and_texts_are_encoded_in_their_form():
    test, space = made_set()
    asked = []

    def encode(texts, capitalise):
        asked.append((texts[0], capitalise))
        return space.text([text.removeprefix("a satellite photo of ") for text in texts])

    chosen = find_protocols(["remoteclip", "raw", "prompted", "texts_once"])
    spaces = {"dual_encoder": space, "ret": space}
    scores = score_protocols(chosen, spaces, {"s": test}, capitalised=True, encode=encode, resamples=20)
    assert set(scores["dual_encoder"]["s"]) == set(PROTOCOLS) and set(scores["ret"]["s"]) == {
        "remoteclip",
        "texts_once",
    }
    assert asked == [(test.texts[0], False), (f"a satellite photo of {test.texts[0]}", True)]
    assert scores["ret"]["s"]["remoteclip"] == scores["dual_encoder"]["s"]["raw"]
    report = score_methods(spaces, {"s": test}, resamples=20)
    whole = with_protocols(report.metrics, scores)
    assert (
        whole["ret"]["s"]["protocols"]["remoteclip"]["image_to_text_recall_at_5"]
        == whole["ret"]["s"]["by_image"]["image_to_text_recall_at_5"]
    )
    json.dumps(whole, allow_nan=False)
    with pytest.raises(ValueError, match="unknown protocol 'clip'; known: remoteclip, raw"):
        find_protocols(["clip"])
    with pytest.raises(ValueError, match="'raw' needs its texts encoded anew"):
        score_protocols(chosen, spaces, {"s": test}, capitalised=True)


def test_recall_of_a_class_is_that_of_its_images_and_captions():
    test, space = made_set()
    ranks = rank_retrieval(test, *vectors_of(test, space), "by_image")
    labels = {image_id: "even" if i % 2 == 0 else "odd" for i, image_id in enumerate(test.image_ids[:10])}
    found = class_recalls(test, ranks, labels)
    assert {name: own["images"] for name, own in found.items()} == {"even": 5, "odd": 5}
    assert found["odd"]["image_to_text_recall_at_5"] == pytest.approx(
        hits(ranks["image_to_text"], 5)[1:10:2].mean(), abs=1e-6
    )
    assert found["even"]["captions"] == np.isin(test.row_image, [0, 2, 4, 6, 8]).sum()
    assert class_recalls(test, ranks, {}) == {}


# Re-ranking


def test_a_reordering_puts_its_images_first_and_leaves_the_rest():
    test, space = made_set()
    images, texts = vectors_of(test, space)
    scores = texts @ images.T
    order = np.argsort(-scores, axis=1, kind="stable")
    same = Reordering(order[:, :4], np.take_along_axis(scores, order[:, :4], axis=1))
    plain, before = precision_scores(test, images, texts, "by_image")
    kept, after = precision_scores(test, images, texts, "by_image", same)
    np.testing.assert_allclose(kept["text_to_image"]["map"], plain["text_to_image"]["map"])
    np.testing.assert_array_equal(after.greater, before.greater)
    turned = Reordering(order[:, :4], -same.scores)
    _, ranks = precision_scores(test, images, texts, "by_image", turned)
    first = before.greater < 4
    np.testing.assert_array_equal(ranks.greater[first], 3 - before.greater[first])
    np.testing.assert_array_equal(ranks.greater[~first], before.greater[~first])


def test_re_ranking_follows_a_captioner_that_knows_and_ignores_one_that_does_not():
    validation, space = made_set(seed=1)
    test, other = made_set(seed=2)
    ids = [f"v/{i}" for i in range(14)]
    validation = retrieval_set(
        ids, [[validation.captions[r] for r in np.flatnonzero(validation.row_image == i)] for i in range(14)]
    )
    both = EmbeddingSpace(
        [*ids, *test.image_ids], np.vstack([space.image_vectors, other.image_vectors]), space.texts, space.text_vectors
    )
    owners = {}
    for one in (validation, test):
        for row, caption in enumerate(one.captions):
            owners.setdefault(caption, set()).add(one.image_ids[one.row_image[row]])

    def knows(image_ids, texts):
        return [np.array([0.0 if i in owners[text] else -5.0 for text in own]) for i, own in zip(image_ids, texts)]

    def guesses(image_ids, texts):
        return [np.array([-(hash((i, text)) % 97) / 10 for text in own]) for i, own in zip(image_ids, texts)]

    sets = {"s": validation}, {"s": test}
    method, record = rerank(both, *sets, 6, [0.0, 0.5], knows)
    assert record["weight"] == 0.5 and record["top"] == 6 and record["tried"][0]["weight"] == 0.0
    report = score_methods({"plain": both, "reranked": method}, sets[1], resamples=20)
    plain, better = (report.metrics[name]["s"]["by_text"] for name in ("plain", "reranked"))
    assert better["text_to_image_recall_at_1"]["value"] > plain["text_to_image_recall_at_1"]["value"]
    assert (
        better["image_to_text_recall_at_1"] == plain["image_to_text_recall_at_1"]
        and better["text_to_image_map"]["value"] > plain["text_to_image_map"]["value"]
    )
    assert isinstance(method, Method)

    candidates = {"s": find_candidates(validation, both, 6, guesses)}
    weight, tried = choose_weight(sets[0], both, candidates, [0.0])
    _, ranks = precision_scores(validation, *vectors_of(validation, both), "by_image")
    assert weight == 0 and tried[0.0] == pytest.approx(np.mean([hits(ranks, k).mean() for k in (1, 5, 10)]), abs=1e-6)
    with pytest.raises(ValueError, match="rerank_top = 0"):
        find_candidates(validation, both, 0, knows)
    with pytest.raises(ValueError, match="no finite likelihood for the text 'Text 0'"):
        find_candidates(validation, both, 2, lambda ids, texts: [np.full(len(own), np.nan) for own in texts])
    assert isinstance(ranks, Ranks)
