"""The indexes of the search box: exact by default, or in a tier, which finds the same for the same queries."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from browse_case import add_captioner, build_study, open_archive
from test_galleries import root  # noqa: F401
from test_tiers import needed

from rsvlm.data.table import load_table
from rsvlm.kernels import similarity_topk
from rsvlm.models.features import load_features
from rsvlm.study import paths
from rsvlm.study.paths import finished_study
from rsvlm.viewing import browse
from rsvlm.viewing.search_index import SEARCHED_BY, SearchIndex, load_index, save_indexes, to_cosines

TIERS = ["faiss", "lancedb"]


@pytest.fixture
def study(root):  # noqa: F811
    torch.set_num_threads(1)
    build_study(root)
    return root


def load(method: str) -> SearchIndex:
    return load_index(method, paths.SEARCH_INDEX, load_table(paths.IMAGE_TABLE))


def test_an_index_finds_what_an_exact_search_finds(study):
    index, features = load("dual_encoder"), load_features(paths.FEATURES)
    vector = features.image_embeddings[2:3]
    scores, rows = similarity_topk(vector, features.image_embeddings, 8)
    found = index.search(vector, 8)
    assert [name for name, _ in found] == [features.image_ids[row] for row in rows[0]]
    np.testing.assert_allclose([score for _, score in found], scores[0], atol=1e-6)
    test = [name for name, _ in index.search(vector, 9, split="test")]
    assert test == [name for name, _ in found if int(name[2]) < 4] and int(index.within("test").sum()) == 4
    assert index.search(vector, 3, split="val") == []
    with pytest.raises(FileNotFoundError, match="no index of 'ret'.*retrieval_gallery"):
        load("ret")
    (paths.SEARCH_INDEX / "dual_encoder.faiss").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"dual_encoder\.faiss: damaged"):
        load("dual_encoder")


def test_equal_scores_stand_in_the_order_of_the_images(study):
    import faiss

    index = load("dual_encoder")
    index.held.reset()
    index.held.add(np.tile(np.eye(index.held.d, dtype=np.float32)[:1], (8, 1)))
    assert isinstance(index.held, faiss.IndexFlatIP)
    found = index.search(np.ones((1, index.held.d), np.float32), 3)
    assert [name for name, _ in found] == ["s/0.png", "s/1.png", "s/2.png"]


@pytest.mark.parametrize("tier", TIERS)
def test_a_tier_finds_what_the_flat_index_finds(study, tier):
    """Also where vectors differ in length, as combined ones do, and cosines alone would order them otherwise."""
    needed(tier)
    add_captioner()
    save_indexes(load_table(paths.IMAGE_TABLE), finished_study())
    flat = {method: load(method) for method in SEARCHED_BY}
    made = save_indexes(load_table(paths.IMAGE_TABLE), finished_study(), tier)
    assert made["why not"].tolist() == [""] * 3
    assert sorted(path.name for path in paths.SEARCH_INDEX.iterdir()) == [
        "combined",
        "dual_encoder",
        "index.json",
        "ret",
    ]
    draw = np.random.default_rng(0)
    for method, one in flat.items():
        other, differ = load(method), 0
        assert other.held.kind == tier
        for split in (None, "test"):
            query = draw.standard_normal((1, one.held.d)).astype(np.float32) * 3
            found, wanted = other.search(query, 8, split=split), one.search(query, 8, split=split)
            assert dict(found).keys() == dict(wanted).keys()
            np.testing.assert_allclose([dict(found)[name] for name, _ in wanted], [s for _, s in wanted], atol=0.02)
            assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
            differ += len(found)
        assert differ > 0 and other.search(query, 3, split="val") == [] and other.search(query, 0) == []
        assert other.search(np.zeros_like(query), 3) == [(name, 0.0) for name in other.image_ids[:3]]
    lengths = np.linalg.norm(flat["combined"].held.reconstruct_n(0, 4), axis=1)
    assert np.ptp(lengths) > 0.001  # else the last number would not be needed


def test_vectors_of_different_lengths_order_by_inner_product():
    draw = np.random.default_rng(1)
    vectors = (draw.standard_normal((200, 70)) * draw.uniform(0.1, 3, (200, 1))).astype(np.float32)
    longest = float(np.linalg.norm(vectors, axis=1).max())
    made, query = to_cosines(vectors, longest).astype(np.float64), draw.standard_normal(70)
    assert made.shape == (200, 128) and np.allclose(np.linalg.norm(made, axis=1), 1, atol=1e-3)
    np.testing.assert_allclose(made[:, :70] @ query * longest, vectors @ query, atol=0.03)


@pytest.mark.parametrize("tier", TIERS)
def test_the_search_box_searches_a_tier(study, tier):
    needed(tier)
    before = browse.search_text(open_archive(), "a river", results=4)
    near = browse.similar_images(open_archive(), "s/2.png", results=3, split="test")
    save_indexes(load_table(paths.IMAGE_TABLE), finished_study(), tier)
    for path in [paths.SEARCH_INDEX, *paths.SEARCH_INDEX.rglob("*")]:  # a study that is read alone
        os.chmod(path, 0o555 if path.is_dir() else 0o444)
    archive = open_archive()
    found = browse.search_text(archive, "a river", results=4)
    np.testing.assert_allclose([s for _, s in found.hits], [s for _, s in before.hits], atol=0.01)
    again = browse.similar_images(archive, "s/2.png", results=3, split="test")
    assert dict(again.hits).keys() == dict(near.hits).keys() and again.searched == 4
    less = browse.search_text(archive, "a river without a river", results=4)
    assert len(less.hits) == 4  # nothing is left to look for
    for path in [paths.SEARCH_INDEX, *paths.SEARCH_INDEX.rglob("*")]:
        os.chmod(path, 0o755)


@pytest.mark.parametrize("tier", TIERS)
def test_a_damaged_tier_says_which_stage_makes_it_anew(study, tier):
    needed(tier)
    save_indexes(load_table(paths.IMAGE_TABLE), finished_study(), tier)
    folder: Path = paths.SEARCH_INDEX / "dual_encoder"
    (folder / "config.json").write_text('{"tier": "gold"}')
    with pytest.raises(
        ValueError, match="'tier' is 'gold', none of exact, faiss, lancedb; run the stage retrieval_gal"
    ):
        load("dual_encoder")
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="config.json is missing.; run the stage retrieval_gallery"):
        load("dual_encoder")


def test_a_killed_save_leaves_the_old_index(study, monkeypatch):
    needed("lancedb")
    before = {path.name: path.read_bytes() for path in paths.SEARCH_INDEX.iterdir()}

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("rsvlm.models.lance_tier.LanceTier.compact", killed)
    with pytest.raises(KeyboardInterrupt):
        save_indexes(load_table(paths.IMAGE_TABLE), finished_study(), "lancedb")
    assert {path.name: path.read_bytes() for path in paths.SEARCH_INDEX.iterdir()} == before
