"""Disks and folders that are full, read-only or closed: found out before the work, or told in a line after it."""

import errno
import functools
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

NO_ROOM, CLOSED = {errno.ENOSPC, errno.EDQUOT}, {errno.EROFS, errno.EACCES, errno.EPERM}
SIGNS = {number: [os.strerror(number)] for number in (*NO_ROOM, *CLOSED)}
SIGNS[errno.ENOSPC] += ["No space left on device", "database or disk is full"]  # Rust's and SQLite's words
SIGNS[errno.EROFS] += ["attempt to write a readonly database"]


def check_place(path: Path) -> None:
    """Say before the work that no file can be written there.

    Raises:
        ValueError: a folder has that name, a file lies where a folder must, or the folder is closed; says which.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: a folder; give the name of a file")
    above = _there(path.absolute().parent)
    if not above.is_dir():
        raise ValueError(f"{path}: {above} is a file, so nothing can be written below it; give another name")
    if not is_open(above):
        raise ValueError(f"{path}: the folder {above} cannot be written to; give a name in another folder")


def is_open(path: Path) -> bool:
    """Whether this process may write into a folder that is there, or make it."""
    return os.access(_there(path), os.W_OK | os.X_OK)


def check_free_space(folder: Path, size: int, what: str) -> None:
    """Raise OSError when the disk under ``folder`` has less than ``size`` bytes left for ``what``."""
    free = shutil.disk_usage(_there(folder)).free
    if free < size:
        needed = f"{what} need {shown_size(size)}, {shown_size(free)} are free"
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {needed}", str(folder))


def disk_trouble(told: str, place: Path) -> str | None:
    """One line on a full or closed disk, where an error's text tells of it: the path, what is wrong, what is free, what to do.

    Args:
        told: an error's text, of whatever library.
        place: where it was, if the text has no path.
    """
    number = next((number for number, signs in SIGNS.items() if any(sign in told for sign in signs)), None)
    if number is None:
        return None
    named = re.findall(r"'([^'\n]*/[^'\n]*)'", told) or re.findall(r"^\[Errno \d+\] .*: '([^'\n]+)'$", told)
    path = Path(named[-1]) if named else place
    if number not in NO_ROOM:
        why = "the disk is read-only" if number == errno.EROFS else "you may not write there, or not read it"
        return f"{path}: {why}; change that, or work on a copy in a place of your own"
    usage, needed = shutil.disk_usage(_there(path)), re.search(r": (.* need .* are free)", told)
    why = "the disk is full" if number == errno.ENOSPC else "the quota of the disk is used up"
    free = needed[1] if needed else f"{shown_size(usage.free)} of {shown_size(usage.total)} are free"
    return f"{path}: {why}: {free}; make room"


def told_in_a_line(main: Callable[..., int | None]) -> Callable[..., int]:
    """A command's ``main``: where it fails on bad input, a missing file, a full or a closed disk, that is a line and 1."""

    @functools.wraps(main)
    def told(*arguments: object, **options: object) -> int:
        try:
            return main(*arguments, **options) or 0
        except (ValueError, OSError) as error:
            trouble = disk_trouble(str(error), Path.cwd()) if isinstance(error, OSError) else None
            if trouble is None and not isinstance(error, ValueError | FileNotFoundError):
                raise
            print(trouble or error, file=sys.stderr)
            return 1

    return told


def shown_size(size: float) -> str:
    """Bytes for a reader: 12 B, 3.4 kB, 120.0 MB, 1.2 GB."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"


def _there(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
