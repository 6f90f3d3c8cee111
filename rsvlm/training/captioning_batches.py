"""What a step of the captioner's training sees: images, captions, prompts, views and negatives, drawn by its number."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rsvlm.models.capret import CapRet
from rsvlm.models.features import MEAN, UPRIGHT, Features, VisualInput, read_visual
from rsvlm.models.prompts import (
    CAPTION_PROMPT,
    CAPTION_PROMPTS,
    RETRIEVAL_PROMPTS,
    PackedRows,
    Row,
    caption_prompt,
    pack_rows,
)

CAPTION_CHOICES, VIEW_CHOICES, KEEP_CHOICES = ("distinct", "released"), ("all", "upright"), ("best", "last")


@dataclass(frozen=True)
class Example:
    """An image to train or validate on: its captions as released, and its neighbours' captions for the prompt."""

    image_id: str
    captions: tuple[str, ...]
    neighbours: tuple[str, ...] = ()


@dataclass(frozen=True)
class CaptioningSettings:
    """How a captioner is trained.

    Attributes:
        steps: optimiser steps in all.
        batch_size: images a step.
        captions: "distinct" (an image's different captions count alike) or "released" (a repeated one counts more).
        captions_per_image: captions of an image in a step, packed behind one prefix; 0: all.
        projection_lr, retrieval_lr, lora_lr: highest learning rates: into the language model; [RET], both retrieval
            projections and the logit scale; adapters.
        warmup_steps: steps in which the learning rates rise; a cosine follows, down to a hundredth.
        clip_norm: largest norm of all gradients together.
        retrieval_weight: of InfoNCE; 0 leaves retrieval untrained and saves its time.
        ret_token_weight: of emitting [RET].
        retrieval_negatives: training images beyond the batch's in InfoNCE.
        retrieval_prompts: share of text-only captions behind an instruction such as "Show me an image:".
        varied_prompts: share of prompts that are not the fixed "Caption:".
        neighbour_dropout: share of training prompts without the neighbours' captions.
        feature_dropout: share of feature values set to their mean.
        views: "all" (a random turned or mirrored view, or their mean) or "upright".
        validation_every: steps between two measurements on validation images; the last step is always measured.
        validation_images: at most so many, evenly spaced; 0: all.
        keep: "best" by validation caption loss, or "last".
        checkpoint_every: steps between two checkpoints.
    """

    steps: int = 400
    batch_size: int = 16
    captions: str = "distinct"
    captions_per_image: int = 3
    projection_lr: float = 4.0e-3
    retrieval_lr: float = 1.0e-3
    lora_lr: float = 1.0e-3
    warmup_steps: int = 20
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    retrieval_weight: float = 1.0
    ret_token_weight: float = 0.1
    retrieval_negatives: int = 256
    retrieval_prompts: float = 0.25
    varied_prompts: float = 0.5
    neighbour_dropout: float = 0.2
    feature_dropout: float = 0.0
    views: str = "all"
    validation_every: int = 100
    validation_images: int = 64
    keep: str = "best"
    checkpoint_every: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("captions", CAPTION_CHOICES), ("views", VIEW_CHOICES), ("keep", KEEP_CHOICES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: {getattr(self, name)!r} is none of {', '.join(known)}")
        for name, least in (
            ("steps", 1),
            ("batch_size", 1),
            ("captions_per_image", 0),
            ("warmup_steps", 0),
            ("retrieval_negatives", 0),
            ("validation_every", 1),
            ("validation_images", 0),
            ("checkpoint_every", 1),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: at least {least} is needed, got {getattr(self, name)}")
        for name in ("projection_lr", "retrieval_lr", "lora_lr", "clip_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: a finite number above 0 is needed, got {getattr(self, name)}")
        for name in ("retrieval_weight", "ret_token_weight", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: a finite number from 0 is needed, got {getattr(self, name)}")
        for name in ("retrieval_prompts", "varied_prompts", "neighbour_dropout", "feature_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: a share from 0 to 1 is needed, got {getattr(self, name)}")

    @property
    def trains_retrieval(self) -> bool:
        """Whether the text-only branch is computed at all."""
        return self.retrieval_weight > 0 or self.ret_token_weight > 0


@dataclass(frozen=True)
class Batch:
    """The inputs of one step or one part of a validation.

    Attributes:
        packed: B rows with their captions, C in all, and at most one text-only segment each, M in all.
        visual: features of the B images.
        weights: (C,) how much each caption counts.
        pooled: (N, P) features of the images for InfoNCE: the batch's, then the negatives.
        positives: (N, M) bool; None without text-only segments.
    """

    packed: PackedRows
    visual: VisualInput
    weights: Tensor
    pooled: Tensor
    positives: Tensor | None


def examples_of(
    table: pd.DataFrame, split: str, neighbours: Mapping[str, Sequence[str]] | None = None
) -> list[Example]:
    """The split's images as examples, with ``neighbours[image_id]`` for their prompts.

    Raises:
        ValueError: the split is empty, an image has no caption, or ``neighbours`` lacks an image.
    """
    rows = table[table["split"] == split]
    if len(rows) == 0:
        raise ValueError(f"the split {split!r} holds no image; see the table of splits in aggregate_data's report")
    examples = []
    for image_id, captions in zip(rows["image_id"], rows["captions"]):
        if len(captions) == 0:
            raise ValueError(f"{image_id}: no caption, so nothing to learn from")
        if neighbours is not None and image_id not in neighbours:
            raise ValueError(f"{image_id}: no neighbours' captions are given for it")
        examples.append(Example(image_id, tuple(captions), tuple(neighbours[image_id]) if neighbours else ()))
    return examples


class TrainingBatches:
    """Batches of training examples by step number: the same step always gives the same batch."""

    def __init__(
        self, captioner: CapRet, features: Features, examples: Sequence[Example], settings: CaptioningSettings
    ) -> None:
        self.captioner, self.features, self.examples, self.settings = captioner, features, examples, settings
        self.rows = features.rows([example.image_id for example in examples])
        self.texts = [set(example.captions) for example in examples]

    def draw(self, step: int, generator: np.random.Generator) -> Batch:
        """The batch of a step."""
        settings = self.settings
        chosen = self._draw_images(step)
        examples = [self.examples[i] for i in chosen]
        captions, weights = zip(*(self._draw_captions(example, generator) for example in examples))
        prompts = [self._draw_prompt(example, generator) for example in examples]
        texts = [own[0] for own in captions] if settings.trains_retrieval else []
        leads = [
            str(generator.choice(RETRIEVAL_PROMPTS)) + " " if generator.random() < settings.retrieval_prompts else ""
            for _ in texts
        ]
        packed = pack_examples(self.captioner, prompts, captions, [lead + text for lead, text in zip(leads, texts)])
        views = self._draw_views(len(chosen), generator)
        visual = read_visual(self.features, self.rows[chosen], views, grid=self.captioner.settings.grid_cells > 0)
        others, pooled = self._draw_negatives(chosen, generator), visual.pooled
        if len(others):
            views = self._draw_views(len(others), generator)
            pooled = torch.cat([pooled, read_visual(self.features, self.rows[others], views, grid=False).pooled])
        shown = [*chosen, *others]
        positives = torch.tensor([[text in self.texts[i] for text in texts] for i in shown]) if texts else None
        return Batch(packed, visual, torch.tensor(np.concatenate(weights), dtype=torch.float32), pooled, positives)

    def _draw_images(self, step: int) -> np.ndarray:
        """The batch's example numbers: the next of a new order each epoch, without a short last batch."""
        epoch, place = divmod(step, len(self.examples) // self.settings.batch_size)
        order = np.random.default_rng([self.settings.seed, 1, epoch]).permutation(len(self.examples))
        return order[place * self.settings.batch_size : (place + 1) * self.settings.batch_size]

    def _draw_captions(self, example: Example, generator: np.random.Generator) -> tuple[list[str], list[float]]:
        """(different captions in random order, their weights)."""
        released = self.settings.captions == "released"
        pool = list(example.captions) if released else list(dict.fromkeys(example.captions))
        drawn = [pool[i] for i in generator.permutation(len(pool))[: self.settings.captions_per_image or None]]
        distinct = list(dict.fromkeys(drawn))
        return distinct, [float(drawn.count(text)) for text in distinct]

    def _draw_prompt(self, example: Example, generator: np.random.Generator) -> str:
        varied, bare = (
            generator.random() < self.settings.varied_prompts,
            generator.random() < self.settings.neighbour_dropout,
        )
        instruction = str(generator.choice(CAPTION_PROMPTS)) if varied else CAPTION_PROMPT
        return caption_prompt(instruction, () if bare else example.neighbours)

    def _draw_views(self, n: int, generator: np.random.Generator) -> np.ndarray:
        """(n,) numbers of views: any of V, or their mean."""
        V = self.features.pooled.shape[1]
        if self.settings.views == "upright" or V == 1:
            return np.full(n, UPRIGHT)
        drawn = generator.integers(0, V + 1, n)
        return np.where(drawn == V, MEAN, drawn)

    def _draw_negatives(self, chosen: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        if not self.settings.retrieval_weight:
            return np.zeros(0, dtype=np.int64)
        rest = np.setdiff1d(np.arange(len(self.examples)), chosen)
        return generator.choice(rest, min(self.settings.retrieval_negatives, len(rest)), replace=False)


def validation_batches(
    captioner: CapRet, features: Features, examples: Sequence[Example], settings: CaptioningSettings
) -> list[tuple[Batch, int]]:
    """(batch, images) pairs over the validation examples: fixed prompt, upright view, all distinct captions alike."""
    batches = []
    for start in range(0, len(examples), settings.batch_size):
        part = examples[start : start + settings.batch_size]
        captions = [list(dict.fromkeys(example.captions)) for example in part]
        texts = [own[0] for own in captions] if settings.trains_retrieval else []
        packed = pack_examples(
            captioner, [caption_prompt(CAPTION_PROMPT, example.neighbours) for example in part], captions, texts
        )
        rows = features.rows([example.image_id for example in part])
        visual = read_visual(features, rows, UPRIGHT, grid=captioner.settings.grid_cells > 0)
        positives = torch.tensor([[text in example.captions for text in texts] for example in part]) if texts else None
        batches.append(
            (Batch(packed, visual, torch.ones(sum(map(len, captions))), visual.pooled, positives), len(part))
        )
    return batches


def pack_examples(
    captioner: CapRet, prompts: Sequence[str], captions: Sequence[Sequence[str]], texts: Sequence[str]
) -> PackedRows:
    """The images' prompts (B), captions (B lists) and texts for [RET] (B or none) as packed rows."""
    B = len(prompts)
    ids = captioner.encode_text([*prompts, *texts, *(text for own in captions for text in own)])
    prompt_ids, text_ids, caption_ids = ids[:B], ids[B : B + len(texts)], iter(ids[B + len(texts) :])
    rows = [
        Row(captioner.image_prefix(prompt_ids[number]), [next(caption_ids) for _ in own], text_ids[number : number + 1])
        for number, own in enumerate(captions)
    ]
    return pack_rows(rows, eos_id=captioner.eos_id, ret_id=captioner.ret_id, start_ids=captioner.start_ids)
