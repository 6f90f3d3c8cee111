"""Talking with the captioner: text and images in any order; it answers with words and, by ``[RET]``, with images.

Training taught it two wishes: words for one image, and images for one description; and a third where it had instructions:
their answers. All are read as in training: the last image and the text, or the description alone. Which of them a text
asks for is said by the person or guessed (``guess_wish``, and for instructions the likeness to those of training); what is
none of them is refused with what there is instead (``Unclear``). A description in another language than English comes from
the captioner where instructions taught it that language, else from the captions of the nearest training images in it
(``rsvlm.models.neighbours.consensus_captions``), and its note says so. Questions and searches in another language are read
by rule as those of training (``rsvlm.models.foreign_wishes``). ``free`` gives the model the whole
dialogue and lets it answer with words or ``[RET]``: the method's promise, for which nothing in training prepares it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from rsvlm.data.caption_languages import ENGLISH
from rsvlm.data.task_files import TWO_IMAGES
from rsvlm.kernels import similarity_topk
from rsvlm.languages import check_language, language_name
from rsvlm.models.answering import CANNOT_TELL, answer_margin, is_uncertain
from rsvlm.models.capret import ANCHOR, CapRet
from rsvlm.models.foreign_wishes import (
    FORMED,
    ForeignWish,
    can_ask,
    cannot_tell,
    foreign_language,
    read_formed,
    read_wish,
    say_answer,
    search_wish,
)
from rsvlm.models.generation import embed_captions_ret, start_rows
from rsvlm.models.instructions import LANGUAGE_KIND, LIKE, SURE, KnownInstructions, as_instruction
from rsvlm.models.neighbours import Spoken, consensus_captions, pool_options
from rsvlm.models.prompts import CAPTION_PROMPT, VISUAL, VisualInput
from rsvlm.models.wishes import DESCRIBE, IMAGES, WORDS, asked_languages, guess_wish

ANSWER, FREE, AUTO = "answer", "free", "auto"
CAN_DO = "The model was trained for two things: to describe an image, and to find images for a description."
CAN_ANSWER = (
    "The model was trained for three things: to describe an image, to answer instructions like those of training about it, "
    "and to find images for a description."
)
UNLIKE = "Training had no instruction like this: take the answer as a guess."
BY_NEIGHBOURS = (
    "No model wrote this: of the captions of the most similar training images in {language} ({how}) it is the one that the "
    "others agree with best."
)
UNTRAINED = "The model was not trained to answer this: take its words as a caption, not as an answer."


class Unclear(ValueError):
    """A text that was not given to the model; the message says why.

    Attributes:
        offers: (wish, text) that it can be asked instead.
    """

    def __init__(self, message: str, offers: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.offers = list(offers)


@dataclass(frozen=True)
class Seen:
    """What the model is given of an image, and what a person is to be told beside its words."""

    parts: tuple[str | VisualInput, ...]
    warning: str = ""
    upright: VisualInput | None = None  # of the image, for instructions; None: the first one of ``parts``
    vector: np.ndarray | None = None  # (1, D) in the encoder's space, to find captions of similar images by
    image_id: str = ""  # of an image that may be a training one, which is not similar to itself
    told: str = ""  # neighbours' captions, which instructions stand behind; blank: they stand alone

    @property
    def image(self) -> VisualInput:
        """What the model is given with an instruction."""
        return self.upright or next(part for part in self.parts if not isinstance(part, str))

    @property
    def before_instruction(self) -> list[str | VisualInput]:
        """What an instruction stands behind."""
        return [self.image, self.told] if self.told else [self.image]


@dataclass(frozen=True)
class Turn:
    """What one side gave: text, images (found ones best first, with their cosines), or both."""

    who: str  # "you" or "model"
    text: str = ""
    image_ids: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    asked_for_images: bool = False
    cut_off: bool = False  # it would have gone on
    note: str = ""  # what a person is to be told beside it
    language: str = ENGLISH  # code of the model's words


@dataclass
class Conversation:
    """A dialogue that goes on.

    Args:
        captioner: as ``load_capret`` gives it.
        image_ids, image_embeddings: the images that ``[RET]`` can find, (n, R) as ``embed_images_ret`` gives them.
        look: what the model is given of an image that was found, so that a follow-up can be about the first of them.
        images: brought by a ``[RET]``.
        max_new_tokens: longest answer.
        ret_bias: added to the logit of ``[RET]`` where the model is free to choose: higher values bring images sooner.
        no_repeat: no run of so many tokens comes twice in an answer: small models run in circles. 0: it may.
        tell_from: smallest margin, nats, from which an answer that is one of few is told (see ``rsvlm.answer``); below,
            CANNOT_TELL is. None: all are told.
        spoken: language -> training images with captions in it, as ``spoken_languages`` gives them.
        search: finds images by a description in another language, which ``[RET]`` does not read: (description, language)
            -> (image ids, their scores, what is to be said). None: such a description is searched by the thing it names.
    """

    captioner: CapRet
    image_ids: Sequence[str] = ()
    image_embeddings: np.ndarray | None = None
    look: Callable[[str], Seen] | None = None
    images: int = 3
    max_new_tokens: int = 40
    ret_bias: float = 0.0
    no_repeat: int = 3
    tell_from: float | None = None
    spoken: Mapping[str, Spoken] = field(default_factory=dict)
    search: Callable[[str, str], tuple[Sequence[str], Sequence[float], str]] | None = None
    turns: list[Turn] = field(default_factory=list)
    _history: list[str | VisualInput] = field(default_factory=list, repr=False)
    _seen: Seen | None = field(default=None, repr=False)  # the last image

    def give_image(self, image_id: str, seen: Seen) -> Turn:
        """The turn that shows an image to the model."""
        self._see(seen)
        self.turns.append(Turn("you", image_ids=(image_id,), note=seen.warning))
        return self.turns[-1]

    def ask(self, text: str, wants: str = AUTO, language: str | None = None) -> Iterator[Turn]:
        """The model's turn, again and again while it grows, the whole one last; it is kept even when cut short.

        Args:
            text: with ``words``, blank stands for "Caption:", the prompt of training.
            wants: ``words`` (never answered with images), ``images`` (never with words), ``answer`` (the text alone is the
                instruction), ``free``, or ``auto``: ``answer`` where the text is like an instruction of training, else
                what ``guess_wish`` makes of it.
            language: code of the text's, and of the words that answer it; a text that no rule reads in it, and none, ask
                for a description. None: the one that the text names or is in (``asked_languages``, ``read_wish``).

        Raises:
            Unclear: the text does not say what it asks for, or there is no image to describe, or nothing to search by, or
                nothing writes the language.
            ValueError: there is nothing to reply to, or the dialogue is longer than the model reads. The text is then
                not part of the dialogue, nor is it where it is unclear.
        """
        text, answers = self._answers(text.strip(), wants, language)
        said = next(answers)  # what is too long is refused here, before anything is kept
        if text:
            self._history.append(text)
            self.turns.append(Turn("you", text))
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
                self._see(self.look(said.image_ids[0]))

    @property
    def known(self) -> KnownInstructions:
        """What the captioner was trained to answer."""
        return KnownInstructions.of(self.captioner)

    def stream(
        self, history: Sequence[str | VisualInput], *, words_only: bool = False, plain: bool = False
    ) -> Iterator[Turn]:
        """The model's answer to a history, greedily decoded, word by word; the last one is whole. Nothing is kept.

        It begins with a word, never with its end or a full stop. When ``[RET]`` comes, the answer ends and the images
        nearest to it in the retrieval space are found.

        Args:
            history: texts and images in order; an image is a ``VisualInput`` of one image (``read_visual`` of one row).
            words_only: ``[RET]`` cannot come.
            plain: what is likeliest, as answers to instructions are: JSON begins with a brace and repeats itself.

        Raises:
            ValueError: an empty history, one that is longer than the model reads, or numbers of ids and embeddings that
                differ.
        """
        captioner = self.captioner
        self._check_images()
        with torch.inference_mode():
            rows = start_rows(captioner, *_read_history(captioner, history, self.max_new_tokens))
        words: list[int] = []
        for _ in range(self.max_new_tokens):
            with torch.inference_mode():
                log_probabilities = rows.log_probabilities(None if words_only else self.ret_bias)
                log_probabilities[:, _would_repeat(words, 0 if plain else self.no_repeat)] = -torch.inf
                likeliest = words or plain
                token = log_probabilities.argmax(-1) if likeliest else _first_token(captioner, log_probabilities)
                if token.item() == captioner.eos_id:
                    break
                rows.advance(token)
                asked = token.item() == captioner.ret_id
                query = captioner.embed_ret(rows.hidden).cpu() if asked else None
            if asked:
                yield self._found(query, captioner.decode_text(words))
                return
            words.append(token.item())
            yield Turn("model", captioner.decode_text(words))
        yield Turn("model", captioner.decode_text(words), cut_off=len(words) == self.max_new_tokens)

    def find(self, description: str) -> Turn:
        """The images nearest to ``description [RET]``, read as in training: alone. Raises as ``stream``."""
        self._check_images()
        _check_length(self.captioner, len(self.captioner.encode_text([description])[0]), 1)
        return self._found(embed_captions_ret(self.captioner, [description]))

    def _answers(self, text: str, wants: str, language: str | None) -> tuple[str, Iterator[Turn]]:
        """(the text that is kept, the turns that answer it)."""
        if wants not in (WORDS, IMAGES, ANSWER, FREE, AUTO):
            raise ValueError(f"wants is {wants!r}: give {WORDS}, {IMAGES}, {ANSWER}, {FREE} or {AUTO}")
        guessed, description = guess_wish(text) if text else (WORDS if self._seen else None, "")
        foreign = None
        if language is not None:
            if wants not in (WORDS, AUTO) or guessed == IMAGES:
                raise ValueError("language: of a description; leave it out where images or an answer are wanted")
            asked = (check_language(language, "language"),)
            foreign = read_wish(text, language) if wants == AUTO else None
            if foreign and foreign.kind in FORMED and foreign.kind not in self.known.kinds:
                foreign = None
        else:
            foreign = read_formed(text, self.known.kinds) if wants == AUTO and guessed is None else None
            asked = asked_languages(text) if wants in (WORDS, AUTO) and guessed is None and not foreign else ()
        if asked and asked != (ENGLISH,) and not foreign:
            return text or DESCRIBE.format(language=language_name(asked[0])), self._describe_in(text, asked)
        prompt = text or CAPTION_PROMPT
        if asked and not foreign:  # in English, by words of another language
            wants, guessed, prompt = WORDS, WORDS, CAPTION_PROMPT
        kind, like = self.known.recognise(text)
        if foreign is None and guessed is None and not asked and wants in (ANSWER, AUTO):
            foreign = read_wish(text)
        elif foreign is None and wants == IMAGES and guessed is None:
            foreign = search_wish(text)
        if foreign:
            return text, self._answer_foreign(foreign)
        is_known = like >= (LIKE if guessed is None else SURE) and guessed != WORDS
        wish = wants if wants != AUTO else ANSWER if is_known else guessed
        describe = [(WORDS, "")] if self._seen else []
        if wish is None:
            can_do = CAN_ANSWER if self.known.kinds else CAN_DO
            if text and (code := foreign_language(text)):
                raise Unclear(can_ask(code), describe)
            answer = [(ANSWER, text)] if text and self.known.kinds and self._seen else []
            anyway = [(IMAGES, text), (FREE, text)] if text else []
            raise Unclear(f"{can_do} The text does not tell which of them it asks for.", [*describe, *answer, *anyway])
        if wish == ANSWER:
            if not self.known.kinds:
                raise Unclear("The model was not trained with instructions.", describe)
            if self._seen is None or not text:
                what = "an instruction" if self._seen else "an image to answer about"
                raise Unclear(f"There is not {what} yet: give one first.", describe)
            if kind == TWO_IMAGES and like >= LIKE and wants == AUTO:
                about = "This seems to compare two images, and the dialogue is about one: rsvlm.answer takes a second."
                raise Unclear(about, [*describe, (ANSWER, text)])
            return text, self._instructed(text, kind if like >= LIKE else None)
        if wish == FREE:
            answers = self.stream([*self._history, text] if text else self._history)
            return text, (replace(turn, note=UNTRAINED) for turn in answers)
        if wish == IMAGES:
            description = description if guessed == IMAGES else text
            if not description:
                said = next((turn.text for turn in reversed(self.turns) if turn.who == "model" and turn.text), "")
                same = [(IMAGES, said)] if said else []
                raise Unclear("Say what the images are to show: they are found by a description.", same)
            return text, iter([self.find(description)])
        if self._seen is None:
            raise Unclear("There is no image to describe yet: give one first.", [(IMAGES, text)] if text else [])
        notes = [self._seen.warning, UNTRAINED if guessed != WORDS else ""]
        answers = self.stream([*self._seen.parts, prompt], words_only=True)
        return text or prompt, (replace(turn, note=" ".join(filter(None, notes))) for turn in answers)

    def _describe_in(self, text: str, asked: Sequence[str]) -> Iterator[Turn]:
        """The turns that describe the last image in one of some languages, the first that can be written."""
        if self._seen is None:
            raise Unclear("There is no image to describe yet: give one first.")
        trained, seen = self.known.languages, self._seen
        spoken = self.spoken if seen.vector is not None else {}
        language = next((code for code in asked if code in trained or code in spoken), None)
        if language is None:
            names = [language_name(code) for code in asked]
            can = sorted(language_name(code) for code in {ENGLISH, *trained, *spoken})
            raise Unclear(
                f"I can't write {' or '.join(names)}: nothing was trained in it, and no training image has captions in it. I can "
                f"write {', '.join(can)}.",
                [(WORDS, "")],
            )
        if language in trained:
            turns = self._instructed(text or DESCRIBE.format(language=language_name(language)), LANGUAGE_KIND)
            return (replace(turn, language=language) for turn in turns)
        own, options = spoken[language], pool_options(self.captioner.config.get("prompting") or {})
        (said,) = consensus_captions(own.memory, seen.vector, [seen.image_id], **options).values()
        notes = [BY_NEIGHBOURS.format(language=language_name(language), how=own.how), seen.warning]
        return iter([Turn("model", said, note=" ".join(filter(None, notes)), language=language)])

    def _answer_foreign(self, wish: ForeignWish) -> Iterator[Turn]:
        """The turn that answers a question or a search in another language, read as the English one of training."""
        if wish.kind == IMAGES:
            yield self._find_foreign(wish)
            return
        if wish.kind not in self.known.kinds:
            raise Unclear(
                f"I read this as “{wish.instruction}”, which the model was not trained to answer.",
                [(WORDS, "")] if self._seen else [],
            )
        if self._seen is None:
            raise Unclear("There is not an image to answer about yet: give one first.")
        *_, said = self._instructed(wish.instruction, wish.kind)
        told, note = cannot_tell(wish.language), f"Read as “{wish.instruction}”."
        if said.text != CANNOT_TELL:
            told, note = say_answer(said.text, wish), f"Read as “{wish.instruction}”, answered “{said.text}”."
        spoken = wish.language if said.text == CANNOT_TELL else wish.answer_language
        yield replace(said, text=told, note=" ".join(filter(None, [note, said.note])), language=spoken)

    def _find_foreign(self, wish: ForeignWish) -> Turn:
        """The turn that brings images for a description in another language."""
        if self.search is not None:
            ids, scores, note = self.search(wish.description, wish.language)
            return Turn("model", "", tuple(ids), tuple(scores), asked_for_images=True, note=note)
        name = language_name(wish.language)
        if not wish.instruction:
            raise Unclear(
                f"[RET] reads English alone, and nothing here reads {name}: name one thing that the closed list has in "
                "it, or say it in English.",
            )
        return replace(
            self.find(wish.instruction), note=f"[RET] reads English alone: searched as “{wish.instruction}”."
        )

    def _instructed(self, text: str, kind: str | None) -> Iterator[Turn]:
        """The turns that answer an instruction about the last image; CANNOT_TELL at once where it is too uncertain."""
        text, seen, choices = as_instruction(text), self._seen, self.known.choices(kind)
        note = " ".join(filter(None, [seen.warning, "" if kind else UNLIKE]))
        turns = self.stream([*seen.before_instruction, text], words_only=True, plain=True)
        if not choices or self.tell_from is None:
            yield from (replace(turn, note=note) for turn in turns)
            return
        *_, said = turns
        (prefix,), visual = _read_history(self.captioner, [*seen.before_instruction, text], self.max_new_tokens)
        margin = answer_margin(self.captioner, prefix, visual[None], said.text, choices)
        if is_uncertain(margin, self.tell_from):
            than = "likelier than other answers" if margin >= 0 else "less likely than another answer"
            why = f"“{said.text}” is {than} by {abs(margin):.2f} nats; told from {self.tell_from:.2f}."
            said, note = replace(said, text=CANNOT_TELL, cut_off=False), " ".join(filter(None, [why, note]))
        yield replace(said, note=note)

    def _see(self, seen: Seen) -> None:
        self._history += seen.parts
        self._seen = seen

    def _found(self, query: np.ndarray | torch.Tensor, text: str = "") -> Turn:
        """The turn that brings the images nearest to a query (1, R)."""
        answer = Turn("model", text, asked_for_images=True)
        if not len(self.image_ids):
            return answer
        scores, found = similarity_topk(query, self.image_embeddings, min(self.images, len(self.image_ids)))
        ids = tuple(self.image_ids[place] for place in found[0].tolist())
        return replace(answer, image_ids=ids, scores=tuple(scores[0].tolist()))

    def _check_images(self) -> None:
        n_images = 0 if self.image_embeddings is None else len(self.image_embeddings)
        if n_images != len(self.image_ids):
            raise ValueError(f"{len(self.image_ids)} image_ids for {n_images} image_embeddings: expected as many")

    def start_afresh(self) -> None:
        """Forget everything."""
        self.turns.clear()
        self._history.clear()
        self._seen = None


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
    _check_length(captioner, len(prefix), max_new_tokens)
    return [prefix], torch.cat(visual) if visual else None


def _check_length(captioner: CapRet, tokens: int, max_new_tokens: int) -> None:
    longest = context_length(captioner)
    if tokens + max_new_tokens > longest:
        raise ValueError(
            f"what is read takes {tokens} tokens and its answer up to {max_new_tokens}, the language model reads "
            f"{longest}: start afresh, or say less"
        )


def _first_token(captioner: CapRet, log_probabilities: torch.Tensor) -> torch.Tensor:
    """(1,) the likeliest token that begins a word, or ``[RET]`` where that is likelier."""
    anchor = captioner.tokenizer(ANCHOR, add_special_tokens=False).input_ids
    for token in log_probabilities[0].argsort(descending=True):
        if log_probabilities[0, token] == -torch.inf:
            break
        if token == captioner.ret_id:
            return token[None]
        piece = captioner.tokenizer.decode([*anchor, token.item()], skip_special_tokens=True).removeprefix(ANCHOR)
        if piece[:1].isspace() and piece.strip()[:1].isalnum():
            return token[None]
    return log_probabilities.argmax(-1)


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
