"""Where everything of a study lies. The only place that knows folder names.

The project's root is the folder that holds ``dvc.yaml``: ``RSVLM_ROOT`` when it is set (tests run whole studies in
scratch folders that way), else the nearest such folder above the working directory, else above this package. So a
notebook finds the same files whether papermill starts it in the root or JupyterLab in ``notebooks/``. Nothing is looked
for at import, which works anywhere: ``paths.FEATURES`` is the study's folder when it is read.

A notebook of a stage takes its places from ``rsvlm.study.workspace``; one that only looks around takes
``finished_study()``. Both let the library keep its copies in the study's own cache (``RSVLM_CACHE``).
"""

import os
import warnings
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from rsvlm.disks import is_open

if TYPE_CHECKING:
    from rsvlm.viewing.records import StudyFiles

PLACES = {
    "ROOT": ".",
    # Inputs that a person writes
    "PARAMS": "params.yaml",
    "NOTEBOOKS": "notebooks",
    "DATA_CARDS": "data_cards",
    "RESULTS": "results",  # recorded runs, in git
    "BENCHMARKS": "benchmarks/results",  # recorded speeds, in git
    # What people add: the out of no stage, and `make clean` leaves it
    "MARKS": "user/marks/captions.csv",  # what people found good or wrong in captions
    "DIALOGUES": "user/dialogues",  # talks with the captioner that were exported
    "USER_CAPTIONS": "user/captions",  # other models' captions, one JSON-lines file a run
    "USER_EMBEDDINGS": "user/embeddings",  # other models' image and text vectors, one folder a method
    "CLUSTER": "user/cluster.yaml",  # where this machine computes bulk work; no stage depends on it
    # What the stages make (DVC outs)
    "STRIPPED": "build/notebooks",
    "MODEL_FILES": "build/model_files",  # what the files of other models are like, one JSON a model
    "BLUE_MARBLE": "data/blue_marble",  # tiles cut by aggregate_data, in Karpathy's format
    "AGGREGATED": "data/aggregated",
    "IMAGE_TABLE": "data/aggregated/images.parquet",  # the one caption table
    "TRANSLATIONS": "data/aggregated/translations.jsonl",  # the table's captions in other languages
    "ADAPT_TABLE": "data/aggregated/adapt.parquet",  # training images of other sources, for adapting the encoder alone
    "INSTRUCTIONS": "data/instructions",  # instructions with their answers, made from the table and the maps
    "TASKS": "data/instructions/tasks.jsonl",
    "FEATURES": "data/features",
    "GENERATED": "data/generated",  # one JSON-lines file a run of the study
    "RET_EMBEDDINGS": "data/ret_embeddings",
    "ANSWERS": "data/answers",  # to instructions: those of the captioner, blind, with another image
    "ENCODER": "models/encoder",
    "FINETUNED": "models/finetuned",  # what finetune_lora trained
    "OTHER_MODELS": "data/models",  # other models measured on the study's images, one folder each
    "CAPTIONER": "models/captioner",  # the same with all that it needs to caption any image
    "EARTH": "data/earth",  # Blue Marble as one georeferenced picture, and its windows as vectors
    "LANGUAGES": "models/languages",  # what reads other languages into the encoder's space; empty without languages
    "SEARCH_INDEX": "data/search_index",  # FAISS indexes of the images, for the search box
    "REPORTS": "reports",
    "EXECUTED": "reports/notebooks",
    "METRICS": "reports/metrics",  # one JSON a stage
    "CURVES": "reports/curves",  # one CSV a training stage, drawn by `dvc plots`
    "SCORES": "reports/scores",  # per-image scores
    "TABLES": "reports/tables",
    "LEADERBOARD": "reports/leaderboard",  # other models in one table
    "GALLERIES": "reports/galleries",
    "EARTH_SEARCH": "reports/earth",  # what texts find on the globe: page, places, surfaces
    "MOSAICS": "reports/mosaics",  # searches in synthetic mosaics
    "DIALOGUE": "reports/dialogue",  # turns on test images, not chosen by hand
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


def finished_study() -> "StudyFiles":
    """Where the parts of the study in place lie, for the pages and widgets of ``rsvlm.viewing``."""
    from rsvlm.viewing.records import StudyFiles  # here: as above

    use_own_cache()
    for older in ("marks", "dialogues"):
        if (find_root() / older).is_dir():
            warnings.warn(f"{older}/ is not read any more: `mkdir -p user && mv {older} user/`", stacklevel=2)
    root, other = find_root(), {"table": "IMAGE_TABLE", "others": "USER_CAPTIONS"}
    names = [field.name for field in fields(StudyFiles) if field.name != "root"]
    return StudyFiles(root=root, **{name: root / PLACES[other.get(name, name.upper())] for name in names})


def use_own_cache() -> None:
    """Let the library of this process, and of those that it starts, keep its copies in the study's cache.

    Those of a project that is read-only lie where the user's do, so that its galleries open.
    """
    own = find_root() / PLACES["CACHE"]
    if is_open(own):
        os.environ["RSVLM_CACHE"] = str(own)
