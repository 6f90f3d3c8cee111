"""The retrieval gallery: searches with what they found, as entries and as a page.

What the retrieval gallery shows: captions with the images found for them, and images with the captions found.

The retrieval gallery: searches by caption and by image with what they found, on one page.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rsvlm.data.images import open_image
from rsvlm.files import read_json
from rsvlm.kernels import retrieval_ranks, similarity_topk
from rsvlm.models.features import load_features
from rsvlm.scoring.fusion import combine_spaces, make_parts
from rsvlm.scoring.published import RECALLS
from rsvlm.scoring.retrieval import EmbeddingSpace, RetrievalSet, load_space, retrieval_sets
from rsvlm.viewing.caption_entries import StudyFiles
from rsvlm.viewing.page import Sample, choose_sample, read_reported, render_page, write_page
from rsvlm.viewing.plots import GREEN, MUTED, RULE, figure, shrink
from rsvlm.viewing.thumbnails import bytes_for_each, make_thumbnail

METHODS = ("dual_encoder", "ret", "combined")


@dataclass(frozen=True)
class Hit:
    """One thing found: its name (image id, or caption), its score, whether it is right, and its place from 1."""

    name: str
    score: float
    right: bool
    place: int


@dataclass(frozen=True)
class Query:
    """One search: a caption that looks for images ("text_to_image"), or an image that looks for captions ("image_to_text")."""

    direction: str
    source: str
    name: str  # the caption, or the image id
    rank: int  # place of the first right answer, from 1
    score: float  # of the first right answer
    candidates: int  # how many things were searched
    right_answers: int
    hits: tuple[Hit, ...]  # the first ones found; last the first right answer, where it lies further down


def read_method(files: StudyFiles, method: str, table: pd.DataFrame, split: str) -> EmbeddingSpace:
    """The vectors of images and captions that a retrieval method compares, for one split.

    Raises:
        ValueError: the method is unknown, or was not combined yet; says what to do.
        FileNotFoundError: its vectors were not made.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}: give one of {', '.join(METHODS)}")
    if method == "ret":
        return load_space(files.ret_embeddings)
    features = load_features(files.features)
    dual = EmbeddingSpace(features.image_ids, features.image_embeddings, features.texts, features.text_embeddings)
    if method == "dual_encoder":
        return dual
    chosen = read_combination(files)
    rows = table[table["split"] == split]
    image_ids = list(rows["image_id"])
    texts = sorted({caption for own in rows["captions"] for caption in own})
    training = table[table["split"] == "train"]
    spaces = make_parts(
        dual, load_space(files.ret_embeddings), training, image_ids, texts, **combination_options(chosen)
    )
    return combine_spaces(spaces, chosen["weights"], image_ids, texts)


def search_captions(space: EmbeddingSpace, tests: dict[str, RetrievalSet], results: int = 5) -> list[Query]:
    """Each distinct caption of each source as a search among its images; any image that carries it is right."""
    queries = []
    for source, test in tests.items():
        right = _images_by_text(test)
        vectors = space.text(test.texts), space.images(test.image_ids)
        queries += _search(*vectors, right, "text_to_image", source, test.texts, test.image_ids, results)
    return queries


def search_images(space: EmbeddingSpace, tests: dict[str, RetrievalSet], results: int = 5) -> list[Query]:
    """Each image as a search among its source's distinct captions; its own captions are right."""
    queries = []
    for source, test in tests.items():
        own: list[set[int]] = [set() for _ in test.image_ids]
        for image, text in zip(test.row_image.tolist(), test.row_text.tolist(), strict=True):
            own[image].add(text)
        vectors = space.images(test.image_ids), space.text(test.texts)
        queries += _search(*vectors, own, "image_to_text", source, test.image_ids, test.texts, results)
    return queries


def rank_queries(queries: Sequence[Query]) -> list[int]:
    """Positions of the queries, best first: by rank, then by the right answer's score, then by name."""
    return sorted(range(len(queries)), key=lambda i: (queries[i].rank, -queries[i].score, queries[i].name))


def read_recalls(files: StudyFiles) -> list[dict]:
    """The recalls by image as rows ``{"method", "source", "scores": {name: {"value", "low", ...}}, "by_text"}``.

    The last row of each source is the ceiling. Without the file of the stage score_retrieval the answer is empty.
    """
    path = files.metrics / "score_retrieval.json"
    if not path.is_file():
        return []
    content = read_json(path)
    rows, ceilings = [], {}
    for method in METHODS:
        for source, kinds in (content.get(method) or {}).items():
            by_text = read_reported(kinds.get("by_text", {}).get("mean_recall"))
            rows.append({"method": method, "source": source, "scores": _recalls(kinds["by_image"]), "by_text": by_text})
            if "ceiling" in kinds:
                ceilings[source] = _recalls(kinds["ceiling"])
    perfect = read_reported(1.0)
    rows += [{"method": "ceiling", "source": name, "scores": own, "by_text": perfect} for name, own in ceilings.items()]
    return sorted(rows, key=lambda row: row["source"])  # stable: methods stay in their order, the ceiling last


