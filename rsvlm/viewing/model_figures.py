"""Other models in pictures and words: what one says or finds, its scores, and all of them under each protocol."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rsvlm.data.table import evenly_spaced, rows_of
from rsvlm.scoring.comparison import figure_cells
from rsvlm.scoring.leaderboard import FIGURES, PROTOCOL
from rsvlm.scoring.published import MAIN
from rsvlm.scoring.retrieval import EmbeddingSpace
from rsvlm.viewing.caption_figures import draw_captions
from rsvlm.viewing.results import Result, counted, listed

if TYPE_CHECKING:
    from rsvlm.scoring.measured import Measured

SAID, FOUND = "it says", "it finds first"


def draw_model(measured: "Measured", table: pd.DataFrame, split: str, *, count: int) -> Figure:
    """Images of the split, evenly spaced, each with what the model says of it or which caption it finds first."""
    rows = rows_of(table, split=split)
    chosen = [rows["image_id"].iloc[place] for place in evenly_spaced(len(rows), count)]
    runs: dict[str, dict[str, str]] = {}
    if measured.captions is not None:
        runs[SAID] = {image_id: measured.captions[image_id] for image_id in chosen}
    if measured.space is not None:
        runs[FOUND] = _first_captions(measured.space, chosen)
    return draw_captions(table, runs, chosen, shown=tuple(runs))


def model_table(metrics: Mapping[str, Mapping]) -> pd.DataFrame:
    """One row a task and source, recalls in percent, the main figure with its interval."""
    rows = {
        (task, source): figure_cells(task, FIGURES[task](entry), MAIN[task])
        for task, by_source in metrics.items()
        for source, entry in by_source.items()
    }
    frame = pd.DataFrame.from_dict(rows, orient="index").fillna("")
    return frame[[column for column in frame if (frame[column] != "").any()]]


def model_result(name: str, metrics: Mapping[str, Mapping]) -> Result:
    """The main figures of one model, source by source, with intervals."""
    lines = [
        f"{source}: {_told(task, entry)} on {counted(FIGURES[task](entry)[MAIN[task]]['n'], 'image')}."
        for task, by_source in metrics.items()
        for source, entry in by_source.items()
    ]
    return Result(f"{name}: {' '.join(lines)}")


def leaderboard_result(models: Mapping[str, Mapping]) -> Result:
    """The best model of each test set, and those that failed."""
    scored: dict[tuple[str, str], list[tuple[str, Mapping]]] = {}
    for name, model in models.items():
        for task, by_source in model.get("metrics", {}).items():
            for source, entry in by_source.items():
                scored.setdefault((task, source), []).append((name, entry))
    lines = []
    for (task, source), own in scored.items():
        name, best = max(own, key=lambda one: FIGURES[task](one[1])[MAIN[task]]["value"])
        among = f"has the highest of {len(own)} models" if len(own) > 1 else "is the only model"
        lines.append(f"{source}, {task}: {name} {among}, {_told(task, best)}.")
    failed = [name for name, model in models.items() if "metrics" not in model]
    if failed:
        lines.append(f"Not measured: {listed(failed)}; the row says why.")
    return Result(" ".join(lines) or "No other model is listed in run_model.models.")


def _told(task: str, entry: Mapping) -> str:
    """The main figure of a task with its interval, in words."""
    own = FIGURES[task](entry)[MAIN[task]]
    scale, what, unit, digits = (100, "mean recall", " %", 1) if task == "retrieval" else (1, "CIDEr", "", 2)
    value, low, high = (f"{scale * own[key]:.{digits}f}{unit}" for key in ("value", "low", "high"))
    return f"{what} {value} (95 % interval {low} to {high})"


def retrieval_metrics(models: Mapping[str, Mapping]) -> dict[str, dict]:
    """The models' retrieval as METRICS/score_retrieval.json has it, for the figures made of that."""
    found = {name: own for name, model in models.items() if (own := model.get("metrics", {}).get("retrieval"))}
    return found | {"protocol": {"name": PROTOCOL["retrieval"]}}


def _first_captions(space: EmbeddingSpace, image_ids: list[str]) -> dict[str, str]:
    best = (space.images(image_ids) @ np.asarray(space.text_vectors).T).argmax(axis=1)
    return {image_id: space.texts[place] for image_id, place in zip(image_ids, best)}
