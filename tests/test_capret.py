import json
from pathlib import Path

import numpy as np
import pytest
import torch
from captioner_case import G, P, make_captioner, make_features
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file

from rsvlm.models.capret import CapRet
from rsvlm.models.captioner import load_capret, load_language_model, save_capret
from rsvlm.models.encoding import turn_views
from rsvlm.models.prompts import MEAN, VISUAL, Row, attention_bias, caption_prompt, pack_rows, read_visual, turn_back
from rsvlm.settings import CapRetSettings


@pytest.fixture(scope="module")
def features():
    return make_features()


@pytest.fixture
def captioner(features):
    made = make_captioner(features).eval()
    with torch.no_grad():  # adapters start as zero: make them count
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(1))
    return made


def pack(captioner, *rows):
    return pack_rows(rows, eos_id=captioner.eos_id, ret_id=captioner.ret_id, start_ids=captioner.start_ids)


@torch.no_grad()
def test_packed_captions_cost_the_same_as_separate_rows(captioner, features):
    """Captions share a prefix, do not see each other, and text-only segments see no image."""
    visual = read_visual(features, [0, 1])
    tokens = captioner.visual_tokens(visual.pooled, visual.grid)
    texts = captioner.encode_text(["A river.", "Many white airplanes are parked.", "Waves.", "Describe this image:"])
    long, short = captioner.image_prefix(texts[3]), captioner.image_prefix(texts[0])
    packed = pack(captioner, Row(long, texts[:3], [texts[1]]), Row(short, [texts[2]], [texts[0]]))
    hidden = captioner.hidden_states(packed, tokens)
    costs = captioner.negative_log_likelihoods(hidden[packed.predict_at], packed.labels)
    number = 0
    for row, prefix, own in ((0, long, texts[:3]), (1, short, [texts[2]])):
        for caption in own:
            ids = torch.tensor([prefix + caption])
            output = captioner.language_model(inputs_embeds=captioner.embed_tokens(ids, tokens[row]), use_cache=False)
            logits = output.logits[0, len(prefix) - 1 :]
            ret = output_ret_logit(captioner, captioner.embed_tokens(ids, tokens[row]))[len(prefix) - 1 :]
            expected = torch.nn.functional.cross_entropy(
                torch.cat([logits, ret[:, None]], 1), torch.tensor([*caption, captioner.eos_id]), reduction="none"
            )
            torch.testing.assert_close(costs[packed.owners == number], expected, rtol=1e-4, atol=1e-4)
            number += 1
    alone = captioner.embed_tokens(torch.tensor([texts[1] + [captioner.ret_id]]))
    expected = captioner.run_decoder(alone, use_cache=False).last_hidden_state[0, -1]
    torch.testing.assert_close(hidden[packed.ret_at[0]], expected, rtol=1e-4, atol=1e-4)


def output_ret_logit(captioner, inputs):
    return captioner.run_decoder(inputs, use_cache=False).last_hidden_state[0] @ captioner.ret_output


def test_packing_numbers_tokens_and_labels_as_expected():
    packed = pack_rows(
        [Row([VISUAL, 7], [[1, 2], [3]], [[5]]), Row([VISUAL], [[4]])], eos_id=0, ret_id=9, start_ids=[8]
    )
    assert packed.input_ids.tolist() == [[-1, 7, 1, 2, 3, 8, 5, 9], [-1, 4, 0, 0, 0, 0, 0, 0]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 2, 0, 1, 2], [0, 1, 0, 0, 0, 0, 0, 0]]
    assert packed.predict_at.tolist() == [1, 2, 3, 1, 4, 8, 9]
    assert packed.labels.tolist() == [1, 2, 0, 3, 0, 4, 0]
    assert packed.owners.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert packed.ret_at.tolist() == [7] and packed.before_ret.tolist() == [6]
    seen = attention_bias(packed.segments, torch.float32)[0, 0] == 0
    assert seen[4].tolist() == [True, True, False, False, True, False, False, False]  # caption 2 skips caption 1
    assert seen[7].tolist() == [False] * 5 + [True] * 3  # [RET] sees its text only


def test_packing_refuses_what_cannot_be_predicted():
    with pytest.raises(ValueError, match="no prefix"):
        pack_rows([Row([], [[1]])], eos_id=0, ret_id=9)
    with pytest.raises(ValueError, match="has no token"):
        pack_rows([Row([1], texts=[[]])], eos_id=0, ret_id=9)


