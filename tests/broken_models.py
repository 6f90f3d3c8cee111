"""Model folders with one thing wrong, shared by the tests of both kinds of models."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

SIDE_EFFECT = "from pathlib import Path\nPath({!r}).write_text('ran')\n"
CODE = """
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


def copy_with(model: Path, folder: Path, change: Callable[[Path], object]) -> Path:
    """A copy of a model's folder after ``change(folder)``."""
    shutil.copytree(model, folder)
    change(folder)
    return folder


def edit_weights(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """A change of the tensors in model.safetensors."""

    def edit(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return edit


def edit_json(name: str, **values: object) -> Callable[[Path], None]:
    """A change of keys in a JSON file; None takes a key out."""

    def edit(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) | values
        (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return edit


def cut_weights(size: int) -> Callable[[Path], None]:
    """model.safetensors torn after ``size`` bytes."""

    def cut(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:size])

    return cut


def poison(name: str, value: float) -> Callable[[Path], None]:
    """One value of a tensor replaced."""
    return edit_weights(lambda tensors: tensors[name].view(-1).__setitem__(3, value))


def pickle_weights(folder: Path) -> None:
    """pytorch_model.bin in place of model.safetensors."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def shard_weights(folder: Path) -> None:
    """The weights in two files and an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, where = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def add_own_code(folder: Path, marker: Path, *, model: bool = True, tokenizer: bool = False) -> None:
    """Python code that the folder asks to be run; it writes ``marker`` as soon as it is imported."""
    (folder / "own_code.py").write_text(SIDE_EFFECT.format(str(marker)) + CODE)
    if model:
        names = {"AutoConfig": "own_code.OwnConfig", "AutoModelForCausalLM": "own_code.OwnModel"}
        edit_json("config.json", model_type="own", architectures=["OwnModel"], auto_map=names)(folder)
    if tokenizer:
        names = {"AutoTokenizer": [None, "own_code.OwnTokenizer"]}
        edit_json("tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=names)(folder)
