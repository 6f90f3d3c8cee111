"""Instructions with answers that are known to be right, made by rule from what is known of the images.

A task is a line of ``tasks.jsonl``:

``{"task_id": "test/presence/0003/11", "question": "test/presence/0003", "image_id": ..., "source": ..., "split": "test",
"kind": "presence", "wording": 11, "held_out": true, "instruction": "Can you spot an airplane from above?",
"answer": "yes", "truth": {"value": "yes", "choices": ["yes", "no"], "thing": "airplane"}, "language": "en"}``

``wording`` numbers a kind's wordings: those for training first, then as many that training never sees, which validation
and test use. Tasks of one ``question`` differ in their wording alone. ``truth`` has what an answer is scored by
(``rsvlm.scoring.instructions``): ``choices`` where the question is a closed one, ``there`` (all that the references and the
map name) where an answer may name anything. ``language`` is the answer's.

The splits are those of the images. Questions with two answers come in pairs, one image for each answer, so that neither the
kind nor the thing asked for tells the answer. Validation and test take things and answers in turn, so a score there is one
over things and answers alike, not over what is frequent. ``where`` is about the upright image: training and answering must take its
upright view. A task of ``compare_images`` is about two images of a split and source: its line has ``second_image_id``, too.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rsvlm.data.image_facts import Facts
from rsvlm.data.instruction_kinds import KINDS, NO, YES, Question, Table, wordings
from rsvlm.data.names import SPLITS
from rsvlm.data.task_files import SECOND_IMAGE
from rsvlm.files import write_json, write_json_lines
from rsvlm.settings import TaskSettings, closest_name

ALL = "all"  # kinds


def make_tasks(facts: Iterable[Facts], settings: TaskSettings) -> list[dict]:
    """Tasks of all splits, as lines of ``tasks.jsonl``, in the order train, val, test.

    Raises:
        ValueError: a kind that is none; names the closest one.
    """
    kinds = list(KINDS) if settings.kinds == [ALL] else settings.kinds
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise ValueError(f"kinds: unknown {', '.join(map(repr, unknown))}{closest_name(unknown[0], KINDS)}")
    facts = list(facts)
    table = Table(Counter(name for one in facts for name in one.present), len(facts))
    tasks = []
    for split in SPLITS:
        for source in sorted({one.source for one in facts if one.split == split}):
            own = [one for one in facts if (one.split, one.source) == (split, source)]
            units = {kind: _units(own, kind, table, settings.seed) for kind in kinds}
            chosen = _fill_images(units, settings) if split == "train" else _take_each(units, settings)
            tasks += _worded(chosen, split, source, settings)
    return tasks


def _units(facts: Sequence[Facts], kind: str, table: Table, seed: int) -> list[list[Question]]:
    """A kind's questions in random order, alone or, where they have sides, two at a time, one of each side."""
    draw = random.Random(f"{seed} {kind} {facts[0].split} {facts[0].source}" if facts else "")
    groups: dict[tuple, dict[bool, list[Question]]] = defaultdict(lambda: {True: [], False: []})
    units, table = [], replace(table, others=facts)
    for one in facts:
        for question in KINDS[kind](one, table, random.Random(f"{seed} {kind} {one.image_id}")):
            if question.pair:
                groups[question.pair][question.side].append(question)
            else:
                units.append([question])
    for pair in sorted(groups, key=repr):
        sides = [draw.sample(own, len(own)) for own in groups[pair].values()]
        units += [list(both) for both in zip(*sides, strict=False)]
    draw.shuffle(units)
    return units


def _fill_images(units: Mapping[str, list[list[Question]]], settings: TaskSettings) -> list[Question]:
    """Kinds in turn, until no image takes another task; an image gets a kind again only when all kinds are through."""
    taken, chosen = Counter(), []
    met: Counter = Counter()
    waiting = {kind: list(reversed(own)) for kind, own in units.items()}
    for again in (1, settings.tasks_per_image):
        left = {kind: [] for kind in waiting}
        while any(waiting.values()):
            for kind, own in waiting.items():
                while own:
                    unit = own.pop()
                    ids = [question.facts.image_id for question in unit]
                    full = any(taken[one] >= settings.tasks_per_image for one in ids)
                    if not full and all(met[kind, one] < again for one in ids):
                        taken.update(ids)
                        met.update((kind, one) for one in ids)
                        chosen += unit
                        break
                    if not full:
                        left[kind].append(unit)
        waiting = {kind: list(reversed(own)) for kind, own in left.items()}
    return chosen


def _take_each(units: Mapping[str, list[list[Question]]], settings: TaskSettings) -> list[Question]:
    """So many questions a kind, of as many images and things as there are."""
    most, chosen = max(1, settings.test_tasks // settings.wordings), []
    for own in units.values():
        met: Counter = Counter()
        waiting, taken = own[: 50 * most], []
        while waiting and len(taken) < most:
            # The one whose images and whose answer or thing were asked least so far; the first of equals
            best = min(range(len(waiting)), key=lambda place: sum(met[key] for key in _keys(waiting[place])))
            unit = waiting.pop(best)
            met.update(_keys(unit))
            taken += unit
        chosen += taken
    return chosen


def _keys(unit: Sequence[Question]) -> list[tuple]:
    keys = [key for one in unit for key in (("image", one.facts.image_id), ("about", *(one.pair or (one.answer,))))]
    return keys + [("image", one.second) for one in unit if one.second]


def _worded(questions: Sequence[Question], split: str, source: str, settings: TaskSettings) -> list[dict]:
    """The questions as tasks: one wording in training, several held-out ones elsewhere."""
    tasks, number = [], Counter()
    for question in questions:
        number[question.kind] += 1
        name = f"{split}/{source}/{question.kind}/{number[question.kind]:05d}"
        draw = random.Random(f"{settings.seed} {name}")
        known = wordings()[question.form]
        start = len(known["train"]) if split != "train" else 0
        own = known["train" if split == "train" else "held_out"]
        for place in sorted(draw.sample(range(len(own)), 1 if split == "train" else min(settings.wordings, len(own)))):
            tasks.append(
                {
                    "task_id": f"{name}/{start + place}",
                    "question": name,
                    "image_id": question.facts.image_id,
                    **({SECOND_IMAGE: question.second} if question.second else {}),
                    "source": source,
                    "split": split,
                    "kind": question.kind,
                    "wording": start + place,
                    "held_out": split != "train",
                    "instruction": own[place].format(**question.words),
                    "answer": question.answer,
                    "truth": dict(question.truth),
                    "language": question.language,
                }
            )
    return tasks


def save_tasks(tasks: Sequence[Mapping], folder: Path, settings: TaskSettings) -> dict:
    """Write ``tasks.jsonl`` and ``about.json``; returns what the latter holds: counts by source, split and kind."""
    counts = Counter((task["source"], task["split"], task["kind"]) for task in tasks)
    about: dict = {"tasks": len(tasks), "questions": len({task["question"] for task in tasks}), "by_source": {}}
    for (source, split, kind), number in sorted(counts.items()):
        about["by_source"].setdefault(source, {}).setdefault(split, {})[kind] = number
    closed = Counter((task["split"], task["answer"]) for task in tasks if task["truth"].get("choices") == [YES, NO])
    about["yes_share"] = {
        split: round(closed[split, YES] / (closed[split, YES] + closed[split, NO]), 6)
        for split in SPLITS
        if closed[split, YES] + closed[split, NO]
    }
    about["settings"] = dict(settings)
    write_json_lines(folder / "tasks.jsonl", tasks)
    write_json(folder / "about.json", about)
    return about
