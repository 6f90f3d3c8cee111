"""Readers of boxes: COCO's JSON, Pascal VOC's and HRSC2016's XML, DOTA's and YOLO's text.

- COCO: a file a split; boxes, polygons and run-length masks (pycocotools) of named categories.
- XML, a file an image: Pascal VOC's (DIOR, DIOR-R, HRRSD) and HRSC2016's, upright or oriented boxes.
- DOTA, a file an image: lines ``X1 Y1 X2 Y2 X3 Y3 X4 Y4 CLASS DIFFICULTY``; ``imagesource:...`` and ``gsd:...`` may come
  first.
- YOLO, a file an image: lines of a class number, and centre and sides as shares.

Each gives images with boxes; ``lists`` (split -> list of stems) tell the splits, and without any all images go to
``split``. FileNotFoundError names the folder or file that is missing; ValueError names file and entry or line of a class
that ``classes`` has no word for, a box outside its image, and what is not of the format.
"""

import math
from collections.abc import Callable
from pathlib import Path
from xml.parsers import expat

import numpy as np
from pycocotools import mask as masks

from rsvlm.data.boxes import Box, BoxedImage, BoxedListing, Classes, files_of_images, image_size
from rsvlm.data.caption_readers import read_coco
from rsvlm.data.listings import check_split, read_lines
from rsvlm.data.names import ALL, check_name

Size = tuple[int, int]  # width and height, pixels


def read_coco_boxes(
    files: dict[str, Path], images: Path, classes: Classes, fixes: frozenset[str] = ALL
) -> BoxedListing:
    """Images with boxes from one instances file a split. A segmentation, where there is one, gives the object's size.

    Args:
        files: split -> JSON file.
        images: folder, for sizes that the file does not give.
        classes: words for category names.
    """
    listing = BoxedListing(classes, fixes)
    for split, path in files.items():
        check_split(split, str(path))
        coco = read_coco(path)
        sizes = {
            key: (width, height) if width and height else image_size(images / name)
            for key, (name, width, height) in coco.images.items()
        }
        boxes: dict[object, list[Box]] = {key: [] for key in coco.images}
        for number, entry in enumerate(coco.annotations):
            where, category = f"{path}: annotations[{number}]", entry.get("category_id")
            if not isinstance(category, int | str) or category not in coco.categories:
                raise ValueError(f"{where}: no category has the id {category!r}")
            word, image = classes.word(coco.categories[category], where), entry["image_id"]
            if word is not None:
                boxes[image] += _coco_box(listing, word, entry, sizes[image], where)
        for key, (name, _, _) in coco.images.items():
            listing.images.append(BoxedImage(name, split, *sizes[key], tuple(boxes[key])))
    return listing


def _coco_box(listing: BoxedListing, word: str, entry: dict, size: Size, where: str) -> list[Box]:
    box, pixels = entry.get("bbox"), None
    if entry.get("segmentation"):
        mask = _run_lengths(entry["segmentation"], *size, where)
        pixels = float(masks.area(mask)) or None  # a sliver between two rows of pixels still has its box
        box = box or [float(value) for value in masks.toBbox(mask)]
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, int | float) for value in box):
        raise ValueError(f"{where}: 'bbox' must be [left, top, width, height], is {box!r}")
    left, top, across, down = box
    return listing.check_box(word, (left, top, left + across, top + down), size, where, pixels=pixels)


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


OBJECTS = (["object"], ["HRSC_Objects", "HRSC_Object"])  # where an object stands below the root
# The elements that hold a box, the more exact kinds first: four corners around it (DIOR-R and others); centre, sides
# and angle in radians; two corners.
SIDES = [f"{side}_{end}" for side, end in (("left", "top"), ("right", "top"), ("right", "bottom"), ("left", "bottom"))]
CORNERS = (
    tuple(f"robndbox/{axis}_{side}" for side in SIDES for axis in "xy"),
    *(tuple(f"{box}/{axis}{n}" for n in range(1, 5) for axis in "xy") for box in ("robndbox", "bndbox", "polygon")),
)
CENTRED = (
    tuple(f"robndbox/{key}" for key in ("cx", "cy", "w", "h", "angle")),
    tuple(f"mbox_{key}" for key in ("cx", "cy", "w", "h", "ang")),
)
UPRIGHT = tuple(tuple(f"{box}{key}" for key in ("xmin", "ymin", "xmax", "ymax")) for box in ("bndbox/", "box_"))
Texts = dict[str, str]  # the texts of a file's or an object's elements by their path below it


