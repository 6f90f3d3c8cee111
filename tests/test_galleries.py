"""The galleries: pages that stand alone, show what is there, and let no text of the data become code."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from browse_case import NOTEBOOKS
from PIL import Image

from rsvlm.data.table import save_table
from rsvlm.files import fingerprint_values, write_json, write_json_lines
from rsvlm.study import paths
from rsvlm.study.paths import finished_study
from rsvlm.viewing import caption_gallery, retrieval_gallery
from rsvlm.viewing.page import choose_sample, format_score, make_thumbnail
from rsvlm.viewing.records import read_corpus_scores, read_entries
from rsvlm.viewing.retrieval_gallery import rank_queries, read_recalls

SCRIPT = "<script>document.title='taken'</script>"
NASTY = (
    "</script><script>document.title='taken'</script>",
    "<img src=x onerror=\"document.title='taken'\">",
    "{{ 7 * 7 }} {% raw %} & 'quotes' \"double\"",
    "line\u2028separator \u202eright to left",
)
NAME = "a\"b'<i>&c.png"


@dataclass
class Page(HTMLParser):
    """What a browser would make of a page: its tags, its scripts, the text that a reader sees."""

    tags: list = field(default_factory=list)
    text: str = ""
    scripts: list = field(default_factory=list)
    styles: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self._open = None

    @classmethod
    def read(cls, path: Path) -> "Page":
        page = cls()
        page.feed(path.read_text(encoding="utf-8"))
        return page

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._open = tag
        if tag == "script":
            self.scripts.append([dict(attributes), ""])

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, data):
        if self._open == "script":
            self.scripts[-1][1] += data
        elif self._open == "style":
            self.styles += data
        else:
            self.text += data

    def all(self, tag, kind=None):
        return [
            own for name, own in self.tags if name == tag and (kind is None or kind in (own.get("class") or "").split())
        ]


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """An empty project's root, for this process."""
    monkeypatch.setattr(paths, "find_root", lambda: tmp_path)
    monkeypatch.setenv("RSVLM_CACHE", str(paths.CACHE))
    return tmp_path


def make_study(
    root: Path, images: int = 12, runs=("captioner", "consensus", "nearest"), scored: bool = True, noise: bool = False
):
    """A small study: coloured pictures, two sources, captions of which some want to be code."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(images):
        name = NAME if number == 1 else f"{number}.png"
        path = root / "pictures" / name.replace("/", "_")
        path.parent.mkdir(exist_ok=True)
        pixels = random.integers(0, 255, (96, 96, 3)) if noise else np.full((40, 60, 3), (number * 5 % 255, 90, 120))
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        captions = ["A river runs .", "A river runs .", f"Field {number} with trees"] + (
            [NASTY[number]] if number < len(NASTY) else []
        )
        source = "alpha" if number % 3 else "beta<b>"
        rows.append(
            {
                "image_id": f"{source}/{name}",
                "source": source,
                "split": "test",
                "path": str(path),
                "captions": captions,
                "label": [None, "river", SCRIPT][number % 3],
            }  # fmt: skip
        )
    save_table(rows, paths.IMAGE_TABLE)
    scores = []
    for run in runs:
        said = [{"image_id": row["image_id"], "caption": {2: NASTY[0], 3: ""}.get(number, "A River with $boats$")}
                for number, row in enumerate(rows)]  # fmt: skip
        write_json_lines(paths.GENERATED / f"{run}.jsonl", said)
        for number, row in enumerate(rows):
            for references in ("released", "distinct"):
                cider = number / 2 + (run == "consensus") + (references == "distinct")
                scores.append(
                    [run, row["source"], "test", row["image_id"], references, number % 2 == 0, cider, 0.3, None]
                )
    if scored:
        columns = ["run", "source", "split", "image_id", "references", "reference_set_seen", "CIDEr", "METEOR", "SPICE"]
        paths.SCORES.mkdir(parents=True)
        pd.DataFrame(scores, columns=columns).to_csv(paths.SCORES / "captions.csv", index=False)
        spice = {"value": None, "low": None, "high": None, "n": images, "reason": "no jars"}
        corpus = {"CIDEr": {"value": 1.25, "low": 1.0, "high": 1.5, "n": images}, "SPICE": spice}
        content = {run: {"alpha": {"released": corpus, "distinct": corpus, "text": {"copied": 0.5}}} for run in runs}
        paired = {"alpha": {"captioner - nearest": {"released": {"value": 0.1}}}}
        write_json(paths.METRICS / "score_captions.json", content | {"paired": paired, "protocol": {"split": "test"}})
    return rows


def make_vectors(rows: list[dict]) -> None:
    """A dual encoder that knows each image's first caption and puts the odd images beside their right place."""
    texts = sorted({caption for row in rows for caption in row["captions"]})
    ids = [row["image_id"] for row in sorted(rows, key=lambda row: (row["source"], row["split"], row["image_id"]))]
    row_of = {row["image_id"]: row for row in rows}
    images = np.stack(
        [sum(np.eye(len(texts))[texts.index(caption)] for caption in set(row_of[i]["captions"])) for i in ids]
    )
    images[1::2, 0] += 3  # pulls them towards another caption
    images = (images / np.linalg.norm(images, axis=1, keepdims=True)).astype(np.float32)
    paths.FEATURES.mkdir(parents=True)
    np.save(paths.FEATURES / "pooled.npy", images[:, None].astype(np.float16))
    np.save(paths.FEATURES / "image_embeddings.npy", images)
    np.save(paths.FEATURES / "text_embeddings.npy", np.eye(len(texts), dtype=np.float32))
    write_json(paths.FEATURES / "texts.json", texts)
    dims = {"pooled": images.shape[1], "embedding": images.shape[1]}
    meta = {"image_ids": ids, "image_list_fingerprint": fingerprint_values(ids), "views": 1, "grid": 0, "dims": dims}
    write_json(paths.FEATURES / "meta.json", meta | {"encoder_fingerprint": "0"})


