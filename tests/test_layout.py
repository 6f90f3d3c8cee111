"""The layout of params.yaml outlives ``dvc exp run -S``: DVC's own functions on all shipped studies, and a whole experiment."""

import difflib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.cli import main as dvc_main
from dvc.utils.hydra import apply_overrides

from rsvlm.study.config import read_params
from rsvlm.study.layout import BASELINE, restore_layout, with_own_lines, with_values
from rsvlm.study.studies import study_names, study_text

OWN = """\
# My study: "quoted", and a list
a:
  # why this list
  weights: [0.0, 1.0]  # to try
  # a word of mine
  names: [one,
          two]  # over two lines
  none: null  # nothing
  empty:   # nothing either
  text: "Caption:"  # quoted

b:
  sources:  # where from
  - name: one  # the first
    url: "x: y"
  # a second one
  - name: two
  rate: 4.0e-4  # no more
"""


def git(folder: Path, *arguments: str) -> str:
    names = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    return subprocess.run(
        ["git", *names, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def dvc(*arguments: str) -> None:
    assert dvc_main([*arguments, "-q"]) == 0


def changed_lines(before: str, after: str) -> list[str]:
    found = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    return [line for line in found if line[0] in "+-" and line[:3] not in ("+++", "---")]


def committed(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """params.yaml in a repository's first commit, from which the experiment starts."""
    params = folder / "params.yaml"
    params.write_text(text, encoding="utf-8")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    monkeypatch.setenv(BASELINE, git(folder, "rev-parse", "HEAD"))
    return params


@pytest.mark.parametrize("name", study_names())
def test_an_experiment_changes_only_the_lines_of_its_values(name, tmp_path, monkeypatch):
    before = study_text(name)
    params = committed(tmp_path, before, monkeypatch)
    assert not restore_layout(params)
    apply_overrides(
        params,
        ["adapt_encoder.epochs=77", "generate_captions.pool_weights=[0,0.5]", "adapt_encoder.weights=null"],
    )
    assert len(changed_lines(before, params.read_text())) > 50  # what DVC makes of it
    assert restore_layout(params)
    after = params.read_text()
    old = read_params(params)["adapt_encoder"]["epochs"]
    assert old == 77
    assert [line for line in changed_lines(before, after) if line.startswith("+")] == [
        "+  epochs: 77  # passes over the training images; 0 keeps the encoder as it is",
        "+  pool_weights: [0, 0.5]  # to try: agreement with the neighbours' captions",
    ]


def test_a_layout_of_ones_own_is_kept_too(tmp_path, monkeypatch):
    params = committed(tmp_path, OWN, monkeypatch)
    apply_overrides(params, ["b.rate=0.5"])
    assert "# the first" not in params.read_text()  # DVC drops comments in lists of mappings
    assert restore_layout(params)
    assert changed_lines(OWN, params.read_text()) == ["-  rate: 4.0e-4  # no more", "+  rate: 0.5  # no more"]
    apply_overrides(params, ["b.rate=4.0e-4"])
    assert restore_layout(params)
    assert params.read_text() == OWN


def test_edits_that_no_commit_holds_are_left_alone(tmp_path, monkeypatch):
    params = committed(tmp_path, OWN, monkeypatch)
    mine = OWN.replace("# no more", "# no less").replace("4.0e-4", "0.1")
    params.write_text(mine)
    assert not restore_layout(params)
    assert params.read_text() == mine
    params.write_text(OWN.replace("4.0e-4", "0.1"))  # a value alone
    apply_overrides(params, ["a.text=other"])
    assert restore_layout(params)
    assert len(changed_lines(OWN, params.read_text())) == 4
    monkeypatch.delenv(BASELINE)
    apply_overrides(params, ["a.text=third"])
    assert not restore_layout(params)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"weights": [1]}, "  weights: [1]  # to try"),
        ({"names": ["three"]}, "  names: [three]  # over two lines"),
        ({"none": 3}, "  none: 3  # nothing"),
        ({"empty": 3}, "  empty: 3  # nothing either"),
        ({"text": None}, "  text: null  # quoted"),
    ],
)
def test_a_value_changes_and_its_comment_stays(change, line):
    lines = with_values(OWN, {"a": change}).splitlines()
    assert line in lines
    assert len(lines) == len(OWN.splitlines()) - ("names" in change)


