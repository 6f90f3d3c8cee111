"""A map of a scene, or of an archive of scenes, in a notebook: look, search by text or by a box, caption, export.

The map is ipyleaflet's, with pictures that the kernel reads as the map is moved: no tile server, no network. Beside it
stands a panel in the manner of ``rsvlm.viewing.widgets``. Encoder and captioner are loaded, and a scene's windows embedded,
when they are first needed; embeddings are kept.
"""

import asyncio
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import ipyleaflet
import numpy as np
import rasterio
import shapely
import traitlets
from ipywidgets import Box, Layout
from PIL import Image
from rasterio import Affine

from rsvlm.data.rasters.files import SceneError
from rsvlm.data.rasters.scene import Picture, Scene, open_scene
from rsvlm.data.rasters.windows import Window
from rsvlm.data.table import rows_of
from rsvlm.files import cache_folder, fingerprint_values, whole_file
from rsvlm.kernels import similarity_topk
from rsvlm.models.encoders import DualEncoder
from rsvlm.models.features import encode_pictures
from rsvlm.models.inference import Captioner, caption, load_captioner
from rsvlm.models.loading import choose_device
from rsvlm.models.zoo import load_encoder
from rsvlm.progress import progress_told_to
from rsvlm.scenes.archive import SceneArchive, embed_archive, open_archive, rank_scenes, search_archive
from rsvlm.scenes.captioning import caption_scene
from rsvlm.scenes.embedding import SceneEmbeddings, embed_scene, load_scene_embeddings
from rsvlm.scenes.globe import make_globe
from rsvlm.scenes.search import Surface, find_peaks, outline, search_scene, write_places, write_surface
from rsvlm.viewing.page import ThumbnailCache, read_template
from rsvlm.viewing.records import StudyFiles
from rsvlm.viewing.scene_frames import DEGREES, Frame, Plane, choose_frame
from rsvlm.viewing.scene_pictures import (
    as_uri,
    fit,
    ground_text,
    hit_entries,
    legend_colours,
    place_text,
    surface_range,
    surface_uri,
    window_picture,
    windows_of,
)
from rsvlm.viewing.widgets import TOLD, AnsweringWidget

if TYPE_CHECKING:
    import geopandas

OPACITY = 50  # per cent, of the surface at first
MAP_HEIGHT, MAP_WIDTH = 560, 720  # screen pixels; the width is a guess until the map is on a screen
OVERVIEW, DETAIL = 1400, 2000  # longer side of the picture of the whole scene, and of the part that is seen, pixels
REST = 0.15  # seconds that a moved map must rest before it is read anew
AFTER_DRAWING = 0.7  # seconds in which a click is no wish
LARGE = 512  # pixels, of a chosen window's picture
BEYOND, ACROSS = 3, 4  # a box of more windows' sides is captioned by windows, so many along its longer side
TOLD_OF = 5  # scenes that an archive leaves out
NEIGHBOURS = 4  # nearest training images shown
NOTHING = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="  # a transparent pixel
EXAMPLES = ("snow and ice", "a harbour with many boats", "dense forest")
HIT = {"color": "#ffffff", "weight": 2, "opacity": 1.0, "fill_opacity": 0.0}
CHOSEN = {"color": "#ff5a4d", "weight": 4, "opacity": 1.0, "fill_opacity": 0.0}
FOOTPRINT = {"color": "#ffd23f", "weight": 2, "opacity": 1.0, "fillColor": "#ffd23f", "fillOpacity": 0.12}
OUTLINE = {"color": "#ff2bd6", "weight": 2, "opacity": 1.0, "fill_opacity": 0.08}
PIN = (
    '<b style="display:grid;place-items:center;width:26px;height:26px;border-radius:99px;background:#10171e;color:#fff;'
    'border:2px solid #fff;font:700 13px/1 system-ui,sans-serif;box-sizing:border-box">{}</b>'
)


