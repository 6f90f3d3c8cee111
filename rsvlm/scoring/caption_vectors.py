"""Captions as vectors in the study's own encoder, beside the images and texts that are encoded already."""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from rsvlm.models.encoders import DualEncoder, load_encoder
from rsvlm.models.features import Features, encode_texts
from rsvlm.scoring.embedding_spaces import EmbeddingSpace


def caption_space(features: Features, captions: Iterable[str], encoder: Path) -> EmbeddingSpace:
    """The space of all encoded images and texts, and of these captions too.

    Images and the table's captions come from the saved features; only captions that are new are encoded.

    Args:
        encoder: the folder of the encoder that made the features.

    Raises:
        ValueError: the features come from another encoder.
    """
    new = sorted(set(captions) - set(features.texts))
    vectors = np.asarray(features.text_embeddings)
    if new:
        encode = caption_encoder(features, encoder)
        vectors = np.concatenate([vectors, encode(new, bool(features.meta["capitalise"]))])
    return EmbeddingSpace(features.image_ids, features.image_embeddings, [*features.texts, *new], vectors)


def caption_encoder(features: Features, encoder: Path) -> Callable[[list[str], bool], np.ndarray]:
    """A function from texts, and whether to capitalise them, to unit vectors (n, D) in the features' space.

    The encoder is loaded when it is first called.

    Raises:
        ValueError: (when called) the features come from another encoder.
    """

    @functools.cache
    def model() -> DualEncoder:
        loaded = load_encoder(str(encoder)).eval()
        if loaded.fingerprint() != features.meta["encoder_fingerprint"]:
            raise ValueError(
                f"{encoder}: not the encoder that made the features; run the stage encode_images again, so that"
                " captions and images are measured in one space"
            )
        return loaded

    return lambda texts, capitalise: encode_texts(
        model(), texts, capitalise=capitalise, precision=features.meta["precision"]
    )
