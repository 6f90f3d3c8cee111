"""What every annotation file comes down to: a list of images with a split and captions, and counts of its defects."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from rsvlm.data.fixes import ALL
from rsvlm.data.images import EXTENSIONS
from rsvlm.data.names import check_split as check_split

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


def clean_captions(
    released: list[str], counts: Counter, fixes: frozenset[str] = ALL, where: str = "captions"
) -> tuple[str, ...]:
    """Captions without the blank ones (no letter or digit in them) and with single spaces; the counts say how many.

    Repeated captions are counted and kept: the benchmarks score against references as released.

    Args:
        fixes: ``blank_captions`` and ``extra_spaces`` are applied when they are in it.

    Raises:
        ValueError: a caption of spaces only, which no table can hold, while blank captions are to be kept.
    """
    kept = []
    for text in released:
        counts["captions_listed"] += 1
        if not any(character.isalnum() for character in text):
            if "blank_captions" in fixes:
                counts["captions_blank_dropped"] += 1
                continue
            if not text.strip():
                raise ValueError(f"{where}: a caption is empty; only the fix 'blank_captions' can read this file")
            counts["captions_blank_kept"] += 1
        single = " ".join(text.split())
        counts["captions_with_extra_spaces"] += single != text
        if not single.isascii():
            counts["captions_not_ascii"] += 1
            counts["captions_in_another_script"] += not _has_latin_letter(single)
        kept.append(single if "extra_spaces" in fixes else text)
    counts["captions_repeated_within_image"] += len(kept) - len(set(kept))
    return tuple(kept)


@dataclass(frozen=True)
class CaptionRow:
    """One caption of a file that gives captions one by one; None for an image that is only named."""

    name: str
    split: str
    caption: str | None
    label: str | None
    where: str  # file and line, for error messages


def gather_captions(rows: Iterable[CaptionRow], fixes: frozenset[str] = ALL) -> Listing:
    """The listing of a file with a row a caption: captions by image, images in the order of their first row.

    Raises:
        ValueError: an image with two splits or two classes; names both places.
    """
    first: dict[str, CaptionRow] = {}
    released: dict[str, list[str]] = {}
    for row in rows:
        known = first.setdefault(row.name, row)
        if (row.split, row.label) != (known.split, known.label):
            what = "split" if row.split != known.split else "class"
            raise ValueError(
                f"{row.where}: {row.name!r} has the {what} {getattr(row, 'split' if what == 'split' else 'label')!r}, "
                f"but {getattr(known, 'split' if what == 'split' else 'label')!r} at {known.where}"
            )
        texts = released.setdefault(row.name, [])
        if row.caption is not None:
            texts.append(row.caption)
    listing = Listing(images=[])
    for name, row in first.items():
        captions = clean_captions(released[name], listing.counts, fixes, f"{row.where} ({name})")
        listing.images.append(ListedImage(name, row.split, captions, row.label))
    note_splits(listing)
    return listing


def note_splits(listing: Listing) -> None:
    """Write into the notes how many images each split has, as listed; ``splits_read`` may be changed by a fix later."""
    listing.notes["splits_listed"] = dict(Counter(image.split for image in listing.images))
    listing.notes["splits_read"] = dict(listing.notes["splits_listed"])


def _has_latin_letter(text: str) -> bool:
    return any("LATIN" in unicodedata.name(character, "") for character in text if character.isalpha())


def differs_from_tokens(raw: str, tokens: list[str]) -> bool:
    """Whether the ``tokens`` of a sentence are other words than those of its ``raw`` text (punctuation aside)."""
    return _MARKS.sub(" ", raw.lower()).split() != [token.lower() for token in tokens]


_MARKS = re.compile(r"[^\w\s'-]")


def find_images(
    images: list[ListedImage], folder: Path, fixes: frozenset[str] = ALL
) -> tuple[list[FoundImage], list[str], dict[str, int]]:
    """Listed images with their files, names that have no file, and counts of other names and unlisted files.

    A file with the listed name is taken first; else, by the fix ``other_extension``, one with the same name and another
    extension (annotations say ``1.tif`` where a copy holds ``1.jpg``); else, by the fix ``other_folder``, the one file
    of that name in any folder that no other image is listed for (``airplane_001.jpg`` where a copy holds
    ``airplane/airplane_001.jpg``), unless the listed folder exists: then the file is missing from it.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: two listed images lead to one file, or one image to two files; names both.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of images")
    on_disk = _image_files(folder)
    by_stem: dict[str, str] = {}
    if "other_extension" in fixes:
        for name in sorted(on_disk, key=lambda name: (EXTENSIONS.index(os.path.splitext(name)[1].lower()), name)):
            by_stem.setdefault(os.path.splitext(name)[0], name)
    names: list[str | None] = []
    for image in images:
        name = PurePosixPath(image.name).as_posix()
        names.append(name if name in on_disk else by_stem.get(os.path.splitext(name)[0]))
    if "other_folder" in fixes and None in names:
        elsewhere = _by_base_name(on_disk - set(names), loose="other_extension" in fixes)
        names = [name or elsewhere(image.name, folder) for name, image in zip(names, images, strict=True)]
    found, missing, taken = [], [], {}
    for image, name in zip(images, names, strict=True):
        if name is None:
            missing.append(image.name)
            continue
        if name in taken:
            raise ValueError(
                f"{folder / name}: both {taken[name]!r} and {image.name!r} of the annotations lead to this one file"
            )
        taken[name] = image.name
        found.append(FoundImage(image, name, folder / name))
    pairs = [(PurePosixPath(item.name), PurePosixPath(item.listed.name)) for item in found]
    return (
        found,
        missing,
        {
            "images_with_another_extension": sum(name.suffix != listed.suffix for name, listed in pairs),
            "images_in_another_folder": sum(name.parent != listed.parent for name, listed in pairs),
            "files_not_listed": len(on_disk - set(taken)),
        },
    )


def _by_base_name(files: set[str], loose: bool) -> Callable[[str, Path], str | None]:
    """A search for the one of some files that has a listed image's name, in any folder; ``loose``: and extension."""
    whole: dict[str, list[str]] = {}
    stems: dict[str, list[str]] = {}
    for file in sorted(files):
        whole.setdefault(PurePosixPath(file).name, []).append(file)
        stems.setdefault(PurePosixPath(file).stem, []).append(file)

    def search(listed: str, folder: Path) -> str | None:
        name = PurePosixPath(listed)
        if name.parent != PurePosixPath(".") and (folder / name.parent).is_dir():
            return None
        same = whole.get(name.name) or (stems.get(name.stem, []) if loose else [])
        if len(same) > 1:
            raise ValueError(
                f"{folder}: {listed!r} of the annotations may be {same[0]!r} or {same[1]!r}; write the "
                "folder into the annotations, or take one of the two away"
            )
        return same[0] if same else None

    return search


def _image_files(folder: Path) -> set[str]:
    """Names of all image files below a folder, relative to it, with forward slashes."""
    names = set()
    for place, _, files in os.walk(folder):
        inside = os.path.relpath(place, folder).replace(os.sep, "/")
        prefix = "" if inside == "." else f"{inside}/"
        names.update(prefix + name for name in files if os.path.splitext(name)[1].lower() in EXTENSIONS)
    return names
