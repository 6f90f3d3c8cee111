"""Pairs of images that show the same ground at another zoom, shift, turn or date: what hashes of whole images miss.

1. SIFT (Lowe 2004) finds up to FEATURES points in each image and describes each by 128 numbers.
2. Candidates are the NEAREST images by one vector an image that sums up its descriptors (VLAD, Jégou et al. 2010), to
   each image as it is and to its mirror image. The other pairs are never compared.
3. Points of a candidate pair match where each one's descriptor is the other's nearest by far (Lowe's ratio test).
   RANSAC fits one zoom, turn and shift to them; a match counts that also agrees with these in size and direction.
4. Two images are a pair when MATCHES count, or FEW_MATCHES that are a good share of all points where they overlap. Then
   they must share LEAST_OVERLAP of one of them, at a zoom of at most MOST_ZOOM: neighbours that touch are no pair.

Features and comparisons are kept by content: a second run computes nothing again, and a killed one goes on where it was.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import parent_process
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image

from rsvlm.cluster import usable_cores
from rsvlm.content_cache import ContentCache
from rsvlm.data.duplicates import TURN_NAMES, Fingerprint, Pair, keep_missing
from rsvlm.data.images import READING, open_image
from rsvlm.extras import import_extra
from rsvlm.files import cache_folder, fingerprint_values
from rsvlm.kernels import similarity_topk

VERSION = f"3-{READING}"  # of what is kept: raise the first number when features or comparisons change
LEAST_SIDE = 96  # pixels; smaller images have too few points to tell places apart
LONGEST_SIDE = 320  # pixels, to which larger images are shrunk
FEATURES = 256  # points an image, those with the strongest response
CONTRAST = 0.02  # SIFT's threshold; half of OpenCV's, for soft images
CENTRES, PARTS = 64, 64  # of the vectors that sum up descriptors: words, and numbers a descriptor is reduced to
SAMPLE = 100_000  # descriptors that the words are learnt from
NEAREST = 10  # candidates an image, and as many of its mirror image
RATIO = 0.8  # of the distances to the nearest and the second descriptor (Lowe 2004)
TOLERANCE = 3.0  # pixels between a point and its match's fitted place
OCTAVES, DEGREES = 0.5, 25.0  # by which a match's change of size and direction may differ from the fitted ones
FEATURES_OF, PAIR_OF, CANDIDATES_OF = (f"{what} {VERSION}" for what in ("local features", "pair", "candidates"))
MATCHES, FEW_MATCHES, SHARE = 15, 8, 0.3  # benchmarks/near_duplicates.py shows what they find and refuse
LEAST_OVERLAP, MOST_ZOOM = 0.3, 2.5
A_BATCH = 32  # images a worker takes at a time
PAIRS_A_BATCH = 256
A_BLOCK = 500  # images summed up at a time
IN_ONE_PROCESS = 200  # images up to which starting more processes costs more than it saves
# Where each number of a descriptor (4 x 4 cells of 8 directions) lies in that of the mirror image.
MIRRORED = np.array([8 * (4 * (3 - y) + x) + -way % 8 for y in range(4) for x in range(4) for way in range(8)])


@dataclass(frozen=True)
class Features:
    """Points (N, 4) float32, x, y, size in pixels and direction in degrees; descriptors (N, 128) uint8; the sizes."""

    points: np.ndarray
    descriptors: np.ndarray
    width: int
    height: int

    def mirrored(self) -> "Features":
        """Those of the mirror image, without looking at it."""
        points = self.points.copy()
        points[:, 0] = self.width - 1 - points[:, 0]
        points[:, 3] = (180 - points[:, 3]) % 360
        return Features(points, self.descriptors[:, MIRRORED], self.width, self.height)

    def packed(self) -> bytes:
        """What is kept of them: the sizes as int32, the points as float16, the descriptors."""
        sizes = np.array([self.width, self.height], np.int32)
        return sizes.tobytes() + self.points.astype(np.float16).tobytes() + self.descriptors.tobytes()

    @staticmethod
    def unpacked(kept: bytes) -> "Features":
        """Those that ``packed`` gave these bytes of."""
        count = (len(kept) - 8) // 136
        points = np.frombuffer(kept, np.float16, 4 * count, 8).reshape(-1, 4).astype(np.float32)
        descriptors = np.frombuffer(kept, np.uint8, -1, 8 + 8 * count).reshape(-1, 128)
        return Features(points, descriptors, *np.frombuffer(kept, np.int32, 2).tolist())


def find_same_ground(
    prints: Sequence[Fingerprint],
    skip: set[tuple[int, int]],
    *,
    cache: Path | None = None,
    processes: int | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> tuple[list[Pair], dict[str, int]]:
    """All pairs found, sorted, and how many images and pairs were compared and how many images are too small.

    Args:
        prints: one an image.
        skip: pairs (first < second) that are known already.
        cache: folder of the cache; None takes ``cache_folder()``.
        processes: that work at once; None takes one a usable core where that pays.
        log: takes a line now and then.

    Raises:
        ModuleNotFoundError: OpenCV is missing; says how to install it.
    """
    same: dict[str, list[int]] = {}
    for place, one in enumerate(prints):
        if min(one.width, one.height) >= LEAST_SIDE:
            same.setdefault(one.sha256, []).append(place)
    large = sum(map(len, same.values()))
    counts = {"images": large, "images_too_small": len(prints) - large, "pairs_compared": 0}
    if len(same) < 2:
        return [], counts
    import_extra("cv2", "looking for the same ground", "leave it out (find_same_ground: false; --no-same-ground)")
    wanted = processes or (usable_cores() if len(same) > IN_ONE_PROCESS else 1)
    folder = cache or cache_folder()
    with ContentCache(folder) as kept:
        files = {digest: prints[places[0]].path for digest, places in same.items()}
        taken = "new images' local features taken"
        keep_missing(kept, FEATURES_OF, files, _take_batch, A_BATCH, wanted, log, taken, elsewhere=True)
        known = {frozenset((prints[a].sha256, prints[b].sha256)) for a, b in skip}
        candidates = [pair for pair in candidate_pairs(kept, list(files)) if frozenset(pair[:2]) not in known]
        counts["pairs_compared"] = len({pair[:2] for pair in candidates})
        compare = partial(_compare_batch, folder)
        named = {" ".join(map(str, pair)): pair for pair in candidates}
        keep_missing(kept, PAIR_OF, named, compare, PAIRS_A_BATCH, wanted, log, "new pairs compared")
        found: dict[tuple[int, int], Pair] = {}
        for name, facts in kept.read(PAIR_OF, named):
            first, second, mirrored = named[name]
            row = json.loads(facts)
            if not _is_pair(row):
                continue
            for one in same[first]:
                for other in same[second]:
                    pair = _in_list_order(one, other, bool(mirrored), row)
                    baseline = found.get((pair.first, pair.second))
                    if baseline is None or baseline.matches < pair.matches:
                        found[pair.first, pair.second] = pair
    return sorted(pair for key, pair in found.items() if key not in skip), counts


def take_features(image: Image.Image) -> Features:
    """The SIFT features of a picture, shrunk to LONGEST_SIDE."""
    import cv2  # 60 MB

    shrink = max(image.size) / LONGEST_SIDE
    if shrink > 1:
        size = (round(image.width / shrink), round(image.height / shrink))
        image = image.resize(size, Image.Resampling.BOX, reducing_gap=None)
    grey = np.asarray(image.convert("L"))
    found, descriptors = cv2.SIFT_create(nfeatures=FEATURES, contrastThreshold=CONTRAST).detectAndCompute(grey, None)
    if descriptors is None:
        descriptors = np.zeros((0, 128))
    points = np.array([(*one.pt, one.size, one.angle) for one in found], dtype=np.float32).reshape(-1, 4)
    # Ties in response may bring more points than asked for.
    return Features(points[:FEATURES], descriptors[:FEATURES].astype(np.uint8), image.width, image.height)


def compare_features(a: Features, b: Features) -> tuple[np.ndarray | None, int, float]:
    """The zoom, turn and shift (2, 3) that takes points of ``a`` to those of ``b``, how many matches agree with it, and
    what share they are of the points where the two overlap. None, 0 and 0 where nothing fits."""
    import cv2

    ours, theirs = _match(a.descriptors, b.descriptors)
    if len(ours) < FEW_MATCHES:
        return None, 0, 0.0
    from_points, to_points = a.points[ours], b.points[theirs]
    fitted, inside = cv2.estimateAffinePartial2D(
        np.ascontiguousarray(from_points[:, :2]), np.ascontiguousarray(to_points[:, :2]),
        method=cv2.RANSAC, ransacReprojThreshold=TOLERANCE, maxIters=2000, confidence=0.995,
    )  # fmt: skip
    if fitted is None:
        return None, 0, 0.0
    zoom, degrees = _zoom_and_degrees(fitted)
    if not zoom:
        return None, 0, 0.0
    sizes = np.abs(np.log2(to_points[:, 2] / from_points[:, 2] / zoom))
    turns = np.abs((to_points[:, 3] - from_points[:, 3] - degrees + 180) % 360 - 180)
    agree = inside[:, 0].astype(bool) & (sizes < OCTAVES) & (turns < DEGREES)
    # SIFT may describe one point several times: it counts once.
    matches = min(len(np.unique(points[agree, :2].round(), axis=0)) for points in (from_points, to_points))
    inside = min(_points_inside(fitted, a, b), _points_inside(cv2.invertAffineTransform(fitted), b, a))
    return fitted, matches, matches / max(inside, 1)


def candidate_pairs(cache: ContentCache, digests: list[str]) -> list[tuple[str, str, int]]:
    """(first, second, mirrored) of the pairs worth a comparison: first < second, sorted; whatever the list's order."""
    digests = sorted(set(digests))
    contents = fingerprint_values(NEAREST, digests)
    if cache.lacks(CANDIDATES_OF, [contents]):
        cache.keep(CANDIDATES_OF, {contents: _search_candidates(cache, digests).tobytes()})
    candidates = np.frombuffer(cache.find(CANDIDATES_OF, [contents])[contents], np.int32).reshape(-1, 3).tolist()
    return [(digests[first], digests[second], mirrored) for first, second, mirrored in candidates]


