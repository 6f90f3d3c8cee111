"""Rasters written whole or not at all, also where the disk fills up.

GDAL writes much of a file when it is closed, and what fails then it prints and forgets: the file has holes, or lacks its
overviews, and nobody is told (rasterio 1.4 with GDAL 3.10). Here every write goes through a file of Python's, which keeps the
system's error.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from rsvlm.files import whole_file


@contextmanager
def new_raster(path: Path, **profile: object) -> Iterator[rasterio.io.DatasetWriter]:
    """A GeoTIFF to be filled; it takes the name ``path`` when the block ends without an error.

    Args:
        profile: of ``rasterio.open``: width, height, count, dtype, crs, transform, compress ...

    Raises:
        OSError: as ``whole_file``, also for what GDAL keeps to itself.
    """
    faults: list[OSError] = []
    with whole_file(Path(path)) as scratch:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)  # whoever gives no transform means none
                opener = partial(_Told, faults)
                with rasterio.open(scratch, "w", driver="GTiff", opener=opener, **profile) as file:
                    yield file
        except RasterioError as error:
            if not faults:
                raise
            raise faults[0] from error
        if faults:
            raise faults[0]


class _Told(io.FileIO):
    """A file that keeps the system's errors where GDAL would not pass them on; it writes less instead."""

    def __init__(self, faults: list[OSError], path: str, mode: str = "rb") -> None:
        self._faults = faults
        try:
            super().__init__(path, mode.replace("b", ""))
        except OSError as error:
            if mode.startswith("w"):  # GDAL also asks whether the file is there
                faults.append(error)
            raise

    def write(self, data: bytes) -> int:
        done = 0
        try:
            while done < len(data):
                done += super().write(memoryview(data)[done:])
        except OSError as error:
            self._faults.append(error)
        return done
