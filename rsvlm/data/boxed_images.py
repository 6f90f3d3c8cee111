"""What every file of boxes or masks comes down to: images with their boxes, checked against the image's size.

The readers of COCO, VOC, DOTA, YOLO and masks end here; ``rsvlm.data.box_captions`` makes captions of it.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


from rsvlm.data.boxes import Box
from rsvlm.data.fixes import ALL
from rsvlm.data.images import EXTENSIONS, open_file
from rsvlm.data.listings import check_split
from rsvlm.data.names import check_name, closest_name
from rsvlm.data.text_lines import read_lines


@dataclass(frozen=True)
class BoxedImage:
    """One image with its size in pixels and its boxes."""

    name: str
    split: str
    width: int
    height: int
    boxes: tuple[Box, ...]


@dataclass
class BoxedListing:
    """The images of a source of boxes or masks, and counts of what was met."""

    images: list[BoxedImage] = field(default_factory=list)
    counts: Counter = field(default_factory=Counter)


@dataclass(frozen=True)
class Classes:
    """The words for a source's classes. With ``closed`` a name that is not among them stops the reader.

    ``words`` maps a name in the file to the word in captions, or to None for a class that is left out.
    """

    words: Mapping[str, str | None] = field(default_factory=dict)
    closed: bool = False

    def word(self, name: str, where: str) -> str | None:
        """The word for a class; None leaves it out.

        Raises:
            ValueError: the class is unknown and the list is closed; names the closest.
        """
        if name in self.words:
            return self.words[name]
        if self.closed:
            raise ValueError(f"{where}: unknown class {name!r}{closest_name(name, self.words)}; add it to 'classes'")
        return name.replace("-", " ").replace("_", " ").strip().lower()


def check_box(
    label: str, left: float, top: float, right: float, bottom: float, width: int, height: int, where: str,
    counts: Counter, fixes: frozenset[str] = ALL, angle: float | None = None, stretch: float = 1.0,
    pixels: float | None = None,
) -> Box:  # fmt: skip
    """A box inside its image.

    One that reaches over the edge is cut there by the fix ``boxes_clipped`` and counted.

    Raises:
        ValueError: no numbers, no area, wholly outside the image, or over its edge without the fix; names the place.
    """
    corners = (left, top, right, bottom)
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in corners):
        raise ValueError(f"{where}: the box of {label!r} must be finite numbers, is {corners}")
    if right <= left or bottom <= top:
        raise ValueError(f"{where}: the box of {label!r} has no area: {corners}")
    if right <= 0 or bottom <= 0 or left >= width or top >= height:
        raise ValueError(f"{where}: the box of {label!r} lies outside the image of {width}x{height} pixels: {corners}")
    inside = (max(left, 0), max(top, 0), min(right, width), min(bottom, height))
    # Some files count pixels from 1 and let the last one end at width + 1.
    if any(abs(a - b) > 1 for a, b in zip(inside, corners, strict=True)):
        counts["boxes_over_the_edge"] += 1
        if "boxes_clipped" not in fixes:
            raise ValueError(
                f"{where}: the box of {label!r} reaches over the image of {width}x{height} pixels: {corners}; "
                "the fix 'boxes_clipped' cuts it at the edge"
            )
    area = (inside[2] - inside[0]) * (inside[3] - inside[1])
    return Box(label, *inside, area if pixels is None else pixels, angle, stretch)


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of an image file, in pixels, from its head alone.

    Raises:
        ImageError: the file is no image, or EXIF says that it is shown turned.
    """
    with open_file(path, most_pixels=None) as image:
        return image.size


def image_by_stem(folder: Path) -> dict[str, Path]:
    """Stem -> image file, of the files directly in a folder.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: two files have one stem.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of images")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in EXTENSIONS:
            if path.stem in found:
                raise ValueError(f"{path}: {found[path.stem].name} has the same name but for the extension")
            found[path.stem] = path
    return found


def split_of_stems(files: list[Path], lists: Mapping[str, Path], split: str) -> dict[Path, str]:
    """File -> split: by lists of stems (a stem or file name a line), or one split for all where there are no lists.

    Files that no list names are left out.

    Raises:
        ValueError: a list names a stem that has no file, or two lists name one; names file and line.
    """
    if not lists:
        check_split(split, "split")
        return dict.fromkeys(files, split)
    by_stem = {path.stem: path for path in files}
    chosen: dict[Path, str] = {}
    for name, path in lists.items():
        check_split(name, str(path))
        for number, line in read_lines(path):
            if not line.strip():
                continue
            where = f"{path}: line {number}"
            text = check_name(line.split()[0], where)  # VOC's lists of a class have a flag behind the stem
            stem = text if text in by_stem else text.rsplit(".", 1)[0]
            if stem not in by_stem:
                raise ValueError(f"{where}: {text!r} has no annotation file")
            if by_stem[stem] in chosen:
                raise ValueError(f"{where}: {text!r} is named twice in the lists of splits")
            chosen[by_stem[stem]] = name
    return chosen


def annotation_files(folder: Path, extension: str) -> list[Path]:
    """The annotation files of a folder, sorted.

    Raises:
        FileNotFoundError: no such folder, or none of its files has the extension.
    """
    files = sorted(path for path in folder.glob(f"*{extension}")) if folder.is_dir() else []
    if not files:
        raise FileNotFoundError(f"{folder}: no folder with {extension} files; see data/raw/README.md")
    return files


def read_line_boxes(
    folder: Path,
    images: Path,
    lists: Mapping[str, Path],
    split: str,
    box_of: Callable[[list[str], int, int, Counter, str], Box | None],
    skipped_files: tuple[str, ...] = (),
    skipped_lines: tuple[str, ...] = (),
) -> BoxedListing:
    """Images with boxes from a folder of text files, one an image, with a line an object; sizes are the images'.

    Args:
        box_of: takes a line's fields, width, height, counts and the place for error messages; None leaves an object
            out.
        skipped_files: names that are no annotations.
        skipped_lines: how lines begin that hold no object, lower case.

    Raises:
        FileNotFoundError: a folder or an image is missing.
        ValueError: what ``box_of`` refuses, with file and line.
    """
    listing = BoxedListing()
    of_image = image_by_stem(images)
    files = [path for path in annotation_files(folder, ".txt") if path.name not in skipped_files]
    for path, part in split_of_stems(files, lists, split).items():
        if path.stem not in of_image:
            raise FileNotFoundError(f"{path}: {images} holds no image {path.stem!r}, which gives the boxes their size")
        width, height = image_size(of_image[path.stem])
        boxes = [
            box_of(line.split(), width, height, listing.counts, f"{path}: line {number}")
            for number, line in read_lines(path)
            if line.strip() and not line.lower().startswith(skipped_lines)
        ]
        kept = tuple(box for box in boxes if box is not None)
        listing.images.append(BoxedImage(of_image[path.stem].name, part, width, height, kept))
    return listing
