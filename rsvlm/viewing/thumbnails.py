"""Small JPEG copies of images, made once and kept on disk.

Small JPEG copies of images as data URIs, so that a page needs no other file.

Thumbnails made once and kept on disk, so that a page of thousands costs what is on the screen.

One SQLite file: a picture is whole in it or absent, several notebooks may use it at a time, and 45,000 pictures are one
file instead of 45,000. A picture that changes on disk gets a new thumbnail.
"""

import base64
import io
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from rsvlm.data.images import READING, ImageError, check_file, open_image
from rsvlm.files import cache_folder
from rsvlm.viewing.plots import shrink

QUALITIES = (86, 80, 74, 68, 62, 56, 48, 40, 32, 24)  # of JPEG, tried from the best down until the bytes fit


@dataclass(frozen=True)
class Thumbnail:
    """A small copy of an image: its data URI, and width and height in pixels."""

    uri: str
    width: int
    height: int


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
    """A thumbnail of the image at ``path``.

    Args:
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


WAIT_SECONDS = 30  # for another notebook that writes at the same moment
TABLE = (
    "CREATE TABLE IF NOT EXISTS thumbnails (path TEXT, bytes INTEGER, changed INTEGER, pixels INTEGER, width INTEGER,"
    " height INTEGER, jpeg BLOB, PRIMARY KEY (path, pixels)) WITHOUT ROWID"
)
FIND = "SELECT jpeg, width, height FROM thumbnails WHERE path = ? AND pixels = ? AND bytes = ? AND changed = ?"


class ThumbnailCache:
    """Thumbnails of one size. Nothing is held in memory.

    Args:
        pixels: the longer side, at most.
        most_bytes: of a JPEG; its quality is lowered until it fits.
        path: the file; by default in ``cache_folder()``.

    Raises:
        ValueError: the file is no thumbnail cache; names it.
    """

    def __init__(self, pixels: int = 192, most_bytes: int = 12_000, path: Path | None = None) -> None:
        if pixels < 16:
            raise ValueError(f"thumbnails of {pixels} pixels: give at least 16")
        self.pixels, self.most_bytes = pixels, most_bytes
        self.path = path or cache_folder() / f"thumbnails-{READING}.sqlite"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with closing(self._open()) as database, database:
                database.execute(TABLE)
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{self.path}: not a cache of thumbnails ({error}); delete the file") from error

    def find(self, image_paths: Sequence[str]) -> dict[str, Thumbnail]:
        """Those thumbnails that are there already, by path; pictures that cannot be found have none."""
        found = {}
        with closing(self._open()) as database:
            for image_path in dict.fromkeys(image_paths):
                try:
                    key = self._key(image_path)
                except (FileNotFoundError, ImageError):
                    continue  # ``make`` says so when the picture is asked for
                row = database.execute(FIND, key).fetchone()
                if row:
                    found[image_path] = as_thumbnail(*row)
        return found

    def make(self, image_paths: Sequence[str]) -> dict[str, Thumbnail]:
        """Thumbnails by path, made and kept where they were not there.

        Raises:
            FileNotFoundError, ValueError: a picture cannot be read; names the file.
        """
        found = self.find(image_paths)
        made = []
        for image_path in dict.fromkeys(image_paths):
            if image_path not in found:
                key = self._key(image_path)
                small = shrink(open_image(image_path), self.pixels)
                jpeg = encode_jpeg(small, self.most_bytes)
                found[image_path] = as_thumbnail(jpeg, small.width, small.height)
                path, pixels, size, changed = key
                made.append((path, size, changed, pixels, small.width, small.height, jpeg))
        if made:
            with closing(self._open()) as database, database:
                database.executemany("INSERT OR REPLACE INTO thumbnails VALUES (?, ?, ?, ?, ?, ?, ?)", made)
        return found

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=WAIT_SECONDS)

    def _key(self, image_path: str) -> tuple[str, int, int, int]:
        file = Path(image_path).absolute()
        check_file(file)
        stat = file.stat()
        return str(file), self.pixels, stat.st_size, stat.st_mtime_ns
