"""The command ``rsvlm``: caption, embed, search and score without a study, scenes, and the doors to data and study.

Exit status: 0 done; 1 bad input, told in one line; 2 wrong usage.
"""

import math
import re
import sys
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rsvlm.files import check_place, disk_trouble

if TYPE_CHECKING:
    import numpy as np

    from rsvlm.data.rasters.scene import Scene
    from rsvlm.models.encoders import DualEncoder
    from rsvlm.scenes.archive import SceneArchive
    from rsvlm.scenes.embedding import SceneEmbeddings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Caption and retrieve remote sensing images with vision-language models.",
)
# What the library calls a setting in its messages, and the option that it is here.
OPTIONS = {
    name: f"--{name.replace('_', '-')}"
    for name in (
        "asset", "bands", "batch_size", "bbox", "cloud_cover_below", "end", "min_valid", "missing", "most_windows", "online",
        "overlap", "precision", "size", "start", "stretch", "unreadable", "views",
    )
} | {"sizes": "--size", "most_sentences": "--sentences"}  # fmt: skip
OTHER = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
Out = Annotated[
    Path | None, typer.Option("--out", help="File for the table: .csv, .jsonl or .parquet; without it CSV is printed.")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Batch = Annotated[int, typer.Option(min=1, max=4096, help="Images at a time.")]


Words = Annotated[str | None, typer.Argument(help="What to look for, in words; or instead --image FILE.")]
Example = Annotated[
    Path | None,
    typer.Option("--image", metavar="FILE", help="Look for what is like this image file, instead of words."),
]


Language = Annotated[
    str | None,
    typer.Option(
        metavar="CODE",
        help="Language of the words: en, pt, zh, ... Default: detected where --languages is there, else English.",
    ),
]
Heads = Annotated[
    Path | None,
    typer.Option(
        "--languages",
        metavar="FOLDER",
        help="What reads other languages than English: models/languages of a study; default: beside the encoder.",
    ),
]


class Unreadable(StrEnum):
    """What to do with a file that is no whole image."""

    stop = "raise"
    keep = "keep"


Keep = Annotated[
    Unreadable, typer.Option(help="'raise' stops at a file that is no whole image; 'keep' goes on and tells of it.")
]


@app.command()
def caption(
    captioner: Annotated[Path, typer.Argument(help="Folder of a captioner: models/captioner of a study.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, and folders of them.")],
    encoder: Annotated[str | None, typer.Option(help="The encoder it was trained with; default: beside it.")] = None,
    out: Out = None,
    device: Device = "auto",
    batch_size: Batch = 32,
    unreadable: Keep = Unreadable.stop,
) -> None:
    """Say what images show."""
    _check_out(out)
    from rsvlm.models import inference

    loaded = inference.load_captioner(captioner, encoder, device=device)
    table = inference.caption(loaded, images, batch_size=batch_size, unreadable=unreadable.value)
    _write(table, out)
    if guessed := int(table["unlike_training"].eq(True).sum()):
        typer.echo(
            f"{guessed} of {len(table)} images are unlike anything in training, their captions are guesses; the column "
            "'unlike_training' says which",
            err=True,
        )
    if unreadable is Unreadable.keep and (bad := int(table["trouble"].notna().sum())):
        typer.echo(f"{bad} of {len(table)} images could not be read; the column 'trouble' says why", err=True)


@app.command()
def embed(
    encoder: Annotated[str, typer.Argument(help="Folder or name of an encoder.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, and folders of them.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the index: vectors.npy, images.json, config.json.")],
    device: Device = "auto",
    batch_size: Batch = 32,
    unreadable: Keep = Unreadable.stop,
) -> None:
    """Make an index of images that `rsvlm search` searches."""
    if out.exists() and not (out / "config.json").is_file():
        raise ValueError(f"{out}: is there already and holds no index; give another folder")
    from rsvlm.models import index
    from rsvlm.models.loading import choose_device
    from rsvlm.models.zoo import load_encoder

    model = load_encoder(encoder, choose_device(device))
    made = index.build_index(model, images, batch_size=batch_size, unreadable=unreadable.value)
    made.save(out)
    typer.echo(f"{len(made)} images in {out}", err=True)


@app.command()
def search(
    index: Annotated[Path, typer.Argument(help="Folder that `rsvlm embed` made.")],
    query: Words = None,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="How many images.")] = 10,
    image: Example = None,
    encoder: Annotated[
        str | None, typer.Option(help="The encoder that made the index; default: as it was saved.")
    ] = None,
    language: Language = None,
    languages: Heads = None,
    out: Out = None,
    device: Device = "auto",
) -> None:
    """Find the images that a text describes, or that look like an image."""
    _check_out(out)
    _check_query({"a text": query, "--image": image}, language, languages)
    from rsvlm.models.index import load_index
    from rsvlm.models.loading import choose_device

    loaded = load_index(index, encoder, device=str(choose_device(device)))
    wanted = image if query is None else _read_words(query, loaded.encoder, language, languages)
    _write(loaded.search(wanted, k).drop(columns="query"), out)


