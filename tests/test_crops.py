"""A grid's cells from crops of the picture: the right cells, turned with the picture, the same for new pictures."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

import rsvlm
from rsvlm.data import images
from rsvlm.models import feature_shards
from rsvlm.models.captioner import build_capret
from rsvlm.models.encoders import DualEncoder, Preprocessing, pool_cells
from rsvlm.models.encoding import cut_cells
from rsvlm.models.feature_shards import encode_images
from rsvlm.models.features import encode_pictures
from rsvlm.models.inference import load_captioner, model_card, save_captioner
from rsvlm.models.neighbours import training_memory
from rsvlm.models.prompts import turn_back
from rsvlm.models.zoo import load_encoder
from rsvlm.settings import Encoding, Generation

torch.set_num_threads(1)
S = 8  # side of the fake encoder's input
COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], np.uint8)  # of four quarters, row by row


class MeanColour(DualEncoder):
    """Features of a picture are its mean colour; those of a map's cells are the negative of it, so that they show."""

    def __init__(self, resize: str = "squash", has_map: bool = True):
        super().__init__("mean colour", Preprocessing(S, [0.0] * 3, [1.0] * 3, resize, "box"), 3, 3)
        self.logit_scale, self.has_map, self.seen = nn.Parameter(torch.zeros(())), has_map, []

    def image_features(self, pixel_values, grid=0):
        assert self.has_map or not grid, "a map was asked for"
        self.seen.append(len(pixel_values))
        return pixel_values.mean((2, 3)), -pool_cells(pixel_values, grid) if grid else None

    def project_images(self, pooled):
        return pooled

    def text_features(self, texts):
        return torch.ones(len(texts), 3)

    def image_blocks(self):
        return [[]]

    def _save_into(self, folder):
        raise NotImplementedError


def quarters(width: int, height: int) -> Image.Image:
    """A picture of four colours."""
    rows, columns = np.arange(height) * 2 // height, np.arange(width) * 2 // width
    return Image.fromarray(COLOURS[rows[:, None] * 2 + columns])


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def table_of(pictures, folder) -> pd.DataFrame:
    rows = []
    for i, picture in enumerate(pictures):
        picture.save(folder / f"{i}.png")
        rows.append({"image_id": f"toy/{i}.png", "path": str(folder / f"{i}.png"), "captions": ["a river."]})
    return pd.DataFrame(rows)


@pytest.mark.parametrize("size", [(64, 64), (96, 32), (6, 4)])
def test_cells_are_the_crops_row_by_row(size):
    made = encode_pictures(MeanColour(), [quarters(*size)], ["a"], grid=2, crops="always")
    assert made.grid.shape == (1, 1, 4, 3) and made.grid.dtype == np.float16
    assert np.array_equal(made.grid[0, 0], COLOURS.astype(np.float16))
    assert made.meta["crops"] == "always"


def test_detail_that_the_small_picture_loses_is_in_the_crops():
    """A line one pixel wide, seen by an encoder whose features are the brightest pixel."""

    class Brightest(MeanColour):
        def image_features(self, pixel_values, grid=0):
            brightest = pixel_values.amax((2, 3))
            return brightest, brightest[:, None].expand(-1, grid * grid, -1) if grid else None

    lined = np.zeros((64, 64, 3), np.uint8)
    lined[:, 20] = 240
    cells = {
        crops: encode_pictures(Brightest(), [Image.fromarray(lined)], ["a"], grid=4, crops=crops).grid[0, 0, :, 0]
        for crops in ("never", "always")
    }
    assert cells["never"].tolist() == [30] * 16  # of 64 pixels 8: a line is an eighth of a pixel
    assert cells["always"].tolist() == [0, 120, 0, 0] * 4  # of 16 pixels 8: half of one


def test_cut_cells():
    pixels = torch.arange(2 * 3 * 36.0).view(2, 3, 6, 6)
    cells = cut_cells(pixels, 3)
    assert cells.shape == (18, 3, 2, 2)
    assert torch.equal(cells[9 + 5], pixels[1, :, 2:4, 4:6])  # the second image's second row, third column


@pytest.mark.parametrize("views", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [(24, 24), (48, 72)])
def test_a_views_cells_are_the_crops_of_the_turned_picture(views, size):
    picture = noise(*size)
    made = encode_pictures(MeanColour(), [picture], ["a"], views=views, grid=3, crops="always")
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    turned = [Image.fromarray(view.permute(1, 2, 0).numpy()) for view in _views(pixels, views)]
    own = encode_pictures(MeanColour(), turned, list(map(str, range(views))), grid=3, crops="always")
    assert np.allclose(made.grid[0].astype(float), own.grid[:, 0].astype(float), atol=1)  # of 255; Pillow rounds
    assert np.array_equal(turn_back(made.grid), np.repeat(made.grid[:, :1], views, axis=1))


