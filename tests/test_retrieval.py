"""Retrieval scoring: the published protocol, ties, ceilings, intervals, fusion, figures."""

import json
from collections import Counter
from math import comb

import numpy as np
import pandas as pd
import pytest
import torch
from retrieval_case import score_vectors  # tests/retrieval_case.py

from rsvlm.kernels import Ranks, hits
from rsvlm.scoring.fusion import (
    choose_weights,
    combine_spaces,
    hubness_space,
    make_parts,
    neighbour_space,
    unit_rows,
    weight_grid,
)
from rsvlm.scoring.retrieval import (
    KS,
    EmbeddingSpace,
    first_places,
    load_other_spaces,
    load_space,
    perfect_ranks,
    rank_retrieval,
    retrieval_set,
    retrieval_sets,
    summarise_ranks,
)
from rsvlm.scoring.retrieval_study import score_methods

torch.set_num_threads(1)
SIX = [f"{direction}_recall_at_{k}" for direction in ("image_to_text", "text_to_image") for k in KS]


def random_set(n_images=20, seed=0, distinct=None):
    """(image vectors, text vectors, ids, captions, texts); with ``distinct`` texts, captions repeat across images."""
    random = np.random.default_rng(seed)
    total = distinct or 5 * n_images
    texts = [f"Text {number}" for number in range(total)]
    order = random.integers(0, total, size=5 * n_images) if distinct else np.arange(total)
    captions = [[texts[t] for t in order[5 * i : 5 * i + 5]] for i in range(n_images)]
    vectors = [unit_rows(random.normal(size=(n, 8))) for n in (n_images, total)]
    return *vectors, [f"s/{i}.jpg" for i in range(n_images)], captions, texts


def published_recalls(scores, row_image):
    """The six recalls as CLIP_benchmark computes them from a (captions, images) score matrix: topk and any hit."""
    scores = torch.from_numpy(scores)
    right = torch.zeros_like(scores, dtype=torch.bool)
    right[torch.arange(len(row_image)), torch.from_numpy(row_image)] = True
    values = {}
    for name, matrix, marks in (("text_to_image", scores, right), ("image_to_text", scores.T, right.T)):
        for k in KS:
            best = matrix.topk(k, dim=1).indices
            values[f"{name}_recall_at_{k}"] = marks.gather(1, best).any(dim=1).double().mean().item()
    return values


def test_agrees_with_the_published_computation_where_nothing_ties():
    images, text, ids, captions, texts = random_set(40)
    scores = score_vectors(images, text, ids, captions, texts, resamples=0)
    expected = published_recalls(text @ images.T, np.repeat(np.arange(40), 5))
    for name, value in expected.items():
        entry = scores["by_image"][name]
        assert entry["value"] == entry["optimistic"] == entry["pessimistic"] == pytest.approx(value, abs=1e-6)
    assert scores["by_image"]["mean_recall"]["value"] == pytest.approx(np.mean(list(expected.values())), abs=1e-6)
    assert scores["by_image"] == scores["by_text"]  # no text stands twice


def test_expected_recall_is_the_mean_over_shuffled_ties():
    """Breaking ties at random, many times, gives the formula's value."""
    images, text, ids, captions, texts = random_set(12, seed=1, distinct=15)
    images[6:] = images[:6]  # images tie, too
    test = retrieval_set(ids, captions)
    space = EmbeddingSpace(ids, images, texts, text)
    ranks = rank_retrieval(test, images, space.text(test.texts), "by_image")
    matrix = (space.text(test.texts).astype(float)[test.row_text] @ images.T.astype(float)).astype(np.float32)
    random = np.random.default_rng(0)
    draws = []
    for _ in range(400):
        places = []
        for row, right in [(matrix[:, i], test.row_image == i) for i in range(12)]:
            order = np.lexsort((random.random(len(row)), -row))
            places.append(np.flatnonzero(right[order])[0] + 1)
        draws.append(places)
    draws = np.array(draws)
    for k in (1, 3, 5, 10):
        np.testing.assert_allclose(hits(ranks["image_to_text"], k).mean(), (draws <= k).mean(), atol=0.02)
    np.testing.assert_allclose(first_places(ranks["image_to_text"]), draws.mean(axis=0), atol=0.6)


