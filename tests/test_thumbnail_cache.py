"""Thumbnails are made once, made anew when the picture changes, and take no memory."""

import os

import numpy as np
import pytest
from PIL import Image

from rsvlm.viewing import thumbnails as thumbnail_cache
from rsvlm.viewing.thumbnails import ThumbnailCache


@pytest.fixture
def pictures(tmp_path):
    places = []
    for number in range(3):
        places.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(np.full((300, 200, 3), 40 * number, np.uint8)).save(places[-1])
    return places


def test_made_once_and_found_by_another_notebook(tmp_path, pictures, monkeypatch):
    cache = ThumbnailCache(64, path=tmp_path / "cache.sqlite")
    assert cache.find(pictures) == {}
    made = cache.make(pictures)
    assert [(made[place].width, made[place].height) for place in pictures] == [(43, 64)] * 3
    monkeypatch.setattr(thumbnail_cache, "open_image", lambda path: pytest.fail(f"{path} was read again"))
    other = ThumbnailCache(64, path=tmp_path / "cache.sqlite")
    assert other.find(pictures) == made == other.make(pictures)
    assert ThumbnailCache(32, path=tmp_path / "cache.sqlite").find(pictures) == {}


def test_a_picture_that_changed_is_made_anew(tmp_path, pictures):
    cache = ThumbnailCache(64, path=tmp_path / "cache.sqlite")
    before = cache.make(pictures)
    Image.fromarray(np.full((300, 200, 3), 255, np.uint8)).save(pictures[0])
    os.utime(pictures[0], ns=(1, 1))
    after = cache.make(pictures)
    assert after[pictures[0]] != before[pictures[0]] and after[pictures[1]] == before[pictures[1]]


def test_pictures_that_cannot_be_read_are_named(tmp_path, pictures):
    cache = ThumbnailCache(64, path=tmp_path / "cache.sqlite")
    with pytest.raises(FileNotFoundError, match="gone.png"):
        cache.make([str(tmp_path / "gone.png")])
    assert cache.find([str(tmp_path / "gone.png"), *pictures]) == {}
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="broken.png"):
        cache.make([str(tmp_path / "broken.png")])
    (tmp_path / "other.sqlite").write_bytes(b"no database, but long enough to be looked at" * 20)
    with pytest.raises(ValueError, match="other.sqlite.*delete the file"):
        ThumbnailCache(64, path=tmp_path / "other.sqlite")
    with pytest.raises(ValueError, match="at least 16"):
        ThumbnailCache(4, path=tmp_path / "cache.sqlite")
