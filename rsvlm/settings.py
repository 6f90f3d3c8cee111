"""What can be chosen: every setting with its type, default, meaning, unit and bounds, defined here and nowhere else.

Defaults are those of the default study. A stage of the study takes several of these classes as one section of
params.yaml (``rsvlm.study.settings``); its notebook's parameters cell and the files of parameters are written from them.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from reprlib import Repr
from types import GenericAlias, UnionType
from typing import Any, Literal, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from rsvlm.safe_text import fault_in

LONGEST_PART = 255  # bytes of a name between two slashes, on most disks
LONGEST_TEXT = 4096  # characters of a path, or of words
DEEPEST, MOST_VALUES = 16, 10_000  # of lists and mappings in a value; the longest are lists of classes
LARGEST = 10**18  # of a whole number; no setting comes near
LONGEST_LIST = 32  # values of a list of numbers: each is tried with each of the other lists'


@dataclass(frozen=True)
class Within:
    """What a number, or each of a list, may be, and why no less and no more."""

    low: float
    high: float
    why: str
    above: bool = False  # above ``low`` instead of at least
    below: bool = False  # below ``high`` instead of at most

    def holds(self, value: float) -> bool:
        """Whether the value lies within."""
        return (self.low < value or not self.above and value == self.low) and (
            value < self.high or not self.below and value == self.high
        )

    def __str__(self) -> str:
        low, high = "above" if self.above else "at least", "below" if self.below else "at most"
        return f"{low} {self.low:,} and {high} {self.high:,}"


def setting(
    default: object, meaning: str, within: Within | None = None, *, quick: object = None, words: bool = False
) -> Any:
    """A field of ``Settings``.

    Args:
        meaning: with its unit; a line.
        within: the bounds of a number; every number has them.
        quick: the notebook's own value, where the default would take more than a minute by hand.
        words: a text that is read, and no name or path, whose parts a disk limits.
    """
    extra = {"within": within, "quick": default if quick is None else quick, "words": words}
    return Field(default=default, description=meaning, json_schema_extra=extra)


class Settings(BaseModel):
    """Checked settings, read-only. Types are strict; an int passes as a float, NaN and infinity as nothing.

    Raises:
        ValueError: a line for each unknown name (with the closest right one), wrong type and number out of bounds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    def __init__(self, /, **values: object) -> None:
        faults = [fault for name, value in values.items() if (fault := self._fault_in(name, value))]
        if faults:
            raise ValueError("\n  ".join(faults))
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ValueError("\n  ".join(_problems(error, type(self), values))) from None

    @field_validator("*", mode="after")
    @classmethod
    def _check_bounds(cls, value: object, info: ValidationInfo) -> object:
        within, name = bounds(cls, info.field_name), info.field_name
        numbers = [] if value is None or within is None else value if isinstance(value, list) else [value]
        if len(numbers) > LONGEST_LIST:
            raise ValueError(
                f"{name!r} holds {len(numbers)} values, at most {LONGEST_LIST} are tried: each with all others"
            )
        wrong = [number for number in numbers if not within.holds(number)]
        if wrong:
            raise ValueError(
                "\n  ".join(f"{name!r} is {number!r}, but must be {within}: {within.why}" for number in wrong)
            )
        return value

    @classmethod
    def _fault_in(cls, name: str, value: object) -> str | None:
        """Where in a value something stands that can be no setting, whatever its type, and what; None: nowhere."""
        field = cls.model_fields.get(name)
        words = field is not None and (field.json_schema_extra or {}).get("words")
        waiting, count = [(value, 0, shown(name))], 0
        while waiting:
            one, depth, place = waiting.pop()
            count += 1
            if isinstance(one, str):
                if fault := fault_in(one, breaks=True):
                    return f"{place} holds {fault}: {shown(one)}; take it out"
                if len(one) > LONGEST_TEXT or not words and len(max(one.split("/"), key=len).encode()) > LONGEST_PART:
                    kind = f"text here ({LONGEST_TEXT:,})" if words else f"path, or a name in it ({LONGEST_PART} bytes)"
                    return f"{place} holds {len(one):,} characters, {shown(one)}, more than any {kind}: shorten it"
            elif isinstance(one, int) and abs(one) > LARGEST:
                within = bounds(cls, name) if field else None
                return f"{place} is {shown(one)}, but must be {within or f'below {LARGEST:,}'}"
            elif isinstance(one, list | tuple):
                waiting += [(part, depth + 1, f"{place}[{number}]") for number, part in enumerate(one[:MOST_VALUES])]
            elif isinstance(one, Mapping):
                waiting += [(key, depth + 1, f"{place}, a key in it,") for key in one]
                waiting += [(part, depth + 1, f"{place}[{shown(key)}]") for key, part in one.items()]
            if depth > DEEPEST or count + len(waiting) > MOST_VALUES:
                return f"{place} is nested too deep, or holds more than {MOST_VALUES:,} values: take some out"
        return None

    @classmethod
    def of_mapping(cls, values: Mapping) -> Self:
        """These settings of a mapping as a file has it, whose names may be anything, also no texts."""
        return cls(**{name if isinstance(name, str) else shown(name): value for name, value in values.items()})

    @classmethod
    def of(cls, names: Mapping[str, object]) -> Self:
        """These settings among other names: a notebook's ``globals()``, or settings of a class that has all of these."""
        values = dict(names)
        return cls(**{name: values[name] for name in cls.model_fields})


