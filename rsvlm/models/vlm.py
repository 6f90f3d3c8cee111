"""Captions by any vision-language model of Hugging Face: an instruction and a picture in, a sentence out.

    vlm = load_vlm(VlmSettings(captioner="HuggingFaceTB/SmolVLM-256M-Instruct"))
    caption_pictures(vlm, [open_image("river.jpg")])

Whatever ``AutoModelForImageTextToText`` gives is one: Qwen2-VL, Qwen2.5-VL, SmolVLM, PaliGemma, LLaVA, InternVL (the ones
whose names end in -hf), BLIP-2. Weights are safetensors, all of them from the files. A model that brings Python code of its
own is refused, unless ``remote_code`` names exactly this model at exactly this revision.

Decoding is greedy; what else the model's generation_config.json says (penalties, end tokens) stays. A caption does not
depend on the pictures beside it in a batch: prompts are padded on the left. In float32 that holds to the letter; in
bfloat16 two nearly equal tokens may change places.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from rsvlm.files import read_json
from rsvlm.models.loading import (
    OwnCodeWanted,
    choose_device,
    choose_dtype,
    fingerprint_tensors,
    first_line,
    four_bits,
    is_code_permitted,
    load_config,
    load_pretrained,
    load_processor,
)
from rsvlm.models.prompts import OF_TWO
from rsvlm.models.vlm_adapters import load_adapters
from rsvlm.progress import progress
from rsvlm.settings import VlmSettings

AUTO_CLASS = "AutoModelForImageTextToText"
PROCESSORS = ("processor_config.json", "preprocessor_config.json")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
# How families without a chat template are asked, as their papers and model cards have it; others: picture, then prompt
BARE_PROMPTS = {
    "blip-2": "Question: {prompt} Answer:",  # the processor puts the picture's tokens in front
    "instructblip": "{prompt}",
    "llava": "USER: {image}\n{prompt} ASSISTANT:",
    "paligemma": "{image}{prompt}",
}
SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s|$)")
# Their point ends no sentence; nor does that of a single letter, as in "e.g." and "U.S."
ABBREVIATIONS = {"approx", "ca", "cf", "dr", "fig", "mr", "mrs", "mt", "no", "sq", "st", "vs"}


@dataclass(frozen=True)
class VisionLanguageModel:
    """A model with its processor and the prompt that goes with each picture; ``load_vlm`` makes one.

    Attributes:
        prompt: the whole text beside a picture, with the place for it, as the processor takes it.
    """

    model: nn.Module = field(repr=False)
    processor: object = field(repr=False)
    settings: VlmSettings
    prompt: str

    @property
    def parameters(self) -> int:
        """How many numbers the model's weights are; of 4-bit weights each counts."""
        return self.model.num_parameters()

    def prepare(
        self, pictures: list[Image.Image] | list[list[Image.Image]], prompts: list[str] | None = None
    ) -> dict[str, Tensor]:
        """The model's inputs for B pictures, on its device: input_ids (B, T), padded on the left, pixel_values, ...

        Args:
            pictures: RGB, of any size; or B lists of equally many.
            prompts: a text each, with places for its pictures; None: the model's own.

        Raises:
            ValueError: a picture in another mode than RGB.
        """
        given = [own if isinstance(own, list) else [own] for own in pictures]
        shown = [[_shrink(picture, self.settings.image_size) for picture in own] for own in given]
        texts = [self.prompt] * len(shown) if prompts is None else prompts
        bos, more = self.processor.tokenizer.bos_token, {}
        if texts[0] or hasattr(self.processor, "image_token"):  # BLIP and GIT need no text
            more = {"text": texts, "padding": True}
        if bos and texts[0].startswith(bos):  # the chat template has written it
            more["add_special_tokens"] = False
        inputs = self.processor(images=shown, return_tensors="pt", **more)
        inputs.pop("labels", None)  # PaliGemma's
        return dict(inputs.to(self.model.device, dtype=self.model.dtype))

    def fingerprint(self) -> str:
        """SHA-256, as hex, over weights, preparation of pictures, prompt and what else changes a caption."""
        asked = self.settings.model_dump(include={"image_size", "max_new_tokens", "one_sentence"})
        shown = json.loads(self.processor.image_processor.to_json_string())
        own = [type(self.model).__name__, self.prompt, asked, shown]
        digest = hashlib.sha256(json.dumps(own, sort_keys=True).encode())
        fingerprint_tensors(self.model.state_dict(), digest)
        return digest.hexdigest()


