"""Looking around in a finished study: free-text search, images like one, an image from outside."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from rsvlm.data.images import open_image
from rsvlm.data.names import SPLITS
from rsvlm.data.table import rows_of
from rsvlm.models.encoders import DualEncoder
from rsvlm.models.encoding import encode_texts
from rsvlm.models.features import Features, encode_pictures, encoding_of, load_features
from rsvlm.models.generation import embed_captions_ret
from rsvlm.models.inference import (
    Captioner,
    choose_captions,
    is_finished,
    load_captioner,
    propose_captions,
    training_distances,
)
from rsvlm.models.language_head import ENGLISH, Languages, has_languages, load_languages
from rsvlm.models.loading import choose_device
from rsvlm.models.neighbours import Spoken, spoken_languages
from rsvlm.models.queries import split_without
from rsvlm.models.zoo import load_encoder
from rsvlm.safe_text import check_query
from rsvlm.scoring.fusion import HUBNESS_QUERY
from rsvlm.scoring.runs import read_captions
from rsvlm.viewing.language_marks import captions_by_image
from rsvlm.viewing.page import ThumbnailCache, make_thumbnail
from rsvlm.viewing.records import StudyFiles
from rsvlm.viewing.search_index import SearchIndex, load_index, saved_methods

NO_CAPTIONER = (
    "no captioner yet: run the stages finetune_lora and generate_captions (`make study`), then this cell again"
)
ANY = "any"  # of a query: its language is detected
LEFT_OUT = "“{}” was subtracted: an encoder reads “without” much as “with”"
BY_ENCODER = "found by the dual encoder, as [RET] and the combination read English alone"
LARGEST_FILE = 64_000_000  # bytes of a file from outside


@dataclass(frozen=True)
class Archive:
    """The study's images with their captions; models and indexes are loaded when they are first needed."""

    files: StudyFiles
    table: pd.DataFrame  # indexed by image_id
    features: Features
    device: str
    split: str | None  # what is searched unless a search says otherwise
    runs: dict[str, dict[str, str]]  # run -> image id -> generated caption
    outside: dict[str, Image.Image] = field(
        default_factory=dict, init=False, repr=False
    )  # given from elsewhere, by name
    _indexes: dict[str, SearchIndex] = field(default_factory=dict, init=False, repr=False)

    def __str__(self) -> str:
        rows = rows_of(self.table, split=self.split)
        sources = ", ".join(f"{count} of {name}" for name, count in rows["source"].value_counts().sort_index().items())
        made = f"generated captions: {', '.join(self.runs) or 'none yet'}"
        return f"{len(rows)} images ({sources}); {made}; search by {', '.join(self.methods) or 'nothing yet'}"

    @property
    def methods(self) -> list[str]:
        """The retrieval methods that can be searched with now."""
        saved = saved_methods(self.files.search_index)
        return saved if self.has_captioner else [method for method in saved if method == "dual_encoder"]

    @property
    def splits(self) -> list[str]:
        """The splits of the archive, in their usual order."""
        return [split for split in SPLITS if split in set(self.table["split"])]

    @property
    def has_captioner(self) -> bool:
        """Whether a captioner was trained."""
        return is_finished(self.files.captioner)

    @cached_property
    def encoder(self) -> DualEncoder:
        """The encoder that the features come from."""
        return load_encoder(str(self.files.encoder), choose_device(self.device)).eval()

    @property
    def has_languages(self) -> bool:
        """Whether texts in other languages than English can be read."""
        return has_languages(self.files.languages)

    @cached_property
    def languages(self) -> Languages:
        """What reads other languages into the encoder's space. Raises as ``load_languages``."""
        return load_languages(self.files.languages, self.encoder)

    @cached_property
    def spoken(self) -> dict[str, Spoken]:
        """language -> the training images with captions in it; none for a study without translations."""
        return spoken_languages(self.features, self.table, self.translations)

    @cached_property
    def translations(self) -> pd.DataFrame:
        """The table's captions in other languages, as ``load_translations`` gives them; no row where there are none."""
        return self.files.read_translations(self.table)

    @cached_property
    def captions_of(self) -> dict[str, dict[str, list[str]]]:
        """Image id -> language -> its captions in it; without English."""
        return captions_by_image(self.translations)

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
        captions = self.table.loc[self.table["split"] != "train", "captions"].explode()
        return captions.groupby(captions.map(_plain)).agg(lambda own: set(own.index)).to_dict()

    def index(self, method: str) -> SearchIndex:
        """The saved index of a method. Raises as ``load_index``."""
        if method not in self._indexes:
            self._indexes[method] = load_index(method, self.files.search_index, self.table)
        return self._indexes[method]


