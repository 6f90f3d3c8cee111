"""What a study's two trainings would take on larger machines: ``rsvlm study plan cap4``.

All of it is computed, nothing measured. Operations are counted by torch's own counter on models without weights (the meta
device), forward and backward; hours are those operations over a GPU's published peak rate and a stated share of it; memory
is the estimate of ``rsvlm.study.memory``. Models that are not on this machine count by their published shapes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import rsvlm.models.loading  # noqa: F401  before transformers: it makes torchvision importable
from rsvlm.data.catalogue import KNOWN
from rsvlm.study.memory import CUDA_CONTEXT, Part, estimate_adapt_encoder, estimate_finetune_lora
from rsvlm.study.model_sizes import Decoder, Encoder, Tower

UTILISATION = 0.35  # of the peak rate; well-tuned trainings of LLaMA reach .4 to .5, small batches less
FILLED = 0.9  # of a GPU's memory
CAPTION = 20  # tokens of a rather long caption: 13 words
LENGTHS = (12, 20, 40)  # tokens of captions that the table of activations is for
CHUNKS = (0, 64, 32, 16, 8, 4, 2, 1)


@dataclass(frozen=True)
class Machine:
    """GPUs of one kind.

    Attributes:
        memory: bytes a GPU.
        peak: operations a second a GPU in bfloat16, dense, as its maker states.
    """

    name: str
    gpus: int
    memory: float
    peak: float


MACHINES = (  # NVIDIA's data sheets of the GeForce RTX 4090 (Ada whitepaper, 2022) and the A100 80GB (2021)
    Machine("1 x 24 GB (RTX 4090)", 1, 24e9, 165.2e12),
    Machine("1 x 80 GB (A100)", 1, 80e9, 312e12),
    Machine("8 x 80 GB (A100)", 8, 80e9, 312e12),
)
# The shapes that config.json tells: openai/clip-vit-large-patch14 (Radford et al. 2021), Llama-2-7b-hf (Touvron et al. 2023)
ENCODERS = {
    "openai/clip-vit-large-patch14": Encoder(427_616_513, Tower(768, 12, 77), Tower(1024, 24, 257), 224),
}
DECODERS = {"meta-llama/Llama-2-7b-hf": Decoder(6_738_415_616, 4096, 11_008, 32, 4096, 32_000)}


@dataclass(frozen=True)
class Cost:
    """Operations of one input: forward, and backward."""

    forward: float
    backward: float

    @property
    def whole(self) -> float:
        """Both passes."""
        return self.forward + self.backward

    def __mul__(self, inputs: int) -> "Cost":
        return Cost(self.forward * inputs, self.backward * inputs)

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.forward + other.forward, self.backward + other.backward)


def plan(study: str, params: dict[str, dict]) -> list[str]:
    """The lines of the plan of a study, whose sections are ``params``.

    Raises:
        ValueError: models or sources whose sizes are not known; names the study's file and the key.
    """
    adapt, tune, images = params["adapt_encoder"], params["finetune_lora"], training_images(params, study)
    encoder = _known(ENCODERS, adapt["encoder"], study, "adapt_encoder.encoder")
    decoder = _known(DECODERS, tune["language_model"], study, "finetune_lora.language_model")
    adapt = adapt | {"precision": "bf16", "device": "cuda"}
    tune = tune | {"dtype": "bfloat16", "device": "cuda", "captions_per_image": tune["captions_per_image"] or 5}
    meta = {"dims": {"pooled": adapt["members"] * encoder.vision.width}, "views": params["encode_images"]["views"]}
    meta |= {"grid": params["encode_images"]["grid"], "image_ids": range(images)}

    picture, caption = encoder_cost(encoder.vision), encoder_cost(encoder.text)
    pictures = adapt["members"] * adapt["batch_size"]
    batch = picture * pictures + caption * (pictures * adapt["captions_per_image"])
    length = row_tokens(tune, CAPTION, meta["grid"])
    row = decoder_cost(decoder, length, tune["captions_per_image"] * (CAPTION + 1) + 1)
    steps = adapt["epochs"] * (images // adapt["batch_size"])
    lines = [
        f"{study}: computed, not measured",
        f"  operations: counted by torch on models without weights; hours: at {UTILISATION:.0%} of the peak rate in bfloat16",
        f"  ({'; '.join(f'{one.name}: {one.peak / 1e12:g} TFLOP/s a GPU' for one in MACHINES[:2])}); memory: right within a factor of two;",
        f"  {images:,} training images at most, captions of {CAPTION} tokens; validation, encoding and captioning come on top",
        "",
        f"adapt_encoder: {adapt['encoder']}, {steps:,} steps of {adapt['batch_size']} images, "
        f"{picture.whole / 1e9:,.0f} GFLOP an image, {caption.whole / 1e9:,.0f} a caption",
        *_table(adapt, steps, batch, lambda values: estimate_adapt_encoder(values, encoder, CAPTION)),
        "",
        f"finetune_lora: {tune['language_model']}, {tune['steps']:,} steps of {tune['batch_size']} images, rows of {length} "
        f"tokens, {row.whole / 1e12:,.1f} TFLOP each",
        *_table(
            tune,
            tune["steps"],
            row * tune["batch_size"],
            lambda values: estimate_finetune_lora(values, decoder, CAPTION, meta),
        ),
        *_table(
            tune | {"four_bit": True},
            tune["steps"],
            row * tune["batch_size"],
            lambda values: estimate_finetune_lora(values, decoder, CAPTION, meta),
            [replace(MACHINES[0], name="24 GB, four_bit *")],
        )[1:],
        "  * four_bit: computed, never run; unpacking the weights takes time that is not counted",
        "",
        "activations of finetune_lora by the captions' length, GB, without chunk",
        f"  {'caption':>8} {'row':>5} {'an image':>9} {'a batch':>9}",
    ]
    for tokens in LENGTHS:
        size = _activations(estimate_finetune_lora(tune, decoder, tokens, meta))
        whole = row_tokens(tune, tokens, meta["grid"])
        lines.append(f"  {tokens:>8} {whole:>5} {size / tune['batch_size'] / 1e9:>9.2f} {size / 1e9:>9.1f}")
    return lines


def training_images(params: dict, study: str) -> int:
    """Training images of a study's sources by their papers, before near-duplicates of test images are left out.

    Raises:
        ValueError: a source whose counts are not known.
    """
    total, by_file = 0, {str(own.settings.get("annotations")): own for own in KNOWN.values()}
    for source in params["aggregate_data"]["sources"]:
        known = KNOWN.get(source["name"]) or by_file.get(str(source.get("annotations", source["name"])))
        splits = known.splits if known else None
        if not splits:
            raise ValueError(
                f"params/{study}.yaml: aggregate_data.sources: how many images {source['name']!r} has is not known before they "
                "are read; a plan is for NWPU-Captions, RSICD, Sydney-, UCM-Captions and RSITMD"
            )
        take = source.get("take") or {split: split for split in splits}
        train = sum(splits[theirs] for theirs, ours in take.items() if ours == "train")
        total += round(train * (1 - source.get("val_share", 0)))
    return total


def row_tokens(tune: dict, caption: int, grid: int) -> int:
    """Tokens of an image's row: visual ones, prompt, captions, and the text-only one before [RET]."""
    cells = grid**2 if tune["use_grid"] else 0
    prompt = 12 + tune["visual_tokens"] + cells + tune["neighbour_captions"] * (caption + 1)
    return prompt + tune["captions_per_image"] * (caption + 1) + caption + 8


