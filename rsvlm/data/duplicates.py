"""Pairs of images that show the same: equal files, or re-encoded, resized, brightened, cropped or turned copies.

The same ground at another zoom, shift or date is not found here but by ``rsvlm.data.local_features``.

Each image is decoded once, for its fingerprint: SHA-256, size, a small grey picture and ImageHash's pHash (64 bits) of
its eight flips and quarter turns and of five crops, so that a copy that was turned, mirrored or trimmed still meets one
of them. Fingerprints are kept by content: a killed run goes on where it was, a file that was moved or copied is not
decoded again, and a file that changed is. Then three steps, each cheaper than comparing all pairs in the next one's way:

1. Candidates are pairs whose perceptual hashes differ in at most DISTANCE of 64 bits. faiss finds them by multi-index
   hashing (Norouzi et al. 2012): a hash is cut into three parts, and two hashes meet when they agree in all but two
   bits of one part. That finds all within eight bits and 91 % of those nine bits apart (if the bits differ at random),
   and compares a hash with a three-thousandth of the others.
2. The grey pictures, turned alike and shifted into each other, must correlate by at least COARSE.
3. The fine detail of the two files, what a blur takes away, must correlate by at least DETAIL: of hashes and small
   pictures alone every straight beach and every runway would be the near-duplicate of another.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from multiprocessing import get_context, parent_process
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image
from scipy import fft, ndimage

from rsvlm.cluster import Shard, chosen_cluster, map_shards, open_workers, usable_cores
from rsvlm.content_cache import ContentCache
from rsvlm.data.images import FULL_SIZE, READING, ImageError, check_file, open_image
from rsvlm.data.packed import digest_of
from rsvlm.data.spill import Made, Records
from rsvlm.extras import import_extra
from rsvlm.files import cache_folder
from rsvlm.progress import Passing

VERSION = f"2-{READING}"  # of what is kept: raise the first number when what a fingerprint holds changes
KINDS = ("equal_files", "copy", "same_ground")  # a copy is of the same shot and shows all or nearly all of it
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
DISTANCE = 9  # bits of 64 in which two hashes may differ
PARTS, PART_BITS, FLIPS = 3, 21, 2  # long parts make small buckets, whose size is what a large audit takes time for
COARSE, DETAIL = 0.80, 0.85  # least correlations; benchmarks/near_duplicates.py shows what they find and refuse
CONTRAST = 3.0  # standard deviation of the grey picture, of 255, below which there is nothing to compare
QUERIES = 20_000  # at a time, so that memory stays bounded
COARSE_SIDE, DETAIL_SIDE = 32, 64  # pixels
SHIFTS = tuple((across, down) for across in (0.0, 0.25, 0.5, 0.75, 1.0) for down in (0.0, 0.25, 0.5, 0.75, 1.0))
FARTHEST = 0.15  # of the side, that two pictures may lie apart in step 3


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


@dataclass(frozen=True, order=True)
class Pair:
    """Two images, by their places in the list (first < second), and how alike they are.

    The last four are of pairs that local features found (rsvlm.data.local_features), the correlation is of the others.
    """

    first: int
    second: int
    exact: bool  # the files are equal byte for byte
    turn: str  # how the second lies against the first, one of TURN_NAMES
    correlation: float | None  # of the fine detail, -1 to 1
    zoom: float | None = None  # how many times larger the ground is in the second than in the first
    degrees: float | None = None  # by which the second is turned clockwise, after any mirroring, -180 to 180
    overlap: float | None = None  # share of the second that the first shows too
    matches: int | None = None  # points of the two that agree

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return KINDS[0] if self.exact else KINDS[1] if self.matches is None else KINDS[2]


def fingerprint_images(
    paths: list[Path],
    *,
    cache: Path | None = None,
    processes: int | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> Sequence[Fingerprint | ImageError]:
    """A Fingerprint for each path, in order; an ImageError in the place of a file that cannot be read as an image.

    They lie on disk, 2.4 kB each, until they are looked at.

    Args:
        cache: folder where fingerprints are kept; None takes ``cache_folder()``.
        processes: that decode at once; None takes one a usable core where that pays.
        log: takes a line now and then while many images are decoded.

    Raises:
        FileNotFoundError: a file is missing.
    """
    with ThreadPoolExecutor(max_workers=usable_cores()) as pool:  # hashing lets other threads work
        digests = list(pool.map(_hash_file, paths))
    path_of = {digest: path for digest, path in zip(digests, paths, strict=True) if isinstance(digest, str)}
    kind = f"fingerprint {VERSION}"
    with ContentCache(cache or cache_folder()) as kept:
        several = processes or (usable_cores() if len(path_of) > IN_ONE_PROCESS else 1)
        taken = "new images decoded"
        faults = keep_missing(kept, kind, path_of, _take_batch, A_BATCH, several, log, taken, elsewhere=True)
        records, numbers = Records(cache or cache_folder()), {}
        for digest, value in kept.read(kind, path_of):
            numbers[digest] = len(records)
            records.append(value)

    def take(place: int) -> Fingerprint | ImageError:
        digest, path = digests[place], paths[place]
        if isinstance(digest, ImageError):
            return digest
        if digest in numbers:
            return _fingerprint_of(digest, records[numbers[digest]], path)
        # An error names one file with that content; the others get one with their own name.
        return ImageError(str(faults[digest]).replace(str(path_of[digest]), str(path)))

    return Made(len(paths), take)


def take_fingerprint(path: Path) -> bytes:
    """What is kept of one image file: width and height (int32), the hashes (8 turns, then 5 crops), the grey picture.

    Raises:
        ImageError: the file is no image that can be read; names it.
    """
    image = open_image(path)
    grey = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    pictures = [grey if turn is None else grey.transpose(turn) for turn in TURNS]
    pictures += [grey.resize((32, 32), Image.Resampling.LANCZOS, box=crop_box(*place)) for place in CROPS]
    hashes = b"".join(np.packbits(imagehash.phash(picture).hash).tobytes() for picture in pictures)
    return np.array(image.info.get(FULL_SIZE, image.size), np.int32).tobytes() + hashes + grey.tobytes()


def crop_box(across: float, down: float, keep: float = CROP) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a crop of the grey picture; ``across`` and ``down``, 0 to 1, say where it lies."""
    room = SIDE * (1 - keep)
    return across * room, down * room, across * room + SIDE * keep, down * room + SIDE * keep


