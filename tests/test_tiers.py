"""The tiers of an index: the same answers, filters before the search, changes that outlive a kill, clear errors."""

import json
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scene_case import ColourEncoder
from typer.testing import CliRunner

import rsvlm
from rsvlm.cli import app, main
from rsvlm.models import lance_tier, tiers
from rsvlm.models.faiss_tier import FaissTier
from rsvlm.models.image_filters import Where, read_facts
from rsvlm.models.lance_tier import LanceTier
from rsvlm.models.tiers import ExactTier, cheapest, nearest_of_blocks, tuning_queries

DIM = 16
PROJECT = Path(__file__).resolve().parents[1]
KINDS = ["exact", "faiss", "lancedb"]


def opened(kind: str, folder: Path, names=(), vectors=None, facts=None):
    """An index without pictures: its tier, in a folder."""
    if kind == "exact":
        tier = ExactTier(list(names), np.zeros((0, DIM), np.float16) if vectors is None else vectors, facts)
        tier.save(folder, {"made": "by a test"})
        return tier
    needed(kind)
    if kind == "faiss":
        vectors = np.zeros((0, DIM), np.float16) if vectors is None else vectors
        return FaissTier.make(folder, DIM, len(names), [(list(names), vectors, facts)], {"made": "by a test"})
    folder.mkdir()
    tier = LanceTier(folder, DIM)
    if len(names):
        tier.add(list(names), vectors, facts)
    return tier


def needed(kind: str) -> None:
    if kind != "exact":
        pytest.importorskip(kind, reason=f"{kind} is not installed")


def read(kind: str, folder: Path):
    made = {"exact": ExactTier.read, "faiss": FaissTier, "lancedb": partial(LanceTier, create=False)}
    return made[kind](folder, DIM)


def again(tier):
    return read(tier.kind, tier.folder)


