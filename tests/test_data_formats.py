"""The other caption formats: what is read, what is refused with file and line; and the real files where they are."""

import gzip
import json

import pandas as pd
import pytest

from rsvlm.data.aggregate import aggregate_sources
from rsvlm.data.caption_readers import read_coco_captions, read_precomputed, read_sydney_text
from rsvlm.data.caption_tables import Columns, read_caption_table, read_retrieval_json
from rsvlm.data.listings import read_lines
from rsvlm.data.names import ALL
from rsvlm.data.readers import list_source
from rsvlm.data.sources import parse_source
from rsvlm.scoring.caption_files import read_caption_lists


def write(path, content):
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def as_tuples(listing):
    return [(image.name, image.split, image.captions, image.label) for image in listing.images]


def sydney(folder, descriptions="1 a field\n1 some houses\n2 a road", train="1.tif\n", test="2.tif"):
    lists = {"train": write(folder / "train.txt", train), "test": write(folder / "test.txt", test)}
    return read_sydney_text(write(folder / "d.txt", descriptions), lists)


def test_sydney_text_without_a_final_newline(tmp_path):
    assert as_tuples(sydney(tmp_path)) == [
        ("1.tif", "train", ("a field", "some houses"), None),
        ("2.tif", "test", ("a road",), None),
    ]
    assert sydney(tmp_path, "1 a field").images[1].captions == (), "named in a list, never described"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"descriptions": "1 a field\nno id here"}, r"d\.txt: line 2: needs 'ID CAPTION'"),
        ({"descriptions": "1 a field\n2"}, r"d\.txt: line 2: needs 'ID CAPTION'"),
        ({"descriptions": "1 a field\n3 a road"}, r"d\.txt: line 2: no list names an image '3'"),
        ({"test": "1.tif"}, r"test\.txt: line 1: '1\.tif' is already at .*train\.txt: line 1"),
        ({"test": "../2.tif"}, r"test\.txt: line 1: .*leads out"),
        ({"descriptions": b"1 a field\n2 caf\xe9"}, r"d\.txt: line 2 is not UTF-8"),
        ({"descriptions": "1 a field\n2 a\0road"}, r"d\.txt: line 2 holds a NUL byte"),
    ],
)
def test_bad_sydney_text(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        sydney(tmp_path, **change)


def test_retrieval_json_by_rows_and_by_lists(tmp_path):
    train = [
        {"image": "train/bridge_1.tif", "caption": "a bridge", "label_name": "bridge", "label": 0},
        {"image": "train/bridge_1.tif", "caption": "a river", "label_name": "bridge", "label": 0},
        {"image": "train/park_2.tif", "caption": "", "label_name": "park", "label": 1},
    ]
    test = [{"image": "test/lake_3.tif", "caption": ["a lake", "a  lake", "."]}]
    files = {"train": write(tmp_path / "train.json", train), "test": write(tmp_path / "test.json", test)}
    listing = read_retrieval_json(files)
    assert as_tuples(listing) == [
        ("bridge_1.tif", "train", ("a bridge", "a river"), "bridge"),
        ("park_2.tif", "train", (), "park"),
        ("lake_3.tif", "test", ("a lake", "a lake"), None),
    ]
    assert listing.counts["captions_blank_dropped"] == 2 and listing.counts["images_named_under_another_split"] == 0
    other = read_retrieval_json({"val": files["test"]})
    assert other.counts["images_named_under_another_split"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"image": "a.tif", "capt', r"t\.json: not valid JSON: line 1"),
        ({}, "needs a non-empty list"),
        (["x"], r"\[0\]: must be an object"),
        ([{"image": "a.tif", "caption": 3}], r"\[0\] \(a\.tif\): 'caption' must be a text or a list"),
        ([{"image": 3, "caption": "x"}], r"\[0\]: the file name must be"),
        ([{"image": "a.tif", "caption": "x", "label_name": 3}], "'label_name' must be a text"),
        (
            [{"image": "a.tif", "caption": "x", "label_name": n} for n in ("b", "c")],
            r"\[1\]: 'a\.tif' has the class 'c', but 'b' at .*\[0\]",
        ),
    ],
)
def test_bad_retrieval_json(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_retrieval_json({"train": write(tmp_path / "t.json", content)})


@pytest.mark.parametrize("names", ["a.tif\n" * 5 + "b.tif\n" * 5, "a.tif\nb.tif"])
def test_precomputed_text_names_each_image_five_times_or_once(tmp_path, names):
    write(tmp_path / "train_caps.txt", "\n".join(f"caption {n}" for n in range(10)) + "\n")
    write(tmp_path / "train_filename.txt", names)
    listing = read_precomputed({"train": tmp_path / "train"})
    assert [(i.name, len(i.captions), i.captions[0]) for i in listing.images] == [
        ("a.tif", 5, "caption 0"),
        ("b.tif", 5, "caption 5"),
    ]


def test_precomputed_text_that_was_cut_off(tmp_path):
    write(tmp_path / "train_caps.txt", "x\n" * 9)
    write(tmp_path / "train_filename.txt", "a.tif\n" * 10)
    with pytest.raises(ValueError, match=r"train_caps\.txt: 9 lines of captions do not fit the 10 lines .*cut off"):
        read_precomputed({"train": tmp_path / "train"})
    with pytest.raises(FileNotFoundError, match=r"val_caps\.txt"):
        read_precomputed({"val": tmp_path / "val"})


@pytest.mark.parametrize(
    "text",
    [
        "filename\ttitle\na/1.jpg\ta river, wide\na/1.jpg\ta bridge\nb.jpg\t\n",
        '\ufeffimage,caption\r\na/1.jpg,"a river, wide"\r\na/1.jpg,a bridge\r\nb.jpg,""\r\n',
        'id,caption,filepath\n1,"a river, wide",a/1.jpg\n2,a bridge,a/1.jpg\n3,.,b.jpg',
    ],
)
def test_caption_csv_of_several_dialects(tmp_path, text):
    listing = read_caption_table({"train": write(tmp_path / "Ret-3.csv", text)})
    assert as_tuples(listing) == [
        ("a/1.jpg", "train", ("a river, wide", "a bridge"), None),
        ("b.jpg", "train", (), None),
    ]
    assert listing.counts["captions_blank_dropped"] == 1


WIDE = [("a/1.jpg", "train", ("a river; wide", "a bridge"), "river"), ("b.jpg", "test", ("a field",), None)]
LONG = (
    "image,caption,split,category\na/1.jpg,a river; wide,train,river\nb.jpg,a field,TEST ,\n"
    "a/1.jpg,a bridge,train,river"
)


@pytest.mark.parametrize(
    ("file", "content", "read_as"),
    [
        ("t.csv", LONG, "fields between commas; images from 'image', captions from 'caption', splits from 'split'"),
        (
            "t.csv",  # as a spreadsheet saves it where commas are decimal points
            '\ufeffFilename;Caption_1;Caption_2;Caption_3;Split;Scene\r\na/1.jpg;"a river; wide";a bridge;;Training;'
            "river\r\nb.jpg;a field;;;test;\r\n;;;;;\r\n",
            "fields between semicolons; images from 'Filename', captions from 'Caption_1', 'Caption_2', 'Caption_3'",
        ),
        ("t.csv", "sep=;\n" + LONG.replace(";", "#").replace(",", ";").replace("#", ","), "fields between semicolons"),
        ("t.txt", LONG.replace(",", "\t"), "fields between tabs"),
        ("t.csv.gz", LONG, "fields between commas"),
        ("t.jsonl", "jsonl", "JSON lines; images from 'image', captions from 'caption', splits from 'split', classes"),
        ("t.jsonl.gz", "jsonl", "JSON lines"),
        ("t.json", "lists", "a JSON list; images from 'file_name', captions from 'captions'"),
        ("t.json.gz", "lists", "a JSON list"),
    ],
)
def test_one_table_with_a_column_of_splits(tmp_path, file, content, read_as):
    rows = [dict(zip(LONG.split("\n")[0].split(","), line.split(","), strict=True)) for line in LONG.split("\n")[1:]]
    if content == "jsonl":
        content = "\n".join(json.dumps(row) for row in rows) + "\n\n"
    elif content == "lists":
        content = json.dumps(
            [
                {
                    "file_name": "a/1.jpg",
                    "split": "train",
                    "category": "river",
                    "captions": ["a river; wide", "a bridge"],
                },
                {"file_name": "b.jpg", "split": "test", "captions": ["a field"]},
            ]
        )
    data = content.encode()
    if "#" in content or "sep=" in content:
        expected = [
            (name, split, tuple(text.replace(";", ",") for text in texts), label) for name, split, texts, label in WIDE
        ]
    else:
        expected = WIDE
    listing = read_caption_table(write(tmp_path / file, gzip.compress(data, mtime=0) if file.endswith(".gz") else data))
    assert as_tuples(listing) == expected
    assert read_as in listing.notes["read_as"][file]
    assert listing.counts["captions_blank_dropped"] == 0, "an empty cell of a wide table is no caption"


def test_parquet_with_lists_and_missing_values(tmp_path):
    rows = {"image": ["a.jpg", "b.jpg"], "captions": [["a river", "a bridge"], ["a field"]], "split": ["train", "test"]}
    path = tmp_path / "t.parquet"
    pd.DataFrame(rows | {"category": ["river", None]}).to_parquet(path)
    listing = read_caption_table(path)
    assert as_tuples(listing) == [
        ("a.jpg", "train", ("a river", "a bridge"), "river"),
        ("b.jpg", "test", ("a field",), None),
    ]
    assert listing.notes["read_as"]["t.parquet"].startswith("Parquet; images from 'image'")
    assert read_caption_lists(path) == {"a.jpg": ["a river", "a bridge"], "b.jpg": ["a field"]}


def test_columns_of_other_names_and_repeated_ones(tmp_path):
    text = "Bild;Satz 1;Satz 2;Teil\na.jpg;ein Fluss;ein Feld;valid\n"
    columns = Columns("teil", "Bild", ("Satz 1", "Satz 2"))
    listing = read_caption_table(write(tmp_path / "t.csv", text), columns=columns)
    assert as_tuples(listing) == [("a.jpg", "val", ("ein Fluss", "ein Feld"), None)]
    same = read_caption_table({"train": write(tmp_path / "s.csv", "image,caption,caption\na.jpg,a river,a field\n")})
    assert same.images[0].captions == ("a river", "a field")
    with pytest.raises(ValueError, match="split_column: no column is named 'Teill'; did you mean 'Teil'"):
        read_caption_table(tmp_path / "t.csv", columns=Columns("Teill", "Bild", ("Satz 1",)))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "t.csv",
            "image;caption\na.jpg;x\n",
            "line 1: needs exactly one column named split, .*; has image, caption; .*'split_col",
        ),
        ("t.csv", "image,caption,split\na.jpg,x,tst\n", r"line 2 \(a\.jpg\): unknown split 'tst'; did you mean 'test'"),
        ("t.csv", "image,path,caption,split\na,b,x,test\n", "exactly one column named filename.*'image_column' names"),
        (
            "t.csv",
            "image,text,caption,split\na,b,x,test\n",
            "exactly one column named caption.*'caption_columns' lists",
        ),
        (
            "t.csv",
            "image,caption,split\na.jpg,\"['x', 'y']\",train\n",
            r"line 2 \(a\.jpg\): this caption is a list written",
        ),
        (
            "t.csv",
            "image,caption,split\na.jpg,x,train\na.jpg,y,test\n",
            "line 3: 'a.jpg' has the split 'test', but 'train'",
        ),
        (
            "t.csv",
            b"image;caption;split\r\na.jpg;ein Fl\xfcsschen;train\r\n",
            r"line 2 is not UTF-8 text: byte 12 is 0xFC \(in Windows-1252 'ü'\); save it as UTF-8",
        ),
        ("t.csv", "image,caption".encode("utf-16"), "line 1 starts with the byte order mark of UTF-16"),
        (
            "t.csv.gz",
            gzip.compress(b"image,caption,split\n" + b"a.jpg,x,train\n" * 99, mtime=0)[:40],
            "not a whole gzip file",
        ),
        ("t.json.gz", b"[]", "not a whole gzip file"),
        (
            "t.jsonl",
            '{"image": "a.jpg", "caption": "x", "split": "train"}\n{"image": "b',
            "line 2 is not valid JSON: column",
        ),
        (
            "t.jsonl",
            '{"image": "a.jpg", "caption": 3, "split": "train"}',
            r"line 1 \(a\.jpg\): 'caption' must be a text or",
        ),
        ("t.xlsx", b"PK", "no table that is read: .*saved as 'CSV UTF-8'"),
    ],
)
def test_bad_tables(tmp_path, file, content, message):
    with pytest.raises(ValueError, match=message):
        read_caption_table(write(tmp_path / file, content))


