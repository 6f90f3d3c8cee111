"""A page of a searched scene, without a kernel: its picture, a similarity surface a query, numbered hits."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
from PIL import Image

from rsvlm.data.rasters.scene import Scene
from rsvlm.viewing.page import make_thumbnail, render_page
from rsvlm.viewing.scene_pictures import hit_entries, legend_colours, surface_range, surface_uri

if TYPE_CHECKING:
    from rsvlm.scenes.search import Surface

OPACITY = 60  # per cent, at first


class SceneResult(NamedTuple):
    """What a query found in a scene."""

    query: str
    surface: "Surface"
    hits: pd.DataFrame  # of find_peaks, best first
    captions: Sequence[str] = ()  # of the hits' windows, in their order; none where they were not captioned
    note: str = ""  # a sentence below the query


def render_scene_page(
    scene: Scene,
    results: Sequence[SceneResult | tuple],
    title: str,
    *,
    lead: str = "",
    about: str = "",
    side: int = 2000,
    scene_bytes: int = 900_000,
) -> str:
    """The HTML text of the page; ``write_page`` writes it.

    Args:
        results: in the order shown, the first one at first; plain tuples of its parts will do.
        lead: a sentence or two below the title.
        about: how it was made, at the page's foot.
        side: longer side of the scene's picture, pixels.
        scene_bytes: of its JPEG, at most.

    Raises:
        ValueError: no result, or captions that are not one a hit.
    """
    results = [SceneResult(*result) for result in results]
    if not results:
        raise ValueError("no result: give one query at least")
    queries = []
    for result in results:
        entries = hit_entries(scene, result.hits)
        if result.captions and len(result.captions) != len(entries):
            raise ValueError(
                f"“{result.query}”: {len(result.captions)} captions for {len(entries)} hits; give one each"
            )
        captions = list(result.captions) or [""] * len(entries)
        low, high = surface_range(result.surface.values)
        rows, columns = result.surface.values.shape
        queries.append(
            {
                "text": result.query,
                "note": result.note,
                "hits": [entry | {"caption": caption} for entry, caption in zip(entries, captions, strict=True)],
                "low": low,
                "high": high,
                "picture": surface_uri(result.surface.values, low, high),
                "wide": 100 * columns * result.surface.cell / scene.width,  # per cent of the scene's picture
                "tall": 100 * rows * result.surface.cell / scene.height,
            }
        )
    picture = make_thumbnail(Image.fromarray(scene.overview(side).pixels), side, scene_bytes)
    return render_page(
        "scene.html",
        ["scene.js"],
        ["scene.css"],
        terms={},
        title=title,
        lead=lead,
        about=about,
        scene={"width": scene.width, "height": scene.height, "name": scene.name, "picture": picture},
        queries=queries,
        opacity=OPACITY,
        colours=legend_colours(),
    )
