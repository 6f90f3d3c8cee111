"""Vision-language models of several families: captions as the model itself gives them, and errors that say what to do."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from broken_models import copy_with, cut_weights, edit_json, edit_weights, pickle_weights, poison, shard_weights
from PIL import Image
from vlm_models import CAPTION_ALONE, FAMILIES, vlm_maker

from rsvlm.data.images import open_image
from rsvlm.models.tiny import make_tiny_llama
from rsvlm.models.vlm import caption_pictures, first_sentence, load_vlm, write_prompt
from rsvlm.settings import VlmLoraSettings, VlmSettings, bounds, type_text

torch.set_num_threads(1)
PROMPT = "Describe this image."
SIZES = [(40, 40), (70, 30), (33, 64), (48, 48)]  # width and height: other numbers of visual tokens in some families
BARE = {"paligemma": f"<image>{PROMPT}", "blip_2": f"Question: {PROMPT} Answer:"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return vlm_maker(tmp_path_factory.mktemp("vlm"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Image.Image]:
    """Picture files, opened as the stages open them."""
    folder, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number, (width, height) in enumerate(SIZES):
        rough = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        rough.resize((width, height), Image.Resampling.BILINEAR).save(folder / f"{number}.png")
    return [open_image(path) for path in sorted(folder.iterdir())]


def load(folder: Path, **more):
    """On the CPU and, unless ``more`` says otherwise, in float32, whatever this processor computes in."""
    asked = {"prompt": PROMPT, "max_new_tokens": 8, "dtype": "float32"} | more
    return load_vlm(VlmSettings(captioner=str(folder), **asked), "cpu")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_captions_are_the_models_own(family, dtype, made, pictures):
    """Held against the processor and generate() used by hand, one picture at a time."""
    vlm = load(made(family), one_sentence=False, dtype=dtype)
    captions = caption_pictures(vlm, iter(pictures), batch_size=1)
    if dtype == "float32":  # in bfloat16 the padding of a batch rounds otherwise
        assert captions == caption_pictures(vlm, pictures, batch_size=len(pictures)) == caption_pictures(vlm, pictures)
    assert len(set(captions)) == len(pictures), "the pictures were not seen"

    processor = transformers.AutoProcessor.from_pretrained(made(family))
    how = {"attn_implementation": "eager"} if dtype == "float32" else {}  # which rounds otherwise in bfloat16
    model = transformers.AutoModelForImageTextToText.from_pretrained(made(family), dtype=getattr(torch, dtype), **how)
    for picture, caption in zip(pictures, captions):
        if family in BARE:
            inputs = processor(images=picture, text=BARE[family], return_tensors="pt")
        else:
            parts = [{"type": "image", "image": picture}, {"type": "text", "text": PROMPT}]
            how = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
            inputs = processor.apply_chat_template([{"role": "user", "content": parts}], **how)
        inputs = inputs.to(dtype=model.dtype)
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :]
        assert caption == " ".join(processor.tokenizer.decode(ids, skip_special_tokens=True).split())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_has_the_same_fingerprint_until_something_changes(family, made, tmp_path):
    vlm = load(made(family))
    assert vlm.parameters == sum(p.numel() for p in vlm.model.parameters()) and not vlm.model.training
    vlm.model.save_pretrained(tmp_path / "again")
    vlm.processor.save_pretrained(tmp_path / "again")
    assert load(tmp_path / "again").fingerprint() == vlm.fingerprint() == load(made(family)).fingerprint()
    changed = [load(made(family), prompt="What is it?"), load(made(family), image_size=32), load(made(family))]
    with torch.no_grad():
        next(changed[-1].model.parameters()).view(-1)[0] += 1e-3
    assert len({one.fingerprint() for one in [vlm, *changed]}) == 4


def test_pictures_are_shrunk_and_never_enlarged(made, pictures):
    vlm = load(made("qwen2_5_vl"), image_size=32)
    shrunk = [picture.resize((32, round(32 * picture.height / picture.width))) for picture in pictures[:1]]
    assert caption_pictures(vlm, pictures[:1]) == caption_pictures(load(made("qwen2_5_vl")), shrunk)
    small = [pictures[0].resize((28, 28))]
    assert caption_pictures(vlm, small) == caption_pictures(load(made("qwen2_5_vl")), small)
    with pytest.raises(ValueError, match="mode L where RGB"):
        caption_pictures(vlm, [pictures[0].convert("L")])
    assert caption_pictures(vlm, []) == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "auto"])
def test_precisions(dtype, made, pictures):
    vlm = load(made("llava"), dtype=dtype)
    assert dtype == "auto" or str(vlm.model.dtype) == f"torch.{dtype}"
    assert len(caption_pictures(vlm, pictures)) == len(pictures)


def test_spread_over_devices_it_says_the_same(made, pictures):
    """On a machine without GPUs all of it lies on the CPU."""
    vlm = load(made("llava"), device_map="auto")
    assert caption_pictures(vlm, pictures) == caption_pictures(load(made("llava")), pictures)
    with pytest.raises(ValueError, match="'device_map' must be null or 'auto', but is 'balanced'"):
        VlmSettings(device_map="balanced")


def test_decoding_is_greedy_whatever_the_model_says(made, pictures, tmp_path):
    sampling = {"do_sample": True, "temperature": 9.0, "top_k": 50, "num_beams": 3}
    folder = copy_with(made("llava"), tmp_path / "model", edit_json("generation_config.json", **sampling))
    assert caption_pictures(load(folder), pictures) == caption_pictures(load(made("llava")), pictures)


def test_prompts_of_families_without_a_chat_template(made):
    written = {
        family: transformers.AutoProcessor.from_pretrained(made(family)) for family in ("llava", "blip_2", "paligemma")
    }
    written["llava"].chat_template = written["llava"].tokenizer.chat_template = None
    assert write_prompt(written["llava"], "llava", "Say.", "x") == "USER: <image>\nSay. ASSISTANT:"
    assert write_prompt(written["blip_2"], "blip-2", "", "x") == ""
    assert write_prompt(written["paligemma"], "paligemma", "caption en", "x") == "<image>caption en"


@pytest.mark.parametrize("family", CAPTION_ALONE)
def test_models_that_return_the_caption_alone(family, made, pictures):
    """Held against generate() used by hand, one picture at a time."""
    text = f"Question: {PROMPT} Answer:" if family == "blip_2_t5" else None
    vlm = load(made(family), prompt=PROMPT if text else "", one_sentence=False)
    captions = caption_pictures(vlm, pictures)
    assert captions == caption_pictures(vlm, pictures, batch_size=1) and len(set(captions)) > 1
    processor = transformers.AutoProcessor.from_pretrained(made(family))
    model = transformers.AutoModelForImageTextToText.from_pretrained(made(family))
    for picture, caption in zip(pictures, captions):
        inputs = processor(images=picture, text=text, return_tensors="pt")
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=8)[0]
        assert caption == " ".join(processor.tokenizer.decode(ids, skip_special_tokens=True).split())


def test_a_prompt_where_none_is_taken(made):
    with pytest.raises(ValueError, match="GIT takes pictures alone: set prompt to ''"):
        load(made("git"))


@pytest.mark.parametrize("kind", [VlmSettings, VlmLoraSettings])
def test_every_number_has_bounds_and_defaults_lie_within(kind):
    kind(), kind(**{name: own.json_schema_extra["quick"] for name, own in kind.model_fields.items()})
    for name, own in kind.model_fields.items():
        number = {"int", "float"} & set(type_text(own.annotation).split())
        assert own.description and bool(number) == (bounds(kind, name) is not None)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("A river. There are trees.", "A river."),
        ("  A river\n\nTrees. ", "A river"),
        (
            "It is 2.5 km wide, approx. 20 houses stand there. Cars too.",
            "It is 2.5 km wide, approx. 20 houses stand there.",
        ),
        ("A base of the U.S. army, e.g. planes! Many.", "A base of the U.S. army, e.g. planes!"),
        ('It says "Go." Then no more.', 'It says "Go."'),
        ("No end at all", "No end at all"),
        ("Runway 9. Two planes.", "Runway 9."),
        ("", ""),
    ],
)
def test_first_sentence(text, first):
    assert first_sentence(text) == first


def test_one_sentence_is_kept(made, pictures, monkeypatch):
    vlm = load(made("llava"))
    monkeypatch.setattr(type(vlm.processor.tokenizer), "batch_decode", lambda *_, **__: [" A river.\n Trees. "])
    assert caption_pictures(vlm, pictures[:1]) == ["A river."]
    both = load(made("llava"), one_sentence=False)
    assert caption_pictures(both, pictures[:1]) == ["A river. Trees."]


HEAD = "language_model.lm_head.weight"  # as LLaVA's files have it; transformers calls it lm_head.weight
WRONG_WEIGHTS = {
    "pickled": (pickle_weights, r"weights are pickled \(pytorch_model.bin\).*convert them once"),
    "torn": (cut_weights(5000), "model.safetensors: no whole safetensors file, 5000 bytes are there.*copy the model's"),
    "missing": (edit_weights(lambda own: own.pop(HEAD)), "1 weight is missing: lm_head.weight"),
    "left over": (edit_weights(lambda own: own.update(other=torch.ones(2))), "1 weight is not this model's: other"),
    "no number": (poison(HEAD, float("nan")), rf"model.safetensors: {HEAD} holds NaN"),
    "half a download": (
        lambda folder: [shard_weights(folder), (folder / "model-00002-of-00002.safetensors").unlink()],
        "1 of the 2 files that model.safetensors.index.json lists are missing: model-00002-of-00002",
    ),
    "none": (lambda folder: (folder / "model.safetensors").unlink(), "no weights .* in the folder: copy the model's"),
}


@pytest.mark.parametrize("fault", WRONG_WEIGHTS)
def test_weights_are_whole_or_refused(fault, made, tmp_path):
    change, message = WRONG_WEIGHTS[fault]
    folder = copy_with(made("llava"), tmp_path / "model", change)
    with pytest.raises(ValueError, match=f"captioner {folder}.*{message}"):
        load(folder)


def drop(*names: str):
    return lambda folder: [(folder / name).unlink() for name in names]


WRONG_FOLDERS = {
    "no configuration": (drop("config.json"), FileNotFoundError, "no config.json in the folder"),
    "torn configuration": (
        lambda folder: (folder / "config.json").write_text('{"model_'),
        ValueError,
        "config.json: not valid JSON: line 1",
    ),
    "no processor": (drop("processor_config.json"), ValueError, "no processor .*processor_config.json.* copy it from"),
    "no tokenizer": (drop("tokenizer.json"), ValueError, "no tokenizer .*tokenizer.json.* copy it from"),
    "torn tokenizer": (
        lambda folder: (folder / "tokenizer.json").write_text('{"version": "1.0"'),
        ValueError,
        "its processor cannot be read",
    ),
    "no place for pictures": (
        lambda folder: (folder / "chat_template.jinja").write_text("{{ messages[0]['role'] }}"),
        ValueError,
        "chat template has no place for a picture",
    ),
    "a template that fails": (
        lambda folder: (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] + 'x' }}"),
        ValueError,
        "chat template cannot be filled",
    ),
    "an unknown type": (edit_json("config.json", model_type="own"), ValueError, "captioner .* cannot be read.*own"),
}


@pytest.mark.parametrize("fault", WRONG_FOLDERS)
def test_what_a_folder_lacks_is_named(fault, made, tmp_path):
    change, kind, message = WRONG_FOLDERS[fault]
    with pytest.raises(kind, match=f"(?s){message}"):
        load(copy_with(made("llava"), tmp_path / "model", change))


def test_a_text_model_is_no_captioner(tmp_path):
    folder = make_tiny_llama(tmp_path / "llama")
    with pytest.raises(ValueError, match="no processor"):
        load(folder)
    (folder / "processor_config.json").write_text("{}")
    with pytest.raises(ValueError, match="captioner .*llama: its model_type is 'llama', which takes no picture"):
        load(folder)


@pytest.mark.parametrize("name", ["/no/such/folder", "./vlm", "a/b/c"])
def test_a_path_that_is_no_folder(name):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load(Path(name) if name.startswith("/") else name)


def test_a_name_that_is_out_of_reach():
    wanted = "captioner nobody/nothing: neither a folder nor a model .*hf download nobody/nothing --revision v1"
    with pytest.raises(FileNotFoundError, match=f"(?s){wanted}"):
        load("nobody/nothing", revision="v1")


def test_four_bits_need_a_gpu(made):
    with pytest.raises(ValueError, match="four_bit needs a CUDA GPU, and this is cpu"):
        load(made("llava"), four_bit=True)


@pytest.mark.parametrize(
    ("error", "package"),
    [
        ("LlavaVideoProcessor requires the Torchvision library but it was not found.", "torchvision"),
        ("Package `num2words` is required to run SmolVLM processor.", "num2words"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(error, package, made, monkeypatch):
    def fail(*_, **__):
        raise ImportError(error)

    monkeypatch.setattr(transformers.LlavaProcessor, "from_pretrained", fail)
    with pytest.raises(ModuleNotFoundError, match=rf"needs {package}, .* pip install 'rsvlm\[vlm\]' \({error[:20]}"):
        load(made("llava"))


@pytest.mark.skipif(find_spec("num2words") is not None, reason="num2words is installed")
def test_smolvlm_without_num2words(made, tmp_path):
    folder = tmp_path / "smolvlm"
    shutil.copytree(made("llava"), folder)
    edit_json("config.json", model_type="smolvlm", scale_factor=2)(folder)
    edit_json("processor_config.json", processor_class="SmolVLMProcessor", image_processor=None)(folder)
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "SmolVLMImageProcessor"}')
    with pytest.raises(ModuleNotFoundError, match=r"its processor needs num2words.*pip install 'rsvlm\[vlm\]'"):
        load(folder)


OWN_CODE = """
from pathlib import Path
from transformers import LlavaConfig, LlavaForConditionalGeneration
Path({marker!r}).write_text("ran")
class OwnConfig(LlavaConfig):
    model_type = "own"
