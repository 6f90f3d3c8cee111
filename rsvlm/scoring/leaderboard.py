"""Other models beside each other: every figure with what it was measured on, by which protocol, at what cost, and leaks.

Measured rows and quoted ones, which stand in publications, are kept apart. A model that could not be measured has a
row with the reason.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from rsvlm.files import read_json
from rsvlm.scoring.comparison import (
    PAPERS_DIFFER,
    TITLES,
    ComparisonTable,
    as_table,
    caption_figures,
    figure_cells,
    published_cells,
    retrieval_figures,
)
from rsvlm.scoring.leak_flags import family_of, leak_flags
from rsvlm.scoring.published import MAIN, published_for
from rsvlm.scoring.runs import ABOUT, SCORES

MEASURED, FAILED = "measured", "failed"
TITLE = "Models measured on this study's images"
NOTES = [
    "Measured rows come from this study's images, one protocol and one scorer; published ones from their authors' own.",
    "Retrieval by RemoteCLIP's protocol, right answers by image; captions by pycocoevalcap on references as released.",
    "ms an image: read, decoded and encoded or captioned, in batches, on the device that leaderboard.json names.",
]
TASKS = {
    "captions": ("captions",),
    "retrieval": ("encoder", "embeddings"),
}  # settings of an entry that give such scores
FIGURES = {"captions": caption_figures, "retrieval": retrieval_figures}
PROTOCOL = {"captions": "pycocoevalcap", "retrieval": "remoteclip"}
COLUMNS = [
    "model", "origin", "task", "source", "split", "metric", "protocol", "references", "value", "low", "high", "n",
    "weights", "fingerprint", "device", "precision", "seconds_an_image", "gigabytes", "trained_on", "leaks", "reason",
]  # fmt: skip


def read_models(folder: Path, names: Sequence[str]) -> dict[str, dict]:
    """name -> what its measurement left: "about", and "metrics" unless it failed.

    Raises:
        FileNotFoundError: a model was not measured yet; names it and the command.
    """
    found = {}
    for name in names:
        about = folder / name / ABOUT
        if not about.is_file():
            raise FileNotFoundError(f"{about.parent}: not measured yet; `dvc repro run_model@{name}` does it")
        found[name] = {"about": read_json(about)}
        if "failed" not in found[name]["about"]:
            found[name]["metrics"] = read_json(folder / name / SCORES)
    return found


def leaderboard_rows(models: Mapping[str, Mapping], audit: Mapping | None, *, quoted: bool = True) -> list[dict]:
    """One row a figure: COLUMNS. Values as fractions, CIDEr on pycocoevalcap's scale; what is unknown is None.

    Args:
        models: what ``read_models`` gives.
        audit: what AGGREGATED/report.json holds, for what is told of leaks.
        quoted: with the published figures of the same test sets.
    """
    rows = [row for name, model in models.items() for row in _rows_of(name, model, audit)]
    if quoted:
        tested = dict.fromkeys((row["task"], row["source"]) for row in rows if row["source"])
        rows += [_quoted(published, task, metric) for task, source in tested for published in published_for(task, source)
                 for metric in published.values]  # fmt: skip
    return rows


def leaderboard_tables(
    models: Mapping[str, Mapping], audit: Mapping | None, *, quoted: bool = True
) -> list[ComparisonTable]:
    """A table for each task and source: measured models, best first, those that failed, and what was published."""
    failed = {task: _failed(models, task) for task in TITLES}
    whole = {name: model for name, model in models.items() if "metrics" in model}
    tables = []
    for task in TITLES:
        for source in sorted({source for model in whole.values() for source in model["metrics"].get(task, {})}):
            rows = []
            for name, model in whole.items():
                entry = model["metrics"].get(task, {}).get(source)
                if entry is not None:
                    figures = FIGURES[task](entry)
                    score = figures.get(MAIN[task], {}).get("value") or 0.0
                    rows.append((score, _cells(name, model, task, source, figures, audit)))
            rows = [(cells, {}) for _, cells in sorted(rows, key=lambda row: -row[0])]
            published = [(cells, {}) for cells in published_cells(task, source)] if quoted else []
            tables.append(
                as_table(task, source, [*rows, *failed[task], *published], [PAPERS_DIFFER] if published else [])
            )
    alone = [task for task in TITLES if failed[task] and task not in {table.task for table in tables}]
    return tables + [as_table(task, "nothing measured", failed[task], []) for task in alone]


def leaks_of(about: Mapping, source: str, audit: Mapping | None) -> list[str]:
    """What is known of a source's test images among what a model was trained on, in plain sentences."""
    facts = about["facts"]
    about_it = facts.get("finetune") or family_of(source) in facts["leaks"].casefold()
    return leak_flags(facts["trained_on"], facts["leaks"] if about_it else "", source, about["split"], audit)


