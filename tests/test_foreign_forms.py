"""Lists, so many words and JSON asked for in other languages: read by rule as the English ones, or not at all."""

import pytest
from captioner_case import make_captioner, make_features
from PIL import Image
from test_foreign_wishes import _Outside, _say, talk_about

from rsvlm.data.instruction_kinds import FORMS, wordings
from rsvlm.models.answering import answer
from rsvlm.models.dialogue import Conversation, Unclear
from rsvlm.models.foreign_wishes import languages_read, read_formed, read_wish, say_answer
from rsvlm.models.instructions import CONFIG_KEY, Asked, describe_kinds

LISTS = {  # a wording each for: covers as bullets, main things with commas, covers numbered
    "pt": ["Liste as coberturas do solo com marcadores.", "Enumera os principais elementos, separados por vírgulas", "Quais são os tipos de terreno? Responde em lista numerada."],
    "es": ["Enumera las cubiertas del suelo con viñetas.", "Lista los elementos principales separados por comas", "¿Cuáles son los tipos de terreno? Dame una lista numerada."],
    "fr": ["Énumère les couvertures du sol avec des puces.", "Liste les objets principaux, séparés par des virgules", "Quels sont les types de terrain ? Réponds par une liste numérotée."],
    "de": ["Liste die Landbedeckungen mit Aufzählungspunkten auf.", "Nenne die wichtigsten Dinge, durch Kommas getrennt", "Welche Bodenbedeckungen gibt es? Antworte als nummerierte Liste."],
    "zh": ["请用项目符号列出土地覆盖类型。", "列举主要的物体,用逗号分隔", "请列出地表类型,并加上编号。"],
}  # fmt: skip
WORDS = {
    "pt": ["Descreva a imagem em no máximo cinco palavras.", "Descreve a imagem, não mais do que 5 palavras", "Legenda de até cinco palavras, por favor", "Responde em cinco palavras", "Diz o que vês em 5 palavras ou menos"],
    "es": ["Describe la imagen en cinco palabras como máximo.", "Describe la imagen con no más de 5 palabras", "Descripción de hasta cinco palabras", "Responde en cinco palabras", "Describe la imagen: 5 palabras o menos"],
    "fr": ["Décris l'image en cinq mots au maximum.", "Décris l'image, pas plus de 5 mots", "Une légende de cinq mots maximum", "Réponds en cinq mots", "Décris l'image en au plus 5 mots", "Une description, cinq mots ou moins"],
    "de": ["Beschreibe das Bild in höchstens fünf Wörtern.", "Beschreib das Bild mit nicht mehr als 5 Wörtern", "Eine Bildunterschrift, maximal fünf Wörter", "Antworte in fünf Worten", "Beschreibe das Bild in bis zu 5 Wörtern"],
    "zh": ["请用不超过五个词描述这张图片。", "用5个词描述图片", "描述一下图片,最多五个词", "请描述图片,五个词以内"],
}  # fmt: skip
JSONS = {
    "pt": ['Responda em JSON com as chaves "main_cover" e "climate".', "Quero um JSON; chaves: main_cover, climate", "Descreva a imagem em JSON: “main_cover” e “climate”"],
    "es": ['Responde en JSON con las claves "main_cover" y "climate".', "Quiero un JSON; claves: main_cover, climate", "Describe la imagen en formato JSON: «main_cover» y «climate»"],
    "fr": ["Réponds en JSON avec les clés « main_cover » et « climate ».", "Donne un JSON; clés : main_cover, climate", "Décris l'image en JSON : main_cover et climate"],
    "de": ["Antworte in JSON mit den Schlüsseln „main_cover“ und „climate“.", "Gib ein JSON aus; Felder: main_cover, climate", "Beschreibe das Bild als JSON: main_cover, climate"],
    "zh": ["请用JSON回答,键为“main_cover”和“climate”。", "输出JSON,字段:main_cover,climate", "请用JSON描述图片:main_cover和climate"],
}  # fmt: skip
LIST, AT_MOST, JSON = (wordings()[kind]["train"][0] for kind in ("list", "at_most_words", "json"))


@pytest.mark.parametrize("language", languages_read())
def test_lists_are_read(language):
    wishes = [read_wish(text) for text in LISTS[language]]
    asked = [("the land covers", "bullets"), ("the main things", "commas"), ("the land covers", "numbers")]
    assert [wish.instruction for wish in wishes] == [LIST.format(what=what, form=FORMS[form]) for what, form in asked]
    assert {(wish.kind, wish.language, wish.answer_language) for wish in wishes} == {("list", language, language)}


@pytest.mark.parametrize("language", languages_read())
def test_so_many_words_are_read(language):
    for text in WORDS[language]:
        wish = read_wish(text)
        assert wish and (wish.kind, wish.language) == ("at_most_words", language), text
        assert wish.instruction == AT_MOST.format(n="five") and wish.answer_language == "en"


@pytest.mark.parametrize("language", languages_read())
def test_json_with_keys_is_read(language):
    for text in JSONS[language]:
        wish = read_wish(text)
        assert wish and (wish.kind, wish.language, wish.answer_language) == ("json", language, "en"), text
        assert wish.instruction == JSON.format(keys='"main_cover" and "climate"'), text


