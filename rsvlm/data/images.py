"""Image files as 8-bit RGB pictures, or an error that names the file.

Aerial and satellite images come in every shape: palette GIF, 16-bit grey, CMYK JPEG, PNG with alpha, GeoTIFFs of many
bands. ``open_file`` is the one place where a file is opened, ``open_image`` the one where it becomes a picture, so that
each stage sees the same. A file whose bands or range of values cannot be told is refused, with the reason and a way
out: a picture read wrongly looks like any other in a table of results.
"""

import os
import stat
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import MAX_SAMPLESPERPIXEL, PREFIXES, ImageFileDirectory_v2

from rsvlm.data.packed import ImageError as ImageError
from rsvlm.data.packed import open_stream, split_path, stat_of
from rsvlm.data.recipes import Recipe, split_reading
from rsvlm.extras import import_extra

MAX_PIXELS = 64_000_000  # of a picture: 64 MP is 192 MB as RGB; larger ones are read reduced, by GDAL
MOST_REDUCED = 1_000_000_000  # pixels of a file that is read reduced; larger ones are refused before they are decoded
FULL_SIZE = "full_size"  # in the ``info`` of a picture that was read reduced: width and height of the file
EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".jp2")
# All that Pillow may take a file for, whatever its name: it would start Ghostscript for an EPS named .jpg. No JPEG
# 2000: Pillow tells neither its bits a sample nor whether a fourth band is alpha; GDAL does.
FORMATS = ("JPEG", "PNG", "TIFF", "GIF", "BMP", "WEBP")
READING = 2  # part of the names of caches of decoded pictures: raise it when ``open_image`` gives other pixels
FILLED = 0.01  # share of 16-bit values in the upper half of the range, full scale aside, that shows the range is used
MOST_PAGES = 1_000  # of a TIFF that are looked at

# What Pillow raises on broken files; MemoryError where one asks for more than there can be
_BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, OverflowError, MemoryError, struct.error, zlib.error,
)  # fmt: skip
_STARTS = (b"\xff\xd8\xff", b"\x89PNG", *PREFIXES, b"GIF8", b"BM", b"RIFF")
_JPEG_2000 = (b"\x00\x00\x00\x0cjP  ", b"\xff\x4f\xff\x51")
_NO_FILES = (
    (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
)  # fmt: skip
# Tags of TIFF 6.0, and the values of some.
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _BANDS, _EXTRA, _TYPE = 256, 257, 258, 259, 262, 277, 338, 339
_SUBFILE, _ORIENTATION, _OFFSETS, _COUNTS = 254, 274, (273, 324), (279, 325)
_TYPES = {1: "uint", 2: "int", 3: "float", 5: "complex int", 6: "complex float"}
_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}  # photometric interpretation -> bands that make the colour
_ALPHA = (1, 2)  # associated (colours multiplied by it), unassociated
Tags = Mapping[int, Any]  # of a page of a TIFF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


class NotByPillow(ImageError):
    """An image file that Pillow cannot read, or only all of it at once, but GDAL may."""


def check_file(path: Path) -> None:
    """Raise an error if there is no file to read; a named pipe would be waited for without end.

    Of an image inside a file (``rsvlm.data.packed``) only that file is looked at.

    Raises:
        FileNotFoundError: there is nothing of that name.
        ImageError: a folder, a pipe, a socket or a device.
    """
    try:
        mode = stat_of(path).st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"{path}: no such image file") from error
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        kind = next((name for holds, name in _NO_FILES if holds(mode)), "something else")
        raise ImageError(f"{path}: {kind}, not an image file; take it out of the folder")


