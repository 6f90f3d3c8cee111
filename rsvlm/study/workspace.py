"""A notebook's settings and places: run as a stage it makes the study, run by hand it is a try below ``scratch/``.

A notebook of a stage begins with ``settings, places = begin("finetune_lora", globals())`` and ends by handing its numbers to
``places.record``. A try never touches what the study made; `rsvlm study adopt scratch/40_finetune_lora` takes what was
changed in its parameters cell over into params.yaml.
"""

import atexit
import html
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

from rsvlm.disks import disk_trouble, is_open
from rsvlm.files import only_process, read_json, write_json
from rsvlm.settings import Settings
from rsvlm.study import paths
from rsvlm.study.config import as_python, check_section, defaults, quick_values, read_section, use_cluster
from rsvlm.study.settings import SECTIONS

VALUES = "parameters.json"  # of a try, in its folder
_taken: dict[Path, ExitStack] = {}  # folders below scratch/ that this process has to itself, until it ends


@dataclass(frozen=True)
class Values:
    """Where the values of a notebook come from."""

    used: dict[str, object]
    changed: dict[str, object]  # by hand, in the parameters cell
    origin: str
    others: dict[str, object]  # what stands elsewhere for those that differ: in params.yaml, or in the default study
    elsewhere: str


@dataclass(frozen=True, repr=False)
class Workspace:
    """The names of ``rsvlm.study.paths`` as attributes, for one notebook: ``places.CAPTIONER``.

    What its stage makes lies below ``home``, everything else in the study (or in other tries, where that was asked for).

    Raises:
        AttributeError: no such place.
        FileNotFoundError: the place holds what another stage makes, which is not there; names both and the command.
    """

    stage: str
    notebook: str
    root: Path
    home: Path  # the root, or scratch/NOTEBOOK when run by hand
    outs: tuple[str, ...]  # the stage's, relative to the root
    inputs: tuple[tuple[str, str, str], ...]  # what it reads of other stages, which stage makes it, its notebook
    values: Values
    tries: bool = False  # read what other notebooks run by hand made

    def __getattr__(self, name: str) -> Path:
        if name not in paths.PLACES:
            raise AttributeError(f"no place {name!r} in rsvlm.study.paths")
        place = paths.PLACES[name]
        if name == "CHECKPOINTS" or any(_overlap(place, out) for out in self.outs):
            return self.home / place
        needed = [one for one in self.inputs if _overlap(place, one[0])]
        tried = [dep for dep, _, notebook in needed if self._was_tried(dep, notebook)]
        for dep, maker, _ in needed:
            if dep not in tried and not (self.root / dep).exists():
                raise FileNotFoundError(
                    f"no {dep}: the notebook {self.notebook} reads what the stage {maker} makes;"
                    f" run `make study`, or `dvc repro {maker}` for it alone"
                )
        if not tried:
            return self.root / place
        if len(needed) == 1:
            return self._try(needed[0][2]) / place
        mixed = self.home / "inputs" / place  # several stages' files, small ones, in one folder
        for dep, _, notebook in needed:
            source = (self._try(notebook) if dep in tried else self.root) / dep
            target = self.home / "inputs" / dep
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        return mixed

    @property
    def is_try(self) -> bool:
        """Whether the notebook runs by hand."""
        return self.home != self.root

    @property
    def shown_home(self) -> str:
        """Where a try writes, relative to the root."""
        return self.home.relative_to(self.root).as_posix()

    def read_tries(self) -> list[str]:
        """The other tries that this one reads, relative to the root."""
        found = {notebook for dep, _, notebook in self.inputs if self._was_tried(dep, notebook)}
        return [f"{paths.PLACES['SCRATCH']}/{notebook}" for notebook in sorted(found)]

    def record(self, numbers: Mapping[str, object]) -> dict:
        """The stage's numbers as they are written to its metrics file: with the parameters used, and where it was a try."""
        whole = {**numbers, "parameters": self.values.used} | ({"try": self.shown_home} if self.is_try else {})
        write_json(self.METRICS / f"{self.stage}.json", whole)
        return whole

    def records(self) -> dict[str, dict]:
        """The metrics files that this stage reads, by the stage that made them."""
        folder = self.METRICS
        return {maker: read_json(folder / Path(dep).name) for dep, maker, _ in self.inputs if _is_metrics(dep)}

    def _was_tried(self, dep: str, notebook: str) -> bool:
        return self.tries and (self._try(notebook) / dep).exists()

    def _try(self, notebook: str) -> Path:
        return self.root / paths.PLACES["SCRATCH"] / notebook

    def __repr__(self) -> str:
        if not self.is_try:
            return f"Run as a stage of the study: writes {', '.join(self.outs)}. Values: {self.values.origin}."
        reads = "the study" + "".join(f" and {one}/" for one in self.read_tries())
        return (
            f"Run by hand, a try: reads {reads}, writes below {self.shown_home}/ alone. Values: {self.values.origin}."
        )

    def _repr_html_(self) -> str:
        """The box at the top of a notebook."""
        colour, head = ("#b45309", "A try.") if self.is_try else ("#1d4ed8", "A stage of the study.")
        words = str(self).split(": ", 1)[1]
        lines = [f"<strong>{head}</strong> {html.escape(words[0].upper() + words[1:])}"]
        if self.values.others:
            rows = "".join(
                f"<tr><td><code>{html.escape(name)}</code></td><td><code>{html.escape(as_python(self.values.used[name]))}</code></td>"
                f"<td><code>{html.escape(as_python(other))}</code></td></tr>"
                for name, other in self.values.others.items()
            )
            count = len(self.values.others)
            lines.append(
                f"<details><summary>{count} value{'s differ' if count > 1 else ' differs'} from {self.values.elsewhere}</summary>"
                f"<table><tr><th>parameter</th><th>here</th><th>{self.values.elsewhere}</th></tr>{rows}</table></details>"
            )
        if self.values.changed:
            lines.append(f"Take the changes over into params.yaml: <code>rsvlm study adopt {self.shown_home}</code>")
        return f'<div style="border-left: 4px solid {colour}; padding: 4px 12px">{"<br>".join(lines)}</div>'


