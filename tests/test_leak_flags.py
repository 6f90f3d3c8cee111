"""What is said of a model whose training data hold the test set, images like its own, or its captions."""

import pytest

from rsvlm.data.audit import verbatim_share
from rsvlm.data.catalogue import KNOWN
from rsvlm.models.zoo import PRESETS
from rsvlm.scoring.leak_flags import family_of, leak_flags


def rows(source: str, split: str, *captions: str) -> list[dict]:
    return [
        {"image_id": f"{source}/{split}{number}.jpg", "source": source, "split": split, "captions": [caption]}
        for number, caption in enumerate(captions)
    ]


@pytest.fixture
def audit() -> dict:
    """A report as rsvlm.data.aggregate makes it: RSICD as three sources, RSITMD, UCM."""
    table = [
        *rows("ucm", "train", "a river", "a field", "trees"),
        *rows("ucm", "test", "a river", "a port", "trees", "a road"),
        *rows("rsicd", "train", "a bridge", "a road"),
        *rows("rsicd", "val", "a port"),
        *rows("rsicd_captioning", "test", "a bridge", "a lake"),
        *rows("rsicd_retrieval", "test", "a bridge", "a hill"),
        *rows("rsitmd", "train", "a mountain"),
    ]
    parts = sorted({f"{row['source']}/{row['split']}" for row in table})
    near = {part: dict.fromkeys(parts, 0) for part in parts}
    near["ucm/test"]["ucm/train"] = 2
    near["rsicd_retrieval/test"] |= {"rsitmd/train": 1, "rsicd/val": 1}
    sources = {}
    for row in table:
        images = sources.setdefault(row["source"], {"images": {"train": 0, "val": 0, "test": 0}})["images"]
        images[row["split"]] += 1
    sources["rsicd"]["images_drawn_for_validation"] = 1
    return {
        "sources": sources,
        "verbatim": verbatim_share(table),
        "near_duplicates": {"images_with_a_near_duplicate": near},
    }


def test_names_of_one_benchmark():
    names = ("ucm", "ucm_captions", "UCM-Captions", "sydney_captions", "nwpu_captions", "rsicd_captioning", "rsicd")
    assert [family_of(name) for name in names] == ["ucm", "ucm", "ucm", "sydney", "nwpu", "rsicd", "rsicd"]
    assert (
        family_of("rsicd_retrieval") == "rsicd" and family_of("Mine") == "mine" and family_of("ucmerced") == "ucmerced"
    )


def test_trained_on_the_test_images(audit):
    for part in ("ucm/test", "ucm_captions/test"):
        assert leak_flags([part], "", "ucm", "test", audit)[0] == (
            f"trained on these test images: {part} is among its training data"
        )
    whole = leak_flags(["ucm"], "the makers say so", "ucm_captions", "test")
    assert whole == [
        "trained on these test images: ucm/test is among its training data",
        "trained on ucm/train, the training split of this benchmark, as is usual",
        "trained on ucm/val, the validation split of this benchmark",
        "the makers say so",
    ]
    assert leak_flags(["mine/val"], "", "mine", "val")[0].startswith("trained on these val images: mine/val")


def test_the_training_split_and_what_it_holds_of_the_captions(audit):
    assert leak_flags(["ucm/train"], "", "ucm", "test") == [
        "trained on ucm/train, the training split of this benchmark, as is usual"
    ]
    assert leak_flags(["ucm/train"], "", "ucm", "test", audit) == [
        "2 of 4 test images have a near-duplicate in ucm/train, as the study's audit found",
        "50.0 % of the captions of the test images stand word for word in ucm/train",
        "trained on ucm/train, the training split of this benchmark, as is usual",
    ]


def test_two_test_sets_under_one_name(audit):
    for part in ("rsicd/test", "rsicd/val"):
        for source in ("rsicd_captioning", "rsicd_retrieval"):
            assert leak_flags([part], "", source, "test")[0].startswith(
                f"may be trained on these test images: it was trained on {part}, and RSICD has two test sets under one"
            )
    assert leak_flags(["rsicd/val"], "", "rsicd", "test")[0].startswith("may be trained on these test images")
    assert leak_flags(["rsicd_retrieval/test"], "", "rsicd_retrieval", "test")[0].startswith("trained on these test")
    assert leak_flags(["rsicd_captioning/test"], "", "rsicd_retrieval", "test", audit) == [
        "50.0 % of the captions of the test images stand word for word in rsicd_captioning/test",
        "trained on rsicd_captioning/test, the other test set of RSICD: other images than these",
    ]


