"""Languages: which one a text is in, and captions in one held against references in it."""

import unicodedata

import pandas as pd
import pytest
from captioner_case import KINDS, make_captioner, make_features, make_table
from language_case import make_world

from rsvlm.data.caption_languages import captions_by_language
from rsvlm.languages import check_language, detect_language, language_name
from rsvlm.models.answering import answer_tasks
from rsvlm.models.instructions import CONFIG_KEY, Asked, describe_kinds
from rsvlm.models.neighbours import consensus_captions, spoken_languages
from rsvlm.scoring.captions import score_captions
from rsvlm.scoring.language_retrieval import language_tests
from rsvlm.scoring.languages import (
    caption_language_scores,
    caption_tokens,
    said_table,
    say_captioner,
    say_consensus,
    score_said,
)
from rsvlm.viewing.language_figures import spoken_table

pytest.importorskip("py3langid")
sacrebleu = pytest.importorskip("sacrebleu")

SIX = ("de", "en", "es", "fr", "pt", "zh")
RIVER = {
    "de": "Ein Fluss fließt durch einen dichten Wald.",
    "en": "A river runs through a dense forest.",
    "es": "Un río atraviesa un bosque denso.",
    "fr": "Une rivière traverse une forêt dense.",
    "pt": "Um rio atravessa uma floresta densa.",
    "zh": "一条河流穿过茂密的森林。",
}


@pytest.mark.parametrize("language", SIX)
def test_a_sentence_is_told_apart_in_any_case_and_normal_form(language):
    assert detect_language(RIVER[language], SIX) == language
    assert detect_language(RIVER[language].upper(), SIX) == language
    assert detect_language(unicodedata.normalize("NFD", RIVER[language]), SIX) == language


@pytest.mark.parametrize("text", ["", "  ", "123 - 4.5", "نهر في غابة كثيفة", "река в лесу"])
def test_what_cannot_be_any_of_the_languages_is_none(text):
    assert detect_language(text, SIX) is None


def test_mixed_scripts_go_by_most_letters():
    assert detect_language("UCM 的机场图像非常清晰", SIX) == "zh"
    assert detect_language("dense forest 森林", ("en", "zh")) == "en"
    assert detect_language("نهر في غابة", ("ar", "en")) == "ar"


def test_what_cannot_be_asked_says_why():
    with pytest.raises(ValueError, match="at least one language"):
        detect_language("a river", ())
    with pytest.raises(ValueError, match="does not know the language xx"):
        detect_language("a river", ("en", "xx"))
    with pytest.raises(ValueError, match=r"here: a language is an ISO 639-1 code.*'Portuguese'.*did you mean 'pt'"):
        check_language("Portuguese", "here")
    for wrong in ("PT", "por", None, 1, "p1", ""):
        with pytest.raises(ValueError, match="two small letters"):
            check_language(wrong, "here")
    assert check_language("pt", "here") == "pt" and language_name("pt") == "Portuguese" and language_name("eo") == "eo"


def test_tokens_part_articles_and_characters():
    assert caption_tokens("Au bord de l'image, on voit l'eau.", "fr") == "au bord de l image on voit l eau"
    assert caption_tokens("图像的约3.5%是UCM草地。", "zh") == "图 像 的 约 3.5 是 ucm 草 地"
    assert caption_tokens("Água à vista!", "pt") == "água à vista"


REFERENCES = {
    "a": ["Um rio atravessa uma floresta densa.", None, "Há um rio na floresta."],
    "b": ["Dois aviões estão no aeroporto.", "Há dois aviões parados."],
    "c": ["Uma praia com areia branca."],
}


def test_a_reference_said_again_scores_full_and_another_language_is_seen():
    same = caption_language_scores({key: texts[0] for key, texts in REFERENCES.items()}, REFERENCES, "pt", resamples=50)
    for metric in ("right_language", "BLEU", "chrF"):
        assert same[metric]["value"] == pytest.approx(1) and same[metric]["n"] == 3
    other = caption_language_scores(
        {"a": "Un río atraviesa un bosque denso.", "b": "Dois aviões estão no aeroporto.", "c": "..."},
        REFERENCES,
        "pt",
        resamples=50,
    )
    assert other["right_language"]["value"] == pytest.approx(1 / 3, abs=1e-6)
    assert other["detected"] == {"es": 1, "none": 1, "pt": 1}
    assert 0 < other["BLEU"]["value"] < 1 and 0 < other["CIDEr"]["value"] < same["CIDEr"]["value"]
    assert other["BLEU"]["low"] <= other["BLEU"]["value"] <= other["BLEU"]["high"]
    assert "version:" in other["protocol"]["BLEU"] and "nrefs:var" in other["protocol"]["chrF"]


