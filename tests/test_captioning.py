import math
import multiprocessing
import signal
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from captioner_case import KINDS, make_captioner, make_features, make_table

from rsvlm.models.captioner import load_capret, save_capret
from rsvlm.models.generation import Hypothesis, Prompted, caption_log_likelihoods
from rsvlm.models.prompts import CAPTION_PROMPT
from rsvlm.progress import Passing
from rsvlm.settings import CaptioningSettings, RewardSettings
from rsvlm.training.caption_batches import Example, TrainingBatches, examples_of
from rsvlm.training.captioning import _SelfCritical, schedule, train_captioner

QUICK = {"batch_size": 8, "warmup_steps": 2, "validation_every": 4, "checkpoint_every": 3, "retrieval_negatives": 4}


@pytest.fixture(scope="module")
def features():
    return make_features()


@pytest.fixture(scope="module")
def examples(features):
    table = make_table(features)
    neighbours = {image_id: [KINDS[0]] for image_id in features.image_ids}
    return examples_of(table, "train", neighbours), examples_of(table, "val", neighbours)


def train(features, examples, folder, *, seed=0, stop_after=None, log=lambda line: None, **settings):
    """(captioner, result); ``stop_after`` raises KeyboardInterrupt when so many steps are saved."""
    captioner = make_captioner(features, lora_dropout=0.1)
    settings = CaptioningSettings(**QUICK | {"steps": 8, "seed": seed, "feature_dropout": 0.1} | settings)
    return captioner, train_captioner(captioner, features, *examples, settings, checkpoints=folder, log=log)


def louder(features, **shape):
    """A captioner that can say something: a random output matrix is too small for that."""
    captioner = make_captioner(features, **shape)
    with torch.no_grad():
        captioner.language_model.get_output_embeddings().weight.mul_(30)
    return captioner


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_learns_to_caption_and_to_retrieve(features, examples, tmp_path, dtype):
    captioner = louder(features, dtype=dtype)
    settings = CaptioningSettings(
        **QUICK | {"validation_every": 15},
        steps=45,
        projection_lr=2e-2,
        lora_lr=2e-2,
        retrieval_lr=1e-2,
        captions_per_image=1,
    )
    result = train_captioner(captioner, features, *examples, settings, checkpoints=tmp_path, log=lambda _: None)
    first, last = result.curve[0], result.curve[-1]
    assert last["caption_loss"] < 0.5 * first["caption_loss"]
    assert last["retrieval_loss"] < 0.5 * first["retrieval_loss"]
    assert result.validation[-1]["caption_loss"] < result.validation[0]["caption_loss"]
    assert result.kept_step == min(result.validation, key=lambda row: row["caption_loss"])["step"]
    assert [row["step"] for row in result.curve] == list(range(1, 46))
    assert all(math.isfinite(value) for row in (*result.curve, *result.validation) for value in row.values())
    assert not any(tmp_path.rglob("step_*"))  # a finished training needs no checkpoints


def test_the_frozen_model_stays_bit_for_bit(features, examples, tmp_path):
    captioner = make_captioner(features)
    frozen = {n: p.clone() for n, p in captioner.named_parameters() if not p.requires_grad}
    train_captioner(
        captioner, features, *examples, CaptioningSettings(**QUICK, steps=3), checkpoints=tmp_path, log=lambda _: None
    )
    assert all(torch.equal(p, frozen[n]) for n, p in captioner.named_parameters() if n in frozen)


def test_rank_0_trains_too(features, examples, tmp_path):
    captioner = make_captioner(features, lora_rank=0)
    settings = CaptioningSettings(**QUICK, steps=3)
    result = train_captioner(captioner, features, *examples, settings, checkpoints=tmp_path, log=lambda _: None)
    assert set(result.trainable_parameters) == {"projection", "retrieval"}


def test_without_retrieval_its_weights_stay(features, examples, tmp_path):
    before = make_captioner(features)
    captioner, result = train(features, examples, tmp_path, steps=3, retrieval_weight=0.0, ret_token_weight=0.0)
    assert torch.equal(captioner.text_projection.weight, before.text_projection.weight)
    assert all(row["retrieval_loss"] == 0 for row in result.curve)


