"""Image files of all kinds become 8-bit RGB, or an error that names the file."""

import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from rsvlm.data.images import MAX_PIXELS, ImageError, open_image, resolve_image
from rsvlm.paths import ROOT


def save(path, array, mode=None, **options):
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def test_rgb_is_unchanged(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert (np.asarray(open_image(save(tmp_path / "a.png", pixels))) == pixels).all()


@pytest.mark.parametrize(
    ("name", "mode"),
    [("a.jpg", "CMYK"), ("a.png", "L"), ("a.png", "1"), ("a.png", "P"), ("a.gif", "P"), ("a.tif", "CMYK")],
)
def test_other_colour_modes_become_rgb(tmp_path, name, mode):
    image = open_image(save(tmp_path / name, np.full((8, 8, 3), 200, dtype=np.uint8), mode))
    assert image.mode == "RGB" and image.size == (8, 8)
    assert abs(int(np.asarray(image).mean()) - (255 if mode == "1" else 200)) <= (60 if mode == "1" else 6)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_keep_their_range(tmp_path, name):
    values = np.array([[0, 257, 32_768, 65_535]], dtype=np.uint16)
    assert np.asarray(open_image(save(tmp_path / name, values)))[0, :, 0].tolist() == [0, 1, 127, 255]


def test_floats_without_a_range_are_refused(tmp_path):
    with pytest.raises(ImageError, match=r"a\.tif.*no known range"):
        open_image(save(tmp_path / "a.tif", np.array([[-3.5, 1.0]], dtype=np.float32)))


def test_transparency_is_laid_on_white(tmp_path):
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0]]], dtype=np.uint8)
    assert np.asarray(open_image(save(tmp_path / "a.png", pixels))).tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert np.asarray(open_image(tmp_path / "a.gif"))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
def test_truncated_file(tmp_path, name):
    path = save(tmp_path / name, np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=f"{name}: not a whole image"):
        open_image(path)


def test_empty_and_foreign_and_missing_files(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(ImageError, match=r"empty\.jpg.*zero bytes"):
        open_image(tmp_path / "empty.jpg")
    with pytest.raises(ImageError, match=r"text\.jpg: not a whole image"):
        open_image(tmp_path / "text.jpg")
    with pytest.raises(FileNotFoundError, match=r"none\.jpg"):
        open_image(tmp_path / "none.jpg")


@pytest.mark.parametrize("side", [8_001, 9_800, 60_000])  # over our limit, over Pillow's warning, over Pillow's error
def test_decompression_bomb_is_refused_without_decoding(tmp_path, side):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    assert side * side > MAX_PIXELS
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(bomb)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match=r"bomb\.png.*cut it into tiles"):
            open_image(tmp_path / "bomb.png")


def test_paths_are_below_the_root_unless_absolute(tmp_path):
    assert resolve_image("../x/a.png") == ROOT / "../x/a.png"
    assert resolve_image(str(tmp_path / "a.png")) == tmp_path / "a.png"
