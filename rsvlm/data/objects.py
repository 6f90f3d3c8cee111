"""What captions of remote sensing images name: a closed list of things with synonyms, and what they say of them.

The list is ``objects.txt``, whose head says what stands in it. How well it finds what people would mark in captions was
counted by hand: ``results/closed_list.md``.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rsvlm.data.names import NUMBERS

LIST = Path(__file__).with_name("objects.txt")
COLOURS = (
    "white", "black", "grey", "red", "green", "blue", "yellow", "orange", "brown", "purple", "pink", "beige", "khaki",
)  # fmt: skip
_AS_COLOUR = {"gray": "grey", "whitish": "white", "reddish": "red", "greenish": "green", "bluish": "blue"}
_NEGATIONS = {"no", "without", "neither", "nor"}
_BETWEEN = {"any", "or", "and", "a", "an", "the"}  # words that a negation reaches across
# "square" is a place before these and marks, a shape before nouns: "a square building"
_AFTER_PLACE = {
    "is", "are", "was", "were", "has", "have", "with", "without", "in", "on", "at", "of", "by", "near", "and", "or",
    "which", "that", "where", "there", "surrounded", "beside", "besides", "next", "to", "between", "while", "from",
    "consists", "full", "lies", "sits", "made", "contains", "looks", "like", "located", "decorated", "as",
}  # fmt: skip
_PLURALS = {"people": "people", "woman": "women", "man": "men", "bus": "buses"}
_LETTERS = re.compile(r"[a-z]+(?:[-'][a-z]+)*|[^\sa-z]+")


@dataclass(frozen=True)
class Thing:
    """An entry of the list; its words in the singular, the first is its name."""

    name: str
    words: tuple[str, ...]
    kinds: tuple[str, ...]  # what it is a kind of
    kin: frozenset[str]
    told: bool  # where it is, a caption names it
    sure: bool  # beside its kin, too
    mass: bool  # without article and plural

    @property
    def plural(self) -> str:
        """``airplanes``; ``cropland`` stays as it is."""
        return self.name if self.mass else plural_of(self.name)

    @property
    def one(self) -> str:
        """With its article, where it has one: ``an airplane``, ``cropland``, ``people``."""
        if self.mass or self.name in _PLURALS.values():
            return self.name
        return f"{'an' if self.name[0] in 'aeio' else 'a'} {self.name}"


@dataclass(frozen=True)
class Mention:
    """A thing in a text: tokens ``start`` to ``end`` of it, in the singular or plural, and whether the text denies it."""

    name: str
    start: int
    end: int
    plural: bool
    denied: bool


@cache
def things() -> dict[str, Thing]:
    """The closed list, by name, in the file's order."""
    found = {}
    for line in LIST.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, words, kinds, kin, how = (part.strip() for part in line.split("|"))
            flags = set(_listed(how))
            found[name] = Thing(
                name=name,
                words=(name, *_listed(words)),
                kinds=tuple(_listed(kinds)),
                kin=frozenset(_listed(kin)),
                told=bool(flags & {"told", "sure"}),
                sure="sure" in flags,
                mass="mass" in flags,
            )
    return found


def plural_of(word: str) -> str:
    """The plural of a noun of the list: its last word's."""
    *before, last = word.split()
    if last in _PLURALS:
        last = _PLURALS[last]
    elif last.endswith("y") and last[-2] not in "aeiou":
        last = f"{last[:-1]}ies"
    else:
        last += "es" if last.endswith(("s", "sh", "ch", "x")) else "s"
    return " ".join([*before, last])


def tokens_of(text: str) -> list[str]:
    """Words in small letters, numbers and marks, hyphens kept."""
    return _LETTERS.findall(text.lower())


@cache
def _forms() -> tuple[dict[str, tuple[str, bool]], int]:
    """Every form, singular or plural -> (name, plural), and how many words the longest has."""
    forms: dict[str, tuple[str, bool]] = {}
    for thing in things().values():
        for word in thing.words:
            forms.setdefault(plural_of(word), (thing.name, True))
        for word in thing.words:
            forms[word] = (thing.name, word in _PLURALS.values())
    return forms, max(len(form.split()) for form in forms)


