"""FAISS indexes of the study's images, one a retrieval method, for the search box.

Exact inner products (``IndexFlatIP``): 100,000 images take tens of milliseconds on two cores, and nothing is lost to an
approximation. ``dual_encoder`` holds every image; ``ret`` and ``combined`` those that have embeddings from ``[RET]``.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from rsvlm.extras import import_extra
from rsvlm.files import read_json, whole_folder, write_json
from rsvlm.models.features import load_features
from rsvlm.scoring.fusion import make_parts
from rsvlm.scoring.retrieval import EmbeddingSpace, load_space
from rsvlm.viewing.caption_entries import StudyFiles
from rsvlm.viewing.retrieval_gallery import METHODS, combination_options, read_combination

META = "index.json"
TIES = 32  # more than asked for, so that equal scores at the end of a result stand in the images' order


@dataclass(frozen=True)
class SearchIndex:
    """The images of one method, ready to be searched."""

    method: str
    image_ids: list[str]
    weights: dict[
        str, float
    ]  # how much each part of the vectors counts; one part of weight 1 where nothing is combined
    faiss_index: object

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Row of each image id."""
        return {image_id: row for row, image_id in enumerate(self.image_ids)}

    def vector(self, image_id: str) -> np.ndarray:
        """(1, D) of an image. ValueError: it is not in the index."""
        if image_id not in self.row_of:
            raise ValueError(f"image {image_id!r} is not in the index {self.method}")
        return self.faiss_index.reconstruct(self.row_of[image_id])[None]

    def query(self, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        """(1, D): the query of these parts, each (1, D_part) of length 1, weighted as the images are."""
        return np.hstack([np.sqrt(weight) * parts[part] for part, weight in self.weights.items()]).astype(np.float32)

    def search(self, vector: np.ndarray, count: int, *, within: np.ndarray | None = None) -> list[tuple[str, float]]:
        """(image id, score) of the ``count`` best, best first, ties in the images' order.

        Args:
            vector: (1, D).
            within: (N,) bool: the images that may be found; None: all.
        """
        faiss = import_extra("faiss", "the search index")
        options = {}
        allowed = len(self.image_ids) if within is None else int(within.sum())
        if within is not None:
            bits = np.packbits(within, bitorder="little")
            options["params"] = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bits))
        wanted = min(count + TIES, allowed)
        if wanted < 1 or count < 1:
            return []
        vector = np.ascontiguousarray(vector, dtype=np.float32)
        scores, rows = self.faiss_index.search(vector, wanted, **options)
        order = np.lexsort((rows[0], -scores[0]))[:count]
        return [(self.image_ids[rows[0, i]], float(scores[0, i])) for i in order]


def save_indexes(table: pd.DataFrame, files: StudyFiles) -> pd.DataFrame:
    """What was indexed, one row a method: images, dimensions, weights; after writing it whole to ``files.search_index``.

    A method whose vectors or weights the study has not made is left out, with the reason in the column ``why not``.
    """
    faiss = import_extra("faiss", "the search index")
    rows, meta = {}, {}
    with whole_folder(files.search_index) as scratch:
        for method in METHODS:
            try:
                image_ids, vectors, weights = _vectors_of(files, method, table)
            except (FileNotFoundError, ValueError) as error:
                rows[method] = {"images": 0, "dimensions": 0, "weights": "", "why not": str(error)}
                continue
            made = faiss.IndexFlatIP(vectors.shape[1])
            made.add(np.ascontiguousarray(vectors, dtype=np.float32))
            faiss.write_index(made, str(scratch / f"{method}.faiss"))
            meta[method] = {"image_ids": list(image_ids), "weights": weights}
            shown = ", ".join(f"{part} {weight:g}" for part, weight in weights.items())
            rows[method] = {"images": len(vectors), "dimensions": vectors.shape[1], "weights": shown, "why not": ""}
        write_json(scratch / META, meta)
    return pd.DataFrame.from_dict(rows, orient="index")


def saved_methods(folder: Path) -> list[str]:
    """The methods that an index was saved of in this folder."""
    meta = folder / META
    return [method for method in METHODS if method in read_json(meta)] if meta.is_file() else []


def load_index(method: str, folder: Path) -> SearchIndex:
    """The saved index of a method.

    Raises:
        FileNotFoundError: the study has not saved it.
        ValueError: its files do not fit each other.
        ImportError: FAISS is not installed.
    """
    remedy = "run the stage retrieval_gallery (notebook 86_retrieval_gallery)"
    if method not in saved_methods(folder):
        raise FileNotFoundError(f"{folder}: no index of {method!r}; {remedy}")
    faiss = import_extra("faiss", "the search index")
    own = read_json(folder / META)[method]
    path = folder / f"{method}.faiss"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; {remedy}")
    try:
        read = faiss.read_index(str(path))
    except RuntimeError as error:
        raise ValueError(f"{path}: damaged ({str(error).splitlines()[0]}); {remedy}") from error
    if read.ntotal != len(own["image_ids"]):
        raise ValueError(f"{path}: {read.ntotal} vectors for {len(own['image_ids'])} images; {remedy}")
    return SearchIndex(method, own["image_ids"], own["weights"], read)


def mask_of(index: SearchIndex, image_ids: Iterable[str]) -> np.ndarray:
    """(N,) bool: which images of the index are among these."""
    wanted = set(image_ids)
    return np.array([image_id in wanted for image_id in index.image_ids], dtype=bool)


def _vectors_of(
    files: StudyFiles, method: str, table: pd.DataFrame
) -> tuple[Sequence[str], np.ndarray, dict[str, float]]:
    """Image ids, their vectors (n, D), and the weight of each part of these."""
    features = load_features(files.features)
    if method == "dual_encoder":
        return features.image_ids, features.image_embeddings, {"dual_encoder": 1.0}
    ret = load_space(files.ret_embeddings)
    if method == "ret":
        return ret.image_ids, ret.image_vectors, {"ret": 1.0}
    chosen = read_combination(files)
    weights = {part: weight for part, weight in sorted(chosen["weights"].items()) if weight > 0}  # as JSON keeps them
    dual = EmbeddingSpace(features.image_ids, features.image_embeddings, features.texts, features.text_embeddings)
    training = table[table["split"] == "train"]
    spaces = make_parts(dual, ret, training, ret.image_ids, [], **combination_options(chosen))
    parts = [np.sqrt(weight) * spaces[part].images(ret.image_ids) for part, weight in weights.items()]
    return ret.image_ids, np.hstack(parts), weights
