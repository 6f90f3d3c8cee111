"""Windows over scenes and their embeddings: known places, left-out windows, kills, files that others read."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import geopandas
import numpy as np
import pyarrow.parquet as parquet
import pytest
import rasterio
import shapely
from scene_case import TURNED, UTM, ColourEncoder, green_with_red, write_raster

from rsvlm.data.rasters.files import SceneError
from rsvlm.data.rasters.scene import open_scene
from rsvlm.data.rasters.windows import Window
from rsvlm.scenes import embedding, window_files
from rsvlm.scenes.embedding import embed_scene
from rsvlm.scenes.window_files import load_scene_embeddings
from rsvlm.scenes.window_plans import count_windows, plan_windows, share_within

TESTS = Path(__file__).parent


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RSVLM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def encoder():
    return ColourEncoder()


@pytest.fixture
def red_square(tmp_path):
    """A scene of 200 x 120 with a red square at (96, 32), 32 pixels wide."""
    return write_raster(tmp_path / "scene.tif", green_with_red(200, 120, 96, 32, 32), crs="EPSG:32633", transform=UTM)


def covers(planned: list[tuple[int, Window]], width: int, height: int) -> np.ndarray:
    counts = np.zeros((height, width), int)
    for _, (left, top, across, down) in planned:
        assert 0 <= left and 0 <= top and left + across <= width and top + down <= height
        counts[top : top + down, left : left + across] += 1
    return counts


def test_windows_cover_the_scene_and_the_last_are_shifted_inward():
    planned = plan_windows(10, 7, (4,), 0.5)
    assert planned[:5] == [(0, Window(left, 0, 4, 4)) for left in (0, 2, 4, 6)] + [(0, Window(0, 2, 4, 4))]
    assert [window.top for _, window in planned[::4]] == [0, 2, 3]
    assert covers(planned, 10, 7).min() == 1
    assert len(plan_windows(10, 7, (4,), 0)) == 6


def test_levels_are_numbered_by_size_and_none_says_the_same_twice():
    planned = plan_windows(100, 60, (32, 64, 128, 256), 0.25)
    assert {level: (window.width, window.height) for level, window in planned} == {
        0: (32, 32),
        1: (64, 60),
        2: (100, 60),
    }
    assert sum(level == 2 for level, _ in planned) == 1  # and 256 sees no more than 128


@pytest.mark.parametrize("width, height", [(1, 1), (300, 1), (1, 300), (5, 256), (257, 255)])
def test_small_and_thin_scenes_have_windows_of_what_there_is(width, height):
    planned = plan_windows(width, height, (256,), 0.5)
    assert covers(planned, width, height).min() >= 1
    assert all(window[2:] == (min(width, 256), min(height, 256)) for _, window in planned)


@pytest.mark.parametrize(
    "sizes, overlap, said",
    [((), 0.5, "sizes"), ((0,), 0.5, "sizes"), ((2.5,), 0.5, "sizes"), ((True,), 0.5, "sizes"), ((8,), 1, "overlap")]
    + [((8,), -0.1, "overlap"), ((8,), float("nan"), "overlap")],
)
def test_windows_that_cannot_be(sizes, overlap, said):
    with pytest.raises(ValueError, match=said):
        plan_windows(10, 10, sizes, overlap)


@pytest.mark.parametrize("case", [(200, 120, 32, 0.5), (201, 119, 32, 0.3), (10, 500, 64, 0.9), (1, 1, 5, 0.0)])
def test_windows_are_counted_without_being_made(case):
    *sides, size, overlap = case
    assert count_windows(*case) == len(plan_windows(*sides, [size], overlap))
    with pytest.raises(ValueError, match="overlap"):
        count_windows(9, 9, 3, 1.0)


def test_a_scene_becomes_a_file_that_geopandas_reads(encoder, red_square, tmp_path):
    with open_scene(red_square) as scene:
        made = embed_scene(encoder, scene, tmp_path / "out" / "scene.parquet", sizes=(32, 64))
        polygons = [scene.polygon(made.window(row)) for row in range(len(made))]
    planned = plan_windows(200, 120, (32, 64), 0.5)
    assert [(level, made.window(row)) for row, level in enumerate(made.table["level"])] == planned
    assert all(made.table.geometry.iloc[row].equals(polygon) for row, polygon in enumerate(polygons))
    assert made.vectors.dtype == np.float32 and np.allclose(np.linalg.norm(made.vectors, axis=1), 1)
    square = planned.index((0, Window(96, 32, 32, 32)))
    assert np.array_equal(made.vectors[square], [1, 0, 0])
    assert (made.vectors[:, 0] > 0.999).sum() == 1
    read = geopandas.read_parquet(tmp_path / "out" / "scene.parquet")
    assert read.crs.to_epsg() == 32633 and read.geometry.equals(made.table.geometry)
    assert np.array_equal(np.stack(read["embedding"]), made.vectors)
    assert set(read["scene"]) == {"scene"} and (read["valid"] == 1).all() and read["date"].isna().all()
    assert made.meta["skipped"] == {"nodata": 0, "outside": 0} and made.meta["planned"] == len(planned)
    told = made.meta["scene"]
    assert told["transform"] == list(UTM)[:6] and rasterio.crs.CRS.from_wkt(told["crs"]).to_epsg() == 32633
    kind = parquet.read_schema(tmp_path / "out" / "scene.parquet").field("embedding").type
    assert str(kind).startswith("fixed_size_list<") and kind.list_size == 3
    geo = json.loads(parquet.read_metadata(tmp_path / "out" / "scene.parquet").metadata[b"geo"])
    assert geo["columns"]["geometry"]["bbox"] == [500_000, 4_998_800, 502_000, 5_000_000]


def test_a_turned_scene_has_turned_windows(encoder, tmp_path):
    path = write_raster(tmp_path / "a.tif", green_with_red(64, 64, 0, 0, 32), crs="EPSG:32633", transform=TURNED)
    with open_scene(path) as scene:
        made = embed_scene(encoder, scene, tmp_path / "a.parquet", sizes=(32,), overlap=0)
        assert made.table.geometry.iloc[3].equals(scene.polygon(Window(32, 32, 32, 32)))
    assert made.vectors[:, 0].round(6).tolist() == [1, 0, 0, 0]


def test_without_a_crs_places_are_pixels(encoder, tmp_path):
    path = write_raster(tmp_path / "a.tif", green_with_red(50, 40, 0, 0, 32))
    with open_scene(path) as scene:
        made = embed_scene(encoder, scene, tmp_path / "a.parquet", sizes=(32,), overlap=0)
    assert made.table.crs is None and made.meta["scene"]["crs"] is None
    assert made.table.geometry.iloc[-1].bounds == (18, 8, 50, 40)
    assert geopandas.read_parquet(tmp_path / "a.parquet").crs is None


def test_the_date_of_a_scene(encoder, tmp_path):
    path = write_raster(tmp_path / "a.tif", green_with_red(32, 32, 0, 0, 8))
    with rasterio.open(path, "r+") as file:
        file.update_tags(TIFFTAG_DATETIME="2021:03:04 05:06:07")
    with open_scene(path) as scene:
        made = embed_scene(encoder, scene, tmp_path / "a.parquet", sizes=(32,))
    assert made.table["date"].iloc[0].isoformat() == "2021-03-04T05:06:07+00:00"


@pytest.mark.parametrize("width, height", [(20, 12), (300, 1), (1, 70)])
@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_scenes_smaller_than_a_window(resize, width, height, tmp_path):
    pixels = np.zeros((3, height, width), np.uint8)
    pixels[2] = 90
    path = write_raster(tmp_path / "a.tif", pixels, crs="EPSG:32633", transform=UTM)
    with open_scene(path) as scene:
        made = embed_scene(ColourEncoder(resize=resize), scene, tmp_path / "a.parquet", sizes=(64,))
    assert made.window(0)[2:] == (min(width, 64), min(height, 64))
    assert np.allclose(made.vectors, [0, 0, 1])


def test_windows_without_data_are_counted(encoder, tmp_path):
    pixels = green_with_red(128, 64, 0, 0, 16).astype(np.uint16)
    pixels[:, :, 40:] = 9999
    path = write_raster(tmp_path / "a.tif", pixels, nodata=9999)
    with open_scene(path, stretch=(0, 255)) as scene:
        made = embed_scene(encoder, scene, tmp_path / "a.parquet", sizes=(32,), overlap=0, min_valid=0.5)
        assert made.meta["skipped"] == {"nodata": 6, "outside": 0} and len(made) == 2
        made = embed_scene(encoder, scene, tmp_path / "a.parquet", sizes=(32,), overlap=0, min_valid=0.2)
        assert made.meta["skipped"] == {"nodata": 4, "outside": 0}
        assert made.table["valid"].tolist() == [1, 0.25, 1, 0.25]
        assert np.allclose(made.vectors[1], [0, 1, 0])  # what is no data has no colour
        made = embed_scene(encoder, scene, tmp_path / "a.parquet", sizes=(32,), overlap=0, min_valid=0)
        assert len(made) == 4  # not those without any


def test_a_scene_without_data_leaves_nothing(encoder, tmp_path):
    path = write_raster(tmp_path / "a.tif", np.zeros((3, 64, 64), np.uint8), nodata=0)
    with open_scene(path, stretch=(0, 255)) as scene, pytest.raises(SceneError, match="a.tif: none of its 9 windows"):
        embed_scene(encoder, scene, tmp_path / "out.parquet", sizes=(32,))
    assert not (tmp_path / "out.parquet").exists() and not list((tmp_path / "cache").iterdir())


def test_within_an_array(encoder, red_square, tmp_path):
    mask = np.zeros((12, 20), bool)  # ten pixels a cell
    mask[:, 10:] = True
    with open_scene(red_square) as scene:
        made = embed_scene(encoder, scene, tmp_path / "a.parquet", sizes=(40,), overlap=0.5, within=mask)
    assert set(made.table["left"]) == {80, 100, 120, 140, 160}  # the first lies in it by half
    assert made.meta["skipped"] == {"nodata": 0, "outside": 4 * 5}


@pytest.mark.parametrize("transform", [UTM, TURNED])
def test_within_a_geometry_is_within_its_array(encoder, transform, tmp_path):
    path = write_raster(tmp_path / "a.tif", green_with_red(200, 120, 96, 32, 32), crs="EPSG:32633", transform=transform)
    mask = np.zeros((120, 200), bool)
    mask[17:90, 33:141] = True
    with open_scene(path) as scene:
        ground = scene.polygon(Window(33, 17, 108, 73))
        made = [
            embed_scene(encoder, scene, tmp_path / "a.parquet", sizes=(24,), within=within, min_valid=0.6)
            for within in (mask, ground)
        ]
        assert made[0].table["left"].tolist() == made[1].table["left"].tolist()
        share = [shapely.intersection(ground, place).area / place.area for place in made[1].table.geometry]
        assert min(share) >= 0.6 - 1e-9 and 0 < made[1].meta["skipped"]["outside"] < made[1].meta["planned"]
        with pytest.raises(SceneError, match="outside of what was asked for"):
            embed_scene(encoder, scene, tmp_path / "b.parquet", within=shapely.Point(0, 0).buffer(1))
        for wrong in (np.zeros((2, 2)), np.zeros(3, bool), "somewhere"):
            with pytest.raises(ValueError, match="within"):
                embed_scene(encoder, scene, tmp_path / "b.parquet", within=wrong)


def test_share_of_an_array_is_exact():
    draw = np.random.default_rng(0)

    class Scene:
        width, height, crs = 70, 40, None

    mask = draw.random((7, 13)) > 0.5
    fine = np.kron(mask, np.ones((400, 700), bool)).reshape(40, 70, 70, 130).mean((1, 3))  # of each pixel
    rows = np.array([[0, left, top, 9, 11] for left, top in zip(draw.integers(0, 61, 50), draw.integers(0, 29, 50))])
    truth = [fine[top : top + 11, left : left + 9].mean() for _, left, top, *_ in rows]
    assert np.allclose(share_within(rows, mask, Scene), truth, atol=1e-8)


def test_large_windows_are_read_no_finer_than_needed(red_square, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(embedding, "NATIVE", 40 * 40)
    with open_scene(red_square) as scene:
        whole = scene.read
        monkeypatch.setattr(scene, "read", lambda window, size: asked.append(size) or whole(window, size))
        made = embed_scene(ColourEncoder(16), scene, tmp_path / "a.parquet", sizes=(20, 100), overlap=0)
        embed_scene(ColourEncoder(16, "crop"), scene, tmp_path / "b.parquet", sizes=(200,), overlap=0)
    assert set(asked) == {(20, 20), (32, 32), (53, 32)}
    level = made.vectors[made.table["level"] == 1]
    assert np.allclose(level[0] / level[0, 1], [4 * 32 / (10_000 - 4 * 32), 1, 0], atol=2e-3)


def test_views_are_averaged(tmp_path, red_square):
    class Corner(ColourEncoder):
        def image_features(self, pixel_values, grid=0):
            return pixel_values[..., 0, 0], None

    path = write_raster(tmp_path / "a.tif", green_with_red(16, 16, 0, 0, 8))
    with open_scene(path) as scene:
        one, four = (
            embed_scene(Corner(), scene, tmp_path / f"{views}.parquet", sizes=(16,), views=views) for views in (1, 4)
        )
    assert np.allclose(one.vectors, [[1, 0, 0]])
    assert np.allclose(four.vectors, np.array([[1, 3, 0]]) / np.sqrt(10))


def test_done_already(encoder, red_square, tmp_path, monkeypatch):
    out, calls, encode = tmp_path / "a.parquet", [], embedding.encode_batch
    monkeypatch.setattr(embedding, "encode_batch", lambda *a: calls.append(1) or encode(*a))
    with open_scene(red_square) as scene:
        embed_scene(encoder, scene, out, sizes=(64,))
        count, before = len(calls), out.read_bytes()
        again = embed_scene(encoder, scene, out, sizes=(64,))
        assert len(calls) == count and len(again) == 18
        embed_scene(encoder, scene, out, sizes=(64,), overlap=0)
        assert len(calls) > count and out.read_bytes() != before
    assert not list((tmp_path / "cache").iterdir())


KILLED = """
import os, signal, sys
import rsvlm.scenes.embedding as embedding
from rsvlm.data.rasters.scene import open_scene
from scene_case import ColourEncoder

