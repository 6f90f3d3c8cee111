"""Reader of RemoteCLIP's CSV files (``Ret-3.csv``, ``Seg-4.csv``, ``Det-10.csv``): a caption and its image a row.

The first line names the columns. Of several names in use the image's column is one of IMAGE_COLUMNS, the caption's one
of CAPTION_COLUMNS; fields are separated by tabs where the first line holds one, else by commas.
"""

from collections.abc import Iterator
from pathlib import Path

from rsvlm.data.fixes import ALL
from rsvlm.data.listings import CaptionRow, Listing, check_split, gather_captions
from rsvlm.data.names import check_name
from rsvlm.data.text_lines import read_csv_rows, read_lines

IMAGE_COLUMNS = ("filename", "filepath", "file_name", "image", "image_path", "path")
CAPTION_COLUMNS = ("title", "caption", "text", "sentence")


def read_caption_csv(files: dict[str, Path], fixes: frozenset[str] = ALL) -> Listing:
    """The images of one CSV file a split, in the order of their first row.

    Args:
        files: split -> CSV file.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: no known columns, a row with more or fewer fields, a line too long; names file and line.
    """
    return gather_captions(_rows(files), fixes)


def _rows(files: dict[str, Path]) -> Iterator[CaptionRow]:
    for split, path in files.items():
        check_split(split, str(path))
        _, head = next(read_lines(path), (0, ""))
        rows = read_csv_rows(path, "\t" if "\t" in head else ",")
        columns = [name.strip().lower() for name in next(rows, (0, []))[1]]
        image = _column(columns, IMAGE_COLUMNS, path)
        caption = _column(columns, CAPTION_COLUMNS, path)
        empty = True
        for number, fields in rows:
            if not fields:
                continue
            empty = False
            where = f"{path}: line {number}"
            if len(fields) != len(columns):
                raise ValueError(f"{where}: {len(fields)} fields, but the first line names {len(columns)} columns")
            yield CaptionRow(check_name(fields[image], where), split, fields[caption], None, where)
        if empty:
            raise ValueError(f"{path}: no row below the first line; is the file cut off?")


def _column(columns: list[str], wanted: tuple[str, ...], path: Path) -> int:
    """The place of the one column that has one of the wanted names."""
    found = [place for place, name in enumerate(columns) if name in wanted]
    if len(found) != 1:
        raise ValueError(
            f"{path}: line 1: needs exactly one column named {', '.join(wanted)}; has {', '.join(columns)[:200]}"
        )
    return found[0]
