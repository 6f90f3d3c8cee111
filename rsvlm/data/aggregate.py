"""From the sources of a study to one caption table, with a report of everything that was dropped or looks odd.

Reading order: annotation files, images on disk, every image opened once, exact twins, size limits, checks of the whole.
"""

import dataclasses
import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from rsvlm.data.blue_marble import TileSettings, make_blue_marble
from rsvlm.data.images import ImageError, open_image
from rsvlm.data.karpathy import read_karpathy
from rsvlm.data.listings import NAMES_SHOWN, FoundImage, Listing, find_images
from rsvlm.data.nwpu import read_nwpu
from rsvlm.data.overlap import find_twins, verbatim_share
from rsvlm.data.table import SPLITS, save_table
from rsvlm.files import fingerprint_file, whole_folder, write_json
from rsvlm.paths import AGGREGATED, BLUE_MARBLE, IMAGE_TABLE, METRICS, ROOT

FORMATS = ("blue_marble", "karpathy", "nwpu")


@dataclass(frozen=True)
class Source:
    """One source of a study, as a dict of the parameter ``sources`` gives it. Checks itself.

    ``annotations`` and ``images`` are paths below ``data_root`` (or absolute); Blue Marble needs neither.
    """

    name: str
    format: str
    annotations: str | None = None
    images: str | None = None
    labels: str = "none"  # karpathy: where class names come from, see read_karpathy
    fixes: list[str] | None = None  # karpathy: fixes that may be applied; None = all, [] = none
    tiles: int = TileSettings.tiles  # blue_marble: tiles at most
    tile_pixels: int = TileSettings.tile_pixels  # blue_marble: side of a tile in pixels

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name or "/" in self.name:
            raise ValueError(f"sources: name must be a non-empty text without '/', is {self.name!r}")
        if self.format not in FORMATS:
            raise ValueError(f"sources: {self.name}: unknown format {self.format!r}{_closest(self.format, FORMATS)}")
        if self.format != "blue_marble":
            for key in ("annotations", "images"):
                if not isinstance(getattr(self, key), str):
                    raise ValueError(f"sources: {self.name}: format {self.format} needs the key {key!r} with a path")
        if self.fixes is not None and not isinstance(self.fixes, list):
            raise ValueError(f"sources: {self.name}: fixes must be a list of names, is {self.fixes!r}")
        for key in ("tiles", "tile_pixels"):
            if not isinstance(getattr(self, key), int) or isinstance(getattr(self, key), bool):
                raise ValueError(f"sources: {self.name}: {key} must be a whole number, is {getattr(self, key)!r}")


_KEYS = {
    "blue_marble": ("name", "format", "tiles", "tile_pixels"),
    "karpathy": ("name", "format", "annotations", "images", "labels", "fixes"),
    "nwpu": ("name", "format", "annotations", "images"),
}


def parse_source(settings: object) -> Source:
    """A checked Source from a dict of the parameter ``sources``.

    Raises:
        ValueError: a key that the format does not have (with the closest one), a missing key, an unknown format.
    """
    if not isinstance(settings, dict):
        raise ValueError(f"sources: each source must be a mapping with at least name and format, is {settings!r}")
    settings = dict(settings)
    known = _KEYS.get(settings.get("format"), tuple(field.name for field in dataclasses.fields(Source)))
    for key in settings:
        if key not in known:
            raise ValueError(f"sources: {settings.get('name')}: unknown key {key!r}{_closest(key, known)}")
    for key in ("name", "format"):
        if key not in settings:
            raise ValueError(f"sources: a source lacks the key {key!r}: {settings}")
    return Source(**settings)


