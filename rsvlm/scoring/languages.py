"""Captions in a language held against references in it: is it the language at all, and BLEU, chrF and CIDEr.

BLEU (Papineni et al. 2002) and chrF (Popović 2015) are sacrebleu's (Post 2018), with the settings that its signatures
tell, on the texts as they are. CIDEr is pycocoevalcap's on language-aware tokens, its document frequencies from the
references that are evaluated, as for English: so one call must hold all images of one source and split.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache

import numpy as np
import pandas as pd

from rsvlm.extras import import_extra
from rsvlm.languages import WITHOUT_SPACES, check_language, detect_language, language_name
from rsvlm.models.answering import answer_tasks
from rsvlm.models.capret import CapRet
from rsvlm.models.features import Features
from rsvlm.models.instructions import KnownInstructions
from rsvlm.models.neighbours import Spoken, consensus_captions
from rsvlm.models.wishes import DESCRIBE
from rsvlm.scoring.bootstrap import bootstrap_corpus, mean_of, mean_statistics
from rsvlm.scoring.captions import check_images, cider_scores
from rsvlm.scoring.language_retrieval import LanguageTest

AMONG = ("de", "en", "es", "fr", "pt", "zh")  # languages that a caption is told apart among


def caption_tokens(text: str, language: str) -> str:
    """The words of a text in lower case without punctuation, between spaces; of Chinese and Japanese the characters.

    sacrebleu's tokenizers: ``zh`` for Chinese, ``char`` where words are not set apart, ``intl`` elsewhere, which parts
    ``l'image`` into ``l image``.
    """
    words = _tokenizer(check_language(language, "caption_tokens"))(text.lower()).split()
    return " ".join(word for word in words if any(map(str.isalnum, word)))


@cache
def _tokenizer(language: str) -> Callable[[str], str]:
    sacrebleu = import_extra("sacrebleu", "scoring captions in other languages")
    name = "zh" if language == "zh" else "char" if language in WITHOUT_SPACES else "intl"
    return sacrebleu.BLEU(tokenize=name).tokenizer


def caption_language_scores(
    hypotheses: Mapping[str, str],
    references: Mapping[str, Sequence[str | None]],
    language: str,
    *,
    among: Collection[str] = AMONG,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, object]:
    """Scores of one caption an image in a language against the image's references in it.

    Args:
        hypotheses: image_id -> caption, for every image of one source and split.
        references: image_id -> captions in the language, None for one that has no translation.
        among: languages that the captions are told apart among; ``language`` is added.
        seed, resamples: of the bootstrap over images.

    Returns:
        ``right_language``, ``BLEU``, ``chrF`` (fractions) and ``CIDEr``, each {"value", "low", "high", "n"} with a 95 %
        interval over images; ``language``; ``detected``: language or ``none`` -> number of captions; ``protocol``:
        sacrebleu's signatures and the tokens of CIDEr.

    Raises:
        ValueError: the images differ, or an image has no reference; names some.
        ModuleNotFoundError: sacrebleu or py3langid is missing.
    """
    sacrebleu = import_extra("sacrebleu", "scoring captions in other languages")
    check_language(language, "caption_language_scores")
    given = {image_id: [text for text in texts if text is not None] for image_id, texts in references.items()}
    check_images(hypotheses, given)
    ids = list(hypotheses)
    said = [hypotheses[image_id] for image_id in ids]
    found = [detect_language(text, {*among, language}) or "none" for text in said]
    most = max(map(len, given.values()))
    streams = [[given[image_id][at] if at < len(given[image_id]) else None for image_id in ids] for at in range(most)]
    bleu = sacrebleu.BLEU(tokenize="zh" if language == "zh" else "char" if language in WITHOUT_SPACES else "13a")
    chrf = sacrebleu.CHRF()
    statistics = {
        "right_language": (mean_statistics(np.array([code == language for code in found])), mean_of),
        "BLEU": _sacrebleu_statistics(bleu, said, streams),
        "chrF": _sacrebleu_statistics(chrf, said, streams),
    }
    truths = {image_id: [caption_tokens(text, language) for text in given[image_id]] for image_id in ids}
    results = {image_id: [caption_tokens(hypotheses[image_id], language)] for image_id in ids}
    statistics["CIDEr"] = (mean_statistics(cider_scores(truths, results)), mean_of)
    scores: dict[str, object] = {
        name: bootstrap_corpus(values, corpus, seed=seed, resamples=resamples)
        for name, (values, corpus) in statistics.items()
    }
    return scores | {
        "language": language,
        "detected": {code: found.count(code) for code in sorted(set(found))},
        "protocol": {
            "BLEU": str(bleu.get_signature()),
            "chrF": str(chrf.get_signature()),
            "CIDEr": "characters" if language in WITHOUT_SPACES else "words, lower case, no punctuation",
            "right_language": f"py3langid among {', '.join(sorted({*among, language}))}",
        },
    }


def say_consensus(
    tests: Mapping[str, Mapping[str, LanguageTest]],
    features: Features,
    spoken: Mapping[str, Spoken],
    pooling: Mapping[str, float],
) -> dict[str, dict[str, dict[str, str]]]:
    """source -> language -> image id -> the consensus of the nearest training images' captions in it.

    No model writes these captions: they are what one that does has to beat. The dialogue says them where none does.

    Args:
        tests: as ``language_tests`` gives them.
        spoken: as ``rsvlm.models.neighbours.spoken_languages`` gives it; languages that it lacks are left out.
        pooling: ``k`` and ``temperature`` of ``Memory.pools``.
    """

    def say(ids: list[str], language: str) -> dict[str, str]:
        vectors = np.asarray(features.image_embeddings[features.rows(ids)])
        return consensus_captions(spoken[language].memory, vectors, ids, **pooling)

    return _say_in_each(tests, spoken, say)


def say_captioner(
    tests: Mapping[str, Mapping[str, LanguageTest]],
    features: Features,
    captioner: CapRet | None,
    near: Mapping[str, Sequence[str]] | None = None,
    **options: object,
) -> dict[str, dict[str, dict[str, str]]]:
    """source -> language -> image id -> what a captioner says to "Describe the image in Portuguese.", greedily.

    It is asked in the languages that instructions taught it (``finetune_lora.instruction_share`` with tasks of the kind
    ``language``); nothing without one.

    Args:
        tests: as ``language_tests`` gives them.
        captioner: None for none.
        near: image id -> the neighbours' captions that instructions about it stand behind; None: they stand alone.
        options: of ``rsvlm.models.answering.answer_tasks``: max_new_tokens, batch_size, checkpoints.
    """

    def say(ids: list[str], language: str) -> dict[str, str]:
        asked = [DESCRIBE.format(language=language_name(language))] * len(ids)
        answers = answer_tasks(captioner, features, ids, asked, near=near, margins=False, **options)
        return dict(zip(ids, answers["answer"], strict=True))

    return _say_in_each(tests, KnownInstructions.of(captioner).languages if captioner else (), say)


def _say_in_each(
    tests: Mapping[str, Mapping[str, LanguageTest]],
    languages: Collection[str],
    say: Callable[[list[str], str], dict[str, str]],
) -> dict[str, dict[str, dict[str, str]]]:
    said: dict[str, dict[str, dict[str, str]]] = {}
    for source, own in tests.items():
        for language, one in own.items():
            if language in languages:
                said.setdefault(source, {})[language] = say(one.test.image_ids, language)
    return said


def score_said(
    tests: Mapping[str, Mapping[str, LanguageTest]],
    said: Mapping[str, Mapping[str, Mapping[str, str]]],
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, dict[str, dict]]:
    """source -> language -> ``caption_language_scores`` of what was said of the test images, and ``how`` the references came.

    Args:
        tests: as ``language_tests`` gives them; their captions are the references.
        said: as ``say_consensus`` and ``say_captioner`` give it.
    """
    made: dict[str, dict[str, dict]] = {}
    for source, own in said.items():
        for language, captions in own.items():
            one = tests[source][language]
            references: dict[str, list[str]] = {image_id: [] for image_id in one.test.image_ids}
            for row, text in zip(one.test.row_image, one.test.captions, strict=True):
                references[one.test.image_ids[row]].append(text)
            scores = caption_language_scores(captions, references, language, seed=seed, resamples=resamples)
            made.setdefault(source, {})[language] = scores | {"how": one.how}
    return made


def said_table(said: Mapping[str, Mapping[str, Mapping[str, Mapping[str, str]]]]) -> pd.DataFrame:
    """A row a caption: run, source, language, image_id, caption.

    Args:
        said: run -> what ``say_consensus`` or ``say_captioner`` gives.
    """
    rows = [
        (run, source, language, image_id, text)
        for run, sources in said.items()
        for source, own in sources.items()
        for language, captions in own.items()
        for image_id, text in captions.items()
    ]
    return pd.DataFrame(rows, columns=["run", "source", "language", "image_id", "caption"])


def _sacrebleu_statistics(
    metric: object, hypotheses: list[str], streams: list[list[str | None]]
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """What each image adds to the sums of one of sacrebleu's metrics, and the score of sums (..., k) as a fraction.

    The sums are those of sacrebleu's own bootstrap, which draws other images for each metric.
    """
    metric.corpus_score(hypotheses, streams)  # checks the texts and notes the number of references for the signature
    values = np.array(metric._extract_corpus_statistics(hypotheses, streams), dtype=np.float64)

    def score(sums: np.ndarray) -> np.ndarray:
        return np.apply_along_axis(lambda row: metric._compute_score_from_stats(row.tolist()).score / 100, -1, sums)

    return values, score