@pytest.mark.parametrize("k", [1, 2, 5, 10])
def test_hits_follow_the_formula_and_its_bounds(k):
    cases = [(g, e, p) for g in (0, 1, 4, 9, 30) for e in (0, 1, 7, 40) for p in (1, 3, 5)]
    ranks = Ranks(np.zeros(len(cases)), *(np.array(part) for part in zip(*cases, strict=True)))
    expected, high, low = (hits(ranks, k, ties) for ties in ("expected", "optimistic", "pessimistic"))
    for (g, e, p), value in zip(cases, expected, strict=True):
        s = min(max(k - g, 0), e + p)
        assert value == pytest.approx(1 - comb(e, s) / comb(e + p, s), abs=1e-12)
    assert (low <= expected).all() and (expected <= high).all()
    assert (hits(Ranks(np.full(1, -np.inf), *np.array([[3], [0], [0]])), 10) == 0).all()  # no right answer


def test_a_model_that_scores_all_alike_gets_chance():
    _, _, ids, captions, texts = random_set(30)
    scores = score_vectors(np.ones((30, 4)), np.ones((150, 4)), ids, captions, texts, resamples=0)["by_image"]
    for k in KS:
        assert scores[f"text_to_image_recall_at_{k}"]["value"] == pytest.approx(k / 30, abs=1e-6)
        assert scores[f"image_to_text_recall_at_{k}"]["value"] == pytest.approx(
            1 - comb(145, k) / comb(150, k), abs=1e-6
        )
        assert (
            scores[f"text_to_image_recall_at_{k}"]["optimistic"],
            scores[f"text_to_image_recall_at_{k}"]["pessimistic"],
        ) == (1, 0)
    assert scores["text_to_image_median_rank"]["value"] == pytest.approx(15.5)


def test_equal_texts_are_right_answers_by_text_only():
    images, text = np.eye(3, 4, dtype=np.float32), np.eye(3, 4, dtype=np.float32)
    captions = [["a field ."], ["A field ."], ["a pond ."]]  # the first two are equal once capitalised
    images[1] = [1, 0, 0, 0.1]
    texts = ["A field .", "a field .", "a pond ."]
    scores = score_vectors(images, text[[0, 1, 2]], ["1", "2", "3"], captions, texts, resamples=0)
    # image 2 finds the row of image 1 tied with its own; text 2 finds image 1 first
    assert scores["by_image"]["image_to_text_recall_at_1"]["value"] == pytest.approx((0.5 + 0.5 + 1) / 3, abs=1e-6)
    assert scores["by_image"]["text_to_image_recall_at_1"]["value"] == pytest.approx(2 / 3, abs=1e-6)
    assert (
        scores["by_text"]["image_to_text_recall_at_1"]["value"]
        == scores["by_text"]["text_to_image_recall_at_1"]["value"]
        == 1
    )
    assert scores["ceiling"]["text_to_image_recall_at_1"]["value"] == pytest.approx(2 / 3, abs=1e-6)


def test_the_ceiling_is_what_an_oracle_scores():
    """Vectors that mark which texts an image has get, by the same code as a model, what perfect_ranks says."""
    _, _, ids, captions, texts = random_set(15, seed=3, distinct=20)
    captions[4] = captions[2]
    test = retrieval_set(ids, captions)
    has_text = np.zeros((15, len(test.texts)), dtype=np.float32)
    has_text[test.row_image, test.row_text] = 1
    ranks = rank_retrieval(test, has_text, np.eye(len(test.texts), dtype=np.float32), "by_image", normalize=False)
    for direction, perfect in perfect_ranks(test).items():
        for name in ("greater", "equal", "tied"):
            np.testing.assert_array_equal(getattr(ranks[direction], name), getattr(perfect, name))


def test_intervals_hold_the_value_and_are_the_same_at_every_run():
    images, text, ids, captions, texts = random_set(40, seed=5)
    images = unit_rows(images + 0.8 * np.repeat(text.reshape(40, 5, 8).mean(1), 1, axis=0))
    runs = [score_vectors(images, text, ids, captions, texts, resamples=300, seed=7) for _ in range(2)]
    assert json.dumps(runs[0], allow_nan=False) == json.dumps(runs[1])
    other = score_vectors(images, text, ids, captions, texts, resamples=300, seed=8)
    assert other["by_image"]["mean_recall"] != runs[0]["by_image"]["mean_recall"]
    for name, entry in runs[0]["by_image"].items():
        assert entry["low"] <= entry["value"] <= entry["high"], name
        assert entry["n"] == (200 if name.startswith("text_to_image") else 40)
    recall = runs[0]["by_image"]["image_to_text_recall_at_5"]
    error = np.sqrt(recall["value"] * (1 - recall["value"]) / 40)
    assert recall["high"] - recall["low"] == pytest.approx(2 * 1.96 * error, rel=0.25)


