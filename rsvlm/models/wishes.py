"""What a text asks for: words, images, or a description in a language.

What a text asks in is told by the words that ask for a description in that language, or by the language that it names: such
texts are too short for a detector.
"""

import re
import unicodedata
from collections.abc import Mapping

from rsvlm.languages import NAMES, WITHOUT_SPACES, normal_text

WORDS, IMAGES = "words", "images"
DESCRIBE = "Describe the image in {language}."  # one of training's; stands for no text where a language was chosen
# A text of these words alone, one of them of the first kind, asks for words: it names nothing to search for
DESCRIBING = frozenset(
    "caption captions depict depicts describe description explain say see seen sentence show shows summarise summarize "
    "tell what what's words".split()
)
FILLING = frozenset(
    "a about again aerial an and be brief briefly can could detail do does for give here i image images in is it like "
    "look looks make me more next now of on one other photo photograph photos picture pictures please satellite scene "
    "short similar some such that the them then there these this to us we whole with write you".split()
)
_NOUN = r"(?:(?:aerial|satellite|remote.sensing) )?(?:image|picture|photo|photograph|scene)s?"
_COUNT = r"(?:(?:an?|the|some|all|any|more|other|another|similar|one|two|three|\d+) )*"
_LEADS = (
    r"(?:show|find|bring|get|give|fetch|search|look|i am looking|i'm looking|i want|i need)\b(?: to see| me| us| for)*"
    rf"(?: {_COUNT}{_NOUN}\b)?",
    rf"(?:which|what) {_NOUN} (?:fits?|shows?|has|have)\b",
    r"more like\b",
    rf"{_COUNT}{_NOUN}(?= (?:of|with|that|showing|where)\b)",
)
ASKS_FOR_IMAGES = re.compile(  # at the start of a text; the description follows
    rf"(?:(?:please|can you|could you|now|and|then),? )*(?:{'|'.join(_LEADS)})"
    r"(?: of| with| that shows?| showing| where| like)?(?: this)?(?=\W|$)[\s:.,;?!]*",
    re.IGNORECASE,
)

LONGEST_WISH, LONGEST_LETTERS = 14, 110  # words and characters; a longer text asks for more than a description
# Beginnings of the words, or the phrases, that ask for a description, letters composed and small; English is not among them:
# ``guess_wish`` knows it. Of languages that a study has captions in there are questions, too.
ASKING = {
    "ar": "صف|أوصف|وصف", "bg": "опиши", "bn": "বর্ণনা", "ca": "descriu", "cs": "popiš", "da": "beskriv",
    "de": "beschreib|beschrift|bildunterschrift|was (?:zeigt|siehst du|sieht man|ist)\\b.*(?:bild|foto|hier)",
    "el": "περίγραψ|περιγράψ", "es": "describ\\w*\\b.*\\b(?:imagen|foto|escena|esto|vista)|descríb|descripción|leyenda|"
    "qué (?:muestra|se ve|ves|hay)", "et": "kirjelda", "fa": "توصیف|توضیح", "fi": "kuvaile|kuvaa",
    "fr": "décri|légende|une description|que (?:montre|voi[st])|qu'est-ce qu|qu'y a-t-il", "he": "תאר", "hi": "वर्णन",
    "hr": "opiši", "hu": "írd le|leírás", "id": "deskripsikan|jelaskan|gambarkan", "it": "descriv|descrizione|didascalia",
    "ja": "説明|描写|記述", "ko": "설명|묘사", "lt": "aprašyk|apibūdink", "lv": "apraksti", "ms": "huraikan|terangkan",
    "nl": "beschrijf|omschrijf", "no": "beskriv", "pl": "opisz", "pt": "descrev|descrição|legend[ae]|o que (?:a|você|vês|mostra)|que se vê",
    "ro": "descrie", "ru": "опиши", "sk": "opíš", "sl": "opiši", "sr": "опиши|opiši", "sv": "beskriv", "sw": "eleza",
    "ta": "விவரி", "th": "อธิบาย|บรรยาย", "tr": "betimle|tanımla|açıkla", "uk": "опиши", "ur": "بیان|وضاحت", "vi": "mô tả",
    "zh": "描述|说明|描写|介绍|图.*(?:有|看到)(?:了)?什么|看到(?:了)?什么|配一句",
}  # fmt: skip
# How languages call themselves, and English, where a wish names one: "em português", "auf Englisch"
OWN_NAMES = {
    "de": "deutsch|alemán|alemão|allemand|德语|德文", "en": "inglês|inglés|anglais|englisch|英语|英文",
    "es": "español|espanhol|espagnol|castellano|spanisch|西班牙语", "fr": "français|francês|francés|französisch|法语|法文",
    "it": "italiano", "ja": "日本語", "ko": "한국어", "nl": "nederlands", "pl": "po polsku", "pt": "português|portugués|portugais|"
    "portugiesisch|葡萄牙语", "ru": "по-русски|русск", "sv": "svenska", "tr": "türkçe", "zh": "中文|汉语|chinês|chino|chinois|"
    "chinesisch",
}  # fmt: skip
IN = "(?:em|en|auf|in|in het|på) |用|以"  # before such a name


def guess_wish(text: str) -> tuple[str | None, str]:
    """(``words``, ``images`` or None where a text does not tell, what there is in it to search for)."""
    text = " ".join(text.replace("’", "'").split())
    lead = ASKS_FOR_IMAGES.match(text)
    rest = text[lead.end() :] if lead else text
    words = set(re.findall(r"[\w']+", rest.lower()))
    names_something = bool(words - DESCRIBING - FILLING)
    if words & DESCRIBING and not names_something:
        return WORDS, ""
    return IMAGES if lead else None, rest.rstrip("?! ") if names_something else ""


def asked_languages(text: str) -> tuple[str, ...]:
    """The codes of the languages that a text may ask for a description in; none where it asks for none, or in English words.

    A language that is named goes before the one that the words are in: "Describe the image in Portuguese". Several are left
    where the asking words are the same in them, such as Danish, Norwegian and Swedish: a detector needs more than two words.
    """
    text = normal_text(text).lower().replace("’", "'")
    if len(text.split()) > LONGEST_WISH or len(text) > LONGEST_LETTERS:
        return ()
    english = re.search(rf"\b(?:in|use|speak) ({'|'.join(_ENGLISH)})\b", text) or re.search(
        rf"\b({'|'.join(_ENGLISH)}) (?:caption|description|sentence|words)\b", text
    )
    if english and DESCRIBING & set(re.findall(r"[\w']+", text)):
        return (_ENGLISH[english[1]],)
    own = [code for code, words in ASKING.items() if _stands(code, words, text)]
    return named_languages(text, bare=bool(own))[:1] or tuple(own)


def named_languages(text: str, *, bare: bool = False) -> tuple[str, ...]:
    """The codes of the languages that a text names in other words than English ones, such as "em português".

    Args:
        bare: without a word before the name, too; a temple may be Chinese.
    """
    text = normal_text(text).lower()
    names = OWN_NAMES.items()
    return tuple(code for code, own in names if _stands(code, own if bare else f"(?:{IN})(?:{own})", text))


def _stands(code: str, words: str, text: str) -> bool:
    """Whether one of some words, or of words that begin so, stands in a text."""
    bound = "" if code in WITHOUT_SPACES else r"(?<!\w)"
    return re.search(rf"{bound}(?:{unicodedata.normalize('NFC', words)})", text) is not None


_ENGLISH: Mapping[str, str] = {name.lower(): code for code, name in NAMES.items()}
