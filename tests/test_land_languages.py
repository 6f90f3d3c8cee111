"""Blue Marble's sentences in five languages: every word there, rightly inflected, saying what the English says."""

import ast
import inspect
import re

import numpy as np
import pytest

from rsvlm.data import blue_marble, land_captions
from rsvlm.data.blue_marble import Maps, Tile, make_blue_marble, tile_named
from rsvlm.data.land_captions import CLIMATES, GROUPS, class_nouns
from rsvlm.data.land_facts import land_truth
from rsvlm.data.land_languages import LANGUAGES, _words, write_land
from rsvlm.data.land_sentences import Count, Cover, Covers, Sentence
from rsvlm.data.sources import TileSettings
from rsvlm.files import read_json_lines

NOUNS = [*dict.fromkeys(sum(class_nouns().values(), [])), "the sea", "open sea", "inland water"]
FILLED = re.compile(r"[{}~^|]|  |\b(de o|de a|em o|por o|de el|a el|de le|à le|in dem|von dem) ", re.IGNORECASE)


def templates():
    """Every template in the calls of ``pick``."""
    tree = ast.parse(inspect.getsource(land_captions))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "pick"]
    return [text.value for call in calls for text in call.args if isinstance(text, ast.Constant)]


def sentence(template, noun="savanna", other="mixed forest", count=3, under_snow=False):
    """A template with words in all its places: where it can tell of two kinds of ground at once, of two."""
    surrounded = "surround" in template and "{b}" in template or "lies in the middle of" in template
    first = Cover(noun, part="a patch of") if surrounded else Cover(noun, under_snow)
    both = any(word in template for word in ("landscape", "climate")) and "{n}" not in template
    words = {
        "a": Covers((first, Cover(other))) if both else first,
        "b": Cover(other),
        "c": Cover(noun) if template.startswith(("{c} with", ", ")) else "arid",
        "d": "temperate",
        "s": "about two thirds",
        "t": "a small part",
        "place": "in one corner",
        "n": Count(count, "island", "islands"),
    }
    return Sentence(((template, {key: word for key, word in words.items() if "{" + key in template}),))


def test_there_are_as_many_templates_as_are_translated():
    assert len(set(templates())) == 52
    for language in LANGUAGES:
        known = _words()[language]
        assert set(known["templates"]) == set(templates()) and set(known["covers"]) == set(NOUNS)
        assert set(known["climates"]) == set(CLIMATES[1:])
        assert set(known["shares"]) == {words for _, words in land_captions.SHARES} | {"a very small part"}
        texts = [text for text, _ in known["covers"].values()]
        assert len(set(texts)) == len(texts), "two kinds of ground under one name"


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_noun_in_every_place_is_written_whole(language):
    written = {}
    for template in templates():
        for noun in NOUNS:
            for snow in (False, True):
                told = sentence(template, noun, under_snow=snow)
                text = write_land(told, language)
                assert not FILLED.search(text), text
                assert text.endswith("。" if language == "zh" else ".") and text[0] == text[0].upper()
                written.setdefault(text, set()).add(str(told))
    assert all(len(english) == 1 for english in written.values()), "one text for two English ones"


