"""Five true sentences on a tile of the Earth, by rule from its land-cover and climate maps.

Here it is chosen what is said and by which English template; rsvlm.data.land_languages says the same in other languages.

One sentence each on centre, edges, shares, water and climate. The words name no side and no compass point, so that
they stay true for the flips and rotations of the tile that the encoder also sees. Of the picture only one thing is
used: where it is white, because the land-cover map knows permanent ice but not the season's snow.
"""

import random
from dataclasses import replace

import numpy as np
from scipy import ndimage

from rsvlm.data.boxes import Box, boxes_of_mask
from rsvlm.data.land_sentences import Count, Cover, Covers, Sentence

# The 17 land-cover classes of the IGBP (values 0-16 of MCD12C1), as groups that can be told apart from above.
GROUPS = (
    "water", "needleleaf forest", "evergreen broadleaf forest", "deciduous forest", "mixed forest", "shrubland",
    "open woodland", "savanna", "grassland", "wetland", "cropland", "built-up land", "snow and ice", "barren land",
)  # fmt: skip
IGBP_TO_GROUP = np.array([0, 1, 2, 1, 3, 4, 5, 5, 6, 7, 8, 9, 10, 11, 10, 12, 13], dtype=np.uint8)
WATER, ICE = GROUPS.index("water"), GROUPS.index("snow and ice")
# Values 0-5 of the simplified Köppen-Geiger map
CLIMATES = ("none", "tropical", "arid", "temperate", "continental", "polar")

_NOUNS = {  # how a group is called; the same class looks different in another climate. All singular.
    "needleleaf forest": {"": ["needleleaf forest", "coniferous forest"]},
    "evergreen broadleaf forest": {
        "": ["evergreen broadleaf forest"],
        "tropical": ["tropical evergreen forest", "dense evergreen forest"],
    },
    "deciduous forest": {"": ["deciduous forest", "deciduous broadleaf forest"]},
    "mixed forest": {"": ["mixed forest"]},
    "shrubland": {
        "": ["shrubland", "scrub"],
        "arid": ["dry shrubland", "desert scrub"],
        "polar": ["tundra shrubland", "low tundra scrub"],
    },
    "open woodland": {"": ["open woodland"], "tropical": ["open woodland", "woody savanna"]},
    "savanna": {
        "": ["sparse woodland"],
        "tropical": ["savanna"],
        "arid": ["savanna", "dry savanna"],
        "temperate": ["grassland with scattered trees"],
    },
    "grassland": {"": ["grassland"], "arid": ["dry grassland", "steppe"], "polar": ["cold grassland"]},
    "wetland": {"": ["wetland"]},
    "cropland": {"": ["cropland", "farmland"]},
    "built-up land": {"": ["built-up land"]},
    "snow and ice": {"": ["snow cover", "an ice cover"], "polar": ["permanent snow cover", "permanent ice cover"]},
    "barren land": {
        "": ["bare ground", "barren land"],
        "arid": ["bare desert", "barren desert"],
        "polar": ["bare ground", "barren polar land"],
    },
}
SHARES = (  # least share of an image -> its words
    (0.97, "nearly all"), (0.82, "most"), (0.70, "about three quarters"), (0.58, "about two thirds"),
    (0.45, "about half"), (0.29, "about a third"), (0.20, "about a quarter"), (0.12, "a smaller part"),
    (0.05, "a small part"),
)  # fmt: skip
_MIN_PART = 0.02  # share of the tile from which a connected part is told


def class_nouns() -> dict[str, list[str]]:
    """Class of land -> every name that the captions have for it, in any climate; water, which has none, is left out."""
    return {group: list(dict.fromkeys(sum(_NOUNS[group].values(), []))) for group in GROUPS if group in _NOUNS}


def dominant_land(groups: np.ndarray) -> str:
    """Name of the land group that covers most of the tile; ``groups`` (H, W) holds indices into GROUPS."""
    return GROUPS[int(np.bincount(groups[groups != WATER], minlength=len(GROUPS)).argmax())]


def describe_land(
    groups: np.ndarray, sea: np.ndarray, climate: np.ndarray, snow: np.ndarray, rng: random.Random
) -> list[str]:
    """Five different English sentences on a tile: centre, edges, shares, water, climate; arguments as ``tell_land``."""
    return [str(sentence) for sentence in tell_land(groups, sea, climate, snow, rng)]


