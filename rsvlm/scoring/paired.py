"""Differences between runs on the same images, each with its interval and p-value.

A run's corpus scores under the bootstrap's draws are computed once (``draw_scores``); with the same seed and the same
images two runs see the same draws, so the difference of their drawn scores is the paired bootstrap.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from rsvlm.scoring.bootstrap import difference_of_draws, rounded
from rsvlm.scoring.captions import METRICS

STUDIED = "captioner"
REFERENCES = ("released", "distinct")
MAIN = "CIDEr"


@dataclass(frozen=True)
class DrawnRun:
    """One run's corpus scores on one kind of references, as they are and under the bootstrap's draws."""

    image_ids: Sequence[str]
    corpus: Mapping[str, float | None]
    drawn: Mapping[str, np.ndarray]  # metric -> (resamples,)


def compare_runs(runs: Mapping[str, Mapping[str, DrawnRun]]) -> dict[str, dict]:
    """ "A - B" -> {"released": CIDEr's entry, "distinct": CIDEr's entry, "metrics": {kind: {metric: entry}}}.

    An entry is {"value", "low", "high", "p", "n"} of A's score less B's. The studied run stands first, the others
    follow by name. Pairs that were not scored on the same images (a held-out caption needs two) are left out.

    Args:
        runs: run -> kind of references -> DrawnRun.
    """
    names = sorted(runs, key=lambda name: (name != STUDIED, name))
    pairs: dict[str, dict] = {}
    for first, second in combinations(names, 2):
        metrics = {}
        for kind in REFERENCES:
            a, b = runs[first].get(kind), runs[second].get(kind)
            if a and b and list(a.image_ids) == list(b.image_ids):
                metrics[kind] = {metric: _difference(a, b, metric) for metric in METRICS if metric in a.drawn}
        if metrics:
            pairs[f"{first} - {second}"] = {kind: own[MAIN] for kind, own in metrics.items()} | {"metrics": metrics}
    return pairs


def paired_table(metrics: Mapping, source: str, run: str = STUDIED) -> pd.DataFrame:
    """One row a pair with ``run``, metric and kind of references: the difference, its interval and its p-value.

    Kinds of references are shown apart for CIDEr only: the other metrics take an image's best reference.

    Args:
        metrics: what METRICS/score_captions.json holds.
    """
    columns = ["pair", "metric", "references", "difference", "low", "high", "p", "n"]
    rows = []
    for pair, entry in metrics["paired"].get(source, {}).items():
        if run not in pair.split(" - "):
            continue
        for kind, own in entry["metrics"].items():
            shown = [metric for metric in own if kind == "released" or metric == MAIN]
            values = [[own[metric][key] for key in ("value", "low", "high", "p", "n")] for metric in shown]
            rows += [[pair, metric, kind, *numbers] for metric, numbers in zip(shown, values, strict=True)]
    return pd.DataFrame(rows, columns=columns)


def _difference(first: DrawnRun, second: DrawnRun, metric: str) -> dict:
    value = first.corpus[metric] - second.corpus[metric]
    entry = difference_of_draws(first.drawn[metric] - second.drawn[metric])
    return rounded({"value": float(value), **entry, "n": len(first.image_ids)})
