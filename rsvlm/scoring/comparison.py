"""The study's table: its runs and baselines beside the published figures for the same source, as data and as pages.

``reports/metrics.json`` holds the study's own numbers only; the published ones are in the table, marked with how sure
they are. As Markdown and LaTeX every text from data is escaped; the page is ``rsvlm.viewing.comparison_page``.
"""

import html
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import pandas as pd

from rsvlm.scoring.captions import METRICS
from rsvlm.scoring.published import (
    ABOVE,
    BELOW,
    EITHER,
    LEVEL,
    MAIN,
    RECALLS,
    adapting_sources,
    benchmark_name,
    published_for,
    standing,
    unfair_notes,
)
from rsvlm.scoring.runs import HUMAN, METHODS, RESERVED, RUNS, in_order, named
from rsvlm.scoring.terms import explained

OURS = "this study"
HELD_OUT_DISTINCT = f"{RUNS[HUMAN].name}, no copy of it left"
PARTS = ("distinct", "seen", "unseen")
TITLES = {  # task -> metric -> the column's heading
    "captions": {metric: metric for metric in METRICS} | {f"CIDEr_{part}": f"CIDEr {part}" for part in PARTS},
    "retrieval": {
        **{f"image_to_text_recall_at_{k}": f"I2T R@{k}" for k in (1, 5, 10)},
        **{f"text_to_image_recall_at_{k}": f"T2I R@{k}" for k in (1, 5, 10)},
        "mean_recall": "mean recall",
        "mean_recall_by_text": "mean recall by text",
    },
}
COLUMNS = ["task", "source", "name", "kind", "status", "metric", "value", "low", "high", "n", "unit_of_source", "note"]
NOTHING_PUBLISHED = "No published figure is known for this source: it is this study's own."
NAMED = ("model", "kind", "status")  # columns that are no figures

TITLE = "Comparison with published figures"
INTERVALS = "Brackets: 95 % interval over images; ±: standard deviation over draws."
RECALLS_IN_PERCENT = "I2T: image to text; T2I: text to image; recalls in percent."
TWO_TEST_SETS = (
    "RSICD has two test sets under one name: captioning papers report on rsicd_captioning (1,094 images, many with equal"
    " references), retrieval papers on rsicd_retrieval (1,093); the most frequent training caption has CIDEr 0.48 on the first and 0.17 on the second."
)
PAPERS_DIFFER = "Metric code, splits and tokenisation differ between papers."
COLOURS = {ABOVE: "#cfe6f7", LEVEL: "#eeeeee", BELOW: "#fbe3c0"}  # told apart by colour-blind readers and in grey
MARKS = {ABOVE: "▲", LEVEL: "=", BELOW: "▼"}
MEANINGS = {
    ABOVE: "the interval lies above the best comparable published figure",
    LEVEL: "that figure lies within the interval",
    BELOW: "the interval lies below it",
}
NOT_COLOURED = "Everything else has no comparable published figure: other images, kind of model or protocol, or unread."
LATEX_COLUMNS = (  # what fits a page
    "model", "kind", "status",
    "BLEU-1", "BLEU-4", "METEOR", "ROUGE_L", "CIDEr", "SPICE", "CIDEr distinct", "CIDEr unseen",
    "I2T R@1", "I2T R@5", "I2T R@10", "T2I R@1", "T2I R@5", "T2I R@10", "mean recall",
)  # fmt: skip
LATEX_SIGNS = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "±": r"$\pm$", '"': "''",
})  # fmt: skip


@dataclass(frozen=True)
class ComparisonTable:
    """One task and source as text cells, with how each of the study's figures stands where that is fair."""

    task: str
    source: str
    cells: pd.DataFrame  # model, kind, status and a column a figure
    standings: pd.DataFrame  # the same shape: "above", "level", "below" or ""
    notes: list[str]
    tries: tuple[str, ...] = ()  # the folders of notebooks run by hand that it was made in

    @property
    def title(self) -> str:
        """The heading."""
        made = f" (a try, not the study: {', '.join(self.tries)})" if self.tries else ""
        return f"{self.task.capitalize()}: {self.source}{made}"


