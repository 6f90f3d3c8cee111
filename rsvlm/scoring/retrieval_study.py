"""All retrieval methods of a study scored on all its test sets: recalls, precision, classes, pairs, curves, protocols.

Recall at k asks for the first right answer only; mean average precision and precision at k ask where all of them are, in
expectation over a random order of ties. Scores are computed a block of queries at a time, and each distinct text once,
so that equal texts tie exactly and no similarity matrix is kept.

A recall without its protocol's name says little: the name travels with the number, and ``protocol_spread`` tells how far
the protocol alone moves it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from rsvlm.kernels import Ranks, hits
from rsvlm.scoring.bootstrap import DECIMALS, difference_of_draws, rounded
from rsvlm.scoring.retrieval import (
    DIRECTIONS,
    KS,
    MATCH_RULES,
    EmbeddingSpace,
    RetrievalSet,
    draw_recalls,
    first_places,
    perfect_ranks,
    rank_retrieval,
    recalls,
    summarise_ranks,
    with_exact_texts,
    with_first_captions,
    with_texts_once,
)
from rsvlm.scoring.runs import RESERVED

CURVE_KS = tuple(range(1, 21))
PRECISION_KS = (5, 10)  # precision at 1 is recall at 1
NAMES = ("map", *(f"p{k}" for k in PRECISION_KS))
BLOCK = 256  # queries at a time
# GaLR's multivariate rerank
RERANK_TOP, RERANK_SHARE, RERANK_BACK, RERANK_DECAY = 30, 0.3, 1.1, 0.05


@dataclass(frozen=True)
class Reordering:
    """For each distinct text the images that stand first, whatever their similarity, and by what they are ordered."""

    images: np.ndarray  # (T, k) int64, numbers of images, each once a row
    scores: np.ndarray  # (T, k) finite, higher is better; images outside follow by similarity


def precision_scores(
    test: RetrievalSet,
    image_vectors: np.ndarray,
    text_vectors: np.ndarray,
    rule: str,
    reordering: Reordering | None = None,
) -> tuple[dict[str, dict[str, np.ndarray]], Ranks]:
    """(direction -> {"map", "p5", "p10"} -> of each query, ranks from text to image). By inner product.

    Queries are images for "image_to_text" and caption rows for "text_to_image". The ranks are those that
    ``rank_retrieval`` counts, unless ``reordering`` changes them.

    Args:
        image_vectors: (N, D) finite, in the order of test.image_ids.
        text_vectors: (T, D) finite, in the order of test.texts.
        rule: "by_image" or "by_text".
        reordering: of what a text finds.
    """
    N, C = len(test.image_ids), len(test.captions)
    rows_of_image, images_of_row = _right_answers(test, rule)
    rows_of_text = np.split(np.argsort(test.row_text, kind="stable"), np.cumsum(np.bincount(test.row_text))[:-1])
    images, texts = (np.asarray(part, dtype=np.float32) for part in (image_vectors, text_vectors))
    found = {way: {name: np.zeros(n) for name in NAMES} for way, n in zip(DIRECTIONS, (N, C))}
    ranks = Ranks(np.zeros(C), *(np.zeros(C, dtype=np.int64) for _ in range(3)))

    for image, scores in _score_rows(images, texts):
        for name, value in _precisions(_levels(scores[test.row_text], rows_of_image[image])).items():
            found["image_to_text"][name][image] = value
    for text, scores in _score_rows(texts, images):
        if reordering is not None:  # its images stand above all others, in their order
            first, order = reordering.images[text], reordering.scores[text]
            scores = scores.astype(np.float64)
            scores[first] = scores.max() + 1 + order - order.min()
        for row in rows_of_text[text]:
            levels = _levels(scores, images_of_row[row])
            for name, value in _precisions(levels).items():
                found["text_to_image"][name][row] = value
            for part, value in zip(ranks, levels.best, strict=True):
                part[row] = value
    return found, ranks


def _right_answers(test: RetrievalSet, rule: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(the right rows of each image, the right images of each row)."""
    offsets, ids = test.positives(rule)
    owners = np.repeat(np.arange(len(test.image_ids)), np.diff(offsets))
    ends = np.cumsum(np.bincount(ids, minlength=len(test.captions)))[:-1]
    return np.split(ids, offsets[1:-1]), np.split(owners[np.lexsort((owners, ids))], ends)


