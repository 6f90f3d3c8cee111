"""From the sources of a study to one caption table, with a report of everything that was dropped or looks odd.

Reading order: annotation files, images on disk, splits, then every image opened once, size limits, near-duplicates, validation
splits that are drawn, checks of the whole.
"""

import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rsvlm.data.audit import caption_facts, english_dictionary, find_misspelt, published_counts
from rsvlm.data.cards import write_study_cards
from rsvlm.data.duplicates import Fingerprint, fingerprint_images
from rsvlm.data.images import ImageError
from rsvlm.data.listings import NAMES_SHOWN, FoundImage, ListedImage, Listing, find_images
from rsvlm.data.names import SPLITS, check_fixes, fixes_report
from rsvlm.data.overlap import find_near_duplicates, verbatim_share
from rsvlm.data.sources import Source, list_source, missing_split, parse_source, parse_sources
from rsvlm.data.table import save_table
from rsvlm.extras import import_extra
from rsvlm.files import fingerprint_file, whole_folder, write_json, write_json_lines

TABLE, ADAPT = "images.jsonl", "adapt.jsonl"  # the table, and the rows that adapt the encoder alone
NEAR_DUPLICATES = "near_duplicates.jsonl"  # every pair of near-duplicates, beside the table


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
    log: Callable[[str], None] = print,
) -> tuple[list[dict], dict]:
    """Rows of all images that are used, and the report on them.

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
    rows, _, report = _survey(
        parsed,
        data_root,
        allow_missing=allow_missing_images,
        drop=drop_train_near_duplicates_of_test,
        same_ground=find_same_ground,
        most=max_images_per_split,
        spelling=check_spelling,
        seed=seed,
        cache=cache,
        tiles=tiles,
        root=root,
        log=log,
    )
    entering = {source.name for source in parsed if source.use == "all"}
    _check_splits({row["split"] for row in rows if row["source"] in entering}, report)
    return rows, report


def audit_sources(
    sources: list[dict],
    *,
    data_root: str,
    find_same_ground: bool = True,
    check_spelling: bool = True,
    seed: int = 0,
    cache: Path | None = None,
    root: Path | None = None,
    log: Callable[[str], None] = print,
) -> tuple[list[dict], dict]:
    """Rows of every listed image of some sources, also of those without a file, and the report on them.

    Nothing is dropped and no split needs to be there. Arguments and errors are those of ``aggregate_sources``.
    """
    parsed = [parse_source(source | {"use": "audit"}) for source in sources]
    _, rows, report = _survey(
        parsed,
        data_root,
        allow_missing=True,
        drop=False,
        same_ground=find_same_ground,
        most=None,
        spelling=check_spelling,
        seed=seed,
        cache=cache,
        root=root,
        log=log,
    )
    return rows, report


def _survey(
    sources: list[Source],
    data_root: str,
    *,
    allow_missing: bool,
    drop: bool,
    same_ground: bool,
    most: int | None,
    spelling: bool,
    seed: int,
    cache: Path | None,
    tiles: Path | None = None,
    root: Path | None,
    log: Callable[[str], None],
) -> tuple[list[dict], list[dict], dict]:
    """Rows that are used, rows that are only compared, and the report.

    All files are listed, and missing ones and splits told, before the first image is opened.
    """
    root = Path.cwd() if root is None else root.absolute()
    import_extra("faiss", "the search for near-duplicates")  # now rather than after all images were read
    if spelling:
        english_dictionary()
    rows, others, prints, report = [], [], {}, {"sources": {}}
    listed = []
    for source in sources:
        allow = allow_missing if source.allow_missing_images is None else source.allow_missing_images
        listed.append(_list_files(source, data_root, allow or source.use == "audit", seed, tiles, root, log))
        report["sources"][source.name] = listed[-1].facts
    entering = [one for one in listed if one.source.use == "all"]
    if entering:
        splits = {item.listed.split for one in entering for item in one.found if item.listed.captions}
        drawn = any(one.source.val_share and one.facts["splits_read"].get("train") for one in entering)
        _check_splits(splits | ({"val"} if drawn else set()), report)
    for one in listed:
        new, new_prints = _read_images(one, data_root, most, seed, cache, root, log)
        name, facts = one.source.name, one.facts
        log(f"{name}: {facts.get('images_read', 0)} of {facts['images_listed']} listed images read")
        (others if one.source.use == "audit" else rows).extend(new)
        prints |= new_prints
    shares = {source.name: source.val_share for source in sources if source.val_share}
    rows, pairs, report["near_duplicates"] = find_near_duplicates(
        rows, others, prints, drop, shares, seed, same_ground=same_ground, cache=cache, log=log
    )
    report["near_duplicates"]["list"] = pairs
    for name, count in report["near_duplicates"].pop("drawn_for_validation").items():
        report["sources"][name]["images_drawn_for_validation"] = count
    rows.sort(key=lambda row: (row["source"], row["split"], row["image_id"]))
    report["verbatim"] = verbatim_share([*rows, *others])
    for name, facts in report["sources"].items():
        own = [row for row in (*rows, *others) if row["source"] == name]
        captions = [caption for row in own for caption in row["captions"]]
        facts["images"] = {split: sum(row["split"] == split for row in own) for split in SPLITS}
        facts["captions"] = {
            split: sum(len(row["captions"]) for row in own if row["split"] == split) for split in SPLITS
        }
        facts |= caption_facts(captions)
        if spelling:
            facts["misspelt"] = find_misspelt(captions)
    return rows, others, report


@dataclass
class _ListedFiles:
    """A source before its images are opened: what its annotations list and what lies in its folder."""

    source: Source
    listing: Listing
    facts: dict  # its part of the report
    found: list[FoundImage]
    missing: list[str]
    allow: bool  # missing and broken images are left out and counted; else they stop the stage


def _list_files(
    source: Source, data_root: str, allow: bool, seed: int, tiles: Path | None, root: Path, log: Callable[[str], None]
) -> _ListedFiles:
    listing, folder, files = list_source(source, data_root, seed, tiles, root)
    where = files[0]
    fixes = check_fixes(source.fixes)
    facts: dict = {
        "format": source.format,
        "use": source.use,
        "annotation_files": {file.name: fingerprint_file(file) for file in files if file.is_file()},
        "images_listed": len(listing.images),
        "published": published_counts(source.name, listing),
    }
    for file, taken in listing.notes.get("read_as", {}).items():
        log(f"{source.name}: {file}: {taken}")
    if source.val_share and listing.notes["splits_read"].get("val"):
        raise ValueError(
            f"sources: {source.name}: val_share, but {where} has {listing.notes['splits_read']['val']:,} validation "
            "images already; take val_share out"
        )
    there = folder is not None and folder.is_dir()
    if not there and not allow:
        raise FileNotFoundError(
            f"{source.name}: no folder {folder} for the {len(listing.images):,} images of {where}; put them there "
            "(data/raw/README.md says where they come from), take the source out, or set allow_missing_images to go on"
        )
    names = [image.name for image in listing.images]
    found, missing, disk_counts = find_images(listing.images, folder, fixes) if there else ([], names, {})
    if there or source.use != "audit":
        facts |= {"files_missing": len(missing), "first_files_missing": sorted(missing)[:NAMES_SHOWN]}
    facts |= dict(sorted(listing.counts.items())) | disk_counts | listing.notes
    facts |= {} if there else {"images_on_disk": False}
    facts["fixes"] = fixes_report(listing.counts + Counter(disk_counts), fixes)
    if missing and not allow:
        raise FileNotFoundError(
            f"{source.name}: {len(missing):,} of {len(listing.images):,} images listed in {where} are not in {folder}, "
            f"for example {', '.join(sorted(missing)[:5])}; bring them, or set allow_missing_images to go on"
        )
    return _ListedFiles(source, listing, facts, found, missing, allow)


def _read_images(
    one: _ListedFiles,
    data_root: str,
    most: int | None,
    seed: int,
    cache: Path | None,
    root: Path,
    log: Callable[[str], None],
) -> tuple[list[dict], dict[str, Fingerprint]]:
    """Rows of one source and fingerprints by image_id; its part of the report grows."""
    source, facts = one.source, one.facts
    if source.use == "audit" and facts.get("images_on_disk") is False:
        return _captions_alone(source, one.listing.images), {}
    wordless = [item for item in one.found if not item.listed.captions]
    spoken = [item for item in one.found if item.listed.captions]
    wanted = [item for item in spoken if source.use != "adapt" or item.listed.split == "train"]
    usable = _limit(wanted, most, f"{seed}/{source.name}")
    facts |= {
        "images_without_caption": len(wordless),
        "first_images_without_caption": sorted(i.name for i in wordless)[:NAMES_SHOWN],
    }
    rows, prints, broken, sizes = [], {}, [], Counter()
    prints_of = fingerprint_images([i.path for i in usable], cache=cache, log=log)
    for item, print_of in zip(usable, prints_of, strict=True):
        if isinstance(print_of, ImageError):
            if not one.allow:
                raise ImageError(
                    f"{source.name}: {print_of} (or set allow_missing_images to go on without it)"
                ) from print_of
            broken.append(item.name)
            continue
        sizes[f"{print_of.width}x{print_of.height}"] += 1
        row = _row_of(source, item, data_root, root, print_of)
        prints[row["image_id"]] = print_of
        rows.append(row)
    facts |= {
        "images_left_out_by_use": len(spoken) - len(wanted),
        "images_left_out_by_limit": len(wanted) - len(usable),
    }
    facts["images_broken"] = len(broken)
    facts |= {"first_images_broken": sorted(broken)[:NAMES_SHOWN], "images_read": len(rows)}
    facts |= {
        "image_sizes": dict(sorted(sizes.items(), key=lambda pair: (-pair[1], pair[0]))[:NAMES_SHOWN]),
        "different_image_sizes": len(sizes),
    }
    if source.use == "audit":
        absent = set(one.missing)
        rows += _captions_alone(source, [image for image in one.listing.images if image.name in absent])
    return rows, prints


def _row_of(source: Source, item: FoundImage, data_root: str, root: Path, one: Fingerprint) -> dict:
    """A row of the image table."""
    return {
        "image_id": f"{source.name}/{item.name}",
        "source": source.name,
        "split": item.listed.split,
        "path": _path_text(item, data_root, root),
        "captions": list(item.listed.captions),
        "label": item.listed.label,
        "width": one.width,
        "height": one.height,
        "resolution": source.resolution,
    }


def _captions_alone(source: Source, images: list[ListedImage]) -> list[dict]:
    """Rows of images that are not here, for comparing captions; they never enter the table."""
    return [
        {
            "image_id": f"{source.name}/{image.name}",
            "source": source.name,
            "split": image.split,
            "captions": list(image.captions),
            "label": image.label,
        }
        for image in images
    ]


def _limit(found: list[FoundImage], most: int | None, seed: str) -> list[FoundImage]:
    """At most ``most`` images a split, drawn at random, in the order of their names."""
    kept = []
    for split in SPLITS:
        items = sorted((item for item in found if item.listed.split == split), key=lambda item: item.name)
        if most is not None and len(items) > most:
            items = sorted(random.Random(f"{seed}/{split}").sample(items, most), key=lambda item: item.name)
        kept += items
    return kept


def _path_text(item: FoundImage, data_root: str, root: Path) -> str:
    """The table's path: relative to the root, except for a ``data_root`` that was given as an absolute path outside."""
    inside = item.path.is_relative_to(root)
    return (
        item.path.as_posix()
        if Path(data_root).is_absolute() and not inside
        else Path(os.path.relpath(item.path, root)).as_posix()
    )


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


