"""The dialogue pane in a notebook: images and text to the captioner, its answers as they are made."""

import traitlets

from rsvlm import paths
from rsvlm.models.dialogue import Conversation, Turn
from rsvlm.models.prompts import CAPTION_PROMPT, CAPTION_PROMPTS, RETRIEVAL_PROMPTS
from rsvlm.viewing.answering import AnsweringWidget, widget_script, widget_style
from rsvlm.viewing.browse import Archive
from rsvlm.viewing.dialogue_pages import export_dialogue, limits_of, look_at, words_of
from rsvlm.viewing.hits import find_images, show_image
from rsvlm.viewing.thumbnail_cache import ThumbnailCache

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
        made = export_dialogue(self.talk.turns, self.archive)
        return {"path": (made / "dialogue.md").relative_to(paths.ROOT).as_posix()}

    def _show(self, turn: Turn) -> dict:
        images = [show_image(self.archive, self.cache, image_id) for image_id in turn.image_ids]
        for image, score in zip(images, turn.scores, strict=False):
            image["score"] = round(score, 4)
        return {"who": turn.who, "words": words_of(turn), "images": images}


def dialogue_pane(talk: Conversation, archive: Archive, thumbnail_pixels: int = 192) -> DialoguePane:
    """The chat pane of a conversation, ready to be shown by a notebook."""
    return DialoguePane(talk, archive, cache=ThumbnailCache(thumbnail_pixels))
