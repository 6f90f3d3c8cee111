"""The caption gallery: what its view is told, the nearest training images, and its page.

The training images most like an image: did the model copy what is said of them?

Read straight from the features' files with numpy: a page of captions needs no torch.

What the caption gallery's view is told, as values of JSON: the same for the notebook's widget and the static page.

The caption gallery: what the captioner says of each image, beside the baselines and the references, on one page.
"""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rsvlm.data.images import open_image
from rsvlm.files import read_json
from rsvlm.scoring.runs import RUNS, in_order
from rsvlm.viewing.caption_entries import (
    BASELINES,
    CORPUS_METRICS,
    Entry,
    StudyFiles,
    rank_entries,
    read_corpus_scores,
)
from rsvlm.viewing.page import WORD, choose_sample, format_score, histogram_paths, mark_words, render_page, write_page
from rsvlm.viewing.plots import BLUE, MUTED, VERMILION, figure, shrink, without_axes
from rsvlm.viewing.records import DIGITS, FIRST_METRICS, Records, open_records, read_records
from rsvlm.viewing.thumbnails import bytes_for_each, make_thumbnail

QUERIES = 64  # images that are looked up together


@dataclass(frozen=True)
class TrainingImages:
    """The embeddings of a study's images, and which of them are training images."""

    vectors: np.ndarray  # (N, D) rows of length 1, a memory map
    row_of: dict[str, int]
    training: np.ndarray  # rows of training images
    image_ids: list[str]


@dataclass(frozen=True)
class Neighbour:
    """A training image and its cosine to the image it is near to."""

    image_id: str
    cosine: float


def open_training_images(table: pd.DataFrame, folder: Path) -> TrainingImages | None:
    """The training images of the table with their embeddings; None where no features were made or nothing was trained on.

    Args:
        folder: of the features.

    Raises:
        ValueError: the features' files do not fit each other; names the folder.
    """
    if not (folder / "meta.json").is_file():
        return None
    image_ids = read_json(folder / "meta.json")["image_ids"]
    vectors = np.load(folder / "image_embeddings.npy", mmap_mode="r")
    if len(vectors) != len(image_ids):
        raise ValueError(f"{folder}: {len(vectors)} embeddings for {len(image_ids)} images; run encode_images again")
    row_of = {image_id: row for row, image_id in enumerate(image_ids)}
    training = [row_of[name] for name in table.loc[table["split"] == "train", "image_id"] if name in row_of]
    return TrainingImages(vectors, row_of, np.array(training, dtype=np.int64), image_ids) if training else None