def test_images_are_drawn_with_their_captions():
    """Hits that agree within an image leave a text-to-image interval as wide as over images, not over captions."""
    N = 50
    test = retrieval_set([str(i) for i in range(N)], [[f"{i} {j}" for j in range(5)] for i in range(N)])
    zeros, rows = np.zeros(5 * N, dtype=int), np.repeat(np.arange(N) % 2, 5) * 30
    ranks = Ranks(np.zeros(5 * N), rows, zeros, zeros + 1)
    scores = summarise_ranks(
        test, {"image_to_text": Ranks(*(part[::5] for part in ranks)), "text_to_image": ranks}, resamples=500
    )
    assert scores["text_to_image_recall_at_1"] == {**scores["image_to_text_recall_at_1"], "n": 250}
    assert scores["text_to_image_recall_at_1"]["high"] - scores["text_to_image_recall_at_1"]["low"] == pytest.approx(
        2 * 1.96 * 0.5 / np.sqrt(N), rel=0.2
    )


def test_median_ranks_are_those_of_the_drawn_images():
    """Against numpy, resample by resample, for odd and even numbers of images."""
    for N in (9, 10):
        random = np.random.default_rng(N)
        test = retrieval_set([str(i) for i in range(N)], [[f"{i} {j}" for j in range(1 + i % 3)] for i in range(N)])
        places, zeros = random.integers(0, 40, size=len(test.captions)), np.zeros(len(test.captions), dtype=int)
        ranks = Ranks(zeros, places, zeros, zeros + 1)
        ranks = {"image_to_text": Ranks(*(part[:N] for part in ranks)), "text_to_image": ranks}
        scores = summarise_ranks(test, ranks, resamples=150, seed=3)
        assert scores["image_to_text_median_rank"]["value"] == np.median(places[:N]) + 1
        assert scores["text_to_image_median_rank"]["value"] == np.median(places) + 1
        again = np.random.default_rng(3)
        drawn = np.concatenate([again.multinomial(N, np.full(N, 1 / N), size=(size,)) for size in (100, 50)])
        medians = [np.median(np.repeat(places, counts[test.row_image])) + 1 for counts in drawn]
        expected = np.percentile(medians, [2.5, 97.5])
        assert [scores["text_to_image_median_rank"][end] for end in ("low", "high")] == pytest.approx(expected.tolist())


def test_a_repeated_file_counts_once():
    images, text, ids, captions, texts = random_set(6)
    once = score_vectors(images, text, ids, captions, texts, resamples=0)
    again = score_vectors(
        np.concatenate([images, images[:1]]),
        text,
        [*ids, ids[0]],
        [captions[0][:3], *captions[1:], captions[0][3:]],
        texts,
        resamples=0,
    )
    assert once == again


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_ids": ["a"]}, "1 image ids but captions of 2 images"),
        ({"captions": [["x"], []]}, "1 images have no caption, such as 'b'"),
        ({"captions": [["x"], ["z"]]}, "no vector for 1 of 2 texts, such as 'z'"),
        ({"texts": ["x"]}, "1 text names for 2 text vectors"),
        ({"texts": ["x", "x"]}, "'x' has more than one vector"),
        ({"images": np.ones((0, 3)), "image_ids": [], "captions": []}, "the split is empty"),
        ({"images": np.full((2, 3), np.nan)}, "row 0 holds NaN"),
        ({"images": np.ones((2, 4))}, "widths 4 and 3"),
    ],
)
def test_input_that_does_not_fit_is_refused(change, message):
    arguments = dict(
        images=np.ones((2, 3)),
        text=np.ones((2, 3)),
        image_ids=["a", "b"],
        captions=[["x"], ["y"]],
        texts=["x", "y"],
    )
    with pytest.raises(ValueError, match=message):
        score_vectors(**(arguments | change))


def small_table():
    rows = []
    for source in ("one", "two"):
        for number in range(30):
            split = "train" if number < 15 else "val" if number < 22 else "test"
            captions = [f"{source} {number % 5} {copy}" for copy in range(3)]
            rows.append(dict(image_id=f"{source}/{number}", source=source, split=split, captions=captions, label=None))
    return pd.DataFrame(rows)


