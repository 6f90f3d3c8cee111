"""A scene as embeddings of its windows, in one GeoParquet file.

Windows of one or several sizes lie over the scene with overlap, as tiles of a pyramid whose levels are numbered from 0 in
the order of ``sizes``. A row holds a window's ground (geometry), the scene's name, level, left, top, width and height in
pixels of the scene, its share of valid pixels, the scene's date, where it has data (``data``: GRID x GRID parts of it, row
by row, a bit each; missing where all of it is valid), and its embedding, a list of float32 of length 1. What was asked for, which windows were left out and why, and which encoder looked at them stands in the file's metadata.
"""

import hashlib
import json
import os
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
from rasterio import Affine
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

if TYPE_CHECKING:
    import geopandas

FORMAT = 2  # of the file: raise it when the same arguments give other bytes
READ = (1, FORMAT)  # forms of the file that can be read; the first does not say where windows have data
GRID = 16  # parts of a window's side, for which it is kept whether they have data
META = b"rsvlm"  # the key of the file's metadata under which its JSON stands
A_GROUP = 8192  # rows of the file that are written, and read, at a time
NATIVE = 2**20  # pixels; windows up to this are read as they are: GDAL takes four times as long to average them
FINER = (
    2  # larger ones are read at most at this many times the encoder's input; the encoder's own resizing does the rest
)


class NoWindow(SceneError):
    """None of a scene's windows is left to embed."""


@dataclass(frozen=True, eq=False)
class SceneEmbeddings:
    """A scene's windows and their embeddings.

    Attributes:
        table: a GeoDataFrame: geometry (in the scene's CRS; without one in pixels, column and row), scene, level, left,
            top, width, height, valid, date, data (bytes or None, see ``data_of``); row i belongs to ``vectors[i]``.
        vectors: (n, D) float32, of length 1.
        meta: ``encoder`` (its name), ``encoder_fingerprint``, ``scene`` (path, name, width, height, transform as six
            numbers or None, crs as WKT or None, bands, low, high, fingerprint), ``sizes``, ``overlap``, ``min_valid``,
            ``views``, ``precision``, ``planned`` (number of windows) and ``skipped`` (why -> how many). In the file the
            encoder's and the scene's path may be told from a ``root``; here they are paths of this machine.
        file: where they were read from.
    """

    table: "geopandas.GeoDataFrame"
    vectors: np.ndarray
    meta: dict
    file: Path | None = None

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def transform(self) -> Affine:
        """From pixels (column, row) to coordinates: of the scene's CRS, or without one pixels as they are."""
        own = self.meta["scene"]
        return Affine(*own["transform"]) if own["crs"] else Affine.identity()

    def window(self, row: int) -> Window:
        """The window of a row."""
        return Window(*(int(self.table[name].iat[row]) for name in Window._fields))

    def data_of(self, rows: np.ndarray) -> np.ndarray:
        """bool (rows, GRID, GRID): which parts of these windows have data, half of their pixels or more."""
        whole = b"\xff" * (GRID * GRID // 8)
        told = [None] * len(rows) if "data" not in self.table else self.table["data"].iloc[rows]
        bits = np.frombuffer(b"".join(one if isinstance(one, bytes) else whole for one in told), np.uint8)
        return np.unpackbits(bits).reshape(len(rows), GRID, GRID).astype(bool)


def plan_windows(width: int, height: int, sizes: Sequence[int], overlap: float) -> list[tuple[int, Window]]:
    """(level, window) of all windows over a scene, level by level, row by row; all lie inside.

    The last column and row are shifted inward. A scene smaller than a window has one of what there is, and a size that
    gives no other windows than one before it has no level of its own.

    Args:
        width, height: of the scene, pixels.
        sizes: sides of the windows, pixels of the scene; one level each.
        overlap: share of a side that two neighbours have in common, from 0 to below 1.

    Raises:
        ValueError: a size or the overlap is out of range.
    """
    return [(level, Window(*window)) for level, *window in _plan(width, height, sizes, overlap).tolist()]


def count_windows(width: int, height: int, size: int, overlap: float) -> int:
    """How many windows of one size ``plan_windows`` gives, without making them. Raises as that does."""
    _plan(1, 1, [size], overlap)
    step = max(1, round(size * (1 - overlap)))
    return len(_starts(width, min(size, width), step)) * len(_starts(height, min(size, height), step))


def check_settings(
    sizes: Sequence[int], overlap: float, min_valid: float, views: int, batch_size: int, precision: str = "auto"
) -> None:
    """Raise a ValueError where ``embed_scene`` would not take these settings; names the first."""
    _plan(1, 1, sizes, overlap)
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
        FORMAT, NATIVE, FINER, fingerprint, scene.fingerprint, settings, _identify(within), batch_size
    )
    from_root = {} if root is None else {"root": _told_from(out.parent, root)}
    there = _read_meta(out) if out.exists() else {}
    if there is None:
        raise ValueError(f"{out}: is there already and holds no embeddings of a scene; give another name")
    if there.get("key") == key and there.get("root") == from_root.get("root"):
        log(Passing(f"{out}: done already, with these settings"))
        found = load_scene_embeddings(out)
        return replace(found, meta=found.meta | {"scene": found.meta["scene"] | {"path": str(scene.path)}})

    if said := scene.clipping():
        log(said)
    rows = _plan(scene.width, scene.height, sizes, overlap)
    inside = _share_within(rows, within, scene)
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
        meta |= {"dim": D, "scene": _describe(scene), **settings, "planned": len(rows), "skipped": skipped}
        if root is not None:
            meta["scene"]["path"] = _below(root, meta["scene"]["path"])
            meta["encoder"] = _below(root, encoder.name) if Path(encoder.name).is_dir() else encoder.name
        with whole_file(out) as file:
            _write(file, scene, meta, asked, scratch)
        shutil.rmtree(scratch, ignore_errors=True)
    return load_scene_embeddings(out)


