"""What stands at the bounds of its range runs: settings with their numbers at the ends, on tiny models, two steps each.

A learning rate at its bound may make a loss infinite; then training stops with a sentence that names it, and that is all.
"""

import math
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from captioner_case import make_captioner, make_features, make_table
from language_case import CodeTower, make_world
from PIL import Image
from scene_case import ColourEncoder
from test_galleries import make_study, make_vectors, root  # noqa: F401
from test_instructions import caption_case
from test_scenes_mosaics import MeanColour
from vlm_models import vlm_maker

from rsvlm.data.caption_languages import captions_by_language
from rsvlm.data.instructions import make_tasks
from rsvlm.data.rasters.files import SceneError
from rsvlm.data.rasters.windows import Window
from rsvlm.models.feature_shards import encode_images
from rsvlm.models.inference import propose_captions
from rsvlm.models.neighbours import training_pools
from rsvlm.models.zoo import load_encoder
from rsvlm.scenes import earth
from rsvlm.scenes.mosaics import paint, plan_mosaics, read_sizes
from rsvlm.scenes.needles import METHODS, search_mosaics, window_side
from rsvlm.scoring.bootstrap import bootstrap_corpus, mean_of, mean_statistics
from rsvlm.scoring.captions import ScoringTools
from rsvlm.scoring.localisation import compare_needles, judge_maps, judge_searches, score_needles
from rsvlm.scoring.measured import measure_model, save_measurement, score_model
from rsvlm.settings import (
    BATCH,
    SEED,
    AdaptSettings,
    CapRetShape,
    CaptioningSettings,
    EarthWindows,
    Encoding,
    Generation,
    LanguageSettings,
    OtherModel,
    Prompting,
    RewardSettings,
    Settings,
    TaskSettings,
    VlmLoraSettings,
    bounds,
)
from rsvlm.study.paths import finished_study
from rsvlm.study.settings import EXAMPLES, RESAMPLES, CaptionGallery, RetrievalGallery, RunModel, SearchEarth
from rsvlm.training.caption_batches import examples_of
from rsvlm.training.captioning import train_captioner
from rsvlm.training.contrastive import adapt_encoder
from rsvlm.training.languages import embed_captions, train_recipes
from rsvlm.viewing.caption_gallery import write_caption_gallery
from rsvlm.viewing.earth_figures import earth_page, earth_result
from rsvlm.viewing.model_figures import draw_model, model_result, model_table
from rsvlm.viewing.mosaic_figures import draw_search, mosaic_result, needle_figure, needle_table, selo_table
from rsvlm.viewing.retrieval_gallery import (
    read_searches,
    show_search_preview,
    summarise_places,
    write_retrieval_gallery,
)

torch.set_num_threads(1)
CORNERS = (
    "low",
    "high",
    "even",
    "odd",
)  # all numbers at their lower or upper end, or one at the one and the next at the other


def log_nothing(line: str) -> None:
    """For what tells its progress."""


class Enough(Exception):
    """Two steps were made."""


def at_bounds(kind: type[Settings], corner: str, **fixed: object) -> Settings:
    """Settings with their numbers at the ends of their ranges, but for ``fixed``."""
    values = {}
    for place, (name, field) in enumerate(kind.model_fields.items()):
        within = bounds(kind, name)
        if within is None:
            continue
        upper = corner == "high" or corner in ("even", "odd") and place % 2 == (corner == "even")
        end, open_end = (within.high, within.below) if upper else (within.low, within.above)
        if "int" in str(field.annotation):
            values[name] = [int(end)] if "list" in str(field.annotation) else int(end)
        else:
            values[name] = math.nextafter(end, within.low + within.high - end) if open_end else float(end)
    return kind(**values | fixed)


@pytest.fixture(autouse=True)
def two_steps(tmp_path, monkeypatch):
    """Training ends after two steps, however many were asked for; caches lie below tmp_path."""
    monkeypatch.setenv("RSVLM_CACHE", str(tmp_path / "cache"))
    step, made = torch.optim.AdamW.step, []

    def counted(self, *arguments, **options):
        if len(made) == 2:
            raise Enough
        made.append(1)
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", counted)


@pytest.fixture
def pictures(tmp_path) -> pd.DataFrame:
    rows = []
    for number in range(6):
        path = tmp_path / f"{number}.png"
        Image.fromarray(np.full((40, 40, 3), 40 * number, np.uint8)).save(path)
        row = {"image_id": f"s/{number}", "source": "s", "split": "val" if number > 3 else "train", "path": str(path)}
        rows.append(row | {"captions": [f"A field {number}."], "label": None})
    return pd.DataFrame(rows)


@pytest.mark.parametrize("corner", CORNERS)
def test_adapting_an_encoder(tiny_models, pictures, corner):
    fixed = {"batch_size": 2, "freeze_blocks": 1, "crop_size": 32, "precision": "fp32"}
    fixed |= {"members": 1} if corner == "even" else {}  # without an epoch several are refused: all would be alike
    settings = at_bounds(AdaptSettings, corner, **fixed)
    with suppress(Enough, FloatingPointError):
        adapt_encoder(load_encoder(str(tiny_models.clip)), pictures, settings, log=log_nothing)


