"""The study's figures beside the published ones, and which of these they may be held against.

Where one of this study's figures may be held against a published one, and how it stands there.

Fair means: the same test images, all of them; the same kind of model (one trained on that benchmark alone against its
like, one trained on several against its like); the published protocol; and a figure that was read, not recalled. Metric
code and tokenisation still differ between papers, so "above" and "below" ask more than a difference: the study's whole
95 % interval lies on that side of the best comparable figure.

The study's table: its runs and baselines beside the published figures for the same source, on one scale.

``reports/metrics.json`` holds the study's own numbers only; the published ones are in the table, marked with how sure
they are.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from rsvlm.scoring.captions import METRICS
from rsvlm.scoring.published import RECALLS, TEST_IMAGES, Published, benchmark_name, published_for
from rsvlm.scoring.runs import HUMAN, METHODS, RUNS, in_order, named

ABOVE, LEVEL, BELOW = "above", "level", "below"
STANDINGS = (ABOVE, LEVEL, BELOW)
PUBLISHED_PROTOCOL = "remoteclip"


def standing(metrics: Mapping, task: str, source: str, name: str, metric: str) -> str | None:
    """ "above", "level" or "below" the best published figure that may fairly be compared; None where there is none.

    Args:
        metrics: what ``study_metrics`` gives.
        task: "captions" or "retrieval".
        name: a run or method.
    """
    entry = metrics[task].get(name, {}).get(source, {}).get(metric, {})
    if entry.get("value") is None or entry.get("low") is None or entry.get("high") is None:
        return None
    fair = [
        row.values[metric]
        for row in published_for(task, source)
        if metric in row.values and why_not_fair(metrics, task, source, name, row, metric) is None
    ]
    if not fair:
        return None
    best = max(fair)
    return ABOVE if entry["low"] > best else BELOW if entry["high"] < best else LEVEL


def why_not_fair(metrics: Mapping, task: str, source: str, name: str, row: Published, metric: str) -> str | None:
    """Why a run's figure may not be held against this published one; None where it may."""
    unfair = named(RUNS, name).unfair if task == "captions" else ""
    return (
        unfair
        or why_study_differs(metrics, task, source, row)
        or (None if row.verified(metric) else "recalled, not verified")
    )


def why_study_differs(metrics: Mapping, task: str, source: str, row: Published) -> str | None:
    """Why this study as a whole cannot be compared with a published row; None where it can."""
    protocol = metrics.get("protocol", {}).get(task, {})
    if protocol.get("split") != "test":
        return f"this study scored the split {protocol.get('split')!r}"
    wanted = TEST_IMAGES.get(benchmark_name(source))
    found = next((own[source][key].get("n") for own in metrics[task].values() if source in own
                  for key in ("CIDEr", "mean_recall") if key in own[source]), None)  # fmt: skip
    if found != wanted:
        return f"this study scored {found} of the benchmark's {wanted} test images"
    if task == "retrieval" and protocol.get("name") != PUBLISHED_PROTOCOL:
        return f"this study's protocol is {protocol.get('name', 'not recorded')!r}, not {PUBLISHED_PROTOCOL!r}"
    kind = study_kind(metrics)
    if kind is None:
        return "the record does not say what this study was trained on"
    return None if row.kind == kind else f"{row.kind}; this study is a {kind}"


def study_kind(metrics: Mapping) -> str | None:
    """ "specialist" for a study trained on one source, "generalist" for several; None where the record does not say.

    A source that only adapts the encoder counts.
    """
    sources = metrics.get("protocol", {}).get("captions", {}).get("sources")
    if not sources:
        return None
    trained = {name for name, entry in sources.items() if entry["training_images"] > 0}
    return "specialist" if len(trained | set(adapting_sources(metrics))) == 1 else "generalist"


def adapting_sources(metrics: Mapping) -> list[str]:
    """Sources of a recorded study that adapted the encoder and entered nothing else."""
    sources = metrics.get("parameters", {}).get("aggregate_data", {}).get("sources", [])
    return [source["name"] for source in sources if source.get("use") == "adapt"]


