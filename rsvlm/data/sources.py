"""A source of a study as its parameters name it, checked as far as that goes without opening a file of data.

Only settings and paths are looked at and nothing heavy is imported, so that a mistake shows before a stage starts.
"""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rsvlm.data.names import NUMBERS, SPLITS, check_fixes, check_split, class_words, closest_name

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
COMMON = ("name", "format", "images", "fixes", "resolution", "use", "allow_missing_images", "val_share")
KEYS = {
    "blue_marble": ("name", "format", "tiles", "tile_pixels", "resolution"),
    **{format: (*COMMON, *keys) for format, keys in (TABLE | ONE_FILE | FILE_A_SPLIT | FOLDER).items()},
}
FORMATS = tuple(KEYS)
# What makes captions in formats without any, for the error where it is not found.
SOUGHT = {
    "voc_boxes": "<object> with <bndbox> or <robndbox> (Pascal VOC, DIOR), or <HRSC_Objects><HRSC_Object> (HRSC2016)",
    "dota_boxes": "lines 'x1 y1 x2 y2 x3 y3 x4 y4 class difficulty'",
    "yolo_boxes": "lines 'class x y width height'",
    "coco_boxes": "'annotations' with 'bbox' or 'segmentation'",
    "masks": "pixels of the values in 'classes', in parts of at least 'min_pixels' or 'min_share'",
}
# all: its images enter the study's table. adapt: its training images help to adapt the encoder, and enter nothing else.
# audit: compared with the other sources, enters nothing.
USES = ("all", "adapt", "audit")
IMAGERY_PER_DEGREE = 15  # pixels of Blue Marble a degree


@dataclass(frozen=True)
class TileSettings:
    """How Blue Marble's tiles are cut. Raises ValueError for a value that cannot be."""

    tiles: int = 1600  # tiles to keep at most, over all splits
    tile_pixels: int = 48  # side of a tile in pixels of the imagery; a pixel is 7.4 km at the equator
    seed: int = 0

    def __post_init__(self) -> None:
        if self.tiles < 3:
            raise ValueError(f"tiles must be at least 3 (one a split), is {self.tiles}")
        if self.tile_pixels % 12 or not 24 <= self.tile_pixels <= 120:
            raise ValueError(f"tile_pixels must be a multiple of 12 from 24 to 120, is {self.tile_pixels}")

    @property
    def degrees(self) -> float:
        """Side of a tile in degrees."""
        return self.tile_pixels / IMAGERY_PER_DEGREE


@dataclass(frozen=True)
class CaptionSettings:
    """How boxes become captions: what RemoteCLIP's paper leaves open, and what goes beyond it.

    Raises ValueError for a value that cannot be.
    """

    centre: float = 0.5  # share of width and height that is the centre: the middle half, as a re-implementation chose
    general_above: int = 10  # from the paper: counts above ten may be told in general terms
    general_terms: tuple[str, ...] = ("many", "a lot of")  # the paper's examples
    counted: int = 3  # classes that a counting caption names at least, where there are so many; not in the paper
    relations: bool = True  # tell which classes lie next to each other or, of masks, surround each other
    details: bool = True  # tell sizes, and objects that lie in parallel

    def __post_init__(self) -> None:
        if not isinstance(self.centre, int | float) or not 0 < self.centre < 1:
            raise ValueError(f"centre must be between 0 and 1, is {self.centre!r}")
        if type(self.general_above) is not int or not 1 <= self.general_above < len(NUMBERS):
            raise ValueError(f"general_above must be from 1 to {len(NUMBERS) - 1}, is {self.general_above!r}")
        terms = self.general_terms
        if not isinstance(terms, tuple) or not terms or not all(isinstance(term, str) and term for term in terms):
            raise ValueError(f"general_terms must be a list of texts, is {terms!r}")
        if type(self.counted) is not int or self.counted < 1:
            raise ValueError(f"counted must be a whole number of at least 1, is {self.counted!r}")
        for key in ("relations", "details"):
            if not isinstance(getattr(self, key), bool):
                raise ValueError(f"{key} must be true or false, is {getattr(self, key)!r}")


