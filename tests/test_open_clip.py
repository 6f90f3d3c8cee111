"""open_clip's models: what open_clip itself gives, through every way of loading, and what must be refused."""

import io
import json
import pickle
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from broken_models import add_own_code, edit_json
from PIL import Image

from rsvlm.data.catalogue import KNOWN
from rsvlm.data.names import SPLITS
from rsvlm.models.open_clip import import_open_clip, likely_architectures, load_open_clip, read_checkpoint
from rsvlm.models.zoo import PRESETS, get_model, list_models, load_encoder
from rsvlm.training.contrastive import choose_activation

TEXTS = ["many airplanes near a terminal", "A river between green fields.", "it is a dense residential area"]
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module")
def open_clip(tmp_path_factory):
    """The package, with a tiny architecture that trains in milliseconds."""
    module = import_open_clip()
    file = tmp_path_factory.mktemp("configs") / "tiny-vit.json"
    file.write_text(json.dumps(TINY))
    module.add_model_config(file)
    return module


@pytest.fixture(scope="module")
def images():
    random = np.random.default_rng(0)
    return [
        Image.fromarray(random.integers(0, 256, (*shape, 3), dtype=np.uint8))
        for shape in ((32, 32), (50, 70), (90, 41))
    ]


def theirs(open_clip, model, images, architecture):
    """(image, text embeddings) by open_clip's own transform, model and tokenizer."""
    transform = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(size=model.visual.image_size), is_train=False
    )
    with torch.no_grad():
        pixels = torch.stack([transform(image) for image in images])
        return model.eval().encode_image(pixels), model.encode_text(open_clip.get_tokenizer(architecture)(TEXTS))


def ours(encoder, images):
    with torch.no_grad():
        pooled, _ = encoder.image_features(encoder.normalize(encoder.prepare(images)))
        return encoder.project_images(pooled), encoder.text_features(TEXTS)


def make(open_clip, architecture, **options):
    torch.manual_seed(0)
    return open_clip.create_model(architecture, **options)


@pytest.mark.parametrize("architecture", ["tiny-vit", "RN50", "ViT-B-32"])
def test_embeddings_are_those_of_open_clip(open_clip, tmp_path, images, architecture):
    model = make(open_clip, architecture)
    file = tmp_path / "weights.pt"
    torch.save(model.state_dict(), file)
    encoder = load_encoder(f"open_clip:{architecture}", weights=file)
    for found, wanted in zip(ours(encoder, images), theirs(open_clip, model, images, architecture), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert encoder.embedding_dim == found.shape[1]
    pooled, cells = encoder.image_features(encoder.normalize(encoder.prepare(images)), grid=2)
    assert pooled.shape == (3, encoder.feature_dim) and cells.shape == (3, 4, encoder.feature_dim)


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("plain.pt", lambda state: state),  # as RemoteCLIP's
        (
            "epoch.pt",
            lambda state: {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}},
        ),
        ("model.bin", lambda state: {"model": state}),
        ("half.pt", lambda state: {key: value.half() for key, value in state.items()}),
        ("lightning.ckpt", lambda state: {"state_dict": {f"model.{key}": value for key, value in state.items()}}),
    ],
)
def test_weights_are_found_whatever_is_around_them(open_clip, tmp_path, images, name, wrap):
    state = make(open_clip, "tiny-vit").state_dict()
    torch.save(wrap(state), tmp_path / name)
    found = read_checkpoint(tmp_path / name, "encoder")
    assert found.keys() == state.keys() and all(value.dtype == torch.float32 for value in found.values())
    encoder = load_open_clip("open_clip:tiny-vit", weights=tmp_path / name)
    wanted = theirs(open_clip, make(open_clip, "tiny-vit"), images, "tiny-vit")
    for mine, other in zip(ours(encoder, images), wanted, strict=True):
        torch.testing.assert_close(mine, other, atol=2e-3 if name == "half.pt" else 1e-5, rtol=1e-3)


def test_a_saved_encoder_is_read_by_us_and_by_open_clip(open_clip, tmp_path, images):
    torch.save(make(open_clip, "tiny-vit").state_dict(), tmp_path / "w.pt")
    encoder = load_encoder("open_clip:tiny-vit", weights=tmp_path / "w.pt", quick_gelu=True)
    encoder.save(tmp_path / "saved")
    again = load_encoder(tmp_path / "saved")
    assert again.fingerprint() == encoder.fingerprint() and again.model_cfg["quick_gelu"] is True
    for one, other in zip(ours(encoder, images), ours(again, images), strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'saved'}")
    with torch.no_grad():
        wanted = model.eval().encode_image(torch.stack([transform(image) for image in images]))
    torch.testing.assert_close(ours(again, images)[0], wanted, atol=1e-5, rtol=1e-5)


