"""Scores of answers: what counts as right and as asked, baselines, wordings, hallucination, and when not to answer."""

import json

import numpy as np
import pytest

from rsvlm.data.instruction_kinds import SHARES
from rsvlm.scoring.instructions import (
    abstention,
    accuracy_by_kind,
    area_under_risk,
    chair_rs,
    conformal_threshold,
    majority_answers,
    risk_coverage,
    robustness,
    score_answers,
)
from rsvlm.viewing.answer_figures import accuracy_figure, accuracy_table, risk_figure, robustness_table

YES_NO = {"choices": ["yes", "no"]}
COVERS = {"choices": ["cropland", "grassland", "sea"]}
THERE = {"there": ["airplane", "airport", "vehicle", "building"]}
STEPS = {"steps": [step for _, step in SHARES], "premise": True}


def task(kind: str, truth: dict, number: int = 0, **more: object) -> dict:
    """A test task."""
    return {
        "task_id": f"{kind}/{number}",
        "question": f"{kind}/{number}",
        "image_id": f"s/{number}",
        "source": "s",
        "split": "test",
        "kind": kind,
        "wording": 8,
        "held_out": True,
        "instruction": "?",
        "answer": "",
        "truth": truth,
        "language": "en",
    } | more


def score(kind: str, truth: dict, answer: str, **more: object) -> tuple[float, bool]:
    """Right and form of one answer."""
    row = score_answers([task(kind, truth)], {f"{kind}/0": answer}, **more).iloc[0]
    return row["right"], row["format_obeyed"]


@pytest.mark.parametrize(
    ("kind", "truth", "answer", "right", "obeyed"),
    [
        ("presence", {"value": "yes", **YES_NO}, "Yes, there is.", 1, True),
        ("presence", {"value": "yes", **YES_NO}, "A river.", 0, False),
        ("negation", {"value": "no", **YES_NO}, "no", 1, True),
        ("count", {"value": 3}, "There are three of them", 1, True),
        ("count", {"value": 3}, "3", 1, True),
        ("count", {"value": 3}, "many", 0, False),
        ("where", {"value": "top left", "choices": ["top left", "top", "left"]}, "In the upper left.", 1, True),
        ("where", {"value": "top", "choices": ["top left", "top", "left"]}, "top left", 0, True),
        ("where", {"value": "top", "choices": ["top left", "top", "left"]}, "at the top, or left", 0, False),
        ("climate", {"value": "arid", "choices": ["arid", "polar"]}, "An arid climate.", 1, True),
        ("largest", {"value": "cropland", **COVERS}, "Mostly farmland", 1, True),
        ("compare", {"value": "sea", **COVERS}, "sea and grassland", 0, False),
        ("not_visible", {"value": "sea", **COVERS}, "the ocean", 1, True),
        ("scene", {"value": "dense residential area"}, "Dense residential area.", 1, True),
        ("scene", {"value": "dense residential area"}, "sparse residential area", 0, True),
        ("scene", {"value": "storage tanks"}, "oil tanks", 1, True),
        ("one_word", {"value": ["tanks"]}, "Tank", 1, True),
        ("one_word", {"value": ["forest"]}, "dense forest", 0, False),
        ("at_most_words", {"value": 3, **THERE}, "An airplane", 1, True),
        ("at_most_words", {"value": 3, **THERE}, "An airplane at an airport", 0, False),
        ("at_most_words", {"value": 3, **THERE}, "A boat", 0, True),
        ("at_most_words", {"value": 3, **THERE}, "Nice picture", 0, True),
        ("one_sentence", THERE, "An airplane is at the airport.", 1, True),
        ("one_sentence", THERE, "An airplane. It is white.", 0, False),
        ("one_sentence", THERE, "An airplane is beside a boat.", 0, True),
        ("list", {"value": ["airplane", "airport"], "form": "bullets", **THERE}, "- planes\n- airport", 1, True),
        ("list", {"value": ["airplane", "airport"], "form": "bullets", **THERE}, "planes, airport", 1, False),
        ("list", {"value": ["airplane", "airport"], "form": "commas", **THERE}, "plane, boat", 1 / 2, True),
        ("list", {"value": ["airplane", "airport"], "form": "numbers", **THERE}, "1. plane\n3. airport", 1, False),
        ("json", {"value": {"sea": True, "islands": 1}, **THERE}, '{"islands": 1, "sea": false}', 1 / 2, True),
        ("json", {"value": {"sea": True, "islands": 1}, **THERE}, '{"islands": 1, "sea": 1}', 1 / 2, True),
        ("json", {"value": {"sea": True, "islands": 1}, **THERE}, '{"sea": true}', 0, False),
        ("json", {"value": {"sea": True}, **THERE}, '{"sea": true', 0, False),
        ("json", {"value": {"scene": "harbor"}, **THERE}, '{"scene": ["port"]}', 0, True),
        ("false_premise", {"value": None, "premise": False}, "There is no airplane.", 1, True),
        ("false_premise", {"value": None, "premise": False}, "white", 0, True),
        ("false_premise", {"value": "white", "premise": True}, "It is white.", 1, True),
        ("false_premise", {"value": "white", "premise": True}, "There are no airplanes.", 0, True),
        ("false_premise", {"value": "grey", "premise": True}, "gray", 1, True),
        ("false_premise", {"value": "about half", **STEPS}, "about a third of it", 1, True),
        ("false_premise", {"value": "about half", **STEPS}, "about a quarter", 0, True),
    ],
)
def test_what_counts_as_right(kind, truth, answer, right, obeyed):
    assert score(kind, truth, answer) == (pytest.approx(right), obeyed)