@pytest.mark.parametrize(
    ("language", "template", "words", "says"),
    [
        ("pt", "{place} of the image {b} gives way to {a}", {"a": "steppe", "b": "inland water"},
         "Num dos cantos da imagem, as águas interiores dão lugar à estepe."),
        ("pt", "{s} of the area is covered by {a}", {"a": "the sea"}, "Cerca de dois terços da superfície estão cobertos pelo mar."),
        ("pt", "no sea or lake is seen among {a}", {"a": ("shrubland", "savanna")}, "Não se vê mar nem lago no meio do matagal e da savana."),
        ("pt", "{n} among {a}", {"a": "mixed forest", "n": 2}, "Duas ilhas no meio da floresta mista."),
        ("pt", "a {c} to {d} landscape with {a}", {"a": "cropland"}, "Uma paisagem entre árida e temperada com terra cultivada."),
        ("es", "there is {a} {place} of the image, next to {b}", {"a": "wetland", "b": "the sea"},
         "Hay humedal en una de las esquinas de la imagen, junto al mar."),
        ("es", "{a} fills the centre of the picture", {"a": "inland water"}, "Las aguas continentales llenan el centro de la imagen."),
        ("es", "{s} of the area is covered by {a}", {"a": "the sea"}, "Unos dos tercios de la superficie están cubiertos por el mar."),
        ("es", "no sea or lake is seen among {a}", {"a": ("steppe", "scrub")}, "No se ve ni mar ni lago en medio de la estepa y del monte bajo."),
        ("fr", "{place} of the image {b} gives way to {a}", {"a": "bare ground", "b": "cropland"},
         "Dans l'un des coins de l'image, les terres cultivées cèdent la place au sol nu."),
        ("fr", "there is {a} in the middle of the image", {"a": "the sea"}, "On voit la mer au milieu de l'image."),
        ("fr", "{s} of the area is covered by {a}", {"a": "inland water"}, "Environ les deux tiers de la surface sont couverts d'eaux intérieures."),
        ("fr", "no sea or lake is seen among {a}", {"a": ("bare desert", "wetland")}, "On ne voit ni mer ni lac au milieu du désert nu et des zones humides."),
        ("fr", "a {c} region with {a}", {"a": "savanna", "c": "temperate"}, "Une région tempérée avec de la savane."),
        ("de", "{place} of the image {b} gives way to {a}", {"a": "dense evergreen forest", "b": "wetland"},
         "In einer Ecke des Bildes gehen Feuchtgebiete in dichten immergrünen Wald über."),
        ("de", "{a} lies in the middle of {b}", {"a": "a lake", "b": "the sea"}, "Ein See liegt mitten im Meer."),
        ("de", "{b} surrounds {a} in the centre", {"a": "a lake", "b": "open woodland"}, "Lichter Wald umgibt einen See in der Mitte."),
        ("de", "{s} of the area is covered by {a}", {"a": "the sea"}, "Etwa zwei Drittel der Fläche sind vom Meer bedeckt."),
        ("de", "{a} covers {s} of the image, {b} {t}", {"a": "savanna", "b": "bare ground"},
         "Savanne bedeckt etwa zwei Drittel des Bildes, kahler Boden einen kleinen Teil."),
        ("de", "in a {c} climate: {a}", {"a": "dry grassland"}, "In aridem Klima: trockenes Grasland."),
        ("zh", "{s} of the image is {a} and {t} is {b}", {"a": "savanna", "b": "the sea"}, "图像约三分之二是稀树草原，一小部分是海洋。"),
        ("zh", "{n} among {a}", {"a": "steppe", "n": 2}, "草原中的两座岛屿。"),
    ],
)  # fmt: skip
def test_grammar(language, template, words, says):
    told = sentence(template)
    own = dict(told.parts[0][1])
    for key, word in words.items():
        if key == "n":
            own["n"] = Count(word, "island", "islands")
        elif key in "cd" and word in CLIMATES:
            own[key] = word
        else:
            own[key] = Covers(tuple(map(Cover, word))) if isinstance(word, tuple) else Cover(word)
    if "landscape" in template or "climate" in template or "region" in template:
        own["a"] = Covers((own["a"],))
    assert write_land(Sentence(((template, own),)), language) == says


def test_snow_agrees_and_ends_the_sentence():
    grass = sentence("the centre of the image shows {a}", "grassland with scattered trees", under_snow=True)
    assert write_land(grass, "pt") == "O centro da imagem mostra pradaria coberta de neve com árvores dispersas."
    assert write_land(grass, "de") == "Die Bildmitte zeigt verschneites baumbestandenes Grasland."
    wet = sentence("{a} fills the centre of the picture", "wetland", under_snow=True)
    assert write_land(wet, "fr") == "Les zones humides enneigées remplissent le centre de l'image."
    told = Sentence((("a {c} region with {a}", {"a": Covers((Cover("scrub"),), "partly under snow"), "c": "polar"}),))
    assert write_land(told, "es") == "Una región polar con monte bajo, en parte bajo la nieve."
    assert write_land(told, "zh") == "有灌木丛的极地气候地区，部分被雪覆盖。"