@contextmanager
def open_file(path: Path, *, most_pixels: int | None = MAX_PIXELS, turned: bool = False) -> Iterator[Image.Image]:
    """An image file of one of FORMATS, open, not yet decoded; errors while the caller decodes it become ImageErrors.

    Args:
        most_pixels: a larger image is refused; None for a caller that decodes nothing.
        turned: whether the caller turns the picture as the file's EXIF orientation says. Without it such a file is
            refused: pixel coordinates in annotations may mean the one or the other.

    Raises:
        FileNotFoundError: there is no such file.
        NotByPillow: larger than ``most_pixels``, JPEG 2000, or a TIFF of a compression that Pillow lacks.
        ImageError: no file, empty, truncated, or of another format.
    """
    check_file(path)
    too_many = "cut it into tiles, for example: gdal_retile.py -ps 1024 1024 -targetDir TILES IN"
    with open_stream(path) as file:
        if file.seek(0, os.SEEK_END) == 0:
            raise ImageError(f"{path}: the image file is empty (zero bytes); fetch it again")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # most_pixels is the stricter check
                warnings.filterwarnings("ignore", "Corrupt EXIF data")  # what it means for the picture is said below
                if _read_head(file)[:4] in PREFIXES and _count_bands(_read_pages(file)[0]) > MAX_SAMPLESPERPIXEL:
                    raise SyntaxError("so many bands")  # before Pillow logs it
                with Image.open(file, formats=FORMATS) as image:
                    width, height = image.size
                    if most_pixels is not None and width * height > most_pixels:
                        raise NotByPillow(
                            f"{path}: {width}x{height} pixels, more than the {most_pixels:,} read; {too_many}"
                        )
                    if not turned and (orientation := _read_orientation(image)) != 1:
                        raise ImageError(
                            f"{path}: turned by its EXIF orientation ({orientation}), so pixel coordinates may mean the "
                            "stored picture or the one shown; store it upright, for example: mogrify -auto-orient IN"
                        )
                    yield image
        except Image.DecompressionBombError as error:
            raise NotByPillow(
                f"{path}: more than the {MAX_PIXELS:,} pixels that are read ({error}); {too_many}"
            ) from error
        except ImageError:
            raise
        except _BROKEN as error:
            kind, text = _explain(file, error)
            raise kind(f"{path}: {text}") from error


def open_image(path: Path | str) -> Image.Image:
    """The picture in a file, decoded, as 8-bit RGB.

    - grey is repeated three times; CMYK, YCbCr, CIELAB and palettes are converted;
    - transparency is laid on white, as a viewer shows it. In a TIFF it must be a mask, 0 or 255: GDAL, rasterio and
      tifffile call the fourth band of any uint8 file alpha, near infrared too;
    - bands beyond a TIFF's red, green and blue that it does not call alpha are left out; masks and nodata values of
      GeoTIFFs are not applied;
    - 16 bits a sample keep their full range, without a stretch (a stretch for each image would make bright of dark):
      0 to 65,535 becomes 0 to 255. Files whose values do not reach through that range (see FILLED) are refused:
      reflectances and counts would come out near black;
    - of an animation the first frame is taken; a TIFF of several full pages is refused, overviews are not looked at;
    - the picture is turned as its EXIF orientation says;
    - a path that tells how the file is read (``rsvlm.data.recipes``) gives these bands and this stretch; what is no data
      takes the mean of the rest;
    - 8-bit RGB and grey that Pillow does not decode, JPEG 2000 and some compressions of TIFF, is read by GDAL;
    - of more than MAX_PIXELS pixels, 8-bit RGB and grey is read by GDAL and made smaller until it has no more: each pixel
      is the mean of 2 x 2, or 3 x 3, ... of the file, whose own size stands in ``info[FULL_SIZE]``. Files of more than
      MOST_REDUCED are refused.

    Args:
        path: a Path, or the ``path`` of a row of the image table; it may lead into a file, see ``rsvlm.data.packed``.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: empty, truncated, no image, too large, or bands or values whose meaning the file does not tell; says
            what the file holds and how to make a picture of it.
        ModuleNotFoundError: the path tells how it is read, and rasterio is not installed.
    """
    path = Path(path)
    file, recipe = split_reading(path)
    if recipe is not None:
        return _read_by_recipe(path, file, recipe)
    try:
        return _read_by_pillow(path)
    except NotByPillow as error:
        return _read_by_gdal(path, error)


def raster_size(path: Path) -> tuple[int, int]:
    """Width and height of an image file that Pillow does not open. Raises as ``open_image``."""
    open_scene, scene_error = _raster_door(f"{path}: its size")
    try:
        with open_scene(path, bands=[1], stretch=[0, 1], data=_data_of(path)) as scene:
            return scene.width, scene.height
    except scene_error as error:
        raise ImageError(str(error)) from error


def _read_by_pillow(path: Path) -> Image.Image:
    with open_file(path, most_pixels=MAX_PIXELS, turned=True) as image:
        pages = []
        if image.format == "TIFF":
            with open_stream(path) as file:
                pages = _read_pages(file)
        fault = _find_fault(pages, image) if pages else None
        if fault:
            raise ImageError(f"{path}: {fault}")
        sixteen = _is_sixteen_bit(image, pages)
        image.seek(0)
        image.load()
        picture = ImageOps.exif_transpose(image) if _read_orientation(image) != 1 else image
        try:
            return as_rgb(picture, sixteen, masked=bool(pages))
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from error


