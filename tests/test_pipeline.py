"""dvc.yaml, the notebooks and the parameter files fit together, and the smoke study runs from end to end."""

import ast
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import chaos
import nbformat
import pytest
from nbclient import NotebookClient
from ruamel.yaml import YAML
from study_case import copy_with_study, dvc

import rsvlm.study.paths
from rsvlm.files import fingerprint_file, read_json_lines, write_json_lines
from rsvlm.scoring.retrieval_study import PROTOCOLS
from rsvlm.scoring.runs import STUDY_RUNS
from rsvlm.study.config import PARAMETERS_TAG, check_section, defaults, parameters_cell, read_params
from rsvlm.study.settings import SECTIONS
from rsvlm.study.strip import as_text, stripped
from rsvlm.study.studies import checked_changes, show_differences, study_names, study_params, study_text

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import deps  # noqa: E402  scripts/deps.py

PIPELINE = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
STAGES = deps.stages()
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
STUDIES = sorted((ROOT / "params").glob("*.yaml"))


# dvc.yaml


def test_the_stages_are_the_notebooks_in_their_order():
    assert list(STAGES) == [
        "aggregate_data", "make_instructions", "adapt_encoder", "encode_images", "add_languages", "finetune_lora", "generate_captions",
        "score_captions", "score_retrieval", "score_languages", "run_model", "score_instructions", "leaderboard", "compare_with_paper",
        "caption_gallery", "retrieval_gallery",
        "search_earth",
        "search_mosaics",
    ]  # fmt: skip
    stages = [stage for stage in PIPELINE["stages"] if stage != "model_files"]  # looks at files for run_model
    assert stages == ["check_params", "strip", *STAGES, "notebook_pages"]
    missing = [name for name in STAGES.values() if not (ROOT / "notebooks" / f"{name}.ipynb").is_file()]
    assert not missing


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_has_one_name_in_every_place(stage):
    entry, notebook = PIPELINE["stages"][stage], STAGES[stage]
    if stage == "run_model":  # once for each of its models: a new one makes no other run again
        entry, notebook = entry["do"], f"{notebook}_${{key}}"
        assert entry["cmd"] == f"python -m rsvlm.study.run {stage} --model ${{key}}"
        names = {name for name in SECTIONS[stage].model_fields if name not in ("model", "models")}
        assert set(entry["params"]) == {f"{stage}.models.${{key}}", *(f"{stage}.{name}" for name in names)}
        assert f"reports/notebooks/{notebook}.ipynb" in entry["outs"]
        return
    commands = entry["cmd"] if isinstance(entry["cmd"], list) else [entry["cmd"]]
    assert f"python -m rsvlm.study.run {stage}" in commands
    compares = stage in ("leaderboard", "score_instructions")  # they show the other models beside the study's
    assert entry["params"] == ([stage, "run_model.models"] if compares else [stage])
    assert [dep for dep in entry["deps"] if dep != "build/params_checked"][0] == f"build/notebooks/{notebook}.ipynb"
    assert f"reports/notebooks/{notebook}.ipynb" in entry["outs"]


def test_each_stage_depends_on_what_its_notebook_imports():
    lines = deps.disagreements()
    assert not lines, "run `python scripts/deps.py`, or in dvc.yaml:\n" + "\n".join(lines)


def test_the_generated_captions_are_outs_one_by_one():
    outs = [out for out in PIPELINE["stages"]["generate_captions"]["outs"] if out.startswith("data/generated")]
    assert outs == [f"data/generated/{run}.jsonl" for run in sorted(STUDY_RUNS)]


@pytest.mark.parametrize("stage", STAGES)
def test_a_notebook_begins_with_its_own_settings_and_places(stage):
    notebook = nbformat.read(ROOT / "notebooks" / f"{STAGES[stage]}.ipynb", as_version=4)
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert code.count(f'settings, places = begin("{stage}", globals())') == 1 == code.count("begin(")
    found = re.findall(r"rsvlm.study.(?:paths|workspace).*|\bpaths\..*", code)
    assert found == ["rsvlm.study.workspace import begin"]


def test_every_out_is_cached_and_no_checkpoint_is_an_out():
    for stage, entry in PIPELINE["stages"].items():
        for out in entry.get("do", entry)["outs"]:
            assert isinstance(out, str), f"{stage}: {out}: an option such as `cache: false` switches off the run cache"
            assert not out.startswith(".rsvlm"), f"{stage}: DVC deletes outs before a run"


