"""The pixels that an encoder trains on: decoded once into a cache, read by row, turned and cropped anew at each step."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rsvlm.disks import check_free_space
from rsvlm.files import cache_folder, read_array, whole_file
from rsvlm.models.encoders import Preprocessing
from rsvlm.models.encoding import decode_images, prefetch
from rsvlm.models.feature_shards import fingerprint_images, open_rows, write_rows
from rsvlm.progress import Passing, log_line
from rsvlm.settings import Augmentation

DECODED = 64  # images decoded between two writes


class Pixels:
    """uint8 pixels (3, S, S) of a list of images, read by row."""

    def __init__(self, image_paths: Sequence[str], preprocessing: Preprocessing, array: np.ndarray | None = None):
        self.image_paths, self.preprocessing, self.array = list(image_paths), preprocessing, array

    def __len__(self) -> int:
        return len(self.image_paths)

    def read(self, rows: Sequence[int]) -> Tensor:
        """uint8 (B, 3, S, S) of these rows, from the cache or freshly decoded.

        Raises:
            rsvlm.data.images.ImageError: an image cannot be read; names the file.
        """
        if self.array is not None:
            return torch.from_numpy(self.array[np.asarray(rows, dtype=np.int64)])
        return decode_images([self.image_paths[row] for row in rows], self.preprocessing)


def open_pixels(
    image_paths: Sequence[str],
    preprocessing: Preprocessing,
    *,
    cache_gigabytes: float = 4.0,
    log: Callable[[str], None] = log_line,
) -> Pixels:
    """The pixels of these images, prepared so, through a cache in ``cache_folder()`` when it fits.

    The cache is keyed by the list, each file's size and time of change, and how pictures are prepared; it is built in a
    scratch file.

    Args:
        cache_gigabytes: the most that all caches together may take; more is streamed from the files. 0 streams.
    """
    size = preprocessing.size
    needed = len(image_paths) * 3 * size * size
    if needed > cache_gigabytes * 1e9:
        if cache_gigabytes:
            log(
                f"{len(image_paths)} images at {size} px are {needed / 1e9:.1f} GB, more than cache_gigabytes = "
                f"{cache_gigabytes:g}: decoded anew each time"
            )
        return Pixels(image_paths, preprocessing)
    cache = cache_folder() / f"pixels_{fingerprint_images(image_paths, *preprocessing.geometry)[:20]}.npy"
    pixels = _kept_pixels(cache, (len(image_paths), 3, size, size), log)
    if pixels is None:
        _drop_old_caches(cache_gigabytes * 1e9 - needed)
        check_free_space(cache.parent, needed, f"{len(image_paths)} decoded images")
        with whole_file(cache) as scratch, open_rows(scratch, (len(image_paths), 3, size, size), "uint8") as file:
            blocks = [image_paths[start : start + DECODED] for start in range(0, len(image_paths), DECODED)]
            for block in prefetch(lambda part: decode_images(part, preprocessing), blocks):
                write_rows(file, block.numpy())
        pixels = _kept_pixels(cache, (len(image_paths), 3, size, size), log)
    return Pixels(image_paths, preprocessing, pixels)  # without an array, where another process dropped the cache


def _kept_pixels(cache: Path, shape: tuple[int, ...], log: Callable[[str], None]) -> np.ndarray | None:
    """The pixels in a cache, memory-mapped; None where there is none, or, with a line, where it is damaged."""
    try:
        os.utime(cache)  # the oldest use goes first when room is needed
        pixels = read_array(cache, mapped=True)
        if pixels.shape != shape:
            raise ValueError(f"shape {pixels.shape} instead of {shape}")
    except FileNotFoundError:
        return None
    except ValueError as error:
        log(Passing(f"{cache}: damaged ({error}): made anew"))
        return None
    return pixels


def _drop_old_caches(allowed: float) -> None:
    """Remove the caches used longest ago until the rest takes ``allowed`` bytes. Other processes may do so, too."""
    stats = {}
    for cache in cache_folder().glob("pixels_*.npy"):
        with suppress(FileNotFoundError):
            stats[cache] = cache.stat()
    total = 0
    for cache, stat in sorted(stats.items(), key=lambda own: own[1].st_mtime, reverse=True):
        total += stat.st_size
        if total > allowed:
            cache.unlink(missing_ok=True)


def augment(
    pixels: Tensor,
    size: int,
    generator: np.random.Generator,
    settings: Augmentation,
    *,
    part: slice = slice(None),
    of: int | None = None,
) -> Tensor:
    """float32 (b, 3, size, size), values 0-255, of uint8 (b, 3, H, W): the same generator state, the same pixels.

    Args:
        part, of: ``pixels`` are this part of a batch of ``of`` images, and get what they would get in the whole batch.
    """
    B, b = of or len(pixels), len(pixels)
    turns = generator.integers(4, size=B) if settings.rotations else np.zeros(B, dtype=np.int64)
    mirrors = generator.choice([-1.0, 1.0], B) if settings.flips else np.ones(B)
    side = np.sqrt(generator.uniform(settings.crop_min, 1, B)) if settings.crop_min < 1 else np.ones(B)
    shifts = generator.uniform(-1, 1, (B, 2)) * (1 - side)[:, None]  # the crop stays inside
    factors = generator.uniform(1 - settings.brightness, 1 + settings.brightness, B)

    cosine, sine = np.array([1, 0, -1, 0])[turns], np.array([0, 1, 0, -1])[turns]
    affine = np.stack(
        [
            np.stack([side * cosine * mirrors, -side * sine, shifts[:, 0]], -1),
            np.stack([side * sine * mirrors, side * cosine, shifts[:, 1]], -1),
        ],
        1,
    )[part]  # (b, 2, 3)
    places = F.affine_grid(torch.from_numpy(affine).float().to(pixels.device), [b, 3, size, size], align_corners=False)
    cropped = F.grid_sample(pixels.float(), places, mode="bilinear", padding_mode="reflection", align_corners=False)
    factors = torch.from_numpy(factors[part]).float().to(pixels.device)
    return (cropped * factors[:, None, None, None]).clamp_(0, 255)
