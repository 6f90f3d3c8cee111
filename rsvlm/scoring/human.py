"""The human row: one of an image's captions, held out and scored against the others.

The same metrics as for a model, but against one reference fewer, which lowers BLEU, METEOR and ROUGE_L a little (they
take the best reference) and not CIDEr (it takes the mean).
"""

import random
from collections.abc import Mapping, Sequence

import numpy as np

from rsvlm.scoring.bootstrap import percentile_interval, resampled_sums
from rsvlm.scoring.captions import METRICS, CaptionScores, corpus_function, rounded


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


def summarize_seeds(scores: Sequence[CaptionScores], *, seed: int, resamples: int) -> dict[str, dict]:
    """metric -> {"value", "low", "high", "n", "spread", "draws"}: means over several draws of the held-out caption.

    The interval is over images, each draw's corpus score averaged; ``spread`` is the draws' standard deviation.
    """
    draws, n = len(scores), len(scores[0].per_image)
    summary = {}
    for metric in METRICS:
        if metric not in scores[0].statistics:
            reason = scores[0].reasons[metric]
            summary[metric] = {"value": None, "low": None, "high": None, "n": n, "reason": reason}
            continue
        corpus = corpus_function(metric)
        statistics = np.concatenate([score.statistics[metric] for score in scores], axis=1)
        sums = resampled_sums(statistics, seed=seed, resamples=resamples)
        low, high = percentile_interval(corpus(sums.reshape(len(sums), draws, -1)).mean(axis=1))
        values = [score.corpus[metric] for score in scores]
        spread = float(np.std(values, ddof=1)) if draws > 1 else None
        entry = {"value": float(np.mean(values)), "low": low, "high": high, "n": n, "spread": spread, "draws": draws}
        summary[metric] = rounded(entry)
    return summary
