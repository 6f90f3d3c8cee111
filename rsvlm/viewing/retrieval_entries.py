"""What the retrieval gallery shows: captions with the images found for them, and images with the captions found."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rsvlm import paths
from rsvlm.files import read_json
from rsvlm.kernels import retrieval_ranks, similarity_topk
from rsvlm.models.features import load_features
from rsvlm.scoring.embedding_spaces import EmbeddingSpace, load_space
from rsvlm.scoring.fusion import combine_spaces, make_parts
from rsvlm.scoring.retrieval_sets import RetrievalSet
from rsvlm.viewing.page import read_reported

METHODS = ("dual_encoder", "ret", "combined")
RECALLS = ("t2i_r1", "t2i_r5", "t2i_r10", "i2t_r1", "i2t_r5", "i2t_r10", "mean_recall")


@dataclass(frozen=True)
class Hit:
    """One thing found: its name (image id, or caption), its score, whether it is right, and its place from 1."""

    name: str
    score: float
    right: bool
    place: int


@dataclass(frozen=True)
class Query:
    """One search: a caption that looks for images ("t2i"), or an image that looks for captions ("i2t")."""

    direction: str
    source: str
    name: str  # the caption, or the image id
    rank: int  # place of the first right answer, from 1
    score: float  # of the first right answer
    candidates: int  # how many things were searched
    right_answers: int
    hits: tuple[Hit, ...]  # the first ones found; last the first right answer, where it lies further down


def read_method(method: str, table: pd.DataFrame, split: str) -> EmbeddingSpace:
    """The vectors of images and captions that a retrieval method compares, for one split.

    Raises:
        ValueError: the method is unknown, or was not combined yet; says what to do.
        FileNotFoundError: its vectors were not made.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}: give one of {', '.join(METHODS)}")
    if method == "ret":
        return load_space(paths.RET_EMBEDDINGS)
    features = load_features(paths.FEATURES)
    dual = EmbeddingSpace(features.image_ids, features.image_embeddings, features.texts, features.text_embeddings)
    if method == "dual_encoder":
        return dual
    chosen = read_combination()
    rows = table[table["split"] == split]
    image_ids = list(rows["image_id"])
    texts = sorted({caption for own in rows["captions"] for caption in own})
    training = table[table["split"] == "train"]
    spaces = make_parts(dual, load_space(paths.RET_EMBEDDINGS), training, image_ids, texts, **combination_options(chosen))
    return combine_spaces(spaces, chosen["weights"], image_ids, texts)


def search_captions(space: EmbeddingSpace, tests: dict[str, RetrievalSet], results: int = 5) -> list[Query]:
    """Each distinct caption of each source as a search among its images; any image that carries it is right."""
    queries = []
    for source, test in tests.items():
        right = _images_by_text(test)
        vectors = space.text(test.texts), space.images(test.image_ids)
        queries += _search(*vectors, right, "t2i", source, test.texts, test.image_ids, results)
    return queries


def search_images(space: EmbeddingSpace, tests: dict[str, RetrievalSet], results: int = 5) -> list[Query]:
    """Each image as a search among its source's distinct captions; its own captions are right."""
    queries = []
    for source, test in tests.items():
        own: list[set[int]] = [set() for _ in test.image_ids]
        for image, text in zip(test.row_image.tolist(), test.row_text.tolist(), strict=True):
            own[image].add(text)
        vectors = space.images(test.image_ids), space.text(test.texts)
        queries += _search(*vectors, own, "i2t", source, test.image_ids, test.texts, results)
    return queries


def rank_queries(queries: Sequence[Query]) -> list[int]:
    """Positions of the queries, best first: by rank, then by the right answer's score, then by name."""
    return sorted(range(len(queries)), key=lambda i: (queries[i].rank, -queries[i].score, queries[i].name))


def read_recalls() -> list[dict]:
    """The recalls by image as rows ``{"method", "source", "scores": {name: {"value", "low", ...}}, "by_text"}``.

    The last row of each source is the ceiling. Without the file of the stage score_retrieval the answer is empty.
    """
    path = paths.METRICS / "score_retrieval.json"
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


def read_combination() -> dict:
    """``{"weights", "neighbours", "temperature", "hub_neighbours"}`` of the combined method, as the stage score_retrieval chose them.

    Raises:
        ValueError: they were not chosen yet.
    """
    path = paths.METRICS / "score_retrieval.json"
    content = read_json(path) if path.is_file() else {}
    chosen = content.get("protocol", {}).get("combined")
    if not chosen or not chosen.get("weights"):
        raise ValueError(
            f"{path}: no weights of the combination; run the stage score_retrieval, or take another method"
        )
    return chosen


def combination_options(chosen: dict) -> dict:
    """What ``make_parts`` needs beside the spaces, of what ``read_combination`` gives."""
    return {name: chosen[name] for name in ("neighbours", "temperature", "hub_neighbours")}


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