def bounds(kind: type[Settings], name: str) -> Within | None:
    """The bounds of a setting; None where it is no number."""
    return (kind.model_fields[name].json_schema_extra or {}).get("within")


def type_text(annotation: object) -> str:
    """A type as a notebook's parameters cell has it: ``list[float]``, ``int | None``; a choice of words is ``str``."""
    if get_origin(annotation) is Literal:
        return type(get_args(annotation)[0]).__name__
    if isinstance(annotation, UnionType):
        return " | ".join(type_text(one) for one in get_args(annotation))
    if isinstance(annotation, GenericAlias):
        return f"{annotation.__origin__.__name__}[{', '.join(type_text(one) for one in get_args(annotation))}]"
    return "None" if annotation is type(None) else annotation.__name__


def shown(value: object) -> str:
    """A value for an error message: as Python writes it, in the middle of what is long left out."""
    if isinstance(value, int) and abs(value) > LARGEST:
        return f"about {'-' * (value < 0)}10 ** {int(value.bit_length() * math.log10(2))}"
    return _SHORT.repr(value)


_SHORT = Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict, _SHORT.maxstring, _SHORT.maxother = 4, 32, 8, 120, 120


def closest_name(name: object, known: Iterable[str], older: Mapping[str, str] | None = None) -> str:
    """The end of an error message about a wrong name: the closest known one, or all of them.

    One that holds the wrong name or is held by it is close, too: ``table`` means ``caption_table``.

    Args:
        older: known names that are still read -> what they are called now; that is what the message says.
    """
    older = older or {}
    known = [str(one) for one in known]
    close = get_close_matches(str(name), known, 1)
    if not close and len(str(name)) > 2:
        close = [one for one in known if str(name).lower() in one.lower() or one.lower() in str(name).lower()]
    if close:
        return f"; did you mean {older.get(close[0], close[0])!r}?"
    return f"; known: {', '.join(name for name in known if name not in older)}"


def _problems(error: ValidationError, kind: type[Settings], values: Mapping) -> list[str]:
    """A line for each setting that pydantic refused."""
    lines = {}
    for problem in error.errors(include_url=False):
        name = str(problem["loc"][0]) if problem["loc"] else ""
        if problem["type"] == "extra_forbidden":
            free = [one for one in kind.model_fields if one not in values] or list(kind.model_fields)
            lines[name] = f"unknown name {name!r}{closest_name(name, free)}"
        elif problem["type"] == "missing":
            lines[name] = f"{name!r} is missing"
        elif problem["type"] == "value_error":
            lines[name] = str(problem["ctx"]["error"])
        elif problem["type"] == "literal_error":
            lines[name] = f"{name!r} must be {problem['ctx']['expected']}, but is {shown(problem['input'])}"
        else:
            value, wanted = values[name], type_text(kind.model_fields[name].annotation)
            lines[name] = f"{name!r} must be {wanted}, but is {shown(value)} ({type(value).__name__})"
    return list(lines.values())