@app.command()
def score(
    captions: Annotated[Path, typer.Argument(help="One caption an image: CSV, JSON, JSON Lines, Parquet.")],
    references: Annotated[Path, typer.Argument(help="References of the same images: the same formats, or COCO.")],
    spice_jars: Annotated[
        Path | None, typer.Option(help="Folder with SPICE's jars; without it SPICE is left out.")
    ] = None,
    per_image: Annotated[bool, typer.Option("--per-image", help="A row an image instead of the set's scores.")] = False,
    out: Out = None,
) -> None:
    """Score captions against references: BLEU, METEOR, ROUGE_L, CIDEr and, with its jars, SPICE."""
    _check_out(out)
    import pandas as pd

    from rsvlm.scoring.caption_files import one_caption_each, read_caption_lists
    from rsvlm.scoring.captions import ScoringTools, score_captions

    said, truth = one_caption_each(read_caption_lists(captions), captions), read_caption_lists(references)
    extra = len(truth.keys() - said.keys())
    if extra:
        typer.echo(f"{extra} of {len(truth)} images with references have no caption; the others are scored", err=True)
    scores = score_captions(
        said, {image: truth[image] for image in said if image in truth}, tools=ScoringTools(spice_jars=spice_jars)
    )
    corpus = pd.DataFrame(
        [{"metric": name, "score": value, "n": len(said)} for name, value in scores.corpus.items() if value is not None]
    )
    _write(scores.per_image if per_image else corpus, out)


models = typer.Typer(
    no_args_is_help=True, help="The field's published encoders: what is known of them, and how to get them."
)
app.add_typer(models, name="models")


@models.command("list")
def list_models(out: Out = None) -> None:
    """Show the known weights: architecture, training data, licence, address, and whether they are here."""
    _check_out(out)
    from rsvlm.models import zoo

    _write(zoo.list_models(), out)


@models.command("get")
def get_model(name: Annotated[str, typer.Argument(help="A name of `rsvlm models list`.")]) -> None:
    """Fetch weights and check them; needs the network."""
    from rsvlm.models import zoo

    typer.echo(zoo.get_model(name, lambda line: typer.echo(line, err=True)))


