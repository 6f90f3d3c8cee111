"""Official test sets that copies of a data set mislabel, known by their file names, not by the copy's own labels."""

import dataclasses
import hashlib
from collections import Counter
from pathlib import PurePosixPath

from rsvlm.data.listings import Listing

# Official test set of RSICD: SHA-256 over its 1,093 file names without extension, sorted, joined by newlines.
RSICD_TEST = "ecfb7e5a7642318951e0efa81452a9f4bf88ab136d05c60e2a2b348261a81a25"


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


def _fingerprint_of_split(listing: Listing, split: str) -> str:
    """SHA-256 over the sorted file names of a split, without extensions."""
    stems = sorted(PurePosixPath(image.name).stem for image in listing.images if image.split == split)
    return hashlib.sha256("\n".join(stems).encode()).hexdigest()