def check_stands_alone(path: Path) -> Page:
    """The page, after checks that it needs nothing else and runs only its own script."""
    page = Page.read(path)
    assert [own.get("type") for own, _ in page.scripts] == ["application/json", None]
    policy = next(own["content"] for own in page.all("meta") if own.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.scripts[1][1].encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy
    for tag, own in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "i2")
        assert all(not name.startswith("on") for name in own), own
        assert own.get("src", "data:").startswith("data:") and own.get("href", "#").startswith("#")
    for address in re.findall(r"url\(([^)]*)\)", page.styles):
        assert address.startswith("data:image/jpeg;base64,")
    return page


def read_data(path: Path) -> dict:
    """What a caption page's script is given."""
    return json.loads(Page.read(path).scripts[0][1])


def words_of(pieces: list) -> str:
    return "".join(piece if isinstance(piece, str) else piece[0] for piece in pieces)


def test_caption_page_stands_alone_and_texts_stay_texts(root):
    make_study(root)
    written = caption_gallery.write_caption_gallery(
        paths.GALLERIES / "captions.html", finished_study(), baselines=["consensus", "nearest", "shuffled"]
    )
    assert written["images"] == written["images_of_split"] == 12 and written["runs_absent"] == ["shuffled"]
    page = check_stands_alone(paths.GALLERIES / "captions.html")
    assert written["bytes"] == (paths.GALLERIES / "captions.html").stat().st_size
    assert "Not made in this study: shuffled" in page.text
    data = read_data(paths.GALLERIES / "captions.html")
    assert len(data["items"]) == 12 and data["setting"]["baseline"] == "consensus" and data["setting"]["knowsSeen"]
    texts = [text for item in data["items"] for text, _ in item["references"]]
    texts += [words_of(pieces) for item in data["items"] for pieces in item["said"].values()]
    assert {*NASTY, "", "A River with $boats$"} <= set(texts)  # read back with each character
    assert data["setting"]["labels"] == [SCRIPT, "river"] and NAME in {item["name"] for item in data["items"]}
    assert all(item["picture"].startswith("data:image/jpeg;base64,") for item in data["items"])
    assert all(item["near"] == [] for item in data["items"])  # no features were made


def test_caption_page_shows_the_nearest_training_images(root):
    rows = make_study(root, images=4)
    training = [
        row | {"image_id": f"t/{number}", "split": "train", "captions": ["A river with boats"]}
        for number, row in enumerate(rows)
    ]
    save_table(rows + training, paths.IMAGE_TABLE)
    make_vectors(rows + training)
    caption_gallery.write_caption_gallery(paths.GALLERIES / "captions.html", finished_study(), neighbours=2)
    data = read_data(paths.GALLERIES / "captions.html")
    for item in data["items"]:
        cosines = [cosine for _, cosine, _ in item["near"]]
        assert len(item["near"]) == 2 and cosines == sorted(cosines, reverse=True)
        for name, _, copied in item["near"]:
            assert data["training"][name]["picture"].startswith("data:image/jpeg")
            own = words_of(item["said"]["captioner"])
            assert ("captioner" in copied) == (own == "A River with $boats$")  # case and punctuation apart
    caption_gallery.write_caption_gallery(paths.GALLERIES / "captions.html", finished_study(), neighbours=0)
    assert read_data(paths.GALLERIES / "captions.html")["training"] == {}