def space_of(table, seed, width=6, signal=1.0):
    """A space where an image lies near the mean of its captions' vectors."""
    random = np.random.default_rng(seed)
    texts = sorted({caption for own in table["captions"] for caption in own})
    text = random.normal(size=(len(texts), width))
    rows = {caption: row for row, caption in enumerate(texts)}
    images = [signal * text[[rows[c] for c in own]].mean(0) + random.normal(size=width) for own in table["captions"]]
    return EmbeddingSpace(list(table["image_id"]), unit_rows(np.array(images)), texts, unit_rows(text))


def test_a_combined_space_is_the_weighted_sum_of_cosines():
    table = small_table()
    a, b = space_of(table, 0), space_of(table, 1, width=4)
    ids, texts = list(table["image_id"][:7]), a.texts[:5]
    both = combine_spaces({"a": a, "b": b}, {"a": 0.3, "b": 0.7}, ids, texts)
    expected = 0.3 * a.images(ids) @ a.text(texts).T + 0.7 * b.images(ids) @ b.text(texts).T
    np.testing.assert_allclose(both.image_vectors @ both.text_vectors.T, expected, atol=1e-6)
    assert combine_spaces({"a": a, "b": b}, {"a": 1.0, "b": 0.0}, ids, texts).image_vectors.shape[1] == 6
    for weights in ({"a": -1.0, "b": 1.0}, {"a": 0.0}, {"c": 1.0}):
        with pytest.raises(ValueError, match="weights"):
            combine_spaces({"a": a, "b": b}, weights, ids, texts)


def test_a_neighbours_text_is_the_weighted_mean_of_its_captions():
    table = small_table()
    space = space_of(table, 0)
    training = table[table["split"] == "train"]
    ids = list(table[table["split"] == "test"]["image_id"])
    near = neighbour_space(space, training, ids, neighbours=4, temperature=0.2)
    cosines = space.images(ids) @ space.images(list(training["image_id"])).T
    expected = []
    for row in cosines:
        best = np.argsort(-row)[:4]
        shares = np.exp(row[best] / 0.2) / np.exp(row[best] / 0.2).sum()
        means = [space.text(training["captions"].iloc[n]).mean(0) for n in best]
        expected.append((shares[:, None] * means).sum(0))
    np.testing.assert_allclose(near.image_vectors, expected, atol=1e-5)
    everything = neighbour_space(space, training.iloc[:2], ids, neighbours=99, temperature=1e6)
    means = np.mean([space.text(own).mean(0) for own in training["captions"].iloc[:2]], axis=0)
    np.testing.assert_allclose(everything.image_vectors, np.tile(means, (len(ids), 1)), atol=1e-5)


def test_neighbours_come_from_training_only():
    table = small_table()
    space = space_of(table, 0)
    with pytest.raises(ValueError, match="in both training and the images to score, such as 'one/0'"):
        neighbour_space(space, table, ["one/0"], neighbours=3, temperature=0.1)
    with pytest.raises(ValueError, match="'train' is empty"):
        neighbour_space(space, table[:0], ["one/0"], neighbours=3, temperature=0.1)
    with pytest.raises(ValueError, match="temperature = 0"):
        neighbour_space(space, table[1:], ["one/0"], neighbours=3, temperature=0)


def test_a_hub_loses_its_mean_score_against_the_training_items_most_like_it():
    table = small_table()
    space = space_of(table, 0)
    training, tests = table[table["split"] == "train"], retrieval_sets(table, "test")["one"]
    hubs = hubness_space(space, training, tests.image_ids, tests.texts, neighbours=3)
    images, texts = space.images(tests.image_ids), space.text(tests.texts)
    means = np.stack([space.text(own).mean(0) for own in training["captions"]])
    image_loss = np.sort(images @ means.T, axis=1)[:, -3:].mean(1)
    text_loss = np.sort(texts @ space.images(list(training["image_id"])).T, axis=1)[:, -3:].mean(1)
    expected = -image_loss[:, None] - text_loss[None]
    np.testing.assert_allclose(hubs.image_vectors @ hubs.text_vectors.T, expected, atol=1e-6)
    everything = hubness_space(space, training, tests.image_ids, [], neighbours=10**6)
    np.testing.assert_allclose(everything.image_vectors[:, 1], -(images @ means.T).mean(1), atol=1e-6)
    for neighbours, bank in ((0, training), (3, training[:0])):
        with pytest.raises(ValueError, match="at least 1 each"):
            hubness_space(space, bank, tests.image_ids, tests.texts, neighbours=neighbours)


