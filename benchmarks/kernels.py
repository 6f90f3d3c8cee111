"""Speed and memory of the kernels: ``python benchmarks/kernels.py --save NAME`` prints a table and records it.

The record is ``benchmarks/results/NAME.json``: every time with the device, the versions, the sizes and this command. Methods of a case take turns, and the shortest of their times counts: a ratio
inside one run is what can be compared. ``--scan faiss``, ``float32`` or ``bfloat16`` forces how top-k and ranks scan on
a CPU, whatever it would choose. For top-k the other scans stand beside it, marked as forced: on a CPU without
instructions for bfloat16 the counts and the agreement of such a scan mean something, its times do not. ``--small``
tries it in seconds. Quiet machines only: a busy neighbour makes times several times longer.
"""

import argparse
import ctypes
import gc
import importlib.util
import shlex
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from rsvlm.files import write_json
from rsvlm.kernels import backends_for, contrastive_loss, count_rungs, force_scan, similarity_topk, two_way_ranks
from rsvlm.kernels.backends import SCANS, choose_scan
from rsvlm.kernels.tiles import spans
from rsvlm.study.paths import BENCHMARKS
from rsvlm.study.recording import provenance
from rsvlm.viewing.figures import speed_table

OURS = "rsvlm"
PRODUCT = "the product alone"  # of the same matrices, in blocks of 1,024 rows, its result thrown away
M_MMAP_THRESHOLD = -3  # of mallopt


class Sizes(NamedTuple):
    """What is measured."""

    queries: int = 5000
    items: int = 50000
    rank_items: int = 25000
    width: int = 512
    k: int = 10
    batch: int = 16384
    growing: tuple[int, ...] = (12500, 25000, 50000, 100000, 200000)  # items of the search whose growth is shown


class Case(NamedTuple):
    """Methods that compute the same, by name, and how well what they return agrees with ours."""

    operation: str
    size: str
    flop: float  # of the products that are needed, 2 a multiplication with its addition
    methods: dict[str, Callable[[], object]]
    agreement: Callable[[object, object], float]


def measure(
    sizes: Sizes,
    device: str = "cpu",
    *,
    repeats: int = 3,
    seed: int = 0,
    log: Callable[[str], None] = lambda line: None,
) -> dict:
    """Times, memory and agreement of every case: {"rows": [...], "growth": [...], "rate", "kernels", "sizes"}.

    A row has operation, size, method, seconds, ratio (to ours: above 1 is slower), megabytes above the inputs (None
    where the system does not tell), gflops (of the work needed), share_of_rate, agreement, and for our searches
    ``counts``: how many queries each rung was asked (``count_rungs``). On a CPU the search is timed with every scan;
    those that were not chosen there are marked as forced, and say nothing about CPUs that would choose them.

    Args:
        device: "cpu" or a torch device.
        repeats: how often every method is timed.
    """
    cases = [
        search_case(sizes, device, seed), search_case(sizes, device, seed, crowded_vectors, "crowded"),
        rank_case(sizes, device, seed), loss_case(sizes, device, seed),
    ]  # fmt: skip
    rate = product_rate(device, repeats)
    rows = [row for case in cases for row in _measure_case(case, device, repeats, rate, log)]
    growth = []
    for n_items in sizes.growing:
        case = search_case(sizes._replace(items=n_items), device, seed)
        some = case._replace(methods={name: case.methods[name] for name in (OURS, "matmul + topk")})
        growth += [row | {"items": n_items} for row in _measure_case(some, device, repeats, rate, log)]
    kernels = backends_for(device, *(case.operation for case in cases))
    return {"rows": rows, "growth": growth, "gflops": rate, "kernels": kernels, "sizes": sizes._asdict()}


def search_case(
    sizes: Sizes,
    device: str,
    seed: int,
    vectors: Callable[..., tuple[Tensor, Tensor]] | None = None,
    kind: str = "random",
) -> Case:
    """Top-k by inner product of unit vectors: ``matched_vectors`` or what else ``vectors`` draws, called ``kind``."""
    queries, items = (vectors or matched_vectors)(sizes.queries, sizes.items, sizes.width, device, seed)
    k = min(sizes.k, sizes.items)

    def ours(scan: str | None = None) -> Tensor:
        with force_scan(scan) if scan else nullcontext():
            return similarity_topk(queries, items, k, normalize=False)[1]

    def agreement(*found: Tensor) -> float:
        """The share of places with the same score; which of equal items holds one is another matter."""
        scores = [torch.stack([(queries * items[own.to(device)]).sum(1) for own in side.T]) for side in found]
        return float(((scores[0] - scores[1]).abs() < 2e-6).double().mean())

    def by_matmul() -> Tensor:
        return (queries @ items.T).topk(k, dim=1).indices

    methods = {OURS: ours, "matmul + topk": by_matmul, PRODUCT: lambda: _product_alone(queries, items)}
    if device == "cpu":
        if _has("faiss"):
            import faiss  # only here: it is optional

            arrays = queries.numpy(), items.numpy()
            methods["faiss knn"] = lambda: torch.from_numpy(faiss.knn(*arrays, k, metric=faiss.METRIC_INNER_PRODUCT)[1])
        for name in SCANS:
            if name != choose_scan("similarity_topk", "cpu").name and not (name == "faiss" and not _has("faiss")):
                methods[f"{OURS}, {name} scan (forced)"] = partial(ours, name)
    return Case(
        "similarity_topk", f"{kind}, {sizes.queries:,} x {sizes.items:,} x {sizes.width}, k = {k}",
        2.0 * sizes.queries * sizes.items * sizes.width, methods, agreement,
    )  # fmt: skip


