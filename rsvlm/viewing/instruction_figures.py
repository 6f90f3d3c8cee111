"""Tables and pictures of the instructions that were made: how many, in which words, and some with their images."""

import random
import textwrap
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from rsvlm.data.image_facts import Facts
from rsvlm.data.images import open_image
from rsvlm.data.names import SPLITS
from rsvlm.data.task_files import images_of
from rsvlm.viewing.plots import INK, figure, plain_text, shrink, without_axes
from rsvlm.viewing.results import Result, counted, listed, percent

NO_TASKS = "No instructions: `kinds` is empty."


def tasks_table(about: Mapping) -> pd.DataFrame:
    """Tasks by source and kind, a column a split.

    Args:
        about: what ``data/instructions/about.json`` holds.
    """
    rows = {
        (source, kind): [own.get(split, {}).get(kind, 0) for split in SPLITS]
        for source, own in about["by_source"].items()
        for kind in dict.fromkeys(kind for kinds in own.values() for kind in kinds)
    }
    index = pd.MultiIndex.from_tuples(rows, names=["source", "kind"]) if rows else None
    return pd.DataFrame(list(rows.values()), index=index, columns=list(SPLITS))


def wordings_table(tasks: Sequence[Mapping], kind: str) -> pd.DataFrame:
    """The wordings of a kind that occur, one example each, those of training first."""
    rows = {task["wording"]: task for task in tasks if task["kind"] == kind}
    return pd.DataFrame(
        [
            {"wording": number, "held out": task["held_out"], "example": task["instruction"], "answer": task["answer"]}
            for number, task in sorted(rows.items())
        ],
        columns=["wording", "held out", "example", "answer"],
    ).set_index("wording")


def draw_tasks(
    tasks: Sequence[Mapping], table: pd.DataFrame, *, most: int, seed: int, pixels: int = 160
) -> Figure | None:
    """Some tasks with their images, both where they are about two, as many kinds as fit, drawn at random; None without any.

    Args:
        table: with image_id and path.
    """
    by_kind: dict[str, list[Mapping]] = {}
    for task in tasks:
        by_kind.setdefault(task["kind"], []).append(task)
    draw = random.Random(seed)
    chosen = [draw.choice(by_kind[kind]) for kind in by_kind]
    chosen += draw.sample(list(tasks), min(len(tasks), max(0, most - len(chosen))))
    chosen = chosen[:most]
    if not chosen:
        return None
    paths = dict(zip(table["image_id"], table["path"], strict=True))
    columns = min(4, len(chosen))
    rows = -(-len(chosen) // columns)
    drawn, axes = figure(2.7 * columns, 3.6 * rows, rows=rows, columns=columns, squeeze=False)
    without_axes(axes)
    for own, task in zip(axes.flat, chosen):
        own.imshow(_beside([open_image(paths[image_id]) for image_id in images_of(task)], pixels))
        asked = textwrap.fill(task["instruction"], 38)
        said = "\n".join(textwrap.fill(line, 38) for line in task["answer"].splitlines()[:6])
        own.set_title(plain_text(f"{task['kind']}\n{asked}"), fontsize=7.5, fontweight="normal", loc="left")
        own.set_axis_on()  # a label below has room of its own, a text has none
        own.set(xticks=[], yticks=[])
        own.spines[:].set_visible(False)
        own.set_xlabel(plain_text(said), fontsize=7.5, fontweight="bold", loc="left", color=INK)
    return drawn


def _beside(images: Sequence[Image.Image], pixels: int) -> Image.Image:
    """The image small, or two beside each other, with a white gap, in the room of one."""
    small = [shrink(image, pixels // len(images)) for image in images]
    lefts = [sum(one.width + pixels // 16 for one in small[:place]) for place in range(len(small))]
    joined = Image.new("RGB", (lefts[-1] + small[-1].width, max(one.height for one in small)), "white")
    for left, one in zip(lefts, small, strict=True):
        joined.paste(one, (left, 0))
    return joined


def tasks_result(about: Mapping) -> Result:
    """What METRICS/make_instructions.json says, in two sentences."""
    if not about["tasks"]:
        return Result(NO_TASKS)
    by_split = {split: sum(sum(own.get(split, {}).values()) for own in about["by_source"].values()) for split in SPLITS}
    kinds = {kind for own in about["by_source"].values() for split in own.values() for kind in split}
    lines = [
        f"{counted(about['tasks'], 'task')} of {counted(len(kinds), 'kind')} from {listed(sorted(about['by_source']))}: "
        f"{by_split['train']:,} to train on, {by_split['val']:,} to choose by, {by_split['test']:,} to score."
    ]
    if about["yes_share"].get("test") is not None:
        lines.append(
            f"Of the test tasks that ask for yes or no, {percent(about['yes_share']['test'])} are answered yes; all their "
            "wordings are ones that training never sees."
        )
    return Result(" ".join(lines))


def facts_table(facts: Sequence[Facts], most: int = 20) -> pd.DataFrame:
    """Images that surely have a thing, and images that surely have not, by source; the most frequent things first."""
    rows: dict[tuple[str, str], dict[str, int]] = {}
    for one in facts:
        for column, names in (("there", one.present), ("not there", one.absent)):
            for name in names:
                own = rows.setdefault((one.source, name), {"there": 0, "not there": 0})
                own[column] += 1
    index = pd.MultiIndex.from_tuples(rows, names=["source", "thing"]) if rows else None
    table = pd.DataFrame(list(rows.values()), index=index, columns=["there", "not there"])
    return table.sort_values("there", ascending=False, kind="stable").head(most)
