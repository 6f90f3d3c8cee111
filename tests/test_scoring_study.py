"""The whole scoring path on fabricated runs: both notebooks' cells, the files they write, and the record of a run."""

import base64
import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from rsvlm.data.table import save_table
from rsvlm.files import read_json, write_json, write_json_lines
from rsvlm.scoring.caption_study import paired_table, score_study, text_table
from rsvlm.scoring.captions import class_names, describe_texts, hallucinated_classes
from rsvlm.scoring.runs import read_captions, read_runs
from rsvlm.study.recording import recorded_text, slim_pictures
from rsvlm.study.studies import study_text

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
PARAMS = study_text("default")
RECALLS = [f"{way}_recall_at_{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)] + ["mean_recall"]
RUN_CELLS = """
import json, sys
import matplotlib; matplotlib.use("Agg")
from rsvlm.study import paths
space = {}
for path in sys.argv[1:]:
    paths.running_stage = path.rsplit("/", 1)[1].split("_", 1)[1].removesuffix(".ipynb")
    for cell in json.load(open(path, encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), space)
        if "parameters" in cell["metadata"].get("tags", []) and "clip_score" in space:
            space["clip_score"] = False  # the smoke study has an encoder, this one has none
"""


def caption_rows():
    """Two sources; ucm's first test image has the reference set of a training image."""
    things = ["river", "forest", "airport", "harbor", "desert", "farm"]
    rows = []
    for source in ("blue_marble", "ucm"):
        for number, split in enumerate(["train", "train", "train", "test", "test", "test"]):
            thing = things[number % 3] if source == "ucm" and number == 3 else things[number]
            captions = [
                f"There is a {thing} <b>here</b>.",
                f"a {thing} | seen from above",
                f"there is a {thing} <b>here</b>",
            ]
            row = {"image_id": f"{source}/{number}.jpg", "source": source, "split": split, "path": f"x/{number}.jpg"}
            rows.append(row | {"captions": captions, "label": None})
    return rows


@pytest.fixture
def study(scratch_root):
    """A scratch project with a caption table, three runs and retrieval metrics."""
    rows = caption_rows()
    shutil.copy(NOTEBOOKS.parent / "dvc.yaml", scratch_root)
    (scratch_root / "params.yaml").write_text(PARAMS, encoding="utf-8")
    save_table(rows, scratch_root / "data/aggregated/images.parquet")
    tested = [row for row in rows if row["split"] == "test"]
    for run, captions in {
        "captioner": [row["captions"][1] for row in tested],
        "consensus": ["a river | seen from above"] * len(tested),
        "shuffled": ["", *(row["captions"][0] for row in tested[:-1])],
    }.items():
        generated = [{"image_id": row["image_id"], "caption": text} for row, text in zip(tested, captions)]
        write_json_lines(scratch_root / f"data/generated/{run}.jsonl", generated)
    entry = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 3}
    blocks = {name: dict.fromkeys(RECALLS, entry) for name in ("by_image", "by_text", "ceiling")}
    methods = {method: {"ucm": blocks, "blue_marble": blocks} for method in ("dual_encoder", "ret", "combined")}
    write_json(scratch_root / "reports/metrics/generate_captions.json", {"weights": {"pool": 1.0}})
    for stage in ("aggregate_data", "adapt_encoder", "encode_images", "finetune_lora"):
        write_json(scratch_root / f"reports/metrics/{stage}.json", {"parameters": {"seed": 0}})
    protocol = {"split": "test", "name": "remoteclip"}
    write_json(scratch_root / "reports/metrics/score_retrieval.json", methods | {"protocol": protocol})
    names = [(method, source) for method in ("dual_encoder", "ceiling") for source in ("ucm", "blue_marble")]
    curves = [
        (*name, "by_image", way, k, k / 20)
        for name in names
        for way in ("image_to_text", "text_to_image")
        for k in range(1, 21)
    ]
    (scratch_root / "reports/scores").mkdir()
    columns = ["method", "source", "match", "direction", "k", "recall"]
    pd.DataFrame(curves, columns=columns).to_csv(scratch_root / "reports/scores/retrieval_curves.csv", index=False)
    return scratch_root


