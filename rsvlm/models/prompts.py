"""What the captioner is given: an image's cached features in one of its views, prompts, and how they share a sequence.

Several captions of one image stand in one sequence, so that the image and its prompt are computed once. A row is
``[prefix][caption 1][caption 2]...[text-only 1]...``. The prefix holds the visual tokens and the prompt. A caption sees
the prefix and itself, not the other captions; a text-only segment (caption and ``[RET]``) only itself. Positions restart
accordingly, so every segment is computed as if it stood alone: a packed row gives the same numbers as separate rows, for
a fraction of the work (with a prefix of 50 tokens and 3 captions of 14, half of it).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rsvlm.models.features import Features

UPRIGHT, MEAN = 0, -1  # numbers of views; 1, 2, ... are the turned and mirrored ones
VIEW_NAMES = {"upright": UPRIGHT, "mean": MEAN}
CAPTION_PROMPT = "Caption:"  # the fixed one: used at generation, and for half of the training prompts
CAPTION_PROMPTS = (
    "Describe this image.",
    "A short description:",
    "What does this aerial image show?",
    "Write one sentence about this satellite image.",
    "What can be seen here?",
    "Image description:",
    "Tell me what is in the picture.",
    "This image shows",
)
RETRIEVAL_PROMPTS = (
    "Show me an image:",
    "Find an image of this:",
    "Which image fits?",
    "I am looking for an aerial image.",
)
NEIGHBOURS = "Similar images:"
# Behind the visual tokens of each of two images: what the first one's come behind is then as for one image
OF_TWO = ("This is the first image.", "This is the second image.")
VISUAL = -1  # stands for one visual token in a list of token ids
PREFIX, PADDING = 0, -1  # in ``segments``; captions count from 1, text-only segments from -2 downwards


@dataclass(frozen=True)
class VisualInput:
    """Features of B images: pooled (B, P) and grid (B, G, P) or None, float32."""

    pooled: Tensor
    grid: Tensor | None

    def part(self, images: slice) -> "VisualInput":
        """Some of the images."""
        return VisualInput(self.pooled[images], None if self.grid is None else self.grid[images])


def choose_view(name: str) -> int:
    """The number of the view called "upright" or "mean". ValueError lists them."""
    if name not in VIEW_NAMES:
        raise ValueError(f"view: {name!r} is none of {', '.join(VIEW_NAMES)}")
    return VIEW_NAMES[name]


def read_visual(
    features: Features, rows: Sequence[int], view: int | Sequence[int] = UPRIGHT, *, grid: bool = True
) -> VisualInput:
    """The features of these rows in a view, or in one each.

    The mean over views (``MEAN``) turns the grids of turned and mirrored images back first, so that a cell is averaged
    with the same place of the other views.

    Args:
        grid: False leaves the grid features out.
    """
    rows = np.asarray(rows, dtype=np.int64)
    views = np.broadcast_to(np.asarray(view, dtype=np.int64), rows.shape)
    mean = views == MEAN
    single = np.where(mean, UPRIGHT, views)
    pooled = features.pooled[rows, single].astype(np.float32)  # (B, P)
    if mean.any():
        pooled[mean] = features.pooled[rows[mean]].astype(np.float32).mean(1)
    if not grid or features.grid is None:
        return VisualInput(torch.from_numpy(pooled), None)
    cells = features.grid[rows, single].astype(np.float32)  # (B, G, P)
    if mean.any():
        cells[mean] = turn_back(features.grid[rows[mean]].astype(np.float32)).mean(1)
    return VisualInput(torch.from_numpy(pooled), torch.from_numpy(cells))


def turn_back(grids: np.ndarray) -> np.ndarray:
    """(B, V, G, P) grids of ``turn_views``'s views with their cells where they lie in the upright image."""
    B, V, G, P = grids.shape
    side = round(G**0.5)
    squares = grids.reshape(B, V, side, side, P)
    turns = 4 if V >= 4 else 1
    back = []
    for number in range(V):
        square = squares[:, number]
        if number >= turns:
            square = square[:, :, ::-1]
        back.append(np.rot90(square, -(number % turns), axes=(1, 2)))
    return np.stack(back, axis=1).reshape(B, V, G, P)


def caption_prompt(instruction: str = CAPTION_PROMPT, neighbours: Sequence[str] = ()) -> str:
    """The text between an image and its caption.

    >>> caption_prompt("Caption:", ["A river .", "Two roads."])
    'Similar images: A river. Two roads. Caption:'
    """
    return f"{tell_neighbours(neighbours)} {instruction}" if neighbours else instruction


def tell_neighbours(neighbours: Sequence[str]) -> str:
    """The text that stands before an instruction; blank without captions.

    >>> tell_neighbours(["A river .", "Two roads."])
    'Similar images: A river. Two roads.'
    """
    return " ".join([NEIGHBOURS, *map(as_sentence, neighbours)]) if neighbours else ""


def as_sentence(caption: str) -> str:
    """The caption with one full stop right behind its last word."""
    return caption.strip().rstrip(".").rstrip() + "."