def encoder_cost(tower: Tower) -> Cost:
    """Of one input of a transformer tower whose weights all train."""
    from transformers import CLIPVisionConfig
    from transformers.models.clip.modeling_clip import CLIPEncoder

    shape = {"hidden_size": tower.width, "intermediate_size": 4 * tower.width, "num_hidden_layers": tower.layers}
    config = CLIPVisionConfig(**shape, num_attention_heads=tower.width // 64, attn_implementation="eager")
    with torch.device("meta"):
        layers, inputs = CLIPEncoder(config), torch.empty(1, tower.tokens, tower.width, requires_grad=True)
    return _count(layers, lambda: layers(inputs_embeds=inputs).last_hidden_state)


def decoder_cost(decoder: Decoder, tokens: int, labels: int) -> Cost:
    """Of one row of a frozen language model of LLaMA's kind, with ``labels`` places whose words are predicted."""
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = decoder.width // 128
    shape = {"hidden_size": decoder.width, "intermediate_size": decoder.middle, "num_hidden_layers": decoder.layers}
    keys = {"num_attention_heads": heads, "num_key_value_heads": decoder.key_width // 128}
    config = LlamaConfig(vocab_size=decoder.vocabulary, **shape, **keys, attn_implementation="eager")
    with torch.device("meta"):
        model = LlamaForCausalLM(config).requires_grad_(False)
        inputs = torch.empty(1, tokens, decoder.width, requires_grad=True)
        where = {"attention_mask": torch.zeros(1, 1, tokens, tokens), "position_ids": torch.arange(tokens)[None]}

    def said() -> Tensor:
        hidden = model.base_model(inputs_embeds=inputs, use_cache=False, **where).last_hidden_state
        return model.lm_head(hidden[:, :labels])

    return _count(model, said)


def _count(model: nn.Module, run: Callable[[], Tensor]) -> Cost:
    """Operations of a forward pass and of the backward pass behind it; a multiplication and an addition are two."""
    model.train()
    with FlopCounterMode(display=False) as forward:
        out = run()
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    return Cost(forward.get_total_flops(), backward.get_total_flops())


def _table(
    values: dict,
    steps: int,
    batch: Cost,
    estimate: Callable[[dict], list[Part]],
    machines: Sequence[Machine] = MACHINES,
) -> list[str]:
    """A line a machine: the largest chunk that fits, memory a GPU, hours."""
    lines = [
        f"  {'machine':<22} {'chunk':>5} {'weights':>8} {'trained':>8} {'activations':>11} {'in all':>7} {'hours':>7}"
    ]
    for machine in machines:
        own = values | {"batch_size": -(-values["batch_size"] // machine.gpus)}
        chunk = next(
            (one for one in CHUNKS if _needed(estimate(own | {"chunk": one})) <= FILLED * machine.memory), None
        )
        if chunk is None:
            lines.append(
                f"  {machine.name:<22} does not fit: {_needed(estimate(own | {'chunk': 1})) / 1e9:.1f} GB are needed"
            )
            continue
        parts = estimate(own | {"chunk": chunk})
        operations = steps * (batch.whole + (batch.forward if chunk else 0))
        hours = operations / (machine.gpus * machine.peak * UTILISATION) / 3600
        sizes = [_size(parts, "weights"), _size(parts, "moments"), _activations(parts), _needed(parts)]
        weights, trained, active, whole = (f"{size / 1e9:.1f}" for size in sizes)
        shown = chunk or "all"
        lines.append(f"  {machine.name:<22} {shown:>5} {weights:>8} {trained:>8} {active:>11} {whole:>7} {hours:>7.2f}")
    return lines


def _size(parts: Sequence[Part], ending: str) -> float:
    return sum(part.size for part in parts if part.on_device and part.what.endswith(ending))


def _activations(parts: Sequence[Part]) -> float:
    return sum(part.size for part in parts if part.on_device and not part.what.endswith(("weights", "moments")))


def _needed(parts: Sequence[Part]) -> float:
    """Bytes of one GPU, in GB as they are sold: 10 ** 9."""
    return CUDA_CONTEXT + sum(part.size for part in parts if part.on_device)


def _known(shapes: dict, name: str, study: str, key: str) -> object:
    """The shape of a model by name."""
    if name not in shapes:
        raise ValueError(
            f"params/{study}.yaml: {key}: the shape of {name!r} is not known here; a plan is for {', '.join(shapes)}"
        )
    return shapes[name]