SHARE = Within(0, 1, "it is a share")
SHARE_BELOW = Within(0, 1, "it is a share, and of 1 nothing is left", below=True)
RATE = Within(0, 1, "AdamW takes no step at 0, and none that holds above 1", above=True)
WEIGHT = Within(0, 1000, "below 0 the worst would be chosen; at 1,000 nothing else counts")
LOSS_WEIGHT = Within(0, 1000, "0 leaves it out; at 1,000 captions are not learnt")
DECAY = Within(0, 1, "1 would take a weight away at each step")
TEMPERATURE = Within(0, 100, "at 0 the softmax divides by it; above 100 all count alike", above=True)
SIDE = Within(32, 2048, "below 32 pixels EfficientNet-Lite2's last map is empty; memory grows with the square")
BATCH = Within(1, 32_768, "CLIP's own training had 32,768; memory ends long before (the estimate at a start tells)")
CHUNK = Within(0, 32_768, "0 takes all of a batch, as does more than it has")
STEPS = Within(1, 10_000_000, "at a tenth of a second each, 10 million are two weeks")
IMAGES = Within(0, 100_000_000, "0 takes all")
NEIGHBOURS = Within(1, 1000, "captions of the 1,000th nearest image tell of another place")
SEED = Within(0, 2**32 - 1, "generators take 32 bits")

Precision = Literal["auto", "fp32", "bf16"]


class Augmentation(Settings):
    """What training images go through. Turns and mirror images are wrong for captions that tell of north or left.

    A random crop at 192 pixels shows things about as large as the whole image does at 224 (Touvron et al. 2019, FixRes).
    """

    crop_size: int | None = setting(
        None, "side of the training input, pixels; null takes image_size; smaller is faster", SIDE, quick=64
    )
    crop_min: float = setting(
        0.7,
        "smallest share of an image's area that a random crop keeps",
        Within(0, 1, "a crop keeps something, and no more than the image", above=True),
    )
    rotations: bool = setting(True, "quarter turns")
    flips: bool = setting(True, "mirror images")
    brightness: float = setting(
        0.2,
        "random factor between 1 - brightness and 1 + brightness",
        Within(0, 1, "at 1 images may turn black", below=True),
    )


class AdaptSettings(Augmentation):
    """How an encoder is adapted. The mean of weights: Polyak and Juditsky 1992."""

    train: Literal["all", "projections"] = setting("all", "all weights, or projections only")
    epochs: int = setting(
        2,
        "passes over the training images; 0 keeps the encoder as it is",
        Within(0, 1000, "0 keeps the encoder; recall on validation images falls long before 1,000"),
        quick=1,
    )
    batch_size: int = setting(
        60, "images a step", Within(2, 32_768, f"one pair has nothing to be told from; {BATCH.why}")
    )
    captions_per_image: int = setting(
        1,
        "captions drawn for each image of a batch",
        Within(1, 16, "data sets have 5 an image; each text of a batch costs a pass of the text tower and its memory"),
    )
    chunk: int = setting(0, "images, and captions, whose activations are in memory together (GradCache); 0: all", CHUNK)
    image_lr: float = setting(4.0e-4, "highest learning rate of the image tower", RATE)
    text_lr: float = setting(6.0e-5, "highest learning rate of the text tower", RATE)
    projection_lr: float = setting(1.0e-3, "highest learning rate of the projections", RATE)
    weight_decay: float = setting(0.01, "AdamW's", DECAY)
    freeze_blocks: int = setting(
        3,
        "first blocks of the image tower left as they are; frozen ones cost less time",
        Within(0, 100, "no tower has more blocks"),
    )
    average_decay: float = setting(
        0.0,
        "of the running mean of the weights, which is kept instead of them; 0: none",
        Within(0, 1, "at 1 the mean would stay at the first weights", below=True),
    )
    precision: Precision = setting("auto", "auto (bf16 where the hardware has it), fp32 or bf16")
    checkpoint_every: int = setting(50, "steps between two checkpoints", STEPS)
    seed: int = setting(0, "of data order, captions and augmentation", SEED)