@dataclass(frozen=True)
class Source:
    """One source of a study, as a dict of the parameter ``sources`` gives it. Checks itself.

    Paths lie below ``data_root``, the folder that DVC watches. Blue Marble needs none.
    """

    name: str
    format: str
    annotations: str | Mapping[str, str] | None = None  # a file, a file a split, or a folder of files
    images: str | None = None  # the folder of images
    splits: Mapping[str, str] | None = None  # split -> list of file names, for formats that do not tell the split
    split: str = "train"  # of all images, where there are no lists
    split_column: str | None = None  # caption_table: the column that tells the split; None finds one of the usual names
    image_column: str | None = None  # caption_table: likewise, the image's file name
    caption_columns: list[str] | None = None  # caption_table: likewise, one column or several
    label_column: str | None = None  # caption_table: likewise, the class
    val_share: float | None = None  # of the training images, drawn for validation where the files have none
    labels: str = "none"  # karpathy: where class names come from, see read_karpathy
    fixes: list[str] | None = None  # fixes that may be applied, see rsvlm.data.names; None = all, [] = none
    # boxes and masks: a preset's name, or name, number or colour "r,g,b" -> word; null leaves it out; see class_words
    classes: str | Mapping | list | None = None
    captions: Mapping[str, object] | None = None  # boxes and masks: see CaptionSettings
    suffix: str = ""  # masks: behind the image's name in the mask's
    min_pixels: int = 64  # masks: smallest part of an object that counts, pixels
    min_share: float = 0.001  # masks: smallest area of a kind of ground that counts, share of the image
    resolution: float | None = None  # metres a pixel; None where it differs or is unknown
    use: str = "all"  # one of USES
    allow_missing_images: bool | None = None  # as the study's parameter, for this source; None = as the study says
    tiles: int = TileSettings.tiles  # blue_marble: tiles at most
    tile_pixels: int = TileSettings.tile_pixels  # blue_marble: side of a tile in pixels

    def __post_init__(self) -> None:
        where = f"sources: {self.name}"
        if not isinstance(self.name, str) or not self.name or "/" in self.name:
            raise ValueError(f"sources: name must be a non-empty text without '/', is {self.name!r}")
        if self.format not in FORMATS:
            raise ValueError(f"{where}: unknown format {self.format!r}{closest_name(self.format, FORMATS, OLDER)}")
        if self.format != "blue_marble":
            self._check_paths(where)
        if self.fixes is not None and not isinstance(self.fixes, list):
            raise ValueError(f"{where}: fixes must be a list of names, is {self.fixes!r}")
        check_fixes(self.fixes)
        check_split(self.split, f"{where}: split")
        self._check_table(where)
        for key in ("tiles", "tile_pixels", "min_pixels"):
            if not isinstance(getattr(self, key), int) or isinstance(getattr(self, key), bool):
                raise ValueError(f"{where}: {key} must be a whole number, is {getattr(self, key)!r}")
        number = isinstance(self.resolution, int | float) and not isinstance(self.resolution, bool)
        if self.resolution is not None and not (number and self.resolution > 0):
            raise ValueError(f"{where}: resolution must be metres a pixel or null, is {self.resolution!r}")
        if self.use not in USES:
            raise ValueError(f"{where}: use must be one of {', '.join(USES)}, is {self.use!r}")
        if not isinstance(self.allow_missing_images, bool | None):
            raise ValueError(
                f"{where}: allow_missing_images must be true, false or null, is {self.allow_missing_images!r}"
            )
        if self.format in ("masks", "yolo_boxes") and not self.classes:
            raise ValueError(f"{where}: format {self.format} needs the key 'classes'")
        self._check_boxes(where)
        if self.format == "blue_marble":
            TileSettings(self.tiles, self.tile_pixels)

    def _check_boxes(self, where: str) -> None:
        class_words(self.classes, f"{where}: classes", self.format == "masks")
        share = self.min_share
        if not isinstance(share, int | float) or isinstance(share, bool) or not 0 <= share < 1:
            raise ValueError(f"{where}: min_share must be a share of the image from 0 to below 1, is {share!r}")
        settings_of(self.captions, f"{where}: captions")

    def _check_table(self, where: str) -> None:
        for key in ("split_column", "image_column", "label_column", "suffix"):
            if not isinstance(getattr(self, key), str | None):
                raise ValueError(f"{where}: {key} must be a text, is {getattr(self, key)!r}")
        names = self.caption_columns
        if names is not None and not (isinstance(names, list) and names and all(isinstance(n, str) for n in names)):
            raise ValueError(f"{where}: caption_columns must be a list of names, is {names!r}")
        if self.split_column is not None and isinstance(self.annotations, Mapping):
            raise ValueError(
                f"{where}: split_column needs one file under 'annotations'; a file a split tells the split itself"
            )
        if self.val_share is None:
            return
        number = isinstance(self.val_share, int | float) and not isinstance(self.val_share, bool)
        if not number or not 0 < self.val_share < 1:
            raise ValueError(f"{where}: val_share must be between 0 and 1, is {self.val_share!r}")
        if self.use != "all":
            raise ValueError(f"{where}: val_share is for sources whose `use` is all; this one's is {self.use!r}")

    def _check_paths(self, where: str) -> None:
        if self.format in TABLE and not isinstance(self.annotations, Mapping):
            if not isinstance(self.annotations, str):
                raise ValueError(
                    f"{where}: format {self.format} needs the key 'annotations' with a path, or a path for each split"
                )
        elif self.format in FILE_A_SPLIT or self.format in TABLE:
            files = self.annotations
            if not isinstance(files, Mapping) or not files or not all(isinstance(file, str) for file in files.values()):
                raise ValueError(
                    f"{where}: format {self.format} needs the key 'annotations' with a path for each split"
                )
        elif not isinstance(self.annotations, str):
            raise ValueError(f"{where}: format {self.format} needs the key 'annotations' with a path")
        if not isinstance(self.images, str) and not (self.use == "audit" and self.images is None):
            raise ValueError(f"{where}: format {self.format} needs the key 'images' with a path")
        if self.format == "sydney_text" and not self.splits:
            raise ValueError(
                f"{where}: format sydney_text needs the key 'splits' with a list of file names for each split"
            )
        if self.splits is not None and not (
            isinstance(self.splits, Mapping) and all(isinstance(file, str) for file in self.splits.values())
        ):
            raise ValueError(f"{where}: splits must be a path for each split, is {self.splits!r}")
        for key in ("annotations", "splits"):
            if isinstance(getattr(self, key), Mapping):
                for split in getattr(self, key):
                    check_split(split, f"{where}: {key}")

    @property
    def paths(self) -> list[tuple[str, str]]:
        """(key, path) of every file and folder that the source names; prefixes of precomputed texts become files."""
        found = []
        for key in ("annotations", "splits"):
            value = getattr(self, key) or {}
            found += [(key, path) for path in (value.values() if isinstance(value, Mapping) else [value])]
        if self.format == "precomputed":
            found = [(key, f"{path}_{end}.txt") for key, path in found for end in ("caps", "filename")]
        return found + ([("images", self.images)] if self.images else [])


