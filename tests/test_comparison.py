import json
import re

import pandas as pd
import pytest
from markupsafe import escape

from rsvlm.scoring.comparison import (
    HELD_OUT_DISTINCT,
    NOTHING_PUBLISHED,
    TITLE,
    comparison_rows,
    comparison_table,
    comparison_title,
    render_latex,
    render_markdown,
    study_metrics,
)
from rsvlm.scoring.published import PUBLISHED, Published, published_for, standing, study_kind, unfair_notes
from rsvlm.scoring.terms import TERMS
from rsvlm.viewing.comparison_page import render_html, show_comparison


def figure(value, n=210):
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": n}


@pytest.fixture
def metrics():
    spice = {"value": None, "low": None, "high": None, "n": 210, "reason": "not run: jars missing"}
    own = {
        "released": {"BLEU-4": figure(0.7), "CIDEr": figure(3.91), "SPICE": spice},
        "distinct": {"CIDEr": figure(3.9)},
        "seen": {"CIDEr": {"value": None, "low": None, "high": None, "n": 0, "reason": "no such image"}},
        "unseen": {"CIDEr": figure(3.36)},
    }
    captions = {
        "consensus": {"ucm": own, "blue_marble": own},
        "captioner": {"ucm": own, "<script>alert(1)</script>|": own},
        "zz_other": {"ucm": own},
        "human": {"ucm": own | {"released": own["released"] | {"CIDEr": figure(3.88) | {"standard_deviation": 0.023}}}},
        "protocol": {"split": "test", "sources": {"ucm": {"images": 210, "training_images": 1680}}},
        "paired": {"ucm": {}},
    }
    recalls = {
        "image_to_text_recall_at_1": figure(0.2),
        "mean_recall": figure(0.55),
        "image_to_text_median_rank": figure(5.0),
    }
    method = {
        "ucm": {
            "by_image": recalls,
            "by_text": {"mean_recall": figure(0.8)},
            "ceiling": {"mean_recall": figure(0.704), "image_to_text_recall_at_1": figure(0.328)},
        }
    }
    retrieval = {"ret": method, "combined": method, "protocol": {"split": "test", "name": "remoteclip"}}
    stages = {"score_captions": captions, "score_retrieval": retrieval, "aggregate_data": {"parameters": {}}}
    return study_metrics(stages, {"seed": 0})


def test_metrics_have_the_study_shape(metrics):
    assert list(metrics["captions"]) == ["captioner", "consensus", "human", "zz_other"]
    assert metrics["captions"]["captioner"]["ucm"]["CIDEr"] == figure(3.91)
    assert metrics["captions"]["captioner"]["ucm"]["CIDEr_unseen"] == figure(3.36)
    assert list(metrics["retrieval"]) == ["combined", "ret"]
    assert metrics["retrieval"]["ret"]["ucm"]["mean_recall"] == figure(0.55)
    assert metrics["retrieval"]["ret"]["ucm"]["mean_recall_ceiling"]["value"] == 0.704
    assert metrics["provenance"] == {"seed": 0}
    json.dumps(metrics, allow_nan=False)


def test_caption_table_puts_ours_beside_published_on_one_scale(metrics):
    table = comparison_table(metrics, "captions", "ucm").cells.set_index("model")
    assert table.index[0] == "captioner"
    assert table.loc["captioner", "CIDEr"] == "3.910 [3.810, 4.010]" and table.loc["captioner", "SPICE"] == ""
    assert table.loc["RSGPT", "CIDEr"] == "3.332" and table.loc["RSGPT", "status"] == "read"
    assert table.loc["RS-CapRet 7B, fine-tuned", "status"] == "recalled"
    assert table.loc["SkyEyeGPT", "kind"] == "generalist"
    assert "CIDEr seen" not in table  # nobody has a figure there


def test_retrieval_table_is_in_percent_with_the_ceiling(metrics):
    table = comparison_table(metrics, "retrieval", "ucm").cells.set_index("model")
    assert table.loc["combined", "mean recall"] == "55.0 [45.0, 65.0]"
    assert table.loc["AMFMN", "mean recall"] == "46.1" and table.loc["AMFMN", "I2T R@1"] == "16.7"
    ceiling = table[table["kind"] == "ceiling"]
    assert ceiling["mean recall"].tolist() == ["70.4"] and ceiling["I2T R@1"].tolist() == ["32.8"]


