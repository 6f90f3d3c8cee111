"""Caption metrics held against pycocoevalcap's own classes, awkward captions, and the human row."""

import json

import numpy as np
import pandas as pd
import pytest

from rsvlm.content_cache import ContentCache
from rsvlm.scoring import java_metrics as spice
from rsvlm.scoring.caption_study import average_draws, hold_out, summarize_draws
from rsvlm.scoring.captions import (
    METRICS,
    ScoringTools,
    cider_scores,
    clip_scores,
    draw_scores,
    score_captions,
    subset,
    token_pairs,
)
from rsvlm.scoring.meteor import meteor_score
from rsvlm.scoring.retrieval import EmbeddingSpace

REFERENCES = {
    "a": ["There are many planes at the airport.", "Some planes are parked.", "There are many planes at the airport ."],
    "b": ["A river runs through the dense forest.", "A river and green trees, near a road."],
    "c": ["It is a piece of farmland.", "There is a piece of cropland."],
    "d": ['Two "large" storage tanks', "two storage tanks beside a road"],
}
GENERATED = {
    "a": "Many planes are parked at the airport.",
    "b": "a winding river through a forest",
    "c": "It is a piece of farmland .",
    "d": "a dog",
}
AWKWARD = [
    "", "   ", "a\nriver", 'quoted "river" isn\'t', "a ||| river", "a river \U0001f600", "river " * 1000,
    "飞机 在 机场", "line\u2028break", "?!... -- '' ;", "...",
    "<a href='x\ny'> 1 1/2 (213) 555-1234", "nul \x00 byte", "half a pair \ud83d",
]  # fmt: skip


@pytest.fixture(scope="module")
def tools(tmp_path_factory):
    """A cache on disk, whose folder also gets METEOR's paraphrase index, made once for all tests here."""
    return ScoringTools(ContentCache(tmp_path_factory.mktemp("scores")))


@pytest.fixture(scope="module")
def tokens(tools):
    return tools.tokenize([*GENERATED.values(), *(text for texts in REFERENCES.values() for text in texts), *AWKWARD])