def load_scene_embeddings(path: Path | str) -> SceneEmbeddings:
    """What ``embed_scene`` wrote to a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a Parquet file, not one of ``embed_scene``, or a damaged one.
    """

    from pyarrow import ArrowException

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; `rsvlm scene embed` makes one")
    meta = _read_meta(path)
    if meta is None or meta.get("format") not in READ:
        raise ValueError(
            f"{path}: no embeddings of a scene in the form that this version reads; make them anew with `rsvlm scene embed`"
        )
    try:
        return SceneEmbeddings(*_read_windows(path, meta["dim"]), _with_paths(meta, path), path)
    except (
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        OSError,
        ArrowException,
        shapely.errors.ShapelyError,
    ) as error:
        raise ValueError(f"{path}: damaged ({error}); make it anew with `rsvlm scene embed`") from error


def _told_from(folder: Path, place: Path | str) -> str:
    """A place as seen from a folder, the same text on each system."""
    return Path(os.path.relpath(Path(place).resolve(), folder.resolve())).as_posix()


def _below(root: Path, place: str) -> str:
    """A path from ``root``; one that does not lie below it stays as it is."""
    return _told_from(root, place) if Path(place).resolve().is_relative_to(Path(root).resolve()) else place


def _with_paths(meta: dict, file: Path) -> dict:
    """What a file says with the paths that it tells from a root, if it does, as ones of this machine."""
    if "root" not in meta:
        return meta
    root = Path(os.path.normpath(file.absolute().parent / meta["root"]))
    encoder = root / meta["encoder"]
    found = {"encoder": str(encoder)} if encoder.is_dir() else {}
    return meta | found | {"scene": meta["scene"] | {"path": str(root / meta["scene"]["path"])}}


def _read_windows(path: Path, dim: int) -> tuple["geopandas.GeoDataFrame", np.ndarray]:
    """(the windows, their vectors (n, dim) float32)."""
    import geopandas
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(path, memory_map=True) as file:
        columns = [name for name in file.schema_arrow.names if name != "embedding"]
        vectors = np.empty((file.metadata.num_rows, dim), np.float32)
        start = 0
        for batch in file.iter_batches(batch_size=A_GROUP, columns=["embedding"]):
            part = batch.column(0).flatten().to_numpy(zero_copy_only=False)
            vectors[start : start + len(batch)] = part.reshape(-1, dim)
            start += len(batch)
    return geopandas.read_parquet(path, columns=columns), vectors


def place_windows(rows: np.ndarray, transform: Affine) -> np.ndarray:
    """Polygons (n,) of windows (n, 4): left, top, width, height in pixels."""
    left, top, width, height = np.asarray(rows, np.float64).T
    columns = np.stack([left, left + width, left + width, left, left], axis=1)
    lines = np.stack([top, top, top + height, top + height, top], axis=1)
    x = transform.a * columns + transform.b * lines + transform.c
    y = transform.d * columns + transform.e * lines + transform.f
    return shapely.polygons(np.stack([x, y], axis=-1))


