"""A source of a study as its parameters name it, checked as far as that goes without opening a file of data.

Only settings and paths are looked at and nothing heavy is imported, so that a mistake shows before a stage starts.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from rsvlm.data.land_languages import LANGUAGES as LAND_LANGUAGES
from rsvlm.data.names import NUMBERS, SPLITS, check_fixes, check_source_name, check_split, class_words
from rsvlm.data.packed import FILES, find_files
from rsvlm.data.recipes import recipe_of
from rsvlm.languages import check_language
from rsvlm.settings import SEED, Settings, Within, closest_name, setting

# Format -> the keys it knows besides those of every source (COMMON).
TABLE = {
    "caption_table": ("annotations", "split_column", "image_column", "caption_columns", "label_column"),
}
OLDER = {"caption_csv": "caption_table"}  # format as it was called -> its name now
TABLE |= {older: TABLE[name] for older, name in OLDER.items()}
ONE_FILE = {"karpathy": ("annotations", "labels"), "nwpu": ("annotations",), "sydney_text": ("annotations", "splits")}
FILE_A_SPLIT = {
    "retrieval_json": ("annotations",),
    "precomputed": ("annotations",),
    "coco_captions": ("annotations",),
    "coco_boxes": ("annotations", "classes", "captions"),
}
FOLDER = dict.fromkeys(
    ("voc_boxes", "dota_boxes", "yolo_boxes"), ("annotations", "splits", "split", "classes", "captions")
) | {"masks": ("annotations", "splits", "split", "classes", "captions", "suffix", "min_pixels", "min_share")}
COLUMNS = ("split_column", "caption_columns", "label_column")
PACKED = {"webdataset": ("annotations", *COLUMNS), "hf_dataset": ("annotations", "image_column", *COLUMNS)}
COMMON = (
    "name", "format", "fixes", "resolution", "use", "allow_missing_images", "val_share", "take", "reading",
    "translations", "translated_by",
)  # fmt: skip
KEYS = {
    "blue_marble": ("name", "format", "tiles", "tile_pixels", "resolution", "languages"),
    **{format: (*COMMON, "images", *keys) for format, keys in (TABLE | ONE_FILE | FILE_A_SPLIT | FOLDER).items()},
    **{format: (*COMMON, *keys) for format, keys in PACKED.items()},
}
FORMATS = tuple(KEYS)
# What makes captions in formats that may have none, for the error where it is not found.
SOUGHT = {
    "voc_boxes": "<object> with <bndbox> or <robndbox> (Pascal VOC, DIOR), or <HRSC_Objects><HRSC_Object> (HRSC2016)",
    "dota_boxes": "lines 'x1 y1 x2 y2 x3 y3 x4 y4 class difficulty'",
    "yolo_boxes": "lines 'class x y width height'",
    "coco_boxes": "'annotations' with 'bbox' or 'segmentation'",
    "webdataset": "a .txt beside each image, or the fields of its .json that 'caption_columns' names",
    "masks": "pixels of the values in 'classes', in parts of at least 'min_pixels' or 'min_share'",
}
Translator = Literal["machine", "people"]
IMAGERY_PER_DEGREE = 15  # pixels of Blue Marble a degree


class Tiles(Settings):
    """How Blue Marble is cut."""

    tiles: int = setting(1600, "tiles to keep at most, over all splits", Within(3, 1_000_000, "one a split at least"))
    tile_pixels: Literal[24, 36, 48, 60, 72, 84, 96, 108, 120] = setting(
        48, "side of a tile in pixels of the imagery; a pixel is 7.4 km at the equator"
    )


class TileSettings(Tiles):
    """How Blue Marble is cut and its tiles are drawn."""

    seed: int = setting(0, "of the tiles and their split", SEED)

    @property
    def degrees(self) -> float:
        """Side of a tile in degrees."""
        return self.tile_pixels / IMAGERY_PER_DEGREE


class CaptionSettings(Settings):
    """How boxes become captions: what RemoteCLIP's paper leaves open, and what goes beyond it."""

    centre: float = setting(
        0.5,  # the middle half, as a re-implementation chose
        "share of width and height that is the centre",
        Within(0, 1, "without a centre nothing is in it, and all of an image has none", above=True, below=True),
    )
    general_above: int = setting(
        10,  # from the paper
        "counts above it may be told in general terms",
        Within(1, len(NUMBERS) - 1, "larger numbers have no word here"),
    )
    general_terms: list[str] = setting(["many", "a lot of"], "the paper's examples", words=True)
    counted: int = setting(
        3,  # not in the paper
        "classes that a counting caption names at least, where there are so many",
        Within(1, 100, "no image has boxes of more classes"),
    )
    relations: bool = setting(True, "tell which classes lie next to each other or, of masks, surround each other")
    details: bool = setting(True, "tell sizes, and objects that lie in parallel")

    @model_validator(mode="after")
    def _check_terms(self) -> Self:
        if not self.general_terms or not all(self.general_terms):
            raise ValueError(f"'general_terms' must be a list of texts, is {self.general_terms!r}")
        return self


