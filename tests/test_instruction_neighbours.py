"""Instructions behind the neighbours' captions: in training, in answers, in the dialogue, the same tokens."""

from dataclasses import replace

import numpy as np
import pytest
from captioner_case import make_captioner, make_features, make_table
from PIL import Image

from rsvlm.models.answering import answer, answer_blind, answer_tasks
from rsvlm.models.dialogue import Conversation, Seen
from rsvlm.models.generation import Prompted
from rsvlm.models.inference import Captioner
from rsvlm.models.instructions import CONFIG_KEY, Asked, describe_kinds
from rsvlm.models.neighbours import instruction_neighbours, pool_options, training_memory, training_pools
from rsvlm.models.prompts import read_visual, tell_neighbours
from rsvlm.settings import CaptioningSettings, Generation
from rsvlm.study.settings import FinetuneLora
from rsvlm.training.caption_batches import TrainingBatches, examples_of, instruction_batches
from rsvlm.training.word_losses import instruction_losses
from rsvlm.viewing.dialogue_page import record_turns
from rsvlm.viewing.dialogues import _look

SETTINGS = {"batch_size": 8, "warmup_steps": 2, "validation_every": 4, "retrieval_negatives": 4}
SETTINGS |= {"instruction_share": 1.0, "instruction_neighbours": True, "neighbour_dropout": 0.0}
PROMPTING = {"neighbours": 3, "neighbour_captions": 2}


@pytest.fixture(scope="module")
def features():
    return make_features()


@pytest.fixture(scope="module")
def near(features):
    pools = training_pools(features, make_table(features), features.image_ids, **pool_options(PROMPTING))
    return pools.top(2)


@pytest.fixture
def captioner(features):
    made = make_captioner(features).eval()
    made.config = made.config | {"prompting": PROMPTING, "training": {"instruction_neighbours": True}}
    return made


def asked_of_all(features) -> list[Asked]:
    ids = features.image_ids
    plain = [Asked(one, "presence", "Is there a river?", "Yes.") for one in ids[:16]]
    return plain + [
        Asked(one, "compare_images", "Which image has more rivers?", "first", second_image_id=ids[(place + 1) % 16])
        for place, one in enumerate(ids[:16])
    ]


def test_answers_read_what_training_read(features, near, captioner):
    examples = examples_of(make_table(features), "train", near)
    batches = TrainingBatches(captioner, features, examples, CaptioningSettings(**SETTINGS), asked_of_all(features))
    batch = batches.draw(0, np.random.default_rng(0))
    chosen = [examples[place].image_id for place in batches.images(0)]
    seen = set()
    for image_id, row in zip(chosen, batch.rows):
        second = features.image_ids[(features.image_ids.index(image_id) + 1) % 16]
        for question, two in (("Is there a river?", None), ("Which image has more rivers?", second)):
            given = Prompted(
                captioner, features, [image_id], question, [near[image_id]], "upright", [two], [near.get(two, ())]
            )
            seen |= {two is None} if any([*row.prefix, *own] == given.prefixes[0] for own in row.asked) else set()
        assert list(row.prefix) == captioner.image_prefix(captioner.encode_text([tell_neighbours(near[image_id])])[0])
    assert seen == {True, False}


def test_without_the_setting_and_with_full_dropout_they_stand_alone(features, near, captioner):
    examples, prefixes = examples_of(make_table(features), "train", near), []
    for changed in ({"instruction_neighbours": False}, {"neighbour_dropout": 1.0}):
        settings = CaptioningSettings(**SETTINGS | changed)
        batch = TrainingBatches(captioner, features, examples, settings, asked_of_all(features)).draw(
            3, np.random.default_rng(0)
        )
        prefixes.append([row.prefix for row in batch.rows])
    assert prefixes[0] == prefixes[1] == [captioner.image_prefix([])] * 8


