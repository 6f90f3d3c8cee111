"""Rasters: windows, overviews, bands, stretches and places with known answers, and what is wrong with a file, told."""

import math
import os
import pickle
import subprocess
import sys
import threading
import warnings
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp, Resampling
from rasterio.transform import Affine, from_origin
from rasterio.windows import Window as GdalWindow

from rsvlm.data.rasters.files import CACHE, DRIVERS, SceneError
from rsvlm.data.rasters.scene import open_scene
from rsvlm.data.rasters.windows import Window
from rsvlm.data.recipes import BAND_PRESETS

UTM = "EPSG:32632"
PLACE = from_origin(500_000, 5_000_000, 10, 10)
RANDOM = np.random.default_rng(0)
TRUE_COLOUR = RANDOM.integers(0, 256, (3, 60, 80), dtype=np.uint8)
SQUARE = ((0, 0), (80, 0), (80, 60), (0, 60))
REFLECTANCE = RANDOM.integers(0, 4_000, (4, 60, 80), dtype=np.uint16)


def write(path, values, *, names=None, colours=None, mask=None, overviews=(), tags=None, **options):
    """A raster of values (B, H, W), a GeoTIFF unless ``driver`` says otherwise."""
    bands, height, width = values.shape
    options = {"driver": "GTiff", "dtype": values.dtype.name, "crs": UTM, "transform": PLACE} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", width=width, height=height, count=bands, **options) as file:
            file.write(values)
            if names:
                file.descriptions = names
            if colours:
                file.colorinterp = [ColorInterp[colour] for colour in colours]
            if mask is not None:
                file.write_mask(mask)
            if tags:
                file.update_tags(**tags)
        if overviews:
            with rasterio.open(path, "r+") as file:
                file.build_overviews(list(overviews), Resampling.average)
    return path


def pixels(path, window=None, size=None, **options):
    with open_scene(path, **options) as scene:
        return scene.read(window, size).pixels


def refusal(path, **options):
    with pytest.raises(SceneError) as caught, open_scene(path, **options) as scene:
        scene.read()
    assert str(path) in str(caught.value)
    return str(caught.value)


# Windows and sizes


@pytest.mark.parametrize("options", [
    {}, {"tiled": True, "blockxsize": 16, "blockysize": 16}, {"compress": "deflate", "blockysize": 7},
    {"driver": "COG", "blocksize": 128}, {"driver": "PNG"}, {"interleave": "band"}, {"BIGTIFF": "YES"},
    {"driver": "JP2OpenJPEG", "QUALITY": "100", "REVERSIBLE": "YES", "YCC": "NO"},
])  # fmt: skip
def test_true_colour_of_8_bits_stays_as_it_is_in_every_window(tmp_path, options):
    path = write(tmp_path / "a", TRUE_COLOUR, **options)
    with open_scene(path) as scene:
        assert (scene.width, scene.height, scene.count, scene.bands) == (80, 60, 3, (1, 2, 3))
        assert (scene.low, scene.high, scene.type) == ((0.0,) * 3, (255.0,) * 3, "uint8")
        whole = scene.read()
        assert np.array_equal(whole.pixels, TRUE_COLOUR.transpose(1, 2, 0)) and whole.valid.all()
        for window in (Window(0, 0, 1, 1), Window(13, 17, 31, 40), Window(79, 59, 1, 1)):
            left, top, width, height = window
            part = scene.read(window)
            assert np.array_equal(part.pixels, whole.pixels[top : top + height, left : left + width])
            assert part.valid.shape == (height, width)


def test_a_smaller_size_averages_and_a_larger_one_interpolates(tmp_path):
    values = np.zeros((1, 8, 8), np.uint8)
    values[0, :4, 4:], values[0, 4:, :4] = 100, 200
    path = write(tmp_path / "a.tif", values)
    assert pixels(path, size=(2, 2))[..., 0].tolist() == [[0, 100], [200, 0]]
    assert pixels(path, size=(1, 1))[0, 0].tolist() == [75] * 3
    larger = pixels(path, Window(2, 0, 4, 4), (8, 8))[0, :, 0]
    assert larger[0] == 0 and larger[-1] == 100 and (np.diff(larger.astype(int)) >= 0).all()
    with open_scene(path) as scene:
        assert scene.overview(4).pixels.shape == (4, 4, 3) and scene.overview().pixels.shape == (8, 8, 3)
    thin = write(tmp_path / "thin.tif", TRUE_COLOUR[:, :1])
    with open_scene(thin) as scene:
        assert scene.overview(8).pixels.shape == (1, 8, 3)


def test_a_smaller_size_is_read_from_an_overview(tmp_path):
    path = write(tmp_path / "a.tif", np.full((3, 64, 64), 10, np.uint8))
    write(tmp_path / "a.tif.ovr", np.full((3, 16, 16), 200, np.uint8))
    with open_scene(path) as scene:
        assert (scene.overview(16).pixels == 200).all() and (scene.overview(8).pixels == 200).all()
        assert (scene.overview(32).pixels == 10).all() and (scene.read().pixels == 10).all()


@pytest.mark.parametrize("window", [(-1, 0, 4, 4), (0, 0, 81, 4), (0, 58, 4, 3), (0, 0, 0, 4), (80, 0, 1, 1)])
def test_a_window_that_leaves_the_scene(tmp_path, window):
    path = write(tmp_path / "a.tif", TRUE_COLOUR)
    with open_scene(path) as scene, pytest.raises(SceneError, match="empty or leaves the scene of 80x60"):
        scene.read(Window(*window))


