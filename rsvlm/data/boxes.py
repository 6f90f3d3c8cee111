"""Boxes around objects: what every file of boxes or masks comes down to, checked against the image's size.

Boxes become captions (``rsvlm.data.box_captions``) and masks become boxes in the way of RemoteCLIP (Liu et al. 2023,
section III): per class a binary mask, its connected parts (``boxes_of_mask``), the box around each.

Beyond it, what a caption says of a part of a class mask (LoveDA, Potsdam, Vaihingen, iSAID) is measured on its pixels,
for a box proves neither where a bent part lies nor what is inside what:

- A part lies in the centre when half of it does or it fills half of the centre; around it when no pixel of it is there.
- A part is surrounded by a class when every path from it to the image's edge crosses that class, that is, when it lies
  in a hole of it (Suzuki and Abe 1985, "Topological structural analysis of digitized binary images by border
  following", section 2; OpenCV's contours follow it).
- Two classes are next to each other when parts of them are at most ``NEARBY`` apart, pixel to pixel.

A class mask does not tell touching objects apart, and what hides an object splits it: of 572 parts in four iSAID masks
13 held several instances. So parts of objects are no count of them; areas are, unless some were too small to count.
OpenCV: extra ``boxes``.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from rsvlm.data.images import EXTENSIONS, ImageError, NotByPillow, open_file, raster_size
from rsvlm.data.listings import NAMES_SHOWN, check_split, read_lines
from rsvlm.data.names import ALL, check_name, is_area
from rsvlm.extras import import_extra
from rsvlm.safe_text import fault_in
from rsvlm.settings import closest_name

Colour = int | tuple[int, int, int]
NEARBY = 0.02  # share of the image's diagonal: the labels of Potsdam leave borders of 6 of 724 pixels between classes
MIN_WIDTH = 3  # pixels: strips that are thinner everywhere are slips of the pen along a border between classes


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


@dataclass(frozen=True)
class BoxedImage:
    """One image with its size in pixels and its boxes."""

    name: str
    split: str
    width: int
    height: int
    boxes: tuple[Box, ...]
    relations: tuple[tuple[str, str, str], ...] = ()  # masks: (class, "next to" or "surrounded by", class)


@dataclass(frozen=True)
class Classes:
    """The words for a source's classes, by the file's names; see ``rsvlm.data.names.class_words``."""

    words: Mapping[str, str | None] = field(default_factory=lambda: {"*": "*"})

    def word(self, name: str, where: str) -> str | None:
        """The word for a class; None leaves it out.

        Raises:
            ValueError: the class has no word (names the closest), or its name is none.
        """
        if name not in self.words and "*" not in self.words:
            raise ValueError(
                f"{where}: unknown class {name!r}{closest_name(name, self.words)}; add it to 'classes', "
                "or the key '*' for all others"
            )
        word = self.words.get(name, self.words.get("*"))
        if word != "*":
            return word
        word = name.replace("-", " ").replace("_", " ").strip().lower()
        if not word or (fault := fault_in(word)):
            raise ValueError(
                f"{where}: the class {name[:60]!r} {f'holds {fault}' if word else 'is no word'}; mend its name"
            )
        return word


@dataclass
class BoxedListing:
    """The images of a source of boxes or masks, counts of what was met, and the first places of some of it."""

    classes: Classes = field(default_factory=Classes)
    fixes: frozenset[str] = ALL
    images: list[BoxedImage] = field(default_factory=list)
    counts: Counter = field(default_factory=Counter)
    notes: dict[str, list[str]] = field(default_factory=dict)

    def check_box(
        self, label: str, corners: tuple[float, float, float, float], size: tuple[int, int], where: str,
        *, angle: float | None = None, stretch: float = 1.0, pixels: float | None = None,
    ) -> list[Box]:  # fmt: skip
        """The one box inside its image, or none without an area that the fix ``boxes_without_area`` leaves out.

        One that reaches over the edge is cut there by the fix ``boxes_clipped``. Both are counted; of the former the
        notes tell the first places.

        Args:
            corners: left, top, right, bottom in pixels.
            size: width and height of the image.

        Raises:
            ValueError: no numbers, wholly outside the image, or a defect whose fix is off; names the place.
        """
        left, top, right, bottom = corners
        (width, height), told = size, f"the image of {size[0]}x{size[1]} pixels: {corners}"
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in corners):
            raise ValueError(f"{where}: the box of {label!r} must be finite numbers, is {corners}")
        if right <= left or bottom <= top or pixels == 0:
            self.counts["boxes_without_area"] += 1
            places = self.notes.setdefault("first_boxes_without_area", [])
            places += [f"{Path(where).name} ({label})"] if len(places) < NAMES_SHOWN else []
            if "boxes_without_area" not in self.fixes:
                raise ValueError(
                    f"{where}: the box of {label!r} has no area: {corners}; the fix 'boxes_without_area' leaves it out"
                )
            return []
        if right <= 0 or bottom <= 0 or left >= width or top >= height:
            raise ValueError(f"{where}: the box of {label!r} lies outside {told}")
        inside = (max(left, 0), max(top, 0), min(right, width), min(bottom, height))
        # Some files count pixels from 1 and let the last one end at width + 1.
        if any(abs(a - b) > 1 for a, b in zip(inside, corners, strict=True)):
            self.counts["boxes_over_the_edge"] += 1
            if "boxes_clipped" not in self.fixes:
                raise ValueError(
                    f"{where}: the box of {label!r} reaches over {told}; the fix 'boxes_clipped' cuts it at the edge"
                )
        area = (inside[2] - inside[0]) * (inside[3] - inside[1])
        return [Box(label, *inside, area if pixels is None else pixels, angle, stretch)]

    def check_corners(self, label: str, values: list[float], size: tuple[int, int], where: str) -> list[Box]:
        """As ``check_box``, of four corners (x1, y1, ..., x4, y4) in order around the object (DOTA, DIOR-R)."""
        if not all(map(math.isfinite, values)):
            raise ValueError(f"{where}: the eight coordinates must be finite, are {values}")
        x, y = values[::2], values[1::2]
        sides = [(x[n] - x[n - 1], y[n] - y[n - 1]) for n in (1, 2, 3, 0)]
        lengths = [math.hypot(*side) for side in sides]
        first, second = (lengths[0] + lengths[2]) / 2, (lengths[1] + lengths[3]) / 2
        across, down = sides[0] if first >= second else sides[1]
        # Half the cross product of the diagonals: the area of any quadrilateral.
        area = abs((x[2] - x[0]) * (y[3] - y[1]) - (y[2] - y[0]) * (x[3] - x[1])) / 2
        return self.check_box(
            label, (min(x), min(y), max(x), max(y)), size, where, pixels=area,
            angle=math.degrees(math.atan2(down, across)) % 180,
            stretch=max(first, second) / max(min(first, second), 1e-6),
        )  # fmt: skip


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of an image file, in pixels, from its head alone.

    Raises:
        ImageError: the file is no image, or EXIF says that it is shown turned.
    """
    try:
        with open_file(path, most_pixels=None) as image:
            return image.size
    except NotByPillow:
        return raster_size(path)