def _plan(width: int, height: int, sizes: Sequence[int], overlap: float) -> np.ndarray:
    """int64 (n, 5): level, left, top, width, height."""
    sizes = list(sizes)
    if not sizes or any(isinstance(size, bool) or size != int(size) or size < 1 for size in sizes):
        raise ValueError(f"sizes: whole numbers from 1 are needed, pixels of the scene; got {sizes}")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap: a share from 0 to below 1 is needed; got {overlap}")
    if width < 1 or height < 1:
        raise ValueError(f"a scene of {width}x{height} pixels has no windows")
    planned, seen = [], set()
    for level, size in enumerate(map(int, sizes)):
        across, down = min(size, width), min(size, height)
        if (across, down) in seen:
            continue
        seen.add((across, down))
        step = max(1, round(size * (1 - overlap)))
        lefts, tops = (_starts(length, side, step) for length, side in ((width, across), (height, down)))
        top, left = (part.ravel() for part in np.meshgrid(tops, lefts, indexing="ij"))
        fixed = [np.full(len(left), value) for value in (level, across, down)]
        planned.append(np.stack([fixed[0], left, top, fixed[1], fixed[2]], axis=1))
    return np.concatenate(planned).astype(np.int64)


def _starts(length: int, side: int, step: int) -> np.ndarray:
    """Where windows of ``side`` begin on ``length`` pixels: a ``step`` apart, the last one at the end."""
    starts = np.arange(0, length - side + 1, step)
    return starts if starts[-1] == length - side else np.append(starts, length - side)


def _identify(within: shapely.Geometry | np.ndarray | None) -> list | None:
    """What ``within`` is, as JSON values."""
    if within is None:
        return None
    if isinstance(within, np.ndarray):
        if within.dtype != bool or within.ndim != 2 or not within.size:
            raise ValueError(f"within: an array of bool (rows, columns) is needed; got {within.dtype} {within.shape}")
        return [list(within.shape), hashlib.sha256(np.packbits(within).tobytes()).hexdigest()]
    if not isinstance(within, shapely.Geometry):
        raise ValueError(f"within: a shapely geometry or an array of bool is needed; got {type(within).__name__}")
    return [shapely.to_wkb(within, hex=True, byte_order=1)]


