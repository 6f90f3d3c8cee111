"""Training of the captioner: captions from images, and images from captions.

Loss = cross-entropy of captions behind [visual tokens][prompt]
     + retrieval_weight x InfoNCE, both ways, between text-only "caption [RET]" and images
     + ret_token_weight x cross-entropy of emitting [RET] behind a text-only caption.
The text branch sees no image (FROMAGe, Koh et al. 2023). Every image that has a caption's text is its positive. Because
features are cached, images beyond the batch's serve as negatives at the price of one small product.

Some images of a step may get instructions with their answers instead of prompt and caption, several behind one image;
their loss, a mean over answers, comes on top with ``instruction_weight``.

Where wanted, self-critical training follows (Rennie et al. 2017): captions that the captioner draws itself take the
place of the references, and each counts by how much higher its CIDEr is than the mean of the other draws of its image
(Kool et al. 2019). What is rewarded is then what is reported, and what is generated is then what is trained on. A draw
that does not end within LONGEST_DRAW tokens earns 0; it and an empty one are left out of the loss, but they count in the
mean that the other draws of the image are held against, and lower it.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from rsvlm.data.table import evenly_spaced, fingerprint_rows
from rsvlm.files import cache_folder, passing_folder, read_json, write_json
from rsvlm.kernels import contrastive_loss
from rsvlm.models.capret import CapRet
from rsvlm.models.captioner import WEIGHTS, load_capret, save_capret
from rsvlm.models.features import Features, load_features
from rsvlm.models.generation import Hypothesis, Prompted, beam_captions, sample_tokens
from rsvlm.models.instructions import Asked
from rsvlm.models.loading import fingerprint_tensors
from rsvlm.models.neighbours import CiderSpace
from rsvlm.progress import log_line
from rsvlm.settings import CaptioningSettings, RewardSettings
from rsvlm.training.caption_batches import (
    Batch,
    Example,
    TrainingBatches,
    instruction_batches,
    near_of,
    validation_batches,
)
from rsvlm.training.captioning_result import INSTRUCTION_LOSS, LOSSES, CaptioningResult, RewardResult
from rsvlm.training.loop import Task, build_optimizer, check_batch, checkpoints_of, schedule, train
from rsvlm.training.processes import AFTER, BEFORE, RESULT, WHAT, Team, off_device, run_on_processes, starting_command

ALONE = Team()
HIGHEST_CIDER = 10.0  # rewards are CIDEr as a share of it
LONGEST_DRAW = 40  # tokens of a drawn caption; one that has not ended there earns nothing
BLOCK = 256  # images whose features are read at a time: all views of all of them would be gigabytes


def train_captioner(
    captioner: CapRet,
    features: Features,
    training: Sequence[Example],
    validation: Sequence[Example],
    settings: CaptioningSettings,
    reward: RewardSettings | None = None,
    *,
    asked: tuple[Sequence[Asked], Sequence[Asked]] = ((), ()),
    save_to: Path | None = None,
    notes: dict | None = None,
    checkpoints: Path | None = None,
    log: Callable[[str], None] = log_line,
) -> CaptioningResult:
    """Train ``captioner`` in place; it ends with the weights of the kept step, in evaluation mode.

    Killed at any step and called again with the same arguments, it continues from the last checkpoint, also on another
    number of processes: where ``RSVLM_PROCESSES`` asks for several, they train in this one's place.

    Args:
        reward: of self-critical training, which starts from the kept step; none where it has no steps.
        asked: instructions about training and about validation images, for ``instruction_share`` of the images of a
            step; self-critical training has none.
        save_to: folder the captioner is saved to, before the checkpoints are removed.
        notes: JSON values that go into its config.json, such as how prompts are made.
        checkpoints: folder for checkpoints; each training has its own inside. Default: below ``cache_folder()``.

    Raises:
        ValueError: a batch larger than the training set, an image without features, an instruction about another image.
        FloatingPointError: the loss or a gradient is NaN or infinite; names step, learning rates and last checkpoint.
        rsvlm.files.InUse: another process is at this training.
        RuntimeError: one of several processes died.
    """
    settings, reward = CaptioningSettings.of(settings), RewardSettings.of(reward or RewardSettings())
    check_batch(settings.batch_size, len(training))
    asked = asked if settings.trains_instructions else ((), ())
    how = {**(notes or {}), "training": settings.model_dump() | reward.model_dump()}
    if command := starting_command(captioner.device):
        parent, examples = checkpoints or cache_folder() / "checkpoints" / _Captioning.name, (training, validation)
        told = _train_elsewhere(command, captioner, features, examples, (settings, reward), asked, parent, log)
        result = CaptioningResult(**told | {"reward": told["reward"] and RewardResult(**told["reward"])})
        if save_to is not None:
            save_capret(captioner, save_to, **how, kept_step=result.kept_step)
        return result
    data = fingerprint_rows(asdict(one) for one in chain(training, validation, *asked))
    start = _fingerprint_start(captioner, features, [one.image_id for one in chain(training, validation)])
    shape = (captioner.settings.model_dump(), captioner.config, captioner.device.type, features.meta, data, start)
    task = _Captioning(captioner, features, training, validation, settings, log, asked)
    if settings.shard and task.team.size > 1:
        _check_even(settings, reward, task.team)
        captioner.spread(task.team.group)
    counts = {group["name"]: sum(p.numel() for p in group["params"]) for group in task.optimizer.param_groups}
    with ExitStack() as stack:
        folder = stack.enter_context(checkpoints_of(checkpoints, task.name, settings.model_dump(), *shape))
        try:
            now = train(task, folder, log)
            result = CaptioningResult(now.kept_step, settings.steps, counts, now.validation, now.curve)
            if reward.reward_steps:
                check_batch(reward.reward_batch_size, len(training))
                critical = _SelfCritical(captioner, features, training, validation, settings, reward, log)
                shape = (settings.model_dump(), reward.model_dump(), *shape)
                now = train(critical, stack.enter_context(checkpoints_of(checkpoints, critical.name, *shape)), log)
                rewarded = RewardResult(now.kept_step, reward.reward_steps, now.validation, now.curve)
                result = replace(result, reward=rewarded)
        finally:
            captioner.eval()
        if save_to is not None and task.team.rank == 0:
            save_capret(captioner, save_to, **how, kept_step=result.kept_step)
    return result


def _fingerprint_start(captioner: CapRet, features: Features, image_ids: Sequence[str]) -> str:
    """SHA-256, as hex, of the captioner's weights and statistics and of these images' pooled features in all views.

    Not of their grid cells, up to gigabytes: other cells come with other pooled features, of other images or another encoder.
    """
    digest = hashlib.sha256()
    fingerprint_tensors(captioner.trained_state(), digest)
    rows = features.rows(image_ids)
    for first in range(0, len(rows), BLOCK):
        digest.update(np.ascontiguousarray(features.pooled[rows[first : first + BLOCK]]))
    return digest.hexdigest()


def _check_even(settings: CaptioningSettings, reward: RewardSettings, team: Team) -> None:
    """Raise ValueError where processes would run the decoder unequally often, and wait for each other for ever."""
    if settings.batch_size % team.size:
        raise ValueError(
            f"batch_size: {settings.batch_size} images are no equal parts for {team.size} processes, which shard needs; "
            f"take a multiple of {team.size}, or shard: false"
        )
    if reward.reward_steps:
        raise ValueError("reward_steps: captions that end early would part the processes; take 0, or shard: false")


def _train_elsewhere(
    command: Sequence[str],
    captioner: CapRet,
    features: Features,
    examples: tuple[Sequence[Example], Sequence[Example]],
    settings: tuple[CaptioningSettings, RewardSettings],
    asked: tuple[Sequence[Asked], Sequence[Asked]],
    parent: Path,
    log: Callable[[str], None],
) -> dict:
    """The fields of the result of ``captioner``, trained by the processes that ``command`` starts.

    Raises:
        ValueError: the features lie in no folder that the processes could read.
    """
    file = getattr(features.pooled, "filename", None)
    if file is None:
        raise ValueError("features: on several processes they have to lie in a folder that load_features reads")
    with passing_folder(parent.absolute() / "asked") as folder:
        save_capret(captioner, folder / BEFORE)
        what = {"features": str(Path(file).absolute().parent), "checkpoints": str(folder.parent)}
        what |= {"settings": [own.model_dump() for own in settings]}
        for name, parts in (("examples", examples), ("asked", asked)):
            what[name] = [[asdict(one) for one in part] for part in parts]
        write_json(folder / WHAT, what)
        with off_device(captioner) as device:
            run_on_processes(command, "finetune_lora", folder, device, log)
            captioner.load_trained_state(load_file(folder / AFTER / WEIGHTS))
        return read_json(folder / RESULT)


def train_here(folder: Path, device: torch.device, log: Callable[[str], None]) -> None:
    """One process's part of ``train_captioner``, as ``_train_elsewhere`` left it to be done in ``folder``."""
    asked = read_json(folder / WHAT)
    training, validation = (
        [Example(one["image_id"], tuple(one["captions"]), tuple(one["neighbours"])) for one in part]
        for part in asked["examples"]
    )
    result = train_captioner(
        load_capret(folder / BEFORE, str(device), merge=False),
        load_features(Path(asked["features"])),
        training,
        validation,
        CaptioningSettings(**asked["settings"][0]),
        RewardSettings(**asked["settings"][1]),
        asked=tuple([Asked(**one) for one in part] for part in asked["asked"]),
        save_to=folder / AFTER,
        checkpoints=Path(asked["checkpoints"]),
        log=log,
    )
    if Team.here().rank == 0:
        write_json(folder / RESULT, asdict(result))


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
        asked: tuple[Sequence[Asked], Sequence[Asked]] = ((), ()),
    ) -> None:
        self.model, self.settings, self.steps, self.log = captioner, settings, settings.steps, log
        self.team = Team.here()
        self.drawn = TrainingBatches(captioner, features, training, settings, asked[0])
        spread = evenly_spaced(len(validation), settings.validation_images)
        self.validation = validation_batches(captioner, features, [validation[i] for i in spread], settings)
        own = sorted(asked[1] if asked[0] else (), key=lambda one: (one.kind, one.image_id, one.instruction))
        own = [own[i] for i in evenly_spaced(len(own), settings.validation_images)]  # of every kind alike
        self.asked_validation = instruction_batches(captioner, features, own, settings, near_of(validation, settings))
        self.keeps_last = settings.keep == "last" or not self.validation
        self.optimizer = build_optimizer(captioner.parameter_groups(), settings, betas=(0.9, 0.95))

    def rates(self, step: int) -> tuple[float, float]:
        return schedule(step, self.steps, self.settings.warmup_steps), 0.9

    def batches(self, steps: range) -> range:
        """The steps themselves: ``losses`` draws what they see."""
        return steps

    def losses(self, step: int, generator: np.random.Generator) -> dict[str, Tensor]:
        return self._losses(self.drawn.draw(step, generator).part(self.team), self.team)

    def keep_bounds(self) -> None:
        self.model.limit_scale()

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
        told = (
            f"step {step}: validation caption loss {sums['caption_loss']:.4f}, "
            f"retrieval loss {sums['retrieval_loss']:.4f}"
        )
        merit = -sums["caption_loss"]
        if self.asked_validation:
            counts = [len(batch.weights) for batch in self.asked_validation]
            losses = [self._losses(batch)[INSTRUCTION_LOSS].item() for batch in self.asked_validation]
            sums[INSTRUCTION_LOSS] = float(np.average(losses, weights=counts))
            sums["loss"] += self.settings.instruction_weight * sums[INSTRUCTION_LOSS]
            merit -= self.settings.instruction_weight * sums[INSTRUCTION_LOSS]
            told += f", instruction loss {sums[INSTRUCTION_LOSS]:.4f}"
        self.log(told)
        return merit, {"step": step, "epoch": round(self.epoch(step), 4), **sums}

    def _losses(self, batch: Batch, team: Team = ALONE) -> dict[str, Tensor]:
        """loss and its parts, scalars; their means over a team that has parts of a batch are the batch's."""
        captioner, settings, device = self.model, self.settings, self.model.device
        packed = captioner.pack(batch.rows)
        tokens = batch.visual_tokens(captioner, self._drop)
        hidden = captioner.hidden_states(packed, tokens, chunk=settings.chunk if torch.is_grad_enabled() else 0)
        at = torch.cat([packed.predict_at, packed.before_ret])
        labels = torch.cat([packed.labels, torch.full_like(packed.before_ret, captioner.ret_id)])
        # index_select, not indexing: on CPUs its gradient is summed in a fixed order
        nll = captioner.negative_log_likelihoods(hidden.index_select(0, at), labels)
        n = len(packed.labels)
        weight = batch.weights.to(device).index_select(0, packed.owners)
        losses = self._word_losses(nll[:n], weight, packed.owners, batch.is_answer, team)
        losses["retrieval_loss"] = losses["ret_token_loss"] = torch.zeros((), device=device)
        if batch.positives is not None:
            # the mean over the texts of all: as many as the columns
            losses["ret_token_loss"] = nll[n:].mean() * (len(nll[n:]) * team.size / batch.positives.shape[1])
            losses["retrieval_loss"] = contrastive_loss(
                captioner.embed_images(self._drop(batch.pooled)),
                captioner.embed_ret(hidden.index_select(0, packed.ret_at)),
                captioner.scale(),
                batch.positives.to(device),
                group=team.group,
            )
        total = (
            losses["caption_loss"]
            + settings.retrieval_weight * losses["retrieval_loss"]
            + settings.ret_token_weight * losses["ret_token_loss"]
        )
        if INSTRUCTION_LOSS in losses:
            total = total + settings.instruction_weight * losses[INSTRUCTION_LOSS]
        return {"loss": total, **losses}

    def _word_losses(
        self, nll: Tensor, weight: Tensor, owners: Tensor, is_answer: Tensor | None, team: Team
    ) -> dict[str, Tensor]:
        """The captions' loss and, where there are instructions, the answers'; 0 where a batch has none."""
        if is_answer is None:
            return {"caption_loss": self._caption_loss(nll, weight, team)}
        answers = is_answer.to(nll.device).index_select(0, owners)
        parts = {"caption_loss": ~answers, INSTRUCTION_LOSS: answers}
        nothing = torch.zeros((), device=nll.device)
        return {
            name: self._caption_loss(nll, weight * own, team) if team.total(own.sum()) else nothing
            for name, own in parts.items()
        }

    def _caption_loss(self, nll: Tensor, weight: Tensor, team: Team) -> Tensor:
        return (nll * weight).sum() / (team.total(weight.sum()) / team.size)

    def _drop(self, values: Tensor | None) -> Tensor | None:
        """Features with some values set to the training mean, while training."""
        share = self.settings.feature_dropout
        if values is None or not share or not self.model.training:
            return values
        mean = self.model.pooled_mean if values.dim() == 2 else self.model.grid_mean
        return torch.where(torch.rand(values.shape) < share, mean.cpu(), values)


