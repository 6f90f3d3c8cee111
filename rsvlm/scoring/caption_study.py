"""All runs of a study scored: per source, on released and distinct references, on seen and unseen ones, in pairs.

A run's corpus scores under the bootstrap's draws are computed once (``draw_scores``); with the same seed and the same
images two runs see the same draws, so the difference of their drawn scores is the paired bootstrap.

The human row is one of an image's captions, held out and scored against the others, as a mean over several draws. It has
one reference fewer, which lowers BLEU, METEOR and ROUGE_L a little (they take the best reference) and not CIDEr (it
takes the mean).
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from rsvlm.scoring.bootstrap import bootstrap_corpus, difference_of_draws, percentile_interval, rounded
from rsvlm.scoring.captions import (
    CLASS_PROTOCOL,
    CLIP_PROTOCOL,
    METRICS,
    TEXT_PROTOCOL,
    CaptionScores,
    ScoringTools,
    describe_texts,
    draw_scores,
    hallucinated_classes,
    score_captions,
    subset,
    token_pairs,
)
from rsvlm.scoring.runs import HUMAN, RESERVED

STUDIED = "captioner"
REFERENCES = ("released", "distinct")
MAIN = "CIDEr"
HALLUCINATIONS_SHOWN = 5
PROTOCOL = {
    "metrics": "pycocoevalcap 1.2: PTB tokens, lower case, no punctuation; corpus level; CIDEr with its factor 10",
    "released": "references as released, duplicates included",
    "distinct": "an image's references that are equal after tokenising count once; only CIDEr and the held-out"
    " reference change, the other metrics take an image's best reference",
    "idf": "from all references of one source and split",
    "interval": "95 % percentile bootstrap over images; CIDEr's idf held fixed; BLEU and METEOR from resampled counts",
    "paired": "difference of two runs' corpus scores on the same images, resampled together, CIDEr's idf held fixed;"
    " p two-sided, (1 + draws on the smaller side of 0) / (1 + draws) doubled; not corrected for the number of pairs",
    "human": "one reference an image held out, scored against the image's other references; mean over draws",
    "seen": "images whose distinct references are also a training image's (references as released, idf of the whole"
    " set); unseen: the other images",
    "text": TEXT_PROTOCOL,
    "classes": CLASS_PROTOCOL,
    "CLIPScore": CLIP_PROTOCOL,
    "one_image": "CIDEr of a single image is 0 by definition: its idf is 0",
    "unit": "fractions; CIDEr 0 to 10, CLIPScore 0 to 2.5",
}


@dataclass(frozen=True)
class StudyScores:
    """``metrics``: what METRICS/score_captions.json holds; ``per_image``: a row for each run, image and references."""

    metrics: dict
    per_image: pd.DataFrame


@dataclass(frozen=True)
class DrawnRun:
    """One run's corpus scores on one kind of references, as they are and under the bootstrap's draws."""

    image_ids: Sequence[str]
    corpus: Mapping[str, float | None]
    drawn: Mapping[str, np.ndarray]  # metric -> (resamples,)


@dataclass(frozen=True)
class _TestSet:
    """One source's images of the scored split, and what training knows of their texts."""

    source: str
    references: dict[str, list[str]]
    labels: dict[str, str | None]
    seen: dict[str, bool]  # image_id -> whether a training image has the same set of references
    tokens: Mapping[str, str]
    training_captions: frozenset[str]  # tokenized

    @property
    def repeats(self) -> bool:
        """Whether some image has a reference twice, after tokenising."""
        return any(len({self.tokens[text] for text in own}) < len(own) for own in self.references.values())


# Kind of references -> what is scored: captions and references of the same images, several where draws are averaged
_Draws = Mapping[str, Sequence[tuple[Mapping[str, str], Mapping[str, Sequence[str]]]]]


