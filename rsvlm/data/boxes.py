"""Boxes and the images that they lie in: what every file of boxes or masks comes down to.

From label maps to boxes and from boxes to words, in the way of RemoteCLIP (Liu et al. 2023, section III).

Mask to box: per class a binary mask, its connected parts, the box around each. Box to caption: an object whose box
centre lies in the centre of the image is told apart from the others; counts above ten become "many". The paper leaves
"centre" open; here it is the middle half of width and height, as in a later re-implementation.

What every file of boxes or masks comes down to: images with their boxes, checked against the image's size.

The readers of COCO, VOC, DOTA, YOLO and masks end here; ``rsvlm.data.box_captions`` makes captions of it.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy import ndimage

from rsvlm.data.images import EXTENSIONS, open_file
from rsvlm.data.listings import NAMES_SHOWN, check_split, read_lines
from rsvlm.data.names import ALL, NUMBERS, check_name, closest_name

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


@dataclass(frozen=True)
class BoxedImage:
    """One image with its size in pixels and its boxes."""

    name: str
    split: str
    width: int
    height: int
    boxes: tuple[Box, ...]
    relations: tuple[tuple[str, str, str], ...] = ()  # masks: (class, "next to" or "surrounded by", class)


@dataclass
class BoxedListing:
    """The images of a source of boxes or masks, counts of what was met, and the first places of some of it."""

    images: list[BoxedImage] = field(default_factory=list)
    counts: Counter = field(default_factory=Counter)
    notes: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Classes:
    """The words for a source's classes, by the file's names; see ``rsvlm.data.names.class_words``."""

    words: Mapping[str, str | None] = field(default_factory=lambda: {"*": "*"})

    def word(self, name: str, where: str) -> str | None:
        """The word for a class; None leaves it out.

        Raises:
            ValueError: the class has no word; names the closest.
        """
        if name not in self.words and "*" not in self.words:
            raise ValueError(
                f"{where}: unknown class {name!r}{closest_name(name, self.words)}; add it to 'classes', "
                "or the key '*' for all others"
            )
        word = self.words.get(name, self.words.get("*"))
        return name.replace("-", " ").replace("_", " ").strip().lower() if word == "*" else word


def check_box(
    label: str, left: float, top: float, right: float, bottom: float, width: int, height: int, where: str,
    listing: BoxedListing, fixes: frozenset[str] = ALL, angle: float | None = None, stretch: float = 1.0,
    pixels: float | None = None,
) -> Box | None:  # fmt: skip
    """A box inside its image, or None for one without an area that the fix ``boxes_without_area`` leaves out.

    One that reaches over the edge is cut there by the fix ``boxes_clipped``. Both are counted; of the former the
    listing's notes tell the first places.

    Raises:
        ValueError: no numbers, wholly outside the image, or a defect whose fix is off; names the place.
    """
    corners = (left, top, right, bottom)
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in corners):
        raise ValueError(f"{where}: the box of {label!r} must be finite numbers, is {corners}")
    if right <= left or bottom <= top or pixels == 0:
        listing.counts["boxes_without_area"] += 1
        places = listing.notes.setdefault("first_boxes_without_area", [])
        places += [f"{Path(where).name} ({label})"] if len(places) < NAMES_SHOWN else []
        if "boxes_without_area" not in fixes:
            raise ValueError(
                f"{where}: the box of {label!r} has no area: {corners}; the fix 'boxes_without_area' leaves it out"
            )
        return None
    if right <= 0 or bottom <= 0 or left >= width or top >= height:
        raise ValueError(f"{where}: the box of {label!r} lies outside the image of {width}x{height} pixels: {corners}")
    inside = (max(left, 0), max(top, 0), min(right, width), min(bottom, height))
    # Some files count pixels from 1 and let the last one end at width + 1.
    if any(abs(a - b) > 1 for a, b in zip(inside, corners, strict=True)):
        listing.counts["boxes_over_the_edge"] += 1
        if "boxes_clipped" not in fixes:
            raise ValueError(
                f"{where}: the box of {label!r} reaches over the image of {width}x{height} pixels: {corners}; "
                "the fix 'boxes_clipped' cuts it at the edge"
            )
    area = (inside[2] - inside[0]) * (inside[3] - inside[1])
    return Box(label, *inside, area if pixels is None else pixels, angle, stretch)


def check_corners(
    label: str, values: list[float], width: int, height: int, where: str, listing: BoxedListing, fixes: frozenset[str]
) -> Box | None:
    """As ``check_box``, of four corners (x1, y1, ..., x4, y4) in order around the object (DOTA, DIOR-R)."""
    if not all(map(math.isfinite, values)):
        raise ValueError(f"{where}: the eight coordinates must be finite, are {values}")
    corners = list(zip(values[::2], values[1::2], strict=True))
    sides = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(corners, corners[1:] + corners[:1], strict=True)]
    lengths = [math.hypot(*side) for side in sides]
    first, second = (lengths[0] + lengths[2]) / 2, (lengths[1] + lengths[3]) / 2
    x, y = sides[0] if first >= second else sides[1]
    # Half the cross product of the diagonals: the area of any quadrilateral.
    (ax, ay), (bx, by), (cx, cy), (dx, dy) = corners
    area = abs((cx - ax) * (dy - by) - (cy - ay) * (dx - bx)) / 2
    return check_box(
        label, min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]), width, height, where,
        listing, fixes, math.degrees(math.atan2(y, x)) % 180, max(first, second) / max(min(first, second), 1e-6), area,
    )  # fmt: skip


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
    box_of: Callable[[list[str], int, int, BoxedListing, str], Box | None],
    skipped_files: tuple[str, ...] = (),
    skipped_lines: tuple[str, ...] = (),
) -> BoxedListing:
    """Images with boxes from a folder of text files, one an image, with a line an object; sizes are the images'.

    Args:
        box_of: takes a line's fields, width, height, the listing and the place for error messages; None leaves an
            object out.
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
            box_of(line.split(), width, height, listing, f"{path}: line {number}")
            for number, line in read_lines(path)
            if line.strip() and not line.lower().startswith(skipped_lines)
        ]
        kept = tuple(box for box in boxes if box is not None)
        listing.images.append(BoxedImage(of_image[path.stem].name, part, width, height, kept))
    return listing