def test_a_text_that_fits_every_training_image_yields_to_the_one_that_fits_this_image():
    own, other, hub = np.eye(4)[0], np.eye(4)[1], np.array([0.6, 0.6, 0.0, 0.53])
    training = pd.DataFrame({"image_id": ["t1", "t2"], "captions": [["A hub ."], ["A hub ."]]})
    vectors = np.stack([np.array([0.55, 0.1, 0.0, 0.83]), hub, hub])
    space = EmbeddingSpace(["i", "t1", "t2"], vectors, ["A hub .", "Other .", "Own ."], np.stack([hub, other, own]))
    hubs = hubness_space(space, training, ["i"], space.texts, neighbours=2)
    plain = combine_spaces({"a": space}, {"a": 1.0}, ["i"], space.texts)
    less = combine_spaces({"a": space, "hubness": hubs}, {"a": 1.0, "hubness": 0.75}, ["i"], space.texts)
    assert (plain.image_vectors @ plain.text_vectors.T).argmax() == 0
    assert (less.image_vectors @ less.text_vectors.T).argmax() == 2


def test_weights_are_the_best_of_the_grid_on_validation_and_the_simplest_among_equals():
    table = small_table()
    training, scored = table[table["split"] == "train"], table[table["split"] != "train"]
    texts = sorted({caption for own in scored["captions"] for caption in own})
    parts = make_parts(
        space_of(table, 0, signal=0.2), space_of(table, 1, signal=3.0), training, list(scored["image_id"]), texts,
        neighbours=3, temperature=0.1, hubness_neighbours=4,
    )  # fmt: skip
    grid = weight_grid([1.0, 0.0, 0.5], [0.0, 0.5], [0.25, 0.0])
    assert grid[0] == {"dual_encoder": 1.0, "ret": 0.0, "neighbours": 0.0, "hubness": 0.0} and len(grid) == 12
    weights, tried = choose_weights(parts, retrieval_sets(table, "val"), grid)
    assert weights["ret"] > 0
    best = tried["mean_recall"].max()
    assert tried.loc[tried["mean_recall"] == best].index[0] == grid.index(weights)
    assert {"recall_one", "recall_two"} <= set(tried.columns)
    same = dict.fromkeys(parts, parts["ret"])
    assert choose_weights(same, retrieval_sets(table, "val"), grid[:3])[0] == grid[0]
    for bad in (
        [[], [0.0], [0.0]],
        [[1.5], [0.0], [0.0]],
        [[0.5], [-1.0], [0.0]],
        [[0.5], [0.0], [-1.0]],
        [[0.5], [0.0], []],
    ):
        with pytest.raises(ValueError, match="weights"):
            weight_grid(*bad)


def test_a_report_of_methods_and_sources_agrees_with_itself():
    table = small_table()
    spaces, tests = {"a": space_of(table, 0), "b": space_of(table, 1)}, retrieval_sets(table, "test")
    report = score_methods(spaces, tests, resamples=20, seed=1)
    assert Counter(report.per_image["match"]) == {"by_image": 32, "by_text": 32}
    assert len(report.curves) == (2 * 2 * 2 + 2) * 2 * 20
    json.dumps(report.metrics, allow_nan=False)
    pair = report.metrics["paired"]["one"]["a - b"]["mean_recall"]
    means = [report.metrics[method]["one"]["by_image"]["mean_recall"]["value"] for method in "ab"]
    assert pair["value"] == pytest.approx(means[0] - means[1], abs=2e-6) and 0 < pair["p"] <= 1
    for (method, source, match), rows in report.per_image.groupby(["method", "source", "match"]):
        scores = report.metrics[method][source][match]
        curve = report.curves.query("method == @method and source == @source and match == @match")
        for name in SIX:
            assert rows[name].mean() == pytest.approx(scores[name]["value"], abs=1e-5)
            direction, k = name.split("_recall_at_")
            point = curve.query(f"direction == {direction!r} and k == {k}")["recall"].item()
            assert point == pytest.approx(scores[name]["value"], abs=1e-6)
        one = spaces[method]
        own = tests[source]
        direct = score_vectors(
            one.images(own.image_ids), one.text_vectors, own.image_ids,
            list(table.set_index("image_id").loc[own.image_ids, "captions"]), one.texts, resamples=20, seed=1,
        )  # fmt: skip
        more = {f"{way}_{name}" for way in ("image_to_text", "text_to_image") for name in ("map", "p5", "p10")}
        assert direct[match] == {name: entry for name, entry in scores.items() if name not in more}
        assert more < set(scores) and direct["ceiling"] == report.metrics[method][source]["ceiling"]
    with pytest.raises(ValueError, match="no image in the split 'dev'"):
        retrieval_sets(table, "dev")


