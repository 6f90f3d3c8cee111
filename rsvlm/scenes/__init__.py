"""Scenes: georeferenced images of any size, embedded, searched and captioned by windows; archives of many of them."""

from rsvlm.extras import import_extra

import_extra("rasterio", "a scene")  # all that this folder needs is in one extra