class _Levels(NamedTuple):
    """The scores that right items have, best first, each with the items above it, at it, and the right ones at it."""

    score: np.ndarray
    above: np.ndarray  # t
    size: np.ndarray  # n
    right: np.ndarray  # r

    @property
    def best(self) -> tuple:
        """The best right item's parts of ``Ranks``."""
        return self.score[0], self.above[0], self.size[0] - self.right[0], self.right[0]


def _score_rows(queries: np.ndarray, items: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(queries), BLOCK):
        yield from enumerate(queries[start : start + BLOCK] @ items.T, start=start)


def _levels(scores: np.ndarray, right: np.ndarray) -> _Levels:
    """Of the scores (M,) of all items, ``right`` being numbers of items. Raises ValueError where none is right."""
    if len(right) == 0:
        raise ValueError("a query without a right answer cannot be scored")
    levels, counts = np.unique(scores[right], return_counts=True)
    levels, counts = levels[::-1], counts[::-1]
    ordered = np.sort(scores)
    above = len(scores) - np.searchsorted(ordered, levels, side="right")
    return _Levels(levels, above, len(scores) - np.searchsorted(ordered, levels, side="left") - above, counts)


def _precisions(levels: _Levels) -> dict[str, float]:
    """Average precision and precision at k of one query over a random order of ties (McSherry and Najork 2008).

    A group of n tied items, r of them right, that starts after t items with R right ones, adds to average precision the
    sum over its places i = 1..n of (r / n) (R + 1 + (i - 1) (r - 1) / (n - 1)) / (t + i).
    """
    t, n, r = levels.above, levels.size, levels.right.astype(np.float64)
    before = np.cumsum(r) - r  # R
    A = np.array([(1 / np.arange(above + 1, above + size + 1)).sum() for above, size in zip(t, n, strict=True)])
    B = n - (t + 1) * A  # the sum over the group of (i - 1) / (t + i)
    slope = (r - 1) / np.maximum(n - 1, 1)
    found = {"map": float((r / n * ((before + 1) * A + slope * B)).sum() / r.sum())}
    return found | {f"p{k}": float((r * np.clip(k - t, 0, n) / n).sum() / k) for k in PRECISION_KS}


@dataclass(frozen=True)
class Protocol:
    """How captions become queries and gallery rows; the rest is RemoteCLIP's (see rsvlm.scoring.retrieval)."""

    name: str
    says: str
    prefix: str = ""  # put before the caption
    texts_once: bool = False  # equal texts are one row, right for every image that has it
    capitalise: bool = True  # caption.capitalize() before the encoder; else texts are equal only to the letter
    first_caption: bool = False  # of each image only its first caption
    transductive: bool = False  # the other test queries have a say in the scores, see ``rerank_with_queries``

    def select(self, test: RetrievalSet) -> RetrievalSet:
        """The test set as this protocol sees it; its texts are without the prefix."""
        test = test if self.capitalise else with_exact_texts(test)
        test = with_first_captions(test) if self.first_caption else test
        return with_texts_once(test) if self.texts_once else test


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "remoteclip",
            "captions as raw.capitalize(), every caption row of the split, no prompt "
            "(published: RemoteCLIP's remoteclip_retrieval.py)",
        ),
        Protocol(
            "raw",
            "captions as in the caption table, every caption row, no prompt (CLIP_benchmark's zeroshot_retrieval.py)",
            capitalise=False,
        ),
        Protocol(
            "prompted",
            "as remoteclip, behind the prompt 'a satellite photo of ' (of this study)",
            prefix="a satellite photo of ",
        ),
        Protocol(
            "texts_once",
            "as remoteclip, but equal texts are one row, right for all their images (of this study)",
            texts_once=True,
        ),
        Protocol(
            "skyscript",
            "captions as in the caption table behind 'a satellite image. ', equal texts are one row, right for all their "
            "images (SkyScript's cross_modal_retrieval.ipynb; the same in FarSLIP's tests/test_retrieval.py)",
            prefix="a satellite image. ",
            texts_once=True,
            capitalise=False,
        ),
        Protocol(
            "one_caption",
            "as remoteclip, but only the first caption of each image: one right answer each way, as open_clip's "
            "validation counts pairs (get_clip_metrics)",
            first_caption=True,
        ),
        Protocol(
            "multivariate_rerank",
            "as remoteclip, then GaLR's multivariate rerank (postprocessing/rerank.py): transductive, it uses the other "
            "queries of the test set",
            transductive=True,
        ),
    )
}
MAIN = {True: "remoteclip", False: "raw"}  # by whether the saved features were made of capitalised captions


