"""Which key of other people's files is which image of a study's table."""

import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pandas as pd

from rsvlm.data.catalogue import KNOWN
from rsvlm.data.images import EXTENSIONS, check_file
from rsvlm.data.listings import one_form
from rsvlm.data.recipes import split_reading
from rsvlm.files import fingerprint_file

SHA256 = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True)
class Matches:
    """Which key is which image, and how they were matched: "image id", "file name" or "SHA-256"."""

    matched: dict[Hashable, str]  # key -> image_id, one to one
    missing: list[str]  # image_ids of the table without a key
    unknown: list[Hashable]  # keys that are no image of the table
    how: str


def match_images(keys: Iterable[Hashable], table: pd.DataFrame) -> Matches:
    """Keys of a foreign file as images of a table, all in one way: that which finds most images, of equals the first.

    - image id: the key is an ``image_id``;
    - file name: the key's last part is that of ``image_id`` or ``path``, with or without the extension of an image, a
      number with or without leading zeros. Where a folder in the key names a source (``/data/UCM/imgs/1.tif``), only
      that source's images count; other folders decide between its images of one name;
    - SHA-256: the key is that of the image file's bytes, tried only where a key has 64 hexadecimal digits.

    Args:
        table: with image_id, source and path.

    Raises:
        FileNotFoundError, ImageError: an image file cannot be read for its SHA-256.
        ValueError: a key fits several images, several keys one image, or no key fits; names them.
    """
    texts = {key: str(int(key) if isinstance(key, float) and key.is_integer() else key) for key in keys}
    ways: dict[str, dict[str, tuple[str, ...]]] = {}
    for how, find in (("image id", _by_id), ("file name", _by_name), ("SHA-256", _by_hash)):
        found = find(set(texts.values()), table)
        ways[how] = {text: tuple(images) for text, images in found.items() if images}
        if all(text in ways[how] for text in texts.values()) or len(set(ways[how].values())) == len(table):
            break
    how = max(ways, key=lambda how: len(set(ways[how].values())))
    if not ways[how]:
        raise ValueError(
            f"none of the keys is an image of the table: {len(texts)} keys{such_as(texts)}; {len(table)} images"
            f"{such_as(table['image_id'])}; keys are image ids, file names or SHA-256 of the image files"
        )
    matched: dict[Hashable, str] = {}
    key_of: dict[str, Hashable] = {}
    for key, text in texts.items():
        images = ways[how].get(text, ())
        if len(images) > 1:
            raise ValueError(
                f"{key!r} may be {images[0]!r} or {images[1]!r} (by {how}); give image ids, or source and file name"
            )
        for image_id in images:
            if image_id in key_of:
                raise ValueError(f"{key_of[image_id]!r} and {key!r} are both the image {image_id!r} (by {how})")
            matched[key], key_of[image_id] = image_id, key
    missing = [image_id for image_id in table["image_id"] if image_id not in key_of]
    return Matches(matched, missing, [key for key in texts if key not in matched], how)


def such_as(names: Iterable[Hashable]) -> str:
    """The first three names, to go on an error's sentence; empty without any."""
    few = ", ".join(repr(name) for name in list(names)[:3])
    return few and f", such as {few}"


def _by_id(texts: set[str], table: pd.DataFrame) -> dict[str, list[str]]:
    return {text: [text] for text in texts & set(table["image_id"])}


def _by_hash(texts: set[str], table: pd.DataFrame) -> dict[str, list[str]]:
    if not any(SHA256.fullmatch(text) for text in texts):
        return {}
    holders: dict[str, list[str]] = defaultdict(list)
    for image_id, path in zip(table["image_id"], table["path"]):
        check_file(Path(path))
        holders[fingerprint_file(split_reading(Path(path))[0])].append(image_id)
    return {text: holders.get(text.lower(), []) for text in texts}


def _by_name(texts: set[str], table: pd.DataFrame) -> dict[str, list[str]]:
    """Text -> the images that fit it best; an image id stands for itself."""
    ids, sources = set(table["image_id"]), {*KNOWN, *table["source"]}
    holders: dict[str, dict[str, list[str]]] = defaultdict(dict)  # loosest form -> image_id -> [source, source in path]
    for image_id, source, path in zip(table["image_id"], table["source"], table["path"]):
        path = str(split_reading(Path(path))[0])
        for place in (image_id, path):
            holders[_forms(place)[-1]][image_id] = [source, _named(_parts(path)[:-1], sources)]
    found = {}
    for text in texts:
        named = _named(_parts(text)[:-1], sources)
        fitting = {
            image_id: own
            for image_id, (own, in_path) in holders.get(_forms(text)[-1], {}).items()
            if named is None or named == in_path or begins_with(own, named)
        }
        best = _highest(fitting, lambda image_id, text=text: _common_folders(text, image_id))
        if len({fitting[image_id] for image_id in best}) == 1:  # of two sources either may have another extension here
            best = _highest(best, lambda image_id, text=text: sum(map(str.__eq__, _forms(text), _forms(image_id))))
        found[text] = [text] if text in ids else sorted(best)
    return found


def _highest(names: Iterable[str], value: Callable[[str], int]) -> list[str]:
    """The names of the highest value."""
    values = {name: value(name) for name in names}
    return [name for name, own in values.items() if own == max(values.values())]


def _parts(place: str) -> list[str]:
    """Folders and file name in a path of any system."""
    return place.replace("\\", "/").split("/")


def _forms(place: str) -> tuple[str, ...]:
    """A path's file name from strict to loose: as it is, without extension, in lower case and one Unicode form, a number
    without zeros."""
    name = _parts(place)[-1]
    stem, _, ending = name.rpartition(".")
    stem = stem if stem and f".{ending.lower()}" in EXTENSIONS else name
    low = one_form(stem).casefold()
    return name, stem, low, (low.lstrip("0") or "0") if low.isdecimal() else low


@lru_cache(maxsize=100_000)
def begins_with(name: str, source: str) -> bool:
    """Whether a name's first words, of letters and digits, are a source: ``UCM-Captions`` begins with ``ucm``."""
    words, start = (re.findall(r"[^\W_]+", one.casefold()) for one in (name, source))
    return bool(start) and words[: len(start)] == start


def _named(folders: list[str], sources: set[str]) -> str | None:
    """The source that the deepest folder of those which name one begins with, the longest; else None."""
    for folder in reversed(folders):
        fitting = [source for source in sources if begins_with(folder, source)]
        if fitting:
            return max(fitting, key=lambda source: (len(source), source))
    return None


def _common_folders(text: str, image_id: str) -> int:
    """How many folders are the same from the file name upwards."""
    count = 0
    for one, other in zip(_parts(text.casefold())[-2::-1], _parts(image_id.casefold())[-2::-1]):
        if one != other:
            break
        count += 1
    return count
