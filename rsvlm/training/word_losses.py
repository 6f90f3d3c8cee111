"""Where a captioner's loss comes from: each word of validation captions, each kind of answers to instructions."""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch

from rsvlm.data.table import evenly_spaced
from rsvlm.models.capret import CapRet
from rsvlm.models.features import Features
from rsvlm.models.instructions import Asked
from rsvlm.models.neighbours import WORD
from rsvlm.settings import CaptioningSettings
from rsvlm.training.caption_batches import Example, instruction_batches, validation_batches

LOOKED_AT = 16  # images, evenly spaced
STARTS = ("Ġ", "▁")  # how tokenizers mark a token that begins a word
END = "end of caption"


@torch.inference_mode()
def word_losses(
    captioner: CapRet, features: Features, examples: Sequence[Example], settings: CaptioningSettings
) -> pd.DataFrame:
    """One row a word of the captions of some examples: image_id, caption (its number), word, nats, tokens, in_prompt.

    ``nats`` is the sum over the word's tokens, as in validation: fixed prompt, upright view, each different caption.
    The captioner is left in evaluation mode. Marks stand as words, and so does the end of a caption, END. ``in_prompt``:
    the neighbours' captions have the word.
    """
    plain = type(settings)(**dict(settings) | {"retrieval_weight": 0.0, "ret_token_weight": 0.0})
    chosen, rows = [examples[place] for place in evenly_spaced(len(examples), LOOKED_AT)], []
    captioner.eval()
    for start in range(0, len(chosen), settings.batch_size):
        part = chosen[start : start + settings.batch_size]
        (batch,) = validation_batches(captioner, features, part, plain)
        packed = captioner.pack(batch.rows)
        hidden = captioner.hidden_states(packed, batch.visual_tokens(captioner))
        nats = captioner.negative_log_likelihoods(hidden.index_select(0, packed.predict_at), packed.labels)
        owners, labels, nats = packed.owners.tolist(), packed.labels.tolist(), nats.cpu().tolist()
        of_caption = [example for example in part for _ in dict.fromkeys(example.captions)]
        for number, example in enumerate(of_caption):
            places = [place for place, owner in enumerate(owners) if owner == number]
            known = {word for text in example.neighbours for word in WORD.findall(text.lower())}
            for own in _split_words(captioner, [labels[place] for place in places]):
                word = captioner.decode_text([labels[places[place]] for place in own]) or END
                cost = sum(nats[places[place]] for place in own)
                caption = number - of_caption.index(example)
                rows.append((example.image_id, caption, word, round(cost, 4), len(own), word.lower() in known))
    return pd.DataFrame(rows, columns=["image_id", "caption", "word", "nats", "tokens", "in_prompt"])


def summarise_words(before: pd.DataFrame, after: pd.DataFrame) -> dict[str, float]:
    """Mean nats a token before and after; after, of words that the prompt's neighbours have and of all others."""

    def mean(rows: pd.DataFrame) -> float | None:
        return round(float(rows["nats"].sum() / rows["tokens"].sum()), 4) if len(rows) else None

    return {
        "images": int(after["image_id"].nunique()),
        "before": mean(before),
        "after": mean(after),
        "in_prompt": mean(after[after["in_prompt"]]),
        "not_in_prompt": mean(after[~after["in_prompt"]]),
    }


@torch.inference_mode()
def instruction_losses(
    captioner: CapRet,
    features: Features,
    asked: Sequence[Asked],
    settings: CaptioningSettings,
    *,
    near: Mapping[str, Sequence[str]] | None = None,
    most: int = 24,
) -> pd.DataFrame:
    """The loss of answers by kind, a row a kind: nats (mean a token, each answer counting alike), answers, tokens.

    Args:
        near: image id -> the neighbours' captions that its instructions stand behind; None: they stand alone.
        most: answers of a kind that are looked at, evenly spaced; 0: all.
    """
    captioner.eval()
    rows = []
    for kind in sorted({one.kind for one in asked}):
        own = [one for one in asked if one.kind == kind]
        own = [own[place] for place in evenly_spaced(len(own), most)]
        total, tokens = 0.0, 0
        for batch in instruction_batches(captioner, features, own, settings, near):
            packed = captioner.pack(batch.rows)
            hidden = captioner.hidden_states(packed, batch.visual_tokens(captioner))
            nats = captioner.negative_log_likelihoods(hidden.index_select(0, packed.predict_at), packed.labels)
            total += (nats * batch.weights.to(nats.device).index_select(0, packed.owners)).sum().item()
            tokens += len(nats)
        rows.append({"kind": kind, "nats": round(total / len(own), 4), "answers": len(own), "tokens": tokens})
    return pd.DataFrame(rows, columns=["kind", "nats", "answers", "tokens"])


def _split_words(captioner: CapRet, ids: list[int]) -> list[list[int]]:
    """The places of a caption's tokens, word by word; the end token comes last and alone."""
    pieces = captioner.tokenizer.convert_ids_to_tokens(ids)
    words: list[list[int]] = []
    for place, piece in enumerate(pieces):
        mark = not any(letter.isalnum() for letter in piece)
        goes_on = words and not mark and not piece.startswith(STARTS) and ids[place] != captioner.eos_id
        if goes_on and any(letter.isalnum() for letter in pieces[place - 1]):
            words[-1].append(place)
        else:
            words.append([place])
    return words
