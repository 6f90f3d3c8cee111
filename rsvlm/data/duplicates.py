"""Pairs of images that show the same: equal files, or re-encoded, resized, brightened, cropped or turned copies.

The same ground at another zoom, shift or date is not found here but by ``rsvlm.data.local_features``.

Three steps, each cheaper than comparing all pairs in the next one's way:

1. Candidates are pairs whose perceptual hashes differ in at most DISTANCE of 64 bits. faiss finds them by multi-index
   hashing (Norouzi et al. 2012): a hash is cut into three parts, and two hashes meet when they agree in all but two
   bits of one part. That finds all within eight bits and 91 % of those nine bits apart (if the bits differ at random),
   and compares a hash with a three-thousandth of the others.
2. The grey pictures, turned alike and shifted into each other, must correlate by at least COARSE.
3. The fine detail of the two files, what a blur takes away, must correlate by at least DETAIL: of hashes and small
   pictures alone every straight beach and every runway would be the near-duplicate of another.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image
from scipy import fft, ndimage

from rsvlm.data.fingerprints import BYTES, CROP, SIDE, TURN_NAMES, TURNS, Fingerprint, crop_box
from rsvlm.data.images import open_image
from rsvlm.extras import import_extra

KINDS = ("equal_files", "copy", "same_ground")  # a copy is of the same shot and shows all or nearly all of it
DISTANCE = 9  # bits of 64 in which two hashes may differ
PARTS, PART_BITS, FLIPS = 3, 21, 2  # long parts make small buckets, whose size is what a large audit takes time for
COARSE, DETAIL = (
    0.80,
    0.85,
)  # least correlations; benchmarks/near_duplicates.py shows what they find and what they refuse
CONTRAST = 3.0  # standard deviation of the grey picture, of 255, below which there is nothing to compare
QUERIES = 20_000  # at a time, so that memory stays bounded
COARSE_SIDE, DETAIL_SIDE = 32, 64  # pixels
SHIFTS = tuple((across, down) for across in (0.0, 0.25, 0.5, 0.75, 1.0) for down in (0.0, 0.25, 0.5, 0.75, 1.0))
FARTHEST = 0.15  # of the side, that two pictures may lie apart in step 3


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


def find_pairs(prints: list[Fingerprint], detail: float = DETAIL) -> list[Pair]:
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


def without_contrast(prints: list[Fingerprint]) -> list[int]:
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
    prints: list[Fingerprint], places: list[int], least: float
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


def _alike(prints: list[Fingerprint], places: list[int]) -> Iterator[tuple[int, int, int, float]]:
    """Candidates as (whole or cropped image, turned image, its turn, correlation of the grey pictures)."""
    even = set(without_contrast(prints))
    places = [place for place in places if place not in even]
    if len(places) < 2:
        return
    turned = np.concatenate([prints[place].turned for place in places])
    cropped = np.concatenate([prints[place].cropped for place in places])
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
