"""What files may not hold in silence: a key twice, control characters, names that are none, one name in two forms."""

import json
import tarfile
import unicodedata
from collections import Counter
from io import BytesIO

import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet
from test_data_packed import picture
from test_data_readers import entry, read

from rsvlm.data.caption_tables import Columns, read_caption_table
from rsvlm.data.listings import clean_captions, find_images
from rsvlm.data.names import ALL, check_name
from rsvlm.data.packed_readers import read_webdataset
from rsvlm.data.sources import parse_source
from rsvlm.data.table import load_table, save_table
from rsvlm.data.table_rows import SCHEMA
from rsvlm.files import read_json, read_json_lines
from rsvlm.scoring.caption_files import read_caption_lists
from rsvlm.scoring.image_matching import match_images
from rsvlm.scoring.runs import read_captions
from rsvlm.study.config import read_params

TWICE = '{"image": "1.png", "caption": "a river", "split": "train", "caption": "a lake"}'
COMPOSED, APART = (unicodedata.normalize(form, "côte/forêt_é.png") for form in ("NFC", "NFD"))


# A key twice: the last one alone would count


@pytest.mark.parametrize(
    ("name", "text", "reader", "where"),
    [
        ("a.json", f"[{TWICE}]", read_json, r"a\.json: "),
        ("a.json", f"[{TWICE}]", read_caption_table, r"a\.json: "),
        ("a.json", '{"images": [], "images": [{}]}', read_json, r"a\.json: "),
        ("a.jsonl", f"\n{TWICE}\n", read_caption_table, r"a\.jsonl: line 2: "),
        ("a.jsonl", f"{{}}\n{TWICE}\n", read_json_lines, r"a\.jsonl: line 2: "),
        ("a.json", '{"1.png": "a river", "1.png": "a lake"}', read_caption_lists, r"a\.json: "),
    ],
)
def test_a_key_that_stands_twice_is_refused(tmp_path, name, text, reader, where):
    (tmp_path / name).write_text(text)
    with pytest.raises(
        ValueError, match=rf"{where}the key '(caption|images|1\.png)' stands twice in one object.*keep one"
    ):
        reader(tmp_path / name)


def test_a_key_that_stands_twice_in_a_shard_is_refused(tmp_path):
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        for name, data in (("a.png", picture(0)), ("a.json", b'{"text": "a", "text": "b"}')):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, BytesIO(data))
    with pytest.raises(ValueError, match=r"train\.tar::a\.json: the key 'text' stands twice"):
        read_webdataset(tmp_path / "train.tar", ALL, Columns(captions=("text",)))


# JSON and YAML that Python cannot follow

DEEP, LONG = "[" * 200_000, "1" * 5000


@pytest.mark.parametrize("reader", [read_json, read_json_lines, read_caption_table, read_caption_lists])
@pytest.mark.parametrize("text", [DEEP, f'[{{"image": "a.png", "caption": {DEEP}}}]', f"[{LONG}]"])
def test_json_too_deep_or_with_too_long_a_number_is_refused(tmp_path, reader, text):
    path = tmp_path / ("a.jsonl" if reader is read_json_lines else "a.json")
    path.write_text(text)
    with pytest.raises(
        ValueError, match=r"a\.jsonl?: .*line 1.*(nested too deep|a whole number of more than 4,300 digits)$"
    ):
        reader(path)


def test_json_lines_that_are_no_text_are_refused_by_their_line(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"{}\n\xff\n")
    with pytest.raises(ValueError, match=r"a\.jsonl: line 2 is not UTF-8 text: byte 0 is 0xFF"):
        read_json_lines(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"a: " + b"[" * 2000, "nested too deep"),
        (b"a: {b: " + b"[" * 500 + b"]" * 500 + b"}", "nested too deep"),
        (b"a:\n  b: " + LONG.encode(), "a whole number of more than 4,300 digits(?s:.*)line 2, column 6"),
        (b"a:\n  b: 2001-13-45", "month must be in 1..12(?s:.*)line 2"),
        (b"a:\n  b: !!float x", "no value: could not convert(?s:.*)line 2"),
        (b"a:\n  b: \xff", "line 2 is not UTF-8 text"),
    ],
)
def test_yaml_that_holds_no_value_is_refused_by_its_line(tmp_path, text, told):
    (tmp_path / "params.yaml").write_bytes(text)
    with pytest.raises(ValueError, match=rf"params\.yaml: .*{told}"):
        read_params(tmp_path / "params.yaml")


def test_json_with_each_key_once_is_what_it_was(tmp_path):
    value = {"a": [{"b": 1}, {"b": 2}], "c": None, "d": {}}
    (tmp_path / "a.json").write_text(json.dumps(value))
    assert read_json(tmp_path / "a.json") == value