def rank_case(sizes: Sizes, device: str, seed: int) -> Case:
    """Recall in both directions, each query's right answer being the item that it was made from."""
    queries, items = matched_vectors(sizes.queries, sizes.rank_items, sizes.width, device, seed)
    own = torch.arange(sizes.queries, device=device) % sizes.rank_items
    positives = torch.arange(sizes.queries + 1, device=device), own

    def ours() -> Tensor:
        there, back = two_way_ranks(queries, items, positives, normalize=False)
        return torch.stack([(side.greater[side.tied > 0] < 10).double().mean() for side in (there, back)])

    def by_topk() -> Tensor:
        k = min(10, sizes.queries, sizes.rank_items)
        scores = queries @ items.T
        there = (scores.topk(k, dim=1).indices == own[:, None]).any(dim=1)
        back = (scores.T.topk(k, dim=1).indices[own] == torch.arange(sizes.queries, device=device)[:, None]).any(dim=1)
        return torch.stack([there.double().mean(), back.double().mean()])

    methods = {OURS: ours, "matmul + topk": by_topk, PRODUCT: lambda: _product_alone(queries, items)}
    return Case(
        "retrieval_ranks", f"{sizes.queries:,} x {sizes.rank_items:,} x {sizes.width}, both ways",
        2.0 * sizes.queries * sizes.rank_items * sizes.width, methods,
        lambda ours, other: 1 - float((ours - other).abs().max()),
    )  # fmt: skip


