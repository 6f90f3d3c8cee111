"""Instructions in training and their answers in tables and words; the figures of scores stand in ``answer_figures``."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rsvlm.training.caption_batches import TrainingBatches
from rsvlm.viewing.page import format_percent
from rsvlm.viewing.plots import BLUE, figure
from rsvlm.viewing.results import Result, counted, percent

NO_ANSWERS = "No instructions were answered: there are none, or none were trained on."
BASELINES = {
    "majority": "the commonest training answer",
    "blind": "without the image",
    "shuffled": "with another image",
}


def tables_of(found: Mapping[str, Mapping], make: Callable[[Mapping], pd.DataFrame]) -> pd.DataFrame:
    """The tables that ``make`` gives of each source's figures, one below the other; empty where nothing was scored."""
    return (
        pd.concat({source: make(own) for source, own in found.items()}, names=["source"]) if found else pd.DataFrame()
    )


def abstention_table(about: Mapping) -> pd.DataFrame:
    """The promised error and the observed one on validation and test, a row each, %."""
    rows = {
        split: {
            "questions": own["n"],
            "promised: answered and wrong, at most": format_percent(own["promised"]),
            "observed": format_percent(own["observed"]),
            "answered": format_percent(own["answered"]),
            "wrong of the answered": format_percent(own["wrong_of_answered"]),
            "wrong if all were answered": format_percent(own["wrong_without"]),
        }
        for split in ("validation", "test")
        if (own := about[split])
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def hallucination_table(found: Mapping | None) -> pd.DataFrame:
    """CHAIR-RS of open answers: shares with their 95 % intervals, and the things most often named wrongly; empty for none.

    Args:
        found: as ``rsvlm.scoring.instructions.chair_rs`` gives it.
    """
    if not found:
        return pd.DataFrame()
    about = {"things": "things named that are not there", "texts": "answers that name one"}
    rows = {
        about[name]: {
            "%": format_percent(found[name]["value"]),
            "95 % interval": f"{format_percent(found[name]['low'])} to {format_percent(found[name]['high'])}",
            "answers": found[name]["n"],
            "most often": ", ".join(f"{thing} ({count})" for thing, count in found["most"].items()),
        }
        for name in about
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def answer_examples(tasks: Sequence[Mapping], scores: pd.DataFrame, blind: pd.DataFrame) -> pd.DataFrame:
    """The first task of each kind: what was asked, the truth, what was said, and what is said without the image."""
    rows = {}
    for place, task in enumerate(tasks):
        said = {"instruction": task["instruction"], "true": task["answer"], "said": scores["answer"].iloc[place]}
        rows.setdefault(task["kind"].replace("_", " "), said | {"without the image": blind["answer"].iloc[place]})
    return pd.DataFrame.from_dict(rows, orient="index")


def answers_result(metrics: Mapping) -> Result:
    """What METRICS/score_instructions.json says, in sentences."""
    lines = [] if metrics["accuracy"] else [NO_ANSWERS]
    for source, kinds in metrics["accuracy"].items():
        mean = {name: np.mean([own[name]["value"] for own in kinds.values()]) for name in ("right", "format_obeyed")}
        beside = {
            name: np.mean([own[name]["value"] for own in kinds.values()]) for name in BASELINES if _has(kinds, name)
        }
        told = ", ".join(f"{percent(value)} {BASELINES[name]}" for name, value in beside.items())
        seeing = [kind for kind, own in kinds.items() if _has({kind: own}, "blind") and own["minus_blind"]["low"] > 0]
        lines.append(
            f"{source}: {percent(mean['right'])} right on average over {counted(len(kinds), 'kind')} ({told}); "
            f"{percent(mean['format_obeyed'])} in the form asked for. "
            + (
                f"Surely better than without the image: {', '.join(kind.replace('_', ' ') for kind in seeing)}."
                if seeing
                else "In no kind surely better than without the image."
            )
        )
    if wrong := metrics.get("hallucination"):
        own = wrong["things"]
        lines.append(
            f"Of the things that open answers name, {percent(own['value'])} ({percent(own['low'], own['high'])}) are not there "
            "(CHAIR-RS, results/closed_list.md)."
        )
    for name, own in (metrics.get("others") or {}).items():
        kinds = [one for by_kind in own["accuracy"].values() for one in by_kind.values()]
        if not kinds:
            continue
        beside = (
            _has(dict(enumerate(kinds)), "captioner") and f"; the captioner {_mean(kinds, 'captioner')} of the same"
        )
        lines.append(
            f"{name}: {_mean(kinds, 'right')} right on average over {counted(len(kinds), 'kind')}{beside or ''}; "
            f"{_mean(kinds, 'format_obeyed')} in the form asked for."
        )
    test = metrics["abstention"]["test"]
    if test:
        lines.append(
            f"Told from a margin calibrated on validation, {percent(test['answered'])} of {counted(test['n'], 'question')} with "
            f"few answers are answered and {percent(test['observed'])} of all wrongly (promised: at most "
            f"{percent(test['promised'])})."
        )
    talk = metrics.get("dialogue") or {"turns": 0}
    if talk["turns"] and talk["right_of_told"] is not None:
        lines.append(
            f"Of {counted(talk['turns'], 'turn')} of the dialogue, drawn at random, {talk['not_told']} were not told and "
            f"{talk['asked_again']} asked again; the others are right by {percent(talk['right_of_told'])}."
        )
    return Result(" ".join(lines))


def _mean(kinds: Sequence[Mapping], name: str) -> str:
    return percent(np.mean([own[name]["value"] for own in kinds]))


def _has(kinds: Mapping, name: str) -> bool:
    return all(name in own for own in kinds.values())


def step_table(batches: TrainingBatches, step: int) -> pd.DataFrame:
    """What a training step shows of each of its images: instructions with their answers, or a caption; a row each."""
    decode = batches.captioner.decode_text
    batch = batches.draw(step, np.random.default_rng([batches.settings.seed, 2, step]))
    rows = []
    for number, row in zip(batches.images(step), batch.rows, strict=True):
        prompt = decode([token for token in row.prefix if token >= 0])
        asked = [decode(one) for one in row.asked] or [prompt] * len(row.captions)
        for question, learnt in zip(asked, row.captions, strict=True):
            kind = "instruction" if row.asked else "caption"
            rows.append(
                {"image": batches.examples[number].image_id, "kind": kind, "read": question, "learnt": decode(learnt)}
            )
    return pd.DataFrame(rows).set_index("image")


def mixture_table(batches: TrainingBatches, steps: int) -> pd.DataFrame:
    """Images and tokens to learn of the first steps, captions and instructions apart, with their shares."""
    counts = {"captions": [0, 0], "instructions": [0, 0]}
    for step in range(steps):
        batch = batches.draw(step, np.random.default_rng([batches.settings.seed, 2, step]))
        for row in batch.rows:
            own = counts["instructions" if row.asked else "captions"]
            own[0] += 1
            own[1] += sum(len(caption) + 1 for caption in row.captions)
    table = pd.DataFrame.from_dict(counts, orient="index", columns=["images", "tokens to learn"])
    shares = (100 * table / table.sum().clip(lower=1)).round(1)
    return table.join(shares.add_suffix(", %"))


def loss_figure(losses: pd.DataFrame) -> Figure | None:
    """The loss of answers by kind, the hardest at the top; None without any."""
    if not len(losses):
        return None
    own = losses.sort_values("nats")
    drawn, axes = figure(5.2, 1 + 0.28 * len(own))
    axes.barh(own["kind"].str.replace("_", " "), own["nats"], color=BLUE)
    axes.set(xlabel="loss, nats a token, validation")
    return drawn
