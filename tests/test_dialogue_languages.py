"""Descriptions in other languages: what asks for one, who writes it, and an honest no."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from captioner_case import KINDS, make_captioner, make_features, make_table

from rsvlm.data.land_languages import LANGUAGES as LAND_LANGUAGES
from rsvlm.languages import NAMES
from rsvlm.models.dialogue import ANSWER, FREE, IMAGES, WORDS, Conversation, Seen, Unclear
from rsvlm.models.instructions import CONFIG_KEY, Asked, describe_kinds
from rsvlm.models.neighbours import WORD, Memory, consensus_captions, count_ngrams, spoken_languages
from rsvlm.models.prompts import CAPTION_PROMPT, CAPTION_PROMPTS, RETRIEVAL_PROMPTS, read_visual
from rsvlm.models.wishes import ASKING, asked_languages

WORDINGS = json.loads((Path(__file__).parents[1] / "rsvlm/data/instruction_wordings.json").read_text(encoding="utf-8"))
PT = dict(zip(KINDS, ("Um rio.", "Muitos aviões brancos.", "Duas quadras de tênis.", "Uma floresta densa.")))
ZH = dict(zip(KINDS, ("一条河流。", "许多白色飞机。", "两个网球场。", "一片茂密的森林。")))


@pytest.fixture(scope="module")
def features():
    return make_features()


@pytest.fixture
def captioner(features):
    return make_captioner(features).eval()


@pytest.fixture(scope="module")
def spoken(features):
    """Portuguese of all training images, written by rule and translated, and Chinese of half of them."""
    table, rows = make_table(features), []
    for number, row in enumerate(table.itertuples(index=False)):
        for code, own in {"pt": PT, "zh": ZH}.items():
            if code == "pt" or number % 8 < 4:
                texts = [own[row.label], None, own[row.label].replace("。", "在这里。").replace(".", " aqui.")]
                how = "rule" if code == "pt" and number % 2 else "machine"
                rows.append({"image_id": row.image_id, "language": code, "captions": texts, "how": how})
    return spoken_languages(features, table, pd.DataFrame(rows))


def talk_about(captioner, features, number=23, **options):
    talk = Conversation(captioner, max_new_tokens=5, no_repeat=0, **options)
    row = [number]
    vector, image_id = features.image_embeddings[row], features.image_ids[number]
    talk.give_image(image_id, Seen((read_visual(features, row),), "", None, vector, image_id))
    return talk


# What is asked for


@pytest.mark.parametrize("language", LAND_LANGUAGES)
def test_every_wording_of_the_task_set_is_understood(language):
    own = WORDINGS[f"language:{language}"]
    assert {asked_languages(text) for text in (*own["train"], *own["held_out"])} == {(language,)}
    english = [text.format(language=NAMES[language]) for part in WORDINGS["language"].values() for text in part]
    assert {asked_languages(text) for text in english} == {(language,)}


def test_no_other_instruction_or_prompt_is_taken_for_one():
    others = [
        text
        for kind, own in WORDINGS.items()
        if not kind.startswith("language")
        for form in _forms(own)
        for text in form
    ]
    assert len(others) > 150
    for text in (
        *others,
        *CAPTION_PROMPTS,
        *RETRIEVAL_PROMPTS,
        "hello",
        "Describe the Chinese temple.",
        "a legend",
        "houses in Chinese style",
        "templo chinês junto ao rio",
        "restaurante chino",
        "um rio",
        "",
    ):
        assert asked_languages(text) == (), text
    assert asked_languages("Descreve a imagem " + "e o rio " * 10) == ()  # more than a description is asked for


def _forms(own):
    return (
        [own[part] for part in ("train", "held_out")]
        if isinstance(own, dict)
        else [_ for one in own for _ in _forms(one)]
    )


@pytest.mark.parametrize(
    ("text", "languages"),
    [
        ("Describe la imagen", ("es",)),
        ("DESCREVE A IMAGEM!", ("pt",)),
        ("De\u0301cris l’image", ("fr",)),
        ("描述这张图片", ("zh",)),
        ("画像を説明してください", ("ja",)),
        ("Beschrijf de afbeelding", ("nl",)),
        ("Describe this image in Swedish", ("sv",)),
        ("Beskriv bilden", ("da", "no", "sv")),
        ("Опиши изображение", ("bg", "ru", "sr", "uk")),
        ("Descreve a imagem em inglês", ("en",)),
        ("Beschreibe das Bild auf Französisch", ("fr",)),
        ("a Portuguese description, please", ("pt",)),
    ],
)
def test_the_language_of_a_wish(text, languages):
    assert asked_languages(text) == languages


def test_the_asking_words_are_those_of_known_languages():
    assert set(ASKING) == set(NAMES) - {"en"}


# Who writes it


def test_the_neighbours_captions_in_the_language_stand_in_and_it_is_said(captioner, features, spoken):
    talk = talk_about(captioner, features, spoken=spoken)
    for text, language, own in (("Descreve a imagem.", "pt", PT), ("描述这张图片", "zh", ZH)):
        *_, said = talk.ask(text)
        assert said.text in (own[KINDS[3]], own[KINDS[3]].replace("。", "在这里。").replace(".", " aqui."))
        expected = consensus_captions(spoken[language].memory, features.image_embeddings[[23]], ["made/23.png"])
        assert said.text == expected["made/23.png"]
        assert said.note.startswith(
            f"No model wrote this: of the captions of the most similar training images in {NAMES[language]} ("
        )
    assert [turn.text for turn in talk.turns if turn.who == "you"] == ["", "Descreve a imagem.", "描述这张图片"]
    assert (
        "(machine-translated or written by rule)" in talk.turns[2].note and "(machine-translated)" in talk.turns[4].note
    )
    *_, same = talk_about(captioner, features, spoken=spoken).ask("", language="pt")
    *_, wanted = talk_about(captioner, features, spoken=spoken).ask("Describe this image.", WORDS, "pt")
    assert same.text == wanted.text == talk.turns[2].text


def test_an_image_of_training_is_not_its_own_neighbour(captioner, features, spoken):
    own = Memory({"made/00.png": ["Só este."], "made/04.png": ["Um rio."]}, spoken["pt"].memory.vectors[[0, 4]])
    assert consensus_captions(own, features.image_embeddings[[0]], ["made/00.png"]) == {"made/00.png": "Um rio."}


def test_what_cannot_be_written_is_said_with_what_can(captioner, features, spoken):
    talk = talk_about(captioner, features, spoken=spoken)
    for text, name in (
        ("Describe this image in Swedish.", "Swedish"),
        ("Beskriv bilden", "Danish or Norwegian or Swedish"),
    ):
        with pytest.raises(
            Unclear, match=f"I can't write {name}: .*I can write Chinese, English, Portuguese"
        ) as refused:
            list(talk.ask(text))
        assert refused.value.offers == [(WORDS, "")]
    assert len(talk.turns) == 1  # nothing was guessed, nothing is kept
    with pytest.raises(Unclear, match="I can't write Portuguese: .*I can write English"):
        list(talk_about(captioner, features).ask("Descreve a imagem."))
    with pytest.raises(Unclear, match="no image to describe yet"):
        list(Conversation(captioner, spoken=spoken).ask("Descreve a imagem."))
    with pytest.raises(ValueError, match="language: a language is an ISO 639-1 code .* did you mean 'pt'"):
        list(talk.ask("", language="Portuguese"))
    for wants, text in ((IMAGES, "a river"), (FREE, "a river"), (ANSWER, "a river"), ("auto", "Show me a river")):
        with pytest.raises(ValueError, match="language: of a description"):
            list(talk.ask(text, wants, "pt"))


def test_english_that_is_asked_for_in_other_words_is_the_captioners_own(captioner, features, spoken):
    talk = talk_about(captioner, features, spoken=spoken)
    *_, said = talk.ask("Descreve a imagem em inglês")
    *_, english = talk_about(captioner, features).ask(CAPTION_PROMPT, WORDS)
    assert said == english and talk.turns[1].text == "Descreve a imagem em inglês"


def test_a_captioner_that_was_taught_the_language_writes_it_itself(captioner, features, spoken):
    asked = [Asked("made/00.png", "language", "Descreva a imagem.", PT[KINDS[0]], 0, "pt")]
    asked.append(Asked("made/01.png", "presence", "Is there a river?", "No.", 0))
    captioner.config[CONFIG_KEY] = describe_kinds(asked)
    talk = talk_about(captioner, features, spoken=spoken)
    assert talk.known.languages == ("pt",)
    *_, said = talk.ask("Descreva a imagem.")
    alone = Conversation(captioner, max_new_tokens=5, no_repeat=0)
    *_, expected = alone.stream([read_visual(features, [23]), "Descreva a imagem."], words_only=True, plain=True)
    assert said.text == expected.text and said.note == ""
    *_, chinese = talk.ask("描述这张图片")
    assert chinese.note.startswith("No model wrote this")
    with pytest.raises(Unclear, match="I can't write French: .*I can write Chinese, English, Portuguese"):
        list(talk.ask("Décris l'image."))


def test_letters_of_chinese_are_words_and_english_words_are_what_they_were():
    assert WORD.findall("一条 river's 河流a380") == ["一", "条", "river's", "河", "流", "a380"]
    assert count_ngrams("一条河流。")[("河", "流")] == 1
    assert WORD.findall("it's a tree-lined água à l’eau 3.5") == [
        "it's",
        "a",
        "tree",
        "lined",
        "água",
        "à",
        "l’eau",
        "3",
        "5",
    ]
    near = Memory({"a": ["一条河流。"], "b": ["两条河流。"], "c": ["一片森林。"]}, np.eye(3, dtype=np.float16))
    assert (
        near.space.similarity(["一条河流。"], ["两条河流。"])[0, 0]
        > near.space.similarity(["一条河流。"], ["一片森林。"])[0, 0]
    )