def loss_case(sizes: Sizes, device: str, seed: int) -> Case:
    """Loss and gradients of both towers and of the scale."""
    images, texts = matched_vectors(sizes.batch, sizes.batch, sizes.width, device, seed, noise=6.0)
    inputs = [images.requires_grad_(), texts.requires_grad_(), torch.tensor(50.0, device=device, requires_grad=True)]

    def as_open_clip_does(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
        """open_clip's ClipLoss: two products, two cross-entropies."""
        labels = torch.arange(len(images), device=images.device)
        by_image, by_text = scale * images @ texts.T, scale * texts @ images.T
        return (cross_entropy(by_image, labels) + cross_entropy(by_text, labels)) / 2

    def with_gradients(loss: Callable[..., Tensor]) -> list[Tensor]:
        return [part.detach() for part in torch.autograd.grad(loss(*inputs), inputs)]

    def agreement(ours: list[Tensor], other: list[Tensor]) -> float:
        """Of the towers' gradients; that of the scale is a small difference of large sums."""
        return 1 - max(float((a - b).norm() / b.norm().clamp_min(1e-30)) for a, b in zip(ours[:2], other[:2]))

    methods = {
        OURS: lambda: with_gradients(contrastive_loss),
        "open_clip's formula": lambda: with_gradients(as_open_clip_does),
    }
    flop = 8.0 * sizes.batch**2 * sizes.width  # logits, logits again, and a product for each tower
    return Case("contrastive_loss", f"{sizes.batch:,} x {sizes.width}, with gradients", flop, methods, agreement)


def matched_vectors(n: int, m: int, width: int, device: str, seed: int, noise: float = 1.5) -> tuple[Tensor, Tensor]:
    """Unit vectors (n, D) and (m, D), the first made from the second with ``noise`` of so many times their length."""
    generator = torch.Generator().manual_seed(seed)
    items = normalize(torch.randn(m, width, generator=generator), dim=1)
    strayed = torch.randn(n, width, generator=generator) * (noise / width**0.5)
    queries = normalize(items[torch.arange(n) % m] + strayed, dim=1)
    return queries.to(device), items.to(device)


def crowded_vectors(n: int, m: int, width: int, device: str, seed: int) -> tuple[Tensor, Tensor]:
    """Unit vectors (n, D) and (m, D) that crowd as embeddings of real captions do.

    All point one way, in 30 themes of 20 wordings, and common sentences come again and again, so that the k-th best
    score is near 0.8 and a few places in ten are held by exact ties.
    """
    generator = torch.Generator().manual_seed(seed)

    def directions(count: int, length: float) -> Tensor:
        return torch.randn(count, width, generator=generator) * (length / width**0.5)

    wordings = (directions(30, 0.8).repeat_interleave(20, dim=0) + directions(600, 0.5)) + directions(1, 0.6)
    n_sentences = max(1, (n + m) // 3)
    sentences = wordings[torch.randint(600, (n_sentences,), generator=generator)] + directions(n_sentences, 0.5)
    common = (torch.rand(n + m, generator=generator) ** 2 * n_sentences).long()  # the first ones most often
    drawn = normalize(sentences[common], dim=1)
    return drawn[:n].to(device), drawn[n:].to(device)


def product_rate(device: str, repeats: int) -> float:
    """GFLOP/s of a plain matrix product there: float16 on a GPU, float32 on a CPU."""
    side, dtype = (8192, torch.float16) if device != "cpu" else (2048, torch.float32)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2e-9 * side**3 / min(_seconds(lambda: left @ right, device) for _ in range(repeats + 1))


def peak_memory(function: Callable[[], object], device: str) -> float | None:
    """Megabytes (10**6 bytes) that a call takes at most beyond what was there; None where the system does not tell."""
    gc.collect()
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if sys.platform != "linux" or not reset.exists():
        return None
    # Freed memory goes back to the system at once, so that what one method left does not hide what the next one takes.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 65536)
    ctypes.CDLL(None).malloc_trim(0)
    reset.write_text("5")  # the peak so far is forgotten
    before = _kilobytes(status, "VmRSS")
    function()
    return (_kilobytes(status, "VmHWM") - before) * 1024 / 1e6


def _measure_case(case: Case, device: str, repeats: int, rate: float, log: Callable[[str], None]) -> list[dict]:
    """One row a method."""
    results, counts = {}, {}
    for name, method in case.methods.items():  # also warms up
        with count_rungs() as counts[name]:
            results[name] = method()
    taken: dict[str, list[float]] = {name: [] for name in case.methods}
    for _ in range(repeats):
        for name, method in case.methods.items():
            taken[name].append(_seconds(method, device))
    rows = []
    for name, method in case.methods.items():
        seconds, agrees = min(taken[name]), None
        if name not in (OURS, PRODUCT):
            agrees = case.agreement(results[OURS], results[name])
        rows.append({
            "operation": case.operation, "size": case.size, "method": name, "seconds": seconds,
            "ratio": seconds / min(taken[OURS]), "megabytes": peak_memory(method, device),
            "gflops": case.flop / seconds / 1e9, "share_of_rate": case.flop / seconds / 1e9 / rate, "agreement": agrees,
            "counts": dict(counts[name]) or None,
        })  # fmt: skip
        asked = ", ".join(f"{rung} {count:,}" for rung, count in counts[name].items() if count)
        log(f"{case.operation}, {case.size}, {name}: {seconds:.3f} s" + (f" ({asked})" if asked else ""))
    return rows


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _seconds(function: Callable[[], object], device: str) -> float:
    """How long one call takes."""
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _product_alone(queries: Tensor, items: Tensor) -> None:
    for first, last in spans(len(queries), 1024):
        torch.mm(queries[first:last], items.T)


def _kilobytes(status: Path, name: str) -> int:
    line = next(line for line in status.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])


SMALL = Sizes(queries=200, items=2000, rank_items=1000, width=64, batch=256, growing=(500, 1000))


def main() -> int:
    """Measure, print, and record where a name is given."""
    parser = argparse.ArgumentParser(description="Measure the kernels' speed and memory.")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:0")
    parser.add_argument("--small", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--repeats", type=int, default=3, help="how often each method is timed")
    parser.add_argument("--scan", choices=SCANS, help="force how a CPU scans")
    parser.add_argument("--save", metavar="NAME", help="record under benchmarks/results/NAME.json")
    for name, value in Sizes()._asdict().items():
        if name != "growing":
            parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"instead of {value:,}")
    parser.add_argument("--growing", type=int, nargs="*", help="items of the search whose growth is shown")
    arguments = parser.parse_args()
    sizes = SMALL if arguments.small else Sizes()
    given = {name: getattr(arguments, name) for name in sizes._fields if getattr(arguments, name) is not None}
    sizes = sizes._replace(**given)._replace(growing=tuple(given.get("growing", sizes.growing)))
    say = lambda line: print(line, file=sys.stderr)  # noqa: E731
    with force_scan(arguments.scan) if arguments.scan else nullcontext():
        measured = measure(sizes, arguments.device, repeats=arguments.repeats, log=say)
    print(speed_table(measured).to_string())
    if arguments.save:
        command = shlex.join(["python", "benchmarks/kernels.py", *sys.argv[1:]])
        record = {"command": command, "repeats": arguments.repeats, "provenance": provenance(0, arguments.device)}
        record["matmul_precision"] = torch.get_float32_matmul_precision()
        write_json(BENCHMARKS / f"{arguments.save}.json", record | measured)
    return 0


if __name__ == "__main__":
    with pd.option_context("display.width", 200):
        sys.exit(main())
