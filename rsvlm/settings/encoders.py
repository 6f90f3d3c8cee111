"""Settings of encoders: adapting one, other languages, features, and the neighbours that they give."""

from typing import Literal, Self

from pydantic import model_validator

from rsvlm.settings.checks import (
    BATCH,
    CHUNK,
    DECAY,
    LOSS_WEIGHT,
    NEIGHBOURS,
    RATE,
    SEED,
    SIDE,
    STEPS,
    TEMPERATURE,
    Precision,
    Settings,
    Within,
    setting,
)

MOST_MEMBERS = 8


class Augmentation(Settings):
    """What training images go through. Turns and mirror images are wrong for captions that tell of north or left.

    A random crop at 192 pixels shows things about as large as the whole image does at 224 (Touvron et al. 2019, FixRes).
    """

    crop_size: int | None = setting(
        None, "side of the training input, pixels; null takes image_size; smaller is faster", SIDE, quick=64
    )
    crop_min: float = setting(
        0.7,
        "smallest share of an image's area that a random crop keeps",
        Within(0, 1, "a crop keeps something, and no more than the image", above=True),
    )
    rotations: bool = setting(True, "quarter turns")
    flips: bool = setting(True, "mirror images")
    brightness: float = setting(
        0.2,
        "random factor between 1 - brightness and 1 + brightness",
        Within(0, 1, "at 1 images may turn black", below=True),
    )


class AdaptSettings(Augmentation):
    """How an encoder is adapted. The mean of weights: Polyak and Juditsky 1992."""

    train: Literal["all", "projections"] = setting("all", "all weights, or projections only")
    epochs: int = setting(
        2,
        "passes over the training images; 0 keeps the encoder as it is",
        Within(0, 1000, "0 keeps the encoder; recall on validation images falls long before 1,000"),
        quick=1,
    )
    members: int = setting(
        1,
        "encoders trained alike, whose embeddings stand end to end; each costs an encoder's time",
        Within(1, MOST_MEMBERS, "the gain of each is smaller than that of the one before"),
    )
    batch_size: int = setting(
        60, "images a step", Within(2, 32_768, f"one pair has nothing to be told from; {BATCH.why}")
    )
    captions_per_image: int = setting(
        1,
        "captions drawn for each image of a batch",
        Within(1, 16, "data sets have 5 an image; each text of a batch costs a pass of the text tower and its memory"),
    )
    chunk: int = setting(0, "images, and captions, whose activations are in memory together (GradCache); 0: all", CHUNK)
    image_lr: float = setting(4.0e-4, "highest learning rate of the image tower", RATE)
    text_lr: float = setting(6.0e-5, "highest learning rate of the text tower", RATE)
    projection_lr: float = setting(1.0e-3, "highest learning rate of the projections", RATE)
    weight_decay: float = setting(0.01, "AdamW's", DECAY)
    freeze_blocks: int = setting(
        3,
        "first blocks of the image tower left as they are; frozen ones cost less time",
        Within(0, 100, "no tower has more blocks"),
    )
    average_decay: float = setting(
        0.0,
        "of the running mean of the weights, which is kept instead of them; 0: none",
        Within(0, 1, "at 1 the mean would stay at the first weights", below=True),
    )
    precision: Precision = setting("auto", "auto (bf16 where the hardware has it), fp32 or bf16")
    checkpoint_every: int = setting(50, "steps between two checkpoints", STEPS)
    seed: int = setting(0, "of data order, captions and augmentation", SEED)

    @model_validator(mode="after")
    def _check_members(self) -> Self:
        if self.members > 1 and not self.epochs:
            raise ValueError(
                f"'members' {self.members} need 'epochs' of 1 or more: without training they are all alike"
            )
        return self


class LanguageSettings(Settings):
    """How a head from a multilingual text tower into the encoder's space is trained."""

    hidden: int = setting(
        1024,
        "width of the head's network beside its linear map",
        Within(1, 65_536, "wider than the widest text tower's own layers nothing is gained"),
    )
    captions_per_image: int = setting(
        2,
        "different captions of a training image and language, evenly spread; 0: all",
        Within(0, 1000, "0 takes all; data sets have 5 an image"),
    )
    steps: int = setting(200, "optimiser steps a recipe", STEPS)
    batch_size: int = setting(
        128, "images a step", Within(2, 32_768, f"one pair has nothing to be told from; {BATCH.why}"), quick=32
    )
    head_lr: float = setting(0.002, "highest learning rate", RATE)
    weight_decay: float = setting(0.01, "AdamW's", DECAY)
    distillation_weight: float = setting(
        1.0, "distilled: of the distance to the English caption's embedding", LOSS_WEIGHT
    )
    validation_every: int = setting(50, "steps between two measurements", STEPS)
    checkpoint_every: int = setting(500, "steps between two checkpoints", STEPS)
    seed: int = setting(0, "of the new weights, data order and captions", SEED)


class Encoding(Settings):
    """How images and captions are encoded."""

    views: Literal[1, 2, 4, 8] = setting(
        2,
        "8 = quarter turns and mirror images, 4 = quarter turns, 2 = image and mirror image, 1 = upright only",
    )
    grid: int = setting(
        2,
        "cells along a side of the grid features; 0 leaves them out",
        Within(0, 16, "ViT-L/14 sees 16 x 16 patches; each cell is a visual token of every prompt"),
    )
    crops: Literal["never", "auto", "always"] = setting(
        "never",
        "cells from crops of the picture, a pass each: auto = where a side is longer than twice the encoder's input",
    )
    batch_size: int = setting(32, "images at a time", BATCH)
    capitalise: bool = setting(True, 'captions as "A river." (RemoteCLIP\'s protocol)')
    precision: Precision = setting("auto", "auto (bf16 where the hardware has it), fp32 or bf16")

    @model_validator(mode="after")
    def _check_crops(self) -> Self:
        if self.crops != "never" and not self.grid:
            raise ValueError(f"'crops' {self.crops!r} needs a 'grid' of 1 or more: with 0 there are no cells")
        return self


class EarthWindows(Settings):
    """How the globe is cut into windows."""

    window_pixels: int = setting(
        48,
        "side of a window, pixels of the globe; the training tiles have 48",
        Within(16, 512, "below 16 nothing is seen, 512 pixels are 34 degrees"),
    )
    overlap: float = setting(
        0.5, "share of a window that the next one covers again", Within(0.0, 0.9, "windows must move on"), quick=0.0
    )
    land_share: float = setting(
        0.25, "windows with less land are left out: the models know no open sea", Within(0.0, 1.0, "it is a share")
    )
    batch_size: int = setting(64, "windows at a time", BATCH)
    precision: Precision = setting("auto", "auto (bf16 where the hardware has it), fp32 or bf16")


class Pooling(Settings):
    """Which training images' captions form the pool of an image, and their weights."""

    neighbours: int = setting(20, "nearest training images whose captions form an image's pool", NEIGHBOURS)
    neighbour_temperature: float = setting(0.05, "of their weights exp(cosine difference / temperature)", TEMPERATURE)
