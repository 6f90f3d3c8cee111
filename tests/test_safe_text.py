"""Texts of data that want to be more than texts: formulas in tables, markup in cards, turns on pages, code in scripts."""

import csv
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest
from jinja2 import nodes
from ruamel.yaml import YAML
from test_marks import MARK

from rsvlm.cli.options import write
from rsvlm.data import cards
from rsvlm.data.caption_tables import read_caption_table
from rsvlm.files import read_json
from rsvlm.safe_text import as_cell, as_code, as_markdown, as_yaml, from_cell, isolate, read_csv, write_csv
from rsvlm.scoring.caption_files import read_caption_lists
from rsvlm.scoring.captions import METRICS
from rsvlm.study.overview import model_card
from rsvlm.study.settings import CaptionGallery, CaptionMetric, RetrievalGallery
from rsvlm.viewing.caption_gallery import MARK_COLUMNS, read_marks, save_mark
from rsvlm.viewing.page import page_environment, render_page, show_cards
from rsvlm.viewing.retrieval_gallery import SEARCHED_BY

ROOT = Path(__file__).resolve().parents[1]
FORMULAS = (
    "=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "＝1+1", "＋1", "－1", "＠A1", "a river;=1+1", "x\t+1",
    "'=1+1", "''-1",
)  # fmt: skip
PLAIN = ("a river", "'quoted'", "it's - a dash", "a = b", "x; y", "1-2", "")
START, END = "\u2068", "\u2069"  # of an isolate
TURNED = "river \u202egnp.exe"
NODE = shutil.which("node") or shutil.which("nodejs")


def is_formula(cell: str) -> bool:
    """Whether a spreadsheet would take a cell, or what it makes of it where it splits at ; or tabs, for a formula."""
    parts = cell.replace("\t", ";").split(";")
    return cell[:1] in ("\t", "\r") or any(part[:1] in tuple("=+-@＝＋－＠") for part in parts if part)


@pytest.mark.parametrize("text", FORMULAS)
def test_what_a_spreadsheet_would_run_is_a_text_in_a_cell(text):
    assert is_formula(text) != text.startswith("'")
    assert as_cell(text) != text and not is_formula(as_cell(text)) and from_cell(as_cell(text)) == text


@pytest.mark.parametrize("text", PLAIN)
def test_other_texts_are_left_alone(text):
    assert as_cell(text) == text and from_cell(text) == text


