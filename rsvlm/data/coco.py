"""COCO's JSON: what caption and box files share, and the reader of captions (``annotations`` with ``caption``)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rsvlm.data.fixes import ALL
from rsvlm.data.listings import CaptionRow, Listing, check_split, gather_captions
from rsvlm.data.names import check_name
from rsvlm.files import read_json


@dataclass(frozen=True)
class CocoFile:
    """The checked parts of a COCO file: images by id, in order, and the annotations as they are."""

    images: dict[object, tuple[str, int | None, int | None]]  # id -> name, width, height
    annotations: list[dict]
    categories: dict[object, str]


def read_coco(path: Path) -> CocoFile:
    """A COCO file, its parts checked, its annotations only for belonging to an image.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not COCO's format, an id given twice, an annotation of an image that is not there; names the entry.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such annotation file; see data/raw/README.md for where sources come from")
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list) or not content["images"]:
        raise ValueError(f"{path}: not in COCO's format: needs an object with a non-empty list under 'images'")
    images: dict[object, tuple[str, int | None, int | None]] = {}
    names: dict[str, int] = {}
    for number, entry in enumerate(content["images"]):
        where = f"{path}: images[{number}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), int | str):
            raise ValueError(f"{where}: must be an object with a number or a text under 'id'")
        name = check_name(entry.get("file_name"), where)
        for key in ("width", "height"):
            size = entry.get(key)
            if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
                raise ValueError(f"{where} ({name}): {key!r} must be a whole number of pixels, is {size!r}")
        if entry["id"] in images:
            raise ValueError(f"{where} ({name}): the id {entry['id']!r} is given twice")
        if name in names:
            raise ValueError(f"{where}: the file name {name!r} is already at images[{names[name]}]")
        names[name] = number
        images[entry["id"]] = (name, entry.get("width"), entry.get("height"))
    annotations = content.get("annotations")
    if not isinstance(annotations, list):
        raise ValueError(f"{path}: not in COCO's format: needs a list under 'annotations'")
    for number, entry in enumerate(annotations):
        if not isinstance(entry, dict) or not isinstance(entry.get("image_id"), int | str):
            raise ValueError(
                f"{path}: annotations[{number}]: must be an object with a number or a text under 'image_id'"
            )
        if entry["image_id"] not in images:
            raise ValueError(f"{path}: annotations[{number}]: no image has the id {entry['image_id']!r}")
    return CocoFile(images, annotations, _categories(content.get("categories", []), path))


def read_coco_captions(files: dict[str, Path], fixes: frozenset[str] = ALL) -> Listing:
    """The images of one COCO caption file a split.

    Raises:
        FileNotFoundError, ValueError: as ``read_coco``; an annotation without a text under 'caption'.
    """
    return gather_captions(_rows(files), fixes)


def _rows(files: dict[str, Path]) -> Iterator[CaptionRow]:
    for split, path in files.items():
        check_split(split, str(path))
        coco = read_coco(path)
        for name, _, _ in coco.images.values():
            yield CaptionRow(name, split, None, None, str(path))
        for number, entry in enumerate(coco.annotations):
            where = f"{path}: annotations[{number}]"
            if not isinstance(entry.get("caption"), str):
                raise ValueError(f"{where}: needs a text under 'caption', has {entry.get('caption')!r}")
            yield CaptionRow(coco.images[entry["image_id"]][0], split, entry["caption"], None, where)


def _categories(entries: object, path: Path) -> dict[object, str]:
    if not isinstance(entries, list):
        raise ValueError(f"{path}: 'categories' must be a list")
    categories = {}
    for number, entry in enumerate(entries):
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("id"), int | str)
            or not isinstance(entry.get("name"), str)
        ):
            raise ValueError(f"{path}: categories[{number}]: must be an object with 'id' and a text under 'name'")
        if entry["id"] in categories:
            raise ValueError(f"{path}: categories[{number}]: the id {entry['id']!r} is given twice")
        categories[entry["id"]] = entry["name"]
    return categories
