"""The caption gallery: what a run says of each image beside the baselines, the references and the nearest training images.

The same values of JSON feed the static page of the stage and the notebook's widget, in which people mark what is good or
wrong. Marks lie in one CSV, a line a mark, added to and never rewritten. A mark is on the disk before the gallery says
that it is saved, so a killed kernel loses none. Taking one back adds a line with ``on`` = 0. Two notebooks may write at
the same time; a line that came in twice (sent again after a kernel was restarted) counts once, by its ``key``.
"""

import csv
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import HTML

from rsvlm.files import append_line
from rsvlm.models.features import Features, load_features, nearest_images
from rsvlm.safe_text import csv_line, from_cell
from rsvlm.scoring.bootstrap import difference_of_draws, mean_of, mean_statistics, resampled_sums
from rsvlm.scoring.captions import METRICS
from rsvlm.scoring.runs import RUNS, named
from rsvlm.scoring.terms import explained
from rsvlm.settings import closest_name
from rsvlm.viewing.language_marks import language_marks
from rsvlm.viewing.marked_words import WORD, mark_words
from rsvlm.viewing.page import (
    bytes_for_each,
    choose_sample,
    format_score,
    histogram_paths,
    make_thumbnail,
    render_page,
    show_cards,
    write_page,
)
from rsvlm.viewing.records import (
    BASELINES,
    CORPUS_METRICS,
    DIGITS,
    FIRST_METRICS,
    Entry,
    Query,
    Records,
    StudyFiles,
    open_records,
    rank_entries,
    read_corpus_scores,
    read_records,
    select_rows,
)

SCRIPTS, STYLES = ("dom.js", "gallery.js", "captions.js"), ("gallery.css",)
MARKS = ("good", "wrong object", "wrong count", "hallucinated", "wrong relation", "note")
ERRORS = MARKS[1:5]
LONGEST_NOTE = 2_000  # characters
TRAINING_PIXELS, TRAINING_SHARE = 96, 0.3  # pictures of training images: longer side, bytes as a share of a card's


@dataclass(frozen=True)
class Pair:
    """What the page of two runs side by side tells of them: the baseline on the left, the run against it on the right."""

    changed: Sequence[str] = ()  # from the baseline to the run, a line each
    training: str = ""  # whose the nearest training images are, or why there are none


def gallery_setting(
    records: Records, *, run: str, baseline: str | None = None, metric: str = "CIDEr", size: int
) -> dict[str, object]:
    """What the view knows before its first page: runs, metrics, the ends of their bars, and what can be filtered.

    Args:
        run: the run whose captions stand first.
        baseline: gaps are measured against it as long as no other run is compared with.
        metric: the one that orders at first; another where it was not measured.
        size: images of a page.

    Raises:
        ValueError: a metric that nothing measures.
    """
    if metric not in (*METRICS, *records.metrics):
        raise ValueError(f"metric: unknown metric {metric!r}{closest_name(metric, METRICS)}")
    metrics = sorted(records.metrics, key=lambda name: name != metric)
    highest = {name: [np.nanmax(own) for (_, key), own in records.scores.items() if key == name] for name in metrics}
    return {
        "run": run,
        "baseline": baseline,
        "runs": records.runs,
        "metric": metrics[0] if metrics else metric,
        "metrics": metrics,
        "bars": [name for name in FIRST_METRICS if name in metrics],
        # the right ends of the bars: 1 for fractions, the next whole number for CIDEr
        "tops": {name: float(max(1, math.ceil(max(own)))) for name, own in highest.items()},
        "sources": sorted(set(records.sources)),
        "splits": sorted(set(records.splits)),
        "labels": sorted(set(records.labels) - {""}),
        "languages": language_marks(records.how),
        "terms": explained([*(named(RUNS, run).name for run in records.runs), *metrics, "gap", "seen", "unseen"]),
        "knowsSeen": len(set(records.seen) - {None}) == 2,
        "images": len(records),
        "size": size,
    }


def gallery_item(entry: Entry, *, picture: str | None = None, marks: dict | None = None) -> dict[str, object]:
    """One image for the view.

    Args:
        picture: data URI of its thumbnail; None: it follows.
        marks: run -> ``{"kinds": [...], "note": text}``.
    """
    texts = [text for text, _ in entry.references]
    return {
        "id": entry.image_id,
        "name": entry.image_id.split("/", 1)[-1],
        "source": entry.source,
        "split": entry.split,
        "label": entry.label,
        "seen": entry.seen,
        "references": [[text, times] for text, times in entry.references],
        "languages": {code: [[text, times] for text, times in own] for code, own in entry.languages.items()},
        "said": {run: mark_words(said, texts) for run, said in entry.captions.items()},
        "scores": {
            run: {name: round(value, DIGITS) for name, value in own.items()} for run, own in entry.scores.items()
        },
        "picture": picture,
        "marks": marks or {},
    }


