"""The Earth searched by text, as figures and a sentence."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from rsvlm.data.rasters.scene import Scene
from rsvlm.scenes.earth import METHODS, Found
from rsvlm.viewing.plots import INK, MARKERS, MUTED, SEQUENTIAL, figure, plain_text, series_colours
from rsvlm.viewing.results import Result, listed, percent
from rsvlm.viewing.scene_page import SceneResult, render_scene_page

NAMES = {"text": "text", "mean_colour": "mean colour", "nearest_tile": "nearest training tile"}
WORLD = (-180, 180, -90, 90)


def earth_figure(picture: np.ndarray, found: Sequence[Found]) -> Figure:
    """The globe in grey, one map below the other a query: how like each place is, and the best hits numbered.

    Args:
        picture: uint8 (H, W, 3) of the whole Earth.
    """
    grey = np.asarray(picture).mean(2) / 255
    drawn, axes = figure(8.4, 3.1 * len(found), rows=len(found), columns=1, squeeze=False, layout="constrained")
    for place, own in zip(axes.flat, found, strict=True):
        surface = own.surface
        place.imshow(0.25 + 0.6 * grey, cmap="gray", vmin=0, vmax=1, extent=WORLD, aspect="equal")
        left, top = surface.transform.c, surface.transform.f
        extent = (
            left,
            left + surface.transform.a * surface.values.shape[1],
            top + surface.transform.e * surface.values.shape[0],
            top,
        )
        low, high = np.nanquantile(surface.values, [0.5, 0.999])
        shown = place.imshow(
            np.ma.masked_invalid(np.where(surface.values >= low, surface.values, np.nan)),
            cmap=SEQUENTIAL, vmin=low, vmax=high, extent=extent, alpha=0.85, interpolation="nearest",
        )  # fmt: skip
        for hit in own.hits.itertuples():
            middle = hit.geometry.centroid
            place.annotate(
                str(hit.rank), (middle.x, middle.y), ha="center", va="center", fontsize=7, color="white",
                bbox={"boxstyle": "circle,pad=0.2", "fc": INK, "ec": "white", "lw": 0.6},
            )  # fmt: skip
        place.set(xlim=WORLD[:2], ylim=(-60, 85), title=plain_text(f"“{surface.query}”"))
        place.tick_params(color=MUTED)
        place.grid(False)
        drawn.colorbar(shown, ax=place, label="cosine (upper half)", shrink=0.8)
    return drawn


def land_figure(found: Mapping[str, object], measure: str = "average_precision") -> Figure:
    """How well each class of land is found: a dot a method with its interval over blocks of land, a bar by chance."""
    classes = [name for name, own in found["classes"].items() if "too_few" not in own]
    colours = series_colours(METHODS)
    drawn, axes = figure(7.2, 1.4 + 0.5 * len(classes))
    heights = {name: len(classes) - 1 - row for row, name in enumerate(classes)}
    for number, method in enumerate(METHODS):
        rows = [(heights[name], found["classes"][name][method]) for name in classes if method in found["classes"][name]]
        shift = 0.6 * (0.5 - (number + 0.5) / len(METHODS))
        values = np.array([score[measure]["value"] for _, score in rows])
        ends = [(score[measure]["low"], score[measure]["high"]) for _, score in rows]
        reach = [
            (0.0, 0.0) if low is None else (max(0.0, value - low), max(0.0, high - value))
            for value, (low, high) in zip(values, ends, strict=True)
        ]
        axes.errorbar(
            values, np.array([height for height, _ in rows]) + shift, xerr=np.array(reach).reshape(-1, 2).T,
            fmt=MARKERS[number], color=colours[method], label=NAMES[method], capsize=2.5, elinewidth=1.4, linestyle="none",
        )  # fmt: skip
    for row, name in enumerate(classes):
        chance = found["classes"][name]["text"]["chance"] if measure == "average_precision" else 0.5
        label = "by chance" if row == 0 else None
        axes.plot([chance, chance], np.add([-0.38, 0.38], heights[name]), color=MUTED, marker="", ls="-", label=label)
    marks = {name: "" if found["classes"][name]["text"][measure]["low"] is not None else "*" for name in classes}
    axes.set_yticks([heights[name] for name in classes], [name + marks[name] for name in classes])
    axes.set_ylim(-0.6, len(classes) - 0.4)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set(
        title="Classes of land found on unseen parts of the Earth",
        xlabel=f"{measure.replace('_', ' ')} (95 % interval over blocks of land; * in too few blocks for one)",
    )
    axes.grid(True, axis="x")
    axes.grid(False, axis="y")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return drawn


def earth_page(globe: Scene, found: Sequence[Found], metrics: Mapping) -> str:
    """The page of what the texts find on the globe, as HTML."""
    parts = metrics["windows"]
    return render_scene_page(
        globe,
        [SceneResult(own.surface.query, own.surface, own.hits) for own in found],
        "Search the Earth",
        lead="Where on the Earth is what a text asks for? Cosines of the text and of windows of NASA's Blue Marble, by the "
        "study's encoder; the numbers are the best places, kept apart from each other. The open sea was left out: no "
        "training image shows it alone.",
        about=f"{parts['embedded']:,} windows, {parts.get('train', 0):,} of them on or near training tiles: what is found there "
        "the encoder has seen in training. How well classes of land are found elsewhere is measured in the notebook "
        "87_search_earth. The same as GeoJSON and GeoTIFF: reports/earth/files.",
    )


def earth_result(metrics: Mapping) -> Result:
    """What METRICS/search_earth.json says: how well text finds classes of land, beside what needs no text."""
    if not metrics["searched"]:
        return Result("The Earth was not searched: `search` is False, for models that were not trained on Blue Marble.")
    land, parts = metrics["land"], metrics["windows"]
    lines = [
        f"{parts['embedded']:,} windows of the Earth were searched, {parts.get('test', 0):,} of them land far from any training tile."
    ]
    if land["scored"]:
        means = {method: land["mean"][method]["average_precision"] for method in METHODS}
        chance = float(np.mean([land["classes"][name]["text"]["chance"] for name in land["scored"]]))
        lines.append(
            f"Over {len(land['scored'])} classes of land, the average precision there is {percent(means['text'])} by text, "
            f"{percent(means['mean_colour'])} by mean colour and {percent(means['nearest_tile'])} by the nearest training "
            f"tile, which know the classes from labels (by chance {percent(chance)})."
        )
    few = [name for name, own in land["classes"].items() if "too_few" in own]
    if few:
        lines.append(f"Too rare there to be scored: {listed(few)}.")
    return Result(" ".join(lines))
