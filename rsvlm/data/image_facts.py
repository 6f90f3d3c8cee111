"""What is known of an image, as facts that questions are made from: of a map where the source has one, else of captions.

Captions do not tell all that is there. So a thing counts as absent only where it is one that captions always tell
("told" in ``objects.txt``), none of the image's captions names it or its kinds, and none names its kin: between a river
and a lake, or roads of two sorts, annotators differ. It counts as present where two captions name it (one where the
image has one), or the class label. A label that has nothing to do with the captions is left out.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from rsvlm.data.land_captions import GROUPS
from rsvlm.data.objects import colours_in, counts_in, mentions_in, things, things_in, with_kinds

# Covers of the map; beside them a tile may hold an island or a coast
COVERS = (*(group for group in GROUPS if group != "water"), "sea", "inland water")
SEEN, SEEN_SEA = 0.08, 0.03  # share of a tile from which a cover is surely seen; none at all is surely not seen
UNSEEN = 0.02  # share of the land that is white, up to which no snow is seen
ONE_CLIMATE = 0.8  # share of the land in one climate zone
PLACED = (0.06, 0.55)  # shares of a tile between which a cover has a place
MOSTLY = 0.7  # share of a cover in one third of the rows or columns, which is where it lies
EVEN = 0.15  # difference of the shares in the first and last third up to which a cover lies along all of a side
MOST_COUNTED = 6  # above it nobody counts at a glance
NAMED_BY = 2  # captions that name what is there
# Things that are counted where captions give their number
COUNTABLE = (
    "airplane", "helicopter", "boat", "storage tank", "tennis court", "basketball court", "baseball field",
    "football field", "bridge", "stadium", "church", "swimming pool", "playground", "bus", "train", "house",
)  # fmt: skip
# Labels of UC Merced (Yang and Newsam 2010), RSICD and NWPU-RESISC45 that are no words -> what they are called.
SCENES = {
    "agricultural": "cropland", "farmland": "cropland", "baseballdiamond": "baseball field",
    "baseballfield": "baseball field", "golfcourse": "golf course", "mobilehomepark": "mobile home park",
    "parkinglot": "parking lot", "parking": "parking lot", "storagetanks": "storage tanks",
    "tenniscourt": "tennis court", "denseresidential": "dense residential area",
    "mediumresidential": "medium residential area", "sparseresidential": "sparse residential area",
    "bareland": "barren land", "industrial": "industrial area", "commercial": "commercial area",
    "railwaystation": "railway station", "port": "harbor", "buildings": "buildings", "meadow": "grassland",
    "chaparral": "shrubland", "viaduct": "overpass", "center": "center building",
}  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """An image with what is known of it; names are those of ``objects.txt``."""

    image_id: str
    source: str
    split: str
    captions: tuple[str, ...]
    named: frozenset[
        str
    ]  # all that a caption or the map says is there, with its kinds: nothing of it is a hallucination
    present: tuple[str, ...]  # what is surely there, most important first
    absent: frozenset[str]  # what is surely not there
    counts: Mapping[str, int] = field(default_factory=dict)
    colours: Mapping[str, str] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)  # of the image; empty without a map
    places: Mapping[str, str] = field(default_factory=dict)  # thing -> one of nine places, upright
    scene: str | None = None
    climate: str | None = None
    translations: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # language -> captions


def scene_of(label: str | None) -> str | None:
    """A class label in words: ``storagetanks`` -> ``storage tanks``; None without a label."""
    name = (label or "").replace("_", " ").strip()
    return SCENES.get(name.replace(" ", ""), name) or None


def caption_facts(
    image_id: str, source: str, split: str, captions: Iterable[str], label: str | None, **more: object
) -> Facts:
    """What an image's captions and class label tell.

    Args:
        more: further fields of Facts.
    """
    captions = tuple(captions)
    named, denied = Counter(), set()
    for caption in captions:
        named.update(things_in(caption))
        denied |= {mention.name for mention in mentions_in(caption) if mention.denied}
    scene = scene_of(label)
    from_label = things_in(scene) if scene else set()
    if from_label and named and not _kin(from_label) & _kin(named) and not from_label & set(named):
        scene = None  # an image filed in a wrong class, or captioned by mistake
    everything = with_kinds({*named, *from_label})
    least = min(NAMED_BY, len(captions))
    present = {name for name, times in named.items() if times >= least or name in from_label}
    if scene:
        present |= from_label
    return Facts(
        image_id=image_id,
        source=source,
        split=split,
        captions=captions,
        named=frozenset(everything),
        present=tuple(sorted(present - denied, key=lambda name: (name not in from_label, -named[name], name))),
        absent=frozenset(_absent(everything) | (denied - everything)),
        counts=_agreed_counts(captions, least),
        colours=_agreed_colours(captions, least),
        scene=scene,
        **more,
    )


def _kin(names: Iterable[str]) -> set[str]:
    return set().union(*(things()[name].kin for name in names))


def _absent(named: set[str]) -> set[str]:
    """Told things that are not named, nor any of their kin, unless they are told beside their kin too."""
    kin = _kin(named)
    return {
        thing.name
        for thing in things().values()
        if thing.told and thing.name not in named and (thing.sure or not thing.kin & kin)
    }


def _agreed_counts(captions: Iterable[str], least: int) -> dict[str, int]:
    """Numbers of things that ``least`` captions give and that no caption contradicts."""
    told: dict[str, list[int | None]] = {}
    for caption in captions:
        for name, number in counts_in(caption).items():
            told.setdefault(name, []).append(number)
    return {
        name: numbers[0]
        for name, numbers in sorted(told.items())
        if name in COUNTABLE and None not in numbers and len(set(numbers)) == 1 and len(numbers) >= least
    }


def _agreed_colours(captions: Iterable[str], least: int) -> dict[str, str]:
    """The one colour of a thing that ``least`` captions give and that no caption contradicts."""
    told: dict[str, list[str]] = {}
    for caption in captions:
        for name, colours in colours_in(caption).items():
            told.setdefault(name, []).extend(sorted(colours))
    return {
        name: colours[0] for name, colours in sorted(told.items()) if len(set(colours)) == 1 and len(colours) >= least
    }


def land_facts(row: Mapping, truth: Mapping, **more: object) -> Facts:
    """What the land-cover and climate maps tell of a tile.

    Args:
        row: of the image table.
        truth: of ``rsvlm.data.land_facts.land_truth``.
        more: further fields of Facts.
    """
    shares = dict(truth["shares"])
    forests = sum(share for name, share in shares.items() if "forest" in things()[name].kinds)
    present = [name for name in shares if shares[name] >= SEEN] + ["forest"] * (forests >= SEEN)
    absent = {name for name in COVERS if name not in shares} | ({"forest"} if not forests else set())
    if truth["white"] > UNSEEN:
        absent.discard("snow and ice")  # the map knows no season's snow, the picture shows it
    if shares.get("sea", 0) >= SEEN_SEA:
        present.append("coast")
    elif not truth["coast"]:
        absent.add("coast")
    if truth["islands"]:
        present.append("island")
    else:
        absent.add("island")  # of the size that the captions count
    named = with_kinds({*shares, *present, *set().union(*map(things_in, row["captions"]))})
    counts = {"island": truth["islands"], "inland water": truth["lakes"]}
    zone, most = next(iter(truth["climates"].items()), (None, 0.0))
    return Facts(
        image_id=row["image_id"],
        source=row["source"],
        split=row["split"],
        captions=tuple(row["captions"]),
        named=frozenset(named),
        present=tuple(present),
        absent=frozenset(absent - named),
        counts={name: number for name, number in counts.items() if 0 < number <= MOST_COUNTED},
        shares=shares,
        places=_places(shares, truth["grid"]),
        climate=zone if most >= ONE_CLIMATE else None,
        **more,
    )


def _places(shares: Mapping[str, float], grid: list[list[Mapping[str, float]]]) -> dict[str, str]:
    """Where covers lie in a 3 x 3 grid: in a corner, at a side or along all of it, in the middle; none that is spread out."""
    places = {}
    for name, share in shares.items():
        cells = [[cell.get(name, 0.0) for cell in row] for row in grid]
        total = sum(map(sum, cells))
        if PLACED[0] <= share <= PLACED[1] and total:
            row = _third([sum(own) / total for own in cells], ("top", "middle", "bottom"))
            column = _third([sum(own) / total for own in zip(*cells, strict=True)], ("left", "middle", "right"))
            words = [word for word in (row, column) if word not in ("middle", "along")]
            if None not in (row, column) and (words or (row, column) == ("middle", "middle")):
                places[name] = " ".join(words) or "middle"
    return places


def _third(parts: list[float], words: tuple[str, str, str]) -> str | None:
    """The third that holds MOSTLY of a cover; ``along`` where the outer ones hold nearly alike; else None."""
    place = max(range(3), key=lambda number: parts[number])
    if parts[place] >= MOSTLY:
        return words[place]
    return "along" if abs(parts[0] - parts[2]) <= EVEN else None


def table_facts(table: pd.DataFrame, tiles: Path, translations: Iterable[Mapping] = ()) -> list[Facts]:
    """What is known of each image of the table, in its order: from the maps for tiles of Blue Marble, else from captions.

    Args:
        table: the image table.
        tiles: folder of the tiles: images that lie in its ``images`` are tiles of Blue Marble.
        translations: rows with image_id, language and captions (a list of str and None).
    """
    texts: dict[str, dict[str, tuple[str, ...]]] = {}
    for row in translations:
        texts.setdefault(row["image_id"], {})[row["language"]] = tuple(filter(None, row["captions"]))
    rows = table.to_dict("records")
    tiles_of = [row for row in rows if Path(row["path"]).parts[-3:-1] == (tiles.name, "images")]
    truth = {}
    if tiles_of:
        from rsvlm.data.land_facts import land_truth  # here: other images need no maps

        truth = land_truth(tiles_of)
    facts = []
    for row in rows:
        known = truth.get(row["image_id"])
        more = {"translations": texts.get(row["image_id"], {})}
        if known:
            facts.append(land_facts(row, known, **more))
        else:
            keys = ("image_id", "source", "split", "captions", "label")
            facts.append(caption_facts(*(row[key] for key in keys), **more))
    return facts
