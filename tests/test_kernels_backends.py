"""The choice between a kernel's backends: forced, logged, recorded, and blind to no error."""

import importlib.util
import logging

import pytest
import torch

from rsvlm.kernels import backends as backends
from rsvlm.kernels import backends_for, force_backend, force_scan, similarity_topk, topk


@pytest.fixture(autouse=True)
def unforced(monkeypatch):
    monkeypatch.delenv(backends.VARIABLE, raising=False)
    monkeypatch.setenv(backends.SCAN_VARIABLE, "float32")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(backends, "_said", set())


def test_a_cpu_gets_torch_and_is_told_why():
    assert backends.choose_backend("similarity_topk", "cpu") == ("torch", "the tensors are on cpu")
    assert backends_for("cpu", "retrieval_ranks", "contrastive_loss") == {
        "contrastive_loss": {"backend": "torch", "reason": "the tensors are on cpu"},
        "retrieval_ranks": {"backend": "torch", "reason": "the tensors are on cpu", "scan": "float32",
                            "scan_reason": "forced by RSVLM_SCAN=float32"},
    }  # fmt: skip


def test_each_choice_is_logged_once(caplog):
    caplog.set_level(logging.INFO, logger="rsvlm.kernels")
    for _ in range(3):
        similarity_topk(torch.ones(2, 3), torch.ones(4, 3), 2)
    assert caplog.messages == ["similarity_topk runs in torch: the tensors are on cpu"]
    with force_backend("torch"):
        similarity_topk(torch.ones(2, 3), torch.ones(4, 3), 2)
    assert caplog.messages[1:] == ["similarity_topk runs in torch: forced by force_backend"]


def test_a_choice_can_be_forced_and_the_inner_one_counts(monkeypatch):
    monkeypatch.setenv(backends.VARIABLE, "torch")
    assert backends.choose_backend("contrastive_loss", "cpu").reason == "forced by RSVLM_KERNELS=torch"
    with force_backend("triton"), pytest.raises(ValueError, match="cannot run in Triton: the tensors are on cpu"):
        similarity_topk(torch.ones(2, 3), torch.ones(4, 3), 2)
    assert backends.choose_backend("contrastive_loss", "cpu").reason == "forced by RSVLM_KERNELS=torch"


def test_a_wrong_name_is_refused(monkeypatch):
    monkeypatch.setenv(backends.VARIABLE, "tritno")
    with pytest.raises(ValueError, match="RSVLM_KERNELS=tritno: 'tritno' is no backend"):
        backends.choose_backend("contrastive_loss", "cpu")
    with pytest.raises(ValueError, match="operation 'loss'"):
        backends.choose_backend("loss", "cpu")


class Gpu:
    """What the choice asks of a GPU that is not there."""

    def __init__(self, monkeypatch, capability=(9, 0), cuda="13.0", triton=True):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if triton else None)


def test_a_gpu_gets_triton_where_it_can(monkeypatch):
    Gpu(monkeypatch)
    assert backends.choose_backend("contrastive_loss", "cuda") == ("triton", "the tensors are on an NVIDIA GPU")
    assert backends.choose_backend("contrastive_loss", "cuda", torch.float64).name == "torch"
    with force_backend("torch"):
        assert backends.choose_backend("contrastive_loss", "cuda").name == "torch"


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
    name, why = backends.choose_backend("retrieval_ranks", "cuda")
    assert name == "torch" and reason in why
    with force_backend("triton"), pytest.raises(ValueError, match=reason):
        backends.choose_backend("retrieval_ranks", "cuda")