def _closest(name: object, known: tuple[str, ...]) -> str:
    close = get_close_matches(str(name), known, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def aggregate_sources(
    sources: list[dict],
    *,
    data_root: str,
    allow_missing_images: bool = False,
    drop_train_twins_of_test: bool = True,
    max_images_per_split: int | None = None,
    seed: int = 0,
    log: Callable[[str], None] = print,
) -> tuple[list[dict], dict]:
    """Rows of the image table and the report on them.

    Args:
        sources: dicts, see Source.
        data_root: folder that the sources' paths start from, relative to the project's root or absolute.
        allow_missing_images: leave out images that are missing or cannot be opened, and count them; else they stop it.
        drop_train_twins_of_test: leave out training images whose files equal, byte for byte, a test image's.
        max_images_per_split: images a source and split at most, drawn at random (seed); None = all.
        seed: of the Blue Marble tiles and of that draw.
        log: takes one line a source.

    Raises:
        FileNotFoundError: a file of annotations or a folder is missing, or images are and may not be.
        ValueError: a setting or an annotation file is wrong; a split is empty; names source, file and key.
    """
    parsed = [parse_source(source) for source in sources]
    if not parsed:
        raise ValueError("sources: needs at least one source")
    repeated = [name for name, count in Counter(source.name for source in parsed).items() if count > 1]
    if repeated:
        raise ValueError(f"sources: the name {repeated[0]!r} is given twice; names tell the sources apart")
    if max_images_per_split is not None and max_images_per_split < 1:
        raise ValueError(f"max_images_per_split must be at least 1 or null, is {max_images_per_split}")
    rows, digests, report = [], {}, {"sources": {}}
    for source in parsed:
        new, found_digests, facts = _read_source(source, data_root, allow_missing_images, max_images_per_split, seed)
        log(f"{source.name}: {len(new)} of {facts['images_listed']} listed images read")
        rows += new
        digests |= found_digests
        report["sources"][source.name] = facts
    rows, report["twins"] = find_twins(rows, digests, drop_train_twins_of_test)
    rows.sort(key=lambda row: (row["source"], row["split"], row["image_id"]))
    _check_splits(rows, report)
    report["verbatim_in_train"] = verbatim_share(rows)
    for name, facts in report["sources"].items():
        own = [row for row in rows if row["source"] == name]
        facts["images"] = {split: sum(row["split"] == split for row in own) for split in SPLITS}
        facts["captions"] = {
            split: sum(len(row["captions"]) for row in own if row["split"] == split) for split in SPLITS
        }
        facts["distinct_captions"] = len({caption for row in own for caption in row["captions"]})
    return rows, report


def _read_source(
    source: Source, data_root: str, allow_missing: bool, most: int | None, seed: int
) -> tuple[list[dict], dict[str, str], dict]:
    """Rows of one source, SHA-256 by image_id, and its part of the report."""
    listing, folder, where = _list_source(source, data_root, seed)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{source.name}: no folder {folder} for the {len(listing.images):,} images of {where}; put them there "
            f"(data/raw/README.md says where they come from) or take the source out"
        )
    found, missing, disk_counts = find_images(listing.images, folder)
    facts: dict = {"format": source.format, "images_listed": len(listing.images), "files_missing": len(missing)}
    facts |= {
        "first_files_missing": sorted(missing)[:NAMES_SHOWN],
        **dict(sorted(listing.counts.items())),
        **disk_counts,
        **listing.notes,
    }
    if missing and not allow_missing:
        raise FileNotFoundError(
            f"{source.name}: {len(missing):,} of {len(listing.images):,} images listed in {where} are not in {folder}, "
            f"for example {', '.join(sorted(missing)[:5])}; bring them, or set allow_missing_images to go on"
        )
    wordless = [item for item in found if not item.listed.captions]
    usable = _limit([item for item in found if item.listed.captions], most, f"{seed}/{source.name}")
    facts |= {
        "images_without_caption": len(wordless),
        "first_images_without_caption": sorted(i.name for i in wordless)[:NAMES_SHOWN],
    }
    rows, digests, broken, sizes = [], {}, [], Counter()
    for item in usable:
        try:
            picture = open_image(item.path)
        except ImageError as error:
            if not allow_missing:
                raise ImageError(f"{source.name}: {error} (or set allow_missing_images to go on without it)") from error
            broken.append(item.name)
            continue
        sizes[f"{picture.width}x{picture.height}"] += 1
        image_id = f"{source.name}/{item.name}"
        digests[image_id] = fingerprint_file(item.path)
        rows.append(
            {
                "image_id": image_id,
                "source": source.name,
                "split": item.listed.split,
                "path": _path_text(item, data_root),
                "captions": list(item.listed.captions),
                "label": item.listed.label,
            }
        )
    facts |= {"images_left_out_by_limit": len(found) - len(wordless) - len(usable), "images_broken": len(broken)}
    facts |= {"first_images_broken": sorted(broken)[:NAMES_SHOWN], "images_read": len(rows)}
    facts |= {
        "image_sizes": dict(sorted(sizes.items(), key=lambda pair: (-pair[1], pair[0]))[:NAMES_SHOWN]),
        "different_image_sizes": len(sizes),
    }
    return rows, digests, facts


