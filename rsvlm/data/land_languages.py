"""The sentences on a tile of the Earth in other languages, written from what the English ones are written from.

The words stand in ``land_languages.json``: for each language its nouns with gender and number, its templates by the
English ones, its shares, places, climates and numbers. Here is the grammar: which form of a noun a place in a template
asks for, agreement, contracted prepositions, elision.

A place in a template is ``{word:form}``. Forms of a noun, in Portuguese: ``bare`` (savana), ``def`` (a savana), ``free``
(bare, but with its article for what there is one of: o mar), ``de`` (de savana), ``of`` (da savana), ``by`` (de savana, pelo
mar), ``part`` (French: de la savane, la mer). In German ``nom``, ``akk`` and ``dat`` stand without an article where there is
none of the kind, ``bare`` and ``dat_bare`` never have one. ``{word:=a|b}`` is a for one and b for several,
``{word:=a|b|c|d}`` for masculine, feminine, and several of either; ``{s+a:=...}`` counts as several when one of them does.
"""

import json
import re
from functools import cache
from importlib.resources import files

from rsvlm.data.land_sentences import MANY, Count, Cover, Covers, Sentence

LANGUAGES = ("de", "es", "fr", "pt", "zh")
ARTICLES = {
    "pt": {"m": "o", "f": "a", "mp": "os", "fp": "as"},
    "es": {"m": "el", "f": "la", "mp": "los", "fp": "las"},
    "fr": {"m": "le", "f": "la", "mp": "les", "fp": "les"},
}
BY = {"pt": "por", "es": "por", "fr": "par"}
# German: endings of an adjective without article, and the article, by case and by gender or p for several.
ENDINGS = {
    "nom": {"m": "er", "f": "e", "n": "es", "p": "e"},
    "akk": {"m": "en", "f": "e", "n": "es", "p": "e"},
    "dat": {"m": "em", "f": "er", "n": "em", "p": "en"},
}
GERMAN_ARTICLES = {
    "nom": {"m": "der", "f": "die", "n": "das", "p": "die"},
    "akk": {"m": "den", "f": "die", "n": "das", "p": "die"},
    "dat": {"m": "dem", "f": "der", "n": "dem", "p": "den"},
}
CONTRACTIONS = {
    "pt": {
        **{f"{word} {article}": f"{short}{article}" for word, short in (("de", "d"), ("em", "n"), ("por", "pel"))
           for article in ("o", "a", "os", "as")},
        "a o": "ao", "a a": "à", "a os": "aos", "a as": "às",
    },
    "es": {"de el": "del", "a el": "al"},
    "fr": {"de le": "du", "de les": "des", "à le": "au", "à les": "aux"},
    "de": {"in dem": "im", "an dem": "am", "von dem": "vom", "zu dem": "zum"},
}  # fmt: skip
ELISION = re.compile(r"\b(l|d)[ea] (?=[aeiouàâéèêîôû])", re.IGNORECASE)
PLACE = re.compile(r"\{(\w+(?:\+\w+)?)(?::([^}]*))?\}")
Word = Cover | Covers | Count | str


def write_land(sentence: Sentence, language: str) -> str:
    """A sentence of ``land_captions.tell_land`` in one of LANGUAGES; the same English gives the same text.

    Raises:
        KeyError: a template or a word that the language lacks.
    """
    known = _words()[language]
    text, end = "", ""
    for template, words in sentence.parts:

        def fill(place: re.Match, words: dict[str, Word] = words) -> str:
            named, form = [words[name] for name in place[1].split("+")], place[2] or ""
            return (
                _agreement(named, form[1:], known) if form.startswith("=") else _form(named[0], form, language, known)
            )

        text += PLACE.sub(fill, known["templates"][template])
        end += "".join(known["snow"][word.snow] for word in words.values() if isinstance(word, Covers) and word.snow)
    text = _contracted(text + end, language)
    return f"{text[0].upper()}{text[1:]}{known['end']}"


