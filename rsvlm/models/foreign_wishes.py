"""Questions and searches in Portuguese, Spanish, French, German and Chinese, read as the English ones that training had.

By rule: how a question begins in a language (``foreign_questions.json``) and which thing it names
(``foreign_things.txt``) give the kind and the English instruction; the answer, one of few, goes back by the same tables.
So are read a list (of the covers or the main things, as bullet points, with commas or numbered), a description in at most so
many words, and JSON with given keys; of their answers only a list's things go back, words and JSON stay English.
Nothing is translated freely: what no rule reads is refused with what is read (``can_ask``). No speaker has reviewed the tables.

Held against the captions of UCM-Captions and their translations: the tables find 91 (German) to 97 % (Spanish) of the things
that the closed list finds in the English ones; of the 4,694, 39 (German) to 158 (Chinese) more are named than the English has. Of
6,458 English captions none is taken for another language, of 2,030 translations 2,024 (Portuguese) to 2,030 are told.
"""

import re
import unicodedata
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rsvlm.data.caption_languages import ENGLISH
from rsvlm.data.instruction_kinds import FORMS, KEYS, NO, PLACES, YES, joined, wordings
from rsvlm.data.names import NUMBERS
from rsvlm.data.objects import mentions_in, things
from rsvlm.files import read_json
from rsvlm.languages import WITHOUT_SPACES, detect_language, language_name, normal_text, other_language
from rsvlm.models.wishes import IMAGES, named_languages

QUESTIONS = Path(__file__).with_name("foreign_questions.json")
THINGS = Path(__file__).with_name("foreign_things.txt")
WITH_THING = ("presence", "count", "where")
LIST, AT_MOST, JSON = "list", "at_most_words", "json"
FORMED = (LIST, AT_MOST, JSON)  # kinds that say in which form to answer
# "how many are there" is no "are there", and a question in so many words is a question
READ_IN_ORDER = (IMAGES, JSON, LIST, "count", "where", "climate", "largest", "presence", AT_MOST)
LISTED = (("covers", "the land covers"), ("main", "the main things"))  # what of an image is listed
QUOTED = re.compile(r"[\"“”„«»「『`]\s*(\w+)\s*[\"“”«»」』`]")
SHORTEST = 3  # words of a text whose language is told; shorter ones are taken for any
_PICTURES = r"的?(?:卫星|航拍|遥感)?(?:图片|图像|照片|影像|图)[\u3002.]?$"  # at the end of a Chinese wish


@dataclass(frozen=True)
class ForeignWish:
    """A question or a search in another language.

    Attributes:
        language: its code.
        kind: a kind of instruction, or ``images``.
        instruction: the English one of training that it is read as; of a search the English of the thing, blank where it
            names none of the list.
        description: what a search looks for, in the language.
    """

    language: str
    kind: str
    instruction: str
    description: str = ""

    @property
    def answer_language(self) -> str:
        """The code of the language that ``say_answer`` answers in."""
        return ENGLISH if self.kind in (AT_MOST, JSON) else self.language


def read_wish(text: str, language: str | None = None) -> ForeignWish | None:
    """A text as a question or a search in another language; None where no rule reads it.

    Args:
        language: its code; None: any of the five, by its words, and where several read it by a detector.
    """
    found = {code: wish for code in _forms() if language in (None, code) and (wish := _read(text, code))}
    if len(found) < 2:
        return next(iter(found.values()), None)
    try:
        return found[detect_language(text, list(found))]
    except (ModuleNotFoundError, KeyError):  # without the detector's package, or nothing that it knows: the first
        return next(iter(found.values()))


def read_formed(text: str, kinds: Container[str], language: str | None = None) -> ForeignWish | None:
    """As ``read_wish``, where the text asks for a form of answer and that is one of ``kinds``."""
    wish = read_wish(text, language)
    return wish if wish and wish.kind in FORMED and wish.kind in kinds else None


