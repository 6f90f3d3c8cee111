"""Figures of caption scores."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from rsvlm.viewing.plots import BLUE, INK, MUTED, ORANGE, figure

KINDS = {"released": ("references as released", BLUE, "o"), "distinct": ("distinct references", ORANGE, "s")}
HALVES = {"seen": ("reference set seen in training", BLUE, "o"), "unseen": ("not seen", ORANGE, "s")}
NOT_RUNS = ("protocol", "paired")
HUMAN = "human"
RULE_WRITTEN = ("blue_marble",)  # sources whose references a rule wrote, not a person


def run_label(run: str, source: str) -> str:
    """How a run is called in a figure. The held-out reference is not called human where a rule wrote it."""
    if run != HUMAN:
        return run
    return "held-out reference (by rule)" if source in RULE_WRITTEN else "held-out reference (human)"


def cider_figure(metrics: Mapping, source: str) -> Figure:
    """CIDEr with 95 % intervals, one line a run, best at the top: released against distinct references.

    Args:
        metrics: what METRICS/score_captions.json holds.
        source: the source to draw.
    """
    return _dot_figure(metrics, source, KINDS, f"{source}: CIDEr by run")


def seen_figure(metrics: Mapping, source: str) -> Figure:
    """CIDEr with 95 % intervals on images whose reference set is, or is not, also a training image's."""
    return _dot_figure(metrics, source, HALVES, f"{source}: CIDEr where the references were seen in training")


def _dot_figure(metrics: Mapping, source: str, parts: Mapping, title: str) -> Figure:
    entries = {run: metrics[run][source] for run in metrics if run not in NOT_RUNS and source in metrics[run]}
    runs = [run for run in entries if any(_cider(entries[run], part) for part in parts)]
    if not runs:
        raise ValueError(f"no CIDEr for the source {source!r}")
    runs.sort(key=lambda run: (_value(entries[run]), run))
    drawn, axes = figure(7.2, 1.3 + 0.42 * len(runs))
    for shift, (part, (label, colour, marker)) in zip((0.13, -0.13), parts.items(), strict=True):
        placed = [(place, _cider(entries[run], part)) for place, run in enumerate(runs)]
        placed = [(place, entry) for place, entry in placed if entry]
        values = [entry["value"] for _, entry in placed]
        errors = [
            [entry["value"] - entry["low"] for _, entry in placed],
            [entry["high"] - entry["value"] for _, entry in placed],
        ]
        errors = [[max(0.0, error) for error in side] for side in errors]
        heights = [place + shift for place, _ in placed]
        axes.errorbar(
            values,
            heights,
            xerr=errors,
            fmt=marker,
            color=colour,
            label=label,
            capsize=2.5,
            elinewidth=1.4,
            linestyle="none",
        )
        if part == "released":
            for value, height in zip(values, heights, strict=True):
                axes.annotate(
                    f"{value:.2f}",
                    (value, height),
                    (0, 5),
                    textcoords="offset points",
                    ha="center",
                    fontsize=8,
                    color=INK,
                )
    axes.set_yticks(range(len(runs)), [run_label(run, source) for run in runs])
    axes.set_ylim(-0.6, len(runs) - 0.25)
    axes.set_xlim(left=0)
    axes.set_xlabel("CIDEr (95 % interval over images)")
    axes.grid(True, axis="x")
    axes.grid(False, axis="y")
    axes.set_title(title)
    axes.tick_params(axis="y", length=0, labelcolor=INK, color=MUTED)
    axes.legend(loc="best")
    return drawn


def _cider(entry: Mapping, part: str) -> Mapping | None:
    found = entry.get(part, {}).get("CIDEr")
    return found if found and found["value"] is not None else None


def _value(entry: Mapping) -> float:
    found = _cider(entry, "released")
    return found["value"] if found else 0.0
