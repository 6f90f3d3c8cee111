"""The windows of an archive's scenes in a tier of ``rsvlm.models.tiers``, which says where to look for the best of them.

It lies in the folder WINDOWS of the archive's and holds each window by the name FILE:ROW of its scene's file, with the file
as its source, the scene's date, and the box in degrees that it lies in. ``config.json`` tells the key of each file that it was made
of. In a table of LanceDB scenes come and go one by one; what a killed run had taken in stands in JOURNAL.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import shapely

from rsvlm.files import append_line, parse_json, read_json, write_json
from rsvlm.models.image_filters import SIDES, Where
from rsvlm.models.lance_tier import TABLE, LanceTier
from rsvlm.models.tier_folders import read_tier, write_tier
from rsvlm.models.tiers import CONFIG, Block, Tier, batches
from rsvlm.scenes.footprints import footprints
from rsvlm.scenes.window_files import A_GROUP, load_scene_embeddings, read_meta

if TYPE_CHECKING:
    import geopandas

WINDOWS, JOURNAL = "windows", "embedded.jsonl"
AGAIN = "embed the archive again with `rsvlm scene embed`"


class WindowIndex:
    """The windows of an archive in a tier, which is opened when it is first searched.

    Raises:
        ValueError: its configuration is damaged.
    """

    def __init__(self, folder: Path):
        self.folder, config = folder, read_json(folder / CONFIG)
        try:
            self.width, self.keys = int(config["width"]), dict(config["scenes"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder / CONFIG}: damaged ({error}); {AGAIN}") from error

    @cached_property
    def tier(self) -> Tier:
        """Raises as ``read_tier``."""
        return read_tier(self.folder, self.width, AGAIN)

    def find(
        self, vector: np.ndarray, k: int, files: Iterable[str], area: shapely.Geometry | None
    ) -> dict[str, list[int]]:
        """File -> rows, rising, of the k windows nearest to a vector (D,), in some files and where an area's box is.

        Raises:
            ValueError: a file that it was not made of, or that has changed.
        """
        files = list(files)
        for file in files:
            self.check(file)
        where = {} if set(files) == self.keys.keys() else {"source": files}
        where |= {} if area is None else {"bbox": area.bounds}
        found: dict[str, list[int]] = {}
        for name, _ in self.tier.search(vector[None], k, Where(**where) if where else None)[0]:
            file, _, row = name.rpartition(":")
            found.setdefault(file, []).append(int(row))
        return {file: sorted(rows) for file, rows in found.items()}

    def check(self, file: str, key: str | None = None) -> None:
        """Raise ValueError where the windows of a file are not in it, or were those of another ``key``."""
        if file not in self.keys or key not in (None, self.keys[file]):
            what = "older than" if file in self.keys else "without"
            raise ValueError(f"{self.folder}: an index {what} the windows of {file}; {AGAIN}")


def open_windows(archive: Path) -> WindowIndex | None:
    """The tier that an archive's windows lie in; None: none was finished. Raises as ``WindowIndex``."""
    folder = archive / WINDOWS
    return WindowIndex(folder) if (folder / CONFIG).is_file() else None


