"""Rasters as images of a study: what GDAL reads for Pillow, and sources that tell how their images are read."""

import hashlib
import json
import sys
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
from PIL import Image

from rsvlm.data import aggregate, duplicates, images
from rsvlm.data.boxes import image_size
from rsvlm.data.duplicates import take_fingerprint
from rsvlm.data.images import FULL_SIZE, ImageError, open_image
from rsvlm.data.packed import digest_of
from rsvlm.data.rasters.scene import open_scene
from rsvlm.data.recipes import Recipe, read_as, recipe_of, split_reading
from rsvlm.data.sources import parse_source
from rsvlm.data.table import load_table
from rsvlm.models.feature_shards import fingerprint_images
from rsvlm.scoring.image_matching import match_images
from rsvlm.viewing.page import ThumbnailCache

RANDOM = np.random.default_rng(0)
CHIP = RANDOM.integers(0, 4_000, (13, 24, 32), dtype=np.uint16)
RGB = RANDOM.integers(0, 256, (3, 24, 32), dtype=np.uint8)
READING = {"bands": [4, 3, 2], "stretch": [0, 3000]}


def write(path, values, **options):
    bands, height, width = values.shape
    options = {"driver": "GTiff", "dtype": values.dtype.name, "crs": "EPSG:32632"} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", width=width, height=height, count=bands, **options) as file:
            file.write(values)
    return path


def shown(chip, bands=(4, 3, 2), low=0, high=3000):
    values = chip[[band - 1 for band in bands]].astype(np.float32)
    return np.clip(np.rint((values - low) * 255 / (high - low)), 0, 255).astype(np.uint8).transpose(1, 2, 0)


def refusal(path):
    with pytest.raises(ImageError) as caught:
        open_image(path)
    return str(caught.value)


# How a path tells it


@pytest.mark.parametrize(("values", "text"), [
    (READING, "bands=4,3,2;stretch=0,3000"),
    ({"bands": "sentinel-2", "stretch": [0.5, 1e6]}, "bands=sentinel-2;stretch=0.5,1000000"),
    ({"bands": ["B04", "red edge", 2], "stretch": [[0, 1], [-2, 3], [4, 5]]}, "bands=B04,red edge,2;stretch=0,1,-2,3,4,5"),
    ({"bands": [1], "stretch": [-30, 0]}, "bands=1;stretch=-30,0"),
])  # fmt: skip
def test_a_path_tells_how_its_file_is_read(values, text):
    recipe = recipe_of(values)
    path = read_as(Path("folder.of::things/a.tif"), recipe)
    assert str(path) == f"folder.of::things/a.tif::{text}"
    assert split_reading(path) == (Path("folder.of::things/a.tif"), recipe)
    assert split_reading(Path("shards/a.tar::x/b.tif")) == (Path("shards/a.tar::x/b.tif"), None)
    assert split_reading(read_as(Path("shards/a.tar::x/b.tif"), recipe))[0] == Path("shards/a.tar::x/b.tif")


@pytest.mark.parametrize(("values", "said"), [
    ({}, "needs bands and stretch"), ({"bands": [4, 3, 2]}, "needs bands and stretch"),
    (READING | {"nodata": 0}, "needs bands and stretch"), (READING | {"bands": "sentinel"}, "did you mean 'sentinel-2'"),
    (READING | {"bands": [1, 2]}, "bands must be three"), (READING | {"bands": [0, 1, 2]}, "bands must be three"),
    (READING | {"bands": [1, 2, True]}, "bands must be three"), (READING | {"bands": ["a/b", 1, 2]}, "bands must be three"),
    (READING | {"bands": ["a;b", 1, 2]}, "bands must be three"), (READING | {"bands": ["7", 1, 2]}, "bands must be three"),
    (READING | {"bands": ["naip"]}, "stands without a list"), (READING | {"stretch": "percentile"}, "One stretch holds for all"),
    (READING | {"stretch": [3000, 0]}, "stretch must be [low, high]"), (READING | {"stretch": [0]}, "stretch must be"),
    (READING | {"stretch": [0, float("nan")]}, "stretch must be"), (READING | {"stretch": [[0, 1], [0, 1]]}, "stretch must be"),
    (READING | {"stretch": None}, "stretch must be"), (READING | {"stretch": "01"}, "stretch must be"),
])  # fmt: skip
def test_readings_that_cannot_be(values, said):
    source = {"name": "s", "format": "karpathy", "annotations": "d.json", "images": "imgs", "reading": values}
    with pytest.raises(ValueError) as caught:
        parse_source(source)
    assert str(caught.value).startswith("sources: s: ") and said in str(caught.value)


