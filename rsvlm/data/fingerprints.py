"""What the audit knows of an image file: SHA-256, size, perceptual hashes and a small grey picture, cached by content.

The hashes are ImageHash's pHash (64 bits). Of each image they are taken of its eight flips and quarter turns and of
five crops, so that a near-duplicate that was turned, mirrored or trimmed still meets one of them (see ``rsvlm.data.duplicates``).

The cache is one SQLite file with a row for each content (SHA-256): a killed run goes on where it was, a file that was
moved or copied is not decoded again, and a file that changed is.
"""

import os
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image

from rsvlm.data.images import READING, ImageError, check_file, open_image
from rsvlm.files import cache_folder, fingerprint_file

VERSION = f"1-{READING}"  # in the cache's name: raise the first number when what a row holds changes
SIDE = 48  # of the grey picture, pixels
CROP = 0.95  # share of the sides that a crop keeps
TURNS = (
    None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270, Image.Transpose.TRANSPOSE, Image.Transpose.TRANSVERSE,
)  # fmt: skip
TURN_NAMES = (
    "upright", "mirrored", "upside down", "turned by 90", "turned by 180", "turned by 270", "transposed",
    "transposed and turned by 180",
)  # fmt: skip
CROPS = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.5))  # where the room that a crop leaves lies
BYTES = 8  # of one hash
IN_ONE_PROCESS = 3_000  # images up to which starting more processes costs more than it saves
A_BATCH = 64  # images a worker takes at a time; so many are lost at most when a run is killed


@dataclass(frozen=True)
class Fingerprint:
    """One image file: ``turned`` (8, 8) and ``cropped`` (6, 8) uint8 hold a hash a row, first that of the whole image.

    ``grey`` (SIDE, SIDE) uint8 is the whole image, squeezed to a square.
    """

    path: Path
    sha256: str
    width: int
    height: int
    turned: np.ndarray
    cropped: np.ndarray
    grey: np.ndarray


def take_fingerprint(path: Path) -> tuple[int, int, bytes, bytes]:
    """Width, height, the hashes' bytes (8 turns, then 5 crops) and the grey picture's bytes of one image file.

    Raises:
        ImageError: the file is no image that can be read; names it.
    """
    image = open_image(path)
    grey = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    pictures = [grey if turn is None else grey.transpose(turn) for turn in TURNS]
    pictures += [grey.resize((32, 32), Image.Resampling.LANCZOS, box=crop_box(*place)) for place in CROPS]
    hashes = b"".join(np.packbits(imagehash.phash(picture).hash).tobytes() for picture in pictures)
    return image.width, image.height, hashes, grey.tobytes()


def crop_box(across: float, down: float, keep: float = CROP) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a crop of the grey picture; ``across`` and ``down``, 0 to 1, say where it lies."""
    room = SIDE * (1 - keep)
    return across * room, down * room, across * room + SIDE * keep, down * room + SIDE * keep


def fingerprint_images(
    paths: list[Path],
    *,
    cache: Path | None = None,
    processes: int | None = None,
    log: Callable[[str], None] | None = None,
) -> list[Fingerprint | ImageError]:
    """A Fingerprint for each path, in order; an ImageError in the place of a file that cannot be read as an image.

    Args:
        paths: image files.
        cache: folder of the cache; None takes ``cache_folder()``.
        processes: that decode at once; None takes one a usable core where that pays.
        log: takes a line now and then while many images are decoded.

    Raises:
        FileNotFoundError: a file is missing.
    """
    with ThreadPoolExecutor(max_workers=usable_cores()) as pool:  # hashing lets other threads work
        digests = list(pool.map(_hash_file, paths, chunksize=32))
    with closing(open_cache(cache)) as base:
        known = {row[0] for row in base.execute("SELECT sha256 FROM images")}
        pairs = zip(digests, paths, strict=True)
        todo = {digest: path for digest, path in pairs if isinstance(digest, str) and digest not in known}
        faults: dict[str, ImageError] = {}
        done = 0
        for batch in _take_all(list(todo.items()), processes):
            faults |= {digest: result for digest, result in batch if isinstance(result, ImageError)}
            rows = [(digest, *result) for digest, result in batch if not isinstance(result, ImageError)]
            with base:
                base.executemany("INSERT OR IGNORE INTO images VALUES (?, ?, ?, ?, ?)", rows)
            done += len(batch)
            if log and done // 20_000 > (done - len(batch)) // 20_000:
                log(f"{done:,} of {len(todo):,} new images decoded")
        readable = sorted({digest for digest in digests if isinstance(digest, str)} - set(faults))
        kept = {row[0]: row for row in _rows_of(base, readable)}
    results: list[Fingerprint | ImageError] = []
    for digest, path in zip(digests, paths, strict=True):
        if isinstance(digest, ImageError):
            results.append(digest)
        elif digest in kept:
            results.append(_fingerprint_of(kept[digest], path))
        else:  # an error names the first file with that content; the others get one with their own name
            results.append(ImageError(str(faults[digest]).replace(str(todo[digest]), str(path))))
    return results


def open_cache(folder: Path | None) -> sqlite3.Connection:
    """The cache of fingerprints in a folder (None: ``cache_folder()``), made where it is missing.

    Raises:
        ValueError: the file is damaged; says to delete it.
    """
    return open_base(
        cache_file(folder, f"fingerprints-{VERSION}"),
        "CREATE TABLE IF NOT EXISTS images (sha256 TEXT PRIMARY KEY, width INTEGER, height INTEGER, hashes BLOB, "
        "grey BLOB) WITHOUT ROWID",
    )


def cache_file(folder: Path | None, name: str) -> Path:
    """A cache's file in a folder; None takes ``cache_folder()``."""
    return (folder or cache_folder()) / f"{name}.sqlite"


