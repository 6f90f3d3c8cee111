"""The one cache by content: what is kept is found again, whole, by several processes, after a kill and after damage."""

import random
import signal
import subprocess
import sys

import pytest

from rsvlm.content_cache import FILE, ContentCache


def test_texts_and_bytes_come_back_in_the_order_asked(tmp_path):
    with ContentCache(tmp_path) as cache:
        cache.keep("one", {"a": "text", "b": b"\x00\xff", "c": ""})
        assert list(cache.read("one", ["c", "x", "b", "a", "c"])) == [("c", ""), ("b", b"\x00\xff"), ("a", "text")]
        assert cache.lacks("one", ["y", "a", "x", "y"]) == ["y", "x"] and cache.lacks("two", ["a"]) == ["a"]
        cache.keep("one", {"a": "new"})
        assert cache.find("one", ["a"]) == {"a": "new"}


def test_a_killed_process_leaves_whole_results(tmp_path):
    code = (
        "import sys; from pathlib import Path; from rsvlm.content_cache import ContentCache\n"
        "cache = ContentCache(Path(sys.argv[1])); print('open', flush=True)\n"
        "for n in range(10**9): cache.keep('p', {f'{n} {m}': 'v' * 5000 for m in range(20)})"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        with ContentCache(tmp_path) as cache:
            while not cache.find("p", ["2 0"]):
                pass
        process.send_signal(signal.SIGKILL)
    with ContentCache(tmp_path) as cache:
        counts = {len(cache.find("p", [f"{n} {m}" for m in range(20)])) for n in range(5000)}
    assert counts == {0, 20}, "each of the batches is there or not"


def test_the_cache_keeps_kinds_apart_and_survives_odd_texts(tmp_path):
    cache = ContentCache(tmp_path)
    odd = ["", "\x00", "half \ud83d", "a\nb", "🛰", "x" * 100_000]
    cache.keep("one", {text: str(number) for number, text in enumerate(odd)})
    assert cache.find("one", odd) == {text: str(number) for number, text in enumerate(odd)}
    assert cache.find("two", odd) == {} and ContentCache(None).find("one", odd) == {}
    many = {str(number): "v" for number in range(2000)}
    cache.keep("two", many)
    assert cache.find("two", many) == many


def test_a_damaged_cache_is_put_aside_with_a_warning(tmp_path):
    (tmp_path / FILE).write_bytes(b"not a database" * 1000)
    with pytest.warns(UserWarning, match="damaged"):
        cache = ContentCache(tmp_path)
    cache.keep("one", {"a": "b"})
    assert ContentCache(tmp_path).find("one", ["a"]) == {"a": "b"}


@pytest.mark.parametrize("seed", range(12))
def test_damaged_pages_are_made_anew_with_a_line_and_nothing_wrong_is_given(tmp_path, seed):
    """Anywhere in the file: pages of keys, which SQLite notices, and of values, which it does not."""
    generator = random.Random(seed)
    made = {str(number): generator.randbytes(9000) for number in range(60)}
    with ContentCache(tmp_path) as cache:
        cache.keep("one", made)
    size = (tmp_path / FILE).stat().st_size
    with (tmp_path / FILE).open("r+b") as file:
        file.seek(generator.randrange(4096, size - 4096))
        file.write(generator.randbytes(4096))
    with ContentCache(tmp_path) as cache:
        with pytest.warns(UserWarning, match=rf"{FILE}: .*damaged"):
            lacking = cache.lacks("one", made)
        assert lacking
        cache.keep("one", {content: made[content] for content in lacking})
        assert cache.find("one", made) == made


def test_several_processes_share_a_cache(tmp_path):
    code = (
        "import sys; from pathlib import Path; from rsvlm.content_cache import ContentCache\n"
        "cache = ContentCache(Path(sys.argv[1]))\n"
        "for n in range(50): cache.keep('p', {f'{sys.argv[2]} {n}': 'v'})"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in "abc"]
    assert [process.wait(timeout=120) for process in running] == [0, 0, 0]
    assert len(ContentCache(tmp_path).find("p", [f"{name} {n}" for name in "abc" for n in range(50)])) == 150