def study_metrics(stages: Mapping[str, Mapping], provenance: Mapping, *, made_in: str | None = None) -> dict:
    """{"captions": {RUN: {SOURCE: {...}}}, "retrieval": {METHOD: {SOURCE: {...}}}, "protocol", "provenance", ...}.

    Captions: each metric on released references, and CIDEr_distinct, CIDEr_seen, CIDEr_unseen; other metrics with
    _distinct where they differ; the texts' statistics and the hallucinated classes. Retrieval: what is scored by image,
    and mean_recall_by_text, RECALL_ceiling, other protocols. Each figure {"value", "low", "high", "n", ...}.
    "parameters" holds those that each stage used; "weights" how many weights an image's features and a caption take; "tries" where it was made by hand, and of what, if it was.

    Args:
        stages: the metrics files of the stages, by stage: score_captions and score_retrieval, and what there is of others.
        provenance: seed, versions, device.
        made_in: the folder of a notebook run by hand.
    """
    captions, retrieval = stages["score_captions"], stages["score_retrieval"]
    tries = sorted({made_in, *(numbers.get("try") for numbers in stages.values())} - {None})
    runs = {run: _by_source(captions[run], caption_figures) for run in in_order(RUNS, captions)}
    methods = {method: _by_source(retrieval[method], retrieval_figures) for method in in_order(METHODS, retrieval)}
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
        "negation": retrieval.get("negation", {}),
        "protocol": protocol,
        "generation": {k: v for k, v in stages.get("generate_captions", {}).items() if k not in RESERVED},
        "parameters": {stage: numbers["parameters"] for stage, numbers in stages.items() if "parameters" in numbers},
        "weights": {
            part: number
            for stage, part in (("adapt_encoder", "image_encoder"), ("finetune_lora", "captioner"))
            if (number := stages.get(stage, {}).get("weights"))
        },
        "provenance": dict(provenance),
    } | ({"tries": tries} if tries else {})


def comparison_rows(metrics: Mapping) -> pd.DataFrame:
    """One row a figure, ours and published: COLUMNS. Values as fractions, CIDEr on pycocoevalcap's scale.

    Args:
        metrics: what ``study_metrics`` gives.
    """
    rows = []
    for task in TITLES:
        for source in sources_of(metrics[task]):
            for name, by_source in metrics[task].items():
                for metric, entry in by_source.get(source, {}).items():
                    figures = (entry.get(key) for key in ("value", "low", "high", "n"))
                    rows.append([task, source, name, OURS, "measured", metric, *figures, "", entry.get("reason", "")])
            for row in published_for(task, source):
                given, told = [task, source, row.name, row.kind, row.status], [None, None, None, row.unit, row.note]
                rows += [[*given, metric, value, *told] for metric, value in row.values.items()]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"n": "Int64"})  # whole numbers, also beside unknown ones


def sources_of(by_name: Mapping[str, Mapping]) -> list[str]:
    """The sources that some run or method was scored on, sorted."""
    return sorted({source for by_source in by_name.values() for source in by_source})


def comparison_tables(metrics: Mapping) -> list[ComparisonTable]:
    """The tables of each task and source that the study has scored."""
    return [comparison_table(metrics, task, source) for task in TITLES for source in sources_of(metrics[task])]


def comparison_table(metrics: Mapping, task: str, source: str) -> ComparisonTable:
    """One task and source, recalls in percent: ours first, their ceiling, then published specialists and generalists."""
    rows, ceiling = [], {}  # of (cells, standings)
    names = RUNS if task == "captions" else METHODS
    for name in in_order(names, metrics[task]):
        if source not in metrics[task][name]:
            continue
        entries = metrics[task][name][source]
        own = _own_cells(task, named(names, name).name, entries)
        shown = ((metric, title) for metric, title in TITLES[task].items() if own[title])
        rows.append((own, {title: standing(metrics, task, source, name, metric) or "" for metric, title in shown}))
        ceiling = ceiling or {name: entries[f"{name}_ceiling"] for name in RECALLS if f"{name}_ceiling" in entries}
        if name == HUMAN and "CIDEr_distinct" in entries:
            rest = {metric: entries.get(f"{metric}_distinct", {}) for metric in METRICS}
            if rest["CIDEr"].get("value") != entries["CIDEr"].get("value"):
                rows.append((_own_cells(task, HELD_OUT_DISTINCT, rest), {}))
    if ceiling:
        rows.append(
            (
                {"model": METHODS["ceiling"].name, "kind": "ceiling", "status": "computed"}
                | figure_cells(task, ceiling),
                {},
            )
        )
    rows += [(row, {}) for row in published_cells(task, source)]
    return as_table(task, source, rows, _notes(metrics, task, source), tuple(metrics.get("tries", ())))


def published_cells(task: str, source: str) -> list[dict[str, str]]:
    """The published figures for a source as rows of cells."""
    rows = []
    for row in published_for(task, source):
        said = [row.note, f"test set {row.test_set}" if row.test_set in ("inferred", "unknown") else ""]
        status = f"{row.status} ({'; '.join(filter(None, said))})" if any(said) else row.status
        figures = figure_cells(task, {metric: {"value": value} for metric, value in row.values.items()})
        rows.append({"model": row.name, "kind": row.kind, "status": status} | figures)
    return rows