def read_voc_boxes(
    folder: Path,
    images: Path,
    classes: Classes,
    lists: dict[str, Path],
    split: str = "train",
    fixes: frozenset[str] = ALL,
) -> BoxedListing:
    """Images with boxes from a folder of XML files.

    Args:
        images: folder, for sizes that a file does not give.
        classes: words for the names in the files.
    """
    listing = BoxedListing(classes, fixes)
    for path, part, image in files_of_images(folder, images, lists, split, (".xml",), needed=False):
        texts, objects = _read_xml(path)
        named = texts.get("filename")
        if texts.get("Img_FileName") and texts.get("Img_FileFmt"):  # HRSC
            named = f"{texts['Img_FileName']}.{texts['Img_FileFmt']}"
        name = check_name(named or f"{path.stem}.jpg", str(path))
        if Path(name).stem != path.stem and image:
            # DIOR's files name one another's images in places; the file's own name holds
            name = image.name
            listing.counts["files_naming_another_image"] += 1
        size = _voc_size(texts, path)
        if not all(size):
            if image is None:
                raise ValueError(f"{path}: gives no size, and {images} holds no image {path.stem!r} to take it from")
            size = image_size(image)
            listing.counts["sizes_from_the_image"] += 1
        boxes: list[Box] = []
        for line, one in objects:
            where, called = f"{path}: line {line}", one.get("name") or one.get("Class_ID")
            if not called:
                raise ValueError(f"{where}: the object has no 'name'")
            word = classes.word(called, where)
            boxes += [] if word is None else _voc_box(listing, word, one, size, where)
        listing.images.append(BoxedImage(name, part, *size, tuple(boxes)))
    return listing


def _read_xml(path: Path) -> tuple[Texts, list[tuple[int, Texts]]]:
    """A file's own texts, and of each object the line it starts in and its texts (ElementTree would not keep lines)."""
    texts: Texts = {}
    objects: list[tuple[int, Texts]] = []
    way: list[str] = []
    said: list[str] = []
    parser = expat.ParserCreate()

    def start(name: str, _: object) -> None:
        way.append(name)
        said.clear()
        if way[1:] in OBJECTS:
            objects.append((parser.CurrentLineNumber, {}))

    def end(_: str) -> None:
        below = way[1:]
        depth = next((len(place) for place in OBJECTS if below[: len(place)] == place), None)
        if depth and len(below) > depth:
            objects[-1][1]["/".join(below[depth:])] = "".join(said).strip()
        elif below:
            texts["/".join(below)] = "".join(said).strip()
        way.pop()
        said.clear()

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, said.append
    try:
        with path.open("rb") as file:
            parser.ParseFile(file)
    except expat.ExpatError as error:
        raise ValueError(f"{path}: line {error.lineno}: not whole XML: {expat.ErrorString(error.code)}") from error
    return texts, objects


def _voc_size(texts: Texts, path: Path) -> Size:
    """Width and height as the file gives them, 0 where it does not."""
    size = []
    for key in ("width", "height"):
        text = texts.get(f"size/{key}") or texts.get(f"Img_Size{key.capitalize()}")
        value = _number(text or "0", f"{path}: size")
        if not float(value).is_integer() or value < 0:
            raise ValueError(f"{path}: size must be whole numbers of pixels, is {text!r}")
        size.append(int(value))
    return size[0], size[1]


