"""How a setting is said and checked: its type, default, meaning, unit and bounds, and the ranges that many have."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from reprlib import Repr
from types import GenericAlias, UnionType
from typing import Any, Literal, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from rsvlm.safe_text import fault_in

LONGEST_PART = 255  # bytes of a name between two slashes, on most disks
LONGEST_TEXT = 4096  # characters of a path, or of words
DEEPEST, MOST_VALUES = 16, 10_000  # of lists and mappings in a value; the longest are lists of classes
LARGEST = 10**18  # of a whole number; no setting comes near
LONGEST_LIST = 32  # values of a list of numbers: each is tried with each of the other lists'


@dataclass(frozen=True)
class Within:
    """What a number, or each of a list, may be, and why no less and no more."""

    low: float
    high: float
    why: str
    above: bool = False  # above ``low`` instead of at least
    below: bool = False  # below ``high`` instead of at most

    def holds(self, value: float) -> bool:
        """Whether the value lies within."""
        return (self.low < value or not self.above and value == self.low) and (
            value < self.high or not self.below and value == self.high
        )

    def __str__(self) -> str:
        low, high = "above" if self.above else "at least", "below" if self.below else "at most"
        return f"{low} {self.low:,} and {high} {self.high:,}"


def setting(
    default: object, meaning: str, within: Within | None = None, *, quick: object = None, words: bool = False
) -> Any:
    """A field of ``Settings``.

    Args:
        meaning: with its unit; a line.
        within: the bounds of a number; every number has them.
        quick: the notebook's own value, where the default would take more than a minute by hand.
        words: a text that is read, and no name or path, whose parts a disk limits.
    """
    extra = {"within": within, "quick": default if quick is None else quick, "words": words}
    return Field(default=default, description=meaning, json_schema_extra=extra)


class Settings(BaseModel):
    """Checked settings, read-only. Types are strict; an int passes as a float, NaN and infinity as nothing.

    Raises:
        ValueError: a line for each unknown name (with the closest right one), wrong type and number out of bounds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    def __init__(self, /, **values: object) -> None:
        faults = [fault for name, value in values.items() if (fault := self._fault_in(name, value))]
        if faults:
            raise ValueError("\n  ".join(faults))
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ValueError("\n  ".join(_problems(error, type(self), values))) from None

    @field_validator("*", mode="after")
    @classmethod
    def _check_bounds(cls, value: object, info: ValidationInfo) -> object:
        within, name = bounds(cls, info.field_name), info.field_name
        numbers = [] if value is None or within is None else value if isinstance(value, list) else [value]
        if len(numbers) > LONGEST_LIST:
            raise ValueError(
                f"{name!r} holds {len(numbers)} values, at most {LONGEST_LIST} are tried: each with all others"
            )
        wrong = [number for number in numbers if not within.holds(number)]
        if wrong:
            raise ValueError(
                "\n  ".join(f"{name!r} is {number!r}, but must be {within}: {within.why}" for number in wrong)
            )
        return value

    @classmethod
    def _fault_in(cls, name: str, value: object) -> str | None:
        """Where in a value something stands that can be no setting, whatever its type, and what; None: nowhere."""
        field = cls.model_fields.get(name)
        words = field is not None and (field.json_schema_extra or {}).get("words")
        waiting, count = [(value, 0, shown(name))], 0
        while waiting:
            one, depth, place = waiting.pop()
            count += 1
            if isinstance(one, str):
                if fault := fault_in(one, breaks=True):
                    return f"{place} holds {fault}: {shown(one)}; take it out"
                if len(one) > LONGEST_TEXT or not words and len(max(one.split("/"), key=len).encode()) > LONGEST_PART:
                    kind = f"text here ({LONGEST_TEXT:,})" if words else f"path, or a name in it ({LONGEST_PART} bytes)"
                    return f"{place} holds {len(one):,} characters, {shown(one)}, more than any {kind}: shorten it"
            elif isinstance(one, int) and abs(one) > LARGEST:
                within = bounds(cls, name) if field else None
                return f"{place} is {shown(one)}, but must be {within or f'below {LARGEST:,}'}"
            elif isinstance(one, list | tuple):
                waiting += [(part, depth + 1, f"{place}[{number}]") for number, part in enumerate(one[:MOST_VALUES])]
            elif isinstance(one, Mapping):
                waiting += [(key, depth + 1, f"{place}, a key in it,") for key in one]
                waiting += [(part, depth + 1, f"{place}[{shown(key)}]") for key, part in one.items()]
            if depth > DEEPEST or count + len(waiting) > MOST_VALUES:
                return f"{place} is nested too deep, or holds more than {MOST_VALUES:,} values: take some out"
        return None

    @classmethod
    def of_mapping(cls, values: Mapping) -> Self:
        """These settings of a mapping as a file has it, whose names may be anything, also no texts."""
        return cls(**{name if isinstance(name, str) else shown(name): value for name, value in values.items()})

    @classmethod
    def of(cls, names: Mapping[str, object]) -> Self:
        """These settings among other names: a notebook's ``globals()``, or settings of a class that has all of these."""
        values = dict(names)
        return cls(**{name: values[name] for name in cls.model_fields})


