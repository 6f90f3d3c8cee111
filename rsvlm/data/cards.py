"""Data cards: pages written by people, with a block of numbers that a run fills in, and the same in Croissant JSON-LD.

``data_cards/NAME.md`` holds the page; ``data_cards/measured/NAME.json`` the numbers that its block was last filled
with; ``data_cards/croissant/NAME.json`` the machine's version (MLCommons' Croissant 1.0, with the terms of GeoCroissant
1.0 that apply; the tests validate it with mlcroissant). The stage aggregate_data puts filled copies of its sources'
cards into ``reports/cards``; ``python -m rsvlm.data audit FOLDER --cards`` and ``python -m rsvlm.data cards --study``
renew the ones in the repository.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from rsvlm.data.audit import search_scope, words_of
from rsvlm.data.catalogue import CAP4, KNOWN, KnownSource
from rsvlm.data.names import FIXES, SPLITS
from rsvlm.data.translations import HOW_NAMES
from rsvlm.extras import import_extra
from rsvlm.files import fingerprint_file, read_json, write_json, write_text
from rsvlm.languages import language_name
from rsvlm.safe_text import as_code, as_markdown

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
# What every card must have, in the order of the Data Cards Playbook and of Hugging Face's dataset cards.
SECTIONS = (
    "In short", "Measured", "What is in it", "Who made it", "How it was made", "Splits",
    "Known defects, and what this package does", "Reading results", "Suitable and unsuitable uses", "Licence and terms",
    "How to get it",
)  # fmt: skip
COUNTS = {  # over all that the file lists, or all that lies in the folder, whether its images are read or not
    "captions_blank_dropped": "blank captions in the file, left out",
    "captions_blank_kept": "blank captions in the file, kept",
    "caption_cells_empty": "empty cells in the file's columns of captions",
    "captions_repeated_within_image": "captions in the file that repeat another of the same image, kept",
    "captions_with_extra_spaces": "captions in the file with double spaces",
    "captions_with_other_tokens": "captions in the file whose tokens are other words than the text",
    "captions_not_ascii": "captions in the file with letters beyond ASCII",
    "images_with_other_sentence_ids": "images in the file whose list of sentence ids differs from the sentences'",
    "rsicd_images_without_class": "images in the file without a class, for lack of RSICD's lists: "
    "`txtclasses_rsicd.rar` at https://github.com/201528014227051/RSICD_optimal, to be unpacked beside the JSON",
    "images_with_another_extension": "files on disk under another extension than listed",
    "images_in_another_folder": "files on disk in another folder than listed, found by their name",
    "images_in_another_unicode_form": "files on disk whose name is listed in another Unicode form",
    "files_not_listed": "image files on disk that nothing lists",
    "boxes_over_the_edge": "boxes in the file that reach over the image's edge",
    "boxes_without_area": "boxes in the file without an area",
}


CROISSANT, GEO = "http://mlcommons.org/croissant/1.0", "http://mlcommons.org/croissant/geo/1.0"
LEAST_SHARE = 0.0005  # of siblings that is told: less is 0.0 %
VERSION = "1.0.0"  # of the descriptions
CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "geocr": "http://mlcommons.org/croissant/geo/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "sc": "https://schema.org/",
} | {
    term: f"cr:{term}"
    for term in (
        "citeAs", "column", "equivalentProperty", "extract", "field", "fileProperty", "fileObject", "fileSet", "format",
        "includes", "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet", "references", "regex",
        "repeated", "replace", "samplingRate", "separator", "source", "subField", "transform",
    )
}  # fmt: skip
# JSON paths of the formats that mlcroissant can read: name of the field -> path of one value an image.
JSON_FIELDS = {
    "karpathy": {"filename": "$.images[*].filename", "split": "$.images[*].split"},
    "retrieval_json": {"image": "$[*].image"},
}


def measured_facts(name: str, rows: Sequence[dict], report: Mapping) -> dict:
    """What a run found on one source, for its card: numbers, checksums, overlaps, examples. JSON, no paths.

    Args:
        name: of the source.
        rows: of the source in the image table; without any no examples are shown.
        report: of rsvlm.data.aggregate.
    """
    facts, shared = report["sources"][name], report["near_duplicates"]
    duplicates = shared["images_with_a_near_duplicate"]
    as_they_are = (
        "format", "annotation_files", "published", "images_listed", "splits_listed", "splits_read", "distinct_captions",
        "vocabulary", "words_a_caption", "fixes",
    )  # fmt: skip
    otherwise = {
        "images_read": None, "captions_listed": 0, "splits_swapped_back": 0, "image_sizes": {},
        "different_image_sizes": 0, "read_as": {}, "misspelt": None, "translations": {},
    }  # fmt: skip
    return {
        "source": name,
        **{key: facts[key] for key in as_they_are},
        **{key: facts.get(key, value) for key, value in otherwise.items()},
        "captions_used": sum(facts["captions"].values()),
        "drawn_for_validation": facts.get("images_drawn_for_validation", 0),
        "counts": {key: facts[key] for key in COUNTS if facts.get(key)},
        "verbatim_in_train": {
            part: {other: share for other, share in row.items() if other.endswith("/train")}
            for part, row in report["verbatim"].items()
            if part.startswith(f"{name}/") and not part.endswith("/train")
        },
        "siblings": {
            part: {other: share for other, share in row.items() if share >= LEAST_SHARE}
            for part, row in report["siblings"].items()
            if part.startswith(f"{name}/") and max(row.values()) >= LEAST_SHARE
        },
        "images_with_a_near_duplicate": {
            part: {other: count for other, count in row.items() if count}
            for part, row in duplicates.items()
            if part.startswith(f"{name}/") and any(row.values())
        },
        "same_ground": shared["same_ground"],
        "images_compared": any(part.startswith(f"{name}/") for part in duplicates),
        "examples": example_images(rows),
    }


def example_images(rows: Iterable[dict]) -> dict[str, dict]:
    """The training image whose words are the most common among the source's images, and that with the rarest.

    Args:
        rows: of the source; they are gone through twice.
    """
    holders = Counter(
        word for row in _training(rows) for word in {w for text in row["captions"] for w in words_of(text)}
    )

    def commonness(row: Mapping) -> tuple[float, str]:
        words = [word for caption in row["captions"] for word in words_of(caption)]
        return sum(holders[word] for word in words) / max(len(words), 1), row["image_id"]

    ends = {"typical": max(_training(rows), key=commonness, default=None)}
    ends["atypical"] = min(_training(rows), key=commonness, default=None)
    return {
        kind: {"image_id": row["image_id"], "captions": list(dict.fromkeys(row["captions"]))[:5]}
        for kind, row in ends.items()
        if row
    }


def _training(rows: Iterable[dict]) -> Iterator[dict]:
    return (row for row in rows if row["split"] == "train")


def measured_block(facts: Mapping | None) -> str:
    """The numbers as Markdown, with the markers around them; text from data is escaped."""
    sizes = sorted((facts or {}).get("image_sizes", {}).items(), key=lambda pair: (-pair[1], pair[0]))
    values = {
        "facts": facts,
        "splits": SPLITS,
        "sizes": [f"{size} ({count:,})" for size, count in sizes],
        "counted": COUNTS,
        "how": HOW_NAMES,
        "fixes": FIXES,
        "scope": search_scope((facts or {}).get("same_ground")),  # None: recorded before the same ground was looked for
    }
    return f"{BEGIN}\n\n{_render('measured', values)}\n{END}"


def _render(template: str, values: Mapping) -> str:
    jinja2 = import_extra("jinja2", "filling data cards")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rsvlm.data", "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"n": "{:,}".format, "plain": as_markdown, "code": as_code, "language": language_name}
    return environment.get_template(f"{template}.md.jinja").render(values)


def fill_card(page: str, block: str, where: str) -> str:
    """A page with its measured block replaced.

    Raises:
        ValueError: the page lacks the markers, or has them twice.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError(f"{where}: needs {BEGIN} and {END} once each, in this order")
    return page[: page.index(BEGIN)] + block + page[page.index(END) + len(END) :]