scene = typer.Typer(
    no_args_is_help=True, help="Scenes: georeferenced images of any size, captioned, and searched by text or picture."
)
app.add_typer(scene, name="scene")
Bands = Annotated[
    str | None, typer.Option(help="Red, green and blue: 3,2,1 (from 1), or names, or a preset such as sentinel-2.")
]
Stretch = Annotated[
    str,
    typer.Option(
        help="Which values become black and white: LOW,HIGH; percentile: from 2 to 98 % of the whole scene's values, each band for "
        "itself; none: as they are, 8 bits alone; auto: 8 bits as they are, all else as percentile."
    ),
]
MinValid = Annotated[float, typer.Option(help="Windows with a smaller share of valid pixels are left out.")]
Overlap = Annotated[float, typer.Option(help="Share of a side that two neighbours have in common.")]
Box = Annotated[
    str | None,
    typer.Option("--bbox", help="Of an archive: only what lies in WEST,SOUTH,EAST,NORTH, degrees; --bbox=-10,35,0,45."),
]
Start = Annotated[
    str | None, typer.Option(help="Of an archive: only scenes from this date on: 2024, 2024-05, 2024-05-31.")
]
End = Annotated[str | None, typer.Option(help="Of an archive: only scenes up to the end of this date.")]
Clouds = Annotated[float | None, typer.Option("--cloud-cover-below", help="Of an archive: only scenes below, percent.")]
Where = Annotated[
    list[str] | None, typer.Option("--where", help="Of an archive: only scenes with NAME=VALUE; may be repeated.")
]
Asset = Annotated[str | None, typer.Option(help="Key of a STAC item's asset that is the scene.")]


class Missing(StrEnum):
    """What to do with a scene of an archive that is not there."""

    stop = "raise"
    skip = "skip"


Skip = Annotated[
    Missing,
    typer.Option(help="'raise' stops at a scene that is missing or cannot be used; 'skip' leaves it out, counted."),
]


@scene.command("archive")
def list_archive(
    place: Annotated[Path, typer.Argument(help="Folder of rasters, or a STAC document on disk (.json).")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="File for the list: .parquet, .geojson or .csv; without it CSV is printed."),
    ] = None,
    asset: Asset = None,
    online: Annotated[
        bool, typer.Option("--online", help="List scenes on a server, too; they are not fetched.")
    ] = False,
    missing: Skip = Missing.stop,
    bbox: Box = None,
    start: Start = None,
    end: End = None,
    cloud_cover_below: Clouds = None,
    where: Where = None,
) -> None:
    """List the scenes of an archive: place, date, cloud cover, coordinate system, size.

    The folder of --out is made where it is missing.
    """
    from rsvlm.scenes import archive as module

    if out is not None:
        module.check_ending(out, module.LISTS)
    found = module.open_archive(place, asset=asset, online=online, missing=missing.value)
    found = _tell(found.filter(**_filters(bbox, start, end, cloud_cover_below, where)))
    if out is not None:
        found.save(out)
    else:
        _write(found.scenes.drop(columns=found.scenes.geometry.name), None)
    counts = found.count()
    systems = [f"{count} in {name.removeprefix('crs ')}" for name, count in counts.items() if name.startswith("crs ")]
    text = f"{counts['scenes']} scenes, {counts['without_date']} without a date, {counts['skipped']} skipped"
    typer.echo("; ".join([text, *systems]), err=True)


