"""A caption for a scene: its windows' captions, joined by what they say and where, each sentence with its windows."""

import json
from dataclasses import replace

import geopandas
import numpy as np
import pandas as pd
import pytest
import shapely
import torch
from PIL import Image
from rasterio import Affine
from scene_case import UTM, ColourEncoder, write_raster
from typer.testing import CliRunner

import rsvlm
from rsvlm.cli import app
from rsvlm.data.rasters.files import SceneError
from rsvlm.data.rasters.scene import open_scene
from rsvlm.models.captioner import build_capret
from rsvlm.models.features import encode_pictures
from rsvlm.models.inference import Captioner, load_captioner, save_captioner
from rsvlm.models.neighbours import Memory, training_memory
from rsvlm.models.zoo import load_encoder
from rsvlm.scenes import captioning
from rsvlm.scenes.captioning import caption_scene, group_captions, say_place
from rsvlm.scenes.places import write_places
from rsvlm.settings import Generation

torch.set_num_threads(1)
RED, GREEN, BLUE, WHITE = (200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 200)
TOLD = {RED: "Red ground .", GREEN: "Green ground .", BLUE: "The image shows blue ground ."}
MOON = (
    'GEOGCS["Moon 2000",DATUM["D_Moon_2000",SPHEROID["Moon_2000_IAU_IAG",1737400,0]],PRIMEM["Reference_Meridian",0],'
    'UNIT["degree",0.0174532925199433]]'
)
POLAR = Affine.translation(-80_000, 80_000) @ Affine.scale(2500, -2500)  # 64 pixels around the pole of EPSG:3413


class Colours(ColourEncoder):
    """Texts are the sum of the colours that they name."""

    def text_features(self, texts):
        named = [[float(word in text.lower()) for word in ("red", "green", "blue")] for text in texts]
        return torch.tensor(named) + 1e-3


def picture_of(colour) -> Image.Image:
    return Image.new("RGB", (16, 16), colour)


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    """It says of a picture what was said of the training image whose colour is nearest."""
    encoder = Colours()
    features = encode_pictures(encoder, map(picture_of, TOLD), list(map(str, TOLD)))
    captions = {
        name: [told, told.replace(" ground", " plain ground")] for name, told in zip(map(str, TOLD), TOLD.values())
    }
    shape = {"device": "cpu", "dtype": "float32", "retrieval_dim": 4, "lora_rank": 0}
    features.meta.update(encoder_fingerprint=encoder.fingerprint(), capitalise=True)
    model = build_capret("random:llama", features, [0, 1, 2], **shape)
    model.config["prompting"] = {"neighbours": 1, "neighbour_temperature": 0.05, "neighbour_captions": 1}
    model.config["encoding"] = {"capitalise": True}
    return Captioner(
        model.eval(),
        encoder,
        Memory(captions, features.image_embeddings.astype(np.float16)),
        Generation(beams=1, samples=0, max_new_tokens=3),
        {"pool": 1.0, "samples": 0.0, "likelihood": 0.0},
        {"views": 1, "grid": 0, "precision": "fp32", "crops": "never"},
        unlike_above=0.2,
    )


def painted(side: int = 64) -> np.ndarray:
    """uint8 (3, side, side): green on the left, red at the top right, blue at the bottom right."""
    pixels, half = np.zeros((side, side, 3), np.uint8), side // 2
    pixels[:, :half], pixels[:half, half:], pixels[half:, half:] = GREEN, RED, BLUE
    return pixels.transpose(2, 0, 1).copy()


def scene_of(folder, pixels, **options):
    return open_scene(write_raster(folder / "scene.tif", pixels, photometric="RGB", **options))


def test_each_sentence_says_where_and_has_its_windows(captioner, tmp_path):
    scene = scene_of(tmp_path, painted(), crs="EPSG:32633", transform=UTM)
    made = caption_scene(captioner, scene, size=16)
    assert made.sentences["sentence"].tolist() == [
        "In the west (50 %): Green ground.",
        "In the north-east (25 %): Red ground.",
        "In the south-east (25 %): The window shows blue ground.",
    ]
    assert made.text == " ".join(made.sentences["sentence"]) and made.warning == "" and made.skipped == 0
    assert made.sentences["windows"].tolist() == [(0, 1, 4, 5, 8, 9, 12, 13), (2, 3, 6, 7), (10, 11, 14, 15)]
    assert made.windows["sentence"].tolist() == [0, 0, 1, 1] * 2 + [0, 0, 2, 2] * 2
    assert made.windows["caption"][2] == "Red ground ." and made.windows["share"].tolist() == [1 / 16] * 16
    north_east = shapely.box(500_320, 4_999_680, 500_640, 5_000_000)
    assert made.sentences.geometry[1].equals(north_east) and made.sentences.crs.to_epsg() == 32633
    assert made.overview.endswith(".")


