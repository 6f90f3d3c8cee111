"""The gallery's columns as they were last read, so that a large study opens in a moment.

Reading 45,000 images with six runs from JSON lines and CSV takes seconds, reading them back from here a fraction of one.
What lies here is scratch: it is made anew when one of the stages' files changes, and may be deleted at any time.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rsvlm import paths
from rsvlm.files import fingerprint_values, read_json, whole_folder, write_text
from rsvlm.viewing.caption_entries import known_runs
from rsvlm.viewing.records import Records, read_records

FORMAT = 1
LARGE = 5_000  # images from which it is worth it
KEPT = 4  # the last ones used; a study has a few: splits, kinds of references
COLUMNS = ("image_ids", "sources", "splits", "labels", "paths", "references", "said", "seen", "absent")


def cache_key(files: Sequence[Path], *asked: object) -> str:
    """A name for what is read from these files: it changes with their size and time of change and with what is asked."""
    stats = [(file.stat().st_size, file.stat().st_mtime_ns) if file.is_file() else None for file in files]
    return fingerprint_values(FORMAT, [str(file) for file in files], stats, asked)[:24]


def find_records(key: str) -> Records | None:
    """The records of a key, where they are there and whole."""
    folder = _place(key)
    if not (folder / "columns.json").is_file():
        return None
    columns = read_json(folder / "columns.json")
    scores: dict[str, dict[str, np.ndarray]] = {}
    with np.load(folder / "scores.npz", allow_pickle=False) as arrays:
        for number, (run, metric) in enumerate(columns.pop("scores")):
            scores.setdefault(run, {})[metric] = arrays[str(number)]
    for name in ("sources", "splits", "labels", "seen"):
        columns[name] = np.array(columns[name], dtype=object)
    (folder / "columns.json").touch()  # the oldest use goes first when there are too many
    return Records(**columns, scores=scores)


def keep_records(key: str, records: Records) -> None:
    """Write the records for the next time, and drop those used longest ago."""
    names = [(run, metric) for run, own in records.scores.items() for metric in own]
    columns = {name: getattr(records, name) for name in COLUMNS}
    columns = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in columns.items()}
    with whole_folder(_place(key)) as scratch:
        write_text(scratch / "columns.json", json.dumps(columns | {"scores": names}, ensure_ascii=False))
        np.savez(scratch / "scores.npz", **{str(n): records.scores[run][metric] for n, (run, metric) in enumerate(names)})
    kept = sorted(paths.CACHE.glob("records_*/columns.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    for old in kept[KEPT:]:
        shutil.rmtree(old.parent, ignore_errors=True)


def open_records(runs: Sequence[str] | None = None, *, split: str | None = None, references: str = "released") -> Records:
    """What ``read_records`` gives, from the cache where nothing has changed; large studies are kept there.

    Raises:
        FileNotFoundError, ValueError: as ``read_records``.
    """
    files = [paths.IMAGE_TABLE, paths.SCORES / "captions.csv", *known_runs().values()]
    key = cache_key(files, list(runs) if runs is not None else None, split, references)
    records = find_records(key)
    if records is None:
        records = read_records(runs, split=split, references=references)
        if len(records) >= LARGE:
            keep_records(key, records)
    return records


def _place(key: str) -> Path:
    return paths.CACHE / f"records_{key}"
