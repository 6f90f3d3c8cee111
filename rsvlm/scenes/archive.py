"""An archive of many scenes: what lies where, from when, how cloudy; embedded scene by scene and searched as one.

``open_archive`` lists a folder of rasters, or what a STAC document on disk tells of; each scene keeps its own coordinate
system, and its footprint is given in degrees beside. ``embed_archive`` fills a folder: a GeoParquet file a scene, as
``embed_scene`` writes it, and the list ``scenes.parquet``, which ``load_archive`` reads. ``search_archive`` finds windows
in all of them, ``rank_scenes`` the scenes; both hold one scene's embeddings in memory at a time.
"""

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import shapely
from pyarrow import ArrowException

from rsvlm.data.moments import moment
from rsvlm.data.rasters.bands import find_band
from rsvlm.data.rasters.files import SceneError
from rsvlm.data.rasters.scene import Scene, open_scene
from rsvlm.data.rasters.windows import Window
from rsvlm.data.recipes import BAND_PRESETS
from rsvlm.files import fingerprint_values, whole_file
from rsvlm.models.encoders import DualEncoder
from rsvlm.progress import log_line, progress
from rsvlm.safe_text import write_csv
from rsvlm.scenes.embedding import SceneEmbeddings, embed_scene, load_scene_embeddings
from rsvlm.scenes.footprints import LONGITUDE_LATITUDE, area_of, footprints, meets
from rsvlm.scenes.search import (
    PLACES,
    Query,
    add_centres,
    check_ending,
    encode_queries,
    find_peaks,
    is_hit,
    search_scene,
    write_places,
)
from rsvlm.scenes.stac import Found, read_stac
from rsvlm.settings import closest_name

