"""Questions and searches in other languages: read by rule as those of training, answered in the language, or refused."""

import re
from dataclasses import replace

import pytest
from captioner_case import make_captioner, make_features, make_table
from PIL import Image

from rsvlm.data.instruction_kinds import PLACES, wordings
from rsvlm.data.objects import things
from rsvlm.models.answering import answer
from rsvlm.models.dialogue import IMAGES, Conversation, Seen, Turn, Unclear
from rsvlm.models.foreign_wishes import (
    _forms,
    _things,
    can_ask,
    examples_in,
    foreign_language,
    languages_read,
    read_wish,
    say_answer,
)
from rsvlm.models.generation import embed_images_ret
from rsvlm.models.instructions import CONFIG_KEY, Asked, describe_kinds
from rsvlm.models.neighbours import training_memory
from rsvlm.models.prompts import CAPTION_PROMPTS, RETRIEVAL_PROMPTS, read_visual
from rsvlm.models.wishes import asked_languages
from rsvlm.viewing.dialogues import limits_of

EXPECTED = (
    "Is there a river in the image?", "How many airplanes are there in the image?", "Where in the image is the lake?",
    wordings()["climate"]["train"][0], wordings()["largest"]["train"][0], "a harbor",
    "List the land covers in the image as bullet points.", "Describe the image in at most five words.",
    'Answer in JSON with the keys "main_cover" and "climate".',
)  # fmt: skip


@pytest.fixture(scope="module")
def features():
    return make_features()


@pytest.fixture
def captioner(features):
    """It was taught presence and counts, and to describe in Portuguese."""
    made = make_captioner(features).eval()
    asked = [
        Asked("made/00.png", "presence", "Is there a river in the image?", "yes", 0),
        Asked("made/01.png", "presence", "Is there a lake in the image?", "no", 0),
        Asked("made/01.png", "count", "How many planes are there?", "two", 0),
        Asked("made/02.png", "count", "How many boats are there?", "three", 0),
        Asked("made/00.png", "language", "Descreva a imagem.", "Um rio.", 0, "pt"),
    ]
    made.config[CONFIG_KEY] = describe_kinds(asked)
    return made


def talk_about(captioner, features, number=20, **options):
    talk = Conversation(captioner, max_new_tokens=5, no_repeat=0, **options)
    talk.give_image(features.image_ids[number], Seen((read_visual(features, [number]),)))
    return talk


# What is read


@pytest.mark.parametrize("language", languages_read())
def test_the_forms_of_a_language_are_read(language):
    described, *others = examples_in(language)
    assert asked_languages(described) == (language,)
    wishes = [read_wish(text) for text in others]
    assert [wish.instruction for wish in wishes] == list(EXPECTED) and {wish.language for wish in wishes} == {language}
    kinds = ["presence", "count", "where", "climate", "largest", IMAGES, "list", "at_most_words", "json"]
    assert [wish.kind for wish in wishes] == kinds
    assert [read_wish(text.upper().rstrip("?.!？"), language) for text in others][:5] == wishes[:5]
    assert all(described in can_ask(language) for described in examples_in(language))


@pytest.mark.parametrize("language", languages_read())
def test_the_tables_are_whole(language):
    forms = [form for own in _things(language).values() for form in own]
    assert set(_things(language)) <= set(things()) and all(forms) and len(set(forms)) == len(forms)
    assert set(_forms()[language]["climates"]) == {"tropical", "arid", "temperate", "continental", "polar"}
    assert len(set(_forms()[language]["places"])) == len(PLACES)
    for name, (form, *_) in _things(language).items():
        wish = read_wish(examples_in(language)[1].replace(_things(language)["river"][0], form), language)
        assert wish and wish.instruction == f"Is there {things()[name].one} in the image?", form


