"""Captions measured: their metrics per corpus and per image, their variety, and the classes that they wrongly name.

BLEU-1..4, METEOR, ROUGE_L, CIDEr and SPICE are as pycocoevalcap computes them. All see the same PTB tokens. CIDEr's
document frequencies come from the references that are evaluated, so one call must hold all images of one source and
split: batches or subsets would give other numbers.

CLIPScore = 2.5 max(cos(image, caption), 0) needs no references; RefCLIPScore is the harmonic mean of it and the highest
cosine of the caption to a reference, 0 where that is negative (Hessel et al. 2021). Published figures come from OpenAI's
CLIP with the prompt "A photo depicts"; here the encoder is the study's, adapted to these images, without a prompt. So
the scores compare runs of one study and nothing else. They also favour captions that were chosen by the same encoder's
neighbours.

Classes are hallucination after CHAIR (Rohrbach et al. 2018), which knows what is in an image from its annotation and
its reference captions. Here: a class is in the image when its label says so or one of its references names it. A caption
hallucinates when it names a class that is not. ``class_names.txt`` has a class a line: those of UC Merced, RSICD and
NWPU-RESISC45 and the land groups of the Blue Marble captions, each with the words by which captions call it, in
singular, as PTB tokens; the first is how it is called in a report. A word of a longer name is not counted again
("railway station" names no railway), plurals count, and words that every second caption uses for something else
("field", "square", "line") do not.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from rsvlm.content_cache import ContentCache
from rsvlm.scoring.bootstrap import mean_of, mean_statistics, resampled_sums, rounded
from rsvlm.scoring.java_metrics import spice_scores, tokenize_captions, why_not
from rsvlm.scoring.meteor import meteor_score, meteor_statistics
from rsvlm.scoring.retrieval import EmbeddingSpace

PTB_METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE_L", "CIDEr", "SPICE")
METRICS = (*PTB_METRICS, "CLIPScore", "RefCLIPScore")
BLEU_ORDERS = 4
NO_ENCODER = "not run: no encoder given"
CLIP_WEIGHT = 2.5
CLIP_PROTOCOL = (
    "2.5 * max(cosine, 0) of image and caption in the study's encoder, no prompt; RefCLIPScore: harmonic mean with the"
    " highest cosine to a reference (Hessel et al. 2021). Not comparable with figures from another encoder."
)
ORDERS = (1, 2, 3)
TEXT_PROTOCOL = (
    "words are PTB tokens; distinct_n: different n-grams over all n-grams of the run's captions (Li et al. 2016);"
    " copied: the share of captions that equal a training caption after tokenising"
)
CLASS_PROTOCOL = (
    "after CHAIR (Rohrbach et al. 2018), on the classes of rsvlm/scoring/class_names.txt: an image has a class when its"
    " label or one of its references names it; captions: share of captions that name another; names: share of the named"
    " classes that are others; interval over images"
)
CLASSES = [line.split(", ") for line in Path(__file__).with_name("class_names.txt").read_text("utf-8").splitlines()]
LONGEST = 3  # words of a name
# Labels such as RSICD's "railwaystation" are written without spaces.
_NAMES = {form: names[0] for names in CLASSES for name in names for form in (name, name.replace(" ", ""))}

Pair = tuple[str, list[str]]  # a tokenized caption and its tokenized references


@dataclass(frozen=True)
class CaptionScores:
    """One run's scores on one source and split.

    Attributes:
        corpus: metric -> score of the whole set; None where the metric was not run.
        per_image: one row an image, column image_id and one column a metric (absent where not run).
        statistics: metric -> (n, k) what each image adds to the sums that make the corpus score.
        reasons: metric -> why it was not run.
    """

    corpus: dict[str, float | None]
    per_image: pd.DataFrame
    statistics: dict[str, np.ndarray]
    reasons: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        """The corpus scores, a line each, and why a metric was not run."""
        scores = [f"{metric:<13}{value:.4f}" for metric, value in self.corpus.items() if value is not None]
        reasons = [f"{metric:<13}{reason}" for metric, reason in self.reasons.items()]
        return "\n".join([f"{len(self.per_image):,} images; .per_image has a row for each", *scores, *reasons])


@dataclass(frozen=True)
class ScoringTools:
    """What scoring works with, shared by all runs.

    Attributes:
        cache: what is known of texts already.
        spice_jars: folder with SPICE's missing jars; None: SPICE is not run.
        space: embeddings of all images and texts that are scored; None: no CLIPScore.
        encoder: fingerprint of the encoder that made them, for the record.
    """

    cache: ContentCache = field(default_factory=ContentCache)
    spice_jars: Path | None = None
    space: EmbeddingSpace | None = None
    encoder: str | None = None

    def tokenize(self, texts: Iterable[str]) -> dict[str, str]:
        """Text -> its PTB tokens."""
        return tokenize_captions(texts, self.cache)

    def ask_java(self, pairs: Sequence[Pair], pool: Executor) -> dict[str, Future]:
        """METEOR's and, where it can run, SPICE's statistics of these captions and references, side by side."""
        asked = {"METEOR": pool.submit(meteor_statistics, pairs, self.cache)}
        if not why_not(self.spice_jars):
            asked["SPICE"] = pool.submit(spice_scores, pairs, self.spice_jars, self.cache)
        return asked

    def prepare(self, pairs: Sequence[Pair]) -> None:
        """Let METEOR and SPICE meet these captions and references in one go, so that later calls know them."""
        with ThreadPoolExecutor(2) as pool:
            for asked in self.ask_java(pairs, pool).values():
                asked.result()


def score_captions(
    generated: Mapping[str, str] | pd.DataFrame,
    references: Mapping[str, Sequence[str]],
    *,
    distinct: bool = False,
    tools: ScoringTools | None = None,
    tokens: Mapping[str, str] | None = None,
) -> CaptionScores:
    """Scores of one caption an image against the image's references.

    Args:
        generated: image_id -> caption, for every image of one source and split; or what ``rsvlm.caption`` returns.
        references: image_id -> captions, for the same images.
        distinct: drop an image's repeated references (equal after tokenising).
        tools: cache, SPICE's jars, embeddings; None: nothing is kept, and neither SPICE nor CLIPScore is run.
        tokens: caption -> PTB tokens of all texts, where they are known already.

    Raises:
        ValueError: the images differ, or an image has no reference; names some.
        JavaNotFound: no Java runtime.
    """
    if isinstance(generated, pd.DataFrame):
        generated = dict(zip(generated["image"], generated["caption"], strict=True))
    check_images(generated, references)
    tools = tools or ScoringTools()
    if tokens is None:
        tokens = tools.tokenize([*generated.values(), *(text for texts in references.values() for text in texts)])
    pairs = token_pairs(generated, references, tokens, distinct=distinct)
    results = {image_id: [caption] for image_id, (caption, _) in pairs.items()}
    truths = {image_id: texts for image_id, (_, texts) in pairs.items()}
    with ThreadPoolExecutor(2) as pool:  # Java works while Python counts
        asked = tools.ask_java(list(pairs.values()), pool)
        bleu = bleu_statistics(truths, results)
        statistics = {f"BLEU-{order}": bleu for order in range(1, BLEU_ORDERS + 1)}
        statistics["ROUGE_L"] = mean_statistics(rouge_scores(truths, results))
        statistics["CIDEr"] = mean_statistics(cider_scores(truths, results))
        statistics["METEOR"] = asked["METEOR"].result()
        if "SPICE" in asked:
            statistics["SPICE"] = mean_statistics(np.array(asked["SPICE"].result()))
    reasons = {} if "SPICE" in asked else {"SPICE": why_not(tools.spice_jars)}
    if tools.space is None:
        reasons |= dict.fromkeys(("CLIPScore", "RefCLIPScore"), NO_ENCODER)
    else:
        ordered = {image_id: references[image_id] for image_id in generated}
        for metric, values in clip_scores(generated, ordered, tools.space).items():
            statistics[metric] = mean_statistics(values)
    return scores_from(list(generated), statistics, reasons)


def token_pairs(
    generated: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    tokens: Mapping[str, str],
    *,
    distinct: bool = False,
) -> dict[str, Pair]:
    """image_id -> (the caption's tokens, its references' tokens), in the order of ``generated``."""
    pairs = {}
    for image_id, caption in generated.items():
        texts = [tokens[text] for text in references[image_id]]
        pairs[image_id] = (tokens[caption], list(dict.fromkeys(texts)) if distinct else texts)
    return pairs


def scores_from(
    image_ids: Sequence[str], statistics: dict[str, np.ndarray], reasons: Mapping[str, str] | None = None
) -> CaptionScores:
    """CaptionScores made of per-image statistics."""
    corpus: dict[str, float | None] = dict.fromkeys(METRICS)
    columns = {"image_id": list(image_ids)}
    for metric in METRICS:
        if metric in statistics:
            corpus[metric] = float(corpus_function(metric)(statistics[metric].sum(axis=0)))
            columns[metric] = corpus_function(metric)(statistics[metric])
    return CaptionScores(corpus, pd.DataFrame(columns), statistics, dict(reasons or {}))


def subset(scores: CaptionScores, chosen: np.ndarray) -> CaptionScores:
    """The scores on the images where ``chosen`` (n,) is true. CIDEr's idf stays that of the whole set."""
    image_ids = scores.per_image["image_id"].to_numpy()[chosen]
    parts = {metric: values[chosen] for metric, values in scores.statistics.items()}
    return scores_from(list(image_ids), parts, scores.reasons)