def read_features(files: StudyFiles) -> Features | None:
    """The study's features; None where none were made. Raises as ``load_features``."""
    return load_features(files.features) if (files.features / "meta.json").is_file() else None


def nearest_training(
    features: Features | None, table: pd.DataFrame, entries: Sequence[Entry], count: int
) -> dict[str, list[dict]]:
    """Image id -> its ``count`` nearest training images by cosine, nearest first: did the model copy what is said of them?

    Each is ``{"name", "cosine", "label", "captions", "path", "copied": run -> those captions that have the very words of what
    the run says of the image}``. There are none without features and where nothing was trained on.

    Raises:
        ValueError: an image has no features; names it.
    """
    near: dict[str, list[dict]] = {entry.image_id: [] for entry in entries}
    known = set(features.image_ids) if features and count else set()
    training = table[(table["split"] == "train") & table["image_id"].isin(known)].set_index("image_id")
    if training.empty:
        return near
    for entry, (_, own) in zip(
        entries, nearest_images(features, list(near), training.index, count).groupby("image_id", sort=False)
    ):
        for name, cosine in zip(own["neighbour"], own["cosine"]):
            row = training.loc[name]
            captions = list(dict.fromkeys(row["captions"]))
            copied = {
                run: [text for text in captions if _words(text) == _words(said)] for run, said in entry.captions.items()
            }
            near[entry.image_id].append(
                {"name": name, "cosine": cosine, "label": row["label"] or "", "captions": captions, "path": row["path"]}
                | {"copied": {run: texts for run, texts in copied.items() if texts}}
            )
    return near


def write_caption_gallery(
    path: Path,
    files: StudyFiles,
    *,
    run: str = "captioner",
    baselines: Sequence[str] = BASELINES,
    split: str = "test",
    metric: str = "CIDEr",
    references: str = "released",
    images: int = 300,
    neighbours: int = 3,
    thumbnail_pixels: int = 192,
    page_megabytes: float = 5.0,
    seed: int = 0,
    pair: Pair | None = None,
) -> dict[str, object]:
    """What was written: ``{"page", "images", "images_of_split", "bytes", "runs", "runs_absent"}``, after writing it.

    The page is the gallery of the notebook 90_browse without a kernel: the same script, fed from the page itself.

    Args:
        path: the page.
        files: its table, runs, scores, metrics and features are read.
        run: the run whose captions stand first.
        baselines: runs shown folded below; those that were not made are left out and named in the page's heading.
            The first that exists is the one that gaps are measured against.
        metric: chooses best, worst and middle images where the split has more than ``images``.
        references: which scores, against ``released`` or ``distinct`` references.
        images, thumbnail_pixels, page_megabytes: how much the page holds; JPEG quality gives way to the last.
        neighbours: nearest training images shown of each image, where features were made; 0: none.
        pair: the run and its only baseline are compared throughout, images ordered by the gap between the two.
    """
    records = read_records(
        files, [*baselines, run] if pair else [run, *baselines], split=split, references=references, whole=True
    )
    entries = [records.entry(row) for row in range(len(records))]
    baseline = next((name for name in records.runs if name != run), None)
    ranked = rank_entries(entries, run, metric)
    if pair:
        wanted = Query(run, baseline, metric, measure="gap", order="best")
        rows, gaps = select_rows(records, wanted, drawn=np.arange(len(records)))
        ranked = rows[np.isfinite(gaps)].tolist()
    sample = choose_sample(len(entries), ranked, images, seed)
    shown = [entries[position] for position in sample.positions]
    setting = gallery_setting(records, run=run, baseline=baseline, metric=metric, size=len(shown))
    setting |= {"images": len(shown), "labels": sorted({entry.label for entry in shown if entry.label})}
    setting |= {"pair": pair is not None, "training": pair.training if pair else ""}
    near = nearest_training(read_features(files) if neighbours else None, files.read_table(), shown, neighbours)
    training = {other["name"]: other for own in near.values() for other in own}
    corpus = read_corpus_scores(files, references)
    if pair:
        corpus.sort(key=lambda row: (row["source"], row["run"] == run))
    columns = [name for name in CORPUS_METRICS if any(name in row["scores"] for row in corpus)]
    values = {
        "study": " + ".join(setting["sources"]),
        "split": split,
        "references": references,
        "run": run,
        "runs": records.runs,
        "baseline": baseline,
        "absent": records.absent,
        "metric": setting["metric"] if setting["metrics"] else "",
        "sample": sample,
        "shown": len(shown),
        "neighbours": bool(training),
        "corpus": corpus,
        "columns": columns,
        "terms": explained(
            ["marked words", *(named(RUNS, row["run"]).name for row in corpus), *columns, *setting["terms"]]
        ),
        "histogram": _histogram(records, [name for name in (run, baseline) if name], metric),
        "pair": pair,
        "differences": _differences(records, run, baseline, metric) if pair else [],
    }

    def render(pictures: Mapping[str, str]) -> str:
        items = []
        for entry in shown:
            others = [[other["name"], other["cosine"], other["copied"]] for other in near[entry.image_id]]
            items.append(gallery_item(entry, picture=pictures.get(entry.image_id)) | {"near": others})
        told = {
            name: {"label": own["label"], "captions": own["captions"], "picture": pictures.get(name)}
            for name, own in training.items()
        }
        data = {"setting": setting, "items": items, "training": told}
        return render_page("pair.html" if pair else "captions.html", SCRIPTS, STYLES, data=data, **values)

    most = bytes_for_each(page_megabytes, len(shown) + TRAINING_SHARE * len(training), len(render({}).encode()))
    pictures = {entry.image_id: make_thumbnail(entry.path, thumbnail_pixels, most) for entry in shown}
    small = min(thumbnail_pixels, TRAINING_PIXELS)
    for name, own in training.items():
        pictures[name] = make_thumbnail(own["path"], small, int(TRAINING_SHARE * most))
    size = write_page(path, render(pictures))
    open_records(files)  # a large study's columns are kept, so that the notebook's gallery opens in a moment
    return {
        "page": files.shown(path),
        "images": len(shown),
        "images_of_split": len(entries),
        "bytes": size,
        "runs": records.runs,
        "runs_absent": records.absent,
    }