def load_vlm(settings: VlmSettings, device: str = "auto", *, adapter: str | Path | None = None) -> VisionLanguageModel:
    """The model that ``settings`` name, in evaluation mode, ready to caption.

    Args:
        adapter: folder of LoRA adapters to add: what ``rsvlm.training.vlm_lora`` saved, or peft.
        device: "auto", "cpu" or "cuda"; with ``device_map`` the GPUs are shared out, and this is not asked.

    Raises:
        FileNotFoundError: neither a folder nor a model in reach (offline, only what was downloaded before is), or no
            adapters in the folder.
        ModuleNotFoundError: a package that its processor or ``four_bit`` needs is not installed; says how.
        ValueError: it is there, but no image-text-to-text model, not whole, without processor or chat template for
            pictures, or it wants code of its own to be run; or the adapters are another model's or prompt's.
    """
    import transformers

    name, what, chosen = settings.captioner, f"captioner {settings.captioner}", choose_device(device)
    source = {"revision": settings.revision} if settings.revision else {}
    dtype = choose_dtype(settings.dtype, str(chosen))
    options = four_bits(what, chosen, dtype) if settings.four_bit else {}
    options |= {"dtype": dtype, "device_map": settings.device_map or options.get("device_map")}
    _check_folder(name, what)
    try:
        source["trust_remote_code"] = is_code_permitted(name, settings.revision, settings.remote_code, what)
        config = load_config(name, what, **source)
        own = source["trust_remote_code"] and AUTO_CLASS in (getattr(config, "auto_map", None) or {})
        if type(config) not in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not own:
            raise ValueError(
                f"{what}: its model_type is {config.model_type!r}, which takes no picture and prompt to write text: "
                "a captioner is a Qwen2.5-VL, SmolVLM, PaliGemma, LLaVA, InternVL (-hf), BLIP-2 or another model of "
                f"transformers' {AUTO_CLASS}"
            )
        processor = load_processor(name, what, **source)
        model = load_pretrained(getattr(transformers, AUTO_CLASS), name, what, attention=None, **source, **options)
    except OwnCodeWanted as error:
        wanted = name if Path(name).is_dir() else f"{name}@{settings.revision or 'COMMIT'}"
        more = "" if Path(name).is_dir() or settings.revision else " and revision: COMMIT"
        raise ValueError(
            f"{error}; or read that code and, where you trust it, permit it with remote_code: {wanted}{more}"
        ) from error
    except OSError as error:
        revision, reason = f" --revision {settings.revision}" if settings.revision else "", first_line(error)
        if "use_safetensors" in reason:
            reason = "no safetensors; pickled weights, which can run code, are not read"
        raise FileNotFoundError(
            f"{what}: neither a folder nor a model that Hugging Face gives here whole ({reason}). Where the "
            f"network is: `hf download {name}{revision}`; or put config.json, the safetensors, processor and tokenizer "
            "files into a folder and give its path as `captioner`"
        ) from error
    if not (settings.device_map or settings.four_bit):
        model = model.to(chosen)
    tokenizer, generation = processor.tokenizer, getattr(model, "generation_config", None)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if generation is not None:
        generation.temperature = generation.top_p = generation.top_k = None  # of sampling: transformers would warn
        if generation.pad_token_id is None:
            generation.pad_token_id = tokenizer.pad_token_id
    prompt = write_prompt(processor, config.model_type, settings.prompt, what)
    model.eval().requires_grad_(False)
    if adapter is not None:
        load_adapters(model, tokenizer, Path(adapter), prompt=prompt, quantized=settings.four_bit)
    return VisionLanguageModel(model, processor, settings, prompt)


def write_prompt(processor: object, model_type: str, prompt: str, what: str, *, images: int = 1) -> str | None:
    """The text beside a picture, with the place for the picture: by the chat template, else by the family's bare form.

    Args:
        images: 2: the places for two pictures, each with words behind it (``OF_TWO``).

    Returns:
        None where two pictures are to be shown and nothing says how: there is no chat template.

    Raises:
        ValueError: the chat template has no place for a picture, or the model takes no prompt.
    """
    if prompt and model_type == "git":
        raise ValueError(f"{what}: GIT takes pictures alone: set prompt to '' and tasks to 0")
    template = getattr(processor, "chat_template", None) or processor.tokenizer.chat_template
    if not template and images > 1:
        return None
    if not template:
        image = str(getattr(processor, "image_token", None) or "")
        bare = BARE_PROMPTS.get(model_type, "{image}{prompt}") if prompt or model_type != "blip-2" else ""
        return bare.format(image=image, prompt=prompt)
    text, image = [{"type": "text", "text": prompt}] if prompt else [], {"type": "image"}
    seen = [image, *text]
    if images > 1:
        first, second = ({"type": "text", "text": f"{words} "} for words in OF_TWO)
        seen = [image, first, image, second, *text]

    def render(parts: list[dict]) -> str:
        messages = [{"role": "user", "content": parts}]
        return processor.apply_chat_template(messages, chat_template=template, add_generation_prompt=True)

    try:
        alone, shown = render([part for part in seen if part != image]), render(seen)
    except Exception as error:  # of whatever the template does
        raise ValueError(f"{what}: its chat template cannot be filled ({first_line(error)})") from error
    if alone == shown:
        raise ValueError(
            f"{what}: its chat template has no place for a picture (chat_template.jinja, or chat_template in "
            "tokenizer_config.json): take the one from where the weights come from"
        )
    return shown


