"""From sources to the one table: counts, refusals, limits, near-duplicates, and nothing half-written."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from rsvlm.data import aggregate
from rsvlm.data.aggregate import aggregate_sources, write_aggregated
from rsvlm.data.audit import draw_validation
from rsvlm.data.duplicates import fingerprint_images
from rsvlm.data.images import ImageError
from rsvlm.data.local_features import find_same_ground
from rsvlm.data.sources import check_sources, parse_source
from rsvlm.data.table import load_adapt_table, load_table, rows_of, save_table, thinned

SPLIT_OF = ["train", "train", "train", "train", "val", "test"]


def make_source(root, name="s", splits=tuple(SPLIT_OF), captions=("a river .", "a river ."), duplicate=None):
    """A source in Karpathy's format with one small picture an entry; returns its settings."""
    folder = root / name / "imgs"
    folder.mkdir(parents=True)
    entries = []
    for number, split in enumerate(splits):
        seed = number if duplicate is None or number != duplicate[0] else duplicate[1]
        pixels = np.random.default_rng([len(name), *name.encode(), seed]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        sentences = [{"raw": text} for text in captions]
        entries.append({"filename": f"{number}.tif", "imgid": number, "split": split, "sentences": sentences})
    (root / name / "d.json").write_text(json.dumps({"images": entries}), encoding="utf-8")
    return {"name": name, "format": "karpathy", "annotations": f"{name}/d.json", "images": f"{name}/imgs"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("RSVLM_CACHE", str(tmp_path_factory.mktemp("cache")))


def folders(root):
    """Where ``write_aggregated`` writes."""
    return {name: root / name for name in ("aggregated", "pages", "cards")}


def run(root, *sources, **options):
    return aggregate_sources(list(sources), data_root=str(root), log=lambda line: None, **options)


def test_rows_and_report(tmp_path):
    rows, report = run(tmp_path, make_source(tmp_path))
    assert [row["image_id"] for row in rows] == ["s/5.png", "s/0.png", "s/1.png", "s/2.png", "s/3.png", "s/4.png"]
    assert rows[0]["path"] == (tmp_path / "s/imgs/5.png").as_posix() and rows[0]["captions"] == [
        "a river .",
        "a river .",
    ]
    facts = report["sources"]["s"]
    assert facts["images"] == {"train": 4, "val": 1, "test": 1} and facts["captions"]["train"] == 8
    assert facts["images_with_another_extension"] == 6 and facts["captions_repeated_within_image"] == 6
    assert report["verbatim"]["s/test"] == {"s/train": 1.0, "s/val": 1.0, "s/test": 0.0}
    assert report["verbatim"]["s/train"]["s/train"] == 1.0
    assert [rows[0][key] for key in ("width", "height", "resolution")] == [8, 8, None]
    json.dumps(report, allow_nan=False)


def test_a_source_may_adapt_the_encoder_alone(tmp_path):
    more = make_source(tmp_path, "more", splits=("train", "train", "val", "test")) | {"use": "adapt"}
    shutil.copy(tmp_path / "more/imgs/1.png", tmp_path / "copy.png")
    own = make_source(tmp_path)
    shutil.copy(tmp_path / "copy.png", tmp_path / "s/imgs/5.png")  # a test image that the other source trains with
    (tmp_path / "more/imgs/3.png").unlink()
    with pytest.raises(FileNotFoundError, match="more: 1 of 4 images"):
        run(tmp_path, own, more)
    rows, report = run(tmp_path, own, more | {"allow_missing_images": True})
    metrics = write_aggregated(rows, report, **folders(tmp_path))
    tables = [tmp_path / "aggregated" / name for name in ("images.parquet", "adapt.parquet")]
    assert set(load_table(tables[0])["source"]) == {"s"}
    assert load_table(tables[1])["image_id"].tolist() == ["more/0.png"], "its near-duplicate of a test image left"
    both = load_adapt_table(*tables)
    assert both["image_id"].tolist()[0] == "more/0.png" and len(both) == 7
    assert metrics["near_duplicates_dropped_from_train"] == 1
    assert metrics["sources"]["more"]["images_used"] == {"train": 1, "val": 0, "test": 0}
    assert report["sources"]["more"]["images_left_out_by_use"] == 1 and report["sources"]["s"]["use"] == "all"
    assert "(adapts the encoder alone)" in (tmp_path / "cards/mixture.md").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="whose `use` is all"):
        run(tmp_path, more | {"allow_missing_images": True})


def test_a_study_without_such_a_source_has_an_empty_table_of_them(tmp_path):
    rows, report = run(tmp_path, make_source(tmp_path))
    write_aggregated(rows, report, **folders(tmp_path))
    tables = [tmp_path / "aggregated" / name for name in ("images.parquet", "adapt.parquet")]
    assert load_table(tables[1]).empty and load_adapt_table(*tables).equals(load_table(tables[0]))


def test_written_table_reads_back_and_metrics_hold_numbers(tmp_path):
    rows, report = run(tmp_path, make_source(tmp_path))
    metrics = write_aggregated(rows, report, **folders(tmp_path))
    table = load_table(tmp_path / "aggregated" / "images.parquet")
    assert table.to_dict("records") == list(rows)
    assert list(rows_of(table, split="test", source="s")["image_id"]) == ["s/5.png"]
    with pytest.raises(ValueError, match="no source 'x' in the image table; it has s"):
        rows_of(table, source="x")

    def leaves(value):
        return [leaf for item in value.values() for leaf in leaves(item)] if isinstance(value, dict) else [value]

    assert (
        all(isinstance(leaf, int) for leaf in leaves(metrics)) and metrics["sources"]["s"]["images_used"]["train"] == 4
    )
    assert metrics["sources"]["s"]["in_file"]["images"] == 6


def test_full_disk_leaves_the_old_table(tmp_path, monkeypatch):
    rows, report = run(tmp_path, make_source(tmp_path))
    write_aggregated(rows, report, **folders(tmp_path))
    before = (tmp_path / "aggregated" / "images.parquet").read_bytes()

    def no_space(path, value):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(aggregate, "write_json", no_space)
    with pytest.raises(OSError, match="No space left"):
        write_aggregated(rows[:1], report, **folders(tmp_path))
    assert (tmp_path / "aggregated" / "images.parquet").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["aggregated", "cards", "s"]


def test_missing_images_stop_or_are_counted(tmp_path):
    source = make_source(tmp_path)
    for number in (0, 2):
        (tmp_path / "s/imgs" / f"{number}.png").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"s: 2 of 6 images .* for example 0\.tif, 2\.tif.*allow_missing_images"
    ):
        run(tmp_path, source)
    rows, report = run(tmp_path, source, allow_missing_images=True)
    assert len(rows) == 4 and report["sources"]["s"]["files_missing"] == 2
    assert report["sources"]["s"]["first_files_missing"] == ["0.tif", "2.tif"]