def score_study(
    runs: Mapping[str, Mapping[str, Mapping[str, str]]],
    table: pd.DataFrame,
    *,
    split: str,
    seed: int,
    resamples: int,
    human_draws: int = 5,
    tools: ScoringTools | None = None,
    log: Callable[[str], None] = print,
) -> StudyScores:
    """Scores of every run, and of a held-out reference, on one split of every source.

    Args:
        runs: as ``rsvlm.scoring.runs.read_runs`` gives them.
        table: the caption table with all its splits: image_id, source, split, captions, label.
        human_draws: how often a reference is held out for each image; 0: no such row.
        tools: cache, SPICE's jars, embeddings; None: nothing is kept, and neither SPICE nor CLIPScore is run.

    Raises:
        ValueError: the split has no images.
        JavaNotFound: no Java runtime.
    """
    tested, training = table[table["split"] == split], table[table["split"] == "train"]
    if tested.empty:
        raise ValueError(f"no images in split {split!r}; the table has {', '.join(sorted(set(table['split'])))}")
    tools = tools or ScoringTools()
    texts = [text for frame in (tested, training) for captions in frame["captions"] for text in captions]
    texts += [text for by_source in runs.values() for captions in by_source.values() for text in captions.values()]
    tests = _test_sets(tested, training, tools.tokenize(texts))
    draws = {test.source: _draws(test, runs, human_draws) for test in tests}
    log("METEOR and SPICE, where it runs, on all captions of all runs")
    tools.prepare([pair for test in tests for pair in _all_pairs(test, draws[test.source])])

    names = [*sorted(runs), *([HUMAN] if human_draws else [])]
    metrics: dict = {run: {} for run in names} | {"paired": {}}
    tables = []
    for test in tests:
        drawn: dict[str, dict[str, DrawnRun]] = {}
        for run in names:
            log(f"{test.source}: {run}, {len(test.references)} images")
            made = _score_run(test, draws[test.source][run], tools, seed, resamples, is_human=run == HUMAN)
            metrics[run][test.source], drawn[run], per_image = made
            tables += [rows.assign(run=run, source=test.source, split=split) for rows in per_image]
        metrics["paired"][test.source] = compare_runs(drawn)
    metrics["protocol"] = _protocol(table, split, seed, resamples, human_draws) | {"encoder": tools.encoder}
    scores = pd.concat(tables, ignore_index=True)
    order = ["run", "source", "split", "image_id", "references", "reference_set_seen"]
    return StudyScores(metrics, scores[[*order, *(metric for metric in METRICS if metric in scores)]])


def average_draws(scores: Sequence[CaptionScores], *, seed: int, resamples: int) -> DrawnRun:
    """The mean over several draws of the held-out caption, or one run: corpus scores, as they are and under bootstrap."""
    drawn = [draw_scores(score, seed=seed, resamples=resamples) for score in scores]
    means = {metric: np.mean([own[metric] for own in drawn], axis=0) for metric in drawn[0]}
    corpus = {metric: float(np.mean([score.corpus[metric] for score in scores])) for metric in means}
    return DrawnRun(list(scores[0].per_image["image_id"]), corpus, means)


def summarize_draws(scores: Sequence[CaptionScores], average: DrawnRun, *, spread: bool = False) -> dict[str, dict]:
    """metric -> {"value", "low", "high", "n"}: corpus scores, 95 % intervals over images; "reason" if not run.

    Args:
        average: what ``average_draws`` gives for the same scores.
        spread: also "standard_deviation" over the draws (None for one) and "draws", how many there are.
    """
    n = len(scores[0].per_image)
    summary = {}
    for metric in METRICS:
        if metric not in average.drawn:
            summary[metric] = _not_run(n, scores[0].reasons[metric])
            continue
        low, high = percentile_interval(average.drawn[metric])
        entry = {"value": average.corpus[metric], "low": low, "high": high, "n": n}
        if spread:
            values = [score.corpus[metric] for score in scores]
            deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
            entry |= {"standard_deviation": deviation, "draws": len(values)}
        summary[metric] = rounded(entry)
    return summary


