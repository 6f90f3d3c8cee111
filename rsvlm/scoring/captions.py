"""BLEU-1..4, METEOR, ROUGE_L, CIDEr and SPICE as pycocoevalcap computes them, per corpus and per image.

All metrics see the same PTB tokens. CIDEr's document frequencies come from the references that are evaluated, so one
call must hold all images of one source and split: batches or subsets would give other numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from rsvlm.scoring.bootstrap import mean_of, mean_statistics, percentile_interval, resampled_sums
from rsvlm.scoring.java import Meteor, meteor_score, tokenize_captions
from rsvlm.scoring.spice import spice_scores, why_not

METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE_L", "CIDEr", "SPICE")
BLEU_ORDERS = 4
DECIMALS = 6  # of what is written: more would differ between machines


@dataclass(frozen=True)
class CaptionScores:
    """One run's scores on one source and split.

    Attributes:
        corpus: metric -> score of the whole set; None where the metric was not run.
        per_image: one row an image, column image_id and one column a metric (absent where not run).
        statistics: metric -> (n, k) what each image adds to the sums that make the corpus score.
        reasons: metric -> why it was not run.
    """

    corpus: dict[str, float | None]
    per_image: pd.DataFrame
    statistics: dict[str, np.ndarray]
    reasons: dict[str, str] = field(default_factory=dict)


def score_captions(
    generated: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    spice_jars: str | None = None,
    distinct: bool = False,
    tokens: Mapping[str, str] | None = None,
    meteor: Meteor | None = None,
    spice_cache: Path | None = None,
) -> CaptionScores:
    """Scores of one caption an image against the image's references.

    Args:
        generated: image_id -> caption, for every image of one source and split.
        references: image_id -> captions, for the same images.
        spice_jars: folder with SPICE's missing jars; None: SPICE is not run.
        distinct: drop an image's repeated references (equal after tokenising).
        tokens: caption -> PTB tokens of all texts, where they are known already.
        meteor: a running METEOR to use; None starts one for this call.
        spice_cache: folder for SPICE's parsed sentences.

    Raises:
        ValueError: the images differ, or an image has no reference; names some.
        JavaNotFound: no Java runtime.
    """
    check_images(generated, references)
    if tokens is None:
        tokens = tokenize_captions([*generated.values(), *(text for texts in references.values() for text in texts)])
    results = {image_id: [tokens[caption]] for image_id, caption in generated.items()}
    truths = {image_id: [tokens[text] for text in references[image_id]] for image_id in generated}
    if distinct:
        truths = {image_id: list(dict.fromkeys(texts)) for image_id, texts in truths.items()}
    bleu = bleu_statistics(truths, results)
    counts = _meteor_statistics(truths, results, meteor)
    statistics = {f"BLEU-{order}": bleu for order in range(1, BLEU_ORDERS + 1)}
    statistics["METEOR"] = counts
    statistics["ROUGE_L"] = mean_statistics(rouge_scores(truths, results))
    statistics["CIDEr"] = mean_statistics(cider_scores(truths, results))
    jars = Path(spice_jars) if spice_jars else None
    reasons = {}
    if reason := why_not(jars):
        reasons["SPICE"] = reason
    else:
        tokenized = {image_id: texts[0] for image_id, texts in results.items()}
        spice = spice_scores(tokenized, truths, jars, spice_cache)
        statistics["SPICE"] = mean_statistics(np.array([spice[image_id] for image_id in generated]))
    return scores_from(list(generated), statistics, reasons)


def scores_from(
    image_ids: Sequence[str], statistics: dict[str, np.ndarray], reasons: Mapping[str, str] | None = None
) -> CaptionScores:
    """CaptionScores made of per-image statistics."""
    corpus: dict[str, float | None] = {metric: None for metric in METRICS}
    columns = {"image_id": list(image_ids)}
    for metric in METRICS:
        if metric in statistics:
            corpus[metric] = float(corpus_function(metric)(statistics[metric].sum(axis=0)))
            columns[metric] = corpus_function(metric)(statistics[metric])
    return CaptionScores(corpus, pd.DataFrame(columns), statistics, dict(reasons or {}))


def summarize(scores: CaptionScores, *, seed: int, resamples: int) -> dict[str, dict]:
    """metric -> {"value", "low", "high", "n"}: corpus scores, 95 % intervals over images; "reason" if not run."""
    n = len(scores.per_image)
    summary = {}
    for metric in METRICS:
        if metric not in scores.statistics:
            summary[metric] = {"value": None, "low": None, "high": None, "n": n, "reason": scores.reasons[metric]}
            continue
        sums = resampled_sums(scores.statistics[metric], seed=seed, resamples=resamples)
        low, high = percentile_interval(corpus_function(metric)(sums))
        summary[metric] = rounded({"value": scores.corpus[metric], "low": low, "high": high, "n": n})
    return summary


def corpus_function(metric: str) -> Callable[[np.ndarray], np.ndarray]:
    """The function from summed statistics (..., k) to the metric's scores (...)."""
    if metric.startswith("BLEU-"):
        order = int(metric.removeprefix("BLEU-"))
        return lambda sums: bleu_score(sums)[..., order - 1]
    return meteor_score if metric == "METEOR" else mean_of