def _read_by_recipe(path: Path, file: Path, recipe: Recipe) -> Image.Image:
    check_file(path)
    open_scene, scene_error = _raster_door(f"{file}: a raster with `reading`")
    try:
        with open_scene(file, bands=recipe.bands, stretch=recipe.stretch, data=_data_of(file)) as scene:
            full = (scene.width, scene.height)
            factor = _factor_of(full, path)
            picture = Image.fromarray(scene.read(size=(-(-full[0] // factor), -(-full[1] // factor))).pixels)
    except scene_error as error:
        raise ImageError(str(error)) from error
    if factor > 1:
        picture.info[FULL_SIZE] = full
    return picture


def _read_by_gdal(path: Path, why: NotByPillow) -> Image.Image:
    """An 8-bit RGB or grey picture that Pillow does not read, made smaller where it has more than MAX_PIXELS."""
    turn = 1
    with open_stream(path) as file:
        if _read_head(file).startswith(tuple(PREFIXES)):
            try:
                pages = _read_pages(file)
            except _BROKEN as error:
                raise ImageError(f"{path}: not a whole image: {error}; fetch it again") from error
            fault = _find_fault(pages)
            if fault:
                raise ImageError(f"{path}: {fault}")
            if pages[0].get(_PHOTOMETRIC) not in (0, 1, 2, 3, 6):  # of CIELAB GDAL gives L, a and b
                raise ImageError(str(why))
            turn = pages[0].get(_ORIENTATION, 1)
    try:
        open_scene, scene_error = _raster_door("reading it by GDAL")
    except ModuleNotFoundError as error:
        raise ImageError(f"{why}; or read it as it is: {error}") from error
    try:
        with open_scene(path, data=_data_of(path)) as scene:
            if scene.type != "uint8" or scene.count not in (1, 3):
                raise ImageError(
                    f"{why}; of such files RGB or grey of 8 bits are read, and this one holds {scene.count} "
                    f"band{'s' * (scene.count > 1)} of {scene.type}; {_by_source(scene.type, scene.count)}"
                )
            full = (scene.width, scene.height)
            factor = _factor_of(full, path)
            pixels = scene.read_plain(factor)
            turn = scene.tags.get("EXIF_Orientation", turn)
    except scene_error as error:
        raise ImageError(f"{why}; GDAL says: {str(error).removeprefix(f'{path}: ')}") from error
    picture = Image.fromarray(pixels)
    if str(turn) in map(str, _TURNS):
        picture, full = picture.transpose(_TURNS[int(turn)]), full[::-1] if int(turn) > 4 else full
    if factor > 1:
        picture.info[FULL_SIZE] = full
    return picture


def _factor_of(size: tuple[int, int], path: Path) -> int:
    """The whole number that width and height are divided by for at most MAX_PIXELS pixels."""
    width, height = size
    if width * height > MOST_REDUCED:
        raise ImageError(
            f"{path}: {width}x{height} pixels, more than the {MOST_REDUCED:,} of an image of a data set; cut it into "
            "tiles, for example: gdal_retile.py -ps 1024 1024 -targetDir TILES IN; or search it as a scene"
        )
    factor = 1
    while -(-width // factor) * -(-height // factor) > MAX_PIXELS:
        factor += 1
    return factor


def _data_of(path: Path) -> bytes | None:
    """The bytes of an image that lies inside a file; GDAL opens other files itself."""
    if split_path(path) is None:
        return None
    with open_stream(path) as file:
        return file.read()


def _raster_door(use: str) -> tuple[Callable, type[ValueError]]:
    """``open_scene`` and its error; rasterio is imported where ``use`` needs it."""
    import_extra("rasterio", use)
    from rsvlm.data.rasters.files import SceneError
    from rsvlm.data.rasters.scene import open_scene

    return open_scene, SceneError


def as_rgb(image: Image.Image, sixteen: bool, masked: bool) -> Image.Image:
    """An own 8-bit RGB copy of a decoded picture.

    Args:
        sixteen: whether the file holds 16 bits a sample.
        masked: whether an alpha band must be a mask, 0 or 255.

    Raises:
        ImageError: 16-bit values do not fill their range, or alpha is no mask.
    """
    bands = len(image.getbands())
    if image.mode.startswith("I"):
        values = np.asarray(image)
        _check_range(values, 65_535, bands)
        return Image.fromarray((values.astype(np.uint32) * 255 // 65_535).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        if sixteen:
            _check_range(np.asarray(rgba)[..., :3], 255, bands)
        alpha = np.asarray(rgba.getchannel("A"))
        if masked and not np.isin(alpha, (0, 255)).all():
            raise ImageError(
                f"{bands} bands of which the last would be transparency, but it holds values from {alpha.min()} to "
                f"{alpha.max()}, where a mask holds 0 and 255 (GDAL, rasterio and tifffile mark a fourth band as "
                f"alpha, near infrared too); {_way_out('uint8', bands)}; if it is alpha: "
                f"gdal_translate -of PNG IN OUT.png; {_by_source('uint8', bands)}"
            )
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    if sixteen:
        _check_range(np.asarray(image), 255, bands)
    return image.convert("RGB") if image.mode != "RGB" else image.copy()


def _check_range(values: np.ndarray, top: int, bands: int) -> None:
    """Refuse 16-bit values that do not fill 0 to ``top``; 255: their upper bytes, for Pillow gives no more of colours.

    Full scale itself proves nothing: it marks saturated pixels and missing data.
    """
    bright = np.count_nonzero((values > top // 2) & (values < top)) / values.size
    if bright < FILLED:
        low, high = int(values.min()), int(values.max())
        low, high = (low << 8, (high << 8) + 255) if top == 255 else (low, high)
        raise ImageError(
            f"{bands} band{'s' * (bands > 1)} of uint16, values from {low} to {high}, {bright:.1%} of them in the "
            "upper half of 0 to 65535: read so it would be too dark a picture, and the file does not tell which value "
            f"is white; {_way_out('uint16')}; {_by_source('uint16', bands)}"
        )


def _way_out(kind: str, bands: int = 1) -> str:
    """The command that makes a PNG of a raster; ``bands`` is above 1 where the colours must be chosen."""
    chosen = " -b RED -b GREEN -b BLUE" if bands > 2 else " -b BAND" if bands == 2 else ""
    scale = "" if kind == "uint8" else " -ot Byte -scale LOW HIGH 0 255"
    note = " (one LOW and HIGH for all images of a set)" if scale else ""
    return f"make a picture of it: gdal_translate -of PNG{chosen}{scale} IN OUT.png{note}"


def _by_source(kind: str, bands: int = 1) -> str:
    """The setting that does without a command, as ``_way_out``."""
    chosen = "[RED, GREEN, BLUE]" if bands > 2 else "[BAND]"
    stretch = "[0, 255]" if kind == "uint8" else "[LOW, HIGH]"
    return f"or give the source of a study `reading: {{bands: {chosen}, stretch: {stretch}}}`"


def _is_sixteen_bit(image: Image.Image, pages: list[Tags]) -> bool:
    """Whether the file of an opened TIFF (with its pages' tags) or PNG holds 16 bits a sample."""
    if pages:
        return 16 in pages[0].get(_BITS, ())
    return image.format == "PNG" and bool(image.tile) and str(image.tile[0].args).endswith(";16B")


def _read_orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1, upright, where there is none or it cannot be read."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Pillow would decode the picture to look for it behind the pixels
    try:
        orientation = image.getexif().get(0x0112, 1)
    except _BROKEN:
        return 1
    return orientation if orientation in range(1, 9) else 1


def _read_pages(file: BinaryIO) -> list[Tags]:
    """The tags of a TIFF's pages, from its head alone.

    Raises:
        SyntaxError: there is no page; Pillow raises more for a head that is damaged.
    """
    pages, seen = [], set()
    head = _read_head(file)
    head = head if 43 in head[2:4] else head[:8]  # BigTIFF has the longer one
    place = ImageFileDirectory_v2(head).next
    while place and place not in seen and len(pages) < MOST_PAGES:
        seen.add(place)
        tags = ImageFileDirectory_v2(head)
        try:
            file.seek(place)
            tags.load(file)
        except _BROKEN:
            if pages:
                break  # the first is the picture
            raise
        pages.append(tags)
        place = tags.next
    if not pages:
        raise SyntaxError("a TIFF without a page")
    return pages


def _count_bands(tags: Tags) -> int:
    return tags.get(_BANDS, len(tags.get(_BITS, (1,))))


def _sample_type(tags: Tags) -> str:
    """As NumPy says it: uint8, float32."""
    bits, kinds = tags.get(_BITS, (1,)), tags.get(_TYPE, (1,))
    return " and ".join(sorted({f"{_TYPES.get(kind, 'undefined')}{size}" for size in bits for kind in kinds}))


def _describe(tags: Tags, image: Image.Image | None = None) -> str:
    """Bands, sample type and size, and the values of a grey image that Pillow reads as they are."""
    bands = _count_bands(tags)
    text = f"{bands} band{'s' * (bands > 1)} of {_sample_type(tags)}, {tags.get(_WIDTH)}x{tags.get(_HEIGHT)} pixels"
    if image is not None and image.mode in ("I", "I;16", "I;16B", "F"):
        values = np.asarray(image)
        values = values[np.isfinite(values)]
        text += f", values from {values.min():g} to {values.max():g}" if values.size else ", no value is a number"
    return text


def _find_fault(pages: list[Tags], image: Image.Image | None = None) -> str | None:
    """Why Pillow's picture of a TIFF would not be what the file means; None if it would."""
    first, bands, kind = pages[0], _count_bands(pages[0]), _sample_type(pages[0])
    size = first.get(_WIDTH), first.get(_HEIGHT)
    if first.get(_SUBFILE, 0) & 1:
        return f"its first page is a preview, {size[0]}x{size[1]} pixels; save the picture itself as TIFF or PNG"
    full = [page for page in pages if not page.get(_SUBFILE, 0) & 5]  # neither overviews (1) nor masks (4)
    alike = sum((page.get(_WIDTH), page.get(_HEIGHT)) == size for page in full)
    if alike > 1:
        return (
            f"{alike} pages of {size[0]}x{size[1]} pixels: bands, or several pictures, the file does not tell; take "
            "one out: gdal_translate -of PNG GTIFF_DIR:1:IN OUT.png"
        )
    grey = _COLOURS.get(first.get(_PHOTOMETRIC), 1) == 1
    nameless = grey and bands > 1 and not (bands == 2 and set(first.get(_EXTRA, ())) & set(_ALPHA))
    if kind not in ("uint1", "uint2", "uint4", "uint8", "uint16"):
        return (
            f"{_describe(first, image)}: the file does not tell which value is black and which white; "
            f"{_way_out(kind, bands if nameless else 1)}; {_by_source(kind, bands)}"
        )
    if nameless:
        way_out = f"{_way_out(kind, bands)}; {_by_source(kind, bands)}"
        return f"{_describe(first)}, which the file does not call red, green and blue; {way_out}"
    return None


def _read_head(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read(16)


def _explain(file: BinaryIO, error: Exception) -> tuple[type[ImageError], str]:
    """What is wrong with a file that Pillow cannot read, and whether GDAL may read it."""
    if isinstance(error, OSError) and error.errno:
        return ImageError, f"cannot be read: {os.strerror(error.errno)}"
    head = _read_head(file)
    if head.startswith(_JPEG_2000):
        return (
            NotByPillow,
            "JPEG 2000, which Pillow is not asked for; make a picture of it: gdal_translate -of PNG IN OUT.png",
        )
    if not head.startswith(_STARTS):
        return ImageError, (
            f"no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file (it starts with {head!r}); save it as one of these or "
            "take it out of the annotations"
        )
    if head.startswith(tuple(PREFIXES)):
        try:
            pages = _read_pages(file)
            if _is_whole(pages[0], file.seek(0, os.SEEK_END)):
                bands = _count_bands(pages[0])
                fault = _find_fault(pages)
                return (
                    (NotByPillow, fault)
                    if fault
                    else (
                        NotByPillow,
                        f"{_describe(pages[0])}, compression {pages[0].get(_COMPRESSION, 1)}: no pixel is missing, but "
                        f"Pillow cannot decode it ({error}); "
                        f"{_way_out(_sample_type(pages[0]), bands if bands > 4 else 1)}; fetch it again if that fails too",
                    )
                )
        except _BROKEN:
            pass  # the head is damaged as well
    elif isinstance(error, UnidentifiedImageError):
        return ImageError, (
            "not a whole image, or of a kind that Pillow cannot read, such as 12 bits a sample; if another program "
            "shows it, save it with 8 bits a sample, else fetch it again"
        )
    return ImageError, f"not a whole image: {error}; fetch it again or take it out of the annotations"


def _is_whole(tags: Tags, size: int) -> bool:
    """Whether a file of ``size`` bytes reaches to the end of every strip or tile of a TIFF's page."""
    for offsets, counts in zip(_OFFSETS, _COUNTS, strict=True):
        if offsets in tags and counts in tags:
            starts, lengths = np.atleast_1d(tags[offsets]), np.atleast_1d(tags[counts])
            return bool((starts + lengths <= size).all())
    return False
