"""How well a place in a large image was found: recall of the right window, and SeLo's four indicators.

**Needles.** A found window is right when its centre lies in the wanted one: the pointing game's rule (Zhang et al. 2018,
"Top-down neural attention by excitation backprop"), which does not punish a grid of windows for where it starts. Beside
it stands the detection field's stricter rule, an intersection over union of at least a half (Everingham et al. 2010,
PASCAL VOC).

**Semantic localisation (SeLo).** Yuan et al. 2022, "Learning to Evaluate Performance of Multi-modal Semantic
Localization" (arXiv:2209.06515), judge a map of how well each pixel fits a sentence against polygons drawn by people:

- ``Rsu``, significant area proportion, up: ``1 - exp(-0.707 * (P_in / (P_out + 1e-7)) * (A_out / A_in))`` of the map's
  sum P and the area A inside and outside the polygons.
- ``Ras``, attention shift distance, down: a polygon has a circle around the mean of its corners, 1.5 times their mean
  distance to it in radius r. The mean distance of the candidate points in the circle to its centre, over r, 1 where none
  lies in it; averaged over polygons to x, then ``(exp(3 x) - 1) / (exp(3) - 1)``.
- ``Rda``, discrete attention distance, up: of a polygon 0 without a candidate point in its circle, 1 with one, and with n
  ``0.5 * (1 - d / r) + exp(-0.5 * (n + 2))``, d being their mean distance to their own mean; averaged over polygons.
- ``Rmi = 0.4 Rsu + 0.35 (1 - Ras) + 0.25 Rda``, up.

Candidate points: the map as 8-bit grey goes five times through a 50 x 50 mean; what equals the highest value of the 1,000
x 1,000 pixels around it, and is above 0, is a plateau; a candidate is a plateau's centre where the map itself is at least
0.5. Constants, order of steps and roundings are those of the evaluation that the authors released with the paper
(``evaluations/SLM.py`` of SemanticLocalizationMetrics), which made the published tables. The filters are in pixels of
images of 3,000 to 10,000: in an image of less than about 1,000 there is mostly one plateau.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.ndimage import label, maximum_filter

from rsvlm.extras import import_extra
from rsvlm.scoring.bootstrap import bootstrap_corpus, difference_of_draws, mean_of, mean_statistics, resampled_sums

if TYPE_CHECKING:
    from rsvlm.scenes.needles import SeloMap

RULES = ("centre", "overlap")
LEAST_OVERLAP = 0.5  # intersection over union that "overlap" asks for
INDICATORS = ("Rsu", "Ras", "Rda", "Rmi")
RSU_FACTOR, RSU_GUARD = 0.707, 1e-7
CIRCLE, RAS_BEND, RDA_DECAY = 1.5, 3.0, 0.5
RMI_WEIGHTS = (0.4, 0.35, 0.25)  # of Rsu, 1 - Ras and Rda
SOFTENINGS, SOFTENED, AROUND = 5, 50, 1000  # how often, pixels of the mean's and of the neighbourhood's side
MEDIAN = 251  # side of the median that the published maps went through, pixels
CANDIDATE = 128  # grey value from which the map is at least 0.5

Box = Sequence[float]  # left, top, width, height, pixels
Polygon = Sequence[Sequence[float]]  # corners, (x, y) pixels


def is_right(found: Box, wanted: Box, rule: str = "centre") -> bool:
    """Whether a found window counts as the wanted one.

    Args:
        rule: "centre": its centre lies in it; "overlap": their intersection over union is at least a half.

    Raises:
        ValueError: another rule.
    """
    if rule == "overlap":
        return overlap(found, wanted) >= LEAST_OVERLAP
    if rule != "centre":
        raise ValueError(f"rule: {rule!r} is none of {', '.join(RULES)}")
    x, y = found[0] + found[2] / 2, found[1] + found[3] / 2
    return wanted[0] <= x < wanted[0] + wanted[2] and wanted[1] <= y < wanted[1] + wanted[3]


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two windows."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    shared = max(0.0, width) * max(0.0, height)
    return shared / (one[2] * one[3] + other[2] * other[3] - shared)


def place_of(found: Sequence[Box], wanted: Box, rule: str = "centre") -> int:
    """The place (from 1) of the first right window among those found, best first; 0 where none is right."""
    return next((place for place, box in enumerate(found, start=1) if is_right(box, wanted, rule)), 0)


def chance_recall(side: float, wanted: Box, k: int) -> float:
    """Recall at ``k`` by "centre" of k places drawn at random in a square of ``side`` pixels."""
    return 1 - (1 - wanted[2] * wanted[3] / side**2) ** k


def judge_searches(searches: pd.DataFrame, *, ks: Sequence[int] = (1, 5)) -> pd.DataFrame:
    """The searches of ``rsvlm.scenes.needles.search_mosaics`` with ``centre``, ``overlap`` and ``chance_K`` for each of ``ks``.

    The first two are the place of the first right window by either rule, 0 where none is, NaN for a method without windows.
    """
    judged = searches.copy()
    for rule in RULES:
        judged[rule] = [
            float(place_of(found, wanted, rule)) if len(found) else np.nan
            for found, wanted in zip(searches["found"], searches["wanted"], strict=True)
        ]
    for k in ks:
        judged[f"chance_{k}"] = [
            chance_recall(side, wanted, k) for side, wanted in zip(searches["side"], searches["wanted"], strict=True)
        ]
    return judged


def score_needles(
    places: pd.DataFrame, *, ks: Sequence[int] = (1, 5), resamples: int = 1000, seed: int = 0
) -> dict[str, dict[str, dict]]:
    """{side: {method: figures}} with 95 % intervals over mosaics, which are resampled whole with all their captions.

    Args:
        places: as ``judge_searches`` gives them. A method without windows gets the recall of a guess, ``chance_K``.

    Returns:
        For each method ``recall_at_K``, ``recall_at_K_overlap`` (where it has windows) and ``mosaic_at_K`` as {"value",
        "low", "high", "n"}, n mosaics; nothing where there are no searches.
    """
    report: dict[str, dict[str, dict]] = {}
    for (side, method), own in places.groupby(["side", "method"], sort=False):
        figures = {}
        for k in ks:
            guess = own["centre"].isna()
            found = own["centre"].between(1, k).astype(float).where(~guess, own[f"chance_{k}"])
            figures[f"recall_at_{k}"] = found
            if not guess.any():
                figures[f"recall_at_{k}_overlap"] = own["overlap"].between(1, k).astype(float)
            figures[f"mosaic_at_{k}"] = (own["mosaic_place"] <= k).astype(float)
        means = {name: values.groupby(own["mosaic"]).mean().to_numpy() for name, values in figures.items()}
        report.setdefault(str(side), {})[method] = {
            name: bootstrap_corpus(mean_statistics(values), mean_of, seed=seed, resamples=resamples)
            for name, values in means.items()
        }
    return report


def compare_needles(
    places: pd.DataFrame, first: str, second: str, *, resamples: int = 1000, seed: int = 0
) -> dict[str, dict]:
    """{side: difference in recall at 1 by "centre", ``first`` - ``second``}, paired over mosaics, with p-value."""
    report = {}
    for side, own in places.groupby("side", sort=False):
        right = own.assign(right=(own["centre"] == 1).astype(float))
        wide = right.pivot_table(index="mosaic", columns="method", values="right", aggfunc="mean")
        gaps = (wide[first] - wide[second]).to_numpy()
        draws = mean_of(resampled_sums(mean_statistics(gaps), seed=seed, resamples=resamples))
        report[str(side)] = difference_of_draws(float(gaps.mean()), draws, len(gaps))
    return report


def score_captions_found(said: pd.DataFrame, *, resamples: int = 1000, seed: int = 0) -> dict[str, dict[str, dict]]:
    """{side: {method: CIDEr with a 95 % interval over mosaics}} of ``rsvlm.scenes.needles.caption_found``."""
    report: dict[str, dict[str, dict]] = {}
    for (side, method), own in said.groupby(["side", "method"], sort=False):
        values = mean_statistics(own["cider"].to_numpy())
        report.setdefault(str(side), {})[method] = bootstrap_corpus(values, mean_of, seed=seed, resamples=resamples)
    return report


def average_indicators(
    rows: Sequence[Mapping[str, float]], *, resamples: int = 1000, seed: int = 0
) -> dict[str, dict[str, float | int]]:
    """SeLo's indicators averaged over cases, as published, each with a 95 % interval over cases.

    Raises:
        ValueError: no cases.
    """
    if not rows:
        raise ValueError("no case of semantic localisation to average")
    return {
        name: bootstrap_corpus(
            mean_statistics(np.array([row[name] for row in rows])), mean_of, seed=seed, resamples=resamples
        )
        for name in INDICATORS
    }


def judge_maps(maps: Iterable["SeloMap"], *, median: int = 0, resamples: int = 1000, seed: int = 0) -> dict:
    """{side: {method: indicators}} of ``search_mosaics``'s maps, averaged over mosaics, with 95 % intervals.

    Without a median: the published one is made for images of thousands of pixels.
    """
    judged: dict[str, dict[str, list]] = {}
    for one in maps:
        rows = judged.setdefault(str(one.about["side"]), {}).setdefault(one.about["method"], [])
        rows.append(judge_map(one, median=median))
    return {
        side: {method: average_indicators(rows, resamples=resamples, seed=seed) for method, rows in methods.items()}
        for side, methods in judged.items()
    }


def judge_map(one: "SeloMap", *, median: int = MEDIAN) -> dict[str, float]:
    """SeLo's indicators of a surface, as ``probability_map`` and ``selo_indicators`` make them."""
    grey = probability_map(one.values, one.cell, one.width, one.height, median=median)
    return selo_indicators(grey, one.regions)


