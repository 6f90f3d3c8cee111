"""A sentence on a tile before it is written: an English template and what fills it, from which every language writes.

``str`` of each is its English.
"""

from dataclasses import dataclass
from typing import Literal

from rsvlm.data.names import NUMBERS

MANY = 10  # above it things are not counted


@dataclass(frozen=True)
class Cover:
    """A kind of ground by its English name, maybe under snow, or as a part of it.

    The name may carry an article, as ``the sea`` or ``an ice cover`` does; the format ``bare`` takes ``the`` off.
    """

    name: str
    under_snow: bool = False
    part: Literal["", "a patch of", "land with"] = ""

    def __str__(self) -> str:
        return f"{self.part} " * bool(self.part) + "snow-covered " * self.under_snow + self.name

    def __format__(self, spec: str) -> str:
        return str(self).removeprefix("the ") if spec == "bare" else str(self)


@dataclass(frozen=True)
class Covers:
    """One or two kinds of ground, with the snow that lies on all of it."""

    nouns: tuple[Cover, ...]
    snow: Literal["", "under snow", "partly under snow"] = ""

    def __str__(self) -> str:
        return " and ".join(map(str, self.nouns)) + (f", {self.snow}" if self.snow else "")


@dataclass(frozen=True)
class Count:
    """How many of a thing: ``one lake``, ``three lakes``, ``many lakes`` (above MANY)."""

    number: int
    singular: str
    plural: str

    def __str__(self) -> str:
        if self.number == 1:
            return f"one {self.singular}"
        return f"{NUMBERS[self.number] if self.number <= MANY else 'many'} {self.plural}"


@dataclass(frozen=True)
class Sentence:
    """Parts of a sentence, each an English template and its words; a text is a share, a place or a climate."""

    parts: tuple[tuple[str, dict[str, Cover | Covers | Count | str]], ...]

    def __add__(self, other: "Sentence") -> "Sentence":
        return Sentence(self.parts + other.parts)

    def __str__(self) -> str:
        text = "".join(template.format(**words) for template, words in self.parts).replace("a arid", "an arid")
        return f"{text[0].upper()}{text[1:]}."
