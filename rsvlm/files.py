"""Files that are either whole or absent.

Every result of a stage is written beside its final place and moved there in one step, so that a killed run or a full
disk never leaves half a file under a result's name. What a killed run was writing stays beside it, as a hidden ``.part``
that carries its process; the next process that writes into the folder removes it. What a person adds line by line goes through ``append_line``.
What can be made anew at any time is kept in ``cache_folder()``. Where two processes would write the same files, ``only_process``
lets one in.
"""

import ctypes
import errno
import fcntl
import functools
import gzip
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tokenize import TokenError
from types import SimpleNamespace
from typing import TYPE_CHECKING, BinaryIO

from rsvlm.disks import CLOSED, NO_ROOM

if TYPE_CHECKING:
    import numpy as np

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EXDEV}  # the system, or this file system, knows none


def cache_folder() -> Path:
    """Where copies are kept that may be deleted at any time: ``RSVLM_CACHE``, else ``rsvlm`` in the user's cache folder.

    A study sets it to its own ``.rsvlm/cache``.
    """
    named = os.environ.get("RSVLM_CACHE")
    if named:
        return Path(named).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rsvlm"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A scratch path to write to; it takes the name ``path`` when the block ends without an error.

    Raises:
        OSError: the disk is full or closed; names a file also where the library that wrote did not.
    """
    scratch = _scratch(path)
    try:
        with naming(path):
            yield scratch
            with scratch.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(scratch, path)
    finally:
        if scratch.exists():  # on a read-only disk the attempt alone is an error, which would hide the one above
            scratch.unlink()


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A scratch folder to fill; it replaces the folder ``path`` when the block ends without an error.

    Whoever looks finds the old folder or the new one, whole, whenever the process is killed. (Where a file system cannot
    exchange two names, neither has the name for a moment: a process killed just then leaves the old one under a hidden
    name, and the next process that writes into the parent folder puts it back.)

    Raises:
        OSError: as ``whole_file``.
    """
    path = path.resolve()  # through a link, and for "."
    with passing_folder(path) as scratch, naming(path):
        yield scratch
        _put_in_place(scratch, path)


@contextmanager
def passing_folder(path: Path) -> Iterator[Path]:
    """A folder of this process beside ``path``, which goes when the block ends.

    What a killed process left goes when the next one writes into the parent folder.
    """
    scratch = _scratch(path)
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _put_in_place(scratch: Path, path: Path) -> None:
    """Give the folder ``scratch`` the name ``path``; what had it goes."""
    if not path.is_dir() or path.is_symlink():
        os.replace(scratch, path)
        return
    if not _exchange(scratch, path):
        old = scratch.with_suffix(".old")
        os.rename(path, old)
        try:
            os.rename(scratch, path)
        except OSError:
            os.rename(old, path)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Whether two folders have each other's name now, in one step; False: that is not possible here."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if rename is None:
        return False
    if rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    why = ctypes.get_errno()
    if why in NO_EXCHANGE:
        return False
    raise OSError(why, os.strerror(why), str(other))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Within, errors of the disk that name no file, or a scratch one, are raised as ones of ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM | CLOSED and (error.filename is None or ".part" in str(error.filename)):
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise


def _scratch(path: Path) -> Path:
    """Where this process writes what will be ``path``; the folder is there, without what dead processes left in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(os.getpid(), path.parent.absolute())
    return path.with_name(f".{path.name}.{os.getpid()}-{_machine()}.part")


@functools.cache
def _machine() -> str:
    """Among whom this process's number is its own: a digest of the machine's name and, in a container, of that."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        space = ""
    return fingerprint_values(platform.node(), space)[:8]


@functools.cache  # once a process and folder: listing a large one for each of its files would take long
def _sweep(_process: int, folder: Path) -> None:
    """Remove the scratch files and folders that killed processes of this machine left in a folder.

    An old folder whose name a killed process had not yet given to the new one gets it back.
    """
    for scratch in [*folder.glob(f".*-{_machine()}.part"), *folder.glob(f".*-{_machine()}.old")]:
        owner = re.fullmatch(r"\.(.+)\.(\d+)-\w+\.(part|old)", scratch.name)
        if owner is None or _is_alive(int(owner[2])):
            continue
        with suppress(OSError):  # another process was faster, or the folder is closed
            if owner[3] == "old" and not (folder / owner[1]).exists():
                scratch.rename(folder / owner[1])
            elif scratch.is_dir() and not scratch.is_symlink():
                shutil.rmtree(scratch, ignore_errors=True)
            else:
                scratch.unlink()


class InUse(RuntimeError):
    """Another process works there. The message names it, since when, and what to do."""