def _voc_box(listing: BoxedListing, word: str, one: Texts, size: Size, where: str) -> list[Box]:
    """The box of an object, by what its elements give: four corners, centre, sides and angle, or two corners."""
    keys = next((keys for keys in (*CORNERS, *CENTRED, *UPRIGHT) if keys[0] in one), None)
    if keys is None:
        raise ValueError(f"{where}: the object has no 'bndbox'")
    values = [_number(one.get(key), f"{where}: {key}") for key in keys]
    if keys in UPRIGHT:
        return listing.check_box(word, tuple(values), size, where)
    if keys in CENTRED:
        x, y, w, h, angle = values
        across = (w / 2 * math.cos(angle), w / 2 * math.sin(angle))
        down = (-h / 2 * math.sin(angle), h / 2 * math.cos(angle))
        signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
        values = [(x, y)[i] + a * across[i] + d * down[i] for a, d in signs for i in (0, 1)]
    return listing.check_corners(word, values, size, where)


def _number(text: str | None, where: str) -> float:
    try:
        return float(text)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} must be a number, is {text!r}") from error


def read_dota_boxes(
    folder: Path,
    images: Path,
    classes: Classes,
    lists: dict[str, Path],
    split: str = "train",
    fixes: frozenset[str] = ALL,
) -> BoxedListing:
    """Images with oriented boxes, with the direction of their long side, from a folder of text files."""
    listing = BoxedListing(classes, fixes)

    def box_of(fields: list[str], size: Size, where: str) -> list[Box]:
        if len(fields) not in (9, 10):
            raise ValueError(f"{where}: needs eight coordinates, a class and a difficulty, has {len(fields)} fields")
        try:
            values = [float(text) for text in fields[:8]]
        except ValueError as error:
            raise ValueError(f"{where}: the eight coordinates must be numbers: {error}") from error
        word = classes.word(fields[8], where)
        return [] if word is None else listing.check_corners(word, values, size, where)

    return _read_lines_of_boxes(listing, folder, images, lists, split, box_of)


def read_yolo_boxes(
    folder: Path,
    images: Path,
    classes: Classes,
    lists: dict[str, Path],
    split: str = "train",
    fixes: frozenset[str] = ALL,
) -> BoxedListing:
    """Images with boxes from a folder of text files; ``classes.txt`` is skipped.

    Args:
        classes: words by class number ("0", "1", ...); a number that is not among them stops the reader.
    """
    listing = BoxedListing(classes, fixes)

    def box_of(fields: list[str], size: Size, where: str) -> list[Box]:
        if len(fields) != 5:
            raise ValueError(f"{where}: needs a class number and four shares of the sides, has {len(fields)} fields")
        if not (fields[0].isascii() and fields[0].isdecimal()):
            raise ValueError(f"{where}: the class must be a whole number, is {fields[0]!r}")
        try:
            x, y, w, h = (float(text) for text in fields[1:])
        except ValueError as error:
            raise ValueError(f"{where}: the box must be four numbers: {error}") from error
        if max(x, y, w, h) > 1.5:
            raise ValueError(f"{where}: the box must be shares of the sides from 0 to 1, is {fields[1:]}: pixels?")
        word = classes.word(fields[0].lstrip("0") or "0", where)
        (width, height), left, top = size, (x - w / 2) * size[0], (y - h / 2) * size[1]
        corners = (left, top, left + w * width, top + h * height)
        return [] if word is None else listing.check_box(word, corners, size, where)

    return _read_lines_of_boxes(listing, folder, images, lists, split, box_of)


def _read_lines_of_boxes(
    listing: BoxedListing,
    folder: Path,
    images: Path,
    lists: dict[str, Path],
    split: str,
    box_of: Callable[[list[str], Size, str], list[Box]],
) -> BoxedListing:
    """The listing, filled from text files with a line an object; ``box_of`` takes its fields, the size and the place."""
    for path, part, image in files_of_images(folder, images, lists, split, (".txt",), skipped=("classes.txt",)):
        size, boxes = image_size(image), []
        for number, line in read_lines(path):
            if line.strip() and not line.lower().startswith(("imagesource:", "gsd:")):
                boxes += box_of(line.split(), size, f"{path}: line {number}")
        listing.images.append(BoxedImage(image.name, part, *size, tuple(boxes)))
    return listing
