"""How much memory a stage needs, told before it starts, and refused where there is less.

The estimate reads configurations and file headers only: no model is loaded, torch is not imported. It counts what
grows with parameters, models and data: weights, what training keeps of them, activations until the backward pass,
logits, caches; the numbers of values a token or a pixel were counted from the layers' formulas and held against
measured runs (within a factor of two). A training on several processes (``RSVLM_PROCESSES``) needs the memory of each, with
its part of a batch. ``RSVLM_MEMORY=ignore`` starts a stage regardless.
"""

import ctypes.util
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

from rsvlm.files import read_json
from rsvlm.study import paths
from rsvlm.study.model_sizes import (
    Decoder,
    Encoder,
    SizeUnknown,
    Tower,
    decoder_size,
    encoder_size,
    read_known,
)
from rsvlm.study.processes import TRAINING, training_processes

SWITCH = "RSVLM_MEMORY"
LIBRARIES = 0.75e9  # Python with torch, transformers and pandas
CUDA_CONTEXT = 0.6e9
FOUR_BIT = (
    4 + 0.127
) / 8  # bytes a weight: NF4 with constants that are quantised, too (Dettmers et al. 2023, section 3)
LETTERS_A_TOKEN = 4.5
LONG = 0.75  # share of the captions that are no longer than one is counted: batches are padded to their longest
WORKING = 1.15  # gradients of activations that are alive together, and what an allocator cannot fill
# Convolutions' outputs of EfficientNet-Lite2 a pixel of its input: stem, 21 blocks (a test counts them), head
EFFICIENTNET_VALUES = (
    *(8.0, 12.0, 31.5, 19.5, 19.5, 12.0, 9.75, 9.75, 5.97, 4.47, 4.47, 4.47),
    *(4.59, 6.09, 6.09, 6.09, 3.72, 2.64, 2.64, 2.64, 2.64, 2.78, 1.25),
)
# What a transformer layer keeps for the backward pass, values a token and unit of width: norms, queries, keys, values,
# attention, and the four times wider middle before and after its activation (Korthikanti et al. 2022, section 4)
TOWER_VALUES = 17
STATISTICS = "the mean and standard deviation of the features"
INSTRUCTION = 45  # tokens of an instruction and its answer; 99 of 100 are shorter
TWO_IMAGES_WORDS = 12  # tokens that say which of two images is which
LONGEST_DRAW = 40  # tokens, as rsvlm.training.captioning has it, which imports torch
TRAININGS, BATCHES = ("adapt_encoder", "finetune_lora"), ("batch_size", "reward_batch_size")
BATCH_OF, REWARD_BATCH_OF = ("batch_size", "captions_per_image"), ("reward_batch_size", "reward_samples")


@dataclass(frozen=True)
class Part:
    """Some of the memory that a stage needs: bytes, what for, the parameters that lower it, and whether on the GPU."""

    size: float
    what: str
    lower: tuple[str, ...] = ()
    on_device: bool = True


