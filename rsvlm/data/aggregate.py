"""From the sources of a study to one caption table, with a report of everything that was dropped or looks odd.

Reading order: annotation files, images on disk, splits, then every image opened once, size limits, near-duplicates, validation
splits that are drawn, checks of the whole.
"""

import os
import random
from collections import ChainMap, Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from rsvlm.data import audit
from rsvlm.data.cards import write_study_cards
from rsvlm.data.duplicates import Fingerprint, fingerprint_images
from rsvlm.data.images import ImageError
from rsvlm.data.listings import (
    NAMES_SHOWN,
    FoundImage,
    find_images,
    take_splits,
)
from rsvlm.data.names import SPLITS, check_fixes, fixes_report
from rsvlm.data.readers import list_source
from rsvlm.data.recipes import read_as, recipe_of
from rsvlm.data.source_translations import read_translation_files, translate_source
from rsvlm.data.sources import (
    PACKED,
    Source,
    missing_split,
    parse_source,
    parse_sources,
    place_of,
)
from rsvlm.data.spill import Chosen, StoredRows, Texts
from rsvlm.data.table import save_table
from rsvlm.data.table_rows import ORDER
from rsvlm.data.translations import save_translations
from rsvlm.extras import import_extra
from rsvlm.files import cache_folder, fingerprint_file, whole_folder, write_json, write_json_lines

TABLE, ADAPT = "images.parquet", "adapt.parquet"  # the table, and the rows that adapt the encoder alone
TRANSLATIONS = "translations.jsonl"  # the table's captions in other languages, see rsvlm.data.translations
NEAR_DUPLICATES = "near_duplicates.jsonl"  # every pair of near-duplicates, beside the table
Log = Callable[[str], None]


def aggregate_sources(
    sources: list[dict],
    *,
    data_root: str,
    allow_missing_images: bool = False,
    drop_train_near_duplicates_of_test: bool = True,
    find_same_ground: bool = True,
    max_images_per_split: int | None = None,
    check_spelling: bool = False,
    seed: int = 0,
    cache: Path | None = None,
    tiles: Path | None = None,
    root: Path | None = None,
    log: Log = print,
) -> tuple[StoredRows, dict]:
    """Rows of all images that are used, and the report on them.

    Captions lie on disk from the moment that a source's annotations were read: of one source alone all are in memory, while
    they are read. Translations are in memory, in the report.

    Rows of a source with ``use: adapt`` are among them, from its training split alone; ``write_aggregated`` puts them
    into a table of their own.

    Args:
        sources: dicts, see rsvlm.data.sources.Source.
        data_root: folder that the sources' paths start from, absolute or relative to ``root``.
        allow_missing_images: leave out images that are missing or cannot be opened, and count them; else they stop it.
        drop_train_near_duplicates_of_test: leave out training images that show what a test image shows, see rsvlm.data.duplicates.
        find_same_ground: look for the same ground at another zoom, shift or date, see rsvlm.data.local_features.
        max_images_per_split: images a source and split at most, drawn at random (seed); None = all.
        check_spelling: list words that an English dictionary does not know; needs the extra ``audit``.
        seed: of the Blue Marble tiles, of the wording of captions made from boxes, and of that draw.
        cache: folder of the images' fingerprints; None = ``cache_folder()``.
        tiles: folder that Blue Marble's tiles are written to; None = ``blue_marble`` below ``data_root``.
        root: folder that the rows' paths are relative to; None = the working directory.
        log: takes one line a source.

    Raises:
        FileNotFoundError: a file of annotations or a folder is missing, or images are and may not be.
        ValueError: a setting or an annotation file is wrong; a split is empty; names source, file and key.
    """
    parsed = parse_sources(sources)
    if max_images_per_split is not None and max_images_per_split < 1:
        raise ValueError(f"max_images_per_split must be at least 1 or null, is {max_images_per_split}")
    run = _Run(
        data_root, allow_missing_images, max_images_per_split, seed, cache, tiles, (root or Path()).absolute(), log
    )
    # A wrong file shows before the images are read.
    texts = {source.name: read_translation_files(source, data_root, run.root) for source in parsed}
    rows, _, report = _survey(parsed, run, drop_train_near_duplicates_of_test, find_same_ground, check_spelling)
    report["translations"] = []
    for source in parsed:
        own, facts = rows.of(source.name), report["sources"][source.name]
        translated, facts["translations"] = translate_source(
            source,
            own,
            texts[source.name],
            facts.get("translations", {}),
            tiles=tiles or place_of("blue_marble", data_root, run.root),
        )
        report["translations"] += translated
    entering = {source.name for source in parsed if source.use == "all"}
    _check_splits({row["split"] for row in rows.rows if row["source"] in entering}, report)
    return rows, report


