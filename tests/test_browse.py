"""The browser of a finished study, on tiny random models: search, one image, dialogue."""

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image
from test_galleries import NOTEBOOKS, SCRIPT, root  # noqa: F401

from rsvlm import paths
from rsvlm.data.table import load_table, save_table
from rsvlm.files import write_json, write_json_lines
from rsvlm.models.captioner import build_captioner, save_captioner
from rsvlm.models.encoders import load_encoder
from rsvlm.models.features import encode_images, load_features
from rsvlm.viewing import browse


@pytest.fixture
def study(root):  # noqa: F811
    """Six pictures with features of a random encoder; one caption wants to be code."""
    torch.set_num_threads(1)
    rows = []
    for number in range(6):
        path = root / f"{number}.png"
        Image.fromarray(np.full((32, 32, 3), (40 * number, 90, 200 - 30 * number), dtype=np.uint8)).save(path)
        captions = [f"Caption {number}", SCRIPT]
        rows.append(
            {
                "image_id": f"s/{number}.png",
                "source": "s",
                "split": "test",
                "path": str(path),
                "captions": captions,
                "label": None,
            }
        )
    save_table(rows, paths.IMAGE_TABLE)
    encoder = load_encoder("random:clip")
    encoder.save(paths.ENCODER)
    encode_images(
        encoder, load_table(paths.IMAGE_TABLE), paths.FEATURES, views=1, grid=0, precision="fp32", log=lambda _: None
    )
    write_json_lines(
        paths.GENERATED / "captioner.jsonl", [{"image_id": row["image_id"], "caption": SCRIPT} for row in rows]
    )
    return root


def add_captioner() -> None:
    """A random captioner and the images in its retrieval space."""
    features = load_features(paths.FEATURES)
    captioner = build_captioner(
        "random:llama", features, [0, 1, 2], device="cpu", dtype="float32", retrieval_dim=4, lora_rank=0
    )
    save_captioner(captioner, paths.CAPTIONER)
    paths.RET_EMBEDDINGS.mkdir()
    for name, rows in (("image", 6), ("text", 1)):
        np.save(paths.RET_EMBEDDINGS / f"{name}.npy", np.full((rows, 4), 0.5, dtype=np.float32))
    write_json(paths.RET_EMBEDDINGS / "image_ids.json", features.image_ids)
    write_json(paths.RET_EMBEDDINGS / "texts.json", ["a"])


def test_search_and_similar_images(study):
    archive = browse.open_archive()
    assert str(archive) == "6 images (6 of s); generated captions: captioner"
    found = browse.search_text(archive, "a river", results=4)
    assert len(found) == 4 and [score for _, score in found] == sorted((score for _, score in found), reverse=True)
    assert browse.search_text(archive, "  ") == []
    similar = browse.similar_images(archive, "s/2.png", results=99)
    assert len(similar) == 5 and "s/2.png" not in dict(similar)
    html = browse.describe_image(archive, "s/2.png")
    assert "<script>" not in html and html.count("&lt;script&gt;") == 2 and html.count("data:image/jpeg") == 6


def test_widgets_answer(study):
    archive = browse.open_archive()
    query, shown = browse.search_box(archive, results=3).children
    query.value = "boats"
    assert shown.value.count("<figure") == 3
    picker, shown = browse.image_box(archive).children
    picker.value = "s/4.png"
    assert "s/4.png" in shown.value
    (study / "1.png").unlink()
    picker.value = "s/1.png"
    assert shown.value.startswith("<b>FileNotFoundError</b>") and "1.png" in shown.value  # said in the widget


def test_dialogue(study):
    archive = browse.open_archive()
    assert "finetune_lora" in browse.dialogue_box(archive).value
    add_captioner()
    (picker, give, afresh), text, shown = (lambda box: (box.children[0].children, *box.children[1:]))(
        browse.dialogue_box(archive, max_new_tokens=4)
    )
    picker.value = "s/3.png"
    give.click()
    text.value = "What is <b>this</b>?"
    assert (
        shown.value.count("<figure") >= 1 and "&lt;b&gt;this&lt;/b&gt;" in shown.value and "<b>Model</b>" in shown.value
    )
    assert text.value == ""
    afresh.click()
    assert shown.value == ""


def test_notebook_runs(study):
    add_captioner()
    scope: dict = {}
    for cell in nbformat.read(NOTEBOOKS / "90_browse.ipynb", as_version=4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, "90_browse", "exec"), scope)