@pytest.mark.parametrize("stage", sorted(deps.EXPENSIVE))
def test_a_change_of_a_plot_makes_nothing_expensive_run_again(stage):
    entry = PIPELINE["stages"][stage]
    listed = entry.get("do", entry)["deps"]
    assert not [dep for dep in listed if dep.startswith("rsvlm/viewing")]
    # nor through what runs before it: a data out of a stage may not depend on its pictures
    assert "rsvlm/study/run.py" not in listed and "rsvlm" not in listed


@pytest.mark.parametrize("stage", STAGES)
def test_the_places_a_stage_uses_are_its_deps_or_outs(stage):
    entry = PIPELINE["stages"][stage]
    entry = entry.get("do", entry)
    known = [f"{place}/" for place in (*entry["deps"], *entry["outs"])]
    for name in sorted(deps.named_places(stage)):
        place = getattr(rsvlm.study.paths, name)
        short = f"{place.relative_to(rsvlm.study.paths.ROOT).as_posix()}/"
        if short in ("./", "reports/") or short.split("/")[0] in (
            ".rsvlm",
            "data_cards",
            "results",
            "notebooks",
            "params.yaml",
        ):
            continue  # roots, scratch, and what people write
        inside = [other for other in known if other.startswith(short) or short.startswith(other)]
        assert inside, f"{name} ({short}) is used by {stage}, whose deps and outs in dvc.yaml do not have it"


# Notebooks


@pytest.mark.parametrize("stage", STAGES)
def test_a_notebook_imports_in_one_cell_and_begins_there(stage):
    cells = nbformat.read(ROOT / "notebooks" / f"{STAGES[stage]}.ipynb", as_version=4).cells
    kinds = (ast.Import, ast.ImportFrom)
    codes = [deps._plain(cell.source) for cell in cells if cell.cell_type == "code"]
    (own,) = [code for code in codes if any(isinstance(node, kinds) for node in ast.walk(ast.parse(code)))]
    assert f'settings, places = begin("{stage}", globals())' in own.splitlines()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_tells_the_story_and_the_package_does_the_work(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert re.fullmatch(r"\d\d_[a-z]+(_[a-z]+)*", path.stem)
    assert path.read_text(encoding="utf-8") == as_text(stripped(notebook)), "run `make strip` before a commit"
    assert len(notebook.cells) <= 25 and notebook.cells[0].cell_type == "markdown"
    for before, cell in zip(notebook.cells, notebook.cells[1:], strict=False):
        if cell.cell_type != "code":
            continue
        assert before.cell_type == "markdown", f"no prose before the cell {cell.source[:60]!r}"
        tree = ast.parse(deps._plain(cell.source))
        if "parameters" not in cell.metadata.get("tags", []):
            kinds = (ast.Import, ast.ImportFrom)
            statements = sum(isinstance(node, ast.stmt) and not isinstance(node, kinds) for node in ast.walk(tree))
            assert statements <= 12, f"{statements} statements: {cell.source[:60]!r}"
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.While)
        assert not [node for node in ast.walk(tree) if isinstance(node, kinds)], (
            f"work for the package: {cell.source[:60]!r}"
        )


# Parameter files


def test_params_yaml_holds_one_section_a_stage_in_their_order():
    content = read_params(ROOT / "params.yaml")
    assert list(content) == list(STAGES) == list(SECTIONS)
    for stage, values in content.items():
        check_section(values, SECTIONS[stage], file="params.yaml", section=stage, notebook=f"notebooks/{STAGES[stage]}")


@pytest.mark.parametrize("stage", STAGES)
def test_a_notebooks_parameters_are_the_stages_settings(stage):
    notebook = nbformat.read(ROOT / "notebooks" / f"{STAGES[stage]}.ipynb", as_version=4)
    cells = [cell.source for cell in notebook.cells if PARAMETERS_TAG in cell.metadata.get("tags", [])]
    assert cells == [parameters_cell(SECTIONS[stage])], "run `rsvlm study sync`"


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_holds_only_what_differs_from_the_default(path):
    changes = checked_changes(read_params(path), path)
    same = [f"{s}.{k}" for s, values in changes.items() for k in values if values[k] == defaults(SECTIONS[s])[k]]
    assert not same
    assert [section for section in SECTIONS if section in changes] == list(changes)


