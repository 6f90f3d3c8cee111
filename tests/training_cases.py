"""What tests of training on several processes share, and one of such processes: ``python tests/training_cases.py RANK WORLD FOLDER``."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch.distributed as dist
from captioner_case import KINDS, make_captioner, make_features, make_table
from gloo_processes import join
from PIL import Image
from safetensors.torch import save_file

from rsvlm.files import fingerprint_values, write_json
from rsvlm.models.generation import Hypothesis
from rsvlm.models.instructions import Asked
from rsvlm.models.zoo import load_encoder
from rsvlm.settings import AdaptSettings, CaptioningSettings, RewardSettings
from rsvlm.training import contrastive, processes
from rsvlm.training.caption_batches import examples_of
from rsvlm.training.captioning import _SelfCritical, train_captioner
from rsvlm.training.contrastive import adapt_encoder

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (30, 40, 200), "white": (230, 230, 230)}
RATES = {"image_lr": 1e-3, "text_lr": 1e-3, "projection_lr": 1e-3}
# Of 7 images two processes take 3 and 4; of 8 three take 2, 3 and 3
SETTINGS = {
    size: AdaptSettings(
        epochs=3, batch_size=batch, captions_per_image=2, freeze_blocks=0, checkpoint_every=2, precision="fp32", **RATES
    )
    for size, batch in ((1, 8), (2, 7), (3, 8))
}


CAPTIONING = CaptioningSettings(
    **{"steps": 4, "batch_size": 7, "captions_per_image": 0, "retrieval_negatives": 4, "warmup_steps": 1},
    **{"instruction_share": 0.4, "validation_every": 2, "checkpoint_every": 3},
)
SHARDED = CaptioningSettings(**dict(CAPTIONING) | {"batch_size": 8, "chunk": 3, "shard": True})
REWARD = RewardSettings(reward_steps=2, reward_batch_size=5, reward_samples=3, reward_every=1)


def draws_of(seed: int) -> list[Hypothesis]:
    """Captions of three made-up tokens."""
    tokens = np.random.default_rng(seed).integers(5, 300, (REWARD.reward_samples, 3)).tolist()
    return [Hypothesis(tuple(own), 0.0) for own in tokens]


def caption(features, settings=CAPTIONING, reward=REWARD, **more):
    """(captioner, what its training gave, lines of the log), on captions, instructions and rewards.

    What it draws and earns is made up from the draws' seeds: so soon it has nothing to say.
    """
    captioner, lines = make_captioner(features), []
    near = {image_id: [KINDS[0]] for image_id in features.image_ids}
    table = make_table(features)
    examples = [examples_of(table, split, near) for split in ("train", "val")]
    asked = [[Asked(one.image_id, "what", "What is it?", one.captions[0]) for one in part] for part in examples]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_SelfCritical, "_draw", lambda self, batch, seeds: [draws_of(seed) for seed in seeds])
        patch.setattr(
            _SelfCritical, "_rewards", lambda self, example, draws: np.array([sum(d.tokens) % 7 for d in draws]) / 7
        )
        result = train_captioner(
            captioner, features, *examples, settings, reward, asked=tuple(asked), log=lines.append, **more
        )
    return captioner, result, lines


def write_features(features, folder: Path) -> None:
    """The folder that ``load_features`` reads."""
    folder.mkdir()
    for name in ("pooled", "grid", "image_embeddings", "text_embeddings"):
        np.save(folder / f"{name}.npy", getattr(features, name))
    V, G, P = features.grid.shape[1:]
    meta = {"image_ids": features.image_ids, "views": V, "grid": round(G**0.5), "dims": {"pooled": P, "embedding": P}}
    write_json(
        folder / "meta.json", meta | features.meta | {"image_list_fingerprint": fingerprint_values(features.image_ids)}
    )
    write_json(folder / "texts.json", features.texts)


def write_pictures(folder: Path, n: int = 24) -> pd.DataFrame:
    """The caption table of so many small pictures in four colours, the last third of them for validation."""
    generator, rows = np.random.default_rng(0), []
    for i in range(n):
        name = list(COLOURS)[i % 4]
        noise = generator.integers(-25, 25, (40, 40, 3))
        Image.fromarray(np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8)).save(folder / f"{i}.png")
        captions = [f"A {name} field.", f"There is a {name} field number {i}."]
        split = "val" if i >= 2 * n // 3 else "train"
        rows.append(
            {"image_id": f"toy/{i}.png", "split": split, "path": str(folder / f"{i}.png"), "captions": captions}
        )
    return pd.DataFrame(rows)


def adapt(encoder_folder, table, settings, **more):
    """(encoder, what its adaptation gave, lines of the log)."""
    encoder, lines = load_encoder(str(encoder_folder)), []
    result = adapt_encoder(encoder, table, settings, log=lines.append, **more)
    return encoder, result, lines


def broken_off(encoder_folder, table, settings, at: int, **more) -> None:
    """An adaptation that stops in its ``at``-th loss."""
    original, calls = contrastive.contrastive_loss, []

    def dying(*arguments, **options):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    contrastive.contrastive_loss = dying
    try:
        adapt(encoder_folder, table, settings, **more)
    except KeyboardInterrupt:
        pass
    finally:
        contrastive.contrastive_loss = original


def same_within_rounding(weights: dict, curve: list[dict], encoder, result) -> None:
    """A training had the loss of another at each step, and moved the weights to the same place."""
    losses, expected = ([row["loss"] for row in rows] for rows in (curve, result.curve))
    assert np.allclose(losses, expected, rtol=1e-5), (losses, expected)
    start = load_encoder("random:clip").state_dict()
    assert weights.keys() == encoder.state_dict().keys() == start.keys()
    for name, value in encoder.state_dict().items():
        if not name.endswith("k_proj.bias"):  # attention does not depend on it: AdamW moves it by rounding alone
            moved = (value.float() - start[name].float()).norm()
            assert (weights[name].float() - value.float()).norm() <= 1e-4 * moved, name


def leave(folder: Path, name: str, encoder, result, lines) -> None:
    """Save what a training gave, of an encoder or of a captioner, as files of that name."""
    save_file(
        {key: value.contiguous().clone() for key, value in encoder.state_dict().items()}, folder / f"{name}.safetensors"
    )
    told = asdict(result) | {"lines": lines}
    (folder / f"{name}.json").write_text(json.dumps(told))


def leave_sharded(folder: Path, rank: int) -> None:
    """Save what two processes give that hold a half of the frozen layers each, and what is refused there."""
    captioner, result, _ = caption(make_features(), SHARDED, RewardSettings(), checkpoints=folder / "own")
    share = [
        p.to_local().numel() / p.numel()
        for p in captioner.language_model.base_model.layers.parameters()
        if hasattr(p, "to_local")
    ]
    told = {"curve": result.curve, "share": share, "refused": []}
    for settings, reward in (
        (CaptioningSettings(**dict(SHARDED) | {"batch_size": 7}), RewardSettings()),
        (SHARDED, REWARD),
    ):
        try:
            caption(make_features(), settings, reward, checkpoints=folder / "own")
        except ValueError as error:
            told["refused"].append(str(error))
    write_json(folder / f"sharded_{rank}.json", told)
    save_file(
        {name: value.clone() for name, value in captioner.trained_state().items()},
        folder / f"sharded_{rank}.safetensors",
    )


def run(rank: int, world: int, folder: Path) -> None:
    """Trainings by the processes of the lowest ranks, 2 and 3 of them; then one that 3 begin and 2 go on with."""
    table, encoder = read_table(folder), folder / "clip"
    teams = {size: dist.new_group(list(range(size))) for size in (2, 3)}

    def of(size):
        processes.Team.here = classmethod(lambda cls: cls(rank, size, teams[size]))

    for size in teams:
        of(size)
        if rank < size:
            leave(folder, f"{size}_{rank}", *adapt(encoder, table, SETTINGS[size], checkpoints=folder / "own"))
            leave(folder, f"captioner_{size}_{rank}", *caption(make_features(), checkpoints=folder / "own"))
    of(2)
    if rank < 2:
        leave_sharded(folder, rank)
    of(3)
    broken_off(encoder, table, SETTINGS[3], at=4, checkpoints=folder / "resumed")
    dist.barrier()
    of(2)
    if rank < 2:
        leave(folder, f"resumed_{rank}", *adapt(encoder, table, SETTINGS[3], checkpoints=folder / "resumed"))


def read_table(folder: Path) -> pd.DataFrame:
    """The table that the test left in the folder."""
    return pd.read_json(folder / "table.json")


if __name__ == "__main__":
    join(run)
