"""The human row: one of an image's captions, held out and scored against the others.

The same metrics as for a model, but against one reference fewer, which lowers BLEU, METEOR and ROUGE_L a little (they
take the best reference) and not CIDEr (it takes the mean).
"""

import random
from collections.abc import Mapping, Sequence

import numpy as np

from rsvlm.scoring.bootstrap import percentile_interval, rounded
from rsvlm.scoring.captions import METRICS, CaptionScores, draw_scores, not_run
from rsvlm.scoring.paired import DrawnRun


def hold_out(
    references: Mapping[str, Sequence[str]], tokens: Mapping[str, str], *, seed: int, distinct: bool = False
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """(held out, rest): one random caption an image and the image's other captions, as texts.

    Images without another caption are left out of both. With ``distinct`` an image's captions that are equal after
    tokenising count once, so the one held out is not among the rest.
    """
    generator = random.Random(seed)
    held, rest = {}, {}
    for image_id, captions in references.items():
        pool = list({tokens[text]: text for text in reversed(captions)}.values())[::-1] if distinct else list(captions)
        if not pool:
            continue
        chosen = generator.randrange(len(pool))
        if len(pool) > 1:
            held[image_id] = pool[chosen]
            rest[image_id] = pool[:chosen] + pool[chosen + 1 :]
    return held, rest


def average_draws(scores: Sequence[CaptionScores], *, seed: int, resamples: int) -> DrawnRun:
    """The mean over several draws of the held-out caption: corpus scores, as they are and under the bootstrap."""
    drawn = [draw_scores(score, seed=seed, resamples=resamples) for score in scores]
    means = {metric: np.mean([own[metric] for own in drawn], axis=0) for metric in drawn[0]}
    corpus = {metric: float(np.mean([score.corpus[metric] for score in scores])) for metric in means}
    return DrawnRun(list(scores[0].per_image["image_id"]), corpus, means)


def summarize_draws(scores: Sequence[CaptionScores], average: DrawnRun) -> dict[str, dict]:
    """metric -> {"value", "low", "high", "n", "spread", "draws"}: means over several draws of the held-out caption.

    The interval is over images, each draw's corpus score averaged; ``spread`` is the draws' standard deviation.

    Args:
        average: what ``average_draws`` gives for the same scores.
    """
    draws, n = len(scores), len(scores[0].per_image)
    summary = {}
    for metric in METRICS:
        if metric not in average.drawn:
            summary[metric] = not_run(n, scores[0].reasons[metric])
            continue
        low, high = percentile_interval(average.drawn[metric])
        spread = float(np.std([score.corpus[metric] for score in scores], ddof=1)) if draws > 1 else None
        value = average.corpus[metric]
        summary[metric] = rounded({"value": value, "low": low, "high": high, "n": n, "spread": spread, "draws": draws})
    return summary
