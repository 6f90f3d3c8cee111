"""The image table's file: what is saved is what is loaded, only what is asked for is read, and nothing else passes."""

import json
import string

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from rsvlm.data import table as module
from rsvlm.data.table import CaptionsOf, load_adapt_table, load_table, read_blocks, save_table, thinned
from rsvlm.data.table_rows import COLUMNS, ORDER, SCHEMA, check_rows
from rsvlm.safe_text import fault_in

SPLITS = ["train", "val", "test"]


def rows(count: int = 50) -> list[dict]:
    """Of two sources and three splits, sorted as the table is."""
    made = [
        {
            "image_id": f"{'ab'[i % 2]}/{i:03d}.png",
            "source": "ab"[i % 2],
            "split": SPLITS[i % 3],
            "path": f"../images/{i}.png",
            "captions": [f"a river {i}", "two planes"][: 1 + i % 2],
            "label": None if i % 5 else "river",
            "width": i + 1 if i % 4 else None,
            "height": 300,
            "resolution": 0.3 if i % 4 else None,
        }
        for i in range(count)
    ]
    return sorted(made, key=lambda row: [row[key] for key in ORDER])


@pytest.fixture
def small_groups(monkeypatch):
    monkeypatch.setattr(module, "A_GROUP", 5)


texts = st.text(
    st.characters(codec="utf-8") | st.sampled_from("\x00\x1f\x85\xa0\u2028\u202e\ufeff\"'\\\n\t ="), max_size=9
)
hostile = st.fixed_dictionaries(
    {
        "image_id": texts,
        "source": texts,
        "split": st.sampled_from([*SPLITS, "dev"]),
        "path": texts,
        "captions": st.lists(texts, max_size=3),
        "label": st.none() | texts,
    },
    optional={
        "width": st.none() | st.integers(-1, 2**32),
        "height": st.none() | st.integers(-1, 2**32),
        "resolution": st.none() | st.floats(),
    },
)


@settings(max_examples=60, deadline=None)
@given(st.lists(hostile, max_size=8))
def test_what_is_saved_is_what_is_loaded(tmp_path_factory, made):
    path = tmp_path_factory.mktemp("table") / "t.parquet"
    try:
        wanted = check_rows(made)
    except ValueError:
        with pytest.raises(ValueError):
            save_table(made, path)
        assert not path.exists()
        return
    save_table(made, path)
    wanted.sort(key=lambda row: [row[key] for key in ORDER])
    assert load_table(path).to_dict("records") == wanted
    assert pd.read_parquet(path)["captions"].map(list).tolist() == [row["captions"] for row in wanted]


@settings(max_examples=120, deadline=None)
@given(hostile)
def test_what_may_not_be_saved_is_not_loaded(tmp_path_factory, row):
    """The quick look at whole columns and the look at one row agree."""
    path = tmp_path_factory.mktemp("table") / "t.parquet"
    try:
        parquet.write_table(pa.Table.from_pylist([row], SCHEMA), path)
    except (pa.ArrowException, OverflowError):
        return
    try:
        check_rows([row])
    except ValueError:
        with pytest.raises(ValueError, match=r"t\.parquet: row 1: "):
            load_table(path)
    else:
        load_table(path)


@pytest.mark.parametrize("mark", [chr(code) for code in range(0x110000) if 0xD800 > code or code > 0xDFFF if
                                  not chr(code).strip() or fault_in(chr(code))])  # fmt: skip
def test_each_odd_character_is_looked_at(mark):
    column = pa.array([[mark]], SCHEMA.field("captions").type)
    with pytest.raises(ValueError, match="x: row 7: captions"):
        module.check_part(pa.table({"captions": column}), "x", 7, "remedy")


