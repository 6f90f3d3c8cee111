"""The study's table as HTML, Markdown and LaTeX. Every text from data is escaped."""

import html
import re
from collections.abc import Iterable, Mapping

from rsvlm.scoring.comparison import ABOVE, BELOW, LEVEL, NAMED, OURS, ComparisonTable, comparison_tables

TITLE = "Comparison with published figures"
LEGEND = (
    "Caption metrics on pycocoevalcap's scale (CIDEr 3.5, not 350), recalls in percent.",
    "Brackets: 95 % interval over images; ±: standard deviation over draws.",
    "read: found in the publication; second-hand: in another publication's table; recalled: not verified.",
    "specialist: trained or fine-tuned on that benchmark alone; generalist: one model for several.",
    "Metric code, splits and tokenisation differ between papers.",
    "Distinct: each image's repeated references count once.",
    "Seen / unseen: images whose set of references also belongs to a training image, or to none.",
    "CLIPScore: from this study's own encoder; it compares this study's runs only.",
)
COLOURS = {ABOVE: "#cfe6f7", LEVEL: "#eeeeee", BELOW: "#fbe3c0"}  # told apart by colour-blind readers and in grey
MARKS = {ABOVE: "▲", LEVEL: "=", BELOW: "▼"}
MEANINGS = {
    ABOVE: "the interval lies above the best comparable published figure",
    LEVEL: "that figure lies within the interval",
    BELOW: "the interval lies below it",
}
NOT_COLOURED = "Everything else has no comparable published figure: other images, kind of model or protocol, or unread."
STYLE = """.rsvlm-table table{border-collapse:collapse;margin:.5rem 0;display:block;overflow-x:auto}
.rsvlm-table th,.rsvlm-table td{padding:.3rem .6rem;text-align:right;border-bottom:1px solid #d5dbe1;white-space:nowrap}
.rsvlm-table td.name,.rsvlm-table th.name{text-align:left}
.rsvlm-table tr.ours td.model{font-weight:600}.rsvlm-table tr.first td{border-top:2px solid #66727f}
.rsvlm-table .note{color:#66727f}
""" + "\n".join(f".rsvlm-table td.{name},.rsvlm-table span.{name}{{background:{COLOURS[name]}}}" for name in COLOURS)
PAGE_STYLE = """body{font:15px/1.5 system-ui,sans-serif;color:#1d2733;background:#fff}
body{max-width:120rem;margin:2rem auto;padding:0 1rem}
"""
LATEX_COLUMNS = (  # what fits a page
    "model", "kind", "status",
    "BLEU-1", "BLEU-4", "METEOR", "ROUGE_L", "CIDEr", "SPICE", "CIDEr distinct", "CIDEr unseen",
    "I2T R@1", "I2T R@5", "I2T R@10", "T2I R@1", "T2I R@5", "T2I R@10", "mean recall",
)  # fmt: skip
LATEX_SIGNS = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "±": r"$\pm$", '"': "''",
}  # fmt: skip


def render_html(metrics: Mapping) -> str:
    """All tables as one self-contained page."""
    parts = [f"<h1>{TITLE}</h1>", render_fragment(metrics)]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<title>{TITLE}</title>\n'
        f"<style>{PAGE_STYLE}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def render_fragment(metrics: Mapping) -> str:
    """All tables as HTML to show in a notebook."""
    parts = [_html_table(table) for table in comparison_tables(metrics)]
    key = "; ".join(f'<span class="{name}">&nbsp;{MARKS[name]}&nbsp;</span> {MEANINGS[name]}' for name in COLOURS)
    lines = [f'<li class="note">Coloured where the comparison is fair: {key}. {html.escape(NOT_COLOURED)}</li>']
    lines += [f'<li class="note">{html.escape(line)}</li>' for line in LEGEND]
    parts.append(f"<ul>{''.join(lines)}</ul>")
    return f'<div class="rsvlm-table"><style>{STYLE}</style>\n' + "\n".join(parts) + "</div>"


def render_markdown(metrics: Mapping) -> str:
    """All tables as Markdown; the colours of the page are marks behind the figures."""
    parts = [f"# {TITLE}", ""]
    for table in comparison_tables(metrics):
        header = list(table.cells.columns)
        lines = [header, ["---" if name in NAMED else "---:" for name in header]]
        for row, marks in zip(table.cells.to_numpy().tolist(), table.standings.to_numpy().tolist(), strict=True):
            lines.append([f"{cell} {MARKS[mark]}" if mark else cell for cell, mark in zip(row, marks, strict=True)])
        parts += [f"## {_markdown(table.title)}", ""]
        parts += ["| " + " | ".join(_markdown(str(cell)) for cell in line) + " |" for line in lines]
        parts += ["", *(f"{_markdown(note)}\n" for note in table.notes)]
    key = "; ".join(f"{MARKS[name]} {MEANINGS[name]}" for name in MARKS)
    return "\n".join([*parts, f"- {key}. {NOT_COLOURED}", *(f"- {line}" for line in LEGEND)]) + "\n"


def render_latex(metrics: Mapping) -> str:
    """All tables as LaTeX, to \\input into a paper; needs booktabs, and xcolor with its option table."""
    parts = [r"% \usepackage{booktabs}", r"% \usepackage[table]{xcolor}"]
    parts += [f"\\definecolor{{{name}}}{{HTML}}{{{COLOURS[name][1:].upper()}}}" for name in COLOURS]
    return "\n".join([*parts, *map(_latex_table, comparison_tables(metrics))]) + "\n"


def _html_table(table: ComparisonTable) -> str:
    classes = {name: ' class="name"' if name in NAMED else "" for name in table.cells.columns}
    head = "".join(f"<th{classes[name]}>{html.escape(str(name))}</th>" for name in table.cells.columns)
    rows = []
    for first, row, marks in _grouped(table):
        cells = []
        for name, cell, mark in zip(table.cells.columns, row, marks, strict=True):
            kind = " ".join(filter(None, ["name" if name in NAMED else "", "model" if name == "model" else "", mark]))
            attribute = f' class="{kind}"' if kind else ""
            title = f' title="{MEANINGS[mark]}"' if mark else ""
            cells.append(f"<td{attribute}{title}>{html.escape(str(cell))}</td>")
        kind = " ".join(filter(None, ["ours" if row[1] == OURS else "", "first" if first else ""]))
        rows.append(f'<tr class="{kind}">{"".join(cells)}</tr>' if kind else f"<tr>{''.join(cells)}</tr>")
    body = "\n".join(rows)
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in table.notes)
    top = f"<h2>{html.escape(table.title)}</h2>\n<table><thead><tr>{head}</tr></thead><tbody>"
    return f"{top}\n{body}\n</tbody></table>{notes}"


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
    signs = "[" + re.escape("".join(LATEX_SIGNS)) + "]"
    return re.sub(signs, lambda found: LATEX_SIGNS[found[0]], str(text).replace("\n", " "))
