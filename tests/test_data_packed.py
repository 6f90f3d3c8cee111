"""Images inside tar shards and Parquet files: the same pixels as unpacked, through the whole study; what is refused."""

import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rsvlm.data import packed
from rsvlm.data.aggregate import aggregate_sources, write_aggregated
from rsvlm.data.duplicates import fingerprint_images
from rsvlm.data.images import ImageError, open_image
from rsvlm.data.names import SPLITS
from rsvlm.data.packed import open_stream, scan_shard, split_path, stat_of
from rsvlm.data.readers import list_source
from rsvlm.data.sources import check_sources, parse_source
from rsvlm.data.table import load_table
from rsvlm.models.feature_shards import encode_images
from rsvlm.models.features import load_features
from rsvlm.models.zoo import load_encoder
from rsvlm.training.pixels import open_pixels
from rsvlm.viewing.page import ThumbnailCache, make_thumbnail

SHARD = {"name": "s", "format": "webdataset", "annotations": "shards"}
SET = {"name": "h", "format": "hf_dataset", "annotations": "set"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("RSVLM_CACHE", str(tmp_path_factory.mktemp("cache")))


def picture(seed, kind="PNG", side=40):
    """Bytes of an image file with coarse noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
    made = io.BytesIO()
    Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST).save(made, kind)
    return made.getvalue()


def write_shard(path, members):
    """A tar file of (name, bytes, text or TarInfo) members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            data = b"" if isinstance(data, tarfile.TarInfo) else data.encode() if isinstance(data, str) else data
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def samples(seed, count=3, kind="png"):
    """Members of some samples, each an image with two captions."""
    names = {"png": "PNG", "jpg": "JPEG", "tif": "TIFF", "webp": "WEBP"}
    for number in range(count):
        yield f"{number:06}.{kind}", picture([seed, number], names[kind])
        yield f"{number:06}.txt", f"a river {seed}\na field {number}\n"


def make_shards(root, count=3):
    for seed, (split, kind) in enumerate(
        {"train-0": "png", "train-1": "tif", "val-0": "jpg", "test-0": "webp"}.items()
    ):
        write_shard(root / "shards" / f"{split}.tar", samples(seed, count, kind))
    return SHARD


def listed(root, source, **change):
    listing, folder, files = list_source(parse_source(source | change), str(root))
    return listing, [(image.name, image.split, image.captions, image.label) for image in listing.images]


def run(root, *sources, **options):
    return aggregate_sources(
        list(sources), data_root=str(root), find_same_ground=False, log=lambda line: None, **options
    )


def unpack(rows, folder):
    """The rows with every image written to a file of its own."""
    folder.mkdir()
    own = []
    for number, row in enumerate(rows):
        path = folder / f"{number}.image"
        with open_stream(Path(row["path"])) as stream:
            path.write_bytes(stream.read())
        own.append(row | {"path": str(path)})
    return own


def check_same_as_unpacked(rows, report, tmp_path, tiny_models):
    """Table, pixels, fingerprints, features and thumbnails of packed images are those of the unpacked ones."""
    write_aggregated(rows, report, aggregated=tmp_path / "out", pages=tmp_path / "p", cards=tmp_path / "c")
    table = load_table(tmp_path / "out/images.parquet")
    assert sorted(table["image_id"]) == sorted(row["image_id"] for row in rows)
    own = table.assign(path=[row["path"] for row in unpack(table.to_dict("records"), tmp_path / "unpacked")])
    for inside, alone in zip(table["path"], own["path"], strict=True):
        assert split_path(Path(inside)) and not Path(inside).exists()
        assert np.array_equal(np.asarray(open_image(inside)), np.asarray(open_image(alone)))
        assert make_thumbnail(inside, 64, 4000) == make_thumbnail(alone, 64, 4000)
    prints = [fingerprint_images([Path(path) for path in one["path"]]) for one in (table, own)]
    assert [one.sha256 for one in prints[0]] == [one.sha256 for one in prints[1]]
    thumbnails = ThumbnailCache(64, folder=tmp_path / "thumbnails")
    assert thumbnails.make(table["path"].tolist()) == thumbnails.find(table["path"].tolist())
    encoder = load_encoder(str(tiny_models.clip))
    pixels = [open_pixels(one["path"].tolist(), encoder.preprocessing, log=lambda line: None) for one in (table, own)]
    assert np.array_equal(pixels[0].array, pixels[1].array) and len(pixels[0].array) == len(rows)
    features = []
    for name, one in (("a", table), ("b", own)):
        encode_images(encoder, one, tmp_path / name, batch_size=4, precision="fp32", log=lambda line: None)
        features.append(load_features(tmp_path / name))
    assert np.array_equal(features[0].image_embeddings, features[1].image_embeddings)
    assert np.array_equal(features[0].pooled, features[1].pooled)


def test_shards_through_the_study(tmp_path, tiny_models):
    source = make_shards(tmp_path)
    rows, report = run(tmp_path, source)
    facts = report["sources"]["s"]
    assert facts["images"] == {"train": 6, "val": 3, "test": 3} and facts["captions"]["train"] == 12
    assert rows[0]["image_id"] == "s/test-0.tar::000000.webp" and rows[0]["captions"] == ["a river 3", "a field 0"]
    assert rows[0]["path"] == f"{tmp_path.as_posix()}/shards/test-0.tar::000000.webp" and rows[0]["width"] == 40
    assert sorted(facts["annotation_files"]) == ["test-0.tar", "train-0.tar", "train-1.tar", "val-0.tar"]
    assert facts["files_missing"] == 0 and facts["members_of_other_kinds"] == 0
    check_same_as_unpacked(rows, report, tmp_path, tiny_models)
    again, _ = aggregate_sources([source], data_root=".", root=tmp_path, find_same_ground=False, log=lambda line: None)
    assert again[0]["path"] == "shards/test-0.tar::000000.webp"


def test_near_duplicates_are_found_between_shards_and_files(tmp_path):
    source = make_shards(tmp_path)
    (tmp_path / "imgs").mkdir()
    (tmp_path / "imgs/copy.png").write_bytes(picture([0, 1]))  # train-0.tar::000001.png
    (tmp_path / "d.csv").write_text("image,caption,split\ncopy.png,a copy,test\n")
    table = {"name": "t", "format": "caption_table", "annotations": "d.csv", "images": "imgs"}
    rows, report = run(tmp_path, source, table)
    [pair] = report["near_duplicates"]["list"]
    assert pair["exact"] and {pair["first"], pair["second"]} == {"s/train-0.tar::000001.png", "t/copy.png"}
    assert "s/train-0.tar::000001.png" not in {row["image_id"] for row in rows}, "training lost what the test shows"


def test_captions_of_a_sample(tmp_path):
    fields = {"caption": "a river", "more": ["a field", "."], "class": "river", "part": "validation", "width": 3}
    members = [
        ("./a/000.v1.json", "{}"),  # no sample has a dot in its name: v1.json is the kind
        ("./a/000.png", picture(0)),
        ("./a/000.json", json.dumps(fields)),
        ("a/000.txt", "\ufeffa  bridge\r\n\r\na lake\n"),
        ("a/001.JPG", picture(1, "JPEG")),
        ("__meta__", "x"),
        ("002.cls", "3"),
    ]
    write_shard(tmp_path / "shards/all.tar", members)
    whole = {"annotations": {"test": "shards"}}
    listing, images = listed(tmp_path, SHARD, **whole)
    lines = ("a bridge", "a lake")
    assert images == [("all.tar::a/000.png", "test", lines, None), ("all.tar::a/001.JPG", "test", (), None)]
    assert listing.counts["members_of_other_kinds"] == 2 and listing.counts["captions_blank_dropped"] == 1
    _, images = listed(tmp_path, SHARD, **whole, caption_columns=["caption", "more"], label_column="class")
    assert images[0][2:] == (("a river", "a field"), "river") and images[1][2:] == ((), None)
    with pytest.raises(ValueError, match=r"all\.tar::a/000\.json: has no field 'capton'; did you mean 'caption'"):
        listed(tmp_path, SHARD, **whole, caption_columns=["capton"])
    with pytest.raises(ValueError, match=r"all\.tar: its name tells no split; name a place for each split"):
        listed(tmp_path, SHARD)
    with pytest.raises(ValueError, match=r"all\.tar::a/001.*unknown split"):
        listed(tmp_path, SHARD, split_column="part")
    write_shard(tmp_path / "shards/all.tar", members[:4])
    assert listed(tmp_path, SHARD, split_column="part")[1] == [("all.tar::a/000.png", "val", lines, None)]
    write_shard(tmp_path / "shards/all.tar", members[1:3])
    with pytest.raises(ValueError, match=r"not one caption for 1 images.*looks for a \.txt beside each image"):
        listed(tmp_path, SHARD, **whole)


def test_where_the_split_of_a_shard_stands(tmp_path):
    for name in ("x/rs_train_00.tar", "test/latest.tar", "dev/01.tar", ".cache/train.tar"):
        write_shard(tmp_path / "shards" / name, samples(0, 1))
    images = listed(tmp_path, SHARD)[1]
    assert [image[:2] for image in images] == [
        ("dev/01.tar::000000.png", "val"),
        ("test/latest.tar::000000.png", "test"),
        ("x/rs_train_00.tar::000000.png", "train"),
    ]
    one = listed(tmp_path, SHARD, annotations="shards/x/rs_*.tar")
    assert [image[:2] for image in one[1]] == [("rs_train_00.tar::000000.png", "train")]
    by_split = {"train": "shards/dev", "test": "shards/x/rs_train_00.tar"}
    assert [image[:2] for image in listed(tmp_path, SHARD, annotations=by_split)[1]] == [
        ("dev/01.tar::000000.png", "train"),
        ("x/rs_train_00.tar::000000.png", "test"),
    ]
    with pytest.raises(ValueError, match=r"01\.tar: is given for 'train' and for 'test'; name it for one split"):
        listed(tmp_path, SHARD, annotations={"train": "shards/dev", "test": "shards/dev/*"})
    write_shard(tmp_path / "shards/test-of-train.tar", samples(0, 1))
    with pytest.raises(ValueError, match="tells several splits, test, train; name a place for each split"):
        listed(tmp_path, SHARD)
    with pytest.raises(FileNotFoundError, match=r"none-\*\.tar: no file \*\.tar or .* there"):
        listed(tmp_path, SHARD, annotations="shards/none-*.tar")


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return name, info


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (special("b.png", tarfile.SYMTYPE, "/etc/passwd"), r"t\.tar: 'b\.png' is a link"),
        (special("b.png", tarfile.LNKTYPE, "a.png"), r"t\.tar: 'b\.png' is a link"),
        (special("b.png", tarfile.CHRTYPE), r"t\.tar: 'b\.png' is a device or a pipe"),
        (special("b.png", tarfile.FIFOTYPE), r"t\.tar: 'b\.png' is a device or a pipe"),
        (("../b.png", b""), r"'\.\./b\.png' leads out"),
        (("x/../../b.png", b""), "leads out"),
        (("/b.png", b""), r"'/b\.png' leads out"),
        (("a.pkl", b""), r"'a\.pkl' is a pickle, which could run code"),
        (("a.PYD", b""), r"'a\.PYD' is a pickle"),
        (("./a.png", b""), r"t\.tar: two members are named 'a\.png'"),
        (("a.jpg", b""), r"t\.tar::a: one sample holds both 'a\.jpg' and 'a\.png'"),
        (("a.TXT", "x"), r"t\.tar::a: one sample holds both 'a\.txt' and 'a\.TXT'"),
        (("b\udcff.png", b""), "characters that are no text in UTF-8"),
        (("b.txt", b"caf\xe9"), r"t\.tar::b\.txt: not UTF-8 text: byte 3 is 0xE9"),
        (("b.txt", b"a\0b"), r"t\.tar::b\.txt: holds a NUL byte"),
        (("b.txt", b"a" * 1_000_001), r"t\.tar::b\.txt: a text of 1,000,001 bytes"),
    ],
)
def test_members_that_are_refused(tmp_path, member, message):
    write_shard(tmp_path / "t.tar", [("a.png", picture(0)), ("a.txt", "a river"), member])
    with pytest.raises(ValueError, match=message):
        listed(tmp_path, SHARD, annotations={"train": "t.tar"})