def audit_sources(
    sources: list[dict], *, data_root: str, find_same_ground: bool = True, check_spelling: bool = True
) -> tuple[StoredRows, dict]:
    """Rows of every listed image of some sources, also of those without a file, and the report on them.

    Nothing is dropped and no split needs to be there. Arguments and errors are those of ``aggregate_sources``.
    """
    parsed = [parse_source(source | {"use": "audit"}) for source in sources]
    run = _Run(data_root, True, None, 0, None, None, Path.cwd(), print)
    return _survey(parsed, run, False, find_same_ground, check_spelling)[1:]


@dataclass(frozen=True)
class _Run:
    """What all sources of a run share; see ``aggregate_sources``."""

    data_root: str
    allow_missing: bool
    most: int | None  # images a source and split
    seed: int
    cache: Path | None
    tiles: Path | None
    root: Path
    log: Log


def _survey(
    sources: list[Source], run: _Run, drop: bool, same_ground: bool, spelling: bool
) -> tuple[StoredRows, StoredRows, dict]:
    """Rows that are used, rows that are only compared, and the report.

    All files are listed, and missing ones and splits told, before the first image is opened.
    """
    import_extra("faiss", "the search for near-duplicates")  # now rather than after all images were read
    if spelling:
        audit.english_dictionary()
    listed = [_list_files(source, run) for source in sources]
    report: dict = {"sources": {one.source.name: one.facts for one in listed}}
    entering = [one for one in listed if one.source.use == "all"]
    if entering:
        splits = {image.split for one in entering for image in one.images if image.path and image.spoken}
        drawn = any(one.source.val_share and one.facts["splits_read"].get("train") for one in entering)
        _check_splits(splits | ({"val"} if drawn else set()), report)
    rows, others, prints = [], [], ChainMap()
    for one in listed:
        new, new_prints = _read_images(one, run)
        run.log(
            f"{one.source.name}: {one.facts.get('images_read', 0)} of {one.facts['images_listed']} listed images read"
        )
        (others if one.source.use == "audit" else rows).extend(new)
        prints.maps.append(new_prints)
    shares = {source.name: source.val_share for source in sources if source.val_share}
    rows, pairs, report["near_duplicates"] = audit.find_near_duplicates(
        rows, others, prints, drop, shares, run.seed, same_ground=same_ground, cache=run.cache, log=run.log
    )
    report["near_duplicates"]["list"] = pairs
    for name, count in report["near_duplicates"].pop("drawn_for_validation").items():
        report["sources"][name]["images_drawn_for_validation"] = count
    texts = {one.source.name: one.texts for one in listed}
    rows = StoredRows(sorted(rows, key=lambda row: [row[key] for key in ORDER]), texts)
    others = StoredRows(others, texts)
    report["verbatim"] = audit.verbatim_share(chain(rows, others))
    report["siblings"] = audit.sibling_share(chain(rows, others))
    for name, facts in report["sources"].items():
        own = (rows if facts["use"] != "audit" else others).of(name)
        facts["images"] = {split: sum(row["split"] == split for row in own.rows) for split in SPLITS}
        facts["captions"] = dict.fromkeys(SPLITS, 0)
        facts |= audit.caption_facts(_count_captions(own, facts["captions"]))
        if spelling:
            facts["misspelt"] = audit.find_misspelt(caption for row in own for caption in row["captions"])
    return rows, others, report


def _count_captions(rows: StoredRows, counts: dict[str, int]) -> Iterator[str]:
    """The captions of some rows; how many they are goes into ``counts``, by split."""
    for row in rows:
        counts[row["split"]] += len(row["captions"])
        yield from row["captions"]


@dataclass(frozen=True, slots=True)
class _Image:
    """A listed image, its captions being the texts of that place."""

    name: str
    split: str
    path: Path | None  # None: it is missing, and its captions are only compared
    spoken: bool  # it has captions
    place: int


@dataclass
class _ListedFiles:
    """A source before its images are opened: what its annotations list and what lies in its folder."""

    source: Source
    facts: dict  # its part of the report
    images: list[_Image]  # by their names
    texts: Texts
    allow: bool  # missing and broken images are left out and counted; else they stop the stage


