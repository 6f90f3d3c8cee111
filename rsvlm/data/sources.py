"""A source of a study as its parameters name it, and its images and captions read by the format's reader."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rsvlm.data.blue_marble import TileSettings, make_blue_marble
from rsvlm.data.box_captions import caption_listing, settings_of
from rsvlm.data.boxed_images import Classes
from rsvlm.data.caption_csv import read_caption_csv
from rsvlm.data.coco import read_coco_captions
from rsvlm.data.coco_boxes import read_coco_boxes
from rsvlm.data.dota_boxes import read_dota_boxes
from rsvlm.data.fixes import check_fixes
from rsvlm.data.karpathy import read_karpathy
from rsvlm.data.listings import Listing, check_split
from rsvlm.data.mask_boxes import read_mask_boxes
from rsvlm.data.names import class_words, closest_name
from rsvlm.data.nwpu import read_nwpu
from rsvlm.data.official_splits import mend_rsicd_splits
from rsvlm.data.precomputed import read_precomputed
from rsvlm.data.retrieval_json import read_retrieval_json
from rsvlm.data.sydney_text import read_sydney_text
from rsvlm.data.voc_boxes import read_voc_boxes
from rsvlm.data.yolo_boxes import read_yolo_boxes
from rsvlm.paths import BLUE_MARBLE, ROOT

# Format -> the keys it knows besides name, format, images, fixes, resolution, use and allow_missing_images.
ONE_FILE = {"karpathy": ("annotations", "labels"), "nwpu": ("annotations",), "sydney_text": ("annotations", "splits")}
FILE_A_SPLIT = {
    "retrieval_json": ("annotations",),
    "precomputed": ("annotations",),
    "caption_csv": ("annotations",),
    "coco_captions": ("annotations",),
    "coco_boxes": ("annotations", "classes", "captions"),
}
FOLDER = {
    format: ("annotations", "splits", "split", "classes", "captions")
    for format in ("voc_boxes", "dota_boxes", "yolo_boxes")
} | {"masks": ("annotations", "splits", "split", "classes", "captions", "suffix", "min_pixels", "min_share")}
COMMON = ("name", "format", "images", "fixes", "resolution", "use", "allow_missing_images")
KEYS = {
    "blue_marble": ("name", "format", "tiles", "tile_pixels", "resolution"),
    **{format: (*COMMON, *keys) for format, keys in (ONE_FILE | FILE_A_SPLIT | FOLDER).items()},
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


@dataclass(frozen=True)
class Source:
    """One source of a study, as a dict of the parameter ``sources`` gives it. Checks itself.

    Paths are below ``data_root`` (or absolute). Blue Marble needs none.
    """

    name: str
    format: str
    annotations: str | Mapping[str, str] | None = None  # a file, a file a split, or a folder of files
    images: str | None = None  # the folder of images
    splits: Mapping[str, str] | None = None  # split -> list of file names, for formats that do not tell the split
    split: str = "train"  # of all images, where there are no lists
    labels: str = "none"  # karpathy: where class names come from, see read_karpathy
    fixes: list[str] | None = None  # fixes that may be applied, see rsvlm.data.fixes; None = all, [] = none
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
            raise ValueError(f"{where}: unknown format {self.format!r}{closest_name(self.format, FORMATS)}")
        if self.format != "blue_marble":
            self._check_paths(where)
        if self.fixes is not None and not isinstance(self.fixes, list):
            raise ValueError(f"{where}: fixes must be a list of names, is {self.fixes!r}")
        check_fixes(self.fixes)
        check_split(self.split, f"{where}: split")
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
        class_words(self.classes, f"{where}: classes", self.format == "masks")
        share = self.min_share
        if not isinstance(share, int | float) or isinstance(share, bool) or not 0 <= share < 1:
            raise ValueError(f"{where}: min_share must be a share of the image from 0 to below 1, is {share!r}")
        settings_of(self.captions)

    def _check_paths(self, where: str) -> None:
        if self.format in FILE_A_SPLIT:
            if not isinstance(self.annotations, Mapping) or not all(
                isinstance(v, str) for v in self.annotations.values()
            ):
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
        for key in ("annotations", "splits"):
            if isinstance(getattr(self, key), Mapping):
                for split in getattr(self, key):
                    check_split(split, f"{where}: {key}")


def parse_source(settings: object) -> Source:
    """A checked Source from a dict of the parameter ``sources``.

    Raises:
        ValueError: a key that the format does not have (with the closest one), a missing key, an unknown format.
    """
    if not isinstance(settings, dict):
        raise ValueError(f"sources: each source must be a mapping with at least name and format, is {settings!r}")
    settings = dict(settings)
    known = KEYS.get(settings.get("format"), tuple(field.name for field in dataclasses.fields(Source)))
    for key in settings:
        if key not in known:
            raise ValueError(f"sources: {settings.get('name')}: unknown key {key!r}{closest_name(key, known)}")
    for key in ("name", "format"):
        if key not in settings:
            raise ValueError(f"sources: a source lacks the key {key!r}: {settings}")
    return Source(**settings)


def list_source(source: Source, data_root: str, seed: int = 0) -> tuple[Listing, Path | None, list[Path]]:
    """A source's listing, its folder of images, and the files or folders of its annotations.

    Args:
        data_root: folder that paths start from, relative to the project's root or absolute.
        seed: of Blue Marble's tiles and of the wording of captions made from boxes.

    Raises:
        FileNotFoundError, ValueError: as the format's reader.
    """
    if source.format == "blue_marble":
        make_blue_marble(TileSettings(source.tiles, source.tile_pixels, seed))
        annotations, images = BLUE_MARBLE / "dataset.json", BLUE_MARBLE / "images"
        return read_karpathy(annotations, labels="field"), images, [annotations]

    def below(path: str) -> Path:
        return ROOT / data_root / path

    fixes = check_fixes(source.fixes)
    images = below(source.images) if source.images else None
    lists = {split: below(path) for split, path in (source.splits or {}).items()}
    if source.format in FILE_A_SPLIT:
        files = {split: below(path) for split, path in source.annotations.items()}
        listing = _read_files(source, files, images, fixes, seed)
        used = list(files.values())
    else:
        place = below(source.annotations)
        listing = _read_one(source, place, images, lists, fixes, seed)
        used = [place, *lists.values()]
    if not listing.counts["captions_listed"]:
        raise ValueError(
            f"sources: {source.name}: not one caption for {len(listing.images):,} images in "
            f"{', '.join(map(str, used))}; format {source.format} looks for {SOUGHT.get(source.format, 'captions')}"
        )
    mend_rsicd_splits(listing, allowed="rsicd_swapped_splits" in fixes)
    return listing, images, used


def _read_files(
    source: Source, files: dict[str, Path], images: Path | None, fixes: frozenset[str], seed: int
) -> Listing:
    if source.format == "coco_boxes":
        boxed = read_coco_boxes(files, images or Path(), Classes(class_words(source.classes, "classes")), fixes)
        return caption_listing(boxed, settings_of(source.captions), seed)
    readers = {
        "retrieval_json": read_retrieval_json,
        "precomputed": read_precomputed,
        "caption_csv": read_caption_csv,
        "coco_captions": read_coco_captions,
    }
    return readers[source.format](files, fixes)


def _read_one(
    source: Source, place: Path, images: Path | None, lists: dict[str, Path], fixes: frozenset[str], seed: int
) -> Listing:
    if source.format == "karpathy":
        return read_karpathy(place, fixes=fixes, labels=source.labels)
    if source.format == "nwpu":
        return read_nwpu(place, fixes)
    if source.format == "sydney_text":
        return read_sydney_text(place, lists, fixes)
    if images is None:
        raise ValueError(f"sources: {source.name}: format {source.format} needs 'images' also for an audit alone")
    if source.format == "masks":
        words = class_words(source.classes, "classes", masks=True)
        least, centre = (source.min_pixels, source.min_share), settings_of(source.captions).centre
        boxed = read_mask_boxes(place, images, words, lists, source.split, source.suffix, *least, centre)
    else:
        readers = {"voc_boxes": read_voc_boxes, "dota_boxes": read_dota_boxes, "yolo_boxes": read_yolo_boxes}
        words = Classes(class_words(source.classes, "classes"))
        boxed = readers[source.format](place, images, words, lists, source.split, fixes)
    return caption_listing(boxed, settings_of(source.captions), seed)
