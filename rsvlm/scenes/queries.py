"""What is looked for in a scene: a text, a picture, a window or an earlier hit, as a vector of the encoder's space."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from rsvlm.data.rasters.files import SceneError
from rsvlm.data.rasters.scene import open_scene
from rsvlm.data.rasters.windows import Window
from rsvlm.files import read_json
from rsvlm.models.encoders import DualEncoder
from rsvlm.models.encoding import encode_texts
from rsvlm.models.features import encode_pictures
from rsvlm.models.pictures import read_picture
from rsvlm.models.queries import Without, encode_parts, unit_vector
from rsvlm.models.zoo import find_encoder
from rsvlm.safe_text import check_query, read_csv
from rsvlm.scenes.embedding import reading_size
from rsvlm.scenes.window_files import SceneEmbeddings

if TYPE_CHECKING:
    import pandas as pd

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")  # files that are pictures, however many bits they have
HITS = (".geojson", ".json", ".parquet", ".csv")  # of files that a hit is read from
Query = str | Path | Image.Image | np.ndarray | Window | Without  # or the row of a hit, a pandas Series


def encode_queries(
    embeddings: SceneEmbeddings, queries: list[Query], encoder: DualEncoder | str | Path | None
) -> np.ndarray:
    """float32 (queries, D) of length 1."""
    return encode_parts(queries, lambda plain: _encode_plain(embeddings, plain, encoder))


def _encode_plain(
    embeddings: SceneEmbeddings, queries: list[Query], encoder: DualEncoder | str | Path | None
) -> np.ndarray:
    meta, D, own = embeddings.meta, embeddings.vectors.shape[1], embeddings.meta["scene"]["name"]
    for query in queries:
        if is_hit(query) and query.get("scene", own) != own:
            raise ValueError(f"query: a hit in the scene {query['scene']!r}, and the embeddings are of {own!r}")
    queries = [as_window(query) for query in queries]
    vectors = np.zeros((len(queries), D), np.float32)
    texts = [place for place, query in enumerate(queries) if isinstance(query, str)]
    pictures = []
    for place, query in enumerate(queries):
        if isinstance(query, str):
            check_query(query, f"query {place}")
        elif isinstance(query, Window):
            vectors[place] = embeddings.vectors[_nearest(embeddings, query)]
        elif isinstance(query, np.ndarray) and query.ndim == 1:
            vectors[place] = unit_vector(query, D)
        elif isinstance(query, Path | Image.Image | np.ndarray):
            pictures.append(place)
        else:
            raise ValueError(
                f"query {place}: a text, a picture (a Path, a PIL image, an array), a Window, a row of hits or a vector is "
                f"needed; got {type(query).__name__}"
            )
    if texts or pictures:
        place = embeddings.file or Path(meta["scene"]["path"])
        wanted = meta["encoder_fingerprint"]
        model = find_encoder(place, encoder, wanted, "cpu", made_with=meta["encoder"]).eval()
    if texts:
        vectors[texts] = encode_texts(model, [queries[place] for place in texts], capitalise=True)
    if pictures:
        read = [_read_example(queries[place], meta["scene"], model) for place in pictures]
        made = encode_pictures(model, read, list(map(str, pictures)), views=meta["views"])
        vectors[pictures] = made.image_embeddings
    return vectors


def read_as_scene(path: Path) -> bool:
    """Whether a file that is looked for is read with a scene's bands and stretch, and not as the picture that it is."""
    if path.suffix.lower() in PICTURES or not path.is_file():
        return False
    with open_scene(path, bands=[1], stretch=(0, 1)) as raster:
        return raster.type != "uint8" or raster.data_bands not in (1, 3)


def nearest_window(embeddings: SceneEmbeddings, query: Query) -> Window:
    """The embedded window that stands for a window of the scene, or for a hit.

    Raises:
        ValueError: none overlaps with it.
    """
    return embeddings.window(_nearest(embeddings, as_window(query)))


def is_hit(query: object) -> bool:
    """Whether a query is a row of hits: a pandas Series, or a dict."""
    return hasattr(query, "keys")


def read_hit(path: Path | str, rank: int) -> "pd.Series":
    """A row of a file of hits, as ``write_places`` writes them, or of a CSV with their columns.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no file of hits, or no hit of that rank.
    """
    import pandas as pd

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of hits")
    if path.suffix.lower() not in HITS:
        raise ValueError(f"{path}: hits are read from {', '.join(HITS)}")
    try:
        if path.suffix.lower() == ".csv":
            table = read_csv(path)
        elif path.suffix.lower() == ".parquet":
            table = pd.read_parquet(path)
        else:
            table = pd.DataFrame([place["properties"] for place in read_json(path)["features"]])
        ranks = table["rank"].astype(int)
    except (KeyError, TypeError, ValueError, OverflowError, OSError) as error:
        raise ValueError(f"{path}: no file of hits ({type(error).__name__}: {error})") from error
    if not (ranks == rank).any():
        raise ValueError(f"{path}: no hit has the rank {rank}; it has {len(table)}")
    return table[ranks == rank].iloc[0]


def as_window(query: Query) -> Query:
    """The Window of a row of hits; other queries as they are."""
    if not is_hit(query):
        return query
    try:
        return Window(*(int(query[name]) for name in Window._fields))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"query: a row of hits with {', '.join(Window._fields)} is needed; got {query!r:.200}"
        ) from error


def _read_example(query: Query, scene: dict, encoder: DualEncoder) -> Image.Image:
    """A picture that is looked for; of a raster what the windows of a scene would show of it."""
    if not isinstance(query, Path) or not read_as_scene(query):
        return read_picture(query)
    stretch = list(zip(scene["low"], scene["high"]))
    try:
        with open_scene(query, bands=scene["bands"], stretch=stretch) as raster:
            whole = Window(0, 0, raster.width, raster.height)
            return Image.fromarray(raster.read(whole, reading_size(whole, encoder)).pixels)
    except SceneError as error:
        raise SceneError(
            f"{error}; it is read as the scene was, with bands {', '.join(map(str, scene['bands']))}: give a raster of the "
            "same bands, or a picture of 8 bits"
        ) from error


def _nearest(embeddings: SceneEmbeddings, window: Window) -> int:
    """The row whose window overlaps most with a window, by intersection over union."""
    level, left, top, width, height = (
        embeddings.table[name].to_numpy(np.float64) for name in ("level", "left", "top", "width", "height")
    )
    x = np.minimum(left + width, window.left + window.width) - np.maximum(left, window.left)
    y = np.minimum(top + height, window.top + window.height) - np.maximum(top, window.top)
    shared = x.clip(0) * y.clip(0)
    share = shared / (width * height + window.width * window.height - shared)
    if not share.max() > 0:
        raise ValueError(f"the window {tuple(window)} (left, top, width, height) overlaps no window that was embedded")
    return int(np.lexsort((level, -share))[0])


def query_name(query: Query) -> str:
    query = as_window(query)
    if isinstance(query, str):
        return query
    if isinstance(query, Without):
        return f"{query_name(query.wanted)} without {query_name(query.unwanted)}"
    if isinstance(query, Path):
        return query.name
    if isinstance(query, Window):
        return f"the window {tuple(query)}"
    return "a vector" if isinstance(query, np.ndarray) and query.ndim == 1 else "a picture"
