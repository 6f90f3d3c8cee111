"""How long the table of RemoteCLIP's size takes to build, and how much memory: from generated files of its formats.

``python benchmarks/aggregation.py [--images 165745] [--pixels 32] [--out FILE]``: writes a CSV with five captions an
image and as many small pictures, then times each step of the aggregation in a process of its own, the image
fingerprints once with an empty and once with a full cache. Prints a table and writes a JSON file with versions and
machine.
"""

import argparse
import csv
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rsvlm.data.audit import find_near_duplicates, verbatim_share
from rsvlm.data.catalogue import REMOTECLIP_IMAGES
from rsvlm.data.duplicates import fingerprint_images
from rsvlm.data.listings import find_images
from rsvlm.data.readers import list_source
from rsvlm.data.sources import parse_source
from rsvlm.data.spill import Chosen
from rsvlm.data.table import load_table, save_table
from rsvlm.files import write_json
from rsvlm.study.recording import provenance

WORDS = "some many green white large small two houses trees roads ships planes fields beside near in a river".split()
SOURCE = {"name": "big", "format": "caption_table", "annotations": {"train": "big.csv"}, "images": "images"}


def generate(folder: Path, images: int, pixels: int) -> None:
    """A CSV with five captions an image and pictures of random blocks, in folders of a thousand."""
    draw = np.random.default_rng(0)
    with (folder / "big.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["filename", "title"])
        for number in range(images):
            place = folder / "images" / f"{number // 1000:03d}"
            place.mkdir(parents=True, exist_ok=True)
            blocks = draw.integers(0, 256, (pixels // 2, pixels // 2, 3), dtype=np.uint8)
            Image.fromarray(blocks).resize((pixels, pixels)).save(place / f"{number}.jpg", quality=80)
            for _ in range(5):
                writer.writerow([f"{place.name}/{number}.jpg", " ".join(draw.choice(WORDS, 11)) + " ."])


def build_table(folder: Path) -> dict[str, float]:
    """Seconds to read the annotations, find the files, and write and load the table: no picture is opened."""
    seconds, clock = {}, time.perf_counter
    start = clock()
    listing, images, _ = list_source(parse_source(SOURCE), str(folder))
    seconds["annotations read"] = clock() - start
    start = clock()
    found, _, _ = find_images(listing.images, images)
    seconds["files found"] = clock() - start
    start = clock()
    rows = [
        {
            "image_id": f"big/{item.name}",
            "source": "big",
            "split": item.listed.split,
            "path": str(item.path),
            "captions": list(item.listed.captions),
            "label": None,
        }
        for item in found
    ]
    save_table(rows, folder / "images.parquet")
    seconds["table written"] = clock() - start
    start = clock()
    load_table(folder / "images.parquet")
    seconds["table loaded"] = clock() - start
    return seconds


def audit_images(folder: Path) -> dict[str, float]:
    """Seconds to fingerprint all images with an empty and with a full cache, to pair them and to compare captions."""
    seconds, clock = {}, time.perf_counter
    rows = load_table(folder / "images.parquet").to_dict("records")
    paths = [Path(row["path"]) for row in rows]
    for name in ("fingerprints, first time", "fingerprints, from the cache"):
        start = clock()
        prints = fingerprint_images(paths, cache=folder / "cache")
        seconds[name] = clock() - start
    start = clock()
    by_image = Chosen(prints, {row["image_id"]: place for place, row in enumerate(rows)})
    find_near_duplicates(rows, [], by_image, True, cache=folder / "cache")
    seconds["near_duplicates"] = clock() - start
    start = clock()
    verbatim_share(rows)
    seconds["captions compared"] = clock() - start
    return seconds


def _measured(work: str, folder: Path, answer: multiprocessing.Queue) -> None:
    seconds = {"table": build_table, "audit": audit_images}[work](folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "linux" else 1e9)
    answer.put({"seconds": {key: round(value, 2) for key, value in seconds.items()}, "gigabytes": round(peak, 3)})


def main() -> None:
    """Run it and show it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=REMOTECLIP_IMAGES)
    parser.add_argument("--pixels", type=int, default=32, help="side of the generated pictures")
    parser.add_argument("--keep", type=Path, help="folder for the generated files, used again when it is there")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/aggregation.json"))
    arguments = parser.parse_args()
    folder = arguments.keep or Path(tempfile.mkdtemp())
    if not (folder / "big.csv").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        generate(folder, arguments.images, arguments.pixels)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    results = {}
    context = multiprocessing.get_context("spawn")
    for work in ("table", "audit"):
        answer = context.Queue()
        process = context.Process(target=_measured, args=(work, folder, answer))
        process.start()
        results[work] = answer.get()
        process.join()
        for name, value in results[work]["seconds"].items():
            print(f"{work}: {name:32} {value:9.2f} s")
        total = sum(results[work]["seconds"].values())
        print(f"{work}: {'together':32} {total:9.2f} s, at most {results[work]['gigabytes']} GB in its main process")
    if not arguments.keep:
        shutil.rmtree(folder)
    facts = {"images": arguments.images, "captions": 5 * arguments.images, "pixels": arguments.pixels}
    write_json(arguments.out, facts | results | {"provenance": provenance(0, "cpu")})


if __name__ == "__main__":
    main()
