"""Features of every image of a study, computed once and kept as memory-mapped arrays.

A folder of features holds ``pooled.npy`` (N, V, P) and ``grid.npy`` (N, V, G, P) in float16, ``image_embeddings.npy``
(N, D) and ``text_embeddings.npy`` (M, D) in float32 with length 1, ``texts.json`` (the M distinct captions, sorted) and
``meta.json``. Rows are in the order of the caption table; view 0 is the upright image.

The cells of the grid come from the encoder's last map of the whole picture, squashed to S pixels, or from crops: the
picture at ``grid`` times S pixels, cut into cells that the encoder sees one by one (the overview and crops of LLaVA-NeXT's
AnyRes, Liu et al. 2024, with one arrangement for all pictures). A cell of crops is the encoder's pooled features of a
picture of its own: it knows nothing of its place. Cells cost ``grid`` squared passes more.
"""

import errno
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cache, cached_property, partial
from io import FileIO
from itertools import islice
from pathlib import Path
from tokenize import TokenError
from types import MappingProxyType
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.numpy import load_file, save_file
from torch import Tensor

from rsvlm.cluster import Shard, map_shards, open_workers
from rsvlm.data.images import READING, open_image
from rsvlm.data.packed import stat_of
from rsvlm.disks import check_free_space
from rsvlm.files import (
    cache_folder,
    fingerprint_values,
    only_process,
    read_json,
    whole_file,
    whole_folder,
    write_json,
)
from rsvlm.kernels import similarity_topk
from rsvlm.models.encoders import DualEncoder, Preprocessing, resize_images
from rsvlm.models.loading import autocast, choose_precision, use_threads
from rsvlm.models.zoo import load_encoder
from rsvlm.progress import Passing, log_line
from rsvlm.safe_text import fault_in

BLOCK = 256  # images of a shard: what a kill loses
TEXT_BATCH = 128
VIEWS = (1, 2, 4, 8)
CROPS = NEVER, AUTO, ALWAYS = "never", "auto", "always"
LARGE = 2  # times the encoder's input: from there on "auto" takes crops
DECODERS = 4  # threads; Pillow decodes outside Python's lock
In, Out = TypeVar("In"), TypeVar("Out")
Read = tuple[Tensor, dict[int, Tensor]]  # a batch, and what is finer of some of it: see ``encode_batch``


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


@dataclass(frozen=True)
class _How:
    """All that says how a shard's images are encoded, beside the encoder."""

    views: int
    grid: int
    crops: str
    batch_size: int
    precision: str
    threads: int  # of torch: sums, and so bits, may depend on it


@dataclass(frozen=True)
class _Block:
    """Images next to each other in the table, whose rows go into a file of their own first."""

    start: int
    image_ids: list[str]
    image_paths: list[str]
    file: Path