def files_of_images(
    folder: Path, images: Path, lists: Mapping[str, Path], split: str, endings: tuple[str, ...],
    *, skipped: tuple[str, ...] = (), needed: bool = True,
) -> Iterator[tuple[Path, str, Path | None]]:  # fmt: skip
    """(annotation file, split, image file) of a folder with an annotation file for each image, sorted.

    Args:
        lists: split -> list of stems or file names, one a line; files that no list names are left out.
        split: of all, where there are no lists.
        endings: of the annotation files' names; what stands before is their image's stem.
        skipped: names that are no annotations.
        needed: each must have its image; else the image file may be None.

    Raises:
        FileNotFoundError: a folder or an image is missing, or no file has such an ending.
        ValueError: two images of one stem; a list names a stem that has no file, or two lists name one.
    """
    of_image: dict[str, Path] = {}
    if needed and not images.is_dir():
        raise FileNotFoundError(f"{images}: no such folder of images")
    for path in sorted(images.iterdir()) if images.is_dir() else ():
        if path.suffix.lower() in EXTENSIONS:
            if path.stem in of_image:
                raise ValueError(f"{path}: {of_image[path.stem].name} has the same name but for the extension")
            of_image[path.stem] = path
    files = [path for ending in endings for path in sorted(folder.glob(f"*{ending}"))]
    if not files:
        raise FileNotFoundError(f"{folder}: no folder with {endings[0]} files; see data/raw/README.md")
    files = [path for path in files if path.name not in skipped]
    for path, part in _splits_of(files, lists, split).items():
        stem = next(path.name.removesuffix(ending) for ending in endings if path.name.endswith(ending))
        if needed and stem not in of_image:
            raise FileNotFoundError(f"{path}: {images} holds no image {stem!r}, which gives its size")
        yield path, part, of_image.get(stem)