def test_broken_image_stops_or_is_counted(tmp_path):
    source = make_source(tmp_path)
    broken = tmp_path / "s/imgs/1.png"
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(ImageError, match=r"s: .*1\.png: not a whole image"):
        run(tmp_path, source)
    rows, report = run(tmp_path, source, allow_missing_images=True)
    assert len(rows) == 5 and report["sources"]["s"]["first_images_broken"] == ["1.png"]


def test_missing_folder_and_annotations(tmp_path):
    source = make_source(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"s: no folder .*nowhere for the 6 images .*allow_missing_images"):
        run(tmp_path, source | {"images": "nowhere"})
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        run(tmp_path, source | {"annotations": "none.json"})


def test_a_source_without_its_folder_of_images_may_be_gone_on_without(tmp_path):
    lacking = make_source(tmp_path, "lacking") | {"images": "nowhere", "allow_missing_images": True}
    rows, report = run(tmp_path, make_source(tmp_path), lacking)
    facts = report["sources"]["lacking"]
    assert {row["source"] for row in rows} == {"s"} and facts["files_missing"] == facts["images_listed"] == 6
    assert facts["images"] == {"train": 0, "val": 0, "test": 0} and facts["images_on_disk"] is False
    assert write_aggregated(rows, report, **folders(tmp_path))["sources"]["lacking"]["files_missing"] == 6
    with pytest.raises(ValueError, match=r"the split train .*lacking: 4 listed, files missing in all splits: 6"):
        run(tmp_path, lacking)


