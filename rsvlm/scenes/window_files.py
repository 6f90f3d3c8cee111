"""The GeoParquet file of a scene's windows and their embeddings.

A row holds a window's ground (geometry), the scene's name, level, left, top, width and height in pixels of the scene, its
share of valid pixels, the scene's date, where it has data (``data``: GRID x GRID parts of it, row by row, a bit each; missing
where all of it is valid), and its embedding, a list of float32 of length 1. What was asked for, which windows were left out and
why, and which encoder looked at them stands in the file's metadata.
"""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import shapely
from rasterio import Affine

from rsvlm.data.rasters.scene import Scene
from rsvlm.data.rasters.windows import Window
from rsvlm.models.feature_shards import BLOCK

if TYPE_CHECKING:
    import geopandas
    from pyarrow.parquet import ParquetFile

FORMAT = 2  # of the file: raise it when the same arguments give other bytes
READ = (1, FORMAT)  # forms of the file that can be read; the first does not say where windows have data
GRID = 16  # parts of a window's side, for which it is kept whether they have data
META = b"rsvlm"  # the key of the file's metadata under which its JSON stands
A_GROUP = 8192  # rows of the file that are written, and read, at a time


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


def load_scene_embeddings(path: Path | str, rows: Sequence[int] | None = None) -> SceneEmbeddings:
    """What ``embed_scene`` wrote to a file.

    Args:
        rows: of its windows, rising; None: all of them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a Parquet file, not one of ``embed_scene``, or a damaged one.
    """

    from pyarrow import ArrowException

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; `rsvlm scene embed` makes one")
    meta = read_meta(path)
    if meta is None or meta.get("format") not in READ:
        raise ValueError(
            f"{path}: no embeddings of a scene in the form that this version reads; make them anew with `rsvlm scene embed`"
        )
    try:
        return SceneEmbeddings(*_read_windows(path, meta, rows), _with_paths(meta, path), path)
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


def told_from(folder: Path, place: Path | str) -> str:
    """A place as seen from a folder, the same text on each system."""
    return Path(os.path.relpath(Path(place).resolve(), folder.resolve())).as_posix()


def path_below(root: Path, place: str) -> str:
    """A path from ``root``; one that does not lie below it stays as it is."""
    return told_from(root, place) if Path(place).resolve().is_relative_to(Path(root).resolve()) else place


def _with_paths(meta: dict, file: Path) -> dict:
    """What a file says with the paths that it tells from a root, if it does, as ones of this machine."""
    if "root" not in meta:
        return meta
    root = Path(os.path.normpath(file.absolute().parent / meta["root"]))
    encoder = root / meta["encoder"]
    found = {"encoder": str(encoder)} if encoder.is_dir() else {}
    return meta | found | {"scene": meta["scene"] | {"path": str(root / meta["scene"]["path"])}}


def _read_windows(path: Path, meta: dict, rows: Sequence[int] | None) -> tuple["geopandas.GeoDataFrame", np.ndarray]:
    """(the windows, their vectors (n, D) float32)."""
    import geopandas
    import pyarrow.parquet as parquet

    dim = meta["dim"]
    with parquet.ParquetFile(path, memory_map=True) as file:
        if rows is not None:
            return _read_rows(file, np.asarray(rows, np.int64), meta)
        columns = [name for name in file.schema_arrow.names if name != "embedding"]
        vectors = np.empty((file.metadata.num_rows, dim), np.float32)
        start = 0
        for batch in file.iter_batches(batch_size=A_GROUP, columns=["embedding"]):
            part = batch.column(0).flatten().to_numpy(zero_copy_only=False)
            vectors[start : start + len(batch)] = part.reshape(-1, dim)
            start += len(batch)
    return geopandas.read_parquet(path, columns=columns), vectors


def _read_rows(file: "ParquetFile", rows: np.ndarray, meta: dict) -> tuple["geopandas.GeoDataFrame", np.ndarray]:
    """The same of some rows, for which only their groups are read."""
    import geopandas
    import pyarrow

    ends = np.cumsum([file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)])
    owner, parts = np.searchsorted(ends, rows, side="right"), [file.schema_arrow.empty_table()]
    for group in np.unique(owner):
        part = file.read_row_group(int(group))
        parts.append(part.take(rows[owner == group] - (ends[group] - len(part))))
    table = pyarrow.concat_tables(parts)
    vectors = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, meta["dim"])
    places = shapely.from_wkb(table["geometry"].to_numpy())
    columns = table.drop_columns(["geometry", "embedding"]).to_pandas()
    return geopandas.GeoDataFrame(columns, geometry=places, crs=meta["scene"]["crs"]), vectors


def place_windows(rows: np.ndarray, transform: Affine) -> np.ndarray:
    """Polygons (n,) of windows (n, 4): left, top, width, height in pixels."""
    left, top, width, height = np.asarray(rows, np.float64).T
    columns = np.stack([left, left + width, left + width, left, left], axis=1)
    lines = np.stack([top, top, top + height, top + height, top], axis=1)
    x = transform.a * columns + transform.b * lines + transform.c
    y = transform.d * columns + transform.e * lines + transform.f
    return shapely.polygons(np.stack([x, y], axis=-1))


def describe_scene(scene: Scene) -> dict:
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


def read_meta(path: Path) -> dict | None:
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
            f"{path}: not a whole Parquet file ({error}), so no embeddings of a scene, which `rsvlm scene embed` writes; remove the file to embed the scene anew"
        ) from error


def write_windows(
    path: Path, scene: Scene, meta: dict, asked: np.ndarray, blocks: Callable[[], Iterable[np.ndarray]]
) -> None:
    """Write a scene's windows, by groups of rows.

    Args:
        meta: as ``SceneEmbeddings.meta``.
        asked: int64 (n, 5), the windows that were asked for: level, left, top, width, height.
        blocks: gives what was kept of them anew each time: arrays with the fields row (of ``asked``), valid, data, vector.
    """
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
    texts[b"geo"] = json.dumps(_geo(scene, asked, blocks(), transform), sort_keys=True, ensure_ascii=False)
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
        for block in blocks():
            waiting.append(block)
            count += len(block)
            if count + BLOCK > A_GROUP:
                write(writer, waiting)
                waiting, count = [], 0
        if count:
            write(writer, waiting)


def _geo(scene: Scene, asked: np.ndarray, blocks: Iterable[np.ndarray], transform: Affine) -> dict:
    """GeoParquet's metadata, version 1.1.0."""
    from pyproj import CRS

    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    for block in blocks:
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
