"""Reader of XML with a file an image: Pascal VOC's (DIOR, DIOR-R, HRRSD) and HRSC2016's, upright or oriented boxes."""

import math
import xml.sax
from dataclasses import dataclass, field
from pathlib import Path

from rsvlm.data.boxed_images import (
    BoxedImage,
    BoxedListing,
    Classes,
    annotation_files,
    check_box,
    check_corners,
    image_by_stem,
    image_size,
    split_of_stems,
)
from rsvlm.data.boxes import Box
from rsvlm.data.fixes import ALL
from rsvlm.data.names import check_name

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
            boxes += [] if word is None else [_box_of(one, word, width, height, where, listing, fixes)]
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


def _box_of(
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