def unfair_notes(metrics: Mapping, task: str, source: str) -> list[str]:
    """One line a reason: the published models that no figure of this study was held against."""
    main = "CIDEr" if task == "captions" else "mean_recall"
    names: dict[str, list[str]] = {}
    for row in published_for(task, source):
        reason = why_study_differs(metrics, task, source, row)
        if reason is None and not any(row.verified(metric) for metric in row.values):
            reason = "recalled, not verified"
        elif reason is None and main not in row.values:
            reason = f"gives no {main}; compared where it gives a figure"
        if reason:
            names.setdefault(reason, []).append(row.name)
    return [f"{reason}: {', '.join(models)}" for reason, models in names.items()]


OURS = "this study"
HELD_OUT_DISTINCT = "one reference, held out, no copy of it left"
PARTS = ("distinct", "seen", "unseen")
CAPTION_EXTRAS = tuple(f"CIDEr_{part}" for part in PARTS)
RETRIEVAL_EXTRAS = ("mean_recall_by_text",)
CAPTION_TITLES = {f"CIDEr_{part}": f"CIDEr {part}" for part in PARTS}
RECALL_TITLES = {
    **{f"image_to_text_recall_at_{k}": f"I2T R@{k}" for k in (1, 5, 10)},
    **{f"text_to_image_recall_at_{k}": f"T2I R@{k}" for k in (1, 5, 10)},
    "mean_recall": "mean recall",
    "mean_recall_by_text": "mean recall by text",
}
COLUMNS = ["task", "source", "name", "kind", "status", "metric", "value", "low", "high", "n", "unit_of_source", "note"]
NOTHING_PUBLISHED = "No published figure is known for this source: it is this study's own."
NAMED = ("model", "kind", "status")  # columns that are no figures


@dataclass(frozen=True)
class ComparisonTable:
    """One task and source as text cells, with how each of the study's figures stands where that is fair."""

    task: str
    source: str
    cells: pd.DataFrame  # model, kind, status and a column a figure
    standings: pd.DataFrame  # the same shape: "above", "level", "below" or ""
    notes: list[str]

    @property
    def title(self) -> str:
        """The heading."""
        return f"{self.task.capitalize()}: {self.source}"


def study_metrics(
    captions: Mapping,
    retrieval: Mapping,
    provenance: Mapping,
    *,
    generation: Mapping | None = None,
    parameters: Mapping | None = None,
) -> dict:
    """{"captions": {RUN: {SOURCE: {...}}}, "retrieval": {METHOD: {SOURCE: {...}}}, "protocol", "provenance", ...}.

    Captions: each metric on released references, and CIDEr_distinct, CIDEr_seen, CIDEr_unseen; other metrics with
    _distinct where they differ; the texts' statistics and the hallucinated classes. Retrieval: what is scored by image,
    and mean_recall_by_text, RECALL_ceiling, other protocols. Each figure {"value", "low", "high", "n", ...}.

    Args:
        captions: what METRICS/score_captions.json holds.
        retrieval: what METRICS/score_retrieval.json holds.
        provenance: seed, versions, device.
        generation: how the captioner's captions were chosen, what METRICS/generate_captions.json holds.
        parameters: the study's parameter file.
    """
    runs = {run: _by_source(captions[run], _caption_figures) for run in in_order(RUNS, captions)}
    methods = {method: _by_source(retrieval[method], _retrieval_figures) for method in in_order(METHODS, retrieval)}
    protocol = {"captions": captions.get("protocol", {}), "retrieval": retrieval.get("protocol", {})}
    texts = {run: _by_source(captions[run], _text_figures) for run in runs}
    return {
        "captions": runs,
        "texts": {run: by_source for run, by_source in texts.items() if any(by_source.values())},
        "retrieval": methods,
        "retrieval_protocols": {
            method: {source: entry["protocols"] for source, entry in retrieval[method].items() if "protocols" in entry}
            for method in methods
        },
        "paired": captions.get("paired", {}),
        "paired_retrieval": retrieval.get("paired", {}),
        "protocol": protocol,
        "generation": dict(generation or {}),
        "parameters": dict(parameters or {}),
        "provenance": dict(provenance),
    }


