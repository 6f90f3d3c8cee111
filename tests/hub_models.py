"""Tiny random models of Hugging Face's families, saved to disk as their authors save them."""

from pathlib import Path

import torch
import transformers
from tokenizers import processors

from rsvlm.models.tiny import train_tokenizer

LAYERS = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)


def make_dual_encoder(kind: str, folder: Path) -> Path:
    """``folder`` with a random clip, siglip, siglip2 or chinese_clip, its tokenizer and its image processor."""
    torch.manual_seed(0)
    model, tokenizer, processor = {"clip": _clip, "siglip": _siglip, "siglip2": _siglip2, "chinese_clip": _chinese}[
        kind
    ]()
    for part in (model, tokenizer, processor):
        part.save_pretrained(folder)
    return folder


def _clip():
    tokenizer = _tokenizer(["<|endoftext|>", "<|startoftext|>"], pad="<|endoftext|>", eos="<|endoftext|>", longest=48)
    own = dict(bos_token_id=1, eos_token_id=0, pad_token_id=0)
    config = transformers.CLIPConfig(
        text_config=dict(LAYERS, vocab_size=len(tokenizer), max_position_embeddings=48, **own),
        vision_config=dict(LAYERS, image_size=32, patch_size=8),
        projection_dim=16,
    )
    size = dict(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return transformers.CLIPModel(config), tokenizer, transformers.CLIPImageProcessorPil(**size)


def _siglip():
    tokenizer = _tokenizer(
        ["<pad>", "<eos>", "<bos>", "<unk>"], pad="<pad>", eos="<eos>", longest=64, unk_token="<unk>"
    )
    config = transformers.SiglipConfig(
        text_config=dict(LAYERS, vocab_size=len(tokenizer), max_position_embeddings=64, projection_size=32),
        vision_config=dict(LAYERS, image_size=32, patch_size=8),
    )
    return (
        transformers.SiglipModel(config),
        tokenizer,
        transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32}),
    )


def _siglip2():
    tokenizer = _tokenizer(
        ["<pad>", "<eos>", "<bos>", "<unk>"], pad="<pad>", eos="<eos>", longest=64, unk_token="<unk>"
    )
    config = transformers.Siglip2Config(
        text_config=dict(LAYERS, vocab_size=len(tokenizer), max_position_embeddings=64, projection_size=32),
        vision_config=dict(LAYERS, num_patches=16, patch_size=8),
    )
    return (
        transformers.Siglip2Model(config),
        tokenizer,
        transformers.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16),
    )


def _chinese():
    letters = [chr(code) for code in range(97, 123)]
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *letters,
        *(f"##{letter}" for letter in letters),
        *"河流机场.,",
    ]
    tokenizer = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)}, model_max_length=52)
    config = transformers.ChineseCLIPConfig(
        text_config=dict(LAYERS, vocab_size=len(tokenizer), max_position_embeddings=64),
        vision_config=dict(LAYERS, image_size=32, patch_size=8),
        projection_dim=16,
    )
    size = dict(size={"height": 32, "width": 32}, do_center_crop=False)
    return transformers.ChineseCLIPModel(config), tokenizer, transformers.ChineseCLIPImageProcessorPil(**size)


def _tokenizer(special: list[str], *, pad: str, eos: str, longest: int, **names):
    backend = train_tokenizer(special)
    ends = [(eos, backend.token_to_id(eos))]
    backend.post_processor = processors.TemplateProcessing(single=f"$A {eos}", special_tokens=ends)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=pad, eos_token=eos, model_max_length=longest, padding_side="right", **names
    )
