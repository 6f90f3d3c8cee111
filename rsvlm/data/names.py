"""Words that settings and files use: splits, class words, named fixes, safe file names.

Nothing heavy is imported here: settings are checked before a stage starts.

Where the class words come from, all under ``CLASSES``:

- dior: the 20 names in the released annotations (Li et al. 2020, "Object detection in optical remote sensing images").
- dota: the names in ``labelTxt`` of DOTA 1.0 to 2.0 (Xia et al. 2018; Ding et al. 2021).
- hrsc: every class of HRSC2016 (Liu et al. 2017), told by numbers there, is a ship at the first of its three levels.
- isaid: names in its COCO files; colours of its semantic masks from ``cityscapesscripts/helpers/labels.py`` in the
  authors' iSAID_Devkit (Waqas Zamir et al. 2019).
- loveda: pixel values, from the authors' README (Wang et al. 2021): 0 is no data, 1 the background.
- potsdam, vaihingen: colours of the ISPRS 2D Semantic Labeling Contest (its page on Potsdam); black is the border that
  the ``noBoundary`` labels leave out. Clutter and background are many things, so no word is true of them.

The named fixes: what a reader mends in released files. A source can switch each off; the report counts them.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from rsvlm.safe_text import fault_in
from rsvlm.settings import LONGEST_PART, closest_name, shown

SPLITS = ("train", "val", "test")
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
# Words without a plural: areas of them are counted.
MASS = {
    "water", "grass", "vegetation", "farmland", "woodland", "cropland", "grassland", "land", "soil", "sand",
    "snow", "ice", "forest", "agriculture", "clutter", "shadow", "barren", "surface", "surfaces",
}  # fmt: skip
_ISPRS = {
    "255,255,255": "paved surface", "0,0,255": "building", "0,255,255": "low vegetation", "0,255,0": "tree",
    "255,255,0": "car", "255,0,0": None, "0,0,0": None,
}  # fmt: skip
_DIOR = (
    "airplane", "airport", "baseball field", "basketball court", "bridge", "chimney", "dam", "ground track field",
    "harbor", "overpass", "ship", "stadium", "storage tank", "tennis court", "train station", "vehicle", "windmill",
)  # fmt: skip
_DOTA = (
    "plane", "baseball-diamond", "bridge", "ground-track-field", "small-vehicle", "large-vehicle", "ship",
    "tennis-court", "basketball-court", "storage-tank", "soccer-ball-field", "roundabout", "harbor", "swimming-pool",
    "helicopter", "container-crane", "airport", "helipad",
)  # fmt: skip
_ISAID = {
    "ship": "0,0,63", "storage_tank": "0,63,63", "baseball_diamond": "0,63,0", "tennis_court": "0,63,127",
    "basketball_court": "0,63,191", "Ground_Track_Field": "0,63,255", "Bridge": "0,127,63",
    "Large_Vehicle": "0,127,127", "Small_Vehicle": "0,0,127", "Helicopter": "0,0,191", "Swimming_pool": "0,0,255",
    "Roundabout": "0,191,127", "Soccer_ball_field": "0,127,191", "plane": "0,127,255", "Harbor": "0,100,155",
}  # fmt: skip
# Preset -> a file's class name, pixel value or "red,green,blue" -> the word in captions; None leaves the class out.
CLASSES: dict[str, dict[str, str | None]] = {
    "dior": {word.replace(" ", ""): word for word in _DIOR}
    | {
        "Expressway-Service-area": "expressway service area",
        "Expressway-toll-station": "expressway toll station",
        "golffield": "golf course",
    },
    "dota": {name: name.replace("-", " ") for name in _DOTA},
    "hrsc": {"*": "ship"},
    "isaid": {"0,0,0": None}
    | {key: name.replace("_", " ").lower() for name, colour in _ISAID.items() for key in (name, colour)},
    "loveda": dict(
        zip("01234567", (None, None, "building", "stretch of road", "water", "barren land", "forest", "farmland"))
    ),
    "potsdam": _ISPRS,
    "vaihingen": _ISPRS,
}
_DRIVE = re.compile(r"[A-Za-z]:")
LONGEST_SOURCE_NAME = 60
_SOURCE_NAME = re.compile(rf"[^\W_][\w .-]{{0,{LONGEST_SOURCE_NAME - 1}}}")


def class_words(classes: object, where: str, masks: bool = False) -> dict:
    """The words for a source's classes by the file's names, or for masks by pixel values or (red, green, blue).

    ``*`` stands for all classes that are not named: ``"*": null`` leaves them out, ``"*": "*"`` takes their own names.

    Args:
        classes: a preset's name, a list (words by number), a mapping, or None (boxes: every class's own name).
        where: for error messages.

    Raises:
        ValueError: an unknown preset (with the closest), one that is not for this format, a key or word that cannot be.
    """
    if isinstance(classes, str):
        if classes not in CLASSES:
            raise ValueError(f"{where}: unknown preset {classes!r}{closest_name(classes, CLASSES)}")
        preset, classes = classes, {key: word for key, word in CLASSES[classes].items() if _is_pixel(key) == masks}
        if not classes:
            fitting = [name for name, words in CLASSES.items() if any(_is_pixel(key) == masks for key in words)]
            raise ValueError(
                f"{where}: the preset {preset!r} is for {'boxes' if masks else 'masks'}; "
                f"for {'masks' if masks else 'boxes'}: {', '.join(fitting)}"
            )
    if classes is None:
        return {"*": "*"}
    if isinstance(classes, list):
        by_number = {str(number): word for number, word in enumerate(classes)}
        classes = by_number if masks else by_number | {word: word for word in classes if isinstance(word, str)}
    if not isinstance(classes, Mapping):
        raise ValueError(f"{where} must be a preset ({', '.join(CLASSES)}), a list or a mapping, is {classes!r}")
    for key, word in classes.items():
        if word is not None and (not isinstance(word, str) or not word.strip()):
            raise ValueError(f"{where}: the word for {key!r} must be a text or null, is {word!r}")
    if not masks:
        return {str(key): word for key, word in classes.items()}
    found: dict = {}
    for key, word in classes.items():
        if key != "*" and not _is_pixel(key):
            raise ValueError(f"{where}: {key!r} is no pixel value and no colour 'red,green,blue'")
        numbers = tuple(map(int, str(key).split(","))) if key != "*" else ()
        found["*" if not numbers else numbers if len(numbers) == 3 else numbers[0]] = word
    if found.get("*") == "*":
        raise ValueError(f"{where}: a pixel value has no name of its own; write '*': null to leave other values out")
    if len({isinstance(key, tuple) for key in found if key != "*"}) != 1:
        raise ValueError(f"{where}: pixel values and colours stand together; a mask has one or the other")
    return found


def _is_pixel(key: object) -> bool:
    """Whether a key is a pixel value or a colour, ``7`` or ``255,0,0``."""
    parts = str(key).split(",")
    return len(parts) in (1, 3) and all(part.strip().isdecimal() for part in parts)


def is_area(word: str) -> bool:
    """Whether a class is a kind of ground, which has areas, and no kind of object, which has a number."""
    return word.split()[-1] in MASS or word.startswith(("area of ", "stretch of "))


def check_split(split: object, where: str) -> str:
    """The split's name. ValueError names the place and the closest right name."""
    if split in SPLITS:
        return split
    raise ValueError(f"{where}: unknown split {split!r}{closest_name(str(split).lower(), SPLITS)}")


