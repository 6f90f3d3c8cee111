"""Training of the captioner: captions from images, and images from captions.

Loss = cross-entropy of captions behind [visual tokens][prompt]
     + retrieval_weight x InfoNCE, both ways, between text-only "caption [RET]" and images
     + ret_token_weight x cross-entropy of emitting [RET] behind a text-only caption.
The text branch sees no image (FROMAGe, Koh et al. 2023). Every image that has a caption's text is its positive. Because
features are cached, images beyond the batch's serve as negatives at the price of one small product. What a step sees
(images, captions, prompts, views, negatives) derives from (seed, step).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rsvlm.data.table import evenly_spaced
from rsvlm.kernels import contrastive_loss
from rsvlm.models.capret import CapRet
from rsvlm.models.captioner import save_capret
from rsvlm.models.features import Features
from rsvlm.models.prompts import (
    CAPTION_PROMPT,
    CAPTION_PROMPTS,
    MEAN,
    RETRIEVAL_PROMPTS,
    UPRIGHT,
    PackedRows,
    Row,
    VisualInput,
    caption_prompt,
    pack_rows,
    read_visual,
)
from rsvlm.progress import log_line
from rsvlm.settings import CaptioningSettings
from rsvlm.training.loop import Task, build_optimizer, check_batch, checkpoint_folder, remove_checkpoints, train

LOSSES = ("loss", "caption_loss", "retrieval_loss", "ret_token_loss")
LAST_RATE = 0.01  # share of the highest learning rate at the end of the cosine


@dataclass(frozen=True)
class Example:
    """An image to train or validate on: its captions as released, and its neighbours' captions for the prompt."""

    image_id: str
    captions: tuple[str, ...]
    neighbours: tuple[str, ...] = ()


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


@dataclass(frozen=True)
class CaptioningResult:
    """What a training gave."""

    kept_step: int
    steps: int
    trainable_parameters: dict[str, int]  # by kind
    validation: list[dict]  # one row a measurement
    curve: list[dict]  # one row a step

    @property
    def kept_validation(self) -> dict | None:
        """The measurement at the kept step, if there was one."""
        return next((row for row in self.validation if row["step"] == self.kept_step), None)

    def metrics(self) -> dict:
        """What is worth comparing between runs, as JSON values."""
        measured = {key: value for key, value in (self.kept_validation or {}).items() if key in LOSSES}
        return {
            "kept_step": self.kept_step,
            "steps": self.steps,
            "trainable_parameters": sum(self.trainable_parameters.values()),
            "trainable_parameters_by_kind": self.trainable_parameters,
            "validation": measured or None,
        }


def train_captioner(
    captioner: CapRet,
    features: Features,
    training: Sequence[Example],
    validation: Sequence[Example],
    settings: CaptioningSettings,
    *,
    save_to: Path | None = None,
    notes: dict | None = None,
    checkpoints: Path | None = None,
    log: Callable[[str], None] = log_line,
) -> CaptioningResult:
    """Train ``captioner`` in place; it ends with the weights of the kept step, in evaluation mode.

    Killed at any step and called again with the same arguments, it continues from the last checkpoint.

    Args:
        save_to: folder the captioner is saved to, before the checkpoints are removed.
        notes: JSON values that go into its config.json, such as how prompts are made.
        checkpoints: folder for checkpoints; each training has its own inside. Default: below ``cache_folder()``.

    Raises:
        ValueError: a batch larger than the training set, an image without features.
        FloatingPointError: the loss or a gradient is NaN or infinite; names step, learning rates and last checkpoint.
    """
    settings = CaptioningSettings.of(settings)
    check_batch(settings.batch_size, len(training))
    task = _Captioning(captioner, features, training, validation, settings, log)
    folder = checkpoint_folder(
        checkpoints,
        task.name,
        settings.model_dump(),
        captioner.settings.model_dump(),
        captioner.config,
        captioner.device.type,
        features.meta,
        [asdict(example) for example in (*training, *validation)],
    )
    try:
        now = train(task, folder, log)
    finally:
        captioner.eval()
    if save_to is not None:
        save_capret(captioner, save_to, **(notes or {}), training=settings.model_dump(), kept_step=now.kept_step)
    remove_checkpoints(folder)
    counts = {group["name"]: sum(p.numel() for p in group["params"]) for group in task.optimizer.param_groups}
    return CaptioningResult(now.kept_step, settings.steps, counts, now.validation, now.curve)