@pytest.mark.parametrize(
    ("text", "kind", "instruction"),
    [
        ("ha um rio aqui?", "presence", "Is there a river in the image?"),
        ("Existe um rio?", "presence", "Is there a river in the image?"),
        ("¿EXISTE UN RÍO?", "presence", "Is there a river in the image?"),
        ("Gibt es Häuser?", "presence", "Is there a house in the image?"),
        ("Ist eine Brücke im Bild zu sehen?", "presence", "Is there a bridge in the image?"),
        ("几架飞机？", "count", "How many airplanes are there in the image?"),
        ("Combien de courts de tennis ?", "count", "How many tennis courts are there in the image?"),
        ("Y a-t-il un terrain de baseball ?", "presence", "Is there a baseball field in the image?"),
    ],
)
def test_without_accents_in_capitals_and_with_the_longest_thing(text, kind, instruction):
    wish = read_wish(text)
    assert (wish.kind, wish.instruction) == (kind, instruction)


@pytest.mark.parametrize(
    "text",
    [
        "Hay bales in a field", "Is there a river?", "", "airport", "Não há um rio na imagem?",
        "Há um rio ou um lago?", "Há um unicórnio?", "Qual é a cor do telhado?", "屋顶是什么颜色?", "Descreva a imagem.",
    ],
)  # fmt: skip
def test_what_no_rule_reads_is_not_read(text):
    assert read_wish(text) is None


def test_an_accent_tells_words_apart():
    assert read_wish("Y a-t-il une maison à côté ou près d'ici ?").instruction == "Is there a house in the image?"
    assert read_wish("Y a-t-il une foret ?").instruction == "Is there forest in the image?"


def test_english_is_never_taken_for_another_language():
    english = [
        text
        for kind, own in wordings().items()
        if not kind.startswith("language:")
        for part in own.values()
        for text in part
    ]
    for text in (
        *english,
        *CAPTION_PROMPTS,
        *RETRIEVAL_PROMPTS,
        "many boats in a harbour",
        "two planes beside a hangar",
    ):
        assert read_wish(text) is None and foreign_language(text) is None, text


def test_answers_go_back_into_the_language():
    presence, count, where, climate, largest, _ = (read_wish(text) for text in examples_in("de")[1:7])
    told = {"yes": presence, "no": presence, "two": count, "no ": count, "bottom left": where, "arid": climate}
    assert [say_answer(text, wish) for text, wish in told.items()] == ["Ja.", "Nein.", "2", "0", "unten links", "arid"]
    assert say_answer("Dense evergreen forest.", largest) == "immergrüner Laubwald"
    assert say_answer("purple", climate) == "purple"  # the tables lack it


# The dialogue


def answered(captioner, features, text, **options):
    *_, said = talk_about(captioner, features, **options).ask(text)
    return said


def test_a_question_is_asked_in_english_and_answered_in_its_language(captioner, features, monkeypatch):
    monkeypatch.setattr(Conversation, "_instructed", _say("yes"))
    said = answered(captioner, features, "Há um rio na imagem?")
    assert (said.text, said.language) == ("Sim.", "pt")
    assert said.note == "Read as “Is there a river in the image?”, answered “yes”."
    *_, same = talk_about(captioner, features).ask("Há um rio na imagem?", language="pt")
    assert same == said
    monkeypatch.setattr(Conversation, "_instructed", _say("I can't tell."))
    assert answered(captioner, features, "图片里有河流吗?").text == "我无法判断。"


def _say(words):
    return lambda self, text, kind: iter([Turn("model", words)])


def test_what_is_asked_is_what_the_english_question_asks(captioner, features):
    said = answered(captioner, features, "Wie viele Flugzeuge gibt es?")
    english = answered(captioner, features, "How many airplanes are there in the image?")
    assert f"answered “{english.text}”" in said.note and said.language == "de"


def test_what_cannot_be_done_in_a_language_is_said(captioner, features):
    for text, told in (
        ("Qual é a cor do telhado?", "This is Portuguese, of which I read a few forms by rule: “Descreva a imagem.”"),
        (
            "Di che colore è il tetto?",
            "This seems to be Italian. I read questions in English, and a few forms in German",
        ),
        (
            "Wo ist der See?",
            "I read this as “Where in the image is the lake?”, which the model was not trained to answer",
        ),
    ):
        with pytest.raises(Unclear, match=re.escape(told)):
            answered(captioner, features, text)
    with pytest.raises(Unclear, match="not an image to answer about"):
        list(Conversation(captioner).ask("Há um rio?"))
    assert any("and searches in Portuguese, Spanish" in line for line in limits_of(Conversation(captioner)))


