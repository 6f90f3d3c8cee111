"""All retrieval methods of a study scored on all its test sets: recalls, precision, classes, pairs, curves."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import pandas as pd

from rsvlm.kernels import Ranks, hits
from rsvlm.scoring.bootstrap import difference_of_draws
from rsvlm.scoring.bootstrap import rounded as rounded_entry
from rsvlm.scoring.embedding_spaces import EmbeddingSpace
from rsvlm.scoring.precision import Reordering, precision_scores
from rsvlm.scoring.retrieval import (
    CURVE_KS,
    DIGITS,
    DIRECTIONS,
    KS,
    draw_recalls,
    first_places,
    perfect_ranks,
    rank_retrieval,
    recall_curve,
    rounded,
    summarise_ranks,
)
from rsvlm.scoring.retrieval_sets import MATCH_RULES, RetrievalSet

PROTOCOL = {
    "published": "RemoteCLIP retrieval.py (after CLIP_benchmark): images once by file name, all caption rows",
    "by_image": "right answer = the image's own caption rows, the caption row's own image (the published rule)",
    "by_text": "right answer = also every other row, every other image, that has the same text",
    "ties": "expected value over a random order; optimistic and pessimistic bounds beside it",
    "ceiling": "by_image recall of an oracle: 1 where the text is one of the image's captions, else 0; ties at random",
    "mean_recall": "mean of R@1, R@5 and R@10 in both directions",
    "median_rank": "median place of the first right answer, counted from 1, expected over ties",
    "map": "mean over queries of average precision, expected over ties (McSherry and Najork 2008)",
    "p5, p10": "mean share of right answers among the first k, expected over ties; p1 is R@1",
    "by_class": "by_image recalls of the images with that label and of their captions, against the whole gallery",
    "paired": "difference of two methods on the same images, resampled together; p two-sided, uncorrected",
    "unit": "fraction",
}
PAIRED = ("mean_recall", *(f"{way}_r{k}" for way in DIRECTIONS for k in KS))
REPORTED = ("paired", "protocol")  # keys of the metrics file that are no methods


@dataclass(frozen=True)
class RetrievalReport:
    """Scores of several methods on several test sets."""

    metrics: dict  # {method: {source: score_retrieval's dict and "by_class"}, "paired": {source: {pair: ...}}}
    per_image: pd.DataFrame  # one row a method, source, match rule and image
    curves: pd.DataFrame  # method, source, match, direction, k, recall; with the method "ceiling"


@dataclass(frozen=True)
class Method:
    """How a method finds: a space, and where it reorders what a text finds, by source."""

    space: EmbeddingSpace
    reordering: Mapping[str, Reordering] = field(default_factory=dict)


def score_methods(
    methods: Mapping[str, EmbeddingSpace | Method],
    tests: Mapping[str, RetrievalSet],
    *,
    labels: Mapping[str, str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> RetrievalReport:
    """Every method on every test set, by inner product of the spaces' vectors (so they come normalised or weighted).

    Args:
        methods: by name.
        tests: by source, as retrieval_sets gives them.
        labels: image_id -> class, of the images that have one.
        resamples: of the bootstrap over images, 1 or more.
    """
    metrics: dict = {method: {} for method in methods} | {"paired": {}}
    per_image, curves = [], []
    for source, test in tests.items():
        ceiling = perfect_ranks(test)
        curves.append(_curve_rows("ceiling", source, "by_image", ceiling))
        best = summarise_ranks(test, ceiling, resamples=resamples, seed=seed)
        drawn = {}
        for method, given in methods.items():
            own = given if isinstance(given, Method) else Method(given)
            vectors = own.space.images(test.image_ids), own.space.text(test.texts)
            metrics[method][source] = {"ceiling": best}
            for rule in MATCH_RULES:
                ranks = rank_retrieval(test, *vectors, rule, normalize=False)
                reordering = own.reordering.get(source)
                precision, reordered = precision_scores(test, *vectors, rule, reordering)
                if reordering is not None:
                    ranks = ranks | {"t2i": reordered}
                options = {"precision": precision, "resamples": resamples, "seed": seed}
                metrics[method][source][rule] = summarise_ranks(test, ranks, **options)
                names = {"method": method, "source": source, "match": rule}
                per_image.append(image_scores(test, ranks).assign(**names))
                curves.append(_curve_rows(method, source, rule, ranks))
                if rule == "by_image":
                    metrics[method][source]["by_class"] = class_recalls(test, ranks, labels or {})
                    drawn[method] = draw_recalls(test, ranks, resamples=resamples, seed=seed)
        metrics["paired"][source] = compare_methods(drawn, len(test.image_ids))
    scores = pd.concat(per_image, ignore_index=True)
    named = ["method", "source", "match", "image_id"]
    scores = scores[[*named, *(column for column in scores if column not in named)]]
    return RetrievalReport(metrics, scores, pd.concat(curves, ignore_index=True))


def image_scores(test: RetrievalSet, ranks: dict[str, Ranks]) -> pd.DataFrame:
    """One row an image: its own ranks and hits as a query, and the means over its captions as queries."""
    N = len(test.image_ids)
    counts = np.bincount(test.row_image, minlength=N)
    there, back = ranks["i2t"], ranks["t2i"]
    columns = {"image_id": test.image_ids, "captions": counts}
    columns |= {"i2t_greater": there.greater, "i2t_equal": there.equal, "i2t_tied": there.tied}
    columns["i2t_rank"] = first_places(there).round(DIGITS)
    columns |= {f"i2t_r{k}": hits(there, k).round(DIGITS) for k in KS}
    columns["t2i_rank"] = (np.bincount(test.row_image, first_places(back), minlength=N) / counts).round(DIGITS)
    for k in KS:
        columns[f"t2i_r{k}"] = (np.bincount(test.row_image, hits(back, k), minlength=N) / counts).round(DIGITS)
    return pd.DataFrame(columns)


def class_recalls(test: RetrievalSet, ranks: dict[str, Ranks], labels: Mapping[str, str]) -> dict[str, dict]:
    """class -> {"images", "captions", six recalls, "mean_recall"}: expected values, as fractions.

    A class has few images: a recall of 10 of them moves in steps of a tenth.
    """
    classes: dict[str, list[int]] = {}
    for number, image_id in enumerate(test.image_ids):
        if image_id in labels:
            classes.setdefault(labels[image_id], []).append(number)
    hit = {f"{way}_r{k}": hits(ranks[way], k) for way in DIRECTIONS for k in KS}
    found = {}
    for name in sorted(classes):
        rows = np.isin(test.row_image, classes[name])
        recalls = {
            key: float(values[classes[name] if key.startswith("i2t") else rows].mean()) for key, values in hit.items()
        }
        recalls["mean_recall"] = float(np.mean(list(recalls.values())))
        found[name] = {"images": len(classes[name]), "captions": int(rows.sum())}
        found[name] |= {key: rounded(value) for key, value in recalls.items()}
    return found


def compare_methods(drawn: Mapping[str, tuple[Mapping, Mapping]], n: int) -> dict[str, dict]:
    """ "A - B" -> recall -> {"value", "low", "high", "p", "n"} of A's less B's, by image, for every pair of methods.

    Args:
        drawn: method -> what draw_recalls gives.
        n: images.
    """
    pairs = {}
    for (first, a), (second, b) in combinations(drawn.items(), 2):
        pairs[f"{first} - {second}"] = {
            name: rounded_entry(
                {"value": a[0][name] - b[0][name], **difference_of_draws(a[1][name] - b[1][name]), "n": n}
            )
            for name in PAIRED
        }
    return pairs


def _curve_rows(method: str, source: str, rule: str, ranks: dict[str, Ranks]) -> pd.DataFrame:
    parts = [
        pd.DataFrame({"direction": direction, "k": CURVE_KS, "recall": recall_curve(ranks[direction])})
        for direction in DIRECTIONS
    ]
    rows = pd.concat(parts, ignore_index=True)
    rows.insert(0, "method", method)
    rows.insert(1, "source", source)
    rows.insert(2, "match", rule)
    return rows
