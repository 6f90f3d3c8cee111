"""The columns behind the caption gallery: what is read, and in which order the questions are answered."""

import numpy as np
import pytest
from test_galleries import NAME, NASTY, make_study, root  # noqa: F401

from rsvlm.data.translations import save_translations
from rsvlm.study import paths
from rsvlm.study.paths import finished_study
from rsvlm.viewing import records as records_cache
from rsvlm.viewing.caption_gallery import write_caption_gallery
from rsvlm.viewing.records import Query, draw_order, open_records, read_entries, read_records, select_rows
from rsvlm.viewing.widgets import CaptionGallery


@pytest.fixture
def records(root):  # noqa: F811
    make_study(root)
    return read_records(finished_study())


def ask(records, marks=None, **query):
    """Image numbers in the order of the answer, and the values."""
    rows, values = select_rows(records, Query(run="captioner", **query), drawn=draw_order(records, seed=0), marks=marks)
    return [
        1 if records.image_ids[row].endswith(NAME) else int(records.image_ids[row].split("/")[-1][:-4]) for row in rows
    ], values


def test_what_is_read(records):
    assert records.runs == ["captioner", "consensus", "nearest"] and records.metrics == ["CIDEr", "METEOR"]
    entry = records.entry(records.row_of["alpha/4.png"])
    assert entry.score("captioner", "CIDEr") == 2.0 and entry.score("consensus", "CIDEr") == 3.0
    assert entry.references == (("A river runs .", 2), ("Field 4 with trees", 1)) and entry.seen is True
    assert read_entries(finished_study(), "captioner", ["consensus", "shuffled"])[1] == ["shuffled"]


def test_orders(records):
    best, values = ask(records, order="best")
    assert values.tolist() == sorted(values, reverse=True) and best[0] == 11 and set(best) == {*range(12)}
    worst, values = ask(records, order="worst")
    assert values.tolist() == sorted(values) and worst[-1] == 11
    middle, values = ask(records, order="median")
    distances = np.abs(values - 2.5)  # the lower of the two middle ones
    assert values[0] == 2.5 and distances.tolist() == sorted(distances)
    drawn, _ = ask(records, order="random")
    assert sorted(drawn) == sorted(best) and drawn == ask(records, order="random")[0]


def test_gaps(records):
    _, gaps = ask(records, order="best", measure="gap", baseline="consensus")
    assert np.allclose(gaps, -1.0)
    _, gaps = ask(records, order="best", measure="gap", baseline="nearest")
    assert np.allclose(gaps, 0.0)


def test_filters(records):
    assert set(
        records.sources[select_rows(records, Query("captioner", source="beta<b>"), drawn=draw_order(records))[0]]
    ) == {"beta<b>"}
    assert sorted(ask(records, low=2.0, high=3.0)[0]) == [4, 5, 6]
    assert sorted(ask(records, seen="yes")[0]) == [0, 2, 4, 6, 8, 10]
    assert ask(records, label="nowhere")[0] == []
    assert ask(records, words="river BOATS")[0] and 3 not in ask(records, words="river")[0]  # 3 says nothing
    assert ask(records, words="field 8", place="references")[0] == [8]
    assert ask(records, words="field 8")[0] == []
    assert ask(records, words=NASTY[3].lower(), place="references")[0] == [3]
    assert ask(records, words="7.png", place="all")[0] == [7]


def test_references_in_other_languages(root):  # noqa: F811
    rows = make_study(root)
    assert read_records(finished_study()).languages == {}
    own = [("pt", "machine", "Um rio corre ."), ("zh", "rule", "一条河流。")]
    made = [
        {"image_id": row["image_id"], "language": code, "captions": [text, text, *[None] * (len(row["captions"]) - 2)]}
        | {"how": how}
        for number, row in enumerate(rows)
        for code, how, text in own
        if code == "pt" or number == 5
    ]
    save_translations(made, rows, paths.TRANSLATIONS)
    records = read_records(finished_study())
    assert records.how == {"pt": "machine-translated", "zh": "written by rule"}
    entry = records.entry(records.row_of["alpha/5.png"])
    assert entry.languages == {"pt": (("Um rio corre .", 2),), "zh": (("一条河流。", 2),)}
    assert "zh" not in records.entry(0).languages
    assert ask(records, language="zh")[0] == [5] and len(ask(records, language="pt")[0]) == 12
    assert len(ask(records, language="en")[0]) == 12 and ask(records, language="fr")[0] == []
    assert ask(records, words="河流", place="references")[0] == [5] and ask(records, words="河流")[0] == []


def test_marks_filter(records):
    marks = {
        ("captioner", "alpha/4.png"): {"good"},
        ("captioner", "alpha/5.png"): {"wrong count"},
        ("nearest", "alpha/7.png"): {"good"},
    }
    assert sorted(ask(records, marks, mark="any")[0]) == [4, 5]
    assert ask(records, marks, mark="good")[0] == [4]
    assert len(ask(records, marks, mark="none")[0]) == 10 and len(ask(records, {}, mark="none")[0]) == 12


def test_what_was_not_measured_stands_last(root):  # noqa: F811
    make_study(root, scored=False)
    records = read_records(finished_study())
    for order in ("best", "worst", "median"):
        numbers, values = ask(records, order=order)
        assert len(numbers) == 12 and np.isnan(values).all() and numbers == ask(records)[0]
    assert ask(records, low=0.0)[0] == []


def test_queries_check_themselves(records):
    with pytest.raises(ValueError, match="order: 'upwards' is none of 'random'"):
        Query("captioner", order="upwards")
    with pytest.raises(ValueError, match="low: a number"):
        Query("captioner", low="2")
    with pytest.raises(ValueError, match="run 'other' is none of captioner"):
        select_rows(records, Query("other"), drawn=draw_order(records))


def test_a_large_study_is_read_once(root, monkeypatch):  # noqa: F811
    make_study(root)
    monkeypatch.setattr(records_cache, "LARGE", 5)
    first = open_records(finished_study())
    monkeypatch.setattr(records_cache, "read_records", lambda *_, **__: pytest.fail("read again"))
    second = open_records(finished_study())
    assert [second.entry(row) for row in range(12)] == [first.entry(row) for row in range(12)]
    assert second.metrics == first.metrics and second.runs == first.runs and second.seen.tolist() == first.seen.tolist()
    query = Query("captioner", order="worst", label="river")
    for one, other in zip(*(select_rows(own, query, drawn=draw_order(own)) for own in (first, second)), strict=True):
        assert one.tolist() == other.tolist()


def test_the_stage_leaves_a_large_study_ready_to_open(root, monkeypatch):  # noqa: F811
    make_study(root)
    monkeypatch.setattr(records_cache, "LARGE", 5)
    write_caption_gallery(paths.GALLERIES / "captions.html", finished_study(), images=4)
    monkeypatch.setattr(records_cache, "read_records", lambda *_, **__: pytest.fail("read again"))
    assert len(CaptionGallery(finished_study()).records) == 12


def test_a_changed_file_is_read_anew_and_old_columns_go(root, monkeypatch):  # noqa: F811
    make_study(root)
    monkeypatch.setattr(records_cache, "LARGE", 5)
    monkeypatch.setattr(records_cache, "KEPT", 2)
    for number in range(4):
        path = paths.GENERATED / "captioner.jsonl"
        path.write_text(path.read_text().replace("A River", f"A River{number}"))
        assert (
            f"A River{number}"
            in open_records(finished_study()).said["captioner"][0] + open_records(finished_study()).said["captioner"][5]
        )
    assert len(list(paths.CACHE.glob("records_*.npz"))) == 2
