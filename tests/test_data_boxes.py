"""Boxes and masks: what the readers see in each format, what they refuse, and the captions made of it."""

import json
import random
import re

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask

from rsvlm.data.aggregate import aggregate_sources
from rsvlm.data.box_captions import CaptionSettings, caption_boxes, words_of
from rsvlm.data.boxed_images import Classes
from rsvlm.data.boxes import Box
from rsvlm.data.coco_boxes import read_coco_boxes
from rsvlm.data.dota_boxes import read_dota_boxes
from rsvlm.data.fixes import ALL
from rsvlm.data.images import ImageError
from rsvlm.data.mask_boxes import boxes_of_part, read_mask_boxes
from rsvlm.data.voc_boxes import read_voc_boxes
from rsvlm.data.yolo_boxes import read_yolo_boxes

pytest.importorskip("cv2", reason="the extra audit is not installed (make test installs it)")
pytest.importorskip("inflect", reason="the extra audit is not installed (make test installs it)")

WIDTH, HEIGHT = 40, 20


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (WIDTH, HEIGHT), "green").save(folder / name)
    return folder


def corners(box):
    return (box.label, box.left, box.top, box.right, box.bottom)


def text(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content, encoding="utf-8")
    return folder


# COCO


def coco_file(tmp_path, **change):
    content = {
        "images": [
            {"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT},
            {"id": 2, "file_name": "b.png"},
        ],
        "categories": [{"id": 7, "name": "large-vehicle"}, {"id": 8, "name": "ship"}],
        "annotations": [{"image_id": 1, "category_id": 7, "bbox": [1, 2, 10, 5]}],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content | change), encoding="utf-8")
    return {"train": path}


def test_coco_boxes_polygons_and_run_lengths(tmp_path, images):
    square = [4, 4, 14, 4, 14, 14, 4, 14]
    runs = [HEIGHT * 3, 10, HEIGHT - 10, 10, HEIGHT * (WIDTH - 5) + 10]  # ten pixels in each of two columns
    annotations = [
        {"image_id": 1, "category_id": 7, "bbox": [1, 2, 10, 5]},
        {"image_id": 1, "category_id": 8, "bbox": [4, 4, 10, 10], "segmentation": [square]},
        {"image_id": 2, "category_id": 8, "segmentation": {"size": [HEIGHT, WIDTH], "counts": runs}},
    ]
    listing = read_coco_boxes(coco_file(tmp_path, annotations=annotations), images, Classes())
    first, second = listing.images
    assert [corners(box) for box in first.boxes] == [("large vehicle", 1, 2, 11, 7), ("ship", 4, 4, 14, 14)]
    assert first.boxes[0].pixels == 50 and first.boxes[1].pixels == pytest.approx(100, abs=20)
    assert (second.width, second.height) == (WIDTH, HEIGHT), "taken from the file"
    assert corners(second.boxes[0]) == ("ship", 3, 0, 5, 10) and second.boxes[0].pixels == 20
    encoded = mask.frPyObjects({"size": [HEIGHT, WIDTH], "counts": runs}, HEIGHT, WIDTH)
    annotations[2]["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": encoded["counts"].decode()}
    again = read_coco_boxes(coco_file(tmp_path, annotations=annotations), images, Classes())
    assert again.images[1].boxes == second.boxes


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"category_id": 9, "bbox": [0, 0, 1, 1]}, r"annotations\[0\]: no category has the id 9"),
        ({"bbox": [0, 0, 1]}, r"'bbox' must be"),
        ({"bbox": [0, 0, "1", 1]}, r"'bbox' must be"),
        ({"bbox": [50, 0, 5, 5]}, r"annotations\[0\]: the box of 'ship' lies outside the image of 40x20 pixels"),
        ({"bbox": [0, 0, 0, 5]}, "has no area"),
        ({"segmentation": [[1, 2, 3]]}, "at least three pairs"),
        ({"segmentation": [[1, 2, 3, float("nan"), 5, 6]]}, "at least three pairs"),
        ({"segmentation": {"size": [20, 41], "counts": [820]}}, r"the mask has the size \[20, 41\]"),
        ({"segmentation": {"size": [20, 40], "counts": [799]}}, "add up to 800"),
        ({"segmentation": {"size": [20, 40], "counts": "l1:::n"}}, "cut off"),
        ({"segmentation": {"size": [20, 40], "counts": "é"}}, "no such code"),
        ({"segmentation": 3}, "must be a list of polygons"),
    ],
)
def test_bad_coco_boxes(tmp_path, images, entry, message):
    entry = {"image_id": 1, "category_id": 8} | entry
    with pytest.raises(ValueError, match=message) as error:
        read_coco_boxes(coco_file(tmp_path, annotations=[entry]), images, Classes())
    assert "instances.json" in str(error.value)