def test_a_source_without_a_literature_says_so(metrics):
    text = render_markdown(metrics)
    section = text[text.index("## Captions: blue_marble") : text.index("## Captions: ucm")]
    assert NOTHING_PUBLISHED in section and "recalled" not in section
    assert NOTHING_PUBLISHED not in text[text.index("## Captions: ucm") : text.index("## Retrieval")]
    assert escape(NOTHING_PUBLISHED) in render_html(metrics)


def only(metrics, source):
    """The record as if one source had been scored."""
    tasks = ("captions", "retrieval")
    kept = {task: {run: {source: by[source]} for run, by in metrics[task].items() if source in by} for task in tasks}
    return metrics | kept


def test_the_title_fits_where_nothing_is_published(metrics):
    assert comparison_title(metrics) == TITLE
    own = only(metrics, "blue_marble")
    page, text = render_html(own), render_markdown(own)
    assert "<h1>Scores of this study: blue_marble</h1>" in page and text.startswith(
        "# Scores of this study: blue_marble\n"
    )
    assert "published:" not in page and "Coloured" not in page and "papers" not in text and "recalled" not in text


def test_what_was_not_run_is_said_once_below_the_table(metrics):
    page = render_html(only(metrics, "blue_marble"))
    assert page.count("SPICE") == 1 and "SPICE was not run: jars missing." in page  # nobody has a figure: no column
    page = render_html(only(metrics, "ucm"))
    assert page.count("SPICE was not run") == 1 and page.count("jars missing") == 1 and "0.525" in page


def test_every_column_and_row_has_its_sentence(metrics):
    page = render_html(metrics)
    for name in ("CIDEr", "SPICE", "distinct", "mean recall", "R@K", "ceiling", "held-out reference", "specialist"):
        assert f'aria-label="What {name} means"' in page, name
    for given in set(re.findall(r'popovertarget="([^"]*)"', page)):
        assert page.count(f'id="{given}"') == 1, given
    assert f"- CIDEr: {TERMS['CIDEr']}." in render_markdown(metrics)
    assert all(not text.endswith(".") and "\n" not in text for text in TERMS.values())


def test_texts_are_escaped(metrics):
    page, text = render_html(metrics), render_markdown(metrics)
    assert "<script" not in page and "script-src" not in page and "&lt;script&gt;" in page
    assert "<script" not in text and "&lt;/script&gt;\\|" in text
    latex = render_latex(metrics)
    assert r"\textless{}script\textgreater{}alert(1)" in latex and r"/script\textgreater{}\textbar{}" in latex
    assert "<" not in latex and latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 4
    assert all(
        line.count("{") - line.count(r"\{") == line.count("}") - line.count(r"\}") for line in latex.splitlines()
    )


def test_rows_hold_every_figure_as_a_fraction(metrics):
    rows = comparison_rows(metrics)
    recalls = rows[(rows["task"] == "retrieval") & ~rows["metric"].str.contains("rank")]
    assert recalls["value"].between(0, 1).all()
    assert set(rows["status"]) == {"measured", "read", "recalled", "second-hand"}
    assert rows[rows["name"] == "SkyEyeGPT"]["value"].tolist() == [2.3675]
    assert rows[rows["metric"] == "SPICE"]["note"].str.contains("jars").any()


def test_published_figures_are_on_the_scale_and_consistent():
    assert len({(row.task, row.source, row.name) for row in PUBLISHED}) == len(PUBLISHED)
    for row in PUBLISHED:
        assert all(0 < value < (6 if metric == "CIDEr" else 1) for metric, value in row.values.items()), row
        if "image_to_text_recall_at_1" in row.values:  # mean recall is the mean of the six
            six = [value for name, value in row.values.items() if name != "mean_recall"]
            assert row.values["mean_recall"] == pytest.approx(sum(six) / 6, abs=6e-4), row.name
    assert published_for("captions", "UCM_Captions") == published_for("captions", "ucm") != []
    assert published_for("captions", "blue_marble") == []
    with pytest.raises(ValueError, match="unknown"):
        Published("captions", "ucm", "x", "expert", "read", {}, "x1")


