"""What the caption gallery's view is told, as values of JSON: the same for the notebook's widget and the static page."""

import math
from collections.abc import Sequence

import numpy as np

from rsvlm.viewing.caption_entries import Entry
from rsvlm.viewing.neighbours import same_words
from rsvlm.viewing.page import mark_words
from rsvlm.viewing.records import DIGITS, FIRST_METRICS, Records


def gallery_setting(
    records: Records, *, run: str, rival: str | None = None, metric: str = "CIDEr", size: int
) -> dict[str, object]:
    """What the view knows before its first page: runs, metrics, the ends of their bars, and what can be filtered.

    Args:
        run: the run whose captions stand first.
        rival: gaps are measured against it as long as no other run is compared with.
        metric: the one that orders at first; another where it was not measured.
        size: images of a page.
    """
    metrics = sorted(records.metrics, key=lambda name: name != metric)
    return {
        "run": run,
        "rival": rival,
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