def check_memory(stage: str, values: dict, log: Callable[[str], None], *, file: str = "params.yaml") -> None:
    """Log what a stage needs and what is free, in one line.

    Raises:
        ValueError: less is free than needed; says how much, what most of it is for and which parameters lower it.
    """
    if stage not in ESTIMATES:
        return
    processes = training_processes() if stage in TRAININGS else (1, 1)
    if processes is None:
        log(
            f"[{stage}] memory: not estimated ({TRAINING} tells no --nproc-per-node, so not how many processes are here)"
        )
        return
    here, size = processes
    try:
        parts = ESTIMATES[stage](_share(values, size))
    except SizeUnknown as unknown:
        log(f"[{stage}] memory: not estimated ({unknown})")
        return
    on_gpu = values["device"] != "cpu" and gpu_memory() is not None
    for place, free, own in (
        ("GPU memory", gpu_memory() if on_gpu else 0, [part for part in parts if on_gpu and part.on_device]),
        ("memory", free_memory(), [part for part in parts if not (on_gpu and part.on_device)]),
    ):
        each = sum(part.size for part in own) + (CUDA_CONTEXT if place.startswith("GPU") else LIBRARIES)
        if not own:
            continue
        needed, by = each, ""
        if here > 1 and place == "memory":  # GPUs: each process has its own; what starts them keeps its model here
            waiting = LIBRARIES + parts[0].size
            needed = here * each + waiting
            by = f": {_gigabytes(each)} by each of {here} processes ({TRAINING}), {_gigabytes(waiting)} by what starts them"
        largest = max(own, key=lambda part: part.size)
        log(
            f"[{stage}] {place}: about {_gigabytes(needed)} needed{by}, most of it for {largest.what} "
            f"({_gigabytes(largest.size)}{' each' if by else ''}); {_gigabytes(free)} free"
        )
        if needed > free and os.environ.get(SWITCH) != "ignore":
            levers = " or ".join(f"{name} ({values[name]})" for name in largest.lower if values.get(name) is not None)
            raise ValueError(
                f"{file}, section {stage!r}: about {_gigabytes(needed)} of {place} are needed{by}, but "
                f"{_gigabytes(free)} are free. {_gigabytes(largest.size)} of {'each' if by else 'it'} are for {largest.what}"
                f"{f': lower {levers}' if levers else ''}{_elsewhere(largest, values)}"
                f"{f', or {TRAINING}' if by else ''}. The estimate is right within "
                f"a factor of two: {SWITCH}=ignore in the environment starts the stage regardless"
            )