def as_table(
    task: str, source: str, rows: Iterable[tuple[dict, dict]], notes: list[str], tries: tuple[str, ...] = ()
) -> ComparisonTable:
    """Rows of (cells, standings by column) as a table, without the columns that no row fills."""
    rows = list(rows)
    cells = pd.DataFrame([row for row, _ in rows]).fillna("")
    kept = TITLES[task][MAIN[task]]
    cells = cells[[column for column in cells if column == kept or (cells[column] != "").any()]]
    marks = [[own.get(column, "") for column in cells] for _, own in rows]
    standings = pd.DataFrame(marks, columns=cells.columns, index=cells.index)
    return ComparisonTable(task, source, cells, standings, notes, tries)


def _notes(metrics: Mapping, task: str, source: str) -> list[str]:
    notes = _not_run(metrics, task, source)
    notes += [f"Not held against the study's figures: {note}." for note in unfair_notes(metrics, task, source)]
    if not published_for(task, source):
        notes = [*_not_run(metrics, task, source), NOTHING_PUBLISHED]
    if benchmark_name(source) in EITHER:
        notes.insert(0, TWO_TEST_SETS)
    if adapting := adapting_sources(metrics):
        notes.insert(0, f"The encoder was adapted on training images of {', '.join(adapting)} too.")
    if task == "retrieval":
        name = metrics.get("protocol", {}).get("retrieval", {}).get("name", "remoteclip, as far as recorded")
        notes.insert(0, f"Protocol {name}, right answers by image unless a column says otherwise.")
    return notes


def _not_run(metrics: Mapping, task: str, source: str) -> list[str]:
    """One line a metric that this study did not run, with the reason."""
    entries = [by_source[source] for by_source in metrics[task].values() if source in by_source]
    reasons = {metric: str(own.get("reason", "")) for entry in entries for metric, own in entry.items()}
    shown = {metric: reason for metric, reason in reasons.items() if metric in TITLES[task]}
    return [f"{metric} was {reason}." for metric, reason in shown.items() if reason.startswith("not run")]


def _own_cells(task: str, label: str, entries: Mapping) -> dict[str, str]:
    return {"model": label, "kind": OURS, "status": "measured"} | figure_cells(task, entries, interval=MAIN[task])


def figure_cells(task: str, entries: Mapping, interval: str = "") -> dict[str, str]:
    """The figures as text; that of the metric ``interval`` with its interval."""
    return {
        title: _cell(entries.get(metric), percent=task == "retrieval", interval=metric == interval)
        for metric, title in TITLES[task].items()
    }


def _by_source(by_source: Mapping, figures: Callable[[Mapping], dict]) -> dict[str, dict]:
    return {source: figures(by_source[source]) for source in sorted(by_source)}


def caption_figures(entry: Mapping) -> dict[str, dict]:
    """metric -> entry of what METRICS/score_captions.json holds of a run on one source."""
    released, distinct = entry.get("released", {}), entry.get("distinct", {})
    figures = dict(released)
    for part in PARTS:
        if "CIDEr" in entry.get(part, {}):
            figures[f"CIDEr_{part}"] = entry[part]["CIDEr"]
    figures |= {
        f"{metric}_distinct": own
        for metric, own in distinct.items()
        if metric != "CIDEr" and own != released.get(metric)
    }
    return figures


def _text_figures(entry: Mapping) -> dict[str, dict]:
    return {part: entry[part] for part in ("text", "classes") if part in entry}


def retrieval_figures(entry: Mapping) -> dict[str, dict]:
    """recall -> entry of what METRICS/score_retrieval.json holds of a method on one source."""
    figures = dict(entry.get("by_image", {}))
    if "mean_recall" in entry.get("by_text", {}):
        figures["mean_recall_by_text"] = entry["by_text"]["mean_recall"]
    return figures | {f"{name}_ceiling": own for name, own in entry.get("ceiling", {}).items() if name in RECALLS}


def _cell(entry: Mapping | None, *, percent: bool = False, interval: bool = False) -> str:
    """A figure as text, with standard deviation and interval where asked; empty when unknown."""
    entry = entry or {}
    if not _is_number(entry.get("value")):
        return ""
    scale, digits = (100, 1) if percent else (1, 3)
    text = f"{scale * entry['value']:.{digits}f}"
    if interval and _is_number(entry.get("standard_deviation")):
        text += f" ± {scale * entry['standard_deviation']:.{digits}f}"
    if interval and _is_number(entry.get("low")) and _is_number(entry.get("high")):
        text += f" [{scale * entry['low']:.{digits}f}, {scale * entry['high']:.{digits}f}]"
    return text


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def comparison_title(metrics: Mapping) -> str:
    """The heading of all tables: whether anything published stands beside the study's figures."""
    if any(published_for(task, source) for task in TITLES for source in sources_of(metrics[task])):
        return TITLE
    return f"Scores of this study: {', '.join(dict.fromkeys(name for task in TITLES for name in sources_of(metrics[task])))}"


