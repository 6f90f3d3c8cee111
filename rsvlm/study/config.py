"""Parameters of a stage: what params.yaml says, held against what the notebook asks for.

YAML is read as version 1.2 (``1e-4`` is a number, ``no`` is a word). A name or a type that does not fit, or a number
outside its bounds, stops the run before the notebook's first cell.
"""

import ast
import difflib
import importlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nbformat import NotebookNode
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

PARAMETERS_TAG = "parameters"
# Stage -> function(values, root) that raises ValueError where values of the right types cannot be. It runs before the
# notebook starts, so what it imports has to be light.
CHECKERS = {
    "aggregate_data": "rsvlm.data.source_checks:check_sources",
}


@dataclass(frozen=True)
class Parameter:
    """One line ``name: type = default`` of a notebook's parameters cell."""

    name: str
    annotation: str
    default: object


@dataclass(frozen=True)
class Bound:
    """What a number may be, and why no less and no more: the arguments ``ge``, ``gt``, ``le``, ``lt`` of pydantic."""

    why: str
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def holds(self, value: float) -> bool:
        """Whether the value lies within."""
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )

    def __str__(self) -> str:
        low = f"at least {self.ge:,}" if self.ge is not None else f"above {self.gt:,}"
        high = f"at most {self.le:,}" if self.le is not None else f"below {self.lt:,}"
        return f"{low} and {high}"


SHARE = "it is a share"
BATCH = "CLIP's own training had 32,768; memory ends long before (the estimate at a stage's start tells)"
RATE = "AdamW takes no step at 0, and none that holds above 1"
WEIGHT = "below 0 the worst would be chosen; at 1,000 nothing else counts"
TEMPERATURE = "at 0 the softmax divides by it; above 100 all count alike"
EXAMPLES = "each is a row of pictures in the notebook"
PAGE_IMAGES = "a page holds all its pictures, and browsers grow slow with more"
SIDE = "below 32 pixels EfficientNet-Lite2's last map is empty; memory grows with the square"
STEPS = "at a tenth of a second each, 10 million are two weeks"
LONGEST_LIST = 32  # values of a list of numbers: each is tried with each of the other lists'