def say_answer(answer: str, wish: ForeignWish) -> str:
    """An English answer, one of few or a list, in the language of its question; as it is where the tables lack it."""
    if wish.kind == LIST:
        return _say_list(answer, _things(wish.language))
    form, low = _forms()[wish.language], answer.strip(" .").lower()
    if low in (YES, NO) and wish.kind == "presence":
        return form[low]
    if wish.kind == "count" and low in NUMBERS:
        return str(NUMBERS.index(low))
    if wish.kind == "where" and low in PLACES:
        return form["places"][PLACES.index(low)]
    if wish.kind == "climate" and low in form["climates"]:
        return form["climates"][low]
    named = {mention.name for mention in mentions_in(low)} if wish.kind == "largest" else set()
    own = _things(wish.language).get(named.pop()) if len(named) == 1 else None
    return own[0] if own else answer


def _say_list(answer: str, forms: Mapping[str, Sequence[str]]) -> str:
    """A list whose items name a thing each, with the things in other words; as it is where one does not."""
    parts = re.split(r"(^\s*(?:[-*•]|\d+[.)])\s+|\n|, )", answer, flags=re.MULTILINE)
    for place, item in enumerate(parts[::2]):
        named = {mention.name for mention in mentions_in(item)}
        if len(named) == 1 and (own := forms.get(next(iter(named)))):
            parts[2 * place] = own[0]
        elif item.strip():
            return answer
    return "".join(parts)


def cannot_tell(language: str) -> str:
    """ "I can't tell." in a language."""
    return _forms()[language]["cannot"]


def foreign_language(text: str) -> str | None:
    """The code of the language that a text is in where that is surely not English; None for English and where nobody knows."""
    words = sum(character.isalpha() for character in text) if not text.isascii() else len(text.split())
    if words < SHORTEST:
        return None
    try:
        if other_language(text, [ENGLISH]) is None:
            return None
        return other_language(text, [ENGLISH, *_forms()]) or detect_language(text, [*_forms()])
    except ModuleNotFoundError:
        return None


def can_ask(language: str) -> str:
    """What can be said in a language, in a sentence or two: for who said something else in it."""
    name = language_name(language)
    if language in _forms():
        examples = ", ".join(f"“{text}”" for text in _forms()[language]["examples"])
        return f"This is {name}, of which I read a few forms by rule: {examples}. Anything else only in English."
    read = ", ".join(language_name(code) for code in sorted(_forms()))
    return f"This seems to be {name}. I read questions in English, and a few forms in {read}."


def examples_in(language: str) -> list[str]:
    """Things that can be said in a language, the description first."""
    return list(_forms()[language]["examples"])


def languages_read() -> tuple[str, ...]:
    """Codes of the languages beside English whose questions are read."""
    return tuple(_forms())


def _read(text: str, code: str) -> ForeignWish | None:
    plain = _plain(text)
    for kind in READ_IN_ORDER:
        if kind in FORMED:
            if instruction := _read_form(text, plain, code, kind):
                return ForeignWish(code, kind, instruction)
            continue
        lead = re.search(_forms()[code][kind], plain)
        if not lead:
            continue
        if kind == IMAGES:
            description = _described(text, code, lead.end())
            named = _named(description, code)
            english = things()[named[0]].one if len(named) == 1 else ""
            return ForeignWish(code, kind, english, description) if description else None
        if kind not in WITH_THING:
            return ForeignWish(code, kind, wordings()[kind]["train"][0])
        named = _named(text, code)
        if len(named) != 1:
            return None
        thing = things()[named[0]]
        words = {"one": thing.one, "plural": thing.plural, "the": f"the {thing.name}"}
        return ForeignWish(code, kind, wordings()[kind]["train"][0].format(**words))
    return None


