"""What a trained captioner gives: captions, candidates, their likelihoods, and embeddings for retrieval."""

import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from rsvlm.models.capret import CapRet
from rsvlm.models.decoding import Hypothesis, sample_tokens, search_beams
from rsvlm.models.features import Features
from rsvlm.models.prompts import CAPTION_PROMPT, caption_prompt
from rsvlm.models.sequences import Row, pack_rows
from rsvlm.models.visual_inputs import choose_view, read_visual


def generate_captions(
    captioner: CapRet,
    features: Features,
    image_ids: Sequence[str],
    *,
    prompt: str = CAPTION_PROMPT,
    neighbours: Sequence[Sequence[str]] | None = None,
    view: str = "upright",
    beams: int = 1,
    max_new_tokens: int = 40,
    length_penalty: float = 1.0,
    batch_size: int = 32,
) -> list[str]:
    """One caption an image: the best of a beam search, greedy with one beam.

    Args:
        image_ids: rows of ``features``; an image may occur several times.
        prompt: any instruction.
        neighbours: captions of similar training images for each image's prompt.
        view: "upright", or "mean" (features averaged over the image's turned and mirrored views).
        length_penalty: hypotheses are ranked by log-probability / length ** length_penalty.
    """
    found = beam_captions(
        captioner,
        features,
        image_ids,
        prompt=prompt,
        neighbours=neighbours,
        view=view,
        beams=beams,
        max_new_tokens=max_new_tokens,
        length_penalty=length_penalty,
        batch_size=batch_size,
    )
    return [own[0] for own in found]


def beam_captions(
    captioner: CapRet,
    features: Features,
    image_ids: Sequence[str],
    *,
    prompt: str = CAPTION_PROMPT,
    neighbours: Sequence[Sequence[str]] | None = None,
    view: str = "upright",
    beams: int = 4,
    max_new_tokens: int = 40,
    length_penalty: float = 1.0,
    batch_size: int = 32,
) -> list[list[str]]:
    """The different captions that a beam search ends with, best first, for each image; see ``generate_captions``."""

    def search(prefixes: list[list[int]], visual: Tensor, _: list[int]) -> list[list[Hypothesis]]:
        return search_beams(
            captioner, prefixes, visual, beams=beams, max_new_tokens=max_new_tokens, length_penalty=length_penalty
        )

    return _decode(captioner, features, image_ids, prompt, neighbours, view, batch_size, search)


def sample_captions(
    captioner: CapRet,
    features: Features,
    image_ids: Sequence[str],
    *,
    samples: int,
    temperature: float = 0.7,
    seed: int = 0,
    prompt: str = CAPTION_PROMPT,
    neighbours: Sequence[Sequence[str]] | None = None,
    view: str = "upright",
    max_new_tokens: int = 40,
    batch_size: int = 32,
) -> list[list[str]]:
    """``samples`` captions an image drawn at ``temperature``, in order of drawing, repeats included.

    The n-th image draws from (seed, n), whatever the batch size.
    """

    def draw(prefixes: list[list[int]], visual: Tensor, places: list[int]) -> list[list[Hypothesis]]:
        seeds = [seed * 1_000_003 + place for place in places]
        return sample_tokens(
            captioner,
            prefixes,
            visual,
            seeds=seeds,
            samples=samples,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
        )

    return _decode(captioner, features, image_ids, prompt, neighbours, view, batch_size, draw, distinct=False)


@torch.inference_mode()
def caption_log_likelihoods(
    captioner: CapRet,
    features: Features,
    image_ids: Sequence[str],
    candidates: Sequence[Sequence[str]],
    *,
    prompt: str = CAPTION_PROMPT,
    neighbours: Sequence[Sequence[str]] | None = None,
    view: str = "upright",
    mean: bool = True,
    batch_size: int = 8,
) -> list[np.ndarray]:
    """For each image the log-likelihoods (candidates,), float64, of its candidate captions, end token included.

    The image and its prompt are computed once for all its candidates.

    Args:
        mean: per token; False: the whole caption's.
    """
    if len(candidates) != len(image_ids):
        raise ValueError(f"{len(image_ids)} images, but candidates for {len(candidates)}")
    results: list[np.ndarray] = [np.zeros(0)] * len(image_ids)
    prompts = _prompts(image_ids, prompt, neighbours)
    prefix_ids = captioner.encode_text(prompts)
    caption_ids = [captioner.encode_text(own) for own in candidates]
    # Rows of about the same length together: little padding
    order = sorted(range(len(image_ids)), key=lambda i: (len(prefix_ids[i]) + sum(map(len, caption_ids[i])), i))
    for places in _batches(order, batch_size, "likelihoods"):
        places = [i for i in places if caption_ids[i]]
        if not places:
            continue
        packed = pack_rows(
            [Row(captioner.image_prefix(prefix_ids[i]), caption_ids[i]) for i in places],
            eos_id=captioner.eos_id,
            ret_id=captioner.ret_id,
        ).to(captioner.device)
        hidden = captioner.hidden_states(
            packed, _visual_tokens(captioner, features, [image_ids[i] for i in places], view)
        )
        costs = captioner.negative_log_likelihoods(hidden[packed.predict_at], packed.labels).double().cpu().numpy()
        owners = packed.owners.cpu().numpy()
        sums, counts = -np.bincount(owners, costs), np.bincount(owners)
        ends = np.cumsum([len(caption_ids[i]) for i in places])[:-1]
        for i, own in zip(places, np.split(sums / counts if mean else sums, ends)):
            results[i] = own
    return results


