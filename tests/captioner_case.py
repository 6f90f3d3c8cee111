"""A tiny captioner over made-up features whose captions can be learnt, shared by the captioner's tests."""

import numpy as np
import pandas as pd
import torch

from rsvlm.models.captioner import build_capret
from rsvlm.models.features import Features

KINDS = ("A river.", "Many white airplanes.", "Two tennis courts.", "A dense forest.")
P, G, V = 12, 4, 8


def make_features(n: int = 24, seed: int = 0) -> Features:
    """Features of n images; image i shows KINDS[i % 4], which half of its pooled features say."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(len(KINDS), P))
    kinds = np.arange(n) % len(KINDS)
    pooled = centres[kinds][:, None] + 0.2 * generator.normal(size=(n, V, P))
    grid = centres[kinds][:, None, None] + 0.5 * generator.normal(size=(n, V, G, P))
    embeddings = pooled.mean(1) / np.linalg.norm(pooled.mean(1), axis=1, keepdims=True)
    return Features(
        pooled.astype(np.float16),
        grid.astype(np.float16),
        embeddings.astype(np.float32),
        np.zeros((0, P), np.float32),
        [],
        [f"made/{i:02}.png" for i in range(n)],
        {"encoder_fingerprint": "e" * 64, "views": V},
    )


def make_table(features: Features) -> pd.DataFrame:
    """A caption table over the features: the last four images are test, the four before them validation."""
    n = len(features.image_ids)
    rows = []
    for i, image_id in enumerate(features.image_ids):
        kind = KINDS[i % len(KINDS)]
        split = "test" if i >= n - 4 else "val" if i >= n - 8 else "train"
        rows.append(
            {
                "image_id": image_id,
                "source": "made",
                "split": split,
                "path": image_id,
                "captions": [kind, kind, kind.replace(".", " is here.")],
                "label": kind,
            }
        )
    return pd.DataFrame(rows)


def make_captioner(features: Features, folder=None, **shape):
    """A new captioner over the tiny LLaMA; without LoRA rank given, 4."""
    torch.set_num_threads(1)
    shape = {"retrieval_dim": 8, "lora_rank": 4, "lora_alpha": 8.0, "dtype": "float32"} | shape
    return build_capret(str(folder or "random:llama"), features, list(range(16)), device="cpu", **shape)
