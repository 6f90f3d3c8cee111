"""The indexes of the search box: the images of each retrieval method, in a flat index or in a tier.

``exact``, the study's default, is FAISS's flat index (``IndexFlatIP``): exact inner products, 100,000 images in tens of
milliseconds on two cores, and nothing lost to an approximation. ``faiss`` and ``lancedb`` are the tiers of
``rsvlm.models.tiers``, for more images. ``dual_encoder`` holds every image; ``ret`` and ``combined`` those that have embeddings
from ``[RET]``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from rsvlm.extras import import_extra
from rsvlm.files import read_json, whole_folder, write_json
from rsvlm.models.faiss_tier import write_index
from rsvlm.models.image_filters import Where
from rsvlm.models.tier_folders import read_tier, write_tier
from rsvlm.models.tiers import Tier, batches
from rsvlm.viewing.records import StudyFiles
from rsvlm.viewing.retrieval_gallery import SEARCHED_BY, read_method

META, NO_INDEX = "index.json", "run the stage retrieval_gallery (notebook 86_retrieval_gallery)"
TIES = 32  # more than asked for, so that equal scores at the end of a result stand in the images' order
A_BLOCK = 65_536  # vectors that a tier is given at a time
CODED = 64  # a tier's vectors have a multiple of so many numbers, which its shortest codes stand for


@dataclass(frozen=True)
class SearchIndex:
    """The images of one method, ready to be searched.

    Attributes:
        weights: of the vectors' parts; one part of weight 1 where nothing is combined.
        splits: (N,) of the images; None where the image table does not know one.
        held: FAISS's flat index, or a tier.
        longest: length of the longest vector in a tier, see ``to_cosines``.
    """

    image_ids: list[str]
    weights: dict[str, float]
    splits: np.ndarray
    held: "object | Tier"
    longest: float = 0.0

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Row of each image id."""
        return {image_id: row for row, image_id in enumerate(self.image_ids)}

    def query(self, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        """(1, D): the query of these parts, each (1, D_part) of length 1, weighted as the images are."""
        return np.hstack([np.sqrt(weight) * parts[part] for part, weight in self.weights.items()]).astype(np.float32)

    def within(self, split: str | None) -> np.ndarray:
        """(N,) bool: which images a search of a split (None: of all) looks at."""
        return np.ones(len(self.image_ids), bool) if split is None else self.splits == split

    def search(self, vector: np.ndarray, count: int, *, split: str | None = None) -> list[tuple[str, float]]:
        """(image id, inner product) of the ``count`` best of a split, best first, ties in the images' order.

        Args:
            vector: (1, D).
        """
        if self.longest:
            return self._search_tier(vector, count, split)
        options, allowed = {}, len(self.image_ids)
        if split is not None:
            within = self.within(split)
            faiss, allowed = import_extra("faiss", "the search index"), int(within.sum())
            bits = np.packbits(within, bitorder="little")
            options["params"] = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bits))
        wanted = min(count + TIES, allowed)
        if wanted < 1 or count < 1:
            return []
        scores, rows = self.held.search(np.ascontiguousarray(vector, dtype=np.float32), wanted, **options)
        order = np.lexsort((rows[0], -scores[0]))[:count]
        return [(self.image_ids[rows[0, i]], float(scores[0, i])) for i in order]

    def _search_tier(self, vector: np.ndarray, count: int, split: str | None) -> list[tuple[str, float]]:
        if count < 1 or not self.within(split).any():
            return []
        length = float(np.linalg.norm(vector))
        if not length:  # all cosines are alike
            return [(self.image_ids[row], 0.0) for row in np.flatnonzero(self.within(split))[:count]]
        asked = np.pad(vector / length, ((0, 0), (0, _wide(vector.shape[1]) - vector.shape[1])))
        found = self.held.search(asked, count + TIES, None if split is None else Where(split=split))[0]
        found.sort(key=lambda hit: (-hit[1], self.row_of[hit[0]]))
        return [(name, score * length * self.longest) for name, score in found[:count]]


def to_cosines(vectors: np.ndarray, longest: float) -> np.ndarray:
    """(n, W) float16 of length 1, whose cosines with a query order as the inner products of (n, D) vectors do.

    One number more makes each as long as the longest (Bachrach et al. 2014, section 2.3); W is a multiple of CODED above D.
    """
    made = np.zeros((len(vectors), _wide(vectors.shape[1])), np.float32)
    made[:, : vectors.shape[1]] = vectors / longest
    made[:, vectors.shape[1]] = np.sqrt(np.clip(1 - np.square(made).sum(axis=1), 0, None))
    return made.astype(np.float16)