def _search_candidates(cache: ContentCache, digests: list[str]) -> np.ndarray:
    """Candidates as places among sorted digests: rows (first, second, mirrored) int32, sorted, each once."""
    words, reduce = _learn_words(cache, digests)
    if words is None:
        return np.zeros((0, 3), np.int32)
    found = []
    with TemporaryDirectory() as scratch:  # on disk: at 100,000 images the vectors are 1.6 GB
        shape = (2, len(digests), CENTRES * PARTS)
        vectors = np.memmap(Path(scratch) / "vectors", dtype=np.float16, mode="w+", shape=shape)
        _sum_up(cache, digests, words, (reduce, reduce[MIRRORED]), vectors)
        for mirrored, queries in enumerate(vectors):
            nearest = similarity_topk(queries, vectors[0], min(NEAREST + 1, len(digests)))[1].numpy()
            for place, others in enumerate(nearest):
                others = others[others != place][:NEAREST]
                ends = np.sort(np.stack([np.full_like(others, place), others], axis=1), axis=1)
                found.append(np.column_stack([ends, np.full_like(others, mirrored)]))
    return np.unique(np.concatenate(found), axis=0).astype(np.int32)


def _learn_words(cache: ContentCache, digests: list[str]) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Words (CENTRES, PARTS), and what reduces a descriptor (128, PARTS), both learnt from some of the descriptors."""
    step = max(1, len(digests) * FEATURES // SAMPLE)
    sample = np.concatenate([one.descriptors for _, one in _features_of(cache, sorted(digests)[::step])])
    if len(sample) < CENTRES:
        return None, None
    sample = _root(sample)
    reduce = np.linalg.eigh(np.cov(sample, rowvar=False))[1][:, ::-1][:, :PARTS].astype(np.float32)
    faiss = import_extra("faiss", "looking for the same ground")
    words = faiss.Kmeans(PARTS, CENTRES, niter=15, seed=1, max_points_per_centroid=SAMPLE // CENTRES)
    words.train(sample @ reduce)
    return words.centroids, reduce


def _sum_up(
    cache: ContentCache,
    digests: list[str],
    words: np.ndarray,
    reduces: tuple[np.ndarray, ...],
    vectors: np.ndarray,
) -> None:
    """Fill ``vectors`` (ways to reduce descriptors, images, CENTRES * PARTS), which hold zeros.

    Each is the sum of an image's descriptors' directions from their nearest words, with square roots against frequent
    ones (Jégou and Chum 2012). An image without features keeps its zeros.
    """
    place_of = {digest: place for place, digest in enumerate(digests)}
    for start in range(0, len(digests), A_BLOCK):
        block = [(place_of[digest], _root(one.descriptors)) for digest, one in
                 _features_of(cache, digests[start : start + A_BLOCK]) if len(one.descriptors)]  # fmt: skip
        if not block:
            continue
        places = np.array([place for place, _ in block])
        roots = np.concatenate([descriptors for _, descriptors in block])
        owners = np.repeat(np.arange(len(block)), [len(descriptors) for _, descriptors in block])
        for number, reduce in enumerate(reduces):
            parts = roots @ reduce
            nearest = np.argmin((words**2).sum(axis=1) - 2 * parts @ words.T, axis=1)
            away = parts - words[nearest]
            away /= np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-6)
            cells = owners * CENTRES + nearest
            order = np.argsort(cells, kind="stable")
            filled, starts = np.unique(cells[order], return_index=True)
            sums = np.zeros((len(block) * CENTRES, PARTS), dtype=np.float32)
            sums[filled] = np.add.reduceat(away[order], starts)
            sums = (np.sign(sums) * np.sqrt(np.abs(sums))).reshape(len(block), -1)
            vectors[number, places] = sums / np.linalg.norm(sums, axis=1, keepdims=True)


def _take_batch(batch: list[tuple[str, Path]]) -> dict[str, bytes]:
    """What is kept of some images, by their contents."""
    _share_cores()
    return {digest: take_features(open_image(path)).packed() for digest, path in batch}


def _compare_batch(folder: Path, batch: list[tuple[str, tuple[str, str, int]]]) -> dict[str, str]:
    """What is kept of some pairs: zoom, degrees, the two overlaps, matches and their share."""
    _share_cores()
    with ContentCache(folder) as cache:
        features = dict(_features_of(cache, sorted({digest for _, pair in batch for digest in pair[:2]})))
    results = {}
    for name, (first, second, mirrored) in batch:
        a, b = features[first], features[second]
        b = b.mirrored() if mirrored else b
        fitted, matches, share = compare_features(a, b)
        facts = [None] * 4 if fitted is None else [*_zoom_and_degrees(fitted), *_overlaps(fitted, a, b)]
        results[name] = json.dumps([*facts, matches, share])
    return results


def _features_of(cache: ContentCache, digests: list[str]) -> Iterator[tuple[str, Features]]:
    """Features from the cache, a block at a time."""
    return ((digest, Features.unpacked(kept)) for digest, kept in cache.read(FEATURES_OF, digests))


def _match(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of two images' descriptors that are each other's nearest, and by far for the first."""
    if len(a) < 2 or len(b) < 2:
        return np.zeros(0, int), np.zeros(0, int)
    # torch, because its threads can be limited: many small products side by side would wait for each other.
    likeness = torch.mm(torch.from_numpy(_root(a)), torch.from_numpy(_root(b)).T).numpy()  # (N, M), cosine
    ours = np.arange(len(a))
    theirs = likeness.argmax(axis=1)
    mutual = likeness.argmax(axis=0)[theirs] == ours
    second, first = np.partition(likeness, -2, axis=1)[:, -2:].T
    clear = 1 - first < RATIO**2 * (1 - second)  # squared distances are 2 - 2 * cosine
    return ours[mutual & clear], theirs[mutual & clear]


