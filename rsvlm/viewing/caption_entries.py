"""What the caption gallery shows: each image with its captions, references and scores, read from the stages' files."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from rsvlm import paths
from rsvlm.data.table import load_table, rows_of
from rsvlm.files import read_json
from rsvlm.scoring.runs import RESERVED, read_captions
from rsvlm.viewing.page import format_score, read_reported

BASELINES = ("consensus", "nearest", "shuffled")
NOT_METRICS = ("run", "source", "split", "image_id", "references")
CORPUS_METRICS = ("BLEU-1", "BLEU-4", "METEOR", "ROUGE_L", "CIDEr", "SPICE")  # of the heading's table, where known


@dataclass(frozen=True)
class Entry:
    """One image with everything the gallery shows of it."""

    image_id: str
    source: str
    label: str
    path: str
    references: tuple[tuple[str, int], ...]  # distinct captions in their order, and how often each was given
    captions: dict[str, str]  # by run
    scores: dict[str, dict[str, float]] = field(default_factory=dict)  # by run, then metric; unknown ones are absent
    seen: bool | None = None  # whether some training image has just the same references; None where it is not known

    def score(self, run: str, metric: str) -> float | None:
        """The image's score, or None where it was not measured."""
        return self.scores.get(run, {}).get(metric)


def read_run(run: str, folder: Path | None = None) -> dict[str, str]:
    """The captions of one run by image id.

    Raises:
        FileNotFoundError: the run was not made; names the file and the runs that exist.
        ValueError: a row is not as it must be; names the file and the line.
    """
    folder = folder or paths.GENERATED
    path = folder / f"{run}.jsonl"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.jsonl"))) or "none"
        raise FileNotFoundError(
            f"{path}: no captions of run {run!r}; run the stage generate_captions (runs there: {known})"
        )
    return {image_id: caption.strip() for image_id, caption in read_captions(path).items()}


def read_image_scores(references: str = "released", path: Path | None = None) -> pd.DataFrame:
    """The per-image scores against one kind of references: run, image_id, perhaps reference_set_seen, and metrics.

    Args:
        references: ``released`` (all captions, as published) or ``distinct`` (copies within an image dropped).
        path: the table of scores; without such a file the answer has no rows.

    Raises:
        ValueError: the file has no column ``run`` or ``image_id``.
    """
    path = path or paths.SCORES / "captions.csv"
    if not path.is_file():
        return pd.DataFrame({"run": [], "image_id": []})
    table = pd.read_csv(path, dtype={"run": str, "image_id": str, "references": str})
    missing = [name for name in ("run", "image_id") if name not in table]
    if missing:
        raise ValueError(f"{path}: no column {missing[0]!r}; run the stage score_captions again")
    if "references" in table:
        table = table[table["references"] == references]
    return table.rename(columns=_plain_name)


def read_corpus_scores(references: str = "released", path: Path | None = None) -> list[dict]:
    """The corpus scores as rows ``{"run", "source", "scores": {metric: {"value", "low", "high", "n"}}}``.

    Without the file of the stage score_captions the answer is empty.
    """
    path = path or paths.METRICS / "score_captions.json"
    if not path.is_file():
        return []
    content = read_json(path)
    runs = content.get("captions", content) if isinstance(content, dict) else {}
    rows = []
    for run, sources in runs.items():
        if run in RESERVED:
            continue
        for source, scores in sources.items() if isinstance(sources, dict) else ():
            scores = scores.get(references, scores) if isinstance(scores, dict) else {}
            read = {_plain_name(name): read_reported(value) for name, value in scores.items()}
            read = {name: value for name, value in read.items() if isinstance(value["value"], int | float)}
            if any(name in read for name in CORPUS_METRICS):
                rows.append({"run": run, "source": source, "scores": read})
    return rows


