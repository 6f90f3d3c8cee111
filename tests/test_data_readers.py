"""Annotation files: what is read, what is counted, what is refused."""

import json

import pytest

from rsvlm.data import listings as official_splits
from rsvlm.data.caption_readers import UCM_CLASSES, read_karpathy, read_nwpu
from rsvlm.data.listings import find_images
from rsvlm.data.names import ALL, check_fixes
from rsvlm.data.readers import list_source
from rsvlm.data.sources import parse_source


def entry(name, split="train", captions=("a river .",), **more):
    number = len(name) * 1000 + sum(name.encode())
    sentences = [{"raw": text, "tokens": text.replace(".", "").split(), "sentid": i} for i, text in enumerate(captions)]
    return {
        "filename": name,
        "imgid": number,
        "split": split,
        "sentences": sentences,
        "sentids": list(range(len(captions))),
    } | more


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def read(tmp_path, *entries, **options):
    return read_karpathy(write(tmp_path / "d.json", {"images": list(entries), "dataset": "x"}), **options)


def test_captions_are_cleaned_and_counted(tmp_path):
    captions = ["a  river .", "a river .", ".", " ", "la  rivière .", "一条河", "12"]
    listing = read(tmp_path, entry("a_1.tif", captions=captions))
    assert listing.images[0].captions == ("a river .", "a river .", "la rivière .", "一条河", "12")
    expected = {
        "captions_listed": 7,
        "captions_blank_dropped": 2,
        "captions_repeated_within_image": 1,
        "captions_with_extra_spaces": 2,
        "captions_not_ascii": 2,
        "captions_in_another_script": 1,
    }
    assert {key: listing.counts[key] for key in expected} == expected


def test_tokens_that_differ_and_ids_that_differ_are_counted(tmp_path):
    wrong = entry("a_1.tif", captions=["a farmland ."], sentids=[7])
    wrong["sentences"][0]["tokens"] = ["a", "formland"]
    counts = read(tmp_path, wrong, entry("b_2.tif", captions=["A farmland, here ."])).counts
    assert counts["captions_with_other_tokens"] == 2  # "farmland," keeps its comma in the second one's tokens
    assert counts["images_with_other_sentence_ids"] == 1 and counts["sentence_ids_repeated"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON: line 1"),
        ([], "not in Karpathy's format"),
        ({"images": []}, "non-empty list"),
        ({"images": ["x"]}, r"images\[0\]: must be an object"),
        ({"images": [entry("a.tif", split="trian")]}, r"unknown split 'trian'; did you mean 'train'\?"),
        ({"images": [entry("a.tif", split=3)]}, "unknown split 3"),
        ({"images": [entry("../a.tif")]}, "leads out of the images' folder"),
        ({"images": [entry("/etc/a.tif")]}, "leads out of the images' folder"),
        ({"images": [entry("C:\\a.tif")]}, "leads out of the images' folder"),
        ({"images": [entry("a.tif", filepath="x/../..")]}, "leads out of the images' folder"),
        ({"images": [entry("a.tif") | {"filename": 7}]}, "file name must be a non-empty text"),
        (
            {"images": [entry("a.tif"), entry("a.tif")]},
            r"images\[1\] \(a.tif\): the file name 'a.tif' is already at images\[0\]",
        ),
        ({"images": [entry("a.tif", imgid=5), entry("b.tif", imgid=5)]}, "the imgid 5 is already"),
        ({"images": [entry("a.tif", imgid=[5])]}, "imgid must be a number or a text"),
        ({"images": [entry("a.tif", sentences="x")]}, "'sentences' must be a list"),
        ({"images": [entry("a.tif", sentences=[{"raw": None}])]}, r"sentences\[0\] must be an object with a text"),
    ],
)
def test_bad_karpathy_files_are_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message) as error:
        read_karpathy(write(tmp_path / "bad.json", content))
    assert "bad.json" in str(error.value)


def test_missing_and_foreign_annotation_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        read_karpathy(tmp_path / "none.json")
    (tmp_path / "latin.json").write_bytes(b'{"images": "\xe9"}')
    with pytest.raises(ValueError, match=r"latin\.json: line 1 is not UTF-8 text: byte 12 is 0xE9"):
        read_karpathy(tmp_path / "latin.json")


