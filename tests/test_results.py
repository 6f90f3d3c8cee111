"""Recorded runs are whole, and what the README says of them is what they hold."""

import json
from statistics import mean, stdev

import pytest

from rsvlm.files import fingerprint_file
from rsvlm.study.paths import ROOT
from rsvlm.study.studies import study_names

HEADLINES = (("captions", "CIDEr", 1, 2), ("retrieval", "mean_recall", 100, 1))
# a folder of the metrics.json of runs that differ from a record in their seed
SEEDS = sorted((ROOT / "results").glob("*_seeds"))
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
def test_a_record_can_be_read_without_running_anything(folder):
    notebooks = sorted((folder / "notebooks").glob("*.ipynb"))
    stages = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["sha256"]
    assert [f"notebooks/{path.name}" for path in notebooks] == sorted(name for name in stages if ".ipynb" in name)
    assert len(notebooks) >= 10 and all(path.stat().st_size < 2_000_000 for path in notebooks)
    for path in notebooks:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        assert any(cell.get("outputs") for cell in cells), path.name


def figures(metrics: dict) -> dict[str, set[str]]:
    """Run or method -> CIDEr or mean recall with its interval, as the tables show it."""
    shown: dict[str, set[str]] = {}
    for kind, name, scale, digits in HEADLINES:
        for run, by_source in metrics[kind].items():
            for scores in by_source.values():
                value, low, high = (f"{scale * scores[name][key]:.{digits}f}" for key in ("value", "low", "high"))
                shown.setdefault(run, set()).add(f"{value} [{low}, {high}]")
    return shown


@pytest.mark.parametrize("folder", RECORDS, ids=lambda folder: folder.name)
def test_the_readmes_quote_the_record(folder):
    shown = figures(json.loads((folder / "metrics.json").read_text(encoding="utf-8")))
    short, long = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "results/README.md"))
    missing = {run: texts for run, texts in shown.items() if any(text not in long for text in texts)}
    assert not missing, f"results/README.md does not say what {folder.name} holds"
    headline = [text for run in ("captioner", "consensus", "combined") for text in shown[run]]
    assert not [text for text in headline if text not in short], "README.md"
    assert f"]({folder.name})" in long and folder.name.rsplit("_", 1)[0] in study_names()


@pytest.mark.parametrize("folder", SEEDS, ids=lambda folder: folder.name)
def test_the_readme_quotes_mean_and_spread_over_seeds(folder):
    record = folder.with_name(folder.name.replace("_seeds", "_cpu")) / "metrics.json"
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in (record, *sorted(folder.glob("seed_*.json")))]
    assert len({run["provenance"]["seed"] for run in runs}) == len(runs) >= 3
    long = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    for kind, name, scale, digits in HEADLINES:
        for run in runs[0][kind]:
            for source in runs[0][kind][run]:
                values = [scale * one[kind][run][source][name]["value"] for one in runs]
                told = f"{mean(values):.{digits}f} +- {stdev(values):.{digits}f}"
                assert told in long, f"{run} on {source}: {told} of {values}"