def write_study_cards(
    folder: Path, rows: Callable[[str], Sequence[dict]], report: Mapping, tables: list[Path], pages: Path
) -> None:
    """Put filled cards and Croissant descriptions of a study's sources, and of its tables, into a folder.

    Args:
        rows: source -> its rows of the image table.
        pages: folder of the cards that people write; a source without a page there gets the start of one.
    """
    sources = sorted(report["sources"])
    for name in sources:
        facts = measured_facts(name, rows(name), report)
        page = pages / f"{KNOWN[name].card}.md" if name in KNOWN else None
        text = page.read_text(encoding="utf-8") if page and page.is_file() else _own_card(name)
        write_text(folder / f"{name}.md", fill_card(text, measured_block(facts), str(page or name)))
        if name in KNOWN:
            write_json(folder / "croissant" / f"{name}.json", describe_source(name, facts))
    entered = [name for name in sources if report["sources"][name]["use"] != "audit"]
    description = describe_table(entered, {table.name: fingerprint_file(table) for table in tables})
    write_json(folder / "croissant" / "image_table.json", description)
    write_text(folder / "mixture.md", mixture_card(report))


def mixture_card(report: Mapping) -> str:
    """A page on the study's mixture: what each source gives, shares, what left and why."""
    entered = {name: facts for name, facts in report["sources"].items() if facts["use"] != "audit"}
    total = max(sum(sum(facts["images"].values()) for facts in entered.values()), 1)
    sources = [
        {
            "title": KNOWN[name].title if name in KNOWN else name,
            "use": facts["use"],
            "images": [facts["images"][split] for split in SPLITS],
            "captions": sum(facts["captions"].values()),
            "share": 100 * sum(facts["images"].values()) / total,
        }
        for name, facts in sorted(entered.items())
    ]
    shared = report["near_duplicates"]
    values = {"sources": sources, "shared": shared, "scope": search_scope(shared["same_ground"])}
    return _render("mixture", values | {"cap4": set(entered) == set(CAP4)})


