"""All captioned images of a study with their captions and scores in columns, and the questions a gallery asks of them.

45,000 images are columns of some tens of megabytes; pictures are not among them. What a page shows is made for that page
only (``Records.entry``). Reading that many from JSON lines and CSV takes seconds: ``open_records`` keeps the columns of
a large study as they were last read, anew when one of the stages' files changes.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from rsvlm.data.caption_languages import ENGLISH
from rsvlm.data.table import load_table
from rsvlm.data.translations import COLUMNS as TRANSLATED
from rsvlm.data.translations import load_translations
from rsvlm.disks import is_open
from rsvlm.files import cache_folder, fingerprint_values, read_json, whole_file
from rsvlm.safe_text import read_csv
from rsvlm.scoring.runs import RUNS, in_order, read_captions, run_files
from rsvlm.viewing.language_marks import captions_by_image, how_captions_came
from rsvlm.viewing.page import format_score, read_reported

BASELINES = ("consensus", "nearest", "shuffled")
CORPUS_METRICS = ("BLEU-1", "BLEU-4", "METEOR", "ROUGE_L", "CIDEr", "SPICE")  # of a page's table, where known
FIRST_METRICS = ("CIDEr", "METEOR")  # in menus and on cards before the others
REFERENCES = ("released", "distinct")
ORDERS = ("random", "best", "worst", "median")
PLACES = ("said", "references", "all")  # where a search looks
MEASURES = ("score", "gap")
DIGITS = 4  # of scores that are shown and ordered by, so that the static page orders as this does

FORMAT = 3  # of the columns that are kept
LARGE = 5_000  # images from which keeping them is worth it
KEPT = 4  # the last ones used; a study has a few: splits, kinds of references


@dataclass(frozen=True, kw_only=True)
class StudyFiles:
    """Where the parts of a study lie: a page or a widget reads those that it shows, and says which one is missing."""

    root: Path = Path()  # relative paths of the image table start here
    table: Path = Path("images.parquet")  # the image table
    translations: Path = Path("translations.jsonl")  # its captions in other languages
    generated: Path = Path("generated")  # captions, a JSON-lines file a run
    others: Path = Path("others")  # other models' captions, likewise
    scores: Path = Path("scores")  # scores of each image: captions.csv
    metrics: Path = Path("metrics")  # score_captions.json, score_retrieval.json
    features: Path = Path("features")
    ret_embeddings: Path = Path("ret_embeddings")
    encoder: Path = Path("encoder")
    captioner: Path = Path("captioner")
    instructions: Path = Path("instructions")  # tasks.jsonl
    answers: Path = Path("answers")  # to instructions, and from where on they are told
    languages: Path = Path("languages")  # what reads other languages into the encoder's space
    search_index: Path = Path("search_index")
    earth: Path = Path("earth")  # the globe as a scene, and the vectors of its windows
    marks: Path = Path("marks.csv")  # what people found good or wrong
    dialogues: Path = Path("user/dialogues")  # exported ones

    def read_table(self, columns: Sequence[str] | None = None, split: str | None = None) -> pd.DataFrame:
        """The image table, its paths ready to be opened. Arguments and errors as ``load_table``."""
        return load_table(self.table, self.root, columns, split)

    def read_translations(self, table: pd.DataFrame) -> pd.DataFrame:
        """The table's captions in other languages, as ``load_translations`` gives them; no row where there are none."""
        if not self.translations.is_file():
            return pd.DataFrame(columns=TRANSLATED, dtype=object)
        return load_translations(self.translations, table)

    def shown(self, path: Path) -> str:
        """A path as a person of the study calls it: relative to the root, or the name alone where it lies elsewhere."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.name

    def runs(self) -> dict[str, Path]:
        """run -> its file: those that were made and other models', in the order of tables. Raises as ``run_files``."""
        made = run_files(self.generated, self.others)
        return {run: made[run] for run in in_order(RUNS, made)}


@dataclass(frozen=True)
class Entry:
    """One image with everything the gallery shows of it."""

    image_id: str
    source: str
    split: str
    label: str
    path: str
    references: tuple[tuple[str, int], ...]  # distinct captions in their order, and how often each was given
    captions: dict[str, str]  # by run
    scores: dict[str, dict[str, float]]  # by run, then metric; unknown ones are absent
    seen: bool | None  # whether some training image has just the same references; None where it is not known
    languages: dict[str, tuple[tuple[str, int], ...]] = field(default_factory=dict)  # the references in other ones

    def score(self, run: str, metric: str) -> float | None:
        """The image's score, or None where it was not measured."""
        return self.scores.get(run, {}).get(metric)


