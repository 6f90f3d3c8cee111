"""The panel beside a map of scenes: what its page asks, and what is done for it.

It is a widget in the manner of ``rsvlm.viewing.widgets``; ``rsvlm.viewing.scene_map`` puts it beside its map.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import ipyleaflet
import numpy as np
import traitlets
from ipywidgets import Box

from rsvlm.data.rasters.scene import Scene
from rsvlm.data.rasters.windows import Window
from rsvlm.scenes.archive import SceneArchive
from rsvlm.scenes.archive_search import rank_scenes, search_archive
from rsvlm.scenes.globe import open_world
from rsvlm.scenes.places import write_places
from rsvlm.scenes.search import Surface, find_peaks, outline, search_scene, write_surface
from rsvlm.scenes.window_files import SceneEmbeddings
from rsvlm.viewing.page import read_template
from rsvlm.viewing.scene_frames import DEGREES, Frame, Plane, choose_frame
from rsvlm.viewing.scene_layers import OPACITY, SceneLayers
from rsvlm.viewing.scene_models import SceneModels, ScenePart
from rsvlm.viewing.scene_pictures import (
    describe_scene,
    ground_text,
    hit_entries,
    legend_colours,
    place_text,
    window_picture,
)
from rsvlm.viewing.widgets import AnsweringWidget

if TYPE_CHECKING:
    import geopandas

LARGE = 512  # pixels, of a chosen window's picture
BEYOND, ACROSS = 3, 4  # a box of more windows' sides is captioned by windows, so many along its longer side
TOLD_OF = 5  # scenes that an archive leaves out


class ScenePanel(AnsweringWidget):
    """What stands beside the map, and what it does; ``SceneMap`` puts the two together."""

    _esm = read_template("dom.js", "kernel.js", "scene_map.js")
    sheet = traitlets.Unicode(read_template("page.css", "search.css", "scene.css", "scene_map.css", "widget.css")).tag(
        sync=True
    )

    def __init__(self, place: Box, models: SceneModels, options: dict) -> None:
        self.place, self.models, self.options = place, models, options
        self.frame: Frame | None = None
        self.layers: SceneLayers | None = None
        self._shown: SceneLayers | None = None  # those in the place, which may be of an earlier frame
        self.archive: SceneArchive | None = None
        self.chosen: SceneArchive | None = None  # the scenes of the archive that pass the filters
        self.searched: dict | None = None  # what the last search of the archive found
        self.given: SceneEmbeddings | None = None
        self.surface: Surface | None = None
        self.hits: geopandas.GeoDataFrame | None = None
        self.box: Window | None = None  # drawn, or what the map showed
        setting = {"captions": models.has_captioner, "colours": legend_colours(), "opacity": OPACITY}
        setting |= {"examples": list(options["examples"]), "scene": None, "archive": None, "trouble": ""}
        super().__init__(setting=setting)

    @property
    def scene(self) -> Scene | None:
        """The one on the map; None where that shows an archive."""
        return self.frame.scene if self.frame and self.setting["scene"] else None

    @property
    def map(self) -> ipyleaflet.Map | None:
        """The map as it is now."""
        return self.layers and self.layers.map

    def show_scene(self, scene: Scene, embeddings: SceneEmbeddings | None = None) -> None:
        """Put a scene on the map; what was found in another one goes."""
        self._take(choose_frame(scene))
        self.given = embeddings
        if embeddings is not None:
            self.options["sizes"] = tuple(embeddings.meta["sizes"])
        self.setting = self.setting | {"scene": describe_scene(scene, own_pixels=self.frame.crs is None), "trouble": ""}
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
        self.layers.draw_footprints(self.chosen.scenes)

    def _take(self, frame: Frame) -> None:
        if self.frame is not None:
            self.frame.scene.close()
        self.frame, self.layers = frame, None
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
            (south, west), (north, east) = self.layers.bounds()
            wanted["bbox"] = max(-180, west), max(-90, south), min(180, east), min(90, north)
        self.chosen = self.archive.filter(**wanted)
        self.layers.draw_footprints(self.chosen.scenes)
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
            self.layers.draw_pins(self.searched["hits"])
        return {"found": self.searched}

    def answer_like(self, window: dict) -> dict:
        """The same of what is like a window of the scene."""
        window = self._window(window)
        return self._search(self._vector(window), f"like {place_text(self.scene, window)}")

    def answer_window(self, window: dict) -> dict:
        """``{"window", "picture", "place", "ground", "score"}`` of a window, which is marked on the map."""
        window = self._window(window)
        self.layers.choose(window)
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
        self.layers.choose_all([self._window(window) for window in windows])
        return {}

    def answer_go(self, window: dict) -> dict:
        """Nothing, once the map shows a window."""
        self.layers.go_to(self._window(window))
        return {}

    def answer_view(self) -> dict:
        """The box of what the map shows, in place of a drawn one."""
        window = self.layers.window()
        if window is None:
            raise ValueError("The map shows nothing of the scene: move it back, or press “Whole scene”.")
        return self._show_box(window)

    def answer_whole(self) -> dict:
        """Nothing, once the map shows the whole scene."""
        self.layers.go_home()
        return {}

    def answer_clear_box(self) -> dict:
        """Nothing, once the drawn box is gone."""
        self.box = None
        self.layers.draw_box(None)
        return {}

    def answer_opacity(self, value: float) -> dict:
        """Nothing, once the surface has this opacity, per cent."""
        self.layers.surface.opacity = min(100.0, max(0.0, float(value))) / 100
        return {}

    def answer_outline(self, threshold: float) -> dict:
        """``{"places", "words"}``: how many places exceed a similarity; they are drawn on the map."""
        found = outline(self._searched(), float(threshold))
        self.layers.draw_outline(found.geometry)
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
        low, high = self.layers.draw_surface(self.surface)
        entries = hit_entries(self.scene, self.hits)
        self.layers.draw_pins(entries)
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
        self.layers.draw_pins(hits)
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

    # The map

    def _draw_map(self, home: Plane) -> None:
        self.layers = SceneLayers(
            self.frame, home, self.scene, push=self.push, on_box=self._take_box, on_place=self._take_place
        )
        before, self._shown = self._shown, self.layers
        self.place.children = (self.layers.map,)
        if before is not None:
            before.close()

    def _around(self) -> Plane:
        """Where the archive's scenes lie, in degrees; the whole Earth where none of them has a place."""
        bounds = self.archive.scenes.geometry.total_bounds
        if not np.isfinite(bounds).all():
            return self.frame.plane
        west, south, east, north = bounds.tolist()
        edge = max(0.02, 0.15 * max(east - west, north - south))
        return Plane(max(-180, west - edge), max(-90, south - edge), min(180, east + edge), min(90, north + edge))

    def _take_box(self, window: Window | None) -> None:
        """A drawn box is offered in the panel."""
        if window is None:
            self.push({"trouble": "The box lies outside the scene."})
        else:
            self.push({"box": self._show_box(window)})

    def _take_place(self, column: float, row: float) -> None:
        """A click on the map chooses the window there: of those searched the most similar, else one around the place."""
        self.push({"window": self._window_at(column, row)._asdict()})

    def _show_box(self, window: Window) -> dict:
        self.box = window
        self.layers.draw_box(window)
        return {"window": window._asdict(), "ground": ground_text(self.scene, window)}

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


def _file_name(text: str) -> str:
    """A text as a part of a file's name: letters and digits of any script, 60 at most."""
    return re.sub(r"[^\w.]+", "-", text, flags=re.UNICODE).strip("-.")[:60] or "scene"
