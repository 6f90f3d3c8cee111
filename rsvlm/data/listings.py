"""What every annotation file comes down to: images with a split and captions, and counts of the file's defects.

All readers share what is here: the lines of a text file, numbered, UTF-8 and of a length that fits into memory;
captions gathered and cleaned; the listed images' files on disk; and what is official where copies mislabel or lack it:
RSICD's test set, known by its file names, and its classes.
"""

import dataclasses
import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from rsvlm.data.images import EXTENSIONS
from rsvlm.data.names import ALL
from rsvlm.data.names import check_split as check_split
from rsvlm.files import open_bytes, read_json, wrong_byte
from rsvlm.languages import normal_text
from rsvlm.safe_text import fault_in

LONGEST = 1_000_000  # bytes of a line; longer ones are no annotation but a damaged or a wrong file
NAMES_SHOWN = 10  # file names that a report lists before it only counts
# Official test set of RSICD: SHA-256 over its 1,093 file names without extension, sorted, joined by newlines.
RSICD_TEST = "ecfb7e5a7642318951e0efa81452a9f4bf88ab136d05c60e2a2b348261a81a25"
# Released beside RSICD's JSON (201528014227051/RSICD_optimal, txtclasses_rsicd.rar): a file a class, a name a line.
RSICD_CLASSES = "txtclasses_rsicd"


def check_there(path: Path) -> None:
    """FileNotFoundError where there is no such annotation file; says where sources come from."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such annotation file; see data/raw/README.md for where sources come from")


def read_annotations(path: Path) -> object:
    """The JSON of an annotation file.

    Raises:
        FileNotFoundError, ValueError: no such file, or not valid JSON; names it.
    """
    check_there(path)
    return read_json(path)


def read_lines(path: Path, longest: int = LONGEST) -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its end) of a UTF-8 file; a byte order mark at its start is skipped.

    A file whose name ends in ``.gz`` is decompressed on the way.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line is not UTF-8 (names the byte), holds a NUL byte, or is longer than ``longest`` bytes; names
            file and line.
    """
    check_there(path)
    with open_bytes(path) as file:
        number = 0
        while line := file.readline(longest + 1):
            number += 1
            if len(line) > longest:
                raise ValueError(
                    f"{path}: line {number} is longer than {longest:,} bytes: damaged, or not a file of this format"
                )
            if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise ValueError(
                    f"{path}: line 1 starts with the byte order mark of UTF-16, as Excel's 'Unicode Text' has it; save "
                    "it as UTF-8 ('CSV UTF-8' in Excel)"
                )
            if b"\0" in line:
                raise ValueError(f"{path}: line {number} holds a NUL byte: damaged, or not a text file")
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}: line {number} is not UTF-8 text: {wrong_byte(error)}; save it as UTF-8 ('CSV UTF-8' in "
                    "Excel)"
                ) from error


@dataclass(frozen=True)
class ListedImage:
    """One image as its annotation file lists it: file name, split, captions as released (blank ones are gone)."""

    name: str
    split: str
    captions: tuple[str, ...]
    label: str | None = None
    # (language, a translation of each caption or None), where columns beside the captions hold them
    translations: tuple[tuple[str, tuple[str | None, ...]], ...] = ()


