"""Any value of any parameter is either used or refused before a stage starts, with file and key, and never raises else.

Values come from hypothesis, and from a list of those that once came through or raised an error of Python's own. What a
check takes is written as YAML and as a parameters cell and read back, and its memory is estimated.
"""

import ast
import io
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from test_memory import study  # noqa: F401 - the outs of a study, which the estimate of memory reads

from rsvlm.data.sources import KEYS, CaptionSettings
from rsvlm.settings import OtherModel, VlmLoraSettings
from rsvlm.study.config import check_section, check_values, defaults, parameter_lines, parameters_cell
from rsvlm.study.memory import ESTIMATES, check_memory
from rsvlm.study.settings import SECTIONS

LONGEST_MESSAGE = 6000  # characters; a page of a terminal


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def shared(depth: int) -> list:
    """Little in memory, 10 ** depth values for who walks through it: what aliases of YAML can make."""
    value: list = [1]
    for _ in range(depth):
        value = [value] * 10
    return value


CIRCLE: list = []
CIRCLE.append(CIRCLE)
EXTREMES = [
    0, 1, -1, 2**31, 2**63, 2**64, -(2**63), 10**400, 10**5000, -(10**5000), 0.0, -0.0, 0.5, 5e-324, 1e-300, 1e308, -1e308,
    math.nan, math.inf, -math.inf, True, False, None, b"", b"\xff", 1j, object(), range(3), {1, 2},
    "", " ", ".", "..", "/", "~", "0", "null", "nan", "\0", "\n", "\ud800", "\udfff", "\u202e", "é", "図", "a" * 256,
    "a" * 5000, "a/" * 2500, "../" * 50, "=1+1", "<b>", "{}", "%s", "::", "a\\b", "C:\\a", "'\"", "# a", "a: b", "- a",
    [], [[]], [{}], [None], [0], [-1], [math.nan], [math.inf], [10**400], [0.5, -1], [""], ["\ud800"], ["a"] * 5, ["a" * 300],
    ["x"] * 10_001, [0.0] * 33, {}, {"": ""}, {"a": None}, {"a": {}}, {"a": "\0"}, {"a": 10**400}, {1: 2}, {None: None},
    {(1,): 2}, {"train": "\ud800"}, {"\ud800": "train"}, {"self": 1}, nested(15), nested(2000), shared(8), CIRCLE,
]  # fmt: skip
TEXTS = st.text(st.characters(exclude_categories=()), max_size=20)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
VALUES = SCALARS | st.recursive(
    SCALARS,
    lambda one: st.lists(one, max_size=4) | st.dictionaries(TEXTS | st.integers(), one, max_size=4),
    max_leaves=8,
)
MODELS = {"encoder": "packaged:efficientnet-lite2-minilm"}
SOURCES = {
    "karpathy": {"annotations": "a.json", "images": "i"},
    "masks": {"annotations": "a", "images": "i", "classes": "loveda"},
    "webdataset": {"annotations": "a"},
    "caption_table": {"annotations": "a.csv", "images": "i"},
    "blue_marble": {},
}


def in_source(format: str, key: str):
    """A value as that of a source's key, and the section's parameter that holds it."""
    source = {"name": "a", "format": format} | SOURCES[format]
    return "aggregate_data", key, lambda value: {"sources": [source | {key: value}]}


def in_model(key: str):
    return "run_model", key, lambda value: {"models": {"a": (MODELS if key not in MODELS else {}) | {key: value}}}


# (stage, key that an error has to name, value -> the section's changes) of every parameter, those inside others too
PARAMETERS = [
    *((stage, name, lambda value, name=name: {name: value}) for stage, kind in SECTIONS.items() for name in kind.model_fields),
    *(in_source(format, key) for format in SOURCES for key in KEYS[format]),
    *(
        ("aggregate_data", key, lambda value, key=key: {
            "sources": [{"name": "a", "format": "masks", **SOURCES["masks"], "captions": {key: value}}]
        })
        for key in CaptionSettings.model_fields
    ),
    *(in_model(key) for key in OtherModel.model_fields),
    *(
        ("run_model", key, lambda value, key=key: {"models": {"a": {"captioner": "x", "finetune": {key: value}}}})
        for key in VlmLoraSettings.model_fields
    ),
]  # fmt: skip


def try_value(stage: str, key: str, changes: dict, root) -> bool:
    """Whether the value is taken; fails where it is neither taken nor refused as it must be."""
    kind = SECTIONS[stage]
    try:
        values = check_section(
            defaults(kind) | changes, kind, file="params.yaml", section=stage, notebook="notebooks/x.ipynb"
        )
        check_values(values, root, file="params.yaml", section=stage)
        if stage in ESTIMATES:
            check_memory(stage, values, lambda line: None)
    except ValueError as error:
        told = str(error)
        assert type(error) is ValueError, f"{type(error).__name__}: {told[:500]}"
        assert told.startswith(f"params.yaml, section {stage!r}:"), told[:500]
        assert key in told.removeprefix(f"params.yaml, section {stage!r}:") or "memory are needed" in told, told[:500]
        assert len(told) < LONGEST_MESSAGE and told.encode(), told[
            :500
        ]  # half a character would stop whoever prints it
        return False
    taken = {name: values[name] for name in changes}
    for name, value in taken.items():
        text = "\n".join(f"  {line}" for line in parameter_lines(name, value, "what it means"))
        assert YAML(typ="safe", pure=True).load(io.StringIO(f"{stage}:\n{text}\n")) == {stage: {name: value}}
    cell = {line.target.id: line.value for line in ast.parse(parameters_cell(kind, values)).body}
    assert {name: ast.literal_eval(cell[name]) for name in taken} == taken
    return True


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A project in which the sources' files lie, so that only the value tried is wrong."""
    root = tmp_path_factory.mktemp("project")
    for name in ("i/1.png", "a/train.tar", "a.json", "a.csv"):
        path = root / "data/raw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


@pytest.mark.parametrize("stage", SECTIONS)
def test_the_worst_values_are_used_or_refused_with_file_and_key(stage, root):
    own = [parameter for parameter in PARAMETERS if parameter[0] == stage]
    taken = [try_value(stage, key, change(value), root) for _, key, change in own for value in EXTREMES]
    assert not all(taken)


@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(parameter=st.sampled_from(PARAMETERS), value=VALUES)
def test_any_value_is_used_or_refused_with_file_and_key(parameter, value, root):
    stage, key, change = parameter
    try_value(stage, key, change(value), root)
