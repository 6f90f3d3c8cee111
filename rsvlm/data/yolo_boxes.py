"""Reader of YOLO's text: a file an image, a line an object: class number, and centre and sides as shares."""

from functools import partial
from pathlib import Path

from rsvlm.data.boxed_images import BoxedListing, Classes, check_box, read_line_boxes
from rsvlm.data.boxes import Box
from rsvlm.data.fixes import ALL


def read_yolo_boxes(
    folder: Path,
    images: Path,
    classes: Classes,
    lists: dict[str, Path],
    split: str = "train",
    fixes: frozenset[str] = ALL,
) -> BoxedListing:
    """Images with boxes from a folder of text files (``classes.txt`` is skipped); sizes are read from the images.

    Args:
        classes: words by class number ("0", "1", ...); a number that is not among them stops the reader.

    Raises:
        FileNotFoundError: a folder or an image is missing.
        ValueError: a line with other fields, an unknown class, a box outside its image; names file and line.
    """
    box_of = partial(_box_of, classes=classes, fixes=fixes)
    return read_line_boxes(folder, images, lists, split, box_of, skipped_files=("classes.txt",))


def _box_of(
    fields: list[str], width: int, height: int, listing: BoxedListing, where: str, classes: Classes,
    fixes: frozenset[str],
) -> Box | None:  # fmt: skip
    if len(fields) != 5:
        raise ValueError(f"{where}: needs a class number and four shares of the sides, has {len(fields)} fields")
    if not fields[0].isdecimal():
        raise ValueError(f"{where}: the class must be a whole number, is {fields[0]!r}")
    try:
        x, y, w, h = (float(text) for text in fields[1:])
    except ValueError as error:
        raise ValueError(f"{where}: the box must be four numbers: {error}") from error
    if max(x, y, w, h) > 1.5:
        raise ValueError(f"{where}: the box must be shares of the sides from 0 to 1, is {fields[1:]}: pixels?")
    word = classes.word(str(int(fields[0])), where)
    if word is None:
        return None
    left, top = (x - w / 2) * width, (y - h / 2) * height
    return check_box(word, left, top, left + w * width, top + h * height, width, height, where, listing, fixes)