@pytest.mark.parametrize("name", study_names())
def test_a_study_put_in_place_is_whole_and_says_what_everything_means(name, tmp_path):
    (tmp_path / "params.yaml").write_text(study_text(name), encoding="utf-8")
    content = read_params(tmp_path / "params.yaml")
    assert content == study_params(name)
    lines = study_text(name).splitlines()
    assert not [line for line in lines if re.match(r"  [a-z_]+:", line) and "#" not in line]


def test_a_fresh_clone_holds_the_default_study():
    committed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "params.yaml"], cwd=ROOT, capture_output=True)
    if committed.returncode == 1:
        pytest.skip("params.yaml was edited, or another study is in place")
    assert (ROOT / "params.yaml").read_text() == study_text("default"), "run `rsvlm study sync`"


def test_what_a_study_changes_is_shown_and_mistakes_in_it_are_named(tmp_path):
    assert show_differences("default") == ["default: the default study, nothing differs"]
    shown = "\n".join(show_differences("ucm"))
    assert re.search(r"^adapt_encoder.epochs +2 +14$", shown, re.M) and "aggregate_data.seed" not in shown
    for text, message in (
        ("adapt_encoder: {epoch: 3}", r"mine.yaml, section 'adapt_encoder':.*'epoch'; did you mean 'epochs'"),
        ("adapt_encodr: {epochs: 3}", "no section 'adapt_encodr'; did you mean 'adapt_encoder'"),
        ("adapt_encoder: {epochs: -1}", "'epochs' is -1, but must be at least 0"),
    ):
        (tmp_path / "mine.yaml").write_text(text)
        with pytest.raises(ValueError, match=re.compile(message, re.S)):
            checked_changes(read_params(tmp_path / "mine.yaml"), tmp_path / "mine.yaml")


def test_a_changed_meaning_is_written_into_every_place_and_values_stay(scratch_root):
    shutil.copytree(ROOT / "notebooks", scratch_root / "notebooks")
    text = study_text("ucm").replace("epochs: 14", "epochs: 9")
    text = text.replace("  epochs: 9", "  # as many as the night allows\n  # (mine)\n  epochs: 9")
    text = text.replace("\n\nencode_images:", "\n  # tried: 12\n\nencode_images:")
    (scratch_root / "params.yaml").write_text(text.replace("# passes over", "# goes over"))
    path = scratch_root / "notebooks" / "20_adapt_encoder.ipynb"
    path.write_text(path.read_text(encoding="utf-8").replace("# quarter turns", "# turns"), encoding="utf-8")
    command = [sys.executable, "-m", "rsvlm", "study", "sync"]
    done = subprocess.run(command, cwd=scratch_root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["params.yaml", "notebooks/20_adapt_encoder.ipynb"]
    assert (scratch_root / "params.yaml").read_text() == text
    assert path.read_bytes() == (ROOT / "notebooks" / path.name).read_bytes()


# DVC on a small project: what JupyterLab leaves, and how -S arrives

TOY = """
stages:
  strip:
    cmd: python -m rsvlm.study.strip 10_toy
    deps: [notebooks/10_toy.ipynb]
    outs: [build/notebooks/10_toy.ipynb]
  toy:
    cmd: python show.py
    deps: [build/notebooks/10_toy.ipynb]
    params: [toy]
    outs: [seen.txt]
"""
SHOW = """
from pathlib import Path
from rsvlm.study.config import check_section, read_section, settings_of
import nbformat
notebook = nbformat.read("build/notebooks/10_toy.ipynb", as_version=4)
section, kind = read_section(Path("params.yaml"), "toy"), settings_of("toy", notebook, "10_toy")
values = check_section(section, kind, file="params.yaml", section="toy", notebook="10_toy")
Path("seen.txt").write_text(repr(values))
Path("runs.txt").open("a").write("x")
"""


@pytest.fixture
def toy_project(scratch_root):
    """A git and DVC project with one notebook that a stage reads the parameters of."""
    cells = [
        nbformat.v4.new_code_cell("rank: int = 8\nrate: float = 1.0e-3", id="params", metadata={"tags": ["parameters"]})
    ]
    (scratch_root / "notebooks").mkdir()
    (scratch_root / "notebooks" / "10_toy.ipynb").write_text(as_text(stripped(nbformat.v4.new_notebook(cells=cells))))
    (scratch_root / "dvc.yaml").write_text(TOY)
    (scratch_root / "show.py").write_text(SHOW)
    (scratch_root / "params.yaml").write_text("toy:\n  rank: 8  # kept\n  rate: 1.0e-3\n")
    (scratch_root / ".gitignore").write_text("/build\n/seen.txt\n/runs.txt\n")
    shutil.copytree(ROOT / ".dvc", scratch_root / ".dvc", ignore=lambda *_: ["tmp", "cache", "config.local"])
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "toy"]):
        subprocess.run([*git, *command], cwd=scratch_root, check=True)
    return scratch_root