def _share(values: dict, size: int) -> dict:
    """The parameters of a training as one of so many processes has them: its part of a batch."""
    return values | {name: -(-values[name] // size) for name in BATCHES if name in values}


def free_memory() -> float:
    """Bytes that a new process can take: what the machine has, or what a container's limit leaves if that is less."""
    return min([psutil.virtual_memory().available, *cgroup_free()])


def cgroup_free(root: Path = Path("/")) -> list[float]:
    """Bytes left below each memory limit that holds for this process (Linux control groups, versions 1 and 2)."""
    listed = root / "proc/self/cgroup"
    lines = listed.read_text().splitlines() if listed.is_file() else []
    left = []
    for line in lines:
        _, controllers, own = line.split(":", 2)
        if controllers == "":
            top, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            top = root / "sys/fs/cgroup/memory"
        else:
            continue
        inside = top / own.lstrip("/")  # inside a container the path may be the host's, which is not there
        for folder in dict.fromkeys([inside, *inside.parents, top]):
            if folder.is_relative_to(top) and (folder / names[0]).is_file():
                limit = (folder / names[0]).read_text().strip()
                if limit != "max" and int(limit) < 2**60:  # version 1 writes a huge number for none
                    statistics = dict(row.split() for row in (folder / "memory.stat").read_text().splitlines())
                    used = int((folder / names[1]).read_text()) - int(statistics.get(names[2], 0))
                    left.append(max(0, int(limit) - used))
    return left


@cache
def gpu_memory() -> float | None:
    """Free bytes of the GPU that torch takes first, None without one. Another process asks: a CUDA context stays."""
    if ctypes.util.find_library("cuda") is None:
        return None
    ask = "import torch; print(torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else '')"
    answer = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, timeout=120).stdout.strip()
    return float(answer) if answer else None


def estimate_adapt_encoder(values: dict, encoder: Encoder | None = None, caption: int | None = None) -> list[Part]:
    """The parts of contrastive training: weights, what AdamW and checkpoints keep of them, both towers' activations.

    Args:
        encoder, caption: its size, and a caption's tokens; None: as they are here.
    """
    encoder, members = encoder or encoder_size(values["encoder"], values["image_size"]), values["members"]
    training, parameters = values["train"] == "all", members * encoder.parameters
    trained = parameters if training else 0
    images, texts = values["batch_size"], values["batch_size"] * values["captions_per_image"]
    average = 2 if values["average_decay"] else 0
    number = _bytes_of(values["precision"], values["device"], mixed=3.5)
    side = values["crop_size"] or encoder.image_size
    if encoder.vision is None:
        kept = sum(EFFICIENTNET_VALUES[values["freeze_blocks"] + 1 if values["freeze_blocks"] else 0 :])
        # without a backward pass only the widest block's maps are alive together
        image = side**2 * (kept if training else max(EFFICIENTNET_VALUES)) * number
    else:
        image = _tower(encoder.vision, encoder.vision.tokens, training, number)
    tokens = min(encoder.text.tokens, (caption or caption_tokens()) + 2)
    together = values["chunk"] or max(images, texts)  # whose activations are kept
    return [
        Part(4 * parameters, "weights", ("encoder", "members")),
        Part(12 * trained, "gradients and AdamW's moments", ("encoder", "members")),
        Part(
            (4 + 16 + 4 * average) * trained, "the best weights so far and a checkpoint", ("encoder", "members"), False
        ),
        Part(
            members * (min(images, together) * image * WORKING + images * 4 * 12 * side**2),
            "the images of a batch",
            ("batch_size", "crop_size", "image_size"),
        ),
        Part(
            members * min(texts, together) * _tower(encoder.text, tokens, training, number) * WORKING,
            "the captions of a batch",
            ("captions_per_image", "batch_size"),
        ),
        Part(members * 6 * 4 * images * texts, "similarities of a batch", ("captions_per_image", "batch_size")),
    ]


def estimate_encode_images(values: dict) -> list[Part]:
    """The parts of encoding: weights, the pixels of some batches in all views, and one layer's activations."""
    encoder = encoder_size(str(paths.ENCODER), None)
    side = encoder.image_size
    if encoder.vision is None:
        image = side**2 * max(EFFICIENTNET_VALUES) * 4
    else:
        image = _tower(encoder.vision, encoder.vision.tokens, False, 4)
    pixels = side**2 * 3 * (4 + values["views"] + 3 * 4)  # bytes: three batches ahead, views, float32
    parts = [
        Part(4 * encoder.parameters, "weights"),
        Part(values["batch_size"] * (image * WORKING + pixels), "the images of a batch", ("batch_size",)),
    ]
    if values["crops"] != "never":  # three batches ahead and one at work, of which cells of a batch's size are turned
        crops = side**2 * 3 * (4 * values["grid"] ** 2 + values["views"])
        parts.append(Part(values["batch_size"] * crops, "the crops of a batch", ("batch_size", "grid")))
    return parts


def estimate_finetune_lora(
    values: dict, decoder: Decoder | None = None, caption: int | None = None, meta: dict | None = None
) -> list[Part]:
    """The parts of captioner training: the frozen decoder, its activations a row, logits, and the features read.

    Args:
        decoder, caption, meta: its size, a caption's tokens, and what meta.json says of features; None: as they are here.
    """
    decoder, meta = decoder or decoder_size(values["language_model"]), meta or features_meta()
    P, V, G = meta["dims"]["pooled"], meta["views"], meta["grid"] ** 2 if values["use_grid"] else 0
    H, caption = decoder.width, caption or caption_tokens()
    number = _bytes_of(values["dtype"], values["device"])
    retrieval = values["retrieval_weight"] > 0 or values["ret_token_weight"] > 0
    prompt = 12 + values["visual_tokens"] + G + values["neighbour_captions"] * (caption + 1)
    # (images, captions an image, the parameters that say so) of a step, and of a self-critical one
    steps = [(values["batch_size"], values["captions_per_image"] or captions_an_image(), BATCH_OF)]
    if values["reward_steps"]:
        steps.append((values["reward_batch_size"], values["reward_samples"], REWARD_BATCH_OF))
    B, captions, batch_of = max(steps, key=lambda step: step[0] * (prompt + step[1] * (caption + 1)))
    row = prompt + captions * (caption + 1) + ((caption + 8) if retrieval else 0)
    lower = ("instructions_per_image",) if values["instruction_share"] else ()
    if lower:
        image, number_asked = values["visual_tokens"] + G, values["instructions_per_image"]
        seconds = math.ceil(number_asked * two_images_share()) * (image + TWO_IMAGES_WORDS)
        asked = image + number_asked * INSTRUCTION + seconds
        row = max(row, asked + ((caption + 8) if retrieval else 0))
    drawn = values["reward_batch_size"] * values["reward_samples"] if values["reward_steps"] else 0
    labels = B * (captions * (caption + 1) + retrieval)
    # values a token that the backward pass of a frozen LLaMA layer needs; norms and adapters compute in float32
    adapters = len(values["lora_targets"]) if values["lora_rank"] else 0
    layer = 8 * H + (4 * H * adapters if number < 4 else 8 * H * bool(adapters)) + number * (4 * H + 3 * decoder.middle)
    lora = values["lora_rank"] * adapters * 2 * H * decoder.layers  # a target is about H x H
    trained = lora + P * H * (values["visual_tokens"] + bool(G)) + (P + H) * values["retrieval_dim"]
    rows = min(4096, len(meta["image_ids"]))
    return [
        Part(
            _decoder_bytes(decoder, number, values["four_bit"]),
            "the language model's weights",
            ("language_model", "dtype"),
        ),
        Part(16 * trained, "what trains, with gradients and moments", ("lora_rank", "visual_tokens", "retrieval_dim")),
        Part(20 * trained, "the best weights so far and a checkpoint", ("lora_rank", "visual_tokens"), False),
        Part(
            min(values["chunk"] or B, B) * row * layer * decoder.layers * WORKING,
            "the rows of a batch",
            (*batch_of, "neighbour_captions", "visual_tokens", *lower),
        ),
        Part(4 * B * row**2, "attention masks", batch_of[::-1]),
        Part(4 * 4 * labels * decoder.vocabulary, "logits of a batch", batch_of),
        Part(
            number * drawn * (prompt + LONGEST_DRAW) * 2 * decoder.key_width * (decoder.layers + 2),
            "keys and values of drawn captions",
            REWARD_BATCH_OF,
        ),
        # two views of the training images as they are joined, and all views of some while they are read
        Part((24 * rows + 14 * min(rows, 256) * V) * (1 + G) * P, STATISTICS, ("use_grid",), False),
        Part(
            8 * (B + values["retrieval_negatives"]) * (P + values["retrieval_dim"]),
            "features of other images",
            ("retrieval_negatives",),
        ),
    ]


def estimate_generate_captions(values: dict) -> list[Part]:
    """The parts of captioning: the decoder, its cache a running row, logits, and the reading of candidates."""
    config = read_known(paths.FINETUNED / "config.json", "no captioner yet")
    decoder, meta = decoder_size(config["language_model"]), features_meta()
    shape, near = config["settings"], config["prompting"]["neighbour_captions"]
    number = _bytes_of(config["dtype"], values["device"])
    V, G, P = meta["views"], shape["grid_cells"], meta["dims"]["pooled"]
    B, caption = values["batch_size"], caption_tokens()
    prefix = 12 + shape["visual_tokens"] + G + near * (caption + 1)
    rows = B * max(values["beams"], values["samples"], 1)
    # beams: the words' logits, with [RET], as log-probabilities, as totals; draws: shares and their sums in float64
    logits = 4 * 4 * B * values["beams"], 32 * B * values["samples"]
    four_bit, weights = config.get("four_bit", False), "the language model's weights"
    size = _decoder_bytes(decoder, number, four_bit)
    if config["dtype"] == "float32" and not four_bit and shape["lora_rank"]:
        size, weights = 2 * size, f"{weights}, with the adapters added and without"
    parts = [
        Part(size, weights),
        Part(
            number * rows * (prefix + values["max_new_tokens"]) * 2 * decoder.key_width * (decoder.layers + 2),
            "keys and values of captions in the making",
            ("batch_size", "samples" if values["samples"] > values["beams"] else "beams", "max_new_tokens"),
        ),
        Part(
            max(logits) * decoder.vocabulary,
            "logits of captions in the making",
            ("batch_size", "samples" if logits[1] > logits[0] else "beams"),
        ),
        Part(number * B * prefix * 3 * (decoder.width + decoder.middle), "the prompts of a batch", ("batch_size",)),
        Part(14 * B * V * (1 + G) * P, "features of a batch", ("batch_size",), False),
    ]
    if any(values["likelihood_weights"]):
        read = values["beams"] + values["samples"] + values["pool_candidates"]
        images, tokens = max(1, B // 4), read * (caption + 1)
        size = 3 * 4 * images * tokens * decoder.vocabulary + 3 * 4 * min(8, images) * (prefix + tokens) ** 2
        parts.append(Part(size, "the likelihoods of candidates", ("batch_size", "samples", "pool_candidates", "beams")))
    return parts


ESTIMATES = {
    "adapt_encoder": estimate_adapt_encoder,
    "encode_images": estimate_encode_images,
    "finetune_lora": estimate_finetune_lora,
    "generate_captions": estimate_generate_captions,
}


@cache
def _captions(table: Path) -> tuple[int, int]:
    """(tokens of a rather long caption, captions of an image with rather many)."""
    if not table.is_file():
        raise SizeUnknown("no caption table yet")
    from rsvlm.data.table import load_table  # here: pandas takes long to import

    captions = load_table(table, columns=["captions"])["captions"]
    letters = captions.explode().str.len().sort_values(ignore_index=True)
    counts = captions.list.len().sort_values(ignore_index=True)
    if letters.empty:
        raise SizeUnknown("the caption table is empty")
    long, many = (int(sizes[int(LONG * (len(sizes) - 1))]) for sizes in (letters, counts))
    return int(long / LETTERS_A_TOKEN) + 2, many


def caption_tokens() -> int:
    """Tokens of a rather long caption of this study."""
    return _captions(paths.IMAGE_TABLE)[0]


def captions_an_image() -> int:
    """Captions of an image with rather many, in this study."""
    return _captions(paths.IMAGE_TABLE)[1]


def two_images_share() -> float:
    """Share of this study's training instructions that are about two images; 0 before any are made."""
    from rsvlm.data.task_files import TWO_IMAGES  # here: it imports pandas

    file, counts = paths.INSTRUCTIONS / "about.json", Counter()
    for own in read_json(file)["by_source"].values() if file.is_file() else ():
        counts.update(own.get("train", {}))
    return counts[TWO_IMAGES] / max(1, counts.total())


def features_meta() -> dict:
    """What meta.json says of this study's features."""
    return read_known(paths.FEATURES / "meta.json", "no features yet")


def _decoder_bytes(decoder: Decoder, number: float, four_bit: bool) -> float:
    """Bytes of a language model's weights: in 4 bits all but the words' matrices of input and output (counted as two)."""
    words = 2 * decoder.vocabulary * decoder.width if four_bit else decoder.parameters
    return number * words + FOUR_BIT * max(0, decoder.parameters - words)


def _tower(tower: Tower, tokens: int, training: bool, number: float) -> float:
    """Bytes of activations an input of that many tokens; without a backward pass a layer's are alive together."""
    return TOWER_VALUES * tower.width * tokens * number * (tower.layers if training else 1)


def _bytes_of(name: str, device: str, mixed: float = 2) -> float:
    """Bytes a number in a precision or dtype; ``mixed`` where bf16 is used. "auto" is what the machine has."""
    if name == "auto":
        on_gpu = device != "cpu" and gpu_memory() is not None
        name = "bf16" if on_gpu or _has_bf16() else "fp32"
    return {"fp32": 4, "float32": 4}.get(name, mixed)


@cache
def _has_bf16() -> bool:
    """Whether this processor multiplies in bfloat16, as the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(errors="replace") if cpuinfo.is_file() else ""
    return "avx512_bf16" in text or "amx_bf16" in text


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.1f} GB"


def _elsewhere(part: Part, values: dict) -> str:
    """What to do where the lever is another stage's parameter, or none of this section's."""
    if part.what == STATISTICS:
        return " or encode_images' grid and views"
    if not any(name in values for name in part.lower):
        return ": take a smaller language_model in finetune_lora"
    return ""