@pytest.mark.parametrize(("ability", "dtype"), [("avx2", "float32"), ("avx512_bf16", "bfloat16")])
def test_the_automatic_dtype_is_kept_with_the_captioner(features, tmp_path, monkeypatch, ability, dtype):
    """Trained where the processor has bf16, it is loaded in bf16 everywhere."""
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {ability: True})
    save_capret(make_captioner(features, dtype="auto"), tmp_path / "captioner")
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {})
    loaded = load_capret(tmp_path / "captioner", "cpu", features=features)
    assert loaded.config["dtype"] == dtype and str(loaded.language_model.dtype) == f"torch.{dtype}"


def test_feature_statistics_are_the_same_in_blocks(features, monkeypatch):
    """Read a few at a time: all views of all training images would be gigabytes."""
    whole = make_captioner(features)
    monkeypatch.setattr("rsvlm.models.captioner.STATISTICS_BLOCK", 5)
    blocks = make_captioner(features)
    for name in ("pooled_mean", "pooled_std", "grid_mean", "grid_std"):
        assert torch.equal(getattr(whole, name), getattr(blocks, name))


@pytest.mark.parametrize("stopped", [1, 5, 8])
def test_stopped_at_a_step_it_ends_with_the_same_weights(features, examples, tmp_path, monkeypatch, stopped):
    told = []
    whole, whole_result = train(features, examples, tmp_path / "whole", log=told.append)
    steps = iter(range(100))
    step = torch.optim.AdamW.step

    def stop(self, *args, **options):
        if next(steps) == stopped:
            raise KeyboardInterrupt
        return step(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", stop)
        if stopped < 8:
            with pytest.raises(KeyboardInterrupt):
                train(features, examples, tmp_path / "broken")
    lines = []
    again, result = train(features, examples, tmp_path / "broken", log=lines.append)
    assert any("continuing from step 3" in line for line in lines) == (stopped == 5)
    assert [line for line in lines if not isinstance(line, Passing)] == told and told, "the notebook shows the same"
    assert same_weights(whole, again) and result == whole_result
    for rows, expected in ((result.curve, whole_result.curve), (result.validation, whole_result.validation)):
        assert [list(row) for row in rows] == [list(row) for row in expected]  # columns, in order


def same_weights(one, other) -> bool:
    return all(torch.equal(a, other.trained_state()[name]) for name, a in one.trained_state().items())


def test_killed_hard_in_the_middle_it_continues(features, examples, tmp_path):
    """A real process, kill -9 while it trains, then a rerun."""

    def slowly():
        step = torch.optim.AdamW.step

        def slow(self, *args, **options):
            time.sleep(0.2)
            return step(self, *args, **options)

        torch.optim.AdamW.step = slow
        train(features, examples, tmp_path / "killed")

    torch.set_num_threads(1)  # a forked process must not wait for its parent's threads
    process = multiprocessing.get_context("fork").Process(target=slowly)
    process.start()
    deadline = time.monotonic() + 120
    while not any((tmp_path / "killed").rglob("step_00000003")):
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    whole, whole_result = train(features, examples, tmp_path / "whole")
    lines = []
    again, result = train(features, examples, tmp_path / "killed", log=lines.append)
    assert any(line.startswith("continuing from step") for line in lines)
    assert same_weights(whole, again) and result == whole_result


def test_other_settings_start_afresh(features, examples, tmp_path, monkeypatch):
    monkeypatch.setattr("rsvlm.training.loop.shutil", SimpleNamespace(rmtree=lambda *_, **__: None))  # they stay
    train(features, examples, tmp_path, steps=3)
    lines = []
    train(features, examples, tmp_path, steps=3, lora_lr=2e-3, log=lines.append)
    assert not any("continuing" in line for line in lines)
    train(features, examples, tmp_path, steps=3, log=lines.append)
    assert any("continuing" in line for line in lines)


@pytest.mark.parametrize("changed", ["features", "start"])
def test_other_inputs_under_the_same_names_start_afresh(features, examples, tmp_path, monkeypatch, changed):
    """Features of another encoder or other pictures, or other weights to start from: no checkpoint is for them."""
    before, now = make_captioner(features), make_captioner(features)
    other = features
    if changed == "features":  # of two training images that no other value tells apart, not even a mean
        other = replace(features, pooled=features.pooled.copy())
        other.pooled[[0, 1]] = other.pooled[[1, 0]]
    else:
        with torch.no_grad():
            now.ret_input[0] += 1
    start = {name: value.clone() for name, value in now.trained_state().items()}
    step, steps = torch.optim.AdamW.step, iter(range(100))

    def stop(self, *args, **options):
        if next(steps) == 5:
            raise KeyboardInterrupt
        return step(self, *args, **options)

    def train_on(captioner, features, folder):
        settings, lines = CaptioningSettings(**QUICK, steps=8), []
        train_captioner(captioner, features, *examples, settings, checkpoints=tmp_path / folder, log=lines.append)
        return [line for line in lines if "continuing" in line]

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", stop)
        with pytest.raises(KeyboardInterrupt):
            train_on(before, features, "killed")
    fresh = make_captioner(features)
    fresh.load_trained_state(start)
    train_on(fresh, other, "fresh")
    assert train_on(now, other, "killed") == [] and same_weights(now, fresh)


def test_a_scale_above_its_limit_comes_back(features, examples, tmp_path):
    """Held at 100, as CLIP's, and with a gradient there: the loss of an untrained captioner wants it lower."""
    captioner = make_captioner(features)
    with torch.no_grad():
        captioner.logit_scale.fill_(6.0)
    settings = CaptioningSettings(**QUICK, steps=6, retrieval_lr=1e-2, keep="last")
    result = train_captioner(captioner, features, *examples, settings, checkpoints=tmp_path, log=lambda _: None)
    scales = [row["logit_scale"] for row in result.curve]
    assert max(scales) < 100 and scales == sorted(scales, reverse=True)
    assert scales[-1] == pytest.approx(captioner.scale().item(), abs=1e-5)


def test_a_scale_pushed_to_its_limit_stays_there_and_can_leave_it(features, examples, tmp_path, monkeypatch):
    captioner, calls = make_captioner(features), iter(range(100))
    with torch.no_grad():
        captioner.logit_scale.fill_(math.log(99))

    def pushing(images, texts, scale, positives, group=None):
        """Up in the first three steps, then down."""
        return -scale if next(calls) < 3 else scale

    monkeypatch.setattr("rsvlm.training.captioning.contrastive_loss", pushing)
    settings = CaptioningSettings(**QUICK | {"validation_every": 100}, steps=10, retrieval_lr=0.1, keep="last")
    result = train_captioner(captioner, features, *examples, settings, checkpoints=tmp_path, log=lambda _: None)
    scales = [row["logit_scale"] for row in result.curve]
    assert scales[:3] == pytest.approx([100] * 3, abs=1e-4) and scales[-1] < 98


@pytest.mark.parametrize(("where", "value"), [("visual_projection", math.nan), ("image_projection", math.inf)])
def test_a_loss_that_is_no_number_stops_with_step_rates_and_checkpoint(
    features, examples, tmp_path, monkeypatch, where, value
):
    captioner = make_captioner(features)
    step, count = torch.optim.AdamW.step, iter(range(100))

    def poison(self, *args, **options):
        result = step(self, *args, **options)
        if next(count) == 3:
            with torch.no_grad():
                getattr(captioner, where).weight[0, 0] = value
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", poison)
    settings = CaptioningSettings(**QUICK | {"validation_every": 100}, steps=8)
    with pytest.raises(
        FloatingPointError, match=r"stopped at step 5: loss nan.*lora_lr 0\.000\d+.*checkpoint is .*step_00000003"
    ):
        train_captioner(captioner, features, *examples, settings, checkpoints=tmp_path, log=lambda _: None)
    kept = load_file_of(tmp_path)
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())


