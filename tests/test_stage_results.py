"""The sentence that stands for each stage: its numbers, its intervals, nothing claimed that is open, text kept as text."""

from pathlib import Path

import nbformat
import pytest

from rsvlm.viewing import results, score_results

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


def entry(value, low=None, high=None, n=10, **more):
    return {"value": value, "low": value - 0.1 if low is None else low, "high": value + 0.1 if high is None else high, "n": n} | more  # fmt: skip


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("[1-8]0_*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_ends_with_its_result(path):
    cells = nbformat.read(path, as_version=4).cells
    tagged = [cell for cell in cells if "result" in cell.metadata.get("tags", [])]
    name = tagged[-1].source.split("(")[0]
    assert [cell.cell_type for cell in tagged] == ["markdown", "code"] and tagged == cells[-2:]
    assert hasattr(results, name) or hasattr(score_results, name)


def test_a_box_holds_the_sentence_escaped_and_is_readable_as_text():
    box = results.Result("3 < 4 <script>")
    assert repr(box) == "3 < 4 <script>" and "3 &lt; 4 &lt;script&gt;" in box._repr_html_()


def test_the_data_are_counted_and_what_could_not_be_searched_is_said():
    source = {"images_used": {"train": 1200, "val": 1}, "captions_used": {"train": 2400, "val": 2}, "images_broken": 2}
    metrics = {
        "sources": {"a": source, "b": {"images_used": {"test": 3}, "captions_used": {"test": 6}}},
        "pairs_of_near_duplicates_between_train_and_test": 0,
        "near_duplicates_dropped_from_train": 0,
        "looked_for_same_ground": {"switched_on": 1, "images_too_small": 1204},
    }
    said = results.data_result(metrics).text
    assert said.startswith(
        "1,204 images with 2,408 captions from a and b: 1,200 to train on, 1 to choose by, 3 to score."
    )
    assert "No near-duplicate was found between training and test." in said
    assert "could not look at 1,204 images: too small." in said and said.endswith("Images broken: 2.")
    metrics |= {"pairs_of_near_duplicates_between_train_and_test": 3, "near_duplicates_dropped_from_train": 1}
    assert "3 pairs of near-duplicates between training and test were found, and 1 training image left out" in (
        results.data_result(metrics).text
    )


ADAPTED = {
    "before": {"mean_recall": 0.035},
    "after": {"mean_recall": 0.277, "images": 160, "captions": 800},
    "best_epoch": 2,
    "epochs": 2,
    "zero_shot": {"before": {"accuracy": 0.1}, "after": {"accuracy": 0.5, "images": 100, "chance": 0.25}},
}


def test_the_encoder_before_and_after():
    said = results.encoder_result(ADAPTED).text
    assert "went from 3.5 % to 27.7 % (epoch 2 of 2 was kept, chosen on these same images)" in said
    assert "for 10.0 % of 100 images before and 50.0 % after (95 % interval 40.4 to 59.6 %; by chance 25.0 %)" in said
    unlabelled = ADAPTED | {"best_epoch": 0, "zero_shot": {"before": None, "after": None}}
    assert results.encoder_result(unlabelled).text.startswith("None of 2 epochs matched images and captions better")
    assert "kept as it came" in results.encoder_result(unlabelled | {"epochs": 0}).text


def test_an_interval_of_a_share_stays_within_0_and_1():
    assert results.wilson_interval(0.0, 20)[0] == 0.0 and 0 < results.wilson_interval(0.0, 20)[1] < 0.2
    low, high = results.wilson_interval(0.3, 50)  # Newcombe 1998: 15 of 50 is 0.1910 to 0.4375
    assert low == pytest.approx(0.1910, abs=1e-4) and high == pytest.approx(0.4375, abs=1e-4)


def test_features_and_their_neighbours():
    metrics = {"images": 10, "views": 1, "captions": 40, "embedding_dim": 256}
    assert results.features_result(metrics).text == (
        "10 images in 1 view and 40 different captions are now vectors of 256 numbers."
    )
    alike = {"value": 0.75, "n": 100, "chance": 0.125}
    said = results.features_result(metrics | {"nearest_same_class": alike}).text
    assert "for 75.0 % of 100 images (95 % interval 65.7 to 82.5 %; by chance 12.5 %)" in said


def test_a_training_that_was_not_validated_claims_no_loss():
    metrics = {"trainable_parameters": 3_798_017, "kept_step": 8, "steps": 8, "validation": None}
    assert results.training_result(metrics).text == "With 3.8 million trained weights, step 8 of 8 was kept."
    assert "2.30 nats a token there: on average as unsure as between 10 tokens" in (
        results.training_result(metrics | {"validation": {"caption_loss": 2.302585}}).text
    )


def test_generated_captions_beside_the_best_baseline():
    cider = {"captioner": 1.0, "beam": 0.7, "shuffled": 0.2, "consensus": 0.9, "nearest": 0.95, "constant": 0.3}
    metrics = {"images": {"val": 4, "test": 6}, "distinct_captions": 7, "own_words": 0.25, "validation_cider": cider}
    said = score_results.generation_result(metrics).text
    assert said.startswith("7 different captions for 10 images; 25.0 % are among the captioner's own beams")
    assert "CIDEr is 1.00: 0.70 for" in said and "0.95 for nearest, which needs no language model" in said


def scored(**ciders):
    return {run: {"s": {"released": {"CIDEr": own}}} for run, own in ciders.items()} | {"protocol": {}}


def test_a_difference_whose_interval_holds_0_is_open_whichever_way_it_was_written():
    metrics = scored(captioner=entry(1.0), nearest=entry(0.95), consensus=entry(0.9), human=entry(1.2))
    pair = {"released": entry(-0.05, -0.15, 0.05)}
    said = score_results.captions_result(metrics | {"paired": {"s": {"nearest - captioner": pair}}}).text
    assert "s: CIDEr 1.00 (95 % interval 0.90 to 1.10) on 10 images, against 0.95 for nearest" in said
    assert "(+0.05, -0.05 to +0.15, so which is better is open); a held-out reference gets 1.20." in said
    pair = {"released": entry(0.05, 0.001, 0.15)}
    said = score_results.captions_result(metrics | {"paired": {"s": {"captioner - nearest": pair}}}).text
    assert "(+0.05, +0.00 to +0.15)" in said and "open" not in said
    assert "was not measured" in score_results.captions_result(metrics | {"paired": {}}).text


def test_retrieval_names_the_best_method_and_the_ceiling():
    own = {name: {"s": {"by_image": {"mean_recall": entry(value, n=1)}, "ceiling": {"mean_recall": entry(0.9)}}}
           for name, value in (("dual_encoder", 0.32), ("combined", 0.3))}  # fmt: skip
    pair = {"dual_encoder - combined": {"mean_recall": entry(0.02, 0.01, 0.03)}}
    said = score_results.retrieval_result(own | {"paired": {"s": pair}, "protocol": {}}).text
    assert "s: mean recall 32.0 % for dual encoder (95 % interval 22.0 to 42.0 %) on 1 image; combined 30.0 %" in said
    assert "the ceiling 90.0 %" in said and said.endswith("to the dual encoder: -2.0 points, -3.0 to -1.0.")


def test_without_a_comparable_figure_none_is_claimed():
    metrics = {
        "captions": {"captioner": {"s": {"CIDEr": entry(1.0)}}},
        "retrieval": {"combined": {"s": {"mean_recall": entry(0.3)}}},
    }
    assert score_results.comparison_result(metrics).text == (
        "s: CIDEr 1.00 (0.90 to 1.10; no published figure to be held against) and "
        "mean recall 30.0 % (20.0 to 40.0; no published figure to be held against)."
    )