def find_protocols(names: list[str]) -> list[Protocol]:
    """The protocols of these names. ValueError names one that is unknown, and the known ones."""
    for name in names:
        if name not in PROTOCOLS:
            raise ValueError(f"protocols: unknown protocol {name!r}; known: {', '.join(PROTOCOLS)}")
    return [PROTOCOLS[name] for name in names]


def score_protocols(
    protocols: list[Protocol],
    spaces: Mapping[str, EmbeddingSpace],
    tests: Mapping[str, RetrievalSet],
    *,
    capitalised: bool,
    encode: Callable[[list[str], bool], np.ndarray] | None = None,
    encoded: str = "dual_encoder",
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, dict[str, dict]]]:
    """method -> source -> protocol -> {recall: entry}: right answers by image, see summarise_ranks.

    A protocol whose texts differ from those of the spaces is scored for the method ``encoded`` alone, with texts
    encoded anew; the other methods read captions in their own way.

    Args:
        capitalised: whether the spaces' texts were encoded capitalised.
        encode: from texts and whether to capitalise them to unit vectors (n, D).

    Raises:
        ValueError: a protocol needs other texts and ``encode`` is missing.
    """
    made: dict = {method: {source: {} for source in tests} for method in spaces}
    for protocol in protocols:
        other = protocol.capitalise != capitalised or protocol.prefix
        if other and encode is None:
            raise ValueError(f"the protocol {protocol.name!r} needs its texts encoded anew, and there is no encoder")
        for source, whole in tests.items():
            test = protocol.select(whole)
            for method, space in spaces.items():
                if other and method != encoded:
                    continue
                texts = [protocol.prefix + text for text in test.texts]
                vectors = encode(texts, protocol.capitalise) if other else space.text(test.texts)
                images = space.images(test.image_ids)
                ranks = (
                    rank_with_queries(test, images, vectors)
                    if protocol.transductive
                    else rank_retrieval(test, images, vectors, "by_image", normalize=False)
                )
                made[method][source][protocol.name] = summarise_ranks(test, ranks, resamples=resamples, seed=seed)
    return made


def rank_with_queries(test: RetrievalSet, image_vectors: np.ndarray, text_vectors: np.ndarray) -> dict[str, Ranks]:
    """As ``rank_retrieval`` by image and by inner product, after ``rerank_with_queries`` in each direction.

    All similarities (N, C) are in memory at once: the rerank asks for whole rows and whole columns.
    """
    images, texts = (np.asarray(part, dtype=np.float32) for part in (image_vectors, text_vectors))
    scores = (images @ texts.T)[:, test.row_text]  # (N, C)
    ranks = {}
    for way, given, right in zip(DIRECTIONS, (scores, scores.T), _right_answers(test, "by_image"), strict=True):
        rows = zip(rerank_with_queries(given), right, strict=True)
        ranks[way] = Ranks(*map(np.array, zip(*(_levels(row, own).best for row, own in rows), strict=True)))
    return ranks


def rerank_with_queries(scores: np.ndarray) -> np.ndarray:
    """GaLR's multivariate rerank of scores (queries, items), whose first ``RERANK_TOP`` items of a query are ordered anew.

    Among them an item gets RERANK_SHARE times the query's share of the item's scores over all queries, plus
    exp(-RERANK_DECAY * its place), plus RERANK_BACK times exp(-RERANK_DECAY * its place when the first items are ordered
    by where the query stands in the item's own list of queries). Places count from 1. (Yuan et al. 2022, GaLR,
    doi:10.1109/TGRS.2022.3163706; i2t_rerank_optim in xiaoyuan1996/GaLR, postprocessing/rerank.py, with its weights for
    RSICD.)

    The source leaves open, and here is settled: among equal scores every item has their mean place; items in whose
    lists the query stands equally keep their order; the share is of scores cut at 0, so that it means something where
    some are below; the other items follow by score.
    """
    places = rankdata(-scores, axis=1)
    first = places <= RERANK_TOP
    back = rankdata(-scores, axis=0)  # place of the query in the item's list
    again = rankdata(np.where(first, back * (scores.shape[1] + 1) + places, np.inf), axis=1)
    above = np.maximum(scores, 0.0, dtype=np.float64)
    share = above / np.maximum(above.sum(axis=0), 1e-12)
    made = RERANK_SHARE * share + np.exp(-RERANK_DECAY * places) + RERANK_BACK * np.exp(-RERANK_DECAY * again)
    return np.where(first, made, scores - scores.max() - 1)


