"""What a study's answers to instructions are worth: scores beside those without an image, and from where on to tell them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from rsvlm.data.table import evenly_spaced
from rsvlm.files import whole_folder, write_json, write_json_lines
from rsvlm.models.answering import ABSTENTION, CANNOT_TELL, answer_blind, answer_tasks
from rsvlm.models.capret import CapRet
from rsvlm.models.features import Features
from rsvlm.models.instructions import LIKE, MOST_CHOICES, KnownInstructions
from rsvlm.scoring.bootstrap import rounded
from rsvlm.scoring.instructions import (
    PROTOCOL,
    Detect,
    abstention,
    accuracy_by_kind,
    area_under_risk,
    chair_rs,
    conformal_threshold,
    majority_answers,
    risk_coverage,
    robustness,
    score_answers,
)

OWN, MAJORITY, BLIND, SHUFFLED = "captioner", "majority", "blind", "shuffled"
NEVER = 1e6  # nats: a margin that no answer has, where no threshold keeps the promise


def thin_tasks(tasks: Sequence[Mapping], split: str, most: int) -> list[Mapping]:
    """At most so many tasks of a split, whole questions (all wordings of each), evenly spaced; 0: all."""
    own = [task for task in tasks if task["split"] == split]
    if not most or len(own) <= most:
        return own
    questions = list(dict.fromkeys(task["question"] for task in own))
    kept = {questions[place] for place in evenly_spaced(len(questions), max(1, most * len(questions) // len(own)))}
    return [task for task in own if task["question"] in kept]


def closed_choices(tasks: Sequence[Mapping]) -> list[list[str]]:
    """For each task the answers that its is one of; none where it is free, or they are more than MOST_CHOICES."""
    choices = [[str(choice) for choice in task["truth"].get("choices") or ()] for task in tasks]
    return [own if len(own) <= MOST_CHOICES else [] for own in choices]


def wrong_images(tasks: Sequence[Mapping], seed: int) -> list[str]:
    """For each task another image of those asked about in its split and source, the same for all tasks of an image.

    One cycle through the images in random order, so that none keeps its own; a lone image does.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for task in tasks:
        own = groups.setdefault((task["split"], task["source"]), [])
        if task["image_id"] not in own:
            own.append(task["image_id"])
    other: dict[str, str] = {}
    for own in groups.values():
        order = [own[place] for place in np.random.default_rng(seed).permutation(len(own))]
        other |= dict(zip(order, [*order[1:], order[0]], strict=True))
    return [other[task["image_id"]] for task in tasks]


def answer_all(
    captioner: CapRet,
    features: Features,
    tasks: Sequence[Mapping],
    baselines: Sequence[str] = (BLIND, SHUFFLED),
    *,
    seed: int = 0,
    checkpoints: Path | None = None,
    **options: int,
) -> dict[str, pd.DataFrame]:
    """OWN and each baseline -> what ``answer_tasks`` gives for the tasks, in their order, with their task_id.

    Args:
        baselines: BLIND (all features at the training mean), SHUFFLED (another image's, see ``wrong_images``).
        checkpoints: folder that lets a call that was killed go on; the caller removes it.
        options: of ``answer_tasks``: max_new_tokens, batch_size.

    Raises:
        ValueError: a baseline that is none.
    """
    unknown = sorted(set(baselines) - {BLIND, SHUFFLED})
    if unknown:
        raise ValueError(f"baselines: {', '.join(unknown)} unknown; there are {BLIND} and {SHUFFLED}")
    ids, texts = [task["image_id"] for task in tasks], [task["instruction"] for task in tasks]
    how = {"choices": closed_choices(tasks), "checkpoints": checkpoints, **options}
    answers = {OWN: answer_tasks(captioner, features, ids, texts, **how)}
    if BLIND in baselines:
        answers[BLIND] = answer_blind(captioner, features, texts, margins=False, **how)
    if SHUFFLED in baselines:
        answers[SHUFFLED] = answer_tasks(captioner, features, wrong_images(tasks, seed), texts, margins=False, **how)
    for own in answers.values():
        own.insert(0, "task_id", [task["task_id"] for task in tasks])
    return answers


def save_answers(folder: Path, answers: Mapping[str, pd.DataFrame], about: Mapping) -> None:
    """Write a JSON-lines file each of answers, and ABSTENTION with ``about``, whole or not at all."""
    with whole_folder(folder) as scratch:
        for name, own in answers.items():
            rows = own.astype(object).where(own.notna(), None).to_dict("records")
            write_json_lines(scratch / f"{name}.jsonl", rows)
        write_json(scratch / ABSTENTION, about)


def judge_turns(turns: Sequence[Mapping], detect: Detect | None = None) -> list[dict]:
    """Turns of the dialogue with ``right`` (0 to 1), None where nothing was told or nobody can judge.

    Args:
        detect: text -> language code, for answers in other languages.
    """
    asked = [turn for turn in turns if turn["text"] != CANNOT_TELL]
    answers = {turn["task"]["task_id"]: turn["text"] for turn in asked}
    scores = score_answers([turn["task"] for turn in asked], answers, detect=detect).dropna(subset="right")
    right = dict(zip(scores["task_id"], scores["right"]))
    return [{**turn, "right": right.get(turn["task"]["task_id"])} for turn in turns]


def summarise_turns(turns: Sequence[Mapping]) -> dict[str, float | int | None]:
    """How many turns there are, in how many the wish had to be said again, or nothing was told; how right the others are."""
    told = [turn["right"] for turn in turns if turn["right"] is not None]
    return {
        "turns": len(turns),
        "asked_again": sum(turn["asked_again"] for turn in turns),
        "not_told": sum(turn["text"] == CANNOT_TELL for turn in turns),
        "right_of_told": round(float(np.mean(told)), 6) if told else None,
    }


