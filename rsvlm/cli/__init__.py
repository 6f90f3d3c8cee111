"""The command ``rsvlm``: caption, embed, search and score without a study, scenes, and the doors to data and study.

Exit status: 0 done; 1 bad input, told in one line; 2 wrong usage.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from rsvlm.cli.index import index_commands
from rsvlm.cli.options import (
    Batch,
    Device,
    Example,
    Facts,
    Heads,
    Keep,
    Kind,
    Language,
    LeftOut,
    Out,
    Unreadable,
    Words,
    by_options,
    check_images,
    check_out,
    check_ways,
    choose_where,
    facts_table,
    leave_out,
    read_words,
    write,
)
from rsvlm.cli.scenes import scene
from rsvlm.disks import disk_trouble

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Caption and retrieve remote sensing images with vision-language models.",
)
app.add_typer(scene, name="scene")
app.add_typer(index_commands, name="index")
OTHER = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


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
    check_out(out)
    check_images(images)
    from rsvlm.models import inference

    loaded = inference.load_captioner(captioner, encoder, device=device)
    table = inference.caption(loaded, images, batch_size=batch_size, unreadable=unreadable.value)
    write(table, out)
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
    out: Annotated[Path, typer.Option("--out", help="Folder for the index.")],
    tier: Annotated[
        Kind,
        typer.Option(
            help="exact: all vectors in memory, to a million images; faiss: short codes in memory; lancedb: a table on disk, which goes on where it was killed."
        ),
    ] = Kind.exact,
    facts: Facts = None,
    memory: Annotated[float, typer.Option(min=0.001, help="What the tier faiss may take for its index, GB.")] = 4.0,
    recall: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Share of the nearest that faiss and lancedb are to find.")
    ] = 0.95,
    device: Device = "auto",
    batch_size: Batch = 32,
    unreadable: Keep = Unreadable.stop,
) -> None:
    """Make an index of images that `rsvlm search` searches."""
    from rsvlm.models import index

    check_images(images)
    index.check_free(out, tier.value)
    known = facts_table(facts)
    from rsvlm.models.loading import choose_device
    from rsvlm.models.zoo import load_encoder

    model = load_encoder(encoder, choose_device(device))
    made = index.build_index(
        model,
        images,
        tier=tier.value,
        folder=out,
        facts=known,
        memory=int(memory * 1e9),
        recall=recall,
        batch_size=batch_size,
        unreadable=unreadable.value,
    )
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
    without: LeftOut = None,
    language: Language = None,
    languages: Heads = None,
    source: Annotated[list[str] | None, typer.Option(help="Only images of this source; may be repeated.")] = None,
    split: Annotated[list[str] | None, typer.Option(help="Only images of this split; may be repeated.")] = None,
    start: Annotated[str | None, typer.Option(help="Only images from this date on: 2024, 2024-05, 2024-05-31.")] = None,
    end: Annotated[str | None, typer.Option(help="Only images up to the end of this date.")] = None,
    bbox: Annotated[
        str | None, typer.Option(help="Only images in WEST,SOUTH,EAST,NORTH, degrees; --bbox=-10,35,0,45.")
    ] = None,
    out: Out = None,
    device: Device = "auto",
) -> None:
    """Find the images that a text describes, or that look like an image."""
    check_out(out)
    check_ways(index, {"a text": query, "--image": image}, language, languages)
    where = choose_where(source, split, start, end, bbox)
    from rsvlm.models.index import load_index
    from rsvlm.models.loading import choose_device

    loaded = load_index(index, encoder, device=str(choose_device(device)))

    def read(words: str) -> object:
        return read_words(words, loaded.encoder, language, languages)

    wanted = leave_out(image if query is None else read(query), query, without, read)
    write(loaded.search(wanted, k, where=where).drop(columns="query"), out)


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
    check_out(out)
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
    write(scores.per_image if per_image else corpus, out)


models = typer.Typer(
    no_args_is_help=True, help="The field's published encoders: what is known of them, and how to get them."
)
app.add_typer(models, name="models")


@models.command("list")
def list_models(out: Out = None) -> None:
    """Show the known weights: architecture, training data, licence, address, and whether they are here."""
    check_out(out)
    from rsvlm.models import zoo

    write(zoo.list_models(), out)


@models.command("get")
def get_model(name: Annotated[str, typer.Argument(help="A name of `rsvlm models list`.")]) -> None:
    """Fetch weights and check them; needs the network."""
    from rsvlm.models import zoo

    typer.echo(zoo.get_model(name, lambda line: typer.echo(line, err=True)))


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
        typer.echo(f"rsvlm: {f'{trouble}, then run the command again' if trouble else by_options(error)}", err=True)
        sys.exit(1)
