"""Captions in other languages: files of translations, good and bad, and the table of them."""

import json
import unicodedata
from collections import Counter

import pandas as pd
import pytest
from test_data_aggregate import folders, make_source

from rsvlm.data.aggregate import aggregate_sources, write_aggregated
from rsvlm.data.source_translations import read_translation_file
from rsvlm.data.sources import check_sources, parse_source
from rsvlm.data.table import load_table
from rsvlm.data.translations import load_translations, save_translations
from rsvlm.viewing.data_figures import translations_table

GOOD = "A river .\tUm rio.\nTwo  planes .\tDois aviões.\n"


def write(path, text, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def read(tmp_path, text, encoding="utf-8"):
    counts = Counter()
    return read_translation_file(write(tmp_path / "pt.tsv", text, encoding), counts), counts


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("RSVLM_CACHE", str(tmp_path_factory.mktemp("cache")))


def test_lines_in_any_order_with_any_spaces_and_ends(tmp_path):
    wanted = {"A river .": "Um rio.", "Two planes .": "Dois aviões."}
    assert read(tmp_path, GOOD)[0] == wanted
    assert read(tmp_path, "".join(reversed(GOOD.splitlines(keepends=True))))[0] == wanted
    assert read(tmp_path, "\ufeff" + GOOD.replace("\n", "\r\n") + "\n\n")[0] == wanted
    assert read(tmp_path, GOOD.rstrip("\n").replace("Um rio.", "  Um\u00a0rio. "))[0] == wanted


def test_what_is_mended_is_counted(tmp_path):
    found, counts = read(tmp_path, unicodedata.normalize("NFD", GOOD) + "A lake .\t\nA sea .\t .\nA river .\tUm rio.\n")
    assert found == {"A river .": "Um rio.", "Two planes .": "Dois aviões."}
    assert counts["lines"] == 5 and counts["lines_in_another_normal_form"] == 1
    assert counts["lines_without_translation"] == 2 and counts["lines_doubled"] == 1


@pytest.mark.parametrize(
    ("text", "encoding", "says"),
    [
        (GOOD, "utf-16", "line 1 starts with the byte order mark of UTF-16"),
        (GOOD, "cp1252", r"line 2 is not UTF-8 text: byte \d+ is 0xF5 .*'õ'"),
        (
            GOOD.replace("õ", "Ãµ"),
            "utf-8",
            r"line 2: .*was UTF-8 that something read as cp1252: it means .*Dois aviões",
        ),
        (GOOD.replace("õ", "\ufffd"), "utf-8", r"line 2: holds the replacement character \(U\+FFFD\)"),
        (GOOD.replace("\t", "    "), "utf-8", "line 1: 0 tabs, must be one: English<TAB>translation"),
        (GOOD + "A lake .\tUm lago.\tUn lago.\n", "utf-8", "line 3: 2 tabs, must be one"),
        (GOOD + " \tUm lago.\n", "utf-8", "line 3: no English before the tab"),
        (
            GOOD + "A river .\tUma ribeira.\n",
            "utf-8",
            r"line 3: 'A river .' is 'Uma ribeira.' here and 'Um rio.' in line 1",
        ),
        ("\n\n", "utf-8", "no translation in it"),
        ("A river .\t\n", "utf-8", "no translation in it"),
        ("A river .\tUm\0rio.\n", "utf-8", "line 1 holds a NUL byte"),
    ],
)
def test_a_wrong_file_says_what_and_where(tmp_path, text, encoding, says):
    with pytest.raises(ValueError, match=rf"(?s)pt\.tsv: {says}"):
        read(tmp_path, text, encoding)


def test_no_file_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"pt\.tsv"):
        read_translation_file(tmp_path / "pt.tsv")


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"translations": {"Portuguese": "pt.tsv"}}, "translations: a language is an ISO 639-1 code"),
        ({"translations": {"en": "en.tsv"}}, "into other languages than 'en'"),
        ({"translations": {"pt": "pt.tsv"}, "translated_by": "me"}, "translated_by"),
        ({"languages": ["pt"]}, "unknown key 'languages'"),
        ({"format": "blue_marble", "languages": ["it"]}, "captions are written in de, es, fr, pt, zh, not in 'it'"),
        ({"format": "blue_marble", "languages": ["pt", "pt"]}, "'pt' stands twice"),
        ({"format": "blue_marble", "translations": {"pt": "pt.tsv"}}, "unknown key 'translations'"),
    ],
)
def test_wrong_keys_of_a_source_are_refused(keys, says):
    source = {"name": "s", "format": "karpathy", "annotations": "d.json", "images": "imgs"} | keys
    if source["format"] == "blue_marble":
        source = {"name": "s", **keys}
    with pytest.raises(ValueError, match=says):
        parse_source(source)


def aggregated(root, *sources):
    rows, report = aggregate_sources(list(sources), data_root=str(root), log=lambda line: None, root=root)
    return write_aggregated(rows, report, **folders(root)), report