def test_all_numbers_have_words():
    for language in LANGUAGES:
        texts = {
            write_land(Sentence((("{n} among {a}", {"n": Count(n, kind, "many"), "a": Cover("steppe")}),)), language)
            for n in range(1, 12)
            for kind in ("island", "small body of water")
        }
        assert len(texts) == 22 and not any(re.search(r"\d|  ", text) for text in texts)
    many = Sentence((("{n} among {a}", {"n": Count(40, "island", "islands"), "a": Cover("steppe")}),))
    assert write_land(many, "pt") == "Muitas ilhas no meio da estepe." and str(many) == "Many islands among steppe."


@pytest.fixture(scope="module")
def world():
    """Small maps of the whole Earth's size: land everywhere but a sea in the north-west and a lake in one tile."""
    groups = np.full((3600, 7200), GROUPS.index("cropland"), dtype=np.uint8)
    groups[:, 3600:] = GROUPS.index("savanna")
    sea = np.zeros(groups.shape, bool)
    sea[200:330, :400] = True
    groups[sea] = GROUPS.index("water")
    groups[1000:1010, 1000:1010] = GROUPS.index("water")
    climate = np.full(groups.shape, CLIMATES.index("temperate"), dtype=np.uint8)
    return Maps(blue_marble.Image.new("RGB", (5400, 2700), (40, 90, 30)), groups, sea, climate)


def test_tiles_are_told_alike_in_every_language(world, tmp_path, monkeypatch):
    monkeypatch.setattr(blue_marble, "load_maps", lambda: world)
    monkeypatch.setattr(blue_marble, "DRAWS", 2)
    settings = TileSettings(tiles=10, tile_pixels=120)
    make_blue_marble(settings, tmp_path / "english")
    make_blue_marble(settings, tmp_path / "all", LANGUAGES)
    files = [(tmp_path / name / "dataset.json").read_bytes() for name in ("english", "all")]
    assert files[0] == files[1] and not (tmp_path / "english/translations.jsonl").exists()
    rows = read_json_lines(tmp_path / "all/translations.jsonl")
    assert len(rows) == 10 * len(LANGUAGES) and all(len(set(row["captions"])) == 5 for row in rows)


def test_a_tiles_truth_comes_from_its_name(world):
    for tile in (Tile(-180 + 2.4, 80 - 2.4 * 7, 3.2, ""), Tile(100.0, -10.4, 3.2, "")):
        again = tile_named(tile.name, 48)
        assert (again.west, again.north, again.degrees) == pytest.approx((tile.west, tile.north, tile.degrees))
    lake = Tile(-180 + 48.8, 90 - 48.8, 3.2, "cropland")  # rows and columns 976 to 1039
    coast = Tile(-180 + 18.4, 90 - 11.0, 3.2, "cropland")
    rows = [{"image_id": f"earth/{one.name}", "width": 48, "label": one.label} for one in (lake, coast)]
    truth = land_truth(rows, world)
    first, second = (truth[row["image_id"]] for row in rows)
    assert first["lakes"] == 1 and not first["coast"] and first["largest"] == "cropland"
    assert first["shares"] == {"cropland": round(1 - 100 / 4096, 4), "inland water": round(100 / 4096, 4)}
    assert [["inland water" in cell for cell in row] for row in first["grid"]][1][1], "the lake lies in the middle"
    assert second["coast"] and second["islands"] == 0 and second["climates"] == {"temperate": 1.0}
    assert sum(second["shares"].values()) == pytest.approx(1, abs=1e-3)
    assert second["grid"][0][0] == {"sea": 1.0} and second["grid"][2][2] == {"cropland": 1.0}
    with pytest.raises(ValueError, match="the table calls it 'savanna', the maps 'cropland'"):
        land_truth([rows[0] | {"label": "savanna"}], world)
    with pytest.raises(ValueError, match="'1.jpg' is no tile of Blue Marble"):
        land_truth([{"image_id": "ucm/1.jpg", "width": 256, "label": "river"}], world)
