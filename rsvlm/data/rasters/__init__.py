"""Rasters of any size, number of bands and type, read by window as 8-bit RGB by GDAL."""

from rsvlm.extras import import_extra

import_extra("rasterio", "a scene")  # all that this folder needs is in one extra
