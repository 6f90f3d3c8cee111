"""An archive's windows in a tier: the answers of a search that reads every file, and nothing stale among them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import shapely
from test_scenes_archive import SMALL, MeanColour, collection  # noqa: F401
from test_tiers import needed

from rsvlm.data.rasters.windows import Window
from rsvlm.models.lance_tier import LanceTier
from rsvlm.models.queries import Without
from rsvlm.scenes import archive_search, window_index
from rsvlm.scenes.archive import open_archive
from rsvlm.scenes.archive_embedding import embed_archive, load_archive
from rsvlm.scenes.archive_search import rank_scenes, search_archive
from rsvlm.scenes.window_files import load_scene_embeddings
from rsvlm.scenes.window_index import AGAIN, JOURNAL, WINDOWS

COLUMNS = ["scene", "left", "top", "level"]


@pytest.fixture(scope="module")
def listed(collection):  # noqa: F811
    return open_archive(collection)


@pytest.fixture(scope="module")
def embedded(listed, tmp_path_factory):
    return embed_archive(MeanColour(), listed, tmp_path_factory.mktemp("exact"), **SMALL)


@pytest.fixture(params=["faiss", "lancedb"])
def kind(request) -> str:
    needed(request.param)
    return request.param


def copied(embedded, tmp_path: Path) -> Path:
    return Path(shutil.copytree(embedded.place, tmp_path / "archive"))


def indexed(embedded, listed, tmp_path: Path, kind: str):
    """The archive with a tier, made of the files that are there."""
    return embed_archive(MeanColour(), listed, copied(embedded, tmp_path), tier=kind, **SMALL)


@pytest.mark.parametrize("rows", [[], [0], [3, 4, 34]])
def test_some_rows_of_a_file_are_those_of_the_whole(embedded, rows):
    file = Path(embedded.place) / embedded.scenes["file"][0]
    whole, some = load_scene_embeddings(file), load_scene_embeddings(file, rows)
    assert np.array_equal(some.vectors, whole.vectors[rows]) and some.meta == whole.meta
    assert some.table.crs == whole.table.crs and some.table.geometry.tolist() == whole.table.geometry[rows].tolist()
    columns = [name for name in whole.table if name != "geometry"]
    assert some.table[columns].equals(whole.table[columns].iloc[rows].reset_index(drop=True))
    with pytest.raises(ValueError, match="damaged"):
        load_scene_embeddings(file, [10_000])


def test_a_tier_finds_what_reading_every_file_finds(embedded, listed, tmp_path, kind, monkeypatch):
    made, read = indexed(embedded, listed, tmp_path, kind), []
    before = {path: path.stat().st_mtime_ns for path in Path(made.place).rglob("*") if path.is_file()}
    assert made.windows is not None and len(made.windows.tier) == embedded.scenes["windows"].sum()
    west, south, east, north = embedded.scenes.set_index("scene").geometry["west"].bounds
    half = ((west + east) / 2, south, east, north)
    original = archive_search.load_scene_embeddings
    for query, k, how in [
        ("blue", 1, {}),
        ("red", 2, {}),
        ("red", 200, {}),  # more than there are
        ("red", 4, {"platform": "two"}),
        ("green", 1, {"end": "2023"}),
        ("blue", 4, {"bbox": half}),
        ("blue", 4, {"geometry": shapely.box(*half).buffer(1e-4)}),
        ("red", 4, {"platform": "three"}),
    ]:
        wanted = search_archive(embedded, query, MeanColour(), k=k, **how)
        with monkeypatch.context() as patch:
            patch.setattr(
                archive_search,
                "load_scene_embeddings",
                lambda file, rows=None: read.append(rows) or original(file, rows),
            )
            found = search_archive(made, query, MeanColour(), k=k, **how)
        assert len(found) == len(wanted) and found["rank"].tolist() == wanted["rank"].tolist()
        np.testing.assert_allclose(found["score"].astype(float), wanted["score"].astype(float), atol=1e-6)
        sure = wanted["score"].duplicated(keep=False) | (wanted["score"] < 0.5)  # of equals any may come
        assert found[COLUMNS][~sure].equals(wanted[COLUMNS][~sure])
        assert found["geometry"][~sure].geom_equals_exact(wanted["geometry"][~sure], 1e-9).all()
    assert None not in read, "a file was read whole"
    assert before == {path: path.stat().st_mtime_ns for path in Path(made.place).rglob("*") if path.is_file()}
    ranked, all_of_them = (rank_scenes(one, "red", MeanColour()) for one in (made, embedded))
    assert ranked["scene"].tolist() == all_of_them["scene"].tolist() and len(ranked) == 4
    hit = search_archive(made, "blue", MeanColour(), k=1).iloc[0]
    assert search_archive(made, hit, k=1)[COLUMNS].iloc[0].tolist() == hit[COLUMNS].tolist()


def test_an_archive_goes_on_with_its_tier(embedded, listed, tmp_path, kind, monkeypatch):
    made = indexed(embedded, listed, tmp_path, kind)
    with monkeypatch.context() as patch:
        for name in ("write_tier", "_update_table"):
            patch.setattr(window_index, name, None)  # nothing is made anew
        assert embed_archive(MeanColour(), listed, made.place, **SMALL).windows.keys == made.windows.keys
    taken = []
    original = window_index._blocks
    monkeypatch.setattr(window_index, "_blocks", lambda folder, row: taken.append(row.scene) or original(folder, row))
    fewer = embed_archive(MeanColour(), listed.filter(scene=["east", "west"]), made.place, **SMALL)
    assert len(fewer.windows.tier) == fewer.scenes["windows"].sum() == 90
    assert set(search_archive(fewer, "green", MeanColour(), k=9)["scene"]) <= {"east", "west"}
    assert taken == ([] if kind == "lancedb" else ["east", "west"])  # a table gives up the others alone
    with_all = embed_archive(MeanColour(), listed, made.place, **SMALL)
    assert search_archive(with_all, "green", MeanColour(), k=1)["scene"].tolist() == ["south"]
    without = embed_archive(MeanColour(), listed, made.place, tier="exact", **SMALL)
    assert without.windows is None and not (Path(made.place) / WINDOWS).exists()


def test_a_killed_run_goes_on_behind_the_scenes_that_were_whole(embedded, listed, tmp_path, monkeypatch):
    needed("lancedb")
    folder, taken, original = copied(embedded, tmp_path), [], LanceTier.replace_source

    def dies(tier, source, blocks):
        taken.append(source)
        blocks = list(blocks)
        original(tier, source, [(names[:3], rows[:3], facts[:3]) for names, rows, facts in blocks])
        if len(taken) == 3:
            raise KeyboardInterrupt  # in the middle of the third
        original(tier, source, blocks)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LanceTier, "replace_source", dies)
        embed_archive(MeanColour(), listed, folder, tier="lancedb", **SMALL)
    assert (folder / WINDOWS / JOURNAL).is_file() and load_archive(folder).windows is None  # every file is read
    with (folder / WINDOWS / JOURNAL).open("a") as file:
        file.write('{"torn')
    again = []
    monkeypatch.setattr(LanceTier, "replace_source", lambda *a: again.append(a[1]) or original(*a))
    made = embed_archive(MeanColour(), listed, folder, **SMALL)
    assert again == [taken[2], *(file for file in made.scenes["file"] if file not in taken)]
    assert len(made.windows.tier) == made.scenes["windows"].sum() and not (folder / WINDOWS / JOURNAL).exists()


def test_windows_that_changed_since_are_told(embedded, listed, tmp_path, kind):
    made = indexed(embedded, listed, tmp_path, kind)
    other = embed_archive(MeanColour(), listed, tmp_path / "other", **SMALL | {"sizes": (12,)})
    for file in other.scenes["file"]:
        shutil.copy(Path(other.place) / file, Path(made.place) / file)
    with pytest.raises(ValueError, match=f"an index older than the windows of .*; {AGAIN}"):
        search_archive(load_archive(made.place), "blue", MeanColour(), k=3)
    more = load_archive(made.place)
    more.windows.keys.popitem()
    with pytest.raises(ValueError, match="an index without the windows of"):
        search_archive(more, "blue", MeanColour(), k=3)


def test_a_tier_that_is_none_is_refused(listed, tmp_path):
    with pytest.raises(ValueError, match="tier: 'gold' is none of exact, faiss, lancedb"):
        embed_archive(MeanColour(), listed, tmp_path, tier="gold", **SMALL)


def test_a_hit_without_something_is_searched_in_an_archive(embedded, listed, tmp_path, kind):
    made = indexed(embedded, listed, tmp_path, kind)
    last = search_archive(embedded, "red", MeanColour(), k=50).iloc[-1]  # not of the first scene alone
    for archive in (embedded, made):
        found = search_archive(archive, Without(last, "blue"), MeanColour(), k=3)
        assert len(found) == 3 and found["score"].is_monotonic_decreasing
        with pytest.raises(ValueError, match="a Window belongs to one scene"):
            search_archive(archive, Without("red", Window(0, 0, 8, 8)), MeanColour())


def test_a_damaged_tier_is_made_anew_when_the_archive_is_embedded_again(embedded, listed, tmp_path, kind, caplog):
    made = indexed(embedded, listed, tmp_path, kind)
    windows = Path(made.place) / WINDOWS
    if kind == "faiss":
        (windows / "index.faiss").write_bytes((windows / "index.faiss").read_bytes()[:100])
    else:
        shutil.rmtree(windows / "images.lance")
    with pytest.raises(ValueError, match="embed the archive again"):
        search_archive(load_archive(made.place), "blue", MeanColour())
    if kind == "lancedb":  # killed while it was changed, and then lost
        (windows / "config.json").rename(windows / "gone.json")
        (windows / JOURNAL).write_text("".join(f'{{"{file}": "key"}}\n' for file in embedded.scenes["file"]))
    again = embed_archive(MeanColour(), listed, Path(made.place), **SMALL)
    wanted = search_archive(embedded, "blue", MeanColour(), k=4)
    assert search_archive(again, "blue", MeanColour(), k=4)[COLUMNS].equals(wanted[COLUMNS])
