"""Retrieval scores of given vectors, as several test files ask for them."""

import numpy as np

from rsvlm.scoring.retrieval import (
    MATCH_RULES,
    EmbeddingSpace,
    perfect_ranks,
    rank_retrieval,
    retrieval_set,
    summarise_ranks,
)


def score_vectors(images, text, image_ids, captions, texts, *, resamples=1000, seed=0):
    """{"by_image", "by_text", "ceiling"} -> what summarise_ranks returns; of a repeated image its first vector counts."""
    test = retrieval_set(image_ids, captions)
    rows = [image_ids.index(image_id) for image_id in test.image_ids]
    space = EmbeddingSpace(test.image_ids, np.asarray(images)[rows], texts, text)
    vectors = space.images(test.image_ids), space.text(test.texts)
    ranks = {rule: rank_retrieval(test, *vectors, rule) for rule in MATCH_RULES} | {"ceiling": perfect_ranks(test)}
    return {name: summarise_ranks(test, own, resamples=resamples, seed=seed) for name, own in ranks.items()}