def rounded(entry: Mapping[str, object]) -> dict:
    """The same entry with its fractional numbers cut to six decimals."""
    return {key: round(value, DECIMALS) if isinstance(value, float) else value for key, value in entry.items()}


def check_images(generated: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> None:
    """Raise ValueError unless both hold the same images, at least one, each with a caption and references."""
    if not references:
        raise ValueError("no images to score")
    for problem, ids in (
        ("without a generated caption", sorted(set(references) - set(generated))),
        ("without references", sorted(set(generated) - {key for key, texts in references.items() if len(texts)})),
        ("whose caption is no text", sorted(key for key, text in generated.items() if not isinstance(text, str))),
    ):
        if ids:
            raise ValueError(f"{len(ids)} images {problem}, such as {', '.join(map(repr, ids[:3]))}")


def bleu_statistics(truths: Mapping[str, Sequence[str]], results: Mapping[str, Sequence[str]]) -> np.ndarray:
    """(n, 10): words, closest reference's words, then n-grams guessed and n-grams correct for n = 1..4."""
    from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test

    rows = []
    for image_id, texts in truths.items():
        counts = cook_test(results[image_id][0], cook_refs(texts), eff="closest", n=BLEU_ORDERS)
        rows.append([counts["testlen"], counts["reflen"], *counts["guess"], *counts["correct"]])
    return np.array(rows, dtype=np.float64)


def bleu_score(sums: np.ndarray) -> np.ndarray:
    """(..., 4) BLEU-1..4 of counts (..., 10), with pycocoevalcap's guards against empty counts."""
    tiny, small = 1e-15, 1e-9
    length, closest = sums[..., 0], sums[..., 1]
    precisions = (sums[..., 6:10] + tiny) / (sums[..., 2:6] + small)
    orders = np.arange(1, BLEU_ORDERS + 1)
    scores = np.cumprod(precisions, axis=-1) ** (1 / orders)
    ratio = (length + tiny) / (closest + small)
    penalty = np.where(ratio < 1, np.exp(1 - 1 / np.minimum(ratio, 1.0)), 1.0)
    return scores * penalty[..., None]


def rouge_scores(truths: Mapping[str, Sequence[str]], results: Mapping[str, Sequence[str]]) -> np.ndarray:
    """(n,) ROUGE_L of each image."""
    from pycocoevalcap.rouge.rouge import Rouge

    rouge = Rouge()
    return np.array(
        [rouge.calc_score(results[image_id], list(texts)) for image_id, texts in truths.items()], dtype=float
    )


def cider_scores(truths: Mapping[str, Sequence[str]], results: Mapping[str, Sequence[str]]) -> np.ndarray:
    """(n,) CIDEr of each image, idf from all references given. One image alone scores 0 by definition."""
    from pycocoevalcap.cider.cider import Cider

    if not any(word for texts in truths.values() for text in texts for word in text.split()):
        return np.zeros(len(truths))  # references in no words at all: pycocoevalcap stops there
    _, scores = Cider().compute_score(dict(truths), {image_id: results[image_id] for image_id in truths})
    return np.asarray(scores, dtype=np.float64)


def _meteor_statistics(
    truths: Mapping[str, Sequence[str]], results: Mapping[str, Sequence[str]], meteor: Meteor | None
) -> np.ndarray:
    if meteor is None:
        with Meteor() as own:
            return _meteor_statistics(truths, results, own)
    return np.stack([meteor.statistics(results[image_id][0], texts) for image_id, texts in truths.items()])
