"""Parameters of a stage: what params.yaml says, held against the stage's settings; and the places written from them.

YAML is read as version 1.2 (``1e-4`` is a number, ``no`` is a word). A name, a type or a number that does not fit stops
the run before the notebook's first cell; the first stage checks all sections (``check_params``).
"""

import ast
import importlib
import io
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from nbformat import NotebookNode
from pydantic import create_model
from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import Node

from rsvlm.cluster import VARIABLE
from rsvlm.files import LONG_NUMBER, wrong_byte
from rsvlm.safe_text import as_yaml
from rsvlm.settings import ClusterSettings, Settings, closest_name, setting, type_text
from rsvlm.study import paths
from rsvlm.study.settings import SECTIONS

PARAMETERS_TAG = "parameters"
# Stage -> function(values, root) that raises ValueError where values of the right types cannot be. It runs before the
# notebook starts, so what it imports has to be light.
CHECKERS = {
    "aggregate_data": "rsvlm.data.sources:check_sources",
    "run_model": "rsvlm.study.models:check_models",
}
SWITCHES = {  # lines of a parameters cell that are no parameters
    "use_study_parameters": "True: by hand, the values of params.yaml, but for those that you change below",
    "go_on_from_scratch": "True: by hand, read what other notebooks made by hand (scratch/), where they did",
}
TYPES = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "dict": dict}
PLAIN = re.compile(r"[A-Za-z][\w./-]*(:[\w./-]+)*")  # a text that YAML reads as one without quotes
NO_TEXT = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}  # unless quoted, in one YAML or another
WIDTH = 120
_cluster: str | None = None  # what `use_cluster` set last


def read_params(path: Path) -> dict:
    """All sections of a YAML file as plain dictionaries.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no YAML, or its top is no mapping of sections; names the file (and the line).
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such parameter file; `make use STUDY=default` puts the default study in place"
        )
    content = _read_yaml(path)
    if not isinstance(content, dict) or not all(isinstance(section, dict) for section in content.values()):
        raise ValueError(f"{path}: the top level must be sections of `key: value` lines, one section a notebook")
    return content


def use_cluster() -> None:
    """Let bulk work of this process, and of those that it starts, go where ``user/cluster.yaml`` says.

    ``RSVLM_CLUSTER`` that a person set, for one run perhaps, comes before it.

    Raises:
        ValueError: the file is no YAML, or says something that is none of the choices; names it.
    """
    global _cluster
    if os.environ.get(VARIABLE) != _cluster:
        return
    file = paths.CLUSTER
    content = _read_yaml(file) if file.is_file() else {}
    if not isinstance(content, dict):
        raise ValueError(f"{file}: one line is needed, such as `cluster: {{local: {{workers: 2}}}}`")
    try:
        settings = ClusterSettings.of_mapping(content)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    told = settings.cluster
    if isinstance(told, dict):
        told = json.dumps(told)
    elif settings.choice is not None and "://" not in told:
        told = str(paths.ROOT / told)
    _cluster = None if settings.choice is None else told
    os.environ.pop(VARIABLE, None)
    if _cluster is not None:
        os.environ[VARIABLE] = _cluster


def _read_yaml(path: Path) -> object:
    """What a YAML file holds; nothing in it: {}."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    try:
        content = path.read_bytes()
        content = yaml.load(content.decode("utf-8-sig")) or {}
    except YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error
    except RecursionError as error:
        raise ValueError(
            f"{path}: nested too deep; a section has `key: value` lines, lists and mappings in these"
        ) from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}: line {line} is not UTF-8 text: {wrong_byte(error)}; save it as UTF-8") from error
    return content


class _Constructor(SafeConstructor):
    """As ruamel's own, which says the line of no value that Python cannot make: a 13th month, too long a number."""

    def construct_object(self, node: Node, deep: bool = False) -> object:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
            what = LONG_NUMBER if "digits" in str(error) else f"{error}"
            raise ConstructorError(problem=f"no value: {what}", problem_mark=node.start_mark) from error


