import numpy as np
import pytest
import torch
from captioner_case import make_captioner, make_features

from rsvlm.models.dialogue import FREE, Conversation, Seen, Unclear, context_length
from rsvlm.models.generation import Prompted, beam_captions, embed_captions_ret, embed_images_ret
from rsvlm.models.prompts import CAPTION_PROMPT, CAPTION_PROMPTS, RETRIEVAL_PROMPTS, read_visual
from rsvlm.models.wishes import IMAGES, WORDS, guess_wish


@pytest.fixture(scope="module")
def features():
    return make_features()


@pytest.fixture(scope="module")
def captioner(features):
    return make_captioner(features).eval()


def stream(captioner, history, *, no_repeat=0, **options):
    return Conversation(captioner, no_repeat=no_repeat, **options).stream(history)


def reply(captioner, history, **options):
    """The whole answer."""
    *_, last = stream(captioner, history, **options)
    return last


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
        captioner, ["A river."], image_ids=features.image_ids, image_embeddings=embeddings, images=4, ret_bias=100.0
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


def test_an_answer_grows_word_by_word_and_ends_whole(captioner, features):
    history = [read_visual(features, [0]), "What is this?"]
    parts = list(stream(captioner, history, max_new_tokens=6, ret_bias=-100.0))
    assert parts[-1] == reply(captioner, history, max_new_tokens=6, ret_bias=-100.0)
    assert len(parts) >= 2 and all(not part.cut_off for part in parts[:-1])
    lengths = [len(part.text) for part in parts]
    assert lengths == sorted(lengths)


def test_no_run_of_tokens_comes_twice(captioner, features):
    history = [read_visual(features, [0])]
    free = reply(captioner, history, max_new_tokens=60, ret_bias=-100.0)
    bound = reply(captioner, history, max_new_tokens=60, ret_bias=-100.0, no_repeat=2)
    assert not _repeats(captioner.encode_text([bound.text])[0], 2) or bound.text != free.text
    made = _decoded(captioner, history, no_repeat=2)
    assert not _repeats(made, 2)


def _decoded(captioner, history, no_repeat):
    """The tokens of an answer, by the steps in which it grew."""
    kept = []
    decode, captioner.decode_text = captioner.decode_text, lambda words: kept.append(list(words)) or ""
    try:
        reply(captioner, history, max_new_tokens=60, ret_bias=-100.0, no_repeat=no_repeat)
    finally:
        captioner.decode_text = decode
    return kept[-1]


def _repeats(tokens, length):
    runs = [tuple(tokens[i : i + length]) for i in range(len(tokens) - length + 1)]
    return len(runs) != len(set(runs))


def look(features, number, warning=""):
    return Seen((read_visual(features, [number]),), warning)


def test_a_conversation_keeps_its_context(captioner, features):
    talk = Conversation(captioner, max_new_tokens=4, ret_bias=-100.0)
    talk.give_image("made/00.png", look(features, 0))
    first = list(talk.ask("What is this?"))[-1]
    assert [turn.who for turn in talk.turns] == ["you", "you", "model"] and talk.turns[-1] == first
    list(talk.ask("And more?", FREE))
    heard = [read_visual(features, [0]), "What is this?", first.text, "And more?"]
    assert talk.turns[-1].text == reply(captioner, heard, max_new_tokens=4, no_repeat=3, ret_bias=-100.0).text
    talk.start_afresh()
    assert talk.turns == []
    with pytest.raises(ValueError, match="nothing to reply to"):
        list(talk.ask(" ", FREE))


@pytest.mark.parametrize("prompt", [CAPTION_PROMPT, *CAPTION_PROMPTS, "What's in the picture?", "Show me what you see", "give me a short caption, please"])  # fmt: skip
def test_what_asks_for_words(prompt):
    assert guess_wish(prompt) == (WORDS, "")


@pytest.mark.parametrize(
    ("text", "description"),
    [
        *((f"{prompt} Two lakes in a forest.", "Two lakes in a forest.") for prompt in RETRIEVAL_PROMPTS),
        ("Please show me some pictures of a desert", "a desert"),
        ("find a river", "a river"),
        ("can you find three other aerial images that show dunes?", "dunes"),
        ("images with two lakes", "two lakes"),
        ("Find images like this one", ""),  # names nothing
        ("show me", ""),
    ],
)
def test_what_asks_for_images(text, description):
    assert guess_wish(text) == (IMAGES, description)


@pytest.mark.parametrize(
    "text", ["hello", "forest", "How many boats are there?", "What is the river's name?", "...", ""]
)
def test_what_does_not_tell(text):
    assert guess_wish(text)[0] is None