def probability_map(values: np.ndarray, cell: int, width: int, height: int, *, median: int = MEDIAN) -> np.ndarray:
    """SeLo's map (height, width) uint8, from 0 to 255, of a surface of similarities.

    As published: lowest to 0, highest to 1, times 255 without rounding, then a median.

    Args:
        values: (rows, columns), NaN where nothing is known, which counts as the lowest.
        cell: pixels along a side of a value.
        median: side of the median, pixels, odd; 0: none.

    Raises:
        ValueError: no finite value, or a median that is even.
    """
    if median and median % 2 == 0:
        raise ValueError(f"median: {median} is even; a median has a middle where its side is odd")
    known = np.isfinite(values)
    if not known.any():
        raise ValueError("the surface holds no value: no window was embedded")
    low, high = float(values[known].min()), float(values[known].max())
    shares = np.where(known, (values - low) / (high - low), 0.0) if high > low else np.zeros(values.shape)
    grey = (255 * shares).astype(np.uint8)
    grey = grey.repeat(cell, axis=0)[:height].repeat(cell, axis=1)[:, :width]
    cv2 = import_extra("cv2", "semantic localisation")
    return cv2.medianBlur(np.ascontiguousarray(grey), median) if median > 1 else np.ascontiguousarray(grey)


def selo_indicators(grey: np.ndarray, regions: Sequence[Polygon]) -> dict[str, float]:
    """``Rsu``, ``Ras``, ``Rda`` and ``Rmi`` of a map (H, W) uint8 against the polygons of a sentence; see the module's head.

    Raises:
        ValueError: the map is of another type, or a polygon has no extent, has less than three corners, or lies outside.
    """
    if grey.dtype != np.uint8 or grey.ndim != 2:
        raise ValueError(f"a map of {grey.dtype} {grey.shape}: expected (H, W) uint8, as probability_map gives")
    if not regions:
        raise ValueError("no polygon to judge the map by")
    circles = [_circle(number, region) for number, region in enumerate(regions, start=1)]
    candidates = candidate_points(grey)
    near = [_within(candidates, circle) for circle in circles]
    rsu = _significant_area(grey, regions)
    ras, rda = _attention_shift(circles, near), _discrete_attention(circles, near)
    significant, shift, discrete = RMI_WEIGHTS
    return {"Rsu": rsu, "Ras": ras, "Rda": rda, "Rmi": significant * rsu + shift * (1 - ras) + discrete * rda}