@dataclass
class Listing:
    """The images of one annotation file and what was found in it. ``counts`` and ``notes`` go into the report."""

    images: list[ListedImage] = field(default_factory=list)
    counts: Counter = field(default_factory=Counter)
    notes: dict[str, object] = field(default_factory=dict)
    translated: dict[str, Counter] = field(default_factory=dict)  # language -> counts of its columns' cells
    # Names without an image, where the annotation files hold the images (rsvlm.data.packed); None: they are files.
    missing: frozenset[str] | None = None


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
        ValueError: a caption with control characters, with line breaks where spaces are kept as they are, or of spaces
            only where blank captions are.
    """
    kept = []
    for text in released:
        counts["captions_listed"] += 1
        fault = fault_in(text, breaks="extra_spaces" in fixes)
        if fault:
            mend = "; the fix 'extra_spaces' makes a space of it" if fault.startswith("a line break") else ""
            raise ValueError(f"{where}: the caption {text[:60]!r} holds {fault}; take it out of the file{mend}")
        if not has_words(text):
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
            letters = (character for character in single if character.isalpha())
            counts["captions_in_another_script"] += not any("LATIN" in unicodedata.name(one, "") for one in letters)
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
    translations: tuple[tuple[str, str], ...] = ()  # (language, the caption's translation, "" for none), of columns


def gather_captions(rows: Iterable[CaptionRow], fixes: frozenset[str] = ALL) -> Listing:
    """The listing of a file with a row a caption: captions by image, images in the order of their first row.

    Raises:
        ValueError: an image with two splits or two classes, names both places; a class that is no text of one line; a
            caption as ``clean_captions``, a translation as ``check_encoding``.
    """
    first: dict[str, CaptionRow] = {}
    released: dict[str, list[CaptionRow]] = {}
    for row in rows:
        known = first.setdefault(row.name, row)
        for what, value, before in (("split", row.split, known.split), ("class", row.label, known.label)):
            if value != before:
                raise ValueError(f"{row.where}: {row.name!r} has the {what} {value!r}, but {before!r} at {known.where}")
        own = released.setdefault(row.name, [])
        if row.caption is not None:
            own.append(row)
    listing = Listing()
    for name, row in first.items():
        if row.label and (fault := fault_in(row.label)):
            raise ValueError(
                f"{row.where} ({name}): the class {row.label[:60]!r} holds {fault}; take it out of the file"
            )
        texts = [one.caption for one in released[name]]
        captions = clean_captions(texts, listing.counts, fixes, f"{row.where} ({name})")
        kept = [one for one in released[name] if has_words(one.caption) or "blank_captions" not in fixes]
        translations = tuple(_translations(kept, listing.translated))
        listing.images.append(ListedImage(name, row.split, captions, row.label, translations))
    note_splits(listing)
    return listing


def _translations(
    rows: list[CaptionRow], translated: dict[str, Counter]
) -> Iterator[tuple[str, tuple[str | None, ...]]]:
    """(language, a text or None for each caption) of one image's captions; what was met is added to the counts:

    ``cells``, ``cells_without_translation``, ``cells_in_another_normal_form`` (composed), ``cells_doubled`` (the same
    caption and translation again) and ``cells_doubled_with_another_text`` (both are kept).
    """
    for language in dict.fromkeys(language for row in rows for language, _ in row.translations):
        counts, found = translated.setdefault(language, Counter()), []
        seen: dict[str, set[str]] = {}
        for row in rows:
            text = dict(row.translations).get(language, "")
            check_encoding(text, f"{row.where} ({row.name}): {language}")
            counts["cells"] += 1
            counts["cells_in_another_normal_form"] += not unicodedata.is_normalized("NFC", text)
            counts["cells_without_translation"] += not has_words(text)
            found.append(normal_text(text) if has_words(text) else None)
            before = seen.setdefault(normal_text(row.caption), set())
            if found[-1] is not None:
                counts["cells_doubled"] += found[-1] in before
                counts["cells_doubled_with_another_text"] += bool(before) and found[-1] not in before
                before.add(found[-1])
        yield language, tuple(found)


def has_words(text: str) -> bool:
    """Whether a letter or a digit stands in a text."""
    return any(map(str.isalnum, text))


def check_encoding(text: str, where: str) -> None:
    """ValueError where a text was read in a wrong encoding and then saved as UTF-8: ``Ã©`` for ``é``."""
    if "\N{REPLACEMENT CHARACTER}" in text:
        raise ValueError(
            f"{where}: holds the replacement character (U+FFFD): letters were lost when the file was read in a wrong "
            "encoding; go back to the file it was made from"
        )
    for encoding in () if text.isascii() else ("cp1252", "latin-1"):
        try:
            meant = text.encode(encoding).decode("utf-8")
        except UnicodeError:
            continue
        raise ValueError(
            f"{where}: {text[:60]!r} was UTF-8 that something read as {encoding}: it means {meant[:60]!r}; save the "
            "file it was made from as UTF-8"
        )


def note_splits(listing: Listing) -> None:
    """Write into the notes how many images each split has, as listed; ``splits_read`` may be changed by a fix later."""
    listing.notes["splits_listed"] = dict(Counter(image.split for image in listing.images))
    listing.notes["splits_read"] = dict(listing.notes["splits_listed"])


def note_once(seen: dict[tuple[str, str], str], what: str, key: object, place: str, where: str) -> None:
    """Note the place of a name or id (None: there is none). ValueError where it stood at another place before."""
    if key is None:
        return
    if (what, str(key)) in seen:
        raise ValueError(f"{where}: the {what} {key!r} is already at {seen[what, str(key)]}; remove one of the two")
    seen[what, str(key)] = place


def find_images(
    images: list[ListedImage], folder: Path, fixes: frozenset[str] = ALL
) -> tuple[list[FoundImage], list[str], dict[str, int]]:
    """Listed images with their files, names that have no file, and counts of other names and unlisted files.

    A file with the listed name is taken first; else, by the fix ``other_unicode_form``, one whose name is the same text (a
    Mac writes é as e and an accent, most annotations as one character), which holds for what follows, too; else, by the
    fix ``other_extension``, one with the same name and another extension (annotations say ``1.tif`` where a copy holds ``1.jpg``); else, by the fix ``other_folder``, the one file
    of that name in any folder that no other image is listed for (``airplane_001.jpg`` where a copy holds
    ``airplane/airplane_001.jpg``), unless the listed folder exists: then the file is missing from it.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: two listed images lead to one file, or one image to two files; names both.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of images")
    on_disk = _image_files(folder)
    form = one_form if "other_unicode_form" in fixes else str
    by_form: dict[str, str] = {}
    by_stem: dict[str, str] = {}
    for name in sorted(on_disk, key=lambda name: (EXTENSIONS.index(os.path.splitext(name)[1].lower()), name)):
        by_form.setdefault(form(name), name)
        if "other_extension" in fixes:
            by_stem.setdefault(os.path.splitext(form(name))[0], name)
    names: list[str | None] = []
    for image in images:
        name = PurePosixPath(image.name).as_posix()
        found = by_form.get(form(name)) or by_stem.get(os.path.splitext(form(name))[0])
        names.append(name if name in on_disk else found)
    if "other_folder" in fixes and None in names:
        elsewhere = _by_base_name(on_disk - set(names), form, loose="other_extension" in fixes)
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
    counts = {
        "images_with_another_extension": sum(name.suffix != listed.suffix for name, listed in pairs),
        "images_in_another_folder": sum(form(str(name.parent)) != form(str(listed.parent)) for name, listed in pairs),
        "images_in_another_unicode_form": sum(
            name.stem != listed.stem
            or name.parent != listed.parent
            and one_form(str(name.parent)) == one_form(str(listed.parent))
            for name, listed in pairs
        ),
        "files_not_listed": len(on_disk - set(taken)),
    }
    return found, missing, counts