def draw_scores(scores: CaptionScores, *, seed: int, resamples: int) -> dict[str, np.ndarray]:
    """metric -> (resamples,) corpus scores of images drawn with replacement.

    Runs with as many images are drawn alike for the same seed, so that their differences are paired.
    """
    blocks = {id(values): values for values in scores.statistics.values()}  # BLEU-1..4 share one
    widths = np.cumsum([0, *(values.shape[1] for values in blocks.values())])
    sums = resampled_sums(np.concatenate(list(blocks.values()), axis=1), seed=seed, resamples=resamples)
    at = {key: slice(*span) for key, span in zip(blocks, pairwise(widths), strict=True)}
    return {metric: corpus_function(metric)(sums[:, at[id(values)]]) for metric, values in scores.statistics.items()}


def corpus_function(metric: str) -> Callable[[np.ndarray], np.ndarray]:
    """The function from summed statistics (..., k) to the metric's scores (...)."""
    if metric.startswith("BLEU-"):
        order = int(metric.removeprefix("BLEU-"))
        return lambda sums: bleu_score(sums)[..., order - 1]
    return meteor_score if metric == "METEOR" else mean_of


def check_images(generated: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> None:
    """Raise ValueError unless both hold the same images, at least one, each with a caption and references."""
    if not references:
        raise ValueError("no images to score")
    for problem, ids in (
        ("without a generated caption", sorted(set(references) - set(generated))),
        ("without references", sorted(set(generated) - {key for key, texts in references.items() if len(texts)})),
        ("whose caption is no text", sorted(key for key, text in generated.items() if not isinstance(text, str))),
    ):
        if ids:
            raise ValueError(f"{len(ids)} images {problem}, such as {', '.join(map(repr, ids[:3]))}")


def bleu_statistics(truths: Mapping[str, Sequence[str]], results: Mapping[str, Sequence[str]]) -> np.ndarray:
    """(n, 10): words, closest reference's words, then n-grams guessed and n-grams correct for n = 1..4."""
    from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test

    rows = []
    for image_id, texts in truths.items():
        counts = cook_test(results[image_id][0], cook_refs(texts), eff="closest", n=BLEU_ORDERS)
        rows.append([counts["testlen"], counts["reflen"], *counts["guess"], *counts["correct"]])
    return np.array(rows, dtype=np.float64)


def bleu_score(sums: np.ndarray) -> np.ndarray:
    """(..., 4) BLEU-1..4 of counts (..., 10), with pycocoevalcap's guards against empty counts."""
    tiny, small = 1e-15, 1e-9
    length, closest = sums[..., 0], sums[..., 1]
    precisions = (sums[..., 6:10] + tiny) / (sums[..., 2:6] + small)
    orders = np.arange(1, BLEU_ORDERS + 1)
    scores = np.cumprod(precisions, axis=-1) ** (1 / orders)
    ratio = (length + tiny) / (closest + small)
    penalty = np.where(ratio < 1, np.exp(1 - 1 / np.minimum(ratio, 1.0)), 1.0)
    return scores * penalty[..., None]


def rouge_scores(truths: Mapping[str, Sequence[str]], results: Mapping[str, Sequence[str]]) -> np.ndarray:
    """(n,) ROUGE_L of each image."""
    from pycocoevalcap.rouge.rouge import Rouge

    rouge = Rouge()
    return np.array(
        [rouge.calc_score(results[image_id], list(texts)) for image_id, texts in truths.items()], dtype=float
    )


def cider_scores(truths: Mapping[str, Sequence[str]], results: Mapping[str, Sequence[str]]) -> np.ndarray:
    """(n,) CIDEr of each image, idf from all references given. One image alone scores 0 by definition."""
    from pycocoevalcap.cider.cider import Cider

    if not any(word for texts in truths.values() for text in texts for word in text.split()):
        return np.zeros(len(truths))  # references in no words at all: pycocoevalcap stops there
    _, scores = Cider().compute_score(dict(truths), {image_id: results[image_id] for image_id in truths})
    return np.asarray(scores, dtype=np.float64)


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
    plain = CLIP_WEIGHT * np.maximum((images * captions).sum(axis=1), 0)
    plain[wordless] = 0
    nearest = np.zeros(len(image_ids))
    for row, image_id in enumerate(image_ids):
        own = space.text(list(dict.fromkeys(references[image_id]))).astype(np.float64)
        nearest[row] = max(float((own @ captions[row]).max()), 0.0)
    total = plain + nearest
    both = np.divide(2 * plain * nearest, total, out=np.zeros_like(total), where=total > 0)
    return {"CLIPScore": plain, "RefCLIPScore": both}


def describe_texts(tokenized: Sequence[str], training: Collection[str]) -> dict[str, float | int | None]:
    """Lengths (words), vocabulary, different captions, distinct_1..3 and the share copied of tokenized captions.

    distinct_n is None where no caption has n words.

    Args:
        training: the training captions, tokenized.
    """
    words = [text.split() for text in tokenized]
    lengths = np.array([len(row) for row in words])
    described = {
        "mean_words": float(lengths.mean()),
        "shortest": int(lengths.min()),
        "longest": int(lengths.max()),
        "vocabulary": len({word for row in words for word in row}),
        "distinct_captions": len(set(tokenized)),
    }
    for order in ORDERS:
        grams = Counter(tuple(row[at : at + order]) for row in words for at in range(len(row) - order + 1))
        described[f"distinct_{order}"] = len(grams) / grams.total() if grams else None
    described["copied"] = float(np.mean([text in training for text in tokenized]))
    return rounded(described)


@dataclass(frozen=True)
class NamedClasses:
    """How many classes each caption names, and how many of them its image does not have; (n,) each."""

    named: np.ndarray
    wrong: np.ndarray
    examples: dict[str, int]  # class -> how many captions name it wrongly


def class_names(text: str) -> set[str]:
    """The classes that a tokenized caption names."""
    words = text.lower().split()
    found, at = set(), 0
    while at < len(words):
        for length in range(min(LONGEST, len(words) - at), 0, -1):
            name = _NAMES.get(" ".join([*words[at : at + length - 1], _singular(words[at + length - 1])]))
            name = name or _NAMES.get(" ".join(words[at : at + length]))
            if name:
                found.add(name)
                at += length
                break
        else:
            at += 1
    return found


def hallucinated_classes(
    captions: Mapping[str, str], references: Mapping[str, Sequence[str]], labels: Mapping[str, str | None]
) -> NamedClasses:
    """What classes the captions name, held against their images.

    Args:
        captions: image_id -> tokenized caption.
        references: image_id -> tokenized references.
        labels: image_id -> class label, None where there is none.
    """
    named, wrong, examples = [], [], Counter()
    for image_id, caption in captions.items():
        said = class_names(caption)
        there = set().union(*map(class_names, [*references[image_id], labels.get(image_id) or ""]))
        others = said - there
        named.append(len(said))
        wrong.append(len(others))
        examples.update(others)
    often = dict(sorted(examples.items(), key=lambda pair: (-pair[1], pair[0])))
    return NamedClasses(np.array(named), np.array(wrong), often)


def _singular(word: str) -> str:
    """The word without a plural ending, as far as the names need it."""
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "sses", "xes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else word
