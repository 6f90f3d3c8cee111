"""What DVC's experiments hold: their parameters and figures, their pages, their captions beside another's."""

import io
import json
import shutil
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from pathlib import Path

import pandas as pd

from rsvlm.data.table import load_table
from rsvlm.files import read_json, write_json, write_text
from rsvlm.safe_text import as_cell
from rsvlm.scoring.runs import RESERVED, RUNS
from rsvlm.settings import closest_name
from rsvlm.study import paths

WORKSPACE = "workspace"
FIGURES_FILE = "reports/metrics.json"
FEATURES = paths.PLACES["FEATURES"]
PICTURES = "data/blue_marble"  # the pictures that a stage makes; all others are a person's
MOST_IMAGES = 600  # on a page of two experiments
WHY_NONE = {  # state -> why an experiment has no results
    "queued": "it waits in the queue, `dvc queue start` runs it",
    "running": "it is still running",
    "failed": "it failed, `dvc queue logs {name}` says where",
    "removed": "they are not in DVC's cache (`dvc gc` takes them out), run it again",
}
RUN = "captioner"  # whose captions two experiments are compared by


@dataclass(frozen=True)
class Experiment:
    """One row: the commit that experiments start from, the workspace, or an experiment."""

    name: str
    revision: str = ""  # of git; empty: the workspace
    when: datetime | None = None
    state: str = ""  # why it has no results: one of WHY_NONE
    params: Mapping[str, object] = field(default_factory=dict)  # section.key -> value
    metrics: Mapping = field(default_factory=dict)  # what reports/metrics.json holds
    outs: Mapping[str, str | None] = field(default_factory=dict)  # out -> hash


def read_experiments(commits: int = 1) -> list[Experiment]:
    """The newest commit, the workspace where it differs, then the experiments that started from the last ``commits``.

    Raises:
        ValueError: no repository of git and DVC, says what to do; ``commits`` is below 1.
    """
    from dvc.exceptions import DvcException  # here: this import takes a second
    from dvc.repo import Repo
    from dvc.scm import SCMError

    if commits < 1:
        raise ValueError(f"commits is {commits}: give at least 1")
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


def changes_of(experiment: Experiment, first: Experiment) -> list[str]:
    """What the experiment changed in the first one's parameters, one line each."""
    keys = dict.fromkeys([*first.params, *experiment.params])
    pairs = [(key, first.params.get(key), experiment.params.get(key)) for key in keys]
    return [f"{key}: {_short(old)} → {_short(new)}" for key, old, new in pairs if old != new]


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
    _check_results(experiment)
    with tempfile.TemporaryDirectory() as folder:  # all of them, or none
        made = Path(folder) / "reports"
        made.mkdir()
        try:
            _file_system(experiment.revision).get("reports/", f"{made}/", recursive=True)
        except (DvcException, OSError) as error:
            raise ValueError(
                f"{experiment.name}: some of its reports are not in DVC's cache, `dvc gc` took them ({error})"
            ) from error
        shutil.copytree(made, out, dirs_exist_ok=True)
    return sorted([*out.glob("galleries/*.html"), *out.glob("tables/*.html")])


