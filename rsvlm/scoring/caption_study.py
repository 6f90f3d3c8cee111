"""All runs of a study scored, the held-out human row, and the differences between runs.

Differences between runs on the same images, each with its interval and p-value.

A run's corpus scores under the bootstrap's draws are computed once (``draw_scores``); with the same seed and the same
images two runs see the same draws, so the difference of their drawn scores is the paired bootstrap.

The human row: one of an image's captions, held out and scored against the others.

The same metrics as for a model, but against one reference fewer, which lowers BLEU, METEOR and ROUGE_L a little (they
take the best reference) and not CIDEr (it takes the mean).

All runs of a study scored: per source, on released and distinct references, on seen and unseen ones, in pairs.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from rsvlm.scoring import captions as clip_scores
from rsvlm.scoring import texts as class_names
from rsvlm.scoring import texts as text_statistics
from rsvlm.scoring.bootstrap import bootstrap_corpus, difference_of_draws, mean_of, percentile_interval, rounded
from rsvlm.scoring.captions import (
    METRICS,
    CaptionScores,
    ScoringTools,
    draw_scores,
    not_run,
    score_captions,
    subset,
    summarize,
    token_pairs,
)
from rsvlm.scoring.runs import HUMAN, RESERVED

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
    """metric -> {"value", "low", "high", "n", "standard_deviation", "draws"}: means over several draws of the held-out caption.

    The interval is over images, each draw's corpus score averaged; ``standard_deviation`` is the draws' standard deviation.

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
        deviation = float(np.std([score.corpus[metric] for score in scores], ddof=1)) if draws > 1 else None
        value = average.corpus[metric]
        summary[metric] = rounded(
            {"value": value, "low": low, "high": high, "n": n, "standard_deviation": deviation, "draws": draws}
        )
    return summary


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
    "text": text_statistics.PROTOCOL,
    "classes": class_names.PROTOCOL,
    "CLIPScore": clip_scores.PROTOCOL,
    "one_image": "CIDEr of a single image is 0 by definition: its idf is 0",
    "unit": "fractions; CIDEr 0 to 10, CLIPScore 0 to 2.5",
}
HALLUCINATIONS_SHOWN = 5


@dataclass(frozen=True)
class StudyScores:
    """``metrics``: what METRICS/score_captions.json holds; ``per_image``: a row for each run, image and references."""

    metrics: dict
    per_image: pd.DataFrame


@dataclass(frozen=True)
class _TestSet:
    """One source's images of the scored split, and what training knows of their texts."""

    source: str
    split: str
    references: dict[str, list[str]]
    labels: dict[str, str | None]
    seen: np.ndarray  # (n,) bool: whether a training image has the same set of references
    tokens: Mapping[str, str]
    training_captions: frozenset[str]  # tokenized

    @property
    def repeats(self) -> bool:
        """Whether some image has a reference twice, after tokenising."""
        return any(len({self.tokens[text] for text in own}) < len(own) for own in self.references.values())


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
    tokens = tools.tokenize(_all_texts(runs, tested, training))
    tests = _test_sets(tested, training, tokens, split)
    held = {test.source: _held_out(test, human_draws) for test in tests}
    log("METEOR and SPICE, where it runs, on all captions of all runs")
    tools.prepare(_all_pairs(runs, tests, held))

    names = [*sorted(runs), *([HUMAN] if human_draws else [])]
    metrics: dict = {run: {} for run in names} | {"paired": {}}
    tables = []
    for test in tests:
        drawn: dict[str, dict[str, DrawnRun]] = {}
        for run in names:
            log(f"{test.source}: {run}, {len(test.references)} images")
            if run == HUMAN:
                parts = _score_held_out(test, held[test.source], tools, seed, resamples)
            else:
                parts = _score_run(test, runs[run][test.source], tools, seed, resamples)
            metrics[run][test.source], drawn[run] = parts.metrics, parts.drawn
            tables += [rows.assign(run=run, source=test.source, split=split) for rows in parts.tables]
        metrics["paired"][test.source] = compare_runs(drawn)
    metrics["protocol"] = _protocol(table, split, seed, resamples, human_draws) | {"encoder": tools.encoder}
    scores = pd.concat(tables, ignore_index=True)
    order = ["run", "source", "split", "image_id", "references", "reference_set_seen"]
    return StudyScores(metrics, scores[[*order, *(metric for metric in METRICS if metric in scores)]])


