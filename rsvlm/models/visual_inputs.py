"""An image's cached features as the captioner sees them: one of its views, or the mean over all of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rsvlm.models.features import Features

UPRIGHT, MEAN = 0, -1  # numbers of views; 1, 2, ... are the turned and mirrored ones
VIEW_NAMES = {"upright": UPRIGHT, "mean": MEAN}


@dataclass(frozen=True)
class VisualInput:
    """Features of B images: pooled (B, P) and grid (B, G, P) or None, float32."""

    pooled: Tensor
    grid: Tensor | None


def choose_view(name: str) -> int:
    """The number of the view called "upright" or "mean". ValueError lists them."""
    if name not in VIEW_NAMES:
        raise ValueError(f"view: {name!r} is none of {', '.join(VIEW_NAMES)}")
    return VIEW_NAMES[name]


def read_visual(
    features: Features, rows: Sequence[int], view: int | Sequence[int] = UPRIGHT, *, grid: bool = True
) -> VisualInput:
    """The features of these rows in a view, or in one each.

    The mean over views (``MEAN``) turns the grids of turned and mirrored images back first, so that a cell is averaged
    with the same place of the other views.

    Args:
        grid: False leaves the grid features out.
    """
    rows = np.asarray(rows, dtype=np.int64)
    views = np.broadcast_to(np.asarray(view, dtype=np.int64), rows.shape)
    mean = views == MEAN
    single = np.where(mean, UPRIGHT, views)
    pooled = features.pooled[rows, single].astype(np.float32)  # (B, P)
    if mean.any():
        pooled[mean] = features.pooled[rows[mean]].astype(np.float32).mean(1)
    if not grid or features.grid is None:
        return VisualInput(torch.from_numpy(pooled), None)
    cells = features.grid[rows, single].astype(np.float32)  # (B, G, P)
    if mean.any():
        cells[mean] = turn_back(features.grid[rows[mean]].astype(np.float32)).mean(1)
    return VisualInput(torch.from_numpy(pooled), torch.from_numpy(cells))


def turn_back(grids: np.ndarray) -> np.ndarray:
    """(B, V, G, P) grids of ``turn_views``'s views with their cells where they lie in the upright image."""
    B, V, G, P = grids.shape
    side = round(G**0.5)
    squares = grids.reshape(B, V, side, side, P)
    turns = 4 if V >= 4 else 1
    back = []
    for number in range(V):
        square = squares[:, number]
        if number >= turns:
            square = square[:, :, ::-1]
        back.append(np.rot90(square, -(number % turns), axes=(1, 2)))
    return np.stack(back, axis=1).reshape(B, V, G, P)