def index_windows(
    archive: Path,
    scenes: "geopandas.GeoDataFrame",
    tier: str | None,
    memory: int,
    recall: float,
    log: Callable[[str], None],
) -> None:
    """Lay the windows of an archive's scenes into a tier, those that are not in it as they are now.

    Args:
        scenes: columns file, windows, date and geometry.
        tier: one of ``rsvlm.models.tiers.TIERS``; exact: none, one that is there goes; None: what is there.
        memory, recall: as ``rsvlm.models.index.build_index`` takes them.

    Raises:
        ModuleNotFoundError: the tier's package is not installed.
        ValueError: embeddings of different widths, or too little memory.
    """
    folder = archive / WINDOWS
    there = _kind(folder)
    tier = tier or there or "exact"
    if there not in (None, tier):
        shutil.rmtree(folder)
    if tier == "exact" or scenes.empty:
        return
    metas = {file: read_meta(archive / file) for file in scenes["file"]}
    widths = {meta["dim"] for meta in metas.values()}
    if len(widths) > 1:
        raise ValueError(f"{archive}: embeddings of {', '.join(map(str, sorted(widths)))} numbers; {AGAIN}")
    wanted = {file: meta["key"] for file, meta in metas.items()}
    config = {"tier": tier, "width": widths.pop(), "scenes": wanted}
    if there is not None and (why := _trouble(folder, config["width"])):
        log(f"made anew: {why}")
        shutil.rmtree(folder)
    held = _held(folder)
    if held == wanted and (folder / CONFIG).is_file() and not (folder / JOURNAL).is_file():
        return
    rows = {row.file: row for row in scenes.itertuples(index=False)}
    log(f"{scenes['windows'].sum()} windows of {len(scenes)} scenes into the tier {tier}, {folder}")
    if tier == "lancedb":
        _update_table(archive, held, rows, config, recall)
        return
    blocks = (block for row in rows.values() for block in _blocks(archive, row))
    write_tier(tier, folder, config["width"], int(scenes["windows"].sum()), blocks, config, memory, recall)


def _update_table(
    archive: Path, held: Mapping[str, str | None], scenes: Mapping[str, object], config: dict, recall: float
) -> None:
    """Put into a table the scenes that it does not hold as they are, and take out those that are gone."""
    folder, wanted = archive / WINDOWS, config["scenes"]
    folder.mkdir(exist_ok=True)
    if not (folder / CONFIG).is_file() and not (folder / JOURNAL).is_file():
        append_line(folder / JOURNAL, json.dumps({}))
    table = LanceTier(folder, config["width"], recall)
    for file in [*(file for file in held if file not in wanted), *wanted]:
        if held.get(file) != wanted.get(file):
            append_line(folder / JOURNAL, json.dumps({file: None}))  # from here on it is not whole
            table.replace_source(file, _blocks(archive, scenes[file]) if file in scenes else ())
            append_line(folder / JOURNAL, json.dumps({file: wanted.get(file)}))
    table.compact()
    write_json(folder / CONFIG, config)
    (folder / JOURNAL).unlink(missing_ok=True)


def _blocks(archive: Path, row: object) -> Iterator[Block]:
    """The windows of a scene, some at a time."""
    own = load_scene_embeddings(archive / row.file)
    shapes = np.full(len(own), row.geometry) if own.table.crs is None else None
    for part in batches(np.arange(len(own)), A_GROUP):
        ground = footprints(own.table.geometry.to_numpy()[part], own.table.crs) if shapes is None else shapes[part]
        facts = pd.DataFrame(shapely.bounds(ground), columns=list(SIDES))
        facts = facts.assign(source=row.file, date=pd.Series([row.date] * len(part), dtype="datetime64[us, UTC]"))
        yield [f"{row.file}:{number}" for number in part], own.vectors[part], facts


def _trouble(folder: Path, width: int) -> str:
    """What is wrong with a tier, finished or begun, that it cannot be gone on with; empty where nothing is."""
    if not (folder / CONFIG).is_file():
        table = folder / f"{TABLE}.lance"
        return "" if table.is_dir() else f"{table}: the table is missing"
    try:
        index = WindowIndex(folder)
        if index.width != width:
            return f"{folder} holds vectors of {index.width} numbers, not of {width}"
        len(index.tier)
    except (ValueError, OSError) as error:
        return str(error)
    return ""


def _kind(folder: Path) -> str | None:
    """The tier in a folder, finished or begun; None: there is none."""
    if (folder / CONFIG).is_file():
        config = read_json(folder / CONFIG)
        return config.get("tier") if isinstance(config, dict) else None
    return "lancedb" if (folder / JOURNAL).is_file() else None


def _held(folder: Path) -> dict[str, str | None]:
    """File -> key of the scenes that a tier holds; None of one that may be there in part."""
    held = dict(WindowIndex(folder).keys) if (folder / CONFIG).is_file() else {}
    if (folder / JOURNAL).is_file():
        for line in (folder / JOURNAL).read_text(encoding="utf-8").splitlines():
            try:
                held |= parse_json(line)
            except ValueError:  # a power failure left it half written
                continue
    return held