def test_a_source_tells_how_its_images_are_read():
    source = {"name": "s", "format": "karpathy", "annotations": "d.json", "images": "imgs", "reading": READING}
    assert recipe_of(parse_source(source).reading) == Recipe((4, 3, 2), ((0.0, 3000.0),))
    assert parse_source(source | {"reading": None}).reading is None


# Pictures of rasters that are told how to be read


def test_a_chip_of_many_bands(tmp_path):
    path = write(tmp_path / "a.tif", CHIP)
    text = refusal(path)
    assert "13 bands of uint16" in text and "`reading: {bands: [RED, GREEN, BLUE], stretch: [LOW, HIGH]}`" in text
    told = read_as(path, recipe_of(READING))
    assert np.array_equal(np.asarray(open_image(told)), shown(CHIP)) and open_image(str(told)).mode == "RGB"
    preset = read_as(path, recipe_of(READING | {"bands": "sentinel-2"}))
    assert np.array_equal(np.asarray(open_image(preset)), shown(CHIP))
    with open_scene(path, bands=[4, 3, 2], stretch=[0, 3000]) as scene:
        assert np.array_equal(np.asarray(open_image(told)), scene.read().pixels), "as a scene is read"
    bright, dark = write(tmp_path / "bright.tif", CHIP // 2 + 2_000), write(tmp_path / "dark.tif", CHIP // 20)
    means = [np.asarray(open_image(read_as(path, recipe_of(READING)))).mean() for path in (bright, dark)]
    assert means[0] > 200 and means[1] < 20, "bright stays bright and dark stays dark"


def test_chips_that_cannot_be_read_so(tmp_path):
    path = write(tmp_path / "a.tif", CHIP[:3])
    assert "there is no band 4; it has 3 bands" in refusal(read_as(path, recipe_of(READING)))
    assert "the preset 'landsat-8' knows files of" in refusal(
        read_as(path, recipe_of(READING | {"bands": "landsat-8"}))
    )
    path.write_bytes(path.read_bytes()[:900])
    assert "cannot be read" in refusal(read_as(path, recipe_of(READING | {"bands": [1]})))
    with pytest.raises(FileNotFoundError, match=r"none\.tif"):
        open_image(read_as(tmp_path / "none.tif", recipe_of(READING)))
    with pytest.raises(ImageError, match="a folder, not an image file"):
        open_image(read_as(tmp_path, recipe_of(READING)))


def test_a_chip_in_a_shard(tmp_path):
    path = write(tmp_path / "a.tif", CHIP)
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        tar.add(path, "x/a.tif")
    inside = read_as(Path(f"{tmp_path / 'train.tar'}::x/a.tif"), recipe_of(READING))
    assert np.array_equal(np.asarray(open_image(inside)), shown(CHIP))
    assert digest_of(inside) == digest_of(read_as(path, recipe_of(READING)))


def test_every_key_of_a_cache_knows_how_an_image_is_read(tmp_path):
    path = write(tmp_path / "a.tif", CHIP)
    one, other = (read_as(path, recipe_of(READING | {"stretch": [0, high]})) for high in (3000, 4000))
    plain = write(tmp_path / "plain.tif", RGB)
    assert len({digest_of(path), digest_of(one), digest_of(other)}) == 3
    assert len({fingerprint_images([str(own)]) for own in (path, one, other)}) == 3
    found = duplicates.fingerprint_images([one, other, plain], cache=tmp_path / "cache")
    assert not np.array_equal(found[0].grey, found[1].grey) and [own.path for own in found] == [one, other, plain]
    again = duplicates.fingerprint_images([other, one], cache=tmp_path / "cache")
    assert np.array_equal(again[0].grey, found[1].grey) and np.array_equal(again[1].grey, found[0].grey)
    made = ThumbnailCache(16, folder=tmp_path / "thumbnails").make([str(one), str(other)])
    assert made[str(one)] != made[str(other)]


def test_other_peoples_files_name_images_without_that(tmp_path):
    path = read_as(write(tmp_path / "a.tif", CHIP), recipe_of(READING))
    table = pd.DataFrame([{"image_id": "s/x.png", "source": "s", "path": str(path)}])
    by_hash = hashlib.sha256((tmp_path / "a.tif").read_bytes()).hexdigest()
    for name in ("a.tif", "a", by_hash):
        assert match_images([name], table).matched == {name: "s/x.png"}, name


def test_a_study_of_chips(tmp_path):
    folder = tmp_path / "s" / "imgs"
    folder.mkdir(parents=True)
    chips, entries = {}, []
    for number, split in enumerate(("train", "train", "val", "test")):
        name = f"{number}.tif"
        chips[name] = np.random.default_rng(number).integers(0, 4_000, (13, 24, 32), dtype=np.uint16)
        write(folder / name, chips[name])
        entries.append({"filename": name, "imgid": number, "split": split, "sentences": [{"raw": "a field ."}]})
    (tmp_path / "s" / "d.json").write_text(json.dumps({"images": entries}), encoding="utf-8")
    source = {"name": "s", "format": "karpathy", "annotations": "s/d.json", "images": "s/imgs"}
    options = {"data_root": str(tmp_path), "cache": tmp_path / "cache", "log": lambda line: None}
    with pytest.raises(ImageError, match=r"s: .*13 bands of uint16.*reading: \{bands"):
        aggregate.aggregate_sources([source], **options)
    rows, report = aggregate.aggregate_sources([source | {"reading": READING}], **options)
    assert report["sources"]["s"]["reading"] == "bands=4,3,2;stretch=0,3000"
    assert [row["image_id"] for row in rows] == ["s/3.tif", "s/0.tif", "s/1.tif", "s/2.tif"]
    assert (rows[0]["width"], rows[0]["height"]) == (32, 24)
    folders = {name: tmp_path / name for name in ("aggregated", "pages", "cards")}
    aggregate.write_aggregated(rows, report, **folders)
    table = load_table(tmp_path / "aggregated" / "images.parquet")
    for image_id, path in zip(table["image_id"], table["path"]):
        assert path.endswith(f"{Path(image_id).name}::bands=4,3,2;stretch=0,3000")
        assert np.array_equal(np.asarray(open_image(path)), shown(chips[Path(image_id).name]))


# What GDAL reads for Pillow


def test_jpeg_2000(tmp_path):
    exact = {"driver": "JP2OpenJPEG", "QUALITY": "100", "REVERSIBLE": "YES", "YCC": "NO"}
    colour, grey = write(tmp_path / "a.jp2", RGB, **exact), write(tmp_path / "b.jp2", RGB[:1], **exact)
    assert np.array_equal(np.asarray(open_image(colour)), RGB.transpose(1, 2, 0)) and open_image(colour).info == {}
    assert np.array_equal(np.asarray(open_image(grey)), RGB[[0, 0, 0]].transpose(1, 2, 0))
    assert image_size(colour) == (32, 24)
    two = write(tmp_path / "c.jp2", CHIP[:3], **exact)
    assert "3 bands of uint16; or give the source of a study `reading" in refusal(two)
    assert "JPEG 2000" in refusal(write(tmp_path / "d.jp2", CHIP[:4], **exact))
    told = read_as(two, recipe_of({"bands": [3, 2, 1], "stretch": [0, 3000]}))
    assert np.array_equal(np.asarray(open_image(told)), shown(CHIP, (3, 2, 1)))
    colour.write_bytes(colour.read_bytes()[:200])
    assert "GDAL says: " in refusal(colour)


def test_sizes_of_files_that_pillow_does_not_open(tmp_path):
    assert image_size(write(tmp_path / "a.tif", CHIP)) == (32, 24)
    assert image_size(write(tmp_path / "b.tif", CHIP.astype(np.float32))) == (32, 24)
    (tmp_path / "c.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:300])
    with pytest.raises(ImageError, match=r"c\.tif"):
        image_size(tmp_path / "c.tif")


def test_a_compression_that_pillow_lacks(tmp_path):
    path = write(tmp_path / "a.tif", RGB, compress="LERC", MAX_Z_ERROR="0", photometric="RGB")
    assert np.array_equal(np.asarray(open_image(path)), RGB.transpose(1, 2, 0))


def test_colours_that_gdal_would_not_convert(tmp_path):
    path = write(tmp_path / "a.tif", RGB, compress="LERC", MAX_Z_ERROR="0", photometric="CIELAB")
    assert "Pillow cannot decode it" in refusal(path)


def test_large_images_are_read_reduced(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 16_000)
    monkeypatch.setattr("rsvlm.data.rasters.scene.PART", 3_000)  # several strips
    values = np.zeros((145, 150), np.uint8)
    values[:, 75:], values[100:] = 200, 60
    Image.fromarray(values).save(tmp_path / "a.png")
    Image.fromarray(values).convert("RGB").save(tmp_path / "a.tif")
    Image.fromarray(values).convert("P").save(tmp_path / "a.gif")
    padded = np.pad(values.astype(float), ((0, 1), (0, 0)), mode="edge")  # of the last row there is one
    expected = np.rint(padded.reshape(73, 2, 75, 2).mean(axis=(1, 3)))
    for name in ("a.png", "a.tif", "a.gif"):
        picture = open_image(tmp_path / name)
        assert picture.info == {FULL_SIZE: (150, 145)} and picture.mode == "RGB" and picture.size == (75, 73)
        assert (np.asarray(picture) == expected[..., None]).all()
        assert np.frombuffer(take_fingerprint(tmp_path / name), np.int32, 2).tolist() == [150, 145]
    assert expected[0, 37] == 100
    turn = Image.Exif()
    turn[0x0112] = 6  # shown a quarter clockwise
    for name in ("b.jpg", "b.tif"):
        Image.fromarray(values).save(tmp_path / name, exif=turn)
        turned = open_image(tmp_path / name)
        assert turned.info == {FULL_SIZE: (145, 150)} and turned.size == (73, 75)
        assert np.abs(np.asarray(turned)[..., 0] - np.rot90(expected, -1)).mean() < 2
    monkeypatch.setattr(images, "MAX_PIXELS", 3_000)
    assert open_image(tmp_path / "a.png").size == (50, 49)
    chip = read_as(write(tmp_path / "chip.tif", np.tile(CHIP, (1, 4, 4))), recipe_of(READING))
    assert open_image(chip).size == (43, 32) and open_image(chip).info == {FULL_SIZE: (128, 96)}
    sixteen = write(tmp_path / "c.tif", np.tile(CHIP[:1], (1, 4, 4)))
    assert "this one holds 1 band of uint16; or give the source of a study" in refusal(sixteen)
    monkeypatch.setattr(images, "MOST_REDUCED", 20_000)
    assert "150x145 pixels, more than the 20,000 of an image of a data set; cut it into tiles" in refusal(
        tmp_path / "a.png"
    )


def test_without_rasterio(tmp_path, monkeypatch):
    chip = read_as(write(tmp_path / "a.tif", CHIP), recipe_of(READING))
    picture = write(tmp_path / "b.jp2", RGB, driver="JP2OpenJPEG")
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(ModuleNotFoundError, match=r"a raster with `reading` needs rasterio: .* \(the extra `scenes`\)"):
        open_image(chip)
    assert "JPEG 2000" in refusal(picture) and "pip install rasterio" in refusal(picture)
