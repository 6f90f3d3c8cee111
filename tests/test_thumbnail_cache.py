"""Thumbnails are made once, made anew when the picture changes, and take no memory."""

import base64
import io
import os

import numpy as np
import pytest
from PIL import Image

from rsvlm.viewing import page as thumbnail_cache
from rsvlm.viewing.page import ThumbnailCache, make_thumbnail


@pytest.fixture
def pictures(tmp_path):
    places = []
    for number in range(3):
        places.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(np.full((300, 200, 3), 40 * number, np.uint8)).save(places[-1])
    return places


def size_of(uri: str) -> tuple[int, int]:
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,")))).size


def test_made_once_and_found_by_another_notebook(tmp_path, pictures, monkeypatch):
    cache = ThumbnailCache(64, folder=tmp_path / "cache")
    assert cache.find(pictures) == {}
    made = cache.make(pictures)
    assert [size_of(made[place]) for place in pictures] == [(43, 64)] * 3
    monkeypatch.setattr(thumbnail_cache, "open_image", lambda path: pytest.fail(f"{path} was read again"))
    other = ThumbnailCache(64, folder=tmp_path / "cache")
    assert other.find(pictures) == made == other.make(pictures)
    assert ThumbnailCache(32, folder=tmp_path / "cache").find(pictures) == {}


def test_a_picture_that_changed_is_made_anew(tmp_path, pictures):
    cache = ThumbnailCache(64, folder=tmp_path / "cache")
    before = cache.make(pictures)
    Image.fromarray(np.full((300, 200, 3), 255, np.uint8)).save(pictures[0])
    os.utime(pictures[0], ns=(1, 1))
    after = cache.make(pictures)
    assert after[pictures[0]] != before[pictures[0]] and after[pictures[1]] == before[pictures[1]]


def test_pictures_that_cannot_be_read_are_named(tmp_path, pictures):
    cache = ThumbnailCache(64, folder=tmp_path / "cache")
    with pytest.raises(FileNotFoundError, match="gone.png"):
        cache.make([str(tmp_path / "gone.png")])
    assert cache.find([str(tmp_path / "gone.png"), *pictures]) == {}
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="broken.png"):
        cache.make([str(tmp_path / "broken.png")])
    with pytest.raises(ValueError, match="at least 16"):
        ThumbnailCache(4, folder=tmp_path / "cache")


def test_a_small_picture_is_enlarged_as_far_as_it_fits(tmp_path):
    path = tmp_path / "tile.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 24, 3), dtype=np.uint8)).save(path)
    assert size_of(make_thumbnail(str(path), 192, 100_000)) == (96, 192)
    assert size_of(make_thumbnail(str(path), 1024, 1_000_000)) == (192, 384)
    assert size_of(make_thumbnail(str(path), 192, 1_000)) == (24, 48)  # a page's limit comes first
    assert size_of(make_thumbnail(str(path), 32, 100_000)) == (16, 32)