class OwnModel(LlavaForConditionalGeneration):
    config_class = OwnConfig
"""


@pytest.fixture
def own_code(made, tmp_path, monkeypatch):
    """A model of its own kind, and the file that is there once its code was run."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    marker, folder = tmp_path / "ran", tmp_path / "own model"
    shutil.copytree(made("llava"), folder)
    (folder / "own_code.py").write_text(OWN_CODE.format(marker=str(marker)))
    names = {"AutoConfig": "own_code.OwnConfig", "AutoModelForImageTextToText": "own_code.OwnModel"}
    edit_weights(lambda own: own.update({"lm_head.weight": own.pop(HEAD)}))(folder)
    edit_json("config.json", model_type="own", architectures=["OwnModel"], auto_map=names)(folder)
    return folder, marker


def test_code_of_its_own_runs_only_where_it_was_permitted(own_code, made, pictures):
    folder, marker = own_code
    with pytest.raises(ValueError, match=f"asks for Python code of its own.*permit it with remote_code: {folder}$"):
        load(folder)
    for wrong in (f"{folder}/", "True", "own model", f"{folder}@main", ""):
        with pytest.raises(ValueError, match="remote_code permits .*, so its code is not run"):
            load(folder, remote_code=wrong)
    assert not marker.exists()
    vlm = load(folder, remote_code=str(folder))
    assert marker.exists() and type(vlm.model).__name__ == "OwnModel"
    assert caption_pictures(vlm, pictures) == caption_pictures(load(made("llava")), pictures)


