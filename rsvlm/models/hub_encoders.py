"""Dual encoders of Hugging Face by name or folder: CLIP, SigLIP, SigLIP 2, Chinese-CLIP, and what else has two towers.

Whatever ``AutoModel`` gives with ``get_image_features`` and ``get_text_features`` is one. Weights are safetensors, all of
them from the files; pictures are prepared as the model's own image processor says.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from rsvlm.files import write_json
from rsvlm.models.encoders import DualEncoder, Preprocessing, as_map, pool_cells
from rsvlm.models.loading import first_line, load_config, load_pretrained, load_tokenizer

SIGLIP = ("siglip", "siglip2")
# OpenAI's, on the scale 0-1, which nearly every CLIP uses
IMAGE_MEAN = [0.48145466, 0.4578275, 0.40821073]
IMAGE_STD = [0.26862954, 0.26130258, 0.27577711]
TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")


class HubEncoder(DualEncoder):
    """A model with two towers and its tokenizer."""

    def __init__(self, name: str, model: nn.Module, tokenizer, processing: Mapping):
        config = model.config
        self._patches = getattr(config.vision_config, "num_patches", None)  # SigLIP 2 with images of any shape
        D = (
            model.text_projection.out_features
            if hasattr(model, "text_projection")
            else config.vision_config.hidden_size
        )
        processing = processing or _usual_processing(config)
        super().__init__(name, _preprocessing(processing, config.vision_config), config.vision_config.hidden_size, D)
        self.model, self.tokenizer, self.processing = model, tokenizer, dict(processing)

    @classmethod
    def from_name(cls, name: str, image_size: int | None = None) -> "HubEncoder":
        """The model in a folder or of that name on Hugging Face, in float32.

        Raises:
            FileNotFoundError: neither a folder nor a model in reach (offline, only what was downloaded before is).
            ValueError: no dual encoder, not whole, no tokenizer, or another image size than its own.
        """
        from transformers import MODEL_MAPPING, ImageProcessingMixin

        what = f"encoder {name}"
        try:
            config = load_config(name, what)
        except OSError as error:
            raise FileNotFoundError(
                f"{what}: neither a folder nor a model that Hugging Face gives here ({first_line(error)}). "
                f"Where the network is: `hf download {name}`; or put config.json, model.safetensors and tokenizer.json "
                "into a folder and give its path as `encoder`; or use packaged:efficientnet-lite2-minilm"
            ) from error
        kind = MODEL_MAPPING.get(type(config), None)
        if not all(hasattr(kind, wanted) for wanted in ("get_image_features", "get_text_features")):
            raise ValueError(
                f"{what}: its model_type is {config.model_type!r}, which has no two towers: an encoder is a CLIP, SigLIP, "
                "Chinese-CLIP or another model with get_image_features and get_text_features"
            )
        folder = Path(name)
        if folder.is_dir() and not any((folder / file).is_file() for file in TOKENIZERS):
            raise ValueError(
                f"{what}: no tokenizer (tokenizer.json, or vocab.json and merges.txt) in the "
                "folder, so captions cannot be encoded: copy it from where the weights come from"
            )
        try:
            model = load_pretrained(kind, name, what, dtype=torch.float32)
            tokenizer = _load_tokenizer(name, what)
        except OSError as error:  # a hub name without safetensors or tokenizer in reach
            raise FileNotFoundError(f"{what}: {first_line(error)}") from error
        if not hasattr(model, "vision_model") or not hasattr(model, "text_model"):
            raise ValueError(
                f"{what}: {type(model).__name__} names its towers otherwise than vision_model and text_model"
            )
        try:
            processing, _ = ImageProcessingMixin.get_image_processor_dict(name)
        except OSError:
            processing = {}
        encoder = cls(name, model, tokenizer, processing)
        if image_size not in (None, encoder.image_size):
            raise ValueError(
                f"image_size: {name} takes {encoder.image_size} pixels only (its position embeddings are fixed), "
                f"not {image_size}; leave image_size empty"
            )
        return encoder

    @property
    def logit_scale(self) -> nn.Parameter:
        return self.model.logit_scale

    @property
    def image_tower(self) -> nn.Module:
        return self.model.vision_model

    @property
    def text_tower(self) -> nn.Module:
        return self.model.text_model

    def image_features(self, pixel_values: Tensor, grid: int = 0) -> tuple[Tensor, Tensor | None]:
        tower, inputs = self.image_tower, {"pixel_values": pixel_values}
        if self._patches:
            inputs = self._as_patches(pixel_values)
        outputs = tower(**inputs)
        if not grid:
            return outputs.pooler_output, None
        patches = outputs.last_hidden_state  # (B, L, P)
        if int(patches.shape[1] ** 0.5) ** 2 != patches.shape[1]:  # a class token before the patches
            patches = patches[:, 1:]
            # CLIP pools its class token after the last layer norm; with it the patches lie on the same scale
            patches = tower.post_layernorm(patches) if hasattr(tower, "post_layernorm") else patches
        return outputs.pooler_output, pool_cells(as_map(patches), grid)

    def project_images(self, pooled: Tensor) -> Tensor:
        return self.model.visual_projection(pooled) if hasattr(self.model, "visual_projection") else pooled

    def text_features(self, texts: list[str]) -> Tensor:
        config = self.model.config
        longest = min(_longest_text(config.text_config), self.tokenizer.model_max_length)
        options = {"truncation": True, "max_length": longest, "padding_side": "right", "return_tensors": "pt"}
        if config.model_type not in SIGLIP:
            batch = self.tokenizer(texts, padding=True, **options)
            return self.model.get_text_features(**batch.to(self.device)).pooler_output
        # SigLIP was trained on texts filled up to the longest, and to see the filling; SigLIP 2 on lower case
        if "Gemma" in type(self.tokenizer).__name__:
            texts = [text.lower() for text in texts]
        ids = self.tokenizer(texts, padding="max_length", **options)["input_ids"]
        return self.model.get_text_features(input_ids=ids.to(self.device)).pooler_output

    def image_blocks(self) -> list[list[nn.Module]]:
        vision = self.image_tower
        stem = [vision.embeddings, *([vision.pre_layrnorm] if hasattr(vision, "pre_layrnorm") else [])]
        layers = vision.encoder.layers if hasattr(vision, "encoder") else vision.layers
        return [stem, *([layer] for layer in layers)]

    def _as_patches(self, pixels: Tensor) -> dict[str, Tensor]:
        """Square images as SigLIP 2 with free shapes takes them: rows of pixels of each patch, channels last."""
        B, C, S, _ = pixels.shape
        p = self.model.config.vision_config.patch_size
        side = S // p
        patches = pixels.reshape(B, C, side, p, side, p).permute(0, 2, 4, 3, 5, 1).reshape(B, side * side, p * p * C)
        return {
            "pixel_values": patches,
            "pixel_attention_mask": torch.ones(B, side * side, dtype=torch.int32, device=pixels.device),
            "spatial_shapes": torch.full((B, 2), side, dtype=torch.int64, device=pixels.device),
        }

    def _save_into(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        write_json(folder / "preprocessor_config.json", self.processing)


def _usual_processing(config: object) -> dict:
    """What an image processor of the model's family does, for folders without preprocessor_config.json."""
    size = getattr(config.vision_config, "image_size", None)
    common = {"do_resize": True, "do_normalize": True, "do_rescale": True, "do_convert_rgb": True, "resample": 3}
    if config.model_type in SIGLIP:
        own = {"image_processor_type": "SiglipImageProcessor", "size": {"height": size, "width": size}}
        return common | own | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    own = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": size}, "do_center_crop": True}
    own |= {"crop_size": {"height": size, "width": size}, "image_mean": IMAGE_MEAN, "image_std": IMAGE_STD}
    return common | own | {"rescale_factor": 1 / 255}


