"""Other models beside a study: entries, files that change, models that fail, the captions kept, the rows and tables."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from study_case import copy_with_study, dvc
from vlm_models import make_vlm

from rsvlm.data.table import load_table, rows_of
from rsvlm.data.task_files import load_tasks
from rsvlm.scoring import measured
from rsvlm.scoring.captions import ScoringTools
from rsvlm.scoring.instruction_study import read_answers
from rsvlm.scoring.leaderboard import COLUMNS, leaderboard_rows, leaderboard_tables, leaks_of
from rsvlm.scoring.measured import measure_model, score_model
from rsvlm.settings import OtherModel, VlmSettings
from rsvlm.study.models import check_models, describe_files, model_entry

# Entries


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, "one: nothing to measure: give one of 'encoder', 'captioner', 'embeddings', 'captions'"),
        ({"encoder": "a", "captions": "b"}, "'encoder' and 'captions' are several models"),
        ({"captions": "b", "weights": "w.pt"}, "'weights': for 'encoder' alone, which is not given"),
        ({"encoder": "a", "prompt": "Say"}, "'prompt': for 'captioner' alone, which is not given"),
        ({"encodr": "a"}, "unknown name 'encodr'; did you mean 'encoder'"),
        ({"captioner": "a", "finetune": {"step": 3}}, "unknown name 'step'; did you mean 'steps'"),
        ({"captioner": "a", "finetune": {}, "adapter": "b"}, "'finetune' makes adapters and 'adapter' brings some"),
        ({"captions": "b", "trained_on": ["ucm/tests"]}, "trained_on: ucm/tests"),
        ("remoteclip", "expected settings such as"),
    ],
)
def test_an_entry_that_cannot_be_is_named(entry, message):
    with pytest.raises(ValueError) as told:
        check_models({"models": {"one": entry}}, Path())
    assert message in str(told.value) and "models: one" in str(told.value)


def test_names_are_those_of_files():
    for name in ("../up", "a/b", "a b", ".hidden", ""):
        with pytest.raises(ValueError, match="a name may hold letters, digits, - and _ only"):
            check_models({"models": {name: {"captions": "a.json"}}}, Path())
    with pytest.raises(ValueError, match="differ only in case"):
        check_models({"models": {"A": {"captions": "a"}, "a": {"captions": "a"}}}, Path())
    with pytest.raises(ValueError, match="no entry 'clap'; did you mean 'clip'"):
        model_entry({"clip": {"encoder": "x"}}, "clap")


def test_what_an_entry_reads_is_watched(tmp_path):
    (tmp_path / "vlm").mkdir()
    (tmp_path / "vlm" / "config.json").write_text("{}")
    (tmp_path / "said.json").write_text("{}")
    assert list(describe_files(OtherModel(captioner="vlm"), tmp_path)) == ["vlm/config.json"]
    assert describe_files(OtherModel(captioner="owner/name"), tmp_path) == {}  # on the hub
    one = describe_files(OtherModel(captions="said.json"), tmp_path)
    (tmp_path / "said.json").write_text("{ }")
    assert describe_files(OtherModel(captions="said.json"), tmp_path) != one
    assert describe_files(OtherModel(captions="no.json"), tmp_path) == {"no.json": []}


# Measuring


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Twelve pictures of noise with two captions each, in three splits."""
    folder, rows = tmp_path_factory.mktemp("pictures"), []
    generator = np.random.default_rng(0)
    for number in range(12):
        path = folder / f"{number}.png"
        Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
        split = ("train", "val", "test", "test")[number % 4]
        captions = [f"picture {number}", f"a picture with the number {number}"]
        rows.append([f"noise/{number}.png", "noise", split, str(path), captions, "odd" if number % 2 else "even"])
    return pd.DataFrame(rows, columns=["image_id", "source", "split", "path", "captions", "label"])


def test_an_encoder_is_scored_as_the_studys_own_is(table, tmp_path, monkeypatch):
    monkeypatch.setenv("RSVLM_CACHE", str(tmp_path))
    made = measure_model(OtherModel(encoder="random:clip"), table, split="test", root=tmp_path, precision="fp32")
    assert made.captions is None and made.space.image_vectors.shape[0] == 6
    assert made.facts["trained_on"] is None and len(made.facts["fingerprint"]) == 64 and made.facts["weights"] > 0
    metrics, per_image = score_model(
        "mine", made, table, split="test", protocols=["raw", "texts_once"], tools=ScoringTools(), resamples=20
    )
    assert set(metrics) == {"retrieval"} == set(per_image)
    entry = metrics["retrieval"]["noise"]
    assert set(entry["protocols"]) == {"raw", "texts_once"} and entry["by_image"]["mean_recall"]["n"] == 6
    assert not list(tmp_path.glob("tmp*")), "the features' folder is left behind"