def test_caption_page_has_equal_bytes_on_a_rerun(root):
    make_study(root)
    pages = []
    for name in ("one.html", "two.html"):
        caption_gallery.write_caption_gallery(root / name, finished_study(), images=5, seed=3)
        pages.append((root / name).read_bytes())
    assert pages[0] == pages[1]
    caption_gallery.write_caption_gallery(root / "three.html", finished_study(), images=5, seed=4)
    assert (root / "three.html").read_bytes() != pages[0]


@pytest.mark.parametrize("images", [1, 3])
def test_caption_page_without_scores_baselines_and_metrics(root, images):
    make_study(root, images=images, runs=("captioner",), scored=False)
    written = caption_gallery.write_caption_gallery(paths.GALLERIES / "captions.html", finished_study())
    page = check_stands_alone(paths.GALLERIES / "captions.html")
    setting = read_data(paths.GALLERIES / "captions.html")["setting"]
    assert written["runs"] == ["captioner"] and setting["images"] == images and not page.all("table")
    assert setting["metrics"] == setting["bars"] == [] and setting["baseline"] is None
    preview = caption_gallery.show_caption_preview(read_entries(finished_study())[0], run="captioner", metric="CIDEr")
    assert preview.data.count("<img ") == 2 * images and "<i2>" not in preview.data and SCRIPT not in preview.data


def test_caption_page_shows_scores_of_the_wanted_references(root):
    make_study(root)
    caption_gallery.write_caption_gallery(paths.GALLERIES / "captions.html", finished_study(), references="distinct")
    page, data = Page.read(paths.GALLERIES / "captions.html"), read_data(paths.GALLERIES / "captions.html")
    item = next(item for item in data["items"] if item["id"].endswith("/4.png"))
    assert item["scores"]["captioner"] == {"CIDEr": 3.0, "METEOR": 0.3}  # null SPICE is left out
    assert item["scores"]["consensus"]["CIDEr"] == 4.0 and item["seen"] is True
    assert data["setting"]["tops"] == {"CIDEr": 8.0, "METEOR": 1.0}  # the highest is 11 / 2 + 2
    assert "1.250" in page.text and "1.00–1.50" in page.text and "SPICE" not in page.text
    assert {row["run"] for row in read_corpus_scores(finished_study(), "distinct")} == {
        "captioner",
        "consensus",
        "nearest",
    }


def test_page_stays_within_its_size(root):
    make_study(root, images=30, noise=True)
    big = caption_gallery.write_caption_gallery(paths.GALLERIES / "captions.html", finished_study(), page_megabytes=5.0)
    small = caption_gallery.write_caption_gallery(
        paths.GALLERIES / "captions.html", finished_study(), page_megabytes=0.25
    )
    assert small["bytes"] <= 250_000 < big["bytes"] <= 5_000_000


def test_many_images_keep_best_worst_middle_and_a_fair_sample(root):
    make_study(root, images=60)
    caption_gallery.write_caption_gallery(paths.GALLERIES / "captions.html", finished_study(), images=24)
    items = read_data(paths.GALLERIES / "captions.html")["items"]
    assert len(items) == 24
    scores = {item["scores"]["captioner"]["CIDEr"] for item in items}
    assert scores >= {0.0, 0.5, 1.0, 28.5, 29.0, 29.5, 14.5, 15.0}
    drawn = choose_sample(60, [], 24, seed=0).positions
    rows = [int(item["scores"]["captioner"]["CIDEr"] * 2) for item in items]
    order = {entry.image_id: place for place, entry in enumerate(read_entries(finished_study())[0])}
    assert [order[item["id"]] for item in items][:15] == drawn[:15] and len(set(rows)) == 24


def test_sample_of_everything_and_of_unscored_things():
    everything = choose_sample(5, [4, 3, 2, 1, 0], 10, seed=0)
    assert sorted(everything.positions) == [0, 1, 2, 3, 4] and everything.drawn == 5
    unscored = choose_sample(100, [], 16, seed=0)
    assert len(set(unscored.positions)) == 16 == unscored.drawn
    longer = choose_sample(100, list(range(100)), 40, seed=0)
    assert longer.positions[: unscored.drawn] == unscored.positions  # the same draw, gone on with
    with pytest.raises(ValueError, match="at least 1"):
        choose_sample(5, [], 0, seed=0)