def load_file_of(folder):
    from safetensors.torch import load_file

    return load_file(next(folder.rglob("step_00000003")) / "tensors.safetensors")


def test_the_last_weights_are_kept_on_demand(features, examples, tmp_path):
    _, result = train(features, examples, tmp_path, keep="last")
    assert result.kept_step == 8


def test_the_saved_captioner_tells_how_it_was_trained(features, examples, tmp_path):
    captioner = make_captioner(features)
    settings = CaptioningSettings(**QUICK, steps=2)
    train_captioner(
        captioner,
        features,
        *examples,
        settings,
        save_to=tmp_path / "captioner",
        notes={"neighbour_captions": 1},
        checkpoints=tmp_path,
        log=lambda _: None,
    )
    config = load_capret(tmp_path / "captioner", "cpu", features=features).config
    assert config["neighbour_captions"] == 1 and config["training"]["steps"] == 2


def test_a_batch_larger_than_the_training_set_is_refused(features, examples):
    with pytest.raises(ValueError, match="batch_size: 17 is more than the 16 training images"):
        train_captioner(make_captioner(features), features, *examples, CaptioningSettings(batch_size=17))


def test_an_empty_split_is_refused(features):
    table = make_table(features)
    with pytest.raises(ValueError, match="split 'val' holds no image"):
        examples_of(table[table["split"] != "val"], "val")
    with pytest.raises(ValueError, match="no neighbours' captions are given for it"):
        examples_of(table, "train", {})


