"""An archive of many scenes: what lies where, from when, how cloudy.

``open_archive`` lists a folder of rasters, or what a STAC document on disk tells of; each scene keeps its own coordinate
system, and its footprint is given in degrees beside.
"""

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import shapely

from rsvlm.data.moments import moment
from rsvlm.data.rasters.bands import find_band
from rsvlm.data.rasters.files import SceneError
from rsvlm.data.rasters.scene import Scene, open_scene
from rsvlm.data.rasters.windows import Window
from rsvlm.data.recipes import BAND_PRESETS
from rsvlm.progress import progress
from rsvlm.safe_text import write_csv
from rsvlm.scenes.footprints import LONGITUDE_LATITUDE, area_of, footprints, meets
from rsvlm.scenes.places import PLACES, check_ending, write_places
from rsvlm.scenes.stac import Found, read_stac
from rsvlm.scenes.window_index import WindowIndex
from rsvlm.settings import closest_name

SUFFIXES = (".tif", ".tiff", ".jp2", ".j2k", ".vrt", ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
COLUMNS = ("scene", "path", "date", "cloud_cover", "crs", "width", "height", "ground_size")
BAND_NAMES = "band_names"  # column of what an item calls the bands of its file
BETWEEN = "; "  # those names
LISTS = (*PLACES, ".csv")  # endings of files that a list is written to
NAMED = 5  # scenes that an error names
Moment = str | date | datetime | pd.Timestamp


@dataclass(frozen=True)
class SceneArchive:
    """Scenes and what is known of each; ``open_archive`` and ``load_archive`` make one.

    Attributes:
        scenes: a GeoDataFrame, one row a scene: ``scene`` (its name, once in the archive), ``path``, ``date`` (UTC),
            ``cloud_cover`` (percent), ``crs`` (its own, such as "EPSG:32633"), ``width``, ``height`` (pixels),
            ``ground_size`` (metres a pixel), what else an item says, and ``geometry``, its footprint in degrees
            (EPSG:4326). What nobody tells is missing; a scene without CRS, or with one
            that is not the Earth's, has no geometry.
        place: where they were looked for.
        skipped: (name, why) of what was left out because it cannot be used.
        notes: what else to know of it, in sentences.
        windows: where ``search_archive`` looks first, for an archive that was embedded into a tier.
    """

    scenes: geopandas.GeoDataFrame
    place: str
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    windows: WindowIndex | None = None

    def __len__(self) -> int:
        return len(self.scenes)

    def count(self) -> dict[str, int]:
        """How many scenes there are, how many lack what is searched by, and how many lie in each coordinate system."""
        frame = self.scenes
        counts = {"scenes": len(frame), "skipped": len(self.skipped)}
        counts |= {"without_place": int(frame.geometry.isna().sum()), "without_date": int(frame["date"].isna().sum())}
        return counts | {f"crs {name}": n for name, n in sorted(Counter(frame["crs"].dropna()).items())}

    def filter(
        self,
        /,
        bbox: Sequence[float] | None = None,
        *,
        geometry: object = None,
        start: Moment | None = None,
        end: Moment | None = None,
        cloud_cover_below: float | None = None,
        **properties: object,
    ) -> "SceneArchive":
        """The scenes for which all of this is true. What is unknown of a scene is not true of it; ``notes`` count that.

        Args:
            bbox: west, south, east, north in degrees; west above east crosses the date line. A scene counts that shares
                more than an edge with it.
            geometry: instead a shape in degrees, or a table of shapes.
            start, end: dates or times, UTC where no zone is told; both ends count, ``end="2024-05"`` to the end of May.
                A scene that was taken over some time counts where that overlaps.
            cloud_cover_below: percent.
            properties: by column; one value, or a list of those that count:
                ``platform="sentinel-2a"``, ``**{"s2:mgrs_tile": ["32TQM", "33TTG"]}``.

        Raises:
            ValueError: an unknown property (the closest is named), no date, no box, or something that no scene of the
                archive tells.
        """
        frame, notes = self.scenes, []
        keep = np.ones(len(frame), bool)

        def check(what: str, unknown: Iterable[bool]) -> None:
            unknown = np.asarray(unknown, bool)
            if len(frame) and unknown.all():
                raise SceneError(f"{self.place}: no scene of the archive has {what}, so none can be found by it")
            if unknown.any():
                notes.append(f"{_scenes(unknown.sum())} of {len(frame)} without {what} left out")

        area = area_of(bbox, geometry)
        if area is not None:
            check("a place", frame.geometry.isna())
            keep &= meets(frame.geometry.to_numpy(), area)
        if start is not None or end is not None:
            check("a date", frame["date"].isna())
            keep &= _within(frame, start, end)
        if cloud_cover_below is not None:
            if not 0 < float(cloud_cover_below) < math.inf:
                raise ValueError(f"cloud_cover_below: expected percent above 0, is {cloud_cover_below!r}")
            check("a cloud cover", frame["cloud_cover"].isna())
            keep &= (frame["cloud_cover"] < float(cloud_cover_below)).to_numpy()
        known = [name for name in frame.columns if name != frame.geometry.name]
        for name, value in properties.items():
            if name not in known:
                more = ("bbox", "geometry", "start", "end", "cloud_cover_below")
                raise SceneError(f"{self.place}: unknown property {name!r}{closest_name(name, [*known, *more])}")
            values = list(value) if isinstance(value, list | tuple | set | frozenset) else [value]
            keep &= frame[name].isin(values).to_numpy()
        return replace(self, scenes=frame[keep].reset_index(drop=True), notes=(*self.notes, *notes))

    def open(
        self,
        scene: str,
        *,
        bands: Sequence[int | str] | str | None = None,
        stretch: str | Sequence = "auto",
        percentiles: tuple[float, float] = (2.0, 98.0),
    ) -> Scene:
        """One scene by its name, opened by ``open_scene``; bands may be named as the scene's item names them.

        Raises:
            FileNotFoundError: its file is gone.
            SceneError: an unknown name, a scene on a server, or one that cannot be read.
        """
        rows = self.scenes[self.scenes["scene"] == scene]
        if rows.empty:
            raise SceneError(f"{self.place}: unknown scene {scene!r}{closest_name(scene, self.scenes['scene'])}")
        row = rows.iloc[0]
        if "://" in row["path"]:
            raise SceneError(
                f"{scene}: {row['path']} lies on a server, only its item was read; fetch it, and list the copy"
            )
        names = row.get(BAND_NAMES)
        if isinstance(names, str):
            bands = _named_bands(bands, names.split(BETWEEN))
        opened = open_scene(row["path"], bands=bands, stretch=stretch, percentiles=percentiles)
        opened.name = scene
        if not pd.isna(row["date"]):
            opened.date = row["date"].to_pydatetime()
        return opened

    def save(self, path: Path | str) -> None:
        """Write the list as .parquet (GeoParquet), .geojson, or .csv with footprints as WKT; whole or not at all."""
        path = check_ending(path, LISTS)
        if path.suffix.lower() == ".csv":
            write_csv(path, self.scenes.to_wkt())
        else:
            write_places(self.scenes, path)


def open_archive(
    place: Path | str | Sequence[Path | str],
    *,
    asset: str | None = None,
    online: bool = False,
    missing: str = "raise",
) -> SceneArchive:
    """The scenes of a place; of each only the head of its file is read.

    Args:
        place: a folder (all rasters in it, also deeper down; hidden ones, sidecars and overviews do not count), a STAC
            document on disk (.json, .geojson; see ``rsvlm.scenes.stac``), a raster, or a list of rasters.
        asset: key of the asset of a STAC item that is the scene; None: as ``read_stac`` chooses.
        online: list items whose asset lies on a server by what they say of it; the file itself is not asked for.
        missing: ``raise`` stops at a scene that is not there or cannot be used (no file, a link that leads out of the
            folder or to a server, a broken raster); ``skip`` leaves it out and tells of it in ``skipped``.

    Raises:
        FileNotFoundError: there is no such place, or a scene is missing.
        SceneError: no raster there, no STAC, one name for two scenes, or a scene that cannot be used.
    """
    if missing not in ("raise", "skip"):
        raise ValueError(f"missing: {missing!r} is neither 'raise' nor 'skip'")
    listed, where = _list_scenes(place, asset, online)
    rows, names, skipped, elsewhere = [], [], [], 0
    with progress(listed, desc="scenes", unit="scene", disable=len(listed) < 100) as bar:
        for found in bar:
            name = found.item or found.path
            if found.trouble:
                if missing == "raise":
                    hint = "; or leave out what cannot be used: missing='skip'"
                    raise SceneError(f"{found.where}: {found.trouble}{hint}")
                skipped.append((name, found.trouble))
                continue
            try:
                row, moved = _describe(found)
            except (SceneError, OSError) as error:
                if missing == "raise":
                    raise
                skipped.append((name, str(error)))
                continue
            rows.append(row)
            names.append(found)
            elsewhere += moved
    for row, name in zip(rows, _unique_names(names, where), strict=True):
        row["scene"] = name
    if not rows and not skipped:
        raise SceneError(f"{where}: it tells of no scenes")
    frame = _frame(rows)
    notes = []
    if lacking := int(frame.geometry.isna().sum()):
        notes.append(
            f"{_scenes(lacking)} of {len(frame)} without a place on Earth: no coordinate system, or none of the Earth's"
        )
    if elsewhere:
        notes.append(
            f"{_scenes(elsewhere)} of {len(frame)} elsewhere than the item says: the raster's own place counts"
        )
    if afar := sum(found.remote for found in names):
        notes.append(
            f"{_scenes(afar)} of {len(frame)} on a server, listed by what the item says; fetch them to embed them"
        )
    return SceneArchive(frame, where, tuple(skipped), tuple(notes))


def _list_scenes(place: Path | str | Sequence[Path | str], asset: str | None, online: bool) -> tuple[list[Found], str]:
    """(what was found, where); nothing but STAC documents is opened."""
    if isinstance(place, str | Path):
        path = Path(place)
        if path.is_file() and path.suffix.lower() in (".json", ".geojson"):
            return list(read_stac(path, asset=asset, online=online)), str(path)
        if path.is_dir():
            files = [
                file
                for file in sorted(path.rglob("*"))
                if file.suffix.lower() in SUFFIXES
                and not any(part.startswith(".") for part in file.relative_to(path).parts)
                and file.is_file()
            ]
            if not files:
                raise FileNotFoundError(
                    f"{path}: no raster in this folder; files that end in {', '.join(SUFFIXES)} count. A STAC archive is "
                    "opened by its document, for example catalog.json"
                )
        elif path.exists():
            files = [path]
        else:
            raise FileNotFoundError(f"{path}: no such folder or file")
        where = str(path)
    else:
        files = [Path(one) for one in place]
        if not files:
            raise SceneError("an empty list is no archive; give paths of rasters")
        where = f"{len(files)} files"
    if asset is not None:
        raise ValueError(f"asset: {asset!r} is for STAC documents; {where} is none")
    return [Found(file.stem, str(file), os.path.normpath(file), document=False) for file in files], where


def _describe(found: Found) -> tuple[dict[str, object], bool]:
    """(a row of the list, but for its name; whether its raster lies elsewhere than its item says)."""
    row: dict[str, object] = dict.fromkeys(COLUMNS)
    row |= {"path": found.path, "date": found.date, "cloud_cover": found.cloud_cover, "geometry": found.geometry}
    told, elsewhere = found.properties, False
    if found.remote:
        row["crs"] = told.get("proj:code") or (f"EPSG:{told['proj:epsg']}" if told.get("proj:epsg") else None)
        row["ground_size"] = told.get("gsd")
    else:
        # Which bands and which stretch is not asked here.
        with open_scene(found.path, bands=[1], stretch=(0.0, 1.0)) as scene:
            row |= {"width": scene.width, "height": scene.height, "ground_size": scene.ground_size()}
            row["date"] = found.date or scene.date
            if scene.crs is not None:
                row["crs"] = scene.crs.to_string()
                own = footprints([scene.polygon(Window(0, 0, scene.width, scene.height))], scene.crs.to_wkt())[0]
                row["geometry"], elsewhere = _better_place(own, found.geometry)
    if found.bands:
        row[BAND_NAMES] = BETWEEN.join(found.bands)
    taken = {*COLUMNS, BAND_NAMES, "geometry", "file", "windows", "trouble", "rank", "score"}
    row |= {f"item:{name}" if name in taken else name: value for name, value in told.items()}
    return row, elsewhere


def _better_place(own: shapely.Geometry | None, told: shapely.Geometry | None) -> tuple[shapely.Geometry | None, bool]:
    """A scene's footprint by its raster and by its item, and whether they have nothing in common.

    The item's counts, since it may leave out what has no data; but not where it lies elsewhere, nor where the raster
    crosses the date line or holds a pole: there items are often wrong.
    """
    if own is None or told is None:
        return (told if own is None else own), False
    west, _, east, _ = own.bounds
    elsewhere = not shapely.intersects(own, told)
    return (own if elsewhere or east - west > 180 else told), elsewhere


def _unique_names(found: Sequence[Found], where: str) -> list[str]:
    """A name for each scene: an item's id, with its collection where ids repeat; a file's stem, or as much of its path."""
    paths = [os.path.abspath(one.path) for one in found]
    if any(one.document for one in found):
        longer = [f"{one.properties.get('collection', '')}/{one.item}".lstrip("/") for one in found]
        ways = [[one.item for one in found], longer]
    else:
        top = os.path.commonpath(map(os.path.dirname, paths)) if found else ""
        inner = [Path(path).relative_to(top) for path in paths]
        ways = [[path.stem for path in inner], [path.with_suffix("").as_posix() for path in inner]]
        ways.append([path.as_posix() for path in inner])
    for names in ways:
        if len(set(names)) == len(names):
            return names
    name = next(name for name, count in Counter(names).items() if count > 1)
    places = [one.where for one, own in zip(found, names) if own == name]
    raise SceneError(f"{where}: {name!r} is there {len(places)} times: {', '.join(places[:NAMED])}; leave one")


def _frame(rows: Sequence[Mapping[str, object]]) -> geopandas.GeoDataFrame:
    """The list of scenes from its rows: a column holds values of one type."""
    names = [name for name in dict.fromkeys([*COLUMNS, *(name for row in rows for name in row)]) if name != "geometry"]
    columns = {name: _column(name, [row.get(name) for row in rows]) for name in names}
    shapes = [row["geometry"] for row in rows]
    return geopandas.GeoDataFrame(columns, geometry=shapes, crs=LONGITUDE_LATITUDE)


def _column(name: str, values: list[object]) -> pd.Series:
    unknown = name in ("width", "height") and None in values
    if unknown or name in ("cloud_cover", "ground_size"):
        return pd.Series(values, dtype="float64")
    kinds = {type(value) for value in values if value is not None}
    if name == "date" or kinds == {pd.Timestamp}:
        return to_dates(pd.Series(values, dtype=object))
    large = any(isinstance(value, int) and abs(value) >= 2**63 for value in values)
    if large or len(kinds) > 1 and kinds != {int, float}:
        values = [None if value is None else str(value) for value in values]
    return pd.Series(values, dtype=None if any(value is not None for value in values) else object)


def to_dates(values: pd.Series) -> pd.Series:
    return pd.to_datetime(values, utc=True).astype("datetime64[us, UTC]")


def _within(frame: geopandas.GeoDataFrame, start: Moment | None, end: Moment | None) -> np.ndarray:
    """Which scenes were taken between two times, or over some time that overlaps with it."""
    first = None if start is None else moment(start)
    last = None if end is None else moment(end, last=True)
    if first is not None and last is not None and first > last:
        raise ValueError(f"start: {start} is later than end: {end}")
    keep = frame["date"].notna()
    if first is not None:
        until = frame["end_datetime"].fillna(frame["date"]) if "end_datetime" in frame else frame["date"]
        keep &= until >= first
    if last is not None:
        keep &= frame["date"] <= last
    return keep.to_numpy()


def _named_bands(bands: Sequence[int | str] | str | None, names: Sequence[str]) -> Sequence[int | str] | str | None:
    """Bands as the file's numbers where an item's names tell them; else as they are."""
    if bands is None or isinstance(bands, str):
        preset = BAND_PRESETS.get("true-colour" if bands is None else bands)
        found = [find_band(own, names) for own in preset.names] if preset else []
        return [own[0] for own in found] if found and all(len(own) == 1 for own in found) else bands
    told = [find_band([band], names) if isinstance(band, str) else [] for band in bands]
    return [own[0] if len(own) == 1 else band for own, band in zip(told, bands)]


def _scenes(count: int) -> str:
    return "1 scene" if count == 1 else f"{count} scenes"
