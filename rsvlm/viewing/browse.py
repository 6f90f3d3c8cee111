"""Looking around in a finished study: free-text search, images like one, an image from outside.

Images as the search box and the dialogue show them: a small picture with what is known of it, as values of JSON.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from rsvlm.data.images import open_image
from rsvlm.data.table import SPLITS, rows_of
from rsvlm.models.candidates import choose_captions
from rsvlm.models.devices import choose_device
from rsvlm.models.encoders import DualEncoder, load_encoder
from rsvlm.models.features import Features, encode_pictures, encode_texts, load_features
from rsvlm.models.generation import embed_captions_ret
from rsvlm.models.inference import Captioner, is_finished, load_captioner, propose_captions
from rsvlm.scoring.fusion import HUBNESS_QUERY
from rsvlm.scoring.runs import read_captions
from rsvlm.viewing.caption_entries import StudyFiles, known_runs
from rsvlm.viewing.search_index import SearchIndex, load_index, mask_of, saved_methods
from rsvlm.viewing.thumbnails import ThumbnailCache, make_thumbnail

NO_CAPTIONER = (
    "no captioner yet: run the stages finetune_lora and generate_captions (`make study`), then this cell again"
)
LARGEST_FILE = 64_000_000  # bytes of a file from outside


@dataclass(frozen=True)
class Archive:
    """The study's images with their captions; models and indexes are loaded when they are first needed."""

    files: StudyFiles
    table: pd.DataFrame  # indexed by image_id
    features: Features
    device: str
    split: str | None  # what is searched unless a search says otherwise
    runs: dict[str, dict[str, str]] = field(default_factory=dict)  # run -> image id -> generated caption

    def __str__(self) -> str:
        rows = rows_of(self.table, split=self.split)
        sources = ", ".join(f"{count} of {name}" for name, count in rows["source"].value_counts().sort_index().items())
        made = f"generated captions: {', '.join(self.runs) or 'none yet'}"
        return f"{len(rows)} images ({sources}); {made}; search by {', '.join(self.methods) or 'nothing yet'}"

    @property
    def methods(self) -> list[str]:
        """The retrieval methods that can be searched with now."""
        without = {"ret", "combined"} if not self.has_captioner else set()
        return [method for method in saved_methods(self.files.search_index) if method not in without]

    @property
    def has_captioner(self) -> bool:
        """Whether a captioner was trained."""
        return is_finished(self.files.captioner)

    @cached_property
    def encoder(self) -> DualEncoder:
        """The encoder that the features come from."""
        return load_encoder(str(self.files.encoder), choose_device(self.device)).eval()

    @cached_property
    def captioner(self) -> Captioner:
        """The study's captioner, with all that it needs to caption any image.

        Raises:
            FileNotFoundError: none was trained.
        """
        if not self.has_captioner:
            raise FileNotFoundError(NO_CAPTIONER)
        return load_captioner(self.files.captioner, self.encoder, device=self.device)

    @cached_property
    def images_of_caption(self) -> dict[str, set[str]]:
        """Caption, case and outer blanks ignored -> the images outside training that carry it."""
        found: dict[str, set[str]] = {}
        rows = self.table[self.table["split"] != "train"]
        for image_id, captions in zip(rows["image_id"], rows["captions"], strict=True):
            for caption in captions:
                found.setdefault(_plain(caption), set()).add(image_id)
        return found

    def index(self, method: str) -> SearchIndex:
        """The saved index of a method."""
        if method not in self._indexes:
            self._indexes[method] = load_index(method, self.files.search_index)
        return self._indexes[method]

    def within(self, method: str, split: str | None) -> np.ndarray | None:
        """(N,) bool: which images of a method's index are of a split; None: all are wanted. ValueError: no such split."""
        if split is None:
            return None
        if (method, split) not in self._masks:
            self._masks[method, split] = mask_of(self.index(method), rows_of(self.table, split=split)["image_id"])
        return self._masks[method, split]

    @cached_property
    def _indexes(self) -> dict[str, SearchIndex]:
        return {}

    @cached_property
    def _masks(self) -> dict[tuple[str, str], np.ndarray]:
        return {}