def _fingerprint_of(digest: str, kept: bytes, path: Path) -> Fingerprint:
    width, height = np.frombuffer(kept, np.int32, 2).tolist()
    codes = np.frombuffer(kept, np.uint8, -1, 8)
    codes, grey = codes[: -SIDE * SIDE].reshape(-1, BYTES), codes[-SIDE * SIDE :].reshape(SIDE, SIDE)
    cropped = codes[[0, *range(len(TURNS), len(codes))]]
    return Fingerprint(path, digest, width, height, codes[: len(TURNS)], cropped, grey)


def _hash_file(path: Path) -> str | ImageError:
    """SHA-256 of an image file; an ImageError for what is no file, such as a named pipe: reading it would not end."""
    try:
        check_file(path)
        return digest_of(path)
    except ImageError as error:
        return error


def _take_batch(batch: list[tuple[str, Path]]) -> dict[str, bytes | ImageError]:
    results: dict[str, bytes | ImageError] = {}
    for digest, path in batch:
        try:
            results[digest] = take_fingerprint(path)
        except ImageError as error:
            results[digest] = error
    return results


def keep_missing(
    cache: ContentCache, kind: str, items: Mapping[str, object], work: Callable, size: int, processes: int,
    log: Callable[[str], None], what: str, *, elsewhere: bool = False,
) -> dict[str, ImageError]:  # fmt: skip
    """Have everything computed that the cache lacks of some contents, a batch kept at a time; the errors by content.

    Args:
        elsewhere: many batches may go to the machine's cluster (``rsvlm.cluster``): ``work`` needs nothing but the items.
        items: content -> what ``work`` needs for it.
        work: a module's function; takes a list of (content, item), returns content -> value or ImageError.
        size: contents a batch.
        log: takes a line every hundred batches; ``what`` ends it.
    """
    todo = [(content, items[content]) for content in cache.lacks(kind, items)]
    faults: dict[str, ImageError] = {}
    far = elsewhere and len(todo) > IN_ONE_PROCESS and chosen_cluster()
    made = _on_cluster(work, todo, size, what, log) if far else map_batches(work, todo, size, processes)
    for number, results in enumerate(made, start=1):
        faults |= {content: value for content, value in results.items() if isinstance(value, ImageError)}
        cache.keep(kind, {content: value for content, value in results.items() if content not in faults})
        if number % 100 == 0:
            log(Passing(f"{min(number * size, len(todo)):,} of {len(todo):,} {what}"))
    return faults