def test_rsicds_two_test_sets_have_figures_of_their_own(metrics):
    """Captioning papers report on 1,094 images, retrieval papers on the official 1,093; some figures fit either."""
    of = {name: [row.model for row in published_for("captions", name)] for name in ("rsicd_captioning", "rsicd_retrieval", "rsicd")}  # fmt: skip
    assert "RS-CapRet 7B" in of["rsicd_captioning"] and "RS-CapRet 7B" not in of["rsicd_retrieval"]
    assert "RSGPT" in of["rsicd_retrieval"] and "RSGPT" not in of["rsicd_captioning"]
    assert all("SkyEyeGPT" in models for models in of.values())
    assert of["rsicd"] == of["rsicd_retrieval"], "under its official split names a study's test set is this one"
    for source, n in (("rsicd_captioning", 1094), ("rsicd_retrieval", 1093)):
        metrics["captions"] = {"captioner": {source: {"CIDEr": figure(2.0, n), "BLEU-4": figure(0.4, n)}}}
        notes = " ".join(unfair_notes(metrics, "captions", source))
        assert "on which of the benchmark's two test sets is not known: GeoDiT, SkyEyeGPT" in notes
        table = comparison_table(metrics, "captions", source)
        assert table.notes[0].startswith("RSICD has two test sets under one name")
        assert "read (test set unknown)" in table.cells["status"].tolist()
    assert standing(metrics, "captions", "rsicd_retrieval", "captioner", "CIDEr") == "above"  # RSGPT 1.029


def test_published_specialists_stand_apart_from_generalists(metrics):
    kinds = comparison_table(metrics, "captions", "ucm").cells["kind"].tolist()
    assert kinds == sorted(kinds, key=["this study", "specialist", "generalist"].index)


def test_the_held_out_reference_shows_its_spread_and_its_row_without_copies(metrics):
    table = comparison_table(metrics, "captions", "ucm").cells.set_index("model")
    assert table.loc["held-out reference", "CIDEr"].startswith("3.880 ± 0.023 [")
    assert table.loc[HELD_OUT_DISTINCT, "CIDEr"].startswith("3.900")


def test_a_cell_is_coloured_only_where_the_comparison_is_fair(metrics):
    """UCM, trained on UCM alone: fair against specialists that were read (RSGPT 3.332; MLCA-Net, JTTS BLEU-4 .738)."""
    assert study_kind(metrics) == "specialist"
    assert standing(metrics, "captions", "ucm", "captioner", "CIDEr") == "above"  # [3.81, 4.01]; 3.845 is recalled
    assert standing(metrics, "captions", "ucm", "captioner", "BLEU-4") == "level"  # [.6, .8]
    assert standing(metrics, "captions", "ucm", "human", "CIDEr") is None  # one reference fewer
    assert standing(metrics, "captions", "ucm", "captioner", "SPICE") is None  # not run
    assert standing(metrics, "retrieval", "ucm", "combined", "mean_recall") == "level"  # [.45, .65], FBCLM .616
    assert (
        standing(metrics, "retrieval", "ucm", "combined", "image_to_text_recall_at_1") == "level"
    )  # [.1, .3], FBCLM .2857
    notes = " ".join(unfair_notes(metrics, "captions", "ucm"))
    assert "recalled, not verified: BITA" in notes and "generalist; this study is a specialist: " in notes
    assert "RSGPT" not in notes
    table = comparison_table(metrics, "captions", "ucm")
    assert table.standings.shape == table.cells.shape
    coloured = table.standings.to_numpy() != ""
    assert coloured.sum() == 3 * 2  # captioner, consensus and zz_other; CIDEr and BLEU-4
    assert render_html(metrics).count(' above"') == 3 and "3.910 [3.810, 4.010] ▲" in render_markdown(metrics)
    assert r"\cellcolor{above}3.910" in render_latex(metrics)
    assert "above the best comparable" in show_comparison(metrics).data


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda m: m["protocol"]["captions"].update(split="val"), "scored the split 'val'"),
        (lambda m: m["protocol"]["captions"].pop("sources"), "does not say what this study was trained on"),
        (
            lambda m: m["protocol"]["captions"]["sources"].update(nwpu={"training_images": 9}),
            "specialist; this study is a",
        ),
        (
            lambda m: m["parameters"].update(aggregate_data={"sources": [{"name": "rsicd", "use": "adapt"}]}),
            "specialist; this study is a",
        ),
        (lambda m: m["captions"]["captioner"]["ucm"]["CIDEr"].update(n=100), "100 of the benchmark's 210"),
    ],
)
def test_what_makes_a_comparison_unfair_is_said(metrics, change, note):
    metrics["captions"] = {"captioner": json.loads(json.dumps(metrics["captions"]["captioner"]))}
    change(metrics)
    assert not [row for row in unfair_notes(metrics, "captions", "ucm") if "RSGPT" in row and note not in row]
    assert any("RSGPT" in row for row in unfair_notes(metrics, "captions", "ucm"))
    assert standing(metrics, "captions", "ucm", "captioner", "CIDEr") != "level" or "nwpu" in str(metrics["protocol"])