def _views(pixels, views):
    """As ``turn_views``, also of a picture that is not square."""
    turns = [torch.rot90(pixels[0], k, (-2, -1)) for k in (range(4) if views >= 4 else range(1))]
    return turns + ([view.flip(-1) for view in turns] if views in (2, 8) else [])


def test_crops_turn_as_the_maps_cells_do(tiny_models):
    """For an encoder that sees a cell as its mean, both ways give the same arrangement."""
    picture = quarters(64, 64)
    of_map, of_crops = (
        encode_pictures(MeanColour(), [picture], ["a"], views=8, grid=2, crops=crops).grid
        for crops in ("never", "always")
    )
    assert np.array_equal(-of_map, of_crops)
    real = encode_pictures(load_encoder(str(tiny_models.clip)), [noise(99, 70)], ["a"], views=8, grid=2, crops="always")
    assert np.isfinite(real.grid.astype(np.float32)).all() and len(np.unique(real.grid[0, :, 0, 0])) > 4


def test_the_rest_of_the_features_stays(tiny_models):
    encoder, pictures = load_encoder(str(tiny_models.clip)), [noise(99, 70), noise(32, 32, 1)]
    without, with_crops = (
        encode_pictures(encoder, pictures, ["a", "b"], views=2, grid=2, crops=crops) for crops in ("never", "always")
    )
    assert np.array_equal(without.pooled, with_crops.pooled)
    assert np.array_equal(without.image_embeddings, with_crops.image_embeddings)
    assert without.meta == {"views": 2, "grid": 2, "precision": "fp32"}


@pytest.mark.parametrize(
    ("resize", "size", "cut"),
    [
        ("squash", (16, 16), False), ("squash", (17, 9), True), ("squash", (9, 17), True), ("squash", (8, 8), False),
        ("crop", (99, 16), False), ("crop", (99, 17), True),
    ],
)  # fmt: skip
def test_auto_takes_crops_of_what_is_longer_than_twice_the_input(resize, size, cut):
    white = Image.new("RGB", size, "white")
    made = encode_pictures(MeanColour(resize), [white], ["a"], grid=2, crops="auto")
    assert (made.grid == (255 if cut else -255)).all()


def test_large_and_small_pictures_in_one_batch():
    encoder = MeanColour()
    pictures = [quarters(10, 10), quarters(40, 40), quarters(12, 12), quarters(80, 20)]
    made = encode_pictures(encoder, pictures, list("abcd"), views=2, grid=2, crops="auto", batch_size=4)
    assert [bool((row >= 0).all()) for row in made.grid] == [False, True, False, True]
    assert np.array_equal(made.grid[3, 0], COLOURS.astype(np.float16))
    assert max(encoder.seen) == 4  # cells go through as many at a time as pictures do


def test_a_centre_crop_in_front_of_the_encoder_holds_for_the_cells():
    picture = Image.new("RGB", (96, 32), "white")
    picture.paste(quarters(32, 32), (32, 0))
    made = encode_pictures(MeanColour("crop"), [picture], ["a"], grid=2, crops="always")
    assert np.array_equal(made.grid[0, 0], COLOURS.astype(np.float16))


def test_an_encoder_without_a_map_has_cells_of_crops():
    made = encode_pictures(MeanColour(has_map=False), [quarters(64, 64)] * 3, list("abc"), grid=2, crops="always")
    assert np.array_equal(made.grid[2, 0], COLOURS.astype(np.float16))


def encode(encoder, table, folder, crops):
    return encode_images(
        encoder, table, folder, views=2, grid=2, crops=crops, batch_size=3, precision="fp32", log=lambda line: None
    )


