"""Features of every image of a study, and how the captioner sees them.

Features of every image of a study, computed once and kept as memory-mapped arrays.

A folder holds ``pooled.npy`` (N, V, P) and ``grid.npy`` (N, V, G, P) in float16, ``image_embeddings.npy`` (N, D) and
``text_embeddings.npy`` (M, D) in float32 with length 1, ``texts.json`` (the M distinct captions, sorted) and
``meta.json``. Rows are in the order of the caption table; view 0 is the upright image.

An image's cached features as the captioner sees them: one of its views, or the mean over all of them.
"""

import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from rsvlm.files import cache_folder, fingerprint_values, read_json, whole_folder, write_json
from rsvlm.kernels import similarity_topk
from rsvlm.models.devices import autocast, choose_precision, log_line
from rsvlm.models.encoders import DualEncoder
from rsvlm.models.pixels import GrowingArray, Pixels, check_free_space, fingerprint_images, prefetch

BLOCK = 256  # images between two marks of progress: what a kill loses
TEXT_BATCH = 128
VIEWS = (1, 2, 4, 8)


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
def encode_images(
    encoder: DualEncoder,
    table: pd.DataFrame,
    folder: Path,
    *,
    views: int = 8,
    grid: int = 3,
    batch_size: int = 32,
    capitalise: bool = True,
    precision: str = "auto",
    log: Callable[[str], None] = log_line,
) -> Features:
    """The features of all images and captions of ``table``, now in ``folder``.

    Finished blocks are kept in ``cache_folder()``, so a killed run loses at most one.

    Args:
        views: 8 = four quarter turns of the image and of its mirror image, 4 = the turns, 2 = the image and its mirror
            image, 1 = upright only. An image's embedding is the mean over its views.
        grid: cells along a side of the grid features; 0 leaves them out.
        capitalise: captions are encoded as ``caption.capitalize()``, RemoteCLIP's protocol.

    Raises:
        ValueError: a setting is out of range, the table is empty, or a feature is not finite (the image is named).
        OSError: the disk is full.
    """
    if views not in VIEWS:
        raise ValueError(f"views: {views} is none of {', '.join(map(str, VIEWS))}")
    if grid < 0 or batch_size < 1:
        raise ValueError(f"grid: 0 or more, batch_size: 1 or more are needed; got {grid} and {batch_size}")
    if len(table) == 0:
        raise ValueError("the caption table holds no image: nothing to encode")
    encoder.eval()
    precision = choose_precision(precision, encoder.device)
    image_ids, image_paths = table["image_id"].tolist(), table["path"].tolist()
    fingerprint = encoder.fingerprint()
    N, V, G, P, D = len(table), views, grid * grid, encoder.feature_dim, encoder.embedding_dim
    key = fingerprint_values(
        fingerprint, image_ids, fingerprint_images(image_paths), views, grid, batch_size, precision
    )
    scratch = cache_folder() / f"features_{key[:20]}"
    layout = {"pooled": ((N, V, P), "float16"), "image_embeddings": ((N, D), "float32")}
    if grid:
        layout["grid"] = ((N, V, G, P), "float16")
    log(f"{N} images, {V} views, {precision} on {encoder.device}")
    _fill(encoder, Pixels(image_paths, encoder.image_size), image_ids, scratch, layout, grid, batch_size, precision)

    texts = sorted({text for own in table["captions"] for text in own})
    with whole_folder(Path(folder)) as made:
        for name in layout:
            shutil.move(scratch / f"{name}.npy", made / f"{name}.npy")
        np.save(made / "text_embeddings.npy", encode_texts(encoder, texts, capitalise=capitalise, precision=precision))
        write_json(made / "texts.json", texts)
        write_json(
            made / "meta.json",
            {
                "encoder_fingerprint": fingerprint,
                "image_list_fingerprint": fingerprint_values(image_ids),
                "image_ids": image_ids,
                "views": V,
                "grid": grid,
                "capitalise": capitalise,
                "precision": precision,
                "dims": {"pooled": P, "embedding": D, "image_size": encoder.image_size},
            },
        )
    shutil.rmtree(scratch)
    return load_features(folder)


