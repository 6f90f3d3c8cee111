"""What each of a captioner's inputs is worth: what it says, and how likely it finds the references, without one of them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pandas as pd

from rsvlm.models.capret import CapRet
from rsvlm.models.features import Features
from rsvlm.models.generation import Prompted, beam_captions, caption_log_likelihoods

EVERYTHING = "everything"
INPUTS = {
    EVERYTHING: "with everything",
    "neighbours": "without the neighbours' captions",
    "image": "without the image",
    "adapters": "without the adapters (LoRA)",
}
REFERENCES = 2  # of an image, whose likelihood is measured


def measure_inputs(
    captioner: CapRet,
    features: Features,
    image_ids: Sequence[str],
    neighbours: Sequence[Sequence[str]],
    references: Sequence[Sequence[str]],
    *,
    prompt: str,
    view: str = "mean",
    max_new_tokens: int = 40,
) -> pd.DataFrame:
    """For each input left out and each image, in the order of INPUTS: without, image_id, caption, log_probability.

    The caption is greedy, the log-probability is a token's of the image's first different references, on average.
    Without the image, all features stand at their training mean. What the captioner never had is not left out.

    Args:
        captioner: not merged (``load_capret(..., merge=False)``), or its adapters stay.
        neighbours: captions for each image's prompt.
    """
    blank = blank_features(captioner, features, image_ids)
    asked = {
        EVERYTHING: Prompted(captioner, features, image_ids, prompt, neighbours, view),
        "neighbours": Prompted(captioner, features, image_ids, prompt, None, view),
        "image": Prompted(captioner, blank, image_ids, prompt, neighbours, "upright"),
        "adapters": Prompted(captioner, features, image_ids, prompt, neighbours, view),
    }
    if not any(neighbours):
        del asked["neighbours"]
    if not captioner.settings.lora_rank:
        del asked["adapters"]
    texts = [list(dict.fromkeys(own))[:REFERENCES] for own in references]
    parts = []
    for left_out, images in asked.items():
        with without_adapters(captioner, left_out == "adapters"):
            said = [own[0] for own in beam_captions(images, max_new_tokens=max_new_tokens)]
            likely = [float(own.mean()) for own in caption_log_likelihoods(images, texts)]
        rows = {"image_id": list(image_ids), "caption": said, "log_probability": np.round(likely, 4)}
        parts.append(pd.DataFrame({"without": left_out} | rows))
    return pd.concat(parts, ignore_index=True)


@contextmanager
def without_adapters(captioner: CapRet, switched_off: bool = True) -> Iterator[None]:
    """The captioner without its LoRA adapters, which come back; ``switched_off`` False changes nothing."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    modules = captioner.language_model.modules() if switched_off else ()
    layers = [module for module in modules if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def blank_features(captioner: CapRet, features: Features, image_ids: Sequence[str]) -> Features:
    """Features of these images, all of which stand at the training images' mean."""
    n, P = len(image_ids), features.pooled.shape[-1]
    pooled = np.broadcast_to(captioner.pooled_mean.cpu().numpy(), (n, 1, P))
    grid = None
    if features.grid is not None:
        grid = np.broadcast_to(captioner.grid_mean.cpu().numpy(), (n, 1, features.grid.shape[2], P))
    return replace(features, pooled=pooled, grid=grid, image_ids=list(image_ids))
