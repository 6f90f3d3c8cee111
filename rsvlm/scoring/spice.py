"""SPICE (Anderson et al. 2016), where the jars that no Python package carries are at hand.

pycocoevalcap ships SPICE and most of its libraries. Four files are missing (Stanford CoreNLP 3.6.0 with its models,
and a JavaScript engine that Java lost in version 15); a setting names the folder that holds them, and
``python -m rsvlm.scoring.spice_jars`` gets them.
"""

import json
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rsvlm.scoring.content_cache import ContentCache
from rsvlm.scoring.java import pycocoevalcap_folder, run_java

JARS = (
    "stanford-corenlp-3.6.0.jar",
    "stanford-corenlp-3.6.0-models.jar",
    "rhino-1.7.15.jar",
    "rhino-engine-1.7.15.jar",
)
# SPICE's serialiser reaches into these packages, which newer Javas close.
OPENED = ("lang", "util", "math", "text", "net", "util.concurrent", "io")
PROGRAM = "spice-1.0 -subset"
MISSING = "not run: jars missing"
SENTENCES_A_ROW = 50
FEW_TEXTS = 200  # up to here, parsing a sentence again costs less than starting SPICE twice
SECONDS, SECONDS_A_TEXT = 600.0, 2.0
ATTEMPTS = 2


def why_not(jars: Path | None) -> str | None:
    """Why SPICE cannot run with this folder of jars; None when it can."""
    if jars is None:
        return f"{MISSING} (spice_jars names no folder)"
    absent = [name for name in JARS if not (jars / name).is_file()]
    return f"{MISSING} (no {', '.join(absent)} in the folder spice_jars)" if absent else None


def spice_scores(
    pairs: Sequence[tuple[str, Sequence[str]]], jars: Path, cache: ContentCache | None = None
) -> list[float]:
    """SPICE (F1 over scene-graph tuples) of each tokenized caption. Undefined, as for an empty caption: 0.

    Args:
        pairs: (caption, its references); repeated references are sent once, they add no tuple.
        jars: the folder with ``JARS``.
        cache: where scores are kept between calls; its folder keeps parsed sentences too.

    Raises:
        RuntimeError: SPICE failed or hung twice; holds what it said.
    """
    contents = [json.dumps([caption, list(dict.fromkeys(references))]) for caption, references in pairs]
    known = cache.find(PROGRAM, set(contents)) if cache else {}
    new = sorted(set(contents) - set(known))
    if new:
        asked = [json.loads(content) for content in new]
        scores = _ask(asked, jars, cache.folder if cache else None)
        made = {content: repr(score) for content, score in zip(new, scores, strict=True)}
        if cache:
            cache.keep(PROGRAM, made)
        known |= made
    return [float(known[content]) for content in contents]


def _ask(pairs: list[tuple[str, list[str]]], jars: Path, folder: Path | None) -> list[float]:
    with tempfile.TemporaryDirectory(prefix="rsvlm-spice-") as scratch:
        parsed = (folder or Path(scratch)) / "spice"  # SPICE's own store of sentences, for one process at a time
        parsed.mkdir(parents=True, exist_ok=True)
        # Parsing takes nearly all the time and SPICE parses what it has not met in earlier calls again and again:
        # a first call with every distinct sentence once makes the second one a matter of seconds.
        texts = [text for caption, references in pairs for text in (caption, *references)]
        if len(texts) > FEW_TEXTS:
            _run(_each_sentence_once(texts), jars, Path(scratch), parsed)
        rows = [{"image_id": i, "test": caption, "refs": own} for i, (caption, own) in enumerate(pairs)]
        results = _run(rows, jars, Path(scratch), parsed)
    found = {result["image_id"]: _number(result["scores"]["All"]["f"]) for result in results}
    return [found[i] for i in range(len(pairs))]


def _each_sentence_once(texts: Sequence[str]) -> list[dict]:
    """Made-up images that together hold each distinct sentence once."""
    sentences = sorted({text for text in texts if text})
    groups = [sentences[start : start + SENTENCES_A_ROW] for start in range(0, len(sentences), SENTENCES_A_ROW)]
    return [{"image_id": i, "test": group[0], "refs": group[1:] or group} for i, group in enumerate(groups)]


def _run(rows: list[dict], jars: Path, scratch: Path, parsed: Path) -> list[dict]:
    source, target = scratch / "in.json", scratch / "out.json"
    source.write_text(json.dumps(rows), encoding="utf-8")
    own = pycocoevalcap_folder() / "spice"
    classpath = os.pathsep.join([str(own / "spice-1.0.jar"), str(own / "lib" / "*"), str(jars.resolve() / "*")])
    arguments = [f"--add-opens=java.base/java.{package}=ALL-UNNAMED" for package in OPENED]
    arguments += ["-Xmx2G", "-cp", classpath, "edu.anu.spice.SpiceScorer", str(source)]
    arguments += ["-out", str(target), "-subset", "-silent", "-cache", str(parsed)]
    seconds = SECONDS + SECONDS_A_TEXT * sum(1 + len(row["refs"]) for row in rows)
    for _ in range(ATTEMPTS):
        target.unlink(missing_ok=True)
        done = run_java(*arguments, folder=scratch, seconds=seconds)
        if not done.failure and target.is_file():
            return json.loads(target.read_text(encoding="utf-8"))
    said = done.failure or done.output.decode("utf-8", "replace").strip()[-2000:] or "it wrote no result"
    raise RuntimeError(f"SPICE failed {ATTEMPTS} times: {said}")


def _number(value: object) -> float:
    """SPICE writes NaN where neither caption nor references hold a tuple."""
    number = float(value) if isinstance(value, int | float) else math.nan
    return number if math.isfinite(number) else 0.0
