"""The tier of LanceDB: an index that its images have grown too few for, and a table that is lost."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
from test_tiers import DIM, again, by_hand, opened, rows

from rsvlm.files import write_json
from rsvlm.models import lance_tier
from rsvlm.models.lance_tier import LanceTier
from rsvlm.models.tier_folders import read_tier
from rsvlm.models.tiers import CONFIG, DAMAGED

pytest.importorskip("lancedb", reason="LanceDB is not installed")


@pytest.fixture
def trained(tmp_path, monkeypatch) -> tuple[LanceTier, list[str], np.ndarray]:
    """A table of 600 images with an index, of which 120 are left."""
    monkeypatch.setattr(lance_tier, "INDEXED_FROM", 500)
    monkeypatch.setattr(lance_tier, "A_PARTITION", 300)
    names, vectors = rows(600)
    tier = opened("lancedb", tmp_path / "index", names, vectors)
    tier.compact()
    assert tier.settings["trained_on"] == 600 and indexed(tier)
    tier.remove(names[120:])
    return tier, names, vectors


def indexed(tier: LanceTier) -> bool:
    return any("vector" in index.columns for index in tier.table.list_indices())


def finds_all(tier: LanceTier, names: list[str], vectors: np.ndarray) -> bool:
    query = rows(5, seed=9)[1].astype(np.float32)
    wanted = [by_hand(names[:120], vectors[:120], one, 20) for one in query]
    return [[name for name, _ in own] for own in tier.search(query, 20)] == wanted


def test_an_index_goes_when_few_images_are_left_and_comes_back(trained):
    tier, names, vectors = trained
    tier.compact()
    for one in (tier, again(tier)):
        assert one.settings == {} and not (one.folder / lance_tier.SEARCH).exists() and not indexed(one)
        assert len(one) == 120 and finds_all(one, names, vectors)
    tier.compact()
    tier.add(names[120:], vectors[120:])
    tier.compact()
    assert tier.settings["trained_on"] == 600 and again(tier).settings["recall"] >= 0.95 and indexed(tier)
    tier.remove(names)
    tier.compact()
    assert len(again(tier)) == 0 and again(tier).search(vectors[:1], 3) == [[]]


def test_a_kill_while_an_index_goes_changes_no_answer(trained, monkeypatch):
    tier, names, vectors = trained

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(tier.table), "drop_index", killed)
        tier.compact()
    assert indexed(tier)  # and nobody knows how well it finds
    tier = again(tier)
    assert tier.settings == {} and finds_all(tier, names, vectors)
    tier.compact()
    assert not indexed(tier) and finds_all(tier, names, vectors)


def test_a_lost_table_is_told_and_no_empty_one_takes_its_place(tmp_path):
    names, vectors = rows(20)
    tier = opened("lancedb", tmp_path / "index", names, vectors)
    write_json(tier.folder / CONFIG, {"tier": "lancedb"})
    assert len(read_tier(tier.folder, DIM)) == 20
    shutil.rmtree(tier.folder / "images.lance")
    with pytest.raises(ValueError) as told:
        read_tier(tier.folder, DIM)
    assert str(told.value) == f"{tier.folder}/images.lance: the table is missing; {DAMAGED}"
    assert not (tier.folder / "images.lance").exists()
    assert len(LanceTier(tier.folder, DIM)) == 0  # one that is begun


def test_making_an_index_prints_nothing_of_its_own_insides(tmp_path):
    """Images that are nearly the same leave lists empty, of each of which LanceDB warns."""
    program = """
import sys
from pathlib import Path
import numpy as np
from rsvlm.models import lance_tier
lance_tier.INDEXED_FROM, lance_tier.A_PARTITION = 500, 100
draw = np.random.default_rng(0)
vectors = np.repeat(draw.standard_normal((4, 16)), 300, 0) + 1e-4
vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
tier = lance_tier.LanceTier(Path(sys.argv[1]), 16)
tier.add(list(map(str, range(1200))), vectors)
tier.compact()
print(len(tier.table.list_indices()) > 0)
"""
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "index"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "True\n" and "WARN" not in done.stderr, done.stderr
