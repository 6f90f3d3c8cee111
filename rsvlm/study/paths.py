"""Where everything of a study lies. The only place that knows folder names.

The project's root is the folder that holds ``dvc.yaml``: ``RSVLM_ROOT`` when it is set (tests run whole studies in
scratch folders that way), else the nearest such folder above the working directory, else above this package. So a
notebook finds the same files whether papermill starts it in the root or JupyterLab in ``notebooks/``. Nothing is looked
for at import, which works anywhere: ``paths.FEATURES`` is the study's folder when it is read.

A notebook takes its settings and places from ``begin("finetune_lora", globals())``: run as a stage it writes the study, run by hand it
writes below ``scratch/``. One that only looks around takes ``finished_study()``. Both let the library keep its copies
in the study's own cache (``RSVLM_CACHE``).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rsvlm.settings import Settings
    from rsvlm.viewing.records import StudyFiles

PLACES = {
    "ROOT": ".",
    # Inputs that a person writes
    "PARAMS": "params.yaml",
    "NOTEBOOKS": "notebooks",
    "DATA_CARDS": "data_cards",
    "RESULTS": "results",  # recorded runs, in git
    "BENCHMARKS": "benchmarks/results",  # recorded speeds, in git
    "MARKS": "marks/captions.csv",  # what people found good or wrong in captions; `make clean` leaves it
    "DIALOGUES": "dialogues",  # talks with the captioner that were exported
    "USER_CAPTIONS": "user/captions",  # other models' captions, one JSON-lines file a run; an out of no stage
    # What the stages make (DVC outs)
    "STRIPPED": "build/notebooks",
    "BLUE_MARBLE": "data/blue_marble",  # tiles cut by aggregate_data, in Karpathy's format
    "AGGREGATED": "data/aggregated",
    "IMAGE_TABLE": "data/aggregated/images.jsonl",  # the one caption table
    "ADAPT_TABLE": "data/aggregated/adapt.jsonl",  # training images of other sources, for adapting the encoder alone
    "FEATURES": "data/features",
    "GENERATED": "data/generated",  # one JSON-lines file a run of the study
    "RET_EMBEDDINGS": "data/ret_embeddings",
    "ENCODER": "models/encoder",
    "FINETUNED": "models/finetuned",  # what finetune_lora trained
    "CAPTIONER": "models/captioner",  # the same with all that it needs to caption any image
    "SEARCH_INDEX": "data/search_index",  # FAISS indexes of the images, for the search box
    "REPORTS": "reports",
    "EXECUTED": "reports/notebooks",
    "METRICS": "reports/metrics",  # one JSON a stage
    "CURVES": "reports/curves",  # one CSV a training stage, drawn by `dvc plots`
    "SCORES": "reports/scores",  # per-image scores
    "TABLES": "reports/tables",
    "GALLERIES": "reports/galleries",
    "CARDS": "reports/cards",  # filled with this study's numbers; not beside its data: a reworded card trains nothing
    # Survives a killed stage and is no result
    "CHECKPOINTS": ".rsvlm/checkpoints",
    "FAILED": ".rsvlm/failed",
    "LOCKS": ".rsvlm/locks",  # one a stage, held while it runs
    "CACHE": ".rsvlm/cache",
    # What notebooks run by hand make
    "SCRATCH": "scratch",
}
running_stage: str | None = None  # set in a stage's own kernel, by rsvlm.study.run, and nowhere else


@cache
def find_root() -> Path:
    """The project's root folder, absolute.

    Raises:
        FileNotFoundError: no folder with a ``dvc.yaml`` was found; names the places searched.
    """
    named = os.environ.get("RSVLM_ROOT")
    if named:
        return Path(named).resolve()
    starts = [Path.cwd(), Path(__file__).resolve().parent]
    for start in starts:
        for folder in (start, *start.parents):
            if (folder / "dvc.yaml").is_file():
                return folder
    searched = " or ".join(map(str, starts))
    raise FileNotFoundError(f"no dvc.yaml above {searched}: run inside the project or set RSVLM_ROOT")


def __getattr__(name: str) -> Path:
    """The study's place of that name."""
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return find_root() / PLACES[name]


@dataclass(frozen=True)
class Workspace:
    """The names of this module as attributes, for one notebook: ``places.CAPTIONER``.

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
        if name not in PLACES:
            raise AttributeError(f"no place {name!r} in rsvlm.study.paths")
        place = PLACES[name]
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
    from ruamel.yaml import YAML  # here: only notebooks need it

    root = find_root()
    use_own_cache()
    file = root / "dvc.yaml"
    stages = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))["stages"]
    notebooks = {name.split("_", 1)[1]: name for name in stages.get("strip", {}).get("foreach", [])}
    if stage not in notebooks or stage not in stages:
        raise ValueError(f"{file}: no stage {stage!r}; the stages with a notebook are {', '.join(notebooks) or 'none'}")
    if running_stage not in (None, stage):
        raise ValueError(
            f"workspace({stage!r}) in a run of the stage {running_stage!r}: its notebook asks for its own places"
        )
    makers = {out: name for name in notebooks for out in stages[name]["outs"]}
    deps = [(dep, next((makers[out] for out in makers if _overlap(dep, out)), None)) for dep in stages[stage]["deps"]]
    return Workspace(
        notebook=notebooks[stage],
        root=root,
        home=root if running_stage else root / PLACES["SCRATCH"] / notebooks[stage],
        outs=tuple(out for out in stages[stage]["outs"] if not out.startswith(f"{PLACES['EXECUTED']}/")),
        inputs=tuple((dep, maker) for dep, maker in deps if maker),
    )


def begin(stage: str, names: Mapping[str, object]) -> tuple["Settings", Workspace]:
    """The settings and the places of a stage's notebook, which says where it writes; figures get the study's look.

    Args:
        names: the notebook's ``globals()``, which hold its parameters.

    Raises:
        ValueError: a parameter of a wrong type or outside its bounds, or what ``workspace`` raises.
    """
    from rsvlm.study.settings import SECTIONS  # here: as above
    from rsvlm.viewing.plots import use_style

    settings, places = SECTIONS[stage].of(names), workspace(stage)
    use_style()
    print(places)
    return settings, places


def finished_study() -> "StudyFiles":
    """Where the parts of the study in place lie, for the pages and widgets of ``rsvlm.viewing``."""
    from rsvlm.viewing.records import StudyFiles  # here: as above

    use_own_cache()
    root, other = find_root(), {"table": "IMAGE_TABLE", "others": "USER_CAPTIONS"}
    names = [field.name for field in fields(StudyFiles) if field.name != "root"]
    return StudyFiles(root=root, **{name: root / PLACES[other.get(name, name.upper())] for name in names})


def use_own_cache() -> None:
    """Let the library of this process, and of those that it starts, keep its copies in the study's cache."""
    os.environ["RSVLM_CACHE"] = str(find_root() / PLACES["CACHE"])


def _overlap(a: str, b: str) -> bool:
    """Whether one of two relative paths is the other or lies in it; the root holds none of them."""
    return f"{a}/".startswith(f"{b}/") or f"{b}/".startswith(f"{a}/")
