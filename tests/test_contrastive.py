"""Contrastive adaptation: it learns, it continues exactly where it was killed, it stops on nonsense."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from rsvlm.data.images import ImageError
from rsvlm.kernels import Ranks, hits
from rsvlm.models.encoders import Preprocessing
from rsvlm.models.zoo import load_encoder
from rsvlm.settings import AdaptSettings, Augmentation
from rsvlm.training import contrastive, loop
from rsvlm.training.contrastive import (
    adapt_encoder,
    measure_recall,
    measure_zero_shot,
    name_by_prompts,
    one_cycle,
)
from rsvlm.training.pixels import augment, open_pixels
from rsvlm.viewing.training_figures import (
    before_and_after,
    class_change_figure,
    confusion_figure,
    draw_changes,
    training_curves,
)

torch.set_num_threads(1)
COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (30, 40, 200), "white": (230, 230, 230)}
QUICK = AdaptSettings(
    epochs=3,
    batch_size=8,
    image_lr=1e-3,
    text_lr=1e-3,
    projection_lr=1e-3,
    freeze_blocks=0,
    checkpoint_every=2,
    precision="fp32",
)


def replace(settings, **changes):
    """Settings with some values changed."""
    return type(settings)(**dict(settings) | changes)


@pytest.fixture
def table(tmp_path, monkeypatch) -> pd.DataFrame:
    """24 small pictures in four colours, captions that name the colour; caches below tmp_path."""
    monkeypatch.setenv("RSVLM_CACHE", str(tmp_path / "cache"))
    generator = np.random.default_rng(0)
    rows = []
    for i in range(24):
        name = list(COLOURS)[i % 4]
        picture = np.clip(np.array(COLOURS[name]) + generator.integers(-25, 25, (40, 40, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
        rows.append(
            {
                "image_id": f"toy/{i}.png",
                "source": "toy",
                "split": "val" if i >= 16 else "train",
                "path": str(tmp_path / f"{i}.png"),
                "label": name,
                "captions": [f"A {name} field.", f"There is a {name} field number {i}."],
            }
        )
    return pd.DataFrame(rows)


def prepared(size: int) -> Preprocessing:
    return Preprocessing(size, (0, 0, 0), (1, 1, 1))


@pytest.fixture
def encoder(tiny_models):
    return load_encoder(str(tiny_models.clip))


def adapt(encoder, table, settings=QUICK, **more):
    return adapt_encoder(encoder, table, settings, log=lambda line: None, **more)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_learns_and_saves(encoder, table, tmp_path, precision):
    settings = replace(QUICK, epochs=12, batch_size=16, precision=precision)
    result = adapt(encoder, table, settings, save_to=tmp_path / "encoder")
    assert result.precision == precision
    assert result.after["mean_recall"] > result.before["mean_recall"] + 0.1
    assert result.after["mean_recall"] == max(row["mean_recall"] for row in result.validation)
    assert result.curve[-1]["loss"] < 0.8 * result.curve[0]["loss"]
    assert [row["epoch"] for row in result.validation] == list(range(13)) and result.steps == 12
    saved = load_encoder(tmp_path / "encoder")
    assert saved.fingerprint() == encoder.fingerprint()  # the best epoch's weights, not the last one's
    val = table[table["split"] == "val"]
    pixels = open_pixels(val["path"].tolist(), prepared(32), cache_gigabytes=0)
    assert measure_recall(saved, pixels, val["captions"].tolist(), precision=precision) == result.after
    named = name_by_prompts(saved, val, precision=precision)
    right = named["named"] == named["label"]
    assert (right == (named["margin"] > 0)).all() and named["image_id"].tolist() == val["image_id"].tolist()
    accuracy = float(right.mean())
    assert measure_zero_shot(named) == {"accuracy": accuracy, "images": 8, "labels": 4, "chance": 0.25}
    assert name_by_prompts(saved, val.assign(label=None)) is None and measure_zero_shot(None) is None
    assert not list((tmp_path / "checkpoints").glob("**/step_*"))


@pytest.mark.parametrize(("ability", "precision"), [("avx2", "fp32"), ("avx512_bf16", "bf16"), ("amx_bf16", "bf16")])
def test_the_automatic_precision_is_what_the_processor_has(encoder, table, monkeypatch, ability, precision):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {ability: True})
    result = adapt(encoder, table, replace(QUICK, epochs=1, precision="auto"))
    assert result.precision == precision and result.curve[-1]["loss"] > 0


# between two checkpoints, in the last step; in bf16 too
@pytest.mark.parametrize("killed_at, average_decay, precision", [(3, 0.0, "fp32"), (6, 0.8, "fp32"), (3, 0.0, "bf16")])
def test_killed_and_run_again_is_bit_equal(tiny_models, table, monkeypatch, killed_at, average_decay, precision):
    settings = replace(QUICK, average_decay=average_decay, precision=precision)
    whole = load_encoder(str(tiny_models.clip))
    expected = adapt(whole, table, settings)

    broken = load_encoder(str(tiny_models.clip))
    original, calls = contrastive.contrastive_loss, []

    def dying(*arguments, **options):
        calls.append(1)
        if len(calls) == killed_at:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(contrastive, "contrastive_loss", dying)
    with pytest.raises(KeyboardInterrupt):
        adapt(broken, table, settings)
    monkeypatch.setattr(contrastive, "contrastive_loss", original)
    again, lines = load_encoder(str(tiny_models.clip)), []
    result = adapt_encoder(again, table, settings, log=lines.append)
    assert any("continuing from step" in line for line in lines)
    assert again.fingerprint() == whole.fingerprint()
    assert result == expected
    assert [list(row) for row in result.validation] == [list(row) for row in expected.validation]  # columns, in order


def test_the_running_mean_of_the_weights_is_kept(tiny_models, table, monkeypatch):
    """Whatever is measured after training is the mean of the weights over the steps, which this test computes anew."""
    seen, original = [], loop._move_average

    def watching(average, trained, decay, done):
        seen.append({name: p.detach().double().clone() for name, p in trained.items()})
        original(average, trained, decay, done)

    monkeypatch.setattr(loop, "_move_average", watching)
    encoder = load_encoder(str(tiny_models.clip))
    start = {name: p.detach().double().clone() for name, p in encoder.named_parameters()}
    result = adapt(encoder, table, replace(QUICK, average_decay=0.5))
    assert result.best_epoch > 0 and result.steps == len(seen)
    name = next(name for name in seen[0] if "visual_projection" in name)
    mean = start[name]
    for done, weights in enumerate(seen[: 2 * result.best_epoch], start=1):
        decay = min(0.5, (1 + done) / (10 + done))
        mean = decay * mean + (1 - decay) * weights[name]
    assert torch.allclose(dict(encoder.named_parameters())[name].double(), mean, atol=1e-6)


def test_a_changed_setting_starts_afresh(tiny_models, table, monkeypatch):
    original = contrastive.contrastive_loss
    calls = []

    def dying(*arguments, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(contrastive, "contrastive_loss", dying)
    with pytest.raises(KeyboardInterrupt):
        adapt(load_encoder(str(tiny_models.clip)), table)
    lines = []
    adapt_encoder(load_encoder(str(tiny_models.clip)), table, replace(QUICK, image_lr=2e-3), log=lines.append)
    assert not any("continuing" in line for line in lines)


def test_the_curve_tells_the_scale_that_the_loss_had(encoder, table):
    with torch.no_grad():
        encoder.logit_scale.fill_(6.0)
    assert [row["logit_scale"] for row in adapt(encoder, table).curve] == [100.0] * 6


def test_streaming_gives_the_same_weights(tiny_models, table):
    cached, streamed = load_encoder(str(tiny_models.clip)), load_encoder(str(tiny_models.clip))
    adapt(cached, table)
    adapt(streamed, table, cache_gigabytes=0)
    assert cached.fingerprint() == streamed.fingerprint()


def test_the_test_split_is_never_used(tiny_models, table):
    more = table[table["split"] == "val"].assign(split="test", path="no/such/file.png")
    adapt(load_encoder(str(tiny_models.clip)), pd.concat([table, more]), replace(QUICK, epochs=1))


def test_projections_only(encoder, table):
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    adapt(encoder, table, replace(QUICK, train="projections", epochs=4))
    changed = {name for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])}
    assert changed <= {"model.visual_projection.weight", "model.text_projection.weight", "model.logit_scale"}
    assert all(parameter.requires_grad for parameter in encoder.parameters())


def test_frozen_blocks_stay(encoder, table):
    before = encoder.model.vision_model.encoder.layers[0].mlp.fc1.weight.clone()
    last = encoder.model.vision_model.encoder.layers[1].mlp.fc1.weight.clone()
    result = adapt(encoder, table, replace(QUICK, freeze_blocks=1, epochs=6))
    assert torch.equal(before, encoder.model.vision_model.encoder.layers[0].mlp.fc1.weight)
    assert result.best_epoch == 0 or not torch.equal(last, encoder.model.vision_model.encoder.layers[1].mlp.fc1.weight)


def test_no_epochs_measures_only(encoder, table):
    before = encoder.fingerprint()
    result = adapt(encoder, table, replace(QUICK, epochs=0))
    assert encoder.fingerprint() == before and result.before == result.after and result.steps == 0


def test_batch_larger_than_the_data(encoder, table):
    with pytest.raises(ValueError, match="batch_size: 17 is more than the 16 training images"):
        adapt(encoder, table, replace(QUICK, batch_size=17))


@pytest.mark.parametrize("split", ["train", "val"])
def test_empty_split(encoder, table, split):
    with pytest.raises(ValueError, match=f"'{split}' holds no image"):
        adapt(encoder, table[table["split"] != split])


def test_image_without_caption(encoder, table):
    table.at[3, "captions"] = []
    with pytest.raises(ValueError, match="have no caption, the first is toy/3.png"):
        adapt(encoder, table)


def test_nan_stops_with_step_rate_and_checkpoint(encoder, table, monkeypatch):
    original, calls = contrastive.contrastive_loss, []

    def poisoned(*arguments, **options):
        calls.append(1)
        return original(*arguments, **options) * (float("nan") if len(calls) == 4 else 1)

    monkeypatch.setattr(contrastive, "contrastive_loss", poisoned)
    with pytest.raises(FloatingPointError, match="step 4: loss nan.*learning rate.*step_00000002"):
        adapt(encoder, table)


@pytest.mark.parametrize(
    "wrong", [{"train": "text"}, {"epochs": -1}, {"image_lr": float("nan")}, {"batch_size": 1}, {"crop_min": 0.0}]
)
def test_settings_check_themselves(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AdaptSettings(**wrong)


def test_one_cycle_is_torchs():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=40, pct_start=0.1)
    for step in range(40):
        share, beta = one_cycle(step, 40, 0.1)
        assert share == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        assert beta == pytest.approx(optimizer.param_groups[0]["betas"][0], abs=1e-9)
        optimizer.step()
        if step < 39:
            schedule.step()


def test_augmentation_off_is_identity_and_on_is_seeded():
    batch = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    off = Augmentation(crop_min=1.0, rotations=False, flips=False, brightness=0.0)
    assert torch.allclose(augment(batch, 16, np.random.default_rng(0), off), batch.float(), atol=1e-3)
    turned = augment(batch, 16, np.random.default_rng(0), replace(off, rotations=True, flips=True))
    for one, made in zip(batch.float(), turned):  # each is exactly one of the eight orientations
        views = [torch.rot90(view, k, (1, 2)) for view in (one, one.flip(2)) for k in range(4)]
        assert min((view - made).abs().max() for view in views) < 1e-2
    first, second = (augment(batch, 12, np.random.default_rng(5), Augmentation()) for _ in range(2))
    assert torch.equal(first, second) and first.min() >= 0 and first.max() <= 255


def test_ties_count_with_their_chance():
    ranks = Ranks(*(torch.tensor([value]) for value in (0.5, 0, 1, 1)))  # one other item ties with the right one
    assert hits(ranks, 1).mean() == 0.5 and hits(ranks, 5).mean() == 1.0


def test_pixel_cache_is_bounded_and_renewed(table, tmp_path, monkeypatch):
    files = table["path"].tolist()
    cached = open_pixels(files, prepared(20), log=print)
    streamed = open_pixels(files, prepared(20), cache_gigabytes=0)
    assert cached.array is not None and streamed.array is None
    assert torch.equal(cached.read([5, 1]), streamed.read([5, 1]))
    Image.new("RGB", (40, 40), "white").save(files[1])  # a changed file is another key
    assert open_pixels(files, prepared(20)).read([1]).min() == 255
    open_pixels(files, prepared(21), cache_gigabytes=24 * 1323 * 1.5 / 1e9, log=print)  # room for one only
    assert len(list((tmp_path / "cache").glob("pixels_*.npy"))) == 1


def test_figures_and_tables(encoder, table):
    result = adapt(encoder, table)
    drawn = training_curves(result.curve_table(), result.validation, best_epoch=result.best_epoch)
    loss, recall = drawn.axes
    assert list(recall.lines[0].get_ydata()) == [100 * row["mean_recall"] for row in result.validation]
    assert len(loss.lines) == 2
    compared = before_and_after(result.before, result.after)
    assert compared.loc["mean recall", "after, %"] == round(100 * result.after["mean_recall"], 1)
    assert list(result.validation_table()["epoch"]) == [0, 1, 2, 3]
    json.dumps(result.metrics(), allow_nan=False)


def test_a_bad_image_leaves_no_cache(table, tmp_path):
    files = table["path"].tolist()
    whole = open(files[2], "rb").read()
    open(files[2], "wb").write(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match="2.png"):
        open_pixels(files, prepared(20))
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_is_confused_is_drawn_in_percent_of_the_class(table, study_style):
    val = table[table["split"] == "val"]
    before = val[["image_id", "label"]].reset_index(drop=True).assign(named="red", margin=-0.1)
    before.loc[before["label"] == "red", "margin"] = 0.1
    after = before.assign(named=before["label"], margin=0.2)
    left, right, _ = confusion_figure(before, after).axes
    assert (
        left.images[0].get_array()[:, 2].tolist() == [100.0] * 4 and left.images[0].get_array().count() == 4
    )  # blue, green, red, white: all are called red
    assert np.array_equal(
        right.images[0].get_array().filled(0), 100 * np.eye(4)
    ) and "100.0 % named right" in right.get_title("left")
    (axis,) = class_change_figure(before, after).axes
    assert [label.get_text() for label in axis.get_yticklabels()][0] == "red (2)"  # the only one without a gain
    drawn = draw_changes(table, before, after, count=2)
    assert len(drawn.axes) == 4 and "before: red" in drawn.axes[0].texts[0].get_text()
    assert drawn.axes[2].texts[0].get_text().startswith("red\n")