@dataclass(frozen=True)
class Row:
    """One image's part of a batch, as token ids.

    Attributes:
        prefix: start token, ``VISUAL`` once a visual token, prompt; at least one token where there are captions.
        captions: caption tokens without an end token; the end token is predicted.
        asked: tokens between the prefix and each caption that are read and not predicted: an instruction of its own for
            each caption, which is then its answer; with ``VISUAL`` where it is about a second image, too. Empty: the prefix
            says what is asked.
        texts: text-only segments, without ``[RET]``, which is put behind them.
    """

    prefix: Sequence[int]
    captions: Sequence[Sequence[int]] = ()
    texts: Sequence[Sequence[int]] = ()
    asked: Sequence[Sequence[int]] = ()


@dataclass(frozen=True)
class PackedRows:
    """A batch of rows, padded on the right to the longest, T tokens.

    Attributes:
        input_ids: (B, T) with ``VISUAL`` for visual tokens and the id of ``[RET]``.
        positions: (B, T).
        segments: (B, T), see the constants above.
        predict_at: (Q,) places in the flattened batch whose next token is a caption's; a prefix's end, or that of what
            is asked, once a caption.
        labels: (Q,) those next tokens.
        owners: (Q,) the number of the caption, counted through the batch, that each label belongs to.
        ret_at: (M,) places of ``[RET]`` in the flattened batch, one a text-only segment.
        before_ret: (M,) the places just before, where ``[RET]`` is to be predicted.
    """

    input_ids: Tensor
    positions: Tensor
    segments: Tensor
    predict_at: Tensor
    labels: Tensor
    owners: Tensor
    ret_at: Tensor
    before_ret: Tensor

    def to(self, device: torch.device) -> "PackedRows":
        """The same on another device."""
        return replace(self, **{name: value.to(device) for name, value in vars(self).items()})


def pack_rows(rows: Sequence[Row], *, eos_id: int, ret_id: int, start_ids: Sequence[int] = ()) -> PackedRows:
    """The rows as one padded batch.

    Args:
        eos_id: end token, predicted behind each caption.
        start_ids: tokens put before each text-only segment (the tokenizer's start token, where it has one).

    Raises:
        ValueError: a row with captions has an empty prefix, not as much is asked as answered, or a text-only segment is
            empty.
    """
    ids, positions, segments = [], [], []
    predict_at, labels, owners, ret_at, before_ret = [], [], [], [], []
    n_captions = 0
    for row_number, row in enumerate(rows):
        if row.captions and not row.prefix:
            raise ValueError(f"row {row_number} has captions but no prefix to predict their first token from")
        if row.asked and len(row.asked) != len(row.captions):
            raise ValueError(f"row {row_number} asks {len(row.asked)} times and has {len(row.captions)} answers")
        row_ids, row_positions, row_segments = (
            list(row.prefix),
            list(range(len(row.prefix))),
            [PREFIX] * len(row.prefix),
        )
        for number, caption in enumerate(row.captions, start=1):
            asked = list(row.asked[number - 1]) if row.asked else []
            at = len(row_ids) + len(asked)
            first = at - 1 if asked else len(row.prefix) - 1
            predict_at += [(row_number, place) for place in (first, *range(at, at + len(caption)))]
            labels += [*caption, eos_id]
            owners += [n_captions] * (len(caption) + 1)
            n_captions += 1
            row_ids += [*asked, *caption]
            row_positions += range(len(row.prefix), len(row.prefix) + len(asked) + len(caption))
            row_segments += [number] * (len(asked) + len(caption))
        for number, text in enumerate(row.texts):
            segment = [*start_ids, *text, ret_id]
            if len(segment) < 2:
                raise ValueError(f"row {row_number}: text {number} for [RET] has no token")
            row_ids += segment
            row_positions += range(len(segment))
            row_segments += [PADDING - 1 - number] * len(segment)
            ret_at.append((row_number, len(row_ids) - 1))
            before_ret.append((row_number, len(row_ids) - 2))
        ids.append(row_ids), positions.append(row_positions), segments.append(row_segments)
    T = max(len(row_ids) for row_ids in ids)

    def padded(lists: list[list[int]], value: int) -> Tensor:
        return torch.tensor([values + [value] * (T - len(values)) for values in lists], dtype=torch.int64)

    def flat(places: list[tuple[int, int]]) -> Tensor:
        return torch.tensor([row_number * T + place for row_number, place in places], dtype=torch.int64)

    return PackedRows(
        padded(ids, eos_id),
        padded(positions, 0),
        padded(segments, PADDING),
        flat(predict_at),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(owners, dtype=torch.int64),
        flat(ret_at),
        flat(before_ret),
    )


def attention_bias(segments: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, 1, T, T) to be added to attention scores: 0 where row token i may see token j, else the lowest number."""
    B, T = segments.shape
    own = segments[:, :, None] == segments[:, None, :]  # (B, T, T)
    prefix = (segments[:, :, None] >= PREFIX) & (segments[:, None, :] == PREFIX)
    earlier = torch.ones(T, T, dtype=torch.bool, device=segments.device).tril()
    bias = torch.zeros(B, 1, T, T, dtype=dtype, device=segments.device)
    return bias.masked_fill_(~((own | prefix) & earlier)[:, None], torch.finfo(dtype).min)