class ScenePanel(AnsweringWidget):
    """What stands beside the map, and what it does; ``SceneMap`` puts the two together."""

    _esm = read_template("dom.js", "kernel.js", "scene_map.js")
    sheet = traitlets.Unicode(read_template("page.css", "search.css", "scene.css", "scene_map.css", "widget.css")).tag(
        sync=True
    )

    def __init__(self, place: Box, models: "Models", options: dict) -> None:
        self.place, self.models, self.options = place, models, options
        self.frame: Frame | None = None
        self.map: ipyleaflet.Map | None = None
        self.archive: SceneArchive | None = None
        self.chosen: SceneArchive | None = None  # the scenes of the archive that pass the filters
        self.searched: dict | None = None  # what the last search of the archive found
        self.given: SceneEmbeddings | None = None
        self.surface: Surface | None = None
        self.hits: geopandas.GeoDataFrame | None = None
        self.box: Window | None = None  # drawn, or what the map showed
        self._drew = -AFTER_DRAWING  # when the last box was drawn: its end is a click, too
        self._timer: asyncio.TimerHandle | None = None
        setting = {"captions": models.has_captioner, "colours": legend_colours(), "opacity": OPACITY}
        setting |= {"examples": list(options["examples"]), "scene": None, "archive": None, "trouble": ""}
        super().__init__(setting=setting)

    @property
    def scene(self) -> Scene | None:
        """The one on the map; None where that shows an archive."""
        return self.frame.scene if self.frame and self.setting["scene"] else None

    def show_scene(self, scene: Scene, embeddings: SceneEmbeddings | None = None) -> None:
        """Put a scene on the map; what was found in another one goes."""
        self._take(choose_frame(scene))
        self.given = embeddings
        if embeddings is not None:
            self.options["sizes"] = tuple(embeddings.meta["sizes"])
        self.setting = self.setting | {"scene": self._describe(scene), "trouble": ""}
        self._draw_map(self.frame.plane)

    def show_archive(self, archive: SceneArchive | None = None) -> None:
        """Put the footprints of an archive's scenes on the map; None: of the one that was shown before."""
        if archive is not None:
            self.archive = self.chosen = archive
        self._take(Frame(open_world(), DEGREES))
        self.given = None
        named = {"name": Path(self.archive.place).name or self.archive.place, "notes": list(self.archive.notes)}
        skipped = [f"left out: {name} ({why})" for name, why in self.archive.skipped]
        named["notes"] += skipped[:TOLD_OF] + [f"{len(skipped) - TOLD_OF} more left out"] * (len(skipped) > TOLD_OF)
        self.setting = self.setting | {"scene": None, "archive": named, "trouble": ""}
        self._draw_map(self._around())
        self._draw_footprints()

    def _take(self, frame: Frame) -> None:
        if self.frame is not None:
            self.frame.scene.close()
        self.frame, self.map = frame, None
        self.surface = self.hits = self.box = None

    def show_trouble(self, text: str) -> None:
        """Say in the panel why there is no scene."""
        self.setting = self.setting | {"trouble": text}

    # What the page asks

    def answer_search(self, text: str) -> dict:
        """``{"query", "hits", "words"}`` of a text, and of a scene ``{"low", "high", "threshold"}``, of an archive ``scenes``."""
        if not text.strip():
            raise ValueError("Describe what you look for.")
        if self.scene is None and self.archive is not None:
            return self._search_archive(text.strip())
        return self._search(text.strip(), text.strip())

    def answer_scenes(self, start: str, end: str, cloud: float | None, view: bool) -> dict:
        """``{"scenes", "words"}``: the scenes of the archive that pass the filters; their footprints are on the map."""
        wanted = {"start": start or None, "end": end or None, "cloud_cover_below": cloud}
        if view:
            (south, west), (north, east) = self._bounds()
            wanted["bbox"] = max(-180, west), max(-90, south), min(180, east), min(90, north)
        self.chosen = self.archive.filter(**wanted)
        self._draw_footprints()
        return self._list_scenes(self.chosen.scenes)

    def answer_open(self, scene: str) -> dict:
        """``{"found"}``: a scene of the archive is on the map; what was searched in the archive is searched in it."""
        opened = self.archive.open(scene, **self.options["reading"])
        try:
            embeddings = self.models.kept(scene)
            self.show_scene(opened, embeddings)
        except Exception:
            opened.close()
            raise
        query = self.searched and self.searched["query"]
        return {"found": self._search(query, query) if query and embeddings is not None else None}

    def answer_back(self) -> dict:
        """``{"found"}``: the archive is on the map again, with what was found in it."""
        self.show_archive()
        if self.searched:
            self._draw_pins(self.searched["hits"])
        return {"found": self.searched}

    def answer_like(self, window: dict) -> dict:
        """The same of what is like a window of the scene."""
        window = self._window(window)
        return self._search(self._vector(window), f"like {place_text(self.scene, window)}")

    def answer_window(self, window: dict) -> dict:
        """``{"window", "picture", "place", "ground", "score"}`` of a window, which is marked on the map."""
        window = self._window(window)
        self._chosen.locations = self.frame.corners(window)
        shown = {"window": window._asdict(), "place": place_text(self.scene, window), "score": self._score(window)}
        shown |= {"ground": ground_text(self.scene, window)}
        return shown | {"picture": window_picture(self.scene, window, LARGE, 90_000)}

    def answer_caption(self, window: dict) -> dict:
        """``{"text", "warning", "parts", "near"}``: what the captioner says of a window, and the training images nearest to it.

        A large box is captioned by its windows first: ``parts`` are its sentences with the windows that they tell of.
        """
        window = self._window(window)
        self.tell({"status": "loading the captioner …"})
        vector = self.models.captioner and self._vector(window)
        self.tell({"status": "captioning …"})
        near = self.models.nearest(vector, self.options["training"])
        if max(window.width, window.height) > BEYOND * max(self.options["sizes"]):
            size = max(max(self.options["sizes"]), -(-max(window.width, window.height) // ACROSS))
            self.tell({"status": f"captioning windows of {size} pixels …"})
            return self.models.caption_parts(ScenePart(self.scene, window), size) | {"near": near}
        return self.models.caption(self.scene, window) | {"near": near}

    def answer_mark(self, windows: Sequence[dict]) -> dict:
        """Nothing, once several windows are marked on the map."""
        self._chosen.locations = [[self.frame.corners(self._window(window))] for window in windows]
        return {}

    def answer_go(self, window: dict) -> dict:
        """Nothing, once the map shows a window."""
        window = self._window(window)
        corners = self.frame.plane_at(np.array(self.frame.corners(window)))
        plane = Plane(*corners.min(axis=0), *corners.max(axis=0))
        width, height = self._size()
        zoom = self.frame.zoom_for(plane, width, height) - 1.75
        with self.map.hold_sync():
            self.map.center = self.frame.centre(window)
            self.map.zoom = min(max(zoom, self.map.min_zoom), self.map.max_zoom)
        return {}

    def answer_view(self) -> dict:
        """The box of what the map shows, in place of a drawn one."""
        (south, west), (north, east) = self._bounds()
        window = self.frame.window_of(np.array([[south, west], [south, east], [north, east], [north, west]]))
        if window is None:
            raise ValueError("The map shows nothing of the scene: move it back, or press “Whole scene”.")
        return self._show_box(window)

    def answer_whole(self) -> dict:
        """Nothing, once the map shows the whole scene."""
        with self.map.hold_sync():
            self.map.center, self.map.zoom = self._home(self._around() if self.scene is None else self.frame.plane)
        return {}

    def answer_clear_box(self) -> dict:
        """Nothing, once the drawn box is gone."""
        self.box, self._boxed.locations = None, []
        return {}

    def answer_opacity(self, value: float) -> dict:
        """Nothing, once the surface has this opacity, per cent."""
        self._surface_layer.opacity = min(100.0, max(0.0, float(value))) / 100
        return {}

    def answer_outline(self, threshold: float) -> dict:
        """``{"places", "words"}``: how many places exceed a similarity; they are drawn on the map."""
        found = outline(self._searched(), float(threshold))
        lines = []
        for shape in found.geometry:
            for part in getattr(shape, "geoms", [shape]):
                rings = [part.exterior, *part.interiors]
                lines.append([self._on_map(np.asarray(ring.coords)[:, :2]) for ring in rings])
        self._replace("_outline", ipyleaflet.Polygon(locations=lines, **OUTLINE) if lines else None)
        share = float(np.nanmean(self.surface.values >= threshold)) if len(found) else 0.0
        words = f"{len(found)} {'place' if len(found) == 1 else 'places'}, {100 * share:.1f} % of what was searched"
        return {"places": len(found), "words": words}

    def answer_export(self, what: str, threshold: float | None = None) -> dict:
        """``{"path"}`` of the file written: "hits", "outline" (both GeoJSON) or "surface" (GeoTIFF)."""
        surface = self._searched()
        name = f"{_file_name(self.scene.name)}-{_file_name(surface.query)}-{what}"
        path = self.options["out"] / f"{name}{'.tif' if what == 'surface' else '.geojson'}"
        if what == "surface":
            write_surface(surface, path)
        elif what == "hits":
            write_places(self.hits.assign(query=surface.query), path)
        elif what == "outline":
            found = outline(surface, float(threshold))
            if not len(found):
                raise ValueError(f"No place is as similar as {threshold:.3f}: choose less, then export.")
            write_places(found.assign(query=surface.query, threshold=float(threshold)), path)
        else:
            raise ValueError(f"{what!r} is none of hits, outline, surface")
        return {"path": str(path)}

    # What it does

    def _search(self, query: str | np.ndarray, name: str) -> dict:
        self._need_scene()
        embeddings = self.embeddings
        surface = search_scene(embeddings, query, self.models.encoder)
        self.surface = surface if isinstance(query, str) else replace(surface, query=name)
        self.hits = find_peaks(self.surface, self.options["results"])
        low, high = self._draw_surface()
        entries = hit_entries(self.scene, self.hits)
        self._draw_pins(entries)
        scores = self.surface.scores
        threshold = float(np.percentile(self.surface.values[np.isfinite(self.surface.values)], 98))
        return {
            "query": name,
            "hits": entries,
            "low": round(low, 4),
            "high": round(high, 4),
            "threshold": round(threshold, 3),
            "words": f"{len(scores)} windows searched; similarities from {scores.min():.3f} to {scores.max():.3f}",
        }

    def _search_archive(self, query: str) -> dict:
        """What is found in the chosen scenes of the archive: windows, and the scenes ranked by their best one."""
        if not len(self.chosen):
            raise ValueError("No scene passes the filters: choose other ones.")
        self.tell({"status": "loading the encoder …"})
        self.models.embed_archive(self.chosen, self.options["reading"], self._tell_progress, self._tell_scene)
        self.tell({"status": "searching …", "total": 0})
        embedded = self.models.embedded.filter(scene=self.chosen.scenes["scene"].tolist())
        found = search_archive(embedded, query, self.models.encoder, k=self.options["results"])
        ranked = rank_scenes(embedded, query, self.models.encoder)
        hits = []
        for name, own in found.groupby("scene", sort=False):
            with self.archive.open(name, **self.options["reading"]) as scene:
                entries = hit_entries(scene, own)
            for entry, rank, shape in zip(entries, own["rank"], own.geometry, strict=True):
                at = None if shape is None else [shape.centroid.y, shape.centroid.x]
                hits.append(entry | {"rank": int(rank), "scene": name, "at": at})
        hits.sort(key=lambda entry: entry["rank"])
        self._draw_pins(hits)
        words = f"{int(embedded.scenes['windows'].sum())} windows of {len(embedded)} scenes searched"
        self.searched = {"query": query, "hits": hits, "words": words, "scenes": self._list_scenes(ranked)}
        return self.searched

    def _list_scenes(self, frame: "geopandas.GeoDataFrame") -> dict:
        listed = []
        for row in frame.itertuples():
            cloud = None if np.isnan(float(row.cloud_cover or np.nan)) else float(row.cloud_cover)
            date = "" if row.date is None or row.date != row.date else row.date.date().isoformat()
            score = round(float(row.score), 4) if hasattr(row, "score") else None
            listed.append({"name": row.scene, "date": date, "cloud": cloud, "score": score})
        notes = "; ".join(self.chosen.notes[len(self.archive.notes) :])
        words = f"{len(frame)} of {len(self.archive)} scenes" + (f"; {notes}" if notes else "")
        return {"scenes": listed, "words": words}

    @property
    def embeddings(self) -> SceneEmbeddings:
        """Those of the scene's windows: given, kept from an earlier time, or made now."""
        if self.given is None:
            self.tell({"status": "loading the encoder …"})
            self.given = self.models.embed(self.scene, self._tell_progress)
        return self.given

    def _tell_progress(self, what: str, done: int, total: int | None) -> None:
        self.tell({"status": f"embedding the scene, once: {done} of {total} windows", "done": done, "total": total})

    def _tell_scene(self, words: str) -> None:
        self.tell({"status": words})

    def _vector(self, window: Window) -> np.ndarray:
        """(D,) of a window: its own where it was embedded, else made now."""
        row = self._row(window)
        return self.models.encode(self.scene, window) if row is None else self.given.vectors[row]

    def _row(self, window: Window) -> int | None:
        """The embedded window that is just this one."""
        if self.given is None:
            return None
        own = self.given.table[["left", "top", "width", "height"]].to_numpy()
        rows = np.flatnonzero((own == np.array(window)).all(axis=1))
        return int(rows[0]) if len(rows) else None

    def _score(self, window: Window) -> float | None:
        row = self._row(window) if self.surface is not None else None
        return None if row is None else round(float(self.surface.scores[row]), 4)

    def _window(self, given: Mapping) -> Window:
        self._need_scene()
        window = Window(*(int(given[key]) for key in Window._fields))
        left, top = max(0, window.left), max(0, window.top)
        right = min(self.scene.width, window.left + window.width)
        bottom = min(self.scene.height, window.top + window.height)
        if right <= left or bottom <= top:
            raise ValueError("This window lies outside the scene.")
        return Window(left, top, right - left, bottom - top)

    def _need_scene(self) -> None:
        if self.scene is None:
            raise ValueError("There is no scene on the map.")

    def _searched(self) -> Surface:
        if self.surface is None:
            raise ValueError("Search first: there is no surface yet.")
        return self.surface

    def _describe(self, scene: Scene) -> dict:
        metres, crs = scene.ground_size(), scene.crs
        facts = [f"{scene.width:,} × {scene.height:,} pixels"]
        if metres:
            facts.append(f"{metres:,.0f} m a pixel" if metres >= 10 else f"{metres:.2g} m a pixel")
        if crs is None:
            facts.append("no coordinate system: positions are pixels")
        else:
            code = crs.to_epsg()
            facts.append(f"EPSG:{code}" if code else "own coordinate system")
        shown = "red, green and blue are bands " + ", ".join(map(str, scene.bands))
        if len(set(scene.bands)) == 1:
            shown = f"band {scene.bands[0]} as grey"
        facts.append(shown)
        if scene.date is not None:
            facts.append(scene.date.date().isoformat())
        notes = list(getattr(scene, "notes", ()))
        if crs is not None and self.frame.crs is None:
            notes.append("it crosses the date line or a pole, so the map shows it in its own pixels")
        return {"name": scene.name, "facts": facts, "notes": notes}

    # The map

    def _draw_map(self, home: Plane) -> None:
        frame = self.frame
        center, zoom = self._home(home)
        deeper = 3 if self.scene else 9  # a scene's footprint is small beside the world
        floor, ceiling = float(np.floor(min(zoom, frame.full_zoom)) - 1), float(np.ceil(frame.full_zoom) + deeper)
        picture, plane = frame.picture(frame.plane, OVERVIEW)
        self._overview = ipyleaflet.ImageOverlay(url=as_webp(picture), bounds=frame.bounds(plane))
        self._detail = ipyleaflet.ImageOverlay(url=NOTHING, bounds=frame.bounds(plane))
        self._surface_layer = ipyleaflet.ImageOverlay(url=NOTHING, bounds=frame.bounds(plane), opacity=OPACITY / 100)
        self._boxed = ipyleaflet.Polygon(locations=[], color="#ffd23f", weight=3, fill_opacity=0.05)
        self._chosen = ipyleaflet.Polygon(locations=[], **CHOSEN)
        self._outline = self._pins = self._footprints = None
        self._overview_pixel = max(plane.east - plane.west, plane.north - plane.south) / max(picture.size)
        layers = (self._overview, self._detail, self._surface_layer, self._boxed, self._chosen)
        self._draw_control = ipyleaflet.DrawControl(
            polyline={}, polygon={}, circlemarker={}, circle={}, marker={}, edit=False, remove=False,
            rectangle={"shapeOptions": {"color": "#ffd23f", "weight": 3, "fillOpacity": 0.05}, "showArea": False},
        )  # fmt: skip
        projection = getattr(ipyleaflet.projections, (frame.crs or "Simple").replace(":", ""))
        made = ipyleaflet.Map(
            center=center, zoom=zoom, min_zoom=floor, max_zoom=ceiling, zoom_snap=0.25, crs=projection, layers=layers,
            scroll_wheel_zoom=True, attribution_control=False, layout=Layout(height=f"clamp(300px, 70vw, {MAP_HEIGHT}px)", width="100%"),
        )  # fmt: skip
        if self.scene is not None:
            made.add(self._draw_control)
        if frame.crs:
            made.add(ipyleaflet.ScaleControl(position="bottomleft"))
        self._draw_control.observe(self._drawn, "data")
        made.observe(self._moved, "bounds")
        made.on_interaction(self._touched)
        before = self.place.children
        self.map, self.place.children = made, (made,)
        for layer in (layer for old in before for layer in old.layers):
            if isinstance(layer, ipyleaflet.ImageOverlay):  # its picture would stay in memory
                layer.url = NOTHING

    def _around(self) -> Plane:
        """Where the archive's scenes lie, in degrees; the whole Earth where none of them has a place."""
        bounds = self.archive.scenes.geometry.total_bounds
        if not np.isfinite(bounds).all():
            return self.frame.plane
        west, south, east, north = bounds.tolist()
        edge = max(0.02, 0.15 * max(east - west, north - south))
        return Plane(max(-180, west - edge), max(-90, south - edge), min(180, east + edge), min(90, north + edge))

    def _home(self, plane: Plane) -> tuple[list[float], float]:
        middle = np.array([[(plane.west + plane.east) / 2, (plane.south + plane.north) / 2]])
        zoom = self.frame.zoom_for(plane, *self._size())
        return self.frame.latlng(middle)[0].tolist(), float(np.floor(4 * zoom) / 4)

    def _size(self) -> tuple[float, float]:
        """The map's size on the screen, pixels."""
        if self.map is not None and self.map.pixel_bounds:
            (left, top), (right, bottom) = self.map.pixel_bounds
            if 0 < right - left < 1e5 and 0 < bottom - top < 1e5:
                return right - left, bottom - top
        return MAP_WIDTH, MAP_HEIGHT

    def _bounds(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """South-west and north-east corner of what the map shows."""
        if self.map.bounds and self.map.north > self.map.south:
            return self.map.bounds
        return tuple(map(tuple, self.frame.bounds(self.frame.plane)))

    def _moved(self, _: object) -> None:
        """The map was moved: when it rests, what it shows is read anew."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # no kernel
            return self.read_detail()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_later(REST, self.read_detail)
        return None

    def read_detail(self) -> None:
        """Lay the part that the map shows over the overview, where that would be too coarse."""
        corners = self.frame.plane_at(np.array(self._bounds()))
        width, height = self._size()
        pixel = (corners[1, 0] - corners[0, 0]) / width  # of the screen
        if pixel >= self._overview_pixel:
            return self._set_detail(NOTHING, self.frame.bounds(self.frame.plane))
        try:
            found = self.frame.picture(Plane(*corners.min(axis=0), *corners.max(axis=0)), DETAIL)
        except TOLD as error:
            self.push({"trouble": str(error)})
            return None
        if found is not None:
            self._set_detail(as_webp(found[0]), self.frame.bounds(found[1]))
        return None

    def _set_detail(self, url: str, bounds: list) -> None:
        if url != self._detail.url:
            with self._detail.hold_sync():
                self._detail.url, self._detail.bounds = url, bounds

    def _draw_surface(self) -> tuple[float, float]:
        low, high = surface_range(self.surface.values)
        values, plane = self.frame.surface(self.surface.values, self.surface.cell)
        with self._surface_layer.hold_sync():
            self._surface_layer.url = surface_uri(values, low, high)
            self._surface_layer.bounds = self.frame.bounds(plane)
        self._replace("_outline", None)
        self._chosen.locations = []
        return low, high

    def _draw_pins(self, entries: Sequence[Mapping]) -> None:
        """Numbers where hits are, on a scene with their windows' edges."""
        layers = []
        for entry in entries:
            window = Window(*(entry[key] for key in Window._fields))
            if self.scene is not None:
                layers.append(ipyleaflet.Polygon(locations=self.frame.corners(window), **HIT))
            at = entry["at"] if self.scene is None else self.frame.centre(window)
            if at is None:
                continue  # its scene has no place on the map; it is in the list
            title = f"{entry['rank']}: {entry['place']}, similarity {entry['score']:.3f}"
            icon = ipyleaflet.DivIcon(html=PIN.format(int(entry["rank"])), icon_size=[26, 26], icon_anchor=[13, 13])
            pin = ipyleaflet.Marker(location=at, icon=icon, draggable=False, title=title, alt=title)
            what = {key: entry[key] for key in (*Window._fields, *(["scene"] if "scene" in entry else []))}
            pin.on_click(lambda what=what, **_: self.push({"hit" if "scene" in what else "window": what}))
            layers.append(pin)
        self._replace("_pins", ipyleaflet.LayerGroup(layers=tuple(layers)))

    def _draw_footprints(self) -> None:
        shown = self.chosen.scenes.loc[~self.chosen.scenes.geometry.isna(), ["scene", "geometry"]]
        layer = None
        if len(shown):
            data = json.loads(shown.to_json(drop_id=True))
            layer = ipyleaflet.GeoJSON(data=data, style=FOOTPRINT, hover_style=FOOTPRINT | {"fillOpacity": 0.35})
            layer.on_click(lambda feature=None, **_: feature and self.push({"open": feature["properties"]["scene"]}))
        self._replace("_footprints", layer)

    def _replace(self, name: str, layer: ipyleaflet.Layer | None) -> None:
        """Put a layer in the place of the one that is kept under a name."""
        old = getattr(self, name)
        if old is not None:
            self.map.remove(old)
        if layer is not None:
            self.map.add(layer)
        setattr(self, name, layer)

    def _on_map(self, coordinates: np.ndarray) -> list[list[float]]:
        """Coordinates (n, 2) of the scene's CRS, or pixels where it has none, as Leaflet takes them."""
        columns, rows = coordinates.T
        if self.scene.crs is not None:
            a, b, c, d, e, f = (~self.scene.transform)[:6]
            columns, rows = a * columns + b * rows + c, d * columns + e * rows + f
        return self.frame.latlng(self.frame.plane_of(columns, rows)).tolist()

    def _drawn(self, change: dict) -> None:
        """A box was drawn: it is offered in the panel, and drawn by us from here on."""
        if not change["new"]:
            return
        places = np.array(change["new"][-1]["geometry"]["coordinates"][0])[:, ::-1]
        self._draw_control.data, self._drew = [], time.monotonic()
        window = self.frame.window_of(places)
        if window is None:
            self.push({"trouble": "The box lies outside the scene."})
        else:
            self.push({"box": self._show_box(window)})

    def _show_box(self, window: Window) -> dict:
        self.box, self._boxed.locations = window, self.frame.corners(window)
        return {"window": window._asdict(), "ground": ground_text(self.scene, window)}

    def _touched(self, **event: object) -> None:
        """A click on the map chooses the window there: of those searched the most similar, else one around the place."""
        if event.get("type") != "click" or self.scene is None or time.monotonic() - self._drew < AFTER_DRAWING:
            return
        column, row = self.frame.pixels_of(*self.frame.plane_at(np.array([event["coordinates"]])).T)[0]
        if not (0 <= column < self.scene.width and 0 <= row < self.scene.height):
            return
        self.push({"window": self._window_at(column, row)._asdict()})

    def _window_at(self, column: float, row: float) -> Window:
        if self.given is not None:
            left, top, width, height = self.given.table[["left", "top", "width", "height"]].to_numpy().T
            there = np.flatnonzero((left <= column) & (column < left + width) & (top <= row) & (row < top + height))
            if len(there):
                away = np.hypot(left + width / 2 - column, top + height / 2 - row)
                order = away[there] if self.surface is None else -self.surface.scores[there]
                return self.given.window(int(there[np.argmin(order)]))
        side = self.options["sizes"][0]
        width, height = min(side, self.scene.width), min(side, self.scene.height)
        left = min(max(0, round(column - width / 2)), self.scene.width - width)
        return Window(left, min(max(0, round(row - height / 2)), self.scene.height - height), width, height)

    def push(self, what: dict) -> None:
        """Tell the page something that it did not ask for."""
        self.send({"push": what})


class ScenePart:
    """A window of a scene as a scene of its own, as far as captioning needs one."""

    def __init__(self, scene: Scene, window: Window) -> None:
        self.scene, self.window = scene, window
        self.path, self.name, self.crs = scene.path, scene.name, scene.crs
        self.width, self.height = window.width, window.height
        self.transform = scene.transform and scene.transform @ Affine.translation(window.left, window.top)

    def _whole(self, window: Window) -> Window:
        return Window(self.window.left + window.left, self.window.top + window.top, window.width, window.height)

    def read(self, window: Window | None = None, size: tuple[int, int] | None = None) -> Picture:
        """As ``Scene.read``."""
        return self.scene.read(self._whole(window or Window(0, 0, self.width, self.height)), size)

    def overview(self, side: int = 1024) -> Picture:
        """As ``Scene.overview``."""
        return self.read(size=fit(self.width, self.height, side))

    def polygon(self, window: Window) -> shapely.Polygon:
        """As ``Scene.polygon``, in its place in the whole scene."""
        return self.scene.polygon(self._whole(window))


class Models:
    """The models behind a map, loaded when they are first needed."""

    def __init__(
        self,
        encoder: DualEncoder | str | Path,
        captioner: Captioner | str | Path | None,
        *,
        sizes: Sequence[int],
        overlap: float,
        device: str,
    ) -> None:
        self._encoder, self._captioner, self.device = encoder, captioner, device
        self.how = {"sizes": tuple(sizes), "overlap": overlap}
        self.embedded: SceneArchive | None = None

    @property
    def has_captioner(self) -> bool:
        """Whether one was given."""
        return self._captioner is not None

    @cached_property
    def encoder(self) -> DualEncoder:
        """The dual encoder; the captioner's own where only that was given."""
        if isinstance(self._encoder, DualEncoder):
            return self._encoder.eval()
        return load_encoder(str(self._encoder), choose_device(self.device)).eval()

    @cached_property
    def captioner(self) -> Captioner:
        """The captioner, with the encoder that it was trained with."""
        if isinstance(self._captioner, Captioner):
            return self._captioner
        return load_captioner(self._captioner, self.encoder, device=self.device)

    def embed(self, scene: Scene, tell: Callable[[str, int, int | None], None] | None = None) -> SceneEmbeddings:
        """The embeddings of a scene's windows, kept in ``cache_folder()``; ``tell`` takes the place of a bar."""
        key = fingerprint_values(scene.fingerprint, self.encoder.fingerprint(), self.how)[:20]
        with progress_told_to(tell) if tell else nullcontext():
            path = cache_folder() / "scenes" / f"{key}.parquet"
            return embed_scene(self.encoder, scene, path, log=lambda _: None, **self.how)

    def embed_archive(
        self,
        archive: SceneArchive,
        reading: Mapping[str, object],
        tell: Callable[[str, int, int | None], None],
        log: Callable[[str], None],
    ) -> None:
        """Embed the scenes of an archive that are not embedded yet, into ``cache_folder()``; ``embedded`` has them."""
        names = set(archive.scenes["scene"])
        if self.embedded is not None and names <= set(self.embedded.scenes["scene"]):
            return
        key = fingerprint_values(str(Path(archive.place).absolute()), self.encoder.fingerprint(), self.how, reading)[
            :20
        ]
        with progress_told_to(tell):
            self.embedded = embed_archive(
                self.encoder,
                archive,
                cache_folder() / "scenes" / key,
                unreadable="keep",
                log=log,
                **reading,
                **self.how,
            )

    def kept(self, scene: str) -> SceneEmbeddings | None:
        """The embeddings of a scene of the archive that was searched last."""
        rows = self.embedded.scenes[self.embedded.scenes["scene"] == scene] if self.embedded is not None else ()
        return load_scene_embeddings(Path(self.embedded.place) / rows["file"].iat[0]) if len(rows) else None

    def encode(self, scene: Scene, window: Window) -> np.ndarray:
        """(D,) float32, of length 1, of a window of a scene."""
        return encode_pictures(self.encoder, [_look(scene, window)], ["window"], grid=0).image_embeddings[0]

    def nearest(self, vector: np.ndarray, pictures: Mapping[str, str]) -> list[dict]:
        """``{"id", "captions", "score", "picture"}`` of the training images nearest to a vector.

        Args:
            pictures: image id -> path; those without one are shown by their captions alone.
        """
        memory = self.captioner.memory
        scores, rows = similarity_topk(vector[None], memory.vectors, min(NEIGHBOURS, len(memory.vectors)))
        names = list(memory.captions)
        found = [(names[row], float(score)) for row, score in zip(rows[0].tolist(), scores[0].tolist(), strict=True)]
        near = []
        for name, score in found:
            picture = None
            try:
                if name in pictures:
                    picture = ThumbnailCache().make([pictures[name]])[pictures[name]]
            except (OSError, ValueError):  # shown without: its captions say enough
                pass
            captions = list(dict.fromkeys(memory.captions[name]))
            near.append({"id": name, "captions": captions, "score": round(score, 4), "picture": picture})
        return near

    def caption(self, scene: Scene, window: Window) -> dict:
        """``{"text", "warning"}``: what the captioner says of a window."""
        row = caption(self.captioner, [_look(scene, window)]).iloc[0]
        return {"text": row["caption"], "warning": self.captioner.warning(row["distance"]), "parts": []}

    def caption_parts(self, part: "ScenePart", size: int) -> dict:
        """The same of a large part of a scene, by windows of ``size`` pixels, with the sentences and their windows."""
        said = caption_scene(self.captioner, part, size=size)
        windows = [
            Window(part.window.left + own.left, part.window.top + own.top, own.width, own.height)._asdict()
            for own in windows_of(said.windows)
        ]
        sentences = zip(said.sentences["sentence"], said.sentences["windows"], strict=True)
        parts = [{"text": text, "windows": [windows[number] for number in numbers]} for text, numbers in sentences]
        return {"text": said.overview, "warning": said.warning, "parts": parts}


class SceneMap(Box):
    """A scene, or an archive of scenes, on a map with a panel beside it.

    Args:
        scene: an open Scene, or the path of a file that ``open_scene`` reads; a SceneArchive, a folder of scenes, or a
            STAC document on disk.
        encoder: loaded, or its folder or name; it searches.
        captioner: loaded, or its folder; None: windows have no captions.
        embeddings: of the scene's windows, or the file that ``embed_scene`` wrote; None: made on first need, and kept.
        out: folder of what is exported.
        training: image id -> path of the captioner's training images, whose pictures are shown beside a window.
        results: hits of a search.
        sizes, overlap: of the windows, as ``embed_scene`` takes them.
        bands, stretch: as ``open_scene`` takes them.
        examples: searches offered at first.

    A scene that cannot be opened is told of in the panel.

    Raises:
        ValueError: ``results`` is out of range.
    """

    def __init__(
        self,
        scene: Scene | SceneArchive | str | Path,
        encoder: DualEncoder | str | Path,
        captioner: Captioner | str | Path | None = None,
        embeddings: SceneEmbeddings | str | Path | None = None,
        *,
        out: str | Path = "scratch/scenes",
        training: Mapping[str, str] | None = None,
        results: int = 10,
        sizes: Sequence[int] = (256,),
        overlap: float = 0.5,
        bands: Sequence[int | str] | str | None = None,
        stretch: str | Sequence = "auto",
        examples: Sequence[str] = EXAMPLES,
        device: str = "cpu",
    ) -> None:
        if not 1 <= results <= 100:
            raise ValueError(f"results is {results}: give 1 to 100")
        reading = {"bands": bands, "stretch": stretch}
        options = {"out": Path(out), "training": training or {}, "results": results, "sizes": tuple(sizes)}
        options |= {"reading": reading, "examples": examples}
        models = Models(encoder, captioner, sizes=sizes, overlap=overlap, device=device)
        place = Box(layout=Layout(flex="3 1 26rem", min_width="min(100%, 18rem)", overflow="visible"))
        self.panel = ScenePanel(place, models, options)
        self.panel.layout = Layout(flex="2 1 21rem", min_width="min(100%, 18rem)")
        super().__init__(
            [place, self.panel],
            layout=Layout(flex_flow="row wrap", align_items="flex-start", width="100%", grid_gap="8px"),
        )
        self.add_class("rsvlm-scene-map")
        try:
            if isinstance(scene, str | Path) and _is_archive(Path(scene)):
                scene = open_archive(scene, missing="skip")
            if isinstance(scene, SceneArchive):
                self.panel.show_archive(scene)
            else:
                opened = scene if isinstance(scene, Scene) else open_scene(scene, **reading)
                if isinstance(embeddings, str | Path):
                    embeddings = load_scene_embeddings(embeddings)
                self.panel.show_scene(opened, embeddings)
        except TOLD as error:
            self.panel.show_trouble(str(error))

    def __repr__(self) -> str:
        """What a saved notebook shows in the widget's place."""
        return "SceneMap: run this cell and those above to see it; a saved notebook keeps no widget."

    @property
    def scene(self) -> Scene | None:
        """The scene on the map."""
        return self.panel.scene

    @property
    def map(self) -> ipyleaflet.Map | None:
        """The map as it is now; own layers and controls may be added."""
        return self.panel.map

    @property
    def surface(self) -> Surface | None:
        """Of the last search."""
        return self.panel.surface

    @property
    def hits(self) -> "geopandas.GeoDataFrame | None":
        """Of the last search, best first."""
        return self.panel.hits


def open_place(
    study: StudyFiles, place: str, *, bands: str = "", stretch: str | Sequence[float] = "auto"
) -> tuple[SceneArchive | None, Scene]:
    """The archive, where ``place`` is one, and the scene to begin with: the archive's first, or the file itself.

    Args:
        place: a file, a folder of scenes or a STAC document; empty: the study's globe, Blue Marble.
        bands: a preset's name, or numbers or names with commas: "4,3,2"; empty: what the file says.
        stretch: as ``open_scene`` takes it.

    Raises:
        FileNotFoundError, SceneError: as ``open_scene`` and ``open_archive``.
    """
    reading = {"bands": read_bands(bands), "stretch": stretch}
    if not place:
        globe = study.earth / "blue_marble.tif"  # the stage search_earth makes it
        return None, open_scene(
            globe if globe.is_file() else make_globe(cache_folder() / "scenes" / globe.name), **reading
        )
    if not _is_archive(Path(place)):
        return None, open_scene(place, **reading)
    archive = open_archive(place, missing="skip")
    if not len(archive):
        raise SceneError(
            f"{place}: none of its scenes can be used: " + "; ".join(f"{n} ({why})" for n, why in archive.skipped)
        )
    return archive, archive.open(archive.scenes["scene"].iat[0], **reading)


def training_pictures(study: StudyFiles) -> dict[str, str]:
    """image id -> path of a study's training images; nothing where it has no image table yet."""
    if not study.table.is_file():
        return {}
    rows = rows_of(study.read_table(), split="train")
    return dict(zip(rows["image_id"], rows["path"], strict=True))


def read_bands(text: str) -> list[int | str] | str | None:
    """Bands as ``open_scene`` takes them: "" none, "4,3,2" or "B04, B03, B02" a list, else a preset's name."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if len(parts) == 1 and not parts[0].isdigit():
        return parts[0]
    return [int(part) if part.isdigit() else part for part in parts] or None


def window_embeddings(
    study: StudyFiles, scene: Scene, encoder: DualEncoder, *, size: int, overlap: float
) -> SceneEmbeddings:
    """The embeddings of a scene's windows: those of the study's globe where they are meant, else made and kept."""
    made = study.earth / "windows.parquet"
    if made.is_file():
        found = load_scene_embeddings(made)
        own = found.meta["encoder_fingerprint"], found.meta["scene"]["fingerprint"], list(found.meta["sizes"])
        if own == (encoder.fingerprint(), scene.fingerprint, [size]):
            return found
    return Models(encoder, None, sizes=(size,), overlap=overlap, device="cpu").embed(scene)


def open_world() -> Scene:
    """The whole Earth, to lay footprints on: Blue Marble where it is installed, else a plain ground."""
    folder = cache_folder() / "scenes"
    try:
        return open_scene(make_globe(folder / "blue_marble.tif"), stretch="none")
    except FileNotFoundError:
        path = folder / "plain_earth.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as scratch, rasterio.open(
            scratch, "w", driver="GTiff", width=360, height=180, count=1, dtype="uint8", crs=DEGREES,
            transform=rasterio.transform.from_origin(-180, 90, 1, 1),
        ) as file:  # fmt: skip
            file.write(np.full((1, 180, 360), 110, np.uint8))
        return open_scene(path, stretch="none")


def _is_archive(path: Path) -> bool:
    return path.is_dir() or path.suffix.lower() in (".json", ".geojson")


def as_webp(image: Image.Image) -> str:
    """A picture with transparent parts, small: a WebP's data URI."""
    return as_uri(image, "WEBP", quality=82, method=2)


def _look(scene: Scene, window: Window, side: int = 1024) -> Image.Image:
    """A window's picture, at most ``side`` pixels."""
    return Image.fromarray(scene.read(window, fit(window.width, window.height, side)).pixels)


def _file_name(text: str) -> str:
    """A text as a part of a file's name: letters and digits of any script, 60 at most."""
    return re.sub(r"[^\w.]+", "-", text, flags=re.UNICODE).strip("-.")[:60] or "scene"