@torch.no_grad()
def encode_images(
    encoder: DualEncoder,
    table: pd.DataFrame,
    folder: Path,
    *,
    views: int = 8,
    grid: int = 3,
    crops: str = NEVER,
    batch_size: int = 32,
    capitalise: bool = True,
    precision: str = "auto",
    log: Callable[[str], None] = log_line,
) -> Features:
    """The features of all images and captions of ``table``, now in ``folder``.

    Images go through the encoder in shards of ``BLOCK``, in this process or on a cluster (``rsvlm.cluster``), with the same
    bytes. Finished ones are kept in ``cache_folder()``, so a killed run loses at most those that were being made. One process at a
    time encodes the same images.

    Args:
        views: 8 = four quarter turns of the image and of its mirror image, 4 = the turns, 2 = the image and its mirror
            image, 1 = upright only. An image's embedding is the mean over its views.
        grid: cells along a side of the grid features; 0 leaves them out.
        crops: what the cells come from: "never" the map of the whole picture, "always" crops of the picture, "auto"
            crops where a side of the picture (with a centre crop in front of the encoder, the shorter one) is longer
            than twice the encoder's input.
        capitalise: captions are encoded as ``caption.capitalize()``, RemoteCLIP's protocol.

    Raises:
        ValueError: a setting is out of range, the table is empty, or a feature is not finite (the image is named).
        OSError: the disk is full.
        rsvlm.files.InUse: another process encodes the same images so, into the same cache; at once.
        rsvlm.cluster.ShardsFailed: shards failed on a cluster; the others are kept.
        rsvlm.cluster.SchedulerLost: the cluster's scheduler ended.
    """
    if views not in VIEWS:
        raise ValueError(f"views: {views} is none of {', '.join(map(str, VIEWS))}")
    if grid < 0 or batch_size < 1:
        raise ValueError(f"grid: 0 or more, batch_size: 1 or more are needed; got {grid} and {batch_size}")
    _check_crops(crops, grid)
    if len(table) == 0:
        raise ValueError("the caption table holds no image: nothing to encode")
    encoder.eval()
    precision = choose_precision(precision, encoder.device)
    image_ids, image_paths = table["image_id"].tolist(), table["path"].tolist()
    fingerprint = encoder.fingerprint()
    N, V, G, P, D = len(table), views, grid * grid, encoder.feature_dim, encoder.embedding_dim
    how_cut = [] if crops == NEVER else [crops]
    key = fingerprint_values(fingerprint, image_ids, views, grid, batch_size, precision, *how_cut)
    scratch = cache_folder() / f"features_{key[:20]}"
    layout = {"pooled": ((N, V, P), "float16"), "image_embeddings": ((N, D), "float32")}
    if grid:
        layout["grid"] = ((N, V, G, P), "float16")
    log(f"{N} images, {V} views, {precision} on {encoder.device}")
    texts = sorted({text for own in table["captions"] for text in own})
    with only_process(scratch.with_suffix(".lock"), f"encoding these {N} images"):
        how = _How(views, grid, crops, batch_size, precision, torch.get_num_threads())
        _fill(encoder, fingerprint, image_ids, image_paths, scratch, layout, how, log)
        with whole_folder(Path(folder)) as made:
            for name in layout:
                shutil.move(scratch / f"{name}.npy", made / f"{name}.npy")
            embeddings = encode_texts(encoder, texts, capitalise=capitalise, precision=precision)
            np.save(made / "text_embeddings.npy", embeddings)
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
                }
                | ({} if crops == NEVER else {"crops": crops}),
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
    _check_crops(crops, grid)
    encoder.eval()
    precision = choose_precision(precision, encoder.device)
    P, D = encoder.feature_dim, encoder.embedding_dim
    parts = [{"pooled": np.zeros((0, views, P), np.float16), "image_embeddings": np.zeros((0, D), np.float32)}]
    if grid:
        parts[0]["grid"] = np.zeros((0, views, grid * grid, P), np.float16)
    pictures = iter(pictures)
    while batch := [_prepare(one, encoder.preprocessing, grid, crops) for one in islice(pictures, batch_size)]:
        pixels, fine = _join(batch)
        parts.append(encode_batch(encoder, pixels, views, grid, precision, fine))
    arrays = {"grid": None} | {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if len(arrays["pooled"]) != len(names):
        raise ValueError(f"{len(names)} names for {len(arrays['pooled'])} pictures")
    meta = {"views": views, "grid": grid, "precision": precision} | ({} if crops == NEVER else {"crops": crops})
    return Features(**arrays, text_embeddings=np.zeros((0, D), np.float32), texts=[], image_ids=list(names), meta=meta)


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


def caption_encoder(features: Features, encoder: Path) -> Callable[..., np.ndarray]:
    """A function from texts, and whether to capitalise them (default: as the features), to unit vectors (n, D).

    The vectors lie in the features' space. The encoder is loaded when it is first called.

    Raises:
        ValueError: (when called) the features come from another encoder.
    """

    @cache
    def model() -> DualEncoder:
        loaded = load_encoder(str(encoder)).eval()
        if loaded.fingerprint() != features.meta["encoder_fingerprint"]:
            raise ValueError(
                f"{encoder}: not the encoder that made the features; run the stage encode_images again, so that"
                " captions and images are measured in one space"
            )
        return loaded

    precision, as_made = features.meta["precision"], bool(features.meta["capitalise"])
    return lambda texts, capitalise=as_made: encode_texts(model(), texts, capitalise=capitalise, precision=precision)


def turn_views(pixels: Tensor, views: int) -> Tensor:
    """(B, V, 3, S, S): the images themselves, then their quarter turns, then the same of their mirror images.

    For ``views`` = 2 the image and its mirror image.
    """
    turns = range(4) if views >= 4 else range(1)
    made = [torch.rot90(pixels, turn, (-2, -1)) for turn in turns]
    if views in (2, 8):
        made += [view.flip(-1) for view in made]
    return torch.stack(made, dim=1)


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
        image_ids, V, G = meta["image_ids"], meta["views"], meta["grid"] ** 2
        P, D = meta["dims"]["pooled"], meta["dims"]["embedding"]
        listed = meta["image_list_fingerprint"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'meta.json'}: the key {error} is missing: {remedy}") from error
    for place, names in (("texts.json", texts), ("meta.json", image_ids)):
        if not isinstance(names, list) or not all(isinstance(name, str) and not fault_in(name) for name in names):
            raise ValueError(f"{folder / place}: no list of {'texts' if names is texts else 'image_ids'}: {remedy}")
    if not all(isinstance(number, int) for number in (V, G, P, D)):
        raise ValueError(f"{folder / 'meta.json'}: views, grid and dims must be whole numbers: {remedy}")
    if fingerprint_values(image_ids) != listed:
        raise ValueError(f"{folder / 'meta.json'}: image_ids are not those the features were made of: {remedy}")
    shapes = {
        "pooled": (len(image_ids), V, P),
        "image_embeddings": (len(image_ids), D),
        "text_embeddings": (len(texts), D),
    }
    if G:
        shapes["grid"] = (len(image_ids), V, G, P)
    arrays = {"grid": None}
    for name, shape in shapes.items():
        path = folder / f"{name}.npy"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: missing: {remedy}")
        try:
            arrays[name] = np.lib.format.open_memmap(path, mode="r")
        except (ValueError, OSError, EOFError, SyntaxError, TokenError) as error:  # a head is read as Python's literals
            raise ValueError(f"{path}: damaged ({error}): {remedy}") from error
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


def _fill(
    encoder: DualEncoder,
    fingerprint: str,
    image_ids: list[str],
    image_paths: list[str],
    scratch: Path,
    layout: dict,
    how: _How,
    log: Callable[[str], None],
) -> None:
    """Write the arrays of ``layout`` into ``scratch``, continuing behind the blocks that are there.

    A shard's file is put behind the others as soon as it is its turn, and goes: the disk holds features once.
    """
    N = len(image_ids)
    scratch.mkdir(parents=True, exist_ok=True)
    blocks = []
    for start in range(0, N, BLOCK):
        ids, paths = image_ids[start : start + BLOCK], image_paths[start : start + BLOCK]
        key = fingerprint_values(fingerprint, ids, fingerprint_images(paths), asdict(how))
        blocks.append(_Block(start, ids, paths, scratch / f"{key[:20]}.safetensors"))
    names = [block.file.stem for block in blocks]
    mark = scratch / "progress.json"
    done = _images_done(mark, layout, names, log)
    size = sum(np.prod(shape, dtype=np.int64) * np.dtype(dtype).itemsize for shape, dtype in layout.values())
    check_free_space(scratch, int(size * (N - done) / N), f"features of {N} images")
    blocks = [block for block in blocks if block.start >= done]
    shards = [
        Shard(
            f"images {block.start} to {block.start + len(block.image_ids) - 1}", block, len(block.image_ids), block.file
        )
        for block in blocks
    ]
    with ExitStack() as stack:
        share = partial(share_encoder, encoder, fingerprint, scratch)
        workers = stack.enter_context(open_workers(share, gpu=encoder.device.type == "cuda", log=log))
        files = {
            name: stack.enter_context(open_rows(scratch / f"{name}.npy", shape, dtype, done))
            for name, (shape, dtype) in layout.items()
        }
        waiting = deque(blocks)
        work, told = partial(_encode_blocks, how), {"what": "encode_images", "unit": "img"}
        for _ in map_shards(work, shards, workers, model=encoder, done=done, **told):
            while waiting and waiting[0].file.is_file():
                block = waiting.popleft()
                rows = load_file(block.file)
                for name, file in files.items():
                    write_rows(file, rows[name])
                images = block.start + len(block.image_ids)
                write_json(mark, {"images": images, "shards": fingerprint_values(names[: -(-images // BLOCK)])})
                block.file.unlink()


@torch.no_grad()
def _encode_blocks(
    how: _How, encoder: DualEncoder, blocks: Iterable[_Block], tick: Callable[[int], object]
) -> Iterator[None]:
    """Write the file of each block; pictures are read ahead, beyond the end of a block."""
    torch.set_num_threads(how.threads)
    # Batches end where blocks end: whoever encodes a block sees the same batches, so the same bits.
    batches = [
        (block, range(start, min(start + how.batch_size, len(block.image_ids))))
        for block in blocks
        for start in range(0, len(block.image_ids), how.batch_size)
    ]

    def read(batch: tuple[_Block, range]) -> Read:
        block, rows = batch
        return _read_files([block.image_paths[row] for row in rows], encoder.preprocessing, how.grid, how.crops)

    parts: list[dict[str, np.ndarray]] = []
    for (block, rows), (batch, fine) in zip(batches, prefetch(read, batches), strict=True):
        made = encode_batch(encoder, batch, how.views, how.grid, how.precision, fine)
        for name, array in made.items():
            bad = ~np.isfinite(array).reshape(len(rows), -1).all(axis=1)
            if bad.any():
                raise ValueError(
                    f"{block.image_ids[rows[int(bad.argmax())]]}: its features ({name}) are not finite; the encoder's "
                    "weights are damaged, or too large for float16"
                )
        parts.append(made)
        tick(len(rows))
        if rows.stop == len(block.image_ids):
            with whole_file(block.file) as whole:
                save_file({name: np.concatenate([part[name] for part in parts]) for name in made}, whole)
            parts = []
            yield


def share_encoder(encoder: DualEncoder, fingerprint: str, folder: Path) -> Callable[[int], DualEncoder]:
    """Put the encoder into a folder below this one, where workers find it; what loads it there (``rsvlm.cluster``).

    Args:
        fingerprint: the encoder's.
    """
    own = folder / "encoder"
    if not own.is_dir():
        encoder.save(own)
    return partial(_load_shared, own, fingerprint, encoder.device.type)


def _load_shared(folder: Path, fingerprint: str, device: str, number: int) -> DualEncoder:
    if device == "cuda":
        device = f"cuda:{number % torch.cuda.device_count()}"
    use_threads(0)  # keeps the memory it frees; how many threads is each shard's to say
    encoder = load_encoder(str(folder), device)
    if encoder.fingerprint() != fingerprint:
        raise ValueError(f"{folder}: another encoder than the one that encodes; delete it and run this again")
    return encoder


def _images_done(mark: Path, layout: dict, names: Sequence[str], log: Callable[[str], None]) -> int:
    """How many images the arrays beside ``mark`` hold; 0, with a line, where one is damaged or an image changed.

    Args:
        names: of all shards, in order.
    """
    if not mark.is_file():
        return 0
    try:
        told = read_json(mark)
        done = told["images"]
        if told["shards"] != fingerprint_values(names[: -(-done // BLOCK)]):
            raise ValueError("an image changed since")
        for name, (shape, dtype) in layout.items():
            open_rows(mark.with_name(f"{name}.npy"), shape, dtype, done).close()
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
        log(Passing(f"{mark.parent}: what an earlier run left cannot be continued ({error}): starting anew"))
        return 0
    return done


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


def _check_crops(crops: str, grid: int) -> None:
    if crops not in CROPS:
        raise ValueError(f"crops: {crops!r} is none of {', '.join(CROPS)}")
    if crops != NEVER and not grid:
        raise ValueError(f"crops: {crops!r} needs a grid of 1 or more; with grid 0 there are no cells")


def _look_up(row_of: dict[str, int], keys: Sequence[str], what: str) -> np.ndarray:
    try:
        return np.fromiter((row_of[key] for key in keys), dtype=np.int64, count=len(keys))
    except KeyError as error:
        raise ValueError(f"{what} {error} is not among the encoded ones: run the stage encode_images again") from error


def fingerprint_images(image_paths: Sequence[str], *more: object) -> str:
    """SHA-256, as hex, over the list of images and each file's size and time of change: for caches, not for results.

    Of an image inside a file, those of that file.

    Raises:
        FileNotFoundError: an image is missing; names it.
    """
    files = [Path(path).absolute() for path in image_paths]
    stats = [[stat.st_size, stat.st_mtime_ns] for stat in map(stat_of, files)]
    return fingerprint_values(READING, [str(file) for file in files], stats, *more)


def decode_images(image_paths: Sequence[str], preprocessing: Preprocessing) -> Tensor:
    """uint8 (B, 3, S, S) of these files."""
    return _read_files(image_paths, preprocessing, 0, NEVER)[0]


def _read_files(image_paths: Sequence[str], preprocessing: Preprocessing, grid: int, crops: str) -> Read:
    """What ``encode_batch`` takes of these files; a thread holds one whole picture at a time."""
    with ThreadPoolExecutor(DECODERS) as pool:
        return _join(list(pool.map(lambda path: _prepare(open_image(path), preprocessing, grid, crops), image_paths)))


def _prepare(picture: Image.Image, preprocessing: Preprocessing, grid: int, crops: str) -> tuple[Tensor, Tensor | None]:
    """(uint8 (1, 3, S, S), (3, grid * S, grid * S) where the picture's cells are crops)."""
    whole = resize_images([picture], preprocessing)
    side = max(picture.size) if preprocessing.resize == "squash" else min(picture.size)
    if crops == ALWAYS or crops == AUTO and side > LARGE * preprocessing.size:
        return whole, resize_images([picture], preprocessing.at(grid * preprocessing.size))[0]
    return whole, None


def _join(pictures: Sequence[tuple[Tensor, Tensor | None]]) -> Read:
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


def open_rows(path: Path, shape: tuple[int, ...], dtype: str, done: int = 0) -> FileIO:
    """A .npy file of that final shape, open to be continued behind its first ``done`` rows with ``write_rows``.

    Raises:
        ValueError: the file to continue is shorter than that.
    """
    file = path.open("r+b" if done else "w+b", buffering=0)
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    end = file.tell() + done * int(np.prod(shape[1:], dtype=np.int64)) * np.dtype(dtype).itemsize
    if path.stat().st_size < end:
        file.close()
        raise ValueError(f"{path}: shorter than the first {done} rows of a {dtype} array {shape}")
    file.truncate(end)
    file.seek(end)
    return file


def write_rows(file: FileIO, rows: np.ndarray) -> None:
    """Write the next rows: on a full disk a memory map would end the process with SIGBUS, a write raises.

    Raises:
        OSError: the disk is full; names the file.
    """
    try:
        if file.write(np.ascontiguousarray(rows).data) < rows.nbytes:
            raise OSError(errno.ENOSPC, "No space left on device")
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} while writing", str(file.name)) from error
