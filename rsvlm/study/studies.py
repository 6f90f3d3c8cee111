"""Which study is in place: ``make use STUDY=ucm`` puts ``params/ucm.yaml`` in place of ``params.yaml``.

Plain Python, so that it works before the environment is installed.
"""

import argparse
import difflib
import subprocess
import sys
from pathlib import Path

from rsvlm.files import write_text
from rsvlm.study import paths

DEFAULT = "blue_marble"  # what params.yaml holds in a fresh clone


def study_names() -> list[str]:
    """Names of the studies in ``params/``, sorted."""
    return sorted(path.stem for path in (paths.ROOT / "params").glob("*.yaml"))


def study_file(name: str) -> Path:
    """The parameter file of a study; "default" is the study of a fresh clone.

    Raises:
        ValueError: there is no such study; names the closest and all.
    """
    wanted = DEFAULT if name == "default" else name
    names = study_names()
    if wanted not in names:
        close = difflib.get_close_matches(wanted, names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"params/: no study {name!r}{hint} Choose with STUDY=..., one of: default, {', '.join(names)}")
    return paths.ROOT / "params" / f"{wanted}.yaml"


def study_in_place() -> str | None:
    """The name of the study that params.yaml is a copy of; None when it was edited."""
    if not paths.PARAMS.is_file():
        return None
    text = paths.PARAMS.read_text(encoding="utf-8")
    same = [name for name in study_names() if study_file(name).read_text(encoding="utf-8") == text]
    return same[0] if same else None


def use_study(name: str) -> Path:
    """The parameter file that now stands in params.yaml.

    Raises:
        ValueError: no such study, or params.yaml holds edits that are neither committed nor one of the studies.
    """
    source = study_file(name)
    if paths.PARAMS.is_file() and study_in_place() is None and not _committed(paths.PARAMS):
        raise ValueError(
            f"{paths.PARAMS}: holds edits that are saved nowhere else. Keep them (`git commit params.yaml`, or"
            " `cp params.yaml params/mine.yaml`) or drop them (`git checkout params.yaml`), then try again"
        )
    write_text(paths.PARAMS, source.read_text(encoding="utf-8"))
    return source


def _committed(path: Path) -> bool:
    """Whether git has this very content as the file's last committed one."""
    try:
        known = subprocess.run(["git", "ls-files", "--error-unmatch", path.name], cwd=path.parent, capture_output=True)
        same = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", path.name], cwd=path.parent, capture_output=True)
    except FileNotFoundError:
        return False
    return known.returncode == 0 and same.returncode == 0


def main(arguments: list[str] | None = None) -> int:
    """``use NAME``: put a study in place."""
    parser = argparse.ArgumentParser(description="Put one of the studies of params/ in place of params.yaml.")
    parser.add_argument("command", choices=["use"])
    parser.add_argument("study")
    study = parser.parse_args(arguments).study
    try:
        source = use_study(study)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"params.yaml is now params/{source.name}: `make study` runs it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
