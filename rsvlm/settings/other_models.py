"""Settings of other models: vision-language models, their fine-tuning, and what is measured beside the study."""

from typing import Literal, Self

from pydantic import model_validator

from rsvlm.settings.checks import BATCH, DECAY, IMAGES, RATE, SEED, STEPS, Settings, Within, setting


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