def language_detector(tasks: Sequence[Mapping]) -> Detect | None:
    """text -> language code, among those that tasks ask for and English; None where none asks for a language."""
    asked = {task["language"] for task in tasks if task["kind"] == "language"}
    if not asked:
        return None
    from rsvlm.languages import detect_language  # here: it needs the extra `languages`

    return lambda text: detect_language(text, sorted(asked | {"en"}))


def measure_answers(
    tasks: Sequence[Mapping],
    training: Sequence[Mapping],
    answers: Mapping[str, pd.DataFrame],
    known: KnownInstructions,
    *,
    seed: int,
    resamples: int = 1000,
    detect: Detect | None = None,
) -> tuple[pd.DataFrame, dict]:
    """(the scores of OWN, a row a task, with its log_probability and margin; metrics).

    Args:
        answers: OWN and baselines (blind, shuffled) -> what ``answer_tasks`` gives for the tasks, in their order.
        known: what the captioner was trained to answer.
        detect: text -> language code, for tasks in other languages.

    Returns:
        Metrics: ``accuracy`` (source -> kind -> right, format_obeyed, the baselines and the differences to them),
        ``robustness``, ``hallucination`` (None without open answers), ``recognised`` (share of the instructions, none of
        whose wordings training had, that are taken for a known one of their kind), ``protocol``.
    """
    ids = [task["task_id"] for task in tasks]
    scores = {
        name: score_answers(tasks, dict(zip(ids, own["answer"], strict=True)), detect=detect)
        for name, own in answers.items()
    }
    baselines = {MAJORITY: score_answers(tasks, majority_answers(training, tasks), detect=detect)}
    baselines |= {name: own for name, own in scores.items() if name != OWN}
    own = scores[OWN].copy()
    for column in ("log_probability", "margin", "cut_off"):
        own[column] = answers[OWN][column].to_numpy()
    found = [known.recognise(task["instruction"]) for task in tasks]
    taken = [kind == task["kind"] and like >= LIKE for (kind, like), task in zip(found, tasks, strict=True)]
    open_ones = {task["task_id"]: task["truth"]["there"] for task in tasks if "there" in task["truth"]}
    said = dict(zip(own["task_id"], own["answer"], strict=True))
    how = {"seed": seed, "resamples": resamples}
    return own, {
        "tasks": len(tasks),
        "accuracy": accuracy_by_kind(own, baselines, **how),
        "robustness": robustness(own),
        "hallucination": chair_rs({name: said[name] for name in open_ones}, open_ones, **how) if open_ones else None,
        "recognised": round(float(np.mean(taken)), 6) if taken else None,
        "languages": measure_languages(tasks, said),
        "protocol": PROTOCOL,
    }


def measure_languages(tasks: Sequence[Mapping], said: Mapping[str, str]) -> dict[str, dict]:
    """Language -> what ``caption_language_scores`` says of the answers in it; empty without such tasks."""
    asked = [task for task in tasks if task["kind"] == "language"]
    if not asked:
        return {}
    from rsvlm.scoring.languages import caption_language_scores  # here: it needs the extra `languages`

    return {
        language: caption_language_scores(
            {task["task_id"]: said[task["task_id"]] for task in asked if task["language"] == language},
            {task["task_id"]: task["truth"]["references"] for task in asked if task["language"] == language},
            language,
        )
        for language in sorted({task["language"] for task in asked})
    }


def calibrate(
    tasks: Sequence[Mapping], answers: pd.DataFrame, scores: pd.DataFrame, error: float
) -> tuple[dict, pd.DataFrame]:
    """(how well the margin tells right from wrong, and from where on an answer is told; the test tasks' risk and coverage).

    The threshold is calibrated on validation tasks that have a margin, so that at most ``error`` of all such questions are
    answered wrongly, and held against the test tasks.

    Args:
        tasks, answers: validation, in one order; ``answers`` as ``answer_tasks`` gives it.
        scores: of the test tasks, as ``measure_answers`` gives them.

    Returns:
        ``tell_from`` (nats; NEVER where no threshold keeps the promise; None where nothing was calibrated), ``error``,
        ``validation`` and ``test`` (as ``abstention``), ``area_under_risk`` and ``area_without`` (in any order).
    """
    about: dict = {"tell_from": None, "error": error, "validation": None, "test": None}
    calibrated, tested = answers["margin"].notna().to_numpy(), scores[scores["margin"].notna()]
    if not calibrated.any() or not len(tested):
        return about, pd.DataFrame(columns=["coverage", "risk", "threshold"])
    ids = [task["task_id"] for task in tasks]
    right = score_answers(tasks, dict(zip(ids, answers["answer"], strict=True)))["right"].to_numpy(float)[calibrated]
    margins = answers["margin"].to_numpy(float)[calibrated]
    threshold = min(conformal_threshold(margins, right, error), NEVER)
    confidence, correct = tested["margin"].to_numpy(float), tested["right"].to_numpy(float)
    curve = risk_coverage(confidence, correct)
    areas = {"area_under_risk": area_under_risk(curve), "area_without": float((1 - correct).mean())}
    found = {"validation": (margins, right), "test": (confidence, correct)}
    measured = {split: abstention(*values, threshold, error) for split, values in found.items()}
    return about | {"tell_from": round(threshold, 6)} | measured | rounded(areas), curve
