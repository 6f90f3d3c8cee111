"""Dual encoders behind one small interface: images and captions into one space.

    encoder = load_encoder("packaged:efficientnet-lite2-minilm")
    pixels = encoder.normalize(encoder.prepare(images))
    pooled, grid = encoder.image_features(pixels, grid=3)
    similarity = normalize(encoder.project_images(pooled)) @ normalize(encoder.text_features(captions)).T

Two kinds exist: ``packaged`` (EfficientNet-Lite2 and MiniLM, installed from packages) and ``clip`` (any CLIPModel of
Hugging Face, by name or folder).
"""

import hashlib
import json
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from rsvlm.files import read_json, whole_folder

PACKAGED = "packaged:efficientnet-lite2-minilm"
RANDOM_CLIP = "random:clip"


class DualEncoder(nn.Module, ABC):
    """An image tower, a text tower and a projection of each into one space of ``embedding_dim`` numbers.

    Attributes:
        name: what it was loaded from.
        image_size: S, side of the square input, pixels.
        feature_dim: P, width of an image's features.
        embedding_dim: D, width of the common space.
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
    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """All parameters, each once: keys ``image``, ``text`` and ``projection`` (which holds the logit scale)."""

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
        from rsvlm.models.packaged import PackagedEncoder

        encoder = PackagedEncoder.from_packages(image_size)
    elif name == RANDOM_CLIP:
        from rsvlm.models.clip import ClipEncoder
        from rsvlm.models.tiny import make_tiny_clip

        with tempfile.TemporaryDirectory() as scratch:
            encoder = ClipEncoder.from_name(str(make_tiny_clip(Path(scratch) / "clip")), image_size)
        encoder.name = name
    elif name.startswith(("packaged:", "random:")):
        raise ValueError(f"encoder {name!r}: the built-in names are {PACKAGED!r} and {RANDOM_CLIP!r}")
    else:
        encoder = _load_folder_or_hub(name, image_size)
    return encoder.to(device).eval()


def _load_folder_or_hub(name: str, image_size: int | None) -> DualEncoder:
    from rsvlm.models.clip import ClipEncoder
    from rsvlm.models.packaged import MODEL_TYPE, PackagedEncoder

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