@dataclass(frozen=True)
class Search:
    """What a search found: (image id, score), best first; which images are right, where that is known; how long it took."""

    hits: list[tuple[str, float]]
    right: frozenset[str] = frozenset()
    searched: int = 0  # images
    encode_seconds: float = 0.0  # of making the query's vector
    search_seconds: float = 0.0
    language: str | None = ENGLISH  # the text's; None: it could not be told
    notes: tuple[str, ...] = ()  # what is to be said about the text


@dataclass(frozen=True)
class Described:
    """What the study says of an image from outside, and the images like it."""

    captions: dict[str, str]  # by run: captioner, beam, consensus
    like: Search
    picture: str = field(repr=False)  # data URI of a thumbnail
    warning: str = ""  # where it is unlike anything in training


def open_archive(files: StudyFiles, *, split: str | None = "test", device: str = "cpu") -> Archive:
    """The study's images with their features and generated captions; a split (None: all) is searched.

    Raises:
        FileNotFoundError: the stages aggregate_data or encode_images have not run.
        ValueError: the split is not in the table.
    """
    table = files.read_table().set_index("image_id", drop=False)
    rows_of(table, split=split)
    runs = {run: read_captions(file) for run, file in files.runs().items()}
    return Archive(files, table, load_features(files.features), device, split, runs)


def search_text(
    archive: Archive,
    query: str,
    results: int = 12,
    *,
    method: str = "dual_encoder",
    split: str | None = None,
    language: str = ENGLISH,
) -> Search:
    """The images nearest to a text; nothing for a blank one. Of "A without B" B is subtracted, and a note says so.

    Args:
        method: dual_encoder, ret or combined; a text that is not English is searched by the dual encoder.
        split: None: all images that the method knows.
        language: the text's code; "any": it is detected.

    Raises:
        FileNotFoundError: the method's index, the captioner or what reads other languages was not made.
        ValueError: no such split, a text that is too long, or a language that cannot be read.
    """
    text = query.strip()
    if not text:
        return Search([])
    check_query(text)
    if language != ENGLISH:
        asked = archive.languages.ask(text, None if language == ANY else language)
        if asked.language != ENGLISH:
            start = time.perf_counter()
            vector = archive.index("dual_encoder").query({"dual_encoder": archive.languages.embed_asked([asked])})
            found = _search(archive, "dual_encoder", vector, results, split, (), time.perf_counter() - start)
            notes = (*asked.notes, BY_ENCODER) if method != "dual_encoder" else asked.notes
            return replace(found, language=asked.language, notes=notes)
    index, known = archive.index(method), archive.images_of_caption.get(_plain(text), ())
    wanted, unwanted = (text, "") if known else split_without(text)
    start = time.perf_counter()
    vector = index.query(query_parts(archive, wanted, index.weights))
    if unwanted:
        vector = vector - index.query(query_parts(archive, unwanted, index.weights))
    found = _search(archive, method, vector, results, split, known, time.perf_counter() - start)
    return replace(found, notes=(LEFT_OUT.format(unwanted),)) if unwanted else found


def similar_images(archive: Archive, image_id: str, results: int = 12, *, split: str | None = None) -> Search:
    """The other images nearest to one, by the dual encoder. ValueError: it is not among the study's."""
    vector = archive.features.image_embeddings[archive.features.rows([image_id])]
    found = _search(archive, "dual_encoder", vector, results + 1, split)
    return replace(found, hits=[hit for hit in found.hits if hit[0] != image_id][:results])


def describe_file(
    archive: Archive, content: bytes, name: str, results: int = 12, split: str | None = None
) -> Described:
    """What the study says of an image file from outside, and the images like it.

    It is encoded and captioned as the study's own test images were, by the same code and parameters; without a
    captioner, only the images like it are found.

    Raises:
        ValueError: the file is too large or no image; names it.
    """
    image, features = read_file(archive, content, name)
    like = _search(archive, "dual_encoder", features.image_embeddings, results, split)
    captions, warning = {}, ""
    if archive.has_captioner:  # as the stage generate_captions makes them
        captioner = archive.captioner
        pools = captioner.pools(features.image_embeddings, [name])
        proposed = propose_captions(captioner.model, features, [name], pools, captioner.generation)
        chosen = choose_captions(proposed.candidates, proposed.judged, captioner.weights)[0]
        captions = {"captioner": chosen, "beam": proposed.beams[0][0], "consensus": pools.ranked[0][0][0]}
        warning = captioner.warning(training_distances(captioner.memory, features.image_embeddings)[0])
    return Described(captions, like, make_thumbnail(image), warning)


