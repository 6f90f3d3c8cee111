"""The tier of FAISS: which index is chosen, how well it finds, and that it follows what a killed process left."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from test_tiers import DIM, opened, rows

from rsvlm.models import faiss_tier
from rsvlm.models.faiss_tier import FaissTier, choose_key
from rsvlm.models.image_filters import Where
from rsvlm.models.tiers import CONFIG

pytest.importorskip("faiss", reason="FAISS is not installed")


@pytest.mark.parametrize(
    "n, width, memory, key",
    [
        (1_000, 512, 4e9, "Flat"),
        (1_000_000, 512, 4e9, "HNSW32,Flat"),
        (10_000_000, 512, 4e9, "IVF4096,PQ64"),
        (10_000_000, 512, 0.8e9, "IVF4096,PQ32"),
        (100_000_000, 512, 12e9, "IVF16384,PQ64"),
        (100_000_000, 512, 4e9, "IVF16384,PQ16"),
        (1_000_000, 384, 0.2e9, "IVF1024,PQ48"),
    ],
)
def test_the_index_fits_the_memory(n, width, memory, key):
    assert choose_key(n, width, int(memory)) == key


def test_too_little_memory_is_told():
    with pytest.raises(ValueError, match="memory: 1,000,000 bytes are too few for 1,000,000 vectors of 512"):
        choose_key(1_000_000, 512, 1_000_000)


@pytest.fixture
def small(monkeypatch):
    """Few images are many."""
    monkeypatch.setattr(faiss_tier, "FLAT", 200)


@pytest.mark.parametrize("memory, key", [(4_000_000, "HNSW32,Flat"), (200_000, "IVF64,PQ2")])
def test_an_approximate_index_finds_what_is_asked_for(small, tmp_path, memory, key):
    names, vectors = rows(3000)
    facts = pd.DataFrame({"source": ["a", "b"] * 1500})
    exact = opened("exact", tmp_path / "exact", names, vectors, facts)
    tier = FaissTier.make(tmp_path / "faiss", DIM, 3000, [(names, vectors, facts)], {}, memory=memory)
    assert tier.settings["key"] == key and tier.settings["recall"] >= 0.95
    query = rows(40, seed=5)[1]
    tier.remove(names[:500])
    exact.remove(names[:500])
    more, later = rows(100, seed=2)
    tier.add(more, later)
    exact.add(more, later)
    for where in (None, Where(source="b")):  # leaves more than are looked at one by one
        found = {name for own in tier.search(query, 10, where) for name, _ in own}
        assert found <= {name for own in exact.search(query, 2600, where) for name, _ in own}
    for one in (tier, FaissTier(tier.folder, DIM)):
        wanted, found = ([{name for name, _ in own} for own in held.search(query, 10)] for held in (exact, one))
        assert np.mean([len(own & right) / 10 for own, right in zip(found, wanted)]) > 0.9
    if key.startswith("IVF"):
        return  # learning codes takes seconds; to compact is the same
    tier.compact()
    assert len(tier) == len(exact) == 2600 and len(tier.parts) == 1 and tier.index.ntotal == 2600
    wanted, found = ([{name for name, _ in own} for own in held.search(query, 10)] for held in (exact, tier))
    assert np.mean([len(own & right) / 10 for own, right in zip(found, wanted)]) > 0.9


def test_what_a_killed_add_had_not_indexed_is_found(small, tmp_path):
    names, vectors = rows(600)
    tier = FaissTier.make(tmp_path / "faiss", DIM, 600, [(names, vectors, None)], {}, memory=400_000)
    shutil.copy(tmp_path / "faiss" / faiss_tier.INDEX, tmp_path / "before")
    more, later = rows(50, seed=3)
    more[0] = names[0]  # replaced
    tier.add(more, later)
    shutil.copy(tmp_path / "before", tmp_path / "faiss" / faiss_tier.INDEX)  # as after a kill
    again = FaissTier(tmp_path / "faiss", DIM)
    assert len(again) == 649 and again.index.ntotal == 650
    assert [again.search(later[[row]], 1)[0][0][0] for row in range(50)] == more
    found = again.search(vectors[[0]], 650)[0]
    assert len(found) == len(dict(found)) == 649 and dict(found)[names[0]] < 0.999  # as another picture, once
    other = FaissTier(tmp_path / "faiss", DIM)
    again.remove(more[:2])
    other.remove(more[2:4])  # which read the folder before
    assert len(FaissTier(tmp_path / "faiss", DIM)) == len(other) == 645


def test_a_damaged_file_is_named(tmp_path):
    names, vectors = rows(60)
    tier = opened("faiss", tmp_path / "index", names, vectors)
    tier.add(*rows(10, seed=1))
    tier.remove(names[:3])
    files = [file for file in sorted(tier.folder.rglob("*")) if file.is_file() and file.name != CONFIG]
    assert len(files) == 7
    for file in files:
        kept = file.read_bytes()
        for broken in (kept[: len(kept) // 2], b"", b"\x00" * len(kept)):
            file.write_bytes(broken)
            with pytest.raises(ValueError, match="index") as told:
                FaissTier(tier.folder, DIM)
            assert "\n" not in str(told.value)
        file.write_bytes(kept)
    assert json.loads((tier.folder / faiss_tier.SEARCH).read_text())["key"] == "Flat"
    assert len(FaissTier(tier.folder, DIM)) == 67