@dataclass(frozen=True)
class Records:
    """Columns of N images; see the module's text."""

    image_ids: list[str]
    sources: np.ndarray  # (N,) object, as are the next two
    splits: np.ndarray
    labels: np.ndarray  # "" where there is none
    paths: list[str]
    references: list[list[str]]
    said: dict[str, list[str | None]]  # by run, in the order asked for; None: no caption for this image
    scores: dict[tuple[str, str], np.ndarray]  # by run and metric: (N,) float64, NaN where it was not measured
    seen: np.ndarray  # (N,) object: whether a training image has just the same references; None: not known
    absent: list[str] = field(default_factory=list)  # runs that were asked for and not made
    languages: dict[str, list[list[str]]] = field(default_factory=dict)  # by code: references in it, none: not there
    how: dict[str, str] = field(default_factory=dict)  # by code: how they came about
    _texts: dict[tuple[str, str], list[str]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def runs(self) -> list[str]:
        """The runs, in the order they were asked for."""
        return list(self.said)

    @cached_property
    def metrics(self) -> list[str]:
        """The metrics measured anywhere: the usual first ones, then by name."""
        return sorted({metric for _, metric in self.scores}, key=lambda name: (name not in FIRST_METRICS, name))

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Row of each image id."""
        return {image_id: row for row, image_id in enumerate(self.image_ids)}

    def entry(self, row: int) -> Entry:
        """Everything that is known of one image."""
        scores: dict[str, dict[str, float]] = {}
        for (run, metric), values in self.scores.items():
            if np.isfinite(values[row]):
                scores.setdefault(run, {})[metric] = float(values[row])
        return Entry(
            image_id=self.image_ids[row],
            source=self.sources[row],
            split=self.splits[row],
            label=self.labels[row],
            path=self.paths[row],
            references=_counted(self.references[row]),
            captions={run: own[row] for run, own in self.said.items() if own[row] is not None},
            scores=scores,
            seen=self.seen[row],
            languages={code: _counted(own[row]) for code, own in self.languages.items() if own[row]},
        )

    def values(self, run: str | None, metric: str) -> np.ndarray:
        """(N,) scores of a run; all NaN where they were not measured."""
        return self.scores.get((run, metric), np.full(len(self), np.nan))

    def texts(self, place: str, run: str) -> list[str]:
        """N texts in lower case to search in: what the run said, the references, or all that stands on a card."""
        key = (place, run if place == "said" else "")
        if key not in self._texts:
            if place == "said":
                made = [(text or "").lower() for text in self.said[run]]
            elif place == "references":
                columns = [self.references, *self.languages.values()]
                made = ["\n".join(dict.fromkeys(text for own in row for text in own)).lower() for row in zip(*columns)]
            else:
                columns = [self.texts("references", ""), *(self.texts("said", one) for one in self.said)]
                named = zip(self.image_ids, self.labels)
                made = ["\n".join(own) for own in zip((f"{name}\n{label}".lower() for name, label in named), *columns)]
            self._texts[key] = made
        return self._texts[key]


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
    language: str = ""  # images with references in it; empty: no matter
    mark: str = ""  # a kind of mark, "any", "none" or no matter
    low: float | None = None  # smallest value of the measure
    high: float | None = None  # largest

    def __post_init__(self) -> None:
        allowed = {"order": ORDERS, "place": PLACES, "measure": MEASURES, "seen": ("", "yes", "no")}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name}: {getattr(self, name)!r} is none of {', '.join(map(repr, values))}")
        for name, value in {"low": self.low, "high": self.high}.items():
            if value is not None and not isinstance(value, int | float):
                raise ValueError(f"{name}: a number is needed, got {value!r}")


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
        references: which scores, against ``released`` (all captions, as published) or ``distinct`` references (copies
            within an image dropped).
        whole: every image of the split is wanted; an image without the first run's caption is an error.

    Raises:
        FileNotFoundError: the image table, or the first run, was not made; names what is there.
        ValueError: the split is empty; ``whole`` and an image without caption (names it); ``references`` is unknown; a
            file is not as it must be (names it).
    """
    if references not in REFERENCES:
        raise ValueError(f"references is {references!r}: give 'released' or 'distinct'")
    rows = files.read_table(split=split)
    made = files.runs()
    wanted = list(dict.fromkeys(made if runs is None else runs))
    if not wanted:
        raise FileNotFoundError(f"{files.generated}: no generated captions; run the stage generate_captions")
    if wanted[0] not in made:
        raise FileNotFoundError(
            f"{files.generated / wanted[0]}.jsonl: no captions of run {wanted[0]!r}; run the stage generate_captions"
            f" (runs there: {', '.join(sorted(made)) or 'none'})"
        )
    captions = {run: read_captions(made[run]) for run in wanted if run in made}
    if whole:
        bare = next((image_id for image_id in rows["image_id"] if image_id not in captions[wanted[0]]), None)
        if bare is not None:
            raise ValueError(
                f"{made[wanted[0]]}: no caption for {bare!r} (split {split!r});"
                " run the stage generate_captions again, or complete the file where it is another model's"
            )
    else:
        rows = rows[rows["image_id"].isin({image_id for own in captions.values() for image_id in own})]
    image_ids = rows["image_id"].tolist()
    scores, seen = _read_scores(files, references, image_ids, list(captions))
    said = {run: [own.get(image_id) for image_id in image_ids] for run, own in captions.items()}
    translations = files.read_translations(rows)
    foreign, how = captions_by_image(translations), how_captions_came(translations)
    return Records(
        image_ids=image_ids,
        sources=rows["source"].to_numpy(object),
        splits=rows["split"].to_numpy(object),
        labels=rows["label"].fillna("").to_numpy(object),
        paths=rows["path"].tolist(),
        references=rows["captions"].tolist(),
        said={run: [text if text is None else text.strip() for text in own] for run, own in said.items()},
        scores=scores,
        seen=seen,
        absent=[run for run in wanted if run not in made],
        languages={code: [foreign.get(image_id, {}).get(code, []) for image_id in image_ids] for code in how},
        how=how,
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
        FileNotFoundError, ValueError: as ``read_records``.
    """
    records = read_records(files, [run, *baselines], split=split, references=references, whole=True)
    return [records.entry(row) for row in range(len(records))], records.absent


def open_records(
    files: StudyFiles, runs: Sequence[str] | None = None, *, split: str | None = None, references: str = "released"
) -> Records:
    """What ``read_records`` gives, from the cache where nothing has changed; large studies are kept there.

    Raises:
        FileNotFoundError, ValueError: as ``read_records``.
    """
    read = [files.table, files.translations, files.scores / "captions.csv", *files.runs().values()]
    stats = [(file.stat().st_size, file.stat().st_mtime_ns) if file.is_file() else None for file in read]
    states = [[str(file.absolute()), stat] for file, stat in zip(read, stats)]
    asked = (str(files.root.absolute()), None if runs is None else list(runs), split, references)
    kept = cache_folder() / f"records_{fingerprint_values(FORMAT, states, asked)[:24]}.npz"
    if kept.is_file():
        os.utime(kept)  # those used longest ago go first when there are too many
        return _load_records(kept)
    records = read_records(files, runs, split=split, references=references)
    if len(records) >= LARGE and is_open(kept.parent):
        _save_records(kept, records)
        by_use = sorted(kept.parent.glob("records_*.npz"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
        for old in by_use[KEPT:]:
            old.unlink(missing_ok=True)
    return records


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
        values = (values - records.values(query.baseline, query.metric).round(DIGITS)).round(DIGITS)
    fits = np.ones(len(records), dtype=bool)
    for column, wanted in (
        (records.sources, query.source),
        (records.splits, query.split),
        (records.labels, query.label),
        (records.seen, {"yes": True, "no": False}.get(query.seen, "")),
    ):
        if wanted != "":
            fits &= column == wanted
    if query.language not in ("", ENGLISH):
        fits &= np.array([bool(own) for own in records.languages.get(query.language, [[]] * len(records))], dtype=bool)
    if query.low is not None:
        fits &= values >= query.low
    if query.high is not None:
        fits &= values <= query.high
    if query.mark:
        kinds = [(marks or {}).get((query.run, image_id), set()) for image_id in records.image_ids]
        with_mark = {"any": bool, "none": lambda own: not own}.get(query.mark, lambda own: query.mark in own)
        fits &= np.array([with_mark(own) for own in kinds], dtype=bool)
    words = query.words.lower().split()
    if words:
        texts = records.texts(query.place, query.run)
        for row in np.flatnonzero(fits).tolist():
            fits[row] = all(word in texts[row] for word in words)
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


def rank_entries(entries: Sequence[Entry], run: str, metric: str) -> list[int]:
    """Positions of the entries that have the score, best first, ties by image id."""
    known = [i for i, entry in enumerate(entries) if entry.score(run, metric) is not None]
    return sorted(known, key=lambda i: (-entries[i].score(run, metric), entries[i].image_id))


def read_corpus_scores(files: StudyFiles, references: str = "released") -> list[dict]:
    """The corpus scores as rows ``{"run", "source", "scores": {metric: {"value", "low", "high", "n"}}}``, by source.

    Without the file of the stage score_captions the answer is empty.
    """
    path = files.metrics / "score_captions.json"
    content = read_json(path) if path.is_file() else {}
    rows = []
    for run in in_order(RUNS, content):
        for source, kinds in content[run].items():
            read = {name: read_reported(kinds.get(references, {}).get(name)) for name in CORPUS_METRICS}
            read = {name: own for name, own in read.items() if own["value"] is not None}
            if read:
                rows.append({"run": run, "source": source, "scores": read})
    return sorted(rows, key=lambda row: row["source"])  # stable: the runs stay in their order


def corpus_frame(files: StudyFiles, references: str = "released") -> pd.DataFrame:
    """The corpus scores as text, one row a run and source: value and 95 % interval; empty where nothing was scored."""
    rows = read_corpus_scores(files, references)
    shown = [name for name in CORPUS_METRICS if any(name in row["scores"] for row in rows)]
    cells = [[row["run"], row["source"], *(_with_interval(row["scores"].get(name)) for name in shown)] for row in rows]
    return pd.DataFrame(cells, columns=["run", "source", *shown]).set_index("run")


def _counted(texts: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """Distinct texts in their order, and how often each was given."""
    return tuple(Counter(text.strip() for text in texts if text.strip()).items())


def _with_interval(score: dict | None) -> str:
    if score is None:
        return "–"
    known = score["low"] is not None and score["high"] is not None
    interval = f" [{format_score(score['low'])}, {format_score(score['high'])}]" if known else ""
    return format_score(score["value"], 3) + interval


def _read_scores(
    files: StudyFiles, references: str, image_ids: list[str], runs: list[str]
) -> tuple[dict[tuple[str, str], np.ndarray], np.ndarray]:
    """Scores by run and metric, and whether the reference set was seen in training, in the order of the images.

    Without the file of the stage score_captions nothing is known.
    """
    path = files.scores / "captions.csv"
    if not path.is_file():
        return {}, np.full(len(image_ids), None, dtype=object)
    types = {"run": "category", "image_id": str, "references": "category", "source": "category"}
    table = read_csv(path, types)
    missing = [name for name in ("run", "image_id", "references", "reference_set_seen") if name not in table]
    if missing:
        raise ValueError(f"{path}: no column {missing[0]!r}; run the stage score_captions again")
    table = table[table["references"] == references]
    seen = dict(zip(table["image_id"], table["reference_set_seen"].astype(bool)))
    metrics = table.select_dtypes("number").columns
    scores = {}
    for run in runs:
        own = table[table["run"] == run].set_index("image_id")[metrics].reindex(image_ids)
        scores |= {(run, name): own[name].to_numpy(np.float64) for name in metrics if own[name].notna().any()}
    return scores, np.array([seen.get(image_id) for image_id in image_ids], dtype=object)


COLUMNS = (
    "image_ids", "sources", "splits", "labels", "paths", "references", "said", "seen", "absent", "languages", "how",
)  # fmt: skip


def _save_records(path: Path, records: Records) -> None:
    columns = {name: getattr(records, name) for name in COLUMNS} | {"scores": list(records.scores)}
    text = json.dumps(columns, ensure_ascii=False, default=np.ndarray.tolist)
    arrays = {str(number): values for number, values in enumerate(records.scores.values())}
    with whole_file(path) as scratch, scratch.open("wb") as file:
        np.savez(file, columns=np.frombuffer(text.encode(), np.uint8), **arrays)


def _load_records(path: Path) -> Records:
    with np.load(path, allow_pickle=False) as arrays:
        columns = json.loads(arrays["columns"].tobytes())
        scores = {tuple(key): arrays[str(number)] for number, key in enumerate(columns.pop("scores"))}
    for name in ("sources", "splits", "labels", "seen"):
        columns[name] = np.array(columns[name], dtype=object)
    return Records(**columns, scores=scores)
