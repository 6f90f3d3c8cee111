import json

import numpy as np
import pytest

from rsvlm.models.neighbours import (
    NEIGHBOURS,
    TEMPERATURE,
    CiderSpace,
    Memory,
    Pools,
    baseline_captions,
    constant_caption,
    count_ngrams,
    pool_options,
    shuffled_captions,
)
from rsvlm.settings import Pooling

TRAINING = {
    "1": ["many planes are at the airport", "planes parked at the airport", "many planes are at the airport"],
    "2": ["many planes are at the airport", "a building near the airport", "two planes"],
    "3": ["a river in the forest", "the river runs in the green forest", "a a a river river"],
    "4": ["green trees", "a forest of green trees", "many trees in the forest"],
}


def memory_of(captions, vectors=None) -> Memory:
    return Memory(captions, np.zeros((len(captions), 2), np.float32) if vectors is None else np.asarray(vectors))


def pool_of(neighbours, weights, captions=TRAINING, extra=()) -> list[tuple[str, float]]:
    """The ranked pool of one image with these neighbours."""
    return Pools(["q"], [neighbours], [np.asarray(weights)], memory_of(captions)).consensus(0, extra)


def test_similarity_equals_pycocoevalcap():
    from pycocoevalcap.cider.cider import Cider

    # With every document as the references of one image and one candidate each, pycocoevalcap has the same idf.
    space = CiderSpace(TRAINING.values())
    generated = dict(
        zip(TRAINING, ["planes at the the the airport", "a new word", "a river river in the forest", "trees"])
    )
    _, expected = Cider().compute_score(TRAINING, {key: [text] for key, text in generated.items()})
    for key, score in zip(TRAINING, expected):
        assert space.similarity([generated[key]], TRAINING[key]).mean() == pytest.approx(score, abs=1e-12)


def test_mean_similarity_is_exact():
    space = CiderSpace(TRAINING.values())
    candidates = sorted({text for texts in TRAINING.values() for text in texts})
    slow = np.mean([space.similarity(candidates, texts).mean(axis=1) for texts in TRAINING.values()], axis=0)
    np.testing.assert_allclose(space.mean_similarity(candidates, list(TRAINING.values())), slow, atol=1e-12)
    assert constant_caption(memory_of(TRAINING)) == candidates[int(np.argmax(slow))]


def test_empty_and_foreign_captions_have_vectors():
    space = CiderSpace(TRAINING.values())
    assert space.similarity(["", "飞机 机场 \U0001f600"], ["many planes", ""]).shape == (2, 2)
    assert (space.similarity([""], ["many planes"]) == 0).all()
    assert count_ngrams("It's A river.")[("it's", "a")] == 1


def test_pool_ranks_what_neighbours_agree_on():
    pool = pool_of(["1", "2", "3"], [1.0, 0.9, 0.1])
    assert pool[0][0] == "many planes are at the airport"
    assert len(pool) == len({text for text, _ in pool}) == 7
    assert [score for _, score in pool] == sorted((score for _, score in pool), reverse=True)


def test_pool_score_is_the_weighted_mean_to_the_other_captions():
    pool = dict(pool_of(["3", "4"], [1.0, 0.5]))
    others = [(text, 1.0) for text in TRAINING["3"][1:]] + [(text, 0.5) for text in TRAINING["4"]]
    space = CiderSpace(TRAINING.values())
    similarity = space.similarity(["a river in the forest"], [text for text, _ in others])[0]
    expected = np.average(similarity, weights=[weight for _, weight in others])
    assert pool["a river in the forest"] == pytest.approx(expected)


def test_weights_decide_between_disagreeing_neighbours():
    assert pool_of(["1", "3"], [1.0, 0.01])[0][0] in TRAINING["1"]
    assert pool_of(["3", "1"], [1.0, 0.01])[0][0] in TRAINING["3"]


def test_extra_candidates_are_scored_but_do_not_vote():
    plain = pool_of(["1", "2"], [1.0, 1.0])
    extra = pool_of(["1", "2"], [1.0, 1.0], extra=["planes at the airport", "two planes", "zebra"])
    assert [pair for pair in extra if pair[0] not in ("planes at the airport", "zebra")] == plain
    assert dict(extra)["zebra"] == 0 < dict(extra)["planes at the airport"]


def test_one_neighbour_with_one_caption_still_gives_it():
    assert pool_of(["x"], [1.0], {"x": ["a lone caption"], "y": ["other"]}) == [("a lone caption", 0.0)]
    with pytest.raises(ValueError, match="x: no other training image"):
        memory_of({"x": ["a lone caption"]}, [[1.0, 0.0]]).pools(np.array([[1.0, 0.0]]), ["x"])