@dataclass(frozen=True)
class Search:
    """What a search found: (image id, score), best first; which images are right, where that is known; how long it took."""

    hits: list[tuple[str, float]]
    right: frozenset[str] = frozenset()
    searched: int = 0  # images
    encode_seconds: float = 0.0  # of making the query's vector
    search_seconds: float = 0.0


@dataclass(frozen=True)
class Described:
    """What the study says of an image from outside, and the images like it."""

    captions: dict[str, str]  # by run: captioner, beam, consensus
    like: Search
    picture: str = field(repr=False)  # data URI of a thumbnail
    features: Features = field(repr=False)  # of this image alone; its id is its file name


def open_archive(files: StudyFiles, *, split: str | None = "test", device: str = "cpu") -> Archive:
    """The study's images with their features and generated captions; a split (None: all) is searched.

    Raises:
        FileNotFoundError: the stages aggregate_data or encode_images have not run.
        ValueError: the split is not in the table.
    """
    table = files.read_table().set_index("image_id", drop=False)
    rows_of(table, split=split)
    runs = {run: read_captions(file) for run, file in known_runs(files).items()}
    return Archive(files, table, load_features(files.features), device, split, runs)


def splits_of(archive: Archive) -> list[str]:
    """The splits of the archive, in their usual order."""
    return [split for split in SPLITS if split in set(archive.table["split"])]


def search_text(
    archive: Archive, query: str, results: int = 12, *, method: str = "dual_encoder", split: str | None = None
) -> Search:
    """The images nearest to a text; nothing for a blank one.

    Args:
        method: dual_encoder, ret or combined.
        split: None: all images that the method knows.

    Raises:
        FileNotFoundError: the method's index or the captioner was not made.
        ValueError: no such split.
    """
    text = query.strip()
    if not text:
        return Search([])
    index = archive.index(method)
    start = time.perf_counter()
    vector = index.query(_parts_of(archive, text, index.weights))
    encoded = time.perf_counter()
    within = archive.within(method, split)
    hits = index.search(vector, results, within=within)
    done = time.perf_counter()
    searched = len(index.image_ids) if within is None else int(within.sum())
    known = archive.images_of_caption.get(_plain(text), set())
    right = {i for i in known if i in index.row_of and (within is None or within[index.row_of[i]])}
    return Search(hits, frozenset(right), searched, encoded - start, done - encoded)


def similar_images(archive: Archive, image_id: str, results: int = 12, *, split: str | None = None) -> Search:
    """The other images nearest to one, by the dual encoder."""
    found = _like(archive, archive.index("dual_encoder").vector(image_id), results + 1, split)
    return Search([hit for hit in found.hits if hit[0] != image_id][:results], searched=found.searched)


def describe_file(
    archive: Archive, content: bytes, name: str, results: int = 12, split: str | None = None
) -> Described:
    """What the study says of an image file from outside, and the images like it.

    It is encoded and captioned as the study's own test images were, by the same code and parameters; without a
    captioner, only the images like it are found.

    Raises:
        ValueError: the file is too large or no image; names it.
    """
    if len(content) > LARGEST_FILE:
        raise ValueError(f"{name}: {len(content) / 1e6:.0f} MB, at most {LARGEST_FILE / 1e6:.0f} are read")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image"
        path.write_bytes(content)
        try:
            picture = make_thumbnail(str(path)).uri
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), name)) from error
        meta = archive.features.meta
        encoding = {key: meta[key] for key in ("views", "grid", "precision")}
        features = encode_pictures(archive.encoder, [open_image(path)], [name], **encoding)
    like = _like(archive, features.image_embeddings, results, split)
    captions = _captions(archive, features, name) if archive.has_captioner else {}
    return Described(captions, like, picture, features)


