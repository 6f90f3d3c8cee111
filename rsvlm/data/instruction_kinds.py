"""What can be asked of an image whose answer is known: the kinds of instructions, each a function of what is known of it.

A kind yields questions: their answer, and the truth that answers are scored by. ``rsvlm.data.instructions`` balances them,
gives them words and makes tasks of them. Another kind is a function and its name in ``KINDS``, with wordings in
``instruction_wordings.json``.
"""

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from rsvlm.data.image_facts import COVERS, Facts
from rsvlm.data.land_captions import SHARES
from rsvlm.data.names import NUMBERS
from rsvlm.data.objects import mentions_in, things
from rsvlm.data.task_files import TWO_IMAGES
from rsvlm.files import read_json

WORDINGS = Path(__file__).with_name("instruction_wordings.json")
PLACES = (
    "top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right",
)  # fmt: skip
YES, NO = "yes", "no"
FIRST, SECOND = "first", "second"  # of two images
CLEAR = 0.015  # a share is asked for where it lies so far from the next step of SHARES
LARGER = 0.10  # how much more of the image the larger of two covers has, or of the same cover one of two images
COMMON = 0.01  # share of the images from which a thing is asked for where it is not
FEW = 4  # things that are not there, drawn for a query with each one that is
LOOKED_AT = 40  # images drawn to find two among that an image is compared with
LISTED = 0.05  # share of a tile from which a cover belongs into a list
FORMS = {"bullets": "as bullet points", "commas": "separated by commas", "numbers": "as a numbered list"}
KEYS = ("main_cover", "climate", "sea", "islands", "scene", "things")
# What an answer of one word may be, where a scene's or a cover's name has several
ONE_WORD = {
    "baseball field": ("baseball", "diamond"), "golf course": ("golf",), "tennis court": ("tennis",),
    "mobile home park": ("homes", "houses"), "dense residential area": ("houses", "residential"),
    "medium residential area": ("houses", "residential"), "sparse residential area": ("houses", "residential"),
    "storage tanks": ("tanks",), "parking lot": ("parking", "cars"), "barren land": ("barren", "bare"),
    "industrial area": ("industry", "industrial"), "commercial area": ("commercial", "buildings"),
    "railway station": ("railway", "station"), "center building": ("building",),
    "needleleaf forest": ("forest",), "evergreen broadleaf forest": ("forest",), "deciduous forest": ("forest",),
    "mixed forest": ("forest",), "open woodland": ("woodland", "savanna"), "built-up land": ("city", "town"),
    "snow and ice": ("ice", "snow"), "inland water": ("water", "lake"),
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """A question on one image before it has a wording."""

    facts: Facts
    kind: str
    form: str  # which wordings: the kind, or the kind with a part behind a colon
    words: Mapping[str, str]  # what fills the wording
    answer: str
    truth: Mapping[str, object]
    pair: tuple = ()  # questions with equal pair and another side balance each other
    side: bool = True
    language: str = "en"
    second: str = ""  # id of the second image, where it is about two


@dataclass(frozen=True)
class Table:
    """What is known of all images together: how many have each thing.

    ``others``: those of the same split and source, to compare one with.
    """

    with_thing: Mapping[str, int] = field(default_factory=dict)
    images: int = 0
    others: Sequence[Facts] = ()

    def is_common(self, name: str) -> bool:
        """Whether enough images have it for a question about it where it is not."""
        return self.with_thing.get(name, 0) >= max(2, COMMON * self.images)


# What is asked of an image, kind by kind


def _presence(facts: Facts, table: Table, draw: random.Random) -> Iterator[Question]:
    for name, there in [*((name, True) for name in facts.present), *((name, False) for name in sorted(facts.absent))]:
        if table.is_common(name):
            words = {"one": things()[name].one, "plural": things()[name].plural}
            answer = YES if there else NO
            truth = {"value": answer, "choices": [YES, NO], "thing": name}
            yield Question(facts, "presence", "presence", words, answer, truth, (name,), there)


def _count(facts: Facts, table: Table, draw: random.Random) -> Iterator[Question]:
    for name, number in facts.counts.items():
        if number < len(NUMBERS):
            plural = "separate bodies of inland water" if name == "inland water" else things()[name].plural
            truth = {"value": number, "choices": list(NUMBERS[1:]), "thing": name}
            yield Question(facts, "count", "count", {"plural": plural}, NUMBERS[number], truth)


def _where(facts: Facts, table: Table, draw: random.Random) -> Iterator[Question]:
    for name, place in facts.places.items():
        truth = {"value": place, "choices": list(PLACES), "thing": name}
        yield Question(facts, "where", "where", {"the": f"the {name}"}, place, truth)


def _largest(facts: Facts, table: Table, draw: random.Random) -> Iterator[Question]:
    ranked = sorted(facts.shares.items(), key=lambda pair: (-pair[1], pair[0]))
    if ranked and ranked[0][1] - (ranked[1][1] if len(ranked) > 1 else 0) >= LARGER:
        truth = {"value": ranked[0][0], "choices": sorted(COVERS)}
        yield Question(facts, "largest", "largest", {}, ranked[0][0], truth)


def _compare(facts: Facts, table: Table, draw: random.Random) -> Iterator[Question]:
    seen = sorted(name for name, share in facts.shares.items() if share >= LISTED)
    for number, first in enumerate(seen):
        for second in seen[number + 1 :]:
            if abs(facts.shares[first] - facts.shares[second]) >= LARGER:
                a, b = draw.sample([first, second], 2)
                value = max(first, second, key=facts.shares.get)
                truth = {"value": value, "choices": [a, b]}
                yield Question(
                    facts, "compare", "compare", {"a": a, "b": b}, value, truth, (first, second), value == first
                )


def _climate(facts: Facts, table: Table, draw: random.Random) -> Iterator[Question]:
    if facts.climate:
        truth = {"value": facts.climate, "choices": ["tropical", "arid", "temperate", "continental", "polar"]}
        yield Question(facts, "climate", "climate", {}, facts.climate, truth)


def _scene(facts: Facts, table: Table, draw: random.Random) -> Iterator[Question]:
    if facts.scene:
        yield Question(facts, "scene", "scene", {}, facts.scene, {"value": facts.scene})


def _list(facts: Facts, table: Table, draw: random.Random) -> Iterator[Question]:
    names = _listed(facts)
    if len(names) >= 2:
        form = draw.choice(sorted(FORMS))
        starts = {"bullets": "- {}", "numbers": "{number}. {}", "commas": "{}"}[form]
        lines = [starts.format(_shown(facts, name), number=number) for number, name in enumerate(names, start=1)]
        words = {"what": "the land covers" if facts.shares else "the main things", "form": FORMS[form]}
        truth = {"value": names, "form": form, "there": sorted(facts.named)}
        yield Question(facts, "list", "list", words, (", " if form == "commas" else "\n").join(lines), truth)


def _one_word(facts: Facts, table: Table, draw: random.Random) -> Iterator[Question]:
    name = facts.scene or (facts.present[0] if facts.shares and facts.present else None)
    if name:
        words = ONE_WORD.get(name) or ((name,) if " " not in name else ())
        if facts.shares and name == "barren land":
            words = ("desert", *words) if facts.climate == "arid" else ()
        if words:
            yield Question(facts, "one_word", "one_word", {}, words[0], {"value": list(words)})


def _at_most_words(facts: Facts, table: Table, draw: random.Random) -> Iterator[Question]:
    most = draw.randint(3, 10)
    short = [text for text in map(as_sentence, facts.captions) if len(text.split()) <= most and mentions_in(text)]
    names = [_shown(facts, name) for name in _listed(facts)[:2]]
    if not short and names:
        both = " and ".join(names)
        short = [as_sentence(names[0] if len(both.split()) > most else both)]
    if short:
        answer = max(sorted(set(short)), key=lambda text: len(text.split()))
        truth = {"value": most, "there": sorted(facts.named)}
        words = {"n": NUMBERS[most], "more": NUMBERS[most + 1]}
        yield Question(facts, "at_most_words", "at_most_words", words, answer, truth)


def _one_sentence(facts: Facts, table: Table, draw: random.Random) -> Iterator[Question]:
    whole = sorted({text for text in map(as_sentence, facts.captions) if text.count(".") == 1 and mentions_in(text)})
    if whole:
        yield Question(facts, "one_sentence", "one_sentence", {}, draw.choice(whole), {"there": sorted(facts.named)})


def _json(facts: Facts, table: Table, draw: random.Random) -> Iterator[Question]:
    known: dict[str, object] = {}
    if facts.shares:
        known = {"main_cover": max(sorted(facts.shares), key=facts.shares.get), "climate": facts.climate}
        if "sea" in facts.present or "sea" in facts.absent:
            known["sea"] = "sea" in facts.present
        if "island" in facts.counts or "island" in facts.absent:
            known["islands"] = facts.counts.get("island", 0)
    else:
        known = {"scene": facts.scene, "things": _listed(facts)}
    known = {key: value for key, value in known.items() if value not in (None, [])}
    if len(known) >= 2:
        keys = draw.sample(sorted(known), draw.randint(2, min(3, len(known))))
        value = {key: known[key] for key in keys}
        words = {"keys": joined([f'"{key}"' for key in keys])}
        truth = {"value": value, "there": sorted(facts.named)}
        yield Question(facts, "json", "json", words, json.dumps(value, ensure_ascii=False), truth)


def _language(facts: Facts, table: Table, draw: random.Random) -> Iterator[Question]:
    if not facts.translations:
        return
    from rsvlm.languages import language_name  # here: a study without translations needs no names of languages

    for language in sorted(facts.translations):
        texts = [text for text in facts.translations[language] if text]
        if texts:
            form = (
                f"language:{language}" if f"language:{language}" in wordings() and draw.random() < 0.5 else "language"
            )
            words = {"language": language_name(language)}
            truth = {"value": language, "references": sorted(set(texts))}
            yield Question(facts, "language", form, words, draw.choice(texts), truth, language=language)


def _not_visible(facts: Facts, table: Table, draw: random.Random) -> Iterator[Question]:
    missing = [name for name in sorted(facts.absent) if table.is_common(name)]
    if len(facts.present) >= 2 and missing:
        # By how often it is there elsewhere: a thing that is rarely there would give itself away.
        value = draw.choices(missing, [table.with_thing[name] for name in missing])[0]
        seen = [name for name in facts.present if table.is_common(name)]
        seen = [name for name in seen if not any(name in things()[other].kinds for other in (value, *seen))]
        seen = [name for name in seen if value not in things()[name].kinds]
        if len(seen) >= 2:
            names = [value, *draw.sample(seen[:6], 2)]
            draw.shuffle(names)
            truth = {"value": value, "choices": names}
            options = joined([things()[name].one for name in names], "or")
            yield Question(facts, "not_visible", "not_visible", {"options": options}, value, truth)


def _false_premise(facts: Facts, table: Table, draw: random.Random) -> Iterator[Question]:
    """Questions that take a thing for granted, with and without it; the wording is that of the other in the pair."""
    for name, share in facts.shares.items():
        steps = [least for least, _ in SHARES]
        if share >= LISTED and all(abs(share - least) >= CLEAR for least in steps):
            yield _premise(facts, "share", name, False, share_in_words(share))
    for name, colour in facts.colours.items():
        yield _premise(facts, "colour", name, _is_plural(facts, name), colour)
    for name in sorted(facts.absent):
        if table.is_common(name):
            for plural in (False,) if facts.shares or things()[name].mass else (False, True):
                yield _premise(facts, "share" if facts.shares else "colour", name, plural, None)


def _premise(facts: Facts, form: str, name: str, plural: bool, value: str | None) -> Question:
    thing = things()[name]
    the = f"the {thing.plural if plural else name}"
    denial = f"There {'are' if plural else 'is'} no {thing.plural if plural else name} in the image."
    choices = [step for _, step in SHARES] if form == "share" else None  # the next step counts as right, too
    truth = {"value": value, "premise": value is not None, "thing": name} | ({"steps": choices} if choices else {})
    words = {"the": the, "The": f"The {the[4:]}", "is_the": f"{'are' if plural else 'is'} {the}"}
    pair, side = (form, name, plural), value is not None
    return Question(facts, "false_premise", f"false_premise:{form}", words, value or denial, truth, pair, side)


def _shown(facts: Facts, name: str) -> str:
    """A thing's name in the number in which the captions have it."""
    return things()[name].plural if _is_plural(facts, name) else name


def _is_plural(facts: Facts, name: str) -> bool:
    told = [mention.plural for text in facts.captions for mention in mentions_in(text) if mention.name == name]
    return not things()[name].mass and sum(told) * 2 > len(told)


def _negation(facts: Facts, table: Table, draw: random.Random) -> Iterator[Question]:
    """``with a, but no b`` of images that have a; the same two images serve ``with a and b``."""
    seen = [name for name in facts.present if table.is_common(name)][:6]
    missing = [name for name in sorted(facts.absent) if table.is_common(name)]
    for first in seen:
        few = draw.sample(missing, min(FEW, len(missing)))
        for second, there in [*((b, True) for b in seen if b != first), *((b, False) for b in few)]:
            if not {first, second} & {"forest", "coast"}:
                for denied in (True, False):
                    a, b = things()[first].one, things()[second]
                    query = f"{a} but no {b.name}" if denied else f"{a} and {b.one}"
                    answer = YES if there != denied else NO
                    truth = {"value": answer, "choices": [YES, NO], "with": first, "about": second, "denied": denied}
                    pair, side = (first, second, denied), answer == YES
                    yield Question(facts, "negation", "negation", {"query": query}, answer, truth, pair, side)


def _compare_images(facts: Facts, table: Table, draw: random.Random) -> Iterator[Question]:
    """Of an image and two others, one with a thing in common and one without: which has more of something, and whether both
    show it; a question of each sort."""
    drawn = draw.sample(table.others, min(LOOKED_AT, len(table.others)))
    others = [one for one in drawn if one.image_id != facts.image_id]
    # Two images drawn at random seldom show the same
    others.sort(key=lambda one: not any(things()[name].told for name in {*one.present} & {*facts.present}))
    for other in (*others[:1], *others[1:][-1:]):
        found: dict[str, list[Question]] = {"more": [], YES: [], NO: []}
        for name in filter(table.is_common, sorted({*facts.named, *other.named})):
            thing, known = things()[name], (_amount(facts, name), _amount(other, name))
            if None not in known and (known[0][0] > known[1][1] or known[1][0] > known[0][1]):
                value = FIRST if known[0][0] > known[1][1] else SECOND
                truth = {"value": value, "choices": [FIRST, SECOND], "thing": name}
                found["more"].append(_of_two("more", facts, other, {"more": thing.plural}, truth, value == FIRST))
            seen = [name in one.present for one in (facts, other)]
            if any(seen) and all(there or name in one.absent for there, one in zip(seen, (facts, other))):
                value = YES if all(seen) else NO
                truth = {"value": value, "choices": [YES, NO], "thing": name}
                found[value].append(_of_two("both", facts, other, {"one": thing.one}, truth, all(seen)))
        for questions in found.values():
            yield from draw.sample(questions, min(1, len(questions)))


def _of_two(form: str, facts: Facts, other: Facts, words: Mapping[str, str], truth: Mapping, side: bool) -> Question:
    form = f"{TWO_IMAGES}:{form}"
    pair = (form, truth["thing"])
    return Question(facts, TWO_IMAGES, form, words, truth["value"], truth, pair, side, second=other.image_id)


def _amount(facts: Facts, name: str) -> tuple[float, float] | None:
    """The least and the most that there may be of a thing; of a cover its share, give or take half of LARGER."""
    if name in facts.absent:
        return 0.0, 0.0
    if name in facts.shares:
        return facts.shares[name] - LARGER / 2, facts.shares[name] + LARGER / 2
    if name in facts.counts:
        return facts.counts[name], facts.counts[name]
    return (1, math.inf) if name in facts.present else None


KINDS: dict[str, Callable[[Facts, Table, random.Random], Iterator[Question]]] = {
    "presence": _presence,
    "count": _count,
    "where": _where,
    "largest": _largest,
    "compare": _compare,
    "climate": _climate,
    "scene": _scene,
    "list": _list,
    "one_word": _one_word,
    "at_most_words": _at_most_words,
    "one_sentence": _one_sentence,
    "json": _json,
    "language": _language,
    "not_visible": _not_visible,
    "false_premise": _false_premise,
    "negation": _negation,
    TWO_IMAGES: _compare_images,
}


# Words


@cache
def wordings() -> dict[str, dict[str, list[str]]]:
    """Kind, or kind and form -> ``train`` and ``held_out`` wordings."""
    return read_json(WORDINGS)


def share_in_words(share: float) -> str:
    """``about half``: a step of SHARES; below the last it is not asked for."""
    return next(words for least, words in SHARES if share >= least)


def as_sentence(text: str) -> str:
    """A caption as a sentence: a capital letter first, a full stop at its end."""
    text = " ".join(text.split()).rstrip(" .")
    return f"{text[:1].upper()}{text[1:]}."


def joined(words: Sequence[str], last: str = "and") -> str:
    """``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def _listed(facts: Facts) -> list[str]:
    """What a list of the image holds: covers from LISTED of a tile, or what captions name, at most six."""
    if facts.shares:
        ranked = sorted(facts.shares.items(), key=lambda pair: (-pair[1], pair[0]))
        return [name for name, share in ranked if share >= LISTED]
    return list(facts.present[:6])
