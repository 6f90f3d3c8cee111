"""Pictures and tables of a training: loss over the steps, a measure over the epochs, before and after."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from rsvlm.viewing.plots import BLUE, ORANGE, SKY, figure


def training_curves(
    curve: pd.DataFrame, validation: Sequence[dict] = (), *, losses: Sequence[str] = ("loss",),
    metric: str = "mean_recall", metric_label: str = "validation mean recall, %", scale: float = 100.0,
    best_epoch: int | None = None, title: str | None = None,
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
        axes.plot([best_epoch], [value], marker="o", markersize=11, markerfacecolor="none", markeredgecolor=ORANGE,
                  markeredgewidth=1.8, linestyle="")
        title = f"Validation (ring: kept, {value:.3g})"
    axes.set(xlabel="epoch", ylabel=metric_label, title=title)
    axes.xaxis.get_major_locator().set_params(integer=True)