def test_a_missing_score_is_a_dash():
    assert format_score(None) == format_score(float("nan")) == "–" and format_score(1.255, 1) == "1.3"


def test_errors_name_the_file_and_the_remedy(root):
    rows = make_study(root)
    with pytest.raises(FileNotFoundError, match=r"other\.jsonl.*generate_captions.*captioner, consensus, nearest"):
        caption_gallery.write_caption_gallery(paths.GALLERIES / "captions.html", finished_study(), run="other")
    with pytest.raises(ValueError, match="'gold'.*released"):
        caption_gallery.write_caption_gallery(paths.GALLERIES / "captions.html", finished_study(), references="gold")
    with pytest.raises(ValueError, match="no split 'val'"):
        caption_gallery.write_caption_gallery(paths.GALLERIES / "captions.html", finished_study(), split="val")
    write_json_lines(paths.GENERATED / "captioner.jsonl", [{"image_id": rows[0]["image_id"], "caption": "x"}])
    with pytest.raises(ValueError, match="no caption for"):
        caption_gallery.write_caption_gallery(paths.GALLERIES / "captions.html", finished_study())
    with pytest.raises(ValueError, match="at least 16"):
        make_thumbnail(rows[0]["path"], pixels=4)
    assert not paths.GALLERIES.exists()


def test_an_unreadable_picture_stops_the_page(root):
    rows = make_study(root)
    Path(rows[5]["path"]).write_bytes(b"")
    with pytest.raises(ValueError, match=r"5\.png.*zero bytes"):
        caption_gallery.write_caption_gallery(paths.GALLERIES / "captions.html", finished_study())
    assert not (paths.GALLERIES / "captions.html").exists()


def test_searches_find_the_right_ones_and_their_places(root):
    make_vectors(make_study(root, images=9))
    by_caption, by_image = retrieval_gallery.read_searches(finished_study(), results=2)
    assert {query.source for query in by_caption} == {"alpha", "beta<b>"}
    river = [query for query in by_caption if query.name == "A river runs ."]
    assert [query.right_answers for query in river] == [query.candidates for query in river] == [6, 3]
    assert all(query.rank == 1 for query in river)
    for query in by_caption + by_image:
        assert [hit.place for hit in query.hits[:2]] == [1, 2] and 2 <= len(query.hits) <= 3
        assert query.hits[-1].right or query.rank <= 2
        scores = [hit.score for hit in query.hits]
        assert scores == sorted(scores, reverse=True)
        first = next(hit for hit in query.hits if hit.right)
        assert (first.place, first.score) == (query.rank, query.score)
    ranked = [by_image[i].rank for i in rank_queries(by_image)]
    assert ranked == sorted(ranked) and ranked[-1] > 1
    preview = retrieval_gallery.show_search_preview(by_caption, finished_study().read_table(), count=2).data
    assert preview.count("outline:") >= 4 and "The 2 worst searches" in preview and "<script" not in preview
    summary = retrieval_gallery.summarise_places(by_caption, by_image)
    assert list(summary["searches"]) == [len(by_caption), 9] and summary["in first 10"].max() <= 100


def test_retrieval_page_stands_alone_and_texts_stay_texts(root):
    make_vectors(make_study(root))
    written = retrieval_gallery.write_retrieval_gallery(
        paths.GALLERIES / "retrieval.html", finished_study(), images=50, results=3
    )
    page = check_stands_alone(paths.GALLERIES / "retrieval.html")
    assert len(page.all("article", "card")) == written["captions_searched"] + written["images_searched"]
    assert all(text in page.text for text in NASTY) and not page.all("table")
    assert written["thumbnails"] == 12 == page.styles.count("data:image/jpeg")
    assert len(page.all("li", "right")) >= 12 and all(own.get("aria-label") for own in page.all("button", "thumb"))
    again = (paths.GALLERIES / "retrieval.html").read_bytes()
    retrieval_gallery.write_retrieval_gallery(
        paths.GALLERIES / "retrieval.html", finished_study(), images=50, results=3
    )
    assert (paths.GALLERIES / "retrieval.html").read_bytes() == again