def rows(n: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Names and vectors around the same few centres."""
    centres, draw = np.random.default_rng(0).standard_normal((8, DIM)), np.random.default_rng([1, seed])
    made = centres[draw.integers(0, 8, n)] + 0.3 * draw.standard_normal((n, DIM))
    return [f"{seed}/{number}.png" for number in range(n)], unit(made).astype(np.float16)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def places(n: int) -> pd.DataFrame:
    """Facts of n images, the last of which nothing is known of."""
    day = [f"2024-05-{1 + number % 28:02d}" for number in range(n)]
    side = [float(number % 360 - 180) for number in range(n)]
    facts = pd.DataFrame(
        {"source": ["it's", "b"] * (n // 2), "split": ["train"] * (n - 10) + ["test"] * 10, "date": day, "west": side}
    )
    facts = facts.assign(east=facts["west"] + 0.5, south=0.0, north=1.0).astype(object)
    facts.loc[n - 1] = None
    return facts


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


def by_hand(names, vectors, query, k):
    scores = vectors.astype(np.float64) @ (query / np.linalg.norm(query))
    return [names[row] for row in np.argsort(-scores, kind="stable")[:k]]


WHERES = [
    (Where(source="it's"), lambda f: f["source"] == "it's"),
    (Where(split=["test", "val"]), lambda f: f["split"] == "test"),
    (
        Where(start="2024-05-03", end="2024-05-04"),
        lambda f: f["date"].astype(str).between("2024-05-03", "2024-05-04"),
    ),
    (Where(bbox=(170, -5, -170, 5), source="b"), lambda f: f["source"].eq("b") & f["west"].map(_at_date_line)),
    (Where(bbox=(10.2, -90, 12, 90)), lambda f: f["west"].isin([10.0, 11.0])),
]


def _at_date_line(west) -> bool:
    return west is not None and (west + 0.5 > 170 or west < -170)


@pytest.mark.parametrize("number", range(len(WHERES)))
def test_filters_come_before_the_search(kind, tmp_path, number):
    names, vectors = rows(400)
    facts = places(400)
    tier = opened(kind, tmp_path / "index", names, vectors, facts)
    where, truth = WHERES[number]
    allowed = np.flatnonzero(truth(facts).to_numpy(bool))
    assert 0 < len(allowed) < 400
    query = unit(np.random.default_rng(1).standard_normal((2, DIM))).astype(np.float32)
    found = again(tier).search(query, 5, where)
    for row in range(2):
        expected = by_hand([names[one] for one in allowed], vectors[allowed], query[row], 5)
        assert [name for name, _ in found[row]] == expected


def test_what_nobody_knows_is_no_filter(kind, tmp_path):
    names, vectors = rows(20)
    tier = opened(kind, tmp_path / "index", names, vectors, pd.DataFrame({"source": ["a"] * 20}))
    for where, what in (
        (Where(split="test"), "split"),
        (Where(bbox=(0, 0, 1, 1)), "place"),
        (Where(end="2024"), "date"),
    ):
        with pytest.raises(ValueError, match=f"no image of this index has a {what}"):
            tier.search(vectors[:1], 3, where)
    assert tier.search(vectors[:1], 3, Where(source="b")) == [[]]


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(), "nothing is told"),
        (dict(source=[]), "source: expected a name"),
        (dict(start="soon"), "'soon' is no date"),
        (dict(bbox=(0, 50, 10, 40)), "south not above north"),
        (dict(bbox="1,2"), "bbox: expected four numbers"),
    ],
)
def test_a_filter_that_says_nothing_or_nonsense_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Where(**wrong)


def test_images_are_added_replaced_and_removed(kind, tmp_path):
    names, vectors = rows(60)
    tier = opened(kind, tmp_path / "index", names[:40], vectors[:40], pd.DataFrame({"source": ["a"] * 40}))
    tier.add(names[40:], vectors[40:])
    tier.add(names[:1], vectors[59:], pd.DataFrame({"source": ["new"]}))  # the first again, as another picture
    tier.remove(names[1:3])
    with pytest.raises(ValueError, match="nowhere.png and 1 more: not in the index; nothing was removed"):
        tier.remove([names[5], "nowhere.png", "nowhere2.png"])
    vectors[0] = vectors[59]
    left = [0, *range(3, 60)]
    for one in (tier, again(tier)):
        assert len(one) == 58
        for row in (0, 7, 45):
            own = one.search(vectors[[row]], 4)[0]
            assert {name for name, _ in own[:1]} <= {names[row], names[59]} and own[0][1] == pytest.approx(1, abs=1e-3)
            assert {name for name, _ in own[2:]} <= {names[place] for place in left}
        assert [name for name, _ in one.search(vectors[[0]], 5, Where(source="new"))[0]] == [names[0]]
        one.compact()


def test_exact_searches_prepare_the_vectors_once_where_memory_allows(tmp_path, monkeypatch):
    names, vectors = rows(300)
    query, where = rows(2, seed=3)[1], Where(split="test")
    tier = opened("exact", tmp_path / "index", names, vectors, places(300))
    first, some = tier.search(query, 5), tier.search(query, 5, where)
    kept = tier._prepared.kept
    assert tier.search(query, 5) == first and tier._prepared.kept is kept and len(kept) == 1
    tier.remove(names[:1])
    tier.add(names[:1], vectors[:1])
    assert {name for name, _ in tier.search(vectors[:1], 1)[0]} == {names[0]}  # of what it holds now
    monkeypatch.setattr(tiers, "MOST_PREPARED", 4 * 300 * DIM - 1)
    large = opened("exact", tmp_path / "large", names, vectors, places(300))
    assert large.search(query, 5) == first and large.search(query, 5, where) == some and large._prepared is None


def test_the_tiers_give_the_same_scores(tmp_path):
    names, vectors = rows(300)
    query = unit(np.random.default_rng(2).standard_normal((3, DIM))).astype(np.float32)
    exact, *others = (opened(kind, tmp_path / kind, names, vectors) for kind in KINDS)
    for other in others:
        assert other.search(query, 10) == exact.search(query, 10), other.kind


def test_an_index_of_codes_is_trained_tuned_and_grows(tmp_path, monkeypatch):
    names, vectors = rows(1200)
    tier = opened("lancedb", tmp_path / "index", names, vectors)
    monkeypatch.setattr(lance_tier, "INDEXED_FROM", 500)
    monkeypatch.setattr(lance_tier, "A_PARTITION", 300)
    tier.remove(names[:100])
    tier.compact()
    settings = json.loads((tmp_path / "index" / lance_tier.SEARCH).read_text())
    assert settings["trained_on"] == 1100 and settings["recall"] >= 0.95 and settings["nprobes"] <= 4
    more, later = rows(50, seed=1)
    tier.add(more, later)
    exact = opened("exact", tmp_path / "exact", names[100:] + more, np.concatenate([vectors[100:], later]))
    query = np.concatenate([vectors[200:230], later[:10]])
    wanted = [{name for name, _ in own} for own in exact.search(query, 10)]
    found = [{name for name, _ in own} for own in again(tier).search(query, 10)]
    assert np.mean([len(own & right) / 10 for own, right in zip(found, wanted)]) > 0.85
    assert [own[0][0] for own in tier.search(later[:5], 1)] == more[:5]


def test_the_cheapest_setting_that_finds_enough_is_taken():
    truth, settings = [[1, 2], [3, 4]], [{"n": 1}, {"n": 2}, {"n": 3}]
    found = {1: [[1, 9], [3, 9]], 2: [[2, 1], [3, 4]], 3: [[1, 2], [3, 4]]}
    assert cheapest(settings, lambda one: found[one["n"]], truth, 0.9) == {"n": 2, "recall": 1.0}
    assert cheapest(settings[:1], lambda one: found[one["n"]], truth, 0.9) == {"n": 1, "recall": 0.5}
    # What is found of either half counts, not of both together.
    assert cheapest([{"n": 3}], lambda one: found[one["n"]], truth, 0.7) == {"n": 3, "recall": 1.0}
    assert cheapest([{"n": 4}], lambda one: [[1, 2], [3, 9]], truth, 0.7) == {"n": 4, "recall": 0.5}


def test_half_of_the_tuning_queries_lie_as_far_off_the_images_as_texts():
    vectors = unit(np.random.default_rng(4).standard_normal((150, 512)) + 2)
    queries = tuning_queries(vectors.astype(np.float16))
    nearest = (queries @ vectors.T).max(axis=1)
    assert np.allclose(np.linalg.norm(queries, axis=1), 1, atol=1e-3)
    assert len(queries) == 100 and nearest[:50].min() > 0.999 and 0.5 < nearest[50:].min() < nearest[50:].max() < 0.8


def test_blocks_give_what_all_at_once_gives():
    _, vectors = rows(300)
    query = unit(np.random.default_rng(3).standard_normal((4, DIM)))
    scores, found = nearest_of_blocks(query, [vectors[:7], vectors[7:200], vectors[200:]], 10)
    assert np.array_equal(found, np.argsort(-(query @ vectors.astype(np.float64).T), axis=1, kind="stable")[:, :10])
    assert (np.diff(scores, axis=1) <= 0).all()


FILL = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_tiers
kind, folder, moment = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
tier = test_tiers.opened(kind, folder)
tier.recall = 1.0  # counts for lancedb: that it was tuned in time must not cost the test what it looks for
test_tiers.lance_tier.INDEXED_FROM, test_tiers.lance_tier.A_PARTITION = 300, 100
for number in range(10_000):
    names, vectors = test_tiers.rows(100, number)
    tier.add(names, vectors)
    if number > 2:
        tier.remove(names[:1])
        print("removed", number, flush=True)
    print("added", number, flush=True)
    if number == 4 and moment == "compacting":
        print("compacting", 0, flush=True)
        tier.compact()
"""


@pytest.mark.parametrize("moment", ["adding", "compacting"])
def test_a_kill_loses_nothing_that_was_acknowledged(kind, tmp_path, moment):
    if kind == "exact" and moment == "compacting":
        pytest.skip("there is nothing to compact")
    folder = tmp_path / "index"
    command = [sys.executable, "-c", FILL.format(tests=str(PROJECT / "tests")), kind, str(folder), moment]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=PROJECT) as running:
        said = []
        while (line := running.stdout.readline().split()) and len(said) < 100:
            said.append((line[0], int(line[1])))
            if said[-1] == (("added", 7) if kind == "exact" or moment == "adding" else ("compacting", 0)):
                time.sleep(0.05)  # into what comes next
                running.send_signal(signal.SIGKILL)
                break
        said += [(one.split()[0], int(one.split()[1])) for one in running.stdout.read().splitlines()]
    assert running.returncode == -signal.SIGKILL
    added, removed = ([number for what, number in said if what == one] for one in ("added", "removed"))
    tier = read(kind, folder)
    assert 100 * len(added) - len(removed) <= len(tier) <= 100 * (len(added) + 1)
    for number in added:
        names, vectors = rows(100, number)
        assert tier.search(vectors[[50]], 1)[0][0][0] == names[50]
    for number in removed:
        assert rows(100, number)[0][0] not in {name for name, _ in tier.search(rows(100, number)[1][:1], 5)[0]}
    tier.add(["after.png"], rows(1, 99)[1])
    assert tier.search(rows(1, 99)[1], 1)[0][0][0] == "after.png"


