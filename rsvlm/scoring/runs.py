"""The study's runs and retrieval methods, how they are called, and the captions of the runs, one file each."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from rsvlm.files import read_json_lines
from rsvlm.safe_text import fault_in


@dataclass(frozen=True)
class Named:
    """What a run or a retrieval method is called, in menus, figures and tables alike.

    Attributes:
        name: the one name.
        note: what it is, in one sentence, for readers who see only the page.
        unfair: why it is never held against a published figure; empty where it may be.
    """

    name: str
    note: str
    unfair: str = ""


HUMAN = "human"
RUNS = {  # in the order of tables and menus
    "captioner": Named("captioner", "the trained model of this study"),
    "beam": Named("beam", "the trained model's first beam, without the choice among candidates"),
    "shuffled": Named(
        "shuffled",
        "the same trained model, shown a wrong image: what it says without looking",
        unfair="shown wrong images on purpose",
    ),
    "consensus": Named(
        "consensus",
        "no language model: of the captions of the nearest training images, the one most like the others",
    ),
    "nearest": Named("nearest", "no language model: a caption of the nearest training image"),
    "constant": Named("constant", "one caption for all images: the training caption that agrees best with all others"),
    HUMAN: Named(
        "held-out reference",
        "one reference held out and scored against the image's others: a human's, where people wrote them",
        unfair="scored against one reference fewer",
    ),
}
METHODS = {  # likewise
    "reranked": Named(
        "combined, re-ranked",
        "the combined method's first images for a text, re-ordered with the captioner's likelihood of it",
    ),
    "combined": Named(
        "combined",
        "weighted sum of the dual encoder, [RET] and the captions under similar training images, less what an answer "
        "scores on average against training items; weights chosen on validation",
    ),
    "dual_encoder": Named("dual encoder", "cosine of the adapted image and text encoders"),
    "ret": Named("[RET]", "cosine in the captioner's retrieval space, the text read at its [RET] token"),
    "ceiling": Named(
        "ceiling",
        "what a model that knows every test caption by heart gets: captions that stand under several images, told "
        "apart at random, keep it below 100",
    ),
}
STUDY_RUNS = tuple(run for run in RUNS if run != HUMAN)  # the outs of generate_captions
RESERVED = (
    "protocol",
    "paired",
    "negation",
    "parameters",
    "try",
)  # keys of the metrics files that are no runs and no methods
# In another model's folder: what it is and cost, or why it could not be measured; its scores, and its answers to tasks
ABOUT, SCORES, ANSWERS = "about.json", "metrics.json", "answers.jsonl"
ANSWER_KEYS = ("task_id", "image_id", "instruction", "answer")  # of such an answer
OF_ANSWERS = ("captioner", "majority", "blind", "shuffled", "validation")  # sets of answers that are the study's own
Runs = dict[str, dict[str, dict[str, str]]]  # run -> source -> image_id -> caption


def named(table: Mapping[str, Named], name: str) -> Named:
    """The entry of RUNS or METHODS; another model's run stands under its own name."""
    return table.get(name) or Named(name, "another model's, from user/")


def in_order(table: Mapping[str, Named], names: Iterable[str]) -> list[str]:
    """The runs or methods among these keys of a metrics file: those of the table in its order, others by name."""
    places = {name: place for place, name in enumerate(table)}
    own = set(names) - set(RESERVED)
    return sorted(own, key=lambda name: (places.get(name, len(places)), name))


def run_files(generated: Path, others: Path) -> dict[str, Path]:
    """run -> its file, by name: the study's own runs in ``generated``, other models' captions in ``others``.

    Raises:
        ValueError: a file in ``generated`` that the study did not make, or one in ``others`` whose name is taken.
    """
    own = {path.stem: path for path in generated.glob("*.jsonl") if path.stem in STUDY_RUNS}
    foreign = [path for path in sorted(generated.glob("[!.]*")) if path not in own.values()]
    if foreign:
        raise ValueError(
            f"{foreign[0]}: not a run of this study, whose stages alone write into {generated};"
            f" other models' captions belong into {others} (move it there, under a name of its own)"
        )
    files = dict(own)
    for path in others.glob("*.jsonl"):
        name = path.stem.casefold()
        if name in (*RESERVED, HUMAN):
            raise ValueError(f"{path}: {path.stem!r} cannot be a run's name, the metrics use it; rename the file")
        if name in STUDY_RUNS:
            raise ValueError(
                f"{path}: {name!r} is a run of the study ({generated / name}.jsonl); rename the file, to say its model"
            )
        files[path.stem] = path
    return dict(sorted(files.items()))


def read_runs(generated: Path, others: Path, table: pd.DataFrame) -> Runs:
    """run -> source -> {image_id: caption}, from the files of ``run_files``, for the rows of ``table``.

    Rows of images outside the table (another split) are left aside.

    Raises:
        FileNotFoundError: the study has no run yet.
        ValueError: as ``run_files``; an image of the table without a caption, an image twice, a row of another shape;
            names file and line or image.
    """
    files = run_files(generated, others)
    if not any(path.parent == generated for path in files.values()):
        raise FileNotFoundError(f"{generated}: no generated captions (*.jsonl); run the stage generate_captions first")
    source_of = dict(zip(table["image_id"], table["source"]))
    runs: Runs = {}
    for run, path in files.items():
        captions = read_captions(path)
        missing = [image_id for image_id in source_of if image_id not in captions]
        if missing:
            raise ValueError(
                f"{path}: no caption for {len(missing)} of {len(source_of)} images, such as {missing[0]!r};"
                f" {'run the stage generate_captions again' if run in STUDY_RUNS else 'add them, or take the file away'}"
            )
        by_source: dict[str, dict[str, str]] = {}
        for image_id, source in source_of.items():
            by_source.setdefault(source, {})[image_id] = captions[image_id]
        runs[run] = by_source
    return runs


def read_captions(path: Path) -> dict[str, str]:
    """image_id -> caption of one run's file.

    Raises:
        ValueError: a row without image_id or caption, a caption that is no text, an image twice; names file and line.
    """
    captions: dict[str, str] = {}
    for number, row in enumerate(read_json_lines(path), start=1):
        image_id, caption = (row.get("image_id"), row.get("caption")) if isinstance(row, dict) else (None, None)
        if not isinstance(image_id, str) or not isinstance(caption, str):
            raise ValueError(f'{path}: line {number}: expected {{"image_id": text, "caption": text}}')
        if image_id in captions:
            raise ValueError(f"{path}: line {number}: second caption for {image_id!r}")
        if fault := fault_in(caption, breaks=True):
            raise ValueError(f"{path}: line {number}: the caption of {image_id!r} holds {fault}; take it out")
        captions[image_id] = caption
    return captions
