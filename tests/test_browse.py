"""Browsing a finished study, on tiny random models: the gallery, the search box, the dialogue, as a page asks them."""

from dataclasses import replace

import pytest
import torch
from browse_case import add_captioner, build_study, open_archive, run_cells
from PIL import Image
from test_galleries import SCRIPT, root  # noqa: F401

from rsvlm.data.translations import save_translations
from rsvlm.models.features import load_features
from rsvlm.study import paths
from rsvlm.study.paths import finished_study
from rsvlm.viewing import browse
from rsvlm.viewing.caption_gallery import read_marks
from rsvlm.viewing.dialogues import dialogue_markdown, export_dialogue, show_answer, start_dialogue
from rsvlm.viewing.search_index import saved_methods
from rsvlm.viewing.widgets import CaptionGallery, DialoguePane, SearchBox


@pytest.fixture
def study(root):  # noqa: F811
    torch.set_num_threads(1)
    build_study(root)
    return root


def talk_to(widget):
    """A function that asks a widget as its page does, and the answer or the error."""
    sent: list[dict] = []
    widget.send = lambda message, buffers=None: sent.append(message)

    def ask(what, buffers=(), **given):
        sent.clear()
        widget.receive(widget, {"ask": "1", "what": what, "given": given}, [memoryview(part) for part in buffers])
        assert all(message["ask"] == "1" for message in sent)
        return sent[-1].get("answer", sent[-1].get("error"))

    ask.sent = sent
    return ask


def test_the_combined_index_is_the_weighted_sum(study):
    add_captioner()
    assert saved_methods(paths.SEARCH_INDEX) == ["dual_encoder", "ret", "combined"]
    archive = open_archive()
    parts = {}
    for method in ("dual_encoder", "ret"):
        parts[method] = dict(browse.search_text(archive, "a river", 4, method=method, split="test").hits)
    combined = dict(browse.search_text(archive, "a river", 4, method="combined").hits)
    assert set(combined) == set(parts["ret"]) == {f"s/{number}.png" for number in range(4)}
    text = archive.index("combined").query(browse.query_parts(archive, "a river", archive.index("combined").weights))
    width = load_features(paths.FEATURES).image_embeddings.shape[1]
    for name, score in combined.items():
        index = archive.index("combined")
        both = index.held.reconstruct(index.row_of[name]) * text[0]  # dual encoder, hubs, neighbours, [RET]
        others = both[width : 2 * width + 2].sum()
        assert both[width : width + 2].sum() != 0  # what the image loses as a hub
        assert score == pytest.approx(0.75 * parts["dual_encoder"][name] + 0.25 * parts["ret"][name] + others, abs=1e-5)


def test_search_and_similar_images(study):
    archive = open_archive()
    assert str(archive) == "4 images (4 of s); generated captions: captioner, nearest; search by dual_encoder"
    found = browse.search_text(archive, "a river", results=4)
    assert len(found.hits) == 4 and found.searched == 8
    assert [score for _, score in found.hits] == sorted((score for _, score in found.hits), reverse=True)
    assert browse.search_text(archive, "  ").hits == []
    less = browse.search_text(archive, "a river without boats", results=4)
    assert less.notes == ("“boats” was subtracted: an encoder reads “without” much as “with”",) and not found.notes
    assert less.hits != found.hits and len(less.hits) == 4
    right = browse.search_text(archive, " caption 2 ", split="test")
    assert right.right == {"s/2.png"} and right.searched == 4
    assert browse.search_text(archive, "Caption 6").right == frozenset()  # a training caption has no right answer
    similar = browse.similar_images(archive, "s/2.png", results=99)
    assert similar.search_seconds > 0
    assert len(similar.hits) == 7 and "s/2.png" not in dict(similar.hits)
    with pytest.raises(ValueError, match="no split 'other'"):
        browse.search_text(archive, "a", split="other")


