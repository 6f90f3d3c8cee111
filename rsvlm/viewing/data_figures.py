"""Tables and figures of the data: what each source holds, how it looks, and what the splits share."""

import textwrap
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rsvlm.data.audit import search_scope, words_of
from rsvlm.data.catalogue import KNOWN
from rsvlm.data.duplicates import KINDS
from rsvlm.data.images import open_image
from rsvlm.data.names import SPLITS
from rsvlm.data.translations import HOW_NAMES
from rsvlm.languages import language_name
from rsvlm.viewing.plots import HATCHES, INK, PAPER, SEQUENTIAL, figure, plain_text, series_colours, without_axes

LABELLED = 16  # parts up to which a matrix names its numbers
KIND_NAMES = {
    "equal_files": "equal files",
    "copy": "copies of one shot",
    "same_ground": "the same ground at another zoom, shift or date",
}
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
        "images_in_another_unicode_form": "files whose name is listed in another Unicode form (read)",
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


def translations_table(report: dict) -> pd.DataFrame:
    """One row a source and language: how the captions in it came about, and how many there are; empty without any."""
    rows = [
        {
            "source": name,
            "language": language_name(code),
            "in the language": HOW_NAMES[facts["how"]],
            "captions": facts["captions"],
            "captions translated": facts["translated"],
            "distinct translations": facts["distinct"],
            "lines or cells without translation": _met(facts, "without_translation"),
            "of another normal form": _met(facts, "in_another_normal_form"),
        }
        for name, source in report["sources"].items()
        for code, facts in sorted(source.get("translations", {}).items())
    ]
    return pd.DataFrame(rows).set_index(["source", "language"]) if rows else pd.DataFrame()


def _met(facts: dict, what: str) -> int:
    """How many lines of a file of translations, or cells of their columns, were so."""
    return facts.get(f"lines_{what}", facts.get(f"cells_{what}", 0))


def draw_captions(table: pd.DataFrame, most_words: int = 40) -> Figure:
    """Left, shares of captions by their number of words; right, words by how often they occur; one line a source.

    Captions with more than ``most_words`` count there.
    """
    drawn, (lengths, words) = figure(10, 3.2, columns=2)
    colours = series_colours(sorted(table["source"].unique()))
    for source, rows in table.groupby("source", sort=True):
        captions = rows["captions"].explode()
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
            text = "\n".join(textwrap.fill(plain_text(caption), 34) for caption in captions)
            axes.set_title(row.image_id, fontsize=8, fontweight="normal")
            axes.text(0, -0.04, text, transform=axes.transAxes, va="top", fontsize=7.5, linespacing=1.25)
    return drawn


def draw_split_sizes(report: dict) -> Figure:
    """Images of each source by split, as entered into the table, with the numbers beside the bars."""
    sources = report["sources"]
    drawn, axes = figure(7.5, 1.3 + 0.7 * len(sources))
    colours = series_colours(SPLITS)
    for number, split in enumerate(SPLITS):
        images = [facts["images"][split] for facts in sources.values()]
        places = [4 * place + number for place in range(len(sources))]
        bars = axes.barh(places, images, color=colours[split], hatch=HATCHES[number], edgecolor=PAPER, label=split)
        axes.bar_label(bars, [f"{count:,}" for count in images], padding=3)
    notes = {"all": "", "adapt": "\n(encoder only)", "audit": "\n(audit only)"}
    names = [name + notes[facts["use"]] for name, facts in sources.items()]
    axes.set_yticks([4 * place + 1 for place in range(len(sources))], names)
    axes.set(title="Images by split", xlabel="images")
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    drawn.legend(loc="outside right upper")
    return drawn


def draw_overlap(report: dict) -> Figure:
    """Two matrices, source and split against source and split.

    Left, images of the row with a near-duplicate in the column; right, percent of the row's captions that occur word for word in
    the column (within a part: that another of its images has too).
    """
    duplicates, captions = report["near_duplicates"]["images_with_a_near_duplicate"], report["verbatim"]
    side = 1.6 + 0.42 * max(len(duplicates), len(captions), 4)
    drawn, (left, right) = figure(2 * side + 1.5, side + 0.6, columns=2)
    highest = max([1.0, *(count for row in duplicates.values() for count in row.values())])
    _draw_matrix(left, duplicates, "Images with a near-duplicate", 1, highest)
    _draw_matrix(right, captions, "Captions found word for word, %", 100, 100)
    left.set_ylabel("of these ...")
    return drawn