@pytest.mark.parametrize("size", [(0, 4), (4, -1), (8_001, 8_000)])
def test_a_size_that_is_not_read(tmp_path, size):
    with (
        open_scene(write(tmp_path / "a.tif", TRUE_COLOUR)) as scene,
        pytest.raises(SceneError, match="at most 64,000,000"),
    ):
        scene.read(size=size)


# Bands


def test_bands_by_number_description_and_preset(tmp_path):
    values = np.arange(1, 14, dtype=np.uint8).reshape(13, 1, 1) * np.ones((1, 4, 4), np.uint8)
    names = [f"B{number:02}" for number in range(1, 9)] + ["B8A", "B09", "B10", "B11", "B12"]
    plain = write(tmp_path / "plain.tif", values, photometric="MINISBLACK")
    named = write(tmp_path / "named.tif", values[::-1], names=names[::-1], photometric="MINISBLACK")

    def shown(path, bands):
        return pixels(path, bands=bands)[0, 0].tolist()

    assert shown(plain, [13, 1, 5]) == [13, 1, 5] and shown(plain, [7]) == shown(plain, 7) == [7, 7, 7]
    assert shown(named, ["B04", "B3", "b02"]) == [4, 3, 2] and shown(named, ["B8A", 13, 12]) == [9, 1, 2]
    assert shown(plain, "sentinel-2") == shown(named, "sentinel-2") == shown(named, None) == [4, 3, 2]
    assert shown(plain, "sentinel-2-false-colour") == shown(named, "sentinel-2-false-colour") == [8, 4, 3]


@pytest.mark.parametrize(("preset", "count", "expected"), [
    ("sentinel-2", 4, (3, 2, 1)), ("sentinel-2", 12, (4, 3, 2)), ("sentinel-2-false-colour", 4, (4, 3, 2)),
    ("landsat-8", 7, (4, 3, 2)), ("landsat-8", 11, (4, 3, 2)), ("landsat-8-false-colour", 7, (5, 4, 3)),
    ("planetscope", 4, (3, 2, 1)), ("planetscope", 8, (6, 4, 2)), ("planetscope-false-colour", 8, (8, 6, 4)),
    ("naip", 4, (1, 2, 3)), ("naip-false-colour", 4, (4, 1, 2)),
])  # fmt: skip
def test_presets_of_files_that_name_no_bands(tmp_path, preset, count, expected):
    with open_scene(write(tmp_path / "a.tif", np.ones((count, 4, 4), np.uint16)), bands=preset) as scene:
        assert scene.bands == expected


def test_names_of_bands(tmp_path):
    values = np.ones((8, 2, 2), np.uint16)
    planet = ["coastal_blue", "blue", "green_i", "green", "yellow", "red", "rededge", "nir"]
    with open_scene(write(tmp_path / "planet.tif", values, names=planet)) as scene:
        assert scene.bands == (6, 4, 2)
    told = ["B1 - coastal", "Blue (B2)", "Green, 560 nm", "Red edge", "Red", "B06", "B07", "NIR"]
    with open_scene(write(tmp_path / "told.tif", values, names=told)) as scene:
        assert scene.bands == (5, 3, 2)
    older = [f"B{number}" for number in range(1, 9)]  # of a Landsat 7, where B4 is near infrared
    assert "none of which the file calls red, green and blue" in refusal(
        write(tmp_path / "older.tif", values, names=older)
    )
    bgr = write(
        tmp_path / "bgr.tif", np.ones((3, 2, 2), np.uint8), colours=["blue", "green", "red"], photometric="MINISBLACK"
    )
    with open_scene(bgr) as scene:
        assert scene.bands == (3, 2, 1)


def test_bands_that_cannot_be_told(tmp_path):
    path = write(tmp_path / "a.tif", REFLECTANCE)
    text = refusal(path)
    assert "4 bands of uint16, none of which the file calls red, green and blue" in text and "bands=[3, 2, 1]" in text
    assert all(preset in text for preset in BAND_PRESETS)
    assert "no band 5; it has 4 bands of uint16, counted from 1" in refusal(path, bands=[1, 2, 5])
    assert "no band 0" in refusal(path, bands=[0]) and "no band True" in refusal(path, bands=[True])
    assert "2 bands were chosen" in refusal(path, bands=[1, 2])
    assert "no band is called 'B04'" in refusal(path, bands=["B04", "B03", "B02"])
    assert "no preset is called 'sentinel'; did you mean 'sentinel-2'" in refusal(path, bands="sentinel")
    assert "'landsat-8' knows files of 7, 8, 9, 10, 11 bands" in refusal(path, bands="landsat-8")
    assert "by description alone" in refusal(path, bands="true-colour")
    half = write(tmp_path / "half.tif", REFLECTANCE, names=["red", "green", "x", "y"])
    assert "(1 red, 2 green, 3 x, 4 y); the preset 'planetscope'" in refusal(half, bands="planetscope")
    twice = write(tmp_path / "twice.tif", REFLECTANCE, names=["red", "red", "green", "blue"])
    assert "2 bands are called 'red'" in refusal(twice, bands=["red"])