def run_cells(*names):
    paths = [str(NOTEBOOKS / name) for name in names]
    return subprocess.run([sys.executable, "-c", RUN_CELLS, *paths], capture_output=True, text=True, timeout=300)


def test_notebooks_write_scores_table_and_record(study):
    done = run_cells("60_score_captions.ipynb", "80_compare_with_paper.ipynb")
    assert done.returncode == 0, done.stderr

    scores = read_json(study / "reports/metrics/score_captions.json")
    assert set(scores) == {"captioner", "consensus", "shuffled", "human", "paired", "parameters", "protocol"}
    ucm = scores["captioner"]["ucm"]
    assert set(ucm) == {"released", "distinct", "seen", "unseen", "text", "classes"}
    assert ucm["released"]["CIDEr"]["value"] > scores["consensus"]["ucm"]["released"]["CIDEr"]["value"]
    assert set(ucm["released"]["CIDEr"]) == {"value", "low", "high", "n"} and ucm["released"]["CIDEr"]["n"] == 3
    assert ucm["released"]["SPICE"]["value"] is None and "jars missing" in ucm["released"]["SPICE"]["reason"]
    assert (ucm["seen"]["CIDEr"]["n"], ucm["unseen"]["CIDEr"]["n"]) == (1, 2)
    assert scores["captioner"]["blue_marble"]["seen"]["CIDEr"]["value"] is None
    assert ucm["text"]["copied"] == pytest.approx(1 / 3, abs=1e-6)
    pair = scores["paired"]["ucm"]["captioner - consensus"]["released"]
    assert pair["value"] > 0 and 0 < pair["p"] <= 1
    assert {f"captioner - {run}" for run in ("consensus", "human", "shuffled")} < set(scores["paired"]["ucm"])
    metrics = scores["paired"]["ucm"]["consensus - shuffled"]["metrics"]
    assert {"BLEU-4", "METEOR", "ROUGE_L", "CIDEr"} < set(metrics["released"]) and "SPICE" not in metrics["released"]
    assert metrics["released"]["BLEU-1"]["value"] == pytest.approx(
        scores["consensus"]["ucm"]["released"]["BLEU-1"]["value"]
        - scores["shuffled"]["ucm"]["released"]["BLEU-1"]["value"],
        abs=2e-6,
    )
    table = paired_table(scores, "ucm")
    assert set(table["references"]) == {"released", "distinct"} and len(table[table["metric"] == "CIDEr"]) == 6
    assert ucm["seen"]["BLEU-4"]["n"] == 1 and "reason" in scores["captioner"]["blue_marble"]["seen"]["METEOR"]
    assert scores["protocol"]["sources"]["ucm"] == {
        "images": 3, "references": 9, "distinct_references": 9, "training_images": 3,
    }  # fmt: skip
    described = text_table(scores, "ucm")
    assert described.loc["consensus", "distinct_captions"] == 1 and "river" in described.loc["consensus", "most often"]
    assert "fixed" in scores["protocol"]["interval"] and scores["human"]["ucm"]["released"]["CIDEr"]["draws"] == 5

    rows = list(csv.DictReader((study / "reports/scores/captions.csv").open()))
    assert {row["run"] for row in rows} == {"captioner", "consensus", "shuffled", "human"}
    mine = [row for row in rows if (row["run"], row["source"], row["references"]) == ("captioner", "ucm", "released")]
    assert [row["image_id"] for row in mine] == ["ucm/3.jpg", "ucm/4.jpg", "ucm/5.jpg"]
    assert sum(float(row["CIDEr"]) for row in mine) / 3 == pytest.approx(ucm["released"]["CIDEr"]["value"], abs=1e-5)

    metrics = read_json(study / "reports/metrics.json")
    assert metrics["captions"]["captioner"]["ucm"]["CIDEr"] == ucm["released"]["CIDEr"]
    assert metrics["retrieval"]["combined"]["ucm"]["mean_recall"]["value"] == 0.5
    assert metrics["provenance"]["seed"] == 0 and metrics["generation"] == {"weights": {"pool": 1.0}}
    assert metrics["parameters"]["aggregate_data"] == {"seed": 0}
    assert metrics["parameters"]["score_captions"] == scores["parameters"], "those used, not those of the file"
    markdown = (study / "reports/tables/comparison.md").read_text()
    assert "RS-CapRet 7B, fine-tuned | specialist | recalled" in markdown
    assert (
        "not run: jars missing" in markdown
        and "\\begin{tabular}" in (study / "reports/tables/comparison.tex").read_text()
    )
    assert (study / "reports/tables/comparison_ucm.png").stat().st_size > 10_000
    assert "No published figure is known for this source" in markdown

    recorded = subprocess.run(
        [sys.executable, "-m", "rsvlm.study.recording", "try_1"], cwd=study, capture_output=True, text=True
    )
    assert recorded.returncode == 0, recorded.stderr
    folder = study / "results/try_1"
    assert sorted(path.name for path in folder.iterdir()) == [
        "metrics.json",
        "params.yaml",
        "provenance.json",
        "table.md",
    ]
    assert read_json(folder / "metrics.json") == metrics
    assert (folder / "table.md").read_text() == markdown
    assert set(read_json(folder / "provenance.json")["sha256"]) == {"metrics.json", "params.yaml", "table.md"}


