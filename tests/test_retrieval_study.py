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
    protocol_spread,
    rank_with_queries,
    rerank_with_queries,
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
    assert set(scores["dual_encoder"]["s"]) == {one.name for one in chosen}
    assert set(scores["ret"]["s"]) == {"remoteclip", "texts_once"}
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


# The published code, described: oracles in plain numpy, fp64


def any_hit(scores, positive_pairs, k):
    """CLIP_benchmark's recall for CLIP-like papers: the share of rows with at least one right column in the top k.

    clip_benchmark/metrics/zeroshot_retrieval.py: recall_at_k is right ones in the top k over all right ones, and a row
    counts as 1 where that is above 0.
    """
    top = np.argsort(-scores, axis=1)[:, :k]
    true_positives = np.take_along_axis(positive_pairs, top, axis=1).sum(axis=1)
    return ((true_positives / positive_pairs.sum(axis=1)) > 0).mean()


def six_of(scores, positive_pairs):
    """The six recalls and their mean from scores (texts, images) and the right pairs, like RemoteCLIP's and SkyScript's."""
    found = {}
    for k in (1, 5, 10):
        found[f"image_to_text_recall_at_{k}"] = any_hit(scores.T, positive_pairs.T, k)
        found[f"text_to_image_recall_at_{k}"] = any_hit(scores, positive_pairs, k)
    return found | {"mean_recall": np.mean(list(found.values()))}


def remoteclip_oracle(image_ids, captions, vector_of_image, encode):
    """remoteclip_retrieval.py: rows (file, raw.capitalize()) of the split, gathered by file name in np.unique's order."""
    files = [image_id for image_id, own in zip(image_ids, captions) for _ in own]
    rows = [caption.capitalize() for own in captions for caption in own]
    unique = np.unique(files)
    texts = [(row, place) for place, name in enumerate(unique) for file, row in zip(files, rows) if file == name]
    scores = np.stack([encode(text) for text, _ in texts]) @ np.stack([vector_of_image[name] for name in unique]).T
    pairs = np.zeros(scores.shape, dtype=bool)
    pairs[np.arange(len(texts)), [place for _, place in texts]] = True
    return six_of(scores, pairs)


def skyscript_oracle(image_ids, captions, vector_of_image, encode):
    """cross_modal_retrieval.ipynb: 'a satellite image. ' + title; unique files; unique titles; right by set membership."""
    pairs = [(i, "a satellite image. " + text) for i, own in zip(image_ids, captions) for text in own]
    files, titles = sorted({file for file, _ in pairs}), sorted({title for _, title in pairs})
    texts_of = {file: {title for other, title in pairs if other == file} for file in files}
    scores = np.stack([encode(title) for title in titles]) @ np.stack([vector_of_image[file] for file in files]).T
    found = {}
    for k in (1, 5, 10):
        best = {file: {titles[t] for t in np.argsort(-scores[:, i])[:k]} for i, file in enumerate(files)}
        found[f"image_to_text_recall_at_{k}"] = np.mean([bool(best[file] & texts_of[file]) for file in files])
        best = {title: {files[i] for i in np.argsort(-scores[t])[:k]} for t, title in enumerate(titles)}
        found[f"text_to_image_recall_at_{k}"] = np.mean(
            [any(title in texts_of[file] for file in best[title]) for title in titles]
        )
    return found | {"mean_recall": np.mean(list(found.values()))}


def pairs_oracle(image_ids, captions, vector_of_image, encode):
    """open_clip's get_clip_metrics on one pair an image: the row's own number must stand among the first k."""
    texts = np.stack([encode(own[0].capitalize()) for own in captions])
    scores = np.stack([vector_of_image[image_id] for image_id in image_ids]) @ texts.T
    found = {}
    for way, logits in (("image_to_text", scores), ("text_to_image", scores.T)):
        places = np.array([list(np.argsort(-row)).index(own) for own, row in enumerate(logits)])
        found |= {f"{way}_recall_at_{k}": (places < k).mean() for k in (1, 5, 10)}
    return found | {"mean_recall": np.mean(list(found.values()))}


def galr_rerank_oracle(scores, top=30, share_weight=0.3, back_weight=1.1):
    """i2t_rerank_optim of GaLR's rerank.py, item by item, for positive scores (queries, items) without ties."""
    queries, items = scores.shape
    made = np.zeros_like(scores)
    for query in range(queries):
        chosen = np.argsort(-scores[query])[:top]
        address = [list(np.argsort(-scores[:, item])).index(query) for item in chosen]
        for place, item in enumerate(chosen):
            made[query, item] = share_weight * scores[query, item] / scores[:, item].sum() + np.exp(-0.05 * (place + 1))
        for place, item in enumerate(chosen[np.argsort(address, kind="stable")]):
            made[query, item] += back_weight * np.exp(-0.05 * (place + 1))
    return made


