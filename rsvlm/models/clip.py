"""Hugging Face's CLIP models as dual encoders, by name or folder (CLIP, RemoteCLIP, RS-CapRet's CLIP-Cap-4, ...)."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsvlm.files import write_json
from rsvlm.models.encoders import DualEncoder
from rsvlm.models.loading import first_line, load_config, load_pretrained, load_tokenizer

# OpenAI's, on the scale 0-1: what nearly every CLIP uses, for folders without preprocessor_config.json
IMAGE_MEAN = [0.48145466, 0.4578275, 0.40821073]
IMAGE_STD = [0.26862954, 0.26130258, 0.27577711]


class ClipEncoder(DualEncoder):
    """A ``CLIPModel`` with its tokenizer."""

    def __init__(self, name: str, model, tokenizer, mean: list[float], std: list[float]):
        super().__init__(
            name,
            model.config.vision_config.image_size,
            model.config.vision_config.hidden_size,
            model.config.projection_dim,
            [255 * value for value in mean],
            [255 * value for value in std],
        )
        self.clip, self.tokenizer, self.image_mean, self.image_std = model, tokenizer, list(mean), list(std)

    @classmethod
    def from_name(cls, name: str, image_size: int | None = None) -> "ClipEncoder":
        """The CLIP in a folder or of that name on Hugging Face, in float32.

        Raises:
            FileNotFoundError: neither a folder nor a model in reach (offline, only what was downloaded before is).
            ValueError: no CLIP, not whole, no tokenizer, or another image size than its own.
        """
        from transformers import CLIPModel, ImageProcessingMixin

        what = f"encoder {name}"
        try:
            config = load_config(name, what)
        except OSError as error:
            raise FileNotFoundError(
                f"{what}: neither a folder nor a model that Hugging Face gives here ({first_line(error)}). "
                f"Where the network is: `hf download {name}`; or put config.json, model.safetensors and tokenizer.json "
                "into a folder and give its path as `encoder`; or use packaged:efficientnet-lite2-minilm"
            ) from error
        if config.model_type != "clip":
            raise ValueError(f"{what}: its model_type is {config.model_type!r}, but an encoder must be 'clip'")
        own_size = config.vision_config.image_size
        if image_size not in (None, own_size):
            raise ValueError(
                f"image_size: {name} takes {own_size} pixels only (its position embeddings are fixed), "
                f"not {image_size}; leave image_size empty"
            )
        if Path(name).is_dir() and not any((Path(name) / f).is_file() for f in ("tokenizer.json", "vocab.json")):
            raise ValueError(
                f"{what}: no tokenizer (tokenizer.json, or vocab.json and merges.txt) in the "
                "folder, so captions cannot be encoded: copy it from where the weights come from"
            )
        try:
            model = load_pretrained(CLIPModel, name, what, dtype=torch.float32)
            tokenizer = load_tokenizer(name, what)
        except OSError as error:  # a hub name without safetensors or tokenizer in reach
            raise FileNotFoundError(f"{what}: {first_line(error)}") from error
        try:
            processing, _ = ImageProcessingMixin.get_image_processor_dict(name)
        except OSError:
            processing = {}
        return cls(
            name, model, tokenizer, processing.get("image_mean", IMAGE_MEAN), processing.get("image_std", IMAGE_STD)
        )

    @property
    def logit_scale(self) -> nn.Parameter:
        return self.clip.logit_scale

    def image_features(self, pixel_values: Tensor, grid: int = 0) -> tuple[Tensor, Tensor | None]:
        outputs = self.clip.vision_model(pixel_values=pixel_values)
        if not grid:
            return outputs.pooler_output, None
        # The class token is pooled after the last layer norm; with it the patches lie on the same scale.
        patches = self.clip.vision_model.post_layernorm(outputs.last_hidden_state[:, 1:])  # (B, side * side, P)
        B, L, P = patches.shape
        side = int(L**0.5)
        cells = F.adaptive_avg_pool2d(patches.transpose(1, 2).reshape(B, P, side, side), grid)
        return outputs.pooler_output, cells.flatten(2).transpose(1, 2)  # (B, grid * grid, P)

    def project_images(self, pooled: Tensor) -> Tensor:
        return self.clip.visual_projection(pooled)

    def text_features(self, texts: list[str]) -> Tensor:
        longest = self.clip.config.text_config.max_position_embeddings
        batch = self.tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        outputs = self.clip.text_model(
            input_ids=batch["input_ids"].to(self.device), attention_mask=batch["attention_mask"].to(self.device)
        )
        return self.clip.text_projection(outputs.pooler_output)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        clip = self.clip
        projections = [*clip.visual_projection.parameters(), *clip.text_projection.parameters(), clip.logit_scale]
        return {
            "image": list(clip.vision_model.parameters()),
            "text": list(clip.text_model.parameters()),
            "projection": projections,
        }

    def image_blocks(self) -> list[list[nn.Module]]:
        vision = self.clip.vision_model
        return [[vision.embeddings, vision.pre_layrnorm], *([layer] for layer in vision.encoder.layers)]

    def _save_into(self, folder: Path) -> None:
        self.clip.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        write_json(
            folder / "preprocessor_config.json",
            {
                "image_processor_type": "CLIPImageProcessor",
                "do_resize": True,
                "do_center_crop": True,
                "do_normalize": True,
                "do_rescale": True,
                "do_convert_rgb": True,
                "resample": 3,
                "rescale_factor": 1 / 255,
                "size": {"shortest_edge": self.image_size},
                "crop_size": {"height": self.image_size, "width": self.image_size},
                "image_mean": self.image_mean,
                "image_std": self.image_std,
            },
        )
