"""Image files as 8-bit RGB pictures, or an error that names the file.

Aerial and satellite images come in every shape: palette GIF, 16-bit grey, CMYK JPEG, PNG with alpha. ``open_image`` is
the one place where a file becomes pixels, so that each stage sees the same picture.
"""

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from rsvlm import paths

MAX_PIXELS = 64_000_000  # larger pictures are refused before they are decoded: 64 MP is 192 MB as RGB
EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".gif")
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


class ImageError(ValueError):
    """An image file that cannot be used; the message names the file and what is wrong."""


def resolve_image(path: str) -> Path:
    """The file that a ``path`` of the image table means: absolute as it is, else below the project's root."""
    return Path(path) if Path(path).is_absolute() else paths.ROOT / path


def open_image(path: Path | str) -> Image.Image:
    """The picture in a file, decoded, as 8-bit RGB.

    - grey is repeated three times, CMYK and palettes are converted, of an animation the first frame is taken;
    - transparency is laid on white, as a viewer shows it;
    - 16-bit grey keeps its full range: 0 to 65,535 becomes 0 to 255, without a stretch (a stretch for each image would
      make bright of dark). Pillow does the same with 16-bit colour.

    Args:
        path: a Path, or the table's ``path`` text.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: empty, truncated, no image, more than MAX_PIXELS pixels, or pixels without a known range.
    """
    path = resolve_image(str(path))
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such image file")
    if path.stat().st_size == 0:
        raise ImageError(f"{path}: the image file is empty (zero bytes); fetch it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS below is the stricter check
            with Image.open(path) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise ImageError(
                        f"{path}: {width}x{height} pixels, more than the {MAX_PIXELS:,} allowed; cut it into tiles"
                    )
                image.seek(0)
                image.load()
                return _as_rgb(image)
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{path}: more than the {MAX_PIXELS:,} pixels that are read ({error}); cut it into tiles"
        ) from error
    except ImageError as error:
        raise error if str(error).startswith(str(path)) else ImageError(f"{path}: {error}") from error
    except _BROKEN as error:
        raise ImageError(
            f"{path}: not a whole image: {error}; fetch it again or take it out of the annotations"
        ) from error


def _as_rgb(image: Image.Image) -> Image.Image:
    """An own 8-bit RGB copy of a decoded picture."""
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_eight_bits(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB") if image.mode != "RGB" else image.copy()


def _to_eight_bits(values: np.ndarray) -> np.ndarray:
    """Grey values of 16 bits, (H, W), as uint8 over the same range."""
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65_535:
        raise ImageError(
            f"{values.dtype} pixels from {values.min()} to {values.max()} have no known range; save it as 8 or 16 bit"
        )
    return (values.astype(np.uint32) * 255 // 65_535).astype(np.uint8)
