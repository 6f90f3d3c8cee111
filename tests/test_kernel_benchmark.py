"""The benchmark measures what it says, and its notebook runs."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from browse_case import run_cells

from rsvlm.study import paths
from rsvlm.viewing import figures as kernel_figures

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import kernels as measuring  # noqa: E402  benchmarks/kernels.py

TINY = measuring.Sizes(queries=40, items=300, rank_items=120, width=16, k=3, batch=24, growing=(50, 100))


@pytest.fixture(scope="module")
def measured():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "product_rate", lambda device, repeats: 10.0)
        return measuring.measure(TINY, repeats=1)


def test_every_method_computes_the_same(measured):
    compared = [row for row in measured["rows"] if row["agreement"] is not None]
    assert {row["method"] for row in compared} >= {"matmul + topk", "open_clip's formula"}
    assert min(row["agreement"] for row in compared) > 0.99999
    assert {row["operation"] for row in measured["rows"]} == set(measured["kernels"])
    assert [row["items"] for row in measured["growth"]] == [50, 50, 100, 100]
    for row in measured["rows"] + measured["growth"]:
        assert row["seconds"] > 0 and (row["method"] != measuring.OURS or row["ratio"] == 1)
        assert row["share_of_rate"] == pytest.approx(row["gflops"] / 10)
    json.dumps(measured, allow_nan=False)


def test_the_search_is_measured_with_every_scan_and_says_what_each_rung_was_asked(measured):
    searches = [row for row in measured["rows"] if row["operation"] == "similarity_topk"]
    chosen = measured["kernels"]["similarity_topk"]["scan"]
    others = {"faiss", "float32", "bfloat16"} - {chosen}
    for kind in ("random", "crowded"):
        counts = {row["method"]: row["counts"] for row in searches if row["size"].startswith(kind)}
        assert counts["matmul + topk"] is None
        assert counts[measuring.OURS][chosen] == 40
        assert all(counts[f"{measuring.OURS}, {other} scan (forced)"][other] == 40 for other in others)


def test_crowded_vectors_have_near_and_exact_ties():
    queries, items = measuring.crowded_vectors(50, 3000, 32, "cpu", 0)
    assert torch.allclose(queries.norm(dim=1), torch.ones(50)) and torch.allclose(items.norm(dim=1), torch.ones(3000))
    scores = (queries @ items.T).topk(11, dim=1).values
    assert 0.7 < scores[:, 9].median() < 1
    assert 0.05 < (scores[:, 9] - scores[:, 10] < 1e-6).double().mean() < 0.9


def test_memory_is_that_of_the_call():
    held = []
    taken = measuring.peak_memory(lambda: held.append(np.ones(10_000_000)) or held.clear(), "cpu")
    assert taken is None or 79 < taken < 100  # 80 MB
    assert taken is None or measuring.peak_memory(lambda: None, "cpu") < 5


def test_a_record_says_on_what_it_was_made(measured, tmp_path):
    assert kernel_figures.read_records(tmp_path) == {}
    assert "Not measured on a GPU" in kernel_figures.gpu_note({})
    record = {"provenance": {"device": "cuda:0", "device_name": "NVIDIA H100"}}
    assert kernel_figures.gpu_note({"a": record}) == "Measured on NVIDIA H100."
    table = kernel_figures.speed_table(measured)
    assert len(table) == len(measured["rows"]) and (table["seconds"] >= 0).all()


def test_recorded_benchmarks_are_whole():
    for name, record in kernel_figures.read_records(paths.BENCHMARKS).items():
        assert record["command"].startswith("python benchmarks/kernels.py"), name
        assert {"device", "device_name", "threads", "packages", "git_commit"} <= set(record["provenance"]), name
        assert kernel_figures.speed_table(record).notna()["seconds"].all(), name


def test_the_notebook_runs(monkeypatch, measured, tmp_path):
    monkeypatch.setattr(measuring, "product_rate", lambda device, repeats: 10.0)
    monkeypatch.setattr(paths, "BENCHMARKS", tmp_path)
    (tmp_path / "here.json").write_text(json.dumps(measured | {
        "command": "python benchmarks/kernels.py",
        "provenance": {"device": "cpu", "device_name": "a CPU", "threads": 1, "packages": {"torch": torch.__version__}},
    }))  # fmt: skip
    scope = run_cells("95_kernel_benchmark", **TINY._asdict() | {"growing": [50, 100], "repeats": 1})
    assert "here" in scope["records"] and len(scope["drawn"]) == 2
