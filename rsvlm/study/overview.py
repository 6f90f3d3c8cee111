"""The study at a glance: its stages as a picture, what is up to date, its headline figures, its model card.

``python -m rsvlm.study.overview`` writes the card, with sections as in Mitchell et al. (2019) and Hugging Face's model
cards. Every number is read from the stages' metrics; where a stage has none, the page says so.
"""

import graphlib
import json
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pandas as pd
from IPython.display import HTML, Markdown
from jinja2 import Environment, PackageLoader, StrictUndefined
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from rsvlm.data.catalogue import KNOWN
from rsvlm.data.names import SPLITS
from rsvlm.disks import told_in_a_line
from rsvlm.files import read_json, write_text
from rsvlm.safe_text import as_code, as_markdown, as_yaml
from rsvlm.scoring.runs import METHODS, RUNS
from rsvlm.study import paths

FRESH, STALE, MISSING, UNKNOWN = "up to date", "would run again", "not run yet", "not asked"
BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y, KEY = 284, 64, 28, 34, 30  # of the picture, pixels
DVC_SECONDS = 120
BESIDE = ("check_params", "notebook_pages")  # a check before the study and pages after it: they make nothing of it
HEADLINES = {"CIDEr": ("CIDEr", 1, 3), "BLEU-4": ("BLEU-4", 1, 3), "mean_recall": ("mean recall, %", 100, 1)}
PAGES = {
    "reports/notebooks/index.html": "all executed notebooks as pages",
    "reports/galleries/captions.html": "every test image with the captions of all runs and their scores",
    "reports/galleries/retrieval.html": "what captions and images find",
    "reports/tables/comparison.html": "the study's figures beside published ones",
    "reports/dialogue/index.html": "what the captioner answers to instructions about test images",
    "reports/leaderboard/leaderboard.html": "other models measured on the same images",
    "reports/earth/index.html": "where on the Earth is what a text asks for",
}


@dataclass(frozen=True)
class Stage:
    """One stage of dvc.yaml that runs a notebook."""

    name: str
    notebook: str  # "40_finetune_lora", or the stage's name where it runs no notebook
    about: str
    needs: tuple[str, ...]  # the stages whose outs it reads
    level: int  # how many stages lie before it on the longest way


def read_stages(path: Path | None = None) -> list[Stage]:
    """The stages of dvc.yaml in its order, without the one that strips notebooks.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no YAML, holds no stages, or its stages form a circle; names the file.
    """
    path = path or paths.ROOT / "dvc.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; run this inside the project")
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8")) or {}
    except YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error
    stages = {name: body for name, body in (content.get("stages") or {}).items() if "foreach" not in body}
    named = {name: body for name, body in stages.items() if name not in BESIDE}
    if not named:
        raise ValueError(f"{path}: no stages")
    deps = {name: _places(body.get("deps", [])) for name, body in named.items()}
    outs = {name: _places(body.get("outs", [])) for name, body in named.items()}
    needs = {
        name: tuple(
            other
            for other in named
            if other != name and any(_overlaps(dep, out) for dep in deps[name] for out in outs[other])
        )
        for name in named
    }
    try:
        order = list(graphlib.TopologicalSorter(needs).static_order())
    except graphlib.CycleError as error:
        raise ValueError(f"{path}: the stages {', '.join(sorted(set(error.args[1])))} wait for each other") from error
    levels: dict[str, int] = {}
    for name in order:
        levels[name] = 1 + max((levels[other] for other in needs[name]), default=-1)
    notebooks = {name: next((dep.stem for dep in deps[name] if dep.suffix == ".ipynb"), name) for name in named}
    return [
        Stage(name, notebooks[name], str(body.get("desc", "")), needs[name], levels[name])
        for name, body in named.items()
    ]


def read_states(stages: Sequence[Stage]) -> dict[str, tuple[str, str]]:
    """As ``judge_stages``, of what DVC says; empty, with a warning, where DVC cannot be asked."""
    try:
        asked = subprocess.run(
            [sys.executable, "-m", "dvc", "status", "--json"],
            cwd=paths.ROOT, capture_output=True, text=True, timeout=DVC_SECONDS, check=True,
        )  # fmt: skip
        return judge_stages(stages, json.loads(asked.stdout))
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
    except (OSError, subprocess.TimeoutExpired, json.JSONDecodeError) as error:
        reason = str(error)
    warnings.warn(f"DVC could not say what is up to date: {reason}", stacklevel=2)
    return {}


