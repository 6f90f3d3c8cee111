"""Scenes: georeferenced images of any size, read, embedded, searched and captioned by windows."""

from rsvlm.extras import import_extra

import_extra("rasterio", "a scene")

from rsvlm.scenes.reading import BAND_PRESETS, Picture, Scene, SceneError, Window, open_scene  # noqa: E402

__all__ = ["BAND_PRESETS", "Picture", "Scene", "SceneError", "Window", "open_scene"]
