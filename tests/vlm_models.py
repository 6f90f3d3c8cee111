"""Tiny random vision-language models of many families, saved to disk with processor and chat template as their authors do."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from rsvlm.models.tiny import train_tokenizer

FAMILIES = ("qwen2_5_vl", "qwen2_vl", "smolvlm", "paligemma", "llava", "internvl", "blip_2")
CAPTION_ALONE = ("blip", "git", "blip_2_t5")  # no prompt is returned: there is none, or the decoder does not read it
LAYERS = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
TEXT = LAYERS | dict(num_key_value_heads=2, max_position_embeddings=1024)
SPREAD = 0.4  # standard deviation of random weights: with transformers' 0.02 each picture gets the same caption
CHAT = (
    "{{% for message in messages %}}<|im_start|>{{{{ message['role'] }}}}\n{{% for part in message['content'] %}}"
    "{{% if part['type'] == 'image' %}}{image}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}{{% endfor %}}<|im_end|>\n"
    "{{% endfor %}}{{% if add_generation_prompt %}}<|im_start|>assistant\n{{% endif %}}"
)


def make_vlm(family: str, folder: Path, spread: float = SPREAD) -> Path:
    """``folder`` with a random model of a family, its processor and its tokenizer; ``spread`` is its weights' deviation.

    Raises:
        ImportError: the processor needs a package that is missing.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, processor = globals()[f"_{family}"]()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1 or "query" in name or "class_embedding" in name:
                    parameter.normal_(0, spread)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def vlm_maker(parent: Path, spread: float = SPREAD) -> Callable[[str], Path]:
    """Family -> the folder of its model below ``parent``, made when first asked for; skips what a package lacks for."""

    def make(family: str) -> Path:
        if family == "smolvlm":
            pytest.importorskip("num2words", reason="SmolVLM's processor needs it: pip install 'rsvlm[vlm]'")
        return parent / family if (parent / family).is_dir() else make_vlm(family, parent / family, spread)

    return make


def _tokenizer(special: list[str], **names: str):
    """A byte-level BPE; ``names`` are tokens that the processor asks for by attribute."""
    backend = train_tokenizer(["<pad>", "<eos>", "<bos>", *special])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        model_max_length=1024,
        extra_special_tokens=names or special,
    )
    return tokenizer, backend.token_to_id


def _ends(id_of) -> dict[str, int]:
    return {f"{name}_token_id": id_of(f"<{name}>") for name in ("pad", "eos", "bos")}


def _qwen2_5_vl(of: str = "Qwen2_5_VL"):
    special = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer, id_of = _tokenizer(special)
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    text = TEXT | dict(vocab_size=len(tokenizer), rope_parameters=rope, **_ends(id_of))
    vision = dict(depth=2, num_heads=4, patch_size=8, spatial_merge_size=2)
    if of == "Qwen2_5_VL":
        vision |= dict(hidden_size=32, intermediate_size=64, out_hidden_size=32)
        vision |= dict(window_size=32, fullatt_block_indexes=[1])
    else:
        vision |= dict(embed_dim=32, hidden_size=32, mlp_ratio=2)
    config = getattr(transformers, f"{of}Config")(
        text_config=text,
        vision_config=vision,
        image_token_id=id_of("<|image_pad|>"),
        video_token_id=id_of("<|video_pad|>"),
        vision_start_token_id=id_of("<|vision_start|>"),
        vision_end_token_id=id_of("<|vision_end|>"),
    )
    size = {"shortest_edge": 16 * 16, "longest_edge": 48 * 48}
    processor = getattr(transformers, f"{of}Processor")(
        transformers.Qwen2VLImageProcessor(patch_size=8, size=size),
        tokenizer,
        transformers.Qwen2VLVideoProcessor(patch_size=8, size=size),
        chat_template=CHAT.format(image="<|vision_start|><|image_pad|><|vision_end|>"),
    )
    return getattr(transformers, f"{of}ForConditionalGeneration")(config), processor


def _qwen2_vl():
    return _qwen2_5_vl("Qwen2VL")