@pytest.mark.parametrize("corner", CORNERS)
def test_encoding(tiny_models, pictures, tmp_path, corner):
    settings = at_bounds(Encoding, corner, precision="fp32", views=8)
    encode_images(load_encoder(str(tiny_models.clip)), pictures, tmp_path / "f", **dict(settings), log=log_nothing)


@pytest.mark.parametrize("reward", [False, True])
@pytest.mark.parametrize("corner", CORNERS)
def test_training_a_captioner(tmp_path, corner, reward):
    features = make_features()
    table = make_table(features)
    shape = at_bounds(CapRetShape, corner, lora_targets=["q_proj"])
    captioner = make_captioner(features, **dict(shape))
    prompting = at_bounds(Prompting, corner)
    pools = training_pools(features, table, features.image_ids, k=prompting.neighbours, temperature=prompting.neighbour_temperature)  # fmt: skip
    near = pools.top(prompting.neighbour_captions)
    settings = at_bounds(
        CaptioningSettings, corner, batch_size=4, instruction_share=0.0, **({"steps": 1} if reward else {})
    )
    more = at_bounds(RewardSettings, corner, reward_batch_size=2, reward_samples=2, reward_steps=2) if reward else None
    with suppress(Enough, FloatingPointError):
        examples = examples_of(table, "train", near), examples_of(table, "val", near)
        train_captioner(captioner, features, *examples, settings, more, checkpoints=tmp_path, log=log_nothing)


@pytest.mark.parametrize("corner", CORNERS)
def test_making_captions(corner):
    features = make_features()
    table = make_table(features)
    pools = training_pools(features, table, features.image_ids[-2:], k=3, temperature=0.05)
    few = {"max_new_tokens": 4, "samples": 3} if corner != "low" else {}
    captioner = make_captioner(features).eval()
    captioner.config["prompting"] = {"neighbour_captions": 1}
    settings = at_bounds(Generation, corner, **few)
    found = propose_captions(captioner, features, features.image_ids[-2:], pools, settings)
    assert all(found.candidates)


@pytest.mark.parametrize("corner", CORNERS)
def test_adding_languages(corner):
    table, translated, features = make_world(24)
    by_language = captions_by_language(table, translated, ["pt"])
    vectors = embed_captions(CodeTower(), by_language)
    settings = at_bounds(LanguageSettings, corner, batch_size=4)
    with suppress(Enough, FloatingPointError):
        train_recipes(["distilled"], by_language, features, vectors, settings, log=log_nothing)


@pytest.mark.parametrize("corner", CORNERS)
def test_making_instructions(corner):
    assert make_tasks(caption_case(5), at_bounds(TaskSettings, corner))


@pytest.mark.parametrize("resamples", [RESAMPLES.low, RESAMPLES.high])
@pytest.mark.parametrize("images", [1, 5])
def test_intervals(resamples, images):
    found = bootstrap_corpus(
        mean_statistics(np.arange(images, dtype=float)), mean_of, seed=2**32 - 1, resamples=resamples
    )
    assert found["low"] <= found["value"] <= found["high"] or resamples == 1


# Pages and searches


@pytest.mark.parametrize("corner", CORNERS)
def test_galleries(corner, root):  # noqa: F811
    make_vectors(make_study(root, images=6, noise=True))
    files, fixed = finished_study(), {"baselines": ["consensus", "nearest"]}
    about = write_caption_gallery(root / "a.html", files, **dict(at_bounds(CaptionGallery, corner, **fixed)))
    assert about["images"] == (1 if corner in ("low", "odd") else 6)
    settings = at_bounds(RetrievalGallery, corner, method="dual_encoder")
    assert write_retrieval_gallery(root / "b.html", files, **settings.model_dump(exclude={"tier"}))["bytes"] > 0
    by_caption, by_image = read_searches(files, "dual_encoder", split="test", results=settings.results)
    assert len(summarise_places(by_caption, by_image)) and show_search_preview(by_caption, files.read_table())


@pytest.mark.parametrize("count", [EXAMPLES.low, EXAMPLES.high])
def test_examples_of_another_model(count, pictures):
    said = SimpleNamespace(captions=dict.fromkeys(pictures["image_id"], "a field"), space=None)
    assert draw_model(said, pictures, "val", count=int(count)).axes


@pytest.mark.parametrize("corner", ["low", "high"])
def test_another_captioner(corner, pictures, tmp_path):
    """First trained on the study's captions, then as it is, scored and drawn."""
    folder, how = vlm_maker(tmp_path)("qwen2_5_vl"), at_bounds(RunModel, corner)
    table = pictures.assign(split=["train", "train", "val", "val", "test", "test"])

    def measured(**finetune):
        entry = at_bounds(OtherModel, corner, captioner=str(folder), **finetune)
        return measure_model(entry, table, split="test", root=tmp_path, batch_size=how.batch_size, log=log_nothing)

    with suppress(Enough, FloatingPointError):
        measured(finetune=at_bounds(VlmLoraSettings, corner, batch_size=2).model_dump())
    plain = measured()
    about = {"tools": ScoringTools(), "resamples": how.bootstrap_resamples, "seed": how.seed, "log": log_nothing}
    metrics, per_image = score_model("m", plain, table, split="test", protocols=how.protocols, **about)
    save_measurement(tmp_path / "m", {"facts": plain.facts}, plain, metrics, per_image)
    assert len(model_table(metrics)) == 1 and "on 2 images" in str(model_result("m", metrics))
    assert draw_model(plain, table, "test", count=how.examples).axes


