"""Experiments side by side: what each `dvc exp run` changed, what came out, its pages, its captions beside another's.

``rsvlm study experiments`` prints the table, ``rsvlm study experiments NAME`` gets an experiment's pages and tables out of
DVC's cache, ``rsvlm study experiments A B --gallery`` makes the caption gallery of two experiments on the same images.
"""

import argparse
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from IPython.display import HTML
from markupsafe import Markup

from rsvlm.scoring.runs import METHODS, RUNS, named
from rsvlm.study import paths
from rsvlm.study.experiment_files import (
    RUN,
    WORKSPACE,
    Experiment,
    changes_of,
    fetch_reports,
    find_experiment,
    galleries_of,
    read_experiments,
    write_pair_gallery,
)
from rsvlm.study.overview import HEADLINES, figure_text

# Columns of the table, most telling first; a study of several sources repeats each for every source.
FIGURES = (
    ("captions", "captioner", "CIDEr"),
    ("retrieval", "combined", "mean_recall"),
    ("captions", "captioner", "BLEU-4"),
    ("captions", "consensus", "CIDEr"),
    ("retrieval", "dual_encoder", "mean_recall"),
    ("retrieval", "ret", "mean_recall"),
    ("captions", "shuffled", "CIDEr"),
)
FIRST = ("experiment", "created", "changed")
MOST_COLUMNS = 12
WIDEST = {"experiment": 20, "changed": 40}  # characters of a cell's line on the screen
NOTE = (
    "95 % intervals in brackets. Below them the difference to the first row; ▲ ▼: outside that row's interval."
    " CIDEr on pycocoevalcap's scale."
)
SHOW_COMMAND = r"dvc exp show --only-changed --drop '.*/|params\.yaml|data_cards'"


@dataclass(frozen=True)
class Column:
    """A headline figure of one source."""

    source: str
    task: str
    run: str
    metric: str
    shows_source: bool

    @property
    def head(self) -> list[str]:
        """The column's title in lines."""
        name = named(RUNS if self.task == "captions" else METHODS, self.run).name
        return [*([self.source] if self.shows_source else []), name, HEADLINES[self.metric][0]]

    def entry(self, experiment: Experiment) -> Mapping:
        """The figure with its interval; empty where the experiment has none."""
        return experiment.metrics.get(self.task, {}).get(self.run, {}).get(self.source, {}).get(self.metric) or {}

    def cell(self, experiment: Experiment, first: Experiment) -> list[str]:
        """The figure in lines: value, interval, difference to the first row."""
        _, scale, digits = HEADLINES[self.metric]
        entry, known = self.entry(experiment), self.entry(first)
        value, _, interval = figure_text(entry, scale, digits, interval=True).partition(" ")
        lines = [value, *([interval] if interval else [])]
        if experiment is first or None in (entry.get("value"), known.get("value")):
            return lines
        shift = scale * (entry["value"] - known["value"])
        text = f"{shift:+.{digits}f}"
        if float(text) == 0:
            return [*lines, "="]
        low, high = known.get("low"), known.get("high")
        mark = "" if None in (low, high) else " ▲" * (entry["value"] > high) + " ▼" * (entry["value"] < low)
        return [*lines, text + mark]


def columns_of(experiments: Sequence[Experiment]) -> list[Column]:
    """The headline figures that some experiment has, at most as many as the table has room for."""
    sources = list(dict.fromkeys(name for one in experiments for name in one.metrics.get("captions", {}).get(RUN, {})))
    columns = [Column(source, *figure, len(sources) > 1) for figure in FIGURES for source in sources]
    known = [column for column in columns if any(column.entry(one).get("value") is not None for one in experiments)]
    return known[: MOST_COLUMNS - len(FIRST)]


def sorted_by(wanted: str, experiments: Sequence[Experiment]) -> list[Experiment]:
    """The rows below the first by name, time or a figure, the best first; those without it last.

    Args:
        wanted: "experiment", "created", or words of a column's title, such as "CIDEr" or "combined".

    Raises:
        ValueError: no column's title has these words; names the titles.
    """
    first, *others = experiments
    if wanted in ("", "created"):
        return [first, *others]
    if wanted == "experiment":
        return [first, *sorted(others, key=lambda one: one.name)]
    columns = columns_of(experiments)
    words = wanted.casefold().split()
    titles = {" ".join(column.head): column for column in columns}
    column = next((own for title, own in titles.items() if all(word in title.casefold() for word in words)), None)
    if column is None:
        raise ValueError(f"no column {wanted!r} to sort by; there are {', '.join(['experiment', 'created', *titles])}")
    values = {id(one): column.entry(one).get("value") for one in others}
    return [first, *sorted(others, key=lambda one: -values[id(one)] if values[id(one)] is not None else float("inf"))]


def text_table(experiments: Sequence[Experiment], width: int) -> str:
    """The table for a screen of so many characters; figures that do not fit are named below it."""
    heads, rows = _cells(experiments)
    for place, name in enumerate(FIRST):
        if name in WIDEST:
            wide = WIDEST[name]
            for row in rows:
                row[place] = [part for line in row[place] for part in textwrap.wrap(line, wide) or [""]]
    table = [heads, *rows]
    wide = [max(len(line) for row in table for line in row[place]) for place in range(len(heads))]
    shown = len(wide)
    while shown > len(FIRST) + 1 and sum(wide[:shown]) + 2 * (shown - 1) > width:
        shown -= 1
    lines = []
    for number, row in enumerate(table):
        for line in range(max(map(len, row))):
            parts = [row[place][line] if line < len(row[place]) else "" for place in range(shown)]
            lines.append("  ".join(part.ljust(wide[place]) for place, part in enumerate(parts)).rstrip())
        lines.append("-" * (sum(wide[:shown]) + 2 * (shown - 1)) if number == 0 else "")
    rest = [" ".join(head) for head in heads[shown:]]
    return "\n".join([*lines, NOTE, *([f"Not shown, the screen is too narrow: {', '.join(rest)}."] if rest else [])])