def test_a_preset_says_what_it_was_trained_on_and_what_leaks_where_that_matters():
    facts = measured._training(OtherModel(encoder="remoteclip-rn50", weights="RemoteCLIP-RN50.pt"))
    assert facts["trained_on"] == ["rsicd/train", "rsitmd/train", "ucm/train"]
    about = {"facts": facts, "split": "test"}
    assert leaks_of(about, "noise", None) == ["none known"]
    assert "near-duplicates were removed" in " ".join(leaks_of(about, "ucm", None))
    own = measured._training(OtherModel(encoder="remoteclip-rn50", trained_on=["ucm/test"]))
    assert leaks_of({"facts": own, "split": "test"}, "ucm", None)[0].startswith("trained on these test images")


def test_captions_that_were_made_are_kept(table, tmp_path, monkeypatch):
    monkeypatch.setenv("RSVLM_CACHE", str(tmp_path))
    monkeypatch.setattr(measured, "BLOCK", 2)
    make_vlm("qwen2_5_vl", tmp_path / "vlm")
    entry, options = OtherModel(captioner="vlm", max_new_tokens=6), {"split": "test", "root": tmp_path}
    real, asked = measured.caption_pictures, []

    def count(vlm, pictures):
        pictures = list(pictures)
        if len(asked) == 4:
            raise KeyboardInterrupt
        asked.extend(pictures)
        return real(vlm, pictures)

    monkeypatch.setattr(measured, "caption_pictures", count)
    with pytest.raises(KeyboardInterrupt):
        measure_model(entry, table, **options)
    monkeypatch.setattr(measured, "caption_pictures", lambda vlm, pictures: [asked.append(0), *real(vlm, pictures)][1:])
    made = measure_model(entry, table, **options)
    assert len(asked) == 5, "two blocks before, and only the third after"
    rows = rows_of(table, split="test")
    vlm = measured.load_vlm(VlmSettings.of(entry).model_copy(update={"captioner": str(tmp_path / "vlm")}))
    assert list(made.captions.values()) == real(vlm, [Image.open(path) for path in rows["path"]])
    assert measure_model(entry, table, **options).facts["seconds_an_image"] is None, "none was made now"


def test_a_captioner_is_fine_tuned_on_the_training_captions(table, tmp_path, monkeypatch):
    monkeypatch.setenv("RSVLM_CACHE", str(tmp_path))
    make_vlm("qwen2_5_vl", tmp_path / "vlm")
    steps = {"steps": 2, "warmup_steps": 1, "validation_every": 2, "batch_size": 2}
    entry = OtherModel(captioner="vlm", max_new_tokens=4, finetune=steps)
    made = measure_model(entry, table, split="test", root=tmp_path, adapters=tmp_path / "adapters")
    assert (tmp_path / "adapters" / "adapter_model.safetensors").is_file()
    assert made.facts["finetune"]["images"] == 3 and made.facts["trained_on"] == ["noise/train"]
    again = OtherModel(captioner="vlm", max_new_tokens=4, adapter="adapters")
    assert measure_model(again, table, split="test", root=tmp_path).captions == made.captions