@scene.command("embed")
def embed_a_scene(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="SCENE",
            help="GeoTIFF, COG, JPEG 2000, VRT or a plain image; or an archive: a folder, STAC (.json).",
        ),
    ],
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="File for the windows' embeddings: .parquet (GeoParquet); of an archive a folder of them.",
        ),
    ],
    encoder: Annotated[str, typer.Option(help="Folder or name of an encoder.")],
    size: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="Side of the windows, pixels of the scene, whatever a pixel is on the ground; best so that a window shows as much "
            "as an image that the encoder was trained on. More than once: levels, for places of several sizes. "
            "Default: 256.",
        ),
    ] = None,
    overlap: Overlap = 0.5,
    bands: Bands = None,
    stretch: Stretch = "auto",
    min_valid: MinValid = 0.5,
    views: Annotated[int, typer.Option(help="Turned and mirrored views of a window, averaged: 1, 2, 4 or 8.")] = 1,
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    device: Device = "auto",
    batch_size: Batch = 32,
    asset: Asset = None,
    missing: Skip = Missing.stop,
    unreadable: Keep = Unreadable.stop,
    bbox: Box = None,
    start: Start = None,
    end: End = None,
    cloud_cover_below: Clouds = None,
    where: Where = None,
) -> None:
    """Embed the windows of a scene, or of an archive's scenes, so that `rsvlm scene search` can search them.

    Folders of OUT that are missing are made. A killed run goes on where it was when it is started again.
    """
    from rsvlm.data.rasters.scene import open_scene
    from rsvlm.models.loading import choose_device
    from rsvlm.models.zoo import load_encoder
    from rsvlm.scenes.embedding import check_settings, embed_scene

    look = {"bands": _bands(bands), "stretch": _stretch(stretch)}
    how = {"sizes": tuple(size or (256,)), "overlap": overlap, "min_valid": min_valid, "views": views}
    how |= {"precision": precision, "batch_size": batch_size}
    filters = _filters(bbox, start, end, cloud_cover_below, where)
    if path.is_dir() or path.suffix.lower() in (".json", ".geojson"):
        from rsvlm.scenes.archive import embed_archive, open_archive

        if out.suffix == ".parquet":
            raise ValueError(f"{out}: the embeddings of an archive are a folder of files; give a folder's name")
        check_settings(**how)
        found = _tell(open_archive(path, asset=asset, missing=missing.value).filter(**filters))
        model = load_encoder(encoder, choose_device(device))
        done = embed_archive(model, found, out, unreadable=unreadable.value, log=_log, **look, **how)
        left = f", {len(done.skipped)} could not be embedded" if done.skipped else ""
        typer.echo(f"{done.scenes['windows'].sum()} windows of {len(done)} scenes in {out}{left}", err=True)
        return
    if filters or asset is not None:
        raise ValueError(f"{path}: one scene, so there is nothing to choose from; --asset and filters are for archives")
    check_place(out)
    check_settings(**how)
    with open_scene(path, **look) as opened:
        _show(opened)
        made = embed_scene(load_encoder(encoder, choose_device(device)), opened, out, **how)
    left_out = ", ".join(f"{count} left out ({why})" for why, count in made.meta["skipped"].items() if count)
    typer.echo(f"{len(made)} windows in {out}{left_out and ': ' + left_out}", err=True)


