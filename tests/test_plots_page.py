"""The page of `dvc plots show`: DVC draws into it, and a browser without a network shows the curves."""

import importlib.util
import re
import shutil
from pathlib import Path

import pytest
from dvc.cli import main as dvc_main

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def drawn(tmp_path, monkeypatch) -> Path:
    """The page that `dvc plots show` makes of a curve, with this project's settings."""
    (tmp_path / ".dvc").mkdir()
    for name in ("config", "plots.html"):
        shutil.copy(ROOT / ".dvc" / name, tmp_path / ".dvc")
    (tmp_path / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n")
    (tmp_path / "curve.csv").write_text("step,loss\n" + "".join(f"{step},{1 / (1 + step)}\n" for step in range(20)))
    (tmp_path / "dvc.yaml").write_text("plots:\n  - curve: {x: step, y: {curve.csv: loss}, template: simple}\n")
    monkeypatch.chdir(tmp_path)
    assert dvc_main(["plots", "show", "-q"]) == 0
    return tmp_path / "dvc_plots" / "index.html"


def test_the_page_brings_all_that_it_runs(drawn):
    text = drawn.read_text(encoding="utf-8")
    assert "jsdelivr" not in text
    assert not re.search(r"<(script|link)[^>]*\s(src|href)=", text)
    assert "{plot_divs}" not in text
    assert "default-src 'none'" in text
    spec = importlib.util.spec_from_file_location("plots_page", ROOT / "scripts" / "plots_page.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for name, (version, _) in script.PACKAGES.items():
        assert f"<!-- {name} {version}," in text, "run `python scripts/plots_page.py`"
    assert text.count("Redistribution and use in source and binary forms") == len(script.PACKAGES)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: the page was not tried in a browser")
def test_curves_are_drawn_without_a_network(drawn):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    asked, faults = [], []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_context(offline=True, viewport={"width": 390, "height": 800}).new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda line: faults.append(line.text) if line.type == "error" else None)
        page.goto(drawn.as_uri())
        page.wait_for_selector("canvas.marks")
        colours = page.locator("canvas.marks").evaluate(
            "canvas => new Set(new Uint32Array("
            "canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size"
        )
        browser.close()
    assert colours > 10  # axes, letters and a curve
    assert faults == []
    assert asked == [drawn.as_uri()]