# A study with some


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study whose models are a captioner, and captions from elsewhere of a few images, which fail."""
    with copy_with_study(tmp_path_factory.mktemp("models") / "a study", "smoke") as root:
        dvc(root, "repro", "aggregate_data")
        table = load_table(root / "data" / "aggregated" / "images.parquet")
        test = rows_of(table, split="test")
        said = {Path(image_id).stem: own[0] for image_id, own in zip(test["image_id"], test["captions"])}
        (root / "said.json").write_text(json.dumps(said))
        (root / "few.json").write_text(json.dumps(dict(list(said.items())[:3])))
        make_vlm("qwen2_5_vl", root / "models" / "vlm")
        put = [
            "  models:",
            "    vlm: {captioner: models/vlm, max_new_tokens: 4, tasks: 6}",
            "    few: {captions: few.json}",
        ]
        params = (root / "params.yaml").read_text(encoding="utf-8")
        before, _, behind = params.partition("  models: {}")
        behind = behind[behind.index("\n") :]
        (root / "params.yaml").write_text(before + "\n".join(put) + behind, encoding="utf-8")
        dvc(root, "repro", "leaderboard")
        yield root


def test_every_model_has_its_row_and_a_failed_one_its_reason(study):
    rows = json.loads((study / "reports" / "leaderboard" / "leaderboard.json").read_text(encoding="utf-8"))
    rows, about = rows["rows"], rows["models"]
    assert about["vlm"]["versions"]["torch"] and about["vlm"]["facts"]["fingerprint"]
    assert all(set(row) == set(COLUMNS) for row in rows) and str(study) not in json.dumps(rows)
    failed = {row["model"]: row["reason"] for row in rows if row["origin"] == "failed"}
    assert list(failed) == ["few"] and "captions for 3 of" in failed["few"]
    ciders = {row["model"]: row for row in rows if row["metric"] == "CIDEr" and row["references"] == "released"}
    assert set(ciders) == {"vlm"} and ciders["vlm"]["leaks"][0].startswith("unknown")
    assert all(row["low"] <= row["value"] <= row["high"] for row in ciders.values())
    assert ciders["vlm"]["gigabytes"] > 0 and ciders["vlm"]["weights"] > 0
    tasks = {task["task_id"]: task for task in load_tasks(study / "data" / "instructions" / "tasks.jsonl", "test")}
    answers = read_answers(study / "data" / "models", ["vlm", "few"])["vlm"]
    assert 0 < len(answers) <= 6 and all(row["instruction"] == tasks[row["task_id"]]["instruction"] for row in answers)
    page = (study / "reports" / "leaderboard" / "leaderboard.html").read_text(encoding="utf-8")
    assert "could not be measured" in page and "captions for 3 of" in page
    assert not (study / "data" / "models" / "few" / "metrics.json").exists()
    for name in ("vlm", "few"):
        assert (study / "reports" / "notebooks" / f"75_run_model_{name}.ipynb").is_file()


def test_a_failed_model_is_tried_again_and_a_mended_file_runs_its_own_model_alone(study):
    look = [sys.executable, "-m", "rsvlm.study.models", "few"]
    written = study / "build" / "model_files" / "few.json"
    before = json.loads(written.read_text())
    subprocess.run(look, cwd=study, check=True)
    assert json.loads(written.read_text()) == before | {"failed_tries": 1}
    shutil.copy(study / "said.json", study / "few.json")
    said = dvc(study, "repro", "leaderboard")
    ran = {line.split("'")[1] for line in said.splitlines() if line.startswith("Running stage")}
    assert {stage for stage in ran if "model_files" not in stage} == {"run_model@few", "leaderboard"}
    table = (study / "reports" / "leaderboard" / "leaderboard.md").read_text(encoding="utf-8")
    assert "| few | measured |" in table and "failed" not in table
    rows = json.loads((study / "reports" / "leaderboard" / "leaderboard.json").read_text(encoding="utf-8"))["rows"]
    (cider,) = [row["value"] for row in rows if row["model"] == "few" and row["metric"] == "CIDEr"]
    assert cider > 1, "each image's first reference passed off as its caption"
    subprocess.run(look, cwd=study, check=True)
    assert json.loads(written.read_text())["failed_tries"] == 1, "nothing failed since"


def test_published_figures_stand_apart(table):
    entry = {"released": {"CIDEr": {"value": 3.5, "low": 3.0, "high": 4.0, "n": 210}}}
    facts = {"trained_on": ["ucm/train"], "leaks": ""}
    about = {"name": "mine", "split": "test", "facts": facts, "entry": {"captions": "a.json"}}
    models = {"mine": {"about": about, "metrics": {"captions": {"ucm": entry}}}}
    rows = leaderboard_rows(models, None)
    assert {row["origin"].split(":")[0] for row in rows} == {"measured", "quoted"}
    assert not [row for row in leaderboard_rows(models, None, quoted=False) if row["origin"] != "measured"]
    (made,) = leaderboard_tables(models, None)
    assert made.cells["kind"].iloc[0] == "measured" and made.cells["CIDEr"].iloc[0] == "3.500 [3.000, 4.000]"
    assert {"specialist", "generalist"} <= set(made.cells["kind"])
