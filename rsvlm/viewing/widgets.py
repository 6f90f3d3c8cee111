"""The widgets of a notebook: the caption gallery, the search box, the dialogue pane.

Their page asks and their kernel answers. A page sends ``{"ask": id, "what": name, "given": {...}}``, perhaps with bytes;
the method ``answer_NAME`` is called with what is given, and its result goes back as ``{"ask": id, "answer": ...}``. An
error goes back as its text, to be shown where the question was asked: JupyterLab hides what a callback raises.
"""

import getpass
from collections.abc import Callable, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import anywidget
import numpy as np
import traitlets

from rsvlm.data.table import evenly_spaced, rows_of
from rsvlm.disks import disk_trouble
from rsvlm.files import fingerprint_values
from rsvlm.languages import language_name
from rsvlm.models.dialogue import Conversation, Turn, Unclear
from rsvlm.models.foreign_wishes import examples_in, languages_read
from rsvlm.models.language_head import ENGLISH, trained_languages
from rsvlm.models.prompts import CAPTION_PROMPT, CAPTION_PROMPTS, RETRIEVAL_PROMPTS
from rsvlm.scoring.runs import METHODS
from rsvlm.viewing.browse import (
    ANY,
    Archive,
    Search,
    describe_file,
    find_images,
    search_text,
    show_image,
    similar_images,
)
from rsvlm.viewing.caption_gallery import (
    MARKS,
    Mark,
    error_table,
    gallery_item,
    gallery_setting,
    nearest_training,
    read_features,
    read_marks,
    save_mark,
    standing_marks,
)
from rsvlm.viewing.dialogues import export_dialogue, give_file, limits_of, look_at, words_of
from rsvlm.viewing.language_marks import how_captions_came, language_marks
from rsvlm.viewing.page import ThumbnailCache, make_thumbnail, read_template
from rsvlm.viewing.records import (
    BASELINES,
    Query,
    StudyFiles,
    draw_order,
    open_records,
    select_rows,
)
from rsvlm.viewing.search_index import NO_INDEX

TOLD = (ValueError, OSError, RuntimeError, ImportError)  # errors with a message for the reader
LARGE_PIXELS, LARGE_BYTES = 1_024, 400_000  # the enlarged picture
MOST_ON_A_PAGE = 200
MOST_RESULTS = 100
EXAMPLES = 3  # captions of the searched split offered as first queries
OFFERED = 12  # images offered for a word in a dialogue
ASKED = 4  # kinds of instructions that the dialogue gives an example of


class AnsweringWidget(anywidget.AnyWidget):
    """A widget that answers its page's questions; see the module's text."""

    sheet = traitlets.Unicode().tag(sync=True)  # style sheet of the shadow root
    setting = traitlets.Dict().tag(sync=True)  # what the page knows before it asks

    def __init__(self, **traits: object) -> None:
        super().__init__(**traits)
        self.tell: Callable[[object], None] = lambda part: None  # sends a part of the answer that is being made
        self.on_msg(self.receive)

    def __repr__(self) -> str:
        """What a saved notebook shows in the widget's place, trusted or not: Lab cuts it after 110 letters."""
        return f"{type(self).__name__}: run this cell and those above to see it; a saved notebook keeps no widget."

    def receive(self, _: object, message: dict, buffers: Sequence[memoryview] = ()) -> None:
        """Answer one message of the page."""
        ask, what = message.get("ask"), message.get("what")
        answer = getattr(self, f"answer_{what}", None)
        if not callable(answer):
            self.send({"ask": ask, "error": f"there is no answer to {what!r}"})
            return
        given = dict(message.get("given") or {})
        if buffers:
            given["buffers"] = [bytes(buffer) for buffer in buffers]
        self.tell = lambda part: self.send({"ask": ask, "part": part})
        try:
            result = answer(**given)
        except Exception as error:
            told = isinstance(error, TOLD)
            said = disk_trouble(str(error), Path.cwd()) or str(error)
            self.send({"ask": ask, "error": said if told else f"{type(error).__name__}: {error}"})
            if not told:
                raise  # a fault of the program: into the log, too
        else:
            self.send({"ask": ask, "answer": result})


