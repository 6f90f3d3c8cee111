"""How fast and how large browsing is: 45,000 generated records in the gallery, 100,000 images in the search box.

    python benchmarks/browsing.py                        # made-up captions, made-up 256-pixel pictures
    python benchmarks/browsing.py --pictures FOLDER      # the pictures of a folder instead

Prints a table and writes it with device and versions to ``reports/benchmarks/browsing.json``. Everything is made in a scratch
folder and removed.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

WORDS = "many some two three white green large small boats trees houses roads a river beside near in the harbour field".split()
METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE_L", "CIDEr")
RUNS = ("captioner", "beam", "consensus", "nearest", "constant", "shuffled")


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=45_000, help="images in the gallery")
    parser.add_argument("--images", type=int, default=100_000, help="images in the search index")
    parser.add_argument("--dimensions", type=int, default=256, help="of the search index")
    parser.add_argument("--pictures", type=Path, help="folder of pictures to show; else 500 are made up")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/browsing.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["RSVLM_ROOT"] = scratch
        make_records(Path(scratch), arguments.records, arguments.pictures)
        rows = measure_gallery() | measure_search(arguments.images, arguments.dimensions)
    from rsvlm.files import write_json
    from rsvlm.study.recording import provenance

    width = max(map(len, rows))
    print("\n".join(f"{name:<{width}}  {value:>10,.1f}" for name, value in rows.items()))
    asked = {"records": arguments.records, "images": arguments.images, "dimensions": arguments.dimensions}
    write_json(arguments.out, {"measured": rows, "asked": asked, "provenance": provenance(0, "cpu")})
    return 0


def make_records(root: Path, records: int, pictures: Path | None) -> None:
    """The files of a study with so many captioned and scored images, in ``root``."""
    import numpy as np
    import pandas as pd
    from PIL import Image

    from rsvlm.data.table import save_table
    from rsvlm.files import write_json_lines
    from rsvlm.study import paths

    draw = np.random.default_rng(0)
    if pictures is None:
        pictures = root / "pictures"
        pictures.mkdir()
        for number in range(500):
            noise = draw.integers(0, 255, (32, 32, 3)).astype(np.uint8)
            Image.fromarray(noise).resize((256, 256), Image.Resampling.BICUBIC).save(pictures / f"{number}.png")
    files = sorted(path for path in pictures.resolve().rglob("*") if path.suffix.lower() in (".png", ".jpg", ".tif"))
    if not files:
        sys.exit(f"{pictures}: no pictures")

    def sentence() -> str:
        return " ".join(draw.choice(WORDS, 11)) + " ."

    rows = [
        {
            "image_id": f"made/{number:06}.png",
            "source": "made",
            "split": ("train", "val", "test")[number % 3],
            "path": str(files[number % len(files)]),
            "captions": [sentence() for _ in range(5)],
            "label": f"class {number % 45}",
        }
        for number in range(records)
    ]
    save_table(rows, paths.IMAGE_TABLE)
    names = [row["image_id"] for row in rows]
    tables = []
    for run in RUNS:
        write_json_lines(
            paths.GENERATED / f"{run}.jsonl", [{"image_id": name, "caption": sentence()} for name in names]
        )
        for references in ("released", "distinct"):
            head = {"run": run, "source": "made", "split": "test", "image_id": names, "references": references}
            scores = {metric: draw.random(records).round(6) for metric in METRICS}
            tables.append(pd.DataFrame(head | {"reference_set_seen": False} | scores))
    paths.SCORES.mkdir(parents=True)
    pd.concat(tables).to_csv(paths.SCORES / "captions.csv", index=False)


def measure_gallery() -> dict[str, float]:
    """Opening and paging the gallery, and what it holds in memory."""
    from rsvlm.study.paths import finished_study
    from rsvlm.viewing.widgets import CaptionGallery

    query, rows = {"run": "captioner", "baseline": "consensus"}, {}
    for name in ("the first time", "again"):
        held, start = memory(), time.perf_counter()
        gallery = CaptionGallery(finished_study())
        gallery.answer_page(query, 0, 24)
        rows[f"gallery: open to the first page, {name}, ms"] = 1000 * (time.perf_counter() - start)
        rows[f"gallery: memory it takes, {name}, MB"] = memory() - held
    questions = {
        "random": {},
        "best": {"order": "best"},
        "gap": {"order": "worst", "measure": "gap"},
        "class": {"label": "class 7", "order": "median"},
        "words": {"words": "river boats", "place": "said"},
        "words in references": {"words": "river boats", "place": "references"},
        "words in all texts": {"words": "river boats", "place": "all"},
    }
    for name, more in questions.items():
        pages = [
            timed(lambda first=first, more=more: gallery.answer_page(query | more, first, 24))
            for first in range(0, 480, 24)
        ]
        rows[f"gallery: a page, {name}: first, ms"] = pages[0]
        rows[f"gallery: a page, {name}: median of the next, ms"] = statistics.median(pages[1:])
    ids = gallery.records.image_ids
    rows["gallery: 24 thumbnails made, ms"] = timed(lambda: gallery.answer_pictures(ids[:24]))
    rows["gallery: a page with its thumbnails from the cache, ms"] = timed(lambda: gallery.answer_pictures(ids[:24]))
    before = memory()
    for first in range(0, 24 * 200, 24):
        page = gallery.answer_page(query, first, 24)
        gallery.answer_pictures([item["id"] for item in page["items"]])
    rows["gallery: memory that 200 pages add, MB"] = memory() - before
    return rows


def measure_search(images: int, dimensions: int) -> dict[str, float]:
    """Searching an index of random vectors, without the encoding of the query."""
    import faiss
    import numpy as np

    from rsvlm.viewing.search_index import SearchIndex

    draw = np.random.default_rng(0)
    vectors = draw.normal(size=(images, dimensions)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    made = faiss.IndexFlatIP(dimensions)
    made.add(vectors)
    splits = np.array(["test", "val", "train"], dtype=object)[np.arange(images) % 3]
    index = SearchIndex([f"made/{number:06}.png" for number in range(images)], {"dual_encoder": 1.0}, splits, made)
    rows = {}
    for name, split in (("all images", None), ("a third of them", "test")):
        times = [
            timed(lambda row=row, split=split: index.search(vectors[row : row + 1], 12, split=split))
            for row in range(20)
        ]
        rows[f"search: {name}: median, ms"] = statistics.median(times)
        rows[f"search: {name}: slowest, ms"] = max(times)
    return rows


def timed(act: Callable[[], object]) -> float:
    """Milliseconds that ``act`` took."""
    start = time.perf_counter()
    act()
    return 1000 * (time.perf_counter() - start)


def memory() -> float:
    """The memory that this process holds now, in MB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    sys.exit(main())