# Every number among a stage's parameters; "stage.name" goes before "name".
BOUNDS = {
    "seed": Bound("generators take 32 bits", ge=0, le=2**32 - 1),
    "threads": Bound("0 leaves it to torch; no machine has more than 1,024 cores for one process", ge=0, le=1024),
    "batch_size": Bound(BATCH, ge=1, le=32_768),
    "examples": Bound(EXAMPLES, ge=1, le=100),
    "weight_decay": Bound("1 would take a weight away at each step", ge=0, le=1),
    "bootstrap_resamples": Bound("intervals move in their third digit beyond 10,000", ge=1, le=100_000),
    "neighbours": Bound("captions of the 1,000th nearest image tell of another place", ge=1, le=1000),
    "temperature": Bound(TEMPERATURE, gt=0, le=100),
    "neighbour_temperature": Bound(TEMPERATURE, gt=0, le=100),
    "images": Bound(PAGE_IMAGES, ge=1, le=10_000),
    "thumbnail_pixels": Bound("below 16 nothing is seen, above 1,024 a page holds few", ge=16, le=1024),
    "page_megabytes": Bound("browsers open pages of 100 MB, if slowly", ge=0.1, le=100),
    # aggregate_data
    "max_images_per_split": Bound("null takes all", ge=1, le=100_000_000),
    # adapt_encoder
    "image_size": Bound(SIDE, ge=32, le=2048),
    "crop_size": Bound(SIDE, ge=32, le=2048),
    "epochs": Bound("0 keeps the encoder; recall on validation images falls long before 1,000", ge=0, le=1000),
    "adapt_encoder.batch_size": Bound(f"one pair has nothing to be told from; {BATCH}", ge=2, le=32_768),
    "adapt_encoder.captions_per_image": Bound(
        "data sets have 5 an image; each text of a batch costs a pass of the text tower and its memory", ge=1, le=16
    ),
    "image_lr": Bound(RATE, gt=0, le=1),
    "text_lr": Bound(RATE, gt=0, le=1),
    "projection_lr": Bound(RATE, gt=0, le=1),
    "freeze_blocks": Bound("no tower has more blocks", ge=0, le=100),
    "average_decay": Bound("at 1 the mean would stay at the first weights", ge=0, lt=1),
    "crop_min": Bound("a crop keeps something, and no more than the image", gt=0, le=1),
    "brightness": Bound("at 1 images may turn black", ge=0, lt=1),
    "cache_gigabytes": Bound("0 decodes anew each time; 100 TB are more than one disk", ge=0, le=100_000),
    # encode_images
    "encode_images.views": Bound("an image has eight: 1, 2, 4 or 8 of them", ge=1, le=8),
    "grid": Bound("ViT-L/14 sees 16 x 16 patches; each cell is a visual token of every prompt", ge=0, le=16),
    # finetune_lora
    "visual_tokens": Bound("each lengthens every prompt and has a projection of its own", ge=1, le=64),
    "retrieval_dim": Bound("no encoder here gives more numbers to project", ge=1, le=4096),
    "lora_rank": Bound("0 leaves the decoder frozen; at 512 adapters are as large as a small decoder", ge=0, le=512),
    "lora_alpha": Bound("the adapters count with lora_alpha / lora_rank", gt=0, le=10_000),
    "lora_dropout": Bound(f"{SHARE}, and of 1 nothing is left", ge=0, lt=1),
    "neighbour_captions": Bound("each lengthens every prompt", ge=0, le=20),
    "neighbour_dropout": Bound(SHARE, ge=0, le=1),
    "finetune_lora.captions_per_image": Bound("0 takes all; each lengthens the rows of a batch", ge=0, le=64),
    "steps": Bound(STEPS, ge=1, le=10_000_000),
    "retrieval_lr": Bound(RATE, gt=0, le=1),
    "learning_rate": Bound(RATE, gt=0, le=1),
    "warmup_steps": Bound(STEPS, ge=0, le=10_000_000),
    "retrieval_weight": Bound("0 leaves it out; at 1,000 captions are not learnt", ge=0, le=1000),
    "ret_token_weight": Bound("0 leaves it out; at 1,000 captions are not learnt", ge=0, le=1000),
    "retrieval_negatives": Bound("their features are read and projected at each step", ge=0, le=65_536),
    "retrieval_prompts": Bound(SHARE, ge=0, le=1),
    "varied_prompts": Bound(SHARE, ge=0, le=1),
    "feature_dropout": Bound(SHARE, ge=0, le=1),
    "validation_every": Bound(STEPS, ge=1, le=10_000_000),
    "validation_images": Bound("0 takes all", ge=0, le=100_000_000),
    "checkpoint_every": Bound(STEPS, ge=1, le=10_000_000),
    # generate_captions
    "beams": Bound("captions grow dull long before; each beam has a cache of its own", ge=1, le=64),
    "samples": Bound("each draw has a cache of its own", ge=0, le=256),
    "sample_temperature": Bound("at 0 the softmax divides by it; above 10 words come at random", gt=0, le=10),
    "length_penalty": Bound("beyond, only the shortest or the longest wins", ge=-10, le=10),
    "pool_candidates": Bound("each is read by the captioner for every image", ge=0, le=200),
    "pool_weights": Bound(WEIGHT, ge=0, le=1000),
    "sample_weights": Bound(WEIGHT, ge=0, le=1000),
    "likelihood_weights": Bound(WEIGHT, ge=0, le=1000),
    "max_new_tokens": Bound("a caption has some 15; the cache grows with each", ge=1, le=1024),
    # score_captions
    "human_draws": Bound("0 leaves the human row out; an image has some 5 captions to draw from", ge=0, le=1000),
    # score_retrieval
    "ret_weights": Bound("the dual encoder has the rest up to 1", ge=0, le=1),
    "neighbour_weights": Bound(WEIGHT, ge=0, le=1000),
    "hubness_weights": Bound(WEIGHT, ge=0, le=1000),
    "hubness_neighbours": Bound("what is near to 100,000 training items is no hub, but everything", ge=1, le=100_000),
    "rerank_top": Bound("0 leaves it out; each costs a pass of the captioner for every text", ge=0, le=1000),
    "rerank_weights": Bound(WEIGHT, ge=0, le=1000),
    # galleries
    "caption_gallery.neighbours": Bound("each is a picture beside each image", ge=0, le=20),
    "results": Bound("each is a picture below each search", ge=1, le=100),
}


