"""The study's table beside the published figures as a page, and as a part of a notebook.

One template for both. On a narrow screen each row becomes a block, its main figure first.
"""

from collections.abc import Mapping, Sequence

from IPython.display import HTML

from rsvlm.scoring.comparison import (
    MARKS,
    MEANINGS,
    NAMED,
    NOT_COLOURED,
    OURS,
    PAPERS_DIFFER,
    TITLE,
    TITLES,
    ComparisonTable,
    column_terms,
    comparison_tables,
    comparison_title,
    shown_terms,
)
from rsvlm.scoring.leaderboard import FAILED, MEASURED
from rsvlm.scoring.published import MAIN
from rsvlm.viewing.page import page_environment, read_template, render_page

INTERVALS = "Below a figure: its 95 % interval over images; ±: standard deviation over draws."
HEADS = {OURS: "this study", MEASURED: "measured here", FAILED: "could not be measured", "ceiling": "", "specialist": "published: specialists", "generalist": "published: generalists",
         "zero-shot": "published: zero-shot"}  # fmt: skip


def render_html(metrics: Mapping) -> str:
    """All tables as one self-contained page.

    Args:
        metrics: what ``rsvlm.scoring.comparison.study_metrics`` gives.
    """
    return render_page("comparison.html", (), **_compared(metrics))


def show_comparison(metrics: Mapping) -> HTML:
    """The tables of ``render_html`` for a notebook, without the page around them."""
    return _show(**_compared(metrics))


def render_leaderboard(tables: Sequence[ComparisonTable], title: str, notes: Sequence[str]) -> str:
    """Tables of other models as one self-contained page."""
    return render_page("leaderboard.html", (), **_values(tables, title, [*notes, INTERVALS]))


def show_leaderboard(tables: Sequence[ComparisonTable], title: str, notes: Sequence[str]) -> HTML:
    """The tables of ``render_leaderboard`` for a notebook, without the page around them."""
    return _show(**_values(tables, title, [*notes, INTERVALS]))


def _show(**values: object) -> HTML:
    template = page_environment().get_template("comparison_tables.html")
    return HTML(template.render(**values, style=read_template("scores.css")))


def _compared(metrics: Mapping) -> dict[str, object]:
    tables, title = comparison_tables(metrics), comparison_title(metrics)
    key, notes = ([(name, MARKS[name], MEANINGS[name]) for name in MARKS], [NOT_COLOURED, PAPERS_DIFFER])
    return _values(tables, title, [*(notes if title == TITLE else []), INTERVALS], key if title == TITLE else ())


def _values(
    tables: Sequence[ComparisonTable], title: str, notes: Sequence[str], key: Sequence = ()
) -> dict[str, object]:
    laid_out = [_lay_out(table) for table in tables]
    return {
        "title": title,
        "tables": laid_out,
        "terms": shown_terms(tables),
        "signs": MARKS,
        "key": key,
        "notes": notes,
    }


def _lay_out(table: ComparisonTable) -> dict[str, object]:
    """A table for the template: its columns in two rows of headings, its rows in groups of one kind of model."""
    columns = [
        {
            "way": column_terms(name)[0] if " R@" in name else "",
            "name": name.split(" ")[-1] if " R@" in name else name,
            "terms": column_terms(name),
            "is_main": name == TITLES[table.task][MAIN[table.task]],
        }
        for name in table.cells
        if name not in NAMED
    ]
    groups: list[dict] = []
    for row, marks in zip(table.cells.to_dict("records"), table.standings.to_dict("records"), strict=True):
        if not groups or groups[-1]["kind"] != row["kind"]:
            groups.append({"kind": row["kind"], "head": HEADS[row["kind"]], "rows": []})
        cells = [(row[name], marks[name], MEANINGS.get(marks[name], "")) for name in row if name not in NAMED]
        status = "" if row["kind"] in (OURS, "ceiling") else row["status"]
        groups[-1]["rows"].append({"name": row["model"], "status": status, "cells": cells})
    return {"title": table.title, "columns": columns, "groups": groups, "notes": table.notes}
