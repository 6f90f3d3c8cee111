"""Languages by their ISO 639-1 codes: their names, their scripts, and which of them a text is written in.

The detector is py3langid (Lui and Baldwin 2012, langid.py, with a newer model): naive Bayes on byte n-grams. Asked among
English, Portuguese, Spanish, French, German and Chinese, it is right on all 2,030 distinct captions of UCM-Captions, on
2,024 of their Portuguese, 2,029 of their Spanish and all of their French, German and Chinese translations. Single words
are another matter: it takes "airport" for French.
"""

import math
import unicodedata
from collections.abc import Collection
from functools import cache

from rsvlm.extras import import_extra

NAMES = {
    "ar": "Arabic", "bg": "Bulgarian", "bn": "Bengali", "ca": "Catalan", "cs": "Czech", "da": "Danish", "de": "German",
    "el": "Greek", "en": "English", "es": "Spanish", "et": "Estonian", "fa": "Persian", "fi": "Finnish", "fr": "French",
    "he": "Hebrew", "hi": "Hindi", "hr": "Croatian", "hu": "Hungarian", "id": "Indonesian", "it": "Italian",
    "ja": "Japanese", "ko": "Korean", "lt": "Lithuanian", "lv": "Latvian", "ms": "Malay", "nl": "Dutch",
    "no": "Norwegian", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sk": "Slovak",
    "sl": "Slovenian", "sr": "Serbian", "sv": "Swedish", "sw": "Swahili", "ta": "Tamil", "th": "Thai", "tr": "Turkish",
    "uk": "Ukrainian", "ur": "Urdu", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip
# How the Unicode names of a language's letters begin; those that are not here are written in Latin letters.
SCRIPTS = {
    "ar": ("ARABIC",), "bg": ("CYRILLIC",), "bn": ("BENGALI",), "el": ("GREEK",), "fa": ("ARABIC",), "he": ("HEBREW",),
    "hi": ("DEVANAGARI",), "ja": ("CJK", "HIRAGANA", "KATAKANA"), "ko": ("HANGUL",), "ru": ("CYRILLIC",),
    "sr": ("CYRILLIC", "LATIN"), "ta": ("TAMIL",), "th": ("THAI",), "uk": ("CYRILLIC",), "ur": ("ARABIC",),
    "zh": ("CJK",),
}  # fmt: skip
WITHOUT_SPACES = ("ja", "th", "zh")  # languages whose words are not set apart by spaces
# So many times likelier than the likeliest of some languages another one must be, for a text to be in that one. The 12,180
# texts of UCM-Captions in six languages never reach 5 (Galician for Spanish, Shanghainese for Chinese); of 25 sentences in 14
# others, short ones among them, 24 exceed 20. On the detector's scale of probabilities, whose temperature is the square root
# of a text's bytes.
FOREIGN = 10.0


def normal_text(text: str) -> str:
    """A text as it is compared and kept: single spaces, Unicode's composed form."""
    return unicodedata.normalize("NFC", " ".join(text.split()))


def check_language(code: object, where: str) -> str:
    """The language's code.

    Raises:
        ValueError: it is no ISO 639-1 code in small letters, such as ``pt``; says which are known by name.
    """
    if isinstance(code, str) and len(code) == 2 and code.isascii() and code.isalpha() and code.islower():
        return code
    hint = str(code).lower()[:2]
    meant = next((own for own, name in NAMES.items() if name.lower() == str(code).lower()), hint)
    hint = f"; did you mean {meant!r} ({NAMES[meant]})?" if meant in NAMES else ""
    raise ValueError(
        f"{where}: a language is an ISO 639-1 code of two small letters, such as pt or zh, is {code!r}{hint}"
    )


def language_name(code: str) -> str:
    """``Portuguese`` for ``pt``; the code itself for a language without a name here."""
    return NAMES.get(code, code)


def detect_language(text: str, among: Collection[str]) -> str | None:
    """The code of the one of some languages that a text most likely is in.

    None where it cannot be any of them: no letter, or most letters in a script that none of them is written in.

    Args:
        among: codes; of equally likely ones the first of the detector's own order.

    Raises:
        ValueError: ``among`` is empty, or holds a code that the detector does not know; names it.
        ModuleNotFoundError: py3langid is missing.
    """
    among = set(among)
    if not among:
        raise ValueError("detect_language: needs at least one language to choose among")
    text = unicodedata.normalize("NFC", text).lower()
    letters = [unicodedata.name(letter, "") for letter in text if letter.isalpha()]
    fitting = {
        code
        for code in among
        if 2 * sum(name.startswith(SCRIPTS.get(code, "LATIN")) for name in letters) > len(letters)
    }
    detector = _detector()
    unknown = sorted(among - set(detector.labels))
    if unknown:
        raise ValueError(f"detect_language: the detector does not know the language {', '.join(unknown)}")
    if len(fitting) < 2:
        return next(iter(fitting), None)
    return next(code for code, _ in detector.rank(text) if code in fitting)


def other_language(text: str, among: Collection[str]) -> str | None:
    """The code of a language that is none of some and that a text is far likelier in (FOREIGN); None where there is none.

    Raises:
        ModuleNotFoundError: py3langid is missing.
    """
    text = normal_text(text).lower()
    likely = dict(_detector().rank(text))  # log-likelihoods
    best = max(sorted(likely.keys() - set(among)), key=likely.__getitem__)
    known = max((likely[code] for code in likely.keys() & set(among)), default=-math.inf)
    return best if likely[best] - known > math.log(FOREIGN) * math.sqrt(len(text.encode())) else None


@cache
def _detector() -> object:
    """The package's detector, unrestricted: ``set_languages`` would change it for everybody."""
    langid = import_extra("py3langid", "telling languages apart", "set the language").langid
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE)