@pytest.fixture(scope="module")
def originals(tools):
    """pycocoevalcap's own classes. METEOR reads its whole paraphrase table, so it is started once."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge

    meteor = Meteor()

    def score(truths, results):
        """metric -> (corpus, per image)"""
        bleu, per_image = Bleu(4).compute_score(truths, results, verbose=0)
        found = {f"BLEU-{n + 1}": (bleu[n], per_image[n]) for n in range(4)}
        for name, scorer in (("METEOR", meteor), ("ROUGE_L", Rouge()), ("CIDEr", Cider())):
            found[name] = scorer.compute_score(truths, results)
        return found

    return score


def test_tokens_equal_pycocoevalcap(tokens):
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    plain = {key: [{"caption": text} for text in texts] for key, texts in REFERENCES.items()}
    expected = PTBTokenizer().tokenize(plain)
    assert {key: [tokens[text] for text in texts] for key, texts in REFERENCES.items()} == expected


def test_awkward_captions_keep_their_own_tokens(tokens):
    assert tokens[""] == tokens["   "] == ""
    assert tokens["a\nriver"] == "a river"
    assert tokens["a ||| river"] == "a | | | river"
    assert tokens["a river \U0001f600"] == "a river"
    assert tokens["飞机 在 机场"] == "飞机 在 机场"
    assert tokens["line\u2028break"] == "line break"
    assert len(tokens["river " * 1000].split()) == 1000
    assert tokens["..."] == "" and not any(map(str.isalpha, tokens["?!... -- '' ;"]))


def test_an_image_with_one_caption_scores_zero_cider_and_survives():
    assert cider_scores({"a": ["a river"]}, {"a": ["a river"]}).tolist() == [0.0]
    assert cider_scores({"a": [""]}, {"a": [""]}).tolist() == [0.0]


def test_all_metrics_equal_pycocoevalcap(tools, tokens, originals):
    truths = {key: [tokens[text] for text in texts] for key, texts in REFERENCES.items()}
    results = {key: [tokens[text]] for key, text in GENERATED.items()}
    scores = score_captions(GENERATED, REFERENCES, tokens=tokens, tools=tools)
    expected = originals(truths, results)
    for metric, (corpus, per_image) in expected.items():
        assert scores.corpus[metric] == pytest.approx(corpus, abs=1e-9), metric
        np.testing.assert_allclose(scores.per_image[metric], per_image, atol=1e-9, err_msg=metric)
    assert scores.corpus["SPICE"] is None and scores.reasons["SPICE"].startswith("not run: jars missing")

    distinct = score_captions(GENERATED, REFERENCES, tokens=tokens, tools=tools, distinct=True)
    assert distinct.corpus["CIDEr"] != scores.corpus["CIDEr"]
    for metric in set(expected) - {"CIDEr"}:  # these take the best reference
        assert distinct.corpus[metric] == pytest.approx(scores.corpus[metric], abs=1e-12)

    drawn = draw_scores(scores, seed=0, resamples=100)
    summary = summarize_draws([scores], average_draws([scores], seed=0, resamples=100))
    assert list(summary) == list(METRICS)
    assert summary["SPICE"]["value"] is None and "jars missing" in summary["SPICE"]["reason"]
    for metric in expected:
        entry = summary[metric]
        assert entry["low"] <= entry["value"] + 1e-6 and entry["value"] <= entry["high"] + 1e-6 and entry["n"] == 4
    json.dumps(summary, allow_nan=False)
    again = draw_scores(scores, seed=0, resamples=100)
    assert all((drawn[metric] == again[metric]).all() for metric in expected)
    for metric in expected:  # an image alone is what per_image says of it
        one = subset(scores, np.array([False, True, False, False])).corpus[metric]
        assert one == pytest.approx(scores.per_image[metric][1], abs=1e-12)


def test_a_benchmark_scores_as_with_pycocoevalcap(tools, originals, shared_data):
    """Sydney's test images, a third with their own caption, the others with another image's."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    path = shared_data / "sydney_captions" / "dataset_sydney_modified.json"
    rows = [row for row in json.loads(path.read_text(encoding="utf-8"))["images"] if row["split"] == "test"]
    references = {row["filename"]: [sentence["raw"] for sentence in row["sentences"]] for row in rows}
    ids = list(references)
    generated = {key: references[ids[(at + at % 3) % len(ids)]][at % 5] for at, key in enumerate(ids)}
    scores = score_captions(generated, references, tools=tools)
    plain = {key: [{"caption": text} for text in texts] for key, texts in references.items()}
    said = {key: [{"caption": text}] for key, text in generated.items()}
    expected = originals(PTBTokenizer().tokenize(plain), PTBTokenizer().tokenize(said))
    assert len(ids) == 58
    for metric, (corpus, per_image) in expected.items():
        assert scores.corpus[metric] == pytest.approx(corpus, abs=1e-9), metric
        np.testing.assert_allclose(scores.per_image[metric], per_image, atol=1e-9, err_msg=metric)


def test_awkward_captions_score_beside_good_ones(tools, tokens):
    generated = {str(i): text for i, text in enumerate(AWKWARD)} | {"good": "a river"}
    references = {key: ["a river", "the river ||| bends"] for key in generated}
    known = tokens | {"a river": "a river", "the river ||| bends": "the river ||| bends"}
    scores = score_captions(generated, references, tokens=known, tools=tools)
    assert np.isfinite(scores.per_image[list(scores.statistics)].to_numpy()).all()
    rows = scores.per_image.set_index("image_id")
    assert rows.loc["0", ["METEOR", "BLEU-1", "ROUGE_L", "CIDEr"]].tolist() == [0, 0, 0, 0]  # the empty caption
    assert rows.loc["good", "METEOR"] > rows.loc["6", "METEOR"] > 0  # a thousand words


def test_meteor_formula_on_the_whole_corpus_and_on_nothing():
    assert meteor_score(np.zeros(23)) == 0
    perfect = np.zeros(23)
    perfect[[0, 1, 4, 5, 20, 21, 22]] = [3, 3, 3, 3, 0, 3, 3]  # the same three words: no break
    assert meteor_score(perfect) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("generated", "references", "message"),
    [
        ({}, {}, "no images"),
        ({}, {"a": ["x"]}, "without a generated caption, such as 'a'"),
        ({"a": "x", "b": "y"}, {"a": ["x"]}, "without references, such as 'b'"),
        ({"a": "x"}, {"a": []}, "without references, such as 'a'"),
        ({"a": None}, {"a": ["x"]}, "no text"),
    ],
)
def test_images_that_do_not_fit_are_named(generated, references, message):
    with pytest.raises(ValueError, match=message):
        score_captions(generated, references)


