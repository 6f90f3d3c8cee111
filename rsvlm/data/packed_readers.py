"""Readers of data sets whose images lie inside files: WebDataset's tar shards, and data sets of Hugging Face on disk.

- WebDataset: members of one name up to the first dot are a sample, ``000123.jpg``, ``000123.txt``, ``000123.json``. Captions
  are the lines of the ``.txt`` or fields of the ``.json``.
- Hugging Face, Parquet as ``Dataset.to_parquet`` writes it and the hub keeps it: a row an image, its bytes in a column
  ``{bytes, path}`` or of plain bytes.
- Hugging Face, ``imagefolder``: image files, and beside them ``metadata.csv`` or ``metadata.jsonl`` with ``file_name``.

A file's split is the source's word (a place for each split), or stands in its name or in that of a folder
(``train-00000-of-00002.parquet``, ``validation/0000.tar``), or in a column. Nothing is unpacked, and no code of a data set
is run: scripts and pickles are not read.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from rsvlm.data.caption_tables import SPLIT_WORDS, Columns, Places, captions_of, find_places, read_records
from rsvlm.data.images import EXTENSIONS
from rsvlm.data.listings import LONGEST, CaptionRow, Listing, gather_captions
from rsvlm.data.names import SPLITS
from rsvlm.data.packed import BETWEEN, FILES, find_files, open_parquet, read_columns, read_group, scan_shard
from rsvlm.files import RepeatedKey, parse_json, wrong_byte
from rsvlm.settings import closest_name

KINDS = tuple(ending.removeprefix(".") for ending in EXTENSIONS)
NAME, TEXT = "::image", "::txt"  # keys of a sample's record that no field of a .json has
TELL_THE_SPLIT = (
    "name a place for each split (annotations: {train: 'shards/a-*.tar', test: shards/b.tar}), rename the files (train-..., "
    "val-..., test-...), or let the source's key 'split_column' say where it stands"
)
_SAMPLE = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)


def read_webdataset(
    places: Path | Mapping[str, Path], fixes: frozenset[str], columns: Columns
) -> tuple[Listing, Path, list[Path]]:
    """The images of tar shards, the folder that their names start from, and the shards.

    Args:
        places: shards, a folder of them or a pattern, or split -> such a place.
        columns: fields of the ``.json`` that hold captions (None: they are the lines of the ``.txt``), split and class.

    Raises:
        FileNotFoundError: there is no shard.
        ValueError: a shard as ``scan_shard`` says; two images or no split of a sample; a text that is none.
    """
    base, shards = _find_split_files(places, "webdataset")
    missing, counts = [], Counter()
    listing = gather_captions(_rows_of_shards(base, shards, columns, missing, counts), fixes)
    listing.counts.update(counts)
    listing.missing = frozenset(missing)
    return listing, base, [path for path, _ in shards]


def _rows_of_shards(
    base: Path, shards: list[tuple[Path, str | None]], columns: Columns, missing: list[str], counts: Counter
) -> Iterator[CaptionRow]:
    parts = Places(NAME, columns.captions or (TEXT,), columns.split, columns.label, columns.translations)
    beside = [field for _, own in columns.translations for field in own]
    fields = [
        field for field in (*(columns.captions or ()), columns.split, columns.label, *beside) if field is not None
    ]
    for path, split in shards:
        if split is None and columns.split is None:
            raise ValueError(f"{path}: its name tells no split; {TELL_THE_SPLIT}")
        places, samples = scan_shard(path), {}
        for member in places:
            match = _SAMPLE.fullmatch(member)
            if match:
                samples.setdefault(match[1], {}).setdefault(match[2].lower(), []).append(member)
        inside = path.relative_to(base).as_posix()
        with path.open("rb") as file:
            for key, members in samples.items():
                where = f"{path}{BETWEEN}{key}"
                images = [member for kind in KINDS for member in members.pop(kind, [])]
                texts, objects = members.pop("txt", []), members.pop("json", [])
                counts["members_of_other_kinds"] += sum(map(len, members.values()))
                for named in (images, texts, objects):
                    if len(named) > 1:
                        raise ValueError(f"{where}: one sample holds both {named[0]!r} and {named[1]!r}; take one out")
                if not (images or texts or objects):
                    continue
                name = f"{inside}{BETWEEN}{images[0] if images else key}"
                if not images:
                    missing.append(name)
                # A sample without its .txt or .json is an image without captions.
                record = dict.fromkeys(parts.captions, [])
                if fields and objects:
                    record |= _read_object(
                        _read_text(file, path, objects[0], places), f"{path}{BETWEEN}{objects[0]}", fields
                    )
                if texts and not columns.captions:
                    record[TEXT] = _read_text(file, path, texts[0], places).splitlines()
                yield from captions_of(where, parts, record | {NAME: name}, split, counts)


def _read_object(text: str, where: str, fields: list[str]) -> dict:
    """A sample's .json, in which every field is that the source names."""
    try:
        record = parse_json(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not valid JSON: line {error.lineno}: {error.msg}") from error
    except RepeatedKey as error:
        raise ValueError(f"{where}: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{where}: must be an object, is {type(record).__name__}")
    for field in fields:
        if field not in record:
            raise ValueError(f"{where}: has no field {field!r}{closest_name(field, record)}")
    return record


def _read_text(file: BinaryIO, path: Path, member: str, places: Mapping[str, tuple[int, int]]) -> str:
    where, (start, size) = f"{path}{BETWEEN}{member}", places[member]
    if size > LONGEST:
        raise ValueError(f"{where}: a text of {size:,} bytes, more than {LONGEST:,}: damaged, or no captions")
    file.seek(start)
    try:
        text = file.read(size).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 text: {wrong_byte(error)}") from error
    if "\0" in text:
        raise ValueError(f"{where}: holds a NUL byte: damaged, or not a text")
    return text


def read_hf_dataset(
    places: Path | Mapping[str, Path], fixes: frozenset[str], columns: Columns
) -> tuple[Listing, Path, list[Path]]:
    """The images of a Hugging Face data set on disk, the folder that their names start from, and the files read.

    The listing's ``missing`` is None for an ``imagefolder``: its images are files.

    Args:
        places: a Parquet file, the data set's folder or a pattern, or split -> such a place.
        columns: names that are not the usual ones; captions may be lists.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file is not whole or holds no or several columns for one thing, no split, both formats at once.
    """
    base, files = _find_split_files(places, "hf_dataset")
    arrow = [path for path, _ in files if path.suffix == ".arrow"]
    if arrow:
        raise ValueError(
            f"{arrow[0]}: written by Dataset.save_to_disk, and only Parquet is read: "
            'datasets.load_from_disk("IN")["train"].to_parquet("OUT/train.parquet"), a file for each split'
        )
    tables = [path for path, _ in files if path.stem == "metadata"]
    if tables and len(tables) < len(files):
        other = next(path for path, _ in files if path not in tables)
        raise ValueError(f"{tables[0]}: a table beside images, but {other} holds images itself; give one of the two")
    missing, counts, taken = [], Counter(), Counter()
    rows = (
        row
        for path, split in files
        for row in (
            _rows_of_table(base, path, split, columns, counts, taken)
            if tables
            else _rows_of_parquet(base, path, split, columns, missing, counts, taken)
        )
    )
    listing = gather_captions(rows, fixes)
    listing.counts.update(counts)
    listing.notes["read_as"] = {f"{count} file{'s' * (count > 1)}": what for what, count in taken.items()}
    listing.missing = None if tables else frozenset(missing)
    return listing, base, [path for path, _ in files]


def _rows_of_table(
    base: Path, path: Path, split: str | None, columns: Columns, counts: Counter, taken: Counter
) -> Iterator[CaptionRow]:
    """Of an ``imagefolder``: names start from the table's folder."""

    def find(names: Mapping, where: str) -> Places:
        return _find_columns(names, columns, split, where)

    folder = path.parent.relative_to(base)
    what, places, records = read_records(path, find)
    taken[what] += 1
    for where, record in records:
        name = record.get(places.image)
        name = (folder / name).as_posix() if isinstance(name, str) and name and name[0] != "/" else name
        yield from captions_of(where, places, {**record, places.image: name}, split, counts)


def _rows_of_parquet(
    base: Path, path: Path, split: str | None, columns: Columns, missing: list[str], counts: Counter, taken: Counter
) -> Iterator[CaptionRow]:
    with open_parquet(path) as file:
        schema = file.schema_arrow
        image = _image_column(schema, columns.image, path)
        names = {name: name for name in schema.names}
        places = _find_columns(names, replace(columns, image=image), split, str(path))
        beside = [column for _, own in places.translations for column in own]
        used = (*places.captions, places.split, places.label, *beside)
        parts = [*dict.fromkeys(one for one in used if one is not None)]
        captions = ", ".join(map(repr, places.captions))
        taken[f"Parquet; images from {image!r}, captions from {captions}"] += 1
        words = _class_names(schema, parts)
        digits, row = len(str(max(file.metadata.num_rows - 1, 0))), 0
        inside = path.relative_to(base).as_posix()
        for group in range(file.num_row_groups):
            without = _rows_without_image(file, path, image, group)
            for place, record in enumerate(read_columns(file, path, group, parts).to_pylist()):
                # The zeros put names in the order of the rows, in which a Parquet file is read fast.
                name = f"{inside}{BETWEEN}{image}/{row:0{digits}}"
                if place in without:
                    missing.append(name)
                for part, known in words.items():
                    number = record[part]
                    if isinstance(number, int):
                        record[part] = known[number] if 0 <= number < len(known) else None
                yield from captions_of(f"{path}: row {row}", places, record | {image: name}, split, counts)
                row += 1


def _image_column(schema: object, named: str | None, path: Path) -> str:
    """The one column of images' bytes, or the one of that name."""
    kinds = {field.name: str(field.type) for field in schema}
    holding = [
        name
        for name, kind in kinds.items()
        if kind in ("binary", "large_binary", "binary_view") or re.match(r"struct<.*\bbytes: (large_)?binary", kind)
    ]
    if named is not None and named not in holding:
        near = closest_name(named, holding) if holding else ""
        raise ValueError(f"{path}: image_column: {named!r} is no column of images' bytes{near}")
    if named is None and len(holding) != 1:
        has = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())[:300]
        raise ValueError(
            f"{path}: needs exactly one column of images' bytes, has {len(holding)}: {has}; the source's key "
            "'image_column' names one; a table that only names image files is read by the format caption_table"
        )
    image = named or holding[0]
    if image != Path(image).as_posix() or "/" in image:
        raise ValueError(f"{path}: the column {image!r} must have a name without '/'; rename it")
    return image


