"""Instructions in training: which images get them, what a packed row computes, and that nothing else of a step moves."""

import numpy as np
import pandas as pd
import pytest
import torch
from captioner_case import KINDS, make_captioner, make_features, make_table

from rsvlm.files import read_json_lines, write_json_lines
from rsvlm.models.answering import answer_blind, answer_tasks, blank_features
from rsvlm.models.generation import Prompted, beam_captions, caption_log_likelihoods
from rsvlm.models.instructions import CONFIG_KEY, LIKE, Asked, KnownInstructions, asked_of, describe_kinds
from rsvlm.models.prompts import UPRIGHT, Row, pack_rows, read_visual
from rsvlm.settings import CaptioningSettings
from rsvlm.training.caption_batches import TrainingBatches, examples_of, instruction_batches
from rsvlm.training.captioning import train_captioner

QUICK = {"batch_size": 8, "warmup_steps": 2, "validation_every": 4, "checkpoint_every": 3, "retrieval_negatives": 4}
NOUNS = ("river", "airplanes", "courts", "forest")  # of KINDS


@pytest.fixture(scope="module")
def features():
    return make_features()


@pytest.fixture(scope="module")
def tasks(features, tmp_path_factory):
    """A file with four instructions about each image, as make_instructions writes them."""
    rows = []
    for row in make_table(features).itertuples(index=False):
        noun = NOUNS[KINDS.index(row.label)]
        other = NOUNS[(KINDS.index(row.label) + 1) % len(NOUNS)]
        asked = [
            ("presence", 0, f"Is there a {noun}?", "Yes."),
            ("presence", 1, f"Can {noun} be seen?", "Yes."),
            ("presence", 0, f"Is there a {other}?", "No."),
            ("one_sentence", 0, "Say it in one sentence.", row.captions[0]),
        ]
        for number, (kind, wording, instruction, answer) in enumerate(asked):
            own = {"task_id": f"{row.image_id}:{number}", "image_id": row.image_id, "split": row.split, "kind": kind}
            more = {"wording": wording, "held_out": False, "truth": {}, "language": "en"}
            rows.append({**own, "instruction": instruction, "answer": answer, **more})
    path = tmp_path_factory.mktemp("instructions") / "tasks.jsonl"
    write_json_lines(path, rows)
    return path


@pytest.fixture(scope="module")
def examples(features):
    table = make_table(features)
    neighbours = {image_id: [KINDS[0]] for image_id in features.image_ids}
    return examples_of(table, "train", neighbours), examples_of(table, "val", neighbours)


def draw(features, examples, asked, step=0, **settings):
    captioner = make_captioner(features)
    batches = TrainingBatches(captioner, features, examples[0], CaptioningSettings(**QUICK | settings), asked)
    return batches, batches.draw(step, np.random.default_rng([0, 2, step]))


def same(one, other):
    """Whether two batches are the same, bit for bit."""
    tensors = ("weights", "pooled", "positives")
    alike = all(torch.equal(getattr(one, name), getattr(other, name)) for name in tensors)
    visual = torch.equal(one.visual.pooled, other.visual.pooled) and torch.equal(one.visual.grid, other.visual.grid)
    return alike and visual and one.rows == other.rows and one.is_answer is other.is_answer is None


def test_the_instructions_of_a_split_are_read(tasks, tmp_path):
    asked = asked_of(tasks, "train")
    assert {one.kind for one in asked} == {"presence", "one_sentence"} and len(asked) == 4 * 16
    write_json_lines(tmp_path / "empty.jsonl", [])
    assert asked_of(tmp_path / "empty.jsonl", "train") == []
    with pytest.raises(FileNotFoundError, match="none.jsonl: no instructions; run the stage make_instructions"):
        asked_of(tmp_path / "none.jsonl", "train")
    rows = read_json_lines(tasks)
    for wrong in ({"answer": ""}, {"answer": None}, {"instruction": 3}, {"wording": "first"}):
        write_json_lines(tmp_path / "wrong.jsonl", [rows[0], rows[1] | wrong])
        with pytest.raises(ValueError, match=f"wrong.jsonl: line 2: {next(iter(wrong))} missing or empty"):
            asked_of(tmp_path / "wrong.jsonl", "train")


@pytest.mark.parametrize("off", [{"instruction_share": 0.0}, {"instruction_share": 0.5, "instruction_weight": 0.0}])
def test_without_a_share_the_batches_are_those_without_instructions(features, examples, tasks, off):
    for step in range(4):
        plain = draw(features, examples, [], step)[1]
        assert same(plain, draw(features, examples, asked_of(tasks, "train"), step, **off)[1])


