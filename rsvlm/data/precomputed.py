"""Reader of AMFMN's precomputed text: ``PREFIX_caps.txt`` and ``PREFIX_filename.txt``, line by line.

Line n of the captions belongs to line n of the file names, which names each image five times; older copies name each
image once, and lines 5n to 5n + 4 of the captions belong to it.
"""

from collections.abc import Iterator
from pathlib import Path

from rsvlm.data.fixes import ALL
from rsvlm.data.listings import CaptionRow, Listing, gather_captions
from rsvlm.data.names import check_name, check_split
from rsvlm.data.text_lines import read_lines

CAPTIONS_AN_IMAGE = 5


def read_precomputed(prefixes: dict[str, Path], fixes: frozenset[str] = ALL) -> Listing:
    """The images of a pair of text files a split.

    Args:
        prefixes: split -> path that ``_caps.txt`` and ``_filename.txt`` are put behind.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the two files have numbers of lines that do not fit, or a file name is blank; names file and line.
    """
    return gather_captions(_rows(prefixes), fixes)


def _rows(prefixes: dict[str, Path]) -> Iterator[CaptionRow]:
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