def test_an_empty_split_is_told_before_an_image_is_opened(tmp_path, monkeypatch):
    def opened(*_, **__):
        raise AssertionError("an image was opened")

    monkeypatch.setattr(aggregate, "fingerprint_images", opened)
    with pytest.raises(ValueError, match=r"the split val has no image .*`val_share: 0.1` in a source draws one"):
        run(tmp_path, make_source(tmp_path, splits=("train", "test")))
    missing = make_source(tmp_path, "missing")
    (tmp_path / "missing/imgs/0.png").unlink()
    with pytest.raises(FileNotFoundError, match="missing: 1 of 6"):
        run(tmp_path, make_source(tmp_path, "whole"), missing)


def test_a_validation_split_is_drawn_by_groups_of_near_duplicates(tmp_path):
    source = make_source(tmp_path, splits=("train",) * 20 + ("test",) * 2) | {"val_share": 0.3}
    for copy, number in ((3, 2), (4, 2), (6, 20), (7, 6)):  # three alike; and two like a test image
        shutil.copy(tmp_path / f"s/imgs/{number}.png", tmp_path / f"s/imgs/{copy}.png")
    for drop, kept in ((True, 18), (False, 20)):
        seen = set()
        for seed in range(6):
            rows, report = run(tmp_path, source, seed=seed, drop_train_near_duplicates_of_test=drop)
            split_of = {row["image_id"].split("/")[1]: row["split"] for row in rows}
            counts = report["sources"]["s"]["images"]
            assert counts["test"] == 2 and counts["train"] + counts["val"] == kept
            assert counts["val"] == round(0.3 * kept) == report["sources"]["s"]["images_drawn_for_validation"]
            assert len({split_of[f"{n}.png"] for n in (2, 3, 4)}) == 1
            assert drop or split_of["6.png"] == split_of["7.png"] == "train", "what shows a test image never validates"
            assert report["near_duplicates"]["pairs_between_splits"]["train_and_val"] == 0
            ends = {
                (row["first_split"], row["second_split"])
                for row in report["near_duplicates"]["list"]
                if row["first"] == "s/2.png"
            }
            assert ends == {(split_of["2.png"],) * 2}
            seen.add(split_of["2.png"])
        assert seen == {"train", "val"}
    again = [row["split"] for row in run(tmp_path, source, seed=5, drop_train_near_duplicates_of_test=False)[0]]
    assert again == [row["split"] for row in rows]
    with pytest.raises(ValueError, match="has_one: val_share, but .* has 1 validation images already"):
        run(tmp_path, make_source(tmp_path, "has_one") | {"val_share": 0.5})


def test_a_group_that_reaches_another_source_stays_in_training():
    rows = [{"image_id": f"{source}/{n}", "source": source, "split": "train"} for source in "ab" for n in range(4)]
    for seed in range(20):
        copies = [dict(row) for row in rows]
        assert (
            draw_validation("a", 0.5, copies, [("a/0", "b/0"), ("a/1", "a/0"), ("x/9", "a/2"), ("x/9", "a/3")], seed)
            == 2
        )
        assert [row["image_id"] for row in copies if row["split"] == "val"] == ["a/2", "a/3"]
    pairs = [("a/0", "a/1"), ("a/2", "a/3")]
    with pytest.raises(ValueError, match="a: val_share 0.1 of 4 training images: none of them can be drawn"):
        draw_validation("a", 0.1, rows, pairs, 0)
    with pytest.raises(ValueError, match="a: val_share 0.5 of 1 training images: none would be left to train with"):
        draw_validation("a", 0.5, rows[:1], [], 0)
    with pytest.raises(ValueError, match="c: val_share 0.5 of 0 training images: there is none to draw from"):
        draw_validation("c", 0.5, rows, [], 0)


def test_empty_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"the split test has no image .*s: 0 listed"):
        run(tmp_path, make_source(tmp_path, splits=("train", "val")))


def test_a_source_with_one_image_joins_a_mixture(tmp_path):
    rows, report = run(tmp_path, make_source(tmp_path), make_source(tmp_path, "one", ("train",)))
    assert report["sources"]["one"]["images"] == {"train": 1, "val": 0, "test": 0} and len(rows) == 7


