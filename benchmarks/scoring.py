"""How long caption scores take, against pycocoevalcap's own COCOEvalCap on the same captions.

``python benchmarks/scoring.py`` scores a captioner's stand-in (another image's caption for every second image) on
RSICD's official test set in one run: COCOEvalCap without SPICE; this package from nothing, with METEOR's paraphrase
index made; from nothing with the index in place, as it is from the second study on; and again with a tenth of the
captions changed. It checks that all scores agree to 1e-9 and prints seconds and their ratio to COCOEvalCap's.

Wall time on an idle machine; interpreter and imports are left out on both sides.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # from a checkout without an installation

import numpy as np

from rsvlm.content_cache import ContentCache
from rsvlm.data.readers import list_source
from rsvlm.data.sources import Source
from rsvlm.files import write_json
from rsvlm.scoring.captions import ScoringTools, score_captions
from rsvlm.scoring.java_metrics import find_java
from rsvlm.study.paths import ROOT
from rsvlm.study.recording import provenance

CHANGED = 0.1
AGREEMENT = 1e-9
NAMES = {"Bleu_1": "BLEU-1", "Bleu_2": "BLEU-2", "Bleu_3": "BLEU-3", "Bleu_4": "BLEU-4", "METEOR": "METEOR",
         "ROUGE_L": "ROUGE_L", "CIDEr": "CIDEr"}  # fmt: skip


class Annotations:
    """What COCOEvalCap asks of pycocotools' COCO."""

    def __init__(self, captions: dict[str, list[str]]) -> None:
        self.imgToAnns = {
            key: [{"image_id": key, "caption": text} for text in texts] for key, texts in captions.items()
        }

    def getImgIds(self) -> list[str]:
        """The images."""
        return list(self.imgToAnns)


def without_spice() -> type:
    """COCOEvalCap with its SPICE replaced by one that says nothing: SPICE needs jars that the package lacks."""
    from pycocoevalcap import eval as coco

    class NoSpice:
        def method(self) -> str:
            return "SPICE (left out)"

        def compute_score(self, truths: dict, results: dict) -> tuple[float, list]:
            return 0.0, [{} for _ in truths]

    coco.Spice = NoSpice
    return coco.COCOEvalCap


def changed_captions(captions: dict[str, str], share: float, seed: int) -> dict[str, str]:
    """The captions where a share of the images has another image's caption."""
    generator = random.Random(seed)
    ids = sorted(captions)
    chosen = generator.sample(ids, max(1, round(share * len(ids))))
    return captions | {image_id: captions[generator.choice(ids)] for image_id in chosen}


def timed(work: Callable[[], object]) -> tuple[float, object]:
    """(seconds, what ``work`` returned)."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def largest_difference(theirs: object, ours: object) -> float:
    """Of all corpus and per-image scores."""
    differences = []
    for name, metric in NAMES.items():
        differences.append(abs(theirs.eval[name] - ours.corpus[metric]))
        own = dict(zip(ours.per_image["image_id"], ours.per_image[metric], strict=True))
        differences += [abs(entry[name] - own[key]) for key, entry in theirs.imgToEval.items()]
    return float(np.max(differences))


def main() -> int:
    """Print the timings; 1 when scores do not agree."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--annotations", type=Path, default=ROOT.parent / "shared/data/rsicd/dataset_rsicd.json")
    parser.add_argument("--split", default="test", help="the official test set; a swapped file is put right")
    parser.add_argument("--images", type=int, default=0, help="at most so many; 0: all")
    parser.add_argument("--json", action="store_true", help="print a JSON object only")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/scoring.json"))
    options = parser.parse_args()
    find_java()
    source = Source("rsicd", "karpathy", annotations=options.annotations.name, images=".")
    listing, _, _ = list_source(source, str(options.annotations.resolve().parent))
    listed = [image for image in listing.images if image.split == options.split]
    references = {image.name: list(image.captions) for image in listed[: options.images or None]}
    ids = list(references)
    generated = {key: references[ids[(place + 1) % len(ids)] if place % 2 else key][0] for place, key in enumerate(ids)}
    evaluation = without_spice()(Annotations(references), Annotations({key: [text] for key, text in generated.items()}))
    score_captions({"a": "a"}, {"a": ["a"]}, tokens={"a": "a"})  # imports on our side; theirs are done

    def score(captions: dict[str, str], folder: Path) -> object:
        return score_captions(captions, references, tools=ScoringTools(ContentCache(folder)))

    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="rsvlm-benchmark-") as scratch, contextlib.redirect_stdout(io.StringIO()):
        first, second = Path(scratch) / "first", Path(scratch) / "second"
        seconds["COCOEvalCap without SPICE"], _ = timed(evaluation.evaluate)
        seconds["rsvlm, very first time"], ours = timed(lambda: score(generated, first))
        second.mkdir()
        os.symlink(first / "paraphrases", second / "paraphrases")
        seconds["rsvlm, nothing kept of the captions"], again = timed(lambda: score(generated, second))
        other = changed_captions(generated, CHANGED, seed=0)
        seconds[f"rsvlm, {CHANGED:.0%} of the captions changed"], _ = timed(lambda: score(other, second))
        seconds["rsvlm, nothing changed"], _ = timed(lambda: score(other, second))
    difference = max(largest_difference(evaluation, scores) for scores in (ours, again))
    theirs = seconds["COCOEvalCap without SPICE"]
    found = {
        "images": len(references), "references": sum(map(len, references.values())), "cores": os.cpu_count(),
        "machine": platform.processor() or platform.machine(), "largest_difference": difference,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "ratio": {name: round(value / theirs, 3) for name, value in seconds.items()},
    }  # fmt: skip
    write_json(options.out, found | {"provenance": provenance(0, "cpu")})
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        print(f"{found['images']} images, {found['references']} references, {found['cores']} cores")
        for name, value in seconds.items():
            print(f"{name:<40} {value:8.2f} s   {value / theirs:6.3f}")
        print(f"largest difference of any score: {difference:.1e}")
    return 0 if difference <= AGREEMENT else 1


if __name__ == "__main__":
    sys.exit(main())