def test_images_are_found_by_the_thing_or_by_what_reads_the_language(captioner, features):
    found = {"image_ids": features.image_ids, "image_embeddings": embed_images_ret(captioner, features.pooled)}
    talk = Conversation(captioner, **found)
    *_, said = talk.ask("Mostra imagens de um porto")
    assert said.image_ids == talk.find("a harbor").image_ids and "searched as “a harbor”" in said.note
    with pytest.raises(Unclear, match=r"\[RET\] reads English alone, and nothing here reads Portuguese"):
        list(talk.ask("Mostra imagens de coisas bonitas"))
    with pytest.raises(Unclear, match="nothing here reads Portuguese"):  # the button: the text is the description
        list(talk.ask("um porto com muitos barcos brancos", IMAGES))
    asked = []
    talk = Conversation(captioner, search=lambda *given: asked.append(given) or (["a"], [0.5], "by the head"), **found)
    *_, said = talk.ask("Zeige mir Bilder von schönen Dingen am Hafen")
    assert asked == [("schönen Dingen am Hafen", "de")] and (said.image_ids, said.note) == (("a",), "by the head")
    *_, said = talk.ask("um porto com muitos barcos brancos", IMAGES)
    assert asked[1] == ("um porto com muitos barcos brancos", "pt") and said.image_ids == ("a",)
    *_, said = talk.ask("a harbor with many white boats", IMAGES)
    assert len(asked) == 2 and said.image_ids == talk.find("a harbor with many white boats").image_ids


# rsvlm.answer


class _Outside:
    """What ``answer`` needs of a captioner from a folder."""

    def __init__(self, model, features):
        self.model, self._features = model, features
        self.memory = training_memory(features, make_table(features))

    def encode(self, pictures, names):
        picked = slice(3, 4)
        return replace(
            self._features,
            pooled=self._features.pooled[picked],
            grid=None if self._features.grid is None else self._features.grid[picked],
            image_embeddings=self._features.image_embeddings[picked],
            image_ids=list(names),
        )

    def warning(self, distance):
        return ""


def test_answer_takes_other_languages_or_says_what_it_takes(captioner, features):
    own, image = _Outside(captioner, features), Image.new("RGB", (32, 32))
    english = answer(own, image, "Is there a river in the image?", max_new_tokens=5)
    said = answer(own, image, "Y a-t-il une rivière ?", max_new_tokens=5)
    assert said.said == english.said and said.margin == english.margin and said.kind == english.kind == "presence"
    assert (said.language, said.asked, english.language) == ("fr", "Is there a river in the image?", "en")
    unsure = answer(own, image, "Y a-t-il une rivière ?", max_new_tokens=5, tell_from=1e6)
    assert unsure.text == "Je ne peux pas le dire." and unsure.said == english.said
    taught = answer(own, image, "Descreve a imagem.", max_new_tokens=5)
    assert (taught.kind, taught.language, taught.asked) == ("language", "pt", "Descreve a imagem.")
    for text, told, language in (
        (
            "Décris l'image.",
            "can't write French: no instruction taught it that; it writes English, Portuguese. This is",
            None,
        ),
        (
            "Quelle est la couleur du toit de cette maison ?",
            "This is French, of which I read a few forms by rule",
            None,
        ),
        ("Montre-moi des images d'un port", "asks for images, here about one image is answered", None),
        (
            "Où est le lac ?",
            "is read as 'Where in the image is the lake[?]', which this captioner was not trained",
            None,
        ),
        ("Is there a river?", "can't write German", "de"),
        ("Is there a river?", "language: a language is an ISO 639-1 code", "German"),
    ):
        with pytest.raises(ValueError, match=told):
            answer(own, image, text, language=language)
