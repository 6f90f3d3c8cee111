"""Image files of all kinds become 8-bit RGB, or an error that names the file."""

import os
import socket
import struct
import subprocess
import warnings
import zlib

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from rsvlm.data import duplicates
from rsvlm.data.boxes import image_size, read_mask_boxes
from rsvlm.data.duplicates import fingerprint_images
from rsvlm.data.images import MAX_PIXELS, MOST_REDUCED, READING, ImageError, open_file, open_image
from rsvlm.models import feature_shards
from rsvlm.viewing.page import ThumbnailCache, make_thumbnail

GREY, RGB, UNSPECIFIED, ASSOCIATED, ALPHA = 1, 2, 0, 1, 2  # of a TIFF's photometric interpretation and extra samples
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, EXTRA, SUBFILE, TURNED = 256, 257, 258, 259, 262, 338, 254, 274
RANDOM = np.random.default_rng(0)
SCENE = RANDOM.integers(60, 156, (16, 24, 13), dtype=np.uint8)
REFLECTANCE = RANDOM.integers(100, 2_400, (16, 24, 13), dtype=np.uint16)


def save(path, array, mode=None, **options):
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def write_tiff(path, *pages):
    """A plain little-endian TIFF; a page is an array (H, W) or (H, W, B), or one with tags that replace the usual."""
    data, place = b"II*\0" + struct.pack("<I", 0), 4
    for page in pages:
        array, given = page if isinstance(page, tuple) else (page, {})
        height, width, bands = (*array.shape, 1)[:3]
        tags = {
            WIDTH: width, HEIGHT: height, BITS: [8 * array.itemsize] * bands, COMPRESSION: 1,
            PHOTOMETRIC: GREY if bands == 1 else RGB, 273: len(data), 277: bands, 278: height, 279: array.nbytes,
            339: [{"u": 1, "i": 2, "f": 3}[array.dtype.kind]] * bands,
        } | given  # fmt: skip
        data += array.tobytes() + bytes(array.nbytes % 2)
        entries = b""
        for tag, values in sorted(tags.items()):
            packed = struct.pack(f"<{np.size(values)}I", *np.atleast_1d(values))
            entries += struct.pack("<HHI", tag, 4, np.size(values))
            entries += packed if len(packed) == 4 else struct.pack("<I", len(data))
            data += packed if len(packed) > 4 else b""
        data = data[:place] + struct.pack("<I", len(data)) + data[place + 4 :]
        place = len(data) + 2 + len(entries)
        data += struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    path.write_bytes(data)
    return path


