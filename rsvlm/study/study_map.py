"""The study as a picture: its stages from dvc.yaml, what is up to date, what came out, where to look."""

import json
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pandas as pd
from IPython.display import Markdown
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch, Rectangle
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from rsvlm.files import read_json
from rsvlm.study import paths
from rsvlm.viewing.page import format_score
from rsvlm.viewing.plots import BLUE, MUTED, ORANGE, PAPER, figure

FRESH, STALE, MISSING, UNKNOWN = "up to date", "would run again", "not run yet", "not asked"
LOOKS = {  # state -> face, edge, hatch, line
    FRESH: ("#d6e8f4", BLUE, "", "-"),
    STALE: ("#fdf0d5", ORANGE, "////", "-"),
    MISSING: (PAPER, MUTED, "", (0, (4, 3))),
    UNKNOWN: (PAPER, MUTED, "", "-"),
}
DVC_SECONDS = 120
BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y = 2.95, 0.66, 0.3, 0.34  # inches
HEADLINES = ("CIDEr", "BLEU-4", "mean_recall")
PAGES = (
    ("reports/galleries/captions.html", "every test image with the captions of all runs and their scores"),
    ("reports/galleries/retrieval.html", "what captions and images find"),
    ("reports/tables/comparison.html", "the study's figures beside published ones"),
)


@dataclass(frozen=True)
class Stage:
    """One stage of dvc.yaml that runs a notebook."""

    name: str
    notebook: str  # "40_finetune_lora", or the stage's name where it runs no notebook
    about: str
    needs: tuple[str, ...]  # the stages whose outs it reads
    level: int  # how many stages lie before it on the longest way


@dataclass(frozen=True)
class State:
    """Whether a stage is up to date, and why not."""

    name: str
    reason: str = ""


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
    named = {name: body for name, body in (content.get("stages") or {}).items() if "foreach" not in body}
    if not named:
        raise ValueError(f"{path}: no stages")
    outs = {name: [_path_of(out) for out in body.get("outs", [])] for name, body in named.items()}
    needs = {
        name: tuple(
            other
            for other in named
            if other != name
            and any(_overlaps(_path_of(dep), out) for dep in body.get("deps", []) for out in outs[other])
        )
        for name, body in named.items()
    }
    levels: dict[str, int] = {}
    for _ in named:
        for name in named:
            if name not in levels and all(other in levels for other in needs[name]):
                levels[name] = 1 + max((levels[other] for other in needs[name]), default=-1)
    if len(levels) < len(named):
        raise ValueError(f"{path}: the stages {', '.join(sorted(set(named) - set(levels)))} wait for each other")
    return [
        Stage(name, _notebook_of(name, body), str(body.get("desc", "")), needs[name], levels[name])
        for name, body in named.items()
    ]


def read_states(stages: Sequence[Stage]) -> dict[str, State]:
    """What DVC says of each stage; empty, with a warning, where DVC cannot be asked."""
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


def judge_stages(stages: Sequence[Stage], status: Mapping[str, Sequence]) -> dict[str, State]:
    """The state of each stage, from what ``dvc status --json`` printed.

    A stage is not up to date when DVC says so, when its notebook changed, or when a stage before it is not.
    """
    states: dict[str, State] = {}
    for stage in sorted(stages, key=lambda stage: stage.level):
        own = _changes(status.get(stage.name, []))
        notebook = _changes(status.get(f"strip@{stage.notebook}", []))
        waits = [name for name in stage.needs if states[name].name != FRESH]
        if any(what == "outs" and kind == "deleted" for what, kind, _ in own):
            states[stage.name] = State(MISSING, "its results are not there")
        elif own:
            names = dict.fromkeys(name for _, _, name in own if name)
            states[stage.name] = State(STALE, "changed: " + ", ".join(names) if names else "its command changed")
        elif notebook:
            states[stage.name] = State(STALE, f"changed: notebooks/{stage.notebook}.ipynb")
        elif waits:
            states[stage.name] = State(STALE, "after " + ", ".join(waits))
        else:
            states[stage.name] = State(FRESH)
    return states


