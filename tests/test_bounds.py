"""Every number of every stage has a lower and an upper bound with a reason, held before anything runs."""

import math
from pathlib import Path

import nbformat
import pytest

from rsvlm.study.config import BOUNDS, LONGEST_LIST, check_section, declared_parameters

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("[1-8]*.ipynb"))  # the stages'
STAGES = {
    path.stem[3:]: declared_parameters(nbformat.read(path, as_version=4), f"notebooks/{path.name}")
    for path in NOTEBOOKS
}
NUMBERS = [
    (stage, name)
    for stage, declared in STAGES.items()
    for name, parameter in declared.items()
    if {"int", "float"} & set(parameter.annotation.replace("[", " ").replace("]", " ").split())
]


def check(stage: str, **changes: object) -> dict:
    values = {name: parameter.default for name, parameter in STAGES[stage].items()} | changes
    return check_section(values, STAGES[stage], file="params.yaml", section=stage, notebook=f"notebooks/{stage}")


def bound_of(stage: str, name: str):
    return BOUNDS.get(f"{stage}.{name}", BOUNDS.get(name))


@pytest.mark.parametrize(("stage", "name"), NUMBERS)
def test_every_number_has_both_bounds_and_a_reason(stage, name):
    bound = bound_of(stage, name)
    assert bound is not None, f"rsvlm.study.config.BOUNDS has no entry for {name!r} of {stage}"
    assert (bound.ge is None) != (bound.gt is None) and (bound.le is None) != (bound.lt is None) and bound.why


def test_no_bound_is_left_over():
    used = {key for stage, name in NUMBERS for key in (f"{stage}.{name}", name) if key in BOUNDS}
    assert not set(BOUNDS) - used


@pytest.mark.parametrize("stage", STAGES)
def test_a_notebooks_own_defaults_lie_within(stage):
    check(stage)


@pytest.mark.parametrize(("stage", "name"), NUMBERS)
def test_what_lies_outside_is_refused_and_the_ends_are_not(stage, name):
    bound, annotation = bound_of(stage, name), STAGES[stage][name].annotation
    whole = "int" in annotation
    wrap = (lambda value: [value]) if "list" in annotation else lambda value: value
    low, high = (bound.ge if bound.ge is not None else bound.gt), (bound.le if bound.le is not None else bound.lt)
    step = 1 if whole else 0.5
    for value in (low - step, high + step, *([low] if bound.gt is not None else []), *([high] if bound.lt else [])):
        with pytest.raises(ValueError, match="params.yaml, section") as raised:
            check(stage, **{name: wrap(value)})
        for part in (stage, repr(name), repr(value), str(bound), bound.why):
            assert part in str(raised.value)
    for value in (bound.ge, bound.le):
        if value is not None:
            check(stage, **{name: wrap(int(value) if whole else float(value))})


def test_what_brought_a_machine_down_is_refused():
    """10,000 captions an image took 19 GB."""
    with pytest.raises(ValueError) as raised:
        check("adapt_encoder", captions_per_image=10_000)
    assert "'captions_per_image' is 10000, but must be at least 1 and at most 16: data sets have 5" in str(raised.value)


def test_all_that_lies_outside_is_listed_at_once():
    with pytest.raises(ValueError) as raised:
        check("generate_captions", beams=1000, samples=-1, pool_weights=[0.0, -2.0, 1e9])
    assert str(raised.value).count("but must be") == 4


def test_a_long_list_of_numbers_to_try_is_refused():
    with pytest.raises(ValueError, match=f"'hubness_weights' holds {LONGEST_LIST + 1} values, at most {LONGEST_LIST}"):
        check("score_retrieval", hubness_weights=[0.0] * (LONGEST_LIST + 1))


def test_null_stands_for_itself():
    assert check("adapt_encoder", image_size=None)["image_size"] is None


def test_bounds_are_finite_and_in_order():
    for name, bound in BOUNDS.items():
        ends = [end for end in (bound.ge, bound.gt, bound.le, bound.lt) if end is not None]
        assert all(map(math.isfinite, ends)) and ends[0] < ends[1], name
