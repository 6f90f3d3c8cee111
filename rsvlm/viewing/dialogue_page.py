"""Turns of the dialogue on test images, drawn at random and recorded as they come, good and bad, as a page."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from rsvlm.data.task_files import SECOND_IMAGE
from rsvlm.models.capret import CapRet
from rsvlm.models.dialogue import ANSWER, Conversation, Seen, Unclear
from rsvlm.models.features import Features
from rsvlm.models.prompts import UPRIGHT, read_visual, tell_neighbours
from rsvlm.viewing.dialogues import words_of
from rsvlm.viewing.page import make_thumbnail, render_page


def draw_turns(tasks: Sequence[Mapping], count: int, seed: int) -> list[Mapping]:
    """At most so many tasks: kinds in turn, in each one at random, each of another image as long as there are any.

    None about two images: a dialogue is about one.
    """
    tasks = [task for task in tasks if SECOND_IMAGE not in task]
    generator = np.random.default_rng(seed)
    waiting: dict[str, list[Mapping]] = {}
    for place in generator.permutation(len(tasks)):
        waiting.setdefault(tasks[place]["kind"], []).append(tasks[place])
    chosen: list[Mapping] = []
    while any(waiting.values()) and len(chosen) < count:
        for kind in sorted(waiting):
            shown = {task["image_id"] for task in chosen}
            own = waiting[kind]
            if own and len(chosen) < count:
                place = next((place for place, task in enumerate(own) if task["image_id"] not in shown), 0)
                chosen.append(own.pop(place))
    return chosen


def record_turns(
    talk: Conversation, features: Features, tasks: Sequence[Mapping], near: Mapping[str, Sequence[str]] | None = None
) -> list[dict]:
    """What the model says to each task's instruction in a dialogue of its own.

    Where the dialogue does not know what is asked for, an answer is asked for, as a person would.

    Args:
        near: image id -> the neighbours' captions that instructions about it stand behind; None: they stand alone.

    Returns:
        A dict a task: ``task``, ``text``, ``said`` (the same, with what words do not say), ``note``, ``asked_again``.
    """
    turns = []
    for task in tasks:
        talk.start_afresh()
        told = tell_neighbours((near or {}).get(task["image_id"], ()))
        talk.give_image(task["image_id"], look_upright(talk.captioner, features, task["image_id"], told))
        asked_again, note = False, ""
        try:
            *_, said = talk.ask(task["instruction"])
        except Unclear:
            *_, said = talk.ask(task["instruction"], ANSWER)
            asked_again, note = True, "The dialogue first asked what was wanted. "
        own = {"text": said.text, "said": words_of(said), "note": note + said.note, "asked_again": asked_again}
        turns.append({"task": task, **own})
    talk.start_afresh()
    return turns


def look_upright(captioner: CapRet, features: Features, image_id: str, told: str = "") -> Seen:
    """What the model is given of an image for instructions alone: its features, upright, and what they stand behind."""
    visual = read_visual(features, features.rows([image_id]), UPRIGHT, grid=captioner.settings.grid_cells > 0)
    return Seen((visual,), told=told)


def turns_table(turns: Sequence[Mapping]) -> pd.DataFrame:
    """A row a turn: what was asked of which image, what the model said, the true answer, how right it is (0 to 1).

    Args:
        turns: of ``record_turns``, and perhaps ``right`` of each.
    """
    columns = ["image", "you", "model", "true", "right"]
    rows = [
        (turn["task"]["image_id"], turn["task"]["instruction"], turn["said"], turn["task"]["answer"], turn.get("right"))
        for turn in turns
    ]
    return pd.DataFrame(rows, columns=columns)


def render_dialogue_page(
    turns: Sequence[Mapping], paths: Mapping[str, str], *, lead: str, about: str, pixels: int = 192
) -> str:
    """The HTML text of the page; ``write_page`` writes it.

    Args:
        turns: of ``record_turns``, and perhaps ``right`` (0 to 1) of each.
        paths: of the images, by id.
        lead: a sentence below the title.
        about: how the turns were drawn, at the page's foot.
    """
    cards = [
        {
            "picture": make_thumbnail(paths[turn["task"]["image_id"]], pixels),
            "name": turn["task"]["image_id"],
            "kind": turn["task"]["kind"].replace("_", " "),
            "instruction": turn["task"]["instruction"],
            "true": turn["task"]["answer"],
            "said": turn["said"],
            "note": turn["note"],
            "right": turn.get("right"),
        }
        for turn in turns
    ]
    return render_page("dialogue_turns.html", [], ["dialogue_turns.css"], terms={}, cards=cards, lead=lead, about=about)
