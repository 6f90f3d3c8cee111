"""Features on disk: right rows and views, continued after a kill, refused when they do not fit."""

import errno
import json
import os

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from rsvlm.files import InUse, cache_folder, only_process
from rsvlm.models import feature_shards, features
from rsvlm.models.encoding import turn_views
from rsvlm.models.feature_shards import encode_images, open_rows, write_rows
from rsvlm.models.features import caption_encoder, load_features, measure_neighbours, nearest_images
from rsvlm.models.zoo import load_encoder
from rsvlm.viewing.training_figures import draw_neighbours

torch.set_num_threads(1)


@pytest.fixture
def table(tmp_path, monkeypatch) -> pd.DataFrame:
    monkeypatch.setenv("RSVLM_CACHE", str(tmp_path / "cache"))
    generator = np.random.default_rng(1)
    rows = []
    for i in range(10):
        Image.fromarray(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        rows.append(
            {
                "image_id": f"toy/{i}.png",
                "source": "toy",
                "split": "train",
                "path": str(tmp_path / f"{i}.png"),
                "captions": ["a river.", f"field {i}."],
                "label": None,
            }
        )
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def encoder(tiny_models):
    return load_encoder(str(tiny_models.clip))


def encode(encoder, table, folder, **more):
    settings = {"batch_size": 3, "precision": "fp32", "log": lambda line: None} | more
    return encode_images(encoder, table, folder, **settings)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_captions_are_encoded_on_the_device_asked_for(encoder, table, tmp_path, tiny_models, monkeypatch, device):
    """With the bits of the features' own on the CPU; "meta" stands for a GPU."""
    made, loaded = encode(encoder, table, tmp_path / "features"), []

    def load(name, device="cpu"):
        loaded.append(str(device))
        return load_encoder(name)

    monkeypatch.setattr(features, "load_encoder", load)
    vectors = caption_encoder(made, tiny_models.clip, device)(made.texts)
    assert loaded == [device] and np.array_equal(vectors, made.text_embeddings)


def test_arrays_rows_and_meta(encoder, table, tmp_path):
    made = encode(encoder, table, tmp_path / "features", grid=2)
    P, D = encoder.feature_dim, encoder.embedding_dim
    assert made.pooled.shape == (10, 8, P) and made.pooled.dtype == np.float16 and isinstance(made.pooled, np.memmap)
    assert made.grid.shape == (10, 8, 4, P) and made.image_embeddings.shape == (10, D)
    assert made.texts == sorted({"a river.", *(f"field {i}." for i in range(10))})
    assert np.allclose(np.linalg.norm(made.image_embeddings, axis=1), 1, atol=1e-5)
    assert made.rows(["toy/7.png", "toy/0.png"]).tolist() == [7, 0]
    assert made.text_rows(["field 3."]).tolist() == [made.texts.index("field 3.")]
    assert made.meta["encoder_fingerprint"] == encoder.fingerprint() and made.meta["views"] == 8
    with pytest.raises(ValueError, match="toy/99.png"):
        made.rows(["toy/99.png"])
    with pytest.raises(ValueError, match="no such"):
        made.text_rows(["no such caption"])
    assert not list((tmp_path / "cache").glob("features_*"))


@pytest.mark.parametrize(("precision", "loose"), [("fp32", 1), ("bf16", 1000)])  # bf16 has 8 bits of 24
@torch.no_grad()
def test_values_are_the_encoders(encoder, table, tmp_path, precision, loose):
    made = encode(encoder, table, tmp_path / "features", grid=1, precision=precision)
    assert made.meta["precision"] == precision
    pixels = encoder.normalize(encoder.prepare([Image.open(table["path"][4])]))
    views = [torch.rot90(view, k, (2, 3)) for view in (pixels,) for k in range(4)]
    views += [view.flip(3) for view in views]
    pooled = torch.cat([encoder.image_features(view.contiguous())[0] for view in views])
    assert np.allclose(made.pooled[4], pooled.numpy(), atol=5e-3 if precision == "fp32" else 5e-2)
    mean = torch.nn.functional.normalize(encoder.project_images(pooled), dim=-1).mean(0)
    assert np.allclose(made.image_embeddings[4], mean / mean.norm(), atol=1e-5 * loose)
    text = torch.nn.functional.normalize(encoder.text_features(["A river."]), dim=-1)[0]
    river = made.text_embeddings[made.texts.index("a river.")]
    assert np.allclose(river, text, atol=1e-5 * loose)  # capitalised


@pytest.mark.parametrize(("ability", "precision"), [("avx2", "fp32"), ("avx512_bf16", "bf16"), ("amx_bf16", "bf16")])
def test_the_automatic_precision_is_what_the_processor_has(encoder, table, tmp_path, monkeypatch, ability, precision):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {ability: True})
    assert encode(encoder, table, tmp_path / "features", views=1, precision="auto").meta["precision"] == precision


