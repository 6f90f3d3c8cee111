"""Random crops, quarter turns, flips and brightness for a whole batch at once, in one resampling."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SPARE = 8 / 7  # images are kept this much larger than the input, so that a crop loses no detail (256 px for 224)


@dataclass(frozen=True)
class Augmentation:
    """What training images go through.

    Attributes:
        crop_size: side of the training input, pixels; None takes the encoder's own. Smaller is faster, and a random
            crop at 192 px shows things about as large as the whole image does at 224 (Touvron et al. 2019, FixRes).
        crop_min: smallest share of the image's area that a crop keeps; 1 crops nothing.
        rotations: quarter turns (0, 90, 180, 270 degrees). Wrong for captions that tell of north or left.
        flips: mirror images. Wrong for such captions too.
        brightness: factor between 1 - brightness and 1 + brightness.
    """

    crop_size: int | None = None
    crop_min: float = 0.7
    rotations: bool = True
    flips: bool = True
    brightness: float = 0.2

    def __post_init__(self):
        if self.crop_size is not None and self.crop_size < 1:
            raise ValueError(f"crop_size: at least 1 pixel is needed, got {self.crop_size}")
        if not 0 < self.crop_min <= 1:
            raise ValueError(f"crop_min: a share above 0, up to 1, is needed, got {self.crop_min}")
        if not 0 <= self.brightness < 1:
            raise ValueError(f"brightness: a number from 0 to below 1 is needed, got {self.brightness}")


def stored_size(image_size: int) -> int:
    """The side, in pixels, at which training images are kept for inputs of ``image_size``."""
    return int(np.ceil(image_size * SPARE))


def augment(pixels: Tensor, size: int, generator: np.random.Generator, settings: Augmentation) -> Tensor:
    """float32 (B, 3, size, size), values 0-255, of uint8 (B, 3, H, W): the same generator state, the same pixels."""
    B = len(pixels)
    turns = generator.integers(4, size=B) if settings.rotations else np.zeros(B, dtype=np.int64)
    mirrors = generator.choice([-1.0, 1.0], B) if settings.flips else np.ones(B)
    side = np.sqrt(generator.uniform(settings.crop_min, 1, B)) if settings.crop_min < 1 else np.ones(B)
    shifts = generator.uniform(-1, 1, (B, 2)) * (1 - side)[:, None]  # the crop stays inside
    factors = generator.uniform(1 - settings.brightness, 1 + settings.brightness, B)

    cosine, sine = np.array([1, 0, -1, 0])[turns], np.array([0, 1, 0, -1])[turns]
    affine = np.stack(
        [
            np.stack([side * cosine * mirrors, -side * sine, shifts[:, 0]], -1),
            np.stack([side * sine * mirrors, side * cosine, shifts[:, 1]], -1),
        ],
        1,
    )  # (B, 2, 3)
    places = F.affine_grid(torch.from_numpy(affine).float().to(pixels.device), [B, 3, size, size], align_corners=False)
    cropped = F.grid_sample(pixels.float(), places, mode="bilinear", padding_mode="reflection", align_corners=False)
    factors = torch.from_numpy(factors).float().to(pixels.device)
    return (cropped * factors[:, None, None, None]).clamp_(0, 255)
