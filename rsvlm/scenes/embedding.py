"""A scene as embeddings of its windows: blocks of them, in this process or on a cluster, which become one GeoParquet file."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import shapely
import torch
from PIL import Image
from torch import Tensor

from rsvlm.cluster import Shard, map_shards, open_workers
from rsvlm.data.rasters.files import SceneError
from rsvlm.data.rasters.scene import Scene
from rsvlm.data.rasters.windows import Window
from rsvlm.disks import check_free_space
from rsvlm.files import cache_folder, fingerprint_values, only_process, read_array, whole_file, write_array
from rsvlm.models.encoders import DualEncoder
from rsvlm.models.encoding import VIEWS, encode_batch, prefetch
from rsvlm.models.feature_shards import BLOCK, share_encoder
from rsvlm.models.loading import choose_precision
from rsvlm.progress import Passing, log_line
from rsvlm.scenes.window_files import (
    FORMAT,
    GRID,
    SceneEmbeddings,
    describe_scene,
    load_scene_embeddings,
    path_below,
    read_meta,
    told_from,
    write_windows,
)
from rsvlm.scenes.window_plans import identify_area, plan_rows, share_within

if TYPE_CHECKING:
    pass

NATIVE = 2**20  # pixels; windows up to this are read as they are: GDAL takes four times as long to average them
FINER = (
    2  # larger ones are read at most at this many times the encoder's input; the encoder's own resizing does the rest
)


class NoWindow(SceneError):
    """None of a scene's windows is left to embed."""


def check_settings(
    sizes: Sequence[int], overlap: float, min_valid: float, views: int, batch_size: int, precision: str = "auto"
) -> None:
    """Raise a ValueError where ``embed_scene`` would not take these settings; names the first."""
    plan_rows(1, 1, sizes, overlap)
    if views not in VIEWS:
        raise ValueError(f"views: {views} is none of {', '.join(map(str, VIEWS))}")
    if batch_size < 1:
        raise ValueError(f"batch_size: 1 or more is needed; got {batch_size}")
    if not 0 <= min_valid <= 1:
        raise ValueError(f"min_valid: a share from 0 to 1 is needed; got {min_valid}")
    if precision not in ("auto", "fp32", "bf16"):
        raise ValueError(f"precision: {precision!r} is none of auto, fp32, bf16")


