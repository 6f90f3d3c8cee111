"""Reader of RSITMD's and RSICD's retrieval JSON: one file a split, a list of objects with ``image`` and ``caption``.

Training files hold a row a caption, ``{"image": "train/bridge_942.tif", "caption": "...", "label_name": "bridge"}``;
test files a list an image, ``{"image": "test/parking_229.tif", "caption": ["...", ...]}``. Images lie in one folder,
without the split in front.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rsvlm.data.fixes import ALL
from rsvlm.data.listings import CaptionRow, Listing, check_split, gather_captions
from rsvlm.data.names import check_name
from rsvlm.files import read_json


def read_retrieval_json(files: dict[str, Path], fixes: frozenset[str] = ALL) -> Listing:
    """The images of one file a split with captions and classes.

    Args:
        files: split -> JSON file.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: not such a list, wrong types, an image in two splits; names file and entry.
    """
    prefixes: Counter = Counter()
    listing = gather_captions(_rows(files, prefixes), fixes)
    listing.counts["images_named_under_another_split"] = sum(
        count for (prefix, split), count in prefixes.items() if prefix != split
    )
    return listing


def _rows(files: dict[str, Path], prefixes: Counter) -> Iterator[CaptionRow]:
    for split, path in files.items():
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: no such annotation file; see data/raw/README.md for where sources come from"
            )
        entries = read_json(path)
        if not isinstance(entries, list) or not entries:
            raise ValueError(f"{path}: needs a non-empty list of objects with 'image' and 'caption'")
        check_split(split, str(path))
        for number, entry in enumerate(entries):
            where = f"{path}: [{number}]"
            if not isinstance(entry, dict):
                raise ValueError(f"{where}: must be an object, is {type(entry).__name__}")
            name = check_name(entry.get("image"), where)
            prefix, slash, inside = name.partition("/")
            if slash and prefix in ("train", "val", "test"):
                prefixes[prefix, split] += 1
                name = inside
            label = entry.get("label_name")
            if label is not None and not isinstance(label, str):
                raise ValueError(f"{where} ({name}): 'label_name' must be a text, is {label!r}")
            captions = entry.get("caption")
            captions = [captions] if isinstance(captions, str) else captions
            if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
                raise ValueError(f"{where} ({name}): 'caption' must be a text or a list of texts")
            for caption in captions or [None]:
                yield CaptionRow(name, split, caption, label, where)