def test_code_of_another_repository_is_never_run(own_code):
    folder, marker = own_code
    elsewhere = {"AutoConfig": "somebody/else--own_code.OwnConfig", "AutoModelForImageTextToText": "own_code.OwnModel"}
    edit_json("config.json", auto_map=elsewhere)(folder)
    with pytest.raises(ValueError, match=r"config.json takes code from another repository \(somebody/else\)"):
        load(folder, remote_code=str(folder))
    assert not marker.exists()


COMMIT = "a" * 40


@pytest.fixture
def on_hub(tmp_path, monkeypatch):
    """Puts a folder where a download from Hugging Face lies, as somebody/model; gives its files' place."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(folder: Path) -> Path:
        place = tmp_path / "hub" / "models--somebody--model"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text(COMMIT)
        shutil.copytree(folder, place / "snapshots" / COMMIT)
        return place / "snapshots" / COMMIT

    return put


def test_a_name_on_hugging_face(on_hub, made, pictures):
    place = on_hub(made("llava"))
    for revision in (None, "main", COMMIT):
        vlm = load("somebody/model", revision=revision)
        assert caption_pictures(vlm, pictures) == caption_pictures(load(made("llava")), pictures)
    with pytest.raises(FileNotFoundError, match="hf download somebody/model --revision v2"):
        load("somebody/model", revision="v2")
    pickle_weights(place)
    with pytest.raises(FileNotFoundError, match="no safetensors; pickled weights, which can run code, are not read"):
        load("somebody/model")


def test_code_of_a_name_runs_at_the_permitted_commit(on_hub, own_code, pictures):
    folder, marker = own_code
    on_hub(folder)
    for revision in (None, COMMIT):
        wanted = f"permit it with remote_code: somebody/model@{revision or 'COMMIT and revision: COMMIT'}$"
        with pytest.raises(ValueError, match=wanted):
            load("somebody/model", revision=revision)
    assert not marker.exists()
    vlm = load("somebody/model", revision=COMMIT, remote_code=f"somebody/model@{COMMIT}")
    assert marker.exists() and len(caption_pictures(vlm, pictures)) == len(pictures)


@pytest.mark.parametrize(
    ("revision", "permitted", "message"),
    [
        (None, "some/model", "remote_code needs revision"),
        (None, "some/model@main", "remote_code needs revision"),
        ("abc", "some/model", "permits 'some/model', not 'some/model@abc'"),
        ("abc", "some/model@abd", "permits 'some/model@abd', not 'some/model@abc'"),
        ("abc", "other/model@abc", "permits 'other/model@abc', not 'some/model@abc'"),
    ],
)
def test_permission_is_for_one_revision(revision, permitted, message):
    with pytest.raises(ValueError, match=message):
        load("some/model", revision=revision, remote_code=permitted)
