"""How far long work is, with the time left: a bar in JupyterLab, one updating line in a terminal, a line a minute in a log."""

import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from tqdm.std import tqdm

SECONDS = "RSVLM_PROGRESS_SECONDS"  # set: plain text, an update every so many seconds (a stage's kernel is told so)
LOG_LINE = "application/vnd.rsvlm.log"  # type of a stage's log lines in its notebook, which are folded away
IN_TERMINAL, IN_LOG = 2.0, 60.0  # seconds between two updates
_listeners: list[Callable[[str, int, int | None], None]] = []  # the last one is told


def progress(iterable: Iterable | None = None, **options: object) -> tqdm:
    """A bar over work, as tqdm's: ``desc``, ``total``, ``unit``, ``initial``, ``disable``."""
    if _listeners:
        return _Told(iterable, file=io.StringIO(), mininterval=0.5, **options)
    if in_lab():
        from tqdm.notebook import tqdm as widget  # needs ipywidgets, which comes with the study

        return widget(iterable, **options)
    every = float(os.environ.get(SECONDS) or seconds_between())
    return tqdm(iterable, file=sys.stderr, mininterval=every, maxinterval=max(every, 10.0), **options)


@contextmanager
def progress_told_to(tell: Callable[[str, int, int | None], None]) -> Iterator[None]:
    """Bars made inside call ``tell(what, done, total)`` instead: a widget shows them where the work was asked for."""
    _listeners.append(tell)
    try:
        yield
    finally:
        _listeners.remove(tell)


class _Told(tqdm):
    """A bar that is not drawn."""

    def display(self, *_: object, **__: object) -> None:
        if _listeners:
            _listeners[-1](self.desc.removesuffix(": "), self.n, self.total)


class Passing(str):
    """A line that depends on what earlier runs left, caches and checkpoints: told, but no part of the executed notebook."""


def log_line(text: str) -> None:
    """Write a line above a progress bar if there is one: to stderr, and in JupyterLab, which paints that red, to stdout."""
    tqdm.write(text, file=sys.stdout if in_lab() else sys.stderr)
    if os.environ.get(SECONDS) and "ipykernel" in sys.modules and not isinstance(text, Passing):
        from IPython.display import display

        display({LOG_LINE: text}, raw=True)


def seconds_between() -> float:
    """Seconds between two updates of a bar on this process's stderr."""
    return IN_TERMINAL if sys.stderr.isatty() else IN_LOG


def in_lab() -> bool:
    """Whether a notebook's kernel runs by hand, with widgets to draw on."""
    if os.environ.get(SECONDS) or "ipykernel" not in sys.modules:
        return False
    from importlib.util import find_spec

    from IPython import get_ipython

    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel") and find_spec("ipywidgets") is not None
