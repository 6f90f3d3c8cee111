"""The runner on small notebooks in a scratch root: parameters, equal bytes, failures."""

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from rsvlm.params import CHECKERS, check_section, declared_parameters, fits, read_params, read_section
from rsvlm.strip import as_text, stripped

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
    return declared_parameters(toy(), "notebooks/10_toy.ipynb")


def checked(values: dict):
    return check_section(values, declared(), file="params.yaml", section="toy", notebook="notebooks/10_toy.ipynb")


@pytest.fixture
def run(scratch_root):
    """Runs stage ``toy`` of the scratch root; its standard input for files is a notebook and a params text."""

    def run_toy(notebook, section: str = SECTION) -> subprocess.CompletedProcess:
        (scratch_root / "build" / "notebooks").mkdir(parents=True, exist_ok=True)
        (scratch_root / "build" / "notebooks" / "10_toy.ipynb").write_text(
            as_text(stripped(notebook)), encoding="utf-8"
        )
        (scratch_root / "params.yaml").write_text(section, encoding="utf-8")
        command = [sys.executable, "-m", "rsvlm.run_notebook", "toy"]
        return subprocess.run(command, cwd=scratch_root, capture_output=True, text=True, timeout=120)

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
    outputs = [output for cell in nbformat.read(run.executed, as_version=4).cells for output in cell.get("outputs", [])]
    assert outputs[0].text == "a 0.0001 int\nno 0.0001 int\n", "one piece, without the progress bar"
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
    text = (project / "params" / "ucm.yaml").read_text(encoding="utf-8")
    (scratch_root / "params.yaml").write_text(text.replace("format: karpathy", "format: csv"), encoding="utf-8")
    command = [sys.executable, "-m", "rsvlm.run_notebook", "aggregate_data"]
    done = subprocess.run(command, cwd=scratch_root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "params.yaml, section 'aggregate_data'" in done.stderr
    assert "sources: ucm: unknown format 'csv'; did you mean 'caption_csv'?" in done.stderr
    assert "[aggregate_data]" not in done.stderr and not (scratch_root / ".rsvlm").exists(), "no cell ran"


def test_a_stages_own_check_is_found():
    for stage, checker in CHECKERS.items():
        module, function = checker.split(":")
        assert callable(getattr(importlib.import_module(module), function)), stage


def test_a_dead_kernel_is_an_error(run):
    done = run(toy("import os; os._exit(9)"))
    assert done.returncode == 1 and "kernel died" in done.stderr and not run.executed.exists()


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
        ({"lable": "x"}, "knows no parameter 'lable'"),
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
    with pytest.raises(ValueError, match="default of 'seed'"):
        declared_parameters(toy(parameters="seed: int = 'x'"), "n")
    with pytest.raises(ValueError, match="not `name: type = literal`"):
        declared_parameters(toy(parameters="seed = 1"), "n")
    with pytest.raises(ValueError, match="computed"):
        declared_parameters(toy(parameters="seed: int = 1 + len('x')"), "n")
    with pytest.raises(ValueError, match="exactly one cell tagged"):
        declared_parameters(new_notebook(), "n")
    with pytest.raises(ValueError, match="cannot check the type"):
        fits(1, "set[int]")


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
