"""The choice between a kernel's twins: forced, logged, recorded, and blind to no error."""

import importlib.util
import logging

import pytest
import torch

from rsvlm.kernels import force_twin, similarity_topk, twins, twins_for, topk


@pytest.fixture(autouse=True)
def unforced(monkeypatch):
    monkeypatch.delenv(twins.VARIABLE, raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(twins, "_said", set())


def test_a_cpu_gets_torch_and_is_told_why():
    assert twins.choose_twin("similarity_topk", "cpu") == ("torch", "the tensors are on cpu")
    assert twins_for("cpu", "retrieval_ranks", "contrastive_loss") == {
        "contrastive_loss": {"twin": "torch", "reason": "the tensors are on cpu"},
        "retrieval_ranks": {"twin": "torch", "reason": "the tensors are on cpu"},
    }


def test_each_choice_is_logged_once(caplog):
    caplog.set_level(logging.INFO, logger="rsvlm.kernels")
    for _ in range(3):
        similarity_topk(torch.ones(2, 3), torch.ones(4, 3), 2)
    assert caplog.messages == ["similarity_topk runs in torch: the tensors are on cpu"]
    with force_twin("torch"):
        similarity_topk(torch.ones(2, 3), torch.ones(4, 3), 2)
    assert caplog.messages[1:] == ["similarity_topk runs in torch: forced by force_twin"]


def test_a_choice_can_be_forced_and_the_inner_one_counts(monkeypatch):
    monkeypatch.setenv(twins.VARIABLE, "torch")
    assert twins.choose_twin("contrastive_loss", "cpu").reason == "forced by RSVLM_KERNELS=torch"
    with force_twin("triton"), pytest.raises(ValueError, match="cannot run in Triton: the tensors are on cpu"):
        similarity_topk(torch.ones(2, 3), torch.ones(4, 3), 2)
    assert twins.choose_twin("contrastive_loss", "cpu").reason == "forced by RSVLM_KERNELS=torch"


def test_a_wrong_name_is_refused(monkeypatch):
    monkeypatch.setenv(twins.VARIABLE, "tritno")
    with pytest.raises(ValueError, match="RSVLM_KERNELS=tritno: 'tritno' is no twin"):
        twins.choose_twin("contrastive_loss", "cpu")
    with pytest.raises(ValueError, match="operation 'loss'"):
        twins.choose_twin("loss", "cpu")


class Gpu:
    """What the choice asks of a GPU that is not there."""

    def __init__(self, monkeypatch, capability=(9, 0), cuda="13.0", triton=True):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if triton else None)


def test_a_gpu_gets_triton_where_it_can(monkeypatch):
    Gpu(monkeypatch)
    assert twins.choose_twin("contrastive_loss", "cuda") == ("triton", "the tensors are on an NVIDIA GPU")
    assert twins.choose_twin("contrastive_loss", "cuda", torch.float64).name == "torch"
    with force_twin("torch"):
        assert twins.choose_twin("contrastive_loss", "cuda").name == "torch"


@pytest.mark.parametrize(
    ("gpu", "reason"),
    [
        ({"capability": (7, 5)}, "compute capability 7.5 is below 8.0"),
        ({"cuda": None}, "none of NVIDIA's"),
        ({"triton": False}, "triton is not installed"),
    ],
)
def test_a_gpu_that_cannot_gets_torch_with_the_reason(monkeypatch, gpu, reason):
    Gpu(monkeypatch, **gpu)
    name, why = twins.choose_twin("retrieval_ranks", "cuda")
    assert name == "torch" and reason in why
    with force_twin("triton"), pytest.raises(ValueError, match=reason):
        twins.choose_twin("retrieval_ranks", "cuda")


def test_an_error_in_a_twin_is_not_caught(monkeypatch):
    def broken(*arguments):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(topk, "scan_in_torch", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        similarity_topk(torch.ones(2, 3), torch.ones(4, 3), 2)
