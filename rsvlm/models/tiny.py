"""Tiny random models: CLIP and LLaMA in milliseconds, for tests and the smoke study.

The real architectures (``CLIPModel``, ``LlamaForCausalLM``) and real tokenizers, trained on the few sentences below. What
they say means nothing.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn

from rsvlm.files import whole_folder

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


def make_tiny_clip(folder: Path, *, seed: int = 0, image_size: int = 32) -> Path:
    """``folder`` with a random CLIPModel (hidden 32, 2 layers, 8-pixel patches), and its tokenizer."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, PreTrainedTokenizerFast

    backend = train_tokenizer(["<|endoftext|>", "<|startoftext|>"])
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

    backend = train_tokenizer(["<unk>", "<s>", "</s>", "<pad>"])
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


def train_tokenizer(special_tokens: list[str]) -> Tokenizer:
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
    # Of several processes transformers lets the first alone save; but each makes a folder of its own
    model.should_save_on_this_rank = lambda is_main_process: True
    with whole_folder(Path(folder)) as scratch:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
    return Path(folder)
