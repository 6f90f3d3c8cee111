"""Reader of class masks, by index or by colour (LoveDA, Potsdam, Vaihingen, iSAID): mask to box.

As in RemoteCLIP: for each class a binary mask, the outer contour of each connected part, the box around it. Contours
and the box that follows a part come from OpenCV (the extra ``audit``).
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from rsvlm.data.boxed_images import (
    BoxedImage,
    BoxedListing,
    annotation_files,
    image_by_stem,
    image_size,
    split_of_stems,
)
from rsvlm.data.boxes import Box
from rsvlm.data.images import ImageError, open_file
from rsvlm.extras import import_extra

Colour = int | tuple[int, int, int]


def read_mask_boxes(
    folder: Path,
    images: Path,
    classes: Mapping[Colour, str | None],
    lists: dict[str, Path],
    split: str = "train",
    suffix: str = "",
    min_pixels: int = 16,
) -> BoxedListing:
    """Images with the boxes of their masks' connected parts.

    Args:
        folder: of masks, PNG or TIFF, named as their images.
        images: folder of the images.
        classes: pixel value (index masks) or (red, green, blue) (colour masks) -> word; None leaves a class out.
        suffix: behind the image's name in the mask's (``_label`` for ``1_label.png``).
        min_pixels: parts smaller than this are noise at a border between classes, and left out.

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
        found = np.unique(values.reshape(-1, values.shape[2]), axis=0) if values.ndim == 3 else np.unique(values)
        keys = [tuple(value) if isinstance(value, list) else value for value in found.tolist()]
        unknown = [key for key in keys if key not in classes]
        if unknown:
            raise ValueError(
                f"{path}: pixels of {unknown[0]} have no class ({len(unknown)} such values); known: "
                f"{', '.join(map(str, classes))}"
            )
        boxes: list[Box] = []
        for key in keys:
            if classes[key] is not None:
                here = values == np.array(key)
                boxes += boxes_of_part(here.all(axis=2) if values.ndim == 3 else here, classes[key], min_pixels)
        listing.images.append(BoxedImage(of_image[stem].name, part, width, height, tuple(boxes)))
    return listing


def boxes_of_part(mask: np.ndarray, label: str, min_pixels: int = 1) -> list[Box]:
    """Boxes of a boolean mask's (H, W) connected parts (8 neighbours), with direction and stretch, largest first."""
    cv2 = import_extra("cv2", "reading masks")

    plane = np.ascontiguousarray(mask, dtype=np.uint8)
    _, parts, facts, _ = cv2.connectedComponentsWithStats(plane, connectivity=8)
    # Two levels of contours: the outer one of every part, also of a part inside another's hole, and holes below them.
    contours, levels = cv2.findContours(plane, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    boxes = []
    for contour, level in zip(contours, levels[0] if len(contours) else [], strict=True):
        if level[3] != -1:
            continue  # a hole
        x, y = contour[0][0]
        pixels = int(facts[parts[y, x], cv2.CC_STAT_AREA])
        if pixels < min_pixels:
            continue
        left, top, across, down = cv2.boundingRect(contour)
        (_, _), (w, h), angle = cv2.minAreaRect(contour)
        long_way = (angle if w >= h else angle + 90) % 180
        # minAreaRect spans pixel centres: one pixel more is covered on each side.
        stretch = (max(w, h) + 1) / (min(w, h) + 1)
        boxes.append(Box(label, left, top, left + across, top + down, pixels, long_way, stretch))
    return sorted(boxes, key=lambda box: (-box.pixels, box.top, box.left))


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