class _SelfCritical(_Captioning):
    """The training of a captioner on captions that it draws itself, by their CIDEr; measured by greedy captions."""

    name = "self_critical"

    def __init__(
        self,
        captioner: CapRet,
        features: Features,
        training: Sequence[Example],
        validation: Sequence[Example],
        settings: CaptioningSettings,
        reward: RewardSettings,
        log: Callable[[str], None],
    ) -> None:
        # Prompts as at generation: only what is generated is rewarded. The references' captions only serve [RET].
        drawn = {
            "batch_size": reward.reward_batch_size,
            "captions_per_image": 1,
            "validation_every": reward.reward_every,
        }
        asked = {"varied_prompts": 0.0, "neighbour_dropout": 0.0, "warmup_steps": reward.reward_steps // 10}
        rates = dict.fromkeys(("projection_lr", "retrieval_lr", "lora_lr"), reward.reward_lr)
        own = CaptioningSettings(**dict(settings) | drawn | asked | rates | {"steps": reward.reward_steps})
        super().__init__(captioner, features, training, (), own, log)
        spread = evenly_spaced(len(validation), settings.validation_images)
        self.features, self.measured = features, [validation[i] for i in spread]
        self.samples, self.keeps_last = reward.reward_samples, settings.keep == "last" or not self.measured
        self.space = CiderSpace(example.captions for example in training)

    def losses(self, step: int, generator: np.random.Generator) -> dict[str, Tensor]:
        team, B = self.team, self.settings.batch_size
        batch = self.drawn.draw(step, generator).part(team)
        examples = [self.drawn.examples[i] for i in self.drawn.images(step)[team.part(B)]]
        seeds = generator.integers(2**62, size=B)[team.part(B)].tolist()
        rewards, rows, weights = [], [], []
        for example, row, draws in zip(examples, batch.rows, self._draw(batch, seeds), strict=True):
            reward = self._rewards(example, draws)
            rewards.append(reward.mean())
            gains: dict[tuple[int, ...], float] = {}  # a caption drawn several times is computed once
            for draw, gain in zip(draws, (reward - reward.mean()) * len(draws) / (len(draws) - 1)):
                if draw.ended and draw.tokens:
                    gains[draw.tokens] = gains.get(draw.tokens, 0.0) + gain
            gains = {tokens: gain for tokens, gain in gains.items() if abs(gain) > 1e-9}
            rows.append(replace(row, captions=[list(tokens) for tokens in gains]))
            weights += gains.values()
        own = replace(batch, rows=rows, weights=torch.tensor(weights, dtype=torch.float32))
        reward = float(np.mean(rewards)) * (len(rewards) * team.size / B)
        return {**self._losses(own, team), "reward": torch.tensor(reward)}

    def is_due(self, step: int) -> bool:
        return (step % self.settings.validation_every == 0 or step == self.steps) and bool(self.measured)

    def validate(self, step: int) -> tuple[float, dict]:
        ids, near = [one.image_id for one in self.measured], [one.neighbours for one in self.measured]
        asked = Prompted(self.model, self.features, ids, neighbours=near, view="mean")
        said = [own[0] for own in beam_captions(asked, max_new_tokens=LONGEST_DRAW)]
        cider = self.space.mean_cider(said, [one.references(self.settings.captions) for one in self.measured])
        self.log(f"self-critical step {step}: validation CIDEr of greedy captions {cider:.3f}")
        return cider, {"step": step, "epoch": round(self.epoch(step), 4), "cider": round(cider, 6)}

    def _draw(self, batch: Batch, seeds: Sequence[int]) -> list[list[Hypothesis]]:
        self.model.eval()
        with torch.no_grad():
            tokens = batch.visual_tokens(self.model)
            prefixes = [row.prefix for row in batch.rows]
            limits = {"samples": self.samples, "max_new_tokens": LONGEST_DRAW}
            drawn = sample_tokens(self.model, prefixes, tokens, seeds=seeds, **limits)
        self.model.train(self.dropout)
        return drawn

    def _rewards(self, example: Example, draws: Sequence[Hypothesis]) -> np.ndarray:
        """(samples,) each draw's mean CIDEr to the references, 0 to 1."""
        said = [self.model.decode_text(draw.tokens) for draw in draws]
        cider = self.space.similarity(said, example.references(self.settings.captions)).mean(1) / HIGHEST_CIDER
        return np.where([draw.ended for draw in draws], cider, 0.0)

    def _caption_loss(self, nll: Tensor, weight: Tensor, team: Team) -> Tensor:
        return (nll * weight).sum() / (self.settings.batch_size * self.samples / team.size)