def nearest_training(images: TrainingImages, image_ids: Sequence[str], count: int = 3) -> list[list[Neighbour]]:
    """For each image its ``count`` nearest training images by cosine, nearest first, itself left out.

    Raises:
        ValueError: an image has no features; names it.
    """
    unknown = next((image_id for image_id in image_ids if image_id not in images.row_of), None)
    if unknown is not None:
        raise ValueError(f"image {unknown!r} has no features; run the stage encode_images again")
    rows = np.array([images.row_of[image_id] for image_id in image_ids], dtype=np.int64)
    found = []
    for block in np.array_split(rows, -(-len(rows) // QUERIES) or 1):
        cosines = (images.vectors @ images.vectors[block].T)[images.training]  # (training images, queries)
        for row, own in zip(block.tolist(), cosines.T, strict=True):
            order = np.lexsort((images.training, -own))[: count + 1]
            near = [(int(images.training[i]), float(own[i])) for i in order if images.training[i] != row][:count]
            found.append([Neighbour(images.image_ids[other], round(cosine, 4)) for other, cosine in near])
    return found


def same_words(one: str, other: str) -> bool:
    """Whether two captions have the same words in the same order, case and punctuation ignored."""
    return WORD.findall(one.lower()) == WORD.findall(other.lower())


def gallery_setting(
    records: Records, *, run: str, baseline: str | None = None, metric: str = "CIDEr", size: int
) -> dict[str, object]:
    """What the view knows before its first page: runs, metrics, the ends of their bars, and what can be filtered.

    Args:
        run: the run whose captions stand first.
        baseline: gaps are measured against it as long as no other run is compared with.
        metric: the one that orders at first; another where it was not measured.
        size: images of a page.
    """
    metrics = sorted(records.metrics, key=lambda name: name != metric)
    return {
        "run": run,
        "baseline": baseline,
        "runs": records.runs,
        "metric": metrics[0] if metrics else metric,
        "metrics": metrics,
        "bars": [name for name in FIRST_METRICS if name in metrics],
        "tops": {name: _top(records, name) for name in metrics},
        "sources": sorted(set(records.sources)),
        "splits": sorted(set(records.splits)),
        "labels": sorted(set(records.labels) - {""}),
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
        "said": {run: mark_words(said, texts) for run, said in entry.captions.items()},
        "scores": {
            run: {name: round(value, DIGITS) for name, value in own.items()} for run, own in entry.scores.items()
        },
        "picture": picture,
        "marks": marks or {},
    }


def copied_captions(entry: Entry, captions: Sequence[str]) -> dict[str, list[str]]:
    """run -> those of the captions of another image that have the very words of what the run says of this one."""
    copied = {run: [text for text in captions if same_words(text, said)] for run, said in entry.captions.items()}
    return {run: own for run, own in copied.items() if own}


def _top(records: Records, metric: str) -> float:
    """The right end of a metric's bars: 1 for fractions, the next whole number for CIDEr."""
    highest = [np.nanmax(own[metric]) for own in records.scores.values() if metric in own]
    return float(max(1, math.ceil(max(highest, default=1.0))))


SCRIPTS, STYLES = ("dom.js", "gallery.js", "captions.js"), ("gallery.css",)
TRAINING_PIXELS, TRAINING_SHARE = 96, 0.3  # pictures of training images: longer side, bytes as a share of a card's


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
    """
    records = read_records(files, [run, *baselines], split=split, references=references, whole=True)
    entries = [records.entry(row) for row in range(len(records))]
    sample = choose_sample(len(entries), rank_entries(entries, run, metric), images, seed)
    shown = [entries[position] for position in sample.positions]
    baseline = records.runs[1] if len(records.runs) > 1 else None
    setting = gallery_setting(records, run=run, baseline=baseline, metric=metric, size=len(shown))
    setting |= {"images": len(shown), "labels": sorted({entry.label for entry in shown if entry.label})}
    near = _training(shown, neighbours, files)
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
        "neighbours": bool(near["training"]),
        "corpus": _corpus_table(read_corpus_scores(files, references)),
        "histogram": _histogram(records, [name for name in (run, baseline) if name], metric),
    }

    def render(pictures: dict[str, str]) -> str:
        items = [
            gallery_item(entry, picture=pictures.get(entry.image_id)) | {"near": near["of"][entry.image_id]}
            for entry in shown
        ]
        training = {name: own | {"picture": pictures.get(name)} for name, own in near["training"].items()}
        data = {"setting": setting, "items": items, "training": training}
        return render_page("captions.html", SCRIPTS, STYLES, data=data, **values)

    text_bytes = len(render({}).encode())
    weight = len(shown) + TRAINING_SHARE * len(near["training"])
    most = bytes_for_each(page_megabytes, weight, text_bytes)
    pictures = {entry.image_id: make_thumbnail(entry.path, thumbnail_pixels, most).uri for entry in shown}
    small = min(thumbnail_pixels, TRAINING_PIXELS)
    for name, place in near["paths"].items():
        pictures[name] = make_thumbnail(place, small, int(TRAINING_SHARE * most)).uri
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


def draw_caption_preview(
    entries: Sequence[Entry], *, run: str, metric: str, best: bool, count: int = 8, columns: int = 4
) -> Figure:
    """A grid of the ``count`` best or worst images by ``metric``, each with its caption and the first reference."""
    ranked = rank_entries(entries, run, metric) or list(range(len(entries)))
    chosen = ranked[:count] if best else ranked[::-1][:count]
    columns = min(columns, max(1, len(chosen)))
    rows = max(1, math.ceil(len(chosen) / columns))
    width, height = 2.5 * columns, 3.75 * rows + 0.35
    # Placed by hand: constrained layout does not count the words below the pictures. 80 dpi keeps the notebook small.
    drawn, axes = figure(width, height, rows=rows, columns=columns, squeeze=False, layout="none", dpi=80)
    drawn.subplots_adjust(0.01, 0.85 / height, 0.99, 1 - 0.65 / height, wspace=0.07, hspace=0.52)
    word = "best" if best else "worst"
    drawn.text(
        0.01, 1 - 0.12 / height, f"The {len(chosen)} {word} by {metric}", va="top", fontsize=12, fontweight="bold"
    )
    without_axes(axes)
    for axis, position in zip(axes.flat, chosen, strict=False):
        entry = entries[position]
        axis.imshow(np.asarray(shrink(open_image(entry.path), 224)), interpolation="lanczos")
        value = format_score(entry.score(run, metric))
        axis.set_title(
            f"{value}   {_plain(entry.label or entry.source)}", fontsize=9, color=BLUE if best else VERMILION
        )
        said = _wrapped(entry.captions[run] or "(empty caption)", 37)
        truth = _wrapped(f"“{entry.references[0][0]}”" if entry.references else "no reference", 41, lines=2)
        below = {"xy": (0, 0), "xycoords": "axes fraction", "textcoords": "offset points", "va": "top"}
        axis.annotate(said, xytext=(0, -6), fontsize=8, **below)
        axis.annotate(
            truth, xytext=(0, -10 - 11.5 * (said.count("\n") + 1)), fontsize=7.2, color=MUTED, style="italic", **below
        )
    return drawn


def show_caption_preview(entries: Sequence[Entry], *, run: str, metric: str, count: int = 8) -> None:
    """Draw and show the best and the worst images in a notebook."""
    for best in (True, False):
        draw_caption_preview(entries, run=run, metric=metric, best=best, count=count)
        plt.show()


def _training(shown: Sequence[Entry], count: int, files: StudyFiles) -> dict[str, dict]:
    """Nearest training images: ``of`` image id -> [[training id, cosine, copied]], what is known of them, their paths."""
    table = files.read_table()
    images = open_training_images(table, files.features) if count else None
    if images is None:
        return {"of": {entry.image_id: [] for entry in shown}, "training": {}, "paths": {}}
    rows = table.set_index("image_id")
    of, training, places = {}, {}, {}
    for entry, own in zip(shown, nearest_training(images, [entry.image_id for entry in shown], count), strict=True):
        of[entry.image_id] = []
        for other in own:
            row = rows.loc[other.image_id]
            captions = list(dict.fromkeys(row["captions"]))
            of[entry.image_id].append([other.image_id, other.cosine, copied_captions(entry, captions)])
            training[other.image_id] = {"label": row["label"] or "", "captions": captions}
            places[other.image_id] = row["path"]
    return {"of": of, "training": training, "paths": places}


def _corpus_table(rows: list[dict]) -> dict:
    """The heading's table: columns with a value anywhere, rows with one cell a column."""
    columns = [name for name in CORPUS_METRICS if any(name in row["scores"] for row in rows)]
    several = len({row["source"] for row in rows}) > 1
    place = {run: number for number, run in enumerate(in_order(RUNS, (row["run"] for row in rows)))}
    rows = sorted(rows, key=lambda row: (row["source"], place[row["run"]]))
    return {"columns": columns, "rows": rows, "several": several}


def _histogram(records: Records, runs: Sequence[str], metric: str) -> dict | None:
    values = {run: records.values(run, metric) for run in runs}
    series = {run: own[np.isfinite(own)].tolist() for run, own in values.items()}
    series = {run: values for run, values in series.items() if len(values) > 1}
    if not series:
        return None
    width, height = 300.0, 84.0
    paths, top, highest = histogram_paths(series, width=width, height=height)
    return {"paths": paths, "top": top, "highest": highest, "width": width, "height": height, "metric": metric}


def _wrapped(text: str, width: int, lines: int = 3) -> str:
    return _plain("\n".join(textwrap.wrap(text, width, max_lines=lines, placeholder=" …")))


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # matplotlib reads $...$ as mathematics: a caption never is
