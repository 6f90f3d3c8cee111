"""The studies: files in ``params/`` that hold what differs from the default study, one of them whole in params.yaml.

``rsvlm study use ucm`` (or ``make use STUDY=ucm``) writes ``params.yaml``, ``rsvlm study diff ucm`` shows what differs,
``rsvlm study check``, the first stage, says what does not fit in any section;
``rsvlm study adopt scratch/40_finetune_lora`` takes a try's changed parameters over, ``rsvlm study sync`` writes anew what is
made of the settings: notebooks' parameters cells, the comments of params.yaml.
"""

import argparse
import functools
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

import nbformat

from rsvlm.disks import told_in_a_line
from rsvlm.files import write_text
from rsvlm.settings import closest_name
from rsvlm.study import paths
from rsvlm.study.config import (
    PARAMETERS_TAG,
    check_params,
    check_section,
    defaults,
    parameters_cell,
    params_text,
    read_params,
)
from rsvlm.study.layout import restore_layout, with_own_lines, with_values
from rsvlm.study.settings import SECTIONS
from rsvlm.study.strip import as_text
from rsvlm.study.workspace import changes_of

FITS = "every section of params.yaml fits"
DEFAULT = "blue_marble"  # what params.yaml holds in a fresh clone
HEAD = "# Every key of a section is a parameter of the notebook of that name; `make use STUDY={name}` writes this file."


def study_names() -> list[str]:
    """Names of the studies in ``params/``, sorted."""
    return sorted(path.stem for path in (paths.ROOT / "params").glob("*.yaml"))


def study_file(name: str) -> Path:
    """The file of a study's differences; "default" is the study of a fresh clone.

    Raises:
        ValueError: there is no such study; names the closest and all.
    """
    wanted = DEFAULT if name == "default" else name
    names = study_names()
    if wanted not in names:
        raise ValueError(
            f"params/: no study {name!r}{closest_name(wanted, names)}. Choose with STUDY=..., one of: default, {', '.join(names)}"
        )
    return paths.ROOT / "params" / f"{wanted}.yaml"


def study_params(name: str) -> dict[str, dict]:
    """All sections of a study whole: what its file changes, and the default study's values for the rest.

    Raises:
        ValueError: no such study, or a section, name or value in its file that cannot be.
    """
    changes = checked_changes(read_params(study_file(name)), study_file(name))
    return {section: defaults(kind) | changes.get(section, {}) for section, kind in SECTIONS.items()}


