"""Experiments side by side: real ones of DVC in a tiny repository, whose only stage makes what the study's stages make."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from dvc.cli import main as dvc_main
from dvc.repo import Repo
from PIL import Image

from rsvlm.files import read_json
from rsvlm.study import experiment_files, experiments, paths, studies
from rsvlm.study.experiments import MOST_COLUMNS, find_experiment, read_experiments, show_experiments, sorted_by

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
STAGE = """
import json
from pathlib import Path

import numpy as np
from ruamel.yaml import YAML
from rsvlm.data.table import save_table
from rsvlm.files import fingerprint_values

params = YAML(typ="safe").load(Path("params.yaml").read_text())
score, split = params["adapt_encoder"]["epochs"] / 10, params["score_captions"]["split"]

def put(place, text):
    Path(place).parent.mkdir(parents=True, exist_ok=True)
    Path(place).write_text(text if isinstance(text, str) else json.dumps(text))

def figure(value):
    return {"value": value, "low": value - 0.15, "high": value + 0.15, "n": 4}

images = range(params["adapt_encoder"].get("images", 4))
said = [{"image_id": f"s/{n}.png", "caption": f"<b>said</b> after {score}"} for n in images]
put("data/generated/captioner.jsonl", "".join(json.dumps(row) + "\\n" for row in said))
table = [
    {"image_id": f"s/{n}.png", "source": "s", "split": "test", "path": f"pictures/{n}.png",
     "captions": [f"caption {n}"], "label": None}
    for n in images
]
table.append(table[0] | {"image_id": "s/train.png", "split": "train", "captions": ["<b>said</b> after 0.9"]})
save_table(table, Path("data/aggregated/images.parquet"))
lines = [f"captioner,s,{split},s/{n}.png,released,False,{score + n}" for n in images]
put("reports/scores/captions.csv", "run,source,split,image_id,references,reference_set_seen,CIDEr\\n" + "\\n".join(lines))
ids = [row["image_id"] for row in table]
put("data/features/meta.json", {"image_ids": ids, "views": 1, "grid": 0, "dims": {"pooled": 2, "embedding": 2},
                                "image_list_fingerprint": fingerprint_values(ids)})
put("data/features/texts.json", [])
turned = np.tile([1, 0] if score < 0.9 else [0, 1], (len(ids), 1)).astype(np.float32)
for name, array in {"image_embeddings": turned, "pooled": turned[:, None], "text_embeddings": turned[:0]}.items():
    np.save(f"data/features/{name}.npy", array)
put("reports/metrics/score_captions.json", {"captioner": {"s": {"released": {"CIDEr": figure(score)}}}, "protocol": {}})
put("reports/metrics.json", {
    "captions": {"captioner": {"s": {"CIDEr": figure(score), "BLEU-4": figure(0.5)}}},
    "retrieval": {"combined": {"s": {"mean_recall": figure(1 - score)}}},
})
put("reports/headline.json", {"s": {"CIDEr": {"captioner": score}}})
put("reports/galleries/captions.html", f"<html>{score}</html>")
"""
PIPELINE = f"""
stages:
  all:
    cmd: {sys.executable} stage.py
    params: [adapt_encoder, score_captions]
    deps: [stage.py]
    outs:
      - data/generated/captioner.jsonl
      - data/aggregated
      - data/features
      - reports/scores/captions.csv
      - reports/metrics/score_captions.json
      - reports/metrics.json
      - reports/headline.json
      - reports/galleries/captions.html
"""


def git(folder, *arguments):
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)


def dvc(*arguments):
    assert dvc_main([*arguments, "-q"]) == 0


def data_of(page):
    """What a gallery's page hands to its script."""
    text = page.read_text(encoding="utf-8")
    return json.loads(text.partition('<script type="application/json" id="data">')[2].partition("</script>")[0])