def _smolvlm():
    places = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    special = ["<|im_start|>", "<|im_end|>", "<image>", "<fake_token_around_image>", "<global-img>", *places]
    tokenizer, id_of = _tokenizer([*special, "<end_of_utterance>", "<video>"])
    config = transformers.SmolVLMConfig(
        text_config=TEXT | dict(model_type="llama", vocab_size=len(tokenizer), **_ends(id_of)),
        vision_config=LAYERS | dict(image_size=32, patch_size=8),
        image_token_id=id_of("<image>"),
        scale_factor=2,
    )
    sizes = dict(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    processor = transformers.SmolVLMProcessor(
        transformers.SmolVLMImageProcessor(**sizes),
        tokenizer,
        transformers.SmolVLMVideoProcessor(size={"longest_edge": 32}, max_image_size={"longest_edge": 32}),
        image_seq_len=4,
        chat_template=CHAT.format(image="<image>"),
    )
    return transformers.SmolVLMForConditionalGeneration(config), processor


def _paligemma():
    tokenizer, id_of = _tokenizer(["<image>"])
    processor = transformers.PaliGemmaProcessor(
        transformers.SiglipImageProcessor(size={"height": 32, "width": 32}, image_seq_length=16), tokenizer
    )  # it adds tokens for places
    text = TEXT | dict(model_type="gemma", vocab_size=len(tokenizer), head_dim=8, **_ends(id_of))
    config = transformers.PaliGemmaConfig(
        text_config=text,
        vision_config=LAYERS
        | dict(model_type="siglip_vision_model", image_size=32, patch_size=8, vision_use_head=False),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=32,
        hidden_size=32,
        vocab_size=len(tokenizer),
    )
    return transformers.PaliGemmaForConditionalGeneration(config), processor


def _llava():
    tokenizer, id_of = _tokenizer(["<|im_start|>", "<|im_end|>", "<image>"])
    config = transformers.LlavaConfig(
        text_config=TEXT | dict(model_type="llama", vocab_size=len(tokenizer), **_ends(id_of)),
        vision_config=LAYERS | dict(model_type="clip_vision_model", image_size=32, patch_size=8, projection_dim=16),
        image_token_index=id_of("<image>"),
        image_seq_length=16,
    )
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT.format(image="<image>\n"),
    )
    return transformers.LlavaForConditionalGeneration(config), processor


def _internvl():
    names = dict(
        start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>", video_token="<video>"
    )
    tokenizer, id_of = _tokenizer(["<|im_start|>", "<|im_end|>", *names.values()], **names)
    config = transformers.InternVLConfig(
        text_config=TEXT | dict(model_type="qwen2", vocab_size=len(tokenizer), **_ends(id_of)),
        vision_config=LAYERS | dict(image_size=[32, 32], patch_size=[8, 8]),
        image_token_id=id_of("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    processor = transformers.InternVLProcessor(
        transformers.GotOcr2ImageProcessor(size={"height": 32, "width": 32}, max_patches=4),
        tokenizer,
        transformers.InternVLVideoProcessor(size={"height": 32, "width": 32}),
        image_seq_length=4,
        chat_template=CHAT.format(image="<IMG_CONTEXT>\n"),
    )
    return transformers.InternVLForConditionalGeneration(config), processor


def _blip_2():
    text = dict(model_type="opt", hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4)
    return _blip_2_over(text | dict(word_embed_proj_dim=32, max_position_embeddings=256))


def _blip_2_t5():
    text = dict(model_type="t5", d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0)
    return _blip_2_over(text)


def _blip_2_over(text: dict):
    tokenizer, id_of = _tokenizer(["<image>"])
    config = transformers.Blip2Config(
        text_config=text | dict(vocab_size=len(tokenizer), **_ends(id_of)),
        vision_config=LAYERS | dict(image_size=32, patch_size=8),
        qformer_config=LAYERS | dict(vocab_size=32, max_position_embeddings=64),
        num_query_tokens=4,
        image_token_index=id_of("<image>"),
    )
    processor = transformers.Blip2Processor(
        transformers.BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer, num_query_tokens=4
    )
    return transformers.Blip2ForConditionalGeneration(config), processor


def _wordpieces():
    letters = [chr(code) for code in range(97, 123)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), ".", ","]
    tokenizer = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)}, model_max_length=64)
    ends = dict(bos_token_id=2, eos_token_id=3, sep_token_id=3, pad_token_id=0)
    return tokenizer, LAYERS | ends | dict(vocab_size=len(words), max_position_embeddings=64)


def _blip():
    tokenizer, text = _wordpieces()
    config = transformers.BlipConfig(
        text_config=text | dict(encoder_hidden_size=32), vision_config=LAYERS | dict(image_size=32, patch_size=8)
    )
    images = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
    return transformers.BlipForConditionalGeneration(config), transformers.BlipProcessor(images, tokenizer)


def _git():
    tokenizer, text = _wordpieces()
    config = transformers.GitConfig(**text, vision_config=LAYERS | dict(image_size=32, patch_size=8))
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return transformers.GitForCausalLM(config), transformers.GitProcessor(images, tokenizer)
