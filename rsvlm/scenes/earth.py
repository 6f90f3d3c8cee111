"""The whole Earth searched by text, and how well the classes of the land-cover map are found: the stage search_earth."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from rsvlm.data.blue_marble import load_maps
from rsvlm.data.images import open_image
from rsvlm.data.land_captions import GROUPS, WATER
from rsvlm.data.rasters.files import SceneError
from rsvlm.data.rasters.scene import Scene, open_scene
from rsvlm.files import read_json, whole_folder
from rsvlm.models.encoders import DualEncoder
from rsvlm.models.encoding import encode_texts
from rsvlm.models.features import Features
from rsvlm.safe_text import write_csv
from rsvlm.scenes.embedding import NoWindow, embed_scene
from rsvlm.scenes.globe import LAND_SHARE, class_texts, describe_windows, land_of, make_globe
from rsvlm.scenes.places import write_places
from rsvlm.scenes.search import Surface, choose_threshold, find_peaks, outline, search_scene, write_surface
from rsvlm.scenes.window_files import SceneEmbeddings
from rsvlm.scoring.land_truth import MEASURES, colour_scores, neighbour_scores, score_ranking

if TYPE_CHECKING:
    import geopandas

CLASSES = tuple(name for number, name in enumerate(GROUPS) if number != WATER)
FEWEST_WINDOWS = 10  # of a class among the test windows; rarer classes are named, not scored
STANDING = 2.0  # standard deviations above the mean, where validation windows hold no class
COLOUR_PIXELS = 3  # a window's mean colour is taken from so many pixels a side, each a mean itself
METHODS = {
    "text": "the class's names as captions, by the encoder",
    "mean_colour": "the window's mean colour, by a linear discriminant on the training tiles' colours",
    "nearest_tile": "the encoder's cosine to the nearest training tile of the class less that to the nearest other one",
}


@dataclass(frozen=True)
class Earth:
    """The globe with its windows as vectors, and what the map and the study's split say of each."""

    globe: Scene
    windows: SceneEmbeddings
    described: pd.DataFrame


@dataclass(frozen=True)
class Found:
    """What a text finds on a scene: similarities, the best places, and what stands out."""

    surface: Surface
    hits: "geopandas.GeoDataFrame"
    areas: "geopandas.GeoDataFrame"


def embed_earth(
    encoder: DualEncoder,
    folder: Path,
    tiles: Mapping[str, np.ndarray],
    *,
    window_pixels: int,
    overlap: float,
    land_share: float,
    batch_size: int = 64,
    precision: str = "auto",
    root: Path | None = None,
) -> Earth:
    """The globe, written to ``folder`` as ``blue_marble.tif``, with its windows as vectors in ``windows.parquet``.

    Args:
        tiles: as ``study_tiles`` reads them.
        land_share: windows with less land are left out.
        root: as ``embed_scene`` takes it.

    Raises:
        SceneError: no window has so much land.
    """
    maps = load_maps()
    globe = open_scene(make_globe(Path(folder) / "blue_marble.tif", maps), stretch="none")
    try:
        windows = embed_scene(
            encoder,
            globe,
            Path(folder) / "windows.parquet",
            sizes=[window_pixels],
            overlap=overlap,
            within=land_of(maps),
            min_valid=land_share,
            batch_size=batch_size,
            precision=precision,
            root=root,
        )
    except NoWindow as error:
        raise SceneError(
            f"land_share: no window of {window_pixels} pixels has {100 * land_share:g} % of land; give less, or a smaller "
            "window_pixels"
        ) from error
    return Earth(globe, windows, describe_windows(windows.table, maps, tiles))


def study_tiles(folder: Path) -> dict[str, np.ndarray]:
    """Split -> (n, 4) west, south, east, north of the study's tiles of Blue Marble, degrees.

    Raises:
        FileNotFoundError: the study has no such tiles.
    """
    file = Path(folder) / "dataset.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: the study holds no tiles of Blue Marble, so its models cannot be tried on the globe: "
            "set search_earth.search: false"
        )
    found: dict[str, list] = {"train": [], "val": [], "test": []}
    for entry in read_json(file)["images"]:
        found[entry["split"]].append([entry["bounds"][side] for side in ("west", "south", "east", "north")])
    return {split: np.array(rows, dtype=np.float64).reshape(-1, 4) for split, rows in found.items()}