def test_spice_on_a_small_set(shared_spice, tokens, tools, monkeypatch):
    """Asked at once, and with every sentence parsed first and repeated references: the same."""
    generated = GENERATED | {"d": ""}
    with_jars = ScoringTools(tools.cache, shared_spice)
    scores = score_captions(generated, REFERENCES, tokens=tokens, tools=with_jars)
    per_image = scores.per_image["SPICE"].to_numpy()
    assert per_image[3] == 0 and (per_image[:3] > 0).all() and (per_image <= 1).all()
    assert scores.corpus["SPICE"] == pytest.approx(per_image.mean())
    pairs = [(caption, own * 2) for caption, own in token_pairs(generated, REFERENCES, tokens).values()]
    monkeypatch.setattr(spice, "FEW_TEXTS", 2)
    assert spice.spice_scores(pairs, shared_spice) == per_image.tolist()
    monkeypatch.setattr(spice, "run_java", None)  # everything is kept
    assert spice.spice_scores(pairs, shared_spice, tools.cache) == per_image.tolist()


def test_spice_with_a_folder_that_lacks_jars_is_not_run(tools, tokens, tmp_path):
    scores = score_captions(GENERATED, REFERENCES, tokens=tokens, tools=ScoringTools(tools.cache, tmp_path))
    assert scores.corpus["SPICE"] is None and "SPICE" not in scores.per_image
    assert scores.reasons["SPICE"].startswith("not run: jars missing") and "rhino-1.7.15.jar" in scores.reasons["SPICE"]


def test_clip_scores_follow_their_definition():
    images, texts = np.eye(3, dtype=np.float32), np.array([[0.6, 0.8, 0], [1, 0, 0], [0, 0, -1], [0, 1, 0]])
    space = EmbeddingSpace(["a", "b", "c"], images, ["near", "same", "away", "..."], texts.astype(np.float32))
    generated = {"a": "near", "b": "...", "c": "away"}
    found = clip_scores(generated, {"a": ["same", "away"], "b": ["near"], "c": ["same"]}, space)
    clip, nearest = 2.5 * 0.6, 0.6  # the best reference is "same"
    assert found["CLIPScore"] == pytest.approx([clip, 0, 0], abs=1e-6)  # no word, or a negative cosine: 0
    assert found["RefCLIPScore"] == pytest.approx([2 * clip * nearest / (clip + nearest), 0, 0], abs=1e-6)
    with pytest.raises(ValueError, match="no vector for 1 of 1 texts, such as 'new'"):
        clip_scores({"a": "new"}, {"a": ["same"]}, space)


def test_hold_out_draws_one_caption_and_leaves_the_rest():
    tokens = {"A b.": "a b", "a b": "a b", "c": "c", "d": "d"}
    references = {"x": ["A b.", "a b", "c"], "single": ["d"], "same": ["A b.", "a b"]}
    held, rest = hold_out(references, tokens, seed=0)
    assert set(held) == {"x", "same"} and sorted([held["x"], *rest["x"]]) == sorted(references["x"])
    held, rest = hold_out(references, tokens, seed=0, distinct=True)
    assert set(held) == {"x"} and {tokens[held["x"]], *(tokens[text] for text in rest["x"])} == {"a b", "c"}
    assert hold_out(references, tokens, seed=3) == hold_out(references, tokens, seed=3)


def test_draws_are_averaged_with_their_spread(tools, tokens):
    scores = []
    for seed in range(2):
        held, rest = hold_out(REFERENCES, tokens, seed=seed)
        scores.append(score_captions(held, rest, tokens=tokens, tools=tools))
    average = average_draws(scores, seed=0, resamples=50)
    summary = summarize_draws(scores, average, spread=True)
    values = [score.corpus["BLEU-1"] for score in scores]
    assert summary["BLEU-1"]["value"] == pytest.approx(np.mean(values), abs=1e-6)
    assert summary["BLEU-1"]["standard_deviation"] == pytest.approx(np.std(values, ddof=1), abs=1e-6)
    assert summary["CIDEr"]["draws"] == 2 and summary["SPICE"]["value"] is None
    assert isinstance(scores[0].per_image, pd.DataFrame) and len(average.drawn["CIDEr"]) == 50
