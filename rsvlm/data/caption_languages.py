"""The captions of an image table in other languages, beside the English ones that they stand for.

Translations come as rows ``{"image_id", "language", "captions": [text | None, ...], "how"}``, as many captions and in the order
of the table's (``rsvlm.data.translations``).
"""

from collections.abc import Sequence

import pandas as pd

ENGLISH = "en"


def captions_by_language(
    table: pd.DataFrame, translations: pd.DataFrame, languages: Sequence[str]
) -> dict[str, pd.DataFrame]:
    """language -> the images that have captions in it, in the table's order; "en" first, which is the table itself.

    Columns image_id, source, split, captions (those that are there, in their order), english (of the same captions) and how.

    Args:
        translations: columns image_id, language, captions, how.
        languages: codes without "en".

    Raises:
        ValueError: "en" among the languages, a language without any caption, or as many captions as the table has not.
    """
    if ENGLISH in languages:
        raise ValueError("languages: English is there anyway; leave 'en' out")
    columns = ["image_id", "source", "split", "captions"]
    found = {ENGLISH: table[columns].assign(english=table["captions"], how="as released")}
    for language in languages:
        own = translations[translations["language"] == language]
        given = {row.image_id: (row.captions, row.how) for row in own.itertuples(index=False)}
        rows = []
        for image in table[columns].itertuples(index=False):
            texts, how = given.get(image.image_id, ([None] * len(image.captions), ""))
            if len(texts) != len(image.captions):
                raise ValueError(
                    f"{image.image_id}: {len(texts)} captions in {language} for {len(image.captions)} in English; run the "
                    "stage aggregate_data again"
                )
            pairs = [(text, english) for text, english in zip(texts, image.captions) if text]
            if pairs:
                rows.append((image.image_id, image.source, image.split, *map(list, zip(*pairs)), how))
        if not rows:
            has = ", ".join(sorted(set(translations["language"]))) or "none"
            raise ValueError(
                f"languages: no caption in {language!r}; translations there are: {has}. Give a source `translations`, or take "
                "the language out"
            )
        found[language] = pd.DataFrame(rows, columns=[*columns, "english", "how"])
    return found


def distinct_pairs(rows: pd.DataFrame, most: int = 0) -> pd.DataFrame:
    """One row an image and different caption of it, in their order: image_id, text, english.

    Args:
        rows: of ``captions_by_language``.
        most: different captions of an image, at most, evenly spread over those that it has; 0: all.
    """
    made = []
    for image_id, texts, english in zip(rows["image_id"], rows["captions"], rows["english"]):
        own = list(dict(zip(texts, english)).items())
        step = max(1.0, len(own) / most) if most else 1.0
        chosen = [own[int(place * step)] for place in range(min(most or len(own), len(own)))]
        made += [(image_id, text, original) for text, original in chosen]
    return pd.DataFrame(made, columns=["image_id", "text", "english"])