def _splits_of(files: list[Path], lists: Mapping[str, Path], split: str) -> dict[Path, str]:
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


def boxes_of_mask(mask: np.ndarray, label: str, min_pixels: int = 1) -> list[Box]:
    """Boxes of a boolean mask's (H, W) connected parts (8 neighbours) of at least ``min_pixels``, largest first."""
    parts, count = ndimage.label(mask, structure=np.ones((3, 3), dtype=int))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    boxes = [
        Box(label, columns.start, rows.start, columns.stop, rows.stop, int(sizes[part]))
        for part, (rows, columns) in enumerate(ndimage.find_objects(parts), start=1)
        if sizes[part] >= min_pixels
    ]
    return sorted(boxes, key=_by_size)


def _by_size(box: Box) -> tuple[float, float, float]:
    return -box.pixels, box.top, box.left


def read_mask_boxes(
    folder: Path,
    images: Path,
    classes: Mapping[Colour, str | None],
    lists: dict[str, Path],
    split: str = "train",
    suffix: str = "",
    min_pixels: int = 64,
    min_share: float = 0.001,
    centre: float = 0.5,
) -> BoxedListing:
    """Images with the boxes of their class masks' connected parts.

    Args:
        folder: of masks, PNG or TIFF, named as their images.
        images: folder of the images.
        classes: pixel value (index masks) or (red, green, blue) (colour masks) -> word; None leaves a class out.
        suffix: behind the image's name in the mask's (``_label`` for ``1_label.png``).
        min_pixels: smallest part of a class of objects, pixels. 8 by 8 are the least to know a thing by; the smallest
            of 595 instances in four iSAID images has 264, of 16 cars at 5 and 9 cm a pixel 155.
        min_share: smallest part of a class of areas (``is_area``), share of the image. In samples of LoveDA, Potsdam
            and Vaihingen a person sees areas from 0.2 % on; below 0.1 % are slivers at borders and beside objects.
        centre: share of width and height that is the centre.

    Raises:
        FileNotFoundError: a folder or an image is missing.
        ValueError: a mask that is no image, has another size than its image, or holds a value without a class.
    """
    listing = BoxedListing()
    endings = (f"{suffix}.png", f"{suffix}.tif")
    for path, part, image in files_of_images(folder, images, lists, split, endings):
        width, height = image_size(image)
        values = _read_mask(path, colour=any(isinstance(key, tuple) for key in classes))
        if values.shape[:2] != (height, width):
            raise ValueError(
                f"{path}: the mask is {values.shape[1]}x{values.shape[0]} pixels, its image {image.name} "
                f"{width}x{height}"
            )
        found = _values_in(values)
        unknown = [key for key in found if key not in classes]
        if unknown and "*" not in classes:
            raise ValueError(
                f"{path}: pixels of {unknown[0]} have no class ({len(unknown)} such values); known: "
                f"{', '.join(map(str, classes))}; the key '*' stands for all others"
            )
        planes: dict[str, np.ndarray] = {}
        for key in found:
            word = classes.get(key, classes.get("*"))
            if word is not None:
                here = (values == np.array(key)).all(axis=2) if values.ndim == 3 else values == key
                planes[word] = planes[word] | here if word in planes else here
        boxes: list[Box] = []
        kept: dict[str, np.ndarray] = {}
        for word, plane in planes.items():
            least = math.ceil(min_share * width * height) if is_area(word) else min_pixels
            parts, kept[word] = boxes_of_part(plane, word, least, centre)
            boxes += parts
        relations = tuple(_relations(kept, NEARBY * math.hypot(width, height)))
        listing.images.append(BoxedImage(image.name, part, width, height, tuple(boxes), relations))
    return listing