def test_unknown_fix_and_label_rule_name_the_closest(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'rsicd_swapped_splits'"):
        check_fixes(["rsicd_swaped_splits"])
    with pytest.raises(ValueError, match="did you mean 'prefix'"):
        read(tmp_path, entry("a.tif"), labels="prefx")


def test_labels(tmp_path):
    names = ["airport_1.jpg", "00623.jpg", "baseball_field_12.tif"]
    assert [i.label for i in read(tmp_path, *map(entry, names), labels="prefix").images] == [
        "airport",
        None,
        "baseball field",
    ]
    numbers = read(tmp_path, entry("1.tif"), entry("100.tif"), entry("101.tif"), entry("2100.tif"), labels="ucm_number")
    assert [image.label for image in numbers.images] == ["agricultural", "agricultural", "airplane", UCM_CLASSES[-1]]
    with pytest.raises(ValueError, match="ucm_number"):
        read(tmp_path, entry("2101.tif"), labels="ucm_number")


@pytest.mark.parametrize(("allowed", "expected"), [(True, ["train", "test", "val"]), (False, ["train", "val", "test"])])
def test_swapped_splits_are_known_by_content(tmp_path, monkeypatch, allowed, expected):
    monkeypatch.setattr(official_splits, "RSICD_TEST", official_splits.hashlib.sha256(b"b").hexdigest())
    listing = read(tmp_path, entry("a.jpg"), entry("b.jpg", "val"), entry("c.jpg", "test"))
    official_splits.mend_rsicd_splits(listing, allowed)
    assert [image.split for image in listing.images] == expected
    assert listing.counts["splits_found_swapped"] == 1 and listing.counts["splits_swapped_back"] == int(allowed)
    right = read(tmp_path, entry("a.jpg"), entry("b.jpg", "test"), entry("c.jpg", "val"))
    official_splits.mend_rsicd_splits(right, allowed)
    assert right.counts["splits_found_swapped"] == 0 and right.images[1].split == "test"


def test_a_source_takes_some_splits_under_other_names(tmp_path):
    listing = read(tmp_path, entry("a.jpg"), entry("b.jpg", "val"), entry("c.jpg", "test"))
    official_splits.take_splits(listing, {"val": "test"}, "sources: s: take")
    assert [(image.name, image.split) for image in listing.images] == [("b.jpg", "test")]
    assert listing.notes["splits_read"] == {"test": 1}
    with pytest.raises(ValueError, match="sources: s: take: the files have no image of the split 'train'"):
        official_splits.take_splits(listing, {"train": "train"}, "sources: s: take")


def test_each_fix_can_be_switched_off(tmp_path):
    wrong = entry("a_1.tif", captions=["a  farmland .", ".", "a farmland ."])
    wrong["sentences"][2]["tokens"] = ["a", "formland"]
    assert read(tmp_path, wrong).images[0].captions == ("a farmland .", "a farmland .")
    released = read(tmp_path, wrong, fixes=frozenset())
    assert released.images[0].captions == ("a  farmland .", ".", "a formland")
    assert released.counts["captions_blank_kept"] == 1 and released.counts["captions_blank_dropped"] == 0
    with pytest.raises(ValueError, match=r"only the fix 'blank_captions' can read"):
        read(tmp_path, entry("a_1.tif", captions=[" "]), fixes=ALL - {"blank_captions"})
    (tmp_path / "imgs").mkdir()
    (tmp_path / "imgs" / "a_1.jpg").write_bytes(b"x")
    images = read(tmp_path, entry("a_1.tif")).images
    assert find_images(images, tmp_path / "imgs", ALL - {"other_extension"})[1] == ["a_1.tif"]


def test_files_are_found_under_another_extension(tmp_path):
    for name in ("1.jpg", "1.png", "2.tif", "stray.png", "sub/4.PNG"):
        (tmp_path / "imgs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "imgs" / name).write_bytes(b"x")
    images = read(tmp_path, *map(entry, ["1.tif", "2.tif", "3.tif", "sub/4.tif"])).images
    found, missing, counts = find_images(images, tmp_path / "imgs")
    assert [item.name for item in found] == ["1.jpg", "2.tif", "sub/4.PNG"] and missing == ["3.tif"]
    met = {name: count for name, count in counts.items() if count}
    assert met == {"images_with_another_extension": 2, "files_not_listed": 2}
    both = read(tmp_path, entry("2.tif"), entry("2.jpg")).images
    with pytest.raises(ValueError, match="lead to this one file"):
        find_images(both, tmp_path / "imgs")


def test_files_are_found_by_name_in_folders_of_classes(tmp_path):
    """As NWPU's copies are: listed flat or under a split, lying under the classes."""
    for file in ("lake/lake_1.jpg", "lake/lake_2.png", "park/1.jpg", "pond/1.jpg", "pond/2.jpg"):
        (tmp_path / "imgs" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "imgs" / file).write_text("x")
    images = read(tmp_path, *map(entry, ["lake_1.jpg", "train/lake_2.tif", "park/1.jpg", "park/2.jpg", "9.jpg"])).images
    found, missing, counts = find_images(images, tmp_path / "imgs")
    assert [item.name for item in found] == ["lake/lake_1.jpg", "lake/lake_2.png", "park/1.jpg"]
    assert missing == ["park/2.jpg", "9.jpg"], "the folder park exists and lacks it; pond/2.jpg is another image"
    met = {name: count for name, count in counts.items() if count}
    assert met == {"images_with_another_extension": 1, "images_in_another_folder": 2, "files_not_listed": 2}
    assert find_images(images, tmp_path / "imgs", ALL - {"other_folder"})[2]["images_in_another_folder"] == 0
    twice = read(tmp_path, entry("1.jpg")).images
    with pytest.raises(ValueError, match="'1.jpg' of the annotations may be 'park/1.jpg' or 'pond/1.jpg'"):
        find_images(twice, tmp_path / "imgs")
    both = read(tmp_path, entry("lake_1.jpg"), entry("x/lake_1.jpg")).images
    with pytest.raises(ValueError, match="lead to this one file"):
        find_images(both, tmp_path / "imgs")


def test_rsicd_gets_its_official_classes(tmp_path, monkeypatch):
    monkeypatch.setattr(official_splits, "RSICD_TEST", official_splits.hashlib.sha256(b"airport_2").hexdigest())
    entries = [entry("00001.jpg"), entry("airport_2.jpg", "test"), entry("00003.jpg", "val")]
    write(tmp_path / "d.json", {"images": entries})
    source = {"name": "r", "format": "karpathy", "annotations": "d.json", "images": "i", "labels": "prefix"}
    listing, _, files = list_source(parse_source(source), str(tmp_path))
    assert [image.label for image in listing.images] == [None, "airport", None] and len(files) == 1
    assert listing.counts["rsicd_images_without_class"] == 2
    lists = tmp_path / "txtclasses_rsicd"
    lists.mkdir()
    write(lists / "Airport.txt", "airport_2.jpg\r\n00001.jpg\r\n")
    write(lists / "StorageTanks.txt", "00003.jpg")
    listing, _, files = list_source(parse_source(source), str(tmp_path))
    assert [image.label for image in listing.images] == ["airport", "airport", "storagetanks"]
    assert listing.counts["rsicd_images_without_class"] == 0 and [file.name for file in files[1:]] == [
        "Airport.txt",
        "StorageTanks.txt",
    ]
    write(lists / "Port.txt", "00001.jpg")
    with pytest.raises(ValueError, match=r"Port\.txt: line 1: '00001.jpg' is already at .*Airport\.txt: line 2"):
        list_source(parse_source(source), str(tmp_path))
    assert official_splits.name_rsicd_classes(read(tmp_path, entry("airport_1.jpg")), tmp_path) == []


def test_nwpu(tmp_path):
    def image(name, split="train", imgid=1, **more):
        return {
            "filename": name,
            "imgid": imgid,
            "split": split,
            "raw": "a plane.",
            "raw_1": " .",
            "raw_2": "two planes.",
        } | more

    listing = read_nwpu(write(tmp_path / "n.json", {"golf_course": [image("g_1.jpg"), image("g_2.jpg", "test", 2)]}))
    assert [(i.name, i.split, i.captions, i.label) for i in listing.images] == [
        ("golf_course/g_1.jpg", "train", ("a plane.", "two planes."), "golf course"),
        ("golf_course/g_2.jpg", "test", ("a plane.", "two planes."), "golf course"),
    ]
    assert listing.counts["captions_blank_dropped"] == 2
    for content, message in [
        ({"images": {}}, "not in NWPU's format"),
        ({"c": [image("a.jpg"), image("a.jpg", imgid=2)]}, "the file name 'c/a.jpg' is already"),
        ({"c": [image("a.jpg"), image("b.jpg")]}, "the imgid 1 is already"),
        ({"..": [image("a.jpg")]}, "leads out"),
        ({"c": [image("a.jpg", split="tets")]}, "did you mean 'test'"),
        ({"c": [image("a.jpg", raw_1=3)]}, "must be texts"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_nwpu(write(tmp_path / "n.json", content))


@pytest.mark.parametrize(
    ("file", "images", "blank", "repeated", "tokens", "ids"),
    [
        ("ucm_captions/dataset.json", 2100, 0, 515, 364, 0),
        ("rsicd/dataset_rsicd.json", 10921, 3, 30272, 501, 0),
        ("sydney_captions/dataset_sydney_modified.json", 613, 0, 228, 136, 1),
    ],
)
def test_real_files(shared_data, file, images, blank, repeated, tokens, ids):
    listing = read_karpathy(shared_data / file)
    assert len(listing.images) == images
    counts = listing.counts
    assert counts["captions_blank_dropped"] == blank and counts["captions_repeated_within_image"] == repeated
    assert counts["captions_with_other_tokens"] == tokens and counts["images_with_other_sentence_ids"] == ids
    if "rsicd" in file:
        official_splits.mend_rsicd_splits(listing, allowed=True)
        assert counts["splits_swapped_back"] == 1
        assert listing.notes["splits_listed"] == {"train": 8734, "val": 1093, "test": 1094}
        assert listing.notes["splits_read"] == {"train": 8734, "val": 1094, "test": 1093}
