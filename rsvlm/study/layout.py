"""The layout of params.yaml: values change, while comments, lists and nulls stay as they were written.

``dvc exp run -S`` writes the file anew with ruamel.yaml: ``null`` becomes nothing, ``[0.0, 1.0]`` a line an item, "a" 'a',
and comments inside a list of sources are lost. DVC has no hook there; so the first stage of an experiment, which knows
the commit that the experiment started from, puts that commit's text back with the changed values in it.
"""

import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

from rsvlm.files import write_text
from rsvlm.study.config import parameter_lines, read_params

BASELINE = "DVC_EXP_BASELINE_REV"  # DVC sets it for the stages of an experiment
BEFORE_COMMENT = re.compile(r" +#")
WITH_EXPONENT = re.compile(r"\b\d[\d.]*e[+-]?\d+\b")


def with_values(text: str, values: Mapping[str, Mapping]) -> str:
    """A text of parameters with other values: only the lines of values that differ change, comments stay.

    Args:
        values: section -> key -> value; what is not named keeps its value.

    Raises:
        ValueError: the text has no such section or key.
    """
    now = YAML(typ="safe", pure=True).load(text) or {}
    places = {(section, key): place for section, key, *place in _places(text)}
    changed = [
        (section, key, value)
        for section, own in values.items()
        for key, value in own.items()
        if key not in now.get(section, {}) or now[section][key] != value
    ]
    unknown = [f"{section}.{key}" for section, key, _ in changed if (section, key) not in places]
    if unknown:
        raise ValueError(f"no such parameter: {', '.join(unknown)}")
    lines = text.splitlines()
    for section, key, value in sorted(changed, key=lambda one: places[one[:2]][0].start_mark.line, reverse=True):
        name, node = places[section, key]
        first, last = name.start_mark.line, _last_line(name, node)
        on_line = node.start_mark.line == first and node.end_mark.line == last  # else the comment stands behind the key
        behind = lines[last][node.end_mark.column :] if on_line else lines[first][name.end_mark.column :]
        comment = behind.partition("#")[2].strip()
        indent = lines[first][: name.start_mark.column]
        lines[first : last + 1] = [indent + line for line in parameter_lines(key, value, comment)]
    return "\n".join(lines) + "\n"


def with_own_lines(fresh: str, text: str) -> str:
    """A fresh text of parameters with the comment lines that a person wrote into the sections of another.

    Each stands above the line that it stood above, or at its section's end where there is no such line any more.
    """
    waiting: dict[tuple[str, str, int], list[str]] = {}
    comments: list[str] = []
    before = ""
    for line, place in _numbered(f"{text}\nend:"):
        if line.startswith((" ", "\t")) and line.lstrip().startswith("#"):
            comments.append(line)
        elif line.strip() and not line.startswith("#"):
            if comments:
                waiting.setdefault(place if line.startswith(" ") else (before, "", 0), []).extend(comments)
            comments, before = [], place[0]
    lines, before = [], ""
    for line, place in _numbered(fresh):
        if line.startswith(" "):
            lines += waiting.pop(place, [])
        elif before:  # behind its last line
            lines += [own for left in [left for left in waiting if left[0] == before] for own in waiting.pop(left)]
        before = place[0] if line.strip() and not line.startswith("#") else ""
        lines.append(line)
    return "\n".join(lines)


def restore_layout(params: Path) -> bool:
    """Whether params.yaml got back its layout, in an experiment whose parameters were set with ``-S``.

    A file with edits beyond values that no commit holds, such as new comments, stays as it is.
    """
    text, before = params.read_text(encoding="utf-8"), _committed_text(params, os.environ.get(BASELINE))
    if before is None or before == text:
        return False
    values = read_params(params)
    try:
        restored = with_values(before, values)
    except ValueError:  # a section or a key more than the commit has
        return False
    if restored == text or _plain(_as_dvc_writes(before, values)) != _plain(text):
        return False
    write_text(params, restored)
    return True


def _places(text: str) -> Iterator[tuple[str, str, Node, Node]]:
    """Section, key and the two nodes of each parameter, which know their lines and columns."""
    top = YAML(typ="safe", pure=True).compose(text)
    for section, own in top.value if isinstance(top, MappingNode) else []:
        for key, value in own.value if isinstance(own, MappingNode) else []:
            yield section.value, key.value, key, value


def _numbered(text: str) -> Iterator[tuple[str, tuple[str, str, int]]]:
    """Each line with its section, its words without a comment, and how many such lines of the section came before."""
    section, met = "", Counter()
    for line in text.split("\n"):
        words = BEFORE_COMMENT.split(line, maxsplit=1)[0].strip()
        if line and not line.startswith((" ", "\t", "#")):
            section = words
        yield line, (section, words, met[section, words])
        met[section, words] += 1


def _last_line(key: Node, node: Node) -> int:
    """The last line of a value: a block's own end mark lies behind the comments that follow it."""
    if isinstance(node, ScalarNode) or node.flow_style:
        if node.start_mark.index == node.end_mark.index:  # nothing there: null
            return key.end_mark.line
        return node.end_mark.line - (getattr(node, "style", None) in ("|", ">"))
    last = node.value[-1]
    return _last_line(*last) if isinstance(node, MappingNode) else _last_line(last, last)


def _committed_text(file: Path, revision: str | None) -> str | None:
    """The file as a commit has it; None without such a commit, file or git."""
    if not revision:
        return None
    try:
        shown = subprocess.run(["git", "show", f"{revision}:./{file.name}"], cwd=file.parent, capture_output=True)
    except OSError:
        return None
    return shown.stdout.decode("utf-8") if shown.returncode == 0 else None


def _as_dvc_writes(text: str, values: Mapping[str, Mapping]) -> str:
    """What ``dvc exp run -S`` makes of a text for these values."""
    from dvc.utils.collections import merge_dicts  # here: an experiment alone needs them
    from dvc.utils.serialize import modify_yaml

    now = YAML(typ="safe", pure=True).load(text)
    changed = {
        section: {
            key: value for key, value in own.items() if isinstance(value, list | dict) or now[section][key] != value
        }
        for section, own in values.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "params.yaml"
        file.write_text(text, encoding="utf-8")
        with modify_yaml(file) as data:
            merge_dicts(data, changed)
        return file.read_text(encoding="utf-8")


def _plain(text: str) -> list[str]:
    """The lines without what depends on an earlier value: the column of a comment, a number written as 4.0e-4."""
    lines = (BEFORE_COMMENT.sub(" #", line.rstrip()) for line in text.splitlines())
    return [WITH_EXPONENT.sub(lambda number: repr(float(number[0])), line) for line in lines]
