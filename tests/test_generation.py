import numpy as np
import pytest
import torch
from captioner_case import make_captioner, make_features

from rsvlm.models.generation import (
    Hypothesis,
    Prompted,
    beam_captions,
    caption_log_likelihoods,
    embed_captions_ret,
    embed_images_ret,
    sample_captions,
    sample_tokens,
    search_beams,
)
from rsvlm.models.prompts import read_visual

NEIGHBOURS = [["A river."], ["Many white airplanes are parked near the terminal.", "Waves."], []]


@pytest.fixture(scope="module")
def features():
    return make_features()


@pytest.fixture(scope="module")
def captioner(features):
    """A random captioner that has something to say: a larger output matrix, adapters that count, a likely end."""
    made = make_captioner(features).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        head = made.language_model.get_output_embeddings().weight
        head.copy_(torch.randn(head.shape, generator=generator) * 0.7)
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2, generator=generator)
    return made


def prefixes_of(captioner, features, rows=(0, 1, 2)):
    """(prefixes of different lengths, visual tokens)"""
    texts = captioner.encode_text(["Caption:", "Similar images: Waves. Caption:", "Describe this image."])
    visual = read_visual(features, rows)
    return [captioner.image_prefix(ids) for ids in texts], captioner.visual_tokens(visual.pooled, visual.grid).detach()


