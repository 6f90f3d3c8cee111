"""Readers of captions in tables and lines of text: a table of one's own, AMFMN's text, Sydney's text.

Reader of captions in a table: CSV with any of four separators, JSON lines or a JSON list, each also as ``.gz``.

A row names an image and one caption (long form, several rows an image) or several: in columns ``caption_1``,
``caption_2``, ... (wide form) or, in JSON, in a list. Columns are known by the names in use (IMAGES, CAPTIONS,
SPLITS_IN, CLASSES below), or a source names them. So RemoteCLIP's ``Ret-3.csv``, RSITMD's and RSICD's retrieval JSON,
and what people save from a spreadsheet are read; the listing's note ``read_as`` says what was taken for what.

Reader of AMFMN's precomputed text: ``PREFIX_caps.txt`` and ``PREFIX_filename.txt``, line by line.

Line n of the captions belongs to line n of the file names, which names each image five times; older copies name each
image once, and lines 5n to 5n + 4 of the captions belong to it.

Reader of Sydney-Captions' raw text: ``descriptions_SIDNEY.txt``, lines ``ID CAPTION``, and a list of files a split.

Line ``1 a residential area ...`` belongs to image ``1.tif``; ``filenames_train.txt`` and its kin hold a file name a
line.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rsvlm.data.listings import CaptionRow, Listing, gather_captions, read_csv_rows, read_lines
from rsvlm.data.names import ALL, SPLITS, check_name, check_split, closest_name
from rsvlm.files import read_json

IMAGES = ("filename", "filepath", "file_name", "image", "image_path", "path")
CAPTIONS = ("caption", "captions", "title", "text", "sentence", "sentences", "description", "raw")  # and numbered ones
SPLITS_IN = ("split", "subset", "partition", "set")
CLASSES = ("label_name", "category", "class_name", "class", "scene", "label")  # the first that a table has
SPLIT_WORDS = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
KINDS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".txt": "csv",
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "json",
}
LIST_AS_TEXT = re.compile(r"\s*\[\s*(['\"]).*\1\s*\]\s*", re.DOTALL)
NUMBERED = re.compile(r"(.+?)[ _.-]?\d+")


@dataclass(frozen=True)
class Columns:
    """Names of a table's columns where they are not the usual ones; None finds them."""

    split: str | None = None
    image: str | None = None
    captions: tuple[str, ...] | None = None
    label: str | None = None


@dataclass(frozen=True)
class Places:
    """Where a row's parts are: numbers of CSV columns, or keys of JSON objects."""

    image: object
    captions: tuple
    split: object | None
    label: object | None


def read_caption_table(
    files: Mapping[str, Path] | Path,
    fixes: frozenset[str] = ALL,
    columns: Columns = Columns(),
) -> Listing:
    """The images of one table with a column of splits, or of one table a split, in the order of their first row.

    Args:
        files: the table, or split -> table.
        columns: names of columns that are not the usual ones.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: no or several columns for one thing, a row with more or fewer fields, a wrong type, an unknown split
            or one that is not the file's, an image in two splits; names file and line or entry.
    """
    taken, counts = {}, Counter()
    listing = gather_captions(_rows(files, columns, taken, counts), fixes)
    listing.counts += counts
    listing.notes["read_as"] = taken
    return listing


def read_retrieval_json(files: Mapping[str, Path], fixes: frozenset[str] = ALL) -> Listing:
    """The images of RSITMD's and RSICD's retrieval JSON: one list of objects with ``image`` and ``caption`` a split.

    Training files hold a row a caption, test files a list of captions an image. Names start with the split
    (``train/bridge_942.tif``), the images lie in one folder without it; the count ``images_named_under_another_split``
    says how often another split stands there.

    Raises:
        FileNotFoundError, ValueError: as ``read_caption_table``.
    """
    misnamed: set[str] = set()

    def rows() -> Iterator[CaptionRow]:
        for row in _rows(files, Columns(image="image", captions=("caption",)), {}, Counter()):
            prefix, slash, inside = row.name.partition("/")
            if slash and prefix in SPLITS:
                if prefix != row.split:
                    misnamed.add(inside)
                row = CaptionRow(inside, row.split, row.caption, row.label, row.where)
            yield row

    listing = gather_captions(rows(), fixes)
    listing.counts["images_named_under_another_split"] = len(misnamed)
    return listing


def _rows(
    files: Mapping[str, Path] | Path, columns: Columns, taken: dict[str, str], counts: Counter
) -> Iterator[CaptionRow]:
    for split, path in files.items() if isinstance(files, Mapping) else [(None, files)]:
        if split is not None:
            check_split(split, str(path))
        kind = KINDS.get(Path(path.name.removesuffix(".gz")).suffix.lower())
        if kind is None:
            raise ValueError(
                f"{path}: no table that is read: needs one of {', '.join(KINDS)}, also with .gz behind it; a "
                "spreadsheet is saved as 'CSV UTF-8'"
            )
        records = _csv_records if kind == "csv" else _json_records
        for where, places, record in records(path, columns, split, taken):
            yield from _captions_of(where, places, record, split, counts)


