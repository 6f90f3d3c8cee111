"""What a finished study has to say, in few lines.

``python -m rsvlm.study.summary`` prints the result table and where the galleries lie (`make study` ends with it);
``python -m rsvlm.study.summary headline`` writes ``reports/headline.json``, the few figures that `dvc metrics show` and
`dvc exp show` put side by side.
"""

import argparse
import csv
import sys
from collections.abc import Iterable, Mapping

from rsvlm.disks import told_in_a_line
from rsvlm.files import read_json, write_json
from rsvlm.safe_text import from_cell
from rsvlm.scoring.published import RECALLS as PUBLISHED_RECALLS
from rsvlm.study import paths
from rsvlm.study.studies import study_in_place

CAPTION_METRICS = ("CIDEr", "BLEU-4", "METEOR", "ROUGE_L")
RECALLS = ("mean_recall", *(name for name in PUBLISHED_RECALLS if name != "mean_recall"))
HEADLINE_RUNS = ("captioner", "consensus", "shuffled")


def headline(metrics: Mapping) -> dict:
    """{source: {metric: {run or method: value}}} of the figures that decide whether a change was worth it.

    Args:
        metrics: what ``reports/metrics.json`` holds.
    """
    figures: dict = {}
    for run in HEADLINE_RUNS:
        for source, entry in metrics["captions"].get(run, {}).items():
            _put(figures, source, "CIDEr", run, entry)
    for source, entry in metrics["captions"].get("captioner", {}).items():
        _put(figures, source, "BLEU-4", "captioner", entry)
    for method, by_source in metrics["retrieval"].items():
        for source, entry in by_source.items():
            _put(figures, source, "mean_recall", method, entry)
    return figures


def result_lines(rows: Iterable[Mapping[str, str]]) -> list[str]:
    """The study's result as lines of text: a table a task and source, own runs first, then published figures.

    Args:
        rows: the rows of ``reports/tables/comparison.csv``.
    """
    tables: dict[tuple[str, str], dict[tuple[str, str], dict[str, Mapping]]] = {}
    for row in rows:
        models = tables.setdefault((row["task"], row["source"]), {})
        models.setdefault((row["name"], row["kind"]), {})[row["metric"]] = row
    lines = []
    for (task, source), models in tables.items():
        shown = CAPTION_METRICS if task == "captions" else RECALLS
        shown = [metric for metric in shown if any(_known(figures.get(metric)) for figures in models.values())]
        cells = [[f"{source}: {task}", "", *shown]]
        for (name, kind), figures in models.items():
            if shown and _known(figures.get(shown[0])):
                cells.append(
                    [name, kind, *(_cell(figures.get(metric), task, first=metric == shown[0]) for metric in shown)]
                )
        if len(cells) > 1:
            lines += ["", *_aligned(cells)]
    return lines


def earth_lines() -> list[str]:
    """How well classes of land were found on the globe, where it was searched."""
    file = paths.METRICS / "search_earth.json"
    land = read_json(file).get("land") if file.is_file() else None
    if not land or not land["scored"]:
        return []
    means = [
        f"{100 * land['mean'][method]['average_precision']:.1f} {name}"
        for method, name in (
            ("text", "by text"),
            ("mean_colour", "by mean colour"),
            ("nearest_tile", "by nearest tile"),
        )
    ]
    return ["", f"the Earth: average precision over {len(land['scored'])} classes of land, {', '.join(means)}"]


def language_lines() -> list[str]:
    """Recall by language, a line a source, where texts in other languages were trained on."""
    file = paths.METRICS / "score_languages.json"
    scores = read_json(file) if file.is_file() else {}
    lines = []
    for source, own in scores.get(scores.get("protocol", {}).get("recipe"), {}).items():
        recalls = ", ".join(
            f"{language} {100 * entry['mean_recall']['value']:.1f}"
            for language, entry in own.items()
            if language != "en"
        )
        english = 100 * scores["encoder"][source]["en"]["mean_recall"]["value"]
        lines += ["", f"{source}, other languages: mean recall {recalls}; {english:.1f} in English by the encoder"]
    return lines


def where_lines() -> list[str]:
    """Where to look: the galleries, the table, the executed notebooks; only what is there."""
    places = {
        "captions": paths.GALLERIES / "captions.html",
        "retrieval": paths.GALLERIES / "retrieval.html",
        "full table": paths.TABLES / "comparison.html",
        "dialogue": paths.DIALOGUE / "index.html",
        "the Earth": paths.EARTH_SEARCH / "index.html",
        "notebooks": paths.EXECUTED,
    }
    return [f"  {name:<10}  {path.relative_to(paths.ROOT)}" for name, path in places.items() if path.exists()]


def _put(figures: dict, source: str, metric: str, name: str, entry: Mapping) -> None:
    value = entry.get(metric, {}).get("value")
    if value is not None:
        figures.setdefault(source, {}).setdefault(metric, {})[name] = round(value, 4)


def _known(row: Mapping | None) -> bool:
    return bool(row and row["value"])


def _cell(row: Mapping | None, task: str, first: bool) -> str:
    """A figure with its interval in the first column: CIDEr and its like as they are, recalls in percent."""
    if not _known(row):
        return ""
    figures = [float(row[key]) for key in ("value", "low", "high") if row[key]]
    texts = [f"{figure:.1%}".rstrip("%") if task == "retrieval" else f"{figure:.3f}" for figure in figures]
    return f"{texts[0]} [{texts[1]}, {texts[2]}]" if first and len(texts) == 3 else texts[0]


def _aligned(cells: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


@told_in_a_line
def main(arguments: list[str] | None = None) -> int:
    """Print the summary, or write the headline."""
    parser = argparse.ArgumentParser(description="Show what the study in place has found.")
    parser.add_argument("command", nargs="?", choices=["show", "headline"], default="show")
    command = parser.parse_args(arguments).command
    if command == "headline":
        write_json(paths.REPORTS / "headline.json", headline(read_json(paths.REPORTS / "metrics.json")))
        return 0
    table = paths.TABLES / "comparison.csv"
    if not table.is_file():
        print(f"{table}: not there yet; `make study` makes it", file=sys.stderr)
        return 1
    with table.open(encoding="utf-8", newline="") as file:
        lines = result_lines({key: from_cell(cell) for key, cell in row.items()} for row in csv.DictReader(file))
    study = study_in_place() or "params.yaml, edited"
    print(
        "\n".join(
            [
                f"\nStudy: {study} (95 % intervals in brackets; recalls in percent)",
                *lines,
                *language_lines(),
                *earth_lines(),
                "",
                "Look at:",
                *where_lines(),
            ]
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
