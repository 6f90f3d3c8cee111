"""Captions and references as people have them in files: any table of ``caption_tables``, COCO's results and annotations.

A row has an image (a column of IMAGE_COLUMNS) and a caption, or several: a list, numbered columns, or several rows.
JSON may also be an object image -> caption or list of captions, or COCO's object with ``images`` and ``annotations``.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from rsvlm.data.caption_tables import LIST, Key, Names, Places, kind_of, read_records
from rsvlm.files import read_json
from rsvlm.safe_text import fault_in

IMAGE_COLUMNS = ("image_id", "image", "filename", "file_name", "filepath", "path", "id")
CAPTION_COLUMNS = ("caption", "captions", "sentence", "sentences", "text", "raw", "description", "references")


def read_caption_lists(path: str | Path) -> dict[str, list[str]]:
    """Image -> its captions, in the file's order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another format, no column of images or captions, a caption that is no text; names it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    content = read_json(path) if kind_of(path) in LIST else None
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        content = _coco_rows(content, path)
    elif isinstance(content, dict):
        content = [{"image_id": image, "captions": captions} for image, captions in content.items()]
    _, places, records = read_records(path, _find_places, content)
    found: dict[str, list[str]] = {}
    for where, row in records:
        if places.image not in row:
            raise ValueError(f"{where}: none of {', '.join(IMAGE_COLUMNS)} among {', '.join(map(str, row))}")
        values = [row.get(place) for place in places.captions]
        if len(values) > 1:  # numbered columns
            values = [value for value in values if value not in ("", None)]
        elif not isinstance(values[0], str) and hasattr(values[0], "__iter__"):
            values = list(values[0])
        for value in values:
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"{where}: {value!r} is no caption")
            if fault := fault_in(value, breaks=True):
                raise ValueError(f"{where}: the caption {value[:60]!r} holds {fault}; take it out")
        found.setdefault(str(row[places.image]), []).extend(values)
    return found


def one_caption_each(captions: Mapping[str, list[str]], path: str | Path) -> dict[str, str]:
    """Image -> caption, of what was read from a file of generated captions.

    Raises:
        ValueError: an image with several captions; names it.
    """
    several = [image for image, own in captions.items() if len(own) != 1]
    if several:
        raise ValueError(f"{path}: {several[0]!r} has {len(captions[several[0]])} captions; one an image is scored")
    return {image: own[0] for image, own in captions.items()}


def _coco_rows(content: dict, path: Path) -> list[dict]:
    """Rows of COCO's annotations, by file name where images have one."""
    images = content.get("images", [])
    if not isinstance(images, list):
        raise ValueError(f"{path}: images: expected a list, is {str(images)[:80]!r}")
    for number, image in enumerate(images):
        if not isinstance(image, dict) or not all(
            isinstance(image.get(key, ""), int | str) for key in ("id", "file_name")
        ):
            raise ValueError(f"{path}: images[{number}]: expected id and file_name, is {str(image)[:80]!r}")
    names = {image.get("id"): image.get("file_name", image.get("id")) for image in images}
    rows = []
    for number, entry in enumerate(content["annotations"]):
        if not isinstance(entry, dict) or "caption" not in entry or not isinstance(entry.get("image_id"), int | str):
            raise ValueError(f"{path}: annotation {number}: expected image_id and caption")
        rows.append({"image_id": names.get(entry["image_id"], entry["image_id"]), "caption": entry["caption"]})
    return rows


def _find_places(names: Names, where: str) -> Places:
    """The first of the usual names; of captions, all columns that are numbered where there are such."""

    def first(known: tuple[str, ...]) -> Key:
        for name in known:
            for place, own in names.items():
                if own.lower() == name:
                    return place
        raise ValueError(f"{where}: none of {', '.join(known)} among {', '.join(names.values())}")

    numbered = {place: name for place, name in names.items() if re.fullmatch(r"captions?_?\d+", name.lower())}
    captions = sorted(numbered, key=lambda place: int(re.sub(r"\D", "", numbered[place])))
    return Places(first(IMAGE_COLUMNS), tuple(captions) or (first(CAPTION_COLUMNS),))
