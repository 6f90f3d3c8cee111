"""Decoding token by token over a key-value cache: beams (greedy is one beam) and samples.

Hugging Face's ``generate`` does the same for plain prompts; here a prefix holds visual tokens and the vocabulary has
one more word, ``[RET]``. Finished rows leave the batch, so a batch costs what its unfinished captions cost.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from rsvlm.models.capret import CapRet


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