def test_a_right_answer_of_a_list_may_not_repeat_itself():
    truth = {"value": ["airplane", "airport"], "form": "bullets", **THERE}
    assert (
        score("list", truth, "- plane\n- plane\n- plane\n- airport")[0] < score("list", truth, "- plane\n- airport")[0]
    )


def test_languages_are_scored_by_a_detector_alone():
    assert np.isnan(score("language", {"value": "pt"}, "Um rio.")[0])
    assert score("language", {"value": "pt"}, "Um rio.", detect=lambda text: "pt") == (1, True)
    assert score("language", {"value": "pt"}, "", detect=lambda text: "pt") == (0, False)


def test_an_answer_that_is_missing_is_named():
    with pytest.raises(ValueError, match="1 of 1 tasks have no answer, for example 'count/0'"):
        score_answers([task("count", {"value": 1})], {})


def test_majority_says_what_training_says_most_and_no_more_than_it_may():
    training = [
        task("presence", {"value": "yes", **YES_NO}, 1, answer="yes"),
        task("presence", {"value": "yes", **YES_NO}, 2, answer="yes"),
        task("presence", {"value": "no", **YES_NO}, 3, answer="no"),
        task("at_most_words", {"value": 9, **THERE}, 4, answer="One two three four five."),
        task("at_most_words", {"value": 9, **THERE}, 5, answer="One two."),
        task("compare", {"value": "sea", "choices": ["sea", "cropland"]}, 6, answer="sea"),
        task("compare", {"value": "cropland", "choices": ["sea", "cropland"]}, 7, answer="cropland"),
        task("json", {"value": {"sea": True}, **THERE}, 8, answer=json.dumps({"sea": True})),
    ]
    tests = [
        task("presence", {"value": "no", **YES_NO}),
        task("at_most_words", {"value": 3, **THERE}),
        task("compare", {"value": "cropland", "choices": ["grassland", "sea"]}),
        task("json", {"value": {"sea": False}, **THERE}),
        task("json", {"value": {"islands": 0}, **THERE}, 1),
    ]
    assert list(majority_answers(training, tests).values()) == ["yes", "One two.", "sea", '{"sea": true}', ""]


def answered(rights: list[list[int]]) -> tuple[list[dict], dict[str, str]]:
    """Yes-or-no tasks: a question an entry, a wording each 1 (right) or 0."""
    tasks, answers = [], {}
    for number, row in enumerate(rights):
        for wording, right in enumerate(row):
            truth = {"value": "yes", **YES_NO}
            one = task("presence", truth, number, task_id=f"q{number}/{wording}", wording=8 + wording)
            tasks.append(one)
            answers[one["task_id"]] = "yes" if right else "no"
    return tasks, answers


def test_accuracy_and_its_differences_are_over_images():
    tasks, answers = answered([[1, 1], [1, 0], [0, 0], [1, 1]])
    scores = score_answers(tasks, answers)
    worst = score_answers(tasks, dict.fromkeys(answers, "no"))
    found = accuracy_by_kind(scores, {"blind": worst}, seed=0, resamples=200)["s"]["presence"]
    assert found["right"]["value"] == pytest.approx(5 / 8) and found["right"]["n"] == 4 and found["tasks"] == 8
    assert found["right"]["low"] < 5 / 8 < found["right"]["high"]
    assert found["blind"]["value"] == 0 and found["minus_blind"]["value"] == pytest.approx(5 / 8)
    with pytest.raises(ValueError, match="'blind' has answers to other tasks"):
        accuracy_by_kind(scores, {"blind": worst.iloc[1:]}, seed=0)