def test_image_without_caption_is_left_out_and_counted(tmp_path):
    rows, report = run(tmp_path, make_source(tmp_path), make_source(tmp_path, "mute", ("train",), captions=(".",)))
    assert len(rows) == 6 and report["sources"]["mute"]["first_images_without_caption"] == ["0.png"]


def test_other_scripts_are_kept_and_counted(tmp_path):
    rows, report = run(tmp_path, make_source(tmp_path, captions=("一条河 。", "река")))
    assert rows[0]["captions"] == ["一条河 。", "река"] and report["sources"]["s"]["captions_in_another_script"] == 12


@pytest.mark.parametrize("drop", [True, False])
def test_training_near_duplicates_of_test_images(tmp_path, drop):
    rows, report = run(tmp_path, make_source(tmp_path, duplicate=(1, 5)), drop_train_near_duplicates_of_test=drop)
    assert ("s/1.png" in {row["image_id"] for row in rows}) is not drop
    duplicates = report["near_duplicates"]
    assert duplicates["pairs"] == duplicates["pairs_of_equal_files"] == 1 and duplicates["dropped_from_train"] == int(
        drop
    )
    assert duplicates["pairs_between_splits"] == {"train_and_val": 0, "train_and_test": 1, "val_and_test": 0}
    assert duplicates["images_with_a_near_duplicate"]["s/test"] == {"s/train": 1, "s/val": 0, "s/test": 0}
    assert duplicates["list"] == [
        {
            "first": "s/1.png",
            "second": "s/5.png",
            "first_split": "train",
            "second_split": "test",
            "first_path": (tmp_path / "s/imgs/1.png").as_posix(),
            "second_path": (tmp_path / "s/imgs/5.png").as_posix(),
            "kind": "equal_files",
            "exact": True,
            "turn": "upright",
            "correlation": 1.0,
            **dict.fromkeys(("zoom", "degrees", "overlap", "matches")),
            "dropped": ["s/1.png"] if drop else [],
        }
    ]


def test_limit_is_drawn_by_seed(tmp_path):
    source = make_source(tmp_path, splits=("train",) * 20 + ("val", "test"))
    chosen = [
        [row["image_id"] for row in run(tmp_path, source, max_images_per_split=3, seed=seed)[0]] for seed in (0, 0, 1)
    ]
    assert len(chosen[0]) == 5 and chosen[0] == chosen[1] != chosen[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "karpaty"}, "unknown format 'karpaty'; did you mean 'karpathy'"),
        ({"format": "csv"}, "unknown format 'csv'; did you mean 'caption_table'"),
        ({"image": "x"}, "s: unknown key 'image'; did you mean 'images'"),
        ({"tiles": 5}, "unknown key 'tiles'"),
        ({"annotations": None}, "needs the key 'annotations'"),
        ({"name": "a/b"}, "'name' must be"),
        ({"name": 3}, "'name' must be str"),
        ({"fixes": "x"}, "s: 'fixes' must be list.* but is 'x'"),
        ({"format": "blue_marble"}, "unknown key 'annotations'"),
    ],
)
def test_wrong_source_settings(change, message):
    settings = {"name": "s", "format": "karpathy", "annotations": "a.json", "images": "i"}
    with pytest.raises(ValueError, match=message):
        parse_source(settings | change)


def section(root, *sources, **change):
    values = {"sources": list(sources), "data_root": "raw", "allow_missing_images": False, "max_images_per_split": None}
    return values | change


