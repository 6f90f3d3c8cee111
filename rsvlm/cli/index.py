"""The commands ``rsvlm index``: an index that was made changes."""

from pathlib import Path
from typing import Annotated

import typer

from rsvlm.cli.options import Batch, Device, Facts, Keep, Unreadable, check_images, facts_table

index_commands = typer.Typer(
    no_args_is_help=True, help="Add images to an index that `rsvlm embed` made, take some out, compact it."
)
Folder = Annotated[Path, typer.Argument(help="Folder that `rsvlm embed` made.")]
Encoder = Annotated[str | None, typer.Option(help="The encoder that made the index; default: as it was saved.")]


@index_commands.command()
def add(
    index: Folder,
    images: Annotated[
        list[Path], typer.Argument(help="Image files, and folders of them; one that is there is replaced.")
    ],
    encoder: Encoder = None,
    facts: Facts = None,
    device: Device = "auto",
    batch_size: Batch = 32,
    unreadable: Keep = Unreadable.stop,
) -> None:
    """Add images."""
    check_images(images)
    known = facts_table(facts)
    loaded = _load(index, encoder, device)
    added = loaded.add(images, facts=known, batch_size=batch_size, unreadable=unreadable.value)
    typer.echo(f"{added} images added; {len(loaded)} images in {index}", err=True)


@index_commands.command()
def remove(
    index: Folder,
    images: Annotated[list[str], typer.Argument(help="Names of images, as `rsvlm search` gives them.")],
    encoder: Encoder = None,
) -> None:
    """Take images out; none where one of the names is not there."""
    loaded = _load(index, encoder, "cpu")
    loaded.remove(images)
    typer.echo(f"{len(loaded)} images in {index}", err=True)


@index_commands.command()
def compact(index: Folder, encoder: Encoder = None) -> None:
    """Give back the room of what was removed, and index what was added, after many of either."""
    loaded = _load(index, encoder, "cpu")
    loaded.compact()
    typer.echo(f"{len(loaded)} images in {index}", err=True)


def _load(index: Path, encoder: str | None, device: str):
    from rsvlm.models.index import load_index
    from rsvlm.models.loading import choose_device

    if index.resolve() == Path.cwd():
        raise ValueError(f"{index}: an index may be replaced whole when it changes; go out of it (cd ..) and name it")
    return load_index(index, encoder, device=str(choose_device(device)))
