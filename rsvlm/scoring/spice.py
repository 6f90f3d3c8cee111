"""SPICE (Anderson et al. 2016), where the jars that no Python package carries are at hand.

pycocoevalcap ships SPICE and most of its libraries. Four files are missing (Stanford CoreNLP 3.6.0 with its models,
and a JavaScript engine that Java lost in version 15); a setting names the folder that holds them.
"""

import json
import math
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from rsvlm.scoring.java import java_command, pycocoevalcap_folder

JARS = (
    "stanford-corenlp-3.6.0.jar",
    "stanford-corenlp-3.6.0-models.jar",
    "rhino-1.7.15.jar",
    "rhino-engine-1.7.15.jar",
)
# SPICE's serialiser reaches into these packages, which newer Javas close.
OPENED = ("lang", "util", "math", "text", "net", "util.concurrent", "io")
MISSING = "not run: jars missing"
SENTENCES_A_ROW = 50
FEW_TEXTS = 200  # up to here, parsing a sentence again costs less than starting SPICE twice


def why_not(jars: Path | None) -> str | None:
    """Why SPICE cannot run with this folder of jars; None when it can."""
    if jars is None:
        return f"{MISSING} (spice_jars names no folder)"
    absent = [name for name in JARS if not (jars / name).is_file()]
    return f"{MISSING} (no {', '.join(absent)} in the folder spice_jars)" if absent else None


def spice_scores(
    generated: Mapping[str, str], references: Mapping[str, Sequence[str]], jars: Path, cache: Path | None = None
) -> dict[str, float]:
    """Each image's SPICE (F1 over scene-graph tuples) from tokenized captions. Undefined, as for an empty caption: 0.

    Args:
        generated: image_id -> the caption.
        references: image_id -> its references.
        jars: the folder with ``JARS``.
        cache: a folder that keeps parsed sentences between calls (one process at a time); None: a passing one.

    Raises:
        RuntimeError: SPICE failed; holds what it said.
    """
    with tempfile.TemporaryDirectory(prefix="rsvlm-spice-") as folder:
        kept = cache or Path(folder) / "cache"
        kept.mkdir(parents=True, exist_ok=True)
        # Parsing takes nearly all the time and SPICE parses what it has not met in earlier calls again and again:
        # a first call with every distinct sentence once makes the second one a matter of seconds.
        texts = [*generated.values(), *(text for texts in references.values() for text in texts)]
        if len(texts) > FEW_TEXTS:
            _run(_each_sentence_once(texts), jars, Path(folder), kept)
        rows = [{"image_id": key, "test": generated[key], "refs": list(references[key])} for key in sorted(generated)]
        results = _run(rows, jars, Path(folder), kept)
    return {result["image_id"]: _number(result["scores"]["All"]["f"]) for result in results}


def _each_sentence_once(texts: Sequence[str]) -> list[dict]:
    """Made-up images that together hold each distinct sentence once."""
    sentences = sorted({text for text in texts if text})
    groups = [sentences[start : start + SENTENCES_A_ROW] for start in range(0, len(sentences), SENTENCES_A_ROW)]
    return [{"image_id": i, "test": group[0], "refs": group[1:] or group} for i, group in enumerate(groups)]


def _run(rows: list[dict], jars: Path, folder: Path, cache: Path) -> list[dict]:
    source, target = folder / "in.json", folder / "out.json"
    source.write_text(json.dumps(rows), encoding="utf-8")
    own = pycocoevalcap_folder() / "spice"
    classpath = os.pathsep.join([str(own / "spice-1.0.jar"), str(own / "lib" / "*"), str(jars.resolve() / "*")])
    opened = [f"--add-opens=java.base/java.{package}=ALL-UNNAMED" for package in OPENED]
    command = java_command(*opened, "-Xmx2G", "-cp", classpath, "edu.anu.spice.SpiceScorer", str(source))
    command += ["-out", str(target), "-subset", "-silent", "-cache", str(cache)]
    done = subprocess.run(command, cwd=folder, capture_output=True)
    if done.returncode != 0 or not target.is_file():
        said = (done.stderr + done.stdout).decode("utf-8", "replace").strip()[-2000:]
        raise RuntimeError(f"SPICE failed: {said or 'no message'}")
    results = json.loads(target.read_text(encoding="utf-8"))
    target.unlink()
    return results


def _number(value: object) -> float:
    """SPICE writes NaN where neither caption nor references hold a tuple."""
    number = float(value) if isinstance(value, int | float) else math.nan
    return number if math.isfinite(number) else 0.0