def write_png(path, width, height, bits, colour, rows=b""):
    """A PNG of these rows, uncompressed bytes with the filter's byte before each."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return path


def refusal(path):
    """Why an image is not read; nothing that is whole is called broken."""
    with pytest.raises(ImageError) as caught:
        open_image(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and "whole image" not in text
    return text.removeprefix(f"{path}: ")


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
def test_sixteen_bits_that_fill_their_range_keep_it(tmp_path, name):
    values = np.array([[0, 257, 32_768, 65_535]], dtype=np.uint16)
    assert np.asarray(open_image(save(tmp_path / name, values)))[0, :, 0].tolist() == [0, 1, 127, 255]


def test_sixteen_bit_colours_that_fill_their_range_keep_it(tmp_path):
    values = np.array([[[0, 257, 65_535], [32_768, 40_000, 65_534]]], dtype=np.uint16)
    expected = [[[0, 1, 255], [128, 156, 255]]]
    assert np.asarray(open_image(write_tiff(tmp_path / "a.tif", values))).tolist() == expected
    png = write_png(tmp_path / "a.png", 2, 1, 16, 2, b"\0" + values.astype(">u2").tobytes())
    assert np.asarray(open_image(png)).tolist() == expected


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("kind", ["png", "tif"])
def test_reflectances_would_be_near_black(tmp_path, kind, bands):
    values = REFLECTANCE[..., :bands].copy()
    values[0] = 65_535  # missing data: full scale does not prove that the range is used
    if kind == "tif":
        path = write_tiff(tmp_path / "a.tif", values if bands > 1 else values[..., 0])
    else:
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
        path = write_png(tmp_path / "a.png", 24, 16, 16, 2 if bands == 3 else 0, rows)
    text = refusal(path)
    assert f"{bands} band{'s' * (bands > 1)} of uint16, values from " in text
    assert f"to {values.max()}, 0.0% of them in the upper half of 0 to 65535: read so it would be too dark" in text
    chosen = "[BAND]" if bands == 1 else "[RED, GREEN, BLUE]"
    assert text.endswith(
        "gdal_translate -of PNG -ot Byte -scale LOW HIGH 0 255 IN OUT.png (one LOW and HIGH for all images of a set); or "
        f"give the source of a study `reading: {{bands: {chosen}, stretch: [LOW, HIGH]}}`"
    )


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("int16", ", values from 100 to 2399"), ("uint32", ", values from 100 to 2399"),
        ("int32", ", values from 100 to 2399"), ("float32", ", values from 100 to 2399"), ("float64", ""),
        ("float16", ""), ("int8", ""),
    ],
)  # fmt: skip
def test_sample_types_without_black_and_white(tmp_path, dtype, values):
    grey = np.clip(REFLECTANCE[..., 0], 100, 2_399)
    grey[0, :2] = 100, 2_399
    text = refusal(write_tiff(tmp_path / "a.tif", (grey - 100 if dtype == "int8" else grey).astype(dtype)))
    assert text.startswith(f"1 band of {dtype}, 24x16 pixels{values}: the file does not tell which value is black")
    assert "gdal_translate -of PNG -ot Byte -scale LOW HIGH 0 255 IN OUT.png" in text


def test_twelve_bits_and_no_number_at_all(tmp_path):
    packed = np.zeros((16, 36), dtype=np.uint8)
    text = refusal(write_tiff(tmp_path / "a.tif", (packed, {WIDTH: 24, BITS: 12})))
    assert text.startswith("1 band of uint12, 24x16 pixels, values from 0 to 0: the file does not tell which value")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "no value is a number" in refusal(write_tiff(tmp_path / "a.tif", np.full((4, 4), np.nan, np.float32)))


@pytest.mark.parametrize("bands", [2, 3, 4, 5, 7, 13])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_bands_without_a_colour(tmp_path, caplog, bands, dtype):
    values = SCENE[..., :bands].astype(dtype)
    tags = {PHOTOMETRIC: GREY, EXTRA: [UNSPECIFIED] * (bands - 1)}
    text = refusal(write_tiff(tmp_path / "a.tif", (values, tags)))
    assert text.startswith(f"{bands} bands of {dtype}, 24x16 pixels, which the file does not call red, green and blue")
    chosen = "-b RED -b GREEN -b BLUE" if bands > 2 else "-b BAND"
    scale = "" if dtype == "uint8" else " -ot Byte -scale LOW HIGH 0 255"
    assert f"gdal_translate -of PNG {chosen}{scale} IN OUT.png" in text
    assert not caplog.records  # Pillow logs an error of its own from seven bands on


def test_float_bands_are_told_as_they_are(tmp_path):
    text = refusal(write_tiff(tmp_path / "a.tif", (SCENE.astype("f4"), {PHOTOMETRIC: GREY, EXTRA: [UNSPECIFIED] * 12})))
    assert text.startswith("13 bands of float32, 24x16 pixels: the file does not tell which value is black")
    assert "-b RED -b GREEN -b BLUE -ot Byte -scale LOW HIGH 0 255" in text


def test_planar_bands_are_not_read_as_the_first(tmp_path):
    planes = np.moveaxis(SCENE[..., :3], 2, 0)
    tags = {WIDTH: 24, HEIGHT: 16, BITS: [8] * 3, 277: 3, 278: 16, 284: 2, 339: [1] * 3, PHOTOMETRIC: GREY}
    layout = {273: [8, 8 + 384, 8 + 768], 279: [384] * 3, EXTRA: [UNSPECIFIED] * 2}
    path = write_tiff(tmp_path / "a.tif", (planes.reshape(48, 24), tags | layout))
    assert "3 bands of uint8, 24x16 pixels, which the file does not call red, green and blue" in refusal(path)
    path = write_tiff(tmp_path / "a.tif", (planes.reshape(48, 24), tags | {273: layout[273], 279: [384] * 3, 262: RGB}))
    assert (np.asarray(open_image(path)) == SCENE[..., :3]).all()


@pytest.mark.parametrize("extra", [{EXTRA: ALPHA}, {EXTRA: ASSOCIATED}, {}])
def test_near_infrared_is_not_alpha(tmp_path, extra):  # GDAL marks the fourth band of any uint8 file as alpha
    text = refusal(write_tiff(tmp_path / "a.tif", (SCENE[..., :4], extra)))
    assert text.startswith("4 bands of which the last would be transparency, but it holds values from 60 to 155, where")
    assert "gdal_translate -of PNG -b RED -b GREEN -b BLUE IN OUT.png; if it is alpha: gdal_translate -of PNG" in text


@pytest.mark.parametrize("extra", [ALPHA, ASSOCIATED])
def test_a_mask_in_a_tiff_is_laid_on_white(tmp_path, extra):
    pixels = SCENE[..., :4].copy()
    pixels[..., 3] = 255
    pixels[:4] = 0
    read = np.asarray(open_image(write_tiff(tmp_path / "a.tif", (pixels, {EXTRA: extra}))))
    assert (read[4:] == pixels[4:, :, :3]).all() and (read[:4] == 255).all()
    grey = write_tiff(tmp_path / "b.tif", (pixels[..., [0, 3]], {EXTRA: extra, PHOTOMETRIC: GREY}))
    read = np.asarray(open_image(grey))
    assert (read[4:] == pixels[4:, :, :1]).all() and (read[:4] == 255).all()


def test_bands_beyond_red_green_and_blue_are_left_out(tmp_path):
    for bands in (4, 5, 6):
        tags = {EXTRA: [UNSPECIFIED] * (bands - 3)}
        read = open_image(write_tiff(tmp_path / "a.tif", (SCENE[..., :bands], tags)))
        assert (np.asarray(read) == SCENE[..., :3]).all()
    text = refusal(write_tiff(tmp_path / "a.tif", (SCENE, {EXTRA: [UNSPECIFIED] * 10})))
    assert text.startswith("13 bands of uint8, 24x16 pixels, compression 1: no pixel is missing, but Pillow cannot")
    assert "-b RED -b GREEN -b BLUE IN OUT.png" in text


def test_a_compression_that_pillow_lacks_is_no_damage(tmp_path):
    text = refusal(write_tiff(tmp_path / "a.tif", (SCENE[..., :3], {COMPRESSION: 34_887})))
    assert text.startswith("3 bands of uint8, 24x16 pixels, compression 34887: no pixel is missing, but Pillow cannot")
    assert "gdal_translate -of PNG IN OUT.png; fetch it again if that fails too" in text


def test_pages_of_a_tiff(tmp_path):
    page, small = SCENE[..., :3].copy(), SCENE[::2, ::2, :3].copy()
    text = refusal(write_tiff(tmp_path / "a.tif", page, page))
    assert "2 pages of 24x16 pixels" in text and "gdal_translate -of PNG GTIFF_DIR:1:IN OUT.png" in text
    bands = (SCENE[..., band].copy() for band in range(4))
    assert "4 pages of 24x16" in refusal(write_tiff(tmp_path / "a.tif", *bands))
    mask = np.ones((16, 24), dtype=np.uint8)
    whole = [(small, {SUBFILE: 1}), (mask, {SUBFILE: 4})], [small]
    for others in whole:  # an overview and a mask, or something smaller
        assert (np.asarray(open_image(write_tiff(tmp_path / "a.tif", page, *others))) == page).all()
    text = refusal(write_tiff(tmp_path / "a.tif", (small, {SUBFILE: 1}), page))
    assert text.startswith("its first page is a preview, 12x8 pixels")
    path = write_tiff(tmp_path / "a.tif", page, small)
    path.write_bytes(path.read_bytes()[:-40])  # the second page's tags are cut off
    assert (np.asarray(open_image(path)) == page).all()


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp"])
def test_exif_orientation_is_as_a_viewer_shows_it(tmp_path, name):
    pixels = np.zeros((8, 16, 3), dtype=np.uint8)
    pixels[:, 8:] = 255
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[TURNED] = 6  # shown turned by 90 degrees to the right
    image.save(tmp_path / name, exif=exif)
    read = open_image(tmp_path / name)
    assert read.size == (8, 16)
    assert np.asarray(read)[:6].max() < 30 and np.asarray(read)[10:].min() > 225
    with pytest.raises(ImageError, match=rf"{name}: turned by its EXIF orientation \(6\).*mogrify -auto-orient"):
        image_size(tmp_path / name)  # whose boxes may mean the one or the other


def test_exif_that_cannot_be_read_does_no_harm(tmp_path):
    pixels = np.full((8, 16, 3), 90, dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=b"Exif\0\0no directory")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert (np.asarray(open_image(tmp_path / "a.jpg")) == 90).all()
        assert image_size(tmp_path / "a.jpg") == (16, 8)


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
    with pytest.raises(ImageError, match=r"text\.jpg: no JPEG, PNG, .* or WEBP file \(it starts with b'no picture'\)"):
        open_image(tmp_path / "text.jpg")
    with pytest.raises(FileNotFoundError, match=r"none\.jpg"):
        open_image(tmp_path / "none.jpg")


def test_a_kind_of_jpeg_that_pillow_lacks_may_be_whole(tmp_path):
    path = save(tmp_path / "a.jpg", SCENE[..., 0])
    data = bytearray(path.read_bytes())
    data[data.index(b"\xff\xc0") + 4] = 12  # bits a sample
    path.write_bytes(data)
    with pytest.raises(ImageError, match="or of a kind that Pillow cannot read, such as 12 bits a sample; if another"):
        open_image(path)


@pytest.mark.parametrize("side", [8_001, 9_800, 20_000])  # over our limit, over Pillow's warning, over Pillow's error
def test_a_large_image_that_is_damaged(tmp_path, side):
    assert MAX_PIXELS < side * side < MOST_REDUCED
    write_png(tmp_path / "large.png", side, side, 8, 2)
    size = rf"{side}x{side} pixels" if side < 10_000 else rf"{side * side} pixels"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(
            ImageError, match=rf"large\.png.*{size}.*gdal_retile\.py -ps 1024 1024.*GDAL says: the window"
        ):
            open_image(tmp_path / "large.png")


def test_decompression_bomb_is_refused_without_decoding(tmp_path):
    write_png(tmp_path / "bomb.png", 60_000, 60_000, 8, 2)
    with pytest.raises(
        ImageError, match=r"bomb\.png: 60000x60000 pixels, more than the 1,000,000,000.*cut it into tiles"
    ):
        open_image(tmp_path / "bomb.png")


def test_a_size_is_told_of_images_too_large_to_decode(tmp_path):
    assert image_size(write_png(tmp_path / "a.png", 9_000, 8_000, 8, 2)) == (9_000, 8_000)
    with pytest.raises(ImageError, match=r"9000x8000 pixels.*cut it into tiles"), open_file(tmp_path / "a.png"):
        pytest.fail("72 million pixels were opened to be decoded")


# What is named as an image and is none


def in_masks(path):
    images = path.parent / "images"
    images.mkdir(exist_ok=True)
    Image.new("RGB", (4, 4)).save(images / f"{path.stem}.png")
    return read_mask_boxes(path.parent, images, {0: None}, {})


READERS = {
    "picture": open_image, "size": image_size, "mask": in_masks, "thumbnail": lambda path: make_thumbnail(str(path)),
    "cached thumbnail": lambda path: ThumbnailCache(64, folder=path.parent / "kept").make([str(path)]),
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_an_eps_named_otherwise_starts_nothing(tmp_path, monkeypatch, reader, name):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / name)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # as in a fresh process
    monkeypatch.setattr(subprocess, "Popen", lambda *given, **_: pytest.fail(f"{given} was started"))
    with pytest.raises(ImageError, match=rf"{name}: no JPEG, PNG, .* file \(it starts with b'%!PS-Adobe"):
        READERS[reader](tmp_path / name)


def test_formats_that_are_named_but_not_read(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.avif")
    assert "no JPEG, PNG, TIFF, GIF, BMP or WEBP file (it starts with b'\\x00\\x00" in refusal(tmp_path / "a.avif")


@pytest.mark.parametrize("reader", READERS)
def test_a_named_pipe_is_not_waited_for(tmp_path, reader):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"a\.png: a named pipe, not an image file"):
        READERS[reader](tmp_path / "a.png")


def test_what_is_no_file_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "link.png").symlink_to("real.png")
    (tmp_path / "nowhere.png").symlink_to("gone.png")
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    save(tmp_path / "real.png", pixels)
    with socket.socket(socket.AF_UNIX) as plug:
        plug.bind("socket.png")
        for name, kind in (("folder", "a folder"), ("device", "a device"), ("socket", "a socket")):
            assert refusal(tmp_path / f"{name}.png") == f"{kind}, not an image file; take it out of the folder"
    assert (np.asarray(open_image(tmp_path / "link.png")) == pixels).all()
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png: no such image file"):
        open_image(tmp_path / "nowhere.png")


def test_the_audit_of_files_goes_on_without_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    save(tmp_path / "real.png", SCENE[..., :3])
    names = ["pipe.png", "real.png", "device.png"]
    pipe, real, device = fingerprint_images([tmp_path / name for name in names], cache=tmp_path / "cache")
    assert "pipe.png: a named pipe" in str(pipe) and "device.png: a device" in str(device)
    assert (real.width, real.height) == (24, 16)


def test_caches_of_pictures_know_how_they_were_read(tmp_path, monkeypatch):
    path = save(tmp_path / "real.png", SCENE[..., :3])
    assert str(duplicates.VERSION).endswith(f"-{READING}")
    assert f"-{READING}-" in ThumbnailCache(64).kind
    before = feature_shards.fingerprint_images([str(path)])
    monkeypatch.setattr(feature_shards, "READING", READING + 1)
    assert feature_shards.fingerprint_images([str(path)]) != before
