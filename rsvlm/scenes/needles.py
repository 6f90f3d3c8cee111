"""Needles in synthetic mosaics, searched for by several methods: what each finds, what it says there, and what it costs.

- ``squash``: the whole mosaic as one picture, one vector. It can be told from other mosaics, but the only place that it
  knows is "somewhere".
- ``tiles``: windows of the images' size side by side.
- ``overlap``: the same with half a window between neighbours.
- ``pyramid``: those and windows twice as large, overlapping by half. Places are windows of the images' size, each rated by
  the mean of the surface over it, which both levels make together: a large window alone never is the most similar one.
- ``anyres``: for captions alone, and where the captioner looks at a grid: the whole mosaic as an overview with crops.

Embeddings of a mosaic are kept, so that a search that was stopped goes on with the mosaic it was at.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from rsvlm.data.rasters.scene import open_scene
from rsvlm.data.rasters.windows import Window
from rsvlm.files import fingerprint_values
from rsvlm.models.encoders import DualEncoder
from rsvlm.models.encoding import encode_texts
from rsvlm.models.inference import Captioner, caption
from rsvlm.models.loading import choose_precision
from rsvlm.progress import progress
from rsvlm.scenes.embedding import embed_scene
from rsvlm.scenes.mosaics import Mosaic, MosaicError, SeloCase, cell_side, overview, paint, write_mosaic
from rsvlm.scenes.search import Surface, find_peaks, search_scene
from rsvlm.scenes.window_files import SceneEmbeddings, load_scene_embeddings
from rsvlm.scenes.window_plans import plan_windows

METHODS = ("squash", "tiles", "overlap", "pyramid")
OVERLAP = 0.5
SELO_SIZES = (256, 512, 768)  # of the windows, pixels, as published
COLUMNS = (
    "side", "method", "mosaic", "needle", "caption", "wanted", "found", "best", "mosaic_place", "mosaics"
)  # fmt: skip
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # Linux: memory of this process


@dataclass(frozen=True)
class SeloMap:
    """A surface of similarity and the polygons that its sentence means."""

    width: int
    height: int
    values: np.ndarray  # (rows, columns), NaN where no window lies
    cell: int  # pixels along a side of a value
    regions: tuple = ()
    about: Mapping[str, object] = field(default_factory=dict)


class KnownEncoder:
    """An encoder whose weights do not change any more: hashing them for each of many small mosaics took longer than looking."""

    def __init__(self, encoder: DualEncoder) -> None:
        self._encoder, self._fingerprint = encoder, encoder.fingerprint()

    def fingerprint(self) -> str:
        """As it was when this was made."""
        return self._fingerprint

    def __getattr__(self, name: str) -> object:
        return getattr(self._encoder, name)


def window_side(sizes: Mapping[str, tuple[int, int]]) -> int:
    """The side, pixels, of the windows of a search: that of the images, even, so that tiles are windows of an overlap."""
    return max(2, cell_side(sizes) // 2 * 2)


def embed_mosaic(
    encoder: DualEncoder,
    mosaic: Mosaic,
    folder: Path,
    *,
    window: int,
    batch_size: int = 32,
    precision: str = "auto",
) -> SceneEmbeddings:
    """The embeddings of all windows that METHODS look at: of ``window``, of twice that, and of the whole mosaic.

    They stay in ``folder`` and are not computed again for the same plan, images, encoder and settings; the mosaic itself is
    written there and deleted.
    """
    precision = choose_precision(precision, encoder.device)
    key = fingerprint_values(mosaic.fingerprint(), encoder.fingerprint(), window, OVERLAP, batch_size, precision)
    out = Path(folder) / f"{mosaic.name}_{key[:16]}.parquet"
    if out.is_file():
        return load_scene_embeddings(out)
    raster = write_mosaic(mosaic, Path(folder) / f"{mosaic.name}.tif")
    try:
        sizes = [*_sizes("pyramid", window, mosaic.side), mosaic.side]
        return _embed(encoder, raster, out, sizes, OVERLAP, batch_size, precision)
    finally:
        raster.unlink(missing_ok=True)


def of_method(embeddings: SceneEmbeddings, method: str, window: int) -> SceneEmbeddings:
    """The part of ``embed_mosaic``'s windows that a method looks at.

    Raises:
        MosaicError: no such method, or some of its windows are not among them.
    """
    if method not in METHODS:
        raise MosaicError(f"method: {method!r} is none of {', '.join(METHODS)}")
    side = embeddings.meta["scene"]["width"]
    sizes, overlap = _sizes(method, window, side), _overlap(method)
    wanted = {place for _, place in plan_windows(side, side, sizes, overlap)}
    places = zip(*(embeddings.table[name].tolist() for name in Window._fields))
    kept = np.array([place in wanted for place in places])
    if kept.sum() != len(wanted):
        raise MosaicError(f"{len(wanted) - kept.sum()} of the {len(wanted)} windows of {method!r} were not embedded")
    return replace(
        embeddings,
        table=embeddings.table[kept].reset_index(drop=True),
        vectors=embeddings.vectors[kept],
        meta=embeddings.meta | {"sizes": sizes, "overlap": overlap},
    )


def search_mosaics(
    encoder: DualEncoder,
    mosaics: Sequence[Mosaic],
    folder: Path,
    *,
    window: int,
    most: int = 5,
    capitalise: bool = True,
    batch_size: int = 32,
    precision: str = "auto",
) -> tuple[pd.DataFrame, list[SeloMap]]:
    """Every caption of every needle, searched for in its own mosaic and among all mosaics of that side, by each method.

    One mosaic's embeddings are in memory at a time.

    Args:
        mosaics: as ``plan_mosaics`` gives them: each caption has one right mosaic of a side.
        folder: where embeddings are kept.
        window: as ``window_side`` gives it.
        most: windows found at most.

    Returns:
        (searches, maps). A search has a row a mosaic, method and caption: side, method, mosaic (number), needle, caption;
        ``wanted``, the needle's Window; ``found``, the windows found, best first (none for ``squash``); ``best``, the
        highest cosine (``pyramid``: rating) in its own mosaic; ``mosaic_place``, the place of the right mosaic among all of that side by that
        cosine, ties by half, and ``mosaics``, their number. The maps are of the first caption in its own mosaic, one a mosaic and method but for ``squash``.
    """
    searches, maps = [], []
    encoder = KnownEncoder(encoder)
    for side in dict.fromkeys(mosaic.side for mosaic in mosaics):
        own = [mosaic for mosaic in mosaics if mosaic.side == side]
        asked = [(place, text) for place, mosaic in enumerate(own) for text in mosaic.captions]
        texts = sorted({text for _, text in asked})
        vectors = dict(zip(texts, encode_texts(encoder, texts, capitalise=capitalise), strict=True))
        queries = np.stack([vectors[text] for _, text in asked])
        best = {method: np.zeros((len(asked), len(own))) for method in METHODS}
        found: dict[tuple, list[Window]] = {}
        for place, mosaic in enumerate(progress(own, desc=f"mosaics of {side} pixels")):
            embedded = embed_mosaic(encoder, mosaic, folder, window=window, batch_size=batch_size, precision=precision)
            for method in METHODS:
                part = of_method(embedded, method, window)
                if method == "squash":
                    best[method][:, place] = queries @ part.vectors[0]
                    continue
                mine = [row for row, (one, _) in enumerate(asked) if one == place]
                looked = range(len(asked)) if method == "pyramid" else mine
                surfaces = search_scene(part, [queries[row] for row in looked])
                if method == "pyramid":
                    surfaces = [_rated_by_surface(surface, window) for surface in surfaces]
                    best[method][:, place] = [np.nanmax(surface.scores) for surface in surfaces]
                    surfaces = [surfaces[row] for row in mine]
                else:
                    best[method][:, place] = (queries @ part.vectors.T).max(axis=1)
                for text, surface in zip(mosaic.captions, surfaces, strict=True):
                    peaks = find_peaks(surface, most)
                    windows = zip(*(peaks[name].tolist() for name in Window._fields))
                    found[place, method, text] = [Window(*one) for one in windows]
                about = {"side": side, "method": method, "mosaic": mosaic.number}
                maps.append(
                    SeloMap(side, side, surfaces[0].values, surfaces[0].cell, (_corners(mosaic.window),), about)
                )
        for row, (place, text) in enumerate(asked):
            for method in METHODS:
                scores = best[method][row]
                ahead = (scores > scores[place]).sum() + 0.5 * ((scores == scores[place]).sum() - 1)
                searches.append(
                    {
                        "side": side,
                        "method": method,
                        "mosaic": own[place].number,
                        "needle": own[place].needle,
                        "caption": text,
                        "wanted": own[place].window,
                        "found": found.get((place, method, text), []),
                        "best": float(scores[place]),
                        "mosaic_place": float(1 + ahead),
                        "mosaics": len(own),
                    }
                )
    return pd.DataFrame(searches, columns=COLUMNS), maps


def caption_found(
    captioner: Captioner | None,
    mosaics: Sequence[Mosaic],
    searches: pd.DataFrame,
    *,
    batch_size: int = 32,
) -> pd.DataFrame:
    """What the captioner says of what each method found for the needle's first caption, and how near it comes to it.

    ``squash`` is said of the whole mosaic as one picture, ``anyres`` too, with crops; ``needle`` is said of the needle alone,
    which is what a perfect search would give.

    Args:
        captioner: None where there are no mosaics.

    Returns:
        A row a mosaic and method: side, method, mosaic, said, cider: the mean CIDEr to the needle's captions, 0 to 10, with
        the idf of the captioner's training captions and plain words: close to, but not, what is reported of test sets.
    """
    columns, rows = ["side", "method", "mosaic", "said", "cider"], []
    if not mosaics:
        return pd.DataFrame(columns=columns)
    first = searches.drop_duplicates(["side", "method", "mosaic"]).set_index(["side", "method", "mosaic"])
    wholes, parts = [], []
    for mosaic in mosaics:
        windows = {"needle": mosaic.window}
        for method in METHODS:
            found = first.loc[(mosaic.side, method, mosaic.number), "found"]
            if found:
                windows[method] = found[0]
        distinct = list(dict.fromkeys(windows.values()))
        parts += [(mosaic, [method for method, own in windows.items() if own == one], one) for one in distinct]
        wholes.append((mosaic, ["squash"]))
    pictures = [paint(mosaic, one) for mosaic, _, one in parts] + [overview(mosaic) for mosaic, _ in wholes]
    said = caption(captioner, pictures, batch_size=batch_size)["caption"].tolist()
    told = [(mosaic, methods, text) for (mosaic, methods, *_), text in zip([*parts, *wholes], said, strict=True)]
    if takes_crops(captioner):
        cutting = replace(captioner, encoding={**captioner.encoding, "crops": "always"})
        said = caption(cutting, pictures[len(parts) :], batch_size=batch_size)["caption"].tolist()
        told += [(mosaic, ["anyres"], text) for (mosaic, _), text in zip(wholes, said, strict=True)]
    for mosaic, methods, text in told:
        cider = float(captioner.memory.space.similarity([text], mosaic.captions).mean())
        rows += [(mosaic.side, method, mosaic.number, text, cider) for method in methods]
    frame = pd.DataFrame(rows, columns=columns)
    order = {method: place for place, method in enumerate([*METHODS, "anyres", "needle"])}
    by = frame.assign(order=frame["method"].map(order)).sort_values(["side", "order", "mosaic"], kind="stable")
    return by.drop(columns="order").reset_index(drop=True)


def takes_crops(captioner: Captioner) -> bool:
    """Whether a captioner looks at a grid, whose cells can come from crops of the picture."""
    return "crops" in captioner.encoding and bool(captioner.config["settings"].get("grid_cells"))


def measure_costs(
    encoder: DualEncoder,
    mosaics: Sequence[Mosaic],
    folder: Path,
    *,
    window: int,
    batch_size: int = 32,
    precision: str = "auto",
) -> list[dict]:
    """What embedding the first mosaic of each side costs by each method, nothing kept: windows, seconds, megabytes.

    ``megabytes`` is the most memory held beyond what was in use before; None where the system does not tell (it does on
    Linux and of a GPU).
    """
    rows, encoder = [], KnownEncoder(encoder)
    for mosaic in {mosaic.side: mosaic for mosaic in reversed(mosaics)}.values():
        raster = write_mosaic(mosaic, Path(folder) / f"{mosaic.name}.tif")
        out = Path(folder) / f"{mosaic.name}_cost.parquet"
        try:
            for method in METHODS:
                out.unlink(missing_ok=True)
                sizes = _sizes(method, window, mosaic.side)
                with _watch_memory(encoder.device) as used:
                    start = time.perf_counter()
                    made = _embed(encoder, raster, out, sizes, _overlap(method), batch_size, precision)
                    seconds = round(time.perf_counter() - start, 3)
                rows.append({"side": mosaic.side, "method": method, "windows": len(made), "seconds": seconds, **used})
        finally:
            raster.unlink(missing_ok=True)
            out.unlink(missing_ok=True)
    return sorted(rows, key=lambda row: row["side"])


def search_selo(
    encoder: DualEncoder,
    cases: Sequence[SeloCase],
    images: Path,
    folder: Path,
    *,
    sizes: Sequence[int] = SELO_SIZES,
    capitalise: bool = True,
    batch_size: int = 32,
    precision: str = "auto",
) -> Iterator[SeloMap]:
    """The surface of each case of SeLo's test set, by windows of several sizes that overlap by half.

    Args:
        images: the folder that holds the cases' images; all are looked for before the first is read.
        folder: where embeddings are kept.

    Raises:
        FileNotFoundError: images are missing; names some.
    """
    encoder = KnownEncoder(encoder)
    missing = sorted({case.image for case in cases if not (Path(images) / case.image).is_file()})
    if missing:
        raise FileNotFoundError(f"{images}: {len(missing)} of SeLo's images are missing, such as {missing[0]}")
    texts = sorted({case.caption for case in cases})
    vectors = dict(zip(texts, encode_texts(encoder, texts, capitalise=capitalise), strict=True))
    for number, case in enumerate(progress(cases, desc="semantic localisation")):
        image = Path(images) / case.image
        out = Path(folder) / f"selo_{image.stem}.parquet"  # of other settings: made anew
        embedded = _embed(encoder, image, out, sizes, OVERLAP, batch_size, precision)
        surface = search_scene(embedded, vectors[case.caption])
        about = {"case": number, "image": case.image, "caption": case.caption}
        own = embedded.meta["scene"]
        yield SeloMap(own["width"], own["height"], surface.values, surface.cell, case.regions, about)


def _rated_by_surface(surface: Surface, window: int) -> Surface:
    """The surface with its smallest windows rated by the mean of the cells that they touch; the others out of the running."""
    table, cell = surface.embeddings.table, surface.cell
    summed = np.pad(np.nan_to_num(surface.values.astype(np.float64)).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    left, top = (table[name].to_numpy() // cell for name in ("left", "top"))
    right, bottom = (-(-(table[name].to_numpy() + window) // cell) for name in ("left", "top"))
    right, bottom = np.minimum(right, summed.shape[1] - 1), np.minimum(bottom, summed.shape[0] - 1)
    sums = summed[bottom, right] - summed[top, right] - summed[bottom, left] + summed[top, left]
    rated = sums / ((right - left) * (bottom - top))
    return replace(surface, scores=np.where(table["width"] == window, rated, np.nan).astype(np.float32))


def _sizes(method: str, window: int, side: int) -> list[int]:
    """The sides of a method's windows, pixels."""
    return {"squash": [side], "pyramid": list(dict.fromkeys([window, min(2 * window, side)]))}.get(method, [window])