def test_lists_of_mappings_are_written_whole():
    after = with_values(OWN, {"b": {"sources": [{"name": "three", "tiles": 3}]}})
    assert after.partition("b:\n")[2] == (
        "  sources:  # where from\n  - name: three\n    tiles: 3\n  rate: 4.0e-4  # no more\n"
    )
    with pytest.raises(ValueError, match=r"no such parameter: b\.tiles"):
        with_values(OWN, {"b": {"tiles": 3}})


def toy_repository(root: Path, monkeypatch) -> str:
    """The parameters of a repository of DVC's with one stage, which restores their layout first as a study's stages do; committed."""
    root.mkdir()
    before = study_text("default")
    (root / "params.yaml").write_text(before)
    (root / "stage.py").write_text(
        "import json, sys\nfrom pathlib import Path\nfrom rsvlm.study.config import read_params\n"
        "from rsvlm.study.layout import restore_layout\n"
        "file = Path('params.yaml')\nrestore_layout(file)\nvalues = read_params(file)\n"
        "found = {'epochs': values['adapt_encoder']['epochs'], 'rank': values['finetune_lora']['lora_rank']}\n"
        "Path('headline.json').write_text(json.dumps(found))\n"
    )
    (root / "dvc.yaml").write_text(
        f"stages:\n  one:\n    cmd: {sys.executable} stage.py\n    params: [adapt_encoder, finetune_lora]\n"
        "    deps: [stage.py, params.yaml]\n    outs: [headline.json]\nmetrics: [headline.json]\n"
    )
    (root / ".gitignore").write_text("/headline.json\n")
    git(root, "init", "-q")
    monkeypatch.chdir(root)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[1]))
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "a")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "a@example.org")
    dvc("init")
    dvc("repro")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    return before


@pytest.mark.filterwarnings("ignore::DeprecationWarning:dvc.*")
def test_through_dvc_exp_run_and_apply(tmp_path, monkeypatch):
    root = tmp_path / "study"
    before = toy_repository(root, monkeypatch)
    dvc("exp", "run", "-n", "seven", "-S", "adapt_encoder.epochs=7")
    epochs = next(line for line in before.splitlines() if line.startswith("  epochs:"))
    wanted = [f"-{epochs}", f"+{epochs.replace('2', '7', 1)}"]
    assert changed_lines(before, (root / "params.yaml").read_text()) == wanted
    git(root, "checkout", "-q", "params.yaml", "dvc.lock")
    dvc("checkout")
    dvc("exp", "run", "--temp", "-n", "eight", "-S", "adapt_encoder.epochs=8")
    assert (root / "params.yaml").read_text() == before
    dvc("exp", "apply", "eight")
    assert changed_lines(before, (root / "params.yaml").read_text()) == [wanted[0], f"+{epochs.replace('2', '8', 1)}"]
    assert json.loads((root / "headline.json").read_text())["epochs"] == 8
    # an experiment whose stages DVC takes from its cache, up to the one that reads the file whole
    git(root, "checkout", "-q", "params.yaml", "dvc.lock")
    dvc("exp", "run", "-n", "again", "-S", "adapt_encoder.epochs=7")
    assert changed_lines(before, (root / "params.yaml").read_text()) == wanted


def test_comment_lines_stand_where_they_stood_or_at_their_sections_end():
    fresh = "# head\n\na:\n  sources:\n  - name: one\n    format: karpathy\n  - name: two\n    format: karpathy\n\nb:\n  rate: 2  # of it\n"
    mine = fresh.replace("  - name: two\n    format", "  # mine\n  - name: two\n    # of two\n    format")
    mine = mine.replace("  rate: 2  # of it", "  # was 3\n  rate: 2  # older words\n  # last")
    assert with_own_lines(fresh, mine) == mine.replace("older words", "of it")
    gone = mine.replace("rate: 2", "speed: 2")
    assert with_own_lines(fresh, gone).endswith("b:\n  rate: 2  # of it\n  # was 3\n  # last\n")
