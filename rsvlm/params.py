"""Parameters of a stage: what params.yaml says, held against what the notebook asks for.

YAML is read as version 1.2 (``1e-4`` is a number, ``no`` is a word). A name or a type that does not fit stops the run
before the notebook's first cell.
"""

import ast
import difflib
import importlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nbformat import NotebookNode
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

PARAMETERS_TAG = "parameters"
# Stage -> function(values, root) that raises ValueError where values of the right types cannot be. It runs before the
# notebook starts, so what it imports has to be light.
CHECKERS = {
    "aggregate_data": "rsvlm.data.source_checks:check_sources",
}


@dataclass(frozen=True)
class Parameter:
    """One line ``name: type = default`` of a notebook's parameters cell."""

    name: str
    annotation: str
    default: object


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
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(section, dict) for section in content.values()):
        raise ValueError(f"{path}: the top level must be sections of `key: value` lines, one section a notebook")
    return content


def read_section(path: Path, section: str) -> dict:
    """One section of a YAML file.

    Raises:
        ValueError: the section is missing; names the file and the closest section.
    """
    content = read_params(path)
    if section not in content:
        raise ValueError(f"{path}: no section {section!r}{_hint(section, content)}")
    return content[section]


def declared_parameters(notebook: NotebookNode, name: str) -> dict[str, Parameter]:
    """The parameters that a notebook asks for, by name, from its one cell tagged ``parameters``.

    Raises:
        ValueError: no such cell or several, or a line in it that is not ``name: type = literal``; says ``name``.
    """
    cells = [cell for cell in notebook.cells if PARAMETERS_TAG in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ValueError(f"{name}: needs exactly one cell tagged '{PARAMETERS_TAG}', has {len(cells)}")
    declared = {}
    for line in ast.parse(cells[0].source).body:
        if not (isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value is not None):
            raise ValueError(f"{name}: in the parameters cell, line {line.lineno} is not `name: type = literal`")
        parameter = line.target.id
        try:
            default = ast.literal_eval(line.value)
        except ValueError as error:
            raise ValueError(f"{name}: the default of {parameter!r} is computed; write a literal") from error
        annotation = ast.unparse(line.annotation)
        if not fits(default, annotation):
            raise ValueError(f"{name}: the default of {parameter!r} is {default!r}, which is no {annotation}")
        declared[parameter] = Parameter(parameter, annotation, default)
    return declared


def fits(value: object, annotation: str) -> bool:
    """Whether a value has the type that an annotation such as ``float`` or ``list[str] | None`` names.

    An int passes as a float; a bool passes as nothing but bool; NaN and infinity pass as nothing.
    """
    return _fits(value, ast.parse(annotation, mode="eval").body)


def check_section(values: dict, declared: dict[str, Parameter], *, file: str, section: str, notebook: str) -> dict:
    """The section's values, ready for the notebook: an int given for a float becomes a float.

    Raises:
        ValueError: lists every key that the notebook does not know (with the closest right name), every key that is
            missing and every value of a wrong type.
    """
    problems = []
    for key in values:
        if key not in declared:
            problems.append(
                f"{notebook} knows no parameter {key!r}{_hint(key, set(declared) - set(values) or declared)}"
            )
    for key, parameter in declared.items():
        if key not in values:
            problems.append(f"{key!r} is missing; {notebook} asks for it: add `{key}: {_as_yaml(parameter.default)}`")
        elif not fits(values[key], parameter.annotation):
            value = values[key]
            problems.append(f"{key!r} must be {parameter.annotation}, but is {value!r} ({type(value).__name__})")
    if problems:
        raise ValueError("\n  ".join([f"{file}, section {section!r}:", *problems]))
    return {key: _converted(values[key], parameter.annotation) for key, parameter in declared.items()}


def check_values(values: dict, root: Path, *, file: str, section: str) -> None:
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


def _fits(value: object, kind: ast.expr) -> bool:
    match kind:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _fits(value, left) or _fits(value, right)
        case ast.Constant(value=None):
            return value is None
        case ast.Name(id="float"):
            return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        case ast.Name(id="int"):
            return isinstance(value, int) and not isinstance(value, bool)
        case ast.Name(id="str"):
            return isinstance(value, str)
        case ast.Name(id="bool"):
            return isinstance(value, bool)
        case ast.Name(id="list"):
            return isinstance(value, list)
        case ast.Name(id="dict"):
            return isinstance(value, dict)
        case ast.Subscript(value=ast.Name(id="list"), slice=item):
            return isinstance(value, list) and all(_fits(element, item) for element in value)
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[key, item])):
            return isinstance(value, dict) and all(_fits(k, key) and _fits(v, item) for k, v in value.items())
        case _:
            raise ValueError(
                f"cannot check the type {ast.unparse(kind)!r}; use int, float, str, bool, list, dict or None"
            )


def _converted(value: object, annotation: str) -> object:
    """An int for a float parameter as a float, also inside lists and dictionaries."""
    if isinstance(value, int) and not isinstance(value, bool) and not fits(value, annotation.replace("float", "str")):
        return float(value)
    kind = ast.parse(annotation, mode="eval").body
    if isinstance(kind, ast.Subscript) and isinstance(value, list):
        return [_converted(element, ast.unparse(kind.slice)) for element in value]
    if isinstance(kind, ast.Subscript) and isinstance(value, dict):
        return {key: _converted(element, ast.unparse(kind.slice.elts[1])) for key, element in value.items()}
    return value


def _hint(wrong: object, right: Iterable) -> str:
    close = difflib.get_close_matches(str(wrong), [str(name) for name in right], n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known here: {', '.join(sorted(map(str, right)))}"


def _as_yaml(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)  # JSON is YAML
