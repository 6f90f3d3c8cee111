"""Fine-tuning of a vision-language model on captioned pictures by LoRA (Hu et al. 2022).

Loss = mean cross-entropy of the caption's tokens and of the token that ends it, behind picture and prompt, which are not
learnt. The caption's tokens stand where generation would put them, so that what is generated is what was trained.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rsvlm.data.images import open_image
from rsvlm.data.table import evenly_spaced
from rsvlm.models.captioner import fingerprint_language_model
from rsvlm.models.feature_shards import fingerprint_images
from rsvlm.models.vlm import VisionLanguageModel
from rsvlm.models.vlm_adapters import adapter_weights, add_adapters, save_adapters
from rsvlm.progress import log_line
from rsvlm.settings import VlmLoraSettings
from rsvlm.training.loop import Task, build_optimizer, check_batch, checkpoints_of, schedule, train

NOT_LEARNT = -100  # label of what has no part in the loss, as F.cross_entropy has it


@dataclass(frozen=True)
class CaptionedPicture:
    """A picture's file, and its captions."""

    path: Path
    captions: tuple[str, ...]


@dataclass(frozen=True)
class VlmLoraResult:
    """What a training gave."""

    kept_step: int
    steps: int
    trainable_parameters: int
    validation: list[dict]  # one row a measurement: step, epoch, caption_loss
    curve: list[dict]  # one row a step


def train_vlm_lora(
    vlm: VisionLanguageModel,
    training: Sequence[CaptionedPicture],
    validation: Sequence[CaptionedPicture],
    settings: VlmLoraSettings,
    *,
    save_to: Path | None = None,
    checkpoints: Path | None = None,
    log: Callable[[str], None] = log_line,
) -> VlmLoraResult:
    """Put adapters into ``vlm.model`` and train them; it ends with those of the kept step.

    Killed at any step and called again with the same arguments, it continues from the last checkpoint.

    Args:
        save_to: folder for the adapters, for ``load_vlm(..., adapter=...)``.
        checkpoints: folder for checkpoints; each training has its own inside. Default: below ``cache_folder()``.

    Raises:
        ValueError: a batch larger than the training set, a picture without caption, an unknown target, or a model whose
            text decoder is apart from its prompt (BLIP-2 with T5, BLIP, GIT).
        FloatingPointError: the loss or a gradient is NaN or infinite; names step, learning rates and last checkpoint.
    """
    check_batch(settings.batch_size, len(training))
    bare = next((str(one.path) for one in (*training, *validation) if not one.captions), None)
    if bare:
        raise ValueError(f"{bare}: no caption, so nothing to learn from")
    if vlm.model.config.is_encoder_decoder or vlm.model.config.model_type in ("blip", "git"):
        raise ValueError(f"captioner {vlm.settings.captioner}: its decoder does not read the prompt; not trained here")
    base = fingerprint_language_model(vlm.model, vlm.processor.tokenizer)
    config = add_adapters(vlm.model, settings.lora_rank, settings.lora_alpha, settings.lora_targets, settings.seed)
    data = [[str(one.path), *one.captions] for one in (*training, *validation)]
    files = fingerprint_images([str(one.path) for one in (*training, *validation)])
    shaping = (len(training), data, files, base, vlm.prompt, vlm.settings.image_size, str(vlm.model.dtype))
    task = _VlmLora(vlm, training, validation, settings, log)
    with checkpoints_of(checkpoints, task.name, settings.model_dump(), vlm.model.device.type, *shaping) as folder:
        try:
            now = train(task, folder, log)
        finally:
            vlm.model.eval()
        count = sum(parameter.numel() for parameter in adapter_weights(vlm.model).values())
        if save_to is not None:
            notes = {"captioner": vlm.settings.captioner, "base_fingerprint": base, "prompt": vlm.prompt}
            notes |= {"training": settings.model_dump(), "kept_step": now.kept_step}
            save_adapters(save_to, vlm.model, config, **notes)
    return VlmLoraResult(now.kept_step, settings.steps, count, now.validation, now.curve)


def caption_loss(vlm: VisionLanguageModel, examples: Sequence[tuple[Path, str]]) -> Tensor:
    """Mean negative log-likelihood of a token of B captions, their ends among them; a scalar, float32."""
    inputs, labels = label_captions(vlm, [open_image(path) for path, _ in examples], [text for _, text in examples])
    C = labels.shape[1]
    logits = vlm.model(**inputs, use_cache=False).logits[:, -C - 1 : -1]
    return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=NOT_LEARNT)