def with_protocols(metrics: Mapping[str, Mapping], others: Mapping[str, Mapping]) -> dict:
    """The metrics of a report where each method's source also has the key "protocols".

    Args:
        others: what ``score_protocols`` gives.
    """
    return {
        method: {
            source: entry | {"protocols": others[method][source]} if method in others else entry
            for source, entry in own.items()
        }
        for method, own in metrics.items()
    }


def protocol_spread(metrics: Mapping[str, Mapping]) -> pd.DataFrame:
    """One row a method, source and protocol: how far the protocol alone moves a model's recalls, as fractions.

    Columns method, source, protocol, mean_recall and the six recalls; low, high (95 % interval of mean_recall), n (images),
    difference (of mean_recall from that under remoteclip, NaN where it was not scored) and transductive.

    Args:
        metrics: METRICS/score_retrieval.json, as ``with_protocols`` makes it. The main protocol, which "protocol" names,
            comes first.
    """
    main, rows = metrics.get("protocol", {}).get("name"), []
    for method, sources in metrics.items():
        for source, own in sources.items() if method not in RESERVED else ():
            scored = ({main: own["by_image"]} if main else {}) | own.get("protocols", {})
            base = scored.get("remoteclip", {"mean_recall": {"value": np.nan}})["mean_recall"]["value"]
            for name, scores in scored.items():
                mean = scores["mean_recall"]
                row = {"method": method, "source": source, "protocol": name}
                row |= {recall: scores[recall]["value"] for recall in PAIRED}
                row |= {key: np.nan if mean[key] is None else mean[key] for key in ("low", "high", "n")}
                rows.append(row | {"difference": mean["value"] - base, "transductive": PROTOCOLS[name].transductive})
    named = ["method", "source", "protocol", *PAIRED, "low", "high", "n", "difference", "transductive"]
    return pd.DataFrame(rows, columns=named)


PROTOCOL = {
    "published": "RemoteCLIP remoteclip_retrieval.py (after CLIP_benchmark): images once by file name, all caption rows",
    "by_image": "right answer = the image's own caption rows, the caption row's own image (the published rule)",
    "by_text": "right answer = also every other row, every other image, that has the same text",
    "ties": "expected value over a random order; optimistic and pessimistic bounds beside it",
    "ceiling": "by_image recall of an oracle: 1 where the text is one of the image's captions, else 0; ties at random",
    "mean_recall": "mean of R@1, R@5 and R@10 in both directions",
    "median_rank": "median place of the first right answer, counted from 1, expected over ties",
    "map": "mean over queries of average precision, expected over ties (McSherry and Najork 2008)",
    "p5, p10": "mean share of right answers among the first k, expected over ties; p1 is R@1",
    "by_class": "by_image recalls of the images with that label and of their captions, against the whole gallery",
    "paired": "difference of two methods on the same images, resampled together; p two-sided, uncorrected",
    "unit": "fraction",
}
PAIRED = ("mean_recall", *(f"{way}_recall_at_{k}" for way in DIRECTIONS for k in KS))


@dataclass(frozen=True)
class RetrievalReport:
    """Scores of several methods on several test sets."""

    metrics: dict  # {method: {source: score_retrieval's dict and "by_class"}, "paired": {source: {pair: ...}}}
    per_image: pd.DataFrame  # one row a method, source, match rule and image
    curves: pd.DataFrame  # method, source, match, direction, k, recall; with the method "ceiling"


@dataclass(frozen=True)
class Method:
    """How a method finds: a space, and where it reorders what a text finds, by source."""

    space: EmbeddingSpace
    reordering: Mapping[str, Reordering] = field(default_factory=dict)