def read_section(path: Path, section: str) -> dict:
    """One section of a YAML file.

    Raises:
        ValueError: the section is missing; names the file and the closest section.
    """
    content = read_params(path)
    if section not in content:
        raise ValueError(f"{path}: no section {section!r}{closest_name(section, content)}")
    return content[section]


def settings_of(stage: str, notebook: NotebookNode, name: str) -> type[Settings]:
    """The settings of a stage: its class, or those that a notebook without one declares in its parameters cell.

    Raises:
        ValueError: no such cell or several, or a line in it that is not ``name: type = literal``; says ``name``.
    """
    cells = [cell for cell in notebook.cells if PARAMETERS_TAG in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ValueError(f"{name}: needs exactly one cell tagged '{PARAMETERS_TAG}', has {len(cells)}")
    if stage in SECTIONS:
        return SECTIONS[stage]
    fields = {}
    for line in ast.parse(cells[0].source).body:
        if not (isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value is not None):
            raise ValueError(f"{name}: in the parameters cell, line {line.lineno} is not `name: type = literal`")
        parameter = line.target.id
        try:
            default = ast.literal_eval(line.value)
            annotation = eval(ast.unparse(line.annotation), {"__builtins__": {}} | TYPES)
        except ValueError as error:
            raise ValueError(f"{name}: the default of {parameter!r} is computed; write a literal") from error
        except NameError as error:
            raise ValueError(f"{name}: the type of {parameter!r}: {error}; use {', '.join(TYPES)} or None") from error
        fields[parameter] = annotation, setting(default, "")
    kind = create_model(stage, __base__=Settings, **fields)
    try:
        kind(**{parameter: kind.model_fields[parameter].default for parameter in fields})
    except ValueError as error:
        raise ValueError(f"{name}: a default does not fit: {error}") from error
    return kind


def check_section(values: Mapping, kind: type[Settings], *, file: str, section: str, notebook: str) -> dict:
    """The section's values, ready for the notebook: an int given for a float becomes a float.

    Raises:
        ValueError: lists every key that the notebook does not know (with the closest right name), every key that is
            missing, every value of a wrong type and every number outside its bounds.
    """
    problems = [
        f"{key!r} is missing; {notebook} asks for it: add `{key}: {_as_yaml(default)}`"
        for key, default in defaults(kind).items()
        if key not in values
    ]
    try:
        checked = kind.of_mapping(values)
    except ValueError as error:
        problems.insert(0, str(error))
    if problems:
        raise ValueError("\n  ".join([f"{file}, section {section!r}:", *problems]))
    return checked.model_dump()


def check_values(values: Mapping, root: Path, *, file: str, section: str) -> None:
    """Check what a section's values mean, beyond their names and types, where its stage has such a check.

    Raises:
        ValueError: names the file, the section and everything that the stage's own check found.
    """
    if section not in CHECKERS:
        return
    module, function = CHECKERS[section].split(":")
    try:
        getattr(importlib.import_module(module), function)(values, root)
    except ValueError as error:
        raise ValueError(f"{file}, section {section!r}:\n  {error}") from error


def check_params(path: Path, root: Path) -> None:
    """Check every section of a file of parameters: its name, names, types, bounds, and what its values mean.

    Raises:
        ValueError: all that does not fit, in all sections.
    """
    content, problems = read_params(path), []
    free = [section for section in SECTIONS if section not in content]
    for section in content:
        if section not in SECTIONS:
            problems.append(f"{path}: no stage has a section {section!r}{closest_name(section, free or SECTIONS)}")
    if not problems:
        problems = [f"{path}: the section {section!r} is missing" for section in free]
    for section, kind in SECTIONS.items():
        if section in content:
            try:
                values = check_section(
                    content[section], kind, file=str(path), section=section, notebook=f"the notebook {section}"
                )
                check_values(values, root, file=str(path), section=section)
            except ValueError as error:
                problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))


