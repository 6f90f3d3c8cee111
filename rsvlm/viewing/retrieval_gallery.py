"""What retrieval finds: the gallery of searches by caption and by image on one page."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import HTML

from rsvlm.data.table import rows_of
from rsvlm.files import read_json
from rsvlm.kernels import retrieval_ranks, similarity_topk
from rsvlm.models.features import load_features
from rsvlm.scoring.fusion import combine_spaces, make_parts
from rsvlm.scoring.published import RECALLS
from rsvlm.scoring.retrieval import EmbeddingSpace, load_space, retrieval_sets
from rsvlm.scoring.runs import METHODS
from rsvlm.scoring.terms import explained
from rsvlm.viewing.language_marks import captions_by_image, how_captions_came, language_marks
from rsvlm.viewing.page import (
    bytes_for_each,
    choose_sample,
    make_thumbnail,
    read_reported,
    render_page,
    show_cards,
    write_page,
)
from rsvlm.viewing.records import StudyFiles

SCRIPTS = ("dom.js", "retrieval.js")
TERMS_SHOWN = ("text to image", "image to text", "R@K", "mean recall", "mean recall by text")
SEARCHED_BY = ("dual_encoder", "ret", "combined")  # the methods of the page and of the search box, in its order


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


def read_method(
    files: StudyFiles, method: str, table: pd.DataFrame, split: str | None = None
) -> tuple[EmbeddingSpace, dict[str, float]]:
    """The vectors of images and captions that a retrieval method compares, and the weights of the vectors' parts.

    Args:
        split: whose images and captions a combination is made of; None: of all images in ``[RET]``'s space, no captions.

    Raises:
        ValueError: the method is unknown, or was not combined yet; says what to do.
        FileNotFoundError: its vectors were not made.
    """
    if method not in SEARCHED_BY:
        raise ValueError(f"method is {method!r}: give one of {', '.join(SEARCHED_BY)}")
    if method == "ret":
        return load_space(files.ret_embeddings), {"ret": 1.0}
    features = load_features(files.features)
    dual = EmbeddingSpace(features.image_ids, features.image_embeddings, features.texts, features.text_embeddings)
    if method == "dual_encoder":
        return dual, {"dual_encoder": 1.0}
    path = files.metrics / "score_retrieval.json"
    chosen = (read_json(path) if path.is_file() else {}).get("protocol", {}).get("combined")
    if not chosen or not chosen.get("weights"):
        raise ValueError(
            f"{path}: no weights of the combination; run the stage score_retrieval, or take another method"
        )
    ret = load_space(files.ret_embeddings)
    image_ids, texts = ret.image_ids, []
    if split is not None:
        rows = table[table["split"] == split]
        image_ids, texts = list(rows["image_id"]), sorted({caption for own in rows["captions"] for caption in own})
    options = {name: chosen[name] for name in ("neighbours", "temperature", "hubness_neighbours")}
    parts = make_parts(dual, ret, rows_of(table, split="train"), image_ids, texts, **options)
    weights = {part: weight for part, weight in sorted(chosen["weights"].items()) if weight > 0}  # as JSON keeps them
    return combine_spaces(parts, weights, image_ids, texts), weights


def read_searches(
    files: StudyFiles, method: str = "dual_encoder", *, split: str = "test", results: int = 5
) -> tuple[list[Query], list[Query]]:
    """All searches by caption, and all searches by image, of one method and split, each among its own source.

    Each distinct caption looks for images, and any that carries it is right; each image looks for distinct captions,
    and its own are right.

    Raises:
        FileNotFoundError, ValueError: the method's vectors were not made or do not fit the image table.
    """
    if results < 1:
        raise ValueError(f"results is {results}: give at least 1")
    table = files.read_table()
    tests = retrieval_sets(table, split)
    space, _ = read_method(files, method, table, split)
    by_caption, by_image = [], []
    for source, test in tests.items():
        pairs = sorted(set(zip(test.row_image.tolist(), test.row_text.tolist())))
        images, texts = (test.image_ids, space.images(test.image_ids)), (test.texts, space.text(test.texts))
        by_caption += _search("text_to_image", source, texts, images, [(text, image) for image, text in pairs], results)
        by_image += _search("image_to_text", source, images, texts, pairs, results)
    return by_caption, by_image


def rank_queries(queries: Sequence[Query]) -> list[int]:
    """Positions of the queries, best first: by rank, then by the right answer's score, then by name."""
    return sorted(range(len(queries)), key=lambda i: (queries[i].rank, -queries[i].score, queries[i].name))


