"""Pixels of many images at one size: decoded once into a memory-mapped cache, or streamed when that grows too large."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from rsvlm import paths
from rsvlm.data.images import READING, open_image, resolve_image
from rsvlm.files import fingerprint_values, whole_file
from rsvlm.models.encoders import resize_images
from rsvlm.models.growing import GrowingArray, check_free_space
from rsvlm.models.progress import log_line

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


def open_pixels(image_paths: Sequence[str], size: int, *, cache_gigabytes: float = 4.0,
                log: Callable[[str], None] = log_line) -> Pixels:
    """The pixels of these images at ``size`` x ``size``, through a cache in ``paths.CACHE`` when it fits.

    The cache is keyed by the list, each file's size and time of change, and ``size``; it is built in a scratch file.

    Args:
        cache_gigabytes: the most that all caches together may take; more is streamed from the files. 0 streams.
    """
    needed = len(image_paths) * 3 * size * size
    if needed > cache_gigabytes * 1e9:
        if cache_gigabytes:
            log(f"{len(image_paths)} images at {size} px are {needed / 1e9:.1f} GB, more than cache_gigabytes = "
                f"{cache_gigabytes:g}: decoded anew each time")
        return Pixels(image_paths, size)
    cache = paths.CACHE / f"pixels_{fingerprint_images(image_paths, size)[:20]}.npy"
    if not cache.is_file():
        _drop_old_caches(cache_gigabytes * 1e9 - needed)
        check_free_space(cache.parent, needed, f"{len(image_paths)} decoded images")
        with whole_file(cache) as scratch, \
                GrowingArray(scratch, (len(image_paths), 3, size, size), "uint8") as array:
            blocks = [image_paths[start:start + BLOCK] for start in range(0, len(image_paths), BLOCK)]
            for block in prefetch(lambda part: decode_images(part, size), blocks):
                array.append(block.numpy())
    os.utime(cache)  # the oldest use goes first when room is needed
    return Pixels(image_paths, size, np.load(cache, mmap_mode="r"))


def fingerprint_images(image_paths: Sequence[str], *more: object) -> str:
    """SHA-256, as hex, over the list of images and each file's size and time of change: for caches, not for results.

    Raises:
        FileNotFoundError: an image is missing; names it.
    """
    stats = [resolve_image(path).stat() for path in image_paths]
    return fingerprint_values(READING, list(image_paths), [[stat.st_size, stat.st_mtime_ns] for stat in stats], *more)


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
    for torn in paths.CACHE.glob(".pixels_*.part"):
        if time.time() - torn.stat().st_mtime > 86400:
            torn.unlink(missing_ok=True)
    caches = sorted(paths.CACHE.glob("pixels_*.npy"), key=lambda path: path.stat().st_mtime, reverse=True)
    total = 0
    for cache in caches:
        total += cache.stat().st_size
        if total > allowed:
            cache.unlink(missing_ok=True)
