import html
import json

import pytest

from rsvlm.scoring.comparison import (
    NOTHING_PUBLISHED,
    caption_table,
    comparison_rows,
    render_html,
    render_markdown,
    retrieval_table,
    study_metrics,
)
from rsvlm.scoring.published import PUBLISHED, Published, published_for


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
        "protocol": {"split": "test"},
        "paired": {"ucm": {}},
    }
    recalls = {"i2t_r1": figure(0.2), "mean_recall": figure(0.55), "i2t_median_rank": figure(5.0)}
    method = {
        "ucm": {"by_image": recalls, "by_text": {"mean_recall": figure(0.8)}, "ceiling": {"mean_recall": figure(0.704)}}
    }
    retrieval = {"ret": method, "combined": method, "protocol": {"split": "test"}}
    return study_metrics(captions, retrieval, {"seed": 0})


def test_metrics_have_the_study_shape(metrics):
    assert list(metrics["captions"]) == ["captioner", "consensus", "zz_other"]
    assert metrics["captions"]["captioner"]["ucm"]["CIDEr"] == figure(3.91)
    assert metrics["captions"]["captioner"]["ucm"]["CIDEr_unseen"] == figure(3.36)
    assert list(metrics["retrieval"]) == ["combined", "ret"]
    assert metrics["retrieval"]["ret"]["ucm"]["mean_recall"] == figure(0.55)
    assert metrics["retrieval"]["ret"]["ucm"]["mean_recall_ceiling"]["value"] == 0.704
    assert metrics["provenance"] == {"seed": 0}
    json.dumps(metrics, allow_nan=False)


def test_caption_table_puts_ours_beside_published_on_one_scale(metrics):
    table = caption_table(metrics, "ucm").set_index("model")
    assert table.index[0] == "captioner"
    assert table.loc["captioner", "CIDEr"] == "3.910 [3.810, 4.010]" and table.loc["captioner", "SPICE"] == "not run"
    assert table.loc["RSGPT", "CIDEr"] == "3.332" and table.loc["RSGPT", "status"] == "read"
    assert table.loc["RS-CapRet 7B, fine-tuned", "status"] == "recalled"
    assert table.loc["SkyEyeGPT", "kind"] == "generalist"
    assert "CIDEr seen" not in table  # nobody has a figure there


def test_retrieval_table_is_in_percent_with_the_ceiling(metrics):
    table = retrieval_table(metrics, "ucm").set_index("model")
    assert table.loc["both combined", "mean recall"] == "55.0 [45.0, 65.0]"
    assert table.loc["AMFMN", "mean recall"] == "46.1" and table.loc["AMFMN", "I2T R@1"] == "16.7"
    assert table[table["kind"] == "ceiling"]["mean recall"].tolist() == ["70.4"]


def test_a_source_without_a_literature_says_so(metrics):
    text = render_markdown(metrics)
    section = text[text.index("## Captions: blue_marble") : text.index("## Captions: ucm")]
    assert NOTHING_PUBLISHED in section and "recalled" not in section
    assert NOTHING_PUBLISHED not in text[text.index("## Captions: ucm") : text.index("## Retrieval")]
    assert html.escape(NOTHING_PUBLISHED) in render_html(metrics)


def test_texts_are_escaped(metrics):
    page, text = render_html(metrics), render_markdown(metrics)
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "<script" not in text and "&lt;/script&gt;\\|" in text


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
        if "i2t_r1" in row.values:  # mean recall is the mean of the six
            six = [value for name, value in row.values.items() if name != "mean_recall"]
            assert row.values["mean_recall"] == pytest.approx(sum(six) / 6, abs=6e-4), row.name
    assert published_for("captions", "UCM_Captions") == published_for("captions", "ucm") != []
    assert published_for("captions", "blue_marble") == []
    with pytest.raises(ValueError, match="unknown"):
        Published("captions", "ucm", "x", "expert", "read", {}, "x1")