def open_base(file: Path, *tables: str) -> sqlite3.Connection:
    """A cache in a file of its own, made with its tables where it is missing.

    Raises:
        ValueError: the file is damaged; says to delete it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    base = sqlite3.connect(file, timeout=60)
    try:
        base.execute("PRAGMA journal_mode=WAL")  # a reader and a writer do not wait for each other
        for table in tables:
            base.execute(table)
    except sqlite3.DatabaseError as error:
        base.close()
        raise ValueError(f"{file}: not a whole cache ({error}); delete it, it is made anew") from error
    return base


def _hash_file(path: Path) -> str | ImageError:
    """SHA-256 of an image file; an ImageError for what is no file, such as a named pipe: reading it would not end."""
    try:
        check_file(path)
    except ImageError as error:
        return error
    return fingerprint_file(path)


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _rows_of(base: sqlite3.Connection, digests: list[str]) -> Iterator[tuple]:
    """The cache's rows of some contents."""
    for start in range(0, len(digests), 500):  # SQLite takes so many values in one question
        part = digests[start : start + 500]
        yield from base.execute(f"SELECT * FROM images WHERE sha256 IN ({','.join('?' * len(part))})", part)


def _fingerprint_of(row: tuple, path: Path) -> Fingerprint:
    sha256, width, height, hashes, grey = row
    codes = np.frombuffer(hashes, dtype=np.uint8).reshape(-1, BYTES)
    turned, cropped = codes[: len(TURNS)], codes[[0, *range(len(TURNS), len(codes))]]
    return Fingerprint(path, sha256, width, height, turned, cropped, np.frombuffer(grey, np.uint8).reshape(SIDE, SIDE))


def _take_all(todo: list[tuple[str, Path]], processes: int | None) -> Iterator[list[tuple[str, object]]]:
    """Results in batches, as they come; from several processes where there are many images."""
    batches = [todo[start : start + A_BATCH] for start in range(0, len(todo), A_BATCH)]
    several = processes is not None or len(todo) > IN_ONE_PROCESS
    yield from map_batches(_take_batch, batches, (processes or usable_cores()) if several else 1)


def map_batches(work: Callable, batches: Iterable, processes: int) -> Iterator:
    """What ``work``, a module's function, returns for each batch, in order; in so many processes at once."""
    if processes < 2:
        yield from map(work, batches)
        return
    # Fresh processes: a fork of a notebook's kernel would copy its threads' locks.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_end_with_parent) as pool:
        yield from pool.map(work, batches)


def _end_with_parent() -> None:
    """Let this worker end when the process that started it is killed; a pool's workers would wait for ever."""

    def wait() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _take_batch(batch: list[tuple[str, Path]]) -> list[tuple[str, object]]:
    """What ``take_fingerprint`` returns for each file of a batch, or its ImageError."""
    results = []
    for digest, path in batch:
        try:
            results.append((digest, take_fingerprint(path)))
        except ImageError as error:
            results.append((digest, error))
    return results
