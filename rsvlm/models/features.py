"""Features of images: arrays in memory, or kept in a folder and memory-mapped.

A folder of features (``rsvlm.models.feature_shards`` makes it) holds ``pooled.npy`` (N, V, P) and ``grid.npy`` (N, V, G, P) in
float16, ``image_embeddings.npy`` (N, D) and ``text_embeddings.npy`` (M, D) in float32 with length 1, ``texts.json`` (the M
distinct captions, sorted) and ``meta.json``. Rows are in the order of the caption table; view 0 is the upright image.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from rsvlm.files import fingerprint_values, read_array, read_json
from rsvlm.kernels import similarity_topk
from rsvlm.models.encoders import DualEncoder
from rsvlm.models.encoding import NEVER, check_crops, encode_batch, encode_texts, join_pictures, prepare_picture
from rsvlm.models.loading import choose_device, choose_precision
from rsvlm.models.zoo import load_encoder
from rsvlm.safe_text import fault_in


@dataclass(frozen=True)
class Features:
    """The arrays of a features folder; see the module's head for shapes."""

    pooled: np.ndarray
    grid: np.ndarray | None
    image_embeddings: np.ndarray
    text_embeddings: np.ndarray
    texts: list[str]
    image_ids: list[str]
    meta: dict

    @cached_property
    def _row_of_image(self) -> dict[str, int]:
        return {image_id: row for row, image_id in enumerate(self.image_ids)}

    @cached_property
    def _row_of_text(self) -> dict[str, int]:
        return {text: row for row, text in enumerate(self.texts)}

    def rows(self, image_ids: Sequence[str]) -> np.ndarray:
        """Row numbers (int64) of these images. ValueError names the first that has no features."""
        return _look_up(self._row_of_image, image_ids, "image")

    def text_rows(self, captions: Sequence[str]) -> np.ndarray:
        """Row numbers (int64) of these captions. ValueError names the first that was not encoded."""
        return _look_up(self._row_of_text, captions, "caption")