def corpus_frame(references: str = "released") -> pd.DataFrame:
    """The corpus scores as text, one row a run and source: value and 95 % interval; empty where nothing was scored."""
    rows = read_corpus_scores(references)
    shown = [name for name in CORPUS_METRICS if any(name in row["scores"] for row in rows)]
    cells = [[row["run"], row["source"], *(_with_interval(row["scores"].get(name)) for name in shown)] for row in rows]
    return pd.DataFrame(cells, columns=["run", "source", *shown]).set_index("run")


def read_entries(
    run: str = "captioner",
    baselines: Sequence[str] = BASELINES,
    *,
    split: str = "test",
    references: str = "released",
) -> tuple[list[Entry], list[str]]:
    """All images of a split with their captions and scores, in the table's order, and the baselines that were not made.

    Raises:
        FileNotFoundError: the run itself was not made.
        ValueError: the split is empty, or the run has no caption for one of its images; names the image.
    """
    if references not in ("released", "distinct"):
        raise ValueError(f"references is {references!r}: give 'released' or 'distinct'")
    rows = rows_of(load_table(paths.IMAGE_TABLE), split=split)
    if rows.empty:
        raise ValueError(f"the image table has no image in split {split!r}; look at the stage aggregate_data")
    captions = {run: read_run(run)}
    absent = []
    for name in dict.fromkeys(baselines):
        if name == run:
            continue
        if (paths.GENERATED / f"{name}.jsonl").is_file():
            captions[name] = read_run(name)
        else:
            absent.append(name)
    table = read_image_scores(references)
    scores = _scores_by_image(table)
    seen = (
        dict(zip(table["image_id"], table["reference_set_seen"], strict=True)) if "reference_set_seen" in table else {}
    )
    entries = []
    for row in rows.itertuples(index=False):
        if row.image_id not in captions[run]:
            raise ValueError(
                f"{paths.GENERATED / run}.jsonl: no caption for {row.image_id!r} (split {split!r});"
                " run the stage generate_captions again"
            )
        said = {name: found[row.image_id] for name, found in captions.items() if row.image_id in found}
        entries.append(
            Entry(
                image_id=row.image_id,
                source=row.source,
                label=row.label if isinstance(row.label, str) else "",
                path=row.path,
                references=tuple(Counter(caption.strip() for caption in row.captions if caption.strip()).items()),
                captions=said,
                scores={name: scores[name, row.image_id] for name in said if (name, row.image_id) in scores},
                seen=bool(seen[row.image_id]) if row.image_id in seen else None,
            )
        )
    return entries, absent


def rank_entries(entries: Sequence[Entry], run: str, metric: str) -> list[int]:
    """Positions of the entries that have the score, best first, ties by image id."""
    known = [i for i, entry in enumerate(entries) if entry.score(run, metric) is not None]
    return sorted(known, key=lambda i: (-entries[i].score(run, metric), entries[i].image_id))


def _with_interval(score: dict | None) -> str:
    if score is None:
        return "–"
    known = score["low"] is not None and score["high"] is not None
    return format_score(score["value"], 3) + (
        f" [{format_score(score['low'])}, {format_score(score['high'])}]" if known else ""
    )


def _scores_by_image(table: pd.DataFrame) -> dict[tuple[str, str], dict[str, float]]:
    """Scores by (run, image id), each a dict of metric to value; missing values are left out."""
    metrics = [name for name in table.select_dtypes("number").columns if name not in NOT_METRICS]
    return {
        (run, image_id): {
            name: float(value) for name, value in zip(metrics, values, strict=True) if math.isfinite(value)
        }
        for run, image_id, *values in table[["run", "image_id", *metrics]].itertuples(index=False)
    }


def _plain_name(metric: str) -> str:
    """``BLEU-4`` for ``BLEU_4`` and ``Bleu_4``: the scorers of the field do not agree on one spelling."""
    return "BLEU-" + metric[5:] if metric.lower().startswith(("bleu_", "bleu-")) else metric