def read_recalls(files: StudyFiles) -> list[dict]:
    """The recalls by image as rows ``{"method", "source", "scores": {name: {"value", "low", ...}}, "by_text"}``.

    The last row of each source is the ceiling. Without the file of the stage score_retrieval the answer is empty.
    """
    path = files.metrics / "score_retrieval.json"
    content = read_json(path) if path.is_file() else {}
    rows, ceilings = [], {}
    for method in SEARCHED_BY:
        for source, kinds in content.get(method, {}).items():
            rows.append(_recall_row(method, source, kinds["by_image"], kinds.get("by_text", {})))
            if "ceiling" in kinds:
                ceilings[source] = _recall_row("ceiling", source, kinds["ceiling"], {"mean_recall": {"value": 1.0}})
    return sorted([*rows, *ceilings.values()], key=lambda row: row["source"])  # stable: the ceiling stays last


def _recall_row(method: str, source: str, by_image: dict, by_text: dict) -> dict:
    scores = {name: read_reported(by_image.get(name)) for name in RECALLS}
    return {"method": method, "source": source, "scores": scores, "by_text": read_reported(by_text.get("mean_recall"))}


def _search(
    direction: str,
    source: str,
    asking: tuple[list[str], np.ndarray],
    asked: tuple[list[str], np.ndarray],
    pairs: list[tuple[int, int]],
    results: int,
) -> Iterator[Query]:
    """The searches of all that asks (names and vectors) among all that is asked.

    Args:
        pairs: (number of what asks, number of a right answer), each once.
    """
    (names, queries), (item_names, items) = asking, asked
    queries, items = np.ascontiguousarray(queries), np.ascontiguousarray(items)
    right: list[list[int]] = [[] for _ in names]
    for number, item in sorted(pairs):
        right[number].append(item)
    top_scores, top_items = similarity_topk(queries, items, min(results, len(items)), normalize=False)
    offsets = np.concatenate([[0], np.cumsum([len(own) for own in right])])
    ids = np.array([item for own in right for item in own], dtype=np.int64)
    ranks = retrieval_ranks(queries, items, (offsets, ids), normalize=False)
    for number, name in enumerate(names):
        own = right[number]
        found = zip(top_scores[number].tolist(), top_items[number].tolist(), strict=True)
        hits = [
            Hit(item_names[item], round(score, 4), item in own, place)
            for place, (score, item) in enumerate(found, start=1)
        ]
        first = next((hit for hit in hits if hit.right), None)
        if first is None:
            scores = items[own] @ queries[number]
            # Other answers with just the same score may stand before it: counted half, as over a random order.
            rank = 1 + int(ranks.greater[number]) + int(ranks.equal[number]) // (int(ranks.tied[number]) + 1)
            best = item_names[own[int(scores.argmax())]]
            first = Hit(best, round(float(scores.max()), 4), True, max(rank, len(hits) + 1))
            hits.append(first)
        yield Query(direction, source, name, first.place, first.score, len(item_names), len(own), tuple(hits))


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
    rows = files.read_table(split=split)
    translations = files.read_translations(rows)
    foreign, rows = captions_by_image(translations), rows.set_index("image_id")
    searches = read_searches(files, method, split=split, results=results)
    samples = [choose_sample(len(own), rank_queries(own), images, seed) for own in searches]
    captions, pictures = ([own[i] for i in sample.positions] for own, sample in zip(searches, samples, strict=True))
    used = sorted({hit.name for query in captions for hit in query.hits} | {query.name for query in pictures})
    label_of = {name: rows.loc[name, "label"] or "" for name in used}
    sources = sorted({query.source for query in searches[0]})
    recalls = read_recalls(files)
    items = [
        {"direction": query.direction, "draw": place if place < sample.drawn else None}
        | {"source": query.source, "rank": query.rank, "score": query.score}
        for queries, sample in zip((captions, pictures), samples, strict=True)
        for place, query in enumerate(queries)
    ]
    shown = [
        {"id": name, "label": label_of[name], "captions": list(dict.fromkeys(rows.loc[name, "captions"]))}
        | {"languages": {code: list(dict.fromkeys(own)) for code, own in foreign.get(name, {}).items()}}
        for name in used
    ]
    values = {
        "study": " + ".join(sources),
        "split": split,
        "method": method,
        "results": results,
        "captions": captions,
        "pictures": pictures,
        "samples": samples,
        "sources": sources,
        "recalls": recalls,
        "several": len({row["source"] for row in recalls}) > 1,
        "label_of": label_of,
        "number_of": {name: number for number, name in enumerate(used)},
        "terms": explained(
            [*(METHODS[row["method"]].name for row in recalls), METHODS[method].name, "ceiling", *TERMS_SHOWN]
        ),
        "data": {"items": items, "images": shown, "searches": [sample.total for sample in samples]}
        | {"languages": language_marks(how_captions_came(translations))},
    }
    text_bytes = len(render_page("retrieval.html", SCRIPTS, thumbnails=[], **values).encode())
    most = bytes_for_each(page_megabytes, len(used), text_bytes)
    thumbnails = [make_thumbnail(rows.loc[name, "path"], thumbnail_pixels, most) for name in used]
    size = write_page(path, render_page("retrieval.html", SCRIPTS, thumbnails=thumbnails, **values))
    return {
        "page": files.shown(path),
        "method": method,
        "captions_searched": len(searches[0]),
        "images_searched": len(searches[1]),
        "thumbnails": len(used),
        "bytes": size,
    }