def test_a_record_has_large_pictures_as_jpeg_and_no_path_of_its_machine():
    photograph = np.random.default_rng(0).integers(0, 256, (300, 300, 3)).astype(np.uint8)
    outputs = []
    for picture in (photograph, np.zeros_like(photograph)):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG")
        png = base64.b64encode(file.getvalue()).decode()
        outputs.append(nbformat.v4.new_output("display_data", {"image/png": png, "text/plain": "a figure"}))
    cells = [nbformat.v4.new_markdown_cell("Words."), nbformat.v4.new_code_cell("draw()", outputs=outputs)]
    large, small = slim_pictures(nbformat.v4.new_notebook(cells=cells)).cells[1].outputs
    log = nbformat.v4.new_output("stream", text="continuing from /a b/root/.rsvlm/checkpoints, of /a b/rooted/x\n")
    text = recorded_text(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=[log])]), Path("/a b/root"))
    assert "continuing from .rsvlm/checkpoints, of /a b/rooted/x" in text and nbformat.reads(text, as_version=4).cells
    assert set(large.data) == {"image/jpeg", "text/plain"} and small == outputs[1]
    assert Image.open(io.BytesIO(base64.b64decode(large.data["image/jpeg"]))).size == (300, 300)


@pytest.mark.parametrize(("name", "message"), [("../up", "letters, digits"), ("fine", "run the study first")])
def test_recording_refuses_bad_names_and_unfinished_studies(scratch_root, name, message):
    command = [sys.executable, "-m", "rsvlm.study.recording", name]
    done = subprocess.run(command, cwd=scratch_root, capture_output=True, text=True)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
    assert not (scratch_root / "results").exists()


def test_a_run_with_missing_repeated_or_broken_rows_is_refused(tmp_path):
    table = pd.DataFrame(caption_rows()[:2])
    with pytest.raises(FileNotFoundError, match="generate_captions"):
        read_runs(tmp_path, tmp_path / "user", table)
    write_json_lines(tmp_path / "captioner.jsonl", [{"image_id": "blue_marble/0.jpg", "caption": "a"}])
    with pytest.raises(ValueError, match=r"captioner.jsonl: no caption for 1 of 2 images, such as 'blue_marble/1.jpg'"):
        read_runs(tmp_path, tmp_path / "user", table)
    write_json_lines(tmp_path / "captioner.jsonl", [{"image_id": "a", "caption": "x"}] * 2)
    with pytest.raises(ValueError, match="line 2: second caption for 'a'"):
        read_captions(tmp_path / "captioner.jsonl")
    write_json_lines(tmp_path / "captioner.jsonl", [{"image_id": "a", "caption": None}])
    with pytest.raises(ValueError, match="line 1: expected"):
        read_captions(tmp_path / "captioner.jsonl")


def test_a_run_cannot_take_the_name_of_another_key(tmp_path):
    write_json_lines(tmp_path / "user" / "protocol.jsonl", [])
    with pytest.raises(ValueError, match="protocol"):
        read_runs(tmp_path / "generated", tmp_path / "user", pd.DataFrame(caption_rows()))


