"""Where everything of a study lies. The only place that knows folder names.

The project's root is the folder that holds ``dvc.yaml``: ``RSVLM_ROOT`` when it is set (tests run whole studies in
scratch folders that way), else the nearest such folder above the working directory, else above this package. So a
notebook finds the same files whether papermill starts it in the root or JupyterLab in ``notebooks/``.
"""

import os
from pathlib import Path


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
    raise FileNotFoundError(f"no dvc.yaml above {' or '.join(map(str, starts))}: run inside the project or set RSVLM_ROOT")


ROOT = find_root()

# Inputs that a person writes
PARAMS = ROOT / "params.yaml"
NOTEBOOKS = ROOT / "notebooks"
DATA_CARDS = ROOT / "data_cards"
RESULTS = ROOT / "results"  # recorded runs, in git
BENCHMARKS = ROOT / "benchmarks" / "results"  # recorded speeds, in git
MARKS = ROOT / "marks" / "captions.csv"  # what people found good or wrong in captions; `make clean` leaves it
DIALOGUES = ROOT / "dialogues"  # talks with the captioner that were exported

# What the stages make (DVC outs)
STRIPPED = ROOT / "build" / "notebooks"
BLUE_MARBLE = ROOT / "data" / "blue_marble"  # tiles cut by aggregate_data, in Karpathy's format
AGGREGATED = ROOT / "data" / "aggregated"
IMAGE_TABLE = AGGREGATED / "images.jsonl"  # the one caption table
ADAPT_TABLE = AGGREGATED / "adapt.jsonl"  # training images of other sources, for the encoder's adaptation alone
FEATURES = ROOT / "data" / "features"
GENERATED = ROOT / "data" / "generated"  # one JSON-lines file a run
RET_EMBEDDINGS = ROOT / "data" / "ret_embeddings"
ENCODER = ROOT / "models" / "encoder"
CAPTIONER = ROOT / "models" / "captioner"
SEARCH_INDEX = ROOT / "data" / "search_index"  # FAISS indexes of the images, for the search box

REPORTS = ROOT / "reports"
EXECUTED = REPORTS / "notebooks"
METRICS = REPORTS / "metrics"  # one JSON a stage
CURVES = REPORTS / "curves"  # one CSV a training stage, drawn by `dvc plots`
SCORES = REPORTS / "scores"  # per-image scores
TABLES = REPORTS / "tables"
GALLERIES = REPORTS / "galleries"
CARDS = REPORTS / "cards"  # filled with this study's numbers; not beside its data: a reworded card must train nothing anew

# Scratch that survives a killed stage and is no result
CHECKPOINTS = ROOT / ".rsvlm" / "checkpoints"
FAILED = ROOT / ".rsvlm" / "failed"
CACHE = ROOT / ".rsvlm" / "cache"
THUMBNAILS = CACHE / "thumbnails.sqlite"  # of the browsing widgets
