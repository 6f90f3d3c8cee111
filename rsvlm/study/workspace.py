"""The places of one notebook: run as a stage it writes the study, run by hand it writes below ``scratch/`` alone.

A notebook takes its settings and places from ``begin("finetune_lora", globals())``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

from rsvlm.settings import Settings
from rsvlm.study import paths
from rsvlm.study.settings import SECTIONS
from rsvlm.viewing.plots import use_style


@dataclass(frozen=True)
class Workspace:
    """The names of ``rsvlm.study.paths`` as attributes, for one notebook: ``places.CAPTIONER``.

    What its stage makes lies below ``home``, everything else in the study. Printed, it says which of the two it is.

    Raises:
        AttributeError: no such place.
        FileNotFoundError: the place holds what another stage makes, which is not there; names both and the command.
    """

    notebook: str
    root: Path
    home: Path  # the root, or scratch/NOTEBOOK when run by hand
    outs: tuple[str, ...]  # the stage's, relative to the root
    inputs: tuple[tuple[str, str], ...]  # what it reads of other stages, and which stage makes it

    def __getattr__(self, name: str) -> Path:
        if name not in paths.PLACES:
            raise AttributeError(f"no place {name!r} in rsvlm.study.paths")
        place = paths.PLACES[name]
        if name == "CHECKPOINTS" or any(_overlap(place, out) for out in self.outs):
            return self.home / place
        for dep, maker in self.inputs:
            if _overlap(place, dep) and not (self.root / dep).exists():
                raise FileNotFoundError(
                    f"no {dep}: the notebook {self.notebook} reads what the stage {maker} makes;"
                    f" run `make study`, or `dvc repro {maker}` for it alone"
                )
        return self.root / place

    def __str__(self) -> str:
        if self.home == self.root:
            return f"Run as a stage of the study: writes {', '.join(self.outs)}."
        return f"Run by hand: reads the study, writes below {self.home.relative_to(self.root).as_posix()}/ alone."


def workspace(stage: str) -> Workspace:
    """The places of a stage's notebook: the study's under ``rsvlm.study.run``, else its own in ``scratch/``.

    Raises:
        ValueError: dvc.yaml has no such stage, or the kernel runs another one; names both.
    """
    root = paths.find_root()
    paths.use_own_cache()
    file = root / "dvc.yaml"
    stages = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))["stages"]
    notebooks = {name.split("_", 1)[1]: name for name in stages.get("strip", {}).get("foreach", [])}
    if stage not in notebooks or stage not in stages:
        raise ValueError(f"{file}: no stage {stage!r}; the stages with a notebook are {', '.join(notebooks) or 'none'}")
    if paths.running_stage not in (None, stage):
        raise ValueError(
            f"workspace({stage!r}) in a run of the stage {paths.running_stage!r}: its notebook asks for its own places"
        )
    makers = {out: name for name in notebooks for out in stages[name]["outs"]}
    deps = [(dep, next((makers[out] for out in makers if _overlap(dep, out)), None)) for dep in stages[stage]["deps"]]
    return Workspace(
        notebook=notebooks[stage],
        root=root,
        home=root if paths.running_stage else root / paths.PLACES["SCRATCH"] / notebooks[stage],
        outs=tuple(out for out in stages[stage]["outs"] if not out.startswith(f"{paths.PLACES['EXECUTED']}/")),
        inputs=tuple((dep, maker) for dep, maker in deps if maker),
    )


def begin(stage: str, names: Mapping[str, object]) -> tuple[Settings, Workspace]:
    """The settings and the places of a stage's notebook, which says where it writes; figures get the study's look.

    Args:
        names: the notebook's ``globals()``, which hold its parameters.

    Raises:
        ValueError: a parameter of a wrong type or outside its bounds, or what ``workspace`` raises.
    """
    settings, places = SECTIONS[stage].of(names), workspace(stage)
    use_style()
    print(places)
    return settings, places


def _overlap(a: str, b: str) -> bool:
    """Whether one of two relative paths is the other or lies in it; the root holds none of them."""
    return f"{a}/".startswith(f"{b}/") or f"{b}/".startswith(f"{a}/")
