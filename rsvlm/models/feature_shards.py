"""The features of every image of a study, computed once in shards, in this process or on a cluster, into a folder of features.

See ``rsvlm.models.features`` for what is in such a folder.
"""

import errno
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from io import FileIO
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import load_file, save_file

from rsvlm.cluster import Shard, map_shards, open_workers
from rsvlm.data.images import READING
from rsvlm.data.packed import stat_of
from rsvlm.disks import check_free_space
from rsvlm.files import (
    cache_folder,
    fingerprint_values,
    only_process,
    read_json,
    whole_file,
    whole_folder,
    write_array,
    write_json,
)
from rsvlm.models.encoders import DualEncoder
from rsvlm.models.encoding import NEVER, VIEWS, Read, check_crops, encode_batch, encode_texts, prefetch, read_files
from rsvlm.models.features import Features, load_features
from rsvlm.models.loading import choose_precision, use_threads
from rsvlm.models.zoo import load_encoder
from rsvlm.progress import Passing, log_line

BLOCK = 256  # images of a shard: what a kill loses


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
    check_crops(crops, grid)
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
            write_array(made / "text_embeddings.npy", embeddings)
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
        return read_files([block.image_paths[row] for row in rows], encoder.preprocessing, how.grid, how.crops)

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


def fingerprint_images(image_paths: Sequence[str], *more: object) -> str:
    """SHA-256, as hex, over the list of images and each file's size and time of change: for caches, not for results.

    Of an image inside a file, those of that file.

    Raises:
        FileNotFoundError: an image is missing; names it.
    """
    files = [Path(path).absolute() for path in image_paths]
    stats = [[stat.st_size, stat.st_mtime_ns] for stat in map(stat_of, files)]
    return fingerprint_values(READING, [str(file) for file in files], stats, *more)


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