# Stretches


def test_percentiles_are_those_of_the_valid_pixels_of_the_whole_scene(tmp_path):
    values = REFLECTANCE.copy()
    values[:, :20] = 65_535
    path = write(tmp_path / "a.tif", values, nodata=65_535)
    with open_scene(path, bands=[3, 2, 1]) as scene:
        for band, low, high in zip(scene.bands, scene.low, scene.high):
            assert (low, high) == tuple(np.percentile(values[band - 1, 20:], (2, 98)))
        whole, part = scene.read(), scene.read(Window(5, 30, 20, 10))
        assert np.array_equal(part.pixels, whole.pixels[30:40, 5:25]), "one stretch for all windows"
        expected = np.clip(np.rint((values[2] - scene.low[0]) / (scene.high[0] - scene.low[0]) * 255), 0, 255)
        assert np.abs(whole.pixels[20:, :, 0] - expected[20:]).max() <= 1  # float32 rounds a half the other way
        assert not whole.valid[:20].any() and whole.valid[20:].all()
        mean = np.rint(whole.pixels[20:].reshape(-1, 3).mean(axis=0))
        assert (whole.pixels[:20] == mean).all(), "what is not valid takes the mean of what is"
    with open_scene(path, bands=[3, 2, 1], percentiles=(0, 100)) as scene:
        assert scene.low == tuple(values[band - 1, 20:].min() for band in scene.bands)


@pytest.mark.parametrize("kind", ["uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"])
def test_a_fixed_stretch_of_every_type(tmp_path, kind):
    values = np.array([[0, 10, 60, 110, 120]], dtype=kind)[None]
    path = write(tmp_path / "a.tif", values)
    assert pixels(path, stretch=[10, 110])[0, :, 0].tolist() == [0, 0, 128, 255, 255]
    assert pixels(path, stretch=[[0, 120], [10, 110], [60, 61]])[0, 2].tolist() == [128, 128, 0]


