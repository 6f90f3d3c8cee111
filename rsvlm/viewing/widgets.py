"""The caption gallery, the search box and the dialogue pane in a notebook.

The caption gallery in a notebook: a page of pictures at a time, marks on disk at once.

The search box in a notebook: free text, images like one, a file from outside.

The dialogue pane in a notebook: images and text to the captioner, its answers as they are made.
"""

import getpass
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pandas as pd
import traitlets

from rsvlm.files import fingerprint_values
from rsvlm.models.dialogue import Conversation, Turn
from rsvlm.models.prompts import CAPTION_PROMPT, CAPTION_PROMPTS, RETRIEVAL_PROMPTS
from rsvlm.scoring.runs import METHODS
from rsvlm.viewing.browse import (
    Archive,
    Search,
    describe_file,
    find_images,
    search_text,
    show_hits,
    show_image,
    shown_captions,
    similar_images,
    splits_of,
)
from rsvlm.viewing.caption_entries import BASELINES, StudyFiles
from rsvlm.viewing.caption_gallery import (
    TrainingImages,
    copied_captions,
    gallery_item,
    gallery_setting,
    nearest_training,
    open_training_images,
)
from rsvlm.viewing.dialogue_pages import export_dialogue, limits_of, look_at, words_of
from rsvlm.viewing.marks import KINDS, Mark, error_table, marks_of, now, read_marks, save_mark, standing_marks
from rsvlm.viewing.page import AnsweringWidget, widget_script, widget_style
from rsvlm.viewing.records import Query, Records, draw_order, open_records, select_rows
from rsvlm.viewing.thumbnails import ThumbnailCache, make_thumbnail

LARGE_PIXELS, LARGE_BYTES = 1_024, 400_000  # the enlarged picture
MOST_ON_A_PAGE = 200


class CaptionGallery(AnsweringWidget):
    """The gallery of some records; made by ``caption_gallery``."""

    _esm = widget_script("gallery.js", "gallery_widget.js")
    sheet = traitlets.Unicode(widget_style("gallery.css")).tag(sync=True)

    def __init__(
        self,
        records: Records,
        files: StudyFiles,
        *,
        who: str,
        neighbours: int,
        seed: int,
        cache: ThumbnailCache,
        **more: object,
    ) -> None:
        run = records.runs[0]
        others = [*(name for name in BASELINES if name in records.runs), *records.runs]
        baseline = next((name for name in others if name != run), None)
        setting = gallery_setting(records, run=run, baseline=baseline, **more)
        study = fingerprint_values(str(files.root.absolute()))[:12]
        super().__init__(setting=setting | {"marks": True, "kinds": list(KINDS), "study": study})
        self.records, self.files, self.who, self.neighbours, self.cache = records, files, who, neighbours, cache
        self.drawn = draw_order(records, seed)
        self._marks_read: tuple[object, list[Mark]] = (None, [])

    def answer_page(self, query: dict, first: int, count: int) -> dict:
        """``{"total", "items"}``: the images of a page, with the pictures that are there already."""
        rows = self._rows(query)
        chosen = rows[max(0, first) : max(0, first) + min(count, MOST_ON_A_PAGE)]
        pictures = self.cache.find([self.records.paths[row] for row in chosen])
        own = self._own_marks()
        items = []
        for row in chosen.tolist():
            picture = pictures.get(self.records.paths[row])
            marks = own.get(self.records.image_ids[row])
            items.append(gallery_item(self.records.entry(row), picture=picture and picture.uri, marks=marks))
        return {"total": len(rows), "items": items}

    def answer_pictures(self, image_ids: Sequence[str]) -> dict:
        """``{"pictures": id -> data URI, "broken": id -> what is wrong}``, made where they were not there."""
        pictures, broken = {}, {}
        for image_id in image_ids[:MOST_ON_A_PAGE]:
            path = self.records.paths[self._row(image_id)]
            try:
                pictures[image_id] = self.cache.make([path])[path].uri
            except (OSError, ValueError) as error:  # one bad picture is said on its card, the others are shown
                broken[image_id] = str(error)
        return {"pictures": pictures, "broken": broken}

    def answer_prepare(self, query: dict, first: int, count: int) -> dict:
        """How many pictures of a page that is not shown yet were made."""
        rows = self._rows(query)[first : first + min(count, MOST_ON_A_PAGE)]
        made = self.answer_pictures([self.records.image_ids[row] for row in rows.tolist()])
        return {"made": len(made["pictures"])}

    def answer_detail(self, image_id: str) -> dict:
        """``{"picture", "trouble", "near"}`` of the enlarged view: the picture, and the nearest training images."""
        entry = self.records.entry(self._row(image_id))
        picture, trouble = None, None
        try:
            picture = make_thumbnail(entry.path, LARGE_PIXELS, LARGE_BYTES).uri
        except (OSError, ValueError) as error:
            trouble = str(error)
        near = []
        training, table = self._training
        if training is not None and self.neighbours:
            for other in nearest_training(training, [image_id], self.neighbours)[0]:
                row = table.loc[other.image_id]
                captions = list(dict.fromkeys(row["captions"]))
                small = self.cache.make([row["path"]])[row["path"]].uri
                near.append(
                    {"name": other.image_id, "cosine": other.cosine, "label": row["label"] or "", "picture": small}
                    | {"captions": captions, "copied": copied_captions(entry, captions)}
                )
        return {"picture": picture, "trouble": trouble, "near": near}

    def answer_mark(self, mark: dict) -> dict:
        """``{"saved": path}``, once the mark is on the disk."""
        self._row(str(mark.get("image_id")))
        texts = {name: str(mark.get(name) or "") for name in ("run", "image_id", "source", "label", "kind", "note")}
        own = {"when": str(mark.get("when") or now()), "who": self.who, "on": int(bool(mark.get("on")))}
        made = Mark(**texts, **own, caption=str(mark.get("caption") or ""), key=str(mark.get("key") or ""))
        save_mark(made, self.files.marks)
        return {"saved": self.files.marks.name}

    def answer_errors(self, run: str) -> dict:
        """``{"columns", "rows"}`` of the error table of one run."""
        table = error_table(self._marks(), run=run).reset_index()
        rows = [
            [None if isinstance(cell, float) and np.isnan(cell) else cell for cell in row]
            for row in table.to_numpy(object).tolist()
        ]
        return {"columns": list(table.columns), "rows": rows}

    def _rows(self, query: dict) -> np.ndarray:
        asked = Query.read(query)
        marks = marks_of(standing_marks(self._marks()), self.who) if asked.mark else None
        return select_rows(self.records, asked, drawn=self.drawn, marks=marks)[0]

    def _row(self, image_id: str) -> int:
        if image_id not in self.records.row_of:
            raise ValueError(f"no image {image_id!r} in this gallery")
        return self.records.row_of[image_id]

    def _marks(self) -> list[Mark]:
        """All marks on the disk, read again where the file has changed: another notebook may write it, too."""
        stat = self.files.marks.stat() if self.files.marks.is_file() else None
        state = stat and (stat.st_size, stat.st_mtime_ns)
        if state != self._marks_read[0]:
            self._marks_read = (state, read_marks(self.files.marks))
        return self._marks_read[1]

    def _own_marks(self) -> dict[str, dict[str, dict]]:
        own: dict[str, dict[str, dict]] = {}
        for (who, run, image_id), standing in standing_marks(self._marks()).items():
            if who == self.who:
                note = standing["note"].note if "note" in standing else ""
                own.setdefault(image_id, {})[run] = {"kinds": sorted(standing, key=KINDS.index), "note": note}
        return own

    @cached_property
    def _training(self) -> tuple[TrainingImages | None, pd.DataFrame]:
        table = self.files.read_table()
        return open_training_images(table, self.files.features), table.set_index("image_id")


