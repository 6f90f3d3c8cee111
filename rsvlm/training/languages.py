"""Training of a head from a text tower's space into an encoder's, on cached embeddings: seconds on a CPU.

Images, the encoder's English text tower and the multilingual tower stay as they are. Three recipes:

- ``english``: images and English captions alone, contrastive; the other languages come by the tower (zero-shot);
- ``translated``: the same with the captions of all languages mixed;
- ``distilled``: beside that, each caption is pulled to what the encoder's own English tower says of the English caption it
  stands for (teacher and student: Reimers and Gurevych 2020, arXiv:2004.09813; multilingual CLIP, Carlsson et al. 2022).

Captions of an image in any of its languages are positives of it. Data order derives from (seed, epoch), captions from
(seed, step).
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from rsvlm.data.caption_languages import ENGLISH, distinct_pairs
from rsvlm.files import fingerprint_values
from rsvlm.kernels import contrastive_loss, hits, two_way_ranks
from rsvlm.models.features import Features
from rsvlm.models.language_head import LanguageHead, project
from rsvlm.models.loading import fingerprint_tensors
from rsvlm.models.mixed_gallery import first_shares, leak_of
from rsvlm.models.multilingual import TextTower, embed_texts
from rsvlm.progress import log_line
from rsvlm.settings import LanguageSettings
from rsvlm.training.contrastive import DEPTHS, MAX_LOGIT_SCALE, one_cycle
from rsvlm.training.loop import Task, build_optimizer, check_batch, checkpoints_of, train

WARMUP_SHARE = 0.1
INITIAL_SCALE = 14.0  # factor on cosines, CLIP's
CURVE_ROWS = 200
CURVE_COLUMNS = ["recipe", "step", "epoch", "loss", "contrastive", "distance", "learning_rate"]


@dataclass(frozen=True)
class Captions:
    """Captions of some images in one language, as a tower and the encoder's English tower give them."""

    image_ids: list[str]  # (N,)
    images: np.ndarray  # (N, D), the encoder's image embeddings
    owner: np.ndarray  # (C,) int64, the image of each caption
    text: np.ndarray  # (C,) int64, number of its text: equal texts have equal numbers
    vectors: np.ndarray  # (T, tower_dim), of the texts
    teacher: np.ndarray  # (C, D), the encoder's embedding of the English caption

    def fingerprint(self) -> str:
        """SHA-256, as hex, of all that they hold."""
        digest = hashlib.sha256(fingerprint_values(self.image_ids).encode())
        arrays = (self.images, self.owner, self.text, self.vectors, self.teacher)
        fingerprint_tensors({str(place): torch.from_numpy(own) for place, own in enumerate(arrays)}, digest)
        return digest.hexdigest()

    def positives(self) -> tuple[np.ndarray, np.ndarray]:
        """Right captions of each image, as CSR: (offsets (N + 1,), caption numbers)."""
        order = np.argsort(self.owner, kind="stable")
        return np.concatenate([[0], np.cumsum(np.bincount(self.owner, minlength=len(self.image_ids)))]), order


def gather_captions(
    rows: pd.DataFrame, features: Features, vectors: Mapping[str, np.ndarray], *, most: int = 0, distinct: bool = False
) -> Captions:
    """The captions of rows of ``captions_by_language``.

    Args:
        vectors: text -> its embedding (tower_dim,).
        distinct: an image's different captions once each, at most ``most`` of them (0: all); else every row.
    """
    if distinct:
        pairs = distinct_pairs(rows, most)
    else:
        pairs = rows[["image_id", "captions", "english"]].explode(["captions", "english"])
        pairs = pairs.rename(columns={"captions": "text"})
    image_ids = list(rows["image_id"])
    number = {image_id: row for row, image_id in enumerate(image_ids)}
    texts = sorted(set(pairs["text"]))
    row_of = {text: row for row, text in enumerate(texts)}
    return Captions(
        image_ids,
        np.asarray(features.image_embeddings[features.rows(image_ids)]),
        np.array([number[name] for name in pairs["image_id"]], dtype=np.int64),
        np.array([row_of[text] for text in pairs["text"]], dtype=np.int64),
        np.stack([vectors[text] for text in texts]),
        np.asarray(features.text_embeddings[features.text_rows(list(pairs["english"]))]),
    )


