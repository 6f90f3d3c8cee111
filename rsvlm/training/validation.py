"""How well an encoder retrieves and names, measured between epochs on validation images."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from rsvlm.kernels import hits, two_way_ranks
from rsvlm.models.devices import autocast, choose_precision
from rsvlm.models.encoders import DualEncoder
from rsvlm.models.features import encode_texts
from rsvlm.models.pixels import Pixels, open_pixels, prefetch

DEPTHS = (1, 5, 10)
PROMPT = "an aerial image of {}."


@torch.no_grad()
def embed_pixels(encoder: DualEncoder, pixels: Pixels, *, batch_size: int = 64, precision: str = "fp32") -> Tensor:
    """Normalised image embeddings (N, D), float32 on the CPU, of the upright images."""
    rows = [range(start, min(start + batch_size, len(pixels))) for start in range(0, len(pixels), batch_size)]
    done = []
    for batch in prefetch(pixels.read, rows):
        with autocast(precision, encoder.device):
            pooled, _ = encoder.image_features(encoder.normalize(batch))
            done.append(F.normalize(encoder.project_images(pooled).float(), dim=-1).cpu())
    return torch.cat(done)


def embed_texts(encoder: DualEncoder, texts: Sequence[str], *, precision: str = "fp32") -> Tensor:
    """Normalised text embeddings (M, D), float32 on the CPU; equal texts have equal rows."""
    distinct = sorted(set(texts))
    row_of = {text: row for row, text in enumerate(distinct)}
    rows = torch.from_numpy(encode_texts(encoder, distinct, capitalise=False, precision=precision))
    return rows[[row_of[text] for text in texts]]


def measure_recall(
    encoder: DualEncoder, pixels: Pixels, captions: Sequence[Sequence[str]], *, precision: str = "fp32"
) -> dict[str, float]:
    """Recall at 1, 5 and 10 both ways and their mean, as fractions, by image id.

    An image's right answers are its own captions, a caption's right answer is its image, as in RemoteCLIP's protocol;
    equal scores count with the chance that a random order of them brings a right one to the top K.
    """
    texts = [text for own in captions for text in own]
    lengths = [len(own) for own in captions]
    images = embed_pixels(encoder, pixels, precision=precision)
    text_rows = embed_texts(encoder, texts, precision=precision)
    positives = np.cumsum([0, *lengths]), np.arange(len(texts))
    to_text, to_image = two_way_ranks(images, text_rows, positives, normalize=False)
    recalls = {f"image_to_text_recall_at_{k}": float(hits(to_text, k).mean()) for k in DEPTHS}
    recalls |= {f"text_to_image_recall_at_{k}": float(hits(to_image, k).mean()) for k in DEPTHS}
    mean = sum(recalls.values()) / len(recalls)
    return {"mean_recall": mean, **recalls, "images": len(captions), "captions": len(texts)}


def measure_zero_shot(encoder: DualEncoder, rows: pd.DataFrame, *, precision: str = "auto") -> dict | None:
    """Accuracy of naming an image's label by the nearest of the prompts ``an aerial image of LABEL.``.

    Images without a label take no part; None with fewer than two labels. ``chance`` is one over the number of labels.
    """
    labelled = rows[[isinstance(label, str) and label != "" for label in rows["label"]]]
    labels = sorted(set(labelled["label"]))
    if len(labels) < 2:
        return None
    precision = choose_precision(precision, encoder.device)
    pixels = open_pixels(labelled["path"].tolist(), encoder.image_size)
    images = embed_pixels(encoder, pixels, precision=precision)
    prompts = [PROMPT.format(label.replace("_", " ")) for label in labels]
    named = (images @ embed_texts(encoder, prompts, precision=precision).T).argmax(1)
    truth = torch.tensor([labels.index(label) for label in labelled["label"]])
    return {
        "accuracy": float((named == truth).double().mean()),
        "images": len(labelled),
        "labels": len(labels),
        "chance": 1 / len(labels),
    }


def check_captions(rows: pd.DataFrame, split: str) -> None:
    """Raise ValueError when a split is empty or one of its images has no caption."""
    if len(rows) == 0:
        raise ValueError(
            f"the split {split!r} holds no image: adapt_encoder trains on 'train' and chooses its best "
            "epoch on 'val'; see the table of splits in aggregate_data's report"
        )
    empty = [image_id for image_id, own in zip(rows["image_id"], rows["captions"]) if len(own) == 0]
    if empty:
        raise ValueError(f"{len(empty)} images of the split {split!r} have no caption, the first is {empty[0]}")