def one_form(name: str) -> str:
    """A name in Unicode's composed form (NFC), in which equal texts are equal."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _by_base_name(files: set[str], form: Callable[[str], str], loose: bool) -> Callable[[str, Path], str | None]:
    """A search for the one of some files that has a listed image's name, in any folder; ``loose``: and extension."""
    whole: dict[str, list[str]] = {}
    stems: dict[str, list[str]] = {}
    for file in sorted(files):
        whole.setdefault(form(PurePosixPath(file).name), []).append(file)
        stems.setdefault(form(PurePosixPath(file).stem), []).append(file)

    def search(listed: str, folder: Path) -> str | None:
        name = PurePosixPath(listed)
        if name.parent != PurePosixPath(".") and (folder / name.parent).is_dir():
            return None
        same = whole.get(form(name.name)) or (stems.get(form(name.stem), []) if loose else [])
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


def take_splits(listing: Listing, take: Mapping[str, str], where: str) -> None:
    """Keep the images of some splits under other names, and drop the rest; the listing is changed in place.

    Args:
        take: split of the files -> split here.
        where: named in errors.

    Raises:
        ValueError: the files have no image of such a split.
    """
    read = listing.notes["splits_read"]
    for split in take:
        if not read.get(split):
            raise ValueError(f"{where}: the files have no image of the split {split!r}, but {read}")
    listing.images = [
        dataclasses.replace(image, split=take[image.split]) for image in listing.images if image.split in take
    ]
    listing.notes["splits_read"] = dict(Counter(image.split for image in listing.images))


def _fingerprint_of_split(listing: Listing, split: str) -> str:
    """SHA-256 over the sorted file names of a split, without extensions."""
    stems = sorted(PurePosixPath(image.name).stem for image in listing.images if image.split == split)
    return hashlib.sha256("\n".join(stems).encode()).hexdigest()