def renew_cards(rows: Callable[[str], Sequence[dict]], report: Mapping, folder: Path) -> list[str]:
    """Names of the known sources whose cards in ``folder`` were filled anew from a run."""
    renewed = sorted(set(report["sources"]) & set(KNOWN))
    for name in renewed:
        write_json(folder / "measured" / f"{name}.json", measured_facts(name, rows(name), report))
    render_cards(folder)
    return renewed


def render_cards(folder: Path) -> None:
    """Fill every card and write every Croissant description from the numbers in ``measured/``."""
    for name, known in KNOWN.items():
        facts = load_measured(name, folder)
        page = folder / f"{known.card}.md"
        write_text(page, fill_card(page.read_text(encoding="utf-8"), measured_block(facts), str(page)))
        write_json(folder / "croissant" / f"{name}.json", describe_source(name, facts))


def load_measured(name: str, folder: Path) -> dict | None:
    """The numbers that a source's card is filled with; None where it has never been measured."""
    path = folder / "measured" / f"{name}.json"
    return read_json(path) if path.is_file() else None


def _own_card(name: str) -> str:
    """The start of a card for a source that has none."""
    text = "A source of this study without a card of its own: write one from what is measured below."
    return f"# {as_markdown(name)}\n\n## In short\n\n{text}\n\n## Measured\n\n{BEGIN}\n{END}\n"


def describe_source(name: str, measured: Mapping | None) -> dict:
    """The Croissant description of a known source.

    Args:
        name: of rsvlm.data.catalogue.KNOWN.
        measured: what a run found (``measured_facts``), for the annotation files' checksums; None where none was.

    Raises:
        KeyError: an unknown source.
    """
    known = KNOWN[name]
    annotated = sorted((measured or {}).get("annotation_files", {}).items())
    text = "Annotations, as released; the checksum is that of the copy that was audited."
    files = [
        _file(file, text, "application/json" if file.endswith(".json") else "text/plain", sha256=digest)
        for file, digest in annotated
    ]
    for download in known.downloads:
        if download.checksum:
            kind, _, digest = download.checksum.partition(":")
            text = f"Images; the checksum is pinned by {download.pinned_by}."
            files.append(_file(download.file, text, "application/zip", contentUrl=download.url, **{kind: digest}))
    files.append(
        {
            "@type": "cr:FileSet",
            "@id": "images",
            "name": "images",
            "description": "Image files below the source's folder.",
            "encodingFormat": ["image/jpeg", "image/png", "image/tiff"],
            "includes": ["**/*.jpg", "**/*.png", "**/*.tif"],
        }
    )
    fields = JSON_FIELDS.get(str(known.settings.get("format")), {})
    records = [
        _records(f"{file.rsplit('.', 1)[0]}_images", file, {key: ("jsonPath", path) for key, path in fields.items()})
        for file, _ in annotated
        if fields and file.endswith(".json")
    ]
    return _dataset(name, known, f"{known.title}: remote-sensing images with English captions.", files, records)