class CaptionGallery(AnsweringWidget):
    """The caption gallery of a study, a page of pictures at a time.

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

    _esm = read_template("dom.js", "kernel.js", "gallery.js", "gallery_widget.js")
    sheet = traitlets.Unicode(read_template("page.css", "scores.css", "gallery.css", "widget.css")).tag(sync=True)

    def __init__(
        self,
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
    ) -> None:
        if not 1 <= page_size <= MOST_ON_A_PAGE:
            raise ValueError(f"page_size is {page_size}: give 1 to {MOST_ON_A_PAGE}")
        self.records = records = open_records(files, runs, split=split, references=references)
        self.files, self.who, self.neighbours = files, who.strip() or getpass.getuser(), neighbours
        self.drawn, self.cache = draw_order(records, seed), ThumbnailCache(thumbnail_pixels)
        self._marks_read: tuple[object, list[Mark]] = (None, [])
        run = records.runs[0]
        others = [*(name for name in BASELINES if name in records.runs), *records.runs]
        baseline = next((name for name in others if name != run), None)
        setting = gallery_setting(records, run=run, baseline=baseline, metric=metric, size=page_size)
        study = fingerprint_values(str(files.root.absolute()))[:12]
        super().__init__(setting=setting | {"marks": True, "kinds": list(MARKS), "study": study})

    def answer_page(self, query: dict, first: int, count: int) -> dict:
        """``{"total", "items"}``: the images of a page, with the pictures that are there already."""
        rows = self._rows(query)
        chosen = rows[max(0, first) : max(0, first) + min(count, MOST_ON_A_PAGE)].tolist()
        pictures = self.cache.find([self.records.paths[row] for row in chosen])
        own: dict[str, dict[str, dict]] = {}
        for (who, run, image_id), standing in standing_marks(self._marks()).items():
            if who == self.who:
                note = standing["note"].note if "note" in standing else ""
                own.setdefault(image_id, {})[run] = {"kinds": sorted(standing, key=MARKS.index), "note": note}
        items = []
        for row in chosen:
            picture, marks = pictures.get(self.records.paths[row]), own.get(self.records.image_ids[row])
            items.append(gallery_item(self.records.entry(row), picture=picture, marks=marks))
        return {"total": len(rows), "items": items}

    def answer_pictures(self, image_ids: Sequence[str]) -> dict:
        """``{"pictures": id -> data URI, "broken": id -> what is wrong}``, made where they were not there."""
        pictures, broken = {}, {}
        for image_id in image_ids[:MOST_ON_A_PAGE]:
            path = self.records.paths[self._row(image_id)]
            try:
                pictures[image_id] = self.cache.make([path])[path]
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
            picture = make_thumbnail(entry.path, LARGE_PIXELS, LARGE_BYTES)
        except (OSError, ValueError) as error:
            trouble = str(error)
        near = nearest_training(*self._training, [entry], self.neighbours)[image_id]
        small = self.cache.make([other["path"] for other in near])
        shown = [other | {"picture": small[other["path"]]} for other in near]
        return {"picture": picture, "trouble": trouble, "near": shown}

    def answer_mark(self, mark: dict) -> dict:
        """``{"saved": path}``, once the mark is on the disk."""
        self._row(str(mark.get("image_id")))
        given = {one.name: str(mark.get(one.name) or "") for one in fields(Mark)}
        when = given["when"] or datetime.now(UTC).isoformat(timespec="seconds")
        save_mark(Mark(**given | {"when": when, "who": self.who, "on": int(bool(mark.get("on")))}), self.files.marks)
        return {"saved": self.files.marks.name}

    def answer_errors(self, run: str) -> dict:
        """``{"columns", "rows"}`` of the error table of one run."""
        table = error_table(self._marks(), run=run).reset_index().astype(object)
        return {"columns": list(table.columns), "rows": table.where(table.notna(), None).to_numpy().tolist()}

    def _rows(self, query: dict) -> np.ndarray:
        asked, marks = Query(**query), None
        if asked.mark:
            standing = standing_marks(self._marks())
            marks = {(run, image_id): set(own) for (who, run, image_id), own in standing.items() if who == self.who}
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

    @cached_property
    def _training(self) -> tuple:
        return read_features(self.files), self.files.read_table()


class SearchBox(AnsweringWidget):
    """The search box of an archive: free text, images like one, a file from outside.

    Raises:
        FileNotFoundError: the study has saved no index.
        ValueError: ``results`` is out of range.
    """

    _esm = read_template("dom.js", "kernel.js", "search.js")
    sheet = traitlets.Unicode(read_template("page.css", "search.css", "widget.css")).tag(sync=True)

    def __init__(self, archive: Archive, results: int = 12, thumbnail_pixels: int = 192) -> None:
        if not 1 <= results <= MOST_RESULTS:
            raise ValueError(f"results is {results}: give 1 to {MOST_RESULTS}")
        if not archive.methods:
            raise FileNotFoundError(f"{archive.files.search_index}: no search index; {NO_INDEX}")
        self.archive, self.results, self.cache = archive, results, ThumbnailCache(thumbnail_pixels)
        methods = [{"id": name, "name": METHODS[name].name, "note": METHODS[name].note} for name in archive.methods]
        captions = rows_of(archive.table, split=archive.split)["captions"]
        spread = captions.iloc[evenly_spaced(len(captions), EXAMPLES)]
        examples = list(dict.fromkeys(own[0].strip() for own in spread))
        setting = {"methods": methods, "splits": archive.splits, "split": archive.split or "", "examples": examples}
        languages = [ANY, *trained_languages(archive.files.languages), ENGLISH] if archive.has_languages else []
        setting |= {"named": language_marks(how_captions_came(archive.translations))}
        super().__init__(setting=setting | {"captions": archive.has_captioner, "languages": languages})

    def answer_search(self, text: str, method: str, split: str, language: str = ENGLISH) -> dict:
        """``{"hits", "right", "outside", "searched", "encode", "search", "language", "notes"}`` of a text; milliseconds."""
        self._warn_of_loading(method != "dual_encoder" and language in (ANY, ENGLISH))
        if language != ENGLISH and "languages" not in vars(self.archive):
            self.tell({"status": "loading the text tower of other languages …"})
        found = search_text(self.archive, text, self.results, method=method, split=split or None, language=language)
        shown = {image_id for image_id, _ in found.hits}
        told = {"language": found.language, "notes": list(found.notes)}
        return self._show(found) | {"right": len(found.right), "outside": len(found.right - shown)} | told

    def answer_similar(self, image_id: str, split: str) -> dict:
        """``{"image", "hits", ...}``: an image and those like it."""
        found = similar_images(self.archive, image_id, self.results, split=split or None)
        return self._show(found) | {"image": show_image(self.archive, self.cache, image_id)}

    def answer_drop(self, name: str, split: str, buffers: list[bytes]) -> dict:
        """``{"image", "captions", "hits", ...}``: what is said of a file, and the images like it."""
        self.tell({"status": "captioning the image …" if self.archive.has_captioner else "looking at the image …"})
        self._warn_of_loading(self.archive.has_captioner)
        said = describe_file(self.archive, buffers[0], name, self.results, split or None)
        image = {"id": name, "name": name, "label": "", "split": "from outside", "picture": said.picture}
        captions = [{"run": run, "text": text} for run, text in said.captions.items()]
        shown = {"image": image | {"references": []}, "captions": captions, "warning": said.warning}
        return self._show(said.like) | shown

    def _show(self, found: Search) -> dict:
        hits = [
            show_image(self.archive, self.cache, image_id)
            | {"score": round(score, 4), "right": image_id in found.right}
            for image_id, score in found.hits
        ]
        times = {"encode": round(1000 * found.encode_seconds, 1), "search": round(1000 * found.search_seconds, 1)}
        return {"hits": hits, "searched": found.searched} | times

    def _warn_of_loading(self, wanted: bool) -> None:
        if wanted and "captioner" not in vars(self.archive):
            self.tell({"status": "loading the captioner …"})


class DialoguePane(AnsweringWidget):
    """The chat pane of a conversation. Another cell may go on with the same conversation."""

    _esm = read_template("dom.js", "kernel.js", "dialogue.js")
    sheet = traitlets.Unicode(read_template("page.css", "search.css", "dialogue.css", "widget.css")).tag(sync=True)

    def __init__(self, talk: Conversation, archive: Archive, thumbnail_pixels: int = 192) -> None:
        self.talk, self.archive, self.cache = talk, archive, ThumbnailCache(thumbnail_pixels)
        described = [archive.table.loc[name, "captions"][0] for name in talk.image_ids[:1]]
        asked = [own["examples"][0] for own in list(talk.known.kinds.values())[:ASKED]]
        found = [f"{RETRIEVAL_PROMPTS[1]} {text}" for text in described]
        told = [code for code in talk.spoken if code in languages_read()][:1]
        foreign = [text for code in told for text in examples_in(code)[: 2 if "presence" in talk.known.kinds else 1]]
        examples = [CAPTION_PROMPTS[0], CAPTION_PROMPTS[4], *foreign, *asked, *found]
        super().__init__(setting={"limits": limits_of(talk), "examples": examples, "prompt": CAPTION_PROMPT})

    def answer_turns(self) -> list[dict]:
        """What was said so far."""
        return [self._show(turn) for turn in self.talk.turns]

    def answer_find(self, words: str) -> list[dict]:
        """Images of the archive to choose from."""
        return [show_image(self.archive, self.cache, name) for name in find_images(self.archive, words, OFFERED)]

    def answer_give(self, image_id: str) -> dict:
        """The turn that shows an image to the model."""
        show_image(self.archive, self.cache, image_id)  # an unknown one is refused before the model is loaded
        return self._show(self.talk.give_image(image_id, look_at(self.archive, image_id)))

    def answer_file(self, name: str, buffers: list[bytes]) -> dict:
        """The turn that shows an image file from outside to the model."""
        return self._show(give_file(self.talk, self.archive, buffers[0], name))

    def answer_say(self, text: str, wants: str) -> dict:
        """The model's whole turn; its words go to the page while they come. Or ``{"unclear", "offers"}``."""
        turn = None
        try:
            for turn in self.talk.ask(text, wants):
                self.tell({"words": turn.text})
        except Unclear as unclear:
            return {
                "unclear": str(unclear),
                "offers": [{"wants": wish, "text": words} for wish, words in unclear.offers],
            }
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
        shown = {"who": turn.who, "words": words_of(turn), "images": images, "note": turn.note}
        return shown | {"language": turn.language, "named": {turn.language: [language_name(turn.language)]}}