def test_without_a_share_the_training_is_that_without_instructions(features, examples, tasks, tmp_path):
    states, results = [], []
    asked = asked_of(tasks, "train"), asked_of(tasks, "val")
    for given in ((), ()), asked:
        captioner = make_captioner(features, lora_dropout=0.1)
        settings = CaptioningSettings(**QUICK, steps=4, feature_dropout=0.1)
        quiet = {"checkpoints": tmp_path, "log": lambda line: None}
        results.append(train_captioner(captioner, features, *examples, settings, asked=given, **quiet))
        states.append(captioner.trained_state())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert results[0] == results[1] and "instruction_loss" not in results[1].curve[0]


def test_the_other_images_of_a_step_are_as_without_instructions(features, examples, tasks):
    plain = draw(features, examples, [])[1]
    batches, batch = draw(features, examples, asked_of(tasks, "train"), instruction_share=0.5, instructions_per_image=2)
    told = [place for place, row in enumerate(batch.rows) if row.asked]
    assert len(told) == 4
    for place, row in enumerate(batch.rows):
        assert row.texts == plain.rows[place].texts  # what [RET] learns from
        if place not in told:
            assert row == plain.rows[place]
            assert torch.equal(batch.visual.pooled[place], plain.visual.pooled[place])
        else:
            assert len(row.asked) == len(row.captions) == 2
            image = batches.rows[batches.images(0)[place]]
            assert torch.equal(batch.visual.pooled[place], read_visual(features, [image], UPRIGHT).pooled[0])
    assert torch.equal(batch.pooled[8:], plain.pooled[8:])
    owners = [place for place, row in enumerate(batch.rows) for _ in row.captions]
    assert batch.is_answer.tolist() == [place in told for place in owners]


def test_the_share_of_instructions_is_what_was_asked_for(features, examples, tasks):
    counts = []
    for step in range(60):
        batch = draw(features, examples, asked_of(tasks, "train"), step, instruction_share=0.3)[1]
        counts.append(sum(bool(row.asked) for row in batch.rows))
    assert set(counts) == {2, 3} and abs(np.mean(counts) / 8 - 0.3) < 0.03


def test_packed_instructions_give_what_each_gives_alone(features):
    """The loss of an answer in a row of several is that of the answer behind its own prompt."""
    captioner = make_captioner(features).eval()
    image_id = features.image_ids[3]
    texts = [("Is there a river?", "Yes."), ("Where is the lake?", "At the top."), ("Say it.", "A dense forest.")]
    asked = [Asked(image_id, "any", *pair) for pair in texts]
    settings = CaptioningSettings(batch_size=8, instructions_per_image=8)
    (batch,) = instruction_batches(captioner, features, asked, settings)
    packed = captioner.pack(batch.rows)
    with torch.no_grad():
        hidden = captioner.hidden_states(packed, captioner.visual_tokens(batch.visual.pooled, batch.visual.grid))
        nll = captioner.negative_log_likelihoods(hidden[packed.predict_at], packed.labels)
    for number, (instruction, answer) in enumerate(texts):
        alone = Prompted(captioner, features, [image_id], instruction)
        (expected,) = caption_log_likelihoods(alone, [[answer]], mean=False)
        assert -nll[packed.owners == number].sum().item() == pytest.approx(expected[0], abs=1e-4)
    counts = np.bincount(packed.owners.numpy())
    np.testing.assert_allclose(batch.weights.numpy(), 1 / counts, rtol=1e-6)


def test_as_much_is_answered_as_is_asked():
    with pytest.raises(ValueError, match="row 0 asks 2 times and has 1 answers"):
        pack_rows([Row([1], [[2]], asked=[[3], [4]])], eos_id=0, ret_id=9)


def test_it_learns_to_answer(features, examples, tasks, tmp_path):
    captioner = make_captioner(features)
    with torch.no_grad():
        captioner.language_model.get_output_embeddings().weight.mul_(30)
    settings = CaptioningSettings(
        **QUICK | {"validation_every": 15, "steps": 90, "projection_lr": 2e-2, "lora_lr": 2e-2},
        instruction_share=0.5,
        instruction_weight=1.0,
    )
    asked = asked_of(tasks, "train"), asked_of(tasks, "val")
    quiet = {"checkpoints": tmp_path, "log": lambda line: None}
    result = train_captioner(captioner, features, *examples, settings, asked=asked, **quiet)
    assert result.curve[-1]["instruction_loss"] < 0.5 * result.curve[0]["instruction_loss"]
    assert result.curve[-1]["caption_loss"] < 0.5 * result.curve[0]["caption_loss"]
    assert result.validation[-1]["instruction_loss"] < result.validation[0]["instruction_loss"]
    best = min(result.validation, key=lambda row: row["caption_loss"] + row["instruction_loss"])
    assert result.kept_step == best["step"] and result.metrics()["validation"]["instruction_loss"] > 0


def test_an_instruction_about_a_foreign_image_is_named(features, examples):
    with pytest.raises(ValueError, match="elsewhere.png: an instruction about it"):
        draw(features, examples, [Asked("elsewhere.png", "presence", "Is it?", "Yes.")], instruction_share=0.5)