class Source(Tiles):
    """One source of a study, as a dict of the parameter ``sources`` gives it.

    Paths lie below ``data_root``, the folder that DVC watches. Blue Marble needs none.
    """

    name: str
    format: str
    # a file, a file a split, or a folder of files; webdataset, hf_dataset: or a pattern, or a folder or pattern a split
    annotations: str | dict[str, str] | None = None
    images: str | None = None  # the folder of images; webdataset and hf_dataset find theirs in the annotations
    splits: dict[str, str] | None = None  # split -> list of file names, for formats that do not tell the split
    split: str = "train"  # of all images, where there are no lists
    # Tables: the column that tells the split; None finds one of the usual names. webdataset: a field of the .json, as
    # caption_columns and label_column are; None: no field
    split_column: str | None = None
    image_column: str | None = None  # tables: likewise, the image's file name; hf_dataset: the image itself
    caption_columns: list[str] | None = None  # likewise, one or several; webdataset: None takes the lines of the .txt
    label_column: str | None = None  # likewise, the class
    val_share: float | None = setting(
        None,
        "of the training images, drawn for validation where the files have none",
        Within(0, 1, "something is drawn, and something is left to train with", above=True, below=True),
    )
    # split of the files -> split here, the rest is left out: {val: test} makes a test set of the validation images
    take: dict[str, str] | None = None
    labels: str = "none"  # karpathy: where class names come from, see read_karpathy
    fixes: list[str] | None = None  # fixes that may be applied, see rsvlm.data.names; None = all, [] = none
    # boxes and masks: a preset's name, or name, number or colour "r,g,b" -> word; null leaves it out; see class_words
    classes: str | dict | list | None = None
    captions: dict | None = setting(None, "boxes and masks: see CaptionSettings", words=True)
    suffix: str = ""  # masks: behind the image's name in the mask's
    min_pixels: int = setting(
        64, "masks: smallest part of an object that counts, pixels", Within(0, 2**31, "no image has more pixels")
    )
    min_share: float = setting(
        0.001,
        "masks: smallest area of a kind of ground that counts, share of the image",
        Within(0, 1, "nothing is larger than the image", below=True),
    )
    resolution: float | None = setting(
        None,
        "metres a pixel; null where it differs or is unknown",
        Within(0, 1e6, "the Earth is 40,000 km around", above=True),
    )
    # {bands: [4, 3, 2], stretch: [0, 3000]}: how all its images become pictures, where their files do not tell; bands by
    # number, description or preset, see rsvlm.data.recipes. None = as the files say
    reading: dict | None = None
    # all: its images enter the study's table. adapt: its training images help to adapt the encoder, and enter nothing
    # else. audit: compared with the other sources, enters nothing.
    use: Literal["all", "adapt", "audit"] = "all"
    allow_missing_images: bool | None = None  # as the study's parameter, for this source; None = as the study says
    # language (ISO 639-1) -> file of lines English<TAB>translation, see rsvlm.data.translations; or, of tables,
    # caption_table, hf_dataset and webdataset, a list of columns or fields: one beside each of the captions', in their order
    translations: dict[str, str | list[str]] | None = None
    translated_by: Translator = "machine"  # who made them; every table says so
    languages: list[str] = []  # blue_marble: languages that captions are written in beside English, by the same rules

    @model_validator(mode="after")
    def _check_what_belongs_together(self) -> Self:
        check_source_name(self.name)
        if self.format not in FORMATS:
            raise ValueError(f"unknown format {self.format!r}{closest_name(self.format, FORMATS, OLDER)}")
        if self.format != "blue_marble":
            self._check_needed()
        check_fixes(self.fixes)
        for key, given in (
            ("split", [self.split]),
            ("annotations", self.annotations),
            ("splits", self.splits),
            ("take", self.take),
            ("take", [*(self.take or {}).values()]),
        ):
            for split in given if isinstance(given, dict | list) else ():
                check_split(split, key)
        for language in self.translations or {}:
            if check_language(language, "translations") == "en":
                raise ValueError("translations: of the English captions, so into other languages than 'en'")
            self._check_columns(language)
        for language in self.languages:
            if language not in LAND_LANGUAGES:
                raise ValueError(
                    f"languages: captions are written in {', '.join(LAND_LANGUAGES)}, not in {language!r}"
                    f"{closest_name(language, LAND_LANGUAGES)}"
                )
            if self.languages.count(language) > 1:
                raise ValueError(f"languages: {language!r} stands twice")
        if self.caption_columns == []:
            raise ValueError("'caption_columns' must be a list of names, is []")
        if self.split_column is not None and isinstance(self.annotations, dict):
            raise ValueError("split_column needs one file under 'annotations'; a file a split tells the split itself")
        if self.val_share is not None and self.use != "all":
            raise ValueError(f"val_share is for sources whose `use` is all; this one's is {self.use!r}")
        class_words(self.classes, "classes", self.format == "masks")
        settings_of(self.captions)
        if self.reading is not None:
            recipe_of(self.reading)
        return self

    def _check_columns(self, language: str) -> None:
        """Whether the columns of a language's translations, where it has such, can be those of the captions."""
        columns, captions = self.translations[language], self.caption_columns
        if isinstance(columns, str):
            return
        where = f"translations: {language}"
        if self.format not in TABLE and self.format not in PACKED:
            raise ValueError(
                f"{where}: a list names columns of a table ({', '.join((*TABLE, *PACKED))}); format {self.format} takes a file"
            )
        if not columns or not all(columns):
            raise ValueError(f"{where}: must be a file or a list of columns' names, is {columns!r}")
        if captions and len(captions) != len(columns):
            raise ValueError(f"{where}: {len(columns)} columns for the {len(captions)} of 'caption_columns': one each")

    def _check_needed(self) -> None:
        """Whether the keys are there that the format cannot do without."""
        one, several = isinstance(self.annotations, str), isinstance(self.annotations, dict) and self.annotations
        fits, what = one, "a path"
        if self.format in TABLE or self.format in PACKED:
            fits, what = one or several, "a path, or a path for each split"
        elif self.format in FILE_A_SPLIT:
            fits, what = several, "a path for each split"
        for key, there, how in (
            ("annotations", fits, f" with {what}"),
            ("images", self.images or self.use == "audit" or self.format in PACKED, " with a path"),
            ("splits", self.format != "sydney_text" or self.splits, " with a list of file names for each split"),
            ("classes", self.format not in ("masks", "yolo_boxes") or self.classes, ""),
        ):
            if not there:
                raise ValueError(f"format {self.format} needs the key {key!r}{how}")

    @property
    def paths(self) -> list[tuple[str, str]]:
        """(key, path) of every file and folder that the source names; prefixes of precomputed texts become files."""
        found = []
        for key in ("annotations", "splits", "translations"):
            value = getattr(self, key) or {}
            prefixes = self.format == "precomputed" and key == "annotations"
            given = value.values() if isinstance(value, Mapping) else [value]
            for path in (one for one in given if not isinstance(one, list)):  # a list: columns of the annotations
                found += [(key, f"{path}{end}") for end in (("_caps.txt", "_filename.txt") if prefixes else ("",))]
        return found + ([("images", self.images)] if self.images else [])