def show_experiments(*names: str, sort: str = "", commits: int = 1) -> HTML:
    """The table for a notebook, with links to the pages that were fetched; says plainly where there is nothing to show.

    Args:
        names: only these beside the first row; without any, all.
        sort, commits: as on the command line.
    """
    if paths.running_stage:  # its result is the same whatever was tried
        return HTML("<p>Run by hand, this shows the experiments beside the study.</p>")
    try:
        found = read_experiments(commits)
        first, *others = sorted_by(sort, found) if len(found) > 1 else found
        chosen = {find_experiment(name, [first, *others]).revision for name in names}
        experiments = [first, *(one for one in others if not names or one.revision in chosen)]
    except ValueError as error:
        return HTML(Markup("<p>No experiments: {}</p>").format(str(error)))
    if not others:
        return HTML(Markup("<p>{}</p>").format(_nothing()))
    heads, rows = _cells(experiments)
    head = Markup("").join(Markup('<th style="text-align:left">{}</th>').format(_lines(own)) for own in heads)
    body = Markup("")
    for experiment, row in zip(experiments, rows):
        page = galleries_of(experiment) / "captions.html"
        if page.is_file() and experiment.state in ("", "removed"):
            link = Markup('<a href="../{}">{}</a>').format(page.relative_to(paths.ROOT).as_posix(), row[0][0])
            row[0] = [link, *row[0][1:]]
        cells = []
        for place, own in enumerate(row):
            style = "text-align:left;vertical-align:top" + ";white-space:nowrap" * (
                FIRST[place : place + 1] != ("changed",)
            )
            style += ";font-weight:bold" * (own[-1][-1:] in ("▲", "▼"))
            cells.append(Markup('<td style="{}">{}</td>').format(style, _lines(own)))
        body += Markup("<tr>{}</tr>").format(Markup("").join(cells))
    note = (
        "<p>{} A name links to its gallery once <code>rsvlm study experiments NAME</code> has fetched it;"
        " <code>rsvlm study experiments A B --gallery</code> shows the captions of two.</p>"
    )
    table = '<div style="overflow-x:auto"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>'
    return HTML(Markup(table).format(head, body) + Markup(note).format(NOTE))


def _cells(experiments: Sequence[Experiment]) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Titles and rows of the table, each cell a list of lines."""
    first, columns = experiments[0], columns_of(experiments)
    rows = []
    for one in experiments:
        name = [one.name, *(["newest commit"] if one is first else [one.state] if one.state else [])]
        when = [f"{one.when:%Y-%m-%d}", f"{one.when:%H:%M}"] if one.when else ["-"]
        changed = changes_of(one, first) or ["-"]
        rows.append([name, when, changed, *(column.cell(one, first) for column in columns)])
    return [*([name] for name in FIRST), *(column.head for column in columns)], rows


def _lines(lines: Sequence[str]) -> Markup:
    return Markup("<br>").join(lines)  # escapes them


def _nothing() -> str:
    return (
        "No experiments since the newest commit. `dvc exp run -S finetune_lora.lora_rank=32` makes one;"
        " `rsvlm study experiments --commits 10` looks further back."
    )


def main(arguments: list[str] | None = None) -> int:
    """Print the table, fetch an experiment's pages, or write the gallery of two."""
    parser = argparse.ArgumentParser(prog="rsvlm study experiments", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="get these experiments' pages and tables; two with --gallery")
    parser.add_argument("--sort", default="", metavar="COLUMN", help="by this column: CIDEr, combined, created ...")
    parser.add_argument("--commits", type=int, default=1, help="experiments that started from the last so many commits")
    parser.add_argument("--gallery", action="store_true", help="one page: the second's captions against the first's")
    parser.add_argument("--out", type=Path, help="folder for the pages; default: scratch/experiments/NAME")
    chosen = parser.parse_args(arguments)
    if chosen.gallery and len(set(chosen.names)) != 2:
        parser.error(f"--gallery compares two experiments: give two different names (or {WORKSPACE})")
    if chosen.out and len(chosen.names) > 1 and not chosen.gallery:
        parser.error("--out takes the pages of one experiment")
    experiments = read_experiments(chosen.commits)
    pages: list[Path] = []
    if chosen.gallery:
        pair = [find_experiment(name, experiments) for name in chosen.names]
        folder = chosen.out or paths.SCRATCH / "experiments" / "_".join(chosen.names)
        write_pair_gallery(*pair, folder / "captions.html")
        pages = [folder / "captions.html"]
    else:
        for name in chosen.names:
            pages += fetch_reports(
                find_experiment(name, experiments), chosen.out or paths.SCRATCH / "experiments" / name
            )
    if pages:
        shown = [page.relative_to(paths.ROOT) if page.is_relative_to(paths.ROOT) else page for page in pages]
        print("\n".join(map(str, shown)))
    elif len(experiments) == 1:
        print(_nothing())
    else:
        print(text_table(sorted_by(chosen.sort, experiments), shutil.get_terminal_size((160, 40)).columns))
        print(f"With DVC: {SHOW_COMMAND}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
