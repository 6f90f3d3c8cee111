"""Progress for the person who waits: lines on stderr, which the runner of notebooks streams and does not keep."""

import sys

from tqdm import tqdm


def log_line(text: str) -> None:
    """Write a line to stderr, above a progress bar if there is one."""
    tqdm.write(text, file=sys.stderr)