def _on_cluster(work: Callable, items: list, size: int, what: str, log: Callable[[str], None]) -> Iterator:
    """As ``map_batches``, in the order in which they come."""
    batches = [items[start : start + size] for start in range(0, len(items), size)]
    shards = [Shard(f"{batch[0][1]} and {len(batch) - 1} more", batch, len(batch)) for batch in batches]
    with open_workers(log=log) as workers:
        for _, result in map_shards(partial(_batch_by_batch, work), shards, workers, what=what, unit="img"):
            yield result


def _batch_by_batch(work: Callable, _: None, batches: Iterable[list], tick: Callable[[int], object]) -> Iterator:
    for batch in batches:
        yield work(batch)
        tick(len(batch))


def map_batches(work: Callable, items: list, size: int, processes: int) -> Iterator:
    """What ``work``, a module's function, returns for each ``size`` items, in order; in so many processes at once."""
    batches = [items[start : start + size] for start in range(0, len(items), size)]
    if processes < 2 or not batches:
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


def find_pairs(prints: Sequence[Fingerprint], detail: float = DETAIL) -> list[Pair]:
    """All pairs of near-duplicates, sorted. Images without contrast pair only with files equal to theirs.

    Args:
        prints: one an image.
        detail: least correlation of the fine detail.
    """
    same: dict[str, list[int]] = {}
    for place, one in enumerate(prints):
        same.setdefault(one.sha256, []).append(place)
    pairs = [
        Pair(first, second, True, TURN_NAMES[0], 1.0)
        for places in same.values()
        for number, first in enumerate(places)
        for second in places[number + 1 :]
    ]
    for a, b, turn, value in _near_duplicates_of(prints, sorted(places[0] for places in same.values()), detail):
        for one in same[prints[a].sha256]:
            for other in same[prints[b].sha256]:
                name = TURN_NAMES[turn if one < other else _inverse(turn)]
                pairs.append(Pair(min(one, other), max(one, other), False, name, round(value, 4)))
    return sorted(pairs)


def without_contrast(prints: Sequence[Fingerprint]) -> list[int]:
    """Places of images that are too even to be compared."""
    return [place for place, one in enumerate(prints) if one.grey.std() < CONTRAST]


def detail_correlation(first: Image.Image, second: Image.Image) -> float:
    """The highest correlation of the fine detail of two pictures over shifts up to FARTHEST of the side.

    Both as they are, and either as a crop of the other (CROP of its sides). Both are squeezed to squares.
    """
    cropped = round(CROP * DETAIL_SIDE)
    a, b = _detail(first, DETAIL_SIDE), _detail(second, DETAIL_SIDE)
    return max(_best_match(a, b), _best_match(a, _detail(second, cropped)), _best_match(_detail(first, cropped), b))


def _near_duplicates_of(
    prints: Sequence[Fingerprint], places: list[int], least: float
) -> Iterator[tuple[int, int, int, float]]:
    """(a, b, turn of b against a, correlation of the detail) of each pair among some places that passes all steps."""
    open_grey = lru_cache(maxsize=512)(lambda place: open_image(prints[place].path).convert("L"))
    coarse: dict[tuple[int, int], dict[int, float]] = {}
    for a, b, turn, value in _alike(prints, places):
        if value >= COARSE:
            coarse.setdefault((min(a, b), max(a, b)), {})[turn if a < b else _inverse(turn)] = value
    for (a, b), turns in sorted(coarse.items()):
        found = []
        for turn in sorted(turns):
            picture = open_grey(b) if TURNS[turn] is None else open_grey(b).transpose(TURNS[turn])
            found.append((detail_correlation(open_grey(a), picture), turn))
        value, turn = max(found, key=lambda pair: (pair[0], -pair[1]))
        if value >= least:
            yield a, b, turn, value