def test_the_gallery_answers_its_page(study):
    gallery = CaptionGallery(finished_study(), who="Ada", page_size=3)
    ask = talk_to(gallery)
    assert gallery.setting["runs"] == ["captioner", "nearest"] and gallery.setting["images"] == 4
    query = {"run": "captioner", "order": "random"}
    page = ask("page", query=query, first=0, count=3)
    assert page["total"] == 4 and len(page["items"]) == 3 and all(item["picture"] is None for item in page["items"])
    ids = [item["id"] for item in page["items"]]
    made = ask("pictures", image_ids=ids)
    assert set(made["pictures"]) == set(ids) and made["broken"] == {}
    again = ask("page", query=query, first=0, count=3)["items"]
    assert [item["picture"] for item in again] == [made["pictures"][name] for name in ids]
    assert ask("prepare", query=query, first=3, count=3) == {"made": 1}
    detail = ask("detail", image_id=ids[0])
    assert detail["picture"].startswith("data:image/jpeg") and len(detail["near"]) == 4
    assert {name for other in detail["near"] for name in other["copied"]} == {"captioner", "nearest"}
    (study / f"{ids[0][2:]}").unlink()
    assert "no such image file" in ask("pictures", image_ids=ids)["broken"][ids[0]]
    assert "no such image file" in ask("detail", image_id=ids[0])["trouble"]
    assert ask("page", query=query | {"order": "sideways"}, first=0, count=3).startswith("order: 'sideways'")
    assert "no image 's/6.png'" in ask("detail", image_id="s/6.png")  # a training image is not in the gallery
    assert "no answer to 'secrets'" in ask("secrets")


def test_marks_of_the_gallery_are_on_the_disk_before_it_says_so(study):
    ask = talk_to(CaptionGallery(finished_study(), who="Ada"))
    mark = {
        "image_id": "s/1.png",
        "run": "captioner",
        "kind": "hallucinated",
        "on": 1,
        "note": "",
        "caption": SCRIPT,
        "source": "s",
        "label": "river",
        "key": "k1",
    }
    assert ask("mark", mark=mark) == {"saved": "captions.csv"}
    saved = read_marks(paths.MARKS)
    assert [(one.who, one.kind, one.caption, one.label) for one in saved] == [("Ada", "hallucinated", SCRIPT, "river")]
    query = {"run": "captioner", "mark": "hallucinated"}
    found = ask("page", query=query, first=0, count=9)
    assert [item["marks"] for item in found["items"]] == [{"captioner": {"kinds": ["hallucinated"], "note": ""}}]
    fresh = talk_to(CaptionGallery(finished_study(), who="Ada"))  # a new kernel
    assert fresh("page", query=query, first=0, count=9)["total"] == 1
    assert talk_to(CaptionGallery(finished_study(), who="Eve"))("page", query=query, first=0, count=9)["total"] == 0
    errors = fresh("errors", run="captioner")
    assert errors["rows"][-1][0] == "all" and errors["rows"][0][:5] == ["river", 0, 0, 0, 1]
    assert "'odd' is none of good" in ask("mark", mark=mark | {"kind": "odd"})
    assert len(read_marks(paths.MARKS)) == 1


def test_a_saved_notebook_says_in_a_tools_place_what_to_do(study):
    shown = CaptionGallery(finished_study())._repr_mimebundle_()
    text = (shown[0] if isinstance(shown, tuple) else shown)["text/plain"]
    assert text == "CaptionGallery: run this cell and those above to see it; a saved notebook keeps no widget."


def test_the_gallery_keeps_to_a_split(study):
    assert CaptionGallery(finished_study(), split="test").setting["images"] == 4
    gallery = CaptionGallery(finished_study(), split="train")  # searched, but never captioned
    assert gallery.setting["images"] == 0
    page = talk_to(gallery)("page", query={"run": "captioner", "order": "random"}, first=0, count=3)
    assert page == {"total": 0, "items": []}


def test_a_fault_of_the_program_is_told_and_raised(study):
    gallery = CaptionGallery(finished_study())
    ask = talk_to(gallery)
    with pytest.raises(TypeError):
        ask("page", wrong=1)
    assert ask.sent[-1]["error"].startswith("TypeError")