def test_only_the_new_parts_train(captioner):
    groups = captioner.parameter_groups()
    assert all(parameter.dtype == torch.float32 for group in groups.values() for parameter in group)
    assert sum(p.numel() for p in groups["lora"]) > 0
    trained = sum(p.numel() for group in groups.values() for p in group)
    assert trained == sum(p.numel() for p in captioner.parameters() if p.requires_grad)
    assert not captioner.language_model.get_input_embeddings().weight.requires_grad
    assert captioner.ret_id == captioner.language_model.get_input_embeddings().weight.shape[0]  # nothing was resized


def test_rank_0_leaves_the_decoder_as_it_is(features):
    frozen = make_captioner(features, lora_rank=0)
    assert frozen.parameter_groups()["lora"] == []
    assert not any("lora" in name for name, _ in frozen.named_parameters())


def test_an_unknown_lora_target_lists_the_layers(features):
    with pytest.raises(
        ValueError, match=r"lora_targets: qkv: no such linear layer in LlamaForCausalLM.*down_proj.*q_proj"
    ):
        make_captioner(features, lora_targets=["q_proj", "qkv"])


@pytest.mark.parametrize("wrong", [{"lora_rank": -1}, {"visual_tokens": 0}, {"lora_alpha": 0.0}, {"lora_dropout": 1.0}])
def test_settings_check_themselves(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CapRetSettings(feature_dim=4, **wrong)


def test_a_bfloat16_model_keeps_float32_adapters_and_gets_gradients(features, tiny_models):
    model, tokenizer = load_language_model(str(tiny_models.llama), dtype="bfloat16")
    captioner = CapRet(model, tokenizer, CapRetSettings(feature_dim=P, grid_cells=G, retrieval_dim=8, lora_rank=2))
    visual = read_visual(features, [0])
    texts = captioner.encode_text(["A river."])
    packed = pack(captioner, Row(captioner.image_prefix(texts[0]), texts, texts))
    hidden = captioner.hidden_states(packed, captioner.visual_tokens(visual.pooled, visual.grid))
    loss = captioner.negative_log_likelihoods(hidden[packed.predict_at], packed.labels).mean()
    (loss + captioner.embed_ret(hidden[packed.ret_at]).sum()).backward()
    for name, parameter in captioner.named_parameters():
        if parameter.requires_grad and "image_projection" not in name and name != "logit_scale":
            assert parameter.dtype == torch.float32 and parameter.grad is not None, name


def test_a_model_that_caps_its_logits_is_refused(tiny_models, monkeypatch):
    model, tokenizer = load_language_model(str(tiny_models.llama))
    forward = type(model).forward

    def capped(self, *args, **options):
        output = forward(self, *args, **options)
        output.logits = torch.tanh(output.logits) * 0.5
        return output

    monkeypatch.setattr(type(model), "forward", capped)
    with pytest.raises(ValueError, match="scales or caps its logits"):
        CapRet(model, tokenizer, CapRetSettings(feature_dim=P, lora_rank=0))


def test_saved_and_loaded_it_is_the_same(captioner, features, tmp_path, tiny_models):
    folder = tmp_path / "captioner"
    save_capret(captioner, folder, neighbour_captions=3)
    assert sorted(path.name for path in folder.iterdir()) == ["captioner.safetensors", "config.json"]
    config = json.loads((folder / "config.json").read_text())
    assert config["neighbour_captions"] == 3 and config["language_model"] == "random:llama"
    assert not any(
        "embed_tokens" in name or "base_layer" in name for name in load_file(folder / "captioner.safetensors")
    )
    for merge in (False, True):
        loaded = load_capret(folder, "cpu", features=features, merge=merge)
        visual = read_visual(features, [3])
        for made in (captioner, loaded):
            tokens = made.visual_tokens(visual.pooled, visual.grid)
            ids = torch.tensor([made.image_prefix(made.encode_text(["A river."])[0])])
            made.answer = made.run_decoder(made.embed_tokens(ids, tokens), use_cache=False).last_hidden_state
        torch.testing.assert_close(loaded.answer, captioner.answer, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "rank", "merge", "merged"),
    [
        ("float32", 4, True, True),
        ("float32", 4, False, False),
        ("float32", 0, True, False),
        ("bfloat16", 4, True, False),
    ],
)
def test_a_captioner_says_whether_its_adapters_were_merged(features, tmp_path, dtype, rank, merge, merged):
    """Where they were not, it is the captioner as it was trained, and none has to be loaded beside it."""
    save_capret(make_captioner(features, dtype=dtype, lora_rank=rank), tmp_path / "captioner")
    loaded = load_capret(tmp_path / "captioner", "cpu", merge=merge)
    assert loaded.merged is merged
    layers = [layer for layer in loaded.language_model.modules() if isinstance(layer, BaseTunerLayer)]
    assert len(layers) > 0 or rank == 0
    assert all(layer.merged is merged for layer in layers)