@torch.no_grad()
def embed_scene(
    encoder: DualEncoder,
    scene: Scene,
    out: Path | str,
    *,
    sizes: Sequence[int] = (256,),
    overlap: float = 0.5,
    min_valid: float = 0.5,
    within: shapely.Geometry | np.ndarray | None = None,
    batch_size: int = 32,
    views: int = 1,
    precision: str = "auto",
    root: Path | None = None,
    log: Callable[[str], None] = log_line,
) -> SceneEmbeddings:
    """The embeddings of a scene's windows, now in the file ``out`` (GeoParquet).

    A result of the same scene, encoder and settings that is there is not computed again. Finished blocks of BLOCK windows
    are kept in ``cache_folder()``: a killed run loses at most those that were being made, and what it goes on to write has the
    same bytes. They are made in this process or on a cluster (``rsvlm.cluster``), which gives the same bytes, too.
    Memory is that of a few batches, and of the vectors that are returned.

    Args:
        sizes, overlap: as ``plan_windows`` takes them.
        min_valid: windows with a smaller share of valid pixels are left out, as are those without any.
        within: where to look: a geometry in the scene's CRS (in pixels, column and row, where it has none), or a bool
            array laid over the whole scene, of any resolution; windows with less than ``min_valid`` of their area in it
            are left out.
        views, precision: as ``rsvlm.models.feature_shards.encode_images`` takes them.
        root: a folder above ``out``: the file tells paths below it from there, so that it has the same bytes, and still
            finds what it was made of, wherever that folder lies; None: paths stay as they were given.

    Raises:
        SceneError: no window is left to embed (NoWindow), or a part of the scene cannot be read.
        ValueError: a setting is out of range, or an embedding is not finite (the window is named).
        OSError: the disk is full.
        rsvlm.files.InUse: another process embeds this scene with these settings.
        rsvlm.cluster.ShardsFailed: shards failed on a cluster; the others are kept.
        rsvlm.cluster.SchedulerLost: the cluster's scheduler ended.
    """
    out = Path(out)
    if out.suffix != ".parquet":
        raise ValueError(f"{out}: embeddings are written as Parquet; give a name that ends in .parquet")
    check_settings(sizes, overlap, min_valid, views, batch_size)
    encoder.eval()
    precision = choose_precision(precision, encoder.device)
    settings = {
        "sizes": [int(size) for size in sizes],
        "overlap": float(overlap),
        "min_valid": float(min_valid),
        "views": views,
        "precision": precision,
    }
    fingerprint = encoder.fingerprint()
    key = fingerprint_values(
        FORMAT, NATIVE, FINER, fingerprint, scene.fingerprint, settings, identify_area(within), batch_size
    )
    from_root = {} if root is None else {"root": told_from(out.parent, root)}
    there = read_meta(out) if out.exists() else {}
    if there is None:
        raise ValueError(f"{out}: is there already and holds no embeddings of a scene; give another name")
    if there.get("key") == key and there.get("root") == from_root.get("root"):
        log(Passing(f"{out}: done already, with these settings"))
        found = load_scene_embeddings(out)
        return replace(found, meta=found.meta | {"scene": found.meta["scene"] | {"path": str(scene.path)}})

    if said := scene.clipping():
        log(said)
    rows = plan_rows(scene.width, scene.height, sizes, overlap)
    inside = share_within(rows, within, scene)
    inside = (inside >= min_valid) & (inside > 0)
    asked = rows[inside]
    scratch = cache_folder() / f"scene_{key[:20]}"
    D = encoder.embedding_dim
    check_free_space(scratch, 4 * D * len(asked), f"embeddings of {len(asked)} windows")
    check_free_space(out.absolute().parent, 4 * D * len(asked), f"embeddings of {len(asked)} windows")
    log(
        f"{scene.name}: {len(asked)} windows of {len(rows)}, {views} view{'s' * (views > 1)}, {precision} on {encoder.device}"
    )
    with only_process(scratch.with_suffix(".lock"), f"{scene.name}: embedding it so"):
        how = _How(min_valid, batch_size, views, precision, torch.get_num_threads())
        _fill(encoder, fingerprint, scene, asked, scratch, how, log)
        kept = sum(map(len, _blocks(scratch, len(asked))))
        skipped = {"nodata": len(asked) - kept, "outside": len(rows) - len(asked)}
        if not kept:
            shutil.rmtree(scratch, ignore_errors=True)
            raise NoWindow(
                f"{scene.path}: none of its {len(rows)} windows is left to embed: {skipped['nodata']} have less than "
                f"{min_valid:.0%} of valid pixels, {skipped['outside']} lie outside of what was asked for; give a smaller "
                "min_valid, or another scene"
            )
        meta = {"format": FORMAT, "key": key, "encoder": encoder.name, "encoder_fingerprint": fingerprint, **from_root}
        meta |= {"dim": D, "scene": describe_scene(scene), **settings, "planned": len(rows), "skipped": skipped}
        if root is not None:
            meta["scene"]["path"] = path_below(root, meta["scene"]["path"])
            meta["encoder"] = path_below(root, encoder.name) if Path(encoder.name).is_dir() else encoder.name
        with whole_file(out) as file:
            write_windows(file, scene, meta, asked, partial(_blocks, scratch, len(asked)))
        shutil.rmtree(scratch, ignore_errors=True)
    return load_scene_embeddings(out)


@dataclass(frozen=True)
class _Block:
    """Windows next to each other in the plan, whose embeddings go into a file of their own first."""

    start: int
    windows: np.ndarray  # int64 (n, 5), as ``plan_rows`` gives them
    file: Path


@dataclass(frozen=True)
class _How:
    """All that says how a shard's windows are embedded, beside the encoder and the scene."""

    min_valid: float
    batch_size: int
    views: int
    precision: str
    threads: int  # of torch: sums, and so bits, may depend on it


def _fill(
    encoder: DualEncoder,
    fingerprint: str,
    scene: Scene,
    asked: np.ndarray,
    scratch: Path,
    how: _How,
    log: Callable[[str], None],
) -> None:
    """Write into ``scratch`` the blocks that are not there yet, in this process or on a cluster."""
    scratch.mkdir(parents=True, exist_ok=True)
    shards = []
    for start in range(0, len(asked), BLOCK):
        block = _Block(start, asked[start : start + BLOCK], _block_file(scratch, start))
        count = len(block.windows)
        shards.append(Shard(f"windows {start} to {start + count - 1} of {scene.name}", block, count, block.file))
    with open_workers(
        lambda: partial(_load, share_encoder(encoder, fingerprint, scratch), _to_share(scene)),
        gpu=encoder.device.type == "cuda",
        log=log,
    ) as workers:
        work, told = partial(_embed_blocks, how), {"what": f"embed {scene.name}", "unit": "window"}
        for _ in map_shards(work, shards, workers, model=(encoder, scene), **told):
            pass


def _to_share(scene: Scene) -> Scene:
    """The scene for another process, which may work in another folder."""
    shared = copy(scene)
    shared.path = scene.path.absolute()
    return shared


