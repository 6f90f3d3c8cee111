"""What every annotation file comes down to: a list of images with a split and captions, and counts of its defects."""

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path, PurePosixPath, PureWindowsPath

from rsvlm.data.images import EXTENSIONS
from rsvlm.data.table import SPLITS

NAMES_SHOWN = 10  # file names that a report lists before it only counts


@dataclass(frozen=True)
class ListedImage:
    """One image as its annotation file lists it: file name, split, captions as released (blank ones are gone)."""

    name: str
    split: str
    captions: tuple[str, ...]
    label: str | None = None


@dataclass
class Listing:
    """The images of one annotation file and what was found in it. ``counts`` and ``notes`` go into the report."""

    images: list[ListedImage]
    counts: Counter = field(default_factory=Counter)
    notes: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class FoundImage:
    """A listed image and its file; ``name`` is the file's name inside the source's folder as found on disk."""

    listed: ListedImage
    name: str
    path: Path


def check_name(name: object, where: str) -> str:
    """A file name that stays inside its folder.

    Raises:
        ValueError: no text, blank, absolute, or one that climbs out with ``..``.
    """
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{where}: the file name must be a non-empty text, is {name!r}")
    posix = PurePosixPath(name)
    if (
        posix.is_absolute()
        or PureWindowsPath(name).is_absolute()
        or "\\" in name
        or "\0" in name
        or ".." in posix.parts
    ):
        raise ValueError(
            f"{where}: the file name {name!r} leads out of the images' folder; only names inside it are read"
        )
    return name


def check_split(split: object, where: str) -> str:
    """The split's name. ValueError names the place and the closest right name."""
    if split in SPLITS:
        return split
    close = get_close_matches(str(split).lower(), SPLITS, 1)
    raise ValueError(
        f"{where}: unknown split {split!r}"
        + (f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(SPLITS)}")
    )


def clean_captions(released: list[str], counts: Counter) -> tuple[str, ...]:
    """Captions without the blank ones (no letter or digit in them) and with single spaces; the counts say how many.

    Repeated captions are counted and kept: the benchmarks score against references as released.
    """
    kept = []
    for text in released:
        counts["captions_listed"] += 1
        if not any(character.isalnum() for character in text):
            counts["captions_blank_dropped"] += 1
            continue
        single = re.sub(r"\s+", " ", text).strip()
        counts["captions_with_extra_spaces"] += single != text
        counts["captions_not_ascii"] += not single.isascii()
        counts["captions_in_another_script"] += not single.isascii() and not _has_latin_letter(single)
        kept.append(single)
    counts["captions_repeated_within_image"] += len(kept) - len(set(kept))
    return tuple(kept)


def _has_latin_letter(text: str) -> bool:
    return any("LATIN" in unicodedata.name(character, "") for character in text if character.isalpha())


def differs_from_tokens(raw: str, tokens: list[str]) -> bool:
    """Whether the ``tokens`` of a sentence are other words than those of its ``raw`` text (punctuation aside)."""
    words = re.sub(r"[^\w\s'-]", " ", raw.lower()).split()
    return words != [token.lower() for token in tokens]


def find_images(images: list[ListedImage], folder: Path) -> tuple[list[FoundImage], list[str], dict[str, int]]:
    """Listed images with their files, names that have no file, and counts of other extensions and unlisted files.

    A file with the listed name is taken first; else one with the same name and another extension (annotations say
    ``1.tif`` where a copy holds ``1.jpg``).

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: two listed images lead to one file.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of images")
    on_disk = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.suffix.lower() in EXTENSIONS}
    by_stem: dict[str, list[str]] = {}
    for name in sorted(on_disk, key=lambda name: (EXTENSIONS.index(Path(name).suffix.lower()), name)):
        by_stem.setdefault(str(PurePosixPath(name).with_suffix("")), []).append(name)
    found, missing, taken = [], [], {}
    for image in images:
        name = PurePosixPath(image.name).as_posix()
        if name not in on_disk:
            name = by_stem.get(str(PurePosixPath(name).with_suffix("")), [None])[0]
        if name is None:
            missing.append(image.name)
            continue
        if name in taken:
            raise ValueError(
                f"{folder / name}: both {taken[name]!r} and {image.name!r} of the annotations lead to this one file"
            )
        taken[name] = image.name
        found.append(FoundImage(image, name, folder / name))
    other = sum(item.name != item.listed.name for item in found)
    return found, missing, {"images_with_another_extension": other, "files_not_listed": len(on_disk - set(taken))}
