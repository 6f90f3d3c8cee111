"""Instructions with answers that are known to be right, made by rule from what is known of the images.

A task is a line of ``tasks.jsonl``:

``{"task_id": "test/presence/0003/11", "question": "test/presence/0003", "image_id": ..., "source": ..., "split": "test",
"kind": "presence", "wording": 11, "held_out": true, "instruction": "Can you spot an airplane from above?",
"answer": "yes", "truth": {"value": "yes", "choices": ["yes", "no"], "thing": "airplane"}, "language": "en"}``

``wording`` numbers a kind's wordings: those for training first, then as many that training never sees, which validation
and test use. Tasks of one ``question`` differ in their wording alone. ``truth`` has what an answer is scored by
(``rsvlm.scoring.instructions``): ``choices`` where the question is a closed one, ``there`` (all that the references and the
map name) where an answer may name anything. ``language`` is the answer's.

The splits are those of the images. Questions with two answers come in pairs, one image for each answer, so that neither the
kind nor the thing asked for tells the answer. Validation and test take things and answers in turn, so a score there is one
over things and answers alike, not over what is frequent. ``where`` is about the upright image: training and answering must take its
upright view (``UPRIGHT``). Comparing two images is no kind, for a captioner here sees one image.
"""

import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from rsvlm.data.image_facts import COVERS, Facts
from rsvlm.data.land_captions import SHARES
from rsvlm.data.names import NUMBERS, SPLITS
from rsvlm.data.objects import mentions_in, things
from rsvlm.files import read_json, read_json_lines, write_json, write_json_lines
from rsvlm.settings import TaskSettings, closest_name

WORDINGS = Path(__file__).with_name("instruction_wordings.json")
PLACES = (
    "top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right",
)  # fmt: skip
UPRIGHT = ("where",)  # kinds whose answers a mirrored or turned image would make wrong
YES, NO = "yes", "no"
ALL = "all"  # kinds
CLEAR = 0.015  # a share is asked for where it lies so far from the next step of SHARES
LARGER = 0.10  # how much more of the image the larger of two covers has
COMMON = 0.01  # share of the images from which a thing is asked for where it is not
FEW = 4  # things that are not there, drawn for a query with each one that is
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


@dataclass(frozen=True)
class Table:
    """What is known of all images together: how many have each thing."""

    with_thing: Mapping[str, int] = field(default_factory=dict)
    images: int = 0

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
}


# From questions to tasks


def make_tasks(facts: Iterable[Facts], settings: TaskSettings) -> list[dict]:
    """Tasks of all splits, as lines of ``tasks.jsonl``, in the order train, val, test.

    Raises:
        ValueError: a kind that is none; names the closest one.
    """
    kinds = list(KINDS) if settings.kinds == [ALL] else settings.kinds
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise ValueError(f"kinds: unknown {', '.join(map(repr, unknown))}{closest_name(unknown[0], KINDS)}")
    facts = list(facts)
    table = Table(Counter(name for one in facts for name in one.present), len(facts))
    tasks = []
    for split in SPLITS:
        for source in sorted({one.source for one in facts if one.split == split}):
            own = [one for one in facts if (one.split, one.source) == (split, source)]
            units = {kind: _units(own, kind, table, settings.seed) for kind in kinds}
            chosen = _fill_images(units, settings) if split == "train" else _take_each(units, settings)
            tasks += _worded(chosen, split, source, settings)
    return tasks


def _units(facts: Sequence[Facts], kind: str, table: Table, seed: int) -> list[list[Question]]:
    """A kind's questions in random order, alone or, where they have sides, two at a time, one of each side."""
    draw = random.Random(f"{seed} {kind} {facts[0].split} {facts[0].source}" if facts else "")
    groups: dict[tuple, dict[bool, list[Question]]] = defaultdict(lambda: {True: [], False: []})
    units = []
    for one in facts:
        for question in KINDS[kind](one, table, random.Random(f"{seed} {kind} {one.image_id}")):
            if question.pair:
                groups[question.pair][question.side].append(question)
            else:
                units.append([question])
    for pair in sorted(groups, key=repr):
        sides = [draw.sample(own, len(own)) for own in groups[pair].values()]
        units += [list(both) for both in zip(*sides, strict=False)]
    draw.shuffle(units)
    return units