def test_upright_only_without_grid(encoder, table, tmp_path):
    made = encode(encoder, table, tmp_path / "features", views=1, grid=0)
    assert made.pooled.shape[1] == 1 and made.grid is None
    assert not (tmp_path / "features" / "grid.npy").exists()


def test_views():
    image = torch.arange(9.0).view(1, 1, 3, 3)
    views = turn_views(image, 8)[0]
    assert torch.equal(views[0], image[0]) and len({tuple(view.flatten().tolist()) for view in views}) == 8
    assert torch.equal(turn_views(image, 4)[0], views[:4]) and torch.equal(turn_views(image, 2)[0], views[[0, 4]])
    assert turn_views(image, 1).shape == (1, 1, 1, 3, 3)


def test_killed_and_run_again(encoder, table, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_shards, "BLOCK", 4)
    encode(encoder, table, tmp_path / "whole")
    original, calls = feature_shards.encode_batch, []

    def dying(*arguments):
        calls.append(1)
        if len(calls) == 4:  # batches of 3, 1 | 3, dies: one block of four is done, three more rows are written
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(feature_shards, "encode_batch", dying)
    with pytest.raises(KeyboardInterrupt):
        encode(encoder, table, tmp_path / "broken")
    assert not (tmp_path / "broken").exists()
    counted = []
    monkeypatch.setattr(feature_shards, "encode_batch", lambda *a: counted.append(len(a[1])) or original(*a))
    encode(encoder, table, tmp_path / "broken")
    assert sum(counted) == 6
    for name in ("pooled.npy", "grid.npy", "image_embeddings.npy", "text_embeddings.npy", "texts.json", "meta.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes(), name


def test_what_a_killed_run_left_damaged_is_made_anew_and_two_at_once_are_refused(encoder, table, tmp_path, monkeypatch):
    encode(encoder, table, tmp_path / "whole")

    def stop(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(feature_shards, "whole_folder", stop)  # all blocks are there
        encode(encoder, table, tmp_path / "broken")
    (scratch,) = cache_folder().glob("features_*")
    (scratch / "pooled.npy").write_bytes(b"torn")
    with (
        only_process(scratch.with_suffix(".lock"), "x"),
        pytest.raises(InUse, match=rf"10 images: .*{os.getpid()}, since"),
    ):
        encode(encoder, table, tmp_path / "broken")
    lines = []
    encode(encoder, table, tmp_path / "broken", log=lines.append)
    assert any(str(scratch) in line and "starting anew" in line for line in lines)
    for name in ("pooled.npy", "image_embeddings.npy"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes(), name


def test_full_disk(encoder, table, tmp_path, monkeypatch):
    class Usage:
        free = 100

    monkeypatch.setattr("rsvlm.files.shutil.disk_usage", lambda path: Usage)
    with pytest.raises(OSError, match=r"features of 10 images need \d+\.\d kB, 100 B are free"):
        encode(encoder, table, tmp_path / "features")
    assert not (tmp_path / "features").exists()


def test_rows_on_a_full_disk(tmp_path):
    class Full:
        name = "a.npy"

        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    class NearlyFull(Full):
        def write(self, _):
            return 3

    for file in (Full(), NearlyFull()):
        with pytest.raises(OSError, match="No space left on device while writing.*a.npy"):
            write_rows(file, np.zeros((2, 2), "float32"))


def test_rows_are_continued(tmp_path):
    rows = np.arange(8, dtype="float32").reshape(4, 2)
    with open_rows(tmp_path / "a.npy", (4, 2), "float32") as file:
        write_rows(file, rows[:2] + 1)
    with pytest.raises(ValueError, match="a.npy: shorter than the first 3 rows"):
        open_rows(tmp_path / "a.npy", (4, 2), "float32", 3)
    with open_rows(tmp_path / "a.npy", (4, 2), "float32", 1) as file:
        write_rows(file, rows[1:])
    assert np.load(tmp_path / "a.npy").tolist() == [[1, 2], *rows[1:].tolist()]


def test_not_finite_features_name_the_image(tiny_models, table, tmp_path):
    broken = load_encoder(str(tiny_models.clip))
    with torch.no_grad():
        broken.model.vision_model.post_layernorm.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="toy/0.png: its features"):
        encode(broken, table, tmp_path / "features")


def test_missing_damaged_and_mismatched(encoder, table, tmp_path):
    folder = tmp_path / "features"
    with pytest.raises(FileNotFoundError, match="no features"):
        load_features(folder)
    encode(encoder, table, folder, views=1)
    np.save(folder / "image_embeddings.npy", np.zeros((9, encoder.embedding_dim), np.float32))
    with pytest.raises(ValueError, match=r"image_embeddings.npy: shape \(9, "):
        load_features(folder)
    (folder / "pooled.npy").write_bytes((folder / "pooled.npy").read_bytes()[:200])
    with pytest.raises(ValueError, match="pooled.npy: no whole .npy file .*run the stage encode_images again"):
        load_features(folder)
    (folder / "pooled.npy").unlink()
    with pytest.raises(FileNotFoundError, match="pooled.npy: missing"):
        load_features(folder)
    meta = json.loads((folder / "meta.json").read_text())
    meta["image_ids"] = meta["image_ids"][::-1]
    (folder / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match="image_ids are not those"):
        load_features(folder)


@pytest.mark.parametrize("wrong", [{"views": 3}, {"grid": -1}, {"batch_size": 0}])
def test_settings_out_of_range(encoder, table, tmp_path, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        encode(encoder, table, tmp_path / "features", **wrong)


def test_nearest_images(encoder, table, tmp_path):
    made = encode(encoder, table, tmp_path / "features", views=1, grid=0)
    found = nearest_images(made, ["toy/2.png"], table["image_id"], count=3)
    cosines = made.image_embeddings @ made.image_embeddings[2]
    order = [i for i in np.argsort(-cosines, kind="stable") if i != 2][:3]
    assert found["neighbour"].tolist() == [f"toy/{i}.png" for i in order] and found["rank"].tolist() == [1, 2, 3]
    assert len(draw_neighbours(table, found).axes) == 4


def test_how_often_the_nearest_training_image_is_of_the_same_class(encoder, table, tmp_path):
    made = encode(encoder, table, tmp_path / "features", views=1, grid=0)
    split = ["val"] * 2 + ["train"] * 8
    near = nearest_images(made, ["toy/0.png", "toy/1.png"], table["image_id"][2:], count=1)["neighbour"].tolist()
    labels = [None if i == 9 else "sea" for i in range(10)]
    labels[1] = "land"
    labels[int(near[1][4:5])] = "land"
    labels[int(near[0][4:5])] = "land"  # so the first image's nearest is another class, the second's its own
    found = measure_neighbours(made, table.assign(split=split, label=labels))
    n_train, n_land = sum(map(bool, labels[2:])), labels[2:].count("land")
    assert found["value"] == 0.5 and found["n"] == 2
    assert found["chance"] == pytest.approx(0.5 * n_land / n_train + 0.5 * (1 - n_land / n_train), abs=1e-6)
    assert measure_neighbours(made, table.assign(split=split)) is None


def test_empty_table(encoder, table, tmp_path):
    with pytest.raises(ValueError, match="holds no image"):
        encode(encoder, table.iloc[:0], tmp_path / "features")
