"""Which head is kept: level with the best on validation images, and the one whose language leaks least."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from language_case import DIM, CodeTower, make_world

from rsvlm.data.caption_languages import captions_by_language
from rsvlm.models.language_head import LanguageHead, project
from rsvlm.models.mixed_gallery import first_shares, leak_of
from rsvlm.scoring.language_retrieval import language_tests, mix_languages
from rsvlm.training.languages import (
    choose_recipe,
    gather_captions,
    mean_over,
    measure_language,
    mix_captions,
    per_image,
)

torch.set_num_threads(1)


def result(parts, leak):
    """A recipe's result whose images add these parts to its mean recall."""
    added = {f"s/{number}.png": part for number, part in enumerate(parts)}
    mixed = None if leak is None else {"leak": leak, "shares": {}}
    return SimpleNamespace(mean_recall=sum(parts), per_image=added, mixed=mixed)


BEST = np.full(100, 0.005)
NOISE = np.random.default_rng(0).normal(0, 0.002, 100)
NEAR = BEST - (NOISE - NOISE.mean()) - 0.015 / 100  # 1.5 points below, with a standard error of 2
FAR = BEST - 0.1 * (NOISE - NOISE.mean()) - 0.015 / 100  # as far below, with one of 0.2


def test_of_heads_that_stand_level_the_one_that_leaks_less_is_kept():
    kept, choice = choose_recipe({"translated": result(BEST, 0.7), "distilled": result(NEAR, 0.1)})
    own = choice["recipes"]["distilled"]
    assert kept == "distilled" and choice["best"] == "translated" and own["equal"] and own["leak"] == 0.1
    assert own["below_best"] == pytest.approx(0.015)
    assert own["standard_error"] == pytest.approx(np.sqrt(100) * np.std(BEST - NEAR, ddof=1), abs=1e-6)
    assert choice["recipes"]["translated"]["standard_error"] == 0 and choice["recipes"]["translated"]["equal"]


def test_a_head_that_is_worse_by_more_than_a_standard_error_is_not_kept_however_little_it_leaks():
    kept, choice = choose_recipe({"translated": result(BEST, 0.7), "distilled": result(FAR, 0.1)})
    assert kept == "translated" and not choice["recipes"]["distilled"]["equal"]


def test_ties_go_to_the_better_and_then_to_the_first():
    assert choose_recipe({"a": result(NEAR, 0.3), "b": result(BEST, 0.3)})[0] == "b"
    assert choose_recipe({"a": result(BEST, 0.3), "b": result(BEST, 0.3)})[0] == "a"


def test_where_leaks_are_not_known_the_best_is_kept():
    assert choose_recipe({"a": result(NEAR, None), "b": result(BEST, None)})[0] == "b"
    assert choose_recipe({}) == (None, {})


@pytest.fixture(scope="module")
def world():
    """(features, captions by language, validation captions by language, a head that knows nothing)."""
    table, translations, features = make_world()
    by_language, tower = captions_by_language(table, translations, ["pt", "de"]), CodeTower()
    texts = sorted({text for rows in by_language.values() for text in rows["captions"].explode()})
    vectors = dict(zip(texts, tower.embed(texts)))
    validation = {
        language: gather_captions(rows[rows["split"] == "val"], features, vectors)
        for language, rows in by_language.items()
    }
    torch.manual_seed(0)
    return features, by_language, validation, LanguageHead(tower.dim, DIM, 16).eval()


def test_the_images_parts_sum_to_the_mean_recall(world):
    features, by_language, validation, head = world
    parts = per_image(head, validation)
    recalls = {language: measure_language(head, own) for language, own in validation.items()}
    assert set(parts) == set(validation["en"].image_ids)
    assert sum(parts.values()) == pytest.approx(mean_over(recalls), abs=1e-12) and min(parts.values()) >= 0
    rows = by_language["pt"][by_language["pt"]["split"] == "val"].iloc[:5]  # other images in each language
    vectors = dict(zip(rows["captions"].explode(), CodeTower().embed(list(rows["captions"].explode()))))
    fewer = validation | {"pt": gather_captions(rows, features, vectors)}
    recalls = {language: measure_language(head, own) for language, own in fewer.items()}
    assert sum(per_image(head, fewer).values()) == pytest.approx(mean_over(recalls), abs=1e-12)


def test_the_leak_is_that_of_the_scores(world):
    """The validation split through ``mix_languages``, which scores the test split."""
    features, by_language, validation, head = world
    space = dict(zip(features.texts, features.text_embeddings))
    methods = {language: lambda texts: project(head, CodeTower().embed(texts)) for language in ("pt", "de")}
    methods["en"] = lambda texts: np.stack([space[text] for text in texts])
    scored = mix_languages(language_tests(by_language, "val")["s"], features, methods, resamples=10)
    own = mix_captions(head, validation)
    assert own["leak"] == pytest.approx(scored["leak"]["value"], abs=1e-6)
    for language, shares in own["shares"].items():
        assert shares["first"] == pytest.approx(scored["shares"][language]["value"], abs=1e-6)
        assert shares["gallery"] == pytest.approx(scored["shares"][language]["gallery"], abs=1e-6)
    only = gather_captions(
        by_language["pt"].iloc[:4], features, dict.fromkeys(by_language["pt"]["captions"].explode(), np.zeros(24))
    )
    assert mix_captions(head, {"en": validation["en"], "pt": only}) is None  # no image has captions in both


def test_first_places_are_shared_by_ties_and_a_leak_is_what_would_have_to_change():
    image = np.array([[1.0, 0.0]])
    texts = np.array([[1.0, 0.0]] * 4 + [[0.5, 0.0]] * 12)
    kind = np.array([0] * 4 + [1] * 6 + [2] * 6)
    np.testing.assert_allclose(first_shares(image, texts, kind, 3), [[0.4, 0.3, 0.3]])
    np.testing.assert_allclose(first_shares(image, texts[:2], kind[:2], 3), [[1, 0, 0]])  # fewer texts than places
    assert leak_of(np.array([0.4, 0.3, 0.3]), np.array([0.25, 0.375, 0.375])) == pytest.approx(0.15)
    assert leak_of(np.array([0.5, 0.5]), np.array([0.5, 0.5])) == 0
