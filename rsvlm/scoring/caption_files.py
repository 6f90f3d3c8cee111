"""Captions and references as people have them in files: CSV, JSON, JSON Lines, Parquet, COCO's results and annotations.

A row has an image (a column of IMAGE_COLUMNS) and a caption, or several: a list, numbered columns, or several rows.
JSON may also be an object image -> caption or list of captions, or COCO's object with ``images`` and ``annotations``.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from rsvlm.files import read_json, read_json_lines

IMAGE_COLUMNS = ("image_id", "image", "filename", "file_name", "filepath", "path", "id")
CAPTION_COLUMNS = ("caption", "captions", "sentence", "sentences", "text", "raw", "description", "references")
SEPARATORS = {".csv": ",", ".tsv": "\t"}
FORMATS = "CSV, TSV, JSON, JSON Lines or Parquet"


def read_caption_lists(path: str | Path) -> dict[str, list[str]]:
    """Image -> its captions, in the file's order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another format, no column of images or captions, a caption that is no text; names it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    kind = path.suffix.lower()
    if kind == ".json":
        content = read_json(path)
        if isinstance(content, dict) and isinstance(content.get("annotations"), list):
            content = _coco_rows(content, path)
        if isinstance(content, dict):
            content = [{"image_id": image, "captions": captions} for image, captions in content.items()]
        return _gather(content, path)
    if kind in (".jsonl", ".ndjson"):
        return _gather(read_json_lines(path), path)
    if kind in SEPARATORS:
        rows = pd.read_csv(path, sep=SEPARATORS[kind], dtype=str, keep_default_na=False)
        return _gather(rows.to_dict("records"), path)
    if kind == ".parquet":
        return _gather(pd.read_parquet(path).to_dict("records"), path)
    raise ValueError(f"{path}: {kind or 'no ending'} is no format read here; give {FORMATS}")


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
    names = {image.get("id"): image.get("file_name", image.get("id")) for image in content.get("images", [])}
    rows = []
    for number, entry in enumerate(content["annotations"]):
        if not isinstance(entry, dict) or "image_id" not in entry or "caption" not in entry:
            raise ValueError(f"{path}: annotation {number}: expected image_id and caption")
        rows.append({"image_id": names.get(entry["image_id"], entry["image_id"]), "caption": entry["caption"]})
    return rows


def _gather(rows: object, path: Path) -> dict[str, list[str]]:
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path}: no rows; expected an image and its caption in each")
    found: dict[str, list[str]] = {}
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise ValueError(f"{path}: row {number}: expected an object with an image and its caption")
        image = _key(row, IMAGE_COLUMNS, path, number)
        found.setdefault(str(row[image]), []).extend(_texts(row, path, number))
    return found


def _key(row: Mapping, names: Iterable[str], path: Path, number: int) -> str:
    for name in names:
        if name in row:
            return name
    raise ValueError(f"{path}: row {number}: none of {', '.join(names)} among {', '.join(map(str, row))}")


def _texts(row: Mapping, path: Path, number: int) -> list[str]:
    numbered = sorted(
        (name for name in row if re.fullmatch(r"captions?_?\d+", str(name))), key=lambda n: int(re.sub(r"\D", "", n))
    )
    if numbered:
        values = [row[name] for name in numbered if row[name] not in ("", None)]
    else:
        value = row[_key(row, CAPTION_COLUMNS, path, number)]
        values = [value] if isinstance(value, str) else list(value) if hasattr(value, "__iter__") else [value]
    for value in values:
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{path}: row {number}: {value!r} is no caption")
    return values