def test_neighbours_by_cosine_with_weights():
    items = np.array([[1, 0], [0, 2], [3, 3], [-1, 0]], dtype=np.float32)
    memory = memory_of({name: ["a"] for name in "abcd"}, items)
    pools = memory.pools(np.array([[2, 0.1]], dtype=np.float32), ["q"], k=2, temperature=0.5)
    assert pools.neighbours == [["a", "c"]]
    cosines = items[[0, 2]] @ np.array([2, 0.1]) / np.linalg.norm(items[[0, 2]], axis=1) / np.linalg.norm([2, 0.1])
    np.testing.assert_allclose(pools.votes[0], np.exp((cosines - cosines[0]) / 0.5), rtol=1e-5)


def test_an_image_is_not_its_own_neighbour_and_few_items_are_enough():
    items = np.eye(3, dtype=np.float32)
    memory = memory_of({name: ["a"] for name in "abc"}, items)
    pools = memory.pools(items, ["a", "b", "c"], k=5)
    assert [sorted(found) for found in pools.neighbours] == [["b", "c"], ["a", "c"], ["a", "b"]]
    assert all(row.max() == 1 for row in pools.votes)
    with pytest.raises(ValueError, match="3 rows of features for 1 training ids"):
        memory_of({"a": ["a"]}, items).pools(items, ["a", "b", "c"])
    with pytest.raises(ValueError, match="temperature"):
        memory.pools(items, ["a", "b", "c"], temperature=0.0)


def test_three_baselines_at_once():
    features = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 1]], dtype=np.float32)
    queries = np.array([[1, 0.05], [0, 1]], dtype=np.float32)
    runs = baseline_captions(memory_of(TRAINING, features).pools(queries, ["p", "q"], k=2))
    assert list(runs) == ["constant", "nearest", "consensus"]
    assert runs["nearest"] == {"p": TRAINING["1"][0], "q": TRAINING["3"][0]}
    assert runs["consensus"]["p"] == "many planes are at the airport"
    assert len(set(runs["constant"].values())) == 1


def shuffled_images(ids, seed):
    """The images that are shown in the place of each."""
    return list(shuffled_captions({image_id: image_id for image_id in ids}, [ids], seed).values())


def test_shuffled_images_have_no_fixed_point():
    ids = [f"image {number}" for number in range(50)]
    for seed in range(20):
        shown = shuffled_images(ids, seed)
        assert sorted(shown) == sorted(ids) and all(a != b for a, b in zip(ids, shown))
    assert shuffled_images(ids, 1) == shuffled_images(ids, 1) != shuffled_images(ids, 2)
    assert shuffled_images(["a", "b"], 0) == ["b", "a"]
    with pytest.raises(ValueError, match="two or more"):
        shuffled_images(["a"], 0)


def test_consensus_of_a_class_on_ucm(shared_data):
    """Real captions at real size: neighbours of the same class stand in for image features."""
    images = json.loads((shared_data / "ucm_captions" / "dataset.json").read_text())["images"]
    captions = {image["filename"]: [sentence["raw"] for sentence in image["sentences"]] for image in images}
    training = [image["filename"] for image in images if image["split"] == "train"]
    label = {name: (int(name.removesuffix(".tif")) - 1) // 100 for name in captions}
    tested = [image["filename"] for image in images if image["split"] == "test"][::10]
    neighbours = [[other for other in training if label[other] == label[name]][:20] for name in tested]
    memory = memory_of({name: captions[name] for name in training})
    space = memory.space
    votes = [np.ones(20)] * len(tested)
    chosen = [own[0][0] for own in Pools(tested, neighbours, votes, memory).ranked]
    own = np.mean([space.similarity([text], captions[name]).mean() for text, name in zip(chosen, tested)])
    first = [captions[images[0]][0] for images in neighbours]
    baseline = np.mean([space.similarity([text], captions[name]).mean() for text, name in zip(first, tested)])
    assert own > baseline > 1


def test_what_an_older_record_leaves_out_is_as_it_was():
    assert pool_options({"neighbours": 5, "neighbour_temperature": 0.1}) == {"k": 5, "temperature": 0.1}
    assert pool_options(dict(Pooling(neighbours=3))) == {"k": 3, "temperature": TEMPERATURE}
    assert pool_options({}) == {"k": NEIGHBOURS, "temperature": TEMPERATURE}
