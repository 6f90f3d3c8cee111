"""The caption gallery: what the captioner says of each image, beside the baselines and the references, on one page."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from rsvlm import paths
from rsvlm.data.images import open_image
from rsvlm.viewing.caption_entries import (
    BASELINES,
    CORPUS_METRICS,
    Entry,
    rank_entries,
    read_corpus_scores,
    read_entries,
)
from rsvlm.viewing.page import Sample, choose_sample, format_score, histogram_paths, new_words, render_page, write_page
from rsvlm.viewing.plots import BLUE, MUTED, VERMILION, figure, without_axes
from rsvlm.viewing.thumbnails import bytes_for_each, make_thumbnail, shrink

PAGE = "captions.html"
RUN_ORDER = ("captioner", "beam", "consensus", "nearest", "constant", "shuffled", "human")  # of the heading's table
BARS = ("CIDEr", "METEOR")  # drawn on every card; the other metrics stand in the enlarged view


def write_caption_gallery(
    path: Path | None = None,
    *,
    run: str = "captioner",
    baselines: Sequence[str] = BASELINES,
    split: str = "test",
    metric: str = "CIDEr",
    references: str = "released",
    images: int = 300,
    thumbnail_pixels: int = 192,
    page_megabytes: float = 5.0,
    seed: int = 0,
) -> dict[str, object]:
    """What was written: ``{"page", "images", "images_of_split", "bytes", "runs", "runs_absent"}``, after writing it.

    Args:
        path: the page; by default ``captions.html`` in the study's galleries.
        run: the run whose captions stand first.
        baselines: runs shown folded below; those that were not made are left out and named in the page's heading.
            The first that exists is the one that gaps are measured against.
        metric: chooses best, worst and middle images where the split has more than ``images``.
        references: which scores, against ``released`` or ``distinct`` references.
        images, thumbnail_pixels, page_megabytes: how much the page holds; JPEG quality gives way to the last.
    """
    path = path or paths.GALLERIES / PAGE
    entries, absent = read_entries(run, baselines, split=split, references=references)
    sample = choose_sample(len(entries), rank_entries(entries, run, metric), images, seed)
    shown = [entries[position] for position in sample.positions]
    runs = [name for name in (run, *baselines) if any(name in entry.captions for entry in entries)]
    runs = list(dict.fromkeys(runs))
    rival = runs[1] if len(runs) > 1 else None
    metrics = _known_metrics(entries, metric)
    values = {
        "study": " + ".join(sorted({entry.source for entry in entries})),
        "split": split,
        "references": references,
        "run": run,
        "runs": runs,
        "rival": rival,
        "absent": absent,
        "metrics": metrics,
        "metric": metric if metric in metrics else (metrics[0] if metrics else ""),
        "bars": [name for name in BARS if name in metrics],
        "tops": {name: _top(entries, runs, name) for name in metrics},
        "sample": sample,
        "sources": sorted({entry.source for entry in entries}),
        "labels": sorted({entry.label for entry in shown if entry.label}),
        "knows_seen": len({entry.seen for entry in shown} - {None}) == 2,
        "corpus": _corpus_table(read_corpus_scores(references)),
        "histogram": _histogram(entries, [name for name in (run, rival) if name], metric),
        "cards": [_card(entry, runs) for entry in shown],
        "data": _page_data(sample, entries, runs, rival, metrics, run),
        "thumbnails": [],
    }
    empty = dict(values, thumbnails=[None] * len(shown))
    text_bytes = len(render_page("captions.html", "captions.js", **empty).encode())
    most = bytes_for_each(page_megabytes, len(shown), text_bytes)
    values["thumbnails"] = [make_thumbnail(entry.path, thumbnail_pixels, most) for entry in shown]
    size = write_page(path, render_page("captions.html", "captions.js", **values))
    return {
        "page": _shown_path(path),
        "images": len(shown),
        "images_of_split": len(entries),
        "bytes": size,
        "runs": runs,
        "runs_absent": absent,
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


def _known_metrics(entries: Sequence[Entry], first: str) -> list[str]:
    """The metrics measured anywhere, ``first`` and those of the bars before the others, else in alphabetical order."""
    known = {name for entry in entries for scores in entry.scores.values() for name in scores}
    return sorted(known, key=lambda name: (name != first, name not in BARS, name))


def _top(entries: Sequence[Entry], runs: Sequence[str], metric: str) -> float:
    """The right end of a metric's bars: 1 for fractions, the next whole number for CIDEr."""
    values = [entry.score(run, metric) for entry in entries for run in runs]
    return float(max(1, math.ceil(max((value for value in values if value is not None), default=1.0))))


def _card(entry: Entry, runs: Sequence[str]) -> dict:
    texts = [text for text, _ in entry.references]
    return {
        "entry": entry,
        "name": entry.image_id.split("/", 1)[-1],
        "captions": [
            {"run": run, "text": entry.captions[run], "pieces": new_words(entry.captions[run], texts)}
            for run in runs
            if run in entry.captions
        ],
    }


def _page_data(
    sample: Sample, entries: Sequence[Entry], runs: list[str], rival: str | None, metrics: list[str], run: str
) -> dict:
    """What the page's script needs: scores rounded to 4 digits, ranks in the whole split, texts come from the cards."""
    ranks: dict[str, dict[str, int]] = {}
    for metric in metrics:
        for rank, position in enumerate(rank_entries(entries, run, metric), start=1):
            ranks.setdefault(entries[position].image_id, {})[metric] = rank
    measured = {metric: sum(1 for entry in entries if entry.score(run, metric) is not None) for metric in metrics}
    shown = [entries[position] for position in sample.positions]
    items = [
        {
            "id": entry.image_id,
            "draw": place if place < sample.drawn else None,
            "source": entry.source,
            "label": entry.label,
            "seen": entry.seen,
            "rank": ranks.get(entry.image_id, {}),
            "scores": {name: {m: round(v, 4) for m, v in entry.scores.get(name, {}).items()} for name in runs},
        }
        for place, entry in enumerate(shown)
    ]
    return {"run": run, "rival": rival, "runs": runs, "metrics": metrics, "measured": measured, "items": items}


def _corpus_table(rows: list[dict]) -> dict:
    """The heading's table: columns with a value anywhere, rows with one cell a column."""
    columns = [name for name in CORPUS_METRICS if any(name in row["scores"] for row in rows)]
    several = len({row["source"] for row in rows}) > 1
    place = {run: number for number, run in enumerate(RUN_ORDER)}
    rows = sorted(rows, key=lambda row: (row["source"], place.get(row["run"], len(place)), row["run"]))
    return {"columns": columns, "rows": rows, "several": several}


def _histogram(entries: Sequence[Entry], runs: Sequence[str], metric: str) -> dict | None:
    series = {run: [s for entry in entries if (s := entry.score(run, metric)) is not None] for run in runs}
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


def _shown_path(path: Path) -> str:
    return path.relative_to(paths.ROOT).as_posix() if path.is_relative_to(paths.ROOT) else path.name
