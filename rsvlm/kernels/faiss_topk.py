"""FAISS as the scan behind similarity_topk on a CPU: its product and selection in float32 are faster than torch's.

It lists a fixed number of items a query, those with the highest scores. A query whose neighbours crowd beyond that is
scanned again by ``torch_topk``, which lists as many as it takes.
"""

import faiss
import torch

from rsvlm.kernels.tiles import Rows, rounding_of, scan_error, spans
from rsvlm.kernels.torch_topk import Candidates, floor_of

MORE = 22  # items listed beyond k: the time FAISS takes does not grow with so few
ITEMS = 16_384  # given to FAISS at a time: fewer cost it speed, more memory


def scan_topk(queries: Rows, span: tuple[int, int], items: Rows, k: int, block: int) -> Candidates:
    """Candidates for the ``k`` <= M best items of the queries in ``span``, the items read ``block`` at a time or more."""
    begin, end = span
    rows = queries.scanned(begin, end, torch.float32)
    kept = min(k + MORE, len(items))
    scores = torch.full((end - begin, kept), -torch.inf)
    indices = torch.zeros((end - begin, kept), dtype=torch.int64)
    error = torch.zeros(end - begin, dtype=torch.float64)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        for start, stop in spans(len(items), max(block, ITEMS)):
            columns = items.scanned(start, stop, torch.float32)
            error = torch.maximum(error, scan_error(rows, columns))
            found = faiss.knn(
                rows.rows.numpy(), columns.rows.numpy(), min(kept, stop - start), metric=faiss.METRIC_INNER_PRODUCT
            )
            scores = torch.cat([scores, torch.from_numpy(found[0])], dim=1)
            indices = torch.cat([indices, torch.from_numpy(found[1]) + start], dim=1)
            scores, order = scores.topk(kept, dim=1)
            indices = indices.gather(1, order)
    finally:
        faiss.omp_set_num_threads(threads)
    floor, rest = floor_of(scores[:, k - 1], error, rounding_of(torch.float32, rows.rows.device))
    if kept < len(items):
        rest = torch.maximum(rest, scores[:, -1].double() + error)
    row, place = ((scores >= floor[:, None]) & (scores > -torch.inf)).nonzero(as_tuple=True)
    return Candidates(row, indices[row, place], rest)
