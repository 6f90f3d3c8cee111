"""Self-contained HTML pages, and widgets whose page asks and whose kernel answers.

Self-contained HTML pages from Jinja2 templates: everything escaped, no network, no kernel.

A page holds its style, its script and its pictures. What comes from the data (captions, file names, labels) reaches the
page only through Jinja2's autoescape or its ``tojson`` filter. A content security policy in the page allows the one
script by its hash and forbids every connection: even a text that slipped through could neither run nor call home.

Widgets whose page asks and whose kernel answers: the ground of the gallery, the search box and the dialogue.

A page sends ``{"ask": id, "what": name, "given": {...}}``, perhaps with bytes; the method ``answer_NAME`` is called with
what is given, and its result goes back as ``{"ask": id, "answer": ...}``. An error goes back as its text, to be shown
where the question was asked: JupyterLab hides what a callback raises.
"""

import base64
import hashlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import anywidget
import numpy as np
import traitlets
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rsvlm.files import write_text
from rsvlm.scoring.runs import METHODS, RUNS, named

WORD = re.compile(r"\w+(?:['’-]\w+)*")


def format_score(value: float | None, digits: int = 2) -> str:
    """``value`` with a fixed number of digits; a dash when it is missing or no number."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.{digits}f}"


def format_percent(value: float | None, digits: int = 1) -> str:
    """A fraction as percent without the sign; a dash when it is missing."""
    return format_score(None if value is None else 100 * value, digits)


def new_words(caption: str, references: Sequence[str]) -> list[tuple[str, bool]]:
    """``caption`` in pieces (text, is_new): ``is_new`` marks words, case ignored, that no reference holds.

    The pieces joined give the caption back. Without references nothing is marked.
    """
    known = {word.lower() for reference in references for word in WORD.findall(reference)}
    pieces, end = [], 0
    for match in WORD.finditer(caption):
        if known and match.group().lower() not in known:
            pieces += [(caption[end : match.start()], False), (match.group(), True)]
            end = match.end()
    pieces.append((caption[end:], False))
    return [piece for piece in pieces if piece[0]]


def mark_words(caption: str, references: Sequence[str]) -> list[str | list[str]]:
    """``caption`` in pieces for a page's script: a text as it is, or ``[text]`` for words that no reference holds."""
    return [[text] if is_new else text for text, is_new in new_words(caption, references)]


def read_template(*names: str) -> str:
    """The text of scripts or style sheets of the package's templates, one behind the other."""
    loader = environment().loader
    return "\n".join(loader.get_source(None, name)[0].strip() for name in names)


