"""Reader of YOLO's text: a file an image, a line an object: ``CLASS X Y WIDTH HEIGHT``, class by number, all from 0 to 1."""

from pathlib import Path

from rsvlm.data.boxed_images import (
    BoxedImage,
    BoxedListing,
    Classes,
    annotation_files,
    check_box,
    image_by_stem,
    image_size,
    split_of_stems,
)
from rsvlm.data.boxes import Box
from rsvlm.data.fixes import ALL
from rsvlm.data.text_lines import read_lines


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
    listing = BoxedListing()
    of_image = image_by_stem(images)
    files = [path for path in annotation_files(folder, ".txt") if path.name != "classes.txt"]
    for path, part in split_of_stems(files, lists, split).items():
        if path.stem not in of_image:
            raise FileNotFoundError(f"{path}: {images} holds no image {path.stem!r}, which gives the boxes their size")
        width, height = image_size(of_image[path.stem])
        boxes = [
            _box_of(line.split(), width, height, classes, fixes, listing, f"{path}: line {number}")
            for number, line in read_lines(path)
            if line.strip()
        ]
        kept = tuple(box for box in boxes if box is not None)
        listing.images.append(BoxedImage(of_image[path.stem].name, part, width, height, kept))
    return listing


def _box_of(
    fields: list[str], width: int, height: int, classes: Classes, fixes: frozenset[str], listing: BoxedListing, where: str
) -> Box | None:
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
    return check_box(
        word, left, top, left + w * width, top + h * height, width, height, where, listing.counts, fixes
    )
