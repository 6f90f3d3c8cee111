"""An archive of many scenes searched as one: windows in all of them, or the scenes; one scene's embeddings in memory at a time."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import shapely

from rsvlm.data.rasters.files import SceneError
from rsvlm.data.rasters.windows import Window
from rsvlm.models.encoders import DualEncoder
from rsvlm.models.queries import Without
from rsvlm.scenes.archive import SceneArchive, to_dates
from rsvlm.scenes.archive_embedding import load_archive
from rsvlm.scenes.footprints import LONGITUDE_LATITUDE, area_of, footprints, meets
from rsvlm.scenes.places import add_centres
from rsvlm.scenes.queries import Query, encode_queries, is_hit
from rsvlm.scenes.search import find_peaks, search_scene
from rsvlm.scenes.window_files import SceneEmbeddings, load_scene_embeddings
from rsvlm.settings import closest_name

MORE = 8  # times as many windows as are asked for, and as before, are taken from a tier: many overlap


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

    Where the archive was embedded into a tier, that proposes windows of the scenes and places asked for, and only their rows are
    read; their scores are exact.

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
    for row, peaks in _search(archive, query, encoder, k, bbox, geometry, filters, True):
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
    best["date"] = to_dates(best["date"])
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
    """The scenes that are most like a query, best first; all are looked at, also where the archive has a tier.

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
    found = _search(archive, query, encoder, windows, bbox, geometry, filters, False)
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
    by_tier: bool,
) -> Iterator[tuple[object, geopandas.GeoDataFrame]]:
    """(row of the archive's scenes, its best windows) of each scene that has some, one scene in memory at a time.

    Args:
        by_tier: only of scenes with windows among the best k of all, which the archive's tier finds where there is one.
    """
    archive = archive if isinstance(archive, SceneArchive) else load_archive(archive)
    if "file" not in archive.scenes:
        raise SceneError(
            f"{archive.place}: this archive is not embedded; embed_archive does that, load_archive reads it"
        )
    parts = [query.wanted, query.unwanted] if isinstance(query, Without) else [query]
    if any(isinstance(part, Window) for part in parts):
        raise ValueError(
            "query: a Window belongs to one scene; give its vector, a hit with the scene's name, or a picture"
        )
    area = area_of(bbox, geometry)
    chosen = archive.filter(bbox, geometry=geometry, **filters).scenes
    hits = {place: _find_hit(archive, part) for place, part in enumerate(parts) if is_hit(part)}
    vector, made_by = hits[0] if is_hit(query) else (None, None)
    if vector is None and len(chosen):
        first = load_scene_embeddings(Path(archive.place) / chosen["file"].iloc[0], rows=[])
        made_by = first.meta["encoder_fingerprint"]
        for place, (own, by) in hits.items():
            if by != made_by:
                raise SceneError(f"{first.file}: made by another encoder than the hit's scene; embed the archive again")
            parts[place] = own
        vector = encode_queries(first, [Without(*parts) if len(parts) > 1 else query], encoder)[0]
    if archive.windows is None or not by_tier:
        rows: Mapping[str, list[int] | None] = dict.fromkeys(chosen["file"])
        yield from _peaks(archive, chosen, rows, vector, made_by, k, area)
        return
    wanted, made = MORE * k, []
    while len(chosen):
        rows = archive.windows.find(vector, wanted, chosen["file"], area)
        made = list(_peaks(archive, chosen, rows, vector, made_by, k, area))
        if sum(len(peaks) for _, peaks in made) >= k or sum(map(len, rows.values())) < wanted:
            break  # what was not proposed scores lower than k peaks, or there is no more
        wanted *= MORE
    yield from made


def _peaks(
    archive: SceneArchive,
    chosen: geopandas.GeoDataFrame,
    rows: Mapping[str, list[int] | None],
    vector: np.ndarray,
    made_by: str,
    k: int,
    area: shapely.Geometry | None,
) -> Iterator[tuple[object, geopandas.GeoDataFrame]]:
    """As ``_search``: of the files in ``rows``, among those rows of theirs; None: among all."""
    for row in chosen[chosen["file"].isin(rows)].itertuples(index=False):
        place = Path(archive.place) / row.file
        embeddings = load_scene_embeddings(place, rows[row.file])
        if embeddings.meta["encoder_fingerprint"] != made_by:
            raise SceneError(f"{place}: made by another encoder than the scenes before it; embed the archive again")
        if rows[row.file] is not None:
            archive.windows.check(row.file, embeddings.meta["key"])
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
