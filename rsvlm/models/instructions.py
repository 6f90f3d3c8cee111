"""Instructions about images: those to learn, and what a captioner knows of those that it has learnt.

What a captioner was trained to answer is kept with it: config.json holds some instructions of each kind, and the kind's
answers where they are few. A person's text is held against them by its words.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np

from rsvlm.data.table import evenly_spaced
from rsvlm.files import read_json_lines
from rsvlm.models.capret import CapRet

CONFIG_KEY = "instructions"  # of config.json
MOST_CHOICES = 12  # different training answers of a kind whose answers are chosen from
KEPT_EXAMPLES = 64  # instructions of a kind that a captioner's folder keeps
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


def asked_of(path: Path, split: str) -> list[Asked]:
    """The instructions of ``tasks.jsonl`` about the images of a split, in the file's order; none where it is empty.

    Raises:
        FileNotFoundError: the stage make_instructions has not run.
        ValueError: a line lacks a key or its answer; names the file and the line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no instructions; run the stage make_instructions (15_make_instructions)")
    asked, keys = [], [field.name for field in fields(Asked)]
    for number, task in enumerate(read_json_lines(path), start=1):
        missing = [key for key in ("split", *keys) if not isinstance(task.get(key), str) or not task[key]]
        if missing:
            raise ValueError(
                f"{path}: line {number}: {', '.join(missing)} missing or empty: run make_instructions again"
            )
        if task["split"] == split:
            asked.append(Asked(*(task[key] for key in keys)))
    return asked


def describe_kinds(asked: Iterable[Asked]) -> dict[str, dict]:
    """kind -> ``{"examples", "choices"}`` of training instructions, for a captioner's config.json.

    ``examples`` are different instructions, evenly spaced in their alphabetical order; ``choices`` the kind's answers,
    the commonest first, or None where they are more than MOST_CHOICES.
    """
    texts: dict[str, set[str]] = {}
    answers: dict[str, Counter] = {}
    for one in asked:
        texts.setdefault(one.kind, set()).add(one.instruction)
        answers.setdefault(one.kind, Counter())[one.answer] += 1
    described = {}
    for kind in sorted(texts):
        known, counts = sorted(texts[kind]), sorted(answers[kind].items(), key=lambda pair: (-pair[1], pair[0]))
        few = 2 <= len(counts) <= MOST_CHOICES
        examples = [known[place] for place in evenly_spaced(len(known), KEPT_EXAMPLES)]
        described[kind] = {"examples": examples, "choices": [answer for answer, _ in counts] if few else None}
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

    def choices(self, kind: str | None) -> list[str]:
        """The answers that a kind's is one of; none where they are free, or the kind unknown."""
        return list((self.kinds.get(kind) or {}).get("choices") or ())

    def recognise(self, text: str) -> tuple[str | None, float]:
        """(the kind of the known instruction that a text is most like, how like: 0 to 1); (None, 0.0) where none is."""
        words = _words(text)
        best, like = None, 0.0
        for kind, examples in self._examples.items():
            found = max((self._likeness(words, own) for own in examples), default=0.0)
            if found > like:
                best, like = kind, found
        return best, like

    def _likeness(self, words: frozenset[str], others: frozenset[str]) -> float:
        """Cosine of two sets of words, those weighing more that few kinds of instructions have."""

        def length(own: frozenset[str]) -> float:
            return sum(self._weights.get(word, self._unknown) ** 2 for word in own)

        lengths = length(words) * length(others)
        return length(words & others) / math.sqrt(lengths) if lengths else 0.0

    @cached_property
    def _examples(self) -> dict[str, list[frozenset[str]]]:
        return {kind: [_words(text) for text in own["examples"]] for kind, own in self.kinds.items()}

    @cached_property
    def _weights(self) -> dict[str, float]:
        counts = Counter(word for own in self._examples.values() for word in frozenset().union(*own))
        return {word: 0.2 + math.log((1 + len(self._examples)) / count) for word, count in counts.items()}

    @cached_property
    def _unknown(self) -> float:
        """Of a word that no instruction has: a noun of another picture as likely as another wish."""
        return float(np.median(list(self._weights.values()))) if self._weights else 1.0


def _words(text: str) -> frozenset[str]:
    return frozenset(WORDS.findall(text.lower()))
