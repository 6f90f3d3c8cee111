"""What stands at the bounds of its range runs: settings with their numbers at the ends, on tiny models, two steps each.

A learning rate at its bound may make a loss infinite; then training stops with a sentence that names it, and that is all.
"""

import math
from contextlib import suppress

import numpy as np
import pandas as pd
import pytest
import torch
from captioner_case import make_captioner, make_features, make_table
from language_case import CodeTower, make_world
from PIL import Image
from test_instructions import caption_case

from rsvlm.data.caption_languages import captions_by_language
from rsvlm.data.instructions import make_tasks
from rsvlm.models.features import encode_images
from rsvlm.models.inference import propose_captions
from rsvlm.models.neighbours import training_pools
from rsvlm.models.zoo import load_encoder
from rsvlm.scoring.bootstrap import bootstrap_corpus, mean_of, mean_statistics
from rsvlm.settings import (
    AdaptSettings,
    CapRetShape,
    CaptioningSettings,
    Encoding,
    Generation,
    LanguageSettings,
    Prompting,
    RewardSettings,
    Settings,
    TaskSettings,
    bounds,
)
from rsvlm.study.settings import RESAMPLES
from rsvlm.training.caption_batches import examples_of
from rsvlm.training.captioning import train_captioner
from rsvlm.training.contrastive import adapt_encoder
from rsvlm.training.languages import embed_captions, train_recipes

torch.set_num_threads(1)
CORNERS = (
    "low",
    "high",
    "even",
    "odd",
)  # all numbers at their lower or upper end, or one at the one and the next at the other


class Enough(Exception):
    """Two steps were made."""


def at_bounds(kind: type[Settings], corner: str, **fixed: object) -> Settings:
    """Settings with their numbers at the ends of their ranges, but for ``fixed``."""
    values = {}
    for place, (name, field) in enumerate(kind.model_fields.items()):
        within = bounds(kind, name)
        if within is None:
            continue
        upper = corner == "high" or corner in ("even", "odd") and place % 2 == (corner == "even")
        end, open_end = (within.high, within.below) if upper else (within.low, within.above)
        if "int" in str(field.annotation):
            values[name] = int(end)
        else:
            values[name] = math.nextafter(end, within.low + within.high - end) if open_end else float(end)
    return kind(**values | fixed)


@pytest.fixture(autouse=True)
def two_steps(tmp_path, monkeypatch):
    """Training ends after two steps, however many were asked for; caches lie below tmp_path."""
    monkeypatch.setenv("RSVLM_CACHE", str(tmp_path / "cache"))
    step, made = torch.optim.AdamW.step, []

    def counted(self, *arguments, **options):
        if len(made) == 2:
            raise Enough
        made.append(1)
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", counted)


@pytest.fixture
def pictures(tmp_path) -> pd.DataFrame:
    rows = []
    for number in range(6):
        path = tmp_path / f"{number}.png"
        Image.fromarray(np.full((40, 40, 3), 40 * number, np.uint8)).save(path)
        row = {"image_id": f"s/{number}", "source": "s", "split": "val" if number > 3 else "train", "path": str(path)}
        rows.append(row | {"captions": [f"A field {number}."], "label": None})
    return pd.DataFrame(rows)


@pytest.mark.parametrize("corner", CORNERS)
def test_adapting_an_encoder(tiny_models, pictures, corner):
    settings = at_bounds(AdaptSettings, corner, batch_size=2, freeze_blocks=1, crop_size=32, precision="fp32")
    with suppress(Enough, FloatingPointError):
        adapt_encoder(load_encoder(str(tiny_models.clip)), pictures, settings, log=lambda line: None)


@pytest.mark.parametrize("corner", CORNERS)
def test_encoding(tiny_models, pictures, tmp_path, corner):
    settings = at_bounds(Encoding, corner, precision="fp32", views=8)
    encode_images(
        load_encoder(str(tiny_models.clip)), pictures, tmp_path / "f", **dict(settings), log=lambda line: None
    )


@pytest.mark.parametrize("reward", [False, True])
@pytest.mark.parametrize("corner", CORNERS)
def test_training_a_captioner(tmp_path, corner, reward):
    features = make_features()
    table = make_table(features)
    shape = at_bounds(CapRetShape, corner, lora_targets=["q_proj"])
    captioner = make_captioner(features, **dict(shape))
    prompting = at_bounds(Prompting, corner)
    pools = training_pools(features, table, features.image_ids, k=prompting.neighbours, temperature=prompting.neighbour_temperature)  # fmt: skip
    near = pools.top(prompting.neighbour_captions)
    settings = at_bounds(
        CaptioningSettings, corner, batch_size=4, instruction_share=0.0, **({"steps": 1} if reward else {})
    )
    more = at_bounds(RewardSettings, corner, reward_batch_size=2, reward_samples=2, reward_steps=2) if reward else None
    with suppress(Enough, FloatingPointError):
        examples = examples_of(table, "train", near), examples_of(table, "val", near)
        train_captioner(captioner, features, *examples, settings, more, checkpoints=tmp_path, log=lambda line: None)


@pytest.mark.parametrize("corner", CORNERS)
def test_making_captions(corner):
    features = make_features()
    table = make_table(features)
    pools = training_pools(features, table, features.image_ids[-2:], k=3, temperature=0.05)
    few = {"max_new_tokens": 4, "samples": 3} if corner != "low" else {}
    captioner = make_captioner(features).eval()
    captioner.config["prompting"] = {"neighbour_captions": 1}
    settings = at_bounds(Generation, corner, **few)
    found = propose_captions(captioner, features, features.image_ids[-2:], pools, settings)
    assert all(found.candidates)


@pytest.mark.parametrize("corner", CORNERS)
def test_adding_languages(corner):
    table, translated, features = make_world(24)
    by_language = captions_by_language(table, translated, ["pt"])
    vectors = embed_captions(CodeTower(), by_language)
    settings = at_bounds(LanguageSettings, corner, batch_size=4)
    with suppress(Enough, FloatingPointError):
        train_recipes(["distilled"], by_language, features, vectors, settings, log=lambda line: None)


@pytest.mark.parametrize("corner", CORNERS)
def test_making_instructions(corner):
    assert make_tasks(caption_case(5), at_bounds(TaskSettings, corner))


@pytest.mark.parametrize("resamples", [RESAMPLES.low, RESAMPLES.high])
@pytest.mark.parametrize("images", [1, 5])
def test_intervals(resamples, images):
    found = bootstrap_corpus(
        mean_statistics(np.arange(images, dtype=float)), mean_of, seed=2**32 - 1, resamples=resamples
    )
    assert found["low"] <= found["value"] <= found["high"] or resamples == 1
