"""Reader of DOTA's text: a file an image, a line an object with eight corner coordinates, class and difficulty.

``X1 Y1 X2 Y2 X3 Y3 X4 Y4 CLASS DIFFICULTY``; lines ``imagesource:...`` and ``gsd:...`` may come first.
"""

import math
from collections import Counter
from functools import partial
from pathlib import Path

from rsvlm.data.boxed_images import BoxedListing, Classes, check_box, read_line_boxes
from rsvlm.data.boxes import Box
from rsvlm.data.fixes import ALL


def read_dota_boxes(
    folder: Path,
    images: Path,
    classes: Classes,
    lists: dict[str, Path],
    split: str = "train",
    fixes: frozenset[str] = ALL,
) -> BoxedListing:
    """Images with oriented boxes from a folder of text files; sizes are read from the images.

    Raises:
        FileNotFoundError: a folder or an image is missing.
        ValueError: a line with other fields, an unknown class, a box outside its image; names file and line.
    """
    box_of = partial(_box_of, classes=classes, fixes=fixes)
    return read_line_boxes(folder, images, lists, split, box_of, skipped_lines=("imagesource:", "gsd:"))


def _box_of(
    fields: list[str], width: int, height: int, counts: Counter, where: str, classes: Classes, fixes: frozenset[str]
) -> Box | None:
    """One line as a box with the direction of its long side; None for a class that is left out."""
    if len(fields) not in (9, 10):
        raise ValueError(f"{where}: needs eight coordinates, a class and a difficulty, has {len(fields)} fields")
    try:
        values = [float(text) for text in fields[:8]]
    except ValueError as error:
        raise ValueError(f"{where}: the eight coordinates must be numbers: {error}") from error
    if not all(map(math.isfinite, values)):
        raise ValueError(f"{where}: the eight coordinates must be finite, are {values}")
    word = classes.word(fields[8], where)
    if word is None:
        return None
    corners = list(zip(values[::2], values[1::2], strict=True))
    sides = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(corners, corners[1:] + corners[:1], strict=True)]
    lengths = [math.hypot(*side) for side in sides]
    first, second = (lengths[0] + lengths[2]) / 2, (lengths[1] + lengths[3]) / 2
    x, y = sides[0] if first >= second else sides[1]
    # Half the cross product of the diagonals: the area of any quadrilateral.
    (ax, ay), (bx, by), (cx, cy), (dx, dy) = corners
    area = abs((cx - ax) * (dy - by) - (cy - ay) * (dx - bx)) / 2
    return check_box(
        word, min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]), width, height, where,
        counts, fixes, math.degrees(math.atan2(y, x)) % 180, max(first, second) / max(min(first, second), 1e-6),
        area,
    )  # fmt: skip
