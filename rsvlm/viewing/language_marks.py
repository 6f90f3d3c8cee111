"""Captions in other languages beside an image's English ones, and the marks that tell which language they are in."""

from collections.abc import Mapping

import pandas as pd

from rsvlm.data.caption_languages import ENGLISH
from rsvlm.data.translations import HOW_NAMES
from rsvlm.languages import language_name


def captions_by_image(translations: pd.DataFrame) -> dict[str, dict[str, list[str]]]:
    """image id -> language -> its captions in it, those that are there, in their order; languages by code.

    Args:
        translations: as ``rsvlm.data.translations.load_translations`` gives them; likewise below.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for row in translations.sort_values("language", kind="stable").itertuples(index=False):
        if texts := [text for text in row.captions if text]:
            found.setdefault(row.image_id, {})[row.language] = texts
    return found


def how_captions_came(translations: pd.DataFrame) -> dict[str, str]:
    """language -> how its captions came about, in words: ``machine-translated``, or several joined by "or"."""
    ways = translations.groupby("language")["how"]
    return {code: " or ".join(sorted({HOW_NAMES[how] for how in own})) for code, own in ways}


def language_marks(how: Mapping[str, str]) -> dict[str, list[str]]:
    """code -> [name, how the captions in it came about], English first, for the marks beside captions; none without others.

    Args:
        how: as ``how_captions_came`` gives it.
    """
    return {code: [language_name(code), how.get(code, "as released")] for code in (ENGLISH, *how)} if how else {}