def said(captions):
    """run -> caption, put together from its marked and other words."""
    return {
        run: "".join(part if isinstance(part, str) else part[0] for part in parts) for run, parts in captions.items()
    }


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study in git with the experiments three, half (as good, by another split), and fewer (other images)."""
    root = tmp_path_factory.mktemp("experiments") / "a study"
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(paths, "find_root", lambda: root)
        for name in ("AUTHOR", "COMMITTER"):
            patch.setenv(f"GIT_{name}_NAME", "a")
            patch.setenv(f"GIT_{name}_EMAIL", "a@example.org")
        (root / "stage.py").write_text(STAGE)
        (root / "dvc.yaml").write_text(PIPELINE)
        (root / "params.yaml").write_text(
            "adapt_encoder:\n  epochs: 2\n  images: 4\n  note: null\nscore_captions:\n  split: test\n"
        )
        (root / ".gitignore").write_text("/data/\n/reports/\n/scratch/\n")
        (root / "pictures").mkdir()
        for number in range(4):
            Image.new("RGB", (8, 8), (60 * number, 90, 90)).save(root / "pictures" / f"{number}.png")
        git(root, "init", "-q")
        dvc("init")
        dvc("repro")
        git(root, "add", ".")
        git(root, "commit", "-qm", "first")
        yield root


@pytest.fixture(scope="module")
def tried(study):
    """The same with experiments."""
    for name, values in {
        "three": ["adapt_encoder.epochs=3"],
        "nine": ["adapt_encoder.epochs=9", 'adapt_encoder.note="<i>much</i>"'],
        "other-split": ["score_captions.split=val"],
        "fewer": ["adapt_encoder.images=3"],
    }.items():
        dvc("exp", "run", "-n", name, *(part for value in values for part in ("-S", value)))
        git(study, "checkout", "-q", ".")
    dvc("checkout")
    return study


def test_without_experiments_it_says_so(study, capsys):
    assert experiments.main([]) == 0
    assert capsys.readouterr().out.startswith("No experiments since the newest commit.")
    assert "No experiments since" in show_experiments(sort="CIDEr").data


def test_without_git_it_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(paths, "find_root", lambda: tmp_path)
    with pytest.raises(ValueError, match="Experiments need a study in git"):
        read_experiments()
    assert "No experiments:" in show_experiments().data
    assert studies.main(["experiments"]) == 1
    assert "Experiments need a study in git" in capsys.readouterr().err


def test_the_table_shows_what_changed_and_marks_what_came_out(tried, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")  # of the terminal
    assert studies.main(["experiments"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].split() == ["experiment", "created", "changed", "captioner", "combined", "captioner"]
    assert lines[1].split() == ["CIDEr", "mean", "recall,", "%", "BLEU-4"]
    rows = {line.split()[0]: number for number, line in enumerate(lines) if line and line[0] not in " -"}
    nine = lines[rows["nine"] : rows["nine"] + 3]
    assert "adapt_encoder.epochs: 2 → 9" in nine[0]
    assert "0.900" in nine[0]
    assert "[0.750, 1.050]" in nine[1]
    assert "+0.700 ▲" in nine[2]
    assert "-70.0 ▼" in nine[2]
    three = lines[rows["three"] : rows["three"] + 3]
    assert "+0.100  " in three[2]  # within the interval
    assert " = " in lines[rows["fewer"] + 2] + " "
    assert "workspace" not in rows  # it is the newest commit's
    assert "dvc exp show --only-changed" in out
    narrow = experiments.text_table(read_experiments(), 90)
    assert max(map(len, narrow.splitlines()[:-2])) <= 90
    assert "Not shown, the screen is too narrow: combined mean recall, %, captioner BLEU-4." in narrow


def test_rows_are_sorted_by_any_column(tried):
    found = read_experiments()
    assert [one.name for one in sorted_by("", found)][1:] == ["three", "nine", "other-split", "fewer"]
    assert [one.name for one in sorted_by("cider", found)][1:3] == ["nine", "three"]
    assert [one.name for one in sorted_by("combined", found)][-1] == "nine"
    assert [one.name for one in sorted_by("experiment", found)][1:3] == ["fewer", "nine"]
    with pytest.raises(
        ValueError, match=r"no column 'speed' to sort by; there are experiment, created, captioner CIDEr"
    ):
        sorted_by("speed", found)
    with pytest.raises(ValueError, match=r"no experiment 'thre'.*three"):
        find_experiment("thre", found)


def test_the_workspace_has_a_row_where_it_differs(tried):
    text = (tried / "params.yaml").read_text()
    try:
        (tried / "params.yaml").write_text(text.replace("epochs: 2", "epochs: 5"))
        assert [one.name for one in read_experiments()][1] == "workspace"
    finally:
        (tried / "params.yaml").write_text(text)


def test_many_sources_and_parameters_stay_in_twelve_columns(tried):
    first, *_ = read_experiments()
    one = first.metrics["captions"]["captioner"]["s"]
    sources = {f"source {n}": one for n in range(8)}
    metrics = {"captions": {"captioner": sources, "consensus": sources}, "retrieval": {}}
    wide = experiments.Experiment("wide", "1", params={f"a.{n}": n for n in range(30)}, metrics=metrics)
    heads, rows = experiments._cells([first, wide])
    assert len(heads) == len(rows[1]) == MOST_COLUMNS
    assert heads[4] == ["source 0", "captioner", "CIDEr"]


def test_the_notebooks_table_escapes_and_links(tried, capsys, monkeypatch):
    monkeypatch.chdir(tried / "pictures")  # JupyterLab starts kernels in notebooks/
    html = show_experiments(sort="cider").data
    assert "<i>much</i>" not in html
    assert "&lt;i&gt;much&lt;/i&gt;" in html
    assert "nine" in html
    assert 'href="../scratch/experiments/nine' not in html
    assert experiments.main(["nine"]) == 0
    assert capsys.readouterr().out.split() == ["scratch/experiments/nine/galleries/captions.html"]
    assert (tried / "scratch/experiments/nine/galleries/captions.html").read_text() == "<html>0.9</html>"
    assert read_json(tried / "scratch/experiments/nine/headline.json") == {"s": {"CIDEr": {"captioner": 0.9}}}
    assert (tried / "reports/galleries/captions.html").read_text() == "<html>0.2</html>"
    assert 'href="../scratch/experiments/nine/galleries/captions.html"' in show_experiments().data
    chosen = show_experiments("nine").data
    assert "<td" in chosen
    assert "three" not in chosen
    assert "no experiment &#39;ten&#39;" in show_experiments("ten").data
    monkeypatch.setattr(paths, "running_stage", "compare_with_paper")
    assert show_experiments().data == "<p>Run by hand, this shows the experiments beside the study.</p>"


def test_the_captions_of_two_experiments_stand_on_one_page(tried, capsys):
    assert studies.main(["experiments", "three", "nine", "--gallery"]) == 0
    page = tried / "scratch" / "experiments" / "three_nine" / "captions.html"
    assert capsys.readouterr().out.strip() == page.relative_to(tried).as_posix()
    data = data_of(page)
    assert (data["setting"]["runs"], data["setting"]["run"]) == (["three", "nine"], "nine")
    item = next(own for own in data["items"] if own["id"] == "s/1.png")
    assert said(item["said"]) == {"three": "<b>said</b> after 0.3", "nine": "<b>said</b> after 0.9"}
    assert item["scores"] == {"three": {"CIDEr": 1.3}, "nine": {"CIDEr": 1.9}}
    assert item["near"] == [["s/train.png", 1.0, {"nine": ["<b>said</b> after 0.9"]}]]
    html = page.read_text(encoding="utf-8")
    assert "<b>said</b>" not in html
    assert "<h1>nine against three: captions, s, test split</h1>" in html
    assert "<code>adapt_encoder.epochs: 3 → 9</code>" in html
    assert "<code>adapt_encoder.note: null → &lt;i&gt;much&lt;/i&gt;</code>" in html
    assert "<b>+0.600</b> [+0.600, +0.600]" in html and "higher on <b>4</b>, lower on <b>0</b>, equal on 0" in html
    assert data["setting"]["training"] == "The nearest training images are by the features of three; nine has others."
    assert studies.main(["experiments", "workspace", "nine", "--gallery", "--out", str(tried / "scratch" / "x")]) == 0
    assert said(data_of(tried / "scratch" / "x" / "captions.html")["items"][0]["said"])["workspace"].endswith("0.2")


def test_a_gallery_says_where_nearest_training_images_are_missing(tried, monkeypatch):
    monkeypatch.setattr(experiment_files, "FEATURES", "data/gone")
    assert studies.main(["experiments", "three", "nine", "--gallery"]) == 0
    page = tried / "scratch" / "experiments" / "three_nine" / "captions.html"
    assert data_of(page)["setting"]["training"].startswith("No nearest training images: neither three's nor nine's")
    assert {tuple(item["near"]) for item in data_of(page)["items"]} == {()}


def test_experiments_without_results_say_why(tried, capsys, monkeypatch):
    dvc(
        "exp", "run", "--queue", "-n", "later", "-S", "adapt_encoder.epochs=7"
    )  # its stash holds the first one's results
    for names in (["later"], ["later", "three", "--gallery"]):
        assert studies.main(["experiments", *names]) == 1
        assert "later has no results: it waits in the queue" in capsys.readouterr().err
    dvc("queue", "remove", "later")
    nine = find_experiment("nine", read_experiments())
    with Repo(str(tried)) as repo:
        figures = Path(repo.cache.local.oid_to_path(nine.outs["reports/metrics.json"]))
    figures.rename(figures.with_suffix(".away"))
    try:
        assert studies.main(["experiments", "nine", "--out", str(tried / "scratch" / "gone")]) == 1
        assert "nine has no results: they are not in DVC's cache (`dvc gc`" in capsys.readouterr().err
        assert not (tried / "scratch" / "gone").exists()
        assert "removed" in experiments.text_table(read_experiments(), 160)
    finally:
        figures.with_suffix(".away").rename(figures)
    assert studies.main(["experiments", "--commits", "0"]) == 1
    assert "commits is 0: give at least 1" in capsys.readouterr().err


def test_a_gallery_of_other_images_is_refused(tried, capsys):
    assert studies.main(["experiments", "three", "fewer", "--gallery"]) == 1
    assert "three and fewer differ in 1 of 4 images or their references, such as 's/3.png'" in capsys.readouterr().err
    assert studies.main(["experiments", "three", "other-split", "--gallery"]) == 1
    assert "three scored the split 'test', other-split 'val'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        studies.main(["experiments", "three", "--gallery"])
    assert "give two different names (or workspace)" in capsys.readouterr().err
    three = find_experiment("three", read_experiments())
    moved = replace(three, name="moved", outs=three.outs | {"data/blue_marble": "other"})
    with pytest.raises(ValueError, match="data/blue_marble holds other pictures in three than in moved"):
        experiment_files.write_pair_gallery(three, moved, tried / "scratch" / "moved.html")
    with pytest.raises(ValueError, match=r"holds other pictures now than in moved and moved.*`dvc checkout`"):
        experiment_files.write_pair_gallery(moved, moved, tried / "scratch" / "moved.html")
