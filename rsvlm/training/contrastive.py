"""Contrastive adaptation of a dual encoder to a study's captions (the paper's CLIP-Cap-4).

Each step takes a batch of images, augmented, with random captions of theirs; every caption that belongs to an image,
equal texts included, is a positive of it. Each member of a joined encoder has a batch and a loss of its own. Data order
derives from (seed, epoch) and the member, captions, augmentation and dropout from (seed, step). Between epochs the encoder is measured on validation images, by retrieval.

On several processes (``rsvlm.training.processes``) each takes a part of the batch, and the loss is that of the whole batch:
every image is told from the captions of all. Without dropout the curve is one process's within rounding.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from rsvlm.data.table import fingerprint_rows
from rsvlm.files import cache_folder, passing_folder, read_json, write_json
from rsvlm.kernels import contrastive_loss, hits, two_way_ranks
from rsvlm.models.encoders import DualEncoder
from rsvlm.models.encoding import encode_texts, prefetch
from rsvlm.models.feature_shards import fingerprint_images
from rsvlm.models.loading import autocast, choose_precision
from rsvlm.models.zoo import load_encoder
from rsvlm.progress import log_line
from rsvlm.settings import AdaptSettings, Augmentation
from rsvlm.training.loop import Task, build_optimizer, check_batch, checkpoints_of, in_chunks, train
from rsvlm.training.pixels import Pixels, augment, open_pixels
from rsvlm.training.processes import AFTER, BEFORE, RESULT, WHAT, Team, off_device, run_on_processes, starting_command

WARMUP_SHARE = 0.1  # of the steps, in which the learning rates rise
MAX_LOGIT_SCALE = 100.0  # CLIP's
CURVE_ROWS = 500
CURVE_COLUMNS = ["step", "epoch", "loss", "logit_scale", "image_learning_rate", "gradient_norm"]
TABLE = "table.parquet"
SPARE = 8 / 7  # images are kept this much larger than the input, so that a crop loses no detail (256 px for 224)
DEPTHS = (1, 5, 10)
PROMPT = "an aerial image of {}."


@torch.no_grad()
def choose_activation(
    encoder: DualEncoder, table: pd.DataFrame, *, precision: str = "auto", log: Callable[[str], None] = log_line
) -> dict[str, float] | None:
    """Validation mean recall with each activation, and the encoder with the better; None where it is known.

    open_clip's checkpoints do not say whether they want GELU or QuickGELU, and with the wrong one they load all the same.
    """
    if encoder.activation_known:
        return None
    validation = table[table["split"] == "val"]
    _check_captions(validation, "val")
    precision = choose_precision(precision, encoder.device)
    pixels, found = open_pixels(validation["path"].tolist(), encoder.preprocessing, log=log), {}
    for name, quick in (("gelu", False), ("quick_gelu", True)):
        encoder.use_quick_gelu(quick)
        found[name] = measure_recall(encoder.eval(), pixels, validation["captions"].tolist(), precision=precision)[
            "mean_recall"
        ]
        log(f"{encoder.name} with {name}: validation mean recall {100 * found[name]:.2f} %")
    encoder.use_quick_gelu(found["quick_gelu"] > found["gelu"])
    log(f"{encoder.name}: {'QuickGELU' if encoder.quick_gelu else 'GELU'} is kept; set quick_gelu to choose otherwise")
    return found


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
    settings: AdaptSettings,
    *,
    save_to: Path | None = None,
    checkpoints: Path | None = None,
    cache_gigabytes: float = 4.0,
    log: Callable[[str], None] = log_line,
) -> AdaptResult:
    """Train ``encoder`` in place on the table's training images; it ends as its best epoch by validation recall.

    Killed at any step and called again with the same arguments, it continues from the last checkpoint, also on another
    number of processes: where ``RSVLM_PROCESSES`` asks for several, they train in this one's place.

    Args:
        table: the caption table; its splits "train" and "val" are used, "test" never.
        save_to: folder the adapted encoder is saved to, before the checkpoints are removed.
        checkpoints: folder for checkpoints; each training has its own inside. Default: below ``cache_folder()``.
        cache_gigabytes: room for decoded images on disk.

    Raises:
        ValueError: an empty split, an image without caption, a batch larger than the training set.
        FloatingPointError: the loss or a gradient is NaN or infinite; names step, learning rates and last checkpoint.
        RuntimeError: one of several processes died.
    """
    settings = AdaptSettings.of(settings)
    training, validation = (table[table["split"] == split].reset_index(drop=True) for split in ("train", "val"))
    _check_captions(validation, "val")
    if settings.epochs:
        _check_captions(training, "train")
        check_batch(settings.batch_size, len(training))
        if command := starting_command(encoder.device):
            parent = checkpoints or cache_folder() / "checkpoints" / _Adaptation.name
            result = _adapt_elsewhere(command, encoder, table, settings, parent, cache_gigabytes, log)
            if save_to is not None:
                encoder.save(save_to)
            return AdaptResult(**result)
    else:
        training = training.iloc[:0]
    task = _Adaptation(encoder, training, validation, settings, cache_gigabytes, log)
    shaping = (
        settings.model_dump(),
        task.precision,
        str(encoder.device.type),
        encoder.fingerprint(),
        *(fingerprint_rows(map(list, zip(own["image_id"], own["captions"]))) for own in (training, validation)),
        fingerprint_images(training["path"].tolist()),
        fingerprint_images(validation["path"].tolist()),
    )
    parameters = sum(p.numel() for p in task.trained.values()) if settings.epochs else 0
    with checkpoints_of(checkpoints, task.name, *shaping) as folder:
        try:
            now = train(task, folder, log)
        finally:
            encoder.requires_grad_(True).eval()
        if save_to is not None and task.team.rank == 0:
            encoder.save(save_to)
    best_epoch = now.kept_step // task.steps_per_epoch
    rows = {row["epoch"]: {key: value for key, value in row.items() if key != "epoch"} for row in now.validation}
    return AdaptResult(
        before=rows[0],
        after=rows[best_epoch],
        best_epoch=best_epoch,
        epochs=settings.epochs,
        steps=task.steps,
        trainable_parameters=parameters,
        precision=task.precision,
        validation=now.validation,
        curve=now.curve,
    )


def _adapt_elsewhere(
    command: Sequence[str],
    encoder: DualEncoder,
    table: pd.DataFrame,
    settings: AdaptSettings,
    parent: Path,
    cache_gigabytes: float,
    log: Callable[[str], None],
) -> dict:
    """The fields of the result of ``encoder``, trained by the processes that ``command`` starts."""
    with passing_folder(parent.absolute() / "asked") as folder:
        encoder.save(folder / BEFORE)
        table[["image_id", "split", "path", "captions"]].to_parquet(folder / TABLE, index=False)
        asked = {"settings": settings.model_dump(), "checkpoints": str(folder.parent), "name": encoder.name}
        write_json(folder / WHAT, asked | {"cache_gigabytes": cache_gigabytes})
        with off_device(encoder) as device:
            run_on_processes(command, "adapt_encoder", folder, device, log)
            encoder.load_state_dict(load_encoder(folder / AFTER).state_dict())
        return read_json(folder / RESULT)


def adapt_here(folder: Path, device: torch.device, log: Callable[[str], None]) -> None:
    """One process's part of ``adapt_encoder``, as ``_adapt_elsewhere`` left it to be done in ``folder``."""
    asked = read_json(folder / WHAT)
    encoder = load_encoder(folder / BEFORE, device)
    encoder.name = asked["name"]
    result = adapt_encoder(
        encoder,
        pd.read_parquet(folder / TABLE, dtype_backend="pyarrow"),  # captions stay in Arrow's memory
        AdaptSettings(**asked["settings"]),
        save_to=folder / AFTER,
        checkpoints=Path(asked["checkpoints"]),
        cache_gigabytes=asked["cache_gigabytes"],
        log=log,
    )
    if Team.here().rank == 0:
        write_json(folder / RESULT, asdict(result))