def test_a_table_is_read_as_it_was_written(tmp_path):
    texts = [*FORMULAS[:4], *FORMULAS[6:], *PLAIN[:-1], None]
    table = pd.DataFrame(
        {
            "=name": texts,
            "number": [-0.5 - place for place in range(len(texts))],
            "count": range(-1, len(texts) - 1),
            "kind": pd.Categorical(["-a", "b"] * (len(texts) // 2) + ["b"] * (len(texts) % 2)),
            "mixed": [-1, None, "-x"] + [2] * (len(texts) - 3),
        }
    )
    write_csv(tmp_path / "a.csv", table, "%.6f")
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][0] == "'=name" and not any(is_formula(row[0]) or is_formula(row[3]) for row in rows)
    assert [row[1] for row in rows[1:3]] == ["-0.500000", "-1.500000"], "numbers are no formulas"
    assert [row[4] for row in rows[1:5]] == ["-1", "", "'-x", "2"], "and stay what they were"
    read = read_csv(tmp_path / "a.csv", {"kind": "category"})
    assert read["=name"].dropna().tolist() == texts[:-1] and read["=name"].isna().sum() == 1
    assert read["number"].tolist() == table["number"].tolist() and read["kind"].tolist() == table["kind"].tolist()
    write_csv(tmp_path / "none.csv", table[:0])
    assert (tmp_path / "none.csv").read_text() == "'=name,number,count,kind,mixed\n"


def test_marks_are_no_formulas(tmp_path):
    path = tmp_path / "captions.csv"
    marks = [
        replace(MARK, key=f"k{place}", who=text, label=text, caption=text, image_id=text, note=text, kind="note")
        for place, text in enumerate(text for text in FORMULAS if "\r" not in text)
    ]
    for mark in marks:
        save_mark(mark, path)
    with path.open(encoding="utf-8", newline="") as file:
        assert not any(is_formula(cell) for row in csv.reader(file) for cell in row)
    assert read_marks(path) == marks
    older = ",".join(MARK_COLUMNS) + "\nt,Ada,captioner,s/1,s,=1+1,good,1,,-x,k\n"  # as earlier versions wrote them
    path.write_text(older)
    assert read_marks(path)[0].label == "=1+1"


def test_a_table_of_the_command_is_read_back_by_what_scores_it(tmp_path, capsys):
    said = pd.DataFrame({"image": ["-1.png", "2.png"], "caption": ["=HYPERLINK(1)", "- a river"], "split": "test"})
    write(said, tmp_path / "said.csv")
    assert (tmp_path / "said.csv").read_text().count("'") == 3
    assert read_caption_lists(tmp_path / "said.csv") == {"-1.png": ["=HYPERLINK(1)"], "2.png": ["- a river"]}
    assert [image.name for image in read_caption_table(tmp_path / "said.csv").images] == ["-1.png", "2.png"]
    write(said, None)
    assert capsys.readouterr().out == (tmp_path / "said.csv").read_text()


def test_every_table_that_the_project_writes_goes_through_this():
    """Curves are numbers and names of this package's own; texts that were read raw are written raw."""
    own = {"20_adapt_encoder.ipynb", "35_add_languages.ipynb", "40_finetune_lora.ipynb", "experiment_files.py"}
    files = [*(ROOT / "rsvlm").rglob("*.py"), *(ROOT / "notebooks").glob("*.ipynb")]
    found = {file.name for file in files if ".to_csv(" in file.read_text(encoding="utf-8")}
    assert found == {"safe_text.py"} | own
    assert not [
        file.name for file in files if "csv.writer(" in file.read_text(encoding="utf-8") if file.name not in found
    ]


def test_markdown_of_a_text_is_that_text():
    markdown_it = pytest.importorskip("markdown_it")
    nasty = "<img src=x onerror=alert(1)> | `a` **b** [c](javascript:d) ![e](f) ~~g~~ $h$ # i &lt; _j_ snake_case"
    for text in (nasty, "# a", "- a", "+ a", "=", "~~~", "\u202egnp.exe"):
        for page in (f"x {as_markdown(text)}", as_markdown(text), f"| a |\n|---|\n| {as_markdown(text)} |"):
            html = markdown_it.MarkdownIt("gfm-like", {"linkify": False}).render(page)
            for tag in ("<img", "<a ", "<em", "<strong", "<code", "<s>", "<h1", "<ul", "<pre"):
                assert tag not in html, (page, html)
            assert "\u202e" not in html
    assert as_markdown("snake_case") == "snake_case" and as_code("a`b\nc\u202e") == "a'b c\\u202e"


def test_a_source_cannot_write_into_the_cards(tmp_path):
    nasty = 'x\nlicense: mit\n---\n<img src=x onerror="alert(1)">|'
    metrics = read_json(ROOT / "results" / "blue_marble_cpu" / "metrics.json")
    metrics = json.loads(json.dumps(metrics).replace('"blue_marble": {', f"{json.dumps(nasty)}: {{"))
    used = {"images_used": {"train": 5, "val": 1, "test": 1}, "captions_used": {"train": 25}}
    data = {"sources": {nasty: used | {"adapts_encoder_alone": 0}}, "near_duplicates_dropped_from_train": 3}
    page = model_card(metrics, data)
    head = YAML(typ="safe").load(page.split("\n---\n")[0].removeprefix("---\n"))
    assert head["datasets"] == [nasty] and "license" not in head
    assert "<img" not in page and page.count("&lt;img") >= 4 and "\n---\n<" not in page
    assert "\\n" in page.split("## Training data")[1].split("## Evaluation")[0], "a name is one line of the table"
    facts = cards.load_measured("ucm", ROOT / "data_cards")
    part = f"{nasty}/train"
    facts |= {"verbatim_in_train": {part: {part: 0.5}}, "siblings": {part: {part: 0.5}}}
    facts |= {"images_with_a_near_duplicate": {part: {part: 2}}}
    block = cards.measured_block(facts)
    assert "<img" not in block and block.count("&lt;img") == 6 and "\nlicense" not in block
    encoder = metrics["parameters"]["adapt_encoder"]
    metrics["parameters"]["adapt_encoder"] = encoder | {"encoder": "`<img onerror=1>\n# b"}
    assert "<img" not in model_card(metrics, data) and "\n# b" not in model_card(metrics, data)


def test_yaml_of_a_text_is_that_text():
    for text in ("a", "a: b", "- a", "x\nlicense: mit", '"', "'", "no", "\u2028", "\x85", "é", "😀", "{{ a }}", "# a"):
        assert YAML(typ="safe").load(f"- {as_yaml(text)}\n") == [text]


# Pages


def test_every_page_has_the_policy_of_base_html():
    """Each template is a page that begins with base.html, or a part of pages; render_page is the only way to a page."""
    environment = page_environment()
    parts = {"terms.html", "cards.html", "comparison_tables.html"}
    for name in environment.list_templates(extensions=["html"]):
        at = name
        while extended := list(environment.parse(environment.loader.get_source(None, at)[0]).find_all(nodes.Extends)):
            at = extended[0].template.value
        assert at == "base.html" or name in parts, name
        source = environment.loader.get_source(None, name)[0]
        assert ("<head" in source) == (name == "base.html") and "Content-Security" in source or name != "base.html"
    for name in parts:
        assert "<script" not in environment.loader.get_source(None, name)[0]
    made = [file for file in (ROOT / "rsvlm").rglob("*.py") if "<html" in file.read_text().lower()]
    assert not made
    page = render_page("dialogue_turns.html", [], ["dialogue_turns.css"], terms={}, cards=[], lead="", about="")
    assert "default-src 'none'" in page and "form-action 'none'" in page and "script-src" not in page


@pytest.mark.parametrize(
    ("text", "isolated"),
    [
        ("river", "river"),
        ("نهر a", "نهر a"),  # letters have a direction of their own
        (TURNED, f"{START}{TURNED}{END}"),
        ("\u2067a", f"{START}\u2067a{END}{END}"),
        ("a\u2069\u202eb", f"{START}a\u202eb{END}"),  # it would end the isolate around it
        ("\u2066a\u2069\u2069b", f"{START}\u2066a{END}b{END}"),
    ],
)
def test_marks_of_direction_end_with_their_text(text, isolated):
    assert isolate(text) == isolated
    assert isolate(isolate(text)).count(END) == sum(isolate(isolate(text)).count(one) for one in "\u2066\u2067\u2068")
    if NODE:
        script = page_environment().loader.get_source(None, "dom.js")[0]
        asked = f"{script}; console.log(JSON.stringify(isolated({json.dumps(text)})))"
        done = subprocess.run([NODE, "-e", asked], capture_output=True, text=True, check=True)
        assert json.loads(done.stdout) == isolated, "pages and kernels isolate alike"


DOCUMENT = """
const texts = [];
globalThis.document = { createElement: (name) => ({ name, setAttribute() {}, addEventListener() {}, append(...parts) { texts.push(...parts); } }) };
"""


@pytest.mark.skipif(NODE is None, reason="no node on this machine: the pages' script was not run")
def test_the_pages_script_isolates_and_makes_no_markup():
    script = page_environment().loader.get_source(None, "dom.js")[0]
    nasty = [TURNED, "<img src=x onerror=1>"]
    asked = (
        f"{DOCUMENT}{script}; make('p', {{}}, ...{json.dumps(nasty)}, null, false); console.log(JSON.stringify(texts))"
    )
    done = subprocess.run([NODE, "-e", asked], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [f"{START}{TURNED}{END}", "<img src=x onerror=1>"]


def test_no_script_of_a_page_or_widget_makes_markup_of_a_text():
    environment = page_environment()
    ways = "innerHTML outerHTML insertAdjacentHTML document.write DOMParser createContextualFragment srcdoc eval( Function("
    for name in environment.list_templates(extensions=["js"]):
        source = environment.loader.get_source(None, name)[0]
        assert not [way for way in ways.split() if way in source], name


def test_pages_and_cells_isolate_what_they_show():
    shown = show_cards(
        [{"head": TURNED, "words": TURNED, "cards": [{"picture": "data:", "bold": TURNED, "title": "t"}]}]
    )
    assert shown.data.count("\u202e") == shown.data.count(f"{START}{TURNED}{END}") == 3
    for name in ("retrieval.js", "gallery.js"):
        assert ".map(isolated).join(" in page_environment().loader.get_source(None, name)[0]


# Settings


def test_the_galleries_know_what_is_measured(tmp_path):
    assert get_args(CaptionMetric) == METRICS
    assert get_args(RetrievalGallery.model_fields["method"].annotation) == SEARCHED_BY
    with pytest.raises(ValueError, match="'metric' must be 'BLEU-1', .* but is 'CIDER'"):
        CaptionGallery(metric="CIDER")
    with pytest.raises(ValueError, match="'method' must be 'dual_encoder'.* but is 'both'"):
        RetrievalGallery(method="both")