def test_the_search_box_answers_its_page(study):
    add_captioner()
    box = SearchBox(open_archive(), results=3)
    ask = talk_to(box)
    assert [method["id"] for method in box.setting["methods"]] == ["dual_encoder", "ret", "combined"]
    assert box.setting["split"] == "test" and "Caption 0" in box.setting["examples"]
    found = ask("search", text="Caption 1", method="ret", split="test")
    assert ask.sent[0]["part"] == {"status": "loading the captioner …"} and found["right"] == 1
    assert [hit["right"] for hit in found["hits"]].count(True) + found["outside"] == 1 and found["searched"] == 4
    assert all(hit["picture"].startswith("data:image/jpeg") and SCRIPT in hit["references"] for hit in found["hits"])
    like = ask("similar", image_id="s/2.png", split="")
    assert like["image"]["id"] == "s/2.png" and len(like["hits"]) == 3 and like["searched"] == 8
    content = (study / "2.png").read_bytes()
    dropped = ask("drop", [content], name=SCRIPT, split="")
    assert dropped["hits"][0]["id"] == "s/2.png" and dropped["hits"][0]["score"] == pytest.approx(1, abs=1e-3)
    assert [caption["run"] for caption in dropped["captions"]] == ["captioner", "beam", "consensus"]
    assert dropped["captions"][2]["text"] in {SCRIPT, "Caption 4", "Caption 5", "Caption 6", "Caption 7"}
    refused = ask("drop", [b"no picture"], name="x.png", split="")
    assert refused.startswith("x.png: no JPEG, PNG") and refused.endswith("save it as one of these")
    assert dropped["warning"] == "" and box.archive.captioner.unlike_above is None  # it was saved without validation
    vars(box.archive)["captioner"] = replace(box.archive.captioner, unlike_above=-0.1)
    assert "Unlike anything in training" in ask("drop", [content], name="2.png", split="")["warning"]
    assert not list(paths.CACHE.glob("features_*"))  # nothing of the file from outside stays


def test_a_search_box_without_captioner_and_without_index(study):
    box = SearchBox(open_archive())
    assert [method["id"] for method in box.setting["methods"]] == ["dual_encoder"]
    dropped = talk_to(box)("drop", [(study / "2.png").read_bytes()], name="2.png", split="test")
    assert dropped["captions"] == [] and len(dropped["hits"]) == 4
    (paths.SEARCH_INDEX / "index.json").unlink()
    with pytest.raises(FileNotFoundError, match="retrieval_gallery"):
        SearchBox(open_archive())


def test_the_dialogue_pane_answers_its_page(study):
    with pytest.raises(FileNotFoundError, match="generate_captions"):
        start_dialogue(open_archive())
    add_captioner()
    archive = open_archive()
    talk = start_dialogue(archive, max_new_tokens=4)
    ask = talk_to(DialoguePane(talk, archive))
    assert [image["id"] for image in ask("find", words="RIVER caption")] == ["s/1.png", "s/3.png"]
    given = ask("give", image_id="s/3.png")
    assert given["who"] == "you" and given["images"][0]["id"] == "s/3.png"
    assert talk._history[1].startswith("Similar images: ")  # as in training
    said = ask("say", text="What is <b>this</b>?", wants="words")
    words = [message["part"]["words"] for message in ask.sent[:-1]]
    assert said["who"] == "model" and words and words == sorted(words, key=len)
    assert [turn["words"] for turn in ask("turns")][1] == "What is <b>this</b>?"
    assert ask("export") == {"path": "user/dialogues/dialogue_001/dialogue.md"}
    assert ask("export") == {"path": "user/dialogues/dialogue_002/dialogue.md"}
    folder = paths.DIALOGUES / "dialogue_001"
    assert Image.open(folder / "image_01.jpg").size == (32, 32)
    text = (folder / "dialogue.md").read_text()
    assert "<b>" not in text and "**You:** What is &lt;b&gt;this&lt;\\/b&gt;\\?" in text
    assert ask("afresh") == [] and talk.turns == []
    assert "nothing to export" in ask("export")


