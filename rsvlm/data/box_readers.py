"""Readers of boxes: COCO's JSON, Pascal VOC's and HRSC2016's XML, DOTA's and YOLO's text.

Reader of COCO's instances: boxes, polygons and run-length masks (pycocotools) of named categories.

Reader of XML with a file an image: Pascal VOC's (DIOR, DIOR-R, HRRSD) and HRSC2016's, upright or oriented boxes.

Reader of DOTA's text: a file an image, a line an object with eight corner coordinates, class and difficulty.

``X1 Y1 X2 Y2 X3 Y3 X4 Y4 CLASS DIFFICULTY``; lines ``imagesource:...`` and ``gsd:...`` may come first.

Reader of YOLO's text: a file an image, a line an object: class number, and centre and sides as shares.
"""

import math
import xml.sax
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from pycocotools import mask as masks

from rsvlm.data.boxes import (
    Box,
    BoxedImage,
    BoxedListing,
    Classes,
    annotation_files,
    check_box,
    check_corners,
    image_by_stem,
    image_size,
    read_line_boxes,
    split_of_stems,
)
from rsvlm.data.caption_readers import CocoFile, read_coco
from rsvlm.data.listings import check_split
from rsvlm.data.names import ALL, check_name


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


@dataclass
class _Object:
    """One object entry: the texts of its elements by their path below it, and the line it starts in."""

    line: int
    texts: dict[str, str] = field(default_factory=dict)


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
        folder: of XML files.
        images: folder, for sizes that a file does not give.
        classes: words for the names in the files.
        lists: split -> list of stems; without any, all files go to ``split``.

    Raises:
        FileNotFoundError: a folder or file is missing.
        ValueError: not whole XML, an object without name or box, a box outside its image, an unknown class; names file
            and line.
    """
    listing = BoxedListing()
    of_image = image_by_stem(images) if images.is_dir() else {}
    for path, part in split_of_stems(annotation_files(folder, ".xml"), lists, split).items():
        reader = _read_xml(path)
        name = check_name(_file_name(reader.texts) or f"{path.stem}.jpg", str(path))
        if Path(name).stem != path.stem and path.stem in of_image:
            # DIOR's files name one another's images in places; the file's own name holds
            name = of_image[path.stem].name
            listing.counts["files_naming_another_image"] += 1
        width, height = (
            _whole(reader.texts.get(f"size/{key}") or reader.texts.get(f"Img_Size{key.capitalize()}"), path)
            for key in ("width", "height")
        )
        if not width or not height:
            if path.stem not in of_image:
                raise ValueError(f"{path}: gives no size, and {images} holds no image {path.stem!r} to take it from")
            width, height = image_size(of_image[path.stem])
            listing.counts["sizes_from_the_image"] += 1
        boxes = []
        for one in reader.objects:
            where = f"{path}: line {one.line}"
            word = classes.word(one.texts.get("name") or one.texts.get("Class_ID") or _missing(where, "name"), where)
            boxes += [] if word is None else [_box_of_voc_boxes(one, word, width, height, where, listing, fixes)]
        kept = tuple(box for box in boxes if box is not None)
        listing.images.append(BoxedImage(name, part, width, height, kept))
    return listing


def _file_name(texts: dict[str, str]) -> str | None:
    """The image that a file names: VOC's ``filename``, or HRSC's ``Img_FileName`` and ``Img_FileFmt``."""
    if texts.get("Img_FileName") and texts.get("Img_FileFmt"):
        return f"{texts['Img_FileName']}.{texts['Img_FileFmt']}"
    return texts.get("filename")


class _Reader(xml.sax.ContentHandler):
    """Collects a file's objects and its own texts, with lines (ElementTree would not keep them)."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: dict[str, str] = {}
        self.objects: list[_Object] = []
        self._path: list[str] = []
        self._text = ""
        self._locator: xml.sax.xmlreader.Locator | None = None

    def setDocumentLocator(self, locator: xml.sax.xmlreader.Locator) -> None:  # the parser's name
        self._locator = locator

    def startElement(self, name: str, attrs: object) -> None:
        self._path.append(name)
        self._text = ""
        if self._path[1:] in OBJECTS:
            self.objects.append(_Object(self._locator.getLineNumber()))

    def characters(self, content: str) -> None:
        self._text += content

    def endElement(self, name: str) -> None:
        below = self._path[1:]
        depth = next((len(place) for place in OBJECTS if below[: len(place)] == place), None)
        if depth and len(below) > depth:
            self.objects[-1].texts["/".join(below[depth:])] = self._text.strip()
        elif below:
            self.texts["/".join(below)] = self._text.strip()
        self._path.pop()
        self._text = ""


def _read_xml(path: Path) -> _Reader:
    reader = _Reader()
    try:
        with path.open("rb") as file:
            parser = xml.sax.make_parser()
            parser.setFeature(xml.sax.handler.feature_external_ges, False)
            parser.setContentHandler(reader)
            parser.parse(file)
    except xml.sax.SAXParseException as error:
        raise ValueError(f"{path}: line {error.getLineNumber()}: not whole XML: {error.getMessage()}") from error
    return reader


def _box_of_voc_boxes(
    one: _Object, word: str, width: int, height: int, where: str, listing: BoxedListing, fixes: frozenset[str]
) -> Box | None:
    """The box of an object, by what its elements give: four corners, centre, sides and angle, or two corners."""

    def values(keys: tuple[str, ...]) -> list[float]:
        return [_number(one.texts.get(key), f"{where}: {key}") for key in keys]

    for keys in CORNERS:
        if keys[0] in one.texts:
            return check_corners(word, values(keys), width, height, where, listing, fixes)
    for keys in CENTRED:
        if keys[0] in one.texts:
            x, y, w, h, angle = values(keys)
            across = (w / 2 * math.cos(angle), w / 2 * math.sin(angle))
            down = (-h / 2 * math.sin(angle), h / 2 * math.cos(angle))
            signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
            corners = [(x, y)[i] + a * across[i] + d * down[i] for a, d in signs for i in (0, 1)]
            return check_corners(word, corners, width, height, where, listing, fixes)
    for keys in UPRIGHT:
        if keys[0] in one.texts:
            return check_box(word, *values(keys), width, height, where, listing, fixes)
    return _missing(where, "bndbox")


def _number(text: str | None, where: str) -> float:
    try:
        return float(text)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} must be a number, is {text!r}") from error


def _whole(text: str | None, path: Path) -> int:
    value = _number(text or "0", f"{path}: size")
    if value != int(value) or value < 0:
        raise ValueError(f"{path}: size must be whole numbers of pixels, is {text!r}")
    return int(value)


def _missing(where: str, key: str) -> str:
    raise ValueError(f"{where}: the object has no {key!r}")


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
    box_of = partial(_box_of_dota_boxes, classes=classes, fixes=fixes)
    return read_line_boxes(folder, images, lists, split, box_of, skipped_lines=("imagesource:", "gsd:"))


def _box_of_dota_boxes(
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
    box_of = partial(_box_of_yolo_boxes, classes=classes, fixes=fixes)
    return read_line_boxes(folder, images, lists, split, box_of, skipped_files=("classes.txt",))


def _box_of_yolo_boxes(
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
