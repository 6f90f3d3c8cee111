"""What is official where copies mislabel or lack it: RSICD's test set, known by its file names, and its classes."""

import dataclasses
import hashlib
from collections import Counter
from pathlib import Path, PurePosixPath

from rsvlm.data.listings import Listing
from rsvlm.data.text_lines import read_lines

# Official test set of RSICD: SHA-256 over its 1,093 file names without extension, sorted, joined by newlines.
RSICD_TEST = "ecfb7e5a7642318951e0efa81452a9f4bf88ab136d05c60e2a2b348261a81a25"

# Released beside RSICD's JSON (201528014227051/RSICD_optimal, txtclasses_rsicd.rar): a file a class, a name a line.
RSICD_CLASSES = "txtclasses_rsicd"


def mend_rsicd_splits(listing: Listing, allowed: bool) -> None:
    """Give RSICD's official test set its name back where a file calls it ``val``; the listing is changed in place.

    Args:
        listing: of any format and source; only one that holds exactly RSICD's test set as ``val`` is changed.
        allowed: else the swap is only counted.
    """
    swapped = _fingerprint_of_split(listing, "val") == RSICD_TEST
    listing.counts["splits_found_swapped"] = int(swapped)
    listing.counts["splits_swapped_back"] = int(swapped and allowed)
    if swapped and allowed:
        other = {"val": "test", "test": "val"}
        listing.images = [
            dataclasses.replace(image, split=other.get(image.split, image.split)) for image in listing.images
        ]
        listing.notes["splits_read"] = dict(Counter(image.split for image in listing.images))


def name_rsicd_classes(listing: Listing, folder: Path) -> list[Path]:
    """The official class lists that were read, sorted; the listing's images get their classes, in place.

    A class's word is its file's name in lower case: that is what stands in the names of the other images. Without
    the lists the images that are numbered through have no class; ``rsicd_images_without_class`` counts them.

    Args:
        listing: of any source; only RSICD is changed.
        folder: that of the annotations, in which ``txtclasses_rsicd`` is looked for.

    Raises:
        ValueError: an image stands in two lists; names both places.
    """
    if RSICD_TEST not in (_fingerprint_of_split(listing, split) for split in ("val", "test")):
        return []
    lists = sorted((folder / RSICD_CLASSES).glob("*.txt"))
    classes: dict[str, tuple[str, str]] = {}
    for path in lists:
        for number, line in read_lines(path):
            where, stem = f"{path}: line {number}", PurePosixPath(line.strip()).stem
            if stem and stem in classes:
                raise ValueError(f"{where}: {line.strip()!r} is already at {classes[stem][1]}")
            classes[stem] = (path.stem.lower(), where)
    listing.images = [
        dataclasses.replace(image, label=classes.get(PurePosixPath(image.name).stem, (image.label,))[0])
        for image in listing.images
    ]
    listing.counts["rsicd_images_without_class"] = sum(image.label is None for image in listing.images)
    return lists


def _fingerprint_of_split(listing: Listing, split: str) -> str:
    """SHA-256 over the sorted file names of a split, without extensions."""
    stems = sorted(PurePosixPath(image.name).stem for image in listing.images if image.split == split)
    return hashlib.sha256("\n".join(stems).encode()).hexdigest()