def summary_table(metrics: Mapping, source: str) -> pd.DataFrame:
    """One row a run, best CIDEr first: metrics as released, CIDEr on distinct references and both halves, texts."""
    rows = []
    for run in metrics:
        entry = metrics[run].get(source) if run not in RESERVED else None
        if not entry or "released" not in entry:
            continue
        row: dict[str, object] = {"run": run}
        row |= {metric: entry["released"].get(metric, {}).get("value") for metric in METRICS}
        for name, part in (("CIDEr distinct", "distinct"), ("CIDEr seen", "seen"), ("CIDEr unseen", "unseen")):
            row[name] = entry.get(part, {}).get("CIDEr", {}).get("value")
        rows.append(row)
    frame = pd.DataFrame(rows).set_index("run").astype(float)
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


@dataclass(frozen=True)
class _Scored:
    metrics: dict
    drawn: dict[str, DrawnRun]
    tables: list[pd.DataFrame]


def _score_run(test: _TestSet, captions: Mapping[str, str], tools: ScoringTools, seed: int, resamples: int) -> _Scored:
    ordered = {image_id: captions[image_id] for image_id in test.references}
    metrics, drawn, tables = {}, {}, []
    for kind in REFERENCES:
        if kind == "released" or test.repeats:  # else they are the same
            distinct = kind == "distinct"
            scores = score_captions(ordered, test.references, distinct=distinct, tools=tools, tokens=test.tokens)
            draws = draw_scores(scores, seed=seed, resamples=resamples)
        drawn[kind] = DrawnRun(list(ordered), scores.corpus, draws)
        metrics[kind] = summarize(scores, draws)
        tables.append(_labelled(scores.per_image, kind, test))
        if kind == "released":
            halves = _halves([scores], test, seed, resamples)
    return _Scored(metrics | halves | _describe(test, ordered, test.references, seed, resamples), drawn, tables)


def _score_held_out(
    test: _TestSet, held: Mapping[str, Sequence[tuple]], tools: ScoringTools, seed: int, resamples: int
) -> _Scored:
    metrics, drawn, tables = {}, {}, []
    for kind, draws in held.items():
        if not draws:  # no image has two captions
            continue
        scored = [score_captions(own, rest, tools=tools, tokens=test.tokens) for own, rest in draws]
        drawn[kind] = average_draws(scored, seed=seed, resamples=resamples)
        metrics[kind] = summarize_draws(scored, drawn[kind])
        means = pd.concat([score.per_image for score in scored]).groupby("image_id", sort=False).mean().reset_index()
        tables.append(_labelled(means, kind, test))
        if kind == "released":
            metrics |= _halves(scored, test, seed, resamples)
            metrics |= _describe(test, *draws[0], seed, resamples)
    return _Scored(metrics, drawn, tables)


def _halves(scored: Sequence[CaptionScores], test: _TestSet, seed: int, resamples: int) -> dict[str, dict]:
    """All metrics on the images whose reference set training has seen, and on the others."""
    seen_of = dict(zip(test.references, test.seen, strict=True))
    mask = np.array([seen_of[image_id] for image_id in scored[0].per_image["image_id"]], dtype=bool)
    halves = {}
    for name, chosen in (("seen", mask), ("unseen", ~mask)):
        if not chosen.any():
            halves[name] = {metric: not_run(0, "no such image") for metric in scored[0].statistics}
            continue
        parts = [subset(scores, chosen) for scores in scored]
        average = average_draws(parts, seed=seed, resamples=resamples)
        entries = summarize_draws(parts, average)
        halves[name] = {metric: _plain(entries[metric]) for metric in scored[0].statistics}
    return halves


def _plain(entry: Mapping) -> dict:
    return {key: entry[key] for key in ("value", "low", "high", "n")}


