"""Words of a caption that none of its references says, in whatever form: what a reader should look at first.

Three kinds of words are never marked, because a right caption may hold them: function words and words about the picture
itself, which cannot be wrong; another form of a word in a reference (plural, tense, comparative), found by WordNet's own
rules and list of exceptions; and a word or phrase that says nearly the same as one in a reference, or less. The lists of
the first and the last lie in ``marked_words.json``. WordNet's synonyms are not used: taken over all senses they make
"corner" a "tree" and "green" a "park".
"""

import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from rsvlm.data.names import NUMBERS
from rsvlm.files import read_json
from rsvlm.scoring.java_metrics import pycocoevalcap_folder

WORD = re.compile(r"\w+(?:['’-]\w+)*")
# How WordNet finds a word's base form (Morphy, in its manual): an ending and what stands in its place.
ENDINGS = (
    ("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"), ("ies", "y"),
    ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", ""), ("er", ""), ("est", ""), ("er", "e"),
    ("est", "e"),
)  # fmt: skip


def mark_words(caption: str, references: Iterable[str]) -> list[str | list[str]]:
    """``caption`` in pieces for a page's script: a text as it is, or ``[word]`` for words that no reference says.

    The pieces joined give the caption back. Without references nothing is marked.
    """
    references = tuple(references)
    found, pieces, end = list(WORD.finditer(caption)), [], 0
    if any(map(WORD.search, references)):
        known = _are_known([match.group().lower() for match in found], references)
        for match in (match for match, is_known in zip(found, known) if not is_known):
            pieces += [caption[end : match.start()], [match.group()]]
            end = match.end()
    return [piece for piece in [*pieces, caption[end:]] if piece]


@lru_cache(maxsize=4096)
def base_forms(word: str) -> frozenset[str]:
    """The word, in lower case, and the words of WordNet that it may be a form of."""
    known, irregular = _read_wordnet()
    regular = {word.removesuffix(ending) + put for ending, put in ENDINGS if word.endswith(ending)}
    return frozenset({word, *irregular.get(word, ()), *(regular & known)})


def _are_known(words: Sequence[str], references: tuple[str, ...]) -> list[bool]:
    """Whether each word of a caption is empty of meaning or said by a reference."""
    said, groups = _read_references(references)
    known = [_is_said(word, said) for word in words]
    for start, end, own in _find_phrases(words):
        if own & groups:
            known[start:end] = [True] * (end - start)
    return known


def _is_said(word: str, said: frozenset[str]) -> bool:
    parts = word.split("-")
    return bool(base_forms(word) & said) or (len(parts) > 1 and all(base_forms(part) & said for part in parts))


@lru_cache(maxsize=1024)  # an image's, asked for each run
def _read_references(references: tuple[str, ...]) -> tuple[frozenset[str], frozenset[int]]:
    """Every form of what the references say, with the empty words; and the groups of phrases that they call for."""
    lists = _read_lists()
    texts = [[match.group().lower() for match in WORD.finditer(text)] for text in references]
    said = lists.empty.union(*(base_forms(word) for words in texts for word in words))
    groups = {group for words in texts for _, _, own in _find_phrases(words, asking=True) for group in own}
    return said, frozenset(groups)


def _find_phrases(words: Sequence[str], asking: bool = False) -> Iterator[tuple[int, int, frozenset[int]]]:
    """(start, end, groups) of the phrases that stand in the words in some form.

    Args:
        asking: look for what a reference says, not for what a caption may then say.
    """
    lists = _read_lists()
    phrases = lists.asking if asking else lists.allowed
    for start, word in enumerate(words):
        for phrase in {phrase for form in base_forms(word) for phrase in phrases.get(form, ())}:
            here = words[start : start + len(phrase.words)]
            if len(here) == len(phrase.words) and all(map(_is_form, phrase.words, here)):
                yield start, start + len(here), phrase.groups


def _is_form(one: str, other: str) -> bool:
    return not base_forms(one).isdisjoint(base_forms(other))


class _Phrase(NamedTuple):
    words: tuple[str, ...]
    groups: frozenset[int]


class _Lists(NamedTuple):
    """The lists of the file; phrases by every form of their first word."""

    empty: frozenset[str]
    asking: dict[str, list[_Phrase]]
    allowed: dict[str, list[_Phrase]]


@lru_cache(maxsize=1)
def _read_lists() -> _Lists:
    content = read_json(Path(__file__).with_suffix(".json"))
    numbers = [[word, str(number)] for number, word in enumerate(NUMBERS)]
    pairs = [(group, group) for group in [*content["alike"], *numbers]]
    pairs += [(narrower, [broader]) for broader, narrower in content["broader"].items()]
    asking, allowed = ([pair[side] for pair in pairs] for side in (0, 1))
    return _Lists(frozenset(" ".join(content["empty"].values()).split()), _by_first(asking), _by_first(allowed))


def _by_first(groups: Sequence[Sequence[str]]) -> dict[str, list[_Phrase]]:
    of_phrase: dict[str, set[int]] = {}
    for number, group in enumerate(groups):
        for phrase in group:
            of_phrase.setdefault(phrase, set()).add(number)
    found: dict[str, list[_Phrase]] = {}
    for phrase, numbers in of_phrase.items():
        words = tuple(WORD.findall(phrase))
        for form in base_forms(words[0]):
            found.setdefault(form, []).append(_Phrase(words, frozenset(numbers)))
    return found


@lru_cache(maxsize=1)
def _read_wordnet() -> tuple[frozenset[str], dict[str, list[str]]]:
    """WordNet's words, and its irregular forms with their base forms; METEOR's jar holds both, and a jar is a zip file."""
    with zipfile.ZipFile(pycocoevalcap_folder() / "meteor" / "meteor-1.5.jar") as jar:
        words, bases = (jar.read(f"synonym/english.{name}").decode().split("\n") for name in ("synsets", "exceptions"))
    irregular: dict[str, list[str]] = {}
    for base, forms in zip(bases[::2], bases[1::2]):
        for form in forms.split():
            irregular.setdefault(form, []).append(base)
    return frozenset(words[::2]), irregular
