"""Options that several commands have, and how what they give is checked, read, said and written."""

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rsvlm.disks import check_place

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import pandas as pd

    from rsvlm.models.encoders import DualEncoder
    from rsvlm.models.image_filters import Where

# What the library calls a setting in its messages, and the option that it is here.
OPTIONS = {
    name: f"--{name.replace('_', '-')}"
    for name in (
        "asset", "bands", "batch_size", "bbox", "cloud_cover_below", "end", "facts", "memory", "min_valid", "missing", "most_windows", "online",
        "overlap", "precision", "recall", "size", "source", "split", "start", "stretch", "tier", "unreadable", "views",
    )
} | {"sizes": "--size", "most_sentences": "--sentences"}  # fmt: skip
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


LeftOut = Annotated[
    str | None,
    typer.Option(
        "--without",
        metavar="WORDS",
        help="What the images are not to show; in the words themselves 'a lake without boats' finds boats first.",
    ),
]


Facts = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="What is known of the images, .csv or .parquet: image (path or file name) and any of source, split, date, west, south, "
        "east, north, or longitude and latitude.",
    ),
]


class Kind(StrEnum):
    """The tiers that an index can be made of."""

    exact = "exact"
    faiss = "faiss"
    lancedb = "lancedb"


class Unreadable(StrEnum):
    """What to do with a file that is no whole image."""

    stop = "raise"
    keep = "keep"


Keep = Annotated[
    Unreadable, typer.Option(help="'raise' stops at a file that is no whole image; 'keep' goes on and tells of it.")
]


def check_out(out: Path | None) -> None:
    """Say now rather than after the work that a table cannot be written."""
    if out is None:
        return
    if out.suffix not in (".csv", ".jsonl", ".parquet"):
        raise ValueError(f"{out}: the table is written as .csv, .jsonl or .parquet")
    check_place(out)


def check_images(images: "list[Path]") -> None:
    """Say now rather than after a model was loaded that a file or folder is not there."""
    for path in images:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")


def check_ways(searched: Path, ways: dict[str, object], language: str | None, languages: Path | None) -> None:
    """Raise where what is searched is not there, not one way to say what for was given, its text is none or its image not there."""
    if not searched.exists():
        raise FileNotFoundError(f"{searched}: no such file or folder; what is searched comes first, then what for")
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
        from rsvlm.safe_text import check_query

        check_query(ways["a text"])
    elif language is not None or languages is not None:
        raise ValueError("--language and --languages are for words; take them out, or give words")


def read_words(words: str, encoder: "DualEncoder", language: str | None, languages: Path | None) -> "str | np.ndarray":
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


def choose_where(
    source: list[str] | None, split: list[str] | None, start: str | None, end: str | None, bbox: str | None
) -> "Where | None":
    """Which images of an index may be found; None where no option says it."""
    from rsvlm.models.image_filters import Where

    given = {"source": source or None, "split": split or None, "start": start, "end": end}
    given |= {"bbox": None if bbox is None else bbox.split(",")}
    return Where(**given) if any(value is not None for value in given.values()) else None


def facts_table(path: Path | None) -> "pd.DataFrame | None":
    """What a file tells of images."""
    from rsvlm.models.image_filters import read_facts

    return None if path is None else read_facts(path)


def leave_out(
    wanted: object, query: str | None, without: str | None, read: "Callable[[str], str | np.ndarray]"
) -> "object":
    """What is searched with, less what is to be left out; where the words themselves say "without", that is told.

    Args:
        query: the words that ``wanted`` was read from, None where it is no words.
        read: what makes a query of the words ``without``.
    """
    from rsvlm.models.queries import Without, split_without
    from rsvlm.safe_text import check_query

    if without is None:
        unwanted = split_without(query)[1] if query is not None else ""
        if unwanted:
            typer.echo(f"an encoder reads “without” much as “with”; to leave it out: --without '{unwanted}'", err=True)
        return wanted
    check_query(without, "--without")
    return Without(wanted, read(without))


def by_options(text: object) -> str:
    """A message of the library, which speaks of the settings of Python, with the options that they are on the shell."""
    names, long = "|".join(OPTIONS), "|".join(name for name in OPTIONS if "_" in name)

    def given(found: re.Match) -> str:
        value = (found["text"] or found["list"] or "").replace(", ", ",")
        return f"{OPTIONS[found['name']]} {value}".rstrip()

    text = re.sub(rf"\b(?P<name>{names})=(?:'(?P<text>[^']*)'|\[(?P<list>[^]]*)\]|True\b)", given, str(text))
    text = re.sub(rf"(?<![\w./=-])(?:{long})(?![\w./=-])", lambda found: OPTIONS[found[0]], text)
    text = re.sub(rf"^(?:{names})(?=:)", lambda found: OPTIONS[found[0]], text)
    return text.replace("low,high", "LOW,HIGH").replace("[low, high]", "LOW,HIGH")


def write(table: object, out: Path | None) -> None:
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