def embed_captions(
    tower: TextTower, by_language: Mapping[str, pd.DataFrame], *, most: int = 0
) -> dict[str, np.ndarray]:
    """text -> its embedding (tower_dim,), of the training captions that are drawn from and of all validation captions.

    Args:
        by_language: as ``captions_by_language`` gives it.
        most: see ``gather_captions``.
    """
    texts = set()
    for rows in by_language.values():
        texts |= set(distinct_pairs(rows[rows["split"] == "train"], most)["text"])
        texts |= set(rows.loc[rows["split"] == "val", "captions"].explode())
    texts = sorted(texts)
    return dict(zip(texts, embed_texts(tower, texts)))


def train_recipes(
    recipes: Sequence[str],
    by_language: Mapping[str, pd.DataFrame],
    features: Features,
    vectors: Mapping[str, np.ndarray],
    settings: LanguageSettings,
    *,
    checkpoints: Path | None = None,
    log: Callable[[str], None] = log_line,
) -> dict[str, "HeadResult"]:
    """A head by each recipe; none where there is no language but English.

    Args:
        vectors: as ``embed_captions`` gives them.
        checkpoints: folder for checkpoints; default: below ``cache_folder()``.

    Raises:
        ValueError: an empty split, or as ``train_head``.
    """
    if set(by_language) == {ENGLISH}:
        return {}
    parts: dict[str, dict[str, Captions]] = {"train": {}, "val": {}}
    for split, own in parts.items():
        for language, rows in by_language.items():
            chosen = rows[rows["split"] == split]
            if len(chosen) == 0:
                raise ValueError(
                    f"languages: no image of the split {split!r} has a caption in {language!r}; leave it out"
                )
            learnt = split == "train"
            own[language] = gather_captions(
                chosen, features, vectors, most=settings.captions_per_image * learnt, distinct=learnt
            )
    options = {"checkpoints": checkpoints, "log": log}
    return {recipe: train_head(recipe, parts["train"], parts["val"], settings, **options) for recipe in recipes}


def choose_recipe(results: Mapping[str, "HeadResult"]) -> tuple[str | None, dict]:
    """(the recipe to keep, the figures that say why), all on validation images; (None, {}) without recipes.

    Recipes whose mean recall over the languages is not below the best one's by more than a standard error of that difference,
    paired over the images, count as equal. Of these the one is kept whose language leaks least into a gallery of all
    languages; of several like it, the better, then the first. Where no image has captions in all languages nothing is known
    of leaks, and the best is kept.

    Returns:
        Figures: ``best`` and ``recipes``: recipe -> ``mean_recall``, ``below_best`` and its ``standard_error`` (fractions),
        ``equal``, ``leak`` (see ``rsvlm.models.mixed_gallery``; None where it is not known).
    """
    if not results:
        return None, {}
    best = max(results, key=lambda recipe: results[recipe].mean_recall)
    figures = {}
    for recipe, own in results.items():
        parts = [results[best].per_image[image_id] - value for image_id, value in own.per_image.items()]
        below = results[best].mean_recall - own.mean_recall
        error = math.sqrt(len(parts)) * float(np.std(parts, ddof=1)) if len(parts) > 1 else 0.0
        known = own.mixed["leak"] if own.mixed else None
        figures[recipe] = {
            "mean_recall": own.mean_recall,
            "below_best": round(below, 6),
            "standard_error": round(error, 6),
            "equal": below <= error,
            "leak": known,
        }
    equal = [recipe for recipe, own in figures.items() if own["equal"] and own["leak"] is not None]
    kept = min(equal, key=lambda recipe: (figures[recipe]["leak"], figures[recipe]["below_best"]), default=best)
    return kept, {"best": best, "recipes": figures}