def training_tiles(table: pd.DataFrame, features: Features, folder: Path) -> dict[str, np.ndarray]:
    """Of the training images that are tiles of Blue Marble: ``vectors`` (m, D), ``colours`` (m, 3), ``labels`` (m,)."""
    images = (Path(folder) / "images").resolve()
    is_tile = np.array([Path(path).resolve().parent == images for path in table["path"]], dtype=bool)
    own = table[(table["split"] == "train") & is_tile]
    colours = [np.asarray(open_image(path)).reshape(-1, 3).mean(0) for path in own["path"]]
    vectors = features.image_embeddings[features.rows(own["image_id"].tolist())]
    return {"vectors": vectors, "colours": np.array(colours).reshape(-1, 3), "labels": own["label"].to_numpy()}


def window_colours(earth: Earth) -> np.ndarray:
    """(n, 3) mean red, green and blue of the windows that are measured (test and validation), NaN of the others."""
    found = np.full((len(earth.described), 3), np.nan)
    small = (COLOUR_PIXELS, COLOUR_PIXELS)
    for row in np.flatnonzero(earth.described["part"].isin(["test", "val"])):
        found[row] = earth.globe.read(earth.windows.window(row), small).pixels.reshape(-1, 3).mean(0)
    return found


def find_places(
    earth: Earth, queries: Sequence[str], encoder: DualEncoder, *, standing: float, hits: int, apart_km: float
) -> list[Found]:
    """What each text finds: the best ``hits`` places, and outlines of what stands out.

    Args:
        standing: standard deviations above the mean from which a place is outlined, see ``choose_standing``.
        apart_km: between two hits, at least.
    """
    surfaces = search_scene(earth.windows, list(queries), encoder)
    return [
        Found(
            surface,
            find_peaks(surface, hits, overlap=0.0, distance=1000 * apart_km),
            outline(surface, threshold_at(surface.scores, standing)),
        )
        for surface in surfaces
    ]


def describe_found(found: Sequence[Found]) -> list[dict]:
    """A row a text, for the record: the best score and where its window's centre lies, and how much of the land stands out."""
    rows = []
    for own in found:
        best, middle = own.hits.iloc[0], own.hits.geometry.iloc[0].centroid
        rows.append(
            {
                "query": own.surface.query,
                "best": round(float(best["score"]), 4),
                "longitude": round(middle.x, 2),
                "latitude": round(middle.y, 2),
                "areas": len(own.areas),
            }
        )
    return rows


def write_found(found: Sequence[Found], land: Mapping[str, object], folder: Path) -> None:
    """``hits.geojson``, ``areas.geojson``, one GeoTIFF of similarities a text and ``land_cover.csv``, whole or not at all."""
    with whole_folder(folder) as scratch:
        write_csv(scratch / "land_cover.csv", land_table(land))
        for name in ("hits", "areas"):
            frames = [getattr(own, name).assign(query=own.surface.query) for own in found]
            write_places(pd.concat(frames, ignore_index=True), scratch / f"{name}.geojson")
        for number, own in enumerate(found, start=1):
            word = re.sub(r"[^a-z0-9]+", "_", own.surface.query.lower()).strip("_")[:40]
            write_surface(own.surface, scratch / f"similarity_{number:02}_{word}.tif")


def class_vectors(encoder: DualEncoder, precision: str = "fp32") -> dict[str, np.ndarray]:
    """For each class of land a query (D,) of length 1: the mean over the captions that ask for it."""
    vectors = {}
    for name, texts in class_texts().items():
        mean = encode_texts(encoder, texts, precision=precision).mean(0)
        vectors[name] = mean / np.linalg.norm(mean)
    return vectors