def show_caption_preview(entries: Sequence[Entry], *, run: str, metric: str, count: int = 8) -> HTML:
    """The best and the worst images by ``metric``, each with its caption and the first reference, for a notebook."""
    ranked, rows = rank_entries(entries, run, metric) or list(range(len(entries))), []
    for word, chosen in (("best", ranked[:count]), ("worst", ranked[::-1][:count])):
        cards = [
            {
                "picture": make_thumbnail(entry.path),
                "bold": format_score(entry.score(run, metric)),
                "title": entry.label or entry.source,
                "text": entry.captions[run] or "(empty caption)",
                "note": f"“{entry.references[0][0]}”" if entry.references else "no reference",
            }
            for entry in (entries[position] for position in chosen)
        ]
        rows.append({"head": f"The {len(chosen)} {word} by {metric}", "words": "", "cards": cards})
    return show_cards(rows)


def _histogram(records: Records, runs: Sequence[str], metric: str) -> dict | None:
    values = {run: records.values(run, metric) for run in runs}
    series = {run: own[np.isfinite(own)] for run, own in values.items() if np.isfinite(own).sum() > 1}
    if not series:
        return None
    width, height = 300.0, 84.0
    paths, top, highest = histogram_paths(series, width=width, height=height)
    return {"paths": paths, "top": top, "highest": highest, "width": width, "height": height, "metric": metric}


def _differences(records: Records, run: str, baseline: str | None, metric: str) -> list[dict]:
    """The run's mean score less the baseline's on the same images of each source, and on how many it is higher or lower."""
    gaps, rows = (records.values(run, metric) - records.values(baseline, metric)).round(DIGITS), []
    for source in sorted(set(records.sources)):
        own = gaps[(records.sources == source) & np.isfinite(gaps)]
        if len(own):
            draws = mean_of(resampled_sums(mean_statistics(own), seed=0, resamples=1000))
            counts = {"higher": int((own > 0).sum()), "lower": int((own < 0).sum())}
            rows.append({"source": source} | counts | difference_of_draws(own.mean(), draws, len(own)))
    return rows


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())


