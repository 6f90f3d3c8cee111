"""What a step of the captioner's training sees: images, their captions, prompts, views and negatives.

All of it derives from (seed, step), so that a training that was stopped goes on with what it would have seen. Where
images get instructions instead of captions, those are drawn apart: everything else of a step is as without them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rsvlm.models.capret import CapRet
from rsvlm.models.features import Features
from rsvlm.models.instructions import Asked
from rsvlm.models.prompts import (
    CAPTION_PROMPT,
    CAPTION_PROMPTS,
    MEAN,
    RETRIEVAL_PROMPTS,
    UPRIGHT,
    Row,
    VisualInput,
    caption_prompt,
    read_visual,
)
from rsvlm.settings import CaptioningSettings
from rsvlm.training.processes import Team


@dataclass(frozen=True)
class Example:
    """An image to train or validate on: its captions as released, and its neighbours' captions for the prompt."""

    image_id: str
    captions: tuple[str, ...]
    neighbours: tuple[str, ...] = ()

    def references(self, which: str) -> list[str]:
        """The captions, "released" or "distinct"."""
        return list(self.captions if which == "released" else dict.fromkeys(self.captions))


@dataclass(frozen=True)
class Batch:
    """The inputs of one step or one part of a validation.

    Attributes:
        rows: the B images' prompts with their captions, C in all, and at most one text-only segment each, M in all.
        visual: features of the B images.
        weights: (C,) how much each caption counts; below 0 for a drawn one that earned less than the others.
        pooled: (N, P) features of the images for InfoNCE: the batch's, then the negatives.
        positives: (N, M) bool; None without text-only segments.
        is_answer: (C,) bool, whether it answers an instruction; None: none does. An answer's weight is 1 / its tokens.
        seconds: features of the second images that rows ask about, in the rows' order; None: none does.
        second_counts: B numbers of them.
    """

    rows: list[Row]
    visual: VisualInput
    weights: Tensor
    pooled: Tensor
    positives: Tensor | None
    is_answer: Tensor | None = None
    seconds: VisualInput | None = None
    second_counts: tuple[int, ...] = ()

    def visual_tokens(
        self, captioner: CapRet, drop: Callable[[Tensor | None], Tensor | None] = lambda it: it
    ) -> Tensor:
        """(B, n, H) what the decoder gets of the rows' images, as ``CapRet.beside`` where rows ask about second ones.

        Args:
            drop: what is done to features first.
        """
        tokens = captioner.visual_tokens(drop(self.visual.pooled), drop(self.visual.grid))
        if self.seconds is None:
            return tokens
        more = captioner.visual_tokens(drop(self.seconds.pooled), drop(self.seconds.grid))
        return captioner.beside(tokens, more, self.second_counts)

    def part(self, team: Team) -> "Batch":
        """What one process of a team computes: its images with what belongs to them, and its part of the negatives."""
        if team.size == 1:
            return self
        B = len(self.rows)
        own, others = team.part(B), team.part(len(self.pooled) - B)
        shown = [*range(B)[own], *range(B, len(self.pooled))[others]]
        start, stop = (sum(len(row.captions) for row in self.rows[:place]) for place in (own.start, own.stop))
        before = [sum(self.second_counts[:place]) for place in (own.start, own.stop)]
        seconds = self.seconds and self.seconds.part(slice(*before))
        return Batch(
            self.rows[own],
            self.visual.part(own),
            self.weights[start:stop],
            self.pooled[shown],
            None if self.positives is None else self.positives[shown],
            None if self.is_answer is None else self.is_answer[start:stop],
            seconds if sum(self.second_counts[own]) else None,
            self.second_counts[own],
        )


class Examples(Sequence[Example]):
    """The images of some rows of the table as examples, each made when it is asked for: captions stay where they are.

    Args:
        rows: columns ``image_id`` and ``captions``.
        neighbours: image id -> captions for its prompt.
    """

    def __init__(self, rows: pd.DataFrame, neighbours: Mapping[str, Sequence[str]]) -> None:
        self._image_ids, self._captions, self._neighbours = list(rows["image_id"]), rows["captions"].array, neighbours

    def __len__(self) -> int:
        return len(self._image_ids)

    def __getitem__(self, place: int | slice) -> Example | list[Example]:
        if isinstance(place, slice):
            return [self[one] for one in range(len(self))[place]]
        image_id = self._image_ids[place]
        return Example(image_id, tuple(self._captions[place]), tuple(self._neighbours.get(image_id, ())))