embedding.BLOCK = 8
encode, calls = embedding.encode_batch, []

def counted(*arguments):
    calls.append(1)
    if len(calls) > int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(*arguments)

embedding.encode_batch = counted
with open_scene(sys.argv[1]) as scene:
    embedding.embed_scene(ColourEncoder(), scene, sys.argv[2], sizes=(24, 48), batch_size=3)
print(len(calls))
"""


def test_killed_and_run_again_gives_the_same_bytes(red_square, tmp_path):
    def run(out: Path, calls: int) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-c", KILLED, str(red_square), str(out), str(calls)],
            capture_output=True, text=True, cwd=TESTS.parent, env={**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"},
        )  # fmt: skip

    whole, broken = tmp_path / "whole.parquet", tmp_path / "broken.parquet"
    done = run(whole, 10_000)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(tmp_path / "cache")
    for calls in (7, 20):
        assert run(broken, calls).returncode == -signal.SIGKILL
        assert not broken.exists() and list((tmp_path / "cache").rglob("*.npy"))
    again = run(broken, 10_000)
    assert int(again.stdout) < int(done.stdout) - 20
    assert whole.read_bytes() == broken.read_bytes()


def test_an_embedding_that_is_no_number_names_its_window(red_square, tmp_path):
    class Broken(ColourEncoder):
        def project_images(self, pooled):
            return torch_where_red(pooled)

    def torch_where_red(pooled):
        return pooled / (pooled[:, :1] < 0.7)

    with open_scene(red_square) as scene, pytest.raises(ValueError, match=r"scene.tif: .* window \(96, 32, 32, 32\)"):
        embed_scene(Broken(), scene, tmp_path / "a.parquet", sizes=(32,))
    assert not (tmp_path / "a.parquet").exists()


def test_settings_that_cannot_be(encoder, red_square, tmp_path):
    wrong = [dict(views=3), dict(batch_size=0), dict(min_valid=1.5), dict(precision="half"), dict(overlap=1.0)]
    with open_scene(red_square) as scene:
        for settings in wrong:
            with pytest.raises(ValueError, match=next(iter(settings))):
                embed_scene(encoder, scene, tmp_path / "a.parquet", **settings)
        with pytest.raises(ValueError, match="parquet"):
            embed_scene(encoder, scene, tmp_path / "a.tif")
        theirs = tmp_path / "theirs.parquet"
        geopandas.GeoDataFrame({"a": [1]}, geometry=[shapely.Point(0, 0)]).to_parquet(theirs)
        before = theirs.read_bytes()
        with pytest.raises(ValueError, match="theirs.parquet: is there already"):
            embed_scene(encoder, scene, theirs)
        assert theirs.read_bytes() == before
    assert red_square.stat().st_size and not (tmp_path / "a.parquet").exists()


def test_files_that_are_no_embeddings(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.parquet"):
        load_scene_embeddings(tmp_path / "none.parquet")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match="a.parquet: not a whole Parquet file"):
        load_scene_embeddings(tmp_path / "a.parquet")
    geopandas.GeoDataFrame({"a": [1]}, geometry=[shapely.Point(0, 0)]).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="b.parquet: no embeddings of a scene"):
        load_scene_embeddings(tmp_path / "b.parquet")


def test_a_file_told_from_a_root_has_the_same_bytes_wherever_that_lies(red_square, tmp_path):
    """Moved as a whole it finds scene and encoder; one that was written without a root keeps its paths as they are."""
    written = []
    for root in (tmp_path / "here", tmp_path / "far" / "away ü"):
        (root / "models").mkdir(parents=True)
        shutil.copy2(red_square, root / "scene.tif")
        encoder = ColourEncoder()
        encoder.name = str(root / "models")
        out = root / "data" / "earth" / "windows.parquet"
        with open_scene(root / "scene.tif") as scene:
            found = embed_scene(encoder, scene, out, sizes=(32,), root=root)
            assert embed_scene(encoder, scene, out, sizes=(32,), root=root).meta == found.meta
            plain = embed_scene(encoder, scene, root / "plain.parquet", sizes=(32,))
        assert (found.meta["encoder"], found.meta["scene"]["path"]) == (encoder.name, str(root / "scene.tif"))
        assert load_scene_embeddings(root / "plain.parquet").meta == plain.meta
        assert plain.meta["encoder"] == encoder.name and "root" not in plain.meta
        assert os.fsencode(root) in (root / "plain.parquet").read_bytes()
        written.append(out.read_bytes())
    assert written[0] == written[1] and os.fsencode(tmp_path) not in written[0]
    moved = (tmp_path / "here").rename(tmp_path / "moved")
    meta = load_scene_embeddings(moved / "data" / "earth" / "windows.parquet").meta
    assert (meta["encoder"], meta["scene"]["path"]) == (str(moved / "models"), str(moved / "scene.tif"))


def test_rows_are_written_and_read_by_groups(encoder, red_square, tmp_path, monkeypatch):
    for module in (embedding, window_files):
        monkeypatch.setattr(module, "BLOCK", 16)
    with open_scene(red_square) as scene:
        whole = embed_scene(encoder, scene, tmp_path / "a.parquet", sizes=(16,))
        monkeypatch.setattr(window_files, "A_GROUP", 40)
        parts = embed_scene(encoder, scene, tmp_path / "b.parquet", sizes=(16,))
    assert parquet.read_metadata(tmp_path / "b.parquet").num_row_groups == -(-len(whole) // 32)
    assert np.array_equal(whole.vectors, parts.vectors) and whole.table.equals(parts.table)
