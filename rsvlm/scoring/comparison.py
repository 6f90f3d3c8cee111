"""The study's table: its runs and baselines beside the published figures for the same source, on one scale.

``reports/metrics.json`` holds the study's own numbers only; the published ones are in the table, marked with how sure
they are.
"""

import html
import math
from collections.abc import Mapping, Sequence

import pandas as pd

from rsvlm.scoring.captions import METRICS
from rsvlm.scoring.published import Published, published_for

OURS = "this study"
NOT_METHODS = ("protocol", "paired")
RUN_ORDER = ("captioner", "beam", "shuffled", "consensus", "nearest", "constant", "human")
METHOD_ORDER = ("combined", "dual_encoder", "ret")
RUN_LABELS = {
    "captioner": "captioner",
    "beam": "captioner, its first beam alone",
    "shuffled": "captioner, shown wrong images",
    "consensus": "consensus of the nearest images",
    "nearest": "nearest image's caption",
    "constant": "one constant caption",
    "human": "one reference, held out",
    "dual_encoder": "dual encoder",
    "ret": "captioner's [RET]",
    "combined": "both combined",
}
CAPTION_EXTRAS = ("CIDEr_distinct", "CIDEr_seen", "CIDEr_unseen")
RETRIEVAL_EXTRAS = ("mean_recall_by_text", "mean_recall_ceiling")
RECALL_TITLES = {
    **{f"{way}_r{k}": f"{way.upper()} R@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)},
    "mean_recall": "mean recall",
    "mean_recall_by_text": "mean recall by text",
}
COLUMNS = ["task", "source", "name", "kind", "status", "metric", "value", "low", "high", "n", "unit_of_source", "note"]
NOTHING_PUBLISHED = "No published figure is known for this source: it is this study's own."
LEGEND = (
    "Caption metrics on pycocoevalcap's scale (CIDEr 3.5, not 350), recalls in percent.",
    "Brackets: 95 % interval over images.",
    "read: found in the publication; second-hand: in another publication's table; recalled: not verified.",
    "specialist: trained or fine-tuned on that benchmark alone; generalist: one model for several.",
    "Metric code, splits and tokenisation differ between papers.",
    "Distinct: each image's repeated references count once.",
    "Seen / unseen: images whose set of references also belongs to a training image, or to none.",
)
STYLE = """body{font:15px/1.5 system-ui,sans-serif;color:#1d2733;background:#fff}
body{max-width:72rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:.5rem 0 1.5rem;display:block;overflow-x:auto}
th,td{padding:.3rem .6rem;text-align:right;border-bottom:1px solid #d5dbe1;white-space:nowrap}
th:first-child,td:first-child,td:nth-child(2),th:nth-child(2),td:nth-child(3),th:nth-child(3){text-align:left}
tr.ours td{background:#eef5fb}tr.ours td:first-child{font-weight:600}.note{color:#66727f}"""


def study_metrics(captions: Mapping, retrieval: Mapping, provenance: Mapping) -> dict:
    """{"captions": {RUN: {SOURCE: {...}}}, "retrieval": {METHOD: {SOURCE: {...}}}, "provenance": {...}}.

    Captions: each metric on released references, and CIDEr_distinct, CIDEr_seen, CIDEr_unseen. Retrieval: each recall
    by image, and mean_recall_by_text, mean_recall_ceiling. Each of them {"value", "low", "high", "n", ...}.

    Args:
        captions: what METRICS/score_captions.json holds.
        retrieval: what METRICS/score_retrieval.json holds.
        provenance: seed, versions, device.
    """
    runs = {run: _by_source(captions[run], _caption_figures) for run in _names(captions, RUN_ORDER)}
    methods = {method: _by_source(retrieval[method], _retrieval_figures) for method in _names(retrieval, METHOD_ORDER)}
    protocol = {"captions": captions.get("protocol", {}), "retrieval": retrieval.get("protocol", {})}
    return {
        "captions": runs,
        "retrieval": methods,
        "paired": captions.get("paired", {}),
        "protocol": protocol,
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


def caption_table(metrics: Mapping, source: str) -> pd.DataFrame:
    """The captions of one source as text cells: ours first, then published, best CIDEr first."""
    shown = [*METRICS, *CAPTION_EXTRAS]
    titles = dict(zip(CAPTION_EXTRAS, ("CIDEr distinct", "CIDEr seen", "CIDEr unseen")))
    rows = []
    for run, by_source in metrics["captions"].items():
        if source in by_source:
            entries = by_source[source]
            cells = {titles.get(name, name): _cell(entries.get(name), interval=name == "CIDEr") for name in shown}
            rows.append({"model": RUN_LABELS.get(run, run), "kind": OURS, "status": "measured", **cells})
    for row in published_for("captions", source):
        cells = {titles.get(name, name): _cell({"value": row.values.get(name)}) for name in shown}
        rows.append({"model": row.name, "kind": row.kind, "status": _status(row), **cells})
    return _without_empty_columns(pd.DataFrame(rows), kept="CIDEr")


def retrieval_table(metrics: Mapping, source: str) -> pd.DataFrame:
    """The recalls of one source in percent as text cells: ours first, the ceiling, then published."""
    titles = RECALL_TITLES
    shown = list(titles)
    rows, ceiling = [], None
    for method, by_source in metrics["retrieval"].items():
        if source in by_source:
            entries = by_source[source]
            ceiling = ceiling or entries.get("mean_recall_ceiling")
            cells = {
                titles[name]: _cell(entries.get(name), percent=True, interval=name == "mean_recall") for name in shown
            }
            rows.append({"model": RUN_LABELS.get(method, method), "kind": OURS, "status": "measured", **cells})
    if ceiling:
        cells = {titles[name]: "" for name in shown} | {"mean recall": _cell(ceiling, percent=True)}
        rows.append(
            {"model": "a model that knows every test caption", "kind": "ceiling", "status": "computed", **cells}
        )
    for row in published_for("retrieval", source):
        cells = {titles[name]: _cell({"value": row.values.get(name)}, percent=True) for name in shown}
        rows.append({"model": row.name, "kind": row.kind, "status": _status(row), **cells})
    return _without_empty_columns(pd.DataFrame(rows), kept="mean recall")


def render_markdown(metrics: Mapping) -> str:
    """All tables as Markdown."""
    parts = ["# Comparison with published figures", ""]
    for title, table, note in _sections(metrics):
        parts += [f"## {_markdown(title)}", ""]
        header = [*table.columns]
        align = ["---"] * 3 + ["---:"] * (len(header) - 3)
        lines = [header, align, *table.to_numpy().tolist()]
        parts += ["| " + " | ".join(_markdown(str(cell)) for cell in line) + " |" for line in lines]
        parts += ["", *([note, ""] if note else [])]
    return "\n".join([*parts, *(f"- {line}" for line in LEGEND)]) + "\n"


def render_html(metrics: Mapping) -> str:
    """All tables as one self-contained page; every text is escaped."""
    parts = ["<h1>Comparison with published figures</h1>"]
    for title, table, note in _sections(metrics):
        head = "".join(f"<th>{html.escape(str(column))}</th>" for column in table.columns)
        body = []
        for row in table.to_numpy().tolist():
            cells = "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row)
            mark = ' class="ours"' if row[1] == OURS else ""
            body.append(f"<tr{mark}>{cells}</tr>")
        parts.append(f"<h2>{html.escape(title)}</h2>")
        parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>\n" + "\n".join(body) + "\n</tbody></table>")
        if note:
            parts.append(f'<p class="note">{html.escape(note)}</p>')
    parts.append("<ul>" + "".join(f'<li class="note">{html.escape(line)}</li>' for line in LEGEND) + "</ul>")
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    title = "<title>Comparison with published figures</title>"
    return f'<!doctype html>\n<html lang="en"><head>{head}{title}<style>{STYLE}</style></head>\n<body>\n' + (
        "\n".join(parts) + "\n</body></html>\n"
    )


def _sections(metrics: Mapping) -> list[tuple[str, pd.DataFrame, str]]:
    """(title, table, note) of each task and source that the study has scored."""
    sections = []
    for task, title, make in (("captions", "Captions", caption_table), ("retrieval", "Retrieval", retrieval_table)):
        for source in sources_of(metrics[task]):
            note = "" if published_for(task, source) else NOTHING_PUBLISHED
            sections.append((f"{title}: {source}", make(metrics, source), note))
    return sections


def _names(metrics: Mapping, order: Sequence[str]) -> list[str]:
    """The runs or methods of a metrics file: known ones in the table's order, then others by name."""
    names = [name for name in metrics if name not in NOT_METHODS]
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))