def curve_table(results: Mapping[str, "HeadResult"]) -> pd.DataFrame:
    """The curves of all recipes with the columns CURVE_COLUMNS."""
    return pd.DataFrame([row for own in results.values() for row in own.curve], columns=CURVE_COLUMNS)


@dataclass(frozen=True)
class HeadResult:
    """What the training of one recipe gave; recalls are fractions on validation images."""

    head: LanguageHead
    validation: dict[str, dict[str, float]]  # language -> mean recall and its six parts, of the kept step
    english: dict[str, float]  # language -> mean recall of the encoder, on the English of the same captions
    mean_recall: float  # mean over the languages, without English where there are others
    kept_step: int
    steps: int
    rows: list[dict]  # one a measurement: step and mean recall a language
    curve: list[dict]
    per_image: dict[str, float]  # image id -> what it adds to the mean recall; they sum to it
    mixed: dict | None  # see ``mix_captions``

    def metrics(self) -> dict:
        """All but the head, the curve and the images' parts, as JSON values."""
        own = {"mean_recall": self.mean_recall, "kept_step": self.kept_step, "steps": self.steps}
        own |= {"languages": self.validation, "encoder_in_english": self.english, "measured": self.rows}
        return own | {"mixed": self.mixed}


def train_head(
    recipe: str,
    training: Mapping[str, Captions],
    validation: Mapping[str, Captions],
    settings: LanguageSettings,
    *,
    checkpoints: Path | None = None,
    log: Callable[[str], None] = log_line,
) -> HeadResult:
    """A head by one recipe, with the weights of the best step by mean recall over the languages on validation images.

    Killed and called again with the same arguments, it continues from its last checkpoint.

    Args:
        training, validation: by language, "en" among them.

    Raises:
        ValueError: an unknown recipe, or a batch larger than the training set.
        FloatingPointError: the loss is no number.
    """
    task = _HeadTraining(recipe, training, validation, settings, log)
    shaping = [[[language, own.fingerprint()] for language, own in part.items()] for part in (training, validation)]
    with checkpoints_of(checkpoints, "add_languages", recipe, settings.model_dump(), *shaping) as folder:
        now = train(task, folder, log)
    kept = {language: measure_language(task.model.head, own) for language, own in validation.items()}
    english = {language: measure_language(None, own)["mean_recall"] for language, own in validation.items()}
    head = task.model.head.eval()
    shown = (per_image(head, validation), mix_captions(head, validation))
    return HeadResult(
        head, kept, english, mean_over(kept), now.kept_step, task.steps, now.validation, now.curve, *shown
    )


def mean_over(found: Mapping[str, Mapping[str, float]]) -> float:
    """Mean recall over the languages other than English; English's own where there is no other."""
    others = [own["mean_recall"] for language, own in found.items() if language != ENGLISH]
    return float(np.mean(others or [found[ENGLISH]["mean_recall"]]))


def measure_language(head: LanguageHead | None, captions: Captions) -> dict[str, float]:
    """Recall at 1, 5 and 10 both ways and their mean, as fractions, by image id, in RemoteCLIP's protocol.

    Args:
        head: None: the encoder's own English captions, of which these are translations.
    """
    to_text, to_image = _hits(head, captions)
    recalls = {f"image_to_text_recall_at_{k}": float(own.mean()) for k, own in zip(DEPTHS, to_text)}
    recalls |= {f"text_to_image_recall_at_{k}": float(own.mean()) for k, own in zip(DEPTHS, to_image)}
    return {"mean_recall": sum(recalls.values()) / len(recalls), **recalls}