def near_duplicates_table(report: dict) -> pd.DataFrame:
    """One row a kind of near-duplicate: pairs found, what left training, and how far the search reaches."""
    duplicates = report["near_duplicates"]
    scope = search_scope(duplicates["same_ground"])
    rows = {
        KIND_NAMES[kind]: {
            "pairs": duplicates["by_kind"][kind]["pairs"],
            "between training and test": duplicates["by_kind"][kind]["train_and_test"],
            "training images dropped": duplicates["by_kind"][kind]["dropped_from_train"],
            "what the search finds": scope[kind],
        }
        for kind in KINDS
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("near-duplicates")


def draw_near_duplicates(report: dict, root: Path, most: int = 6) -> Figure | None:
    """Pairs of near-duplicates side by side: first those between training and test, then the weakest; None without any.

    The weakest: of the same ground those with the fewest matches, then copies with the lowest correlation.

    Args:
        root: folder that the report's relative paths start from.
    """
    pairs = sorted(
        report["near_duplicates"]["list"],
        key=lambda pair: (
            {pair["first_split"], pair["second_split"]} != {"train", "test"},
            -KINDS.index(pair["kind"]),
            pair["matches"] or pair["correlation"],
        ),
    )[:most]
    if not pairs:
        return None
    columns = min(3, len(pairs))
    rows = -(-len(pairs) // columns)
    drawn, grid = figure(3.8 * columns, 2.5 * rows, rows=rows, columns=2 * columns, squeeze=False)
    without_axes(grid.ravel())
    for place, pair in enumerate(pairs):
        row, column = divmod(place, columns)
        for number, which in enumerate(("first", "second")):
            axes = grid[row, 2 * column + number]
            axes.imshow(open_image(root / pair[f"{which}_path"]), interpolation="bilinear")
            gone = ", dropped" if pair[which] in pair["dropped"] else ""
            axes.set_title(f"{pair[which]}\n{pair[f'{which}_split']}{gone}", fontsize=7, fontweight="normal")
        grid[row, 2 * column].text(
            0, -0.05, _how_alike(pair), transform=grid[row, 2 * column].transAxes, va="top", fontsize=7.5
        )
    return drawn


def _how_alike(pair: dict) -> str:
    """How the second image of a pair shows what the first does."""
    if pair["kind"] == "equal_files":
        return "equal files"
    if pair["kind"] == "copy":
        return f"copy, {pair['turn']}, detail {pair['correlation']:.2f}"
    parts = [f"zoom {pair['zoom']:.2f}", f"turned by {pair['degrees']:.0f}°", f"{100 * pair['overlap']:.0f} % shared"]
    mirrored = ["mirrored"] if pair["turn"] == "mirrored" else []
    return ", ".join([*mirrored, *parts, f"{pair['matches']} points agree"])


def _draw_matrix(axes: Axes, rows: dict[str, dict], title: str, scale: float, highest: float) -> None:
    """A heat map of numbers, times ``scale``, by the part of a row and that of a column."""
    axes.grid(False)
    axes.set_title(title)
    axes.set_xlabel("... in these")
    if not rows:
        axes.text(0.5, 0.5, "no images to compare", transform=axes.transAxes, ha="center")
        return
    values = scale * pd.DataFrame.from_dict(rows, orient="index")[list(rows)].to_numpy(float)
    axes.imshow(values, cmap=SEQUENTIAL, vmin=0, vmax=highest)
    axes.set_xticks(range(len(rows)), rows, rotation=60, ha="right", rotation_mode="anchor", fontsize=7.5)
    axes.set_yticks(range(len(rows)), rows, fontsize=7.5)
    if len(rows) <= LABELLED:
        for row, column in np.ndindex(values.shape):
            ink = PAPER if values[row, column] < 0.5 * highest else INK
            axes.text(column, row, f"{values[row, column]:.0f}", ha="center", va="center", fontsize=7, color=ink)
