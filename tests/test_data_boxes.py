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
from rsvlm.data.box_readers import read_coco_boxes, read_dota_boxes, read_voc_boxes, read_yolo_boxes
from rsvlm.data.boxes import Box, Classes, boxes_of_part, read_mask_boxes
from rsvlm.data.images import ImageError
from rsvlm.data.names import ALL, CLASSES, class_words, fixes_report
from rsvlm.data.readers import list_source
from rsvlm.data.sources import parse_source

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
    classes = Classes({"Golffield": "golf course", "ship": "ship"})
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
    classes = Classes({"Golffield": "golf course", "ship": "ship"})
    with pytest.raises(ValueError, match=message) as error:
        read_voc_boxes(text(tmp_path / "xml", a__xml=content), images, classes, {}, fixes=ALL - {"boxes_clipped"})
        raise ValueError("xml: an entity was read as nothing")
    assert "root:" not in str(error.value)


CORNERS = """<annotation>
  <filename>a.jpg</filename>
  <size><width>40</width><height>20</height><depth>3</depth></size>
  <object>
    <type>robndbox</type>
    <name>ship</name>
    <{box}>{corners}</{box}>
    <angle>45</angle>
  </object>
</annotation>
"""
SIDES = ["left_top", "right_top", "right_bottom", "left_bottom"]


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("robndbox", [f"{axis}_{side}" for side in SIDES for axis in "xy"]),  # DIOR-R
        ("robndbox", [f"{axis}{n}" for n in range(1, 5) for axis in "xy"]),
        ("bndbox", [f"{axis}{n}" for n in range(1, 5) for axis in "xy"]),
        ("polygon", [f"{axis}{n}" for n in range(1, 5) for axis in "xy"]),
    ],
)
def test_four_corners_in_xml(tmp_path, images, kind, keys):
    values = dict(zip(keys, (10, 4, 16, 10, 14, 12, 8, 6), strict=True))
    content = CORNERS.format(box=kind, corners="".join(f"<{key}>{value}</{key}>" for key, value in values.items()))
    (ship,) = read_voc_boxes(text(tmp_path / "xml", a__xml=content), images, Classes(), {}).images[0].boxes
    assert corners(ship) == ("ship", 8, 4, 16, 12) and ship.pixels == pytest.approx(24)
    assert ship.angle == pytest.approx(45) and ship.stretch == pytest.approx(3)
    lacking = content.replace(f"<{keys[5]}>12</{keys[5]}>", "")
    with pytest.raises(ValueError, match=rf"a\.xml: line 4: {kind}/{keys[5]} must be a number, is None"):
        read_voc_boxes(text(tmp_path / "xml", a__xml=lacking), images, Classes(), {})


HRSC = """<HRSC_Image>
  <Img_FileName>a</Img_FileName>
  <Img_FileFmt>bmp</Img_FileFmt>
  <Img_SizeWidth>40</Img_SizeWidth>
  <Img_SizeHeight>20</Img_SizeHeight>
  <segmented>0</segmented>
  <HRSC_Objects>
    <HRSC_Object>
      <Class_ID>100000013</Class_ID>
      <box_xmin>8</box_xmin><box_ymin>4</box_ymin><box_xmax>16</box_xmax><box_ymax>12</box_ymax>
      <mbox_cx>12</mbox_cx><mbox_cy>8</mbox_cy><mbox_w>8.485281</mbox_w><mbox_h>2.828427</mbox_h>
      <mbox_ang>0.7853982</mbox_ang>
    </HRSC_Object>
  </HRSC_Objects>
</HRSC_Image>
"""


def test_hrsc_boxes(tmp_path, images):
    folder = text(tmp_path / "xml", a__xml=HRSC)
    listing = read_voc_boxes(folder, images, Classes(class_words("hrsc", "classes")), {})
    (ship,) = listing.images[0].boxes
    assert (listing.images[0].name, listing.images[0].width, listing.images[0].height) == ("a.bmp", 40, 20)
    assert corners(ship) == ("ship", *(pytest.approx(value, abs=1e-4) for value in (8, 4, 16, 12)))
    assert ship.angle == pytest.approx(45, abs=1e-4) and ship.stretch == pytest.approx(3, abs=1e-4)
    upright = re.sub("<mbox_.*>", "", HRSC)
    (ship,) = read_voc_boxes(text(tmp_path / "xml", a__xml=upright), images, Classes(), {}).images[0].boxes
    assert corners(ship) == ("100000013", 8, 4, 16, 12) and ship.angle is None


