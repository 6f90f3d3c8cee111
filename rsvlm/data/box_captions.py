"""Five captions of an image from its boxes: RemoteCLIP's box to caption (Liu et al. 2023, section III), and beyond it.

As in the paper: the first caption tells the objects whose box centre lies in the centre of the image, the second those
that lie elsewhere, three more the counts of randomly drawn classes; above ten a general term replaces the number.

What the paper leaves open is a setting of CaptionSettings. Beyond it: the three counting captions together name every
class, and they add how classes lie to each other, how large objects are and whether they lie in parallel. Nothing is
said about sides or compass points, so that all stays true when an image is flipped or turned.
"""

import math
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from rsvlm.data.boxed_images import BoxedListing
from rsvlm.data.boxes import Box
from rsvlm.data.listings import ListedImage, Listing, note_splits
from rsvlm.extras import import_extra

CAPTIONS = 5
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
SMALL, LARGE = 0.005, 0.25  # share of the image that an object covers
PARALLEL = 0.9  # length of the mean direction, 0 to 1, from which objects lie in parallel
STRETCHED = 1.5  # long by short side from which an object has a direction
MASS = (
    "water",
    "grass",
    "vegetation",
    "farmland",
    "woodland",
    "cropland",
    "grassland",
    "land",
    "soil",
    "sand",
    "snow",
    "ice",
    "forest",
    "agriculture",
    "clutter",
    "shadow",
    "barren",
    "surface",
    "surfaces",
)  # fmt: skip  words without a plural: areas of them are counted


@dataclass(frozen=True)
class CaptionSettings:
    """What RemoteCLIP's paper leaves open, and what goes beyond it. Raises ValueError for a value that cannot be."""

    centre: float = 0.5  # share of width and height that is the centre: the middle half, as a re-implementation chose
    general_above: int = 10  # from the paper: counts above ten may be told in general terms
    general_terms: tuple[str, ...] = ("many", "a lot of")  # the paper's examples
    counted: int = 3  # classes that a counting caption names at least, where there are so many; not in the paper
    relations: bool = True  # tell which classes lie next to or inside each other
    details: bool = True  # tell sizes, and objects that lie in parallel

    def __post_init__(self) -> None:
        if not 0 < self.centre < 1:
            raise ValueError(f"captions: centre must be between 0 and 1, is {self.centre}")
        if not 1 <= self.general_above < len(NUMBERS):
            raise ValueError(f"captions: general_above must be from 1 to {len(NUMBERS) - 1}, is {self.general_above}")
        if not self.general_terms or not all(isinstance(term, str) and term for term in self.general_terms):
            raise ValueError(f"captions: general_terms must be texts, are {self.general_terms!r}")
        if self.counted < 1:
            raise ValueError(f"captions: counted must be at least 1, is {self.counted}")


CENTRE = (
    "{There_are} {objects} in the center of the image.",
    "In the middle of the image {there_are} {objects}.",
    "The center of the image shows {objects}.",
)
NO_CENTRE = (
    "{There_are} {objects}, but not in the center of the image.",
    "The center of the image is free of {names}.",
)
ELSEWHERE = (
    "{There_are} {objects} away from the center of the image.",
    "Around the center of the image {there_are} {objects}.",
    "Towards the edges of the image {there_are} {objects}.",
)
ONLY_CENTRE = (
    "{There_are} {objects}, and only in the center of the image.",
    "Away from its center the image is free of {names}.",
)
COUNTS = (
    "{There_are} {objects} in this image.",
    "The image contains {objects}.",
    "{Objects} can be seen in the image.",
    "An aerial view of {objects}.",
    "This picture shows {objects}.",
    "One can see {objects} from above.",
)


def caption_listing(boxed: BoxedListing, settings: CaptionSettings, seed: int) -> Listing:
    """The images of a source of boxes with five captions each; an image without a box has none.

    The class label is that of most boxes.
    """
    listing = Listing(images=[], counts=Counter(boxed.counts))
    for image in boxed.images:
        captions = caption_boxes(
            list(image.boxes), image.width, image.height, settings, random.Random(f"{seed}/{image.name}")
        )
        labels = Counter(box.label for box in image.boxes)
        label = min(labels, key=lambda name: (-labels[name], name)) if labels else None
        listing.counts["captions_listed"] += len(captions)
        listing.counts["boxes"] += len(image.boxes)
        listing.images.append(ListedImage(image.name, image.split, tuple(captions), label))
    note_splits(listing)
    return listing