# Control characters


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a \0river", r"a control character \(U\+0000\) at place 3"),
        ("a river\x1b[31m", r"a control character \(U\+001B\) at place 8"),
        ("a river\x7f", r"a control character \(U\+007F\)"),
        ("a \ud800 river", r"characters that are no text in UTF-8 \(U\+D800\)"),
    ],
)
def test_captions_with_control_characters_are_refused(tmp_path, text, what):
    for fixes in (ALL, frozenset()):
        with pytest.raises(ValueError, match=rf"a_1\.tif.*: the caption .* holds {what}.*take it out of the file$"):
            read(tmp_path, entry("a_1.tif", captions=["a lake", text]), fixes=fixes)
    row = {"image_id": "s/1", "source": "s", "split": "train", "path": "a.png", "captions": [text], "label": None}
    with pytest.raises(ValueError, match=f"row 1: captions holds {what}"):
        save_table([row], tmp_path / "t.jsonl")
    with pytest.raises(ValueError, match=f"row 1: label holds {what}"):
        save_table([row | {"captions": ["x"], "label": text}], tmp_path / "t.jsonl")
    said = tmp_path / "said.jsonl"
    said.write_text(json.dumps({"image_id": "s/1", "caption": text}))
    for reader, named in ((read_captions, "of 's/1'"), (read_caption_lists, "'a ")):
        with pytest.raises(
            ValueError, match=rf"said\.jsonl: line 1: the caption {named}.* holds {what}.*; take it out"
        ):
            reader(said)


@pytest.mark.parametrize("mark", ["\n", "\r\n", "\x0b", "\x85"])
def test_a_line_break_in_a_caption_becomes_a_space_or_is_refused(tmp_path, mark):
    counts = Counter()
    assert clean_captions([f"a{mark}river"], counts) == ("a river",) and counts["captions_with_extra_spaces"] == 1
    with pytest.raises(
        ValueError, match="holds a line break .* at place 2; .*the fix 'extra_spaces' makes a space of it"
    ):
        clean_captions([f"a{mark}river"], Counter(), ALL - {"extra_spaces"})
    row = {"image_id": "s/1", "source": "s", "split": "train", "path": "a.png", "captions": ["a"], "label": None}
    for change in ({"captions": [f"a{mark}b"]}, {"image_id": f"s/a{mark}b"}, {"label": f"a{mark}b"}):
        parquet.write_table(pa.Table.from_pylist([row | change], SCHEMA), tmp_path / "t.parquet")
        with pytest.raises(ValueError, match=r"t\.parquet: row 1: \w+ holds a line break"):
            load_table(tmp_path / "t.parquet")


@pytest.mark.parametrize("name", ["a\nb.png", "a\x1b.png", "a\ud8ff.png"])
def test_names_of_files_with_control_characters_are_refused(name):
    with pytest.raises(ValueError, match="x: line 1: the file name .* holds .*; rename the file"):
        check_name(name, "x: line 1")


@pytest.mark.parametrize("name", ["forêt.png", "a b (1).png", "图.png", "\u200fن.png"])
def test_names_of_people_are_names(name):
    assert check_name(name, "") == name


# Names of sources


@pytest.mark.parametrize(
    "name",
    [
        "", " ", "a/b", "..", ".a", "-a", "=1+1", "@a", "a\nb", "a\0", "<b>", "a|b", "a: b", "a`b", "a\u202eb", "a ",
        'a"b', "a'b", "a\\b", "a" * 61, "e\u0301",
    ],
)  # fmt: skip
def test_a_source_is_called_by_a_plain_name(name):
    settings = {"format": "karpathy", "annotations": "a.json", "images": "i"}
    with pytest.raises(
        ValueError, match="sources: .*'name' (must be letters, digits, spaces|holds a control character)"
    ) as raised:
        parse_source(settings | {"name": name})
    assert repr(name) in str(raised.value)


@pytest.mark.parametrize("name", ["ucm", "rsicd_2", "My data 1.0", "é", "图像", "a" * 60])
def test_names_that_sources_may_have(name):
    assert parse_source({"name": name, "format": "karpathy", "annotations": "a.json", "images": "i"}).name == name


# One name in two Unicode forms


@pytest.mark.parametrize(("listed", "lying"), [(COMPOSED, APART), (APART, COMPOSED)])
def test_a_file_is_found_under_another_unicode_form_of_its_name(tmp_path, listed, lying):
    for name in (lying, "1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    images = read(tmp_path, entry(listed), entry("1.png")).images
    found, missing, counts = find_images(images, tmp_path)
    assert [item.name for item in found] == [lying, "1.png"] and not missing
    assert counts["images_in_another_unicode_form"] == 1 and counts["images_in_another_folder"] == 0
    assert find_images(images, tmp_path, ALL - {"other_unicode_form"})[1] == [listed]
    other = read(tmp_path, entry(listed.replace(".png", ".tif"))).images  # with the other fixes as well
    found, _, counts = find_images(other, tmp_path)
    assert found[0].name == lying and counts["images_with_another_extension"] == 1
    alone = read(tmp_path, entry(listed.rpartition("/")[2])).images
    found, _, counts = find_images(alone, tmp_path)
    assert found[0].name == lying and counts["images_in_another_folder"] == 1
    assert counts["images_in_another_unicode_form"] == 1


def test_both_forms_may_lie_beside_each_other(tmp_path):
    for name in (COMPOSED, APART):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found, missing, counts = find_images(read(tmp_path, entry(APART), entry(COMPOSED)).images, tmp_path)
    assert [item.name for item in found] == [APART, COMPOSED] and not missing
    assert counts["images_in_another_unicode_form"] == 0


def test_others_may_name_the_images_in_another_form():
    table = pd.DataFrame({"image_id": [f"s/{APART}", "s/1.png"], "source": "s", "path": ["a.png", "1.png"]})
    found = match_images([COMPOSED, "1.png"], table)
    assert found.matched[COMPOSED] == f"s/{APART}" and found.how == "file name" and not found.missing
