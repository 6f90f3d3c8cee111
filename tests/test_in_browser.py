"""The notebook 90_browse and the static page in a real Chromium: filter, sort, enlarge, mark, search, talk, kill the kernel."""

import base64
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from browse_case import NASTY_NAME, SCRIPT, add_captioner, build_study
from browser_case import PROJECT, SCREENSHOTS, SECONDS, in_a_browser, playwright, serious_findings

from rsvlm.study import paths
from rsvlm.study.paths import finished_study
from rsvlm.viewing.caption_gallery import read_marks, write_caption_gallery
from rsvlm.viewing.records import Query, draw_order, read_records, select_rows

pytestmark = in_a_browser
TEST_IMAGES = 30


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The root of a tiny study with nasty captions and a nasty file name."""
    root = tmp_path_factory.mktemp("browser") / "study root"
    root.mkdir()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "find_root", lambda: root)
        patch.setenv("RSVLM_CACHE", str(paths.CACHE))
        build_study(
            root,
            test=TEST_IMAGES,
            train=6,
            nasty_name=True,
            scored=True,
            more_runs=("consensus", "beam", "constant", "shuffled"),
        )
        add_captioner()
        write_caption_gallery(paths.GALLERIES / "captions.html", finished_study(), baselines=["nearest"], neighbours=2)
        shutil.copy(PROJECT / "dvc.yaml", root)
        (root / "notebooks").mkdir()
        shutil.copy(PROJECT / "notebooks" / "90_browse.ipynb", root / "notebooks")
        yield root


class Watched:
    """A page and all that it complained of."""

    def __init__(self, browser, **options):
        self.page = browser.new_context(**options).new_page()
        self.page.set_default_timeout(1000 * SECONDS)
        self.faults = []
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", lambda line: self.faults.append(line.text) if line.type == "error" else None)

    def shoot(self, name):
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png")


def ids_of(scope) -> list[str]:
    return scope.locator("article.card").evaluate_all("cards => cards.map(card => card.dataset.id)")


def unfold(scope, title):
    """Open a folded part by keyboard: a click may miss what moves while JupyterLab scrolls a cell into view."""
    fold = scope.locator("details", has=scope.page.locator("summary", has_text=title))
    fold.locator("summary").press("Enter")
    playwright.expect(fold).to_have_js_property("open", True)


def wait_until(found, what):
    end = time.monotonic() + SECONDS
    while not found():
        assert time.monotonic() < end, f"waited {SECONDS} s for {what}"
        time.sleep(0.05)


# The static page, from disk and offline


@pytest.fixture(scope="module")
def static(study, browser):
    watched = Watched(browser, offline=True, viewport={"width": 1280, "height": 900})
    watched.page.goto((paths.GALLERIES / "captions.html").as_uri())
    watched.page.wait_for_selector("article.card")
    yield watched
    assert not watched.faults
    watched.page.context.close()


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"order": "best"},
        {"order": "worst"},
        {"order": "median", "metric": "METEOR"},
        {"order": "best", "measure": "gap", "baseline": "nearest"},
        {"words": "caption 2", "place": "references"},
        {"words": NASTY_NAME[:4], "place": "all"},
        {"label": "river", "low": 3.0, "high": 20.0, "order": "worst"},
        {"seen": "no", "order": "best"},
    ],
)
def test_the_page_answers_as_the_kernel_does(study, static, query):
    records = read_records(finished_study(), ["captioner", "nearest"], split="test")
    rows, _ = select_rows(records, Query("captioner", **query), drawn=draw_order(records))
    asked = json.dumps({"run": "captioner", "baseline": None, "metric": "CIDEr", "measure": "score", "order": "random", "words": "", "place": "said", "source": "",
                        "split": "", "label": "", "seen": "", "mark": "", "low": None, "high": None} | query)  # fmt: skip
    shown = static.page.evaluate(
        f"openPage(JSON.parse(document.getElementById('data').textContent)).page({asked}, 0, 999).then(found => found.items.map(item => item.id))"
    )
    assert shown == [records.image_ids[row] for row in rows] and (shown or not query)


def test_the_page_works_by_mouse_and_keyboard(static):
    page = static.page
    assert len(ids_of(page)) == TEST_IMAGES and page.title() != "taken"
    playwright.expect(page.locator("article.card .said").first).to_have_text(SCRIPT)
    assert page.get_by_role("button", name=f"Enlarge {NASTY_NAME}", exact=True).count() == 1
    page.get_by_role("button", name="Best", exact=True).click()
    assert ids_of(page)[0] == f"s/{TEST_IMAGES - 1}.png"
    page.locator("summary", has_text="Compare").click()
    page.locator(".choices").get_by_label("nearest").check()
    assert page.locator("article.card").first.locator(".run").count() == 2
    static.shoot("static_compare")
    page.get_by_role("button", name="Clear").click()
    page.keyboard.press("/")
    page.keyboard.type("no such word")
    page.wait_for_selector("text=No image fits")
    page.get_by_role("button", name="Clear").click()
    page.locator("article.card .open").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    dialog = page.locator("dialog[open]")
    second = ids_of(page)[1]
    assert second in dialog.locator(".where").inner_text() and dialog.locator(".training figure").count() == 2
    static.shoot("static_enlarged")
    page.keyboard.press("ArrowLeft")
    assert ids_of(page)[0] in dialog.locator(".where").inner_text()
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    assert page.evaluate("document.activeElement.closest('.card').dataset.id") == ids_of(page)[0]  # back where one was


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dark", {"color_scheme": "dark"}),
        ("zoomed", {"viewport": {"width": 640, "height": 450}, "device_scale_factor": 2}),
    ],
)
def test_the_page_is_readable_in_the_dark_and_at_twice_the_size(study, browser, name, options):
    watched = Watched(browser, offline=True, **options)
    watched.page.goto((paths.GALLERIES / "captions.html").as_uri())
    watched.page.wait_for_selector("article.card img")
    watched.shoot(f"static_{name}")
    contrast = watched.page.evaluate(CONTRAST)
    assert contrast and min(contrast.values()) >= 4.5, contrast  # WCAG 2.2, level AA
    assert watched.page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # nothing to scroll sideways for
    assert not watched.faults
    watched.page.context.close()


CONTRAST = """() => {
  const light = (colour) => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d");
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((value) => value / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => { for (; element; element = element.parentElement) { const own = getComputedStyle(element).backgroundColor; if (!/, 0(\\.\\d+)?\\)$|\\/ 0(\\.\\d+)?\\)$|transparent/.test(own)) return own; } return "white"; };
  const ratios = {};
  for (const kind of [".said", ".said mark", ".lead", ".fold summary", ".bar", ".count", ".foot", "select", ".segments [aria-pressed=true]"]) {
    const element = document.querySelector(kind);
    if (!element) continue;
    const [one, other] = [light(getComputedStyle(element).color), light(ground(element))].sort((a, b) => b - a);
    ratios[kind] = (one + 0.05) / (other + 0.05);
  }
  return ratios;
}"""


# JupyterLab


class Lab:
    """A JupyterLab server of its own in a study's root."""

    def __init__(self, root: Path, scratch: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.token = secrets.token_hex(16)
        settings = scratch / "settings" / "@jupyterlab" / "apputils-extension"
        settings.mkdir(parents=True)
        (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
        own = {
            name: str(scratch / name)
            for name in (
                "JUPYTER_CONFIG_DIR",
                "JUPYTER_DATA_DIR",
                "JUPYTER_RUNTIME_DIR",
                "IPYTHONDIR",
                "JUPYTERLAB_WORKSPACES_DIR",
            )
        }
        environment = (
            os.environ
            | own
            | {
                "RSVLM_ROOT": str(root),
                "PYTHONPATH": str(PROJECT),
                "JUPYTERLAB_SETTINGS_DIR": str(scratch / "settings"),
                "OMP_NUM_THREADS": "1",
            }
        )
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser", f"--port={self.port}",
                   "--ServerApp.port_retries=0", f"--IdentityProvider.token={self.token}", f"--ServerApp.root_dir={root}"]  # fmt: skip
        self.log = (scratch / "lab.log").open("w+")
        self.process = subprocess.Popen(command, cwd=root, env=environment, stdout=self.log, stderr=subprocess.STDOUT)
        wait_until(self._answers, "JupyterLab")

    def ask(self, place: str) -> object:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/{place}", headers={"Authorization": f"token {self.token}"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def _answers(self) -> bool:
        assert self.process.poll() is None, Path(self.log.name).read_text()[-3000:]
        try:
            return bool(self.ask("api"))
        except OSError:
            return False

    def kernel_pids(self) -> list[int]:
        """Process ids of the kernels that this server started."""
        own = subprocess.run(
            ["ps", "-o", "pid=,args=", "--ppid", str(self.process.pid)], capture_output=True, text=True
        ).stdout
        return [int(line.split()[0]) for line in own.splitlines() if "ipykernel" in line]

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.log.close()


@pytest.fixture(scope="module")
def lab(study, tmp_path_factory):
    if shutil.which("ps") is None:
        pytest.skip("no `ps` on this machine: the kernel could not be found to be killed")
    started = Lab(study, tmp_path_factory.mktemp("jupyter"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def notebook(lab, browser):
    """90_browse in JupyterLab, all cells run."""
    watched = Watched(browser, viewport={"width": 1400, "height": 1000})
    watched.page.goto(f"http://127.0.0.1:{lab.port}/lab/tree/notebooks/90_browse.ipynb?token={lab.token}")
    watched.page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    run_all(watched.page)
    yield watched
    watched.page.context.close()


def run_all(page, until=None):
    """Run all cells, or those above a place, once the kernel is ready."""
    page.wait_for_function(
        "() => window.jupyterapp && window.jupyterapp.shell.currentWidget?.sessionContext?.isReady && window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status === 'idle'"
    )
    if until is None:
        page.evaluate("window.jupyterapp.commands.execute('runmenu:run-all')")
    else:
        page.evaluate(f"window.jupyterapp.shell.currentWidget.content.activeCellIndex = {until}")
        page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-above')")


def gallery_of(page):
    return page.locator(".jp-OutputArea-output .shell").filter(has=page.locator("[data-part=grid]"))


def search_of(page):
    return page.locator(".jp-OutputArea-output .shell").filter(has=page.locator("ol.hits"))


def chat_of(page):
    return page.locator(".jp-OutputArea-output .shell").filter(has=page.locator("ol.turns"))


def test_the_gallery_filters_sorts_and_compares(notebook):
    page = notebook.page
    gallery = gallery_of(page)
    gallery.scroll_into_view_if_needed()
    gallery.locator("article.card img").first.wait_for()
    playwright.expect(gallery.locator(".count")).to_have_text(f"{TEST_IMAGES} of {TEST_IMAGES} images")
    assert len(ids_of(gallery)) == 24 and page.title() != "taken"
    playwright.expect(gallery.locator(".said").first).to_have_text(SCRIPT)
    notebook.shoot("gallery")
    gallery.get_by_role("button", name="Best", exact=True).click()
    playwright.expect(gallery.locator("article.card").first).to_have_attribute("data-id", f"s/{TEST_IMAGES - 1}.png")
    gallery.get_by_label("class").select_option("river")
    playwright.expect(gallery.locator(".count")).to_have_text(f"{TEST_IMAGES // 2} of {TEST_IMAGES} images")
    gallery.get_by_label("from").fill("5")
    gallery.get_by_label("from").press("Enter")
    playwright.expect(gallery.locator(".count")).to_have_text(f"13 of {TEST_IMAGES} images")
    unfold(gallery, "Compare")
    gallery.locator(".choices").get_by_label("nearest").check()
    playwright.expect(gallery.locator("article.card").first.locator(".run")).to_have_count(2)
    notebook.shoot("gallery_compare")
    gallery.get_by_role("button", name="Clear").click()
    playwright.expect(gallery.locator(".count")).to_have_text(f"{TEST_IMAGES} of {TEST_IMAGES} images")
    gallery.get_by_role("button", name="Next →").click()
    playwright.expect(gallery.locator("article.card")).to_have_count(TEST_IMAGES - 24)
    gallery.get_by_role("button", name="← Previous").click()
    playwright.expect(gallery.locator("article.card")).to_have_count(24)


def test_what_is_typed_reaches_the_search_and_not_the_notebook(notebook):
    page = notebook.page
    cells = page.locator(".jp-Notebook .jp-Cell").count()
    gallery = gallery_of(page)
    gallery.locator("select[name=place]").select_option("all")
    gallery.get_by_label("Search", exact=True).click()
    page.keyboard.type(NASTY_NAME + " dd x")  # "x" would cut a cell, "dd" delete one
    page.wait_for_selector("text=No image fits")
    for _ in " dd x":
        page.keyboard.press("Backspace")
    playwright.expect(gallery.locator("article.card")).to_have_count(1)
    assert ids_of(gallery) == [f"s/{NASTY_NAME}"] and page.locator(".jp-Notebook .jp-Cell").count() == cells
    gallery.get_by_role("button", name="Clear").click()


def test_an_image_is_enlarged_and_marked(notebook, study):
    page = notebook.page
    gallery = gallery_of(page)
    gallery.get_by_role("button", name="Worst", exact=True).click()
    playwright.expect(gallery.locator("article.card").first).to_have_attribute("data-id", "s/0.png")
    gallery.locator("article.card .open").first.click()
    dialog = gallery.locator("dialog[open]")
    playwright.expect(dialog.locator(".training figure")).to_have_count(4)
    assert dialog.locator(".copied").count() >= 1 and "the same words" in dialog.locator(".copied").first.inner_text()
    page.keyboard.press("4")
    playwright.expect(dialog.locator(".status")).to_have_text("saved")
    dialog.get_by_label("Note").fill('a note, "quoted"')
    dialog.get_by_label("Note").press("Tab")
    wait_until(lambda: len(read_marks(paths.MARKS)) == 2, "the note")
    notebook.shoot("enlarged")
    page.keyboard.press("Escape")
    playwright.expect(gallery.locator("article.card").first.locator(".chip.marks")).to_have_text("hallucinated, note")
    assert [(mark.image_id, mark.kind, mark.note) for mark in read_marks(paths.MARKS)] == [
        ("s/0.png", "hallucinated", ""),
        ("s/0.png", "note", 'a note, "quoted"'),
    ]
    unfold(gallery, "Error table")
    playwright.expect(gallery.locator(".errors tbody tr")).to_have_count(2)
    gallery.locator("summary", has_text="Error table").press("Enter")


def drop_file(page, target, path):
    """Let the file fall on the target as a browser does when one is dragged in from a folder."""
    content = base64.b64encode(path.read_bytes()).decode()
    carried = page.evaluate_handle(
        """([name, content]) => {
            const carried = new DataTransfer();
            const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
            carried.items.add(new File([bytes], name, { type: "image/png" }));
            return carried;
        }""",
        [path.name, content],
    )
    for kind in ("dragenter", "dragover", "drop"):
        target.dispatch_event(kind, {"dataTransfer": carried})


def test_the_search_box_finds_and_takes_a_file(notebook, study):
    page = notebook.page
    box = search_of(page)
    box.scroll_into_view_if_needed()
    field = box.get_by_label("What to look for")
    field.fill("Caption 7")
    playwright.expect(box.locator(".hit")).to_have_count(12)  # as it is typed
    box.get_by_label("by").select_option("ret")
    field.press("Enter")
    playwright.expect(box.locator(".found")).to_contain_text("1 image carries just this caption")
    playwright.expect(box.locator(".found")).to_contain_text(f"{TEST_IMAGES} images searched")
    box.get_by_label("by").select_option("combined")
    playwright.expect(box.locator(".hit")).to_have_count(12)
    notebook.shoot("search")
    name = box.locator(".hit .under").first.inner_text()
    box.locator(".hit .thumb").first.click()
    playwright.expect(box.locator(".subject")).to_contain_text("s/")
    assert name
    box.locator("input[type=file]").set_input_files(study / "3.png")
    playwright.expect(box.locator(".subject .said")).to_have_count(3)
    playwright.expect(box.locator(".subject")).to_contain_text("from outside")
    notebook.shoot("search_file")
    drop_file(page, box, study / "4.png")
    playwright.expect(box.locator(".subject")).to_contain_text("4.png")
    playwright.expect(box.locator(".subject .said")).to_have_count(3)
    (study / "no picture.png").write_text("text")
    box.locator("input[type=file]").set_input_files(study / "no picture.png")
    playwright.expect(box.locator(".trouble")).to_contain_text("no JPEG, PNG")
    playwright.expect(box.locator(".subject")).to_be_hidden()  # an older answer is none to this file
    playwright.expect(box.locator(".hit")).to_have_count(0)


def test_the_dialogue_answers_and_is_exported(notebook, study):
    page = notebook.page
    chat = chat_of(page)
    chat.scroll_into_view_if_needed()
    before = chat.locator(".turn").count()  # what the cells above said
    assert before == 3
    chat.get_by_label("Find an image to give").fill("river")
    chat.get_by_role("button", name="Look up", exact=True).click()
    chat.locator(".offer").first.click()
    playwright.expect(chat.locator(".turn")).to_have_count(before + 1)
    chat.get_by_label("What you say").fill(SCRIPT)
    chat.get_by_label("What you say").press("Enter")
    playwright.expect(chat.locator(".unclear")).to_contain_text("does not tell which of them it asks for")
    playwright.expect(chat.get_by_label("What you say")).to_have_value(SCRIPT)
    assert chat.locator(".turn").count() == before + 1
    notebook.shoot("dialogue_unclear")
    chat.get_by_role("button", name="Let the model decide").click()
    playwright.expect(chat.locator(".turn")).to_have_count(before + 3)
    playwright.expect(chat.locator(".turn.model .warning").last).to_contain_text("not trained to answer this")
    playwright.expect(chat.locator(".turn.you .words").last).to_have_text(SCRIPT)
    assert page.title() != "taken"
    chat.get_by_label("What you say").fill("Caption 3")
    chat.get_by_role("button", name="Find images", exact=True).click()
    playwright.expect(chat.locator(".turn.model figure")).to_have_count(3)
    chat.locator("input[type=file]").set_input_files(study / "4.png")
    playwright.expect(chat.locator(".turn.you figcaption").last).to_have_text("4.png")
    chat.get_by_role("button", name="Describe the image").click()
    playwright.expect(chat.locator(".turn.you .words").last).to_have_text("Caption:")
    playwright.expect(chat.locator(".turns[aria-busy]")).to_have_count(0)
    chat.get_by_role("button", name="Export").click()
    playwright.expect(chat.get_by_text("written: user/dialogues/dialogue_001/dialogue.md")).to_be_visible()
    assert "<script" not in (study / "user/dialogues" / "dialogue_001" / "dialogue.md").read_text()
    notebook.shoot("dialogue")


def test_no_text_becomes_code_in_a_widget(notebook, study):
    """An image that cannot be loaded runs its onerror as soon as it is markup; what is typed and a file's name come back."""
    attack = "<img src=x onerror=document.title='taken'>"
    page = notebook.page
    gallery, box, chat = gallery_of(page), search_of(page), chat_of(page)
    box.get_by_label("What to look for").fill(attack)
    box.get_by_label("What to look for").press("Enter")
    playwright.expect(box.locator(".hit")).to_have_count(12)
    shutil.copy(study / "4.png", study / f"{attack}.png")
    box.locator("input[type=file]").set_input_files(study / f"{attack}.png")
    playwright.expect(box.locator(".subject")).to_contain_text(attack)
    for widget in (gallery, box, chat):
        assert widget.locator("script, iframe, object, embed, [onerror], [onload], img[src=x]").count() == 0
    assert page.title() != "taken"


ENTERED_AT_ONCE = """(field, texts) => {
  for (const text of texts) {
    field.value = text;
    field.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true }));
  }
  const waiting = [...field.getRootNode().querySelectorAll(".turn.waiting")];
  waiting.at(-1).querySelector("button").click();
  return waiting.map((turn) => turn.querySelector(".words").textContent);
}"""


def test_what_is_entered_while_the_model_answers_waits_and_can_be_taken_back(notebook):
    chat = chat_of(notebook.page)
    before = chat.locator(".turn").count()
    field = chat.get_by_label("What you say")
    waiting = field.evaluate(ENTERED_AT_ONCE, ["Describe it.", "Find an image of this: Caption 5", "Never mind"])
    assert waiting == ["Find an image of this: Caption 5", "Never mind"]
    playwright.expect(chat.locator(".turn.waiting")).to_have_count(0)
    playwright.expect(chat.locator(".turn")).to_have_count(before + 4)
    playwright.expect(chat.locator(".turns[aria-busy]")).to_have_count(0)
    kinds = chat.locator(".turn").evaluate_all("turns => turns.map(turn => turn.className)")[before:]
    assert kinds == ["turn you", "turn model"] * 2
    playwright.expect(chat.locator(".turn.model").last.locator("figure")).to_have_count(3)


AHEAD = """(box, words) => {
  const all = (name) => [...box.getRootNode().querySelectorAll(name)];
  all("[name=text]")[0].value = words;
  all(".subject button")[0].click();
  all(".hit .thumb")[2].focus();
}"""


# What is too long is refused, and the hits go.
@pytest.mark.parametrize(
    ("words", "kept"),
    [("Caption 7", ".hit:nth-child(3) .thumb"), ("word " * 1001, "[name=text]")],
    ids=["hits", "none"],
)
def test_who_goes_ahead_by_key_while_an_answer_comes_keeps_the_focus(notebook, words, kept):
    box = search_of(notebook.page)
    field = box.get_by_label("What to look for")
    field.fill("Caption 7")
    field.press("Enter")
    playwright.expect(box.locator("[role=status].found")).to_contain_text("images searched")
    box.locator(".hit .thumb").first.click()
    playwright.expect(box.get_by_label("The image asked about")).to_be_focused()
    box.locator(".subject").evaluate(AHEAD, words)
    playwright.expect(box.locator(".subject")).to_be_hidden()
    playwright.expect(box.locator(kept)).to_be_focused()


AT = """() => {
  let at = document.activeElement;
  while (at.shadowRoot?.activeElement) at = at.shadowRoot.activeElement;
  const { outlineStyle, outlineWidth } = getComputedStyle(at);
  return [at.getAttribute("aria-label") || at.textContent, outlineStyle !== "none" && parseFloat(outlineWidth) > 1];
}"""


def test_the_widgets_are_used_by_keyboard_alone(notebook):
    page = notebook.page
    gallery, box, chat = gallery_of(page), search_of(page), chat_of(page)

    def tab_to(name):
        for _ in range(150):
            page.keyboard.press("Tab")
            label, visible = page.evaluate(AT)
            assert visible, f"the focus on {label!r} is not seen"
            if label.startswith(name) or label.endswith(name):
                return label
        raise AssertionError(f"no Tab leads to {name!r}")

    gallery.locator("article.card img").first.wait_for()
    chat.locator(".turn").first.wait_for()
    gallery.get_by_role("button", name="Clear").focus()
    page.keyboard.press("Shift+Tab")  # by key from here on
    opened = tab_to("Enlarge ")
    page.keyboard.press("Enter")
    playwright.expect(gallery.locator("dialog[open] .training figure")).to_have_count(4)
    tab_to("Close")
    page.keyboard.press("Escape")
    playwright.expect(gallery.get_by_role("button", name=opened, exact=True)).to_be_focused()  # back where one was
    tab_to("Next →")
    page.keyboard.press("Enter")
    playwright.expect(gallery.locator("article.card .open").first).to_be_focused()
    playwright.expect(gallery.locator("article.card")).to_have_count(TEST_IMAGES - 24)
    tab_to("What to look for")
    page.keyboard.type("Caption 7")
    page.keyboard.press("Enter")
    box.locator(".hit .thumb").first.wait_for()
    tab_to(": images like it")
    page.keyboard.press("Enter")
    playwright.expect(box.get_by_label("The image asked about")).to_be_focused()
    tab_to("← Back to the search")
    page.keyboard.press("Enter")
    playwright.expect(box.get_by_label("What to look for")).to_be_focused()
    tab_to("Find an image to give")
    page.keyboard.type("river")
    page.keyboard.press("Enter")
    chat.locator(".offer").first.wait_for()
    tab_to("Give ")
    page.keyboard.press("Enter")
    playwright.expect(chat.get_by_label("What you say")).to_be_focused()
    before = chat.locator(".turn").count()
    tab_to("Describe the image")
    page.keyboard.press("Enter")
    playwright.expect(chat.locator(".turn")).to_have_count(before + 2)
    playwright.expect(chat.locator(".turns[aria-busy]")).to_have_count(0)


def put_on(page, theme):
    page.evaluate(f"window.jupyterapp.commands.execute('apputils:change-theme', {{theme: 'JupyterLab {theme}'}})")
    page.wait_for_function(f"document.body.dataset.jpThemeLight === '{str(theme == 'Light').lower()}'")


@pytest.mark.parametrize("theme", ["Light", "Dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_axe_finds_nothing_serious_and_nothing_is_cut(notebook, width, theme):
    page = notebook.page
    gallery, box = gallery_of(page), search_of(page)
    put_on(page, theme)
    page.evaluate("window.jupyterapp.shell.collapseLeft()")
    page.add_style_tag(content="body { height: 100vh }")  # JupyterLab's has none, and axe takes all in it for hidden
    page.set_viewport_size({"width": width, "height": 5000})  # contrast is measured of what is on the screen
    box.get_by_label("What to look for").fill("Caption 7")
    box.locator(".hit .thumb").first.click()
    box.locator(".subject").wait_for()
    shells = page.locator(".jp-OutputArea-output [data-lm-suppress-shortcuts] .shell")
    assert shells.evaluate_all("shells => shells.map(shell => shell.scrollWidth > shell.clientWidth)") == [False] * 3
    found = {}
    for number in range(3):
        shells.nth(number).evaluate("shell => shell.scrollIntoView({ block: 'start' })")
        found |= serious_findings(page, ".jp-OutputArea-output [data-lm-suppress-shortcuts]")
    page.set_viewport_size({"width": width, "height": 1000})
    gallery.locator("article.card .open").first.click()
    gallery.locator("dialog[open] .training figure").first.wait_for()
    found |= serious_findings(page, ".jp-OutputArea-output [data-lm-suppress-shortcuts]")
    notebook.shoot(f"enlarged_{width}_{theme}")
    page.keyboard.press("Escape")
    assert not found


def test_the_widgets_follow_the_dark_theme(notebook):
    page = notebook.page
    put_on(page, "Dark")
    gallery = gallery_of(page)
    gallery.scroll_into_view_if_needed()
    wait_until(
        lambda: gallery.evaluate("shell => getComputedStyle(shell).backgroundColor") == "rgb(17, 22, 28)",
        "the dark theme",
    )
    notebook.shoot("gallery_dark")


def test_nothing_was_complained_of(notebook):
    assert [fault for fault in notebook.faults if "favicon" not in fault] == []


def test_a_killed_kernel_loses_no_mark(notebook, lab, study):
    page = notebook.page
    saved = len(read_marks(paths.MARKS))
    gallery = gallery_of(page)
    gallery.scroll_into_view_if_needed()
    gallery.locator("article.card .open").nth(1).click()
    dialog = gallery.locator("dialog[open]")
    page.keyboard.press("1")
    playwright.expect(dialog.locator(".status")).to_have_text("saved")
    [kernel] = lab.kernel_pids()
    os.kill(kernel, signal.SIGKILL)
    page.keyboard.press("2")  # nobody answers: the mark waits in the browser
    assert len(read_marks(paths.MARKS)) == saved + 1
    wait_until(lambda: lab.kernel_pids() not in ([], [kernel]), "the kernel's restart")
    page.keyboard.press("Escape")
    dismiss = page.locator(".jp-Dialog button")
    if dismiss.count():
        dismiss.last.click()
    run_all(page, until=7)
    wait_until(lambda: len(read_marks(paths.MARKS)) == saved + 2, "the mark that waited")
    assert [mark.kind for mark in read_marks(paths.MARKS)][-2:] == ["good", "wrong object"]
    notebook.shoot("after_the_kill")
