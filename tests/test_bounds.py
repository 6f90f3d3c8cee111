"""Every number of every stage has a lower and an upper bound with a reason, held before anything runs."""

import math
from typing import Literal, get_origin

import pytest

from rsvlm.settings import LONGEST_LIST, AdaptSettings, CapRetShape, bounds, type_text
from rsvlm.study.config import check_section, defaults
from rsvlm.study.settings import SECTIONS, AdaptEncoder

NUMBERS = [
    (stage, name)
    for stage, kind in SECTIONS.items()
    for name, field in kind.model_fields.items()
    if get_origin(field.annotation) is not Literal
    and {"int", "float"} & set(type_text(field.annotation).replace("[", " ").replace("]", " ").split())
]


def check(stage: str, **changes: object) -> dict:
    values = defaults(SECTIONS[stage]) | changes
    return check_section(values, SECTIONS[stage], file="params.yaml", section=stage, notebook=f"notebooks/{stage}")


@pytest.mark.parametrize(("stage", "name"), NUMBERS)
def test_every_number_has_both_bounds_and_a_reason(stage, name):
    within = bounds(SECTIONS[stage], name)
    assert within is not None, f"rsvlm.settings: no bounds for {name!r} of {stage}"
    assert math.isfinite(within.low) and math.isfinite(within.high) and within.low < within.high and within.why


@pytest.mark.parametrize("stage", SECTIONS)
def test_defaults_and_a_notebooks_own_values_lie_within(stage):
    check(stage)
    check(stage, **{name: field.json_schema_extra["quick"] for name, field in SECTIONS[stage].model_fields.items()})


@pytest.mark.parametrize("stage", SECTIONS)
def test_every_parameter_says_what_it_means(stage):
    assert all(field.description for field in SECTIONS[stage].model_fields.values())


@pytest.mark.parametrize(("stage", "name"), NUMBERS)
def test_what_lies_outside_is_refused_and_the_ends_are_not(stage, name):
    within, annotation = bounds(SECTIONS[stage], name), type_text(SECTIONS[stage].model_fields[name].annotation)
    whole = "int" in annotation
    wrap = (lambda value: [value]) if "list" in annotation else lambda value: value
    step = 1 if whole else 0.5
    outside = [within.low - step, within.high + step]
    outside += ([within.low] if within.above else []) + ([within.high] if within.below else [])
    for value in map(int if whole else float, outside):
        with pytest.raises(ValueError, match="params.yaml, section") as raised:
            check(stage, **{name: wrap(value)})
        for part in (stage, repr(name), repr(value), str(within), within.why):
            assert part in str(raised.value)
    for value in ([] if within.above else [within.low]) + ([] if within.below else [within.high]):
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


def test_a_choice_of_words_is_named():
    with pytest.raises(ValueError, match="'train' must be 'all' or 'projections', but is 'some'"):
        check("adapt_encoder", train="some")
    with pytest.raises(ValueError, match="'views' must be 1, 2, 4 or 8, but is 3"):
        check("encode_images", views=3)


def test_what_only_fits_together_is_said():
    with pytest.raises(ValueError, match="'lora_rank' 16 needs 'lora_targets'"):
        CapRetShape(lora_targets=[])


def test_settings_hold_their_library_part_and_cannot_be_changed():
    stage = AdaptEncoder(epochs=3, threads=2)
    assert AdaptSettings.of(stage) == AdaptSettings(epochs=3)
    with pytest.raises(ValueError, match="frozen"):
        stage.epochs = 4
