"""How many right answers stand among the first few, where equal scores leave their order open."""

import numpy as np

from rsvlm.kernels.ranks import Ranks

TIE_RULES = ("expected", "optimistic", "pessimistic")


def hits(ranks: Ranks, k: int, ties: str = "expected") -> np.ndarray:
    """Chance in 0..1, for each query, that a right answer is among the first k. Shape (Q,), float64.

    With g items better than the best right answer, e others equal to it and p right ones tied there, of the k places
    s = k - g are left for the e + p, in random order: 1 - C(e, s) / C(e + p, s).
    """
    g, e, p = (np.asarray(part).astype(np.int64) for part in (ranks.greater, ranks.equal, ranks.tied))
    if ties == "optimistic":
        return ((g < k) & (p > 0)).astype(np.float64)
    if ties == "pessimistic":
        return ((g + e < k) & (p > 0)).astype(np.float64)
    if ties != "expected":
        raise ValueError(f"tie rule {ties!r}: expected one of {', '.join(TIE_RULES)}")
    left = np.clip(k - g, 0, e + p)
    missed = np.ones(len(g))
    for place in range(k):  # the chance that each place in turn goes to a wrong one
        factor = np.clip(e - place, 0, None) / np.maximum(e + p - place, 1)
        missed = np.where(place < left, missed * factor, missed)
    return 1 - missed
