"""How a raster's values become a picture: which bands are shown, and which values are black and white.

A source of a study tells it for all its images alike (``reading``), where their files do not: chips of 13 bands, or of
16 bits that do not fill their range. Such an image has the path ``FILE::bands=4,3,2;stretch=0,3000`` in the image
table, so that whatever knows an image by its path knows how it is read. Nothing heavy is imported here: settings are
checked before a stage starts.
"""

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

BETWEEN = "::"
_READ = re.compile(rf"(.+){BETWEEN}(bands=[^:;/]+;stretch=[^:;/]+)", re.DOTALL)
_NAME = re.compile(r"[^,;:/=]+")  # a band's description that may stand in a path


@dataclass(frozen=True)
class BandPreset:
    """Which bands a sensor's picture is made of."""

    names: tuple[tuple[str, ...], ...]  # of the bands shown as red, green and blue; any of them counts
    numbers: Mapping[int, tuple[int, int, int]]  # number of bands of the file -> bands, where it names none


_RED, _GREEN, _BLUE, _NIR = ("red",), ("green",), ("blue",), ("nir", "near infrared", "near-infrared")


def _preset(red, green, blue, numbers) -> BandPreset:
    return BandPreset((red, green, blue), MappingProxyType(numbers))


BAND_PRESETS: Mapping[str, BandPreset] = MappingProxyType({
    "true-colour": _preset(_RED, _GREEN, _BLUE, {}),
    "false-colour": _preset(_NIR, _RED, _GREEN, {}),
    "sentinel-2": _preset(
        ("b4", *_RED), ("b3", *_GREEN), ("b2", *_BLUE),
        # all (EuroSAT), level 2A, 10 and 20 m (BigEarthNet), 10 m
        {13: (4, 3, 2), 12: (4, 3, 2), 10: (3, 2, 1), 4: (3, 2, 1)},
    ),
    "sentinel-2-false-colour": _preset(
        ("b8", *_NIR), ("b4", *_RED), ("b3", *_GREEN), {13: (8, 4, 3), 12: (8, 4, 3), 10: (7, 3, 2), 4: (4, 3, 2)}
    ),
    "landsat-8": _preset(
        ("b4", "sr_b4", *_RED), ("b3", "sr_b3", *_GREEN), ("b2", "sr_b2", *_BLUE),
        dict.fromkeys(range(7, 12), (4, 3, 2)),
    ),
    "landsat-8-false-colour": _preset(
        ("b5", "sr_b5", *_NIR), ("b4", "sr_b4", *_RED), ("b3", "sr_b3", *_GREEN),
        dict.fromkeys(range(7, 12), (5, 4, 3)),
    ),
    "planetscope": _preset(_RED, _GREEN, _BLUE, {4: (3, 2, 1), 8: (6, 4, 2)}),
    "planetscope-false-colour": _preset(_NIR, _RED, _GREEN, {4: (4, 3, 2), 8: (8, 6, 4)}),
    "naip": _preset(_RED, _GREEN, _BLUE, {3: (1, 2, 3), 4: (1, 2, 3)}),
    "naip-false-colour": _preset(_NIR, _RED, _GREEN, {4: (4, 1, 2)}),
})  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """Which bands are shown as red, green and blue, and the values of each that become 0 and 255."""

    bands: tuple[int | str, ...] | str  # numbers from 1 or descriptions, three or one; or a preset's name
    stretch: tuple[tuple[float, float], ...]  # one pair for all bands, or one a band

    def __str__(self) -> str:
        bands = self.bands if isinstance(self.bands, str) else ",".join(map(str, self.bands))
        return f"bands={bands};stretch={','.join(f'{value:.10g}' for pair in self.stretch for value in pair)}"


def recipe_of(values: object) -> Recipe:
    """A checked Recipe of the setting ``reading``.

    Raises:
        ValueError: a key that is missing or unknown, bands or a stretch that cannot be; says what to write.
    """
    example = "reading: {bands: [4, 3, 2], stretch: [0, 3000]}"
    if not isinstance(values, Mapping) or set(values) != {"bands", "stretch"}:
        raise ValueError(f"reading: needs bands and stretch and nothing else, as in {example}; is {values!r}")
    return Recipe(_check_bands(values["bands"], example), _check_stretch(values["stretch"], example))


def _check_bands(bands: object, example: str) -> tuple[int | str, ...] | str:
    if isinstance(bands, str):
        if bands not in BAND_PRESETS:
            close = difflib.get_close_matches(bands, BAND_PRESETS, n=1)
            raise ValueError(
                f"reading: unknown preset of bands {bands!r}" + (f" (did you mean {close[0]!r}?)" if close else "")
                + f"; there are {', '.join(BAND_PRESETS)}, and lists as in {example}"
            )  # fmt: skip
        return bands
    fits = isinstance(bands, list | tuple) and len(bands) in (1, 3)
    if not fits or not all(
        (isinstance(band, int) and not isinstance(band, bool) and band > 0)
        or (isinstance(band, str) and _NAME.fullmatch(band) and not band.isdecimal() and band.strip() == band)
        for band in bands
    ):
        raise ValueError(
            f"reading: bands must be three, shown as red, green and blue, or one, shown as grey, by number from 1 or by "
            f"description, or a preset's name, as in {example}; is {bands!r}"
        )
    if len(bands) == 1 and bands[0] in BAND_PRESETS:
        raise ValueError(f"reading: the preset {bands[0]!r} stands without a list: bands: {bands[0]}")
    return tuple(bands)


def _check_stretch(stretch: object, example: str) -> tuple[tuple[float, float], ...]:
    pairs = [stretch] if isinstance(stretch, list | tuple) and len(stretch) == 2 else stretch
    try:
        found = tuple((float(low), float(high)) for low, high in pairs)
    except (TypeError, ValueError):
        found = ()
    fits = len(found) in (1, 3) and all(
        math.isfinite(low) and math.isfinite(high) and low < high for low, high in found
    )
    if isinstance(stretch, str) or not fits:
        raise ValueError(
            f"reading: stretch must be [low, high], or one such pair for each of three bands, as in {example}; is "
            f"{stretch!r}. One stretch holds for all images of a source: one for each image would make bright of dark. "
            "rsvlm.open_scene(IMAGE, bands=...) measures low and high of an image"
        )
    return found


def read_as(path: Path, recipe: Recipe) -> Path:
    """The path of an image that is read so."""
    return path.with_name(f"{path.name}{BETWEEN}{recipe}")


def split_reading(path: Path) -> tuple[Path, Recipe | None]:
    """The path without what tells how it is read, and that; None where it tells nothing."""
    match = _READ.fullmatch(str(path)) if f"{BETWEEN}bands=" in path.name else None
    if not match:
        return path, None
    bands, stretch = (part.partition("=")[2] for part in match[2].split(";"))
    values = stretch.split(",")
    chosen = bands if bands in BAND_PRESETS else [int(one) if one.isdecimal() else one for one in bands.split(",")]
    return Path(match[1]), recipe_of({"bands": chosen, "stretch": list(zip(values[::2], values[1::2], strict=True))})
