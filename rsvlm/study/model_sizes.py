"""How large a model is, read from its configuration and its files' headers: nothing is loaded, torch is not imported."""

from dataclasses import dataclass, replace
from pathlib import Path

from rsvlm.files import read_json


@dataclass(frozen=True)
class Decoder:
    """The size of a causal language model."""

    parameters: int
    width: int
    middle: int
    layers: int
    key_width: int  # of keys, and of values: heads that have their own x width of a head
    vocabulary: int


SMOLLM2 = Decoder(134_515_008, 576, 1536, 30, 192, 49_152)
RANDOM_LLAMA = Decoder(43_168, 32, 64, 2, 16, 384)


@dataclass(frozen=True)
class Tower:
    """The size of a transformer tower: its width, layers, and tokens an input at most."""

    width: int
    layers: int
    tokens: int


@dataclass(frozen=True)
class Encoder:
    """The size of a dual encoder; ``vision`` None: EfficientNet-Lite2 at ``image_size``."""

    parameters: int
    text: Tower
    vision: Tower | None
    image_size: int


MINILM = Tower(384, 6, 64)
RANDOM_CLIP = Encoder(55_937, Tower(32, 2, 48), Tower(32, 2, 17), 32)


class SizeUnknown(Exception):
    """The size of a model cannot be told before it is there."""


def decoder_size(name: str) -> Decoder:
    """The size of a language model by name. SizeUnknown where it is not on this machine, or no kin of LLaMA."""
    known = {"packaged:smollm2-135m": SMOLLM2, "random:llama": RANDOM_LLAMA}
    if name in known:
        return known[name]
    folder = model_folder(name)
    config = read_known(folder / "config.json", f"{name} has no config.json here")
    try:
        H, heads = config["hidden_size"], config["num_attention_heads"]
        keys = config.get("num_key_value_heads", heads) * (config.get("head_dim") or H // heads)
        sizes = H, config["intermediate_size"], config["num_hidden_layers"], keys, config["vocab_size"]
    except KeyError as error:
        raise SizeUnknown(f"{folder / 'config.json'} has no {error}") from error
    return Decoder(count_parameters(folder), *sizes)


def encoder_size(name: str, image_size: int | None) -> Encoder:
    """The size of an encoder by name, at an input of ``image_size``. SizeUnknown where it is not on this machine."""
    if name == "random:clip":
        return RANDOM_CLIP
    if name == "packaged:efficientnet-lite2-minilm":
        return Encoder(27_773_385, MINILM, None, image_size or 224)
    if name.startswith(("open_clip:", "hf-hub:")):
        raise SizeUnknown(f"the size of {name} is known once it is loaded")
    folder = model_folder(name.removeprefix("local-dir:"))
    if (folder / "open_clip_config.json").is_file():
        return _open_clip_size(folder)
    config = read_known(folder / "config.json", f"{name} has no config.json here")
    if config.get("model_type") == "rsvlm-joined":
        one = encoder_size(str(folder / "0"), image_size)
        return replace(one, parameters=one.parameters * config["members"])
    if "vision_config" not in config:
        return Encoder(count_parameters(folder), MINILM, None, image_size or config.get("image_size", 224))
    vision, text = config["vision_config"], config["text_config"]
    side = vision.get("image_size", 224)
    patches = (side // vision.get("patch_size", 32)) ** 2
    return Encoder(
        count_parameters(folder),
        Tower(text.get("hidden_size", 512), text.get("num_hidden_layers", 12), text.get("max_position_embeddings", 77)),
        Tower(vision.get("hidden_size", 768), vision.get("num_hidden_layers", 12), patches + 1),
        side,
    )


def _open_clip_size(folder: Path) -> Encoder:
    """The size of an encoder in open_clip's format; towers whose shape it does not tell count as ViT-B/32's."""
    own = read_known(folder / "open_clip_config.json", f"{folder} has no open_clip_config.json")["model_cfg"]
    vision, text = own["vision_cfg"], own["text_cfg"]
    side, layers = vision.get("image_size") or 224, vision.get("layers") or 12
    patches = (side // (vision.get("patch_size") or 32)) ** 2  # a ResNet has none: its map is 32 times smaller
    depth = sum(layers) if isinstance(layers, list) else layers
    return Encoder(
        count_parameters(folder),
        Tower(text.get("width") or 512, text.get("layers") or 12, text.get("context_length") or 77),
        Tower(vision.get("width") or 768, depth, patches + 1),
        side,
    )


def model_folder(name: str) -> Path:
    """The folder of a model: a path, or what was downloaded of a name on the Hugging Face hub."""
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    from transformers.utils import cached_file  # without torch

    try:
        return Path(cached_file(name, "config.json", local_files_only=True)).parent
    except (OSError, ValueError) as error:
        raise SizeUnknown(f"{name} is not on this machine yet") from error


def count_parameters(folder: Path) -> int:
    """Numbers in a folder's safetensors files, by their headers."""
    from safetensors import SafetensorError, safe_open

    whole = [folder / name for name in ("model.safetensors", "open_clip_model.safetensors")]
    files = [path for path in whole if path.is_file()][:1] or sorted(folder.glob("model-*.safetensors"))
    total = 0
    try:
        for path in files:
            with safe_open(path, framework="np") as file:
                for name in file.keys():
                    size = 1
                    for side in file.get_slice(name).get_shape():
                        size *= side
                    total += size
    except SafetensorError as error:
        raise SizeUnknown(f"{path}: {error}") from error
    if not total:
        raise SizeUnknown(f"{folder} has no safetensors yet")
    return total


def read_known(path: Path, otherwise: str) -> dict:
    """What a JSON file holds. SizeUnknown, which says ``otherwise``, where it is not there."""
    if not path.is_file():
        raise SizeUnknown(otherwise)
    return read_json(path)
