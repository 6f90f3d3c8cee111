"""Scenes of plain colours, and an encoder that sees nothing but an image's mean colour: answers are known."""

import warnings
from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio import Affine
from torch import nn

from rsvlm.models.encoders import DualEncoder, Preprocessing

COLOURS = {"Red": (1.0, 0.0, 0.0), "Green": (0.0, 1.0, 0.0), "Blue": (0.0, 0.0, 1.0)}
UTM = Affine.translation(500_000, 5_000_000) @ Affine.scale(10, -10)  # 10 m a pixel
TURNED = Affine.translation(500_000, 5_000_000) @ Affine.rotation(30) @ Affine.scale(10, -10)


class ColourEncoder(DualEncoder):
    """An image is its mean colour, the texts Red, Green and Blue are theirs."""

    def __init__(self, size: int = 16, resize: str = "squash", dim: int = 3):
        super().__init__("colour", Preprocessing(size, (0.0,) * 3, (255.0,) * 3, resize=resize), 3, dim)
        self.logit_scale = nn.Parameter(torch.zeros(()))

    def image_features(self, pixel_values, grid=0):
        return pixel_values.mean((-2, -1)), None

    def project_images(self, pooled):
        return torch.cat([pooled, pooled.new_zeros(len(pooled), self.embedding_dim - 3)], 1)

    def text_features(self, texts):
        return self.project_images(torch.tensor([COLOURS[text] for text in texts]))

    def image_blocks(self):
        return []

    def _save_into(self, folder):
        raise NotImplementedError


def write_raster(path: Path, pixels: np.ndarray, **options) -> Path:
    """A GeoTIFF of (bands, rows, columns)."""
    bands, rows, columns = pixels.shape
    form = dict(driver="GTiff", count=bands, height=rows, width=columns, dtype=pixels.dtype.name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        file = rasterio.open(path, "w", **form | options)
    with file:
        file.write(pixels)
    return path


def green_with_red(width: int, height: int, left: int, top: int, side: int) -> np.ndarray:
    """uint8 (3, height, width): a red square on green ground."""
    pixels = np.zeros((3, height, width), np.uint8)
    pixels[1] = 200
    pixels[:, top : top + side, left : left + side] = np.array([200, 0, 0])[:, None, None]
    return pixels