def _not_run(n: int, reason: str) -> dict[str, object]:
    """The entry of a metric without a value."""
    return {"value": None, "low": None, "high": None, "n": n, "reason": reason}


def _score_run(
    test: _TestSet, draws: _Draws, tools: ScoringTools, seed: int, resamples: int, is_human: bool
) -> tuple[dict, dict[str, DrawnRun], list[pd.DataFrame]]:
    """(metrics, kind of references -> drawn scores, scores of each image) of one run on one source."""
    metrics, drawn, tables = {}, {}, []
    for kind in REFERENCES:
        if not draws[kind]:  # no image has two captions
            continue
        if kind == "released" or test.repeats:  # else they are the same
            distinct = kind == "distinct" and not is_human  # whose other references are distinct already
            scored = [
                score_captions(own, references, distinct=distinct, tools=tools, tokens=test.tokens)
                for own, references in draws[kind]
            ]
            average = average_draws(scored, seed=seed, resamples=resamples)
            every = pd.concat([score.per_image for score in scored])
            means = every.groupby("image_id", sort=False).mean().reset_index() if len(scored) > 1 else every
        drawn[kind] = average
        metrics[kind] = summarize_draws(scored, average, spread=is_human)
        seen = means["image_id"].map(test.seen).to_numpy()
        tables.append(means.assign(references=kind, reference_set_seen=seen))
        if kind == "released":
            metrics |= _halves(scored, test, seed, resamples) | _describe(test, *draws[kind][0], seed, resamples)
    return metrics, drawn, tables


def _halves(scored: Sequence[CaptionScores], test: _TestSet, seed: int, resamples: int) -> dict[str, dict]:
    """All metrics on the images whose reference set training has seen, and on the others."""
    mask = scored[0].per_image["image_id"].map(test.seen).to_numpy(dtype=bool)
    halves = {}
    for name, chosen in (("seen", mask), ("unseen", ~mask)):
        entries = dict.fromkeys(scored[0].statistics, _not_run(0, "no such image"))
        if chosen.any():
            parts = [subset(scores, chosen) for scores in scored]
            entries |= summarize_draws(parts, average_draws(parts, seed=seed, resamples=resamples))
        halves[name] = {metric: entries[metric] for metric in scored[0].statistics}
    return halves


def _describe(
    test: _TestSet, captions: Mapping[str, str], references: Mapping[str, Sequence[str]], seed: int, resamples: int
) -> dict[str, dict]:
    """What the captions' texts are like, and which classes they name that their images do not have."""
    pairs = token_pairs(captions, references, test.tokens)
    tokenized = {image_id: caption for image_id, (caption, _) in pairs.items()}
    own = {image_id: texts for image_id, (_, texts) in pairs.items()}
    named = hallucinated_classes(tokenized, own, test.labels)
    flags = np.stack([named.wrong > 0, np.ones(len(named.wrong))], axis=1).astype(float)
    shares = {"captions": flags, "names": np.stack([named.wrong, named.named], axis=1).astype(float)}
    classes: dict[str, object] = {}
    for name, statistics in shares.items():
        entry = bootstrap_corpus(statistics, _share, seed=seed, resamples=resamples)
        classes[name] = entry if statistics[:, 1].sum() else _not_run(len(tokenized), "no class is named")
    classes["most_often"] = dict(list(named.examples.items())[:HALLUCINATIONS_SHOWN])
    text = describe_texts(list(tokenized.values()), test.training_captions)
    return {"text": text, "classes": classes}


def _share(sums: np.ndarray) -> np.ndarray:
    """Sums (..., 2) as shares; 0 where a draw of images names no class."""
    return np.divide(sums[..., 0], sums[..., 1], out=np.zeros(sums.shape[:-1]), where=sums[..., 1] > 0)