def test_sources_are_checked_by_their_paths(tmp_path):
    source = make_source(tmp_path / "raw")
    check_sources(section(tmp_path, source), tmp_path)
    check_sources(section(tmp_path, source, data_root=str(tmp_path / "raw")), tmp_path)
    absolute = source | {"annotations": str(tmp_path / "raw/s/d.json")}
    check_sources(section(tmp_path, absolute), tmp_path)  # it is below data_root, and watched
    (tmp_path / "raw/linked").symlink_to(tmp_path / "raw/s/imgs")
    (tmp_path / "raw/linked.json").symlink_to(tmp_path / "raw/s/d.json")
    check_sources(section(tmp_path, source | {"annotations": "linked.json"}), tmp_path)
    table = {"name": "t", "format": "caption_table", "images": "s/imgs", "annotations": {"train": "s/d.json"}}
    boxes = {"name": "boxed", "format": "voc_boxes", "annotations": "s", "images": "s/imgs"}
    for sources, change, message in [
        ([source | {"annotations": "s/e.json"}], {}, r"sources: s: annotations: .*s/e\.json does not exist"),
        ([source | {"images": "s/none"}], {}, r"sources: s: images: .*none does not exist"),
        ([source | {"images": "s/d.json"}], {}, "must be a folder"),
        ([source | {"annotations": "s/imgs"}], {}, "must be a file"),
        ([source | {"format": "voc_boxes"}], {}, "annotations: .* must be a folder"),
        (
            [source | {"annotations": "../params.yaml"}],
            {},
            r"leads out of data_root \(raw\)\. DVC watches that folder alone",
        ),
        ([source | {"annotations": "/etc/hosts"}], {}, "leads out of data_root"),
        ([source | {"images": "linked"}], {}, "linked is a link to a folder, and DVC does not look behind it"),
        ([source | {"format": "csv"}], {}, "did you mean 'caption_table'"),
        ([boxes | {"classes": "diro"}], {}, "sources: boxed: classes: unknown preset 'diro'; did you mean 'dior'"),
        ([boxes | {"classes": "loveda"}], {}, "boxed: classes: the preset 'loveda' is for masks; for boxes: dior"),
        ([boxes | {"captions": {"center": 0.5}}], {}, "boxed: captions: unknown name 'center'; did you mean 'centre'"),
        ([boxes | {"captions": {"centre": "half"}}], {}, "boxed: captions: 'centre' must be float, but is 'half'"),
        ([boxes | {"captions": {"general_terms": "many"}}], {}, "'general_terms' must be list.str., but is 'many'"),
        ([boxes | {"captions": "many"}], {}, "boxed: 'captions' must be dict . None, but is 'many'"),
        ([source], {"max_images_per_split": 0}, "max_images_per_split must be at least 1"),
        ([table], {}, r"(?s)the split val has no image.*val_share.*the split test has no image"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_sources(section(tmp_path, *sources, **change), tmp_path)
    check_sources(section(tmp_path, source | {"images": "s/none"}, allow_missing_images=True), tmp_path)
    with pytest.raises(ValueError, match=r"(?s)the split test.*") as error:
        check_sources(section(tmp_path, table | {"val_share": 0.1}), tmp_path)
    assert "split val" not in str(error.value)


def test_the_check_imports_nothing_heavy():
    code = "import sys; from pathlib import Path; from rsvlm.data.sources import check_sources\n"
    code += "from rsvlm.study.config import read_params\n"
    masks = {"name": "m", "format": "masks", "annotations": "m", "images": "i", "classes": "loveda", "captions": {}}
    sources = [{"name": "b", "format": "blue_marble"}, masks | {"use": "audit", "annotations": "."}]
    code += f"check_sources({{'sources': {sources!r}, 'data_root': '.', "
    code += "'allow_missing_images': False, 'max_images_per_split': None}, Path.cwd())\n"
    code += "print(sorted({'torch', 'pandas', 'numpy', 'scipy', 'PIL', 'faiss'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.stdout.strip() == "[]", done.stderr


def test_wrong_settings_of_the_whole(tmp_path):
    source = make_source(tmp_path)
    for sources, options, message in [
        ([], {}, "at least one source"),
        (["s"], {}, "must be a mapping"),
        ([{"format": "karpathy"}], {}, "lacks the key 'name'"),
        ([source, source], {}, "'s' is given twice"),
        ([source], {"max_images_per_split": 0}, "max_images_per_split must be at least 1"),
        ([source | {"use": "audit"}], {}, "at least one source"),
        (
            [source, source | {"name": "x", "format": "csv"}, source | {"name": "y", "image": 1}],
            {},
            r"(?s)'csv'; .*'image'",
        ),
        ([source | {"annotations": "/elsewhere/d.json"}], {}, r"s: '/elsewhere/d.json' leads out of data_root .*DVC"),
        ([source | {"images": "../imgs"}], {}, r"s: '../imgs' leads out of data_root"),
        ([{"name": "b", "format": "blue_marble", "tile_pixels": 50}], {}, "'tile_pixels' must be 24, 36"),
        ([{"name": "b", "format": "blue_marble", "tiles": "9"}], {}, "'tiles' must be int"),
    ]:
        with pytest.raises(ValueError, match=message):
            run(tmp_path, *sources, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "dev"}, "row 2: split must be one of"),
        ({"captions": []}, "row 2: captions must be a list"),
        ({"captions": [" "]}, "row 2: captions must be texts"),
        ({"label": 3}, "row 2: label"),
        ({"path": ""}, "row 2: path"),
        ({"extra": 1}, "row 2: needs exactly the keys"),
        ({"image_id": "s/1"}, "'s/1' is already in row 1"),
    ],
)
def test_table_checks_its_rows(tmp_path, change, message):
    row = {"image_id": "s/1", "source": "s", "split": "train", "path": "a.png", "captions": ["x"], "label": None}
    with pytest.raises(ValueError, match=message) as error:
        save_table([row, row | {"image_id": "s/2"} | change], tmp_path / "t.parquet")
    assert "t.parquet" in str(error.value) and not list(tmp_path.iterdir())