def write_pair_gallery(first: Experiment, second: Experiment, page: Path) -> dict[str, object]:
    """What ``write_caption_gallery`` wrote: the captions of the second experiment against the first's, on the same images.

    Raises:
        ValueError: they scored another split, other images or other references; or an experiment has no captions.
    """
    from rsvlm.viewing.caption_gallery import Pair, write_caption_gallery
    from rsvlm.viewing.records import StudyFiles

    pair = (first, second)
    for one in pair:
        _check_results(one)
    splits = [one.params.get("score_captions.split", "test") for one in (first, second)]
    if splits[0] != splits[1]:
        raise ValueError(
            f"{first.name} scored the split {splits[0]!r}, {second.name} {splits[1]!r}: a gallery compares the same images"
        )
    drawn = [one.outs.get(PICTURES) for one in (*pair, _workspace())]
    if drawn[0] != drawn[1]:
        raise ValueError(
            f"{PICTURES} holds other pictures in {first.name} than in {second.name}: a gallery compares captions of the"
            " same images"
        )
    if drawn[0] != drawn[2]:
        raise ValueError(
            f"{PICTURES} holds other pictures now than in {first.name} and {second.name}, and a gallery shows those that are"
            " there: check out a commit with their pictures, then run `dvc checkout`"
        )
    names = [_run_name(one) for one in pair]
    with tempfile.TemporaryDirectory() as folder:
        files = StudyFiles(
            root=paths.ROOT,
            **{name: Path(folder) / name for name in ("table", "generated", "others", "scores", "metrics", "features")},
        )
        for name, one in zip(names, pair):
            write_text(files.others / f"{name}.jsonl", _read(one, f"data/generated/{RUN}.jsonl"))
        tables = []
        for one in pair:
            files.table.write_bytes(_content(one, paths.PLACES["IMAGE_TABLE"]))
            tables.append(load_table(files.table, columns=["image_id", "path", "captions"], split=splits[0]))
        _check_same_images(pair, tables)
        shown = next((one for one in pair if _link_features(one, files.features)), None)
        files.table.write_bytes(_content(shown or first, paths.PLACES["IMAGE_TABLE"]))
        write_text(files.scores / "captions.csv", _joined_scores(names, pair))
        measured = [json.loads(_read(one, "reports/metrics/score_captions.json")) for one in pair]
        write_json(files.metrics / "score_captions.json", {name: own[RUN] for name, own in zip(names, measured)})
        told = Pair(changes_of(second, first), _whose_features(pair, shown))
        return write_caption_gallery(
            page, files, run=names[1], baselines=names[:1], split=splits[0], images=MOST_IMAGES, pair=told
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
    if done and revision and figures and not figures.is_file():
        doing = "removed"
    return Experiment(
        name=name or revision[:7] or WORKSPACE,
        revision=revision,
        when=data.timestamp if data else None,
        state="" if doing == "success" else doing,
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
    """The text of one of an experiment's files. Raises as ``_content``."""
    return _content(experiment, place).decode("utf-8")


def _content(experiment: Experiment, place: str) -> bytes:
    """The bytes of one of an experiment's files.

    Raises:
        ValueError: it has no such file, or the file is no longer in DVC's cache.
    """
    from dvc.exceptions import DvcException

    _check_results(experiment)
    try:
        if not experiment.revision:
            return (paths.ROOT / place).read_bytes()
        return _file_system(experiment.revision).cat_file(place)
    except (DvcException, OSError) as error:
        where = "in DVC's cache, `dvc gc` took it" if experiment.revision else f"in {paths.ROOT}, run `dvc repro`"
        raise ValueError(f"{experiment.name}: no {place} {where} ({error})") from error


def _check_results(experiment: Experiment) -> None:
    if experiment.state:
        reason = WHY_NONE.get(experiment.state, experiment.state).format(name=experiment.name)
        raise ValueError(f"{experiment.name} has no results: {reason}")


def _link_features(experiment: Experiment, folder: Path) -> bool:
    """Whether an experiment's features are there: links in the folder then, for a large study's are gigabytes."""
    from dvc.repo import Repo

    if not experiment.revision:
        files = {file.name: file for file in paths.FEATURES.glob("*")}
    else:
        with Repo(str(paths.ROOT)) as repo:
            kept = repo.cache.local
        listed = Path(kept.oid_to_path(experiment.outs.get(FEATURES) or "none"))
        listed = read_json(listed) if listed.is_file() else []
        files = {one["relpath"]: Path(kept.oid_to_path(one["md5"])) for one in listed}
    if not files or not all(file.is_file() for file in files.values()):
        return False
    folder.mkdir()
    for name, file in files.items():
        (folder / name).symlink_to(file)
    return True


def _whose_features(pair: Sequence[Experiment], shown: Experiment | None) -> str:
    """A sentence on the nearest training images, where it is needed."""
    if shown is None:
        names = " nor ".join(one.name + "'s" for one in pair)
        return f"No nearest training images: neither {names} features are in DVC's cache (dvc gc may have taken them)."
    other = next(one for one in pair if one is not shown)
    same = shown.outs.get(FEATURES) == other.outs.get(FEATURES)
    return "" if same else f"The nearest training images are by the features of {shown.name}; {other.name} has others."


def _check_same_images(pair: Sequence[Experiment], tables: Sequence) -> None:
    one, other = [dict(zip(table["image_id"], zip(table["path"], map(tuple, table["captions"])))) for table in tables]
    different = [name for name in dict.fromkeys([*one, *other]) if one.get(name) != other.get(name)]
    if different:
        raise ValueError(
            f"{pair[0].name} and {pair[1].name} differ in {len(different)} of {len(one | other)} images or their"
            f" references, such as {different[0]!r}: a gallery compares captions of the same images"
        )


def _joined_scores(names: Sequence[str], pair: Sequence[Experiment]) -> str:
    """One table of scores an image, the captioner's rows of each experiment under its name.

    Cells go through as they are, texts with the apostrophes of ``rsvlm.safe_text``: only the names are new.
    """
    tables = [pd.read_csv(io.StringIO(_read(one, "reports/scores/captions.csv")), dtype=str) for one in pair]
    own = [table[table["run"] == RUN].assign(run=as_cell(name)) for name, table in zip(names, tables)]
    return pd.concat(own).to_csv(index=False)


def _run_name(experiment: Experiment) -> str:
    """The experiment's name as a run's, which is not that of a run of the study."""
    taken = experiment.name.casefold() in (*RUNS, *RESERVED)
    return f"{experiment.name} (experiment)" if taken else experiment.name


def _short(value: object) -> str:
    return "null" if value is None else textwrap.shorten(str(value), 40, placeholder=" …")