def read_file(archive: Archive, content: bytes, name: str) -> tuple[Image.Image, Features]:
    """An image file from outside and its features, made as those of the study's images; nothing of it is kept.

    Raises:
        ValueError: the file is too large or no image; names it.
    """
    if len(content) > LARGEST_FILE:
        raise ValueError(f"{name}: {len(content) / 1e6:.0f} MB, at most {LARGEST_FILE / 1e6:.0f} are read")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image"
        path.write_bytes(content)
        try:
            image = open_image(path)
        except ValueError as error:
            told = str(error).removesuffix(" or take it out of the annotations")  # a file from outside has none
            raise ValueError(told.replace(str(path), name)) from error
    return image, encode_pictures(archive.encoder, [image], [name], **encoding_of(archive.features.meta))


def picture_of(archive: Archive, image_id: str) -> Image.Image:
    """The picture of an image of the archive, or of one that was given from outside. Raises as ``open_image``."""
    return archive.outside.get(image_id) or open_image(archive.table.loc[image_id, "path"])


def query_parts(archive: Archive, text: str, parts: Sequence[str]) -> dict[str, np.ndarray]:
    """part of a method -> (1, D_part), the text in its space."""
    made = {"hubness": HUBNESS_QUERY}
    if "dual_encoder" in parts or "neighbours" in parts:
        capitalise = bool(archive.features.meta.get("capitalise", True))
        dual = encode_texts(archive.encoder, [text], capitalise=capitalise)
        made |= {"dual_encoder": dual, "neighbours": dual}
    if "ret" in parts:
        made["ret"] = embed_captions_ret(archive.captioner.model, [text])
    return made


def _search(
    archive: Archive,
    method: str,
    vector: np.ndarray,
    results: int,
    split: str | None,
    known: Sequence[str] = (),
    encode_seconds: float = 0.0,
) -> Search:
    """What a method's index finds for a vector among the images of a split; right are the ``known`` images in it."""
    index = archive.index(method)
    rows_of(archive.table, split=split)  # there is such a split
    wanted = index.within(split)
    start = time.perf_counter()
    hits = index.search(vector, results, split=split)
    seconds = time.perf_counter() - start
    right = frozenset(name for name in known if name in index.row_of and wanted[index.row_of[name]])
    return Search(hits, right, int(wanted.sum()), encode_seconds, seconds)


def _plain(caption: str) -> str:
    return caption.strip().capitalize()


def show_image(archive: Archive, cache: ThumbnailCache, image_id: str) -> dict[str, object]:
    """``{"id", "name", "label", "split", "picture", "trouble", "references", "languages", "said"}`` of an image.

    Raises:
        ValueError: there is no such image.
    """
    if image_id in archive.outside:
        shown = {"id": image_id, "name": image_id, "label": "", "split": "from outside", "references": [], "said": None}
        shown |= {"languages": {}}
        return shown | {"picture": make_thumbnail(archive.outside[image_id]), "trouble": None}
    if image_id not in archive.table.index:
        raise ValueError(f"no image {image_id!r} in the archive")
    row = archive.table.loc[image_id]
    picture, trouble = None, None
    try:
        picture = cache.make([row["path"]])[row["path"]]
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
        "languages": {code: list(dict.fromkeys(own)) for code, own in archive.captions_of.get(image_id, {}).items()},
        "said": {"run": run, "text": own[image_id]} if image_id in own else None,
    }


def find_images(archive: Archive, words: str, count: int) -> list[str]:
    """Ids of the first images of the archive's split whose id, class or captions hold all words, case ignored."""
    wanted, found = words.lower().split(), []
    for row in rows_of(archive.table, split=archive.split).itertuples(index=False):
        text = " ".join([row.image_id, row.label or "", *row.captions]).lower()
        if all(word in text for word in wanted):
            found.append(row.image_id)
            if len(found) == count:
                break
    return found