def stage_table(stages: Sequence[Stage], states: Mapping[str, State]) -> pd.DataFrame:
    """One row a stage: its notebook, what it is for, whether it is up to date, and why not."""
    rows = {
        stage.notebook: {
            "about": stage.about,
            "state": states.get(stage.name, State(UNKNOWN)).name,
            "why": states.get(stage.name, State(UNKNOWN)).reason,
        }
        for stage in stages
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def draw_map(stages: Sequence[Stage], states: Mapping[str, State]) -> Figure:
    """The stages as boxes, from top to bottom, with arrows along the data; filled, hatched or empty by their state."""
    levels: dict[int, list[Stage]] = {}
    for stage in stages:
        levels.setdefault(stage.level, []).append(stage)
    middles: dict[str, float] = {}
    for _, own in sorted(levels.items()):  # below the stages that they come from, so that few arrows cross
        above = {stage.name: [middles[name] for name in _direct(stage, stages)] for stage in own}
        own.sort(key=lambda stage: sum(above[stage.name]) / max(1, len(above[stage.name])))
        middles |= {stage.name: number - (len(own) - 1) / 2 for number, stage in enumerate(own)}
    widest = max(len(own) for own in levels.values())
    step_x, step_y = BOX_WIDTH + GAP_X, BOX_HEIGHT + GAP_Y
    width, height = widest * step_x - GAP_X + 0.1, len(levels) * step_y + 0.15
    drawn, axes = figure(width, height)
    axes.set(xlim=(-0.05, width - 0.05), ylim=(0, height), aspect="equal")
    axes.set_axis_off()
    places = {
        stage.name: ((width - 0.1 - len(own) * step_x + GAP_X) / 2 + number * step_x, height - 0.1 - level * step_y)
        for level, own in levels.items()
        for number, stage in enumerate(own)
    }  # the upper left corner of each box
    for stage in stages:
        for other in _direct(stage, stages):
            _draw_arrow(axes, places[other], places[stage.name])
    for stage in stages:
        _draw_box(axes, places[stage.name], stage, states.get(stage.name, State(UNKNOWN)))
    used = [name for name in LOOKS if name in {states.get(stage.name, State(UNKNOWN)).name for stage in stages}]
    handles = [
        Patch(facecolor=face, edgecolor=edge, hatch=hatch, linestyle=line, label=name)
        for name, (face, edge, hatch, line) in LOOKS.items()
        if name in used
    ]
    axes.legend(handles=handles, loc="upper left", handlelength=1.8, handleheight=1.1, borderaxespad=0)
    return drawn


def headline_table(path: Path | None = None) -> pd.DataFrame:
    """The study's own headline figures as text: value, 95 % interval and n, by source and run or method.

    Without ``reports/metrics.json`` the only row says how to get one.
    """
    path = path or paths.REPORTS / "metrics.json"
    columns = ["source", "figure", "of", "value", "95 % interval", "n"]
    if not path.is_file():
        note = ["–", "no results yet", "make study", "–", "–", "–"]
        return pd.DataFrame([note], columns=columns).set_index(["source", "figure", "of"])
    metrics = read_json(path)
    rows = []
    for task in ("captions", "retrieval"):
        for name, by_source in metrics.get(task, {}).items():
            for source, entries in by_source.items():
                for figure_name in HEADLINES:
                    entry = entries.get(figure_name)
                    if isinstance(entry, dict) and entry.get("value") is not None:
                        rows.append([source, HEADLINES.index(figure_name), name, entry])
    rows.sort(key=lambda row: (row[0], row[1], -row[3]["value"], row[2]))
    cells = [[source, *_figure_cells(HEADLINES[number], name, entry)] for source, number, name, entry in rows]
    return pd.DataFrame(cells, columns=columns).set_index(["source", "figure", "of"])


def list_pages() -> Markdown:
    """Links to the pages and executed notebooks that exist, relative to the folder ``notebooks``."""
    lines = [f"- [{page}](../{page}): {about}" for page, about in PAGES if (paths.ROOT / page).is_file()]
    absent = [page for page, _ in PAGES if not (paths.ROOT / page).is_file()]
    executed = sorted(paths.EXECUTED.glob("*.ipynb")) if paths.EXECUTED.is_dir() else []
    if executed:
        links = ", ".join(f"[{file.stem}](../reports/notebooks/{file.name})" for file in executed)
        lines.append(f"- executed notebooks: {links}")
    if absent:
        lines.append(f"- not there yet: {', '.join(absent)}; `make study` makes them")
    lines.append(
        "- [90_browse](90_browse.ipynb): the gallery to filter and mark in, the search box, a dialogue with the captioner"
    )
    return Markdown("\n".join(lines))


def _figure_cells(figure_name: str, name: str, entry: dict) -> list[object]:
    percent = figure_name == "mean_recall"
    scale, digits = (100, 1) if percent else (1, 3)
    parts = [None if entry.get(key) is None else scale * entry[key] for key in ("value", "low", "high")]
    value, low, high = (format_score(part, digits) for part in parts)
    return [
        "mean recall, %" if percent else figure_name,
        name,
        value,
        f"{low} – {high}" if low != "–" else "–",
        entry.get("n", "–"),
    ]


def _path_of(entry: object) -> PurePosixPath:
    """A dep or out, written as a text or as a mapping with the path as its key."""
    return PurePosixPath(str(next(iter(entry)) if isinstance(entry, dict) else entry))


def _overlaps(dep: PurePosixPath, out: PurePosixPath) -> bool:
    return dep == out or out in dep.parents or dep in out.parents


def _notebook_of(name: str, body: dict) -> str:
    stems = [_path_of(dep).stem for dep in body.get("deps", []) if _path_of(dep).suffix == ".ipynb"]
    return stems[0] if stems else name


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


def _direct(stage: Stage, stages: Sequence[Stage]) -> list[str]:
    """The stages it needs that no other needed stage needs already: the arrows worth drawing."""
    needs = {other.name: set(other.needs) for other in stages}
    reached: set[str] = set()
    todo = [name for other in stage.needs for name in needs[other]]
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo += needs[name]
    return [name for name in stage.needs if name not in reached]


def _draw_box(axes: object, place: tuple[float, float], stage: Stage, state: State) -> None:
    x, y = place
    face, edge, hatch, line = LOOKS[state.name]
    shape = {"boxstyle": "round,pad=0,rounding_size=0.07", "facecolor": face, "edgecolor": edge, "linestyle": line}
    axes.add_patch(FancyBboxPatch((x, y - BOX_HEIGHT), BOX_WIDTH, BOX_HEIGHT, linewidth=1.3, zorder=2, **shape))
    if hatch:  # only at the box's left end: words are hard to read on hatching
        strip = {"facecolor": face, "edgecolor": edge, "hatch": hatch, "linewidth": 0, "zorder": 3}
        axes.add_patch(Rectangle((x + 0.05, y - BOX_HEIGHT + 0.05), 0.14, BOX_HEIGHT - 0.1, **strip))
    number, _, name = stage.notebook.partition("_") if stage.notebook[:1].isdigit() else ("", "", stage.notebook)
    about = "\n".join(textwrap.wrap(stage.about, 46, max_lines=2, placeholder=" …"))
    left = x + (0.27 if hatch else 0.13)
    axes.text(left, y - 0.16, f"{number}  {name}".strip(), fontsize=9, fontweight="bold", va="center", zorder=4)
    axes.text(left, y - 0.3, about, fontsize=7.2, va="top", linespacing=1.25, zorder=4)


def _draw_arrow(axes: object, start: tuple[float, float], end: tuple[float, float]) -> None:
    begin = (start[0] + BOX_WIDTH / 2, start[1] - BOX_HEIGHT - 0.02)
    tip = (end[0] + BOX_WIDTH / 2, end[1] + 0.02)
    look = {"arrowstyle": "-|>", "mutation_scale": 10, "color": MUTED, "linewidth": 1.1}
    axes.add_patch(FancyArrowPatch(begin, tip, shrinkA=0, shrinkB=0, zorder=1, **look))