def test_absent_table_says_what_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="aggregate_data"):
        load_table(tmp_path / "images.parquet")


def test_real_ucm(shared_data):
    source = {
        "name": "ucm",
        "format": "karpathy",
        "annotations": "ucm_captions/dataset.json",
        "labels": "ucm_number",
        "images": "ucm_captions/imgs",
    }
    rows, report = run(shared_data, source, find_same_ground=False)
    facts = report["sources"]["ucm"]
    assert (
        facts["images"] == {"train": 1680, "val": 210, "test": 210} and facts["images_with_another_extension"] == 2100
    )
    assert report["verbatim"]["ucm/test"]["ucm/train"] == pytest.approx(0.5457, abs=1e-4)
    assert len({row["label"] for row in rows}) == 21
    assert all(row["published"] == row["found"] for row in facts["published"]) and len(facts["published"]) == 5
    pairs = report["near_duplicates"]["list"]
    assert [(row["first"], row["second"]) for row in pairs if row["exact"]] == [("ucm/102.jpg", "ucm/103.jpg")]
    assert len(pairs) == 1


def test_same_ground_in_real_ucm(shared_data):
    """Of the 17 pairs by eye (two of them a like object elsewhere) those beyond doubt, among the images around them."""
    numbers = [*range(100, 300), *range(1840, 1871)]
    prints = fingerprint_images([shared_data / "ucm_captions" / "imgs" / f"{number}.jpg" for number in numbers])
    found, counts = find_same_ground(prints, set())
    pairs = {(numbers[pair.first], numbers[pair.second]) for pair in found}
    sure = {
        (128, 129),
        (130, 131),
        (156, 169),
        (161, 162),
        (168, 169),
        (169, 170),
        (1853, 1856),
        (242, 246),
        (260, 261),
    }
    assert pairs >= sure and len(pairs) < 25 and counts["images"] == len(numbers)


def test_real_sources_without_their_images(shared_data):
    rsicd = {
        "name": "rsicd",
        "format": "karpathy",
        "annotations": "rsicd/dataset_rsicd.json",
        "images": "rsicd/RSICD_images",
    }
    with pytest.raises(FileNotFoundError, match="rsicd: 6,827 of 10,921 images"):
        run(shared_data, rsicd)
    sydney = {
        "name": "sydney",
        "format": "karpathy",
        "annotations": "sydney_captions/dataset_sydney_modified.json",
        "images": "imgs",
    }
    with pytest.raises(FileNotFoundError, match="sydney: no folder .* for the 613 images"):
        run(shared_data, sydney)
    ucm = {
        "name": "ucm",
        "format": "karpathy",
        "annotations": "ucm_captions/dataset.json",
        "images": "ucm_captions/imgs",
    }
    rows, report = run(
        shared_data, ucm, sydney | {"allow_missing_images": True}, max_images_per_split=2, allow_missing_images=False
    )
    assert len(rows) == 6 and report["sources"]["sydney"]["files_missing"] == 613


def test_a_table_is_thinned_evenly():
    table = pd.DataFrame({"split": ["val"] * 7 + ["test"] * 20 + ["val"] * 3, "n": range(30)})
    assert thinned(table, 4)["n"].tolist() == [0, 3, 6, 7, 13, 20, 26, 29]
    assert thinned(table, 0).equals(table) and thinned(table, 100).equals(table)
