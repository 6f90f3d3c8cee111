"""Reader of Sydney-Captions' raw text: ``descriptions_SIDNEY.txt``, lines ``ID CAPTION``, and a list of files a split.

Line ``1 a residential area ...`` belongs to image ``1.tif``; ``filenames_train.txt`` and its kin hold a file name a
line.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from rsvlm.data.fixes import ALL
from rsvlm.data.listings import CaptionRow, Listing, gather_captions
from rsvlm.data.names import check_name, check_split
from rsvlm.data.text_lines import read_lines


def read_sydney_text(descriptions: Path, lists: dict[str, Path], fixes: frozenset[str] = ALL) -> Listing:
    """The images of the split lists with the captions of the descriptions file.

    Args:
        descriptions: the text file of captions.
        lists: split -> text file with its file names.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a line without id or caption, an id that no list names, a name in two lists; names file and line.
    """
    return gather_captions(_rows(descriptions, lists), fixes)


def _rows(descriptions: Path, lists: dict[str, Path]) -> Iterator[CaptionRow]:
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
