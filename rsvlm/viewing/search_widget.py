"""The search box in a notebook: free text, images like one, a file from outside."""

import numpy as np
import traitlets

from rsvlm.viewing.answering import AnsweringWidget, widget_script, widget_style
from rsvlm.viewing.browse import Archive, Search, describe_file, search_text, similar_images, splits_of
from rsvlm.viewing.hits import show_hits, show_image, shown_captions
from rsvlm.viewing.page import METHOD_NAMES, METHOD_NOTES
from rsvlm.viewing.thumbnail_cache import ThumbnailCache

EXAMPLES = 6  # captions of the searched split offered as first queries
MOST_RESULTS = 100


class SearchBox(AnsweringWidget):
    """The search box of an archive; made by ``search_box``."""

    _esm = widget_script("search.js")
    sheet = traitlets.Unicode(widget_style("search.css")).tag(sync=True)

    def __init__(self, archive: Archive, *, results: int, cache: ThumbnailCache) -> None:
        self.archive, self.results, self.cache = archive, results, cache
        methods = [{"id": name, "name": METHOD_NAMES[name], "note": METHOD_NOTES[name]} for name in archive.methods]
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
        image = {"id": name, "name": name, "label": "", "split": "from outside", "picture": said.picture, "references": []}
        return self._show(said.like) | {"image": image, "captions": shown_captions(said.captions)}

    def _show(self, found: Search) -> dict:
        times = {"encode": round(1000 * found.encode_seconds, 1), "search": round(1000 * found.search_seconds, 1)}
        return {"hits": show_hits(self.archive, self.cache, found.hits, found.right), "searched": found.searched} | times

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
