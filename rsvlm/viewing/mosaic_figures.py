"""Synthetic mosaics in tables, pictures and words: what each method finds in them, over their size."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from rsvlm.scenes.mosaics import Mosaic, overview
from rsvlm.scenes.needles import SeloMap
from rsvlm.viewing.figures import interval_lengths
from rsvlm.viewing.plots import (
    BLACK,
    COLOURS,
    DASHES,
    MARKERS,
    ORANGE,
    SEQUENTIAL,
    figure,
    plain_text,
    without_axes,
)
from rsvlm.viewing.results import Result, counted

ORDER = ("squash", "tiles", "overlap", "pyramid", "anyres", "needle")
NAMES = {
    "squash": "squash (place: a guess)",
    "tiles": "tiles",
    "overlap": "tiles + overlap",
    "pyramid": "pyramid",
    "anyres": "overview + crops",
    "needle": "the needle alone",
}
PANELS = {
    "recall_at_1": "right window first",
    "recall_at_5": "right window among five",
    "mosaic_at_1": "right mosaic first",
    "CIDEr": "CIDEr of what is found",
}


def needle_table(metrics: Mapping) -> pd.DataFrame:
    """One row a side and method: recalls in percent and CIDEr, each with its 95 % interval."""
    rows = {}
    for side, methods in metrics["needles"].items():
        said = metrics["captions"].get(side, {})
        for method in [name for name in ORDER if name in methods or name in said]:
            own = methods.get(method, {})
            cells = {"mosaics": next(iter((own or said).values()))["n"] if own else said[method]["n"]}
            for name in (
                "recall_at_1",
                "recall_at_5",
                "recall_at_1_overlap",
                "recall_at_5_overlap",
                "mosaic_at_1",
                "mosaic_at_5",
            ):
                cells[name.replace("_", " ")] = _cell(own.get(name), 100, 1)
            cells["CIDEr"] = _cell(said.get(method), 1, 2)
            rows[int(side), NAMES[method]] = cells
    index = pd.MultiIndex.from_tuples(list(rows), names=["side, pixels", "method"]) if rows else None
    return pd.DataFrame(list(rows.values()), index=index)


def selo_table(metrics: Mapping) -> pd.DataFrame:
    """SeLo's indicators with 95 % intervals, one row a side and method, and one for its own test set where it was there."""
    rows = {
        (f"mosaics of {side}", NAMES[method]): {name: _cell(entry, 1, 3) for name, entry in own.items()}
        for side, methods in metrics["semantic_localisation"]["mosaics"].items()
        for method, own in methods.items()
    }
    published = metrics["semantic_localisation"]["AIR-SLT"]
    if published:
        rows["AIR-SLT", NAMES["pyramid"]] = {name: _cell(entry, 1, 3) for name, entry in published.items()}
    return pd.DataFrame.from_dict(rows, orient="index")


def cost_table(costs: Sequence[Mapping]) -> pd.DataFrame:
    """Windows, seconds and megabytes of embedding one mosaic, a row a side and method."""
    table = pd.DataFrame(costs, columns=["side", "method", "windows", "seconds", "megabytes"])
    return table.assign(method=table["method"].map(lambda name: name if name == "squash" else NAMES[name])).set_index(
        ["side", "method"]
    )


def needle_figure(metrics: Mapping) -> Figure | None:
    """Recall and CIDEr over the mosaics' side, a line a method, with 95 % intervals; None where there is no mosaic."""
    if not metrics["needles"]:
        return None
    panels = [name for name in PANELS if name != "CIDEr" or metrics["captions"]]
    drawn, axes = figure(3.1 * len(panels), 3.0, columns=len(panels), squeeze=False, layout="constrained")
    sides = list(metrics["needles"])
    for one, name in zip(axes[0], panels):
        scale = 1 if name == "CIDEr" else 100
        for place, method in enumerate(ORDER):
            found = {int(side): entry for side in sides if (entry := _entry(metrics, side, method, name)) is not None}
            if not found:
                continue
            value = scale * np.array([entry["value"] for entry in found.values()])
            reach = scale * np.array(interval_lengths(found.values()))
            shift = 1 + 0.02 * (place - 2)  # so that intervals do not hide each other
            one.errorbar(
                np.array(list(found)) * shift, value, yerr=reach, label=NAMES[method],
                color=COLOURS[place], linestyle=DASHES[place], marker=MARKERS[place], markersize=4, capsize=2,
            )  # fmt: skip
        one.set_xscale("log", base=2)
        one.set_xticks([int(side) for side in sides], sides)
        one.minorticks_off()
        one.set_title(PANELS[name])
        one.set_xlabel("side of the synthetic mosaic, pixels")
        one.set_ylabel("CIDEr, 0 to 10" if name == "CIDEr" else "%")
        one.set_ylim(bottom=0)
    handles = {text: handle for one in axes[0] for handle, text in zip(*one.get_legend_handles_labels())}
    drawn.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles))
    return drawn