# Pascal VOC

VOC = """<annotation>
  <filename>{name}</filename>
  <size><width>40</width><height>20</height><depth>3</depth></size>
  <object>
    <name>Golffield</name>
    <bndbox><xmin>1</xmin><ymin>2</ymin><xmax>{right}</xmax><ymax>19</ymax></bndbox>
  </object>
  <object>
    <name>ship</name>
    <robndbox><cx>20</cx><cy>10</cy><w>12</w><h>4</h><angle>1.5707963</angle></robndbox>
  </object>
</annotation>
"""


def test_voc_boxes_upright_and_oriented_with_lists(tmp_path, images):
    folder = text(
        tmp_path / "xml", a__xml=VOC.format(name="a.png", right=30), b__xml=VOC.format(name="a.png", right=30)
    )
    lists = text(tmp_path / "lists", train__txt="a\n", test__txt="b 1\n")
    split_lists = {"train": lists / "train.txt", "test": lists / "test.txt"}
    classes = Classes({"Golffield": "golf course", "ship": "ship"}, closed=True)
    listing = read_voc_boxes(folder, images, classes, split_lists)
    assert [(image.name, image.split) for image in listing.images] == [("a.png", "train"), ("b.png", "test")]
    assert listing.counts["files_naming_another_image"] == 1
    field, ship = listing.images[0].boxes
    assert corners(field) == ("golf course", 1, 2, 30, 19) and field.angle is None
    assert corners(ship)[1:] == pytest.approx((18, 4, 22, 16), abs=1e-5)
    assert ship.angle == pytest.approx(90, abs=1e-3) and ship.stretch == pytest.approx(3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (VOC[:200], r"a\.xml: line \d+: not whole XML"),
        (VOC.format(name="a.png", right="x"), r"a\.xml: line 4: bndbox/xmax must be a number, is 'x'"),
        (VOC.format(name="a.png", right=70), r"a\.xml: line 4: .* reaches over the image"),
        (VOC.format(name="../a.png", right=9), "leads out"),
        (
            VOC.format(name="a.png", right=30).replace("<name>ship</name>", ""),
            r"a\.xml: line 8: the object has no 'name'",
        ),
        (
            VOC.format(name="a.png", right=30).replace("ship", "shop"),
            r"line 8: unknown class 'shop'; did you mean 'ship'",
        ),
        (
            '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation><filename>&b;</filename></annotation>',
            "xml",
        ),
    ],
)
def test_bad_voc_boxes(tmp_path, images, content, message):
    classes = Classes({"Golffield": "golf course", "ship": "ship"}, closed=True)
    with pytest.raises(ValueError, match=message) as error:
        read_voc_boxes(text(tmp_path / "xml", a__xml=content), images, classes, {}, fixes=ALL - {"boxes_clipped"})
        raise ValueError("xml: an entity was read as nothing")
    assert "root:" not in str(error.value)


# DOTA and YOLO


def test_dota_boxes_have_directions(tmp_path, images):
    lines = "imagesource:GoogleEarth\ngsd:0.1\n2 2 12 2 12 6 2 6 small-vehicle 0\n10 4 16 10 14 12 8 6 ship 1\n"
    listing = read_dota_boxes(text(tmp_path / "labels", a__txt=lines), images, Classes(), {})
    flat, sloped = listing.images[0].boxes
    assert corners(flat) == ("small vehicle", 2, 2, 12, 6) and flat.angle == 0 and flat.stretch == 2.5
    assert flat.pixels == 40 and sloped.pixels == pytest.approx(24)
    assert sloped.angle == pytest.approx(45) and sloped.stretch == pytest.approx(3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 2 3 4 5 6 7 ship 0", "line 1: the eight coordinates must be numbers"),
        ("1 2 3 4 5 6 7", "line 1: needs eight coordinates, .* has 7 fields"),
        ("1 2 3 2 3 4 nan 4 ship 0", "must be finite"),
        ("90 2 95 2 95 6 90 6 ship 0", "line 1: the box of 'ship' lies outside"),
        ("1 2 9 2 9 6 1 6 shop 0", "line 1: unknown class 'shop'; did you mean 'ship'"),
    ],
)
def test_bad_dota_boxes(tmp_path, images, line, message):
    with pytest.raises(ValueError, match=message):
        folder = text(tmp_path / "labels", a__txt=line)
        read_dota_boxes(folder, images, Classes({"ship": "ship"}, closed=True), {})
    with pytest.raises(FileNotFoundError, match="holds no image 'c'"):
        read_dota_boxes(text(tmp_path / "other", c__txt=line), images, Classes(), {})


