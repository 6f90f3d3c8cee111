"""Marks of captions: on the disk at once, never lost, counted once."""

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest

from rsvlm.files import append_line
from rsvlm.viewing.caption_gallery import MARK_COLUMNS, MARKS, Mark, error_table, read_marks, save_mark, standing_marks

MARK = Mark(
    "2026-01-02T03:04:05+00:00", "Ada", "captioner", "s/1.png", "s", "river", "wrong count", 1, "", "A river.", "k0"
)


def test_marks_come_back_as_they_were_saved(tmp_path):
    path = tmp_path / "marks" / "captions.csv"
    nasty = [
        replace(MARK, note='a "quote", a comma; <script>', key="k1", kind="note"),
        replace(MARK, image_id="s/a\"b'<i>&c.png", label="=1+1", key="k2"),
        replace(MARK, note="two\nlines\rand \x00 nul", key="k3", kind="note"),
    ]
    for mark in nasty:
        save_mark(mark, path)
    read = read_marks(path)
    assert read[:2] == nasty[:2] and read[2].note == "two lines and   nul"
    lines = path.read_text().split("\n")
    assert lines[0] == ",".join(MARK_COLUMNS) and len(lines) == 5 and lines[-1] == ""
    assert read_marks(tmp_path / "none.csv") == []


def test_a_mark_taken_back_does_not_stand_and_one_sent_twice_counts_once(tmp_path):
    path = tmp_path / "captions.csv"
    for mark in (
        MARK,
        MARK,
        replace(MARK, on=0, key="k1"),
        replace(MARK, kind="good", key="k2"),
        replace(MARK, who="Eve", key="k3"),
    ):
        save_mark(mark, path)
    assert [mark.key for mark in read_marks(path)] == ["k0", "k1", "k2", "k3"]
    standing = standing_marks(read_marks(path))
    assert set(standing["Ada", "captioner", "s/1.png"]) == {"good"}
    assert set(standing["Eve", "captioner", "s/1.png"]) == {"wrong count"}


def test_a_torn_line_is_told_and_harms_no_other(tmp_path):
    path = tmp_path / "captions.csv"
    save_mark(MARK, path)
    with path.open("a") as file:
        file.write("2026-01-02T03:04:05+00:00,Ada,capt")  # a power failure
    save_mark(replace(MARK, key="k1"), path)
    with pytest.warns(UserWarning, match="line 3 is left out: 3 fields"):
        assert [mark.key for mark in read_marks(path)] == ["k0", "k1"]
    path.write_text("image,mark\n")
    with pytest.raises(ValueError, match="first line must be when,who"):
        read_marks(path)


def test_a_process_killed_while_it_marks_loses_nothing_it_called_saved(tmp_path):
    path = tmp_path / "captions.csv"
    program = f"""
        from dataclasses import replace
        from pathlib import Path
        from rsvlm.viewing.caption_gallery import Mark, save_mark
        mark = Mark(*{(MARK.when, MARK.who, MARK.run, MARK.image_id, MARK.source, MARK.label, MARK.kind, 1, "", "x", "k")!r})
        for number in range(10**6):
            save_mark(replace(mark, key=f"k{{number}}"), Path({str(path)!r}))
            print(number, flush=True)
    """
    running = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
    seen = [int(running.stdout.readline()) for _ in range(20)]
    os.kill(running.pid, signal.SIGKILL)
    seen += [int(line) for line in running.stdout.read().split("\n")[:-1] if line]
    running.wait()
    saved = {mark.key for mark in read_marks(path)}
    assert {f"k{number}" for number in seen} <= saved


def test_two_writers_do_not_mix_lines(tmp_path):
    path = tmp_path / "lines.csv"
    program = f"from rsvlm.files import append_line\nfrom pathlib import Path\nimport sys\nfor n in range(50): append_line(Path({str(path)!r}), sys.argv[1] * 200, head='head')"
    writers = [subprocess.Popen([sys.executable, "-c", program, letter]) for letter in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    lines = path.read_text().splitlines()
    assert lines.count("head") == 1 and len(lines) == 101 and set(lines[1:]) == {"a" * 200, "b" * 200}
    with pytest.raises(ValueError, match="one line is needed"):
        append_line(path, "a\nb")


def test_the_error_table_counts_images_by_class_and_kind():
    marks = [
        MARK,
        replace(MARK, kind="hallucinated", key="k1"),
        replace(MARK, who="Eve", key="k2"),  # the same image again
        replace(MARK, image_id="s/2.png", kind="good", key="k3"),
        replace(MARK, image_id="s/3.png", label="", kind="note", key="k4"),
        replace(MARK, run="beam", key="k5"),
    ]
    table = error_table(marks, run="captioner")
    assert list(table.index) == ["(no class)", "river", "all"]
    river = table.loc["river"]
    assert (river["wrong count"], river["hallucinated"], river["good"], river["marked"], river["wrong"]) == (
        1,
        1,
        1,
        2,
        1,
    )
    assert river["wrong, %"] == 50.0 and table.loc["(no class)", "marked"] == 0
    assert table.loc["all", "note"] == 1 and error_table(marks).loc["all", "wrong"] == 2
    empty = error_table([])
    assert list(empty.index) == ["all"] and empty.loc["all", list(MARKS)].sum() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [({"kind": "odd"}, "'odd' is none of good"), ({"who": ""}, "needs who"), ({"note": "x" * 2001}, "2001 characters")],
)
def test_marks_check_themselves(change, message):
    with pytest.raises(ValueError, match=message):
        replace(MARK, **change)
