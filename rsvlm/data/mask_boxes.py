"""Reader of class masks, by index or by colour (LoveDA, Potsdam, Vaihingen, iSAID): mask to box, and what masks prove.

As in RemoteCLIP: for each class a binary mask, its connected parts, the box around each. Beyond it, what a caption says
of a part is measured on its pixels, for a box proves neither where a bent part lies nor what is inside what:

- A part lies in the centre when half of it does or it fills half of the centre; around it when no pixel of it is there.
- A part is surrounded by a class when every path from it to the image's edge crosses that class, that is, when it lies
  in a hole of it (Suzuki and Abe 1985, "Topological structural analysis of digitized binary images by border
  following", section 2; OpenCV's contours follow it).
- Two classes are next to each other when parts of them are at most ``NEARBY`` apart, pixel to pixel.

A class mask does not tell touching objects apart, and what hides an object splits it: of 572 parts in four iSAID masks
13 held several instances. So parts of objects are no count of them; areas are, unless some were too small to count.
OpenCV: extra ``audit``.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from rsvlm.data.boxes import Box, BoxedImage, BoxedListing, annotation_files, image_by_stem, image_size, split_of_stems
from rsvlm.data.images import ImageError, open_file
from rsvlm.data.names import is_area
from rsvlm.extras import import_extra

Colour = int | tuple[int, int, int]
NEARBY = 0.02  # share of the image's diagonal: the labels of Potsdam leave borders of 6 of 724 pixels between classes
MIN_WIDTH = 3  # pixels: strips that are thinner everywhere are slips of the pen along a border between classes


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
    """Images with the boxes of their masks' connected parts.

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
    of_image = image_by_stem(images)
    files = [path for kind in (".png", ".tif") for path in (sorted(folder.glob(f"*{suffix}{kind}")))]
    if not files:
        annotation_files(folder, f"{suffix}.png")  # says what is missing
    for path, part in split_of_stems(files, lists, split).items():
        stem = path.stem.removesuffix(suffix)
        if stem not in of_image:
            raise FileNotFoundError(f"{path}: {images} holds no image {stem!r} for this mask")
        width, height = image_size(of_image[stem])
        values = _read_mask(path, colour=any(isinstance(key, tuple) for key in classes))
        if values.shape[:2] != (height, width):
            raise ValueError(
                f"{path}: the mask is {values.shape[1]}x{values.shape[0]} pixels, its image {of_image[stem].name} "
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
        listing.images.append(BoxedImage(of_image[stem].name, part, width, height, tuple(boxes), relations))
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
    return sorted(boxes, key=lambda box: (-box.pixels, box.top, box.left)), keep[parts]


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
