"""Contrastive adaptation of a dual encoder to a study's captions (the paper's CLIP-Cap-4).

Each step takes a batch of images with random captions of theirs; every caption that belongs to an image, equal texts
included, is a positive of it. Data order derives from (seed, epoch), captions, augmentation and dropout from
(seed, step): so a run continued from a checkpoint ends with the weights of an unbroken one.
"""

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from rsvlm.files import cache_folder, fingerprint_values
from rsvlm.kernels import contrastive_loss
from rsvlm.models.devices import autocast, choose_precision, log_line
from rsvlm.models.encoders import DualEncoder
from rsvlm.models.pixels import Pixels, fingerprint_images, open_pixels, prefetch
from rsvlm.training.augmentation import Augmentation, augment, stored_size
from rsvlm.training.checkpoints import (
    flatten_optimizer,
    load_last_checkpoint,
    remove_checkpoints,
    save_checkpoint,
    unflatten_optimizer,
)
from rsvlm.training.validation import check_captions, measure_recall

TRAINABLE = ("all", "projections")
MAX_LOGIT_SCALE = 100.0  # CLIP's
CURVE_ROWS = 500
CURVE_COLUMNS = ["step", "epoch", "loss", "logit_scale", "image_learning_rate", "gradient_norm"]


@dataclass(frozen=True)
class AdaptSettings:
    """How an encoder is adapted.

    Attributes:
        epochs: passes over the training images; 0 measures the encoder as it is.
        batch_size: images a step; an epoch's last, smaller batch is left out.
        image_lr, text_lr, projection_lr: highest learning rates of the three parts, reached after the warm-up.
        weight_decay: AdamW's.
        train: "all", or "projections" (the towers stay as they are).
        captions_per_image: captions drawn for each image of a batch.
        warmup_share: share of the steps in which the learning rates rise.
        clip_norm: largest norm of all gradients together.
        precision: "auto" (bf16 where the hardware has it), "fp32" or "bf16".
        freeze_blocks: stem and first blocks of the image tower left as they are; 0 trains all.
        average_decay: of the running mean of the weights, which is what is measured and kept (Polyak and Juditsky 1992);
            0 takes the weights themselves.
        eval_every: epochs between two measurements on validation images; the last epoch is always measured.
        checkpoint_every: steps between two checkpoints.
        augmentation: what the images go through.
    """

    epochs: int = 12
    batch_size: int = 60
    image_lr: float = 4.0e-4
    text_lr: float = 6.0e-5
    projection_lr: float = 1.0e-3
    weight_decay: float = 0.01
    train: str = "all"
    captions_per_image: int = 1
    warmup_share: float = 0.1
    clip_norm: float = 5.0
    precision: str = "auto"
    freeze_blocks: int = 0
    average_decay: float = 0.0
    eval_every: int = 1
    checkpoint_every: int = 50
    seed: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self):
        if self.train not in TRAINABLE:
            raise ValueError(f"train: {self.train!r} is none of {', '.join(TRAINABLE)}")
        for name, least in (
            ("epochs", 0),
            ("batch_size", 2),
            ("captions_per_image", 1),
            ("freeze_blocks", 0),
            ("eval_every", 1),
            ("checkpoint_every", 1),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: at least {least} is needed, got {getattr(self, name)}")
        for name in ("image_lr", "text_lr", "projection_lr", "clip_norm"):
            if not (0 < getattr(self, name) < math.inf):
                raise ValueError(f"{name}: a finite number above 0 is needed, got {getattr(self, name)}")
        for name in ("warmup_share", "average_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: a share from 0 to below 1 is needed, got {getattr(self, name)}")


@dataclass(frozen=True)
class AdaptResult:
    """What an adaptation gave; recalls are fractions on validation images."""

    before: dict[str, float]
    after: dict[str, float]  # of the kept epoch
    best_epoch: int  # 0: no epoch was better than the encoder it started from
    epochs: int
    steps: int
    trainable_parameters: int
    precision: str
    validation: list[dict]  # one row a measurement, epoch 0 first
    curve: list[dict]  # loss and learning rate over the steps

    def curve_table(self) -> pd.DataFrame:
        """The curve with the columns CURVE_COLUMNS; without rows when there were no steps."""
        return pd.DataFrame(self.curve, columns=CURVE_COLUMNS)

    def validation_table(self) -> pd.DataFrame:
        """One row a measurement: epoch, mean recall and its six parts as fractions."""
        return pd.DataFrame(self.validation).drop(columns=["images", "captions"])

    def metrics(self) -> dict:
        """All but the two tables, as JSON values."""
        return {key: value for key, value in asdict(self).items() if key not in ("curve", "validation")}


def adapt_encoder(
    encoder: DualEncoder,
    table: pd.DataFrame,
    settings: AdaptSettings = AdaptSettings(),
    *,
    save_to: Path | None = None,
    checkpoints: Path | None = None,
    cache_gigabytes: float = 4.0,
    log: Callable[[str], None] = log_line,
) -> AdaptResult:
    """Train ``encoder`` in place on the table's training images; it ends as its best epoch by validation recall.

    Killed at any step and called again with the same arguments, it continues from the last checkpoint.

    Args:
        table: the caption table; its splits "train" and "val" are used, "test" never.
        save_to: folder the adapted encoder is saved to, before the checkpoints are removed.
        checkpoints: folder for checkpoints; each training has its own inside. Default: below ``cache_folder()``.
        cache_gigabytes: room for decoded images on disk.

    Raises:
        ValueError: an empty split, an image without caption, a batch larger than the training set.
        FloatingPointError: the loss or a gradient is NaN or infinite; names step, learning rate and last checkpoint.
    """
    rows = {split: table[table["split"] == split].reset_index(drop=True) for split in ("train", "val")}
    for split in ("train", "val") if settings.epochs else ("val",):
        check_captions(rows[split], split)
    train, val = rows["train"], rows["val"]
    precision = choose_precision(settings.precision, encoder.device)
    crop_size = _choose_crop_size(encoder, settings.augmentation)
    log(
        f"{encoder.name}: {encoder.image_size} px, {crop_size} px in training, {precision} on {encoder.device}, "
        f"{torch.get_num_threads()} CPU threads; {len(train)} training and {len(val)} validation images"
    )
    val_pixels = open_pixels(val["path"].tolist(), encoder.image_size, cache_gigabytes=cache_gigabytes, log=log)

    def measure(epoch: int) -> dict:
        was_training = encoder.training
        encoder.eval()
        recall = measure_recall(encoder, val_pixels, val["captions"].tolist(), precision=precision)
        encoder.train(was_training)
        log(f"epoch {epoch}: validation mean recall {100 * recall['mean_recall']:.2f} %")
        return {"epoch": epoch, **recall}

    if settings.epochs == 0:
        before = measure(0)
        recall = {key: value for key, value in before.items() if key != "epoch"}
        if save_to is not None:
            encoder.save(save_to)
        return AdaptResult(recall, recall, 0, 0, 0, 0, precision, [before], [])
    steps_per_epoch = len(train) // settings.batch_size
    if steps_per_epoch == 0:
        raise ValueError(
            f"batch_size: {settings.batch_size} is more than the {len(train)} training images; "
            f"take {len(train)} or less"
        )
    folder = (checkpoints or cache_folder() / "checkpoints" / "adapt_encoder") / fingerprint_values(
        asdict(settings),
        precision,
        str(encoder.device.type),
        encoder.fingerprint(),
        train[["image_id", "captions"]].values.tolist(),
        val[["image_id", "captions"]].values.tolist(),
        fingerprint_images(train["path"].tolist()),
        fingerprint_images(val["path"].tolist()),
    )[:16]
    pixels = open_pixels(
        train["path"].tolist(), stored_size(encoder.image_size), cache_gigabytes=cache_gigabytes, log=log
    )
    devices = [encoder.device] if encoder.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            result = _train(encoder, pixels, train["captions"].tolist(), settings, precision, folder, measure, log)
    finally:
        encoder.requires_grad_(True).eval()
    if save_to is not None:
        encoder.save(save_to)
    remove_checkpoints(folder)
    return result


def _train(
    encoder: DualEncoder,
    pixels: Pixels,
    captions: list[list[str]],
    settings: AdaptSettings,
    precision: str,
    folder: Path,
    measure: Callable[[int], dict],
    log: Callable[[str], None],
) -> AdaptResult:
    """The training loop: from the last checkpoint under ``folder`` to the last step."""
    trained, optimizer = _build_optimizer(encoder, settings)
    steps_per_epoch = len(pixels) // settings.batch_size
    total = settings.epochs * steps_per_epoch
    curve_every = max(1, total // CURVE_ROWS)
    state = _restore(folder, trained, optimizer, log)
    if state is None:
        first = measure(0)
        state = {
            "step": 0,
            "validation": [first],
            "best_epoch": 0,
            "curve": [],
            "losses": [],
            "best": _copy(trained),
            "average": {name: p.detach().clone() for name, p in trained.items() if settings.average_decay},
        }
    crop_size = _choose_crop_size(encoder, settings.augmentation)
    choices = [sorted(set(own)) for own in captions]
    own_texts = [set(own) for own in captions]

    def read_batch(step: int) -> tuple[np.ndarray, Tensor]:
        epoch, position = divmod(step, steps_per_epoch)
        order = np.random.default_rng([settings.seed, 1, epoch]).permutation(len(pixels))
        rows = order[position * settings.batch_size : (position + 1) * settings.batch_size]
        return rows, pixels.read(rows)

    encoder.train(settings.train == "all")
    bar = tqdm(
        total=total * settings.batch_size,
        initial=state["step"] * settings.batch_size,
        unit="img",
        desc="adapt_encoder",
        file=sys.stderr,
        mininterval=2,
    )
    batches = prefetch(read_batch, range(state["step"], total))
    for step, (rows, batch) in enumerate(batches, start=state["step"]):
        generator = np.random.default_rng([settings.seed, 2, step])
        torch.manual_seed(int(generator.integers(2**62)))  # dropout
        texts, positives = _draw_texts(rows, choices, own_texts, settings.captions_per_image, generator)
        learning_rate = _set_rates(optimizer, settings, step, total)
        images = augment(batch.to(encoder.device), crop_size, generator, settings.augmentation)
        loss = _compute_loss(encoder, images, texts, positives, precision)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(list(trained.values()), settings.clip_norm)
        value = loss.item()
        if not math.isfinite(value) or not math.isfinite(norm.item()):
            bar.close()
            raise _diverged(step, value, norm.item(), settings, learning_rate, folder)
        optimizer.step()
        done = step + 1
        _average(state["average"], trained, settings.average_decay, done)
        state["step"] = done
        state["losses"].append(value)
        bar.update(settings.batch_size)
        bar.set_postfix(loss=f"{value:.3f}", refresh=False)
        if done % curve_every == 0 or done == total:
            state["curve"].append(
                {
                    "step": done,
                    "epoch": round(done / steps_per_epoch, 4),
                    "loss": float(np.mean(state["losses"])),
                    "logit_scale": encoder.logit_scale.exp().item(),
                    "image_learning_rate": learning_rate,
                    "gradient_norm": norm.item(),
                }
            )
            state["losses"] = []
        epoch, inside = divmod(done, steps_per_epoch)
        if inside == 0 and (epoch % settings.eval_every == 0 or epoch == settings.epochs):
            with _in_place(state["average"], trained):
                measured = measure(epoch)
                state["validation"].append(measured)
                best_so_far = next(row for row in state["validation"] if row["epoch"] == state["best_epoch"])
                if measured["mean_recall"] > best_so_far["mean_recall"]:
                    state["best_epoch"], state["best"] = epoch, _copy(trained)
        if done % settings.checkpoint_every == 0 or done == total:
            _save(folder, trained, optimizer, state)
    bar.close()
    _put(state["best"], trained)
    after = next(row for row in state["validation"] if row["epoch"] == state["best_epoch"])
    before, after = ({k: v for k, v in row.items() if k != "epoch"} for row in (state["validation"][0], after))
    parameters = sum(parameter.numel() for parameter in trained.values())
    return AdaptResult(
        before,
        after,
        state["best_epoch"],
        settings.epochs,
        total,
        parameters,
        precision,
        state["validation"],
        state["curve"],
    )


def one_cycle(step: int, total: int, warmup_share: float) -> tuple[float, float]:
    """(share of the highest learning rate, AdamW's first beta) at a step: torch's OneCycleLR, as a formula.

    The rate rises from 1/25 to 1 by a cosine and falls to 1/250,000; the momentum goes the other way, .95-.85-.95
    (Smith and Topin 2017).
    """
    peak = max(warmup_share * total - 1, 0.0)
    if step < peak:
        low, share = 1 / 25, 0.5 * (1 - math.cos(math.pi * step / peak))
    else:
        low, share = 1 / 250_000, 0.5 * (1 + math.cos(math.pi * (step - peak) / max(total - 1 - peak, 1.0)))
    return low + (1 - low) * share, 0.95 - 0.1 * share


def _copy(trained: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: parameter.detach().cpu().clone() for name, parameter in trained.items()}


@torch.no_grad()
def _put(values: dict[str, Tensor], trained: dict[str, Tensor]) -> None:
    for name, parameter in trained.items():
        parameter.copy_(values[name])


@torch.no_grad()
def _average(average: dict[str, Tensor], trained: dict[str, Tensor], decay: float, done: int) -> None:
    """Move the running mean, where there is one, towards the weights after ``done`` steps; faster at the beginning."""
    share = 1 - min(decay, (1 + done) / (10 + done))
    for name, value in average.items():
        value.lerp_(trained[name], share)


@contextmanager
def _in_place(average: dict[str, Tensor], trained: dict[str, Tensor]) -> Iterator[None]:
    """The encoder with the running mean as its weights, where there is one; its own come back."""
    if not average:
        yield
        return
    own = _copy(trained)
    _put(average, trained)
    try:
        yield
    finally:
        _put(own, trained)


def _choose_crop_size(encoder: DualEncoder, augmentation: Augmentation) -> int:
    """The side of the training input. ValueError when the encoder takes no other size than its own."""
    size = augmentation.crop_size or encoder.image_size
    if size != encoder.image_size and not encoder.any_image_size:
        raise ValueError(
            f"crop_size: {encoder.name} takes {encoder.image_size} pixels only (its position embeddings "
            f"are fixed), not {size}; leave crop_size empty"
        )
    return size


def _build_optimizer(encoder: DualEncoder, settings: AdaptSettings) -> tuple[dict[str, Tensor], torch.optim.AdamW]:
    """(trained parameters by name, AdamW over them with a group for each part); all else is frozen."""
    groups = encoder.parameter_groups()
    encoder.requires_grad_(False)
    for part in groups if settings.train == "all" else ("projection",):
        for parameter in groups[part]:
            parameter.requires_grad_(True)
    if settings.train == "all":
        encoder.freeze_image_blocks(settings.freeze_blocks)
    rates = {"image": settings.image_lr, "text": settings.text_lr, "projection": settings.projection_lr}
    chosen = {part: [p for p in parameters if p.requires_grad] for part, parameters in groups.items()}
    optimizer = torch.optim.AdamW(
        [
            {"params": parameters, "lr": rates[part], "highest": rates[part]}
            for part, parameters in chosen.items()
            if parameters
        ],
        weight_decay=settings.weight_decay,
    )
    return {name: p for name, p in encoder.named_parameters() if p.requires_grad}, optimizer


def _set_rates(optimizer: torch.optim.Optimizer, settings: AdaptSettings, step: int, total: int) -> float:
    """The image tower's learning rate (the first group's), after all groups' were set for ``step``."""
    share, beta = one_cycle(step, total, settings.warmup_share)
    for group in optimizer.param_groups:
        group["lr"] = group["highest"] * share
        group["betas"] = (beta, group["betas"][1])
    return optimizer.param_groups[0]["lr"]


def _draw_texts(
    rows: np.ndarray,
    choices: list[list[str]],
    own_texts: list[set[str]],
    captions_per_image: int,
    generator: np.random.Generator,
) -> tuple[list[str], Tensor]:
    """(texts drawn for the images of a batch, which of them are each image's own (B, M) bool)."""
    texts = []
    for row in rows:
        own = choices[row]
        drawn = generator.choice(len(own), captions_per_image, replace=len(own) < captions_per_image)
        texts += [own[i] for i in drawn]
    return texts, torch.tensor([[text in own_texts[row] for text in texts] for row in rows])


def _compute_loss(encoder: DualEncoder, images: Tensor, texts: list[str], positives: Tensor, precision: str) -> Tensor:
    with autocast(precision, encoder.device):
        pooled, _ = encoder.image_features(encoder.normalize(images))
        image_embeddings, text_embeddings = encoder.project_images(pooled), encoder.text_features(texts)
    return contrastive_loss(
        F.normalize(image_embeddings.float(), dim=-1),
        F.normalize(text_embeddings.float(), dim=-1),
        encoder.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE),
        positives.to(encoder.device),
    )


def _save(folder: Path, trained: dict[str, Tensor], optimizer: torch.optim.Optimizer, state: dict) -> None:
    moments, optimizer_state = flatten_optimizer(optimizer)
    tensors = {f"model.{name}": parameter for name, parameter in trained.items()} | moments
    for kind in ("best", "average"):
        tensors |= {f"{kind}.{name}": tensor for name, tensor in state[kind].items()}
    rest = {key: value for key, value in state.items() if key not in ("best", "average")}
    save_checkpoint(folder, state["step"], tensors, {**rest, "optimizer": optimizer_state})


def _restore(
    folder: Path, trained: dict[str, Tensor], optimizer: torch.optim.Optimizer, log: Callable[[str], None]
) -> dict | None:
    """The state of the last checkpoint, its weights and moments put in place; None without one."""
    found = load_last_checkpoint(folder, log)
    if found is None:
        return None
    kept = {
        kind: {
            name.removeprefix(f"{kind}."): tensor
            for name, tensor in found.tensors.items()
            if name.startswith(f"{kind}.")
        }
        for kind in ("model", "best", "average")
    }
    _put(kept["model"], trained)
    average = {name: tensor.to(trained[name].device) for name, tensor in kept["average"].items()}
    state = dict(found.state) | {"best": kept["best"], "average": average}
    unflatten_optimizer(optimizer, found.tensors, state.pop("optimizer"))
    log(f"continuing from step {found.step}: {found.folder}")
    return state


def _diverged(
    step: int, loss: float, norm: float, settings: AdaptSettings, learning_rate: float, folder: Path
) -> FloatingPointError:
    kept = sorted(path for path in folder.glob("step_*") if path.is_dir())
    last = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
    return FloatingPointError(
        f"adapt_encoder stopped at step {step + 1}: loss {loss}, gradient norm {norm}, image learning rate "
        f"{learning_rate:.3g} (highest {json.dumps([settings.image_lr, settings.text_lr, settings.projection_lr])}); "
        f"{last}. Lower image_lr, text_lr and projection_lr, or use precision: fp32"
    )