def _read_form(text: str, plain: str, code: str, kind: str) -> str | None:
    """The English instruction of a text that asks for an answer in a form; None where it does not, or says more."""
    forms = _forms()[code]
    words: dict[str, str] = {}
    if kind == LIST and re.search(forms[LIST], plain):
        what = [english for name, english in LISTED if re.search(forms[name], plain)]
        form = [english for name, english in FORMS.items() if re.search(forms[name], plain)]
        words = {"what": what[0], "form": form[0]} if what and len(form) == 1 else {}
    elif kind == JSON and re.search(forms[JSON], plain):
        bare = rf"(?<![A-Za-z_])(?:{'|'.join(KEYS)})(?![A-Za-z_])"
        keys = list(dict.fromkeys(QUOTED.findall(text) or re.findall(bare, text)))
        words = {"keys": joined([f'"{key}"' for key in keys])} if keys else {}
    elif kind == AT_MOST and not _named(text, code) and not named_languages(text):
        n = _number(plain, code)
        words = {"n": NUMBERS[n]} if n else {}
    return wordings()[kind]["train"][0].format(**words) if words else None


def _number(plain: str, code: str) -> int | None:
    """How many words a text asks for at most, from two to as many as NUMBERS has words for."""
    numerals = {word: n for n, words in enumerate(_forms()[code]["numerals"], start=1) for word in words.split("|")}
    shown = "|".join([r"\d+", *sorted(numerals, key=len, reverse=True)])
    for form in _forms()[code][AT_MOST]:
        if found := re.search(form.replace("{numbers}", shown), plain):
            n = numerals.get(found[1]) or int(found[1])
            return n if 1 < n < len(NUMBERS) else None
    return None


def _described(text: str, code: str, end: int) -> str:
    """What is left of a text behind a lead that ends there in ``_plain``: the same letters, with their accents."""
    own = normal_text(text).strip("¿¡ ")
    rest = next(own[at:] for at in range(len(own) + 1) if len(_plain(own[:at])) >= end or at == len(own))
    rest = re.sub(_PICTURES, "", rest) if code in WITHOUT_SPACES else rest
    return rest.strip(" .?!'\u2019\u3002\uff1f\uff01")


def _named(text: str, code: str) -> list[str]:
    """The things that a text names, with their accents or without any; the longest forms first, none within another."""
    text, found = _small(text), {}
    for form, name in _patterns(code):
        if form.search(text):
            found[name] = None
            text = form.sub("\n", text)
    return list(found)


def search_wish(text: str) -> ForeignWish | None:
    """A text in another language that asks for images, or that describes them; None for English and where no rule reads it."""
    wish = read_wish(text)
    if wish and wish.kind == IMAGES:
        return wish
    code = foreign_language(text)
    if code not in _forms():
        return None
    named = _named(text, code)
    return ForeignWish(code, IMAGES, things()[named[0]].one if len(named) == 1 else "", normal_text(text))


def _small(text: str) -> str:
    """Small letters, single spaces, one kind of apostrophe."""
    return normal_text(normal_text(text).casefold()).replace("’", "'")


def _plain(text: str) -> str:
    """The same without accents and without a mark at the beginning."""
    parts = unicodedata.normalize("NFD", _small(text))
    return "".join(letter for letter in parts if unicodedata.category(letter) != "Mn").lstrip("¿¡ ")


@cache
def _forms() -> dict[str, dict]:
    return read_json(QUESTIONS)


@cache
def _things(code: str) -> dict[str, list[str]]:
    """English name -> its forms in a language, the one that is said first."""
    lines = [line for line in THINGS.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    column = lines[0].split("\t").index(code)
    return {row[0]: row[column].split(";") for row in (line.split("\t") for line in lines[1:])}


@cache
def _patterns(code: str) -> list[tuple[re.Pattern, str]]:
    """(form with its accents or without any, English name), the longest first: "près" is no "prés"."""
    bound = r"(?:{}|{})" if code in WITHOUT_SPACES else r"(?<!\w)(?:{}|{})(?!\w)"
    forms = [(_small(form), name) for name, own in _things(code).items() for form in own]
    forms.sort(key=lambda pair: (-len(pair[0]), pair))
    return [(re.compile(bound.format(re.escape(form), re.escape(_plain(form)))), name) for form, name in forms]
