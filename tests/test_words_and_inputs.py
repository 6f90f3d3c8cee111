"""Which words carry the loss, and what each input is worth: sums that agree with the whole, inputs that are really gone."""

import numpy as np
import pandas as pd
import pytest
import torch
from captioner_case import make_captioner, make_features, make_table
from PIL import Image

from rsvlm.models.ablation import INPUTS, measure_inputs, without_adapters
from rsvlm.models.generation import Prompted, caption_log_likelihoods
from rsvlm.settings import CaptioningSettings
from rsvlm.training.caption_batches import Example, examples_of
from rsvlm.training.word_losses import END, summarise_words, word_losses
from rsvlm.viewing.caption_figures import (
    GROUPS,
    draw_inputs,
    draw_words,
    group_words,
    input_figure,
    input_table,
    word_figure,
)

NEAR = {"made/16.png": ["Many rivers."], "made/17.png": ["A river."]}


@pytest.fixture(scope="module")
def features():
    return make_features()


@pytest.fixture(scope="module")
def captioner(features):
    made = make_captioner(features).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(3))
    return made


@pytest.fixture(scope="module")
def examples(features):
    near = {image_id: ["A river."] for image_id in features.image_ids} | NEAR
    return examples_of(make_table(features), "val", near)


@pytest.fixture(scope="module")
def words(captioner, features, examples):
    return word_losses(captioner, features, examples, CaptioningSettings(batch_size=3))


def test_words_add_up_to_the_captions_loss(captioner, features, examples, words):
    asked = Prompted(
        captioner, features, [one.image_id for one in examples], neighbours=[one.neighbours for one in examples]
    )
    texts = [list(dict.fromkeys(one.captions)) for one in examples]
    whole = caption_log_likelihoods(asked, texts, mean=False)
    found = words.groupby(["image_id", "caption"])["nats"].sum()
    for example, own in zip(examples, whole, strict=True):
        assert found[example.image_id].tolist() == pytest.approx((-own).tolist(), abs=2e-3)
    first = words[(words["image_id"] == examples[0].image_id) & (words["caption"] == 0)]
    assert first["word"].tolist()[-1] == END and "".join(first["word"][:-1]).replace(" ", "") == texts[0][0].replace(
        " ", ""
    )


def test_a_word_of_the_prompt_is_known(captioner, features):
    example = Example("made/16.png", ("A river.",), ("The RIVER is wide.",))
    found = word_losses(captioner, features, [example], CaptioningSettings(batch_size=1))
    assert dict(zip(found["word"], found["in_prompt"])) == {"A": False, "river": True, ".": False, END: False}
    assert group_words(found).tolist() == [GROUPS[1], GROUPS[0], GROUPS[3], GROUPS[3]]
    said = summarise_words(found.assign(nats=1.0, tokens=1), found.assign(nats=[4.0, 1.0, 2.0, 3.0], tokens=1))
    assert said == {"images": 1, "before": 1.0, "after": 2.5, "in_prompt": 1.0, "not_in_prompt": 3.0}


def test_words_are_drawn(words):
    before = words.assign(nats=words["nats"] + 1, word=words["word"].replace("river", "$5"))
    left, right = word_figure(before, words).axes
    assert "% of the loss" in left.texts[0].get_text() and left.get_xlabel() == "nats a word"
    drawn = draw_words(before, words, count=2)
    said = [text.get_text() for text in drawn.axes[0].texts]
    assert said.count("before") == said.count("after") == 2 and END in said


@pytest.fixture(scope="module")
def measured(captioner, features):
    ids = ["made/16.png", "made/17.png"]
    return measure_inputs(captioner, features, ids, [NEAR[one] for one in ids], [["A river.", "A river."], ["Waves."]], prompt="Caption:", max_new_tokens=4)  # fmt: skip


def test_each_input_is_left_out_and_comes_back(captioner, features, measured):
    assert list(dict.fromkeys(measured["without"])) == list(INPUTS) and len(measured) == 8
    likely = measured.pivot(index="image_id", columns="without", values="log_probability")
    assert all((likely[name] != likely["everything"]).all() for name in INPUTS if name != "everything")
    ids, near = list(likely.index), [NEAR[one] for one in likely.index]
    texts = [["A river."], ["Waves."]]
    with without_adapters(captioner):
        own = caption_log_likelihoods(Prompted(captioner, features, ids, neighbours=near, view="mean"), texts)
    assert likely["adapters"].tolist() == pytest.approx([value[0] for value in own], abs=1e-4)
    bare = caption_log_likelihoods(Prompted(captioner, features, ids, view="mean"), texts)
    assert likely["neighbours"].tolist() == pytest.approx([value[0] for value in bare], abs=1e-4)
    whole = caption_log_likelihoods(Prompted(captioner, features, ids, neighbours=near, view="mean"), texts)
    assert likely["everything"].tolist() == pytest.approx([value[0] for value in whole], abs=1e-4)


def test_without_the_image_all_images_look_alike(captioner, features):
    ids = ["made/00.png", "made/01.png"]
    made = measure_inputs(captioner, features, ids, [[], []], [["Waves."]] * 2, prompt="Caption:", max_new_tokens=2)
    assert set(made["without"]) == {"everything", "image", "adapters"}
    blank = made[made["without"] == "image"]["log_probability"]
    assert blank.nunique() == 1 and made[made["without"] == "everything"]["log_probability"].nunique() == 2


def test_inputs_are_told_and_drawn(measured, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    measured = measured.assign(caption=np.where(measured["without"] == "image", "costs $5", "a river"))
    told = input_table(measured)
    assert told.loc[INPUTS["image"], "captions that change"] == "2 of 2" and told.index[0] == INPUTS["everything"]
    (axis,) = input_figure(measured).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == [INPUTS[name] for name in list(INPUTS)[1:]]
    table = pd.DataFrame({"image_id": list(NEAR), "path": str(tmp_path / "one.png"), "captions": [["A sea."]] * 2})
    texts = [text.get_text() for text in draw_inputs(table, measured).axes[1].texts]
    assert (
        texts[0] == "with everything: a river"
        and r"without the image: costs \$5" in texts
        and texts[-1] == "a reference: A sea."
    )