def test_a_scan_can_be_forced_and_the_inner_one_counts(monkeypatch):
    for name in backends.SCANS:
        monkeypatch.setenv(backends.SCAN_VARIABLE, name)
        found = backends.choose_scan("similarity_topk", "cpu")
        assert found == (name, f"forced by RSVLM_SCAN={name}")
        with force_scan("float32"):
            assert backends.choose_scan("similarity_topk", "cpu") == ("float32", "forced by force_scan")
        for operation in ("similarity_topk", "retrieval_ranks"):
            assert backends.choose_scan(operation, "cuda").name == "float32"
    monkeypatch.setenv(backends.SCAN_VARIABLE, "faiss")
    assert backends.choose_scan("retrieval_ranks", "cpu") == (
        "float32",
        "FAISS knows no ranks; RSVLM_SCAN=faiss is for top-k",
    )
    monkeypatch.setattr(backends, "_has_faiss", lambda: False)
    with pytest.raises(
        ValueError, match="RSVLM_SCAN=faiss: FAISS is not installed; pip install faiss-cpu, or use float32"
    ):
        similarity_topk(torch.ones(2, 3), torch.ones(4, 3), 2)
    monkeypatch.setenv(backends.SCAN_VARIABLE, "bf16")
    with pytest.raises(ValueError, match="RSVLM_SCAN=bf16: 'bf16' is no scan; expected one of faiss, float32, bf"):
        similarity_topk(torch.ones(2, 3), torch.ones(4, 3), 2)


def test_prepared_items_are_scanned_in_one_type_by_torch_or_where_queries_are_many_by_faiss(monkeypatch):
    monkeypatch.delenv(backends.SCAN_VARIABLE, raising=False)
    for installed in (True, False):
        monkeypatch.setattr(backends, "_has_faiss", lambda there=installed: there)
        names = [backends.choose_scan("similarity_topk", "cpu", queries).name for queries in (1, 19, 20)]
        assert names == ["float32", "float32", "faiss" if installed else "float32"]
    with force_scan("bfloat16"):
        assert backends.choose_scan("similarity_topk", "cpu", 1).name == "bfloat16"


@pytest.mark.parametrize(
    ("able", "once", "seconds", "chosen", "reason"),
    [
        ({"avx2": True}, True, None, "other", "this CPU has no instructions for bfloat16"),
        ({"avx512_bf16": True}, False, None, "other", "rounded more than once"),
        ({"amx_bf16": True}, True, (1.0, 0.4), "bfloat16", "much faster"),
        ({"amx_bf16": True}, True, (1.0, 0.9), "other", "not much faster"),
    ],
)
@pytest.mark.parametrize("other", ["faiss", "float32"])
def test_the_faster_scan_is_chosen_and_measured_once(monkeypatch, able, once, seconds, chosen, reason, other):
    measured = []
    monkeypatch.delenv(backends.SCAN_VARIABLE)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    monkeypatch.setattr(backends, "_rounds_once", lambda: once)
    monkeypatch.setattr(backends, "_has_faiss", lambda: other == "faiss")
    monkeypatch.setattr(backends, "_scan_seconds", lambda with_faiss: measured.append(with_faiss) or dict(
        zip((other, "bfloat16"), seconds)))  # fmt: skip
    backends._faster_scan.cache_clear()
    try:
        for _ in range(2):
            found = backends.choose_scan("similarity_topk", "cpu")
            assert found.name == (other if chosen == "other" else chosen) and reason in found.reason
        assert measured == ([other == "faiss"] if seconds else [])
        assert backends_for("cpu", "similarity_topk")["similarity_topk"]["scan_reason"] == found.reason
    finally:
        backends._faster_scan.cache_clear()


def test_every_scan_is_timed():
    taken = backends._scan_seconds(True, 8, 16)
    assert set(taken) == set(backends.SCANS) and min(taken.values()) > 0
    assert set(backends._scan_seconds(False, 8, 16)) == {"float32", "bfloat16"}


def test_products_that_are_rounded_more_than_once_are_refused(monkeypatch):
    monkeypatch.setattr(backends, "_rounds_once", lambda: False)
    with force_scan("bfloat16"), pytest.raises(ValueError, match="force_scan: .* use float32"):
        similarity_topk(torch.ones(2, 3), torch.ones(4, 3), 2)


def test_an_error_in_a_backend_is_not_caught(monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(topk, "scan_in_torch", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        similarity_topk(torch.ones(2, 3), torch.ones(4, 3), 2)