def comparison_rows(metrics: Mapping) -> pd.DataFrame:
    """One row a figure, ours and published: COLUMNS. Values as fractions, CIDEr on pycocoevalcap's scale.

    Args:
        metrics: what ``study_metrics`` gives.
    """
    rows = []
    for task in ("captions", "retrieval"):
        for source in sources_of(metrics[task]):
            for name, by_source in metrics[task].items():
                for metric, entry in by_source.get(source, {}).items():
                    rows.append(_own_row(task, source, name, metric, entry))
            for published in published_for(task, source):
                rows += [_published_row(published, source, metric, value) for metric, value in published.values.items()]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"n": "Int64"})  # whole numbers, also beside unknown ones


def sources_of(by_name: Mapping[str, Mapping]) -> list[str]:
    """The sources that some run or method was scored on, sorted."""
    return sorted({source for by_source in by_name.values() for source in by_source})


def comparison_tables(metrics: Mapping) -> list[ComparisonTable]:
    """The tables of each task and source that the study has scored."""
    made = [caption_table(metrics, source) for source in sources_of(metrics["captions"])]
    return made + [retrieval_table(metrics, source) for source in sources_of(metrics["retrieval"])]


def caption_table(metrics: Mapping, source: str) -> ComparisonTable:
    """The captions of one source: ours first, then published specialists, then generalists."""
    shown = [*METRICS, *CAPTION_EXTRAS]
    rows = []
    for run, by_source in metrics["captions"].items():
        if source in by_source:
            entries = by_source[source]
            rows.append(_own_cells(metrics, "captions", source, run, entries, shown, CAPTION_TITLES))
            if run == HUMAN and "CIDEr_distinct" in entries:
                rest = {metric: entries.get(f"{metric}_distinct", {}) for metric in METRICS}
                if rest["CIDEr"].get("value") != entries["CIDEr"].get("value"):
                    label = {"model": HELD_OUT_DISTINCT}
                    cells, _ = _own_cells(metrics, "captions", source, run, rest, shown, CAPTION_TITLES)
                    rows.append((cells | label, {}))
    rows += [(_published_cells(row, shown, CAPTION_TITLES), {}) for row in published_for("captions", source)]
    return _table(metrics, "captions", source, rows, kept="CIDEr")


def retrieval_table(metrics: Mapping, source: str) -> ComparisonTable:
    """The recalls of one source in percent: ours first, the ceiling, then published."""
    shown = list(RECALL_TITLES)
    rows, ceiling = [], {}
    for method, by_source in metrics["retrieval"].items():
        if source in by_source:
            entries = by_source[source]
            ceiling = ceiling or {name: entries[f"{name}_ceiling"] for name in RECALLS if f"{name}_ceiling" in entries}
            rows.append(_own_cells(metrics, "retrieval", source, method, entries, shown, RECALL_TITLES, percent=True))
    if ceiling:
        cells = {RECALL_TITLES[name]: _cell(ceiling.get(name), percent=True) for name in shown}
        rows.append(({"model": METHODS["ceiling"].label, "kind": "ceiling", "status": "computed", **cells}, {}))
    rows += [
        (_published_cells(row, shown, RECALL_TITLES, percent=True), {}) for row in published_for("retrieval", source)
    ]
    return _table(metrics, "retrieval", source, rows, kept="mean recall")


def _own_cells(
    metrics: Mapping, task: str, source: str, name: str, entries: Mapping, shown: Sequence[str], titles: Mapping,
    percent: bool = False,
) -> tuple[dict, dict]:  # fmt: skip
    """(cells, standings) of one of the study's rows; the main figure with its interval."""
    label = named(RUNS if task == "captions" else METHODS, name).label
    cells = {"model": label, "kind": OURS, "status": "measured"}
    standings = {}
    for metric in shown:
        title = titles.get(metric, metric)
        cells[title] = _cell(entries.get(metric), percent=percent, interval=metric in ("CIDEr", "mean_recall"))
        standings[title] = (standing(metrics, task, source, name, metric) or "") if cells[title] else ""
    return cells, standings


