"""Reader of NWPU-Captions' own JSON: class -> list of images, captions under ``raw``, ``raw_1`` ... ``raw_4``.

``{"airplane": [{"filename": "airplane_001.jpg", "imgid", "split", "raw", "sentids", "raw_1", "sentids_1", ...}, ...]}``
The images lie at ``CLASS/FILENAME`` below the folder of images.
"""

from pathlib import Path

from rsvlm.data.fixes import ALL
from rsvlm.data.listings import ListedImage, Listing, clean_captions, note_splits
from rsvlm.data.names import check_name, check_split
from rsvlm.files import read_json

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