def settings_of(values: dict | None) -> CaptionSettings:
    """CaptionSettings from a mapping of some of its fields; the usual ones for None.

    Raises:
        ValueError: an unknown field, or a value that cannot be.
    """
    try:
        return CaptionSettings.of_mapping(values or {})
    except ValueError as error:
        raise ValueError(f"captions: {error}") from error


def parse_source(settings: object) -> Source:
    """A checked Source from a dict of the parameter ``sources``.

    Raises:
        ValueError: a key that the format does not have (with the closest one), a missing key, an unknown format.
    """
    if not isinstance(settings, dict):
        raise ValueError(f"sources: each source must be a mapping with at least name and format, is {settings!r}")
    known, name = KEYS.get(str(settings.get("format")), Source.model_fields), str(settings.get("name"))
    where = f"sources: {name if name.isprintable() else ascii(name)}"
    for key in settings:
        if key not in known:
            raise ValueError(f"{where}: unknown key {key!r}{closest_name(key, known)}")
    for key in ("name", "format"):
        if key not in settings:
            raise ValueError(f"sources: a source lacks the key {key!r}: {settings}")
    try:
        return Source.of_mapping(settings)
    except ValueError as error:
        raise ValueError("\n".join(f"{where}: {line.strip()}" for line in str(error).splitlines())) from error