def _published_cells(row: Published, shown: Sequence[str], titles: Mapping, percent: bool = False) -> dict:
    cells = {titles.get(name, name): _cell({"value": row.values.get(name)}, percent=percent) for name in shown}
    status = f"{row.status} ({row.note})" if row.note else row.status
    return {"model": row.name, "kind": row.kind, "status": status, **cells}


def _table(metrics: Mapping, task: str, source: str, rows: list[tuple[dict, dict]], kept: str) -> ComparisonTable:
    cells = pd.DataFrame([row for row, _ in rows])
    cells = cells[[column for column in cells if column == kept or (cells[column] != "").any()]]
    marks = [[own.get(column, "") for column in cells] for _, own in rows]
    standings = pd.DataFrame(marks, columns=cells.columns, index=cells.index)
    notes = [f"Not held against the study's figures: {note}." for note in unfair_notes(metrics, task, source)]
    if not published_for(task, source):
        notes = [NOTHING_PUBLISHED]
    if adapting := adapting_sources(metrics):
        notes.insert(0, f"The encoder was adapted on training images of {', '.join(adapting)} too.")
    if task == "retrieval":
        name = metrics.get("protocol", {}).get("retrieval", {}).get("name", "remoteclip, as far as recorded")
        notes.insert(0, f"Protocol {name}, right answers by image unless a column says otherwise.")
    return ComparisonTable(task, source, cells, standings, notes)


def _by_source(by_source: Mapping, figures: Callable[[Mapping], dict]) -> dict[str, dict]:
    return {source: figures(by_source[source]) for source in sorted(by_source)}


def _caption_figures(entry: Mapping) -> dict[str, dict]:
    released, distinct = entry.get("released", {}), entry.get("distinct", {})
    figures = dict(released)
    for name, part in zip(CAPTION_EXTRAS, PARTS, strict=True):
        if "CIDEr" in entry.get(part, {}):
            figures[name] = entry[part]["CIDEr"]
    figures |= {
        f"{metric}_distinct": own
        for metric, own in distinct.items()
        if metric != "CIDEr" and own != released.get(metric)
    }
    return figures


def _text_figures(entry: Mapping) -> dict[str, dict]:
    return {part: entry[part] for part in ("text", "classes") if part in entry}


def _retrieval_figures(entry: Mapping) -> dict[str, dict]:
    figures = dict(entry.get("by_image", {}))
    if "mean_recall" in entry.get("by_text", {}):
        figures["mean_recall_by_text"] = entry["by_text"]["mean_recall"]
    return figures | {f"{name}_ceiling": own for name, own in entry.get("ceiling", {}).items() if name in RECALLS}


def _own_row(task: str, source: str, name: str, metric: str, entry: Mapping) -> dict:
    interval = {key: entry.get(key) for key in ("value", "low", "high", "n")}
    row = {"task": task, "source": source, "name": name, "kind": OURS, "status": "measured", "metric": metric}
    return row | interval | {"unit_of_source": "", "note": entry.get("reason", "")}


def _published_row(row: Published, source: str, metric: str, value: float) -> dict:
    named = {"task": row.task, "source": source, "name": row.name, "kind": row.kind, "status": row.status}
    return named | {"metric": metric, "value": value, "unit_of_source": row.unit, "note": row.note}


def _cell(entry: Mapping | None, *, percent: bool = False, interval: bool = False) -> str:
    """A figure as text, with standard deviation and interval where asked; why it was not run; empty when unknown."""
    entry = entry or {}
    if not _is_number(entry.get("value")):
        reason = str(entry.get("reason", ""))
        return reason.split(" (")[0] if reason.startswith("not run") else ""
    scale, digits = (100, 1) if percent else (1, 3)
    text = f"{scale * entry['value']:.{digits}f}"
    if interval and _is_number(entry.get("standard_deviation")):
        text += f" ± {scale * entry['standard_deviation']:.{digits}f}"
    if interval and _is_number(entry.get("low")) and _is_number(entry.get("high")):
        text += f" [{scale * entry['low']:.{digits}f}, {scale * entry['high']:.{digits}f}]"
    return text


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