# Answers


@pytest.fixture(scope="module")
def captioner(features):
    return make_captioner(features).eval()


def test_answers_in_batches_are_those_of_one_at_a_time(captioner, features):
    ids = [features.image_ids[i] for i in (0, 1, 2, 3, 0)]
    texts = ["Is there a river?", "Where?", "List all that you can see in the image.", "Yes or no: is it?", "Count."]
    choices = [["Yes.", "No."], (), (), ["No.", "Yes."], ["one", "two", "three"]]
    together = answer_tasks(captioner, features, ids, texts, choices=choices, batch_size=4, max_new_tokens=5)
    assert together["margin"].isna().tolist() == [False, True, True, False, False]
    for place, row in together.iterrows():
        asked = Prompted(captioner, features, [ids[place]], texts[place])
        assert row["answer"] == beam_captions(asked, max_new_tokens=5)[0][0] and row["cut_off"]
        if choices[place]:
            others = [text for text in choices[place] if text != row["answer"]]
            (likely,) = caption_log_likelihoods(asked, [[row["answer"], *others]], mean=False)
            assert row["margin"] == pytest.approx(likely[0] - likely[1:].max(), abs=1e-3)
    with pytest.raises(ValueError, match="5 images, 1 instructions and 5 lists"):
        answer_tasks(captioner, features, ids, ["Where?"], choices=choices)


def test_answers_go_on_where_they_were_stopped(captioner, features, tmp_path, monkeypatch):
    monkeypatch.setattr("rsvlm.models.answering.BLOCK", 2)
    ids, texts = list(features.image_ids[:5]), ["Is there a river?", "Where?", "List all.", "Yes or no?", "Count."]
    whole = answer_tasks(captioner, features, ids, texts, max_new_tokens=4)
    from rsvlm.models import answering

    calls, answer = [], answering._answer

    def stop(*given):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return answer(*given)

    monkeypatch.setattr(answering, "_answer", stop)
    with pytest.raises(KeyboardInterrupt):
        answer_tasks(captioner, features, ids, texts, max_new_tokens=4, checkpoints=tmp_path)
    assert len(list(tmp_path.rglob("block_*.jsonl"))) == 1
    went_on = answer_tasks(captioner, features, ids, texts, max_new_tokens=4, checkpoints=tmp_path)
    assert len(calls) == 4  # the first block was not answered again
    pd.testing.assert_frame_equal(went_on, whole)
    answer_tasks(captioner, features, ids, ["Other?", *texts[1:]], max_new_tokens=4, checkpoints=tmp_path)
    assert len(calls) == 7  # other tasks have blocks of their own


def test_blind_answers_know_no_image(captioner, features):
    texts = ["Is there a river?", "Where?", "Is there a river?"]
    blind = answer_blind(captioner, features, texts, max_new_tokens=4)
    assert blind.loc[0].equals(blind.loc[2])
    blank = blank_features(captioner, features, ["any"])
    assert blind["answer"][1] == beam_captions(Prompted(captioner, blank, ["any"], "Where?"), max_new_tokens=4)[0][0]


# What a captioner knows


def test_kinds_are_described_by_their_wordings_and_few_answers(tasks, monkeypatch):
    described = describe_kinds(asked_of(tasks, "train"))
    assert described["presence"]["choices"] == ["Yes.", "No."]
    assert described["one_sentence"]["choices"] == sorted(KINDS)
    assert described["presence"]["forms"] == [["a", "is", "there"], ["be", "can", "seen"]]
    assert described["presence"]["filled"] == sorted(NOUNS)
    assert described["presence"]["examples"] == ["Is there a airplanes?", "Can airplanes be seen?"]
    monkeypatch.setattr("rsvlm.models.instructions.MOST_CHOICES", 3)
    described = describe_kinds(asked_of(tasks, "train"))
    assert described["one_sentence"]["choices"] is None and described["one_sentence"]["filled"] == []
    assert describe_kinds([]) == {}


def test_a_text_is_held_against_known_instructions(tasks, captioner):
    known = KnownInstructions(describe_kinds(asked_of(tasks, "train")))
    for text, kind in (("is there a lake", "presence"), ("Say it in a sentence!", "one_sentence")):
        found, like = known.recognise(text)
        assert found == kind and like >= LIKE
    for text in ("Write a poem about autumn", "river and forest", "", "?!", "الصحراء"):
        assert known.recognise(text)[1] < LIKE
    assert known.recognise("Is there a river?") == ("presence", pytest.approx(1.0))
    assert known.choices("presence") == ["Yes.", "No."] and known.choices(None) == known.choices("other") == []
    nothing = KnownInstructions.of(captioner)
    assert CONFIG_KEY not in captioner.config and nothing.recognise("Is there a river?") == (None, 0.0)
