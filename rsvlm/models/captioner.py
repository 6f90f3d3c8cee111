"""The captioner on disk: made anew over a language model, saved without it, loaded back with checks.

A folder holds ``captioner.safetensors`` (what was trained and the features' statistics: some megabytes) and
``config.json`` (the language model's name and fingerprint, the encoder's fingerprint, the settings).
"""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from rsvlm.files import read_json, whole_folder, write_json
from rsvlm.models.capret import CapRet
from rsvlm.models.devices import choose_device
from rsvlm.models.features import MEAN, UPRIGHT, Features, read_visual
from rsvlm.models.language_models import fingerprint_language_model, load_language_model
from rsvlm.models.loading import check_names, read_weights
from rsvlm.settings import CapRetSettings

FORMAT = 1
STATISTICS_ROWS = 4096  # training images whose features are standardised by; more change nothing
STATISTICS_BLOCK = 256  # of them read at a time: all views of an image are in memory for their mean
WEIGHTS, CONFIG = "captioner.safetensors", "config.json"


def build_capret(
    language_model: str,
    features: Features,
    training_rows: list[int],
    *,
    use_grid: bool = True,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
    **shape: object,
) -> CapRet:
    """A new captioner over a language model, for an encoder's features.

    Args:
        language_model: see ``rsvlm.models.language_models``.
        training_rows: rows of ``features`` whose mean and standard deviation standardise all features: training images only.
        use_grid: whether grid cells become visual tokens (where the features have them).
        dtype: of the frozen language model; what trains is float32.
        shape: more fields of CapRetSettings, such as lora_rank.
    """
    if len(training_rows) == 0:
        raise ValueError("no training image: the split 'train' is empty")
    chosen = choose_device(device)
    cells = features.grid.shape[2] if use_grid and features.grid is not None else 0
    settings = CapRetSettings(feature_dim=features.pooled.shape[-1], grid_cells=cells, **shape)
    model, tokenizer = load_language_model(language_model, device=str(chosen), dtype=dtype)
    fingerprint = fingerprint_language_model(model, tokenizer)
    captioner = CapRet(model, tokenizer, settings, seed=seed)
    rows = training_rows[:: -(-len(training_rows) // STATISTICS_ROWS)]
    views = [UPRIGHT, MEAN] if features.pooled.shape[1] > 1 else [UPRIGHT]
    blocks = [rows[start : start + STATISTICS_BLOCK] for start in range(0, len(rows), STATISTICS_BLOCK)]
    read = [read_visual(features, block, view, grid=cells > 0) for view in views for block in blocks]
    captioner.set_feature_statistics(
        torch.cat([part.pooled for part in read]), torch.cat([part.grid for part in read]) if cells else None
    )
    captioner.config = {
        "format": FORMAT,
        "language_model": language_model,
        "language_model_fingerprint": fingerprint,
        "dtype": str(model.dtype).removeprefix("torch."),
        "settings": settings.model_dump(),
        "encoder_fingerprint": features.meta.get("encoder_fingerprint"),
    }
    return captioner


def save_capret(
    captioner: CapRet, folder: Path, *, beside: Callable[[Path], None] | None = None, **more: object
) -> None:
    """Write the captioner's folder, whole or not at all; ``more`` JSON values go into its config.json.

    Args:
        beside: is given the folder in the making, and writes what else belongs into it.
    """
    with whole_folder(Path(folder)) as scratch:
        state = {name: tensor.cpu().contiguous().clone() for name, tensor in sorted(captioner.trained_state().items())}
        save_file(state, scratch / WEIGHTS)
        write_json(scratch / CONFIG, captioner.config | more)
        if beside:
            beside(scratch)


def load_capret(
    folder: Path,
    device: str = "auto",
    *,
    features: Features | None = None,
    dtype: str | None = None,
    merge: bool = True,
) -> CapRet:
    """The captioner in ``folder``, ready to generate; ``.config`` is what its config.json holds.

    Args:
        features: where given, checked to come from the encoder that the captioner was trained with.
        dtype: of the frozen language model; None: as in training.
        merge: add the adapters to the language model's weights, which generates faster (float32 models only).

    Raises:
        FileNotFoundError: no captioner there, or its language model cannot be found.
        ValueError: a damaged file, another language model than in training, or features of another encoder.
    """
    folder = Path(folder)
    remedy = "run the stage finetune_lora again"
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: missing, so there is no captioner: {remedy}")
    config = read_json(folder / CONFIG)
    try:
        settings = CapRetSettings(**config["settings"])
        name, wanted, known_encoder = (
            config[key] for key in ("language_model", "language_model_fingerprint", "encoder_fingerprint")
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / CONFIG}: not a captioner's configuration ({error}): {remedy}") from error
    if features is not None and features.meta.get("encoder_fingerprint") != known_encoder:
        raise ValueError(
            f"{folder}: trained on features of the encoder {str(known_encoder)[:12]}, but these are of "
            f"{str(features.meta.get('encoder_fingerprint'))[:12]}: {remedy}, or encode the images with the former"
        )
    model, tokenizer = load_language_model(name, device=str(choose_device(device)), dtype=dtype or config["dtype"])
    found = fingerprint_language_model(model, tokenizer)
    if found != wanted:
        raise ValueError(
            f"{folder}: trained over the language model {name} with fingerprint {wanted[:12]}, but {name} here has "
            f"{found[:12]}: install the same version of it, or {remedy}"
        )
    captioner = CapRet(model, tokenizer, settings)
    state = read_weights(folder / WEIGHTS, remedy)
    check_names(captioner.trained_state(), state, folder / WEIGHTS, remedy)
    captioner.load_trained_state(state)
    captioner.config = config
    if merge and model.dtype == torch.float32:
        merge_adapters(model)
    return captioner.eval()


def merge_adapters(language_model: nn.Module) -> None:
    """Add LoRA adapters to the weights they adapt, in place, for generation; training cannot go on afterwards."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in language_model.modules():
        if isinstance(module, BaseTunerLayer) and not module.merged:
            module.merge()