def _wide(width: int) -> int:
    return CODED * (width // CODED + 1)


def save_indexes(table: pd.DataFrame, files: StudyFiles, tier: str = "exact") -> pd.DataFrame:
    """What was indexed, one row a method: images, dimensions, weights; after writing it whole to ``files.search_index``.

    A method whose vectors or weights the study has not made is left out, with the reason in the column ``why not``.

    Args:
        tier: one of ``rsvlm.models.tiers.TIERS``.

    Raises:
        ModuleNotFoundError: the package that it needs is not installed.
    """
    rows, meta = {}, {}
    with whole_folder(files.search_index) as scratch:
        for method in SEARCHED_BY:
            try:
                space, weights = read_method(files, method, table)
            except (FileNotFoundError, ValueError) as error:
                rows[method] = {"images": 0, "dimensions": 0, "weights": "", "why not": str(error)}
                continue
            ids, vectors = list(space.image_ids), space.image_vectors
            meta[method] = {"image_ids": ids, "weights": weights}
            if tier == "exact":
                _write_flat(scratch / f"{method}.faiss", vectors)
            else:
                longest = float(np.linalg.norm(vectors, axis=1).max()) or 1.0
                known = table.set_index("image_id")[["source", "split"]].reindex(ids)
                blocks = (
                    ([ids[row] for row in part], to_cosines(vectors[part], longest), known.iloc[part])
                    for part in batches(np.arange(len(ids)), A_BLOCK)
                )
                write_tier(tier, scratch / method, _wide(vectors.shape[1]), len(ids), blocks, {"made_of": method})
                meta[method] |= {"dimensions": vectors.shape[1], "longest": longest}
            shown = ", ".join(f"{part} {weight:g}" for part, weight in weights.items())
            rows[method] = {"images": len(ids), "dimensions": vectors.shape[1], "weights": shown, "why not": ""}
        write_json(scratch / META, meta)
    return pd.DataFrame.from_dict(rows, orient="index")


def _write_flat(path: Path, vectors: np.ndarray) -> None:
    faiss = import_extra("faiss", "the search index")
    made = faiss.IndexFlatIP(vectors.shape[1])
    made.add(np.ascontiguousarray(vectors, dtype=np.float32))
    write_index(made, path)


def saved_methods(folder: Path) -> list[str]:
    """The methods that an index was saved of in this folder."""
    meta = read_json(folder / META) if (folder / META).is_file() else {}
    return [method for method in SEARCHED_BY if method in meta]


def load_index(method: str, folder: Path, table: pd.DataFrame) -> SearchIndex:
    """The saved index of a method.

    Args:
        table: the image table, which tells the images' splits.

    Raises:
        FileNotFoundError: the study has not saved it.
        ValueError: its files do not fit each other.
        ImportError: the package that it needs is not installed.
    """
    if method not in saved_methods(folder):
        raise FileNotFoundError(f"{folder}: no index of {method!r}; {NO_INDEX}")
    own = read_json(folder / META)[method]
    splits = table.set_index("image_id")["split"].reindex(own["image_ids"]).to_numpy()
    if "longest" in own:
        held = read_tier(folder / method, _wide(own["dimensions"]), NO_INDEX)
        if len(held) != len(own["image_ids"]):
            raise ValueError(f"{folder / method}: {len(held)} vectors for {len(own['image_ids'])} images; {NO_INDEX}")
        return SearchIndex(own["image_ids"], own["weights"], splits, held, own["longest"])
    return SearchIndex(own["image_ids"], own["weights"], splits, _read_flat(folder / f"{method}.faiss", own))


def _read_flat(path: Path, own: dict) -> object:
    faiss = import_extra("faiss", "the search index")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; {NO_INDEX}")
    try:
        read = faiss.read_index(str(path))
    except RuntimeError as error:
        raise ValueError(f"{path}: damaged ({str(error).splitlines()[0]}); {NO_INDEX}") from error
    if read.ntotal != len(own["image_ids"]):
        raise ValueError(f"{path}: {read.ntotal} vectors for {len(own['image_ids'])} images; {NO_INDEX}")
    return read
