"""Other models answer the study's tasks: what they are shown, what is kept, and their scores beside the captioner's."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from vlm_models import vlm_maker

from rsvlm.data.task_files import TWO_IMAGES
from rsvlm.files import read_json_lines, write_json_lines
from rsvlm.models.prompts import OF_TWO
from rsvlm.models.vlm import answer_pictures, caption_pictures, load_vlm, write_prompt
from rsvlm.scoring import measured
from rsvlm.scoring.instruction_study import measure_others, read_answers
from rsvlm.scoring.instructions import score_answers
from rsvlm.scoring.measured import Measured, measure_model, save_measurement
from rsvlm.settings import OtherModel, VlmSettings
from rsvlm.study.models import check_models
from rsvlm.viewing.answer_figures import others_table
from rsvlm.viewing.answer_results import answers_result


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return vlm_maker(tmp_path_factory.mktemp("vlms"))


def vlm_of(made, family, **settings):
    return load_vlm(VlmSettings(captioner=str(made(family)), max_new_tokens=6, dtype="float32", **settings), "cpu")


def pictures(count: int) -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)) for _ in range(count)]


def tasks_of(ids) -> list[dict]:
    """Of each image whether there is a river, a list, and which of two has more."""
    rows = []
    for number, image_id in enumerate(ids):
        about = {"image_id": image_id, "source": "noise", "split": "test", "language": "en", "wording": 8}
        truth = {"value": "yes", "choices": ["yes", "no"]}
        asked = [("presence", "Is a river there?", "yes", truth, {})]
        listed = {"value": ["river"], "form": "bullets", "there": ["river"]}
        asked.append(("list", "List all.", "- river", listed, {}))
        second = {"second_image_id": ids[number - 1]}
        which = {"value": "first", "choices": ["first", "second"]}
        asked.append((TWO_IMAGES, "Which has more rivers?", "first", which, second))
        for kind, text, answer, truth, more in asked:
            name = {"task_id": f"{kind}/{number}", "question": f"{kind}/{number}", "kind": kind}
            rows.append({**about, **name, "instruction": text, "answer": answer, "truth": truth, **more})
    return rows


# What a model is shown


def test_an_instruction_takes_the_place_of_the_prompt(made):
    vlm, shown = vlm_of(made, "qwen2_5_vl", one_sentence=False), pictures(2)
    same = vlm_of(made, "qwen2_5_vl", one_sentence=False, prompt="Is a river there?")
    said = answer_pictures(vlm, [([shown[0]], "Is a river there?"), ([shown[1]], vlm.settings.prompt)])
    expected = caption_pictures(same, shown[:1]) + caption_pictures(vlm, shown[1:])
    assert [" ".join(text.split()) for text in said] == expected


def test_two_pictures_are_shown_each_with_its_words(made):
    vlm, shown = vlm_of(made, "qwen2_5_vl"), pictures(3)
    prompt = write_prompt(vlm.processor, "qwen2_5_vl", "Which?", "it", images=2)
    place = vlm.prompt.partition(vlm.settings.prompt)[0].rpartition("\n")[2]
    first, second = OF_TWO
    assert place and f"{place}{first} {place}{second} Which?" in prompt
    together = answer_pictures(vlm, [(shown[:2], "Which?"), (shown[:1], "Which?"), (shown[1:], "Which?")])
    assert len(set(together)) == 3 and together[0] == answer_pictures(vlm, [(shown[:2], "Which?")])[0]


def test_a_model_that_cannot_be_shown_two_pictures_says_nothing(made):
    one, two = answer_pictures(vlm_of(made, "paligemma"), [(pictures(1), "Is it?"), (pictures(2), "Which?")])
    assert one and two == ""


def test_a_model_that_takes_no_instruction_is_refused(made):
    vlm = vlm_of(made, "git", prompt="")
    with pytest.raises(ValueError, match="GIT takes pictures alone: set prompt to '' and tasks to 0"):
        answer_pictures(vlm, [(pictures(1), "Is it?")])


# Entries and what is kept


def test_tasks_are_a_captioners_and_bounded():
    assert OtherModel(captioner="a").tasks == 0
    for entry, told in (
        ({"encoder": "a", "tasks": 3}, "'tasks': for 'captioner' alone"),
        ({"captioner": "a", "tasks": -1}, "tasks"),
        ({"captioner": "a", "tasks": 10_000_000}, "tasks"),
    ):
        with pytest.raises(ValueError, match=told):
            OtherModel.of_mapping(entry)
    with pytest.raises(
        ValueError, match="Blind.jsonl is a file of the study's own answers; give the model another name"
    ):
        check_models({"models": {"Blind": {"captioner": "a", "tasks": 3}}}, Path())
    check_models({"models": {"blind": {"captioner": "a"}}}, Path())


@pytest.fixture
def table(tmp_path):
    paths = [str(tmp_path / f"{number}.png") for number in range(4)]
    for path, picture in zip(paths, pictures(4)):
        picture.save(path)
    ids = [f"noise/{number}" for number in range(4)]
    more = {"captions": [["noise"]] * 4, "label": None, "source": "noise", "split": "test"}
    return pd.DataFrame({"image_id": ids, "path": paths, **more})


def test_a_captioner_answers_the_tasks_and_its_answers_are_kept(made, table, tmp_path, monkeypatch):
    monkeypatch.setenv("RSVLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(measured, "BLOCK", 5)
    entry = OtherModel(captioner=str(made("qwen2_5_vl")), max_new_tokens=5, tasks=12)
    tasks, options = tasks_of(list(table["image_id"])), {"split": "test", "root": tmp_path, "device": "cpu"}
    real, calls = measured.answer_pictures, []

    def stop(vlm, asked):
        calls.append(len(asked))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(vlm, asked)

    monkeypatch.setattr(measured, "answer_pictures", stop)
    with pytest.raises(KeyboardInterrupt):
        measure_model(entry, table, tasks=tasks, **options)
    found = measure_model(entry, table, tasks=tasks, **options)
    assert calls == [5, 5, 5, 2] and found.facts["tasks"] == 12  # the first block was not answered again
    assert [row["task_id"] for row in found.answers] == [task["task_id"] for task in tasks]
    assert measure_model(entry, table, **options).answers is None
    save_measurement(tmp_path / "models" / "qwen", {}, found, {}, {})
    save_measurement(tmp_path / "models" / "silent", {}, Measured(), {}, {})
    kept = read_answers(tmp_path / "models", ["qwen", "silent", "never"])
    assert kept == {"qwen": found.answers}
    scores = measure_others(tasks, kept, pd.DataFrame(columns=["task_id"]), seed=0, resamples=20)["qwen"]
    assert scores["tasks"] == 12 and set(scores["accuracy"]["noise"]) == {"presence", "list", TWO_IMAGES}


def test_a_damaged_file_of_answers_is_named(tmp_path):
    good = {"task_id": "a", "image_id": "b", "instruction": "c", "answer": ""}
    for wrong in (good | {"answer": None}, ["a"], {"task_id": "a"}):
        write_json_lines(tmp_path / "vlm" / "answers.jsonl", [good, wrong])
        with pytest.raises(
            ValueError, match=r"answers.jsonl: line 2: .*missing or no text: `dvc repro -f run_model@vlm`"
        ):
            read_answers(tmp_path, ["vlm"])


# Scores


def test_what_has_another_form_is_wrong_and_all_stand_on_the_same_tasks():
    tasks = tasks_of([f"noise/{number}" for number in range(6)])
    rows = [{key: task[key] for key in ("task_id", "image_id", "instruction")} for task in tasks]
    right = [row | {"answer": task["answer"]} for row, task in zip(rows, tasks)]
    wild = [row | {"answer": "Well, rivers are water."} for row in rows]  # neither yes, nor bullets, nor an image
    captioner = score_answers(tasks[:9], {task["task_id"]: "yes" for task in tasks[:9]})
    others = {"right": right, "wild": wild, "other tasks": [row | {"instruction": "Is it?"} for row in right]}
    found = measure_others(tasks, others, captioner, seed=0, resamples=20)
    assert set(found) == {"right", "wild"}  # answers to other instructions are none to these
    for name, value in (("right", 1), ("wild", 0)):
        assert found[name]["tasks"] == 9
        for kind, own in found[name]["accuracy"]["noise"].items():
            # a list without bullets lacks its form, what it names counts
            assert own["right"]["value"] == (value if kind != "list" else own["right"]["value"]) and own["tasks"] == 3
            assert own["format_obeyed"]["value"] == value
        assert found[name]["accuracy"]["noise"]["presence"]["captioner"]["value"] == 1
    assert found["wild"]["accuracy"]["noise"]["presence"]["minus_captioner"]["value"] == -1
    shown = others_table(found)
    assert shown.loc[("noise", "presence", "wild"), "less the captioner, points"].startswith("-100.0 [")
    assert shown.loc[("noise", TWO_IMAGES, "right"), "captioner, %"] == 0 and len(others_table({})) == 0
    metrics = {"accuracy": {}, "abstention": {"test": None}, "others": found}
    said = answers_result(metrics).text
    assert "right: 100.0 % right on average over 3 kinds; the captioner 33.3 % of the same" in said
    assert (
        answers_result(metrics | {"others": {}}).text
        == answers_result({"accuracy": {}, "abstention": {"test": None}}).text
    )


def test_files_beside_the_captioners(tmp_path):
    from rsvlm.scoring.instruction_study import save_answers

    rows = [{"task_id": "a", "image_id": "b", "instruction": "c", "answer": "d"}]
    save_answers(tmp_path / "answers", {"captioner": pd.DataFrame(rows), "vlm": pd.DataFrame(rows)}, {})
    assert read_json_lines(tmp_path / "answers" / "vlm.jsonl") == rows