def _overlap(method: str) -> float:
    return 0.0 if method == "tiles" else OVERLAP


def _corners(window: Window) -> tuple[tuple[int, int], ...]:
    """A window as a polygon of SeLo: the centres of its outermost pixels, which belong to it."""
    right, bottom = window.left + window.width - 1, window.top + window.height - 1
    return ((window.left, window.top), (right, window.top), (right, bottom), (window.left, bottom))


def _embed(
    encoder: DualEncoder,
    raster: Path,
    out: Path,
    sizes: Sequence[int],
    overlap: float,
    batch_size: int,
    precision: str,
) -> SceneEmbeddings:
    """As ``embed_scene``, without a stretch: test images stay as they are."""
    with open_scene(raster, stretch="none") as scene:
        return embed_scene(
            encoder,
            scene,
            out,
            sizes=sizes,
            overlap=overlap,
            batch_size=batch_size,
            precision=precision,
            log=lambda _: None,
        )


@contextmanager
def _watch_memory(device: torch.device) -> Iterator[dict[str, float | None]]:
    """A dict that gets ``megabytes`` when the block ends."""
    used: dict[str, float | None] = {"megabytes": None}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield used
        used["megabytes"] = round((torch.cuda.max_memory_allocated(device) - before) / 1e6, 1)
        return
    try:
        RESET.write_text("5")  # the highest mark goes back to what is in use: proc(5), clear_refs
        before = _kilobytes("VmRSS")
    except OSError:
        yield used
        return
    yield used
    used["megabytes"] = round(max(0, _kilobytes("VmHWM") - before) * 1024 / 1e6, 1)


def _kilobytes(name: str) -> int:
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])
