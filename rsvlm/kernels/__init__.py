"""Similarity without the similarity matrix: exact top-k, exact retrieval ranks, contrastive loss.

Each function works through the queries x items matrix in tiles, so memory is bounded by one tile whatever the sizes.
"""

from rsvlm.kernels.infonce import contrastive_loss
from rsvlm.kernels.ranks import Ranks, retrieval_ranks, transpose_positives
from rsvlm.kernels.topk import similarity_topk

__all__ = ["Ranks", "contrastive_loss", "retrieval_ranks", "similarity_topk", "transpose_positives"]