def reference(captioner, prefix, visual, **options):
    """Hugging Face's generate on one prefix, without a batch and without padding."""
    made = captioner.language_model.generate(
        inputs_embeds=captioner.embed_tokens(torch.tensor([prefix]), visual),
        attention_mask=torch.ones(1, len(prefix), dtype=torch.int64),
        eos_token_id=captioner.eos_id,
        pad_token_id=captioner.eos_id,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    tokens = [row[: row.index(captioner.eos_id)] if captioner.eos_id in row else row for row in made.sequences.tolist()]
    return [tuple(row) for row in tokens], made


def test_greedy_equals_hugging_face(captioner, features):
    prefixes, visual = prefixes_of(captioner, features)
    found = search_beams(captioner, prefixes, visual, max_new_tokens=12)
    for row, prefix in enumerate(prefixes):
        expected, _ = reference(captioner, prefix, visual[row], max_new_tokens=12, do_sample=False)
        assert [hypothesis.tokens for hypothesis in found[row]] == expected
    assert len({own[0].tokens for own in found}) == 3  # the images and prompts make a difference


@pytest.mark.parametrize("favour_end", [0.0, 11.0])
def test_beams_equal_hugging_face(captioner, features, favour_end):
    head = captioner.language_model.get_output_embeddings()
    handle = head.register_forward_hook(
        lambda layer, inputs, output: (
            output + favour_end * torch.nn.functional.one_hot(torch.tensor(captioner.eos_id), output.shape[-1])
        )
    )
    try:
        prefixes, visual = prefixes_of(captioner, features)
        found = search_beams(captioner, prefixes, visual, beams=4, max_new_tokens=10)
        ended = 0
        for row, prefix in enumerate(prefixes):
            expected, made = reference(
                captioner, prefix, visual[row], max_new_tokens=10, do_sample=False, num_beams=4, num_return_sequences=4
            )
            own = [hypothesis.tokens for hypothesis in found[row]]
            assert own == expected
            np.testing.assert_allclose([h.score(1.0) for h in found[row]], made.sequences_scores.numpy(), rtol=1e-4)
            ended += sum(hypothesis.ended for hypothesis in found[row])
        assert (ended > 0) == (favour_end > 0)
    finally:
        handle.remove()


def test_beam_scores_are_the_likelihoods_of_their_tokens(captioner, features):
    ids = features.image_ids[:2]
    captions = beam_captions(Prompted(captioner, features, ids), beams=3, max_new_tokens=6)
    assert all(len(set(own)) == len(own) and 1 <= len(own) <= 3 for own in captions)
    prefixes, visual = prefixes_of(captioner, features)
    hypothesis = search_beams(captioner, prefixes[:1], visual[:1], beams=2, max_new_tokens=5)[0][0]
    inputs = captioner.embed_tokens(torch.tensor([prefixes[0] + list(hypothesis.tokens)]), visual[0])
    words = captioner.language_model(inputs_embeds=inputs).logits[0, len(prefixes[0]) - 1 :].log_softmax(-1)
    end = [captioner.eos_id] * hypothesis.ended
    expected = sum(words[i, token].item() for i, token in enumerate([*hypothesis.tokens, *end]))
    assert hypothesis.log_probability == pytest.approx(expected, abs=1e-3)


def test_captions_do_not_depend_on_the_batch(captioner, features):
    ids = features.image_ids[:3]
    asked = Prompted(captioner, features, ids, "What is here?", NEIGHBOURS)
    for beams in (1, 3):
        whole, single = (beam_captions(asked, beams=beams, max_new_tokens=8, batch_size=size) for size in (8, 1))
        assert whole == single
    samples = [sample_captions(asked, samples=4, seed=5, max_new_tokens=8, batch_size=size) for size in (1, 8)]
    assert samples[0] == samples[1]
    last = Prompted(captioner, features, ids[2:], "What is here?", NEIGHBOURS[2:])
    assert sample_captions(last, samples=4, seed=5, numbers=[2], max_new_tokens=8) == samples[0][2:]


def test_prompt_neighbours_and_view_reach_the_model(captioner, features):
    ids = features.image_ids[:3]

    def captions(**asked):
        return beam_captions(Prompted(captioner, features, ids, **asked), max_new_tokens=8)

    plain = captions()
    assert plain != captions(neighbours=NEIGHBOURS)
    assert plain != captions(prompt="Describe")
    assert plain != captions(view="mean")
    with pytest.raises(ValueError, match="view: 'sideways' is none of upright, mean"):
        captions(view="sideways")
    with pytest.raises(ValueError, match="3 images, but neighbours' captions for 1"):
        captions(neighbours=[["A river."]])


def test_sampling_follows_the_distribution_and_its_seed(captioner, features):
    prefixes, visual = prefixes_of(captioner, features)
    drawn = sample_tokens(
        captioner, prefixes[:1], visual[:1], seeds=[7], samples=600, temperature=0.5, max_new_tokens=1
    )[0]
    assert (
        drawn
        == sample_tokens(
            captioner, prefixes[:1], visual[:1], seeds=[7], samples=600, temperature=0.5, max_new_tokens=1
        )[0]
    )
    words = captioner.language_model(
        inputs_embeds=captioner.embed_tokens(torch.tensor(prefixes[:1]), visual[0])
    ).logits[0, -1]
    shares = (words / 0.5).softmax(-1)
    counts = np.bincount([h.tokens[0] if h.tokens else captioner.eos_id for h in drawn], minlength=len(shares)) / 600
    assert 0.5 * np.abs(counts - shares.detach().numpy()).sum() < 0.2
    with pytest.raises(ValueError, match="temperature 0"):
        sample_tokens(captioner, prefixes[:1], visual[:1], seeds=[0], temperature=0)


def test_likelihoods_with_a_shared_prefix_equal_whole_sequences(captioner, features):
    ids = features.image_ids[:3]
    candidates = [["A river.", "Many white airplanes are parked."], ["Waves."], []]
    asked = Prompted(captioner, features, ids, neighbours=NEIGHBOURS)
    found = caption_log_likelihoods(asked, candidates, mean=False, batch_size=2)
    assert [len(own) for own in found] == [2, 1, 0]
    visual = read_visual(features, [0])
    tokens = captioner.visual_tokens(visual.pooled, visual.grid)
    prefix = captioner.image_prefix(captioner.encode_text(["Similar images: A river. Caption:"])[0])
    for text, value in zip(candidates[0], found[0]):
        caption = captioner.encode_text([text])[0]
        logits = captioner.language_model(
            inputs_embeds=captioner.embed_tokens(torch.tensor([prefix + caption]), tokens)
        ).logits
        ret = captioner.run_decoder(captioner.embed_tokens(torch.tensor([prefix + caption]), tokens), use_cache=False)
        ret = ret.last_hidden_state[0] @ captioner.ret_output
        words = torch.cat([logits[0], ret[:, None]], 1)[len(prefix) - 1 :].log_softmax(-1)
        expected = sum(words[i, token].item() for i, token in enumerate([*caption, captioner.eos_id]))
        assert value == pytest.approx(expected, abs=1e-3)
    per_token = caption_log_likelihoods(asked, candidates)
    assert per_token[1][0] == pytest.approx(found[1][0] / (len(captioner.encode_text(["Waves."])[0]) + 1))


def test_ret_embeddings_have_length_1_and_see_no_batch(captioner, features):
    texts = ["A river.", "Many white airplanes are parked near the terminal.", "Waves."]
    rows = embed_captions_ret(captioner, texts, batch_size=2)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(rows[1], embed_captions_ret(captioner, texts[1:2])[0], atol=1e-5)
    assert embed_captions_ret(captioner, []).shape == (0, 8)
    images = embed_images_ret(captioner, features.pooled, batch_size=5)
    assert images.shape == (24, 8) and images.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, rtol=1e-5)
    upright = embed_images_ret(captioner, features.pooled[:, 0])
    assert not np.allclose(upright, images)


def test_the_length_penalty_prefers_longer_captions():
    short, long = Hypothesis((1,), -2.0), Hypothesis((1, 2, 3), -3.0)
    assert short.score(0.0) > long.score(0.0) and short.score(1.0) < long.score(1.0)
