"""All captioned images of a study in columns, kept ready for the caption gallery.

All captioned images of a study in columns, and the questions that the caption gallery asks of them.

45,000 images are columns of some tens of megabytes; pictures are not among them. What a page shows is made for that page
only (``Records.entry``).

The gallery's columns as they were last read, so that a large study opens in a moment.

Reading 45,000 images with six runs from JSON lines and CSV takes seconds, reading them back from here a fraction of one.
What lies here is scratch: it is made anew when one of the stages' files changes, and may be deleted at any time.
"""

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from rsvlm.data.table import rows_of
from rsvlm.files import cache_folder, fingerprint_values, read_json, whole_folder, write_text
from rsvlm.viewing.caption_entries import Entry, StudyFiles, known_runs, read_image_scores, read_run

NOT_METRICS = ("run", "source", "split", "image_id", "references", "reference_set_seen")
FIRST_METRICS = ("CIDEr", "METEOR")  # in menus and on cards before the others
ORDERS = ("random", "best", "worst", "median")
PLACES = ("said", "references", "all")  # where a search looks
MEASURES = ("score", "gap")
DIGITS = 4  # of scores that are shown and ordered by, so that the static page orders as this does


@dataclass(frozen=True)
class Records:
    """Columns of N images; see the module's text."""

    image_ids: list[str]
    sources: np.ndarray  # (N,) object
    splits: np.ndarray  # (N,) object
    labels: np.ndarray  # (N,) object, "" where there is none
    paths: list[str]
    references: list[list[str]]
    said: dict[str, list[str | None]]  # by run; None: no caption for this image
    scores: dict[str, dict[str, np.ndarray]]  # by run, then metric: (N,) float64, NaN where it was not measured
    seen: np.ndarray  # (N,) object: whether a training image has just the same references; None: not known
    absent: list[str] = field(default_factory=list)  # runs that were asked for and not made

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def runs(self) -> list[str]:
        """The runs, in the order they were asked for."""
        return list(self.said)

    @cached_property
    def metrics(self) -> list[str]:
        """The metrics measured anywhere: the usual first ones, then by name."""
        known = {name for own in self.scores.values() for name in own}
        return [name for name in FIRST_METRICS if name in known] + sorted(known - set(FIRST_METRICS))

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Row of each image id."""
        return {image_id: row for row, image_id in enumerate(self.image_ids)}

    def entry(self, row: int) -> Entry:
        """Everything that is known of one image."""
        scores = {
            run: {name: float(values[row]) for name, values in own.items() if np.isfinite(values[row])}
            for run, own in self.scores.items()
        }
        return Entry(
            image_id=self.image_ids[row],
            source=self.sources[row],
            split=self.splits[row],
            label=self.labels[row],
            path=self.paths[row],
            references=tuple(Counter(text.strip() for text in self.references[row] if text.strip()).items()),
            captions={run: own[row] for run, own in self.said.items() if own[row] is not None},
            scores={run: own for run, own in scores.items() if own},
            seen=self.seen[row],
        )

    def values(self, run: str, metric: str) -> np.ndarray:
        """(N,) scores of a run; all NaN where they were not measured."""
        own = self.scores.get(run, {}).get(metric)
        return np.full(len(self), np.nan) if own is None else own

    def texts(self, place: str, run: str) -> list[str]:
        """N texts in lower case to search in: what the run said, the references, or all that stands on a card."""
        if place == "said":
            return self._lowered(run)
        if place == "references":
            return self._references
        return self._everything

    def _lowered(self, run: str) -> list[str]:
        kept = self._said_lowered
        if run not in kept:
            kept[run] = [(text or "").lower() for text in self.said[run]]
        return kept[run]

    @cached_property
    def _said_lowered(self) -> dict[str, list[str]]:
        return {}

    @cached_property
    def _references(self) -> list[str]:
        return ["\n".join(dict.fromkeys(own)).lower() for own in self.references]

    @cached_property
    def _everything(self) -> list[str]:
        columns = [self._lowered(run) for run in self.said]
        parts = zip(self._references, self.image_ids, self.labels, *columns, strict=True)
        return ["\n".join([own[0], own[1].lower(), own[2].lower(), *own[3:]]) for own in parts]


@dataclass(frozen=True)
class Query:
    """What of the records is wanted, and in which order.

    Raises:
        ValueError: a field that is none of its possible values.
    """

    run: str
    baseline: str | None = None  # the run that gaps are measured against
    metric: str = "CIDEr"
    measure: str = "score"  # score, or gap: the run's score less the baseline's
    order: str = "random"
    words: str = ""  # all of them must occur, case ignored
    place: str = "said"
    source: str = ""  # empty: any
    split: str = ""
    label: str = ""
    seen: str = ""  # "yes", "no" or any
    mark: str = ""  # a kind of mark, "any", "none" or no matter
    low: float | None = None  # smallest value of the measure
    high: float | None = None  # largest

    def __post_init__(self) -> None:
        allowed = {"order": ORDERS, "place": PLACES, "measure": MEASURES, "seen": ("", "yes", "no")}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name}: {getattr(self, name)!r} is none of {', '.join(map(repr, values))}")
        for name in ("low", "high"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, int | float):
                raise ValueError(f"{name}: a number is needed, got {value!r}")

    @classmethod
    def read(cls, given: Mapping[str, object]) -> "Query":
        """The query of a mapping. ValueError names a key that is no field."""
        unknown = sorted(set(given) - {one.name for one in fields(cls)})
        if unknown or "run" not in given:
            raise ValueError(f"a query has no field {unknown[0]!r}" if unknown else "a query needs a run")
        return cls(**given)


def read_records(
    files: StudyFiles,
    runs: Sequence[str] | None = None,
    *,
    split: str | None = None,
    references: str = "released",
    whole: bool = False,
) -> Records:
    """The images of a split (None: all) that some run has a caption for, with all captions and scores.

    Args:
        runs: in the order in which they are to be shown, the studied one first; None: all that were made.
        references: which scores, against ``released`` or ``distinct`` references.
        whole: every image of the split is wanted; an image without the first run's caption is an error.

    Raises:
        FileNotFoundError: the image table, or the first run, was not made.
        ValueError: the split is empty; ``whole`` and an image without caption (names it); ``references`` is unknown.
    """
    if references not in ("released", "distinct"):
        raise ValueError(f"references is {references!r}: give 'released' or 'distinct'")
    rows = rows_of(files.read_table(), split=split)
    made = known_runs(files)
    wanted = list(dict.fromkeys(runs)) if runs is not None else list(made)
    if not wanted:
        raise FileNotFoundError(f"{files.generated}: no generated captions; run the stage generate_captions")
    captions = {run: read_run(files, run) for number, run in enumerate(wanted) if number == 0 or run in made}
    absent = [run for run in wanted if run not in captions]
    first = captions[wanted[0]]
    if whole:
        bare = next((image_id for image_id in rows["image_id"] if image_id not in first), None)
        if bare is not None:
            raise ValueError(
                f"{made[wanted[0]]}: no caption for {bare!r} (split {split!r});"
                " run the stage generate_captions again, or complete the file where it is another model's"
            )
    else:
        rows = rows[rows["image_id"].isin({image_id for own in captions.values() for image_id in own})]
    image_ids = rows["image_id"].tolist()
    scores, seen = _read_scores(files, references, image_ids, list(captions))
    return Records(
        image_ids=image_ids,
        sources=rows["source"].to_numpy(object),
        splits=rows["split"].to_numpy(object),
        labels=np.array([label if isinstance(label, str) else "" for label in rows["label"]], dtype=object),
        paths=rows["path"].tolist(),
        references=rows["captions"].tolist(),
        said={run: [own.get(image_id) for image_id in image_ids] for run, own in captions.items()},
        scores=scores,
        seen=seen,
        absent=absent,
    )


def read_entries(
    files: StudyFiles,
    run: str = "captioner",
    baselines: Sequence[str] = (),
    *,
    split: str = "test",
    references: str = "released",
) -> tuple[list[Entry], list[str]]:
    """All images of a split with their captions and scores, in the table's order, and the baselines that were not made.

    Raises:
        FileNotFoundError: the run itself was not made.
        ValueError: the split is empty, or the run has no caption for one of its images; names the image.
    """
    records = read_records(files, [run, *baselines], split=split, references=references, whole=True)
    return [records.entry(row) for row in range(len(records))], records.absent


def draw_order(records: Records, seed: int = 0) -> np.ndarray:
    """(N,) rows in the order of a random draw: the gallery's "random"."""
    return np.random.default_rng(seed).permutation(len(records))