def show_search_preview(queries: Sequence[Query], table: pd.DataFrame, *, count: int = 4) -> HTML:
    """The best and the worst searches by caption with the images found, right ones framed, for a notebook."""
    ranked, rows = rank_queries(queries), []
    path_of = dict(zip(table["image_id"], table["path"], strict=True))
    for word, chosen in (("best", ranked[:count]), ("worst", ranked[::-1][:count])):
        rows.append({"head": f"The {len(chosen)} {word} searches by caption", "words": "", "cards": []})
        for query in (queries[position] for position in chosen):
            cards = [
                {
                    "picture": make_thumbnail(path_of[hit.name], 160),
                    "bold": f"{hit.place}.",
                    "title": f"{hit.score:.2f}{', right' if hit.right else ''}",
                    "right": hit.right,
                }
                for hit in query.hits
            ]
            rows.append({"head": "", "words": f"“{query.name}”", "cards": cards})
    return show_cards(rows, width=130)


def summarise_places(by_caption: Sequence[Query], by_image: Sequence[Query]) -> pd.DataFrame:
    """One row a direction: how many searches, and in percent how many have a right answer in the first 1, 5, 10."""
    rows = {}
    for name, queries in (("caption to images", by_caption), ("image to captions", by_image)):
        ranks = np.array([query.rank for query in queries])
        first = {f"in first {k}": round(100 * float((ranks <= k).mean()), 1) for k in (1, 5, 10)}
        rows[name] = {"searches": len(ranks), **first, "median place": int(np.median(ranks))}
    return pd.DataFrame.from_dict(rows, orient="index")
