"""Instructions about images: those to learn, and what a captioner knows of those that it has learnt.

What a captioner was trained to answer is kept with it: config.json holds an instruction of each wording, the words that all
instructions of a wording share, and a kind's answers where they are few. A person's text is held against those words; what
a wording is filled with, things and numbers mostly, tells nothing of what is asked.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from rsvlm.data.task_files import SECOND_IMAGE, check_images
from rsvlm.files import read_json_lines
from rsvlm.models.capret import CapRet

CONFIG_KEY = "instructions"  # of config.json
LANGUAGE_KIND = "language"  # the kind that asks for a description in a language
MOST_CHOICES = 12  # different training answers of a kind whose answers are chosen from
# Likeness from which a text is taken for a known instruction: where it asks for nothing else, and in any case
LIKE, SURE = 0.45, 0.7
WORDS = re.compile(r"\w+")


@dataclass(frozen=True)
class Asked:
    """An instruction about an image, with the answer to learn."""

    image_id: str
    kind: str
    instruction: str
    answer: str
    wording: int = 0  # instructions of a kind, wording and language differ only in what they are filled with
    language: str = "en"
    second_image_id: str = ""  # of an instruction about two images


def asked_of(path: Path, split: str, *, images: Container[str] | None = None) -> list[Asked]:
    """The instructions of ``tasks.jsonl`` about the images of a split, in the file's order; none where it is empty.

    Args:
        images: ids of the images that there are; None: nobody knows.

    Raises:
        FileNotFoundError: the stage make_instructions has not run.
        ValueError: a line lacks a key, its answer or one of its images; names the file and the line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no instructions; run the stage make_instructions (15_make_instructions)")
    asked, keys = [], ("image_id", "kind", "instruction", "answer", "language")
    for number, task in enumerate(read_json_lines(path), start=1):
        task = task if isinstance(task, dict) else {}
        missing = [key for key in ("split", *keys) if not isinstance(task.get(key), str) or not task[key]]
        missing += [] if isinstance(task.get("wording"), int) else ["wording"]
        if missing:
            raise ValueError(
                f"{path}: line {number}: {', '.join(missing)} missing or empty: run make_instructions again"
            )
        check_images(task, images, f"{path}: line {number}")
        if task["split"] == split:
            asked.append(Asked(**{key: task[key] for key in (*keys, "wording", SECOND_IMAGE) if key in task}))
    return asked


def describe_kinds(asked: Iterable[Asked]) -> dict[str, dict]:
    """kind -> ``{"examples", "forms", "filled", "choices", "languages"}`` of training instructions, for config.json.

    ``examples``: one of each wording; ``forms``: the words that all of a wording share; ``filled``: the other words;
    ``choices``: the kind's answers, the commonest first, or None where they are more than MOST_CHOICES; ``languages``: codes of
    the answers' languages.
    """
    wordings: dict[str, dict[tuple[int, str], list[str]]] = {}
    answers: dict[str, Counter] = {}
    languages: dict[str, set[str]] = {}
    for one in asked:
        languages.setdefault(one.kind, set()).add(one.language)
        wordings.setdefault(one.kind, {}).setdefault((one.wording, one.language), []).append(one.instruction)
        answers.setdefault(one.kind, Counter())[one.answer] += 1
    described = {}
    for kind, own in sorted(wordings.items()):
        groups = [sorted(set(texts)) for _, texts in sorted(own.items())]
        forms = [frozenset.intersection(*map(_words, texts)) for texts in groups]
        words = frozenset().union(*(_words(text) for texts in groups for text in texts))
        counts = sorted(answers[kind].items(), key=lambda pair: (-pair[1], pair[0]))
        described[kind] = {
            "examples": [texts[0] for texts in groups],
            "forms": [sorted(form) for form in forms],
            "filled": sorted(words.difference(*forms)),
            "choices": [answer for answer, _ in counts] if 2 <= len(counts) <= MOST_CHOICES else None,
            "languages": sorted(languages[kind]),
        }
    return described


@dataclass(frozen=True)
class KnownInstructions:
    """What a captioner was trained to answer.

    Attributes:
        kinds: as ``describe_kinds`` gives them; empty for a captioner that saw none.
    """

    kinds: Mapping[str, Mapping]

    @classmethod
    def of(cls, captioner: CapRet) -> "KnownInstructions":
        """Those of a captioner, from its config.json."""
        return cls(captioner.config.get(CONFIG_KEY) or {})

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages that descriptions were asked for in."""
        return tuple((self.kinds.get(LANGUAGE_KIND) or {}).get("languages") or ())

    def choices(self, kind: str | None) -> list[str]:
        """The answers that a kind's is one of; none where they are free, or the kind unknown."""
        return list((self.kinds.get(kind) or {}).get("choices") or ())

    def recognise(self, text: str) -> tuple[str | None, float]:
        """(the kind of the known wording that a text is most like, how like: 0 to 1); (None, 0.0) where none is."""
        words = _words(text)
        best, like = None, 0.0
        for kind, forms in self._forms.items():
            found = max((self._likeness(words, form) for form in forms), default=0.0)
            if found > like:
                best, like = kind, found
        return best, like

    def _likeness(self, words: frozenset[str], form: frozenset[str]) -> float:
        """Cosine of a text's words, but for what wordings are filled with, and those of a form; the words weigh more that
        few kinds have."""
        own = words - (self._filled - form)
        lengths = self._length(own) * self._length(form)
        return self._length(own & form) / math.sqrt(lengths) if lengths else 0.0

    def _length(self, words: frozenset[str]) -> float:
        return sum(self._weights.get(word, self._unknown) ** 2 for word in words)

    @cached_property
    def _forms(self) -> dict[str, list[frozenset[str]]]:
        return {kind: [frozenset(form) for form in own["forms"]] for kind, own in self.kinds.items()}

    @cached_property
    def _filled(self) -> frozenset[str]:
        return frozenset(word for own in self.kinds.values() for word in own["filled"])

    @cached_property
    def _weights(self) -> dict[str, float]:
        counts = Counter(word for forms in self._forms.values() for word in frozenset().union(*forms))
        return {word: 0.2 + math.log((1 + len(self._forms)) / count) for word, count in counts.items()}

    @cached_property
    def _unknown(self) -> float:
        """Of a word that no instruction has: as likely another thing, which tells nothing, as another wish."""
        return float(np.median(list(self._weights.values()))) / 2 if self._weights else 1.0


def as_instruction(text: str) -> str:
    """The text as instructions of training end: with a mark of punctuation. Behind none the captioner would write one first.

    >>> as_instruction("Answer in five words")
    'Answer in five words.'
    """
    text = text.strip()
    return text if not text or unicodedata.category(text[-1]).startswith("P") else f"{text}."


def _words(text: str) -> frozenset[str]:
    return frozenset(WORDS.findall(text.lower()))