def _rows_of(name: str, model: Mapping, audit: Mapping | None) -> list[dict]:
    about = model["about"]
    bare = dict.fromkeys(COLUMNS)
    if "failed" in about:
        return [bare | {"model": name, "origin": FAILED, "reason": about["failed"]}]
    facts, rows = about["facts"], []
    known = {
        key: facts.get(key)
        for key in ("weights", "fingerprint", "device", "precision", "seconds_an_image", "gigabytes")
    }
    own = bare | known | {"model": name, "origin": MEASURED, "split": about["split"], "trained_on": facts["trained_on"]}
    for task, by_source in model["metrics"].items():
        for source, entry in by_source.items():
            here = own | {"task": task, "source": source, "leaks": leaks_of(about, source, audit)}
            parts = [(PROTOCOL[task], FIGURES[task](entry))]
            parts += [(protocol, figures) for protocol, figures in entry.get("protocols", {}).items()]
            for protocol, figures in parts:
                for metric, figure in figures.items():
                    kind = metric.rpartition("_")[2] if task == "captions" and "_" in metric else ""
                    rows.append(
                        here
                        | {"metric": metric, "protocol": protocol, "reason": figure.get("reason")}
                        | {
                            "references": (kind if kind in ("distinct", "seen", "unseen") else "released")
                            if task == "captions"
                            else None
                        }
                        | {key: figure.get(key) for key in ("value", "low", "high", "n")}
                    )
    return rows


def _quoted(published: object, task: str, metric: str) -> dict:
    return dict.fromkeys(COLUMNS) | {
        "model": published.name,
        "origin": f"quoted: {published.status}",
        "task": task,
        "source": published.source,
        "split": "test",
        "metric": metric,
        "value": published.values[metric],
        "weights": published.weights,
        "reason": published.note or None,
    }


def _cells(
    name: str, model: Mapping, task: str, source: str, figures: Mapping, audit: Mapping | None
) -> dict[str, str]:
    facts = model["about"]["facts"]
    cells = {"model": name, "kind": MEASURED, "status": "; ".join(leaks_of(model["about"], source, audit))}
    cells |= figure_cells(task, figures, interval=MAIN[task])
    cells["weights, millions"] = f"{facts['weights'] / 1e6:,.1f}" if facts.get("weights") else ""
    cells["ms an image"] = f"{1000 * facts['seconds_an_image']:.1f}" if facts.get("seconds_an_image") else ""
    return cells | {"memory, GB": f"{facts['gigabytes']:.1f}" if facts.get("gigabytes") else ""}


def _failed(models: Mapping[str, Mapping], task: str) -> list[tuple[dict, dict]]:
    """Rows of the models that were to have a score in this task and have none."""
    told = {name: model["about"] for name, model in models.items() if "failed" in model["about"]}
    return [
        ({"model": name, "kind": FAILED, "status": _short(about["failed"])}, {})
        for name, about in told.items()
        if any(about["entry"].get(setting) for setting in TASKS[task])
    ]


def _short(reason: str) -> str:
    return reason if len(reason) <= 300 else f"{reason[:299]}…"


def as_frame(rows: Sequence[Mapping]) -> pd.DataFrame:
    """The rows as a table, lists as texts."""
    frame = pd.DataFrame(list(rows), columns=COLUMNS)
    for column in ("trained_on", "leaks"):
        frame[column] = ["; ".join(own) if isinstance(own, list) else own for own in frame[column]]
    return frame