def test_validation_reads_them_too(features, near, captioner):
    asked, settings = asked_of_all(features)[:4], CaptioningSettings(**SETTINGS)
    (alone,), (behind,) = (instruction_batches(captioner, features, asked, settings, own) for own in (None, near))
    assert all(len(own.prefix) < len(more.prefix) for own, more in zip(alone.rows, behind.rows))
    losses = [instruction_losses(captioner, features, asked, settings, near=own)["nats"][0] for own in (None, near)]
    assert losses[0] != losses[1]


def test_what_they_stand_behind_is_told_by_the_captioners_config(features, near, captioner):
    table = make_table(features)
    assert instruction_neighbours(captioner.config, features, table, [features.image_ids[0]] * 2) == {
        features.image_ids[0]: near[features.image_ids[0]]
    }
    plain = captioner.config | {"training": {"instruction_neighbours": False}}
    assert instruction_neighbours(plain, features, table, features.image_ids) == {}
    assert instruction_neighbours({}, features, table, features.image_ids) == {}


def test_without_captions_in_the_prompt_the_setting_is_refused():
    with pytest.raises(ValueError, match="'instruction_neighbours' needs 'neighbour_captions' of 1 or more"):
        FinetuneLora(instruction_neighbours=True, neighbour_captions=0)


def test_answers_depend_on_them_and_blind_ones_do_not(features, near, captioner, tmp_path):
    ids, texts = features.image_ids[:4], ["Is there a river?"] * 4
    how = {"max_new_tokens": 4, "checkpoints": tmp_path / "kept"}
    alone = answer_tasks(captioner, features, ids, texts, **how)
    behind = answer_tasks(captioner, features, ids, texts, near=near, **how)  # another checkpoint than alone's
    assert not np.allclose(alone["log_probability"], behind["log_probability"])
    blind = answer_blind(captioner, features, texts, max_new_tokens=4)
    assert blind["log_probability"].nunique() == 1


def whole(captioner, features, near) -> Captioner:
    """The captioner with its memory, and an encoder that gives the features of these images."""
    known = describe_kinds([Asked("a", "presence", "Is there a river?", side) for side in ("Yes.", "No.")])
    captioner.config |= {CONFIG_KEY: known, "encoder_fingerprint": "e" * 64}

    class Known(Captioner):
        def encode(self, pictures, names, **_):
            arrays = {name: getattr(features, name)[: len(names)] for name in ("pooled", "grid", "image_embeddings")}
            return replace(features, image_ids=list(names), **arrays)

    memory = training_memory(features, make_table(features))
    weights = {"pool": 1.0, "samples": 0.0, "likelihood": 0.0, "cosine": 0.0}
    return Known(captioner, None, memory, Generation(), weights, {})


def test_one_image_from_outside_has_neighbours_too(features, near, captioner):
    own = whole(captioner, features, near)
    said = answer(own, Image.new("RGB", (32, 32)), "Is there a river?", max_new_tokens=4)
    vectors = features.image_embeddings[:1]
    told = {features.image_ids[0]: own.pools(vectors, ["image"]).top(2)["image"]}
    same = answer_tasks(captioner, features, features.image_ids[:1], ["Is there a river?"], near=told, max_new_tokens=4)
    assert (said.said, said.log_probability) == (same["answer"][0], same["log_probability"][0])


def test_the_dialogue_reads_them(features, near, captioner):
    own, image_id = whole(captioner, features, near), features.image_ids[0]
    seen = _look(own, features, image_id)
    assert seen.told == tell_neighbours(own.pools(features.image_embeddings[:1], [image_id]).top(2)[image_id])
    visual = read_visual(features, [0])
    assert Seen((visual,)).before_instruction == [visual]
    talk = Conversation(captioner, max_new_tokens=4)
    task = {"image_id": image_id, "instruction": "Is there a river?"}
    (turn,) = record_turns(talk, features, [task], near)
    expected = answer_tasks(captioner, features, [image_id], [task["instruction"]], near=near, max_new_tokens=4)
    assert turn["text"] == expected["answer"][0]
