"""What a study's answers to instructions are worth: scores beside those without an image, and from where on to tell them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from rsvlm.data.task_files import SECOND_IMAGE, images_of
from rsvlm.files import read_json_lines, whole_folder, write_json, write_json_lines
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
from rsvlm.scoring.runs import ANSWER_KEYS, ANSWERS, OF_ANSWERS

OWN, MAJORITY, BLIND, SHUFFLED, VALIDATION = OF_ANSWERS
NEVER = 1e6  # nats: a margin that no answer has, where no threshold keeps the promise


def closed_choices(tasks: Sequence[Mapping]) -> list[list[str]]:
    """For each task the answers that its is one of; none where it is free, or they are more than MOST_CHOICES."""
    choices = [[str(choice) for choice in task["truth"].get("choices") or ()] for task in tasks]
    return [own if len(own) <= MOST_CHOICES else [] for own in choices]


def wrong_images(tasks: Sequence[Mapping], seed: int) -> tuple[list[str], list[str | None]]:
    """(for each task another image of those that tasks of its split and source show, another second one or None).

    All tasks about one image have the same other one, the next in one cycle through the images in random order, so that none
    keeps its own; a lone image does. Two images are both replaced, by neither of the two as long as there are four.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for task in tasks:
        own = groups.setdefault((task["split"], task["source"]), [])
        own += [image_id for image_id in images_of(task) if image_id not in own]
    cycles, at = {}, {}
    for key, own in groups.items():
        cycles[key] = [own[place] for place in np.random.default_rng(seed).permutation(len(own))]
        at |= {image_id: place for place, image_id in enumerate(cycles[key])}
    firsts, seconds = [], []
    for task in tasks:
        cycle, taken = cycles[task["split"], task["source"]], images_of(task)
        for image_id in images_of(task):
            steps = (cycle[(at[image_id] + step) % len(cycle)] for step in range(1, len(cycle)))
            taken.append(next((one for one in steps if one not in taken), cycle[(at[image_id] + 1) % len(cycle)]))
        other = taken[len(taken) // 2 :]
        firsts.append(other[0])
        seconds.append(other[1] if len(other) > 1 else None)
    return firsts, seconds


def answer_all(
    captioner: CapRet,
    features: Features,
    tasks: Sequence[Mapping],
    baselines: Sequence[str] = (BLIND, SHUFFLED),
    *,
    near: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
    checkpoints: Path | None = None,
    **options: int,
) -> dict[str, pd.DataFrame]:
    """OWN and each baseline -> what ``answer_tasks`` gives for the tasks, in their order, with their task_id.

    Args:
        baselines: BLIND (all features at the training mean, no neighbours), SHUFFLED (another image's, with its neighbours, see
            ``wrong_images``).
        near: as ``answer_tasks`` takes it.
        checkpoints: folder that lets a call that was killed go on; the caller removes it.
        options: of ``answer_tasks``: max_new_tokens, batch_size.

    Raises:
        ValueError: a baseline that is none.
    """
    unknown = sorted(set(baselines) - {BLIND, SHUFFLED})
    if unknown:
        raise ValueError(f"baselines: {', '.join(unknown)} unknown; there are {BLIND} and {SHUFFLED}")
    ids, texts = [task["image_id"] for task in tasks], [task["instruction"] for task in tasks]
    seconds = [task.get(SECOND_IMAGE) for task in tasks]
    how = {"choices": closed_choices(tasks), "checkpoints": checkpoints, **options}
    answers = {OWN: answer_tasks(captioner, features, ids, texts, seconds=seconds, near=near, **how)}
    if BLIND in baselines:
        answers[BLIND] = answer_blind(captioner, features, texts, seconds=seconds, margins=False, **how)
    if SHUFFLED in baselines:
        ids, seconds = wrong_images(tasks, seed)
        how |= {"near": near, "margins": False}
        answers[SHUFFLED] = answer_tasks(captioner, features, ids, texts, seconds=seconds, **how)
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
    said = dict(zip(own["task_id"], own["answer"], strict=True))
    how = {"seed": seed, "resamples": resamples}
    return own, {
        "tasks": len(tasks),
        "accuracy": accuracy_by_kind(own, baselines, **how),
        "robustness": robustness(own),
        "hallucination": _hallucination(tasks, said, **how),
        "recognised": round(float(np.mean(taken)), 6) if taken else None,
        "languages": measure_languages(tasks, said),
        "protocol": PROTOCOL,
    }


def _hallucination(tasks: Sequence[Mapping], said: Mapping[str, str], **how: int) -> dict | None:
    """CHAIR-RS of the open answers; None without any."""
    open_ones = {task["task_id"]: task["truth"]["there"] for task in tasks if "there" in task["truth"]}
    return chair_rs({name: said[name] for name in open_ones}, open_ones, **how) if open_ones else None


def read_answers(folder: Path, names: Sequence[str]) -> dict[str, list[dict]]:
    """name -> its answers to tasks, with ANSWER_KEYS, of those other models that gave any.

    Args:
        folder: of the other models, a folder each.

    Raises:
        ValueError: a line that is no answer; names the file and the line.
    """
    found = {}
    for file in (folder / name / ANSWERS for name in names):
        rows = read_json_lines(file) if file.is_file() else []
        for number, row in enumerate(rows, start=1):
            row = row if isinstance(row, dict) else {}
            missing = [key for key in ANSWER_KEYS if not isinstance(row.get(key), str)]
            if missing:
                again = f"`dvc repro -f run_model@{file.parent.name}` makes it anew"
                raise ValueError(f"{file}: line {number}: {', '.join(missing)} missing or no text: {again}")
        if rows:
            found[file.parent.name] = rows
    return found


def measure_others(
    tasks: Sequence[Mapping],
    others: Mapping[str, Sequence[Mapping]],
    scores: pd.DataFrame,
    *,
    seed: int,
    resamples: int = 1000,
    detect: Detect | None = None,
) -> dict[str, dict]:
    """name -> ``tasks``, ``accuracy`` and ``hallucination`` of another model's answers, as ``measure_answers`` has them.

    Where the captioner answered tasks, those count that both answered, and its own right answers and the difference to them
    stand in ``accuracy`` as a baseline's do. An answer that cannot be read as one counts as wrong.

    Args:
        tasks: all, of any split.
        others: of ``read_answers``. Answers to what is no task any more are left out, and so is a model without others.
        scores: of the captioner's, as ``score_answers`` gives them; may be empty.
        detect: as for ``measure_answers``.
    """
    measured, how = {}, {"seed": seed, "resamples": resamples}
    beside = scores.set_index("task_id", drop=False)
    for name, rows in others.items():
        said = {tuple(row[key] for key in ANSWER_KEYS[:3]): row["answer"] for row in rows}
        key_of = {task["task_id"]: tuple(task[key] for key in ANSWER_KEYS[:3]) for task in tasks}
        own = [task for task in tasks if key_of[task["task_id"]] in said]
        own = [task for task in own if task["task_id"] in beside.index] if len(beside) else own
        if not own:
            continue
        answers = {task["task_id"]: said[key_of[task["task_id"]]] for task in own}
        same = {OWN: beside.loc[list(answers)].reset_index(drop=True)} if len(beside) else {}
        found = accuracy_by_kind(score_answers(own, answers, detect=detect), same, **how)
        measured[name] = {"tasks": len(own), "accuracy": found, "hallucination": _hallucination(own, answers, **how)}
    return measured


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