def test_stretches_of_8_bits_and_more(tmp_path):
    byte, two = write(tmp_path / "byte.tif", TRUE_COLOUR // 2), write(tmp_path / "two.tif", REFLECTANCE[:3])
    assert np.array_equal(pixels(byte), pixels(byte, stretch="none"))
    assert pixels(byte, stretch="percentile").max() == 255 > pixels(byte).max()
    assert np.array_equal(pixels(two), pixels(two, stretch="percentile"))
    assert "values of uint16 become 0 to 255 by a stretch alone" in refusal(two, stretch="none")
    for wrong in ([0], [1, 0], [1, 1], [0, math.inf], [[0, 1], [0, 1]], ["a", "b"], None, 3):
        assert "a stretch is [low, high] with low below high" in refusal(two, stretch=wrong)
    assert "unknown stretch 'linear'" in refusal(two, stretch="linear")
    for wrong in ((98, 2), (-1, 50), (1,), "ab", (0, 101)):
        assert "percentiles are two of 0 to 100" in refusal(two, percentiles=wrong)


def test_a_stretch_that_shows_nothing_is_told_with_the_range_of_the_values(tmp_path):
    values = np.linspace(100, 3_000, 4_000).reshape(1, 50, 80).astype(np.uint16)
    path = write(tmp_path / "a.tif", np.concatenate([values, values // 2, values // 4]))

    def told(stretch) -> str:
        with open_scene(path, stretch=stretch) as scene:
            return scene.clipping()

    assert told("auto") == told("percentile") == told([0, 3_000]) == told([200, 1_500]) == ""
    assert told([0, 1]).startswith(
        f"{path}: the stretch makes 100% of band 1 white (stretch 0,1; its values run from 100 to 3,000), 100% of band 2"
    )
    assert "100% of band 1 black (stretch 0,1e+09; its values run from 100 to 3,000)" in told([0, 1e9])
    only = told([[0, 3_000], [0, 1_500], [2_000, 3_000]])
    assert "band 1" not in only and "100% of band 3 black (stretch 2000,3000; its values run from 25 to 750)" in only


def test_few_bits_and_white_as_zero(tmp_path):
    few = write(tmp_path / "few.tif", np.array([[[0, 1, 2, 3]]], np.uint8), NBITS=2)
    assert pixels(few)[0, :, 0].tolist() == [0, 85, 170, 255]
    white = write(tmp_path / "white.tif", np.array([[[0, 100, 255]]], np.uint8), photometric="MINISWHITE")
    assert pixels(white)[0, :, 0].tolist() == [255, 155, 0]


def test_a_constant_band_is_black_and_said(tmp_path):
    values = REFLECTANCE[:3].copy()
    values[1] = 7
    with open_scene(write(tmp_path / "a.tif", values)) as scene:
        assert (scene.read().pixels[..., 1] == 0).all()
        assert scene.notes == ("band 2 is 7 everywhere and shows black",)
    mostly = np.zeros((1, 20, 20), np.uint16)
    mostly[0, 3, 4] = 1_000
    with open_scene(write(tmp_path / "b.tif", mostly)) as scene:
        assert (scene.low[0], scene.high[0], scene.notes) == (0, 1_000, ())


def test_a_large_scene_without_overviews_gives_its_stretch_by_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("rsvlm.data.rasters.stretches.PART", 500)
    for options in ({"tiled": True, "blockxsize": 16, "blockysize": 16}, {"blockysize": 1}):
        path = write(tmp_path / "a.tif", REFLECTANCE, **options)
        with open_scene(path, bands=[3, 2, 1]) as scene:
            assert scene.low == tuple(
                np.percentile(REFLECTANCE[band - 1], 2) for band in scene.bands
            )  # 4,800 pixels: all
    monkeypatch.setattr("rsvlm.data.rasters.stretches.BLOCKS", 4)
    with open_scene(path, bands=[3, 2, 1]) as scene, open_scene(path, bands=[3, 2, 1]) as again:
        assert (scene.low, scene.high) == (again.low, again.high)
        rows = REFLECTANCE[:, [0, 20, 39, 59]]
        assert scene.low == tuple(np.percentile(rows[band - 1], 2) for band in scene.bands)


def test_a_large_scene_with_overviews_gives_its_stretch_from_one(tmp_path, monkeypatch):
    path = write(tmp_path / "a.tif", np.tile(np.arange(64, dtype=np.uint16), (1, 64, 1)))
    write(tmp_path / "a.tif.ovr", np.tile(np.arange(100, 116, dtype=np.uint16), (1, 16, 1)))
    with open_scene(path, percentiles=(0, 100)) as scene:
        assert (scene.low[0], scene.high[0]) == (0, 63), "a small scene gives all its pixels"
    monkeypatch.setattr("rsvlm.data.rasters.stretches.PART", 500)
    monkeypatch.setattr("rsvlm.data.rasters.stretches.SAMPLE_SIDE", 16)
    with open_scene(path, percentiles=(0, 100)) as scene:
        assert (scene.low[0], scene.high[0]) == (100, 115)


# What is not valid


def test_nodata_of_zero_is_black_in_all_three_bands(tmp_path):
    values = np.full((3, 4, 4), 50, np.uint8)
    values[:, 0, 0], values[0, 1, 1] = 0, 0
    with open_scene(write(tmp_path / "a.tif", values, nodata=0)) as scene:
        valid = scene.read().valid
        assert not valid[0, 0] and valid[1, 1] and valid.sum() == 15
    values[:, 2, 2], values[0, 3, 3] = 9, 9
    with open_scene(write(tmp_path / "b.tif", values, nodata=9)) as scene:
        assert np.argwhere(~scene.read().valid).tolist() == [[2, 2], [3, 3]]


def test_masks_and_alpha(tmp_path):
    mask = np.full((60, 80), 255, np.uint8)
    mask[10:20, 30:40] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        inside = write(tmp_path / "inside.tif", TRUE_COLOUR, mask=mask)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False):
        beside = write(tmp_path / "beside.tif", TRUE_COLOUR, mask=mask)
    assert (tmp_path / "beside.tif.msk").exists()
    alpha = write(tmp_path / "alpha.tif", np.concatenate([TRUE_COLOUR, mask[None]]), photometric="RGB", ALPHA="YES")
    png = write(tmp_path / "alpha.png", np.concatenate([TRUE_COLOUR, mask[None]]), driver="PNG")
    for path in (inside, beside, alpha, png):
        with open_scene(path) as scene:
            assert scene.bands == (1, 2, 3)
            assert np.array_equal(scene.read().valid, mask > 0)
            assert np.array_equal(scene.read(size=(8, 6)).valid, mask[5::10, 5::10] > 0)
    with open_scene(alpha, bands="naip-false-colour") as scene:
        assert scene.bands == (4, 1, 2) and scene.read().valid.all(), "near infrared that is called alpha is no mask"


def test_nan_and_infinite_values(tmp_path):
    values = RANDOM.random((3, 16, 16)).astype(np.float32)
    values[0, 0, 0], values[1, 5, 5], values[2, 9, 9] = np.nan, np.inf, -np.inf
    values[:, 8:, :8] = np.nan
    for nodata in (None, np.nan, -9999):
        with open_scene(write(tmp_path / "a.tif", values, nodata=nodata)) as scene:
            assert np.array_equal(scene.read().valid, np.isfinite(values).all(axis=0))
            assert all(0 <= low < high <= 1 for low, high in zip(scene.low, scene.high))
            small = scene.read(size=(4, 4))
            assert small.valid.tolist() == [[True] * 4] * 2 + [[False, False, True, True]] * 2, "one NaN spoils no cell"
            own = values[:, 4:8, 8:12].mean(axis=(1, 2))
            expected = np.clip(np.rint((own - scene.low) / np.subtract(scene.high, scene.low) * 255), 0, 255)
            assert np.abs(small.pixels[1, 2] - expected).max() <= 1
    nan = write(tmp_path / "nan.tif", np.full((3, 4, 4), np.nan, np.float32))
    assert "no pixel has data (all are nodata, masked or NaN)" in refusal(nan)
    one = values.copy()
    one[1] = np.nan
    assert "no pixel has data" in refusal(write(tmp_path / "one.tif", one))
    with open_scene(nan, stretch=[0, 1]) as scene:
        empty = scene.read()
        assert not empty.valid.any() and (empty.pixels == 128).all()


def test_averages_of_floats_use_overviews_and_parts(tmp_path, monkeypatch):
    values = RANDOM.random((1, 64, 48)).astype(np.float32)
    plain = write(tmp_path / "plain.tif", values)
    levels = write(tmp_path / "levels.tif", values, overviews=[2, 4], tiled=True, blockxsize=16, blockysize=16)
    expected = values[0].reshape(8, 8, 6, 8).mean(axis=(1, 3))
    for part in (4_000_000, 64):
        monkeypatch.setattr("rsvlm.data.rasters.windows.PART", part)
        for path in (plain, levels):
            shown = pixels(path, size=(6, 8), stretch=[0, 1])[..., 0]
            assert np.abs(shown - np.rint(expected * 255)).max() <= 1
    odd = pixels(plain, Window(3, 5, 37, 41), (7, 41), stretch=[0, 1])
    assert odd.shape == (41, 7, 3)


def test_a_palette_shows_its_colours(tmp_path):
    values = np.array([[[0, 1], [2, 1]]], np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    path = write(tmp_path / "a.tif", values, photometric="PALETTE")
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {0: (255, 0, 0, 255), 1: (0, 100, 0, 255), 2: (0, 0, 200, 255)})
    assert pixels(path)[::4, ::4].tolist() == [[[255, 0, 0], [0, 100, 0]], [[0, 0, 200], [0, 100, 0]]]
    assert pixels(path, size=(1, 1))[0, 0].tolist() == [64, 50, 50], "colours are averaged, not their numbers"


def test_all_nodata(tmp_path):
    assert "no pixel has data" in refusal(write(tmp_path / "a.tif", np.zeros((3, 8, 8), np.uint16), nodata=0))
    with open_scene(write(tmp_path / "b.tif", np.zeros((3, 8, 8), np.uint8), nodata=0)) as scene:
        assert not scene.read().valid.any()


# Places


def test_polygons_and_ground_of_plain_and_rotated_scenes(tmp_path):
    with open_scene(write(tmp_path / "a.tif", TRUE_COLOUR)) as scene:
        assert scene.crs == rasterio.CRS.from_epsg(32632) and scene.transform == PLACE
        assert scene.polygon(Window(2, 3, 10, 20)).bounds == (500_020, 4_999_770, 500_120, 4_999_970)
        assert scene.ground_size() == pytest.approx(10, rel=1e-3)
    turned = Affine(8.66, 5, 500_000, 5, -8.66, 5_000_000)
    with open_scene(write(tmp_path / "b.tif", TRUE_COLOUR, transform=turned)) as scene:
        corners = list(scene.polygon(Window(0, 0, 80, 60)).exterior.coords)[:4]
        assert np.allclose(corners, [(500_000 + 8.66 * x + 5 * y, 5_000_000 + 5 * x - 8.66 * y) for x, y in SQUARE])
        assert scene.polygon(Window(0, 0, 80, 60)).area == pytest.approx(480_000, rel=1e-3)
        assert scene.ground_size() == pytest.approx(10, rel=1e-3)
        assert np.array_equal(scene.read(Window(5, 6, 7, 8)).pixels, TRUE_COLOUR[:, 6:14, 5:12].transpose(1, 2, 0))


def test_metres_a_pixel_are_those_on_the_ground(tmp_path):
    degrees = write(tmp_path / "a.tif", TRUE_COLOUR, crs="EPSG:4326", transform=from_origin(0, 60.3, 0.01, 0.01))
    with open_scene(degrees) as scene:
        assert scene.ground_size() == pytest.approx(math.sqrt(1_114 * 557), rel=1e-2)
    web = write(tmp_path / "b.tif", TRUE_COLOUR, crs="EPSG:3857", transform=from_origin(0, 8_399_738, 10, 10))
    fine = write(tmp_path / "c.tif", TRUE_COLOUR, transform=from_origin(500_000, 5_000_000, 0.05, 0.05))
    with open_scene(fine) as scene:
        assert scene.ground_size() == pytest.approx(0.05, rel=1e-3)
    moon = "+proj=eqc +R=1737400 +units=m +no_defs"
    with open_scene(write(tmp_path / "d.tif", TRUE_COLOUR, crs=moon)) as scene:
        assert scene.crs and (scene.ground_size() is None or scene.ground_size() > 0)
    with open_scene(web) as scene:  # at 60 degrees north, where Mercator shows all twice as large
        assert scene.ground_size() == pytest.approx(5, rel=1e-2)


def test_without_a_place(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with open_scene(write(tmp_path / "a.tif", TRUE_COLOUR, crs=None, transform=None)) as scene:
            assert scene.crs is None and scene.transform is None and scene.ground_size() is None and scene.notes == ()
            assert scene.polygon(Window(1, 2, 3, 4)).bounds == (1, 2, 4, 6)
    with open_scene(write(tmp_path / "b.tif", TRUE_COLOUR, crs=None)) as scene:
        assert scene.crs is None and scene.transform == PLACE and "reference system" in scene.notes[0]
        assert scene.polygon(Window(1, 2, 3, 4)).bounds == (1, 2, 4, 6)
    points = [GroundControlPoint(y, x, 500_000 + 10 * x, 5_000_000 - 10 * y) for x in (0, 80) for y in (0, 60)]
    with open_scene(write(tmp_path / "c.tif", TRUE_COLOUR, crs=UTM, transform=None, gcps=points)) as scene:
        assert scene.crs is None and scene.transform is None
        assert "4 ground control points alone, which is not applied" in scene.notes[0]


def test_dates(tmp_path):
    for number, (tags, expected) in enumerate([
        ({"TIFFTAG_DATETIME": "2021:07:03 10:20:30"}, datetime(2021, 7, 3, 10, 20, 30, tzinfo=UTC)),
        ({"ACQUISITIONDATETIME": "2020-01-02T03:04:05Z"}, datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ({"TIFFTAG_DATETIME": "yesterday"}, None), ({}, None),
    ]):  # fmt: skip
        with open_scene(write(tmp_path / f"{number}.tif", TRUE_COLOUR, tags=tags)) as scene:
            assert scene.date == expected


# Identity, threads, processes


def test_a_fingerprint_knows_content_bands_and_stretch(tmp_path):
    one, same = write(tmp_path / "a.tif", REFLECTANCE), tmp_path / "deeper" / "a.tif"
    same.parent.mkdir()
    same.write_bytes(one.read_bytes())
    prints = set()
    for options in ({"bands": [3, 2, 1]}, {"bands": [4, 3, 2]}, {"bands": [3, 2, 1], "stretch": [0, 3000]}):
        with open_scene(one, **options) as scene, open_scene(same, **options) as other:
            assert scene.fingerprint == other.fingerprint, "a copy of one name is the same"
            prints.add(scene.fingerprint)
    with rasterio.open(one, "r+") as file:
        file.write(np.zeros((1, 1), np.uint16), 4, window=GdalWindow(70, 50, 1, 1))
    with open_scene(one, bands=[3, 2, 1], stretch=[0, 3000]) as scene:
        prints.add(scene.fingerprint)
    assert len(prints) == 4


def test_fingerprints_of_large_files_and_of_what_lies_beside(tmp_path, monkeypatch):
    path = write(tmp_path / "a.tif", TRUE_COLOUR)
    monkeypatch.setattr("rsvlm.data.rasters.files.WHOLE", 0)
    with open_scene(path) as scene:
        before = scene.fingerprint
    os.utime(path, ns=(1, 1))
    with open_scene(path) as scene:
        assert scene.fingerprint != before
        before = scene.fingerprint
    write(tmp_path / "a.tif.ovr", TRUE_COLOUR[:, ::2, ::2])
    with open_scene(path) as scene:
        assert scene.fingerprint != before


def test_threads_take_turns_and_processes_open_anew(tmp_path):
    path = write(tmp_path / "a.tif", TRUE_COLOUR, tiled=True, blockxsize=16, blockysize=16, compress="deflate")
    expected = TRUE_COLOUR.transpose(1, 2, 0)
    with open_scene(path) as scene:
        found = []

        def look(left):
            found.extend(
                (scene.read(Window(left, 0, 8, 60)).pixels == expected[:, left : left + 8]).all() for _ in range(9)
            )

        threads = [threading.Thread(target=look, args=(left,)) for left in range(0, 80, 8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 90 and all(found)
        copy = pickle.loads(pickle.dumps(scene))
        assert np.array_equal(copy.read().pixels, expected) and copy.fingerprint == scene.fingerprint
        child = os.fork()
        if not child:
            os._exit(0 if np.array_equal(scene.read().pixels, expected) else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert np.array_equal(scene.read().pixels, expected)
    assert np.array_equal(scene.read().pixels, expected), "a closed scene opens itself again"
    scene.close()


def test_nothing_is_written_beside_the_scene(tmp_path):
    for name, options in (
        ("a.tif", {"overviews": [2, 4]}),
        ("a.png", {"driver": "PNG"}),
        ("a.jp2", {"driver": "JP2OpenJPEG"}),
    ):
        write(tmp_path / name, TRUE_COLOUR, **options)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for name in ("a.tif", "a.png", "a.jp2"):
        with open_scene(tmp_path / name, stretch="percentile") as scene:
            assert scene.crs is not None
            scene.read(), scene.overview(10), scene.fingerprint, scene.ground_size()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# Bad input


def test_what_is_no_raster(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.tif: no such scene"):
        open_scene(tmp_path / "none.tif")
    (tmp_path / "text.tif").write_text("no raster")
    (tmp_path / "empty.tif").touch()
    assert "cannot be read as a scene" in refusal(tmp_path / "text.tif")
    assert "zero bytes" in refusal(tmp_path / "empty.tif")
    assert "a folder, a pipe or a device" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe.tif")
    assert "a folder, a pipe or a device" in refusal(tmp_path / "pipe.tif")
    grid = tmp_path / "grid.asc"
    grid.write_text("ncols 2\nnrows 1\nxllcorner 0\nyllcorner 0\ncellsize 1\n1 2\n")
    assert f"read are {', '.join(DRIVERS)}" in refusal(grid), "of another kind"
    web = tmp_path / "web.tif"
    web.write_text('<GDAL_WMS><Service name="TMS"><ServerUrl>http://127.0.0.1:9/${z}</ServerUrl></Service></GDAL_WMS>')
    assert "cannot be read as a scene" in refusal(web)


def test_a_truncated_file_names_its_window(tmp_path):
    path = write(tmp_path / "a.tif", TRUE_COLOUR, tiled=True, blockxsize=16, blockysize=16, interleave="pixel")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - 4_000])
    with open_scene(path) as scene:
        assert np.array_equal(scene.read(Window(0, 0, 16, 16)).pixels, TRUE_COLOUR[:, :16, :16].transpose(1, 2, 0))
        with pytest.raises(
            SceneError, match=r"a\.tif: the window \(64, 40, 16, 16\) .* cannot be read at 16x16 .*fetch it again"
        ):
            scene.read(Window(64, 40, 16, 16))
    cut = write(tmp_path / "b.tif", REFLECTANCE[:3])
    cut.write_bytes(cut.read_bytes()[:20_000])
    assert "cannot be read" in refusal(cut)
    jpeg = write(tmp_path / "c.jpg", TRUE_COLOUR, driver="JPEG")
    jpeg.write_bytes(jpeg.read_bytes()[:3_000])
    assert "cannot be read" in refusal(jpeg), "GDAL would show grey"


def test_a_broken_overview_is_told_where_it_is_read(tmp_path):
    values = RANDOM.integers(0, 256, (3, 256, 256), dtype=np.uint8)
    with rasterio.Env(TIFF_USE_OVR=True, COMPRESS_OVERVIEW="DEFLATE"):
        path = write(tmp_path / "a.tif", values, overviews=[4])
    beside = tmp_path / "a.tif.ovr"
    data = bytearray(beside.read_bytes())
    data[600:4_000] = bytes(3_400)
    beside.write_bytes(data)
    with open_scene(path) as scene:
        assert np.array_equal(scene.read(Window(0, 0, 9, 9)).pixels, values[:, :9, :9].transpose(1, 2, 0))
        with pytest.raises(SceneError, match="an overview in it, is damaged.*gdaladdo"):
            scene.overview(64)


def test_nothing_is_printed_of_what_is_damaged(tmp_path):
    path = write(tmp_path / "a.tif", TRUE_COLOUR)
    path.write_bytes(path.read_bytes()[:9_000])
    code = (
        "import sys\nfrom rsvlm.data.rasters.files import SceneError\nfrom rsvlm.data.rasters.scene import open_scene\n"
        "try:\n    open_scene(sys.argv[1]).read()\nexcept SceneError:\n    print('refused')"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("refused\n", "")


def test_types_that_are_no_picture(tmp_path):
    for kind in ("complex64", "complex_int16"):
        path = write(tmp_path / "a.tif", np.zeros((1, 4, 4), np.complex64), dtype=kind)
        assert f"values of {kind} are no picture" in refusal(path)


def test_several_rasters_in_one_file(tmp_path):
    from PIL import Image

    pages = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    text = refusal(tmp_path / "a.tif")
    assert "2 rasters in one file; take one out: gdal_translate -of COG GTIFF_DIR:1:" in text


def test_pieces_too_large_to_be_read(tmp_path, monkeypatch):
    path = write(tmp_path / "a.tif", REFLECTANCE, blockysize=60, compress="deflate")
    monkeypatch.setattr("rsvlm.data.rasters.scene.LARGEST_BLOCK", 10_000)
    text = refusal(path, bands=[3, 2, 1])
    assert "stored in pieces of 80x60 pixels" in text and "gdal_translate -of COG" in text
    monkeypatch.setattr("rsvlm.data.rasters.scene.LARGEST_BLOCK", 2**28)
    with open_scene(path, bands=[3, 2, 1]) as scene:
        assert scene.notes == ()
    monkeypatch.setattr("rsvlm.data.rasters.scene.LARGE", 1_000)
    with open_scene(path, bands=[3, 2, 1]) as scene:
        assert len(scene.notes) == 1 and "it has no overviews" in scene.notes[0] and "gdaladdo" in scene.notes[0]
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4])
    with open_scene(path, bands=[3, 2, 1]) as scene:
        assert scene.notes == ()


# VRT


def make_vrt(path, source, relative=1, more="", kind="SimpleSource"):
    path.write_text(
        f'<VRTDataset rasterXSize="80" rasterYSize="60">{more}<VRTRasterBand dataType="Byte" band="1"><{kind}>'
        f'<SourceFilename relativeToVRT="{relative}">{source}</SourceFilename><SourceBand>1</SourceBand></{kind}>'
        "</VRTRasterBand></VRTDataset>"
    )
    return path


def test_a_vrt_of_files_in_its_folder(tmp_path):
    (tmp_path / "tiles").mkdir()
    write(tmp_path / "tiles" / "a.tif", TRUE_COLOUR)
    path = make_vrt(tmp_path / "all.vrt", "tiles/a.tif")
    assert np.array_equal(pixels(path)[..., 0], TRUE_COLOUR[0])
    make_vrt(tmp_path / "absolute.vrt", tmp_path / "tiles" / "a.tif", relative=0)
    assert np.array_equal(pixels(tmp_path / "absolute.vrt")[..., 0], TRUE_COLOUR[0])
    make_vrt(tmp_path / "nested.vrt", "all.vrt")
    assert np.array_equal(pixels(tmp_path / "tiles" / ".." / "all.vrt")[..., 0], TRUE_COLOUR[0])
    with open_scene(tmp_path / "nested.vrt") as scene:
        assert np.array_equal(scene.read().pixels[..., 0], TRUE_COLOUR[0])
        before = scene.fingerprint
    write(tmp_path / "tiles" / "a.tif", TRUE_COLOUR[::-1])
    with open_scene(tmp_path / "nested.vrt") as scene:
        assert scene.fingerprint != before, "what a VRT shows is what lies in the files that it names"


@pytest.mark.parametrize(("source", "said"), [
    ("../outside.tif", "leads out of the folder"), ("tiles/../../outside.tif", "leads out of the folder"),
    ("/etc/hostname", "leads out of the folder"), ("/vsicurl/http://127.0.0.1:9/a.tif", "is no plain file"),
    ("http://127.0.0.1:9/a.tif", "is no plain file"), ("/vsizip/a.zip/a.tif", "is no plain file"),
    ("GTIFF_DIR:1:a.tif", "is no plain file"), ("vrt://a.tif", "is no plain file"), ("gone.tif", "is missing"),
    ("&lt;VRTDataset/&gt;", "is no plain file"), ("web.xml", "is no raster of GTiff"), ("climbing.vrt", "leads out of"),
])  # fmt: skip
def test_a_vrt_that_leads_elsewhere(tmp_path, source, said):
    folder = tmp_path / "scene"
    folder.mkdir()
    write(tmp_path / "outside.tif", TRUE_COLOUR)
    (folder / "web.xml").write_text("<GDAL_WMS/>")
    make_vrt(folder / "climbing.vrt", "../outside.tif")
    path = make_vrt(folder / "a.vrt", source)
    assert said in refusal(path)
    text = path.read_text()
    path.write_text(text.replace("SourceFilename", "sourceFILENAME"))  # GDAL does not look at case
    assert said in refusal(path)
    path.write_text(text.replace("<VRTDataset ", '<VRTDataset xmlns="urn:x" '))  # nor at namespaces
    assert said in refusal(path)
    path.write_text(text.replace("<SourceBand>", f'<More SourceFilename="{source}"/><SourceBand>'))
    assert said in refusal(path)


def test_a_vrt_that_would_run_code_or_is_damaged(tmp_path):
    write(tmp_path / "a.tif", TRUE_COLOUR)
    path = make_vrt(tmp_path / "a.vrt", "a.tif")
    text = path.read_text()
    for old, new in (
        ("<VRTRasterBand ", '<VRTRasterBand subClass="VRTRawRasterBand" '),
        ("<SimpleSource>", "<PixelFunctionCode>import os</PixelFunctionCode><SimpleSource>"),
        ("<VRTDataset ", '<VRTDataset subClass="VRTProcessedDataset" '),
    ):
        path.write_text(text.replace(old, new, 1))
        assert "which may run code or read any file" in refusal(path)
    path.write_text(text[:-20])
    assert "no whole VRT" in refusal(path)
    path.write_text('<!DOCTYPE a [<!ENTITY b "c">]>' + text)
    assert "no VRT as GDAL writes it" in refusal(path)
    make_vrt(path, "a.vrt")
    assert "cannot be read" in refusal(path), "a VRT of itself"


def test_metadata_that_name_another_file_as_overview(tmp_path):
    folder = tmp_path / "scene"
    folder.mkdir()
    write(tmp_path / "outside.tif", TRUE_COLOUR)
    path = write(folder / "a.tif", TRUE_COLOUR)
    with rasterio.open(path, "r+") as file:
        file.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=str(tmp_path / "outside.tif"))
    assert "names a file outside its folder" in refusal(path)
    plain = write(folder / "b.tif", TRUE_COLOUR)
    (folder / "b.tif.ovr").write_text("<GDAL_WMS/>")
    assert "b.tif.ovr beside it is no raster" in refusal(plain)


# Bytes of a file inside another


def test_the_bytes_of_a_file(tmp_path):
    path = write(tmp_path / "a.tif", REFLECTANCE)
    with open_scene("shard.tar::a.tif", bands=[3, 2, 1], data=path.read_bytes()) as scene:
        assert np.array_equal(scene.read().pixels, pixels(path, bands=[3, 2, 1])) and len(scene.fingerprint) == 64
    vrt = make_vrt(tmp_path / "a.vrt", "a.tif").read_bytes()
    with pytest.raises(SceneError, match="cannot be read as a scene"):
        open_scene("shard.tar::a.vrt", data=vrt)


# Memory


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the most memory of a process is read from /proc")
def test_memory_is_bounded_by_a_window(tmp_path):
    side, path = 20_000, tmp_path / "a.tif"
    options = {
        "driver": "GTiff",
        "dtype": "uint16",
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
        "compress": "deflate",
    }
    with rasterio.open(
        path, "w", width=side, height=side, count=4, sparse_ok=True, crs=UTM, transform=PLACE, **options
    ) as file:
        for place in (0, 10_240, 19_456):
            file.write(
                RANDOM.integers(0, 4_000, (4, 512, 512), dtype=np.uint16), window=GdalWindow(place, place, 512, 512)
            )
    assert path.stat().st_size < 2**25
    code = """
import sys
from pathlib import Path
import numpy as np
from rsvlm.data.rasters.scene import open_scene
from rsvlm.data.rasters.windows import Window
most = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
before = most()
with open_scene(sys.argv[1], bands="planetscope") as scene:
    assert scene.high[0] > scene.low[0] and "overviews" in scene.notes[0]
    assert scene.read(Window(10_240, 10_240, 512, 512)).pixels.std() > 10
    assert scene.overview(256).pixels.shape == (256, 256, 3)
print(most() - before)
"""
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    print(done.stdout)
    assert float(done.stdout) < 100 + CACHE, "megabytes, besides GDAL's cache"
