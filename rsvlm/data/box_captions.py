"""Five captions of an image from its boxes: RemoteCLIP's box to caption (Liu et al. 2023, section III), and beyond it.

As in the paper: the first caption tells the objects whose box centre lies in the centre of the image, the second those
that lie elsewhere, three more the counts of randomly drawn classes; above ten a general term replaces the number.

What the paper leaves open is a setting (``CaptionSettings``). Beyond it: the three counting captions together name
every class, and they add how classes lie to each other, how large objects look and whether they lie in parallel.
Nothing is said about sides or compass points, so that all stays true when an image is flipped or turned.

Nothing is said that the annotations do not prove. An object somewhere in an upright box need not be where another's box
overlaps it, so of boxes alone no object is inside another, and two are next to each other only where the boxes leave no
other way. "Elsewhere" leaves out a box that holds the middle of the image, "free of" one that reaches into the centre;
a plain count then takes the caption's place. Parts of a class mask (``rsvlm.data.boxes``) are told by what their
pixels prove, and have no number where one part may hold several objects that touch or smaller areas were left out.
"""

import math
import random
from collections import Counter
from functools import cache

import numpy as np

from rsvlm.data.boxes import Box, BoxedListing
from rsvlm.data.listings import ListedImage, Listing, note_splits
from rsvlm.data.names import NUMBERS, is_area
from rsvlm.data.sources import CaptionSettings
from rsvlm.extras import import_extra

CAPTIONS = 5
SMALL, LARGE = 0.005, 0.25  # share of the image that an object covers
PARALLEL = 15  # degrees that each of the objects may be off their mean direction where they lie in parallel
NEARBY = 0.05  # share of the image's diagonal that two objects are apart at most where they are next to each other
STRETCHED = 1.5  # long by short side from which an object has a direction
SIZES = {"large", "small", "big", "little", "huge", "tiny", "long", "short", "great", "mini", "giant", "oversized"}

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
    listing = Listing(images=[], counts=Counter(boxed.counts), notes=dict(boxed.notes))
    for image in boxed.images:
        draw = random.Random(f"{seed}/{image.name}")
        captions = caption_boxes(list(image.boxes), image.width, image.height, settings, draw, image.relations)
        labels = Counter(box.label for box in image.boxes)
        label = min(labels, key=lambda name: (-labels[name], name)) if labels else None
        listing.counts["captions_listed"] += len(captions)
        listing.counts["boxes"] += len(image.boxes)
        listing.images.append(ListedImage(image.name, image.split, tuple(captions), label))
    note_splits(listing)
    return listing


def caption_boxes(
    boxes: list[Box],
    width: int,
    height: int,
    settings: CaptionSettings,
    draw: random.Random,
    relations: tuple[tuple[str, str, str], ...] = (),
) -> list[str]:
    """Five different captions of an image's boxes: centre, elsewhere, and three counts. None without a box.

    Args:
        boxes: with labels in the words of the captions, singular or plural.
        width, height: of the image, pixels.
        draw: decides the wording.
        relations: of masks, see BoxedImage.
    """
    if not boxes:
        return []
    groups = _by_label(boxes)
    central, around = (
        _by_label([box for box in boxes if _place(box, width, height, settings.centre) == place])
        for place in ("centre", "around")
    )
    templates = draw.sample(COUNTS, len(COUNTS))
    objects = all(box.place is None for box in boxes)
    free = objects and not any(_reach(box, width, height, settings.centre)[0] for box in boxes)
    only = objects and not any(_reach(box, width, height, settings.centre)[1] for box in boxes)
    captions = []
    for told, sure, wording, negative in ((central, free, CENTRE, NO_CENTRE), (around, only, ELSEWHERE, ONLY_CENTRE)):
        template = draw.choice(wording) if told else draw.choice(negative) if sure else templates.pop()
        captions.append(_fill(template, told or groups, settings, draw))
    extras = _extras(groups, width, height, settings, draw, relations)
    for names in _groups(list(groups), settings.counted, draw):
        sentence = _fill(templates.pop(), {name: groups[name] for name in names}, settings, draw)
        captions.append(f"{sentence} {extras.pop(0)}" if extras else sentence)
    return captions


def _by_label(boxes: list[Box]) -> dict[str, list[Box]]:
    groups: dict[str, list[Box]] = {}
    for box in boxes:
        groups.setdefault(box.label, []).append(box)
    return groups


@cache  # inflect takes a millisecond a word
def words_of(label: str) -> tuple[str, str]:
    """Singular and plural of a class's word; of a word without a plural, areas of it."""
    engine = _inflect()
    head, of, rest = label.partition(" of ")
    if of:
        return tuple(f"{word} of {rest}" for word in words_of(head))
    if is_area(label):
        return f"area of {label}", f"areas of {label}"
    singular = engine.singular_noun(label) or label
    if len(singular.split()[-1]) < 3:
        singular = label  # inflect takes "bus" and "gas" for plurals
    return singular, engine.plural_noun(singular)


def _extras(
    groups: dict[str, list[Box]],
    width: int,
    height: int,
    settings: CaptionSettings,
    draw: random.Random,
    relations: tuple[tuple[str, str, str], ...],
) -> list[str]:
    """Sentences beyond the paper's: at most one relation, one on direction and one on size, in random order."""
    found = []
    if settings.relations:
        known = relations or _relations(groups, NEARBY * math.hypot(width, height))
        known = [one for one in known if one[1] != "next to"] or known  # the rarer one says more
        found += [_related(*draw.choice(known), groups)] if known else []
    if settings.details:
        found += [sentence for sentence in (_direction(groups), _size(groups, width * height)) if sentence]
    draw.shuffle(found)
    return found