def label_captions(
    vlm: VisionLanguageModel, pictures: Sequence, captions: Sequence[str]
) -> tuple[dict[str, Tensor], Tensor]:
    """(the model's inputs, labels (B, C)): the prompts, padded on the left, then the captions, padded on the right."""
    tokenizer, generation = vlm.processor.tokenizer, vlm.model.generation_config
    end = generation.eos_token_id if generation.eos_token_id is not None else tokenizer.eos_token_id
    end = end[0] if isinstance(end, list) else end
    space = " " if vlm.prompt.endswith(":") else ""  # as the next word would follow "Answer:"
    said = [tokenizer(space + text, add_special_tokens=False)["input_ids"] + [end] for text in captions]
    labels = torch.full((len(said), max(map(len, said))), NOT_LEARNT)
    for row, ids in zip(labels, said):
        row[: len(ids)] = torch.tensor(ids)
    inputs = vlm.prepare(list(pictures))
    labels = labels.to(inputs["input_ids"].device)
    learnt = labels != NOT_LEARNT
    more = {
        "input_ids": labels.where(learnt, tokenizer.pad_token_id),
        "attention_mask": learnt,
        "token_type_ids": torch.ones_like(labels),  # PaliGemma: seen from left to right
        "mm_token_type_ids": torch.zeros_like(labels),  # text
    }
    for name in more.keys() & inputs.keys():
        inputs[name] = torch.cat([inputs[name], more[name].to(inputs[name].dtype)], dim=1)
    return inputs, labels


class _VlmLora(Task):
    """The training of a vision-language model's adapters on captioned pictures, measured on others."""

    # No dropout: a model in training mode would use that of its frozen parts, too
    name, clip_norm, remedy, dropout = "train_vlm_lora", 1.0, "dtype: float32", False

    def __init__(
        self,
        vlm: VisionLanguageModel,
        training: Sequence[CaptionedPicture],
        validation: Sequence[CaptionedPicture],
        settings: VlmLoraSettings,
        log: Callable[[str], None],
    ) -> None:
        self.vlm, self.model, self.settings, self.steps, self.log = vlm, vlm.model, settings, settings.steps, log
        self.training = training
        self.validation = [validation[i] for i in evenly_spaced(len(validation), settings.validation_images)]
        self.keeps_last = settings.keep == "last" or not self.validation
        parts = {"lora": list(adapter_weights(vlm.model).values())}
        self.optimizer = build_optimizer(parts, settings, betas=(0.9, 0.95))

    def rates(self, step: int) -> tuple[float, float]:
        return schedule(step, self.steps, self.settings.warmup_steps), 0.9

    def batches(self, steps: range) -> range:
        """The steps themselves: ``losses`` draws what they see."""
        return steps

    def losses(self, step: int, generator: np.random.Generator) -> dict[str, Tensor]:
        size = self.settings.batch_size
        epoch, place = divmod(step, len(self.training) // size)
        order = np.random.default_rng([self.settings.seed, 1, epoch]).permutation(len(self.training))
        drawn = [self.training[i] for i in order[place * size : (place + 1) * size]]
        loss = caption_loss(self.vlm, [(one.path, str(generator.choice(one.captions))) for one in drawn])
        return {"loss": loss, "caption_loss": loss.detach()}

    def curve_row(self, step: int, losses: dict[str, float], norm: float) -> dict[str, float]:
        row = losses | {"learning_rate_share": self.rates(step - 1)[0], "gradient_norm": norm}
        return {key: round(value, 6) for key, value in row.items()}

    def epoch(self, step: int) -> float:
        return step * self.settings.batch_size / len(self.training)

    def is_due(self, step: int) -> bool:
        due = step % self.settings.validation_every == 0 or step == self.steps
        return due and bool(self.validation)

    def validate(self, step: int) -> tuple[float, dict]:
        """By the first caption of each validation picture."""
        size, total = self.settings.batch_size, 0.0
        for start in range(0, len(self.validation), size):
            some = self.validation[start : start + size]
            total += caption_loss(self.vlm, [(one.path, one.captions[0]) for one in some]).item() * len(some)
        loss = total / len(self.validation)
        self.log(f"step {step}: validation caption loss {loss:.4f}")
        return -loss, {"step": step, "epoch": round(self.epoch(step), 4), "caption_loss": loss}
