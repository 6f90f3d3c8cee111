"""A frozen language model in 4 bits: refused without a GPU or its package, built as QLoRA has it, counted in memory. Never run here."""

import sys

import pytest
import torch
from captioner_case import make_captioner, make_features

from rsvlm.files import read_json
from rsvlm.models import captioner, loading
from rsvlm.models.captioner import load_capret, load_language_model, save_capret
from rsvlm.models.loading import four_bits
from rsvlm.study import plan
from rsvlm.study.memory import estimate_finetune_lora
from rsvlm.study.settings import FinetuneLora
from rsvlm.study.studies import study_params

CUDA = torch.device("cuda")


def test_without_a_gpu_it_is_refused_in_one_sentence():
    with pytest.raises(
        ValueError, match="^language_model random:llama: four_bit needs a CUDA GPU, and this is cpu; set it"
    ):
        load_language_model("random:llama", four_bit=True)
    with pytest.raises(ValueError, match="'four_bit' needs a CUDA GPU, and 'device' is cpu: set four_bit to false, or"):
        FinetuneLora(four_bit=True, device="cpu")
    with pytest.raises(ValueError, match="'four_bit' and 'shard': weights in 4 bits are not spread"):
        FinetuneLora(four_bit=True, shard=True)
    assert FinetuneLora(four_bit=True).device == "auto"


def test_without_its_package_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ModuleNotFoundError, match=r"^a: four_bit needs bitsandbytes: .*`fourbit`.; or set it to false"):
        four_bits("a", CUDA, torch.bfloat16)


@pytest.fixture
def package(monkeypatch):
    """As if bitsandbytes were there; a module of that name would have peft look into it."""
    monkeypatch.setattr(loading, "import_extra", lambda *_: None)


def test_the_configuration_is_that_of_qlora(package):
    options = four_bits("a", CUDA, torch.bfloat16)
    how = options["quantization_config"]
    assert how.load_in_4bit and how.bnb_4bit_quant_type == "nf4" and how.bnb_4bit_use_double_quant
    assert how.bnb_4bit_compute_dtype is torch.bfloat16 and options["device_map"] == {"": CUDA}


@pytest.fixture
def asked(package, monkeypatch) -> list[dict]:
    """What language models were asked for in 4 bits; they come in full, on the CPU."""
    original, seen = captioner.load_pretrained, []

    def load(*arguments, quantization_config=None, device_map=None, **options):
        if quantization_config is not None:
            seen.append({"how": quantization_config, "where": device_map, **options})
        return original(*arguments, **options)

    monkeypatch.setattr(captioner, "load_pretrained", load)
    monkeypatch.setattr(captioner, "four_bits", lambda what, device, dtype: loading.four_bits(what, CUDA, dtype))
    return seen


def test_a_captioner_is_built_saved_and_loaded_over_it(asked, tmp_path, monkeypatch):
    features = make_features()
    plain = make_captioner(features)
    made = make_captioner(features, four_bit=True)
    assert [one["dtype"] for one in asked] == [torch.bfloat16] and asked[0]["where"] == {"": CUDA}
    assert made.config["four_bit"] and made.config["dtype"] == "bfloat16"
    assert not any(p.requires_grad for n, p in made.language_model.named_parameters() if "lora_" not in n)
    assert made.parameter_groups()["lora"] and all(p.dtype == torch.float32 for p in made.parameter_groups()["lora"])
    save_capret(made, tmp_path / "four")
    save_capret(plain, tmp_path / "plain")
    assert "four_bit" not in read_json(tmp_path / "plain" / "config.json")  # as it ever was
    monkeypatch.setattr(captioner, "fingerprint_language_model", lambda *_: "of another library or GPU")
    again = load_capret(tmp_path / "four", "cpu")
    assert len(asked) == 2 and again.config["four_bit"]
    with pytest.raises(ValueError, match="trained over the language model"):
        load_capret(tmp_path / "plain", "cpu")


def test_memory_and_plan_count_it(capsys):
    values = study_params("cap4")["finetune_lora"] | {"device": "cuda", "dtype": "bfloat16", "captions_per_image": 5}
    meta = {"dims": {"pooled": 1024}, "views": 1, "grid": 4, "image_ids": range(100)}
    (llama,) = plan.DECODERS.values()
    whole, four = (estimate_finetune_lora(values | {"four_bit": one}, llama, 20, meta) for one in (False, True))
    assert whole[0].size == 2 * llama.parameters
    linear = llama.parameters - 2 * llama.vocabulary * llama.width
    assert four[0].size == pytest.approx(linear * 4.127 / 8 + 4 * llama.vocabulary * llama.width)
    assert [part.size for part in four[1:]] == [part.size for part in whole[1:]]
    print(*plan.plan("cap4", study_params("cap4")), sep="\n")
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line.partition("*")[2].split() for line in lines if line.startswith("  24 GB, four_bit *")]
    full = next(
        line.split(")")[1].split() for line in reversed(lines) if line.startswith("  1 x 24 GB") and ")" in line
    )
    assert float(row[1]) == pytest.approx(four[0].size / 1e9, abs=0.06) and float(row[1]) < float(full[1]) / 3
    assert float(row[4]) <= 0.9 * 24 and int(row[0]) > int(full[0])
    assert any("four_bit: computed, never run" in line for line in lines)
