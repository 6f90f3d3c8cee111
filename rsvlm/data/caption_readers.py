"""Readers of the captions of published data sets: JSON of Karpathy, NWPU-Captions and COCO, text of Sydney and AMFMN.

- Karpathy's JSON (UCM-Captions, RSICD, Sydney-Captions, this package's Blue Marble tiles):
  ``{"images": [{"filename", "imgid", "split", "sentids", "sentences": [{"raw", "tokens", "imgid", "sentid"}]}]}``
- NWPU-Captions' JSON, class -> list of images, which lie at ``CLASS/FILENAME`` below the folder of images:
  ``{"airplane": [{"filename": "airplane_001.jpg", "imgid", "split", "raw", "raw_1", ... "raw_4"}, ...]}``
- COCO's JSON: what caption and box files share, and captions (``annotations`` with ``caption``).
- AMFMN's precomputed text, ``PREFIX_caps.txt`` and ``PREFIX_filename.txt``: line n of the captions belongs to line n of
  the file names, which names each image five times; older copies name each image once, and lines 5n to 5n + 4 of the
  captions belong to it.
- Sydney-Captions' raw text, ``descriptions_SIDNEY.txt``: line ``1 a residential area ...`` belongs to image ``1.tif``;
  ``filenames_train.txt`` and its kin hold a file name a line.

Every reader raises FileNotFoundError for a file that is missing, and ValueError with file and entry or line for what is
not as it must be: a wrong type, an image or id listed twice, a name that leads out of the folder, an unknown split.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rsvlm.data.listings import (
    CaptionRow,
    Listing,
    gather_captions,
    note_once,
    read_annotations,
    read_lines,
)
from rsvlm.data.names import ALL, check_name, check_split
from rsvlm.settings import closest_name

# UC Merced's classes: 100 images each, numbered through in this order.
UCM_CLASSES = (
    "agricultural", "airplane", "baseball diamond", "beach", "buildings", "chaparral", "dense residential", "forest",
    "freeway", "golf course", "harbor", "intersection", "medium residential", "mobile home park", "overpass",
    "parking lot", "river", "runway", "sparse residential", "storage tanks", "tennis court",
)  # fmt: skip
LABEL_RULES = ("none", "prefix", "ucm_number", "field")
_MARKS = re.compile(r"[^\w\s'-]")  # of a sentence's text that are in none of its tokens
NWPU_CAPTIONS = ("raw", "raw_1", "raw_2", "raw_3", "raw_4")
CAPTIONS_AN_IMAGE = 5  # of AMFMN's text


def read_karpathy(annotations: Path, *, fixes: frozenset[str] = ALL, labels: str = "none") -> Listing:
    """The images of a Karpathy JSON file with splits, captions and counts of the file's defects.

    Args:
        fixes: names of the fixes that may be applied, see rsvlm.data.names.
        labels: where a class name comes from: ``none``; ``prefix``, the file name's letters before its number
            (``airport_12.jpg``); ``ucm_number``, UC Merced's number; ``field``, the key ``label`` of each image.
    """
    if labels not in LABEL_RULES:
        raise ValueError(f"labels: unknown rule {labels!r}{closest_name(labels, LABEL_RULES)}")
    content = read_annotations(annotations)
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ValueError(
            f"{annotations}: not in Karpathy's format: needs an object with a non-empty list under 'images'"
        )
    counts, sentence_ids, seen = Counter(), Counter(), {}
    rows = (
        row
        for number, entry in enumerate(entries)
        for row in _karpathy_rows(entry, f"{annotations}: images[{number}]", labels, fixes, counts, sentence_ids, seen)
    )
    listing = gather_captions(rows, fixes)
    listing.counts.update(counts)
    listing.counts["sentence_ids_repeated"] = sum(count - 1 for count in sentence_ids.values())
    return listing


def _karpathy_rows(
    entry: object, where: str, labels: str, fixes: frozenset[str], counts: Counter, sentence_ids: Counter, seen: dict
) -> Iterator[CaptionRow]:
    """The captions of one entry; its defects are added to the counts."""
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: must be an object, is {type(entry).__name__}")
    name = check_name(entry.get("filename"), where)
    if entry.get("filepath"):  # COCO's variant keeps the folder apart
        name = f"{check_name(entry['filepath'], where)}/{name}"
    at, where = where, f"{where} ({name})"
    split = check_split(entry.get("split"), where)
    imgid, sentences = entry.get("imgid"), entry.get("sentences")
    if imgid is not None and not isinstance(imgid, int | str):
        raise ValueError(f"{where}: imgid must be a number or a text, is {imgid!r}")
    if not isinstance(sentences, list):
        raise ValueError(f"{where}: 'sentences' must be a list, is {type(sentences).__name__}")
    label = _label_of(name, entry, labels, where)
    for what, key in (("file name", name), ("imgid", imgid)):
        note_once(seen, what, key, at.rpartition(": ")[2], where)
    yield CaptionRow(name, split, None, label, at)
    for position, sentence in enumerate(sentences):
        if not isinstance(sentence, dict) or not isinstance(sentence.get("raw"), str):
            raise ValueError(f"{where}: sentences[{position}] must be an object with a text under 'raw'")
        text, tokens = sentence["raw"], sentence.get("tokens")
        if isinstance(tokens, list):
            tokens = [str(token) for token in tokens]
            if _MARKS.sub(" ", text.lower()).split() != [token.lower() for token in tokens]:
                counts["captions_with_other_tokens"] += 1
                text = text if "text_from_raw" in fixes else " ".join(tokens)
        if "sentid" in sentence:
            sentence_ids[str(sentence["sentid"])] += 1
        yield CaptionRow(name, split, text, label, at)
    ids = entry.get("sentids")
    counts["images_with_other_sentence_ids"] += ids is not None and ids != [s.get("sentid") for s in sentences]


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
    label = entry.get("label") if rule == "field" else None
    if label is not None and not isinstance(label, str):
        raise ValueError(f"{where}: 'label' must be a text or null, is {label!r}")
    return label


def read_nwpu(annotations: Path, fixes: frozenset[str] = ALL) -> Listing:
    """The images of NWPU's JSON file with splits, captions, class as label, and counts of the file's defects."""
    content = read_annotations(annotations)
    if not isinstance(content, dict) or not content or not all(isinstance(part, list) for part in content.values()):
        raise ValueError(f"{annotations}: not in NWPU's format: needs an object of class name -> list of images")

    def rows() -> Iterator[CaptionRow]:
        seen: dict = {}
        entries = ((key, number, entry) for key, part in content.items() for number, entry in enumerate(part))
        for class_name, number, entry in entries:
            place = f"{class_name}[{number}]"
            where = f"{annotations}: {place}"
            if not isinstance(entry, dict):
                raise ValueError(f"{where}: must be an object, is {type(entry).__name__}")
            name = check_name(f"{class_name}/{check_name(entry.get('filename'), where)}", where)
            at, where = where, f"{where} ({name})"
            split, label = check_split(entry.get("split"), where), class_name.replace("_", " ")
            captions = [entry[key] for key in NWPU_CAPTIONS if key in entry]
            if not all(isinstance(text, str) for text in captions):
                raise ValueError(f"{where}: the captions {', '.join(NWPU_CAPTIONS)} must be texts")
            for what, key in (("file name", name), ("imgid", entry.get("imgid"))):
                note_once(seen, what, key, place, where)
            for text in (None, *captions):
                yield CaptionRow(name, split, text, label, at)

    return gather_captions(rows(), fixes)


@dataclass(frozen=True)
class CocoFile:
    """The checked parts of a COCO file: images by id, in order, and the annotations as they are."""

    images: dict[object, tuple[str, int | None, int | None]]  # id -> name, width, height
    annotations: list[dict]
    categories: dict[object, str]


def read_coco(path: Path) -> CocoFile:
    """A COCO file, its parts checked, its annotations only for belonging to an image."""
    content = read_annotations(path)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list) or not content["images"]:
        raise ValueError(f"{path}: not in COCO's format: needs an object with a non-empty list under 'images'")
    images: dict[object, tuple[str, int | None, int | None]] = {}
    seen: dict = {}
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
        note_once(seen, "file name", name, f"images[{number}]", where)
        images[entry["id"]] = (name, entry.get("width"), entry.get("height"))
    annotations, kinds = content.get("annotations"), content.get("categories", [])
    if not isinstance(annotations, list):
        raise ValueError(f"{path}: not in COCO's format: needs a list under 'annotations'")
    for number, entry in enumerate(annotations):
        where = f"{path}: annotations[{number}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("image_id"), int | str):
            raise ValueError(f"{where}: must be an object with a number or a text under 'image_id'")
        if entry["image_id"] not in images:
            raise ValueError(f"{where}: no image has the id {entry['image_id']!r}")
    if not isinstance(kinds, list):
        raise ValueError(f"{path}: 'categories' must be a list")
    categories: dict[object, str] = {}
    for number, entry in enumerate(kinds):
        where = f"{path}: categories[{number}]"
        fits = isinstance(entry, dict) and isinstance(entry.get("id"), int | str)
        if not fits or not isinstance(entry.get("name"), str):
            raise ValueError(f"{where}: must be an object with 'id' and a text under 'name'")
        if entry["id"] in categories:
            raise ValueError(f"{where}: the id {entry['id']!r} is given twice")
        categories[entry["id"]] = entry["name"]
    return CocoFile(images, annotations, categories)


def read_coco_captions(files: dict[str, Path], fixes: frozenset[str] = ALL) -> Listing:
    """The images of one COCO caption file a split."""

    def rows() -> Iterator[CaptionRow]:
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

    return gather_captions(rows(), fixes)


def read_precomputed(prefixes: dict[str, Path], fixes: frozenset[str] = ALL) -> Listing:
    """The images of a pair of AMFMN's text files a split.

    Args:
        prefixes: split -> path that ``_caps.txt`` and ``_filename.txt`` are put behind.
    """

    def rows() -> Iterator[CaptionRow]:
        for split, prefix in prefixes.items():
            captions_file = prefix.with_name(f"{prefix.name}_caps.txt")
            names_file = prefix.with_name(f"{prefix.name}_filename.txt")
            check_split(split, str(captions_file))
            captions, names = list(read_lines(captions_file)), list(read_lines(names_file))
            if len(captions) == CAPTIONS_AN_IMAGE * len(names) > 0:
                names = [name for name in names for _ in range(CAPTIONS_AN_IMAGE)]
            if not captions or len(captions) != len(names):
                raise ValueError(
                    f"{captions_file}: {len(captions):,} lines of captions do not fit the {len(names):,} lines of "
                    f"{names_file.name}: as many are needed, or {CAPTIONS_AN_IMAGE} times as many; is one cut off?"
                )
            for (number, caption), (name_line, name) in zip(captions, names, strict=True):
                name = check_name(name.strip(), f"{names_file}: line {name_line}")
                yield CaptionRow(name, split, caption, None, f"{captions_file}: line {number}")

    return gather_captions(rows(), fixes)


def read_sydney_text(descriptions: Path, lists: dict[str, Path], fixes: frozenset[str] = ALL) -> Listing:
    """The images of the split lists with the captions of the descriptions file.

    Args:
        descriptions: the text file of captions.
        lists: split -> text file with its file names.
    """

    def rows() -> Iterator[CaptionRow]:
        named: dict[str, CaptionRow] = {}
        for split, path in lists.items():
            for where, line in ((f"{path}: line {number}", line.strip()) for number, line in read_lines(path)):
                if not line:
                    continue
                name = check_name(line, where)
                stem = PurePosixPath(name).stem
                if stem in named:
                    raise ValueError(f"{where}: {name!r} is already at {named[stem].where}")
                named[stem] = CaptionRow(name, check_split(split, where), None, None, where)
                yield named[stem]
        for number, line in read_lines(descriptions):
            where = f"{descriptions}: line {number}"
            if not line.strip():
                continue
            key, _, caption = line.strip().partition(" ")
            if not key.isdecimal() or not caption.strip():
                raise ValueError(f"{where}: needs 'ID CAPTION', is {line[:80]!r}")
            if key not in named:
                raise ValueError(f"{where}: no list names an image {key!r}: {', '.join(map(str, lists.values()))}")
            yield CaptionRow(named[key].name, named[key].split, caption, None, where)

    return gather_captions(rows(), fixes)
