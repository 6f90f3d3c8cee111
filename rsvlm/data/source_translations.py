"""Captions in other languages as a source has them, and what they give to the table of translations.

A file of translations has a line ``English<TAB>translation`` for each different caption, UTF-8, in any order. Captions
are matched as the study uses them, with white space collapsed and in Unicode's composed form (NFC).

A table of captions may hold them instead, in columns beside those of the captions: the translation of each caption stands in
its row (``rsvlm.data.caption_tables``).
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import get_args

from rsvlm.data.blue_marble import TRANSLATIONS as TILE_TRANSLATIONS
from rsvlm.data.listings import check_encoding, has_words, read_lines
from rsvlm.data.sources import Source, Translator, place_of
from rsvlm.data.spill import StoredRows
from rsvlm.data.translations import HOW
from rsvlm.files import fingerprint_file, read_json_lines
from rsvlm.languages import normal_text

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


def read_translation_files(
    source: Source, data_root: str, root: Path | None = None
) -> dict[str, tuple[Path, dict[str, str], Counter]]:
    """Language -> the file of a source's translations, what it holds (English -> translation), and what was met in it.

    Raises:
        FileNotFoundError, ValueError: as ``read_translation_file``.
    """
    found = {}
    for language, path in sorted((source.translations or {}).items()):
        if isinstance(path, list):  # columns, which are read with the captions
            continue
        place, counts = place_of(path, data_root, root), Counter()
        found[language] = place, read_translation_file(place, counts), counts
    return found


def translate_source(
    source: Source,
    rows: StoredRows,
    texts: dict[str, tuple[Path, dict[str, str], Counter]],
    columns: Mapping[str, dict],
    *,
    tiles: Path,
) -> tuple[list[dict], dict[str, dict]]:
    """A source's rows of the table of translations, and by language how many of its captions have one.

    Args:
        texts: of ``read_translation_files``.
        columns: what was met in columns of translations, by language.
        tiles: folder of Blue Marble's tiles, whose translations are written with them.

    Raises:
        ValueError: a file, or the columns of a language, have a translation for not one caption.
    """
    translated, facts = [], dict(columns)
    how = HOW_OF[source.translated_by]
    for image_id, given in rows.translations() if facts else ():
        for language, captions in given:
            if any(captions):
                translated.append({"image_id": image_id, "language": language, "captions": captions, "how": how})
    for language in facts:
        if rows and not any(row["language"] == language for row in translated):
            raise ValueError(
                f"sources: {source.name}: translations: {language}: not one cell of {', '.join(source.translations[language])} "
                "holds a text; take the language out, or name other columns"
            )
    for language, (path, known, counts) in texts.items():
        own = translated_rows(rows, language, known, how)
        if rows and not own:
            raise ValueError(
                f"sources: {source.name}: translations: not one line of {path} is a caption of this source; its first is "
                f"{next(iter(known))!r}, the source's first caption {rows[0]['captions'][0]!r}"
            )
        translated += own
        facts[language] = {"file": fingerprint_file(path)} | {key: counts[key] for key in sorted(counts)}
    if source.languages:
        names = {row["image_id"].removeprefix(f"{source.name}/"): row["image_id"] for row in rows.rows}
        for row in read_json_lines(tiles / TILE_TRANSLATIONS):
            if row["image"] in names:
                own = {"image_id": names[row["image"]], "language": row["language"], "captions": row["captions"]}
                translated.append(own | {"how": "rule"})
    listed = sum(len(row["captions"]) for row in rows) if translated else 0
    for language in sorted({row["language"] for row in translated}):
        own = [row for row in translated if row["language"] == language]
        said = [caption for row in own for caption in row["captions"] if caption is not None]
        facts[language] = facts.get(language, {}) | {
            "how": own[0]["how"],
            "captions": listed,
            "translated": len(said),
            "distinct": len(set(said)),
        }
    return translated, facts