def amfmn_recalls(scores):
    """acc_i2t2 and acc_t2i2 of AMFMN and GaLR (utils.py), from scores (N, 5 N): the best place of an image's five rows."""
    N = len(scores)
    order = np.argsort(scores, axis=1)[:, ::-1]
    there = np.array([min(list(order[i]).index(row) for row in range(5 * i, 5 * i + 5)) for i in range(N)])
    order = np.argsort(scores.T, axis=1)[:, ::-1]
    back = np.array([list(order[row]).index(row // 5) for row in range(5 * N)])
    ways = {"image_to_text": there, "text_to_image": back}
    found = {f"{way}_recall_at_{k}": (places < k).mean() for way, places in ways.items() for k in (1, 5, 10)}
    return found | {"mean_recall": np.mean(list(found.values()))}


def vector_encoder(width=24):
    """Text -> a unit vector of its own (float32), another one for each prefix and case: the encoder reads letters."""

    def encode(text):
        return unit(np.random.default_rng(list(text.encode())).normal(size=(1, width)))[0]

    return encode


def protocol_recalls(name, image_ids, captions, vector_of_image, encode):
    """What score_protocols gives for one protocol, unrounded: its own test set, texts and ranks."""
    protocol = PROTOCOLS[name]
    test = protocol.select(retrieval_set(image_ids, captions))
    forms = [protocol.prefix + text for text in test.texts]
    texts = np.stack([encode(form.capitalize() if protocol.capitalise else form) for form in forms])
    images = np.stack([vector_of_image[image_id] for image_id in test.image_ids])
    if protocol.transductive:
        return recalls(rank_with_queries(test, images, texts))
    return recalls(rank_retrieval(test, images, texts, "by_image", normalize=False))


def uneven_captions(n_images, repeated, seed):
    """Image ids and captions, 1 to 5 an image, of which ``repeated`` texts also stand under other images."""
    random = np.random.default_rng(seed)
    pool = [f"field {number} ." for number in range(repeated)]
    captions = [[f"image {i} row {row} ." for row in range(1 + i % 5)] for i in range(n_images)]
    for own in captions:
        if repeated and random.random() < 0.5:
            own[random.integers(len(own))] = pool[random.integers(repeated)]
    ids = [f"s/{number:03d}.jpg" for number in random.permutation(n_images)]
    return ids, captions


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("name", "oracle", "repeated"),
    [
        ("remoteclip", remoteclip_oracle, 0),  # its texts would tie where they repeat, and topk breaks ties anyhow
        ("skyscript", skyscript_oracle, 6),
        ("one_caption", pairs_oracle, 0),
    ],
)
def test_a_protocol_gives_what_its_source_computes(name, oracle, repeated, seed):
    ids, captions = uneven_captions(40, repeated, seed)
    encode, random = vector_encoder(), np.random.default_rng(seed)
    near = {"skyscript": "a satellite image. "}.get(name, "")
    first = [encode(near + own[0] if near else own[0].capitalize()) for own in captions]
    vectors = unit(np.stack(first) + 0.35 * random.normal(size=(40, 24)))
    vector_of_image = dict(zip(ids, vectors, strict=True))
    expected = oracle(ids, captions, vector_of_image, encode)
    found = protocol_recalls(name, ids, captions, vector_of_image, encode)
    assert 0.2 < expected["mean_recall"] < 0.99
    assert found == pytest.approx(expected, abs=1e-12)


def test_copies_of_a_caption_within_an_image_change_nothing_whatever_topk_makes_of_the_tie():
    ids, captions = uneven_captions(40, 0, 5)
    captions = [own + own[:1] * (i % 3) for i, own in enumerate(captions)]
    encode, random = vector_encoder(), np.random.default_rng(5)
    vectors = unit(np.stack([encode(own[0].capitalize()) for own in captions]) + 0.35 * random.normal(size=(40, 24)))
    vector_of_image = dict(zip(ids, vectors, strict=True))
    expected = remoteclip_oracle(ids, captions, vector_of_image, encode)
    assert protocol_recalls("remoteclip", ids, captions, vector_of_image, encode) == pytest.approx(expected, abs=1e-12)


def test_the_five_caption_rule_of_amfmn_is_remoteclips():
    """Best place of five rows, and the row's image by its number: the same recalls, so it has no name of its own."""
    ids = [f"s/{i}.jpg" for i in range(30)]
    captions = [[f"image {i} row {row} ." for row in range(5)] for i in range(30)]
    encode, random = vector_encoder(), np.random.default_rng(1)
    rows = np.stack([encode(text.capitalize()) for own in captions for text in own])
    images = unit(rows[::5] + 0.5 * random.normal(size=(30, 24)))
    found = protocol_recalls("remoteclip", ids, captions, dict(zip(ids, images, strict=True)), encode)
    assert found == pytest.approx(amfmn_recalls(images @ rows.T), abs=1e-12)
    assert 0.2 < found["mean_recall"] < 0.99


@pytest.mark.parametrize("shape", [(40, 200), (200, 40), (8, 12)])
def test_the_rerank_is_galrs_where_scores_are_positive_and_do_not_tie(shape):
    scores = np.random.default_rng(shape[0]).uniform(0.05, 0.4, size=shape)
    made, expected = rerank_with_queries(scores), galr_rerank_oracle(scores)
    chosen = expected > 0
    np.testing.assert_allclose(made[chosen], expected[chosen], rtol=0, atol=1e-12)
    if (~chosen).any():
        assert made[~chosen].max() < made[chosen].min()
    outside = np.where(chosen, np.nan, scores - made)  # outside the first 30 the scores' order is kept
    assert np.nanmax(outside, initial=0.0) - np.nanmin(outside, initial=0.0) < 2


def test_a_transductive_protocol_depends_on_the_other_queries():
    """By hand: image b is shown text x at .6, but x's own list begins with a, so the rerank gives b its own text."""
    scores = np.array([[0.9, 0.1], [0.6, 0.5]])  # images a, b; texts x, y
    made = rerank_with_queries(scores)
    places = {"x": 1, "y": 2}  # b's order by score; by the way back y, which lists b first, comes before x
    for column, (name, again) in enumerate({"x": 2, "y": 1}.items()):
        share = scores[1, column] / scores[:, column].sum()
        expected = 0.3 * share + np.exp(-0.05 * places[name]) + 1.1 * np.exp(-0.05 * again)
        assert made[1, column] == pytest.approx(expected, abs=1e-12)
    assert made[1].argmax() == 1 and scores[1].argmax() == 0 and made[0].argmax() == 0
    alone = rerank_with_queries(scores[1:])
    assert alone[0].argmax() == 0  # without the image a nothing speaks against x
    assert [one.name for one in PROTOCOLS.values() if one.transductive] == ["multivariate_rerank"]
    assert all("transductive" in one.says for one in PROTOCOLS.values() if one.transductive)

    test = retrieval_set(["a", "b"], [["x"], ["y"]])
    vectors = np.eye(2, dtype=np.float32), scores.T.astype(np.float32)
    plain = rank_retrieval(test, *vectors, "by_image", normalize=False)["image_to_text"]
    ranks = rank_with_queries(test, *vectors)["image_to_text"]
    assert plain.greater.tolist() == [0, 1] and ranks.greater.tolist() == [0, 0] and ranks.equal.tolist() == [0, 0]


def test_equal_texts_still_tie_after_the_rerank():
    test, space = made_set(20, 7)
    images, texts = vectors_of(test, space)  # half of these scores are below 0
    made = rerank_with_queries((images @ texts.T)[:, test.row_text])
    assert np.isfinite(made).all()
    for text in range(len(test.texts)):
        rows = np.flatnonzero(test.row_text == text)
        assert (made[:, rows] == made[:, rows[:1]]).all()


# Protocols by hand


def test_one_caption_keeps_the_first_of_each_image():
    test = retrieval_set(["a", "b"], [["p", "q"], ["r", "p", "s"]])
    one = PROTOCOLS["one_caption"].select(test)
    assert one.captions == ["p", "r"] and one.row_image.tolist() == [0, 1]
    assert [one.texts[text] for text in one.row_text] == ["p", "r"] and one.texts == ["p", "r"]
    # a looks most like q, its second caption; of the firsts it is nearer to r
    space = EmbeddingSpace(["a", "b"], np.eye(2, 2, dtype=np.float32), list("pqrs"),
                           np.array([[0.1, 0], [0.9, 0], [0.2, 0.8], [0, 0.3]], dtype=np.float32))  # fmt: skip
    scores = score_protocols(
        find_protocols(["remoteclip", "one_caption"]), {"m": space}, {"s": test}, capitalised=True, resamples=0
    )["m"]["s"]
    assert scores["remoteclip"]["image_to_text_recall_at_1"]["value"] == 1
    assert scores["one_caption"]["image_to_text_recall_at_1"]["value"] == 0.5
    assert {entry["n"] for entry in scores["one_caption"].values()} == {2}


def test_skyscript_tells_upper_from_lower_case_and_merges_the_rest():
    test = retrieval_set(["a", "b", "c"], [["A field .", "a field ."], ["a field ."], ["a pond ."]])
    assert len(test.texts) == 2
    sky = PROTOCOLS["skyscript"].select(test)
    assert sky.captions == sky.texts == ["A field .", "a field .", "a pond ."]
    assert sky.shared.tolist() == [[0, 0], [0, 1], [1, 1], [2, 2]]
    asked = []

    def encode(texts, capitalise):
        asked.append((texts, capitalise))
        return np.eye(3, dtype=np.float32)

    images = np.array([[0, 1, 0], [0, 0.9, 0.1], [1, 0, 0]], dtype=np.float32)
    space = EmbeddingSpace(["a", "b", "c"], images, test.texts, np.eye(2, 3, dtype=np.float32))
    scores = score_protocols(
        find_protocols(["skyscript"]),
        {"dual_encoder": space},
        {"s": test},
        capitalised=False,
        encode=encode,
        resamples=0,
    )["dual_encoder"]["s"]["skyscript"]
    assert asked == [([f"a satellite image. {text}" for text in ("A field .", "a field .", "a pond .")], False)]
    assert scores["image_to_text_recall_at_1"]["value"] == pytest.approx(2 / 3, abs=1e-6)
    # "a field ." finds a, "a pond ." finds b, "A field ." finds c
    assert scores["text_to_image_recall_at_1"]["value"] == pytest.approx(1 / 3, abs=1e-6)
    assert scores["text_to_image_recall_at_1"]["n"] == 3


# The spread


def spread_metrics(main="remoteclip"):
    """Metrics of two methods on one source under all protocols that need no other texts."""
    test, space = made_set(30, 60)
    other = EmbeddingSpace(space.image_ids, -space.image_vectors, space.texts, space.text_vectors)
    spaces = {"dual_encoder": space, "ret": other}
    chosen = find_protocols(["texts_once", "one_caption", "multivariate_rerank"])
    others = score_protocols(chosen, spaces, {"s": test}, capitalised=True, resamples=20)
    report = score_methods(spaces, {"s": test}, resamples=20)
    return with_protocols(report.metrics, others) | {"protocol": {"name": main}}


def test_the_spread_holds_each_model_against_remoteclips_protocol():
    metrics = spread_metrics()
    spread = protocol_spread(metrics)
    names = ["remoteclip", "texts_once", "one_caption", "multivariate_rerank"]
    assert list(zip(spread["method"], spread["protocol"])) == [
        (m, name) for m in ("dual_encoder", "ret") for name in names
    ]
    base = metrics["ret"]["s"]["by_image"]["mean_recall"]["value"]
    for row in spread[spread["method"] == "ret"].to_dict("records"):
        entry = metrics["ret"]["s"].get("protocols", {}).get(row["protocol"]) or metrics["ret"]["s"]["by_image"]
        assert row["mean_recall"] == entry["mean_recall"]["value"] and row["low"] <= row["mean_recall"] <= row["high"]
        assert row["difference"] == pytest.approx(row["mean_recall"] - base, abs=1e-12) and row["n"] == 30
    assert spread.set_index("protocol")["transductive"].groupby(level=0).first().to_dict() == {
        name: name == "multivariate_rerank" for name in names
    }
    assert protocol_spread(spread_metrics(main="raw"))["difference"].isna().all()
    assert len(protocol_spread({"protocol": {}, "paired": {}})) == 0


def test_the_figure_and_the_table_show_every_protocol():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    from rsvlm.viewing.protocol_figures import protocol_figure, protocol_table

    metrics = spread_metrics()
    drawn = protocol_figure(metrics, "s")
    axes = drawn.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "remoteclip", "texts_once", "one_caption", "multivariate_rerank\n(transductive)",
    ]  # fmt: skip
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["dual encoder", "[RET]"]
    assert axes.containers[1].lines[0].get_xdata()[0] == metrics["ret"]["s"]["by_image"]["mean_recall"]["value"]
    matplotlib.pyplot.close(drawn)
    table = protocol_table(metrics)
    names = ["remoteclip", "texts_once", "one_caption", "multivariate_rerank"]
    assert list(table.index.get_level_values("protocol")) == [name for name in names for _ in range(2)]
    row = table.loc[("s", "remoteclip", "dual encoder")]
    assert row["against remoteclip"] == 0 and " to " in row["95 % interval"]
    assert row["mean_recall"] == round(100 * metrics["dual_encoder"]["s"]["by_image"]["mean_recall"]["value"], 1)
    with pytest.raises(ValueError, match="no protocol was scored for the source 'elsewhere'"):
        protocol_figure(metrics, "elsewhere")