def test_the_pane_offers_what_the_model_can_do(study):
    add_captioner()
    archive = open_archive()
    talk = start_dialogue(archive, max_new_tokens=4)
    pane = DialoguePane(talk, archive)
    ask = talk_to(pane)
    found = ask("say", text="Find an image of this: Caption 2", wants="auto")
    box = talk_to(SearchBox(archive, results=3))("search", text="Caption 2", method="ret", split="test")
    assert [image["id"] for image in found["images"]] == [
        hit["id"] for hit in box["hits"]
    ]  # found as the search box does
    assert found["words"] == "[brings images]" and found["note"] == ""
    refused = ask("say", text="How many boats?", wants="auto")
    assert refused["unclear"].startswith("The model was trained for two things: to describe an image")
    wishes = (
        {"wants": "words", "text": ""},
        *({"wants": wish, "text": "How many boats?"} for wish in ("images", "free")),
    )
    assert refused["offers"] == list(wishes)
    assert len(talk.turns) == 2 and pane.setting["prompt"] == "Caption:"
    assert pane.setting["examples"][-1] == "Find an image of this: Caption 0"
    said = ask("say", text="How many boats?", wants="words")
    assert "not trained to answer this" in said["note"] and said["images"] == []


def test_the_pane_describes_in_the_languages_that_the_study_has_captions_in(study):
    add_captioner()
    assert start_dialogue(open_archive()).spoken == {}
    table = open_archive().table
    rows = [
        {"image_id": name, "language": "pt", "captions": [f"Legenda {name[2]}", None], "how": "machine"}
        for name in table["image_id"]
    ]
    save_translations(rows, table.to_dict("records"), paths.TRANSLATIONS)
    archive = open_archive()
    talk = start_dialogue(archive, max_new_tokens=4)
    pane = DialoguePane(talk, archive)
    assert "Descreva a imagem." in pane.setting["examples"]
    assert any("A description in Portuguese is a caption of a similar" in line for line in pane.setting["limits"])
    ask = talk_to(pane)
    assert ask("find", words="2.png")[0]["languages"] == {"pt": ["Legenda 2"]}
    assert SearchBox(archive).setting["named"]["pt"] == ["Portuguese", "machine-translated"]
    ask("file", [(study / "2.png").read_bytes()], name="outside.png")
    said = ask("say", text="Descreve a imagem.", wants="auto")
    assert said["words"] in {f"Legenda {number}" for number in range(4, 8)}  # of a training image
    assert "in Portuguese (machine-translated)" in said["note"]
    refused = ask("say", text="Décris l'image.", wants="auto")
    assert "I can't write French" in refused["unclear"] and refused["offers"] == [{"wants": "words", "text": ""}]


def test_an_image_from_outside_is_talked_about(study):
    add_captioner()
    archive = open_archive()
    vars(archive)["captioner"] = replace(archive.captioner, unlike_above=-0.1)
    talk = start_dialogue(archive, max_new_tokens=4)
    ask = talk_to(DialoguePane(talk, archive))
    content = (study / "2.png").read_bytes()
    given = ask("file", [content], name="s/2.png")  # a name that the archive has, too
    assert given["images"][0]["id"] == "s/2.png (2)" and given["images"][0]["picture"].startswith("data:image/jpeg")
    assert given["note"].startswith("Unlike anything in training")
    assert ask("say", text="", wants="auto")["note"] == given["note"]
    assert [turn["words"] for turn in ask("turns")][1] == "Caption:"
    assert "x.png: no JPEG, PNG" in ask("file", [b"no picture"], name="x.png") and len(talk.turns) == 3
    folder = study / ask("export")["path"]
    assert Image.open(folder.with_name("image_01.jpg")).size == (32, 32)
    assert "Unlike anything in training" in folder.read_text()