class LanguageSettings(Settings):
    """How a head from a multilingual text tower into the encoder's space is trained."""

    hidden: int = setting(
        1024,
        "width of the head's network beside its linear map",
        Within(1, 65_536, "wider than the widest text tower's own layers nothing is gained"),
    )
    captions_per_image: int = setting(
        2,
        "different captions of a training image and language, evenly spread; 0: all",
        Within(0, 1000, "0 takes all; data sets have 5 an image"),
    )
    steps: int = setting(200, "optimiser steps a recipe", STEPS)
    batch_size: int = setting(
        128, "images a step", Within(2, 32_768, f"one pair has nothing to be told from; {BATCH.why}"), quick=32
    )
    head_lr: float = setting(0.002, "highest learning rate", RATE)
    weight_decay: float = setting(0.01, "AdamW's", DECAY)
    distillation_weight: float = setting(
        1.0, "distilled: of the distance to the English caption's embedding", LOSS_WEIGHT
    )
    validation_every: int = setting(50, "steps between two measurements", STEPS)
    checkpoint_every: int = setting(500, "steps between two checkpoints", STEPS)
    seed: int = setting(0, "of the new weights, data order and captions", SEED)


class Encoding(Settings):
    """How images and captions are encoded."""

    views: Literal[1, 2, 4, 8] = setting(
        2,
        "8 = quarter turns and mirror images, 4 = quarter turns, 2 = image and mirror image, 1 = upright only",
    )
    grid: int = setting(
        2,
        "cells along a side of the grid features; 0 leaves them out",
        Within(0, 16, "ViT-L/14 sees 16 x 16 patches; each cell is a visual token of every prompt"),
    )
    crops: Literal["never", "auto", "always"] = setting(
        "never",
        "cells from crops of the picture, a pass each: auto = where a side is longer than twice the encoder's input",
    )
    batch_size: int = setting(32, "images at a time", BATCH)
    capitalise: bool = setting(True, 'captions as "A river." (RemoteCLIP\'s protocol)')
    precision: Precision = setting("auto", "auto (bf16 where the hardware has it), fp32 or bf16")

    @model_validator(mode="after")
    def _check_crops(self) -> Self:
        if self.crops != "never" and not self.grid:
            raise ValueError(f"'crops' {self.crops!r} needs a 'grid' of 1 or more: with 0 there are no cells")
        return self


class EarthWindows(Settings):
    """How the globe is cut into windows."""

    window_pixels: int = setting(
        48,
        "side of a window, pixels of the globe; the training tiles have 48",
        Within(16, 512, "below 16 nothing is seen, 512 pixels are 34 degrees"),
    )
    overlap: float = setting(
        0.5, "share of a window that the next one covers again", Within(0.0, 0.9, "windows must move on"), quick=0.0
    )
    land_share: float = setting(
        0.25, "windows with less land are left out: the models know no open sea", Within(0.0, 1.0, "it is a share")
    )
    batch_size: int = setting(64, "windows at a time", BATCH)
    precision: Precision = setting("auto", "auto (bf16 where the hardware has it), fp32 or bf16")


class Pooling(Settings):
    """Which training images' captions form the pool of an image, and their weights."""

    neighbours: int = setting(20, "nearest training images whose captions form an image's pool", NEIGHBOURS)
    neighbour_temperature: float = setting(0.05, "of their weights exp(cosine difference / temperature)", TEMPERATURE)


class Prompting(Pooling):
    """Which captions of the pool a captioner reads."""

    neighbour_captions: int = setting(
        1,
        "most consensual captions of the pool in the prompt; 0: none",
        Within(0, 20, "each lengthens every prompt"),
    )