def test_set_parameters_arrive_typed_and_opening_a_notebook_runs_nothing(toy_project):
    dvc(toy_project, "exp", "run", "-S", "toy.rank=16", "-S", "toy.rate=3e-5")
    assert ast.literal_eval((toy_project / "seen.txt").read_text()) == {"rank": 16, "rate": 3e-5}

    path = toy_project / "notebooks" / "10_toy.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].execution_count = 3
    notebook.cells[0].outputs = [nbformat.v4.new_output("stream", text="ran")]
    notebook.metadata["language_info"] = {"name": "python", "version": "3.13.1"}
    nbformat.write(notebook, path)
    dvc(toy_project, "repro")
    assert (toy_project / "runs.txt").read_text() == "x", "the stage ran once, for the experiment"


WATCHED = """
stages:
  aggregate_data:
    cmd: >-
      python -c "from pathlib import Path; from rsvlm.study.config import check_values, read_section;
      values = read_section(Path('params.yaml'), 'aggregate_data');
      check_values(values, Path.cwd(), file='params.yaml', section='aggregate_data'); open('out.txt', 'a').write('x')"
    params: [aggregate_data]
    deps: ["${aggregate_data.data_root}"]
    outs: [{out.txt: {persist: true}}]
"""


def test_no_source_escapes_the_folder_that_dvc_watches(scratch_root, tmp_path):
    """DVC notices an edit of what the check lets pass; a linked folder and a file elsewhere are refused."""
    raw, elsewhere = scratch_root / "raw", tmp_path / "elsewhere"
    for folder in (raw / "imgs", elsewhere / "imgs"):
        folder.mkdir(parents=True)
        (folder.parent / "t.csv").write_text("image,caption,split\na.png,a river,train\n")
    (raw / "linked.csv").symlink_to(elsewhere / "t.csv")
    (raw / "linked").symlink_to(elsewhere)
    shutil.copytree(ROOT / ".dvc", scratch_root / ".dvc", ignore=lambda *_: ["tmp", "cache", "config.local"])
    (scratch_root / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n")
    (scratch_root / "dvc.yaml").write_text(WATCHED)

    def study(annotations: str) -> None:
        source = {"name": "s", "format": "caption_table", "images": "imgs", "annotations": annotations}
        section = {"sources": [source], "data_root": "raw", "allow_missing_images": False, "max_images_per_split": None}
        (scratch_root / "params.yaml").write_text(json.dumps({"aggregate_data": section}))

    for annotations, edited in (("t.csv", raw / "t.csv"), ("linked.csv", elsewhere / "t.csv")):
        study(annotations)
        dvc(scratch_root, "repro")
        assert json.loads(dvc(scratch_root, "status", "--json")) == {}
        edited.write_text(edited.read_text() + "b.png,a field,test\n")
        assert "aggregate_data" in json.loads(dvc(scratch_root, "status", "--json")), annotations
        dvc(scratch_root, "repro")
    assert (scratch_root / "out.txt").read_text() == "xxxx"
    refused = ((str(elsewhere / "t.csv"), "leads out of data_root"), ("linked/t.csv", "does not look behind it"))
    for annotations, message in refused:
        study(annotations)
        with pytest.raises(AssertionError, match=message):
            dvc(scratch_root, "repro")


# The smoke study


@pytest.fixture(scope="module")
def smoke_study(tmp_path_factory):
    """A copy of the project without git and data, in which the smoke study ran."""
    with copy_with_study(tmp_path_factory.mktemp("smoke") / "a study", "smoke") as root:
        dvc(root, "repro")
        yield root


def test_the_smoke_study_makes_every_result(smoke_study):
    for stage, entry in PIPELINE["stages"].items():
        for out in entry.get("do", entry)["outs"]:
            for name in {"strip": STAGES.values(), "model_files": [], "run_model": []}.get(stage, [""]):  # none listed
                assert (smoke_study / out.replace("${item}", name)).exists(), f"{stage}: {out}"
    metrics = json.loads((smoke_study / "reports" / "metrics.json").read_text(encoding="utf-8"))
    assert {"constant", "nearest", "consensus", "shuffled", "captioner"} <= set(metrics["captions"])
    assert {"dual_encoder", "ret", "combined", "reranked"} == set(metrics["retrieval"])
    protocols = metrics["retrieval_protocols"]["dual_encoder"]["blue_marble"]
    assert set(protocols) == set(PROTOCOLS)
    assert metrics["captions"]["captioner"]["blue_marble"]["CLIPScore"]["value"] is not None
    assert metrics["protocol"]["retrieval"]["reranked"]["top"] == 3 and metrics["parameters"]["score_retrieval"]
    for figures in (metrics["captions"]["captioner"], metrics["retrieval"]["combined"]):
        for entry in figures.values():
            name = "CIDEr" if "CIDEr" in entry else "mean_recall"
            assert {"value", "low", "high", "n"} <= set(entry[name])
    assert {"seed", "packages", "git_commit", "code"} <= set(metrics["provenance"])


def test_executed_notebooks_hold_nothing_that_changes(smoke_study):
    for path in sorted((smoke_study / "reports" / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        assert set(notebook.metadata) <= {"kernelspec", "language_info"}
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        assert outputs, f"{path.name} shows nothing"
        text = json.dumps(outputs)
        assert not re.search(r"\bat 0x[0-9a-f]{6,}", text), f"{path.name}: an address in memory"
        assert not re.search(r"#T_[0-9a-f]{5}", text), f"{path.name}: a table's random id (set_uuid)"
        assert not [output for output in outputs if output.get("name") == "stderr"]


def test_nothing_that_stages_made_holds_a_path_of_this_machine(smoke_study):
    told = str(smoke_study)
    for name in chaos.bytes_of(smoke_study):
        content = (smoke_study / name).read_bytes()
        assert told.encode() not in content and json.dumps(told)[1:-1].encode() not in content, name


def test_a_second_run_has_nothing_to_do(smoke_study):
    lock = (smoke_study / "dvc.lock").read_bytes()
    said = dvc(smoke_study, "repro")
    assert "Running stage" not in said and "up to date" in said
    assert (smoke_study / "dvc.lock").read_bytes() == lock


def test_a_stage_killed_while_it_trains_ends_with_every_byte_of_an_unbroken_run(smoke_study):
    before = chaos.bytes_of(smoke_study)
    study = chaos.Study(smoke_study, before, {}, smoke_study)
    running = study.repro("finetune_lora")
    checkpoints = smoke_study / ".rsvlm" / "checkpoints"
    while not list(checkpoints.rglob("step_*/state.json")):
        assert running.poll() is None
        time.sleep(0.002)
    chaos.find_child(running, chaos.VICTIMS["stage"]).kill()
    assert running.wait() != 0 and not (smoke_study / "models" / "finetuned" / "config.json").exists()
    study.check("finetune_lora")
    assert "continuing from step" in study.said.read_text()
    assert not list(smoke_study.rglob("*.part")) and not list(checkpoints.rglob("*.*"))


def test_the_summary_and_dvc_show_the_result(smoke_study):
    command = [sys.executable, "-m", "rsvlm.study.summary"]
    said = subprocess.run(command, cwd=smoke_study, capture_output=True, text=True, check=True).stdout
    assert "other languages: mean recall pt " in said
    assert "Study: smoke" in said and "CIDEr" in said and "reports/galleries/captions.html" in said
    shown = dvc(smoke_study, "metrics", "show", "--md")
    assert "CIDEr.captioner" in shown and "mean_recall.combined" in shown
    plots = dvc(smoke_study, "plots", "show", "--json")
    assert "captioner, training" in plots and "retrieval_loss" in plots and "encoder, validation" in plots


def run_by_hand(root: Path, name: str, *, study_parameters: bool = True) -> nbformat.NotebookNode:
    """A notebook as JupyterLab runs it, with the smoke study's parameters or with its own."""
    notebook = nbformat.read(root / "notebooks" / f"{name}.ipynb", as_version=4)
    for cell in notebook.cells if study_parameters else ():
        cell.source = cell.source.replace("use_study_parameters = False", "use_study_parameters = True")
    resources = {"metadata": {"path": str(root / "notebooks")}}
    return NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()


def bytes_of(root: Path, folders: Iterable[str]) -> dict[str, str]:
    """Path -> SHA-256 of every file in some folders."""
    files = [path for folder in folders for path in sorted((root / folder).rglob("*")) if path.is_file()]
    return {path.relative_to(root).as_posix(): fingerprint_file(path) for path in files}


def test_notebooks_run_by_hand_leave_the_study_as_it_is(smoke_study):
    (smoke_study / "results").mkdir(exist_ok=True)
    before = bytes_of(smoke_study, ["data", "models", "reports", "results", "user", "build", "notebooks"])
    stages = {name: stage for stage, name in STAGES.items()}
    for name in (
        "10_aggregate_data",
        "50_generate_captions",
        "70_score_retrieval",
        "80_compare_with_paper",
        "90_browse",
        "91_scenes",
    ):
        executed, stage = run_by_hand(smoke_study, name), stages.get(name)
        if stage is None:
            continue
        shown = [output.get("data", {}) for cell in executed.cells for output in cell.get("outputs", [])]
        told = [data["text/plain"] for data in shown if "A try." in data.get("text/html", "")]
        assert len(told) == 1 and f"reads the study, writes below scratch/{name}/ alone" in told[0]
        assert "Values: those of params.yaml." in told[0]
        for out in PIPELINE["stages"][stage]["outs"]:
            # an executed copy, and what the stage's other commands make, are no work of the notebook
            others = ("reports/headline.json", "reports/model_card.md")
            if not out.startswith("reports/notebooks/") and out not in others:
                assert (smoke_study / "scratch" / name / out).exists(), out
    assert bytes_of(smoke_study, ["data", "models", "reports", "results", "user", "build", "notebooks"]) == before
    assert json.loads(dvc(smoke_study, "status", "--json")) == {}


@pytest.mark.parametrize(
    "name", ["15_make_instructions", "35_add_languages", "45_instructions", "76_score_instructions"]
)
def test_run_all_with_a_notebooks_own_values_works_behind_a_finished_study(smoke_study, name):
    run_by_hand(smoke_study, name, study_parameters=False)
    made = {"15": "data/instructions/tasks.jsonl", "35": "models/languages", "76": "data/answers"}.get(name[:2])
    assert made is None or (smoke_study / "scratch" / name / made).exists()
    assert json.loads(dvc(smoke_study, "status", "--json")) == {}


def test_nothing_that_a_person_put_into_a_folder_is_deleted(smoke_study):
    theirs = smoke_study / "data" / "generated" / "theirs.jsonl"
    ids = [row["image_id"] for row in read_json_lines(smoke_study / "data" / "generated" / "beam.jsonl")]
    write_json_lines(theirs, [{"image_id": image_id, "caption": "a wide grey sea ."} for image_id in ids])
    content = theirs.read_bytes()
    with pytest.raises(AssertionError, match=r"theirs\.jsonl: not a run of this study.*user/captions"):
        dvc(smoke_study, "repro", "score_captions")
    assert theirs.read_bytes() == content

    moved = smoke_study / "user" / "captions" / theirs.name
    theirs.rename(moved)
    assert {"score_captions", "caption_gallery"} <= set(json.loads(dvc(smoke_study, "status", "--json")))
    said = dvc(smoke_study, "repro", "score_captions")
    assert "Running stage 'score_captions'" in said and "Running stage 'generate_captions'" not in said
    metrics = json.loads((smoke_study / "reports" / "metrics" / "score_captions.json").read_text(encoding="utf-8"))
    assert metrics["theirs"]["blue_marble"]["released"]["CIDEr"]["value"] is not None
    assert moved.read_bytes() == content
    moved.write_bytes(content.replace(b"grey", b"blue"))
    assert "score_captions" in json.loads(dvc(smoke_study, "status", "--json"))


def test_a_changed_plot_trains_nothing_again(smoke_study):
    (smoke_study / "user" / "captions" / "theirs.jsonl").unlink(missing_ok=True)
    dvc(smoke_study, "repro")
    assert json.loads(dvc(smoke_study, "status", "--json")) == {}
    path = smoke_study / "rsvlm" / "viewing" / "plots.py"
    path.write_text(path.read_text(encoding="utf-8") + "\n# another colour\n", encoding="utf-8")
    changed = set(json.loads(dvc(smoke_study, "status", "--json")))
    assert changed and not changed & deps.EXPENSIVE, "a change of a plot must not train again"
