"""Settings of the captioner: its prompt, its shape, its training, instructions, and the making of captions."""

from typing import Literal, Self

from pydantic import Field, model_validator

from rsvlm.settings.checks import (
    BATCH,
    CHUNK,
    DECAY,
    IMAGES,
    LOSS_WEIGHT,
    NEIGHBOURS,
    RATE,
    SEED,
    SHARE,
    SHARE_BELOW,
    STEPS,
    TEMPERATURE,
    Settings,
    Within,
    setting,
)
from rsvlm.settings.encoders import Pooling


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
    instruction_neighbours: bool = setting(False, "instructions stand behind the neighbours' captions, as captions do")
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
