"""Reader of COCO's instances: boxes, polygons and run-length masks (pycocotools) of named categories."""

import math
from pathlib import Path

import numpy as np
from pycocotools import mask as masks

from rsvlm.data.boxed_images import BoxedImage, BoxedListing, Classes, check_box, image_size
from rsvlm.data.boxes import Box
from rsvlm.data.coco import CocoFile, read_coco
from rsvlm.data.fixes import ALL
from rsvlm.data.listings import check_split


def read_coco_boxes(
    files: dict[str, Path], images: Path, classes: Classes, fixes: frozenset[str] = ALL
) -> BoxedListing:
    """Images with boxes from one instances file a split. A segmentation, where there is one, gives the object's size.

    Args:
        files: split -> JSON file.
        images: folder, for sizes that the file does not give.
        classes: words for category names.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: as ``read_coco``; an unknown category, a box outside its image, a damaged or misfitting mask.
    """
    listing = BoxedListing()
    for split, path in files.items():
        check_split(split, str(path))
        coco = read_coco(path)
        sizes = {
            key: (width, height) if width and height else image_size(images / name)
            for key, (name, width, height) in coco.images.items()
        }
        boxes: dict[object, list[Box]] = {key: [] for key in coco.images}
        for number, entry in enumerate(coco.annotations):
            box = _box_of(entry, coco, sizes, classes, fixes, listing, f"{path}: annotations[{number}]")
            if box is not None:
                boxes[entry["image_id"]].append(box)
        for key, (name, _, _) in coco.images.items():
            listing.images.append(BoxedImage(name, split, *sizes[key], tuple(boxes[key])))
    return listing


def _box_of(
    entry: dict, coco: CocoFile, sizes: dict, classes: Classes, fixes: frozenset[str], listing: BoxedListing, where: str
) -> Box | None:
    """One annotation as a box; None for a class or a box that is left out."""
    category = entry.get("category_id")
    if not isinstance(category, int | str) or category not in coco.categories:
        raise ValueError(f"{where}: no category has the id {category!r}")
    word = classes.word(coco.categories[category], where)
    if word is None:
        return None
    width, height = sizes[entry["image_id"]]
    box, pixels = entry.get("bbox"), None
    if entry.get("segmentation"):
        mask = _run_lengths(entry["segmentation"], width, height, where)
        pixels = float(masks.area(mask)) or None  # a sliver between two rows of pixels still has its box
        box = box or [float(value) for value in masks.toBbox(mask)]
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, int | float) for value in box):
        raise ValueError(f"{where}: 'bbox' must be [left, top, width, height], is {box!r}")
    left, top, across, down = box
    return check_box(word, left, top, left + across, top + down, width, height, where, listing, fixes, pixels=pixels)


def _run_lengths(segmentation: object, width: int, height: int, where: str) -> dict:
    """A segmentation of any of COCO's three kinds as compressed run lengths of the image's size.

    Everything is checked before pycocotools sees it: its C code trusts what it is given.
    """
    if isinstance(segmentation, list):
        for polygon in segmentation:
            fits = isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
            if not fits or not all(isinstance(v, int | float) and math.isfinite(v) for v in polygon):
                raise ValueError(f"{where}: a polygon must be at least three pairs of numbers")
        limits = np.array([width, height] * (max(map(len, segmentation)) // 2), dtype=float)
        inside = [np.clip(polygon, 0, limits[: len(polygon)]).tolist() for polygon in segmentation]
        return masks.merge(masks.frPyObjects(inside, height, width))
    if not isinstance(segmentation, dict) or "counts" not in segmentation:
        raise ValueError(f"{where}: 'segmentation' must be a list of polygons or an object with 'size' and 'counts'")
    if segmentation.get("size") != [height, width]:
        raise ValueError(
            f"{where}: the mask has the size {segmentation.get('size')} (height, width), its image {[height, width]}"
        )
    counts = segmentation["counts"]
    if isinstance(counts, list):
        if not all(isinstance(run, int) and run >= 0 for run in counts) or sum(counts) != width * height:
            raise ValueError(f"{where}: the mask's runs must be whole numbers that add up to {width * height} pixels")
        return masks.frPyObjects(segmentation, height, width)
    if not isinstance(counts, str) or sum(_decoded_runs(counts, where)) != width * height:
        raise ValueError(
            f"{where}: the mask's compressed runs do not add up to {width * height} pixels; is it cut off?"
        )
    return {"size": [height, width], "counts": counts.encode("ascii")}


def _decoded_runs(text: str, where: str) -> list[int]:
    """The run lengths of COCO's compressed text, as pycocotools' rleFrString reads them (it does not check)."""
    runs: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"{where}: the mask's compressed runs hold {letter!r}, which is no such code")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift or any(run < 0 for run in runs):
        raise ValueError(f"{where}: the mask's compressed runs end in the middle of a number; is it cut off?")
    return runs