def read_params(path: Path) -> dict:
    """All sections of a YAML file as plain dictionaries.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no YAML, or its top is no mapping of sections; names the file (and the line).
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such parameter file; `make use STUDY=default` puts the default study in place"
        )
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(section, dict) for section in content.values()):
        raise ValueError(f"{path}: the top level must be sections of `key: value` lines, one section a notebook")
    return content


def read_section(path: Path, section: str) -> dict:
    """One section of a YAML file.

    Raises:
        ValueError: the section is missing; names the file and the closest section.
    """
    content = read_params(path)
    if section not in content:
        raise ValueError(f"{path}: no section {section!r}{_hint(section, content)}")
    return content[section]


def declared_parameters(notebook: NotebookNode, name: str) -> dict[str, Parameter]:
    """The parameters that a notebook asks for, by name, from its one cell tagged ``parameters``.

    Raises:
        ValueError: no such cell or several, or a line in it that is not ``name: type = literal``; says ``name``.
    """
    cells = [cell for cell in notebook.cells if PARAMETERS_TAG in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ValueError(f"{name}: needs exactly one cell tagged '{PARAMETERS_TAG}', has {len(cells)}")
    declared = {}
    for line in ast.parse(cells[0].source).body:
        if not (isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value is not None):
            raise ValueError(f"{name}: in the parameters cell, line {line.lineno} is not `name: type = literal`")
        parameter = line.target.id
        try:
            default = ast.literal_eval(line.value)
        except ValueError as error:
            raise ValueError(f"{name}: the default of {parameter!r} is computed; write a literal") from error
        annotation = ast.unparse(line.annotation)
        if not fits(default, annotation):
            raise ValueError(f"{name}: the default of {parameter!r} is {default!r}, which is no {annotation}")
        declared[parameter] = Parameter(parameter, annotation, default)
    return declared


def fits(value: object, annotation: str) -> bool:
    """Whether a value has the type that an annotation such as ``float`` or ``list[str] | None`` names.

    An int passes as a float; a bool passes as nothing but bool; NaN and infinity pass as nothing.
    """
    return _fits(value, ast.parse(annotation, mode="eval").body)


def check_section(values: dict, declared: dict[str, Parameter], *, file: str, section: str, notebook: str) -> dict:
    """The section's values, ready for the notebook: an int given for a float becomes a float.

    Raises:
        ValueError: lists every key that the notebook does not know (with the closest right name), every key that is
            missing, every value of a wrong type and every number outside its bounds.
    """
    problems = []
    for key in values:
        if key not in declared:
            problems.append(
                f"{notebook} knows no parameter {key!r}{_hint(key, set(declared) - set(values) or declared)}"
            )
    for key, parameter in declared.items():
        if key not in values:
            problems.append(f"{key!r} is missing; {notebook} asks for it: add `{key}: {_as_yaml(parameter.default)}`")
        elif not fits(values[key], parameter.annotation):
            value = values[key]
            problems.append(f"{key!r} must be {parameter.annotation}, but is {value!r} ({type(value).__name__})")
        else:
            problems += outside_bounds(section, key, values[key])
    if problems:
        raise ValueError("\n  ".join([f"{file}, section {section!r}:", *problems]))
    return {key: _converted(values[key], parameter.annotation) for key, parameter in declared.items()}


def check_values(values: dict, root: Path, *, file: str, section: str) -> None:
    """Check what a section's values mean, beyond their names and types, where its stage has such a check.

    Raises:
        ValueError: names the file, the section and everything that the stage's own check found.
    """
    if section not in CHECKERS:
        return
    module, function = CHECKERS[section].split(":")
    try:
        getattr(importlib.import_module(module), function)(values, root)
    except ValueError as error:
        raise ValueError(f"{file}, section {section!r}:\n  {error}") from error


def outside_bounds(section: str, key: str, value: object) -> list[str]:
    """What is wrong with a number, or with each of a list's, by ``BOUNDS``; an empty list where it lies within."""
    bound = BOUNDS.get(f"{section}.{key}", BOUNDS.get(key))
    if bound is None or value is None or isinstance(value, str | bool | dict):
        return []
    if isinstance(value, list):
        if len(value) > LONGEST_LIST:
            return [f"{key!r} holds {len(value)} values, at most {LONGEST_LIST} are tried: each with all others"]
        return [problem for element in value for problem in outside_bounds(section, key, element)]
    return [] if bound.holds(value) else [f"{key!r} is {value!r}, but must be {bound}: {bound.why}"]


def _fits(value: object, kind: ast.expr) -> bool:
    match kind:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _fits(value, left) or _fits(value, right)
        case ast.Constant(value=None):
            return value is None
        case ast.Name(id="float"):
            return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        case ast.Name(id="int"):
            return isinstance(value, int) and not isinstance(value, bool)
        case ast.Name(id="str"):
            return isinstance(value, str)
        case ast.Name(id="bool"):
            return isinstance(value, bool)
        case ast.Name(id="list"):
            return isinstance(value, list)
        case ast.Name(id="dict"):
            return isinstance(value, dict)
        case ast.Subscript(value=ast.Name(id="list"), slice=item):
            return isinstance(value, list) and all(_fits(element, item) for element in value)
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[key, item])):
            return isinstance(value, dict) and all(_fits(k, key) and _fits(v, item) for k, v in value.items())
        case _:
            raise ValueError(
                f"cannot check the type {ast.unparse(kind)!r}; use int, float, str, bool, list, dict or None"
            )


def _converted(value: object, annotation: str) -> object:
    """An int for a float parameter as a float, also inside lists and dictionaries."""
    if isinstance(value, int) and not isinstance(value, bool) and not fits(value, annotation.replace("float", "str")):
        return float(value)
    kind = ast.parse(annotation, mode="eval").body
    if isinstance(kind, ast.Subscript) and isinstance(value, list):
        return [_converted(element, ast.unparse(kind.slice)) for element in value]
    if isinstance(kind, ast.Subscript) and isinstance(value, dict):
        return {key: _converted(element, ast.unparse(kind.slice.elts[1])) for key, element in value.items()}
    return value


def _hint(wrong: object, right: Iterable) -> str:
    close = difflib.get_close_matches(str(wrong), [str(name) for name in right], n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known here: {', '.join(sorted(map(str, right)))}"


def _as_yaml(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)  # JSON is YAML