def caption_pictures(
    vlm: VisionLanguageModel, pictures: Iterable[Image.Image], *, batch_size: int | None = None
) -> list[str]:
    """A caption for each picture (RGB, of any size), in order, by greedy decoding; may be empty.

    Args:
        batch_size: pictures at a time; None: as the settings say. It does not change the captions.
    """
    settings, captions = vlm.settings, []
    size = batch_size or settings.batch_size
    total = len(pictures) if hasattr(pictures, "__len__") else None
    with progress(total=total, unit="img", desc="captions", disable=total is not None and total <= size) as bar:
        for some in _batches(pictures, size):
            texts = _say(vlm, vlm.prepare(some))
            captions += [first_sentence(text) if settings.one_sentence else " ".join(text.split()) for text in texts]
            bar.update(len(some))
    return captions


def answer_pictures(vlm: VisionLanguageModel, asked: Sequence[tuple[Sequence[Image.Image], str]]) -> list[str]:
    """The answer to each instruction about one picture or two (RGB, of any size), in order, greedily decoded and whole.

    Empty where the model has nothing to say, and where it cannot be shown two pictures.

    Raises:
        ValueError: the model takes no instruction.
    """
    what, model_type = f"captioner {vlm.settings.captioner}", vlm.model.config.model_type
    prompts = [write_prompt(vlm.processor, model_type, text, what, images=len(own)) for own, text in asked]
    answers = [""] * len(asked)
    for images in (1, 2):
        places = [place for place, (own, _) in enumerate(asked) if len(own) == images and prompts[place] is not None]
        for some in _batches(places, vlm.settings.batch_size):
            inputs = vlm.prepare([list(asked[place][0]) for place in some], [prompts[place] for place in some])
            for place, text in zip(some, _say(vlm, inputs), strict=True):
                answers[place] = text.strip()
    return answers


def _say(vlm: VisionLanguageModel, inputs: dict[str, Tensor]) -> list[str]:
    """What is generated behind B prepared prompts."""
    how = {"do_sample": False, "num_beams": 1, "max_new_tokens": vlm.settings.max_new_tokens}
    with torch.inference_mode():
        ids = vlm.model.generate(**inputs, **how)
    new = _new_tokens(ids, inputs.get("input_ids"))
    return vlm.processor.tokenizer.batch_decode(new, skip_special_tokens=True)


def first_sentence(text: str) -> str:
    """The first sentence of a text on one line, or its first line where no sentence ends before.

    Points of numbers ("2.5 km") and of abbreviations ("approx. 20 houses") end none.
    """
    line = next((" ".join(line.split()) for line in text.splitlines() if line.strip()), "")
    for end in SENTENCE_END.finditer(line):
        before = re.split(r"[\s.(]", line[: end.start()])[-1].lower()
        abbreviated = len(before) == 1 and before.isalpha() or before in ABBREVIATIONS
        if line[end.start()] != "." or not abbreviated:
            return line[: end.end()]
    return line


def _new_tokens(ids: Tensor, prompt: Tensor | None) -> Tensor:
    """What was generated: some models return the prompt before it, those with a decoder of their own do not."""
    T = 0 if prompt is None else prompt.shape[1]
    return ids[:, T:] if T and ids.shape[1] >= T and torch.equal(ids[:, :T], prompt) else ids


def _batches(items: Iterable, size: int) -> Iterator[list]:
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some


def _shrink(picture: Image.Image, longest: int | None) -> Image.Image:
    if picture.mode != "RGB":
        raise ValueError(f"an image in mode {picture.mode} where RGB is expected: open it with rsvlm.data.images")
    if longest is None or max(picture.size) <= longest:
        return picture
    shrunk = [max(1, round(side * longest / max(picture.size))) for side in picture.size]
    return picture.resize(shrunk, Image.Resampling.BICUBIC)


def _check_folder(name: str, what: str) -> None:
    """Raise an error where a folder lacks configuration, processor or tokenizer, or a path is no folder."""
    folder = Path(name)
    if not folder.is_dir():
        if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
            raise FileNotFoundError(f"{what}: no such folder")
        return
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{what}: no config.json in the folder: copy the model's whole folder there")
    read_json(folder / "config.json")
    for part, files in (("processor", PROCESSORS), ("tokenizer", TOKENIZERS)):
        if not any((folder / file).is_file() for file in files):
            raise ValueError(
                f"{what}: no {part} ({' or '.join(files)}) in the folder: copy it from where the weights come from"
            )