def test_other_models_captions_stand_beside_the_studys_runs(tmp_path):
    generated, others = tmp_path / "generated", tmp_path / "user"
    table = pd.DataFrame([row for row in caption_rows() if row["image_id"] == "ucm/0.jpg"])
    line = [{"image_id": "ucm/0.jpg", "caption": "c"}]
    write_json_lines(others / "blip2.jsonl", line)
    with pytest.raises(FileNotFoundError, match="generate_captions"):
        read_runs(generated, others, table)
    write_json_lines(generated / "beam.jsonl", line)
    assert list(read_runs(generated, others, table)) == ["beam", "blip2"]

    write_json_lines(others / "Captioner.jsonl", line)
    with pytest.raises(
        ValueError, match=r"user/Captioner.jsonl: 'captioner' is a run of the study .*generated/captioner.jsonl"
    ):
        read_runs(generated, others, table)
    (others / "Captioner.jsonl").rename(others / "human.jsonl")
    with pytest.raises(ValueError, match="'human' cannot be a run's name"):
        read_runs(generated, others, table)
    (others / "human.jsonl").unlink()
    write_json_lines(generated / "mine.jsonl", line)
    with pytest.raises(ValueError, match=r"generated/mine.jsonl: not a run of this study.*belong into .*user"):
        read_runs(generated, others, table)
    (generated / "mine.jsonl").unlink()
    (others / "blip2.jsonl").write_text('{"image_id": "ucm/0.jpg", "caption": "c"}\n{"image_id": \n')
    with pytest.raises(ValueError, match=r"blip2.jsonl: line 2 is not valid JSON"):
        read_runs(generated, others, table)


def test_rows_of_other_splits_are_left_aside(tmp_path):
    rows = [{"image_id": name, "caption": "c"} for name in ("blue_marble/0.jpg", "elsewhere", "ucm/0.jpg")]
    write_json_lines(tmp_path / "nearest.jsonl", rows)
    table = pd.DataFrame([row for row in caption_rows() if row["image_id"].endswith("/0.jpg")])
    assert read_runs(tmp_path, tmp_path / "user", table) == {
        "nearest": {"blue_marble": {"blue_marble/0.jpg": "c"}, "ucm": {"ucm/0.jpg": "c"}}
    }


def test_a_split_without_images_is_named():
    with pytest.raises(ValueError, match="no images in split 'val'; the table has test, train"):
        score_study({}, pd.DataFrame(caption_rows()), split="val", seed=0, resamples=10)


def test_texts_are_described():
    assert describe_texts(["a b", "a b", "a c d", ""], {"a b"}) == {
        "mean_words": 1.75, "shortest": 0, "longest": 3, "vocabulary": 4, "distinct_captions": 3, "copied": 0.5,
        "distinct_1": round(4 / 7, 6), "distinct_2": 0.75, "distinct_3": 1.0,
    }  # fmt: skip
    assert describe_texts(["", "a"], set())["distinct_2"] is None


def test_classes_are_named_once_by_their_longest_name():
    assert class_names("many planes near a railway station and two tennis courts") == {
        "airplane", "railway station", "tennis court",
    }  # fmt: skip
    assert class_names("") == class_names("a field in a square") == set()
    assert class_names("churches beside factories") == {"church", "industrial area"}
    assert class_names("denseresidential") == class_names("houses") == {"residential area"}


def test_a_class_is_hallucinated_that_neither_label_nor_references_have():
    captions = {"1": "a river and a bridge", "2": "a harbor", "3": "something"}
    references = {"1": ["a stream"], "2": ["some boats"], "3": ["a lake"]}
    found = hallucinated_classes(captions, references, {"2": "harbor"})
    assert found.named.tolist() == [2, 1, 0] and found.wrong.tolist() == [1, 0, 0]
    assert found.examples == {"bridge": 1}


def test_notebooks_keep_the_house_rules():
    for name in ("60_score_captions.ipynb", "70_score_retrieval.ipynb", "80_compare_with_paper.ipynb"):
        notebook = json.loads((NOTEBOOKS / name).read_text())
        cells = notebook["cells"]
        assert len(cells) <= 25 and len({cell["id"] for cell in cells}) == len(cells)
        for cell in cells:
            if cell["id"] != "imports":
                assert "".join(cell["source"]).count("\n") < 20  # an argument a line where a call is long
            if cell["cell_type"] == "code":
                assert cell["outputs"] == [] and cell["execution_count"] is None
