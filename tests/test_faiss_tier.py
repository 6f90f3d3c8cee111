"""The tier of FAISS: which index is chosen, how well it finds, and that it follows what a killed process left."""

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_tiers import DIM, PROJECT, by_hand, opened, rows, unit

from rsvlm.models import faiss_tier
from rsvlm.models.faiss_tier import FaissTier, choose_key
from rsvlm.models.image_filters import Where
from rsvlm.models.tiers import CONFIG, VECTORS

pytest.importorskip("faiss", reason="FAISS is not installed")


@pytest.mark.parametrize(
    "n, width, memory, key",
    [
        (1_000, 512, 4e9, "Flat"),
        (1_000_000, 512, 4e9, "HNSW32,Flat"),
        (10_000_000, 512, 4e9, "IVF4096,PQ128"),
        (10_000_000, 512, 0.8e9, "IVF4096,PQ32"),
        (100_000_000, 512, 12e9, "IVF16384,PQ64"),
        (100_000_000, 512, 4e9, "IVF16384,PQ16"),
        (1_000_000, 384, 0.2e9, "IVF1024,PQ96"),
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


@pytest.mark.parametrize("memory, key", [(4_000_000, "HNSW32,Flat"), (200_000, "IVF64,PQ4")])
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


@pytest.fixture(scope="module", params=[(8_000_000, "HNSW32,Flat"), (200_000, "IVF128,PQ4")], ids=["HNSW", "IVF"])
def made(request, tmp_path_factory):
    """Forty clusters of 150 images, each a source, any half of which is a split: their folder, vectors and facts."""
    draw, cluster = np.random.default_rng(0), np.arange(6000) % 40
    vectors = unit(draw.standard_normal((40, DIM))[cluster] + 0.3 * draw.standard_normal((6000, DIM)))
    vectors = vectors.astype(np.float16)
    facts = pd.DataFrame({"source": cluster.astype(str), "split": np.array(["a", "b"])[draw.integers(0, 2, 6000)]})
    folder, names, (memory, key) = tmp_path_factory.mktemp("made"), [f"{row}.png" for row in range(6000)], request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faiss_tier, "FLAT", 100)
        tier = FaissTier.make(folder / "faiss", DIM, 6000, [(names, vectors, facts)], {}, memory=memory)
    assert tier.settings["key"] == key and tier.settings["recall"] >= 0.95
    return tier.folder, vectors, facts


@pytest.fixture
def clustered(made, tmp_path, monkeypatch):
    """A tier of its own of them."""
    monkeypatch.setattr(faiss_tier, "FLAT", 100)
    folder, vectors, facts = made
    return FaissTier(Path(shutil.copytree(folder, tmp_path / "faiss")), DIM), vectors, facts


def recall(tier: FaissTier, vectors: np.ndarray, row: int, allowed: np.ndarray, where: Where | None) -> float:
    """Share of the ten nearest to an image among the allowed ones, where it is asked for alone and with another; ten come."""
    rows, query = np.flatnonzero(allowed), vectors[[row, int(np.argmax(allowed))]].astype(np.float32)
    wanted = {*by_hand([f"{own}.png" for own in rows], vectors[rows], query[0], 10)}
    found = [dict(tier.search(query[:1], 10, where)[0]), dict(tier.search(query, 10, where)[0])]
    assert [len(own) for own in found] == [10, 10]
    return np.mean([len(wanted & {*own}) / 10 for own in found])


@pytest.mark.parametrize("clusters", [1, 4, 20])
@pytest.mark.parametrize("links", [32, 1])  # 1: so few images are many enough to look at a neighbourhood first
def test_a_filter_that_leaves_what_is_far_from_the_query_finds_as_much(clustered, monkeypatch, clusters, links):
    tier, vectors, facts = clustered
    monkeypatch.setattr(faiss_tier, "LINKS", links)
    found = []
    for own in range(40):
        others = [str((own + 1 + other) % 40) for other in range(clusters)]
        found.append(recall(tier, vectors, own, facts["source"].isin(others).to_numpy(), Where(source=others)))
    assert np.mean(found) > 0.95 and min(found) >= 0.7


def test_a_neighbourhood_is_enough_where_a_filter_does_not_go_with_the_images(clustered, monkeypatch):
    tier, vectors, facts = clustered
    monkeypatch.setattr(faiss_tier, "LINKS", 1)
    monkeypatch.setattr(faiss_tier, "_propose_of", None)
    allowed = (facts["split"] == "a").to_numpy()
    assert np.mean([recall(tier, vectors, own, allowed, Where(split="a")) for own in range(40)]) > 0.95


@pytest.mark.parametrize("links", [32, 1])
def test_what_was_removed_around_a_query_leaves_as_many_hits(clustered, monkeypatch, links):
    tier, vectors, facts = clustered
    monkeypatch.setattr(faiss_tier, "LINKS", links)
    gone = facts["source"].isin([str(own) for own in range(10)]).to_numpy()
    tier.remove([f"{row}.png" for row in np.flatnonzero(gone)])
    assert np.mean([recall(tier, vectors, own, ~gone, None) for own in range(10)]) > 0.95
    assert [len(dict(own)) for own in tier.search(vectors[:2], 2000)] == [2000, 2000]


def test_what_may_be_found_is_looked_at_block_by_block(monkeypatch, tmp_path):
    names, vectors = rows(500)
    tier = opened("faiss", tmp_path / "index", names, vectors)
    before, taken, take = tier.search(vectors[:3], 400), [], tier._take
    monkeypatch.setattr(faiss_tier, "SCAN", 90)
    monkeypatch.setattr(tier, "_take", lambda own: taken.append(len(own)) or take(own))
    assert tier.search(vectors[:3], 400) == before and taken == [90] * 5 + [50]


def test_as_many_vectors_are_written_as_were_told(tmp_path):
    names, vectors = rows(60)
    blocks = [(names[:20], vectors[:20].astype(np.float32), None), (names[20:], np.asfortranarray(vectors[20:]), None)]
    tier = FaissTier.make(tmp_path / "index", DIM, 60, blocks, {})
    np.save(tmp_path / VECTORS, vectors)
    assert (tier.parts[0] / VECTORS).read_bytes() == (tmp_path / VECTORS).read_bytes()
    for n, wrong, told in (
        (61, blocks, "60 images came, and 61 were told"),
        (59, blocks, "60 images came, and 59 were told"),
        (60, [(names, vectors[:1], None)], r"vectors \(1, 16\) for 60 images of 16 numbers"),
    ):
        with pytest.raises(ValueError, match=f"new: {told}"):
            FaissTier.make(tmp_path / "new", DIM, n, wrong, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", VECTORS]


FILLS = """
import sys
from pathlib import Path
import numpy as np
from rsvlm.models.faiss_tier import FaissTier
blocks = ((list(map(str, range(at, at + 1000))), np.ones((1000, 512), np.float16), None) for at in range(0, 16000, 1000))
try:
    FaissTier.make(Path(sys.argv[1]), 512, 16000, blocks, {})
except OSError as error:
    print(error.errno, error.filename)
"""


def test_a_full_disk_is_an_error_and_leaves_no_index(tmp_path):
    from test_disks import mounted

    place = tmp_path / "small"
    place.mkdir()
    with mounted(place, ["-t", "tmpfs", "-o", "size=8m", "tmpfs"]):
        command = [sys.executable, "-c", FILLS, str(place / "index")]
        done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT)
        assert (done.returncode, done.stdout) == (0, f"{errno.ENOSPC} {place / 'index'}\n"), done.stderr
        assert list(place.iterdir()) == []


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