@scene.command("search")
def search_a_scene(
    embeddings: Annotated[Path, typer.Argument(help="File that `rsvlm scene embed` made; of an archive its folder.")],
    query: Words = None,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="How many places at most.")] = 10,
    image: Example = None,
    window: Annotated[
        str | None,
        typer.Option(
            metavar="COL,ROW,WIDTH,HEIGHT",
            help="Look for what is like a window of the scene, in pixels from its upper left (the embedded window "
            "that overlaps most with it), or like an earlier hit: HITS.geojson:RANK (or .parquet, .csv); of an archive such a hit "
            "alone.",
        ),
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="The encoder that made the embeddings; default: by the name it had.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="File for the places: .geojson or .parquet; without it CSV is printed.")
    ] = None,
    surface: Annotated[Path | None, typer.Option(help="File for the similarity of each place: .tif (GeoTIFF).")] = None,
    outlines: Annotated[
        Path | None, typer.Option(help="File for what reaches --threshold, as polygons: .geojson or .parquet.")
    ] = None,
    language: Language = None,
    languages: Heads = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Only places with this score or more: the cosine of query and window, from -1 to 1. It is no probability: how high "
            "good places score differs with the encoder and the query, so search without it first.",
        ),
    ] = None,
    scenes: Annotated[
        bool, typer.Option("--scenes", help="Of an archive: rank its scenes by their best place.")
    ] = False,
    bbox: Box = None,
    start: Start = None,
    end: End = None,
    cloud_cover_below: Clouds = None,
    where: Where = None,
) -> None:
    """Find the places of a scene, or of an archive's scenes, that a text describes, or that look like an image or a window.

    Windows that are mostly nodata are not found. Folders of the files that are written are made where they are missing.
    """
    if outlines is not None and threshold is None:
        raise ValueError("--outlines: polygons are of what reaches --threshold; give that too")
    from rsvlm.scenes import search as search_module

    for file, endings in (
        (out, search_module.PLACES),
        (outlines, search_module.PLACES),
        (surface, search_module.RASTERS),
    ):
        if file is not None:
            search_module.check_ending(file, endings)
            check_place(file)
    _check_query({"a text": query, "--image": image, "--window": window}, language, languages)
    if query is not None and Path(query).is_file():
        typer.echo(f"{query}: taken as words; it is a file, too: --image FILE looks for what is like it", err=True)
    if image is not None and search_module.read_as_scene(image):
        typer.echo(f"{image}: read as the scene was, the same bands and stretch", err=True)
    wanted = _window(window) if window is not None else image if query is None else query
    filters = _filters(bbox, start, end, cloud_cover_below, where)
    from rsvlm.scenes.embedding import load_scene_embeddings

    if embeddings.is_dir():
        if surface is not None or outlines is not None or threshold is not None:
            raise ValueError(
                f"{embeddings}: an archive; --surface, --outlines and --threshold are for one scene: give one of its files"
            )
        from rsvlm.scenes.archive import load_archive, rank_scenes, search_archive

        archive = _tell(load_archive(embeddings))
        if query is not None and len(archive):
            first = load_scene_embeddings(embeddings / archive.scenes["file"].iloc[0])
            wanted, encoder = _read_scene_words(query, first, encoder, language, languages)
        if scenes:
            places = rank_scenes(archive, wanted, encoder, **filters).head(k)
        else:
            places = search_archive(archive, wanted, encoder, k=k, **filters)
        if out is not None:
            search_module.write_places(places, out)
            typer.echo(f"{len(places)} places in {out}", err=True)
        else:
            _write(places.drop(columns=places.geometry.name), None)
        return
    if filters or scenes:
        raise ValueError(f"{embeddings}: one scene; --scenes and filters are for archives")
    loaded = load_scene_embeddings(embeddings)
    if query is not None:
        wanted, encoder = _read_scene_words(query, loaded, encoder, language, languages)
    found = search_module.search_scene(loaded, wanted, encoder)
    found = found if query is None else replace(found, query=query)  # the words, also where their vector was looked for
    if window is not None:
        stands = ",".join(map(str, search_module.nearest_window(loaded, wanted)))
        typer.echo(f"looked for: what is like the embedded window {stands}", err=True)
    places = search_module.find_peaks(found, k, threshold=threshold)
    if surface is not None:
        search_module.write_surface(found, surface)
    if outlines is not None:
        search_module.write_places(search_module.outline(found, threshold), outlines)
    if out is not None:
        search_module.write_places(places, out)
        typer.echo(f"{len(places)} places in {out}", err=True)
    else:
        _write(search_module.add_centres(places), None)