def test_yolo_boxes(tmp_path, images):
    folder = text(tmp_path / "labels", a__txt="0 0.5 0.5 0.5 0.5\n1 0.9 0.5 0.4 0.5\n", b__txt="", classes__txt="ship")
    classes = Classes({"0": "ship", "1": "plane"}, closed=True)
    listing = read_yolo_boxes(folder, images, classes, {}, split="val")
    assert [corners(box) for box in listing.images[0].boxes] == [("ship", 10, 5, 30, 15), ("plane", 28, 5, 40, 15)]
    assert listing.counts["boxes_over_the_edge"] == 1 and listing.images[1].boxes == ()
    for line, message in [
        ("0 0.5 0.5 0.5", "line 1: needs a class number and four shares"),
        ("0 20 10 5 5", "pixels?"),
        ("7 0.5 0.5 0.5 0.5", "line 1: unknown class '7'"),
        ("x 0.5 0.5 0.5 0.5", "must be a whole number"),
        ("0 0.5 0.5 0 0.5", "has no area"),
        ("0 nan 0.5 0.1 0.5", "finite"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message) if "?" in message else message):
            read_yolo_boxes(text(tmp_path / "bad", a__txt=line), images, classes, {})


# Masks


def test_parts_of_a_mask_also_inside_a_hole(tmp_path):
    plane = np.zeros((30, 30), bool)
    plane[2:20, 2:20] = True
    plane[5:17, 5:17] = False  # a hole
    plane[8:11, 7:15] = True  # a part inside the hole, three by eight
    plane[25, 25] = plane[26, 26] = True  # touching at a corner: one part
    large, inner, dots = boxes_of_part(plane, "roof")
    assert corners(large) == ("roof", 2, 2, 20, 20) and large.pixels == 18 * 18 - 12 * 12
    assert corners(inner) == ("roof", 7, 8, 15, 11) and inner.pixels == 24
    assert inner.angle % 180 == pytest.approx(0, abs=1) and inner.stretch == pytest.approx(8 / 3)
    assert corners(dots) == ("roof", 25, 25, 27, 27) and dots.pixels == 2
    assert boxes_of_part(plane, "roof", min_pixels=3) == [large, inner]
    assert boxes_of_part(np.zeros((4, 4), bool), "x") == []


@pytest.mark.parametrize("colour", [False, True])
def test_masks_by_index_and_by_colour(tmp_path, images, colour):
    values = np.zeros((HEIGHT, WIDTH), np.uint8)
    values[5:10, 5:15] = 2
    palette = {0: (0, 0, 0), 2: (255, 0, 0)}
    folder = tmp_path / "masks"
    folder.mkdir()
    if colour:
        values = np.array([[palette[int(value)] for value in row] for row in values], np.uint8)
    Image.fromarray(values).save(folder / "a_label.png")
    classes = {palette[0]: None, palette[2]: "building"} if colour else {0: None, 2: "building"}
    listing = read_mask_boxes(folder, images, classes, {}, suffix="_label")
    assert listing.images[0].name == "a.png" and [corners(box) for box in listing.images[0].boxes] == [
        ("building", 5, 5, 15, 10)
    ]
    del classes[palette[2] if colour else 2]
    with pytest.raises(ValueError, match=r"a_label\.png: pixels of .* have no class"):
        read_mask_boxes(folder, images, classes, {}, suffix="_label")


def test_bad_masks(tmp_path, images):
    folder = tmp_path / "masks"
    folder.mkdir()
    Image.new("L", (WIDTH + 1, HEIGHT)).save(folder / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: the mask is 41x20 pixels, its image a\.png 40x20"):
        read_mask_boxes(folder, images, {0: None}, {})
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "a.png")
    with pytest.raises(ImageError, match="must have one channel"):
        read_mask_boxes(folder, images, {0: None}, {})
    (folder / "a.png").write_bytes((folder / "a.png").read_bytes()[:60])
    with pytest.raises(ImageError, match="not a whole image"):
        read_mask_boxes(folder, images, {0: None}, {})


# Captions


def box(label, left, top, side=4, angle=None, stretch=1.0):
    return Box(label, left, top, left + side, top + side, side * side, angle, stretch)


SPREAD = [box("ship", 48, 48), box("harbor", 2, 2, 40), *(box("plane", 5 * n, 90) for n in range(12))]


def captions_of(boxes, seed=0, **settings):
    return caption_boxes(boxes, 100, 100, CaptionSettings(**settings), random.Random(seed))