def test_xml_with_sizes_needs_no_images(tmp_path):
    folder = text(tmp_path / "xml", a__xml=VOC.format(name="a.jpg", right=30))
    assert read_voc_boxes(folder, tmp_path / "none", Classes(), {}).images[0].name == "a.jpg"


FLAT = {
    "voc_boxes": ("a.xml", VOC.format(name="a.png", right=1)),
    "dota_boxes": ("a.txt", "2 2 12 2 12 2 2 2 ship 0\n2 2 12 2 12 6 2 6 ship 0"),
    "yolo_boxes": ("a.txt", "0 0.5 0.5 0 0.5\n0 0.5 0.5 0.1 0.5"),
    "coco_boxes": ("a.json", None),
}


@pytest.mark.parametrize("format", FLAT)
def test_boxes_without_area_are_left_out_counted_and_listed(tmp_path, images, format):
    name, content = FLAT[format]
    (tmp_path / "boxes").mkdir()
    if content is None:
        flat, good = ({"image_id": 1, "category_id": 8, "bbox": [3, 3, side, 5]} for side in (0, 4))
        (tmp_path / "boxes" / name).write_bytes(coco_file(tmp_path, annotations=[flat, good])["train"].read_bytes())
    else:
        (tmp_path / "boxes" / name).write_text(content, encoding="utf-8")
    where = {"train": f"boxes/{name}"} if format == "coco_boxes" else "boxes"
    source = {"name": "yard", "format": format, "annotations": where, "images": "images"}
    source |= {"classes": ["ship"]} if format == "yolo_boxes" else {}
    listing, _, _ = list_source(parse_source(source), str(tmp_path))
    assert listing.counts["boxes_without_area"] == listing.counts["boxes"] == 1
    (place,) = listing.notes["first_boxes_without_area"]
    assert place.startswith(name) and str(tmp_path) not in place
    assert fixes_report(listing.counts, ALL)["boxes_without_area"] == {"on": True, "met": 1}
    with pytest.raises(ValueError, match="has no area: .* the fix 'boxes_without_area' leaves it out"):
        list_source(parse_source(source | {"fixes": ["boxes_clipped"]}), str(tmp_path))


@pytest.mark.parametrize(
    ("format", "name", "content", "sought"),
    [
        ("voc_boxes", "a.xml", "<a><items><item/></items></a>", "looks for <object> with <bndbox>.*HRSC_Object"),
        ("dota_boxes", "a.txt", "gsd:1", "looks for lines 'x1 y1 x2 y2"),
        ("yolo_boxes", "a.txt", "", "looks for lines 'class x y width height'"),
    ],
)
def test_a_source_without_one_caption_is_an_error(tmp_path, images, format, name, content, sought):
    text(tmp_path / "boxes", **{name.replace(".", "__"): content})
    source = {"name": "yard", "format": format, "annotations": "boxes", "images": "images", "classes": {"0": "ship"}}
    with pytest.raises(ValueError, match=f"yard: not one caption for 1 images in .*boxes; format {format} {sought}"):
        list_source(parse_source(source), str(tmp_path))


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
        read_dota_boxes(folder, images, Classes({"ship": "ship"}), {})
    with pytest.raises(FileNotFoundError, match="holds no image 'c'"):
        read_dota_boxes(text(tmp_path / "other", c__txt=line), images, Classes(), {})


