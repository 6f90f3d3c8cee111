"""CLIPScore and RefCLIPScore (Hessel et al. 2021) from the study's own dual encoder.

CLIPScore = 2.5 max(cos(image, caption), 0) needs no references. RefCLIPScore is the harmonic mean of it and the highest
cosine of the caption to a reference, 0 where that is negative. Published figures come from OpenAI's CLIP with the
prompt "A photo depicts"; here the encoder is the study's, adapted to these images, without a prompt. So the scores
compare runs of one study and nothing else. They also favour captions that were chosen by the same encoder's neighbours.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from rsvlm.scoring.embedding_spaces import EmbeddingSpace

WEIGHT = 2.5
PROTOCOL = (
    "2.5 * max(cosine, 0) of image and caption in the study's encoder, no prompt; RefCLIPScore: harmonic mean with the"
    " highest cosine to a reference (Hessel et al. 2021). Not comparable with figures from another encoder."
)


def clip_scores(
    generated: Mapping[str, str], references: Mapping[str, Sequence[str]], space: EmbeddingSpace
) -> dict[str, np.ndarray]:
    """{"CLIPScore": (n,), "RefCLIPScore": (n,)} of each image's caption, in the order of ``generated``.

    A caption without a word scores 0.

    Args:
        space: unit vectors of the images, the captions and the references.

    Raises:
        ValueError: an image or text has no vector; names it.
    """
    image_ids = list(generated)
    captions = space.text([generated[image_id] for image_id in image_ids]).astype(np.float64)
    images = space.images(image_ids).astype(np.float64)
    wordless = np.array([not any(map(str.isalnum, generated[image_id])) for image_id in image_ids])
    plain = WEIGHT * np.maximum((images * captions).sum(axis=1), 0)
    plain[wordless] = 0
    nearest = np.zeros(len(image_ids))
    for row, image_id in enumerate(image_ids):
        own = space.text(list(dict.fromkeys(references[image_id]))).astype(np.float64)
        nearest[row] = max(float((own @ captions[row]).max()), 0.0)
    total = plain + nearest
    both = np.divide(2 * plain * nearest, total, out=np.zeros_like(total), where=total > 0)
    return {"CLIPScore": plain, "RefCLIPScore": both}
