"""Which windows lie over a scene: tiles of a pyramid whose levels are numbered from 0, and how much of each lies in an area."""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import shapely

from rsvlm.data.rasters.scene import Scene
from rsvlm.data.rasters.windows import Window

if TYPE_CHECKING:
    pass


def plan_windows(width: int, height: int, sizes: Sequence[int], overlap: float) -> list[tuple[int, Window]]:
    """(level, window) of all windows over a scene, level by level, row by row; all lie inside.

    The last column and row are shifted inward. A scene smaller than a window has one of what there is, and a size that
    gives no other windows than one before it has no level of its own.

    Args:
        width, height: of the scene, pixels.
        sizes: sides of the windows, pixels of the scene; one level each.
        overlap: share of a side that two neighbours have in common, from 0 to below 1.

    Raises:
        ValueError: a size or the overlap is out of range.
    """
    return [(level, Window(*window)) for level, *window in plan_rows(width, height, sizes, overlap).tolist()]


def count_windows(width: int, height: int, size: int, overlap: float) -> int:
    """How many windows of one size ``plan_windows`` gives, without making them. Raises as that does."""
    plan_rows(1, 1, [size], overlap)
    step = max(1, round(size * (1 - overlap)))
    return len(_starts(width, min(size, width), step)) * len(_starts(height, min(size, height), step))


def plan_rows(width: int, height: int, sizes: Sequence[int], overlap: float) -> np.ndarray:
    """int64 (n, 5): level, left, top, width, height."""
    sizes = list(sizes)
    if not sizes or any(isinstance(size, bool) or size != int(size) or size < 1 for size in sizes):
        raise ValueError(f"sizes: whole numbers from 1 are needed, pixels of the scene; got {sizes}")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap: a share from 0 to below 1 is needed; got {overlap}")
    if width < 1 or height < 1:
        raise ValueError(f"a scene of {width}x{height} pixels has no windows")
    planned, seen = [], set()
    for level, size in enumerate(map(int, sizes)):
        across, down = min(size, width), min(size, height)
        if (across, down) in seen:
            continue
        seen.add((across, down))
        step = max(1, round(size * (1 - overlap)))
        lefts, tops = (_starts(length, side, step) for length, side in ((width, across), (height, down)))
        top, left = (part.ravel() for part in np.meshgrid(tops, lefts, indexing="ij"))
        fixed = [np.full(len(left), value) for value in (level, across, down)]
        planned.append(np.stack([fixed[0], left, top, fixed[1], fixed[2]], axis=1))
    return np.concatenate(planned).astype(np.int64)


def _starts(length: int, side: int, step: int) -> np.ndarray:
    """Where windows of ``side`` begin on ``length`` pixels: a ``step`` apart, the last one at the end."""
    starts = np.arange(0, length - side + 1, step)
    return starts if starts[-1] == length - side else np.append(starts, length - side)


def identify_area(within: shapely.Geometry | np.ndarray | None) -> list | None:
    """What ``within`` is, as JSON values."""
    if within is None:
        return None
    if isinstance(within, np.ndarray):
        if within.dtype != bool or within.ndim != 2 or not within.size:
            raise ValueError(f"within: an array of bool (rows, columns) is needed; got {within.dtype} {within.shape}")
        return [list(within.shape), hashlib.sha256(np.packbits(within).tobytes()).hexdigest()]
    if not isinstance(within, shapely.Geometry):
        raise ValueError(f"within: a shapely geometry or an array of bool is needed; got {type(within).__name__}")
    return [shapely.to_wkb(within, hex=True, byte_order=1)]


def share_within(rows: np.ndarray, within: shapely.Geometry | np.ndarray | None, scene: Scene) -> np.ndarray:
    """The share (n,) of each window's area that lies in ``within``."""
    if within is None:
        return np.ones(len(rows))
    left, top, width, height = rows[:, 1:].T
    if isinstance(within, np.ndarray):
        H, W = within.shape
        summed = np.zeros((H + 1, W + 1))
        summed[1:, 1:] = within.cumsum(0).cumsum(1)

        def area(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            """Cells of the array above and left of a place, parts of cells included: bilinear in the sums."""
            x, y = x * (W / scene.width), y * (H / scene.height)
            column, row = np.minimum(x.astype(np.int64), W - 1), np.minimum(y.astype(np.int64), H - 1)
            x, y = x - column, y - row
            upper = summed[row, column] * (1 - x) + summed[row, column + 1] * x
            lower = summed[row + 1, column] * (1 - x) + summed[row + 1, column + 1] * x
            return upper * (1 - y) + lower * y

        right, bottom = left + width, top + height
        cells = area(right, bottom) - area(left, bottom) - area(right, top) + area(left, top)
        return np.clip(cells / (width * height * (W / scene.width) * (H / scene.height)), 0, 1).round(9)
    if scene.crs is not None:  # windows are boxes in pixels
        back = ~scene.transform
        within = shapely.transform(
            within, lambda x, y: (back.a * x + back.b * y + back.c, back.d * x + back.e * y + back.f), interleaved=False
        )
    boxes, share = shapely.box(left, top, left + width, top + height), np.zeros(len(rows))
    shapely.prepare(within)
    whole = shapely.contains_properly(within, boxes)
    share[whole] = 1
    parts = np.flatnonzero(~whole & shapely.intersects(within, boxes))
    share[parts] = shapely.area(shapely.intersection(boxes[parts], within)) / (width * height)[parts]
    return np.clip(share, 0, 1).round(9)