def _relations(groups: dict[str, list[Box]], nearby: float) -> list[tuple[str, str, str]]:
    """Which classes have an object next to one of another class, wherever in their boxes the objects are."""
    names = sorted(name for name, group in groups.items() if all(box.place is None for box in group))
    return [
        (name, "next to", other)
        for name in names
        for other in names
        if name != other and _farthest(groups[name], groups[other]).min() <= nearby
    ]


def _related(name: str, how: str, other: str, groups: dict[str, list[Box]]) -> str:
    one = len(groups[name]) == 1 and _countable(groups[name])
    return f"{'The' if one else 'At least one'} {words_of(name)[0]} is {how} {_inflect().a(words_of(other)[0])}."


def _direction(groups: dict[str, list[Box]]) -> str | None:
    """The first class with at least three objects, all long and all in one direction."""
    for name in sorted(groups):
        angles = [box.angle for box in groups[name] if box.angle is not None and box.stretch >= STRETCHED]
        if len(angles) >= 3 and len(angles) == len(groups[name]):
            # Directions repeat after 180 degrees, so they are doubled before they are averaged.
            x = sum(math.cos(2 * math.radians(angle)) for angle in angles)
            y = sum(math.sin(2 * math.radians(angle)) for angle in angles)
            mean = math.degrees(math.atan2(y, x)) / 2
            if all(abs((angle - mean + 90) % 180 - 90) <= PARALLEL for angle in angles):
                return f"The {words_of(name)[1]} lie in parallel."
    return None


def _size(groups: dict[str, list[Box]], area: int) -> str | None:
    """The first class whose objects all look large or all look small; none whose name holds a size.

    Of parts of a mask that may hold several objects each, several small ones tell that the objects are small.
    """
    for word, fits in (("large", lambda share: share >= LARGE), ("small", lambda share: share <= SMALL)):
        for name in sorted(groups):
            one = len(groups[name]) == 1
            told = _countable(groups[name]) or (word == "small" and not one)
            if told and not SIZES & set(name.split()) and all(fits(box.pixels / area) for box in groups[name]):
                singular, plural = words_of(name)
                return f"The {singular if one else plural} {'looks' if one else 'look'} {word} in the image."
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


def _fill(template: str, groups: dict[str, list[Box]], settings: CaptionSettings, draw: random.Random) -> str:
    """A template with the objects in words, in random order."""
    names = sorted(groups)
    draw.shuffle(names)
    objects = _joined([_counted(name, groups[name], settings, draw) for name in names])
    there_are = "there is" if len(groups[names[0]]) == 1 else "there are"
    return template.format(
        There_are=there_are.capitalize(),
        there_are=there_are,
        objects=objects,
        Objects=objects[0].upper() + objects[1:],
        names=_joined([words_of(name)[1] for name in names]),
    )


def _counted(name: str, group: list[Box], settings: CaptionSettings, draw: random.Random) -> str:
    singular, plural = words_of(name)
    if len(group) > settings.general_above:
        return f"{draw.choice(settings.general_terms)} {plural}"
    if not _countable(group):
        return f"at least one {singular}" if len(group) == 1 else f"some {plural}"
    return f"one {singular}" if len(group) == 1 else f"{NUMBERS[len(group)]} {plural}"


def _countable(group: list[Box]) -> bool:
    """Whether each box is one object or one area, and all of them are told."""
    return all(box.exact for box in group)


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _place(box: Box, width: int, height: int, centre: float) -> str:
    """``centre`` by the middle of the box, ``around`` unless the box holds the middle of the image, else ``both``."""
    if box.place is not None:
        return box.place
    x, y = (box.left + box.right) / 2, (box.top + box.bottom) / 2
    if abs(x - width / 2) <= centre * width / 2 and abs(y - height / 2) <= centre * height / 2:
        return "centre"
    return "both" if box.left < width / 2 < box.right and box.top < height / 2 < box.bottom else "around"


def _reach(box: Box, width: int, height: int, centre: float) -> tuple[bool, bool]:
    """Whether a box reaches into the centre of the image, and whether it reaches out of it."""
    spans = ((box.left, box.right, width), (box.top, box.bottom, height))
    edges = [(low, high, (1 - centre) * size / 2, (1 + centre) * size / 2) for low, high, size in spans]
    into = all(low < right and high > left for low, high, left, right in edges)
    return into, any(low < left or high > right for low, high, left, right in edges)


def _farthest(group: list[Box], others: list[Box]) -> np.ndarray:
    """The most that two objects can be apart, pixels (A, B), when each is known to touch the four sides of its box."""
    first, second = (
        np.array([[box.left, box.top, box.right, box.bottom] for box in boxes]) for boxes in (group, others)
    )
    sides = [[0, 1, 0, 3], [2, 1, 2, 3], [0, 1, 2, 1], [0, 3, 2, 3]]  # each side as a flat box
    bound = np.full((len(group), len(others)), np.inf)
    for p in sides:
        for q in sides:
            a, b = first[:, None, p], second[None, :, q]
            x, y = (np.maximum(a[..., i + 2] - b[..., i], b[..., i + 2] - a[..., i]) for i in (0, 1))
            bound = np.minimum(bound, np.hypot(x, y))
    return bound


@cache
def _inflect() -> object:
    return import_extra("inflect", "captioning boxes").engine()