def select_rows(
    records: Records,
    query: Query,
    *,
    drawn: np.ndarray,
    marks: Mapping[tuple[str, str], set[str]] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(rows in the wanted order, the measure's value of each; NaN where it is not known).

    Best and worst go by the measure, median by the distance to the middle one of those that fit; what was not measured
    stands last; ties stand in the order of the draw.

    Args:
        drawn: as ``draw_order`` gives it.
        marks: (run, image id) -> kinds of marks, for ``query.mark``.

    Raises:
        ValueError: the query names an unknown run.
    """
    for run in (query.run, query.baseline):
        if run is not None and run not in records.said:
            raise ValueError(f"run {run!r} is none of {', '.join(records.runs)}")
    values = records.values(query.run, query.metric).round(DIGITS)
    if query.measure == "gap":
        baseline = records.values(query.baseline, query.metric).round(DIGITS) if query.baseline else np.nan
        values = (values - baseline).round(DIGITS)
    fits = np.ones(len(records), dtype=bool)
    for column, wanted in (
        (records.sources, query.source),
        (records.splits, query.split),
        (records.labels, query.label),
        (records.seen, {"yes": True, "no": False}.get(query.seen, "")),
    ):
        if wanted != "":
            fits &= column == wanted
    if query.low is not None:
        fits &= values >= query.low
    if query.high is not None:
        fits &= values <= query.high
    if query.mark:
        fits &= _marked(records, query, marks or {})
    words = query.words.lower().split()
    if words:
        texts = records.texts(query.place, query.run)
        for row in np.flatnonzero(fits).tolist():
            if not all(word in texts[row] for word in words):
                fits[row] = False
    rows = drawn[fits[drawn]]
    own = values[rows]
    if query.order == "random":
        return rows, own
    if query.order == "median":
        known = np.sort(own[np.isfinite(own)])
        keys = np.abs(own - known[(len(known) - 1) // 2]) if len(known) else own
    else:
        keys = -own if query.order == "best" else own
    order = np.argsort(np.where(np.isnan(keys), np.inf, keys.round(DIGITS)), kind="stable")
    return rows[order], own[order]


def _marked(records: Records, query: Query, marks: Mapping[tuple[str, str], set[str]]) -> np.ndarray:
    own = {image_id: kinds for (run, image_id), kinds in marks.items() if run == query.run and kinds}
    if query.mark in ("any", "none"):
        hit = np.isin(np.array(records.image_ids, dtype=object), list(own)) if own else np.zeros(len(records), bool)
        return hit if query.mark == "any" else ~hit
    return np.array([query.mark in own.get(image_id, ()) for image_id in records.image_ids], dtype=bool)


def _read_scores(
    files: StudyFiles, references: str, image_ids: list[str], runs: list[str]
) -> tuple[dict[str, dict[str, np.ndarray]], np.ndarray]:
    """Scores by run and metric, and whether the reference set was seen in training, in the order of the images."""
    table = read_image_scores(files, references)
    places = pd.Index(image_ids).get_indexer(table["image_id"])
    table, places = table[places >= 0], places[places >= 0]
    seen = np.full(len(image_ids), None, dtype=object)
    if "reference_set_seen" in table:
        seen[places] = table["reference_set_seen"].astype(bool).to_numpy(object)
    metrics = [name for name in table.select_dtypes("number").columns if name not in NOT_METRICS]
    scores: dict[str, dict[str, np.ndarray]] = {}
    for run in runs:
        of_run = (table["run"] == run).to_numpy(bool)
        for metric in metrics:
            column = np.full(len(image_ids), np.nan)
            column[places[of_run]] = table[metric].to_numpy(np.float64)[of_run]
            if np.isfinite(column).any():
                scores.setdefault(run, {})[metric] = column
    return scores, seen


FORMAT = 1
LARGE = 5_000  # images from which it is worth it
KEPT = 4  # the last ones used; a study has a few: splits, kinds of references
COLUMNS = ("image_ids", "sources", "splits", "labels", "paths", "references", "said", "seen", "absent")


def cache_key(files: Sequence[Path], *asked: object) -> str:
    """A name for what is read from these files: it changes with their size and time of change and with what is asked."""
    stats = [(file.stat().st_size, file.stat().st_mtime_ns) if file.is_file() else None for file in files]
    return fingerprint_values(FORMAT, [str(file.absolute()) for file in files], stats, asked)[:24]


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
        np.savez(
            scratch / "scores.npz", **{str(n): records.scores[run][metric] for n, (run, metric) in enumerate(names)}
        )
    kept = sorted(cache_folder().glob("records_*/columns.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    for old in kept[KEPT:]:
        shutil.rmtree(old.parent, ignore_errors=True)


def open_records(
    files: StudyFiles, runs: Sequence[str] | None = None, *, split: str | None = None, references: str = "released"
) -> Records:
    """What ``read_records`` gives, from the cache where nothing has changed; large studies are kept there.

    Raises:
        FileNotFoundError, ValueError: as ``read_records``.
    """
    read = [files.table, files.scores / "captions.csv", *known_runs(files).values()]
    key = cache_key(read, str(files.root.absolute()), list(runs) if runs is not None else None, split, references)
    records = find_records(key)
    if records is None:
        records = read_records(files, runs, split=split, references=references)
        if len(records) >= LARGE:
            keep_records(key, records)
    return records


def _place(key: str) -> Path:
    return cache_folder() / f"records_{key}"
