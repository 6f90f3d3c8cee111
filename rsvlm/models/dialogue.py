"""Talking with the captioner: text and images in any order; it answers with words and, by ``[RET]``, with images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from rsvlm.kernels import similarity_topk
from rsvlm.models.capret import CapRet
from rsvlm.models.decoding import start_rows
from rsvlm.models.sequences import VISUAL
from rsvlm.models.visual_inputs import VisualInput


@dataclass(frozen=True)
class Reply:
    """An answer: words, and the images found if the model asked for some (best first, with their cosines)."""

    text: str
    asked_for_images: bool
    image_ids: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()


@torch.inference_mode()
def reply(
    captioner: CapRet,
    history: Sequence[str | VisualInput],
    *,
    image_ids: Sequence[str] = (),
    image_embeddings: np.ndarray | None = None,
    k: int = 3,
    max_new_tokens: int = 40,
    ret_bias: float = 0.0,
) -> Reply:
    """The captioner's answer to a history of texts and images, greedily decoded.

    When ``[RET]`` comes, the answer ends and the k images nearest to it in the retrieval space are found.

    Args:
        history: texts and images in order; an image is a ``VisualInput`` of one image (``read_visual`` of one row).
        image_ids: the images that can be found.
        image_embeddings: (n, R) as ``embed_images_ret`` gives them, in the order of ``image_ids``.
        ret_bias: added to the logit of ``[RET]``: higher values bring images sooner.

    Raises:
        ValueError: an empty history, or numbers of ids and embeddings that differ.
    """
    n_images = 0 if image_embeddings is None else len(image_embeddings)
    if n_images != len(image_ids):
        raise ValueError(f"{len(image_ids)} image_ids for {n_images} image_embeddings: expected as many")
    prefix, visual = list(captioner.start_ids), []
    for turn in history:
        if isinstance(turn, str):
            prefix += captioner.encode_text([turn.strip()])[0] if turn.strip() else []
            continue
        tokens = captioner.visual_tokens(turn.pooled, turn.grid)
        if len(tokens) != 1:
            raise ValueError(f"an image of the history holds {len(tokens)} images: give each as a turn of its own")
        visual.append(tokens[0])
        prefix += [VISUAL] * len(tokens[0])
    if len(prefix) == len(captioner.start_ids):
        raise ValueError("the history holds neither text nor image: there is nothing to reply to")
    rows = start_rows(captioner, [prefix], torch.cat(visual) if visual else None)
    words: list[int] = []
    for _ in range(max_new_tokens):
        token = rows.log_probabilities(ret_bias).argmax(-1)
        if token.item() == captioner.eos_id:
            break
        rows.advance(token)
        if token.item() == captioner.ret_id:
            answer = Reply(captioner.decode_text(words), asked_for_images=True)
            if not n_images:
                return answer
            scores, found = similarity_topk(captioner.embed_ret(rows.hidden).cpu(), image_embeddings, min(k, n_images))
            return replace(
                answer, image_ids=tuple(image_ids[i] for i in found[0].tolist()), scores=tuple(scores[0].tolist())
            )
        words.append(token.item())
    return Reply(captioner.decode_text(words), asked_for_images=False)