def test_a_files_own_split_and_the_sources_must_agree(tmp_path):
    path = write(tmp_path / "t.csv", "image,caption,split\na.jpg,x,train\nb.jpg,x,test\n")
    with pytest.raises(ValueError, match=r"line 3 \(b\.jpg\): the column of splits says 'test', but .* 'train'"):
        read_caption_table({"train": path})


def test_category_is_a_class(tmp_path):
    rows = [{"image": "airplane_1.jpg", "caption": text, "category": "airplane"} for text in ("a plane", "two")]
    listing = read_retrieval_json({"train": write(tmp_path / "t.json", rows)})
    assert as_tuples(listing) == [("airplane_1.jpg", "train", ("a plane", "two"), "airplane")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg,a river\n", r"line 1: needs exactly one column named filename"),
        ("filename,title\n", "no row below the first line"),
        ("filename,title\na.jpg,x\nb.jpg\n", r"line 3: 1 fields, but the first line names 2"),
        ('filename,title\na.jpg,"x\nb.jpg,y\n', r"line 3: not CSV"),
        ("filename,title\na.jpg,x\n../b.jpg,y\n", r"line 3: .*leads out"),
        (b"filename,title\na.jpg,caf\xe9\n", r"line 2 is not UTF-8"),
    ],
)
def test_bad_caption_csv(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as error:
        read_caption_table({"train": write(tmp_path / "bad.csv", text)})
    assert "bad.csv" in str(error.value)


def test_a_line_without_end_is_refused_before_it_is_in_memory(tmp_path):
    path = tmp_path / "endless.csv"
    with path.open("wb") as file:
        file.write(b"filename,title\n")
        file.truncate(3_000_000_000)  # a sparse file: one line of three billion bytes
    with pytest.raises(ValueError, match=r"endless\.csv: line 2 is longer than 1,000,000 bytes"):
        read_caption_table({"train": path})
    quoted = write(tmp_path / "quoted.csv", 'filename,title\na.jpg,"' + "x\n" * 200_000)
    with pytest.raises(ValueError, match=r"quoted\.csv: line \d+: not CSV: field larger than"):
        read_caption_table({"train": quoted})
    assert list(read_lines(write(tmp_path / "t.txt", "a\r\nb"))) == [(1, "a"), (2, "b")]


def coco(**change):
    return {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 8, "height": 8}, {"id": "x", "file_name": "b.jpg"}],
        "annotations": [{"id": 1, "image_id": "x", "caption": "a pier"}, {"id": 2, "image_id": 1, "caption": "a lake"}],
    } | change