def _alike(prints: Sequence[Fingerprint], places: list[int]) -> Iterator[tuple[int, int, int, float]]:
    """Candidates as (whole or cropped image, turned image, its turn, correlation of the grey pictures)."""
    even = set(without_contrast(prints))
    places = [place for place in places if place not in even]
    if len(places) < 2:
        return
    hashes = np.stack([np.concatenate([one.turned, one.cropped]) for one in (prints[place] for place in places)])
    turned, cropped = (part.reshape(-1, BYTES) for part in np.split(hashes, [len(TURNS)], axis=1))
    faiss = import_extra("faiss", "the search for near-duplicates")
    index = faiss.IndexBinaryMultiHash(8 * BYTES, PARTS, PART_BITS)
    index.nflip = FLIPS
    index.add(turned)
    crops = len(cropped) // len(places)
    step = QUERIES // crops * crops  # an image's queries stay together
    for start in range(0, len(cropped), step):
        limits, _, found = index.range_search(cropped[start : start + step], DISTANCE + 1)
        asked = (start + np.repeat(np.arange(len(limits) - 1), np.diff(limits.astype(np.int64)))) // crops
        met, turns = found // len(TURNS), found % len(TURNS)
        other = asked != met
        candidates = np.unique(np.stack([asked[other], met[other], turns[other]], axis=1), axis=0)
        for group in np.split(candidates, np.flatnonzero(np.diff(candidates[:, 0])) + 1):
            if len(group):
                first = places[group[0, 0]]
                views = _views_of(prints[first].grey)
                for _, second, turn in group.tolist():
                    value = float((views @ _unit_turned(prints[places[second]].grey, turn)).max())
                    yield first, places[second], turn, value


def _views_of(grey: np.ndarray) -> np.ndarray:
    """The whole grey picture and its crops, each as a row of mean 0 and length 1."""
    image = Image.fromarray(grey)
    boxes = [(0, 0, SIDE, SIDE), *(crop_box(*shift) for shift in SHIFTS)]
    size = (COARSE_SIDE, COARSE_SIDE)
    return np.stack([_unit(image.resize(size, Image.Resampling.BILINEAR, box=box)) for box in boxes])


def _unit_turned(grey: np.ndarray, turn: int) -> np.ndarray:
    image = Image.fromarray(grey)
    image = image if TURNS[turn] is None else image.transpose(TURNS[turn])
    return _unit(image.resize((COARSE_SIDE, COARSE_SIDE), Image.Resampling.BILINEAR))


def _unit(image: Image.Image) -> np.ndarray:
    values = np.asarray(image, dtype=np.float32).ravel()
    values = values - values.mean()
    return values / max(float(np.linalg.norm(values)), 1e-6)


def _detail(picture: Image.Image, side: int) -> np.ndarray:
    """What lies between a slight and a stronger blur of a picture, (side, side), mean 0."""
    grey = np.asarray(picture.convert("L").resize((side, side), Image.Resampling.BOX), dtype=np.float32)
    band = ndimage.gaussian_filter(grey, 0.7) - ndimage.gaussian_filter(grey, 2.0)
    return band - band.mean()


def _best_match(a: np.ndarray, b: np.ndarray) -> float:
    """The highest normalised correlation of two square pictures over all shifts, each over what overlaps.

    By Fourier transforms, as Padfield (2012) does for masked pictures.
    """
    side = len(a)
    farthest = round(FARTHEST * side)
    size = fft.next_fast_len(len(a) + len(b), real=True)

    def transform(values: np.ndarray) -> np.ndarray:
        return fft.rfft2(values, (size, size))

    def correlate(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        values = fft.irfft2(x * np.conj(y), (size, size))
        shifts = np.arange(-farthest, farthest + 1)
        return values[np.ix_(shifts, shifts)]

    ones_a, ones_b = transform(np.ones_like(a)), transform(np.ones_like(b))
    energy_a, energy_b = correlate(transform(a * a), ones_b), correlate(ones_a, transform(b * b))
    product = correlate(transform(a), transform(b))
    return float((product / np.sqrt(np.maximum(energy_a * energy_b, 1e-6))).max())


def _inverse(turn: int) -> int:
    """The turn that undoes another: the quarter turns undo each other, the rest undo themselves."""
    return {3: 5, 5: 3}.get(turn, turn)