def _list_source(source: Source, data_root: str, seed: int) -> tuple[Listing, Path, Path]:
    """A source's listing, its folder of images and its annotation file."""
    if source.format == "blue_marble":
        make_blue_marble(TileSettings(source.tiles, source.tile_pixels, seed))
        annotations, images = BLUE_MARBLE / "dataset.json", BLUE_MARBLE / "images"
        return read_karpathy(annotations, fixes=[], labels="field"), images, annotations
    annotations, images = (ROOT / data_root / path for path in (source.annotations, source.images))
    if source.format == "nwpu":
        return read_nwpu(annotations), images, annotations
    return read_karpathy(annotations, fixes=source.fixes, labels=source.labels), images, annotations


def _limit(found: list[FoundImage], most: int | None, seed: str) -> list[FoundImage]:
    """At most ``most`` images a split, drawn at random, in the order of their names."""
    kept = []
    for split in SPLITS:
        items = sorted((item for item in found if item.listed.split == split), key=lambda item: item.name)
        if most is not None and len(items) > most:
            items = sorted(random.Random(f"{seed}/{split}").sample(items, most), key=lambda item: item.name)
        kept += items
    return kept


def _path_text(item: FoundImage, data_root: str) -> str:
    """The table's path: relative to the root, except for a ``data_root`` that was given as an absolute path outside."""
    inside = item.path.is_relative_to(ROOT)
    return (
        item.path.as_posix()
        if Path(data_root).is_absolute() and not inside
        else Path(os.path.relpath(item.path, ROOT)).as_posix()
    )


def _check_splits(rows: list[dict], report: dict) -> None:
    """ValueError when a split is empty over all sources. A single source may lack one: the report then shows a 0."""
    for split in SPLITS:
        listed = {name: facts["splits_read"].get(split, 0) for name, facts in report["sources"].items()}
        if not any(row["split"] == split for row in rows):
            sums = "; ".join(
                f"{name}: {count:,} listed, files missing in all splits: {report['sources'][name]['files_missing']:,}"
                for name, count in listed.items()
            )
            raise ValueError(
                f"the split {split} has no image that can be used ({sums}); a study needs {', '.join(SPLITS)}"
            )


def write_aggregated(rows: list[dict], report: dict) -> dict:
    """The stage's metrics; writes the image table, ``report.json`` and ``METRICS/aggregate_data.json``."""
    with whole_folder(AGGREGATED) as scratch:
        save_table(rows, scratch / IMAGE_TABLE.name)
        write_json(scratch / "report.json", report)
    metrics = metrics_of(report)
    write_json(METRICS / "aggregate_data.json", metrics)
    return metrics


def metrics_of(report: dict) -> dict:
    """The report's main numbers: source -> images and captions a split, and what was dropped."""
    chosen = (
        "files_missing",
        "images_broken",
        "images_without_caption",
        "captions_blank_dropped",
        "captions_repeated_within_image",
        "splits_swapped_back",
    )
    metrics = {
        name: {"images": facts["images"], "captions": facts["captions"], **{key: facts.get(key, 0) for key in chosen}}
        for name, facts in report["sources"].items()
    }
    return {"sources": metrics, "twins_dropped_from_train": report["twins"]["dropped_from_train"]}