class CapRetShape(Settings):
    """The shape of a captioner, as far as it is chosen."""

    visual_tokens: int = setting(
        1,
        "visual tokens made of the pooled features",
        Within(1, 64, "each lengthens every prompt and has a projection of its own"),
    )
    retrieval_dim: int = setting(
        256, "width of the retrieval space", Within(1, 4096, "no encoder here gives more numbers to project")
    )
    lora_rank: int = setting(
        16,
        "of the adapters; 0 leaves the decoder frozen, as in the paper",
        Within(0, 512, "0 leaves the decoder frozen; at 512 adapters are as large as a small decoder"),
    )
    lora_alpha: float = setting(
        32.0,
        "the adapters count with lora_alpha / lora_rank",
        Within(0, 10_000, "the adapters count with lora_alpha / lora_rank", above=True),
    )
    lora_dropout: float = setting(0.0, "share of the adapters' inputs set to zero", SHARE_BELOW)
    lora_targets: list[str] = setting(["q_proj", "k_proj", "v_proj", "o_proj"], "linear layers that get adapters")

    @model_validator(mode="after")
    def _check_targets(self) -> Self:
        if self.lora_rank and not self.lora_targets:
            raise ValueError(
                f"'lora_rank' {self.lora_rank} needs 'lora_targets'; lora_rank 0 leaves the decoder frozen"
            )
        return self


class CapRetSettings(CapRetShape):
    """The whole shape of a captioner: what is chosen, and what the encoder's features give."""

    feature_dim: int = Field(ge=1, description="P, width of the encoder's pooled features")
    grid_cells: int = Field(default=0, ge=0, description="G, cells that become one visual token each; 0: none")

    @property
    def tokens_per_image(self) -> int:
        """Visual tokens an image."""
        return self.visual_tokens + self.grid_cells


class CaptioningSettings(Settings):
    """How a captioner is trained."""

    captions: Literal["distinct", "released"] = setting(
        "distinct", "an image's different captions count alike; released: repeated ones count more"
    )
    captions_per_image: int = setting(
        1,
        "captions of an image in a step, behind one prefix; 0: all",
        Within(0, 64, "0 takes all; each lengthens the rows of a batch"),
    )
    steps: int = setting(54, "optimiser steps", STEPS, quick=4)
    batch_size: int = setting(8, "images a step", BATCH, quick=4)
    chunk: int = setting(0, "images of a step whose activations are in memory together; 0: all", CHUNK)
    shard: bool = setting(False, "spread the frozen language model over the processes, where there are several (FSDP2)")
    projection_lr: float = setting(4.0e-3, "highest learning rate of the projections into the language model", RATE)
    retrieval_lr: float = setting(1.0e-3, "highest learning rate of [RET] and the retrieval projections", RATE)
    lora_lr: float = setting(1.0e-3, "highest learning rate of the adapters", RATE)
    warmup_steps: int = setting(
        5, "steps in which the learning rates rise; then a cosine", Within(0, STEPS.high, STEPS.why), quick=2
    )
    weight_decay: float = setting(0.0, "AdamW's", DECAY)
    retrieval_weight: float = setting(
        1.0, "of InfoNCE in the loss; 0 with ret_token_weight 0 trains captions only", LOSS_WEIGHT
    )
    ret_token_weight: float = setting(0.1, "of emitting [RET] in the loss", LOSS_WEIGHT)
    retrieval_negatives: int = setting(
        256,
        "training images beyond the batch's in InfoNCE",
        Within(0, 65_536, "their features are read and projected at each step"),
    )
    retrieval_prompts: float = setting(
        0.25, 'share of retrieval texts behind an instruction such as "Show me an image:"', SHARE
    )
    varied_prompts: float = setting(0.5, 'share of prompts that are not the fixed "Caption:"', SHARE)
    neighbour_dropout: float = setting(0.2, "share of training prompts without the neighbours' captions", SHARE)
    feature_dropout: float = setting(0.0, "share of feature values set to their mean", SHARE)
    instruction_share: float = setting(
        0.0, "share of the images of a step that get instructions instead of a caption", SHARE
    )
    instructions_per_image: int = setting(
        2,
        "instructions of such an image in a step, behind one image",
        Within(1, 64, "each lengthens the rows of a batch; an image has some tens"),
    )
    # With 1.0, 60 steps of the default study ended at a validation caption loss of 3.20 instead of 2.41 without
    # instructions, and at a higher loss of answers, too: few short answers make a noisy gradient. With 0.3 at 2.50.
    instruction_weight: float = setting(0.3, "of the answers in the loss, each answer counting alike", LOSS_WEIGHT)
    views: Literal["all", "upright"] = setting(
        "all",
        "a random turned or mirrored view each step; upright: never (captions that tell of north or left)",
    )
    validation_every: int = setting(27, "steps between two measurements", STEPS, quick=4)
    validation_images: int = setting(32, "at most so many, evenly spaced; 0: all", IMAGES, quick=8)
    keep: Literal["best", "last"] = setting("best", "weights kept: best on validation, or last")
    checkpoint_every: int = setting(50, "steps between two checkpoints", STEPS)
    seed: int = setting(0, "of the new weights, data order, captions, prompts and dropout", SEED)

    @property
    def trains_instructions(self) -> bool:
        """Whether any image gets an instruction, where there are any."""
        return self.instruction_share > 0 and self.instruction_weight > 0

    @property
    def trains_retrieval(self) -> bool:
        """Whether the text-only branch is computed at all."""
        return self.retrieval_weight > 0 or self.ret_token_weight > 0