def tell_land(
    groups: np.ndarray, sea: np.ndarray, climate: np.ndarray, snow: np.ndarray, rng: random.Random
) -> list[Sentence]:
    """Five different sentences on a tile before they are written in a language: centre, edges, shares, water, climate.

    Args:
        groups: (H, W) indices into GROUPS; some of it is land.
        sea: (H, W) bool, the water that belongs to an ocean or inland sea.
        climate: (H, W) indices into CLIMATES, 0 where unknown (water).
        snow: (H, W) bool, where the picture is as white as snow.
        rng: chooses among the wordings.
    """
    words = _Words(groups, sea, climate, snow, rng)
    return [_tell_centre(words), _tell_edges(words), _tell_shares(words), _tell_water(words), _tell_climate(words)]


class _Words:
    """A tile's cover, (H, W) of kinds, with names and shares; nouns are drawn from ``rng`` anew for each sentence."""

    SEA, INLAND = 100, 101  # kinds beside the land groups

    def __init__(self, groups: np.ndarray, sea: np.ndarray, climate: np.ndarray, snow: np.ndarray, rng: random.Random):
        self.kinds = np.where(groups == WATER, np.where(sea, self.SEA, self.INLAND), groups.astype(np.int64))
        self.height, self.width = groups.shape
        self.land = groups != WATER
        counts = np.bincount(climate[self.land], minlength=len(CLIMATES))[1:]
        self.climates = [
            (CLIMATES[i + 1], counts[i] / max(counts.sum(), 1)) for i in np.argsort(-counts, kind="stable") if counts[i]
        ]
        # Elsewhere it is salt or sand.
        snowy = bool(self.climates) and self.climates[0][0] in ("temperate", "continental", "polar")
        self.snow = snow & self.land & (groups != ICE) if snowy else np.zeros_like(self.land)
        self.rng = rng
        self.middle = np.zeros(groups.shape, dtype=bool)
        top, left = self.height // 4, self.width // 4
        self.middle[top : self.height - top, left : self.width - left] = True

    def noun(self, kind: int) -> Cover:
        """The kind in words, singular, usable as subject and object."""
        if kind == self.SEA:
            return Cover(self.rng.choice(["the sea", "open sea"]))
        if kind == self.INLAND:
            return Cover("inland water")
        nouns = _NOUNS[GROUPS[kind]]
        return Cover(self.rng.choice(nouns.get(self.climates[0][0] if self.climates else "", nouns[""])))

    def seen_noun(self, kind: int, where: np.ndarray) -> Cover:
        """The kind in words, with the snow on it where most of its area in a part of the tile is white."""
        area = where & (self.kinds == kind)
        return replace(self.noun(kind), under_snow=bool(self.snow[area].mean() >= 0.6))

    def shares(self, where: np.ndarray | None = None) -> list[tuple[int, float]]:
        """(kind, share) in a part of the tile, largest first."""
        kinds, counts = np.unique(self.kinds if where is None else self.kinds[where], return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return [(int(kinds[i]), float(counts[i] / counts.sum())) for i in order]

    def pick(self, *templates: str, **words: Cover | Covers | Count | str) -> Sentence:
        return Sentence(((self.rng.choice(templates), words),))


def is_central(box: Box, width: int, height: int) -> bool:
    """Whether the box's centre lies in the middle half of the image's width and height."""
    x, y = (box.left + box.right) / 2, (box.top + box.bottom) / 2
    return width / 4 <= x <= 3 * width / 4 and height / 4 <= y <= 3 * height / 4


def place_of(box: Box, width: int, height: int) -> str:
    """Where a box lies, in words that stay true when the image is flipped or turned by right angles.

    One of: ``in the middle``, ``away from the edges``, ``at one edge``, ``in one corner``, ``from edge to edge``,
    ``around the edges`` (three or four edges).
    """
    across = (box.left <= 0) + (box.right >= width)
    along = (box.top <= 0) + (box.bottom >= height)
    if across + along == 0:
        return "in the middle" if is_central(box, width, height) else "away from the edges"
    if across + along == 1:
        return "at one edge"
    if across + along == 2:
        return "in one corner" if across == along == 1 else "from edge to edge"
    return "around the edges"


def _share_in_words(share: float) -> str:
    return next((text for least, text in SHARES if share >= least), "a very small part")


def _tell_centre(words: _Words) -> Sentence:
    """What lies in the middle half of the tile."""
    shares = words.shares(words.middle)
    top, share = shares[0]
    area = words.kinds.size
    for kind, _ in shares[1:]:
        inner = [
            part
            for part in boxes_of_mask(words.kinds == kind, "", int(_MIN_PART / 2 * area))
            if place_of(part, words.width, words.height) == "in the middle"
            and _is_surrounded(words.kinds, part, kind, top)
        ]
        if inner and share >= 0.6:
            noun = (
                Cover("a lake")
                if kind == words.INLAND and inner[0].pixels * 2 > _box_area(inner[0])
                else replace(words.noun(kind), part="a patch of")
            )
            if top == words.SEA:
                noun = replace(words.noun(kind), part="land with")
            return words.pick(
                "in the middle of the image there is {a} surrounded by {b}",
                "{a} lies in the middle of {b}",
                "{b} surrounds {a} in the centre",
                a=noun,
                b=words.noun(top),
            )
    if share >= 0.75 or len(shares) == 1 or shares[1][1] < 0.2:
        return words.pick(
            "the centre of the image shows {a}",
            "there is {a} in the middle of the image",
            "{a} fills the centre of the picture",
            "{a} in the central part of the image",
            a=words.seen_noun(top, words.middle),
        )
    return words.pick(
        "the centre is divided between {a} and {b}",
        "in the middle of the image {a} meets {b}",
        "{a} next to {b} in the centre of the image",
        a=words.seen_noun(top, words.middle),
        b=words.seen_noun(shares[1][0], words.middle),
    )


def _is_surrounded(kinds: np.ndarray, box: Box, kind: int, other: int) -> bool:
    """Whether nine tenths of the rim around the parts of ``kind`` in a box are of the kind ``other``."""
    window = kinds[max(box.top - 1, 0) : box.bottom + 1, max(box.left - 1, 0) : box.right + 1]
    rim = window[ndimage.binary_dilation(window == kind, structure=np.ones((3, 3), dtype=bool)) & (window != kind)]
    return rim.size > 0 and float((rim == other).mean()) >= 0.9


def _box_area(box: Box) -> int:
    return (box.right - box.left) * (box.bottom - box.top)


def _tell_edges(words: _Words) -> Sentence:
    """What lies off the centre: a part of its own at an edge, or what the edges show."""
    top = words.shares()[0][0]
    for kind, _ in words.shares(~words.middle):
        if kind == top:
            continue
        parts = boxes_of_mask(words.kinds == kind, "", int(_MIN_PART * words.kinds.size))
        outer = [part for part in parts if not is_central(part, words.width, words.height)]
        if not outer:
            continue
        place = place_of(outer[0], words.width, words.height)
        if place in ("at one edge", "in one corner", "from edge to edge"):
            place = {"from edge to edge": "along one side"}.get(place, place)
            a = Cover("open sea") if kind == words.SEA else words.noun(kind)
            return words.pick(
                "there is {a} {place} of the image, next to {b}",
                "{place} of the image {b} gives way to {a}",
                "{c} with {a} {place}",
                a=a,
                b=words.noun(_neighbour_of(words, outer[0], kind)),
                c=words.noun(top),
                place=place,
            )
    ring = words.shares(~words.middle)
    if ring[0][1] >= 0.75 or len(ring) == 1:
        return words.pick(
            "{a} continues towards the edges",
            "the edges of the image show {a} as well",
            "{a} reaches to the edges of the image",
            a=words.noun(ring[0][0]),
        )
    return words.pick(
        "towards the edges there is {a} and {b}",
        "the outer part of the image shows {a} and {b}",
        "{a} and {b} lie around the centre",
        a=words.noun(ring[0][0]),
        b=words.noun(ring[1][0]),
    )


def _neighbour_of(words: _Words, box: Box, kind: int) -> int:
    """The kind that fills most of a box and its rim, beside the box's own kind."""
    rows, columns = slice(max(box.top - 2, 0), box.bottom + 2), slice(max(box.left - 2, 0), box.right + 2)
    around = words.kinds[rows, columns]
    return int(np.bincount(around[around != kind]).argmax())


def _tell_shares(words: _Words) -> Sentence:
    """How much of the tile each kind covers."""
    shares = words.shares()
    (top, share), rest = shares[0], [(kind, part) for kind, part in shares[1:] if part >= 0.05]
    a = words.noun(top)
    if not rest:
        return words.pick("{s} of the image is {a}", "{s} of the area is covered by {a}", s=_share_in_words(share), a=a)
    b = words.noun(rest[0][0])
    text = words.pick(
        "{s} of the image is {a} and {t} is {b}",
        "{a} covers {s} of the image, {b} {t}",
        "{s} of the area is {a}, {t} {b}",
        s=_share_in_words(share),
        a=a,
        t=_share_in_words(rest[0][1]),
        b=b,
    )
    if len(rest) > 1:
        text += words.pick(", with some {c:bare}", ", besides {c:bare}", c=words.noun(rest[1][0]))
    return text


def _tell_water(words: _Words) -> Sentence:
    """Coast, islands and lakes; without water, what the inland is."""
    area = words.kinds.size
    land_top = GROUPS.index(dominant_land(np.where(words.land, words.kinds, WATER)))
    sea_share = float((words.kinds == words.SEA).mean())
    lakes = find_lakes(words.kinds == words.INLAND)
    a = words.noun(land_top)
    if sea_share > 0:
        islands, lands = find_islands(words.land)
        if len(islands) > 1 or (islands and sea_share > 0.3):
            n = Count(len(islands), "island", "islands")
            if len(islands) == len(lands):
                return words.pick("{n} in the sea with {a}", "the sea surrounds {n} with {a}", n=n, a=a)
            return words.pick("{n} off a coast of {a}", "the sea with {n} and a coast of {a}", n=n, a=a)
        return words.pick(
            "a coast with {a} beside the sea, which covers {s} of the image",
            "a sea coast with {a}",
            "{a} meets the sea along a coast; {s} of the image is sea",
            "the sea takes up {s} of the image, the land behind the coast is mostly {a}",
            a=a,
            s=_share_in_words(sea_share),
        )
    if lakes:
        if lakes[0].pixels >= 0.05 * area:
            return words.pick(
                "a large body of inland water among {a}", "a large lake or river in a landscape of {a}", a=a
            )
        return words.pick(
            "{n} in a landscape of {a}",
            "{n} among {a}",
            a=a,
            n=Count(len(lakes), "small body of water", "small lakes or river stretches"),
        )
    others = [kind for kind, part in words.shares() if kind < len(GROUPS) and part >= 0.05 and kind != land_top]
    a = Covers((a, words.noun(others[0]))) if others else a
    if words.land.all():
        return words.pick("an inland area of {a}", "no sea or lake is seen among {a}", "{a} without open water", a=a)
    return words.pick("an inland area of {a}", "{a} away from the sea", "an inland landscape with {a}", a=a)


def find_lakes(inland: np.ndarray) -> list[Box]:
    """The parts of a tile's inland water (H, W) that are told, at least one in 400 of its area, largest first."""
    return boxes_of_mask(inland, "", max(inland.size // 400, 1))


def find_islands(land: np.ndarray) -> tuple[list[Box], list[Box]]:
    """Of a tile's parts of land (H, W) of at least one in 200 of its area: those that touch no edge, and all."""
    height, width = land.shape
    lands = boxes_of_mask(land, "", max(land.size // 200, 1))
    return [part for part in lands if place_of(part, width, height) in ("in the middle", "away from the edges")], lands


def _tell_climate(words: _Words) -> Sentence:
    """The climate zone of the land, with its main cover and the snow on it."""
    land_top = GROUPS.index(dominant_land(np.where(words.land, words.kinds, WATER)))
    nouns = [words.noun(land_top)]
    others = [(kind, part) for kind, part in words.shares() if kind < len(GROUPS) and kind != land_top]
    if others and others[0][1] >= 0.15:
        nouns.append(words.noun(others[0][0]))
    snow = words.snow.sum() / words.land.sum()
    a = Covers(tuple(nouns), "under snow" if snow >= 0.7 else "partly under snow" if snow >= 0.15 else "")
    if not words.climates:
        return words.pick("a landscape mainly of {a}", "the land is mainly {a}", a=a)
    first = words.climates[0][0]
    if len(words.climates) > 1 and words.climates[1][1] >= 0.25:
        return words.pick(
            "land between the {c} and the {d} climate zone, mainly {a}",
            "a {c} to {d} landscape with {a}",
            "where {c} climate passes into {d}: {a}",
            a=a,
            c=first,
            d=words.climates[1][0],
        )
    return words.pick(
        "a {c} landscape of {a}",
        "in a {c} climate: {a}",
        "a {c} region with {a}",
        "the climate is {c} and the land mainly {a}",
        a=a,
        c=first,
    )