def test_bleu_and_chrf_are_sacrebleus():
    said = {"a": "Um rio na floresta densa.", "b": "Dois aviões parados no aeroporto."}
    own = {key: [text for text in REFERENCES[key] if text] for key in said}
    scores = caption_language_scores(said, own, "pt", resamples=10)
    streams = [list(texts) for texts in zip(own["a"], own["b"], strict=True)]
    for metric, tool in (("BLEU", sacrebleu.BLEU()), ("chrF", sacrebleu.CHRF())):
        assert scores[metric]["value"] == pytest.approx(
            tool.corpus_score([*said.values()], streams).score / 100, abs=1e-6
        )


def test_english_cider_is_the_projects_own_where_the_tokens_are_the_same():
    references = {
        "a": ["a river runs through a dense forest", "a river in a forest"],
        "b": ["two planes at an airport"],
    }
    said = {"a": "a river in a dense forest", "b": "two planes"}
    own = caption_language_scores(said, references, "en", resamples=10)["CIDEr"]["value"]
    assert own == pytest.approx(score_captions(said, references).corpus["CIDEr"], abs=1e-6)


def test_images_that_differ_are_named():
    with pytest.raises(ValueError, match="1 images without references, such as 'a'"):
        caption_language_scores({"a": "Um rio."}, {"a": [None]}, "pt")
    with pytest.raises(ValueError, match="without a generated caption"):
        caption_language_scores({"a": "Um rio."}, {"a": ["Um rio."], "b": ["Um lago."]}, "pt")


def test_the_consensus_of_the_neighbours_captions_is_scored_in_each_language():
    table, translations, features = make_world()
    tests = language_tests(captions_by_language(table, translations, ["pt", "de"]), "test")
    spoken = spoken_languages(features, table, translations[translations["language"] == "pt"])
    pooling = {"k": 3, "temperature": 0.05}
    found = score_said(tests, say_consensus(tests, features, spoken, pooling), resamples=20)
    assert list(found["s"]) == ["pt"]  # of German nothing is spoken, English needs nobody
    ids = tests["s"]["pt"].test.image_ids
    said = consensus_captions(spoken["pt"].memory, features.image_embeddings[features.rows(ids)], ids, **pooling)
    own = translations[translations["language"] == "pt"].set_index("image_id")["captions"]
    expected = caption_language_scores(said, {image_id: own[image_id] for image_id in ids}, "pt", resamples=20)
    assert found["s"]["pt"] == expected | {"how": "machine-translated"}
    assert expected["CIDEr"]["value"] > 0.5 and expected["CIDEr"]["n"] == len(ids)
    shown = spoken_table({"consensus": found})
    assert shown.loc[("s", "pt", "consensus"), "references"] == "machine-translated"
    assert shown.loc[("s", "pt", "consensus"), "CIDEr"].startswith(f"{expected['CIDEr']['value']:.3g} [")
    assert spoken_table({"consensus": {}}).empty


def test_a_captioner_is_asked_in_the_languages_that_it_was_taught():
    features = make_features()
    table, captioner = make_table(features), make_captioner(features).eval()
    own = dict(zip(KINDS, ("Um rio.", "Muitos aviões.", "Duas quadras.", "Uma floresta.")))
    translations = pd.DataFrame(
        {"image_id": row.image_id, "language": code, "captions": [own[row.label], None, None], "how": "machine"}
        for row in table.itertuples(index=False)
        for code in ("fr", "pt")
    )
    tests = language_tests(captions_by_language(table, translations, ["fr", "pt"]), "test")
    options = {"max_new_tokens": 4, "batch_size": 3}
    assert say_captioner(tests, features, captioner, **options) == say_captioner(tests, features, None) == {}
    captioner.config[CONFIG_KEY] = describe_kinds([Asked("made/00.png", "language", "Descreva.", "Um rio.", 0, "pt")])
    said = say_captioner(tests, features, captioner, **options)
    ((source, languages),) = said.items()
    ids = tests[source]["pt"].test.image_ids
    answers = answer_tasks(captioner, features, ids, ["Describe the image in Portuguese."] * len(ids), **options)
    assert languages == {"pt": dict(zip(ids, answers["answer"]))}  # of French nothing was taught, English is no wish
    scores = score_said(tests, said, resamples=10)
    assert scores[source]["pt"]["how"] == "machine-translated" and scores[source]["pt"]["CIDEr"]["n"] == len(ids)
    perfect = {source: {"pt": {image_id: own[table.set_index("image_id").loc[image_id, "label"]] for image_id in ids}}}
    right = score_said(tests, perfect, resamples=10)
    assert right[source]["pt"]["chrF"]["value"] == pytest.approx(1)
    shown = spoken_table({"consensus": right, "captioner": scores})
    assert list(shown.index) == [(source, "pt", "consensus"), (source, "pt", "captioner")]
    table_of_captions = said_table({"consensus": perfect, "captioner": said})
    assert len(table_of_captions) == 2 * len(ids) and list(table_of_captions["run"].unique()) == [
        "consensus",
        "captioner",
    ]