def test_from_files_to_the_table(tmp_path):
    one = make_source(tmp_path, captions=("a river .", "two  planes .", "a lake ."))
    write(tmp_path / "pt.tsv", "two planes .\tDois aviões.\na river .\tUm rio.\n")
    write(tmp_path / "zh.tsv", "a lake .\t一个湖。\nelsewhere .\t别处。\n")
    other = make_source(tmp_path, "other")
    metrics, report = aggregated(
        tmp_path, one | {"translations": {"zh": "zh.tsv", "pt": "pt.tsv"}, "translated_by": "people"}, other
    )
    table = load_table(tmp_path / "aggregated/images.parquet")
    found = load_translations(tmp_path / "aggregated/translations.jsonl", table)
    own = table[table["source"] == "s"]
    assert found["image_id"].tolist() == [image_id for image_id in own["image_id"] for _ in range(2)]
    assert found["language"].tolist() == ["pt", "zh"] * len(own) and set(found["how"]) == {"given"}
    assert found["captions"][0] == ["Um rio.", "Dois aviões.", None] and found["captions"][1] == [
        None,
        None,
        "一个湖。",
    ]
    assert len(load_translations(tmp_path / "aggregated/translations.jsonl", table[:0])) == 0
    facts = report["sources"]["s"]["translations"]
    assert {key: facts["pt"][key] for key in ("captions", "translated", "distinct", "lines", "how")} == {
        "captions": 18,
        "translated": 12,
        "distinct": 2,
        "lines": 2,
        "how": "given",
    }
    assert metrics["sources"]["s"]["captions_in_pt"] == 12 and "captions_in_pt" not in metrics["sources"]["other"]
    shown = translations_table(report)
    assert (
        shown["captions translated"].tolist() == [12, 6] and shown["in the language"].tolist()[0] == "given by people"
    )
    card = (tmp_path / "cards/s.md").read_text(encoding="utf-8")
    assert "- In Portuguese, given by people: 12 of 18 captions, 2 different ones." in card


def test_without_translations_the_table_is_there_and_empty(tmp_path):
    metrics, report = aggregated(tmp_path, make_source(tmp_path))
    assert (tmp_path / "aggregated/translations.jsonl").read_bytes() == b""
    table = load_table(tmp_path / "aggregated/images.parquet")
    assert load_translations(tmp_path / "aggregated/translations.jsonl", table).empty
    assert translations_table(report).empty and not any("captions_in" in key for key in metrics["sources"]["s"])
    assert "translations" not in json.loads((tmp_path / "aggregated/report.json").read_text(encoding="utf-8"))


def test_a_file_of_another_source_or_no_file_stops_before_the_images(tmp_path, monkeypatch):
    source = make_source(tmp_path) | {"translations": {"pt": "pt.tsv"}}
    with pytest.raises(ValueError, match=r"translations: .*pt\.tsv does not exist"):
        check_sources(
            {"sources": [source], "data_root": ".", "allow_missing_images": False, "max_images_per_split": None},
            tmp_path,
        )
    write(tmp_path / "pt.tsv", "A lake .\tUm lago.\n")
    with pytest.raises(
        ValueError, match=r"not one line of .*pt\.tsv is a caption of this source; its first is 'A lake \.'"
    ):
        aggregated(tmp_path, source)
    write(tmp_path / "pt.tsv", "A lake\n")
    monkeypatch.setattr(
        "rsvlm.data.aggregate.fingerprint_images", lambda *args, **options: pytest.fail("images opened")
    )
    with pytest.raises(ValueError, match="line 1: 0 tabs"):
        aggregated(tmp_path, source)


ROW = {"image_id": "s/1.png", "language": "pt", "captions": ["Um rio.", None], "how": "machine"}


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([ROW | {"captions": ["Um rio."]}], "row 1: 1 captions, but 's/1.png' has 2 in the image table"),
        ([ROW, ROW], "row 2: 's/1.png' has a row for 'pt' already"),
        ([ROW | {"how": "guess"}], "row 1: how must be one of machine, given, rule"),
        ([ROW | {"captions": "Um rio."}], "row 1: captions must be a list of texts and nulls"),
        ([ROW | {"captions": ["", None]}], "row 1: captions must be a list of texts and nulls"),
        ([ROW | {"language": "por"}], "row 1: a language is an ISO 639-1 code"),
        ([{"image_id": "s/1.png"}], "row 1: needs exactly the keys"),
    ],
)
def test_a_wrong_table_says_which_row(tmp_path, rows, says):
    images = [{"image_id": "s/1.png", "source": "s", "split": "test", "captions": ["a", "b"]}]
    path = tmp_path / "translations.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(ValueError, match=says):
        load_translations(path, pd.DataFrame(images))
    with pytest.raises(FileNotFoundError, match="aggregate_data"):
        load_translations(tmp_path / "none.jsonl", pd.DataFrame(images))


def test_the_table_is_sorted_as_the_image_table_is(tmp_path):
    images = [
        {"image_id": f"{source}/{number}", "source": source, "split": split, "captions": ["a"]}
        for source, split, number in [("b", "train", 1), ("a", "val", 2), ("a", "test", 3)]
    ]
    rows = [
        {"image_id": one["image_id"], "language": code, "captions": ["x"], "how": "rule"}
        for one in images
        for code in ("zh", "de")
    ]
    save_translations(rows, images[1:], tmp_path / "t.jsonl")
    found = load_translations(tmp_path / "t.jsonl", pd.DataFrame(images))
    assert list(zip(found["image_id"], found["language"])) == [
        ("a/3", "de"), ("a/3", "zh"), ("a/2", "de"), ("a/2", "zh"),
    ]  # fmt: skip
