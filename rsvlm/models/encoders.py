"""Dual encoders behind one small interface: images and captions into one space.

encoder = load_encoder("packaged:efficientnet-lite2-minilm")  # rsvlm.models.zoo: what names there are
pixels = encoder.normalize(encoder.prepare(images))
pooled, grid = encoder.image_features(pixels, grid=3)
similarity = normalize(encoder.project_images(pooled)) @ normalize(encoder.text_features(captions)).T
"""

import copy
import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from rsvlm.files import whole_folder
from rsvlm.models.loading import fingerprint_tensors


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes an encoder's input.

    Attributes:
        size: side of the square input, pixels.
        mean, std: per channel, on the scale 0-255.
        resize: "squash", the whole image to a square, or "crop", its shorter side to ``size`` and the centre of the rest.
        interpolation: Pillow's, with antialiasing.
        corner: how half a pixel before the centre is rounded: "round" as torchvision, "floor" as transformers.
    """

    size: int
    mean: Sequence[float]
    std: Sequence[float]
    resize: Literal["squash", "crop"] = "squash"
    interpolation: Literal["bicubic", "bilinear", "nearest", "lanczos", "box", "hamming"] = "bicubic"
    corner: Literal["round", "floor"] = "round"

    @property
    def geometry(self) -> tuple[int, str, str, str]:
        """All that changes the pixels (uint8)."""
        return self.size, self.resize, self.interpolation, self.corner

    def at(self, size: int) -> "Preprocessing":
        """The same to another size."""
        return replace(self, size=size)


class DualEncoder(nn.Module, ABC):
    """An image tower, a text tower and a projection of each into one space of ``embedding_dim`` numbers.

    Attributes:
        name: what it was loaded from.
        preprocessing: of pictures, as the model's own repository does it.
        image_size: S, side of the square input, pixels.
        feature_dim: P, width of an image's features.
        embedding_dim: D, width of the common space.
        image_tower, text_tower: modules.
        logit_scale: nn.Parameter, logarithm of the factor on cosines.
        any_image_size: whether the image tower takes other sizes than ``image_size``.
        activation_known: False where weights do not tell which activation they want; then ``use_quick_gelu`` changes it.
    """

    any_image_size, activation_known = False, True

    def __init__(self, name: str, preprocessing: Preprocessing, feature_dim: int, embedding_dim: int):
        super().__init__()
        self.name, self.preprocessing, self.image_size = name, preprocessing, preprocessing.size
        self.feature_dim, self.embedding_dim = feature_dim, embedding_dim
        mean, std = (torch.tensor(part, dtype=torch.float32) for part in (preprocessing.mean, preprocessing.std))
        self.register_buffer("mean", mean.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", std.view(1, 3, 1, 1), persistent=False)

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

    @property
    def members(self) -> list["DualEncoder"]:
        """The encoders that it is made of, each of which learns by a loss of its own: itself."""
        return [self]

    def sibling(self, number: int) -> "DualEncoder":
        """A copy to be trained beside it; weights that started random are drawn anew by ``number``."""
        return copy.deepcopy(self)

    @abstractmethod
    def _save_into(self, folder: Path) -> None:
        """Write weights, configuration and tokenizer."""

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return self.logit_scale.device

    def prepare(self, images: list[Image.Image]) -> Tensor:
        """uint8 (B, 3, S, S) of RGB images."""
        return resize_images(images, self.preprocessing)

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
        """SHA-256 over weights and how pictures are prepared, as hex: the same after saving and loading, everywhere."""
        own = [type(self).__name__, asdict(self.preprocessing)]
        digest = hashlib.sha256(json.dumps(own + self._beside_weights()).encode())
        fingerprint_tensors(self.state_dict(), digest)
        return digest.hexdigest()

    def _beside_weights(self) -> list:
        """What else changes its outputs, as JSON values."""
        return []

    def save(self, folder: Path) -> None:
        """Write the encoder to ``folder``, whole or not at all; ``load_encoder(folder)`` gives equal outputs."""
        with whole_folder(Path(folder)) as scratch:
            self._save_into(scratch)


def resize_images(images: list[Image.Image], preprocessing: Preprocessing) -> Tensor:
    """uint8 (B, 3, S, S) of RGB images; an image of that size is unchanged."""
    size, arrays = preprocessing.size, []
    for image in images:
        if image.mode != "RGB":
            raise ValueError(f"an image in mode {image.mode} where RGB is expected: open it with rsvlm.data.images")
        width = height = size
        if preprocessing.resize == "crop":
            width, height = (int(size * side / min(image.size)) for side in image.size)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling[preprocessing.interpolation.upper()])
        rounded = round if preprocessing.corner == "round" else math.floor
        left, top = (rounded((side - size) / 2) for side in (width, height))
        arrays.append(np.asarray(image.crop((left, top, left + size, top + size))))
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def pool_cells(patches: Tensor, grid: int) -> Tensor:
    """(B, grid * grid, P) cells, row by row, of (B, P, side, side) features of places."""
    return F.adaptive_avg_pool2d(patches, grid).flatten(2).transpose(1, 2)


def as_map(tokens: Tensor) -> Tensor:
    """(B, P, side, side) of (B, side * side, P) tokens of a square's patches, row by row."""
    side = int(tokens.shape[1] ** 0.5)
    return tokens.transpose(1, 2).unflatten(2, (side, side))