def score_methods(
    methods: Mapping[str, EmbeddingSpace | Method],
    tests: Mapping[str, RetrievalSet],
    *,
    labels: Mapping[str, str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> RetrievalReport:
    """Every method on every test set, by inner product of the spaces' vectors (so they come normalised or weighted).

    Args:
        methods: by name.
        tests: by source, as retrieval_sets gives them.
        labels: image_id -> class, of the images that have one.
        resamples: of the bootstrap over images, 1 or more.
    """
    metrics: dict = {method: {} for method in methods} | {"paired": {}}
    per_image, curves = [], []
    for source, test in tests.items():
        ceiling = perfect_ranks(test)
        curves += _curve_rows("ceiling", source, "by_image", ceiling)
        best = summarise_ranks(test, ceiling, resamples=resamples, seed=seed)
        drawn = {}
        for method, given in methods.items():
            own = given if isinstance(given, Method) else Method(given)
            vectors = own.space.images(test.image_ids), own.space.text(test.texts)
            metrics[method][source] = {"ceiling": best}
            for rule in MATCH_RULES:
                ranks = rank_retrieval(test, *vectors, rule, normalize=False)
                reordering = own.reordering.get(source)
                precision, reordered = precision_scores(test, *vectors, rule, reordering)
                if reordering is not None:
                    ranks = ranks | {"text_to_image": reordered}
                options = {"precision": precision, "resamples": resamples, "seed": seed}
                metrics[method][source][rule] = summarise_ranks(test, ranks, **options)
                names = {"method": method, "source": source, "match": rule}
                per_image.append(image_scores(test, ranks).assign(**names))
                curves += _curve_rows(method, source, rule, ranks)
                if rule == "by_image":
                    metrics[method][source]["by_class"] = class_recalls(test, ranks, labels or {})
                    drawn[method] = draw_recalls(test, ranks, resamples=resamples, seed=seed)
        metrics["paired"][source] = compare_methods(drawn, len(test.image_ids))
    scores = pd.concat(per_image, ignore_index=True)
    named = ["method", "source", "match", "image_id"]
    scores = scores[[*named, *(column for column in scores if column not in named)]]
    columns = ["method", "source", "match", "direction", "k", "recall"]
    return RetrievalReport(metrics, scores, pd.DataFrame(curves, columns=columns))


def image_scores(test: RetrievalSet, ranks: dict[str, Ranks]) -> pd.DataFrame:
    """One row an image: its own ranks and hits as a query, and the means over its captions as queries."""
    there, back = ranks["image_to_text"], ranks["text_to_image"]
    counts = np.bincount(test.row_image, minlength=len(test.image_ids))

    def over_captions(values: np.ndarray) -> np.ndarray:
        return (np.bincount(test.row_image, values, minlength=len(counts)) / counts).round(DECIMALS)

    columns = {"image_id": test.image_ids, "captions": counts}
    columns |= {f"image_to_text_{name}": getattr(there, name) for name in ("greater", "equal", "tied")}
    columns["image_to_text_rank"] = first_places(there).round(DECIMALS)
    columns |= {f"image_to_text_recall_at_{k}": hits(there, k).round(DECIMALS) for k in KS}
    columns["text_to_image_rank"] = over_captions(first_places(back))
    return pd.DataFrame(columns | {f"text_to_image_recall_at_{k}": over_captions(hits(back, k)) for k in KS})


def class_recalls(test: RetrievalSet, ranks: dict[str, Ranks], labels: Mapping[str, str]) -> dict[str, dict]:
    """class -> {"images", "captions", six recalls, "mean_recall"}: expected values, as fractions.

    A class has few images: a recall of 10 of them moves in steps of a tenth.
    """
    classes: dict[str, list[int]] = {}
    for number, image_id in enumerate(test.image_ids):
        if image_id in labels:
            classes.setdefault(labels[image_id], []).append(number)
    found = {}
    for name in sorted(classes):
        chosen = {"image_to_text": classes[name], "text_to_image": np.isin(test.row_image, classes[name])}
        own = recalls({way: Ranks(*(part[chosen[way]] for part in ranks[way])) for way in DIRECTIONS})
        found[name] = {"images": len(classes[name]), "captions": int(chosen["text_to_image"].sum())} | rounded(own)
    return found


def compare_methods(drawn: Mapping[str, tuple[Mapping, Mapping]], n: int) -> dict[str, dict]:
    """ "A - B" -> recall -> {"value", "low", "high", "p", "n"} of A's less B's, by image, for every pair of methods.

    Args:
        drawn: method -> what draw_recalls gives.
        n: images.
    """
    pairs = {}
    for (first, a), (second, b) in combinations(drawn.items(), 2):
        pairs[f"{first} - {second}"] = {
            name: difference_of_draws(a[0][name] - b[0][name], a[1][name] - b[1][name], n) for name in PAIRED
        }
    return pairs


def _curve_rows(method: str, source: str, rule: str, ranks: Mapping[str, Ranks]) -> list[tuple]:
    return [(method, source, rule, way, k, hits(ranks[way], k).mean()) for way in DIRECTIONS for k in CURVE_KS]