def test_words_are_asked_for_as_in_training_and_never_answered_with_images(captioner, features, monkeypatch):
    monkeypatch.setattr("rsvlm.models.dialogue._first_token", lambda _, scores: scores.argmax(-1))
    embeddings = embed_images_ret(captioner, features.pooled)
    talk = Conversation(captioner, features.image_ids, embeddings, ret_bias=1000.0, max_new_tokens=5, no_repeat=0)
    talk.give_image("made/05.png", look(features, 5))
    list(talk.ask("Tell me what is in the picture."))
    talk.give_image("made/00.png", look(features, 0, "unlike"))
    said = list(talk.ask("", WORDS))[-1]  # of the last image alone: as the stage generate_captions asks
    assert said.text and not said.asked_for_images and said.note == "unlike"
    [[beam]] = beam_captions(Prompted(captioner, features, ["made/00.png"]), max_new_tokens=5)
    assert said.text == beam
    assert "not trained to answer" in list(talk.ask("How many boats?", WORDS))[-1].note


def test_an_answer_begins_with_a_word(captioner, features):
    """Also where the model would rather say nothing, or a full stop."""
    history = [read_visual(features, [0]), "What is this?"]
    stop = captioner.encode_text([" ."])[0][-1]
    logits = captioner.logits

    def silent(hidden):
        words, ret = logits(hidden)
        words = words.clone()
        words[:, captioner.eos_id], words[:, stop] = 200.0, 100.0
        return words, ret

    captioner.logits = silent
    try:
        answer = reply(captioner, history, max_new_tokens=6, ret_bias=-1000.0)
    finally:
        del captioner.logits
    assert answer.text[:1].isalnum() and not answer.cut_off  # one word, then its end


def test_images_are_found_as_in_training_and_never_answered_with_words(captioner, features):
    embeddings = embed_images_ret(captioner, features.pooled)
    talk = Conversation(
        captioner, features.image_ids, embeddings, ret_bias=-1000.0, look=lambda name: look(features, 3)
    )
    talk.give_image("made/05.png", look(features, 5))
    found = list(talk.ask("Show me an image: A river."))[-1]
    assert found.asked_for_images and found.text == ""
    scores = embeddings @ embed_captions_ret(captioner, ["A river."])[0]  # the description alone
    assert list(found.image_ids) == [features.image_ids[i] for i in np.argsort(-scores, kind="stable")[:3]]
    assert list(talk.ask("A river.", IMAGES))[-1] == found
    with pytest.raises(ValueError, match=f"reads {context_length(captioner)}"):
        list(talk.ask("river " * context_length(captioner), IMAGES))


def test_what_is_unclear_is_not_asked(captioner, features):
    talk = Conversation(captioner, max_new_tokens=4)
    with pytest.raises(Unclear, match="no image to describe yet") as refused:
        list(talk.ask("Describe it."))
    with pytest.raises(Unclear, match="trained for two things.*does not tell") as refused:
        list(talk.ask("hello"))
    assert refused.value.offers == [(IMAGES, "hello"), (FREE, "hello")]
    with pytest.raises(Unclear, match="trained for two things"):
        list(talk.ask(""))
    talk.give_image("made/00.png", look(features, 0))
    said = list(talk.ask(""))[-1]
    with pytest.raises(Unclear, match="what the images are to show") as refused:
        list(talk.ask("Find more like this"))
    assert refused.value.offers == [(IMAGES, said.text)]
    with pytest.raises(ValueError, match="wants is 'both': give words, images, answer, free or auto"):
        list(talk.ask("hello", "both"))
    assert len(talk.turns) == 3


def test_what_ret_brings_is_seen_in_the_follow_up(captioner, features):
    embeddings = embed_images_ret(captioner, features.pooled)
    looked = []

    def see(name):
        looked.append(name)
        return Seen((read_visual(features, features.rows([name])), "Similar images: A river."))

    talk = Conversation(captioner, features.image_ids, embeddings, look=see, ret_bias=100.0)
    for text, wants in (("Show me a river", IMAGES), ("And a river", FREE)):
        turn = list(talk.ask(text, wants))[-1]
        assert turn.asked_for_images and len(turn.image_ids) == 3 == len(turn.scores)
        assert looked.pop() == turn.image_ids[0] and talk._history[-1] == "Similar images: A river."


def test_an_answer_cut_short_is_kept(captioner, features):
    talk = Conversation(captioner, max_new_tokens=8)
    talk.give_image("made/00.png", look(features, 0))
    answers = talk.ask("What is this?")
    said = next(answers)
    answers.close()  # what an interrupted cell does
    assert talk.turns[-1] == said and talk._history[-1] == said.text


def test_a_dialogue_longer_than_the_model_reads_is_refused_and_forgotten(captioner):
    talk = Conversation(captioner, max_new_tokens=4)
    longest = context_length(captioner)
    with pytest.raises(ValueError, match=f"the language model reads {longest}: start afresh"):
        list(talk.ask("river " * longest, FREE))
    assert talk.turns == [] and list(talk.ask("A river.", FREE)) and len(talk.turns) == 2