def test_wordings_that_contradict_each_other_are_counted():
    tasks, answers = answered([[1, 1], [1, 0], [0, 0], [1, 1], [1, 1]])
    found = robustness(score_answers(tasks, answers))["s"]["presence"]
    assert found["contradictory"] == found["half_right"] == pytest.approx(0.2) and found["n"] == 5
    assert (found["lowest"], found["highest"]) == (pytest.approx(0.6), pytest.approx(0.8))


def test_hallucinated_things_are_those_that_nothing_has():
    texts = {"a": "Two planes beside a boat.", "b": "An airport without ships.", "c": "Nothing to see."}
    found = chair_rs(texts, dict.fromkeys(texts, THERE["there"]), seed=0, resamples=50)
    assert found["things"]["value"] == pytest.approx(1 / 3)  # airplane, boat; airport
    assert found["texts"]["value"] == pytest.approx(1 / 3) and found["most"] == {"boat": 1}


def test_risk_falls_with_coverage_where_confidence_tells():
    curve = risk_coverage(np.array([4.0, 3.0, 2.0, 1.0]), np.array([1, 1, 0, 0]))
    assert curve["risk"].tolist() == pytest.approx([0, 0, 1 / 3, 1 / 2])
    assert curve["coverage"].tolist() == [0.25, 0.5, 0.75, 1.0]
    assert area_under_risk(curve) == pytest.approx((1 / 3 + 1 / 2) / 4)
    equal = risk_coverage(np.ones(4), np.array([1, 1, 0, 0]))  # nobody can tell them apart
    assert equal["coverage"].tolist() == [1.0] and equal["risk"].tolist() == [0.5]
    with pytest.raises(ValueError, match="at least one"):
        risk_coverage(np.array([]), np.array([]))


def test_the_conformal_threshold_keeps_its_promise():
    """Over many calibration sets, the share of new questions answered wrongly is at most what was promised, and near it."""
    generator = np.random.default_rng(0)
    observed = []
    for _ in range(300):
        confidence = generator.normal(size=300)
        right = (generator.random(300) < 1 / (1 + np.exp(-confidence))).astype(float)
        threshold = conformal_threshold(confidence[:100], right[:100], 0.1)
        observed.append(abstention(confidence[100:], right[100:], threshold, 0.1)["observed"])
    assert 0.08 < np.mean(observed) < 0.1 + 3 * np.std(observed) / np.sqrt(300)


def test_too_few_questions_promise_nothing():
    assert conformal_threshold(np.arange(5.0), np.ones(5), 0.1) == np.inf  # (0 + 1) / 6 is above it
    kept = abstention(np.arange(5.0), np.ones(5), np.inf, 0.1)
    assert kept["answered"] == 0 and kept["wrong_of_answered"] is None and kept["threshold"] is None
    with pytest.raises(ValueError, match="error = 0"):
        conformal_threshold(np.arange(5.0), np.ones(5), 0)


def test_pictures_and_tables_say_what_was_scored():
    tasks, answers = answered([[1, 1], [1, 0], [0, 0], [1, 1], [1, 1]])
    scores = score_answers(tasks, answers)
    accuracy = accuracy_by_kind(scores, {"shuffled": scores}, seed=0, resamples=50)["s"]
    drawn = accuracy_figure(accuracy, "s")
    assert [label.get_text() for label in drawn.axes[0].get_yticklabels()] == ["presence (10)"]
    assert accuracy_table(accuracy).loc["presence", "right, %"] == 70.0
    shown = robustness_table(robustness(scores)["s"]).loc["presence"]
    assert shown["contradictory answers, %"] == 20.0 and shown["questions"] == 5
    assert (
        robustness_table({"list": {**robustness(scores)["s"]["presence"], "lowest": None}}).loc["list"].iloc[0] == "–"
    )
    confidence, right = np.arange(10.0), scores["right"].to_numpy()
    chosen = abstention(confidence, right, 5.0, 0.2)
    lines = risk_figure({"margin": risk_coverage(confidence, right)}, chosen=chosen).axes[0].get_lines()
    assert len(lines) == 2 and lines[1].get_xdata()[0] == chosen["answered"]
    with pytest.raises(ValueError, match="no kind was scored"):
        accuracy_figure({}, "s")