def write_aggregated(
    rows: list[dict], report: dict, *, aggregated: Path, pages: Path, cards: Path, metrics: Path
) -> dict:
    """The stage's metrics; writes them, both tables, the near-duplicates, ``report.json`` and the sources' filled cards.

    Args:
        aggregated: folder of the tables and the report.
        pages: folder of the cards that people write.
        cards: folder of the filled ones.
        metrics: folder of the stages' metrics.
    """
    adapting = {name for name, facts in report["sources"].items() if facts["use"] == "adapt"}
    with whole_folder(aggregated) as scratch:
        save_table([row for row in rows if row["source"] not in adapting], scratch / TABLE)
        save_table([row for row in rows if row["source"] in adapting], scratch / ADAPT)
        write_json_lines(scratch / NEAR_DUPLICATES, report["near_duplicates"]["list"])
        duplicates = {
            key: value for key, value in report["near_duplicates"].items() if key != "list"
        }  # has a file of its own
        write_json(scratch / "report.json", report | {"near_duplicates": duplicates})
    tables = [aggregated / name for name in ((TABLE, ADAPT) if adapting else (TABLE,))]
    with whole_folder(cards) as scratch:
        write_study_cards(scratch, rows, report, tables, pages)
    numbers = metrics_of(report)
    write_json(metrics / "aggregate_data.json", numbers)
    return numbers


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