def _root(descriptors: np.ndarray) -> np.ndarray:
    """RootSIFT (Arandjelović and Zisserman 2012): (N, 128) float32 of length 1."""
    values = descriptors.astype(np.float32)
    return np.sqrt(values / np.maximum(values.sum(axis=1, keepdims=True), 1))


def _zoom_and_degrees(fitted: np.ndarray) -> tuple[float, float]:
    return float(np.hypot(fitted[0, 0], fitted[1, 0])), float(np.degrees(np.arctan2(fitted[1, 0], fitted[0, 0])))


def _overlaps(fitted: np.ndarray, a: Features, b: Features) -> tuple[float, float]:
    """Shares of the two images' areas that both show."""
    import cv2

    def corners(one: Features) -> np.ndarray:
        return np.array([(0, 0), (one.width, 0), (one.width, one.height), (0, one.height)], dtype=np.float32)

    moved = (corners(a) @ fitted[:, :2].T + fitted[:, 2]).astype(np.float32)
    shared = cv2.intersectConvexConvex(moved, corners(b))[0]
    return shared / max(cv2.contourArea(moved), 1e-6), shared / (b.width * b.height)


def _points_inside(fitted: np.ndarray, a: Features, b: Features) -> int:
    """How many points of ``a`` come to lie in ``b``."""
    moved = a.points[:, :2] @ fitted[:, :2].T + fitted[:, 2]
    return int(((moved >= 0) & (moved < (b.width, b.height))).all(axis=1).sum())


def _is_pair(row: list) -> bool:
    """Whether what is kept of two images makes them a pair, by the module's thresholds."""
    zoom, _, overlap_first, overlap_second, matches, share = row
    enough = matches >= MATCHES or (matches >= FEW_MATCHES and share >= SHARE)
    return enough and max(overlap_first, overlap_second) >= LEAST_OVERLAP and 1 / MOST_ZOOM <= zoom <= MOST_ZOOM


def _in_list_order(first: int, second: int, mirrored: bool, row: list) -> Pair:
    """What is kept of two images, in the order of their contents, as a pair in the list's order."""
    zoom, degrees, overlap_first, overlap_second, matches, _ = row
    if first > second:
        # A mirror image turns the other way round when it is undone first.
        zoom, degrees, overlap_second = 1 / zoom, degrees if mirrored else -degrees, overlap_first
    return Pair(
        min(first, second), max(first, second), False, TURN_NAMES[int(mirrored)], None,
        round(zoom, 3), round(degrees, 1), round(overlap_second, 3), matches,
    )  # fmt: skip


def _share_cores() -> None:
    """Let a worker of several use one thread."""
    if parent_process() is not None:
        import cv2

        cv2.setNumThreads(1)
        torch.set_num_threads(1)
