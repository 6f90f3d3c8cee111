"""Checkpoints: whole or absent, the newest readable one is used, an optimizer comes back bit by bit."""

import errno
import os
import subprocess

import pytest
import torch

from rsvlm import files
from rsvlm.training import loop
from rsvlm.training.loop import (
    checkpoints_of,
    flatten_optimizer,
    load_last_checkpoint,
    save_checkpoint,
    unflatten_optimizer,
)


def test_save_and_load(tmp_path):
    shared = torch.arange(6.0).view(2, 3)
    half = torch.ones(2, dtype=torch.bfloat16)
    save_checkpoint(tmp_path, 3, {"a": shared, "b": shared.T, "half": half}, {"x": [0.1]})
    found = load_last_checkpoint(tmp_path)
    assert found.step == 3 and found.state == {"x": [0.1]}
    assert torch.equal(found.tensors["a"], shared) and torch.equal(found.tensors["b"], shared.T)
    assert found.tensors["half"].dtype == torch.bfloat16


def test_no_checkpoint_is_none(tmp_path):
    assert load_last_checkpoint(tmp_path / "nothing") is None


def test_keeps_the_newest_two(tmp_path):
    for step in (5, 50, 500):
        save_checkpoint(tmp_path, step, {"a": torch.zeros(1)}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000050", "step_00000500"]


def test_damaged_newest_falls_back_and_says_so(tmp_path):
    save_checkpoint(tmp_path, 1, {"a": torch.zeros(1)}, {})
    torn = save_checkpoint(tmp_path, 2, {"a": torch.ones(1)}, {})
    written = (torn / "tensors.safetensors").read_bytes()
    for damaged in (b"\x08", written[:-1] + b"\x40"):  # torn, and another value of the right length
        (torn / "tensors.safetensors").write_bytes(damaged)
        lines = []
        assert load_last_checkpoint(tmp_path, lines.append).step == 1
        assert len(lines) == 1 and "step_00000002" in lines[0]


def test_full_disk_leaves_the_last_good_one(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, {"a": torch.zeros(1)}, {})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(loop, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path, 2, {"a": torch.zeros(1)}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
    assert load_last_checkpoint(tmp_path).step == 1


def test_one_process_trains_and_its_checkpoints_go_at_the_end(tmp_path):
    with pytest.raises(ZeroDivisionError), checkpoints_of(tmp_path, "toy", 1) as folder:
        save_checkpoint(folder, 1, {"a": torch.zeros(1)}, {})
        with pytest.raises(files.InUse, match=rf"toy: one process for one training: .*process {os.getpid()}, since"):
            with checkpoints_of(tmp_path, "toy", 1):
                pass
        with checkpoints_of(tmp_path, "toy", 2) as other:
            assert other != folder
        1 / 0
    assert load_last_checkpoint(folder).step == 1, "what failed goes on from there"
    with checkpoints_of(tmp_path, "toy", 1):
        pass
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_write_are_no_checkpoint(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    (tmp_path / f".step_00000009.{ended.pid}-{files._machine()}.part").mkdir()
    assert load_last_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, 10, {"a": torch.zeros(1)}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000010"]


def test_nan_in_the_state_is_refused(tmp_path):
    with pytest.raises(ValueError):
        save_checkpoint(tmp_path, 1, {}, {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def _network() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 2))
    return layers.to(memory_format=torch.channels_last)


def _steps(network, optimizer, first, last):
    for step in range(first, last):
        torch.manual_seed(step)
        optimizer.zero_grad()
        network(torch.randn(2, 3, 8, 8)).square().mean().backward()
        optimizer.step()


def test_optimizer_survives_the_disk(tmp_path):
    whole, broken = _network(), _network()
    optimizer = torch.optim.AdamW(whole.parameters(), lr=0.01)
    _steps(whole, optimizer, 0, 6)

    optimizer = torch.optim.AdamW(broken.parameters(), lr=0.01)
    _steps(broken, optimizer, 0, 3)
    tensors, state = flatten_optimizer(optimizer)
    weights = {f"model.{name}": value for name, value in broken.state_dict().items()}
    save_checkpoint(tmp_path, 3, weights | tensors, state)

    found = load_last_checkpoint(tmp_path)
    resumed = _network()
    resumed.load_state_dict({name: found.tensors[f"model.{name}"] for name in resumed.state_dict()})
    optimizer = torch.optim.AdamW(resumed.parameters(), lr=0.5)
    unflatten_optimizer(optimizer, found.tensors, found.state)
    assert optimizer.param_groups[0]["lr"] == 0.01 and isinstance(optimizer.param_groups[0]["betas"], tuple)
    moments = optimizer.state[resumed[0].weight]["exp_avg"]
    assert moments.is_contiguous(memory_format=torch.channels_last)
    _steps(resumed, optimizer, 3, 6)
    for one, other in zip(whole.parameters(), resumed.parameters()):
        assert torch.equal(one, other)
