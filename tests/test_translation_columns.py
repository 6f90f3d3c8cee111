"""Translations as columns of a table of captions: CSV, JSON lines, Parquet and shards, good and bad."""

import csv
import io
import json
import unicodedata

import pandas as pd
import pytest
from PIL import Image
from test_data_aggregate import SPLIT_OF, folders
from test_data_packed import picture, write_shard

from rsvlm.data.aggregate import aggregate_sources, write_aggregated
from rsvlm.data.sources import check_sources, parse_source
from rsvlm.data.table import load_table
from rsvlm.data.translations import load_translations
from rsvlm.viewing.data_figures import translations_table

SPLITS = list(SPLIT_OF)
WIDE = ["image", "split", "caption_1", "caption_2", "pt_1", "pt_2", "Deutsch 1", "Deutsch 2"]
ROW = ["A river .", "Two  planes .", "Um rio.", "Dois aviões.", "Ein Fluss.", ""]
COLUMNS = {"pt": ["pt_1", "pt_2"], "de": ["Deutsch 1", "Deutsch 2"]}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("RSVLM_CACHE", str(tmp_path_factory.mktemp("cache")))


def make(root, rows=None, *, columns=COLUMNS, names=WIDE, encoding="utf-8", **keys):
    """A source of CSV, a picture a split and its row; ``rows`` of one of them are in the place of ROW."""
    folder = root / "s" / "imgs"
    folder.mkdir(parents=True)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(names)
    for number, split in enumerate(SPLITS):
        (folder / f"{number}.png").write_bytes(picture(number))
        writer.writerow([f"{number}.png", split, *((rows or {}).get(number, ROW))])
    (root / "s/t.csv").write_bytes(text.getvalue().encode(encoding))
    source = {"name": "s", "format": "caption_table", "annotations": "s/t.csv", "images": "s/imgs"}
    return source | {"translations": columns} | keys


def aggregated(root, source):
    """(metrics, report, the table of translations)."""
    rows, report = aggregate_sources([source], data_root=str(root), log=lambda line: None, root=root)
    metrics = write_aggregated(rows, report, **folders(root))
    table = load_table(root / "aggregated/images.parquet")
    return metrics, report, load_translations(root / "aggregated/translations.jsonl", table)


def test_from_columns_to_the_table(tmp_path):
    source = make(tmp_path, translated_by="people")
    check_sources(
        {"sources": [source], "data_root": ".", "allow_missing_images": False, "max_images_per_split": None}, tmp_path
    )
    metrics, report, found = aggregated(tmp_path, source)
    own = {row.language: row.captions for row in found.itertuples() if row.image_id == "s/0.png"}
    assert own == {"pt": ["Um rio.", "Dois aviões."], "de": ["Ein Fluss.", None]}
    assert len(found) == 2 * len(SPLITS) and set(found["how"]) == {"given"}
    facts = report["sources"]["s"]["translations"]
    n = len(SPLITS)
    assert facts["de"]["columns"] == COLUMNS["de"] and facts["de"]["how"] == "given"
    assert facts["de"]["cells"] == 2 * n and facts["de"]["cells_without_translation"] == n == facts["de"]["translated"]
    assert facts["pt"]["translated"] == 2 * n and metrics["sources"]["s"]["captions_in_de"] == n
    assert translations_table(report)["lines or cells without translation"].tolist() == [n, 0]
    images = str(load_table(tmp_path / "aggregated/images.parquet").to_dict("records"))
    assert "translations" not in images and "Um rio" not in images
    assert "- In Portuguese, given by people:" in (tmp_path / "cards/s.md").read_text(encoding="utf-8")


def test_a_row_keeps_its_own_translation_where_a_file_could_not(tmp_path):
    """People translate the same sentence differently; blank captions take their translations with them."""
    rows = {0: ["A river .", "A river .", "Um rio.", "Um ribeiro.", "", ""],
            1: ["A river .", "A river .", "O rio.", "O rio.", "", ""],
            2: [".", "Two planes .", "Nada.", "Dois aviões.", "", "Zwei."]}  # fmt: skip
    _, report, found = aggregated(tmp_path, make(tmp_path, rows))
    own = {row.image_id: row.captions for row in found[found["language"] == "pt"].itertuples()}
    assert own["s/0.png"] == ["Um rio.", "Um ribeiro."] and own["s/1.png"] == ["O rio.", "O rio."]
    assert own["s/2.png"] == ["Dois aviões."]
    facts = report["sources"]["s"]["translations"]["pt"]
    assert facts["cells_doubled"] == 1 and facts["cells_doubled_with_another_text"] == 1


def test_another_normal_form_is_composed_and_counted(tmp_path):
    rows = {0: [*ROW[:3], unicodedata.normalize("NFD", "Dois  aviões. "), *ROW[4:]]}
    _, report, found = aggregated(tmp_path, make(tmp_path, rows))
    assert found[found["language"] == "pt"]["captions"].tolist()[0] is not None
    assert {captions[1] for captions in found[found["language"] == "pt"]["captions"]} == {"Dois aviões."}
    assert report["sources"]["s"]["translations"]["pt"]["cells_in_another_normal_form"] == 1


