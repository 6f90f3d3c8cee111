import numpy as np
import pytest
import torch
from captioner_case import make_captioner, make_features

from rsvlm.models.dialogue import reply
from rsvlm.models.generation import embed_captions_ret, embed_images_ret
from rsvlm.models.visual_inputs import read_visual


@pytest.fixture(scope="module")
def features():
    return make_features()


@pytest.fixture(scope="module")
def captioner(features):
    return make_captioner(features).eval()


def test_a_history_of_images_and_texts_gets_words(captioner, features):
    history = [read_visual(features, [0]), "What is this?", "A river.", read_visual(features, [5]), "And this?"]
    answer = reply(captioner, history, max_new_tokens=6, ret_bias=-100.0)
    assert answer.text and not answer.asked_for_images and answer.image_ids == ()
    assert answer == reply(captioner, history, max_new_tokens=6, ret_bias=-100.0)
    other = reply(captioner, history[:1], max_new_tokens=6, ret_bias=-100.0)
    assert other.text  # an image alone will do


def test_ret_brings_the_images_nearest_to_its_embedding(captioner, features):
    embeddings = embed_images_ret(captioner, features.pooled)
    answer = reply(
        captioner, ["A river."], image_ids=features.image_ids, image_embeddings=embeddings, k=4, ret_bias=100.0
    )
    assert answer.asked_for_images and answer.text == ""
    scores = embeddings @ embed_captions_ret(captioner, ["A river."])[0]
    order = np.argsort(-scores, kind="stable")[:4]
    assert list(answer.image_ids) == [features.image_ids[i] for i in order]
    np.testing.assert_allclose(answer.scores, scores[order], atol=1e-5)


def test_ret_sees_the_images_of_the_history(captioner, features):
    embeddings = embed_images_ret(captioner, features.pooled)
    options = {"image_ids": features.image_ids, "image_embeddings": embeddings, "ret_bias": 100.0}
    with_image = reply(captioner, [read_visual(features, [1]), "More like this"], **options)
    without = reply(captioner, ["More like this"], **options)
    assert with_image.asked_for_images and with_image.scores != without.scores


def test_ret_without_images_to_search_is_told(captioner):
    answer = reply(captioner, ["Show me a river"], ret_bias=100.0)
    assert answer.asked_for_images and answer.image_ids == ()


def test_wrong_histories_are_refused(captioner, features):
    for history in ([], [" "]):
        with pytest.raises(ValueError, match="nothing to reply to"):
            reply(captioner, history)
    with pytest.raises(ValueError, match="holds 2 images"):
        reply(captioner, [read_visual(features, [0, 1])])
    with pytest.raises(ValueError, match="1 image_ids for 24 image_embeddings"):
        reply(captioner, ["A"], image_ids=["x"], image_embeddings=np.zeros((24, 8), np.float32))


def test_ret_is_learnt_as_a_word(captioner):
    """Its logit is a column of its own, and moves with its own row only."""
    hidden = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    words, ret = captioner.logits(hidden)
    assert words.shape == (3, captioner.vocabulary_size)
    torch.testing.assert_close(ret, hidden @ captioner.ret_output)