def test_an_answer_in_a_cell_or_why_there_is_none(study, monkeypatch):
    add_captioner()
    archive, shown = open_archive(), []
    monkeypatch.setattr("rsvlm.viewing.dialogues.display", lambda html, **_: shown.append(html.data))
    talk = start_dialogue(archive, max_new_tokens=4)
    show_answer(talk, archive, "Describe this image.")
    assert "no image to describe yet" in shown[0] and talk.turns == []
    show_answer(talk, archive, "Caption 1", wants="images")
    assert "[brings images]" in shown[1] and len(talk.turns) == 2


def test_an_exported_text_stays_a_text():
    from rsvlm.models.dialogue import Turn

    nasty = "![x](http://e.org/x.png) <script>1</script> [a](b) &lt; `c` # d"
    text = dialogue_markdown(
        [Turn("you", nasty), Turn("model", "", ("s/a](x).png",), (0.5,), True)], {"s/a](x).png": "image_01.jpg"}
    )
    for mark in ("](http", "<", "[a](b)", "`c`"):
        assert mark not in text.replace("\\", "\\ ")
    assert "&amp;lt\\;" in text
    assert "](image_01.jpg)" in text and "(0.50)" in text and "\\[brings images\\]" in text


def test_a_dialogue_is_exported_only_whole(study, tmp_path):
    from rsvlm.models.dialogue import Turn

    archive = open_archive()
    (study / "1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1\.png"):
        export_dialogue([Turn("you", image_ids=("s/1.png",))], archive, tmp_path / "talks")
    assert not list((tmp_path / "talks").iterdir())


def test_notebook_runs(study):
    add_captioner()
    assert len(run_cells("90_browse")["talk"].turns) == 3


def test_the_search_box_reads_other_languages(study, monkeypatch):
    """Portuguese goes through the head, by whatever method was asked; English goes as it does without one."""
    from language_case import CodeTower

    from rsvlm.models import language_head
    from rsvlm.models.language_head import LanguageHead, save_languages
    from rsvlm.viewing.browse import search_text

    add_captioner()
    archive = open_archive()
    box = SearchBox(archive, results=3)
    assert box.setting["languages"] == []  # nothing reads them yet
    english = talk_to(box)("search", text="Caption 1", method="dual_encoder", split="test")
    with pytest.raises(FileNotFoundError, match="dvc repro add_languages"):
        search_text(archive, "um rio", language="pt")

    tower = CodeTower()
    monkeypatch.setattr(language_head, "load_text_tower", lambda name, prefix: tower)
    torch.manual_seed(0)
    head = LanguageHead(tower.dim, archive.encoder.embedding_dim, 8)
    save_languages(
        paths.LANGUAGES, {"distilled": head}, "distilled", tower=tower, prefix="",
        encoder_fingerprint=archive.features.meta["encoder_fingerprint"], trained=["en", "pt"], words=["caption"],
        capitalise=True,
    )  # fmt: skip
    box = SearchBox(open_archive(), results=3)
    ask = talk_to(box)
    assert box.setting["languages"] == ["any", "pt", "en"]
    found = ask("search", text="Há um rio aqui.", method="ret", split="test", language="pt")
    assert {"status": "loading the text tower of other languages …"} in [message.get("part") for message in ask.sent]
    assert found["language"] == "pt" and found["notes"] == [browse.BY_ENCODER] and found["searched"] == 4
    vector = box.archive.languages.embed(["Há um rio aqui."], "pt")
    rows = [row for row, name in enumerate(box.archive.features.image_ids) if int(name[2]) < 4]
    scores = box.archive.features.image_embeddings[rows] @ vector[0]
    assert found["hits"][0]["score"] == pytest.approx(scores.max(), abs=1e-3)
    again = ask("search", text="Caption 1", method="dual_encoder", split="test", language="any")
    assert [hit["id"] for hit in again["hits"]] == [hit["id"] for hit in english["hits"]] and again["language"] == "en"
    assert "not known to" in ask("search", text="נהר", method="dual_encoder", split="test", language="he")