def test_coco_captions(tmp_path):
    listing = read_coco_captions({"val": write(tmp_path / "captions_val.json", coco())})
    assert as_tuples(listing) == [("a.jpg", "val", ("a lake",), None), ("b.jpg", "val", ("a pier",), None)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "not in COCO's format"),
        (coco(images=[{"id": 1, "file_name": "a.jpg"}] * 2), r"images\[1\] \(a\.jpg\): the id 1 is given twice"),
        (coco(images=[{"id": 1, "file_name": "a.jpg", "width": 0}]), "'width' must be a whole number"),
        (coco(annotations=[{"image_id": 9, "caption": "x"}]), r"annotations\[0\]: no image has the id 9"),
        (coco(annotations=[{"image_id": 1, "caption": 4}]), r"annotations\[0\]: needs a text under 'caption'"),
        (coco(annotations=None), "needs a list under 'annotations'"),
    ],
)
def test_bad_coco_captions(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_coco_captions({"val": write(tmp_path / "c.json", content)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "coco_captions"}, "s: format coco_captions needs the key 'annotations' with a path for each split"),
        (
            {"format": "caption_table", "annotations": None},
            "needs the key 'annotations' with a path, or a path for each",
        ),
        ({"format": "caption_csv", "annotations": {"trian": "a.csv"}}, "unknown split 'trian'; did you mean 'train'"),
        (
            {"format": "caption_table", "annotations": {"train": "a.csv"}, "split_column": "part"},
            "split_column needs one file",
        ),
        ({"format": "caption_table", "caption_columns": "caption"}, "'caption_columns' must be list"),
        ({"val_share": 1}, "s: 'val_share' is 1.0, but must be above 0 and below 1"),
        ({"take": {"vali": "test"}}, "take: unknown split 'vali'; did you mean 'val'"),
        ({"take": {"val": "tset"}}, "take: unknown split 'tset'; did you mean 'test'"),
        ({"val_share": 0.1, "use": "adapt"}, "val_share is for sources whose `use` is all"),
        ({"format": "sydney_text"}, "needs the key 'splits'"),
        ({"images": None}, "needs the key 'images'"),
        ({"fixes": ["rsicd"]}, "unknown fix 'rsicd'"),
        ({"resolution": 0}, "'resolution' is 0.0, but must be above 0"),
        ({"use": "none"}, "'use' must be 'all', 'adapt' or 'audit', but is 'none'"),
        ({"allow_missing_images": 1}, "'allow_missing_images' must be bool"),
        ({"format": "masks"}, "needs the key 'classes'"),
        (
            {"format": "voc_boxes", "captions": {"center": 1}},
            "s: captions: unknown name 'center'; did you mean 'centre'",
        ),
        ({"format": "voc_boxes", "captions": {"centre": 1}}, "s: captions: 'centre' is 1.0, but must be above 0"),
    ],
)
def test_wrong_settings_of_the_new_formats(change, message):
    settings = {"name": "s", "format": "nwpu", "annotations": "a", "images": "i"}
    with pytest.raises(ValueError, match=message):
        parse_source(settings | change)


