"""Arrays on disk that grow row by row: plain .npy files, written in order, continued after a kill.

Written as a file, not through a memory map: on a full disk a map ends the process with SIGBUS, a write raises.
"""

import shutil
from pathlib import Path

import numpy as np


class GrowingArray:
    """A .npy file of a known final shape whose rows are appended; ``np.load`` reads it once all rows are there."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str, rows_done: int = 0):
        """Create the file, or continue it behind its first ``rows_done`` rows.

        Raises:
            ValueError: the file to continue is shorter than that or of another shape.
        """
        self.path, self.shape, self.dtype = Path(path), tuple(shape), np.dtype(dtype)
        row_bytes = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        self._file = self.path.open("r+b" if rows_done else "w+b")
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": self.shape}
        if rows_done:
            np.lib.format.read_magic(self._file)
            found = np.lib.format.read_array_header_1_0(self._file)
            end = self._file.tell() + rows_done * row_bytes
            if found != (self.shape, False, self.dtype) or self.path.stat().st_size < end:
                self._file.close()
                raise ValueError(f"{self.path}: not the first {rows_done} rows of a {self.dtype} array {self.shape}")
            self._file.truncate(end)
            self._file.seek(end)
        else:
            np.lib.format.write_array_header_1_0(self._file, header)
        self.rows = rows_done

    def append(self, rows: np.ndarray) -> None:
        """Write the next rows and hand them to the system.

        Raises:
            OSError: the disk is full; names the file and the size it is going to have.
        """
        if rows.shape[1:] != self.shape[1:] or self.rows + len(rows) > self.shape[0]:
            raise ValueError(f"{self.path}: rows {rows.shape} do not fit behind row {self.rows} of {self.shape}")
        try:
            self._file.write(np.ascontiguousarray(rows, dtype=self.dtype).data)
            self._file.flush()
        except OSError as error:
            size = np.prod(self.shape, dtype=np.int64) * self.dtype.itemsize
            raise OSError(error.errno, f"{error.strerror} while writing (it will have {size / 1e9:.2f} GB)",
                          str(self.path)) from error
        self.rows += len(rows)

    def close(self) -> None:
        """Close the file.

        Raises:
            ValueError: rows are missing.
        """
        self._file.close()
        if self.rows != self.shape[0]:
            raise ValueError(f"{self.path}: {self.rows} of {self.shape[0]} rows written")

    def __enter__(self) -> "GrowingArray":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()


def check_free_space(folder: Path, size: int, what: str) -> None:
    """Raise OSError when the disk under ``folder`` has less than ``size`` bytes left for ``what``."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if free < size:
        raise OSError(28, f"{what} need {size / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB left", str(folder))
