"""The static pages in a real Chromium, offline: by keyboard and screen reader, on a phone, in the dark."""

import re

import nbformat
import pytest
import torch
from browse_case import build_study
from browser_case import PROJECT, SCREENSHOTS, in_a_browser, playwright, serious_findings
from nbformat.v4 import new_code_cell, new_notebook
from nbformat.v4 import new_output as output

from rsvlm.data.translations import save_translations
from rsvlm.files import read_json, write_json
from rsvlm.scoring.published import RECALLS
from rsvlm.study import paths
from rsvlm.study.pages import publish
from rsvlm.study.paths import finished_study
from rsvlm.viewing.caption_gallery import Pair, write_caption_gallery
from rsvlm.viewing.comparison_page import render_html, show_comparison
from rsvlm.viewing.page import write_page
from rsvlm.viewing.retrieval_gallery import write_retrieval_gallery

pytestmark = in_a_browser
NAMES = ("captions", "pair", "retrieval", "comparison")
WIDTHS = (1400, 390)
SEARCHES = 20  # on the page, in each direction


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The three pages of a small study, the comparison of a recorded one."""
    root = tmp_path_factory.mktemp("pages")
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "find_root", lambda: root)
        patch.setenv("RSVLM_CACHE", str(paths.CACHE))
        rows = build_study(root, test=30, train=6, scored=True)
        translated = [
            {"image_id": row["image_id"], "language": code, "captions": [f"{word} {number}", None], "how": "machine"}
            for number, row in enumerate(rows)
            for code, word in (("pt", "Legenda"), ("zh", "说明"))
            if code == "pt" or number == 3
        ]
        save_translations(translated, rows, paths.TRANSLATIONS)
        figures = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 30}
        recalls = dict.fromkeys(RECALLS, figures)
        kinds = {"by_image": recalls, "by_text": {"mean_recall": figures}, "ceiling": recalls}
        write_json(paths.METRICS / "score_retrieval.json", {"dual_encoder": {"s": kinds}, "protocol": {}})
        corpus = dict.fromkeys(("BLEU-1", "BLEU-4", "METEOR", "ROUGE_L", "CIDEr"), figures)
        scores = {run: {"s": {"released": corpus}} for run in ("captioner", "nearest", "human")}
        write_json(paths.METRICS / "score_captions.json", scores)
        write_caption_gallery(paths.GALLERIES / "captions.html", finished_study(), baselines=["nearest"])
        told = Pair(["a.b: 1 → 2"], "By the features of the first.")
        write_caption_gallery(paths.GALLERIES / "pair.html", finished_study(), baselines=["nearest"], pair=told)
        write_retrieval_gallery(paths.GALLERIES / "retrieval.html", finished_study(), images=SEARCHES)
        recorded = read_json(PROJECT / "results" / "ucm_cpu" / "metrics.json")
        write_page(paths.GALLERIES / "comparison.html", render_html(recorded))
        shown = output("display_data", {"text/html": show_comparison(recorded).data})
        notebook = new_notebook(cells=[new_code_cell("show_comparison(metrics)", outputs=[shown])])
        nbformat.write(notebook, paths.GALLERIES / "80_compare_with_paper.ipynb")
        publish(paths.GALLERIES)
        yield paths.GALLERIES


@pytest.fixture
def show(open_page, pages):
    """A function: the page of this name, as ``open_page`` opens it."""
    return lambda name, width, theme="light", **options: open_page(pages / f"{name}.html", width, theme, **options)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", NAMES)
def test_axe_finds_nothing_serious(show, name, width, theme):
    page = show(name, width, theme)
    found = serious_findings(page)
    if name != "comparison":  # the enlarged view is another page, in effect
        page.locator("article.card .open, article.card .thumb").locator("visible=true").first.click()
        page.locator("dialog[open]").wait_for()
        found |= serious_findings(page)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"page_{name}_{width}_{theme}.png")
    assert not found


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", NAMES)
def test_no_column_is_cut(show, name, width):
    page = show(name, width)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    cut = page.evaluate("[...document.querySelectorAll('table td')].filter((cell) => cell.getBoundingClientRect().right > innerWidth || cell.scrollWidth > cell.clientWidth + 1).map((cell) => cell.textContent)")  # fmt: skip
    assert cut == []


def test_a_notebooks_page_keeps_its_tables_in_columns(show):
    page = show("html/80_compare_with_paper", 1400)
    heads = page.locator("th.way")
    playwright.expect(heads).to_have_text([re.compile("^image to text"), re.compile("^text to image")])
    tops = heads.evaluate_all("heads => heads.map((head) => head.getBoundingClientRect().top)")
    assert tops[0] == tops[1]


def test_on_a_phone_the_main_figure_comes_first(show):
    tops = show("comparison", 390).evaluate("[...document.querySelector('tbody tr:not(.kind)').querySelectorAll('td')].filter((cell) => cell.offsetParent).sort((a, b) => a.getBoundingClientRect().top - b.getBoundingClientRect().top).map((cell) => cell.textContent)")  # fmt: skip
    recorded = read_json(PROJECT / "results" / "ucm_cpu" / "metrics.json")["captions"]["captioner"]["ucm"]["CIDEr"]
    assert tops[0].startswith("CIDEr") and f"{recorded['value']:.3f}" in tops[0]


@pytest.mark.parametrize("name", NAMES)
def test_the_page_follows_the_dark_theme(show, name):
    grounds = [show(name, 1400, theme).evaluate("getComputedStyle(document.documentElement).backgroundColor") for theme in ("light", "dark")]  # fmt: skip
    assert grounds == ["rgb(246, 247, 249)", "rgb(17, 22, 28)"]


@pytest.mark.parametrize(
    ("name", "term", "sentence"),
    [
        ("captions", "held-out reference", "one reference held out"),
        ("captions", "gap", "on an image less that of the run"),
        ("retrieval", "ceiling", "knows every test caption by heart"),
        ("comparison", "specialist", "on that benchmark alone"),
    ],
)
def test_a_term_is_explained_by_key_and_by_touch(show, name, term, sentence):
    label = f"What {term} means"
    page = show(name, 1400)
    page.get_by_role("button", name=label, exact=True).first.focus()
    page.keyboard.press("Enter")
    playwright.expect(page.locator(".sentence:popover-open")).to_contain_text(sentence)
    page.keyboard.press("Escape")
    assert page.locator(".sentence:popover-open").count() == 0
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == label
    phone = show(name, 390, has_touch=True)
    phone.get_by_role("button", name=label, exact=True).locator("visible=true").first.tap()
    shown = phone.locator(".sentence:popover-open")
    playwright.expect(shown).to_contain_text(sentence)
    box = shown.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 390


def test_the_sentence_follows_what_is_chosen(show):
    page = show("captions", 1400)
    page.locator("select[name=metric]").select_option("METEOR")
    page.get_by_role("button", name="What METEOR means", exact=True).last.click()
    playwright.expect(page.locator(".sentence:popover-open")).to_contain_text("METEOR: words matched")


def test_the_count_says_what_it_counts(show):
    page = show("retrieval", 1400)
    count, total = page.locator("#count"), 31  # a caption an image, and one that all share
    drawn = page.locator("#text_to_image article.card:visible").count()
    assert 0 < drawn < SEARCHES
    playwright.expect(count).to_have_text(f"{drawn} captions drawn at random of {total}")
    page.get_by_role("button", name="Best", exact=True).click()
    rest = SEARCHES - drawn
    playwright.expect(count).to_have_text(f"{SEARCHES} captions of {total}: {drawn} drawn at random and the {rest} best, middle and worst")  # fmt: skip
    page.get_by_label("Search", exact=True).fill("Caption 1")
    playwright.expect(count).to_contain_text(f"of the {SEARCHES} captions on this page")
    page.get_by_role("button", name="Image to text", exact=True).click()
    playwright.expect(count).to_contain_text(f"of the {SEARCHES} images on this page")


def test_a_page_of_two_opens_compared_and_ordered_by_what_changed(show):
    page = show("pair", 1400)
    first = page.locator("article.card").first
    playwright.expect(first.locator(".run h3")).to_contain_text(["nearest", "captioner"])
    playwright.expect(page.get_by_role("button", name="Largest gain", exact=True)).to_have_attribute("aria-pressed", "true")  # fmt: skip
    playwright.expect(first.locator(".order")).to_have_text("gap −0.50")
    page.get_by_role("button", name="Clear", exact=True).click()
    playwright.expect(first.locator(".order")).to_have_text("gap −0.50")
    page.locator("select[name=run]").select_option("nearest")
    playwright.expect(first.locator(".order")).to_have_text("gap +0.50")
    playwright.expect(first.locator(".run.own")).to_contain_text("nearest")
    first.locator(".open").click()
    playwright.expect(page.locator("dialog .near")).to_contain_text("By the features of the first.")
    playwright.expect(page.locator("dialog .near .copied").first).to_contain_text("the same words: captioner")


def test_references_in_other_languages_are_marked_and_can_be_chosen(show):
    page = show("captions", 1400)
    page.get_by_label("references in").select_option("Chinese")
    assert page.locator("[data-part=count]").inner_text() == "1 of 30 images"
    shown = page.locator("article.card .references li")
    assert shown.all_inner_texts() == ["zh 说明 3"] and shown.locator("[lang=zh]").inner_text() == "说明 3"
    assert shown.locator("abbr").get_attribute("title") == "Chinese, machine-translated"
    page.get_by_label("references in").select_option("all languages")
    page.locator("article.card .open").first.click()
    told = page.locator("dialog .references")
    assert "also in pt" in told.locator("summary").inner_text() and told.locator("li [lang=pt]").count() == 1
    page = show("retrieval", 1400)
    page.locator("article.card .thumb").locator("visible=true").first.click()
    assert page.locator("dialog li [lang=pt]").inner_text().startswith("Legenda ")
