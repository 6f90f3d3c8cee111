"""Answers to instructions: of many tasks in batches, of one image, or none where they are too uncertain.

An instruction stands behind the upright image, alone or behind its neighbours' captions, as in training. Beside its answer stands what the captioner thinks of it: the
log-probability a token, and for questions whose answers training knew by heart (yes or no, a number, a place) the margin,
by how much the answer given is likelier than the likeliest other one.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from PIL import Image

from rsvlm.data.caption_languages import ENGLISH
from rsvlm.data.task_files import TWO_IMAGES
from rsvlm.files import fingerprint_values, read_json_lines, write_json_lines
from rsvlm.languages import check_language, language_name
from rsvlm.models.ablation import blank_features
from rsvlm.models.capret import CapRet
from rsvlm.models.features import Features
from rsvlm.models.foreign_wishes import (
    FORMED,
    ForeignWish,
    can_ask,
    cannot_tell,
    foreign_language,
    read_formed,
    read_wish,
    say_answer,
)
from rsvlm.models.generation import Hypothesis, Prompted, row_log_likelihoods, search_beams
from rsvlm.models.inference import Captioner, training_distances
from rsvlm.models.instructions import LANGUAGE_KIND, LIKE, SURE, KnownInstructions, as_instruction
from rsvlm.models.neighbours import told_with_instructions
from rsvlm.models.pictures import Picture, read_picture
from rsvlm.models.prompts import Row
from rsvlm.models.wishes import IMAGES, asked_languages

CANNOT_TELL = "I can't tell."
ABSTENTION = "abstention.json"  # of a study's answers: ``tell_from``, see ``answer``
BLOCK = 256  # tasks answered between two checkpoints
COLUMNS = ("answer", "log_probability", "margin", "cut_off")


def answer_tasks(
    captioner: CapRet,
    features: Features,
    image_ids: Sequence[str],
    instructions: Sequence[str],
    *,
    seconds: Sequence[str | None] | None = None,
    near: Mapping[str, Sequence[str]] | None = None,
    choices: Sequence[Sequence[str]] | None = None,
    margins: bool = True,
    max_new_tokens: int = 40,
    batch_size: int = 32,
    checkpoints: Path | None = None,
) -> pd.DataFrame:
    """A row an instruction, in order, with COLUMNS: greedy answers.

    ``log_probability`` is the mean a token, its end included; ``margin`` the log-probability of the answer less that of
    the likeliest other one of its choices, NaN where it has none; ``cut_off`` says that it would have gone on.

    Args:
        image_ids: the image of each instruction, a row of ``features``.
        seconds: the second image of each instruction that is about two, None of the others; None: none is.
        near: image id -> the neighbours' captions that instructions about it stand behind, as training had them; none
            for images that it lacks.
        choices: the answers that each instruction's is one of; none for one whose answer is free.
        margins: whether to measure them, which takes a pass over all choices.
        checkpoints: folder that keeps what was answered, BLOCK tasks a file, so that a call that was killed goes on;
            the caller removes it. A folder per set of features.

    Raises:
        ValueError: other numbers of images, instructions, second images and choices, or an image without features.
    """
    choices = [()] * len(image_ids) if choices is None else choices
    seconds, near = [None] * len(image_ids) if seconds is None else seconds, near or {}
    if not len(image_ids) == len(instructions) == len(choices) == len(seconds):
        raise ValueError(
            f"{len(image_ids)} images, {len(instructions)} instructions and {len(choices)} lists of choices, "
            f"{len(seconds)} second images or none"
        )
    lengths = [len(ids) for ids in captioner.encode_text(list(instructions))]
    # Those of few words apart from the others: a batch takes as many steps as its longest answer
    order = sorted(range(len(lengths)), key=lambda place: (not len(choices[place]), lengths[place], place))
    closed = sum(map(bool, choices))
    starts = [*range(0, closed, BLOCK), *range(closed, len(order), BLOCK)]
    how = {"margins": margins, "max_new_tokens": max_new_tokens, "batch_size": batch_size}
    if checkpoints is not None:
        told = {image_id: list(own) for image_id, own in near.items()}
        given = [
            list(image_ids),
            list(instructions),
            [list(own) for own in choices],
            how,
            features.meta,
            list(seconds),
            told,
        ]
        checkpoints = checkpoints / fingerprint_values(captioner.config, _fingerprint(captioner), *given)[:16]
    answered: dict[int, dict] = {}
    for number, start in enumerate(starts):
        places = order[start : (*starts, len(order))[number + 1]]
        kept = checkpoints / f"block_{number:05}.jsonl" if checkpoints is not None else None
        if kept is None or not kept.is_file():
            ids, texts, others = ([column[i] for i in places] for column in (image_ids, instructions, seconds))
            first, second = ([near.get(one or "", ()) for one in own] for own in (ids, others))
            asked = Prompted(captioner, features, ids, texts, first, seconds=others, second_neighbours=second)
            rows = _answer(asked, [list(choices[i]) if margins else [] for i in places], max_new_tokens, batch_size)
            if kept is not None:
                kept.parent.mkdir(parents=True, exist_ok=True)
                write_json_lines(kept, rows)
        else:
            rows = read_json_lines(kept)
        answered |= dict(zip(places, rows, strict=True))
    table = pd.DataFrame([answered[place] for place in range(len(order))], columns=list(COLUMNS))
    return table.astype({"log_probability": float, "margin": float, "cut_off": bool})


def answer_blind(
    captioner: CapRet,
    features: Features,
    instructions: Sequence[str],
    *,
    seconds: Sequence[str | None] | None = None,
    choices: Sequence[Sequence[str]] | None = None,
    **options: object,
) -> pd.DataFrame:
    """What ``answer_tasks`` gives without an image: all features stand at their training mean, and it has no neighbours.

    Equal instructions about as many images have equal answers and are asked once.

    Args:
        features: any of the captioner's; only their shape counts.
        seconds: as for ``answer_tasks``; only which instructions have one counts.
        choices: as for ``answer_tasks``; those of an instruction's first occurrence count.
        options: of ``answer_tasks``.
    """
    blank = blank_features(captioner, features, ["blank"])
    given = choices or [()] * len(instructions)
    of_two = ["blank" if second else None for second in seconds or [None] * len(instructions)]
    asked = list(zip(instructions, of_two, strict=True))
    different = dict(zip(reversed(asked), reversed(given), strict=True))
    ids, texts, others = ["blank"] * len(different), [text for text, _ in different], [other for _, other in different]
    answers = answer_tasks(captioner, blank, ids, texts, seconds=others, choices=list(different.values()), **options)
    row_of = {one: row for row, one in enumerate(different)}
    return answers.iloc[[row_of[one] for one in asked]].reset_index(drop=True)


@torch.inference_mode()
def answer_margin(
    captioner: CapRet, prefix: Sequence[int], visual: torch.Tensor, answer: str, choices: Sequence[str]
) -> float | None:
    """By how much an answer to a prefix (visual tokens (1, n, H)) is likelier than the likeliest other choice, nats."""
    return _margins(captioner, [list(prefix)], visual, [answer], [list(choices)])[0]


@dataclass(frozen=True)
class Answer:
    """What a captioner says to an instruction about an image.

    Attributes:
        text: the answer, CANNOT_TELL where it is too uncertain.
        said: the likeliest answer, in either case.
        log_probability: mean a token of ``said``, natural.
        margin: by how many nats ``said`` is likelier than the likeliest other choice; None where answers are free.
        kind: of the known instruction that the text is most like; None: it is like none that training had, and the
            answer is a guess.
        cut_off: whether it would have gone on.
        warning: what to tell a person beside it: an image unlike anything in training; mostly nothing.
        language: code of ``text``'s; ``said`` is English where a question in another language was read by rule.
        asked: the instruction that the captioner was given; another than the text where that was read by rule.
    """

    text: str
    said: str
    log_probability: float
    margin: float | None
    kind: str | None
    cut_off: bool
    warning: str = ""
    language: str = ENGLISH
    asked: str = ""

    def __str__(self) -> str:
        return self.text


def answer(
    captioner: Captioner,
    image: Picture | Image.Image,
    instruction: str,
    *,
    second: Picture | Image.Image | None = None,
    language: str | None = None,
    max_new_tokens: int = 40,
    tell_from: float | None = None,
) -> Answer:
    """The captioner's answer to an instruction about an image, or about two.

    Args:
        captioner: as ``load_captioner`` gives it, trained with instructions (``instruction_share``).
        image: a path, a PIL image or an array ((H, W) or (H, W, 3) uint8).
        instruction: such as "Is there a river?". In Portuguese, Spanish, French, German and Chinese a description, where
            the captioner was taught the language, and questions such as "Há um rio?", read by rule
            (``rsvlm.models.foreign_wishes``); their answers are in the language, but for JSON and those in at most so many
            words, which are in English.
        second: a second image, like the first, for an instruction that compares two ("Which image has more airplanes?").
        language: code of the instruction's; None: it is told by its words.
        max_new_tokens: longest answer.
        tell_from: smallest margin, nats, from which an answer that is one of few is told; below, CANNOT_TELL is. The stage
            score_instructions finds it on validation images (data/answers/abstention.json). None: all are told.

    Raises:
        ValueError: a blank instruction, one that is longer than the language model reads, one in another language that no
            rule reads or that asks for words that the captioner was not taught, a captioner that was not trained to
            answer, or not to compare two images where there are two, or a comparison of two where there is one.
        FileNotFoundError, rsvlm.data.images.ImageError: no such image, or none that can be read.
    """
    model = captioner.model
    known = KnownInstructions.of(model)
    if not known.kinds:
        raise ValueError(
            "this captioner was trained to caption, not to answer: train one with finetune_lora.instruction_share above 0"
        )
    instruction = as_instruction(instruction)
    if not instruction:
        raise ValueError("the instruction is blank: say what is to be answered")
    instruction, spoken, wish = _read_language(known, instruction, language)
    if second is not None and TWO_IMAGES not in known.kinds:
        raise ValueError("this captioner was not trained to compare two images: ask about one, without `second`")
    longest = int(model.language_model.config.max_position_embeddings)
    names = ["image", "second"] if second is not None else ["image"]
    features = captioner.encode([read_picture(one) for one in (image, second) if one is not None], names)
    told = told_with_instructions(model.config)
    near = captioner.pools(features.image_embeddings, names).top(told) if told else {}
    beside = [near.get(name, ()) for name in names]
    asked = Prompted(
        model, features, names[:1], instruction, beside[:1], "upright", names[1:] or None, beside[1:] or None
    )
    needed = len(asked.prefixes[0]) + max_new_tokens
    if needed > longest:
        raise ValueError(
            f"the instruction with its image and its answer takes up to {needed} tokens, the language model reads {longest}: "
            "say less"
        )
    kind, like = known.recognise(instruction)
    kind = LANGUAGE_KIND if spoken != ENGLISH and not wish else kind if like >= LIKE else None
    if kind == TWO_IMAGES and second is None and like >= SURE:
        raise ValueError(f"{instruction!r} compares two images, and there is one: give the other as `second`")
    how = {
        "near": near,
        "choices": [known.choices(kind)],
        "max_new_tokens": max_new_tokens,
        "seconds": names[1:] or None,
    }
    said = answer_tasks(model, features, ["image"], [instruction], **how).iloc[0]
    margin = None if math.isnan(said["margin"]) else float(said["margin"])
    distance = training_distances(captioner.memory, features.image_embeddings)[0]
    if is_uncertain(margin, tell_from):
        told = cannot_tell(wish.language) if wish else CANNOT_TELL
    else:
        told = say_answer(said["answer"], wish) if wish else said["answer"]
    values = (float(said["log_probability"]), margin, kind, bool(said["cut_off"]), captioner.warning(distance))
    return Answer(told, said["answer"], *values, language=spoken, asked=instruction)


def _read_language(known: KnownInstructions, text: str, language: str | None) -> tuple[str, str, ForeignWish | None]:
    """(the instruction to give, the code of the answer's language, how the text was read where by rule)."""
    named = () if language in (None, ENGLISH) else (check_language(language, "language"),)
    wish = read_formed(text, known.kinds, language) if language != ENGLISH else None
    other = read_wish(text, language) if named and not wish else None
    wish = other if other and other.kind not in FORMED else wish
    asked = () if wish or language == ENGLISH else asked_languages(text) or named
    if asked and asked != (ENGLISH,):
        code = next((code for code in asked if code in known.languages), None)
        if code is None:
            names = " or ".join(language_name(code) for code in asked)
            can = ", ".join(sorted(language_name(code) for code in {ENGLISH, *known.languages}))
            raise ValueError(
                f"this captioner can't write {names}: no instruction taught it that; it writes {can}. {can_ask(asked[0])}"
            )
        return text, code, None
    if language is None and wish is None:
        wish = read_wish(text)
        if wish is None and known.recognise(text)[1] < LIKE and (code := foreign_language(text)):
            raise ValueError(can_ask(code))
    if wish is None:
        return text, ENGLISH, None
    if wish.kind == IMAGES:
        raise ValueError(
            f"{text!r} asks for images, here about one image is answered: search for them (rsvlm.build_index)"
        )
    if wish.kind not in known.kinds:
        raise ValueError(f"{text!r} is read as {wish.instruction!r}, which this captioner was not trained to answer")
    return wish.instruction, wish.answer_language, wish


def is_uncertain(margin: float | None, tell_from: float | None) -> bool:
    """Whether an answer with this margin (None: it has none) is not told."""
    return margin is not None and tell_from is not None and margin < tell_from


def _answer(
    asked: Prompted, choices: Sequence[Sequence[str]], max_new_tokens: int, batch_size: int
) -> list[dict[str, object]]:
    """A row of ``answer_tasks`` for each image."""
    captioner = asked.captioner
    rows: list[dict] = [{}] * len(asked.image_ids)
    for places, prefixes, visual in asked.batches(batch_size):
        found: list[Hypothesis] = [
            own[0] for own in search_beams(captioner, prefixes, visual, max_new_tokens=max_new_tokens)
        ]
        texts = [captioner.decode_text(one.tokens) for one in found]
        margins = _margins(captioner, prefixes, visual, texts, [choices[place] for place in places])
        for place, one, text, margin in zip(places, found, texts, margins, strict=True):
            likely = round(one.score(1.0), 6)
            rows[place] = {"answer": text, "log_probability": likely, "margin": margin, "cut_off": not one.ended}
    return rows


@torch.inference_mode()
def _margins(
    captioner: CapRet,
    prefixes: Sequence[Sequence[int]],
    visual: torch.Tensor,
    answers: Sequence[str],
    choices: Sequence[Sequence[str]],
) -> list[float | None]:
    """For each prefix (its visual tokens (B, n, H)) the margin of its answer; None without choices."""
    margins: list[float | None] = [None] * len(answers)
    places = [place for place, own in enumerate(choices) if len(own) > 1]
    if not places:
        return margins
    texts = [[answers[place], *(text for text in choices[place] if text != answers[place])] for place in places]
    ids = iter(captioner.encode_text([text for own in texts for text in own]))
    rows = [Row(prefixes[place], [next(ids) for _ in own]) for place, own in zip(places, texts)]
    likely = row_log_likelihoods(captioner, rows, visual[places], mean=False)
    for place, own in zip(places, likely, strict=True):
        margins[place] = round(float(own[0] - own[1:].max()), 6)
    return margins


def _fingerprint(captioner: CapRet) -> str:
    """SHA-256 of the trained weights, as hex."""
    digest = hashlib.sha256()
    for name, tensor in sorted(captioner.trained_state().items()):
        digest.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()