def _list_files(source: Source, run: _Run) -> _ListedFiles:
    listing, folder, files = list_source(source, run.data_root, run.seed, run.tiles, run.root)
    published = audit.published_counts(source.name, listing)
    if source.take is not None:
        take_splits(listing, source.take, f"sources: {source.name}: take")
    where, names = files[0], [image.name for image in listing.images]
    fixes = check_fixes(source.fixes)
    allow = run.allow_missing if source.allow_missing_images is None else source.allow_missing_images
    allow = allow or source.use == "audit"
    facts: dict = {
        "format": source.format,
        "use": source.use,
        "annotation_files": {
            _name_of(file, source, folder): fingerprint_file(file) for file in files if file.is_file()
        },
        "images_listed": len(names),
        "published": published,
    }
    for file, taken in listing.notes.get("read_as", {}).items():
        run.log(f"{source.name}: {file}: {taken}")
    if source.val_share and listing.notes["splits_read"].get("val"):
        raise ValueError(
            f"sources: {source.name}: val_share, but {where} has {listing.notes['splits_read']['val']:,} validation "
            "images already; take val_share out"
        )
    inside = listing.missing is not None  # the files of the annotations hold the images
    there = folder is not None and folder.is_dir()
    if not there and not allow:
        raise FileNotFoundError(
            f"{source.name}: no folder {folder} for the {len(names):,} images of {where}; put them there "
            "(data/raw/README.md says where they come from), take the source out, or set allow_missing_images to go on"
        )
    if inside:
        found = [
            FoundImage(image, image.name, folder / image.name)
            for image in listing.images
            if image.name not in listing.missing
        ]
        missing, disk_counts = [name for name in names if name in listing.missing], {}
    else:
        found, missing, disk_counts = find_images(listing.images, folder, fixes) if there else ([], names, {})
    if source.reading is not None:
        recipe = recipe_of(source.reading)
        found = [replace(item, path=read_as(item.path, recipe)) for item in found]
        facts["reading"] = str(recipe)
    if there or source.use != "audit":
        facts |= {"files_missing": len(missing), "first_files_missing": sorted(missing)[:NAMES_SHOWN]}
    facts |= dict(sorted(listing.counts.items())) | disk_counts | listing.notes
    if listing.translated and source.use != "audit":
        facts["translations"] = {
            code: {"columns": source.translations[code]} | dict(sorted(own.items()))
            for code, own in listing.translated.items()
        }
    facts |= {} if there else {"images_on_disk": False}
    facts["fixes"] = fixes_report(listing.counts + Counter(disk_counts), fixes)
    if missing and not allow:
        raise FileNotFoundError(
            f"{source.name}: {len(missing):,} of {len(names):,} images "
            + ("have captions but no image in the files of " if inside else f"listed in {where} are not in ")
            + f"{folder}, "
            f"for example {', '.join(sorted(missing)[:5])}; bring them, or set allow_missing_images to go on"
        )
    images = [(item.name, item.path, item.listed) for item in found]
    if source.use == "audit":
        absent = set(missing)
        images += [(image.name, None, image) for image in listing.images if image.name in absent]
    images.sort(key=lambda image: image[0])
    stored = ({key: getattr(listed, key) for key in ("captions", "label", "translations")} for *_, listed in images)
    texts = Texts(stored, run.cache or cache_folder())
    light = [
        _Image(name, listed.split, path, bool(listed.captions), place)
        for place, (name, path, listed) in enumerate(images)
    ]
    return _ListedFiles(source, facts, light, texts, allow)


def _name_of(file: Path, source: Source, folder: Path) -> str:
    """A file's name in the report; with its folders where a source has many, which may be of one name."""
    return file.relative_to(folder).as_posix() if source.format in PACKED else file.name


def _read_images(one: _ListedFiles, run: _Run) -> tuple[list[dict], Mapping[str, Fingerprint]]:
    """Rows of one source, without their texts, and fingerprints by image_id; its part of the report grows."""
    source, facts = one.source, one.facts
    missing = [_row_of(source, image) for image in one.images if image.path is None]
    if source.use == "audit" and facts.get("images_on_disk") is False:
        return missing, {}
    found = [image for image in one.images if image.path is not None]
    wordless = [image.name for image in found if not image.spoken]
    spoken = [image for image in found if image.spoken]
    wanted = [image for image in spoken if source.use != "adapt" or image.split == "train"]
    usable = _limit(wanted, run.most, f"{run.seed}/{source.name}")
    rows, places, broken, sizes = [], {}, [], Counter()
    prints = fingerprint_images([image.path for image in usable], cache=run.cache, log=run.log)
    for number, (item, print_of) in enumerate(zip(usable, prints, strict=True)):
        if isinstance(print_of, ImageError):
            if not one.allow:
                raise ImageError(
                    f"{source.name}: {print_of} (or set allow_missing_images to go on without it)"
                ) from print_of
            broken.append(item.name)
            continue
        sizes[f"{print_of.width}x{print_of.height}"] += 1
        # A data_root that was given as an absolute path outside the root gives absolute paths.
        absolute = Path(run.data_root).is_absolute() and not item.path.is_relative_to(run.root)
        path = item.path if absolute else Path(os.path.relpath(item.path, run.root))
        seen = {"width": print_of.width, "height": print_of.height, "resolution": source.resolution}
        rows.append(_row_of(source, item) | {"path": path.as_posix()} | seen)
        places[rows[-1]["image_id"]] = number
    facts |= {
        "images_without_caption": len(wordless),
        "first_images_without_caption": sorted(wordless)[:NAMES_SHOWN],
        "images_left_out_by_use": len(spoken) - len(wanted),
        "images_left_out_by_limit": len(wanted) - len(usable),
        "images_broken": len(broken),
        "first_images_broken": sorted(broken)[:NAMES_SHOWN],
        "images_read": len(rows),
        "image_sizes": dict(sorted(sizes.items(), key=lambda pair: (-pair[1], pair[0]))[:NAMES_SHOWN]),
        "different_image_sizes": len(sizes),
    }
    return [*rows, *missing], Chosen(prints, places)


