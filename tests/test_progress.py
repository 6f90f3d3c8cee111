"""Where long work says how far it is: a bar or a line, and what it logs."""

import sys

import pytest
from tqdm.std import tqdm

from rsvlm import progress


@pytest.fixture
def plain(monkeypatch):
    monkeypatch.delenv(progress.SECONDS, raising=False)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)


def test_outside_a_notebook_it_is_one_line_on_stderr(plain, capsys):
    bar = progress.progress(range(3), desc="work", unit="img")
    assert type(bar) is tqdm and bar.mininterval == progress.IN_LOG, "no terminal here: a line a minute"
    assert list(bar) == [0, 1, 2]
    progress.log_line("epoch 1")
    told = capsys.readouterr()
    assert not told.out and "epoch 1\n" in told.err and "work: 100%" in told.err


def test_a_stages_kernel_is_told_how_often(plain, monkeypatch):
    monkeypatch.setenv(progress.SECONDS, "7")
    monkeypatch.setitem(sys.modules, "ipykernel", object())
    assert not progress.in_lab()
    assert progress.progress(range(3), disable=True).disable and progress.progress(total=3).mininterval == 7


def test_in_jupyterlab_it_is_a_widget_and_nothing_turns_red(plain, monkeypatch, capsys):
    monkeypatch.setattr(progress, "in_lab", lambda: True)
    from tqdm.notebook import tqdm as widget

    assert isinstance(progress.progress(total=3, disable=True), widget)
    progress.log_line("epoch 1")
    told = capsys.readouterr()
    assert told.out == "epoch 1\n" and not told.err
