"""The command ``rsvlm``: caption, embed, search and score without a study, scenes, and the doors to data and study.

Exit status: 0 done; 1 bad input, told in one line; 2 wrong usage.
"""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Caption and retrieve remote sensing images with vision-language models.",
)
OTHER = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
Out = Annotated[
    Path | None, typer.Option("--out", help="File for the table: .csv, .jsonl or .parquet; without it CSV is printed.")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Batch = Annotated[int, typer.Option(min=1, max=4096, help="Images at a time.")]


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
    query: Annotated[str, typer.Argument(help="What to look for, in words; or an image file with --image.")],
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="How many images.")] = 10,
    image: Annotated[bool, typer.Option("--image", help="The query is an image file.")] = False,
    encoder: Annotated[
        str | None, typer.Option(help="The encoder that made the index; default: as it was saved.")
    ] = None,
    out: Out = None,
    device: Device = "auto",
) -> None:
    """Find the images that a text describes, or that look like an image."""
    _check_out(out)
    from rsvlm.models.index import load_index
    from rsvlm.models.loading import choose_device

    loaded = load_index(index, encoder, device=str(choose_device(device)))
    _write(loaded.search(Path(query) if image else query, k).drop(columns="query"), out)


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


scene = typer.Typer(no_args_is_help=True, help="Scenes: georeferenced images of any size, searched by text or picture.")
app.add_typer(scene, name="scene")


@scene.command("embed")
def embed_a_scene(
    path: Annotated[Path, typer.Argument(metavar="SCENE", help="GeoTIFF, COG, JPEG 2000, VRT or a plain image.")],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="File for the windows' embeddings: .parquet (GeoParquet).")
    ],
    encoder: Annotated[str, typer.Option(help="Folder or name of an encoder.")],
    size: Annotated[
        list[int] | None, typer.Option(min=1, help="Side of the windows, pixels; more than once: levels.")
    ] = None,
    overlap: Annotated[float, typer.Option(help="Share of a side that two neighbours have in common.")] = 0.5,
    bands: Annotated[
        str | None, typer.Option(help="Red, green and blue: 3,2,1, or names, or a preset such as sentinel-2.")
    ] = None,
    stretch: Annotated[
        str, typer.Option(help="auto, percentile, none, or LOW,HIGH: the values that become black and white.")
    ] = "auto",
    min_valid: Annotated[float, typer.Option(help="Windows with a smaller share of valid pixels are left out.")] = 0.5,
    views: Annotated[int, typer.Option(help="Turned and mirrored views of a window, averaged: 1, 2, 4 or 8.")] = 1,
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    device: Device = "auto",
    batch_size: Batch = 32,
) -> None:
    """Embed a scene's windows, so that `rsvlm scene search` can search it."""
    from rsvlm.models.loading import choose_device
    from rsvlm.models.zoo import load_encoder
    from rsvlm.scenes.embedding import embed_scene
    from rsvlm.scenes.reading import open_scene

    with open_scene(path, bands=_bands(bands), stretch=_stretch(stretch)) as opened:
        for note in opened.notes:
            typer.echo(f"{path}: {note}", err=True)
        made = embed_scene(
            load_encoder(encoder, choose_device(device)),
            opened,
            out,
            sizes=tuple(size or (256,)),
            overlap=overlap,
            min_valid=min_valid,
            views=views,
            precision=precision,
            batch_size=batch_size,
        )
    left_out = ", ".join(f"{count} left out ({why})" for why, count in made.meta["skipped"].items() if count)
    typer.echo(f"{len(made)} windows in {out}{left_out and ': ' + left_out}", err=True)


@scene.command("search")
def search_a_scene(
    embeddings: Annotated[Path, typer.Argument(help="File that `rsvlm scene embed` made.")],
    query: Annotated[str, typer.Argument(help="What to look for, in words; or an image file with --image.")],
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="How many places at most.")] = 10,
    image: Annotated[bool, typer.Option("--image", help="The query is an image file.")] = False,
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
    threshold: Annotated[float | None, typer.Option(help="Only places with this cosine or more.")] = None,
) -> None:
    """Find the places of a scene that a text describes, or that look like an image."""
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
    from rsvlm.scenes.embedding import load_scene_embeddings

    found = search_module.search_scene(load_scene_embeddings(embeddings), Path(query) if image else query, encoder)
    places = search_module.find_peaks(found, k, threshold=threshold)
    if surface is not None:
        search_module.write_surface(found, surface)
    if outlines is not None:
        search_module.write_places(search_module.outline(found, threshold), outlines)
    if out is not None:
        search_module.write_places(places, out)
    else:
        _write(search_module.add_centres(places), None)


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
    if out is not None and out.suffix not in (".csv", ".jsonl", ".parquet"):
        raise ValueError(f"{out}: the table is written as .csv, .jsonl or .parquet")
    if out is not None and out.suffix == ".parquet":
        from rsvlm.extras import import_extra

        import_extra("pyarrow", "a Parquet file", "give a name that ends in .csv or .jsonl")


def _bands(text: str | None) -> str | list[int | str] | None:
    """What ``open_scene`` takes of 3,2,1 or red,green,blue or 4 or the name of a preset."""
    if text is None or ("," not in text and not text.isdigit()):
        return text
    return [int(part) if part.strip().isdigit() else part.strip() for part in text.split(",")]


def _stretch(text: str) -> str | list[float]:
    """What ``open_scene`` takes of a name, or of two numbers with a comma."""
    try:
        return [float(part) for part in text.split(",")] if "," in text else text
    except ValueError:
        raise ValueError(f"--stretch: auto, percentile, none, or two numbers such as 0,3000; got {text!r}") from None


def _write(table: object, out: Path | None) -> None:
    """A table to a file, whole or not at all, or to the screen as CSV."""
    if out is None:
        typer.echo(table.to_csv(index=False), nl=False)
        return
    from rsvlm.files import whole_file

    with whole_file(out) as scratch:
        if out.suffix == ".csv":
            table.to_csv(scratch, index=False)
        elif out.suffix == ".jsonl":
            table.to_json(scratch, orient="records", lines=True, force_ascii=False)
        else:
            table.to_parquet(scratch, index=False)


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit."""
    try:
        app(arguments, standalone_mode=True)
    except (ValueError, OSError, ModuleNotFoundError, RuntimeError) as error:  # JavaNotFound is a RuntimeError
        typer.echo(f"rsvlm: {error}", err=True)
        sys.exit(1)