def caption_boxes(
    boxes: list[Box], width: int, height: int, settings: CaptionSettings, draw: random.Random
) -> list[str]:
    """Five different captions of an image's boxes: centre, elsewhere, and three counts. None without a box.

    Args:
        boxes: with labels in the words of the captions, singular or plural.
        width, height: of the image, pixels.
        draw: decides the wording.
    """
    if not boxes:
        return []
    counts = Counter(box.label for box in boxes)
    central = Counter(box.label for box in boxes if _is_central(box, width, height, settings.centre))
    around = counts - central
    captions = [
        _fill(draw.choice(CENTRE), central, settings, draw)
        if central
        else _fill(draw.choice(NO_CENTRE), counts, settings, draw),
        _fill(draw.choice(ELSEWHERE), around, settings, draw)
        if around
        else _fill(draw.choice(ONLY_CENTRE), counts, settings, draw),
    ]
    extras = _extras(boxes, width, height, settings, draw)
    templates = draw.sample(COUNTS, 3)
    for group, template in zip(_groups(list(counts), settings.counted, draw), templates, strict=True):
        sentence = _fill(template, Counter({name: counts[name] for name in group}), settings, draw)
        captions.append(f"{sentence} {extras.pop(0)}" if extras else sentence)
    return captions


def words_of(label: str) -> tuple[str, str]:
    """Singular and plural of a class's word; of a word without a plural, areas of it."""
    engine = _inflect()
    if label.split()[-1] in MASS:
        return f"area of {label}", f"areas of {label}"
    singular = engine.singular_noun(label) or label
    if len(singular.split()[-1]) < 3:
        singular = label  # inflect takes "bus" and "gas" for plurals
    return singular, engine.plural_noun(singular)


def _extras(boxes: list[Box], width: int, height: int, settings: CaptionSettings, draw: random.Random) -> list[str]:
    """Sentences beyond the paper's: at most one relation, one on direction and one on size, in random order."""
    groups: dict[str, list[Box]] = {}
    for box in boxes:
        groups.setdefault(box.label, []).append(box)
    relation = _relation(groups, width, height, draw) if settings.relations and len(groups) > 1 else None
    details = [_direction(groups), _size(groups, width * height)] if settings.details else []
    found = [sentence for sentence in (relation, *details) if sentence]
    draw.shuffle(found)
    return found


def _relation(groups: dict[str, list[Box]], width: int, height: int, draw: random.Random) -> str | None:
    """The closest relation between two classes: one inside the other, or next to it."""
    nearby = 0.05 * math.hypot(width, height)
    found = []
    for name in sorted(groups):
        for other in sorted(groups):
            if name == other:
                continue
            inside = sum(any(_share_inside(box, around) >= 0.9 for around in groups[other]) for box in groups[name])
            if inside == len(groups[name]):
                found.append((name, "inside", other))
            elif name < other and any(_gap(a, b) <= nearby for a in groups[name] for b in groups[other]):
                found.append((name, "next to", other))
    if not found:
        return None
    inner = [relation for relation in found if relation[1] == "inside"]
    name, how, other = draw.choice(inner or found)
    first, second = _the(name, len(groups[name])), _the(other, len(groups[other]))
    if how == "inside":
        return f"{first.capitalize()} {'is' if len(groups[name]) == 1 else 'are'} inside {second}."
    if len(groups[name]) == len(groups[other]) == 1:
        return f"{first.capitalize()} is next to {second}."
    return f"Some of these, of the kinds {words_of(name)[0]} and {words_of(other)[0]}, are next to each other."