def parse_sources(sources: list) -> list[Source]:
    """Checked sources of a study.

    Raises:
        ValueError: what is wrong with each of them; two of one name; none whose images enter the study.
    """
    parsed, problems = [], []
    for settings in sources:
        try:
            parsed.append(parse_source(settings))
        except ValueError as error:
            problems.append(str(error))
    names = [source.name for source in parsed]
    repeated = sorted({name for name in names if names.count(name) > 1})
    problems += [f"sources: the name {name!r} is given twice; names tell the sources apart" for name in repeated]
    if not problems and not any(source.use == "all" for source in parsed):
        problems.append("sources: needs at least one source whose `use` is all (the default)")
    if problems:
        raise ValueError("\n  ".join(problems))
    return parsed


def missing_split(split: str, found: str = "no source gives one") -> str:
    """The error message of a split without images, with the way out where there is one."""
    way_out = "; `val_share: 0.1` in a source draws one from its training images" if split == "val" else ""
    return f"the split {split} has no image that can be used ({found}); a study needs {', '.join(SPLITS)}{way_out}"


def place_of(path: str, data_root: str, root: Path | None = None) -> Path:
    """The file or folder that a source's path means.

    Args:
        root: folder that a relative ``data_root`` starts from; None = the working directory.

    Raises:
        ValueError: it leads out of ``data_root``; says why and what to do.
    """
    top = (root or Path.cwd()) / data_root
    place = Path(os.path.normpath(top / path))
    if not place.is_relative_to(os.path.normpath(top)):
        raise ValueError(
            f"{path!r} leads out of data_root ({data_root}). DVC watches that folder alone: after an edit "
            "outside it the stage would not run again. Set data_root to a folder that holds all sources (its path may "
            "be absolute), or copy or hard-link the file below it"
        )
    return top / path


def check_sources(values: Mapping, root: Path) -> None:
    """Check the section ``aggregate_data`` as far as that goes without opening a file of data.

    Args:
        values: the section, names and types checked.
        root: the project's.

    Raises:
        ValueError: lists every wrong setting, or every file or folder that is missing or that DVC would not watch.
    """
    sources = parse_sources(values["sources"])
    problems = []
    for source in sources:
        allow = values["allow_missing_images"] if source.allow_missing_images is None else source.allow_missing_images
        optional = {"images"} if allow or source.use == "audit" else set()
        for key, path in source.paths:
            problem = _problem_of(source, key, path, values["data_root"], root, key in optional)
            problems += [f"sources: {source.name}: {key}: {problem}"] if problem else []
    problems += _missing_splits([source for source in sources if source.use == "all"])
    if values["max_images_per_split"] is not None and values["max_images_per_split"] < 1:
        problems.append(f"max_images_per_split must be at least 1 or null, is {values['max_images_per_split']}")
    if problems:
        raise ValueError("\n  ".join(problems))


def _problem_of(source: Source, key: str, path: str, data_root: str, root: Path, optional: bool) -> str | None:
    """What is wrong with one path of a source, or None."""
    try:
        place = place_of(path, data_root, root)
    except ValueError as error:
        return str(error)
    link = _folder_link(place, root / data_root)
    if link:
        return (
            f"{link} is a link to a folder, and DVC does not look behind it: after a change there the stage would not "
            "run again. Copy the folder, or hard-link its files (`cp -al`, which takes no room), or set data_root to a "
            "folder that holds it; data_root itself and single files may be links"
        )
    if key == "annotations" and source.format in FILES:
        found = find_files(place, source.format)[1]
        return None if found else f"{place}: no file {' or '.join(FILES[source.format])} there"
    if not place.exists():
        return None if optional else f"{place} does not exist; data/raw/README.md says what is expected where"
    folder = key == "images" or (key == "annotations" and source.format in FOLDER)
    return None if place.is_dir() == folder else f"{place} must be a {'folder' if folder else 'file'}"


def _missing_splits(entering: list[Source]) -> list[str]:
    """Splits that no source can give, where every source names a file a split."""
    if not entering or not all(isinstance(source.annotations, Mapping) for source in entering):
        return []
    taken = [source.take or {split: split for split in source.annotations} for source in entering]
    given = {split for own in taken for split in own.values()}
    given |= {"val" for source, own in zip(entering, taken) if source.val_share and "train" in own.values()}
    return [missing_split(split) for split in SPLITS if split not in given]


def _folder_link(place: Path, top: Path) -> Path | None:
    """The first folder below ``top`` on the way to a place that is a link."""
    steps = [place, *place.parents]
    inside = [step for step in steps if step != top and step.is_relative_to(top)]
    return next((step for step in reversed(inside) if step.is_symlink() and step.is_dir()), None)
