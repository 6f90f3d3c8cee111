"""PTB tokens of captions: the one tokenisation that all caption metrics see."""

import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

from rsvlm.scoring.content_cache import ContentCache
from rsvlm.scoring.java import pycocoevalcap_folder, run_java

LINE_BREAKS = re.compile("[\r\n\v\f\x1c\x1d\x1e\x85\u2028\u2029]")  # all that the tokenizer may take for an end of line
PROGRAM = "stanford-corenlp-3.4.1 PTBTokenizer -preserveLines -lowerCase"
SECONDS, SECONDS_A_LINE = 120.0, 0.01
ATTEMPTS = 2


def tokenize_captions(captions: Iterable[str], cache: ContentCache | None = None) -> dict[str, str]:
    """Each distinct caption's PTB tokens: lower case, punctuation dropped, joined by one space.

    Equal to pycocoevalcap's PTBTokenizer; also for captions that are empty or hold line breaks, which it misaligns.

    Args:
        cache: where tokens are kept between calls.

    Raises:
        JavaNotFound: no Java runtime.
        RuntimeError: the tokenizer failed or hung twice; holds what it said.
    """
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

    lines = {caption: LINE_BREAKS.sub(" ", caption) for caption in sorted(set(captions))}
    known = cache.find(PROGRAM, set(lines.values())) if cache else {}
    known |= {line: "" for line in lines.values() if not line.strip()}
    new = sorted(set(lines.values()) - set(known))
    dropped = set(PUNCTUATIONS)
    made = {}
    for line, tokenized in zip(new, _tokenize_lines(new), strict=True):
        made[line] = " ".join(word for word in tokenized.rstrip().split(" ") if word and word not in dropped)
    if cache and made:
        cache.keep(PROGRAM, made)
    known |= made
    return {caption: known[line] for caption, line in lines.items()}


def _tokenize_lines(lines: list[str]) -> list[str]:
    """One line of tokens for each line. Lines that the tokenizer breaks up are put together again."""
    if not lines:
        return []
    jar = pycocoevalcap_folder() / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    with tempfile.TemporaryDirectory(prefix="rsvlm-tokens-") as folder:
        source = Path(folder) / "captions.txt"
        source.write_bytes("\n".join(lines).encode("utf-8", "replace"))
        command = (
            "-cp",
            str(jar),
            "edu.stanford.nlp.process.PTBTokenizer",
            "-preserveLines",
            "-lowerCase",
            str(source),
        )
        for _ in range(ATTEMPTS):
            done = run_java(*command, folder=Path(folder), seconds=SECONDS + SECONDS_A_LINE * len(lines))
            if not done.failure:
                break
    if done.failure:
        raise RuntimeError(f"the PTB tokenizer failed {ATTEMPTS} times: {done.failure}")
    tokenized = done.output.decode("utf-8", "replace").removesuffix("\n").split("\n")
    if len(tokenized) == len(lines):
        return tokenized
    if len(lines) == 1:
        return [" ".join(tokenized)]
    middle = len(lines) // 2
    return _tokenize_lines(lines[:middle]) + _tokenize_lines(lines[middle:])
