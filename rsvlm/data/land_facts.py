"""What the maps say of Blue Marble's tiles, as numbers: the truth that questions on them are held against.

Nothing of it is stored: a tile's name tells its place, and the maps are those that its captions were written from. Lakes and
islands are counted as the captions count them.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from rsvlm.data.blue_marble import LABELS_PER_DEGREE, Maps, load_maps, tile_named, white_parts, window_of
from rsvlm.data.land_captions import CLIMATES, GROUPS, WATER, dominant_land, find_islands, find_lakes

SEA, INLAND = "sea", "inland water"  # beside the names of GROUPS
GRID = 3  # cells along a side
SMALLEST = 0.001  # share of a tile or cell below which a class is left out


def land_truth(rows: Iterable[Mapping], maps: Maps | None = None) -> dict[str, dict]:
    """image_id -> what the maps say of it, for rows of the image table that are tiles of Blue Marble.

    Each is ``{"shares": {class: share of the tile}, "grid": 3 rows of 3 such shares of a cell, north at the top,
    "largest": class, "coast": whether sea and land meet, "lakes": number, "islands": number, "climates": {zone: share of
    the land}, "white": share of the tile's land that is white in the picture}``. Classes are those of
    ``land_captions.GROUPS``, with ``sea`` and ``inland water`` for water; shares are fractions, largest first.

    Args:
        rows: with ``image_id``, ``width`` and ``label``.
        maps: from ``load_maps``; None loads them.

    Raises:
        ValueError: an image is no tile of Blue Marble, or its label is not what these maps say of it.
        FileNotFoundError: as ``load_maps``.
    """
    maps = maps or load_maps()
    return {row["image_id"]: _truth_of(row, maps) for row in rows}


def _truth_of(row: Mapping, maps: Maps) -> dict:
    tile = tile_named(row["image_id"].rpartition("/")[2], row["width"])
    window = window_of(tile, LABELS_PER_DEGREE)
    groups, sea, climate = maps.groups[window], maps.sea[window], maps.climate[window]
    if dominant_land(groups) != row["label"]:
        raise ValueError(
            f"{row['image_id']}: the table calls it {row['label']!r}, the maps {dominant_land(groups)!r}; it was made from "
            "others, or is no tile of Blue Marble"
        )
    land = groups != WATER
    names = np.array([*GROUPS, SEA, INLAND], dtype=object)
    kinds = np.where(land, groups, np.where(sea, len(GROUPS), len(GROUPS) + 1)).astype(np.int64)
    height, width = kinds.shape
    rims = [np.linspace(0, side, GRID + 1).round().astype(int) for side in (height, width)]
    shares = _shares(kinds, names)
    zones = np.bincount(climate[land], minlength=len(CLIMATES))[1:]
    order = [zone for zone in np.argsort(-zones, kind="stable") if zones[zone]]
    return {
        "shares": shares,
        "grid": [
            [_shares(kinds[top:bottom, left:right], names) for left, right in zip(rims[1], rims[1][1:])]
            for top, bottom in zip(rims[0], rims[0][1:])
        ],
        "largest": next(iter(shares)),
        "coast": bool(sea.any() and land.any()),
        "lakes": len(find_lakes(~land & ~sea)),
        "islands": len(find_islands(land)[0]) if sea.any() else 0,
        "climates": {CLIMATES[zone + 1]: round(float(zones[zone] / zones.sum()), 4) for zone in order},
        "white": round(float(white_parts(maps, tile)[land].mean()), 4),
    }


def _shares(kinds: np.ndarray, names: np.ndarray) -> dict[str, float]:
    """Class -> share of some labels (H, W), largest first."""
    counts = np.bincount(kinds.ravel(), minlength=len(names)) / kinds.size
    order = np.argsort(-counts, kind="stable")
    return {str(names[kind]): round(float(counts[kind]), 4) for kind in order if counts[kind] >= SMALLEST}
