"""Reader of DOTA's text: a file an image, a line an object with eight corner coordinates, class and difficulty.

``X1 Y1 X2 Y2 X3 Y3 X4 Y4 CLASS DIFFICULTY``; lines ``imagesource:...`` and ``gsd:...`` may come first.
"""

from functools import partial
from pathlib import Path

from rsvlm.data.boxed_images import BoxedListing, Classes, check_corners, read_line_boxes
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
    fields: list[str], width: int, height: int, listing: BoxedListing, where: str, classes: Classes,
    fixes: frozenset[str],
) -> Box | None:  # fmt: skip
    """One line as a box with the direction of its long side; None for a class or a box that is left out."""
    if len(fields) not in (9, 10):
        raise ValueError(f"{where}: needs eight coordinates, a class and a difficulty, has {len(fields)} fields")
    try:
        values = [float(text) for text in fields[:8]]
    except ValueError as error:
        raise ValueError(f"{where}: the eight coordinates must be numbers: {error}") from error
    word = classes.word(fields[8], where)
    return None if word is None else check_corners(word, values, width, height, where, listing, fixes)