@pytest.mark.parametrize(
    "text",
    [
        "Descreva a imagem em pelo menos cinco palavras", "Describe la imagen con más de cinco palabras",
        "Décris l'image en cinq mots ou plus", "Beschreibe das Bild in mindestens fünf Wörtern", "用至少五个词描述图片",
        "Descreva a imagem em quarenta palavras", "Descreva a imagem em 500 palavras", "Descreva em uma palavra",
        "Descreva o rio em cinco palavras",  # of a thing no English instruction asks for words
        "Descreva a imagem em inglês em cinco palavras", "Décris l'image en allemand en cinq mots",
        "Liste as coberturas do solo", "Nenne die Dinge im Bild", "Liste os barcos com marcadores", "请列出土地覆盖类型",
        "Liste die Dinge mit Kommas, nummeriert", "Responda em JSON", "Antworte in JSON mit Schlüsseln",
        "Répondez en JSON avec les clés",
    ],
)  # fmt: skip
def test_what_the_english_has_not_is_not_read(text):
    assert read_formed(text, ("list", "at_most_words", "json")) is None


@pytest.mark.parametrize(
    "text", ["Há um rio na imagem? Responde em três palavras", "Gibt es einen Fluss? In höchstens drei Wörtern"]
)
def test_a_question_stays_one(text):
    assert read_wish(text).instruction == "Is there a river in the image?"


def test_a_list_goes_back_with_its_things():
    german, chinese = read_wish(LISTS["de"][0]), read_wish(LISTS["zh"][0])
    assert say_answer("- sea\n- grassland", german) == "- Meer\n- Grasland"
    assert say_answer("1. river\n2. sea", german) == "1. Fluss\n2. Meer"
    assert say_answer("sea, lakes", chinese) == "海, 湖"
    for unknown in ("- sea\n- something else", "- sea and river", ""):
        assert say_answer(unknown, german) == unknown
    assert say_answer('{"sea": true}', read_wish(JSONS["de"][0])) == '{"sea": true}'
    assert say_answer("Wide grassland.", read_wish(WORDS["fr"][0])) == "Wide grassland."


# The dialogue and rsvlm.answer


@pytest.fixture(scope="module")
def features():
    return make_features()


@pytest.fixture
def captioner(features):
    """It was taught the three forms, and to describe in Portuguese."""
    made = make_captioner(features).eval()
    asked = [
        Asked("made/00.png", "list", LIST.format(what="the land covers", form="as bullet points"), "- river", 0),
        Asked("made/00.png", "at_most_words", AT_MOST.format(n="four"), "A river.", 0),
        Asked("made/00.png", "json", JSON.format(keys='"sea" and "islands"'), '{"sea": true, "islands": 1}', 0),
        Asked("made/00.png", "language", "Descreva a imagem.", "Um rio.", 0, "pt"),
    ]
    made.config[CONFIG_KEY] = describe_kinds(asked)
    return made


def said_to(captioner, features, text, **options):
    *_, said = talk_about(captioner, features).ask(text, **options)
    return said


@pytest.mark.parametrize("language", languages_read())
def test_the_dialogue_asks_for_the_form_in_english(captioner, features, monkeypatch, language):
    monkeypatch.setattr(Conversation, "_instructed", _say("- river"))
    said = said_to(captioner, features, LISTS[language][0])
    assert said.language == language and said.text.startswith("- ") and said.text != "- river"
    for texts in (WORDS, JSONS):
        said = said_to(captioner, features, texts[language][0])
        assert said.language == "en" and said.note.startswith("Read as “") and said.text == "- river"
    assert said_to(captioner, features, WORDS[language][0], language=language).note.startswith("Read as “")


def test_what_was_not_taught_is_as_it_was(captioner, features):
    captioner.config[CONFIG_KEY] = {"language": captioner.config[CONFIG_KEY]["language"]}
    said = said_to(captioner, features, WORDS["pt"][0])
    assert said.language == "pt" and "Read as" not in said.note  # described in Portuguese
    assert said_to(captioner, features, WORDS["pt"][0], language="pt").language == "pt"
    with pytest.raises(Unclear, match="I read this as “List the land covers in the image as bullet points.”, which"):
        said_to(captioner, features, LISTS["pt"][0])
    own, image = _Outside(captioner, features), Image.new("RGB", (32, 32))
    assert answer(own, image, WORDS["pt"][0], max_new_tokens=4).language == "pt"
    with pytest.raises(ValueError, match="is read as 'Answer in JSON with the keys"):
        answer(own, image, JSONS["zh"][1])


def test_answer_takes_forms_in_other_languages(captioner, features):
    own, image = _Outside(captioner, features), Image.new("RGB", (32, 32))
    for texts, language in ((WORDS, "en"), (JSONS, "en"), (LISTS, "pt")):
        said = answer(own, image, texts["pt"][0], max_new_tokens=4)
        english = answer(own, image, said.asked, max_new_tokens=4)
        assert said.said == english.said and said.kind == english.kind and said.language == language
    assert answer(own, image, "Descreva a imagem.", max_new_tokens=4).kind == "language"
