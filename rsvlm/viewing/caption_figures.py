"""Figures of what the captioner learns and says: captions under their images, costly words, what each input is worth."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from rsvlm.files import read_json
from rsvlm.models.ablation import EVERYTHING, INPUTS
from rsvlm.training.word_losses import END
from rsvlm.viewing.plots import (
    BLUE,
    INK,
    MUTED,
    PAPER,
    SEQUENTIAL,
    SKY,
    figure,
    plain_text,
    show_picture,
    without_axes,
)

ACROSS, LINE = 3, 40  # pictures in a row; letters in a line below them
GROUPS = ("in the prompt's captions", "function words", "other words", "marks and the end")
WORDS = 14  # that carry most of the loss, shown
LETTERS = 88  # in a line of words


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
    n_rows = -(-len(image_ids) // ACROSS)
    drawn, axes = figure(9.0, 3.9 * n_rows, rows=n_rows, columns=ACROSS, squeeze=False)
    without_axes(axes)
    for axis, image_id in zip(axes.flat, image_ids):
        row = known.loc[image_id]
        show_picture(axis, row["path"], pixels)
        axis.set_title(image_id[-30:], fontsize=7, color=MUTED)
        top = -0.04
        for run, text in [*((run, runs[run][image_id]) for run in shown), ("reference", row["captions"][0])]:
            lines = textwrap.wrap(f"{run}: {text}", LINE)[:4]
            colour = BLUE if run == shown[0] else INK if run != "reference" else MUTED
            place = {"transform": axis.transAxes, "va": "top", "fontsize": 7.5, "color": colour}
            axis.text(0, top, plain_text("\n".join(lines)), **place)
            top -= 0.085 * len(lines) + 0.03
    return drawn


def group_words(words: pd.DataFrame) -> pd.Series:
    """The one of GROUPS that each word of ``rsvlm.training.word_losses.word_losses`` belongs to."""
    functional = set(read_json(Path(__file__).with_name("marked_words.json"))["empty"]["function words"].split())
    lower = words["word"].str.lower()
    marks = (words["word"] == END) | ~words["word"].str.contains(r"\w")
    kinds = [marks, lower.isin(functional), words["in_prompt"]]
    return pd.Series(np.select(kinds, [GROUPS[3], GROUPS[1], GROUPS[0]], GROUPS[2]), index=words.index)


def word_figure(before: pd.DataFrame, after: pd.DataFrame) -> Figure:
    """Loss a word by kind of word, before and after training; beside it the words that carry most of what is left.

    Args:
        before, after: as ``rsvlm.training.word_losses.word_losses`` gives them, of the same captions.
    """
    drawn, (left, right) = figure(10.5, 4.6, columns=2, gridspec_kw={"width_ratios": [1, 1.15]})
    kinds, total = group_words(after), after["nats"].sum()
    means = pd.DataFrame({"before": before["nats"].groupby(kinds).mean(), "after": after["nats"].groupby(kinds).mean()})
    means = means.reindex([group for group in GROUPS if group in means.index])
    share = 100 * after["nats"].groupby(kinds).sum() / total
    places = np.arange(len(means))
    left.barh(places - 0.19, means["before"], height=0.36, color=SKY, label="before")
    left.barh(places + 0.19, means["after"], height=0.36, color=BLUE, label="after")
    for place, (group, value) in zip(places, means["after"].items()):
        left.annotate(
            f"{share[group]:.0f} % of the loss",
            (value, place + 0.19),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
        )
    names = [f"{group}\n({(kinds == group).sum():,} words)" for group in means.index]
    left.set_yticks(places, names, fontsize=8)
    left.invert_yaxis()
    left.set(xlabel="nats a word")
    left.set_title("By kind of word", fontsize=10)
    left.legend(loc="lower right")
    lower = after["word"].str.lower()
    costly = pd.DataFrame(
        {
            "total": after["nats"].groupby(lower).sum(),
            "n": after.groupby(lower).size(),
            "before": before["nats"].groupby(lower).mean(),
            "after": after["nats"].groupby(lower).mean(),
        }
    )
    costly = costly.nlargest(WORDS, "total")[::-1]
    rows = range(len(costly))
    right.hlines(rows, costly["before"], costly["after"], color=MUTED, linewidth=1.4)
    right.plot(costly["before"], rows, linestyle="", marker="o", markersize=6, color=SKY, label="before")
    right.plot(costly["after"], rows, linestyle="", marker="s", markersize=6, color=BLUE, label="after")
    labels = [plain_text(f"{word} ({row.n:.0f}×, {100 * row.total / total:.1f} %)") for word, row in costly.iterrows()]
    right.set_yticks(rows, labels, fontsize=8)
    right.set(xlabel="nats each time (how often; share of the loss after training)")
    right.set_title("The words that carry most of it", fontsize=10)
    right.set_xlim(left=0)
    for axis in (left, right):
        axis.grid(True, axis="x")
        axis.grid(False, axis="y")
    return drawn


def draw_words(before: pd.DataFrame, after: pd.DataFrame, *, count: int = 4) -> Figure:
    """Captions written out, each word on the colour of its probability: a line before training, one after.

    Args:
        before, after: as ``word_figure`` takes them.
        count: captions, the first of as many images.
    """
    shown = after[after["caption"] == 0]["image_id"].drop_duplicates().tolist()[:count]
    drawn, axis = figure(10.5, 0.72 * len(shown) + 0.5)
    colours, y = mpl.colormaps[SEQUENTIAL], 0.0
    for image_id in shown:
        for when, words in (("before", before), ("after", after)):
            own, x = words[(words["image_id"] == image_id) & (words["caption"] == 0)], 9
            axis.text(0, y + 0.5, when, va="center", fontsize=7.5, color=MUTED)
            for word, nats in zip(own["word"], own["nats"]):
                width = len(word) + 1
                if x + width > LETTERS + 9:
                    axis.text(x, y + 0.5, "…", va="center", fontsize=8)
                    break
                likely = float(np.exp(-nats))
                axis.add_patch(Rectangle((x, y), width, 0.92, color=colours(likely), linewidth=0))
                look = {"family": "DejaVu Sans Mono", "fontsize": 7.5, "color": PAPER if likely < 0.55 else INK}
                axis.text(x + width / 2, y + 0.47, plain_text(word), ha="center", va="center", **look)
                x += width + 0.25
            y += 1
        y += 0.5
    axis.set(xlim=(0, LETTERS + 12), ylim=(y, -0.2))
    without_axes(axis)
    scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(0, 1), colours)
    drawn.colorbar(scale, ax=axis, label="probability of the word", fraction=0.02, pad=0.01)
    return drawn


def input_figure(measured: pd.DataFrame) -> Figure:
    """How much less likely the references become without each input: a dot an image, a bar their mean.

    Args:
        measured: as ``rsvlm.models.ablation.measure_inputs`` gives it.
    """
    by_image = measured.pivot(index="image_id", columns="without", values="log_probability")
    left_out = [name for name in INPUTS if name in by_image and name != EVERYTHING]
    drawn, axis = figure(7.2, 1.2 + 0.6 * len(left_out))
    for place, name in enumerate(left_out):
        change = by_image[name] - by_image[EVERYTHING]
        axis.barh(place, change.mean(), height=0.55, color=SKY)
        spread = place + np.linspace(-0.18, 0.18, len(change))
        axis.plot(change, spread, linestyle="", marker="o", markersize=4.5, color=BLUE)
        text = f"{change.mean():+.2f}; worse for {(change < 0).sum()} of {len(change)}"
        axis.annotate(text, (0, place), (6, 0), textcoords="offset points", va="center", fontsize=8)
    axis.axvline(0, color=INK, linewidth=0.8, linestyle="-", marker="")
    axis.set_yticks(range(len(left_out)), [INPUTS[name] for name in left_out])
    axis.invert_yaxis()
    low, high = axis.get_xlim()
    axis.set(xlabel="change of the references' log-probability a token", xlim=(low, max(high, 0.45 * (high - low))))
    axis.grid(True, axis="x")
    axis.grid(False, axis="y")
    return drawn


def input_table(measured: pd.DataFrame) -> pd.DataFrame:
    """For each input left out: the references' log-probability a token, and how many captions come out otherwise."""
    said = measured.pivot(index="image_id", columns="without", values="caption")
    rows = {}
    for name, own in measured.groupby("without", sort=False):
        changed = int((said[name] != said[EVERYTHING]).sum())
        rows[INPUTS[name]] = [
            own["log_probability"].mean().round(3),
            f"{changed} of {len(own)}",
            own["caption"].nunique(),
        ]
    columns = ["references' log-probability a token", "captions that change", "different captions"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def draw_inputs(table: pd.DataFrame, measured: pd.DataFrame, *, pixels: int = 128) -> Figure:
    """Each image beside what is said of it with everything and without each input; in blue where it changes.

    Args:
        table: with image_id, path and captions.
        measured: as ``input_figure`` takes it.
    """
    known = table.set_index("image_id")
    said = measured.pivot(index="image_id", columns="without", values="caption")
    names = [name for name in INPUTS if name in said]
    shown = list(dict.fromkeys(measured["image_id"]))
    drawn, axes = figure(
        8.6, 1.35 * len(shown), rows=len(shown), columns=2, squeeze=False, gridspec_kw={"width_ratios": [1, 5.2]}
    )
    without_axes(axes)
    for image_id, (picture, text) in zip(shown, axes):
        show_picture(picture, known.loc[image_id, "path"], pixels)
        y = 1.0
        for name in [*names, "reference"]:
            caption = said.loc[image_id].get(name, known.loc[image_id, "captions"][0])
            changed = name in INPUTS and caption != said.loc[image_id, EVERYTHING]
            lines = textwrap.wrap(f"{INPUTS.get(name, 'a reference')}: {caption}", 98, max_lines=2, placeholder=" …")
            colour = MUTED if name == "reference" else BLUE if changed else INK
            text.text(
                0, y, plain_text("\n".join(lines)), transform=text.transAxes, va="top", fontsize=8.5, color=colour
            )
            y -= 0.115 * len(lines) + 0.035
    return drawn
