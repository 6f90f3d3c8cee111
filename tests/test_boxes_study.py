"""The shipped study of boxes and masks: its table is made, and says of its pictures what they show, in five formats."""

import json
import re
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from study_case import ROOT, copy_with_study, dvc

from rsvlm.data.names import NUMBERS, SPLITS
from rsvlm.data.table import load_table
from rsvlm.files import read_json
from rsvlm.study.studies import study_params
from rsvlm.viewing.data_figures import findings_table

pytest.importorskip("cv2", reason="the extra boxes is not installed (make test installs it)")
pytest.importorskip("inflect", reason="the extra boxes is not installed (make test installs it)")
sys.path.insert(0, str(ROOT / "scripts"))

import make_boxes

FOLDER = ROOT / "data" / "raw" / "boxes"
SOURCES = [source["name"] for source in study_params("boxes")["aggregate_data"]["sources"]]
WITH_BOXES = [name for name in SOURCES if name != "boxes_masks"]


@pytest.fixture(scope="module")
def boxes_study(tmp_path_factory):
    """A copy of the project in which DVC made the study's table; its other stages read no box, and run in the smoke study."""
    with copy_with_study(tmp_path_factory.mktemp("boxes") / "a study", "boxes") as root:
        dvc(root, "repro", "aggregate_data")
        yield root


@pytest.fixture(scope="module")
def captions(boxes_study) -> dict[str, dict[str, list[str]]]:
    """Source -> place -> captions, from the study's table."""
    found = defaultdict(dict)
    for row in load_table(boxes_study / "data" / "aggregated" / "images.parquet").itertuples():
        found[row.source][Path(row.path).stem] = row.captions
    return found


# The shipped files


def test_the_files_are_small_and_none_is_ignored_by_git():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 400_000
    rules = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert rules.index("!/data/raw/boxes/") > rules.index("/data/raw/*")


def test_the_script_writes_the_same_files_again(tmp_path):
    make_boxes.main(tmp_path)
    again = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert again | {Path("README.md")} == {path.relative_to(FOLDER) for path in FOLDER.rglob("*") if path.is_file()}
    for name in sorted(again):
        if name.suffix in (".png", ".jpg"):  # the bytes depend on the machine's libraries, the picture hardly
            new, shipped = (np.asarray(Image.open(folder / name)).astype(int) for folder in (tmp_path, FOLDER))
            assert new.shape[:2] == (make_boxes.SIDE,) * 2 and abs(new - shipped).max() <= 8 * (name.suffix == ".jpg")
        else:
            assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes(), name


# The study


def test_every_source_has_captions_in_every_split_and_nothing_is_left_out(boxes_study, captions):
    report = read_json(boxes_study / "data" / "aggregated" / "report.json")
    assert set(report["sources"]) == set(captions) == set(SOURCES)
    for facts in report["sources"].values():
        assert facts["images"] == {split: len(places) for split, places in make_boxes.PLACES.items()}
        assert facts["captions"] == {split: 5 * facts["images"][split] for split in SPLITS}
    table = findings_table(report)
    assert list(table.index) == ["boxes that reach over the image's edge (cut there, or refused)"]
    assert table.loc[table.index[0], SOURCES].to_dict() == dict.fromkeys(SOURCES, 0) | {"boxes_dota": 4}, (
        "turned rectangles around parts at the edge"
    )
    assert report["near_duplicates"]["dropped_from_train"] == 0, "a place is in one split, in every format"


# The picture, whose centre is the middle half of its width and height: Tenerife and Gran Canaria in the centre; La Palma,
# Fuerteventura and Lanzarote around it; Africa's desert in a corner. Only Gran Canaria's grassland is wide enough to count.
CANARY_ISLANDS = {
    "boxes_masks": [
        "There is one area of sea and one area of grassland in the center of the image.",
        "There is one area of barren land away from the center of the image.",
        "An aerial view of one area of sea, one area of barren land and one area of grassland. The area of sea looks "
        "large in the image.",
        "This picture shows one area of barren land, one area of sea and one area of grassland. The area of grassland "
        "is surrounded by an area of sea.",
        "The image contains one area of barren land, one area of sea and one area of grassland.",
    ],
    "boxes_voc": [
        "There are two islands and one area of grassland in the center of the image.",
        "There are three islands and one area of barren land away from the center of the image.",
        "This picture shows one area of barren land, one area of grassland and five islands.",
        "There is one area of barren land, one area of grassland and five islands in this image.",
        "One can see one area of barren land, one area of grassland and five islands from above.",
    ],
    "boxes_dota": [
        "There is one area of grassland and two islands in the center of the image.",
        "There are three islands and one area of barren land away from the center of the image.",
        "An aerial view of one area of barren land, one area of grassland and five islands.",
        "This picture shows one area of grassland, one area of barren land and five islands.",
        "The image contains one area of grassland, one area of barren land and five islands.",
    ],
}
CANARY_ISLANDS["boxes_yolo"] = CANARY_ISLANDS["boxes_voc"]
CANARY_ISLANDS["boxes_coco"] = [
    text + " The area of grassland looks small in the image." * (number == 2)  # its run lengths tell its size
    for number, text in enumerate(CANARY_ISLANDS["boxes_voc"])
]


def test_captions_say_what_the_picture_shows(captions):
    assert {source: captions[source]["canary_islands"] for source in SOURCES} == CANARY_ISLANDS


CLASSES = "|".join(["island", "lake", "sea", "forest", "woodland", "grassland", "cropland", "built-up land", "ice"])
NUMBER = "|".join([*NUMBERS, "at least one", "some"])
TOLD = re.compile(rf"\b({NUMBER}) (?:areas? of )?({CLASSES}|barren land)s?\b", re.I)


def facts_of(captions: list[str]) -> dict[tuple[str, str], str]:
    """(where, class) -> number in words, of what captions count in the centre, around it and in the whole image."""
    found = {}
    for caption in captions:
        sentence = caption.split(". ")[0]
        around = re.search("away from the center|round the center|Towards the edges", sentence)
        where = "around" if around else "centre" if re.search("the center|the middle", sentence, re.I) else "all"
        assert TOLD.search(sentence), sentence
        for number, name in TOLD.findall(sentence):
            assert found.setdefault((where, name), number.lower()) == number.lower(), captions
    return found


def test_the_formats_agree_on_each_place(captions):
    numbers = 0
    for place in sorted(captions["boxes_voc"]):
        told = {source: facts_of(captions[source][place]) for source in SOURCES}
        for source in WITH_BOXES:
            assert told[source] == told["boxes_voc"], f"{place}, {source}"
        for (where, name), number in told["boxes_voc"].items():
            if name != "island":  # no class of the mask
                said = told["boxes_masks"][where, name]
                # Parts of a class of objects may touch in a mask: it says how many there are at least.
                assert said == (number if name != "lake" else "at least one" if number == "one" else "some"), place
                numbers += 1
    assert numbers > 50


def test_dvc_notices_an_edited_box(boxes_study):
    assert json.loads(dvc(boxes_study, "status", "--json", "aggregate_data")) == {}
    path = boxes_study / "data" / "raw" / "boxes" / "yolo" / "labels" / "cyprus.txt"
    path.write_text(path.read_text(encoding="utf-8").splitlines()[0] + "\n", encoding="utf-8")
    assert "aggregate_data" in json.loads(dvc(boxes_study, "status", "--json", "aggregate_data"))