def caption_gallery(
    files: StudyFiles,
    runs: Sequence[str] | None = None,
    *,
    split: str | None = None,
    references: str = "released",
    metric: str = "CIDEr",
    page_size: int = 24,
    neighbours: int = 4,
    thumbnail_pixels: int = 192,
    who: str = "",
    seed: int = 0,
) -> CaptionGallery:
    """The caption gallery of the study, ready to be shown by a notebook.

    Args:
        files: its table, runs, scores and features are read, its marks added to.
        runs: in their order, the studied one first; None: all that were made.
        split: train, val or test; None: every image that has a generated caption.
        references: which scores, against ``released`` or ``distinct`` references.
        metric: the one that orders at first.
        page_size: images of a page, at most 200.
        neighbours: nearest training images shown in the enlarged view.
        who: name on the marks; empty takes the name of the user's account.
        seed: of the random order.

    Raises:
        FileNotFoundError, ValueError: the stages have not run, or a setting is out of range.
    """
    if not 1 <= page_size <= MOST_ON_A_PAGE:
        raise ValueError(f"page_size is {page_size}: give 1 to {MOST_ON_A_PAGE}")
    records = open_records(files, runs, split=split, references=references)
    return CaptionGallery(
        records, files, who=who.strip() or getpass.getuser(), neighbours=neighbours, seed=seed, metric=metric,
        size=page_size, cache=ThumbnailCache(thumbnail_pixels),
    )  # fmt: skip


EXAMPLES = 6  # captions of the searched split offered as first queries
MOST_RESULTS = 100


