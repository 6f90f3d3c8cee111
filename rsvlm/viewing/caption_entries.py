"""What is known of one image's captions, as the stages' files hold it: runs, references, scores."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from rsvlm.data.table import load_table
from rsvlm.files import read_json
from rsvlm.scoring.runs import RESERVED, RUNS, in_order, read_captions, run_files
from rsvlm.viewing.page import format_score, read_reported

BASELINES = ("consensus", "nearest", "shuffled")
CORPUS_METRICS = ("BLEU-1", "BLEU-4", "METEOR", "ROUGE_L", "CIDEr", "SPICE")  # of the heading's table, where known


@dataclass(frozen=True, kw_only=True)
class StudyFiles:
    """Where the parts of a study lie: a page or a widget reads those that it shows, and says which one is missing."""

    root: Path = Path()  # relative paths of the image table start here
    table: Path = Path("images.jsonl")  # the image table
    generated: Path = Path("generated")  # captions, a JSON-lines file a run
    others: Path = Path("others")  # other models' captions, likewise
    scores: Path = Path("scores")  # scores of each image: captions.csv
    metrics: Path = Path("metrics")  # generate_captions.json, score_captions.json, score_retrieval.json
    features: Path = Path("features")
    ret_embeddings: Path = Path("ret_embeddings")
    encoder: Path = Path("encoder")
    captioner: Path = Path("captioner")
    search_index: Path = Path("search_index")
    marks: Path = Path("marks.csv")  # what people found good or wrong
    dialogues: Path = Path("dialogues")  # exported ones

    def read_table(self) -> pd.DataFrame:
        """The image table, its paths ready to be opened. Raises as ``load_table``."""
        return load_table(self.table, self.root)

    def shown(self, path: Path) -> str:
        """A path as a person of the study calls it: relative to the root, or the name alone where it lies elsewhere."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.name


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
    split: str = "test"

    def score(self, run: str, metric: str) -> float | None:
        """The image's score, or None where it was not measured."""
        return self.scores.get(run, {}).get(metric)


def known_runs(files: StudyFiles) -> dict[str, Path]:
    """run -> its file: the runs that were made and other models' captions, in the order of the study's tables.

    Raises:
        ValueError: as ``run_files``.
    """
    made = run_files(files.generated, files.others)
    return {run: made[run] for run in in_order(RUNS, made)}


def read_run(files: StudyFiles, run: str) -> dict[str, str]:
    """The captions of one run by image id.

    Raises:
        FileNotFoundError: the run was not made; names the file and the runs that exist.
        ValueError: a row is not as it must be; names the file and the line.
    """
    made = known_runs(files)
    if run not in made:
        raise FileNotFoundError(
            f"{files.generated / run}.jsonl: no captions of run {run!r}; run the stage generate_captions"
            f" (runs there: {', '.join(sorted(made)) or 'none'})"
        )
    return {image_id: caption.strip() for image_id, caption in read_captions(made[run]).items()}


def read_image_scores(files: StudyFiles, references: str = "released") -> pd.DataFrame:
    """The per-image scores against one kind of references: run, image_id, perhaps reference_set_seen, and metrics.

    Without the file of the stage score_captions the answer has no rows.

    Args:
        references: ``released`` (all captions, as published) or ``distinct`` (copies within an image dropped).

    Raises:
        ValueError: the file has no column ``run`` or ``image_id``.
    """
    path = files.scores / "captions.csv"
    if not path.is_file():
        return pd.DataFrame({"run": [], "image_id": []})
    table = pd.read_csv(
        path, dtype={"run": "category", "image_id": str, "references": "category", "source": "category"}
    )
    missing = [name for name in ("run", "image_id") if name not in table]
    if missing:
        raise ValueError(f"{path}: no column {missing[0]!r}; run the stage score_captions again")
    if "references" in table:
        table = table[table["references"] == references]
    return table.rename(columns=_plain_name)


def read_corpus_scores(files: StudyFiles, references: str = "released") -> list[dict]:
    """The corpus scores as rows ``{"run", "source", "scores": {metric: {"value", "low", "high", "n"}}}``.

    Without the file of the stage score_captions the answer is empty.
    """
    path = files.metrics / "score_captions.json"
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


def corpus_frame(files: StudyFiles, references: str = "released") -> pd.DataFrame:
    """The corpus scores as text, one row a run and source: value and 95 % interval; empty where nothing was scored."""
    rows = read_corpus_scores(files, references)
    shown = [name for name in CORPUS_METRICS if any(name in row["scores"] for row in rows)]
    cells = [[row["run"], row["source"], *(_with_interval(row["scores"].get(name)) for name in shown)] for row in rows]
    return pd.DataFrame(cells, columns=["run", "source", *shown]).set_index("run")


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


def _plain_name(metric: str) -> str:
    """``BLEU-4`` for ``BLEU_4`` and ``Bleu_4``: the scorers of the field do not agree on one spelling."""
    return "BLEU-" + metric[5:] if metric.lower().startswith(("bleu_", "bleu-")) else metric
