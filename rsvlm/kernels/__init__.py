"""Similarity without the similarity matrix: exact top-k, exact retrieval ranks, contrastive loss.

Each function works through the queries x items matrix in tiles, so memory is bounded by one tile whatever the sizes.
Each has two backends, torch and Triton; ``backends`` says which of them runs.
"""

from rsvlm.kernels.backends import backends_for, force_backend, force_scan
from rsvlm.kernels.infonce import contrastive_loss
from rsvlm.kernels.ranks import TIE_RULES, Ranks, hits, retrieval_ranks, two_way_ranks
from rsvlm.kernels.tiles import Prepared, prepare
from rsvlm.kernels.topk import count_rungs, similarity_topk

__all__ = [
    "TIE_RULES", "Prepared", "Ranks", "backends_for", "contrastive_loss", "count_rungs", "force_backend", "force_scan",
    "hits", "prepare", "retrieval_ranks", "similarity_topk", "two_way_ranks",
]  # fmt: skip