class RewardSettings(Settings):
    """How a captioner trains on captions of its own (self-critical training, Rennie et al. 2017)."""

    reward_steps: int = setting(
        0,
        "steps of self-critical training after the others: own captions, rewarded by CIDEr; 0: none",
        Within(0, STEPS.high, "0 leaves it out"),
    )
    reward_batch_size: int = setting(16, "images a step in it", BATCH, quick=4)
    reward_samples: int = setting(
        5,
        "captions drawn an image in it; each is compared with the mean of the others",
        Within(2, 256, "one has no other to be better than; each draw has a cache of its own"),
    )
    reward_lr: float = setting(3.0e-4, "highest learning rate in it, of all that trains", RATE)
    reward_every: int = setting(25, "steps between two measurements in it: CIDEr of greedy captions", STEPS)


class TaskSettings(Settings):
    """Which instructions are made, and how many."""

    kinds: list[str] = setting(["all"], "of tasks: all, or names of rsvlm.data.instruction_kinds.KINDS; []: none")
    tasks_per_image: int = setting(6, "of a training image, at most", Within(1, 1000, "each is a line of a file"))
    test_tasks: int = setting(
        24,
        "of a kind and source in validation and in test, at most",
        Within(1, 100_000, "each is answered four times over"),
        quick=8,
    )
    wordings: int = setting(
        2, "held-out wordings that ask one question in validation and test", Within(1, 8, "a kind has 8 of them")
    )
    seed: int = setting(0, "of what is asked and how", SEED)


class Generation(Settings):
    """How captions are made."""

    prompt: str = setting("Caption:", "instruction behind the image", words=True)
    view: Literal["mean", "upright"] = setting(
        "mean", "features averaged over an image's turned and mirrored views, or upright"
    )
    beams: int = setting(
        1,
        "of the beam search; 1 is greedy",
        Within(1, 64, "captions grow dull long before; each beam has a cache of its own"),
    )
    samples: int = setting(
        0,
        "captions drawn an image, as more candidates and as voters; 0: none",
        Within(0, 256, "each draw has a cache of its own"),
    )
    sample_temperature: float = setting(
        0.7,
        "of drawing",
        Within(0, 10, "at 0 the softmax divides by it; above 10 words come at random", above=True),
    )
    length_penalty: float = setting(
        1.0,
        "beams are ranked by log-probability / tokens ** length_penalty",
        Within(-10, 10, "beyond, only the shortest or the longest wins"),
    )
    pool_candidates: int = setting(
        4,
        "captions of the neighbours' pool among the candidates; 0: only the captioner's own",
        Within(0, 200, "each is read by the captioner for every image"),
    )
    max_new_tokens: int = setting(
        40, "longest caption, tokens", Within(1, 1024, "a caption has some 15; the cache grows with each"), quick=24
    )
    seed: int = setting(0, "of drawing and of the wrong images", SEED)