def test_loading_refuses_what_does_not_fit(captioner, features, tmp_path):
    with pytest.raises(FileNotFoundError, match="finetune_lora"):
        load_capret(tmp_path / "nothing", "cpu")
    folder = tmp_path / "captioner"
    save_capret(captioner, folder)
    other = make_features(8)
    other.meta["encoder_fingerprint"] = "f" * 64
    with pytest.raises(
        ValueError, match="trained on features of the encoder eeeeeeeeeeee, but these are of ffffffffffff"
    ):
        load_capret(folder, "cpu", features=other)
    config = json.loads((folder / "config.json").read_text())
    write(folder, config | {"language_model_fingerprint": "0" * 64})
    with pytest.raises(ValueError, match="trained over the language model random:llama with fingerprint 000000000000"):
        load_capret(folder, "cpu")
    write(folder, config | {"settings": config["settings"] | {"retrieval_dim": 9}})
    with pytest.raises(ValueError, match=r"captioner.safetensors: .*image_projection.bias \(8,\) for \(9,\)"):
        load_capret(folder, "cpu")
    write(folder, config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("ret_input"), "1 weight is missing: ret_input"),
        (lambda weights: weights.popitem(), "1 weight is missing"),
        (lambda weights: weights.update(extra=torch.ones(2)), "1 weight is unknown: extra"),
        (lambda weights: weights["ret_input"].fill_(torch.nan), "ret_input holds NaN or infinity"),
        (lambda weights: next(w for n, w in weights.items() if "lora_A" in n).fill_(torch.inf), "lora_A.* holds NaN"),
    ],
)
def test_weights_of_a_captioner_that_are_not_whole_are_named(captioner, tmp_path, change, message):
    save_capret(captioner, tmp_path / "captioner")
    path = tmp_path / "captioner" / "captioner.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)
    with pytest.raises(ValueError, match=f"captioner.safetensors: .*{message}.*run the stage finetune_lora again"):
        load_capret(path.parent, "cpu")


@pytest.mark.parametrize("size", [0, 100])
def test_a_torn_captioner_says_so(captioner, tmp_path, size):
    save_capret(captioner, tmp_path / "captioner")
    path = tmp_path / "captioner" / "captioner.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=f"captioner.safetensors: no whole safetensors file, {size} bytes"):
        load_capret(path.parent, "cpu")


def write(folder: Path, config: dict) -> None:
    (folder / "config.json").write_text(json.dumps(config))


def test_features_without_the_grid_it_was_trained_with_are_refused(captioner):
    with pytest.raises(ValueError, match="takes 4 grid cells an image, the features have 0"):
        captioner.visual_tokens(torch.zeros(1, P))


@pytest.mark.parametrize("views", [1, 2, 4, 8])
def test_turned_grids_come_back_upright(views):
    pixels = torch.arange(2 * 3 * 9.0).view(2, 3, 3, 3)  # a 3 x 3 picture is its own 3 x 3 grid
    turned = turn_views(pixels, views)  # (B, V, 3, S, S)
    grids = turned.permute(0, 1, 3, 4, 2).reshape(2, views, 9, 3).numpy()
    upright = pixels.permute(0, 2, 3, 1).reshape(2, 9, 3).numpy()
    assert np.array_equal(turn_back(grids), np.repeat(upright[:, None], views, axis=1))


def test_views_and_their_mean_are_read(features):
    one = read_visual(features, [2, 2, 5], [0, 3, MEAN])
    assert np.array_equal(one.pooled[1], features.pooled[2, 3].astype(np.float32))
    assert np.array_equal(one.grid[0], features.grid[2, 0].astype(np.float32))
    np.testing.assert_allclose(one.pooled[2], features.pooled[5].astype(np.float32).mean(0), rtol=1e-6)
    assert read_visual(features, [0], grid=False).grid is None


def test_prompts_hold_the_neighbours_captions():
    assert caption_prompt("Caption:", []) == "Caption:"
    assert caption_prompt("Caption:", ["A river .", "Two roads"]) == "Similar images: A river. Two roads. Caption:"


def test_text_is_tokenised_as_it_stands_behind_other_text(captioner):
    ids = captioner.encode_text(["A river.", "Straße 東京 🛰"])
    whole = captioner.tokenizer("Caption: A river.", add_special_tokens=False).input_ids
    assert whole[-len(ids[0]) :] == ids[0]
    assert [captioner.decode_text(own) for own in ids] == ["A river.", "Straße 東京 🛰"]
    assert captioner.decode_text([*ids[0], captioner.ret_id, captioner.eos_id]) == "A river."
