"""Fine-tuning of vision-language models: what is generated is what is trained, and a killed run ends like a whole one."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from broken_models import copy_with, edit_json
from PIL import Image
from safetensors.torch import load_file, save_file
from vlm_models import CAPTION_ALONE, FAMILIES, vlm_maker

from rsvlm.data.images import open_image
from rsvlm.models.vlm import caption_pictures, load_vlm
from rsvlm.models.vlm_adapters import WEIGHTS, adapter_weights, add_adapters
from rsvlm.settings import VlmLoraSettings, VlmSettings
from rsvlm.training.vlm_lora import CaptionedPicture, label_captions, train_vlm_lora

torch.set_num_threads(1)
THINGS = ("river", "airport", "beach", "forest", "desert", "parking lot", "tennis court", "road")
QUICK = {"steps": 8, "batch_size": 4, "warmup_steps": 1, "validation_every": 4, "checkpoint_every": 3, "lora_lr": 1e-2}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    # small weights: an untrained model that is sure of nonsense is slow to learn
    return vlm_maker(tmp_path_factory.mktemp("vlm"), spread=0.1)


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> list[CaptionedPicture]:
    folder, generator, made = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0), []
    for number, thing in enumerate(THINGS):
        rough = Image.fromarray(generator.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        rough.resize((40, 40 + 8 * (number % 3)), Image.Resampling.BILINEAR).save(folder / f"{number}.png")
        made.append(CaptionedPicture(folder / f"{number}.png", (f"A {thing}.", f"There is a {thing}.")))
    return made


def load(folder, **more):
    return load_vlm(VlmSettings(captioner=str(folder), prompt="Describe.", max_new_tokens=12, **more), "cpu")


@pytest.mark.parametrize("family", FAMILIES)
def test_captions_are_learnt_where_generation_puts_them(family, made, examples):
    """The likeliest token at each place of a generated caption is the generated one; rows of other lengths beside it."""
    vlm = load(made(family))
    pictures = [open_image(one.path) for one in examples]
    inputs = vlm.prepare(pictures)
    T = inputs["input_ids"].shape[1]
    ids = vlm.model.generate(**inputs, do_sample=False, max_new_tokens=6, min_new_tokens=6)[:, T:]
    inputs, labels = label_captions(vlm, pictures, ["A river."] * len(pictures))
    assert inputs["input_ids"].shape == (len(pictures), T + labels.shape[1])
    short, C = 2, labels.shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"][:, :T], ids], 1)
    for name in ("attention_mask", "token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            inputs[name] = torch.cat([inputs[name][:, :T], inputs[name][:, T : T + 1].expand(-1, 6)], 1)
    inputs["attention_mask"][::2, -short:] = 0  # as if every other caption were shorter
    with torch.no_grad():
        likeliest = vlm.model(**inputs, use_cache=False).logits[:, T - 1 : -1].argmax(-1)
    assert torch.equal(likeliest[1::2], ids[1::2]) and torch.equal(likeliest[::2, :-short], ids[::2, :-short])
    assert C > 2


def test_only_the_caption_and_its_end_are_learnt(made, examples):
    vlm = load(made("qwen2_5_vl"))
    tokenizer, texts = vlm.processor.tokenizer, ["A river.", "There is a tennis court."]
    inputs, labels = label_captions(vlm, [open_image(one.path) for one in examples[:2]], texts)
    for row, text in zip(labels, texts):
        ids = row[row != -100]
        assert tokenizer.decode(ids[:-1]) == text and ids[-1] == tokenizer.eos_token_id
    assert inputs["attention_mask"][0, -1] == 0 and inputs["attention_mask"][1, -1] == 1
    assert torch.equal(inputs["input_ids"][:, -labels.shape[1] :][labels != -100], labels[labels != -100])


@pytest.mark.parametrize("family", ["qwen2_5_vl", "paligemma", "blip_2"])
def test_it_learns_eight_pictures_and_comes_back_from_disk(family, made, examples, tmp_path):
    vlm = load(made(family))
    frozen = {name: parameter.clone() for name, parameter in vlm.model.state_dict().items()}
    targets = ["q_proj", "k_proj", "v_proj", "fc1" if family == "blip_2" else "up_proj"]
    own = [CaptionedPicture(one.path, one.captions[:1]) for one in examples]
    settings = VlmLoraSettings(**QUICK | {"steps": 60, "validation_every": 30}, lora_targets=targets)
    result = train_vlm_lora(
        vlm, own, own[:3], settings, save_to=tmp_path / "adapter", checkpoints=tmp_path / "c", log=lambda _: None
    )
    first, last = result.curve[0], result.curve[-1]
    assert last["caption_loss"] < 0.7 * first["caption_loss"]
    assert result.validation[-1]["caption_loss"] < 0.7 * result.validation[0]["caption_loss"]
    assert all(math.isfinite(value) for row in (*result.curve, *result.validation) for value in row.values())
    assert not any((tmp_path / "c").rglob("step_*"))  # a finished training needs no checkpoints
    now = {name.replace(".base_layer", ""): value for name, value in vlm.model.state_dict().items()}
    assert all(torch.equal(value, now[name]) for name, value in frozen.items())

    pictures = [open_image(one.path) for one in own]
    again = load_vlm(vlm.settings, "cpu", adapter=tmp_path / "adapter")
    assert caption_pictures(again, pictures) == caption_pictures(vlm, pictures)
    assert caption_pictures(again, pictures) != caption_pictures(load(made(family)), pictures)
    assert again.fingerprint() != load(made(family)).fingerprint()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_adapters_are_float32_over_a_model_in_16_bits(dtype, made, examples, tmp_path):
    vlm, folders = load(made("llava"), dtype=dtype), {"save_to": tmp_path / "a", "checkpoints": tmp_path / "c"}
    settings = VlmLoraSettings(**QUICK | {"steps": 20})
    result = train_vlm_lora(vlm, examples, examples[:2], settings, **folders, log=lambda _: None)
    assert {parameter.dtype for parameter in adapter_weights(vlm.model).values()} == {torch.float32}
    assert result.curve[-1]["caption_loss"] < result.curve[0]["caption_loss"]
    pictures, again = [open_image(one.path) for one in examples], load_vlm(vlm.settings, "cpu", adapter=tmp_path / "a")
    assert again.model.dtype == vlm.model.dtype and caption_pictures(again, pictures) == caption_pictures(vlm, pictures)


def test_peft_reads_them(made, examples, tmp_path):
    from peft import PeftModel

    vlm = load(made("llava"))
    train_vlm_lora(
        vlm, examples, [], VlmLoraSettings(**QUICK), save_to=tmp_path / "a", checkpoints=tmp_path / "c", log=print
    )
    theirs = PeftModel.from_pretrained(load(made("llava")).model, tmp_path / "a").eval()
    inputs = vlm.prepare([open_image(examples[0].path)])
    with torch.no_grad():
        assert torch.equal(theirs(**inputs).logits, vlm.model(**inputs).logits)
        assert not torch.equal(load(made("llava")).model(**inputs).logits, vlm.model(**inputs).logits)


@pytest.mark.parametrize("stopped", [1, 5])
def test_stopped_at_a_step_it_ends_with_the_same_weights(made, examples, tmp_path, monkeypatch, stopped):
    lines = []

    def run(name: str):
        vlm = load(made("qwen2_5_vl"))
        settings, lora = tmp_path / name, VlmLoraSettings(**QUICK)
        result = train_vlm_lora(vlm, examples[:6], examples[6:], lora, checkpoints=settings, log=lines.append)
        return result, adapter_weights(vlm.model)

    whole, weights = run("whole")
    steps, step = iter(range(100)), torch.optim.AdamW.step

    def stop(self, *args, **options):
        if next(steps) == stopped:
            raise KeyboardInterrupt
        return step(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", stop)
        with pytest.raises(KeyboardInterrupt):
            run("broken")
    again, same = run("broken")
    assert any("continuing from step 3" in line for line in lines) == (stopped == 5)
    assert again == whole and all(torch.equal(weights[name], same[name]) for name in weights)


def test_stopped_and_with_another_picture_under_the_name_it_starts_afresh(made, examples, tmp_path, monkeypatch):
    own = [CaptionedPicture(Path(shutil.copy(one.path, tmp_path)), one.captions) for one in examples]
    lines, step, steps = [], torch.optim.AdamW.step, iter(range(100))

    def stop(self, *args, **options):
        if next(steps) == 5:
            raise KeyboardInterrupt
        return step(self, *args, **options)

    def run():
        settings = VlmLoraSettings(**QUICK)
        train_vlm_lora(load(made("llava")), own[:6], own[6:], settings, checkpoints=tmp_path / "c", log=lines.append)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", stop)
        with pytest.raises(KeyboardInterrupt):
            run()
    open_image(own[0].path).rotate(180).save(own[0].path)
    run()
    assert not any("continuing" in line for line in lines)


def test_the_vision_tower_gets_none(made):
    vlm = load(made("llava"))
    add_adapters(vlm.model, 4, 8.0, ["q_proj"], 0)
    assert len(adapter_weights(vlm.model)) == 4 and all("language_model" in name for name in adapter_weights(vlm.model))
    assert {name for name, p in vlm.model.named_parameters() if p.requires_grad} == adapter_weights(vlm.model).keys()
    with pytest.raises(ValueError, match="has adapters already"):
        add_adapters(vlm.model, 4, 8.0, ["q_proj"], 0)
    for targets, named in ((["q_proj", "out"], "out"), ([], "none given")):
        with pytest.raises(
            ValueError, match=f"lora_targets: {named}: no such linear layer in LlamaModel; it has down_"
        ):
            add_adapters(load(made("llava")).model, 4, 8.0, targets, 0)


def test_what_cannot_be_trained(made, examples):
    vlm, settings = load(made("llava")), VlmLoraSettings(**QUICK)
    with pytest.raises(ValueError, match="batch_size: 4 is more than the 3 training images"):
        train_vlm_lora(vlm, examples[:3], [], settings)
    for family in CAPTION_ALONE:
        alone = load_vlm(VlmSettings(captioner=str(made(family)), prompt=""), "cpu")
        with pytest.raises(ValueError, match="its decoder does not read the prompt"):
            train_vlm_lora(alone, examples, [], settings)
    with pytest.raises(ValueError, match="0.png: no caption"):
        train_vlm_lora(vlm, [CaptionedPicture(examples[0].path, ()), *examples], [], settings)


@pytest.fixture(scope="module")
def adapter(made, examples, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    settings = VlmLoraSettings(**QUICK | {"steps": 2})
    train_vlm_lora(load(made("llava")), examples, [], settings, save_to=folder / "a", checkpoints=folder / "c")
    return folder / "a"


def without_one(folder):
    tensors = load_file(folder / WEIGHTS)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, folder / WEIGHTS)


WRONG = {
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), FileNotFoundError, "no adapter_model.safetensors"),
    "no configuration": (
        lambda folder: (folder / "adapter_config.json").unlink(),
        FileNotFoundError,
        "no adapter_config.json",
    ),
    "torn": (lambda folder: (folder / WEIGHTS).write_bytes(b"123"), ValueError, "no whole safetensors file, 3 bytes"),
    "one missing": (without_one, ValueError, "1 weight is missing: base_model.model."),
    "another prompt": (edit_json("training.json", prompt="Say."), ValueError, "trained with the prompt 'Say.'"),
    "another model": (
        edit_json("training.json", base_fingerprint="0" * 64),
        ValueError,
        "trained over a model with fingerprint 000000000000",
    ),
    "another shape": (edit_json("adapter_config.json", r=3), ValueError, "of another shape"),
    "another target": (edit_json("adapter_config.json", target_modules="nothing"), ValueError, "no LoRA of this model"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_adapters_are_whole_and_this_models(fault, adapter, made, tmp_path):
    change, kind, message = WRONG[fault]
    folder = copy_with(adapter, tmp_path / "adapter", change)
    settings = VlmSettings(captioner=str(made("llava")), prompt="Describe.")
    with pytest.raises(kind, match=f"(?s){folder}.*{message}"):
        load_vlm(settings, "cpu", adapter=folder)
