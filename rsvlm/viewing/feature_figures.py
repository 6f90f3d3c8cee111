"""Pictures of what an encoder finds alike."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rsvlm.data.images import open_image
from rsvlm.kernels import similarity_topk
from rsvlm.models.features import Features
from rsvlm.viewing.plots import figure, without_axes
from rsvlm.viewing.thumbnails import shrink


def nearest_images(features: Features, image_ids: Sequence[str], among: Sequence[str], count: int) -> pd.DataFrame:
    """The ``count`` images of ``among`` nearest to each image, itself left out: image_id, rank, neighbour, cosine."""
    among = list(among)
    items = features.image_embeddings[features.rows(among)]
    scores, places = similarity_topk(features.image_embeddings[features.rows(image_ids)], items,
                                     min(count + 1, len(among)))
    rows = []
    for image_id, own_scores, own_places in zip(image_ids, scores.tolist(), places.tolist()):
        found = [(among[place], score) for place, score in zip(own_places, own_scores) if among[place] != image_id]
        rows += [{"image_id": image_id, "rank": rank, "neighbour": name, "cosine": round(score, 4)}
                 for rank, (name, score) in enumerate(found[:count], start=1)]
    return pd.DataFrame(rows)


def draw_neighbours(table: pd.DataFrame, neighbours: pd.DataFrame, *, pixels: int = 128) -> Figure:
    """A row of pictures for each image: itself, then its nearest images with their cosines."""
    path_of = dict(zip(table["image_id"], table["path"]))
    image_ids = list(dict.fromkeys(neighbours["image_id"]))
    columns = 1 + int(neighbours["rank"].max())
    drawn, axes = figure(1.35 * columns, 1.5 * len(image_ids), rows=len(image_ids), columns=columns, squeeze=False)
    without_axes(axes)
    for row, image_id in zip(axes, image_ids):
        own = neighbours[neighbours["image_id"] == image_id]
        row[0].imshow(np.asarray(shrink(open_image(path_of[image_id]), pixels)))
        row[0].set_title(image_id[-20:], fontsize=7)
        for axis, name, cosine in zip(row[1:], own["neighbour"], own["cosine"]):
            axis.imshow(np.asarray(shrink(open_image(path_of[name]), pixels)))
            axis.set_title(f"{cosine:.2f}", fontsize=7)
    return drawn
