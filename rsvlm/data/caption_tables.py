"""Captions in tables: CSV with any of four separators, JSON Lines, a JSON list, each also as ``.gz``; and Parquet.

A row names an image and one caption (long form, several rows an image) or several: in columns ``caption_1``,
``caption_2``, ... (wide form) or, in JSON and Parquet, in a list. Columns are known by the names in use (IMAGES,
CAPTIONS, SPLITS_IN, CLASSES below), or a source names them. Columns of translations are always named by the source, one beside
each column of captions: the translation of a caption stands in its row, that of a list's third caption is the third of a list. So RemoteCLIP's ``Ret-3.csv``, RSITMD's and RSICD's
retrieval JSON, and what people save from a spreadsheet are read; the listing's note ``read_as`` says what was taken for
what. ``read_records`` is below every table of captions that is read here, a study's sources as what is to be scored.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rsvlm.data.listings import CaptionRow, Listing, check_there, gather_captions, read_annotations, read_lines
from rsvlm.data.names import ALL, SPLITS, check_name, check_split
from rsvlm.data.packed import open_parquet, read_columns
from rsvlm.files import RepeatedKey, parse_json
from rsvlm.safe_text import from_cell
from rsvlm.settings import closest_name

IMAGES = ("filename", "filepath", "file_name", "image", "image_path", "path")
CAPTIONS = ("caption", "captions", "title", "text", "sentence", "sentences", "description", "raw")  # and numbered ones
SPLITS_IN = ("split", "subset", "partition", "set")
CLASSES = ("label_name", "category", "class_name", "class", "scene", "label")  # the first that a table has
SPLIT_WORDS = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
CSV, LINES, LIST, PARQUET = (".csv", ".tsv", ".tab", ".txt"), (".jsonl", ".ndjson"), (".json",), (".parquet",)
KINDS = (*CSV, *LINES, *LIST, *PARQUET)
LIST_AS_TEXT = re.compile(r"\s*\[\s*(['\"]).*\1\s*\]\s*", re.DOTALL)
NUMBERED = re.compile(r"(.+?)[ _.-]?\d+")
Key = int | str  # of a column: its number in CSV, where names may repeat, else its name
Names = dict[Key, str]


@dataclass(frozen=True)
class Columns:
    """Names of a table's columns where they are not the usual ones; None finds them."""

    split: str | None = None
    image: str | None = None
    captions: tuple[str, ...] | None = None
    label: str | None = None
    translations: tuple[tuple[str, tuple[str, ...]], ...] = ()  # (language, a column for each one of captions)


@dataclass(frozen=True)
class Places:
    """In which columns a row's parts are."""

    image: Key
    captions: tuple[Key, ...]
    split: Key | None = None
    label: Key | None = None
    translations: tuple[tuple[str, tuple[Key, ...]], ...] = ()  # (language, beside each of the captions)


def kind_of(path: Path) -> str:
    """How a table's name ends, in lower case and without ``.gz``.

    Raises:
        ValueError: it is no table that is read; says which are.
    """
    kind = Path(path.name.removesuffix(".gz")).suffix.lower()
    if kind not in KINDS:
        raise ValueError(
            f"{path}: no table that is read: needs one of {', '.join(KINDS)}, also with .gz behind it; a "
            "spreadsheet is saved as 'CSV UTF-8'"
        )
    return kind


def read_records(
    path: Path, find: Callable[[Names, str], Places], content: object = None
) -> tuple[str, Places, Iterator[tuple[str, Mapping]]]:
    """What was taken for what, in words; where a row's parts are; and (file and line, column -> value) of each row.

    Args:
        find: takes the columns' names and the place for messages; its ValueError says which column is missing.
        content: of a JSON file, where it was read already.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another kind of file, not whole, or no row; names file and line or entry.
    """
    kind = kind_of(path)
    if kind in CSV:
        how, names, places, rows = _csv_records(path, find)
    else:
        check_there(path)
        if kind in LIST:
            content = read_annotations(path) if content is None else content
            content = content if isinstance(content, list) else []
            how, entries = "a JSON list", [(f"{path}: [{number}]", entry) for number, entry in enumerate(content)]
        elif kind in LINES:
            how, entries = "JSON lines", list(_json_lines(path))
        else:
            with open_parquet(path) as file:
                groups = (read_columns(file, path, group, None).to_pylist() for group in range(file.num_row_groups))
                listed = [row for rows in groups for row in rows]
            how = "Parquet"
            entries = [
                (f"{path}: row {number}", {key: None if value != value else value for key, value in row.items()})  # NaN
                for number, row in enumerate(listed, start=1)
            ]
        if not entries:
            raise ValueError(f"{path}: needs a non-empty list of objects with 'image' and 'caption'")
        names = {}
        for where, entry in entries:
            if not isinstance(entry, dict):
                raise ValueError(f"{where}: must be an object, is {type(entry).__name__}")
            names |= {str(key): str(key) for key in entry}
        places, rows = find(names, str(path)), iter(entries)
    parts = [f"images from {names[places.image]!r}"]
    parts += [f"captions from {', '.join(repr(names[place]) for place in places.captions)}"]
    parts += [f"splits from {names[places.split]!r}"] if places.split is not None else []
    parts += [f"classes from {names[places.label]!r}"] if places.label is not None else []
    parts += [f"{code} from {', '.join(repr(names[place]) for place in own)}" for code, own in places.translations]
    return f"{how}; {', '.join(parts)}", places, rows