def draw_search(mosaic: Mosaic, searches: pd.DataFrame, shown: SeloMap) -> Figure:
    """A mosaic with the needle and what was found, and beside it the surface of similarity."""
    method = shown.about["method"]
    chosen = searches[(searches["side"] == mosaic.side) & (searches["mosaic"] == mosaic.number)]
    search = chosen[chosen["method"] == method].iloc[0]
    drawn, (left, right) = figure(9.0, 4.8, columns=2, layout="constrained")
    extent = (0, mosaic.side, mosaic.side, 0)
    left.imshow(overview(mosaic), extent=extent)
    painted = right.imshow(
        np.ma.masked_invalid(shown.values), cmap=SEQUENTIAL, interpolation="nearest",
        extent=(0, shown.values.shape[1] * shown.cell, shown.values.shape[0] * shown.cell, 0),
    )  # fmt: skip
    right.set_xlim(0, mosaic.side)
    right.set_ylim(mosaic.side, 0)
    for axes in (left, right):
        x, y, width, height = mosaic.window
        axes.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=ORANGE, linewidth=2.5))
        for place, (x, y, width, height) in enumerate(search["found"], start=1):
            axes.add_patch(
                Rectangle((x, y), width, height, fill=False, edgecolor="white", linestyle="--", linewidth=1.4)
            )
            axes.text(
                x + width / 2, y + height / 2, str(place), color="white", ha="center", va="center", weight="bold",
                path_effects=[withStroke(linewidth=2.5, foreground=BLACK)],
            )  # fmt: skip
    without_axes([left, right])
    left.set_title("synthetic; orange: the needle, dashed: found")
    right.set_title(f"similarity, {NAMES[method]}")
    drawn.colorbar(painted, ax=right, shrink=0.8, label="cosine")
    drawn.suptitle(plain_text(f"“{search['caption']}”"), fontsize=10, color=BLACK)
    return drawn


def mosaic_result(metrics: Mapping) -> Result:
    """What the largest mosaics say, with intervals and what they are."""
    if not metrics["needles"]:
        return Result(metrics["about"]["note"])
    side, methods = list(metrics["needles"].items())[-1]
    own = {method: methods[method]["recall_at_1"] for method in ("squash", "tiles", "overlap", "pyramid")}
    n = own["tiles"]["n"]
    lines = [
        f"In synthetic mosaics of {side} pixels a guess hits the right window for {_share(own['squash'])} of the captions; "
        f"{', '.join(f'{NAMES[name]} {_told(own[name])}' for name in ('tiles', 'overlap', 'pyramid'))} "
        f"({counted(n, 'mosaic')}, 95 % intervals over mosaics, seed {metrics['about']['seed']})."
    ]
    for name, entry in metrics["overlap_against_tiles"].items():
        if name == side:
            low, high = 100 * entry["low"], 100 * entry["high"]
            lines.append(
                f"Overlap changes that by {100 * entry['value']:+.1f} points ({low:+.1f} to {high:+.1f}, p = {entry['p']:.3f})."
            )
    said = metrics["captions"].get(side)
    if said:
        best = max(
            (name for name in said if name in ("tiles", "overlap", "pyramid")), key=lambda name: said[name]["value"]
        )
        lines.append(
            f"CIDEr to the needle's captions, {counted(said[best]['n'], 'mosaic')}: {said['squash']['value']:.2f} for the whole "
            f"squashed, {said[best]['value']:.2f} where {NAMES[best]} leads, {said['needle']['value']:.2f} for the needle alone."
        )
    return Result(" ".join(lines))


def _entry(metrics: Mapping, side: str, method: str, name: str) -> Mapping | None:
    if name == "CIDEr":
        return metrics["captions"].get(side, {}).get(method)
    return metrics["needles"][side].get(method, {}).get(name)


def _cell(entry: Mapping | None, scale: int, digits: int) -> str:
    if entry is None:
        return ""
    value, low, high = (f"{scale * entry[key]:.{digits}f}" for key in ("value", "low", "high"))
    return value if low == high == value else f"{value} [{low}, {high}]"


def _share(entry: Mapping) -> str:
    return f"{100 * entry['value']:.1f} %"


def _told(entry: Mapping) -> str:
    return f"{100 * entry['value']:.1f} % ({100 * entry['low']:.1f} to {100 * entry['high']:.1f})"