RSITMD = {
    "name": "rsitmd",
    "format": "retrieval_json",
    "annotations": {split: f"rsitmd/rsitmd_{split}.json" for split in ("train", "val", "test")},
    "use": "audit",
}
SYDNEY = {
    "name": "sydney",
    "format": "sydney_text",
    "annotations": "sydney_captions/descriptions_SIDNEY.txt",
    "splits": {split: f"sydney_captions/filenames_{split}.txt" for split in ("train", "val", "test")},
    "use": "audit",
}


def test_real_rsitmd(shared_data):
    listing, folder, _ = list_source(parse_source(RSITMD), str(shared_data))
    assert folder is None and listing.notes["splits_read"] == {"train": 3435, "val": 856, "test": 452}
    assert listing.counts["captions_listed"] == 23715 and listing.counts["captions_blank_dropped"] == 0
    spaced = listing.counts["captions_with_extra_spaces"]
    released, _, _ = list_source(parse_source(RSITMD | {"fixes": sorted(ALL - {"extra_spaces"})}), str(shared_data))
    different = sum(a.captions != b.captions for a, b in zip(listing.images, released.images, strict=True))
    assert 0 < different <= spaced


def test_real_sydney_text_says_what_its_json_says(shared_data):
    text, _, _ = list_source(parse_source(SYDNEY), str(shared_data))
    from_json = {"name": "sydney", "format": "karpathy", "use": "audit"}
    from_json |= {"annotations": "sydney_captions/dataset_sydney_modified.json"}
    other, _, _ = list_source(parse_source(from_json), str(shared_data))
    assert text.notes["splits_read"] == other.notes["splits_read"] == {"train": 497, "val": 58, "test": 58}
    split_of = {image.name: image.split for image in other.images}
    assert {image.name: image.split for image in text.images} == split_of
    assert sum(len(image.captions) for image in text.images) == 3065


def test_sources_that_are_only_compared_enter_nothing(tmp_path, shared_data):
    ucm = {
        "name": "ucm",
        "format": "karpathy",
        "annotations": "ucm_captions/dataset.json",
        "images": "ucm_captions/imgs",
    }
    rows, report = aggregate_sources(
        [ucm, SYDNEY], data_root=str(shared_data), max_images_per_split=5, cache=tmp_path, log=lambda line: None
    )
    assert {row["source"] for row in rows} == {"ucm"} and len(rows) == 15
    assert report["sources"]["sydney"]["images"] == {"train": 497, "val": 58, "test": 58}
    assert report["verbatim"]["sydney/test"]["sydney/train"] > 0.2
    assert "sydney/test" not in report["near_duplicates"]["images_with_a_near_duplicate"]
