"""Talking with the captioner: text and images in any order; it answers with words and, by ``[RET]``, with images."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from rsvlm.kernels import similarity_topk
from rsvlm.models.capret import CapRet
from rsvlm.models.generation import start_rows
from rsvlm.models.prompts import VISUAL, VisualInput


@dataclass(frozen=True)
class Turn:
    """What one side gave: text, images (found ones best first, with their cosines), or both."""

    who: str  # "you" or "model"
    text: str = ""
    image_ids: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    asked_for_images: bool = False
    cut_off: bool = False  # it would have gone on


@dataclass
class Conversation:
    """A dialogue that goes on: each answer is made from everything that was given and said before.

    Args:
        captioner: as ``load_capret`` gives it.
        image_ids, image_embeddings: the images that ``[RET]`` can find, (n, R) as ``embed_images_ret`` gives them.
        look: what the model is given of an image that was found, so that a follow-up can be about the first of them.
        images: brought by a ``[RET]``.
        max_new_tokens: longest answer.
        ret_bias: added to the logit of ``[RET]``: higher values bring images sooner.
        no_repeat: no run of so many tokens comes twice in an answer: small models run in circles. 0: it may.
    """

    captioner: CapRet
    image_ids: Sequence[str] = ()
    image_embeddings: np.ndarray | None = None
    look: Callable[[str], Sequence[str | VisualInput]] | None = None
    images: int = 3
    max_new_tokens: int = 40
    ret_bias: float = 0.0
    no_repeat: int = 3
    turns: list[Turn] = field(default_factory=list)
    _history: list[str | VisualInput] = field(default_factory=list, repr=False)

    def give_image(self, image_id: str, seen: Sequence[str | VisualInput]) -> Turn:
        """The turn that shows an image to the model, with what it is told of it."""
        self._history += seen
        self.turns.append(Turn("you", image_ids=(image_id,)))
        return self.turns[-1]

    def ask(self, text: str) -> Iterator[Turn]:
        """The model's turn, again and again while it grows, the whole one last; it is kept even when cut short.

        Raises:
            ValueError: there is nothing to reply to, or the dialogue is longer than the model reads; the text is then
                not part of the dialogue.
        """
        words = text.strip()
        history = [*self._history, words] if words else list(self._history)
        answers = self.stream(history)
        said = next(answers)  # a dialogue that is too long is refused here, before anything is kept
        self._history = history
        if words:
            self.turns.append(Turn("you", words))
        self.turns.append(said)
        try:
            yield said
            for said in answers:
                self.turns[-1] = said
                yield said
        finally:
            if said.text:
                self._history.append(said.text)
            if said.image_ids and self.look is not None:
                self._history += self.look(said.image_ids[0])

    def stream(self, history: Sequence[str | VisualInput]) -> Iterator[Turn]:
        """The model's answer to a history, greedily decoded, word by word; the last one is whole. Nothing is kept.

        When ``[RET]`` comes, the answer ends and the images nearest to it in the retrieval space are found.

        Args:
            history: texts and images in order; an image is a ``VisualInput`` of one image (``read_visual`` of one row).

        Raises:
            ValueError: an empty history, one that is longer than the model reads, or numbers of ids and embeddings that
                differ.
        """
        captioner, n_images = self.captioner, 0 if self.image_embeddings is None else len(self.image_embeddings)
        if n_images != len(self.image_ids):
            raise ValueError(f"{len(self.image_ids)} image_ids for {n_images} image_embeddings: expected as many")
        with torch.inference_mode():
            rows = start_rows(captioner, *_read_history(captioner, history, self.max_new_tokens))
        words: list[int] = []
        for _ in range(self.max_new_tokens):
            with torch.inference_mode():
                log_probabilities = rows.log_probabilities(self.ret_bias)
                log_probabilities[:, _would_repeat(words, self.no_repeat)] = -torch.inf
                token = log_probabilities.argmax(-1)
                if token.item() == captioner.eos_id:
                    break
                rows.advance(token)
                asked = token.item() == captioner.ret_id
                query = captioner.embed_ret(rows.hidden).cpu() if asked and n_images else None
            if asked:
                answer = Turn("model", captioner.decode_text(words), asked_for_images=True)
                if query is not None:
                    scores, found = similarity_topk(query, self.image_embeddings, min(self.images, n_images))
                    ids = tuple(self.image_ids[i] for i in found[0].tolist())
                    answer = replace(answer, image_ids=ids, scores=tuple(scores[0].tolist()))
                yield answer
                return
            words.append(token.item())
            yield Turn("model", captioner.decode_text(words))
        yield Turn("model", captioner.decode_text(words), cut_off=len(words) == self.max_new_tokens)

    def start_afresh(self) -> None:
        """Forget everything."""
        self.turns.clear()
        self._history.clear()


def context_length(captioner: CapRet) -> int:
    """How many tokens the language model reads at most."""
    return int(captioner.language_model.config.max_position_embeddings)


@torch.inference_mode()
def _read_history(
    captioner: CapRet, history: Sequence[str | VisualInput], max_new_tokens: int
) -> tuple[list[list[int]], torch.Tensor | None]:
    """The one prefix (token ids, ``VISUAL`` for each visual token) and the visual tokens."""
    prefix, visual = list(captioner.start_ids), []
    for turn in history:
        if isinstance(turn, str):
            prefix += captioner.encode_text([turn.strip()])[0] if turn.strip() else []
            continue
        tokens = captioner.visual_tokens(turn.pooled, turn.grid)
        if len(tokens) != 1:
            raise ValueError(f"an image of the history holds {len(tokens)} images: give each as a turn of its own")
        visual.append(tokens[0])
        prefix += [VISUAL] * len(tokens[0])
    if len(prefix) == len(captioner.start_ids):
        raise ValueError("the history holds neither text nor image: there is nothing to reply to")
    longest = context_length(captioner)
    if len(prefix) + max_new_tokens > longest:
        raise ValueError(
            f"the dialogue takes {len(prefix)} tokens and its answer up to {max_new_tokens}, the language model reads "
            f"{longest}: start afresh, or say less"
        )
    return [prefix], torch.cat(visual) if visual else None


def _would_repeat(words: Sequence[int], length: int) -> list[int]:
    """The tokens that would end a run of ``length`` tokens which has come before."""
    if length < 1 or len(words) < length - 1:
        return []
    last = list(words[len(words) - length + 1 :])
    return [
        words[start + length - 1]
        for start in range(len(words) - length + 1)
        if list(words[start : start + length - 1]) == last
    ]