def test_the_activation_changes_what_comes_out_and_the_fingerprint(open_clip, tmp_path, images):
    torch.save(make(open_clip, "tiny-vit").state_dict(), tmp_path / "w.pt")
    plain, quick = (
        load_encoder("open_clip:tiny-vit", weights=tmp_path / "w.pt", quick_gelu=one) for one in (False, True)
    )
    assert (ours(plain, images)[0] - ours(quick, images)[0]).abs().max() > 1e-4
    assert plain.fingerprint() != quick.fingerprint()
    wanted = theirs(open_clip, make(open_clip, "tiny-vit", force_quick_gelu=True), images, "tiny-vit")
    torch.testing.assert_close(ours(quick, images)[0], wanted[0], atol=1e-5, rtol=1e-5)


def test_both_activations_are_tried_where_nobody_says_which(open_clip, tmp_path, images, monkeypatch):
    torch.save(make(open_clip, "tiny-vit").state_dict(), tmp_path / "w.pt")
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
    table = pd.DataFrame(
        [(f"s/{i}.png", str(tmp_path / f"{i}.png"), "val", [TEXTS[i]]) for i in range(3)],
        columns=["image_id", "path", "split", "captions"],
    )
    monkeypatch.setenv("RSVLM_CACHE", str(tmp_path / "cache"))
    encoder, lines = load_encoder("open_clip:tiny-vit", weights=tmp_path / "w.pt"), []
    before = ours(encoder, images)[0]
    found = choose_activation(encoder, table, log=lines.append)
    assert set(found) == {"gelu", "quick_gelu"} and encoder.quick_gelu == (found["quick_gelu"] > found["gelu"])
    assert "set quick_gelu to choose otherwise" in lines[-1]
    encoder.use_quick_gelu(True)
    wanted = load_encoder("open_clip:tiny-vit", weights=tmp_path / "w.pt", quick_gelu=True)
    torch.testing.assert_close(ours(encoder, images)[0], ours(wanted, images)[0], atol=0, rtol=0)
    encoder.use_quick_gelu(False)
    torch.testing.assert_close(ours(encoder, images)[0], before, atol=0, rtol=0)
    assert choose_activation(wanted, table) is None


def test_a_text_tower_of_hugging_face_is_saved_with_its_tokenizer(open_clip, tmp_path, images, tiny_models):
    from transformers import AutoTokenizer, BertConfig

    text = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=512)
    text.save_pretrained(tmp_path / "bert")
    AutoTokenizer.from_pretrained(tiny_models.clip).save_pretrained(tmp_path / "bert")
    own = TINY | {"text_cfg": {"hf_model_name": str(tmp_path / "bert"), "hf_tokenizer_name": str(tmp_path / "bert"),
                               "hf_proj_type": "linear", "hf_pooler_type": "mean_pooler", "context_length": 24}}  # fmt: skip
    (tmp_path / "tiny-bert.json").write_text(json.dumps(own))
    open_clip.add_model_config(tmp_path / "tiny-bert.json")
    model = make(open_clip, "tiny-bert", pretrained_text=False)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    encoder = load_encoder("open_clip:tiny-bert", weights=tmp_path / "w.pt")
    torch.testing.assert_close(
        ours(encoder, images)[1], theirs(open_clip, model, images, "tiny-bert")[1], atol=1e-5, rtol=1e-5
    )
    encoder.save(tmp_path / "saved")
    (tmp_path / "bert").rename(tmp_path / "gone")
    torch.testing.assert_close(
        ours(load_encoder(tmp_path / "saved"), images)[1], ours(encoder, images)[1], atol=0, rtol=0
    )


@pytest.mark.parametrize("architecture", ["tiny-vit", "RN50"])
def test_parameters_have_one_group_and_blocks_freeze(open_clip, tmp_path, architecture):
    torch.save(make(open_clip, architecture).state_dict(), tmp_path / "w.pt")
    encoder = load_encoder(f"open_clip:{architecture}", weights=tmp_path / "w.pt").train()
    groups = encoder.parameter_groups()
    listed = [id(parameter) for own in groups.values() for parameter in own]
    assert sorted(listed) == sorted(id(parameter) for parameter in encoder.parameters()) and len(set(listed)) == len(
        listed
    )
    assert any(parameter is encoder.logit_scale for parameter in groups["projection"])
    assert any(parameter is encoder.model.text_projection for parameter in groups["projection"])
    encoder.freeze_image_blocks(1)
    frozen = {name for name, parameter in encoder.named_parameters() if not parameter.requires_grad}
    assert "model.visual.conv1.weight" in frozen and all(name.startswith("model.visual.") for name in frozen)
    assert not any(module.training for module in encoder.modules() if isinstance(module, torch.nn.BatchNorm2d))


def test_weights_of_another_architecture_are_refused_with_the_likeliest(open_clip, tmp_path):
    state = make(open_clip, "RN50").state_dict()
    torch.save(state, tmp_path / "w.pt")
    assert likely_architectures(state) == ["RN50"]
    with pytest.raises(ValueError, match=r"(?s)w\.pt.*weights are missing: .*By their shapes they are those of RN50"):
        load_encoder("open_clip:tiny-vit", weights=tmp_path / "w.pt")