def workspace(stage: str, names: Mapping[str, object] | None = None) -> Workspace:
    """The places of a stage's notebook: the study's under ``rsvlm.study.run``, else its own in ``scratch/``.

    Args:
        names: the notebook's ``globals()``, which hold its parameters; default: those for a quick run by hand.

    Raises:
        ValueError: dvc.yaml has no such stage, the kernel runs another one, or a parameter cannot be.
    """
    root = paths.find_root()
    paths.use_own_cache()
    use_cluster()
    file = root / "dvc.yaml"
    stages = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))["stages"]
    notebooks = {name.split("_", 1)[1]: name for name in stages.get("strip", {}).get("foreach", [])}
    if stage not in notebooks or stage not in stages:
        raise ValueError(f"{file}: no stage {stage!r}; the stages with a notebook are {', '.join(notebooks) or 'none'}")
    if paths.running_stage not in (None, stage):
        raise ValueError(
            f"workspace({stage!r}) in a run of the stage {paths.running_stage!r}: its notebook asks for its own places"
        )
    stages = {name: body.get("do", body) for name, body in stages.items()}
    # What a stage makes once for each model counts as one place
    makers = {out.split("/${")[0]: name for name in notebooks for out in stages[name]["outs"]}
    own = [out.split("/${")[0] for out in stages[stage]["outs"]]
    deps = [(dep, next((makers[out] for out in makers if _overlap(dep, out)), None)) for dep in stages[stage]["deps"]]
    names = quick_values(SECTIONS[stage]) if names is None else names
    return Workspace(
        stage=stage,
        notebook=notebooks[stage],
        root=root,
        home=root if paths.running_stage else root / paths.PLACES["SCRATCH"] / notebooks[stage],
        outs=tuple(out for out in own if not f"{out}/".startswith(f"{paths.PLACES['EXECUTED']}/")),
        inputs=tuple((dep, maker, notebooks[maker]) for dep, maker in deps if maker),
        values=values_of(stage, names, root / paths.PLACES["PARAMS"]),
        tries=bool(names.get("go_on_from_scratch")) and not paths.running_stage,
    )


