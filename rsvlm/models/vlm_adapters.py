"""LoRA adapters of a vision-language model's language model: made, saved and loaded, in peft's files.

A folder holds ``adapter_model.safetensors`` and ``adapter_config.json``, which peft reads too, and ``training.json``: the
fingerprint of the model they were trained over, its prompt, and how they were trained.
"""

import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rsvlm.files import read_json, whole_folder, write_json
from rsvlm.models.captioner import fingerprint_language_model, merge_adapters
from rsvlm.models.loading import check_names, first_line, read_weights

WEIGHTS, CONFIG, NOTES = "adapter_model.safetensors", "adapter_config.json", "training.json"
PREFIX, NAME = "base_model.model.", ".default."  # what peft writes before a weight's name, and leaves out of it


def adapter_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapters' parameters by their names in the model."""
    return {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name}


def add_adapters(model: nn.Module, rank: int, alpha: float, targets: list[str], seed: int) -> object:
    """Put new adapters, in float32, beside linear layers of the language model, in place; gives peft's configuration.

    They alone train. The vision tower keeps its layers of the same names.

    Raises:
        ValueError: a target that is no linear layer of the language model, or a model that has adapters already.
    """
    from peft import LoraConfig

    if adapter_weights(model):
        raise ValueError("the model has adapters already: load it without `adapter` to train new ones")
    decoder = model.get_decoder()
    inside = next(name for name, module in model.named_modules() if module is decoder)
    linear = {name.rsplit(".", 1)[-1] for name, module in decoder.named_modules() if isinstance(module, nn.Linear)}
    unknown = sorted(set(targets) - linear)
    if unknown or not targets:
        raise ValueError(
            f"lora_targets: {', '.join(unknown) or 'none given'}: no such linear layer in {type(decoder).__name__}; it "
            f"has {', '.join(sorted(linear))}"
        )
    where = rf"{re.escape(inside)}\.(?:.*\.)?(?:{'|'.join(map(re.escape, targets))})"
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=where, bias="none")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _inject(config, model)
    for parameter in adapter_weights(model).values():
        parameter.requires_grad_(True)
    return config


def save_adapters(folder: Path, model: nn.Module, config: object, **notes: object) -> None:
    """Write an adapters' folder, whole or not at all; ``notes`` are JSON values for training.json."""
    with whole_folder(Path(folder)) as scratch:
        state = {_saved_name(name): tensor for name, tensor in adapter_weights(model).items()}
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(state.items())}, scratch / WEIGHTS
        )
        config.save_pretrained(scratch)
        write_json(scratch / NOTES, notes)


def load_adapters(model: nn.Module, tokenizer: object, folder: Path, *, prompt: str, quantized: bool = False) -> None:
    """Add saved adapters to a model in place; to float32 weights they are added up, which generates faster.

    Args:
        prompt: the model's whole prompt, which must be the one of the training.
        quantized: the model's weights are in 4 bits, so its fingerprint is not compared.

    Raises:
        FileNotFoundError: no adapters in the folder.
        ValueError: damaged ones, or those of another model or prompt.
    """
    from peft import LoraConfig

    what, remedy = f"adapter {folder}", "train it again, or copy its whole folder again"
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{what}: no {name} in the folder (peft's files, weights as safetensors): {remedy}")
    notes = read_json(folder / NOTES) if (folder / NOTES).is_file() else {}
    trained_with = notes.get("prompt", prompt)
    if trained_with != prompt:
        raise ValueError(f"{what}: trained with the prompt {trained_with!r}, not {prompt!r}; set prompt as in training")
    if "base_fingerprint" in notes and not quantized:
        found, wanted = fingerprint_language_model(model, tokenizer), notes["base_fingerprint"]
        if found != wanted:
            raise ValueError(
                f"{what}: trained over a model with fingerprint {wanted[:12]}, and this one has {found[:12]}; take "
                f"{notes.get('captioner')} as it was, or {remedy}"
            )
    read_json(folder / CONFIG)
    try:
        config = LoraConfig.from_pretrained(str(folder))
        _inject(config, model)
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{folder / CONFIG}: no LoRA of this model ({first_line(error)}): {remedy}") from error
    state = read_weights(folder / WEIGHTS, remedy)
    own: dict[str, Tensor] = {_saved_name(name): parameter for name, parameter in adapter_weights(model).items()}
    check_names(own, state, folder / WEIGHTS, remedy)
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[name])
            parameter.requires_grad_(False)
    if model.dtype == torch.float32:
        merge_adapters(model)


def _inject(config: object, model: nn.Module) -> None:
    from peft import inject_adapter_in_model

    inject_adapter_in_model(config, model)
    for parameter in adapter_weights(model).values():
        parameter.data = parameter.data.float()
    model.eval()


def _saved_name(name: str) -> str:
    return PREFIX + name.replace(NAME, ".")