@torch.no_grad()
def encode_pictures(
    encoder: DualEncoder,
    pictures: Iterable[Image.Image],
    names: Sequence[str],
    *,
    views: int = 1,
    grid: int = 0,
    precision: str = "fp32",
    batch_size: int = 32,
) -> Features:
    """Features of RGB pictures in memory; nothing is written.

    Args:
        pictures: looked at ``batch_size`` at a time.
        names: one a picture, which stand as image ids.
        views, grid, precision: as ``encode_images`` takes them.
    """
    encoder.eval()
    precision = choose_precision(precision, encoder.device)
    pictures, parts = iter(pictures), []
    while batch := list(islice(pictures, batch_size)):
        parts.append(_encode_batch(encoder, encoder.prepare(batch), views, grid, precision))
    if sum(len(part["pooled"]) for part in parts) != len(names):
        raise ValueError(f"{len(names)} names for {sum(len(part['pooled']) for part in parts)} pictures")
    P, D = encoder.feature_dim, encoder.embedding_dim
    joined = {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else ())}
    return Features(
        joined.get("pooled", np.zeros((0, views, P), np.float16)),
        joined.get("grid"),
        joined.get("image_embeddings", np.zeros((0, D), np.float32)),
        np.zeros((0, D), np.float32),
        [],
        list(names),
        {"views": views, "grid": grid, "precision": precision},
    )


@torch.no_grad()
def encode_texts(
    encoder: DualEncoder, texts: Sequence[str], *, capitalise: bool = True, precision: str = "fp32"
) -> np.ndarray:
    """Normalised embeddings (M, D), float32, of captions."""
    result = np.zeros((len(texts), encoder.embedding_dim), dtype=np.float32)
    order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))  # little padding in a batch
    for start in range(0, len(order), TEXT_BATCH):
        chosen = order[start : start + TEXT_BATCH]
        with autocast(precision, encoder.device):
            rows = encoder.text_features([texts[i].capitalize() if capitalise else texts[i] for i in chosen])
        result[chosen] = F.normalize(rows.float(), dim=-1).cpu().numpy()
    return result


def turn_views(pixels: Tensor, views: int) -> Tensor:
    """(B, V, 3, S, S): the images themselves, then their quarter turns, then the same of their mirror images.

    For ``views`` = 2 the image and its mirror image.
    """
    turns = range(4) if views >= 4 else range(1)
    made = [torch.rot90(pixels, turn, (-2, -1)) for turn in turns]
    if views in (2, 8):
        made += [view.flip(-1) for view in made]
    return torch.stack(made, dim=1)


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
        image_ids, V, G = meta["image_ids"], meta["views"], meta["grid"] ** 2
        P, D = meta["dims"]["pooled"], meta["dims"]["embedding"]
        listed = meta["image_list_fingerprint"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'meta.json'}: the key {error} is missing: {remedy}") from error
    if fingerprint_values(image_ids) != listed:
        raise ValueError(f"{folder / 'meta.json'}: image_ids are not those the features were made of: {remedy}")
    shapes = {
        "pooled": (len(image_ids), V, P),
        "image_embeddings": (len(image_ids), D),
        "text_embeddings": (len(texts), D),
    }
    if G:
        shapes["grid"] = (len(image_ids), V, G, P)
    arrays = {}
    for name, shape in shapes.items():
        path = folder / f"{name}.npy"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: missing: {remedy}")
        try:
            arrays[name] = np.load(path, mmap_mode="r")
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"{path}: damaged ({error}): {remedy}") from error
        if arrays[name].shape != shape:
            raise ValueError(f"{path}: shape {arrays[name].shape}, but meta.json tells of {shape}: {remedy}")
    return Features(
        arrays["pooled"],
        arrays.get("grid"),
        arrays["image_embeddings"],
        arrays["text_embeddings"],
        texts,
        image_ids,
        meta,
    )


def _fill(
    encoder: DualEncoder,
    pixels: Pixels,
    image_ids: list[str],
    scratch: Path,
    layout: dict,
    grid: int,
    batch_size: int,
    precision: str,
) -> None:
    """Write the arrays of ``layout`` into ``scratch``, continuing behind the blocks that are there."""
    N = len(pixels)
    scratch.mkdir(parents=True, exist_ok=True)
    progress = scratch / "progress.json"
    whole = progress.is_file() and all((scratch / f"{name}.npy").is_file() for name in layout)
    done = read_json(progress)["images"] if whole else 0
    size = sum(np.prod(shape, dtype=np.int64) * np.dtype(dtype).itemsize for shape, dtype in layout.values())
    check_free_space(scratch, int(size * (N - done) / N), f"features of {N} images")
    arrays = {
        name: GrowingArray(scratch / f"{name}.npy", shape, dtype, done) for name, (shape, dtype) in layout.items()
    }
    # Batches end where blocks end: a continued run sees the same batches, so the same bits.
    batches = [
        range(start, min(start + batch_size, block + BLOCK, N))
        for block in range(done, N, BLOCK)
        for start in range(block, min(block + BLOCK, N), batch_size)
    ]
    V = layout["pooled"][0][1]
    bar = tqdm(total=N, initial=done, unit="img", desc="encode_images", file=sys.stderr, mininterval=2)
    for rows, batch in prefetch(lambda part: (part, pixels.read(part)), batches):
        made = _encode_batch(encoder, batch, V, grid, precision)
        for name, array in arrays.items():
            bad = ~np.isfinite(made[name]).reshape(len(rows), -1).all(axis=1)
            if bad.any():
                raise ValueError(
                    f"{image_ids[rows[int(bad.argmax())]]}: its features ({name}) are not finite; the "
                    "encoder's weights are damaged, or too large for float16"
                )
            array.append(made[name])
        bar.update(len(rows))
        if rows[-1] + 1 == N or (rows[-1] + 1) % BLOCK == 0:
            write_json(progress, {"images": rows[-1] + 1})
    bar.close()
    for array in arrays.values():
        array.close()


