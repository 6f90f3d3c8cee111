"""Scenes: georeferenced images of any size, read, embedded, searched and captioned by windows."""

from rsvlm.scenes.reading import BAND_PRESETS, Picture, Scene, SceneError, Window, open_scene

__all__ = ["BAND_PRESETS", "Picture", "Scene", "SceneError", "Window", "open_scene"]