def _load(load_encoder: Callable[[int], DualEncoder], scene: Scene, number: int) -> tuple[DualEncoder, Scene]:
    return load_encoder(number), scene


@torch.no_grad()
def _embed_blocks(
    how: _How, model: tuple[DualEncoder, Scene], blocks: Iterable[_Block], tick: Callable[[int], object]
) -> Iterator[None]:
    """Write the file of each block; windows are read ahead, beyond the end of a block."""
    encoder, scene = model
    torch.set_num_threads(how.threads)
    # Batches end where blocks end: whoever embeds a block sees the same batches, so the same bits.
    batches = [
        (block, range(start, min(start + how.batch_size, len(block.windows))))
        for block in blocks
        for start in range(0, len(block.windows), how.batch_size)
    ]
    form = _block_form(encoder.embedding_dim)
    made = []

    def read(batch: tuple[_Block, range]) -> tuple[list[int], list[float], list[np.ndarray], Tensor | None]:
        block, rows = batch
        return _read_batch(encoder, scene, block.windows, rows, how.min_valid)

    for (block, rows), (kept, valid, data, pixels) in zip(batches, prefetch(read, batches), strict=True):
        part = np.zeros(len(kept), form)
        if kept:
            vectors = encode_batch(encoder, pixels, how.views, 0, how.precision)["image_embeddings"]
            bad = ~np.isfinite(vectors).all(axis=1)
            if bad.any():
                level, *window = block.windows[kept[int(bad.argmax())]].tolist()
                raise ValueError(
                    f"{scene.path}: the embedding of the window {tuple(window)} (left, top, width, height) is not "
                    "finite; the encoder's weights are damaged, or too large for its precision: try precision='fp32'"
                )
            part["row"] = [block.start + row for row in kept]
            part["valid"], part["data"], part["vector"] = valid, data, vectors
        made.append(part)
        tick(len(rows))
        if rows.stop == len(block.windows):
            with whole_file(block.file) as path:
                write_array(path, np.concatenate(made))
            made.clear()
            yield


def _read_batch(
    encoder: DualEncoder, scene: Scene, windows: np.ndarray, rows: range, min_valid: float
) -> tuple[list[int], list[float], list[np.ndarray], Tensor | None]:
    """(rows that have enough valid pixels, their shares of them, where they have data, uint8 (B, 3, S, S) of them)."""
    kept, shares, data, parts = [], [], [], []
    for row in rows:
        window = Window(*windows[row, 1:].tolist())
        picture = scene.read(window, reading_size(window, encoder))
        share = float(picture.valid.mean())
        if share > 0 and share >= min_valid:
            kept.append(row)
            shares.append(share)
            data.append(_parts_with_data(picture.valid))
            parts.append(encoder.prepare([Image.fromarray(picture.pixels)]))
    return kept, shares, data, torch.cat(parts) if parts else None


def _parts_with_data(valid: np.ndarray) -> np.ndarray:
    """uint8 (GRID * GRID / 8,): a bit for each part of a window, whether half of its pixels or more are valid."""
    starts = [np.arange(GRID) * side // GRID for side in valid.shape]
    ends = [np.maximum(np.append(own[1:], side), own + 1) for own, side in zip(starts, valid.shape)]
    summed = np.zeros((valid.shape[0] + 1, valid.shape[1] + 1), np.int64)
    summed[1:, 1:] = valid.cumsum(0).cumsum(1)
    (top, left), (bottom, right) = starts, ends
    top, bottom = top[:, None], bottom[:, None]
    counts = summed[bottom, right] - summed[top, right] - summed[bottom, left] + summed[top, left]
    return np.packbits(2 * counts >= (bottom - top) * (right - left))


def reading_size(window: Window, encoder: DualEncoder) -> tuple[int, int]:
    """(width, height) to read a window at: no finer than the encoder can use."""
    if window.width * window.height <= NATIVE:
        return window.width, window.height
    most = FINER * encoder.image_size
    if encoder.preprocessing.resize == "crop":  # keeps the aspect ratio
        shrink = max(1, min(window.width, window.height) / most)
        return max(1, round(window.width / shrink)), max(1, round(window.height / shrink))
    return min(window.width, most), min(window.height, most)


def _block_form(dim: int) -> np.dtype:
    return np.dtype([("row", "<i8"), ("valid", "<f4"), ("data", "u1", (GRID * GRID // 8,)), ("vector", "<f4", (dim,))])


def _block_file(scratch: Path, start: int) -> Path:
    return scratch / f"{start:012}.npy"


def _blocks(scratch: Path, total: int) -> Iterator[np.ndarray]:
    """What was kept of each block, in order."""
    for start in range(0, total, BLOCK):
        yield read_array(_block_file(scratch, start))
