"""From label maps to boxes and from boxes to words, in the way of RemoteCLIP (Liu et al. 2023, section III).

Mask to box: per class a binary mask, its connected parts, the box around each. Box to caption: an object whose box
centre lies in the centre of the image is told apart from the others; counts above ten become "many". The paper leaves
"centre" open; here it is the middle half of width and height, as in a later re-implementation.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from rsvlm.data.names import NUMBERS

MANY = 10


@dataclass(frozen=True)
class Box:
    """The box around one object or connected part of a class, in pixels; right and bottom lie just outside."""

    label: str
    left: float
    top: float
    right: float
    bottom: float
    pixels: float  # of the part itself, not of the box
    angle: float | None = None  # of the long side against the horizontal, 0 to 180 degrees; None: not known
    stretch: float = 1.0  # long side by short side of the box that follows the object
    # Parts of a class mask alone, by their pixels: "centre", "around" (none in the centre) or "both". None: an object.
    place: str | None = None
    exact: bool = True  # whether the boxes of this class are as many as its objects or areas


def boxes_of_mask(mask: np.ndarray, label: str, min_pixels: int = 1) -> list[Box]:
    """Boxes of a boolean mask's (H, W) connected parts (8 neighbours) of at least ``min_pixels``, largest first."""
    parts, count = ndimage.label(mask, structure=np.ones((3, 3), dtype=int))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    boxes = [
        Box(label, columns.start, rows.start, columns.stop, rows.stop, int(sizes[part]))
        for part, (rows, columns) in enumerate(ndimage.find_objects(parts), start=1)
        if sizes[part] >= min_pixels
    ]
    return sorted(boxes, key=lambda box: (-box.pixels, box.top, box.left))


def boxes_of_classes(class_map: np.ndarray, names: Mapping[int, str], min_pixels: int = 1) -> list[Box]:
    """Boxes of all named classes of a label map (H, W) of integers: mask to box. Values without a name are left out."""
    present = [value for value in np.unique(class_map).tolist() if value in names]
    return [box for value in present for box in boxes_of_mask(class_map == value, names[value], min_pixels)]


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


def count_in_words(count: int, singular: str, plural: str) -> str:
    """``one lake``, ``three lakes``, ``many lakes`` (above ten)."""
    if count == 1:
        return f"one {singular}"
    return f"{NUMBERS[count] if count <= MANY else 'many'} {plural}"
