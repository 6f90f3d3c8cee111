"""The values of each band that become 0 and 255: given, those of the type, or percentiles of the whole raster."""

import math
from typing import NamedTuple

import numpy as np
import rasterio
from rasterio.enums import Resampling

from rsvlm.data.rasters.files import SceneError
from rsvlm.data.rasters.windows import PART, BandReader, Window

SAMPLE_SIDE = 1024  # pixels; the stretch is taken from about this many squared
BLOCKS = 1024  # that are read at most for the stretch of a file without overviews
CLIPPED = 0.9  # share of a band's pixels that a given stretch makes black, or white: beyond, it was hardly meant so


class Stretch(NamedTuple):
    """Of each band the values that become 0 and 255, and sentences on what is odd about it."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    notes: tuple[str, ...] = ()


def find_stretch(
    reader: BandReader, file: rasterio.DatasetReader, stretch: object, percentiles: tuple[float, float]
) -> Stretch:
    """The stretch of the three bands; ``stretch`` and ``percentiles`` as ``open_scene`` takes them.

    Raises:
        SceneError: it cannot be, or no pixel has data to take it from.
    """
    if not isinstance(stretch, str):
        return Stretch(*_check_stretch(stretch, str(reader.path)))
    if stretch not in ("auto", "percentile", "none"):
        raise SceneError(
            f"{reader.path}: unknown stretch {stretch!r}; there are auto, percentile, none, and [low, high]"
        )
    white = file.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES" and reader.palette is None
    if reader.palette is not None or (reader.type == "uint8" and stretch != "percentile"):
        bits = int(file.tags(reader.bands[0], ns="IMAGE_STRUCTURE").get("NBITS", 8))
        full = 255.0 if reader.palette is not None else float(2**bits - 1)
        return Stretch((full,) * 3, (0.0,) * 3) if white else Stretch((0.0,) * 3, (full,) * 3)
    if stretch == "none":
        raise SceneError(
            f"{reader.path}: values of {reader.type} become 0 to 255 by a stretch alone; give stretch='percentile', or "
            "stretch=[low, high]"
        )
    low, high, notes = _percentiles(reader, file, percentiles)
    return Stretch(high, low, notes) if white else Stretch(low, high, notes)


def find_clipping(
    reader: BandReader, file: rasterio.DatasetReader, low: tuple[float, ...], high: tuple[float, ...]
) -> str:
    """Which bands a stretch makes nearly all black or white, with its values and theirs; empty where it makes none so."""
    told = {}
    for number, own, black, white in zip(reader.bands, _sample(reader, file), low, high):
        shown = apply_stretch(own, black, white)
        shares = {
            colour: float((shown == value).mean()) for colour, value in (("black", 0), ("white", 255)) if own.size
        }
        colour = max(shares, key=shares.get, default="")
        if colour and shares[colour] >= CLIPPED:
            told[number] = (
                f"{shares[colour]:.0%} of band {number} {colour} (stretch {black:g},{white:g}; its values run from "
                f"{own.min():,.6g} to {own.max():,.6g})"
            )
    return ", ".join(told.values())


def _percentiles(reader: BandReader, file: rasterio.DatasetReader, percentiles: tuple[float, float]) -> Stretch:
    try:
        lower, upper = map(float, percentiles)
    except (TypeError, ValueError):
        lower, upper = 0.0, 0.0
    if not 0 <= lower < upper <= 100:
        raise SceneError(f"{reader.path}: percentiles are two of 0 to 100, the lower first; given is {percentiles!r}")
    low, high, notes = [], [], []
    for number, own in zip(reader.bands, _sample(reader, file)):
        if not own.size:
            raise SceneError(
                f"{reader.path}: no pixel has data (all are nodata, masked or NaN), so there is nothing to take a "
                "stretch from; leave the scene out, or give stretch=[low, high]"
            )
        a, b = (float(value) for value in np.percentile(own, (lower, upper)))
        if a == b:
            a, b = float(own.min()), float(own.max())
        if a == b:
            a, b = a, a + max(1.0, abs(a) / 255)
            notes.append(f"band {number} is {own[0]:g} everywhere and shows black")
        low.append(a)
        high.append(b)
    return Stretch(tuple(low), tuple(high), tuple(dict.fromkeys(notes)))


def _sample(reader: BandReader, file: rasterio.DatasetReader) -> list[np.ndarray]:
    """Valid values of each band, about SAMPLE_SIDE squared at most.

    All pixels of a small scene, a small overview of a large one, or where it has none blocks that lie evenly.
    """
    whole, total = Window(0, 0, reader.width, reader.height), reader.width * reader.height
    if total <= PART:
        values, valid = reader.read_native(file, whole, whole[2:], Resampling.nearest)
        return [band[valid] for band in values]
    side = max(reader.width, reader.height)
    if any(side / factor <= 4 * SAMPLE_SIDE for factor in file.overviews(reader.bands[0])):
        scale = SAMPLE_SIDE / side
        size = max(1, round(reader.width * scale)), max(1, round(reader.height * scale))
        values, valid = reader.read_native(
            file, whole, size, Resampling.nearest
        )  # no more averages than the overview's
        return [band[valid] for band in values]
    height, width = file.block_shapes[reader.bands[0] - 1]
    columns, rows = math.ceil(reader.width / width), math.ceil(reader.height / height)
    across = min(columns, int(math.sqrt(BLOCKS)))
    down = min(rows, BLOCKS // across)
    across = min(columns, BLOCKS // down)
    spared = max(1.0, across * down * width * height / SAMPLE_SIDE**2)
    step_down = min(height, math.ceil(math.sqrt(spared)))
    step_across = math.ceil(spared / step_down)
    found: list[list[np.ndarray]] = [[], [], []]
    for row in np.linspace(0, rows - 1, down).round().astype(int).tolist():
        for column in np.linspace(0, columns - 1, across).round().astype(int).tolist():
            left, top = column * width, row * height
            block = Window(left, top, min(width, reader.width - left), min(height, reader.height - top))
            values, valid = reader.read_native(file, block, block[2:], Resampling.nearest)
            for own, band in zip(found, values):
                own.append(band[::step_down, ::step_across][valid[::step_down, ::step_across]])
    return [np.concatenate(own) for own in found]


def _check_stretch(stretch: object, where: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Low and high of each band, of [low, high] or one such pair a band."""
    try:
        pairs = np.array(stretch, dtype=np.float64)
    except (TypeError, ValueError):
        pairs = np.zeros(0)
    pairs = np.tile(pairs.reshape(1, 2), (3, 1)) if pairs.size == 2 else pairs
    if pairs.shape != (3, 2) or not np.isfinite(pairs).all() or not (pairs[:, 0] < pairs[:, 1]).all():
        raise SceneError(
            f"{where}: a stretch is [low, high] with low below high, or one such pair for each of the three bands; "
            f"given is {stretch!r}"
        )
    return tuple(pairs[:, 0].tolist()), tuple(pairs[:, 1].tolist())


def apply_stretch(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """uint8; low -> 0, high -> 255, linear, rounded, clipped."""
    if values.dtype == np.uint8 and (low, high) == (0.0, 255.0):
        return values
    exact = np.float32 if values.dtype in (np.uint8, np.int8, np.uint16, np.int16, np.float32) else np.float64
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = (values.astype(exact) - exact(low)) * exact(255) / exact(high - low)
        return np.clip(np.rint(np.nan_to_num(scaled, posinf=255, neginf=0)), 0, 255).astype(np.uint8)