@cache
def _words() -> dict:
    return json.loads((files("rsvlm.data") / "land_languages.json").read_text(encoding="utf-8"))


def _form(word: Word, form: str, language: str, known: dict) -> str:
    """A word as a place of a template asks for it."""
    if isinstance(word, Covers):
        return known["and"].join(_form(noun, form, language, known) for noun in word.nouns)
    if isinstance(word, Cover):
        return _noun_form(word, form, language, known)
    if isinstance(word, Count):
        one, several, gender = known["counts"][word.singular]
        number = known["numbers"][min(word.number, MANY + 1)]
        forms = number.split("|")
        return one if word.number == 1 else several.format(n=forms[-1] if gender == "f" else forms[0])
    if word in known["shares"]:
        whole, alone, _, *object_forms = known["shares"][word]
        if form.endswith("_akk") and object_forms:
            whole, alone = object_forms
        kind = form.removesuffix("_akk")
        return whole.format(**known["whole"][kind]) if kind in known["whole"] else alone
    if word in known["places"]:
        return known["places"][word]
    masculine, feminine = known["climates"][word]
    return feminine if form == "f" else masculine


def _noun_form(cover: Cover, form: str, language: str, known: dict) -> str:
    if cover.part or cover.name in known["parts"]:
        text = known["parts"][cover.part or cover.name][0]
        if language == "de" and form == "akk":
            text = known["parts"][cover.part or cover.name][2]
        inner = re.search(r"\{(\w+)\}", text)
        return (
            text if inner is None else text.replace(inner[0], _noun_form(Cover(cover.name), inner[1], language, known))
        )
    text, gender = known["covers"][cover.name]
    definite, gender = gender.endswith("!"), gender.removesuffix("!")
    if language == "zh":
        return known["snow_covered"] * cover.under_snow + text
    if language == "de":
        text = known["snow_covered"] * cover.under_snow + text
        case = form.removesuffix("_bare").replace("bare", "nom")
        if case == "dat" and gender == "p":
            text += "" if text.endswith("n") else "n"
        text = text.replace("~", ENDINGS[case][gender])
        return f"{GERMAN_ARTICLES[case][gender]} {text}" if definite and not form.endswith("bare") else text
    snow = f" {_agreement([cover], known['snow_covered'], known)}" if cover.under_snow else ""
    text = text.replace("^", snow) if "^" in text else text + snow
    with_article = f"{ARTICLES[language][gender]} {text}"
    return {
        "bare": text,
        "def": with_article,
        "free": with_article if definite else text,
        "de": f"de {text}",
        "of": f"de {with_article}",
        "by": f"{BY[language]} {with_article}" if definite else f"de {text}",
        "part": with_article if definite else f"de {with_article}",
    }[form]


def _agreement(words: list[Word], forms: str, known: dict) -> str:
    """The one of the forms between bars that agrees with the first word, or is of several where one of them is."""
    options, genders = forms.split("|"), [_gender(word, known) for word in words]
    several = any(gender.endswith("p") for gender in genders)
    if len(options) == 2:
        return options[several]
    return options[2 * several + genders[0].startswith("f")]


def _gender(word: Word, known: dict) -> str:
    """m, f or n, and mp, fp or p for several."""
    if isinstance(word, Count):
        return known["counts"][word.singular][2] + ("p" if word.number > 1 else "")
    if isinstance(word, Cover):
        key = word.part or word.name
        return (known["parts"].get(key) or known["covers"][key])[1].removesuffix("!")
    return known["shares"][word][2]


def _contracted(text: str, language: str) -> str:
    if language == "fr":
        text = ELISION.sub(lambda found: f"{found[1]}'", text)
    for whole, short in CONTRACTIONS.get(language, {}).items():
        text = re.sub(rf"\b{whole}\b", short, text)
    return text