def judge_stages(stages: Sequence[Stage], status: Mapping[str, Sequence]) -> dict[str, tuple[str, str]]:
    """(state, why) of each stage, from what ``dvc status --json`` printed.

    A stage is not up to date when DVC says so, when its notebook changed, or when a stage before it is not.
    """
    states: dict[str, tuple[str, str]] = {}
    for stage in sorted(stages, key=lambda stage: stage.level):
        own = _changes(status.get(stage.name, []))
        waits = [name for name in stage.needs if states[name][0] != FRESH]
        if any(what == "outs" and kind == "deleted" for what, kind, _ in own):
            states[stage.name] = (MISSING, "its results are not there")
        elif own:
            names = dict.fromkeys(name for _, _, name in own if name)
            states[stage.name] = (STALE, "changed: " + ", ".join(names) if names else "its command changed")
        elif status.get(f"strip@{stage.notebook}"):
            states[stage.name] = (STALE, f"changed: notebooks/{stage.notebook}.ipynb")
        elif waits:
            states[stage.name] = (STALE, "after " + ", ".join(waits))
        else:
            states[stage.name] = (FRESH, "")
    return states


def stage_table(stages: Sequence[Stage], states: Mapping[str, tuple[str, str]]) -> pd.DataFrame:
    """One row a stage: its notebook, what it is for, whether it is up to date, and why not."""
    rows = [(stage.about, *states.get(stage.name, (UNKNOWN, ""))) for stage in stages]
    return pd.DataFrame(rows, index=[stage.notebook for stage in stages], columns=["about", "state", "why"])


def draw_map(stages: Sequence[Stage], states: Mapping[str, tuple[str, str]]) -> HTML:
    """The stages as boxes, from top to bottom, with arrows along the data; filled, hatched or empty by their state."""
    before: dict[str, set[str]] = {}
    direct: dict[str, list[str]] = {}  # without those that another needed stage needs already
    for stage in sorted(stages, key=lambda stage: stage.level):
        before[stage.name] = set(stage.needs).union(*(before[name] for name in stage.needs))
        direct[stage.name] = [name for name in stage.needs if not any(name in before[other] for other in stage.needs)]
    levels: dict[int, list[Stage]] = {}
    for stage in stages:
        levels.setdefault(stage.level, []).append(stage)
    widest = max(map(len, levels.values()))
    corners: dict[str, tuple[float, int]] = {}  # upper left ones
    for level, own in sorted(levels.items()):  # below the stages that they come from, so that few arrows cross
        above = {stage.name: [corners[name][0] for name in direct[stage.name]] for stage in own}
        own.sort(key=lambda stage: sum(above[stage.name]) / max(1, len(above[stage.name])))
        for number, stage in enumerate(own):
            x = (number + (widest - len(own)) / 2) * (BOX_WIDTH + GAP_X) + 2
            corners[stage.name] = (x, level * (BOX_HEIGHT + GAP_Y) + KEY)
    size = {"width": widest * (BOX_WIDTH + GAP_X) - GAP_X + 4, "height": len(levels) * (BOX_HEIGHT + GAP_Y) + KEY}
    shown = {stage.name: states.get(stage.name, (UNKNOWN, ""))[0] for stage in stages}
    box = {"box_width": BOX_WIDTH, "box_height": BOX_HEIGHT}
    return HTML(_render("map.svg.jinja", stages=stages, states=shown, corners=corners, direct=direct, **size, **box))