def describe_table(sources: list[str], files: Mapping[str, str]) -> dict:
    """The Croissant description of a study's image table.

    Args:
        sources: names of the study's sources.
        files: file name -> SHA-256 of a table.
    """
    text = "One row an image: id, source, split, file, captions, class, size, resolution."
    objects = [_file(file, text, "application/x-parquet", sha256=digest) for file, digest in sorted(files.items())]
    taken = {key: ("column", key) for key in ("image_id", "source", "split", "path", "label")}
    records = [_records(file.rsplit(".", 1)[0], file, taken) for file in sorted(files)]
    titles = ", ".join(KNOWN[name].title if name in KNOWN else name for name in sources)
    known = KnownSource(
        title=f"Image table of {titles}",
        cite="; ".join(KNOWN[name].cite for name in sources if name in KNOWN) or "see the sources",
        card="mixture",
        images=None,
        captions=None,
        metres_a_pixel=KNOWN[sources[0]].metres_a_pixel if len(sources) == 1 and sources[0] in KNOWN else None,
        licence="those of the sources; the strictest counts",
        place="https://example.org/rsvlm-image-table",
    )
    return _dataset("image_table", known, f"The checked caption table of a study: {titles}.", objects, records)


def _file(name: str, description: str, encoding: str, **more: str) -> dict:
    entry = {"@type": "cr:FileObject", "@id": name, "name": name, "description": description, "contentUrl": name}
    return entry | {"encodingFormat": encoding} | more


def _dataset(name: str, known: KnownSource, description: str, files: list[dict], records: list[dict]) -> dict:
    dataset = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "name": name,
        "alternateName": known.title,
        "description": description,
        "conformsTo": [CROISSANT, GEO],
        "citeAs": known.cite,
        "license": known.licence,
        "url": known.place,
        "version": VERSION,
        "datePublished": f"{known.published}-01-01",
        "geocr:bandConfiguration": {
            "@type": "geocr:BandConfiguration",
            "geocr:totalBands": 3,
            "geocr:bandNameList": ["Red", "Green", "Blue"],
        },
    }
    if known.metres_a_pixel is not None:
        dataset["geocr:spatialResolution"] = {
            "@type": "QuantitativeValue",
            "value": known.metres_a_pixel,
            "unitText": "m",
        }
    elif known.resolution != "different":
        dataset["geocr:spatialResolution"] = known.resolution
    dataset |= {"geocr:spatialBias": known.bias, "geocr:samplingStrategy": known.sampling} if known.bias else {}
    if name == "blue_marble":
        dataset["geocr:coordinateReferenceSystem"] = "EPSG:4326"
        dataset["spatialCoverage"] = {"@type": "Place", "geo": {"@type": "GeoShape", "box": "-60 -180 80 180"}}
    elif known.area:
        dataset["spatialCoverage"] = {"@type": "Place", "name": known.area}
    return dataset | {"distribution": files, "recordSet": records}


def _records(name: str, file: str, fields: Mapping[str, tuple[str, str]]) -> dict:
    """A record set whose fields are read from one file, each by a JSON path or a column."""
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"{name}/{key}",
                "name": f"{name}/{key}",
                "dataType": "sc:Text",
                "source": {"fileObject": {"@id": file}, "extract": {kind: value}},
            }
            for key, (kind, value) in fields.items()
        ],
    }