def _encode_batch(encoder: DualEncoder, batch: Tensor, views: int, grid: int, precision: str) -> dict[str, np.ndarray]:
    """The rows of a batch for each array. Views go through one after the other: memory is that of one batch."""
    pooled, cells, embeddings = [], [], 0
    for view in turn_views(batch, views).unbind(1):
        with autocast(precision, encoder.device):
            view_pooled, view_cells = encoder.image_features(encoder.normalize(view), grid)
            projected = encoder.project_images(view_pooled)
        embeddings = embeddings + F.normalize(projected.float(), dim=-1)
        pooled.append(view_pooled.float().cpu())
        if view_cells is not None:
            cells.append(view_cells.float().cpu())
    made = {
        "pooled": torch.stack(pooled, 1).numpy().astype(np.float16),
        "image_embeddings": F.normalize(embeddings, dim=-1).cpu().numpy(),
    }
    if cells:
        made["grid"] = torch.stack(cells, 1).numpy().astype(np.float16)
    return made


def _look_up(row_of: dict[str, int], keys: Sequence[str], what: str) -> np.ndarray:
    try:
        return np.fromiter((row_of[key] for key in keys), dtype=np.int64, count=len(keys))
    except KeyError as error:
        raise ValueError(f"{what} {error} is not among the encoded ones: run the stage encode_images again") from error


UPRIGHT, MEAN = 0, -1  # numbers of views; 1, 2, ... are the turned and mirrored ones
VIEW_NAMES = {"upright": UPRIGHT, "mean": MEAN}


@dataclass(frozen=True)
class VisualInput:
    """Features of B images: pooled (B, P) and grid (B, G, P) or None, float32."""

    pooled: Tensor
    grid: Tensor | None


def choose_view(name: str) -> int:
    """The number of the view called "upright" or "mean". ValueError lists them."""
    if name not in VIEW_NAMES:
        raise ValueError(f"view: {name!r} is none of {', '.join(VIEW_NAMES)}")
    return VIEW_NAMES[name]


def read_visual(
    features: Features, rows: Sequence[int], view: int | Sequence[int] = UPRIGHT, *, grid: bool = True
) -> VisualInput:
    """The features of these rows in a view, or in one each.

    The mean over views (``MEAN``) turns the grids of turned and mirrored images back first, so that a cell is averaged
    with the same place of the other views.

    Args:
        grid: False leaves the grid features out.
    """
    rows = np.asarray(rows, dtype=np.int64)
    views = np.broadcast_to(np.asarray(view, dtype=np.int64), rows.shape)
    mean = views == MEAN
    single = np.where(mean, UPRIGHT, views)
    pooled = features.pooled[rows, single].astype(np.float32)  # (B, P)
    if mean.any():
        pooled[mean] = features.pooled[rows[mean]].astype(np.float32).mean(1)
    if not grid or features.grid is None:
        return VisualInput(torch.from_numpy(pooled), None)
    cells = features.grid[rows, single].astype(np.float32)  # (B, G, P)
    if mean.any():
        cells[mean] = turn_back(features.grid[rows[mean]].astype(np.float32)).mean(1)
    return VisualInput(torch.from_numpy(pooled), torch.from_numpy(cells))


def turn_back(grids: np.ndarray) -> np.ndarray:
    """(B, V, G, P) grids of ``turn_views``'s views with their cells where they lie in the upright image."""
    B, V, G, P = grids.shape
    side = round(G**0.5)
    squares = grids.reshape(B, V, side, side, P)
    turns = 4 if V >= 4 else 1
    back = []
    for number in range(V):
        square = squares[:, number]
        if number >= turns:
            square = square[:, :, ::-1]
        back.append(np.rot90(square, -(number % turns), axes=(1, 2)))
    return np.stack(back, axis=1).reshape(B, V, G, P)


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
