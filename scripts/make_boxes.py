"""Writes data/raw/boxes: the same twelve places of NASA's Blue Marble in five published layouts of boxes and masks.

``python scripts/make_boxes.py [FOLDER]``; the same bytes at every run with the packages of the locks. The masks are
MODIS land cover; the boxes are drawn around its connected parts with the project's own mask-to-box code.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as run_lengths
from scipy import ndimage

from rsvlm.data.blue_marble import LABELS_PER_DEGREE, load_maps
from rsvlm.data.box_captions import _place
from rsvlm.data.boxes import Box, boxes_of_part
from rsvlm.data.sources import IMAGERY_PER_DEGREE, CaptionSettings

FOLDER = Path(__file__).resolve().parents[1] / "data" / "raw" / "boxes"
SIDE = 72  # pixels; 4.8 degrees
PLACES = {  # latitude and longitude of the middle
    "train": {
        "lake_victoria": (-1.2, 33.0), "lake_issyk_kul": (42.4, 77.3), "canary_islands": (28.3, -15.8),
        "borneo": (0.5, 115.0), "taklamakan": (39.0, 82.0), "iceland": (64.5, -18.0),
    },
    "val": {"lake_qinghai": (36.9, 100.2), "cyprus": (35.0, 33.2), "falkland_islands": (-51.7, -59.5)},
    "test": {"lake_ladoga": (60.8, 32.5), "hawaii": (20.0, -156.2), "tasmania": (-41.5, 146.5)},
}  # fmt: skip
SEA, INLAND = 0, 14  # values of a mask beside those of rsvlm.data.land_captions.GROUPS, whose water is either
# What has boxes: the values of a mask that are one thing from above. Islands are found in the mask's sea.
CLASSES = {
    "lake": (INLAND,), "forest": (1, 2, 3, 4), "grassland": (7, 8), "cropland": (10,), "ice": (12,), "barren land": (13,)
}  # fmt: skip
NAMES = ["island", *CLASSES]  # YOLO's and COCO's numbers
LEAST = 6  # pixels: a thousandth of the picture, as the reader of masks has it for areas

PICTURES = {"png": ("masks/images_png", "dota/images"), "jpg": ("coco/images", "voc/JPEGImages", "yolo/images")}
ANNOTATIONS = ("masks/masks_png", "dota/labelTxt", "coco/annotations", "voc/Annotations", "yolo/labels")
LISTS = ("masks", "dota", "voc/ImageSets/Main", "yolo")  # where the lists of a split's places lie
XML = """<annotation>
  <filename>{name}.jpg</filename>
  <size><width>{side}</width><height>{side}</height><depth>3</depth></size>
{objects}</annotation>
"""
OBJECT = """  <object><name>{0.label}</name>
    <bndbox><xmin>{0.left}</xmin><ymin>{0.top}</ymin><xmax>{0.right}</xmax><ymax>{0.bottom}</ymax></bndbox></object>
"""
Part = tuple[Box, np.ndarray]  # the box and the mask of a part


def cut(maps, latitude: float, longitude: float) -> tuple[Image.Image, np.ndarray]:
    """The picture of a place and its land cover, (SIDE, SIDE), from the nearest of the finer map's pixels."""
    left = round((longitude + 180) * IMAGERY_PER_DEGREE) - SIDE // 2
    top = round((90 - latitude) * IMAGERY_PER_DEGREE) - SIDE // 2
    finer = LABELS_PER_DEGREE / IMAGERY_PER_DEGREE
    rows, columns = (((start + np.arange(SIDE) + 0.5) * finer).astype(int) for start in (top, left))
    values, here = maps.groups[np.ix_(rows, columns)], maps.sea[np.ix_(rows, columns)]
    values = np.where((values == SEA) & ~here, np.uint8(INLAND), values)
    return maps.imagery.crop((left, top, left + SIDE, top + SIDE)), values


