"""Tasks about two images: their truth, what the captioner reads of them, and that nothing else moves for them."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from captioner_case import make_captioner, make_features, make_table
from PIL import Image
from test_foreign_wishes import _Outside
from test_instructions import SCENES, caption_case, land_case, tile

from rsvlm.data.image_facts import caption_facts
from rsvlm.data.instruction_kinds import KINDS as TASK_KINDS
from rsvlm.data.instruction_kinds import Table, wordings
from rsvlm.data.instructions import make_tasks
from rsvlm.data.task_files import TWO_IMAGES, load_tasks
from rsvlm.files import write_json, write_json_lines
from rsvlm.models.answering import answer, answer_blind, answer_tasks
from rsvlm.models.dialogue import ANSWER, Conversation, Seen, Unclear
from rsvlm.models.generation import Prompted, beam_captions, caption_log_likelihoods
from rsvlm.models.instructions import CONFIG_KEY, Asked, asked_of, describe_kinds
from rsvlm.models.prompts import OF_TWO, VISUAL, read_visual
from rsvlm.scoring.instruction_study import answer_all, wrong_images
from rsvlm.scoring.instructions import majority_answers, score_answers
from rsvlm.settings import CaptioningSettings, TaskSettings
from rsvlm.study import memory
from rsvlm.training.caption_batches import TrainingBatches, examples_of, instruction_batches
from rsvlm.training.captioning import train_captioner
from rsvlm.training.processes import Team
from rsvlm.viewing.answer_results import step_table
from rsvlm.viewing.dialogue_page import draw_turns
from rsvlm.viewing.instruction_figures import draw_tasks


@pytest.fixture(scope="module")
def features():
    return make_features()


@pytest.fixture(scope="module")
def captioner(features):
    return make_captioner(features).eval()


# Truth


class _All:
    """Draws everything there is."""

    def sample(self, values, count):
        return list(values)


def asked(first, second) -> dict[tuple[str, str], str]:
    """(form, thing) -> answer, of all that is asked of two images of a study in which all things are common."""
    names = {*first.named, *second.named}
    table = Table(dict.fromkeys(names, 9), 10, [first, second])
    questions = list(TASK_KINDS[TWO_IMAGES](first, table, _All()))
    assert all(one.facts is first and one.second == second.image_id for one in questions)
    return {(one.form.partition(":")[2], one.truth["thing"]): one.answer for one in questions}


def test_of_a_cover_the_image_has_more_whose_share_is_surely_larger():
    sea, field, even = ({"sea": 0.7, "grassland": 0.3}, {"cropland": 0.5, "grassland": 0.5}, {"grassland": 0.36, "sea": 0.64})  # fmt: skip
    tiles = [tile(number, "test", shares) for number, shares in enumerate((sea, field, even))]
    found = asked(tiles[0], tiles[1])
    assert found["more", "sea"] == "first" and found["more", "grassland"] == "second" == found["more", "cropland"]
    assert found["both", "grassland"] == "yes" and found["both", "sea"] == found["both", "cropland"] == "no"
    nearly = asked(tiles[0], tiles[2])  # 70 and 64 % of sea, 30 and 36 % of grassland are too alike to ask for
    assert not any(form == "more" for form, _ in nearly) and nearly["both", "sea"] == "yes"


def test_of_a_thing_the_image_has_more_that_has_more_of_them():
    two = caption_facts("s/a", "s", "test", SCENES["airplane"], "airplane")
    five = caption_facts(
        "s/b", "s", "test", ["Five airplanes at the airport .", "There are five airplanes ."], "airplane"
    )
    boats = caption_facts("s/c", "s", "test", SCENES["harbor"], "harbor")
    one = caption_facts("s/d", "s", "test", ["One boat in the harbor .", "There is one boat in the harbor ."], "harbor")
    assert asked(two, five)["more", "airplane"] == "second" and asked(five, two)["more", "airplane"] == "first"
    assert asked(two, five)["both", "airplane"] == "yes" and asked(two, boats)["both", "airplane"] == "no"
    assert asked(two, boats)["more", "boat"] == "second" and asked(two, boats)["more", "airplane"] == "first"
    assert ("more", "boat") not in asked(boats, one)  # "many" and one: nobody counted
    assert ("both", "road") not in asked(two, boats)  # what captions do not tell may be there


@pytest.mark.parametrize("case", [caption_case, land_case])
def test_tasks_are_balanced_of_one_split_and_worded_apart(case):
    facts = {one.image_id: one for one in case()}
    tasks = make_tasks(facts.values(), TaskSettings(kinds=[TWO_IMAGES], test_tasks=16))
    assert {task["split"] for task in tasks} == {"train", "val", "test"}
    for task in tasks:
        first, second = facts[task["image_id"]], facts[task["second_image_id"]]
        assert first is not second and (first.split, first.source) == (second.split, second.source)
        assert task["answer"] in task["truth"]["choices"] and "{" not in task["instruction"]
    for split in ("train", "val", "test"):
        own = [task for task in tasks if task["split"] == split]
        answers = Counter((task["truth"]["thing"], task["answer"]) for task in own)
        for thing, _ in list(answers):
            assert answers[thing, "first"] == answers[thing, "second"]
            assert answers[thing, "yes"] == answers[thing, "no"]
        assert {"first", "second", "yes", "no"} == {answer for _, answer in answers}
    learnt = {task["instruction"] for task in tasks if task["split"] == "train"}
    forms = [part["train"] for name, part in wordings().items() if name.startswith(TWO_IMAGES)]
    assert len(forms) == 2 and not learnt & {task["instruction"] for task in tasks if task["held_out"]}
    assert all(task["held_out"] == (task["wording"] >= 8) == (task["split"] != "train") for task in tasks)


def test_other_kinds_have_the_tasks_that_they_had():
    kinds = [kind for kind in TASK_KINDS if kind != TWO_IMAGES]
    plain = make_tasks(land_case(), TaskSettings(kinds=kinds))
    mixed = make_tasks(land_case(), TaskSettings(kinds=["all"]))
    held = [[task for task in own if task["held_out"] and task["kind"] != TWO_IMAGES] for own in (plain, mixed)]
    assert held[0] == held[1] and not any("second_image_id" in task for task in (*plain, *held[1]))


# Files


def rows_of(features, second="made/01.png"):
    about = {"split": "train", "kind": TWO_IMAGES, "wording": 0, "language": "en", "answer": "first"}
    plain = {**about, "kind": "presence", "image_id": "made/00.png", "instruction": "Is there a river?"}
    of_two = {**about, "image_id": "made/00.png", "instruction": "Which image has more rivers?"}
    return [plain, of_two | ({} if second is None else {"second_image_id": second})]


@pytest.mark.parametrize("read", [lambda path, **more: asked_of(path, "train", **more), load_tasks])
def test_a_missing_second_image_is_named_with_its_file_and_line(features, tmp_path, read):
    path = tmp_path / "tasks.jsonl"
    write_json_lines(path, rows_of(features))
    assert len(read(path)) == len(read(path, images=set(features.image_ids))) == 2
    for wrong in (None, "", 3, "made/00.png"):
        write_json_lines(path, rows_of(features, wrong))
        with pytest.raises(ValueError, match="tasks.jsonl: line 2: second_image_id missing, or no other image's: run"):
            read(path)
    write_json_lines(path, rows_of(features, "made/99.png"))
    with pytest.raises(ValueError, match="tasks.jsonl: line 2: second_image_id is 'made/99.png', which is no image of"):
        read(path, images=set(features.image_ids))


# What the captioner reads


def test_a_second_image_stands_in_the_instruction_and_the_first_where_it_always_does(captioner, features):
    ids = features.image_ids[:2]
    one, two = (Prompted(captioner, features, ids, "Which?", seconds=own) for own in (None, [None, ids[0]]))
    n, H = captioner.settings.tokens_per_image, captioner.ret_input.shape[0]
    assert two.prefixes[0] == one.prefixes[0] and two.prefixes[1].count(VISUAL) == 2 * n
    shown = captioner.decode_text([token for token in two.prefixes[1] if token != VISUAL])
    assert shown == captioner.decode_text([t for text in (*OF_TWO, "Which?") for t in captioner.encode_text([text])[0]])
    tokens = two.visual_tokens([0, 1])
    assert tokens.shape == (2, 2 * n, H) and not tokens[0, n:].any()
    assert torch.equal(tokens[:, :n], one.visual_tokens([0, 1]))
    torch.testing.assert_close(tokens[1, n:], tokens[0, :n])
    with pytest.raises(ValueError, match="2 images, but 1 second ones"):
        _ = Prompted(captioner, features, ids, "Which?", seconds=[None]).prefixes


def test_answers_about_two_images_beside_others_are_those_of_one_at_a_time(captioner, features):
    ids, texts = list(features.image_ids[:4]), ["Which has more?", "Is it?", "Which has more?", "Which has more?"]
    seconds, choices = [ids[1], None, ids[3], ids[0]], [["first", "second"]] * 4
    together = answer_tasks(captioner, features, ids, texts, seconds=seconds, choices=choices, max_new_tokens=5)
    for place, row in together.iterrows():
        asked = Prompted(captioner, features, [ids[place]], texts[place], seconds=[seconds[place]])
        assert row["answer"] == beam_captions(asked, max_new_tokens=5)[0][0]
        others = [text for text in choices[place] if text != row["answer"]]
        (likely,) = caption_log_likelihoods(asked, [[row["answer"], *others]], mean=False)
        assert row["margin"] == pytest.approx(likely[0] - likely[1:].max(), abs=1e-3)
    how = {"choices": choices[:1], "max_new_tokens": 5}
    (alone,) = (answer_tasks(captioner, features, ids[:1], texts[:1], **how)["margin"],)
    other = answer_tasks(captioner, features, ids[:1], texts[:1], seconds=[ids[2]], **how)["margin"]
    assert (
        len({round(float(value[0]), 4) for value in (together["margin"], alone, other)}) == 3
    )  # it looks at the second
    with pytest.raises(ValueError, match="4 images, 4 instructions and 4 lists of choices, 1 second images"):
        answer_tasks(captioner, features, ids, texts, seconds=[None])


def test_packed_comparisons_give_what_each_gives_alone(captioner, features):
    ids = features.image_ids
    texts = [
        ("Is there a river?", "Yes.", ""),
        ("Which?", "first", ids[5]),
        ("Do both?", "no", ids[6]),
        ("Say.", "A.", ""),
    ]
    told = [Asked(ids[3], "any", text, said, second_image_id=second) for text, said, second in texts]
    told += [Asked(ids[4], "any", "Is it?", "No.")]
    (batch,) = instruction_batches(
        captioner, features, told, CaptioningSettings(batch_size=8, instructions_per_image=8)
    )
    assert batch.second_counts == (2, 0) and len(batch.seconds.pooled) == 2
    packed = captioner.pack(batch.rows)
    with torch.no_grad():
        hidden = captioner.hidden_states(packed, batch.visual_tokens(captioner))
        nll = captioner.negative_log_likelihoods(hidden[packed.predict_at], packed.labels)
    for number, one in enumerate(told):
        alone = Prompted(captioner, features, [one.image_id], one.instruction, seconds=[one.second_image_id or None])
        (expected,) = caption_log_likelihoods(alone, [[one.answer]], mean=False)
        assert -nll[packed.owners == number].sum().item() == pytest.approx(expected[0], abs=1e-4)
    for rank, counts in ((0, (2,)), (1, (0,))):  # what each of two processes computes
        part = batch.part(Team(rank, 2))
        assert part.second_counts == counts and (part.seconds is not None) == (rank == 0)
        own = part.visual_tokens(captioner)
        torch.testing.assert_close(own, batch.visual_tokens(captioner)[rank : rank + 1, : own.shape[1]])


def test_a_step_without_a_comparison_is_as_it_was(captioner, features):
    """The very tensors that the decoder got before there were comparisons."""
    table = make_table(features)
    told = [Asked(image_id, "presence", "Is there a river?", "yes") for image_id in features.image_ids[:16]]
    settings = CaptioningSettings(batch_size=8, retrieval_negatives=4, instruction_share=0.5)
    batch = TrainingBatches(captioner, features, examples_of(table, "train"), settings, told).draw(
        0, np.random.default_rng(0)
    )
    assert batch.seconds is None and batch.second_counts == ()
    assert torch.equal(batch.visual_tokens(captioner), captioner.visual_tokens(batch.visual.pooled, batch.visual.grid))
    for row in batch.rows:
        assert (
            not any(VISUAL in own for own in row.asked)
            and VISUAL not in row.prefix[captioner.settings.tokens_per_image + 1 :]
        )


def test_comparisons_are_learnt(features, tmp_path):
    table = make_table(features)
    ids = list(table.loc[table["split"] == "train", "image_id"])
    told = [
        Asked(ids[i], TWO_IMAGES, "Which has the river?", "first" if i % 4 == 0 else "second", second_image_id=ids[j])
        for i in range(16)
        for j in range(16)
        if (i % 4 == 0) != (j % 4 == 0)
    ]
    made = make_captioner(features)
    settings = CaptioningSettings(
        batch_size=8, steps=4, warmup_steps=1, validation_every=4, checkpoint_every=4, retrieval_negatives=4,
        instruction_share=1.0, instructions_per_image=2, feature_dropout=0.1,
    )  # fmt: skip
    quiet = {"checkpoints": tmp_path, "log": lambda line: None}
    examples = examples_of(table, "train"), examples_of(table, "val")
    result = train_captioner(made, features, *examples, settings, asked=(told, told[:4]), **quiet)
    assert result.curve[-1]["instruction_loss"] < result.curve[0]["instruction_loss"]
    shown = step_table(TrainingBatches(made, features, examples[0], settings, told), 0)
    assert shown["read"].str.contains("This is the first image. This is the second image.", regex=False).all()
    with pytest.raises(ValueError, match="made/23.png: an instruction's second image, but it is no image to train on"):
        TrainingBatches(made, features, examples[0], settings, [replace(told[0], second_image_id="made/23.png")])


# Baselines and scores


def tasks_of(features):
    ids, about = (
        features.image_ids,
        {"source": "made", "split": "test", "kind": TWO_IMAGES, "wording": 8, "language": "en"},
    )
    rows = []
    for number in range(6):
        choices = ["first", "second"] if number % 2 else ["yes", "no"]
        rows.append({**about, "task_id": str(number), "question": str(number), "image_id": ids[number], "second_image_id": ids[(number + 1) % 6],
            "instruction": "Which?" if number % 2 else "Both?", "answer": choices[0], "truth": {"value": choices[0], "choices": choices}})  # fmt: skip
    return rows


def test_both_images_are_replaced_where_the_wrong_ones_are_shown(features):
    tasks = tasks_of(features)
    firsts, seconds = wrong_images(tasks, seed=0)
    for task, first, second in zip(tasks, firsts, seconds, strict=True):
        assert not {first, second} & {task["image_id"], task["second_image_id"]} and first != second
    plain = [{key: value for key, value in task.items() if key != "second_image_id"} for task in tasks]
    assert set(wrong_images(plain, seed=0)[1]) == {None}


def test_baselines_answer_comparisons_too(captioner, features):
    tasks = tasks_of(features)
    answers = answer_all(captioner, features, tasks, max_new_tokens=3)
    assert answers["captioner"]["margin"].notna().all()
    assert answers["blind"]["answer"][::2].nunique() == answers["blind"]["answer"][1::2].nunique() == 1
    texts = ["Which?", "Which?"]
    blind = answer_blind(captioner, features, texts, seconds=["any", None], choices=[["a", "b"]] * 2, max_new_tokens=3)
    assert blind["margin"][0] != blind["margin"][1]  # one image's place is not two images'
    told = majority_answers(
        [task | {"answer": said} for task, said in zip(tasks, "no second no first yes second".split())], tasks
    )
    assert list(told.values()) == ["no", "second"] * 3


@pytest.mark.parametrize(
    ("said", "truth", "right", "obeyed"),
    [
        ("first", "first", 1, True), ("The second image.", "second", 1, True), ("Image 2", "second", 1, True),
        ("the 1st one", "first", 1, True), ("second", "first", 0, True), ("first and second", "first", 0, False),
        ("a river", "first", 0, False), ("Yes.", "yes", 1, True), ("first", "yes", 0, False),
    ],
)  # fmt: skip
def test_how_an_answer_about_two_images_is_read(said, truth, right, obeyed, features):
    choices = ["first", "second"] if truth in ("first", "second") else ["yes", "no"]
    task = tasks_of(features)[0] | {"truth": {"value": truth, "choices": choices}}
    scores = score_answers([task], {"0": said})
    assert (scores["right"][0], scores["format_obeyed"][0]) == (right, obeyed)


# Pictures, memory, one's own images


def test_both_images_are_shown(features, tmp_path):
    tasks, table = tasks_of(features), make_table(features)
    table["path"] = [str(tmp_path / f"{place}.png") for place in range(len(table))]
    for place, path in enumerate(table["path"]):
        Image.new("RGB", (40, 40), (10 * place, 0, 0)).save(path)
    one = {key: value for key, value in tasks[0].items() if key != "second_image_id"} | {"kind": "presence"}
    drawn = draw_tasks([tasks[0], one], table, most=2, seed=0, pixels=80)
    two, single = (np.asarray(axes.images[0].get_array()) for axes in drawn.axes)
    assert two.shape[:2] == (40, 85) and single.shape[:2] == (40, 40)
    assert two[20, 20, 0] == 0 and two[20, 60, 0] == 10 and two[20, 42].tolist() == [255, 255, 255]


def test_memory_counts_second_images(monkeypatch, tmp_path):
    monkeypatch.setattr(memory.paths, "INSTRUCTIONS", tmp_path)
    assert memory.two_images_share() == 0
    counts = {"s": {"train": {"presence": 30, TWO_IMAGES: 10}, "test": {TWO_IMAGES: 99}}}
    write_json(tmp_path / "about.json", {"by_source": counts})
    assert memory.two_images_share() == 0.25


def test_two_of_ones_own_images_are_compared(features, captioner, monkeypatch):
    known = [
        Asked("a", TWO_IMAGES, "Which image has more rivers?", side, second_image_id="b")
        for side in ("first", "second")
    ]
    known += [Asked("a", "presence", "Is there a river?", side) for side in ("yes", "no")]
    monkeypatch.setattr(captioner, "config", captioner.config | {CONFIG_KEY: describe_kinds(known)})
    own, image = _Outside(captioner, features), Image.new("RGB", (32, 32))
    monkeypatch.setattr(own, "encode", lambda pictures, names: replace(features, image_ids=list(names)))
    said = answer(own, image, "Which image has more lakes?", second=image, max_new_tokens=4)
    given = features.image_ids[:2]
    same = answer_tasks(
        captioner, features, given[:1], ["Which image has more lakes?"], seconds=given[1:], max_new_tokens=4
    )
    assert said.kind == TWO_IMAGES and said.said == same["answer"][0] and said.margin is not None
    with pytest.raises(ValueError, match="compares two images, and there is one: give the other as `second`"):
        answer(own, image, "Which image has more lakes?")
    seen = Seen((read_visual(features, [0]),))
    talk = Conversation(captioner, max_new_tokens=4)
    talk.give_image("made/00.png", seen)
    with pytest.raises(Unclear, match="the dialogue is about one: rsvlm.answer takes a second") as unclear:
        list(talk.ask("Which image has more lakes?"))
    assert (ANSWER, "Which image has more lakes?") in unclear.value.offers
    assert draw_turns(tasks_of(features), 5, seed=0) == []
    monkeypatch.setattr(captioner, "config", captioner.config | {CONFIG_KEY: describe_kinds(known[2:])})
    with pytest.raises(ValueError, match="not trained to compare two images"):
        answer(own, image, "Which image has more lakes?", second=image)
