"""How much memory and time a caption table of millions of images takes: written, read as each stage reads it, audited.

    python benchmarks/caption_table.py                    # 2,000,000 images with five captions each
    python benchmarks/caption_table.py --rows 50000       # a small one

No picture is made: ids and paths are unique, each caption is the first half of one real caption and the second half of another
(``--captions``: the image table of a study, or a ``dataset.json`` of Karpathy's form). Each step runs in a process of its own; its
peak of memory (VmHWM; Linux) holds Python and the libraries, which the step ``libraries`` has alone.

- table written: as ``aggregate_data`` does it, captions spilled to disk, then ``save_table`` from an iterator;
- ids and paths of one split: ``encode_images`` and the galleries; all captions: what a whole table takes;
- training batches: captions of training images in a new order, as ``finetune_lora`` draws them (a batch and 256 negatives);
- captions looked up: by image, as the nearest images' captions are;
- distinct captions: ``encode_images`` collects them, sorted, and holds them;
- captions compared: word for word and as sets between all parts, and their words counted;
- fingerprints: written to disk and gone through as the search for near-duplicates does, without its index, whose time grows with the
  square; near-duplicates: the search itself, among the first ``--compared`` of them.

Prints a table and writes it with device and versions. The scratch files (3 kB an image, most of them fingerprints) are removed.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # from a checkout without an installation

import numpy as np

BLOCK, BATCH, NEGATIVES, STEPS_DRAWN, LOOKED_UP = 10_000, 60, 256, 1_000, 100_000
SHARES = {"test": 0.05, "train": 0.9, "val": 0.05}  # sorted, as the table is
SOURCES = [f"made_{number}" for number in range(4)]


def main() -> int:
    """Run the steps, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--captions", type=Path, default=Path("data/aggregated/images.parquet"), help="real ones")
    parser.add_argument(
        "--compared", type=int, default=50_000, help="images among which near-duplicates are looked for"
    )
    parser.add_argument("--scratch", type=Path, help="folder for a scratch folder, which is removed")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/caption_table.json"))
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        start = time.perf_counter()
        found = STEPS[arguments.step](arguments) or {}
        print(json.dumps({"seconds": round(time.perf_counter() - start, 2), "gigabytes": round(peak(), 3)} | found))
        return 0
    arguments.folder = Path(tempfile.mkdtemp(dir=arguments.scratch))
    measured = {}
    try:
        for step in STEPS:
            measured[step] = run_step(step, arguments)
            facts = {key: value for key, value in measured[step].items() if key not in ("seconds", "gigabytes")}
            print(f"{step:32}{measured[step]['seconds']:10.1f} s{measured[step]['gigabytes']:8.2f} GB  {facts or ''}")
    finally:
        shutil.rmtree(arguments.folder)
    from rsvlm.files import write_json
    from rsvlm.study.recording import provenance

    asked = {
        "rows": arguments.rows,
        "captions": 5 * arguments.rows,
        "compared": min(arguments.rows, arguments.compared),
    }
    write_json(arguments.out, asked | {"measured": measured, "provenance": provenance(0, "cpu")})
    return 0


def run_step(step: str, arguments: argparse.Namespace) -> dict:
    """What a step in a process of its own printed."""
    command = [sys.executable, __file__, "--step", step, "--folder", arguments.folder, "--rows", arguments.rows]
    command += ["--captions", arguments.captions, "--compared", arguments.compared]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def peak() -> float:
    """The most memory that this process has held, in GB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e9


def real_halves(path: Path) -> tuple[list[str], list[str]]:
    """The first and the second halves of real captions, each sorted."""
    from rsvlm.data.table import load_table

    if path.suffix == ".parquet":
        captions = load_table(path, columns=["captions"])["captions"].explode()
    else:
        images = json.loads(path.read_text(encoding="utf-8"))["images"]
        captions = [sentence["raw"].strip() for image in images for sentence in image["sentences"]]
    words = [caption.split() for caption in sorted(set(captions))]
    halves = [(" ".join(own[: len(own) // 2]), " ".join(own[len(own) // 2 :])) for own in words if len(own) > 3]
    return [first for first, _ in halves], [second for _, second in halves]


def made_rows(arguments: argparse.Namespace) -> Iterator[dict]:
    """Rows in the table's order, the same at each call."""
    draw = np.random.default_rng(0)
    firsts, seconds = real_halves(arguments.captions)
    for source in SOURCES:
        number = 0
        for split, share in SHARES.items():
            left = round(arguments.rows / len(SOURCES) * share)
            while left:
                count = min(left, BLOCK)
                drawn = draw.integers(0, len(firsts), (count, 5, 2)).tolist()
                for own in drawn:
                    name = f"{number // 1000:04d}/{number:08d}.jpg"
                    yield {
                        "image_id": f"{source}/{name}", "source": source, "split": split, "path": f"data/raw/{source}/{name}",
                        "captions": [f"{firsts[one]} {seconds[two]}" for one, two in own], "label": None, "width": 256,
                        "height": 256, "resolution": 0.3,
                    }  # fmt: skip
                    number += 1
                left -= count


def libraries(arguments: argparse.Namespace) -> None:
    """Nothing but what the others import."""
    import rsvlm.data.aggregate
    import rsvlm.training.caption_batches  # noqa: F401