def _find_columns(names: Mapping, columns: Columns, split: str | None, where: str) -> Places:
    try:
        return find_places(names, columns, split is None, where)
    except ValueError as error:
        if split is None and columns.split is None and "'split_column'" in str(error):
            raise ValueError(f"{error}; or {TELL_THE_SPLIT}") from error
        raise


def _class_names(schema: object, columns: list[str]) -> dict[str, list[str]]:
    """Column -> the words of its numbers, as ``datasets`` keeps them in a file's head."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        found = {column: features[column].get("names") for column in columns if isinstance(features.get(column), dict)}
    except (KeyError, TypeError, AttributeError, ValueError):
        return {}
    return {column: names for column, names in found.items() if isinstance(names, list)}


def _rows_without_image(file: object, path: Path, column: str, group: int) -> set[int]:
    """Rows of a group whose images' bytes are null, from the file's counts where it keeps them."""
    about = file.metadata.row_group(group)
    leaves = [about.column(place) for place in range(about.num_columns)]
    leaf = next(leaf for leaf in leaves if leaf.path_in_schema in (column, f"{column}.bytes"))
    counted = leaf.statistics
    if counted is not None and counted.has_null_count and counted.null_count == 0:
        return set()
    return {place for place, absent in enumerate(read_group(path, column, group).is_null().to_pylist()) if absent}


def _find_split_files(places: Path | Mapping[str, Path], format: str) -> tuple[Path, list[tuple[Path, str | None]]]:
    """The folder that names start from, and (file, its split or None) of each file.

    Raises:
        FileNotFoundError: no such file at a place.
        ValueError: a file belongs to two splits.
    """
    bases, files = [], {}
    for split, place in places.items() if isinstance(places, Mapping) else [(None, places)]:
        base, found = find_files(place, format)
        if not found:
            raise FileNotFoundError(f"{place}: no file {' or '.join(FILES[format])} there")
        bases.append(base)
        for path in found:
            if path in files:
                raise ValueError(f"{path}: is given for {files[path]!r} and for {split!r}; name it for one split")
            files[path] = split or _split_in(path.relative_to(base), path)
    return Path(os.path.commonpath(bases)), list(files.items())


def _split_in(name: Path, path: Path) -> str | None:
    """The split that a file's name tells, or else that of the innermost folder."""
    for part in reversed(name.parts):
        words = re.findall(r"[a-z]+", part.lower())
        told = {SPLIT_WORDS.get(word, word) for word in words} & set(SPLITS)
        if len(told) > 1:
            raise ValueError(f"{path}: {part!r} tells several splits, {', '.join(sorted(told))}; {TELL_THE_SPLIT}")
        if told:
            return told.pop()
    return None