@torch.no_grad()
def encode_pictures(
    encoder: DualEncoder,
    pictures: Iterable[Image.Image],
    names: Sequence[str],
    *,
    views: int = 1,
    grid: int = 0,
    crops: str = NEVER,
    precision: str = "fp32",
    batch_size: int = 32,
) -> Features:
    """Features of RGB pictures in memory; nothing is written.

    Args:
        pictures: looked at one after the other, and encoded ``batch_size`` at a time.
        names: one a picture, which stand as image ids.
        views, grid, crops, precision: as ``encode_images`` takes them.
    """
    check_crops(crops, grid)
    encoder.eval()
    precision = choose_precision(precision, encoder.device)
    P, D = encoder.feature_dim, encoder.embedding_dim
    parts = [{"pooled": np.zeros((0, views, P), np.float16), "image_embeddings": np.zeros((0, D), np.float32)}]
    if grid:
        parts[0]["grid"] = np.zeros((0, views, grid * grid, P), np.float16)
    pictures = iter(pictures)
    while batch := [prepare_picture(one, encoder.preprocessing, grid, crops) for one in islice(pictures, batch_size)]:
        pixels, fine = join_pictures(batch)
        parts.append(encode_batch(encoder, pixels, views, grid, precision, fine))
    arrays = {"grid": None} | {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if len(arrays["pooled"]) != len(names):
        raise ValueError(f"{len(names)} names for {len(arrays['pooled'])} pictures")
    meta = {"views": views, "grid": grid, "precision": precision} | ({} if crops == NEVER else {"crops": crops})
    return Features(**arrays, text_embeddings=np.zeros((0, D), np.float32), texts=[], image_ids=list(names), meta=meta)


def caption_encoder(features: Features, encoder: Path, device: str = "cpu") -> Callable[..., np.ndarray]:
    """A function from texts, and whether to capitalise them (default: as the features), to unit vectors (n, D).

    The vectors lie in the features' space. The encoder is loaded when it is first called.

    Args:
        device: of the encoder, as ``choose_device`` takes it.

    Raises:
        ValueError: (when called) the features come from another encoder.
    """

    @cache
    def model() -> DualEncoder:
        loaded = load_encoder(str(encoder), choose_device(device))
        if loaded.fingerprint() != features.meta["encoder_fingerprint"]:
            raise ValueError(
                f"{encoder}: not the encoder that made the features; run the stage encode_images again, so that"
                " captions and images are measured in one space"
            )
        return loaded

    precision, as_made = features.meta["precision"], bool(features.meta["capitalise"])
    return lambda texts, capitalise=as_made: encode_texts(model(), texts, capitalise=capitalise, precision=precision)


def encoding_of(meta: Mapping[str, object]) -> dict[str, object]:
    """How features of this ``Features.meta`` were made, as ``encode_pictures`` takes it.

    Raises:
        KeyError: views, grid or precision is missing; without crops there were none.
    """
    return {name: meta[name] for name in ("views", "grid", "precision")} | {"crops": meta.get("crops", NEVER)}


def load_features(folder: Path) -> Features:
    """The features in ``folder``, arrays memory-mapped.

    Raises:
        FileNotFoundError: the folder or a file is missing.
        ValueError: a file is damaged or does not fit the others; names it.
    """
    folder = Path(folder)
    remedy = "run the stage encode_images again"
    if not (folder / "meta.json").is_file():
        raise FileNotFoundError(f"{folder}: no features (meta.json is missing): {remedy}")
    meta = read_json(folder / "meta.json")
    texts = read_json(folder / "texts.json")
    try:
        image_ids, V, grid = meta["image_ids"], meta["views"], meta["grid"]
        P, D = meta["dims"]["pooled"], meta["dims"]["embedding"]
        listed = meta["image_list_fingerprint"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'meta.json'}: the key {error} is missing: {remedy}") from error
    for place, names in (("texts.json", texts), ("meta.json", image_ids)):
        if not isinstance(names, list) or not all(isinstance(name, str) and not fault_in(name) for name in names):
            raise ValueError(f"{folder / place}: no list of {'texts' if names is texts else 'image_ids'}: {remedy}")
    if not all(isinstance(number, int) for number in (V, grid, P, D)):
        raise ValueError(f"{folder / 'meta.json'}: views, grid and dims must be whole numbers: {remedy}")
    if fingerprint_values(image_ids) != listed:
        raise ValueError(f"{folder / 'meta.json'}: image_ids are not those the features were made of: {remedy}")
    shapes = {
        "pooled": (len(image_ids), V, P),
        "image_embeddings": (len(image_ids), D),
        "text_embeddings": (len(texts), D),
    }
    if grid:
        shapes["grid"] = (len(image_ids), V, grid**2, P)
    arrays = {"grid": None}
    for name, shape in shapes.items():
        path = folder / f"{name}.npy"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: missing: {remedy}")
        try:
            arrays[name] = read_array(path, mapped=True)
        except ValueError as error:
            raise ValueError(f"{error}: {remedy}") from error
        if arrays[name].shape != shape:
            raise ValueError(f"{path}: shape {arrays[name].shape}, but meta.json tells of {shape}: {remedy}")
    return Features(**arrays, texts=texts, image_ids=image_ids, meta=meta)


def nearest_images(features: Features, image_ids: Sequence[str], among: Sequence[str], count: int) -> pd.DataFrame:
    """The ``count`` images of ``among`` nearest to each image, itself left out: image_id, rank, neighbour, cosine."""
    among = list(among)
    queries, items = (features.image_embeddings[features.rows(names)] for names in (image_ids, among))
    scores, places = similarity_topk(queries, items, min(count + 1, len(among)))
    rows = []
    for image_id, own_scores, own_places in zip(image_ids, scores.tolist(), places.tolist()):
        found = [(among[place], score) for place, score in zip(own_places, own_scores) if among[place] != image_id]
        rows += [(image_id, rank, name, round(score, 4)) for rank, (name, score) in enumerate(found[:count], start=1)]
    return pd.DataFrame(rows, columns=["image_id", "rank", "neighbour", "cosine"])


def measure_neighbours(features: Features, table: pd.DataFrame) -> dict | None:
    """Share of validation images whose nearest training image is of their class, of how many, and the share by chance.

    Images without a class take no part; None where none is left on either side. By chance: a training image drawn at
    random.
    """
    named = table[[isinstance(label, str) and label != "" for label in table["label"]]]
    label_of = dict(zip(named["image_id"], named["label"]))
    own, among = (named.loc[named["split"] == split, "image_id"].tolist() for split in ("val", "train"))
    if not own or not among:
        return None
    near = nearest_images(features, own, among, count=1)
    alike = [label_of[image_id] == label_of[found] for image_id, found in zip(near["image_id"], near["neighbour"])]
    shares = [pd.Series([label_of[name] for name in names]).value_counts(normalize=True) for names in (own, among)]
    chance = float(shares[0].mul(shares[1], fill_value=0).sum())
    return {"value": round(float(np.mean(alike)), 6), "n": len(own), "chance": round(chance, 6)}


def _look_up(row_of: dict[str, int], keys: Sequence[str], what: str) -> np.ndarray:
    try:
        return np.fromiter((row_of[key] for key in keys), dtype=np.int64, count=len(keys))
    except KeyError as error:
        raise ValueError(f"{what} {error} is not among the encoded ones: run the stage encode_images again") from error