def parts_of(values: np.ndarray) -> list[Part]:
    """The parts with a box: islands, and the parts of each class whose boxes lie where their pixels do.

    A class with a part that straggles has no boxes: captions would tell it in the centre, where another class is.
    """
    land, _ = ndimage.label(values != SEA, structure=np.ones((3, 3)))
    at_edge = np.concatenate([land[0], land[-1], land[:, 0], land[:, -1]])
    planes = {name: np.isin(values, numbers) for name, numbers in CLASSES.items()}
    found: list[Part] = []
    for name, plane in {"island": ~np.isin(land, [0, *at_edge]), **planes}.items():
        numbered, count = ndimage.label(boxes_of_part(plane, name, LEAST)[1], structure=np.ones((3, 3)))
        masks = [numbered == number for number in range(1, count + 1)]
        parts = [(boxes_of_part(mask, name, LEAST)[0][0], mask) for mask in masks]
        if all(box.place == _place(replace(box, place=None), SIDE, SIDE, CaptionSettings().centre) for box, _ in parts):
            found += parts
    return found


def dota_line(box: Box, mask: np.ndarray) -> str:
    """The corners of the smallest rectangle, however turned, around a part; class, difficulty."""
    corners = np.concatenate([np.argwhere(mask)[:, ::-1] + shift for shift in ((0, 0), (0, 1), (1, 0), (1, 1))])
    turned = cv2.boxPoints(cv2.minAreaRect(corners.astype(np.float32))).ravel()
    return " ".join([*(f"{value:z.1f}" for value in turned), box.label.replace(" ", "-"), "0\n"])


def yolo_line(box: Box) -> str:
    """Number of the class, middle and sides as shares."""
    values = ((box.left + box.right) / 2, (box.top + box.bottom) / 2, box.right - box.left, box.bottom - box.top)
    return " ".join([str(NAMES.index(box.label)), *(f"{value / SIDE:.6f}" for value in values)]) + "\n"


def coco_entry(box: Box, mask: np.ndarray, image: int) -> dict:
    """A box with its run-length mask."""
    counts = run_lengths.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode("ascii")
    return {
        "image_id": image, "category_id": NAMES.index(box.label), "iscrowd": 0, "area": box.pixels,
        "bbox": [box.left, box.top, box.right - box.left, box.bottom - box.top],
        "segmentation": {"size": [SIDE, SIDE], "counts": counts},
    }  # fmt: skip


def main(folder: Path) -> None:
    for place in (*PICTURES["png"], *PICTURES["jpg"], *ANNOTATIONS, *LISTS):
        (folder / place).mkdir(parents=True, exist_ok=True)
    maps = load_maps()
    for split, places in PLACES.items():
        images, annotations = [], []
        for name, (latitude, longitude) in places.items():
            picture, values = cut(maps, latitude, longitude)
            parts = parts_of(values)
            for ending, folders in PICTURES.items():
                for place in folders:
                    picture.save(folder / place / f"{name}.{ending}", optimize=True, quality=90)
            Image.fromarray(values).save(folder / f"masks/masks_png/{name}.png", optimize=True)
            objects = "".join(OBJECT.format(box) for box, _ in parts)
            lines = ["imagesource:Blue Marble\n", "gsd:null\n", *(dota_line(*part) for part in parts)]
            (folder / f"voc/Annotations/{name}.xml").write_text(XML.format(name=name, side=SIDE, objects=objects))
            (folder / f"dota/labelTxt/{name}.txt").write_text("".join(lines))
            (folder / f"yolo/labels/{name}.txt").write_text("".join(yolo_line(box) for box, _ in parts))
            images.append({"id": len(images), "file_name": f"{name}.jpg", "width": SIDE, "height": SIDE})
            annotations += [coco_entry(*part, images[-1]["id"]) for part in parts]
        categories = [{"id": number, "name": name} for number, name in enumerate(NAMES)]
        annotations = [{"id": number} | entry for number, entry in enumerate(annotations)]
        coco = {"images": images, "categories": categories, "annotations": annotations}
        (folder / f"coco/annotations/instances_{split}.json").write_text(json.dumps(coco) + "\n")
        for lists in LISTS:
            (folder / lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in places))
    (folder / "yolo/labels/classes.txt").write_text("".join(f"{name}\n" for name in NAMES))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
