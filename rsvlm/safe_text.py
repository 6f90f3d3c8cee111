"""Texts of data made safe for where they go: a table that a spreadsheet opens, Markdown, YAML, a line on a page.

A caption, a file's name, a class or a source comes from whoever made the data. In a table it may be read as a formula, in
Markdown or YAML as markup, and on a page its marks of reading direction may turn what stands beside it.
"""

import csv
import html
import io
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from rsvlm.files import write_text

if TYPE_CHECKING:
    import pandas as pd

# What spreadsheets take for the start of a formula (OWASP, "CSV Injection"), its full-width twins among them. A cell
# starts with the text, and where a spreadsheet splits at semicolons or tabs also behind these.
_FORMULA = "[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]"
_UNSAFE = re.compile(rf"(?<![^;\t\r\n])(?='*{_FORMULA})")
_MADE_SAFE = re.compile(rf"(?<![^;\t\r\n])'(?='*{_FORMULA})")

_DIRECTION = re.compile("[\u202a-\u202e\u2066-\u2069]")  # embeddings, overrides and isolates of Unicode's UAX 9
_ISOLATES, _END = "\u2066\u2067\u2068", "\u2069"
_PLAIN = re.compile(r"[\w .,:;/@()+-]", re.ASCII)
_INVISIBLE = re.compile("[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# No text of a person: control characters, but for white space, and halves of characters.
_NO_TEXT = re.compile("[\0-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff]")
_BREAK = re.compile("[\n\r\x0b\x0c\x1c-\x1e\x85]")
LONGEST_QUERY, LONGEST_LETTERS = 300, 3_000  # words and characters; no text tower reads more


def fault_in(text: str, breaks: bool = False) -> str | None:
    """Which character makes a text none that a table can hold, in words; None if there is none.

    Args:
        breaks: whether it may have line breaks.
    """
    if text.isascii() and text.isprintable():  # nearly all are
        return None
    found = _NO_TEXT.search(text)
    if found:
        half = "\ud800" <= found[0] <= "\udfff"  # also what Python makes of bytes that are no UTF-8
        kind = "characters that are no text in UTF-8" if half else "a control character"
        return f"{kind} (U+{ord(found[0]):04X}) at place {found.start() + 1}"
    found = None if breaks else _BREAK.search(text)
    return f"a line break (U+{ord(found[0]):04X}) at place {found.start() + 1}" if found else None


def as_cell(text: str) -> str:
    """A text as a cell of a CSV: what a spreadsheet would take for a formula has an apostrophe before it."""
    return _UNSAFE.sub("'", text)


def from_cell(text: str) -> str:
    """The text that ``as_cell`` made a cell of."""
    return _MADE_SAFE.sub("", text) if "'" in text else text


def csv_line(values: list[str]) -> str:
    """Texts as one line of CSV, without its end, each as ``as_cell`` has it."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(map(as_cell, values))
    return line.getvalue()


def csv_text(table: "pd.DataFrame", float_format: str | None = None) -> str:
    """A table as CSV without its index; texts, and the columns' names, are written as ``as_cell`` has them."""

    def safe(column: "pd.Series") -> "pd.Series":
        if column.dtype.kind in "biufcmM":  # numbers and times are no formulas
            return column
        cells = [as_cell(value) if isinstance(value, str) else value for value in column]
        return type(column)(cells, index=column.index, dtype=object)  # object: nothing is inferred anew

    names = [as_cell(name) if isinstance(name, str) else name for name in table.columns]
    return table.apply(safe).set_axis(names, axis=1).to_csv(index=False, float_format=float_format)


def write_csv(path: Path, table: "pd.DataFrame", float_format: str | None = None) -> None:
    """Write a table as ``csv_text``, UTF-8, whole or not at all."""
    write_text(path, csv_text(table, float_format))


def read_csv(path: Path, dtype: dict | None = None) -> "pd.DataFrame":
    """A table that ``write_csv`` wrote, its texts as they were before.

    Args:
        dtype: column -> type, as pandas takes it.

    Raises:
        FileNotFoundError, ValueError: as pandas does.
    """
    import pandas as pd

    table = pd.read_csv(path, dtype=dtype)
    for name in table.columns[[column.kind not in "biufcmM" for column in table.dtypes]]:
        table[name] = table[name].map(lambda cell: from_cell(cell) if isinstance(cell, str) else cell)
    return table.rename(columns=from_cell)


def as_markdown(text: object) -> str:
    """A text in Markdown, and in the HTML made of it, that is nothing but a text; what is invisible is shown as \\uXXXX."""
    plain = json.dumps(str(text), ensure_ascii=False)[1:-1].replace('\\"', '"')
    escaped = html.escape(plain, quote=False)
    escaped = re.sub(r"[|`*\[\]~$]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", escaped)  # within a word _ is a letter
    escaped = f"\\{escaped}" if escaped[:1] in ("#", "+", "-", "=") else escaped  # a heading, a list
    return _shown(escaped)


def as_code(text: object) -> str:
    """A text between backticks of Markdown, where nothing but a backtick is special; breaks become spaces."""
    return _shown(" ".join(html.escape(str(text), quote=False).replace("`", "'").splitlines()))


def as_yaml(text: object) -> str:
    """A text as YAML's double-quoted scalar: one line, ASCII, nothing in it that ends it or is markup to a viewer of Markdown."""
    plain = "".join(one if _PLAIN.fullmatch(one) else f"\\U{ord(one):08x}" for one in str(text))
    return f'"{plain}"'


def _shown(text: str) -> str:
    return _INVISIBLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def isolate(text: str) -> str:
    """A text whose marks of reading direction end with it: in Unicode's isolate (UAX 9), where it has any.

    As it is where it has none. An end of an isolate that did not begin in the text is left out.
    """
    if not _DIRECTION.search(text):
        return text
    kept, depth = [], 0
    for character in text:
        if character == _END and not depth:
            continue
        depth += (character in _ISOLATES) - (character == _END)
        kept.append(character)
    return f"\u2068{''.join(kept)}{_END * (depth + 1)}"


def check_query(text: str, name: str = "the query") -> None:
    """ValueError where a text that is looked for is blank, or longer than any text tower reads."""
    words = len(text.split())
    if not words:
        raise ValueError(f"{name} is blank: describe what you look for")
    if words > LONGEST_QUERY or len(text) > LONGEST_LETTERS:
        raise ValueError(
            f"{name} has {words:,} words and {len(text):,} characters, at most {LONGEST_QUERY} and {LONGEST_LETTERS:,} are "
            "looked for: say it in a sentence"
        )
