"""Training of the captioner: captions from images, and images from captions.

Loss = cross-entropy of captions behind [visual tokens][prompt]
     + retrieval_weight x InfoNCE, both ways, between text-only "caption [RET]" and images
     + ret_token_weight x cross-entropy of emitting [RET] behind a text-only caption.
The text branch sees no image (FROMAGe, Koh et al. 2023). Every image that has a caption's text is its positive. Because
features are cached, images beyond the batch's serve as negatives at the price of one small product.

What a step sees derives from (seed, step): a run continued from a checkpoint ends with the weights of an unbroken one.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from rsvlm.files import cache_folder, fingerprint_values
from rsvlm.kernels import contrastive_loss
from rsvlm.models.capret import CapRet
from rsvlm.models.captioner import save_capret
from rsvlm.models.devices import log_line
from rsvlm.models.features import Features
from rsvlm.training.captioning_batches import Batch, CaptioningSettings, Example, TrainingBatches, validation_batches
from rsvlm.training.checkpoints import (
    flatten_optimizer,
    load_last_checkpoint,
    remove_checkpoints,
    save_checkpoint,
    unflatten_optimizer,
)

LOSSES = ("loss", "caption_loss", "retrieval_loss", "ret_token_loss")
LAST_RATE = 0.01  # share of the highest learning rate at the end of the cosine


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
    if settings.batch_size > len(training):
        raise ValueError(
            f"batch_size: {settings.batch_size} is more than the {len(training)} training images; "
            f"take {len(training)} or less"
        )
    folder = (checkpoints or cache_folder() / "checkpoints" / "finetune_lora") / fingerprint_values(
        asdict(settings),
        asdict(captioner.settings),
        captioner.config,
        captioner.device.type,
        features.meta,
        [asdict(example) for example in (*training, *validation)],
    )[:16]
    devices = [captioner.device] if captioner.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            result = _Training(captioner, features, training, validation, settings, folder, log).run()
    finally:
        captioner.eval()
    if save_to is not None:
        save_capret(captioner, save_to, **(notes or {}), training=asdict(settings), kept_step=result.kept_step)
    remove_checkpoints(folder)
    return result


def schedule(step: int, steps: int, warmup_steps: int) -> float:
    """Share of the highest learning rate at a step: linear up, then a cosine down to a hundredth."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, steps - 1 - warmup_steps)
    return LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class _Training:
    """One training: its optimiser, its batches, and the loop over them."""

    def __init__(self, captioner, features, training, validation, settings, folder, log) -> None:
        self.captioner, self.features, self.settings, self.folder, self.log = captioner, features, settings, folder, log
        self.batches = TrainingBatches(captioner, features, training, settings)
        at_most = settings.validation_images or len(validation)
        spread = np.linspace(0, len(validation) - 1, min(at_most, len(validation))).round().astype(int)
        self.validation = validation_batches(captioner, features, [validation[i] for i in spread], settings)
        self.groups = {kind: group for kind, group in captioner.parameter_groups().items() if group}
        self.trained = {name: p for name, p in captioner.named_parameters() if p.requires_grad}
        rates = {"projection": settings.projection_lr, "retrieval": settings.retrieval_lr, "lora": settings.lora_lr}
        self.optimizer = torch.optim.AdamW(
            [{"params": group, "lr": rates[kind], "highest": rates[kind]} for kind, group in self.groups.items()],
            betas=(0.9, 0.95),
            weight_decay=settings.weight_decay,
        )

    def run(self) -> CaptioningResult:
        settings = self.settings
        state = self._restore() or {
            "step": 0,
            "kept_step": 0,
            "lowest": None,
            "validation": [],
            "curve": [],
            "kept": {},
        }
        self.captioner.train()
        bar = tqdm(
            total=settings.steps,
            initial=state["step"],
            unit="step",
            desc="finetune_lora",
            file=sys.stderr,
            mininterval=2,
        )
        for step in range(state["step"], settings.steps):
            generator = np.random.default_rng([settings.seed, 2, step])
            torch.manual_seed(int(generator.integers(2**62)))  # dropout
            share = schedule(step, settings.steps, settings.warmup_steps)
            for group in self.optimizer.param_groups:
                group["lr"] = group["highest"] * share
            losses = self._losses(self.batches.draw(step, generator))
            self.optimizer.zero_grad(set_to_none=True)
            losses["loss"].backward()
            norm = torch.nn.utils.clip_grad_norm_(list(self.trained.values()), settings.clip_norm).item()
            values = {name: value.item() for name, value in losses.items()}
            if not math.isfinite(values["loss"]) or not math.isfinite(norm):
                bar.close()
                raise self._diverged(step, values, norm, share)
            self.optimizer.step()
            state["step"] = done = step + 1
            numbers = {
                **values,
                "learning_rate_share": share,
                "gradient_norm": norm,
                "logit_scale": self.captioner.scale().item(),
            }
            state["curve"].append(
                {"step": done, "epoch": self._epoch(done)} | {key: round(n, 6) for key, n in numbers.items()}
            )
            bar.update()
            bar.set_postfix(loss=f"{values['loss']:.3f}", caption=f"{values['caption_loss']:.3f}", refresh=False)
            last = done == settings.steps
            if self.validation and (done % settings.validation_every == 0 or last):
                self._validate(state)
            if last and (settings.keep == "last" or not self.validation):
                state["kept_step"], state["kept"] = done, self._weights()
            if done % settings.checkpoint_every == 0 or last:
                self._save(state)
        bar.close()
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(state["kept"][name])
        counts = {kind: sum(p.numel() for p in group) for kind, group in self.groups.items()}
        return CaptioningResult(state["kept_step"], settings.steps, counts, state["validation"], state["curve"])

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        """loss and its parts, scalars."""
        captioner, settings, device = self.captioner, self.settings, self.captioner.device
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

    @torch.no_grad()
    def _validate(self, state: dict) -> None:
        """Measure the validation images; keep the weights if they are the best so far."""
        settings, captioner = self.settings, self.captioner
        captioner.eval()
        sums, n_images = dict.fromkeys(LOSSES, 0.0), sum(images for _, images in self.validation)
        for batch, images in self.validation:
            for name, value in self._losses(batch).items():
                sums[name] += value.item() * images / n_images
        captioner.train()
        row = {"step": state["step"], "epoch": self._epoch(state["step"]), **sums}
        state["validation"].append(row)
        self.log(
            f"step {row['step']}: validation caption loss {row['caption_loss']:.4f}, "
            f"retrieval loss {row['retrieval_loss']:.4f}"
        )
        if settings.keep == "best" and (state["lowest"] is None or row["caption_loss"] < state["lowest"]):
            state["lowest"], state["kept_step"], state["kept"] = row["caption_loss"], row["step"], self._weights()

    def _drop(self, values: Tensor | None) -> Tensor | None:
        """Features with some values set to the training mean, while training."""
        share = self.settings.feature_dropout
        if values is None or not share or not self.captioner.training:
            return values
        mean = self.captioner.pooled_mean if values.dim() == 2 else self.captioner.grid_mean
        return torch.where(torch.rand(values.shape) < share, mean.cpu(), values)

    def _epoch(self, step: int) -> float:
        return round(step * self.settings.batch_size / len(self.batches.examples), 4)

    def _weights(self) -> dict[str, Tensor]:
        return {name: parameter.detach().cpu().clone() for name, parameter in self.trained.items()}

    def _save(self, state: dict) -> None:
        moments, rest = flatten_optimizer(self.optimizer)
        tensors = {f"now.{name}": p for name, p in self.trained.items()} | {
            f"kept.{n}": t for n, t in state["kept"].items()
        }
        save_checkpoint(
            self.folder,
            state["step"],
            tensors | moments,
            {
                "optimizer": rest,
                **{key: value for key, value in state.items() if key != "kept"},
            },
        )

    def _restore(self) -> dict | None:
        checkpoint = load_last_checkpoint(self.folder, self.log)
        if checkpoint is None:
            return None
        self.log(f"continuing behind step {checkpoint.step} from {checkpoint.folder.name}")
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(checkpoint.tensors[f"now.{name}"])
        unflatten_optimizer(self.optimizer, checkpoint.tensors, checkpoint.state["optimizer"])
        kept = {name.removeprefix("kept."): t for name, t in checkpoint.tensors.items() if name.startswith("kept.")}
        return {key: value for key, value in checkpoint.state.items() if key != "optimizer"} | {"kept": kept}

    def _diverged(self, step: int, values: dict, norm: float, share: float) -> FloatingPointError:
        settings = self.settings
        rates = ", ".join(
            f"{name} {getattr(settings, name) * share:.3g}" for name in ("projection_lr", "retrieval_lr", "lora_lr")
        )
        kept = sorted(path for path in self.folder.glob("step_*") if path.is_dir())
        last = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
        parts = ", ".join(f"{name} {value}" for name, value in values.items())
        return FloatingPointError(
            f"finetune_lora stopped at step {step + 1}: {parts}, gradient norm {norm}; learning rates now: "
            f"{rates}; {last}. Lower the learning rates, or use dtype: float32"
        )
