"""Answers to instructions in tables, pictures and words: how many are right, of what kind, and how sure they are."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rsvlm.training.caption_batches import TrainingBatches
from rsvlm.viewing.page import format_percent
from rsvlm.viewing.plots import BLUE, GREEN, MUTED, ORANGE, PURPLE, VERMILION, figure
from rsvlm.viewing.results import Result, counted, percent

NO_ANSWERS = "No instructions were answered: there are none, or none were trained on."
BASELINES = {
    "majority": ("the commonest training answer", ORANGE, "s"),
    "blind": ("without the image", VERMILION, "D"),
    "shuffled": ("with another image", PURPLE, "^"),
}


def answer_table(metrics: Mapping) -> pd.DataFrame:
    """A row a source and kind: right and format obeyed with 95 % intervals, the baselines, and what wordings change, %."""
    rows = {}
    for source, kinds in metrics["accuracy"].items():
        for kind, own in kinds.items():
            steady = metrics["robustness"].get(source, {}).get(kind, {})
            cells = {"images": own["right"]["n"], "right": _cell(own["right"]), "as asked": _cell(own["format_obeyed"])}
            cells |= {
                label: format_percent(own[name]["value"]) for name, (label, *_) in BASELINES.items() if name in own
            }
            if "minus_blind" in own:
                cells["more than without the image"] = _cell(own["minus_blind"])
            cells["wordings contradict each other"] = format_percent(steady.get("contradictory"))
            rows[source, kind.replace("_", " ")] = cells
    index = pd.MultiIndex.from_tuples(list(rows), names=["source", "kind"]) if rows else None
    return pd.DataFrame(list(rows.values()), index=index)


def answer_figure(metrics: Mapping) -> Figure | None:
    """Share right by kind with its interval, the baselines beside it, a panel a source; None without answers."""
    sources = metrics["accuracy"]
    if not sources:
        return None
    most = max(map(len, sources.values()))
    drawn, axes = figure(5.2 * len(sources), 1.2 + 0.3 * most, columns=len(sources), squeeze=False)
    for own, (source, kinds) in zip(axes.flat, sources.items(), strict=True):
        names = sorted(kinds, key=lambda kind: kinds[kind]["right"]["value"])
        y = np.arange(len(names))
        values = np.array([[kinds[kind]["right"][key] for key in ("value", "low", "high")] for kind in names])
        own.hlines(y, 100 * values[:, 1], 100 * values[:, 2], color=BLUE, linewidth=2)
        own.plot(100 * values[:, 0], y, "o", color=BLUE, label="the captioner, 95 % interval")
        for name, (label, colour, marker) in BASELINES.items():
            if all(name in kinds[kind] for kind in names):
                shown = [100 * kinds[kind][name]["value"] for kind in names]
                own.plot(shown, y, marker, color=colour, markersize=5, linestyle="", label=label)
        own.set(yticks=y, yticklabels=[kind.replace("_", " ") for kind in names], xlim=(-3, 103), xlabel="right, %")
        own.set_title(source)
    axes.flat[0].legend(loc="lower center", bbox_to_anchor=(0.5, 1.08), ncols=2, fontsize=8)
    return drawn


def risk_figure(curve: pd.DataFrame, about: Mapping) -> Figure | None:
    """Error among the answered over the share answered, the surest first, with the calibrated threshold's place."""
    if not len(curve):
        return None
    drawn, axes = figure(5.2, 3.2)
    axes.plot(100 * curve["coverage"], 100 * curve["risk"], "-", color=BLUE, marker="", label="surest answers first")
    axes.axhline(100 * about["area_without"], color=MUTED, linestyle="--", label="in any order")
    test = about["test"]
    if test["answered"]:
        told = 100 * test["answered"], 100 * test["wrong_of_answered"]
        axes.plot(*told, "D", color=GREEN, label="told, by the calibrated margin")
    axes.set(xlabel="questions answered, %", ylabel="wrong of those, %", xlim=(0, 102), ylim=(0, None))
    axes.legend(fontsize=8)
    return drawn


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


def answer_examples(tasks: Sequence[Mapping], scores: pd.DataFrame, blind: pd.DataFrame) -> pd.DataFrame:
    """The first task of each kind: what was asked, the truth, what was said, and what is said without the image."""
    rows = {}
    for place, task in enumerate(tasks):
        said = {"instruction": task["instruction"], "true": task["answer"], "said": scores["answer"].iloc[place]}
        rows.setdefault(task["kind"].replace("_", " "), said | {"without the image": blind["answer"].iloc[place]})
    return pd.DataFrame.from_dict(rows, orient="index")


def answers_result(metrics: Mapping) -> Result:
    """What METRICS/score_instructions.json says, in sentences."""
    if not metrics["accuracy"]:
        return Result(NO_ANSWERS)
    lines = []
    for source, kinds in metrics["accuracy"].items():
        mean = {name: np.mean([own[name]["value"] for own in kinds.values()]) for name in ("right", "format_obeyed")}
        beside = {
            name: np.mean([own[name]["value"] for own in kinds.values()]) for name in BASELINES if _has(kinds, name)
        }
        told = ", ".join(f"{percent(value)} {BASELINES[name][0]}" for name, value in beside.items())
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
    test = metrics["abstention"]["test"]
    if test:
        lines.append(
            f"Told from a margin calibrated on validation, {percent(test['answered'])} of {counted(test['n'], 'question')} with "
            f"few answers are answered and {percent(test['observed'])} of all wrongly (promised: at most "
            f"{percent(test['promised'])})."
        )
    return Result(" ".join(lines))


def _has(kinds: Mapping, name: str) -> bool:
    return all(name in own for own in kinds.values())


def _cell(entry: Mapping) -> str:
    low, high = format_percent(entry["low"]), format_percent(entry["high"])
    return f"{format_percent(entry['value'])} [{low}, {high}]"


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
