"""Pictures of models at work: training curves, images found alike, captions, the kernels' speed.

Pictures and tables of a training: loss over the steps, a measure over the epochs, before and after.

Pictures of what an encoder finds alike.

Pictures with what the captioner says of them.

Tables and pictures of the kernels' speed, from what ``benchmarks/kernels.py`` found.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rsvlm.data.images import open_image
from rsvlm.files import read_json
from rsvlm.kernels import similarity_topk
from rsvlm.models.features import Features
from rsvlm.viewing.plots import BLUE, INK, MUTED, ORANGE, SKY, figure, series_colours, without_axes
from rsvlm.viewing.thumbnails import shrink


def training_curves(
    curve: pd.DataFrame,
    validation: Sequence[dict] = (),
    *,
    losses: Sequence[str] = ("loss",),
    metric: str = "mean_recall",
    metric_label: str = "validation mean recall, %",
    scale: float = 100.0,
    best_epoch: int | None = None,
    title: str | None = None,
) -> Figure:
    """Loss over the steps on the left and, with ``validation`` rows, a measure over the epochs on the right.

    Args:
        curve: one row every few steps, with a column ``step`` and the columns named in ``losses``.
        validation: rows with ``epoch`` and ``metric``.
        scale: what the metric is multiplied by (100 turns a fraction into percent).
        best_epoch: the epoch that was kept, marked by a ring.
    """
    drawn, axes = figure(9.0 if validation else 7.0, 3.2, columns=2 if validation else 1, squeeze=False, title=title)
    left = axes[0, 0]
    window = max(1, len(curve) // 25)
    for name, light, dark in zip(losses, (SKY, "#f3d9a4"), (BLUE, ORANGE)):
        left.plot(curve["step"], curve[name], color=light, linestyle="-", marker="", linewidth=0.8)
        smooth = curve[name].rolling(window, min_periods=1, center=True).mean()
        left.plot(curve["step"], smooth, color=dark, linestyle="-", marker="", label=name)
    if len(losses) > 1:
        left.legend()
    left.set(xlabel="step", ylabel="loss", title="Training loss")
    if validation:
        _draw_validation(axes[0, 1], validation, metric, metric_label, scale, best_epoch)
    return drawn


def before_and_after(before: dict, after: dict) -> pd.DataFrame:
    """Recalls in percent, one row a measure: before, after, and the difference in points."""
    names = [name for name in before if "recall" in name]
    rows = {name.replace("_", " "): (100 * before[name], 100 * after[name]) for name in names}
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["before, %", "after, %"])
    table["difference"] = table["after, %"] - table["before, %"]
    return table.round(1)


def _draw_validation(axes, validation, metric, metric_label, scale, best_epoch) -> None:
    epochs = [row["epoch"] for row in validation]
    values = [scale * row[metric] for row in validation]
    axes.plot(epochs, values, color=BLUE, linestyle="-", marker="o")
    title = "Validation"
    if best_epoch in epochs:
        value = values[epochs.index(best_epoch)]
        axes.plot(
            [best_epoch],
            [value],
            marker="o",
            markersize=11,
            markerfacecolor="none",
            markeredgecolor=ORANGE,
            markeredgewidth=1.8,
            linestyle="",
        )
        title = f"Validation (ring: kept, {value:.3g})"
    axes.set(xlabel="epoch", ylabel=metric_label, title=title)
    axes.xaxis.get_major_locator().set_params(integer=True)


def nearest_images(features: Features, image_ids: Sequence[str], among: Sequence[str], count: int) -> pd.DataFrame:
    """The ``count`` images of ``among`` nearest to each image, itself left out: image_id, rank, neighbour, cosine."""
    among = list(among)
    items = features.image_embeddings[features.rows(among)]
    scores, places = similarity_topk(
        features.image_embeddings[features.rows(image_ids)], items, min(count + 1, len(among))
    )
    rows = []
    for image_id, own_scores, own_places in zip(image_ids, scores.tolist(), places.tolist()):
        found = [(among[place], score) for place, score in zip(own_places, own_scores) if among[place] != image_id]
        rows += [
            {"image_id": image_id, "rank": rank, "neighbour": name, "cosine": round(score, 4)}
            for rank, (name, score) in enumerate(found[:count], start=1)
        ]
    return pd.DataFrame(rows)


def draw_neighbours(table: pd.DataFrame, neighbours: pd.DataFrame, *, pixels: int = 128) -> Figure:
    """A row of pictures for each image: itself, then its nearest images with their cosines."""
    path_of = dict(zip(table["image_id"], table["path"]))
    image_ids = list(dict.fromkeys(neighbours["image_id"]))
    columns = 1 + int(neighbours["rank"].max())
    drawn, axes = figure(1.35 * columns, 1.5 * len(image_ids), rows=len(image_ids), columns=columns, squeeze=False)
    without_axes(axes)
    for row, image_id in zip(axes, image_ids):
        own = neighbours[neighbours["image_id"] == image_id]
        row[0].imshow(np.asarray(shrink(open_image(path_of[image_id]), pixels)))
        row[0].set_title(image_id[-20:], fontsize=7)
        for axis, name, cosine in zip(row[1:], own["neighbour"], own["cosine"]):
            axis.imshow(np.asarray(shrink(open_image(path_of[name]), pixels)))
            axis.set_title(f"{cosine:.2f}", fontsize=7)
    return drawn


COLUMNS, WIDTH = 3, 40  # pictures in a row; letters in a line


def draw_captions(
    table: pd.DataFrame,
    runs: Mapping[str, Mapping[str, str]],
    image_ids: Sequence[str],
    *,
    shown: Sequence[str] = ("captioner", "consensus"),
    pixels: int = 160,
) -> Figure:
    """The images, three in a row, each above the captions of some runs and its first reference.

    Args:
        table: with the columns image_id, path and captions.
        runs: run -> image id -> caption.
    """
    known = table.set_index("image_id")
    n_rows = -(-len(image_ids) // COLUMNS)
    drawn, axes = figure(9.0, 3.9 * n_rows, rows=n_rows, columns=COLUMNS, squeeze=False)
    without_axes(axes)
    for axis, image_id in zip(axes.flat, image_ids):
        row = known.loc[image_id]
        axis.imshow(np.asarray(shrink(open_image(row["path"]), pixels)))
        axis.set_title(image_id[-30:], fontsize=7, color=MUTED)
        said = [(run, runs[run][image_id]) for run in shown] + [("reference", row["captions"][0])]
        top = -0.04
        for run, text in said:
            lines = textwrap.wrap(f"{run}: {text}", WIDTH)[:4]
            axis.text(
                0,
                top,
                "\n".join(lines).replace("$", r"\$"),
                transform=axis.transAxes,
                va="top",
                fontsize=7.5,
                color=BLUE if run == shown[0] else INK if run != "reference" else MUTED,
            )
            top -= 0.085 * len(lines) + 0.03
    return drawn


NOT_ON_A_GPU = "Not measured on a GPU: no record in benchmarks/results was made on one."


def speed_table(measured: dict) -> pd.DataFrame:
    """One row a method: seconds, times ours, MB above the inputs, share of the device's own product rate, agreement."""
    table = pd.DataFrame(measured["rows"])
    table["share of rate, %"] = (100 * table["share_of_rate"]).round(1)
    table["seconds"], table["times ours"] = table["seconds"].round(4), table["ratio"].round(2)
    table["MB"] = table["megabytes"].astype(float).round(1)
    table["agreement"] = table["agreement"].astype(float).round(7)
    columns = ["seconds", "times ours", "MB", "share of rate, %", "agreement"]
    return table.set_index(["operation", "size", "method"])[columns]


