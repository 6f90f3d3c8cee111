"""Pixels of many images at one size, and the arrays on disk that they grow in.

Arrays on disk that grow row by row: plain .npy files, written in order, continued after a kill.

Written as a file, not through a memory map: on a full disk a map ends the process with SIGBUS, a write raises.

Pixels of many images at one size: decoded once into a memory-mapped cache, or streamed when that grows too large.
"""

import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from rsvlm.data.images import READING, open_image
from rsvlm.files import cache_folder, fingerprint_values, whole_file
from rsvlm.models.devices import log_line
from rsvlm.models.encoders import resize_images


class GrowingArray:
    """A .npy file of a known final shape whose rows are appended; ``np.load`` reads it once all rows are there."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str, rows_done: int = 0):
        """Create the file, or continue it behind its first ``rows_done`` rows.

        Raises:
            ValueError: the file to continue is shorter than that or of another shape.
        """
        self.path, self.shape, self.dtype = Path(path), tuple(shape), np.dtype(dtype)
        row_bytes = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        self._file = self.path.open("r+b" if rows_done else "w+b")
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": self.shape}
        if rows_done:
            np.lib.format.read_magic(self._file)
            found = np.lib.format.read_array_header_1_0(self._file)
            end = self._file.tell() + rows_done * row_bytes
            if found != (self.shape, False, self.dtype) or self.path.stat().st_size < end:
                self._file.close()
                raise ValueError(f"{self.path}: not the first {rows_done} rows of a {self.dtype} array {self.shape}")
            self._file.truncate(end)
            self._file.seek(end)
        else:
            np.lib.format.write_array_header_1_0(self._file, header)
        self.rows = rows_done

    def append(self, rows: np.ndarray) -> None:
        """Write the next rows and hand them to the system.

        Raises:
            OSError: the disk is full; names the file and the size it is going to have.
        """
        if rows.shape[1:] != self.shape[1:] or self.rows + len(rows) > self.shape[0]:
            raise ValueError(f"{self.path}: rows {rows.shape} do not fit behind row {self.rows} of {self.shape}")
        try:
            self._file.write(np.ascontiguousarray(rows, dtype=self.dtype).data)
            self._file.flush()
        except OSError as error:
            size = np.prod(self.shape, dtype=np.int64) * self.dtype.itemsize
            raise OSError(
                error.errno, f"{error.strerror} while writing (it will have {size / 1e9:.2f} GB)", str(self.path)
            ) from error
        self.rows += len(rows)

    def close(self) -> None:
        """Close the file.

        Raises:
            ValueError: rows are missing.
        """
        self._file.close()
        if self.rows != self.shape[0]:
            raise ValueError(f"{self.path}: {self.rows} of {self.shape[0]} rows written")

    def __enter__(self) -> "GrowingArray":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()


def check_free_space(folder: Path, size: int, what: str) -> None:
    """Raise OSError when the disk under ``folder`` has less than ``size`` bytes left for ``what``."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if free < size:
        raise OSError(28, f"{what} need {size / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB left", str(folder))


In, Out = TypeVar("In"), TypeVar("Out")
DECODERS = 4  # threads; Pillow decodes outside Python's lock
BLOCK = 64  # images decoded between two writes


class Pixels:
    """uint8 pixels (3, size, size) of a list of images, read by row."""

    def __init__(self, image_paths: Sequence[str], size: int, array: np.ndarray | None = None):
        self.image_paths, self.size, self.array = list(image_paths), size, array

    def __len__(self) -> int:
        return len(self.image_paths)

    def read(self, rows: Sequence[int]) -> Tensor:
        """uint8 (B, 3, size, size) of these rows, from the cache or freshly decoded.

        Raises:
            rsvlm.data.images.ImageError: an image cannot be read; names the file.
        """
        if self.array is not None:
            return torch.from_numpy(self.array[np.asarray(rows, dtype=np.int64)])
        return decode_images([self.image_paths[row] for row in rows], self.size)


def open_pixels(
    image_paths: Sequence[str], size: int, *, cache_gigabytes: float = 4.0, log: Callable[[str], None] = log_line
) -> Pixels:
    """The pixels of these images at ``size`` x ``size``, through a cache in ``cache_folder()`` when it fits.

    The cache is keyed by the list, each file's size and time of change, and ``size``; it is built in a scratch file.

    Args:
        cache_gigabytes: the most that all caches together may take; more is streamed from the files. 0 streams.
    """
    needed = len(image_paths) * 3 * size * size
    if needed > cache_gigabytes * 1e9:
        if cache_gigabytes:
            log(
                f"{len(image_paths)} images at {size} px are {needed / 1e9:.1f} GB, more than cache_gigabytes = "
                f"{cache_gigabytes:g}: decoded anew each time"
            )
        return Pixels(image_paths, size)
    cache = cache_folder() / f"pixels_{fingerprint_images(image_paths, size)[:20]}.npy"
    if not cache.is_file():
        _drop_old_caches(cache_gigabytes * 1e9 - needed)
        check_free_space(cache.parent, needed, f"{len(image_paths)} decoded images")
        with whole_file(cache) as scratch, GrowingArray(scratch, (len(image_paths), 3, size, size), "uint8") as array:
            blocks = [image_paths[start : start + BLOCK] for start in range(0, len(image_paths), BLOCK)]
            for block in prefetch(lambda part: decode_images(part, size), blocks):
                array.append(block.numpy())
    os.utime(cache)  # the oldest use goes first when room is needed
    return Pixels(image_paths, size, np.load(cache, mmap_mode="r"))


def fingerprint_images(image_paths: Sequence[str], *more: object) -> str:
    """SHA-256, as hex, over the list of images and each file's size and time of change: for caches, not for results.

    Raises:
        FileNotFoundError: an image is missing; names it.
    """
    files = [Path(path).absolute() for path in image_paths]
    stats = [[stat.st_size, stat.st_mtime_ns] for stat in (file.stat() for file in files)]
    return fingerprint_values(READING, [str(file) for file in files], stats, *more)


def decode_images(image_paths: Sequence[str], size: int) -> Tensor:
    """uint8 (B, 3, size, size) of these files."""

    def decode(path: str) -> Tensor:
        return resize_images([open_image(path)], size)

    with ThreadPoolExecutor(DECODERS) as pool:
        return torch.cat(list(pool.map(decode, image_paths)))


def prefetch(make: Callable[[In], Out], items: Iterable[In], depth: int = 2) -> Iterator[Out]:
    """``make(item)`` for each item, in order, made up to ``depth`` ahead on a thread; errors come where they belong."""
    pool = ThreadPoolExecutor(1)
    try:
        waiting = deque()
        for item in items:
            waiting.append(pool.submit(make, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _drop_old_caches(allowed: float) -> None:
    """Remove torn caches a day old, and the caches used longest ago until the rest takes ``allowed`` bytes."""
    folder = cache_folder()
    for torn in folder.glob(".pixels_*.part"):
        if time.time() - torn.stat().st_mtime > 86400:
            torn.unlink(missing_ok=True)
    caches = sorted(folder.glob("pixels_*.npy"), key=lambda path: path.stat().st_mtime, reverse=True)
    total = 0
    for cache in caches:
        total += cache.stat().st_size
        if total > allowed:
            cache.unlink(missing_ok=True)