def test_without_a_crs_places_are_those_of_the_picture(captioner, tmp_path):
    made = caption_scene(captioner, scene_of(tmp_path, painted()), size=16)
    assert made.sentences["place"].tolist() == ["on the left", "at the top right", "at the bottom right"]
    assert made.sentences.crs is None and made.sentences.geometry[2].bounds == (32, 32, 64, 64)


@pytest.mark.parametrize(
    ("crs", "transform", "places"),
    [
        # turned by half a turn: north is at the bottom, west on the right
        ("EPSG:32633", UTM @ Affine.rotation(180), ["in the east", "in the south-west", "in the north-west"]),
        (MOON, Affine(0.001, 0, 10, 0, -0.001, 60), ["on the left", "at the top right", "at the bottom right"]),
        ("EPSG:3413", POLAR, ["on the left", "at the top right", "at the bottom right"]),
        ("EPSG:4326", Affine(360 / 64, 0, -180, 0, -180 / 64, 90), ["in the west", "in the north-east", "in the south-east"]),
    ],
)  # fmt: skip
def test_north_is_where_the_crs_says(captioner, tmp_path, crs, transform, places):
    made = caption_scene(captioner, scene_of(tmp_path, painted(), crs=crs, transform=transform), size=16)
    assert made.sentences["place"].tolist() == places


def test_what_is_unlike_training_is_a_guess_and_stands_alone(captioner, tmp_path):
    pixels = painted()
    pixels[:, :32, 32:] = 200  # white, as near to each colour
    made = caption_scene(captioner, scene_of(tmp_path, pixels), size=16)
    white = made.windows["unlike_training"].eq(True)
    assert white.tolist() == made.windows.index.isin([2, 3, 6, 7]).tolist()
    guess = made.sentences[made.sentences["unlike_training"]]
    assert guess["windows"].tolist() == [(2, 3, 6, 7)] and guess["sentence"].iloc[0].startswith(
        "At the top right (25 %, a guess): "
    )
    assert made.warning == (
        "4 of 16 windows (at the top right, 25 % of the scene) are unlike anything in training: what is said of them is a "
        "guess."
    )
    assert made.text.endswith(made.warning) and made.sentences["unlike_training"].tolist() == [False, False, True]
    silent = caption_scene(replace(captioner, unlike_above=None), open_scene(tmp_path / "scene.tif"), size=16)
    assert silent.warning == "" and "guess" not in silent.text + silent.overview


def test_ground_that_several_windows_show_counts_once(captioner, tmp_path):
    made = caption_scene(captioner, scene_of(tmp_path, painted()), size=16, overlap=0.5)
    assert len(made.windows) == 49 and made.windows["share"].sum() == pytest.approx(1, abs=1e-4)
    shares = made.windows["share"].to_numpy().reshape(7, 7)
    assert shares[0, 0] == pytest.approx((8 + 4) ** 2 / 64**2, abs=1e-6)  # its inner half is shared with one more
    assert shares[3, 3] == pytest.approx(8**2 / 64**2, abs=1e-6)
    uneven = caption_scene(captioner, open_scene(tmp_path / "scene.tif"), size=24)
    assert uneven.windows["share"].sum() == pytest.approx(1, abs=1e-5)  # the last row and column are shifted inward


def test_nodata_is_no_part_of_the_shares(captioner, tmp_path):
    pixels = painted() + 1
    pixels[:, :, :32] = 0
    made = caption_scene(captioner, scene_of(tmp_path, pixels, nodata=0), size=16)
    assert made.skipped == 8 and made.sentences["share"].tolist() == [0.5, 0.5]
    with pytest.raises(SceneError, match="none of its 16 windows has 50% of valid pixels"):
        caption_scene(captioner, scene_of(tmp_path, 0 * pixels, nodata=0), size=16)