def _csv_records(
    path: Path, find: Callable[[Names, str], Places]
) -> tuple[str, Names, Places, Iterator[tuple[str, Mapping]]]:
    """As ``read_records``, of a CSV file with double quotes; the apostrophe before what would be a formula is left out.

    The separator is the one under which the first line names the columns that a table needs; it is not guessed from
    frequencies: captions hold commas and semicolons.
    """
    lines = read_lines(path)
    first, head = next(lines, (0, ""))
    if re.fullmatch(r"(?i)sep=.", head):  # Excel's own hint
        first, head = next(lines, (0, ""))
    where, found, refused = f"{path}: line {max(first, 1)}", [], []
    for separator in SEPARATORS:
        try:
            fields = next(csv.reader([head], delimiter=separator, strict=True), [])
            names = {number: from_cell(name.strip()) for number, name in enumerate(fields)}
            found.append((len(names), separator, names, find(names, where)))
        except csv.Error:
            continue
        except ValueError as error:
            refused.append((len(names), error))
    if not found:
        raise max(refused, key=lambda pair: pair[0])[1] if refused else ValueError(f"{where}: not CSV: {head[:80]!r}")
    _, separator, names, places = max(found, key=lambda one: one[0])

    def rows() -> Iterator[tuple[str, Mapping]]:
        last = 0

        def texts() -> Iterator[str]:
            nonlocal last
            for last, text in read_lines(path):  # noqa: B007 - told where the reading stops
                yield text + "\n"

        empty = True
        try:
            for fields in csv.reader(texts(), delimiter=separator, strict=True):
                if last <= first or not any(fields):
                    continue
                empty = False
                if len(fields) != len(names):
                    raise ValueError(
                        f"{path}: line {last}: {len(fields)} fields, but the first line names {len(names)} columns"
                    )
                yield f"{path}: line {last}", dict(enumerate(map(from_cell, fields)))
        except csv.Error as error:
            raise ValueError(f"{path}: line {last}: not CSV: {error}") from error
        if empty:
            raise ValueError(f"{path}: no row below the first line; is the file cut off?")

    return f"fields between {SEPARATORS[separator]}", names, places, rows()


def _json_lines(path: Path) -> Iterator[tuple[str, object]]:
    for number, line in read_lines(path):
        if line.strip():
            try:
                yield f"{path}: line {number}", parse_json(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path}: line {number} is not valid JSON: column {error.colno}: {error.msg}"
                ) from error
            except RepeatedKey as error:
                raise ValueError(f"{path}: line {number}: {error}") from error


