"""What a trained captioner gives: captions, samples, likelihoods, and embeddings for retrieval.

Captions are decoded token by token over a key-value cache, by beams (greedy is one beam) or by drawing. Hugging Face's
``generate`` does the same for plain prompts; here a prefix holds visual tokens and the vocabulary has one more word,
``[RET]``. Finished rows leave the batch, so a batch costs what its unfinished captions cost.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from rsvlm.models.capret import CapRet
from rsvlm.models.features import Features
from rsvlm.models.prompts import CAPTION_PROMPT, Row, caption_prompt, choose_view, read_visual
from rsvlm.progress import progress


@dataclass(frozen=True)
class Prompted:
    """Images as the captioner is asked about them.

    Attributes:
        image_ids: rows of ``features``; an image may occur several times.
        prompt: any instruction, or one for each image.
        neighbours: captions of similar training images for each image's prompt.
        second_neighbours: the same for second images, whose captions stand behind them.
        view: "upright", or "mean" (features averaged over the image's turned and mirrored views).
        seconds: rows of ``features`` of second images, one for each image or None; their prompts stand behind both.

    Raises:
        ValueError: other numbers of images and neighbours, prompts or second images, an image without features, an unknown
            view.
    """

    captioner: CapRet
    features: Features
    image_ids: Sequence[str]
    prompt: str | Sequence[str] = CAPTION_PROMPT
    neighbours: Sequence[Sequence[str]] | None = None
    view: str = "upright"
    seconds: Sequence[str | None] | None = None
    second_neighbours: Sequence[Sequence[str]] | None = None

    @cached_property
    def prefixes(self) -> list[list[int]]:
        """Token ids of each image and the prompt behind it."""
        near = [()] * len(self.image_ids) if self.neighbours is None else self.neighbours
        if len(near) != len(self.image_ids):
            raise ValueError(f"{len(self.image_ids)} images, but neighbours' captions for {len(near)}")
        asked = [self.prompt] * len(near) if isinstance(self.prompt, str) else list(self.prompt)
        if len(asked) != len(near):
            raise ValueError(f"{len(near)} images, but {len(asked)} prompts")
        seconds = [None] * len(near) if self.seconds is None else self.seconds
        if len(seconds) != len(near):
            raise ValueError(f"{len(near)} images, but {len(seconds)} second ones; give None for those without")
        told_of_seconds = self.second_neighbours or [()] * len(near)
        behind = [more if second else own for own, more, second in zip(near, told_of_seconds, seconds, strict=True)]
        prompts = self.captioner.encode_text([caption_prompt(own, told) for own, told in zip(asked, behind)])
        for place, second in enumerate(seconds):
            if second:
                second_prompt = self.captioner.second_image_prompt(prompts[place])
                prompts[place] = [*self.captioner.neighbours_prompt(near[place]), *second_prompt]
        return [self.captioner.image_prefix(prompt) for prompt in prompts]

    def visual_tokens(self, places: Sequence[int]) -> Tensor:
        """(B, n, H) visual tokens of the images in these places; as ``CapRet.beside`` where there are second ones."""
        tokens = self._read([self.image_ids[place] for place in places])
        seconds = [None] * len(places) if self.seconds is None else [self.seconds[place] for place in places]
        more = [second for second in seconds if second]
        return self.captioner.beside(tokens, self._read(more), [bool(one) for one in seconds]) if more else tokens

    def _read(self, image_ids: Sequence[str]) -> Tensor:
        grid = self.captioner.settings.grid_cells > 0
        read = read_visual(self.features, self.features.rows(image_ids), choose_view(self.view), grid=grid)
        return self.captioner.visual_tokens(read.pooled, read.grid)

    def batches(self, batch_size: int) -> Iterator[tuple[list[int], list[list[int]], Tensor]]:
        """(places, their prefixes, their visual tokens), those of like length together."""
        for places in _batches([len(prefix) for prefix in self.prefixes], batch_size, "captions"):
            with torch.inference_mode():
                visual = self.visual_tokens(places)
            yield places, [self.prefixes[place] for place in places], visual


def beam_captions(
    asked: Prompted, *, beams: int = 1, max_new_tokens: int = 40, length_penalty: float = 1.0, batch_size: int = 32
) -> list[list[str]]:
    """The different captions that a beam search ends with, best first, for each image; greedy with one beam.

    Args:
        length_penalty: hypotheses are ranked by log-probability / length ** length_penalty.
    """
    captions: list[list[str]] = [[] for _ in asked.image_ids]
    limits = {"beams": beams, "max_new_tokens": max_new_tokens, "length_penalty": length_penalty}
    for places, prefixes, visual in asked.batches(batch_size):
        for place, found in zip(places, search_beams(asked.captioner, prefixes, visual, **limits)):
            captions[place] = list(dict.fromkeys(asked.captioner.decode_text(one.tokens) for one in found))
    return captions


def sample_captions(
    asked: Prompted,
    *,
    samples: int,
    temperature: float = 0.7,
    seed: int = 0,
    numbers: Sequence[int] | None = None,
    max_new_tokens: int = 40,
    batch_size: int = 32,
) -> list[list[str]]:
    """``samples`` captions an image drawn at ``temperature``, in order of drawing, repeats included.

    Args:
        numbers: of the images, in the whole list that they are part of: image n draws from (seed, n), whatever the
            batch size. Default: from 0.
    """
    captions: list[list[str]] = [[] for _ in asked.image_ids]
    limits = {"samples": samples, "temperature": temperature, "max_new_tokens": max_new_tokens}
    for places, prefixes, visual in asked.batches(batch_size):
        seeds = [seed * 1_000_003 + (place if numbers is None else numbers[place]) for place in places]
        for place, drawn in zip(places, sample_tokens(asked.captioner, prefixes, visual, seeds=seeds, **limits)):
            captions[place] = [asked.captioner.decode_text(one.tokens) for one in drawn]
    return captions


@torch.inference_mode()
def caption_log_likelihoods(
    asked: Prompted, candidates: Sequence[Sequence[str]], *, mean: bool = True, batch_size: int = 8
) -> list[np.ndarray]:
    """For each image the log-likelihoods (candidates,), float64, of its candidate captions, end token included.

    The image and its prompt are computed once for all its candidates.

    Args:
        mean: per token; False: the whole caption's.
    """
    if len(candidates) != len(asked.image_ids):
        raise ValueError(f"{len(asked.image_ids)} images, but candidates for {len(candidates)}")
    captioner = asked.captioner
    results: list[np.ndarray] = [np.zeros(0)] * len(candidates)
    ids = [captioner.encode_text(own) for own in candidates]
    lengths = [len(prefix) + sum(map(len, own)) for prefix, own in zip(asked.prefixes, ids)]
    for places in _batches(lengths, batch_size, "likelihoods"):
        places = [place for place in places if ids[place]]
        if not places:
            continue
        rows = [Row(asked.prefixes[place], ids[place]) for place in places]
        for place, own in zip(places, row_log_likelihoods(captioner, rows, asked.visual_tokens(places), mean=mean)):
            results[place] = own
    return results


@torch.inference_mode()
def row_log_likelihoods(
    captioner: CapRet, rows: Sequence[Row], visual: Tensor, *, mean: bool = True
) -> list[np.ndarray]:
    """For each row (its visual tokens (B, n, H)) the log-likelihoods (captions,), float64, of its captions.

    Args:
        mean: per token, end token included; False: the whole caption's.
    """
    packed = captioner.pack(rows)
    hidden = captioner.hidden_states(packed, visual)
    nll = captioner.negative_log_likelihoods(hidden[packed.predict_at], packed.labels).double().cpu().numpy()
    owners = packed.owners.cpu().numpy()
    sums, counts = -np.bincount(owners, nll), np.bincount(owners)
    ends = np.cumsum([len(row.captions) for row in rows])[:-1]
    return np.split(sums / counts if mean else sums, ends)


@torch.inference_mode()
def embed_captions_ret(captioner: CapRet, texts: Sequence[str], *, batch_size: int = 64) -> np.ndarray:
    """(n, R) float32 rows of length 1: each text behind nothing, followed by ``[RET]``, in the retrieval space."""
    ids = captioner.encode_text(texts)
    result = np.zeros((len(texts), captioner.settings.retrieval_dim), dtype=np.float32)
    for places in _batches(list(map(len, ids)), batch_size, "texts"):
        packed = captioner.pack([Row((), texts=[ids[i]]) for i in places])
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


def in_order_of_length(lengths: Sequence[int]) -> list[int]:
    """Places of rows in the order in which batches take them."""
    return sorted(range(len(lengths)), key=lambda place: (lengths[place], place))


def _batches(lengths: Sequence[int], batch_size: int, what: str) -> Iterator[list[int]]:
    """Places of rows of about the same length together: little padding."""
    if batch_size < 1:
        raise ValueError(f"batch_size: at least 1 is needed, got {batch_size}")
    order = in_order_of_length(lengths)
    starts = progress(range(0, len(order), batch_size), desc=what, disable=len(order) <= batch_size)
    for start in starts:
        yield order[start : start + batch_size]
