"""Small JPEG copies of images as data URIs, so that a page needs no other file."""

import base64
import io
from dataclasses import dataclass

from PIL import Image

from rsvlm.data.images import open_image

QUALITIES = (86, 80, 74, 68, 62, 56, 48, 40, 32, 24)  # of JPEG, tried from the best down until the bytes fit


@dataclass(frozen=True)
class Thumbnail:
    """A small copy of an image: its data URI, and width and height in pixels."""

    uri: str
    width: int
    height: int


def shrink(image: Image.Image, pixels: int) -> Image.Image:
    """A copy of ``image`` whose longer side has at most ``pixels`` pixels; an image that is small already stays."""
    small = image.convert("RGB")
    small.thumbnail((pixels, pixels), Image.Resampling.LANCZOS)
    return small


def encode_jpeg(image: Image.Image, most_bytes: int) -> bytes:
    """``image`` as JPEG, in the best quality that stays within ``most_bytes``, or the lowest one tried."""
    data = b""
    for quality in QUALITIES:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, optimize=True)
        data = buffer.getvalue()
        if len(data) <= most_bytes:
            break
    return data


def make_thumbnail(path: str, pixels: int = 192, most_bytes: int = 12_000) -> Thumbnail:
    """A thumbnail of the image at ``path`` (as written in the image table).

    Args:
        path: relative to the study's root, or absolute.
        pixels: the longer side, at most.
        most_bytes: of the JPEG; the quality is lowered until it fits. A data URI is a third larger.

    Raises:
        FileNotFoundError, ValueError: the image cannot be read (names the file).
        ValueError: ``pixels`` is below 16.
    """
    if pixels < 16:
        raise ValueError(f"thumbnail_pixels is {pixels}: give at least 16")
    small = shrink(open_image(path), pixels)
    return as_thumbnail(encode_jpeg(small, most_bytes), small.width, small.height)


def as_thumbnail(jpeg: bytes, width: int, height: int) -> Thumbnail:
    """The thumbnail of these JPEG bytes."""
    return Thumbnail(f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}", width, height)


def bytes_for_each(page_megabytes: float, images: float, text_bytes: int) -> int:
    """How many JPEG bytes each of ``images`` thumbnails may take so that a page stays within ``page_megabytes``.

    Args:
        page_megabytes: of 1,000,000 bytes, for the whole page.
        images: how many, smaller ones counted as parts.
        text_bytes: what the page's text and code take beside the thumbnails.
    """
    left = page_megabytes * 1e6 * 0.97 - text_bytes
    return max(1_500, int(left / max(1, images) * 3 / 4))