def study_text(name: str) -> str:
    """The whole parameter file of a study, as params.yaml holds it. Raises as ``study_params``."""
    file = study_file(name)
    head = [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    return params_text(study_params(name), "\n".join([*head, HEAD.format(name=file.stem)]))


def checked_changes(changes: Mapping[str, Mapping], file: Path) -> dict[str, dict]:
    """What a file of differences changes, each value as its setting has it.

    Raises:
        ValueError: a section or name that does not exist, or a value that cannot be; names the file.
    """
    for section in changes:
        if section not in SECTIONS:
            raise ValueError(f"{file}: no section {section!r}{closest_name(section, SECTIONS)}")
    checked = {}
    for section, values in changes.items():
        kind = SECTIONS[section]
        whole = check_section(
            defaults(kind) | dict(values), kind, file=str(file), section=section, notebook="its notebook"
        )
        checked[section] = {key: whole[key] for key in values}
    return checked


def study_in_place() -> str | None:
    """The name of the study that params.yaml holds; None when it was edited."""
    if not paths.PARAMS.is_file():
        return None
    text = paths.PARAMS.read_text(encoding="utf-8")
    return next((name for name in study_names() if study_text(name) == text), None)


def use_study(name: str) -> Path:
    """The file of the study that now stands, whole, in params.yaml.

    Raises:
        ValueError: no such study, or params.yaml holds edits that are neither committed nor one of the studies.
    """
    text = study_text(name)
    if paths.PARAMS.is_file() and study_in_place() is None and not _committed(paths.PARAMS):
        raise ValueError(
            f"{paths.PARAMS}: holds edits that are saved nowhere else. Keep them (`git commit params.yaml`, or"
            " `cp params.yaml params/mine.yaml`) or drop them (`git checkout params.yaml`), then try again"
        )
    write_text(paths.PARAMS, text)
    return study_file(name)


def differences(first: Mapping[str, Mapping], second: Mapping[str, Mapping]) -> list[tuple[str, object, object]]:
    """(section.key, value, value) of what differs between two whole files of parameters; None where it is missing."""
    keys = [(section, key) for section in SECTIONS for key in SECTIONS[section].model_fields]
    pairs = [(f"{s}.{k}", first.get(s, {}).get(k), second.get(s, {}).get(k)) for s, k in keys]
    return [pair for pair in pairs if pair[1] != pair[2]]


def show_differences(name: str | None) -> list[str]:
    """A line for each parameter in which a study differs from the default one; None: params.yaml as it is now."""
    other = read_params(paths.PARAMS) if name is None else study_params(name)
    found = differences(study_params("default"), other)
    if not found:
        return [f"{name or 'params.yaml'}: the default study, nothing differs"]
    short = functools.partial(textwrap.shorten, width=60, placeholder=" …")
    rows = [("", "default", name or "params.yaml"), *((key, short(str(a)), short(str(b))) for key, a, b in found)]
    wide = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return [f"{key:<{wide[0]}}  {a:<{wide[1]}}  {b}".rstrip() for key, a, b in rows]


def adopt(folder: Path) -> list[str]:
    """A line for each parameter of params.yaml that changed: what a person changed in a notebook run by hand.

    Raises:
        FileNotFoundError, ValueError: see ``changes_of``; or the values do not fit together with the others.
    """
    stage, changed = changes_of(folder)
    text = paths.PARAMS.read_text(encoding="utf-8")
    before = read_params(paths.PARAMS)
    whole = with_values(text, {stage: changed})
    checked_changes({stage: before[stage] | changed}, paths.PARAMS)
    write_text(paths.PARAMS, whole)
    return [f"{stage}.{key}: {before[stage].get(key)} -> {value}" for key, value in changed.items()]


def sync() -> list[Path]:
    """The files that changed: params.yaml with today's meanings behind its values, notebooks' parameters cells.

    Comments on lines of their own stay.

    Raises:
        ValueError: params.yaml has a name or a value that cannot be.
    """
    changed = []
    text = paths.PARAMS.read_text(encoding="utf-8")
    whole = with_own_lines(params_text(checked_changes(read_params(paths.PARAMS), paths.PARAMS), text), text)
    if whole != text:
        write_text(paths.PARAMS, whole)
        changed.append(paths.PARAMS)
    for stage, kind in SECTIONS.items():
        for path in paths.NOTEBOOKS.glob(f"[0-9][0-9]_{stage}.ipynb"):
            notebook = nbformat.read(path, as_version=4)
            cell = next(cell for cell in notebook.cells if PARAMETERS_TAG in cell.metadata.get("tags", []))
            if cell.source != parameters_cell(kind):
                cell.source = parameters_cell(kind)
                write_text(path, as_text(notebook))
                changed.append(path)
    return changed


def _committed(path: Path) -> bool:
    """Whether git has this very content as the file's last committed one."""
    try:
        known = subprocess.run(["git", "ls-files", "--error-unmatch", path.name], cwd=path.parent, capture_output=True)
        same = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", path.name], cwd=path.parent, capture_output=True)
    except FileNotFoundError:
        return False
    return known.returncode == 0 and same.returncode == 0


@told_in_a_line
def main(arguments: list[str] | None = None) -> int:
    """``use NAME``, ``diff [NAME]``, ``check``, ``adopt FOLDER``, ``sync`` or ``experiments ...``."""
    parser = argparse.ArgumentParser(prog="rsvlm study", description="The studies of params/ and params.yaml.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("use", help="write a study whole into params.yaml").add_argument("study")
    commands.add_parser("diff", help="what a study, or params.yaml, changes in the default study").add_argument(
        "study", nargs="?"
    )
    commands.add_parser(
        "adopt", help="take what was changed in a notebook run by hand over into params.yaml"
    ).add_argument("folder", type=Path, help="such as scratch/40_finetune_lora")
    commands.add_parser("check", help="hold every section of params.yaml against its notebook").add_argument(
        "--out", type=Path, help="a file that says so when all fits"
    )
    commands.add_parser("sync", help="write notebooks' parameters cells and comments of params.yaml anew")
    commands.add_parser(
        "plan", help="memory, steps and hours of a study's trainings on larger GPUs, computed"
    ).add_argument("study")
    commands.add_parser("experiments", help="what dvc exp run has tried, side by side", add_help=False)
    chosen, rest = parser.parse_known_args(arguments)
    if rest and chosen.command != "experiments":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if chosen.command == "experiments":
        from rsvlm.study.experiments import main as show_experiments  # here: it asks DVC, which takes seconds

        return show_experiments(rest)
    if chosen.command == "plan":
        from rsvlm.study.plan import plan  # here: it imports torch

        print("\n".join(plan(chosen.study, study_params(chosen.study))))
    elif chosen.command == "use":
        source = use_study(chosen.study)
        print(f"params.yaml now holds params/{source.name} whole: `make study` runs it")
    elif chosen.command == "diff":
        print("\n".join(show_differences(chosen.study)))
    elif chosen.command == "check":
        restore_layout(paths.PARAMS)  # in an experiment, whose `-S` has spoilt it
        check_params(paths.PARAMS, paths.ROOT)
        if chosen.out:
            write_text(chosen.out, FITS + "\n")
        print(FITS)
    elif chosen.command == "adopt":
        print("\n".join([*adopt(chosen.folder), "params.yaml holds them now; `make study` runs what they change"]))
    else:
        print("\n".join(str(path.relative_to(paths.ROOT)) for path in sync()) or "all up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
