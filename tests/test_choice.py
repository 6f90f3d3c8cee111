import numpy as np
import pytest
from captioner_case import make_features, make_table

from rsvlm.models.inference import caption_cosines, choose_captions, choose_weights, judge_candidates, weight_grid
from rsvlm.models.neighbours import training_pools


@pytest.fixture(scope="module")
def study():
    features = make_features()
    return features, make_table(features)


@pytest.fixture(scope="module")
def pools(study):
    features, table = study
    return training_pools(features, table, features.image_ids[-4:], k=3)


def test_pools_hold_the_captions_of_the_nearest_training_images(study, pools):
    _, table = study
    training = set(table[table["split"] == "train"]["image_id"])
    assert all(set(own) <= training and len(own) == 3 for own in pools.neighbours)
    own = table.set_index("image_id")["captions"]
    assert all(text in own[image_id] for image_id, texts in pools.top(1).items() for text in texts)


def test_a_training_image_is_not_its_own_neighbour(study):
    features, table = study
    pools = training_pools(features, table, features.image_ids[:16], k=15)
    assert all(image_id not in own and len(own) == 15 for image_id, own in zip(pools.image_ids, pools.neighbours))


def candidates_of(own, pools, from_pool):
    """The same words for each image, then the best of its pool."""
    return [[*own, *texts] for texts in pools.top(from_pool).values()]


def test_each_term_can_decide(pools):
    candidates = candidates_of(["Waves on a beach."], pools, 2)
    judged = judge_candidates(
        candidates,
        pools,
        samples=[["Waves on a beach."]] * 4,
        likelihoods=[np.arange(len(own), dtype=float) for own in candidates],
    )
    cosines = [np.eye(len(own))[1] for own in candidates]
    by_cosine = judge_candidates(candidates, pools, cosines=cosines)
    assert choose_captions(candidates, by_cosine, {"cosine": 1.0}) == [own[1] for own in candidates]
    consensus = [own[0][0] for own in pools.ranked]
    assert choose_captions(candidates, judged, {"pool": 1.0}) == consensus
    assert choose_captions(candidates, judged, {"samples": 1.0}) == ["Waves on a beach."] * 4
    assert choose_captions(candidates, judged, {"likelihood": 1.0}) == [own[-1] for own in candidates]


def test_cosines_are_those_of_image_and_candidate():
    vectors = np.array([[1.0, 0.0], [0.6, 0.8]], dtype=np.float32)
    known = {"a": [1.0, 0.0], "b": [0.0, 1.0]}
    found = caption_cosines(vectors, [["b", "a"], ["b"]], lambda texts: np.array([known[text] for text in texts]))
    assert [own.tolist() for own in found] == [[0.0, 1.0], [pytest.approx(0.8)]]


def test_weights_are_chosen_by_cider_to_the_references(study, pools):
    _, table = study
    references = list(table.set_index("image_id").loc[pools.image_ids]["captions"])
    candidates = candidates_of(["Waves on a beach."], pools, 3)
    judged = judge_candidates(candidates, pools, samples=[["Waves on a beach."]] * 4)
    weights, tried = choose_weights(
        candidates, judged, references, pools.memory.space, weight_grid([0, 1], [0, 0.5, 5], [0])
    )
    assert weights == {"pool": 1.0, "samples": 0.0, "likelihood": 0.0, "cosine": 0.0}  # the samples are wrong here
    assert tried["cider"].max() == pytest.approx(
        pools.memory.space.mean_cider(choose_captions(candidates, judged, weights), references), abs=1e-6
    )
    assert tried["cider"].min() < tried["cider"].max()


def test_the_grid_has_its_simplest_weights_first():
    grid = weight_grid([0, 1], [0, 1], [0])
    assert grid[-1] == {"pool": 1.0, "samples": 1.0, "likelihood": 0.0, "cosine": 0.0} and len(grid) == 3
    for wrong in ([0], [-1.0]):
        with pytest.raises(ValueError, match="expected numbers from 0"):
            weight_grid(wrong, [0], [0])


def test_wrong_numbers_are_refused(pools):
    candidates = candidates_of(["A."], pools, 1)
    with pytest.raises(ValueError, match="2 candidates, but 1 likelihoods"):
        judge_candidates(candidates, pools, likelihoods=[np.zeros(1)] * 4)
    with pytest.raises(ValueError, match="2 candidates, but 3 cosines"):
        judge_candidates(candidates, pools, cosines=[np.zeros(3)] * 4)
    with pytest.raises(ValueError, match="no candidate captions"):
        choose_captions(
            [[]],
            [{"pool": np.zeros(0), "samples": np.zeros(0), "likelihood": np.zeros(0), "cosine": np.zeros(0)}],
            {"pool": 1.0},
        )