class Runs:
    """A pickle that would create a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (open, (str(self.file), "w"))


def test_a_pickle_that_runs_code_is_refused_and_named(open_clip, tmp_path):
    with (tmp_path / "evil.pt").open("wb") as file:
        pickle.dump({"state_dict": Runs(tmp_path / "made")}, file, protocol=2)
    torch.save({"weight": Runs(tmp_path / "made")}, tmp_path / "zipped.pt")
    for name in ("evil.pt", "zipped.pt"):
        with pytest.raises(ValueError, match=rf"{name}.*refused: a pickle that asks for [\w.]*open"):
            load_encoder("open_clip:tiny-vit", weights=tmp_path / name)
    assert not (tmp_path / "made").exists()


def test_bad_weights_are_told(open_clip, tmp_path):
    state = make(open_clip, "tiny-vit").state_dict()
    torch.save(state, tmp_path / "whole.pt")
    half = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(half[: len(half) // 2])
    torch.save(state | {"logit_scale": torch.tensor(float("nan"))}, tmp_path / "nan.pt")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    torch.save({key: value for key, value in state.items() if key != "ln_final.bias"}, tmp_path / "less.pt")
    for name, problem in {
        "half.pt": "no whole checkpoint",
        "nan.pt": "logit_scale holds NaN",
        "empty.pt": "no weights by name",
        "less.pt": "1 weight is missing: ln_final.bias",
        "absent.pt": "no such file",
    }.items():
        with pytest.raises((ValueError, FileNotFoundError), match=rf"(?s){name}.*{problem}"):
            load_encoder("open_clip:tiny-vit", weights=tmp_path / name)


def test_code_of_a_text_towers_own_is_not_run_whatever_is_answered(open_clip, tmp_path, tiny_models, monkeypatch):
    bert, marker = shutil.copytree(tiny_models.clip, tmp_path / "bert"), tmp_path / "ran"
    add_own_code(bert, marker, model=True, tokenizer=True)
    edit_json("config.json", model_type="own", auto_map={"AutoConfig": "own_code.OwnConfig"})(bert)
    text = {"hf_model_name": str(bert), "hf_tokenizer_name": str(bert), "hf_pooler_type": "mean_pooler"}
    (tmp_path / "own-text.json").write_text(json.dumps(TINY | {"text_cfg": text}))
    open_clip.add_model_config(tmp_path / "own-text.json")
    torch.save(make(open_clip, "tiny-vit").state_dict(), tmp_path / "w.pt")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    with pytest.raises(ValueError, match="asks for Python code of its own to be run"):
        load_encoder("open_clip:own-text", weights=tmp_path / "w.pt")
    assert not marker.exists()


def test_names_that_are_none(open_clip, tmp_path):
    for name, problem in {
        "open_clip:ViT-B-23": "no architecture 'ViT-B-23'; did you mean 'ViT-B-32'",
        "open_clip:ViT-B-32": "its weights are not named",
        "open_clip:ViT-B-32/laion": "no tag 'laion' for ViT-B-32; known: openai",
        f"local-dir:{tmp_path}": "open_clip_config.json: missing",
        "hf-hub:somebody/no-such-clip": "hf download somebody/no-such-clip",
    }.items():
        with pytest.raises((ValueError, FileNotFoundError), match=problem):
            load_encoder(name)


def test_presets_are_told_and_found_where_they_were_put(open_clip, tmp_path, monkeypatch):
    monkeypatch.setenv("RSVLM_CACHE", str(tmp_path))
    listed = list_models().set_index("name")
    assert set(listed.index) == set(PRESETS) and not listed["here"].any()
    assert listed.loc["georsclip-vit-b-32-ret-2", "trained_on"] == "rsicd/train, rsitmd/train"
    with pytest.raises(
        FileNotFoundError, match=r"rsvlm models get remoteclip-rn50.*RemoteCLIP-RN50\.pt of https://hugg"
    ):
        load_encoder("remoteclip-rn50")
    with pytest.raises(ValueError, match="no preset 'remoteclip-vit-b-23'; did you mean 'remoteclip-vit-b-32'"):
        get_model("remoteclip-vit-b-23")
    with pytest.raises(FileNotFoundError, match="nor a preset; did you mean 'georsclip-vit-b-32"):
        load_encoder("georsclip-vit-b32")
    put = tmp_path / "models" / "remoteclip-rn50" / "RemoteCLIP-RN50.pt"
    put.parent.mkdir(parents=True)
    torch.save(make(open_clip, "RN50").state_dict(), put)
    encoder = load_encoder("remoteclip-rn50")
    assert encoder.name == "remoteclip-rn50" and encoder.quick_gelu and encoder.activation_known
    assert load_encoder("remoteclip-rn50", weights=put).fingerprint() == encoder.fingerprint()
    assert list_models().set_index("name").loc["remoteclip-rn50", "here"]


def test_every_preset_names_an_architecture_and_what_it_was_trained_on(open_clip):
    for name, preset in PRESETS.items():
        if preset.encoder.startswith("open_clip:"):
            assert preset.encoder.removeprefix("open_clip:") in open_clip.list_models() and preset.file, name
        assert preset.licence and preset.leaks and preset.address, name
        for part in preset.trained_on or ():
            source, split = part.split("/")
            assert source in KNOWN and split in SPLITS, name
