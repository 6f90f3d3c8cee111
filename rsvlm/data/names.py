"""Names in settings and files: splits, the closest right one for an error message, file names that stay inside.

Nothing heavy is imported here: settings are checked before a stage starts.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches

SPLITS = ("train", "val", "test")
_DRIVE = re.compile(r"[A-Za-z]:")


def closest_name(name: object, known: Iterable[str]) -> str:
    """The end of an error message about a wrong name: the closest known one, or all of them.

    One that holds the wrong name or is held by it is close, too: ``csv`` means ``caption_csv``.
    """
    known = [str(one) for one in known]
    close = get_close_matches(str(name), known, 1)
    if not close and len(str(name)) > 2:
        close = [one for one in known if str(name).lower() in one.lower() or one.lower() in str(name).lower()]
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def check_split(split: object, where: str) -> str:
    """The split's name. ValueError names the place and the closest right name."""
    if split in SPLITS:
        return split
    raise ValueError(f"{where}: unknown split {split!r}{closest_name(str(split).lower(), SPLITS)}")


def check_name(name: object, where: str) -> str:
    """A file name that stays inside its folder.

    Raises:
        ValueError: no text, blank, absolute, or one that climbs out with ``..``.
    """
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{where}: the file name must be a non-empty text, is {name!r}")
    # Plain tests of the text: a CSV of RemoteCLIP's size asks this 828,725 times.
    if name[0] == "/" or "\\" in name or "\0" in name or _DRIVE.match(name) or ".." in name.split("/"):
        raise ValueError(
            f"{where}: the file name {name!r} leads out of the images' folder; only names inside it are read"
        )
    return name
