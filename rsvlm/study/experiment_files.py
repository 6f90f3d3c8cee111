"""What DVC's experiments hold: their parameters and figures, their pages, their captions beside another's."""

import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from pathlib import Path

import pandas as pd

from rsvlm.data.table import load_table, rows_of
from rsvlm.files import read_json, write_json, write_text
from rsvlm.scoring.runs import RESERVED, RUNS
from rsvlm.settings import closest_name
from rsvlm.study import paths

WORKSPACE = "workspace"
FIGURES_FILE = "reports/metrics.json"
PICTURES = "data/blue_marble"  # the pictures that a stage makes; all others are a person's
RUN = "captioner"  # whose captions two experiments are compared by


@dataclass(frozen=True)
class Experiment:
    """One row: the commit that experiments start from, the workspace, or an experiment."""

    name: str
    revision: str = ""  # of git; empty: the workspace
    when: datetime | None = None
    state: str = ""  # queued, running or failed
    params: Mapping[str, object] = field(default_factory=dict)  # section.key -> value
    metrics: Mapping = field(default_factory=dict)  # what reports/metrics.json holds
    outs: Mapping[str, str | None] = field(default_factory=dict)  # out -> hash


def read_experiments(commits: int = 1) -> list[Experiment]:
    """The newest commit, the workspace where it differs, then the experiments that started from the last ``commits``.

    Raises:
        ValueError: no repository of git and DVC; says what to do.
    """
    from dvc.exceptions import DvcException  # here: this import takes a second
    from dvc.repo import Repo
    from dvc.scm import SCMError

    try:
        with Repo(str(paths.ROOT)) as repo:
            states = repo.experiments.show(num=commits)
            kept = repo.cache.local
    except (DvcException, SCMError) as error:
        reason = (
            f"{error}. Experiments need a study in git (`git init && git add -A && git commit -m study`) and its DVC"
        )
        raise ValueError(f"{paths.ROOT}: {reason}") from error
    there, commit, *older = [_read_state(state, kept) for state in states]
    made = [
        _read_state(run[0], kept, run.name or run[0].name, run.executor.state if run.executor else "success")
        for state in states
        for run in state.experiments or []
    ]
    made.sort(key=lambda one: (one.when is not None, one.when.timestamp() if one.when else 0))
    own = [there] if (there.params, there.metrics) != (commit.params, commit.metrics) else []
    return [commit, *own, *older, *made]


def find_experiment(name: str, experiments: Sequence[Experiment]) -> Experiment:
    """The experiment of that name, the newest where there are several; the workspace always has one.

    Raises:
        ValueError: there is none; names the closest and all.
    """
    found = [one for one in experiments if one.name == name or (len(name) >= 7 and one.revision.startswith(name))]
    if found:
        return found[-1]
    if name == WORKSPACE:  # left out of the table where it is the newest commit's
        return Experiment(WORKSPACE, params=experiments[0].params, outs=experiments[0].outs)
    names = dict.fromkeys([*(one.name for one in experiments), WORKSPACE])
    raise ValueError(f"no experiment {name!r}{closest_name(name, names)}")


def galleries_of(experiment: Experiment) -> Path:
    """Where an experiment's galleries lie once they were fetched; the workspace's are the study's."""
    return paths.GALLERIES if not experiment.revision else paths.SCRATCH / "experiments" / experiment.name / "galleries"


def fetch_reports(experiment: Experiment, out: Path) -> list[Path]:
    """The pages among what was copied: all of an experiment's ``reports`` out of DVC's cache into a folder.

    Raises:
        ValueError: the experiment has none, or its files are no longer in the cache.
    """
    from dvc.exceptions import DvcException

    if not experiment.revision:
        raise ValueError(f"the pages of the workspace lie in {paths.REPORTS}")
    files = _file_system(experiment.revision)
    try:
        out.mkdir(parents=True, exist_ok=True)
        files.get("reports/", f"{out}/", recursive=True)
    except (DvcException, OSError) as error:
        raise ValueError(
            f"{experiment.name}: its reports are not in DVC's cache ({error}); it did not finish, or `dvc gc` took them"
        ) from error
    return sorted([*out.glob("galleries/*.html"), *out.glob("tables/*.html")])