def test_the_same_rows_are_the_same_bytes(tmp_path, small_groups):
    """In any order, as a list or as an iterator; the digest tells of a change of the file's form."""
    for number, own in enumerate((rows(), rows()[::-1], iter(rows()))):
        save_table(own, tmp_path / f"{number}.parquet")
    contents = {path.read_bytes() for path in tmp_path.iterdir()}
    assert len(contents) == 1
    about = parquet.read_metadata(tmp_path / "0.parquet")
    assert about.num_row_groups == 10 and about.row_group(0).column(0).compression == "ZSTD"
    assert list(about.metadata) == [b"ARROW:schema"], "no time, no name of a machine"


def test_an_iterator_is_never_held_and_must_be_sorted(tmp_path, small_groups):
    given_out, written = [], []

    def watched():
        for row in rows():
            given_out.append(row["image_id"])
            yield row

    class Writer(parquet.ParquetWriter):
        def write_table(self, part, **options):
            written.append(len(part))
            assert len(given_out) - sum(written) <= 1
            super().write_table(part, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.parquet, "ParquetWriter", Writer)
        save_table(watched(), tmp_path / "t.parquet")
    assert written == [5] * 10
    swapped = rows()
    swapped[7], swapped[8] = swapped[8], swapped[7]
    with pytest.raises(ValueError, match=r"u\.parquet: row 9: .* comes behind .*sorted, or as a list"):
        save_table(iter(swapped), tmp_path / "u.parquet")
    twice = [*rows(), rows()[-1] | {"split": "val"}]
    twice[-1]["source"] = "c"
    with pytest.raises(ValueError, match=r"u\.parquet: row 51: image_id 'b/.*' is already in row 50"):
        save_table(iter(twice), tmp_path / "u.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]


def test_only_what_is_asked_for_is_read(tmp_path, small_groups, monkeypatch):
    save_table(rows(), tmp_path / "t.parquet")
    read = []

    def watched(file, path, group, columns, remedy):
        read.append((group, tuple(columns)))
        return original(file, path, group, columns, remedy)

    original = module.read_columns
    monkeypatch.setattr(module, "read_columns", watched)
    wanted = [row for row in rows() if row["source"] == "b" and row["split"] == "val"]
    table = load_table(tmp_path / "t.parquet", columns=["path", "image_id"], split="val", source="b")
    assert table.to_dict("records") == [{"path": row["path"], "image_id": row["image_id"]} for row in wanted]
    assert {columns for _, columns in read} == {("image_id", "source", "split", "path")}, "no captions"
    assert len(read) <= 3, "of ten row groups those that may hold it"
    blocks = list(read_blocks(tmp_path / "t.parquet", columns=["captions"], split=["train", "val"]))
    assert all(0 < len(block) <= 5 for block in blocks)
    assert [own for block in blocks for own in block["captions"]] == [
        row["captions"] for row in rows() if row["split"] != "test"
    ]


def test_the_columns_are_what_callers_take_them_for(tmp_path):
    save_table(rows(), tmp_path / "t.parquet")
    table = load_table(tmp_path / "t.parquet", tmp_path / "root")
    assert list(table) == COLUMNS and table["path"][0] == str(tmp_path / "root" / rows()[0]["path"])
    assert isinstance(table["captions"].array, pd.arrays.ArrowExtensionArray), "in Arrow's memory, not as objects"
    assert type(table["captions"].iloc[3]) is list and type(table["captions"].tolist()[0][0]) is str
    assert table.loc[table["label"].isna(), "label"].tolist() == [None] * sum(row["label"] is None for row in rows())
    said = CaptionsOf(table[table["split"] == "val"])
    assert dict(said) == {row["image_id"]: row["captions"] for row in rows() if row["split"] == "val"}
    assert len(thinned(table, 4)) == 12
    none = load_table(tmp_path / "t.parquet", columns=["captions", "label"], split=[])
    assert none.empty and none["captions"].dtype == table["captions"].dtype


def test_adapting_rows_are_sorted_in(tmp_path):
    save_table([row for row in rows() if row["source"] == "a"], tmp_path / "t.parquet")
    save_table([row for row in rows() if row["source"] == "b"], tmp_path / "more.parquet")
    both = load_adapt_table(tmp_path / "t.parquet", tmp_path / "more.parquet", columns=["path"], split=["train", "val"])
    assert both.to_dict("list") == {"path": [row["path"] for row in rows() if row["split"] != "test"]}


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"split": "dev"}, r"t\.parquet: no split 'dev' in the image table; it has test, train, val"),
        ({"source": "c"}, r"t\.parquet: no source 'c' in the image table; it has a, b"),
        ({"split": ["tain"]}, "split: unknown split 'tain'; did you mean 'train'"),
        ({"columns": ["caption"]}, "no column 'caption' in an image table; it has image_id, "),
    ],
)
def test_what_is_not_there_is_named(tmp_path, asked, why):
    save_table(rows(), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=why):
        load_table(tmp_path / "t.parquet", **asked)


