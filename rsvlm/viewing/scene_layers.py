"""The map of a scene, or of an archive's footprints, and the layers that lie on it.

The map is ipyleaflet's, with pictures that the kernel reads as it is moved: no tile server, no network.
"""

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import ipyleaflet
import numpy as np
from ipywidgets import Layout
from PIL import Image

from rsvlm.data.rasters.scene import Scene
from rsvlm.data.rasters.windows import Window
from rsvlm.scenes.search import Surface
from rsvlm.viewing.scene_frames import Frame, Plane
from rsvlm.viewing.scene_pictures import as_uri, surface_range, surface_uri
from rsvlm.viewing.widgets import TOLD

if TYPE_CHECKING:
    import geopandas

OPACITY = 50  # per cent, of the surface at first
MAP_HEIGHT, MAP_WIDTH = 560, 720  # screen pixels; the width is a guess until the map is on a screen
OVERVIEW, DETAIL = 1400, 2000  # longer side of the picture of the whole scene, and of the part that is seen, pixels
REST = 0.15  # seconds that a moved map must rest before it is read anew
AFTER_DRAWING = 0.7  # seconds in which a click is no wish
NOTHING = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="  # a transparent pixel
HIT = {"color": "#ffffff", "weight": 2, "opacity": 1.0, "fill_opacity": 0.0}
CHOSEN = {"color": "#ff5a4d", "weight": 4, "opacity": 1.0, "fill_opacity": 0.0}
FOOTPRINT = {"color": "#ffd23f", "weight": 2, "opacity": 1.0, "fillColor": "#ffd23f", "fillOpacity": 0.12}
OUTLINE = {"color": "#ff2bd6", "weight": 2, "opacity": 1.0, "fill_opacity": 0.08}
PIN = (
    '<b style="display:grid;place-items:center;width:26px;height:26px;border-radius:99px;background:#10171e;color:#fff;'
    'border:2px solid #fff;font:700 13px/1 system-ui,sans-serif;box-sizing:border-box">{}</b>'
)


