"""Tables and pictures of the kernels' speed, from what ``rsvlm.kernels.measuring`` found."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from rsvlm.files import read_json
from rsvlm.viewing.plots import figure, series_colours

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