def _describe(
    test: _TestSet, captions: Mapping[str, str], references: Mapping[str, Sequence[str]], seed: int, resamples: int
) -> dict[str, dict]:
    """What the captions' texts are like, and which classes they name that their images do not have."""
    pairs = token_pairs(captions, references, test.tokens)
    tokenized = {image_id: caption for image_id, (caption, _) in pairs.items()}
    own = {image_id: texts for image_id, (_, texts) in pairs.items()}
    named = class_names.hallucinated_classes(tokenized, own, test.labels)
    flags = np.stack([named.wrong > 0, np.ones(len(named.wrong))], axis=1).astype(float)
    shares = {"captions": flags, "names": np.stack([named.wrong, named.named], axis=1).astype(float)}
    classes: dict[str, object] = {}
    for name, statistics in shares.items():
        entry: dict[str, object] = not_run(len(tokenized), "no class is named")
        if statistics[:, 1].sum():
            low, high = bootstrap_corpus(statistics, _share, seed=seed, resamples=resamples)
            value = float(mean_of(statistics.sum(axis=0)))
            entry = rounded({"value": value, "low": low, "high": high, "n": len(tokenized)})
        classes[name] = entry
    classes["most_often"] = dict(list(named.examples.items())[:HALLUCINATIONS_SHOWN])
    text = text_statistics.describe_texts(list(tokenized.values()), test.training_captions)
    return {"text": text, "classes": classes}


def _share(sums: np.ndarray) -> np.ndarray:
    """Sums (..., 2) as shares; 0 where a draw of images names no class."""
    return np.divide(sums[..., 0], sums[..., 1], out=np.zeros(sums.shape[:-1]), where=sums[..., 1] > 0)


def _test_sets(tested: pd.DataFrame, training: pd.DataFrame, tokens: Mapping, split: str) -> list[_TestSet]:
    known_sets = {frozenset(tokens[text] for text in captions) for captions in training["captions"]}
    known = frozenset(text for texts in known_sets for text in texts)
    tests = []
    for source, rows in tested.groupby("source", sort=True):
        references = {image_id: list(captions) for image_id, captions in zip(rows["image_id"], rows["captions"])}
        seen = np.array([frozenset(map(tokens.get, texts)) in known_sets for texts in references.values()])
        labels = {image_id: label for image_id, label in zip(rows["image_id"], rows["label"]) if isinstance(label, str)}
        tests.append(_TestSet(str(source), split, references, labels, seen, tokens, known))
    return tests


def _held_out(test: _TestSet, draws: int) -> dict[str, list[tuple]]:
    """kind of references -> (held out, rest) of each draw; empty where no image has two captions."""
    made = {
        kind: [hold_out(test.references, test.tokens, seed=draw, distinct=kind == "distinct") for draw in range(draws)]
        for kind in REFERENCES
    }
    return {kind: [(held, rest) for held, rest in parts if held] for kind, parts in made.items()}


def _all_pairs(runs: Mapping, tests: Sequence[_TestSet], held: Mapping) -> list:
    """Every caption with its references, as tokens. METEOR and SPICE do not care for repeated references."""
    pairs = []
    for test in tests:
        wanted = [({key: own[test.source][key] for key in test.references}, test.references) for own in runs.values()]
        wanted += [part for parts in held[test.source].values() for part in parts]
        for captions, references in wanted:
            pairs += token_pairs(captions, references, test.tokens).values()
    return pairs


def _all_texts(runs: Mapping, tested: pd.DataFrame, training: pd.DataFrame) -> list[str]:
    texts = [text for frame in (tested, training) for captions in frame["captions"] for text in captions]
    return texts + [
        text for by_source in runs.values() for captions in by_source.values() for text in captions.values()
    ]


def _labelled(per_image: pd.DataFrame, kind: str, test: _TestSet) -> pd.DataFrame:
    seen_of = dict(zip(test.references, test.seen, strict=True))
    return per_image.assign(references=kind, reference_set_seen=per_image["image_id"].map(seen_of).to_numpy())


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
