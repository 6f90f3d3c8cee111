"""Looking around in a finished study: free-text search, images like one, an image from outside, a dialogue.

A dialogue with the captioner is shown in a notebook's cell, or exported as Markdown with its pictures.
"""

import itertools
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import HTML, DisplayHandle, display

from rsvlm.data.images import open_image
from rsvlm.data.table import SPLITS, rows_of
from rsvlm.files import whole_folder, write_text
from rsvlm.models.dialogue import Conversation, Turn, context_length
from rsvlm.models.encoders import DualEncoder, load_encoder
from rsvlm.models.features import Features, encode_pictures, encode_texts, load_features
from rsvlm.models.generation import embed_captions_ret
from rsvlm.models.inference import (
    Captioner,
    choose_captions,
    is_finished,
    load_captioner,
    propose_captions,
    training_distances,
)
from rsvlm.models.loading import choose_device
from rsvlm.models.prompts import VisualInput, caption_prompt, choose_view, read_visual
from rsvlm.scoring.fusion import HUBNESS_QUERY
from rsvlm.scoring.retrieval import load_space
from rsvlm.scoring.runs import read_captions
from rsvlm.viewing.page import ThumbnailCache, encode_jpeg, make_thumbnail, show_cards
from rsvlm.viewing.plots import shrink
from rsvlm.viewing.records import StudyFiles
from rsvlm.viewing.retrieval_gallery import SearchIndex, load_index, saved_methods

NO_CAPTIONER = (
    "no captioner yet: run the stages finetune_lora and generate_captions (`make study`), then this cell again"
)
PICTURE_PIXELS, PICTURE_BYTES = 512, 120_000  # of an exported dialogue
CELL_PIXELS = 150
PUNCTUATION = re.compile(r"([!-%'-/:;=?@\[-`{-~])")  # these may stand behind a backslash in Markdown; & < > are escaped
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
            self._indexes[method] = load_index(method, self.files.search_index)
        return self._indexes[method]


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
    vector = index.query(query_parts(archive, text, index.weights))
    encode_seconds = time.perf_counter() - start
    known = archive.images_of_caption.get(_plain(text), ())
    return _search(archive, method, vector, results, split, known, encode_seconds)


def similar_images(archive: Archive, image_id: str, results: int = 12, *, split: str | None = None) -> Search:
    """The other images nearest to one, by the dual encoder."""
    vector = archive.index("dual_encoder").vector(image_id)
    found = _search(archive, "dual_encoder", vector, results + 1, split)
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
            picture = make_thumbnail(str(path))
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), name)) from error
        encoding = {key: archive.features.meta[key] for key in ("views", "grid", "precision")}
        features = encode_pictures(archive.encoder, [open_image(path)], [name], **encoding)
    like = _search(archive, "dual_encoder", features.image_embeddings, results, split)
    captions, warning = {}, ""
    if archive.has_captioner:  # as the stage generate_captions makes them
        captioner = archive.captioner
        pools = captioner.pools(features.image_embeddings, [name])
        proposed = propose_captions(captioner.model, features, [name], pools, captioner.generation)
        chosen = choose_captions(proposed.candidates, proposed.judged, captioner.weights)[0]
        captions = {"captioner": chosen, "beam": proposed.beams[0][0], "consensus": pools.ranked[0][0][0]}
        warning = captioner.warning(training_distances(captioner.memory, features.image_embeddings)[0])
    return Described(captions, like, picture, warning)


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
    wanted = np.ones(len(index.image_ids), dtype=bool)
    if split is not None:
        wanted = np.isin(index.image_ids, rows_of(archive.table, split=split).index)
    start = time.perf_counter()
    hits = index.search(vector, results, within=None if split is None else wanted)
    seconds = time.perf_counter() - start
    right = frozenset(name for name in known if name in index.row_of and wanted[index.row_of[name]])
    return Search(hits, right, int(wanted.sum()), encode_seconds, seconds)


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


def start_dialogue(
    archive: Archive, *, images: int = 3, max_new_tokens: int = 40, ret_bias: float = 0.0
) -> Conversation:
    """A new dialogue with the study's captioner; ``[RET]`` finds images of the archive's split.

    Args:
        images: brought by a ``[RET]``.
        max_new_tokens: longest answer.
        ret_bias: added to the logit of ``[RET]``: higher values bring images sooner.

    Raises:
        FileNotFoundError: no captioner was trained.
    """
    captioner = archive.captioner.model
    space = load_space(folder) if (folder := archive.files.ret_embeddings).is_dir() else None
    split_of = dict(zip(archive.table["image_id"], archive.table["split"], strict=True))
    wanted = (None, archive.split) if archive.split else ("train", "val", "test")
    found = [image_id for image_id in space.image_ids if split_of.get(image_id) in wanted] if space else []
    return Conversation(
        captioner, found, space.images(found) if found else None, look=lambda image_id: look_at(archive, image_id),
        images=images, max_new_tokens=max_new_tokens, ret_bias=ret_bias,
    )  # fmt: skip


def look_at(archive: Archive, image_id: str) -> list[str | VisualInput]:
    """What the captioner is given of an image of the archive, as in training: the image, and its neighbours' captions.

    Raises:
        ValueError: the image has no features.
    """
    captioner = archive.captioner
    row = archive.features.rows([image_id])
    view = choose_view(captioner.generation.view)
    visual = read_visual(archive.features, row, view, grid=captioner.model.settings.grid_cells > 0)
    told = captioner.config["prompting"]["neighbour_captions"]
    if not told:
        return [visual]
    near = captioner.pools(archive.features.image_embeddings[row], [image_id]).top(told)[image_id]
    return [visual, caption_prompt("", near).strip()]