@dataclass(frozen=True)
class Mark:
    """One line of the file of marks.

    Raises:
        ValueError: an unknown kind, no image, run or author, or a note that is too long.
    """

    when: str  # UTC, ISO 8601
    who: str
    run: str
    image_id: str
    source: str
    label: str
    kind: str
    on: int  # 1: set, 0: taken back
    note: str
    caption: str  # what the run said then: runs are made again
    key: str  # made by the page, so that a line sent twice counts once

    def __post_init__(self) -> None:
        if self.kind not in MARKS:
            raise ValueError(f"mark {self.kind!r} is none of {', '.join(MARKS)}")
        for name in ("who", "run", "image_id", "key"):
            if not getattr(self, name):
                raise ValueError(f"a mark needs {name}")
        if self.on not in (0, 1):
            raise ValueError(f"on: 0 or 1 is needed, got {self.on!r}")
        if len(self.note) > LONGEST_NOTE:
            raise ValueError(f"a note of {len(self.note)} characters: at most {LONGEST_NOTE}")


MARK_COLUMNS = [one.name for one in fields(Mark)]


def save_mark(mark: Mark, path: Path) -> None:
    """Add a mark to the file; it is on the disk when this returns. Line breaks become spaces; no text is a formula."""
    texts = [str(value).replace("\n", " ").replace("\r", " ").replace("\0", " ") for value in astuple(mark)]
    append_line(path, csv_line(texts), head=",".join(MARK_COLUMNS))


def read_marks(path: Path) -> list[Mark]:
    """All lines of the file in their order, those of a key that came before left out; none without a file.

    A line that is no mark, such as one that a power failure left half written, is left out with a warning.

    Raises:
        ValueError: the file's first line is not that of a file of marks.
    """
    if not path.is_file():
        return []
    head, *lines = path.read_text(encoding="utf-8").split("\n")
    if head.rstrip("\r") != ",".join(MARK_COLUMNS):
        raise ValueError(f"{path}: the first line must be {','.join(MARK_COLUMNS)}")
    marks: dict[str, Mark] = {}
    for number, line in enumerate(lines, start=2):
        if line.strip():
            try:
                values = [from_cell(cell) for cell in next(csv.reader([line], strict=True))]
                if len(values) != len(MARK_COLUMNS):
                    raise ValueError(f"{len(values)} fields, {len(MARK_COLUMNS)} are needed")
                given = dict(zip(MARK_COLUMNS, values))
                mark = Mark(**given | {"on": {"0": 0, "1": 1}.get(given["on"], given["on"])})
            except (ValueError, csv.Error) as error:
                warnings.warn(f"{path}: line {number} is left out: {error}", stacklevel=2)
            else:
                marks.setdefault(mark.key, mark)
    return list(marks.values())


def standing_marks(marks: Iterable[Mark]) -> dict[tuple[str, str, str], dict[str, Mark]]:
    """(who, run, image id) -> kind -> the mark that stands: the last one, where it was not taken back."""
    standing: dict[tuple[str, str, str], dict[str, Mark]] = {}
    for mark in marks:
        own = standing.setdefault((mark.who, mark.run, mark.image_id), {})
        own.pop(mark.kind, None)
        if mark.on:
            own[mark.kind] = mark
    return {key: own for key, own in standing.items() if own}


def error_table(marks: Iterable[Mark], *, run: str | None = None) -> pd.DataFrame:
    """One row a class, one column a kind: how many images carry the mark, from whomever; a row ``all`` last.

    ``marked`` counts images with any mark but a note; ``wrong`` those with some error, and ``wrong, %`` their share.

    Args:
        run: of which run; None: all, an image counts once a run.
    """
    standing = [own for (_, own_run, _), own in standing_marks(marks).items() if run in (None, own_run)]
    rows = [
        (mark.run, mark.image_id, mark.label or "(no class)", kind) for own in standing for kind, mark in own.items()
    ]
    table = pd.DataFrame(rows, columns=["run", "image_id", "class", "kind"])
    image = [table["run"], table["image_id"]]
    table["class"] = table.groupby(image)["class"].transform("last")
    carries = pd.DataFrame({kind: table["kind"] == kind for kind in MARKS})
    each = carries.groupby([*image, table["class"]]).any()
    each["marked"], each["wrong"] = each[["good", *ERRORS]].any(axis=1), each[[*ERRORS]].any(axis=1)
    counted = each.groupby("class").sum()
    counted = pd.concat([counted, counted.sum().to_frame("all").T.rename_axis("class")]).astype(int)
    counted["wrong, %"] = (
        (100 * counted["wrong"] / counted["marked"].where(counted["marked"] > 0)).astype(float).round(1)
    )
    return counted
