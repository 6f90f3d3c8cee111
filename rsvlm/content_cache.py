"""What can be computed again, kept by the content that it was computed from: one SQLite file in a folder.

A caption that METEOR scored once, an image whose hashes were taken, a pair that was compared never has to be again,
whichever run, study or file it comes from. A result is known by its kind, whose name holds the version of whatever
made it, and by the content: a text, or a file's SHA-256. Several processes may share a folder. Each result carries a digest:
one that is not what was kept counts as not there, and a file whose pages are damaged is put aside, both with a warning.
"""

import hashlib
import sqlite3
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

AT_ONCE = 500  # keys in one question; SQLite allows about a thousand
WAIT = 60.0  # seconds for another process that writes
FILE, OLDER = "results.sqlite", "contents.sqlite"  # the older one had no digests


class ContentCache:
    """Texts or bytes by (kind, content); in a folder that several processes may share, or in memory only."""

    def __init__(self, folder: Path | None = None) -> None:
        """A damaged file is put aside with a warning and the cache starts empty: it holds nothing but copies."""
        self._lock = threading.Lock()
        self.folder = folder
        if folder is None:
            self._base = _opened(":memory:")
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FILE
        if not path.exists():
            (folder / OLDER).unlink(missing_ok=True)
        try:
            self._base = _opened(str(path))
        except sqlite3.OperationalError:
            raise  # locked, no room, no permission: not a damage
        except sqlite3.DatabaseError as error:
            self._base = _start_anew(path, error)

    def read(self, kind: str, contents: Iterable[str]) -> Iterator[tuple[str, str | bytes]]:
        """(content, what is kept of it), some at a time and in the order given, for those contents that are kept."""
        keys = {_key(kind, content): content for content in contents}
        wanted, damaged = list(keys), []
        for start in range(0, len(wanted), AT_ONCE):
            part = wanted[start : start + AT_ONCE]
            marks = ",".join("?" * len(part))
            rows = {}
            for key, value, digest in self._ask(f"SELECT key, value, digest FROM checked WHERE key IN ({marks})", part):
                if digest == _digest(value):
                    rows[key] = value
                else:
                    damaged.append(key)
            yield from ((keys[key], rows[key]) for key in part if key in rows)
        if damaged:
            told = f"{len(damaged)} of {len(wanted)} results are damaged; they are made anew"
            warnings.warn(f"{self.folder / FILE}: {told}", stacklevel=2)

    def find(self, kind: str, contents: Iterable[str]) -> dict[str, str | bytes]:
        """content -> what is kept of it, for those contents that are kept."""
        return dict(self.read(kind, contents))

    def lacks(self, kind: str, contents: Iterable[str]) -> list[str]:
        """Those contents, each once and in the order given, of which nothing is kept."""
        wanted = list(dict.fromkeys(contents))
        known = {content for content, _ in self.read(kind, wanted)}
        return [content for content in wanted if content not in known]

    def keep(self, kind: str, results: Mapping[str, str | bytes]) -> None:
        """Keep these results, all or none; they are on the disk when this returns."""
        rows = [(_key(kind, content), value, _digest(value)) for content, value in results.items()]
        with self._lock:
            try:
                self._write(rows)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                self._start_anew(error)
                self._write(rows)

    def _ask(self, question: str, values: list[bytes]) -> list[tuple]:
        """The rows; none, and a new file, where the file's pages are damaged."""
        with self._lock:
            try:
                return self._base.execute(question, values).fetchall()
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                self._start_anew(error)
                return []

    def _write(self, rows: list[tuple]) -> None:
        with self._base:
            self._base.executemany("INSERT OR REPLACE INTO checked VALUES (?, ?, ?)", rows)

    def _start_anew(self, error: sqlite3.DatabaseError) -> None:
        if self.folder is None:
            raise error
        self._base.close()
        self._base = _start_anew(self.folder / FILE, error)

    def close(self) -> None:
        """Let go of the file."""
        self._base.close()

    def __enter__(self) -> "ContentCache":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _key(kind: str, content: str) -> bytes:
    text = f"{kind}\n{content}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=16).digest()


def _digest(value: str | bytes) -> bytes:
    content = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
    return hashlib.blake2b(content, digest_size=8).digest()


def _start_anew(path: Path, error: sqlite3.DatabaseError) -> sqlite3.Connection:
    """A new file in the place of a damaged one, which is put aside, with a warning."""
    aside = path.with_suffix(".damaged")
    with suppress(FileNotFoundError):  # another process was faster
        path.replace(aside)
    for end in ("-wal", "-shm"):  # of the damaged file: nothing in them belongs into a new one
        path.with_name(f"{path.name}{end}").unlink(missing_ok=True)
    warnings.warn(f"{path}: damaged ({error}); put aside as {aside.name}, starting anew", stacklevel=4)
    return _opened(str(path))


def _opened(path: str) -> sqlite3.Connection:
    base = sqlite3.connect(path, timeout=WAIT, check_same_thread=False)
    try:
        base.execute("PRAGMA journal_mode=WAL")  # a reader and a writer do not wait for each other
        with base:
            base.execute(
                "CREATE TABLE IF NOT EXISTS checked (key BLOB PRIMARY KEY, value NOT NULL, digest BLOB NOT NULL)"
            )
    except sqlite3.Error:
        base.close()
        raise
    return base
