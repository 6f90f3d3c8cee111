"""Files of tasks (``rsvlm.data.instructions``) read back, each image of a task with it."""

from collections.abc import Container, Mapping, Sequence
from pathlib import Path

from rsvlm.data.table import evenly_spaced
from rsvlm.files import read_json_lines

TWO_IMAGES = "compare_images"  # the kind whose tasks are about two images
SECOND_IMAGE = "second_image_id"  # the key of such a task
KEYS = ("image_id", "split", "kind", "instruction")  # of every task, among others


def load_tasks(path: Path, split: str | None = None, *, images: Container[str] | None = None) -> list[dict]:
    """The tasks of ``tasks.jsonl``, of one split or of all.

    Args:
        images: as for ``check_images``.

    Raises:
        FileNotFoundError: the stage make_instructions has not run.
        ValueError: a line is no task, or as ``check_images``; names the file and the line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no tasks; run the stage make_instructions (notebook 15_make_instructions)")
    tasks = read_json_lines(path)
    for number, task in enumerate(tasks, start=1):
        missing = [key for key in KEYS if not (isinstance(task, dict) and isinstance(task.get(key), str))]
        if missing:
            raise ValueError(f"{path}: line {number}: {', '.join(missing)} missing: run make_instructions again")
        check_images(task, images, f"{path}: line {number}")
    return [task for task in tasks if split in (None, task["split"])]


def thin_tasks(tasks: Sequence[Mapping], split: str, most: int) -> list[Mapping]:
    """At most so many tasks of a split, whole questions (all wordings of each), evenly spaced; 0: all."""
    own = [task for task in tasks if task["split"] == split]
    if not most or len(own) <= most:
        return own
    questions = list(dict.fromkeys(task["question"] for task in own))
    kept = {questions[place] for place in evenly_spaced(len(questions), max(1, most * len(questions) // len(own)))}
    return [task for task in own if task["question"] in kept]


def images_of(task: Mapping) -> list[str]:
    """The ids of the image, or of the two images, that a task is about."""
    return [task[key] for key in ("image_id", SECOND_IMAGE) if key in task]


def check_images(task: Mapping, images: Container[str] | None, where: str) -> None:
    """Raise ValueError, which begins with ``where``, for a task that lacks an image.

    That is one about two images without another one as its second, or with an image that is none of ``images`` (the ids that
    there are; None: nobody knows).
    """
    second = task.get(SECOND_IMAGE)
    if second is not None or task.get("kind") == TWO_IMAGES:
        if not isinstance(second, str) or second in ("", task["image_id"]):
            raise ValueError(f"{where}: {SECOND_IMAGE} missing, or no other image's: run make_instructions again")
    for key in ("image_id", SECOND_IMAGE):
        if images is not None and key in task and task[key] not in images:
            raise ValueError(
                f"{where}: {key} is {task[key]!r}, which is no image of this study: run make_instructions again"
            )
