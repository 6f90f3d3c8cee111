"""How far long work is, with the time left: a bar in JupyterLab, one updating line in a terminal, a line a minute in a log."""

import os
import sys
from collections.abc import Iterable

from tqdm.std import tqdm

SECONDS = "RSVLM_PROGRESS_SECONDS"  # set: plain text, an update every so many seconds (a stage's kernel is told so)
LOG_LINE = "application/vnd.rsvlm.log"  # type of a stage's log lines in its notebook, which are folded away
IN_TERMINAL, IN_LOG = 2.0, 60.0  # seconds between two updates


def progress(iterable: Iterable | None = None, **options: object) -> tqdm:
    """A bar over work, as tqdm's: ``desc``, ``total``, ``unit``, ``initial``, ``disable``."""
    if in_lab():
        from tqdm.notebook import tqdm as widget  # needs ipywidgets, which comes with the study

        return widget(iterable, **options)
    every = float(os.environ.get(SECONDS) or seconds_between())
    return tqdm(iterable, file=sys.stderr, mininterval=every, maxinterval=max(every, 10.0), **options)


def log_line(text: str) -> None:
    """Write a line above a progress bar if there is one: to stderr, and in JupyterLab, which paints that red, to stdout."""
    tqdm.write(text, file=sys.stdout if in_lab() else sys.stderr)
    if os.environ.get(SECONDS) and "ipykernel" in sys.modules:
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
