"""Lines of a text file as an annotation reader wants them: numbered, UTF-8, and of a length that fits into memory."""

import csv
from collections.abc import Iterator
from pathlib import Path

from rsvlm.files import open_bytes, wrong_byte

LONGEST = 1_000_000  # bytes of a line; longer ones are no annotation but a damaged or a wrong file


def read_lines(path: Path, longest: int = LONGEST) -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its end) of a UTF-8 file; a byte order mark at its start is skipped.

    A file whose name ends in ``.gz`` is decompressed on the way.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line is not UTF-8 (names the byte), holds a NUL byte, or is longer than ``longest`` bytes; names
            file and line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such annotation file; see data/raw/README.md for where sources come from")
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


def read_csv_rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(number of the row's last line, fields) of a CSV file with double quotes.

    Raises:
        ValueError: as ``read_lines``; a quote that is never closed, text after a closing quote; names file and line.
    """
    last = 0

    def texts() -> Iterator[str]:
        nonlocal last
        for last, text in read_lines(path):
            yield text + "\n"

    try:
        for fields in csv.reader(texts(), delimiter=delimiter, strict=True):
            yield last, fields
    except csv.Error as error:
        raise ValueError(f"{path}: line {last}: not CSV: {error}") from error
