"""Other people's captions and embeddings meet the images of a table, whole or not at all."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rsvlm.files import fingerprint_file
from rsvlm.scoring.foreign_files import read_foreign_captions, read_foreign_embeddings
from rsvlm.scoring.image_matching import match_images

TEXTS = ["a river", "a wide field", "many trees"]


def table_of(folder: Path, *image_ids: str) -> pd.DataFrame:
    """An image table whose files exist; each holds its own image id."""
    rows = []
    for image_id in image_ids:
        path = folder / "images" / image_id
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(image_id)
        rows.append({"image_id": image_id, "source": image_id.split("/")[0], "path": str(path)})
    return pd.DataFrame(rows)


@pytest.fixture
def ucm(tmp_path) -> pd.DataFrame:
    return table_of(tmp_path, "ucm/1.jpg", "ucm/2.jpg", "ucm/7.jpg")


@pytest.fixture
def two(tmp_path) -> pd.DataFrame:
    return table_of(tmp_path, "sydney/1.jpg", "sydney/2.jpg", "ucm/1.jpg", "ucm/300.jpg")


@pytest.mark.parametrize(
    ("keys", "how"),
    [
        (["ucm/1.jpg", "ucm/2.jpg", "ucm/7.jpg"], "image id"),
        (["1.jpg", "2.jpg", "7.jpg"], "file name"),
        (["1.tif", "2.PNG", "7"], "file name"),
        ([1, 2.0, np.int64(7)], "file name"),
        (["000000000001", "0002.jpeg", "7"], "file name"),
        (["/data/UCM/imgs/1.tif", "C:\\UCM_Captions\\2.tif", "elsewhere/7.tif"], "file name"),
        (["ucm/1.jpg", "ucm/2.jpg", "7.tif"], "file name"),
    ],
)
def test_keys_meet_images_in_one_way(ucm, keys, how):
    found = match_images(keys, ucm)
    assert found.matched == dict(zip(keys, ucm["image_id"])) and found.how == how
    assert not found.missing and not found.unknown
    more = match_images([*keys[:2], "99.jpg"], ucm)
    assert more.missing == ["ucm/7.jpg"] and more.unknown == ["99.jpg"]


def test_by_content_where_keys_look_like_it(ucm, monkeypatch):
    hashes = [fingerprint_file(Path(path)) for path in ucm["path"]]
    found = match_images([hashes[0].upper(), hashes[2], "0" * 64], ucm)
    assert list(found.matched.values()) == ["ucm/1.jpg", "ucm/7.jpg"] and found.how == "SHA-256"
    assert found.missing == ["ucm/2.jpg"] and found.unknown == ["0" * 64]
    Path(ucm["path"][1]).write_bytes(Path(ucm["path"][0]).read_bytes())
    with pytest.raises(ValueError, match=r"may be 'ucm/1.jpg' or 'ucm/2.jpg' \(by SHA-256\); give image ids"):
        match_images(hashes, ucm)
    Path(ucm["path"][1]).unlink()
    with pytest.raises(FileNotFoundError, match="ucm/2.jpg: no such image file"):
        match_images(hashes, ucm)
    assert match_images(["1.jpg", "8.jpg"], ucm).matched == {"1.jpg": "ucm/1.jpg"}, "no image is opened"


def test_images_named_by_hash_are_not_read(tmp_path):
    name = "ab" * 32
    table = table_of(tmp_path, f"own/{name}.png")
    Path(table["path"][0]).unlink()
    assert match_images([name], table).how == "file name"


def test_a_name_in_two_sources_needs_its_source(two):
    with pytest.raises(ValueError, match=r"'1.tif' may be 'sydney/1.jpg' or 'ucm/1.jpg' \(by file name\)"):
        match_images(["1.tif", "300.tif"], two)
    found = match_images(["/data/UCM/imgs/1.tif", "Sydney-Captions/imgs/1.tif"], two)
    assert list(found.matched.values()) == ["ucm/1.jpg", "sydney/1.jpg"]
    assert match_images(["rsicd/1.jpg", "ucm/300.tif"], two).unknown == ["rsicd/1.jpg"], "another known source's image"
    assert match_images(["ucm/2.jpg", "ucm/1.jpg"], two).unknown == ["ucm/2.jpg"], (
        "sydney's has the name, ucm's is meant"
    )
    with pytest.raises(ValueError, match="'x/1.jpg' may be"):
        match_images(["x/1.jpg"], two)


def test_an_extension_tells_nothing_between_sources(tmp_path):
    table = table_of(tmp_path, "sydney/1.tif", "ucm/1.jpg")
    with pytest.raises(ValueError, match="'1.tif' may be"):
        match_images(["1.tif"], table)
    own = table_of(tmp_path, "own/1.tif", "own/1.jpg", "own/01.jpg", "own/Port.png", "own/b/c.jpg", "own/d/c.jpg")
    names = ["1.jpg", "01.jpg", "1.tif", "port.jpg", "imgs/d/c.tif"]
    assert list(match_images(names, own).matched.values()) == [
        "own/1.jpg", "own/01.jpg", "own/1.tif", "own/Port.png", "own/d/c.jpg",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="'c.jpg' may be 'own/b/c.jpg' or 'own/d/c.jpg'"):
        match_images(["c.jpg"], own)


def test_a_source_under_a_name_of_the_users(tmp_path):
    table = table_of(tmp_path / "ucm_captions", "mine/1.jpg").assign(source="mine")
    table["path"] = str(tmp_path / "ucm_captions" / "imgs" / "1.tif")
    assert match_images(["/home/a/UCM/1.tif"], table).matched == {"/home/a/UCM/1.tif": "mine/1.jpg"}
    with pytest.raises(
        ValueError, match="none of the keys is an image of the table: 1 keys, such as 'sydney/1.tif'; 1 images"
    ):
        match_images(["sydney/1.tif"], table)


def test_two_keys_of_one_image_and_keys_of_none(ucm):
    with pytest.raises(ValueError, match=r"'1.tif' and '1.jpg' are both the image 'ucm/1.jpg' \(by file name\)"):
        match_images(["1.tif", "1.jpg"], ucm)
    with pytest.raises(ValueError, match="2 keys, such as 'a', 'b'; 3 images, such as 'ucm"):
        match_images(["a", "b"], ucm)


CAPTIONS = {"1.tif": "a river", "2.tif": "a field", "7.tif": "trees", "9.tif": "a port"}


def write_captions(folder: Path, form: str, captions: dict[str, str]) -> Path:
    rows = [{"image_id": key, "caption": text} for key, text in captions.items()]
    path = folder / f"captions.{form.split('_')[-1]}"
    if form == "coco_json":
        rows = [{"image_id": int(row["image_id"].split(".")[0]), "caption": row["caption"]} for row in rows]
        path.write_text(json.dumps(rows))
    elif form == "annotations_json":
        images = [{"id": 50 + number, "file_name": key} for number, key in enumerate(captions)]
        own = [{"image_id": 50 + number, "caption": text} for number, text in enumerate(captions.values())]
        path.write_text(json.dumps({"images": images, "annotations": own}))
    elif form == "json":
        path.write_text(json.dumps(captions))
    elif form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pd.DataFrame(rows).rename(columns={"image_id": "filename"}).to_csv(path, index=False)
    return path


@pytest.mark.parametrize("form", ["json", "coco_json", "annotations_json", "jsonl", "csv"])
def test_captions_in_any_form(tmp_path, ucm, form):
    found = read_foreign_captions(write_captions(tmp_path, form, CAPTIONS), ucm)
    assert found.captions == {"ucm/1.jpg": "a river", "ucm/2.jpg": "a field", "ucm/7.jpg": "trees"}
    assert list(found.captions) == list(ucm["image_id"]) and found.how == "file name" and not found.missing
    assert found.unknown == ["9" if form == "coco_json" else "9.tif"]


def test_captions_by_content(tmp_path, ucm):
    captions = {fingerprint_file(Path(path)): f"caption of {name}" for path, name in zip(ucm["path"], ucm["image_id"])}
    found = read_foreign_captions(write_captions(tmp_path, "json", captions), ucm)
    assert found.captions == {name: f"caption of {name}" for name in ucm["image_id"]} and found.how == "SHA-256"


def test_captions_of_some_images(tmp_path):
    table = table_of(tmp_path, *(f"ucm/{number}.jpg" for number in range(1, 211)))
    path = write_captions(tmp_path, "json", CAPTIONS | {"600.tif": "a port"})
    path.write_text(json.dumps({key: CAPTIONS.get(key, "x") for key in ("1.tif", "2.tif", "7.tif", "600.tif")}))
    with pytest.raises(ValueError) as told:
        read_foreign_captions(path, table)
    assert str(told.value) == (
        f"{path}: captions for 3 of 210 images; no caption for 207, such as 'ucm/3.jpg', 'ucm/4.jpg', 'ucm/5.jpg' "
        "(matched by file name); keys that are no image of the table: 1, such as '600.tif'"
    )
    found = read_foreign_captions(path, table, allow_missing=True)
    assert len(found.captions) == 3 and len(found.missing) == 207 and found.unknown == ["600.tif"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["1.tif", "a"], ["1.tif", "b"]], "captions.jsonl: '1.tif' has 2 captions; one an image is scored"),
        ([["1.tif", "a"], ["ucm/1", "b"]], "captions.jsonl: '1.tif' and 'ucm/1' are both the image 'ucm/1.jpg'"),
        ([["1.tif", " "]], "line 1: ' ' is no caption"),
        ([["1.tif", None]], "line 1: None is no caption"),
        ([["a.tif", "b"]], "captions.jsonl: none of the keys is an image of the table: 1 keys, such as 'a.tif'; 3"),
    ],
)
def test_captions_that_cannot_be_scored(tmp_path, ucm, rows, message):
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(json.dumps({"image": key, "caption": text}) + "\n" for key, text in rows))
    with pytest.raises(ValueError, match=message):
        read_foreign_captions(path, ucm, allow_missing=True)
    with pytest.raises(FileNotFoundError, match="none.json: no such file"):
        read_foreign_captions(tmp_path / "none.json", ucm)


def arrays(**others) -> dict:
    """A space of three images and three texts, 4 wide, with some arrays replaced; None takes one out."""
    draw = np.random.default_rng(0)
    made = {
        "image_ids": np.array(["7.tif", "1.tif", "2.tif"]),
        "image_embeddings": draw.normal(size=(3, 4)).astype(np.float32),
        "texts": np.array(["A river ", "many trees", "a wide field"]),
        "text_embeddings": draw.normal(size=(3, 4)).astype(np.float32),
    }
    return {name: value for name, value in (made | others).items() if value is not None}


def saved(folder: Path, **others) -> Path:
    path = folder / "space.npz"
    np.savez(path, **arrays(**others))
    return path


def unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def check_space(found, own: dict) -> None:
    assert found.image_ids == ["ucm/1.jpg", "ucm/2.jpg", "ucm/7.jpg"] and found.texts == TEXTS
    np.testing.assert_allclose(found.image_vectors, unit(own["image_embeddings"])[[1, 2, 0]], rtol=1e-6)
    np.testing.assert_allclose(found.text_vectors, unit(own["text_embeddings"])[[0, 2, 1]], rtol=1e-6)
    assert found.image_vectors.dtype == found.text_vectors.dtype == np.float32
    assert found.how == "file name" and found.missing == () and found.unknown == ()
    np.testing.assert_array_equal(found.images(["ucm/7.jpg"]), found.image_vectors[2:])


def test_embeddings_from_npz(tmp_path, ucm):
    check_space(read_foreign_embeddings(saved(tmp_path), ucm, [*TEXTS, "a river"]), arrays())
    check_space(read_foreign_embeddings(tmp_path / "space.npz", ucm.assign(more=1), TEXTS), arrays())
    (tmp_path / "folder").mkdir()
    own = arrays()
    names = {"images": "image_ids", "image_features": "image_embeddings", "captions": "texts", "text_embeds": "text_embeddings"}  # fmt: skip
    np.savez(tmp_path / "folder" / "clip.npz", **{name: own[key] for name, key in names.items()}, logit_scale=100.0)
    check_space(read_foreign_embeddings(tmp_path / "folder", ucm, TEXTS), own)


def test_names_as_numbers_and_bytes_and_very_large_values(tmp_path, ucm):
    own = arrays(image_ids=np.array([7, 1, 2]), texts=np.array([b"a river", b"many trees", b"a wide field"]))
    own["image_embeddings"] = own["image_embeddings"].astype(np.float64) * 1e200
    np.savez(tmp_path / "s.npz", **own)
    check_space(read_foreign_embeddings(tmp_path / "s.npz", ucm, TEXTS), arrays())


def test_every_caption_row_may_have_its_vector(tmp_path, ucm):
    own = arrays()
    rows = [0, 2, 1, 0, 0]
    texts, vectors = own["texts"][rows], own["text_embeddings"][rows]
    path = saved(tmp_path, texts=texts, text_embeddings=vectors)
    check_space(read_foreign_embeddings(path, ucm, TEXTS), own)
    vectors[3] *= -1
    with pytest.raises(ValueError, match="space.npz: the text 'a river' has several embeddings that differ by"):
        read_foreign_embeddings(saved(tmp_path, texts=texts, text_embeddings=vectors), ucm, TEXTS)
    exact = saved(tmp_path, texts=np.append(texts, "a river"), text_embeddings=np.append(vectors, vectors[:1], axis=0))
    check_space(read_foreign_embeddings(exact, ucm, TEXTS), own)


def row_of(name: str, row: int, value: float) -> dict[str, np.ndarray]:
    vectors = arrays()[name]
    vectors[row] = value
    return {name: vectors}


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"text_embeddings": np.ones((3, 5))}, "have widths 4 and 5: they lie in no common space"),
        (row_of("image_embeddings", 1, np.nan), "the embedding of the image 'ucm/1.jpg' holds NaN or infinity"),
        (row_of("text_embeddings", 2, np.inf), "the embedding of the text 'a wide field' holds NaN or infinity"),
        (row_of("image_embeddings", 0, 0), "the embedding of the image 'ucm/7.jpg' is zero"),
        ({"image_ids": np.array(["1.tif", "2.tif"])}, "2 image_ids for 3 rows of image_embeddings"),
        ({"texts": np.array(["a river"])}, "1 texts for 3 rows of text_embeddings"),
        ({"texts": np.array(TEXTS, dtype=object)}, "texts holds pickled objects, which can run code and are not read"),
        ({"image_embeddings": np.ones((3, 4)).astype(object)}, "image_embeddings holds pickled objects"),
        ({"texts": None, "text_embeddings": None}, "embeddings of images only; retrieval cannot be scored without"),
        ({"image_ids": None, "image_embeddings": None}, "embeddings of texts only"),
        ({"image_ids": None}, "none of image_ids, images, .*; the file has image_embeddings, text_embeddings, texts"),
        ({"image_features": np.ones((3, 4))}, "image_embeddings and image_features mean the same; keep one"),
        ({"image_ids": np.array(["1.tif", "1.tif", "2.tif"])}, "the image '1.tif' has more than one embedding"),
        ({"image_ids": np.array(["1.tif", "1.jpg", "2.tif"])}, "'1.tif' and '1.jpg' are both the image 'ucm/1.jpg'"),
        (
            {"image_ids": np.array(["1.tif", "8", "9"])},
            "embeddings for 1 of 3 images; no embedding for 2, such as 'ucm/2",
        ),
        ({"image_ids": np.array([1.5, 2, 3])}, "image_ids must be texts or whole numbers"),
        ({"image_embeddings": np.ones(3)}, r"image_embeddings must be numbers \(N, D\), is float64 \(3,\)"),
        (
            {"texts": np.array(["a river", "x", "y"])},
            "embeddings for 1 of 3 texts; none for 2, such as 'a wide field', ",
        ),
    ],
)
def test_embeddings_that_cannot_be_scored(tmp_path, ucm, others, message):
    with pytest.raises(ValueError, match=f"space.npz: .*{message}"):
        read_foreign_embeddings(saved(tmp_path, **others), ucm, TEXTS)


def test_missing_images_where_they_may_be(tmp_path, ucm):
    path = saved(tmp_path, image_ids=np.array(["7.tif", "88.tif", "2.tif"]))
    found = read_foreign_embeddings(path, ucm, TEXTS, allow_missing=True)
    assert found.image_ids == ["ucm/2.jpg", "ucm/7.jpg"] and found.missing == ("ucm/1.jpg",)
    assert found.unknown == ("88.tif",) and len(found.image_vectors) == 2


def test_files_that_are_not_whole_or_not_there(tmp_path, ucm):
    whole = saved(tmp_path).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    broken = bytearray(whole)
    broken[200] ^= 255
    (tmp_path / "broken.npz").write_bytes(broken)
    for name in ("cut.npz", "broken.npz"):
        with pytest.raises(ValueError, match=f"{name}: .*not a whole"):
            read_foreign_embeddings(tmp_path / name, ucm, TEXTS)
    np.save(tmp_path / "x.npy", np.ones(3))
    with pytest.raises(ValueError, match="x.npy: embeddings are read from .npz, .parquet"):
        read_foreign_embeddings(tmp_path / "x.npy", ucm, TEXTS)
    with pytest.raises(FileNotFoundError, match="none.npz: no such file or folder"):
        read_foreign_embeddings(tmp_path / "none.npz", ucm, TEXTS)
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(ValueError, match="needs images.parquet and texts.parquet, or one .* holds none of these"):
        read_foreign_embeddings(folder, ucm, TEXTS)
    (folder / "a.npz").symlink_to(tmp_path / "space.npz")
    with pytest.raises(ValueError, match="a.npz: is a link, which may lead out of the folder"):
        read_foreign_embeddings(folder, ucm, TEXTS)
    (folder / "b.npz").write_bytes(whole)
    with pytest.raises(ValueError, match="holds a.npz, b.npz"):
        read_foreign_embeddings(folder, ucm, TEXTS)


@pytest.fixture
def parquet(tmp_path):
    """Writes columns to a Parquet file in tmp_path/space."""
    (tmp_path / "space").mkdir()

    def write(name: str, **columns) -> Path:
        pd.DataFrame(columns).to_parquet(tmp_path / "space" / name)
        return tmp_path / "space" / name

    return write


def test_embeddings_from_parquet(tmp_path, ucm, parquet):
    own = arrays()
    parquet("images.parquet", filename=own["image_ids"], embedding=list(own["image_embeddings"]))
    with pytest.raises(ValueError, match="space: embeddings of images only; .* a folder with images.parquet and texts"):
        read_foreign_embeddings(tmp_path / "space", ucm, TEXTS)
    # A text's row may say which image it belongs to: the file's name says whose embedding it is.
    parquet("texts.parquet", image_id=own["image_ids"], caption=own["texts"], embedding=list(own["text_embeddings"]))
    check_space(read_foreign_embeddings(tmp_path / "space", ucm, TEXTS), own)


def test_one_parquet_file_of_both(tmp_path, ucm, parquet):
    own = arrays()
    images, texts = list(own["image_embeddings"].astype(float)), list(own["text_embeddings"].astype(float))
    both = {"image_id": [*own["image_ids"], None, None, None], "text": [None, None, None, *own["texts"]]}
    check_space(read_foreign_embeddings(parquet("a.parquet", **both, Embedding=images + texts), ucm, TEXTS), own)
    check_space(read_foreign_embeddings(tmp_path / "space", ucm, TEXTS), own)
    images[1] = images[1][:3]
    with pytest.raises(ValueError, match="a.parquet: the embedding of the image '1.tif' has 3 values, others 4"):
        read_foreign_embeddings(parquet("a.parquet", **both, embedding=images + texts), ucm, TEXTS)
    images[1] = None
    with pytest.raises(ValueError, match="the embedding of the image '1.tif' must be a list of numbers"):
        read_foreign_embeddings(parquet("a.parquet", **both, embedding=images + texts), ucm, TEXTS)
    for fault in ("x", None):
        wrong = both | {"text": [fault, None, None, *own["texts"]], "image_id": [fault, *both["image_id"][1:]]}
        with pytest.raises(ValueError, match="row 1: needs the name of an image or a text, one of both"):
            read_foreign_embeddings(parquet("a.parquet", **wrong, embedding=texts + texts), ucm, TEXTS)
    with pytest.raises(ValueError, match="a.parquet: no column embedding; it has image_id"):
        read_foreign_embeddings(parquet("a.parquet", image_id=["1"]), ucm, TEXTS)
    with pytest.raises(ValueError, match="a.parquet: no column image_id, .*caption.*; it has bild, embedding"):
        read_foreign_embeddings(parquet("a.parquet", bild=["1"], embedding=[[1.0]]), ucm, TEXTS)
    (tmp_path / "space" / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match="a.parquet: "):
        read_foreign_embeddings(tmp_path / "space", ucm, TEXTS)


def test_null_inside_a_parquet_vector_is_no_number(tmp_path, ucm, parquet):
    own = arrays()
    vectors = own["image_embeddings"].astype(float).tolist()
    vectors[0][2] = None
    parquet("images.parquet", image_id=own["image_ids"], embedding=vectors)
    parquet("texts.parquet", text=own["texts"], embedding=list(own["text_embeddings"]))
    with pytest.raises(ValueError, match="space: the embedding of the image 'ucm/7.jpg' holds NaN"):
        read_foreign_embeddings(tmp_path / "space", ucm, TEXTS)