def _values_in(values: np.ndarray) -> list[Colour]:
    """The values in a mask, (H, W) of indices or (H, W, 3) of colours, sorted."""
    if values.ndim == 2:
        return np.unique(values).tolist()
    # A colour as one number: as rows of three they sort many times slower.
    packed = np.unique(values.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)).tolist()
    return [(number >> 16, number >> 8 & 255, number & 255) for number in packed]


def boxes_of_part(
    mask: np.ndarray, label: str, min_pixels: int = 1, centre: float = 0.5
) -> tuple[list[Box], np.ndarray]:
    """Boxes of a boolean mask's (H, W) connected parts (8 neighbours), largest first, and the mask of these parts.

    Parts of fewer than ``min_pixels`` are left out and, where that is more than one, those nowhere MIN_WIDTH wide.
    """
    cv2 = import_extra("cv2", "reading masks")

    plane = np.ascontiguousarray(mask, dtype=np.uint8)
    H, W = plane.shape
    count, parts, facts, _ = cv2.connectedComponentsWithStats(plane, connectivity=8)
    wide = np.full(count, min_pixels <= 1)
    wide[parts[cv2.erode(plane, np.ones((MIN_WIDTH, MIN_WIDTH), np.uint8)) > 0]] = True
    wide[0] = False  # the background
    keep = wide & (facts[:, cv2.CC_STAT_AREA] >= min_pixels)
    exact = is_area(label) and bool((keep == wide).all())
    # Pixels whose centres lie in the centre, as for boxes.
    y, x = (np.abs(np.arange(size) + 0.5 - size / 2) <= centre * size / 2 for size in (H, W))
    inner = np.bincount(parts[np.ix_(y, x)].ravel(), minlength=count)
    boxes = []
    for number in np.flatnonzero(keep).tolist():
        left, top, across, down, pixels = facts[number].tolist()
        in_centre = 2 * inner[number] >= min(pixels, y.sum() * x.sum())
        place = "centre" if in_centre else "both" if inner[number] else "around"
        boxes.append(Box(label, left, top, left + across, top + down, pixels, place=place, exact=exact))
    return sorted(boxes, key=_by_size), keep[parts]


def _relations(planes: dict[str, np.ndarray], nearby: float) -> list[tuple[str, str, str]]:
    """Which classes have a part that is surrounded by an area of another class, or next to a part of it."""
    cv2 = import_extra("cv2", "reading masks")

    found = []
    names = sorted(name for name, plane in planes.items() if plane.any())
    for other in names:
        plane = planes[other].astype(np.uint8)
        near = cv2.distanceTransform(1 - plane, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) <= nearby
        contours, _ = cv2.findContours(plane, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        holes = cv2.drawContours(np.zeros_like(plane), contours, -1, 1, cv2.FILLED) > plane
        for name in names:
            if name == other:
                continue
            if is_area(other) and _has_part_in(planes[name], holes):
                found.append((name, "surrounded by", other))
            elif (planes[name] & near).any():
                found.append((name, "next to", other))
    return found


def _has_part_in(plane: np.ndarray, holes: np.ndarray) -> bool:
    """Whether a connected part of a plane lies wholly in the holes."""
    cv2 = import_extra("cv2", "reading masks")

    if not (holes & plane).any():
        return False
    _, parts = cv2.connectedComponents(plane.astype(np.uint8), connectivity=8)
    return bool(np.setdiff1d(parts[holes & plane], parts[~holes & plane]).size)


def _read_mask(path: Path, colour: bool) -> np.ndarray:
    """A mask's values, (H, W) of indices or (H, W, 3) of colours."""
    try:
        with open_file(path) as image:
            image.load()
            if colour:
                return np.asarray(image.convert("RGB"))
            if image.mode not in ("L", "P", "1", "I;16", "I"):
                raise ImageError(
                    f"{path}: an index mask must have one channel, has {image.mode}; give 'classes' as colours"
                )
            return np.asarray(image).astype(np.int64)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path}: not a whole image: {error}") from error