def test_an_index_whose_tuning_was_cut_short_is_passed_by(tmp_path, monkeypatch):
    names, vectors = rows(400)
    tier = opened("lancedb", tmp_path / "index", names, vectors)
    monkeypatch.setattr(lance_tier, "INDEXED_FROM", 300)
    monkeypatch.setattr(LanceTier, "_tune", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        tier.compact()
    tier = again(tier)
    assert any(index.name == "vector_idx" for index in tier.table.list_indices())
    assert [own[0][0] for own in tier.search(vectors, 1)] == names


def test_two_processes_that_change_an_exact_index_lose_nothing(tmp_path):
    names, vectors = rows(20)
    folder = tmp_path / "index"
    one = opened("exact", folder, names[:5], vectors[:5])
    other = read("exact", folder)
    one.add(names[5:8], vectors[5:8])
    one.remove(names[:1])
    other.add(names[8:10], vectors[8:10])
    assert read("exact", folder).names == other.names == names[1:10]
    with pytest.raises(ValueError, match="0/0.png: not in the index"):
        read("exact", folder).remove(names[:1])


def test_an_index_behind_a_link_changes_where_it_lies(tmp_path):
    names, vectors = rows(6)
    opened("exact", tmp_path / "real", names[:4], vectors[:4])
    (tmp_path / "link").symlink_to(tmp_path / "real")
    read("exact", tmp_path / "link").add(names[4:], vectors[4:])
    assert (tmp_path / "link").is_symlink() and read("exact", tmp_path / "real").names == names


def test_boxes_over_the_date_line_are_found(kind, tmp_path):
    names, vectors = rows(3)
    facts = pd.DataFrame({"west": [179.0, 10, 170], "east": [-179.0, 12, 175], "south": 0.0, "north": 1.0})
    tier = opened(kind, tmp_path / "index", names, vectors, facts)
    for box, found in [
        ((178, -5, -178, 5), {0}),
        ((-179.5, 0, -170, 1), {0}),
        ((160, 0, 178, 1), {2}),
        ((160, 0, 180, 1), {0, 2}),
    ]:
        assert {name for name, _ in tier.search(vectors[:1], 3, Where(bbox=box))[0]} == {names[one] for one in found}


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(6):
        pixels = np.full((8, 8, 3), 20, np.uint8)
        pixels[..., number % 3] = 120 + 10 * number
        Image.fromarray(pixels).save(folder / f"{number}.png")
    table = {
        "image": [f"{n}.png" for n in range(6)],
        "source": ["a", "b"] * 3,
        "longitude": range(6),
        "latitude": range(6),
    }
    pd.DataFrame(table).to_csv(tmp_path / "facts.csv", index=False)
    return folder


def test_from_a_folder_of_pictures_to_a_search(kind, pictures, tmp_path, monkeypatch, capsys):
    """By the command: embedded, searched by text with filters, added to, taken from, compacted."""
    needed(kind)
    monkeypatch.setattr("rsvlm.models.zoo.load_encoder", lambda *_: ColourEncoder())
    monkeypatch.setattr("rsvlm.models.zoo.load_encoder", lambda *_: ColourEncoder())
    index, out = tmp_path / "index", tmp_path / "hits.csv"

    def run(*arguments) -> str:
        done = CliRunner().invoke(app, [str(one) for one in arguments])
        assert done.exit_code == 0, (done.output, done.exception)
        return done.output

    run("embed", "colour", pictures, "--out", index, "--tier", kind, "--facts", tmp_path / "facts.csv")

    def found(*options) -> list[str]:
        run("search", index, "Red", "--out", out, *options)
        return [Path(name).name for name in pd.read_csv(out)["image"]]

    assert found()[:2] == ["3.png", "0.png"]
    assert found("--source", "a")[0] == "0.png" and len(found("--source", "a")) == 3
    assert sorted(found("--bbox=0.5,0,3.5,2.5")) == ["1.png", "2.png"]
    run("index", "remove", index, pictures / "3.png")
    assert found("-k", "1") == ["0.png"]
    assert "1 images added; 6 images" in run("index", "add", index, pictures / "3.png")
    run("index", "compact", index)
    assert found("-k", "1") == ["3.png"] and "3.png" not in found("--source", "b")  # nothing is known of it now
    for arguments, message in (
        (["search", index, "Red", "--split", "test"], "no image of this index has a split"),
        (["search", index, "Red", "--bbox", "1,2"], "--bbox: expected four numbers"),
        (["index", "remove", index, "x.png"], "x.png: not in the index"),
        (["embed", "colour", pictures, "--out", tmp_path / "new", "--facts", pictures / "0.csv"], "no such file"),
    ):
        with pytest.raises(SystemExit) as end:
            main([str(one) for one in arguments])
        said = capsys.readouterr().err
        assert end.value.code == 1 and message in said and said.count("\n") == 1
    other = ColourEncoder(size=8)
    with pytest.raises(ValueError, match="made with another encoder"):
        rsvlm.load_index(index, other)
    with pytest.raises(ValueError, match="holds an index already" if kind == "exact" else "another tier"):
        rsvlm.build_index(ColourEncoder(), pictures, tier="faiss" if kind == "exact" else "exact", folder=index)
    assert len(rsvlm.load_index(index)) == 6


@pytest.mark.parametrize("what", ["photo.tif", "config.json"])  # the second one a model's, say
def test_what_a_folder_holds_is_never_lost_to_an_index(kind, pictures, tmp_path, capsys, what):
    needed(kind)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / what).write_text('{"model_type": "clip"}')
    told = "mine: is there already and holds no index; give another folder"
    with pytest.raises(SystemExit):
        main(["embed", "random:clip", str(pictures), "--out", str(tmp_path / "mine"), "--tier", kind])
    assert told in capsys.readouterr().err
    with pytest.raises(ValueError, match=told):
        rsvlm.build_index(ColourEncoder(), pictures, tier=kind, folder=tmp_path / "mine")
    if kind == "exact":
        made = rsvlm.build_index(ColourEncoder(), pictures)
        with pytest.raises(ValueError, match=told):
            made.save(tmp_path / "mine")
        made.save(tmp_path / "new")
        made.save(tmp_path / "new")  # another index of its kind gives way
    assert [path.name for path in (tmp_path / "mine").iterdir()] == [what]