def test_images_drawn_for_validation_are_training_images_of_the_benchmark(audit):
    assert leak_flags(["rsicd/train"], "", "rsicd_retrieval", "test", audit) == [
        "1 of 2 test images have a near-duplicate in rsicd/val, as the study's audit found",
        "50.0 % of the captions of the test images stand word for word in rsicd/train",
        "0.0 % of the captions of the test images stand word for word in rsicd/val",
        "trained on rsicd/train, the training split of this benchmark, as is usual",
    ]


def test_another_benchmark_that_shares_images(audit):
    said = "trained on rsitmd/train: RSITMD and RSICD share images, so test images may be among them"
    assert leak_flags(["rsitmd/train"], "", "rsicd_captioning", "test") == [said]
    assert leak_flags(["rsitmd/train"], "", "rsicd_retrieval", "test", audit) == [
        said,
        "1 of 2 test images have a near-duplicate in rsitmd/train, as the study's audit found",
    ]
    assert leak_flags(["rsitmd/train"], "", "rsicd_captioning", "test", audit) == [
        said,
        "no test image has a near-duplicate in rsitmd/train, as far as the study's audit sees",
    ]
    assert leak_flags(["rsicd/train"], "", "rsitmd", "test") == [
        "trained on rsicd/train: RSICD and RSITMD share images, so test images may be among them"
    ]


def test_captions_of_another_benchmark_and_nothing_known(audit):
    assert leak_flags(["rsicd/train"], "", "ucm", "test", audit) == [
        "25.0 % of the captions of the test images stand word for word in rsicd/train",
        "25.0 % of the captions of the test images stand word for word in rsicd/val",
    ]
    assert leak_flags(["rsitmd/train"], "", "ucm", "test", audit) == ["none known"]
    assert leak_flags([], "", "ucm", "test", audit) == ["none known"]
    assert leak_flags((), "web images", "ucm", "test") == ["none known", "web images"]
    assert leak_flags(["ucm/train"], "", "ucm", "test", {"sources": {"ucm": {}}}) == leak_flags(
        ["ucm/train"], "", "ucm", "test"
    ), "an audit that compared nothing"


def test_unknown_training_data(audit):
    for told in (None, "unknown"):
        assert leak_flags(told, "", "ucm", "test", audit) == ["unknown: training data not published"]
    assert leak_flags(None, "each benchmark may be among them", "ucm", "test")[1:] == [
        "each benchmark may be among them"
    ]


@pytest.mark.parametrize(
    ("trained_on", "message"),
    [
        ("ucm/train", r'trained_on: needs a list of parts such as \["ucm/train"\], or "unknown"; is \'ucm/train\''),
        (3, "trained_on: needs a list of parts"),
        ([3], "trained_on: needs a list of parts"),
        (["ucm/tran"], "trained_on: ucm/tran: unknown split 'tran'; did you mean 'train'"),
        (["/train"], "trained_on: '/train' names no source"),
    ],
)
def test_what_is_no_training_data(trained_on, message):
    with pytest.raises(ValueError, match=message):
        leak_flags(trained_on, "", "ucm", "test")
    with pytest.raises(ValueError, match="split: unknown split 'tst'"):
        leak_flags([], "", "ucm", "tst")


@pytest.mark.parametrize("name", PRESETS)
def test_every_published_encoder_on_every_benchmark(name, audit):
    preset = PRESETS[name]
    for source in (*KNOWN, "rsicd_captioning", "rsicd_retrieval"):
        flags = leak_flags(preset.trained_on, preset.leaks, source, "test", audit)
        assert len(flags) > 1 and flags[-1] == preset.leaks and all(flags)
        assert flags[0].startswith("unknown") == (preset.trained_on is None)
        assert not any(flag.startswith("trained on these") for flag in flags), "none names a test split"