def candidate_points(grey: np.ndarray) -> np.ndarray:
    """(n, 2) int64 (x, y): where the attention of a map (H, W) uint8 peaks."""
    cv2, soft = import_extra("cv2", "semantic localisation"), grey
    for _ in range(SOFTENINGS):
        soft = cv2.boxFilter(soft, ddepth=-1, ksize=(SOFTENED, SOFTENED))
    plateaus = (maximum_filter(soft, size=AROUND) == soft) & (soft > 0)
    numbers, count = label(plateaus, structure=np.ones((3, 3), dtype=bool))
    rows, columns = np.nonzero(plateaus)
    owner = numbers[rows, columns] - 1
    sizes = np.bincount(owner, minlength=count)
    middle = [np.bincount(owner, weights=axis, minlength=count).astype(np.int64) // sizes for axis in (columns, rows)]
    points = np.stack(middle, axis=-1) if count else np.zeros((0, 2), dtype=np.int64)
    return points[grey[points[:, 1], points[:, 0]] >= CANDIDATE]


def _circle(number: int, region: Polygon) -> tuple[int, int, int]:
    """(x, y, radius) of the circle around a polygon, in whole pixels, cut off as published."""
    corners = np.asarray(region, dtype=np.float64)
    if corners.ndim != 2 or corners.shape[1] != 2 or len(corners) < 3 or not np.isfinite(corners).all():
        raise ValueError(f"polygon {number}: expected at least three corners of two numbers, got {np.shape(region)}")
    x, y = (int(sum(corners[:, axis]) / len(corners)) for axis in (0, 1))
    radius = int(np.mean(np.linalg.norm(corners - (x, y), axis=1)) * CIRCLE)
    if radius < 1:
        raise ValueError(f"polygon {number}: all its corners lie at {x}, {y}: it has no extent")
    return x, y, radius


def _within(points: np.ndarray, circle: tuple[int, int, int]) -> np.ndarray:
    distances = np.linalg.norm(points - np.array(circle[:2]), axis=1)
    return points[distances <= circle[2]]


def _significant_area(grey: np.ndarray, regions: Sequence[Polygon]) -> float:
    mask = np.zeros(grey.shape, dtype=np.uint8)
    # Corners are cut to whole pixels, as published; pixels on an edge belong to the polygon.
    cv2 = import_extra("cv2", "semantic localisation")
    cv2.fillPoly(mask, [np.array(region, dtype=np.float64).astype(np.int32) for region in regions], 1)
    inside = int(np.count_nonzero(mask))
    if not inside:
        raise ValueError(f"the polygons lie outside the map of {grey.shape[1]} x {grey.shape[0]} pixels")
    total = int(grey.sum(dtype=np.int64)) / 255
    own = int(grey.sum(dtype=np.int64, where=mask.astype(bool))) / 255
    ratio = own / (total - own + RSU_GUARD) * ((grey.size - inside) / inside)
    return float(1 - np.exp(-RSU_FACTOR * ratio))


def _attention_shift(circles: Sequence[tuple[int, int, int]], near: Sequence[np.ndarray]) -> float:
    shares = [
        float(np.linalg.norm(points - np.array(circle[:2]), axis=1).mean()) / circle[2] if len(points) else 1.0
        for circle, points in zip(circles, near, strict=True)
    ]
    return float(np.expm1(RAS_BEND * np.mean(shares)) / np.expm1(RAS_BEND))


def _discrete_attention(circles: Sequence[tuple[int, int, int]], near: Sequence[np.ndarray]) -> float:
    values = []
    for circle, points in zip(circles, near, strict=True):
        if len(points) < 2:
            values.append(float(len(points)))
            continue
        spread = float(np.linalg.norm(points - points.mean(axis=0), axis=1).mean()) / circle[2]
        values.append(0.5 * (1 - spread) + float(np.exp(-RDA_DECAY * (len(points) + 2))))
    return float(np.mean(values))