def write_pair_gallery(first: Experiment, second: Experiment, page: Path) -> dict[str, object]:
    """What ``write_caption_gallery`` wrote: a page with the captions of two experiments on the same images.

    Raises:
        ValueError: they scored another split, other images or other references; or an experiment has no captions.
    """
    from rsvlm.viewing.caption_gallery import write_caption_gallery
    from rsvlm.viewing.records import StudyFiles

    pair, splits = (first, second), [one.params.get("score_captions.split", "test") for one in (first, second)]
    if splits[0] != splits[1]:
        raise ValueError(
            f"{first.name} scored the split {splits[0]!r}, {second.name} {splits[1]!r}: a gallery compares the same images"
        )
    drawn = {one.name: one.outs.get(PICTURES) for one in (*pair, _workspace())}
    if len(set(drawn.values())) > 1:
        raise ValueError(
            f"{PICTURES} holds other pictures in {', '.join(drawn)}: a gallery compares captions of the same images"
        )
    names = [_run_name(one) for one in pair]
    with tempfile.TemporaryDirectory() as folder:
        files = StudyFiles(
            root=paths.ROOT,
            **{name: Path(folder) / name for name in ("table", "generated", "others", "scores", "metrics")},
        )
        for name, one in zip(names, pair):
            write_text(files.others / f"{name}.jsonl", _read(one, f"data/generated/{RUN}.jsonl"))
        tables = []
        for one in pair:
            write_text(files.table, _read(one, paths.PLACES["IMAGE_TABLE"]))
            tables.append(rows_of(load_table(files.table, files.root), split=splits[0]))
        _check_same_images(pair, tables)
        write_text(files.scores / "captions.csv", _joined_scores(names, pair))
        measured = [json.loads(_read(one, "reports/metrics/score_captions.json")) for one in pair]
        write_json(files.metrics / "score_captions.json", {name: own[RUN] for name, own in zip(names, measured)})
        return write_caption_gallery(
            page, files, run=names[0], baselines=names[1:], split=splits[0], images=len(tables[0]), neighbours=0
        )


def _read_state(state: object, kept: object, name: str | None = None, doing: str = "success") -> Experiment:
    """A row of what DVC knows of a commit, an experiment or the workspace.

    Args:
        kept: DVC's cache. Its file is read as it lies there: DVC's file system takes seconds for each commit.
    """
    data, revision = state.data, "" if state.rev == WORKSPACE else state.rev
    sections = data.params.get("params.yaml", {}).get("data", {}) if data else {}
    outs = {out: own.hash for out, own in data.outs.items()} if data else {}
    figures = Path(kept.oid_to_path(outs[FIGURES_FILE])) if outs.get(FIGURES_FILE) else None
    if not revision:
        figures = paths.ROOT / FIGURES_FILE
    done = doing == "success"
    return Experiment(
        name=name or revision[:7] or WORKSPACE,
        revision=revision,
        when=data.timestamp if data else None,
        state="" if done else doing,
        params={f"{section}.{key}": value for section, own in sections.items() for key, value in dict(own).items()},
        metrics=read_json(figures) if done and figures and figures.is_file() else {},
        outs=outs,
    )


def _workspace() -> Experiment:
    """The workspace as DVC knows its outs, without asking for experiments."""
    from dvc.repo import Repo

    with Repo(str(paths.ROOT)) as repo:
        outs = {out.def_path: out.hash_info.value for out in repo.index.outs if out.hash_info}
    return Experiment(WORKSPACE, outs=outs)


@lru_cache(maxsize=4)
def _file_system(revision: str) -> object:
    """The files of a commit, those of git and those in DVC's cache; making it takes seconds."""
    from dvc.api import DVCFileSystem

    return DVCFileSystem(str(paths.ROOT), rev=revision)


def _read(experiment: Experiment, place: str) -> str:
    """The text of one of an experiment's files.

    Raises:
        ValueError: it has no such file, or the file is no longer in DVC's cache.
    """
    from dvc.exceptions import DvcException

    try:
        if not experiment.revision:
            return (paths.ROOT / place).read_text(encoding="utf-8")
        return _file_system(experiment.revision).cat_file(place).decode("utf-8")
    except (DvcException, OSError) as error:
        raise ValueError(
            f"{experiment.name}: no {place} in DVC's cache; did the experiment finish? ({error})"
        ) from error


def _check_same_images(pair: Sequence[Experiment], tables: Sequence) -> None:
    one, other = [dict(zip(table["image_id"], zip(table["path"], map(tuple, table["captions"])))) for table in tables]
    different = [name for name in dict.fromkeys([*one, *other]) if one.get(name) != other.get(name)]
    if different:
        raise ValueError(
            f"{pair[0].name} and {pair[1].name} differ in {len(different)} of {len(one | other)} images or their"
            f" references, such as {different[0]!r}: a gallery compares captions of the same images"
        )


def _joined_scores(names: Sequence[str], pair: Sequence[Experiment]) -> str:
    """One table of scores an image, the captioner's rows of each experiment under its name."""
    tables = [pd.read_csv(io.StringIO(_read(one, "reports/scores/captions.csv")), dtype=str) for one in pair]
    own = [table[table["run"] == RUN].assign(run=name) for name, table in zip(names, tables)]
    return pd.concat(own).to_csv(index=False)


def _run_name(experiment: Experiment) -> str:
    """The experiment's name as a run's, which is not that of a run of the study."""
    taken = experiment.name.casefold() in (*RUNS, *RESERVED)
    return f"{experiment.name} (experiment)" if taken else experiment.name