def check_name(name: object, where: str) -> str:
    """A file name that stays inside its folder.

    Raises:
        ValueError: no text, blank, absolute, too long, one that climbs out with ``..``, or with control characters.
    """
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{where}: the file name must be a non-empty text, is {name!r}")
    # Plain tests of the text: a CSV of RemoteCLIP's size asks this 828,725 times.
    if name[0] == "/" or "\\" in name or "\0" in name or _DRIVE.match(name) or ".." in name.split("/"):
        raise ValueError(
            f"{where}: the file name {name!r} leads out of the images' folder; only names inside it are read"
        )
    if (
        len(name) > LONGEST_PART // 4
        and max(len(part.encode("utf-8", "replace")) for part in name.split("/")) > LONGEST_PART
    ):
        raise ValueError(
            f"{where}: the file name {shown(name)} is longer than a disk takes, {LONGEST_PART} bytes a part"
        )
    fault = fault_in(name)
    if fault:
        raise ValueError(f"{where}: the file name {name!r} holds {fault}; rename the file, and mend its name here")
    return name


def check_source_name(name: str) -> str:
    """The name of a source: it becomes a part of file names, tables, headings and image ids.

    Raises:
        ValueError: it begins with no letter or digit, holds more than these, spaces and ``-_.``, or is too long.
    """
    if not _SOURCE_NAME.fullmatch(name) or name != name.strip() or not unicodedata.is_normalized("NFC", name):
        raise ValueError(
            f"'name' must be letters, digits, spaces, '-', '_' and '.', a letter or digit first, at most "
            f"{LONGEST_SOURCE_NAME} in all, is {name!r}; files, tables and headings are called by it"
        )
    return name


@dataclass(frozen=True)
class Fix:
    """What a fix does, and which of a listing's counts say how often its defect was met."""

    does: str
    counted_as: tuple[str, ...]


FIXES = {
    "rsicd_swapped_splits": Fix(
        "RSICD's official test set, known by its file names, gets its name back where a file calls it val",
        ("splits_found_swapped",),
    ),
    "text_from_raw": Fix(
        "captions are the `raw` text; off: the `tokens`, where they are other words",
        ("captions_with_other_tokens",),
    ),
    "blank_captions": Fix(
        "captions without a letter or digit are left out", ("captions_blank_dropped", "captions_blank_kept")
    ),
    "extra_spaces": Fix("runs of spaces become one", ("captions_with_extra_spaces",)),
    "other_extension": Fix(
        "a listed file is found under another extension (1.jpg for 1.tif)", ("images_with_another_extension",)
    ),
    "other_folder": Fix(
        "a listed file is found by its name in another folder, where the listed folder does not exist and one file "
        "alone has that name",
        ("images_in_another_folder",),
    ),
    "other_unicode_form": Fix(
        "a listed file is found under another Unicode form of its name (an accented letter is one character or two)",
        ("images_in_another_unicode_form",),
    ),
    "boxes_clipped": Fix(
        "boxes that reach over the image's edge are cut there; off: they stop the reader", ("boxes_over_the_edge",)
    ),
    "boxes_without_area": Fix(
        "boxes without width or height are left out; off: they stop the reader", ("boxes_without_area",)
    ),
}
ALL = frozenset(FIXES)


def check_fixes(names: list[str] | None) -> frozenset[str]:
    """The fixes that may be applied: all for None.

    Raises:
        ValueError: an unknown name; names the closest.
    """
    if names is None:
        return ALL
    for name in names:
        if name not in FIXES:
            raise ValueError(f"fixes: unknown fix {name!r}{closest_name(name, FIXES)}")
    return frozenset(names)


def fixes_report(counts: Counter, allowed: frozenset[str]) -> dict[str, dict]:
    """Fix -> whether it was on and how often its defect was met, for every fix that was on or whose defect was met."""
    met = {name: sum(counts[key] for key in fix.counted_as) for name, fix in FIXES.items()}
    return {name: {"on": name in allowed, "met": met[name]} for name in FIXES if met[name]}
