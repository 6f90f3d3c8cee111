"""Captions in other languages: the table of them beside the image table.

The table, ``translations.jsonl``, has a row an image and language, sorted as the image table is, then by language:

``{"image_id": "ucm/1.jpg", "language": "pt", "captions": ["Um rio.", null, ...], "how": "machine"}``

``captions`` are as many as the image has and in their order, null where one has no translation; an image without any
has no row. ``how``: ``machine`` (translated by a program, nobody has read it), ``given`` (by people) or ``rule`` (written
in the language by the same rules as the English).
"""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from rsvlm.files import read_json_lines, write_json_lines
from rsvlm.languages import check_language

COLUMNS = ["image_id", "language", "captions", "how"]
HOW = ("machine", "given", "rule")
HOW_NAMES = {"machine": "machine-translated", "given": "given by people", "rule": "written by rule"}


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