class _Adaptation(Task):
    """The training of an encoder on images with captions, measured between epochs by retrieval on others."""

    name, clip_norm, remedy = "adapt_encoder", 5.0, "precision: fp32"

    def __init__(
        self,
        encoder: DualEncoder,
        training: pd.DataFrame,
        validation: pd.DataFrame,
        settings: AdaptSettings,
        cache_gigabytes: float,
        log: Callable[[str], None],
    ) -> None:
        self.model, self.training, self.settings, self.log = encoder, training, settings, log
        self.cache_gigabytes, self.average_decay, self.team = cache_gigabytes, settings.average_decay, Team.here()
        self.precision = choose_precision(settings.precision, encoder.device)
        self.crop_size = _choose_crop_size(encoder, settings)
        self.dropout = settings.train == "all"
        self.steps_per_epoch = max(1, len(training) // settings.batch_size)
        self.steps = settings.epochs * self.steps_per_epoch
        self.curve_every = max(1, self.steps // CURVE_ROWS)
        self.captions = training["captions"].array
        self.val_captions = validation["captions"].tolist()
        _freeze(encoder, settings)
        self.optimizer = build_optimizer(encoder.parameter_groups(), settings)
        log(
            f"{encoder.name}: {encoder.image_size} px, {self.crop_size} px in training, {self.precision} on "
            f"{encoder.device}, {torch.get_num_threads()} CPU threads; {len(training)} training and {len(validation)} "
            "validation images"
        )
        self.val_pixels = self._open(validation, encoder.image_size)

    @cached_property
    def pixels(self) -> Pixels:
        """The training images, a little larger than the encoder's input."""
        return self._open(self.training, math.ceil(self.model.image_size * SPARE))

    def rates(self, step: int) -> tuple[float, float]:
        return one_cycle(step, self.steps, WARMUP_SHARE)

    def batches(self, steps: range) -> Iterator[list[tuple[np.ndarray, Tensor]]]:
        """For each member (rows, the pixels of this process's part of them), read ahead."""
        if steps and self.team.size > 1:
            _ = self.pixels  # opened here: the thread that reads ahead must not wait for other processes
        return prefetch(self._read, steps)

    def losses(self, batch: list[tuple[np.ndarray, Tensor]], generator: np.random.Generator) -> dict[str, Tensor]:
        losses = [self._loss_of(member, *own, generator) for member, own in zip(self.model.members, batch, strict=True)]
        return {"loss": sum(losses) / len(losses)}

    def _loss_of(
        self, encoder: DualEncoder, rows: np.ndarray, pixels: Tensor, generator: np.random.Generator
    ) -> Tensor:
        """The loss of a member on its own images, with captions and augmentation drawn for it."""
        settings, n, own = self.settings, self.settings.captions_per_image, self.team.part(len(rows))
        known = [sorted(set(self.captions[row])) for row in rows]
        texts = []
        for captions in known:
            texts += [captions[i] for i in generator.choice(len(captions), n, replace=len(captions) < n)]
        positives = torch.tensor([[text in captions for text in texts] for captions in known[own]])  # (b, M)
        images = augment(pixels.to(encoder.device), self.crop_size, generator, settings, part=own, of=len(known))
        with autocast(self.precision, encoder.device):
            image_embeddings = in_chunks(partial(_embed, encoder), images, settings.chunk)
            text_embeddings = in_chunks(encoder.text_features, texts[own.start * n : own.stop * n], settings.chunk)
        return contrastive_loss(
            F.normalize(image_embeddings.float(), dim=-1),
            F.normalize(text_embeddings.float(), dim=-1),
            encoder.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE),
            positives.to(encoder.device),
            group=self.team.group,
        )

    def curve_row(self, step: int, losses: dict[str, float], norm: float) -> dict[str, float]:
        scale = self.model.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE).item()  # as the loss has it
        rate = self.optimizer.param_groups[0]["lr"]
        return losses | {"logit_scale": scale, "image_learning_rate": rate, "gradient_norm": norm}

    def epoch(self, step: int) -> float:
        return step / self.steps_per_epoch

    def is_due(self, step: int) -> bool:
        return step % self.steps_per_epoch == 0

    def validate(self, step: int) -> tuple[float, dict]:
        recall = measure_recall(self.model, self.val_pixels, self.val_captions, precision=self.precision)
        epoch = step // self.steps_per_epoch
        self.log(f"epoch {epoch}: validation mean recall {100 * recall['mean_recall']:.2f} %")
        return recall["mean_recall"], {"epoch": epoch, **recall}

    def _open(self, images: pd.DataFrame, size: int) -> Pixels:
        how = self.model.preprocessing.at(size)
        with self.team.first():
            return open_pixels(images["path"].tolist(), how, cache_gigabytes=self.cache_gigabytes, log=self.log)

    def _read(self, step: int) -> list[tuple[np.ndarray, Tensor]]:
        epoch, place = divmod(step, self.steps_per_epoch)
        size, batch = self.settings.batch_size, []
        for member in range(len(self.model.members)):
            own = [self.settings.seed, 1, epoch, *([member] if member else [])]
            rows = np.random.default_rng(own).permutation(len(self.training))[place * size : (place + 1) * size]
            batch.append((rows, self.pixels.read(rows[self.team.part(len(rows))])))
        return batch