def _by_source(by_source: Mapping, figures) -> dict[str, dict]:
    return {source: figures(by_source[source]) for source in sorted(by_source)}


def _caption_figures(entry: Mapping) -> dict[str, dict]:
    figures = dict(entry.get("released", {}))
    for name, part in zip(CAPTION_EXTRAS, ("distinct", "seen", "unseen"), strict=True):
        if "CIDEr" in entry.get(part, {}):
            figures[name] = entry[part]["CIDEr"]
    return figures


def _retrieval_figures(entry: Mapping) -> dict[str, dict]:
    figures = dict(entry.get("by_image", {}))
    for name, part in zip(RETRIEVAL_EXTRAS, ("by_text", "ceiling"), strict=True):
        if "mean_recall" in entry.get(part, {}):
            figures[name] = entry[part]["mean_recall"]
    return figures


def _own_row(task: str, source: str, name: str, metric: str, entry: Mapping) -> dict:
    interval = {key: entry.get(key) for key in ("value", "low", "high", "n")}
    row = {"task": task, "source": source, "name": name, "kind": OURS, "status": "measured", "metric": metric}
    return row | interval | {"unit_of_source": "", "note": entry.get("reason", "")}


def _published_row(row: Published, source: str, metric: str, value: float) -> dict:
    named = {"task": row.task, "source": source, "name": row.name, "kind": row.kind, "status": row.status}
    return named | {"metric": metric, "value": value, "unit_of_source": row.unit, "note": row.note}


def _status(row: Published) -> str:
    return f"{row.status} ({row.note})" if row.note else row.status


def _cell(entry: Mapping | None, *, percent: bool = False, interval: bool = False) -> str:
    """A figure as text, with its interval where asked; empty when unknown, "not run" when there is a reason."""
    entry = entry or {}
    if not _is_number(entry.get("value")):
        return "not run" if str(entry.get("reason", "")).startswith("not run") else ""
    scale, digits = (100, 1) if percent else (1, 3)
    text = f"{scale * entry['value']:.{digits}f}"
    if interval and _is_number(entry.get("low")) and _is_number(entry.get("high")):
        text += f" [{scale * entry['low']:.{digits}f}, {scale * entry['high']:.{digits}f}]"
    return text


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _without_empty_columns(table: pd.DataFrame, kept: str) -> pd.DataFrame:
    return table[[column for column in table if column == kept or (table[column] != "").any()]]


def _markdown(text: str) -> str:
    """Text that stays in its cell and is no markup."""
    return html.escape(text.replace("\n", " "), quote=False).replace("|", "\\|")