@pytest.mark.parametrize("corner", CORNERS)
def test_windows_of_the_earth(corner, tmp_path, monkeypatch):
    """In a part of Asia without sea, so that there are few; of its windows none is land alone where they lie apart."""
    side = 38 if corner in ("high", "odd") else 8
    asia = np.zeros((180, 360), bool)
    asia[24 : 24 + side, 240 : 240 + side] = True  # rows from 90 N, columns from 180 W
    monkeypatch.setattr(earth, "land_of", lambda maps: asia)
    settings = at_bounds(EarthWindows, corner, precision="fp32")
    if corner == "odd":
        with pytest.raises(
            SceneError, match=r"^land_share: no window of 512 pixels has 100 % of land; give less, or a"
        ):
            earth.embed_earth(ColourEncoder(), tmp_path, {}, **dict(settings))
        return
    globe = earth.embed_earth(ColourEncoder(), tmp_path, {}, **dict(settings))
    search = at_bounds(SearchEarth, corner, queries=["Green", "Red"])
    found = earth.find_places(globe, search.queries, ColourEncoder(), standing=1.0, hits=search.hits, apart_km=search.apart_km)  # fmt: skip
    near = len(found[0].hits)
    assert near == 1 if search.apart_km or search.hits == 1 else near > 1
    nothing = {"classes": {}, "mean": {}, "scored": []}
    earth.write_found(found, nothing, tmp_path / "found")
    parts = globe.described["part"].value_counts().to_dict()
    metrics = {"searched": True, "windows": {"embedded": len(globe.described), **parts}, "land": nothing}
    assert "Search the Earth" in earth_page(globe.globe, found, metrics)
    assert f"{len(globe.described):,} windows of the Earth were searched" in str(earth_result(metrics))
    globe.globe.close()


@pytest.mark.parametrize("queries", [[], [" "], ["a " * 301]])
def test_texts_that_the_earth_cannot_be_searched_by(queries):
    with pytest.raises(ValueError, match="'queries'"):
        SearchEarth(queries=queries)
    assert SearchEarth(queries=[], search=False).queries == []


@pytest.fixture
def colours(tmp_path):
    """A function: twelve images of one colour each, of so many pixels a side, whose caption is that colour."""

    def make(side: int) -> pd.DataFrame:
        rows = []
        for number in range(12):
            path, colour = tmp_path / f"{number}.png", (number, 90, 20 * number)
            Image.new("RGB", (side, side), colour).save(path)
            rows.append({"image_id": path.stem, "path": str(path), "captions": [" ".join(map(str, colour))]})
        return pd.DataFrame(rows)

    return make


@pytest.mark.parametrize("count", [1, 1000])
def test_mosaics_of_two_images_along(count, colours, tmp_path):
    """They have four tiles and no larger window than the whole."""
    rows, how = colours(16), {"resamples": int(RESAMPLES.low), "seed": int(SEED.high)}
    mosaics, note = plan_mosaics(rows, read_sizes(rows), [2], count, seed=int(SEED.high))
    assert len(mosaics) == min(count, 8) and (count == 1 or "1000 were asked for" in note)
    options = {"window": window_side(read_sizes(rows)), "batch_size": int(BATCH.high if count > 1 else BATCH.low)}
    searches, maps = search_mosaics(MeanColour(), mosaics, tmp_path / "kept", **options, capitalise=False)
    judged = judge_searches(searches)
    metrics = {"about": {"note": note, "seed": 0}, "needles": score_needles(judged, **how), "captions": {}}
    metrics["overlap_against_tiles"] = compare_needles(judged, "overlap", "tiles", **how)
    metrics["semantic_localisation"] = {"mosaics": judge_maps(maps, **how), "AIR-SLT": None}
    assert len(needle_table(metrics)) == len(METHODS) and len(selo_table(metrics)) and needle_figure(metrics).axes
    assert draw_search(mosaics[0], searches, maps[2]).axes and "synthetic mosaics" in str(mosaic_result(metrics))


def test_a_mosaic_of_256_images_along(colours):
    rows = colours(4)
    (mosaic,), _ = plan_mosaics(rows, read_sizes(rows), [256], 1, seed=int(SEED.high))
    assert mosaic.side == 1024 and paint(mosaic, Window(1000, 0, 24, 24)).shape == (24, 24, 3)


def test_mosaics_of_no_size():
    rows = pd.DataFrame({"image_id": ["a"], "path": ["a.png"], "captions": [["a"]]})
    assert plan_mosaics(rows, {"a": (4, 4)}, [], 12) == ([], "No mosaics were asked for.")
