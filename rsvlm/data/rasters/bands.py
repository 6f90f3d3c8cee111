"""Which bands of a raster are shown as red, green and blue, and what kind of values they hold."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rasterio
from rasterio.enums import ColorInterp

from rsvlm.data.rasters.files import SceneError
from rsvlm.data.recipes import BAND_PRESETS


def choose_bands(file: rasterio.DatasetReader, path: Path, bands) -> tuple[int, ...]:
    """The numbers, from 1, of the bands shown as red, green and blue; ``bands`` as ``open_scene`` takes them.

    Raises:
        SceneError: they are not in the file, or it does not tell which they are.
    """
    count, descriptions = file.count, file.descriptions
    told = ", ".join(f"{number} {text}" for number, text in enumerate(descriptions, start=1) if text)
    holds = f"{count} band{'s' * (count > 1)} of {file.dtypes[0]}" + (f" ({told})" if told else "")
    if bands is None:
        return _default_bands(file, path, holds)
    if isinstance(bands, str):
        return _preset_bands(file, path, bands, holds)
    chosen = []
    for band in [bands] if isinstance(bands, int) else bands:
        if isinstance(band, str):
            found = find_band([band], descriptions)
            if len(found) != 1:
                many = f"{len(found)} bands are" if found else "no band is"
                raise SceneError(f"{path}: {many} called {band!r}; it has {holds}; give a number")
            chosen += found
        elif isinstance(band, bool) or band != int(band) or not 1 <= band <= count:
            raise SceneError(f"{path}: there is no band {band!r}; it has {holds}, counted from 1")
        else:
            chosen.append(int(band))
    if len(chosen) not in (1, 3):
        raise SceneError(
            f"{path}: {len(chosen)} bands were chosen; give three, shown as red, green and blue, or one, as grey"
        )
    return tuple(chosen * 3 if len(chosen) == 1 else chosen)


def _preset_bands(file: rasterio.DatasetReader, path: Path, name: str, holds: str) -> tuple[int, ...]:
    if name not in BAND_PRESETS:
        close = difflib.get_close_matches(name, BAND_PRESETS, n=1)
        raise SceneError(
            f"{path}: no preset is called {name!r}"
            + (f"; did you mean {close[0]!r}?" if close else ";")
            + " there are "
            f"{', '.join(BAND_PRESETS)}; a list chooses bands by number or description"
        )
    preset = BAND_PRESETS[name]
    found = [find_band(names, file.descriptions) for names in preset.names]
    if all(len(own) == 1 for own in found):
        return tuple(own[0] for own in found)
    data = file.count - (alpha_of(file) > 0)
    if not any(found):
        for count in (file.count, data):
            if count in preset.numbers:
                return preset.numbers[count]
    knows = f"files of {', '.join(map(str, preset.numbers))} bands" if preset.numbers else "bands by description alone"
    raise SceneError(
        f"{path}: {holds}; the preset {name!r} knows {knows} and does not find its own here; give the numbers of the bands "
        "shown as red, green and blue: bands=[3, 2, 1]"
    )


def _default_bands(file: rasterio.DatasetReader, path: Path, holds: str) -> tuple[int, ...]:
    colours = file.colorinterp
    rgb = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    if all(colours.count(colour) == 1 for colour in rgb):
        return tuple(colours.index(colour) + 1 for colour in rgb)
    found = [find_band(names, file.descriptions) for names in BAND_PRESETS["true-colour"].names]
    # Sentinel-2 alone has numbers of two digits; B4, B3, B2 of an older Landsat are near infrared, red and green.
    sentinel = [[i for i, text in enumerate(file.descriptions, 1) if text == name] for name in ("B04", "B03", "B02")]
    for own in (found, sentinel):
        if all(len(numbers) == 1 for numbers in own):
            return tuple(numbers[0] for numbers in own)
    data = [number for number, colour in enumerate(colours, start=1) if colour != ColorInterp.alpha]
    if len(data) == 1 or (len(data) == 3 and ColorInterp.cyan not in colours):
        return tuple(data * 3)[:3]
    raise SceneError(
        f"{path}: {holds}, none of which the file calls red, green and blue; give their numbers, bands=[3, 2, 1], or a "
        f"preset: {', '.join(BAND_PRESETS)}"
    )


def _plain(text: str) -> str:
    """A band's description in lower case, B04 as b4."""
    return re.sub(r"\bb0+(\d)", r"b\1", text.strip().lower())


def find_band(names: Sequence[str], descriptions: Sequence[str | None]) -> list[int]:
    """Bands (from 1) that are called so: by the whole description, else by a word of it ("B4, 665 nm", "Red band")."""
    wanted, told = {_plain(name) for name in names}, [_plain(text or "") for text in descriptions]
    whole = [number for number, text in enumerate(told, start=1) if text in wanted]
    if whole:
        return whole
    words = [set(re.findall(r"[a-z0-9_]+", text)) for text in told]
    return [number for number, own in enumerate(words, start=1) if own & wanted and "edge" not in own]


def type_of(file: rasterio.DatasetReader, path: Path, bands: tuple[int, ...]) -> str:
    """The type of the values of these bands; several are joined by "and"."""
    kinds = sorted({file.dtypes[band - 1] for band in bands})
    for kind in kinds:
        if not re.fullmatch(r"u?int(8|16|32|64)|float(32|64)", kind):
            raise SceneError(
                f"{path}: values of {kind} are no picture; make a raster of their amplitude, or of another type: "
                "gdal_translate -ot Float32 IN OUT.tif"
            )
    return " and ".join(kinds)


def alpha_of(file: rasterio.DatasetReader) -> int:
    """The number of the alpha band, 0 where there is none."""
    return file.colorinterp.index(ColorInterp.alpha) + 1 if ColorInterp.alpha in file.colorinterp else 0


def palette_of(file: rasterio.DatasetReader, bands: tuple[int, ...]) -> np.ndarray | None:
    """uint8 (n, 4): the colours of the values of the one band that is shown; None where it has none."""
    if len(set(bands)) != 1 or file.colorinterp[bands[0] - 1] != ColorInterp.palette:
        return None
    colours = file.colormap(bands[0])
    palette = np.zeros((max(colours) + 1, 4), np.uint8)
    for value, colour in colours.items():
        palette[value] = colour
    return palette
