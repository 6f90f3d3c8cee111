"""Readers of captions in the JSON of a data set: Karpathy's, NWPU-Captions', COCO's.

Reader of caption annotations in Karpathy's JSON format.

``{"images": [{"filename", "imgid", "split", "sentids", "sentences": [{"raw", "tokens", "imgid", "sentid"}]}]}``
Used by UCM-Captions, RSICD, Sydney-Captions and by this package's own Blue Marble tiles.

Reader of NWPU-Captions' own JSON: class -> list of images, captions under ``raw``, ``raw_1`` ... ``raw_4``.

``{"airplane": [{"filename": "airplane_001.jpg", "imgid", "split", "raw", "sentids", "raw_1", "sentids_1", ...}, ...]}``
The images lie at ``CLASS/FILENAME`` below the folder of images.

COCO's JSON: what caption and box files share, and the reader of captions (``annotations`` with ``caption``).
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rsvlm.data.listings import (
    CaptionRow,
    ListedImage,
    Listing,
    clean_captions,
    differs_from_tokens,
    gather_captions,
    note_splits,
)
from rsvlm.data.names import ALL, check_name, check_split, closest_name
from rsvlm.files import read_json

# UC Merced's classes: 100 images each, numbered through in this order.
UCM_CLASSES = (
    "agricultural", "airplane", "baseball diamond", "beach", "buildings", "chaparral", "dense residential", "forest",
    "freeway", "golf course", "harbor", "intersection", "medium residential", "mobile home park", "overpass",
    "parking lot", "river", "runway", "sparse residential", "storage tanks", "tennis court",
)  # fmt: skip
LABEL_RULES = ("none", "prefix", "ucm_number")


def read_karpathy(annotations: Path, *, fixes: frozenset[str] = ALL, labels: str = "none") -> Listing:
    """The images of a Karpathy JSON file with splits, captions and counts of the file's defects.

    Args:
        annotations: the JSON file.
        fixes: names of the fixes that may be applied, see rsvlm.data.names.
        labels: where a class name comes from: ``none``; ``prefix``, the file name's letters before its number
            (``airport_12.jpg``); ``ucm_number``, UC Merced's number; ``field``, the key ``label`` of each image.

    Raises:
        FileNotFoundError: no such file.
        ValueError: invalid JSON, wrong types, an image or id listed twice, a name that leads out of the folder, an
            unknown split or rule; names the file and the image.
    """
    if labels not in (*LABEL_RULES, "field"):
        raise ValueError(f"labels: unknown rule {labels!r}{closest_name(labels, (*LABEL_RULES, 'field'))}")
    if not annotations.is_file():
        raise FileNotFoundError(
            f"{annotations}: no such annotation file; see data/raw/README.md for where sources come from"
        )
    content = read_json(annotations)
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ValueError(
            f"{annotations}: not in Karpathy's format: needs an object with a non-empty list under 'images'"
        )
    listing = Listing(images=[])
    names, ids, sentence_ids = {}, {}, Counter()
    for number, entry in enumerate(entries):
        image = _read_entry(entry, f"{annotations}: images[{number}]", labels, fixes, listing.counts, sentence_ids)
        where = f"{annotations}: images[{number}] ({image.name})"
        for what, key, seen in (("file name", image.name, names), ("imgid", entry.get("imgid"), ids)):
            if key is not None and key in seen:
                raise ValueError(
                    f"{where}: the {what} {key!r} is already at images[{seen[key]}]; remove one of the two"
                )
            seen[key] = number
        listing.images.append(image)
    listing.counts["sentence_ids_repeated"] = sum(count - 1 for count in sentence_ids.values())
    note_splits(listing)
    return listing


def _read_entry(
    entry: object, where: str, labels: str, fixes: frozenset[str], counts: Counter, sentence_ids: Counter
) -> ListedImage:
    """One checked image; its defects are added to the counts."""
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: must be an object, is {type(entry).__name__}")
    name = check_name(entry.get("filename"), where)
    if entry.get("filepath"):  # COCO's variant keeps the folder apart
        name = f"{check_name(entry['filepath'], where)}/{name}"
    where = f"{where} ({name})"
    split = check_split(entry.get("split"), where)
    imgid = entry.get("imgid")
    if imgid is not None and not isinstance(imgid, int | str):
        raise ValueError(f"{where}: imgid must be a number or a text, is {imgid!r}")
    sentences = entry.get("sentences")
    if not isinstance(sentences, list):
        raise ValueError(f"{where}: 'sentences' must be a list, is {type(sentences).__name__}")
    released = []
    for position, sentence in enumerate(sentences):
        if not isinstance(sentence, dict) or not isinstance(sentence.get("raw"), str):
            raise ValueError(f"{where}: sentences[{position}] must be an object with a text under 'raw'")
        text, tokens = sentence["raw"], sentence.get("tokens")
        if isinstance(tokens, list):
            tokens = [str(token) for token in tokens]
            if differs_from_tokens(text, tokens):
                counts["captions_with_other_tokens"] += 1
                text = text if "text_from_raw" in fixes else " ".join(tokens)
        released.append(text)
        if "sentid" in sentence:
            sentence_ids[str(sentence["sentid"])] += 1
    listed_ids = entry.get("sentids")
    counts["images_with_other_sentence_ids"] += listed_ids is not None and listed_ids != [
        s.get("sentid") for s in sentences
    ]
    return ListedImage(
        name, split, clean_captions(released, counts, fixes, where), _label_of(name, entry, labels, where)
    )


def _label_of(name: str, entry: dict, rule: str, where: str) -> str | None:
    """The class of an image after a rule, or None where the rule finds none."""
    stem = PurePosixPath(name).stem
    if rule == "prefix":
        match = re.fullmatch(r"([a-z][a-z_ -]*?)_?\d+", stem, re.IGNORECASE)
        return re.sub(r"[_\s-]+", " ", match[1]).strip().lower() if match else None
    if rule == "ucm_number":
        if not stem.isdecimal() or not 1 <= int(stem) <= 100 * len(UCM_CLASSES):
            raise ValueError(f"{where}: labels 'ucm_number' needs file names from 1 to {100 * len(UCM_CLASSES)}")
        return UCM_CLASSES[(int(stem) - 1) // 100]
    if rule == "field":
        label = entry.get("label")
        if label is not None and not isinstance(label, str):
            raise ValueError(f"{where}: 'label' must be a text or null, is {label!r}")
        return label
    return None


CAPTION_KEYS = ("raw", "raw_1", "raw_2", "raw_3", "raw_4")


def read_nwpu(annotations: Path, fixes: frozenset[str] = ALL) -> Listing:
    """The images of NWPU's JSON file with splits, captions, class as label, and counts of the file's defects.

    Raises:
        FileNotFoundError: no such file.
        ValueError: invalid JSON, wrong types, an image or id listed twice, a name that leads out of the folder, an
            unknown split; names the file and the image.
    """
    if not annotations.is_file():
        raise FileNotFoundError(
            f"{annotations}: no such annotation file; see data/raw/README.md for where sources come from"
        )
    content = read_json(annotations)
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(entries, list) for entries in content.values())
    ):
        raise ValueError(f"{annotations}: not in NWPU's format: needs an object of class name -> list of images")
    listing = Listing(images=[])
    names, ids = {}, {}
    for class_name, entries in content.items():
        for number, entry in enumerate(entries):
            where = f"{annotations}: {class_name}[{number}]"
            if not isinstance(entry, dict):
                raise ValueError(f"{where}: must be an object, is {type(entry).__name__}")
            name = check_name(f"{class_name}/{check_name(entry.get('filename'), where)}", where)
            split = check_split(entry.get("split"), f"{where} ({name})")
            released = [entry[key] for key in CAPTION_KEYS if key in entry]
            if not all(isinstance(text, str) for text in released):
                raise ValueError(f"{where} ({name}): the captions {', '.join(CAPTION_KEYS)} must be texts")
            for what, key, seen in (("file name", name, names), ("imgid", entry.get("imgid"), ids)):
                if key is not None and str(key) in seen:
                    raise ValueError(
                        f"{where} ({name}): the {what} {key!r} is already at {seen[str(key)]}; remove one of the two"
                    )
                seen[str(key)] = f"{class_name}[{number}]"
            label = class_name.replace("_", " ")
            captions = clean_captions(released, listing.counts, fixes, f"{where} ({name})")
            listing.images.append(ListedImage(name, split, captions, label))
    note_splits(listing)
    return listing


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
