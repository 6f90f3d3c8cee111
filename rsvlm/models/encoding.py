"""Pictures and texts through an encoder, in batches: how pictures are read, turned and cut into cells, and what comes out.

The cells of the grid come from the encoder's last map of the whole picture, squashed to S pixels, or from crops: the
picture at ``grid`` times S pixels, cut into cells that the encoder sees one by one (the overview and crops of LLaVA-NeXT's
AnyRes, Liu et al. 2024, with one arrangement for all pictures). A cell of crops is the encoder's pooled features of a
picture of its own: it knows nothing of its place. Cells cost ``grid`` squared passes more.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from rsvlm.data.images import open_image
from rsvlm.models.encoders import DualEncoder, Preprocessing, resize_images
from rsvlm.models.loading import autocast

TEXT_BATCH = 128
VIEWS = (1, 2, 4, 8)
CROPS = NEVER, AUTO, ALWAYS = "never", "auto", "always"
LARGE = 2  # times the encoder's input: from there on "auto" takes crops
DECODERS = 4  # threads; Pillow decodes outside Python's lock
In, Out = TypeVar("In"), TypeVar("Out")
Read = tuple[Tensor, dict[int, Tensor]]  # a batch, and what is finer of some of it: see ``encode_batch``


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


def encode_batch(
    encoder: DualEncoder,
    batch: Tensor,
    views: int,
    grid: int,
    precision: str,
    fine: Mapping[int, Tensor] = MappingProxyType({}),
) -> dict[str, np.ndarray]:
    """The rows of a batch for each array. Views go through one after the other: memory is that of one batch.

    Args:
        batch: uint8 (B, 3, S, S).
        fine: place in the batch -> uint8 (3, grid * S, grid * S), of the pictures whose cells are crops.
    """
    of_map = 0 if len(fine) == len(batch) else grid  # not every encoder has a map to pool cells from
    pooled, cells, embeddings = [], [], 0
    for view in turn_views(batch, views).unbind(1):
        with autocast(precision, encoder.device):
            view_pooled, view_cells = encoder.image_features(encoder.normalize(view), of_map)
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
    if fine:
        B, V, P = made["pooled"].shape
        made.setdefault("grid", np.zeros((B, V, grid * grid, P), np.float16))
        made["grid"][list(fine)] = _encode_crops(encoder, torch.stack(list(fine.values())), views, grid, precision, B)
    return made


def _encode_crops(
    encoder: DualEncoder, fine: Tensor, views: int, grid: int, precision: str, at_once: int
) -> np.ndarray:
    """(b, V, G, P) float16: pooled features of the cells of pictures (b, 3, grid * S, grid * S), so many at once.

    A view's cells are those of the turned picture, as a map's cells are.
    """
    rows = []
    for some in fine.split(max(1, at_once // grid**2)):
        made = []
        for view in turn_views(some, views).unbind(1):
            with autocast(precision, encoder.device):
                pooled, _ = encoder.image_features(encoder.normalize(cut_cells(view, grid)))
            made.append(pooled.float().cpu().unflatten(0, (len(some), -1)))
        rows.append(torch.stack(made, 1))
    return torch.cat(rows).numpy().astype(np.float16)


def cut_cells(pixels: Tensor, grid: int) -> Tensor:
    """(B * grid * grid, 3, S, S), image by image and row by row, of (B, 3, grid * S, grid * S)."""
    squares = pixels.unflatten(-1, (grid, -1)).unflatten(-3, (grid, -1))  # (B, 3, grid, S, grid, S)
    return squares.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def check_crops(crops: str, grid: int) -> None:
    if crops not in CROPS:
        raise ValueError(f"crops: {crops!r} is none of {', '.join(CROPS)}")
    if crops != NEVER and not grid:
        raise ValueError(f"crops: {crops!r} needs a grid of 1 or more; with grid 0 there are no cells")


def decode_images(image_paths: Sequence[str], preprocessing: Preprocessing) -> Tensor:
    """uint8 (B, 3, S, S) of these files."""
    return read_files(image_paths, preprocessing, 0, NEVER)[0]


def read_files(image_paths: Sequence[str], preprocessing: Preprocessing, grid: int, crops: str) -> Read:
    """What ``encode_batch`` takes of these files; a thread holds one whole picture at a time."""
    with ThreadPoolExecutor(DECODERS) as pool:
        return join_pictures(
            list(pool.map(lambda path: prepare_picture(open_image(path), preprocessing, grid, crops), image_paths))
        )


def prepare_picture(
    picture: Image.Image, preprocessing: Preprocessing, grid: int, crops: str
) -> tuple[Tensor, Tensor | None]:
    """(uint8 (1, 3, S, S), (3, grid * S, grid * S) where the picture's cells are crops)."""
    whole = resize_images([picture], preprocessing)
    side = max(picture.size) if preprocessing.resize == "squash" else min(picture.size)
    if crops == ALWAYS or crops == AUTO and side > LARGE * preprocessing.size:
        return whole, resize_images([picture], preprocessing.at(grid * preprocessing.size))[0]
    return whole, None


def join_pictures(pictures: Sequence[tuple[Tensor, Tensor | None]]) -> Read:
    fine = {place: fine for place, (_, fine) in enumerate(pictures) if fine is not None}
    return torch.cat([whole for whole, _ in pictures]), fine


def prefetch(make: Callable[[In], Out], items: Iterable[In], depth: int = 2) -> Iterator[Out]:
    """``make(item)`` for each item, in order, made up to ``depth`` ahead on a thread; errors come where they belong."""
    pool = ThreadPoolExecutor(1)
    try:
        waiting = deque()
        for item in items:
            waiting.append(pool.submit(make, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