def environment() -> Environment:
    """The Jinja2 environment of the package's templates: autoescape on, an unknown name is an error."""
    made = Environment(
        loader=PackageLoader("rsvlm.viewing", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(score=format_score, percent=format_percent)
    made.globals.update(RUNS=RUNS, METHODS=METHODS, named=named)
    return made


def render_page(template: str, scripts: Sequence[str], styles: Sequence[str] = (), **values: object) -> str:
    """The HTML text of one page.

    Args:
        template: file name of the template.
        scripts: file names of the page's script in parts, kept beside the template.
        styles: style sheets beside ``page.css``.
        values: what the template shows.
    """
    made = environment()
    code = read_template(*scripts)
    style = read_template("page.css", *styles)
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode("ascii")
    # Markup: these two are files of this package, not data.
    return made.get_template(template).render(
        style=Markup(style), script=Markup(code), script_hash=f"sha256-{digest}", **values
    )


def write_page(path: Path, html: str) -> int:
    """The page's size in bytes, after it was written to ``path``, whole."""
    write_text(path, html)
    return path.stat().st_size


def read_reported(value: object) -> dict[str, float | None]:
    """A reported score as ``{"value", "low", "high", "n"}``, missing parts None; takes such a dict or a bare number."""
    if isinstance(value, dict):
        return {key: value.get(key) for key in ("value", "low", "high", "n")}
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
    return {"value": number, "low": None, "high": None, "n": None}


@dataclass(frozen=True)
class Sample:
    """What fits on a page: positions to show; the first ``drawn`` are a plain random sample of all ``total``."""

    positions: list[int]
    drawn: int
    total: int


def choose_sample(total: int, ranked: Sequence[int], most: int, seed: int) -> Sample:
    """At most ``most`` of ``total`` things: all, or the best, the worst and the middle ones and a random sample.

    Best, worst and middle ones take an eighth of the page each. The random draw goes on until the page is full, so that
    it stays a plain sample, whatever the extremes.

    Args:
        ranked: positions from best to worst; things without a score are left out of it.
    """
    if most < 1:
        raise ValueError(f"a page of {most} entries: give at least 1")
    order = np.random.default_rng(seed).permutation(total).tolist()
    if total <= most:
        return Sample(order, total, total)
    share = most // 8
    middle = max(0, len(ranked) // 2 - share // 2)
    extremes = [*ranked[:share], *ranked[max(0, len(ranked) - share) :], *ranked[middle : middle + share]]
    chosen, drawn = set(extremes), []
    for position in order:
        if len(chosen) >= most and position not in chosen:
            break
        chosen.add(position)
        drawn.append(position)
    rest = [position for position in dict.fromkeys(extremes) if position not in set(drawn)]
    return Sample(drawn + rest, len(drawn), total)


def histogram_paths(
    series: dict[str, Sequence[float]], *, width: float, height: float, bins: int = 24
) -> tuple[dict[str, str], float, int]:
    """SVG paths of step histograms of several series on one scale.

    Returns:
        A path for each series in a box of ``width`` x ``height`` (y downwards, the base line closed), the upper end of
        the x axis (the lower end is 0), and the largest count.
    """
    largest = max((max(values) for values in series.values() if len(values)), default=1.0)
    top = max(1.0, math.ceil(largest))
    counts = {}
    for name, values in series.items():
        row = [0] * bins
        for value in values:
            row[min(bins - 1, max(0, int(value / top * bins)))] += 1
        counts[name] = row
    highest = max((max(row) for row in counts.values()), default=1) or 1
    paths = {}
    for name, row in counts.items():
        steps = [f"M0 {height:g}"]
        for position, count in enumerate(row):
            y = height * (1 - count / highest)
            steps.append(f"L{width * position / bins:.1f} {y:.1f}L{width * (position + 1) / bins:.1f} {y:.1f}")
        paths[name] = "".join(steps) + f"L{width:g} {height:g}Z"
    return paths, top, highest


TOLD = (ValueError, OSError, RuntimeError, ImportError)  # errors with a message for the reader


def widget_script(*names: str) -> str:
    """The ES module of a widget, of the package's script files."""
    return read_template("dom.js", "kernel.js", *names)


def widget_style(*names: str) -> str:
    """The style sheet inside a widget's shadow root."""
    return read_template("page.css", *names, "widget.css")


class AnsweringWidget(anywidget.AnyWidget):
    """A widget that answers its page's questions; see the module's text."""

    sheet = traitlets.Unicode().tag(sync=True)  # style sheet of the shadow root
    setting = traitlets.Dict().tag(sync=True)  # what the page knows before it asks

    def __init__(self, **traits: object) -> None:
        super().__init__(**traits)
        self._tell: Callable[[object], None] = lambda _: None
        self.on_msg(self.receive)

    def receive(self, _: object, message: dict, buffers: Sequence[memoryview] = ()) -> None:
        """Answer one message of the page."""
        ask, what = message.get("ask"), message.get("what")
        answer = getattr(self, f"answer_{what}", None)
        if not callable(answer):
            self.send({"ask": ask, "error": f"there is no answer to {what!r}"})
            return
        given = dict(message.get("given") or {})
        if buffers:
            given["buffers"] = [bytes(buffer) for buffer in buffers]
        self._tell = lambda part: self.send({"ask": ask, "part": part})
        try:
            result = answer(**given)
        except Exception as error:
            self.send({"ask": ask, "error": f"{type(error).__name__}: {error}"})
            if not isinstance(error, TOLD):
                raise  # a fault of the program: into the log, too
        else:
            self.send({"ask": ask, "answer": result})

    def tell(self, part: object) -> None:
        """Send a part of the answer that is being made."""
        self._tell(part)
