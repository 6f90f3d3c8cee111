"""The study's map: stages and states read right, drawn alike at every run."""

import subprocess
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from rsvlm.files import write_json
from rsvlm.study import overview, paths
from rsvlm.study.overview import (
    FRESH,
    MISSING,
    STALE,
    draw_map,
    headline_table,
    judge_stages,
    list_pages,
    read_stages,
)
from rsvlm.viewing.plots import COLOURS, PNG_METADATA, figure, save_figure, series_colours

PROJECT = Path(__file__).resolve().parents[1]
PIPELINE = """
stages:
  strip:
    foreach: [10_first]
    do: {cmd: strip, outs: ["build/${item}.ipynb"]}
  first:
    desc: Reads $things$
    cmd: one
    deps: [build/10_first.ipynb]
    outs: [data/first, {reports/first.json: {cache: false}}]
  second: {cmd: two, deps: [data/first/part.csv, build/20_second.ipynb], outs: [data/second]}
  third: {cmd: three, deps: [data/first, data/second], outs: [data/third]}
  other: {cmd: four, deps: [elsewhere], outs: [data/firstborn]}
"""


@pytest.fixture
def stages(tmp_path):
    (tmp_path / "dvc.yaml").write_text(PIPELINE, encoding="utf-8")
    return read_stages(tmp_path / "dvc.yaml")


def test_stages_come_with_needs_levels_and_notebooks(stages):
    read = {stage.name: (stage.notebook, stage.needs, stage.level) for stage in stages}
    assert read == {
        "first": ("10_first", (), 0),
        "second": ("20_second", ("first",), 1),
        "third": ("third", ("first", "second"), 2),
        "other": ("other", (), 0),  # data/firstborn is not in data/first
    }


def test_states_follow_what_dvc_says(stages):
    assert {state for state, _ in judge_stages(stages, {}).values()} == {FRESH}
    status = {
        "strip@20_second": [{"changed deps": {"notebooks/20_second.ipynb": "modified"}}],
        "other": [{"changed deps": {"params.yaml": "new"}}, {"changed outs": {"data/firstborn": "deleted"}}],
    }
    states = judge_stages(stages, status)
    assert [states[stage.name][0] for stage in stages] == [FRESH, STALE, STALE, MISSING]
    assert states["second"][1] == "changed: notebooks/20_second.ipynb" and states["third"][1] == "after second"
    states = judge_stages(
        stages, {"first": [{"changed deps": {"params.yaml": {"first.seed": "modified"}}}, "changed command"]}
    )
    assert states["first"][1] == "changed: first.seed" and states["third"][0] == STALE
    assert judge_stages(stages, {"first": ["changed command"]})["first"][1] == "its command changed"
    table = overview.stage_table(stages, states)
    assert list(table.index) == ["10_first", "20_second", "third", "other"] and table.loc["other", "state"] == FRESH


def test_the_map_shows_states_and_arrows_and_texts_stay_texts(stages):
    told = replace(stages[0], about="<script>1</script> & more")
    picture = draw_map([told, *stages[1:]], {"first": (STALE, ""), "second": (MISSING, ""), "third": (FRESH, "")}).data
    drawn = ElementTree.fromstring(picture)
    kinds = [own.get("class") for own in drawn.iter("{http://www.w3.org/2000/svg}rect") if own.get("rx") == "7"]
    assert kinds == ["box would-run-again", "box not-run-yet", "box up-to-date", "box not-asked"]
    assert picture.count('fill="url(#hatch)"') == 2 and "<script>" not in picture  # the box and the key
    assert (
        picture.count('class="arrow"') == 2
    )  # first to second to third: the arrow from first to third says nothing new
    assert "10  first" in picture and "&lt;script&gt;" in picture


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages: [", "not valid YAML"),
        ("vars: []", "no stages"),
        ("stages: {a: {cmd: x, deps: [b], outs: [a]}, b: {cmd: x, deps: [a], outs: [b]}}", "a, b wait for each other"),
    ],
)
def test_a_wrong_pipeline_is_named(tmp_path, text, message):
    (tmp_path / "dvc.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=f"dvc.yaml.*{message}"):
        read_stages(tmp_path / "dvc.yaml")
    with pytest.raises(FileNotFoundError, match="none.yaml"):
        read_stages(tmp_path / "none.yaml")


def test_without_dvc_the_map_still_comes(stages, monkeypatch):
    def fail(*_, **__):
        raise subprocess.CalledProcessError(255, "dvc", stderr="first\nERROR: you are not inside of a DVC repository\n")

    monkeypatch.setattr(overview.subprocess, "run", fail)
    with pytest.warns(UserWarning, match="not inside of a DVC repository"):
        assert overview.read_states(stages) == {}
    draw_map(stages, {})


def test_headlines_and_pages(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "REPORTS", tmp_path / "reports")
    monkeypatch.setattr(paths, "EXECUTED", tmp_path / "reports" / "notebooks")
    assert "make study" in headline_table().index[0]
    assert list_pages().data.startswith(
        "- not there yet: reports/notebooks/index.html, reports/galleries/captions.html"
    )
    cider = {"CIDEr": {"value": 3.5, "low": 3.2, "high": 3.8, "n": 210}, "SPICE": {"value": None}}
    recall = {"mean_recall": {"value": 0.5504, "low": None, "high": None, "n": 210}}
    metrics = {
        "captions": {"captioner": {"ucm": cider}, "consensus": {"ucm": {"CIDEr": {"value": 3.9}}}},
        "retrieval": {"ret": {"ucm": recall}},
    }
    write_json(tmp_path / "reports" / "metrics.json", metrics)
    table = headline_table()
    assert list(table.index) == [
        ("ucm", "CIDEr", "consensus"),
        ("ucm", "CIDEr", "captioner"),
        ("ucm", "mean recall, %", "ret"),
    ]
    assert list(table["value"]) == ["3.900", "3.500", "55.0"] and table["95 % interval"].iloc[1] == "3.200 – 3.800"
    (tmp_path / "reports" / "galleries").mkdir()
    (tmp_path / "reports" / "galleries" / "captions.html").touch()
    assert "(../reports/galleries/captions.html)" in list_pages().data


def test_the_projects_own_pipeline_is_drawn():
    read = {stage.name: stage for stage in read_stages(PROJECT / "dvc.yaml")}
    assert read["aggregate_data"].level == 0 and "score_captions" in read["caption_gallery"].needs
    assert all((PROJECT / "notebooks" / f"{stage.notebook}.ipynb").name[:2].isdigit() for stage in read.values())
    draw_map(list(read.values()), {})


def test_a_figure_has_equal_bytes_on_a_rerun_and_no_software_name(tmp_path):
    pictures = [save_figure(figure(3, 2)[0], tmp_path / name).read_bytes() for name in ("1.png", "2.png")]
    assert pictures[0] == pictures[1] and b"Matplotlib" not in pictures[0]


def test_series_keep_their_colours_and_new_ones_differ():
    colours = series_colours(["captioner", "mine", "consensus", "yours"])
    assert colours["captioner"] == series_colours(["captioner"])["captioner"]
    assert len(set(colours.values())) == 4 and colours["mine"] in COLOURS
    _, axes = figure(3, 2, rows=2, columns=2)
    assert axes.shape == (2, 2) and PNG_METADATA["Software"] is None