class SearchBox(AnsweringWidget):
    """The search box of an archive; made by ``search_box``."""

    _esm = widget_script("search.js")
    sheet = traitlets.Unicode(widget_style("search.css")).tag(sync=True)

    def __init__(self, archive: Archive, *, results: int, cache: ThumbnailCache) -> None:
        self.archive, self.results, self.cache = archive, results, cache
        methods = [{"id": name, "name": METHODS[name].name, "note": METHODS[name].note} for name in archive.methods]
        setting = {"methods": methods, "splits": splits_of(archive), "split": archive.split or ""}
        super().__init__(setting=setting | {"examples": self._examples(), "captions": archive.has_captioner})

    def answer_search(self, text: str, method: str, split: str) -> dict:
        """``{"hits", "right", "outside", "searched", "encode", "search"}`` of a text; the times in milliseconds."""
        if "captioner" not in vars(self.archive) and method != "dual_encoder":
            self.tell({"status": "loading the captioner …"})
        found = search_text(self.archive, text, self.results, method=method, split=split or None)
        shown = {image_id for image_id, _ in found.hits}
        return self._show(found) | {"right": len(found.right), "outside": len(found.right - shown)}

    def answer_similar(self, image_id: str, split: str) -> dict:
        """``{"image", "hits", ...}``: an image and those like it."""
        found = similar_images(self.archive, image_id, self.results, split=split or None)
        return self._show(found) | {"image": show_image(self.archive, self.cache, image_id)}

    def answer_drop(self, name: str, split: str, buffers: list[bytes]) -> dict:
        """``{"image", "captions", "hits", ...}``: what is said of a file, and the images like it."""
        if self.archive.has_captioner and "captioner" not in vars(self.archive):
            self.tell({"status": "loading the captioner …"})
        said = describe_file(self.archive, buffers[0], name, self.results, split or None)
        image = {
            "id": name,
            "name": name,
            "label": "",
            "split": "from outside",
            "picture": said.picture,
            "references": [],
        }
        return self._show(said.like) | {"image": image, "captions": shown_captions(said.captions)}

    def _show(self, found: Search) -> dict:
        times = {"encode": round(1000 * found.encode_seconds, 1), "search": round(1000 * found.search_seconds, 1)}
        return {
            "hits": show_hits(self.archive, self.cache, found.hits, found.right),
            "searched": found.searched,
        } | times

    def _examples(self) -> list[str]:
        rows = self.archive.table
        if self.archive.split:
            rows = rows[rows["split"] == self.archive.split]
        places = np.unique(np.linspace(0, len(rows) - 1, EXAMPLES).astype(int))
        return list(dict.fromkeys(rows["captions"].iloc[place][0].strip() for place in places))


def search_box(archive: Archive, results: int = 12, thumbnail_pixels: int = 192) -> SearchBox:
    """The search box of the archive, ready to be shown by a notebook.

    Raises:
        FileNotFoundError: the study has saved no index.
        ValueError: ``results`` is out of range.
    """
    if not 1 <= results <= MOST_RESULTS:
        raise ValueError(f"results is {results}: give 1 to {MOST_RESULTS}")
    if not archive.methods:
        raise FileNotFoundError("no search index: run the stage retrieval_gallery (notebook 86_retrieval_gallery)")
    return SearchBox(archive, results=results, cache=ThumbnailCache(thumbnail_pixels))


OFFERED = 12  # images offered for a word


class DialoguePane(AnsweringWidget):
    """The pane of a conversation; made by ``dialogue_pane``. Another cell may go on with the same conversation."""

    _esm = widget_script("dialogue.js")
    sheet = traitlets.Unicode(widget_style("search.css", "dialogue.css")).tag(sync=True)

    def __init__(self, talk: Conversation, archive: Archive, *, cache: ThumbnailCache) -> None:
        self.talk, self.archive, self.cache = talk, archive, cache
        prompts = [CAPTION_PROMPT, CAPTION_PROMPTS[0], CAPTION_PROMPTS[4], RETRIEVAL_PROMPTS[0]]
        super().__init__(setting={"limits": limits_of(talk), "prompts": prompts})

    def answer_turns(self) -> list[dict]:
        """What was said so far."""
        return [self._show(turn) for turn in self.talk.turns]

    def answer_find(self, words: str) -> list[dict]:
        """Images of the archive to choose from."""
        found = find_images(self.archive, words, OFFERED, self.archive.split)
        return [show_image(self.archive, self.cache, image_id) for image_id in found]

    def answer_give(self, image_id: str) -> dict:
        """The turn that shows an image to the model."""
        shown = show_image(self.archive, self.cache, image_id)
        turn = self.talk.give_image(image_id, look_at(self.archive, shown["id"]))
        return self._show(turn)

    def answer_say(self, text: str) -> dict:
        """The model's whole turn; its words go to the page while they come."""
        turn = None
        for turn in self.talk.ask(text):
            self.tell({"words": turn.text})
        return self._show(turn)

    def answer_afresh(self) -> list:
        """Nothing: everything was forgotten."""
        self.talk.start_afresh()
        return []

    def answer_export(self) -> dict:
        """``{"path"}`` of the exported dialogue, relative to the study."""
        made = export_dialogue(self.talk.turns, self.archive, self.archive.files.dialogues)
        return {"path": self.archive.files.shown(made / "dialogue.md")}

    def _show(self, turn: Turn) -> dict:
        images = [show_image(self.archive, self.cache, image_id) for image_id in turn.image_ids]
        for image, score in zip(images, turn.scores, strict=False):
            image["score"] = round(score, 4)
        return {"who": turn.who, "words": words_of(turn), "images": images}


def dialogue_pane(talk: Conversation, archive: Archive, thumbnail_pixels: int = 192) -> DialoguePane:
    """The chat pane of a conversation, ready to be shown by a notebook."""
    return DialoguePane(talk, archive, cache=ThumbnailCache(thumbnail_pixels))
