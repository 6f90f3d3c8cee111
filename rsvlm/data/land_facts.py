"""What the maps tell of tiles of Blue Marble: covers with their shares and places, coast, lakes, islands, climate.

The tiles' borders stand in ``dataset.json`` beside their pictures, so that the maps can be looked at again. Every figure
is that of the upright tile; nothing comes from the captions. What would be a matter of taste is left out (None, or no
entry): a place of what is spread out, a number of lakes where some are too small to count, a climate on a border.
"""

from collections.abc import Collection
from pathlib import Path

import numpy as np
from scipy import ndimage

from rsvlm.data.blue_marble import LABELS_PER_DEGREE, Maps, Tile, load_maps, window_of
from rsvlm.data.land_captions import CLIMATES, GROUPS, WATER
from rsvlm.files import read_json

SEA, INLAND = "sea", "inland water"
SMALLEST_LAKE, SMALLEST_ISLAND = 1 / 400, 1 / 200  # share of the tile, as for the captions
UNSEEN = 1 / 1000  # share of a tile up to which a part is no two pixels of the picture wide
LEAST_CLIMATE = 0.8  # share of the land in one climate zone
PLACED = (0.06, 0.55)  # shares of a tile between which a cover has a place
MOSTLY = 0.7  # share of a cover in one third of the rows or columns, which is where it lies
EVEN = 0.15  # difference of the shares in the first and last third up to which a cover lies along all of a side
ROWS, COLUMNS = ("top", "", "bottom"), ("left", "", "right")


def land_truth(folder: Path, names: Collection[str] | None = None, maps: Maps | None = None) -> dict[str, dict]:
    """File name of a tile -> ``shares`` {cover: share of the tile, above 0}, ``places`` {cover: one of nine, upright},
    ``coast``, ``islands`` and ``lakes`` (their number, None where it is unclear), ``climate`` (None where unclear).

    Covers are GROUPS without water, ``sea`` and ``inland water``.

    Args:
        folder: of the tiles, as ``make_blue_marble`` writes it.
        names: of the tiles wanted; None: all.
        maps: None reads them from the installed packages (some seconds).

    Raises:
        FileNotFoundError: the folder or a package is missing.
    """
    entries = [one for one in read_json(folder / "dataset.json")["images"] if names is None or one["filename"] in names]
    maps = maps or (load_maps() if entries else None)
    return {entry["filename"]: _truth(maps, entry["bounds"]) for entry in entries}


def _truth(maps: Maps, bounds: dict[str, float]) -> dict:
    tile = Tile(bounds["west"], bounds["north"], bounds["north"] - bounds["south"], "")
    window = window_of(tile, LABELS_PER_DEGREE)
    groups, sea, climate = maps.groups[window], maps.sea[window], maps.climate[window]
    covers = {name: groups == number for number, name in enumerate(GROUPS) if number != WATER}
    covers |= {SEA: (groups == WATER) & sea, INLAND: (groups == WATER) & ~sea}
    shares = {name: round(float(mask.mean()), 6) for name, mask in covers.items() if mask.any()}
    places = {
        name: place
        for name, share in shares.items()
        if PLACED[0] <= share <= PLACED[1] and (place := _place(covers[name]))
    }
    zones = np.bincount(climate[groups != WATER], minlength=len(CLIMATES))[1:]
    first = int(zones.argmax())
    return {
        "shares": shares,
        "places": places,
        "coast": bool(covers[SEA].any()),
        "islands": _islands(groups != WATER, covers[SEA]),
        "lakes": _count(covers[INLAND], SMALLEST_LAKE),
        "climate": CLIMATES[first + 1] if zones[first] >= LEAST_CLIMATE * max(zones.sum(), 1) else None,
    }


def _place(mask: np.ndarray) -> str | None:
    """Where a cover lies in a 3 x 3 grid: a corner, a side (also along all of it) or the middle; None where it is spread."""
    height, width = mask.shape
    found = []
    for axis, size, words in ((1, height, ROWS), (0, width, COLUMNS)):
        along = np.arange(size) * 3 // size
        parts = np.bincount(along, weights=mask.sum(axis=axis), minlength=3) / mask.sum()
        third = int(parts.argmax())
        even = abs(parts[0] - parts[2]) <= EVEN
        found.append(words[third] if parts[third] >= MOSTLY else "spread" if even else None)
    row, column = found
    if None in found or (row == "spread" and column in ("spread", "")) or (column == "spread" and row == ""):
        return None
    words = [word for word in (row, column) if word not in ("", "spread")]
    return " ".join(words) or "middle"


def _count(mask: np.ndarray, smallest: float) -> int | None:
    """How many connected parts a mask has that are seen; None where some are seen and yet too small to count."""
    parts, count = ndimage.label(mask, structure=np.ones((3, 3)))
    shares = np.bincount(parts.ravel(), minlength=count + 1)[1:] / mask.size
    seen = shares > UNSEEN
    return int(seen.sum()) if (shares[seen] >= smallest).all() else None


def _islands(land: np.ndarray, sea: np.ndarray) -> int | None:
    """How many parts of the land lie off the tile's edges in the sea; None where some are too small to count."""
    parts, count = ndimage.label(land, structure=np.ones((3, 3)))
    edges = set(np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])))
    inside = np.isin(parts, [number for number in range(1, count + 1) if number not in edges])
    at_sea = inside & ndimage.binary_propagation(inside & ndimage.binary_dilation(sea, np.ones((3, 3))), mask=inside)
    return _count(at_sea, SMALLEST_ISLAND)