def test_a_space_is_read_from_its_folder(tmp_path):
    np.save(tmp_path / "image.npy", np.eye(2, 3, dtype=np.float32))
    np.save(tmp_path / "text.npy", np.eye(3, dtype=np.float32))
    (tmp_path / "image_ids.json").write_text('["a", "b"]')
    (tmp_path / "texts.json").write_text('["x", "y", "z"]')
    space = load_space(tmp_path)
    assert space.images(["b"]).tolist() == [[0, 1, 0]] and space.text(["z", "x"]).tolist() == [[0, 0, 1], [1, 0, 0]]
    with pytest.raises(ValueError, match="no vector for 1 of 2 images, such as 'c'"):
        space.images(["a", "c"])
    (tmp_path / "texts.json").write_text('["x", "y"]')
    with pytest.raises(ValueError, match=f"{tmp_path}: 2 text names for 3 text vectors"):
        load_space(tmp_path)
    (tmp_path / "text.npy").unlink()
    with pytest.raises(FileNotFoundError, match="text.npy"):
        load_space(tmp_path)


def test_other_models_embeddings_are_read_by_name_and_compared_by_cosine(tmp_path):
    assert load_other_spaces(tmp_path / "none") == {}
    for name in ("geo clip", "zero", ".hidden"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "image.npy", np.array([[0.0, 3.0, 4.0]], dtype=np.float16))
        np.save(tmp_path / name / "text.npy", np.array([[0.0, 0.5, 0.0]]))
        (tmp_path / name / "image_ids.json").write_text('["a"]')
        (tmp_path / name / "texts.json").write_text('["x"]')
    (tmp_path / "README.md").touch()
    spaces = load_other_spaces(tmp_path)
    assert list(spaces) == ["geo clip", "zero"]
    assert spaces["zero"].images(["a"]) == pytest.approx(np.array([[0, 0.6, 0.8]]))
    assert spaces["zero"].text(["x"]).tolist() == [[0, 1, 0]]
    for value in (0.0, np.nan):
        np.save(tmp_path / "zero" / "text.npy", np.full((1, 3), value))
        with pytest.raises(ValueError, match="text.npy: row 0 is zero or holds values that are no numbers"):
            load_other_spaces(tmp_path)
    for taken in ("RET", "protocol"):
        (tmp_path / "geo clip").rename(tmp_path / taken)
        with pytest.raises(ValueError, match=f"'{taken}' is a name of the study's own; rename the folder"):
            load_other_spaces(tmp_path)
        (tmp_path / taken).rename(tmp_path / "geo clip")


def test_curves_and_table_show_every_method_and_the_ceiling():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    from rsvlm.viewing.figures import recall_curves, retrieval_table

    table = small_table()
    spaces = {"dual_encoder": space_of(table, 0), "ret": space_of(table, 1)}
    report = score_methods(spaces, retrieval_sets(table, "test"), resamples=10)
    drawn = recall_curves(report.curves)
    assert len(drawn.axes) == 4
    assert [text.get_text() for text in drawn.axes[1].get_legend().get_texts()] == [
        "dual encoder", "[RET]", "ceiling",
    ]  # fmt: skip
    line = drawn.axes[0].lines[1]
    assert line.get_ydata()[9] == pytest.approx(
        report.metrics["ret"]["one"]["by_image"]["image_to_text_recall_at_10"]["value"], abs=1e-6
    )
    matplotlib.pyplot.close(drawn)
    shown = retrieval_table(report.metrics)
    assert list(shown.loc["two"].index) == ["dual encoder", "[RET]", "ceiling"]
    value = report.metrics["ret"]["two"]["by_image"]["mean_recall"]["value"]
    assert shown.loc[("two", "[RET]"), "mean_recall"] == round(100 * value, 1)
    with pytest.raises(ValueError, match="no recall curve"):
        recall_curves(report.curves, "by_label")