def table_written(arguments: argparse.Namespace) -> dict:
    from rsvlm.data.spill import StoredRows, Texts
    from rsvlm.data.table import save_table

    light: list[dict] = []

    def passing(rows: Iterator[dict]) -> Iterator[dict]:
        for place, row in enumerate(rows):
            light.append(
                {key: value for key, value in row.items() if key not in ("captions", "label")} | {"place": place}
            )
            yield {"captions": row["captions"], "label": row["label"]}

    by_source = groupby(made_rows(arguments), lambda row: row["source"])
    texts = {source: Texts(passing(own), arguments.folder) for source, own in by_source}
    rows = StoredRows(light, texts)
    save_table(iter(rows), arguments.folder / "images.parquet")
    return {"megabytes": round((arguments.folder / "images.parquet").stat().st_size / 1e6, 1)}


def ids_and_paths(arguments: argparse.Namespace) -> dict:
    from rsvlm.data.table import load_table

    table = load_table(arguments.folder / "images.parquet", arguments.folder, ["image_id", "path"], split="train")
    return {"images": len(table)}


def all_captions(arguments: argparse.Namespace) -> dict:
    from rsvlm.data.table import load_table

    table = load_table(arguments.folder / "images.parquet", columns=["image_id", "split", "captions"])
    return {"images": len(table), "captions_megabytes": round(table["captions"].nbytes / 1e6, 1)}


def training_batches(arguments: argparse.Namespace) -> dict:
    from rsvlm.data.table import load_table
    from rsvlm.training.caption_batches import examples_of

    columns, splits = ["image_id", "split", "captions"], ["train", "val"]
    table = load_table(arguments.folder / "images.parquet", columns=columns, split=splits)
    examples = examples_of(table, "train")
    del table
    draw, drawn, start = np.random.default_rng(0), 0, time.perf_counter()
    for chosen in np.array_split(draw.permutation(len(examples))[: STEPS_DRAWN * BATCH], STEPS_DRAWN):
        batch = [examples[place].references("distinct") for place in chosen]
        known = [set(examples[place].captions) for place in (*chosen, *draw.integers(0, len(examples), NEGATIVES))]
        drawn += sum(own[0] in others for own in batch for others in known)
    return {"milliseconds_a_batch": round((time.perf_counter() - start) / STEPS_DRAWN * 1e3, 2)}


def captions_looked_up(arguments: argparse.Namespace) -> dict:
    from rsvlm.data.table import CaptionsOf, load_table

    table = load_table(arguments.folder / "images.parquet", columns=["image_id", "captions"], split="train")
    captions = CaptionsOf(table)
    asked = table["image_id"].iloc[np.random.default_rng(0).integers(0, len(table), LOOKED_UP)].tolist()
    start = time.perf_counter()
    found = sum(len(captions[image_id]) for image_id in asked)
    return {"captions": found, "microseconds_an_image": round((time.perf_counter() - start) / LOOKED_UP * 1e6, 2)}


def distinct_captions(arguments: argparse.Namespace) -> dict:
    from rsvlm.data.table import load_table

    table = load_table(arguments.folder / "images.parquet", columns=["captions"])
    return {"distinct": len(sorted({text for own in table["captions"] for text in own}))}


def captions_compared(arguments: argparse.Namespace) -> dict:
    from rsvlm.data.audit import caption_facts, sibling_share, verbatim_share
    from rsvlm.data.table import read_blocks

    def rows() -> Iterator[dict]:
        columns = ["image_id", "source", "split", "captions"]
        for block in read_blocks(arguments.folder / "images.parquet", columns=columns):
            for values in zip(*(block[name] for name in columns)):
                yield dict(zip(columns, values))

    start, seconds = time.perf_counter(), {}
    for name, work in {"verbatim": verbatim_share, "siblings": sibling_share}.items():
        work(rows())
        seconds[f"{name}_seconds"] = round(time.perf_counter() - start, 1)
        start = time.perf_counter()
    facts = caption_facts(caption for row in rows() for caption in row["captions"])
    return seconds | {"words_seconds": round(time.perf_counter() - start, 1), "distinct": facts["distinct_captions"]}


def made_prints(count: int, folder: Path):
    """Fingerprints of pictures that are none: random hashes and grey pictures."""
    from rsvlm.data import duplicates
    from rsvlm.data.spill import Made, Records

    draw, records = np.random.default_rng(1), Records(folder)
    size = 8 + duplicates.BYTES * (len(duplicates.TURNS) + len(duplicates.CROPS)) + duplicates.SIDE**2
    for start in range(0, count, BLOCK):
        for record in draw.integers(0, 256, (min(BLOCK, count - start), size), dtype=np.uint8):
            records.append(record.tobytes())
    return Made(count, lambda place: duplicates._fingerprint_of(f"{place:064x}", records[place], Path(f"{place}.jpg")))


def fingerprints(arguments: argparse.Namespace) -> dict:
    from rsvlm.data.duplicates import without_contrast

    prints = made_prints(arguments.rows, arguments.folder)
    start = time.perf_counter()
    even = without_contrast(prints)
    return {"too_even": len(even), "gone_through_seconds": round(time.perf_counter() - start, 1)}


def near_duplicates(arguments: argparse.Namespace) -> dict:
    from rsvlm.data.duplicates import find_pairs

    count = min(arguments.rows, arguments.compared)
    return {"images": count, "pairs": len(find_pairs(made_prints(count, arguments.folder)))}


STEPS = {
    "libraries": libraries,
    "table written": table_written,
    "ids and paths of one split": ids_and_paths,
    "all captions": all_captions,
    "training batches": training_batches,
    "captions looked up": captions_looked_up,
    "distinct captions": distinct_captions,
    "captions compared": captions_compared,
    "fingerprints": fingerprints,
    "near-duplicates": near_duplicates,
}

if __name__ == "__main__":
    sys.exit(main())
