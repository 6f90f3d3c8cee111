"""Tables and figures on the caption table: what each source holds, what was dropped, how it looks."""

import textwrap

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rsvlm.data.images import open_image
from rsvlm.data.table import SPLITS
from rsvlm.viewing.plots import figure, series_colours

# What the report counts, in a reader's words; counts of zero everywhere are left out of the table.
FINDINGS = {
    "files_missing": "listed images without a file (left out)",
    "images_broken": "image files that cannot be opened (left out)",
    "images_without_caption": "images without a caption (left out)",
    "captions_blank_dropped": "blank captions (left out)",
    "images_left_out_by_limit": "images beyond the limit a split (left out)",
    "splits_found_swapped": "file with val and test swapped",
    "splits_swapped_back": "file with val and test swapped back",
    "images_with_another_extension": "files with another extension than listed (read)",
    "files_not_listed": "image files that no annotation lists (not read)",
    "captions_repeated_within_image": "captions that repeat another of the same image (kept)",
    "captions_with_extra_spaces": "captions with double spaces (made single)",
    "captions_with_other_tokens": "captions whose tokens are other words than the text (text kept)",
    "captions_not_ascii": "captions with letters beyond ASCII (kept)",
    "captions_in_another_script": "captions without a Latin letter (kept)",
    "images_with_other_sentence_ids": "images whose list of sentence ids differs from the sentences' (read)",
    "sentence_ids_repeated": "sentence ids used again (read)",
}


def sources_table(report: dict) -> pd.DataFrame:
    """One row a source: images and captions a split, distinct captions."""
    rows = {}
    for name, facts in report["sources"].items():
        row = {f"{split} images": facts["images"][split] for split in SPLITS}
        row |= {f"{split} captions": facts["captions"][split] for split in SPLITS}
        rows[name] = row | {"distinct captions": facts["distinct_captions"]}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("source")


def findings_table(report: dict) -> pd.DataFrame:
    """One row a kind of defect that was met, one column a source: how often."""
    counts = {
        text: {name: facts.get(key, 0) for name, facts in report["sources"].items()} for key, text in FINDINGS.items()
    }
    met = {text: row for text, row in counts.items() if any(row.values())}
    return pd.DataFrame.from_dict(met, orient="index", columns=list(report["sources"])).rename_axis("found")


def overlap_table(report: dict) -> pd.DataFrame:
    """Percent of each source's test captions (rows) that occur word for word in each source's training (columns)."""
    shares = pd.DataFrame.from_dict(report["verbatim_in_train"], orient="index")
    return (100 * shares).round(1).rename_axis("test captions of")


def draw_caption_lengths(table: pd.DataFrame, most_words: int = 40) -> Figure:
    """Shares of captions by their number of words, one line a source; longer ones count at ``most_words``."""
    drawn, axes = figure(7, 3)
    colours = series_colours(sorted(table["source"].unique()))
    for source, rows in table.groupby("source", sort=True):
        words = [min(len(caption.split()), most_words) for captions in rows["captions"] for caption in captions]
        shares = np.bincount(words, minlength=most_words + 1) / len(words)
        axes.plot(range(most_words + 1), 100 * shares, label=source, color=colours[source], markersize=3)
    axes.set(title="Caption lengths", xlabel="words in a caption", ylabel="captions, %", ylim=(0, None))
    axes.legend()
    return drawn


def draw_labels(table: pd.DataFrame, most: int = 25) -> Figure | None:
    """Images of each class label, largest first, at most ``most`` classes; None where no image has a label."""
    counts = table["label"].dropna().value_counts()
    if counts.empty:
        return None
    counts = counts.sort_index().sort_values(ascending=False, kind="stable")[:most]
    drawn, axes = figure(7, 0.7 + 0.22 * len(counts))
    axes.barh(counts.index[::-1], counts.to_numpy()[::-1])
    axes.set(title="Images by class", xlabel="images")
    axes.grid(False, axis="y")
    return drawn


def draw_examples(table: pd.DataFrame, per_source: int = 4, seed: int = 0) -> Figure:
    """A row of random training images for each source, each with its first three different captions."""
    train = table[table["split"] == "train"]
    sources = sorted(train["source"].unique())
    drawn, grid = figure(2.6 * per_source, 4.1 * len(sources), rows=len(sources), columns=per_source, squeeze=False)
    for axes_row, source in zip(grid, sources, strict=True):
        rows = train[train["source"] == source]
        rows = rows.sample(min(per_source, len(rows)), random_state=seed)
        for axes in axes_row:
            axes.set_axis_off()
        for axes, row in zip(axes_row, rows.itertuples(), strict=False):
            axes.imshow(open_image(row.path), interpolation="bilinear")
            captions = list(dict.fromkeys(row.captions))[:3]
            text = "\n".join(textwrap.fill(_drawable(caption), 34) for caption in captions)
            axes.set_title(row.image_id, fontsize=8, fontweight="normal")
            axes.text(0, -0.04, text, transform=axes.transAxes, va="top", fontsize=7.5, linespacing=1.25)
    return drawn


def _drawable(text: str) -> str:
    """The text with ``$`` escaped, which matplotlib would take for mathematics."""
    return text.replace("$", r"\$")