@contextmanager
def only_process(lock: Path, what: str) -> Iterator[None]:
    """Holds the file ``lock``, which goes with the block. The system frees it when this process ends, however it ends.

    Args:
        what: what one process at a time may do, for the message.

    Raises:
        InUse: another process holds it; at once.
    """
    from filelock import FileLock, Timeout  # here: most commands need none

    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock, timeout=0)
    try:
        held.acquire()
    except Timeout:
        holder = re.match(r"(\d+) (.+)", lock.read_text(encoding="utf-8") if lock.is_file() else "")
        who, end = (f"process {holder[1]}, since {holder[2]}", f" (`kill {holder[1]}`)") if holder else ("unknown", "")
        raise InUse(
            f"{what}: another process is at it ({who}; it holds {lock}). Wait for its end, or end it{end}, then try again"
        ) from None
    try:
        lock.write_text(f"{os.getpid()} {time.strftime('%Y-%m-%d %H:%M:%S')}\n", encoding="utf-8")
        yield
    finally:
        with suppress(OSError):
            lock.unlink()  # who opened it meanwhile sees that it went, and makes a new one
        held.release()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    with whole_file(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as JSON with sorted keys. NaN and infinity raise ValueError: they are no JSON."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def append_line(path: Path, line: str, *, head: str = "") -> None:
    """Add one line at a file's end; it is on the disk when this returns, and nothing else in the file is touched.

    Several processes may do this at the same time. A line that a power failure left half written stays as it is: the
    new one starts on a line of its own.

    Args:
        head: first line of a file that is new or empty.

    Raises:
        ValueError: the text holds a line break.
    """
    if "\n" in line or "\r" in line or "\n" in head:
        raise ValueError(f"{path}: one line is needed, got {line!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # let go when the file is closed, also by a kill
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        torn = size > 0 and file.read(1) != b"\n"
        start = f"{head}\n" if head and size == 0 else "\n" if torn else ""
        file.write(f"{start}{line}\n".encode())
        file.flush()
        os.fsync(file.fileno())
    if size == 0:  # the name of a new file has to reach the disk, too
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_json(path: Path) -> object:
    """The JSON in ``path``, which may be compressed (``.gz``) and may start with a byte order mark.

    Raises:
        FileNotFoundError: with the path.
        ValueError: the file is not UTF-8 JSON (names line and column), a folder, no whole gzip, or a key stands twice in an
            object.
    """
    if path.is_dir():
        raise ValueError(f"{path}: a folder, and a file of JSON is needed")
    try:
        with open_bytes(path) as file:
            content = file.read()
        return parse_json(content.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON: line {error.lineno}, column {error.colno}: {error.msg}") from error
    except RepeatedKey as error:
        raise ValueError(f"{path}: {error}") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}: line {line} is not UTF-8 text: {wrong_byte(error)}; save it as UTF-8") from error


LONG_NUMBER = f"a whole number of more than {sys.get_int_max_str_digits():,} digits"


class RepeatedKey(ValueError):
    """A key that stands twice in an object of JSON."""


def parse_json(text: str) -> object:
    """The value of a JSON text.

    Raises:
        json.JSONDecodeError: it is none, is nested too deep, or holds a number too long to be one.
        RepeatedKey: an object has a key twice, of which a reader would silently take the last.
    """
    try:
        return json.loads(text, object_pairs_hook=_once_each)
    except RecursionError as error:
        raise json.JSONDecodeError("nested too deep", text, 0) from error
    except (json.JSONDecodeError, RepeatedKey):
        raise
    except ValueError as error:
        longest = re.search(rf"\d{{{sys.get_int_max_str_digits() + 1}}}", text)
        if longest is None:
            raise
        raise json.JSONDecodeError(LONG_NUMBER, text, longest.start()) from error


def _once_each(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counted = Counter(name for name, _ in pairs)
        repeated = next(name for name, count in counted.items() if count > 1)
        first = ", ".join(f"{name!r}: {str(value)[:30]!r}" for name, value in pairs[:2])
        raise RepeatedKey(
            f"the key {repeated!r} stands twice in one object, that with {first}; a reader would take the last alone: "
            "keep one"
        )
    return found


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """A file's bytes; those of a ``.gz`` file are the ones that were compressed.

    Raises:
        FileNotFoundError: with the path.
        ValueError: a ``.gz`` file is cut off or no gzip; names it.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a whole gzip file: {error}; fetch it again") from error


def wrong_byte(error: UnicodeDecodeError) -> str:
    """Which byte is no UTF-8, its value, and what it would be in Windows' code page, for an error message."""
    byte = error.object[error.start : error.start + 1]
    return f"byte {error.start} is 0x{byte.hex().upper()} (in Windows-1252 {byte.decode('cp1252', 'replace')!r})"


def read_array(path: Path, *, mapped: bool = False) -> "np.ndarray":
    """The array in a .npy file, or a read-only map of it; no pickle, and no other format under its name.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: no whole .npy file; names it.
    """
    import numpy as np

    try:
        if mapped:
            return np.lib.format.open_memmap(path, mode="r")
        with Path(path).open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError:
        raise
    except (ValueError, OSError, EOFError, MemoryError, SyntaxError, TokenError) as error:  # a head is Python's
        raise ValueError(f"{path}: no whole .npy file ({error})") from error


def write_array(path: Path, array: "np.ndarray") -> None:
    """Write a .npy file, in the bytes of ``numpy.save``; whole where it is written into a scratch file or folder.

    numpy writes a file on its own and does not hear that the disk was full for the last 4,096 bytes; here Python writes, and
    raises.
    """
    import numpy as np

    with Path(path).open("wb") as file:
        np.lib.format.write_array(SimpleNamespace(write=file.write), np.asanyarray(array), allow_pickle=False)


def write_json_lines(path: Path, rows: Iterable[dict]) -> None:
    """Write one JSON object a line, keys in the order given."""
    with whole_file(path) as scratch, scratch.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def read_json_lines(path: Path) -> list[dict]:
    """The objects of a JSON-lines file, in order. ValueError names file and line of what is no UTF-8 JSON, or has a key twice."""
    rows = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                rows.append(parse_json(line.decode("utf-8")))
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}: line {number} is not UTF-8 text: {wrong_byte(error)}") from error
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}: line {number} is not valid JSON: {error.msg}") from error
            except RepeatedKey as error:
                raise ValueError(f"{path}: line {number}: {error}") from error
    return rows


def fingerprint_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint_values(*values: object) -> str:
    """SHA-256 of JSON-serialisable values, as hex: the same values give the same text on every machine."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