def _preprocessing(processing: Mapping, vision: object) -> Preprocessing:
    """What an image processor's configuration says, for square input of the tower's own size."""
    if getattr(vision, "num_patches", None):
        size = int(vision.num_patches**0.5) * vision.patch_size
    else:
        size = vision.image_size
    mean, std = ([0.0] * 3, [1.0] * 3) if not processing.get("do_normalize", True) else _mean_and_std(processing)
    return Preprocessing(
        size,
        [255 * value for value in mean],
        [255 * value for value in std],
        resize="crop" if processing.get("do_center_crop") else "squash",
        interpolation=Image.Resampling(processing.get("resample", 3)).name.lower(),
        corner="floor",
    )


def _mean_and_std(processing: Mapping) -> tuple[list[float], list[float]]:
    return tuple(processing.get(key, usual) for key, usual in (("image_mean", IMAGE_MEAN), ("image_std", IMAGE_STD)))


def _longest_text(config: object) -> int:
    """Tokens of the longest text; XLM-R and its kin count positions from behind their padding."""
    kin = config.model_type in ("xlm-roberta", "roberta", "altclip_text_model")
    return config.max_position_embeddings - 2 * kin


def _load_tokenizer(name: str, what: str) -> object:
    """The tokenizer; SigLIP's is read from tokenizer.json where sentencepiece, which its class asks for, is missing."""
    try:
        return load_tokenizer(name, what)
    except ValueError as error:
        if not isinstance(error.__cause__, ImportError):
            raise
        from transformers import PreTrainedTokenizerFast

        try:
            return PreTrainedTokenizerFast.from_pretrained(name, trust_remote_code=False)
        except (OSError, ValueError, TypeError):
            raise error from error.__cause__