@scene.command("caption")
def caption_a_scene(
    path: Annotated[Path, typer.Argument(metavar="SCENE", help="GeoTIFF, COG, JPEG 2000, VRT or a plain image.")],
    captioner: Annotated[Path, typer.Option(help="Folder of a captioner: models/captioner of a study.")],
    encoder: Annotated[str | None, typer.Option(help="The encoder it was trained with; default: beside it.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="File for text, sentences and windows with their places: .geojson or .parquet."),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Side of the windows, pixels; best so that a window shows as much ground as a training image. Default: an eighth of "
            "the scene's longer side, or the encoder's input where that is more.",
        ),
    ] = None,
    overlap: Overlap = 0.0,
    bands: Bands = None,
    stretch: Stretch = "auto",
    min_valid: MinValid = 0.5,
    most_windows: Annotated[int, typer.Option(min=1, help="More are refused: each costs as much as a picture.")] = 400,
    sentences: Annotated[int, typer.Option(min=1, help="In the text, at most; the file has all.")] = 8,
    device: Device = "auto",
    batch_size: Batch = 32,
) -> None:
    """Say what a scene shows: window by window, then in one text whose sentences say where.

    The folder of --out is made where it is missing.
    """
    from rsvlm.scenes import search as search_module

    if out is not None:
        search_module.check_ending(out, search_module.PLACES)
        check_place(out)
    from rsvlm.data.rasters.scene import open_scene
    from rsvlm.models.inference import load_captioner
    from rsvlm.scenes.captioning import caption_scene, check_windows

    how = {"overlap": overlap, "min_valid": min_valid, "most_windows": most_windows, "most_sentences": sentences}

    with open_scene(path, bands=_bands(bands), stretch=_stretch(stretch)) as opened:
        _show(opened)
        if said := opened.clipping():
            typer.echo(said, err=True)
        if size is not None:  # else the encoder's input has a say in it
            check_windows(opened, size=size, **how)
        loaded = load_captioner(captioner, encoder, device=device)
        said = caption_scene(loaded, opened, size=size, batch_size=batch_size, **how)
    typer.echo(said.text)
    left_out = f", {said.skipped} left out (nodata)" if said.skipped else ""
    typer.echo(f"{len(said.windows)} windows{left_out}; as one small picture: {said.overview}", err=True)
    if out is not None:
        search_module.write_places(said.places(), out)


@app.command(context_settings=OTHER, add_help_option=False)
def data(context: typer.Context) -> None:
    """List, get and audit the known sources, and render their cards (rsvlm data --help)."""
    from rsvlm.data.__main__ import main as run

    raise typer.Exit(run(context.args))


@app.command(context_settings=OTHER, add_help_option=False)
def study(context: typer.Context) -> None:
    """The study of this project: its results, or what `rsvlm study --help` lists, such as use, diff and experiments."""
    from rsvlm.study import studies, summary

    raise typer.Exit(studies.main(context.args) if context.args else summary.main([]))


def _check_out(out: Path | None) -> None:
    """Say now rather than after the work that a table cannot be written."""
    if out is None:
        return
    if out.suffix not in (".csv", ".jsonl", ".parquet"):
        raise ValueError(f"{out}: the table is written as .csv, .jsonl or .parquet")
    check_place(out)
    if out.suffix == ".parquet":
        from rsvlm.extras import import_extra

        import_extra("pyarrow", "a Parquet file", "give a name that ends in .csv or .jsonl")


def _check_query(ways: dict[str, object], language: str | None, languages: Path | None) -> None:
    """Raise where not one of the ways to say what is looked for was given, its text is none or its image not there."""
    told = [name for name, value in ways.items() if value is not None]
    if len(told) != 1:
        given = f"given are {' and '.join(told)}" if told else "none is given"
        raise ValueError(f"what to look for: one of {', '.join(ways)} is needed; {given}")
    if told == ["--image"] and not ways["--image"].is_file():
        raise FileNotFoundError(f"--image: {ways['--image']}: no such file")
    from rsvlm.languages import check_language

    if language is not None:
        check_language(language, "--language")
    if told == ["a text"]:
        from rsvlm.models.index import check_query

        check_query(ways["a text"])
    elif language is not None or languages is not None:
        raise ValueError("--language and --languages are for words; take them out, or give words")


def _read_words(words: str, encoder: "DualEncoder", language: str | None, languages: Path | None) -> "str | np.ndarray":
    """What is searched with: English words as they are, the vector (D,) of others; what is to know of them is said."""
    from rsvlm.languages import language_name
    from rsvlm.models.language_head import ENGLISH, languages_beside, load_languages

    folder = languages or languages_beside(encoder.name)
    if language == ENGLISH or (language is None and folder is None):
        return words
    if folder is None:
        raise ValueError(
            f"--language {language}: nothing here reads {language_name(language)}, as beside the encoder {encoder.name} there is no "
            "folder languages; give --languages, what a study's stage add_languages leaves"
        )
    try:
        loaded = load_languages(folder, encoder)
        asked = loaded.ask(words, language)
    except ModuleNotFoundError as error:
        if language is not None or languages is not None:
            raise
        typer.echo(f"read as English: {error}", err=True)
        return words
    for note in asked.notes:
        typer.echo(note, err=True)
    if asked.language == ENGLISH:
        return words
    if language is None and asked.language is not None:
        typer.echo(f"read as {language_name(asked.language)}; --language en, if it is English", err=True)
    return loaded.embed_asked([asked])[0]


