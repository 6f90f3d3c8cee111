"""The runner on small notebooks in a scratch root: parameters, equal bytes, failures."""

import contextlib
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from rsvlm.progress import LOG_LINE
from rsvlm.study.config import CHECKERS, check_section, params_text, read_params, read_section, settings_of
from rsvlm.study.pages import publish
from rsvlm.study.run import RESULT_TAG, without_traces
from rsvlm.study.strip import as_text, stripped

PARAMETERS = "\n".join(
    [
        "seed: int = 0  # seed of everything random",
        "rate: float = 1.0e-3  # learning rate",
        "words: list[str] = []  # printed in order",
        "shares: dict[str, float] = {}  # source -> share",
        "label: str | None = None  # title of the figure",
        "loud: bool = False  # print more",
    ]
)
VALUES = {"seed": 3, "rate": 1, "words": ["a", "no"], "shares": {"ucm": 1}, "label": None, "loud": False}
SECTION = "toy:\n  seed: 3\n  rate: 1e-4\n  words: [a, no]\n  shares: {ucm: 1}\n  label: null\n  loud: false\n"
BODY = """import sys, time
from tqdm import tqdm
for word in tqdm(words):
    print(word, rate, type(seed).__name__, flush=True)
    time.sleep(0.01)
print(f"{time.time()}", file=sys.stderr)"""
FIGURE = """import matplotlib.pyplot as plt
%config InlineBackend.figure_formats = ["png", "svg"]
figure, axes = plt.subplots(figsize=(2, 1))
axes.plot([seed, 1, 2], clip_on=True)
plt.show()"""


def toy(*sources: str, parameters: str = PARAMETERS):
    """A notebook of these code cells after a parameters cell."""
    cells = [
        new_markdown_cell("# Toy", id="title"),
        new_code_cell(parameters, id="params", metadata={"tags": ["parameters"]}),
    ]
    cells += [new_code_cell(source, id=f"cell-{number}") for number, source in enumerate(sources)]
    return new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})


def declared():
    return settings_of("toy", toy(), "notebooks/10_toy.ipynb")


def checked(values: dict):
    return check_section(values, declared(), file="params.yaml", section="toy", notebook="notebooks/10_toy.ipynb")


@pytest.fixture
def run(scratch_root):
    """Runs stage ``toy`` of the scratch root; its standard input for files is a notebook and a params text."""

    def prepare(notebook, section: str) -> None:
        (scratch_root / "build" / "notebooks").mkdir(parents=True, exist_ok=True)
        (scratch_root / "build" / "notebooks" / "10_toy.ipynb").write_text(
            as_text(stripped(notebook)), encoding="utf-8"
        )
        (scratch_root / "params.yaml").write_text(section, encoding="utf-8")

    def run_toy(notebook, section: str = SECTION) -> subprocess.CompletedProcess:
        prepare(notebook, section)
        return subprocess.run(run_toy.command, cwd=scratch_root, capture_output=True, text=True, timeout=120)

    run_toy.prepare, run_toy.command = prepare, [sys.executable, "-m", "rsvlm.study.run", "toy"]
    run_toy.executed = scratch_root / "reports" / "notebooks" / "10_toy.ipynb"
    run_toy.failed = scratch_root / ".rsvlm" / "failed" / "10_toy.ipynb"
    return run_toy


def test_a_rerun_writes_the_same_bytes_and_streams_its_progress(run):
    notebook = toy(BODY, FIGURE, "{'x', 'y', 'z'}")
    first = run(notebook)
    assert first.returncode == 0, first.stderr
    text = run.executed.read_bytes()
    assert "a 0.0001 int" in first.stdout and "100%" in first.stderr, "the cells' output is streamed"

    assert run(notebook).returncode == 0
    assert run.executed.read_bytes() == text
    executed = nbformat.read(run.executed, as_version=4)
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    assert outputs[0].text == "a 0.0001 int\nno 0.0001 int\n", "one piece, without the progress bar"
    told = [cell.source.splitlines() for cell in executed.cells if cell.metadata.get("tags")]
    assert len(told) == 1 and told[0][0] == "seed: int = 3  # [default: 0]", "one cell says what was used"
    assert told[0][1] == "rate: float = 1.0e-4  # [default: 0.001]" and told[0][-1] == "loud: bool = False"
    assert {"image/png", "image/svg+xml"} <= set(outputs[1].data)
    assert not run.failed.exists()


def test_a_failing_cell_keeps_its_copy_apart_and_leaves_no_result(run):
    done = run(toy("print('before')", "open('no/such/file')"))
    assert done.returncode == 1
    assert "No such file" in done.stderr and "cell 5" in done.stderr and str(run.failed) in done.stderr
    assert "before" in run.failed.read_text(encoding="utf-8")
    assert not run.executed.exists()