def test_retrieval_page_shows_recalls_with_the_ceiling(root):
    make_vectors(make_study(root))
    entry = {
        "mean_recall": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 12},
        "text_to_image_recall_at_1": {"value": 0.125},
    }
    kinds = {
        "by_image": entry,
        "by_text": {"mean_recall": {"value": 0.75}},
        "ceiling": {"mean_recall": {"value": 0.704}},
    }
    write_json(paths.METRICS / "score_retrieval.json", {"dual_encoder": {"alpha": kinds}, "protocol": {}})
    assert [row["method"] for row in read_recalls(finished_study())] == ["dual_encoder", "ceiling"]
    retrieval_gallery.write_retrieval_gallery(paths.GALLERIES / "retrieval.html", finished_study(), images=4)
    text = Page.read(paths.GALLERIES / "retrieval.html").text
    assert all(number in text for number in ("50.0", "40.0–60.0", "12.5", "75.0", "70.4", "100.0"))
    with pytest.raises(ValueError, match=r"score_retrieval\.json.*run the stage score_retrieval"):
        retrieval_gallery.write_retrieval_gallery(
            paths.GALLERIES / "retrieval.html", finished_study(), method="combined"
        )
    with pytest.raises(ValueError, match="'clip'.*dual_encoder, ret, combined"):
        retrieval_gallery.write_retrieval_gallery(paths.GALLERIES / "retrieval.html", finished_study(), method="clip")


def test_combined_search_uses_the_weights_that_were_chosen(root):
    rows = make_study(root)
    extra = [
        row | {"image_id": f"t/{n}", "split": "train", "captions": ["A river runs ."]} for n, row in enumerate(rows[:3])
    ]
    save_table(rows + extra, paths.IMAGE_TABLE)
    make_vectors(rows + extra)
    weights = {"dual_encoder": 1.0, "ret": 0.0, "neighbours": 0.5, "hubness": 0.0}
    chosen = {"weights": weights, "neighbours": 2, "temperature": 0.05, "hubness_neighbours": 3}
    write_json(paths.METRICS / "score_retrieval.json", {"protocol": {"combined": chosen}})
    paths.RET_EMBEDDINGS.mkdir()
    names = {"image": "image_ids", "text": "texts"}
    for kind, listed in names.items():
        write_json(paths.RET_EMBEDDINGS / f"{listed}.json", ["a"])
        np.save(paths.RET_EMBEDDINGS / f"{kind}.npy", np.ones((1, 2), dtype=np.float32))
    combined, _ = retrieval_gallery.read_searches(finished_study(), "combined")
    alone, _ = retrieval_gallery.read_searches(finished_study(), "dual_encoder")
    river = [next(query for query in found if query.name == "A river runs .") for found in (combined, alone)]
    assert river[0].score > river[1].score  # the training neighbours' captions add to it


def test_one_image_is_enough_for_retrieval(root):
    make_vectors(make_study(root, images=1))
    written = retrieval_gallery.write_retrieval_gallery(paths.GALLERIES / "retrieval.html", finished_study())
    assert written["images_searched"] == written["thumbnails"] == 1
    check_stands_alone(paths.GALLERIES / "retrieval.html")


@pytest.mark.parametrize("name", ["85_caption_gallery", "86_retrieval_gallery"])
def test_gallery_notebooks_run(root, name):
    make_vectors(make_study(root))
    shutil.copy(NOTEBOOKS.parent / "dvc.yaml", root)
    write_json(paths.METRICS / "score_retrieval.json", {"protocol": {}})
    paths.RET_EMBEDDINGS.mkdir(exist_ok=True)  # a notebook run by hand asks for what its stage depends on
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    scope: dict = {}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None
            exec(compile(cell.source, name, "exec"), scope)
            scope["method"] = "dual_encoder"  # nothing was combined here
    assert len(list((root / "scratch" / name / "reports" / "galleries").glob("*.html"))) == 1
    assert not list(paths.GALLERIES.glob("*.html")), "run by hand, it leaves the study's page"


def test_pages_work_in_a_browser(root, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium on this machine: the pages' scripts were not run")
    make_vectors(make_study(root))
    caption_gallery.write_caption_gallery(paths.GALLERIES / "captions.html", finished_study())
    retrieval_gallery.write_retrieval_gallery(paths.GALLERIES / "retrieval.html", finished_study(), images=6)
    for name, count in (("captions.html", "12 of 12 images"), ("retrieval.html", "captions drawn at random of")):
        off = ("gpu", "background-networking", "component-update", "sync", "quic")
        quiet = ["headless", "no-sandbox", "no-first-run", *(f"disable-{what}" for what in off)]
        options = [*quiet, f"user-data-dir={tmp_path / 'profile'}", "dump-dom"]
        command = [browser, *(f"--{option}" for option in options), (paths.GALLERIES / name).as_uri()]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert count in shown.stdout and 'class="scripted"' in shown.stdout, shown.stderr[-2000:]
        assert "<title>taken" not in shown.stdout