def test_a_fault_is_told_by_its_row_in_the_file(tmp_path):
    wrong = rows()
    wrong[33] = wrong[33] | {"captions": ["a\x0bb"]}
    wrong[40] = wrong[40] | {"resolution": float("inf")}
    twice = [*rows()[:49], rows()[4]]
    for name, own in {"wrong": wrong, "twice": twice}.items():
        parquet.write_table(pa.Table.from_pylist(own, SCHEMA), tmp_path / f"{name}.parquet", row_group_size=7)
    with pytest.raises(ValueError, match=r"wrong\.parquet: row 34: captions holds a line break .* run the stage"):
        load_table(tmp_path / "wrong.parquet")
    with pytest.raises(ValueError, match=r"wrong\.parquet: row 41: resolution must be a number above 0"):
        load_table(tmp_path / "wrong.parquet", columns=["resolution"])
    with pytest.raises(ValueError, match=r"twice\.parquet: row 50: image_id .* is already in row 5"):
        load_table(tmp_path / "twice.parquet")


def test_other_files_are_refused_in_a_sentence(tmp_path):
    path = tmp_path / "t.parquet"
    pd.DataFrame(rows()).to_parquet(path)
    with pytest.raises(
        ValueError,
        match=r"t\.parquet: no image table .* column image_id is large_string, must be string; run the stage",
    ):
        load_table(path)
    parquet.write_table(pa.Table.from_pylist(rows(), SCHEMA).drop_columns("label"), path)
    with pytest.raises(ValueError, match=r"t\.parquet: no image table .* column label is missing; run the stage"):
        load_table(path)
    path.write_text(json.dumps(rows()[0]))
    with pytest.raises(ValueError, match=r"t\.parquet: not a whole Parquet file .*; run the stage aggregate_data"):
        load_table(path)
    save_table(rows(5), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:90] + bytes(60) + whole[150:])
    with pytest.raises(ValueError, match=r"t\.parquet: row group 0 cannot be read .*; run the stage"):
        load_table(path)


def test_a_table_of_an_older_version_says_what_to_run(tmp_path):
    (tmp_path / "images.jsonl").write_text("{}\n")
    with pytest.raises(
        FileNotFoundError, match=r"images\.jsonl: .*older version .*aggregate_data.*images\.parquet"
    ) as told:
        load_table(tmp_path / "images.parquet")
    assert "\n" not in str(told.value)


def test_captions_take_little_memory(tmp_path):
    """Of 20,000 captions, half of what Python's objects take."""
    made = [
        row | {"image_id": f"s/{i}", "captions": [f"{string.ascii_lowercase} {i} {j}" for j in range(5)]}
        for i, row in enumerate(rows(1) * 4000)
    ]
    save_table(made, tmp_path / "t.parquet")
    table = load_table(tmp_path / "t.parquet", columns=["captions"])
    said = table["captions"].tolist()
    objects = sum(64 + sum(56 + len(text) for text in own) for own in said)
    assert table["captions"].nbytes < objects / 2