def values_of(stage: str, names: Mapping[str, object], params: Path) -> Values:
    """The values that a notebook works with: as a stage those it was given, by hand its own or the study's.

    Raises:
        ValueError: a parameter of a wrong type or outside its bounds, here or in params.yaml.
    """
    kind = SECTIONS[stage]
    own = dict(kind.of(names))
    if paths.running_stage:
        return Values(own, {}, f"params.yaml, section {stage}", _differing(own, defaults(kind)), "the default study")
    changed = {name: value for name, value in own.items() if value != quick_values(kind)[name]}
    told = ", ".join(f"{name} = {as_python(value)}" for name, value in changed.items())
    study = None
    if params.is_file():
        section = read_section(params, stage)
        study = check_section(section, kind, file=str(params), section=stage, notebook="its notebook")
    if names.get("use_study_parameters"):
        if study is None:
            raise ValueError(f"use_study_parameters: there is no {params}")
        used, origin = dict(kind(**(study | changed))), "those of params.yaml"
    else:
        used, origin = own, "the notebook's quick ones"
    origin += f", but changed here {told}" if changed else ""
    return Values(used, changed, origin, _differing(used, study or {}), "params.yaml")


def begin(stage: str, names: Mapping[str, object]) -> tuple[Settings, Workspace]:
    """The settings and the places of a stage's notebook, which shows what it is; figures get the study's look.

    Args:
        names: the notebook's ``globals()``, which hold its parameters.

    Raises:
        ValueError: a parameter of a wrong type or outside its bounds, a project that is closed or on a full disk, or what
            ``workspace`` raises.
        rsvlm.files.InUse: another kernel runs this notebook by hand.
    """
    from IPython.display import display  # here: the command `rsvlm study adopt` needs neither

    from rsvlm.viewing.plots import use_style

    places = workspace(stage, names)
    use_style()
    if places.is_try:
        try:
            _take(places.root, places.home)
            used, changed = places.values.used, places.values.changed
            write_json(places.home / VALUES, {"stage": stage, "used": used, "changed": changed})
        except OSError as error:
            raise ValueError(disk_trouble(str(error), places.home) or error) from None
    display(places)
    return SECTIONS[stage](**places.values.used), places


def own_scratch(notebook: str) -> Path:
    """``scratch/NOTEBOOK``, which other kernels of the notebook leave alone as long as this one lives.

    Of a project that is read-only it is named only: who looks around there opens it all the same.

    Raises:
        rsvlm.files.InUse: another kernel runs this notebook.
    """
    folder = paths.SCRATCH / notebook
    if is_open(folder):
        _take(paths.find_root(), folder)
    return folder


def _take(root: Path, folder: Path) -> None:
    """Keep other kernels out of a notebook's folder as long as this one lives: it reads there what it wrote."""
    if folder in _taken:
        return
    shown, lock = folder.relative_to(root).as_posix(), root / paths.PLACES["LOCKS"] / f"{folder.name}.lock"
    with ExitStack() as stack:
        stack.enter_context(only_process(lock, f"{shown}/: one kernel of {folder.name}.ipynb at a time"))
        _taken[folder] = stack.pop_all()
    atexit.register(_taken[folder].close)


def changes_of(folder: Path) -> tuple[str, dict]:
    """(stage, parameters that a person changed) of a try.

    Raises:
        FileNotFoundError: no try lies there; names those that there are.
        ValueError: nothing was changed in its parameters cell.
    """
    file = Path(folder) / VALUES
    if not file.is_file():
        tries = sorted(f"{one.parent.parent.name}/{one.parent.name}" for one in paths.SCRATCH.glob(f"*/{VALUES}"))
        raise FileNotFoundError(f"{folder}: no try of a notebook; there are {', '.join(tries) or 'none yet'}")
    known = read_json(file)
    if not known["changed"]:
        raise ValueError(
            f"{folder}: nothing was changed in the notebook's parameters cell (its quick values are not taken over)"
        )
    return known["stage"], known["changed"]


def _is_metrics(dep: str) -> bool:
    return Path(dep).parent.as_posix() == paths.PLACES["METRICS"]


def _differing(values: Mapping, others: Mapping) -> dict[str, object]:
    return {name: others[name] for name in values if name in others and others[name] != values[name]}


def _overlap(a: str, b: str) -> bool:
    """Whether one of two relative paths is the other or lies in it; the root holds none of them."""
    return f"{a}/".startswith(f"{b}/") or f"{b}/".startswith(f"{a}/")
