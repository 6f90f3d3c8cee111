"""Recorded runs are whole, and what the README says of them is what they hold."""

import json

import pytest

from rsvlm.files import fingerprint_file
from rsvlm.study.paths import ROOT
from rsvlm.study.studies import study_names

RECORDS = sorted(path.parent for path in (ROOT / "results").glob("*/metrics.json"))


def test_there_is_a_recorded_run():
    assert RECORDS


@pytest.mark.parametrize("folder", RECORDS, ids=lambda folder: folder.name)
def test_a_record_has_runs_methods_intervals_and_provenance(folder):
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert {"captioner", "beam", "shuffled", "constant", "nearest", "consensus", "human"} <= set(metrics["captions"])
    assert {"dual_encoder", "ret", "combined"} <= set(metrics["retrieval"])
    for source, scores in metrics["captions"]["captioner"].items():
        cider = scores["CIDEr"]
        assert cider["low"] <= cider["value"] <= cider["high"] and cider["n"] > 0, source
    assert metrics["provenance"]["packages"]["torch"]


@pytest.mark.parametrize("folder", RECORDS, ids=lambda folder: folder.name)
def test_a_record_is_as_it_was_written(folder):
    sums = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["sha256"]
    assert {name: fingerprint_file(folder / name) for name in sums} == sums


@pytest.mark.parametrize("folder", RECORDS, ids=lambda folder: folder.name)
def test_the_readme_quotes_the_record(folder):
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"results/{folder.name}" in readme
    quoted = []
    for run, by_source in metrics["captions"].items():
        for scores in by_source.values():
            cider = scores["CIDEr"]
            quoted.append((run, f"{cider['value']:.2f} [{cider['low']:.2f}, {cider['high']:.2f}]"))
    for method, by_source in metrics["retrieval"].items():
        for scores in by_source.values():
            recall = scores["mean_recall"]
            quoted.append(
                (method, f"{100 * recall['value']:.1f} [{100 * recall['low']:.1f}, {100 * recall['high']:.1f}]")
            )
    missing = [f"{name}: {text}" for name, text in quoted if text not in readme]
    assert not missing, f"README.md does not say what {folder.name} holds: {missing}"
    assert folder.name.rsplit("_", 1)[0] in study_names()