def per_image(head: LanguageHead, validation: Mapping[str, Captions]) -> dict[str, float]:
    """image id -> what it adds to the mean recall over the languages, ``mean_over``; the sum over the images is that."""
    languages = [language for language in validation if language != ENGLISH] or [ENGLISH]
    found: dict[str, float] = {}
    for own in (validation[language] for language in languages):
        to_text, to_image = (np.sum(hit, axis=0, dtype=np.float64) for hit in _hits(head, own))
        N, C = len(own.image_ids), len(own.owner)
        added = to_text / N + np.bincount(own.owner, weights=to_image, minlength=N) / C
        for image_id, value in zip(own.image_ids, added / (2 * len(DEPTHS) * len(languages)), strict=True):
            found[image_id] = found.get(image_id, 0.0) + float(value)
    return found


def mix_captions(head: LanguageHead, validation: Mapping[str, Captions]) -> dict | None:
    """``leak`` and ``shares`` (language -> of the first places, of the gallery) of a gallery with the captions of all
    languages, English ones as the encoder's own tower gives them; None where no image has captions in all languages.
    """
    shared = set.intersection(*(set(own.image_ids) for own in validation.values()))
    if not shared:
        return None
    vectors, kinds = [], []
    for number, (language, own) in enumerate(validation.items()):
        there = np.array([image_id in shared for image_id in own.image_ids])[own.owner]
        texts, first = np.unique(own.text[there], return_index=True)
        vectors.append(own.teacher[there][first] if language == ENGLISH else project(head, own.vectors[texts]))
        kinds += [number] * len(texts)
    one, kind, L = next(iter(validation.values())), np.array(kinds), len(validation)
    images = one.images[[row for row, image_id in enumerate(one.image_ids) if image_id in shared]]
    shares = first_shares(images, np.concatenate(vectors), kind, L).mean(0)
    gallery = np.bincount(kind, minlength=L) / len(kind)
    told = {
        language: {"first": round(float(shares[number]), 6), "gallery": round(float(gallery[number]), 6)}
        for number, language in enumerate(validation)
    }
    return {"leak": round(leak_of(shares, gallery), 6), "shares": told}


def _hits(head: LanguageHead | None, captions: Captions) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """At each of DEPTHS (N,) whether an image finds one of its captions, and (C,) whether a caption finds its image."""
    texts = captions.teacher if head is None else project(head, captions.vectors)[captions.text]
    ranks = two_way_ranks(captions.images, texts, captions.positives(), normalize=False)
    to_text, to_image = ([np.asarray(hits(own, k)) for k in DEPTHS] for own in ranks)
    return to_text, to_image


class _Model(nn.Module):
    """The head and the factor on cosines."""

    def __init__(self, tower_dim: int, embedding_dim: int, hidden: int, seed: int):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = LanguageHead(tower_dim, embedding_dim, hidden)
        self.log_scale = nn.Parameter(torch.tensor(INITIAL_SCALE).log())


