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


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_texts(values: list | tuple) -> bool:
    return bool(values) and all(isinstance(text, str) and text for text in values)


def _are_paths(value: object) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(path, str) for path in value.values())


def _check(settings: object, where: str, **rules: tuple[object, str]) -> None:
    """ValueError for the first setting, by name, that does not fit what it must be."""
    for key, (fits, what) in rules.items():
        if not fits:
            raise ValueError(f"{where}{key} must be {what}, is {getattr(settings, key)!r}")


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
        terms, most = self.general_terms, len(NUMBERS) - 1
        counts = type(self.general_above) is int and 1 <= self.general_above <= most
        _check(
            self,
            "",
            centre=(_is_number(self.centre) and 0 < self.centre < 1, "between 0 and 1"),
            general_above=(counts, f"from 1 to {most}"),
            general_terms=(isinstance(terms, tuple) and _are_texts(terms), "a list of texts"),
            counted=(type(self.counted) is int and self.counted >= 1, "a whole number of at least 1"),
            relations=(isinstance(self.relations, bool), "true or false"),
            details=(isinstance(self.details, bool), "true or false"),
        )


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
        where, kind, share = f"sources: {self.name}", self.format, self.val_share
        named = isinstance(self.name, str) and self.name and "/" not in self.name
        _check(self, "sources: ", name=(named, "a non-empty text without '/'"))
        if kind not in FORMATS:
            raise ValueError(f"{where}: unknown format {kind!r}{closest_name(kind, FORMATS, OLDER)}")
        if kind != "blue_marble":
            self._check_needed(where)
        columns, metres = self.caption_columns, self.resolution
        texts = ("split_column", "image_column", "label_column", "suffix")
        numbers = ("tiles", "tile_pixels", "min_pixels")
        _check(
            self,
            f"{where}: ",
            splits=(not self.splits or _are_paths(self.splits), "a path for each split"),
            fixes=(isinstance(self.fixes, list | None), "a list of names"),
            caption_columns=(columns is None or isinstance(columns, list) and _are_texts(columns), "a list of names"),
            resolution=(metres is None or _is_number(metres) and metres > 0, "metres a pixel or null"),
            use=(self.use in USES, f"one of {', '.join(USES)}"),
            allow_missing_images=(isinstance(self.allow_missing_images, bool | None), "true, false or null"),
            min_share=(
                _is_number(self.min_share) and 0 <= self.min_share < 1,
                "a share of the image from 0 to below 1",
            ),
            val_share=(share is None or _is_number(share) and 0 < share < 1, "between 0 and 1"),
            **{key: (isinstance(getattr(self, key), str | None), "a text") for key in texts},
            **{key: (type(getattr(self, key)) is int, "a whole number") for key in numbers},
        )
        check_fixes(self.fixes)
        check_split(self.split, f"{where}: split")
        for key in ("annotations", "splits"):
            for split in getattr(self, key) if isinstance(getattr(self, key), Mapping) else ():
                check_split(split, f"{where}: {key}")
        if self.split_column is not None and isinstance(self.annotations, Mapping):
            raise ValueError(
                f"{where}: split_column needs one file under 'annotations'; a file a split tells the split itself"
            )
        if share is not None and self.use != "all":
            raise ValueError(f"{where}: val_share is for sources whose `use` is all; this one's is {self.use!r}")
        class_words(self.classes, f"{where}: classes", kind == "masks")
        settings_of(self.captions, f"{where}: captions")
        if kind == "blue_marble":
            TileSettings(self.tiles, self.tile_pixels)

    def _check_needed(self, where: str) -> None:
        one, several = isinstance(self.annotations, str), _are_paths(self.annotations)
        fits, what = one, "a path"
        if self.format in TABLE:
            fits, what = one or several, "a path, or a path for each split"
        elif self.format in FILE_A_SPLIT:
            fits, what = several, "a path for each split"
        without = self.use == "audit" and self.images is None
        for key, there, how in (
            ("annotations", fits, f" with {what}"),
            ("images", isinstance(self.images, str) or without, " with a path"),
            ("splits", self.format != "sydney_text" or self.splits, " with a list of file names for each split"),
            ("classes", self.format not in ("masks", "yolo_boxes") or self.classes, ""),
        ):
            if not there:
                raise ValueError(f"{where}: format {self.format} needs the key {key!r}{how}")

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