def settings_of(values: object, where: str = "captions") -> CaptionSettings:
    """CaptionSettings from a mapping of some of its fields; the usual ones for None.

    Raises:
        ValueError: no mapping, an unknown field, or a value that cannot be.
    """
    values = {} if values is None else values
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must be a mapping of settings, is {values!r}")
    known = [field.name for field in dataclasses.fields(CaptionSettings)]
    for key in values:
        if key not in known:
            raise ValueError(f"{where}: unknown key {key!r}{closest_name(key, known)}")
    try:
        return CaptionSettings(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def parse_source(settings: object) -> Source:
    """A checked Source from a dict of the parameter ``sources``.

    Raises:
        ValueError: a key that the format does not have (with the closest one), a missing key, an unknown format.
    """
    if not isinstance(settings, dict):
        raise ValueError(f"sources: each source must be a mapping with at least name and format, is {settings!r}")
    settings = dict(settings)
    known = KEYS.get(str(settings.get("format")), tuple(field.name for field in dataclasses.fields(Source)))
    for key in settings:
        if key not in known:
            raise ValueError(f"sources: {settings.get('name')}: unknown key {key!r}{closest_name(key, known)}")
    for key in ("name", "format"):
        if key not in settings:
            raise ValueError(f"sources: a source lacks the key {key!r}: {settings}")
    return Source(**settings)


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
    if not place.exists():
        return None if optional else f"{place} does not exist; data/raw/README.md says what is expected where"
    folder = key == "images" or (key == "annotations" and source.format in FOLDER)
    return None if place.is_dir() == folder else f"{place} must be a {'folder' if folder else 'file'}"


def _missing_splits(entering: list[Source]) -> list[str]:
    """Splits that no source can give, where every source names a file a split."""
    if not entering or not all(isinstance(source.annotations, Mapping) for source in entering):
        return []
    given = {split for source in entering for split in source.annotations}
    given |= {"val" for source in entering if source.val_share and "train" in source.annotations}
    return [missing_split(split) for split in SPLITS if split not in given]


def _folder_link(place: Path, top: Path) -> Path | None:
    """The first folder below ``top`` on the way to a place that is a link."""
    steps = [place, *place.parents]
    inside = [step for step in steps if step != top and step.is_relative_to(top)]
    return next((step for step in reversed(inside) if step.is_symlink() and step.is_dir()), None)