def test_yolo_boxes(tmp_path, images):
    folder = text(tmp_path / "labels", a__txt="0 0.5 0.5 0.5 0.5\n1 0.9 0.5 0.4 0.5\n", b__txt="", classes__txt="ship")
    classes = Classes({"0": "ship", "1": "plane"})
    listing = read_yolo_boxes(folder, images, classes, {}, split="val")
    assert [corners(box) for box in listing.images[0].boxes] == [("ship", 10, 5, 30, 15), ("plane", 28, 5, 40, 15)]
    assert listing.counts["boxes_over_the_edge"] == 1 and listing.images[1].boxes == ()
    for line, message in [
        ("0 0.5 0.5 0.5", "line 1: needs a class number and four shares"),
        ("0 20 10 5 5", "pixels?"),
        ("7 0.5 0.5 0.5 0.5", "line 1: unknown class '7'"),
        ("x 0.5 0.5 0.5 0.5", "must be a whole number"),
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
    (large, inner, dots), kept = boxes_of_part(plane, "roof")
    assert (kept == plane).all()
    assert corners(large) == ("roof", 2, 2, 20, 20) and large.pixels == 18 * 18 - 12 * 12
    assert corners(inner) == ("roof", 7, 8, 15, 11) and inner.pixels == 24
    assert corners(dots) == ("roof", 25, 25, 27, 27) and dots.pixels == 2
    boxes, kept = boxes_of_part(plane, "roof", min_pixels=3)
    assert boxes == [large, inner] and kept.sum() == large.pixels + inner.pixels
    assert boxes_of_part(np.zeros((4, 4), bool), "x")[0] == []


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
    listing = read_mask_boxes(folder, images, classes, {}, suffix="_label", min_pixels=50)
    assert listing.images[0].name == "a.png" and [corners(box) for box in listing.images[0].boxes] == [
        ("building", 5, 5, 15, 10)
    ]
    del classes[palette[2] if colour else 2]
    with pytest.raises(ValueError, match=r"a_label\.png: pixels of .* have no class"):
        read_mask_boxes(folder, images, classes, {}, suffix="_label")
    assert read_mask_boxes(folder, images, classes | {"*": None}, {}, suffix="_label").images[0].boxes == ()


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
    assert "numerous ships" in " ".join(captions_of(many, general_terms=["numerous"]))
    corner = [box("ship", 80, 80)]
    assert "not in the center" in captions_of(corner)[0] or "free of ships" in captions_of(corner)[0]
    wide = captions_of(corner, centre=0.99)
    assert "not in the center" not in wide[0] and "free of" not in wide[0]
    assert captions_of([]) == []


def test_relations_sizes_and_directions():
    near = [box("pier", 40, 40, 2), box("ship", 43, 40, 1)]
    said = {caption for seed in range(8) for caption in captions_of(near, seed)}
    for relation in ("The ship is next to a pier.", "The pier is next to a ship."):
        assert any(relation in caption for caption in said)
    assert not any("next to" in caption for caption in captions_of(near, relations=False))
    row = [box("ship", 10 * n, 40, 8, angle=178 if n % 2 else 3, stretch=3) for n in range(4)]
    assert any("ships lie in parallel" in caption for caption in captions_of(row))
    for odd in (90, 30):  # one of many across the others does not lie in parallel, though the mean hardly moves
        crossed = [box("ship", n, 40, 8, angle=0 if n else odd, stretch=3) for n in range(40)]
        assert not any("parallel" in caption for caption in captions_of(crossed))
    assert any("The lake looks large in the image" in caption for caption in captions_of([box("lake", 10, 10, 60)]))
    assert any("The ship looks small in the image" in caption for caption in captions_of([box("ship", 10, 10, 2)]))
    two = [box("ship", 10, 1, 2), box("ship", 10, 9, 2)]
    assert any("The ships look small in the image" in caption for caption in captions_of(two))
    assert not any("small" in caption for caption in captions_of([box("ship", 10, 10, 2)], details=False))


@pytest.mark.parametrize("seed", range(8))
def test_boxes_do_not_prove_that_objects_are_inside_or_next_to_each_other(seed):
    # A bridge from corner to corner has the whole image for its box: a ship in another corner is far from it.
    around = [box("bridge", 0, 0, 100), box("ship", 2, 90, 4), box("ship", 40, 45, 4)]
    assert not any(word in caption for caption in captions_of(around, seed) for word in ("inside", "next to"))
    assert not any("inside" in caption for caption in captions_of([box("harbor", 0, 0, 60), box("ship", 20, 20)], seed))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", ["large vehicle", "small vehicle", "small craft harbor"])
def test_a_class_whose_name_holds_a_size_gets_no_other(seed, name):
    boxes = [box(name, 10, 10, 2), box(name, 30, 10, 2)]
    assert not any(re.search("looks? (small|large)", caption) for caption in captions_of(boxes, seed))


@pytest.mark.parametrize("seed", range(8))
def test_the_centre_is_free_only_of_what_does_not_reach_into_it(seed):
    reaching = captions_of([box("lake", 0, 0, 49)], seed)  # its middle lies outside the centre, its corner in it
    assert "free of" not in reaching[0] and "not in the center" not in reaching[0]
    assert "lake" in reaching[1] and len(set(reaching)) == 5
    whole = captions_of([box("airport", 0, 5, 55), box("ship", 0, 0, 2)], seed)  # it holds the image's middle
    assert "airport" not in whole[1] and "ship" in whole[1]
    out = captions_of([box("lake", 20, 20, 60)], seed)  # its middle lies in the centre, its edges do not
    assert "only in the center" not in out[1] and "free of" not in out[1]


def words_in(captions):
    return " ".join(captions)


@pytest.mark.parametrize("seed", range(8))
def test_masks_tell_what_surrounds_what_and_not_what_boxes_overlap(tmp_path, images, seed):
    """An L of water has a building in its bounding box and not inside it; a lake in a forest is surrounded by it."""
    Image.new("RGB", (100, 100)).save(images / "a.png")
    values = np.zeros((100, 100), np.uint8)
    values[0:100, 0:20] = values[80:100, 0:100] = 1  # water
    values[30:50, 60:80] = 2  # building in the box of the water
    (tmp_path / "masks").mkdir()
    Image.fromarray(values).save(tmp_path / "masks" / "a.png")
    classes = {0: None, 1: "water", 2: "building", 3: "forest"}

    def captions():
        image = read_mask_boxes(tmp_path / "masks", images, classes, {}).images[0]
        return image, words_in(
            caption_boxes(list(image.boxes), 100, 100, CaptionSettings(), random.Random(seed), image.relations)
        )

    image, said = captions()
    assert image.relations == () and not re.search("inside|surrounded|next to", said)
    values[:] = 3
    values[30:50, 40:60] = 1
    values[90:100, 0:10] = 2  # at the image's edge: what lies beyond is not known
    Image.fromarray(values).save(tmp_path / "masks" / "a.png")
    image, said = captions()
    assert ("water", "surrounded by", "forest") in image.relations
    assert not any(relation[:2] == ("building", "surrounded by") for relation in image.relations)
    assert "The area of water is surrounded by an area of forest." in said
    values[30:50, 60:80] = 0  # a way out of the forest, one pixel wide
    values[40, 60:100] = 0
    Image.fromarray(values).save(tmp_path / "masks" / "a.png")
    assert ("water", "surrounded by", "forest") not in captions()[0].relations


def test_slivers_of_a_mask_are_not_counted(tmp_path, images):
    Image.new("RGB", (400, 400)).save(images / "a.png")
    values = np.zeros((400, 400), np.uint8)
    values[0:100, 0:100] = 1
    values[200:210, 0:12] = values[300:310, 0:12] = 1  # 120 pixels: below a thousandth of the image
    values[350:352, 0:300] = 1  # 600 pixels in a strip of two: a slip of the pen
    values[200:210, 300:312] = 2
    values[300:307, 300:307] = 2  # 49 pixels: no object that a person knows
    (tmp_path / "masks").mkdir()
    Image.fromarray(values).save(tmp_path / "masks" / "a.png")
    classes = {0: None, 1: "low vegetation", 2: "car"}
    image = read_mask_boxes(tmp_path / "masks", images, classes, {}).images[0]
    assert [(one.label, one.pixels) for one in image.boxes] == [("low vegetation", 10_000), ("car", 120)]
    assert not image.boxes[0].exact, "there are smaller areas, so one area would be false"
    values[:, :12] = 0
    values[0:100, 0:100] = 1
    assert (
        boxes_of_part(values == 1, "water", 160)[0][0].exact and not boxes_of_part(values == 1, "roof", 160)[0][0].exact
    )
    all_of_them = read_mask_boxes(tmp_path / "masks", images, classes, {}, min_pixels=1, min_share=0).images[0]
    assert len(all_of_them.boxes) == 6


@pytest.mark.parametrize("seed", range(8))
def test_parts_of_objects_have_no_number_and_areas_have(seed):
    parts = [
        Box(name, 0, 0, 9, 9, 81, place="around", exact=name == "water")
        for name in ("car", "car", "tree", "water", "water")
    ]
    said = words_in(caption_boxes(parts, 100, 100, CaptionSettings(), random.Random(seed))).lower()
    assert "some cars" in said and "at least one tree" in said and "two areas of water" in said
    assert not re.search(r"two cars|(?<!at least )one tree|tree looks", said)


def test_a_bent_part_lies_where_its_pixels_are():
    ring = np.ones((100, 100), bool)
    ring[20:80, 20:80] = False  # around the centre; the middle of its box is the image's
    assert boxes_of_part(ring, "water")[0][0].place == "around"
    assert boxes_of_part(~ring, "water")[0][0].place == "centre"
    assert boxes_of_part(np.arange(100)[None, :].repeat(100, 0) < 35, "water")[0][0].place == "both"


def test_words_of_classes():
    assert words_of("storage tank") == ("storage tank", "storage tanks")
    assert words_of("bus") == ("bus", "buses") and words_of("ships") == ("ship", "ships")
    assert words_of("water") == ("area of water", "areas of water")
    assert words_of("stretch of road") == ("stretch of road", "stretches of road")


@pytest.mark.parametrize("preset", sorted(CLASSES))
def test_preset_words_are_singular_and_have_a_plural(preset):
    for word in {word for word in CLASSES[preset].values() if word}:
        singular, plural = words_of(word)
        assert singular in (word, f"area of {word}") and plural != singular


def test_class_words_are_a_preset_closed_or_open():
    assert Classes(class_words("dior", "classes")).word("golffield", "x") == "golf course"
    assert class_words("loveda", "classes", masks=True)[7] == "farmland"
    assert class_words("potsdam", "classes", masks=True)[(255, 255, 0)] == "car"
    assert class_words("isaid", "classes", masks=True)[(0, 127, 127)] == "large vehicle"
    assert Classes(class_words("isaid", "classes")).word("Large_Vehicle", "x") == "large vehicle"
    opened = Classes(class_words({"golffield": "golf course", "*": "*"}, "classes"))
    assert opened.word("golffield", "x") == "golf course" and opened.word("Toll-Station", "x") == "toll station"
    assert Classes(class_words({"ship": "ship", "*": None}, "classes")).word("dock", "x") is None
    assert Classes(class_words(None, "classes")).word("storage_tank", "x") == "storage tank"
    with pytest.raises(ValueError, match="unknown class 'shop'; did you mean 'ship'"):
        Classes(class_words("dior", "classes")).word("shop", "a.xml: line 3")


@pytest.mark.parametrize(
    ("classes", "masks", "message"),
    [
        ("doir", False, "unknown preset 'doir'; did you mean 'dior'"),
        ("nothing like it", False, "known: dior, dota, hrsc, isaid, loveda, potsdam, vaihingen"),
        ("dior", True, "the preset 'dior' is for boxes; for masks: isaid, loveda, potsdam, vaihingen"),
        ("loveda", False, "the preset 'loveda' is for masks; for boxes: dior, dota, hrsc, isaid"),
        ({"a": "b"}, True, "'a' is no pixel value and no colour"),
        ({1: "b", "0,0,0": "c"}, True, "stand together"),
        ({1: "b", "*": "*"}, True, "no name of its own"),
        ({1: 7}, False, "the word for 1 must be a text or null"),
        (7, False, "must be a preset"),
    ],
)
def test_bad_class_words(classes, masks, message):
    with pytest.raises(ValueError, match=message):
        class_words(classes, "sources: x: classes", masks)


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
    rows, report = aggregate_sources([source], drop_train_near_duplicates_of_test=False, **options)
    assert [(row["image_id"], row["label"], len(row["captions"])) for row in rows] == [
        ("yard/b.png", "plane", 5),
        ("yard/a.png", "ship", 5),
        ("yard/c.png", "plane", 5),
    ]
    assert report["sources"]["yard"]["boxes"] == 4 and rows[0]["resolution"] == 0.5
    assert report["near_duplicates"]["pairs_of_equal_files"] == 1, "a.png and b.png are the same green picture"