def read_combination(files: StudyFiles) -> dict:
    """``{"weights", "neighbours", "temperature", "hubness_neighbours"}`` of the combined method, as the stage score_retrieval chose them.

    Raises:
        ValueError: they were not chosen yet.
    """
    path = files.metrics / "score_retrieval.json"
    content = read_json(path) if path.is_file() else {}
    chosen = content.get("protocol", {}).get("combined")
    if not chosen or not chosen.get("weights"):
        raise ValueError(
            f"{path}: no weights of the combination; run the stage score_retrieval, or take another method"
        )
    return chosen


def combination_options(chosen: dict) -> dict:
    """What ``make_parts`` needs beside the spaces, of what ``read_combination`` gives."""
    return {name: chosen[name] for name in ("neighbours", "temperature", "hubness_neighbours")}


def _recalls(entries: dict) -> dict:
    return {name: read_reported(entries.get(name)) for name in RECALLS}


def _images_by_text(test: RetrievalSet) -> list[set[int]]:
    carriers: list[set[int]] = [set() for _ in test.texts]
    for image, text in zip(test.row_image.tolist(), test.row_text.tolist(), strict=True):
        carriers[text].add(image)
    return carriers


def _search(
    queries: np.ndarray,
    items: np.ndarray,
    right: list[set[int]],
    direction: str,
    source: str,
    query_names: list[str],
    item_names: list[str],
    results: int,
) -> list[Query]:
    if results < 1:
        raise ValueError(f"results is {results}: give at least 1")
    queries, items = np.ascontiguousarray(queries), np.ascontiguousarray(items)
    top_scores, top_items = similarity_topk(queries, items, min(results, len(items)), normalize=False)
    offsets = np.concatenate([[0], np.cumsum([len(own) for own in right])])
    ids = np.array([item for own in right for item in sorted(own)], dtype=np.int64)
    ranks = retrieval_ranks(queries, items, (offsets, ids), normalize=False)
    found = []
    for number, name in enumerate(query_names):
        hits = [
            Hit(item_names[item], round(score, 4), item in right[number], place)
            for place, (score, item) in enumerate(
                zip(top_scores[number].tolist(), top_items[number].tolist(), strict=True), start=1
            )
        ]
        first = next((hit for hit in hits if hit.right), None)
        if first is None:
            own = np.array(sorted(right[number]))
            scores = items[own] @ queries[number]
            # Other answers with just the same score may stand before it: counted half, as over a random order.
            rank = 1 + int(ranks.greater[number]) + int(ranks.equal[number]) // (int(ranks.tied[number]) + 1)
            best = int(own[int(scores.argmax())])
            first = Hit(item_names[best], round(float(scores.max()), 4), True, max(rank, len(hits) + 1))
            hits.append(first)
        found.append(
            Query(direction, source, name, first.place, first.score, len(item_names), len(right[number]), tuple(hits))
        )
    return found


def read_searches(
    files: StudyFiles, method: str = "dual_encoder", *, split: str = "test", results: int = 5
) -> tuple[list[Query], list[Query]]:
    """All searches by caption, and all searches by image, of one method and split.

    Raises:
        FileNotFoundError, ValueError: the method's vectors were not made or do not fit the image table.
    """
    table = files.read_table()
    tests = retrieval_sets(table, split)
    space = read_method(files, method, table, split)
    return search_captions(space, tests, results), search_images(space, tests, results)


def write_retrieval_gallery(
    path: Path,
    files: StudyFiles,
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
        path: the page.
        files: its table, features, embeddings from ``[RET]`` and metrics are read.
        method: ``dual_encoder``, ``ret`` or ``combined``.
        images: searches shown in each direction: best, worst and middle ones and a random sample.
        results: how many answers of each search are shown.
        thumbnail_pixels, page_megabytes: size of the pictures and of the page; JPEG quality gives way to the last.
    """
    table = files.read_table()
    row_of = {row.image_id: row for row in table[table["split"] == split].itertuples(index=False)}
    by_caption, by_image = read_searches(files, method, split=split, results=results)
    samples = [choose_sample(len(all_), rank_queries(all_), images, seed) for all_ in (by_caption, by_image)]
    captions, pictures = (
        [all_[position] for position in sample.positions]
        for all_, sample in zip((by_caption, by_image), samples, strict=True)
    )
    used = {hit.name for query in captions for hit in query.hits} | {query.name for query in pictures}
    number_of = {image_id: number for number, image_id in enumerate(sorted(used))}
    recalls = read_recalls(files)
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
        "page": files.shown(path),
        "method": method,
        "captions_searched": len(by_caption),
        "images_searched": len(by_image),
        "thumbnails": len(number_of),
        "bytes": size,
    }


def draw_search_preview(queries: Sequence[Query], table: pd.DataFrame, *, best: bool, count: int = 4) -> Figure:
    """The best or worst searches by caption, one row each: the images found, right ones framed, with their scores."""
    ranked = rank_queries(queries)
    chosen = [queries[i] for i in (ranked[:count] if best else ranked[::-1][:count])]
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


def show_search_preview(queries: Sequence[Query], table: pd.DataFrame, *, count: int = 4) -> None:
    """Draw and show the best and the worst searches in a notebook."""
    for best in (True, False):
        draw_search_preview(queries, table, best=best, count=count)
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
