"""The reader of each format that a source may have: from a source's settings to its listing."""

from collections.abc import Mapping
from pathlib import Path

from rsvlm.data import box_readers, caption_readers, caption_tables, packed_readers
from rsvlm.data.blue_marble import make_blue_marble
from rsvlm.data.box_captions import caption_listing
from rsvlm.data.boxes import Classes, read_mask_boxes
from rsvlm.data.listings import NAMES_SHOWN, Listing, mend_rsicd_splits, name_rsicd_classes
from rsvlm.data.names import check_fixes, class_words
from rsvlm.data.sources import OLDER, PACKED, SOUGHT, Source, TileSettings, place_of, settings_of

PACKED_READERS = {"webdataset": packed_readers.read_webdataset, "hf_dataset": packed_readers.read_hf_dataset}


def list_source(
    source: Source, data_root: str, seed: int = 0, tiles: Path | None = None, root: Path | None = None
) -> tuple[Listing, Path | None, list[Path]]:
    """A source's listing, its folder of images, and the files or folders of its annotations.

    The folder of a format whose files hold the images is the one that their names start from.

    Args:
        data_root: folder that paths start from, absolute or relative to ``root``.
        seed: of Blue Marble's tiles and of the wording of captions made from boxes.
        tiles: folder that Blue Marble's tiles are written to; None = ``blue_marble`` below ``data_root``.
        root: None = the working directory.

    Raises:
        FileNotFoundError, ValueError: as the format's reader.
    """
    if source.format == "blue_marble":
        tiles = tiles or place_of("blue_marble", data_root, root)
        settings = TileSettings(tiles=source.tiles, tile_pixels=source.tile_pixels, seed=seed)
        make_blue_marble(settings, tiles, source.languages)
        annotations, images = tiles / "dataset.json", tiles / "images"
        return caption_readers.read_karpathy(annotations, labels="field"), images, [annotations]

    def below(path: str) -> Path:
        try:
            return place_of(path, data_root, root)
        except ValueError as error:
            raise ValueError(f"sources: {source.name}: {error}") from error

    fixes = check_fixes(source.fixes)
    images = below(source.images) if source.images else None
    lists = {split: below(path) for split, path in (source.splits or {}).items()}
    if isinstance(source.annotations, Mapping):
        place = {split: below(path) for split, path in source.annotations.items()}
        used = list(place.values())
    else:
        place = below(source.annotations)
        used = [place, *lists.values()]
    if source.format in PACKED:
        listing, images, used = PACKED_READERS[source.format](place, fixes, _columns_of(source))
    else:
        listing = _read_source(source, place, images, lists, fixes, seed)
    if not listing.counts["captions_listed"]:
        raise ValueError(
            f"sources: {source.name}: not one caption for {len(listing.images):,} images in "
            f"{', '.join(map(str, used[:NAMES_SHOWN]))}; format {source.format} looks for {SOUGHT.get(source.format, 'captions')}"
        )
    mend_rsicd_splits(listing, allowed="rsicd_swapped_splits" in fixes)
    if source.labels == "prefix":
        used += name_rsicd_classes(listing, used[0].parent)
    return listing, images, used


def _read_source(
    source: Source,
    place: Path | dict[str, Path],
    images: Path | None,
    lists: dict[str, Path],
    fixes: frozenset[str],
    seed: int,
) -> Listing:
    """What the format's reader gives; ``place`` is a file or folder of annotations, or a file a split."""
    plain = {
        "nwpu": caption_readers.read_nwpu,
        "retrieval_json": caption_tables.read_retrieval_json,
        "precomputed": caption_readers.read_precomputed,
        "coco_captions": caption_readers.read_coco_captions,
    }
    if source.format in plain:
        return plain[source.format](place, fixes)
    if OLDER.get(source.format, source.format) == "caption_table":
        return caption_tables.read_caption_table(place, fixes, _columns_of(source))
    if source.format == "karpathy":
        return caption_readers.read_karpathy(place, fixes=fixes, labels=source.labels)
    if source.format == "sydney_text":
        return caption_readers.read_sydney_text(place, lists, fixes)
    words, settings = class_words(source.classes, "classes", source.format == "masks"), settings_of(source.captions)
    if source.format == "coco_boxes":
        return caption_listing(
            box_readers.read_coco_boxes(place, images or Path(), Classes(words), fixes), settings, seed
        )
    if images is None:
        raise ValueError(f"sources: {source.name}: format {source.format} needs 'images' also for an audit alone")
    if source.format == "masks":
        least = (source.min_pixels, source.min_share, settings.centre)
        boxed = read_mask_boxes(place, images, words, lists, source.split, source.suffix, *least)
    else:
        readers = {
            "voc_boxes": box_readers.read_voc_boxes,
            "dota_boxes": box_readers.read_dota_boxes,
            "yolo_boxes": box_readers.read_yolo_boxes,
        }
        boxed = readers[source.format](place, images, Classes(words), lists, source.split, fixes)
    return caption_listing(boxed, settings, seed)


def _columns_of(source: Source) -> caption_tables.Columns:
    captions = tuple(source.caption_columns) if source.caption_columns else None
    named = sorted((source.translations or {}).items())
    translations = tuple((language, tuple(own)) for language, own in named if isinstance(own, list))
    return caption_tables.Columns(source.split_column, source.image_column, captions, source.label_column, translations)