def _share_within(rows: np.ndarray, within: shapely.Geometry | np.ndarray | None, scene: Scene) -> np.ndarray:
    """The share (n,) of each window's area that lies in ``within``."""
    if within is None:
        return np.ones(len(rows))
    left, top, width, height = rows[:, 1:].T
    if isinstance(within, np.ndarray):
        H, W = within.shape
        summed = np.zeros((H + 1, W + 1))
        summed[1:, 1:] = within.cumsum(0).cumsum(1)

        def area(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            """Cells of the array above and left of a place, parts of cells included: bilinear in the sums."""
            x, y = x * (W / scene.width), y * (H / scene.height)
            column, row = np.minimum(x.astype(np.int64), W - 1), np.minimum(y.astype(np.int64), H - 1)
            x, y = x - column, y - row
            upper = summed[row, column] * (1 - x) + summed[row, column + 1] * x
            lower = summed[row + 1, column] * (1 - x) + summed[row + 1, column + 1] * x
            return upper * (1 - y) + lower * y

        right, bottom = left + width, top + height
        cells = area(right, bottom) - area(left, bottom) - area(right, top) + area(left, top)
        return np.clip(cells / (width * height * (W / scene.width) * (H / scene.height)), 0, 1).round(9)
    if scene.crs is not None:  # windows are boxes in pixels
        back = ~scene.transform
        within = shapely.transform(
            within, lambda x, y: (back.a * x + back.b * y + back.c, back.d * x + back.e * y + back.f), interleaved=False
        )
    boxes, share = shapely.box(left, top, left + width, top + height), np.zeros(len(rows))
    shapely.prepare(within)
    whole = shapely.contains_properly(within, boxes)
    share[whole] = 1
    parts = np.flatnonzero(~whole & shapely.intersects(within, boxes))
    share[parts] = shapely.area(shapely.intersection(boxes[parts], within)) / (width * height)[parts]
    return np.clip(share, 0, 1).round(9)


@dataclass(frozen=True)
class _Block:
    """Windows next to each other in the plan, whose embeddings go into a file of their own first."""

    start: int
    windows: np.ndarray  # int64 (n, 5), as ``_plan`` gives them
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


def _describe(scene: Scene) -> dict:
    return {
        "path": str(scene.path),
        "name": scene.name,
        "width": scene.width,
        "height": scene.height,
        "transform": None if scene.transform is None else list(scene.transform)[:6],
        "crs": None if scene.crs is None else scene.crs.to_wkt(),
        "bands": list(scene.bands),
        "low": list(scene.low),
        "high": list(scene.high),
        "date": None if scene.date is None else scene.date.isoformat(),
        "fingerprint": scene.fingerprint,
    }


def _read_meta(path: Path) -> dict | None:
    """What ``embed_scene`` said in a file; None where it said nothing.

    Raises:
        ValueError: not a Parquet file, or a damaged one.
    """
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        text = (parquet.read_metadata(path).metadata or {}).get(META)
        return None if text is None else json.loads(text)
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        raise ValueError(
            f"{path}: not a whole Parquet file ({error}), so no embeddings of a scene, which `rsvlm scene embed` writes"
        ) from error


def _write(path: Path, scene: Scene, meta: dict, asked: np.ndarray, scratch: Path) -> None:
    """The file, by groups of rows."""
    import pyarrow
    import pyarrow.parquet as parquet

    transform = scene.transform if scene.crs is not None else Affine.identity()
    numbers = ["level", "left", "top", "width", "height"]
    kinds = {
        "geometry": pyarrow.binary(),
        "scene": pyarrow.string(),
        **{name: pyarrow.int32() for name in numbers},
        "valid": pyarrow.float32(),
        "date": pyarrow.timestamp("us", tz="UTC"),
        "data": pyarrow.binary(),
        "embedding": pyarrow.list_(pyarrow.float32(), meta["dim"]),
    }
    texts = {META: json.dumps(meta, sort_keys=True, ensure_ascii=False, allow_nan=False)}
    texts[b"geo"] = json.dumps(_geo(scene, asked, scratch, transform), sort_keys=True, ensure_ascii=False)
    schema = pyarrow.schema(kinds.items(), metadata=texts)

    def write(writer: parquet.ParquetWriter, waiting: list[np.ndarray]) -> None:
        part = np.concatenate(waiting)
        rows = asked[part["row"]]
        columns = {
            "geometry": shapely.to_wkb(place_windows(rows[:, 1:], transform), byte_order=1),
            "scene": [scene.name] * len(part),
            **{name: rows[:, place] for place, name in enumerate(numbers)},
            "valid": part["valid"],
            "date": [scene.date] * len(part),
            "data": [None if valid == 1 else bits.tobytes() for valid, bits in zip(part["valid"], part["data"])],
        }
        arrays = [pyarrow.array(values, kinds[name]) for name, values in columns.items()]
        flat = pyarrow.array(np.ascontiguousarray(part["vector"]).reshape(-1))
        arrays.append(pyarrow.FixedSizeListArray.from_arrays(flat, meta["dim"]))
        writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema), row_group_size=A_GROUP)

    plain = [name for name in kinds if name != "embedding"]
    with parquet.ParquetWriter(path, schema, compression="zstd", use_dictionary=plain) as writer:
        waiting, count = [], 0
        for block in _blocks(scratch, len(asked)):
            waiting.append(block)
            count += len(block)
            if count + BLOCK > A_GROUP:
                write(writer, waiting)
                waiting, count = [], 0
        if count:
            write(writer, waiting)


def _geo(scene: Scene, asked: np.ndarray, scratch: Path, transform: Affine) -> dict:
    """GeoParquet's metadata, version 1.1.0."""
    from pyproj import CRS

    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    for block in _blocks(scratch, len(asked)):
        if len(block):
            bounds = shapely.bounds(place_windows(asked[block["row"], 1:], transform))
            low, high = np.minimum(low, bounds[:, :2].min(0)), np.maximum(high, bounds[:, 2:].max(0))
    column = {
        "encoding": "WKB",
        "geometry_types": ["Polygon"],
        "crs": None if scene.crs is None else CRS.from_wkt(scene.crs.to_wkt()).to_json_dict(),
        "bbox": [*low.tolist(), *high.tolist()],
    }
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