def headline_table() -> pd.DataFrame:
    """The study's own headline figures as text: value, 95 % interval and n, by source and run or method.

    Without ``reports/metrics.json`` the only row says how to get one.
    """
    path = paths.REPORTS / "metrics.json"
    metrics = read_json(path) if path.is_file() else {}
    found = [
        (source, place, -by_source[source][figure]["value"], name, task)
        for task in ("captions", "retrieval")
        for name, by_source in metrics.get(task, {}).items()
        for source in by_source
        for place, figure in enumerate(HEADLINES)
        if by_source[source].get(figure, {}).get("value") is not None
    ]
    rows = []
    for source, place, _, name, task in sorted(found):
        figure, (title, scale, digits) = list(HEADLINES.items())[place]
        entry = metrics[task][name][source][figure]
        value, _, interval = figure_text(entry, scale, digits, True).partition(" ")
        shown = interval.strip("[]").replace(", ", " – ") or "–"
        rows.append((source, title, name, value, shown, entry.get("n", "–")))
    rows = rows or [("–", "no results yet", "make study", "–", "–", "–")]
    columns = ["source", "figure", "of", "value", "95 % interval", "n"]
    return pd.DataFrame(rows, columns=columns).set_index(columns[:3])


def list_pages() -> Markdown:
    """Links to the pages and executed notebooks that exist, relative to the folder ``notebooks``."""
    made = [page for page in PAGES if (paths.ROOT / page).is_file()]
    return Markdown(_render("pages.md.jinja", pages=PAGES, made=made, executed=sorted(paths.EXECUTED.glob("*.ipynb"))))


def model_card(metrics: Mapping, data: Mapping) -> str:
    """The card as Markdown with a YAML head.

    Args:
        metrics: what ``reports/metrics.json`` holds.
        data: what ``reports/metrics/aggregate_data.json`` holds.

    Raises:
        ValueError: the metrics lack the captioner or their provenance.
    """
    for key in ("captions", "retrieval", "provenance", "parameters"):
        if key not in metrics:
            raise ValueError(f"reports/metrics.json: has no {key!r}; run the stage compare_with_paper again")
    if "captioner" not in metrics["captions"]:
        raise ValueError("reports/metrics.json: has no scores of the captioner; run the stage score_captions again")
    return _render(
        "model_card.md.jinja", metrics=metrics, data=data, params=metrics["parameters"], known=KNOWN, splits=SPLITS
    )


def figure_text(score: Mapping | None, scale: int, digits: int, interval: bool = False) -> str:
    """``1.147 [1.030, 1.280]`` of a reported score, the interval where it is wanted and known; a dash without a value."""
    if not score or score.get("value") is None:
        return "-"
    value, *ends = (
        None if score.get(key) is None else f"{scale * score[key]:.{digits}f}" for key in ("value", "low", "high")
    )
    return f"{value} [{', '.join(ends)}]" if interval and None not in ends else value


def _render(name: str, **values: object) -> str:
    """The text of a template of this folder; what goes into a picture is escaped."""
    made = Environment(
        loader=PackageLoader("rsvlm.study", "templates"),
        autoescape=not name.endswith(".md.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"figure": figure_text, "plain": as_markdown, "code": as_code, "yaml": as_yaml}
    made.filters["two_lines"] = lambda text: textwrap.wrap(text, 46, max_lines=2, placeholder=" …")
    return made.get_template(name).render(RUNS=RUNS, METHODS=METHODS, **values)


def _places(entries: Sequence) -> list[PurePosixPath]:
    """Deps or outs, each written as a text or as a mapping with the path as its key."""
    return [PurePosixPath(str(next(iter(entry)) if isinstance(entry, dict) else entry)) for entry in entries]


def _overlaps(dep: PurePosixPath, out: PurePosixPath) -> bool:
    return dep == out or out in dep.parents or dep in out.parents


def _changes(entries: Sequence) -> list[tuple[str, str, str]]:
    """(deps, outs or command; kind of change; what) of one stage's part of ``dvc status --json``."""
    changes = []
    for entry in entries:
        if not isinstance(entry, dict):
            changes.append(("command", "modified", ""))
            continue
        for what, found in entry.items():
            for name, kind in found.items():
                inner = kind if isinstance(kind, dict) else {name: kind}  # parameters: file -> key -> kind
                changes += [(what.removeprefix("changed "), str(how), key) for key, how in inner.items()]
    return changes


@told_in_a_line
def main(card: Path | None = None) -> int:
    """Write the card of the study in place."""
    metrics, data = read_json(paths.REPORTS / "metrics.json"), read_json(paths.METRICS / "aggregate_data.json")
    write_text(card or paths.REPORTS / "model_card.md", model_card(metrics, data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