class Combination(Settings):
    """How similarities of an image and a text are made of several."""

    neighbours: int = setting(10, "nearest training images whose captions stand for an image", NEIGHBOURS)
    temperature: float = setting(
        0.05, "of the softmax over the neighbours' cosines; smaller trusts the nearest more", TEMPERATURE
    )
    hubness_neighbours: int = setting(
        100,
        "nearest training items that tell how near to everything an answer is (CSLS)",
        Within(1, 100_000, "what is near to 100,000 training items is no hub, but everything"),
    )


class LocalWorkers(Settings):
    """Processes of this machine that share bulk work: `cluster: {local: {workers: 2}}`."""

    workers: int = setting(
        2,
        "processes, each with the model",
        Within(1, 1024, "no machine has more than 1,024 cores for one process each"),
    )
    threads: int = setting(
        1, "shards at a time in each process", Within(1, 1024, "so many threads of one process wait for each other")
    )


class ClusterSettings(Settings):
    """Where bulk work is computed: said in `user/cluster.yaml` of a study, or by `RSVLM_CLUSTER`.

    It belongs to a machine, not to a study: results are the same bytes, so no stage has it among its parameters.
    """

    cluster: str | dict = setting(
        "none",
        "none, {local: {workers: 2, threads: 1}}, a scheduler's address (tcp://HOST:8786), or a file of dask-jobqueue",
    )

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        self.choice
        return self

    @property
    def choice(self) -> LocalWorkers | str | None:
        """Local workers, an address or a file; None: this process."""
        told = self.cluster
        if isinstance(told, dict):
            if told.keys() != {"local"} or not isinstance(told["local"], dict | None):
                raise ValueError(f"'cluster': {shown(told)}; as a mapping it is {{local: {{workers: 2, threads: 1}}}}")
            return LocalWorkers.of_mapping(told["local"] or {})
        if told == "none":
            return None
        if "://" not in told and not told.endswith((".yaml", ".yml")):
            raise ValueError(
                f"'cluster': {shown(told)} is neither none, nor {{local: {{workers: 2}}}}, nor an address such as "
                "tcp://HOST:8786, nor a file of dask-jobqueue (.yaml)"
            )
        return told


class VlmSettings(Settings):
    """Which vision-language model captions, and how it is asked."""

    captioner: str = setting(
        "HuggingFaceTB/SmolVLM-256M-Instruct", "image-text-to-text model: a folder, or a name on Hugging Face"
    )
    revision: str | None = setting(None, "of a name on Hugging Face: a commit, tag or branch; null: its main branch")
    remote_code: str | None = setting(
        None,
        "permits Python code that the model brings: NAME@REVISION, a commit whose code you have read, or the folder's path "
        "as given; null: none is run",
    )
    prompt: str = setting(
        "Describe the satellite image in one short sentence.",
        "instruction beside the picture; empty for BLIP and GIT",
        words=True,
    )
    image_size: int | None = setting(
        None,
        "longest side that pictures are shrunk to first, pixels; null: as the model's processor does",
        Within(28, 8192, "a patch of Qwen2-VL has 28 pixels; visual tokens and memory grow with the square"),
    )
    max_new_tokens: int = setting(
        40, "longest caption, tokens", Within(1, 1024, "a caption has some 15; the cache grows with each"), quick=24
    )
    one_sentence: bool = setting(True, "keep the first sentence only")
    batch_size: int = setting(4, "images at a time", BATCH)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto", "of the weights; auto: bfloat16 where the hardware has it, else float32"
    )
    four_bit: bool = setting(False, "weights in 4 bits (NF4, bitsandbytes; CUDA GPUs only)")
    device_map: str | None = setting(None, "auto: spread over all GPUs; null: on one device")

    @model_validator(mode="after")
    def _check_device_map(self) -> Self:
        if self.device_map not in (None, "auto"):
            raise ValueError(f"'device_map' must be null or 'auto', but is {self.device_map!r}")
        return self


