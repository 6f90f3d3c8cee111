"""Tables and figures on the caption table: what each source holds, what was dropped, how it looks."""

import textwrap
from collections import Counter

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rsvlm.data.audit import words_of
from rsvlm.data.catalogue import KNOWN
from rsvlm.data.images import open_image
from rsvlm.data.names import SPLITS
from rsvlm.viewing.plots import figure, series_colours

# What the report counts, in a reader's words, by where it is counted; what is zero everywhere is left out of the table.
FINDINGS = {
    "in the file": {
        "captions_blank_dropped": "blank captions (left out)",
        "captions_blank_kept": "blank captions (kept)",
        "caption_cells_empty": "empty cells in columns of captions (no caption)",
        "captions_repeated_within_image": "captions that repeat another of the same image (kept)",
        "captions_with_extra_spaces": "captions with double spaces (made single)",
        "captions_with_other_tokens": "captions whose tokens are other words than the text (text kept)",
        "captions_not_ascii": "captions with letters beyond ASCII (kept)",
        "captions_in_another_script": "captions without a Latin letter (kept)",
        "images_with_other_sentence_ids": "images whose list of sentence ids differs from the sentences' (read)",
        "sentence_ids_repeated": "sentence ids used again (read)",
        "images_named_under_another_split": "images whose name starts with another split (read)",
        "rsicd_images_without_class": "images without a class for lack of RSICD's lists (txtclasses_rsicd.rar of "
        "github.com/201528014227051/RSICD_optimal, unpacked beside the JSON)",
        "splits_found_swapped": "file with val and test swapped",
        "splits_swapped_back": "file with val and test swapped back",
        "boxes_over_the_edge": "boxes that reach over the image's edge (cut there, or refused)",
        "boxes_without_area": "boxes without an area (left out, or refused)",
        "files_naming_another_image": "box files that name another image (the file's own name holds)",
        "sizes_from_the_image": "images whose size the annotations lack (taken from the file)",
    },
    "on disk": {
        "files_missing": "listed images without a file (left out)",
        "images_with_another_extension": "files with another extension than listed (read)",
        "images_in_another_folder": "files in another folder than listed, found by their name (read)",
        "files_not_listed": "image files that no annotation lists (not read)",
    },
    "when read": {
        "images_broken": "image files that cannot be opened (left out)",
        "images_without_caption": "images without a caption (left out)",
        "images_left_out_by_use": "validation and test images of a source that adapts the encoder alone (left out)",
        "images_left_out_by_limit": "images beyond the limit a split (left out)",
        "images_drawn_for_validation": "training images drawn for validation (val_share)",
    },
}


def sources_table(report: dict) -> pd.DataFrame:
    """One row a source: what its files list beside what is published, what was read, and what the study uses.

    *In the file* counts all that the annotations list, *read* the images that were opened, *used* what entered the
    table. A dash stands where nothing is published. Published sizes and resolutions are the papers' words.
    """
    rows = {}
    for name, facts in report["sources"].items():
        published = {row["what"]: row["published"] for row in facts["published"]}
        known = KNOWN.get(name)
        rows[name] = {
            "images published": published.get("images", "-"),
            "images in the file": facts["images_listed"],
            "images read": facts.get("images_read", 0),
            "captions published": published.get("captions", "-"),
            "captions in the file": facts.get("captions_listed", 0),
            "captions used": sum(facts["captions"].values()),
            "most frequent size read": next(iter(facts.get("image_sizes", {})), "-"),
            "published size": known.image_size if known else "-",
            "published resolution": known.resolution if known else "-",
            **{f"{split} images used": facts["images"][split] for split in SPLITS},
            "distinct captions used": facts["distinct_captions"],
            "vocabulary used": facts["vocabulary"],
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("source")


def findings_table(report: dict) -> pd.DataFrame:
    """One row a kind of defect that was met: where it is counted, and how often in each source.

    Counts *in the file* are over everything that the annotations list, also where only part of the images is read.
    """
    rows = {
        text: {"counted": where} | {name: facts.get(key, 0) for name, facts in report["sources"].items()}
        for where, findings in FINDINGS.items()
        for key, text in findings.items()
        if any(facts.get(key) for facts in report["sources"].values())
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["counted", *report["sources"]]).rename_axis("found")


def draw_captions(table: pd.DataFrame, most_words: int = 40) -> Figure:
    """Left, shares of captions by their number of words; right, words by how often they occur; one line a source.

    Captions with more than ``most_words`` count there.
    """
    drawn, (lengths, words) = figure(10, 3.2, columns=2)
    colours = series_colours(sorted(table["source"].unique()))
    for source, rows in table.groupby("source", sort=True):
        captions = [caption for captions in rows["captions"] for caption in captions]
        counts = [min(len(caption.split()), most_words) for caption in captions]
        shares = np.bincount(counts, minlength=most_words + 1) / len(counts)
        lengths.plot(range(most_words + 1), 100 * shares, label=source, color=colours[source], markersize=3)
        times = sorted(Counter(word for caption in captions for word in words_of(caption)).values(), reverse=True)
        words.loglog(range(1, len(times) + 1), times, label=source, color=colours[source], markersize=0)
    lengths.set(title="Caption lengths", xlabel="words in a caption", ylabel="captions, %", ylim=(0, None))
    words.set(title="Vocabulary", xlabel="word, most frequent first", ylabel="times it occurs")
    lengths.legend()
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