@pytest.mark.parametrize("json_text", ["{", "[]"])
def test_a_sample_whose_json_is_none(tmp_path, json_text):
    write_shard(tmp_path / "t.tar", [("a.png", picture(0)), ("a.json", json_text)])
    with pytest.raises(ValueError, match=r"t\.tar::a\.json: (not valid JSON: line 1|must be an object)"):
        listed(tmp_path, SHARD, annotations={"train": "t.tar"}, caption_columns=["caption"])


def test_shards_that_are_not_whole(tmp_path):
    path = write_shard(tmp_path / "t.tar", samples(0))
    whole = path.read_bytes()
    ends = [place[0] + place[1] for place in scan_shard(path).values()]
    for length in (ends[-2] - 10, ends[-2], ends[-2] + 800, -(-ends[-1] // 512) * 512):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"t\.tar: not a whole tar file.*fetch it again"):
            scan_shard(path)
    path.write_bytes(whole + whole)
    with pytest.raises(ValueError, match="several were joined"):
        scan_shard(path)
    path.write_bytes(b"no tar file" * 100)
    with pytest.raises(ValueError, match=r"t\.tar: not a whole tar file"):
        scan_shard(path)
    path.write_bytes(gzip.compress(whole))
    (tmp_path / "z").mkdir()
    (tmp_path / "z/train.tar.gz").write_bytes(gzip.compress(whole))
    for place in (path, tmp_path / "z/train.tar.gz"):
        with pytest.raises(ValueError, match="a compressed shard.*gunzip"):
            scan_shard(place)
    with pytest.raises(ValueError, match="train.tar.gz: a compressed shard"):
        listed(tmp_path, SHARD, annotations="z")


def test_missing_and_broken_images_of_shards(tmp_path):
    source = make_shards(tmp_path)
    write_shard(tmp_path / "shards/train-2.tar", [("a.txt", "a text alone"), *samples(9)])
    with pytest.raises(
        FileNotFoundError, match=r"s: 1 of 16 images have captions but no image.*train-2\.tar::a; bring"
    ):
        run(tmp_path, source)
    rows, report = run(tmp_path, source, allow_missing_images=True)
    assert report["sources"]["s"]["first_files_missing"] == ["train-2.tar::a"] and len(rows) == 15
    write_shard(
        tmp_path / "shards/train-2.tar", [("a.png", picture(5)[:-40]), ("b.png", b""), ("a.txt", "x"), ("b.txt", "y")]
    )
    with pytest.raises(ImageError, match=r"s: .*train-2\.tar::a\.png: not a whole image"):
        run(tmp_path, source)
    rows, report = run(tmp_path, source, allow_missing_images=True)
    assert report["sources"]["s"]["first_images_broken"] == ["train-2.tar::a.png", "train-2.tar::b.png"]
    with pytest.raises(ImageError, match=r"::b\.png: the image file is empty"):
        open_image(tmp_path / "shards/train-2.tar::b.png")


def test_paths_of_members(tmp_path, monkeypatch):
    path = write_shard(tmp_path / "t.tar", [("x/a::b.png", picture(0)), ("c.png", picture(1))])
    inside = Path(f"{path}::x/a::b.png")
    assert split_path(inside) == (path, "x/a::b.png") and split_path(path) is None
    assert stat_of(inside).st_size == path.stat().st_size
    assert open_stream(inside).read() == picture(0)
    with monkeypatch.context() as patched:
        patched.setattr(packed, "scan_shard", pytest.fail)  # the places are known
        assert open_stream(Path(f"{path}::c.png")).read() == picture(1)
    alone = tmp_path / "odd::name.png"
    alone.write_bytes(picture(3))
    assert split_path(alone) is None and open_image(alone).size == (40, 40)
    with pytest.raises(FileNotFoundError, match=r"t\.tar::none\.png: no such member"):
        open_image(f"{path}::none.png")
    with pytest.raises(FileNotFoundError, match=r"none\.tar::a\.png: no such image file"):
        open_image(tmp_path / "none.tar::a.png")
    write_shard(path, [("c.png", picture(4)), ("d.png", picture(5))])  # written anew: its places are looked up again
    os.utime(path, ns=(1, 1))
    assert open_stream(Path(f"{path}::c.png")).read() == picture(4)


def test_places_of_packed_sources_are_checked_before_the_stage(tmp_path):
    source = make_shards(tmp_path / "raw")
    values = {"data_root": "raw", "allow_missing_images": False, "max_images_per_split": None}
    for good in ("shards", "shards/*.tar", dict.fromkeys(SPLITS, "shards/train-0.tar")):
        check_sources(values | {"sources": [source | {"annotations": good}]}, tmp_path)
    for change, message in [
        ({"annotations": "shards/*.zip"}, r"sources: s: annotations: .*\*\.zip: no file \*\.tar or"),
        ({"annotations": "../x/*.tar"}, "leads out of data_root"),
        ({"images": "shards"}, "s: unknown key 'images'"),
        ({"image_column": "image"}, "s: unknown key 'image_column'"),
        ({"annotations": None}, "format webdataset needs the key 'annotations' with a path, or a path for each split"),
        ({"annotations": {"train": "shards"}}, "the split test has no image"),
        ({"format": "web_dataset"}, "unknown format 'web_dataset'; did you mean 'webdataset'"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_sources(values | {"sources": [source | change]}, tmp_path)


def write_parquet(path, images, captions, group=4, plain=False, features=None, **columns):
    """A Parquet file as ``datasets`` writes it: the image column first, the features in the head."""
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    kind = pyarrow.binary() if plain else pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    cells = images if plain else [image and {"bytes": image, "path": "x.png"} for image in images]
    table = pyarrow.table({"image": pyarrow.array(cells, kind), "caption": captions, **columns})
    head = {"huggingface": json.dumps({"info": {"features": features or {}}})}
    parquet.write_table(table.replace_schema_metadata(head), path, row_group_size=group)
    return path


def make_set(root, plain=False):
    for seed, (split, count) in enumerate({"train": 11, "validation": 2, "test": 3}.items()):
        images = [picture([seed, number], "JPEG" if number % 2 else "TIFF") for number in range(count)]
        captions = [[f"a river {seed}", f"a field {number}"] for number in range(count)]
        write_parquet(root / f"set/data/{split}-00000-of-00001-ab1c.parquet", images, captions, plain=plain)
    return SET


@pytest.mark.parametrize("plain", [False, True])
def test_parquet_through_the_study(tmp_path, tiny_models, plain):
    rows, report = run(tmp_path, make_set(tmp_path, plain))
    facts = report["sources"]["h"]
    assert facts["images"] == {"train": 11, "val": 2, "test": 3} and facts["files_missing"] == 0
    assert facts["read_as"] == {"3 files": "Parquet; images from 'image', captions from 'caption'"}
    train = [row["image_id"] for row in rows if row["split"] == "train"]
    name = "h/data/train-00000-of-00001-ab1c.parquet::image/"
    assert train == [f"{name}{number:02}" for number in range(11)], "in the order of the rows"
    assert [row["captions"][1] for row in rows if row["split"] == "train"] == [f"a field {n}" for n in range(11)]
    check_same_as_unpacked(rows, report, tmp_path, tiny_models)


def test_parquet_is_read_by_row_groups(tmp_path, monkeypatch):
    make_set(tmp_path)
    path, read = tmp_path / "set/data/train-00000-of-00001-ab1c.parquet", []
    known = packed.read_group
    monkeypatch.setattr(packed, "read_group", lambda *what: read.append(what[2]) or known(*what))
    for row in (*range(11), 10, 7):
        assert open_stream(Path(f"{path}::image/{row:02}")).read() == picture([0, row], "JPEG" if row % 2 else "TIFF")
    assert read == [0, 1, 2], "the last two are kept"
    for wrong in ("image/11", "image/x", "image/-1", "7"):
        with pytest.raises(FileNotFoundError, match="COLUMN/ROW"):
            open_image(f"{path}::{wrong}")
    monkeypatch.setattr(packed, "LARGEST", 1000)
    with pytest.raises(ImageError, match=r"parquet: a row group with .* bytes of images.*row_group_size=100"):
        open_image(f"{path}::image/00")


def test_columns_of_a_parquet_set(tmp_path):
    features = {"kind": {"names": ["river", "field"], "_type": "ClassLabel"}, "caption": {"dtype": "string"}}
    write_parquet(
        tmp_path / "set/all.parquet",
        [picture(n) for n in range(3)],
        ["a", "b", "c"],
        features=features,
        other=["x", None, "z"],
        kind=[1, 0, -1],
        part=["train", "validation", "test"],
        thumbnail=[b"", b"", b""],
    )
    with pytest.raises(
        ValueError, match=r"all\.parquet: needs exactly one column of images' bytes, has 2: image \(struct"
    ):
        listed(tmp_path, SET, split_column="part")
    with pytest.raises(
        ValueError, match=r"image_column: 'part' is no column of images' bytes; known: image, thumbnail"
    ):
        listed(tmp_path, SET, split_column="part", image_column="part")
    named = {"image_column": "image", "label_column": "kind"}
    with pytest.raises(ValueError, match=r"needs exactly one column named split.*; or name a place for each split"):
        listed(tmp_path, SET, **named)
    assert listed(tmp_path, SET, **named, split_column="part", caption_columns=["caption", "other"])[1] == [
        ("all.parquet::image/0", "train", ("a", "x"), "field"),
        ("all.parquet::image/1", "val", ("b",), "river"),
        ("all.parquet::image/2", "test", ("c", "z"), None),
    ]
    with pytest.raises(ValueError, match=r"all\.parquet: caption_columns: no column is named 'capton'"):
        listed(tmp_path, SET, **named, split_column="part", caption_columns=["capton"])
    _, images = listed(tmp_path, SET, **named, annotations={"test": "set/all.parquet"})
    assert [image[1] for image in images] == ["test"] * 3


def test_missing_and_broken_images_of_parquet(tmp_path):
    source = make_set(tmp_path)
    path = tmp_path / "set/train-1.parquet"
    write_parquet(path, [None, picture(7), picture(8)[:-30], picture(9)], ["a", "b", "c", "d"], group=2)
    with pytest.raises(
        FileNotFoundError, match=r"h: 1 of 20 images have captions but no image.*train-1\.parquet::image/0"
    ):
        run(tmp_path, source)
    rows, report = run(tmp_path, source, allow_missing_images=True)
    facts = report["sources"]["h"]
    assert facts["first_files_missing"] == ["train-1.parquet::image/0"] and len(rows) == 18
    assert facts["first_images_broken"] == ["train-1.parquet::image/2"]
    with pytest.raises(FileNotFoundError, match="image/0: this row has no image"):
        open_image(f"{path}::image/0")
    data = bytearray(path.read_bytes())
    data[4:2000] = np.random.default_rng(0).bytes(1996)  # the pages of the first group
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"train-1\.parquet"):
        run(tmp_path, source)
    path.write_bytes(data[:-300])
    with pytest.raises(ValueError, match=r"train-1\.parquet: not a whole Parquet file"):
        run(tmp_path, source, allow_missing_images=True)
    with pytest.raises(ImageError, match=r"train-1\.parquet: not a whole Parquet file"):
        open_image(f"{path}::image/0")
    path.with_suffix(".arrow").write_bytes(b"")
    with pytest.raises(ValueError, match=r"train-1\.arrow: written by Dataset\.save_to_disk.*to_parquet"):
        run(tmp_path, source)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_imagefolder(tmp_path, kind):
    for seed, split in enumerate(("train", "validation", "test")):
        folder = tmp_path / "set" / split
        (folder / "x").mkdir(parents=True)
        rows = [{"file_name": f"x/{n}.png", "text": f"a river {n}"} for n in range(2)]
        for number, row in enumerate(rows):
            (folder / row["file_name"]).write_bytes(picture([seed, number]))
        lines = [json.dumps(row) for row in rows]
        lines = lines if kind == "jsonl" else ["file_name,text", *(",".join(row.values()) for row in rows)]
        (folder / f"metadata.{kind}").write_text("\n".join(lines))
    rows, report = run(tmp_path, SET)
    assert [row["image_id"] for row in rows][:2] == ["h/test/x/0.png", "h/test/x/1.png"]
    assert rows[-1]["split"] == "val" and report["sources"]["h"]["images"] == {"train": 2, "val": 2, "test": 2}
    assert open_image(rows[0]["path"]).size == (40, 40)
    (tmp_path / "set/test/x/1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"h: 1 of 6 images listed in .*metadata.* test/x/1\.png"):
        run(tmp_path, SET)
    (tmp_path / "set/test/a.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"metadata\..*: a table beside images, but .*a\.parquet holds images itself"):
        run(tmp_path, SET)
    (tmp_path / "set/test/a.parquet").unlink()
    (tmp_path / f"set/test/metadata.{kind}").write_text(
        '{"file_name": "../x.png", "text": "a"}' if kind == "jsonl" else "file_name,text\n../x.png,a\n"
    )
    with pytest.raises(ValueError, match="leads out"):
        run(tmp_path, SET)
