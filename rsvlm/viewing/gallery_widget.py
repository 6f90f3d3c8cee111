"""The caption gallery in a notebook: a page of pictures at a time, marks on disk at once."""

import getpass
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pandas as pd
import traitlets

from rsvlm import paths
from rsvlm.data.table import load_table
from rsvlm.files import fingerprint_values
from rsvlm.viewing.answering import AnsweringWidget, widget_script, widget_style
from rsvlm.viewing.caption_entries import BASELINES
from rsvlm.viewing.gallery_data import copied_captions, gallery_item, gallery_setting
from rsvlm.viewing.marks import KINDS, Mark, error_table, marks_of, now, read_marks, save_mark, standing_marks
from rsvlm.viewing.neighbours import TrainingImages, nearest_training, open_training_images
from rsvlm.viewing.records import Query, Records, draw_order, select_rows
from rsvlm.viewing.records_cache import open_records
from rsvlm.viewing.thumbnail_cache import ThumbnailCache
from rsvlm.viewing.thumbnails import make_thumbnail

LARGE_PIXELS, LARGE_BYTES = 1_024, 400_000  # the enlarged picture
MOST_ON_A_PAGE = 200


class CaptionGallery(AnsweringWidget):
    """The gallery of some records; made by ``caption_gallery``."""

    _esm = widget_script("gallery.js", "gallery_widget.js")
    sheet = traitlets.Unicode(widget_style("gallery.css")).tag(sync=True)

    def __init__(
        self, records: Records, *, who: str, neighbours: int, seed: int, cache: ThumbnailCache, **more: object
    ) -> None:
        run = records.runs[0]
        others = [*(name for name in BASELINES if name in records.runs), *records.runs]
        rival = next((name for name in others if name != run), None)
        setting = gallery_setting(records, run=run, rival=rival, **more)
        study = fingerprint_values(str(paths.ROOT))[:12]
        super().__init__(setting=setting | {"marks": True, "kinds": list(KINDS), "study": study})
        self.records, self.who, self.neighbours, self.cache = records, who, neighbours, cache
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
        save_mark(made)
        return {"saved": paths.MARKS.name}

    def answer_errors(self, run: str) -> dict:
        """``{"columns", "rows"}`` of the error table of one run."""
        table = error_table(self._marks(), run=run).reset_index()
        rows = [[None if isinstance(cell, float) and np.isnan(cell) else cell for cell in row] for row in table.to_numpy(object).tolist()]
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
        stat = paths.MARKS.stat() if paths.MARKS.is_file() else None
        state = stat and (stat.st_size, stat.st_mtime_ns)
        if state != self._marks_read[0]:
            self._marks_read = (state, read_marks())
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
        table = load_table(paths.IMAGE_TABLE)
        return open_training_images(table), table.set_index("image_id")


def caption_gallery(
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
    records = open_records(runs, split=split, references=references)
    return CaptionGallery(
        records, who=who.strip() or getpass.getuser(), neighbours=neighbours, seed=seed, metric=metric,
        size=page_size, cache=ThumbnailCache(thumbnail_pixels),
    )  # fmt: skip
