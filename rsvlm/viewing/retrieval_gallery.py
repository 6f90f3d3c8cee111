"""The retrieval gallery: searches by caption and by image with what they found, on one page."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rsvlm import paths
from rsvlm.data.images import open_image
from rsvlm.data.table import load_table
from rsvlm.scoring.retrieval_sets import retrieval_sets
from rsvlm.viewing.page import Sample, choose_sample, render_page, write_page
from rsvlm.viewing.plots import GREEN, MUTED, RULE, figure
from rsvlm.viewing.retrieval_entries import (
    Query,
    rank_queries,
    read_method,
    read_recalls,
    search_captions,
    search_images,
)
from rsvlm.viewing.thumbnails import bytes_for_each, make_thumbnail, shrink

PAGE = "retrieval.html"


def read_searches(
    method: str = "dual_encoder", *, split: str = "test", results: int = 5
) -> tuple[list[Query], list[Query]]:
    """All searches by caption, and all searches by image, of one method and split.

    Raises:
        FileNotFoundError, ValueError: the method's vectors were not made or do not fit the image table.
    """
    table = load_table(paths.IMAGE_TABLE)
    tests = retrieval_sets(table, split)
    space = read_method(method, table, split)
    return search_captions(space, tests, results), search_images(space, tests, results)


def write_retrieval_gallery(
    path: Path | None = None,
    *,
    method: str = "dual_encoder",
    split: str = "test",
    images: int = 60,
    results: int = 5,
    thumbnail_pixels: int = 144,
    page_megabytes: float = 5.0,
    seed: int = 0,
) -> dict[str, object]:
    """What was written: ``{"page", "method", "captions_searched", "images_searched", "thumbnails", "bytes"}``.

    Args:
        path: the page; by default ``retrieval.html`` in the study's galleries.
        method: ``dual_encoder``, ``ret`` or ``combined``.
        images: searches shown in each direction: best, worst and middle ones and a random sample.
        results: how many answers of each search are shown.
        thumbnail_pixels, page_megabytes: size of the pictures and of the page; JPEG quality gives way to the last.
    """
    path = path or paths.GALLERIES / PAGE
    table = load_table(paths.IMAGE_TABLE)
    row_of = {row.image_id: row for row in table[table["split"] == split].itertuples(index=False)}
    by_caption, by_image = read_searches(method, split=split, results=results)
    samples = [choose_sample(len(all_), rank_queries(all_), images, seed) for all_ in (by_caption, by_image)]
    captions, pictures = (
        [all_[position] for position in sample.positions]
        for all_, sample in zip((by_caption, by_image), samples, strict=True)
    )
    used = {hit.name for query in captions for hit in query.hits} | {query.name for query in pictures}
    number_of = {image_id: number for number, image_id in enumerate(sorted(used))}
    recalls = read_recalls()
    values = {
        "study": " + ".join(sorted({query.source for query in by_caption})),
        "split": split,
        "method": method,
        "results": results,
        "captions": captions,
        "pictures": pictures,
        "samples": samples,
        "sources": sorted({query.source for query in by_caption}),
        "recalls": recalls,
        "several": len({row["source"] for row in recalls}) > 1,
        "row_of": row_of,
        "number_of": number_of,
        "data": _page_data(captions, pictures, samples, row_of, number_of),
        "thumbnails": [],
    }
    text_bytes = len(render_page("retrieval.html", ["retrieval.js"], **values).encode())
    most = bytes_for_each(page_megabytes, len(number_of), text_bytes)
    values["thumbnails"] = [make_thumbnail(row_of[name].path, thumbnail_pixels, most) for name in number_of]
    size = write_page(path, render_page("retrieval.html", ["retrieval.js"], **values))
    return {
        "page": path.relative_to(paths.ROOT).as_posix() if path.is_relative_to(paths.ROOT) else path.name,
        "method": method,
        "captions_searched": len(by_caption),
        "images_searched": len(by_image),
        "thumbnails": len(number_of),
        "bytes": size,
    }


def draw_search_preview(queries: Sequence[Query], *, best: bool, count: int = 4) -> Figure:
    """The best or worst searches by caption, one row each: the images found, right ones framed, with their scores."""
    ranked = rank_queries(queries)
    chosen = [queries[i] for i in (ranked[:count] if best else ranked[::-1][:count])]
    table = load_table(paths.IMAGE_TABLE)
    path_of = dict(zip(table["image_id"], table["path"], strict=True))
    columns = max(len(query.hits) for query in chosen)
    rows, width = len(chosen), 1.75 * columns
    height = 2.35 * rows + 0.4
    # Placed by hand: constrained layout does not count the captions above the pictures.
    drawn, axes = figure(width, height, rows=rows, columns=columns, squeeze=False, layout="none", dpi=80)
    drawn.subplots_adjust(0.01, 0.25 / height, 0.99, 1 - 0.85 / height, wspace=0.06, hspace=0.42)
    title = f"The {rows} {'best' if best else 'worst'} searches by caption"
    drawn.text(0.01, 1 - 0.1 / height, title, va="top", fontsize=12, fontweight="bold")
    for line, query in zip(axes, chosen, strict=True):
        text = query.name if len(query.name) <= 95 else query.name[:94] + "…"
        place = {"xycoords": "axes fraction", "textcoords": "offset points", "fontsize": 8.5}
        line[0].annotate("“" + text.replace("$", r"\$") + "”", (0, 1), (0, 6), **place)
        for axis, hit in zip(line, query.hits, strict=False):
            axis.imshow(np.asarray(shrink(open_image(path_of[hit.name]), 160)), interpolation="lanczos")
            axis.set_xlabel(f"{hit.place}.  {hit.score:.2f}{'   right' if hit.right else ''}", fontsize=8, labelpad=3)
            axis.xaxis.label.set_color(GREEN if hit.right else MUTED)
            for spine in axis.spines.values():
                spine.set(visible=True, color=GREEN if hit.right else RULE, linewidth=3.5 if hit.right else 0.8)
        for axis in line:
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
        for axis in line[len(query.hits) :]:
            axis.set_axis_off()
    return drawn


def show_search_preview(queries: Sequence[Query], *, count: int = 4) -> None:
    """Draw and show the best and the worst searches in a notebook."""
    for best in (True, False):
        draw_search_preview(queries, best=best, count=count)
        plt.show()


def summarise_places(by_caption: Sequence[Query], by_image: Sequence[Query]) -> pd.DataFrame:
    """One row a direction: how many searches, and in percent how many have a right answer in the first 1, 5, 10."""
    rows = {}
    for name, queries in (("caption to images", by_caption), ("image to captions", by_image)):
        ranks = np.array([query.rank for query in queries])
        rows[name] = {"searches": len(ranks)} | {
            f"in first {k}": round(100 * float((ranks <= k).mean()), 1) for k in (1, 5, 10)
        }
        rows[name]["median place"] = math.floor(float(np.median(ranks)))
    return pd.DataFrame.from_dict(rows, orient="index")


def _page_data(
    captions: Sequence[Query],
    pictures: Sequence[Query],
    samples: Sequence[Sample],
    row_of: dict,
    number_of: dict[str, int],
) -> dict:
    """What the page's script needs of each search (in the cards' order) and of each picture."""
    items = [
        {
            "direction": query.direction,
            "draw": place if place < sample.drawn else None,
            "source": query.source,
            "rank": query.rank,
            "score": query.score,
        }
        for queries, sample in zip((captions, pictures), samples, strict=True)
        for place, query in enumerate(queries)
    ]
    images = [
        {"id": name, "label": row_of[name].label or "", "captions": list(dict.fromkeys(row_of[name].captions))}
        for name in number_of
    ]
    return {"items": items, "images": images}