def _direction(groups: dict[str, list[Box]]) -> str | None:
    """The first class with at least three long objects whose directions agree."""
    for name in sorted(groups):
        angles = [box.angle for box in groups[name] if box.angle is not None and box.stretch >= STRETCHED]
        if len(angles) >= 3 and len(angles) == len(groups[name]):
            # Directions repeat after 180 degrees, so they are doubled before they are averaged.
            x = sum(math.cos(2 * math.radians(angle)) for angle in angles) / len(angles)
            y = sum(math.sin(2 * math.radians(angle)) for angle in angles) / len(angles)
            if math.hypot(x, y) >= PARALLEL:
                return f"The {words_of(name)[1]} lie in parallel."
    return None


def _size(groups: dict[str, list[Box]], area: int) -> str | None:
    """The first class whose objects are all large or all small against the image."""
    for word, fits in (("large", lambda share: share >= LARGE), ("small", lambda share: share <= SMALL)):
        for name in sorted(groups):
            if all(fits(box.pixels / area) for box in groups[name]):
                one = len(groups[name]) == 1
                singular, plural = words_of(name)
                return f"The {singular if one else plural} {'is' if one else 'are'} {word}."
    return None


def _groups(names: list[str], at_least: int, draw: random.Random) -> list[list[str]]:
    """Three groups of classes that together hold every class, each of at least ``at_least`` where there are so many."""
    names = sorted(names)
    draw.shuffle(names)
    groups = [names[start::3] for start in range(3)]
    for group in groups:
        missing = min(at_least, len(names)) - len(group)
        group += draw.sample([name for name in names if name not in group], max(missing, 0))
    return groups


def _fill(template: str, counts: Counter, settings: CaptionSettings, draw: random.Random) -> str:
    """A template with the objects in words, in random order."""
    names = sorted(counts)
    draw.shuffle(names)
    objects = _joined([_counted(name, counts[name], settings, draw) for name in names])
    there_are = "there is" if counts[names[0]] == 1 else "there are"
    return template.format(
        There_are=there_are.capitalize(),
        there_are=there_are,
        objects=objects,
        Objects=objects[0].upper() + objects[1:],
        names=_joined([words_of(name)[1] for name in names]),
    )


def _counted(name: str, count: int, settings: CaptionSettings, draw: random.Random) -> str:
    singular, plural = words_of(name)
    if count == 1:
        return f"one {singular}"
    if count > settings.general_above:
        return f"{draw.choice(settings.general_terms)} {plural}"
    return f"{NUMBERS[count]} {plural}"


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _the(name: str, count: int) -> str:
    return f"the {words_of(name)[count != 1]}"


def _is_central(box: Box, width: int, height: int, centre: float) -> bool:
    x, y = (box.left + box.right) / 2, (box.top + box.bottom) / 2
    return abs(x - width / 2) <= centre * width / 2 and abs(y - height / 2) <= centre * height / 2


def _gap(a: Box, b: Box) -> float:
    """Distance between two boxes, pixels; 0 where they touch."""
    across = max(a.left - b.right, b.left - a.right, 0)
    return math.hypot(across, max(a.top - b.bottom, b.top - a.bottom, 0))


def _share_inside(inner: Box, outer: Box) -> float:
    across = min(inner.right, outer.right) - max(inner.left, outer.left)
    down = min(inner.bottom, outer.bottom) - max(inner.top, outer.top)
    return max(across, 0) * max(down, 0) / ((inner.right - inner.left) * (inner.bottom - inner.top))


@lru_cache(maxsize=1)
def _inflect() -> object:
    return import_extra("inflect", "captioning boxes").engine()


def settings_of(values: Mapping[str, object] | None) -> CaptionSettings:
    """CaptionSettings from a mapping of some of its fields.

    Raises:
        ValueError: an unknown field, or a value that cannot be.
    """
    values = dict(values or {})
    unknown = set(values) - set(CaptionSettings.__dataclass_fields__)
    if unknown:
        raise ValueError(
            f"captions: unknown key {min(unknown)!r}; known: {', '.join(CaptionSettings.__dataclass_fields__)}"
        )
    if "general_terms" in values:
        values["general_terms"] = tuple(values["general_terms"])
    return CaptionSettings(**values)
