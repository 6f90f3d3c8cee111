"""Tries and the study: where a notebook writes, which values it works with, and what is taken over into params.yaml."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from rsvlm.files import InUse, cache_folder, read_json, write_json
from rsvlm.study import paths
from rsvlm.study.config import check_params, params_text, quick_values, read_params
from rsvlm.study.recording import record_run
from rsvlm.study.settings import SECTIONS
from rsvlm.study.studies import main as studies
from rsvlm.study.studies import study_params, study_text
from rsvlm.study.workspace import begin, own_scratch, workspace

PROJECT = Path(__file__).resolve().parents[1]
TEXT = study_text("default")
DEFAULT, UCM = study_params("default"), study_params("ucm")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A root with the study's dvc.yaml, and nothing made yet."""
    (tmp_path / "dvc.yaml").write_text((PROJECT / "dvc.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(paths, "find_root", lambda: tmp_path)
    monkeypatch.setenv("RSVLM_CACHE", "a user's own")
    return tmp_path


def test_run_by_hand_a_notebook_has_its_own_outs_and_the_studys_inputs(project, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no data/aggregated: .*20_adapt_encoder.*`dvc repro aggregate_data`"):
        workspace("adapt_encoder").IMAGE_TABLE
    for folder in (
        "data/aggregated",
        "data/blue_marble",
        "data/features",
        "data/generated",
        "data/instructions",
        "reports/metrics",
    ):
        (project / folder).mkdir(parents=True)
    places, scratch = workspace("finetune_lora"), project / "scratch" / "40_finetune_lora"
    for name in ("FINETUNED", "METRICS", "CURVES", "CHECKPOINTS"):
        assert getattr(places, name) == scratch / paths.PLACES[name]
    for name in ("FEATURES", "IMAGE_TABLE", "ENCODER", "CACHE", "PARAMS", "ROOT", "SCORES"):
        assert getattr(places, name) == project / paths.PLACES[name]
    assert cache_folder() == places.CACHE, "whatever the user's environment says"
    assert str(places).startswith("Run by hand, a try: reads the study, writes below scratch/40_finetune_lora/ alone.")
    with pytest.raises(AttributeError, match="no place 'CAPTIONR'"):
        places.CAPTIONR

    monkeypatch.setattr(paths, "running_stage", "finetune_lora")
    study = workspace("finetune_lora")
    assert all(getattr(study, name) == project / place for name, place in paths.PLACES.items())
    assert str(study).startswith("Run as a stage of the study: writes models/finetuned")
    with pytest.raises(ValueError, match="'adapt_encoder'.* in a run of the stage 'finetune_lora'"):
        workspace("adapt_encoder")


def test_a_place_that_holds_other_stages_files_too_is_told_apart(project):
    stages = YAML(typ="safe", pure=True).load((project / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    for dep in (dep for entry in stages.values() for dep in entry.get("deps", []) if "$" not in dep):
        (project / dep).parent.mkdir(parents=True, exist_ok=True)
        (project / dep).touch()
    (project / "params.yaml").write_text(TEXT, encoding="utf-8")
    places, scratch = workspace("compare_with_paper"), project / "scratch" / "80_compare_with_paper"
    assert places.REPORTS == scratch / "reports" and places.TABLES == scratch / "reports" / "tables"
    assert places.METRICS == project / "reports" / "metrics" and places.SCORES == project / "reports" / "scores"
    assert workspace("generate_captions").GENERATED == project / "scratch/50_generate_captions/data/generated"
    assert workspace("caption_gallery").GENERATED == project / "data/generated"
    with pytest.raises(ValueError, match="no stage 'finetune'"):
        workspace("finetune")


def cell(stage: str, **changes) -> dict:
    """A notebook's names after its parameters cell ran, with some lines changed."""
    return quick_values(SECTIONS[stage]) | {"use_study_parameters": False, "go_on_from_scratch": False} | changes


def by_hand(project, stage: str = "finetune_lora", **changes):
    """A notebook of the default study that was begun by hand."""
    (project / "params.yaml").write_text(TEXT, encoding="utf-8")
    return begin(stage, cell(stage, **changes))


def test_by_hand_the_quick_values_count_and_what_differs_from_the_study_is_shown(project):
    settings, places = by_hand(project, lora_rank=8)
    assert settings.steps == 4 and settings.lora_rank == 8
    assert "Values: the notebook's quick ones, but changed here lora_rank = 8." in str(places)
    page = places._repr_html_()
    assert "A try." in page and "<td><code>steps</code></td><td><code>4</code></td>" in page
    assert "from params.yaml" in page and "rsvlm study adopt scratch/40_finetune_lora" in page
    assert read_json(project / "scratch/40_finetune_lora/parameters.json")["changed"] == {"lora_rank": 8}


def test_one_line_takes_the_studys_values_but_for_those_changed(project):
    study = DEFAULT["finetune_lora"]
    settings, places = by_hand(project, use_study_parameters=True, lora_rank=8)
    assert dict(settings) == study | {"lora_rank": 8}
    assert places.values.others == {"lora_rank": study["lora_rank"]} and "params.yaml" in str(places)
    settings, places = by_hand(project, use_study_parameters=True)
    assert dict(settings) == study and "differ" not in places._repr_html_() and "adopt" not in places._repr_html_()


def test_a_stage_takes_what_it_is_given(project, monkeypatch):
    monkeypatch.setattr(paths, "running_stage", "finetune_lora")
    study = UCM["finetune_lora"]
    settings, places = begin("finetune_lora", study | {"use_study_parameters": True})
    assert dict(settings) == study and not places.is_try
    assert "A stage of the study." in places._repr_html_() and "the default study" in places._repr_html_()
    assert not (project / "scratch").exists()


def test_values_are_escaped_on_the_page(project):
    _, places = by_hand(project, "generate_captions", prompt="<script>alert(1)</script>")
    assert "<script>" not in places._repr_html_()


def test_numbers_are_recorded_with_the_parameters_used_and_a_try_as_one(project, monkeypatch):
    _, places = by_hand(project, "encode_images", batch_size=4)
    places.record({"images": 3})
    saved = read_json(project / "scratch/30_encode_images/reports/metrics/encode_images.json")
    assert saved["images"] == 3 and saved["parameters"]["batch_size"] == 4
    assert saved["try"] == "scratch/30_encode_images" and not (project / "reports").exists()
    monkeypatch.setattr(paths, "running_stage", "encode_images")
    _, places = begin("encode_images", DEFAULT["encode_images"])
    places.record({"images": 3})
    assert "try" not in read_json(project / "reports/metrics/encode_images.json")


def test_a_try_goes_on_from_other_tries_where_that_is_asked_for(project):
    stages = YAML(typ="safe", pure=True).load((project / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    for dep in stages["compare_with_paper"]["deps"] + ["data/features", "data/aggregated"]:
        if dep.startswith(("reports", "data")):
            (project / dep).parent.mkdir(parents=True, exist_ok=True)
            write_json(project / dep, {"of": "the study"})
    scores = project / "scratch/60_score_captions/reports/metrics/score_captions.json"
    write_json(scores, {"of": "a try"})
    (project / "scratch/30_encode_images/data/features").mkdir(parents=True)

    _, places = by_hand(project, "compare_with_paper")
    assert {own["of"] for own in places.records().values()} == {"the study"}
    _, places = by_hand(project, "compare_with_paper", go_on_from_scratch=True)
    records = places.records()
    assert records["score_captions"] == {"of": "a try"} and records["aggregate_data"] == {"of": "the study"}
    assert "and scratch/60_score_captions/" in str(places)
    assert read_json(project / "reports/metrics/score_captions.json") == {"of": "the study"}, "as it was"
    _, places = by_hand(project, "finetune_lora", go_on_from_scratch=True)
    assert places.FEATURES == project / "scratch/30_encode_images/data/features"
    assert places.IMAGE_TABLE == project / "data/aggregated/images.parquet"


def test_a_try_is_not_recorded(project):
    for name in ("reports/tables/comparison.md", "params.yaml"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("")
    write_json(project / "reports/metrics.json", {"provenance": {}, "tries": ["scratch/60_score_captions"]})
    with pytest.raises(ValueError, match="made by hand in scratch/60_score_captions"):
        record_run("mine")
    assert not (project / "results" / "mine").exists()


def test_a_tries_changes_are_adopted_and_nothing_else_of_params_yaml_moves(project, capsys):
    by_hand(project, lora_rank=8, retrieval_weight=0.5, language_model="random:llama")
    mine = TEXT.replace("  lora_rank: 16  #", "  # tried 4 before\n  lora_rank: 16  # mine;")
    (project / "params.yaml").write_text(mine, encoding="utf-8")
    assert studies(["adopt", str(project / "scratch/40_finetune_lora")]) == 0
    assert "finetune_lora.lora_rank: 16 -> 8" in capsys.readouterr().out
    old, new = mine.splitlines(), (project / "params.yaml").read_text(encoding="utf-8").splitlines()
    changed = [(a, b) for a, b in zip(old, new, strict=True) if a != b]
    assert len(changed) == 3 and any(b.startswith("  lora_rank: 8  # mine;") for _, b in changed)
    assert read_params(project / "params.yaml")["finetune_lora"]["language_model"] == "random:llama"

    by_hand(project)
    assert studies(["adopt", str(project / "scratch/40_finetune_lora")]) == 1
    assert "nothing was changed" in capsys.readouterr().err
    assert studies(["adopt", str(project / "scratch/40")]) == 1


def test_all_sections_are_checked_before_the_first_stage(tmp_path):
    path = tmp_path / "params.yaml"
    text = TEXT
    path.write_text(text, encoding="utf-8")
    check_params(path, paths.find_root())
    path.write_text(text.replace("  human_draws: 5", "  human_draw: 5").replace("  beams: ", "  beams: -"))
    with pytest.raises(ValueError) as caught:
        check_params(path, paths.find_root())
    told = str(caught.value)
    assert "did you mean 'human_draws'" in told and "section 'score_captions'" in told
    assert "'beams' is -" in told, "all sections at once"
    path.write_text(text.replace("adapt_encoder:\n", "adapt_encodr:\n"))
    with pytest.raises(ValueError, match="no stage has a section 'adapt_encodr'; did you mean 'adapt_encoder'"):
        check_params(path, paths.find_root())
    path.write_text(params_text({}, "").split("\nretrieval_gallery:")[0] + "\n")
    with pytest.raises(ValueError, match="the section 'retrieval_gallery' is missing"):
        check_params(path, paths.find_root())


@pytest.mark.parametrize(
    ("notebook", "start"),
    [
        ("10_aggregate_data", "begin('aggregate_data', quick_values(SECTIONS['aggregate_data']))"),
        ("91_scenes", "own_scratch('91_scenes')"),  # of no stage
    ],
)
def test_a_second_kernel_of_a_notebook_run_by_hand_is_refused(project, notebook, start):
    code = (
        "import sys; from pathlib import Path; from rsvlm.study import paths; from rsvlm.study.workspace import *\n"
        "from rsvlm.study.config import quick_values; from rsvlm.study.settings import SECTIONS\n"
        f"for _ in range(2): {start}\n"  # its cell twice: fine
        "print('begun', flush=True); sys.stdin.read()"
    )
    settings = os.environ | {"RSVLM_ROOT": str(project), "PYTHONPATH": str(PROJECT)}
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    names = {"begin": begin, "own_scratch": own_scratch, "quick_values": quick_values, "SECTIONS": SECTIONS}
    with subprocess.Popen([sys.executable, "-c", code], env=settings, cwd=project, **pipes) as first:
        while "begun" not in first.stdout.readline():
            assert first.poll() is None
        told = rf"scratch/{notebook}/: one kernel of {notebook}.ipynb at a time.*process {first.pid}, since"
        with pytest.raises(InUse, match=told):
            eval(start, names)
        begin("score_captions", quick_values(SECTIONS["score_captions"]))
        first.stdin.close()
    eval(start, names)
    locks = {one.name for one in (project / paths.PLACES["LOCKS"]).iterdir()}
    assert locks == {f"{notebook}.lock", "60_score_captions.lock"}


def test_a_closed_project_is_told_in_a_line(project, monkeypatch):
    def closed(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(project / "scratch"))

    monkeypatch.setattr(Path, "mkdir", closed)
    with pytest.raises(ValueError, match=r"scratch: the disk is read-only; change that, or work on a copy"):
        begin("aggregate_data", quick_values(SECTIONS["aggregate_data"]))