def test_a_study_encodes_files_so_and_goes_on_after_a_kill(tmp_path, monkeypatch):
    monkeypatch.setenv("RSVLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(feature_shards, "BLOCK", 4)
    table = table_of([noise(12 + 2 * i, 10, i) for i in range(10)], tmp_path)
    whole = encode(MeanColour(), table, tmp_path / "whole", "auto")
    assert whole.meta["crops"] == "auto" and 0 < (whole.grid[:, 0] < 0).all((1, 2)).sum() < 10
    original, calls = feature_shards.encode_batch, []

    def dying(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*arguments)

    for crops in ("auto", "never"):  # the broken run without crops is not taken up by that with crops
        calls.clear()
        monkeypatch.setattr(feature_shards, "encode_batch", dying)
        with pytest.raises(KeyboardInterrupt):
            encode(MeanColour(), table, tmp_path / "broken", crops)
    monkeypatch.setattr(feature_shards, "encode_batch", original)
    encode(MeanColour(), table, tmp_path / "broken", "auto")
    for name in ("pooled.npy", "grid.npy", "image_embeddings.npy", "meta.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes(), name
    assert "crops" not in encode(MeanColour(), table, tmp_path / "never", "never").meta


def test_a_file_too_large_to_decode_whole_has_crops_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("RSVLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(images, "MAX_PIXELS", 10_000)  # read by GDAL at a third
    made = encode(MeanColour(), table_of([quarters(288, 288)], tmp_path), tmp_path / "features", "auto")
    assert np.array_equal(made.grid[0, 0], COLOURS.astype(np.float16))


@pytest.mark.parametrize(
    ("crops", "grid", "message"), [("often", 2, "none of never, auto, always"), ("auto", 0, "grid")]
)
def test_wrong_settings(tmp_path, crops, grid, message):
    with pytest.raises(ValueError, match=message):
        encode_pictures(MeanColour(), [quarters(9, 9)], ["a"], grid=grid, crops=crops)
    with pytest.raises(ValueError, match=message):
        encode_images(MeanColour(), table_of([quarters(9, 9)], tmp_path), tmp_path / "f", grid=grid, crops=crops)
    with pytest.raises(ValueError, match="crops"):
        Encoding(grid=grid, crops=crops)


@pytest.fixture(scope="module")
def captioner_folder(tmp_path_factory, tiny_models):
    """A tiny captioner over features with crops "auto", saved beside its encoder."""
    folder = tmp_path_factory.mktemp("crops")
    encoder = load_encoder(str(tiny_models.clip))
    encoder.save(folder / "encoder")
    names = [f"made/{i}.png" for i in range(6)]
    features = encode_pictures(encoder, [noise(80, 90, i) for i in range(6)], names, views=2, grid=2, crops="auto")
    features.meta.update(encoder_fingerprint=encoder.fingerprint(), capitalise=True)
    table = pd.DataFrame({"image_id": names, "split": "train", "captions": [["A river."], ["Two roads."]] * 3})
    shape = {"device": "cpu", "dtype": "float32", "retrieval_dim": 4, "lora_rank": 2, "lora_alpha": 4.0}
    captioner = build_capret("random:llama", features, list(range(6)), **shape)
    captioner.config["prompting"] = {"neighbours": 3, "neighbour_temperature": 0.05, "neighbour_captions": 1}
    save_captioner(
        folder / "captioner",
        captioner,
        training_memory(features, table),
        generation=Generation(beams=2, samples=0, max_new_tokens=5),
        weights={"pool": 1.0, "likelihood": 1.0},
        encoding=features.meta,
    )
    return folder / "captioner"


def test_a_captioner_sees_new_pictures_of_any_size_as_it_was_trained(captioner_folder, tmp_path):
    captioner = load_captioner(captioner_folder)
    assert captioner.encoding == {"views": 2, "grid": 2, "precision": "fp32", "crops": "auto"}
    assert "(crops of large pictures)" in model_card(captioner.config)
    pictures = [noise(side, side, side) for side in (64, 300, 1500)]
    for side, picture in zip((64, 300, 1500), pictures):
        picture.save(tmp_path / f"{side}.png")
    said = rsvlm.caption(captioner, [tmp_path / f"{side}.png" for side in (64, 300, 1500)])
    assert said["caption"].str.len().gt(0).all() and said["log_probability"].lt(0).all()
    own, of_map = captioner.encode(pictures, list("abc")), dict(captioner.encoding, crops="never")
    plain = encode_pictures(captioner.encoder, pictures, list("abc"), **of_map)
    assert [np.array_equal(*rows) for rows in zip(own.grid, plain.grid)] == [True, False, False]


def test_a_captioner_from_before_there_were_crops_takes_none(captioner_folder, tmp_path):
    config = json.loads((captioner_folder / "config.json").read_text())
    assert config["encoding"].pop("crops") == "auto"
    older = tmp_path / "captioner"
    older.mkdir()
    for file in captioner_folder.iterdir():
        (older / file.name).write_bytes(file.read_bytes())
    (older / "config.json").write_text(json.dumps(config))
    captioner = load_captioner(older, captioner_folder.parent / "encoder")
    assert captioner.encoding["crops"] == "never"
    save_captioner(
        tmp_path / "again", captioner.model, captioner.memory, generation=captioner.generation,
        weights=captioner.weights, encoding=config["encoding"],
    )  # fmt: skip
    assert json.loads((tmp_path / "again" / "config.json").read_text())["encoding"] == config["encoding"]


def test_large_pictures_are_read_a_few_at_a_time(monkeypatch):
    from rsvlm.models import pictures as reading

    monkeypatch.setattr(reading, "MAX_PIXELS", 1000)
    pictures = [noise(10, 10)] * 3 + [noise(40, 40)] * 2 + [noise(10, 10)]
    blocks = list(reading.read_blocks(pictures, "raise"))
    assert [block.numbers for block in blocks] == [[0, 1, 2, 3], [4], [5]]
