"""Captions in other languages: files of translations, and the table of them beside the image table.

A file of translations has a line ``English<TAB>translation`` for each different caption, UTF-8, in any order. Captions
are matched as the study uses them, with white space collapsed and in Unicode's composed form (NFC).

A table of captions may hold them instead, in columns beside those of the captions: the translation of each caption stands in
its row (``rsvlm.data.caption_tables``).

The table, ``translations.jsonl``, has a row an image and language, sorted as the image table is, then by language:

``{"image_id": "ucm/1.jpg", "language": "pt", "captions": ["Um rio.", null, ...], "how": "machine"}``

``captions`` are as many as the image has and in their order, null where one has no translation; an image without any
has no row. ``how``: ``machine`` (translated by a program, nobody has read it), ``given`` (by people) or ``rule`` (written
in the language by the same rules as the English).
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import get_args

import pandas as pd

from rsvlm.data.listings import check_encoding, has_words, read_lines
from rsvlm.data.sources import Translator
from rsvlm.files import read_json_lines, write_json_lines
from rsvlm.languages import check_language, normal_text

COLUMNS = ["image_id", "language", "captions", "how"]
HOW = ("machine", "given", "rule")
HOW_NAMES = {"machine": "machine-translated", "given": "given by people", "rule": "written by rule"}
HOW_OF: dict[Translator, str] = dict(zip(get_args(Translator), HOW))  # who translated a source's files -> how


def read_translation_file(path: Path, counts: Counter | None = None) -> dict[str, str]:
    """English -> translation, both as ``normal_text`` has them.

    Args:
        counts: what was met is added: ``lines``, ``lines_without_translation`` (left out), ``lines_doubled`` (the same
            twice, read once), ``lines_in_another_normal_form`` (composed).

    Raises:
        FileNotFoundError: no such file.
        ValueError: not UTF-8, text that was read in a wrong encoding before, a line without exactly one tab or without
            English, one English text with two translations, or no translation at all; names file and line.
    """
    counts = Counter() if counts is None else counts
    found: dict[str, str] = {}
    first: dict[str, int] = {}
    for number, line in read_lines(path):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        parts = line.split("\t")
        if len(parts) != 2:
            raise ValueError(
                f"{where}: {len(parts) - 1} tabs, must be one: English<TAB>translation. Did an editor make spaces of tabs, or "
                f"is it another kind of table? It reads {line[:60]!r}"
            )
        check_encoding(line, where)
        english, translation = map(normal_text, parts)
        if not english:
            raise ValueError(f"{where}: no English before the tab; take the line out or fill it in")
        counts["lines"] += 1
        counts["lines_in_another_normal_form"] += not unicodedata.is_normalized("NFC", line)
        if not has_words(translation):
            counts["lines_without_translation"] += 1
            continue
        if found.setdefault(english, translation) != translation:
            raise ValueError(
                f"{where}: {english!r} is {translation!r} here and {found[english]!r} in line {first[english]}; keep one of "
                "the two"
            )
        counts["lines_doubled"] += english in first
        first.setdefault(english, number)
    if not found:
        raise ValueError(f"{path}: no translation in it; is the file cut off?")
    return found


def translated_rows(rows: Iterable[dict], language: str, texts: Mapping[str, str], how: str) -> list[dict]:
    """Rows of the table of translations for rows of the image table, in their order.

    Args:
        texts: English -> translation, from ``read_translation_file``.
    """
    found = []
    for row in rows:
        captions = [texts.get(normal_text(caption)) for caption in row["captions"]]
        if any(captions):
            found.append({"image_id": row["image_id"], "language": language, "captions": captions, "how": how})
    return found


def save_translations(rows: Iterable[dict], images: Iterable[dict], path: Path) -> None:
    """Write rows of translations, sorted by source, split and image as the image table is, then by language.

    Args:
        images: rows of the image table; translations of other images are left out.
    """
    place = {row["image_id"]: (row["source"], row["split"], row["image_id"]) for row in images}
    kept = [row for row in rows if row["image_id"] in place]
    write_json_lines(path, sorted(kept, key=lambda row: (place[row["image_id"]], row["language"])))


def load_translations(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """The table of translations with the columns COLUMNS, in the file's order; ``captions`` holds lists of str and None.

    Args:
        table: the image table or some rows of it; rows of other images are left out.

    Raises:
        FileNotFoundError: the stage aggregate_data has not run, or was run before there were translations.
        ValueError: a row is not as the table must be, or does not fit the image's captions; names file and row.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no table of translations; run the stage aggregate_data (notebook 10_aggregate_data) first"
        )
    count = dict(zip(table["image_id"], table["captions"].map(len), strict=True))
    kept, seen = [], set()
    for number, row in enumerate(read_json_lines(path), start=1):
        where = f"{path}: row {number}"
        if not isinstance(row, dict) or sorted(row) != sorted(COLUMNS):
            raise ValueError(f"{where}: needs exactly the keys {', '.join(COLUMNS)}")
        image_id, language, captions = row["image_id"], check_language(row["language"], where), row["captions"]
        if not isinstance(image_id, str):
            raise ValueError(f"{where}: image_id must be a text, is {image_id!r}")
        if row["how"] not in HOW:
            raise ValueError(f"{where}: how must be one of {', '.join(HOW)}, is {row['how']!r}")
        if (image_id, language) in seen:
            raise ValueError(f"{where}: {image_id!r} has a row for {language!r} already; run aggregate_data anew")
        seen.add((image_id, language))
        if not isinstance(captions, list) or not all(one is None or isinstance(one, str) and one for one in captions):
            raise ValueError(f"{where}: captions must be a list of texts and nulls, is {captions!r}")
        if image_id not in count:
            continue
        if len(captions) != count[image_id]:
            raise ValueError(
                f"{where}: {len(captions)} captions, but {image_id!r} has {count[image_id]} in the image table; run "
                "aggregate_data anew"
            )
        kept.append(row)
    return pd.DataFrame(kept, columns=COLUMNS, dtype=object)