def read_caption_table(
    files: Mapping[str, Path] | Path, fixes: frozenset[str] = ALL, columns: Columns = Columns()
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
        taken[path.name], places, records = read_records(
            path, lambda names, where, split=split: find_places(names, columns, split is None, where)
        )
        for where, record in records:
            yield from captions_of(where, places, record, split, counts)


def captions_of(
    where: str, places: Places, record: Mapping, split: str | None, counts: Counter
) -> Iterator[CaptionRow]:
    """The captions of one row; None for one that only names its image.

    Args:
        where: file and line, for error messages.
        split: the file's; None where a column tells it.
        counts: how many caption cells were empty is added.

    Raises:
        ValueError: a wrong type or split, or a name that leads out of the folder.
    """
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
    texts: list[tuple[str | None, tuple[tuple[str, str], ...]]] = []
    for number, place in enumerate(places.captions):
        value = _value(record, place)
        own = []
        if isinstance(value, list) and all(isinstance(text, str) for text in value):
            own = value
        elif isinstance(value, str):
            if len(places.captions) > 1 and not value.strip():
                counts["caption_cells_empty"] += 1
            elif LIST_AS_TEXT.fullmatch(value):
                raise ValueError(
                    f"{where} ({name}): this caption is a list written as text: {value[:60]!r}; give a row a caption, "
                    "columns caption_1, caption_2, ..., or JSON lines"
                )
            else:
                own = [value]
        elif value is not None or len(places.captions) == 1:
            raise ValueError(f"{where} ({name}): {place!r} must be a text or a list of texts, is {str(value)[:60]!r}")
        beside = [
            [
                (language, text)
                for text in _translations_of(record, columns[number], len(own), f"{where} ({name}): {language}")
            ]
            for language, columns in places.translations
        ]
        texts += zip(own, zip(*beside)) if beside else [(text, ()) for text in own]
    for text, translations in texts or [(None, ())]:
        yield CaptionRow(name, split or told, text, (label or "").strip() or None, where, translations)


def _value(record: Mapping, place: Key) -> object:
    value = record.get(place)
    return value.tolist() if hasattr(value, "tolist") else value  # Parquet's lists


def _translations_of(record: Mapping, place: Key, captions: int, where: str) -> list[str]:
    """The translations of a cell's captions, as many; "" for one that has none."""
    value = _value(record, place)
    found = value if isinstance(value, list) else [] if value is None or value == "" else [value]
    found = ["" if text is None else text for text in found]
    if not all(isinstance(text, str) for text in found):
        raise ValueError(f"{where}: a translation must be a text, a list of texts or empty, is {str(value)[:60]!r}")
    if not any(map(str.strip, found)):
        return [""] * captions
    if len(found) != captions:
        raise ValueError(
            f"{where}: {len(found)} translations for {captions} captions; give each caption its own, in their order, and an "
            "empty text where one has none"
        )
    return found


def find_places(names: Names, columns: Columns, needs_split: bool, where: str) -> Places:
    """Where the parts of a row are among the columns.

    Raises:
        ValueError: none, or several that mean the same; says which key of the source names the right one.
    """
    low = {place: name.strip().lower() for place, name in names.items()}

    def named(wanted: str, key: str) -> Key:
        places = [place for place, name in low.items() if name == wanted.strip().lower()]
        if len(places) != 1:
            raise ValueError(
                f"{where}: {key}: {'several columns are' if places else 'no column is'} named {wanted!r}"
                f"{closest_name(wanted, names.values())}"
            )
        return places[0]

    def usual(known: tuple[str, ...], key: str) -> Key:
        places = [place for place, name in low.items() if name in known]
        if len(places) != 1:
            raise ValueError(
                f"{where}: needs exactly one column named {', '.join(known)}; has {', '.join(names.values())[:200]}; "
                f"the source's key {key!r} names another"
            )
        return places[0]

    image = named(columns.image, "image_column") if columns.image else usual(IMAGES, "image_column")
    if columns.captions:
        captions = tuple(named(name, "caption_columns") for name in columns.captions)
    else:
        stems: dict[str, list[Key]] = {}
        for place, name in low.items():
            match = NUMBERED.fullmatch(name)
            stem = name if name in CAPTIONS else match[1] if match else ""
            if stem in CAPTIONS:
                stems.setdefault(stem, []).append(place)
        if len(stems) != 1:
            raise ValueError(
                f"{where}: needs exactly one column named {', '.join(CAPTIONS)} (or several of one name, numbered); "
                f"has {', '.join(names.values())[:200]}; the source's key 'caption_columns' lists others"
            )
        captions = tuple(next(iter(stems.values())))
    translations = []
    for language, own in columns.translations:
        if len(own) != len(captions):
            has = ", ".join(names[place] for place in captions)
            raise ValueError(
                f"{where}: translations: {language}: {len(own)} columns for {len(captions)} of captions ({has}); name one for "
                "each, in their order"
            )
        translations.append((language, tuple(named(name, f"translations: {language}") for name in own)))
    beside = tuple(translations)
    of_split = [place for place, name in low.items() if name == "split"]
    split = of_split[0] if len(of_split) == 1 else None  # the file's own word against the source's
    if columns.split:
        split = named(columns.split, "split_column")
    elif needs_split:
        split = usual(SPLITS_IN, "split_column")
    if columns.label:
        return Places(image, captions, split, named(columns.label, "label_column"), beside)
    values = list(low.values())
    for name in CLASSES:
        place = next((place for place, known in low.items() if known == name), None)
        if values.count(name) == 1 and place not in (image, split):
            return Places(image, captions, split, place, beside)
    return Places(image, captions, split, translations=beside)