def shown_terms(tables: Iterable[ComparisonTable]) -> dict[str, str]:
    """name -> sentence of all that the tables name: runs and methods, columns, kinds of models, how sure a figure is."""
    names = []
    for table in tables:
        names += [name.split(",")[0] for name in table.cells["model"]]
        names += [part for column in table.cells for part in column_terms(column)]
    return explained(
        [*names, *(word for table in tables for name in ("kind", "status") for word in _first_words(table, name))]
    )


def column_terms(column: str) -> list[str]:
    """The terms in a column's heading: "CIDEr distinct" is CIDEr, scored distinct."""
    words = {"I2T": "image to text", "T2I": "text to image"}
    if column.startswith("mean recall"):
        return [column]
    return ["R@K" if part.startswith("R@") else words.get(part, part) for part in column.split(" ")]


def _first_words(table: ComparisonTable, column: str) -> list[str]:
    return [cell.split(" ")[0] for cell in table.cells[column]]


def render_markdown(metrics: Mapping) -> str:
    """All tables as Markdown; the colours of the page are marks behind the figures."""
    title, tables = comparison_title(metrics), comparison_tables(metrics)
    key = "; ".join(f"{MARKS[name]} {MEANINGS[name]}" for name in MARKS)
    return tables_as_markdown(title, tables, [f"{key}. {NOT_COLOURED}", PAPERS_DIFFER] if title == TITLE else [])


def tables_as_markdown(title: str, tables: Iterable[ComparisonTable], notes: Iterable[str]) -> str:
    """Tables with a heading, notes and their terms as Markdown."""
    parts, tables = [f"# {_markdown(title)}", ""], list(tables)
    for table in tables:
        header = list(table.cells.columns)
        lines = [header, ["---" if name in NAMED else "---:" for name in header]]
        for row, marks in zip(table.cells.to_numpy().tolist(), table.standings.to_numpy().tolist(), strict=True):
            lines.append([f"{cell} {MARKS[mark]}" if mark else cell for cell, mark in zip(row, marks, strict=True)])
        parts += [f"## {_markdown(table.title)}", ""]
        parts += ["| " + " | ".join(_markdown(str(cell)) for cell in line) + " |" for line in lines]
        parts += ["", *(f"{_markdown(note)}\n" for note in table.notes)]
    lines = [*notes, INTERVALS, RECALLS_IN_PERCENT, *(f"{name}: {text}." for name, text in shown_terms(tables).items())]
    return "\n".join([*parts, *(f"- {line}" for line in lines)]) + "\n"


def render_latex(metrics: Mapping) -> str:
    """All tables as LaTeX, to \\input into a paper; needs booktabs, and xcolor with its option table."""
    parts = [r"% \usepackage{booktabs}", r"% \usepackage[table]{xcolor}"]
    parts += [f"\\definecolor{{{name}}}{{HTML}}{{{COLOURS[name][1:].upper()}}}" for name in COLOURS]
    return "\n".join([*parts, *map(_latex_table, comparison_tables(metrics))]) + "\n"


def _latex_table(table: ComparisonTable) -> str:
    columns = [name for name in LATEX_COLUMNS if name in table.cells.columns]
    places = [table.cells.columns.get_loc(name) for name in columns]
    layout = "".join("l" if name in NAMED else "r" for name in columns)
    caption = f"{_latex(table.title)}. {_latex(' '.join(table.notes))}"
    lines = [r"\begin{table}", r"\centering\footnotesize", f"\\caption{{{caption}}}"]
    lines += [f"\\begin{{tabular}}{{{layout}}}", r"\toprule", " & ".join(map(_latex, columns)) + r" \\"]
    for first, row, marks in _grouped(table):
        if first:
            lines.append(r"\midrule")
        cells = [(f"\\cellcolor{{{marks[at]}}}" if marks[at] else "") + _latex(row[at]) for at in places]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"])


def _grouped(table: ComparisonTable) -> Iterable[tuple[bool, list[str], list[str]]]:
    """(whether a kind of model begins, cells, standings) of each row."""
    before = None
    for row, marks in zip(table.cells.to_numpy().tolist(), table.standings.to_numpy().tolist(), strict=True):
        yield row[1] != before, row, marks
        before = row[1]


def _markdown(text: str) -> str:
    """Text that stays in its cell and is no markup."""
    return html.escape(text.replace("\n", " "), quote=False).replace("|", "\\|")


def _latex(text: object) -> str:
    """Text that LaTeX sets as it stands."""
    return str(text).replace("\n", " ").translate(LATEX_SIGNS)
