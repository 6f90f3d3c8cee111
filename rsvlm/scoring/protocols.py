"""Retrieval protocols by name. A recall without its protocol's name says little: the name travels with the number."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from rsvlm.scoring.embedding_spaces import EmbeddingSpace
from rsvlm.scoring.retrieval import rank_retrieval, summarise_ranks
from rsvlm.scoring.retrieval_sets import RetrievalSet, with_texts_once


@dataclass(frozen=True)
class Protocol:
    """How captions become queries and gallery rows; the rest is RemoteCLIP's (see rsvlm.scoring.retrieval)."""

    name: str
    says: str
    prefix: str = ""  # put before the caption
    texts_once: bool = False  # equal texts are one row, right for every image that has it
    capitalise: bool = True  # caption.capitalize() before the encoder


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("remoteclip", "captions as raw.capitalize(), every caption row of the split, no prompt (published)"),
        Protocol("raw", "captions as in the caption table, every caption row, no prompt", capitalise=False),
        Protocol("prompted", "as remoteclip, behind a prompt", prefix="a satellite photo of "),
        Protocol("texts_once", "as remoteclip, but equal texts are one row, right for all their images", "", True),
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
            test = with_texts_once(whole) if protocol.texts_once else whole
            for method, space in spaces.items():
                if other and method != encoded:
                    continue
                texts = [protocol.prefix + text for text in test.texts]
                vectors = encode(texts, protocol.capitalise) if other else space.text(test.texts)
                ranks = rank_retrieval(test, space.images(test.image_ids), vectors, "by_image", normalize=False)
                made[method][source][protocol.name] = summarise_ranks(test, ranks, resamples=resamples, seed=seed)
    return made


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