def _test_sets(tested: pd.DataFrame, training: pd.DataFrame, tokens: Mapping[str, str]) -> list[_TestSet]:
    known_sets = {frozenset(tokens[text] for text in captions) for captions in training["captions"]}
    known = frozenset(text for texts in known_sets for text in texts)
    tests = []
    for source, rows in tested.groupby("source", sort=True):
        references = {image_id: list(captions) for image_id, captions in zip(rows["image_id"], rows["captions"])}
        seen = {image_id: frozenset(map(tokens.get, own)) in known_sets for image_id, own in references.items()}
        labels = {image_id: label for image_id, label in zip(rows["image_id"], rows["label"]) if isinstance(label, str)}
        tests.append(_TestSet(str(source), references, labels, seen, tokens, known))
    return tests


def _draws(test: _TestSet, runs: Mapping, human_draws: int) -> dict[str, _Draws]:
    """run -> its captions with all references; the human row: what was held out with the rest, draw by draw."""
    made: dict[str, _Draws] = {}
    for run, by_source in runs.items():
        captions = {image_id: by_source[test.source][image_id] for image_id in test.references}
        made[run] = dict.fromkeys(REFERENCES, [(captions, test.references)])
    made[HUMAN] = {}
    for kind in REFERENCES:
        distinct = kind == "distinct"
        held = (hold_out(test.references, test.tokens, seed=draw, distinct=distinct) for draw in range(human_draws))
        made[HUMAN][kind] = [draw for draw in held if draw[0]]
    return made


def _all_pairs(test: _TestSet, draws: Mapping[str, _Draws]) -> list:
    """Every caption with its references, as tokens. METEOR and SPICE do not care for repeated references."""
    wanted = [part for by_kind in draws.values() for parts in by_kind.values() for part in parts]
    return [pair for part in wanted for pair in token_pairs(*part, test.tokens).values()]


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
                metrics[kind] = {
                    metric: difference_of_draws(
                        a.corpus[metric] - b.corpus[metric], a.drawn[metric] - b.drawn[metric], len(a.image_ids)
                    )
                    for metric in METRICS
                    if metric in a.drawn
                }
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


def summary_table(metrics: Mapping, source: str) -> pd.DataFrame:
    """One row a run, best CIDEr first: metrics as released, CIDEr on distinct references and both halves, texts."""
    rows = {}
    for run in metrics:
        entry = metrics[run].get(source, {}) if run not in RESERVED else {}
        if "released" in entry:
            rows[run] = {metric: entry["released"].get(metric, {}).get("value") for metric in METRICS}
            for part in ("distinct", "seen", "unseen"):
                rows[run][f"CIDEr {part}"] = entry.get(part, {}).get("CIDEr", {}).get("value")
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("run").astype(float)
    return frame.sort_values("CIDEr", ascending=False, kind="stable")


def text_table(metrics: Mapping, source: str) -> pd.DataFrame:
    """One row a run: its captions' lengths, vocabulary, variety, copies from training and hallucinated classes."""
    rows = {}
    for run in metrics:
        entry = metrics[run].get(source, {}) if run not in RESERVED else {}
        if "text" in entry:
            wrong = entry["classes"]
            more = {"hallucinating captions": wrong["captions"]["value"], "hallucinated names": wrong["names"]["value"]}
            rows[run] = entry["text"] | more | {"most often": ", ".join(wrong["most_often"])}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("run")


def _protocol(table: pd.DataFrame, split: str, seed: int, resamples: int, human_draws: int) -> dict:
    """The protocol with the numbers it was run with, and what each source holds."""
    sources = {}
    for source, rows in table.groupby("source", sort=True):
        tested = rows[rows["split"] == split]
        texts = [text for captions in tested["captions"] for text in captions]
        sources[str(source)] = {
            "images": len(tested),
            "references": len(texts),
            "distinct_references": len(set(texts)),
            "training_images": int((rows["split"] == "train").sum()),
        }
    settings = {"split": split, "seed": seed, "resamples": resamples, "human_draws": human_draws}
    return PROTOCOL | settings | {"sources": sources}
