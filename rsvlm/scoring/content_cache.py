"""Results of slow programs, kept by the content that they were computed from.

A caption that was tokenized, matched by METEOR or parsed by SPICE once never has to be again, whichever run, study or
file it comes from: the key is the text itself, with the name of the program and its version.
"""

import hashlib
import sqlite3
import threading
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

AT_ONCE = 500  # keys in one question; SQLite allows about a thousand
WAIT = 60.0  # seconds for another process that writes
FILE = "captions.sqlite"


class ContentCache:
    """Texts by (program, content); in a folder that several processes may share, or in memory only."""

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
            warnings.warn(f"{path}: damaged ({error}); put aside as {aside.name}, starting anew", stacklevel=2)
            self._base = _opened(str(path))

    def find(self, program: str, contents: Iterable[str]) -> dict[str, str]:
        """content -> what is kept of it, for those contents that are kept."""
        keys = {_key(program, content): content for content in contents}
        found, wanted = {}, list(keys)
        with self._lock:
            for start in range(0, len(wanted), AT_ONCE):
                part = wanted[start : start + AT_ONCE]
                marks = ",".join("?" * len(part))
                rows = self._base.execute(f"SELECT key, value FROM results WHERE key IN ({marks})", part)
                found |= {keys[key]: value for key, value in rows}
        return found

    def keep(self, program: str, results: Mapping[str, str]) -> None:
        """Keep these results, all or none."""
        rows = [(_key(program, content), value) for content, value in results.items()]
        with self._lock, self._base:
            self._base.executemany("INSERT OR REPLACE INTO results VALUES (?, ?)", rows)

    def close(self) -> None:
        """Let go of the file."""
        self._base.close()


def _key(program: str, content: str) -> bytes:
    text = f"{program}\n{content}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=16).digest()


def _opened(path: str) -> sqlite3.Connection:
    base = sqlite3.connect(path, timeout=WAIT, check_same_thread=False)
    with base:
        base.execute("CREATE TABLE IF NOT EXISTS results (key BLOB PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID")
        base.execute("SELECT count(*) FROM results LIMIT 1").fetchone()
    return base
