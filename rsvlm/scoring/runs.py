"""The captions that the study's runs have written, one file a run."""

from pathlib import Path

import pandas as pd

from rsvlm.files import read_json_lines

HUMAN = "human"
RESERVED = ("protocol", "paired")  # keys of the metrics file that are no runs
Runs = dict[str, dict[str, dict[str, str]]]  # run -> source -> image_id -> caption


def read_runs(folder: Path, table: pd.DataFrame) -> Runs:
    """run -> source -> {image_id: caption}, from all ``RUN.jsonl`` in a folder, for the rows of ``table``.

    Rows of images outside the table (another split) are left aside.

    Raises:
        FileNotFoundError: no run in the folder.
        ValueError: an image of the table without a caption, an image twice, a row of another shape; names both.
    """
    paths = sorted(folder.glob("*.jsonl"))
    if not paths:
        raise FileNotFoundError(f"{folder}: no generated captions (*.jsonl); run the stage generate_captions first")
    source_of = dict(zip(table["image_id"], table["source"]))
    runs: Runs = {}
    for path in paths:
        if path.stem in (*RESERVED, HUMAN):
            raise ValueError(f"{path}: {path.stem!r} cannot be a run's name, the metrics use it; rename the file")
        captions = read_captions(path)
        missing = [image_id for image_id in source_of if image_id not in captions]
        if missing:
            raise ValueError(
                f"{path}: no caption for {len(missing)} of {len(source_of)} images, such as {missing[0]!r};"
                " run the stage generate_captions again"
            )
        by_source: dict[str, dict[str, str]] = {}
        for image_id, source in source_of.items():
            by_source.setdefault(source, {})[image_id] = captions[image_id]
        runs[path.stem] = by_source
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
        captions[image_id] = caption
    return captions