def examples_of(
    table: pd.DataFrame, split: str, neighbours: Mapping[str, Sequence[str]] | None = None
) -> Sequence[Example]:
    """The split's images as examples, with ``neighbours[image_id]`` for their prompts.

    Raises:
        ValueError: the split is empty, an image has no caption, or ``neighbours`` lacks an image.
    """
    rows = table[table["split"] == split]
    if len(rows) == 0:
        raise ValueError(f"the split {split!r} holds no image; see the table of splits in aggregate_data's report")
    for image_id, captions in zip(rows["image_id"], rows["captions"]):
        if len(captions) == 0:
            raise ValueError(f"{image_id}: no caption, so nothing to learn from")
        if neighbours is not None and image_id not in neighbours:
            raise ValueError(f"{image_id}: no neighbours' captions are given for it")
    return Examples(rows, neighbours or {})


class TrainingBatches:
    """Batches of training examples by step number: the same step always gives the same batch.

    Args:
        asked: instructions about images among the examples; they take the place of captions where the settings say so.

    Raises:
        ValueError: an instruction about an image, or a second one, that is none of the examples.
    """

    def __init__(
        self,
        captioner: CapRet,
        features: Features,
        examples: Sequence[Example],
        settings: CaptioningSettings,
        asked: Sequence[Asked] = (),
    ) -> None:
        self.captioner, self.features, self.examples, self.settings = captioner, features, examples, settings
        image_ids = [example.image_id for example in examples]
        self.rows = features.rows(image_ids)
        place_of = {image_id: place for place, image_id in enumerate(image_ids)}
        self.asked: dict[int, list[Asked]] = {}  # by the example's number
        for one in asked if settings.trains_instructions else ():
            if one.image_id not in place_of:
                raise ValueError(f"{one.image_id}: an instruction about it, but it is no image to train on")
            if one.second_image_id and one.second_image_id not in place_of:
                raise ValueError(
                    f"{one.second_image_id}: an instruction's second image, but it is no image to train on"
                )
            self.asked.setdefault(place_of[one.image_id], []).append(one)
        self.near = near_of(examples, settings)

    def draw(self, step: int, generator: np.random.Generator) -> Batch:
        """The batch of a step."""
        settings = self.settings
        chosen = self.images(step)
        examples = [self.examples[i] for i in chosen]
        captions, weights = zip(*(self._draw_captions(example, generator) for example in examples))
        prompts = [self._draw_prompt(example, generator) for example in examples]
        texts = [own[0] for own in captions] if settings.trains_retrieval else []
        leads = [
            str(generator.choice(RETRIEVAL_PROMPTS)) + " " if generator.random() < settings.retrieval_prompts else ""
            for _ in texts
        ]
        rows = example_rows(self.captioner, prompts, captions, [lead + text for lead, text in zip(leads, texts)])
        views = self._draw_views(len(chosen), generator)
        is_answer, seconds = None, (None, ())
        if self.asked:
            told, views = self._draw_instructions(step, chosen, views)
            bare = np.random.default_rng([settings.seed, 4, step]).random(len(rows)) < settings.neighbour_dropout
            near = [{} if own else self.near for own in bare]
            rows = with_instructions(self.captioner, rows, told, near)
            weights = [answer_weights(row) if place in told else weights[place] for place, row in enumerate(rows)]
            is_answer = torch.tensor([place in told for place, own in enumerate(weights) for _ in own])
            seconds = second_images(self.captioner, self.features, [told.get(place, ()) for place in range(len(rows))])
        visual = read_visual(self.features, self.rows[chosen], views, grid=self.captioner.settings.grid_cells > 0)
        others, pooled = self._draw_negatives(chosen, generator), visual.pooled
        if len(others):
            views = self._draw_views(len(others), generator)
            pooled = torch.cat([pooled, read_visual(self.features, self.rows[others], views, grid=False).pooled])
        known = [set(self.examples[i].captions) for i in (*chosen, *others)] if texts else []
        positives = torch.tensor([[text in own for text in texts] for own in known]) if texts else None
        counted = torch.tensor(np.concatenate(weights), dtype=torch.float32)
        return Batch(rows, visual, counted, pooled, positives, is_answer, *seconds)

    def images(self, step: int) -> np.ndarray:
        """The example numbers of a step's batch: the next of a new order each epoch, without a short last batch."""
        epoch, place = divmod(step, len(self.examples) // self.settings.batch_size)
        order = np.random.default_rng([self.settings.seed, 1, epoch]).permutation(len(self.examples))
        return order[place * self.settings.batch_size : (place + 1) * self.settings.batch_size]

    def _draw_captions(self, example: Example, generator: np.random.Generator) -> tuple[list[str], list[float]]:
        """(different captions in random order, their weights)."""
        pool = example.references(self.settings.captions)
        drawn = [pool[i] for i in generator.permutation(len(pool))[: self.settings.captions_per_image or None]]
        distinct = list(dict.fromkeys(drawn))
        return distinct, [float(drawn.count(text)) for text in distinct]

    def _draw_prompt(self, example: Example, generator: np.random.Generator) -> str:
        varied = generator.random() < self.settings.varied_prompts
        bare = generator.random() < self.settings.neighbour_dropout
        instruction = str(generator.choice(CAPTION_PROMPTS)) if varied else CAPTION_PROMPT
        return caption_prompt(instruction, () if bare else example.neighbours)

    def _draw_views(self, n: int, generator: np.random.Generator) -> np.ndarray:
        """(n,) numbers of views: any of V, or their mean."""
        V = self.features.pooled.shape[1]
        if self.settings.views == "upright" or V == 1:
            return np.full(n, UPRIGHT)
        drawn = generator.integers(0, V + 1, n)
        return np.where(drawn == V, MEAN, drawn)

    def _draw_instructions(
        self, step: int, chosen: np.ndarray, views: np.ndarray
    ) -> tuple[dict[int, list[Asked]], np.ndarray]:
        """(place in the batch -> its instructions, (B,) the views): an image is upright with them, for a turned or mirrored
        one would make "left" wrong."""
        generator = np.random.default_rng([self.settings.seed, 3, step])
        share = self.settings.instruction_share * len(chosen)
        count = int(share) + (generator.random() < share - int(share))
        told, views = {}, views.copy()
        for place in sorted(generator.permutation(len(chosen))[:count].tolist()):
            if own := self.asked.get(int(chosen[place])):
                drawn = generator.permutation(len(own))[: self.settings.instructions_per_image]
                told[place] = [own[i] for i in drawn]
                views[place] = UPRIGHT
        return told, views

    def _draw_negatives(self, chosen: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        if not self.settings.retrieval_weight:
            return np.zeros(0, dtype=np.int64)
        rest = np.setdiff1d(np.arange(len(self.examples)), chosen)
        return generator.choice(rest, min(self.settings.retrieval_negatives, len(rest)), replace=False)


def validation_batches(
    captioner: CapRet, features: Features, examples: Sequence[Example], settings: CaptioningSettings
) -> list[Batch]:
    """Batches of the validation examples: fixed prompt, upright view, all distinct captions alike."""
    batches = []
    for start in range(0, len(examples), settings.batch_size):
        part = examples[start : start + settings.batch_size]
        captions = [example.references("distinct") for example in part]
        texts = [own[0] for own in captions] if settings.trains_retrieval else []
        prompts = [caption_prompt(CAPTION_PROMPT, example.neighbours) for example in part]
        rows = example_rows(captioner, prompts, captions, texts)
        places = features.rows([example.image_id for example in part])
        visual = read_visual(features, places, UPRIGHT, grid=captioner.settings.grid_cells > 0)
        positives = torch.tensor([[text in example.captions for text in texts] for example in part]) if texts else None
        batches.append(Batch(rows, visual, torch.ones(sum(map(len, captions))), visual.pooled, positives))
    return batches


def example_rows(
    captioner: CapRet, prompts: Sequence[str], captions: Sequence[Sequence[str]], texts: Sequence[str]
) -> list[Row]:
    """The images' prompts (B), captions (B lists) and texts for [RET] (B or none) as rows."""
    B = len(prompts)
    ids = captioner.encode_text([*prompts, *texts, *(text for own in captions for text in own)])
    prompt_ids, text_ids, caption_ids = ids[:B], ids[B : B + len(texts)], iter(ids[B + len(texts) :])
    return [
        Row(captioner.image_prefix(prompt_ids[number]), [next(caption_ids) for _ in own], text_ids[number : number + 1])
        for number, own in enumerate(captions)
    ]


def near_of(examples: Sequence[Example], settings: CaptioningSettings) -> Mapping[str, Sequence[str]]:
    """Image id -> the neighbours' captions that its instructions stand behind; empty where they stand alone."""
    return {one.image_id: one.neighbours for one in examples} if settings.instruction_neighbours else {}


def with_instructions(
    captioner: CapRet,
    rows: Sequence[Row],
    told: Mapping[int, Sequence[Asked]],
    near: Sequence[Mapping[str, Sequence[str]]],
) -> list[Row]:
    """The rows, those in ``told`` (by place) with instructions and answers instead of prompt and captions.

    Args:
        near: for each row, image id -> the neighbours' captions that its instructions stand behind, as ``near_of`` gives it.
    """
    ids = iter(
        captioner.encode_text([text for own in told.values() for one in own for text in (one.instruction, one.answer)])
    )
    changed = list(rows)
    for place, own in told.items():
        pairs = [(next(ids), next(ids)) for _ in own]
        captions_near = {one: captioner.neighbours_prompt(near[place].get(one, ())) for one in image_ids_of(own)}
        asked = [
            captioner.second_image_prompt([*captions_near[one.second_image_id], *question])
            if one.second_image_id
            else question
            for one, (question, _) in zip(own, pairs, strict=True)
        ]
        answers = [answer for _, answer in pairs]
        prefix = captioner.image_prefix(captions_near[own[0].image_id])
        changed[place] = replace(rows[place], prefix=prefix, captions=answers, asked=asked)
    return changed


def second_images(
    captioner: CapRet, features: Features, told: Sequence[Sequence[Asked]]
) -> tuple[VisualInput | None, tuple[int, ...]]:
    """(upright features of the second images that rows ask about, how many of each of the B rows); (None, ()) where none does."""
    ids = [[one.second_image_id for one in own if one.second_image_id] for own in told]
    if not any(ids):
        return None, ()
    rows = features.rows([image_id for own in ids for image_id in own])
    read = read_visual(features, rows, UPRIGHT, grid=captioner.settings.grid_cells > 0)
    return read, tuple(map(len, ids))


def answer_weights(row: Row) -> list[float]:
    """Of each of a row's answers what one of its tokens counts, its end among them: each answer counts 1 in all."""
    return [1 / (len(answer) + 1) for answer in row.captions]


def image_ids_of(asked: Sequence[Asked]) -> set[str]:
    """The images that instructions are about, second ones among them."""
    return {image_id for one in asked for image_id in (one.image_id, one.second_image_id) if image_id}


def instruction_batches(
    captioner: CapRet,
    features: Features,
    asked: Sequence[Asked],
    settings: CaptioningSettings,
    near: Mapping[str, Sequence[str]] | None = None,
) -> list[Batch]:
    """Batches of instructions with their answers, upright view, an image's next to each other in one row.

    Args:
        near: image id -> the neighbours' captions that its instructions stand behind; None: they stand alone.
    """
    by_image: dict[str, list[Asked]] = {}
    for one in asked:
        by_image.setdefault(one.image_id, []).append(one)
    most = settings.instructions_per_image
    parts = [own[start : start + most] for own in by_image.values() for start in range(0, len(own), most)]
    batches = []
    for start in range(0, len(parts), settings.batch_size):
        part = parts[start : start + settings.batch_size]
        rows = with_instructions(captioner, [Row(()) for _ in part], dict(enumerate(part)), [near or {}] * len(part))
        places = features.rows([own[0].image_id for own in part])
        visual = read_visual(features, places, UPRIGHT, grid=captioner.settings.grid_cells > 0)
        weights = torch.tensor([weight for row in rows for weight in answer_weights(row)])
        answers = torch.ones(len(weights), dtype=torch.bool)
        seconds = second_images(captioner, features, part)
        batches.append(Batch(rows, visual, weights, visual.pooled, None, answers, *seconds))
    return batches
