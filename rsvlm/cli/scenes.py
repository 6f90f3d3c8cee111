"""The commands ``rsvlm scene``: archives listed, scenes embedded, searched and captioned."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rsvlm.cli.options import (
    Batch,
    Device,
    Example,
    Heads,
    Keep,
    Kind,
    Language,
    LeftOut,
    Unreadable,
    Words,
    by_options,
    check_ways,
    leave_out,
    read_words,
    write,
)
from rsvlm.cli.scene_options import (
    Asset,
    Bands,
    Box,
    Clouds,
    End,
    MinValid,
    Missing,
    Overlap,
    Skip,
    Start,
    Stretch,
    Where,
    read_bands,
    read_filters,
    read_stretch,
    read_window,
)
from rsvlm.disks import check_place

if TYPE_CHECKING:
    import numpy as np

    from rsvlm.data.rasters.scene import Scene
    from rsvlm.models.encoders import DualEncoder
    from rsvlm.scenes.archive import SceneArchive
    from rsvlm.scenes.window_files import SceneEmbeddings

scene = typer.Typer(
    no_args_is_help=True, help="Scenes: georeferenced images of any size, captioned, and searched by text or picture."
)


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
    found = _tell(found.filter(**read_filters(bbox, start, end, cloud_cover_below, where)))
    if out is not None:
        found.save(out)
    else:
        write(found.scenes.drop(columns=found.scenes.geometry.name), None)
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
    tier: Annotated[
        Kind | None,
        typer.Option(
            help="Of an archive: faiss or lancedb keep all windows in a tier that is searched without reading every file."
        ),
    ] = None,
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

    look = {"bands": read_bands(bands), "stretch": read_stretch(stretch)}
    how = {"sizes": tuple(size or (256,)), "overlap": overlap, "min_valid": min_valid, "views": views}
    how |= {"precision": precision, "batch_size": batch_size}
    filters = read_filters(bbox, start, end, cloud_cover_below, where)
    if path.is_dir() or path.suffix.lower() in (".json", ".geojson"):
        from rsvlm.scenes.archive import open_archive
        from rsvlm.scenes.archive_embedding import embed_archive

        if out.suffix == ".parquet":
            raise ValueError(f"{out}: the embeddings of an archive are a folder of files; give a folder's name")
        check_settings(**how)
        found = _tell(open_archive(path, asset=asset, missing=missing.value).filter(**filters))
        model = load_encoder(encoder, choose_device(device))
        done = embed_archive(model, found, out, unreadable=unreadable.value, tier=tier, log=_log, **look, **how)
        left = f", {len(done.skipped)} could not be embedded" if done.skipped else ""
        typer.echo(f"{done.scenes['windows'].sum()} windows of {len(done)} scenes in {out}{left}", err=True)
        return
    if filters or asset is not None or tier is not None:
        raise ValueError(
            f"{path}: one scene, so there is nothing to choose from; --asset, --tier and filters are for archives"
        )
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
    without: LeftOut = None,
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
    from rsvlm.scenes.places import PLACES, RASTERS, add_centres, check_ending, write_places
    from rsvlm.scenes.queries import nearest_window, read_as_scene
    from rsvlm.scenes.search import find_peaks, outline, search_scene, write_surface

    for file, endings in (
        (out, PLACES),
        (outlines, PLACES),
        (surface, RASTERS),
    ):
        if file is not None:
            check_ending(file, endings)
            check_place(file)
    check_ways(embeddings, {"a text": query, "--image": image, "--window": window}, language, languages)
    if query is not None and Path(query).is_file():
        typer.echo(f"{query}: taken as words; it is a file, too: --image FILE looks for what is like it", err=True)
    if image is not None and read_as_scene(image):
        typer.echo(f"{image}: read as the scene was, the same bands and stretch", err=True)
    wanted = read_window(window) if window is not None else image if query is None else query
    filters = read_filters(bbox, start, end, cloud_cover_below, where)
    from rsvlm.scenes.window_files import load_scene_embeddings

    if embeddings.is_dir():
        if surface is not None or outlines is not None or threshold is not None:
            raise ValueError(
                f"{embeddings}: an archive; --surface, --outlines and --threshold are for one scene: give one of its files"
            )
        from rsvlm.scenes.archive_embedding import load_archive
        from rsvlm.scenes.archive_search import rank_scenes, search_archive

        archive = _tell(load_archive(embeddings))
        if len(archive):
            first = load_scene_embeddings(embeddings / archive.scenes["file"].iloc[0])
            wanted, encoder = _read_scene_query(wanted, query, without, first, encoder, language, languages)
        if scenes:
            places = rank_scenes(archive, wanted, encoder, **filters).head(k)
        else:
            places = search_archive(archive, wanted, encoder, k=k, **filters)
        if out is not None:
            write_places(places, out)
            typer.echo(f"{len(places)} places in {out}", err=True)
        else:
            write(places.drop(columns=places.geometry.name), None)
        return
    if filters or scenes:
        raise ValueError(f"{embeddings}: one scene; --scenes and filters are for archives")
    loaded = load_scene_embeddings(embeddings)
    example = wanted
    wanted, encoder = _read_scene_query(wanted, query, without, loaded, encoder, language, languages)
    found = search_scene(loaded, wanted, encoder)
    if query is not None:  # the words, also where their vector was looked for
        found = replace(found, query=query if without is None else f"{query} without {without}")
    if window is not None:
        stands = ",".join(map(str, nearest_window(loaded, example)))
        typer.echo(f"looked for: what is like the embedded window {stands}", err=True)
    places = find_peaks(found, k, threshold=threshold)
    if surface is not None:
        write_surface(found, surface)
    if outlines is not None:
        write_places(outline(found, threshold), outlines)
    if out is not None:
        write_places(places, out)
        typer.echo(f"{len(places)} places in {out}", err=True)
    else:
        write(add_centres(places), None)


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
    from rsvlm.scenes.places import PLACES, check_ending, write_places

    if out is not None:
        check_ending(out, PLACES)
        check_place(out)
    from rsvlm.data.rasters.scene import open_scene
    from rsvlm.models.inference import load_captioner
    from rsvlm.scenes.captioning import caption_scene, check_windows

    how = {"overlap": overlap, "min_valid": min_valid, "most_windows": most_windows, "most_sentences": sentences}

    with open_scene(path, bands=read_bands(bands), stretch=read_stretch(stretch)) as opened:
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
        write_places(said.places(), out)


def _read_scene_query(
    wanted: object,
    query: str | None,
    without: str | None,
    embeddings: "SceneEmbeddings",
    encoder: str | None,
    language: str | None,
    languages: Path | None,
) -> "tuple[object, DualEncoder | str | None]":
    """(what is searched with; the encoder that made a scene's embeddings, where words are to be read)."""
    if query is None and without is None:
        return wanted, encoder
    from rsvlm.models.zoo import find_encoder

    meta = embeddings.meta
    model = find_encoder(embeddings.file, encoder, meta["encoder_fingerprint"], "cpu", made_with=meta["encoder"])

    def read(words: str) -> "str | np.ndarray":
        return read_words(words, model, language, languages)

    return leave_out(wanted if query is None else read(query), query, without, read), model


def _log(line: str) -> None:
    """A line on how far the work is, said as ``by_options`` says it."""
    from rsvlm.progress import log_line

    log_line(by_options(line))


def _tell(archive: "SceneArchive") -> "SceneArchive":
    """The archive, after what is to know of it was said."""
    for note in archive.notes:
        typer.echo(note, err=True)
    for name, why in archive.skipped[:5]:
        typer.echo(f"skipped: {name}: {by_options(why)}", err=True)
    if len(archive.skipped) > 5:
        typer.echo(f"skipped: {len(archive.skipped) - 5} more", err=True)
    return archive


def _show(scene: "Scene") -> None:
    """How a scene is read: which bands are red, green and blue, and what becomes black and white."""
    for note in scene.notes:
        typer.echo(f"{scene.path}: {by_options(note)}", err=True)
    low, high = (", ".join(f"{value:,.6g}" for value in values) for values in (scene.low, scene.high))
    bands = ", ".join(map(str, scene.bands))
    typer.echo(f"{scene.path}: red, green, blue are bands {bands}; black is {low}, white {high}", err=True)