def _captions_of(
    where: str, places: Places, record: Mapping, split: str | None, counts: Counter
) -> Iterator[CaptionRow]:
    """The captions of one row; None for one that only names its image."""
    name = check_name(record.get(places.image), where)
    told = str(record.get(places.split)).strip().lower() if places.split is not None else None
    told = SPLIT_WORDS.get(told, told)
    if split is None:
        check_split(told, f"{where} ({name})")
    elif told in SPLITS and told != split:
        raise ValueError(
            f"{where} ({name}): the column of splits says {told!r}, but the source gives this file for {split!r}; give "
            "the file alone, without a split, and its column holds"
        )
    label = record.get(places.label) if places.label is not None else None
    if isinstance(label, int) and not isinstance(label, bool) and places.label == "label":
        label = str(label)  # a class by its number
    if label is not None and not isinstance(label, str):
        raise ValueError(f"{where} ({name}): {places.label!r} must be a text, is {label!r}")
    texts = []
    for place in places.captions:
        value = record.get(place)
        if isinstance(value, list) and all(isinstance(text, str) for text in value):
            texts += value
        elif isinstance(value, str):
            if len(places.captions) > 1 and not value.strip():
                counts["caption_cells_empty"] += 1
            elif LIST_AS_TEXT.fullmatch(value):
                raise ValueError(
                    f"{where} ({name}): this caption is a list written as text: {value[:60]!r}; give a row a caption, "
                    "columns caption_1, caption_2, ..., or JSON lines"
                )
            else:
                texts.append(value)
        elif value is not None or len(places.captions) == 1:
            raise ValueError(f"{where} ({name}): {place!r} must be a text or a list of texts, is {str(value)[:60]!r}")
    for text in texts or [None]:
        yield CaptionRow(name, split or told, text, (label or "").strip() or None, where)


def _csv_records(path: Path, columns: Columns, split: str | None, taken: dict) -> Iterator[tuple[str, Places, dict]]:
    lines = read_lines(path)
    first, head = next(lines, (0, ""))
    if re.fullmatch(r"(?i)sep=.", head):  # Excel's own hint
        first, head = next(lines, (0, ""))
    separator, names, places = _separator_of(head, columns, split is None, f"{path}: line {max(first, 1)}")
    taken[path.name] = f"fields between {SEPARATORS[separator]}; {_told(places, names)}"
    empty = True
    for number, fields in read_csv_rows(path, separator):
        if number <= first or not any(fields):
            continue
        empty = False
        if len(fields) != len(names):
            raise ValueError(
                f"{path}: line {number}: {len(fields)} fields, but the first line names {len(names)} columns"
            )
        yield f"{path}: line {number}", places, dict(enumerate(fields))
    if empty:
        raise ValueError(f"{path}: no row below the first line; is the file cut off?")


def _separator_of(head: str, columns: Columns, needs_split: bool, where: str) -> tuple[str, list[str], Places]:
    """The separator under which the first line names the columns that a table needs, the names, and their places.

    Not a guess from frequencies: captions hold commas and semicolons.
    """
    found, refused = [], []
    for separator in SEPARATORS:
        try:
            names = [name.strip() for name in next(csv.reader([head], delimiter=separator, strict=True), [])]
            places = _places(names, range(len(names)), columns, needs_split, where)
        except csv.Error:
            continue
        except ValueError as error:
            refused.append((len(names), error))
        else:
            found.append((len(names), separator, names, places))
    if not found:
        raise max(refused, key=lambda pair: pair[0])[1] if refused else ValueError(f"{where}: not CSV: {head[:80]!r}")
    return max(found, key=lambda one: one[0])[1:]


def _json_records(path: Path, columns: Columns, split: str | None, taken: dict) -> Iterator[tuple[str, Places, dict]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such annotation file; see data/raw/README.md for where sources come from")
    listed = Path(path.name.removesuffix(".gz")).suffix.lower() == ".json"
    content = read_json(path) if listed else None
    entries = (
        [(f"{path}: [{number}]", entry) for number, entry in enumerate(content)] if isinstance(content, list) else []
    )
    entries = entries if listed else list(_json_lines(path))
    if not entries:
        raise ValueError(f"{path}: needs a non-empty list of objects with 'image' and 'caption'")
    names: dict[str, None] = {}
    for where, entry in entries:
        if not isinstance(entry, dict):
            raise ValueError(f"{where}: must be an object, is {type(entry).__name__}")
        names |= dict.fromkeys(entry)
    places = _places(list(names), list(names), columns, split is None, str(path))
    taken[path.name] = f"{'a JSON list' if listed else 'JSON lines'}; {_told(places, None)}"
    for where, entry in entries:
        yield where, places, entry


def _json_lines(path: Path) -> Iterator[tuple[str, object]]:
    for number, line in read_lines(path):
        if line.strip():
            try:
                yield f"{path}: line {number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path}: line {number} is not valid JSON: column {error.colno}: {error.msg}"
                ) from error