def score_windows(
    vectors: np.ndarray,
    colours: np.ndarray,
    queries: Mapping[str, np.ndarray],
    training: Mapping[str, np.ndarray],
) -> dict[str, dict[str, np.ndarray]]:
    """Class -> method of METHODS -> (n,) how much each window is like the class.

    Args:
        vectors: (n, D) of the windows; ``colours`` (n, 3) their mean colours, NaN where a window is not measured.
        queries: as ``class_vectors`` makes them.
        training: of the training tiles ``vectors`` (m, D), ``colours`` (m, 3) and ``labels`` (m,).

    Classes without a training tile have scores by text alone.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, query in queries.items():
        found[name] = {"text": vectors @ query}
        own = np.asarray(training["labels"]) == name
        if 0 < own.sum() < len(own):
            found[name]["mean_colour"] = colour_scores(colours, training["colours"], own)
            found[name]["nearest_tile"] = neighbour_scores(vectors, training["vectors"], own)
    return found


def score_classes(
    scores: Mapping[str, Mapping[str, np.ndarray]], windows: pd.DataFrame, *, seed: int = 0, resamples: int = 1000
) -> dict[str, object]:
    """How well each class is found among the test windows.

    Args:
        scores: as ``score_windows`` makes them, over all of ``windows``.
        windows: as ``rsvlm.scenes.globe.describe_windows`` makes them. Relevant is a window of which at least half of the
            land is of the class.

    Returns:
        ``classes``: class -> method -> what ``score_ranking`` returns, or {"too_few": windows}; ``mean``: method -> measure
        -> mean over the classes that were scored by every method; ``scored``: their names.
    """
    test = (windows["part"] == "test").to_numpy()
    blocks = windows.loc[test, "block"].to_numpy()
    classes: dict[str, object] = {}
    for name, by_method in scores.items():
        relevant = (windows.loc[test, name] >= LAND_SHARE).to_numpy()
        if not FEWEST_WINDOWS <= relevant.sum() < len(relevant):
            classes[name] = {"too_few": int(relevant.sum())}
            continue
        classes[name] = {
            method: score_ranking(values[test], relevant, blocks, seed=seed, resamples=resamples)
            for method, values in by_method.items()
        }
    scored = [name for name, found in classes.items() if set(found) == set(METHODS)]
    mean = {
        method: {
            measure: round(float(np.mean([classes[name][method][measure]["value"] for name in scored])), 6)
            for measure in MEASURES
        }
        for method in METHODS
        if scored
    }
    return {"classes": classes, "mean": mean, "scored": scored}


def choose_standing(scores: Mapping[str, Mapping[str, np.ndarray]], windows: pd.DataFrame) -> dict[str, object]:
    """How far above the mean a window's score must stand to count as found, in standard deviations over the windows.

    For each class the threshold with the best F1 on the validation windows; for texts of no class, whose truth is unknown,
    the median over the classes.

    Returns:
        ``by_class``: class -> standing, ``any``: the median (STANDING where no class could be chosen for), ``windows``.
    """
    val = (windows["part"] == "val").to_numpy()
    found = {}
    for name, by_method in scores.items():
        relevant = (windows.loc[val, name] >= LAND_SHARE).to_numpy()
        if FEWEST_WINDOWS <= relevant.sum() < len(relevant):
            values = by_method["text"]
            threshold = choose_threshold(values[val], relevant)
            found[name] = round(float((threshold - values.mean()) / values.std()), 4)
    middle = round(float(np.median(list(found.values()))), 4) if found else STANDING
    return {"by_class": found, "any": middle, "windows": int(val.sum())}


def threshold_at(values: np.ndarray, standing: float) -> float:
    """The score that stands so many standard deviations above the mean of all windows' scores (n,)."""
    return float(values.mean() + standing * values.std())


def land_table(found: Mapping[str, object]) -> pd.DataFrame:
    """One row a class and method: the measures with their intervals, in the order of METHODS, the mean last."""
    rows = []
    for name, by_method in found["classes"].items():
        if "too_few" in by_method:
            continue
        for method, score in by_method.items():
            row = {"class": name, "method": method, "relevant": score["relevant"], "blocks": score["relevant_blocks"]}
            for measure in MEASURES:
                row |= {f"{measure}{end}": score[measure][key] for end, key in _ENDS}
            rows.append(row | {"chance": score["chance"]})
    for method, means in found["mean"].items():
        rows.append({"class": f"mean of {len(found['scored'])}", "method": method} | dict(means))
    return pd.DataFrame(rows)


_ENDS: Sequence[tuple[str, str]] = (("", "value"), ("_low", "low"), ("_high", "high"))