@pytest.mark.parametrize("size", [(10, 7), (16, 16), (1, 40)])
def test_a_scene_smaller_than_a_window_has_one_sentence(captioner, tmp_path, size):
    pixels = np.zeros((3, size[1], size[0]), np.uint8)
    pixels[0] = 200
    made = caption_scene(captioner, scene_of(tmp_path, pixels), size=64)
    assert made.text == "Throughout (100 %): Red ground." and len(made.windows) == 1


def test_too_many_windows_and_wrong_settings(captioner, tmp_path):
    scene = scene_of(tmp_path, painted())
    with pytest.raises(
        SceneError, match="16 windows of 16 pixels, more than most_windows .10.; give a size of about 21"
    ):
        caption_scene(captioner, scene, size=16, most_windows=10)
    for wrong in ({"min_valid": 2.0}, {"most_sentences": 0}, {"size": 0}, {"overlap": 1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            caption_scene(captioner, scene, **wrong)
    assert len(caption_scene(captioner, scene).windows) == 16  # the encoder's input is more than an eighth
    short = caption_scene(captioner, scene, size=16, most_sentences=1)
    assert short.text.endswith("Left out: 2 more sentences, on 50 % of the scene.") and len(short.sentences) == 3


def test_captions_that_say_alike_are_one_sentence():
    texts = ["a wood", "a forest", "a sea"]
    similarity = np.array([[1, 0.9, 0.1], [0.9, 1, 0.2], [0.1, 0.2, 1]])
    captions = ["a sea", "a wood", "a forest", "a forest", "a wood", "a wood", "a wood"]
    shares, guessed = np.array([0.1, 0.1, 0.2, 0.2, 0.1, 0.1, 0.2]), np.zeros(7, bool)
    guessed[6] = True
    assert group_captions(texts, similarity, captions, shares, guessed, 0.8) == [
        ("a forest", [1, 2, 3, 4, 5]), ("a sea", [0]), ("a wood", [6]),
    ]  # fmt: skip
    apart = group_captions(texts, similarity, captions, shares, guessed, 0.95)
    assert [text for text, _ in apart] == ["a forest", "a wood", "a sea", "a wood"]


def test_alike_is_what_captions_of_one_training_image_are(captioner):
    """Red ground and red plain ground are the same to this encoder, so the median is 1."""
    assert captioning._alike(captioner) == pytest.approx(1, abs=1e-5)
    single = replace(captioner, memory=Memory({"a": ["Red."], "b": ["Blue.", "Blue."]}, captioner.memory.vectors[:2]))
    assert captioning._alike(single) == 1.0


@pytest.mark.parametrize(
    ("centres", "share", "parts", "place"),
    [
        ([(0.5, 0.5)], 0.25, 1, "in the north-east"),
        ([(-0.9, 0.0), (-0.9, 0.9), (-0.9, -0.9)], 0.3, 1, "in the west"),
        ([(0.0, -0.9)], 0.1, 1, "in the south"),
        ([(0.1, 0.2), (-0.1, -0.2)], 0.1, 1, "in the centre"),
        ([(0.9, 0.9), (-0.9, -0.9)], 0.1, 2, "in several places"),
        ([(0.9, 0.0), (0.0, 0.0), (-0.9, 0.0)], 0.3, 1, "across the middle"),
        ([(0.9, 0.9), (-0.9, -0.9), (0.5, -0.5)], 0.6, 1, "in most of the scene"),
        ([(0.0, 0.0)], 0.95, 1, "throughout"),
        ([(0.5, 0.5)] * 4 + [(-0.5, 0.5)], 0.2, 1, "in the north-east"),  # four of five
    ],
)  # fmt: skip
def test_places_in_words(centres, share, parts, place):
    east, north = np.array(centres).T
    weights = np.full(len(centres), share / len(centres))
    assert say_place(east, north, weights, share, compass=True, parts=parts) == place


def test_it_goes_out_as_geojson_and_geoparquet(captioner, tmp_path):
    scene = scene_of(tmp_path, painted(), crs="EPSG:32633", transform=UTM)
    for number in (1, 2):
        made = caption_scene(captioner, scene, size=16)
        write_places(made.places(), tmp_path / f"{number}.geojson")
    assert (tmp_path / "1.geojson").read_bytes() == (tmp_path / "2.geojson").read_bytes()
    read = geopandas.read_file(tmp_path / "1.geojson")
    assert read["kind"].tolist() == ["scene", "overview"] + ["sentence"] * 3 + ["window"] * 16
    assert read["text"][0] == made.text and read["windows"][3] == "2 3 6 7"
    window = json.loads((tmp_path / "1.geojson").read_text())["features"][5]["properties"]
    assert window["left"] == 0 and window["sentence"] == 0 and window["windows"] is None
    back = read.to_crs("EPSG:32633").geometry
    assert back[3].buffer(0.1).contains(made.sentences.geometry[1]) and back[0].area == pytest.approx(640**2, rel=1e-6)
    write_places(made.places(), tmp_path / "1.parquet")
    stored = geopandas.read_parquet(tmp_path / "1.parquet")
    assert stored.crs.to_epsg() == 32633 and stored["text"].tolist() == read["text"].tolist()


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny_models):
    """A tiny captioner with crops "auto" beside its encoder."""
    folder = tmp_path_factory.mktemp("saved")
    encoder = load_encoder(str(tiny_models.clip))
    encoder.save(folder / "encoder")
    random, names = np.random.default_rng(0), [f"made/{i}.png" for i in range(6)]
    pictures = [Image.fromarray(random.integers(0, 256, (80, 80, 3), dtype=np.uint8)) for _ in names]
    features = encode_pictures(encoder, pictures, names, views=2, grid=2, crops="auto")
    features.meta.update(encoder_fingerprint=encoder.fingerprint(), capitalise=True)
    table = pd.DataFrame(
        {"image_id": names, "split": "train", "captions": [["A river.", "One river."], ["Two roads."]] * 3}
    )
    shape = {"device": "cpu", "dtype": "float32", "retrieval_dim": 4, "lora_rank": 2, "lora_alpha": 4.0}
    model = build_capret("random:llama", features, list(range(6)), **shape)
    model.config["prompting"] = {"neighbours": 3, "neighbour_temperature": 0.05, "neighbour_captions": 1}
    save_captioner(
        folder / "captioner", model, training_memory(features, table), encoding=features.meta,
        generation=Generation(beams=2, samples=0, max_new_tokens=5), weights={"pool": 1.0, "likelihood": 1.0, "cosine": 1.0},
    )  # fmt: skip
    return folder / "captioner"


def test_windows_are_captioned_as_pictures_are(saved, tmp_path):
    """One way for both, crops and all."""
    pixels = np.random.default_rng(3).integers(0, 256, (3, 200, 250), dtype=np.uint8)
    captioner = load_captioner(saved)
    made = caption_scene(captioner, scene_of(tmp_path, pixels), size=100)
    corners = made.windows[["left", "top"]].to_numpy().tolist()
    assert corners == [[0, 0], [100, 0], [150, 0], [0, 100], [100, 100], [150, 100]]
    crops = [pixels[:, top : top + 100, left : left + 100].transpose(1, 2, 0).copy() for left, top in corners]
    said = rsvlm.caption(captioner, crops)
    assert made.windows["caption"].tolist() == said["caption"].tolist()
    assert made.windows["log_probability"].tolist() == pytest.approx(said["log_probability"].tolist(), abs=1e-5)
    assert made.windows["distance"].tolist() == pytest.approx(said["distance"].tolist(), abs=1e-6)


def test_command(saved, tmp_path):
    scene_of(tmp_path, painted(100), crs="EPSG:32633", transform=UTM).close()
    out = tmp_path / "captions.geojson"
    command = ["scene", "caption", str(tmp_path / "scene.tif"), "--captioner", str(saved), "--size", "50"]
    done = CliRunner().invoke(app, [*command, "--out", str(out)])
    assert done.exit_code == 0, done.output
    read = geopandas.read_file(out)
    assert read["text"][0] in done.stdout and " %): " in done.stdout
    assert "4 windows; as one small picture: " in done.stderr and (read["kind"] == "window").sum() == 4
    (tmp_path / "none").mkdir()
    early = ["scene", "caption", str(tmp_path / "scene.tif"), "--captioner", str(tmp_path / "none"), "--size", "2"]
    many = CliRunner().invoke(app, early)  # told before the captioner is looked at
    assert "2,500 windows of 2 pixels, more than most_windows (400); give a size of about 5" in str(many.exception)
    many = CliRunner().invoke(app, [*early, "--min-valid", "2"])
    assert "min_valid" in str(many.exception)
    wrong = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "captions.shp")])
    assert wrong.exit_code == 1 and "captions.shp" in str(wrong.exception)