def _captions(archive: Archive, features: Features, name: str) -> dict[str, str]:
    """The captions of the runs captioner, beam and consensus, made as the stage generate_captions makes them."""
    captioner = archive.captioner
    pools = captioner.pools(features.image_embeddings, [name])
    proposed = propose_captions(captioner.model, features, [name], pools, captioner.generation)
    chosen = choose_captions(proposed.candidates, proposed.judged, captioner.weights)[0]
    return {"captioner": chosen, "beam": proposed.beams[0][0], "consensus": pools.ranked[0][0][0]}


def _parts_of(archive: Archive, text: str, parts: Sequence[str]) -> dict[str, np.ndarray]:
    """part of a method -> (1, D_part), the text in its space."""
    made = {"hubness": HUBNESS_QUERY}
    if "dual_encoder" in parts or "neighbours" in parts:
        capitalise = bool(archive.features.meta.get("capitalise", True))
        dual = encode_texts(archive.encoder, [text], capitalise=capitalise)
        made |= {"dual_encoder": dual, "neighbours": dual}
    if "ret" in parts:
        made["ret"] = embed_captions_ret(archive.captioner.model, [text])
    return made


def _like(archive: Archive, vector: np.ndarray, results: int, split: str | None) -> Search:
    index, within = archive.index("dual_encoder"), archive.within("dual_encoder", split)
    start = time.perf_counter()
    hits = index.search(vector, results, within=within)
    searched = len(index.image_ids) if within is None else int(within.sum())
    return Search(hits, searched=searched, search_seconds=time.perf_counter() - start)


def _plain(caption: str) -> str:
    return caption.strip().capitalize()


def show_image(archive: Archive, cache: ThumbnailCache, image_id: str) -> dict[str, object]:
    """``{"id", "name", "label", "split", "picture", "trouble", "references", "said"}`` of an image of the archive.

    Raises:
        ValueError: there is no such image.
    """
    if image_id not in archive.table.index:
        raise ValueError(f"no image {image_id!r} in the archive")
    row = archive.table.loc[image_id]
    picture, trouble = None, None
    try:
        picture = cache.make([row["path"]])[row["path"]].uri
    except (OSError, ValueError) as error:  # said in the picture's place, the others are shown
        trouble = str(error)
    run, own = next(iter(archive.runs.items()), ("", {}))
    return {
        "id": image_id,
        "name": image_id.split("/", 1)[-1],
        "label": row["label"] or "",
        "split": row["split"],
        "picture": picture,
        "trouble": trouble,
        "references": list(dict.fromkeys(row["captions"])),
        "said": {"run": run, "text": own[image_id]} if image_id in own else None,
    }


def show_hits(
    archive: Archive, cache: ThumbnailCache, hits: Sequence[tuple[str, float]], right: frozenset[str] = frozenset()
) -> list[dict[str, object]]:
    """The images of a search with their scores, best first, and whether they are right answers."""
    return [
        show_image(archive, cache, image_id) | {"score": round(score, 4), "right": image_id in right}
        for image_id, score in hits
    ]


def find_images(archive: Archive, words: str, count: int, split: str | None) -> list[str]:
    """Ids of the first images whose id, class or captions hold all words, case ignored; those of a split, or all."""
    wanted = words.lower().split()
    found: list[str] = []
    for image_id, own, label, captions in zip(
        archive.table["image_id"],
        archive.table["split"],
        archive.table["label"],
        archive.table["captions"],
        strict=True,
    ):
        if split is not None and own != split:
            continue
        text = " ".join([image_id, label or "", *captions]).lower()
        if all(word in text for word in wanted):
            found.append(image_id)
            if len(found) == count:
                break
    return found


def shown_captions(captions: Mapping[str, str]) -> list[dict[str, str]]:
    """Captions by run as a list, in their order."""
    return [{"run": run, "text": text} for run, text in captions.items()]