@torch.inference_mode()
def embed_captions_ret(captioner: CapRet, texts: Sequence[str], *, batch_size: int = 64) -> np.ndarray:
    """(n, R) float32 rows of length 1: each text behind nothing, followed by ``[RET]``, in the retrieval space."""
    ids = captioner.encode_text(texts)
    result = np.zeros((len(texts), captioner.settings.retrieval_dim), dtype=np.float32)
    order = sorted(range(len(texts)), key=lambda i: (len(ids[i]), i))
    for places in _batches(order, batch_size, "texts"):
        packed = pack_rows(
            [Row((), texts=[ids[i]]) for i in places],
            eos_id=captioner.eos_id,
            ret_id=captioner.ret_id,
            start_ids=captioner.start_ids,
        ).to(captioner.device)
        hidden = captioner.hidden_states(packed, None)
        result[places] = captioner.embed_ret(hidden[packed.ret_at]).cpu().numpy()
    return result


@torch.inference_mode()
def embed_images_ret(captioner: CapRet, pooled: np.ndarray, *, batch_size: int = 256) -> np.ndarray:
    """(n, R) float32 rows of length 1 of pooled features (n, P), or (n, V, P): the mean over an image's views."""
    if pooled.ndim == 2:
        pooled = pooled[:, None]
    parts = [np.zeros((0, captioner.settings.retrieval_dim), dtype=np.float32)]
    for start in range(0, len(pooled), batch_size):
        block = torch.from_numpy(np.asarray(pooled[start : start + batch_size], dtype=np.float32))
        rows = captioner.embed_images(block.flatten(0, 1)).view(*block.shape[:2], -1).mean(1)
        parts.append(F.normalize(rows, dim=-1).cpu().numpy())
    return np.concatenate(parts)


def _decode(
    captioner: CapRet,
    features: Features,
    image_ids: Sequence[str],
    prompt: str,
    neighbours: Sequence[Sequence[str]] | None,
    view: str,
    batch_size: int,
    decode: Callable[[list[list[int]], Tensor, list[int]], list[list[Hypothesis]]],
    distinct: bool = True,
) -> list[list[str]]:
    """Captions of the hypotheses that ``decode(prefixes, visual, places)`` gives for each batch."""
    prompt_ids = captioner.encode_text(_prompts(image_ids, prompt, neighbours))
    results: list[list[str]] = [[] for _ in image_ids]
    order = sorted(range(len(image_ids)), key=lambda i: (len(prompt_ids[i]), i))
    for places in _batches(order, batch_size, "captions"):
        with torch.inference_mode():
            visual = _visual_tokens(captioner, features, [image_ids[i] for i in places], view)
            found = decode([captioner.image_prefix(prompt_ids[i]) for i in places], visual, places)
        for i, hypotheses in zip(places, found):
            texts = [captioner.decode_text(hypothesis.tokens) for hypothesis in hypotheses]
            results[i] = list(dict.fromkeys(texts)) if distinct else texts
    return results


def _prompts(image_ids: Sequence[str], prompt: str, neighbours: Sequence[Sequence[str]] | None) -> list[str]:
    if neighbours is not None and len(neighbours) != len(image_ids):
        raise ValueError(f"{len(image_ids)} images, but neighbours' captions for {len(neighbours)}")
    return [caption_prompt(prompt, neighbours[i] if neighbours is not None else ()) for i in range(len(image_ids))]


def _visual_tokens(captioner: CapRet, features: Features, image_ids: Sequence[str], view: str) -> Tensor:
    read = read_visual(features, features.rows(image_ids), choose_view(view), grid=captioner.settings.grid_cells > 0)
    return captioner.visual_tokens(read.pooled, read.grid)


def _batches(order: list[int], batch_size: int, what: str) -> Iterator[list[int]]:
    if batch_size < 1:
        raise ValueError(f"batch_size: at least 1 is needed, got {batch_size}")
    starts = tqdm(
        range(0, len(order), batch_size), desc=what, file=sys.stderr, mininterval=2, disable=len(order) <= batch_size
    )
    for start in starts:
        yield order[start : start + batch_size]