def growth_figure(measured: dict) -> Figure:
    """Time and memory of the search over the number of items, both axes logarithmic."""
    table = pd.DataFrame(measured["growth"])
    drawn, axes = figure(9.0, 3.2, columns=2, squeeze=False)
    colours = series_colours(sorted(set(table["method"])))
    for name, rows in table.groupby("method"):
        axes[0, 0].plot(rows["items"], rows["seconds"], marker="o", color=colours[name], label=name)
        known = rows.dropna(subset=["megabytes"])
        axes[0, 1].plot(known["items"], known["megabytes"].clip(lower=0.1), marker="o", color=colours[name], label=name)
    for axis, label in zip(axes[0], ("seconds", "MB above the inputs")):
        axis.set(xscale="log", yscale="log", xlabel="items", ylabel=label)
    axes[0, 0].legend()
    return drawn


def method_figure(measured: dict) -> Figure:
    """Time of each method, in units of ours, one panel a case; without those that were forced on the device."""
    table = pd.DataFrame(measured["rows"])
    table = table[~table["method"].str.endswith("(forced)")]
    cases = list(dict.fromkeys(zip(table["operation"], table["size"])))
    drawn, axes = figure(3.7 * len(cases), 2.6, columns=len(cases), squeeze=False)
    for axis, (operation, size) in zip(axes[0], cases):
        rows = table[(table["operation"] == operation) & (table["size"] == size)][::-1]
        axis.barh(rows["method"], rows["ratio"])
        axis.axvline(1.0, color="black", linewidth=0.8)
        axis.set(xlabel="time, ours = 1")
        axis.set_title(f"{operation}\n{size}", fontsize="small")
    return drawn


def read_records(folder: Path) -> dict[str, dict]:
    """Recorded benchmarks by name; empty where there are none."""
    records = {path.stem: read_json(path) for path in sorted(folder.glob("*.json"))}
    return {name: record for name, record in records.items() if "growth" in record}  # others are of other benchmarks


def gpu_note(records: dict[str, dict]) -> str:
    """On which GPUs the kernels were measured, or that they were not."""
    devices = [record["provenance"] for record in records.values()]
    names: Sequence[str] = sorted({known["device_name"] for known in devices if known["device"] != "cpu"})
    return f"Measured on {', '.join(names)}." if names else NOT_ON_A_GPU