@pytest.mark.parametrize(
    ("rows", "options", "says"),
    [
        ({1: [*ROW[:3], "Dois aviÃµes.", *ROW[4:]]}, {}, r"t\.csv: line 3 \(1\.png\): pt: 'Dois aviÃµes\.' was UTF-8 that"),
        ({1: [*ROW[:3], "Dois avi\ufffdes.", *ROW[4:]]}, {}, r"line 3 \(1\.png\): pt: holds the replacement character"),
        ({}, {"encoding": "cp1252"}, r"line 2 is not UTF-8 text: byte \d+ is 0xF5"),
        ({}, {"columns": {"pt": ["pt_1", "pt_3"]}}, r"translations: pt: no column is named 'pt_3'; did you mean"),
        ({}, {"columns": {"pt": ["pt_1"]}}, r"translations: pt: 1 columns for 2 of captions \(caption_1, caption_2\)"),
        (dict.fromkeys(range(9), [*ROW[:4], "", "."]), {}, "translations: de: not one cell of Deutsch 1, Deutsch 2 holds"),
        ({1: ["A river .", "", *ROW[2:]]}, {}, r"line 3 \(1\.png\): pt: 1 translations for 0 captions"),
    ],
)  # fmt: skip
def test_wrong_columns_say_what_and_where(tmp_path, rows, options, says):
    with pytest.raises(ValueError, match=rf"(?s){says}"):
        aggregated(tmp_path, make(tmp_path, rows, **options))


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"format": "karpathy"}, "a list names columns of a table .* format karpathy takes a file"),
        ({"translations": {"pt": []}}, "must be a file or a list of columns' names"),
        ({"translations": {"pt": [""]}}, "must be a file or a list of columns' names"),
        (
            {"caption_columns": ["a"], "translations": {"pt": ["b", "c"]}},
            "pt: 2 columns for the 1 of 'caption_columns'",
        ),
        ({"translations": {"en": ["b"]}}, "into other languages than 'en'"),
        ({"translations": {"pt": 3}}, "translations"),
    ],
)
def test_wrong_settings_are_refused(keys, says):
    source = {
        "name": "s",
        "format": "caption_table",
        "annotations": "t.csv",
        "images": "i",
        "translations": {"pt": ["b"]},
    }
    with pytest.raises(ValueError, match=says):
        parse_source(source | keys)
    assert parse_source(source).paths == [("annotations", "t.csv"), ("images", "i")]


def test_a_file_and_columns_stand_side_by_side(tmp_path):
    (tmp_path / "de.tsv").write_text("A river .\tEin Fluss.\n", encoding="utf-8")
    *_, found = aggregated(tmp_path, make(tmp_path, columns={"pt": COLUMNS["pt"], "de": "de.tsv"}))
    assert found["language"].tolist() == ["de", "pt"] * len(SPLITS)


LISTS = {"captions": ["A river .", "Two planes ."], "pt": ["Um rio.", None]}


def lists(root, changes=None):
    """A source of JSON lines with lists of captions and of their translations."""
    (root / "imgs").mkdir()
    rows = []
    for number, split in enumerate(SPLITS):
        (root / f"imgs/{number}.png").write_bytes(picture(number))
        rows.append({"image": f"{number}.png", "split": split, **LISTS, **((changes or {}) if number == 1 else {})})
    (root / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = {"name": "s", "format": "caption_table", "annotations": "t.jsonl", "images": "imgs"}
    return source | {"translations": {"pt": ["pt"]}}


def test_a_list_of_translations_stands_beside_a_list_of_captions(tmp_path):
    *_, found = aggregated(tmp_path, lists(tmp_path, {"pt": None}))
    assert found["captions"].tolist() == [["Um rio.", None]] * (len(SPLITS) - 1)


@pytest.mark.parametrize(
    ("cell", "says"),
    [(["Um rio."], "1 translations for 2 captions"), ("Um rio.", "1 translations for 2 captions"), ([1, 2], "must be a text, a list")],
)  # fmt: skip
def test_a_list_that_does_not_fit_is_refused(tmp_path, cell, says):
    with pytest.raises(ValueError, match=rf"t\.jsonl: line 2 \(1\.png\): pt: .*{says}"):
        aggregated(tmp_path, lists(tmp_path, {"pt": cell}))


def test_a_parquet_file_of_hugging_face(tmp_path):
    for number, split in enumerate(SPLITS):
        table = {"image": [{"bytes": picture(number), "path": None}], "caption": [ROW[0]], "caption_pt": ["Um rio."]}
        (tmp_path / "set").mkdir(exist_ok=True)
        pd.DataFrame(table).to_parquet(tmp_path / f"set/{split}-{number}.parquet")
    source = {"name": "h", "format": "hf_dataset", "annotations": "set", "translations": {"pt": ["caption_pt"]}}
    *_, found = aggregated(tmp_path, source)
    assert found["captions"].tolist() == [["Um rio."]] * len(SPLITS)


def test_a_shards_json(tmp_path):
    for number, split in enumerate(SPLITS):
        about = {"text": "A river .", "text_pt": "Um rio."}
        write_shard(
            tmp_path / f"shards/{split}-{number}.tar", [("a.png", picture(number)), ("a.json", json.dumps(about))]
        )
    source = {"name": "w", "format": "webdataset", "annotations": "shards", "caption_columns": ["text"]}
    *_, found = aggregated(tmp_path, source | {"translations": {"pt": ["text_pt"]}})
    assert found["captions"].tolist() == [["Um rio."]] * len(SPLITS)
    with pytest.raises(ValueError, match="has no field 'text_pr'; did you mean 'text_pt'"):
        aggregated(tmp_path, source | {"translations": {"pt": ["text_pr"]}})
    assert Image.open(io.BytesIO(picture(0))).size == (40, 40)