def test_a_misspelt_key_stops_before_the_first_cell(run, scratch_root):
    done = run(toy("open('ran', 'w')"), SECTION.replace("seed", "sead"))
    assert done.returncode == 1
    assert "'sead'" in done.stderr and "did you mean 'seed'" in done.stderr
    assert "params.yaml" in done.stderr and "notebooks/10_toy.ipynb" in done.stderr
    assert not (scratch_root / "ran").exists()


def test_a_mistake_inside_sources_stops_before_the_first_cell(scratch_root):
    """With the study's own notebook and parameters."""
    project = Path(__file__).resolve().parents[1]
    notebook = scratch_root / "build" / "notebooks" / "10_aggregate_data.ipynb"
    notebook.parent.mkdir(parents=True)
    shutil.copy(project / "notebooks" / notebook.name, notebook)
    text = params_text({"aggregate_data": {"sources": [{"name": "ucm", "format": "csv"}]}}, "")
    (scratch_root / "params.yaml").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "rsvlm.study.run", "aggregate_data"]
    done = subprocess.run(command, cwd=scratch_root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "params.yaml, section 'aggregate_data'" in done.stderr
    assert "sources: ucm: unknown format 'csv'; did you mean 'caption_table'?" in done.stderr
    assert "[aggregate_data]" not in done.stderr and not (scratch_root / ".rsvlm" / "failed").exists(), "no cell ran"


def test_a_stages_own_check_is_found():
    for stage, checker in CHECKERS.items():
        module, function = checker.split(":")
        assert callable(getattr(importlib.import_module(module), function)), stage


def test_a_dead_kernel_is_an_error(run):
    done = run(toy("import os; os._exit(9)"))
    assert done.returncode == 1 and "kernel died" in done.stderr and not run.executed.exists()


def test_a_full_or_closed_disk_is_told_in_one_line_with_what_to_do(run, scratch_root):
    for error, told in (
        ("OSError(28, 'No space left on device', '/a/b.npy')", r"/a/b.npy: the disk is full: .* are free; make room"),
        ("RuntimeError('I/O error: No space left on device (os error 28)')", r"study root: the disk is full"),
        ("OSError(30, 'Read-only file system', '/a/b.npy')", r"/a/b.npy: the disk is read-only; change that"),
    ):
        done = run(toy(f"raise {error}"))
        assert done.returncode == 1 and "Traceback" not in done.stderr
        line = done.stderr.strip().splitlines()[-1]
        assert re.search(
            rf"\[toy\] notebooks/10_toy.ipynb, cell \d: .*{told}.*`dvc repro` again: finished stages are", line
        )


# One run at a time, which ends with the dvc that started it

SLOW = """import os, time
from pathlib import Path
Path("seen.txt").write_text(f"{os.getpid()} {os.getppid()}")
for tick in range(seed):
    Path("next.txt").write_text(f"{seed} {tick}")
    os.replace("next.txt", "out.txt")  # whoever looks never sees half of it
    time.sleep(0.05)"""
FOR_LONG, SHORT = SECTION.replace("seed: 3", "seed: 100000"), SECTION.replace("seed: 3", "seed: 2")
PIPELINE = """
stages:
  toy:
    cmd: COMMAND
    deps: [build/notebooks/10_toy.ipynb]
    params: [toy]
    outs: [out.txt]
"""


def wait_for(what, seconds: float = 120.0):
    """What ``what()`` returns as soon as it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = what()
        if answer:
            return answer
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {what}")


def gone(pid: int) -> bool:
    """Whether a process has ended; a zombie waits for its new parent only."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def kernel_and_runner(root: Path) -> list[int]:
    """The processes of a slow stage as soon as its notebook works."""
    wait_for((root / "out.txt").is_file)
    return [int(pid) for pid in (root / "seen.txt").read_text().split()]


@pytest.mark.parametrize(
    ("ended_by", "command"),
    [
        (signal.SIGKILL, "python -m rsvlm.study.run toy"),
        (signal.SIGTERM, "python -m rsvlm.study.run toy"),
        (signal.SIGKILL, "python -m rsvlm.study.run toy && true"),  # the shell stays between
    ],
)
def test_a_stage_ends_with_the_dvc_that_started_it(run, scratch_root, ended_by, command):
    run.prepare(toy(SLOW), FOR_LONG)
    (scratch_root / "dvc.yaml").write_text(PIPELINE.replace("COMMAND", command))
    (scratch_root / ".dvc").mkdir()
    (scratch_root / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    repro = [sys.executable, "-m", "dvc", "repro"]
    settings = os.environ | {"SHELL": "/bin/sh"}
    with subprocess.Popen(
        repro, cwd=scratch_root, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as dvc:
        pids = kernel_and_runner(scratch_root)
        dvc.send_signal(ended_by)
    try:
        wait_for(lambda: all(map(gone, pids)))
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    run.prepare(toy(SLOW), SHORT)  # and the next run is kept from nothing, nor disturbed
    done = subprocess.run(repro, cwd=scratch_root, env=settings, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (scratch_root / "out.txt").read_text() == "2 1"


def test_a_stage_whose_dvc_was_killed_while_it_started_ends_at_once():
    code = (  # its parent ends before it looks
        "import os, time\n"
        "parent = os.getpid()\n"
        "if os.fork(): os._exit(0)\n"
        "while os.getppid() == parent: time.sleep(0.01)\n"
        "if os.getppid() != 1: raise SystemExit('another reaper')\n"
        "from rsvlm.study.processes import end_with_dvc; end_with_dvc(); print('goes on')"
    )
    settings = os.environ | {"DVC_STAGE": "toy"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=settings, timeout=60)
    if "another reaper" in done.stderr:
        pytest.skip("here orphans do not go to process 1")
    assert done.stdout == "" == done.stderr


def test_a_second_run_is_refused_at_once_and_a_killed_one_bars_nobody(run, scratch_root):
    run.prepare(toy(SLOW), FOR_LONG)
    first = subprocess.Popen(run.command, cwd=scratch_root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        kernel, runner = kernel_and_runner(scratch_root)
        assert (
            scratch_root / ".rsvlm" / "locks" / "toy.json"
        ).is_file()  # the kernel's ports: not in the system's /tmp
        second = run(toy(SLOW), SHORT)
        assert second.returncode == 1 and f"(process {first.pid}, since " in second.stderr and "[toy]" in second.stderr
        assert not gone(kernel) and runner == first.pid
        assert (scratch_root / "out.txt").read_text().startswith("100000 "), "the first goes on"
    finally:
        first.kill()
        first.wait()
    wait_for(lambda: gone(kernel))
    third = run(toy(SLOW), SHORT)
    assert third.returncode == 0, third.stderr
    assert (scratch_root / "out.txt").read_text() == "2 1"
    assert list((scratch_root / ".rsvlm" / "locks").iterdir()) == [], "nor does it leave its connection file"


def test_only_the_stages_own_kernel_is_the_study(run, scratch_root):
    ask = "from rsvlm.study import paths; print(repr(paths.running_stage))"
    child = f"import subprocess, sys; print(subprocess.check_output([sys.executable, '-c', {ask!r}], text=True))"
    done = run(toy(ask, child))
    assert done.returncode == 0, done.stderr
    outputs = [output for cell in nbformat.read(run.executed, as_version=4).cells for output in cell.get("outputs", [])]
    assert [output.text.strip() for output in outputs] == ["'toy'", "None"]


def test_values_arrive_with_their_types():
    values = checked(VALUES)
    assert values == {**VALUES, "rate": 1.0, "shares": {"ucm": 1.0}}
    assert isinstance(values["rate"], float) and isinstance(values["shares"]["ucm"], float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": True}, "'seed' must be int, but is True (bool)"),
        ({"seed": 3.0}, "'seed' must be int, but is 3.0 (float)"),
        ({"rate": "1e-4"}, "'rate' must be float, but is '1e-4' (str)"),
        ({"rate": float("nan")}, "'rate' must be float, but is nan (float)"),
        ({"words": "a"}, "'words' must be list[str], but is 'a' (str)"),
        ({"words": [1]}, "'words' must be list[str], but is [1] (list)"),
        ({"shares": {"ucm": "all"}}, "'shares' must be dict[str, float]"),
        ({"label": 1}, "'label' must be str | None, but is 1 (int)"),
        ({"loud": 0}, "'loud' must be bool, but is 0 (int)"),
        ({"lable": "x"}, "unknown name 'lable'; did you mean 'label'?"),
    ],
)
def test_a_value_that_does_not_fit_is_named(change, message):
    with pytest.raises(ValueError, match="params.yaml, section 'toy'") as caught:
        checked({**VALUES, **change})
    assert message in str(caught.value)


def test_every_problem_is_listed_at_once():
    values = {key: value for key, value in VALUES.items() if key != "loud"}
    with pytest.raises(ValueError) as caught:
        checked({**values, "seed": "x", "lod": True})
    message = str(caught.value)
    assert "'loud' is missing" in message and "add `loud: false`" in message
    assert "did you mean 'loud'?" in message and "'seed' must be int" in message


def test_the_defaults_are_checked_too():
    with pytest.raises(ValueError, match="n: a default does not fit: 'seed' must be int"):
        settings_of("toy", toy(parameters="seed: int = 'x'"), "n")
    with pytest.raises(ValueError, match="not `name: type = literal`"):
        settings_of("toy", toy(parameters="seed = 1"), "n")
    with pytest.raises(ValueError, match="computed"):
        settings_of("toy", toy(parameters="seed: int = 1 + len('x')"), "n")
    with pytest.raises(ValueError, match="exactly one cell tagged"):
        settings_of("toy", new_notebook(), "n")
    with pytest.raises(ValueError, match="type of 'seed'.*'set' is not defined; use int, float"):
        settings_of("toy", toy(parameters="seed: set[int] = 1"), "n")


def test_yaml_is_version_1_2(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("toy: {a: 1e-4, b: 3e-05, c: no, d: 16, e: 1.0e-4}\n")
    assert read_section(path, "toy") == {"a": 1e-4, "b": 3e-5, "c": "no", "d": 16, "e": 1e-4}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("toy: {a: 1", "not valid YAML"),
        ("toy: {a: 1, a: 2}", "duplicate key"),
        ("toy: 3", "must be sections"),
        ("tou: {a: 1}", "no section 'toy'; did you mean 'tou'?"),
    ],
)
def test_a_bad_params_file_is_named(tmp_path, text, message):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        read_section(path, "toy")
    assert str(path) in str(caught.value) and message in str(caught.value)


def test_a_missing_params_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="params.yaml"):
        read_params(tmp_path / "params.yaml")


def test_stripping_forgets_what_jupyterlab_leaves():
    notebook = toy("1 + 1")
    clean = as_text(stripped(notebook))
    notebook.cells[2].outputs = [nbformat.v4.new_output("execute_result", {"text/plain": "2"}, execution_count=7)]
    notebook.cells[2].execution_count = 7
    notebook.cells[2].metadata.update({"scrolled": True, "execution": {"iopub.execute_input": "2024"}})
    notebook.metadata.update({"language_info": {"name": "python", "version": "3.99"}, "widgets": {}})
    assert as_text(stripped(notebook)) == clean
    assert '"parameters"' in clean and '"params"' in clean, "tags and cell ids stay"


def test_the_result_stands_below_the_title_and_the_log_is_folded():
    notebook = toy("work()", "result()")
    work, result = notebook.cells[2:]
    told = [nbformat.v4.new_output("display_data", {LOG_LINE: text}) for text in ("epoch 1: <50 %>", "epoch 2: 60 %")]
    work.outputs = [nbformat.v4.new_output("stream", name="stderr", text="\rtrain:  10%|#"), *told]
    result.outputs = [nbformat.v4.new_output("display_data", {"text/plain": "it rose"})]
    result.metadata["tags"] = [RESULT_TAG]
    notebook.cells.insert(3, new_markdown_cell("What came out.", metadata={"tags": [RESULT_TAG]}))
    executed = without_traces(notebook, "seed: int = 3")
    assert [cell.id for cell in executed.cells] == ["title", "cell-1", "params", "cell-0"]
    assert executed.cells[1].metadata["jupyter"]["source_hidden"] and executed.cells[1].execution_count == 3
    (log,) = executed.cells[3].outputs
    assert log.data["text/plain"] == "epoch 1: <50 %>\nepoch 2: 60 %"
    assert "Log, 2 lines" in log.data["text/html"] and "&lt;50 %&gt;" in log.data["text/html"]


def test_executed_notebooks_become_pages_that_ask_for_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no executed notebook"):
        publish(tmp_path)
    for number, name in (("10", "one"), ("20", "two")):
        notebook = toy("1 + 1", "result()")
        notebook.cells[0].source = f"# The <b>{name}</b>\n\n**Question.** How?\n\n**Answer.** So."
        notebook.cells[2].outputs = [nbformat.v4.new_output("display_data", {"text/html": "<script>alert(1)</script>"})]
        notebook.cells[3].outputs = [nbformat.v4.new_output("display_data", {"text/plain": f"{name} <rose>"})]
        notebook.cells[3].metadata["tags"] = [RESULT_TAG]
        (tmp_path / f"{number}_{name}.ipynb").write_text(as_text(notebook), encoding="utf-8")
    index = publish(tmp_path).read_text(encoding="utf-8")
    assert 'href="html/20_two.html"' in index and "The &lt;b&gt;one&lt;/b&gt;" in index and "two &lt;rose&gt;" in index
    page = (tmp_path / "html" / "10_one.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in page and "script-src" not in page, "no script of an output runs"
    assert not re.search(r"(src|href)=\"(https?:)?//", page) and "<summary>Parameters</summary>" in page
    assert 'href="20_two.html"' in page and page.count("<details") == 2, "the result's code is not shown"
