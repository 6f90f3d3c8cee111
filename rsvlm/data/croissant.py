"""Croissant JSON-LD (MLCommons, 1.0) of sources and of the image table, with the terms of GeoCroissant 1.0 that apply.

Plain dicts: nothing but JSON is needed to write them. The tests validate them with mlcroissant. Coordinates are not
told where nobody published them: only Blue Marble's tiles have a coordinate reference system.
"""

from collections.abc import Mapping

from rsvlm.data.catalogue import KNOWN, KnownSource

CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "geocr": "http://mlcommons.org/croissant/geo/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
CROISSANT, GEO = "http://mlcommons.org/croissant/1.0", "http://mlcommons.org/croissant/geo/1.0"
VERSION = "1.0.0"  # of these descriptions
PUBLISHED = {"ucm": "2016", "sydney": "2016", "rsicd": "2018", "nwpu": "2022", "rsitmd": "2021", "blue_marble": "2026"}
BIAS = {
    "ucm": "Cities of the United States alone.",
    "sydney": "One city alone.",
    "rsicd": "Chosen by hand from online maps; places are not recorded.",
    "rsitmd": "Chosen by hand from online maps; places are not recorded; part of the images are RSICD's.",
    "nwpu": "Chosen by hand from online maps of more than 100 countries; places are not recorded.",
    "blue_marble": "All land between 60 S and 80 N; rare land covers are rare in it.",
}
SAMPLING = {
    "ucm": "100 images for each of 21 land-use classes.",
    "sydney": "Non-overlapping parts of one large image, labelled with 7 classes.",
    "rsicd": "About 30 scene classes, of unequal size.",
    "rsitmd": "33 scene classes.",
    "nwpu": "700 images for each of 45 scene classes.",
    "blue_marble": "A regular grid; whole regions to one split; classes take turns up to the wanted number.",
}
# JSON paths of the formats that mlcroissant can read: name of the field -> path of one value an image.
JSON_FIELDS = {
    "karpathy": {"filename": "$.images[*].filename", "split": "$.images[*].split"},
    "retrieval_json": {"image": "$[*].image"},
}


def describe_source(name: str, measured: Mapping | None) -> dict:
    """The Croissant description of a known source.

    Args:
        name: of rsvlm.data.catalogue.KNOWN.
        measured: what a run found (see rsvlm.data.cards), for the annotation files' checksums; None where none was.

    Raises:
        KeyError: an unknown source.
    """
    known = KNOWN[name]
    files = [
        {
            "@type": "cr:FileObject",
            "@id": file,
            "name": file,
            "description": "Annotations, as released; the checksum is that of the copy that was audited.",
            "contentUrl": file,
            "encodingFormat": "application/json" if file.endswith(".json") else "text/plain",
            "sha256": digest,
        }
        for file, digest in sorted((measured or {}).get("annotation_files", {}).items())
    ]
    for download in known.downloads:
        if download.checksum:
            kind, _, digest = download.checksum.partition(":")
            files.append(
                {
                    "@type": "cr:FileObject",
                    "@id": download.file,
                    "name": download.file,
                    "description": f"Images; the checksum is pinned by {download.pinned_by}.",
                    "contentUrl": download.url,
                    "encodingFormat": "application/zip",
                    kind: digest,
                }
            )
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
    annotated = [file["@id"] for file in files if file["encodingFormat"] == "application/json"]
    records = [
        _records(f"{file.rsplit('.', 1)[0]}_images", file, {key: ("jsonPath", path) for key, path in fields.items()})
        for file in annotated
        if fields
    ]
    return _dataset(name, known, f"{known.title}: remote-sensing images with English captions.", files, records)


def describe_table(sources: list[str], files: Mapping[str, str]) -> dict:
    """The Croissant description of a study's image table.

    Args:
        sources: names of the study's sources.
        files: file name -> SHA-256 of a table.
    """
    objects = [
        {
            "@type": "cr:FileObject",
            "@id": file,
            "name": file,
            "description": "One object an image: id, source, split, file, captions, class, size, resolution.",
            "contentUrl": file,
            "encodingFormat": "application/jsonlines",
            "sha256": digest,
        }
        for file, digest in sorted(files.items())
    ]
    columns = ("image_id", "source", "split", "path", "label")
    taken = {key: ("column", key) for key in columns}
    records = [_records(file.rsplit(".", 1)[0], file, taken) for file in sorted(files)]
    titles = [KNOWN[name].title if name in KNOWN else name for name in sources]
    known = KnownSource(
        title=f"Image table of {', '.join(titles)}",
        cite="; ".join(KNOWN[name].cite for name in sources if name in KNOWN) or "see the sources",
        card="mixture",
        images=None,
        captions=None,
        licence="those of the sources; the strictest counts",
        place="https://example.org/rsvlm-image-table",
    )
    known_sources = [KNOWN[name] for name in sources if name in KNOWN]
    if len(known_sources) == len(sources) == 1:
        known = KnownSource(**{**known.__dict__, "metres_a_pixel": known_sources[0].metres_a_pixel})
    return _dataset(
        "image_table", known, f"The checked caption table of a study: {', '.join(titles)}.", objects, records
    )


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
        "datePublished": f"{PUBLISHED.get(name, '2026')}-01-01",
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
    for key, values in (("geocr:spatialBias", BIAS), ("geocr:samplingStrategy", SAMPLING)):
        if name in values:
            dataset[key] = values[name]
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