def bounds(kind: type[Settings], name: str) -> Within | None:
    """The bounds of a setting; None where it is no number."""
    return (kind.model_fields[name].json_schema_extra or {}).get("within")


def type_text(annotation: object) -> str:
    """A type as a notebook's parameters cell has it: ``list[float]``, ``int | None``; a choice of words is ``str``."""
    if get_origin(annotation) is Literal:
        return type(get_args(annotation)[0]).__name__
    if isinstance(annotation, UnionType):
        return " | ".join(type_text(one) for one in get_args(annotation))
    if isinstance(annotation, GenericAlias):
        return f"{annotation.__origin__.__name__}[{', '.join(type_text(one) for one in get_args(annotation))}]"
    return "None" if annotation is type(None) else annotation.__name__


def shown(value: object) -> str:
    """A value for an error message: as Python writes it, in the middle of what is long left out."""
    if isinstance(value, int) and abs(value) > LARGEST:
        return f"about {'-' * (value < 0)}10 ** {int(value.bit_length() * math.log10(2))}"
    return _SHORT.repr(value)


_SHORT = Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict, _SHORT.maxstring, _SHORT.maxother = 4, 32, 8, 120, 120


def closest_name(name: object, known: Iterable[str], older: Mapping[str, str] | None = None) -> str:
    """The end of an error message about a wrong name: the closest known one, or all of them.

    One that holds the wrong name or is held by it is close, too: ``table`` means ``caption_table``.

    Args:
        older: known names that are still read -> what they are called now; that is what the message says.
    """
    older = older or {}
    known = [str(one) for one in known]
    close = get_close_matches(str(name), known, 1)
    if not close and len(str(name)) > 2:
        close = [one for one in known if str(name).lower() in one.lower() or one.lower() in str(name).lower()]
    if close:
        return f"; did you mean {older.get(close[0], close[0])!r}?"
    return f"; known: {', '.join(name for name in known if name not in older)}"


def _problems(error: ValidationError, kind: type[Settings], values: Mapping) -> list[str]:
    """A line for each setting that pydantic refused."""
    lines = {}
    for problem in error.errors(include_url=False):
        name = str(problem["loc"][0]) if problem["loc"] else ""
        if problem["type"] == "extra_forbidden":
            free = [one for one in kind.model_fields if one not in values] or list(kind.model_fields)
            lines[name] = f"unknown name {name!r}{closest_name(name, free)}"
        elif problem["type"] == "missing":
            lines[name] = f"{name!r} is missing"
        elif problem["type"] == "value_error":
            lines[name] = str(problem["ctx"]["error"])
        elif problem["type"] == "literal_error":
            lines[name] = f"{name!r} must be {problem['ctx']['expected']}, but is {shown(problem['input'])}"
        else:
            value, wanted = values[name], type_text(kind.model_fields[name].annotation)
            lines[name] = f"{name!r} must be {wanted}, but is {shown(value)} ({type(value).__name__})"
    return list(lines.values())


SHARE = Within(0, 1, "it is a share")
SHARE_BELOW = Within(0, 1, "it is a share, and of 1 nothing is left", below=True)
RATE = Within(0, 1, "AdamW takes no step at 0, and none that holds above 1", above=True)
WEIGHT = Within(0, 1000, "below 0 the worst would be chosen; at 1,000 nothing else counts")
LOSS_WEIGHT = Within(0, 1000, "0 leaves it out; at 1,000 captions are not learnt")
DECAY = Within(0, 1, "1 would take a weight away at each step")
TEMPERATURE = Within(0, 100, "at 0 the softmax divides by it; above 100 all count alike", above=True)
SIDE = Within(32, 2048, "below 32 pixels EfficientNet-Lite2's last map is empty; memory grows with the square")
BATCH = Within(1, 32_768, "CLIP's own training had 32,768; memory ends long before (the estimate at a start tells)")
CHUNK = Within(0, 32_768, "0 takes all of a batch, as does more than it has")
STEPS = Within(1, 10_000_000, "at a tenth of a second each, 10 million are two weeks")
IMAGES = Within(0, 100_000_000, "0 takes all")
NEIGHBOURS = Within(1, 1000, "captions of the 1,000th nearest image tell of another place")
SEED = Within(0, 2**32 - 1, "generators take 32 bits")

Precision = Literal["auto", "fp32", "bf16"]