class _HeadTraining(Task):
    """The training of a head on cached embeddings, measured by retrieval on validation images."""

    name, clip_norm, remedy = "add_languages", 5.0, "a lower head_lr"

    def __init__(
        self,
        recipe: str,
        training: Mapping[str, Captions],
        validation: Mapping[str, Captions],
        settings: LanguageSettings,
        log: Callable[[str], None],
    ) -> None:
        self.recipe, self.settings, self.validation, self.log = recipe, settings, validation, log
        self.languages = [ENGLISH] if recipe == "english" else sorted(training)
        self.training = [training[language] for language in self.languages]
        english = training[ENGLISH]
        self.image_ids, self.images = english.image_ids, torch.from_numpy(english.images)
        check_batch(settings.batch_size, len(self.image_ids))
        self.texts, self.teacher, self.own = self._join(self.training)
        known = [[text for pairs in own for text, _ in pairs] for own in self.own]
        self.known = np.full((len(known), max(map(len, known))), -1)  # (N, most) texts of each image
        for row, own in enumerate(known):
            self.known[row, : len(own)] = own
        self.steps, self.curve_every = settings.steps, max(1, settings.steps // CURVE_ROWS)
        self.steps_per_epoch = max(1, len(self.image_ids) // settings.batch_size)
        self.model = _Model(self.texts.shape[1], self.images.shape[1], settings.hidden, settings.seed)
        parts = {"head": [*self.model.head.parameters(), self.model.log_scale]}
        self.optimizer = build_optimizer(parts, settings)
        counted = sum(len(own.owner) for own in self.training)
        log(f"recipe {recipe}: {len(self.image_ids)} images, {counted} captions in {', '.join(self.languages)}")

    def _join(self, parts: Sequence[Captions]) -> tuple[Tensor, Tensor, list[list[list[tuple[int, int]]]]]:
        """(texts (T, tower_dim), teachers (C, D), per image and language that it has its [(text, caption), ...])."""
        number = {image_id: row for row, image_id in enumerate(self.image_ids)}
        own: list[list[list[tuple[int, int]]]] = [[] for _ in self.image_ids]
        texts = captions = 0
        for part in parts:
            grouped: dict[int, list[tuple[int, int]]] = {}
            for caption, (owner, text) in enumerate(zip(part.owner.tolist(), part.text.tolist())):
                grouped.setdefault(owner, []).append((texts + text, captions + caption))
            for owner, pairs in grouped.items():
                own[number[part.image_ids[owner]]].append(pairs)
            texts, captions = texts + len(part.vectors), captions + len(part.owner)
        joined = [np.concatenate([getattr(part, name) for part in parts]) for name in ("vectors", "teacher")]
        return torch.from_numpy(joined[0]), torch.from_numpy(joined[1]), own

    def rates(self, step: int) -> tuple[float, float]:
        return one_cycle(step, self.steps, WARMUP_SHARE)

    def batches(self, steps: range) -> Iterator[np.ndarray]:
        """Numbers of images."""
        size = self.settings.batch_size
        for step in steps:
            epoch, place = divmod(step, self.steps_per_epoch)
            order = np.random.default_rng([self.settings.seed, 1, epoch]).permutation(len(self.image_ids))
            yield order[place * size : (place + 1) * size]

    def losses(self, rows: np.ndarray, generator: np.random.Generator) -> dict[str, Tensor]:
        drawn = []
        for own in (self.own[row] for row in rows):
            pairs = own[generator.integers(len(own))]  # a language, then one of its captions
            drawn.append(pairs[generator.integers(len(pairs))])
        texts, captions = (list(part) for part in zip(*drawn))
        positives = torch.from_numpy((self.known[rows][:, None] == np.array(texts)[:, None]).any(-1))  # (B, B)
        made = self.model.head(self.texts[texts])
        scale = self.model.log_scale.exp().clamp(max=MAX_LOGIT_SCALE)
        contrastive = contrastive_loss(self.images[rows], made, scale, positives)
        distance = (1 - (made * self.teacher[captions]).sum(-1)).mean()
        weight = self.settings.distillation_weight if self.recipe == "distilled" else 0.0
        return {"loss": contrastive + weight * distance, "contrastive": contrastive, "distance": distance}

    def curve_row(self, step: int, losses: dict[str, float], norm: float) -> dict[str, float]:
        return {"recipe": self.recipe} | losses | {"learning_rate": self.optimizer.param_groups[0]["lr"]}

    def epoch(self, step: int) -> float:
        return step / self.steps_per_epoch

    def is_due(self, step: int) -> bool:
        return step > 0 and (step % self.settings.validation_every == 0 or step == self.steps)

    def validate(self, step: int) -> tuple[float, dict]:
        found = {language: measure_language(self.model.head, own) for language, own in self.validation.items()}
        means = {language: own["mean_recall"] for language, own in found.items()}
        return mean_over(found), {"step": step, "mean_recall": mean_over(found)} | means