@pytest.mark.parametrize(
    "wrong",
    [
        {"captions": "all"},
        {"steps": 0},
        {"lora_lr": 0.0},
        {"neighbour_dropout": 1.5},
        {"keep": "first"},
        {"retrieval_weight": math.nan},
    ],
)
def test_settings_check_themselves(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CaptioningSettings(**wrong)


def test_each_epoch_shows_each_image_once_in_a_new_order(features, examples):
    batches = TrainingBatches(make_captioner(features), features, examples[0], CaptioningSettings(batch_size=5))
    epochs = [np.concatenate([batches.images(step) for step in range(epoch * 3, epoch * 3 + 3)]) for epoch in (0, 1)]
    for order in epochs:
        assert len(set(order.tolist())) == 15  # 16 images, three batches of 5
    assert epochs[0].tolist() != epochs[1].tolist()


def test_equal_texts_are_positives_and_an_images_captions_are_drawn(features):
    examples = [Example(image_id, ("A river.", "A river.", "Waves.")) for image_id in features.image_ids[:4]]
    examples += [Example(features.image_ids[4], ("A dense forest.",))]
    settings = CaptioningSettings(
        batch_size=2, captions="released", captions_per_image=0, retrieval_negatives=3, retrieval_prompts=0.0
    )
    captioner = make_captioner(features)
    batches = TrainingBatches(captioner, features, examples, settings)
    batch = batches.draw(0, np.random.default_rng(0))
    chosen = [examples[i] for i in batches.images(0)]
    assert batch.pooled.shape[0] == 5 and batch.positives.shape == (5, 2)
    for column in range(2):
        rivers = sum("A dense forest." not in example.captions for example in examples)
        assert batch.positives[:, column].sum() == (1 if chosen[column].captions == ("A dense forest.",) else rivers)
    expected = sorted(weight for example in chosen for weight in ((2.0, 1.0) if len(example.captions) == 3 else (1.0,)))
    assert sorted(batch.weights.tolist()) == expected


def test_prompts_vary_and_drop_neighbours(features):
    examples = [Example(image_id, ("A river.",), ("Waves.",)) for image_id in features.image_ids]
    batches = TrainingBatches(
        make_captioner(features), features, examples, CaptioningSettings(varied_prompts=0.5, neighbour_dropout=0.25)
    )
    prompts = [batches._draw_prompt(examples[0], np.random.default_rng([0, step])) for step in range(400)]
    assert 0.15 < np.mean(["Waves." not in prompt for prompt in prompts]) < 0.35
    assert 0.4 < np.mean([prompt.endswith(CAPTION_PROMPT) for prompt in prompts]) < 0.6
    assert len(set(prompts)) > 8


def test_the_schedule_rises_and_falls():
    shares = [schedule(step, 100, 10) for step in range(100)]
    assert np.argmax(shares) == 10 and shares[10] == 1 and 0 < shares[0] < 0.1
    assert shares[-1] == pytest.approx(0.01)
    assert schedule(0, 1, 0) == 1


def train_for_reward(features, examples, folder, *, steps=6, log=lambda line: None, **reward):
    """(captioner, result) of some steps and self-critical steps after them."""
    captioner = louder(features)
    settings = CaptioningSettings(
        **QUICK | {"validation_every": steps},
        steps=steps,
        projection_lr=2e-2,
        lora_lr=2e-2,
        varied_prompts=0.0,
        neighbour_dropout=0.0,
        retrieval_weight=0.0,
        ret_token_weight=0.0,
    )
    chosen = RewardSettings(**{"reward_batch_size": 16, "reward_lr": 3e-3, "reward_every": 4} | reward)
    return captioner, train_captioner(captioner, features, *examples, settings, chosen, checkpoints=folder, log=log)


def test_self_critical_training_raises_what_it_rewards(features, examples, tmp_path):
    _, result = train_for_reward(features, examples, tmp_path, steps=150, reward_steps=16, reward_samples=32)
    curve = [row["reward"] for row in result.reward.curve]
    assert np.mean(curve[-4:]) > 1.2 * np.mean(curve[:4]) and max(curve) <= 1
    assert [row["step"] for row in result.reward.validation] == [0, 4, 8, 12, 16]
    cider = {row["step"]: row["cider"] for row in result.reward.validation}
    assert cider[result.reward.kept_step] == max(cider.values())  # never worse on validation than without
    assert result.metrics()["reward"]["validation_cider"]["before"] == cider[0]
    assert not any(tmp_path.rglob("step_*"))


def test_stopped_in_self_critical_training_it_goes_on(features, examples, tmp_path, monkeypatch):
    whole, whole_result = train_for_reward(features, examples, tmp_path / "whole", reward_steps=6)
    steps, step = iter(range(20)), torch.optim.AdamW.step

    def stop(self, *args, **options):
        if next(steps) == 6 + 4:  # checkpoints are saved each third step
            raise KeyboardInterrupt
        return step(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", stop)
        with pytest.raises(KeyboardInterrupt):
            train_for_reward(features, examples, tmp_path / "broken", reward_steps=6)
    lines = []
    again, result = train_for_reward(features, examples, tmp_path / "broken", reward_steps=6, log=lines.append)
    assert [line.split(":")[0] for line in lines if "continuing" in line] == [
        "continuing from step 6",  # of the training before it, which is not done again
        "continuing from step 3",
    ]
    assert same_weights(whole, again) and result == whole_result


def test_the_gradient_of_a_drawn_caption_is_its_gain(features, examples):
    """Two draws of one image: the loss is the difference of their rewards times that of their log-likelihoods."""
    captioner, reward = louder(features), RewardSettings(reward_batch_size=1, reward_samples=2, reward_steps=1)
    settings = CaptioningSettings(**QUICK, retrieval_weight=0.0, ret_token_weight=0.0, views="upright")
    task = _SelfCritical(captioner, features, *examples, settings, reward, print)
    texts = [captioner.encode_text([KINDS[0]])[0], captioner.encode_text(["a"])[0]]
    draws = [Hypothesis(tuple(ids), 0.0) for ids in texts]
    task._draw = lambda batch, generator: [draws]
    loss = task.losses(0, np.random.default_rng(0))["loss"]
    example = task.drawn.examples[task.drawn.images(0)[0]]
    asked = Prompted(captioner, features, [example.image_id], neighbours=[example.neighbours])
    likely = caption_log_likelihoods(asked, [[KINDS[0], "a"]], mean=False)[0]
    references = list(dict.fromkeys(example.captions))
    first, second = task.space.similarity([KINDS[0], "a"], references).mean(1) / 10
    expected = -((first - second) * likely[0] + (second - first) * likely[1]) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-4) and first != second


def test_a_caption_that_never_ends_earns_nothing_and_is_not_trained_on(features, examples):
    captioner, reward = louder(features), RewardSettings(reward_batch_size=1, reward_samples=2, reward_steps=1)
    settings = CaptioningSettings(**QUICK, retrieval_weight=0.0, ret_token_weight=0.0)
    task = _SelfCritical(captioner, features, *examples, settings, reward, print)
    ids = tuple(captioner.encode_text([KINDS[0]])[0])
    task._draw = lambda batch, generator: [[Hypothesis(ids, 0.0, ended=False)] * 2]
    losses = task.losses(0, np.random.default_rng(0))
    assert losses["reward"] == 0 and losses["caption_loss"] == 0
    losses["loss"].backward()