def schedule(step: int, steps: int, warmup_steps: int) -> float:
    """Share of the highest learning rate at a step: linear up, then a cosine down to a hundredth."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, steps - 1 - warmup_steps)
    return LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class _Captioning(Task):
    """The training of a captioner on examples, measured on others."""

    name, clip_norm, remedy = "finetune_lora", 1.0, "dtype: float32"

    def __init__(
        self,
        captioner: CapRet,
        features: Features,
        training: Sequence[Example],
        validation: Sequence[Example],
        settings: CaptioningSettings,
        log: Callable[[str], None],
    ) -> None:
        self.model, self.settings, self.steps, self.log = captioner, settings, settings.steps, log
        self.drawn = TrainingBatches(captioner, features, training, settings)
        spread = evenly_spaced(len(validation), settings.validation_images)
        self.validation = validation_batches(captioner, features, [validation[i] for i in spread], settings)
        self.keeps_last = settings.keep == "last" or not self.validation
        self.optimizer = build_optimizer(captioner.parameter_groups(), settings, betas=(0.9, 0.95))

    def rates(self, step: int) -> tuple[float, float]:
        return schedule(step, self.steps, self.settings.warmup_steps), 0.9

    def batches(self, steps: range) -> range:
        """The steps themselves: ``losses`` draws what they see."""
        return steps

    def losses(self, step: int, generator: np.random.Generator) -> dict[str, Tensor]:
        return self._losses(self.drawn.draw(step, generator))

    def curve_row(self, step: int, losses: dict[str, float], norm: float) -> dict[str, float]:
        share, scale = self.rates(step - 1)[0], self.model.scale().item()
        row = losses | {"learning_rate_share": share, "gradient_norm": norm, "logit_scale": scale}
        return {key: round(value, 6) for key, value in row.items()}

    def epoch(self, step: int) -> float:
        return step * self.settings.batch_size / len(self.drawn.examples)

    def is_due(self, step: int) -> bool:
        due = step % self.settings.validation_every == 0 or step == self.steps
        return due and step > 0 and bool(self.validation)

    def validate(self, step: int) -> tuple[float, dict]:
        sums, n_images = dict.fromkeys(LOSSES, 0.0), sum(len(batch.visual.pooled) for batch in self.validation)
        for batch in self.validation:
            for name, value in self._losses(batch).items():
                sums[name] += value.item() * len(batch.visual.pooled) / n_images
        self.log(
            f"step {step}: validation caption loss {sums['caption_loss']:.4f}, "
            f"retrieval loss {sums['retrieval_loss']:.4f}"
        )
        return -sums["caption_loss"], {"step": step, "epoch": round(self.epoch(step), 4), **sums}

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        """loss and its parts, scalars."""
        captioner, settings, device = self.model, self.settings, self.model.device
        packed = batch.packed.to(device)
        tokens = captioner.visual_tokens(self._drop(batch.visual.pooled), self._drop(batch.visual.grid))
        hidden = captioner.hidden_states(packed, tokens)
        at = torch.cat([packed.predict_at, packed.before_ret])
        labels = torch.cat([packed.labels, torch.full_like(packed.before_ret, captioner.ret_id)])
        # index_select, not indexing: its gradient is summed in a fixed order
        nll = captioner.negative_log_likelihoods(hidden.index_select(0, at), labels)
        n = len(packed.labels)
        weight = batch.weights.to(device).index_select(0, packed.owners)
        losses = {"caption_loss": (nll[:n] * weight).sum() / weight.sum()}
        losses["retrieval_loss"] = losses["ret_token_loss"] = torch.zeros((), device=device)
        if batch.positives is not None:
            losses["ret_token_loss"] = nll[n:].mean()
            losses["retrieval_loss"] = contrastive_loss(
                captioner.embed_images(self._drop(batch.pooled)),
                captioner.embed_ret(hidden.index_select(0, packed.ret_at)),
                captioner.scale(),
                batch.positives.to(device),
            )
        total = (
            losses["caption_loss"]
            + settings.retrieval_weight * losses["retrieval_loss"]
            + settings.ret_token_weight * losses["ret_token_loss"]
        )
        return {"loss": total, **losses}

    def _drop(self, values: Tensor | None) -> Tensor | None:
        """Features with some values set to the training mean, while training."""
        share = self.settings.feature_dropout
        if values is None or not share or not self.model.training:
            return values
        mean = self.model.pooled_mean if values.dim() == 2 else self.model.grid_mean
        return torch.where(torch.rand(values.shape) < share, mean.cpu(), values)


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
        varied = generator.random() < self.settings.varied_prompts
        bare = generator.random() < self.settings.neighbour_dropout
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
) -> list[Batch]:
    """Batches of the validation examples: fixed prompt, upright view, all distinct captions alike."""
    batches = []
    for start in range(0, len(examples), settings.batch_size):
        part = examples[start : start + settings.batch_size]
        captions = [list(dict.fromkeys(example.captions)) for example in part]
        texts = [own[0] for own in captions] if settings.trains_retrieval else []
        prompts = [caption_prompt(CAPTION_PROMPT, example.neighbours) for example in part]
        packed = pack_examples(captioner, prompts, captions, texts)
        rows = features.rows([example.image_id for example in part])
        visual = read_visual(features, rows, UPRIGHT, grid=captioner.settings.grid_cells > 0)
        positives = torch.tensor([[text in example.captions for text in texts] for example in part]) if texts else None
        batches.append(Batch(packed, visual, torch.ones(sum(map(len, captions))), visual.pooled, positives))
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
