"""Reader of Pascal VOC's XML (DIOR, HRRSD): a file an image with ``size`` and ``object``s, upright or oriented."""

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
    image_by_stem,
    image_size,
    split_of_stems,
)
from rsvlm.data.fixes import ALL
from rsvlm.data.names import check_name


@dataclass
class _Object:
    """One ``object`` entry: the texts of its elements by their path below it, and the line it starts in."""

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
    of_image = image_by_stem(images)
    for path, part in split_of_stems(annotation_files(folder, ".xml"), lists, split).items():
        reader = _read_xml(path)
        name = check_name(reader.texts.get("filename") or f"{path.stem}.jpg", str(path))
        if Path(name).stem != path.stem and path.stem in of_image:
            name = of_image[
                path.stem
            ].name  # DIOR's files name one another's images in places; the file's own name holds
            listing.counts["files_naming_another_image"] += 1
        width, height = (_whole(reader.texts.get(f"size/{key}"), path) for key in ("width", "height"))
        if not width or not height:
            if path.stem not in of_image:
                raise ValueError(f"{path}: gives no size, and {images} holds no image {path.stem!r} to take it from")
            width, height = image_size(of_image[path.stem])
            listing.counts["sizes_from_the_image"] += 1
        boxes = []
        for one in reader.objects:
            where = f"{path}: line {one.line}"
            word = classes.word(one.texts.get("name") or _missing(where, "name"), where)
            if word is not None:
                left, top, right, bottom, angle, stretch = _corners(one, where)
                box = check_box(
                    word, left, top, right, bottom, width, height, where, listing.counts, fixes, angle, stretch
                )
                boxes.append(box)
        listing.images.append(BoxedImage(name, part, width, height, tuple(boxes)))
    return listing


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
        if self._path[1:] == ["object"]:
            self.objects.append(_Object(self._locator.getLineNumber()))

    def characters(self, content: str) -> None:
        self._text += content

    def endElement(self, name: str) -> None:
        below = self._path[1:]
        if below[:1] == ["object"] and len(below) > 1:
            self.objects[-1].texts["/".join(below[1:])] = self._text.strip()
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


def _corners(one: _Object, where: str) -> tuple[float, float, float, float, float | None, float]:
    """Left, top, right, bottom, angle and stretch of ``bndbox`` (upright) or ``robndbox`` (centre, sides, angle)."""
    for kind in ("bndbox", "robndbox"):
        texts = {key.split("/", 1)[1]: text for key, text in one.texts.items() if key.startswith(f"{kind}/")}
        if not texts:
            continue
        wanted = ("xmin", "ymin", "xmax", "ymax") if kind == "bndbox" else ("cx", "cy", "w", "h", "angle")
        values = [_number(texts.get(key), f"{where}: {kind}/{key}") for key in wanted]
        if kind == "bndbox":
            return (*values, None, 1.0)
        x, y, w, h, angle = values
        across = abs(w * math.cos(angle)) + abs(h * math.sin(angle))
        down = abs(w * math.sin(angle)) + abs(h * math.cos(angle))
        long_way = math.degrees(angle) if w >= h else math.degrees(angle) + 90
        stretch = max(w, h) / max(min(w, h), 1e-6)
        return x - across / 2, y - down / 2, x + across / 2, y + down / 2, long_way % 180, stretch
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