def _read_scene_words(
    words: str, embeddings: "SceneEmbeddings", encoder: str | None, language: str | None, languages: Path | None
) -> "tuple[str | np.ndarray, DualEncoder]":
    """(what is searched with, as ``_read_words``; the encoder that made a scene's embeddings)."""
    from rsvlm.models.index import find_encoder

    meta = embeddings.meta
    model = find_encoder(embeddings.file, encoder, meta["encoder_fingerprint"], "cpu", made_with=meta["encoder"])
    return _read_words(words, model, language, languages), model


def _window(text: str) -> object:
    """What ``search_scene`` takes of COL,ROW,WIDTH,HEIGHT or HITS:RANK: a Window, or a hit."""
    from rsvlm.data.rasters.windows import Window
    from rsvlm.scenes.search import read_hit

    if re.fullmatch(r"\s*\d+(\s*,\s*\d+){3}\s*", text):
        return Window(*map(int, text.split(",")))
    file, _, rank = text.rpartition(":")
    if file and rank.isdecimal():
        return read_hit(file, int(rank))
    raise ValueError(
        "--window: COL,ROW,WIDTH,HEIGHT, whole numbers, pixels of the scene, or HITS:RANK, a file of hits and a rank in it, is "
        f"needed; got {text!r}"
    )


def _filters(
    bbox: str | None, start: str | None, end: str | None, cloud_cover_below: float | None, where: list[str] | None
) -> dict[str, object]:
    """What ``SceneArchive.filter`` takes of the options."""
    given = {"bbox": bbox and bbox.split(","), "start": start, "end": end, "cloud_cover_below": cloud_cover_below}
    given = {name: value for name, value in given.items() if value is not None}
    for text in where or ():
        name, found, value = text.partition("=")
        if not found or not name or name in ("bbox", "geometry", "start", "end", "cloud_cover_below", *given):
            raise ValueError(f"--where: NAME=VALUE of a property is needed, each name once; got {text!r}")
        given[name] = [value, *_numbers(value)]
    return given


def _numbers(text: str) -> list[float | bool]:
    """What else a text may mean in a table: a number, yes or no."""
    if text.lower() in ("true", "false"):
        return [text.lower() == "true"]
    try:
        return [float(text)]
    except ValueError:
        return []


def _by_options(text: object) -> str:
    """A message of the library, which speaks of the settings of Python, with the options that they are on the shell."""
    names, long = "|".join(OPTIONS), "|".join(name for name in OPTIONS if "_" in name)

    def given(found: re.Match) -> str:
        value = (found["text"] or found["list"] or "").replace(", ", ",")
        return f"{OPTIONS[found['name']]} {value}".rstrip()

    text = re.sub(rf"\b(?P<name>{names})=(?:'(?P<text>[^']*)'|\[(?P<list>[^]]*)\]|True\b)", given, str(text))
    text = re.sub(rf"(?<![\w./=-])(?:{long})(?![\w./=-])", lambda found: OPTIONS[found[0]], text)
    text = re.sub(rf"^(?:{names})(?=:)", lambda found: OPTIONS[found[0]], text)
    return text.replace("low,high", "LOW,HIGH").replace("[low, high]", "LOW,HIGH")


def _log(line: str) -> None:
    """A line on how far the work is, said as ``_by_options`` says it."""
    from rsvlm.progress import log_line

    log_line(_by_options(line))


