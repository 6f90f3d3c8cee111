"""What can be computed again, kept by the content that it was computed from: one SQLite file in a folder.

A caption that METEOR scored once, an image whose hashes were taken, a pair that was compared never has to be again,
whichever run, study or file it comes from. A result is known by its kind, whose name holds the version of whatever
made it, and by the content: a text, or a file's SHA-256. Several processes may share a folder.
"""

import hashlib
import sqlite3
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

AT_ONCE = 500  # keys in one question; SQLite allows about a thousand
WAIT = 60.0  # seconds for another process that writes
FILE = "contents.sqlite"


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
        try:
            self._base = _opened(str(path))
        except sqlite3.OperationalError:
            raise  # locked, no room, no permission: not a damage
        except sqlite3.DatabaseError as error:
            aside = path.with_suffix(".damaged")
            path.replace(aside)
            for end in ("-wal", "-shm"):  # of the damaged file: nothing in them belongs into a new one
                path.with_name(f"{FILE}{end}").unlink(missing_ok=True)
            warnings.warn(f"{path}: damaged ({error}); put aside as {aside.name}, starting anew", stacklevel=2)
            self._base = _opened(str(path))

    def read(self, kind: str, contents: Iterable[str]) -> Iterator[tuple[str, str | bytes]]:
        """(content, what is kept of it), some at a time and in the order given, for those contents that are kept."""
        yield from self._rows("key, value", kind, contents)

    def find(self, kind: str, contents: Iterable[str]) -> dict[str, str | bytes]:
        """content -> what is kept of it, for those contents that are kept."""
        return dict(self.read(kind, contents))

    def lacks(self, kind: str, contents: Iterable[str]) -> list[str]:
        """Those contents, each once and in the order given, of which nothing is kept."""
        wanted = list(dict.fromkeys(contents))
        known = {content for content, _ in self._rows("key, NULL", kind, wanted)}
        return [content for content in wanted if content not in known]

    def _rows(self, columns: str, kind: str, contents: Iterable[str]) -> Iterator[tuple[str, str | bytes | None]]:
        keys = {_key(kind, content): content for content in contents}
        wanted = list(keys)
        for start in range(0, len(wanted), AT_ONCE):
            part = wanted[start : start + AT_ONCE]
            with self._lock:
                marks = ",".join("?" * len(part))
                rows = dict(self._base.execute(f"SELECT {columns} FROM results WHERE key IN ({marks})", part))
            yield from ((keys[key], rows[key]) for key in part if key in rows)

    def keep(self, kind: str, results: Mapping[str, str | bytes]) -> None:
        """Keep these results, all or none; they are on the disk when this returns."""
        rows = [(_key(kind, content), value) for content, value in results.items()]
        with self._lock, self._base:
            self._base.executemany("INSERT OR REPLACE INTO results VALUES (?, ?)", rows)

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


def _opened(path: str) -> sqlite3.Connection:
    base = sqlite3.connect(path, timeout=WAIT, check_same_thread=False)
    try:
        base.execute("PRAGMA journal_mode=WAL")  # a reader and a writer do not wait for each other
        with base:
            base.execute("CREATE TABLE IF NOT EXISTS results (key BLOB PRIMARY KEY, value NOT NULL)")
    except sqlite3.Error:
        base.close()
        raise
    return base