@pytest.mark.parametrize("seed", range(20))
def test_five_different_captions_true_to_the_boxes(seed):
    captions = captions_of(SPREAD, seed)
    assert len(set(captions)) == 5 and all(caption[0].isupper() and caption.endswith(".") for caption in captions)
    centre, elsewhere = captions[:2]
    assert "one ship" in centre and "plane" not in centre and "harbor" not in centre
    assert "planes" in elsewhere and "ship" not in elsewhere
    assert re.search(r"(many|a lot of) planes", elsewhere) and "twelve" not in " ".join(captions)
    counting = " ".join(captions[2:])
    assert all(name in counting for name in ("one ship", "one harbor", "planes")), "no class is left out"
    assert captions == captions_of(SPREAD, seed)
    words = set(re.findall(r"[a-z]+", " ".join(captions).lower()))
    assert not words & {"left", "right", "top", "bottom", "north", "south", "east", "west", "above the", "below"}


def test_every_one_of_many_classes_is_named():
    names = ["ship", "plane", "bridge", "harbor", "roundabout", "stadium", "helicopter"]
    boxes = [box(name, 12 * n, 12 * n) for n, name in enumerate(names)]
    for seed in range(10):
        counting = " ".join(captions_of(boxes, seed)[2:])
        assert all(name in counting for name in names)


def test_settings_change_what_is_said():
    many = [box("ship", 5 * n, 50) for n in range(11)]
    assert "eleven ships" in " ".join(captions_of(many, general_above=11))
    assert "numerous ships" in " ".join(captions_of(many, general_terms=("numerous",)))
    corner = [box("ship", 80, 80)]
    assert "not in the center" in captions_of(corner)[0] or "free of ships" in captions_of(corner)[0]
    wide = captions_of(corner, centre=0.99)
    assert "not in the center" not in wide[0] and "free of" not in wide[0]
    assert captions_of([]) == []


def test_relations_sizes_and_directions():
    inside = [box("harbor", 0, 0, 60), box("ship", 20, 20, 5)]
    assert any("ship is inside the harbor" in caption.lower() for caption in captions_of(inside))
    near = [box("pier", 40, 40, 10), box("ship", 51, 40, 10)]
    assert any("next to" in caption for caption in captions_of(near))
    assert not any("next to" in caption for caption in captions_of(near, relations=False))
    row = [box("ship", 10 * n, 40, 8, angle=178 if n % 2 else 3, stretch=3) for n in range(4)]
    assert any("ships lie in parallel" in caption for caption in captions_of(row))
    crossed = [box("ship", 10 * n, 40, 8, angle=90 * (n % 2), stretch=3) for n in range(4)]
    assert not any("parallel" in caption for caption in captions_of(crossed))
    assert any("lake is large" in caption for caption in captions_of([box("lake", 10, 10, 60)]))
    assert any("ship is small" in caption for caption in captions_of([box("ship", 10, 10, 2)]))
    assert not any("small" in caption for caption in captions_of([box("ship", 10, 10, 2)], details=False))


def test_words_of_classes():
    assert words_of("storage tank") == ("storage tank", "storage tanks")
    assert words_of("bus") == ("bus", "buses") and words_of("ships") == ("ship", "ships")
    assert words_of("water") == ("area of water", "areas of water")


def test_boxes_become_a_source_of_a_study(tmp_path, images):
    folder = text(tmp_path / "labels", a__txt="0 0.5 0.5 0.2 0.2", b__txt="0 0.1 0.1 0.1 0.1\n1 0.8 0.8 0.2 0.2")
    lists = text(tmp_path / "lists", train__txt="a", test__txt="b", val__txt="c")
    Image.effect_noise((WIDTH, HEIGHT), 90).save(images / "c.png")
    (folder / "c.txt").write_text("1 0.5 0.5 0.2 0.2")
    source = {
        "name": "yard",
        "format": "yolo_boxes",
        "annotations": "labels",
        "images": "images",
        "classes": ["ship", "plane"],
        "splits": {split: f"lists/{split}.txt" for split in ("train", "val", "test")},
        "resolution": 0.5,
    }
    assert lists.is_dir()
    options = {"data_root": str(tmp_path), "cache": tmp_path / "cache", "log": lambda line: None}
    rows, report = aggregate_sources([source], drop_train_twins_of_test=False, **options)
    assert [(row["image_id"], row["label"], len(row["captions"])) for row in rows] == [
        ("yard/b.png", "plane", 5),
        ("yard/a.png", "ship", 5),
        ("yard/c.png", "plane", 5),
    ]
    assert report["sources"]["yard"]["boxes"] == 4 and rows[0]["resolution"] == 0.5
    assert report["twins"]["pairs_of_equal_files"] == 1, "a.png and b.png are the same green picture"