def test_a_source_that_adapts_the_encoder_alone_is_told(metrics):
    assert "The encoder was adapted" not in render_markdown(metrics)
    metrics["parameters"] = {"aggregate_data": {"sources": [{"name": "ucm"}, {"name": "rsicd", "use": "adapt"}]}}
    assert "The encoder was adapted on training images of rsicd too." in render_markdown(metrics)
    assert study_kind(metrics) == "generalist"


def test_another_protocol_is_not_held_against_the_published_one(metrics):
    metrics["protocol"]["retrieval"]["name"] = "raw"
    assert standing(metrics, "retrieval", "ucm", "combined", "mean_recall") is None
    assert "Protocol raw" in render_markdown(metrics)


def test_the_picture_shows_runs_references_and_ceilings(metrics):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    from rsvlm.viewing.comparison_figures import comparison_figure
    from rsvlm.viewing.figures import run_label

    names = [(method, way) for method in ("combined", "ceiling") for way in ("image_to_text", "text_to_image")]
    rows = [(method, "ucm", "by_image", way, k, k / 20) for method, way in names for k in range(1, 21)]
    curves = pd.DataFrame(rows, columns=["method", "source", "match", "direction", "k", "recall"])
    drawn = comparison_figure(metrics, curves, "ucm")
    captions, there, back = drawn.axes
    assert "held-out reference (human)" in [label.get_text() for label in captions.get_yticklabels()]
    assert [text.get_text() for text in captions.get_legend().get_texts()] == [
        "references as released",
        "distinct references",
    ]
    assert len(there.lines) == len(back.lines) == 2 and back.lines[1].get_linestyle() == "--"
    matplotlib.pyplot.close(drawn)
    assert run_label("human", "blue_marble") == "held-out reference (by rule)" and run_label("beam", "ucm") == "beam"
    with pytest.raises(ValueError, match="'sydney'"):
        comparison_figure(metrics, curves, "sydney")


def test_runs_stand_by_size_and_both_test_sets_of_rsicd_in_one_picture(metrics):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    from rsvlm.viewing.comparison_figures import benchmarks, run_weights, standing_figure

    assert benchmarks(["rsicd_captioning", "rsicd_retrieval", "ucm"]) == [
        ["rsicd_captioning", "rsicd_retrieval"],
        ["ucm"],
    ]
    weights = {"image_encoder": 5e6, "captioner": 137e6}
    assert [run_weights(weights, run) for run in ("constant", "consensus", "captioner", "GPT")] == [0, 5e6, 142e6, None]
    assert run_weights({}, "captioner") is None  # a record that does not tell
    for metric in ("BLEU-4", "CIDEr"):
        metrics["captions"]["captioner"]["ucm"][metric] = {"value": 0.7, "low": 0.6, "high": 0.8, "n": 210}
    drawn = standing_figure(metrics | {"weights": weights}, ["ucm"])
    line, sizes = drawn.axes
    named = ["RS-CapRet 7B, fine-tuned", "RS-CapRet 7B, trained on Cap-4"]
    assert [text.get_text() for text in line.texts if "7B" in text.get_text()] == named
    hollow = [mark for mark in (*line.lines, *sizes.lines) if mark.get_markerfacecolor() == "none"]
    assert len(hollow) >= 4 and all(mark.get_markeredgewidth() > 0 for mark in hollow)  # 0 in the study's look
    assert not any("RSGPT" in text.get_text() for text in line.texts)  # its BLEU-4 is not known
    assert {"captioner", named[0]} <= {text.get_text() for text in sizes.texts}
    matplotlib.pyplot.close(drawn)


def test_a_try_says_so_in_every_tables_title(metrics):
    told = "a try, not the study: scratch/60_score_captions"
    tried = metrics | {"tries": ["scratch/60_score_captions"]}
    for rendered in (render_html, render_markdown, render_latex):
        assert told in rendered(tried).replace("\\_", "_") and "a try" not in rendered(metrics)