def mentions_in(text: str) -> list[Mention]:
    """The things that a text names, in its order; the longest words win, and none is within another."""
    forms, longest = _forms()
    words, found, at = tokens_of(text), [], 0
    while at < len(words):
        for length in range(min(longest, len(words) - at), 0, -1):
            known = forms.get(" ".join(words[at : at + length]))
            if known and not (length == 1 and _is_no_noun(words, at, found)):
                denied = _is_denied(words, at, found)
                found.append(Mention(known[0], at, at + length, known[1], denied))
                at += length
                break
        else:
            at += 1
    return found


def _is_no_noun(words: list[str], at: int, before: list[Mention]) -> bool:
    """Whether a word that can be a place is none here: "a square building", "cars parking"."""
    after = words[at + 1] if at + 1 < len(words) else "."
    if words[at] == "square":
        return after.isalpha() and after not in _AFTER_PLACE
    return words[at] == "parking" and bool(before) and before[-1].end == at


def _is_denied(words: list[str], at: int, before: list[Mention]) -> bool:
    """Whether "no", "without" or "neither ... nor" stands before a thing, across adjectives and what is denied already."""
    back = at - 1
    while back >= max(0, at - 3):
        if words[back] in _NEGATIONS:
            return True
        last = before[-1] if before and before[-1].end == back + 1 else None
        if last:
            return last.denied and any(word in ("or", "nor", "and") for word in words[last.end : at])
        if not (words[back] in _BETWEEN or words[back].isalpha()) or words[back] in ("is", "are", "with", "of", "in"):
            return False
        back -= 1
    return False


def things_in(text: str) -> set[str]:
    """Names of the things that a text says are there; what it denies is left out."""
    return {mention.name for mention in mentions_in(text) if not mention.denied}


def with_kinds(names: Iterable[str]) -> set[str]:
    """The names and all that these are kinds of: whoever names a villa names a house, and a building."""
    known, found = things(), set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += known[name].kinds if name in known else ()
    return found


def counts_in(text: str) -> dict[str, int | None]:
    """How many of each thing a text counts: ``two white airplanes`` -> 2; None where it names several without a number.

    One is counted where it says "one", "a single", or names the thing in the singular with "a".
    """
    words, found = tokens_of(text), {}
    for mention in mentions_in(text):
        if mention.denied:
            continue
        number = 1 if not mention.plural and _head(words, mention.start) in ("a", "an", "one", "single") else None
        if mention.plural and (head := _head(words, mention.start)) in NUMBERS[2:]:
            number = NUMBERS.index(head)
        same = mention.name in found and found[mention.name] != number
        found[mention.name] = None if same else number
    return found


def _head(words: list[str], at: int) -> str:
    """The article or number before a thing, across at most three adjectives; empty where another thing comes between."""
    forms, _ = _forms()
    stops = {"a", "an", "the", "single", *NUMBERS}
    for back in range(at - 1, max(-1, at - 5), -1):
        word = words[back]
        if word in stops:
            return "" if back and words[back - 1] in ("part", "piece", "kinds", "kind", "rows") else word
        if word in forms or not word.isalpha() or word in ("of", "and", "with", "in", "on", "or", "are", "is", "some"):
            return ""
    return ""


def colours_in(text: str) -> dict[str, set[str]]:
    """The colours that a text gives each thing by an adjective before it: ``white airplanes`` -> {"airplane": {"white"}}."""
    words, found = tokens_of(text), {}
    for mention in mentions_in(text):
        colours = set()
        for back in range(mention.start - 1, max(-1, mention.start - 4), -1):
            word = _AS_COLOUR.get(words[back], words[back])
            if word in COLOURS:
                colours.add(word)
            elif not word.isalpha() or word in ("with", "of", "in", "on", "is", "are", "the", "a", "an"):
                break
        if colours and not mention.denied:
            found.setdefault(mention.name, set()).update(colours)
    return found


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