SUFFIXES = (".tif", ".tiff", ".jp2", ".j2k", ".vrt", ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
COLUMNS = ("scene", "path", "date", "cloud_cover", "crs", "width", "height", "ground_size")
BAND_NAMES = "band_names"  # column of what an item calls the bands of its file
BETWEEN = "; "  # those names
LIST = "scenes.parquet"  # of an embedded archive
LISTS = (*PLACES, ".csv")  # endings of files that a list is written to
NAMED = 5  # scenes that an error names
HOPELESS = 20  # scenes that fail before any succeeds: then it is not the scenes
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
    """

    scenes: geopandas.GeoDataFrame
    place: str
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

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


def embed_archive(
    encoder: DualEncoder,
    archive: SceneArchive | Path | str,
    folder: Path | str,
    *,
    bands: Sequence[int | str] | str | None = None,
    stretch: str | Sequence = "auto",
    percentiles: tuple[float, float] = (2.0, 98.0),
    unreadable: str = "raise",
    log: Callable[[str], None] = log_line,
    **options: object,
) -> SceneArchive:
    """The scenes with the embeddings of their windows, now in ``folder``: a GeoParquet file each, and ``scenes.parquet``.

    What is there with the same scene, encoder and settings is not computed again, so a killed run goes on where it was.
    The list is that of the last call and is written at its end: while it is missing, the folder is not finished. A scene
    that cannot be read is told of and the others go on, unless the first HOPELESS all fail.

    Args:
        archive: what ``open_archive`` gave, or takes.
        bands, stretch, percentiles: as ``open_scene`` takes them, for every scene.
        unreadable: ``raise``: an error at the end that names scenes that could not be read; ``keep``: none, they are in
            the list with the column ``trouble``.
        options: as ``embed_scene`` takes them, but for ``within``.

    Returns:
        The archive with the columns ``file`` (in ``folder``), ``windows`` (their number) and ``trouble``, without the
        scenes that have some.

    Raises:
        SceneError: an empty archive, or scenes that could not be read.
        ValueError: a setting is out of range, for example of ``embed_scene``.
    """
    if unreadable not in ("raise", "keep"):
        raise ValueError(f"unreadable: {unreadable!r} is neither 'raise' nor 'keep'")
    if "within" in options:
        raise ValueError("within: an archive's scenes have different coordinate systems; filter the archive instead")
    archive = archive if isinstance(archive, SceneArchive) else open_archive(archive)
    if not len(archive):
        raise SceneError(f"{archive.place}: no scene to embed")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    frame = archive.scenes.drop(columns=["file", "windows", "trouble"], errors="ignore")
    files = [_file_name(name) for name in frame["scene"]]
    windows, troubles = [0] * len(frame), [""] * len(frame)
    for row, (name, file) in enumerate(zip(frame["scene"], files)):
        log(f"scene {row + 1} of {len(frame)}: {name}")
        try:
            with archive.open(name, bands=bands, stretch=stretch, percentiles=percentiles) as scene:
                for note in scene.notes:
                    log(f"{name}: {note}")
                windows[row] = len(embed_scene(encoder, scene, folder / file, log=log, **options))
        except (SceneError, FileNotFoundError, PermissionError) as error:
            troubles[row] = str(error)
            log(f"{name}: left out: {error}")
            if row + 1 == HOPELESS and not any(windows):
                raise SceneError(
                    f"the first {HOPELESS} scenes all fail, the last with: {error}; nothing was listed in {folder / LIST}"
                ) from error
    frame = frame.assign(file=files, windows=windows, trouble=troubles)
    with whole_file(folder / LIST) as path:
        frame.to_parquet(path, index=False)
    bad = [(name, why) for name, why in zip(frame["scene"], troubles) if why]
    if bad and unreadable == "raise":
        told = "; ".join(f"{name} ({why})" for name, why in bad[:NAMED]) + ("; ..." if len(bad) > NAMED else "")
        raise SceneError(
            f"{len(bad)} of {len(frame)} scenes could not be embedded: {told}; the others are done and in {folder / LIST}; "
            "mend or leave out these, or go on without them: unreadable='keep'"
        )
    return load_archive(folder)


def load_archive(folder: Path | str) -> SceneArchive:
    """What ``embed_archive`` left in a folder, ready to be filtered and searched.

    Raises:
        FileNotFoundError: no list there, or a file that it names is missing.
        SceneError: a list that is not one of ``embed_archive``.
    """
    folder = Path(folder)
    path = folder / LIST
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; `rsvlm scene embed` writes it when all scenes are done")
    try:
        frame = geopandas.read_parquet(path)
    except (ValueError, TypeError, OSError, ArrowException, shapely.errors.ShapelyError) as error:
        raise SceneError(f"{path}: no list of scenes that can be read ({error}); embed the archive again") from error
    if lacking := [name for name in (*COLUMNS, "file", "windows", "trouble") if name not in frame]:
        raise SceneError(f"{path}: no list of an embedded archive, it lacks the columns {', '.join(lacking)}")
    for name in frame["file"]:
        if not isinstance(name, str) or name != os.path.basename(name) or not name.endswith(".parquet"):
            raise SceneError(f"{path}: {name!r} is no file of this folder; embed the archive again")
    good = (frame["trouble"] == "").to_numpy()
    for name in frame["file"][good]:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: missing, though {path} tells of it; embed the archive again")
    skipped = tuple(frame.loc[~good, ["scene", "trouble"]].itertuples(index=False, name=None))
    return SceneArchive(frame[good].reset_index(drop=True), str(folder), skipped)


def search_archive(
    archive: SceneArchive | Path | str,
    query: Query,
    encoder: DualEncoder | str | Path | None = None,
    *,
    k: int = 10,
    bbox: Sequence[float] | None = None,
    geometry: object = None,
    **filters: object,
) -> geopandas.GeoDataFrame:
    """The windows of all scenes that are most like a query, best first; within a scene none twice, as ``find_peaks`` has it.

    Args:
        archive: what ``embed_archive`` or ``load_archive`` gave, or its folder.
        query: a text, a picture (a Path, a PIL image, an array), a vector or the row of a hit in one of the scenes, as
            ``search_scene`` takes them; a raster is read as the first scene that is searched was.
        encoder: the one that made the embeddings, loaded or by name; None: by the name that they carry.
        k: how many windows at most.
        bbox, geometry: only windows that share more than an edge with it, in degrees.
        filters: as ``SceneArchive.filter`` takes them.

    Returns:
        Columns rank (from 1), score (cosine), scene, path, date, left, top, width, height (pixels of the scene), level, valid,
        longitude, latitude (of the centre) and geometry (EPSG:4326; the last three unknown where the scene has no place).

    Raises:
        ValueError: an unknown filter, a blank text, another encoder, k below 1, or embeddings of different encoders.
    """
    if k < 1:
        raise ValueError(f"k = {k}: expected at least 1")
    best = None
    for row, peaks in _search(archive, query, encoder, k, bbox, geometry, filters):
        shapes = np.full(len(peaks), None)
        if peaks.crs is not None:
            shapes = footprints(peaks.geometry.to_numpy(), peaks.crs)
        own = {"longitude": math.nan, "latitude": math.nan} | dict(add_centres(peaks).drop(columns="rank"))
        own = pd.DataFrame(own | {"scene": row.scene, "path": row.path, "date": row.date, "geometry": shapes})
        best = own if best is None else pd.concat([best, own], ignore_index=True)
        order = ["score", "scene", "level", "top", "left"]
        best = best.sort_values(order, ascending=[False, True, True, True, True], kind="stable").head(k)
    columns = ["rank", "score", "scene", "path", "date", "left", "top", "width", "height", "level", "valid"]
    columns += ["longitude", "latitude"]
    best = pd.DataFrame(columns=[*columns[1:], "geometry"]) if best is None else best.reset_index(drop=True)
    best["date"] = _dates(best["date"])
    best.insert(0, "rank", range(1, len(best) + 1))
    return geopandas.GeoDataFrame(best[columns], geometry=best["geometry"].to_numpy(), crs=LONGITUDE_LATITUDE)


def rank_scenes(
    archive: SceneArchive | Path | str,
    query: Query,
    encoder: DualEncoder | str | Path | None = None,
    *,
    windows: int = 1,
    bbox: Sequence[float] | None = None,
    geometry: object = None,
    **filters: object,
) -> geopandas.GeoDataFrame:
    """The scenes that are most like a query, best first.

    Args:
        windows: a scene's score is the mean of so many of its best windows, which do not overlap much; 1: of the best.
        archive, query, encoder, bbox, geometry, filters: as ``search_archive`` takes them.

    Returns:
        Columns rank (from 1), score, then those of ``SceneArchive.scenes``. Scenes without a window in the area are not
        among them.

    Raises:
        ValueError: as ``search_archive``, or windows below 1.
    """
    if windows < 1:
        raise ValueError(f"windows = {windows}: expected at least 1")
    archive = archive if isinstance(archive, SceneArchive) else load_archive(archive)
    found = _search(archive, query, encoder, windows, bbox, geometry, filters)
    scores = {row.scene: float(peaks["score"].mean()) for row, peaks in found}
    frame = archive.scenes[archive.scenes["scene"].isin(scores)]
    frame = frame.assign(score=frame["scene"].map(scores).astype(float))
    frame = frame.sort_values(["score", "scene"], ascending=[False, True], ignore_index=True)
    frame.insert(0, "score", frame.pop("score"))
    frame.insert(0, "rank", range(1, len(frame) + 1))
    return frame


def _search(
    archive: SceneArchive | Path | str,
    query: Query,
    encoder: DualEncoder | str | Path | None,
    k: int,
    bbox: Sequence[float] | None,
    geometry: object,
    filters: Mapping[str, object],
) -> Iterator[tuple[object, geopandas.GeoDataFrame]]:
    """(row of the archive's scenes, its best windows) of each scene that has some, one scene in memory at a time."""
    archive = archive if isinstance(archive, SceneArchive) else load_archive(archive)
    if "file" not in archive.scenes:
        raise SceneError(
            f"{archive.place}: this archive is not embedded; embed_archive does that, load_archive reads it"
        )
    if isinstance(query, Window):
        raise ValueError(
            "query: a Window belongs to one scene; give its vector, a hit with the scene's name, or a picture"
        )
    area = area_of(bbox, geometry)
    chosen = archive.filter(bbox, geometry=geometry, **filters).scenes
    vector, made_by = _find_hit(archive, query) if is_hit(query) else (None, None)
    for row in chosen.itertuples(index=False):
        place = Path(archive.place) / row.file
        embeddings = load_scene_embeddings(place)
        if vector is None:
            vector, made_by = encode_queries(embeddings, [query], encoder)[0], embeddings.meta["encoder_fingerprint"]
        elif embeddings.meta["encoder_fingerprint"] != made_by:
            raise SceneError(f"{place}: made by another encoder than the scenes before it; embed the archive again")
        embeddings = _inside(embeddings, area)
        if len(embeddings):
            side = max(embeddings.meta["scene"][name] for name in ("width", "height"))
            # One cell: only the scores of the windows are wanted.
            peaks = find_peaks(search_scene(embeddings, vector, cell=side), k)
            if len(peaks):  # none of them, where all windows are mostly nodata
                yield row, peaks


def _find_hit(archive: SceneArchive, hit: Mapping[str, object]) -> tuple[np.ndarray, str]:
    """(the vector of a hit's window, the fingerprint of the encoder that made it)."""
    if "scene" not in hit:
        raise ValueError("query: a hit of one scene's search does not tell its scene; give one of an archive's")
    rows = archive.scenes[archive.scenes["scene"] == hit["scene"]]
    if rows.empty:
        raise SceneError(
            f"{archive.place}: unknown scene {hit['scene']!r}{closest_name(str(hit['scene']), archive.scenes['scene'])}"
        )
    embeddings = load_scene_embeddings(Path(archive.place) / rows["file"].iat[0])
    return encode_queries(embeddings, [hit], None)[0], embeddings.meta["encoder_fingerprint"]


def _inside(embeddings: SceneEmbeddings, area: shapely.Geometry | None) -> SceneEmbeddings:
    """The windows that share more than an edge with an area; all where the raster has no CRS, for its item has a place."""
    table = embeddings.table
    if area is None or table.crs is None:
        return embeddings
    keep = meets(footprints(table.geometry.to_numpy(), table.crs), area)
    return replace(embeddings, table=table[keep].reset_index(drop=True), vectors=embeddings.vectors[keep])


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
        return _dates(pd.Series(values, dtype=object))
    large = any(isinstance(value, int) and abs(value) >= 2**63 for value in values)
    if large or len(kinds) > 1 and kinds != {int, float}:
        values = [None if value is None else str(value) for value in values]
    return pd.Series(values, dtype=None if any(value is not None for value in values) else object)


def _dates(values: pd.Series) -> pd.Series:
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


def _file_name(scene: str) -> str:
    """Of a scene's embeddings; different for different scenes, also where a file system knows no capitals."""
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', scene).strip('.')[:80]}-{fingerprint_values(scene)[:8]}.parquet"


def _scenes(count: int) -> str:
    return "1 scene" if count == 1 else f"{count} scenes"