def _places(names: list[str], keys: list | range, columns: Columns, needs_split: bool, where: str) -> Places:
    """Where the parts of a row are among the columns.

    Raises:
        ValueError: none, or several that mean the same; says which key of the source names the right one.
    """
    low = [name.strip().lower() for name in names]

    def named(wanted: str, key: str) -> object:
        places = [place for place, name in zip(keys, low, strict=True) if name == wanted.strip().lower()]
        if len(places) != 1:
            raise ValueError(
                f"{where}: {key}: {'several columns are' if places else 'no column is'} named {wanted!r}"
                f"{closest_name(wanted, names)}"
            )
        return places[0]

    def usual(known: tuple[str, ...], key: str) -> object:
        places = [place for place, name in zip(keys, low, strict=True) if name in known]
        if len(places) != 1:
            raise ValueError(
                f"{where}: needs exactly one column named {', '.join(known)}; has {', '.join(names)[:200]}; the "
                f"source's key {key!r} names another"
            )
        return places[0]

    image = named(columns.image, "image_column") if columns.image else usual(IMAGES, "image_column")
    if columns.captions:
        captions = tuple(named(name, "caption_columns") for name in columns.captions)
    else:
        stems: dict[str, list] = {}
        for place, name in zip(keys, low, strict=True):
            match = NUMBERED.fullmatch(name)
            stem = name if name in CAPTIONS else match[1] if match else ""
            if stem in CAPTIONS:
                stems.setdefault(stem, []).append(place)
        if len(stems) != 1:
            raise ValueError(
                f"{where}: needs exactly one column named {', '.join(CAPTIONS)} (or several of one name, numbered); "
                f"has {', '.join(names)[:200]}; the source's key 'caption_columns' lists others"
            )
        captions = tuple(next(iter(stems.values())))
    split = label = None
    if columns.split:
        split = named(columns.split, "split_column")
    elif needs_split:
        split = usual(SPLITS_IN, "split_column")
    elif low.count("split") == 1:  # the file's own word against the source's
        split = keys[low.index("split")]
    if columns.label:
        label = named(columns.label, "label_column")
    else:
        found = [name for name in CLASSES if low.count(name) == 1 and keys[low.index(name)] not in (image, split)]
        label = keys[low.index(found[0])] if found else None
    return Places(image, captions, split, label)


def _told(places: Places, names: list[str] | None) -> str:
    """What was taken for what, for the report."""

    def name_of(place: object) -> str:
        return repr(place if names is None else names[place])

    parts = [f"images from {name_of(places.image)}", f"captions from {', '.join(map(name_of, places.captions))}"]
    parts += [f"splits from {name_of(places.split)}"] if places.split is not None else []
    parts += [f"classes from {name_of(places.label)}"] if places.label is not None else []
    return ", ".join(parts)


CAPTIONS_AN_IMAGE = 5


def read_precomputed(prefixes: dict[str, Path], fixes: frozenset[str] = ALL) -> Listing:
    """The images of a pair of text files a split.

    Args:
        prefixes: split -> path that ``_caps.txt`` and ``_filename.txt`` are put behind.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the two files have numbers of lines that do not fit, or a file name is blank; names file and line.
    """
    return gather_captions(_rows_precomputed(prefixes), fixes)


def _rows_precomputed(prefixes: dict[str, Path]) -> Iterator[CaptionRow]:
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
                f"{names_file.name}: as many are needed, or {CAPTIONS_AN_IMAGE} times as many; is one of them cut off?"
            )
        for (number, caption), (name_line, name) in zip(captions, names, strict=True):
            name = check_name(name.strip(), f"{names_file}: line {name_line}")
            yield CaptionRow(name, split, caption, None, f"{captions_file}: line {number}")


def read_sydney_text(descriptions: Path, lists: dict[str, Path], fixes: frozenset[str] = ALL) -> Listing:
    """The images of the split lists with the captions of the descriptions file.

    Args:
        descriptions: the text file of captions.
        lists: split -> text file with its file names.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a line without id or caption, an id that no list names, a name in two lists; names file and line.
    """
    return gather_captions(_rows_sydney_text(descriptions, lists), fixes)


def _rows_sydney_text(descriptions: Path, lists: dict[str, Path]) -> Iterator[CaptionRow]:
    named: dict[str, CaptionRow] = {}
    for split, path in lists.items():
        for number, line in read_lines(path):
            where = f"{path}: line {number}"
            if not line.strip():
                continue
            name = check_name(line.strip(), where)
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
            raise ValueError(
                f"{where}: no list names an image {key!r}: {', '.join(str(path) for path in lists.values())}"
            )
        image = named[key]
        yield CaptionRow(image.name, image.split, caption, None, where)