def test_facts_are_a_file_or_a_table_and_of_the_images(pictures, tmp_path, monkeypatch):
    table = pd.DataFrame({"image": [f"{n}.png" for n in range(6)], "source": ["a", "b"] * 3})
    table.to_csv(tmp_path / "facts.csv", index=False)
    for facts in (table, tmp_path / "facts.csv", str(tmp_path / "facts.csv"), read_facts(tmp_path / "facts.csv")):
        index = rsvlm.build_index(ColourEncoder(), pictures, facts=facts)
        found = index.search("red", where=Where(source="b"))["image"]
        assert sorted(Path(name).name for name in found) == ["1.png", "3.png", "5.png"]
    monkeypatch.setattr(ColourEncoder, "image_features", None)  # it is told before anything is encoded
    for facts, told in [
        (
            table.assign(image="other/" + table["image"] + ".tif"),
            "facts: nothing is known of any of 6 images, .*0.png ...; it tells of other/0.png.tif",
        ),
        (table.drop(columns="image"), "facts: the column image and one of source"),
    ]:
        with pytest.raises(ValueError, match=told):
            rsvlm.build_index(ColourEncoder(), pictures, facts=facts)
        with pytest.raises(ValueError, match=told):
            index.add(pictures, facts=facts)


def test_an_index_on_disk_goes_on_where_it_stopped(pictures, tmp_path, monkeypatch):
    pytest.importorskip("lancedb", reason="the extra lancedb is not installed")
    monkeypatch.setattr("rsvlm.models.pictures.A_BLOCK", 2)
    looked, encoder = [], ColourEncoder()
    encoder.image_features = lambda pixels, grid=0: (looked.append(len(pixels)), (pixels.mean((-2, -1)), None))[1]
    (pictures / "4.png").rename(pictures / "4.kept")
    (pictures / "4.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="4.png"):
        rsvlm.build_index(encoder, pictures, tier="lancedb", folder=tmp_path / "index")
    assert sum(looked) == 4
    with pytest.raises(ValueError, match="was not finished"):
        rsvlm.load_index(tmp_path / "index", encoder)
    (pictures / "4.kept").rename(pictures / "4.png")
    for other in ("exact", "faiss"):  # what was embedded is not lost to another tier
        needed(other)
        with pytest.raises(ValueError, match="holds an index of another tier"):
            rsvlm.build_index(encoder, pictures, tier=other, folder=tmp_path / "index")
    with pytest.raises(ValueError, match="with other settings"):
        rsvlm.build_index(encoder, pictures, tier="lancedb", folder=tmp_path / "index", capitalise=False)
    assert len(rsvlm.build_index(encoder, pictures, tier="lancedb", folder=tmp_path / "index")) == 6
    assert sum(looked) == 6


def test_a_missing_package_and_damage_are_told_in_one_sentence(pictures, tmp_path, monkeypatch):
    pytest.importorskip("lancedb", reason="the extra lancedb is not installed")
    index = tmp_path / "index"
    rsvlm.build_index(ColourEncoder(), pictures, tier="lancedb", folder=index)
    for file in sorted((index / "images.lance").rglob("*")):
        if file.is_file():
            kept = file.read_bytes()
            file.write_bytes(kept[: len(kept) // 2])
            try:
                rsvlm.load_index(index, ColourEncoder()).search("Red")
            except ValueError as error:
                assert "images.lance: the table is damaged" in str(error) and "\n" not in str(error)
            file.write_bytes(kept)
    (index / "config.json").write_text(json.dumps({"tier": "gold"}))
    with pytest.raises(ValueError, match="config.json: the index is damaged"):
        rsvlm.load_index(index, ColourEncoder())
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(ModuleNotFoundError, match="the tier lancedb needs lancedb: python -m pip install lancedb"):
        rsvlm.build_index(ColourEncoder(), pictures, tier="lancedb", folder=tmp_path / "other")


def test_a_table_of_facts_that_is_none_is_refused(tmp_path):
    for text, message in (
        ("image,colour\na,red\n", "the column image and one of source"),
        ("image,source\na,x\na,y\n", "the image a stands there twice"),
        ("image,date\na,soon\n", "'soon' is no date"),
        ("image,west\na,far\n", "west: expected degrees"),
    ):
        (tmp_path / "facts.csv").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_facts(tmp_path / "facts.csv")


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="how much memory is held is asked of Linux")
def test_prepared_vectors_lie_in_memory_once():
    """What the first search leaves of 100,000 x 512 numbers in float16: 4 bytes a number."""
    program = """
import re
from pathlib import Path
import numpy as np, torch
from rsvlm.models.tiers import ExactTier
torch.set_num_threads(2)
def held(): return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1e3
draw = np.random.default_rng(0)
def tier(rows):
    vectors = draw.standard_normal((rows, 512), dtype=np.float32).astype(np.float16)
    return ExactTier(list(map(str, range(rows))), vectors)
query = draw.standard_normal((2, 512), dtype=np.float32)
tier(5000).search(query, 3)
large = tier(100_000); before = held()
large.search(query, 3); print(held() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 320, "megabytes; 205 are kept; joined from pieces they left 370 to 660"