def _embed(encoder: DualEncoder, images: Tensor) -> Tensor:
    pooled, _ = encoder.image_features(encoder.normalize(images))
    return encoder.project_images(pooled)


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


def _choose_crop_size(encoder: DualEncoder, augmentation: Augmentation) -> int:
    """The side of the training input. ValueError when the encoder takes no other size than its own."""
    size = augmentation.crop_size or encoder.image_size
    if size != encoder.image_size and not encoder.any_image_size:
        raise ValueError(
            f"crop_size: {encoder.name} takes {encoder.image_size} pixels only (its position embeddings "
            f"are fixed), not {size}; leave crop_size empty"
        )
    return size


def _freeze(encoder: DualEncoder, settings: AdaptSettings) -> None:
    """Leave in training what is to be trained."""
    encoder.requires_grad_(settings.train == "all")
    for parameter in encoder.parameter_groups()["projection"]:
        parameter.requires_grad_(True)
    if settings.train == "all":
        encoder.freeze_image_blocks(settings.freeze_blocks)


@torch.no_grad()
def embed_pixels(encoder: DualEncoder, pixels: Pixels, *, batch_size: int = 64, precision: str = "fp32") -> Tensor:
    """Normalised image embeddings (N, D), float32 on the CPU, of the upright images."""
    rows = [range(start, min(start + batch_size, len(pixels))) for start in range(0, len(pixels), batch_size)]
    done = []
    for batch in prefetch(pixels.read, rows):
        with autocast(precision, encoder.device):
            pooled, _ = encoder.image_features(encoder.normalize(batch))
            done.append(F.normalize(encoder.project_images(pooled).float(), dim=-1).cpu())
    return torch.cat(done)


