"""Reader of caption annotations in Karpathy's JSON format.

``{"images": [{"filename", "imgid", "split", "sentids", "sentences": [{"raw", "tokens", "imgid", "sentid"}]}]}``
Used by UCM-Captions, RSICD, Sydney-Captions and by this package's own Blue Marble tiles.
"""

import re
from collections import Counter
from pathlib import Path, PurePosixPath

from rsvlm.data.fixes import ALL
from rsvlm.data.listings import (
    ListedImage,
    Listing,
    clean_captions,
    differs_from_tokens,
    note_splits,
)
from rsvlm.data.names import check_name, check_split, closest_name
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
        fixes: names of the fixes that may be applied, see rsvlm.data.fixes.
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
