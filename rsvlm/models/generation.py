"""What a trained captioner gives, and how it decodes token by token.

Decoding token by token over a key-value cache: beams (greedy is one beam) and samples.

Hugging Face's ``generate`` does the same for plain prompts; here a prefix holds visual tokens and the vocabulary has
one more word, ``[RET]``. Finished rows leave the batch, so a batch costs what its unfinished captions cost.

What a trained captioner gives: captions, candidates, their likelihoods, and embeddings for retrieval.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers import DynamicCache

from rsvlm.models.capret import CapRet
from rsvlm.models.features import Features, choose_view, read_visual
from rsvlm.models.prompts import CAPTION_PROMPT, Row, caption_prompt, pack_rows


@dataclass(frozen=True)
class Hypothesis:
    """A decoded token sequence without its end token, and its log-probability, end token included.

    ``ended``: whether the end token came, or the tokens were cut off.
    """

    tokens: tuple[int, ...]
    log_probability: float
    ended: bool = True

    def score(self, length_penalty: float) -> float:
        """Log-probability divided by (number of tokens, end token included) ** length_penalty."""
        return self.log_probability / (len(self.tokens) + self.ended) ** length_penalty


@dataclass
class _Rows:
    """The running rows of a decoding: their cache, which keys are real, and the next position."""

    cache: DynamicCache
    seen: Tensor  # (R, keys) int64: 1 a real token, 0 padding
    position: Tensor  # (R,)
    hidden: Tensor  # (R, H) of the last token
    captioner: CapRet = field(repr=False)

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order; a row may be taken several times."""
        if len(rows) == len(self.seen) and torch.equal(rows, torch.arange(len(rows), device=rows.device)):
            return
        self.cache.batch_select_indices(rows)
        self.seen, self.position, self.hidden = self.seen[rows], self.position[rows], self.hidden[rows]

    def advance(self, tokens: Tensor) -> None:
        """Feed one token a row (R,)."""
        self.seen = torch.cat([self.seen, self.seen.new_ones(len(tokens), 1)], dim=1)
        output = self.captioner.run_decoder(
            self.captioner.embed_tokens(tokens[:, None]),
            attention_mask=self.seen,
            position_ids=self.position[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        self.position = self.position + 1
        self.hidden = output.last_hidden_state[:, -1]

    def log_probabilities(self, ret_bias: float | None) -> Tensor:
        """(R, V + 1) of the next token; ``ret_bias`` is added to the logit of ``[RET]``, None forbids it."""
        words, ret = self.captioner.logits(self.hidden)
        ret = torch.full_like(ret, -torch.inf) if ret_bias is None else ret + ret_bias
        return torch.cat([words, ret[:, None]], dim=1).log_softmax(-1)


def start_rows(captioner: CapRet, prefixes: Sequence[Sequence[int]], visual: Tensor | None) -> _Rows:
    """The rows after their prefixes (token ids, ``VISUAL`` for each row of ``visual``) went through the decoder."""
    device = captioner.device
    T = max(len(prefix) for prefix in prefixes)
    if min(len(prefix) for prefix in prefixes) == 0:
        raise ValueError("an empty prefix: there is nothing to continue")
    # Padded on the left, so that all rows end at the same key
    ids = torch.tensor([[captioner.eos_id] * (T - len(prefix)) + list(prefix) for prefix in prefixes], device=device)
    seen = torch.tensor([[0] * (T - len(prefix)) + [1] * len(prefix) for prefix in prefixes], device=device)
    positions = (seen.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=captioner.language_model.config)
    output = captioner.run_decoder(
        captioner.embed_tokens(ids, visual),
        attention_mask=seen,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    )
    return _Rows(cache, seen, positions[:, -1] + 1, output.last_hidden_state[:, -1], captioner)


@torch.inference_mode()
def search_beams(
    captioner: CapRet,
    prefixes: Sequence[Sequence[int]],
    visual: Tensor | None,
    *,
    beams: int = 1,
    max_new_tokens: int = 40,
    length_penalty: float = 1.0,
) -> list[list[Hypothesis]]:
    """For each prefix the ``beams`` best hypotheses found, best first by ``Hypothesis.score``.

    A hypothesis that has not ended after ``max_new_tokens`` counts as it stands. Beam search as in Hugging Face's
    ``generate`` with early_stopping=False; one beam is greedy decoding. ``[RET]`` is never emitted.
    """
    B, K = len(prefixes), beams
    rows = start_rows(captioner, prefixes, visual)
    device = rows.hidden.device
    rows.select(torch.arange(B, device=device).repeat_interleave(K))
    scores = torch.full((B, K), -torch.inf, device=device)
    scores[:, 0] = 0  # the K copies are equal at first: only one may go on
    active = list(range(B))  # prefix of each group of K rows
    tokens = torch.zeros(B, K, 0, dtype=torch.int64, device=device)
    finished: list[list[Hypothesis]] = [[] for _ in range(B)]
    for step in range(1, max_new_tokens + 1):
        total = scores[:, :, None] + rows.log_probabilities(None).view(len(active), K, -1)  # (A, K, V + 1)
        best, at = total.flatten(1).topk(2 * K, dim=1)
        parents, chosen = at // total.shape[2], at % total.shape[2]
        is_end = chosen == captioner.eos_id
        for number, rank in is_end[:, :K].nonzero().tolist():
            if best[number, rank] > -torch.inf:
                ended = tokens[number, parents[number, rank]].tolist()
                finished[active[number]].append(Hypothesis(tuple(ended), best[number, rank].item()))
        # The K best that go on: 2K candidates hold at least K that have not ended
        order = is_end.to(torch.int8).argsort(dim=1, stable=True)[:, :K]
        scores, parents, chosen = best.gather(1, order), parents.gather(1, order), chosen.gather(1, order)
        tokens = torch.cat([tokens.gather(1, parents[:, :, None].expand(-1, -1, step - 1)), chosen[:, :, None]], dim=2)
        going = [
            n
            for n, prefix in enumerate(active)
            if not _is_done(finished[prefix], scores[n, 0].item(), step, K, length_penalty)
        ]
        if not going or step == max_new_tokens:
            break
        kept = torch.tensor(going, device=device)
        active, scores, tokens, parents = [active[n] for n in going], scores[kept], tokens[kept], parents[kept]
        rows.select((kept[:, None] * K + parents).flatten())
        rows.advance(tokens[:, :, -1].flatten())
    for n in going:
        finished[active[n]] += [
            Hypothesis(tuple(own.tolist()), score, ended=False)
            for own, score in zip(tokens[n], scores[n].tolist())
            if score > -torch.inf
        ]
    return [sorted(own, key=lambda h: -h.score(length_penalty))[:K] for own in finished]


@torch.inference_mode()
def sample_tokens(
    captioner: CapRet,
    prefixes: Sequence[Sequence[int]],
    visual: Tensor | None,
    *,
    seeds: Sequence[int],
    samples: int = 1,
    temperature: float = 1.0,
    max_new_tokens: int = 40,
) -> list[list[Hypothesis]]:
    """For each prefix ``samples`` hypotheses drawn at ``temperature`` from its own seed, in order of drawing.

    What a prefix gives depends on its seed, not on its place in the batch (up to rounding).
    """
    if temperature <= 0 or len(seeds) != len(prefixes):
        raise ValueError(
            f"temperature {temperature} must be above 0, and {len(prefixes)} prefixes need as many seeds, "
            f"got {len(seeds)}"
        )
    rows = start_rows(captioner, prefixes, visual)
    device = rows.hidden.device
    rows.select(torch.arange(len(prefixes), device=device).repeat_interleave(samples))
    draws = np.stack(
        [np.random.default_rng([seed, number]).random(max_new_tokens) for seed in seeds for number in range(samples)]
    )
    tokens: list[list[int]] = [[] for _ in draws]
    totals = [0.0] * len(draws)
    ended = [False] * len(draws)
    active = list(range(len(draws)))
    for step in range(max_new_tokens):
        log_probabilities = rows.log_probabilities(None)
        shares = (log_probabilities / temperature).softmax(-1).double().cumsum(-1)
        wanted = torch.from_numpy(draws[active, step]).to(device)[:, None] * shares[:, -1:]
        chosen = torch.searchsorted(shares, wanted, right=True)[:, 0].clamp(max=captioner.vocabulary_size - 1)
        gained = log_probabilities.gather(1, chosen[:, None])[:, 0].tolist()
        going = []
        for place, (row, token) in enumerate(zip(active, chosen.tolist())):
            totals[row] += gained[place]
            ended[row] = token == captioner.eos_id
            if not ended[row]:
                tokens[row].append(token)
                going.append(place)
        if not going or step + 1 == max_new_tokens:
            break
        active = [active[place] for place in going]
        kept = torch.tensor(going, device=device)
        rows.select(kept)
        rows.advance(chosen[kept])
    made = [Hypothesis(tuple(own), total, end) for own, total, end in zip(tokens, totals, ended)]
    return [made[start : start + samples] for start in range(0, len(made), samples)]


def _is_done(finished: list[Hypothesis], running: float, length: int, beams: int, length_penalty: float) -> bool:
    """Whether no running beam can still get among the ``beams`` best; ``finished`` is cut down to them."""
    finished.sort(key=lambda h: -h.score(length_penalty))
    del finished[beams:]
    return len(finished) == beams and finished[-1].score(length_penalty) >= running / length**length_penalty


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
        nll = captioner.negative_log_likelihoods(hidden[packed.predict_at], packed.labels).double().cpu().numpy()
        owners = packed.owners.cpu().numpy()
        sums, counts = -np.bincount(owners, nll), np.bincount(owners)
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