class SceneLayers:
    """A map and its layers, and what a reader does on it.

    Args:
        frame: where the scene lies on the map.
        home: what the map shows at first, and again when it goes home.
        scene: the one that is looked at; None: the frame's is the ground of an archive's footprints.
        push: tells the page of a pressed number or footprint, and of what went wrong.
        on_box: takes the window of a drawn box, None where it lies outside the scene.
        on_place: takes the column and row of the scene where the map was clicked.

    Attributes:
        map: may be given further layers and controls.
        detail, surface, boxed, chosen: always there, perhaps with nothing to show.
        outline, pins, footprints: None until they are drawn.
    """

    def __init__(
        self,
        frame: Frame,
        home: Plane,
        scene: Scene | None,
        *,
        push: Callable[[dict], None],
        on_box: Callable[[Window | None], None],
        on_place: Callable[[float, float], None],
    ) -> None:
        self.frame, self.home, self.scene = frame, home, scene
        self._push, self._on_box, self._on_place = push, on_box, on_place
        self._drew = -AFTER_DRAWING  # when the last box was drawn: its end is a click, too
        self._timer: asyncio.TimerHandle | None = None
        self.map: ipyleaflet.Map | None = None
        self.outline = self.pins = self.footprints = None
        picture, plane = frame.picture(frame.plane, OVERVIEW)
        self._overview_pixel = max(plane.east - plane.west, plane.north - plane.south) / max(picture.size)
        bounds = frame.bounds(plane)
        overview = ipyleaflet.ImageOverlay(url=as_webp(picture), bounds=bounds)
        self.detail = ipyleaflet.ImageOverlay(url=NOTHING, bounds=bounds)
        self.surface = ipyleaflet.ImageOverlay(url=NOTHING, bounds=bounds, opacity=OPACITY / 100)
        self.boxed = ipyleaflet.Polygon(locations=[], color="#ffd23f", weight=3, fill_opacity=0.05)
        self.chosen = ipyleaflet.Polygon(locations=[], **CHOSEN)
        self.draw_control = ipyleaflet.DrawControl(
            polyline={}, polygon={}, circlemarker={}, circle={}, marker={}, edit=False, remove=False,
            rectangle={"shapeOptions": {"color": "#ffd23f", "weight": 3, "fillOpacity": 0.05}, "showArea": False},
        )  # fmt: skip
        self.map = self._make_map((overview, self.detail, self.surface, self.boxed, self.chosen))
        self.draw_control.observe(self._drawn, "data")
        self.map.observe(self._moved, "bounds")
        self.map.on_interaction(self.touch)

    def _make_map(self, layers: tuple[ipyleaflet.Layer, ...]) -> ipyleaflet.Map:
        frame = self.frame
        center, zoom = self.view_of(self.home)
        deeper = 3 if self.scene else 9  # a scene's footprint is small beside the world
        floor, ceiling = float(np.floor(min(zoom, frame.full_zoom)) - 1), float(np.ceil(frame.full_zoom) + deeper)
        projection = getattr(ipyleaflet.projections, (frame.crs or "Simple").replace(":", ""))
        made = ipyleaflet.Map(
            center=center, zoom=zoom, min_zoom=floor, max_zoom=ceiling, zoom_snap=0.25, crs=projection, layers=layers,
            scroll_wheel_zoom=True, attribution_control=False, layout=Layout(height=f"clamp(300px, 70vw, {MAP_HEIGHT}px)", width="100%"),
        )  # fmt: skip
        if self.scene is not None:
            made.add(self.draw_control)
        if frame.crs:
            made.add(ipyleaflet.ScaleControl(position="bottomleft"))
        return made

    def close(self) -> None:
        """Let go of a map that another one has taken the place of: its pictures would stay in memory."""
        if self._timer is not None:
            self._timer.cancel()
        self.map.unobserve(self._moved, "bounds")
        for layer in self.map.layers:
            if isinstance(layer, ipyleaflet.ImageOverlay):
                layer.url = NOTHING

    # Where it looks

    def size(self) -> tuple[float, float]:
        """The map's width and height on the screen, pixels."""
        if self.map is not None and self.map.pixel_bounds:
            (left, top), (right, bottom) = self.map.pixel_bounds
            if 0 < right - left < 1e5 and 0 < bottom - top < 1e5:
                return right - left, bottom - top
        return MAP_WIDTH, MAP_HEIGHT

    def bounds(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """South-west and north-east corner of what the map shows."""
        if self.map.bounds and self.map.north > self.map.south:
            return self.map.bounds
        return tuple(map(tuple, self.frame.bounds(self.frame.plane)))

    def window(self) -> Window | None:
        """The window of what the map shows; None where that is nothing of the scene."""
        (south, west), (north, east) = self.bounds()
        return self.frame.window_of(np.array([[south, west], [south, east], [north, east], [north, west]]))

    def view_of(self, plane: Plane) -> tuple[list[float], float]:
        """Centre and zoom at which all of a plane is seen."""
        middle = np.array([[(plane.west + plane.east) / 2, (plane.south + plane.north) / 2]])
        zoom = self.frame.zoom_for(plane, *self.size())
        return self.frame.latlng(middle)[0].tolist(), float(np.floor(4 * zoom) / 4)

    def go_home(self) -> None:
        """Show what the map showed at first."""
        with self.map.hold_sync():
            self.map.center, self.map.zoom = self.view_of(self.home)

    def go_to(self, window: Window) -> None:
        """Show a window with what lies around it."""
        corners = self.frame.plane_at(np.array(self.frame.corners(window)))
        plane = Plane(*corners.min(axis=0), *corners.max(axis=0))
        zoom = self.frame.zoom_for(plane, *self.size()) - 1.75
        with self.map.hold_sync():
            self.map.center = self.frame.centre(window)
            self.map.zoom = min(max(zoom, self.map.min_zoom), self.map.max_zoom)

    # What a reader does on it

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

    def _drawn(self, change: dict) -> None:
        """A box was drawn: it is offered in the panel, and drawn by us from here on."""
        if not change["new"]:
            return
        places = np.array(change["new"][-1]["geometry"]["coordinates"][0])[:, ::-1]
        self.draw_control.data, self._drew = [], time.monotonic()
        self._on_box(self.frame.window_of(places))

    def touch(self, **event: object) -> None:
        """A click on the scene is told, other events and the click that ends a box are not."""
        if event.get("type") != "click" or self.scene is None or time.monotonic() - self._drew < AFTER_DRAWING:
            return
        column, row = self.frame.pixels_of(*self.frame.plane_at(np.array([event["coordinates"]])).T)[0]
        if not (0 <= column < self.scene.width and 0 <= row < self.scene.height):
            return
        self._on_place(column, row)

    # What lies on it

    def read_detail(self) -> None:
        """Lay the part that the map shows over the overview, where that would be too coarse."""
        corners = self.frame.plane_at(np.array(self.bounds()))
        width, _ = self.size()
        pixel = (corners[1, 0] - corners[0, 0]) / width  # of the screen
        if pixel >= self._overview_pixel:
            return self._set_detail(NOTHING, self.frame.bounds(self.frame.plane))
        try:
            found = self.frame.picture(Plane(*corners.min(axis=0), *corners.max(axis=0)), DETAIL)
        except TOLD as error:
            self._push({"trouble": str(error)})
            return None
        if found is not None:
            self._set_detail(as_webp(found[0]), self.frame.bounds(found[1]))
        return None

    def _set_detail(self, url: str, bounds: list) -> None:
        if url != self.detail.url:
            with self.detail.hold_sync():
                self.detail.url, self.detail.bounds = url, bounds

    def choose(self, window: Window) -> None:
        """Mark a window as the chosen one."""
        self.chosen.locations = self.frame.corners(window)

    def choose_all(self, windows: Sequence[Window]) -> None:
        """Mark several windows as chosen."""
        self.chosen.locations = [[self.frame.corners(window)] for window in windows]

    def draw_box(self, window: Window | None) -> None:
        """Draw a box around a window; None: none."""
        self.boxed.locations = [] if window is None else self.frame.corners(window)

    def draw_surface(self, surface: Surface) -> tuple[float, float]:
        """The similarities at the two ends of its colours; what belonged to another surface goes."""
        low, high = surface_range(surface.values)
        values, plane = self.frame.surface(surface.values, surface.cell)
        with self.surface.hold_sync():
            self.surface.url = surface_uri(values, low, high)
            self.surface.bounds = self.frame.bounds(plane)
        self._replace("outline", None)
        self.chosen.locations = []
        return low, high

    def draw_outline(self, places: "geopandas.GeoSeries") -> None:
        """Draw the edges of polygons in the scene's CRS, or in pixels where it has none."""
        lines = []
        for shape in places:
            for part in getattr(shape, "geoms", [shape]):
                rings = [part.exterior, *part.interiors]
                lines.append([self._on_map(np.asarray(ring.coords)[:, :2]) for ring in rings])
        self._replace("outline", ipyleaflet.Polygon(locations=lines, **OUTLINE) if lines else None)

    def draw_pins(self, entries: Sequence[Mapping]) -> None:
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
            pin.on_click(lambda what=what, **_: self._push({"hit" if "scene" in what else "window": what}))
            layers.append(pin)
        self._replace("pins", ipyleaflet.LayerGroup(layers=tuple(layers)))

    def draw_footprints(self, scenes: "geopandas.GeoDataFrame") -> None:
        """Draw the footprints of an archive's scenes that have a place; a click opens one."""
        shown = scenes.loc[~scenes.geometry.isna(), ["scene", "geometry"]]
        layer = None
        if len(shown):
            data = json.loads(shown.to_json(drop_id=True))
            layer = ipyleaflet.GeoJSON(data=data, style=FOOTPRINT, hover_style=FOOTPRINT | {"fillOpacity": 0.35})
            layer.on_click(lambda feature=None, **_: feature and self._push({"open": feature["properties"]["scene"]}))
        self._replace("footprints", layer)

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


def as_webp(image: Image.Image) -> str:
    """A picture with transparent parts, small: a WebP's data URI."""
    return as_uri(image, "WEBP", quality=82, method=2)