def embed_texts(encoder: DualEncoder, texts: Sequence[str], *, precision: str = "fp32") -> Tensor:
    """Normalised text embeddings (M, D), float32 on the CPU; equal texts have equal rows."""
    distinct = sorted(set(texts))
    row_of = {text: row for row, text in enumerate(distinct)}
    rows = torch.from_numpy(encode_texts(encoder, distinct, capitalise=False, precision=precision))
    return rows[[row_of[text] for text in texts]]


def measure_recall(
    encoder: DualEncoder, pixels: Pixels, captions: Sequence[Sequence[str]], *, precision: str = "fp32"
) -> dict[str, float]:
    """Recall at 1, 5 and 10 both ways and their mean, as fractions, by image id.

    An image's right answers are its own captions, a caption's right answer is its image, as in RemoteCLIP's protocol;
    equal scores count with the chance that a random order of them brings a right one to the top K.
    """
    texts = [text for own in captions for text in own]
    lengths = [len(own) for own in captions]
    images = embed_pixels(encoder, pixels, precision=precision)
    text_rows = embed_texts(encoder, texts, precision=precision)
    positives = np.cumsum([0, *lengths]), np.arange(len(texts))
    to_text, to_image = two_way_ranks(images, text_rows, positives, normalize=False)
    recalls = {f"image_to_text_recall_at_{k}": float(hits(to_text, k).mean()) for k in DEPTHS}
    recalls |= {f"text_to_image_recall_at_{k}": float(hits(to_image, k).mean()) for k in DEPTHS}
    mean = sum(recalls.values()) / len(recalls)
    return {"mean_recall": mean, **recalls, "images": len(captions), "captions": len(texts)}


def name_by_prompts(encoder: DualEncoder, rows: pd.DataFrame, *, precision: str = "auto") -> pd.DataFrame | None:
    """What the nearest of the prompts ``an aerial image of LABEL.`` calls each image: image_id, label, named, margin.

    Images without a label take no part; None with fewer than two labels. ``margin`` is the cosine of the right prompt
    less the highest of the others: above 0 the image is named right.
    """
    labelled = rows[[isinstance(label, str) and label != "" for label in rows["label"]]]
    labels = sorted(set(labelled["label"]))
    if len(labels) < 2:
        return None
    precision = choose_precision(precision, encoder.device)
    pixels = open_pixels(labelled["path"].tolist(), encoder.preprocessing)
    images = embed_pixels(encoder, pixels, precision=precision)
    prompts = [PROMPT.format(label.replace("_", " ")) for label in labels]
    cosines = images @ embed_texts(encoder, prompts, precision=precision).T  # (N, L)
    truth = torch.tensor([labels.index(label) for label in labelled["label"]])[:, None]
    others = cosines.scatter(1, truth, -torch.inf).amax(1)
    named = [labels[place] for place in cosines.argmax(1).tolist()]
    margin = (cosines.gather(1, truth)[:, 0] - others).tolist()
    found = labelled[["image_id", "label"]].reset_index(drop=True)
    return found.assign(named=named, margin=[round(value, 4) for value in margin])


def measure_zero_shot(named: pd.DataFrame | None) -> dict | None:
    """Accuracy of what ``name_by_prompts`` gave. ``chance`` is one over the number of labels."""
    if named is None:
        return None
    n_labels = named["label"].nunique()
    return {
        "accuracy": float((named["named"] == named["label"]).mean()),
        "images": len(named),
        "labels": n_labels,
        "chance": 1 / n_labels,
    }


def _check_captions(rows: pd.DataFrame, split: str) -> None:
    """Raise ValueError when a split is empty or one of its images has no caption."""
    if len(rows) == 0:
        raise ValueError(
            f"the split {split!r} holds no image: adapt_encoder trains on 'train' and chooses its best "
            "epoch on 'val'; see the table of splits in aggregate_data's report"
        )
    empty = [image_id for image_id, own in zip(rows["image_id"], rows["captions"]) if len(own) == 0]
    if empty:
        raise ValueError(f"{len(empty)} images of the split {split!r} have no caption, the first is {empty[0]}")