def _fill_images(units: Mapping[str, list[list[Question]]], settings: TaskSettings) -> list[Question]:
    """Kinds in turn, until no image takes another task; an image gets a kind again only when all kinds are through."""
    taken, chosen = Counter(), []
    met: Counter = Counter()
    waiting = {kind: list(reversed(own)) for kind, own in units.items()}
    for again in (1, settings.tasks_per_image):
        left = {kind: [] for kind in waiting}
        while any(waiting.values()):
            for kind, own in waiting.items():
                while own:
                    unit = own.pop()
                    ids = [question.facts.image_id for question in unit]
                    full = any(taken[one] >= settings.tasks_per_image for one in ids)
                    if not full and all(met[kind, one] < again for one in ids):
                        taken.update(ids)
                        met.update((kind, one) for one in ids)
                        chosen += unit
                        break
                    if not full:
                        left[kind].append(unit)
        waiting = {kind: list(reversed(own)) for kind, own in left.items()}
    return chosen


def _take_each(units: Mapping[str, list[list[Question]]], settings: TaskSettings) -> list[Question]:
    """So many questions a kind, of as many images and things as there are."""
    most, chosen = max(1, settings.test_tasks // settings.wordings), []
    for own in units.values():
        met: Counter = Counter()
        waiting, taken = own[: 50 * most], []
        while waiting and len(taken) < most:
            # The one whose images and whose answer or thing were asked least so far; the first of equals
            best = min(range(len(waiting)), key=lambda place: sum(met[key] for key in _keys(waiting[place])))
            unit = waiting.pop(best)
            met.update(_keys(unit))
            taken += unit
        chosen += taken
    return chosen


def _keys(unit: Sequence[Question]) -> list[tuple]:
    return [key for one in unit for key in (("image", one.facts.image_id), ("about", *(one.pair or (one.answer,))))]


def _worded(questions: Sequence[Question], split: str, source: str, settings: TaskSettings) -> list[dict]:
    """The questions as tasks: one wording in training, several held-out ones elsewhere."""
    tasks, number = [], Counter()
    for question in questions:
        number[question.kind] += 1
        name = f"{split}/{source}/{question.kind}/{number[question.kind]:05d}"
        draw = random.Random(f"{settings.seed} {name}")
        known = wordings()[question.form]
        start = len(known["train"]) if split != "train" else 0
        own = known["train" if split == "train" else "held_out"]
        for place in sorted(draw.sample(range(len(own)), 1 if split == "train" else min(settings.wordings, len(own)))):
            tasks.append(
                {
                    "task_id": f"{name}/{start + place}",
                    "question": name,
                    "image_id": question.facts.image_id,
                    "source": source,
                    "split": split,
                    "kind": question.kind,
                    "wording": start + place,
                    "held_out": split != "train",
                    "instruction": own[place].format(**question.words),
                    "answer": question.answer,
                    "truth": dict(question.truth),
                    "language": question.language,
                }
            )
    return tasks


def save_tasks(tasks: Sequence[Mapping], folder: Path, settings: TaskSettings) -> dict:
    """Write ``tasks.jsonl`` and ``about.json``; returns what the latter holds: counts by source, split and kind."""
    counts = Counter((task["source"], task["split"], task["kind"]) for task in tasks)
    about: dict = {"tasks": len(tasks), "questions": len({task["question"] for task in tasks}), "by_source": {}}
    for (source, split, kind), number in sorted(counts.items()):
        about["by_source"].setdefault(source, {}).setdefault(split, {})[kind] = number
    closed = Counter((task["split"], task["answer"]) for task in tasks if task["truth"].get("choices") == [YES, NO])
    about["yes_share"] = {
        split: round(closed[split, YES] / (closed[split, YES] + closed[split, NO]), 6)
        for split in SPLITS
        if closed[split, YES] + closed[split, NO]
    }
    about["settings"] = dict(settings)
    write_json_lines(folder / "tasks.jsonl", tasks)
    write_json(folder / "about.json", about)
    return about


def load_tasks(path: Path, split: str | None = None) -> list[dict]:
    """The tasks of ``tasks.jsonl``, of one split or of all.

    Raises:
        FileNotFoundError: the stage make_instructions has not run.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no tasks; run the stage make_instructions (notebook 15_make_instructions)")
    return [task for task in read_json_lines(path) if split in (None, task["split"])]


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