def defaults(kind: type[Settings]) -> dict[str, object]:
    """The default study's values of a section."""
    return {name: field.default for name, field in kind.model_fields.items()}


def quick_values(kind: type[Settings]) -> dict[str, object]:
    """A notebook's own values of a section, for a quick run by hand."""
    return {name: field.json_schema_extra["quick"] for name, field in kind.model_fields.items()}


def parameters_cell(kind: type[Settings], used: Mapping | None = None) -> str:
    """The source of a notebook's parameters cell: its switches, then a line a parameter with the value for a quick run.

    Args:
        used: the values of a run instead, without switches; those that are not the default study's say what that has.
    """
    own = kind in SECTIONS.values() and not used
    lines = [f"{name} = False  # {meaning}" for name, meaning in SWITCHES.items()] if own else []
    for name, value in (used or quick_values(kind)).items():
        field = kind.model_fields[name]
        line = f"{name}: {type_text(field.annotation)} = {as_python(value)}"
        notes = [field.description] if field.description else []
        if used and value != field.default:
            notes.append(f"[default: {as_python(field.default)}]")
        lines.append(f"{line}  # {' '.join(notes)}" if notes else line)
    return "\n".join(lines)


def params_text(changes: Mapping[str, Mapping], head: str) -> str:
    """A whole file of parameters: every section and key, its meaning behind it.

    Args:
        changes: section -> key -> value, what differs from the default study; checked.
        head: comment lines that say what the study is.
    """
    lines = [line for line in head.splitlines() if line.startswith("#")]
    for section, kind in SECTIONS.items():
        lines += ["", f"{section}:"]
        for key, value in (defaults(kind) | dict(changes.get(section, {}))).items():
            lines += [f"  {line}" for line in parameter_lines(key, value, kind.model_fields[key].description)]
    return "\n".join(lines) + "\n"


def parameter_lines(key: str, value: object, comment: str) -> list[str]:
    """A parameter as lines of YAML with its comment, not indented: one line, more for several mappings."""
    behind = f"  # {comment}" if comment else ""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [f"{key}:{behind}", *_as_block(value)]
    if isinstance(value, dict) and value:
        return [f"{key}:{behind}", *(f"  {line}" for line in _as_block(value))]
    return [f"{key}: {_as_yaml(value)}{behind}"]


def float_text(value: float) -> str:
    """A number as a person writes it: 0.05, and 4.0e-4 below a thousandth."""
    import numpy as np  # here: the checks before a stage import nothing heavy

    return np.format_float_scientific(value, trim="0", exp_digits=1) if 0 < abs(value) < 1e-3 else repr(value)


def as_python(value: object) -> str:
    """A value as a parameters cell has it."""
    if isinstance(value, float):
        return float_text(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return f"[{', '.join(map(as_python, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{as_python(key)}: {as_python(one)}' for key, one in value.items())}}}"
    return repr(value)


def _as_block(entries: list | dict) -> list[str]:
    """Mappings in YAML's block style, each with its keys in their order."""
    yaml = YAML()
    yaml.width, yaml.default_flow_style = WIDTH, False
    stream = io.StringIO()
    yaml.dump(entries, stream)
    return stream.getvalue().splitlines()


def _as_yaml(value: object) -> str:
    """A value on one line of YAML, numbers with a point."""
    if isinstance(value, str):
        if PLAIN.fullmatch(value) and value.lower() not in NO_TEXT:
            return value
        plain = value.isascii() or value.isprintable()  # else line breaks of Unicode, which YAML takes for its own
        return json.dumps(value, ensure_ascii=False) if plain else as_yaml(value)
    if isinstance(value, float):
        return float_text(value)
    if isinstance(value, list):
        return f"[{', '.join(_as_yaml(one) for one in value)}]"
    return json.dumps(value, ensure_ascii=False)
