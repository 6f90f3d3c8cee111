"""A real Chromium, shared by the tests of pages and of JupyterLab. Without playwright or a Chromium they are skipped.

Screenshots lie in build/screenshots afterwards, to be looked at.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed (`make test` does it where there is a Chromium)"
)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_a_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine: the pages were not tried in a browser"
)
PROJECT = Path(__file__).resolve().parents[1]
SCREENSHOTS = PROJECT / "build" / "screenshots"
SECONDS = float(os.environ.get("RSVLM_BROWSER_SECONDS", "60"))  # longest wait for one thing; busy machines need more


def serious_findings(page, context=None) -> dict[str, list[str]]:
    """rule -> what its first elements are told, of every serious or critical finding of axe-core.

    Args:
        context: a selector of what is looked at; None: the whole page.
    """
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core is not installed")
    return {
        rule["id"]: [f"{node['html'][:200]} {node['failureSummary']}" for node in rule["nodes"][:3]]
        for rule in axe.Axe().run(page, context).response["violations"]
        if rule["impact"] in ("serious", "critical")
    }


@contextmanager
def open_browser() -> Iterator[object]:
    """A Chromium, closed afterwards."""
    playwright.expect.set_options(timeout=1000 * SECONDS)
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()