def _tell(archive: "SceneArchive") -> "SceneArchive":
    """The archive, after what is to know of it was said."""
    for note in archive.notes:
        typer.echo(note, err=True)
    for name, why in archive.skipped[:5]:
        typer.echo(f"skipped: {name}: {_by_options(why)}", err=True)
    if len(archive.skipped) > 5:
        typer.echo(f"skipped: {len(archive.skipped) - 5} more", err=True)
    return archive


def _show(scene: "Scene") -> None:
    """How a scene is read: which bands are red, green and blue, and what becomes black and white."""
    for note in scene.notes:
        typer.echo(f"{scene.path}: {_by_options(note)}", err=True)
    low, high = (", ".join(f"{value:,.6g}" for value in values) for values in (scene.low, scene.high))
    bands = ", ".join(map(str, scene.bands))
    typer.echo(f"{scene.path}: red, green, blue are bands {bands}; black is {low}, white {high}", err=True)


def _bands(text: str | None) -> str | list[int | str] | None:
    """What ``open_scene`` takes of 3,2,1 or red,green,blue or 4 or the name of a preset."""
    if text is not None and text.replace(" ", "").isdigit():  # 3 2 1
        text = ",".join(text.split())
    if text is None or ("," not in text and not text.isdigit()):
        return text
    return [int(part) if part.strip().isdigit() else part.strip() for part in text.split(",")]


def _stretch(text: str) -> str | list[float]:
    """What ``open_scene`` takes of a name, or of two numbers with a comma."""
    if text in ("auto", "percentile", "none"):
        return text
    try:
        low, high = map(float, text.split(","))
        if -math.inf < low < high < math.inf:
            return [low, high]
    except ValueError:
        pass
    raise ValueError(
        f"--stretch: auto, percentile, none, or LOW,HIGH, two numbers with the lower first, such as 0,3000; got {text!r}"
    )


def _write(table: object, out: Path | None) -> None:
    """A table to a file, whole or not at all, or to the screen as CSV."""
    from rsvlm.safe_text import csv_text

    if out is None:
        typer.echo(csv_text(table), nl=False)
        return
    from rsvlm.files import whole_file

    with whole_file(out) as scratch:
        if out.suffix == ".csv":
            scratch.write_text(csv_text(table), encoding="utf-8")
        elif out.suffix == ".jsonl":
            table.to_json(scratch, orient="records", lines=True, force_ascii=False)
        else:
            table.to_parquet(scratch, index=False)


def _usage(error: typer.TyperException) -> str:
    """What is wrong with a command line, in one line: the option, what it takes, what was given."""
    given, option = error.__cause__, getattr(error, "param", None)
    if option is not None and hasattr(given, "errors"):  # pydantic's, of a value
        found, lowest, highest = given.errors()[0], getattr(option, "min", None), getattr(option, "max", None)
        name = option.opts[0] if option.opts[0].startswith("-") else option.human_readable_name
        if lowest is not None:
            upto = "" if highest is None else f" to {highest}"
            return f"{name}: a whole number from {lowest}{upto} is needed; got {found['input']}"
        why = found["msg"].removeprefix("Value error, ").rstrip(".")
        return f"{name}: {why}" if str(found["input"]) in why else f"{name}: {why}; got {found['input']}"
    command = getattr(getattr(error, "ctx", None), "command_path", "rsvlm")
    return f"{error.format_message().rstrip('.?')}; `{command} --help` tells what there is"


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit."""
    try:
        sys.exit(app(arguments, prog_name="rsvlm", standalone_mode=False))
    except typer.TyperException as error:
        if error.format_message():  # none: the help was asked for and shown
            typer.echo(f"rsvlm: {_usage(error)}", err=True)
        sys.exit(error.exit_code)
    except (ValueError, OSError, ModuleNotFoundError, RuntimeError) as error:  # JavaNotFound is a RuntimeError
        trouble = None if isinstance(error, ValueError) else disk_trouble(str(error), Path.cwd())
        typer.echo(f"rsvlm: {f'{trouble}, then run the command again' if trouble else _by_options(error)}", err=True)
        sys.exit(1)