def limits_of(talk: Conversation) -> list[str]:
    """What the model of a dialogue cannot do, in plain sentences."""
    config = talk.captioner.config
    steps = config.get("training", {}).get("steps")
    trained = f" in {steps} steps" if steps else ""
    told = config.get("prompting", {}).get("neighbour_captions", 0)
    brings = (
        f"brings up to {talk.images} of {len(talk.image_ids)} images" if len(talk.image_ids) else "finds no images yet"
    )
    return [
        f"{config.get('language_model', 'The language model')} was trained{trained} to caption images of this study and to "
        "find them from a caption, and for nothing else.",
        "It does not count or measure reliably, knows no place, date or name, and says what such captions say even where "
        "the image shows something else. Hold its words against the picture.",
        "It was trained on one image at a time: what was said of a first image colours what it says of a second. Start "
        "afresh for another image.",
        f"With each image it is told {told} {'caption' if told == 1 else 'captions'} of similar training images, as in "
        "training."
        if told
        else "It sees the image and nothing else.",
        f"When it emits [RET] it {brings}. An answer has at most {talk.max_new_tokens} tokens, the whole dialogue "
        f"{context_length(talk.captioner)}.",
    ]


def show_image_turn(talk: Conversation, archive: Archive, image_id: str) -> HTML:
    """The turn that shows an image of the archive to the model."""
    return _show_turns([talk.give_image(image_id, look_at(archive, image_id))], archive)


def show_answer(talk: Conversation, archive: Archive, text: str) -> None:
    """Show the model's answer to a text in a notebook, while it is being made."""
    handle: DisplayHandle | None = None
    for turn in talk.ask(text):
        shown = _show_turns([Turn("you", text), turn], archive)
        if handle is None:
            handle = display(shown, display_id=True)
        else:
            handle.update(shown)


def _show_turns(turns: Sequence[Turn], archive: Archive) -> HTML:
    """Turns with their images."""
    rows = []
    for turn in turns:
        pictures = [make_thumbnail(archive.table.loc[name, "path"], CELL_PIXELS) for name in turn.image_ids]
        cards = [
            {"picture": picture, "bold": score, "title": name}
            for picture, (name, score) in zip(pictures, _images_of(turn), strict=True)
        ]
        rows.append({"head": "You" if turn.who == "you" else "Model", "words": words_of(turn), "cards": cards})
    return show_cards(rows, width=CELL_PIXELS)


def words_of(turn: Turn) -> str:
    """The words of a turn, and in brackets what happened where words do not say it."""
    parts = [turn.text] if turn.text else []
    if turn.asked_for_images:
        parts.append("[brings images]" if turn.image_ids else "[asks for images, but there are none to be found]")
    elif turn.who == "model" and not turn.text:
        parts.append("[says nothing]")
    if turn.cut_off:
        parts.append("[cut off]")
    return " ".join(parts) if parts else "[an image]"


def dialogue_markdown(turns: Sequence[Turn], pictures: dict[str, str]) -> str:
    """The dialogue as Markdown; every text stands as it is, no mark of it means anything.

    Args:
        pictures: image id -> where its picture lies, relative to the file.
    """
    blocks = ["# A dialogue with the captioner"]
    for turn in turns:
        blocks.append(f"**{'You' if turn.who == 'you' else 'Model'}:** {_escaped(words_of(turn))}")
        for image_id, score in _images_of(turn):
            name = _escaped(image_id)
            blocks.append(f"![{name}]({pictures[image_id]})\n{name}{f' ({score})' if score else ''}")
    return "\n\n".join(blocks) + "\n"


def export_dialogue(turns: Sequence[Turn], archive: Archive, folder: Path) -> Path:
    """The new folder with ``dialogue.md`` and the pictures beside it, written whole.

    Args:
        folder: where dialogues are kept.

    Raises:
        ValueError: nothing was said yet.
    """
    if not turns:
        raise ValueError("the dialogue is empty: there is nothing to export")
    places = (folder / f"dialogue_{number:03d}" for number in itertools.count(1))
    made = next(place for place in places if not place.exists())
    image_ids = list(dict.fromkeys(image_id for turn in turns for image_id in turn.image_ids))
    pictures = {image_id: f"image_{place:02d}.jpg" for place, image_id in enumerate(image_ids, start=1)}
    with whole_folder(made) as scratch:
        for image_id, name in pictures.items():
            picture = shrink(open_image(archive.table.loc[image_id, "path"]), PICTURE_PIXELS)
            (scratch / name).write_bytes(encode_jpeg(picture, PICTURE_BYTES))
        write_text(scratch / "dialogue.md", dialogue_markdown(turns, pictures))
    return made


def _images_of(turn: Turn) -> list[tuple[str, str]]:
    """(image id, its score as text) of a turn's images; those that nobody searched for have none."""
    scores = [f"{score:.2f}" for score in turn.scores] or [""] * len(turn.image_ids)
    return list(zip(turn.image_ids, scores, strict=True))


def _escaped(text: str) -> str:
    plain = PUNCTUATION.sub(r"\\\1", " ".join(text.split()))
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