def _row_of(source: Source, image: _Image) -> dict:
    """A row of an image without its file and its texts, as ``StoredRows`` takes it."""
    about = {"source": source.name, "split": image.split, "place": image.place}
    return {"image_id": f"{source.name}/{image.name}"} | about


def _limit(found: list[_Image], most: int | None, seed: str) -> list[_Image]:
    """At most ``most`` images a split, drawn at random, in the order of their names."""
    kept = []
    for split in SPLITS:
        items = sorted((item for item in found if item.split == split), key=lambda item: item.name)
        if most is not None and len(items) > most:
            items = sorted(random.Random(f"{seed}/{split}").sample(items, most), key=lambda item: item.name)
        kept += items
    return kept


def _check_splits(present: set[str], report: dict) -> None:
    """ValueError when a split is empty over all sources. A single source may lack one: the report then shows a 0."""
    entering = {name: facts for name, facts in report["sources"].items() if facts["use"] == "all"}
    for split in SPLITS:
        if split not in present:
            sums = "; ".join(
                f"{name}: {facts['splits_read'].get(split, 0):,} listed, files missing in all splits: "
                f"{facts['files_missing']:,}"
                for name, facts in entering.items()
            )
            raise ValueError(missing_split(split, sums))


def write_aggregated(rows: StoredRows, report: dict, *, aggregated: Path, pages: Path, cards: Path) -> dict:
    """The stage's metrics; writes both tables, the near-duplicates, ``report.json`` and the sources' filled cards.

    Args:
        aggregated: folder of the tables and the report.
        pages, cards: folders of the cards that people write, and of the filled ones.
    """
    adapting = {name for name, facts in report["sources"].items() if facts["use"] == "adapt"}
    with whole_folder(aggregated) as scratch:
        save_table((row for row in rows if row["source"] not in adapting), scratch / TABLE)
        save_table((row for name in sorted(adapting) for row in rows.of(name)), scratch / ADAPT)
        write_json_lines(scratch / NEAR_DUPLICATES, report["near_duplicates"]["list"])
        entering = (row for row in rows.rows if row["source"] not in adapting)
        save_translations(report["translations"], entering, scratch / TRANSLATIONS)
        # The lists have files of their own.
        duplicates = {key: value for key, value in report["near_duplicates"].items() if key != "list"}
        rest = {key: value for key, value in report.items() if key != "translations"}
        write_json(scratch / "report.json", rest | {"near_duplicates": duplicates})
    tables = [aggregated / name for name in ((TABLE, ADAPT) if adapting else (TABLE,))]
    with whole_folder(cards) as scratch:
        write_study_cards(scratch, rows.of, report, tables, pages)
    return metrics_of(report)


def metrics_of(report: dict) -> dict:
    """The report's main numbers, by source: what the files list (``in_file``), what is used, what was dropped."""
    in_file = ("captions_blank_dropped", "captions_repeated_within_image", "splits_swapped_back")
    on_disk = ("files_missing", "images_broken", "images_without_caption")
    metrics = {
        name: {
            "in_file": {"images": facts["images_listed"], "captions": facts.get("captions_listed", 0)}
            | {key: facts.get(key, 0) for key in in_file},
            "images_used": facts["images"],
            "captions_used": facts["captions"],
            "adapts_encoder_alone": int(facts["use"] == "adapt"),
            "images_drawn_for_validation": facts.get("images_drawn_for_validation", 0),
        }
        | {key: facts.get(key, 0) for key in on_disk}
        | {f"captions_in_{code}": own["translated"] for code, own in facts.get("translations", {}).items()}
        for name, facts in report["sources"].items()
        if facts["use"] != "audit"
    }
    duplicates = report["near_duplicates"]
    return {
        "sources": metrics,
        "near_duplicates_dropped_from_train": duplicates["dropped_from_train"],
        "pairs_of_near_duplicates": duplicates["pairs"],
        "pairs_of_near_duplicates_between_train_and_test": duplicates["pairs_between_splits"]["train_and_test"],
        "near_duplicates": duplicates["by_kind"],
        "looked_for_same_ground": {key: int(value) for key, value in duplicates["same_ground"].items()},
    }
