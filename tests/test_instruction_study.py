"""The study of instructions: answers beside those without sight, the calibrated margin, the recorded turns, the dialogue."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from captioner_case import KINDS, make_captioner, make_features, make_table
from PIL import Image

from rsvlm.data.task_files import thin_tasks
from rsvlm.files import read_json, read_json_lines
from rsvlm.models.dialogue import AUTO, CANNOT_TELL, UNLIKE, WORDS, Conversation, Seen, Unclear
from rsvlm.models.instructions import CONFIG_KEY, KnownInstructions, as_instruction
from rsvlm.models.prompts import read_visual
from rsvlm.scoring.instruction_study import (
    NEVER,
    answer_all,
    calibrate,
    closed_choices,
    judge_turns,
    measure_answers,
    save_answers,
    summarise_turns,
    wrong_images,
)
from rsvlm.scoring.instructions import chair_rs
from rsvlm.viewing.answer_figures import accuracy_table
from rsvlm.viewing.answer_results import (
    abstention_table,
    answer_examples,
    answers_result,
    hallucination_table,
    tables_of,
)
from rsvlm.viewing.dialogue_page import draw_turns, record_turns, render_dialogue_page, turns_table

KNOWN = {
    "presence": {
        "examples": ["Is there a river?", "Can a forest be seen?"],
        "forms": [["a", "is", "there"], ["a", "be", "can", "seen"]],
        "filled": ["forest", "river"],
        "choices": ["yes", "no"],
    },
    "list": {
        "examples": ["List the land covers with commas."],
        "forms": [["commas", "covers", "land", "list", "the", "with"]],
        "filled": [],
        "choices": None,
    },
}


@pytest.fixture(scope="module")
def features():
    return make_features()


@pytest.fixture
def captioner(features):
    made = make_captioner(features).eval()
    made.config = made.config | {CONFIG_KEY: KNOWN}
    return made


@pytest.fixture(scope="module")
def tasks(features):
    """A presence question in two wordings, and a list, about each image."""
    rows = []
    for number, row in enumerate(make_table(features).itertuples(index=False)):
        own = {"image_id": row.image_id, "source": "made", "split": row.split, "language": "en", "held_out": True}
        there = KINDS.index(row.label) == 0
        answer = "yes" if there else "no"
        truth = {"value": answer, "choices": ["yes", "no"], "thing": "river"}
        for wording, text in enumerate(("Is a river there?", "Can a river be seen?")):
            question = {"task_id": f"p{number}/{wording}", "question": f"p{number}", "kind": "presence"}
            rows.append({**own, **question, "wording": wording, "instruction": text, "answer": answer, "truth": truth})
        truth = {"value": ["river", "forest"], "form": "commas", "there": ["forest", "river"]}
        question = {"task_id": f"l{number}", "question": f"l{number}", "kind": "list", "wording": 0}
        rows.append(
            {**own, **question, "instruction": "List it, with commas.", "answer": "river, forest", "truth": truth}
        )
    return rows


def split_of(tasks, split):
    return [task for task in tasks if task["split"] == split]


def told(tasks, answers, margins):
    table = pd.DataFrame({"task_id": [task["task_id"] for task in tasks], "answer": answers, "margin": margins})
    return table.assign(log_probability=-1.0, cut_off=False)


def test_whole_questions_are_kept(tasks):
    kept = thin_tasks(tasks, "train", 12)
    counts = Counter(task["question"] for task in kept)
    assert 0 < len(kept) <= 12 and all(count == (2 if name[0] == "p" else 1) for name, count in counts.items())
    assert thin_tasks(tasks, "test", 0) == thin_tasks(tasks, "test", 1000) == split_of(tasks, "test")


def test_an_image_is_never_its_own_wrong_one(tasks):
    other, seconds = wrong_images(tasks, seed=0)
    table = {task["image_id"]: task["split"] for task in tasks}
    pairs = {(task["image_id"], wrong) for task, wrong in zip(tasks, other)}
    assert len(pairs) == len(table) == len({wrong for _, wrong in pairs})
    assert all(own != wrong and table[own] == table[wrong] for own, wrong in pairs)
    assert other != wrong_images(tasks, seed=1)[0] and set(seconds) == {None}


def test_answers_that_see_are_told_from_those_that_do_not(tasks):
    test = split_of(tasks, "test")
    right = [task["answer"] for task in test]
    blind = ["no" if task["kind"] == "presence" else "glacier" for task in test]
    margins = [2.0 if task["kind"] == "presence" else np.nan for task in test]
    answers = {"captioner": told(test, right, margins), "blind": told(test, blind, [np.nan] * len(test))}
    scores, metrics = measure_answers(
        test, split_of(tasks, "train"), answers, KnownInstructions(KNOWN), seed=0, resamples=50
    )
    assert scores["right"].tolist() == [1.0] * 12
    own = metrics["accuracy"]["made"]
    assert own["presence"]["right"]["value"] == 1 and own["presence"]["blind"]["value"] == 0.75
    assert own["presence"]["majority"]["value"] == 0.75 and own["list"]["minus_blind"]["value"] == 1
    assert metrics["hallucination"]["things"]["value"] == 0 and metrics["recognised"] > 0.5
    assert metrics["languages"] == {} and metrics["tasks"] == 12
    metrics["abstention"] = calibrate(test, answers["captioner"], scores, 0.2)[0]
    assert tables_of(metrics["accuracy"], accuracy_table).loc[("made", "presence"), "right, %"] == 100
    assert answer_examples(test, scores, answers["blind"]).loc["list", "without the image"] == "glacier"
    metrics["dialogue"] = {"turns": 20, "not_told": 4, "asked_again": 5, "right_of_told": 0.375}
    said = answers_result(metrics).text
    assert "100.0 % right on average over 2 kinds" in said and "the others are right by 37.5 %" in said
    assert "0.0 % (0.0 to 0.0 %) are not there (CHAIR-RS, results/closed_list.md)" in said


def test_hallucination_is_shown_with_the_things_that_are_said_wrongly():
    wrong = chair_rs(
        {"a": "a river and a lake", "b": "a forest"}, {"a": ["river"], "b": ["forest"]}, seed=0, resamples=50
    )
    table = hallucination_table(wrong)
    assert table.loc["things named that are not there", "most often"].startswith("lake (1)")
    assert table.loc["answers that name one", "%"] == "50.0" and hallucination_table(None).empty


def test_an_answer_in_another_language_is_judged_by_it(tasks):
    own = split_of(tasks, "test")[0] | {"kind": "language", "truth": {"value": "pt", "references": ["Um rio."]}}
    turns = [{"task": own, "text": "Um rio.", "said": "Um rio.", "note": "", "asked_again": False}]
    assert judge_turns(turns)[0]["right"] is None and summarise_turns(judge_turns(turns))["right_of_told"] is None
    assert judge_turns(turns, lambda text: "pt")[0]["right"] == 1
    shown = turns_table(judge_turns(turns, lambda text: "en"))
    assert shown.loc[0, "model"] == "Um rio." and shown.loc[0, "right"] == 0


def test_nothing_to_answer_is_said():
    scores, metrics = measure_answers([], [], {"captioner": told([], [], [])}, KnownInstructions({}), seed=0)
    metrics["abstention"], curve = calibrate([], told([], [], []), scores, 0.2)
    assert metrics["accuracy"] == {} and metrics["abstention"]["tell_from"] is None
    assert "No instructions were answered" in answers_result(metrics).text
    assert len(curve) == len(tables_of(metrics["accuracy"], accuracy_table)) == 0
    assert len(abstention_table(metrics["abstention"])) == 0


def test_the_margin_is_calibrated_on_validation():
    """20 sure answers are right, 20 unsure ones wrong: only the sure ones may be told."""
    truth = {"value": "yes", "choices": ["yes", "no"]}
    tasks = [
        {"task_id": str(i), "question": str(i), "image_id": str(i), "source": "s", "split": "val", "kind": "presence"}
        | {"wording": 0, "truth": truth}
        for i in range(40)
    ]
    said = ["yes"] * 20 + ["no"] * 20
    answers = told(tasks, said, [3.0] * 20 + [0.5] * 20)
    scores = answers.assign(right=[1.0] * 20 + [0.0] * 20)
    about, curve = calibrate(tasks, answers, scores, 0.1)
    # (n * rate + 1) / (n + 1) <= 0.1 holds with the first 20 alone: rates beyond are 20 / 40
    assert about["tell_from"] == 3.0 and about["test"]["observed"] == 0 and about["test"]["answered"] == 0.5
    assert about["area_without"] == 0.5 and about["area_under_risk"] < 0.3 and len(curve) == 2
    assert abstention_table(about).loc["test", "answered"] == "50.0"
    assert calibrate(tasks[:5], answers[:5], scores, 0.1)[0]["tell_from"] == NEVER  # too few for the promise
    assert closed_choices(tasks)[0] == ["yes", "no"]


def test_the_answers_of_a_study_are_kept_with_the_margin(captioner, features, tasks, tmp_path):
    test = split_of(tasks, "test")
    answers = answer_all(captioner, features, test, checkpoints=tmp_path / "kept", max_new_tokens=4)
    assert list(answers) == ["captioner", "blind", "shuffled"]
    closed = [task["kind"] == "presence" for task in test]
    assert answers["captioner"]["margin"].notna().tolist() == closed and answers["blind"]["margin"].isna().all()
    same = answers["blind"].groupby([task["instruction"] for task in test])["answer"].nunique()
    assert (same == 1).all()
    save_answers(tmp_path / "answers", answers, {"tell_from": 1.5})
    rows = read_json_lines(tmp_path / "answers" / "captioner.jsonl")
    assert [row["task_id"] for row in rows] == [task["task_id"] for task in test]
    assert rows[2]["margin"] is None and read_json(tmp_path / "answers" / "abstention.json") == {"tell_from": 1.5}
    with pytest.raises(ValueError, match="baselines: deaf unknown"):
        answer_all(captioner, features, test, ["deaf"])
    nothing = answer_all(captioner, features, [], checkpoints=tmp_path / "none")
    assert [len(own) for own in nothing.values()] == [0, 0, 0] and not (tmp_path / "none").exists()


# The dialogue


def talk_about(captioner, features, **options):
    talk = Conversation(captioner, max_new_tokens=4, **options)
    talk.give_image("made/00.png", Seen((read_visual(features, [0]), "Similar images: A river.")))
    return talk


def test_a_known_instruction_is_answered_by_the_image_and_the_text_alone(captioner, features):
    talk = talk_about(captioner, features)
    *_, said = talk.ask("Is there a river?", AUTO)
    alone = Conversation(captioner, max_new_tokens=4, no_repeat=0)
    *_, expected = alone.stream([read_visual(features, [0]), "Is there a river?"], words_only=True, plain=True)
    assert said.text == expected.text and said.note == ""
    assert [turn.who for turn in talk.turns] == ["you", "you", "model"]


def test_an_instruction_ends_with_a_mark_as_in_training(captioner, features):
    *_, said = talk_about(captioner, features).ask("Is there a river", "answer")
    alone = Conversation(captioner, max_new_tokens=4, no_repeat=0)
    *_, expected = alone.stream([read_visual(features, [0]), "Is there a river."], words_only=True, plain=True)
    *_, without = alone.stream([read_visual(features, [0]), "Is there a river"], words_only=True, plain=True)
    assert said.text == expected.text != without.text
    ends = ("Answer in five words", "Is it?", "什么。", "Give (two)", " ")
    assert [as_instruction(text) for text in ends] == ["Answer in five words.", "Is it?", "什么。", "Give (two)", ""]


def test_an_answer_less_likely_than_another_is_said_to_be(captioner, features, monkeypatch):
    monkeypatch.setattr("rsvlm.models.dialogue.answer_margin", lambda *given: -0.05)
    *_, said = talk_about(captioner, features, tell_from=1.0).ask("Is there a river?")
    assert said.text == CANNOT_TELL and "is less likely than another answer by 0.05 nats" in said.note


def test_an_answer_below_the_margin_is_not_told(captioner, features):
    *_, plain = talk_about(captioner, features).ask("Is there a river?")
    turns = list(talk_about(captioner, features, tell_from=NEVER).ask("Is there a river?"))
    assert [turn.text for turn in turns] == [CANNOT_TELL] and plain.text in turns[
        0
    ].note  # nothing is shown and taken back
    *_, sure = talk_about(captioner, features, tell_from=-NEVER).ask("Is there a river?")
    assert sure.text == plain.text
    *_, free = talk_about(captioner, features, tell_from=NEVER).ask("List the land covers with commas.")
    assert free.text != CANNOT_TELL  # its answers are free: there is no margin


def test_what_training_did_not_know_is_offered_as_a_guess(captioner, features):
    talk = talk_about(captioner, features)
    with pytest.raises(Unclear, match="trained for three things") as unclear:
        list(talk.ask("Compose a poem about autumn"))
    assert ("answer", "Compose a poem about autumn") in unclear.value.offers
    *_, said = talk.ask("Compose a poem about autumn", "answer")
    assert UNLIKE in said.note
    with pytest.raises(Unclear, match="not an image to answer about yet"):
        list(Conversation(captioner).ask("Is there a river?"))
    captioner.config = {key: value for key, value in captioner.config.items() if key != CONFIG_KEY}
    with pytest.raises(Unclear, match="was not trained with instructions"):
        list(talk_about(captioner, features).ask("Is there a river?", "answer"))
    with pytest.raises(Unclear, match="trained for two things"):
        list(talk_about(captioner, features).ask("Is there a river?"))


def test_asking_for_words_and_images_stays_as_it_was(captioner, features):
    talk = talk_about(captioner, features)
    *_, words = talk.ask("Describe this image.")
    *_, same = talk_about(captioner, features).ask("Describe this image.", WORDS)
    assert words == same
    *_, found = talk.ask("Show me images of a river")
    assert found.asked_for_images


def test_turns_are_drawn_by_chance_and_recorded_as_they_come(captioner, features, tasks, tmp_path):
    test = split_of(tasks, "test")
    drawn = draw_turns(test, 6, seed=0)
    assert Counter(task["kind"] for task in drawn) == {"list": 3, "presence": 3}
    assert len({task["image_id"] for task in drawn[:4]}) == 4 and drawn == draw_turns(test, 6, seed=0)
    talk = Conversation(captioner, max_new_tokens=4, tell_from=NEVER)
    turns = judge_turns(record_turns(talk, features, drawn))
    assert [turn["said"] == CANNOT_TELL for turn in turns] == [task["kind"] == "presence" for task in drawn]
    assert all((turn["right"] is None) == (turn["said"] == CANNOT_TELL) for turn in turns)
    assert summarise_turns(turns)["not_told"] == 3 and summarise_turns(turns)["asked_again"] == 0
    unknown = [drawn[0] | {"instruction": "Compose a poem about autumn."}]
    (turn,) = record_turns(talk, features, unknown)
    assert turn["asked_again"] and UNLIKE in turn["note"] and turn["text"]
    paths = {}
    for task in drawn:
        paths[task["image_id"]] = str(tmp_path / task["image_id"].replace("/", "_"))
        Image.new("RGB", (20, 20), "green").save(paths[task["image_id"]])
    turns[0]["note"] = "<b>not bold</b>"
    page = render_dialogue_page(turns, paths, lead="Turns.", about="Drawn by chance.")
    assert page.count('<li class="card">') == 6 and "&lt;b&gt;not bold" in page and "Drawn by chance." in page
