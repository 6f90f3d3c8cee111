"""Options of the commands ``rsvlm scene``, and what the library takes of what they give."""

import math
import re
from enum import StrEnum
from typing import Annotated

import typer

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


def read_window(text: str) -> object:
    """What ``search_scene`` takes of COL,ROW,WIDTH,HEIGHT or HITS:RANK: a Window, or a hit."""
    from rsvlm.data.rasters.windows import Window
    from rsvlm.scenes.queries import read_hit

    if re.fullmatch(r"\s*\d+(\s*,\s*\d+){3}\s*", text):
        return Window(*map(int, text.split(",")))
    file, _, rank = text.rpartition(":")
    if file and rank.isdecimal():
        return read_hit(file, int(rank))
    raise ValueError(
        "--window: COL,ROW,WIDTH,HEIGHT, whole numbers, pixels of the scene, or HITS:RANK, a file of hits and a rank in it, is "
        f"needed; got {text!r}"
    )


def read_filters(
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


def read_bands(text: str | None) -> str | list[int | str] | None:
    """What ``open_scene`` takes of 3,2,1 or red,green,blue or 4 or the name of a preset."""
    if text is not None and text.replace(" ", "").isdigit():  # 3 2 1
        text = ",".join(text.split())
    if text is None or ("," not in text and not text.isdigit()):
        return text
    return [int(part) if part.strip().isdigit() else part.strip() for part in text.split(",")]


def read_stretch(text: str) -> str | list[float]:
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
