"""The other models of a study: their entries in params.yaml, the files that they name, and what a failed one leaves.

DVC watches no path that only a parameter names. ``python -m rsvlm.study.models NAME``, a stage that always runs, writes
down what the files of an entry are like, so that a changed file, and an entry that failed, make its measurement run again.
"""

import argparse
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from rsvlm.disks import told_in_a_line
from rsvlm.files import read_json, whole_folder, write_json
from rsvlm.scoring.leak_flags import leak_flags
from rsvlm.scoring.runs import ABOUT, OF_ANSWERS
from rsvlm.settings import OtherModel, closest_name
from rsvlm.study import paths
from rsvlm.study.config import read_section

STAGE = "run_model"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,60}")
NAMES = ("encoder", "captioner")  # settings that are a name on the hub or a folder
FILES = (*NAMES, "weights", "adapter", "embeddings", "captions")  # settings that may name a file or a folder


def model_entry(models: Mapping[str, Mapping], name: str) -> OtherModel:
    """The checked entry of that name.

    Raises:
        ValueError: no such entry, a name that is no plain word, or a setting that cannot be; names the entry.
    """
    if name not in models:
        raise ValueError(f"models: no entry {name!r}{closest_name(name, models) if models else '; there is none'}")
    if not NAME.fullmatch(name):
        raise ValueError(f"models: {name!r}: a name may hold letters, digits, - and _ only; files are called by it")
    entry = models[name]
    if not isinstance(entry, Mapping):
        raise ValueError(f"models: {name}: expected settings such as `{{encoder: remoteclip-vit-b-32}}`, is {entry!r}")
    try:
        checked = OtherModel.of_mapping(entry)
        leak_flags(checked.trained_on, "", name, "test")  # refuses what is no part of a source
        if checked.tasks and name.casefold() in OF_ANSWERS:
            raise ValueError(f"'tasks': {name}.jsonl is a file of the study's own answers; give the model another name")
        return checked
    except ValueError as error:
        raise ValueError(f"models: {name}: {error}") from None


def check_models(values: Mapping, root: Path) -> None:
    """Check every entry of the section ``run_model``. Whether its files are there is told in its own row.

    Raises:
        ValueError: lists every entry that cannot be, and names that differ only in case.
    """
    problems = []
    for name in values["models"]:
        try:
            model_entry(values["models"], name)
        except ValueError as error:
            problems.append(str(error))
    if len({name.casefold() for name in values["models"]}) < len(values["models"]):
        problems.append("models: two names differ only in case; some disks do not tell them apart")
    if problems:
        raise ValueError("\n  ".join(problems))


def describe_files(entry: OtherModel, root: Path) -> dict[str, list]:
    """Path -> [size, time of change in ns] of every file that an entry names, in folders too; [] where none is."""
    found: dict[str, list] = {}
    for setting in FILES:
        named = getattr(entry, setting)
        if named is None:
            continue
        place = root / named
        if place.is_dir():
            files = sorted(path for path in place.rglob("*") if path.is_file())
            found |= {f"{named}/{path.relative_to(place).as_posix()}": _state(path) for path in files}
        elif place.is_file() or setting not in NAMES:
            found[named] = _state(place) if place.is_file() else []
    return found


def failed_tries(name: str) -> int:
    """How often the measurement of a model has failed, as its next run finds it written down."""
    file = paths.MODEL_FILES / f"{name}.json"
    return read_json(file)["failed_tries"] if file.is_file() else 0


def leave_reason(name: str, entry: OtherModel, reason: str) -> None:
    """Put the reason why a model could not be measured in the place of its measurement; paths from the project's root."""
    told = reason.replace(f"{paths.ROOT}{os.sep}", "")
    with whole_folder(paths.OTHER_MODELS / name) as scratch:
        write_json(
            scratch / ABOUT,
            {"name": name, "entry": dict(entry), "failed": told, "failed_tries": failed_tries(name) + 1},
        )


def _state(path: Path) -> list[int]:
    return [path.stat().st_size, path.stat().st_mtime_ns]


@told_in_a_line
def main() -> int:
    """Write build/model_files/NAME.json."""
    parser = argparse.ArgumentParser(description="Write down what the files of a model's entry are like.")
    parser.add_argument("name", help="an entry of `models` in the section run_model of params.yaml")
    name = parser.parse_args().name
    entry = model_entry(read_section(paths.PARAMS, STAGE)["models"], name)
    about = paths.OTHER_MODELS / name / ABOUT
    tries = read_json(about).get("failed_tries", 0) if about.is_file() else 0
    write_json(paths.MODEL_FILES / f"{name}.json", {"files": describe_files(entry, paths.ROOT), "failed_tries": tries})
    return 0


if __name__ == "__main__":
    sys.exit(main())