class VlmLoraSettings(Settings):
    """How a vision-language model is trained on captions (LoRA, Hu et al. 2022)."""

    lora_rank: int = setting(
        16, "of the adapters", Within(1, 512, "at 512 adapters are as large as a small language model")
    )
    lora_alpha: float = setting(
        32.0,
        "the adapters count with lora_alpha / lora_rank",
        Within(0, 10_000, "the adapters count with lora_alpha / lora_rank", above=True),
    )
    lora_targets: list[str] = setting(
        ["q_proj", "k_proj", "v_proj"], "linear layers of the language model that get adapters"
    )
    steps: int = setting(200, "optimiser steps", STEPS, quick=4)
    batch_size: int = setting(4, "images a step", BATCH)
    lora_lr: float = setting(2.0e-4, "highest learning rate of the adapters", RATE)
    warmup_steps: int = setting(
        10, "steps in which the learning rate rises; then a cosine", Within(0, STEPS.high, STEPS.why), quick=2
    )
    weight_decay: float = setting(0.0, "AdamW's", DECAY)
    validation_every: int = setting(50, "steps between two measurements", STEPS, quick=4)
    validation_images: int = setting(32, "at most so many, evenly spaced; 0: all", IMAGES, quick=8)
    keep: Literal["best", "last"] = setting("best", "weights kept: best on validation, or last")
    checkpoint_every: int = setting(50, "steps between two checkpoints", STEPS)
    seed: int = setting(0, "of the new weights, data order and captions", SEED)


class OtherModel(VlmSettings):
    """A model measured beside the study: an encoder, a captioner, or files of what one found or said elsewhere.

    One of ``encoder``, ``captioner``, ``embeddings`` and ``captions``; the two files may stand together. Paths start
    from the project's root.
    """

    encoder: str | None = setting(None, "preset, open_clip:..., Hugging Face name or folder, as adapt_encoder takes it")
    weights: str | None = setting(None, "file of the weights of open_clip:ARCHITECTURE or of a preset")
    quick_gelu: bool | None = setting(None, "of open_clip's; null: as known, else the better on validation")
    captioner: str | None = setting(None, "image-text-to-text model: a folder, or a name on Hugging Face")
    adapter: str | None = setting(None, "folder of LoRA adapters of the captioner")
    finetune: dict | None = setting(
        None,
        "trains the captioner on the study's captions first: rsvlm.settings.VlmLoraSettings; {} takes its defaults",
        words=True,
    )
    embeddings: str | None = setting(None, "file or folder of vectors of images and texts, made elsewhere")
    captions: str | None = setting(None, "file of captions made elsewhere: JSON, JSON Lines, CSV, COCO's results")
    tasks: int = setting(
        0,
        "of make_instructions that the captioner answers, at most, whole questions, evenly spaced; 0: none",
        Within(0, 100_000, "each is a generation, of max_new_tokens at most"),
    )
    trained_on: list[str] | None = setting(None, "splits it was trained on, such as rsicd/train; null: unknown")

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        given = [name for name in ("encoder", "captioner", "embeddings", "captions") if getattr(self, name)]
        if not given:
            raise ValueError("nothing to measure: give one of 'encoder', 'captioner', 'embeddings', 'captions'")
        if len(given) > 1 and given != ["embeddings", "captions"]:
            raise ValueError(f"{' and '.join(map(repr, given))} are several models; give each a name of its own")
        for owner, names in (("encoder", OF_ENCODER), ("captioner", OF_CAPTIONER)):
            stray = sorted(name for name in names if name in self.model_fields_set)
            if stray and owner != given[0]:
                raise ValueError(f"{', '.join(map(repr, stray))}: for {owner!r} alone, which is not given")
        if self.finetune is not None:
            VlmLoraSettings.of_mapping(self.finetune)
            if self.adapter:
                raise ValueError("'finetune' makes adapters and 'adapter' brings some; give one of them")
        return self


OF_ENCODER = {"weights", "quick_gelu"}
OF_CAPTIONER = {*VlmSettings.model_fields, "adapter", "finetune", "tasks"} - {"captioner", "image_size"}
